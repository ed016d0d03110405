//! What holds for a pipeline's model: its dimensions, the chunks that it reads, and how it may be reached.

use chunker::Tokenizer;
use embedder::key::KeyReference;
use embedder::local::LocalModel;
use embedder::{EmbedError, ModelName, Provider, RemoteModel};
use pgrx::prelude::*;

use crate::api::targets::MAX_HALFVEC_DIMENSIONS;
use crate::errors::{UserError, keep_statement_out_of_log};
use crate::{access, settings};

/// Inputs in a request at most: what OpenAI's embeddings endpoint takes (API reference, 2025).
const MAX_BATCH_SIZE: i32 = 2048;
/// What holds for a pipeline's model.
pub struct Described {
    /// Numbers in a vector; `None` when only the user can tell.
    dimensions: Option<i32>,
    /// The longest chunk that the model reads, in tokens.
    pub longest_chunk: i32,
    /// Tokens of a chunk unless the user says otherwise.
    pub default_chunk: i32,
    /// Inputs of a request at most.
    pub most_inputs: i32,
    remote: Option<RemoteModel>,
}

impl Described {
    /// Looks it up; refuses what the pipeline's owner may not do.
    pub fn new(model: &ModelName, connection: &Connection) -> Result<Self, UserError> {
        match model.provider {
            Provider::Local => {
                connection.refuse_for_local(model)?;
                describe_local(model)
            }
            _ => describe_remote(model, connection),
        }
    }

    /// The dimensions of a pipeline whose user wants `wanted`.
    pub fn dimensions(&self, model: &ModelName, wanted: Option<i32>) -> Result<i32, UserError> {
        let info = self.remote.as_ref().and_then(|remote| remote.info);
        let dimensions = match (wanted, self.dimensions) {
            (None, Some(own)) => own,
            (None, None) => {
                return Err(UserError::invalid(format!(
                    "the dimensions of model {model} are not known"
                ))
                .hint("Say how many numbers its vectors have: dimensions => 1024."));
            }
            (Some(wanted), Some(own)) if wanted != own => {
                let allowed = usize::try_from(wanted)
                    .is_ok_and(|wanted| info.is_some_and(|info| info.allows_dimensions(wanted)));
                if !allowed {
                    return Err(
                        UserError::invalid(format!("model {model} has {own} dimensions"))
                            .detail(format!("dimensions is {wanted}."))
                            .hint("Leave dimensions out to use the model's own."),
                    );
                }
                wanted
            }
            (Some(wanted), _) => wanted,
        };
        if !(1..=MAX_HALFVEC_DIMENSIONS).contains(&dimensions) {
            return Err(UserError::invalid(format!(
                "dimensions must be between 1 and {MAX_HALFVEC_DIMENSIONS}"
            ))
            .detail(format!("It is {dimensions}.")));
        }
        Ok(dimensions)
    }
}

/// How a pipeline reaches its model, as the user gives it.
pub struct Connection<'a> {
    /// Where its model is; `None` for its provider's own place.
    pub base_url: Option<&'a str>,
    /// Whether a superuser has set it.
    pub trusted: bool,
    /// The reference to its key.
    pub api_key: Option<&'a str>,
    /// Extra headers and fields of its requests, as JSON.
    pub request: Option<&'a str>,
    /// The limit that it names.
    pub limits: Option<&'a str>,
    /// The pipeline's owner.
    pub owner: pg_sys::Oid,
}

/// Keeps a key that is given by mistake, where a reference to it or something else belongs, out of the server's log. Before
/// anything else is found wrong with the statement.
pub fn hide_misplaced_key(api_key: Option<&str>, base_url: Option<&str>, request: Option<&str>) {
    let given = |text: &&str| !text.is_empty();
    let no_reference = |text: &str| text.parse::<KeyReference>().is_err();
    if api_key.filter(given).is_some_and(no_reference)
        || embedder::remote::may_hold_key(base_url.filter(given), request)
    {
        keep_statement_out_of_log();
    }
}

impl Connection<'_> {
    fn refuse_for_local(&self, model: &ModelName) -> Result<(), UserError> {
        for (name, given) in [
            ("base_url", self.base_url.is_some()),
            ("api_key", self.api_key.is_some()),
            ("request", self.request.is_some()),
            ("limits", self.limits.is_some()),
        ] {
            if given {
                return Err(UserError::invalid(format!(
                    "{name} has no meaning for model {model}, which runs in the database"
                ))
                .hint(format!("Leave {name} out, or name a remote model.")));
            }
        }
        Ok(())
    }
}

/// The model is not installed at all, as after a package without it.
const HINT_NO_MODEL: &str = "local/all-MiniLM-L6-v2 comes with `make install` and with packages that were not made with \
    MODEL=no: copy its directory below pg_ingest.model_dir from there. Any other local model is a directory there that \
    holds model.onnx and tokenizer.json. A remote one (model => 'openai/…') needs no files.";

/// Why a local model cannot be used, and where it would be.
pub fn unusable(model: &ModelName, error: EmbedError) -> UserError {
    let is_there = settings::model_dir().join(&model.name).is_dir();
    UserError::new(
        PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
        format!("model {model} cannot be used"),
    )
    .detail(error.message)
    .hint(match error.hint {
        Some(hint) if is_there => hint,
        _ => HINT_NO_MODEL.into(),
    })
}

fn describe_local(model: &ModelName) -> Result<Described, UserError> {
    let directory = settings::model_dir().join(&model.name);
    // Describing may load the model, and that starts threads.
    let described = engine::run_with_signals_blocked(|| LocalModel::describe(&directory))
        .unwrap_or_else(|| {
            Err(EmbedError::model_unusable(
                "the model could not be examined",
            ))
        });
    let info = described.map_err(|error| unusable(model, error))?;
    let longest = info
        .max_tokens
        .saturating_sub(info.tokenizer.special_tokens()) as i32;
    Ok(Described {
        dimensions: Some(info.dimensions as i32),
        longest_chunk: longest,
        default_chunk: longest,
        most_inputs: MAX_BATCH_SIZE,
        remote: None,
    })
}

/// What holds for a remote model, if the pipeline's owner may use it in this way.
fn describe_remote(model: &ModelName, connection: &Connection) -> Result<Described, UserError> {
    let remote = RemoteModel::describe(model, connection.base_url, connection.request)
        .map_err(|error| UserError::invalid(error.to_string()).hint(error.hint()))?;
    let key = connection
        .api_key
        .map(str::parse::<KeyReference>)
        .transpose()
        .map_err(|error| {
            UserError::invalid(error.to_string())
                .hint("For example api_key => 'env:OPENAI_API_KEY', or 'vault:openai' with Supabase Vault.")
        })?;
    if key.is_none() && remote.needs_key(model) {
        return Err(UserError::invalid(format!("model {model} needs an api_key"))
            .hint("For example api_key => 'env:OPENAI_API_KEY', 'file:/etc/keys/openai' or 'vault:openai'."));
    }
    access::check(
        &remote.endpoint,
        key.as_ref(),
        connection.owner,
        connection.trusted,
    )
    .map_err(|denied| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            denied.message,
        )
        .hint(denied.hint)
    })?;
    let prefix = remote.document_prefix();
    let prefix_tokens = if prefix.is_empty() {
        0
    } else {
        Tokenizer::tiktoken(remote.encoding)
            .map_or(prefix.len(), |tokenizer| tokenizer.count(prefix))
    };
    let tokens = |tokens: usize| i32::try_from(tokens).unwrap_or(i32::MAX);
    Ok(Described {
        dimensions: remote.info.map(|info| tokens(info.dimensions)),
        longest_chunk: tokens(remote.longest_chunk(prefix_tokens)),
        default_chunk: tokens(remote.default_chunk(prefix_tokens)),
        most_inputs: remote
            .info
            .and_then(|info| info.inputs_per_request)
            .map_or(MAX_BATCH_SIZE, tokens),
        remote: Some(remote),
    })
}
