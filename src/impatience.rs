//! Bounds on how long a worker runs what others have put into their tables: it would keep all other pipelines waiting.

use std::cell::Cell;
use std::time::{Duration, Instant};

// timeout.h, which pgrx does not bind.
unsafe extern "C-unwind" {
    fn enable_timeout_after(id: libc::c_int, delay_ms: libc::c_int);
    fn disable_timeout(id: libc::c_int, keep_indicator: bool);
}
/// `STATEMENT_TIMEOUT` of timeout.h's enum TimeoutId, in 14 to 18.
const STATEMENT_TIMEOUT: libc::c_int = 3;

thread_local! {
    static RAN_OUT: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, statements are cancelled after a while.
pub struct Impatience {
    since: Instant,
    bound: Duration,
}

impl Impatience {
    /// From now on; in a worker, whose statements have no timeout otherwise.
    pub fn new(bound: Duration) -> Self {
        // SAFETY: every process with a database has registered this timeout at its start; it sends the process the signal
        // that cancels its statement.
        unsafe { enable_timeout_after(STATEMENT_TIMEOUT, bound.as_millis() as libc::c_int) };
        Self {
            since: Instant::now(),
            bound,
        }
    }

    /// Whether a statement was cancelled by one since this was last asked.
    pub fn ran_out() -> bool {
        RAN_OUT.take()
    }
}

impl Drop for Impatience {
    fn drop(&mut self) {
        // SAFETY: as above; it may have fired.
        unsafe { disable_timeout(STATEMENT_TIMEOUT, false) };
        if std::thread::panicking() && self.since.elapsed() >= self.bound {
            RAN_OUT.set(true);
        }
    }
}
