//! Budgets, as a provider keeps them. Time comes from outside, so that the tests need not wait for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::behaviour::Limits;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What one request or token is in a bucket, so that a bucket gains its limit in units each nanosecond and nothing is
/// rounded: a minute has so many nanoseconds.
const UNIT: i128 = MINUTE.as_nanos() as i128;

/// A second, in nanoseconds.
const SECOND: i128 = 1_000_000_000;

/// What was used of the budgets.
#[derive(Debug)]
pub(crate) struct Budget {
    latest: Option<Instant>,
    minute: Window,
    day: Window,
    requests: Bucket,
    tokens: Bucket,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Judgement {
    /// The instant for which it was judged: the arrival, or that of a later request that was judged before.
    pub at: Instant,
    pub refusal: Option<Refusal>,
    pub requests: Option<Left>,
    pub tokens: Option<Left>,
}

/// Why a request was refused, in OpenAI's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `requests` or `tokens`.
    pub kind: &'static str,
    /// `requests per min (RPM)` and the like.
    pub budget: &'static str,
    pub limit: u64,
    pub used: u64,
    pub requested: u64,
    /// After which the same request would be let in if none came between. None: never.
    pub wait: Option<Duration>,
}

/// What is left of a minute's budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub limit: u64,
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset: Duration,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self {
            latest: None,
            minute: Window::new(MINUTE),
            day: Window::new(DAY),
            requests: Bucket::default(),
            tokens: Bucket::default(),
        }
    }

    /// Judges a request of so many tokens, for all budgets at once.
    pub(crate) fn judge(&mut self, limits: &Limits, arrived: Instant, tokens: u64) -> Judgement {
        // Requests are judged when their tokens are counted, so one can overtake another by some milliseconds. Time must
        // not run backwards here, or a window would hold what it has already let go.
        let at = self.latest.map_or(arrived, |latest| latest.max(arrived));
        self.latest = Some(at);
        self.minute.expire(at);
        self.day.expire(at);
        let refusal = self.refusal(limits, at, tokens);
        if refusal.is_none() {
            self.count(limits, at, tokens);
        } else if limits.count_refused {
            self.count(limits, at, 0);
        }
        let left = |limit: Option<u64>, used: u64| {
            limit.map(|limit| Left {
                limit,
                remaining: limit.saturating_sub(used),
                reset: self.minute.empty_after(at),
            })
        };
        Judgement {
            at,
            refusal,
            requests: left(limits.rpm, self.minute.requests),
            tokens: left(limits.tpm, self.minute.tokens),
        }
    }

    /// The first budget that has no room. The wait is the longest that any of them asks for.
    fn refusal(&mut self, limits: &Limits, at: Instant, tokens: u64) -> Option<Refusal> {
        let mut refusal: Option<Refusal> = None;
        let mut refuse = |kind, budget, limit, used, requested, wait: Option<Duration>| {
            let first = refusal.get_or_insert(Refusal {
                kind,
                budget,
                limit,
                used,
                requested,
                wait,
            });
            first.wait = first.wait.zip(wait).map(|(one, other)| one.max(other));
        };
        let windows = [
            (
                &self.day,
                limits.rpd,
                limits.tpd,
                "requests per day (RPD)",
                "tokens per day (TPD)",
            ),
            (
                &self.minute,
                limits.rpm,
                limits.tpm,
                "requests per min (RPM)",
                "tokens per min (TPM)",
            ),
        ];
        for (window, request_limit, token_limit, requests_name, tokens_name) in windows {
            if let Some(limit) = request_limit
                && window.requests + 1 > limit
            {
                let wait = window.room_after(at, |requests, _| requests < limit);
                refuse("requests", requests_name, limit, window.requests, 1, wait);
            }
            if let Some(limit) = token_limit
                && window.tokens + tokens > limit
            {
                let wait = window.room_after(at, |_, used| used + tokens <= limit);
                refuse("tokens", tokens_name, limit, window.tokens, tokens, wait);
            }
        }
        if limits.per_second {
            let used = (self.minute.requests, self.minute.tokens);
            if let Some(limit) = limits.rpm {
                self.requests.fill(at, limit, UNIT);
                if let Some(wait) = self.requests.missing(limit, UNIT, 1) {
                    refuse("requests", "requests per min (RPM)", limit, used.0, 1, wait);
                }
            }
            if let Some(limit) = limits.tpm {
                self.tokens.fill(at, limit, 0);
                if let Some(wait) = self.tokens.missing(limit, 0, tokens) {
                    refuse(
                        "tokens",
                        "tokens per min (TPM)",
                        limit,
                        used.1,
                        tokens,
                        wait,
                    );
                }
            }
        }
        refusal
    }

    fn count(&mut self, limits: &Limits, at: Instant, tokens: u64) {
        self.minute.add(at, tokens);
        self.day.add(at, tokens);
        for (bucket, limit, amount) in [
            (&mut self.requests, limits.rpm, 1),
            (&mut self.tokens, limits.tpm, tokens),
        ] {
            // What was not limited is no debt when it is limited later.
            if limits.per_second && limit.is_some() {
                bucket.level -= i128::from(amount) * UNIT;
            }
        }
    }
}

/// What was let in within a length of time: an instant `t` counts up to, and not including, `t + length`.
#[derive(Debug)]
struct Window {
    length: Duration,
    /// When, and how many tokens.
    entries: VecDeque<(Instant, u64)>,
    requests: u64,
    tokens: u64,
}

impl Window {
    const fn new(length: Duration) -> Self {
        Self {
            length,
            entries: VecDeque::new(),
            requests: 0,
            tokens: 0,
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, tokens)) = self.entries.front().copied()
            && at + self.length <= now
        {
            self.entries.pop_front();
            self.requests -= 1;
            self.tokens -= tokens;
        }
    }

    fn add(&mut self, now: Instant, tokens: u64) {
        self.entries.push_back((now, tokens));
        self.requests += 1;
        self.tokens += tokens;
    }

    /// How long until what is left in the window, requests and tokens, is fine. None: not even when it is empty.
    fn room_after(&self, now: Instant, fine: impl Fn(u64, u64) -> bool) -> Option<Duration> {
        let (mut requests, mut tokens) = (self.requests, self.tokens);
        for (at, used) in &self.entries {
            requests -= 1;
            tokens -= used;
            if fine(requests, tokens) {
                return Some((*at + self.length).saturating_duration_since(now));
            }
        }
        None
    }

    fn empty_after(&self, now: Instant) -> Duration {
        self.entries.back().map_or(Duration::ZERO, |(at, _)| {
            (*at + self.length).saturating_duration_since(now)
        })
    }
}

/// A second's worth of a minute's limit, filled steadily. In [`UNIT`]s.
#[derive(Debug, Default)]
struct Bucket {
    level: i128,
    /// None: never used, so it is full.
    filled: Option<Instant>,
}

impl Bucket {
    /// The bucket takes what a second brings, and no less than `least`.
    fn capacity(limit: u64, least: i128) -> i128 {
        (i128::from(limit) * SECOND).max(least)
    }

    fn fill(&mut self, now: Instant, limit: u64, least: i128) {
        let capacity = Self::capacity(limit, least);
        self.level = match self.filled {
            None => capacity,
            Some(before) => {
                let gained = now.saturating_duration_since(before).as_nanos() as i128;
                (self.level + gained * i128::from(limit)).min(capacity)
            }
        };
        self.filled = Some(now);
    }

    /// None when it holds enough, else how long it takes to fill (never, at a limit of 0). More than it can hold is enough
    /// when it is full.
    fn missing(&self, limit: u64, least: i128, amount: u64) -> Option<Option<Duration>> {
        let needed = (i128::from(amount) * UNIT).min(Self::capacity(limit, least));
        let missing = needed - self.level;
        (missing > 0).then(|| {
            let nanoseconds = u128::try_from(missing).ok()?;
            let wait = nanoseconds.checked_next_multiple_of(u128::from(limit))? / u128::from(limit);
            Some(Duration::from_nanos(u64::try_from(wait).ok()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn only_minutes(rpm: Option<u64>, tpm: Option<u64>) -> Limits {
        Limits {
            rpm,
            tpm,
            per_second: false,
            ..Limits::none()
        }
    }

    #[test]
    fn a_minute_holds_its_limit_and_not_one_more() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let limits = only_minutes(Some(3), None);
        for at in [0, 10_000, 20_000] {
            assert_eq!(budget.judge(&limits, start + ms(at), 1).refusal, None);
        }
        let refusal = budget.judge(&limits, start + ms(59_999), 1).refusal;
        assert_eq!(refusal.and_then(|refusal| refusal.wait), Some(ms(1)));
        assert_eq!(budget.judge(&limits, start + ms(60_000), 1).refusal, None);
        let refusal = budget.judge(&limits, start + ms(60_000), 1).refusal;
        assert_eq!(refusal.and_then(|refusal| refusal.wait), Some(ms(10_000)));
    }

    #[test]
    fn tokens_of_a_minute_are_let_in_to_the_last() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let limits = only_minutes(None, Some(1000));
        assert_eq!(budget.judge(&limits, start, 999).refusal, None);
        let refusal = budget
            .judge(&limits, start, 2)
            .refusal
            .expect("one too many");
        assert_eq!(
            (refusal.used, refusal.requested, refusal.limit),
            (999, 2, 1000)
        );
        let left = budget.judge(&limits, start, 1);
        assert_eq!(left.refusal, None);
        assert_eq!(left.tokens.map(|left| left.remaining), Some(0));
    }

    #[test]
    fn more_than_a_minute_s_limit_never_goes() {
        let mut budget = Budget::new();
        let refusal = budget
            .judge(&only_minutes(None, Some(1000)), Instant::now(), 1001)
            .refusal
            .expect("too large");
        assert_eq!(refusal.wait, None);
    }

    #[test]
    fn a_second_holds_a_sixtieth_of_the_minute() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let limits = Limits::per_minute(600, 1_000_000);
        for _ in 0..10 {
            assert_eq!(budget.judge(&limits, start, 1).refusal, None);
        }
        let refusal = budget.judge(&limits, start, 1).refusal;
        assert_eq!(refusal.and_then(|refusal| refusal.wait), Some(ms(100)));
        assert!(budget.judge(&limits, start + ms(99), 1).refusal.is_some());
        assert_eq!(budget.judge(&limits, start + ms(100), 1).refusal, None);
        assert!(budget.judge(&limits, start + ms(100), 1).refusal.is_some());
    }

    #[test]
    fn fewer_than_sixty_requests_a_minute_still_let_one_in() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let limits = Limits::per_minute(6, 1_000_000);
        assert_eq!(budget.judge(&limits, start, 1).refusal, None);
        assert!(
            budget
                .judge(&limits, start + ms(9_999), 1)
                .refusal
                .is_some()
        );
        assert_eq!(budget.judge(&limits, start + ms(10_000), 1).refusal, None);
    }

    #[test]
    fn a_request_of_several_seconds_tokens_goes_when_the_bucket_is_full_and_is_paid_off() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let limits = Limits::per_minute(6000, 60_000);
        assert_eq!(budget.judge(&limits, start, 5_000).refusal, None);
        let refusal = budget.judge(&limits, start, 1).refusal;
        assert_eq!(refusal.and_then(|refusal| refusal.wait), Some(ms(4_001)));
        assert_eq!(budget.judge(&limits, start + ms(4_001), 1).refusal, None);
    }

    #[test]
    fn steady_traffic_uses_the_whole_budget_without_a_refusal() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let limits = Limits::per_minute(4000, 4_000_000);
        for number in 0..12_000_u64 {
            let at = start + Duration::from_nanos(number * 15_000_000);
            let judgement = budget.judge(&limits, at, 1000);
            assert_eq!(judgement.refusal, None, "request {number}");
        }
    }

    #[test]
    fn a_day_holds_its_limit() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let limits = Limits {
            tpd: Some(100),
            ..Limits::none()
        };
        assert_eq!(budget.judge(&limits, start, 100).refusal, None);
        let hours = Duration::from_secs(60 * 60);
        let refusal = budget.judge(&limits, start + 23 * hours, 1).refusal;
        let refusal = refusal.expect("the day is not over");
        assert_eq!(refusal.budget, "tokens per day (TPD)");
        assert_eq!(refusal.wait, Some(hours));
        assert_eq!(budget.judge(&limits, start + 24 * hours, 1).refusal, None);
    }

    #[test]
    fn refused_requests_count_only_where_it_is_asked_for() {
        for count_refused in [false, true] {
            let (mut budget, start) = (Budget::new(), Instant::now());
            let limits = Limits {
                count_refused,
                ..only_minutes(Some(1), None)
            };
            assert_eq!(budget.judge(&limits, start, 1).refusal, None);
            assert!(
                budget
                    .judge(&limits, start + ms(30_000), 1)
                    .refusal
                    .is_some()
            );
            let later = budget.judge(&limits, start + ms(60_000), 1).refusal;
            assert_eq!(later.is_some(), count_refused);
        }
    }

    #[test]
    fn what_went_without_a_limit_is_no_debt_of_the_second_when_there_is_one() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        for (limits, tokens) in [(Limits::per_minute(600, 600), 1), (Limits::none(), 10_000)] {
            assert_eq!(budget.judge(&limits, start, tokens).refusal, None);
        }
        let later = start + MINUTE;
        let limits = Limits::per_minute(600, 600);
        assert_eq!(budget.judge(&limits, later, 10).refusal, None);
        assert!(budget.judge(&limits, later, 10).refusal.is_some());
    }

    #[test]
    fn new_limits_hold_from_the_next_request_on() {
        let (mut budget, start) = (Budget::new(), Instant::now());
        let many = only_minutes(Some(100), None);
        for _ in 0..50 {
            assert_eq!(budget.judge(&many, start, 1).refusal, None);
        }
        let few = only_minutes(Some(50), None);
        assert!(budget.judge(&few, start, 1).refusal.is_some());
        assert_eq!(budget.judge(&many, start, 1).refusal, None);
    }

    proptest! {
        /// The oracle looks at all that was let in before, and keeps no state.
        #[test]
        fn the_minute_agrees_with_a_naive_count(
            steps in prop::collection::vec((0_u64..20_000, 1_u64..50), 1..200),
            rpm in 1_u64..20,
            tpm in 1_u64..300,
        ) {
            let (mut budget, mut now) = (Budget::new(), Instant::now());
            let mut let_in: Vec<(Instant, u64)> = Vec::new();
            for (gap, tokens) in steps {
                now += ms(gap);
                let last: Vec<u64> = let_in
                    .iter()
                    .filter(|(at, _)| now.duration_since(*at) < MINUTE)
                    .map(|(_, tokens)| *tokens)
                    .collect();
                let room = (last.len() as u64) < rpm && last.iter().sum::<u64>() + tokens <= tpm;
                let refusal = budget.judge(&only_minutes(Some(rpm), Some(tpm)), now, tokens).refusal;
                prop_assert_eq!(refusal.is_none(), room);
                if room {
                    let_in.push((now, tokens));
                }
            }
        }

        /// Who waits as long as he is told is let in, and not a nanosecond earlier.
        #[test]
        fn the_wait_is_exact(
            steps in prop::collection::vec((0_u64..3_000, 1_u64..400), 1..100),
            rpm in 1_u64..300,
            tpm in 400_u64..10_000,
        ) {
            let limits = Limits::per_minute(rpm, tpm);
            let (mut budget, mut now) = (Budget::new(), Instant::now());
            for (gap, tokens) in steps {
                now += ms(gap);
                let Some(refusal) = budget.judge(&limits, now, tokens).refusal else { continue };
                let wait = refusal.wait.expect("it fits the minute");
                now += wait - Duration::from_nanos(1);
                prop_assert!(budget.judge(&limits, now, tokens).refusal.is_some());
                now += Duration::from_nanos(1);
                prop_assert_eq!(budget.judge(&limits, now, tokens).refusal, None);
            }
        }
    }
}
