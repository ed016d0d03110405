//! SQL for the points at which a test build can be made to wait, fail or die (`sql/injection/`). Not in the library that
//! users install.

use injection::{Action, Point, Table, Unknown};
use pgrx::prelude::*;
use pgrx::shmem::PGRXSharedMemory;
use pgrx::{PgAtomic, pg_shmem_init};

use crate::errors::UserError;

#[derive(Default)]
struct Shared(Table);

// SAFETY: atomics.
unsafe impl PGRXSharedMemory for Shared {}

// SAFETY: the name is used for nothing else in the server.
static TABLE: PgAtomic<Shared> = unsafe { PgAtomic::new(c"pg_ingest_injection") };

/// Asks for the memory; only while the server loads its preload libraries.
pub fn request() {
    pg_shmem_init!(TABLE);
}

/// Has this process look at the table.
pub fn attach() {
    injection::use_table(&TABLE.get().0);
}

fn parsed<T>(word: &str) -> T
where
    T: std::str::FromStr<Err = Unknown>,
{
    word.parse().unwrap_or_else(|Unknown(word)| {
        UserError::invalid(format!("{word:?} is no point or action")).raise()
    })
}

#[pg_extern(sql = false)]
fn inject(point: &str, action: &str, skip: i64) {
    let (point, action): (Point, Action) = (parsed(point), parsed(action));
    TABLE.get().0.set(point, action, skip);
}

#[pg_extern(sql = false)]
fn arrivals(point: &str) -> i64 {
    let (arrived, _) = TABLE.get().0.seen(parsed(point));
    i64::try_from(arrived).unwrap_or(i64::MAX)
}

#[pg_extern(sql = false)]
fn waiting_at(point: &str) -> i64 {
    i64::from(TABLE.get().0.seen(parsed(point)).1)
}
