//! Embedding models, remote and local: text in, vectors out.
//!
//! The way through: a pipeline names its model ([`ModelName`], `model_name`); the [`catalogue`] says what holds for that
//! model; [`remote`] calls one behind an API, [`local`] runs one in this process; whatever goes wrong is an
//! [`EmbedError`] (`error`). Around the remote ones: [`key`] says where a key is kept, [`Secret`] (`secret`) keeps it out
//! of sight, [`AllowedHosts`] (`hosts`) says where requests may go, [`presets`] what providers' limits are; [`RemoteModel`]
//! (`remote_model`) puts together what a pipeline must know of its model.

pub mod catalogue;
mod error;
mod hosts;
pub mod key;
pub mod local;
mod model_name;
pub mod presets;
pub mod remote;
mod remote_model;
mod secret;

pub use error::{EmbedError, ErrorClass};
pub use hosts::{AllowedHosts, InvalidHost};
pub use model_name::{InvalidModelName, ModelName, Provider};
pub use remote_model::{DescribeError, RemoteModel};
pub use secret::{InvalidSecret, Secret, looks_like_key};
