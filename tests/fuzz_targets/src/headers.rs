//! `Retry-After`, the headers about limits, and those that name a request.

use std::time::{Duration, UNIX_EPOCH};

use embedder::remote::fuzzing::read_headers;

use crate::tools::{DAY, first_line};

/// A line with the status, then a header a line.
///
/// No wait is longer than a day, no limit is zero, and a request's name is printable and short.
pub fn headers(bytes: &[u8]) {
    let (status, mut rest) = first_line(bytes);
    let status = std::str::from_utf8(status)
        .ok()
        .and_then(|s| s.parse().ok());
    let status = status.unwrap_or(429);
    let mut lines = Vec::new();
    while !rest.is_empty() && lines.len() < 64 {
        let (line, next) = first_line(rest);
        rest = next;
        if let Some(colon) = line.iter().position(|byte| *byte == b':') {
            lines.push((&line[..colon], &line[colon + 1..]));
        }
    }
    // 2026-11-22 12:00:00 UTC.
    let now = UNIX_EPOCH + Duration::from_secs(1_795_348_800);
    let (wait, limits, request_id) = read_headers(&lines, status, now);
    assert!(wait.is_none_or(|wait| wait <= DAY), "{wait:?}");
    if status != 429 {
        let asked = lines
            .iter()
            .any(|(name, _)| name.to_ascii_lowercase().starts_with(b"retry-after"));
        assert!(asked || wait.is_none(), "a wait that nobody asked for");
    }
    for limit in [limits.requests_per_minute, limits.tokens_per_minute] {
        assert_ne!(limit, Some(0));
    }
    if let Some(id) = request_id {
        assert!((1..=128).contains(&id.len()));
        assert!(!id.contains(char::is_control));
    }
}
