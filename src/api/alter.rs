//! `alter_pipeline`: what is asked for, and whether it can be had at once, document by document, or by a rebuild.

use embedder::{ModelName, RemoteModel};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Map, Value};

use crate::api::definition::{Definition, parse_model};
use crate::api::limits::use_limit;
use crate::api::models::{Connection, Described, hide_misplaced_key};
use crate::api::pipelines::{
    DEFAULT_CONCURRENCY, DEFAULT_OVERLAP_SHARE, Settings, cleared, refuse_unsupported,
};
use crate::api::rebuild;
use crate::api::targets::{self, change_language, create_indexes, drop_indexes};
use crate::errors::{OrRaise, UserError};
use crate::installed;
use crate::owner::ActingAs;
use crate::reading::refuse_if_read_only;
use crate::wake;

/// Fields of `request` that no stored vector depends on.
const ONLY_QUERIES: [&str; 3] = ["headers", "query_body", "query_prefix"];
/// Fields of a request's body that no vector depends on.
const NO_VECTOR: [&str; 2] = ["encoding_format", "user"];

/// What the user gave.
#[derive(Clone, Copy)]
struct Given<'a> {
    model: Option<&'a str>,
    dimensions: Option<i32>,
    base_url: Option<&'a str>,
    api_key: Option<&'a str>,
    chunk_tokens: Option<i32>,
    chunk_overlap: Option<i32>,
    splitter: Option<&'a str>,
    limits: Option<&'a str>,
    concurrency: Option<i32>,
    batch_size: Option<i32>,
    max_attempts: Option<i32>,
    index: Option<&'a str>,
    on_success: Option<&'a str>,
    request: Option<&'a str>,
    language: Option<&'a str>,
}

impl Given<'_> {
    /// The given arguments that also apply to the definition in use: none that changes chunks or vectors, and connection settings
    /// only where both definitions agree.
    fn shared(self, used: &Definition, to_come: &Definition) -> Result<Self, UserError> {
        let same_provider =
            parse_model(&used.model)?.provider == parse_model(&to_come.model)?.provider;
        let only = |same: bool, given| if same_provider && same { given } else { None };
        Ok(Self {
            model: None,
            dimensions: None,
            chunk_tokens: None,
            chunk_overlap: None,
            splitter: None,
            request: None,
            base_url: only(used.base_url == to_come.base_url, self.base_url),
            api_key: only(used.api_key == to_come.api_key, self.api_key),
            limits: only(used.limits == to_come.limits, self.limits),
            batch_size: self.batch_size.filter(|_| same_provider),
            concurrency: self.concurrency.filter(|_| same_provider),
            ..self
        })
    }
}

/// The definition that is asked for.
pub struct Wanted {
    model: String,
    /// Numbers in a vector.
    pub dimensions: i32,
    base_url: Option<String>,
    trusted: bool,
    api_key: Option<String>,
    request: Option<String>,
    limits: Option<String>,
    chunk_tokens: i32,
    chunk_overlap: i32,
    splitter: String,
    concurrency: Option<i32>,
    batch_size: Option<i32>,
    /// Whether the provider changed, so that the old batch size is dropped.
    forget_batch_size: bool,
    max_attempts: Option<i32>,
    index: Option<String>,
    on_success: Option<String>,
    language: Option<String>,
}

/// What a definition makes differently from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing that is stored.
    Nothing,
    /// Other chunks, of which the vectors can still be compared.
    Chunks,
    /// Vectors that must not be compared with those of before.
    Vectors,
}

impl Wanted {
    /// What is given, and else what there is in `base`, the definition that was asked for last; `original` is the one in use.
    fn new(original: &Definition, base: &Definition, given: Given) -> Result<Self, UserError> {
        let before = parse_model(&base.model)?;
        let model = given.model.map_or(Ok(before.clone()), parse_model)?;
        let same_provider = model.provider == before.provider;
        let base_url = base.base_url.clone().filter(|_| same_provider);
        // A model may have a service of its own, to which the key of another one is not shown unless the user says so.
        let same_place = same_provider
            && (given.base_url.is_some()
                || host_of(&model, base_url.as_deref()) == host_of(&before, base_url.as_deref()));
        let kept = |value: &'_ Option<String>| value.clone().filter(|_| same_place);
        let (api_key, limits) = (kept(&base.api_key), kept(&base.limits));
        let request = kept(&base.request);
        // SAFETY: a catalog look-up inside a transaction.
        let superuser = unsafe { pg_sys::superuser() };
        let connection = Connection {
            base_url: cleared(given.base_url, base_url.as_deref()),
            trusted: given
                .base_url
                .map_or(base.trusted && base_url.is_some(), |url| {
                    superuser && !url.is_empty()
                }),
            api_key: cleared(given.api_key, api_key.as_deref()),
            request: given.request.or(request.as_deref()),
            limits: cleared(given.limits, limits.as_deref()),
            owner: base.owner,
        };
        let described = Described::new(&model, &connection)?;
        let same_model = model == before;
        let dimensions = match given.dimensions {
            None if same_model => base.dimensions,
            wanted => described.dimensions(&model, wanted)?,
        };
        base.layout.check_dimensions(dimensions)?;
        let chunk_tokens = match given.chunk_tokens {
            Some(tokens) => tokens,
            None if same_model => base.chunk_tokens,
            None if base.chunk_tokens == default_chunk(base, &before)? => described.default_chunk,
            None => base.chunk_tokens.min(described.longest_chunk),
        };
        let chunk_overlap = match given.chunk_overlap {
            Some(overlap) => overlap,
            None if chunk_tokens == base.chunk_tokens => base.chunk_overlap,
            None if chunk_tokens == original.chunk_tokens => original.chunk_overlap,
            // A smaller chunk takes its overlap along; one that is the model's own has its own.
            None if given.chunk_tokens.is_none() => chunk_tokens / DEFAULT_OVERLAP_SHARE,
            None => base.chunk_overlap.min(chunk_tokens / DEFAULT_OVERLAP_SHARE),
        };
        let splitter = given.splitter.unwrap_or(&base.splitter);
        Settings {
            splitter,
            chunk_tokens,
            chunk_overlap,
            concurrency: given.concurrency.unwrap_or(DEFAULT_CONCURRENCY),
            batch_size: given.batch_size,
            max_attempts: given.max_attempts.unwrap_or(1),
            index: given.index.unwrap_or("none"),
            on_success: given.on_success.unwrap_or("keep"),
        }
        .check(&model, &described)?;
        if let Some(limit) = connection.limits {
            use_limit(limit, chunk_tokens)?;
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self {
            model: model.to_string(),
            dimensions,
            base_url: owned(connection.base_url),
            trusted: connection.trusted,
            api_key: owned(connection.api_key),
            request: owned(connection.request),
            limits: owned(connection.limits),
            chunk_tokens,
            chunk_overlap,
            splitter: splitter.to_owned(),
            concurrency: given.concurrency,
            batch_size: given.batch_size,
            forget_batch_size: !same_provider,
            max_attempts: given.max_attempts,
            index: owned(given.index),
            on_success: owned(given.on_success),
            language: owned(given.language),
        })
    }

    /// What it makes differently from a definition.
    pub fn change_from(&self, before: &Definition) -> Change {
        let requests = [&before.request, &self.request].map(|r| vector_fields(r.as_deref()));
        if self.model != before.model
            || self.dimensions != before.dimensions
            || requests[0] != requests[1]
        {
            Change::Vectors
        } else if self.chunk_tokens != before.chunk_tokens
            || self.chunk_overlap != before.chunk_overlap
            || self.splitter != before.splitter
        {
            Change::Chunks
        } else {
            Change::Nothing
        }
    }

    /// What is asked to become of embedded documents.
    pub fn on_success(&self) -> Option<&str> {
        self.on_success.as_deref()
    }

    /// The language of the full-text index, if another one is asked for.
    pub fn language(&self) -> Option<&str> {
        self.language.as_deref()
    }

    /// Writes it to a row of `ingest.pipeline`, but for its target.
    pub fn write(&self, pipeline_id: i32) {
        let _acting = ActingAs::extension_owner();
        Spi::run_with_args(
            "UPDATE ingest.pipeline
             SET model = $15, dimensions = $16,
                 chunk_tokens = $2, chunk_overlap = $3, splitter = $4,
                 batch_size = CASE WHEN $17 THEN $5 ELSE coalesce($5, batch_size) END,
                 max_attempts = coalesce($6, max_attempts), index = coalesce($7, index), on_success = coalesce($8, on_success),
                 concurrency = coalesce($9, concurrency), base_url = $10, trusted = $11, api_key = $12, request = $13::jsonb, limits = $14,
                 language = coalesce($18, language),
                 -- Another place may make other vectors: those in the target are not mixed with them.
                 reuses = reuses AND base_url IS NOT DISTINCT FROM $10
             WHERE pipeline_id = $1",
            &[
                pipeline_id.into(),
                self.chunk_tokens.into(),
                self.chunk_overlap.into(),
                self.splitter.as_str().into(),
                self.batch_size.into(),
                self.max_attempts.into(),
                self.index.as_deref().into(),
                self.on_success.as_deref().into(),
                self.concurrency.into(),
                self.base_url.as_deref().into(),
                self.trusted.into(),
                self.api_key.as_deref().into(),
                self.request.as_deref().into(),
                self.limits.as_deref().into(),
                self.model.as_str().into(),
                self.dimensions.into(),
                self.forget_batch_size.into(),
                self.language.as_deref().into(),
            ],
        )
        .or_raise();
    }
}

/// Where a model is; `None` for a local one, and where there can be none.
fn host_of(model: &ModelName, base_url: Option<&str>) -> Option<String> {
    let described = RemoteModel::describe(model, base_url, None).ok()?;
    Some(described.endpoint.host())
}

/// The chunk that a definition's model has where the user says nothing; none when the model cannot be looked at any more.
fn default_chunk(definition: &Definition, model: &ModelName) -> Result<i32, UserError> {
    let connection = Connection {
        base_url: definition.base_url.as_deref(),
        trusted: definition.trusted,
        api_key: definition.api_key.as_deref(),
        request: definition.request.as_deref(),
        limits: definition.limits.as_deref(),
        owner: definition.owner,
    };
    Ok(Described::new(model, &connection).map_or(0, |described| described.default_chunk))
}

/// The part of `request` that stored vectors depend on.
fn vector_fields(request: Option<&str>) -> Map<String, Value> {
    let Some(Ok(Value::Object(mut fields))) = request.map(serde_json::from_str) else {
        return Map::new();
    };
    fields.retain(|name, _| !ONLY_QUERIES.contains(&name.as_str()));
    for value in fields.values_mut() {
        if let Value::Object(body) = value {
            body.retain(|name, _| !NO_VECTOR.contains(&name.as_str()));
        }
    }
    fields.retain(|_, value| value != &Value::Object(Map::new()));
    fields
}

/// What 0.1.0's SQL calls.
#[pg_extern(sql = false)]
fn alter_pipeline() {
    installed::refuse_former(c"ingest.alter_pipeline()");
}

#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn alter_pipeline_0_2(
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
    refuse_if_read_only(c"ingest.alter_pipeline()");
    let definition = Definition::to_change(name.unwrap_or_default());
    refuse_unsupported(&[
        ("changing the target of a pipeline", target.is_some()),
        (
            "changing the layout of a pipeline",
            layout.is_some_and(|l| l != definition.layout.name()),
        ),
    ])
    .map_err(|error| error.hint("Create another pipeline, and drop this one when that is done."))
    .or_raise();
    let language = language.map(|name| targets::language(name).or_raise());
    let given = Given {
        model,
        dimensions,
        base_url,
        api_key,
        chunk_tokens,
        chunk_overlap,
        splitter,
        limits,
        concurrency,
        batch_size,
        max_attempts,
        index,
        on_success,
        request: request.as_deref(),
        language: language.as_deref(),
    };
    let successor = definition.successor();
    // Back to the model in use is back to all that belongs to it.
    let base = successor
        .as_ref()
        .filter(|_| model != Some(definition.model.as_str()))
        .unwrap_or(&definition);
    let wanted = Wanted::new(&definition, base, given).or_raise();
    let change = wanted.change_from(&definition);
    match (change, successor) {
        (Change::Nothing, successor) => {
            if successor.is_some() {
                rebuild::drop_successor(&definition);
                notice!("the rebuild is given up: this is the definition in use");
            }
            wanted.write(definition.pipeline_id);
            arrange_indexes(&definition, index, given.language);
        }
        (_, Some(successor)) if wanted.change_from(&successor) == Change::Nothing => {
            rebuild::refuse_deleting(on_success).or_raise();
            wanted.write(successor.pipeline_id);
            let shared = given.shared(&definition, &successor).or_raise();
            Wanted::new(&definition, &definition, shared)
                .or_raise()
                .write(definition.pipeline_id);
            arrange_indexes(&definition, index, given.language);
            rebuild::change_language_of(&successor, successor.target, given.language);
        }
        (change, successor) => {
            if successor.is_some() {
                rebuild::drop_successor(&definition);
            }
            rebuild::begin(&definition, &wanted, change);
        }
    }
    wake::review_at_commit();
}

/// Builds or drops the indexes of the table in use, where that was asked for.
fn arrange_indexes(definition: &Definition, index: Option<&str>, language: Option<&str>) {
    let (table, layout) = (definition.target, definition.layout);
    let language = language.unwrap_or(&definition.language);
    change_language(table, layout, &definition.language, language);
    match index {
        Some("immediate") => create_indexes(table, layout, language),
        Some("none") if definition.index != "none" => {
            drop_indexes(table, layout, language);
        }
        _ => {}
    }
}
