//! Doors to what is private, for the fuzz targets in `tests/fuzz_targets` and for nobody else.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::classify::{self, Refusal};
use super::headers::{self, ServerLimits};
use super::request::Wire;
use super::{Endpoint, Purpose, answer};
use crate::{EmbedError, Secret};

/// The longest answer that is read, in bytes.
pub fn longest_answer(inputs: usize, dimensions: usize) -> usize {
    answer::longest(inputs, dimensions)
}

/// Decodes an answer in the form of OpenAI or of Ollama.
///
/// # Errors
/// As [`Client::embed`](super::Client::embed) about what an answer holds.
pub fn decode(
    ollama: bool,
    body: &[u8],
    inputs: usize,
    dimensions: usize,
) -> Result<(Vec<Vec<f32>>, Option<u64>), EmbedError> {
    let wire = if ollama { Wire::Ollama } else { Wire::OpenAi };
    answer::decode(wire, body, inputs, dimensions)
}

/// What headers say; those that no HTTP header can be are left out.
pub fn read_headers(
    lines: &[(&[u8], &[u8])],
    status: u16,
    now: SystemTime,
) -> (Option<Duration>, ServerLimits, Option<String>) {
    let map: HeaderMap = lines
        .iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name).ok()?;
            Some((name, HeaderValue::from_bytes(value).ok()?))
        })
        .collect();
    let wait = headers::retry_after(&map, status, now);
    (wait, headers::limits(&map), headers::request_id(&map))
}

/// The error that a refusal is.
pub fn refusal(status: u16, body: &[u8], host: &str, key: Option<&Secret>) -> EmbedError {
    classify::error(status, &Refusal::read(body), host, key)
}

/// The error that stands in an answer with a good status, if one does.
pub fn refusal_inside(body: &[u8], host: &str, key: Option<&Secret>) -> Option<EmbedError> {
    let refusal = Refusal::inside_an_answer(body)?;
    let status = refusal.status().unwrap_or(502);
    Some(classify::error(status, &refusal, host, key))
}

/// The headers of a request.
pub fn request_headers(endpoint: &Endpoint, key: Option<&Secret>) -> Vec<(String, Vec<u8>)> {
    let headers = endpoint.headers(key);
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect()
}

/// The body of a request.
pub fn request_body(
    endpoint: &Endpoint,
    purpose: Purpose,
    inputs: &[&str],
    dimensions: usize,
) -> Vec<u8> {
    endpoint.body(purpose, inputs, dimensions)
}
