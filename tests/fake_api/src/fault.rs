//! What can go wrong on purpose.

use std::time::Duration;

use crate::dialect::{ApiError, Dialect};
use crate::judge::Request;
use crate::vectors::chance;

/// What befalls a request that is in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Another answer.
    Answer {
        /// The status.
        status: u16,
        /// Headers; they replace the usual ones of the same name.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// The right answer, so much later.
    Wait(Duration),
    /// Silence, until the client gives up.
    Hang(Place),
    /// The connection is closed in an orderly way.
    Close(Place),
    /// The connection is reset.
    Reset(Place),
    /// The right answer, one byte of the body each time.
    Trickle(Duration),
    /// The first half of the right JSON, as if it were all.
    TruncatedJson,
    /// The last vector is missing.
    TooFew,
    /// A vector for a text that was not there.
    TooMany,
    /// The right vectors in another order, each with its right index. Nothing in Ollama's answers.
    Permuted,
    /// The last vector bears the index of the first. For a single text, there are two of index 0.
    DuplicateIndex,
    /// All vectors are of this length.
    Dimensions(usize),
    /// The first vector begins with something that is no finite number.
    NotFinite(NotFinite),
    /// An answer that begins well and has so many bytes, most of them blanks.
    HugeBody(u64),
    /// The same, a thousandth of it on the wire.
    GzipBomb(u64),
}

/// Where in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing of it has been sent.
    BeforeAnswer,
    /// The head and half of the body have been sent.
    InBody,
}

/// Ways to say what is no finite number. Those in base64 come in base64, the others as JSON, whatever was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFinite {
    /// `null`, as most JSON writers have it.
    NanAsNull,
    /// `"NaN"`.
    NanAsText,
    /// `NaN`, as Python writes it. No JSON.
    NanAsWord,
    /// A NaN among the base64.
    NanInBase64,
    /// `Infinity`, as Python writes it. No JSON.
    InfinityAsWord,
    /// `1e999`, which is JSON, and too large for any float.
    InfinityAsNumber,
    /// `1e39`, which is a number, and too large for the 32 bits of a vector's component.
    TooLargeForFloat,
    /// An infinity among the base64.
    InfinityInBase64,
}

impl NotFinite {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NanAsNull,
        Self::NanAsText,
        Self::NanAsWord,
        Self::NanInBase64,
        Self::InfinityAsWord,
        Self::InfinityAsNumber,
        Self::TooLargeForFloat,
        Self::InfinityInBase64,
    ];

    /// As JSON, or as the float to put into base64.
    pub(crate) const fn written(self) -> Result<&'static str, f32> {
        match self {
            Self::NanAsNull => Ok("null"),
            Self::NanAsText => Ok("\"NaN\""),
            Self::NanAsWord => Ok("NaN"),
            Self::NanInBase64 => Err(f32::NAN),
            Self::InfinityAsWord => Ok("Infinity"),
            Self::InfinityAsNumber => Ok("1e999"),
            Self::TooLargeForFloat => Ok("1e39"),
            Self::InfinityInBase64 => Err(f32::INFINITY),
        }
    }
}

impl Fault {
    /// An error of this status, with a body as OpenAI's.
    pub fn status(status: u16) -> Self {
        Self::error(&ApiError {
            status,
            message: format!("The server was told to answer {status}."),
            kind: match status {
                500.. => "server_error",
                _ => "invalid_request_error",
            },
            ..ApiError::default()
        })
    }

    /// A 400 for the whole request, as OpenAI gives it for an input that it does not like, without saying which.
    pub fn invalid_request() -> Self {
        Self::error(&ApiError::invalid_input())
    }

    /// A 429 that comes from no budget here, with `Retry-After` in seconds, rounded up.
    pub fn rate_limited(retry_after: Duration) -> Self {
        let seconds = retry_after.as_millis().div_ceil(1000).to_string();
        Self::error(&ApiError {
            status: 429,
            message: "Rate limit reached. Please try again later.".into(),
            kind: "requests",
            code: Some("rate_limit_exceeded"),
            headers: vec![("retry-after".into(), seconds)],
            ..ApiError::default()
        })
    }

    /// A redirect that asks for the same request there (307).
    pub fn redirect(url: impl Into<String>) -> Self {
        Self::Answer {
            status: 307,
            headers: vec![("location".into(), url.into())],
            body: String::new(),
        }
    }

    /// Success, and this as its body: JSON of another shape, or no JSON at all.
    pub fn body(body: impl Into<String>) -> Self {
        Self::Answer {
            status: 200,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    fn error(error: &ApiError) -> Self {
        Self::Answer {
            status: error.status,
            headers: error.headers.clone(),
            body: error.body(Dialect::OpenAi),
        }
    }
}

/// Decides what befalls a request.
pub(crate) type Rule = dyn Fn(&Request) -> Option<Fault> + Send + Sync;

/// See [`FakeApi::refuse_text`](crate::FakeApi::refuse_text).
pub(crate) fn refuse_text(part: String) -> impl Fn(&Request) -> Option<Fault> {
    move |request| {
        let found = request.texts.iter().any(|text| text.contains(&part));
        found.then(Fault::invalid_request)
    }
}

/// See [`FakeApi::fail_share`](crate::FakeApi::fail_share).
pub(crate) fn fail_share(
    seed: u64,
    probability: f64,
    fault: Fault,
) -> impl Fn(&Request) -> Option<Fault> {
    move |request| (chance(seed, request.number) < probability).then(|| fault.clone())
}
