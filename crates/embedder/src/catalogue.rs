//! Known models and their figures: `catalogue.json`, checked by tests, with the source and date of each figure.
//!
//! A model that is not listed works too: an unknown remote model needs `dimensions` from the user, and a local one is
//! described by its own files ([`crate::local::LocalModel::describe`]).

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{ModelName, Provider};

/// What holds for a model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// `provider/model`.
    pub name: String,
    /// The name of the [`Service`] that has the model, if that is not the provider itself.
    #[serde(default)]
    pub service: Option<String>,
    /// Numbers in a vector, unless others are asked for.
    pub dimensions: usize,
    /// The only numbers that may be asked for, the model's own among them; empty: [`Self::shortest_dimensions`] tells.
    #[serde(default)]
    pub dimension_choices: Vec<usize>,
    /// The fewest numbers that may be asked for; None: the model's vectors cannot be shortened.
    pub shortest_dimensions: Option<usize>,
    /// The field of a request that asks for other dimensions; None: `dimensions`.
    #[serde(default)]
    pub dimensions_field: Option<String>,
    /// The longest input it reads, in tokens, special tokens included.
    pub max_input_tokens: usize,
    /// The most inputs of one request; None: no limit is known.
    pub inputs_per_request: Option<usize>,
    /// The most tokens of one request, over all its inputs; None: no limit is known.
    pub tokens_per_request: Option<usize>,
    /// The tiktoken encoding that counts its tokens; None: that of a local model is the `tokenizer.json` beside it, that of
    /// a remote one is not at hand.
    pub encoding: Option<String>,
    /// US dollars for a million input tokens; batch discounts not counted.
    pub price_usd_per_million_tokens: f64,
    /// Fields of every request.
    #[serde(default)]
    pub body: Map<String, Value>,
    /// Fields of requests for documents.
    #[serde(default)]
    pub document_body: Map<String, Value>,
    /// Fields of requests for queries.
    #[serde(default)]
    pub query_body: Map<String, Value>,
    /// What the model wants before every document.
    #[serde(default)]
    pub document_prefix: Option<String>,
    /// What the model wants before every query.
    #[serde(default)]
    pub query_prefix: Option<String>,
    /// Where the figures come from.
    pub sources: Vec<Source>,
}

/// A service that speaks OpenAI's protocol.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What [`ModelInfo::service`] calls it.
    pub name: String,
    /// Where it is.
    pub base_url: String,
    /// Whether it is known to send vectors as the base64 of 32-bit floats when asked with `encoding_format`.
    pub base64: bool,
    /// Where this comes from.
    pub source: String,
    /// As of when, as year and month.
    pub date: String,
}

/// Where some of a model's figures come from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The names of the figures, as in the file.
    pub figures: Vec<String>,
    /// The document, by name.
    pub source: String,
    /// As of when, as year and month.
    pub date: String,
}

impl ModelInfo {
    /// Whether vectors of `dimensions` numbers can be asked for.
    pub fn allows_dimensions(&self, dimensions: usize) -> bool {
        if !self.dimension_choices.is_empty() {
            return self.dimension_choices.contains(&dimensions);
        }
        let fewest = self.shortest_dimensions.unwrap_or(self.dimensions);
        (fewest..=self.dimensions).contains(&dimensions)
    }

    /// The service that has the model; None: the provider itself.
    pub fn service(&self) -> Option<&'static Service> {
        let name = self.service.as_deref()?;
        CATALOGUE.services.iter().find(|known| known.name == name)
    }
}

#[derive(Deserialize)]
struct Catalogue {
    services: Vec<Service>,
    models: Vec<ModelInfo>,
}

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../catalogue.json")).expect("a test reads this very file")
});

/// All known models.
pub fn models() -> &'static [ModelInfo] {
    &CATALOGUE.models
}

/// What is known of a model; None for one that is not listed. An Azure deployment is known if it bears its model's name,
/// an Ollama model with and without its usual tag, `:latest`.
pub fn lookup(model: &ModelName) -> Option<&'static ModelInfo> {
    let name = model.to_string();
    let name = match model.provider {
        Provider::Ollama => name.strip_suffix(":latest").unwrap_or(&name),
        _ => &name,
    };
    models().iter().find(|info| info.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_model_has_a_valid_name_and_is_found_by_it() {
        for info in models() {
            let name: ModelName = info.name.parse().unwrap();
            assert_eq!(lookup(&name), Some(info));
        }
        assert_eq!(lookup(&"openai/no-such-model".parse().unwrap()), None);
    }

    #[test]
    fn every_figure_states_its_source_and_date() {
        let json: serde_json::Value =
            serde_json::from_str(include_str!("../catalogue.json")).unwrap();
        for (model, info) in json["models"].as_array().unwrap().iter().zip(models()) {
            let sourced: Vec<&str> = info
                .sources
                .iter()
                .flat_map(|source| source.figures.iter().map(String::as_str))
                .collect();
            for figure in &sourced {
                assert!(
                    model.get(figure).is_some_and(|value| !value.is_null()),
                    "{}: no {figure}",
                    info.name
                );
            }
            for (figure, value) in model.as_object().unwrap() {
                if figure != "name" && figure != "sources" && !value.is_null() {
                    assert!(
                        sourced.contains(&figure.as_str()),
                        "{}: {figure} has no source",
                        info.name
                    );
                }
            }
            assert!(
                info.sources
                    .iter()
                    .all(|source| !source.source.is_empty() && source.date.len() == 7)
            );
        }
    }

    #[test]
    fn services_exist_and_say_where_they_are() {
        for info in models() {
            assert_eq!(info.service.is_some(), info.service().is_some());
        }
        for service in &CATALOGUE.services {
            assert!(service.base_url.starts_with("https://"));
            assert!(!service.source.is_empty() && service.date.len() == 7);
            assert!(models().iter().any(|info| info.service() == Some(service)));
        }
    }

    #[test]
    fn a_models_own_dimensions_are_among_its_choices() {
        for info in models() {
            assert!(info.allows_dimensions(info.dimensions), "{}", info.name);
        }
        let voyage = lookup(&"openai/voyage-3.5".parse().unwrap()).unwrap();
        assert!(voyage.allows_dimensions(2048) && !voyage.allows_dimensions(1000));
    }

    #[test]
    fn a_deployment_and_a_tag_are_found_by_their_models_name() {
        let found = |name: &str| lookup(&name.parse().unwrap()).map(|info| info.dimensions);
        assert_eq!(found("azure/text-embedding-3-large"), Some(3072));
        assert_eq!(found("azure/my-deployment"), None);
        assert_eq!(found("ollama/nomic-embed-text:latest"), Some(768));
        assert_eq!(found("ollama/nomic-embed-text:v2"), None);
        assert_eq!(found("openai/nomic-embed-text:latest"), None);
    }

    #[test]
    fn encodings_exist() {
        for encoding in models().iter().filter_map(|info| info.encoding.as_deref()) {
            chunker::Tokenizer::tiktoken(encoding).unwrap();
        }
    }

    #[test]
    fn vectors_are_shortened_only_where_the_model_allows_it() {
        let small = lookup(&"openai/text-embedding-3-small".parse().unwrap()).unwrap();
        assert!(small.allows_dimensions(1536) && small.allows_dimensions(512));
        assert!(!small.allows_dimensions(1537) && !small.allows_dimensions(0));
        let ada = lookup(&"openai/text-embedding-ada-002".parse().unwrap()).unwrap();
        assert!(ada.allows_dimensions(1536) && !ada.allows_dimensions(512));
    }
}
