//! What a user may add to every request of a pipeline.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::looks_like_key;

/// Extra headers and fields of the requests of a pipeline, as a JSON object. What is not given comes from the catalogue,
/// field by field; a field given as null takes away what the catalogue would send.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestOptions {
    /// Headers, by name. Everybody who sees the pipeline's definition sees them: a key does not belong here.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Fields of every request.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub body: Map<String, Value>,
    /// Fields of requests for documents, such as `{"input_type": "document"}`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub document_body: Map<String, Value>,
    /// Fields of requests for queries.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub query_body: Map<String, Value>,
    /// Goes before every document, such as `search_document: `. It counts as part of the input's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document_prefix: Option<String>,
    /// Goes before every query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_prefix: Option<String>,
}

/// Options that no request can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// Not the JSON that is expected.
    #[error("the request options cannot be read: {0}")]
    Json(String),
    /// A name that no HTTP header has.
    #[error("\"{0}\" is no name of an HTTP header")]
    HeaderName(String),
    /// A value that no HTTP header can carry. It is not quoted.
    #[error("the value of the header \"{0}\" holds characters that a header cannot carry")]
    HeaderValue(String),
    /// A header with a key in it.
    #[error("the header \"{0}\" carries credentials, which a pipeline's definition would show")]
    CredentialHeader(String),
    /// A field with a key in it.
    #[error(
        "the field \"{0}\" holds what looks like a key, which a pipeline's definition would show"
    )]
    CredentialField(String),
    /// A header of the connection, or one that pg_ingest sets.
    #[error("the header \"{0}\" is set by pg_ingest and cannot be given")]
    ReservedHeader(String),
    /// A field that pg_ingest sets, or one that changes what an answer means.
    #[error(
        "the field \"{0}\" cannot be given: pg_ingest sets it, or it would change what the answer means"
    )]
    ReservedField(String),
    /// More than is reasonable.
    #[error("the request options are too large: at most {what}")]
    TooLarge {
        /// How much is allowed.
        what: &'static str,
    },
}

impl InvalidOptions {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Json(_) => {
                "The options are a JSON object with any of: headers, body, document_body, query_body (objects), \
                 document_prefix, query_prefix (strings)."
            }
            Self::HeaderName(_) | Self::HeaderValue(_) => {
                "Header names are letters, digits and dashes; values are printable ASCII."
            }
            Self::CredentialHeader(_) | Self::CredentialField(_) => {
                "Set api_key to a reference (env:NAME, file:/PATH or vault:NAME); it is sent in the header the provider \
                 wants."
            }
            Self::ReservedHeader(_) => "Leave it out.",
            Self::ReservedField(_) => {
                "The model and the dimensions are arguments of create_pipeline; the encoding follows from the provider."
            }
            Self::TooLarge { .. } => "Give less.",
        }
    }
}

/// Headers that carry a key. What else ends like one is refused too ([`carries_credentials`]).
const CREDENTIAL_HEADERS: [&str; 8] = [
    "authorization",
    "proxy-authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
    "cookie",
    "x-amz-security-token",
];

/// Headers of the connection (RFC 9110, section 7.6.1) and those that the client sets.
const RESERVED_HEADERS: [&str; 16] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "accept",
    "accept-encoding",
    "expect",
    "user-agent",
    "set-cookie",
];

/// Fields that make the request, or that make the answer something else than one float vector for each input which
/// depends on that input alone: packed numbers (Voyage, Cohere, Jina), many vectors an input and chunks that see their
/// neighbours (Jina), streams.
const RESERVED_FIELDS: [&str; 14] = [
    "model",
    "input",
    "inputs",
    "texts",
    "prompt",
    "embedding_type",
    "embedding_types",
    "output_dtype",
    "embed_dtype",
    "return_multivector",
    "late_chunking",
    "return_tokens",
    "stream",
    "truncate_dim",
];

/// The longest prefix, in bytes: instructions of models are a sentence or two.
const LONGEST_PREFIX: usize = 2_000;

fn carries_credentials(name: &str) -> bool {
    CREDENTIAL_HEADERS.contains(&name)
        || ["-api-key", "-token", "-secret", "-password"]
            .iter()
            .any(|end| name.ends_with(end))
}

impl RequestOptions {
    /// The options in a JSON text.
    ///
    /// # Errors
    /// It is no JSON object, has an unknown field, or what [`validate`](Self::validate) refuses.
    pub fn parse(json: &str) -> Result<Self, InvalidOptions> {
        let refused = |error: serde_json::Error| InvalidOptions::Json(error.to_string());
        // A derived reader would take an array, too.
        let object: Map<String, Value> = serde_json::from_str(json).map_err(refused)?;
        let options: Self = serde_json::from_value(object.into()).map_err(refused)?;
        options.validate()?;
        Ok(options)
    }

    /// Whether requests can have these options. An [`Endpoint`](super::Endpoint) asks the same.
    ///
    /// # Errors
    /// Headers that are malformed, carry credentials or belong to the connection; fields that pg_ingest sets or that
    /// change what an answer means; more than 32 headers, 64 fields or 2,000 bytes of prefix.
    pub fn validate(&self) -> Result<(), InvalidOptions> {
        self.header_map()?;
        let bodies = [&self.body, &self.document_body, &self.query_body];
        for (field, value) in bodies.into_iter().flatten() {
            // Both are understood in every answer; only the user knows whether a compatible server sends base64.
            let encoding = ["float", "base64"].contains(&value.as_str().unwrap_or_default());
            if value.as_str().is_some_and(looks_like_key) {
                return Err(InvalidOptions::CredentialField(field.clone()));
            }
            if RESERVED_FIELDS.contains(&field.as_str()) || field == "encoding_format" && !encoding
            {
                return Err(InvalidOptions::ReservedField(field.clone()));
            }
        }
        if bodies.iter().any(|body| body.len() > 64) {
            return Err(InvalidOptions::TooLarge { what: "64 fields" });
        }
        let prefixes = [&self.document_prefix, &self.query_prefix];
        if prefixes
            .into_iter()
            .flatten()
            .any(|prefix| prefix.len() > LONGEST_PREFIX)
        {
            return Err(InvalidOptions::TooLarge {
                what: "2,000 bytes of prefix",
            });
        }
        Ok(())
    }

    /// The headers, checked.
    pub(super) fn header_map(&self) -> Result<HeaderMap, InvalidOptions> {
        if self.headers.len() > 32 {
            return Err(InvalidOptions::TooLarge { what: "32 headers" });
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| InvalidOptions::HeaderName(name.clone()))?;
            if carries_credentials(header.as_str()) || looks_like_key(value) {
                return Err(InvalidOptions::CredentialHeader(name.clone()));
            }
            if RESERVED_HEADERS.contains(&header.as_str()) {
                return Err(InvalidOptions::ReservedHeader(name.clone()));
            }
            let value = HeaderValue::from_str(value)
                .ok()
                .filter(|_| value.is_ascii() && value.len() <= 4096)
                .ok_or_else(|| InvalidOptions::HeaderValue(name.clone()))?;
            headers.insert(header, value);
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_read_and_written_alike() {
        let json = r#"{"headers":{"x-team":"docs"},"body":{"user":"me"},"document_body":{"input_type":"document"},"query_body":{"input_type":"query"},"document_prefix":"d: ","query_prefix":"q: "}"#;
        let options = RequestOptions::parse(json).unwrap();
        assert_eq!(serde_json::to_string(&options).unwrap(), json);
        assert_eq!(
            RequestOptions::parse("{}").unwrap(),
            RequestOptions::default()
        );
    }

    #[test]
    fn a_misspelt_option_is_an_error_that_lists_the_right_ones() {
        let error = RequestOptions::parse(r#"{"header": {}}"#).unwrap_err();
        assert!(error.to_string().contains("`headers`"), "{error}");
        assert!(error.hint().contains("query_prefix"));
        for json in ["", "[]", "1", r#"{"headers": {"a": 1}}"#] {
            assert!(RequestOptions::parse(json).is_err(), "{json}");
        }
    }

    fn with_header(name: &str, value: &str) -> Result<RequestOptions, InvalidOptions> {
        RequestOptions::parse(&serde_json::json!({"headers": {name: value}}).to_string())
    }

    #[test]
    fn a_key_in_a_header_is_refused_and_not_repeated() {
        for name in [
            "Authorization",
            "proxy-authorization",
            "API-Key",
            "x-api-key",
            "x-goog-api-key",
            "Cookie",
            "x-my-token",
            "cf-access-client-secret",
        ] {
            let error = with_header(name, "topsecret").unwrap_err();
            assert_eq!(error, InvalidOptions::CredentialHeader(name.to_owned()));
            assert!(error.hint().contains("api_key"));
            assert!(!error.to_string().contains("topsecret"));
        }
    }

    #[test]
    fn headers_of_the_connection_are_refused() {
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "Connection",
            "TE",
        ] {
            assert_eq!(
                with_header(name, "x"),
                Err(InvalidOptions::ReservedHeader(name.to_owned()))
            );
        }
        assert!(with_header("openai-organization", "org-1").is_ok());
    }

    #[test]
    fn a_header_cannot_smuggle_another() {
        for value in ["a\r\nauthorization: b", "a\nb", "a\0", "ä"] {
            assert_eq!(
                with_header("x-team", value),
                Err(InvalidOptions::HeaderValue("x-team".to_owned())),
                "{value:?}"
            );
        }
        for name in ["", "a b", "a:b", "a\r\nb"] {
            assert_eq!(
                with_header(name, "x"),
                Err(InvalidOptions::HeaderName(name.to_owned()))
            );
        }
    }

    #[test]
    fn what_looks_like_a_key_is_refused_whatever_its_name() {
        let key = "sk-abcdefghijklmnopqrstuvwxyz";
        for json in [
            serde_json::json!({"headers": {"x-team": key}}),
            serde_json::json!({"body": {"user": key}}),
            serde_json::json!({"query_body": {"user": key}}),
        ] {
            let error = RequestOptions::parse(&json.to_string()).unwrap_err();
            assert!(error.hint().contains("api_key"));
            assert!(!error.to_string().contains("abcdef"));
        }
    }

    #[test]
    fn the_encoding_of_vectors_may_be_chosen() {
        for encoding in ["float", "base64"] {
            let json = serde_json::json!({"body": {"encoding_format": encoding}}).to_string();
            assert!(RequestOptions::parse(&json).is_ok());
        }
    }

    #[test]
    fn what_would_change_the_meaning_of_an_answer_is_refused() {
        for part in ["body", "document_body", "query_body"] {
            for field in [
                "model",
                "input",
                "encoding_format",
                "output_dtype",
                "late_chunking",
            ] {
                let json = serde_json::json!({part: {field: 1}}).to_string();
                assert_eq!(
                    RequestOptions::parse(&json),
                    Err(InvalidOptions::ReservedField(field.to_owned()))
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}|\\{\"(headers|body)\": ?\\{\"[a-z-]{0,12}\": ?\"\\PC{0,9}\"\\}\\}") {
            if let Ok(options) = RequestOptions::parse(&text) {
                prop_assert!(options.validate().is_ok());
            }
        }
    }
}
