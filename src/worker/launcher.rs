//! The launcher: one process that keeps the workers of all databases running.
//!
//! Which databases have the extension is written in each of them, so the launcher starts worker 0 of a database to find
//! out; one that finds none ends itself. At server start it looks at every database, later only at those that ask
//! (after CREATE EXTENSION, or a commit that found nobody to wake).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgrx::bgworkers::{
    BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime, DynamicBackgroundWorker,
};
use pgrx::prelude::*;

use crate::budgets;
use crate::journal;
use crate::settings;
use crate::shmem::{self, Shared, WorkerState};
use crate::worker::transaction::transaction;

/// Wait before a worker that ended unexpectedly is started again; doubled each time, up to [`LONGEST_RESTART_WAIT`].
const FIRST_RESTART_WAIT: Duration = Duration::from_millis(250);
/// Longest such wait.
const LONGEST_RESTART_WAIT: Duration = Duration::from_secs(30);
/// Wait before the catalog is read again that could not be read.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// Databases looked at for the extension at the same time.
const MAX_LOOKS: usize = 2;
/// Seconds after which the log tells again that the server has no room for a worker.
const TELL_AGAIN: u32 = 600;
/// When the log told it last, in seconds since 1970.
static TOLD: AtomicU32 = AtomicU32::new(0);
/// The connection limit of a database whose DROP was interrupted: DATCONNLIMIT_INVALID_DB.
const HALF_DROPPED: i32 = -2;
/// A worker that ran for so long was fine: the next wait is the first again.
const HEALTHY: Duration = Duration::from_secs(60);

/// Registers the launcher; from `_PG_init`, while the server loads its preload libraries.
pub fn register_launcher() {
    BackgroundWorkerBuilder::new("pg_ingest launcher")
        .set_type("pg_ingest launcher")
        .set_library(crate::LIBRARY)
        .set_function("pg_ingest_launcher_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .enable_shmem_access(None)
        .enable_spi_access()
        .load();
}

#[derive(Default)]
struct Database {
    workers: HashMap<i32, Child>,
    /// Whether worker 0 found the extension.
    present: bool,
}

struct Child {
    /// The process, while it runs.
    handle: Option<DynamicBackgroundWorker>,
    started: Instant,
    wait: Duration,
    not_before: Instant,
}

#[allow(missing_docs)]
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_ingest_launcher_main(_argument: pg_sys::Datum) {
    super::process::install_signal_handlers();
    // SAFETY: no database: only shared catalogs are read.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
    }
    let Some(shared) = shmem::get() else { return };
    shared.become_launcher();
    let mut databases: HashMap<pg_sys::Oid, Database> = HashMap::new();
    let mut look_at_all = true;
    loop {
        let wakes = shared.launcher_wakes();
        let reloaded = super::process::reload_settings();
        // Reports before requests: whoever asked after a report is asking for good.
        for absent in shared.take_absent() {
            databases.remove(&absent);
        }
        let (mut candidates, all) = shared.take_requests();
        look_at_all |= all || reloaded;
        if look_at_all && let Ok(names) = transaction(all_databases) {
            look_at_all = false;
            candidates.extend(names.into_iter().map(|(oid, _)| oid));
        }
        for database in candidates {
            // Who asks is not kept waiting for what happened before.
            let entry = databases.entry(database).or_default();
            for child in entry.workers.values_mut() {
                child.wait = FIRST_RESTART_WAIT;
                child.not_before = Instant::now();
            }
        }
        let next = supervise(shared, &mut databases);
        let pause = next.map(|at| at.saturating_duration_since(Instant::now()));
        let woken = shared.launcher_wakes() != wakes;
        super::process::wait(-1, if woken { Some(Duration::ZERO) } else { pause });
    }
}

/// Starts what is missing, forgets what ended for good, and says when to look again without being woken.
fn supervise(shared: &Shared, databases: &mut HashMap<pg_sys::Oid, Database>) -> Option<Instant> {
    let Ok(names) = transaction(all_databases) else {
        // Nothing is known: nothing is changed.
        return Some(Instant::now() + AFTER_ERROR);
    };
    let present: Vec<pg_sys::Oid> = names.iter().map(|(oid, _)| *oid).collect();
    budgets::keep_databases(&present);
    journal::keep_databases(&present);
    let wanted = settings::workers() as i32;
    let mut next: Option<Instant> = None;
    for (oid, database) in databases.iter_mut() {
        database.present |= shared
            .workers_of(*oid)
            .any(|(_, slot)| slot.state.load(Ordering::Relaxed) != WorkerState::Starting as u8);
    }
    // Databases of which it is not known whether they have the extension are looked at a few at a time, so that a server
    // with many of them does not run out of worker processes. The end of each look wakes the launcher.
    let mut looks = MAX_LOOKS.saturating_sub(
        databases
            .values()
            .filter(|d| d.is_being_looked_at())
            .count(),
    );
    databases.retain(|oid, database| {
        let served = names
            .iter()
            .any(|(known, name)| known == oid && settings::serves_database(name));
        let most = if served { wanted } else { 0 };
        shared.dismiss_workers(*oid, most);
        // A database that is being dropped or renamed asks again when that is done.
        if served && !shared.must_stay_away(*oid) && (database.present || looks > 0) {
            let before = database.is_being_looked_at();
            database.start_missing(*oid, shared, wanted, &mut next);
            looks -= usize::from(!before && database.is_being_looked_at());
        }
        served
    });
    next
}

impl Database {
    fn is_being_looked_at(&self) -> bool {
        !self.present && self.workers.values().any(Child::runs)
    }

    fn start_missing(
        &mut self,
        oid: pg_sys::Oid,
        shared: &Shared,
        wanted: i32,
        next: &mut Option<Instant>,
    ) {
        let now = Instant::now();
        let running: Vec<i32> = shared
            .workers_of(oid)
            .map(|(_, slot)| slot.number.load(Ordering::Relaxed))
            .collect();
        for number in 0..(if self.present { wanted } else { wanted.min(1) }) {
            let child = self.workers.entry(number).or_insert_with(|| Child {
                handle: None,
                started: now,
                wait: FIRST_RESTART_WAIT,
                not_before: now,
            });
            if child.has_ended() {
                child.handle = None;
                if now.duration_since(child.started) > HEALTHY {
                    child.wait = FIRST_RESTART_WAIT;
                }
                child.not_before = now + child.wait;
                child.wait = (child.wait * 2).min(LONGEST_RESTART_WAIT);
            }
            // A worker may be running that an earlier launcher started.
            if child.handle.is_some() || running.contains(&number) {
                continue;
            }
            if child.not_before <= now {
                child.started = now;
                child.handle = start_worker(oid, number);
                if child.handle.is_some() {
                    continue;
                }
                child.not_before = now + child.wait;
                child.wait = (child.wait * 2).min(LONGEST_RESTART_WAIT);
            }
            *next = Some(next.map_or(child.not_before, |at| at.min(child.not_before)));
        }
    }
}

impl Child {
    fn runs(&self) -> bool {
        self.handle.is_some() && !self.has_ended()
    }

    fn has_ended(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| {
            matches!(
                handle.pid(),
                Err(BackgroundWorkerStatus::Stopped | BackgroundWorkerStatus::PostmasterDied)
            )
        })
    }
}

/// The process, or `None` when the server has no room for another background worker.
fn start_worker(database: pg_sys::Oid, number: i32) -> Option<DynamicBackgroundWorker> {
    // SAFETY: a plain global.
    let launcher = unsafe { pg_sys::MyProcPid };
    let argument = worker_argument(database, number);
    let started = BackgroundWorkerBuilder::new("pg_ingest worker")
        .set_type("pg_ingest worker")
        .set_library(crate::LIBRARY)
        .set_function("pg_ingest_worker_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        // The launcher restarts it, not the postmaster: one place decides.
        .set_restart_time(None)
        .set_notify_pid(launcher)
        .set_argument(Some(argument))
        .enable_shmem_access(None)
        .enable_spi_access()
        .load_dynamic();
    match started {
        Ok(handle) => Some(handle),
        Err(_) => {
            let now = shmem::unix_now();
            // Rarely, however often it is tried.
            if now.saturating_sub(TOLD.load(Ordering::Relaxed)) >= TELL_AGAIN {
                TOLD.store(now, Ordering::Relaxed);
                log!(
                    "pg_ingest: no background worker can be started now, and it is tried again; raise max_worker_processes"
                );
            }
            None
        }
    }
}

/// A worker's database and number in one argument.
fn worker_argument(database: pg_sys::Oid, number: i32) -> pg_sys::Datum {
    pg_sys::Datum::from((u64::from(database.to_u32()) << 16 | number as u64) as i64)
}

/// What [`worker_argument`] put together.
pub fn worker_identity(argument: pg_sys::Datum) -> (pg_sys::Oid, i32) {
    let packed = argument.value() as u64;
    (
        pg_sys::Oid::from((packed >> 16) as u32),
        (packed & 0xffff) as i32,
    )
}

/// Every database that takes connections and is no template, read from the shared catalog without SQL, since the
/// launcher is connected to none.
fn all_databases() -> Vec<(pg_sys::Oid, String)> {
    let mut found = Vec::new();
    // SAFETY: inside a transaction, on the main thread; the scan is ended and the table closed below, and by the
    // transaction's abort when an error is raised. A tuple of pg_database starts with the fixed part of its struct.
    unsafe {
        let table = pg_sys::table_open(
            pg_sys::DatabaseRelationId,
            pg_sys::AccessShareLock as pg_sys::LOCKMODE,
        );
        let scan = pg_sys::table_beginscan_catalog(table, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let header = (*tuple).t_data;
            let row = header
                .byte_add(usize::from((*header).t_hoff))
                .cast::<pg_sys::FormData_pg_database>();
            let takes_connections = (*row).datallowconn && (*row).datconnlimit != HALF_DROPPED;
            if takes_connections && !(*row).datistemplate {
                let name = std::ffi::CStr::from_ptr((*row).datname.data.as_ptr());
                found.push(((*row).oid, name.to_string_lossy().into_owned()));
            }
        }
        pg_sys::table_endscan(scan);
        pg_sys::table_close(table, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
    }
    found
}
