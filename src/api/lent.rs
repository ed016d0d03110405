//! Targets in schema `ingest`. Nobody but the extension's owner may create objects there: a function of somebody else's in it
//! could be taken for one of ours. The default target is made on behalf of the pipeline's owner, and belongs to it.
//! Also: no target is open to others just because it is new.

use pgrx::prelude::*;

use crate::access::role_name;
use crate::api::targets::table_name;
use crate::errors::OrRaise;
use crate::owner::ActingAs;
use crate::reading;

/// What every default target's name ends with, and no object of the extension's own.
const SUFFIX: &str = "_chunks";
/// Suffix of a rebuild's table: `_next`, then `_next2`, and so on.
const BESIDE: &str = "_next";

/// Whether a table of this name is made, and indexed, with the rights of the extension's owner.
pub fn is_lent(schema: &str, table: &str) -> bool {
    let table = table.trim_end_matches(|c: char| c.is_ascii_digit());
    schema == "ingest"
        && table
            .strip_suffix(BESIDE)
            .unwrap_or(table)
            .ends_with(SUFFIX)
        && reading::one::<bool>(
            "SELECT pg_catalog.has_schema_privilege('ingest', 'CREATE')",
            &[],
        )
        .or_raise()
            != Some(true)
}

/// Whether only the extension's owner may make and name what lies beside the target of this owner's pipeline.
pub fn lends(target: pg_sys::Oid, owner: pg_sys::Oid) -> bool {
    table_name(target).is_some_and(|(schema, table)| {
        let _acting = ActingAs::new(owner);
        is_lent(&schema, &table)
    })
}

/// Acts as the owner of a pipeline on its target, or as the extension's owner where only that one may make and name what
/// lies beside it. Nothing that evaluates an expression of the owner's is to be run so.
pub fn acting_on(target: pg_sys::Oid, owner: pg_sys::Oid) -> ActingAs {
    if lends(target, owner) {
        ActingAs::extension_owner()
    } else {
        ActingAs::new(owner)
    }
}

/// A target being made.
pub struct Making {
    user: pg_sys::Oid,
    acting: Option<ActingAs>,
}

impl Making {
    /// Before it is made, and commented on.
    pub fn new(schema: &str, table: &str) -> Self {
        Self {
            // SAFETY: a plain read.
            user: unsafe { pg_sys::GetUserId() },
            acting: is_lent(schema, table).then(ActingAs::extension_owner),
        }
    }

    /// After that: the table is the user's.
    pub fn finish(self, quoted: &str) {
        if self.acting.is_some() {
            change_owner(quoted, self.user);
        }
        drop(self.acting);
        close(quoted);
    }
}

/// Where default privileges open every new table to others, as Supabase's do in schema public, row security closes this one
/// to all that it applies to, until somebody writes a policy.
fn close(quoted: &str) {
    let open = reading::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
                        WHERE c.oid = pg_catalog.to_regclass($1) AND a.grantee <> c.relowner)",
        &[quoted.into()],
    )
    .or_raise();
    if open == Some(true) {
        Spi::run(&format!("ALTER TABLE {quoted} ENABLE ROW LEVEL SECURITY")).or_raise();
        notice!(
            "row security is on for {quoted}, because default privileges here open new tables to other roles: they see no chunk \
             until a policy lets them"
        );
    }
}

/// Gives a pipeline's target to the pipeline's new owner, if it was the former owner's.
pub fn follow_owner(target: pg_sys::Oid, former: pg_sys::Oid, owner: pg_sys::Oid) {
    let owned = reading::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = $1 AND c.relowner = $2)",
        &[target.into(), former.into()],
    )
    .or_raise();
    if owned != Some(true) {
        return;
    }
    if let Some((schema, table)) = table_name(target) {
        let _acting = is_lent(&schema, &table).then(ActingAs::extension_owner);
        change_owner(&pgrx::spi::quote_qualified_identifier(schema, table), owner);
    }
}

fn change_owner(quoted: &str, owner: pg_sys::Oid) {
    Spi::run(&format!(
        "ALTER TABLE {quoted} OWNER TO {}",
        role_name(owner)
    ))
    .or_raise();
}

/// The right to build an index on a target: that of the extension's owner where the table lies in its schema and is the
/// current user's.
pub fn index_rights(target: pg_sys::Oid, schema: &str, table: &str) -> Option<ActingAs> {
    let owned = || {
        reading::one::<bool>(
            "SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE') FROM pg_catalog.pg_class c WHERE c.oid = $1",
            &[target.into()],
        )
        .or_raise()
            == Some(true)
    };
    (is_lent(schema, table) && owned()).then(ActingAs::extension_owner)
}
