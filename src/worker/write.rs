//! Writing: what came back from the engine becomes chunks, retries or failures, all of a batch in one transaction.
//!
//! A document is written only while its queue row still carries the token of this worker's claim. A row that somebody
//! else has locked is being changed just now: the answer is kept and tried again a moment later, outside any transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use embedder::{EmbedError, ErrorClass};
use engine::{EmbeddedChunk, Outcome};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::api::documents::archiving;
use crate::errors::OrRaise;
use crate::owner::ActingAs;
use crate::shmem::{self, Shared};
use crate::worker::claim::{Claim, Claims};
use crate::worker::pipelines::Active;
use crate::worker::transaction::{SqlError, run, transaction};

/// Chunks written by one transaction at most; a larger document is written alone.
const MAX_CHUNKS: usize = 4096;
/// Numbers in one INSERT's vectors at most: 64 MB, far below the largest value that Postgres takes (1 GB).
const MAX_FLOATS: usize = 16 * 1024 * 1024;
/// Wait before an answer is written again whose document was locked.
const LOCKED_WAIT: Duration = Duration::from_millis(50);
/// Lock timeouts (200 ms each) borne while looking for the document in a batch of 128 whose rows are locked: one for each
/// halving. More than that, and the target as a whole is locked.
const LOCK_PATIENCE: u32 = 8;
/// Wait before a pipeline is written again whose target was locked.
const STUCK_WAIT: Duration = Duration::from_secs(1);
/// Longest wait before a document's next attempt.
const LONGEST_RETRY_WAIT: f64 = 60.0;
/// First and longest wait before a blocked pipeline is tried again by itself, in seconds.
const BLOCKED_WAIT: (f64, f64) = (10.0, 600.0);
/// Characters kept of a message.
const MAX_MESSAGE: usize = 1000;

/// Settles documents, and remembers those that had to wait.
pub struct Writer {
    shared: &'static Shared,
    database: pg_sys::Oid,
    postponed: Vec<Outcome>,
    stuck: BTreeSet<i32>,
    not_before: Instant,
    random: RandomState,
}

/// What a transaction did with the documents given to it.
#[derive(Default)]
struct Settled {
    /// Ended, one way or another; also those whose claim was void.
    ended: Vec<u64>,
    /// Locked by somebody else.
    locked: Vec<u64>,
}

impl Writer {
    /// Nothing postponed.
    pub fn new(shared: &'static Shared, database: pg_sys::Oid) -> Self {
        Self {
            shared,
            database,
            postponed: Vec::new(),
            stuck: BTreeSet::new(),
            not_before: Instant::now(),
            random: RandomState::new(),
        }
    }

    /// How long until postponed answers are due.
    pub fn next_attempt(&self) -> Option<Duration> {
        (!self.postponed.is_empty())
            .then(|| self.not_before.saturating_duration_since(Instant::now()))
    }

    /// Pipelines whose answers wait for a lock: taking more of their documents would fill the engine with them.
    pub fn stuck_pipelines(&self) -> Vec<i32> {
        self.stuck.iter().copied().collect()
    }

    /// Writes finished documents, with those postponed and due, each pipeline for itself. A pipeline whose target is
    /// locked is tried again later. An error says that something else is wrong; no outcome is lost.
    pub fn settle(&mut self, finished: Vec<Outcome>, claims: &mut Claims) -> Result<(), SqlError> {
        let mut outcomes = finished;
        outcomes.extend(claims.take_refused());
        if self.not_before <= Instant::now() {
            outcomes.append(&mut self.postponed);
            self.stuck.clear();
        }
        let mut by_pipeline: BTreeMap<i32, Vec<Outcome>> = BTreeMap::new();
        for outcome in outcomes {
            let pipeline = claims
                .get(outcome.ticket())
                .map_or(0, |claim| claim.pipeline.id);
            by_pipeline.entry(pipeline).or_default().push(outcome);
        }
        let mut worst = Ok(());
        for (pipeline, outcomes) in by_pipeline {
            for batch in batches(outcomes) {
                if self.stuck.contains(&pipeline) {
                    self.postpone(batch);
                    continue;
                }
                if let Err(error) = self.settle_batch(batch, claims, &mut { LOCK_PATIENCE }) {
                    self.stuck.insert(pipeline);
                    self.not_before = Instant::now() + STUCK_WAIT;
                    if !error.is_transient() {
                        worst = Err(error);
                    }
                }
            }
        }
        worst
    }

    fn postpone(&mut self, outcomes: Vec<Outcome>) {
        self.postponed.extend(outcomes);
        self.not_before = self.not_before.max(Instant::now() + LOCKED_WAIT);
    }

    /// Writes a batch of one pipeline. A batch that cannot be written is halved until the document at fault stands alone;
    /// one whose rows somebody has locked is postponed. Fails with what stood in the way of more documents than `patience`
    /// allows; those left are postponed.
    fn settle_batch(
        &mut self,
        mut batch: Vec<Outcome>,
        claims: &mut Claims,
        patience: &mut u32,
    ) -> Result<(), SqlError> {
        let jitter = self.random.hash_one(Instant::now());
        let error = match transaction(|| write(&batch, claims, jitter)) {
            Ok(settled) => {
                let (locked, ended): (Vec<_>, Vec<_>) = batch
                    .into_iter()
                    .partition(|outcome| settled.locked.contains(&outcome.ticket()));
                for outcome in ended {
                    let claim = claims.remove(outcome.ticket());
                    if settled.ended.contains(&outcome.ticket()) {
                        self.count(&outcome, claim.as_ref());
                    }
                }
                if !locked.is_empty() {
                    self.postpone(locked);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if error.is_transient() {
            // Each took a lock_timeout of the main thread's time.
            let Some(less) = patience.checked_sub(1) else {
                self.postpone(batch);
                return Err(error);
            };
            *patience = less;
        }
        if batch.len() > 1 {
            let right = batch.split_off(batch.len() / 2);
            let result = self.settle_batch(batch, claims, patience);
            if result.is_err() {
                self.postpone(right);
                return result;
            }
            return self.settle_batch(right, claims, patience);
        }
        if error.is_transient() {
            self.postpone(batch);
            self.not_before = Instant::now() + STUCK_WAIT;
            return Ok(());
        }
        let refused: Vec<Outcome> = batch
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Embedded { .. }))
            .map(|outcome| refused_by_target(outcome.ticket(), claims, &error))
            .collect();
        if refused.is_empty() {
            // Not even the failure could be noted.
            self.postpone(batch);
            return Err(error);
        }
        self.settle_batch(refused, claims, patience)
    }

    fn count(&self, outcome: &Outcome, claim: Option<&Claim>) {
        let Some(claim) = claim else { return };
        let (documents, tokens) = match outcome {
            Outcome::Embedded { chunks, .. } => {
                (1, chunks.iter().map(|chunk| chunk.tokens).sum::<usize>())
            }
            Outcome::Failed { .. } => (0, 0),
            Outcome::Unusable { .. } => return,
        };
        self.shared.count_done(
            self.database,
            claim.pipeline.id,
            shmem::unix_now(),
            documents,
            tokens as u32,
            claim.bytes as u32,
        );
    }
}

/// Cuts a list so that no transaction writes too many chunks.
fn batches(outcomes: Vec<Outcome>) -> Vec<Vec<Outcome>> {
    let mut batches: Vec<Vec<Outcome>> = Vec::new();
    let mut room = 0;
    for outcome in outcomes {
        let chunks = match &outcome {
            Outcome::Embedded { chunks, .. } => chunks.len(),
            _ => 1,
        };
        match batches.last_mut() {
            Some(last) if chunks <= room => {
                room -= chunks;
                last.push(outcome);
            }
            _ => {
                room = MAX_CHUNKS.saturating_sub(chunks);
                batches.push(vec![outcome]);
            }
        }
    }
    batches
}

/// What an error while writing a document's chunks says: that the pipeline cannot go on until somebody acts (its target is
/// gone, forbidden or full), or that the rows of this document are refused, by a constraint or a trigger.
fn refused_by_target(ticket: u64, claims: &Claims, error: &SqlError) -> Outcome {
    use PgSqlErrorCode as C;
    let everybody = match error.code {
        C::ERRCODE_READ_ONLY_SQL_TRANSACTION
        | C::ERRCODE_INSUFFICIENT_RESOURCES
        | C::ERRCODE_DISK_FULL
        | C::ERRCODE_OUT_OF_MEMORY
        | C::ERRCODE_TOO_MANY_CONNECTIONS
        | C::ERRCODE_CONNECTION_FAILURE
        | C::ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION
        | C::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION
        | C::ERRCODE_IO_ERROR => true,
        // A trigger raises these for one document, a target that is no more for all.
        C::ERRCODE_UNDEFINED_TABLE
        | C::ERRCODE_UNDEFINED_COLUMN
        | C::ERRCODE_UNDEFINED_OBJECT
        | C::ERRCODE_DATATYPE_MISMATCH
        | C::ERRCODE_INSUFFICIENT_PRIVILEGE => claims
            .get(ticket)
            .is_none_or(|claim| !accepts_nothing(&claim.pipeline)),
        _ => false,
    };
    let message = format!("the target table refused the chunks: {error}");
    let error = EmbedError::new(ErrorClass::Internal, message);
    if everybody {
        let error = EmbedError {
            model_unusable: true,
            ..error
        };
        Outcome::Unusable { ticket, error }
    } else {
        Outcome::Failed { ticket, error }
    }
}

/// Whether a pipeline's target takes a DELETE and an INSERT of no rows: it is there, with its columns, and its owner may.
fn accepts_nothing(pipeline: &Active) -> bool {
    let Ok(target) = &pipeline.target else {
        return false;
    };
    transaction(|| {
        let _acting = ActingAs::new(pipeline.owner);
        Spi::run(&format!(
            "DELETE FROM {target} WHERE document_key = 'none' AND false"
        ))
        .or_raise();
        Spi::run(&format!(
            "INSERT INTO {target} (document_key, chunk_no, content, tokens, metadata, embedding)
             SELECT '', 0, '', 0, '{{}}'::jsonb, NULL::{} WHERE false",
            pipeline.vector_type
        ))
        .or_raise();
    })
    .is_ok()
}

/// Writes a batch. Inside a transaction; raises on any error.
fn write(batch: &[Outcome], claims: &Claims, jitter: u64) -> Settled {
    Spi::connect_mut(|client| {
        let held: Vec<(&Outcome, &Claim)> = batch
            .iter()
            .filter_map(|outcome| Some((outcome, claims.get(outcome.ticket())?)))
            .collect();
        let mut settled = Settled::default();
        let held = set_aside_locked_documents(client, held, &mut settled)?;
        let ids: Vec<i64> = held.iter().map(|(_, claim)| claim.document).collect();
        let ours = tokens(
            client,
            "SELECT document_id, claim_token FROM ingest.queue WHERE document_id = ANY ($1) FOR UPDATE SKIP LOCKED",
            &ids,
        )?;
        let valid = |claim: &Claim, rows: &BTreeMap<i64, i64>| rows.get(&claim.document) == Some(&claim.token);
        let missing: Vec<i64> = ids.iter().copied().filter(|id| !ours.contains_key(id)).collect();
        let locked = if missing.is_empty() {
            BTreeMap::new()
        } else {
            tokens(
                client,
                "SELECT document_id, claim_token FROM ingest.queue WHERE document_id = ANY ($1)",
                &missing,
            )?
        };
        let mut by_pipeline: BTreeMap<i32, Vec<(&Outcome, &Claim)>> = BTreeMap::new();
        for (outcome, claim) in held {
            if valid(claim, &ours) {
                by_pipeline.entry(claim.pipeline.id).or_default().push((outcome, claim));
                settled.ended.push(outcome.ticket());
            } else if valid(claim, &locked) {
                settled.locked.push(outcome.ticket());
            }
        }
        for documents in by_pipeline.values() {
            write_pipeline(client, documents, jitter)?;
        }
        Ok::<_, pgrx::spi::Error>(settled)
    })
    .or_raise()
}

/// Staging rows that are deleted on success are locked before their queue rows, in the order in which users' statements
/// lock them: the other way round would be a deadlock. A row that somebody else has locked is set aside.
fn set_aside_locked_documents<'a>(
    client: &mut SpiClient,
    held: Vec<(&'a Outcome, &'a Claim)>,
    settled: &mut Settled,
) -> Result<Vec<(&'a Outcome, &'a Claim)>, pgrx::spi::Error> {
    let ids: Vec<i64> = held
        .iter()
        .filter(|(outcome, claim)| {
            claim.pipeline.deletes_documents && matches!(outcome, Outcome::Embedded { .. })
        })
        .map(|(_, claim)| claim.document)
        .collect();
    if ids.is_empty() {
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

/// The claim tokens in the queue, by document.
fn tokens(
    client: &mut SpiClient,
    sql: &str,
    ids: &[i64],
) -> Result<BTreeMap<i64, i64>, pgrx::spi::Error> {
    let mut found = BTreeMap::new();
    for row in run(client, sql, &[ids.to_vec().into()])? {
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
}

fn write_pipeline(
    client: &mut SpiClient,
    documents: &[(&Outcome, &Claim)],
    jitter: u64,
) -> Result<(), pgrx::spi::Error> {
    let Some((_, first)) = documents.first() else {
        return Ok(());
    };
    let pipeline = &first.pipeline;
    let mut difference = Difference::default();
    let embedded: Vec<(&Claim, &[EmbeddedChunk])> = documents
        .iter()
        .filter_map(|(outcome, claim)| match outcome {
            Outcome::Embedded { chunks, .. } => Some((*claim, chunks.as_slice())),
            _ => None,
        })
        .collect();
    if !embedded.is_empty() {
        write_embedded(client, pipeline, &embedded, &mut difference)?;
    }
    let mut unusable = None;
    for (outcome, claim) in documents {
        match outcome {
            Outcome::Embedded { .. } => {}
            Outcome::Failed { error, .. } => {
                fail(client, claim, error, jitter, &mut difference)?;
            }
            Outcome::Unusable { error, .. } => {
                run(
                    client,
                    "UPDATE ingest.queue SET claimed_by = NULL, claim_token = NULL WHERE document_id = $1",
                    &[claim.document.into()],
                )?;
                unusable = Some(error);
            }
        }
    }
    if let Some(error) = unusable {
        block(client, pipeline, error)?;
    }
    run(
        client,
        "INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes, failed, archived, chunks, tokens)
         SELECT $1, $2, $3, $4, $5, $6, $7 WHERE EXISTS (SELECT FROM ingest.pipeline WHERE pipeline_id = $1)",
        &[
            pipeline.id.into(),
            difference.queued.into(),
            difference.queued_bytes.into(),
            difference.failed.into(),
            difference.archived.into(),
            difference.chunks.into(),
            difference.tokens.into(),
        ],
    )?;
    Ok(())
}

fn write_embedded(
    client: &mut SpiClient,
    pipeline: &Arc<Active>,
    documents: &[(&Claim, &[EmbeddedChunk])],
    difference: &mut Difference,
) -> Result<(), pgrx::spi::Error> {
    let target = match &pipeline.target {
        Ok(target) => target,
        Err(problem) => {
            crate::errors::UserError::new(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, problem).raise()
        }
    };
    // Deferred constraints and triggers of the target fire with each statement, as its owner, not at the worker's commit.
    run(client, "SET CONSTRAINTS ALL IMMEDIATE", &[])?;
    let keys: Vec<String> = documents
        .iter()
        .map(|(claim, _)| claim.key.clone())
        .collect();
    {
        let _acting = ActingAs::new(pipeline.owner);
        let old = run(
            client,
            &format!(
                "WITH gone AS (DELETE FROM {target} WHERE document_key = ANY ($1) RETURNING tokens)
                 SELECT count(*), coalesce(sum(tokens), 0)::bigint FROM gone"
            ),
            &[keys.into()],
        )?
        .first();
        difference.chunks -= old.get::<i64>(1)?.unwrap_or(0);
        difference.tokens -= old.get::<i64>(2)?.unwrap_or(0);
        insert_chunks(client, target, pipeline, documents)?;
    }
    for (claim, chunks) in documents {
        difference.queued -= 1;
        difference.queued_bytes -= i64::from(claim.bytes);
        difference.chunks += chunks.len() as i64;
        difference.tokens += chunks.iter().map(|chunk| chunk.tokens as i64).sum::<i64>();
    }
    let ids: Vec<i64> = documents.iter().map(|(claim, _)| claim.document).collect();
    run(
        client,
        "DELETE FROM ingest.queue WHERE document_id = ANY ($1)",
        &[ids.clone().into()],
    )?;
    run(
        client,
        "DELETE FROM ingest.failures WHERE document_id = ANY ($1)",
        &[ids.clone().into()],
    )?;
    if pipeline.deletes_documents {
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

/// Plain INSERTs, so that partitioned and foreign tables serve. The cast to pgvector's type checks dimension and
/// finiteness once more.
fn insert_chunks(
    client: &mut SpiClient,
    target: &str,
    pipeline: &Active,
    documents: &[(&Claim, &[EmbeddedChunk])],
) -> Result<(), pgrx::spi::Error> {
    let dimensions = pipeline.spec.dimensions;
    let sql = format!(
        "INSERT INTO {target} (document_key, chunk_no, content, tokens, metadata, embedding)
         SELECT c.document_key, c.chunk_no, c.content, c.tokens, c.metadata::jsonb,
                ($6::real[])[(c.place - 1) * $7 + 1 : c.place * $7]::{vector}
         FROM unnest($1::text[], $2::int[], $3::text[], $4::int[], $5::text[])
              WITH ORDINALITY AS c(document_key, chunk_no, content, tokens, metadata, place)",
        vector = pipeline.vector_type,
    );
    let rows: Vec<(&Claim, usize, &EmbeddedChunk)> = documents
        .iter()
        .flat_map(|(claim, chunks)| {
            chunks
                .iter()
                .enumerate()
                .map(move |(no, chunk)| (*claim, no, chunk))
        })
        .collect();
    for part in rows.chunks((MAX_FLOATS / dimensions.max(1)).clamp(1, MAX_CHUNKS)) {
        let floats: Vec<f32> = part
            .iter()
            .flat_map(|(_, _, chunk)| chunk.embedding.iter().copied())
            .collect();
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

/// One more attempt, or a failure row.
fn fail(
    client: &mut SpiClient,
    claim: &Claim,
    error: &EmbedError,
    jitter: u64,
    difference: &mut Difference,
) -> Result<(), pgrx::spi::Error> {
    let id = claim.document;
    let attempts = claim.attempts + 1;
    if error.retryable() && attempts < claim.pipeline.max_attempts {
        let wait = retry_wait(attempts, jitter ^ id as u64);
        run(
            client,
            "UPDATE ingest.queue SET claimed_by = NULL, claim_token = NULL, attempts = $2,
                    retry_at = clock_timestamp() + make_interval(secs => $3)
             WHERE document_id = $1",
            &[id.into(), attempts.into(), wait.into()],
        )?;
        return Ok(());
    }
    run(
        client,
        "DELETE FROM ingest.queue WHERE document_id = $1",
        &[id.into()],
    )?;
    run(
        client,
        "INSERT INTO ingest.failures AS f (pipeline, document_id, key, error_class, http_status, message, attempts, retryable)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (document_id) DO UPDATE
             SET pipeline = EXCLUDED.pipeline, key = EXCLUDED.key, error_class = EXCLUDED.error_class,
                 http_status = EXCLUDED.http_status, message = EXCLUDED.message,
                 attempts = f.attempts + EXCLUDED.attempts, last_failed_at = clock_timestamp(), retryable = EXCLUDED.retryable",
        &[
            claim.pipeline.name.as_str().into(),
            id.into(),
            claim.key.as_str().into(),
            error.class.as_str().into(),
            error.http_status.map(i32::from).into(),
            clean(&error.message).into(),
            attempts.into(),
            error.retryable().into(),
        ],
    )?;
    difference.queued -= 1;
    difference.queued_bytes -= i64::from(claim.bytes);
    difference.failed += 1;
    Ok(())
}

/// Seconds before attempt `attempts + 1`: doubling from 1 s, and a random half of it, so that documents that failed
/// together do not come back together.
fn retry_wait(attempts: i32, random: u64) -> f64 {
    let full = 2f64.powi(attempts.clamp(1, 16) - 1).min(LONGEST_RETRY_WAIT);
    full * (0.5 + 0.5 * (random % 1024) as f64 / 1024.0)
}

/// Stops taking documents of a pipeline, visibly, for a while.
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
    warning!(
        "pg_ingest: pipeline {:?} is blocked: {message}",
        pipeline.name
    );
    run(
        client,
        "UPDATE ingest.pipeline
         SET blocked_error = $2, blocked_times = blocked_times + 1,
             blocked_until = clock_timestamp() + make_interval(secs => least($3 * 2.0 ^ least(blocked_times, 10), $4))
         WHERE pipeline_id = $1",
        &[pipeline.id.into(), message.into(), BLOCKED_WAIT.0.into(), BLOCKED_WAIT.1.into()],
    )?;
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
