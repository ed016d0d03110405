//! Acting as somebody else for a while.

use pgrx::prelude::*;

use crate::errors::{OrRaise, UserError};
use crate::reading;

/// While it lives, the current user is another role, as a rule in a security-restricted context: what that role's triggers,
/// expressions and operators do, they do with its rights, and settings that they change are put back.
pub struct ActingAs {
    user: pg_sys::Oid,
    context: i32,
    settings: i32,
}

impl ActingAs {
    /// Acts as `role` until dropped.
    pub fn new(role: pg_sys::Oid) -> Self {
        Self::within(role, pg_sys::SECURITY_RESTRICTED_OPERATION)
    }

    /// Acts as the role that would commit the transaction, whatever functions have been entered since it spoke; what it
    /// deferred can be run then. A context that is restricted remains so.
    pub fn who_commits() -> Self {
        // SAFETY: a plain read.
        Self::within(unsafe { pg_sys::GetOuterUserId() }, 0)
    }

    fn within(role: pg_sys::Oid, more: u32) -> Self {
        let mut before = Self {
            user: pg_sys::InvalidOid,
            context: 0,
            // SAFETY: counts up; undone in drop, or by the abort of the transaction.
            settings: unsafe { pg_sys::NewGUCNestLevel() },
        };
        // SAFETY: two out-pointers to live fields. When an error aborts the transaction before the drop, Postgres
        // itself restores the user of the (sub)transaction's start.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut before.user, &mut before.context);
            pg_sys::SetUserIdAndSecContext(
                role,
                before.context | (pg_sys::SECURITY_LOCAL_USERID_CHANGE | more) as i32,
            );
        }
        before
    }

    /// Acts as the role that owns the extension, to read and write its own tables.
    pub fn extension_owner() -> Self {
        Self::new(extension_owner())
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        // SAFETY: the level that NewGUCNestLevel gave, and the values that GetUserIdAndSecContext gave. While an error is
        // on its way, the abort of the transaction takes the settings back.
        unsafe {
            if !std::thread::panicking() {
                pg_sys::AtEOXact_GUC(false, self.settings);
            }
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
        }
    }
}

/// The role that owns `ingest.pipeline`, and so all of the extension.
fn extension_owner() -> pg_sys::Oid {
    reading::one::<pg_sys::Oid>(
        "SELECT extowner FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'pg_ingest'",
        &[],
    )
    .or_raise()
    .unwrap_or_else(|| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            "the extension pg_ingest is not in this database",
        )
        .hint("Create it: CREATE EXTENSION pg_ingest CASCADE;")
        .raise()
    })
}

/// The role, quoted, that decides what runs when `user` reads or writes a table, or one of its partitions, where `user` is a
/// superuser and that role is not: types, casts, policies and triggers there would have all rights.
pub fn stranger(table: pg_sys::Oid, user: pg_sys::Oid) -> Option<String> {
    // SAFETY: a catalog look-up inside a transaction.
    if !unsafe { pg_sys::superuser_arg(user) } {
        return None;
    }
    reading::one(
        "SELECT (SELECT pg_catalog.quote_ident(r.rolname) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
                 WHERE (c.oid = $1 OR c.oid IN (SELECT p.relid FROM pg_catalog.pg_partition_tree($1) p)) AND NOT r.rolsuper
                 ORDER BY c.oid <> $1 LIMIT 1)",
        &[table.into()],
    )
    .or_raise()
}
