//! `watch` and `unwatch`.

use pgrx::prelude::*;
use pgrx::spi::quote_qualified_identifier;

use crate::api::definition::Definition;
use crate::api::expressions::{Columns, examine};
use crate::api::targets::table_name;
use crate::errors::{OrRaise, UserError};
use crate::owner::{ActingAs, stranger};
use crate::reading::refuse_if_read_only;
use crate::sources::NOT_WITH_ALL_RIGHTS;

#[pg_extern(sql = false)]
fn watch(
    source: Option<pg_sys::Oid>,
    content: Option<&str>,
    pipeline: Option<&str>,
    key: Option<&str>,
    metadata: Option<&str>,
) {
    refuse_if_read_only(c"ingest.watch()");
    let definition = Definition::to_change(pipeline.unwrap_or_default());
    let source = source
        .ok_or_else(|| UserError::invalid("source is the table to watch; it is null"))
        .or_raise();
    let content = content
        .ok_or_else(|| {
            UserError::invalid("content is null").hint(
                "content is a column or an SQL expression over a row, such as title || E'\\n' || body.",
            )
        })
        .or_raise();
    // SAFETY: a plain read.
    let user = unsafe { pg_sys::GetUserId() };
    {
        let _acting = ActingAs::extension_owner();
        Spi::run_with_args(
            "SELECT ingest.refuse_source($1::regclass, $2, $3, $4)",
            &[
                source.into(),
                definition.name.as_str().into(),
                key.into(),
                user.into(),
            ],
        )
        .or_raise();
    }
    refuse_stranger(definition.owner, source);
    let columns = columns_read(&definition, source, content, metadata).or_raise();
    let _acting = ActingAs::extension_owner();
    let watch: Option<i32> = Spi::get_one_with_args(
        "SELECT ingest.add_watch($1::regclass, $2, $3, $4, $5, $6)",
        &[
            source.into(),
            definition.pipeline_id.into(),
            content.into(),
            metadata.into(),
            key.into(),
            columns.into(),
        ],
    )
    .or_raise();
    if let Some(watch) = watch {
        drop_with_extension(watch);
        refuse_unreadable(definition.owner, watch);
    }
}

/// Raises `42501` where this owner of a pipeline is a superuser and the table is not a superuser's.
fn refuse_stranger(owner: pg_sys::Oid, source: pg_sys::Oid) {
    let Some(stranger) = stranger(source, owner) else {
        return;
    };
    let table = table_name(source).map(|(schema, table)| quote_qualified_identifier(schema, table));
    UserError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!(
            "table {} cannot be watched for a pipeline of a superuser: it belongs to role {stranger}",
            table.unwrap_or_default()
        ),
    )
    .detail(NOT_WITH_ALL_RIGHTS)
    .hint(format!("SELECT ingest.set_owner('…', '{stranger}'), or create the pipeline as that role."))
    .raise();
}

/// The columns that the expressions read, `None` for all that the table has at any time; an error when one of them cannot be.
fn columns_read(
    definition: &Definition,
    source: pg_sys::Oid,
    content: &str,
    metadata: Option<&str>,
) -> Result<Option<Vec<String>>, UserError> {
    let Some((schema, table)) = table_name(source) else {
        return Ok(None);
    };
    let table = quote_qualified_identifier(schema, table);
    // Functions are found, and may be called, as the worker will do it.
    let _acting = ActingAs::new(definition.owner);
    let text = examine("content", content, &table)?;
    if !text.is_text() {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!("content is of type {}, not text", text.type_name),
        )
        .hint(match text.type_name.as_str() {
            "bytea" => "Extract the text first; bytes of a known encoding become text with convert_from(column, 'UTF8').".into(),
            _ => format!("Make it a text, for example: content => '({content})::text'."),
        }));
    }
    let mut read = text.columns;
    if let Some(metadata) = metadata {
        let examined = examine("metadata", metadata, &table)?;
        if !matches!(examined.type_name.as_str(), "json" | "jsonb") {
            return Err(UserError::new(
                PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                format!("metadata is of type {}, not jsonb", examined.type_name),
            )
            .hint("For example: metadata => 'jsonb_build_object(''lang'', lang)'."));
        }
        read = read.and(examined.columns);
    }
    Ok(names(source, &read))
}

/// The names of the columns with these numbers. One that is computed when it is read has no old value: it stands for the
/// columns that it is computed of.
fn names(source: pg_sys::Oid, read: &Columns) -> Option<Vec<String>> {
    let Columns::These(numbers) = read else {
        return None;
    };
    Spi::get_one_with_args(
        "SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
           AND (a.attnum = ANY ($2)
                OR a.attnum IN (SELECT d.refobjsubid FROM pg_catalog.pg_attribute g
                                JOIN pg_catalog.pg_attrdef e ON e.adrelid = g.attrelid AND e.adnum = g.attnum
                                JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = e.oid
                                 AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = g.attrelid
                                WHERE g.attrelid = $1 AND g.attgenerated = 'v' AND g.attnum = ANY ($2)))",
        &[source.into(), numbers.clone().into()],
    )
    .or_raise()
}

/// Runs the worker's statements on no row: raises what keeps this owner of the pipeline from reading what the expressions do,
/// and the columns that name the documents. As the extension's owner.
pub fn refuse_unreadable(owner: pg_sys::Oid, watch: i32) {
    let (reading, first_rows) = Spi::get_two_with_args::<String, String>(
        "SELECT reading, first_rows FROM ingest.source_statements($1)",
        &[watch.into()],
    )
    .or_raise();
    let source: Option<pg_sys::Oid> = Spi::get_one_with_args(
        "SELECT source::oid FROM ingest.watch WHERE watch_id = $1",
        &[watch.into()],
    )
    .or_raise();
    if let Some(source) = source {
        refuse_stranger(owner, source);
    }
    let _acting = ActingAs::new(owner);
    for statement in reading.iter().chain(&first_rows) {
        Spi::run_with_args(statement, &[None::<&str>.into(), 0.into()]).or_raise();
    }
}

/// DROP EXTENSION takes the triggers along without CASCADE.
fn drop_with_extension(watch: i32) {
    let triggers: Vec<pg_sys::Oid> = Spi::get_one_with_args(
        "SELECT coalesce(array_agg(trigger), '{}') FROM ingest.source_triggers($1)
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                           WHERE d.classid = 'pg_catalog.pg_trigger'::regclass AND d.objid = trigger AND d.deptype = 'x')",
        &[watch.into()],
    )
    .or_raise()
    .unwrap_or_default();
    for trigger in triggers {
        let address = |class, object| pg_sys::ObjectAddress {
            classId: class,
            objectId: object,
            objectSubId: 0,
        };
        // SAFETY: two addresses of objects that are there, inside a transaction; what ALTER TRIGGER … DEPENDS ON EXTENSION
        // writes, without its lock on the table, under which nobody could read it.
        unsafe {
            let extension = pg_sys::get_extension_oid(c"pg_ingest".as_ptr(), false);
            pg_sys::recordDependencyOn(
                &address(pg_sys::TriggerRelationId, trigger),
                &address(pg_sys::ExtensionRelationId, extension),
                pg_sys::DependencyType::DEPENDENCY_AUTO_EXTENSION,
            );
        }
    }
}

#[pg_extern(sql = false)]
fn unwatch(source: Option<pg_sys::Oid>, pipeline: Option<&str>) {
    refuse_if_read_only(c"ingest.unwatch()");
    let definition = Definition::to_change(pipeline.unwrap_or_default());
    let _acting = ActingAs::extension_owner();
    let removed: Option<bool> = Spi::get_one_with_args(
        "SELECT ingest.remove_watch($1, $2)",
        &[source.into(), definition.pipeline_id.into()],
    )
    .or_raise();
    if removed != Some(true) {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("pipeline {:?} does not watch that table", definition.name),
        )
        .hint("SELECT * FROM ingest.watches lists what is watched.")
        .raise();
    }
}
