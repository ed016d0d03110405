//! Promise: no role that may use the extension stops the work of others.

use harness::roles::{another, forbidden, pipeline_owner, refused, role, run};
use harness::*;

#[test]
fn no_lock_that_anybody_can_take_stops_the_workers() {
    let db = Database::with_pipeline();
    let (_name, mut client) = role(&db);
    // Those that workers take, of earlier releases too.
    run(
        &mut client,
        "SELECT pg_advisory_lock(8099856848592240642), pg_advisory_lock(8099547361277575169), pg_advisory_lock(8099547361277575170);
         SELECT pg_advisory_lock(1885822825, n), pg_advisory_lock(n, 0) FROM generate_series(1, 4) n",
    );
    forbidden(&mut client, "SELECT ingest.hold_for_restore()");
    db.run(&texts::insert_passages());
    db.quiesce();
    db.run("SELECT ingest.alter_pipeline('default', chunk_tokens => 20)");
    db.settle();
    // Nor does a table of documents that somebody locks.
    run(
        &mut client,
        "CREATE VIEW app.all_of_them AS SELECT * FROM ingest.documents;
         CREATE FUNCTION app.lock() RETURNS void LANGUAGE plpgsql AS $$ BEGIN LOCK TABLE ingest.documents IN SHARE MODE; END $$",
    );
    for lock in [
        "LOCK TABLE ingest.documents",
        "LOCK TABLE ingest.documents IN SHARE MODE",
        "LOCK TABLE app.all_of_them IN ACCESS EXCLUSIVE MODE",
        "SELECT app.lock()",
    ] {
        forbidden(&mut client, &format!("BEGIN; {lock}"));
        run(&mut client, "ROLLBACK");
    }
    run(
        &mut client,
        "BEGIN; LOCK TABLE ingest.documents IN ROW EXCLUSIVE MODE; ROLLBACK",
    );
    db.run("BEGIN; LOCK TABLE ingest.documents; ROLLBACK");
}

#[test]
fn an_id_that_is_still_to_be_given_is_taken_by_nobody() {
    let db = Database::new();
    let (_name, mut client) = pipeline_owner(&db, "");
    let (_other, mut other) = another(&db, "other");
    run(&mut other, "SELECT ingest.create_pipeline('theirs')");
    let insert = |id: &str| {
        format!(
            "INSERT INTO ingest.documents (id, pipeline, content) OVERRIDING SYSTEM VALUE SELECT {id}, 'mine', 'A text.'"
        )
    };
    for ids in ["generate_series(1, 9)", "9223372036854775807", "-1"] {
        let error = refused(&mut client, &insert(ids));
        assert_eq!(error.code, "428C9", "{ids}: {}", error.text());
        assert!(error.hint.is_some());
    }
    run(
        &mut other,
        "INSERT INTO ingest.documents (pipeline, content) VALUES ('theirs', 'x'), ('theirs', 'y')",
    );
    // One that was given and is free again is as good as any.
    run(
        &mut other,
        "DELETE FROM ingest.documents WHERE content = 'x'",
    );
    let free: i64 = db.one("SELECT min(id) - 1 FROM ingest.documents");
    run(&mut client, &insert(&free.to_string()));
    // Whoever sees all of them knows what it does.
    db.run(&insert("1000"));
}
