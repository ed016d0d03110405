//! pg_ingest: INSERT a document, get vectors. The Postgres glue, which decides nothing.
//!
//! The way through: [`settings`] are the GUCs; [`shmem`] is what all processes of the server see, and [`budgets`] what
//! they may spend together; [`access`] says who may send what where; [`wake`] tells the
//! worker that a commit added work, and keeps out of the way of DROP DATABASE; [`copying`] lets COPY and row security
//! live together; [`api`] holds the SQL functions, a file
//! per noun (what can be said in SQL is in `sql/`); [`worker`] is the launcher and the worker process, which claims
//! documents, feeds the engine (`crates/engine`) and writes what comes back. [`owner`] lends a pipeline owner's rights,
//! [`installed`] says which release's SQL a database has, [`sources`] how rows of watched tables are read, [`reading`] keeps what
//! only reads from writing, [`layout`] is what a target looks like, [`journal`] is what a worker notes for the one after it, and [`errors`]
//! is the one place where a failure becomes a Postgres error.

mod access;
mod api;
mod budgets;
mod copying;
mod errors;
mod impatience;
mod installed;
mod journal;
mod layout;
mod locks;
mod owner;
mod reading;
mod settings;
mod shmem;
mod sources;
mod wake;
mod worker;

use pgrx::prelude::*;

pgrx::pg_module_magic!();

/// The name of this library.
const LIBRARY: &str = if cfg!(feature = "injection") {
    "pg_ingest_injection"
} else {
    "pg_ingest"
};

#[allow(missing_docs)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: both are set by the postmaster before it loads libraries.
    let (binary_upgrade, preloading) = unsafe {
        (
            pg_sys::IsBinaryUpgrade,
            pg_sys::process_shared_preload_libraries_in_progress,
        )
    };
    if binary_upgrade {
        return;
    }
    settings::define();
    wake::install();
    if preloading {
        shmem::request();
        budgets::request();
        #[cfg(feature = "injection")]
        api::injection::request();
        worker::register_launcher();
    }
}
