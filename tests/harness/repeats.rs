//! Texts that come again, in the pipeline `p`, and what was paid for them.

use std::collections::BTreeSet;

use fake_api::FakeApi;

use crate::Database;

/// Chunks of a sentence or two.
pub const SMALL: &str = "chunk_tokens => 20, chunk_overlap => 0";

/// The texts that have arrived since the last look.
pub fn sent(api: &FakeApi) -> Vec<String> {
    let texts = api.requests().into_iter().flat_map(|record| record.texts);
    let texts = texts.collect();
    api.reset();
    texts
}

/// The texts of a pipeline's chunks.
pub fn contents(db: &Database, pipeline: &str) -> BTreeSet<String> {
    db.all(&format!("SELECT content FROM ingest.{pipeline}_chunks"))
        .into_iter()
        .collect()
}

/// Inserts a document, or changes its content.
pub fn insert(db: &Database, key: &str, content: &str) {
    db.execute(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', $1, $2)
         ON CONFLICT (pipeline, key) DO UPDATE SET content = EXCLUDED.content",
        &[&key, &content],
    );
}

/// Tokens that were not paid for.
pub fn reused_tokens(db: &Database) -> i64 {
    db.one("SELECT reused_tokens FROM ingest.progress WHERE pipeline = 'p'")
}
