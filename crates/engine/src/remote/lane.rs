//! A lane: what waits for one pipeline's requests, and how the next of them is let through.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use embedder::EmbedError;
use limiter::Now;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::{Remotes, dropped};
use crate::assembly::Part;
use crate::once::Home;
use crate::pack::{Backlog, Item, Packed};
use crate::pipeline::{Budget, Pipeline, Remote};
use crate::usage::Usage;

/// How long a request that is not full waits for documents that are being split just now.
const LONGEST_HOLD: Duration = Duration::from_millis(20);
/// Between two looks at a place in flight that another process may give back, and at what a hold waits for.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Longest sleep from which nothing wakes a lane.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// Longest rest before the budget is asked again. A change in this database wakes the lane, one that another database
/// makes to their common limit is noticed by then.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// What waits for one pipeline's requests.
pub(crate) struct Lane {
    state: Mutex<LaneState>,
    pub(super) changed: Notify,
    /// Documents submitted and not yet split.
    unsplit: AtomicUsize,
    pub(crate) usage: Arc<Usage>,
}

pub(super) struct LaneState {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) backlog: Backlog<Part>,
    pub(super) running: bool,
    pub(super) closed: bool,
}

/// A place among the requests in flight.
pub(super) struct Place(Budget);

/// What a look at a lane comes to.
enum Next {
    /// Chunks to be sent, admitted with so many tokens.
    Request(Vec<Item<Part>>, usize),
    /// More may go in a moment later.
    Hold,
    /// So long until the budget may allow it.
    Wait(Duration),
}

/// Set when the process is ending.
static ENDING: AtomicBool = AtomicBool::new(false);

/// No engine of this process begins another request: the process is ending, and what its threads would still take of what
/// processes share, nobody could give back.
pub fn stop_sending() {
    ENDING.store(true, Ordering::SeqCst);
}

impl Place {
    fn take(remote: &Remote) -> Option<Self> {
        if ENDING.load(Ordering::SeqCst) {
            return None;
        }
        let budget = remote.budget;
        let begun = budget
            .in_flight
            .try_begin(budget.worker, remote.concurrency);
        // Not `then_some`: a place that was not given must not be given back.
        begun.then(|| Self(budget))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.end(self.0.worker);
    }
}

impl Lane {
    pub(super) fn new(pipeline: Arc<Pipeline>) -> Self {
        Self {
            state: Mutex::new(LaneState {
                pipeline,
                backlog: Backlog::default(),
                running: false,
                closed: false,
            }),
            changed: Notify::new(),
            unsplit: AtomicUsize::new(0),
            usage: Arc::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pipeline(&self) -> Arc<Pipeline> {
        Arc::clone(&self.state().pipeline)
    }

    pub(crate) fn will_be_split(&self) {
        self.unsplit.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn was_split(&self) {
        self.unsplit.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// The request that could be sent now, in a lane that nobody else changes meanwhile. Chunks of documents that have failed are
    /// not worth a call.
    fn peek(&self) -> Option<(MutexGuard<'_, LaneState>, Packed)> {
        let mut state = self.state();
        let capacity = state.pipeline.capacity();
        loop {
            let packed = state.backlog.peek(capacity)?;
            let ended = state
                .backlog
                .retain_front(packed, |part| !part.document.has_ended());
            if ended.is_empty() {
                return Some((state, packed));
            }
            // Others may take the place of what leaves, which they do through this lane.
            drop(state);
            drop(ended);
            state = self.state();
        }
    }

    /// Takes the next request if its budget allows it, all in one look: what is withdrawn between two would be made up for by
    /// others that were not admitted. One that is not full is left while `holds` and documents are being split.
    fn next(&self, holds: bool) -> Option<Next> {
        let (mut state, packed) = self.peek()?;
        if !packed.full && holds && self.unsplit.load(Ordering::Relaxed) > 0 {
            return Some(Next::Hold);
        }
        let budget = state.pipeline.remote.as_ref()?.budget;
        let claimant = budget.claimant(false);
        let admitted = budget
            .limit
            .admit(Now::read(), claimant, packed.tokens as u64);
        Some(match admitted {
            Ok(()) => Next::Request(state.backlog.take(packed), packed.tokens),
            Err(wait) => Next::Wait(wait.duration()),
        })
    }

    pub(super) fn has_another_key(&self, pipeline: &Pipeline) -> bool {
        let present = self.pipeline();
        let key = |pipeline: &Pipeline| pipeline.remote.as_ref().and_then(|r| r.key.clone());
        key(&present) != key(pipeline)
    }

    /// Puts requests back, the first of them first; those of a lane that was closed meanwhile end.
    pub(super) fn put_back(&self, requests: impl DoubleEndedIterator<Item = Vec<Item<Part>>>) {
        let mut state = self.state();
        for request in requests.rev() {
            state.backlog.put_back(request);
        }
        let closed = state.closed;
        drop(state);
        if closed {
            self.fail_all(&dropped());
        }
    }

    pub(super) fn fail_all(&self, error: &EmbedError) {
        loop {
            let items = self.state().backlog.drain();
            if items.is_empty() {
                return;
            }
            // Those who waited for one of them are back here afterwards.
            for item in items {
                item.value.failed(error.clone());
            }
        }
    }
}

impl Home for Lane {
    fn take_in(&self, items: Vec<Item<Part>>) {
        let mut state = self.state();
        if state.closed {
            drop(state);
            for item in items {
                item.value.failed(dropped());
            }
            return;
        }
        for item in items {
            state.backlog.push(item);
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl Remotes {
    /// Serves a lane until it is closed.
    pub(super) async fn run(self: Arc<Self>, lane: Arc<Lane>) {
        loop {
            // Whoever changes something after this look leaves a permit for the wait.
            if lane.state().closed {
                lane.fail_all(&dropped());
                return;
            }
            let pipeline = lane.pipeline();
            let Some(remote) = &pipeline.remote else {
                return;
            };
            if lane.state().backlog.is_empty() {
                lane.changed.notified().await;
                continue;
            }
            let Some(place) = Place::take(remote) else {
                let _ = tokio::time::timeout(LOOK_AGAIN, lane.changed.notified()).await;
                continue;
            };
            if let Some((items, tokens)) = admitted(&lane).await {
                let this = Arc::clone(&self);
                let lane = Arc::clone(&lane);
                let pipeline = lane.pipeline();
                // Before anything else happens to these documents: what has been admitted is sent.
                let (items, texts) = begin(items);
                tokio::spawn(async move {
                    this.exchange(&lane, pipeline, items, texts, tokens).await;
                    drop(place);
                    lane.changed.notify_one();
                });
            }
        }
    }
}

/// The next request of a lane, once its budget allows it; `None` when there is nothing left to send.
async fn admitted(lane: &Lane) -> Option<(Vec<Item<Part>>, usize)> {
    let mut held = Duration::ZERO;
    loop {
        match lane.next(held < LONGEST_HOLD)? {
            Next::Request(items, tokens) => return Some((items, tokens)),
            Next::Hold => {
                let start = Instant::now();
                let _ = tokio::time::timeout(LOOK_AGAIN, lane.changed.notified()).await;
                held += start.elapsed().max(Duration::from_micros(100));
            }
            Next::Wait(wait) if wait <= LONGEST_SLEEP => sleep(wait).await,
            Next::Wait(wait) => {
                let longest = wait.min(LONGEST_REST);
                let _ = tokio::time::timeout(longest, lane.changed.notified()).await;
            }
        }
    }
}

/// The texts of a request's chunks, without those of documents that have ended.
fn begin(items: Vec<Item<Part>>) -> (Vec<Item<Part>>, Vec<String>) {
    items
        .into_iter()
        .filter_map(|item| {
            let text = item.value.document.text(item.value.chunk)?;
            item.value.document.begin();
            Some((item, text))
        })
        .unzip()
}
