//! The long tests, each a function that takes its size, asserts its promise and returns the figures that it measured. The
//! quick tests call them small, the program `torture` calls them large.

mod health;
mod kills;
mod random;
mod signals;

pub use health::health;
pub use kills::{Death, kill_at, kills};
pub use random::{Random, seed};
pub use signals::signals;
