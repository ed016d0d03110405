//! Putting a document's chunks together again when the answers for them have come, in whatever order.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use embedder::EmbedError;

/// A chunk with its vector.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddedChunk {
    /// The chunk's text.
    pub content: String,
    /// Its length in tokens of the model, without the markers that the model adds.
    pub tokens: usize,
    /// Its vector, as long as the pipeline's dimensions.
    pub embedding: Vec<f32>,
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
    },
    /// This document could not be embedded; others are not concerned.
    Failed {
        /// The document's ticket.
        ticket: u64,
        /// Why.
        error: EmbedError,
    },
    /// The model itself cannot be used: nothing is said about the document.
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

    /// The outcome for a document that `error` ended.
    pub(crate) fn from_error(ticket: u64, error: EmbedError) -> Self {
        if error.model_unusable {
            Self::Unusable { ticket, error }
        } else {
            Self::Failed { ticket, error }
        }
    }
}

/// Where outcomes go, with the bytes of text that each frees.
#[derive(Clone)]
pub(crate) struct Results {
    sender: Sender<(Outcome, usize)>,
    notify: Arc<dyn Fn() + Send + Sync>,
}

impl Results {
    pub(crate) fn new(
        sender: Sender<(Outcome, usize)>,
        notify: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { sender, notify }
    }

    pub(crate) fn send(&self, outcome: Outcome, bytes: usize) {
        // The receiver is gone only when the engine is being dropped.
        let _ = self.sender.send((outcome, bytes));
        (self.notify)();
    }
}

/// A document whose chunks are being embedded.
pub(crate) struct Assembly {
    ticket: u64,
    bytes: usize,
    results: Results,
    state: Mutex<State>,
}

struct State {
    chunks: Vec<EmbeddedChunk>,
    missing: usize,
    ended: bool,
}

impl Assembly {
    /// A document of `chunks`, whose vectors are still empty.
    pub(crate) fn new(
        ticket: u64,
        bytes: usize,
        chunks: Vec<EmbeddedChunk>,
        results: Results,
    ) -> Self {
        Self {
            ticket,
            bytes,
            results,
            state: Mutex::new(State {
                missing: chunks.len(),
                chunks,
                ended: false,
            }),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text of a chunk, copied; `None` once the document has ended and asking further is a waste.
    pub(crate) fn text(&self, chunk: usize) -> Option<String> {
        let state = self.state();
        (!state.ended).then(|| state.chunks[chunk].content.clone())
    }

    /// Takes the vector of a chunk; the last one ends the document.
    pub(crate) fn embedded(&self, chunk: usize, embedding: Vec<f32>) {
        let mut state = self.state();
        if state.ended {
            return;
        }
        debug_assert!(state.chunks[chunk].embedding.is_empty());
        state.chunks[chunk].embedding = embedding;
        state.missing -= 1;
        if state.missing == 0 {
            state.ended = true;
            let chunks = std::mem::take(&mut state.chunks);
            drop(state);
            self.results.send(
                Outcome::Embedded {
                    ticket: self.ticket,
                    chunks,
                },
                self.bytes,
            );
        }
    }

    /// Ends the document with an error; only the first counts.
    pub(crate) fn failed(&self, error: EmbedError) {
        let mut state = self.state();
        if state.ended {
            return;
        }
        state.ended = true;
        state.chunks = Vec::new();
        drop(state);
        self.results
            .send(Outcome::from_error(self.ticket, error), self.bytes);
    }
}
