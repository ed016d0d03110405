//! An embeddings API for tests: a real HTTP server on 127.0.0.1 that speaks as OpenAI, Azure and Ollama do, keeps budgets
//! as a provider keeps them, fails in whatever way a test asks for, and remembers all that arrived.
//!
//! ```
//! use fake_api::{Behaviour, FakeApi, Fault, Limits};
//!
//! let api = FakeApi::start(Behaviour {
//!     limits: Limits::per_minute(3000, 1_000_000),
//!     ..Behaviour::default()
//! });
//! api.on_request(|request| (request.number < 3).then(|| Fault::status(503)));
//! // … what is tested speaks to api.openai_url() …
//! assert_eq!(api.repeated_inputs(), 0);
//! ```
//!
//! The way through: a request comes in (`server`), is read in the manner of its provider (`dialect`), judged by key, sizes
//! (`judge`) and budgets (`budget`), perhaps meets a [`Fault`] (`fault`), and is answered (`answer`, `body`) with vectors
//! that follow from the texts ([`vector_of`]). What it was and what became of it goes to the records (`record`), of which
//! [`FakeApi`] (`api`) tells.
//!
//! **What is in order for a provider is always judged in the same sequence**: key, JSON, model, sizes, quota, budgets,
//! and only then faults. So a fault befalls only what would have been answered, and has used up its budget.

mod answer;
mod api;
mod behaviour;
mod body;
mod budget;
mod dialect;
mod fault;
mod judge;
mod record;
mod server;
mod vectors;

pub use api::FakeApi;
pub use behaviour::{Behaviour, Latency, Limits, RetryAfter, RetryHints, TokenCount};
pub use fault::{Fault, NotFinite, Place};
pub use judge::Request;
pub use record::{Busiest, Record, Second, Share, Verdict};
pub use vectors::vector_of;
