//! References to keys, and keeping keys out of texts.

use std::path::Path;

use embedder::Secret;
use embedder::key::KeyReference;

use crate::tools::{assert_hidden, first_line};

/// A line that is a reference or a key, then a text that may hold the key.
///
/// A reference is written as it is read, and says where without saying what; a key is never left in a text.
pub fn keys(bytes: &[u8]) {
    let (line, text) = first_line(bytes);
    let Ok(line) = std::str::from_utf8(line) else {
        return;
    };
    if let Ok(reference) = line.parse::<KeyReference>() {
        assert_eq!(reference.to_string(), line);
        match &reference {
            KeyReference::Env(name) => assert!(!name.is_empty() && !name.contains(['=', '\0'])),
            KeyReference::File(path) => assert!(Path::new(path).is_absolute()),
            KeyReference::Vault(name) => assert!(!name.is_empty()),
        }
    }
    if let Ok(secret) = Secret::new(line) {
        let shown = secret.scrub(&String::from_utf8_lossy(text));
        // The mask is made of stars, too.
        if !line.contains('*') {
            assert_hidden(line.trim_end_matches('\r'), &shown);
        }
        assert!(!format!("{secret:?}").contains(line) || "Secret(***)".contains(line));
    }
}
