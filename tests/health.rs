//! Promise: a long day leaves nothing behind. The queue stays as fast and as small as it was, whoever holds a snapshot
//! meanwhile.

use fake_api::FakeApi;
use harness::remote::{all_embedded, behaviour};
use harness::torture::health;
use harness::*;

#[test]
fn a_long_day_leaves_nothing_behind() {
    println!("{}", health(15_000));
}

/// How often the index that claiming reads was used, and how many entries were read in all indexes of the queue, while
/// documents were inserted one by one and embedded.
fn index_use(db: &Database, pipeline: &str, documents: usize) -> (i64, i64) {
    let used = || -> (i64, i64) {
        let row = &db.rows(
            "SELECT sum(idx_scan) FILTER (WHERE indexrelname = 'queue_ready')::bigint, sum(idx_tup_read)::bigint
             FROM pg_stat_user_indexes WHERE relid = 'ingest.queue'::regclass",
        )[0];
        (row.get(0), row.get(1))
    };
    let before = used();
    for number in 0..documents {
        db.run(&format!(
            "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('{pipeline}', 'one {number}', 'Note {number}')"
        ));
    }
    all_embedded(db, pipeline, documents);
    // What has been counted is told when the worker goes to sleep.
    wait_until("the statistics are there", SOON, || {
        used().1 >= before.1 + documents as i64
    });
    let after = used();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn dead_rows_at_the_head_of_the_queue_are_seldom_read() {
    const DEAD: i64 = 30_000;
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "dimensions => 8");
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "d", DEAD as usize, 3);
    let mut snapshot = db.connect();
    snapshot
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        .unwrap();
    db.run("DELETE FROM ingest.documents; SELECT ingest.resume('p')");
    db.quiesce();
    let (scans, entries) = index_use(&db, "p", 200);
    println!("{scans} scans read {entries} entries");
    assert!(
        entries < scans * DEAD / 4,
        "{scans} scans read {entries} entries"
    );
}

#[test]
fn a_pipeline_does_not_read_the_backlog_of_another() {
    const BACKLOG: i64 = 20_000;
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    for name in ["paused", "p"] {
        db.create_remote_pipeline(name, &api, "dimensions => 8");
    }
    db.run("SELECT ingest.pause('paused')");
    db.insert_prose("paused", "d", BACKLOG as usize, 3);
    // Statistics by which all that waits is one pipeline's.
    db.run("ANALYZE ingest.queue");
    let (scans, entries) = index_use(&db, "p", 20);
    println!("{scans} scans read {entries} entries");
    assert!(entries < BACKLOG / 2, "{entries} entries were read");
}
