//! Counts tokens exactly and cuts documents into chunks that fit a model. Plain text in, plain data out: no Postgres, no
//! network.
//!
//! The way through: [`Tokenizer`] counts and encodes (`tokenizer`); its speed comes from counting word by word and
//! remembering the counts (`words`); [`split`] cuts a document with text-splitter, window by window (`split`).

mod split;
mod tokenizer;
mod words;

pub use split::{Chunk, SplitError, SplitOptions, Splitter, UnknownSplitter, split};
pub use tokenizer::{Encoded, Tokenizer, TokenizerError};
