//! Promise: a target that takes for ever is its own pipeline's trouble alone. With the injection library, whose worker has less patience.

use harness::roles::{pipeline_owner, run};
use harness::*;

#[test]
fn a_target_that_takes_for_ever_stops_its_own_pipeline_alone() {
    let cluster = Cluster::start_injecting(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline()");
    let (_name, mut client) = pipeline_owner(&db, "");
    run(
        &mut client,
        "CREATE FUNCTION app.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3600); RETURN NEW; END $$;
         CREATE TRIGGER dawdle BEFORE INSERT ON app.docs FOR EACH ROW EXECUTE FUNCTION app.dawdle()",
    );
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('mine', 'k', 'A text.')");
    // Twice: the second time with one document alone.
    let mut said = None;
    wait_until("it is blocked", SOON, || {
        let progress = db.progress_of("mine");
        said = progress.last_error;
        progress.state == "blocked"
    });
    let said = said.unwrap_or_default();
    assert!(said.contains("takes longer than"), "{said}");
    db.run(&texts::insert_passages());
    assert!(db.one::<bool>("SELECT ingest.wait('default', '30 s')"));
    run(
        &mut client,
        "DROP TRIGGER dawdle ON app.docs; SELECT ingest.resume('mine')",
    );
    assert!(db.one::<bool>("SELECT ingest.wait('mine', '30 s')"));
    assert_eq!(db.progress_of("mine").counts(), (1, 1, 0, 0));
}
