//! Where a pipeline's key is kept: a reference to a key, never the key.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::secret::looks_like_key;
use crate::{InvalidSecret, Secret};

/// The largest file that is read for a key, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Where a key is kept, as users write it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyReference {
    /// `env:NAME`: a variable of the server's environment.
    Env(String),
    /// `file:/PATH`: a file of the server.
    File(PathBuf),
    /// `vault:NAME`: a secret of Supabase Vault, read through SQL by whoever has a connection.
    Vault(String),
}

/// The kinds, for messages.
const KINDS: &str =
    "env:NAME (a variable of the server), file:/PATH (a file of the server) or vault:NAME";

/// A text that is no reference to a key. What may be a key itself is not quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyReference {
    /// No known kind before a colon; perhaps the key itself.
    #[error("api_key says where the key is kept, not the key: write {KINDS}")]
    NoKind,
    /// A reference whose name looks like a key.
    #[error("a key must not be written here, only where it is kept: write {KINDS}")]
    LooksLikeKey,
    /// Nothing after the colon.
    #[error("\"{0}:\" names no key: write {KINDS}")]
    Empty(&'static str),
    /// A path that depends on the working directory.
    #[error("a key file is named by its absolute path: file:/PATH")]
    RelativePath,
    /// A name that no variable or file has.
    #[error("the name after \"{0}:\" holds a character that it cannot have")]
    BadCharacters(&'static str),
}

impl FromStr for KeyReference {
    type Err = InvalidKeyReference;

    fn from_str(text: &str) -> Result<Self, InvalidKeyReference> {
        let (kind, name) = text.split_once(':').ok_or(InvalidKeyReference::NoKind)?;
        let kind = ["env", "file", "vault"]
            .into_iter()
            .find(|known| *known == kind)
            .ok_or(InvalidKeyReference::NoKind)?;
        if name.is_empty() {
            return Err(InvalidKeyReference::Empty(kind));
        }
        if name
            .split('/')
            .any(|part| looks_like_key(part) && !part.contains('.'))
        {
            return Err(InvalidKeyReference::LooksLikeKey);
        }
        let never = if kind == "env" {
            name.contains(['=', '\0'])
        } else {
            name.contains(char::is_control)
        };
        if never || name.trim() != name {
            return Err(InvalidKeyReference::BadCharacters(kind));
        }
        match kind {
            "env" => Ok(Self::Env(name.to_owned())),
            "file" if Path::new(name).is_absolute() => Ok(Self::File(PathBuf::from(name))),
            "file" => Err(InvalidKeyReference::RelativePath),
            _ => Ok(Self::Vault(name.to_owned())),
        }
    }
}

impl fmt::Display for KeyReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Vault(name) => write!(f, "vault:{name}"),
        }
    }
}

/// A key that cannot be had. Names the reference, never what was found there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The environment lacks the variable.
    #[error("{0}: the server's environment has no such variable")]
    NoVariable(KeyReference),
    /// The file cannot be read.
    #[error("{reference}: {reason}")]
    Unreadable {
        /// Which one.
        reference: KeyReference,
        /// Why not.
        reason: String,
    },
    /// What is there is no key.
    #[error("{reference}: {reason}")]
    Invalid {
        /// Which one.
        reference: KeyReference,
        /// Why not.
        reason: InvalidSecret,
    },
}

/// The key in a variable of this process's environment.
///
/// # Errors
/// There is no such variable, or what it holds is no key ([`Secret::new`]).
pub fn read_env(name: &str) -> Result<Secret, KeyError> {
    let reference = || KeyReference::Env(name.to_owned());
    let value = std::env::var_os(name).ok_or_else(|| KeyError::NoVariable(reference()))?;
    secret(value.to_str(), reference)
}

/// The key in a file: a regular file of at most 64 KiB under an absolute path. One line break at its end is not part of
/// the key.
///
/// # Errors
/// The file cannot be read or is none of this, or what it holds is no key ([`Secret::new`]).
pub fn read_file(path: &Path) -> Result<Secret, KeyError> {
    let reference = || KeyReference::File(path.to_owned());
    let unreadable = |reason: String| KeyError::Unreadable {
        reference: reference(),
        reason,
    };
    if !path.is_absolute() {
        return Err(unreadable("the path is not absolute".to_owned()));
    }
    // Asked before the file is opened: opening a pipe waits for its writer.
    let found = fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if !found.is_file() {
        return Err(unreadable("this is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(format!(
            "the file is larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    secret(std::str::from_utf8(&bytes).ok(), reference)
}

fn secret(
    value: Option<&str>,
    reference: impl FnOnce() -> KeyReference,
) -> Result<Secret, KeyError> {
    value
        .ok_or(InvalidSecret::NotHeaderSafe)
        .and_then(Secret::new)
        .map_err(|reason| KeyError::Invalid {
            reference: reference(),
            reason,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<KeyReference, InvalidKeyReference> {
        text.parse()
    }

    #[test]
    fn a_reference_is_read_and_written_alike() {
        for text in [
            "env:OPENAI_API_KEY",
            "file:/etc/keys/openai",
            "file:/etc/sk-keys/a:b",
            "vault:openai",
            "vault:my key: prod",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_key_in_the_place_of_a_reference_is_refused_and_not_repeated() {
        for text in [
            "sk-abcdefghijklmnop",
            "vault:sk-abcdefghijklmnop",
            "env:sk-abcdefghijklmnop",
            "file:/sk-abcdefghijklmnop",
            "abcdefghijklmnop",
            "Vault:abcdefghijklmnop",
            "key:abcdefghijklmnop",
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(!message.contains("abcdefgh"), "{message}");
            assert!(
                message.contains("env:NAME")
                    && message.contains("file:/PATH")
                    && message.contains("vault:NAME"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_reference_names_something() {
        for text in [
            "env:",
            "file:",
            "vault:",
            "env: A",
            "env:A=B",
            "env:A\0",
            "file:key",
            "vault:a\n",
            "",
            ":",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_key_comes_from_the_environment() {
        // PATH is set wherever tests run; what it holds is header-safe or is not.
        assert!(!matches!(read_env("PATH"), Err(KeyError::NoVariable(_))));
        let error = read_env("PG_INGEST_NO_SUCH_VARIABLE").unwrap_err();
        assert!(error.to_string().contains("env:PG_INGEST_NO_SUCH_VARIABLE"));
    }

    #[test]
    fn a_key_comes_from_a_small_regular_file_only() {
        let dir = std::env::temp_dir().join(format!("pg_ingest_key_{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, content).unwrap();
            read_file(&path)
        };
        assert_eq!(file("good", b"abc\n"), Ok(Secret::new("abc").unwrap()));
        for (name, content) in [
            ("empty", &b"\n"[..]),
            ("binary", b"top\xffsecret"),
            ("two", b"topsecret\ntopsecret\n"),
            ("large", &b"topsecret".repeat(8_000)),
        ] {
            let message = file(name, content).unwrap_err().to_string();
            assert!(
                message.contains(&dir.join(name).display().to_string()),
                "{message}"
            );
            assert!(!message.contains("topsecret"), "{message}");
        }
        assert!(read_file(&dir).unwrap_err().to_string().contains("regular"));
        assert!(read_file(&dir.join("missing")).is_err());
        assert!(read_file(Path::new("relative")).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(env|file|vault|)[:/]{0,2}\\PC{0,30}") {
            if let Ok(reference) = parse(&text) {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }
}
