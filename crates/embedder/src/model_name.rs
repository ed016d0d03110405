//! Names of models, `provider/model`.

use std::fmt;
use std::str::FromStr;

/// Who computes the vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// OpenAI, and with a `base_url` whatever speaks its protocol.
    OpenAi,
    /// Azure OpenAI.
    Azure,
    /// An Ollama server.
    Ollama,
    /// This process.
    Local,
}

impl Provider {
    /// All providers, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Azure, Self::Ollama, Self::Local];

    /// The name users write before the slash.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Azure => "azure",
            Self::Ollama => "ollama",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A model's name as users write it, `openai/text-embedding-3-small`. What follows the first slash is the provider's own
/// name and may hold further slashes (`openai/BAAI/bge-m3`), except for a local model, whose name is a directory's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelName {
    /// Who computes the vectors.
    pub provider: Provider,
    /// The provider's name for the model.
    pub name: String,
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.name)
    }
}

/// A text that names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidModelName {
    /// No slash.
    #[error(
        "\"{0}\" names no provider; write provider/model, where the provider is one of {KNOWN}"
    )]
    NoProvider(String),
    /// Something unknown before the slash.
    #[error("unknown provider \"{0}\"; known are {KNOWN}")]
    UnknownProvider(String),
    /// Nothing after the slash.
    #[error("\"{0}/\" names a provider but no model")]
    NoModel(Provider),
    /// Control characters or white space around the name.
    #[error("the model name {0:?} holds control characters or white space around it")]
    BadCharacters(String),
    /// A local name that is more than the name of one directory.
    #[error(
        "a local model's name is the plain name of a directory, without '/', '\\' or a leading '.': \"{0}\" is not"
    )]
    NotADirectoryName(String),
}

/// Provider names for error messages; a test keeps it in line with [`Provider::ALL`].
const KNOWN: &str = "openai, azure, ollama, local";

impl FromStr for ModelName {
    type Err = InvalidModelName;

    fn from_str(text: &str) -> Result<Self, InvalidModelName> {
        let (provider, name) = text
            .split_once('/')
            .ok_or_else(|| InvalidModelName::NoProvider(text.to_owned()))?;
        let provider = Provider::ALL
            .into_iter()
            .find(|known| known.as_str() == provider)
            .ok_or_else(|| InvalidModelName::UnknownProvider(provider.to_owned()))?;
        if name.is_empty() {
            return Err(InvalidModelName::NoModel(provider));
        }
        if name.trim() != name || name.contains(char::is_control) {
            return Err(InvalidModelName::BadCharacters(name.to_owned()));
        }
        // A local name becomes part of a path below pg_ingest.model_dir and must not lead out of it.
        if provider == Provider::Local && (name.contains(['/', '\\']) || name.starts_with('.')) {
            return Err(InvalidModelName::NotADirectoryName(name.to_owned()));
        }
        Ok(Self {
            provider,
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelName, InvalidModelName> {
        text.parse()
    }

    #[test]
    fn a_name_is_read_and_written_alike() {
        for text in [
            "openai/text-embedding-3-small",
            "openai/BAAI/bge-m3",
            "ollama/nomic-embed-text:v1.5",
            "local/x",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn errors_list_the_known_providers() {
        let known = Provider::ALL.map(Provider::as_str).join(", ");
        for text in ["text-embedding-3-small", "open-ai/x", "OpenAI/x", "/x", ""] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(&known), "{message}");
        }
    }

    #[test]
    fn a_local_name_cannot_leave_its_directory() {
        for name in [
            "..", ".", "../x", "a/b", "/etc", "a\\b", ".hidden", "a\0b", " a", "a\n", "",
        ] {
            assert!(parse(&format!("local/{name}")).is_err(), "{name:?}");
        }
        assert!(parse("local/all-MiniLM-L6-v2").is_ok());
        assert!(parse("local/v1..2").is_ok());
    }
}
