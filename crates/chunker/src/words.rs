//! Words as units of counting.
//!
//! All tokenizers served here first cut a text into pieces and then tokenize each piece alone. Between a character that
//! is not white space and a space that follows it there is always such a cut, so the count of a text is the sum of the
//! counts of its words, and a word that was seen before need not be tokenized again. That makes a count about fifty
//! times cheaper than tokenizing.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a tokenizer lets a text be cut without changing the sum of the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WordRule {
    /// Byte-pair encodings of OpenAI. White space belongs to the word that follows it. No cut between punctuation and a
    /// line break: `;\n` is one token.
    BytePair,
    /// Tokenizers that drop white space: BERT's, and those that begin with `WhitespaceSplit`.
    WhiteSpace {
        /// The normalizer sets Chinese characters apart, so there is a cut before each.
        ideographs: bool,
        /// ASCII punctuation that is a piece of its own, a bit each: there is a cut before and after it.
        alone: u128,
    },
}

/// A text without any break grows words without end; from this length on an ideograph begins a new one. In bytes.
const LONG_WORD: usize = 48;

/// Words of a text, in order; joined, they are the text. In a `WhiteSpace` text, the last may be white space alone.
pub(crate) struct Words<'a> {
    rest: &'a str,
    rule: WordRule,
}

impl<'a> Words<'a> {
    pub(crate) fn new(text: &'a str, rule: WordRule) -> Self {
        Self { rest: text, rule }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let end = word_end(self.rest, self.rule);
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(word)
    }
}

fn word_end(text: &str, rule: WordRule) -> usize {
    let bytes = text.as_bytes();
    let alone = match rule {
        WordRule::BytePair => 0,
        WordRule::WhiteSpace { alone, .. } => alone,
    };
    let is_alone = |byte: u8| byte < 0x80 && alone & (1 << byte) != 0;
    for (i, pair) in bytes.windows(2).enumerate() {
        let (before, at) = (pair[0], i + 1);
        if is_alone(before) || is_alone(pair[1]) {
            return at;
        }
        let cut = match pair[1] {
            b' ' | b'\t' => !white_before(text, before, at),
            b'\n' | b'\r' => match rule {
                WordRule::BytePair => before.is_ascii_alphanumeric(),
                WordRule::WhiteSpace { .. } => !white_before(text, before, at),
            },
            0xe3.. if before >= 0x80 => match rule {
                WordRule::BytePair => clause_ends(text, at),
                WordRule::WhiteSpace { ideographs, .. } => {
                    ideographs && at >= LONG_WORD && ideograph_at(text, at)
                }
            },
            _ => false,
        };
        if cut {
            return at;
        }
    }
    text.len()
}

/// Whether the character before `at` is white space; `before` is its last byte.
fn white_before(text: &str, before: u8, at: usize) -> bool {
    if before < 0x80 {
        matches!(before, b' ' | b'\t'..=b'\r')
    } else {
        text[..at]
            .chars()
            .next_back()
            .is_some_and(char::is_whitespace)
    }
}

/// Whether a CJK letter ends at `at` and CJK punctuation begins there: no piece of a byte-pair encoding holds a letter
/// and then punctuation other than an apostrophe.
fn clause_ends(text: &str, at: usize) -> bool {
    if !text.is_char_boundary(at) {
        return false;
    }
    let next = text[at..].chars().next();
    matches!(
        next,
        Some('、' | '。' | '，' | '！' | '？' | '：' | '；' | '「' | '」' | '（' | '）')
    ) && matches!(
        text[..at].chars().next_back(),
        Some('\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fff}')
    )
}

fn ideograph_at(text: &str, at: usize) -> bool {
    text.is_char_boundary(at) && matches!(text[at..].chars().next(), Some('\u{4e00}'..='\u{9fff}'))
}

/// Counts of words already seen: a fixed table of 2¹⁶ entries (512 KiB) that threads share without a lock.
///
/// An entry holds 48 bits of the word's keyed hash and 16 bits of its count; its place is the hash's other 16 bits. Two
/// words are taken for one only when all 64 bits agree, and the key is drawn for each table, so no text can be made for it.
pub(crate) struct WordCounts {
    hasher: RandomState,
    entries: Box<[AtomicU64]>,
}

/// Longer words are rare, and would drive short ones out. A line of base64 is still remembered while a chunk's end is
/// searched for. In bytes.
const REMEMBERED_WORD: usize = 128;
const ENTRIES: usize = 1 << 16;

impl WordCounts {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            entries: std::iter::repeat_with(|| AtomicU64::new(0))
                .take(ENTRIES)
                .collect(),
        }
    }

    /// The count of `word`, from memory or from `count`.
    pub(crate) fn get_or_count(&self, word: &str, count: impl FnOnce(&str) -> usize) -> usize {
        if word.len() > REMEMBERED_WORD {
            return count(word);
        }
        let hash = self.hasher.hash_one(word.as_bytes());
        let entry = &self.entries[hash as usize % ENTRIES];
        let tag = hash & !0xffff;
        let seen = entry.load(Ordering::Relaxed);
        // A count is stored plus one, so that an empty entry is never taken for an answer.
        if seen & !0xffff == tag && seen & 0xffff != 0 {
            return (seen & 0xffff) as usize - 1;
        }
        let tokens = count(word);
        if tokens < 0xffff {
            entry.store(tag | (tokens as u64 + 1), Ordering::Relaxed);
        }
        tokens
    }
}
