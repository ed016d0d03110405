//! What the views show of shared memory.

use std::sync::atomic::Ordering;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::{access, installed, settings, shmem};

const PRELOAD: &str = "pg_ingest is not preloaded: add pg_ingest to shared_preload_libraries in postgresql.conf and restart the server";

type WorkerRow = (
    i32,
    Option<String>,
    String,
    Option<i32>,
    i32,
    i32,
    Option<TimestampWithTimeZone>,
    Option<String>,
);

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn worker_states() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(database, Option<String>),
        name!(state, String),
        name!(pipeline_id, Option<i32>),
        name!(in_flight_requests, i32),
        name!(in_flight_documents, i32),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(last_error, Option<String>),
    ),
> {
    let Some(shared) = shmem::get() else {
        return TableIterator::empty();
    };
    // SAFETY: a plain global, set when the backend connected.
    let here = unsafe { pg_sys::MyDatabaseId };
    let tells_errors = may_read_errors();
    let rows: Vec<WorkerRow> = shared
        .workers
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.pid.load(Ordering::SeqCst) > 0)
        .map(|(index, slot)| {
            let pipeline = slot.pipeline.load(Ordering::Relaxed);
            (
                slot.pid.load(Ordering::SeqCst),
                database_name(slot.database.load(Ordering::Relaxed).into()),
                shmem::WorkerState::name(slot.state.load(Ordering::Relaxed)).to_owned(),
                (pipeline != 0).then_some(pipeline),
                slot.requests.load(Ordering::Relaxed),
                slot.documents.load(Ordering::Relaxed),
                TimestampWithTimeZone::try_from(slot.started_at.load(Ordering::Relaxed)).ok(),
                // What went wrong in another database is not this one's to read, and it may tell of anybody's documents.
                shmem::last_error(index).filter(|_| {
                    tells_errors && slot.database.load(Ordering::Relaxed) == here.to_u32()
                }),
            )
        })
        .collect();
    TableIterator::new(rows)
}

fn may_read_errors() -> bool {
    // SAFETY: catalog look-ups inside a transaction.
    access::sees_everything()
        || unsafe {
            pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::ROLE_PG_READ_ALL_STATS.into())
        }
}

fn database_name(database: pg_sys::Oid) -> Option<String> {
    // SAFETY: a catalog look-up inside a transaction; the result is a palloc'ed C string or null.
    unsafe {
        let name = pg_sys::get_database_name(database);
        (!name.is_null()).then(|| {
            std::ffi::CStr::from_ptr(name)
                .to_string_lossy()
                .into_owned()
        })
    }
}

#[pg_extern(sql = false)]
fn rates() -> TableIterator<
    'static,
    (
        name!(pipeline_id, i32),
        name!(documents_per_minute, f64),
        name!(tokens_per_minute, f64),
        name!(bytes_per_minute, f64),
    ),
> {
    // SAFETY: a plain global, set when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    let mut rows = shmem::get()
        .map(|shared| shared.rates(database, shmem::unix_now()))
        .unwrap_or_default();
    if !access::sees_everything() {
        let visible = access::visible_pipelines();
        rows.retain(|(pipeline, ..)| visible.contains(pipeline));
    }
    TableIterator::new(rows)
}

#[pg_extern(sql = false, name = "worker_problem")]
fn worker_problem() -> Option<String> {
    let Some(shared) = shmem::get() else {
        return Some(PRELOAD.into());
    };
    // SAFETY: as above.
    let database = unsafe { pg_sys::MyDatabaseId };
    if let Some((index, _)) = shared.workers_of(database).next() {
        return waits_for_update(shared, database)
            .then(|| shmem::last_error(index))
            .flatten();
    }
    // SAFETY: a plain global.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Some("this server is a standby: the worker starts when it is promoted".into());
    }
    if settings::workers() == 0 {
        return Some("no worker runs: pg_ingest.workers is 0".into());
    }
    let name = database_name(database).unwrap_or_default();
    if !settings::serves_database(&name) {
        return Some(format!(
            "no worker runs: pg_ingest.databases does not name database {name:?}"
        ));
    }
    Some(
        "no worker runs in this database yet: if it does not start within seconds, look at max_worker_processes \
         and the server log"
            .into(),
    )
}

/// Whether the workers of a database wait until its SQL is of their release.
fn waits_for_update(shared: &shmem::Shared, database: pg_sys::Oid) -> bool {
    let mut workers = shared.workers_of(database);
    workers
        .any(|(_, slot)| slot.state.load(Ordering::SeqCst) == shmem::WorkerState::NeedsUpdate as u8)
}

/// Whether there is, or should soon be, a worker in this database.
pub fn is_served(database: pg_sys::Oid) -> bool {
    // SAFETY: a plain global.
    let is_standby = unsafe { pg_sys::RecoveryInProgress() };
    !is_standby
        && settings::workers() > 0
        && database_name(database).is_some_and(|name| settings::serves_database(&name))
}

/// Raises `55000` with what to do when no worker serves this database.
pub fn require_worker() {
    if let Some(problem) = worker_problem() {
        let error = crate::errors::UserError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "no pg_ingest worker serves this database",
        )
        .detail(problem);
        if shmem::get().is_none() {
            error
                .hint("Add pg_ingest to shared_preload_libraries in postgresql.conf and restart the server.")
                .raise();
        }
        // SAFETY: a plain global.
        let database = unsafe { pg_sys::MyDatabaseId };
        if shmem::get().is_some_and(|shared| waits_for_update(shared, database)) {
            error.hint("ALTER EXTENSION pg_ingest UPDATE;").raise();
        }
        // SAFETY: a plain global.
        if unsafe { pg_sys::RecoveryInProgress() } {
            error
                .hint(
                    "Ask the primary for the query's vector with ingest.embed(), and here for the rows of the pipeline's target \
                     next to it: ORDER BY embedding <=> '[…]' LIMIT 10.",
                )
                .raise();
        }
        error.raise();
    }
}

#[pg_extern(sql = false)]
fn library_version() -> &'static str {
    installed::VERSION
}

#[pg_extern(sql = false)]
fn is_preloaded() -> bool {
    shmem::get().is_some()
}
