//! Requests in flight of one pipeline.

use std::sync::atomic::AtomicU32;

use crate::ORDER;

/// Worker processes of the server, at most.
pub const MAX_WORKERS: usize = 64;

/// Set in a worker's count when its process is ending: nothing is counted in for it any more.
const CLOSED: u32 = 1 << 31;

/// Counts the requests that one pipeline has in flight, over all processes that share it. All-zero bytes are none.
#[repr(C)]
#[derive(Debug)]
pub struct InFlight {
    total: AtomicU32,
    workers: [AtomicU32; MAX_WORKERS],
}

impl Default for InFlight {
    fn default() -> Self {
        Self::new()
    }
}

impl InFlight {
    /// None in flight.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            total: AtomicU32::new(0),
            workers: [const { AtomicU32::new(0) }; MAX_WORKERS],
        }
    }

    /// Counts a request of `worker` in, unless `most` are in flight. Always false for a worker beyond [`MAX_WORKERS`] and
    /// for one that was released.
    #[must_use]
    pub fn try_begin(&self, worker: usize, most: u32) -> bool {
        let Some(own) = self.workers.get(worker) else {
            return false;
        };
        // The worker's count comes first: should the process end in between, one request too many is given back for it,
        // which ends with the next idle moment; the other way round one too few would be missing for ever.
        let open = own.fetch_update(ORDER, ORDER, |own| (own & CLOSED == 0).then(|| own + 1));
        if open.is_err() {
            return false;
        }
        let begun = self
            .total
            .fetch_update(ORDER, ORDER, |total| (total < most).then(|| total + 1))
            .is_ok();
        if !begun {
            subtract(own, 1);
        }
        begun
    }

    /// Counts a request of `worker` out. Without effect when [`Self::release_worker`] has done so.
    pub fn end(&self, worker: usize) {
        if let Some(own) = self.workers.get(worker)
            && subtract(own, 1) == 1
        {
            subtract(&self.total, 1);
        }
    }

    /// Counts out all requests of a worker, for good: its process is ending, and what its threads still do counts for
    /// nothing.
    pub fn release_worker(&self, worker: usize) {
        if let Some(own) = self.workers.get(worker) {
            let had = own.swap(CLOSED, ORDER);
            if had & CLOSED == 0 {
                subtract(&self.total, had);
            }
        }
    }

    /// Begins anew for a worker: another process has its number. What its predecessor left is counted out.
    pub fn open_worker(&self, worker: usize) {
        if let Some(own) = self.workers.get(worker) {
            let had = own.swap(0, ORDER);
            if had & CLOSED == 0 {
                subtract(&self.total, had);
            }
        }
    }

    /// How many are in flight.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.total.load(ORDER)
    }
}

/// Takes up to `n` off and returns how many; nothing off a closed count.
fn subtract(count: &AtomicU32, n: u32) -> u32 {
    let had = count.fetch_update(ORDER, ORDER, |count| {
        (count & CLOSED == 0).then(|| count.saturating_sub(n))
    });
    had.map_or(0, |had| had.min(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_most_are_in_flight_over_all_workers() {
        let flight = InFlight::new();
        assert!(flight.try_begin(0, 2) && flight.try_begin(63, 2));
        assert!(!flight.try_begin(0, 2) && !flight.try_begin(5, 2));
        flight.end(63);
        assert!(flight.try_begin(5, 2));
        assert_eq!(flight.count(), 2);
        assert!(!flight.try_begin(MAX_WORKERS, 100) && !flight.try_begin(0, 0));
    }

    #[test]
    fn a_worker_that_ended_gives_back_its_own_and_only_once() {
        let flight = InFlight::default();
        assert!((0..3).all(|_| flight.try_begin(1, 10)) && flight.try_begin(2, 10));
        flight.release_worker(1);
        assert_eq!(flight.count(), 1);
        flight.end(1);
        flight.release_worker(1);
        assert_eq!(flight.count(), 1);
        flight.end(2);
        flight.end(2);
        flight.end(MAX_WORKERS);
        flight.release_worker(MAX_WORKERS);
        assert_eq!(flight.count(), 0);
    }

    #[test]
    fn a_worker_that_was_released_counts_nothing_in_until_it_is_opened_anew() {
        let flight = InFlight::new();
        assert!(flight.try_begin(1, 2));
        flight.release_worker(1);
        assert!(!flight.try_begin(1, 2));
        flight.end(1);
        assert_eq!(flight.count(), 0);
        flight.open_worker(1);
        assert!(flight.try_begin(1, 2));
        // One that ended without a word.
        flight.open_worker(1);
        assert_eq!(flight.count(), 0);
    }

    #[test]
    fn threads_do_not_lose_count() {
        let flight = InFlight::new();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let flight = &flight;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        if flight.try_begin(worker, 3) {
                            assert!(flight.count() <= 3);
                            flight.end(worker);
                        }
                    }
                });
            }
        });
        assert_eq!(flight.count(), 0);
    }
}
