//! The end of a rebuild: a pipeline's successor that has all documents gets the indexes that the old table has, and takes the
//! pipeline's place in one short transaction. Whichever worker finds it complete does it.
//!
//! While documents keep coming, a successor never has them all. It need not: it loses nothing to search when all that still
//! waits for it waits for the pipeline, too, and it has chunks of all of these that the pipeline has chunks of. Where the
//! pipeline is mostly ahead, it takes no documents for a moment, so that the successor comes level.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use embedder::EmbedError;
use injection::Point;
use pgrx::prelude::*;
use pgrx::spi::quote_qualified_identifier;

use crate::api::lent;
use crate::api::rebuild::see_every_row;
use crate::api::targets::{create_indexes, keep_name, table_name};
use crate::errors::{OrRaise, UserError};
use crate::layout::Layout;
use crate::locks::Lock;
use crate::owner::ActingAs;
use crate::wake;
use crate::worker::pipelines::Pipelines;
use crate::worker::process::reach;
use crate::worker::transaction::{SqlError, run, transaction};
use crate::worker::write::block_now;

/// First and longest wait before the next attempt, when somebody uses the old table: each attempt keeps others from it for a
/// lock_timeout.
const LOCKED_WAIT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A successor that has been nearly complete for so long is helped to come level.
const NEAR_FOR: Duration = Duration::from_secs(3);
/// For how many seconds its pipeline takes no documents then, the first time and at most: twice as long each time that it has not
/// come level, as where answers take long.
const AHEAD_SECONDS: (f64, f64) = (5.0, 60.0);
/// For how many times as long it does take documents afterwards: new documents wait a tenth of the time at most if the successor's
/// model does not answer.
const AHEAD_REST: f64 = 10.0;
/// First and longest wait before the next look at a successor that search would still lose something by.
const LEVEL_WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Postgres cancels an autovacuum that keeps a lock from somebody after so long, which must be less than the worker's lock_timeout.
const DEADLOCK_TIMEOUT: &str = "SET LOCAL deadlock_timeout = '100ms'";

/// Changes of a table that are named.
const MAX_NAMED: usize = 5;

/// Ends rebuilds.
#[derive(Default)]
pub struct Switcher {
    rebuilds: HashMap<i32, Progress>,
}

/// What is known of a rebuild near its end.
struct Progress {
    not_before: Instant,
    /// Wait after the next attempt that finds something locked.
    wait: Duration,
    /// Wait after the next look that finds it not level.
    level_wait: Duration,
    /// Since when few documents wait for it, and how often it was let ahead since.
    near: Option<(Instant, i32)>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            not_before: Instant::now(),
            wait: LOCKED_WAIT.0,
            level_wait: LEVEL_WAIT.0,
            near: None,
        }
    }
}

/// How far a successor is.
enum Standing {
    /// Not far enough, or something keeps it from taking its pipeline's place.
    Behind,
    /// Few documents wait for it.
    Near,
    /// None does.
    Complete,
}

/// What was done about one.
enum Step {
    /// Another worker or somebody else is at it, or a dump is being restored.
    Busy,
    /// It is not level after all.
    NotLevel,
    /// Something came in between, or it takes its place in the next step.
    Again,
    /// It has taken the pipeline's place.
    Switched,
}

impl Switcher {
    /// Nothing tried yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long until the next attempt, when one had to be put off.
    pub fn next_attempt(&self) -> Option<Duration> {
        let now = Instant::now();
        let waits = self.rebuilds.values().map(|known| known.not_before);
        let put_off = waits.filter(|at| *at > now).min()?;
        Some(put_off - now)
    }

    /// Goes a step on with the first rebuild that can take its pipeline's place; whether there was one. `building` is called
    /// before indexes are built.
    pub fn advance(
        &mut self,
        pipelines: &Pipelines,
        building: impl Fn(),
    ) -> Result<bool, SqlError> {
        let present: HashSet<i32> = pipelines.rebuilds().map(|rebuild| rebuild.id).collect();
        self.rebuilds.retain(|id, _| present.contains(id));
        for rebuild in pipelines.rebuilds() {
            let known = self.rebuilds.entry(rebuild.id).or_default();
            if known.not_before > Instant::now() || !known.is_ready(rebuild.id)? {
                continue;
            }
            let step = match transaction(|| missing_indexes(rebuild.id)) {
                Ok(Some(_)) => {
                    building();
                    transaction(|| build_indexes(rebuild.id))
                }
                Ok(None) => transaction(|| {
                    let step = switch(rebuild.id);
                    if let Err(error) = reach(Point::BeforeCommit) {
                        UserError::new(error.code, error.message).raise();
                    }
                    step
                }),
                Err(error) => Err(error),
            };
            match step {
                Ok(Step::Switched) => log!(
                    "pg_ingest: pipeline {:?} uses its new vectors from now on",
                    rebuild.name
                ),
                Ok(Step::Again) => known.wait = LOCKED_WAIT.0,
                Ok(Step::NotLevel) => {
                    known.not_before = Instant::now() + known.level_wait;
                    known.level_wait = (known.level_wait * 2).min(LEVEL_WAIT.1);
                    continue;
                }
                Ok(Step::Busy) => {
                    known.put_off();
                    continue;
                }
                Err(error) if error.is_transient() => {
                    known.put_off();
                    continue;
                }
                Err(error) => {
                    let message = format!(
                        "the new vectors are complete and cannot take the old ones' place: {error}"
                    );
                    transaction(|| block_now(rebuild, &EmbedError::model_unusable(message)))?;
                }
            }
            return Ok(true);
        }
        Ok(false)
    }
}

impl Progress {
    /// Whether it may take its pipeline's place now. One that is nearly complete for long is let ahead.
    fn is_ready(&mut self, successor: i32) -> Result<bool, SqlError> {
        match transaction(|| standing(successor))? {
            Standing::Behind => {
                self.near = None;
                Ok(false)
            }
            Standing::Near if !transaction(|| is_level(successor))? => {
                let (since, times) = self.near.get_or_insert((Instant::now(), 0));
                if since.elapsed() >= NEAR_FOR && transaction(|| let_ahead(successor, *times))? {
                    *times += 1;
                    self.level_wait = LEVEL_WAIT.0;
                }
                Ok(false)
            }
            Standing::Near | Standing::Complete => Ok(true),
        }
    }

    fn put_off(&mut self) {
        self.not_before = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(LOCKED_WAIT.1);
    }
}

fn flag(sql: &str, successor: i32) -> bool {
    Spi::connect_mut(|client| {
        run(client, sql, &[successor.into()])?
            .first()
            .get_one::<bool>()
    })
    .or_raise()
        == Some(true)
}

fn standing(successor: i32) -> Standing {
    let standing = Spi::connect_mut(|client| {
        run(
            client,
            "SELECT ingest.successor_standing($1)",
            &[successor.into()],
        )?
        .first()
        .get_one::<String>()
    })
    .or_raise();
    match standing.as_deref() {
        Some("near") => Standing::Near,
        Some("complete") => Standing::Complete,
        _ => Standing::Behind,
    }
}

fn is_level(successor: i32) -> bool {
    flag("SELECT ingest.successor_is_level($1)", successor)
}

/// Has no documents taken for the pipeline for a moment, longer the more `times` that was so, unless it was so not long ago;
/// whether it is now.
fn let_ahead(successor: i32, times: i32) -> bool {
    let (first, most) = AHEAD_SECONDS;
    let ahead = (first * 2f64.powi(times)).min(most);
    Spi::connect_mut(|client| {
        run(
            client,
            "WITH let AS (
                 UPDATE ingest.pipeline s SET ahead_until = clock_timestamp() + make_interval(secs => $2)
                 WHERE s.pipeline_id = $1
                   AND (s.ahead_until IS NULL OR s.ahead_until < clock_timestamp() - make_interval(secs => $3))
                 RETURNING 1)
             SELECT EXISTS (SELECT FROM let)",
            &[
                successor.into(),
                ahead.into(),
                (ahead * AHEAD_REST).into(),
            ],
        )?
        .first()
        .get_one::<bool>()
    })
    .or_raise()
        == Some(true)
}

/// The two tables and the role that owns them for the pipeline.
struct Tables {
    owner: pg_sys::Oid,
    old: pg_sys::Oid,
    new: pg_sys::Oid,
    index: String,
    layout: Layout,
    language: String,
}

impl Tables {
    /// Whether a document with one of these keys has chunks in the old table and none in the new one.
    fn lacks_any(&self, keys: &[String]) -> bool {
        if keys.is_empty() {
            return false;
        }
        let _acting = ActingAs::new(self.owner);
        see_every_row();
        let having = |table: pg_sys::Oid| -> HashSet<String> {
            let Some((schema, name)) = table_name(table) else {
                return HashSet::new();
            };
            let table = quote_qualified_identifier(schema, name);
            Spi::connect_mut(|client| {
                run(client, &self.layout.having(&table), &[keys.to_vec().into()])?
                    .first()
                    .get_one::<Vec<String>>()
            })
            .or_raise()
            .into_iter()
            .flatten()
            .collect()
        };
        let new = having(self.new);
        having(self.old).iter().any(|key| !new.contains(key))
    }
}

fn tables(successor: i32) -> Tables {
    Spi::connect_mut(|client| {
        let row = run(
            client,
            "SELECT s.owner::oid, p.target::oid, s.target::oid, s.index, s.layout, s.language
             FROM ingest.pipeline s JOIN ingest.pipeline p ON p.pipeline_id = s.successor_of WHERE s.pipeline_id = $1",
            &[successor.into()],
        )?
        .first();
        let oid = |column| {
            Ok::<_, pgrx::spi::Error>(
                row.get::<pg_sys::Oid>(column)?
                    .unwrap_or(pg_sys::InvalidOid),
            )
        };
        Ok::<_, pgrx::spi::Error>(Tables {
            owner: oid(1)?,
            old: oid(2)?,
            new: oid(3)?,
            index: row.get::<String>(4)?.unwrap_or_default(),
            layout: Layout::named(&row.get::<String>(5)?.unwrap_or_default()).or_raise(),
            language: row.get::<String>(6)?.unwrap_or_default(),
        })
    })
    .or_raise()
}

/// What a function in `sql/45-rebuild.sql` says of two tables, as texts.
fn texts(function: &str, tables: &Tables) -> Vec<String> {
    Spi::connect_mut(|client| {
        let rows = run(
            client,
            &format!("SELECT s FROM ingest.{function}($1, $2) AS s"),
            &[tables.old.into(), tables.new.into()],
        )?;
        Ok::<_, pgrx::spi::Error>(
            rows.filter_map(|row| row["s"].value().ok().flatten())
                .collect(),
        )
    })
    .or_raise()
}

/// The statements that swap two tables, and whether each renames something.
fn swap_statements(tables: &Tables) -> Vec<(bool, String)> {
    Spi::connect_mut(|client| {
        let rows = run(
            client,
            "SELECT s.renames, s.statement FROM ingest.swap_statements($1, $2) AS s",
            &[tables.old.into(), tables.new.into()],
        )?;
        let mut statements = Vec::new();
        for row in rows {
            if let (Some(renames), Some(statement)) =
                (row["renames"].value()?, row["statement"].value()?)
            {
                statements.push((renames, statement));
            }
        }
        Ok::<_, pgrx::spi::Error>(statements)
    })
    .or_raise()
}

/// The statements that build the indexes that it wants; `None` when it has them.
fn missing_indexes(successor: i32) -> Option<Vec<String>> {
    let tables = tables(successor);
    let missing = match tables.index.as_str() {
        "none" => Vec::new(),
        _ => texts("missing_indexes", &tables),
    };
    let none_yet = || {
        !flag(
            "SELECT EXISTS (SELECT FROM ingest.pipeline s, ingest.indexes_of(s.target) x WHERE s.pipeline_id = $1 AND x.on_embedding)",
            successor,
        )
    };
    let wanted = !missing.is_empty() || (tables.index == "immediate" && none_yet());
    wanted.then_some(missing)
}

/// Whether no other worker ends a rebuild just now, and no dump is being restored, which makes indexes and keys of both tables
/// after their rows.
fn is_alone() -> bool {
    Lock::Restore.try_shared() && Lock::Switch.try_alone()
}

/// Whether nobody changes, drops or gives up the pipeline whose place it takes: they have read what there is, and act on it.
fn is_unchanged(successor: i32) -> bool {
    let pipeline = Spi::connect_mut(|client| {
        run(
            client,
            "SELECT (SELECT s.successor_of FROM ingest.pipeline s WHERE s.pipeline_id = $1)",
            &[successor.into()],
        )?
        .first()
        .get_one::<i32>()
    })
    .or_raise();
    pipeline.is_some_and(|pipeline| Lock::Change(pipeline).try_alone())
}

fn build_indexes(successor: i32) -> Step {
    // Whoever gives it up meanwhile waits for the second, has this cancelled, and then has nothing else to wait for.
    if !(is_alone() && is_unchanged(successor)) {
        return Step::Busy;
    }
    Spi::run(DEADLOCK_TIMEOUT).or_raise();
    if let Some(statements) = missing_indexes(successor) {
        let tables = tables(successor);
        {
            let _acting = lent::acting_on(tables.old, tables.owner);
            for statement in &statements {
                Spi::run(statement).or_raise();
            }
        }
        if statements.is_empty() {
            let _acting = ActingAs::new(tables.owner);
            create_indexes(tables.new, tables.layout, &tables.language);
        }
    }
    Step::Again
}

fn switch(successor: i32) -> Step {
    if !(is_alone() && is_unchanged(successor)) {
        return Step::Busy;
    }
    // First without keeping anybody out.
    let waiting = keys("SELECT ingest.keys_waiting_for($1)", successor).unwrap_or_default();
    if tables(successor).lacks_any(&waiting) {
        return Step::NotLevel;
    }
    Spi::run(DEADLOCK_TIMEOUT).or_raise();
    let Some(waiting) = keys("SELECT ingest.hold_for_switch($1)", successor) else {
        return Step::NotLevel;
    };
    let tables = tables(successor);
    let Some(name) = table_name(tables.old) else {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "the target table of the pipeline was dropped",
        )
        .hint("Make another pipeline, and move the documents: UPDATE ingest.documents SET pipeline = '…' WHERE pipeline = '…'; then drop this one.")
        .raise()
    };
    // Else search would find no more what it finds now, until that is embedded.
    if tables.lacks_any(&waiting) {
        return Step::NotLevel;
    }
    refuse_losses(successor, &tables, name);
    Spi::connect_mut(|client| {
        run(client, "SELECT ingest.carry_queue($1)", &[successor.into()]).map(drop)
    })
    .or_raise();
    // Before its rights are read: while its readers are waited for, some may be granted or revoked.
    keep_name(tables.old, pg_sys::AccessExclusiveLock);
    let lends = lent::lends(tables.old, tables.owner);
    for (renames, statement) in swap_statements(&tables) {
        // What a policy says is parsed, and may call a function, when it is made.
        let _acting = if renames && lends {
            ActingAs::extension_owner()
        } else {
            ActingAs::new(tables.owner)
        };
        Spi::run(&statement).or_raise();
    }
    Spi::connect_mut(|client| {
        run(client, "SELECT ingest.take_place($1)", &[successor.into()]).map(drop)
    })
    .or_raise();
    wake::review_at_commit();
    Step::Switched
}

/// Raises when something would be lost with the old table, whose writers are kept out from here on.
fn refuse_losses(successor: i32, tables: &Tables, (schema, name): (String, String)) {
    let table = quote_qualified_identifier(schema, name);
    let refused = |message: String| {
        UserError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            message,
        )
    };
    let failed = keys("SELECT ingest.failed_anew($1)", successor).unwrap_or_default();
    if tables.lacks_any(&failed) {
        refused("documents failed that search finds by what was embedded of them before".into())
            .hint("SELECT ingest.retry(…), then ingest.resume(…); or go without them: SELECT ingest.finish_rebuild(…).")
            .raise();
    }
    let mut found = Spi::connect_mut(|client| {
        let rows = run(
            client,
            "SELECT s FROM ingest.not_carried($1, $2) AS s",
            &[tables.old.into(), tables.owner.into()],
        )?;
        Ok::<_, pgrx::spi::Error>(
            rows.filter_map(|row| row["s"].value().ok().flatten())
                .collect::<Vec<String>>(),
        )
    })
    .or_raise();
    found.extend(texts("came_meanwhile", tables));
    if !found.is_empty() {
        found.truncate(MAX_NAMED);
        refused(format!(
            "{table} has changed since the rebuild began: {}",
            found.join("; ")
        ))
        .hint("Take that back, or begin anew: SELECT ingest.cancel_rebuild(…), then ingest.alter_pipeline(…). Then ingest.resume(…).")
        .raise();
    }
    let rows = {
        let _acting = ActingAs::new(tables.owner);
        Spi::run(&format!("LOCK TABLE {table} IN SHARE MODE")).or_raise();
        see_every_row();
        Spi::get_one::<i64>(&format!("SELECT pg_catalog.count(*) FROM {table}")).or_raise()
    };
    let ours = Spi::connect_mut(|client| {
        run(
            client,
            "SELECT t.chunks FROM ingest.pipeline s JOIN ingest.totals t ON t.pipeline_id = s.successor_of WHERE s.pipeline_id = $1",
            &[successor.into()],
        )?
        .first()
        .get_one::<i64>()
    })
    .or_raise();
    if let Some(others @ 1..) = rows.zip(ours).map(|(rows, ours)| rows - ours) {
        refused(format!(
            "{table} has {others} rows that pg_ingest did not write, since the rebuild began"
        ))
        .hint("Move them elsewhere, or give the rebuild up: SELECT ingest.cancel_rebuild(…). Then ingest.resume(…).")
        .raise();
    }
}

/// Keys that a function in `sql/45-rebuild.sql` gives.
fn keys(sql: &str, successor: i32) -> Option<Vec<String>> {
    Spi::connect_mut(|client| {
        run(client, sql, &[successor.into()])?
            .first()
            .get_one::<Vec<String>>()
    })
    .or_raise()
}
