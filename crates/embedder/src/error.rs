//! What can go wrong with an embedding, sorted by what is to be done about it.

use std::fmt;
use std::time::Duration;

/// The class of a failure. It decides whether and when another try is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Too many requests or tokens for the moment (HTTP 429).
    RateLimited,
    /// The account has no credit left.
    QuotaExhausted,
    /// The key is missing, wrong, or may not use the model.
    Auth,
    /// The provider does not accept this request, nor will it later.
    InvalidRequest,
    /// The input is longer than the model reads.
    TooLarge,
    /// No answer in time.
    Timeout,
    /// The provider is out of order or out of reach (HTTP 5xx, no connection).
    Unavailable,
    /// There was an answer, and it makes no sense.
    BadResponse,
    /// A fault on this side: of the configuration, the machine, or pg_ingest.
    Internal,
}

impl ErrorClass {
    /// All classes, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::RateLimited,
        Self::QuotaExhausted,
        Self::Auth,
        Self::InvalidRequest,
        Self::TooLarge,
        Self::Timeout,
        Self::Unavailable,
        Self::BadResponse,
        Self::Internal,
    ];

    /// The name users see in `ingest.failures.error_class`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "quota_exhausted",
            Self::Auth => "auth",
            Self::InvalidRequest => "invalid_request",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::BadResponse => "bad_response",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request may succeed later without anybody's help.
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::Timeout
                | Self::Unavailable
                | Self::BadResponse
                | Self::Internal
        )
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A failed embedding. Holds no key, and no document beyond what a provider chose to quote of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EmbedError {
    /// What kind of failure it is.
    pub class: ErrorClass,
    /// The provider's HTTP status, if there was an answer.
    pub http_status: Option<u16>,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The model itself cannot be used: the failure says nothing about the document.
    pub model_unusable: bool,
    /// How long the provider asks to wait before the next request; a day at most.
    pub retry_after: Option<Duration>,
    /// The provider's name for the request, for its support.
    pub request_id: Option<String>,
}

impl EmbedError {
    /// A failure of this request, without an HTTP status.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self {
            class,
            http_status: None,
            message: message.into(),
            hint: None,
            model_unusable: false,
            retry_after: None,
            request_id: None,
        }
    }

    /// The model cannot be used: the failure meets every document alike.
    pub fn model_unusable(message: impl Into<String>) -> Self {
        Self {
            model_unusable: true,
            ..Self::new(ErrorClass::Internal, message)
        }
    }

    /// The same with the HTTP status of the answer.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self {
            http_status: Some(status),
            ..self
        }
    }

    /// The same with a word on what to do.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Whether the same inputs in smaller requests may do better: something in them was refused. Errors about the moment
    /// (throttling, timeouts), the caller (a key) or the model are not.
    pub fn blames_the_inputs(&self) -> bool {
        !self.model_unusable
            && matches!(
                self.class,
                ErrorClass::InvalidRequest | ErrorClass::TooLarge | ErrorClass::Internal
            )
    }

    /// Whether the same request may succeed later without anybody's help.
    pub fn retryable(&self) -> bool {
        self.class.retryable() && !self.model_unusable
    }

    /// Whether every request of the pipeline meets this until a person helps: a refused key, a spent quota, a model that
    /// cannot be used. Such a failure says nothing about a document and costs it no attempt.
    pub fn blocks_pipeline(&self) -> bool {
        self.model_unusable || matches!(self.class, ErrorClass::Auth | ErrorClass::QuotaExhausted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_names_are_distinct_and_snake_case() {
        let names: std::collections::BTreeSet<_> =
            ErrorClass::ALL.iter().map(|class| class.as_str()).collect();
        assert_eq!(names.len(), ErrorClass::ALL.len());
        assert!(
            names
                .iter()
                .all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        );
    }

    #[test]
    fn what_needs_a_person_is_not_tried_again() {
        for class in [
            ErrorClass::Auth,
            ErrorClass::QuotaExhausted,
            ErrorClass::InvalidRequest,
            ErrorClass::TooLarge,
        ] {
            assert!(!class.retryable(), "{class}");
        }
        assert!(!EmbedError::model_unusable("model.onnx is missing").retryable());
    }

    #[test]
    fn only_what_every_document_would_meet_blocks_a_pipeline() {
        for class in ErrorClass::ALL {
            let blocks = matches!(class, ErrorClass::Auth | ErrorClass::QuotaExhausted);
            assert_eq!(
                EmbedError::new(class, "").blocks_pipeline(),
                blocks,
                "{class}"
            );
        }
        assert!(EmbedError::model_unusable("model.onnx is missing").blocks_pipeline());
    }
}
