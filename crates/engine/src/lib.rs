//! Documents in, embedded documents out. Threads and channels; no SQL and nothing of Postgres.
//!
//! The way through: [`Engine::submit`] puts a [`Document`] on the splitter's channel; the splitter ([`split`]) cuts it
//! into chunks and packs them ([`pack`]) into requests that may hold chunks of several documents; callers ([`call`])
//! have them embedded, bisecting a refused request until the bad input stands alone; the last answer for a document
//! ([`assembly`]) makes its [`Outcome`], which [`Engine::poll`] hands to the worker. [`queries`] answers searches beside
//! all that, ahead of the backlog. Models are loaded once ([`models`]) and shared by every thread.
//!
//! Memory is bounded by what is submitted: ask [`Engine::has_room`] first.

mod assembly;
mod call;
mod models;
mod pack;
mod queries;
mod split;
mod threads;

pub use assembly::{EmbeddedChunk, Outcome};
pub use models::Models;
pub use queries::Queries;
pub use threads::{run_with_signals_blocked, spawn_with_signals_blocked};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use chunker::SplitOptions;
use embedder::ModelName;

/// What the engine must know of a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// Its number; only handed back.
    pub id: i32,
    /// The model, as `provider/name`.
    pub model: ModelName,
    /// Numbers in a vector. An answer with another count is refused.
    pub dimensions: usize,
    /// How documents are split; token counts are the model's.
    pub split: SplitOptions,
    /// Most inputs in a request; `None` for the model's own.
    pub batch_size: Option<usize>,
}

/// A document to embed.
#[derive(Debug)]
pub struct Document {
    /// The caller's number for it, handed back in the [`Outcome`].
    pub ticket: u64,
    /// The pipeline that it belongs to.
    pub pipeline: Arc<Pipeline>,
    /// Its text.
    pub content: String,
}

/// Limits of an engine.
pub struct Config {
    /// The directory that holds a directory for each local model.
    pub model_dir: PathBuf,
    /// Threads for local inference, each at the lowest priority (nice 19). At least 1.
    pub inference_threads: usize,
    /// Documents held at most, from submit to poll.
    pub max_documents: usize,
    /// Bytes of text held at most, from submit to poll. The last document taken may exceed it.
    pub max_bytes: usize,
    /// Called from any thread whenever [`Engine::poll`] has something new.
    pub notify: Arc<dyn Fn() + Send + Sync>,
}

/// What is held now, shared by all stages.
#[derive(Default)]
struct Load {
    documents: AtomicUsize,
    bytes: AtomicUsize,
    requests: AtomicUsize,
}

/// The running threads. Dropping it ends them after what they are doing; the process may also just exit.
pub struct Engine {
    inbox: Sender<Document>,
    outcomes: Receiver<(Outcome, usize)>,
    load: Arc<Load>,
    models: Arc<Models>,
    max_documents: usize,
    max_bytes: usize,
}

impl Engine {
    /// Starts the threads. Fails when the system refuses one.
    pub fn start(config: Config) -> std::io::Result<Self> {
        let load = Arc::new(Load::default());
        let models = Arc::new(Models::new(config.model_dir));
        let (inbox, documents) = channel::<Document>();
        let (results, outcomes) = channel();
        let results = assembly::Results::new(results, config.notify);
        // A short queue: the splitter waits when the callers are busy, so a huge document is cut as it is embedded.
        let (requests, calls) = sync_channel(2 * config.inference_threads.max(1));
        call::start(config.inference_threads.max(1), calls, &load)?;
        split::start(documents, requests, results, &models)?;
        Ok(Self {
            inbox,
            outcomes,
            load,
            models,
            max_documents: config.max_documents.max(1),
            max_bytes: config.max_bytes.max(1),
        })
    }

    /// Whether another document may be submitted.
    pub fn has_room(&self) -> bool {
        self.free_documents() > 0 && self.free_bytes() > 0
    }

    /// How many more documents may be submitted now.
    pub fn free_documents(&self) -> usize {
        self.max_documents
            .saturating_sub(self.load.documents.load(Ordering::Relaxed))
    }

    /// How many more bytes of text may be submitted now; the last document may exceed it.
    pub fn free_bytes(&self) -> usize {
        self.max_bytes
            .saturating_sub(self.load.bytes.load(Ordering::Relaxed))
    }

    /// Documents submitted and not yet polled.
    pub fn documents_in_flight(&self) -> usize {
        self.load.documents.load(Ordering::Relaxed)
    }

    /// Requests being answered.
    pub fn requests_in_flight(&self) -> usize {
        self.load.requests.load(Ordering::Relaxed)
    }

    /// Takes a document. It comes back as exactly one [`Outcome`].
    pub fn submit(&self, document: Document) {
        self.load.documents.fetch_add(1, Ordering::Relaxed);
        self.load
            .bytes
            .fetch_add(document.content.len(), Ordering::Relaxed);
        // The splitter ends only when this sender is dropped.
        let _ = self.inbox.send(document);
    }

    /// Up to `max` finished documents, at once; empty when there are none.
    pub fn poll(&self, max: usize) -> Vec<Outcome> {
        let mut finished = Vec::new();
        while finished.len() < max {
            let Ok((outcome, bytes)) = self.outcomes.try_recv() else {
                break;
            };
            self.load.documents.fetch_sub(1, Ordering::Relaxed);
            self.load.bytes.fetch_sub(bytes, Ordering::Relaxed);
            finished.push(outcome);
        }
        finished
    }

    /// A handle for embedding queries, for any thread.
    pub fn queries(&self) -> Queries {
        Queries::new(Arc::clone(&self.models))
    }
}

#[cfg(test)]
mod tests;
