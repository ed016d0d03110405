//! Putting a document's chunks together again when the answers for them have come, in whatever order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use embedder::{EmbedError, ErrorClass};

use crate::mark::Mark;
use crate::once::Text;
use crate::usage::Reservation;
use crate::vectors::Vector;

/// A chunk with its vector.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddedChunk {
    /// The chunk's text.
    pub content: String,
    /// Its length in tokens of the model, without the markers that the model adds.
    pub tokens: usize,
    /// Its vector, as long as the pipeline's dimensions.
    pub embedding: Vector,
    /// Whether the vector was there already, so that it cost nothing.
    pub reused: bool,
}

/// How a document ended.
#[derive(Debug)]
pub enum Outcome {
    /// All its chunks, in order.
    Embedded {
        /// The document's ticket.
        ticket: u64,
        /// At least one chunk.
        chunks: Vec<EmbeddedChunk>,
        /// What the engine knows its texts by: the vectors were made as its pipeline was defined then, or later.
        recipe: u32,
    },
    /// This document could not be embedded; others are not concerned.
    Failed {
        /// The document's ticket.
        ticket: u64,
        /// Why.
        error: EmbedError,
    },
    /// The model cannot be used, the key is refused or the quota is spent: nothing is said about the document.
    Unusable {
        /// The document's ticket.
        ticket: u64,
        /// Why.
        error: EmbedError,
    },
}

impl Outcome {
    /// The ticket of the document that ended.
    pub fn ticket(&self) -> u64 {
        match self {
            Self::Embedded { ticket, .. }
            | Self::Failed { ticket, .. }
            | Self::Unusable { ticket, .. } => *ticket,
        }
    }

    /// Whether the provider refused the key.
    pub fn key_was_refused(&self) -> bool {
        matches!(self, Self::Unusable { error, .. } if error.class == ErrorClass::Auth)
    }

    /// The outcome for a document that `error` ended.
    pub(crate) fn from_error(ticket: u64, error: EmbedError) -> Self {
        if error.blocks_pipeline() {
            Self::Unusable { ticket, error }
        } else {
            Self::Failed { ticket, error }
        }
    }
}

/// Where outcomes go, each with the room that it frees when it is taken.
#[derive(Clone)]
pub(crate) struct Results {
    sender: Sender<(Outcome, Reservation)>,
    notify: Arc<dyn Fn() + Send + Sync>,
}

impl Results {
    pub(crate) fn new(
        sender: Sender<(Outcome, Reservation)>,
        notify: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { sender, notify }
    }

    pub(crate) fn send(&self, outcome: Outcome, room: Reservation) {
        // The receiver is gone only when the engine is being dropped.
        let _ = self.sender.send((outcome, room));
        (self.notify)();
    }

    /// Has the engine's user look, though there is no new outcome.
    pub(crate) fn ring(&self) {
        (self.notify)();
    }
}

/// A document whose chunks are being embedded.
pub(crate) struct Assembly {
    ticket: u64,
    mark: Mark,
    recipe: u32,
    results: Results,
    /// Whether a request with one of its chunks has been sent.
    begun: AtomicBool,
    state: Mutex<State>,
}

struct State {
    chunks: Vec<EmbeddedChunk>,
    missing: usize,
    /// Until it has ended.
    room: Option<Reservation>,
}

impl Assembly {
    /// A document of `chunks`, whose vectors are still empty, to be made by a recipe or a newer one.
    pub(crate) fn new(
        (ticket, mark, recipe): (u64, Mark, u32),
        room: Reservation,
        chunks: Vec<EmbeddedChunk>,
        results: Results,
    ) -> Self {
        Self {
            ticket,
            mark,
            recipe,
            results,
            begun: AtomicBool::new(false),
            state: Mutex::new(State {
                missing: chunks.len(),
                chunks,
                room: Some(room),
            }),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text of a chunk, copied; `None` once the document has ended and asking further is a waste.
    pub(crate) fn text(&self, chunk: usize) -> Option<String> {
        let state = self.state();
        (state.room.is_some()).then(|| state.chunks[chunk].content.clone())
    }

    /// The document's ticket.
    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Notes that one of its chunks is being sent.
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Whether one of its chunks was sent.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().room.is_none()
    }

    /// Takes the vector of a chunk; the last one ends the document.
    pub(crate) fn embedded(&self, chunk: usize, embedding: Vector) {
        self.take(chunk, embedding, false);
    }

    /// The same with a vector that was there already.
    pub(crate) fn reused(&self, chunk: usize, embedding: Vector) {
        self.take(chunk, embedding, true);
    }

    fn take(&self, chunk: usize, embedding: Vector, reused: bool) {
        let mut state = self.state();
        if state.room.is_none() {
            return;
        }
        debug_assert!(state.chunks[chunk].embedding.is_empty());
        state.chunks[chunk].embedding = embedding;
        state.chunks[chunk].reused = reused;
        state.missing -= 1;
        if state.missing == 0
            && let Some(room) = state.room.take()
        {
            let chunks = std::mem::take(&mut state.chunks);
            drop(state);
            let embedded = Outcome::Embedded {
                ticket: self.ticket,
                chunks,
                recipe: self.recipe,
            };
            self.results.send(embedded, room);
        }
    }

    /// Ends the document with an error; only the first counts.
    pub(crate) fn failed(&self, error: EmbedError) {
        let mut state = self.state();
        let Some(room) = state.room.take() else {
            return;
        };
        state.chunks = Vec::new();
        drop(state);
        self.results
            .send(Outcome::from_error(self.ticket, error), room);
    }
}

/// A chunk on its way into a request.
pub(crate) struct Part {
    pub(crate) document: Arc<Assembly>,
    pub(crate) chunk: usize,
    pub(crate) text: Text,
}

/// The marks of the documents of these parts, each once where a document's parts come one after the other.
pub(crate) fn marks<'a>(parts: impl Iterator<Item = &'a Part>) -> Vec<Mark> {
    let mut marks: Vec<Mark> = parts.map(|part| part.document.mark).collect();
    marks.dedup();
    marks
}
