//! `create_pipeline`, `drop_pipeline`, `pause`, `resume`, `retry`, and what is checked of a definition that is new or changed.

use chunker::Splitter;
use embedder::{ModelName, Provider};
use pgrx::JsonB;
use pgrx::prelude::*;
use pgrx::spi::quote_qualified_identifier;

use crate::api::MAX_NAME;
use crate::api::definition::{Definition, parse_model};
use crate::api::limits::use_limit;
use crate::api::models::{Connection, Described, hide_misplaced_key};
use crate::api::rebuild::drop_table_of;
use crate::api::targets::{self, create_indexes, create_or_check_target, keep_name, target_for};
use crate::errors::{OrRaise, UserError};
use crate::installed;
use crate::layout::Layout;
use crate::owner::ActingAs;
use crate::reading::refuse_if_read_only;
use crate::{access, budgets, wake};

/// One in so many tokens of a chunk is shared with its neighbour by default.
pub(super) const DEFAULT_OVERLAP_SHARE: i32 = 10;
/// Requests in flight at most: sockets of one process, far below the usual limit of open files.
const MAX_CONCURRENCY: i32 = 500;
/// The default of `concurrency` in the SQL signature.
pub(super) const DEFAULT_CONCURRENCY: i32 = 10;

/// What is checked of every definition, whether it is new or changed.
pub(super) struct Settings<'a> {
    pub splitter: &'a str,
    pub chunk_tokens: i32,
    pub chunk_overlap: i32,
    pub concurrency: i32,
    pub batch_size: Option<i32>,
    pub max_attempts: i32,
    pub index: &'a str,
    pub on_success: &'a str,
}

impl Settings<'_> {
    pub fn check(&self, model: &ModelName, described: &Described) -> Result<(), UserError> {
        let longest_chunk = described.longest_chunk;
        self.splitter.parse::<Splitter>().map_err(|error| {
            UserError::invalid(error.to_string()).hint("splitter is text, markdown or none.")
        })?;
        one_of("index", self.index, &["none", "immediate", "deferred"])?;
        one_of("on_success", self.on_success, &["keep", "delete"])?;
        in_range("max_attempts", self.max_attempts, 1, 1000)?;
        if let Some(size) = self.batch_size {
            in_range("batch_size", size, 1, described.most_inputs)?;
        }
        in_range("concurrency", self.concurrency, 1, MAX_CONCURRENCY)?;
        if self.concurrency != DEFAULT_CONCURRENCY && model.provider == Provider::Local {
            return Err(UserError::invalid(format!(
                "concurrency has no meaning for model {model}, which runs in the database"
            ))
            .hint("The setting pg_ingest.model_threads bounds what local models run at once."));
        }
        if self.chunk_tokens < 1 || self.chunk_tokens > longest_chunk {
            return Err(UserError::invalid(format!(
                "chunk_tokens must be between 1 and {longest_chunk}"
            ))
            .detail(format!(
                "It is {}; model {model} reads {longest_chunk} tokens of an input.",
                self.chunk_tokens
            )));
        }
        // With more, a document would be multiplied without bound.
        if self.chunk_overlap < 0 || self.chunk_overlap > self.chunk_tokens / 2 {
            return Err(UserError::invalid(
                "chunk_overlap must be between 0 and half of chunk_tokens",
            )
            .detail(format!(
                "chunk_overlap is {}, chunk_tokens is {}.",
                self.chunk_overlap, self.chunk_tokens
            )));
        }
        Ok(())
    }
}

fn one_of(argument: &str, value: &str, known: &[&str]) -> Result<(), UserError> {
    if known.contains(&value) {
        return Ok(());
    }
    Err(
        UserError::invalid(format!("{argument} {value:?} does not exist"))
            .hint(format!("{argument} is one of: {}.", known.join(", "))),
    )
}

fn in_range(argument: &str, value: i32, low: i32, high: i32) -> Result<(), UserError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(
        UserError::invalid(format!("{argument} must be between {low} and {high}"))
            .detail(format!("It is {value}.")),
    )
}

pub(super) fn refuse_unsupported(arguments: &[(&str, bool)]) -> Result<(), UserError> {
    match arguments.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(UserError::unsupported(name)),
        None => Ok(()),
    }
}

/// What 0.1.0's SQL calls.
#[pg_extern(sql = false)]
fn create_pipeline() {
    installed::refuse_former(c"ingest.create_pipeline()");
}

#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn create_pipeline_0_2(
    name: Option<&str>,
    model: Option<&str>,
    dimensions: Option<i32>,
    base_url: Option<&str>,
    api_key: Option<&str>,
    target: Option<&str>,
    layout: Option<&str>,
    chunk_tokens: Option<i32>,
    chunk_overlap: Option<i32>,
    splitter: Option<&str>,
    limits: Option<&str>,
    concurrency: Option<i32>,
    batch_size: Option<i32>,
    max_attempts: Option<i32>,
    index: Option<&str>,
    on_success: Option<&str>,
    request: Option<JsonB>,
    language: Option<&str>,
) {
    let request = request.map(|JsonB(value)| value.to_string());
    hide_misplaced_key(api_key, base_url, request.as_deref());
    refuse_if_read_only(c"ingest.create_pipeline()");
    let name = name.unwrap_or_default();
    check_name(name).or_raise();
    let model = parse_model(model.unwrap_or("local/all-MiniLM-L6-v2")).or_raise();
    let layout = Layout::named(layout.unwrap_or("chunks")).or_raise();
    // SAFETY: a plain read, and a catalog look-up inside a transaction.
    let (owner, trusted) = unsafe { (pg_sys::GetUserId(), pg_sys::superuser()) };
    let [base_url, api_key, limits] = [base_url, api_key, limits].map(|given| cleared(given, None));
    let connection = Connection {
        base_url,
        trusted: trusted && base_url.is_some(),
        api_key,
        request: request.as_deref(),
        limits,
        owner,
    };
    let described = Described::new(&model, &connection).or_raise();
    let dimensions = described.dimensions(&model, dimensions).or_raise();
    let chunk_tokens = chunk_tokens.unwrap_or(described.default_chunk);
    let settings = Settings {
        splitter: splitter.unwrap_or("text"),
        chunk_tokens,
        chunk_overlap: chunk_overlap.unwrap_or(chunk_tokens / DEFAULT_OVERLAP_SHARE),
        concurrency: concurrency.unwrap_or(DEFAULT_CONCURRENCY),
        batch_size,
        max_attempts: max_attempts.unwrap_or(5),
        index: index.unwrap_or("deferred"),
        on_success: on_success.unwrap_or("keep"),
    };
    settings.check(&model, &described).or_raise();
    let language = targets::language(language.unwrap_or("simple")).or_raise();
    refuse_duplicate(name).or_raise();
    if let Some(limit) = limits {
        use_limit(limit, settings.chunk_tokens).or_raise();
    }

    let table = target_for(layout, name, target).or_raise();
    let table_oid = create_or_check_target(&table, target.is_some(), layout, dimensions).or_raise();
    if settings.index == "immediate" {
        create_indexes(table_oid, layout, &language);
    }
    // Chunks that are in an existing table already belong to documents that may be replaced later.
    let quoted = quote_qualified_identifier(&table.0, &table.1);
    let (chunks, tokens) = Spi::get_two::<i64, i64>(&layout.count(&quoted)).or_raise();
    let _acting = ActingAs::extension_owner();
    Spi::run_with_args(
        "WITH made AS (
             INSERT INTO ingest.pipeline (name, owner, model, dimensions, target, layout, chunk_tokens, chunk_overlap,
                                          splitter, concurrency, batch_size, max_attempts, index, on_success,
                                          base_url, trusted, api_key, request, limits, language)
             VALUES ($1, $2, $3, $4, $5, $21, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17::jsonb, $18, $22)
             RETURNING pipeline_id)
         INSERT INTO ingest.counter (pipeline_id, chunks, tokens) SELECT pipeline_id, $19, $20 FROM made",
        &[
            name.into(),
            owner.into(),
            model.to_string().into(),
            dimensions.into(),
            table_oid.into(),
            settings.chunk_tokens.into(),
            settings.chunk_overlap.into(),
            settings.splitter.into(),
            settings.concurrency.into(),
            settings.batch_size.into(),
            settings.max_attempts.into(),
            settings.index.into(),
            settings.on_success.into(),
            connection.base_url.into(),
            connection.trusted.into(),
            connection.api_key.into(),
            connection.request.into(),
            connection.limits.into(),
            chunks.into(),
            tokens.into(),
            layout.name().into(),
            language.into(),
        ],
    )
    .or_raise();
    wake::at_commit();
}

fn check_name(name: &str) -> Result<(), UserError> {
    if name.trim().is_empty() {
        return Err(UserError::invalid("a pipeline needs a name")
            .hint("Without a name, create_pipeline() makes the pipeline 'default'."));
    }
    if name.len() > MAX_NAME {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_NAME_TOO_LONG,
            "the name of a pipeline has at most 63 bytes",
        )
        .detail(format!("{name:?} has {}.", name.len())));
    }
    Ok(())
}

fn refuse_duplicate(name: &str) -> Result<(), UserError> {
    let _acting = ActingAs::extension_owner();
    let exists = Spi::get_one_with_args::<bool>(
        "SELECT EXISTS (SELECT FROM ingest.pipeline WHERE name = $1)",
        &[name.into()],
    )
    .or_raise();
    if exists == Some(true) {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("pipeline {name:?} already exists"),
        )
        .hint(
            "Change it with ingest.alter_pipeline(), or remove it with ingest.drop_pipeline().",
        ));
    }
    Ok(())
}

/// What is given, else what there is; an empty text takes it away.
pub(super) fn cleared<'a>(given: Option<&'a str>, present: Option<&'a str>) -> Option<&'a str> {
    given.or(present).filter(|text| !text.is_empty())
}

#[pg_extern(sql = false)]
fn drop_pipeline(name: &str, drop_target: bool) {
    refuse_if_read_only(c"ingest.drop_pipeline()");
    let definition = Definition::to_change(name);
    let successor = definition.successor();
    {
        let _acting = ActingAs::extension_owner();
        Spi::run_with_args(
            "SELECT ingest.remove_pipeline($1)",
            &[definition.pipeline_id.into()],
        )
        .or_raise();
    }
    successor.iter().for_each(drop_table_of);
    if drop_target && let Some(table) = keep_name(definition.target, pg_sys::AccessExclusiveLock) {
        let foreign = if definition.is_foreign() {
            "FOREIGN"
        } else {
            ""
        };
        Spi::run(&format!("DROP {foreign} TABLE {table}")).or_raise();
    }
    wake::at_commit();
}

fn set_paused(name: &str, paused: bool) {
    let definition = Definition::to_change(name);
    if !paused {
        // Whoever resumes knows better than the provider how long to wait.
        // SAFETY: a plain global, set when the backend connected.
        let database = unsafe { pg_sys::MyDatabaseId };
        for definition in definition.successor().iter().chain([&definition]) {
            budgets::end_cool_down(
                database,
                definition.pipeline_id,
                definition.limits.as_deref(),
            );
        }
    }
    let _acting = ActingAs::extension_owner();
    Spi::run_with_args(
        "SELECT ingest.set_paused($1, $2)",
        &[definition.pipeline_id.into(), paused.into()],
    )
    .or_raise();
}

#[pg_extern(sql = false)]
fn pause(pipeline: &str) {
    refuse_if_read_only(c"ingest.pause()");
    set_paused(pipeline, true);
}

#[pg_extern(sql = false)]
fn resume(pipeline: &str) {
    refuse_if_read_only(c"ingest.resume()");
    set_paused(pipeline, false);
}

#[pg_extern(sql = false)]
fn retry(pipeline: Option<&str>, key: Option<&str>, error_class: Option<&str>) -> i64 {
    refuse_if_read_only(c"ingest.retry()");
    let seen: Vec<i32> = match pipeline {
        Some(name) => {
            let definition = Definition::named(name);
            definition.require_access();
            vec![definition.pipeline_id]
        }
        None => access::visible_pipelines(),
    };
    let _acting = ActingAs::extension_owner();
    Spi::get_one_with_args(
        "SELECT ingest.retry_failures($1, $2, $3)",
        &[seen.into(), key.into(), error_class.into()],
    )
    .or_raise()
    .unwrap_or(0)
}
