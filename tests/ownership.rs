//! Promise: a pipeline outlives its owner, and is handed over when somebody says so.

use harness::roles::{another, column, forbidden, refused, role, run};
use harness::*;

#[test]
fn a_pipeline_that_lost_its_owner_goes_on_under_another() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    let (heir, mut next) = another(&db, "heir");
    run(&mut client, "SELECT ingest.create_pipeline('p')");
    drop(client);
    db.run(&format!(
        "REASSIGN OWNED BY {owner} TO {heir}; DROP OWNED BY {owner}; DROP ROLE {owner}"
    ));
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'k', 'A text.')");
    let said = db.until_blocked("p").last_error.unwrap_or_default();
    assert!(said.contains("SELECT ingest.set_owner('p', "), "{said}");
    assert_eq!(
        refused(
            &mut next,
            &format!("SELECT ingest.set_owner('p', '{heir}')")
        )
        .code,
        "42501"
    );
    db.run(&format!("SELECT ingest.set_owner('p', '{heir}')"));
    run(&mut next, "SELECT ingest.resume('p')");
    run(&mut next, "SELECT ingest.wait('p', '60 s')");
    assert_eq!(db.progress_of("p").counts(), (1, 1, 0, 0));
}

#[test]
fn an_owner_hands_its_pipeline_over_with_its_target() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    let (heir, mut next) = another(&db, "heir");
    run(&mut client, "SELECT ingest.create_pipeline('p')");
    let error = forbidden(
        &mut client,
        &format!("SELECT ingest.set_owner('p', '{heir}')"),
    );
    assert!(
        error.message.contains("must be a member"),
        "{}",
        error.text()
    );
    db.run(&format!("GRANT {heir} TO {owner}"));
    run(
        &mut client,
        &format!("SELECT ingest.set_owner('p', '{heir}')"),
    );
    run(
        &mut next,
        "INSERT INTO ingest.documents (pipeline, content) VALUES ('p', 'x')",
    );
    run(&mut next, "SELECT ingest.wait('p', '60 s')");
    assert_eq!(
        column::<i64>(&mut next, "SELECT count(*) FROM ingest.p_chunks"),
        [1]
    );
}

#[test]
fn a_pipeline_goes_only_to_who_may_read_what_it_watches() {
    let db = Database::new();
    let (owner, _client) = role(&db);
    let (heir, _next) = another(&db, "heir");
    db.run(&format!(
        "CREATE TABLE public.notes (id int PRIMARY KEY, body text); INSERT INTO public.notes VALUES (1, 'A text.');
         GRANT SELECT ON public.notes TO {owner};
         SELECT ingest.create_pipeline('p'); SELECT ingest.set_owner('p', '{owner}');
         SELECT ingest.watch('public.notes', 'body', pipeline => 'p')"
    ));
    db.run("SELECT ingest.wait('p', '60 s')");
    let hand_over = format!("SELECT ingest.set_owner('p', '{heir}')");
    let error = db.expect_error(&hand_over);
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("42501", "permission denied for table notes")
    );
    db.run(&format!("GRANT SELECT ON public.notes TO {heir}; {hand_over}; INSERT INTO public.notes VALUES (2, 'Another.')"));
    db.run("SELECT ingest.wait('p', '60 s')");
    assert_eq!(db.progress_of("p").counts(), (2, 2, 0, 0));
}

#[test]
fn a_target_that_went_to_another_role_says_how_the_pipeline_follows() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    let heir = format!("The Heir {}", db.name());
    db.run(&format!(
        "CREATE ROLE \"{heir}\"; GRANT USAGE ON SCHEMA ingest TO \"{heir}\""
    ));
    run(&mut client, "SELECT ingest.create_pipeline('p')");
    db.run(&format!("REASSIGN OWNED BY {owner} TO \"{heir}\""));
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'k', 'A text.')");
    db.until_blocked("p");
    let hint = "SELECT hint FROM ingest.doctor() WHERE \"check\" = 'state of p'";
    let said = column::<String>(&mut client, hint).concat();
    let advice = format!("SELECT ingest.set_owner('p', '\"{heir}\"');");
    assert!(said.contains(&advice), "{said}");
    db.run(&format!("{advice} SELECT ingest.resume('p')"));
    assert!(db.one::<bool>("SELECT ingest.wait('p', '60 s')"));
    assert_eq!(db.progress_of("p").counts(), (1, 1, 0, 0));
    // A pipeline that is blocked for another reason is not given away.
    run(&mut client, "SELECT ingest.create_pipeline('q')");
    db.run("ALTER TABLE ingest.q_chunks DROP COLUMN tokens; INSERT INTO ingest.documents (pipeline, content) VALUES ('q', 'A text.')");
    db.until_blocked("q");
    assert_eq!(
        column::<String>(&mut client, &hint.replace("of p", "of q")),
        ["SELECT ingest.resume('q');"]
    );
    db.run(&format!(
        "SELECT ingest.drop_pipeline('p', true); DROP OWNED BY \"{heir}\"; DROP ROLE \"{heir}\""
    ));
}
