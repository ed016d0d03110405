//! `create_pipeline`, `alter_pipeline`, `drop_pipeline`, `pause`, `resume`.

use chunker::{SplitOptions, Splitter};
use embedder::local::LocalModel;
use embedder::{EmbedError, ModelName, Provider};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::quote_qualified_identifier;

use crate::api::targets::{
    MAX_HALFVEC_DIMENSIONS, create_index, create_or_check_target, drop_indexes, table_name,
    target_for,
};
use crate::api::text::parse_model;
use crate::errors::{OrRaise, UserError};
use crate::owner::ActingAs;
use crate::{settings, wake};

/// Longest identifier in bytes (NAMEDATALEN - 1).
pub const MAX_NAME: usize = 63;
/// Inputs in a request at most: what OpenAI's embeddings endpoint takes (API reference, 2025).
const MAX_BATCH_SIZE: i32 = 2048;
/// One in so many tokens of a chunk is shared with its neighbour by default.
const DEFAULT_OVERLAP_SHARE: i32 = 10;
/// The default of `concurrency` in the SQL signature.
const DEFAULT_CONCURRENCY: i32 = 10;

/// A pipeline as SQL functions need it.
pub struct Definition {
    /// Its number.
    pub pipeline_id: i32,
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: pg_sys::Oid,
    /// Its model.
    pub model: String,
    target: pg_sys::Oid,
    chunk_tokens: i32,
    chunk_overlap: i32,
    splitter: String,
    index: String,
}

impl Definition {
    /// The pipeline with this name; raises `42704` with the names there are when there is none.
    pub fn named(name: &str) -> Self {
        Self::read("SELECT * FROM ingest.pipeline_named($1)", name.into())
            .unwrap_or_else(|| unreachable!("pipeline_named() returns a row or raises"))
    }

    /// The pipeline with this number.
    pub fn numbered(pipeline_id: i32) -> Option<Self> {
        Self::read(
            "SELECT * FROM ingest.pipeline WHERE pipeline_id OPERATOR(pg_catalog.=) $1",
            pipeline_id.into(),
        )
    }

    fn read(query: &str, argument: DatumWithOid) -> Option<Self> {
        Spi::connect(|client| {
            let row = client.select(query, Some(1), &[argument])?.first();
            if row.is_empty() {
                return Ok::<_, pgrx::spi::Error>(None);
            }
            let text = |column: &str| -> Result<String, pgrx::spi::Error> {
                Ok(row.get_by_name::<String, _>(column)?.unwrap_or_default())
            };
            let number = |column: &str| -> Result<i32, pgrx::spi::Error> {
                Ok(row.get_by_name::<i32, _>(column)?.unwrap_or_default())
            };
            let oid = |column: &str| -> Result<pg_sys::Oid, pgrx::spi::Error> {
                Ok(row
                    .get_datum_by_name(column)?
                    .map_or(pg_sys::InvalidOid, |d| pg_sys::Oid::from(d.value() as u32)))
            };
            Ok(Some(Self {
                pipeline_id: number("pipeline_id")?,
                name: text("name")?,
                owner: oid("owner")?,
                model: text("model")?,
                target: oid("target")?,
                chunk_tokens: number("chunk_tokens")?,
                chunk_overlap: number("chunk_overlap")?,
                splitter: text("splitter")?,
                index: text("index")?,
            }))
        })
        .or_raise()
    }

    /// How it splits.
    pub fn split_options(&self) -> SplitOptions {
        SplitOptions {
            splitter: self.splitter.parse().unwrap_or(Splitter::Text),
            chunk_tokens: self.chunk_tokens as usize,
            chunk_overlap: self.chunk_overlap as usize,
        }
    }

    /// Its target's name, quoted for SQL; `None` when the table was dropped.
    pub fn target_name(&self) -> Option<String> {
        table_name(self.target).map(|(schema, table)| quote_qualified_identifier(schema, table))
    }

    /// Raises `42501` unless the current user owns it.
    pub fn require_ownership(&self) {
        // SAFETY: catalog look-ups inside a transaction.
        let owns = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), self.owner) };
        if !owns {
            UserError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be owner of pipeline {:?}", self.name),
            )
            .raise();
        }
    }
}

/// What is checked of every definition, whether it is new or changed.
struct Settings<'a> {
    splitter: &'a str,
    chunk_tokens: i32,
    chunk_overlap: i32,
    concurrency: i32,
    batch_size: Option<i32>,
    max_attempts: i32,
    index: &'a str,
    on_success: &'a str,
}

impl Settings<'_> {
    fn check(&self, model: &ModelName, longest_chunk: i32) -> Result<(), UserError> {
        self.splitter.parse::<Splitter>().map_err(|error| {
            UserError::invalid(error.to_string()).hint("splitter is text, markdown or none.")
        })?;
        one_of("index", self.index, &["none", "immediate", "deferred"])?;
        one_of("on_success", self.on_success, &["keep", "delete"])?;
        in_range("max_attempts", self.max_attempts, 1, 1000)?;
        if let Some(size) = self.batch_size {
            in_range("batch_size", size, 1, MAX_BATCH_SIZE)?;
        }
        if self.concurrency != DEFAULT_CONCURRENCY && model.provider == Provider::Local {
            return Err(
                UserError::unsupported("concurrency for a local model").hint(
                    "The setting pg_ingest.model_threads bounds what local models run at once.",
                ),
            );
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
        if self.chunk_overlap < 0 || self.chunk_overlap >= self.chunk_tokens {
            return Err(UserError::invalid(
                "chunk_overlap must be at least 0 and less than chunk_tokens",
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

/// Dimensions of a model's vectors and the tokens of the longest chunk that it reads.
fn describe(model: &ModelName) -> Result<(i32, i32), UserError> {
    if model.provider != Provider::Local {
        return Err(
            UserError::unsupported(&format!("provider {}", model.provider.as_str()))
                .hint("Local models work today, for example local/all-MiniLM-L6-v2."),
        );
    }
    let directory = settings::model_dir().join(&model.name);
    // Describing may load the model, and that starts threads.
    let described = engine::run_with_signals_blocked(|| LocalModel::describe(&directory))
        .unwrap_or_else(|| {
            Err(EmbedError::model_unusable(
                "the model could not be examined",
            ))
        });
    let info = described.map_err(|error| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
            format!("model {model} cannot be used"),
        )
        .detail(error.message)
        .hint(error.hint.unwrap_or_else(|| {
            "Install it below pg_ingest.model_dir: `make model` in the source tree does it for \
             local/all-MiniLM-L6-v2."
                .into()
        }))
    })?;
    let longest = info
        .max_tokens
        .saturating_sub(info.tokenizer.special_tokens());
    Ok((info.dimensions as i32, longest as i32))
}

fn refuse_unsupported(arguments: &[(&str, bool)]) -> Result<(), UserError> {
    match arguments.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(UserError::unsupported(name)),
        None => Ok(()),
    }
}

#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn create_pipeline(
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
) {
    let name = name.unwrap_or_default();
    check_name(name).or_raise();
    let model = parse_model(model.unwrap_or("local/all-MiniLM-L6-v2")).or_raise();
    refuse_unsupported(&[
        ("base_url", base_url.is_some()),
        ("api_key", api_key.is_some()),
        ("limits", limits.is_some()),
    ])
    .or_raise();
    check_layout(layout.unwrap_or("chunks")).or_raise();
    let (model_dimensions, longest_chunk) = describe(&model).or_raise();
    if dimensions.is_some_and(|wanted| wanted != model_dimensions) {
        UserError::invalid(format!("model {model} has {model_dimensions} dimensions"))
            .detail(format!("dimensions is {}.", dimensions.unwrap_or_default()))
            .hint("Leave dimensions out to use the model's own.")
            .raise();
    }
    if model_dimensions > MAX_HALFVEC_DIMENSIONS {
        UserError::unsupported(&format!("a model of {model_dimensions} dimensions")).raise();
    }
    let chunk_tokens = chunk_tokens.unwrap_or(longest_chunk);
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
    settings.check(&model, longest_chunk).or_raise();
    refuse_duplicate(name).or_raise();

    let table = target_for(name, target).or_raise();
    let table_oid = create_or_check_target(&table, model_dimensions).or_raise();
    if settings.index == "immediate" {
        create_index(table_oid);
    }
    // SAFETY: a plain read.
    let owner = unsafe { pg_sys::GetUserId() };
    // Chunks that are in an existing table already belong to documents that may be replaced later.
    let (chunks, tokens) = Spi::get_two::<i64, i64>(&format!(
        "SELECT count(*), coalesce(sum(tokens), 0)::bigint FROM {}",
        quote_qualified_identifier(&table.0, &table.1)
    ))
    .or_raise();
    let _acting = ActingAs::extension_owner();
    Spi::run_with_args(
        "WITH made AS (
             INSERT INTO ingest.pipeline (name, owner, model, dimensions, target, layout, chunk_tokens, chunk_overlap,
                                          splitter, concurrency, batch_size, max_attempts, index, on_success)
             VALUES ($1, $2, $3, $4, $5, 'chunks', $6, $7, $8, $9, $10, $11, $12, $13)
             RETURNING pipeline_id)
         INSERT INTO ingest.counter (pipeline_id, chunks, tokens) SELECT pipeline_id, $14, $15 FROM made",
        &[
            name.into(),
            owner.into(),
            model.to_string().into(),
            model_dimensions.into(),
            table_oid.into(),
            settings.chunk_tokens.into(),
            settings.chunk_overlap.into(),
            settings.splitter.into(),
            settings.concurrency.into(),
            settings.batch_size.into(),
            settings.max_attempts.into(),
            settings.index.into(),
            settings.on_success.into(),
            chunks.into(),
            tokens.into(),
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

fn check_layout(layout: &str) -> Result<(), UserError> {
    one_of("layout", layout, &["chunks", "vecs"])?;
    if layout == "vecs" {
        return Err(UserError::unsupported("layout vecs"));
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

#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn alter_pipeline(
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
) {
    let definition = Definition::named(name.unwrap_or_default());
    definition.require_ownership();
    let parsed = parse_model(&definition.model).or_raise();
    refuse_unsupported(&[
        (
            "changing the model of a pipeline",
            model.is_some_and(|m| m != definition.model),
        ),
        (
            "changing the dimensions of a pipeline",
            dimensions.is_some(),
        ),
        ("base_url", base_url.is_some()),
        ("api_key", api_key.is_some()),
        ("changing the target of a pipeline", target.is_some()),
        (
            "changing the layout of a pipeline",
            layout.is_some_and(|l| l != "chunks"),
        ),
        ("limits", limits.is_some()),
    ])
    .map_err(|error| error.hint("Create another pipeline, and drop this one when that is done."))
    .or_raise();
    let (_, longest_chunk) = describe(&parsed).or_raise();
    let new_tokens = chunk_tokens.unwrap_or(definition.chunk_tokens);
    // A smaller chunk takes its overlap along when none is given.
    let new_overlap = chunk_overlap.unwrap_or_else(|| {
        if chunk_tokens.is_some() {
            definition
                .chunk_overlap
                .min(new_tokens / DEFAULT_OVERLAP_SHARE)
        } else {
            definition.chunk_overlap
        }
    });
    Settings {
        splitter: splitter.unwrap_or(&definition.splitter),
        chunk_tokens: new_tokens,
        chunk_overlap: new_overlap,
        concurrency: concurrency.unwrap_or(DEFAULT_CONCURRENCY),
        batch_size,
        max_attempts: max_attempts.unwrap_or(1),
        index: index.unwrap_or("none"),
        on_success: on_success.unwrap_or("keep"),
    }
    .check(&parsed, longest_chunk)
    .or_raise();

    match index {
        Some("immediate") => create_index(definition.target),
        Some("none") if definition.index != "none" => drop_indexes(definition.target),
        _ => {}
    }
    let resplit = new_tokens != definition.chunk_tokens
        || new_overlap != definition.chunk_overlap
        || splitter.is_some_and(|s| s != definition.splitter);
    let _acting = ActingAs::extension_owner();
    // First the documents and the queue, then the definition: the order in which a worker locks.
    if resplit {
        let queued: Option<i64> = Spi::get_one_with_args(
            "SELECT ingest.requeue_all($1)",
            &[definition.pipeline_id.into()],
        )
        .or_raise();
        if let Some(queued @ 1..) = queued {
            notice!(
                "{queued} documents are queued to be split anew; their old chunks serve until then"
            );
        }
    }
    Spi::run_with_args(
        "UPDATE ingest.pipeline
         SET chunk_tokens = $2, chunk_overlap = $3, splitter = coalesce($4, splitter), batch_size = coalesce($5, batch_size),
             max_attempts = coalesce($6, max_attempts), index = coalesce($7, index), on_success = coalesce($8, on_success)
         WHERE pipeline_id = $1",
        &[
            definition.pipeline_id.into(),
            new_tokens.into(),
            new_overlap.into(),
            splitter.into(),
            batch_size.into(),
            max_attempts.into(),
            index.into(),
            on_success.into(),
        ],
    )
    .or_raise();
    wake::at_commit();
}

#[pg_extern(sql = false)]
fn drop_pipeline(name: &str, drop_target: bool) {
    let definition = Definition::named(name);
    definition.require_ownership();
    {
        let _acting = ActingAs::extension_owner();
        Spi::run_with_args(
            "SELECT ingest.remove_pipeline($1)",
            &[definition.pipeline_id.into()],
        )
        .or_raise();
    }
    if drop_target && let Some(table) = definition.target_name() {
        Spi::run(&format!("DROP TABLE {table}")).or_raise();
    }
    wake::at_commit();
}

fn set_paused(name: &str, paused: bool) {
    let definition = Definition::named(name);
    definition.require_ownership();
    let _acting = ActingAs::extension_owner();
    Spi::run_with_args(
        "SELECT ingest.set_paused($1, $2)",
        &[definition.pipeline_id.into(), paused.into()],
    )
    .or_raise();
}

#[pg_extern(sql = false)]
fn pause(pipeline: &str) {
    set_paused(pipeline, true);
}

#[pg_extern(sql = false)]
fn resume(pipeline: &str) {
    set_paused(pipeline, false);
}

#[pg_extern(sql = false)]
fn retry(pipeline: Option<&str>, key: Option<&str>, error_class: Option<&str>) -> i64 {
    let owned: Vec<i32> = match pipeline {
        Some(name) => {
            let definition = Definition::named(name);
            definition.require_ownership();
            vec![definition.pipeline_id]
        }
        None => owned_pipelines(),
    };
    let _acting = ActingAs::extension_owner();
    Spi::get_one_with_args(
        "SELECT ingest.retry_failures($1, $2, $3)",
        &[owned.into(), key.into(), error_class.into()],
    )
    .or_raise()
    .unwrap_or(0)
}

/// The pipelines that the current user owns.
fn owned_pipelines() -> Vec<i32> {
    // SAFETY: a plain read.
    let user = unsafe { pg_sys::GetUserId() };
    let _acting = ActingAs::extension_owner();
    Spi::get_one_with_args(
        "SELECT coalesce(array_agg(pipeline_id), '{}') FROM ingest.pipeline WHERE pg_has_role($1, owner::oid, 'USAGE')",
        &[user.into()],
    )
    .or_raise()
    .unwrap_or_default()
}
