//! Documents in, embedded documents out. Threads and channels; no SQL and nothing of Postgres.
//!
//! The way through: [`Engine::submit`] puts a [`Document`] on the splitters' channel; a splitter ([`split`]) cuts it into
//! chunks, which join a backlog; requests, which may hold chunks of several documents, are packed from it ([`pack`]) when
//! they can be sent: by the threads that run a local model ([`local`]), or by the pipeline's lane to a remote one
//! ([`remote`]), which has to ask its budget first. The last answer for a document ([`assembly`]) makes its [`Outcome`],
//! which [`Engine::poll`] hands to the worker. A text that is known, or on its way already, is not sent again ([`once`]); one
//! that the worker has written is looked for there first ([`Engine::next_look_up`]).
//! [`queries`] answers searches beside all that, ahead of the backlog. Models
//! are loaded once ([`models`]) and shared by every thread.
//!
//! Memory is bounded by what is submitted: ask [`Engine::room`] first.

mod assembly;
mod local;
mod mark;
mod models;
mod once;
mod pack;
mod pipeline;
mod places;
mod queries;
mod remote;
mod split;
mod threads;
mod usage;
mod vectors;

/// For the fuzz targets in `tests/fuzz_targets` and for nobody else.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::pack::{Backlog, Capacity, Item, Packed};
}

pub use assembly::{EmbeddedChunk, Outcome};
pub use mark::{Mark, Working};
use models::Models;
pub use once::{LookUp, Written};
pub use pipeline::{Budget, Definitions, Pipeline, Remote};
pub use queries::Queries;
pub use remote::{Event, stop_sending};
pub use threads::{run_with_signals_blocked, spawn_with_signals_blocked};
pub use vectors::Vector;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use limiter::Now;
use local::LocalQueue;
use once::Once;
use remote::Remotes;
use split::Submitted;
use usage::{Reservation, Usage};

/// Documents held at most for local models, and bytes of their text: some ten seconds' work, so that a crash repeats
/// little and several workers share a backlog evenly.
const LOCAL_ROOM: Room = Room {
    documents: 128,
    bytes: 256 * 1024,
};
/// Documents held at most for a remote pipeline.
const REMOTE_DOCUMENTS: usize = 16 * 1024;
/// Bytes of text held at least and at most for a remote pipeline; in between it is [`REQUESTS_AHEAD`].
const REMOTE_BYTES: (usize, usize) = (64 * 1024, 32 * 1024 * 1024);
/// Requests' worth of text held for each request that may be in flight: one that is, and one that waits.
const REQUESTS_AHEAD: usize = 2;
/// Bytes of text that a token stands for: English prose has four to five.
const BYTES_PER_TOKEN: usize = 5;
/// Bytes of text held at most for all pipelines together.
const ALL_BYTES: usize = 64 * 1024 * 1024;

/// What a budget allows in so many parts of a minute is held at most (ten seconds): what is held longer than it takes to
/// send it may be changed or deleted meanwhile.
const MINUTE_PARTS: u64 = 6;
/// A cool-down longer than this is worth holding hardly anything.
const LONG_COOL_DOWN: Duration = Duration::from_secs(60);

/// How much of a remote pipeline is held at most.
fn remote_room(pipeline: &Pipeline, remote: &Remote) -> Room {
    let capacity = pipeline.capacity();
    let concurrency = remote.concurrency as usize;
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let now = remote.budget.limit.snapshot(Now::read());
    let in_ten_seconds =
        |target: Option<u64>| target.map_or(usize::MAX, |n| size(n / MINUTE_PARTS));
    let requests =
        in_ten_seconds(now.targets.requests_per_minute).max(REQUESTS_AHEAD * concurrency);
    let documents = requests
        .saturating_mul(capacity.inputs)
        .min(REMOTE_DOCUMENTS);
    let bytes = concurrency
        .saturating_mul(REQUESTS_AHEAD)
        .saturating_mul(capacity.tokens)
        .min(in_ten_seconds(now.targets.tokens_per_minute).max(capacity.tokens))
        .saturating_mul(BYTES_PER_TOKEN)
        .clamp(REMOTE_BYTES.0, REMOTE_BYTES.1);
    let rests = now.day_is_spent
        || now
            .cooling_down_for
            .is_some_and(|wait| wait > LONG_COOL_DOWN);
    Room {
        documents: if rests {
            documents.min(concurrency)
        } else {
            documents
        },
        bytes,
    }
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
    /// Chunks of its former content that are still there, embedded as the pipeline is defined now: what has not changed is not
    /// embedded again. In any order.
    pub former: Vec<FormerChunk>,
    /// Whether its chunks share requests with no other document's: it may be to blame for what befell others.
    pub alone: bool,
    /// Where it is noted while a thread works on it.
    pub mark: Mark,
}

/// A chunk that a document had before it changed.
#[derive(Debug, Clone, PartialEq)]
pub struct FormerChunk {
    /// Its text.
    pub content: String,
    /// Its vector. One of another length than the pipeline's is not used.
    pub embedding: Vec<f32>,
}

impl FormerChunk {
    /// Bytes that it takes in memory.
    fn size(&self) -> usize {
        self.content.len() + size_of_val(&self.embedding[..])
    }
}

/// How much more may be submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Documents.
    pub documents: usize,
    /// Bytes of text; the last document may exceed it.
    pub bytes: usize,
}

impl Room {
    /// Whether there is room for a document.
    pub fn is_some(self) -> bool {
        self.documents > 0 && self.bytes > 0
    }

    fn less(self, usage: &Usage) -> Self {
        Self {
            documents: self.documents.saturating_sub(usage.documents()),
            bytes: self.bytes.saturating_sub(usage.bytes()),
        }
    }
}

/// How an engine is made.
pub struct Config {
    /// The directory that holds a directory for each local model.
    pub model_dir: PathBuf,
    /// Threads for local inference, each at the lowest priority (nice 19). At least 1.
    pub inference_threads: usize,
    /// Threads that split documents and count tokens, at a low priority (nice 5). At least 1.
    pub split_threads: usize,
    /// Bytes of vectors, and of where they were written, remembered at most, for texts that come again.
    pub vector_cache: usize,
    /// Where the number of requests being answered is kept, for those who watch.
    pub requests_in_flight: &'static AtomicI32,
    /// Called from any thread whenever [`Engine::poll`], [`Engine::take_events`] or [`Engine::next_look_up`] has something new.
    pub notify: Arc<dyn Fn() + Send + Sync>,
}

/// The running threads. Dropping it ends them after what they are doing; the process may also just exit.
pub struct Engine {
    inbox: Sender<Submitted>,
    outcomes: Receiver<(Outcome, Reservation)>,
    local: Arc<LocalQueue>,
    local_usage: Arc<Usage>,
    remotes: Arc<Remotes>,
    usage: Arc<Usage>,
    queries: Queries,
    once: Arc<Once>,
}

impl Engine {
    /// Starts the threads. Fails when the system refuses one.
    pub fn start(config: Config) -> std::io::Result<Self> {
        let models = Arc::new(Models::new(config.model_dir));
        let (inbox, documents) = channel();
        let (results, outcomes) = channel();
        let once = Arc::new(Once::new(config.vector_cache, Arc::clone(&config.notify)));
        let results = assembly::Results::new(results, config.notify);
        let requests = config.requests_in_flight;
        let remotes = Arc::new(Remotes::new(results.clone(), Arc::clone(&once), requests));
        let local = Arc::new(LocalQueue::new(Arc::clone(&once), requests));
        local::start(config.inference_threads.max(1), &local)?;
        let context = split::Context {
            models: Arc::clone(&models),
            once: Arc::clone(&once),
            results,
            local: Arc::clone(&local),
            remotes: Arc::clone(&remotes),
        };
        split::start(config.split_threads.max(1), documents, context)?;
        let queries = Queries::new(models, Arc::clone(&remotes));
        Ok(Self {
            inbox,
            outcomes,
            local,
            local_usage: Arc::default(),
            remotes,
            usage: Arc::default(),
            queries,
            once,
        })
    }

    /// Takes the present definitions of all pipelines: what waits is sent by them, and what waits for a pipeline that is not
    /// among them fails.
    pub fn configure(&self, definitions: Definitions) {
        self.remotes.configure(&definitions);
        self.queries.configure(definitions);
    }

    /// How much more of a pipeline may be submitted now.
    pub fn room(&self, pipeline: &Arc<Pipeline>) -> Room {
        let all = ALL_BYTES.saturating_sub(self.usage.bytes());
        let room = match &pipeline.remote {
            None => LOCAL_ROOM.less(&self.local_usage),
            Some(remote) => remote_room(pipeline, remote).less(&self.remotes.lane(pipeline).usage),
        };
        Room {
            bytes: room.bytes.min(all),
            ..room
        }
    }

    /// Documents submitted and not yet polled.
    pub fn documents_in_flight(&self) -> usize {
        self.usage.documents()
    }

    /// Takes a document. It comes back as exactly one [`Outcome`].
    pub fn submit(&self, document: Document) {
        let lane = document
            .pipeline
            .remote
            .is_some()
            .then(|| self.remotes.lane(&document.pipeline));
        let usage = lane.as_ref().map_or(&self.local_usage, |lane| &lane.usage);
        let room = Reservation::new(
            [Arc::clone(usage), Arc::clone(&self.usage)],
            1,
            document.content.len(),
        );
        let former: usize = document.former.iter().map(FormerChunk::size).sum();
        if let Some(lane) = &lane {
            lane.will_be_split();
        }
        // The splitters end only when this sender is dropped.
        let _ = self.inbox.send(Submitted {
            document,
            room,
            former: Reservation::new([Arc::clone(&self.usage)], 0, former),
            lane,
        });
    }

    /// Up to `max` finished documents, at once; empty when there are none.
    pub fn poll(&self, max: usize) -> Vec<Outcome> {
        let finished = self.outcomes.try_iter().take(max);
        finished.map(|(outcome, _room)| outcome).collect()
    }

    /// Takes back documents that wait for a remote model: those with these tickets, and all of these pipelines of which
    /// nothing has been sent. Their tickets are returned; what they end with means nothing.
    pub fn withdraw(&self, tickets: &HashSet<u64>, paused: &[i32]) -> Vec<u64> {
        self.remotes.withdraw(tickets, paused)
    }

    /// What happened since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        self.remotes.take_events()
    }

    /// Chunks whose vectors this process wrote and no longer remembers: the caller should read them from the target. At most
    /// `most(pipeline)` chunks of the target have to be read for it, or one document's.
    pub fn next_look_up(&self, most: impl Fn(i32) -> usize) -> Option<LookUp> {
        self.once.next_look_up(most)
    }

    /// A handle for noting what was written.
    pub fn written(&self) -> Written {
        Written(Arc::clone(&self.once))
    }

    /// A handle for embedding queries, for any thread.
    pub fn queries(&self) -> Queries {
        self.queries.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.local.close();
        self.remotes.configure(&Definitions::new());
        // They end at their homes, which are closed.
        while self.next_look_up(|_| usize::MAX).is_some() {}
    }
}

#[cfg(test)]
mod tests;
