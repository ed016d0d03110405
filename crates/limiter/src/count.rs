//! Totals of a day and of the last minute. A count and the period that it belongs to share one word, so that a new
//! period begins in one step.

use std::sync::atomic::AtomicU64;

use crate::ORDER;
use crate::budget::MOST;

const COUNT_BITS: u32 = 44;
const PERIODS: u64 = 1 << (64 - COUNT_BITS);

/// A count within a period: 44 bits of count, which stops at its greatest, and the low 20 bits of the period's number
/// (2,800 years of days). The count of an earlier period counts as 0.
#[repr(transparent)]
#[derive(Debug)]
struct Count(AtomicU64);

impl Count {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The period and count of `word` for a caller whose clock says `period`. Somebody whose clock is a little ahead
    /// may have begun the next period: the caller then counts in that one. A period further ahead was a clock set
    /// wrong.
    fn read(word: u64, period: u64) -> (u64, u64) {
        let (stored, count) = (word >> COUNT_BITS, word & MOST);
        let period = period % PERIODS;
        if stored == period || stored == (period + 1) % PERIODS {
            (stored, count)
        } else {
            (period, 0)
        }
    }

    fn get(&self, period: u64) -> u64 {
        Self::read(self.0.load(ORDER), period).1
    }

    fn update(&self, period: u64, f: impl Fn(u64) -> Option<u64>) -> bool {
        self.0
            .fetch_update(ORDER, ORDER, |word| {
                let (period, count) = Self::read(word, period);
                Some(period << COUNT_BITS | f(count)?.min(MOST))
            })
            .is_ok()
    }

    fn add(&self, period: u64, n: u64) {
        self.update(period, |count| Some(count.saturating_add(n)));
    }

    /// Takes `n` off, down to 0, and returns what was more than there was.
    fn subtract(&self, period: u64, n: u64) -> u64 {
        let had = self.get(period);
        self.update(period, |count| Some(count.saturating_sub(n)));
        n.saturating_sub(had)
    }

    fn clear(&self) {
        self.0.store(0, ORDER);
    }
}

/// The total of a day (UTC).
#[repr(C)]
#[derive(Debug)]
pub(crate) struct DayTotal(Count);

impl DayTotal {
    pub(crate) const fn new() -> Self {
        Self(Count::new())
    }

    pub(crate) fn get(&self, day: u32) -> u64 {
        self.0.get(day.into())
    }

    /// Whether `n` more are within `target` (0: no limit). The day's first request is, of any size: a request larger
    /// than a whole day's budget would else wait for ever.
    pub(crate) fn allows(&self, day: u32, n: u64, target: u64) -> bool {
        Self::fits(self.get(day), n, target)
    }

    fn fits(count: u64, n: u64, target: u64) -> bool {
        target == 0 || count == 0 || count.saturating_add(n) <= target
    }

    /// Adds `n` if [`Self::allows`] says so, in one step.
    pub(crate) fn take(&self, day: u32, n: u64, target: u64) -> bool {
        self.0.update(day.into(), |count| {
            Self::fits(count, n, target).then(|| count.saturating_add(n))
        })
    }

    pub(crate) fn add(&self, day: u32, n: u64) {
        self.0.add(day.into(), n);
    }

    pub(crate) fn subtract(&self, day: u32, n: u64) {
        self.0.subtract(day.into(), n);
    }

    pub(crate) fn clear(&self) {
        self.0.clear();
    }
}

const SECONDS: u64 = 60;
/// A power of two above the seconds of the window.
const RING: usize = 64;

/// The total of the last 60 s, to the second.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct MinuteTotal([Count; RING]);

impl MinuteTotal {
    pub(crate) const fn new() -> Self {
        Self([const { Count::new() }; RING])
    }

    /// The counter of a second, and the period that this second is of it.
    fn at(&self, second: u64) -> (&Count, u64) {
        (&self.0[second as usize % RING], second / RING as u64)
    }

    pub(crate) fn add(&self, second: u64, n: u64) {
        let (count, period) = self.at(second);
        count.add(period, n);
    }

    /// Takes `n` off what was counted last, as far as it goes.
    pub(crate) fn subtract(&self, second: u64, mut n: u64) {
        for second in (second.saturating_sub(SECONDS - 1)..=second).rev() {
            if n == 0 {
                break;
            }
            let (count, period) = self.at(second);
            n = count.subtract(period, n);
        }
    }

    pub(crate) fn get(&self, second: u64) -> u64 {
        (second.saturating_sub(SECONDS - 1)..=second)
            .map(|second| {
                let (count, period) = self.at(second);
                count.get(period)
            })
            .sum()
    }

    pub(crate) fn clear(&self) {
        self.0.iter().for_each(Count::clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_minute_is_what_was_counted_in_its_sixty_seconds(
            start in 0_u64..1 << 40,
            steps in prop::collection::vec((0_u64..30, 0_u64..1_000, any::<bool>()), 1..100),
        ) {
            let total = MinuteTotal::new();
            let mut second = start;
            let mut seen: Vec<(u64, u64)> = Vec::new();
            for (step, n, down) in steps {
                second += step;
                let within = |(at, _): &&mut (u64, u64)| *at + SECONDS > second;
                if down {
                    total.subtract(second, n);
                    let mut left = n;
                    for (_, count) in seen.iter_mut().rev().filter(within) {
                        let off = left.min(*count);
                        *count -= off;
                        left -= off;
                    }
                } else {
                    total.add(second, n);
                    seen.push((second, n));
                }
                let sum: u64 = seen.iter_mut().filter(within).map(|(_, n)| *n).sum();
                prop_assert_eq!(total.get(second), sum);
            }
        }
    }

    #[test]
    fn a_new_day_starts_at_nothing_and_a_late_caller_counts_in_it() {
        let total = DayTotal::new();
        assert!(total.take(100, 7, 10));
        assert!(!total.take(100, 4, 10));
        assert!(total.take(100, 3, 10));
        assert!(total.take(101, 1, 10));
        assert_eq!((total.get(101), total.get(100)), (1, 1));
        total.add(100, 5);
        assert_eq!(total.get(101), 6);
    }

    #[test]
    fn a_clock_that_was_far_ahead_does_not_spend_todays_budget() {
        let total = DayTotal::new();
        total.add(20_000 + 365, 10);
        assert!(total.allows(20_000, 10, 10));
        assert!(total.take(20_000, 10, 10));
        assert_eq!(total.get(20_000), 10);
    }

    #[test]
    fn a_total_stops_at_its_greatest_and_at_nothing() {
        let total = DayTotal::new();
        total.add(5, u64::MAX);
        total.add(5, u64::MAX);
        assert_eq!(total.get(5), MOST);
        total.subtract(5, u64::MAX);
        assert_eq!(total.get(5), 0);
    }
}
