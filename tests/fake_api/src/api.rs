//! The handle that a test holds.

use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::behaviour::{Behaviour, Latency, Limits, TokenCount};
use crate::fault::{Fault, fail_share, refuse_text};
use crate::judge::{Request, tokenizer};
use crate::record::{Busiest, Event, Record, Second, Share, Verdict, busiest, share_used};
use crate::server::{Shared, accept, listen};

/// How long dropping waits for the server's threads, which a test's closure may keep busy.
const GOODBYE: Duration = Duration::from_secs(2);

/// A running API, which ends, with all its connections, when this is dropped. A panic inside it is raised again then, or
/// by [`check`](Self::check).
pub struct FakeApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// None: being dropped.
    runtime: Option<Runtime>,
}

impl FakeApi {
    /// Starts one on a free port of 127.0.0.1, with threads of its own.
    ///
    /// # Panics
    /// When the machine has no port or no threads to give. In asynchronous code, which must not wait for it.
    pub fn start(behaviour: Behaviour) -> Self {
        if behaviour.token_count == TokenCount::Exact {
            tokenizer();
        }
        let shared = Arc::new(Shared::new(behaviour));
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-api")
            .enable_io()
            .enable_time()
            .build()
            .expect("the server has its threads");
        let listener = runtime.block_on(listen()).expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        runtime.spawn(accept(listener, shared.clone()));
        Self {
            shared,
            address,
            runtime: Some(runtime),
        }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, which is the base of Azure's and Ollama's paths.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `http://127.0.0.1:PORT/v1`, which is the base of OpenAI's paths.
    pub fn openai_url(&self) -> String {
        format!("{}/v1", self.url())
    }

    /// The behaviour as it is now.
    pub fn behaviour(&self) -> Behaviour {
        Behaviour::clone(&self.shared.behaviour())
    }

    /// Changes the behaviour for the requests to come.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        self.shared.change_behaviour(change);
    }

    /// Sets the budgets. What was used of the minute and the day stays used.
    pub fn set_limits(&self, limits: Limits) {
        self.change(|behaviour| behaviour.limits = limits);
    }

    /// Sets how long answers take.
    pub fn set_latency(&self, latency: Latency) {
        self.change(|behaviour| behaviour.latency = latency);
    }

    /// Spends the quota, or pays the bill.
    pub fn set_quota_exhausted(&self, exhausted: bool) {
        self.change(|behaviour| behaviour.quota_exhausted = exhausted);
    }

    /// From now on accepts this key, and no other.
    pub fn accept_key(&self, key: &str) {
        self.change(|behaviour| behaviour.keys = vec![key.to_owned()]);
    }

    /// Adds a rule that decides what befalls a request that is in order. Of several rules, the first that names a fault
    /// has its way. The closure runs on a thread of the server, several at a time, and may wait; its panic reaches the
    /// test.
    pub fn on_request(&self, rule: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static) {
        self.shared.add_rule(Arc::new(rule));
    }

    /// Refuses, as a whole, every request with a text that holds `part`: the 400 that OpenAI gives without saying which
    /// text it means.
    pub fn refuse_text(&self, part: impl Into<String>) {
        self.on_request(refuse_text(part.into()));
    }

    /// Lets a fault befall this share (0.0 to 1.0) of the requests. Which ones follows from the seed and their numbers,
    /// so a request that comes again tries its luck anew.
    pub fn fail_share(&self, seed: u64, probability: f64, fault: Fault) {
        self.on_request(fail_share(seed, probability, fault));
    }

    /// Forgets all rules.
    pub fn clear_faults(&self) {
        self.shared.clear_rules();
    }

    /// Holds back the answers to accepted requests, until [`release_answers`](Self::release_answers).
    pub fn hold_answers(&self) {
        self.shared.held.send_replace(true);
    }

    /// Lets all answers go that were held back.
    pub fn release_answers(&self) {
        self.shared.held.send_replace(false);
    }

    /// All requests, in the order of their arrival.
    pub fn requests(&self) -> Vec<Record> {
        self.shared.log().records.clone()
    }

    /// How many requests have arrived.
    pub fn arrived(&self) -> usize {
        self.shared.log().records.len()
    }

    /// How many requests had this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.shared.log().with(verdict).count()
    }

    /// How many requests were in order and within the budgets, whatever befell them then.
    pub fn accepted(&self) -> usize {
        self.count(Verdict::Accepted)
    }

    /// How many requests were over a budget or the quota.
    pub fn refused(&self) -> usize {
        self.count(Verdict::RateLimited) + self.count(Verdict::QuotaExhausted)
    }

    /// The tokens of the accepted requests.
    pub fn tokens_accepted(&self) -> u64 {
        let log = self.shared.log();
        log.with(Verdict::Accepted)
            .map(|record| record.tokens)
            .sum()
    }

    /// Requests that are being answered now.
    pub fn in_flight(&self) -> usize {
        self.shared.log().in_flight
    }

    /// The most requests that were being answered at once.
    pub fn max_in_flight(&self) -> usize {
        self.shared.log().max_in_flight
    }

    /// How many connections were made.
    pub fn connections(&self) -> u64 {
        self.shared.log().connections
    }

    /// How many texts of accepted requests had been in an accepted request before (or twice in one), each time counted.
    /// Texts are told apart by a hash of 64 bits.
    pub fn repeated_inputs(&self) -> u64 {
        self.shared.log().repeated_inputs()
    }

    /// How many different texts were in accepted requests.
    pub fn distinct_inputs(&self) -> u64 {
        self.shared.log().distinct_inputs()
    }

    /// How often a text was in accepted requests.
    pub fn times_sent(&self, text: &str) -> u64 {
        self.shared.log().times_sent(text)
    }

    /// The most that was accepted in any window of this length.
    pub fn busiest(&self, window: Duration) -> Busiest {
        busiest(self.accepted_events(), window)
    }

    /// The most that arrived in any window of this length. The tokens of a request that was rejected before they were
    /// counted are not known.
    pub fn busiest_arrivals(&self, window: Duration) -> Busiest {
        let records = self.requests();
        let events = records
            .iter()
            .map(|record| (record.arrived, record.tokens))
            .collect();
        busiest(events, window)
    }

    /// Which share of a budget of so many requests and tokens a minute was accepted, from so long after the first accepted
    /// request to so long before the last one. Nothing, if no time is left between.
    pub fn share_used(
        &self,
        after_first: Duration,
        before_last: Duration,
        rpm: u64,
        tpm: u64,
    ) -> Share {
        share_used(&self.accepted_events(), after_first, before_last, rpm, tpm)
    }

    /// What happened second by second, from the first request's arrival on.
    pub fn per_second(&self) -> Vec<Second> {
        self.shared.log().per_second()
    }

    /// Forgets all requests and connections, but not what was used of the budgets.
    pub fn reset(&self) {
        self.shared.log().reset();
    }

    /// Raises the first panic that happened inside the server, such as that of a closure's assertion.
    ///
    /// # Panics
    /// If there was one.
    pub fn check(&self) {
        if let Some(panic) = self.shared.take_panic() {
            resume_unwind(panic);
        }
    }

    fn accepted_events(&self) -> Vec<Event> {
        self.shared.log().accepted_events()
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(GOODBYE);
        }
        // A second panic would end the process without a word about the first.
        if !std::thread::panicking() {
            self.check();
        }
    }
}
