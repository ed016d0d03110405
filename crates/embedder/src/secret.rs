//! Keys, and keeping them out of sight.

use std::fmt;

/// What stands where a key stood.
const MASK: &str = "***";

/// A run of this many characters of a key is as good as the key to somebody who guesses the rest.
const SHORTEST_RUN: usize = 8;

/// The longest key, in bytes: tokens of identity providers reach a few thousand, and servers refuse longer headers.
const LONGEST_KEY: usize = 16 * 1024;

/// A provider's key. Its value is written into request headers and nowhere else: it cannot be printed or serialised.
/// Two are equal if their values are, so a rotated key can be noticed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// A text that cannot be a key. The messages do not quote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Nothing, or only a line's end.
    #[error("the key is empty")]
    Empty,
    /// Something that no HTTP header can carry.
    #[error(
        "the key holds a space, a line break or another character that an HTTP header cannot carry"
    )]
    NotHeaderSafe,
    /// Longer than any key.
    #[error("the key is longer than {LONGEST_KEY} bytes")]
    TooLong,
}

impl Secret {
    /// The key in `text`; one line break at its end, as editors leave it in files, is not part of it.
    ///
    /// # Errors
    /// What is left must be 1 to 16,384 printable ASCII characters without spaces.
    pub fn new(text: &str) -> Result<Self, InvalidSecret> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(InvalidSecret::Empty);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidSecret::NotHeaderSafe);
        }
        if text.len() > LONGEST_KEY {
            return Err(InvalidSecret::TooLong);
        }
        Ok(Self(text.to_owned()))
    }

    /// `text` without this key: every occurrence of it, every run of at least 8 consecutive characters of it, and
    /// whatever else looks like a key ([`looks_like_key`]), even partly starred out, becomes `***`.
    pub fn scrub(&self, text: &str) -> String {
        scrub(text, Some(self))
    }

    /// The value, for a request header.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// Whether a word looks like a provider's key: a known beginning followed by enough of the characters keys are made of.
pub fn looks_like_key(word: &str) -> bool {
    let mut run = Run::default();
    let mut rest = word.char_indices().map(|(at, _)| at);
    rest.any(|at| token_end(word, at, &mut run).is_some())
}

/// `text` without `key`, if one is given, and without what looks like a key.
pub(crate) fn scrub(text: &str, key: Option<&Secret>) -> String {
    let mut hidden = vec![false; text.len()];
    if let Some(Secret(key)) = key {
        hide_runs(text.as_bytes(), key.as_bytes(), &mut hidden);
    }
    hide_tokens(text, &mut hidden);
    let mut clean = String::with_capacity(text.len());
    let mut in_mask = false;
    for (at, c) in text.char_indices() {
        if !hidden[at] {
            clean.push(c);
        } else if !in_mask {
            clean.push_str(MASK);
        }
        in_mask = hidden[at];
    }
    clean
}

/// Marks the runs that `text` has in common with `key`. A key is ASCII, so what is marked is whole characters.
fn hide_runs(text: &[u8], key: &[u8], hidden: &mut [bool]) {
    let shortest = SHORTEST_RUN.min(key.len());
    // lengths[k]: how long the common run is that ends at the present byte of the text and at byte k of the key.
    let mut lengths = vec![0; key.len()];
    for (at, byte) in text.iter().enumerate() {
        let mut longest = 0;
        for k in (0..key.len()).rev() {
            lengths[k] = match (key[k] == *byte, k) {
                (true, 0) => 1,
                (true, _) => lengths[k - 1] + 1,
                (false, _) => 0,
            };
            longest = longest.max(lengths[k]);
        }
        if longest >= shortest {
            hidden[at + 1 - longest..=at].fill(true);
        }
    }
}

/// Marks what looks like a key.
fn hide_tokens(text: &str, hidden: &mut [bool]) {
    let mut run = Run::default();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let end = token_end(text, at, &mut run).unwrap_or(at);
        hidden[at..end].fill(true);
        at = end.max(at + c.len_utf8());
    }
}

/// How keys begin, and how many characters more make it one: few for what begins nothing else, more for short beginnings.
/// OpenAI and those who copy it, Voyage, Jina, Google, Hugging Face, Groq, NVIDIA, JSON web tokens.
const BEGINNINGS: [(&str, usize); 8] = [
    ("sk-", 8),
    ("pa-", 20),
    ("jina_", 8),
    ("AIza", 20),
    ("hf_", 20),
    ("gsk_", 20),
    ("nvapi-", 8),
    ("eyJ", 20),
];

/// What keys are made of, and what providers put in the place of the characters they hide.
fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*' | '•' | '…' | '.' | '+' | '/' | '=')
}

/// A run of the characters that keys are made of. It is looked for once and not again from each of its characters, since a
/// key may begin at many of them.
#[derive(Default)]
struct Run {
    /// Where it ends.
    past: usize,
    /// Where a key in it ends: a full stop ends a sentence more often than a key.
    end: usize,
    /// Behind the first of its last two neighbouring stars; zero without.
    stars: usize,
}

impl Run {
    fn at(text: &str, start: usize) -> Self {
        let rest = &text[start..];
        let length = rest.find(|c| !is_token_char(c)).unwrap_or(rest.len());
        let key = rest[..length].trim_end_matches('.');
        Self {
            past: start + length,
            end: start + key.len(),
            stars: key.rfind("**").map_or(0, |at| start + at + 1),
        }
    }

    /// What of it begins at `from`, and whether characters of that are hidden.
    fn word<'a>(&self, text: &'a str, from: usize) -> (&'a str, bool) {
        (&text[from..self.end.max(from)], self.stars > from)
    }
}

/// Where the key-like word that begins at `start` ends; None if none begins there. `run` is the run of the call before,
/// for a start that was not behind this one.
fn token_end(text: &str, start: usize, run: &mut Run) -> Option<usize> {
    let before = text[..start].chars().next_back();
    if before.is_some_and(|c| is_token_char(c) && !matches!(c, '/' | '=' | '.')) {
        return None;
    }
    for scheme in ["bearer ", "basic "] {
        let from = start + scheme.len();
        let head = text.get(start..from);
        if head.is_some_and(|head| head.eq_ignore_ascii_case(scheme)) {
            let (token, starred) = Run::at(text, from).word(text, from);
            // "Bearer token" and "Bearer authentication" are words about keys, not keys.
            if starred || (token.len() >= SHORTEST_RUN && has_digit(token)) {
                return Some(from + token.len());
            }
        }
    }
    if start >= run.past {
        *run = Run::at(text, start);
    }
    let (token, starred) = run.word(text, start);
    let begins_like_one = BEGINNINGS.iter().any(|(beginning, more)| {
        token
            .strip_prefix(beginning)
            .is_some_and(|rest| rest.chars().nth(more - 1).is_some())
    });
    (begins_like_one || starred).then_some(start + token.len())
}

fn has_digit(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "sk-proj-A1b2C3d4E5f6G7h8I9j0";

    fn secret(text: &str) -> Secret {
        Secret::new(text).unwrap()
    }

    #[test]
    fn a_key_is_what_a_header_can_carry() {
        assert_eq!(secret("abc\n"), secret("abc"));
        assert_eq!(secret("abc\r\n"), secret("abc"));
        assert_ne!(secret("abc"), secret("abd"));
        assert_eq!(Secret::new(""), Err(InvalidSecret::Empty));
        assert_eq!(Secret::new("\n"), Err(InvalidSecret::Empty));
        for text in ["a b", "a\nb", "a\n\n", "a\0", "schlüssel", " a"] {
            assert_eq!(
                Secret::new(text),
                Err(InvalidSecret::NotHeaderSafe),
                "{text:?}"
            );
        }
        assert_eq!(
            Secret::new(&"a".repeat(LONGEST_KEY + 1)),
            Err(InvalidSecret::TooLong)
        );
    }

    #[test]
    fn a_key_does_not_show_itself() {
        assert_eq!(format!("{:?}", secret(KEY)), "Secret(***)");
    }

    #[test]
    fn providers_words_about_a_key_lose_it_even_when_it_is_starred() {
        let key = secret(KEY);
        for (text, clean) in [
            (
                format!("Incorrect API key provided: {KEY}. You can find yours on the site."),
                "Incorrect API key provided: ***. You can find yours on the site.",
            ),
            (
                "Incorrect API key provided: sk-proj-****************j0.".to_owned(),
                "Incorrect API key provided: ***.",
            ),
            ("key zzzz****yyyy is bad".to_owned(), "key *** is bad"),
            (
                "Authorization: Bearer zzzzzzzz9zzzzz".to_owned(),
                "Authorization: ***",
            ),
            (
                "the header holds A1b2C3d4E5".to_owned(),
                "the header holds ***",
            ),
            (
                "no Bearer authentication, a risk-free-solution-for-all".to_owned(),
                "no Bearer authentication, a risk-free-solution-for-all",
            ),
        ] {
            assert_eq!(key.scrub(&text), clean);
        }
    }

    #[test]
    fn a_short_key_goes_as_a_whole_only() {
        assert_eq!(
            secret("hunter2").scrub("hunter2 and hunter"),
            "*** and hunter"
        );
    }

    #[test]
    fn keys_are_known_by_their_beginning() {
        for text in [KEY, "sk-12345678", "(sk-1234567890)", "jina_0123456789"] {
            assert!(looks_like_key(text), "{text}");
        }
        for text in ["OPENAI_API_KEY", "/etc/keys/openai", "vault", "sk-", ""] {
            assert!(!looks_like_key(text), "{text}");
        }
    }

    /// Where a key may begin at every character, looking at all that follows each time would take hours.
    #[test]
    fn a_long_text_is_searched_once() {
        for text in ["/", ".", "=", "a/", "/*", "bearer ", "sk-/"] {
            let text = text.repeat(1_000_000);
            assert!(
                !looks_like_key(&text[1..]) || text.contains('k'),
                "{text:.9}"
            );
            secret("abcdefgh").scrub(&text);
        }
        assert!(looks_like_key(&format!(
            "{}sk-12345678",
            "/".repeat(1_000_000)
        )));
        assert!(looks_like_key(&format!("{}**", "/".repeat(1_000_000))));
    }

    proptest! {
        #[test]
        fn no_run_of_a_key_survives(
            key in "[!-~]{8,40}",
            before in "\\PC{0,20}",
            after in "\\PC{0,20}",
            cut in 0usize..40,
        ) {
            let part = &key[cut.min(key.len() - 8)..];
            let clean = secret(&key).scrub(&format!("{before}{part}{after}{key}"));
            for run in key.as_bytes().windows(8) {
                // A mask may itself spell a run of a key that is made of stars.
                let run = std::str::from_utf8(run).unwrap();
                prop_assert!(run.contains('*') || !clean.contains(run), "{clean:?}");
            }
        }

        #[test]
        fn scrubbing_does_not_panic_and_does_not_grow(text in "\\PC{0,200}") {
            let clean = secret(KEY).scrub(&text);
            prop_assert!(clean.len() <= text.len() + 3 * text.chars().count());
        }
    }
}
