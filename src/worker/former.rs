//! Former chunks: what documents have in their pipeline's target. Of a document that has changed, chunks whose text is still the
//! same are not embedded again; nor are those of which the engine knows that another document has their text.

use std::collections::HashMap;
use std::time::Duration;

use engine::{Engine, FormerChunk};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;

use crate::api::targets::keep_name;
use crate::errors::OrRaise;
use crate::impatience::Impatience;
use crate::owner::ActingAs;
use crate::worker::pipelines::{Active, Pipelines};
use crate::worker::transaction::{run, transaction};

/// Bytes of vectors that the documents of a batch have, as far as their sizes tell.
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of vectors that are read for a batch at most; what lies beyond is embedded again.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of text that a token stands for: English prose has four to five.
const BYTES_PER_TOKEN: usize = 4;
/// Longest time that reading them may take, which is embedding them again otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
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
    let target = "SELECT ingest.former_target($1)::oid";
    read_from(target, &[pipeline.id.into()], pipeline, keys)
}

/// Looks into a target for what the engine knows to have been written there; whether the engine asked for it. Not inside a
/// transaction.
pub fn look_up(engine: &Engine, pipelines: &Pipelines) -> bool {
    let most = |id: i32| pipelines.get(id).map_or(usize::MAX, chunks_of_a_batch);
    let Some(wanted) = engine.next_look_up(most) else {
        return false;
    };
    if let Some(pipeline) = pipelines.get(wanted.pipeline())
        && let Ok(spec) = &pipeline.spec
    {
        // Not former_target(): what a rebuild has written is in its own table.
        let target = "SELECT target::oid FROM ingest.pipeline WHERE pipeline_id = $1 AND generation = $2 AND reuses";
        wanted.answer(spec, |keys| {
            let definition = [pipeline.id.into(), spec.generation.into()];
            let found = read_from(target, &definition, pipeline, keys);
            found.into_values().flatten().collect()
        });
    }
    true
}

/// Reads from the table whose number `target`, a query, returns.
fn read_from(
    target: &str,
    arguments: &[DatumWithOid],
    pipeline: &Active,
    keys: &[&str],
) -> HashMap<String, Vec<FormerChunk>> {
    if keys.is_empty() {
        return HashMap::new();
    }
    transaction(|| {
        Spi::connect_mut(|client| {
            let mut found: HashMap<String, Vec<FormerChunk>> = HashMap::new();
            let rows = run(client, target, arguments)?;
            let target = match rows.into_iter().next() {
                Some(row) => row[1].value::<pg_sys::Oid>()?,
                None => None,
            };
            let target = target.and_then(|target| keep_name(target, pg_sys::AccessShareLock));
            let Some(target) = target else {
                return Ok(found);
            };
            let _impatience = Impatience::new(PATIENCE);
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
