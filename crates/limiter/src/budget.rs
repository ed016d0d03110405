//! What a limit is set to, and what it comes to.

/// Greatest count of a budget or a total: 17 trillion. Greater ones are taken for this one.
pub(crate) const MOST: u64 = (1 << 44) - 1;

/// Utilization is counted in millionths, so that 0.29 of 100 is 29 and not the 28 of binary fractions.
const MILLION: u64 = 1_000_000;

/// What an account may send, and which part of it may be used. A budget of `None` or 0 does not limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Requests in a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens in a minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests in a day (UTC).
    pub requests_per_day: Option<u64>,
    /// Tokens in a day (UTC).
    pub tokens_per_day: Option<u64>,
    /// The part of each that may be used, from 0.000001 to 1; others are taken for the nearest of these.
    pub utilization: f64,
}

impl Budget {
    /// What may be sent: each budget times the utilization, rounded down, at least 1.
    #[must_use]
    pub fn targets(&self) -> Targets {
        let target = |limit| some(Setting::new(limit, self.utilization).target(0));
        Targets {
            requests_per_minute: target(self.requests_per_minute),
            tokens_per_minute: target(self.tokens_per_minute),
            requests_per_day: target(self.requests_per_day),
            tokens_per_day: target(self.tokens_per_day),
        }
    }

    /// A budget each target of which is the lesser of both budgets' targets: for a limit that two databases define
    /// differently. Its utilization is the lesser one too, and holds for what a server says of itself. (A target over
    /// utilization beyond 17 trillion, the greatest limit, comes out lower still.)
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        let (a, b) = (self.targets(), other.targets());
        let utilization = millionths(self.utilization).min(millionths(other.utilization));
        let limit = |a: Option<u64>, b: Option<u64>| {
            let target = [a, b].into_iter().flatten().min()?;
            let limit = (u128::from(target) * u128::from(MILLION)).div_ceil(utilization.into());
            Some(u64::try_from(limit).unwrap_or(u64::MAX))
        };
        Self {
            requests_per_minute: limit(a.requests_per_minute, b.requests_per_minute),
            tokens_per_minute: limit(a.tokens_per_minute, b.tokens_per_minute),
            requests_per_day: limit(a.requests_per_day, b.requests_per_day),
            tokens_per_day: limit(a.tokens_per_day, b.tokens_per_day),
            utilization: utilization as f64 / MILLION as f64,
        }
    }
}

/// What may be sent, after utilization and what the server says of itself. `None` does not limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Targets {
    /// Requests in a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens in a minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests in a day (UTC).
    pub requests_per_day: Option<u64>,
    /// Tokens in a day (UTC).
    pub tokens_per_day: Option<u64>,
}

/// Requests a minute below which they are worth filling: one in a quarter of a second.
pub(crate) const SCARCE_REQUESTS: u64 = 240;

/// How many tokens a packed request should hold at most: what the token budget allows in a quarter of a second, because
/// servers enforce their limits over seconds too; where requests are scarcer than four a second, enough that they can
/// use the whole token budget. Never more than a minute's budget, at least 1, and `u64::MAX` without a token budget.
#[must_use]
pub fn request_tokens(targets: &Targets) -> u64 {
    let Some(tokens) = targets.tokens_per_minute else {
        return u64::MAX;
    };
    let size = match targets.requests_per_minute {
        Some(requests) if requests < SCARCE_REQUESTS => tokens / requests.max(1),
        _ => tokens / SCARCE_REQUESTS,
    };
    size.clamp(1, tokens.max(1))
}

fn millionths(utilization: f64) -> u64 {
    // The cast saturates, and makes 0 of what is no number.
    ((utilization * MILLION as f64).round() as u64).clamp(1, MILLION)
}

/// A count as the interface shows it: 0 stands for none.
pub(crate) fn some(count: u64) -> Option<u64> {
    (count > 0).then_some(count)
}

/// One budget and its utilization in one word, so that no process sees the one without the other: 44 bits of limit (0:
/// none), 20 bits of millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting(pub(crate) u64);

impl Setting {
    pub(crate) fn new(limit: Option<u64>, utilization: f64) -> Self {
        Self(limit.unwrap_or(0).min(MOST) << 20 | millionths(utilization))
    }

    /// What may be sent when the server says that its limit is `server`. 0 stands for none, in and out.
    pub(crate) fn target(self, server: u64) -> u64 {
        let limit = match (self.0 >> 20, server) {
            (0, 0) => return 0,
            (0, limit) | (limit, 0) => limit,
            (ours, theirs) => ours.min(theirs),
        };
        let utilization = match self.0 & ((1 << 20) - 1) {
            0 => MILLION,
            set => set,
        };
        // The product of 44 and 20 bits.
        (limit.min(MOST) * utilization / MILLION).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_budget() -> impl Strategy<Value = Budget> {
        let limit = || {
            prop::option::of(prop_oneof![
                0_u64..100,
                0_u64..5_000_000_000,
                Just(100_000_000_000)
            ])
        };
        (limit(), limit(), limit(), limit(), 0.01..1.1).prop_map(|(rpm, tpm, rpd, tpd, part)| {
            Budget {
                requests_per_minute: rpm,
                tokens_per_minute: tpm,
                requests_per_day: rpd,
                tokens_per_day: tpd,
                utilization: part,
            }
        })
    }

    fn lesser(a: Option<u64>, b: Option<u64>) -> Option<u64> {
        [a, b].into_iter().flatten().min()
    }

    proptest! {
        #[test]
        fn the_stricter_of_two_budgets_has_the_lesser_of_each_target(
            a in some_budget(),
            b in some_budget(),
            server in prop_oneof![Just(0), 1_u64..100, 1..5_000_000_000_u64],
        ) {
            let both = a.stricter(b);
            let (ta, tb, t) = (a.targets(), b.targets(), both.targets());
            prop_assert_eq!(t.requests_per_minute, lesser(ta.requests_per_minute, tb.requests_per_minute));
            prop_assert_eq!(t.tokens_per_minute, lesser(ta.tokens_per_minute, tb.tokens_per_minute));
            prop_assert_eq!(t.requests_per_day, lesser(ta.requests_per_day, tb.requests_per_day));
            prop_assert_eq!(t.tokens_per_day, lesser(ta.tokens_per_day, tb.tokens_per_day));
            let told = |budget: &Budget| {
                some(Setting::new(budget.tokens_per_minute, budget.utilization).target(server))
            };
            prop_assert_eq!(told(&both), lesser(told(&a), told(&b)));
        }

        #[test]
        fn a_target_is_the_used_part_rounded_down_and_at_least_one(limit in 1_u64..MOST, percent in 1_u64..=100) {
            let target = Setting::new(Some(limit), percent as f64 / 100.0).target(0);
            let exact = u128::from(limit) * u128::from(percent) / 100;
            prop_assert_eq!(u128::from(target), exact.max(1));
        }

        #[test]
        fn a_packed_request_lets_the_whole_token_budget_be_used(
            requests in prop::option::of(1_u64..10_000),
            tokens in 1_u64..5_000_000_000,
        ) {
            let size = request_tokens(&Targets {
                requests_per_minute: requests,
                tokens_per_minute: Some(tokens),
                ..Targets::default()
            });
            prop_assert!(size >= 1 && size <= tokens);
            match requests {
                Some(requests) if requests < 240 => {
                    prop_assert!(requests * size <= tokens || size == 1);
                    prop_assert!(requests * (size + 1) > tokens);
                }
                _ => prop_assert!(size <= (tokens / 240).max(1)),
            }
        }
    }

    #[test]
    fn without_a_token_budget_a_request_may_hold_anything() {
        assert_eq!(request_tokens(&Targets::default()), u64::MAX);
    }

    #[test]
    fn a_server_lowers_a_target_and_never_raises_it() {
        let ours = Setting::new(Some(1_000), 0.8);
        assert_eq!(ours.target(0), 800);
        assert_eq!(ours.target(500), 400);
        assert_eq!(ours.target(5_000), 800);
        assert_eq!(Setting::new(None, 0.5).target(500), 250);
        assert_eq!(Setting(0).target(500), 500);
    }
}
