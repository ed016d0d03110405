//! Promise: what was read before a wait is not acted upon after it, when somebody has changed it meanwhile: no right, no table
//! of the same name, no definition that is no more.

use std::thread::JoinHandle;

use harness::remote::api;
use harness::roles::{refused, role, run};
use harness::*;
use postgres::Client;

/// Runs a statement in a session of its own, which waits for another one when this returns.
fn begun(db: &Database<'static>, mut client: Client, sql: &str) -> JoinHandle<SqlResult<()>> {
    let pid: i32 = client
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    let sql = sql.to_owned();
    let statement =
        std::thread::spawn(move || client.batch_execute(&sql).map_err(ServerError::from));
    wait_until("the statement waits", SOON, || {
        db.one::<bool>(&format!(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = {pid})"
        ))
    });
    statement
}

fn chunks(db: &Database, table: &str) -> Vec<String> {
    db.all(&format!(
        "SELECT document_key || ': ' || content FROM {table} ORDER BY 1"
    ))
}

#[test]
fn who_gave_a_pipeline_away_cannot_change_it_any_more() {
    let db = Database::new();
    let (owner, mut client) = role(&db);
    run(
        &mut client,
        "SELECT ingest.create_pipeline('p', target => 'app.chunks')",
    );
    for statement in [
        "SELECT ingest.drop_pipeline('p')",
        "SELECT ingest.alter_pipeline('p', chunk_tokens => 50)",
        "SELECT ingest.pause('p')",
        "SELECT ingest.watch('pg_class', 'relname', 'p')",
    ] {
        db.run(&format!("SELECT ingest.set_owner('p', '{owner}')"));
        db.run("BEGIN; SELECT ingest.set_owner('p', current_user::regrole)");
        let waiting = begun(&db, db.connect_as(&owner), statement);
        db.run("COMMIT");
        let error = waiting.join().unwrap().expect_err(statement);
        assert_eq!(error.code, "42501", "{statement}: {error:?}");
    }
    // Nor another one that has its name.
    db.run(&format!("SELECT ingest.set_owner('p', '{owner}')"));
    db.run("BEGIN; SELECT ingest.drop_pipeline('p'); SELECT ingest.create_pipeline('p')");
    let waiting = begun(
        &db,
        db.connect_as(&owner),
        "SELECT ingest.drop_pipeline('p')",
    );
    db.run("COMMIT");
    assert_eq!(
        waiting.join().unwrap().expect_err("not its own").code,
        "42501"
    );
}

#[test]
fn a_table_is_not_watched_for_a_pipeline_that_was_dropped_meanwhile() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    db.run("CREATE TABLE public.notes (id int PRIMARY KEY, body text); INSERT INTO public.notes VALUES (1, 'One.')");
    let mut writer = db.connect();
    writer
        .batch_execute("BEGIN; INSERT INTO public.notes VALUES (2, 'Two.')")
        .unwrap();
    let watching = begun(
        &db,
        db.connect(),
        "SELECT ingest.watch('public.notes', 'body', 'p')",
    );
    let dropping = begun(&db, db.connect(), "SELECT ingest.drop_pipeline('p')");
    writer.batch_execute("COMMIT").unwrap();
    watching.join().unwrap().expect("it was first");
    dropping.join().unwrap().expect("it was second");
    assert_eq!(db.rows("SELECT * FROM ingest.watch").len(), 0);
    assert_eq!(
        db.rows(
            "SELECT * FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = 'public.notes'::regclass"
        )
        .len(),
        0
    );
    db.run("UPDATE public.notes SET body = 'Changed.'; DELETE FROM public.notes");
}

#[test]
fn a_target_is_known_by_more_than_its_name() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "target => 'public.docs', dimensions => 8");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'a', 'A.'), ('p', 'b', 'B.'), ('p', 'c', 'C.')");
    db.settle();
    db.run("CREATE TABLE public.later (LIKE public.docs INCLUDING ALL); INSERT INTO public.later SELECT * FROM public.docs");
    let swap =
        "ALTER TABLE public.docs RENAME TO docs_old; ALTER TABLE public.later RENAME TO docs";
    let back =
        "ALTER TABLE public.docs RENAME TO later; ALTER TABLE public.docs_old RENAME TO docs";
    // A user's statement, which waits for the swap.
    let mut owner = db.connect();
    owner.batch_execute(&format!("BEGIN; {swap}")).unwrap();
    let deleting = begun(
        &db,
        db.connect(),
        "DELETE FROM ingest.documents WHERE key = 'a'; UPDATE ingest.documents SET metadata = '{\"new\": 1}' WHERE key = 'b'",
    );
    owner.batch_execute("COMMIT").unwrap();
    deleting.join().unwrap().unwrap();
    assert_eq!(chunks(&db, "public.docs_old"), ["b: B.", "c: C."]);
    assert_eq!(chunks(&db, "public.docs"), ["a: A.", "b: B.", "c: C."]);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM public.docs_old WHERE metadata ? 'new'"),
        1
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM public.docs WHERE metadata ? 'new'"),
        0
    );
    db.run(back);
    // One that sees what there was before.
    let mut early = db.connect();
    early
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        .unwrap();
    db.run(swap);
    early
        .batch_execute("DELETE FROM ingest.documents WHERE key = 'b'; COMMIT")
        .unwrap();
    assert_eq!(chunks(&db, "public.docs_old"), ["c: C."]);
    assert_eq!(chunks(&db, "public.docs"), ["a: A.", "b: B.", "c: C."]);
    db.run(back);
    // The worker, with an answer that comes while the swap is under way.
    api.hold_answers();
    db.run("UPDATE ingest.documents SET content = 'New.' WHERE key = 'c'");
    wait_until("it is asked for", SOON, || api.in_flight() == 1);
    owner.batch_execute(&format!("BEGIN; {swap}")).unwrap();
    api.release_answers();
    db.until_worker_waits();
    owner.batch_execute("COMMIT").unwrap();
    db.settle();
    assert_eq!(chunks(&db, "public.docs_old"), ["c: New."]);
    assert_eq!(chunks(&db, "public.docs"), ["a: A.", "b: B.", "c: C."]);
    // And dropping it.
    db.run(back);
    owner.batch_execute(&format!("BEGIN; {swap}")).unwrap();
    let dropping = begun(
        &db,
        db.connect(),
        "SELECT ingest.drop_pipeline('p', drop_target => true)",
    );
    owner.batch_execute("COMMIT").unwrap();
    dropping.join().unwrap().unwrap();
    assert_eq!(chunks(&db, "public.docs"), ["a: A.", "b: B.", "c: C."]);
    assert!(db.one::<bool>("SELECT to_regclass('public.docs_old') IS NULL"));
}

#[test]
fn rows_are_read_from_the_watched_table_and_from_none_that_got_its_name() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    db.run(
        "CREATE TABLE public.notes (id int PRIMARY KEY, body text); INSERT INTO public.notes VALUES (1, 'One.'), (2, 'Two.');
         CREATE TABLE public.others (id int PRIMARY KEY, body text); INSERT INTO public.others VALUES (1, 'Somebody else''s.');
         SELECT ingest.watch('public.notes', 'body', 'p')",
    );
    db.settle();
    db.run("SELECT ingest.pause('p'); UPDATE public.notes SET body = body || ' New.'");
    let mut owner = db.connect();
    owner
        .batch_execute("BEGIN; ALTER TABLE public.notes RENAME TO mine; ALTER TABLE public.others RENAME TO notes")
        .unwrap();
    db.run("SELECT ingest.resume('p')");
    db.until_worker_waits();
    owner.batch_execute("COMMIT").unwrap();
    db.settle();
    assert_eq!(
        chunks(&db, "ingest.p_chunks"),
        ["1: One. New.", "2: Two. New."]
    );
}

#[test]
fn a_table_that_is_watched_in_another_way_is_not_changed_by_who_does_not_know() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    db.run(
        "CREATE TABLE public.notes (id int PRIMARY KEY, title text, body text); INSERT INTO public.notes VALUES (1, 'Title.', 'Body.');
         SELECT ingest.watch('public.notes', 'title', 'p')",
    );
    db.settle();
    let mut early = db.connect();
    run(
        &mut early,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1",
    );
    db.run("SELECT ingest.watch('public.notes', 'body', 'p')");
    db.settle();
    let update = "UPDATE public.notes SET body = 'Another body.'";
    assert_eq!(refused(&mut early, update).code, "40001");
    run(&mut early, "ROLLBACK");
    // One that began after it is not disturbed by what the worker notes.
    run(
        &mut early,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1",
    );
    db.run("UPDATE ingest.watch SET phase = 'scan'; SELECT ingest.wake()");
    wait_until("the rows have been looked at", SOON, || {
        db.one::<bool>("SELECT bool_and(phase = 'done') FROM ingest.watch")
    });
    run(&mut early, update);
    run(&mut early, "COMMIT");
    db.settle();
    assert_eq!(chunks(&db, "ingest.p_chunks"), ["1: Another body."]);
}

#[test]
fn another_primary_key_with_the_same_values_gives_each_row_its_own_text() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "");
    db.run(
        "CREATE TABLE public.notes (id int PRIMARY KEY, num int NOT NULL, body text);
         INSERT INTO public.notes SELECT n, 4 - n, 'Text ' || n || '.' FROM generate_series(1, 3) n;
         SELECT ingest.watch('public.notes', 'body', 'p')",
    );
    db.settle();
    db.run("ALTER TABLE public.notes DROP CONSTRAINT notes_pkey, ADD PRIMARY KEY (num); INSERT INTO public.notes VALUES (4, 4, 'Text 4.')");
    db.settle();
    assert_eq!(
        chunks(&db, "ingest.p_chunks"),
        ["1: Text 3.", "2: Text 2.", "3: Text 1.", "4: Text 4."]
    );
}
