//! The long tests, each a function that takes its size, asserts its promise and returns the figures that it measured. The
//! quick tests call them small, the program `torture` calls them large. All that is random in them follows from a seed, so
//! that what went wrong can be seen again.
//!
//! [`kills`] has something die at every point of a document's way, [`signals`] sends storms of them, [`health`] looks at what a
//! long day leaves behind. [`model()`] does whatever users and operators do, in random order, and compares what is there with
//! what a simple model says must be: `statements` are what one can say to `ingest.documents`, `operations` what one can do to the
//! database (and how a random sequence of it comes about), `state` is the model, `session` does the operations, `check`
//! compares, and `model` makes rounds of all that and cuts a sequence that failed down to what is needed.

mod check;
mod health;
mod kills;
mod model;
mod operations;
mod random;
mod session;
mod signals;
mod state;
mod statements;

pub use health::health;
pub use kills::{Death, kill_at, kills};
pub use model::model;
pub use random::{Random, any_seed, seed};
pub use signals::signals;
