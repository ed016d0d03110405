//! A call: one request to a provider, settled with its budget.

use std::sync::Arc;
use std::time::{Duration, Instant};

use embedder::remote::{Answer, Purpose};
use embedder::{EmbedError, ErrorClass};
use injection::Point;
use limiter::Now;
use tokio::task::JoinHandle;

use super::{NOT_REMOTE, Remotes};
use crate::mark::{Mark, WhileWorking};
use crate::pipeline::Pipeline;

/// Tokens that a provider may count for an input besides those of its text, of which each has a byte at least.
const MARKERS: usize = 64;

/// A call that gave no vectors.
pub(super) struct Refusal {
    pub(super) error: EmbedError,
    /// How long everybody waits, when it was refused for the moment only.
    pub(super) wait: Option<Duration>,
}

impl From<EmbedError> for Refusal {
    fn from(error: EmbedError) -> Self {
        Self { error, wait: None }
    }
}

impl Remotes {
    /// One call, settled with the budget.
    pub(super) async fn call(
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
}

/// A task that ends when nobody waits for it any more.
struct Owned<T>(JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A number from 0 to 1, different each time.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now()) as f64 / u64::MAX as f64
}
