//! `COPY ingest.documents FROM`, for roles that row security applies to. Postgres refuses it where there are policies, since COPY
//! knows none; so the rows go into a temporary table first, and from there by INSERT. All of it with the role's own rights.

use std::ffi::CStr;

use pgrx::prelude::*;

use crate::errors::OrRaise;

/// Where the rows go first.
const STATION: &CStr = c"pg_ingest_copy_in_progress";

/// A COPY whose rows go elsewhere first.
pub struct Diverted {
    statement: *mut pg_sys::PlannedStmt,
    columns: String,
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
            let statement: *mut pg_sys::PlannedStmt =
                pg_sys::copyObjectImpl(statement.cast()).cast();
            let copy: *mut pg_sys::CopyStmt = (*statement).utilityStmt.cast();
            let columns = columns_of(copy);
            let station = STATION.to_string_lossy();
            Spi::run(&format!(
                "CREATE TEMPORARY TABLE {station} ON COMMIT DROP AS SELECT {columns} FROM ingest.documents WITH NO DATA"
            ))
            .or_raise();
            (*(*copy).relation).schemaname = pg_sys::pstrdup(c"pg_temp".as_ptr());
            (*(*copy).relation).relname = pg_sys::pstrdup(STATION.as_ptr());
            Some(Self { statement, columns })
        }
    }

    /// The statement to run instead.
    pub fn statement(&self) -> *mut pg_sys::PlannedStmt {
        self.statement
    }

    /// After it: the rows go where they were meant to.
    pub fn finish(self) {
        // SAFETY: between two statements of a transaction, so that the rows are seen.
        unsafe { pg_sys::CommandCounterIncrement() };
        let (columns, station) = (self.columns, STATION.to_string_lossy());
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

/// The columns that a COPY names, or all of them, quoted for SQL.
unsafe fn columns_of(copy: *mut pg_sys::CopyStmt) -> String {
    // SAFETY: the list holds strings, as the grammar makes names.
    let named: Vec<String> = unsafe {
        let list = (*copy).attlist;
        let length = if list.is_null() { 0 } else { (*list).length };
        (0..length)
            .map(|index| (*(*list).elements.add(index as usize)).ptr_value)
            .map(|name| {
                pgrx::spi::quote_identifier(crate::wake::name_of(name.cast()).to_string_lossy())
            })
            .collect()
    };
    if !named.is_empty() {
        return named.join(", ");
    }
    Spi::get_one(
        "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
         WHERE a.attrelid OPERATOR(pg_catalog.=) 'ingest.documents'::pg_catalog.regclass AND a.attnum OPERATOR(pg_catalog.>) 0
           AND NOT a.attisdropped AND a.attgenerated OPERATOR(pg_catalog.=) ''",
    )
    .or_raise()
    .unwrap_or_default()
}
