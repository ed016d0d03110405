//! What the engine must know of a pipeline.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use chunker::SplitOptions;
use embedder::remote::{Endpoint, Purpose};
use embedder::{EmbedError, ModelName, Secret};
use limiter::{Claimant, InFlight, Limit, Now, Tally};

use crate::pack::Capacity;

/// Inputs in a request for a local model.
const LOCAL_REQUEST_INPUTS: usize = 64;
/// Tokens in a request for a local model: about a quarter of a second of work on one core, so that no request keeps a
/// query or a shutdown waiting, and enough to fill a batch. Longer batches are not faster: inference is bound by
/// arithmetic from some 512 tokens on.
const LOCAL_REQUEST_TOKENS: usize = 1024;

/// Tokens in a request where no budget asks for less: ten requests of it in flight, a second each, are 30 million tokens a
/// minute, more than any tier allows, and a larger one only takes memory and is repeated as a whole when it fails.
const UNLIMITED_REQUEST_TOKENS: usize = 50_000;

/// A pipeline's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// Its number; only handed back.
    pub id: i32,
    /// Which of its definitions this is; they count up.
    pub generation: i32,
    /// The model, as `provider/name`.
    pub model: ModelName,
    /// Numbers in a vector. An answer with another count is refused.
    pub dimensions: usize,
    /// How documents are split; token counts are the model's.
    pub split: SplitOptions,
    /// Most inputs in a request; `None` for the model's own.
    pub batch_size: Option<usize>,
    /// How its provider is reached; `None` for a local model.
    pub remote: Option<Remote>,
}

/// How a remote pipeline reaches its model, and what it may spend.
#[derive(Clone)]
pub struct Remote {
    /// Where requests go.
    pub endpoint: Arc<Endpoint>,
    /// The key; `None` for an endpoint that asks for none.
    pub key: Option<Arc<Secret>>,
    /// The tiktoken encoding by which tokens are counted.
    pub encoding: String,
    /// Inputs in a request, where the pipeline does not say otherwise.
    pub inputs_per_request: usize,
    /// Most tokens that the model takes in a request.
    pub tokens_per_request: usize,
    /// Longest input, in tokens, to which queries are cut.
    pub max_input_tokens: usize,
    /// A request without a whole answer by then has failed.
    pub timeout: Duration,
    /// A connection that does not stand by then has failed.
    pub connect_timeout: Duration,
    /// Requests in flight at most, over all processes.
    pub concurrency: u32,
    /// The budget.
    pub budget: Budget,
}

/// All pipelines by their numbers: what the engine needs of each, or why it cannot be used just now.
pub type Definitions = HashMap<i32, Result<Arc<Pipeline>, EmbedError>>;

/// The budget of a pipeline: counters that processes share.
#[derive(Clone, Copy)]
pub struct Budget {
    /// What it may send, with whoever names the same limit.
    pub limit: &'static Limit,
    /// Its requests in flight.
    pub in_flight: &'static InFlight,
    /// Who it is to the limit.
    pub key: NonZeroU64,
    /// The number of this process to [`InFlight`].
    pub worker: usize,
    /// Where this process counts what it sends today, to be written down.
    pub tally: Option<&'static Tally>,
}

impl Budget {
    /// Counts what is sent, or corrects it.
    pub(crate) fn count(&self, now: Now, requests: i64, tokens: i64) {
        if let Some(tally) = self.tally {
            tally.add(now, requests, tokens);
        }
    }

    pub(crate) fn claimant(&self, urgent: bool) -> Claimant {
        Claimant {
            key: self.key,
            urgent,
        }
    }
}

impl Pipeline {
    /// What a request of it may hold.
    pub(crate) fn capacity(&self) -> Capacity {
        let (inputs, tokens) = match &self.remote {
            None => (LOCAL_REQUEST_INPUTS, LOCAL_REQUEST_TOKENS),
            Some(remote) => {
                let affordable = match remote.budget.limit.request_tokens(Now::read()) {
                    u64::MAX => UNLIMITED_REQUEST_TOKENS,
                    tokens => usize::try_from(tokens).unwrap_or(usize::MAX),
                };
                (
                    remote.inputs_per_request,
                    remote.tokens_per_request.min(affordable),
                )
            }
        };
        Capacity {
            inputs: self.batch_size.unwrap_or(inputs).max(1),
            tokens,
        }
    }
}

impl Remote {
    /// What is put before a text, depending on what it is for.
    pub(crate) fn prefix(&self, purpose: Purpose) -> &str {
        self.endpoint.prefix(purpose)
    }
}

impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint
            && self.key == other.key
            && self.encoding == other.encoding
            && self.inputs_per_request == other.inputs_per_request
            && self.tokens_per_request == other.tokens_per_request
            && self.max_input_tokens == other.max_input_tokens
            && self.timeout == other.timeout
            && self.connect_timeout == other.connect_timeout
            && self.concurrency == other.concurrency
            && std::ptr::eq(self.budget.limit, other.budget.limit)
            && std::ptr::eq(self.budget.in_flight, other.budget.in_flight)
            && self.budget.key == other.budget.key
            && self.budget.worker == other.budget.worker
            && self.budget.tally.map(std::ptr::from_ref)
                == other.budget.tally.map(std::ptr::from_ref)
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("host", &self.endpoint.host())
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}
