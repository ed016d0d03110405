//! What the triggers on `ingest.documents` need of native code: waking the worker, and work on a target as its
//! pipeline's owner.

use std::cell::Cell;

use crate::api::targets::{fire_constraints_at_once, keep_name};
use crate::errors::OrRaise;
use crate::layout::{Layout, Which};
use crate::owner::ActingAs;
use crate::wake;
use pgrx::prelude::*;

thread_local! {
    static ARCHIVING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, in the worker, while `worker_is_archiving()` is true: staging rows deleted meanwhile leave their chunks.
pub fn archiving<R>(f: impl FnOnce() -> R) -> R {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            ARCHIVING.set(false);
        }
    }
    ARCHIVING.set(true);
    let _reset = Reset;
    f()
}

#[pg_extern(sql = false)]
fn worker_is_archiving() -> bool {
    ARCHIVING.get()
}

#[pg_extern(sql = false, name = "wake")]
fn wake() {
    wake::at_commit();
}

#[pg_extern(sql = false, name = "wake_to_review")]
fn wake_to_review() {
    wake::review_at_commit();
}

#[pg_extern(sql = false)]
fn delete_chunks(
    pipeline_id: Option<i32>,
    keys: Option<Vec<String>>,
) -> TableIterator<'static, (name!(chunks, i64), name!(tokens, i64))> {
    let (chunks, tokens) = target_of(pipeline_id).map_or((0, 0), |target| {
        let _acting = ActingAs::new(target.owner);
        let which = if keys.is_some() {
            Which::Keys
        } else {
            Which::All
        };
        let deletion = target.layout.delete(&target.name, which);
        let (chunks, tokens) =
            Spi::get_two_with_args::<i64, i64>(&deletion, &[keys.into()]).or_raise();
        (chunks.unwrap_or(0), tokens.unwrap_or(0))
    });
    TableIterator::once((chunks, tokens))
}

/// What 0.1.0's SQL calls.
#[pg_extern(sql = false)]
fn replace_metadata(
    pipeline_id: Option<i32>,
    keys: Option<Vec<String>>,
    metadata: Option<Vec<Option<pgrx::JsonB>>>,
) {
    let metadata = metadata.unwrap_or_default().into_iter();
    let metadata = metadata.map(|m| m.map(|m| m.0.to_string())).collect();
    replace_metadata_0_2(pipeline_id, keys, Some(metadata));
}

/// Metadata as text: a value of serde_json's loses digits.
#[pg_extern(sql = false)]
fn replace_metadata_0_2(
    pipeline_id: Option<i32>,
    keys: Option<Vec<String>>,
    metadata: Option<Vec<Option<String>>>,
) {
    let Some(target) = target_of(pipeline_id) else {
        return;
    };
    let _acting = ActingAs::new(target.owner);
    let (layout, table) = (target.layout, &target.name);
    if target.is_foreign {
        let keys = keys.unwrap_or_default().into_iter();
        for (key, metadata) in keys.zip(metadata.unwrap_or_default()) {
            let update = layout.replace_metadata_of_one(table, metadata.as_deref());
            Spi::run_with_args(&update, &[key.into()]).or_raise();
        }
    } else {
        let update = layout.replace_metadata(table);
        Spi::run_with_args(&update, &[keys.into(), metadata.into()]).or_raise();
    }
}

/// Where a pipeline's chunks are.
struct Target {
    owner: pg_sys::Oid,
    layout: Layout,
    /// Quoted for SQL.
    name: String,
    /// Whether it is on another server.
    is_foreign: bool,
}

/// A pipeline's target; `None` when either is gone and there is nothing to do.
fn target_of(pipeline_id: Option<i32>) -> Option<Target> {
    let (owner, target, layout) = whereabouts(pipeline_id?)?;
    let name = keep_name(target, pg_sys::RowExclusiveLock)?;
    fire_constraints_at_once(target);
    // SAFETY: a catalog look-up inside a transaction.
    let kind = unsafe { pg_sys::get_rel_relkind(target) };
    Some(Target {
        is_foreign: kind as u8 == pg_sys::RELKIND_FOREIGN_TABLE,
        owner,
        layout,
        name,
    })
}

/// A pipeline's owner, target and layout: what the SQL of every release has of it, for the triggers of an earlier one call this,
/// too.
fn whereabouts(pipeline_id: i32) -> Option<(pg_sys::Oid, pg_sys::Oid, Layout)> {
    let _acting = ActingAs::extension_owner();
    let (owner, target, layout) = Spi::connect(|client| {
        let row = client
            .select(
                "SELECT owner::pg_catalog.oid, target::pg_catalog.oid, layout FROM ingest.pipeline
                 WHERE pipeline_id OPERATOR(pg_catalog.=) $1",
                Some(1),
                &[pipeline_id.into()],
            )?
            .first();
        match row.is_empty() {
            true => Ok((None, None, None)),
            false => row.get_three::<pg_sys::Oid, pg_sys::Oid, String>(),
        }
    })
    .or_raise();
    Some((owner?, target?, Layout::named(&layout?).or_raise()))
}
