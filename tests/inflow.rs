//! Promise: documents that keep coming do not keep new vectors from their place, and nothing that is found is lost when they take it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fake_api::{FakeApi, Latency};
use harness::rebuild::*;
use harness::*;

/// An API takes so long that something of a steady inflow is always on its way.
const LATENCY: Duration = Duration::from_millis(150);
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(25);

fn slow_down(apis: [&FakeApi; 2]) {
    for api in apis {
        api.set_latency(Latency::fixed(LATENCY));
    }
}

/// Says one statement after the other, by its number, without a rest until told to stop.
fn write(mut client: postgres::Client, stop: &AtomicBool, statement: impl Fn(u32) -> String) {
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let sql = statement(number);
        client
            .batch_execute(&sql)
            .unwrap_or_else(|error| panic!("{sql}: {}", ServerError::from(error).text()));
        std::thread::sleep(PAUSE);
    }
}

fn revise(key: &str, number: u32) -> String {
    format!("UPDATE ingest.documents SET content = 'Text {number}.' WHERE key = '{key}'")
}

fn add(number: u32) -> String {
    format!(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'n{number}', 'Text {number}.')"
    )
}

#[test]
fn new_vectors_take_their_place_though_documents_keep_coming_and_none_is_lost_to_search() {
    for workers in ["1", "2"] {
        let cluster = Cluster::start(&[("pg_ingest.workers", workers)]);
        let db = Database::new_in(&cluster);
        let (old, new) = pipeline(&db, &["a", "b", "c", "d", "e", "f"]);
        slow_down([&old, &new]);
        let stop = AtomicBool::new(false);
        let (writer, mut reader) = (db.connect(), db.connect());
        std::thread::scope(|scope| {
            let stopping = Stop(&stop);
            scope.spawn(|| {
                write(writer, &stop, |number| match number % 3 {
                    0 => revise(&format!("n{}", number / 2), number),
                    _ => add(number),
                });
            });
            // Nothing is deleted, so there are never fewer documents in the target than before.
            scope.spawn(|| {
                let mut most = 0i64;
                while !stop.load(Ordering::SeqCst) {
                    let count = "SELECT count(DISTINCT document_key) FROM ingest.p_chunks";
                    let found: i64 = reader.query_one(count, &[]).expect("a count").get(0);
                    assert!(found >= most, "{found} documents after {most}");
                    most = found;
                }
            });
            for (api, request) in [(&new, OTHER), (&old, "request => '{}'")] {
                db.run(&format!(
                    "SELECT ingest.alter_pipeline('p', base_url => {}, {request})",
                    quoted(&api.openai_url())
                ));
                wait_until("the new vectors are in use", SOON * 3, || {
                    rebuild(&db).is_empty()
                });
                // Others are on their way at this very moment.
                assert!(db.progress_of("p").pending + db.progress_of("p").in_flight > 0);
            }
            drop(stopping);
        });
        db.settle();
        nothing_left(&db);
        all_is_as_written(&db);
    }
}

#[test]
fn a_new_model_that_does_not_answer_near_the_end_keeps_new_documents_only_a_moment() {
    let db = Database::new();
    let (_old, new) = pipeline(&db, &["a", "b"]);
    begin(&db, &new, "");
    let stop = AtomicBool::new(false);
    let writer = db.connect();
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        scope.spawn(|| write(writer, &stop, |number| revise("a", number)));
        wait_until("the new model is given a moment", SOON, || {
            db.one::<bool>("SELECT bool_or(ahead_until > now()) IS TRUE FROM ingest.pipeline")
        });
        drop(stopping);
    });
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'last', 'Old text of last.')");
    finds(&db, "Old text of last.", "last");
    assert!(!rebuild(&db).is_empty());
    new.release_answers();
    db.settle();
    finds(&db, "Old text of last.", "last");
    nothing_left(&db);
}
