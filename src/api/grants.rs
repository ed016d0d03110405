//! `grant_pipeline`, `revoke_pipeline`, `set_owner`: who may use a pipeline, and whose it is.

use pgrx::prelude::*;

use crate::access;
use crate::api::definition::{Definition, parse_model};
use crate::api::lent::follow_owner;
use crate::api::limits::use_limit;
use crate::api::models::{Connection, Described};
use crate::api::targets::require_target_rights;
use crate::api::watch::refuse_unreadable;
use crate::errors::{OrRaise, UserError};
use crate::owner::ActingAs;
use crate::reading::{self, refuse_if_read_only};
use crate::wake;

#[pg_extern(sql = false)]
fn grant_pipeline(pipeline: &str, role: pg_sys::Oid) {
    refuse_if_read_only(c"ingest.grant_pipeline()");
    let definition = Definition::named(pipeline);
    definition.require_ownership();
    require_role(role);
    let _acting = ActingAs::extension_owner();
    // Those that were dropped meanwhile go with the occasion.
    Spi::run(
        "DELETE FROM ingest.pipeline_grant g WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = g.grantee::oid)",
    )
    .or_raise();
    Spi::run_with_args(
        "INSERT INTO ingest.pipeline_grant (pipeline_id, grantee) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        &[definition.pipeline_id.into(), role.into()],
    )
    .or_raise();
}

#[pg_extern(sql = false)]
fn revoke_pipeline(pipeline: &str, role: pg_sys::Oid) {
    refuse_if_read_only(c"ingest.revoke_pipeline()");
    let definition = Definition::named(pipeline);
    definition.require_ownership();
    let _acting = ActingAs::extension_owner();
    Spi::run_with_args(
        "DELETE FROM ingest.pipeline_grant WHERE pipeline_id = $1 AND grantee::oid = $2",
        &[definition.pipeline_id.into(), role.into()],
    )
    .or_raise();
}

#[pg_extern(sql = false)]
fn set_owner(pipeline: &str, owner: pg_sys::Oid) {
    refuse_if_read_only(c"ingest.set_owner()");
    let definition = Definition::to_change(pipeline);
    require_role(owner);
    if definition.successor().is_some() {
        UserError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("pipeline {pipeline:?} is being rebuilt"),
        )
        .hint("Wait until that has ended (ingest.wait()), or give it up: SELECT ingest.cancel_rebuild('…');")
        .raise();
    }
    if !may_become(owner) {
        UserError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("must be a member of role {}", access::role_name(owner)),
        )
        .detail("The pipeline does its work with the rights of its owner, so you must be able to SET ROLE to it.")
        .hint("Nobody is given a pipeline, and its costs, against their will.")
        .raise();
    }
    follow_owner(definition.target, definition.owner, owner);
    // What holds for a pipeline that the new owner creates holds for one that is handed over.
    let model = parse_model(&definition.model).or_raise();
    Described::new(
        &model,
        &Connection {
            base_url: definition.base_url.as_deref(),
            trusted: definition.trusted,
            api_key: definition.api_key.as_deref(),
            request: definition.request.as_deref(),
            limits: definition.limits.as_deref(),
            owner,
        },
    )
    .or_raise();
    {
        let _acting = ActingAs::new(owner);
        if let Some(limit) = definition.limits.as_deref() {
            use_limit(limit, definition.chunk_tokens).or_raise();
        }
        if let Some(target) = definition.target_name() {
            require_target_rights(definition.target, &target).or_raise();
        }
    }
    let _acting = ActingAs::extension_owner();
    let watches: Vec<i32> = Spi::get_one_with_args(
        "SELECT coalesce(array_agg(w.watch_id ORDER BY w.watch_id), '{}') FROM ingest.watch w WHERE w.pipeline_id = $1",
        &[definition.pipeline_id.into()],
    )
    .or_raise()
    .unwrap_or_default();
    for watch in watches {
        refuse_unreadable(owner, watch);
    }
    Spi::run_with_args(
        "UPDATE ingest.pipeline SET owner = $2 WHERE pipeline_id = $1",
        &[definition.pipeline_id.into(), owner.into()],
    )
    .or_raise();
    wake::review_at_commit();
}

/// Whether the current user can `SET ROLE` to this one. A superuser can to every role.
fn may_become(role: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups inside a transaction.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::is_member_of_role(pg_sys::GetUserId(), role);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::member_can_set_role(pg_sys::GetUserId(), role);
    }
}

/// Raises `42704` for a number that is no role's.
fn require_role(role: pg_sys::Oid) {
    let there = reading::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) $1)",
        &[role.into()],
    )
    .or_raise();
    if there != Some(true) {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("there is no role with OID {}", role.to_u32()),
        )
        .raise();
    }
}
