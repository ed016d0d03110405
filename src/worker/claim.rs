//! Claiming: which documents this worker holds, taking more, and giving them back.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use embedder::{EmbedError, ErrorClass};
use engine::{Document, Engine, Outcome, Room, Working};
use injection::Point;
use pgrx::prelude::*;

use crate::errors::OrRaise;
use crate::journal::{Journal, Note};
use crate::settings;
use crate::sources;
use crate::worker::former;
use crate::worker::heads::Heads;
use crate::worker::pipelines::{Active, Pipelines};
use crate::worker::process::reach;
use crate::worker::queue::{Candidate, Limits, Taken, claim, forget_documents};
use crate::worker::transaction::{SqlError, run, transaction};
use crate::worker::unreadable::{Found, UnreadableRow};

/// Documents taken or written by one transaction at most.
pub const MAX_BATCH: usize = 512;
/// Wait before the next look at a document that somebody has locked.
const LOCKED_WAIT: Duration = Duration::from_millis(200);
/// Attempts, or deaths of a process, after which a document is sent alone.
const ALONE_AFTER: i32 = 2;

/// A document that this worker holds.
pub struct Claim {
    /// The document's id.
    pub document: i64,
    /// The number of its pipeline.
    pub pipeline: i32,
    /// What must still stand in its queue row when it is written.
    pub token: i64,
    /// Its key.
    pub key: String,
    /// Its metadata, as JSON text.
    pub metadata: String,
    /// Bytes that the queue counts for it.
    pub bytes: i32,
    /// Attempts before this one.
    pub attempts: i32,
    /// Whether it is written alone: it may be what a process died of.
    pub suspect: bool,
    /// Where it is noted.
    pub note: Note,
}

/// The documents that this worker holds.
pub struct Claims {
    worker: i32,
    journal: Journal,
    held: HashMap<u64, Claim>,
    /// Documents and tokens of claims that were given up and still stand in the queue.
    freeing: Vec<(i64, i64)>,
    /// The next ticket. Each submission has its own: a document that was changed while the engine had it is taken and
    /// submitted again, and the answer for its old content must not pass for the new one's.
    next_ticket: u64,
    /// Documents that end without the engine.
    refused: Vec<Outcome>,
    random: RandomState,
    takes: u64,
    turn: usize,
    held_back: bool,
    heads: Heads,
    look_again: Option<Duration>,
}

impl Claims {
    /// None yet, for worker `worker` of this database.
    pub fn new(worker: i32, journal: Journal) -> Self {
        Self {
            worker,
            journal,
            held: HashMap::new(),
            freeing: Vec::new(),
            next_ticket: 0,
            refused: Vec::new(),
            random: RandomState::new(),
            takes: 0,
            turn: 0,
            held_back: false,
            heads: Heads::default(),
            look_again: None,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The claim on a document.
    pub fn get(&self, ticket: u64) -> Option<&Claim> {
        self.held.get(&ticket)
    }

    /// Forgets a claim, settled or lost.
    pub fn remove(&mut self, ticket: u64) -> Option<Claim> {
        let claim = self.held.remove(&ticket)?;
        self.journal.release(claim.note);
        Some(claim)
    }

    /// The worker's journal.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Notes that the main thread works on these documents, until the guards are dropped.
    pub fn work(&self, tickets: impl Iterator<Item = u64>) -> Vec<Working> {
        let claims = tickets.filter_map(|ticket| self.held.get(&ticket));
        claims
            .map(|claim| self.journal.mark(claim.note).work())
            .collect()
    }

    /// Has the engine take back what should not be sent any more: documents whose claims are void, because they were changed
    /// or deleted, and those of paused pipelines, which wait in the queue again. Claims in the queue that this worker does
    /// not know of, after an error, are given up.
    pub fn review(&mut self, pipelines: &Pipelines, engine: &Engine) -> Result<(), SqlError> {
        let worker = self.worker;
        let standing = transaction(|| {
            Spi::connect_mut(|client| {
                let rows = run(
                    client,
                    "SELECT document_id, claim_token FROM ingest.queue WHERE claimed_by = $1",
                    &[worker.into()],
                )?;
                let mut standing = HashSet::new();
                for row in rows {
                    let document: Option<i64> = row["document_id"].value()?;
                    let token: Option<i64> = row["claim_token"].value()?;
                    standing.extend(document.zip(token));
                }
                Ok::<_, pgrx::spi::Error>(standing)
            })
            .or_raise()
        })?;
        let void: HashSet<u64> = self
            .held
            .iter()
            .filter(|(_, claim)| !standing.contains(&(claim.document, claim.token)))
            .map(|(ticket, _)| *ticket)
            .collect();
        let withdrawn = engine.withdraw(&void, &pipelines.paused());
        for ticket in withdrawn {
            if let Some(claim) = self.remove(ticket)
                && !void.contains(&ticket)
            {
                self.freeing.push((claim.document, claim.token));
            }
        }
        let known: HashSet<(i64, i64)> = self
            .held
            .values()
            .map(|claim| (claim.document, claim.token))
            .collect();
        self.freeing.extend(standing.difference(&known));
        self.free()
    }

    /// Frees in the queue what was given up.
    fn free(&mut self) -> Result<(), SqlError> {
        if self.freeing.is_empty() {
            return Ok(());
        }
        let (documents, tokens): (Vec<i64>, Vec<i64>) = self.freeing.iter().copied().unzip();
        transaction(|| {
            Spi::connect_mut(|client| {
                run(
                    client,
                    "UPDATE ingest.queue q SET claimed_by = NULL, claim_token = NULL
                     FROM unnest($1::bigint[], $2::bigint[]) AS u(document_id, claim_token)
                     WHERE q.document_id = u.document_id AND q.claim_token = u.claim_token",
                    &[documents.into(), tokens.into()],
                )
                .map(drop)
            })
            .or_raise();
        })?;
        self.freeing.clear();
        Ok(())
    }

    /// Whether the last attempt found a dump being restored.
    pub fn held_back(&self) -> bool {
        self.held_back
    }

    /// How long until the queue's head is to be looked at again, when the last attempt found nothing above it.
    pub fn look_again(&self) -> Option<Duration> {
        self.look_again
    }

    /// Documents that were refused before the engine saw them.
    pub fn take_refused(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.refused)
    }

    /// Takes documents while the engine has room, the pipelines in turns, and submits them. Returns the pipeline that some
    /// were taken of.
    pub fn take(
        &mut self,
        pipelines: &Pipelines,
        engine: &Engine,
        stuck: &[i32],
    ) -> Result<Option<i32>, SqlError> {
        self.free()?;
        self.held_back = false;
        self.look_again = None;
        let mut worst = Ok(None);
        let ready: Vec<&Active> = pipelines
            .ready()
            .filter(|pipeline| pipeline.yields_for.is_none() && !stuck.contains(&pipeline.id))
            .collect();
        for offset in 0..ready.len() {
            let index = (self.turn + offset) % ready.len();
            let (Ok(spec), Ok(_)) = (&ready[index].spec, &ready[index].target) else {
                continue;
            };
            let mut room = engine.room(spec);
            if ready[index].blocked_for.is_some() {
                // It may still be blocked: one document tells.
                room.documents = room.documents.min(1);
            }
            if !room.is_some() {
                continue;
            }
            match self.take_of(ready[index], spec, room, engine) {
                Ok(true) => {
                    self.turn = index + 1;
                    return Ok(Some(ready[index].id));
                }
                Ok(false) => {}
                // The others are not to suffer for it.
                Err(error) => worst = Err(error),
            }
        }
        worst
    }

    fn take_of(
        &mut self,
        active: &Active,
        spec: &Arc<engine::Pipeline>,
        room: Room,
        engine: &Engine,
    ) -> Result<bool, SqlError> {
        let pipeline = active.id;
        self.takes += 1;
        let token = self.random.hash_one((self.worker, self.takes)) as i64;
        let mut most = MAX_BATCH.min(room.documents);
        let worker = self.worker;
        let from = self.heads.next(pipeline);
        let mut unreadable = None;
        let mut row = None;
        let claimed = loop {
            let limits = Limits {
                documents: most,
                bytes: room.bytes,
                former_chunks: former::chunks_of_a_batch(active),
                chunk_bytes: former::chunk_bytes(&spec.split),
                read: unreadable.is_none(),
                unreadable: row
                    .as_ref()
                    .map(|unreadable: &UnreadableRow| unreadable.document),
            };
            let journal = &mut self.journal;
            let defined = (pipeline, spec.generation);
            let claimed = transaction(|| claim(defined, worker, token, from, limits, journal));
            let place = sources::take_place();
            match (claimed, place) {
                (Ok(claimed), _) => break claimed,
                (Err(error), Some(place)) => match UnreadableRow::find(error, &place, active)? {
                    Found::Nothing => return Ok(false),
                    Found::Slow => most = place.before,
                    Found::Row(found) => {
                        most = place.before + 1;
                        row = Some(found);
                    }
                },
                (Err(error), None) if error.is_transient() || unreadable.is_some() => {
                    return Err(error);
                }
                // Perhaps one of them cannot be read (a damaged table): it is found, and fails alone.
                (Err(_), None) if most > 1 => most /= 2,
                (Err(error), None) => unreadable = Some(error),
            }
        };
        reach(Point::AfterClaim)?;
        let Some(claimed) = claimed else {
            self.held_back = true;
            return Ok(false);
        };
        let (candidates, taken) = (claimed.candidates, claimed.taken);
        let last = candidates.last().map(|candidate| candidate.id);
        self.heads.looked(pipeline, from, claimed.looking, last);
        let any = last.is_some();
        let again = [
            (!any && from.is_some()).then(|| self.heads.wait(pipeline)),
            // Whoever has it locked may leave it as it was, and tell nobody.
            claimed.locked.then_some(LOCKED_WAIT),
            // It may be one of a pipeline that was looked at before.
            claimed.due.then_some(Duration::ZERO),
        ];
        self.look_again = again.into_iter().flatten().chain(self.look_again).min();
        let sizes: HashMap<i64, &Candidate> = candidates.iter().map(|c| (c.id, c)).collect();
        let revised = |document: &&Taken| sizes.get(&document.id).is_some_and(|c| c.revised);
        let revised: Vec<&str> = taken
            .iter()
            .filter(revised)
            .map(|t| t.key.as_str())
            .collect();
        let mut former = former::read(active, &revised);
        let mut gone = Vec::new();
        for document in taken {
            let Some(candidate) = sizes.get(&document.id) else {
                continue;
            };
            if document.row.as_ref().is_some_and(|row| row.is_gone) {
                gone.push(document.id);
                continue;
            }
            let bytes = document
                .row
                .as_ref()
                .map_or(candidate.bytes, |row| row.bytes);
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            let alone = candidate.attempts >= ALONE_AFTER || candidate.crashes >= ALONE_AFTER;
            let note = self.journal.hold(document.id);
            let former = former.remove(&document.key).unwrap_or_default();
            self.held.insert(
                ticket,
                Claim {
                    document: document.id,
                    pipeline,
                    token,
                    key: document.key,
                    metadata: document.metadata,
                    bytes: candidate.bytes,
                    attempts: candidate.attempts,
                    suspect: candidate.crashes > 0,
                    note,
                },
            );
            match document.content {
                _ if bytes as usize > settings::max_document_size() => {
                    self.refuse(
                        ticket,
                        ErrorClass::TooLarge,
                        format!(
                            "the content has {} bytes; pg_ingest.max_document_size is {}",
                            bytes,
                            settings::max_document_size()
                        ),
                    );
                }
                None => {
                    let (class, message) = match (&row, &unreadable) {
                        (Some(row), _) if row.document == candidate.id => {
                            (row.class, row.message.clone())
                        }
                        (_, Some(error)) => (
                            ErrorClass::Internal,
                            format!("the document cannot be read: {error}"),
                        ),
                        _ => (ErrorClass::InvalidRequest, "the content is null".into()),
                    };
                    self.refuse(ticket, class, message);
                }
                Some(content) => engine.submit(Document {
                    ticket,
                    pipeline: Arc::clone(spec),
                    content,
                    former,
                    alone,
                    mark: self.journal.mark(note),
                }),
            }
        }
        self.forget(gone, token)?;
        Ok(any)
    }

    /// Removes documents whose rows are gone, unless these have come back meanwhile.
    fn forget(&mut self, gone: Vec<i64>, token: i64) -> Result<(), SqlError> {
        if gone.is_empty() {
            return Ok(());
        }
        let forgotten = transaction(|| forget_documents(&gone, token));
        if forgotten.is_err() {
            self.freeing
                .extend(gone.into_iter().map(|document| (document, token)));
        }
        forgotten
    }

    fn refuse(&mut self, ticket: u64, class: ErrorClass, message: String) {
        let error = EmbedError::new(class, message);
        self.refused.push(Outcome::Failed { ticket, error });
    }

    /// How long until the first document's next attempt; nothing while there is no room for it anyway.
    pub fn next_retry(
        &self,
        pipelines: &Pipelines,
        engine: &Engine,
    ) -> Result<Option<Duration>, SqlError> {
        let ready: Vec<i32> = pipelines
            .ready()
            .filter(|p| {
                p.spec
                    .as_ref()
                    .is_ok_and(|spec| engine.room(spec).is_some())
            })
            .map(|pipeline| pipeline.id)
            .collect();
        if ready.is_empty() {
            return Ok(None);
        }
        let seconds = transaction(|| {
            Spi::connect_mut(|client| {
                run(
                    client,
                    "SELECT extract(epoch FROM min(retry_at) - clock_timestamp())::float8 FROM ingest.queue
                     WHERE retry_at IS NOT NULL AND claimed_by IS NULL AND pipeline_id = ANY ($1)",
                    &[ready.into()],
                )?
                .first()
                .get_one::<f64>()
            })
            .or_raise()
        })?;
        // One that is due and was not taken is locked by somebody; a moment later it is not.
        Ok(seconds.map(|s| Duration::from_secs_f64(s.clamp(0.1, 1e6))))
    }
}
