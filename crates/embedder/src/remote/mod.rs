//! Models behind an HTTP API: OpenAI and what speaks its protocol, Azure OpenAI, Ollama.
//!
//! The way through: [`RequestOptions`] and the model's name make an [`Endpoint`] (`options`, `endpoint`), which knows the
//! address, the headers and the frame of every request (`request`). A [`Client`] sends one and reads the answer (`client`,
//! `answer`); `headers` reads what the provider says about its limits; `classify` sorts what went wrong into an
//! [`EmbedError`](crate::EmbedError).

mod answer;
mod classify;
mod client;
mod endpoint;
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod options;
mod request;

pub use client::{Answer, Client};
pub use endpoint::{Endpoint, EndpointError, may_hold_key};
pub use headers::ServerLimits;
pub use options::{InvalidOptions, RequestOptions};

/// What a text is embedded for. Some models tell documents from queries and find more that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To be found.
    Document,
    /// To find with.
    Query,
}

/// Decodes an answer of the OpenAI shape, without a network: for measuring.
///
/// # Errors
/// As [`Client::embed`] about what an answer holds.
#[doc(hidden)]
pub fn decode_openai_answer(
    body: &[u8],
    inputs: usize,
    dimensions: usize,
) -> Result<Vec<Vec<f32>>, crate::EmbedError> {
    answer::decode(request::Wire::OpenAi, body, inputs, dimensions).map(|(vectors, _)| vectors)
}
