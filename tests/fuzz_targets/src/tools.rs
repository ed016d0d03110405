//! What several targets use.

use std::sync::LazyLock;
use std::time::Duration;

use chunker::Tokenizer;

/// No wait that a provider asks for is longer.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Characters of a key that must not be seen in a row.
const RUN: usize = 8;

/// The first line and the rest.
pub fn first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

/// Fails when `text` shows a key, or so much of it that the rest can be guessed.
pub fn assert_hidden(key: &str, text: &str) {
    let run = RUN.min(key.len());
    for part in key.as_bytes().windows(run) {
        let part = std::str::from_utf8(part).expect("a key is ASCII");
        assert!(!text.contains(part), "{text:?} shows {part:?} of the key");
    }
}

/// `text` again and again: 2 to the power of `byte` modulo 16 times, up to 24 KiB (the chunker's windows begin at 16), for
/// what is harmless once may cost its square; from the small letters on, once.
pub fn repeated(text: &str, byte: u8) -> String {
    const LONGEST: usize = 24 * 1024;
    let times = if byte < b'`' {
        1_usize << (byte % 16)
    } else {
        1
    };
    text.repeat(times.min(LONGEST / text.len().max(1)).max(1))
}

/// `o`: o200k_base, `w`: a WordPiece tokenizer with the parts of all-MiniLM-L6-v2's, else cl100k_base.
pub fn tokenizer(letter: u8) -> &'static Tokenizer {
    static SMALL: LazyLock<Tokenizer> = LazyLock::new(|| tiktoken("cl100k_base"));
    static LARGE: LazyLock<Tokenizer> = LazyLock::new(|| tiktoken("o200k_base"));
    static WORD_PIECE: LazyLock<Tokenizer> = LazyLock::new(word_piece);
    match letter {
        b'o' => &LARGE,
        b'w' => &WORD_PIECE,
        _ => &SMALL,
    }
}

fn tiktoken(name: &str) -> Tokenizer {
    Tokenizer::tiktoken(name).expect("a known encoding")
}

fn word_piece() -> Tokenizer {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(String::from);
    let letters = ('a'..='z')
        .chain('0'..='9')
        .chain("éßабвгд中文字数据库日本語กขคאבג".chars())
        .flat_map(|c| [c.to_string(), format!("##{c}")]);
    let signs = ('!'..='~').filter(char::is_ascii_punctuation);
    let words = [
        "the", "##ing", "vector", "data", "##base", "post", "##gres", "😀",
    ];
    let vocabulary: Vec<String> = special
        .into_iter()
        .chain(letters)
        .chain(signs.map(String::from))
        .chain(words.map(String::from))
        .enumerate()
        .map(|(id, token)| format!("{}:{id}", serde_json::Value::from(token)))
        .collect();
    let json = include_str!("../../../crates/chunker/tests/fixtures/word_piece.json")
        .replace("VOCABULARY", &vocabulary.join(","));
    Tokenizer::from_json(json.as_bytes()).expect("a tokenizer")
}
