//! One minute budget: virtual scheduling (the generic cell rate algorithm, with debt in place of a burst).

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::ORDER;
use crate::budget::Setting;

/// How late a caller that was told to wait may come back without a loss to the budget: the time is made good by the
/// requests after it. Whoever is later than this has left the budget unused, and nothing is made good.
pub const LATENESS: Duration = Duration::from_millis(25);

pub(crate) const LATENESS_NS: u64 = LATENESS.as_nanos() as u64;

/// How much later than another a request may be on its way to the server, so that they arrive closer together than they
/// were sent.
const WAY_NS: u64 = 25_000_000;

/// What a target of requests is spread over: a minute, the lateness that may be made good in it, and the way. So no 60 s
/// hold more than the target, at the server either. Costs 0.08 % of the budget.
pub(crate) const REQUEST_WINDOW_NS: u64 = 60_000_000_000 + LATENESS_NS + WAY_NS;

/// What a target of tokens is spread over: besides, the quarter of a second that a packed request is worth at most
/// ([`request_tokens`](crate::request_tokens)), since the last request of a minute comes on top of what its time allows.
/// Costs 0.5 % of the budget. Where requests are so scarce that one is worth more than that, their own pace keeps the
/// tokens within the target too.
pub(crate) const TOKEN_WINDOW_NS: u64 =
    REQUEST_WINDOW_NS + 60_000_000_000 / crate::budget::SCARCE_REQUESTS;

/// How long a server's statement holds that is not made again: five minutes. Answers make it all the time; a figure so
/// small by mistake that nothing is sent any more, and so no answer comes to correct it, is got over.
pub(crate) const STATEMENT_HOLDS_NS: u64 = 300_000_000_000;

/// The schedule of one budget. The theoretical arrival time (TAT) is when all that was admitted is paid for.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Rate {
    setting: AtomicU64,
    server: AtomicU64,
    /// When the server said so last, in monotonic ns.
    told_at: AtomicU64,
    /// The target in whose terms the TAT stands; 0 for none.
    target: AtomicU64,
    tat: AtomicU64,
}

/// What a request took, for giving it back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    before: u64,
    after: u64,
    cost: u64,
}

impl Rate {
    pub(crate) const fn new() -> Self {
        Self {
            setting: AtomicU64::new(0),
            server: AtomicU64::new(0),
            told_at: AtomicU64::new(0),
            target: AtomicU64::new(0),
            tat: AtomicU64::new(0),
        }
    }

    pub(crate) fn clear(&self) {
        for word in [
            &self.setting,
            &self.server,
            &self.told_at,
            &self.target,
            &self.tat,
        ] {
            word.store(0, ORDER);
        }
    }

    /// Another setting forgets what the server said before.
    pub(crate) fn configure(&self, setting: Setting) {
        if self.setting.swap(setting.0, ORDER) != setting.0 {
            self.server.store(0, ORDER);
        }
    }

    /// What the server says of itself at `at` (monotonic ns). Nothing and 0 leave what it said before.
    pub(crate) fn told(&self, at: u64, limit: Option<u64>) {
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            self.told_at.store(at, ORDER);
            if self.server.load(ORDER) != limit {
                self.server.store(limit, ORDER);
            }
        }
    }

    /// Forgets what the server said too long before `at` (monotonic ns).
    pub(crate) fn forget(&self, at: u64) {
        let old = at.saturating_sub(self.told_at.load(ORDER)) > STATEMENT_HOLDS_NS;
        if old && self.server.load(ORDER) != 0 {
            self.server.store(0, ORDER);
        }
    }

    /// What may be sent in a minute; 0 when nothing limits it.
    pub(crate) fn wanted(&self) -> u64 {
        Setting(self.setting.load(ORDER)).target(self.server.load(ORDER))
    }

    /// Goes over to the target that is wanted now, and says whether it is another one. Debt beyond `from` (monotonic
    /// ns) is told in the new target's time; what lies before it is a cool-down, which no target shortens. Everyone who
    /// uses the rate calls this first, so no change can be lost between two who make one at once.
    pub(crate) fn retarget(&self, from: u64) -> bool {
        let target = self.wanted();
        if self.target.load(ORDER) == target {
            return false;
        }
        let tat = self.tat.load(ORDER);
        let before = self.target.swap(target, ORDER);
        if before == target {
            return false;
        }
        let scaled = |tat: u64| {
            if before == 0 || target == 0 {
                return 0;
            }
            let debt = u128::from(tat.saturating_sub(from)) * u128::from(before);
            let debt = u64::try_from(debt.div_ceil(target.into())).unwrap_or(u64::MAX);
            if tat > from {
                from.saturating_add(debt)
            } else {
                tat
            }
        };
        if self
            .tat
            .compare_exchange(tat, scaled(tat), ORDER, ORDER)
            .is_err()
        {
            // Somebody took in between, at the old target or the new one: a wait may get too short by one request,
            // but never too long by the ratio of the two.
            let _ = self
                .tat
                .fetch_update(ORDER, ORDER, |tat| Some(scaled(tat).min(tat)));
        }
        true
    }

    /// Nanoseconds of budget that `count` takes when the target is spread over `window`, rounded up; `None` when nothing
    /// limits it.
    pub(crate) fn cost(&self, count: u64, window: u64) -> Option<u64> {
        let target = self.target.load(ORDER);
        (target > 0).then(|| cost(count, target, window))
    }

    /// When the next request may go, in monotonic ns.
    pub(crate) fn ready_at(&self) -> u64 {
        match self.target.load(ORDER) {
            0 => 0,
            _ => self.tat.load(ORDER),
        }
    }

    /// Takes `cost`, or says when the debt is paid.
    pub(crate) fn take(&self, now: u64, cost: u64) -> Result<Taken, u64> {
        let mut before = self.tat.load(ORDER);
        loop {
            let after = next(before, now, cost, LATENESS_NS)?;
            match self.tat.compare_exchange_weak(before, after, ORDER, ORDER) {
                Ok(_) => {
                    return Ok(Taken {
                        before,
                        after,
                        cost,
                    });
                }
                Err(tat) => before = tat,
            }
        }
    }

    /// Undoes [`Self::take`]; exactly when nobody took since, else by the cost.
    pub(crate) fn give_back(&self, taken: Taken) {
        if self
            .tat
            .compare_exchange(taken.after, taken.before, ORDER, ORDER)
            .is_err()
        {
            let _ = self
                .tat
                .fetch_update(ORDER, ORDER, |tat| Some(tat.saturating_sub(taken.cost)));
        }
    }

    /// More debt, for a request that took more than was thought.
    pub(crate) fn charge(&self, now: u64, cost: u64) {
        let _ = self.tat.fetch_update(ORDER, ORDER, |tat| {
            Some(start(tat, now, LATENESS_NS).saturating_add(cost))
        });
    }

    /// Less debt beyond `from`, for a request that took less than was thought; never less than none.
    pub(crate) fn refund(&self, from: u64, cost: u64) {
        let _ = self.tat.fetch_update(ORDER, ORDER, |tat| {
            (tat > from).then(|| tat.saturating_sub(cost).max(from))
        });
    }

    /// Admits a request at `at`, whatever debt there is.
    pub(crate) fn not_after(&self, at: u64) {
        self.tat.fetch_min(at, ORDER);
    }

    /// Admits nothing before `at`, and nothing more at it than at any other time.
    pub(crate) fn not_before(&self, at: u64) {
        self.tat.fetch_max(at, ORDER);
    }
}

fn cost(count: u64, target: u64, window: u64) -> u64 {
    let cost = (u128::from(count) * u128::from(window)).div_ceil(target.into());
    u64::try_from(cost).unwrap_or(u64::MAX)
}

/// The TAT from which new debt counts.
fn start(tat: u64, now: u64, lateness: u64) -> u64 {
    if now.saturating_sub(tat) > lateness {
        now
    } else {
        tat
    }
}

/// The TAT after a request of `cost` at `now`, or the TAT that it must wait for.
fn next(tat: u64, now: u64, cost: u64, lateness: u64) -> Result<u64, u64> {
    if tat > now {
        return Err(tat);
    }
    Ok(start(tat, now, lateness).saturating_add(cost))
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use governor::{Quota, RateLimiter};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_of_one_size_are_decided_as_governor_decides_them(
            cost in 1_u64..100_000_000_000,
            steps in prop::collection::vec((0.0..2.0_f64, any::<bool>()), 1..200),
        ) {
            let clock = FakeRelativeClock::default();
            let quota = Quota::with_period(Duration::from_nanos(cost)).unwrap();
            let governor = RateLimiter::direct_with_clock(quota, clock.clone());
            let (mut tat, mut now) = (0, 1_000);
            for (step, to_the_moment) in steps {
                let step = if to_the_moment {
                    tat.max(now) - now
                } else {
                    (step * cost as f64) as u64
                };
                now += step;
                clock.advance(Duration::from_nanos(step));
                let ours = next(tat, now, cost, 0);
                prop_assert_eq!(ours.is_ok(), governor.check().is_ok());
                tat = ours.unwrap_or(tat);
            }
        }

        #[test]
        fn no_arithmetic_overflows(
            tat in any::<u64>(), now in any::<u64>(), count in any::<u64>(), limits in any::<[u64; 3]>(),
        ) {
            let rate = Rate::new();
            rate.configure(Setting::new(Some(limits[0]), 0.8));
            rate.retarget(now);
            rate.not_before(tat);
            let _ = rate.take(now, rate.cost(count, TOKEN_WINDOW_NS).unwrap_or(0)).map(|taken| rate.give_back(taken));
            rate.charge(now, u64::MAX);
            rate.told(now, Some(limits[1]));
            rate.retarget(now);
            rate.refund(now, count);
            rate.configure(Setting::new(Some(limits[2]), 1.0));
            rate.retarget(now);
        }
    }

    #[test]
    fn what_is_given_back_after_others_took_is_the_cost() {
        let rate = Rate::new();
        rate.configure(Setting::new(Some(60), 1.0));
        rate.retarget(0);
        let second = 1_000_000_000;
        let first = rate.take(second, 10 * second).unwrap();
        rate.charge(second, 5 * second);
        rate.give_back(first);
        assert_eq!(rate.ready_at(), 6 * second);
    }

    #[test]
    fn costs_are_exact_at_both_ends_of_the_scale() {
        let cost = |count, target| cost(count, target, REQUEST_WINDOW_NS);
        assert_eq!(cost(1, 1), 60_050_000_000);
        assert_eq!(cost(1, 1_000_000_000), 61);
        assert_eq!(cost(1_000_000_000, 1_000_000_000), 60_050_000_000);
        assert_eq!(cost(0, 1), 0);
        assert_eq!(cost(u64::MAX, 1), u64::MAX);
    }
}
