//! Settling: what becomes of finished documents. Each pipeline's are written in batches ([`super::write`]); a batch that
//! cannot be written is halved until the document at fault stands alone, and what somebody else has locked just now is kept
//! and tried again a moment later, outside any transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use embedder::{EmbedError, ErrorClass};
use engine::Outcome;
use injection::Point;
use pgrx::prelude::*;

use crate::errors::UserError;
use crate::shmem::{self, Shared};
use crate::worker::claim::{Claim, Claims};
use crate::worker::pipelines::{Active, Pipelines};
use crate::worker::process::reach;
use crate::worker::transaction::{SqlError, transaction};
use crate::worker::write::{accepts_nothing, block_if_waited_for, write};

/// Chunks written by one transaction at most; a larger document is written alone.
const MAX_CHUNKS: usize = 4096;
/// Wait before an answer is written again whose document was locked.
const LOCKED_WAIT: Duration = Duration::from_millis(50);
/// Lock timeouts (200 ms each) borne while looking for the document in a batch of 128 whose rows are locked: one for each
/// halving. More than that, and the target as a whole is locked.
const LOCK_PATIENCE: u32 = 8;
/// Wait before a pipeline is written again whose target was locked.
const STUCK_WAIT: Duration = Duration::from_secs(1);

/// Settles documents, and remembers those that had to wait.
pub struct Settler {
    shared: &'static Shared,
    database: pg_sys::Oid,
    postponed: Vec<Outcome>,
    stuck: BTreeSet<i32>,
    not_before: Instant,
    random: RandomState,
}

impl Settler {
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

    /// Pipelines not to take documents of now: their answers wait for a lock, or they have just been blocked.
    pub fn stuck_pipelines(&self) -> Vec<i32> {
        self.stuck.iter().copied().collect()
    }

    /// Writes finished documents, with those postponed and due, each pipeline for itself. A pipeline whose target is
    /// locked is tried again later. What was refused for its key is taken again without a block where the pipeline is one
    /// of `rotated`, those that have another key by now. An error says that something else is wrong; no outcome is lost.
    pub fn settle(
        &mut self,
        finished: Vec<Outcome>,
        claims: &mut Claims,
        pipelines: &Pipelines,
        rotated: &[i32],
    ) -> Result<(), SqlError> {
        let mut outcomes = finished;
        outcomes.extend(claims.take_refused());
        if self.not_before <= Instant::now() {
            outcomes.append(&mut self.postponed);
            self.stuck.clear();
        }
        let mut by_pipeline: BTreeMap<i32, Vec<Outcome>> = BTreeMap::new();
        for outcome in outcomes {
            if let Some(claim) = claims.get(outcome.ticket()) {
                by_pipeline.entry(claim.pipeline).or_default().push(outcome);
            }
        }
        let mut worst = Ok(());
        for (id, outcomes) in by_pipeline {
            let Some(pipeline) = pipelines.get(id) else {
                // It was dropped, and its queue with it.
                for outcome in outcomes {
                    claims.remove(outcome.ticket());
                }
                continue;
            };
            for batch in batches(outcomes, claims) {
                if self.stuck.contains(&id) {
                    self.postpone(batch);
                    continue;
                }
                let mut patience = LOCK_PATIENCE;
                let forgive = rotated.contains(&id);
                if let Err(error) =
                    self.settle_batch(batch, claims, pipeline, forgive, &mut patience)
                {
                    self.stuck.insert(id);
                    self.not_before = Instant::now() + STUCK_WAIT;
                    if !error.is_transient() {
                        worst = Err(error);
                    }
                }
            }
        }
        worst
    }

    /// Blocks pipelines that cannot be used as they are defined, when documents wait for them.
    pub fn block_unusable(&mut self, pipelines: &Pipelines) -> Result<(), SqlError> {
        for (pipeline, error) in pipelines.unusable() {
            if transaction(|| block_if_waited_for(pipeline, &error))? {
                self.stuck.insert(pipeline.id);
            }
        }
        Ok(())
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
        pipeline: &Active,
        forgive: bool,
        patience: &mut u32,
    ) -> Result<(), SqlError> {
        let jitter = self.random.hash_one(Instant::now());
        let written = {
            let _working = claims.work(batch.iter().map(Outcome::ticket));
            transaction(|| {
                let settled = write(&batch, claims, pipeline, forgive, jitter);
                if let Err(error) = reach(Point::BeforeCommit) {
                    UserError::new(error.code, error.message).raise();
                }
                settled
            })
            .and_then(|settled| reach(Point::AfterCommit).map(|()| settled))
        };
        let error = match written {
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
                if settled.blocked {
                    // The definitions at hand do not show it yet.
                    self.stuck.insert(pipeline.id);
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
            let result = self.settle_batch(batch, claims, pipeline, forgive, patience);
            if result.is_err() {
                self.postpone(right);
                return result;
            }
            return self.settle_batch(right, claims, pipeline, forgive, patience);
        }
        if error.is_transient() {
            self.postpone(batch);
            self.not_before = Instant::now() + STUCK_WAIT;
            return Ok(());
        }
        let refused: Vec<Outcome> = batch
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Embedded { .. }))
            .map(|outcome| refused_by_target(outcome.ticket(), pipeline, &error))
            .collect();
        if refused.is_empty() {
            // Not even the failure could be noted.
            self.postpone(batch);
            return Err(error);
        }
        self.settle_batch(refused, claims, pipeline, forgive, patience)
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
            claim.pipeline,
            shmem::unix_now(),
            documents,
            tokens as u32,
            claim.bytes as u32,
        );
    }
}

/// Cuts a list so that no transaction writes too many chunks, and that what a process may have died of is written alone.
fn batches(outcomes: Vec<Outcome>, claims: &Claims) -> Vec<Vec<Outcome>> {
    let mut batches: Vec<Vec<Outcome>> = Vec::new();
    let mut room = 0;
    for outcome in outcomes {
        let chunks = match &outcome {
            Outcome::Embedded { chunks, .. } => chunks.len(),
            _ => 1,
        };
        let alone = claims
            .get(outcome.ticket())
            .is_some_and(|claim| claim.suspect);
        match batches.last_mut() {
            Some(last) if chunks <= room && !alone => {
                room -= chunks;
                last.push(outcome);
            }
            _ => {
                room = if alone {
                    0
                } else {
                    MAX_CHUNKS.saturating_sub(chunks)
                };
                batches.push(vec![outcome]);
            }
        }
    }
    batches
}

/// What an error while writing a document's chunks says: that the pipeline cannot go on until somebody acts (its target is
/// gone, forbidden or full), or that the rows of this document are refused, by a constraint or a trigger.
fn refused_by_target(ticket: u64, pipeline: &Active, error: &SqlError) -> Outcome {
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
        | C::ERRCODE_INSUFFICIENT_PRIVILEGE => !accepts_nothing(pipeline),
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
