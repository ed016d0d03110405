//! A pipeline's definition as the SQL functions read it, and the names in it.

use chunker::{SplitOptions, Splitter};
use embedder::key::KeyReference;
use embedder::local::LocalModel;
use embedder::{ModelName, Provider, RemoteModel};
use pgrx::JsonB;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::quote_qualified_identifier;

use crate::api::targets::table_name;
use crate::errors::{OrRaise, UserError};
use crate::installed;
use crate::layout::Layout;
use crate::locks::Lock;
use crate::owner::ActingAs;
use crate::wake;
use crate::{access, reading, settings};

/// A pipeline as SQL functions need it.
pub struct Definition {
    /// Its number.
    pub pipeline_id: i32,
    /// Counts up with every change after which vectors are of another kind.
    pub generation: i32,
    /// Whether it is built to take another one's place, which has the same name.
    pub rebuild: bool,
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: pg_sys::Oid,
    /// Its model.
    pub model: String,
    pub(super) target: pg_sys::Oid,
    /// What its target looks like.
    pub layout: Layout,
    pub(super) dimensions: i32,
    /// Where its model is; `None` for its provider's own place.
    pub base_url: Option<String>,
    pub(super) trusted: bool,
    pub(super) api_key: Option<String>,
    /// Extra headers and fields of its requests, as JSON.
    pub request: Option<String>,
    /// The limit that it names.
    pub limits: Option<String>,
    pub(super) chunk_tokens: i32,
    pub(super) chunk_overlap: i32,
    pub(super) splitter: String,
    pub(super) index: String,
    pub(super) language: String,
    pub(super) on_success: String,
    /// Inputs of a request at most, if the user said so.
    pub batch_size: Option<i32>,
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

    /// The pipeline with this name, which the current user owns, kept until the transaction ends from whoever else would alter or
    /// drop it.
    pub fn to_change(name: &str) -> Self {
        let mut seen = Self::named(name);
        loop {
            seen.require_ownership();
            let lock = Lock::Change(seen.pipeline_id);
            if !lock.try_alone() {
                // The index of new vectors may take hours; it is begun again if it is still wanted.
                wake::cancel_index_builds();
                lock.wait_alone();
            }
            // SAFETY: inside a transaction. From now on, what is read here is what others have committed, not what there was
            // when the statement began.
            unsafe { pg_sys::GetCurrentTransactionId() };
            // Whoever was waited for may have given it away, or made another one of its name.
            let now = Self::named(name);
            if now.pipeline_id == seen.pipeline_id {
                now.require_ownership();
                return now;
            }
            seen = now;
        }
    }

    /// What is being built to take its place.
    pub fn successor(&self) -> Option<Self> {
        Self::read(
            "SELECT * FROM ingest.pipeline WHERE successor_of OPERATOR(pg_catalog.=) $1",
            self.pipeline_id.into(),
        )
    }

    fn read(query: &str, argument: DatumWithOid) -> Option<Self> {
        installed::require_matching();
        let _acting = ActingAs::extension_owner();
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
                generation: number("generation")?,
                rebuild: row.get_by_name::<i32, _>("successor_of")?.is_some(),
                name: text("name")?,
                owner: oid("owner")?,
                model: text("model")?,
                target: oid("target")?,
                layout: Layout::named(&text("layout")?).or_raise(),
                dimensions: number("dimensions")?,
                base_url: row.get_by_name("base_url")?,
                trusted: row.get_by_name("trusted")?.unwrap_or(false),
                api_key: row.get_by_name("api_key")?,
                request: row
                    .get_by_name::<JsonB, _>("request")?
                    .map(|JsonB(value)| value.to_string()),
                limits: row.get_by_name("limits")?,
                batch_size: row.get_by_name("batch_size")?,
                chunk_tokens: number("chunk_tokens")?,
                chunk_overlap: number("chunk_overlap")?,
                splitter: text("splitter")?,
                index: text("index")?,
                language: text("language")?,
                on_success: text("on_success")?,
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

    /// What holds for its model when that is a remote one.
    pub fn remote(&self) -> Result<Option<RemoteModel>, UserError> {
        let model = parse_model(&self.model)?;
        if model.provider == Provider::Local {
            return Ok(None);
        }
        RemoteModel::describe(&model, self.base_url.as_deref(), self.request.as_deref())
            .map(Some)
            .map_err(|error| UserError::invalid(error.to_string()).hint(error.hint()))
    }

    /// Why it cannot be used on this server as it is defined; `None` when nothing is in the way. What its host and key are, and
    /// whether the key can be read, is told to its owner only.
    pub fn problem(&self) -> Option<String> {
        let remote = match self.remote() {
            Ok(Some(remote)) => remote,
            Ok(None) => {
                let model = parse_model(&self.model).ok()?;
                let directory = settings::model_dir().join(&model.name);
                return LocalModel::check_files(&directory)
                    .err()
                    .map(|error| error.message);
            }
            Err(error) => return Some(error.into_message()),
        };
        let key = self.api_key.as_deref().map(str::parse::<KeyReference>);
        let key = match key.transpose() {
            Ok(key) => key,
            Err(error) => return Some(error.to_string()),
        };
        if let Err(denied) = access::check(&remote.endpoint, key.as_ref(), self.owner, self.trusted)
        {
            return Some(match self.is_owned() {
                true => denied.message,
                false => access::told_to_others(),
            });
        }
        if !self.is_owned() {
            return None;
        }
        access::resolve(&key?, self.owner)
            .err()
            .map(|error| error.message)
    }

    /// Whether the current user owns it.
    pub(super) fn is_owned(&self) -> bool {
        // SAFETY: catalog look-ups inside a transaction.
        unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), self.owner) }
    }

    /// Its target's name, quoted for SQL; `None` when the table was dropped.
    pub fn target_name(&self) -> Option<String> {
        table_name(self.target).map(|(schema, table)| quote_qualified_identifier(schema, table))
    }

    /// Whether its target is on another server.
    pub fn is_foreign(&self) -> bool {
        // SAFETY: a catalog look-up inside a transaction.
        let kind = unsafe { pg_sys::get_rel_relkind(self.target) };
        kind as u8 == pg_sys::RELKIND_FOREIGN_TABLE
    }

    /// Raises `42501` unless the current user sees it: owns it, was granted it, or is not subject to row security.
    pub fn require_access(&self) {
        if !(self.is_owned() || access::sees_everything()) {
            reading::one::<bool>(
                "SELECT ingest.require_pipeline($1) IS NULL",
                &[self.name.as_str().into()],
            )
            .or_raise();
        }
    }

    /// Raises `42501` unless the current user sees it or may read its target: a query of theirs is paid by the owner.
    pub fn require_use(&self) {
        let mut is_missing = false;
        // SAFETY: catalog look-ups inside a transaction. A table that was dropped is nobody's to read.
        let readable = unsafe {
            pg_sys::pg_class_aclcheck_ext(
                self.target,
                pg_sys::GetUserId(),
                pg_sys::ACL_SELECT as pg_sys::AclMode,
                &mut is_missing,
            ) == pg_sys::AclResult::ACLCHECK_OK
                && !is_missing
        };
        let seen = || access::visible_pipelines().contains(&self.pipeline_id);
        if !(readable || self.is_owned() || seen()) {
            UserError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for pipeline {:?}", self.name),
            )
            .hint("Whoever may read the pipeline's target table may ask: GRANT SELECT on it.")
            .raise();
        }
    }

    /// Raises `42501` unless the current user owns it.
    pub fn require_ownership(&self) {
        if !self.is_owned() {
            UserError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be owner of pipeline {:?}", self.name),
            )
            .raise();
        }
    }
}

/// The name of a model as the user gave it.
pub fn parse_model(model: &str) -> Result<ModelName, UserError> {
    model.parse().map_err(|error: embedder::InvalidModelName| {
        UserError::invalid(error.to_string())
            .hint("Models are named provider/model, such as local/all-MiniLM-L6-v2.")
    })
}

/// The pipelines that the current user owns.
pub fn owned_pipelines() -> Vec<i32> {
    // SAFETY: a plain read.
    let user = unsafe { pg_sys::GetUserId() };
    let _acting = ActingAs::extension_owner();
    reading::one(
        "SELECT coalesce(array_agg(pipeline_id), '{}') FROM ingest.pipeline WHERE pg_has_role($1, owner::oid, 'USAGE')",
        &[user.into()],
    )
    .or_raise()
    .unwrap_or_default()
}
