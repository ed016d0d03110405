//! Writing: a batch of finished documents of one pipeline becomes chunks, retries or failures, in one transaction.
//!
//! A document is written only while its queue row still carries the token of this worker's claim. Rows that somebody else
//! has locked are being changed just now and are left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use embedder::{EmbedError, ErrorClass};
use engine::{EmbeddedChunk, Outcome};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::api::documents::archiving;
use crate::api::targets::keep_name;
use crate::errors::{OrRaise, UserError};
use crate::impatience::Impatience;
use crate::layout::Which;
use crate::owner::ActingAs;
use crate::wake;
use crate::worker::claim::{Claim, Claims};
use crate::worker::pipelines::Active;
use crate::worker::transaction::{SqlError, run, transaction};

/// Rows of one INSERT at most.
pub const MAX_ROWS: usize = 4096;
/// Rows of one INSERT into a target that has taken longer than [`PATIENCE`].
pub const FEW_ROWS: usize = 128;
/// Longest time for one statement on a target, whose triggers may do what they like. An HNSW index that has outgrown memory takes
/// some hundred rows a second: a third of it for the most rows.
pub const PATIENCE: Duration = Duration::from_secs(if cfg!(feature = "injection") {
    // The tests have less.
    5
} else {
    60
});
/// Numbers in one INSERT's vectors at most: 64 MB, far below the largest value that Postgres takes (1 GB).
const MAX_FLOATS: usize = 16 * 1024 * 1024;
/// Longest wait before a document's next attempt.
const LONGEST_RETRY_WAIT: f64 = 60.0;
/// First and longest wait before a blocked pipeline is tried again by itself, in seconds.
const BLOCKED_WAIT: (f64, f64) = (10.0, 600.0);
/// Characters kept of a message.
const MAX_MESSAGE: usize = 1000;

/// What a transaction did with the documents given to it. One that is in neither list was not this worker's any more.
#[derive(Default)]
pub struct Settled {
    /// Ended, one way or another.
    pub ended: Vec<u64>,
    /// Locked by somebody else.
    pub locked: Vec<u64>,
    /// Whether the pipeline was blocked.
    pub blocked: bool,
}

/// How a batch is written.
#[derive(Clone, Copy)]
pub struct Manner {
    /// Rows of one INSERT at most.
    pub rows_at_once: usize,
    /// What says that the pipeline cannot be used is taken again at once and does not block it.
    pub forgive: bool,
    /// What waits are drawn from.
    pub jitter: u64,
}

/// Writes a batch. Inside a transaction; raises on any error.
pub fn write(batch: &[Outcome], claims: &Claims, pipeline: &Active, manner: Manner) -> Settled {
    Spi::connect_mut(|client| {
        let held: Vec<(&Outcome, &Claim)> = batch
            .iter()
            .filter_map(|outcome| Some((outcome, claims.get(outcome.ticket())?)))
            .collect();
        let mut settled = Settled::default();
        let held = set_aside_locked_documents(client, pipeline, held, &mut settled)?;
        let ids: Vec<i64> = held.iter().map(|(_, claim)| claim.document).collect();
        let ours = tokens(
            client,
            "SELECT document_id, claim_token FROM ingest.queue WHERE document_id = ANY ($1) AND pipeline_id = $2 FOR UPDATE SKIP LOCKED",
            (pipeline.id, &ids),
        )?;
        let stands = |claim: &Claim, rows: &BTreeMap<i64, i64>| rows.get(&claim.document) == Some(&claim.token);
        let (documents, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|(_, claim)| stands(claim, &ours));
        if !others.is_empty() {
            let ids: Vec<i64> = others.iter().map(|(_, claim)| claim.document).collect();
            let present = tokens(
                client,
                "SELECT document_id, claim_token FROM ingest.queue WHERE document_id = ANY ($1) AND pipeline_id = $2",
                (pipeline.id, &ids),
            )?;
            let locked = others.iter().filter(|(_, claim)| stands(claim, &present));
            settled.locked.extend(locked.map(|(outcome, _)| outcome.ticket()));
        }
        if !documents.is_empty() {
            settled.ended.extend(documents.iter().map(|(outcome, _)| outcome.ticket()));
            settled.blocked = write_documents(client, pipeline, &documents, manner)?;
        }
        Ok::<_, pgrx::spi::Error>(settled)
    })
    .or_raise()
}

/// Whether a pipeline's target takes a DELETE and an INSERT of no rows: it is there, with its columns, and its owner may. Fails
/// when that cannot be seen just now.
pub fn accepts_no_rows(pipeline: &Active) -> Result<bool, SqlError> {
    let Ok(target) = &pipeline.target else {
        return Ok(false);
    };
    let fits = transaction(|| {
        let fits = Spi::connect_mut(|client| {
            run(
                client,
                "SELECT a.atttypmod = -1 OR a.atttypmod = $2 OR t.typname NOT IN ('vector', 'halfvec')
                 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                 WHERE a.attrelid = to_regclass($1) AND a.attname = $3",
                &[
                    target.as_str().into(),
                    (pipeline.dimensions as i32).into(),
                    pipeline.layout.embedding_column().into(),
                ],
            )?
            .first()
            .get_one::<bool>()
        })
        .or_raise();
        let _impatience = Impatience::new(PATIENCE);
        let _acting = ActingAs::new(pipeline.owner);
        let layout = pipeline.layout;
        Spi::run(&layout.delete(target, Which::None)).or_raise();
        Spi::run(&layout.insert_nothing(target, &pipeline.vector_type)).or_raise();
        fits
    });
    match fits {
        // Not even nothing is taken in time.
        Err(error) if error.is_transient() && !Impatience::ran_out() => Err(error),
        fits => Ok(matches!(fits, Ok(Some(true)))),
    }
}

/// Staging rows that are deleted on success are locked before their queue rows, in the order in which users' statements
/// lock them: the other way round would be a deadlock. A row that somebody else has locked is set aside.
fn set_aside_locked_documents<'a>(
    client: &mut SpiClient,
    pipeline: &Active,
    held: Vec<(&'a Outcome, &'a Claim)>,
    settled: &mut Settled,
) -> Result<Vec<(&'a Outcome, &'a Claim)>, pgrx::spi::Error> {
    let ids: Vec<i64> = held
        .iter()
        .filter(|(outcome, _)| matches!(outcome, Outcome::Embedded { .. }))
        .map(|(_, claim)| claim.document)
        .collect();
    if ids.is_empty() || !pipeline.deletes_documents {
        return Ok(held);
    }
    // Whoever locks the whole table wants queue rows next.
    run(
        client,
        "LOCK TABLE ingest.documents IN ROW EXCLUSIVE MODE NOWAIT",
        &[],
    )?;
    let mut find = |sql: &str| -> Result<Vec<i64>, pgrx::spi::Error> {
        Ok(run(client, sql, &[ids.clone().into()])?
            .filter_map(|row| row["id"].value().ok().flatten())
            .collect())
    };
    let ours = find("SELECT id FROM ingest.documents WHERE id = ANY ($1) FOR UPDATE SKIP LOCKED")?;
    let there = find("SELECT id FROM ingest.documents WHERE id = ANY ($1)")?;
    let (free, locked): (Vec<_>, Vec<_>) = held.into_iter().partition(|(_, claim)| {
        let id = &claim.document;
        !ids.contains(id) || ours.contains(id) || !there.contains(id)
    });
    settled
        .locked
        .extend(locked.iter().map(|(outcome, _)| outcome.ticket()));
    Ok(free)
}

/// The claim tokens in the queue of a pipeline, by document.
fn tokens(
    client: &mut SpiClient,
    sql: &str,
    (pipeline, ids): (i32, &[i64]),
) -> Result<BTreeMap<i64, i64>, pgrx::spi::Error> {
    let mut found = BTreeMap::new();
    for row in run(client, sql, &[ids.to_vec().into(), pipeline.into()])? {
        if let (Some(id), Some(token)) = (row["document_id"].value()?, row["claim_token"].value()?)
        {
            found.insert(id, token);
        }
    }
    Ok(found)
}

#[derive(Default)]
struct Difference {
    queued: i64,
    queued_bytes: i64,
    failed: i64,
    archived: i64,
    chunks: i64,
    tokens: i64,
    reused_tokens: i64,
}

/// Writes documents whose claims stand; whether the pipeline had to be blocked.
fn write_documents(
    client: &mut SpiClient,
    pipeline: &Active,
    documents: &[(&Outcome, &Claim)],
    Manner {
        rows_at_once,
        forgive,
        jitter,
    }: Manner,
) -> Result<bool, pgrx::spi::Error> {
    let mut difference = Difference::default();
    let embedded: Vec<(&Claim, &[EmbeddedChunk])> = documents
        .iter()
        .filter_map(|(outcome, claim)| match outcome {
            Outcome::Embedded { chunks, .. } => Some((*claim, chunks.as_slice())),
            _ => None,
        })
        .collect();
    if !embedded.is_empty() {
        write_embedded(client, pipeline, &embedded, rows_at_once, &mut difference)?;
    }
    let mut unusable = None;
    let mut retries = Retries::default();
    for (outcome, claim) in documents {
        match outcome {
            Outcome::Embedded { .. } => {}
            Outcome::Failed { error, .. } => {
                let wait = fail(client, pipeline, claim, error, jitter, &mut difference)?;
                if let Some(wait) = wait {
                    retries.note(error, claim.attempts + 1, wait);
                }
            }
            Outcome::Unusable { error, .. } => {
                run(
                    client,
                    "UPDATE ingest.queue SET claimed_by = NULL, claim_token = NULL WHERE document_id = $1 AND pipeline_id = $2",
                    &[claim.document.into(), pipeline.id.into()],
                )?;
                unusable = Some(error);
            }
        }
    }
    retries.log(pipeline);
    let unusable = unusable.filter(|_| !forgive);
    if let Some(error) = unusable {
        block(client, pipeline, error)?;
    }
    run(
        client,
        "INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes, failed, archived, chunks, tokens, reused_tokens)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE EXISTS (SELECT FROM ingest.pipeline WHERE pipeline_id = $1)",
        &[
            pipeline.id.into(),
            difference.queued.into(),
            difference.queued_bytes.into(),
            difference.failed.into(),
            difference.archived.into(),
            difference.chunks.into(),
            difference.tokens.into(),
            difference.reused_tokens.into(),
        ],
    )?;
    Ok(unusable.is_some())
}

fn write_embedded(
    client: &mut SpiClient,
    pipeline: &Active,
    documents: &[(&Claim, &[EmbeddedChunk])],
    rows_at_once: usize,
    difference: &mut Difference,
) -> Result<(), pgrx::spi::Error> {
    let target = &target_now(client, pipeline)?;
    // Deferred constraints and triggers of the target fire with each statement, as its owner, not at the worker's commit.
    run(client, "SET CONSTRAINTS ALL IMMEDIATE", &[])?;
    let keys: Vec<String> = documents
        .iter()
        .map(|(claim, _)| claim.key.clone())
        .collect();
    {
        let _acting = ActingAs::new(pipeline.owner);
        let old = {
            let _impatience = Impatience::new(PATIENCE);
            run(
                client,
                &pipeline.layout.delete(target, Which::Keys),
                &[keys.into()],
            )?
            .first()
        };
        difference.chunks -= old.get::<i64>(1)?.unwrap_or(0);
        difference.tokens -= old.get::<i64>(2)?.unwrap_or(0);
        insert_chunks(client, target, pipeline, documents, rows_at_once)?;
    }
    for (claim, chunks) in documents {
        difference.queued -= 1;
        difference.queued_bytes -= i64::from(claim.bytes);
        difference.chunks += chunks.len() as i64;
        for chunk in *chunks {
            let tokens = chunk.tokens as i64;
            difference.tokens += tokens;
            difference.reused_tokens += if chunk.reused { tokens } else { 0 };
        }
    }
    let ids: Vec<i64> = documents.iter().map(|(claim, _)| claim.document).collect();
    run(
        client,
        "DELETE FROM ingest.queue WHERE document_id = ANY ($1) AND pipeline_id = $2",
        &[ids.clone().into(), pipeline.id.into()],
    )?;
    run(
        client,
        "DELETE FROM ingest.failures WHERE document_id = ANY ($1) AND rebuild = $2",
        &[ids.clone().into(), pipeline.rebuild.into()],
    )?;
    if pipeline.deletes_documents && still_deletes(client, pipeline)? {
        archiving(|| {
            run(
                client,
                "DELETE FROM ingest.documents WHERE id = ANY ($1)",
                &[ids.into()],
            )
            .map(drop)
        })?;
        difference.archived += documents.len() as i64;
    }
    if pipeline.blocked_for.is_some() {
        run(
            client,
            "UPDATE ingest.pipeline SET blocked_error = NULL, blocked_until = NULL, blocked_times = 0
             WHERE pipeline_id = $1 AND blocked_error IS NOT NULL",
            &[pipeline.id.into()],
        )?;
    }
    Ok(())
}

/// The target, quoted for SQL, which keeps its name until the transaction ends; raises where there is none, and where the pipeline
/// was given to another role since its definition was read.
fn target_now(client: &mut SpiClient, pipeline: &Active) -> Result<String, pgrx::spi::Error> {
    let dropped =
        |problem: &str| UserError::new(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, problem).raise();
    if let Err(problem) = &pipeline.target {
        dropped(problem);
    }
    let rows = run(
        client,
        "SELECT target::oid AS target FROM ingest.pipeline WHERE pipeline_id = $1 AND owner::oid = $2",
        &[pipeline.id.into(), pipeline.owner.into()],
    )?;
    let target = match rows.into_iter().next() {
        Some(row) => row["target"].value::<pg_sys::Oid>()?,
        None => UserError::new(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            "the pipeline has just been changed",
        )
        .raise(),
    };
    Ok(target
        .and_then(|target| keep_name(target, pg_sys::RowExclusiveLock))
        .unwrap_or_else(|| dropped("the target table was dropped")))
}

/// Whether its definition still says that embedded documents are deleted: it may have been altered since it was read, and
/// cannot be before this transaction ends.
fn still_deletes(client: &mut SpiClient, pipeline: &Active) -> Result<bool, pgrx::spi::Error> {
    let rows = run(
        client,
        "SELECT FROM ingest.pipeline WHERE pipeline_id = $1 AND on_success = 'delete' FOR SHARE",
        &[pipeline.id.into()],
    )?;
    Ok(!rows.is_empty())
}

/// Plain INSERTs, so that partitioned and foreign tables serve.
fn insert_chunks(
    client: &mut SpiClient,
    target: &str,
    pipeline: &Active,
    documents: &[(&Claim, &[EmbeddedChunk])],
    rows_at_once: usize,
) -> Result<(), pgrx::spi::Error> {
    let dimensions = pipeline.dimensions;
    let sql = pipeline.layout.insert(target, &pipeline.vector_type);
    let rows: Vec<(&Claim, usize, &EmbeddedChunk)> = documents
        .iter()
        .flat_map(|(claim, chunks)| {
            chunks
                .iter()
                .enumerate()
                .map(move |(no, chunk)| (*claim, no, chunk))
        })
        .collect();
    for part in rows.chunks((MAX_FLOATS / dimensions.max(1)).clamp(1, rows_at_once)) {
        let floats: Vec<f32> = part
            .iter()
            .flat_map(|(_, _, chunk)| chunk.embedding.iter().copied())
            .collect();
        let _impatience = Impatience::new(PATIENCE);
        run(
            client,
            &sql,
            &[
                part.iter()
                    .map(|(claim, _, _)| claim.key.as_str())
                    .collect::<Vec<_>>()
                    .into(),
                part.iter()
                    .map(|(_, no, _)| *no as i32)
                    .collect::<Vec<_>>()
                    .into(),
                part.iter()
                    .map(|(_, _, chunk)| chunk.content.as_str())
                    .collect::<Vec<_>>()
                    .into(),
                part.iter()
                    .map(|(_, _, chunk)| chunk.tokens as i32)
                    .collect::<Vec<_>>()
                    .into(),
                part.iter()
                    .map(|(claim, _, _)| claim.metadata.as_str())
                    .collect::<Vec<_>>()
                    .into(),
                float_array(&floats),
                (dimensions as i32).into(),
            ],
        )?;
    }
    Ok(())
}

/// A one-dimensional `real[]`, copied in one go: element by element it would take as long as writing the rows.
fn float_array(floats: &[f32]) -> DatumWithOid<'static> {
    let header = size_of::<pg_sys::ArrayType>() + 2 * size_of::<i32>();
    let size = header + size_of_val(floats);
    // SAFETY: palloc gives `size` bytes, aligned for any type, in the transaction's memory; the header is followed by one
    // dimension, one lower bound and the elements, as array.h lays out an array without nulls. ArrayType's size is a
    // multiple of 8 with the two numbers, so the elements start where ARR_DATA_PTR looks.
    unsafe {
        let array = pg_sys::palloc(size).cast::<pg_sys::ArrayType>();
        pgrx::varlena::set_varsize_4b(array.cast(), size as i32);
        (*array).ndim = 1;
        (*array).dataoffset = 0;
        (*array).elemtype = pg_sys::FLOAT4OID;
        let shape = array.add(1).cast::<i32>();
        shape.write(floats.len() as i32);
        shape.add(1).write(1);
        let data = array.cast::<u8>().add(header).cast::<f32>();
        std::ptr::copy_nonoverlapping(floats.as_ptr(), data, floats.len());
        DatumWithOid::new(pg_sys::Datum::from(array), pg_sys::FLOAT4ARRAYOID)
    }
}

/// Retries of a batch, by the request that failed, so that the log tells each once.
#[derive(Default)]
struct Retries<'a>(Vec<Retry<'a>>);

struct Retry<'a> {
    error: &'a EmbedError,
    documents: usize,
    attempt: i32,
    wait: f64,
}

impl<'a> Retries<'a> {
    fn note(&mut self, error: &'a EmbedError, attempt: i32, wait: f64) {
        match self.0.iter_mut().find(|retry| retry.error == error) {
            Some(retry) => {
                retry.documents += 1;
                retry.attempt = retry.attempt.max(attempt);
                retry.wait = retry.wait.max(wait);
            }
            None => self.0.push(Retry {
                error,
                documents: 1,
                attempt,
                wait,
            }),
        }
    }

    /// Without the provider's words, which may quote a document.
    fn log(&self, pipeline: &Active) {
        for retry in &self.0 {
            let error = retry.error;
            let what = match (&error.request_id, error.http_status) {
                (None, None) if error.class == ErrorClass::Internal => {
                    "it failed on this side".into()
                }
                (id, status) => format!(
                    "request {} failed ({}, HTTP {})",
                    id.as_deref().unwrap_or("without an id"),
                    error.class,
                    status.map_or_else(|| "-".to_owned(), |status| status.to_string()),
                ),
            };
            log!(
                "pg_ingest: pipeline {:?}: {what}, attempt {} of {}; {} documents are tried again within {:.1} s",
                pipeline.name,
                retry.attempt,
                pipeline.max_attempts,
                retry.documents,
                retry.wait,
            );
        }
    }
}

/// One more attempt, after the returned wait in seconds; or a failure row.
fn fail(
    client: &mut SpiClient,
    pipeline: &Active,
    claim: &Claim,
    error: &EmbedError,
    jitter: u64,
    difference: &mut Difference,
) -> Result<Option<f64>, pgrx::spi::Error> {
    let id = claim.document;
    let attempts = claim.attempts + 1;
    if error.retryable() && attempts < pipeline.max_attempts {
        let wait = retry_wait(attempts, jitter ^ id as u64);
        run(
            client,
            "UPDATE ingest.queue SET claimed_by = NULL, claim_token = NULL, attempts = $2,
                    retry_at = clock_timestamp() + make_interval(secs => $3)
             WHERE document_id = $1 AND pipeline_id = $4",
            &[id.into(), attempts.into(), wait.into(), pipeline.id.into()],
        )?;
        return Ok(Some(wait));
    }
    set_aside(
        client,
        (pipeline.id, &pipeline.name, pipeline.rebuild),
        id,
        &claim.key,
        &Ended {
            error_class: error.class.as_str(),
            http_status: error.http_status,
            message: &clean(&error.message),
            attempts,
            retryable: error.retryable(),
        },
    )?;
    difference.queued -= 1;
    difference.queued_bytes -= i64::from(claim.bytes);
    difference.failed += 1;
    Ok(None)
}

/// Why a document is given up.
pub struct Ended<'a> {
    /// One of the classes that DESIGN names.
    pub error_class: &'a str,
    /// The provider's status, if it answered.
    pub http_status: Option<u16>,
    /// What happened.
    pub message: &'a str,
    /// How often it was tried since it was queued.
    pub attempts: i32,
    /// Whether the same document may succeed another time.
    pub retryable: bool,
}

/// Takes a document from the queue of a pipeline (its number, its name, whether it is a rebuild) into the failures. The counters
/// are the caller's.
pub fn set_aside(
    client: &mut SpiClient,
    (pipeline_id, pipeline, rebuild): (i32, &str, bool),
    document: i64,
    key: &str,
    ended: &Ended,
) -> Result<(), pgrx::spi::Error> {
    run(
        client,
        "DELETE FROM ingest.queue WHERE document_id = $1 AND pipeline_id = $2",
        &[document.into(), pipeline_id.into()],
    )?;
    run(
        client,
        "INSERT INTO ingest.failures AS f (pipeline, document_id, key, error_class, http_status, message, attempts, retryable, rebuild)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (document_id, rebuild) DO UPDATE
             SET pipeline = EXCLUDED.pipeline, key = EXCLUDED.key, error_class = EXCLUDED.error_class,
                 http_status = EXCLUDED.http_status, message = EXCLUDED.message,
                 attempts = f.attempts + EXCLUDED.attempts, last_failed_at = clock_timestamp(), retryable = EXCLUDED.retryable",
        &[
            pipeline.into(),
            document.into(),
            key.into(),
            ended.error_class.into(),
            ended.http_status.map(i32::from).into(),
            ended.message.into(),
            ended.attempts.into(),
            ended.retryable.into(),
            rebuild.into(),
        ],
    )
    .map(drop)
}

/// Seconds before attempt `attempts + 1`: doubling from 1 s, and a random half of it, so that documents that failed
/// together do not come back together.
fn retry_wait(attempts: i32, random: u64) -> f64 {
    let full = 2f64.powi(attempts.clamp(1, 16) - 1).min(LONGEST_RETRY_WAIT);
    full * (0.5 + 0.5 * (random % 1024) as f64 / 1024.0)
}

/// Blocks a pipeline that cannot be used as it is defined, if documents wait for it; whether they do. Inside a transaction.
pub fn block_if_waited_for(pipeline: &Active, error: &EmbedError) -> bool {
    Spi::connect_mut(|client| {
        let waiting = run(
            client,
            "SELECT FROM ingest.queue WHERE pipeline_id = $1 AND claimed_by IS NULL AND retry_at IS NULL LIMIT 1",
            &[pipeline.id.into()],
        )?;
        if waiting.is_empty() {
            return Ok(false);
        }
        block(client, pipeline, error)?;
        Ok::<_, pgrx::spi::Error>(true)
    })
    .or_raise()
}

/// Blocks a pipeline. Inside a transaction.
pub fn block_now(pipeline: &Active, error: &EmbedError) {
    Spi::connect_mut(|client| block(client, pipeline, error)).or_raise();
}

/// Stops taking documents of a pipeline, visibly, for a while; what it holds and has not sent goes back.
fn block(
    client: &mut SpiClient,
    pipeline: &Active,
    error: &EmbedError,
) -> Result<(), pgrx::spi::Error> {
    let message = match &error.hint {
        Some(hint) => format!("{} ({hint})", error.message),
        None => error.message.clone(),
    };
    let message = clean(&message);
    // Documents that were in flight together end together: that is one block, not many.
    let blocked = run(
        client,
        "UPDATE ingest.pipeline
         SET blocked_error = $2, blocked_times = blocked_times + 1,
             blocked_until = clock_timestamp() + make_interval(secs => least($3 * 2.0 ^ least(blocked_times, 10), $4))
         WHERE pipeline_id = $1 AND (blocked_until IS NULL OR blocked_until <= clock_timestamp())
         RETURNING pipeline_id",
        &[
            pipeline.id.into(),
            message.as_str().into(),
            BLOCKED_WAIT.0.into(),
            BLOCKED_WAIT.1.into(),
        ],
    )?;
    if !blocked.is_empty() {
        wake::review_at_commit();
        warning!(
            "pg_ingest: pipeline {:?} is blocked: {message}",
            pipeline.name
        );
    }
    Ok(())
}

/// A message as it may be stored: no control characters, not endless.
fn clean(message: &str) -> String {
    message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_MESSAGE)
        .collect()
}
