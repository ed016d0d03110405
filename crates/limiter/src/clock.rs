//! The time, as every process of the machine sees it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECONDS_A_DAY: u64 = 86_400;

/// An instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Nanoseconds of `CLOCK_MONOTONIC`; all processes must share one origin.
    pub monotonic: u64,
    /// Seconds since 1970 UTC; only the day is taken from it.
    pub unix: u64,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn read() -> Self {
        Self {
            monotonic: monotonic(),
            unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        }
    }

    /// Days since 1970, in UTC.
    #[must_use]
    pub fn day(self) -> u32 {
        u32::try_from(self.unix / SECONDS_A_DAY).unwrap_or(u32::MAX)
    }
}

/// How long it is from `unix` (seconds since 1970) to the next midnight in UTC: more than nothing, at most a day.
#[must_use]
pub fn wait_until_midnight(unix: u64) -> Duration {
    Duration::from_secs(SECONDS_A_DAY - unix % SECONDS_A_DAY)
}

#[allow(unsafe_code)]
fn monotonic() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec of this frame. The clock exists on every system that Postgres runs on, so the call
    // cannot fail; if it did, the time would stay zero.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
    }
    nanoseconds(Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    ))
}

/// `duration` in nanoseconds, at most `u64::MAX` of them (584 years).
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_run() {
        let first = Now::read();
        std::thread::sleep(Duration::from_millis(2));
        let second = Now::read();
        assert!(second.monotonic - first.monotonic >= 2_000_000);
        assert!(first.day() > 20_000 && second.unix >= first.unix);
    }

    #[test]
    fn a_day_ends_at_midnight_in_utc() {
        assert_eq!(wait_until_midnight(0), Duration::from_secs(86_400));
        assert_eq!(wait_until_midnight(86_399), Duration::from_secs(1));
        assert_eq!(wait_until_midnight(86_400), Duration::from_secs(86_400));
        assert_eq!(wait_until_midnight(u64::MAX).subsec_nanos(), 0);
    }
}
