//! What is known about embedding models, and the local one: text in, vectors out.
//!
//! The way through: a pipeline names its model ([`ModelName`], `model_name`); the [`catalogue`] says what holds for that
//! model; [`local`] runs one in this process; whatever goes wrong is an [`EmbedError`] (`error`).

pub mod catalogue;
mod error;
pub mod key;
pub mod local;
mod model_name;
pub mod presets;
mod secret;

pub use error::{EmbedError, ErrorClass};
pub use model_name::{InvalidModelName, ModelName, Provider};
pub use secret::{InvalidSecret, Secret, looks_like_key};
