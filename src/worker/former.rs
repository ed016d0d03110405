//! Former chunks: what a document that has changed has in its pipeline's target. Those whose text is still the same are not
//! embedded again.

use std::collections::HashMap;

use engine::FormerChunk;
use pgrx::prelude::*;

use crate::errors::OrRaise;
use crate::owner::ActingAs;
use crate::worker::pipelines::Active;
use crate::worker::transaction::{run, transaction};

/// Bytes of vectors that the documents of a batch have, as far as their sizes tell.
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of vectors that are read for a batch at most; what lies beyond is embedded again.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of text that a token stands for: English prose has four to five.
const BYTES_PER_TOKEN: usize = 4;
/// Bytes of a chunk's text at most: 8,192 tokens, the most that models read, are some 40 kB of prose.
const LONGEST_TEXT: i32 = 64 * 1024;

/// Bytes of text in a chunk, roughly.
pub fn chunk_bytes(split: &chunker::SplitOptions) -> usize {
    split.chunk_tokens.max(1) * BYTES_PER_TOKEN
}

/// Chunks that changed documents claimed together have in the target.
pub fn chunks_of_a_batch(pipeline: &Active) -> usize {
    BATCH_BYTES / vector_bytes(pipeline)
}

/// The chunks that the documents with these keys have, by key. None where the target cannot be read just now, or where what
/// is in it was not made as the pipeline is defined now: all is then embedded again. Not inside a transaction.
pub fn read(pipeline: &Active, keys: &[&str]) -> HashMap<String, Vec<FormerChunk>> {
    if keys.is_empty() {
        return HashMap::new();
    }
    transaction(|| {
        Spi::connect_mut(|client| {
            let mut found: HashMap<String, Vec<FormerChunk>> = HashMap::new();
            let target = run(
                client,
                "SELECT ingest.former_target($1)::text",
                &[pipeline.id.into()],
            )?
            .first()
            .get_one::<String>()?;
            let Some(target) = target else {
                return Ok(found);
            };
            let _acting = ActingAs::new(pipeline.owner);
            let rows = run(
                client,
                &pipeline.layout.former(&target),
                &[
                    keys.to_vec().into(),
                    LONGEST_TEXT.into(),
                    ((MOST_BYTES / vector_bytes(pipeline)) as i64).into(),
                ],
            )?;
            for row in rows {
                let key: Option<String> = row["key"].value()?;
                let content: Option<String> = row["content"].value()?;
                let embedding: Option<Vec<f32>> = row["embedding"].value()?;
                if let (Some(key), Some(content), Some(embedding)) = (key, content, embedding) {
                    let chunk = FormerChunk { content, embedding };
                    found.entry(key).or_default().push(chunk);
                }
            }
            Ok::<_, pgrx::spi::Error>(found)
        })
        .or_raise()
    })
    .unwrap_or_default()
}

fn vector_bytes(pipeline: &Active) -> usize {
    pipeline.dimensions.max(1) * size_of::<f32>()
}
