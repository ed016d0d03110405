//! The pause after a server has refused a request for its rate (429).

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::ORDER;
use crate::clock::nanoseconds;

/// The shortest cool-down, whatever the server or the dice say.
pub const LEAST_COOL_DOWN: Duration = Duration::from_millis(100);

/// The longest cool-down when the server does not say how long.
pub const MOST_COOL_DOWN: Duration = Duration::from_secs(60);

/// The longest cool-down when it does. Some servers answer a spent daily quota with a day: an hour later is soon enough
/// to ask again, and not too late when a person has raised the quota meanwhile.
pub const MOST_RETRY_AFTER: Duration = Duration::from_secs(3_600);

/// The first step of the streak, and the time within which refusals are the same step: requests that were in flight
/// together are refused together.
const STEP_NS: u64 = 1_000_000_000;

/// Whether, until when and how often a server has refused.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct CoolDown {
    /// In monotonic ns.
    until: AtomicU64,
    /// Until when a refusal belongs to the last step, in monotonic ns.
    step_until: AtomicU64,
    /// Steps since the last success.
    streak: AtomicU64,
    refusals: AtomicU64,
}

impl CoolDown {
    pub(crate) const fn new() -> Self {
        Self {
            until: AtomicU64::new(0),
            step_until: AtomicU64::new(0),
            streak: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        }
    }

    pub(crate) fn clear(&self) {
        for word in [&self.until, &self.step_until, &self.streak, &self.refusals] {
            word.store(0, ORDER);
        }
    }

    /// Ends it; the refusals stay counted.
    pub(crate) fn end(&self) {
        for word in [&self.until, &self.step_until] {
            word.store(0, ORDER);
        }
    }

    /// When it ends or ended, in monotonic ns.
    pub(crate) fn until(&self) -> u64 {
        self.until.load(ORDER)
    }

    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.load(ORDER)
    }

    /// Notes a refusal and returns when the cool-down ends.
    pub(crate) fn refused(&self, now: u64, retry_after: Option<Duration>, jitter: f64) -> u64 {
        self.refusals.fetch_add(1, ORDER);
        let until = self.until();
        let step_until = self.step_until.load(ORDER);
        let steps = now >= until
            && now >= step_until
            && self
                .step_until
                .compare_exchange(step_until, now.saturating_add(STEP_NS), ORDER, ORDER)
                .is_ok();
        if steps {
            self.streak.fetch_add(1, ORDER);
        }
        let wait = match retry_after {
            Some(time) => nanoseconds(time.clamp(LEAST_COOL_DOWN, MOST_RETRY_AFTER)),
            // The step has its cool-down; the longest of many throws of the dice would be no jitter.
            None if now < until => return until,
            None => backoff(self.streak.load(ORDER), jitter),
        };
        let end = now.saturating_add(wait);
        self.until.fetch_max(end, ORDER).max(end)
    }

    /// Notes a success. One that comes during the cool-down was sent before it, and proves nothing.
    pub(crate) fn succeeded(&self, now: u64) {
        if now >= self.until() && self.streak.load(ORDER) > 0 {
            self.streak.store(0, ORDER);
        }
    }
}

fn backoff(streak: u64, jitter: f64) -> u64 {
    let doublings = streak.saturating_sub(1).min(6);
    let most = (STEP_NS << doublings).min(nanoseconds(MOST_COOL_DOWN));
    let jitter = if jitter.is_nan() {
        1.0
    } else {
        jitter.clamp(0.0, 1.0)
    };
    ((most as f64 * jitter) as u64).max(nanoseconds(LEAST_COOL_DOWN))
}
