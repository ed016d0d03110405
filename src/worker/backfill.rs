//! Watched tables, as far as triggers do not see to them: their rows become documents when watching begins, documents whose
//! rows are gone are found, and a table that was dropped takes its documents along. In short transactions, one a turn of the
//! main loop, so that what has become a document is embedded meanwhile.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

use embedder::EmbedError;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiTupleTable};

use crate::errors::OrRaise;
use crate::impatience::Impatience;
use crate::journal::Journal;
use crate::locks::Lock;
use crate::sources::{PATIENCE, SUBJECT, Source, was_too_slow};
use crate::wake;
use crate::worker::pipelines::{Active, Pipelines};
use crate::worker::transaction::{SqlError, run, transaction};
use crate::worker::write::block_now;

/// Rows of one transaction: some tens of milliseconds.
const ROWS: i32 = 2000;

thread_local! {
    /// Rows of one transaction of those watched tables whose policies take longer.
    static PACE: RefCell<HashMap<i32, i32>> = RefCell::default();
}

/// A watched table that wants attention.
#[derive(Debug)]
pub struct Unfinished {
    watch: i32,
    pipeline: i32,
    phase: String,
    position: Option<String>,
    /// Another one when anything of the watch has changed.
    version: String,
    was_dropped: bool,
}

/// The watched tables that want attention. Inside a transaction.
pub fn unfinished() -> Vec<Unfinished> {
    if !Lock::Restore.try_shared() {
        return Vec::new();
    }
    Spi::connect_mut(|client| {
        let rows = run(
            client,
            "SELECT w.watch_id, w.pipeline_id, w.phase, w.position, w.xmin::text AS version, c.oid IS NULL AS was_dropped
             FROM ingest.watch w LEFT JOIN pg_class c ON c.oid = w.source
             WHERE (w.phase <> 'done' OR c.oid IS NULL)
             ORDER BY w.watch_id",
            &[],
        )?;
        let mut unfinished = Vec::new();
        for row in rows {
            unfinished.push(Unfinished {
                watch: row["watch_id"].value()?.unwrap_or_default(),
                pipeline: row["pipeline_id"].value()?.unwrap_or_default(),
                phase: row["phase"].value()?.unwrap_or_default(),
                position: row["position"].value()?,
                version: row["version"].value()?.unwrap_or_default(),
                was_dropped: row["was_dropped"].value()?.unwrap_or_default(),
            });
        }
        Ok::<_, pgrx::spi::Error>(unfinished)
    })
    .or_raise()
}

/// Takes one step with each of these; whether something was done. A pipeline whose table cannot be read is blocked.
pub fn step(
    unfinished: &[Unfinished],
    pipelines: &Pipelines,
    journal: &mut Journal,
) -> Result<bool, SqlError> {
    let mut worst = Ok(false);
    for one in unfinished {
        // What it is blocked for may be the table that is gone.
        let known = pipelines.get(one.pipeline);
        let Some(pipeline) = known.filter(|p| one.was_dropped || !p.is_blocked()) else {
            continue;
        };
        match step_of(one, pipeline, journal) {
            Ok(()) => {
                worst = worst.map(|_| true);
            }
            // The others are not to suffer for it.
            Err(error) => worst = Err(error),
        }
    }
    worst
}

fn step_of(one: &Unfinished, pipeline: &Active, journal: &mut Journal) -> Result<(), SqlError> {
    let found =
        transaction(|| Spi::connect_mut(|client| Source::find(client, one.watch)).or_raise())?;
    let Some(source) = found else { return Ok(()) };
    if source.table.is_none() {
        return transaction(|| {
            Spi::connect_mut(|client| {
                forget_dropped(client, one.watch)?;
                unblock(client, pipeline)
            })
            .or_raise()
        });
    }
    let rows = PACE.with_borrow(|pace| pace.get(&one.watch).copied().unwrap_or(ROWS));
    let start = Instant::now();
    let working = journal.work_on_watch(one.watch);
    let done = transaction(|| {
        Spi::connect_mut(|client| {
            let stepped = match one.phase.as_str() {
                "sweep" => sweep(client, one, &source, rows, false)?,
                _ => scan(client, one, &source, rows)?,
            };
            if stepped && pipeline.blocked_for.is_some() {
                unblock(client, pipeline)?;
            }
            Ok::<_, pgrx::spi::Error>(())
        })
        .or_raise();
    });
    drop(working);
    let block = |problem: &str| {
        let error =
            EmbedError::model_unusable(source.blocking_message(problem)).with_hint(source.advice());
        transaction(|| block_now(pipeline, &error))
    };
    match done {
        Ok(()) => {
            if rows < ROWS && start.elapsed() < PATIENCE / 4 {
                pace(one.watch, rows * 2);
            }
            Ok(())
        }
        Err(error) if was_too_slow(error.code, start) && rows > 1 => {
            pace(one.watch, rows / 20);
            Ok(())
        }
        Err(error) if was_too_slow(error.code, start) => {
            let seconds = PATIENCE.as_secs();
            block(&format!("finding a row takes longer than {seconds} s"))
        }
        Err(error) if one.phase == "sweep" && is_no_key(&error) => transaction(|| {
            Spi::connect_mut(|client| sweep(client, one, &source, rows, true).map(drop)).or_raise()
        }),
        Err(error) if !error.is_transient() => block(&error.to_string()),
        done => done,
    }
}

fn pace(watch: i32, rows: i32) {
    PACE.with_borrow_mut(|pace| pace.insert(watch, rows.clamp(1, ROWS)));
}

/// Runs a statement of a watched table, for a few seconds at the most: a policy may take any time.
fn look<'conn>(
    client: &mut SpiClient<'conn>,
    source: &Source,
    sql: &str,
    arguments: &[DatumWithOid],
) -> Result<SpiTupleTable<'conn>, pgrx::spi::Error> {
    let _impatience = Impatience::new(PATIENCE);
    source.run(|| run(client, sql, arguments))
}

/// Removes some documents of a table that was dropped, and at last the watch.
fn forget_dropped(client: &mut SpiClient, watch: i32) -> Result<(), pgrx::spi::Error> {
    run(
        client,
        "DELETE FROM ingest.watch w WHERE w.watch_id = $1 AND ingest.forget_source($1, $2) = 0",
        &[watch.into(), ROWS.into()],
    )
    .map(drop)
}

/// Whether a text cannot be a value of the primary key: that is of another type by now.
fn is_no_key(error: &SqlError) -> bool {
    use PgSqlErrorCode as C;
    matches!(
        error.code,
        C::ERRCODE_INVALID_TEXT_REPRESENTATION
            | C::ERRCODE_INVALID_DATETIME_FORMAT
            | C::ERRCODE_DATETIME_FIELD_OVERFLOW
            | C::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE
    )
}

/// Whether the watch and its table are still what they were when the statements were made by which rows have been read. If
/// so, the watch stays that way until the transaction ends.
fn is_as_found(
    client: &mut SpiClient,
    one: &Unfinished,
    source: &Source,
) -> Result<bool, pgrx::spi::Error> {
    let standing = run(
        client,
        "SELECT FROM ingest.watch WHERE watch_id = $1 AND xmin::text = $2 FOR NO KEY UPDATE",
        &[one.watch.into(), one.version.as_str().into()],
    )?;
    if standing.is_empty() {
        return Ok(false);
    }
    source.is_as_found(client)
}

/// Looks for the rows of the next documents, and removes those that are gone, or that the pipeline's owner does not see;
/// or, where none can be there, all. False when that is to be done again.
fn sweep(
    client: &mut SpiClient,
    one: &Unfinished,
    source: &Source,
    rows: i32,
    all: bool,
) -> Result<bool, pgrx::spi::Error> {
    let statements = source.statements();
    let next = run(
        client,
        "SELECT ingest.next_to_sweep($1, $2) AS source_key",
        &[source.watch.into(), rows.into()],
    )?;
    let keys = texts(next, "source_key")?;
    let last = (keys.len() as i32 == rows)
        .then(|| keys.last().cloned())
        .flatten();
    let missing = if keys.is_empty() || all {
        keys
    } else {
        texts(
            look(client, source, &statements.missing, &[keys.into()])?,
            "source_key",
        )?
    };
    if !is_as_found(client, one, source)? {
        return Ok(false);
    }
    run(
        client,
        "SELECT ingest.sweep($1, $2, $3)",
        &[source.watch.into(), missing.into(), last.into()],
    )?;
    Ok(true)
}

fn texts(rows: SpiTupleTable, column: &str) -> Result<Vec<String>, pgrx::spi::Error> {
    let mut found = Vec::new();
    for row in rows {
        found.extend(row[column].value::<String>()?);
    }
    Ok(found)
}

/// Makes documents of the next rows by primary key. False when that is to be done again.
fn scan(
    client: &mut SpiClient,
    one: &Unfinished,
    source: &Source,
    most: i32,
) -> Result<bool, pgrx::spi::Error> {
    let statements = source.statements();
    let after = one.position.as_deref();
    let sql = match after {
        Some(_) => &statements.next_rows,
        None => &statements.first_rows,
    };
    let rows = look(client, source, sql, &[after.into(), most.into()])?;
    let (mut source_keys, mut keys, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        source_keys.push(row["source_key"].value::<String>()?.unwrap_or_default());
        keys.push(row["key"].value::<String>()?.unwrap_or_default());
        bytes.push(row["bytes"].value::<i32>()?.unwrap_or_default());
    }
    let is_last = (source_keys.len() as i32) < most;
    if !is_as_found(client, one, source)? {
        return Ok(false);
    }
    run(
        client,
        "SELECT ingest.stage_rows($1, $2, $3, $4, $5)",
        &[
            source.watch.into(),
            source_keys.into(),
            keys.into(),
            bytes.into(),
            is_last.into(),
        ],
    )?;
    Ok(true)
}

/// What this table was blocked for is over, for a rebuild, too.
fn unblock(client: &mut SpiClient, pipeline: &Active) -> Result<(), pgrx::spi::Error> {
    let unblocked = run(
        client,
        "UPDATE ingest.pipeline SET blocked_error = NULL, blocked_until = NULL, blocked_times = 0
         WHERE $1 IN (pipeline_id, successor_of) AND starts_with(blocked_error, $2)
         RETURNING pipeline_id",
        &[pipeline.id.into(), SUBJECT.into()],
    )?;
    if !unblocked.is_empty() {
        wake::review_at_commit();
    }
    Ok(())
}
