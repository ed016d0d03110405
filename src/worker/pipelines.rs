//! The pipelines as the worker sees them, and their housekeeping: counters and deferred indexes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chunker::{SplitOptions, Splitter};
use pgrx::prelude::*;
use pgrx::spi::quote_qualified_identifier;

use crate::api::targets::{create_index, vector_type};
use crate::errors::OrRaise;
use crate::owner::ActingAs;
use crate::worker::transaction::{SqlError, run, transaction};

/// Serialises the folding of counters among workers; the number is pg_ingest's own.
const FOLD_LOCK: i64 = 0x7067_5f69_6e67_0001;
/// Rows folded by one statement, so that a backlog of them cannot make a long transaction.
const FOLD_ROWS: i64 = 10_000;

/// A pipeline to take documents for.
#[derive(Debug)]
pub struct Active {
    /// Its number.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// The role under which its target is written.
    pub owner: pg_sys::Oid,
    /// What the engine needs of it.
    pub spec: Arc<engine::Pipeline>,
    /// Its target, quoted for SQL, or why it has none.
    pub target: Result<String, String>,
    /// The type of the embedding column, with its schema.
    pub vector_type: String,
    /// How often a document is tried.
    pub max_attempts: i32,
    /// Whether staging rows are deleted when they are embedded.
    pub deletes_documents: bool,
    /// Whether somebody paused it.
    pub paused: bool,
    /// Whether it is blocked, and for how long before it is tried again.
    pub blocked_for: Option<Duration>,
}

/// The pipelines of this database.
#[derive(Default)]
pub struct Pipelines {
    rows: Vec<Active>,
    index_failed: HashSet<i32>,
}

impl Pipelines {
    /// Takes what [`load`] read. What the engine needs of a pipeline stays the same object as long as it does not change,
    /// so that its documents are packed together.
    pub fn update(&mut self, loaded: Vec<Active>) {
        let before = std::mem::replace(&mut self.rows, loaded);
        for fresh in &mut self.rows {
            if let Some(known) = before.iter().find(|known| known.id == fresh.id)
                && known.spec == fresh.spec
            {
                fresh.spec = Arc::clone(&known.spec);
            }
        }
    }

    /// The pipeline with this number; `None` when it was dropped.
    pub fn get(&self, id: i32) -> Option<&Active> {
        self.rows.iter().find(|pipeline| pipeline.id == id)
    }

    /// Those to take documents for now.
    pub fn ready(&self) -> impl Iterator<Item = &Active> {
        self.rows
            .iter()
            .filter(|p| !p.paused && p.blocked_for.is_none_or(|wait| wait.is_zero()))
    }

    /// When the first blocked pipeline is to be tried again.
    pub fn next_unblocked(&self) -> Option<Duration> {
        self.rows
            .iter()
            .filter(|p| !p.paused)
            .filter_map(|p| p.blocked_for.filter(|wait| !wait.is_zero()))
            .min()
    }

    /// Notes that an index could not be built, so that it is not tried at every turn.
    pub fn index_failed(&mut self, pipeline: i32) {
        self.index_failed.insert(pipeline);
    }

    /// Pipelines whose index could not be built since their last backlog.
    pub fn with_failed_index(&self) -> Vec<i32> {
        self.index_failed.iter().copied().collect()
    }

    /// Notes that documents of a pipeline were taken: its index is worth another try afterwards.
    pub fn has_backlog(&mut self, pipeline: i32) {
        self.index_failed.remove(&pipeline);
    }
}

/// Reads the definitions. Inside a transaction.
pub fn load() -> Vec<Active> {
    Spi::connect_mut(|client| {
        let rows = run(
            client,
            "SELECT p.pipeline_id, p.name, p.owner::oid AS owner, p.model, p.dimensions, p.chunk_tokens, p.chunk_overlap,
                    p.splitter, p.batch_size, p.max_attempts, p.on_success = 'delete' AS deletes, p.paused,
                    p.blocked_error IS NOT NULL AS blocked,
                    extract(epoch FROM p.blocked_until - clock_timestamp())::float8 AS blocked_seconds,
                    n.nspname::text AS schema, c.relname::text AS relation, ingest.vector_schema() AS vectors,
                    EXISTS (SELECT FROM pg_authid a WHERE a.oid = p.owner) AS owned
             FROM ingest.pipeline p
             LEFT JOIN pg_class c ON c.oid = p.target LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
             ORDER BY p.pipeline_id",
            &[],
        )?;
        let mut active = Vec::new();
        for row in rows {
            let text = |name: &str| row[name].value::<String>();
            let number = |name: &str| Ok::<_, pgrx::spi::Error>(row[name].value::<i32>()?.unwrap_or_default());
            let flag = |name: &str| Ok::<_, pgrx::spi::Error>(row[name].value::<bool>()?.unwrap_or_default());
            // A name that this version does not know was refused when the pipeline was made.
            let Ok(model) = text("model")?.unwrap_or_default().parse() else {
                continue;
            };
            let dimensions = number("dimensions")?;
            let target = match (text("schema")?, text("relation")?) {
                _ if !flag("owned")? => Err("the role that owns the pipeline was dropped".to_owned()),
                (Some(schema), Some(relation)) => Ok(quote_qualified_identifier(schema, relation)),
                _ => Err("the target table was dropped".to_owned()),
            };
            let kind = vector_type(dimensions);
            let blocked_for = flag("blocked")?.then_some(
                row["blocked_seconds"]
                    .value::<f64>()?
                    .map_or(Duration::ZERO, |s| Duration::from_secs_f64(s.clamp(0.0, 1e6))),
            );
            let id = number("pipeline_id")?;
            active.push(Active {
                id,
                name: text("name")?.unwrap_or_default(),
                owner: row["owner"].value::<pg_sys::Oid>()?.unwrap_or(pg_sys::InvalidOid),
                spec: Arc::new(engine::Pipeline {
                    id,
                    model,
                    dimensions: dimensions as usize,
                    split: SplitOptions {
                        splitter: text("splitter")?
                            .and_then(|s| s.parse().ok())
                            .unwrap_or(Splitter::Text),
                        chunk_tokens: number("chunk_tokens")? as usize,
                        chunk_overlap: number("chunk_overlap")? as usize,
                    },
                    batch_size: row["batch_size"].value::<i32>()?.map(|n| n as usize),
                }),
                target,
                vector_type: format!("{}.{kind}", text("vectors")?.unwrap_or_default()),
                max_attempts: number("max_attempts")?,
                deletes_documents: flag("deletes")?,
                paused: flag("paused")?,
                blocked_for,
            });
        }
        Ok::<_, pgrx::spi::Error>(active)
    })
    .or_raise()
}

/// Adds the differences in `counter_delta` to `counter`. Readers see the same sums before and after.
pub fn fold_counters() -> Result<(), SqlError> {
    loop {
        let folded = transaction(|| {
            Spi::connect_mut(|client| {
                let pending = run(client, "SELECT FROM ingest.counter_delta LIMIT 1", &[])?;
                if pending.is_empty() {
                    return Ok(0);
                }
                let locked = run(client, "SELECT pg_try_advisory_xact_lock($1)", &[FOLD_LOCK.into()])?
                    .first()
                    .get_one::<bool>()?;
                if locked != Some(true) {
                    return Ok(0);
                }
                // Losing a fold to a crash loses nothing: the differences are still there.
                run(client, "SET LOCAL synchronous_commit = off", &[])?;
                let folded = run(
                    client,
                    "WITH batch AS (
                         SELECT ctid FROM ingest.counter_delta LIMIT $1
                     ), gone AS (
                         DELETE FROM ingest.counter_delta WHERE ctid = ANY (ARRAY(SELECT ctid FROM batch)) RETURNING *
                     ), sums AS (
                         SELECT pipeline_id, sum(documents) AS documents, sum(archived) AS archived, sum(queued) AS queued,
                                sum(queued_bytes) AS queued_bytes, sum(failed) AS failed, sum(chunks) AS chunks,
                                sum(tokens) AS tokens
                         FROM gone GROUP BY pipeline_id
                     ), added AS (
                         UPDATE ingest.counter c
                         SET documents = c.documents + s.documents, archived = c.archived + s.archived,
                             queued = c.queued + s.queued, queued_bytes = c.queued_bytes + s.queued_bytes,
                             failed = c.failed + s.failed, chunks = c.chunks + s.chunks, tokens = c.tokens + s.tokens
                         FROM sums s WHERE c.pipeline_id = s.pipeline_id
                     )
                     SELECT count(*) FROM gone",
                    &[FOLD_ROWS.into()],
                )?
                .first()
                .get_one::<i64>()?;
                Ok::<_, pgrx::spi::Error>(folded.unwrap_or(0))
            })
            .or_raise()
        })?;
        if folded < FOLD_ROWS {
            return Ok(());
        }
    }
}

/// A pipeline whose deferred index is due.
pub struct WantingIndex {
    /// Its number.
    pub id: i32,
    /// Its name.
    pub name: String,
    owner: pg_sys::Oid,
    target: pg_sys::Oid,
}

/// The first pipeline not in `except` with a deferred index, nothing queued, at least `min_chunks` chunks and no HNSW index. Inside a
/// transaction.
pub fn wanting_index(min_chunks: i64, except: Vec<i32>) -> Option<WantingIndex> {
    Spi::connect_mut(|client| {
        let row = run(
            client,
            "SELECT p.pipeline_id, p.name, p.owner::oid, p.target::oid
             FROM ingest.pipeline p JOIN ingest.totals t USING (pipeline_id) JOIN pg_class c ON c.oid = p.target
             WHERE p.index = 'deferred' AND t.queued = 0 AND t.chunks >= $1 AND c.relkind IN ('r', 'p') AND p.pipeline_id <> ALL ($2)
               AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
                               WHERE i.indrelid = p.target AND m.amname = 'hnsw')
             LIMIT 1",
            &[min_chunks.into(), except.into()],
        )?
        .first();
        if row.is_empty() {
            return Ok(None);
        }
        Ok::<_, pgrx::spi::Error>(Some(WantingIndex {
            id: row.get::<i32>(1)?.unwrap_or_default(),
            name: row.get::<String>(2)?.unwrap_or_default(),
            owner: row.get::<pg_sys::Oid>(3)?.unwrap_or(pg_sys::InvalidOid),
            target: row.get::<pg_sys::Oid>(4)?.unwrap_or(pg_sys::InvalidOid),
        }))
    })
    .or_raise()
}

/// Builds it as the pipeline's owner. Inside a transaction.
pub fn build_index(pipeline: &WantingIndex) {
    let _acting = ActingAs::new(pipeline.owner);
    create_index(pipeline.target);
}
