//! What fuzzing feeds. Each target takes any bytes, hands them to a parser of things from outside (or to the chunker and
//! the packer), and panics when a promise is broken.
//!
//! `scripts/fuzz.sh` runs them under libFuzzer, by way of the package in `fuzz/`, and `tests/corpora.rs` feeds them the
//! committed inputs in `fuzz/corpus/` without it. Inputs are mostly text, so that a seed can be written by hand: a first
//! line or a few characters of settings, then what is parsed.

mod answer;
mod chunks;
mod endpoint;
mod files;
mod headers;
mod keys;
mod options;
mod packing;
mod refusal;
mod tokens;
mod tools;

pub use answer::answer;
pub use chunks::chunks;
pub use endpoint::endpoint;
pub use files::files;
pub use headers::headers;
pub use keys::keys;
pub use options::options;
pub use packing::packing;
pub use refusal::refusal;
pub use tokens::tokens;

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 10] = [
    ("answer", answer),
    ("chunks", chunks),
    ("endpoint", endpoint),
    ("files", files),
    ("headers", headers),
    ("keys", keys),
    ("options", options),
    ("packing", packing),
    ("refusal", refusal),
    ("tokens", tokens),
];
