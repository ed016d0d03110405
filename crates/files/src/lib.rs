//! Finds files in a directory of the server and reads them as text, for `ingest.load_files(directory, pattern)`.
//!
//! The way through: [`find`] walks the directory (`find`), [`read`] tells text from binary and decodes it (`read`),
//! [`html_to_markdown`] makes prose of HTML (`html`). Nothing here starts a thread, so a backend may call all of it.

mod find;
mod html;
mod read;

pub use find::{FileSet, FilesError, FoundFile, find};
pub use html::html_to_markdown;
pub use read::{FileContent, Format, decode, read};
