//! A pipeline's target: the table that holds the chunks and their vectors. Making it, checking one that is there, its
//! HNSW index, its deferred constraints.

use std::ffi::CString;

use pgrx::prelude::*;
use pgrx::spi::quote_qualified_identifier;

use crate::api::{MAX_NAME, lent};
use crate::errors::{OrRaise, UserError};
use crate::layout::Layout;
use crate::owner::{ActingAs, stranger};
use crate::reading;

/// pgvector indexes at most so many dimensions of type halfvec.
pub const MAX_HALFVEC_DIMENSIONS: i32 = 4000;

/// Schema and name of the target: as given, else the layout's own.
pub fn target_for(
    layout: Layout,
    name: &str,
    target: Option<&str>,
) -> Result<(String, String), UserError> {
    let named = named_target(layout, name, target)?;
    layout.check_target(&named.0, &named.1)?;
    Ok(named)
}

fn named_target(
    layout: Layout,
    name: &str,
    target: Option<&str>,
) -> Result<(String, String), UserError> {
    let Some(target) = target else {
        let (schema, table) = layout.default_target(name);
        if table.len() > MAX_NAME {
            return Err(UserError::new(
                PgSqlErrorCode::ERRCODE_NAME_TOO_LONG,
                format!("{table:?} is too long for the name of a table"),
            )
            .hint("Give a shorter name, or the target: target => 'public.docs'."));
        }
        return Ok((schema, table));
    };
    // parse_ident raises a clear error of its own for what is no identifier.
    let parts: Vec<String> = Spi::get_one_with_args("SELECT parse_ident($1)", &[target.into()])
        .or_raise()
        .unwrap_or_default();
    match <[String; 2]>::try_from(parts) {
        Ok([schema, table]) if schema.len() <= MAX_NAME && table.len() <= MAX_NAME => {
            Ok((schema, table))
        }
        Ok(_) => Err(UserError::new(
            PgSqlErrorCode::ERRCODE_NAME_TOO_LONG,
            format!("target {target:?} has a name of more than 63 bytes"),
        )),
        Err(_) => Err(UserError::new(
            PgSqlErrorCode::ERRCODE_INVALID_NAME,
            format!("target {target:?} must name a schema and a table"),
        )
        .hint("For example target => 'public.docs'.")),
    }
}

/// The table with this schema and name, checked if it is there and made if it is not, for vectors of so many dimensions;
/// `named` says that the user gave the name. Runs as the current user.
pub fn create_or_check_target(
    (schema, table): &(String, String),
    named: bool,
    layout: Layout,
    dimensions: i32,
) -> Result<pg_sys::Oid, UserError> {
    layout.check_dimensions(dimensions)?;
    require_vectors()?;
    if schema.starts_with("pg_temp") {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION,
            "a temporary table cannot be the target",
        )
        .detail("Only the session that made it sees what is in it.")
        .hint("Give another target."));
    }
    let quoted = quote_qualified_identifier(schema, table);
    if let Some(existing) = find_table(&quoted) {
        check_target(existing, &quoted, layout, dimensions)?;
        refuse_code_of_others(existing, &quoted, named)?;
        create_key_index(existing, &quoted, layout);
        return Ok(existing);
    }
    if schema == "vecs" {
        create_schema(schema)?;
    }
    let vector = embedding_type(layout, dimensions);
    let making = lent::Making::new(schema, table);
    for statement in layout.create_table(&quoted, &vector) {
        Spi::run(&statement).or_raise();
    }
    if let Some((_, create)) = layout.key_index(&quoted) {
        Spi::run(&create).or_raise();
    }
    making.finish(&quoted);
    find_table(&quoted).ok_or_else(|| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            format!("table {quoted} was created and is not there"),
        )
    })
}

fn find_table(quoted: &str) -> Option<pg_sys::Oid> {
    Spi::get_one_with_args::<pg_sys::Oid>("SELECT to_regclass($1)::oid", &[quoted.into()])
        .or_raise()
}

/// The whole type of the embedding column, for SQL.
pub fn embedding_type(layout: Layout, dimensions: i32) -> String {
    format!(
        "{}.{}({dimensions})",
        vector_schema(),
        layout.vector_type(dimensions)
    )
}

/// The schema of pgvector, quoted for SQL.
fn vector_schema() -> String {
    Spi::get_one("SELECT ingest.vector_schema()")
        .or_raise()
        .unwrap_or_else(|| {
            UserError::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                "the extension vector is not in this database",
            )
            .hint("Create it: CREATE EXTENSION vector;")
            .raise()
        })
}

/// Makes the schema that clients look in, which they make themselves when they come first.
fn create_schema(schema: &str) -> Result<(), UserError> {
    let (there, allowed) = Spi::get_two_with_args::<bool, bool>(
        "SELECT to_regnamespace($1) IS NOT NULL, has_database_privilege(current_database(), 'CREATE')",
        &[schema.into()],
    )
    .or_raise();
    if there == Some(true) {
        return Ok(());
    }
    if allowed != Some(true) {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("the schema {schema:?} does not exist, and you may not create it"),
        )
        .hint(format!(
            "Ask an administrator: CREATE SCHEMA {schema}; GRANT USAGE, CREATE ON SCHEMA {schema} TO …;"
        )));
    }
    Spi::run(&format!("CREATE SCHEMA {schema}")).or_raise();
    Ok(())
}

/// Makes the index by which a document's chunks are found in a table that somebody else made, unless there is one; in layout `chunks`
/// says that there is none.
fn create_key_index(table: pg_sys::Oid, quoted: &str, layout: Layout) {
    let Some((expression, create)) = layout.key_index(quoted) else {
        if !has_key_column_index(table) {
            warn_of_no_index(
                quoted,
                "document_key",
                &format!("CREATE INDEX ON {quoted} (document_key)"),
            );
        }
        return;
    };
    if index_on(table, expression).is_some() {
        return;
    }
    if is_owned(table) {
        Spi::run(&create).or_raise();
    } else {
        warn_of_no_index(quoted, expression, &create);
    }
}

fn warn_of_no_index(quoted: &str, expression: &str, create: &str) {
    warning!(
        "table {quoted} has no index on {expression}: whenever a document changes, all of the table is read. Its owner can \
         make one: {create};"
    );
}

/// Whether the rows of a document are found by an index on the column `document_key`, as far as is known of a foreign table.
fn has_key_column_index(table: pg_sys::Oid) -> bool {
    Spi::get_one_with_args::<bool>(
        "SELECT EXISTS (SELECT FROM pg_class c WHERE c.oid = $1 AND c.relkind = 'f')
             OR EXISTS (SELECT FROM pg_index i
                        JOIN pg_class x ON x.oid = i.indexrelid
                        JOIN pg_am m ON m.oid = x.relam
                        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                        WHERE i.indrelid = $1 AND a.attname = 'document_key' AND m.amname IN ('btree', 'hash')
                          AND i.indpred IS NULL AND i.indisvalid)",
        &[table.into()],
    )
    .or_raise()
        == Some(true)
}

/// Whether the current user may use pgvector's types and operators, as the worker and search() will do as it.
fn require_vectors() -> Result<(), UserError> {
    let allowed = Spi::get_one::<bool>(
        "SELECT has_schema_privilege(e.extnamespace, 'USAGE') FROM pg_extension e WHERE e.extname = 'vector'",
    )
    .or_raise();
    if allowed == Some(true) {
        return Ok(());
    }
    let schema = vector_schema();
    Err(UserError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("permission denied for schema {schema}"),
    )
    .detail("The types and operators of pgvector are in it.")
    .hint(format!(
        "Ask an administrator: GRANT USAGE ON SCHEMA {schema} TO …;"
    )))
}

/// The index of a table on this expression, as `pg_get_expr()` tells it, quoted for SQL.
fn index_on(table: pg_sys::Oid, expression: &str) -> Option<String> {
    Spi::get_one_with_args(
        "SELECT (SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
                 FROM pg_catalog.pg_index i
                 JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 WHERE i.indrelid = $1 AND i.indpred IS NULL AND pg_catalog.pg_get_expr(i.indexprs, i.indrelid) = $2 LIMIT 1)",
        &[table.into(), expression.into()],
    )
    .or_raise()
}

/// An existing table serves when it has the columns of the layout, asks for no others, and no other pipeline writes it.
fn check_target(
    table: pg_sys::Oid,
    quoted: &str,
    layout: Layout,
    dimensions: i32,
) -> Result<(), UserError> {
    let (names, types): (Vec<&str>, Vec<String>) =
        layout.wanted_columns(dimensions).into_iter().unzip();
    let columns: Vec<String> = names
        .iter()
        .zip(&types)
        .map(|(name, kind)| format!("{name} {kind}"))
        .collect();
    let wanted = format!(
        "The columns it must have: {}; others need a default.",
        columns.join(", ")
    );
    let problem: Option<String> = Spi::get_one_with_args(
        "WITH wanted (name, type) AS (
             SELECT * FROM unnest($2::text[], $3::text[])
         ), present AS (
             SELECT attname::text AS name, regexp_replace(format_type(atttypid, atttypmod), '^.*\\.', '') AS type,
                    (attnotnull OR t.typnotnull) AND NOT atthasdef AND attidentity = '' AND t.typdefault IS NULL AS demanding,
                    attgenerated <> '' OR attidentity = 'a' AS generated
             FROM pg_attribute JOIN pg_type t ON t.oid = atttypid WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
         )
         SELECT coalesce(
             (SELECT format('It is a %s.', CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                                                        WHEN 'S' THEN 'sequence' WHEN 'i' THEN 'index' ELSE 'composite type' END)
              FROM pg_class WHERE oid = $1 AND relkind NOT IN ('r', 'p', 'f')),
             (SELECT format('It is a %s table, and the vecs client sees ordinary ones only.',
                            CASE relkind WHEN 'p' THEN 'partitioned' ELSE 'foreign' END)
              FROM pg_class WHERE oid = $1 AND relkind <> 'r' AND $4 = 'vecs'),
             (SELECT format('Column %s is missing.', w.name) FROM wanted w
              WHERE NOT EXISTS (SELECT FROM present p WHERE p.name = w.name) LIMIT 1),
             (SELECT format('Column %s is of type %s, not %s.', w.name, p.type, w.type)
              FROM wanted w JOIN present p USING (name) WHERE p.type <> w.type LIMIT 1),
             (SELECT format('Column %s is generated, so that nothing can be written into it.', w.name)
              FROM wanted w JOIN present p USING (name) WHERE p.generated LIMIT 1),
             (SELECT format('Column %s may not be null and has no default.', p.name) FROM present p
              WHERE p.demanding AND p.name NOT IN (SELECT name FROM wanted) LIMIT 1))",
        &[
            table.into(),
            names.into(),
            types.into(),
            layout.name().into(),
        ],
    )
    .or_raise();
    if let Some(problem) = problem {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!("table {quoted} cannot be the target"),
        )
        .detail(problem)
        .hint(wanted));
    }
    if let Some(problem) = strange_column(table, layout) {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!("table {quoted} cannot be the target"),
        )
        .detail(problem)
        .hint(wanted));
    }
    require_target_rights(table, quoted)?;
    let _acting = ActingAs::extension_owner();
    let taken: Option<String> = Spi::get_one_with_args(
        // What is in a partition or a table that inherits is in the tables above it, too.
        "WITH RECURSIVE above AS (
             SELECT $1 AS oid UNION SELECT i.inhparent FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.oid
         ), below AS (
             SELECT $1 AS oid UNION SELECT i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid
         )
         SELECT (SELECT CASE WHEN target::oid = $1 THEN 'is' ELSE format('shares rows with %s,', target) END
                        || format(' the target of pipeline %s', to_json(name))
                 FROM ingest.pipeline WHERE target::oid IN (TABLE above UNION ALL TABLE below) LIMIT 1)",
        &[table.into()],
    )
    .or_raise();
    match taken {
        Some(taken) => Err(UserError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!("table {quoted} {taken}"),
        )
        .hint(
            "Two pipelines in one table would replace each other's chunks; give another target.",
        )),
        None => Ok(()),
    }
}

#[pg_extern(sql = false)]
fn refuse_strange(pipeline: &str, target: pg_sys::Oid, layout: &str) {
    let layout = Layout::named(layout).or_raise();
    // SAFETY: a catalog look-up inside a transaction. Not by SQL, which an old snapshot may show what was there before.
    let kind = unsafe { pg_sys::get_rel_relkind(target) } as u8;
    let problem = match kind {
        pg_sys::RELKIND_RELATION
        | pg_sys::RELKIND_PARTITIONED_TABLE
        | pg_sys::RELKIND_FOREIGN_TABLE => strange_column(target, layout),
        _ => Some("It is no table any more.".to_owned()),
    };
    if let Some(problem) = problem {
        UserError::new(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("the target of pipeline {pipeline:?} cannot be searched"),
        )
        .detail(problem)
        .hint("A view, or a type with a cast, is code of its owner, which would run with your rights.")
        .raise();
    }
}

/// What is said of a column of a target that a search reads, if its type is neither of Postgres itself nor pgvector's: a cast of
/// it may be anybody's function.
fn strange_column(table: pg_sys::Oid, layout: Layout) -> Option<String> {
    let (vector, halfvec) = reading::two::<pg_sys::Oid, pg_sys::Oid>(
        "SELECT pg_catalog.to_regtype(v || '.vector')::oid, pg_catalog.to_regtype(v || '.halfvec')::oid
         FROM ingest.vector_schema() AS v",
        &[],
    )
    .or_raise();
    for (name, _) in layout.wanted_columns(1) {
        let column = CString::new(name).expect("a name of ours");
        // SAFETY: catalog look-ups inside a transaction, by a C string; a column that is not there has number 0 and no type.
        let kind = unsafe {
            let number = pg_sys::get_attnum(table, column.as_ptr());
            if number == 0 {
                continue;
            }
            pg_sys::get_atttype(table, number)
        };
        let is_own = kind.to_u32() < pg_sys::FirstNormalObjectId;
        if !is_own && Some(kind) != vector && Some(kind) != halfvec {
            return Some(format!("Column {name} is of a type of somebody's own."));
        }
    }
    None
}

/// Whoever owns a table decides what runs when it is written. A superuser takes only what superusers own; others, unless they
/// have named it, only what is theirs.
fn refuse_code_of_others(table: pg_sys::Oid, quoted: &str, named: bool) -> Result<(), UserError> {
    // SAFETY: plain reads, and a catalog look-up inside a transaction.
    let (superuser, user) = unsafe { (pg_sys::superuser(), pg_sys::GetUserId()) };
    let stranger = if superuser {
        stranger(table, user)
    } else if named {
        None
    } else {
        Spi::get_one_with_args::<String>(
            "SELECT (SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) FROM pg_catalog.pg_class c
                     WHERE c.oid = $1 AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE'))",
            &[table.into()],
        )
        .or_raise()
    };
    let Some(stranger) = stranger else {
        return Ok(());
    };
    let error = UserError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("table {quoted} belongs to role {stranger}"),
    )
    .detail("The triggers, rules and expressions that its owner gives it run with the rights of the pipeline's owner.");
    Err(if superuser {
        error.hint(format!(
            "SET ROLE {stranger}; first, so that the pipeline is that role's, or give the table to a superuser."
        ))
    } else {
        error.hint("Give another target; or this one by its name, with target => '…', if you trust that role.")
    })
}

/// Whether the current user may do with a table what the worker will do as it.
pub fn require_target_rights(table: pg_sys::Oid, quoted: &str) -> Result<(), UserError> {
    let allowed = Spi::get_one_with_args::<bool>(
        "SELECT has_table_privilege($1, 'SELECT') AND has_table_privilege($1, 'INSERT') AND has_table_privilege($1, 'DELETE')
                AND has_table_privilege($1, 'UPDATE')",
        &[table.into()],
    )
    .or_raise();
    if allowed == Some(true) {
        return Ok(());
    }
    Err(UserError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("permission denied for table {quoted}"),
    )
    .detail("The owner of a pipeline needs SELECT, INSERT, UPDATE and DELETE on its target."))
}

/// The HNSW indexes on a table's embeddings, quoted for SQL.
fn vector_indexes(table: pg_sys::Oid, layout: Layout) -> Vec<String> {
    Spi::get_one_with_args(
        "SELECT coalesce(pg_catalog.array_agg(pg_catalog.format('%I.%I', n.nspname, c.relname)), '{}')
         FROM pg_catalog.pg_index i
         JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_am m ON m.oid = c.relam
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         WHERE i.indrelid = $1 AND m.amname = 'hnsw' AND a.attname = $2",
        &[table.into(), layout.embedding_column().into()],
    )
    .or_raise()
    .unwrap_or_default()
}

/// The indexes `i`, of an attribute `a`, that find what is nearest by cosine distance among all rows, to be continued by AND.
pub const NEAREST_INDEXES: &str = "FROM pg_catalog.pg_index i
     JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
     JOIN pg_catalog.pg_am m ON m.oid = x.relam
     JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[0]
     JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
     WHERE m.amname = 'hnsw' AND o.opcname IN ('vector_cosine_ops', 'halfvec_cosine_ops') AND i.indpred IS NULL AND i.indisvalid";

/// Whether there is an index by which a search finds what is nearest.
fn has_nearest_index(table: pg_sys::Oid, layout: Layout) -> bool {
    Spi::get_one_with_args::<bool>(
        &format!("SELECT EXISTS (SELECT {NEAREST_INDEXES} AND i.indrelid = $1 AND a.attname = $2)"),
        &[table.into(), layout.embedding_column().into()],
    )
    .or_raise()
        == Some(true)
}

/// Builds what searching a target takes, unless it is there: the HNSW index, for cosine distance, and the full-text index
/// in this language. Runs as the current user. A foreign table has its indexes where it is.
pub fn create_indexes(table: pg_sys::Oid, layout: Layout, language: &str) {
    let Some((schema, name)) = table_name(table) else {
        return;
    };
    let quoted = quote_qualified_identifier(&schema, &name);
    let column = layout.embedding_column();
    let (dimensions, foreign) = Spi::get_two_with_args::<i32, bool>(
        "SELECT a.atttypmod, c.relkind = 'f' FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
         WHERE a.attrelid = $1 AND a.attname = $2",
        &[table.into(), column.into()],
    )
    .or_raise();
    if foreign == Some(true) {
        UserError::new(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("table {quoted} is a foreign table, which has its indexes on its own server"),
        )
        .hint("Create them there, and give index => 'none' here.")
        .raise();
    }
    let _acting = lent::index_rights(table, &schema, &name);
    let mut statements = Vec::new();
    if !has_nearest_index(table, layout) {
        statements.push(format!(
            "{} ON {quoted} USING hnsw ({column} {}.{}_cosine_ops)",
            create_index(layout.vector_index_name()),
            vector_schema(),
            layout.vector_type(dimensions.unwrap_or_default()),
        ));
    }
    if index_on(table, &layout.text_search(language)).is_none() {
        statements.push(text_index(&quoted, layout, language));
    }
    if !statements.is_empty() && !is_owned(table) {
        UserError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("must be owner of table {quoted}"),
        )
        .detail("Only the owner of a table can make indexes on it.")
        .hint(format!(
            "Have its owner make them: {}; or give index => 'none' here.",
            statements.join("; ")
        ))
        .raise();
    }
    for statement in &statements {
        Spi::run(statement).or_raise();
    }
}

/// The beginning of the statement that makes an index, which names itself where no name is given.
fn create_index(name: String) -> String {
    format!("CREATE INDEX {name}").trim_end().to_owned()
}

fn text_index(quoted: &str, layout: Layout, language: &str) -> String {
    format!(
        "{} ON {quoted} USING gin ({})",
        create_index(layout.text_index_name()),
        layout.text_search(language)
    )
}

/// Whether the current user has the rights of a table's owner.
fn is_owned(table: pg_sys::Oid) -> bool {
    Spi::get_one_with_args::<bool>(
        "SELECT (SELECT pg_catalog.pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = $1)",
        &[table.into()],
    )
    .or_raise()
        == Some(true)
}

/// Drops the HNSW indexes on a target's embeddings and its full-text index in this language; whether there were any of the former.
pub fn drop_indexes(table: pg_sys::Oid, layout: Layout, language: &str) -> bool {
    let indexes = vector_indexes(table, layout);
    for index in &indexes {
        Spi::run(&format!("DROP INDEX {index}")).or_raise();
    }
    if let Some(index) = index_on(table, &layout.text_search(language)) {
        Spi::run(&format!("DROP INDEX {index}")).or_raise();
    }
    !indexes.is_empty()
}

/// Makes a table without rows one for vectors of so many dimensions; fails if there are any. Runs as the current user.
pub fn retype_empty(
    table: pg_sys::Oid,
    quoted: &str,
    layout: Layout,
    language: &str,
    dimensions: i32,
) {
    let indexed = drop_indexes(table, layout, language);
    Spi::run(&format!(
        "ALTER TABLE {quoted} ALTER COLUMN {} TYPE {}",
        layout.embedding_column(),
        embedding_type(layout, dimensions)
    ))
    .or_raise();
    if indexed {
        create_indexes(table, layout, language);
    }
}

/// Builds the full-text index in another language, if there is one in this language.
pub fn change_language(table: pg_sys::Oid, layout: Layout, from: &str, to: &str) {
    if from != to
        && let Some(index) = index_on(table, &layout.text_search(from))
        && let Some((schema, name)) = table_name(table)
    {
        Spi::run(&format!("DROP INDEX {index}")).or_raise();
        let _acting = lent::index_rights(table, &schema, &name);
        let quoted = quote_qualified_identifier(schema, name);
        Spi::run(&text_index(&quoted, layout, to)).or_raise();
    }
}

/// A text search configuration by the name that it has wherever pg_catalog alone is searched.
pub fn language(name: &str) -> Result<String, UserError> {
    // parse_ident raises a clear error of its own for what is no identifier.
    Spi::get_one_with_args::<String>(
        "SELECT (SELECT c.oid::regconfig::text
                 FROM pg_ts_config c JOIN pg_namespace n ON n.oid = c.cfgnamespace, parse_ident($1) AS parts
                 WHERE cardinality(parts) <= 2 AND c.cfgname = parts[cardinality(parts)]
                   AND n.nspname = CASE cardinality(parts) WHEN 2 THEN parts[1] ELSE 'pg_catalog' END)",
        &[name.into()],
    )
    .or_raise()
    .ok_or_else(|| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("language {name:?} does not exist"),
        )
        .detail("It is the name of a text search configuration, with its schema if it is one of your own.")
        .hint("SELECT cfgname FROM pg_ts_config; lists them: simple, english, ...")
    })
}

/// Makes the deferred constraints and triggers of a target fire with each statement for the rest of the transaction: in a
/// security-restricted context they cannot be deferred. What the transaction has deferred already runs at once, as whoever would
/// commit it: it may be code of the target's owner, and, since constraints are set by name, of other tables of that schema.
pub fn fire_constraints_at_once(target: pg_sys::Oid) {
    let names: Vec<String> = Spi::get_one_with_args(
        "SELECT coalesce(array_agg(DISTINCT pg_catalog.format('%I.%I', n.nspname, c.conname)), '{}')
         FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace
         WHERE c.condeferrable AND $1 IN (c.conrelid, c.confrelid)",
        &[target.into()],
    )
    .or_raise()
    .unwrap_or_default();
    if names.is_empty() {
        return;
    }
    let set = format!("SET CONSTRAINTS {} IMMEDIATE", names.join(", "));
    {
        let _acting = ActingAs::who_commits();
        if may_enter_schemas_of_constraints(target) {
            Spi::run(&set).or_raise();
            return;
        }
    }
    // It cannot name them. Nothing of theirs may wait then, for it would run as the current user.
    if let Some(table) = waiting_for_constraints(target) {
        UserError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("the transaction has deferred constraints of table {table}"),
        )
        .detail("What is done to chunks cannot wait for them, and the role may not use the schema that they are in.")
        .hint("SET CONSTRAINTS ALL IMMEDIATE; before documents are changed.")
        .raise();
    }
    Spi::run(&set).or_raise();
}

/// Whether the current user may use the schemas of a target's deferrable constraints.
fn may_enter_schemas_of_constraints(target: pg_sys::Oid) -> bool {
    Spi::get_one_with_args::<bool>(
        "SELECT pg_catalog.bool_and(pg_catalog.has_schema_privilege(c.connamespace, 'USAGE'))
         FROM pg_catalog.pg_constraint c
         WHERE c.condeferrable AND $1 IN (c.conrelid, c.confrelid)",
        &[target.into()],
    )
    .or_raise()
    .unwrap_or(true)
}

/// A table with events that wait for a constraint of the name of one of a target's, in the same schema, or for a part of it.
fn waiting_for_constraints(target: pg_sys::Oid) -> Option<String> {
    let tables: Vec<pg_sys::Oid> = Spi::get_one_with_args(
        "WITH RECURSIVE same AS (
             SELECT o.oid FROM pg_catalog.pg_constraint c
             JOIN pg_catalog.pg_constraint o ON o.connamespace = c.connamespace AND o.conname = c.conname
             WHERE c.condeferrable AND $1 IN (c.conrelid, c.confrelid)
             UNION
             SELECT c.oid FROM same s JOIN pg_catalog.pg_constraint c ON c.conparentid = s.oid
         )
         SELECT coalesce(array_agg(DISTINCT t.tgrelid), '{}')
         FROM pg_catalog.pg_trigger t JOIN same s ON s.oid = t.tgconstraint",
        &[target.into()],
    )
    .or_raise()
    .unwrap_or_default();
    // SAFETY: reads the events of this transaction.
    let waits = |table: &&pg_sys::Oid| unsafe { pg_sys::AfterTriggerPendingOnRel(**table) };
    let waiting = tables.iter().find(waits).copied()?;
    table_name(waiting).map(|(schema, table)| quote_qualified_identifier(schema, table))
}

/// The name of a table, quoted for SQL, which it keeps until the transaction ends; `None` when it was dropped. It is locked by its
/// number first: whoever names a table and then waits for it may get another one, to which its name was given meanwhile.
pub fn keep_name(table: pg_sys::Oid, lock: u32) -> Option<String> {
    // SAFETY: inside a transaction; the names are palloc'ed C strings or null, read from the catalogs as they are now, whatever
    // snapshot the transaction has.
    unsafe {
        pg_sys::LockRelationOid(table, lock as pg_sys::LOCKMODE);
        let name = pg_sys::get_rel_name(table);
        if name.is_null() {
            return None;
        }
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(table));
        let text = |name| std::ffi::CStr::from_ptr(name).to_string_lossy();
        (!schema.is_null()).then(|| quote_qualified_identifier(text(schema), text(name)))
    }
}

/// Schema and name of a table.
pub fn table_name(table: pg_sys::Oid) -> Option<(String, String)> {
    Spi::connect(|client| {
        let row = client
            .select(
                "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
                Some(1),
                &[table.into()],
            )?
            .first();
        if row.is_empty() {
            return Ok::<_, pgrx::spi::Error>(None);
        }
        let (schema, table) = row.get_two::<String, String>()?;
        Ok(schema.zip(table))
    })
    .or_raise()
}
