//! What a worker does beside documents: the counters of progress, the day's totals of limits, deferred indexes.

use limiter::Tallied;
use pgrx::prelude::*;

use crate::api::targets::{NEAREST_INDEXES, create_indexes};
use crate::errors::{OrRaise, UserError};
use crate::layout::Layout;
use crate::locks::Lock;
use crate::owner::ActingAs;
use crate::worker::transaction::{SqlError, run, transaction};

/// Rows folded by one statement, so that a backlog of them cannot make a long transaction.
const FOLD_ROWS: i64 = 10_000;

/// Writes what a worker sent on its last day, by limit (whatever number it has in the worker's journal).
pub fn write_down(worker: i32, tallies: &[(usize, String, Tallied)]) -> Result<(), SqlError> {
    if tallies.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = tallies.iter().map(|(_, name, _)| name.as_str()).collect();
    let figures = |figure: fn(&Tallied) -> u64| -> Vec<i64> {
        let figures = tallies.iter().map(|(_, _, tallied)| figure(tallied));
        figures
            .map(|n| i64::try_from(n).unwrap_or(i64::MAX))
            .collect()
    };
    transaction(|| {
        Spi::connect_mut(|client| {
            run(client, "SET LOCAL synchronous_commit = off", &[])?;
            run(
                client,
                "INSERT INTO ingest.limit_day AS d (name, worker, day, requests, tokens)
                 SELECT u.name, $1, date '1970-01-01' + u.day::int, u.requests, u.tokens
                 FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) AS u(name, day, requests, tokens)
                 ON CONFLICT (name, worker) DO UPDATE
                     SET day = EXCLUDED.day, requests = EXCLUDED.requests, tokens = EXCLUDED.tokens
                     -- A journal may be older than the table: after a power failure, or from before a switchover.
                     WHERE d.day < EXCLUDED.day OR (d.day = EXCLUDED.day AND d.requests <= EXCLUDED.requests)
                        OR d.day > (clock_timestamp() AT TIME ZONE 'UTC')::date",

                &[
                    worker.into(),
                    names.into(),
                    figures(|tallied| tallied.day.into()).into(),
                    figures(|tallied| tallied.requests).into(),
                    figures(|tallied| tallied.tokens).into(),
                ],
            )
            .map(drop)
        })
        .or_raise();
    })
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
                if !Lock::Fold.try_alone() {
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
                                sum(tokens) AS tokens, sum(reused_tokens) AS reused_tokens
                         FROM gone GROUP BY pipeline_id
                     ), added AS (
                         UPDATE ingest.counter c
                         SET documents = c.documents + s.documents, archived = c.archived + s.archived,
                             queued = c.queued + s.queued, queued_bytes = c.queued_bytes + s.queued_bytes,
                             failed = c.failed + s.failed, chunks = c.chunks + s.chunks, tokens = c.tokens + s.tokens,
                             reused_tokens = c.reused_tokens + s.reused_tokens
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
    layout: Layout,
    language: String,
}

/// The first pipeline, or this one, not in `except`, with a deferred index, nothing queued, at least `min_chunks` chunks and no
/// index by which a search finds what is nearest. Inside a transaction.
pub fn wanting_index(min_chunks: i64, except: &[i32], only: Option<i32>) -> Option<WantingIndex> {
    // A dump that is being restored brings its own.
    if !Lock::Restore.try_shared() {
        return None;
    }
    Spi::connect_mut(|client| {
        let row = run(
            client,
            &format!(
            "SELECT p.pipeline_id, p.name, p.owner::oid, p.target::oid, p.layout, p.language
             FROM ingest.pipeline p JOIN ingest.totals t USING (pipeline_id) JOIN pg_class c ON c.oid = p.target
             WHERE p.index = 'deferred' AND t.queued = 0 AND t.chunks >= $1 AND c.relkind IN ('r', 'p') AND p.pipeline_id <> ALL ($2)
               AND p.pipeline_id = coalesce($3, p.pipeline_id)
               AND NOT EXISTS (SELECT {NEAREST_INDEXES} AND i.indrelid = p.target
                               AND a.attname = CASE p.layout WHEN 'vecs' THEN 'vec' ELSE 'embedding' END)
             LIMIT 1"
            ),
            &[min_chunks.into(), except.to_vec().into(), only.into()],
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
            layout: Layout::named(&row.get::<String>(5)?.unwrap_or_default()).or_raise(),
            language: row.get::<String>(6)?.unwrap_or_default(),
        }))
    })
    .or_raise()
}

/// Builds what is still wanted of a pipeline, as its owner; whether anything was. Raises `55P03` when somebody changes its definition just now; whoever
/// wants to do so meanwhile cancels this. Inside a transaction.
pub fn build_index(min_chunks: i64, pipeline: i32) -> bool {
    if !Lock::Change(pipeline).try_alone() {
        UserError::new(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            "the pipeline is being changed",
        )
        .raise();
    }
    let Some(wanting) = wanting_index(min_chunks, &[], Some(pipeline)) else {
        return false;
    };
    let _acting = ActingAs::new(wanting.owner);
    create_indexes(wanting.target, wanting.layout, &wanting.language);
    true
}
