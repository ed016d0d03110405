//! Remote models: one thread with an asynchronous runtime, on it a lane for each pipeline.
//!
//! A lane takes a place among the pipeline's requests in flight, asks the budget, and only then packs what waits into a
//! request. What comes back goes to the documents; a request that was refused for the moment (429) goes back to the front
//! and costs nobody an attempt; one that was refused for what is in it is halved.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use embedder::remote::{Answer, Client, Purpose};
use embedder::{EmbedError, ErrorClass};
use injection::Point;
use limiter::Now;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::assembly::{Part, Results, marks};
use crate::mark::{Mark, WhileWorking};
use crate::pack::{Backlog, Item, Packed};
use crate::pipeline::{Budget, Definitions, Pipeline, Remote};
use crate::threads::spawn_with_signals_blocked;
use crate::usage::Usage;

/// How long a request that is not full waits for documents that are being split just now.
const LONGEST_HOLD: Duration = Duration::from_millis(20);
/// Between two looks at a place in flight that another process may give back, and at what a hold waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Longest sleep from which nothing wakes a lane.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// Longest rest before the budget is asked again. A change in this database wakes the lane, one that another database
/// makes to their common limit is noticed by then.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// How long a query whose key was refused waits for another one.
const KEY_WAIT: Duration = Duration::from_secs(1);
/// Tokens that a provider may count for an input besides those of its text, of which each has a byte at least.
const MARKERS: usize = 64;
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
    results: Results,
}

/// What waits for one pipeline's requests.
pub(crate) struct Lane {
    state: Mutex<LaneState>,
    changed: Notify,
    /// Documents submitted and not yet split.
    unsplit: AtomicUsize,
    pub(crate) usage: Arc<Usage>,
}

struct LaneState {
    pipeline: Arc<Pipeline>,
    backlog: Backlog<Part>,
    running: bool,
    closed: bool,
}

/// A place among the requests in flight.
struct Place(Budget);

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
    fn new(pipeline: Arc<Pipeline>) -> Self {
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

    fn state(&self) -> MutexGuard<'_, LaneState> {
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

    /// The request that could be sent now. Chunks of documents that have failed meanwhile are not worth a call.
    fn peek(&self) -> Option<Packed> {
        let mut state = self.state();
        let capacity = state.pipeline.capacity();
        loop {
            let packed = state.backlog.peek(capacity)?;
            let kept = state
                .backlog
                .retain_front(packed, |part| !part.document.has_ended());
            if kept {
                return Some(packed);
            }
        }
    }

    fn has_another_key(&self, pipeline: &Pipeline) -> bool {
        let present = self.pipeline();
        let key = |pipeline: &Pipeline| pipeline.remote.as_ref().and_then(|r| r.key.clone());
        key(&present) != key(pipeline)
    }

    /// Puts requests back, the first of them first; those of a lane that was closed meanwhile end.
    fn put_back(&self, requests: impl DoubleEndedIterator<Item = Vec<Item<Part>>>) {
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

    fn fail_all(&self, error: &EmbedError) {
        let items = self.state().backlog.drain();
        for item in items {
            item.value.document.failed(error.clone());
        }
    }
}

impl Remotes {
    pub(crate) fn new(results: Results, requests: &'static AtomicI32) -> Self {
        Self {
            lanes: Mutex::default(),
            runtime: OnceLock::new(),
            client: Mutex::default(),
            events: Mutex::default(),
            requests,
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

    /// Ends documents that wait: those with these tickets, and all of these pipelines of which nothing has been sent. They
    /// come back as failed; their tickets are returned.
    pub(crate) fn withdraw(&self, tickets: &HashSet<u64>, paused: &[i32]) -> Vec<u64> {
        let mut withdrawn = Vec::new();
        for (id, lane) in self.lanes().iter() {
            let paused = paused.contains(id);
            let items = lane.state().backlog.extract(|part| {
                tickets.contains(&part.document.ticket()) || (paused && !part.document.has_begun())
            });
            let error = EmbedError::new(ErrorClass::Internal, "taken back before it was sent");
            for item in items {
                item.value.document.failed(error.clone());
                withdrawn.push(item.value.document.ticket());
            }
        }
        withdrawn.sort_unstable();
        withdrawn.dedup();
        withdrawn
    }

    /// Adds chunks to a lane, and sets it going.
    pub(crate) fn push(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        items: impl Iterator<Item = Item<Part>>,
    ) {
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

    /// Serves a lane until it is closed.
    async fn run(self: Arc<Self>, lane: Arc<Lane>) {
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

    /// Sends one request and tells the documents.
    async fn exchange(
        &self,
        lane: &Lane,
        pipeline: Arc<Pipeline>,
        items: Vec<Item<Part>>,
        texts: Vec<String>,
        tokens: usize,
    ) {
        if items.is_empty() {
            return;
        }
        let marks = marks(items.iter().map(|item| &item.value));
        self.requests.fetch_add(1, Ordering::Relaxed);
        let result = self
            .call(&pipeline, Purpose::Document, texts, tokens, marks)
            .await;
        self.requests.fetch_sub(1, Ordering::Relaxed);
        match result {
            Ok(answer) => {
                for (item, vector) in items.into_iter().zip(answer.vectors) {
                    item.value.document.embedded(item.value.chunk, vector);
                }
            }
            Err(Refusal {
                error,
                wait: Some(wait),
            }) => {
                let mut items = items;
                let mut attempt = 0;
                for item in &mut items {
                    item.refused += 1;
                    attempt = attempt.max(item.refused);
                }
                self.note(Event::Throttled {
                    pipeline: pipeline.id,
                    inputs: items.len(),
                    attempt,
                    error,
                    wait,
                });
                lane.put_back([items].into_iter());
            }
            // The key has been changed since this request was sent.
            Err(Refusal { error, wait: None })
                if error.class == ErrorClass::Auth && lane.has_another_key(&pipeline) =>
            {
                lane.put_back([items].into_iter());
            }
            Err(Refusal { error, wait: None }) if error.blocks_pipeline() => {
                for item in items {
                    item.value.document.failed(error.clone());
                }
                // What waits would be refused alike.
                lane.fail_all(&error);
            }
            Err(Refusal { error, wait: None }) => {
                if items.len() > 1 && error.blames_the_inputs() {
                    let mut left = items;
                    let right = left.split_off(left.len() / 2);
                    lane.put_back([left, right].into_iter());
                } else {
                    for item in items {
                        item.value.document.failed(error.clone());
                    }
                }
            }
        }
    }

    /// One call, settled with the budget.
    async fn call(
        &self,
        pipeline: &Arc<Pipeline>,
        purpose: Purpose,
        texts: Vec<String>,
        tokens: usize,
        marks: Vec<Mark>,
    ) -> Result<Answer, Refusal> {
        let remote = pipeline.remote.as_ref().ok_or_else(|| Refusal {
            error: EmbedError::model_unusable(NOT_REMOTE),
            wait: None,
        })?;
        let limit = remote.budget.limit;
        let client = self.client(remote).map_err(Refusal::from)?;
        injection::pass(Point::AfterAdmit)
            .await
            .map_err(|injected| EmbedError::new(ErrorClass::Internal, injected.to_string()))?;
        remote.budget.count(Now::read(), 1, tokens as i64);
        // An answer that counts more is not believed: it would stop everybody on the limit.
        let prefix = remote.prefix(purpose).len();
        let bytes = texts.iter().map(|text| text.len() + prefix + MARKERS);
        let most_tokens = bytes.sum::<usize>() as u64;
        let call = {
            let (endpoint, key) = (Arc::clone(&remote.endpoint), remote.key.clone());
            let (dimensions, timeout) = (pipeline.dimensions, remote.timeout);
            async move {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                client
                    .embed(
                        &endpoint,
                        key.as_deref(),
                        purpose,
                        &texts,
                        dimensions,
                        timeout,
                    )
                    .await
            }
        };
        // A task of its own: a panic in it is an error here.
        let mut task = Owned(tokio::spawn(WhileWorking::new(marks, call)));
        let result = (&mut task.0).await.unwrap_or_else(|_| {
            Err(EmbedError::new(
                ErrorClass::Internal,
                "the call to the provider failed",
            ))
        });
        let now = Now::read();
        match result {
            Ok(answer) => {
                limit.succeeded(now);
                let said = answer.limits;
                limit.server_limits(now, said.requests_per_minute, said.tokens_per_minute);
                if let Some(actual) = answer.tokens.filter(|actual| *actual <= most_tokens) {
                    limit.settle(now, tokens as u64, actual);
                    let difference = actual.cast_signed() - tokens as i64;
                    remote.budget.count(now, 0, difference);
                }
                Ok(answer)
            }
            Err(error) if error.class == ErrorClass::RateLimited => {
                let wait = limit.rate_limited(now, error.retry_after, jitter());
                Err(Refusal {
                    error,
                    wait: Some(wait),
                })
            }
            Err(error) => Err(error.into()),
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

    /// The vector of a query: ahead of the backlog, and asked again while the provider is busy, until `deadline` or until
    /// nobody wants it any more.
    pub(crate) fn query(
        self: &Arc<Self>,
        pipeline: &Arc<Pipeline>,
        text: String,
        tokens: usize,
        deadline: Instant,
        wanted: impl Fn() -> bool,
    ) -> Result<Vec<f32>, EmbedError> {
        let runtime = self.runtime()?;
        let (sender, answers) = std::sync::mpsc::channel();
        let this = Arc::clone(self);
        let lane = self.lane(pipeline);
        let task = runtime.spawn(async move {
            let _ = sender.send(this.query_until(&lane, text, tokens, deadline).await);
        });
        loop {
            match answers.recv_timeout(Duration::from_millis(50)) {
                Ok(answer) => return answer,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if wanted() => {}
                Err(_) => {
                    task.abort();
                    return Err(EmbedError::new(
                        ErrorClass::Internal,
                        "the query was given up",
                    ));
                }
            }
        }
    }

    async fn query_until(
        &self,
        lane: &Lane,
        text: String,
        tokens: usize,
        deadline: Instant,
    ) -> Result<Vec<f32>, EmbedError> {
        let mut last: Option<EmbedError> = None;
        let mut attempt = 0;
        loop {
            let pipeline = lane.pipeline();
            let Some(budget) = pipeline.remote.as_ref().map(|remote| remote.budget) else {
                return Err(EmbedError::model_unusable(NOT_REMOTE));
            };
            let admitted = budget
                .limit
                .admit(Now::read(), budget.claimant(true), tokens as u64);
            if let Err(wait) = admitted {
                let wait = wait.duration();
                if Instant::now() + wait >= deadline {
                    return Err(last.unwrap_or_else(|| too_busy(wait)));
                }
                sleep(wait.min(LONGEST_SLEEP)).await;
                continue;
            }
            let texts = vec![text.clone()];
            let result = self
                .call(&pipeline, Purpose::Query, texts, tokens, Vec::new())
                .await;
            match result {
                Ok(mut answer) => {
                    return answer.vectors.pop().ok_or_else(|| {
                        EmbedError::new(ErrorClass::BadResponse, "no vector in the answer")
                    });
                }
                Err(Refusal {
                    error,
                    wait: Some(wait),
                }) => {
                    attempt += 1;
                    self.note(Event::Throttled {
                        pipeline: pipeline.id,
                        inputs: 1,
                        attempt,
                        error: error.clone(),
                        wait,
                    });
                    last = Some(error);
                }
                Err(Refusal { error, wait: None }) => {
                    if error.class != ErrorClass::Auth
                        || !self.gets_another_key(lane, &pipeline).await
                    {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Has the key of a pipeline read anew; whether it is another one.
    async fn gets_another_key(&self, lane: &Lane, pipeline: &Pipeline) -> bool {
        let start = Instant::now();
        if !lane.has_another_key(pipeline) {
            self.note(Event::KeyRefused {
                pipeline: pipeline.id,
            });
        }
        while !lane.has_another_key(pipeline) {
            if start.elapsed() > KEY_WAIT {
                return false;
            }
            sleep(LOOK_AGAIN).await;
        }
        true
    }
}

/// What ends documents whose pipeline is gone; nobody reads it.
fn dropped() -> EmbedError {
    EmbedError::new(ErrorClass::Internal, "the pipeline was dropped")
}

/// A task that ends when nobody waits for it any more.
struct Owned<T>(JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a query is told that would have to wait too long.
fn too_busy(wait: Duration) -> EmbedError {
    EmbedError::new(
        ErrorClass::RateLimited,
        format!(
            "the budget of the pipeline allows no request for another {:.0} s",
            wait.as_secs_f64().ceil()
        ),
    )
    .with_hint("SELECT * FROM ingest.limits shows what is used and until when it cools down.")
}

/// A call that gave no vectors.
struct Refusal {
    error: EmbedError,
    /// How long everybody waits, when it was refused for the moment only.
    wait: Option<Duration>,
}

impl From<EmbedError> for Refusal {
    fn from(error: EmbedError) -> Self {
        Self { error, wait: None }
    }
}

/// The next request of a lane, once its budget allows it; `None` when there is nothing left to send.
async fn admitted(lane: &Lane) -> Option<(Vec<Item<Part>>, usize)> {
    let mut held = Duration::ZERO;
    loop {
        let packed = lane.peek()?;
        if !packed.full && held < LONGEST_HOLD && lane.unsplit.load(Ordering::Relaxed) > 0 {
            let start = Instant::now();
            let _ = tokio::time::timeout(LOOK_AGAIN, lane.changed.notified()).await;
            held += start.elapsed().max(Duration::from_micros(100));
            continue;
        }
        let pipeline = lane.pipeline();
        let remote = pipeline.remote.as_ref()?;
        let claimant = remote.budget.claimant(false);
        let limit = remote.budget.limit;
        match limit.admit(Now::read(), claimant, packed.tokens as u64) {
            Ok(()) => {
                let items = lane.state().backlog.take(packed);
                let tokens = items.iter().map(|item| item.tokens).sum();
                return Some((items, tokens));
            }
            Err(wait) if wait.duration() <= LONGEST_SLEEP => sleep(wait.duration()).await,
            Err(wait) => {
                let longest = wait.duration().min(LONGEST_REST);
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

/// A number from 0 to 1, different each time.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now()) as f64 / u64::MAX as f64
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
