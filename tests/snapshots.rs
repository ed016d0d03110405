//! Promise: a transaction of REPEATABLE READ or SERIALIZABLE, which does not see what workers and others have done to its
//! documents since it began, leaves nothing stale, orphaned or miscounted: it succeeds, or is told to try again.

use harness::flight::{SINGLY, chunks, counted, in_flight, refused};
use harness::remote::{all_embedded, api};
use harness::roles::run;
use harness::*;
use postgres::Client;

/// What a transaction that began before something else was committed ends with: success, or the advice to try again.
#[track_caller]
fn may_have_to_try_again(client: &mut Client, sql: &str) -> bool {
    match client.batch_execute(sql).map_err(ServerError::from) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.code, "40001", "{sql}: {}", error.text());
            run(client, "ROLLBACK");
            false
        }
    }
}

/// Ends a transaction with this statement, or does it anew where it has to be tried again.
#[track_caller]
fn commit_or_try_again(client: &mut Client, db: &Database, statement: &str) {
    if !may_have_to_try_again(client, &format!("{statement}; COMMIT")) {
        db.run(statement);
    }
}

/// Begins a transaction that sees only what is committed by now.
fn begin(db: &Database, level: &str) -> Client {
    let mut client = db.connect();
    run(
        &mut client,
        &format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM ingest.documents"),
    );
    client
}

#[test]
fn a_transaction_with_an_old_snapshot_changes_documents_or_has_to_try_again() {
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let (db, api) = in_flight(&["changed", "deleted", "relabelled", "moved"]);
        let cases = [
            ("UPDATE ingest.documents SET content = 'New text.' WHERE key = 'changed'"),
            ("DELETE FROM ingest.documents WHERE key = 'deleted'"),
            (r#"UPDATE ingest.documents SET metadata = '{"n": 1}' WHERE key = 'relabelled'"#),
            ("UPDATE ingest.documents SET key = 'elsewhere' WHERE key = 'moved'"),
        ];
        let mut before: Vec<Client> = cases.iter().map(|_| begin(&db, level)).collect();
        api.release_answers();
        all_embedded(&db, "p", 4);
        for (client, statement) in before.iter_mut().zip(cases) {
            commit_or_try_again(client, &db, statement);
        }
        db.settle();
        assert_eq!(
            chunks(&db, "p"),
            [
                "changed: New text.",
                "elsewhere: Old text of moved.",
                "relabelled: Old text of relabelled."
            ]
        );
        counted(&db, "p");
        assert!(db.one::<bool>(r#"SELECT bool_and(metadata = CASE document_key WHEN 'relabelled' THEN '{"n": 1}' ELSE '{}' END::jsonb) FROM ingest.p_chunks"#));
    }
}

#[test]
fn an_old_snapshot_that_shows_a_failure_of_former_times_miscounts_nothing() {
    let (db, api) = refused();
    // It shows a failure, and there is none any more.
    let mut client = begin(&db, "REPEATABLE READ");
    api.clear_faults();
    db.run("SELECT ingest.retry()");
    all_embedded(&db, "p", 1);
    let statement = "UPDATE ingest.documents SET content = 'A new text.'";
    commit_or_try_again(&mut client, &db, statement);
    all_embedded(&db, "p", 1);
    counted(&db, "p");
    // It shows none, and there is one.
    let mut client = begin(&db, "REPEATABLE READ");
    api.refuse_text("text");
    db.run(
        "SELECT ingest.alter_pipeline('p', chunk_tokens => 100); SELECT ingest.finish_rebuild('p')",
    );
    db.settle();
    api.clear_faults();
    let statement = "UPDATE ingest.documents SET content = 'The last one.'";
    commit_or_try_again(&mut client, &db, statement);
    all_embedded(&db, "p", 1);
    counted(&db, "p");
}

#[test]
fn an_old_snapshot_that_shows_nothing_in_flight_leaves_no_stale_metadata() {
    let (db, api) = refused();
    let mut client = begin(&db, "REPEATABLE READ");
    api.clear_faults();
    api.hold_answers();
    db.run("SELECT ingest.retry()");
    wait_until("it is in flight", SOON, || api.in_flight() == 1);
    let statement = r#"UPDATE ingest.documents SET metadata = '{"n": 1}'"#;
    commit_or_try_again(&mut client, &db, statement);
    api.release_answers();
    all_embedded(&db, "p", 1);
    assert_eq!(
        db.all::<String>("SELECT metadata::text FROM ingest.p_chunks"),
        [r#"{"n": 1}"#]
    );
}

#[test]
fn an_old_snapshot_inserts_into_no_pipeline_that_was_dropped_since() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    let mut client = begin(&db, "REPEATABLE READ");
    db.run("SELECT ingest.drop_pipeline('p', drop_target => true)");
    let insert =
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'late', 'A text.')";
    assert!(!may_have_to_try_again(
        &mut client,
        &format!("{insert}; COMMIT")
    ));
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.documents"), 0);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), 0);
    // A pipeline that was only changed since takes it.
    db.create_remote_pipeline("p", &api, SINGLY);
    let mut client = begin(&db, "SERIALIZABLE");
    db.run("SELECT ingest.pause('p'); SELECT ingest.resume('p'); SELECT ingest.alter_pipeline('p', max_attempts => 3)");
    assert!(may_have_to_try_again(
        &mut client,
        &format!("{insert}; COMMIT")
    ));
    all_embedded(&db, "p", 1);
    counted(&db, "p");
}

#[test]
fn what_must_see_every_document_asks_for_read_committed() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    for statement in [
        "TRUNCATE ingest.documents",
        "SELECT ingest.drop_pipeline('p')",
        "SELECT ingest.alter_pipeline('p', chunk_tokens => 100)",
        "SELECT ingest.wait()",
    ] {
        let mut client = begin(&db, "REPEATABLE READ");
        let error = client.batch_execute(statement).map_err(ServerError::from);
        let error = error.expect_err(statement);
        assert_eq!(error.code, "25000", "{statement}: {}", error.text());
        assert!(error.text().contains("READ COMMITTED"), "{}", error.text());
    }
    // What changes no document does not.
    let mut client = begin(&db, "REPEATABLE READ");
    run(
        &mut client,
        "SELECT ingest.pause('p'); SELECT ingest.resume('p'); SELECT ingest.alter_pipeline('p', max_attempts => 3); COMMIT",
    );
}

#[test]
fn an_old_snapshot_deletes_or_moves_nothing_that_somebody_queued_again_since() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    api.refuse_text("poison");
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', k, 'A poison text of ' || k || '.' FROM unnest(ARRAY['deleted', 'moved', 'retried']) k",
    );
    db.settle();
    let cases = [
        "DELETE FROM ingest.documents WHERE key = 'deleted'",
        "UPDATE ingest.documents SET key = 'elsewhere' WHERE key = 'moved'",
        "SELECT ingest.retry(key => 'retried')",
    ];
    let mut before: Vec<Client> = cases.iter().map(|_| begin(&db, "SERIALIZABLE")).collect();
    api.clear_faults();
    api.hold_answers();
    db.run("SELECT ingest.retry()");
    wait_until("they are in flight", SOON, || api.in_flight() == 3);
    for (client, statement) in before.iter_mut().zip(cases) {
        commit_or_try_again(client, &db, statement);
    }
    api.release_answers();
    db.settle();
    assert_eq!(
        chunks(&db, "p"),
        [
            "elsewhere: A poison text of moved.",
            "retried: A poison text of retried."
        ]
    );
    counted(&db, "p");
}
