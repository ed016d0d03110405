//! Callers in virtual time.
#![allow(dead_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;

use limiter::{Budget, Claimant, LATENESS, Limit, Now};

pub const SECOND: u64 = 1_000_000_000;
pub const MINUTE: u64 = 60 * SECOND;
pub const MILLISECOND: u64 = 1_000_000;
/// When the machine of these tests started its day: noon, so that no midnight comes in between.
const NOON: u64 = 20_000 * 86_400 + 43_200;

pub fn at(monotonic: u64) -> Now {
    Now {
        monotonic,
        unix: NOON + monotonic / SECOND,
    }
}

pub fn claimant(key: u64) -> Claimant {
    Claimant {
        key: NonZeroU64::new(key).unwrap(),
        urgent: false,
    }
}

pub fn urgent(key: u64) -> Claimant {
    Claimant {
        urgent: true,
        ..claimant(key)
    }
}

pub fn minute_budget(requests: Option<u64>, tokens: Option<u64>) -> Budget {
    Budget {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        requests_per_day: None,
        tokens_per_day: None,
        utilization: 1.0,
    }
}

pub fn limit(now: Now, budget: &Budget) -> Limit {
    let limit = Limit::new();
    limit.configure(now, budget);
    limit
}

/// A thread that sends one request after the other.
#[derive(Debug, Clone, Copy)]
pub struct Thread {
    pub who: Claimant,
    pub tokens: u64,
    /// Between admission and its next asking.
    pub round_trip: u64,
    /// How late it may wake, at most.
    pub late: u64,
    pub from: u64,
    pub until: u64,
}

impl Thread {
    /// One that always wants more.
    pub fn greedy(key: u64, tokens: u64) -> Self {
        Self {
            who: claimant(key),
            tokens,
            round_trip: MILLISECOND,
            late: MILLISECOND,
            from: 0,
            until: u64::MAX,
        }
    }

    pub fn times(self, threads: usize) -> Vec<Self> {
        vec![self; threads]
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub at: u64,
    pub who: Claimant,
    pub tokens: u64,
    /// When it was first asked for.
    pub asked: u64,
}

/// xorshift64*: even enough for lateness.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % most.max(1)
    }
}

/// Runs the threads from `start` until `end` and returns what was admitted, in order.
pub fn run(limit: &Limit, threads: &[Thread], start: u64, end: u64, seed: u64) -> Vec<Sent> {
    let mut dice = Dice(seed | 1);
    let mut wakes: BinaryHeap<Reverse<(u64, u64, usize)>> = BinaryHeap::new();
    for (i, thread) in threads.iter().enumerate() {
        let first = start.max(thread.from) + dice.below(thread.late + 1);
        wakes.push(Reverse((first, dice.below(u64::MAX), i)));
    }
    let mut asked: Vec<Option<u64>> = vec![None; threads.len()];
    let mut sent = Vec::new();
    while let Some(Reverse((now, _, i))) = wakes.pop() {
        let thread = &threads[i];
        if now >= end || now >= thread.until {
            continue;
        }
        let first_asked = *asked[i].get_or_insert(now);
        let pause = match limit.admit(at(now), thread.who, thread.tokens) {
            Ok(()) => {
                asked[i] = None;
                sent.push(Sent {
                    at: now,
                    who: thread.who,
                    tokens: thread.tokens,
                    asked: first_asked,
                });
                thread.round_trip
            }
            Err(wait) => {
                let wait = u64::try_from(wait.duration().as_nanos()).unwrap();
                assert!(wait > 0, "a wait for nothing");
                wait
            }
        };
        let next = now + pause + dice.below(thread.late + 1);
        wakes.push(Reverse((next, dice.below(u64::MAX), i)));
    }
    sent
}

/// What a window of `window` ns may hold beside its last request.
pub fn most(target: u64, window: u64) -> u64 {
    let lateness = LATENESS.as_nanos();
    let part = u128::from(target) * (u128::from(window) + lateness);
    u64::try_from(part / (u128::from(MINUTE) + lateness)).unwrap()
}

/// The naive oracle: every window of `window` ns that ends with a request, summed up.
pub fn assert_windows(sent: &[Sent], window: u64, target: u64, size: impl Fn(&Sent) -> u64) {
    let most = most(target, window);
    let (mut first, mut before_last) = (0, 0);
    for last in sent {
        while sent[first].at + window < last.at {
            before_last -= size(&sent[first]);
            first += 1;
        }
        assert!(
            before_last <= most,
            "{before_last} and one request of {} within {window} ns until {}, where {most} are allowed",
            size(last),
            last.at
        );
        before_last += size(last);
    }
}

pub fn tokens_of(sent: &[Sent], key: u64) -> u64 {
    sent.iter()
        .filter(|sent| sent.who.key.get() == key)
        .map(|sent| sent.tokens)
        .sum()
}
