//! `cancel_rebuild`, `finish_rebuild`, and how a rebuild begins: a successor of the pipeline, with a table of its own beside the
//! old one. See `sql/45-rebuild.sql`; its end is the worker's (`worker/switch.rs`).

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{quote_identifier, quote_qualified_identifier};

use crate::access::role_name;
use crate::api::alter::{Change, Wanted};
use crate::api::definition::Definition;
use crate::api::lent;
use crate::api::targets::{change_language, embedding_type, keep_name, retype_empty, table_name};
use crate::errors::{OrRaise, UserError};
use crate::owner::ActingAs;
use crate::reading::{self, refuse_if_read_only};
use crate::wake;

/// Keys of chunks that are compared with those of documents at a time.
const KEYS: i64 = 10_000;
/// Obstacles that an error names.
const MAX_NAMED: usize = 10;

/// Changes how a pipeline makes its chunks or vectors: at once where it has none, else by a rebuild, or, for chunks alone where
/// there can be no rebuild, document by document.
pub fn begin(definition: &Definition, wanted: &Wanted, change: Change) {
    let table = definition.target_name();
    let obstacle = match &table {
        Some(table) if !is_empty(definition, table) => obstacle(definition, table),
        _ => None,
    };
    if change == Change::Vectors
        && let Some(obstacle) = obstacle
    {
        obstacle.raise();
    }
    call("SELECT ingest.hold_pipeline($1)", definition.pipeline_id);
    // That may have waited for whoever renames it.
    let table = definition.target_name();
    match &table {
        Some(table) if obstacle.is_none() && !is_empty(definition, table) => {
            refuse_deleting(wanted.on_success()).or_raise();
            build_beside(definition, table, wanted);
        }
        _ => {
            if let Some(table) = &table
                && wanted.dimensions != definition.dimensions
            {
                refuse_retyping_foreign(definition, table).or_raise();
                let _acting = ActingAs::new(definition.owner);
                retype_empty(
                    definition.target,
                    table,
                    definition.layout,
                    &definition.language,
                    wanted.dimensions,
                );
            }
            change_at_once(definition, wanted, obstacle.is_some());
        }
    }
}

fn call(sql: &str, pipeline_id: i32) {
    let _acting = ActingAs::extension_owner();
    Spi::run_with_args(sql, &[pipeline_id.into()]).or_raise();
}

fn count(sql: &str, pipeline_id: i32) -> Option<i64> {
    let _acting = ActingAs::extension_owner();
    Spi::get_one_with_args::<i64>(sql, &[pipeline_id.into()]).or_raise()
}

/// Makes queries fail instead of leaving out rows that row security hides, while an [`ActingAs`] lives.
pub fn see_every_row() {
    Spi::run("SET LOCAL row_security = off").or_raise();
}

fn is_empty(definition: &Definition, table: &str) -> bool {
    let _acting = ActingAs::new(definition.owner);
    see_every_row();
    reading::one::<bool>(&format!("SELECT NOT EXISTS (SELECT FROM {table})"), &[]).or_raise()
        == Some(true)
}

/// What a foreign table's column is over there stays, whatever is said of it here.
fn refuse_retyping_foreign(definition: &Definition, table: &str) -> Result<(), UserError> {
    if !definition.is_foreign() {
        return Ok(());
    }
    Err(UserError::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "the dimensions of pipeline {:?} cannot be changed: its target {table} is on another server",
            definition.name
        ),
    )
    .hint("Make a table for the new vectors there, and create another pipeline with a foreign table for it."))
}

/// There is nothing to compare with, or it can be compared.
fn change_at_once(definition: &Definition, wanted: &Wanted, one_by_one: bool) {
    let queued = count("SELECT ingest.requeue_all($1)", definition.pipeline_id);
    wanted.write(definition.pipeline_id);
    call("SELECT ingest.new_generation($1)", definition.pipeline_id);
    match queued {
        Some(queued @ 1..) if one_by_one => notice!(
            "{queued} documents are queued to be split anew; their old chunks serve until then"
        ),
        Some(queued @ 1..) => {
            notice!("{queued} documents are queued to be embedded with the new definition")
        }
        _ => {}
    }
}

fn build_beside(definition: &Definition, table: &str, wanted: &Wanted) {
    let name = text_of("SELECT ingest.next_name($1)", &[definition.target.into()]);
    let Some((schema, _)) = table_name(definition.target) else {
        return;
    };
    let next = quote_qualified_identifier(&schema, &name);
    let next_oid = make_beside(definition, wanted, &schema, &name);
    let successor = {
        let _acting = ActingAs::extension_owner();
        Spi::get_one_with_args::<i32>(
            "INSERT INTO ingest.pipeline (name, owner, model, dimensions, base_url, trusted, api_key, request, target, layout,
                                          chunk_tokens, chunk_overlap, splitter, limits, concurrency, batch_size, max_attempts,
                                          index, on_success, paused, language, successor_of)
             SELECT name, owner, model, dimensions, base_url, trusted, api_key, request, $2, layout,
                    chunk_tokens, chunk_overlap, splitter, limits, concurrency, batch_size, max_attempts,
                    index, on_success, paused, language, pipeline_id
             FROM ingest.pipeline WHERE pipeline_id = $1
             RETURNING pipeline_id",
            &[definition.pipeline_id.into(), next_oid.into()],
        )
        .or_raise()
        .unwrap_or_default()
    };
    wanted.write(successor);
    change_language_of(definition, next_oid, wanted.language());
    let queued = count("SELECT ingest.queue_for_successor($1)", successor).unwrap_or(0);
    notice!(
        "{queued} documents are embedded anew into {next}; what is in {table} serves until all are: SELECT * FROM ingest.rebuilds"
    );
}

/// Makes the empty table beside the target: as the pipeline's owner, for what LIKE copies and what is done to it evaluates expressions
/// of whoever could alter the target. Where the owner may not create tables in the schema, it is made in one that is the owner's
/// for the moment.
fn make_beside(definition: &Definition, wanted: &Wanted, schema: &str, name: &str) -> pg_sys::Oid {
    let lent = lent::lends(definition.target, definition.owner);
    let place = if lent {
        make_workshop(definition)
    } else {
        schema.to_owned()
    };
    let next = quote_qualified_identifier(place.as_str(), name);
    let create = {
        let _acting = ActingAs::extension_owner();
        Spi::get_one_with_args::<String>(
            "SELECT ingest.next_table($1, $2, $3)",
            &[definition.target.into(), place.as_str().into(), name.into()],
        )
        .or_raise()
        .unwrap_or_default()
    };
    {
        let _acting = ActingAs::new(definition.owner);
        Spi::run(&create).or_raise();
    }
    let oid = Spi::get_one_with_args::<pg_sys::Oid>(
        "SELECT pg_catalog.to_regclass($1)::oid",
        &[next.as_str().into()],
    )
    .or_raise()
    .unwrap_or(pg_sys::InvalidOid);
    let statements: Vec<String> = {
        let _acting = ActingAs::extension_owner();
        Spi::get_one_with_args(
            "SELECT array_agg(s) FROM ingest.next_statements($1, $2, $3) AS s",
            &[
                definition.target.into(),
                oid.into(),
                embedding_type(definition.layout, wanted.dimensions).into(),
            ],
        )
        .or_raise()
        .unwrap_or_default()
    };
    {
        let _acting = ActingAs::new(definition.owner);
        for statement in &statements {
            Spi::run(statement).or_raise();
        }
    }
    let owner = text_of(
        "SELECT CASE WHEN c.relowner <> $2 THEN c.relowner::regrole::text END FROM pg_class c WHERE c.oid = $1",
        &[definition.target.into(), definition.owner.into()],
    );
    // Nothing of this evaluates an expression.
    let _acting = lent::acting_on(definition.target, definition.owner);
    if lent {
        // Their names are free where they were made.
        let taken: Vec<String> = Spi::get_one_with_args(
            "SELECT array_agg(format('ALTER %s %I.%I RENAME TO %I', n.kind, $1, n.name, 'ingest_' || left(md5(gen_random_uuid()::text), 16)))
             FROM (SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'INDEX' END AS kind, c.relname::text AS name
                   FROM pg_class c JOIN pg_class o ON o.relname = c.relname AND o.relnamespace = to_regnamespace($2)
                   WHERE c.relnamespace = to_regnamespace($1) AND c.relkind IN ('i', 'S')
                   UNION ALL
                   SELECT 'STATISTICS', s.stxname::text
                   FROM pg_statistic_ext s JOIN pg_statistic_ext o ON o.stxname = s.stxname AND o.stxnamespace = to_regnamespace($2)
                   WHERE s.stxnamespace = to_regnamespace($1)) AS n",
            &[place.as_str().into(), quote_identifier(schema).into()],
        )
        .or_raise()
        .unwrap_or_default();
        for statement in &taken {
            Spi::run(statement).or_raise();
        }
        let schema = quote_identifier(schema);
        Spi::run(&format!("ALTER TABLE {next} SET SCHEMA {schema}")).or_raise();
        // Unlike indexes and sequences, extended statistics do not go with their table.
        let statistics: Vec<String> = Spi::get_one_with_args(
            "SELECT array_agg(s.stxname::text) FROM pg_catalog.pg_statistic_ext s WHERE s.stxrelid = $1",
            &[oid.into()],
        )
        .or_raise()
        .unwrap_or_default();
        for name in statistics {
            let name = quote_qualified_identifier(place.as_str(), name.as_str());
            Spi::run(&format!("ALTER STATISTICS {name} SET SCHEMA {schema}")).or_raise();
        }
        Spi::run(&format!("DROP SCHEMA {}", quote_identifier(&place))).or_raise();
    }
    if !owner.is_empty() {
        let next = quote_qualified_identifier(schema, name);
        Spi::run(&format!("ALTER TABLE {next} OWNER TO {owner}")).or_raise();
    }
    oid
}

/// A schema of the pipeline's owner; its name.
fn make_workshop(definition: &Definition) -> String {
    let _acting = ActingAs::extension_owner();
    let name = format!(
        "ingest_rebuild_{}",
        Spi::get_one::<String>("SELECT pg_catalog.md5(pg_catalog.gen_random_uuid()::text)")
            .or_raise()
            .unwrap_or_default()
    );
    let owner = role_name(definition.owner);
    Spi::run(&format!("CREATE SCHEMA {name} AUTHORIZATION {owner}")).or_raise();
    name
}

/// Gives the table beside the old one, which has the indexes of `before`, the full-text index of another language.
pub fn change_language_of(before: &Definition, next: pg_sys::Oid, language: Option<&str>) {
    if let Some(language) = language {
        let _acting = ActingAs::new(before.owner);
        change_language(next, before.layout, &before.language, language);
    }
}

fn text_of(sql: &str, arguments: &[DatumWithOid]) -> String {
    let _acting = ActingAs::extension_owner();
    Spi::get_one_with_args::<String>(sql, arguments)
        .or_raise()
        .unwrap_or_default()
}

/// Why there can be no table beside the old one that takes its place.
fn obstacle(definition: &Definition, table: &str) -> Option<UserError> {
    let refused = |message: String| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "the vectors of pipeline {:?} cannot be made anew: {message}",
                definition.name
            ),
        )
    };
    let another =
        "Create another pipeline with the new definition, and drop this one when that is done.";
    if definition.on_success == "delete" {
        return Some(
            refused("embedded documents are deleted (on_success is delete)".into()).hint(another),
        );
    }
    let obstacles: Vec<String> = {
        let _acting = ActingAs::extension_owner();
        Spi::get_one_with_args(
            "SELECT array_agg(s) FROM ingest.not_carried($1, $2) AS s",
            &[definition.target.into(), definition.owner.into()],
        )
        .or_raise()
        .unwrap_or_default()
    };
    if !obstacles.is_empty() {
        let named = obstacles.iter().take(MAX_NAMED).cloned();
        let mut named = named.collect::<Vec<_>>().join("; ");
        if obstacles.len() > MAX_NAMED {
            named.push_str("; and others");
        }
        return Some(
            refused(format!("another table cannot take the place of {table}"))
                .detail(format!("In the way: {named}."))
                .hint(format!(
                    "Drop what is in the way and make it again after the switch. Or: {another}"
                )),
        );
    }
    let others = others_rows(definition, table);
    if others > 0 {
        return Some(
            refused(format!(
                "{table} holds {others} rows that pg_ingest did not write"
            ))
            .detail("A vector that somebody else made cannot be made anew.")
            .hint(another),
        );
    }
    let orphan = keys_without_document(definition, table)?;
    Some(
        refused(format!(
            "{table} holds chunks of {orphan} keys of which there is no document"
        ))
        .hint(format!(
            "Insert the documents, or delete these chunks. Or: {another}"
        )),
    )
}

fn others_rows(definition: &Definition, table: &str) -> i64 {
    let _acting = ActingAs::new(definition.owner);
    see_every_row();
    reading::one(&definition.layout.count_others(table), &[])
        .or_raise()
        .unwrap_or(0)
}

/// How many keys of chunks no document has, in the first run of keys in which there are any. The table is read as the pipeline's
/// owner, the documents as the extension's.
fn keys_without_document(definition: &Definition, table: &str) -> Option<i64> {
    let mut after: Option<String> = None;
    loop {
        pgrx::check_for_interrupts!();
        let keys: Vec<String> = {
            let _acting = ActingAs::new(definition.owner);
            see_every_row();
            reading::one(
                &definition.layout.keys_after(table, KEYS),
                &[after.clone().into()],
            )
            .or_raise()
            .unwrap_or_default()
        };
        after = Some(keys.last()?.clone());
        let missing = without_document(definition, keys);
        // A document that was deleted between the two looks took its chunks along.
        let missing = without_document(definition, keys_with_chunks(definition, table, missing));
        if !missing.is_empty() {
            return Some(missing.len() as i64);
        }
    }
}

fn without_document(definition: &Definition, keys: Vec<String>) -> Vec<String> {
    if keys.is_empty() {
        return keys;
    }
    let _acting = ActingAs::extension_owner();
    reading::one(
        "SELECT ingest.keys_without_document($1, $2)",
        &[definition.name.as_str().into(), keys.into()],
    )
    .or_raise()
    .unwrap_or_default()
}

fn keys_with_chunks(definition: &Definition, table: &str, keys: Vec<String>) -> Vec<String> {
    if keys.is_empty() {
        return keys;
    }
    let _acting = ActingAs::new(definition.owner);
    see_every_row();
    reading::one(&definition.layout.having(table), &[keys.into()])
        .or_raise()
        .unwrap_or_default()
}

/// Documents are needed until a rebuild ends.
pub fn refuse_deleting(on_success: Option<&str>) -> Result<(), UserError> {
    if on_success != Some("delete") {
        return Ok(());
    }
    Err(UserError::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "documents cannot be deleted while their vectors are made anew",
    )
    .hint("Set on_success when the rebuild has ended: SELECT ingest.wait();"))
}

/// Gives up a pipeline's rebuild, if there is one; whether there was.
pub fn drop_successor(definition: &Definition) -> bool {
    let Some(successor) = definition.successor() else {
        return false;
    };
    call("SELECT ingest.remove_successor($1)", definition.pipeline_id);
    drop_table_of(&successor);
    true
}

/// Drops the table of a successor that is no more.
pub fn drop_table_of(successor: &Definition) {
    if let Some(table) = keep_name(successor.target, pg_sys::AccessExclusiveLock) {
        let _acting = ActingAs::new(successor.owner);
        Spi::run(&format!("DROP TABLE {table}")).or_raise();
    }
    wake::review_at_commit();
}

#[pg_extern(sql = false)]
fn cancel_rebuild(pipeline: &str) -> bool {
    refuse_if_read_only(c"ingest.cancel_rebuild()");
    let definition = Definition::to_change(pipeline);
    drop_successor(&definition)
}

#[pg_extern(sql = false)]
fn finish_rebuild(pipeline: &str) -> bool {
    refuse_if_read_only(c"ingest.finish_rebuild()");
    let definition = Definition::to_change(pipeline);
    let Some(successor) = definition.successor() else {
        return false;
    };
    let _acting = ActingAs::extension_owner();
    Spi::run_with_args(
        "UPDATE ingest.pipeline SET accepts_failures = true, blocked_error = NULL, blocked_until = NULL, blocked_times = 0
         WHERE pipeline_id OPERATOR(pg_catalog.=) $1",
        &[successor.pipeline_id.into()],
    )
    .or_raise();
    wake::at_commit();
    true
}
