//! What holds for the model of a remote pipeline, put together from the catalogue and what the user gave.

use crate::catalogue::{self, ModelInfo};
use crate::remote::{Endpoint, EndpointError, InvalidOptions, Purpose, RequestOptions};
use crate::{ModelName, Provider};

/// Inputs of a request to a server of which nothing is known: what text-embeddings-inference takes unless it is told
/// otherwise (its documentation, `--max-client-batch-size`, 2026).
const UNKNOWN_INPUTS: usize = 32;
/// The longest input of a model of which nothing is known, in tokens: that of OpenAI's models, which others imitate. One
/// that reads less says so, and the document fails as too large.
const UNKNOWN_INPUT_TOKENS: usize = 8192;
/// The encoding that estimates tokens for a model whose tokenizer is not at hand.
const ESTIMATING_ENCODING: &str = "cl100k_base";
/// How much of a limit in tokens is used where they are estimated: tokenizers of other models make up to a quarter more
/// tokens of the same prose.
const ESTIMATE_SHARE: (usize, usize) = (4, 5);
/// Tokens of a chunk unless the user says otherwise: long enough for a thought, short enough that its vector means one
/// (common guides recommend 250 to 1,000). The model's own limit, often 8,192, is a page-long blur.
const DEFAULT_CHUNK_TOKENS: usize = 512;

/// A remote model as a pipeline uses it.
#[derive(Debug, Clone)]
pub struct RemoteModel {
    /// Where its requests go.
    pub endpoint: Endpoint,
    /// What the catalogue knows of it.
    pub info: Option<&'static ModelInfo>,
    /// The tiktoken encoding that counts its tokens, or estimates them.
    pub encoding: &'static str,
    /// Whether it counts them exactly.
    pub counts_exactly: bool,
    /// Inputs of a request unless the user says otherwise.
    pub inputs_per_request: usize,
    /// The most tokens of a request.
    pub tokens_per_request: usize,
    /// The longest input, in tokens, prefix included.
    pub max_input_tokens: usize,
}

/// Why a model cannot be used as it is described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescribeError {
    /// Its URL or what goes with it.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The extra headers and fields.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
}

impl DescribeError {
    /// What to do.
    pub fn hint(&self) -> &str {
        match self {
            Self::Endpoint(error) => error.hint(),
            Self::Options(error) => error.hint(),
        }
    }
}

impl RemoteModel {
    /// Puts together what holds for `model` at `base_url` (None: its provider's own), with `request`, a JSON object of
    /// [`RequestOptions`].
    ///
    /// # Errors
    /// The endpoint or the options cannot be.
    pub fn describe(
        model: &ModelName,
        base_url: Option<&str>,
        request: Option<&str>,
    ) -> Result<Self, DescribeError> {
        let options = request.map(RequestOptions::parse).transpose()?;
        let endpoint = Endpoint::new(model, base_url, &options.unwrap_or_default())?;
        let info = catalogue::lookup(model);
        let encoding = info.and_then(|info| info.encoding.as_deref());
        let counts_exactly = encoding.is_some();
        let usable = |tokens: usize| {
            if counts_exactly {
                tokens
            } else {
                tokens / ESTIMATE_SHARE.1 * ESTIMATE_SHARE.0
            }
        };
        let known = |figure: fn(&ModelInfo) -> Option<usize>| info.and_then(figure);
        Ok(Self {
            endpoint,
            info,
            encoding: encoding.unwrap_or(ESTIMATING_ENCODING),
            counts_exactly,
            inputs_per_request: known(|info| info.inputs_per_request).unwrap_or(UNKNOWN_INPUTS),
            tokens_per_request: known(|info| info.tokens_per_request).map_or(usize::MAX, usable),
            max_input_tokens: usable(
                known(|info| Some(info.max_input_tokens)).unwrap_or(UNKNOWN_INPUT_TOKENS),
            ),
        })
    }

    /// The longest chunk, in tokens: what is left of the longest input when the prefix has been put before it.
    pub fn longest_chunk(&self, prefix_tokens: usize) -> usize {
        self.max_input_tokens.saturating_sub(prefix_tokens)
    }

    /// The tokens of a chunk unless the user says otherwise.
    pub fn default_chunk(&self, prefix_tokens: usize) -> usize {
        self.longest_chunk(prefix_tokens).min(DEFAULT_CHUNK_TOKENS)
    }

    /// What goes before every document.
    pub fn document_prefix(&self) -> &str {
        self.endpoint.prefix(Purpose::Document)
    }

    /// Whether the provider is one that anybody pays for by the token and that needs a key.
    pub fn needs_key(&self, model: &ModelName) -> bool {
        model.provider != Provider::Ollama && self.endpoint.needs_key()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(model: &str, base_url: Option<&str>) -> RemoteModel {
        RemoteModel::describe(&model.parse().unwrap(), base_url, None).unwrap()
    }

    #[test]
    fn a_known_model_has_its_own_figures() {
        let small = describe("openai/text-embedding-3-small", None);
        assert!(small.counts_exactly);
        assert_eq!(small.inputs_per_request, 2048);
        assert_eq!(small.tokens_per_request, 300_000);
        assert_eq!(small.longest_chunk(0), 8192);
        assert_eq!(small.default_chunk(0), 512);
    }

    #[test]
    fn where_tokens_are_estimated_a_share_of_the_limit_is_left_free() {
        let unknown = describe("openai/some-model", Some("http://localhost:8080/v1"));
        assert!(!unknown.counts_exactly);
        assert_eq!(unknown.inputs_per_request, UNKNOWN_INPUTS);
        assert!(unknown.longest_chunk(0) < UNKNOWN_INPUT_TOKENS);
        assert_eq!(unknown.longest_chunk(10) + 10, unknown.longest_chunk(0));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_hint() {
        let model = "openai/x".parse().unwrap();
        for (url, request) in [
            (Some("ftp://x"), None),
            (None, Some("[]")),
            (None, Some(r#"{"headers": {"Authorization": "Bearer x"}}"#)),
        ] {
            let error = RemoteModel::describe(&model, url, request).unwrap_err();
            assert!(!error.hint().is_empty(), "{error}");
        }
    }
}
