//! `count_tokens` and `split`: what the worker would count and cut.

use std::cell::RefCell;
use std::collections::HashMap;

use chunker::{SplitOptions, Tokenizer};
use embedder::local::LocalModel;
use embedder::{ModelName, Provider, catalogue};
use pgrx::prelude::*;

use crate::api::definition::{Definition, parse_model};
use crate::api::models::unusable;
use crate::errors::{OrRaise, UserError};
use crate::installed::{Installed, installed};
use crate::settings;

thread_local! {
    /// Tokenizers of this backend by model, since reading one takes some tens of milliseconds.
    static TOKENIZERS: RefCell<HashMap<String, Tokenizer>> = RefCell::default();
}

/// The tokenizer of a model.
pub fn tokenizer(model: &ModelName) -> Result<Tokenizer, UserError> {
    let name = model.to_string();
    if let Some(known) = TOKENIZERS.with_borrow(|known| known.get(&name).cloned()) {
        return Ok(known);
    }
    let fresh = match model.provider {
        Provider::Local => {
            let directory = settings::model_dir().join(&model.name);
            LocalModel::check_files(&directory).map_err(|error| unusable(model, error))?;
            Tokenizer::from_file(&directory.join("tokenizer.json"))
        }
        _ => {
            let encoding = catalogue::lookup(model)
                .and_then(|info| info.encoding.as_deref())
                .ok_or_else(|| {
                    UserError::invalid(format!("the tokenizer of model {model} is not known")).hint(
                        "Known are those of OpenAI's embedding models and of every local model.",
                    )
                })?;
            Tokenizer::tiktoken(encoding)
        }
    }
    .map_err(|error| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
            format!("the tokenizer of model {model} cannot be used"),
        )
        .detail(error.to_string())
    })?;
    TOKENIZERS.with_borrow_mut(|known| known.insert(name, fresh.clone()));
    Ok(fresh)
}

/// The tokenizer by which a pipeline's documents are split, and how many tokens every input has besides its chunk's.
pub fn pipeline_tokenizer(definition: &Definition) -> Result<(Tokenizer, usize), UserError> {
    match definition.remote()? {
        None => {
            let tokenizer = tokenizer(&parse_model(&definition.model)?)?;
            let extra = tokenizer.special_tokens();
            Ok((tokenizer, extra))
        }
        Some(remote) => {
            let tokenizer = Tokenizer::tiktoken(remote.encoding)
                .map_err(|error| UserError::invalid(error.to_string()))?;
            let extra = tokenizer.count(remote.document_prefix());
            Ok((tokenizer, extra))
        }
    }
}

/// Tokenizing cannot be interrupted, so what no worker would take is not begun here either.
fn refuse_huge(input: &str) {
    let limit = settings::max_document_size();
    if input.len() > limit {
        UserError::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "the text is larger than pg_ingest.max_document_size",
        )
        .detail(format!(
            "It has {} bytes, the limit is {limit}.",
            input.len()
        ))
        .raise();
    }
}

#[pg_extern(sql = false)]
fn count_tokens(input: &str, model: &str) -> i32 {
    refuse_huge(input);
    let tokenizer = parse_model(model).and_then(|m| tokenizer(&m)).or_raise();
    i32::try_from(tokenizer.count(input)).unwrap_or(i32::MAX)
}

#[pg_extern(sql = false)]
fn split(
    input: &str,
    pipeline: &str,
) -> TableIterator<
    'static,
    (
        name!(chunk_no, i32),
        name!(content, String),
        name!(tokens, i32),
    ),
> {
    refuse_huge(input);
    let definition = Definition::named(pipeline);
    definition.require_use();
    let (tokenizer, _) = pipeline_tokenizer(&definition).or_raise();
    let options: SplitOptions = definition.split_options();
    let chunks = chunker::split(input, &options, &tokenizer)
        .map_err(|error| {
            UserError::new(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                error.to_string(),
            )
        })
        .or_raise();
    let rows: Vec<_> = chunks
        .iter()
        .enumerate()
        .map(|(number, chunk)| (number as i32, chunk.text.to_owned(), chunk.tokens as i32))
        .collect();
    TableIterator::new(rows)
}

#[pg_extern(sql = false)]
fn cost_usd(model: &str, tokens: i64) -> Option<AnyNumeric> {
    cost_of(model, tokens)
}

/// What so many tokens cost, in US dollars; `None` when the price is not known.
pub fn cost_of(model: &str, tokens: i64) -> Option<AnyNumeric> {
    let model: ModelName = model.parse().ok()?;
    if model.provider == Provider::Local {
        return Some(AnyNumeric::from(0));
    }
    let price = catalogue::lookup(&model)?.price_usd_per_million_tokens;
    let micro_dollars = (price * tokens as f64).round() as i64;
    Some(
        (AnyNumeric::from(micro_dollars) / AnyNumeric::from(1_000_000))
            .rescale::<14, 6>()
            .ok()?
            .into(),
    )
}

#[pg_extern(sql = false)]
fn pipeline_problem(pipeline: &str) -> Option<String> {
    // The doctor of an earlier release asks, too.
    if let Installed::Other(problem) = installed() {
        return Some(problem);
    }
    let definition = Definition::named(pipeline);
    definition.require_access();
    definition.problem()
}
