//! Which release's SQL the database has. The library serves the SQL of its own release; with that of another one, workers
//! wait for `ALTER EXTENSION pg_ingest UPDATE`.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::prelude::*;

use crate::errors::UserError;
use crate::reading;

/// The release that this library belongs to, as `pg_extension` writes it.
pub const VERSION: &str = if cfg!(feature = "injection") {
    concat!(env!("CARGO_PKG_VERSION"), "-injection")
} else {
    env!("CARGO_PKG_VERSION")
};

/// What there is of the extension in this database.
pub enum Installed {
    /// Nothing.
    No,
    /// The SQL of this library's release.
    Matching,
    /// The SQL of another release: what to tell of it.
    Other(String),
}

thread_local! {
    /// The extension whose version was seen to match: only an update changes it, and then [`forget`] is called.
    static MATCHING: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
}

/// Raises unless the database has the SQL of this library's release.
pub fn require_matching() {
    if let Installed::Other(problem) = installed() {
        UserError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            problem,
        )
        .raise();
    }
}

/// Refuses a call from the SQL of an earlier release, whose arguments are other ones.
pub fn refuse_former(function: &CStr) {
    UserError::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "{} of an earlier release cannot be called with this library",
            function.to_string_lossy()
        ),
    )
    .hint("ALTER EXTENSION pg_ingest UPDATE;")
    .raise()
}

/// Has the next look read the version anew.
pub fn forget() {
    MATCHING.set(pg_sys::InvalidOid);
}

/// Looks, inside a transaction with a snapshot. Nearly free while nothing changes.
pub fn installed() -> Installed {
    // SAFETY: a catalog look-up inside a transaction.
    let extension = unsafe { pg_sys::get_extension_oid(c"pg_ingest".as_ptr(), true) };
    if extension == pg_sys::InvalidOid {
        return Installed::No;
    }
    if MATCHING.get() == extension {
        return Installed::Matching;
    }
    let found = reading::two::<String, String>(
        "SELECT extversion, pg_catalog.current_database()::pg_catalog.text FROM pg_catalog.pg_extension
         WHERE extname OPERATOR(pg_catalog.=) 'pg_ingest'",
        &[],
    );
    match found {
        Ok((Some(version), _)) if version == VERSION => {
            MATCHING.set(extension);
            Installed::Matching
        }
        Ok((Some(version), Some(database))) => Installed::Other(format!(
            "database {database:?} has the SQL of pg_ingest {version}, the library is {VERSION}: run ALTER EXTENSION pg_ingest \
             UPDATE there (or restart the server, if its library is the older one)"
        )),
        _ => Installed::No,
    }
}
