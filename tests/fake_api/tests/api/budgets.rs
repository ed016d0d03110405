//! Refusals for want of budget. How budgets are kept is tested beside the code, where time need not pass.

use std::time::Duration;

use fake_api::{Behaviour, FakeApi, Latency, Limits, RetryAfter, RetryHints, Verdict};

use crate::client::{Client, texts};

/// One request a minute, so that a slow machine changes nothing.
const ONE: Limits = Limits::per_minute(1, 1_000_000);

fn api(limits: Limits) -> FakeApi {
    FakeApi::start(Behaviour {
        limits,
        ..Behaviour::default()
    })
}

#[test]
fn a_refusal_says_which_budget_and_when_to_come_again() {
    let api = api(ONE);
    let mut client = Client::of(&api);
    let body = texts(&["a"]);
    let answer = client.ask(&body);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("1"));
    assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(
        answer.header("x-ratelimit-remaining-tokens"),
        Some("999999")
    );
    assert_eq!(answer.header("x-ratelimit-reset-tokens"), Some("1m0s"));
    assert!(answer.header("x-request-id").is_some());
    assert!(answer.header("openai-processing-ms").is_some());

    let refusal = client.ask(&body);
    assert_eq!(refusal.status, 429);
    let error = &refusal.json()["error"];
    assert_eq!(
        (&error["code"], &error["type"]),
        (&"rate_limit_exceeded".into(), &"requests".into())
    );
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.contains("(RPM): Limit 1, Used 1, Requested 1."),
        "{message}"
    );
    let number = |name: &str| -> u64 {
        let value = refusal.header(name).unwrap_or_else(|| panic!("{name}"));
        value.parse().expect("a number")
    };
    let (seconds, milliseconds) = (number("retry-after"), number("retry-after-ms"));
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(milliseconds.div_ceil(1000), seconds);
    assert!(refusal.header("x-ratelimit-reset-requests").is_some());
    assert_eq!((api.accepted(), api.refused()), (1, 1));
}

#[test]
fn hints_can_be_left_out_or_be_a_date() {
    let api = api(ONE);
    let mut client = Client::of(&api);
    client.ask(&texts(&["a"]));
    let mut hints = |hints: RetryHints| {
        api.change(|behaviour| {
            behaviour.retry_hints = hints;
            behaviour.budget_headers = false;
        });
        let refusal = client.ask(&texts(&["a"]));
        assert_eq!(refusal.status, 429);
        let hint = |name: &str| refusal.header(name).map(str::to_owned);
        assert_eq!(hint("x-ratelimit-limit-requests"), None);
        (
            hint("retry-after"),
            hint("retry-after-ms"),
            hint("x-ratelimit-reset-requests"),
        )
    };
    assert_eq!(hints(RetryHints::none()), (None, None, None));
    let (date, milliseconds, reset) = hints(RetryHints::only(RetryAfter::Date));
    let date = date.expect("a date");
    let at = httpdate::parse_http_date(&date).expect("a date");
    let wait = at.duration_since(std::time::SystemTime::now());
    assert!(
        wait.is_ok_and(|wait| wait <= Duration::from_secs(61)),
        "{date}"
    );
    assert_eq!((milliseconds, reset), (None, None));
}

#[test]
fn limits_change_while_it_runs() {
    let api = api(ONE);
    let mut client = Client::of(&api);
    let mut status = || client.ask(&texts(&["a"])).status;
    assert_eq!((status(), status()), (200, 429));
    api.set_limits(Limits::none());
    assert_eq!(status(), 200);
    api.set_limits(ONE);
    assert_eq!(status(), 429);
}

#[test]
fn a_spent_quota_refuses_all_until_it_is_paid() {
    let api = api(Limits::none());
    let mut client = Client::of(&api);
    api.set_quota_exhausted(true);
    let refusal = client.ask(&texts(&["a"]));
    assert_eq!(refusal.status, 429);
    assert_eq!(refusal.json()["error"]["code"], "insufficient_quota");
    assert_eq!(refusal.header("retry-after"), None);
    assert_eq!((api.count(Verdict::QuotaExhausted), api.refused()), (1, 1));
    api.set_quota_exhausted(false);
    assert_eq!(client.ask(&texts(&["a"])).status, 200);
}

#[test]
fn what_is_accepted_never_exceeds_the_limits_however_much_comes() {
    let api = api(Limits {
        per_second: false,
        ..Limits::per_minute(20, 1_000)
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = Client::of(&api);
                for _ in 0..10 {
                    client.ask(&texts(&["a"]));
                }
            });
        }
    });
    let minute = Duration::from_secs(60);
    assert_eq!((api.accepted(), api.refused()), (20, 20));
    assert_eq!(api.busiest(minute).requests, 20);
    assert_eq!(api.busiest_arrivals(minute).requests, 40);
}

#[test]
fn answers_take_their_time_and_refusals_do_not() {
    let api = FakeApi::start(Behaviour {
        limits: ONE,
        latency: Latency {
            fixed: Duration::from_millis(600),
            per_1000_tokens: Duration::from_secs(100),
        },
        ..Behaviour::default()
    });
    let mut client = Client::of(&api);
    let four_tokens = texts(&["a b c d"]);
    assert_eq!(client.ask(&four_tokens).status, 200);
    assert_eq!(client.ask(&four_tokens).status, 429);
    let times: Vec<Duration> = api
        .requests()
        .iter()
        .map(|record| record.ended.expect("it was answered") - record.arrived)
        .collect();
    assert!(times[0] >= Duration::from_secs(1), "{times:?}");
    assert!(times[1] < Duration::from_secs(1), "{times:?}");
}
