//! Documents in flight, for as long as a test wants.

use fake_api::FakeApi;

use crate::remote::api;
use crate::{Database, SOON, wait_until};

/// One document a request, all at once.
pub const SINGLY: &str = "batch_size => 1, concurrency => 20";

/// A database with the pipeline `p`, whose provider holds its answers back, and these documents in flight.
pub fn in_flight(keys: &[&str]) -> (Database<'static>, FakeApi) {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    send(&db, &api, keys);
    (db, api)
}

/// Inserts documents that say `Old text of <key>.` and waits until they are in flight.
pub fn send(db: &Database, api: &FakeApi, keys: &[&str]) {
    api.hold_answers();
    let before = api.in_flight();
    db.execute(
        "INSERT INTO ingest.documents (pipeline, key, content) SELECT 'p', k, 'Old text of ' || k || '.' FROM unnest($1::text[]) k",
        &[&keys],
    );
    wait_until("all are in flight", SOON, || {
        api.in_flight() == before + keys.len()
    });
}

/// A database with the pipeline `p`, whose one document, `bad`, is a failure for as long as its provider refuses its text.
pub fn refused() -> (Database<'static>, FakeApi) {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, SINGLY);
    api.refuse_text("poison");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'bad', 'A poison text.')");
    db.settle();
    (db, api)
}

/// Waits until a pipeline has so many chunks.
#[track_caller]
pub fn has_chunks(what: &str, db: &Database, pipeline: &str, number: usize) {
    wait_until(what, SOON, || chunks(db, pipeline).len() == number);
}

/// `key: content` of every chunk of a pipeline.
pub fn chunks(db: &Database, pipeline: &str) -> Vec<String> {
    db.all(&format!(
        "SELECT document_key || ': ' || content FROM ingest.{pipeline}_chunks ORDER BY document_key, chunk_no"
    ))
}

/// Sees, when nothing is left to do, that what was counted is what is there.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn counted(db: &Database, pipeline: &str) {
    db.quiesce();
    let progress = db.progress_of(pipeline);
    let count = |sql: &str| db.one::<i64>(&sql.replace("{p}", pipeline));
    let documents = count("SELECT count(*) FROM ingest.documents WHERE pipeline = '{p}'");
    let failed = count("SELECT count(*) FROM ingest.failures WHERE pipeline = '{p}'");
    assert_eq!(
        progress.counts(),
        (documents, documents - failed, 0, failed)
    );
    assert_eq!(
        progress.chunks,
        count("SELECT count(*) FROM ingest.{p}_chunks")
    );
    assert_eq!(
        progress.tokens,
        count("SELECT coalesce(sum(tokens), 0)::bigint FROM ingest.{p}_chunks")
    );
}
