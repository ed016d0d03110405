//! Promise: targets, pipelines, the extension and whole databases can be altered and dropped while documents are in flight:
//! nobody waits for the provider, what cannot be written is told and not lost, and what is gone leaves nothing behind.

use std::time::{Duration, Instant};

use fake_api::FakeApi;
use harness::remote::{all_embedded, api};
use harness::*;

/// One document a request, all at once.
const SINGLY: &str = "batch_size => 1, concurrency => 20, index => 'none'";

/// A database with the pipeline `p`, whose provider holds its answers back, and so many documents in flight.
fn in_flight(documents: usize) -> (Database<'static>, FakeApi) {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    send(&db, &api, "d", documents);
    (db, api)
}

/// Inserts so many documents, `Text of <key>.`, and waits until they are in flight.
fn send(db: &Database, api: &FakeApi, prefix: &str, documents: usize) {
    api.hold_answers();
    let before = api.in_flight();
    db.run(&format!(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', '{prefix}' || n, 'Text of {prefix}' || n || '.' FROM generate_series(1, {documents}) n"
    ));
    wait_until("all are in flight", SOON, || {
        api.in_flight() == before + documents
    });
}

/// Does something that must not wait for the provider.
#[track_caller]
fn swiftly(db: &Database, sql: &str) {
    let start = Instant::now();
    db.run(sql);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{sql} took {took:?}");
}

/// Waits until a pipeline says that somebody must act.
#[track_caller]
fn blocked(db: &Database, words: &str) {
    let progress = db.until_blocked("p");
    let told = progress.last_error.unwrap_or_default();
    assert!(told.contains(words), "{told}");
    assert_eq!(progress.failed, 0, "a document failed that is not at fault");
}

#[test]
fn a_target_that_is_altered_on_the_way_takes_the_chunks() {
    let (db, api) = in_flight(3);
    db.run("CREATE SCHEMA app");
    for change in [
        "ALTER TABLE ingest.p_chunks ADD COLUMN note text NOT NULL DEFAULT 'none'",
        "ALTER TABLE ingest.p_chunks RENAME TO passages",
        "ALTER TABLE ingest.passages SET SCHEMA app",
        "ALTER TABLE app.passages DROP COLUMN id",
        "ALTER TABLE app.passages ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    ] {
        swiftly(&db, change);
    }
    api.release_answers();
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (3, 3, 0, 0));
    assert_eq!(db.check_vectors("app.passages"), 3);
}

#[test]
fn a_worker_that_is_held_up_takes_documents_as_they_are_to_be_split_now() {
    let (db, api) = in_flight(1);
    db.create_remote_pipeline("q", &api, "chunk_tokens => 20, index => 'none'");
    db.execute(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('q', 'long', $1)",
        &[&texts::long("lantern", 12)],
    );
    api.release_answers();
    db.settle();
    let worker = db.worker();
    for (round, tokens) in [200, 20, 200].into_iter().enumerate() {
        send(&db, &api, &format!("r{round}-"), 1);
        let mut other = db.connect();
        let locked = other.batch_execute("BEGIN; LOCK TABLE ingest.p_chunks");
        locked.expect("nobody holds it for long");
        api.release_answers();
        // It has read the definitions, is writing for one pipeline, and takes documents of another next.
        wait_until("the worker is held up", SOON, || {
            db.one(&format!("SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_stat_activity WHERE pid = {worker}"))
        });
        db.run(&format!(
            "SELECT ingest.alter_pipeline('q', chunk_tokens => {tokens})"
        ));
        assert!(db.one::<bool>("SELECT ingest.wait('q', '60 s')"));
        other.batch_execute("ROLLBACK").expect("a rollback");
        let wrong: Vec<String> = db.all(
            "SELECT coalesce(c.content, s.content) FROM ingest.q_chunks c FULL JOIN
                 (SELECT s.* FROM ingest.documents d, ingest.split(d.content, 'q') s WHERE d.pipeline = 'q') AS s
                 ON s.chunk_no = c.chunk_no AND s.content = c.content
             WHERE s.content IS NULL OR c.content IS NULL",
        );
        assert_eq!(wrong, Vec::<String>::new(), "chunk_tokens => {tokens}");
    }
}

#[test]
fn a_target_that_loses_a_column_on_the_way_blocks_and_goes_on_when_it_is_back() {
    let (db, api) = in_flight(3);
    swiftly(
        &db,
        "ALTER TABLE ingest.p_chunks RENAME COLUMN content TO body",
    );
    api.release_answers();
    blocked(&db, "content");
    db.run("ALTER TABLE ingest.p_chunks RENAME COLUMN body TO content; SELECT ingest.resume('p')");
    all_embedded(&db, "p", 3);
}

#[test]
fn a_target_that_asks_for_more_on_the_way_refuses_visibly_and_loses_nothing() {
    let (db, api) = in_flight(3);
    swiftly(
        &db,
        "ALTER TABLE ingest.p_chunks ADD COLUMN reviewer text NOT NULL",
    );
    api.release_answers();
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (3, 0, 0, 3));
    let told: Vec<String> = db.all("SELECT error_class || ' ' || message FROM ingest.failures");
    assert!(
        told.iter()
            .all(|row| row.starts_with("internal ") && row.contains("reviewer")),
        "{told:?}"
    );
    db.run("ALTER TABLE ingest.p_chunks DROP COLUMN reviewer");
    assert_eq!(db.one::<i64>("SELECT ingest.retry()"), 3);
    all_embedded(&db, "p", 3);
}

#[test]
fn a_target_that_is_dropped_on_the_way_blocks_and_fails_nothing() {
    let (db, api) = in_flight(3);
    swiftly(&db, "DROP TABLE ingest.p_chunks");
    api.release_answers();
    blocked(&db, "target");
    // Whoever cleans up is not held up by what is gone.
    db.run("UPDATE ingest.documents SET content = 'New text.', metadata = '{\"n\": 1}' WHERE key = 'd1'");
    db.run("DELETE FROM ingest.documents WHERE key = 'd2'");
    db.run("TRUNCATE ingest.documents; SELECT ingest.drop_pipeline('p', drop_target => true)");
    db.create_remote_pipeline("p", &api, SINGLY);
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'd1', 'Text of d1.')",
    );
    all_embedded(&db, "p", 1);
}

#[test]
fn a_pipeline_that_is_dropped_on_the_way_leaves_the_chunks_that_are_there() {
    let (db, api) = in_flight(2);
    api.release_answers();
    all_embedded(&db, "p", 2);
    send(&db, &api, "late", 2);
    db.run("UPDATE ingest.documents SET content = 'New text of ' || key WHERE key LIKE 'd%'");
    swiftly(&db, "SELECT ingest.drop_pipeline('p')");
    let there = || -> Vec<String> { db.all("SELECT content FROM ingest.p_chunks ORDER BY 1") };
    assert_eq!(there(), ["Text of d1.", "Text of d2."]);
    // The next one of this name takes the table over, and none of the answers that are still due.
    db.create_remote_pipeline("p", &api, &format!("{SINGLY}, target => 'ingest.p_chunks'"));
    assert_eq!(db.progress_of("p").chunks, 2);
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'd1', 'Newest text of d1.'), ('p', 'late1', 'Newest text of late1.')");
    api.release_answers();
    wait_until("all answers are given", SOON, || api.in_flight() == 0);
    db.quiesce();
    assert_eq!(
        there(),
        ["Newest text of d1.", "Newest text of late1.", "Text of d2."]
    );
    assert_eq!(db.progress_of("p").counts(), (2, 2, 0, 0));
    assert_eq!(db.progress_of("p").chunks, 3);
}

#[test]
fn a_pipeline_whose_drop_is_rolled_back_gets_its_answers() {
    let (db, api) = in_flight(3);
    let mut other = db.connect();
    let dropped =
        other.batch_execute("BEGIN; SELECT ingest.drop_pipeline('p', drop_target => true)");
    dropped.expect("nobody holds it");
    api.release_answers();
    wait_until("all answers are given", SOON, || api.in_flight() == 0);
    other.batch_execute("ROLLBACK").expect("a rollback");
    all_embedded(&db, "p", 3);
    assert_eq!(api.repeated_inputs(), 0);
}

#[test]
fn an_extension_made_again_takes_no_answer_of_the_one_before() {
    let (db, api) = in_flight(3);
    swiftly(&db, "DROP EXTENSION pg_ingest CASCADE");
    swiftly(&db, "CREATE EXTENSION pg_ingest");
    // The same numbers and names as before: documents 1 to 3 of pipeline 1, in the same table.
    db.create_remote_pipeline("p", &api, &format!("{SINGLY}, target => 'ingest.p_chunks'"));
    db.run("INSERT INTO ingest.documents (pipeline, key, content) SELECT 'p', 'd' || n, 'New text of d' || n || '.' FROM generate_series(1, 3) n");
    wait_until("the new ones are in flight", SOON, || {
        api.times_sent("New text of d3.") == 1
    });
    api.release_answers();
    all_embedded(&db, "p", 3);
    wait_until("all answers are given", SOON, || api.in_flight() == 0);
    db.quiesce();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.p_chunks WHERE content LIKE 'New text of d%'"),
        3
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.p_chunks"), 3);
}

#[test]
fn a_database_dropped_by_force_on_the_way_leaves_nothing_to_the_next_of_its_name() {
    let (db, api) = in_flight(3);
    let mut watcher = db.connect();
    let mut maintenance = db.cluster().client("postgres");
    let mut run = |sql: &str| {
        let start = Instant::now();
        if let Err(error) = maintenance.batch_execute(sql) {
            panic!("{sql}: {}", ServerError::from(error).text());
        }
        start.elapsed()
    };
    let took = run(&format!("DROP DATABASE {} WITH (FORCE)", db.name()));
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    assert!(watcher.batch_execute("SELECT 1").is_err());
    run(&format!("CREATE DATABASE {}", db.name()));
    db.reconnect();
    db.run("CREATE EXTENSION pg_ingest CASCADE");
    db.create_remote_pipeline("p", &api, SINGLY);
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'd1', 'New text.')");
    wait_until("it is in flight", SOON, || api.times_sent("New text.") == 1);
    api.release_answers();
    all_embedded(&db, "p", 1);
    assert_eq!(
        db.all::<String>("SELECT content FROM ingest.p_chunks"),
        ["New text."]
    );
    assert_eq!(db.worker_pids().len(), 1);
}

#[test]
fn two_workers_never_hold_one_document_and_inherit_from_each_other() {
    let cluster = Cluster::start(&[("pg_ingest.workers", "2")]);
    let db = Database::new_in(&cluster);
    let api = api();
    db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 40");
    wait_until("both run", SOON, || db.worker_pids().len() == 2);
    api.hold_answers();
    // One by one, so that both take some.
    for n in 0..40 {
        db.run(&format!("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'd{n}', 'Old text of d{n}.')"));
    }
    wait_until("all are in flight", SOON, || api.in_flight() == 40);
    wait_until("the workers tell of them", SOON, || {
        db.one::<i64>("SELECT sum(in_flight_documents) FROM ingest.workers WHERE database = current_database()") == 40
    });
    assert_eq!(api.repeated_inputs(), 0);
    db.run("UPDATE ingest.documents SET content = 'New text of ' || key WHERE id % 2 = 0; DELETE FROM ingest.documents WHERE id % 5 = 0");
    // What one of them held comes to the other, or to whoever replaces it, while the answers are still out.
    let first = db.worker();
    db.run(&format!("SELECT pg_terminate_backend({first})"));
    wait_until("all are in flight, with another worker", SOON, || {
        db.progress_of("p").in_flight == 32 && !db.worker_pids().contains(&first)
    });
    api.release_answers();
    all_embedded(&db, "p", 32);
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.p_chunks c JOIN ingest.documents d ON d.key = c.document_key AND d.content = c.content"),
        32
    );
    assert_eq!(db.progress_of("p").counts(), (32, 32, 0, 0));
}

#[test]
fn chunks_outlive_the_extension_and_are_taken_up_again() {
    let db = Database::with_pipeline();
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('a', 'A text that stays.')");
    db.settle();
    for sql in [
        "DROP EXTENSION pg_ingest",
        "DROP EXTENSION pg_ingest CASCADE",
    ] {
        db.run(sql);
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM ingest.default_chunks"),
            1,
            "{sql}"
        );
        db.run("CREATE EXTENSION pg_ingest");
        db.run("SELECT ingest.create_pipeline()");
        assert_eq!(
            db.all::<String>("SELECT key FROM ingest.search('text')"),
            ["a"]
        );
    }
}
