//! Watched tables: how their rows are read, as the owner of the pipeline, in a security-restricted context.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiTupleTable};

use crate::errors::UserError;
use crate::owner::{ActingAs, stranger};

/// What every message about a watched table begins with, so that a pipeline that is blocked for one is known.
pub const SUBJECT: &str = "the watched table";
/// Longest time that the rows of one transaction are read for; a single row's expressions may take no longer either.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why a superuser's pipeline does not read a table of others.
pub const NOT_WITH_ALL_RIGHTS: &str = "What its owner puts there, such as a type with a cast, would run with the rights of the pipeline's \
     owner, a superuser: give the pipeline to that role with ingest.set_owner().";

/// A watched table, with the statements that read it.
#[derive(Clone)]
pub struct Source {
    /// Its number.
    pub watch: i32,
    /// The pipeline that watches it.
    pub pipeline: i32,
    /// That pipeline's owner.
    pub owner: pg_sys::Oid,
    /// Its name for SQL; `None` when it was dropped.
    pub table: Option<String>,
    /// The statements; `None` without a primary key.
    pub statements: Option<Statements>,
    /// The role that it belongs to, where nothing of that one's is run as the pipeline's owner.
    pub stranger: Option<String>,
}

/// SQL that the pipeline's owner runs.
#[derive(Clone, PartialEq)]
pub struct Statements {
    /// Content and metadata of one row.
    pub reading: String,
    /// Which rows are gone.
    pub missing: String,
    /// The first rows by primary key.
    pub first_rows: String,
    /// The rows after one.
    pub next_rows: String,
}

impl Source {
    /// The watched table with this number; `None` when it is not watched any more. As the extension's owner.
    pub fn find(client: &mut SpiClient, watch: i32) -> Result<Option<Self>, pgrx::spi::Error> {
        let row = client
            .update(
                "SELECT * FROM ingest.source_statements($1)",
                None,
                &[watch.into()],
            )?
            .first();
        if row.is_empty() {
            return Ok(None);
        }
        let text = |column: &str| row.get_by_name::<String, _>(column);
        let statements = match (
            text("reading")?,
            text("missing")?,
            text("first_rows")?,
            text("next_rows")?,
        ) {
            (Some(reading), Some(missing), Some(first_rows), Some(next_rows)) => Some(Statements {
                reading,
                missing,
                first_rows,
                next_rows,
            }),
            _ => None,
        };
        let owner = row.get_by_name("owner")?.unwrap_or(pg_sys::InvalidOid);
        let pipeline = row.get_by_name("pipeline_id")?.unwrap_or_default();
        let table = text("source")?;
        let source = client
            .update(
                "SELECT source::oid FROM ingest.watch WHERE watch_id = $1",
                None,
                &[watch.into()],
            )?
            .first()
            .get_one::<pg_sys::Oid>()?;
        Ok(Some(Self {
            watch,
            pipeline,
            owner,
            table,
            statements,
            stranger: source.and_then(|source| stranger(source, owner)),
        }))
    }

    /// Whether statements made now would be the same: between finding a table and reading it, it may have been given another name or
    /// other columns. Once it has been read, it is locked, and stays as it is.
    pub fn is_as_found(&self, client: &mut SpiClient) -> Result<bool, pgrx::spi::Error> {
        let now = Self::find(client, self.watch)?;
        Ok(now.is_some_and(|now| now.table == self.table && now.statements == self.statements))
    }

    /// The statements; raises what stands in the way when there are none.
    pub fn statements(&self) -> &Statements {
        match (&self.statements, &self.table) {
            (Some(statements), _) => statements,
            (None, Some(_)) => UserError::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                "it has no primary key any more; add one",
            )
            .raise(),
            (None, None) => {
                UserError::new(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, "it was dropped").raise()
            }
        }
    }

    /// What a pipeline is blocked with that cannot read it.
    pub fn blocking_message(&self, problem: &str) -> String {
        format!("{SUBJECT} {} cannot be read: {problem}", self.name())
    }

    /// What to do about it.
    pub fn advice(&self) -> String {
        format!(
            "Grant what is missing, or give the expressions anew: SELECT ingest.watch('{}', …); or end it with ingest.unwatch().",
            self.name()
        )
    }

    /// Its name.
    pub fn name(&self) -> &str {
        let table = self.table.as_deref().unwrap_or("that was dropped");
        table.strip_prefix("ONLY ").unwrap_or(table)
    }

    /// Runs one of its statements as the pipeline's owner.
    pub fn run<'conn>(
        &self,
        run: impl FnOnce() -> Result<SpiTupleTable<'conn>, pgrx::spi::Error>,
    ) -> Result<SpiTupleTable<'conn>, pgrx::spi::Error> {
        if let Some(stranger) = &self.stranger {
            UserError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("it belongs to role {stranger}"),
            )
            .detail(NOT_WITH_ALL_RIGHTS)
            .raise();
        }
        let _acting = ActingAs::new(self.owner);
        run()
    }
}

/// A row as it was read.
pub struct Row {
    /// Bytes of its content; `None` for null.
    pub bytes: Option<i32>,
    /// Its content, unless it is larger than allowed.
    pub content: Option<String>,
    /// Its metadata, as JSON text.
    pub metadata: String,
}

/// The arguments of [`Statements::reading`].
pub fn reading_arguments(key: Option<&str>, largest: usize) -> [DatumWithOid<'_>; 2] {
    [
        key.into(),
        i32::try_from(largest).unwrap_or(i32::MAX).into(),
    ]
}

/// The row that [`Statements::reading`] found; `None` when it is gone, or hidden from the pipeline's owner.
pub fn row_of(rows: SpiTupleTable) -> Result<Option<Row>, pgrx::spi::Error> {
    let row = rows.first();
    if row.is_empty() {
        return Ok(None);
    }
    Ok(Some(Row {
        bytes: row.get_by_name("bytes")?,
        content: row.get_by_name("content")?,
        metadata: row
            .get_by_name("metadata")?
            .unwrap_or_else(|| "{}".to_owned()),
    }))
}

/// Where reading was when an error ended its transaction.
#[derive(Clone)]
pub struct Place {
    /// The watched table.
    pub source: Source,
    /// The document whose row it was.
    pub document: i64,
    /// How many documents of the transaction came before.
    pub before: usize,
    since: Instant,
}

impl Place {
    /// Whether reading was cancelled because it took too long.
    pub fn was_too_slow(&self, code: PgSqlErrorCode) -> bool {
        was_too_slow(code, self.since)
    }
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// Where reading was when the last transaction failed; `None` when that had another cause.
pub fn take_place() -> Option<Place> {
    PLACE.take()
}

/// Whether a statement that began then and failed with this was cancelled for taking too long.
pub fn was_too_slow(code: PgSqlErrorCode, since: Instant) -> bool {
    code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED && since.elapsed() >= PATIENCE
}

/// Notes what is read now, until it is done.
pub fn reading<R>(
    source: &Source,
    document: i64,
    before: usize,
    since: Instant,
    read: impl FnOnce() -> R,
) -> R {
    PLACE.replace(Some(Place {
        source: source.clone(),
        document,
        before,
        since,
    }));
    let read = read();
    PLACE.take();
    read
}
