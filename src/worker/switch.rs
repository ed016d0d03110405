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
use crate::api::targets::{create_indexes, table_name};
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
/// For how long its pipeline takes no documents then, and for how long it does afterwards, in seconds: new documents wait a little,
/// and not much of the time, if the successor's model does not answer.
const AHEAD_SECONDS: (i32, i32) = (5, 50);

/// Ends rebuilds.
pub struct Switcher {
    not_before: Option<Instant>,
    wait: Duration,
    /// Successors that are nearly complete, and since when.
    near: HashMap<i32, Instant>,
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
    /// Something came in between, or it takes its place in the next step.
    Again,
    /// It has taken the pipeline's place.
    Switched,
}

impl Switcher {
    /// Nothing tried yet.
    pub fn new() -> Self {
        Self {
            not_before: None,
            wait: LOCKED_WAIT.0,
            near: HashMap::new(),
        }
    }

    /// How long until the next attempt, when one had to be put off.
    pub fn next_attempt(&self) -> Option<Duration> {
        self.not_before
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Goes a step on with the first rebuild that can take its pipeline's place; whether there was one. `building` is called before indexes are
    /// built.
    pub fn advance(
        &mut self,
        pipelines: &Pipelines,
        building: impl Fn(),
    ) -> Result<bool, SqlError> {
        if self.next_attempt().is_some_and(|wait| !wait.is_zero()) {
            return Ok(false);
        }
        self.not_before = None;
        for rebuild in pipelines.rebuilds() {
            match transaction(|| standing(rebuild.id))? {
                Standing::Behind => {
                    self.near.remove(&rebuild.id);
                    continue;
                }
                Standing::Near if !transaction(|| is_level(rebuild.id))? => {
                    let since = self.near.entry(rebuild.id).or_insert_with(Instant::now);
                    if since.elapsed() >= NEAR_FOR {
                        transaction(|| let_ahead(rebuild.id))?;
                    }
                    continue;
                }
                Standing::Near | Standing::Complete => {}
            }
            let wanting = transaction(|| missing_indexes(rebuild.id))?;
            let step = if wanting.is_some() {
                building();
                transaction(|| build_indexes(rebuild.id))
            } else {
                transaction(|| {
                    let step = switch(rebuild.id);
                    if let Err(error) = reach(Point::BeforeCommit) {
                        UserError::new(error.code, error.message).raise();
                    }
                    step
                })
            };
            match step {
                Ok(Step::Switched) => {
                    self.near.remove(&rebuild.id);
                    log!(
                        "pg_ingest: pipeline {:?} uses its new vectors from now on",
                        rebuild.name
                    );
                }
                Ok(Step::Again) => {}
                Ok(Step::Busy) => {
                    self.put_off();
                    return Ok(false);
                }
                Err(error) if error.is_transient() => {
                    self.put_off();
                    return Ok(false);
                }
                Err(error) => {
                    let message = format!(
                        "the new vectors are complete and cannot take the old ones' place: {error}"
                    );
                    transaction(|| block_now(rebuild, &EmbedError::model_unusable(message)))?;
                }
            }
            self.wait = LOCKED_WAIT.0;
            return Ok(true);
        }
        Ok(false)
    }

    fn put_off(&mut self) {
        self.not_before = Some(Instant::now() + self.wait);
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

/// Has no documents taken for the pipeline for a moment, unless that was so not long ago.
fn let_ahead(successor: i32) {
    let (ahead, rest) = AHEAD_SECONDS;
    Spi::connect_mut(|client| {
        run(
            client,
            "UPDATE ingest.pipeline s SET ahead_until = clock_timestamp() + make_interval(secs => $2)
             WHERE s.pipeline_id = $1
               AND (s.ahead_until IS NULL OR s.ahead_until < clock_timestamp() - make_interval(secs => $3))",
            &[
                successor.into(),
                f64::from(ahead).into(),
                f64::from(rest).into(),
            ],
        )
        .map(drop)
    })
    .or_raise();
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

/// Statements that a function in `sql/45-rebuild.sql` makes of two tables.
fn statements(function: &str, tables: &Tables) -> Vec<String> {
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

/// The statements that build the indexes that it wants; `None` when it has them.
fn missing_indexes(successor: i32) -> Option<Vec<String>> {
    let tables = tables(successor);
    let missing = match tables.index.as_str() {
        "none" => Vec::new(),
        _ => statements("missing_indexes", &tables),
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
    if !is_alone() {
        return Step::Busy;
    }
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
    let waiting = Spi::connect_mut(|client| {
        run(
            client,
            "SELECT ingest.hold_for_switch($1)",
            &[successor.into()],
        )?
        .first()
        .get_one::<Vec<String>>()
    })
    .or_raise();
    let Some(waiting) = waiting else {
        return Step::Busy;
    };
    let tables = tables(successor);
    if table_name(tables.old).is_none() {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "the target table of the pipeline was dropped",
        )
        .hint("Drop the pipeline, and create it again.")
        .raise();
    }
    // Else search would find no more what it finds now, until that is embedded.
    if tables.lacks_any(&waiting) {
        return Step::Busy;
    }
    Spi::connect_mut(|client| {
        run(client, "SELECT ingest.carry_queue($1)", &[successor.into()]).map(drop)
    })
    .or_raise();
    let statements = statements("swap_statements", &tables);
    {
        let _acting = lent::acting_on(tables.old, tables.owner);
        for statement in &statements {
            Spi::run(statement).or_raise();
        }
    }
    Spi::connect_mut(|client| {
        run(client, "SELECT ingest.take_place($1)", &[successor.into()]).map(drop)
    })
    .or_raise();
    wake::review_at_commit();
    Step::Switched
}
