//! Torture: long random runs whose every number follows from a seed, so that what went wrong can be seen again.
//!
//! [`model()`] does whatever users and operators do, in random order, and compares what is there with what a simple model says
//! must be: `statements` are what one can say to `ingest.documents`, `operations` what one can do to the database (and how a
//! random sequence of it comes about), `state` is the model, `session` does the operations, `check` compares, and `model`
//! makes rounds of all that and cuts a sequence that failed down to what is needed.

mod check;
mod model;
mod operations;
mod random;
mod session;
mod state;
mod statements;

pub use model::model;
pub use random::Random;
