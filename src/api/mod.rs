//! The SQL functions, a file per noun. Their declarations, names and comments are in `sql/`.

mod alter;
pub mod definition;
pub mod documents;
mod estimate;
mod expressions;
mod files;
mod grants;
#[cfg(feature = "injection")]
pub mod injection;
pub mod lent;
mod limits;
mod models;
mod pipelines;
mod queries;
pub mod rebuild;
mod status;
pub mod targets;
mod text;
mod watch;

/// Longest identifier in bytes (NAMEDATALEN - 1).
pub const MAX_NAME: usize = 63;
