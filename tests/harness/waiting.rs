//! Waiting for conditions.

use std::time::{Duration, Instant};

/// How long a test waits for what should happen within moments. Long, because a loaded machine must fail no test.
pub const SOON: Duration = Duration::from_secs(30);

/// First and longest nap between two looks.
const NAPS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// Returns when the condition holds.
///
/// # Panics
/// With the name of what was waited for, when it does not hold within the timeout.
#[track_caller]
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut nap = NAPS.0;
    while !condition() {
        assert!(
            start.elapsed() < timeout,
            "waited {timeout:?} in vain until {what}"
        );
        std::thread::sleep(nap);
        nap = (nap * 2).min(NAPS.1);
    }
}
