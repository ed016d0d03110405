//! The long trials, each as a function that says its figures in a line: a test runs it small, `make torture` long.

mod kills;
mod random;

pub use kills::{Death, kill_at, kills};
pub use random::{Random, seed};
