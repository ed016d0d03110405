//! What one process sent in a day, where a crash of the process does not lose it.

use std::sync::atomic::{AtomicI64, AtomicU64};

use crate::{Now, ORDER};

/// Requests and tokens of one day (UTC), counted by one thread and read by others. The atomics may lie in a mapped file:
/// all zeros is a tally of nothing.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Tally {
    /// Days since 1970, and one more; 0 for none.
    day: AtomicU64,
    requests: AtomicI64,
    tokens: AtomicI64,
}

/// What a [`Tally`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tallied {
    /// Days since 1970, in UTC.
    pub day: u32,
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
}

impl Tally {
    /// Adds to the day of `now`, which begins at nothing. A correction may be below zero; one of yesterday's that comes after
    /// midnight leaves nothing below zero.
    pub fn add(&self, now: Now, requests: i64, tokens: i64) {
        let day = u64::from(now.day()) + 1;
        if self.day.load(ORDER) != day {
            self.requests.store(0, ORDER);
            self.tokens.store(0, ORDER);
            self.day.store(day, ORDER);
        }
        let (had_requests, had_tokens) = (self.requests.load(ORDER), self.tokens.load(ORDER));
        self.requests
            .store(had_requests.saturating_add(requests).max(0), ORDER);
        self.tokens
            .store(had_tokens.saturating_add(tokens).max(0), ORDER);
    }

    /// Goes on from what was written down elsewhere, if that knows of more requests or of a later day.
    pub fn restore(&self, written: Tallied) {
        let known = self.read().unwrap_or_default();
        if (written.day, written.requests) > (known.day, known.requests) {
            let figure = |figure: u64| figure.try_into().unwrap_or(i64::MAX);
            self.requests.store(figure(written.requests), ORDER);
            self.tokens.store(figure(written.tokens), ORDER);
            self.day.store(u64::from(written.day) + 1, ORDER);
        }
    }

    /// The last day on which something was counted, if ever.
    #[must_use]
    pub fn read(&self) -> Option<Tallied> {
        let day = self.day.load(ORDER).checked_sub(1)?;
        let figure = |tally: &AtomicI64| tally.load(ORDER).max(0).cast_unsigned();
        Some(Tallied {
            day: u32::try_from(day).ok()?,
            requests: figure(&self.requests),
            tokens: figure(&self.tokens),
        })
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.day.store(0, ORDER);
        self.requests.store(0, ORDER);
        self.tokens.store(0, ORDER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_day(day: u64) -> Now {
        Now {
            monotonic: 0,
            unix: day * 86_400 + 7,
        }
    }

    fn tallied(day: u32, requests: u64, tokens: u64) -> Option<Tallied> {
        Some(Tallied {
            day,
            requests,
            tokens,
        })
    }

    #[test]
    fn a_day_is_added_up_and_the_next_begins_at_nothing() {
        let tally = Tally::default();
        assert_eq!(tally.read(), None);
        tally.add(on_day(3), 1, 500);
        tally.add(on_day(3), 1, 500);
        tally.add(on_day(3), 0, -100);
        assert_eq!(tally.read(), tallied(3, 2, 900));
        tally.add(on_day(4), 1, 10);
        assert_eq!(tally.read(), tallied(4, 1, 10));
        tally.add(on_day(4), 0, -400);
        assert_eq!(tally.read(), tallied(4, 1, 0));
        tally.clear();
        assert_eq!(tally.read(), None);
    }

    #[test]
    fn what_was_written_down_counts_once() {
        let tally = Tally::default();
        tally.restore(Tallied {
            day: 5,
            requests: 10,
            tokens: 100,
        });
        tally.add(on_day(5), 1, 10);
        // Less than is known, an earlier day, and the same again change nothing.
        for (day, requests, tokens) in [(5, 10, 100), (4, 99, 999), (5, 11, 110)] {
            tally.restore(Tallied {
                day,
                requests,
                tokens,
            });
        }
        assert_eq!(tally.read(), tallied(5, 11, 110));
        tally.restore(Tallied {
            day: 6,
            requests: 1,
            tokens: 2,
        });
        assert_eq!(tally.read(), tallied(6, 1, 2));
    }
}
