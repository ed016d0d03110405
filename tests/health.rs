//! Promise: a long day leaves nothing behind. The queue stays as fast and as small as it was, whoever holds a snapshot
//! meanwhile.

use std::time::{Duration, Instant};

use fake_api::FakeApi;
use harness::remote::{all_embedded, behaviour};
use harness::torture::health;
use harness::*;

#[test]
fn a_long_day_leaves_nothing_behind() {
    println!("{}", health(15_000));
}

/// How often the index that claiming reads was used, and how many entries were read in all indexes of the queue, while
/// documents were inserted one by one and embedded, and how long that took.
fn index_use(db: &Database, pipeline: &str, documents: usize) -> (i64, i64, Duration) {
    let used = || -> (i64, i64) {
        let row = &db.rows(
            "SELECT sum(idx_scan) FILTER (WHERE indexrelname = 'queue_ready')::bigint, sum(idx_tup_read)::bigint
             FROM pg_stat_user_indexes WHERE relid = 'ingest.queue'::regclass",
        )[0];
        (row.get(0), row.get(1))
    };
    // A process tells what it has counted now and then, and when it goes to sleep.
    let told = || {
        let mut known = used();
        wait_until("the statistics are there", SOON, || {
            std::thread::sleep(Duration::from_millis(1200));
            let before = std::mem::replace(&mut known, used());
            before == known
        });
        known
    };
    let before = told();
    let start = Instant::now();
    for number in 0..documents {
        db.run(&format!(
            "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('{pipeline}', 'one {number}', 'Note {number}')"
        ));
    }
    all_embedded(db, pipeline, documents);
    let took = start.elapsed();
    let after = told();
    (after.0 - before.0, after.1 - before.1, took)
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
    let (scans, entries, took) = index_use(&db, "p", 1_000);
    // How often depends on how fast machine and disk are; which part of the time goes into it does not. One look is timed
    // here, at its fastest, because the worker's own are slowed down by whatever else runs.
    let look = (0..10)
        .map(|_| {
            let start = Instant::now();
            db.rows(
                "SELECT FROM ingest.queue
                 WHERE pipeline_id = (SELECT pipeline_id FROM ingest.pipeline WHERE name = 'p') AND claimed_by IS NULL AND retry_at IS NULL
                 ORDER BY pipeline_id, document_id LIMIT 1",
            );
            start.elapsed()
        })
        .min()
        .unwrap();
    // Four are due without regard to the time: the first one and the last, which look twice when they find nothing.
    let looks = entries as f64 / DEAD as f64;
    let share = (looks - 4.0) * look.as_secs_f64() / took.as_secs_f64();
    println!(
        "{scans} scans read {entries} entries in {took:?}; {look:?} a look, {:.1} % of the time",
        share * 100.0
    );
    assert!(
        share < 0.1,
        "{scans} scans read {entries} entries in {took:?}, at {look:?} a look"
    );
    drop(snapshot);
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
    let (scans, entries, _) = index_use(&db, "p", 20);
    println!("{scans} scans read {entries} entries");
    assert!(entries < BACKLOG / 2, "{entries} entries were read");
}
