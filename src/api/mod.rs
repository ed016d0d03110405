//! The SQL functions, a file per noun. Their declarations, names and comments are in `sql/`.

pub mod documents;
mod estimate;
mod files;
mod limits;
pub mod pipelines;
mod queries;
mod status;
pub mod targets;
mod text;
