//! What a provider's headers say about its limits.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::HeaderMap;

/// The limits that a provider states with its answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerLimits {
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute.
    pub tokens_per_minute: Option<u64>,
}

/// No header makes anybody wait longer than this: what asks for more is cut.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Numbers above this are no durations but points in time: seconds since 1970, of 2001 and later.
const EPOCH_SECONDS: f64 = 1e9;
const EPOCH_MILLISECONDS: f64 = 1e12;

/// The headers that name a request to the provider's support: OpenAI's, then Azure's.
const REQUEST_IDS: [&str; 4] = [
    "x-request-id",
    "apim-request-id",
    "x-ms-request-id",
    "x-ms-client-request-id",
];

/// The budgets of OpenAI's headers (its guide to rate limits): `x-ratelimit-limit-…`, `-remaining-…`, `-reset-…`.
const BUDGETS: [&str; 2] = ["requests", "tokens"];

/// How long the provider asks to wait. In the order of OpenAI's own clients: `retry-after-ms`, then `Retry-After` as
/// seconds or date; beyond them, for a 429 that has neither, the longest `x-ratelimit-reset-…` among the budgets of which
/// nothing is left. A date in the past and a negative number are no wait, nonsense is None, a day is the longest.
pub(super) fn retry_after(headers: &HeaderMap, status: u16, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(wait) = text("retry-after-ms").and_then(|value| seconds(value, 1e-3)) {
        return Some(wait);
    }
    if let Some(wait) =
        text("retry-after").and_then(|value| seconds(value, 1.0).or_else(|| until(value, now)))
    {
        return Some(wait);
    }
    if status != 429 {
        return None;
    }
    BUDGETS
        .into_iter()
        .filter(|budget| text(&format!("x-ratelimit-remaining-{budget}")) == Some("0"))
        .filter_map(|budget| reset(text(&format!("x-ratelimit-reset-{budget}"))?, now))
        .max()
}

/// The limits that the headers state. A budget that takes longer than a minute to fill again is not one of a minute
/// (OpenAI shows the limit of a day in the same header) and is left out.
pub(super) fn limits(headers: &HeaderMap) -> ServerLimits {
    let text = |name: String| headers.get(name)?.to_str().ok().map(str::trim);
    let [requests_per_minute, tokens_per_minute] = BUDGETS.map(|budget| {
        let limit = text(format!("x-ratelimit-limit-{budget}"))?.parse().ok()?;
        let reset = text(format!("x-ratelimit-reset-{budget}"))
            .and_then(|value| reset(value, SystemTime::now()));
        (limit > 0 && reset.is_none_or(|reset| reset <= Duration::from_secs(60))).then_some(limit)
    });
    ServerLimits {
        requests_per_minute,
        tokens_per_minute,
    }
}

/// The provider's name for the request: at most 128 printable characters.
pub(super) fn request_id(headers: &HeaderMap) -> Option<String> {
    REQUEST_IDS.into_iter().find_map(|name| {
        let id = headers.get(name)?.to_str().ok()?.trim();
        // `to_str` lets a tab through.
        let fit = (1..=128).contains(&id.len()) && !id.contains('\t');
        fit.then(|| id.to_owned())
    })
}

/// A number of seconds, or of `unit` seconds.
fn seconds(text: &str, unit: f64) -> Option<Duration> {
    let number: f64 = text
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())?;
    Some(wait(number * unit))
}

fn wait(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0))
        .unwrap_or(LONGEST_WAIT)
        .min(LONGEST_WAIT)
}

/// From now to an HTTP date.
fn until(text: &str, now: SystemTime) -> Option<Duration> {
    let date = httpdate::parse_http_date(text).ok()?;
    Some(
        date.duration_since(now)
            .unwrap_or_default()
            .min(LONGEST_WAIT),
    )
}

/// `6m0s`, `1s`, `12ms` as OpenAI writes it; plain seconds or a point in time as others do.
fn reset(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(number) = text.parse::<f64>() {
        if !number.is_finite() {
            return None;
        }
        let since_epoch = match number {
            n if n >= EPOCH_MILLISECONDS => n / 1e3,
            n if n >= EPOCH_SECONDS => n,
            n => return Some(wait(n)),
        };
        let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
        return Some(wait(since_epoch - now));
    }
    duration(text).or_else(|| until(text, now))
}

/// A duration as Go prints it: numbers with units, from the largest to the smallest.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|at| *at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "d" => 86_400.0,
                "h" => 3_600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" | "μs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Some(wait(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};

    /// 2026-11-22 12:00:00 UTC.
    fn noon() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_348_800)
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    HeaderValue::from_bytes(value.as_bytes()).unwrap(),
                )
            })
            .collect()
    }

    fn waits(pairs: &[(&str, &str)]) -> Option<Duration> {
        retry_after(&headers(pairs), 429, noon())
    }

    const fn ms(milliseconds: u64) -> Option<Duration> {
        Some(Duration::from_millis(milliseconds))
    }

    #[test]
    fn a_wait_is_read_in_every_form() {
        for (value, expected) in [
            ("3", ms(3_000)),
            ("0", ms(0)),
            ("1.5", ms(1_500)),
            (" 2 ", ms(2_000)),
            ("-5", ms(0)),
            ("1e9", Some(LONGEST_WAIT)),
            ("99999999999999999999", Some(LONGEST_WAIT)),
            ("Sun, 22 Nov 2026 12:00:30 GMT", ms(30_000)),
            ("Sunday, 22-Nov-26 12:00:30 GMT", ms(30_000)),
            ("Sun, 22 Nov 2026 11:00:00 GMT", ms(0)),
            ("Sun, 22 Nov 2099 11:00:00 GMT", Some(LONGEST_WAIT)),
            ("soon", None),
            ("", None),
            ("NaN", None),
            ("inf", None),
            ("\u{ff}", None),
        ] {
            assert_eq!(waits(&[("retry-after", value)]), expected, "{value:?}");
        }
        assert_eq!(waits(&[("retry-after-ms", "250")]), ms(250));
    }

    #[test]
    fn the_more_exact_header_goes_first() {
        let all = [
            ("retry-after-ms", "250"),
            ("retry-after", "3"),
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "6m0s"),
        ];
        assert_eq!(waits(&all), ms(250));
        assert_eq!(waits(&all[1..]), ms(3_000));
        assert_eq!(waits(&all[2..]), ms(360_000));
        assert_eq!(
            waits(&[("retry-after-ms", "x"), ("retry-after", "3")]),
            ms(3_000)
        );
    }

    #[test]
    fn only_a_spent_budget_makes_wait_and_the_longest_counts() {
        let spent = |requests, tokens| {
            waits(&[
                ("x-ratelimit-remaining-requests", requests),
                ("x-ratelimit-reset-requests", "12ms"),
                ("x-ratelimit-remaining-tokens", tokens),
                ("x-ratelimit-reset-tokens", "1s"),
            ])
        };
        assert_eq!(spent("0", "0"), ms(1_000));
        assert_eq!(spent("0", "5"), ms(12));
        assert_eq!(spent("5", "5"), None);
        let healthy = headers(&[
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "12ms"),
        ]);
        assert_eq!(retry_after(&healthy, 200, noon()), None);
    }

    #[test]
    fn a_reset_is_read_in_every_form() {
        for (value, expected) in [
            ("12ms", ms(12)),
            ("1s", ms(1_000)),
            ("6m0s", ms(360_000)),
            ("1h2m3.5s", ms(3_723_500)),
            ("30", ms(30_000)),
            ("0.25", ms(250)),
            ("1795348810", ms(10_000)),
            ("1795348810000", ms(10_000)),
            ("1795348700", ms(0)),
            ("9d", Some(LONGEST_WAIT)),
            ("m", None),
            ("1x", None),
            ("1m2", None),
            ("1.2.3s", None),
            ("", None),
        ] {
            assert_eq!(reset(value, noon()), expected, "{value:?}");
        }
    }

    #[test]
    fn limits_of_a_minute_are_told_and_those_of_a_day_are_not() {
        let found = limits(&headers(&[
            ("x-ratelimit-limit-requests", "5000"),
            ("x-ratelimit-reset-requests", "12ms"),
            ("x-ratelimit-limit-tokens", "5000000"),
        ]));
        assert_eq!(
            found,
            ServerLimits {
                requests_per_minute: Some(5_000),
                tokens_per_minute: Some(5_000_000)
            }
        );
        let found = limits(&headers(&[
            ("x-ratelimit-limit-requests", "200"),
            ("x-ratelimit-reset-requests", "7m12s"),
            ("x-ratelimit-limit-tokens", "-1"),
        ]));
        assert_eq!(found, ServerLimits::default());
    }

    #[test]
    fn a_request_has_the_providers_name() {
        assert_eq!(
            request_id(&headers(&[("apim-request-id", "b"), ("x-request-id", "a")])),
            Some("a".to_owned())
        );
        assert_eq!(
            request_id(&headers(&[("apim-request-id", "b")])),
            Some("b".to_owned())
        );
        assert_eq!(
            request_id(&headers(&[("x-request-id", &"a".repeat(129))])),
            None
        );
        assert_eq!(request_id(&headers(&[("x-request-id", "a\tb")])), None);
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_ignored(value in "\\PC{0,30}|[0-9.hmsn -]{0,12}|[0-9]{1,40}") {
            let bytes = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let mut headers = HeaderMap::new();
            for name in [
                "retry-after",
                "x-ratelimit-reset-requests",
                "x-ratelimit-limit-requests",
            ] {
                headers.insert(name, bytes.clone());
                headers.insert("x-ratelimit-remaining-requests", HeaderValue::from_static("0"));
                if let Some(wait) = retry_after(&headers, 429, noon()) {
                    prop_assert!(wait <= LONGEST_WAIT);
                }
                headers.remove("retry-after");
            }
            limits(&headers);
        }
    }
}
