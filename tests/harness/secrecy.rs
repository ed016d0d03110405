//! Looking for keys where none must be.

use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;

use crate::Database;
use crate::remote::{KEY, OTHER_KEY, server_log};

/// So many characters of a key in a row are a leak.
const PIECE: usize = 12;

/// Whether a piece of one of the keys is in there.
pub fn holds_a_key(bytes: &[u8]) -> bool {
    static PIECES: OnceLock<HashSet<&[u8]>> = OnceLock::new();
    let pieces = PIECES.get_or_init(|| {
        let keys = [KEY, OTHER_KEY].map(str::as_bytes);
        keys.iter().flat_map(|key| key.windows(PIECE)).collect()
    });
    let mut begins = [false; 256];
    for piece in pieces {
        begins[usize::from(piece[0])] = true;
    }
    bytes
        .windows(PIECE)
        .any(|window| begins[usize::from(window[0])] && pieces.contains(window))
}

/// Looks into every table and view of the extension, what the server shows of sessions and settings, the server's log, and
/// the words that a client has read.
#[track_caller]
pub fn the_key_is_nowhere(db: &Database, read_by_the_client: &[String]) {
    let mut places: Vec<String> = db.all(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'ingest' AND c.relkind IN ('r', 'v', 'm', 'p')",
    );
    places.extend(
        [
            "pg_stat_activity",
            "pg_settings",
            "ingest.doctor()",
            "ingest.worker_states()",
        ]
        .map(str::to_owned),
    );
    assert!(places.contains(&"ingest.failures".to_owned()), "{places:?}");
    for place in places {
        for row in db.all::<String>(&format!("SELECT t::text FROM {place} t")) {
            assert!(!holds_a_key(row.as_bytes()), "{place}: {row}");
        }
    }
    for line in server_log(db.cluster()).lines() {
        assert!(!holds_a_key(line.as_bytes()), "server log: {line}");
    }
    for text in read_by_the_client {
        assert!(!holds_a_key(text.as_bytes()), "a client read {text}");
    }
}

/// The files below a directory that hold a piece of a key, those left out that are there to hold one.
pub fn files_with_a_key(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            found.extend(files_with_a_key(&path));
        } else if kind.is_file()
            && !entry.file_name().to_string_lossy().starts_with("key")
            && std::fs::read(&path).is_ok_and(|bytes| holds_a_key(&bytes))
        {
            found.push(path.display().to_string());
        }
    }
    found
}
