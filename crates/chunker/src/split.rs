//! From a document to its chunks.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};

use crate::Tokenizer;
use crate::tokenizer::{BeginningsCounter, floor_char_boundary};

/// How a document is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Splitter {
    /// At paragraphs, then lines, then sentences, words, characters.
    #[default]
    Text,
    /// At Markdown's headings and blocks, then as text.
    Markdown,
    /// Not at all: a document is one chunk.
    None,
}

impl Splitter {
    /// The name users write: `text`, `markdown`, `none`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Markdown => "markdown",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Splitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is no [`Splitter`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown splitter \"{0}\"; known are text, markdown and none")]
pub struct UnknownSplitter(pub String);

impl FromStr for Splitter {
    type Err = UnknownSplitter;

    fn from_str(name: &str) -> Result<Self, UnknownSplitter> {
        [Self::Text, Self::Markdown, Self::None]
            .into_iter()
            .find(|splitter| splitter.as_str() == name)
            .ok_or_else(|| UnknownSplitter(name.to_owned()))
    }
}

/// How to cut, and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitOptions {
    /// Where cuts are made.
    pub splitter: Splitter,
    /// The most tokens a chunk has, special tokens not counted.
    pub chunk_tokens: usize,
    /// About how many tokens of a chunk's end the next one repeats; never more.
    pub chunk_overlap: usize,
}

impl SplitOptions {
    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// [`SplitError::NoTokens`] or [`SplitError::OverlapTooLarge`].
    pub fn validate(&self) -> Result<(), SplitError> {
        if self.chunk_tokens == 0 {
            return Err(SplitError::NoTokens);
        }
        if self.chunk_overlap >= self.chunk_tokens {
            return Err(SplitError::OverlapTooLarge {
                overlap: self.chunk_overlap,
                chunk_tokens: self.chunk_tokens,
            });
        }
        Ok(())
    }
}

/// A document cannot be cut as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// A chunk of no tokens holds no text.
    #[error("chunk_tokens must be at least 1")]
    NoTokens,
    /// Chunks would repeat each other and never come to an end.
    #[error("chunk_overlap ({overlap}) must be less than chunk_tokens ({chunk_tokens})")]
    OverlapTooLarge {
        /// Tokens, as asked.
        overlap: usize,
        /// Tokens, as asked.
        chunk_tokens: usize,
    },
    /// The document is to stay whole, and is too large for that.
    #[error(
        "the document has {tokens} tokens, more than the {limit} that fit one chunk, and is not to be split"
    )]
    TooLarge {
        /// The document's tokens.
        tokens: usize,
        /// The most that a chunk may have.
        limit: usize,
    },
    /// Only with a `chunk_tokens` of a handful: a single character that has more tokens cannot be cut.
    #[error(
        "the character {character:?} alone has {tokens} tokens, more than the {limit} that fit one chunk"
    )]
    CharacterTooLarge {
        /// The character.
        character: char,
        /// Its tokens.
        tokens: usize,
        /// The most that a chunk may have.
        limit: usize,
    },
}

/// A part of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The text, without white space around it; in Markdown, its first line may keep its indentation.
    pub text: &'a str,
    /// Its tokens, without special tokens: at most `chunk_tokens`.
    pub tokens: usize,
    /// Where it begins in the document, in bytes.
    pub offset: usize,
}

/// Cuts `text` into chunks of at most `chunk_tokens` tokens each, in the order of the text. All but white space is in
/// some chunk. A text of white space alone has no chunks.
///
/// Time grows linearly with the text, and memory beyond the result does not grow: see `WINDOW_BYTES_PER_TOKEN`. Measured
/// on one core of a virtual AMD EPYC that had other work (`examples/split_speed.rs`), chunks of 254 tokens with an overlap
/// of 32, the PostgreSQL manual: 11 to 14 MB/s with cl100k_base, 12 to 13 MB/s with WordPiece; of texts made to be hard,
/// letters among hundreds of newlines 1 MB/s, and long words that never repeat (base64) what WordPiece itself makes of
/// them, 0.3 MB/s or less.
///
/// # Errors
/// What [`SplitOptions::validate`] says; [`SplitError::TooLarge`] for `Splitter::None`;
/// [`SplitError::CharacterTooLarge`].
pub fn split<'a>(
    text: &'a str,
    options: &SplitOptions,
    tokenizer: &Tokenizer,
) -> Result<Vec<Chunk<'a>>, SplitError> {
    options.validate()?;
    let document = Document {
        text,
        limit: options.chunk_tokens,
        tokenizer,
    };
    let mut chunks = Vec::new();
    if options.splitter == Splitter::None {
        document.push_whole(&mut chunks)?;
    } else {
        document.push_windows(options, &mut chunks)?;
    }
    Ok(chunks)
}

/// text-splitter looks, for each chunk, at all that is left of the text, so its time grows with the square of the text. It
/// is therefore shown a window at a time: this many bytes for each of a chunk's tokens, which is a dozen chunks of
/// English, within the two bounds below. The last chunk of a window is not taken; the next window begins there, so a
/// window's end leaves no trace in the chunks.
const WINDOW_BYTES_PER_TOKEN: usize = 64;
const MIN_WINDOW: usize = 16 * 1024;
const MAX_WINDOW: usize = 512 * 1024;

/// A run of characters without white space or the end of a clause, of this many bytes, is no prose but data. It is cut by
/// length alone; text-splitter would try character after character.
const DATA_RUN: usize = 8 * 1024;

/// White space of this many bytes ends a chunk for certain.
const BLANK_RUN: usize = 256;

struct Document<'a, 't> {
    text: &'a str,
    limit: usize,
    tokenizer: &'t Tokenizer,
}

impl<'a> Document<'a, '_> {
    fn push_whole(&self, chunks: &mut Vec<Chunk<'a>>) -> Result<(), SplitError> {
        let text = self.text.trim();
        if text.is_empty() {
            return Ok(());
        }
        let tokens = self.tokenizer.count(text);
        if tokens > self.limit {
            return Err(SplitError::TooLarge {
                tokens,
                limit: self.limit,
            });
        }
        chunks.push(Chunk {
            text,
            tokens,
            offset: self.text.len() - self.text.trim_start().len(),
        });
        Ok(())
    }

    fn push_windows(
        &self,
        options: &SplitOptions,
        chunks: &mut Vec<Chunk<'a>>,
    ) -> Result<(), SplitError> {
        let size = options
            .chunk_tokens
            .saturating_mul(WINDOW_BYTES_PER_TOKEN)
            .clamp(MIN_WINDOW, MAX_WINDOW);
        if self.push_if_it_fits(size, chunks) {
            return Ok(());
        }
        let sizer = || Sizer {
            counter: RefCell::new(BeginningsCounter::new(self.tokenizer)),
            cap: self.limit.saturating_add(self.limit / 4 + 1),
        };
        let config = || {
            ChunkConfig::new(self.limit)
                .with_sizer(sizer())
                .with_overlap(options.chunk_overlap)
                .expect("validate() has checked the overlap")
        };
        let text_splitter = TextSplitter::new(config());
        let markdown_splitter = MarkdownSplitter::new(config());
        let mut position = 0;
        loop {
            position = skip_blank(self.text, position);
            let rest = &self.text[position..];
            if rest.is_empty() {
                return Ok(());
            }
            let window = &rest[..window_end(rest, size, options.splitter)];
            let obstacle = obstacle(window);
            match obstacle {
                Some(Obstacle::Data { start: 0, length }) => {
                    // The run may go on beyond the window.
                    let end = run_end(rest, length);
                    self.push_cut(position, &rest[..end], size, chunks)?;
                    position += end;
                    continue;
                }
                Some(Obstacle::Blank { start: 0 }) => {
                    position += rest.len() - rest.trim_start().len();
                    continue;
                }
                _ => {}
            }
            let window = obstacle.map_or(window, |obstacle| &window[..obstacle.start()]);
            let last_window = window.len() == rest.len() || obstacle.is_some();
            let parts: Vec<(usize, &'a str)> = match options.splitter {
                Splitter::Markdown => markdown_splitter.chunk_indices(window).collect(),
                _ => text_splitter.chunk_indices(window).collect(),
            };
            let (taken, next) = match parts.as_slice() {
                [all @ .., (last, _)] if !last_window && !all.is_empty() && *last > 0 => {
                    (all, *last)
                }
                all => (all, window.len()),
            };
            for &(offset, part) in taken {
                self.push(position + offset, part, chunks)?;
            }
            position += next;
        }
    }

    /// Takes a text that is one chunk, as most short documents are; whether it is. text-splitter would come to the same
    /// by looking for all the places where the text could be cut.
    fn push_if_it_fits(&self, size: usize, chunks: &mut Vec<Chunk<'a>>) -> bool {
        let text = self.text.trim();
        if text.is_empty() || text.len() > size || obstacle(text).is_some() {
            return false;
        }
        let tokens = self.tokenizer.count_up_to(text, self.limit);
        if tokens <= self.limit {
            chunks.push(Chunk {
                text,
                tokens,
                offset: self.text.len() - self.text.trim_start().len(),
            });
        }
        tokens <= self.limit
    }

    /// Takes a part as a chunk, or cuts it once more when it is too large: where text-splitter stops at a grapheme, or
    /// where a token lies across white space that was trimmed.
    fn push(
        &self,
        mut offset: usize,
        mut part: &'a str,
        chunks: &mut Vec<Chunk<'a>>,
    ) -> Result<(), SplitError> {
        // An overlap reaches back into the chunk before. Where that one had to be cut once more, it would reach behind the
        // beginning of what has become the last chunk; then there is none.
        if let Some(last) = chunks.last().filter(|last| offset <= last.offset) {
            let end = offset + part.len();
            offset = (last.offset + last.text.len()).min(end);
            part = &self.text[offset..end];
            offset += part.len() - part.trim_start().len();
            part = part.trim();
        }
        if part.trim().is_empty() {
            return Ok(());
        }
        // At a window's end, an overlap may be all there is.
        let ends = |last: &Chunk| last.offset + last.text.len();
        if chunks
            .last()
            .is_some_and(|last| offset + part.len() <= ends(last))
        {
            return Ok(());
        }
        let tokens = self.tokenizer.count(part);
        if tokens > self.limit {
            return self.push_cut(offset, part, part.len(), chunks);
        }
        chunks.push(Chunk {
            text: part,
            tokens,
            offset,
        });
        Ok(())
    }

    /// Cuts between characters, each chunk as large as can be found in a few trials, and of `most_bytes` at most: to BERT, a
    /// word of any length is one unknown token, but a chunk of megabytes serves nobody.
    fn push_cut(
        &self,
        offset: usize,
        part: &'a str,
        most_bytes: usize,
        chunks: &mut Vec<Chunk<'a>>,
    ) -> Result<(), SplitError> {
        let mut at = 0;
        let mut guess = self.limit.saturating_mul(3);
        loop {
            at += part[at..].len() - part[at..].trim_start().len();
            let rest = part[at..].trim_end();
            if rest.is_empty() {
                return Ok(());
            }
            let rest = &rest[..floor_char_boundary(rest, most_bytes)];
            let (end, tokens) = self.largest_beginning(rest, guess)?;
            let text = rest[..end].trim_end();
            chunks.push(Chunk {
                text,
                tokens,
                offset: offset + at,
            });
            guess = end;
            at += end;
        }
    }

    /// The end and the tokens of a beginning of `text` that fits, near the largest. `guess` is a first trial, in bytes.
    ///
    /// Each trial is scaled by what the one before had; the search narrows to a character at worst, and is content with
    /// seven eighths of the limit.
    fn largest_beginning(&self, text: &str, guess: usize) -> Result<(usize, usize), SplitError> {
        let mut best = None;
        // `fits..` is known to fit (or is empty), `..too_large` is known not to.
        let (mut fits, mut too_large) = (0, text.len() + 1);
        let mut trial = guess;
        loop {
            let end = char_boundary_between(text, trial, fits, too_large);
            let Some(end) = end else { break };
            let beginning = text[..end].trim_end();
            let tokens = self
                .tokenizer
                .count_up_to(beginning, self.limit.saturating_mul(2));
            if tokens <= self.limit {
                best = Some((end, tokens));
                fits = end;
                if end == text.len() || tokens >= self.limit - self.limit / 8 {
                    break;
                }
                // A little less than the proportional guess, to stay on the safe side.
                trial = (end.saturating_mul(self.limit) / tokens.max(1)).saturating_mul(31) / 32;
            } else {
                too_large = end;
                trial = (end.saturating_mul(self.limit) / tokens).saturating_mul(31) / 32;
            }
            // Proportion may creep; halving ends the search after a few dozen trials at the latest.
            let middle = fits + (too_large - fits) / 2;
            if trial <= fits || trial >= too_large {
                trial = middle;
            }
        }
        best.ok_or_else(|| {
            let character = text.chars().next().unwrap_or_default();
            let tokens = self.tokenizer.count(character.encode_utf8(&mut [0; 4]));
            SplitError::CharacterTooLarge {
                character,
                tokens,
                limit: self.limit,
            }
        })
    }
}

/// A character boundary strictly between `low` and `high`, at `wish` or near it.
fn char_boundary_between(text: &str, wish: usize, low: usize, high: usize) -> Option<usize> {
    let wish = wish.clamp(low + 1, text.len().max(low + 1));
    let down = (low + 1..=wish.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at) && at < high);
    down.or_else(|| (wish..high.min(text.len() + 1)).find(|&at| text.is_char_boundary(at)))
}

/// The size text-splitter sees: exact up to `cap`, beyond it only larger.
struct Sizer<'t> {
    counter: RefCell<BeginningsCounter<'t>>,
    /// Tokens. text-splitter asks whether a size is above the limit, or a quarter above it; no more.
    cap: usize,
}

impl ChunkSizer for Sizer<'_> {
    fn size(&self, chunk: &str) -> usize {
        self.counter.borrow_mut().count_up_to(chunk, self.cap)
    }
}

/// Past blank lines and white space; the indentation of the first line that has text stays, since Markdown reads it.
fn skip_blank(text: &str, position: usize) -> usize {
    let rest = &text[position..];
    let blank = rest.len() - rest.trim_start().len();
    if blank == rest.len() {
        return text.len();
    }
    rest[..blank]
        .rfind('\n')
        .map_or(position, |newline| position + newline + 1)
}

/// Where a window of about `size` bytes at the start of `rest` ends: at the last heading (Markdown), blank line, line
/// break, or space in its second half, whichever comes first in this list; else at a character.
fn window_end(rest: &str, size: usize, splitter: Splitter) -> usize {
    if rest.len() <= size {
        return rest.len();
    }
    let (half, full) = (
        floor_char_boundary(rest, size / 2),
        floor_char_boundary(rest, size),
    );
    let second_half = &rest[half..full];
    let heading = (splitter == Splitter::Markdown)
        .then(|| second_half.rfind("\n#"))
        .flatten();
    let boundary = heading
        .or_else(|| second_half.rfind("\n\n"))
        .or_else(|| second_half.rfind('\n'))
        .or_else(|| second_half.rfind(char::is_whitespace));
    match boundary {
        Some(0) | None => full,
        Some(at) => half + at,
    }
}

/// Whether prose may be cut after `character`.
fn ends_run(character: char) -> bool {
    character.is_whitespace() || matches!(character, '、' | '。' | '，' | '！' | '？' | '：' | '；')
}

/// What text-splitter is not shown: it would go over it once for each character. In bytes of the window.
#[derive(Debug, Clone, Copy)]
enum Obstacle {
    /// See [`DATA_RUN`].
    Data { start: usize, length: usize },
    /// See [`BLANK_RUN`].
    Blank { start: usize },
}

impl Obstacle {
    fn start(self) -> usize {
        match self {
            Self::Data { start, .. } | Self::Blank { start } => start,
        }
    }
}

/// The first obstacle in `window`.
fn obstacle(window: &str) -> Option<Obstacle> {
    let found = |start: usize, blank_start: usize, at: usize| {
        if at - start >= DATA_RUN {
            Some(Obstacle::Data {
                start,
                length: at - start,
            })
        } else if at - blank_start >= BLANK_RUN {
            Some(Obstacle::Blank { start: blank_start })
        } else {
            None
        }
    };
    // Where the run of data, and that of white space, begin that reach up to `at`.
    let (mut start, mut blank_start) = (0, 0);
    for (at, character) in window.char_indices() {
        let (ends_data, ends_blank) = (ends_run(character), !character.is_whitespace());
        let data_start = if ends_data { start } else { at };
        let white_start = if ends_blank { blank_start } else { at };
        if let Some(obstacle) = found(data_start, white_start, at) {
            return Some(obstacle);
        }
        let next = at + character.len_utf8();
        if ends_data {
            start = next;
        }
        if ends_blank {
            blank_start = next;
        }
    }
    found(start, blank_start, window.len())
}

/// The end of the run that begins `rest`, known to reach `from`.
fn run_end(rest: &str, from: usize) -> usize {
    rest[from..]
        .find(ends_run)
        .map_or(rest.len(), |at| from + at)
}
