//! Pipelines that get another model beside the one in use.

use std::sync::atomic::{AtomicBool, Ordering};

use fake_api::FakeApi;

use crate::remote::api;
use crate::{Database, SOON, flight, quoted, wait_until};

/// What makes the same API another model's: the vectors of other texts, so that a query of one finds nothing of the other.
pub const OTHER: &str = r#"request => '{"document_prefix": "other: ", "query_prefix": "other: "}'"#;

/// A pipeline `p` with these documents, `Old text of <key>.`, embedded, and another API with another model.
pub fn pipeline(db: &Database, keys: &[&str]) -> (FakeApi, FakeApi) {
    let (old, new) = (api(), api());
    db.create_remote_pipeline("p", &old, "dimensions => 64, batch_size => 1");
    db.execute(
        "INSERT INTO ingest.documents (pipeline, key, content) SELECT 'p', k, 'Old text of ' || k || '.' FROM unnest($1::text[]) k",
        &[&keys],
    );
    db.settle();
    (old, new)
}

/// Begins to make the vectors of the other model, which does not answer for now.
pub fn begin(db: &Database, new: &FakeApi, more: &str) {
    new.hold_answers();
    db.run(&format!(
        "SELECT ingest.alter_pipeline('p', base_url => {}, {OTHER}{more})",
        quoted(&new.openai_url())
    ));
}

/// Ends what other threads do, however this one ends.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The key that is found for exactly this text, if its vector is of the model of the query's.
pub fn found(db: &Database, text: &str) -> Option<String> {
    let rows = db.rows(&format!(
        "SELECT key, similarity FROM ingest.search({}, 1, 'p')",
        quoted(text)
    ));
    let row = rows.first()?;
    (row.get::<_, f64>(1) > 0.99).then(|| row.get(0))
}

/// Waits until this text is found as this key.
#[track_caller]
pub fn finds(db: &Database, text: &str, key: &str) {
    let what = format!("{text:?} is found as {key}");
    wait_until(&what, SOON, || found(db, text).as_deref() == Some(key));
}

/// `state documents embedded failed` of the rebuild of `p`.
pub fn rebuild(db: &Database) -> Vec<String> {
    db.all("SELECT concat_ws(' ', state, documents, embedded, failed) FROM ingest.rebuilds WHERE pipeline = 'p'")
}

/// Sees that nothing is left of a rebuild, and that what is counted is there.
#[track_caller]
pub fn nothing_left(db: &Database) {
    flight::counted(db, "p");
    assert_eq!(rebuild(db), Vec::<String>::new());
    for left in [
        "SELECT count(*) FROM pg_class WHERE relname LIKE '%next%'",
        "SELECT count(*) FROM ingest.pipeline WHERE successor_of IS NOT NULL",
        "SELECT count(*) FROM ingest.failures WHERE rebuild",
        "SELECT count(*) FROM ingest.queue",
        "SELECT count(*) - 1 FROM ingest.counter",
        "SELECT count(rebuilding) FROM ingest.progress",
    ] {
        assert_eq!(db.one::<i64>(left), 0, "{left}");
    }
}

/// Sees that each document of `p` is in its target as it was written, with a vector of the first model, and nothing else is.
#[track_caller]
pub fn all_is_as_written(db: &Database) {
    assert_eq!(
        db.check_vectors("ingest.p_chunks") as i64,
        db.one::<i64>("SELECT count(*) FROM ingest.documents")
    );
    assert_eq!(
        db.one::<i64>(
            "SELECT count(*) FROM ingest.documents d LEFT JOIN ingest.p_chunks c
               ON c.document_key = d.key AND c.content = d.content AND c.metadata = d.metadata
             WHERE c.id IS NULL"
        ),
        0
    );
}
