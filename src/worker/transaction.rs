//! SQL from a background worker: one transaction at a time, and no error ends the process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiTupleTable};

/// Why a transaction was rolled back.
#[derive(Debug, Clone)]
pub struct SqlError {
    /// Its SQLSTATE.
    pub code: PgSqlErrorCode,
    /// What Postgres said.
    pub message: String,
}

impl SqlError {
    /// Whether the same transaction may go through a moment later: a lock, a deadlock, a cancelled statement.
    pub fn is_transient(&self) -> bool {
        use PgSqlErrorCode as C;
        matches!(
            self.code,
            C::ERRCODE_LOCK_NOT_AVAILABLE
                | C::ERRCODE_T_R_DEADLOCK_DETECTED
                | C::ERRCODE_T_R_SERIALIZATION_FAILURE
                | C::ERRCODE_QUERY_CANCELED
        )
    }

    /// Whether Postgres itself met what it did not expect, or code of a user's said so, or something unknown.
    pub fn is_internal(&self) -> bool {
        use PgSqlErrorCode as C;
        matches!(
            self.code,
            C::ERRCODE_INTERNAL_ERROR | C::ERRCODE_DATA_CORRUPTED | C::ERRCODE_INDEX_CORRUPTED
        )
    }
}

impl std::fmt::Display for SqlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.message)
    }
}

/// Runs `f` in a transaction of its own and commits it. On an error everything is rolled back, and the error is returned,
/// not logged.
pub fn transaction<R>(f: impl FnOnce() -> R) -> Result<R, SqlError> {
    let result = PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: the main thread, outside a transaction; every path ends the transaction below or in the handlers.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let value = f();
        // SAFETY: as above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        Ok(value)
    }))
    .catch_others(|caught| Err(rolled_back(caught)))
    .catch_rust_panic(|caught| Err(rolled_back(caught)))
    .execute();
    // SAFETY: outside a transaction: tells the statistics what was written, so that autovacuum comes.
    unsafe {
        pg_sys::pgstat_report_stat(false);
    }
    result
}

fn rolled_back(caught: CaughtError) -> SqlError {
    // SAFETY: the error has been taken from Postgres's stack by pgrx; what is left is to end the transaction.
    unsafe { pg_sys::AbortCurrentTransaction() };
    let report = match &caught {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { ereport, .. } => ereport,
    };
    let message = match report.detail() {
        Some(detail) => format!("{} ({detail})", report.message()),
        None => report.message().to_owned(),
    };
    SqlError {
        code: report.sql_error_code(),
        message,
    }
}

thread_local! {
    static PLANS: RefCell<HashMap<String, OwnedPreparedStatement>> = RefCell::default();
}

/// Plans kept at most; statements on the targets of many pipelines would otherwise pile up.
const MAX_PLANS: usize = 256;

/// Runs a statement, planned at its first use in this process.
pub fn run<'conn>(
    client: &mut SpiClient<'conn>,
    sql: &str,
    args: &[DatumWithOid],
) -> Result<SpiTupleTable<'conn>, pgrx::spi::Error> {
    PLANS.with_borrow_mut(|plans| {
        if !plans.contains_key(sql) {
            if plans.len() >= MAX_PLANS {
                plans.clear();
            }
            let types: Vec<PgOid> = args.iter().map(|arg| PgOid::from(arg.oid())).collect();
            let plan = client.prepare_mut(sql, &types)?.keep();
            plans.insert(sql.to_owned(), plan);
        }
        client.update(&plans[sql], None, args)
    })
}
