//! Token counts and token ids.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tiktoken_rs::CoreBPE;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{PostProcessor, TokenizerImpl};

use crate::words::{WordCounts, WordRule, Words};

/// A tokenizer cannot be had, or cannot do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is missing, unreadable, or no `tokenizer.json`.
    #[error("cannot load the tokenizer {path}: {message}", path = .path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        message: String,
    },
    /// No encoding of this name is built in.
    #[error("unknown token encoding \"{0}\"; known are cl100k_base and o200k_base")]
    UnknownEncoding(String),
    /// Only local models read token ids; the encodings of OpenAI serve to count.
    #[error("this tokenizer only counts; it has no token ids for a local model")]
    CountsOnly,
    /// The tokenizer refused the text.
    #[error("cannot tokenize: {0}")]
    Encode(String),
}

/// A text as a model reads it. Both vectors have the same length, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment ids (`token_type_ids`), all 0 for a single text.
    pub type_ids: Vec<u32>,
}

/// Counts tokens as a model does. Cheap to clone; clones share the vocabulary and the remembered counts.
///
/// Counts run at 20 to 25 MB/s on the PostgreSQL manual and one core of a virtual AMD EPYC
/// (`examples/split_speed.rs`).
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    vocabulary: Vocabulary,
    /// None: this tokenizer gives no promise about words, so every text is tokenized whole.
    words: Option<(WordRule, WordCounts)>,
}

enum Vocabulary {
    HuggingFace {
        tokenizer: Box<tokenizers::Tokenizer>,
        special_tokens: usize,
    },
    Tiktoken(&'static CoreBPE),
}

/// What is tokenized at once is no longer than this, in bytes. A longer word (a blob, or white space by the kilobyte) is
/// counted in slices, and its count may be a few tokens too high. It bounds memory, and keeps tiktoken's regular
/// expression, whose backtracking limit is a million steps and which panics there, far from that limit.
const SLICE: usize = 64 * 1024;

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`. Truncation and padding set in the file are switched off: a count is of the
    /// whole text.
    ///
    /// # Errors
    /// [`TokenizerError::Load`] when the file is missing, unreadable or malformed.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let load_error = |message: String| TokenizerError::Load {
            path: path.to_owned(),
            message,
        };
        let json = std::fs::read(path).map_err(|error| load_error(error.to_string()))?;
        Self::from_json(&json).map_err(load_error)
    }

    /// The same from the file's content.
    ///
    /// # Errors
    /// What the reader said.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        tokenizer
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let special_tokens = tokenizer
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(false));
        let rule = word_rule(&tokenizer);
        let mut inner = Inner {
            vocabulary: Vocabulary::HuggingFace {
                tokenizer: Box::new(tokenizer),
                special_tokens,
            },
            words: None,
        };
        if let Some(rule) = rule {
            let whole = inner.count_slice(PROBE);
            inner.words = Some((rule, WordCounts::new()));
            // The rule follows from the tokenizer's parts; a part that behaves otherwise costs speed, never exactness.
            if inner.count_up_to(PROBE, usize::MAX) != whole {
                inner.words = None;
            }
        }
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// An encoding of OpenAI by name: `cl100k_base` or `o200k_base`. Special tokens written in a text, such as
    /// `<|endoftext|>`, are counted as plain text, which is how the embeddings API reads them.
    ///
    /// The first call in a process builds the vocabulary, which takes some 100 ms and tens of megabytes.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownEncoding`] for any other name.
    pub fn tiktoken(encoding: &str) -> Result<Self, TokenizerError> {
        let encoding = match encoding {
            "cl100k_base" => tiktoken_rs::cl100k_base_singleton(),
            "o200k_base" => tiktoken_rs::o200k_base_singleton(),
            _ => return Err(TokenizerError::UnknownEncoding(encoding.to_owned())),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                vocabulary: Vocabulary::Tiktoken(encoding),
                words: Some((WordRule::BytePair, WordCounts::new())),
            }),
        })
    }

    /// How many tokens `text` has, without the special tokens that are added to every input.
    pub fn count(&self, text: &str) -> usize {
        self.count_up_to(text, usize::MAX)
    }

    /// Like [`count`](Self::count), but stops early: any result above `cap` only says that the text has more tokens than
    /// that. It still grows with the text, which is what a search for the largest fitting text needs.
    pub(crate) fn count_up_to(&self, text: &str, cap: usize) -> usize {
        self.inner.count_up_to(text, cap)
    }

    /// The longest beginning of `text`, up to a character, that has at most `max_tokens` tokens, found by halving; where
    /// the count is not monotonic it may be some tokens shorter than it could be, never longer.
    pub fn truncated<'a>(&self, text: &'a str, max_tokens: usize) -> &'a str {
        if self.count_up_to(text, max_tokens) <= max_tokens {
            return text;
        }
        let (mut fits, mut over) = (0, text.len());
        while over - fits > 1 {
            let middle = text.floor_char_boundary(fits + (over - fits) / 2);
            if middle <= fits {
                break;
            }
            if self.count_up_to(&text[..middle], max_tokens) <= max_tokens {
                fits = middle;
            } else {
                over = middle;
            }
        }
        &text[..fits]
    }

    /// How many special tokens are added to every input: 2 for BERT's `[CLS]` and `[SEP]`, 0 for the encodings of OpenAI.
    pub fn special_tokens(&self) -> usize {
        match &self.inner.vocabulary {
            Vocabulary::HuggingFace { special_tokens, .. } => *special_tokens,
            Vocabulary::Tiktoken(_) => 0,
        }
    }

    /// The token ids of `text` with special tokens around them, at most `max_tokens` in all: what is over is cut off the
    /// text's end.
    ///
    /// # Errors
    /// [`TokenizerError::CountsOnly`] for an encoding of OpenAI, [`TokenizerError::Encode`] when the text cannot be
    /// tokenized (a vocabulary without an unknown token).
    pub fn encode(&self, text: &str, max_tokens: usize) -> Result<Encoded, TokenizerError> {
        let Vocabulary::HuggingFace {
            tokenizer,
            special_tokens,
        } = &self.inner.vocabulary
        else {
            return Err(TokenizerError::CountsOnly);
        };
        let room = max_tokens.saturating_sub(*special_tokens);
        let failed = |error: tokenizers::Error| TokenizerError::Encode(error.to_string());
        let text = self.inner.beginning(text, room);
        let mut encoding = tokenizer.encode_fast(text, false).map_err(failed)?;
        encoding.truncate(room, 0, tokenizers::TruncationDirection::Right);
        let encoding = tokenizer
            .post_process(encoding, None, true)
            .map_err(failed)?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
        })
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.inner.vocabulary {
            Vocabulary::HuggingFace { .. } => "tokenizer.json",
            Vocabulary::Tiktoken(_) => "tiktoken",
        };
        f.debug_struct("Tokenizer")
            .field("kind", &kind)
            .finish_non_exhaustive()
    }
}

/// Counts one beginning after another of the same text, as a search for a chunk's end asks for them. What was counted for
/// one serves the next.
///
/// All texts given to one counter must be parts of one document: a text's beginning is known by its address.
pub(crate) struct BeginningsCounter<'t> {
    inner: &'t Inner,
    /// The address at which the text of the last call began.
    start: usize,
    /// For each word of that text, its end in bytes and the count of all up to there.
    ends: Vec<(usize, usize)>,
}

impl<'t> BeginningsCounter<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self {
            inner: &tokenizer.inner,
            start: 0,
            ends: Vec::new(),
        }
    }

    /// As [`Tokenizer::count_up_to`].
    pub(crate) fn count_up_to(&mut self, text: &str, cap: usize) -> usize {
        let Some((rule, counts)) = &self.inner.words else {
            return self.inner.count_up_to(text, cap);
        };
        if self.start != text.as_ptr().addr() {
            self.start = text.as_ptr().addr();
            self.ends.clear();
        }
        let known = self.ends.partition_point(|(end, _)| *end <= text.len());
        let (mut end, mut tokens) = known.checked_sub(1).map_or((0, 0), |last| self.ends[last]);
        if known < self.ends.len() {
            // The text ends within a word that is known, so what is left has no cut in it.
            let left = &text[end..];
            return tokens
                + if left.is_empty() {
                    0
                } else {
                    self.inner.count_word(left, *rule, counts)
                };
        }
        for word in Words::new(&text[end..], *rule) {
            if tokens > cap {
                break;
            }
            tokens = self
                .inner
                .count_word(word, *rule, counts)
                .saturating_add(tokens);
            end += word.len();
            // The last word may go on where this text ends.
            if end < text.len() {
                self.ends.push((end, tokens));
            }
        }
        tokens.saturating_add(text.len() - end)
    }
}

impl Inner {
    fn count_word(&self, word: &str, rule: WordRule, counts: &WordCounts) -> usize {
        let word = match rule {
            WordRule::BytePair => word,
            WordRule::WhiteSpace { .. } => word.trim_start_matches([' ', '\t', '\n', '\r']),
        };
        counts.get_or_count(word, |word| self.count_slices(word))
    }

    fn count_up_to(&self, text: &str, cap: usize) -> usize {
        let mut tokens = 0;
        let mut done = 0;
        match &self.words {
            Some((rule, counts)) => {
                for word in Words::new(text, *rule) {
                    done += word.len();
                    tokens = self.count_word(word, *rule, counts).saturating_add(tokens);
                    if tokens > cap {
                        break;
                    }
                }
            }
            None => {
                // A first look at the beginning spares tokenizing a text that is far too long.
                let head = floor_char_boundary(text, cap.saturating_mul(16));
                tokens = self.count_slices(&text[..head]);
                done = head;
                if head < text.len() && tokens <= cap {
                    tokens = self.count_slices(text);
                    done = text.len();
                }
            }
        }
        tokens.saturating_add(text.len() - done)
    }

    /// Counts without the memory of words, slice by slice.
    fn count_slices(&self, mut text: &str) -> usize {
        let mut tokens = 0;
        while text.len() > SLICE {
            let (slice, rest) = text.split_at(floor_char_boundary(text, SLICE));
            tokens = self.count_slice(slice).saturating_add(tokens);
            text = rest;
        }
        self.count_slice(text).saturating_add(tokens)
    }

    fn count_slice(&self, text: &str) -> usize {
        if text.is_empty() {
            return 0;
        }
        match &self.vocabulary {
            // A text that cannot be tokenized counts as more than any limit, so that it is refused rather than sent.
            Vocabulary::HuggingFace { tokenizer, .. } => tokenizer
                .encode_fast(text, false)
                .map_or(usize::MAX / 2, |encoding| encoding.len()),
            Vocabulary::Tiktoken(encoding) => encoding.count_ordinary(text),
        }
    }

    /// As much of `text`'s beginning as makes `tokens` tokens, or somewhat more.
    fn beginning<'a>(&self, text: &'a str, tokens: usize) -> &'a str {
        let Some((rule, counts)) = &self.words else {
            return &text[..floor_char_boundary(text, SLICE.max(tokens.saturating_mul(64)))];
        };
        let (mut seen, mut end) = (0, 0);
        for word in Words::new(text, *rule) {
            if seen >= tokens {
                break;
            }
            seen = self.count_word(word, *rule, counts).saturating_add(seen);
            end += word.len();
        }
        &text[..end]
    }
}

/// What a tokenizer's parts promise about words; None when they promise nothing.
fn word_rule<M, D, PP>(
    tokenizer: &TokenizerImpl<M, NormalizerWrapper, PreTokenizerWrapper, PP, D>,
) -> Option<WordRule>
where
    M: tokenizers::Model,
    PP: PostProcessor,
    D: tokenizers::Decoder,
{
    // An added token is found in the text before words are: one with a space in it would lie across two of them.
    let added = tokenizer.get_added_tokens_decoder();
    if added
        .values()
        .any(|token| token.content.contains(char::is_whitespace))
    {
        return None;
    }
    let first = match tokenizer.get_pre_tokenizer()? {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().first()?,
        only => only,
    };
    let splits_at_white_space = matches!(
        first,
        PreTokenizerWrapper::BertPreTokenizer(_)
            | PreTokenizerWrapper::Whitespace(_)
            | PreTokenizerWrapper::WhitespaceSplit(_)
    );
    let normalizer = tokenizer.get_normalizer();
    if !splits_at_white_space || !normalizer.is_none_or(keeps_white_space) {
        return None;
    }
    // Punctuation within an added token, such as the brackets of [CLS], is not set apart.
    let alone = (0..128_u8)
        .filter(|byte| {
            matches!(first, PreTokenizerWrapper::BertPreTokenizer(_)) && byte.is_ascii_punctuation()
        })
        .filter(|byte| {
            !added
                .values()
                .any(|token| token.content.contains(char::from(*byte)))
        })
        .fold(0, |set, byte| set | 1_u128 << byte);
    Some(WordRule::WhiteSpace {
        ideographs: matches!(normalizer, Some(NormalizerWrapper::BertNormalizer(bert)) if bert.handle_chinese_chars),
        alone,
    })
}

/// Whether a normalizer changes each word alone and leaves the white space between words.
fn keeps_white_space(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().all(keeps_white_space),
        NormalizerWrapper::BertNormalizer(_)
        | NormalizerWrapper::Lowercase(_)
        | NormalizerWrapper::NFC(_)
        | NormalizerWrapper::NFD(_)
        | NormalizerWrapper::NFKC(_)
        | NormalizerWrapper::NFKD(_)
        | NormalizerWrapper::StripAccents(_)
        | NormalizerWrapper::Precompiled(_)
        | NormalizerWrapper::Nmt(_) => true,
        _ => false,
    }
}

/// Tried on a new tokenizer, whole and word by word.
const PROBE: &str = "The quick brown fox, don't stop: naïve café —\n\n\u{4e2d}\u{6587} テスト 123,456 #hash\tfoo_bar \
                     [x] (y)   e\u{301}cole. Über straße 3.14 a@b.c\r\nend ";

/// The last character boundary at or before `at`.
pub(crate) fn floor_char_boundary(text: &str, at: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    (0..=at)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}
