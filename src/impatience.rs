//! Bounds on how long a worker runs what others have put into their tables: it would keep all other pipelines waiting.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

/// What catches its cancellation is cancelled again so often.
const INSISTENCE: Duration = Duration::from_secs(1);
/// And after so long the process ends.
const LIMIT: Duration = Duration::from_secs(10);

thread_local! {
    static RAN_OUT: Cell<bool> = const { Cell::new(false) };
    /// When the process ends if the present statement goes on.
    static END: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether this process ends because a statement cannot be cancelled.
pub fn is_stuck() -> bool {
    END.get().is_some_and(|end| end <= Instant::now())
}

/// While it lives, statements are cancelled after a while, again and again; one that catches every cancellation takes the process
/// along.
pub struct Impatience {
    since: Instant,
    bound: Duration,
    timers: [Option<libc::timer_t>; 2],
}

impl Impatience {
    /// From now on; in a worker, whose statements have no timeout otherwise.
    pub fn new(bound: Duration) -> Self {
        let since = Instant::now();
        END.set(Some(since + bound + LIMIT));
        Self {
            since,
            bound,
            timers: [
                timer(libc::SIGINT, bound, INSISTENCE),
                timer(libc::SIGTERM, bound + LIMIT, Duration::ZERO),
            ],
        }
    }

    /// Whether a statement was cancelled by one since this was last asked.
    pub fn ran_out() -> bool {
        RAN_OUT.take()
    }
}

impl Drop for Impatience {
    fn drop(&mut self) {
        END.set(None);
        for timer in self.timers.iter().flatten() {
            // SAFETY: made by `timer`, and deleted once.
            unsafe { libc::timer_delete(*timer) };
        }
        if self.since.elapsed() >= self.bound {
            // SAFETY: a flag of the signal's handler, on the main thread: what was to be cancelled is over.
            unsafe { (&raw mut pg_sys::QueryCancelPending).write_volatile(0) };
            if std::thread::panicking() {
                RAN_OUT.set(true);
            }
        }
    }
}

/// Sends this process a signal after a while, and then each time that `again` has passed. The handlers of both signals are
/// Postgres's own, and threads other than the main one block them.
fn timer(signal: libc::c_int, after: Duration, again: Duration) -> Option<libc::timer_t> {
    let time = |duration: Duration| libc::timespec {
        tv_sec: duration.as_secs() as libc::time_t,
        tv_nsec: duration.subsec_nanos() as libc::c_long,
    };
    // SAFETY: zeros are a valid sigevent; all pointers are to this frame.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = signal;
        let mut timer = std::mem::zeroed();
        if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
            return None;
        }
        let times = libc::itimerspec {
            it_interval: time(again),
            it_value: time(after),
        };
        libc::timer_settime(timer, 0, &times, std::ptr::null_mut());
        Some(timer)
    }
}
