//! Remote models: one thread with an asynchronous runtime, on it a lane for each pipeline.
//!
//! A lane ([`lane`]) takes a place among the pipeline's requests in flight, asks the budget, and only then packs what waits
//! into a request. What comes back ([`exchange`]) goes to the documents; a request that was refused for the moment (429) goes
//! back to the front and costs nobody an attempt; one that was refused for what is in it is halved. A query ([`query`]) goes
//! ahead of all that waits. Every request is one [`call`].

mod call;
mod exchange;
mod lane;
mod query;

pub(crate) use lane::Lane;
pub use lane::stop_sending;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use embedder::remote::Client;
use embedder::{EmbedError, ErrorClass};
use tokio::runtime::Handle;

use crate::assembly::{Part, Results};
use crate::once::{Home, Once};
use crate::pack::Item;
use crate::pipeline::{Definitions, Pipeline, Remote};
use crate::threads::spawn_with_signals_blocked;

/// What a pipeline with a local model is answered with here.
const NOT_REMOTE: &str = "the pipeline has no remote model";
/// What a runtime that does not run is answered with.
const NOT_RUNNING: &str = "the thread for remote calls could not be started";

/// Something that happened and that the worker should know, without any content or key.
#[derive(Debug, Clone)]
pub enum Event {
    /// A request was refused for the moment.
    Throttled {
        /// The pipeline.
        pipeline: i32,
        /// Inputs of the request.
        inputs: usize,
        /// How often this request has been sent.
        attempt: u32,
        /// What the provider said.
        error: EmbedError,
        /// How long everybody on its limit waits before the next request.
        wait: Duration,
    },
    /// The key was refused to a query, which waits a moment for another one.
    KeyRefused {
        /// The pipeline.
        pipeline: i32,
    },
}

/// The lanes and the thread that serves them.
pub(crate) struct Remotes {
    lanes: Mutex<HashMap<i32, Arc<Lane>>>,
    runtime: OnceLock<Option<Handle>>,
    client: Mutex<Option<(Duration, Client)>>,
    events: Mutex<Vec<Event>>,
    requests: &'static AtomicI32,
    once: Arc<Once>,
    results: Results,
}

impl Remotes {
    pub(crate) fn new(results: Results, once: Arc<Once>, requests: &'static AtomicI32) -> Self {
        Self {
            lanes: Mutex::default(),
            runtime: OnceLock::new(),
            client: Mutex::default(),
            events: Mutex::default(),
            requests,
            once,
            results,
        }
    }

    /// The thread, started when there is a remote pipeline: a worker without has none.
    fn runtime(&self) -> Result<&Handle, EmbedError> {
        self.runtime
            .get_or_init(|| start_runtime().ok())
            .as_ref()
            .ok_or_else(|| EmbedError::model_unusable(NOT_RUNNING))
    }

    /// The connections, made anew when the time to wait for one has changed.
    fn client(&self, remote: &Remote) -> Result<Client, EmbedError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((timeout, client)) = &*client
            && *timeout == remote.connect_timeout
        {
            return Ok(client.clone());
        }
        let fresh = Client::new(remote.connect_timeout)?;
        *client = Some((remote.connect_timeout, fresh.clone()));
        Ok(fresh)
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<i32, Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane of a pipeline.
    pub(crate) fn lane(&self, pipeline: &Arc<Pipeline>) -> Arc<Lane> {
        let mut lanes = self.lanes();
        let lane = lanes
            .entry(pipeline.id)
            .or_insert_with(|| Arc::new(Lane::new(Arc::clone(pipeline))));
        Arc::clone(lane)
    }

    /// Takes the present definitions; what waits for a pipeline that is gone ends. One that cannot be used just now keeps
    /// what it has, by the definition that it had.
    pub(crate) fn configure(&self, definitions: &Definitions) {
        if definitions.values().flatten().any(|p| p.remote.is_some()) {
            // From here, because a thread inherits the priority of the one that starts it, and splitters have a low one.
            let _ = self.runtime();
        }
        let mut lanes = self.lanes();
        lanes.retain(|id, lane| {
            // One whose model is a local one by now needs no lane.
            let definition = definitions
                .get(id)
                .filter(|known| known.as_ref().map_or(true, |known| known.remote.is_some()));
            match definition {
                Some(Ok(pipeline)) => lane.state().pipeline = Arc::clone(pipeline),
                Some(Err(_)) => {}
                None => {
                    lane.state().closed = true;
                    lane.fail_all(&dropped());
                }
            }
            lane.changed.notify_one();
            definition.is_some()
        });
    }

    /// Ends documents that wait, to be sent or for another one's answer: those with these tickets, and all of these pipelines
    /// of which nothing has been sent. They come back as failed; their tickets are returned.
    pub(crate) fn withdraw(&self, tickets: &HashSet<u64>, paused: &[i32]) -> Vec<u64> {
        let leaves = |pipeline: i32, part: &Part| {
            tickets.contains(&part.document.ticket())
                || (paused.contains(&pipeline) && !part.document.has_begun())
        };
        // Those who wait for another one's answer first: of those left, one takes the place of what is taken back.
        let mut items = self.once.extract(leaves);
        for (id, lane) in self.lanes().iter() {
            let waiting = |part: &Part| leaves(*id, part);
            items.extend(lane.state().backlog.extract(waiting));
        }
        let error = EmbedError::new(ErrorClass::Internal, "taken back before it was sent");
        let mut withdrawn = Vec::new();
        for item in items {
            item.value.document.failed(error.clone());
            withdrawn.push(item.value.document.ticket());
        }
        withdrawn.sort_unstable();
        withdrawn.dedup();
        withdrawn
    }

    /// Adds to a lane those of a document's chunks whose vectors are not known or on their way, and sets it going.
    pub(crate) fn push(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        items: impl Iterator<Item = Item<Part>>,
    ) {
        let home: Arc<dyn Home> = Arc::clone(lane) as Arc<dyn Home>;
        // Where there are none, some may be held that come later.
        let items = self.once.sift(&home, items);
        let (start, closed) = {
            let mut state = lane.state();
            for item in items {
                state.backlog.push(item);
            }
            (!std::mem::replace(&mut state.running, true), state.closed)
        };
        if closed {
            // Nobody serves it any more.
            lane.fail_all(&dropped());
            return;
        }
        lane.changed.notify_one();
        if start {
            match self.runtime() {
                Ok(runtime) => {
                    runtime.spawn(Arc::clone(self).run(Arc::clone(lane)));
                }
                Err(error) => {
                    lane.state().running = false;
                    lane.fail_all(&error);
                }
            }
        }
    }

    fn note(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(event);
        drop(events);
        self.results.ring();
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What ends documents whose pipeline is gone; nobody reads it.
fn dropped() -> EmbedError {
    EmbedError::new(ErrorClass::Internal, "the pipeline was dropped")
}

/// A thread that runs a runtime for as long as the process lives.
fn start_runtime() -> io::Result<Handle> {
    let (sender, handle) = std::sync::mpsc::channel();
    spawn_with_signals_blocked("ingest remote", move || {
        let built = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("ingest lookup")
            .build();
        match built {
            Ok(runtime) => {
                let _ = sender.send(Ok(runtime.handle().clone()));
                runtime.block_on(std::future::pending::<()>());
            }
            Err(error) => {
                let _ = sender.send(Err(error));
            }
        }
    })?;
    handle
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other(NOT_RUNNING)))
}
