//! Refusals: which class of error, and words that may be shown.

use embedder::remote::fuzzing;
use embedder::{EmbedError, ErrorClass, Secret};

use crate::tools::{DAY, assert_hidden, first_line};

/// A key that looks like one, and one that does not.
const KEYS: [&str; 2] = ["sk-proj-A1b2C3d4E5f6G7h8I9j0", "ZYXWVUTSRQPONMLKJIHG"];

/// What is shown of a provider's words, and what stands before them ("HTTP 500 from h: "), in characters.
const LONGEST_MESSAGE: usize = 500 + 40;

/// A line with the status, then the body.
///
/// What is shown is short, without control characters and without the key; the class is one that the status allows.
pub fn refusal(bytes: &[u8]) {
    let (status, body) = first_line(bytes);
    let status = std::str::from_utf8(status)
        .ok()
        .and_then(|s| s.parse().ok());
    let status = status
        .filter(|status| (300..1000).contains(status))
        .unwrap_or(400);
    for key in KEYS {
        let secret = Secret::new(key).expect("a key");
        let error = fuzzing::refusal(status, body, "h", Some(&secret));
        assert_eq!(error.http_status, Some(status));
        assert!(
            classes(status).contains(&error.class),
            "{status} is {}",
            error.class
        );
        assert_fit_to_show(&error, key);
        if let Some(error) = fuzzing::refusal_inside(body, "h", Some(&secret)) {
            assert_fit_to_show(&error, key);
        }
    }
}

fn assert_fit_to_show(error: &EmbedError, key: &str) {
    assert_hidden(key, &error.message);
    assert!(!error.message.contains(char::is_control));
    assert!(error.message.chars().count() <= LONGEST_MESSAGE);
    assert!(error.retry_after.is_none_or(|wait| wait <= DAY));
}

/// What a refusal with this status can be.
fn classes(status: u16) -> &'static [ErrorClass] {
    use ErrorClass as C;
    match status {
        402 => &[C::QuotaExhausted],
        401 | 403 => &[C::Auth, C::QuotaExhausted],
        429 => &[C::RateLimited, C::QuotaExhausted, C::TooLarge],
        408 => &[C::Timeout],
        413 => &[C::TooLarge],
        400 => &[C::InvalidRequest, C::TooLarge, C::Auth],
        422 => &[C::InvalidRequest, C::TooLarge],
        500 => &[C::Unavailable, C::TooLarge],
        409 | 423..=425 | 501.. => &[C::Unavailable],
        _ => &[C::InvalidRequest],
    }
}
