//! Known models and their figures: `catalogue.json`, checked by tests, with the source and date of each figure.
//!
//! A model that is not listed works too: an unknown remote model needs `dimensions` from the user, and a local one is
//! described by its own files ([`crate::local::LocalModel::describe`]).

use std::sync::LazyLock;

use serde::Deserialize;

use crate::ModelName;

/// What holds for a model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// `provider/model`.
    pub name: String,
    /// Numbers in a vector, unless fewer are asked for.
    pub dimensions: usize,
    /// The fewest numbers that may be asked for; None: the model's vectors cannot be shortened.
    pub shortest_dimensions: Option<usize>,
    /// The longest input it reads, in tokens, special tokens included.
    pub max_input_tokens: usize,
    /// The most inputs of one request; None: no limit.
    pub inputs_per_request: Option<usize>,
    /// The most tokens of one request, over all its inputs; None: no limit.
    pub tokens_per_request: Option<usize>,
    /// The tiktoken encoding that counts its tokens; None: the `tokenizer.json` beside the model does.
    pub encoding: Option<String>,
    /// US dollars for a million input tokens; batch discounts not counted.
    pub price_usd_per_million_tokens: f64,
    /// Where the figures come from.
    pub sources: Vec<Source>,
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
        let fewest = self.shortest_dimensions.unwrap_or(self.dimensions);
        (fewest..=self.dimensions).contains(&dimensions)
    }
}

#[derive(Deserialize)]
struct Catalogue {
    models: Vec<ModelInfo>,
}

static CATALOGUE: LazyLock<Vec<ModelInfo>> = LazyLock::new(|| {
    let catalogue: Catalogue = serde_json::from_str(include_str!("../catalogue.json"))
        .expect("a test reads this very file");
    catalogue.models
});

/// All known models.
pub fn models() -> &'static [ModelInfo] {
    &CATALOGUE
}

/// What is known of a model; None for one that is not listed.
pub fn lookup(model: &ModelName) -> Option<&'static ModelInfo> {
    let name = model.to_string();
    CATALOGUE.iter().find(|info| info.name == name)
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
