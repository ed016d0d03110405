//! How the providers differ: path, key, and the shape of an error.

use hyper::Uri;
use serde_json::json;

use crate::judge::Arrival;

/// As whom the API speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Azure,
    Ollama,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    OpenAi,
    Azure {
        deployment: String,
        has_version: bool,
    },
    Ollama,
}

impl Route {
    /// None: nothing is there.
    pub(crate) fn of(uri: &Uri, openai_path: &str) -> Option<Self> {
        let path = uri.path();
        if path == openai_path {
            return Some(Self::OpenAi);
        }
        if path == "/api/embed" {
            return Some(Self::Ollama);
        }
        let deployment = path
            .strip_prefix("/openai/deployments/")?
            .strip_suffix("/embeddings")
            .filter(|name| !name.is_empty() && !name.contains('/'))?;
        let has_version = uri
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .any(|pair| matches!(pair.split_once('='), Some(("api-version", version)) if !version.is_empty()));
        Some(Self::Azure {
            deployment: deployment.to_owned(),
            has_version,
        })
    }

    pub(crate) const fn dialect(&self) -> Dialect {
        match self {
            Self::OpenAi => Dialect::OpenAi,
            Self::Azure { .. } => Dialect::Azure,
            Self::Ollama => Dialect::Ollama,
        }
    }
}

impl Dialect {
    /// The key of a request, where this provider looks for it.
    pub(crate) fn key(self, arrival: &Arrival) -> Option<&str> {
        match self {
            Self::Azure => arrival.header("api-key"),
            Self::OpenAi | Self::Ollama => arrival.header("authorization")?.strip_prefix("Bearer "),
        }
    }
}

/// An answer that says what is wrong.
#[derive(Debug, Clone, Default)]
pub(crate) struct ApiError {
    pub status: u16,
    pub message: String,
    /// OpenAI's `type`.
    pub kind: &'static str,
    pub param: Option<&'static str>,
    pub code: Option<&'static str>,
    pub headers: Vec<(String, String)>,
}

impl ApiError {
    /// A request that no other time makes right.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            message: message.into(),
            kind: "invalid_request_error",
            ..Self::default()
        }
    }

    /// What OpenAI says of an input that is empty, or no text.
    pub(crate) fn invalid_input() -> Self {
        Self::invalid(
            "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference.",
        )
    }

    /// In the shape of this provider. Azure hands on what OpenAI's code says of a request, and speaks for itself where a
    /// request does not get so far.
    pub(crate) fn body(&self, dialect: Dialect) -> String {
        match dialect {
            Dialect::Ollama => json!({ "error": self.message }),
            Dialect::Azure if [401, 404, 429].contains(&self.status) => {
                let code = self.code.map_or(self.status.to_string(), str::to_owned);
                json!({ "error": { "code": code, "message": self.message } })
            }
            Dialect::Azure | Dialect::OpenAi => json!({ "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            } }),
        }
        .to_string()
    }
}

/// A key as OpenAI's error shows it: its beginning and end.
pub(crate) fn starred(key: &str) -> String {
    let characters: Vec<char> = key.chars().collect();
    let (head, tail) = match characters.len() {
        13.. => (8, 4),
        8.. => (3, 2),
        _ => (0, 0),
    };
    let stars = characters.len() - head - tail;
    let shown = |part: &[char]| part.iter().collect::<String>();
    format!(
        "{}{}{}",
        shown(&characters[..head]),
        "*".repeat(stars),
        shown(&characters[head + stars..]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(uri: &str) -> Option<Route> {
        Route::of(&uri.parse().expect("a URI"), "/v1/embeddings")
    }

    #[test]
    fn every_provider_has_its_path() {
        assert_eq!(route("/v1/embeddings"), Some(Route::OpenAi));
        assert_eq!(route("/api/embed"), Some(Route::Ollama));
        let azure = |has_version| {
            Some(Route::Azure {
                deployment: "small".into(),
                has_version,
            })
        };
        let path = "/openai/deployments/small/embeddings";
        assert_eq!(
            route(&format!("{path}?api-version=2024-10-21")),
            azure(true)
        );
        assert_eq!(route(&format!("{path}?api-version=")), azure(false));
        assert_eq!(route(path), azure(false));
        for nothing in [
            "/",
            "/embeddings",
            "/v1/embeddings/",
            "/v1/models",
            "/openai/deployments//embeddings",
            "/openai/deployments/a/b/embeddings",
        ] {
            assert_eq!(route(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_starred_key_shows_its_ends_only() {
        assert_eq!(starred("sk-proj-1234567890abcd"), "sk-proj-**********abcd");
        assert_eq!(starred("sk-123456"), "sk-****56");
        assert_eq!(starred("secret"), "******");
    }
}
