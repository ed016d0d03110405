//! What lives in shared memory: who works for which database, what was got done lately, and who is to be woken.
//!
//! All of it is atomics, so nobody waits and a killed process leaves no lock behind; only the texts of last errors need a
//! lock.

use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use pgrx::prelude::*;
use pgrx::shmem::PGRXSharedMemory;
use pgrx::{PgAtomic, PgLwLock, pg_shmem_init};

/// Worker processes of all databases together.
pub const MAX_WORKERS: usize = 64;
/// Databases that may ask the launcher for a worker at the same instant; beyond it, the launcher looks at all.
const MAX_REQUESTS: usize = 64;
/// Databases that may be dropped or renamed at the same instant.
const MAX_LEAVING: usize = 16;
/// Pipelines whose rates are kept; a further one takes the place of the one idle longest.
const MAX_RATES: usize = 128;
/// Seconds over which rates are taken.
pub const RATE_WINDOW: u32 = 60;
/// Bytes kept of a worker's last error.
const ERROR_BYTES: usize = 256;

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WorkerState {
    /// Connecting, not yet known to serve its database.
    Starting = 0,
    /// Waiting for work.
    Idle = 1,
    /// Has documents in flight.
    Running = 2,
    /// Building a deferred index.
    BuildingIndex = 3,
    /// Waiting until the SQL of its database is of its release.
    NeedsUpdate = 4,
}

impl WorkerState {
    /// Its name in the view `ingest.workers`.
    pub fn name(code: u8) -> &'static str {
        match code {
            1 => "idle",
            2 => "running",
            3 => "building_index",
            4 => "needs_update",
            _ => "starting",
        }
    }
}

/// One worker process. `pid` is 0 while the slot is free.
#[derive(Default)]
pub struct WorkerSlot {
    /// Process id.
    pub pid: AtomicI32,
    /// Oid of its database.
    pub database: AtomicU32,
    /// Its number among the workers of that database, from 0.
    pub number: AtomicI32,
    /// Address of its latch, which lies in shared memory at the same place for every process.
    latch: AtomicUsize,
    /// A [`WorkerState`].
    pub state: AtomicU8,
    /// Pipeline whose documents it took last.
    pub pipeline: AtomicI32,
    /// Requests being answered.
    pub requests: AtomicI32,
    /// Documents claimed and not yet written.
    pub documents: AtomicI32,
    /// When it started, as a Postgres timestamp.
    pub started_at: AtomicI64,
    /// Set by whoever wants it gone.
    pub leave: AtomicBool,
    /// Set when claims may have become void, or a pipeline was paused: what is held is to be looked through.
    pub review: AtomicBool,
    /// Counts up with every wake, see [`WorkerSlot::wakes`].
    wakes: AtomicU32,
}

impl WorkerSlot {
    /// How often it was woken. The latch alone is not enough: Postgres's own waits in the middle of a transaction (for a
    /// lock, for another process's read of a page) reset it, and what it was set for would be forgotten. Whoever is about
    /// to sleep compares this with what it was before the work.
    pub fn wakes(&self) -> u32 {
        self.wakes.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        set_latch(&self.latch);
    }
}

struct RateSlot {
    database: AtomicU32,
    pipeline: AtomicI32,
    seconds: [RateSecond; RATE_WINDOW as usize],
}

#[derive(Default)]
struct RateSecond {
    second: AtomicU32,
    documents: AtomicU32,
    tokens: AtomicU32,
    bytes: AtomicU32,
}

/// All of it.
pub struct Shared {
    launcher_latch: AtomicUsize,
    launcher_wakes: AtomicU32,
    look_at_all: AtomicBool,
    look_at: [AtomicU32; MAX_REQUESTS],
    /// Database in the upper half, the process that keeps workers away in the lower.
    leaving: [AtomicU64; MAX_LEAVING],
    absent: [AtomicU32; MAX_REQUESTS],
    /// The worker processes.
    pub workers: [WorkerSlot; MAX_WORKERS],
    rates: [RateSlot; MAX_RATES],
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            launcher_latch: AtomicUsize::new(0),
            launcher_wakes: AtomicU32::new(0),
            look_at_all: AtomicBool::new(true),
            look_at: [const { AtomicU32::new(0) }; MAX_REQUESTS],
            leaving: [const { AtomicU64::new(0) }; MAX_LEAVING],
            absent: [const { AtomicU32::new(0) }; MAX_REQUESTS],
            workers: std::array::from_fn(|_| WorkerSlot::default()),
            rates: std::array::from_fn(|_| RateSlot {
                database: AtomicU32::new(0),
                pipeline: AtomicI32::new(0),
                seconds: std::array::from_fn(|_| RateSecond::default()),
            }),
        }
    }
}

// SAFETY: atomics and arrays of them; no pointers that mean something in one process only (latches lie in shared memory).
unsafe impl PGRXSharedMemory for Shared {}

/// The texts of the workers' last errors, by slot.
#[derive(Clone, Copy)]
pub struct LastErrors([[u8; ERROR_BYTES]; MAX_WORKERS]);

impl Default for LastErrors {
    fn default() -> Self {
        Self([[0; ERROR_BYTES]; MAX_WORKERS])
    }
}

// SAFETY: plain bytes.
unsafe impl PGRXSharedMemory for LastErrors {}

// SAFETY: the names are used for nothing else in the server.
static SHARED: PgAtomic<Shared> = unsafe { PgAtomic::new(c"pg_ingest") };
// SAFETY: as above.
static LAST_ERRORS: PgLwLock<LastErrors> = unsafe { PgLwLock::new(c"pg_ingest_errors") };
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Asks for the memory; only while the server loads its preload libraries.
pub fn request() {
    pg_shmem_init!(SHARED);
    pg_shmem_init!(LAST_ERRORS);
    REQUESTED.store(true, Ordering::Relaxed);
}

/// The memory, when the library was preloaded.
pub fn get() -> Option<&'static Shared> {
    REQUESTED.load(Ordering::Relaxed).then(|| SHARED.get())
}

fn set_latch(address: &AtomicUsize) {
    let latch = address.load(Ordering::Acquire) as *mut pg_sys::Latch;
    if !latch.is_null() {
        // SAFETY: the address of a latch in the array of process structures, which exists as long as the server; if its
        // process has ended, another one wakes for nothing.
        unsafe { pg_sys::SetLatch(latch) };
    }
}

fn my_latch() -> usize {
    // SAFETY: set at process start.
    unsafe { pg_sys::MyLatch as usize }
}

impl Shared {
    /// Makes the calling process the one that [`Shared::wake_launcher`] wakes.
    pub fn become_launcher(&self) {
        self.launcher_latch.store(my_latch(), Ordering::Release);
    }

    /// Wakes the launcher.
    pub fn wake_launcher(&self) {
        self.launcher_wakes.fetch_add(1, Ordering::SeqCst);
        set_latch(&self.launcher_latch);
    }

    /// How often the launcher was woken; see [`WorkerSlot::wakes`].
    pub fn launcher_wakes(&self) -> u32 {
        self.launcher_wakes.load(Ordering::SeqCst)
    }

    /// Asks the launcher to see whether this database wants a worker.
    pub fn request_worker(&self, database: pg_sys::Oid) {
        let wanted = database.to_u32();
        let noted = self.look_at.iter().any(|entry| {
            match entry.compare_exchange(0, wanted, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => true,
                Err(present) => present == wanted,
            }
        });
        if !noted {
            self.look_at_all.store(true, Ordering::Release);
        }
        self.wake_launcher();
    }

    /// Asks the launcher to look at every database.
    pub fn request_all(&self) {
        self.look_at_all.store(true, Ordering::Release);
        self.wake_launcher();
    }

    /// The databases to look at, and whether to look at all; forgets them.
    pub fn take_requests(&self) -> (Vec<pg_sys::Oid>, bool) {
        let all = self.look_at_all.swap(false, Ordering::AcqRel);
        let some = self
            .look_at
            .iter()
            .map(|entry| entry.swap(0, Ordering::AcqRel))
            .filter(|database| *database != 0)
            .map(pg_sys::Oid::from)
            .collect();
        (some, all)
    }

    /// Tells the launcher that a database has no extension.
    pub fn report_absent(&self, database: pg_sys::Oid) {
        for entry in &self.absent {
            if entry
                .compare_exchange(0, database.to_u32(), Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                break;
            }
        }
    }

    /// The databases found to have no extension since the last call.
    pub fn take_absent(&self) -> Vec<pg_sys::Oid> {
        self.absent
            .iter()
            .map(|entry| entry.swap(0, Ordering::AcqRel))
            .filter(|database| *database != 0)
            .map(pg_sys::Oid::from)
            .collect()
    }

    /// Asks the workers of a database with numbers from `most` on to end.
    pub fn dismiss_workers(&self, database: pg_sys::Oid, most: i32) {
        for (_, slot) in self.workers_of(database) {
            if slot.number.load(Ordering::Relaxed) >= most {
                slot.leave.store(true, Ordering::SeqCst);
                slot.wake();
            }
        }
    }

    /// Takes a free slot for worker `number` of `database`; `None` when another process is that worker already, or all
    /// slots are taken.
    pub fn register_worker(&self, database: pg_sys::Oid, number: i32) -> Option<usize> {
        let pid = std::process::id() as i32;
        let index = self.workers.iter().position(|slot| {
            slot.pid
                .compare_exchange(0, -pid, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })?;
        let slot = &self.workers[index];
        slot.database.store(database.to_u32(), Ordering::Relaxed);
        slot.number.store(number, Ordering::Relaxed);
        slot.latch.store(my_latch(), Ordering::Relaxed);
        slot.state
            .store(WorkerState::Starting as u8, Ordering::Relaxed);
        slot.pipeline.store(0, Ordering::Relaxed);
        slot.requests.store(0, Ordering::Relaxed);
        slot.documents.store(0, Ordering::Relaxed);
        slot.leave.store(false, Ordering::Relaxed);
        // SAFETY: reads the clock.
        let now = unsafe { pg_sys::GetCurrentTimestamp() };
        slot.started_at.store(now, Ordering::Relaxed);
        slot.pid.store(pid, Ordering::SeqCst);
        LAST_ERRORS.exclusive().0[index] = [0; ERROR_BYTES];
        let twin = self.workers.iter().enumerate().any(|(other, slot)| {
            other != index
                && slot.pid.load(Ordering::SeqCst) > 0
                && slot.database.load(Ordering::Relaxed) == database.to_u32()
                && slot.number.load(Ordering::Relaxed) == number
        });
        if twin {
            self.release_worker(index);
            return None;
        }
        Some(index)
    }

    /// Frees a slot. Plain stores: it is called while a process exits.
    pub fn release_worker(&self, index: usize) {
        let slot = &self.workers[index];
        slot.latch.store(0, Ordering::Release);
        slot.pid.store(0, Ordering::SeqCst);
    }

    /// The workers of a database.
    pub fn workers_of(&self, database: pg_sys::Oid) -> impl Iterator<Item = (usize, &WorkerSlot)> {
        self.workers.iter().enumerate().filter(move |(_, slot)| {
            slot.pid.load(Ordering::SeqCst) != 0
                && slot.database.load(Ordering::Relaxed) == database.to_u32()
        })
    }

    /// Has the workers of a database look through what they hold, when they are next woken.
    pub fn review(&self, database: pg_sys::Oid) {
        for (_, slot) in self.workers_of(database) {
            slot.review.store(true, Ordering::SeqCst);
        }
    }

    /// Wakes the workers of a database; whether there are any that are there to stay.
    pub fn wake_workers(&self, database: pg_sys::Oid) -> bool {
        let mut any = false;
        for (_, slot) in self.workers_of(database) {
            slot.wake();
            any |= !slot.leave.load(Ordering::SeqCst)
                && slot.state.load(Ordering::SeqCst) != WorkerState::Starting as u8;
        }
        any
    }

    /// Asks the workers of a database to leave it, and keeps new ones away until [`Shared::allow_workers`] by the same
    /// process.
    pub fn send_workers_away(&self, database: pg_sys::Oid) {
        let wanted = away_entry(database);
        for entry in &self.leaving {
            match entry.compare_exchange(0, wanted, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(present) if present == wanted => break,
                Err(_) => {}
            }
        }
        for (_, slot) in self.workers_of(database) {
            slot.leave.store(true, Ordering::SeqCst);
            slot.wake();
        }
    }

    /// Ends [`Shared::send_workers_away`].
    pub fn allow_workers(&self, database: pg_sys::Oid) {
        for entry in &self.leaving {
            let _ =
                entry.compare_exchange(away_entry(database), 0, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// Ends every [`Shared::send_workers_away`] of the calling process, which is exiting, and has those databases looked at.
    pub fn allow_all_workers(&self) {
        let me = std::process::id();
        for entry in &self.leaving {
            let present = entry.load(Ordering::SeqCst);
            if present != 0 && present as u32 == me {
                entry.store(0, Ordering::SeqCst);
                self.request_worker(pg_sys::Oid::from((present >> 32) as u32));
            }
        }
    }

    /// Whether workers are to stay away from a database.
    pub fn must_stay_away(&self, database: pg_sys::Oid) -> bool {
        self.leaving
            .iter()
            .any(|entry| (entry.load(Ordering::SeqCst) >> 32) as u32 == database.to_u32())
    }

    /// Adds to what a pipeline got done this second (`now`: seconds since 1970).
    pub fn count_done(
        &self,
        database: pg_sys::Oid,
        pipeline: i32,
        now: u32,
        documents: u32,
        tokens: u32,
        bytes: u32,
    ) {
        let slot = self.rate_slot(database, pipeline);
        let second = &slot.seconds[(now % RATE_WINDOW) as usize];
        let seen = second.second.load(Ordering::Acquire);
        if seen != now
            && second
                .second
                .compare_exchange(seen, now, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            second.documents.store(0, Ordering::Relaxed);
            second.tokens.store(0, Ordering::Relaxed);
            second.bytes.store(0, Ordering::Relaxed);
        }
        second.documents.fetch_add(documents, Ordering::Relaxed);
        second.tokens.fetch_add(tokens, Ordering::Relaxed);
        second.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn rate_slot(&self, database: pg_sys::Oid, pipeline: i32) -> &RateSlot {
        let key = database.to_u32();
        let found = self.rates.iter().find(|slot| {
            slot.database.load(Ordering::Acquire) == key
                && slot.pipeline.load(Ordering::Relaxed) == pipeline
        });
        found.unwrap_or_else(|| {
            let latest = |slot: &RateSlot| {
                let seconds = slot.seconds.iter();
                seconds.map(|s| s.second.load(Ordering::Relaxed)).max()
            };
            let oldest = self
                .rates
                .iter()
                .min_by_key(|slot| latest(slot))
                .unwrap_or(&self.rates[0]);
            oldest.database.store(0, Ordering::Release);
            for second in &oldest.seconds {
                second.second.store(0, Ordering::Relaxed);
            }
            oldest.pipeline.store(pipeline, Ordering::Relaxed);
            oldest.database.store(key, Ordering::Release);
            oldest
        })
    }

    /// `(pipeline, documents, tokens, bytes)` per minute over the last whole seconds in which a pipeline of this
    /// database was busy, 60 at the most.
    pub fn rates(&self, database: pg_sys::Oid, now: u32) -> Vec<(i32, f64, f64, f64)> {
        self.rates
            .iter()
            .filter(|slot| slot.database.load(Ordering::Acquire) == database.to_u32())
            .map(|slot| {
                let mut first = now;
                let mut sums = [0f64; 3];
                for s in &slot.seconds {
                    let second = s.second.load(Ordering::Acquire);
                    // This second is not over, and the one 60 before shares its place.
                    if second < now && second + RATE_WINDOW > now {
                        first = first.min(second);
                        sums[0] += f64::from(s.documents.load(Ordering::Relaxed));
                        sums[1] += f64::from(s.tokens.load(Ordering::Relaxed));
                        sums[2] += f64::from(s.bytes.load(Ordering::Relaxed));
                    }
                }
                let minutes = f64::from(now - first) / 60.0;
                let rate = |sum: f64| if minutes > 0.0 { sum / minutes } else { 0.0 };
                (
                    slot.pipeline.load(Ordering::Relaxed),
                    rate(sums[0]),
                    rate(sums[1]),
                    rate(sums[2]),
                )
            })
            .collect()
    }
}

/// What stands for the calling process keeping workers away from a database.
fn away_entry(database: pg_sys::Oid) -> u64 {
    u64::from(database.to_u32()) << 32 | u64::from(std::process::id())
}

/// Keeps a worker's last error for the view.
pub fn set_last_error(slot: usize, message: &str) {
    let mut bytes = [0u8; ERROR_BYTES];
    let mut end = message.len().min(ERROR_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    bytes[..end].copy_from_slice(&message.as_bytes()[..end]);
    LAST_ERRORS.exclusive().0[slot] = bytes;
}

/// A worker's last error.
pub fn last_error(slot: usize) -> Option<String> {
    let bytes = LAST_ERRORS.share().0[slot];
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(ERROR_BYTES);
    (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// Seconds since 1970.
pub fn unix_now() -> u32 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as u32)
}
