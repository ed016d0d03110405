//! What a test can set.

use std::time::Duration;

/// How the API behaves. All of it can change while it runs, see [`FakeApi::change`](crate::FakeApi::change).
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// The keys that are accepted, as OpenAI's `Authorization: Bearer` or Azure's `api-key`. Empty: nobody asks.
    pub keys: Vec<String>,
    /// The models (Azure: deployments) that there are. Empty: every one.
    pub models: Vec<String>,
    /// Where OpenAI's request goes.
    pub openai_path: String,
    /// The length of a vector, and the longest that can be asked for. None: 3072 where the model's name holds `large`,
    /// else 1536, as OpenAI's models have it.
    pub dimensions: Option<usize>,
    /// Inputs that a request may have.
    pub max_inputs: usize,
    /// Tokens that an input may have.
    pub max_input_tokens: u64,
    /// Tokens that a request may have.
    pub max_request_tokens: u64,
    /// How tokens are counted.
    pub token_count: TokenCount,
    /// The budgets.
    pub limits: Limits,
    /// The account has no money left: every request is refused with `insufficient_quota`.
    pub quota_exhausted: bool,
    /// How long an answer takes. Refusals come at once.
    pub latency: Latency,
    /// What a 429 says about when to come again.
    pub retry_hints: RetryHints,
    /// Whether answers carry `x-ratelimit-limit-*` and `x-ratelimit-remaining-*`, and, if they are not refusals,
    /// `x-ratelimit-reset-*`.
    pub budget_headers: bool,
    /// Whether answers are compressed for those who accept gzip.
    pub gzip: bool,
    /// Whether vectors come in another order than their texts, told apart by `index`. Ollama's answers have none, so they
    /// keep their order.
    pub permute: bool,
    /// Whether the records hold the texts. They cost memory.
    pub keep_texts: bool,
}

impl Default for Behaviour {
    /// OpenAI's sizes, no key, no budgets, no delay.
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            models: Vec::new(),
            openai_path: "/v1/embeddings".into(),
            dimensions: None,
            // https://platform.openai.com/docs/api-reference/embeddings/create
            max_inputs: 2048,
            max_input_tokens: 8192,
            max_request_tokens: 300_000,
            token_count: TokenCount::Exact,
            limits: Limits::none(),
            quota_exhausted: false,
            latency: Latency::default(),
            retry_hints: RetryHints::all(),
            budget_headers: true,
            gzip: false,
            permute: false,
            keep_texts: false,
        }
    }
}

/// How tokens are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCount {
    /// As OpenAI does, in the encoding `cl100k_base`.
    Exact,
    /// So many bytes are a token, and no text has less than one: for benchmarks, in which the API must not cost much.
    Bytes(usize),
}

/// The budgets. What is `None` is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests in any 60 s.
    pub rpm: Option<u64>,
    /// Tokens in any 60 s.
    pub tpm: Option<u64>,
    /// Requests in any 24 h.
    pub rpd: Option<u64>,
    /// Tokens in any 24 h.
    pub tpd: Option<u64>,
    /// Whether the budgets of a minute also hold for a second: a bucket of a sixtieth of them, or of one request, that
    /// fills steadily. OpenAI says of its limits that they can be so quantised. A request of more tokens than the bucket
    /// takes is let in when the bucket is full, and then has to be filled up again.
    pub per_second: bool,
    /// Whether a refused request counts as one, as OpenAI says it does.
    pub count_refused: bool,
}

impl Limits {
    /// No budgets.
    pub const fn none() -> Self {
        Self {
            rpm: None,
            tpm: None,
            rpd: None,
            tpd: None,
            per_second: true,
            count_refused: false,
        }
    }

    /// So many requests and tokens a minute, and a sixtieth of that a second.
    pub const fn per_minute(rpm: u64, tpm: u64) -> Self {
        Self {
            rpm: Some(rpm),
            tpm: Some(tpm),
            ..Self::none()
        }
    }
}

/// How long an answer takes, from the request's arrival on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// Whatever is asked.
    pub fixed: Duration,
    /// For each 1,000 tokens on top, in proportion.
    pub per_1000_tokens: Duration,
}

impl Latency {
    /// The same for every request.
    pub const fn fixed(fixed: Duration) -> Self {
        Self {
            fixed,
            per_1000_tokens: Duration::ZERO,
        }
    }

    pub(crate) fn of(self, tokens: u64) -> Duration {
        self.fixed + self.per_1000_tokens.mul_f64(tokens as f64 / 1000.0)
    }
}

/// The headers of a 429 that say when to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryHints {
    /// `Retry-After`.
    pub retry_after: RetryAfter,
    /// `retry-after-ms`, in milliseconds.
    pub milliseconds: bool,
    /// `x-ratelimit-reset-requests` and `x-ratelimit-reset-tokens`, such as `1m3.5s`.
    pub reset: bool,
}

impl RetryHints {
    /// All of them, `Retry-After` in seconds.
    pub const fn all() -> Self {
        Self {
            retry_after: RetryAfter::Seconds,
            milliseconds: true,
            reset: true,
        }
    }

    /// None of them.
    pub const fn none() -> Self {
        Self {
            retry_after: RetryAfter::No,
            milliseconds: false,
            reset: false,
        }
    }

    /// Only `Retry-After`, in this form.
    pub const fn only(retry_after: RetryAfter) -> Self {
        Self {
            retry_after,
            ..Self::none()
        }
    }
}

/// The two forms of `Retry-After` (RFC 9110, 10.2.3), neither of which knows parts of a second: both are rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// The header is not sent.
    No,
    /// Seconds from now.
    Seconds,
    /// A date.
    Date,
}
