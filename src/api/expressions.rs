//! SQL expressions over a row of a table, as users give them: each is one expression, and what it reads is known.

use std::ffi::{CStr, CString};

use pgrx::PgTryBuilder;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

use crate::errors::{OrRaise, UserError};

/// What is known of an expression.
pub struct Examined {
    /// Its type's name.
    pub type_name: String,
    category: String,
    /// What it reads of a row.
    pub columns: Columns,
}

impl Examined {
    /// Whether it makes a text, or what is one but for its name.
    pub fn is_text(&self) -> bool {
        self.category == "S" || matches!(self.type_name.as_str(), "json" | "jsonb" | "xml")
    }
}

/// Columns of a table.
#[derive(Debug, PartialEq)]
pub enum Columns {
    /// All: the row as a whole is read.
    All,
    /// Those with these numbers.
    These(Vec<i16>),
}

impl Columns {
    /// Those of both.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::These(mut these), Self::These(others)) => {
                these.extend(others);
                Self::These(these)
            }
            _ => Self::All,
        }
    }
}

/// Looks at an expression over a row of `table` (quoted for SQL) without running it. `argument` is what the user calls it.
///
/// # Errors
/// It is no expression, or not one over the row alone: it has a subquery, an aggregate, a set or a volatile function, whose
/// changes nobody would see.
pub fn examine(argument: &str, expression: &str, table: &str) -> Result<Examined, UserError> {
    let guarded = PgTryBuilder::new(|| {
        refuse_more_than_one(argument, expression)?;
        analyse(argument, expression, table)
    })
    .catch_others(|caught| {
        let (CaughtError::PostgresError(report) | CaughtError::ErrorReport(report)) = &caught else {
            caught.rethrow()
        };
        Err(UserError::new(
            report.sql_error_code(),
            format!("{argument} cannot be evaluated: {}", report.message()),
        )
        .detail(format!("It is {expression:?}, an expression over a row of {table}."))
        .hint(
            "Columns are found by their names; functions and types outside pg_catalog need their schema, such as public.f(body).",
        ))
    });
    guarded.execute()
}

fn invalid(argument: &str, problem: &str) -> UserError {
    UserError::invalid(format!("{argument} {problem}")).hint(
        "It is one SQL expression over the columns of a row, such as body, or title || E'\\n' || body.",
    )
}

/// The statement that a text parses to; one, or none.
fn parse(statement: &CStr) -> Option<*mut pg_sys::RawStmt> {
    // SAFETY: a C string; the list holds RawStmt, in the caller's memory context. Syntax errors are raised.
    unsafe {
        let list = pg_sys::raw_parser(statement.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        (!list.is_null() && (*list).length == 1)
            .then(|| (*(*list).elements).ptr_value.cast::<pg_sys::RawStmt>())
    }
}

fn c_string(argument: &str, text: String) -> Result<CString, UserError> {
    CString::new(text).map_err(|_| invalid(argument, "has a zero byte"))
}

/// By itself it must be all that stands behind SELECT.
fn refuse_more_than_one(argument: &str, expression: &str) -> Result<(), UserError> {
    if expression.trim().is_empty() {
        return Err(invalid(argument, "is empty"));
    }
    let statement = c_string(argument, format!("SELECT\n{expression}\n"))?;
    // SAFETY: the grammar makes a SelectStmt of what begins with SELECT and is one statement; its lists hold ResTarget.
    let is_one = unsafe {
        parse(&statement).is_some_and(|raw| {
            let node = (*raw).stmt;
            if (*node).type_ != pg_sys::NodeTag::T_SelectStmt {
                return false;
            }
            let select = &*node.cast::<pg_sys::SelectStmt>();
            let targets = select.targetList;
            let only = select.distinctClause.is_null()
                && select.intoClause.is_null()
                && select.fromClause.is_null()
                && select.whereClause.is_null()
                && select.groupClause.is_null()
                && select.havingClause.is_null()
                && select.windowClause.is_null()
                && select.valuesLists.is_null()
                && select.sortClause.is_null()
                && select.limitOffset.is_null()
                && select.limitCount.is_null()
                && select.lockingClause.is_null()
                && select.withClause.is_null()
                && select.op == pg_sys::SetOperation::SETOP_NONE;
            only && !targets.is_null() && (*targets).length == 1 && {
                let target = (*(*targets).elements).ptr_value.cast::<pg_sys::ResTarget>();
                (*target).name.is_null()
            }
        })
    };
    if is_one {
        Ok(())
    } else {
        Err(invalid(argument, "is not one expression"))
    }
}

fn analyse(argument: &str, expression: &str, table: &str) -> Result<Examined, UserError> {
    let text = c_string(argument, format!("SELECT (\n{expression}\n) FROM {table}"))?;
    let Some(raw) = parse(&text) else {
        return Err(invalid(argument, "is not one expression"));
    };
    // SAFETY: a statement that was parsed from this text, analysed inside a transaction; what comes back is a Query whose
    // target list, which is null when it is empty, holds TargetEntry.
    let (query, value) = unsafe {
        #[cfg(feature = "pg14")]
        let query = pg_sys::parse_analyze(
            raw,
            text.as_ptr(),
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        #[cfg(not(feature = "pg14"))]
        let query = pg_sys::parse_analyze_fixedparams(
            raw,
            text.as_ptr(),
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        let targets = (*query).targetList;
        // `x.*` stands for as many columns as x has, also for none.
        if targets.is_null() || (*targets).length != 1 {
            return Err(invalid(argument, "is not one expression"));
        }
        let target = (*(*targets).elements)
            .ptr_value
            .cast::<pg_sys::TargetEntry>();
        (&*query, (*target).expr.cast::<pg_sys::Node>())
    };
    let refused = [
        (query.hasSubLinks, "a subquery"),
        (query.hasAggs, "an aggregate"),
        (query.hasWindowFuncs, "a window function"),
        (query.hasTargetSRFs, "a function that returns a set"),
        // SAFETY: an analysed expression.
        (
            unsafe { pg_sys::contain_volatile_functions(value) },
            "a volatile function",
        ),
    ];
    if let Some((_, what)) = refused.iter().find(|(found, _)| *found) {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("{argument} has {what}"),
        )
        .detail("It must follow from the row alone: nobody would see that it changed otherwise.")
        .hint("Keep what else it needs in a column of the table, or write to ingest.documents from a trigger of your own."));
    }
    let columns = columns_of(value).ok_or_else(|| invalid(argument, "reads a system column"))?;
    // SAFETY: an analysed expression.
    let kind = unsafe { pg_sys::exprType(value) };
    let (type_name, category) = Spi::get_two_with_args::<String, String>(
        "SELECT pg_catalog.format_type(oid, NULL), typcategory::text FROM pg_catalog.pg_type WHERE oid = $1",
        &[kind.into()],
    )
    .or_raise();
    Ok(Examined {
        type_name: type_name.unwrap_or_default(),
        category: category.unwrap_or_default(),
        columns,
    })
}

/// The columns of the only table that an expression reads; `None` when one is the system's.
fn columns_of(value: *mut pg_sys::Node) -> Option<Columns> {
    let mut numbers = Vec::new();
    // SAFETY: an analysed expression; the set holds attribute numbers above FirstLowInvalidHeapAttributeNumber.
    unsafe {
        let mut set = std::ptr::null_mut();
        pg_sys::pull_varattnos(value, 1, &mut set);
        let mut member = pg_sys::bms_next_member(set, -1);
        while member >= 0 {
            numbers.push((member + pg_sys::FirstLowInvalidHeapAttributeNumber) as i16);
            member = pg_sys::bms_next_member(set, member);
        }
    }
    if numbers.iter().any(|number| *number < 0) {
        return None;
    }
    Some(if numbers.contains(&0) {
        Columns::All
    } else {
        Columns::These(numbers)
    })
}
