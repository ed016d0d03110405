//! `COPY ingest.documents FROM`, for roles that row security applies to. Postgres refuses it where there are policies, since COPY
//! knows none; so the rows go into a temporary table first, and from there by INSERT. All of it with the role's own rights.

use std::ffi::{CStr, CString, c_char};

use pgrx::prelude::*;

use crate::errors::{OrRaise, UserError};
use crate::reading::{self, refuse_if_read_only};

/// Where the rows go first.
const STATION: &CStr = c"pg_ingest_copy_in_progress";

/// A COPY whose rows go elsewhere first. Its texts lie where the copy of the statement lies, so that nothing is to be dropped when
/// it fails.
#[derive(Clone, Copy)]
pub struct Diverted {
    statement: *mut pg_sys::PlannedStmt,
    columns: *const c_char,
    /// Columns of the rows that are the extension's to fill, or null.
    others: *const c_char,
}

impl Diverted {
    /// `None` for any other statement, which is to be run as it is.
    ///
    /// # Safety
    /// A planned utility statement, inside a transaction.
    pub unsafe fn new(statement: *mut pg_sys::PlannedStmt) -> Option<Self> {
        // SAFETY: the tag tells the type of the node. What is changed is a copy.
        unsafe {
            if !is_refused((*statement).utilityStmt) {
                return None;
            }
            refuse_if_read_only(c"COPY FROM");
            require_temporary_tables();
            let statement: *mut pg_sys::PlannedStmt =
                pg_sys::copyObjectImpl(statement.cast()).cast();
            let copy: *mut pg_sys::CopyStmt = (*statement).utilityStmt.cast();
            let named = named_columns(copy);
            let (columns, others) = if named.is_empty() {
                (all_columns(true), Some(all_columns(false)))
            } else {
                (Some(named.join(", ")), None)
            };
            let (columns, others) = (columns.unwrap_or_default(), others.flatten());
            let station = STATION.to_string_lossy();
            let held = if named.is_empty() { "*" } else { &columns };
            Spi::run(&format!(
                "CREATE TEMPORARY TABLE {station} ON COMMIT DROP AS SELECT {held} FROM ingest.documents WITH NO DATA"
            ))
            .or_raise();
            (*(*copy).relation).schemaname = pg_sys::pstrdup(c"pg_temp".as_ptr());
            (*(*copy).relation).relname = pg_sys::pstrdup(STATION.as_ptr());
            let kept = |text: String| {
                let text = CString::new(text).unwrap_or_default();
                pg_sys::pstrdup(text.as_ptr()).cast_const()
            };
            Some(Self {
                statement,
                columns: kept(columns),
                others: others.map_or(std::ptr::null(), kept),
            })
        }
    }

    /// The statement to run instead.
    pub fn statement(&self) -> *mut pg_sys::PlannedStmt {
        self.statement
    }

    /// After it: the rows go where they were meant to.
    pub fn finish(self) {
        // SAFETY: between two statements of a transaction, so that the rows are seen; the texts are C strings that live as long as
        // the statement.
        let (columns, others) = unsafe {
            pg_sys::CommandCounterIncrement();
            let text = |text: *const c_char| CStr::from_ptr(text).to_string_lossy();
            (
                text(self.columns),
                (!self.others.is_null()).then(|| text(self.others)),
            )
        };
        let station = STATION.to_string_lossy();
        if let Some(others) = others {
            refuse_filled(&others, &station);
        }
        Spi::run(&format!(
            "INSERT INTO ingest.documents ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM pg_temp.{station}"
        ))
        .or_raise();
        Spi::run(&format!("DROP TABLE pg_temp.{station}")).or_raise();
    }
}

/// Whether Postgres would refuse it because of row security on `ingest.documents`.
unsafe fn is_refused(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the type of the node; catalog look-ups inside a transaction.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_CopyStmt {
            return false;
        }
        let copy: *mut pg_sys::CopyStmt = node.cast();
        if !(*copy).is_from || (*copy).relation.is_null() {
            return false;
        }
        let schema = pg_sys::get_namespace_oid(c"ingest".as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return false;
        }
        let documents = pg_sys::get_relname_relid(c"documents".as_ptr(), schema);
        let target = pg_sys::RangeVarGetRelidExtended(
            (*copy).relation,
            pg_sys::NoLock as pg_sys::LOCKMODE,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        );
        documents != pg_sys::InvalidOid
            && target == documents
            && pg_sys::check_enable_rls(documents, pg_sys::InvalidOid, true)
                == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
    }
}

/// Raises `42501` when the current user may not create them.
fn require_temporary_tables() {
    let (allowed, grant) = reading::two::<bool, String>(
        "SELECT pg_catalog.has_database_privilege(d.name, 'TEMPORARY'),
                pg_catalog.format('GRANT TEMPORARY ON DATABASE %I TO %I;', d.name, CURRENT_USER)
         FROM (SELECT pg_catalog.current_database() AS name) AS d",
        &[],
    )
    .or_raise();
    if allowed != Some(true) {
        UserError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "permission denied for COPY to ingest.documents",
        )
        .detail("Where row security applies, its rows take the way through a temporary table, which the role may not create.")
        .hint(format!("{} Or INSERT the documents.", grant.unwrap_or_default()))
        .raise();
    }
}

/// Raises `42501` when a copied row has a value in one of these columns.
fn refuse_filled(others: &str, station: &str) {
    let filled = Spi::get_one::<bool>(&format!(
        "SELECT EXISTS (SELECT FROM pg_temp.{station} WHERE pg_catalog.num_nonnulls({others}) OPERATOR(pg_catalog.>) 0)"
    ))
    .or_raise();
    if filled == Some(true) {
        UserError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "documents of watched tables cannot be copied",
        )
        .detail(format!("Columns {others} say which row a document is; watch() fills them."))
        .hint("Copy the other documents: COPY ingest.documents (pipeline, key, content, metadata) FROM …; and have the table watched.")
        .raise();
    }
}

/// The columns that a COPY names, quoted for SQL; none when it means all.
unsafe fn named_columns(copy: *mut pg_sys::CopyStmt) -> Vec<String> {
    // SAFETY: the list holds strings, as the grammar makes names.
    unsafe {
        let list = (*copy).attlist;
        let length = if list.is_null() { 0 } else { (*list).length };
        (0..length)
            .map(|index| (*(*list).elements.add(index as usize)).ptr_value)
            .map(|name| {
                pgrx::spi::quote_identifier(crate::wake::name_of(name.cast()).to_string_lossy())
            })
            .collect()
    }
}

/// All columns that the current user may fill, or may not, quoted for SQL.
fn all_columns(fillable: bool) -> Option<String> {
    Spi::get_one_with_args(
        "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
         WHERE a.attrelid OPERATOR(pg_catalog.=) 'ingest.documents'::pg_catalog.regclass AND a.attnum OPERATOR(pg_catalog.>) 0
           AND NOT a.attisdropped AND a.attgenerated OPERATOR(pg_catalog.=) ''
           AND pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'INSERT') OPERATOR(pg_catalog.=) $1",
        &[fillable.into()],
    )
    .or_raise()
}
