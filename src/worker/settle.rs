//! Settling: what becomes of finished documents. Each pipeline's are written in batches ([`super::write`]); a batch that
//! cannot be written is halved until the document at fault stands alone, and what somebody else has locked just now is kept
//! and tried again a moment later, outside any transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use embedder::{EmbedError, ErrorClass};
use engine::{Outcome, Written};
use injection::Point;
use pgrx::prelude::*;

use crate::errors::UserError;
use crate::impatience::Impatience;
use crate::shmem::{self, Shared};
use crate::worker::claim::{Claim, Claims};
use crate::worker::pipelines::{Active, Pipelines};
use crate::worker::process::reach;
use crate::worker::transaction::{SqlError, transaction};
use crate::worker::write::{
    FEW_ROWS, MAX_ROWS, Manner, PATIENCE, accepts_no_rows, block_if_waited_for, block_now, write,
};

/// Chunks written by one transaction at most; a larger document is written alone.
const MAX_CHUNKS: usize = 4096;
/// For so long, little at a time is written to a target that took too long.
const SLOW_FOR: Duration = Duration::from_secs(600);
/// After so long, a pipeline's answers wait until those of others have been written.
const LONG_TURN: Duration = Duration::from_secs(5);
/// Wait before an answer is written again whose document was locked.
const LOCKED_WAIT: Duration = Duration::from_millis(50);
/// Lock timeouts (200 ms each) borne while looking for the documents of a batch whose rows are locked, besides one for each
/// halving until one stands alone. More than that, and the target as a whole is locked.
const LOCK_PATIENCE: u32 = 2;
/// How often a document is written again that met an internal error of the target: Postgres raises some in passing, such as `no
/// valid index found for toast relation` while its indexes are rebuilt.
const SECOND_CHANCES: u32 = 3;
/// Wait before a pipeline is written again whose target was locked.
const STUCK_WAIT: Duration = Duration::from_secs(1);

/// Chunks of all pipelines that are kept at most while their targets take nothing: some 50 MB of vectors.
const MAX_KEPT_CHUNKS: usize = 8192;
/// Most documents remembered as those at which a target accepted nothing (beyond that the list starts anew), and as those that
/// are written again (beyond that, others are not).
const MAX_ACCUSED: usize = 1024;

/// Settles documents, and remembers those that had to wait.
pub struct Settler {
    shared: &'static Shared,
    database: pg_sys::Oid,
    written: Written,
    postponed: Vec<Outcome>,
    kept: BTreeMap<i32, Kept>,
    accused: HashMap<i64, Accused>,
    /// Answers that met an internal error of the target, and how often.
    doubted: HashMap<u64, u32>,
    stuck: BTreeSet<i32>,
    /// Pipelines whose targets have taken too long over a statement, and when: for a while one document is written at a time,
    /// and few of its rows.
    slow: BTreeMap<i32, Instant>,
    not_before: Instant,
    random: RandomState,
}

/// A document whose write failed as if the target accepted nothing. The suspicion against the target may be wrong: a trigger can
/// raise for one document what a full disk raises for all.
struct Accused {
    pipeline: i32,
    /// Whether others of the pipeline have been written since.
    others_written: bool,
}

/// Answers that are paid for, of a pipeline whose target takes nothing: they are written when it is tried again.
struct Kept {
    /// What the target says.
    error: EmbedError,
    outcomes: Vec<Outcome>,
    chunks: usize,
}

impl Settler {
    /// Nothing postponed.
    pub fn new(shared: &'static Shared, database: pg_sys::Oid, written: Written) -> Self {
        Self {
            shared,
            database,
            written,
            postponed: Vec::new(),
            kept: BTreeMap::new(),
            accused: HashMap::new(),
            doubted: HashMap::new(),
            stuck: BTreeSet::new(),
            slow: BTreeMap::new(),
            not_before: Instant::now(),
            random: RandomState::new(),
        }
    }

    /// How long until postponed answers are due.
    pub fn next_attempt(&self) -> Option<Duration> {
        (!self.postponed.is_empty())
            .then(|| self.not_before.saturating_duration_since(Instant::now()))
    }

    /// How many answers wait until their pipeline is tried again.
    pub fn kept(&self) -> usize {
        self.kept.values().map(|kept| kept.outcomes.len()).sum()
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
        let due = |id: &i32, _: &mut Kept| pipelines.get(*id).is_none_or(|p| !p.is_blocked());
        let due: Vec<Kept> = self
            .kept
            .extract_if(.., due)
            .map(|(_, kept)| kept)
            .collect();
        for kept in due {
            outcomes.extend(self.others_first(kept.outcomes, claims));
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
            let since = Instant::now();
            let most = if self.is_slow(id) { 1 } else { MAX_CHUNKS };
            for batch in batches(outcomes, claims, most) {
                // The others wait for their turn.
                if self.stuck.contains(&id) || since.elapsed() > LONG_TURN {
                    self.postpone(batch);
                    continue;
                }
                let mut patience = LOCK_PATIENCE + batch.len().max(1).ilog2();
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

    /// Puts documents that are accused last. When there are no others, they wait a little, so that one can be taken and written
    /// meanwhile.
    fn others_first(&mut self, outcomes: Vec<Outcome>, claims: &Claims) -> Vec<Outcome> {
        let (accused, mut others): (Vec<_>, Vec<_>) = outcomes
            .into_iter()
            .partition(|outcome| self.accused(outcome, claims).is_some());
        if others.is_empty() && !accused.is_empty() {
            self.postponed.extend(accused);
            self.not_before = Instant::now() + STUCK_WAIT;
            return others;
        }
        others.extend(accused);
        others
    }

    fn is_slow(&self, pipeline: i32) -> bool {
        self.slow
            .get(&pipeline)
            .is_some_and(|since| since.elapsed() < SLOW_FOR)
    }

    fn accused(&self, outcome: &Outcome, claims: &Claims) -> Option<&Accused> {
        self.accused.get(&claims.get(outcome.ticket())?.document)
    }

    /// Remembers who was written: that clears the document itself, and speaks against those that were accused before.
    fn note_written(&mut self, claim: &Claim) {
        self.accused.remove(&claim.document);
        for accused in self.accused.values_mut() {
            accused.others_written |= accused.pipeline == claim.pipeline;
        }
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
        self.keep_if_in_vain(&mut batch, pipeline.id);
        if batch.is_empty() {
            return Ok(());
        }
        let manner = Manner {
            rows_at_once: if self.is_slow(pipeline.id) {
                FEW_ROWS
            } else {
                MAX_ROWS
            },
            forgive,
            jitter: self.random.hash_one(Instant::now()),
        };
        Impatience::ran_out();
        let written = {
            let _working = claims.work(batch.iter().map(Outcome::ticket));
            transaction(|| {
                let settled = write(&batch, claims, pipeline, manner);
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
                    self.doubted.remove(&outcome.ticket());
                    let claim = claims.remove(outcome.ticket());
                    if settled.ended.contains(&outcome.ticket())
                        && let Some(claim) = claim
                    {
                        self.written.note(claim.pipeline, &claim.key, &outcome);
                        self.count(&outcome, &claim);
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
        let too_slow = Impatience::ran_out();
        if too_slow && !self.is_slow(pipeline.id) {
            self.slow.insert(pipeline.id, Instant::now());
            // With less at a time, next time.
            self.postpone(batch);
            return Err(error);
        }
        if error.is_transient() && !too_slow {
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
        if error.is_transient() && !too_slow {
            self.postpone(batch);
            self.not_before = Instant::now() + STUCK_WAIT;
            return Ok(());
        }
        let [Outcome::Embedded { ticket, .. }] = batch[..] else {
            // Not even the failure could be noted.
            self.postpone(batch);
            return Err(error);
        };
        if error.is_internal() && self.has_another_chance(ticket, claims) {
            self.postpone(batch);
            self.not_before = Instant::now() + STUCK_WAIT;
            return Ok(());
        }
        let only_this = self
            .accused(&batch[0], claims)
            .is_some_and(|accused| accused.others_written);
        // What takes so long for one document may take as long for each.
        let takes_nothing = match takes_nothing(pipeline, &error) {
            Ok(answer) => (answer || too_slow) && !only_this,
            Err(_) => {
                self.postpone(batch);
                self.not_before = Instant::now() + STUCK_WAIT;
                return Ok(());
            }
        };
        let error = if too_slow {
            slowness()
        } else {
            refusal(&error)
        };
        if takes_nothing {
            if let Err(error) = transaction(|| block_now(pipeline, &error)) {
                self.postpone(batch);
                return Err(error);
            }
            self.stuck.insert(pipeline.id);
            self.accuse(&batch[0], claims);
            self.kept.entry(pipeline.id).or_insert(Kept {
                error,
                outcomes: Vec::new(),
                chunks: 0,
            });
            self.keep_if_in_vain(&mut batch, pipeline.id);
        } else {
            batch = vec![Outcome::Failed {
                ticket,
                error: EmbedError {
                    model_unusable: false,
                    ..error
                },
            }];
        }
        self.settle_batch(batch, claims, pipeline, forgive, patience)
    }

    /// Whether a document whose target met an internal error is to be written once more.
    fn has_another_chance(&mut self, ticket: u64, claims: &Claims) -> bool {
        if self.doubted.len() >= MAX_ACCUSED && !self.doubted.contains_key(&ticket) {
            self.doubted.retain(|known, _| claims.get(*known).is_some());
            if self.doubted.len() >= MAX_ACCUSED {
                return false;
            }
        }
        let times = self.doubted.entry(ticket).or_default();
        *times += 1;
        *times <= SECOND_CHANCES
    }

    fn accuse(&mut self, outcome: &Outcome, claims: &Claims) {
        let Some(claim) = claims.get(outcome.ticket()) else {
            return;
        };
        if self.accused.len() >= MAX_ACCUSED {
            self.accused.clear();
        }
        let accused = Accused {
            pipeline: claim.pipeline,
            others_written: false,
        };
        self.accused.insert(claim.document, accused);
    }

    /// Takes out of a batch what need not be tried, because the pipeline's target has just been seen to take nothing. What
    /// there is no room for is given back, to be embedded once more.
    fn keep_if_in_vain(&mut self, batch: &mut Vec<Outcome>, pipeline: i32) {
        let mut chunks_kept: usize = self.kept.values().map(|kept| kept.chunks).sum();
        let Some(kept) = self.kept.get_mut(&pipeline) else {
            return;
        };
        for outcome in std::mem::take(batch) {
            match outcome {
                Outcome::Embedded { ref chunks, .. }
                    if chunks_kept + chunks.len() <= MAX_KEPT_CHUNKS =>
                {
                    chunks_kept += chunks.len();
                    kept.chunks += chunks.len();
                    kept.outcomes.push(outcome);
                }
                Outcome::Embedded { ticket, .. } => batch.push(Outcome::Unusable {
                    ticket,
                    error: kept.error.clone(),
                }),
                other => batch.push(other),
            }
        }
    }

    fn count(&mut self, outcome: &Outcome, claim: &Claim) {
        let (documents, tokens) = match outcome {
            Outcome::Embedded { chunks, .. } => {
                self.note_written(claim);
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

/// Cuts a list so that no transaction writes more than `most` chunks, but for a document that has more, and that what a process
/// may have died of is written alone.
fn batches(outcomes: Vec<Outcome>, claims: &Claims, most: usize) -> Vec<Vec<Outcome>> {
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
                    most.saturating_sub(chunks)
                };
                batches.push(vec![outcome]);
            }
        }
    }
    batches
}

/// Whether an error while writing a document's chunks says that the target takes none at all until somebody acts (it is gone,
/// forbidden, full or another table by now), and not that a constraint or a trigger refuses the rows of this document.
fn takes_nothing(pipeline: &Active, error: &SqlError) -> Result<bool, SqlError> {
    use PgSqlErrorCode as C;
    Ok(match error.code {
        C::ERRCODE_READ_ONLY_SQL_TRANSACTION
        | C::ERRCODE_INSUFFICIENT_RESOURCES
        | C::ERRCODE_DISK_FULL
        | C::ERRCODE_OUT_OF_MEMORY
        | C::ERRCODE_TOO_MANY_CONNECTIONS
        | C::ERRCODE_CONNECTION_FAILURE
        | C::ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION
        | C::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION
        | C::ERRCODE_IO_ERROR => true,
        // A trigger may raise anything for one document.
        _ => !accepts_no_rows(pipeline)?,
    })
}

/// The error that a target's refusal is to a document or a pipeline.
fn refusal(error: &SqlError) -> EmbedError {
    let message = format!("the target table refused the chunks: {error}");
    EmbedError {
        model_unusable: true,
        ..EmbedError::new(ErrorClass::Internal, message)
    }
}

/// The error that a target's slowness is to a document or a pipeline.
fn slowness() -> EmbedError {
    let seconds = PATIENCE.as_secs();
    let message = format!("the target table takes longer than {seconds} s for {FEW_ROWS} chunks");
    EmbedError {
        model_unusable: true,
        ..EmbedError::new(ErrorClass::Timeout, message)
    }
    .with_hint("A trigger or an index of it is too slow: others would wait for it.")
}
