//! The pipelines as the worker sees them: their definitions, their keys, their limits.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunker::{SplitOptions, Splitter};
use embedder::key::{InvalidKeyReference, KeyReference};
use embedder::{EmbedError, ErrorClass, ModelName, Provider, RemoteModel};
use limiter::{Budget, Tallied, Tally};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_qualified_identifier};

use crate::budgets::{self, LimitDefinition};
use crate::errors::OrRaise;
use crate::journal::Journal;
use crate::layout::Layout;
use crate::worker::transaction::{run, transaction};
use crate::{access, settings};

/// A pipeline to take documents for.
#[derive(Debug)]
pub struct Active {
    /// Its number.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// Whether it is built to take another one's place, which has the same name.
    pub rebuild: bool,
    /// The role under which its target is written.
    pub owner: pg_sys::Oid,
    /// What the engine needs of it, or why it cannot be used.
    pub spec: Result<Arc<engine::Pipeline>, EmbedError>,
    /// Its target, quoted for SQL, or why it has none.
    pub target: Result<String, String>,
    /// What its target looks like.
    pub layout: Layout,
    /// The type of the vectors, with its schema.
    pub vector_type: String,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// How often a document is tried.
    pub max_attempts: i32,
    /// Whether staging rows are deleted when they are embedded.
    pub deletes_documents: bool,
    /// Whether somebody paused it.
    pub paused: bool,
    /// Whether it is blocked, and for how long before it is tried again.
    pub blocked_for: Option<Duration>,
    /// For how long no documents are taken for it, so that a rebuild of it gets ahead.
    pub yields_for: Option<Duration>,
}

impl Active {
    /// Whether it is blocked, and not to be tried now.
    pub fn is_blocked(&self) -> bool {
        self.blocked_for.is_some_and(|wait| !wait.is_zero())
    }
}

/// The part of a definition that the engine works by, as it is written in the table, with the settings that matter for it.
/// As long as it does not change, neither does [`Active::spec`], so that keys are not read and documents of a pipeline
/// are packed together.
#[derive(Debug, Clone, PartialEq)]
struct Written {
    generation: i32,
    owner: pg_sys::Oid,
    model: String,
    dimensions: usize,
    split: SplitOptions,
    batch_size: Option<usize>,
    concurrency: u32,
    base_url: Option<String>,
    trusted: bool,
    api_key: Option<String>,
    request: Option<String>,
    limits: Option<String>,
    settings: (String, Duration, Duration),
}

/// For so long after another key was found, refusals may be of requests that were sent with the one before.
const ROTATION: Duration = Duration::from_secs(5);

/// What [`load`] read of a pipeline.
pub struct Loaded {
    active: Active,
    written: Written,
}

/// What [`load`] read of a database.
pub struct Definitions {
    pipelines: Vec<Loaded>,
    limits: Vec<LimitDefinition>,
    /// What this worker has written of each limit.
    written: Vec<(String, Tallied)>,
}

struct Known {
    active: Active,
    written: Written,
    /// The spec is to be made anew: its key was refused.
    stale: bool,
    /// When another key was found last.
    rotated: Option<Instant>,
}

impl Known {
    /// Whether what was found out about it may be different now: its key was refused, it could not be used, or it was
    /// blocked and is to be tried again.
    fn is_worth_another_look(&self, now: &Active) -> bool {
        self.stale || (!now.is_blocked() && (self.active.is_blocked() || self.active.spec.is_err()))
    }
}

/// The pipelines of this database.
pub struct Pipelines {
    database: pg_sys::Oid,
    /// The number of this process among those that share a pipeline's requests in flight.
    worker: usize,
    known: Vec<Known>,
    limits: Option<Vec<LimitDefinition>>,
    /// Where this process counts what it sends, by limit.
    tallies: HashMap<String, &'static Tally>,
    /// Whether pipelines of former times have been looked for.
    looked: bool,
    /// Those that were dropped.
    gone: Vec<NonZeroU64>,
    index_failed: HashSet<i32>,
}

impl Pipelines {
    /// None yet.
    pub fn new(database: pg_sys::Oid, worker: usize) -> Self {
        Self {
            database,
            tallies: HashMap::new(),
            worker,
            known: Vec::new(),
            limits: None,
            looked: false,
            gone: Vec::new(),
            index_failed: HashSet::new(),
        }
    }

    /// Takes what [`load`] read; whether the engine must be told. What the engine needs of a pipeline stays the same object
    /// as long as nothing changes.
    pub fn update(&mut self, loaded: Definitions, journal: &Journal) -> bool {
        for (name, written) in &loaded.written {
            if !self.tallies.contains_key(name)
                && let Some(tally) = journal.tally(name, *written)
            {
                self.tallies.insert(name.clone(), tally);
            }
        }
        // Figures first: a pipeline finds its limit in them. What the day has used so far counts only the first time.
        let same = self.limits.as_ref().is_some_and(|known| {
            let figures = |l: &LimitDefinition| (l.name.clone(), l.budget);
            known
                .iter()
                .map(figures)
                .eq(loaded.limits.iter().map(figures))
        });
        // One that found no place in shared memory is tried again.
        let same = same
            && loaded
                .limits
                .iter()
                .all(|limit| budgets::limit_named(&limit.name).is_some());
        if !same {
            budgets::define(self.database, self.limits.as_deref(), &loaded.limits);
            self.limits = Some(loaded.limits);
        }
        let mut before = std::mem::take(&mut self.known);
        let mut changed = before.len() != loaded.pipelines.len();
        for Loaded {
            mut active,
            written,
        } in loaded.pipelines
        {
            let known = before
                .iter()
                .position(|known| known.active.id == active.id)
                .map(|index| before.swap_remove(index));
            let mut rotated = known.as_ref().and_then(|known| known.rotated);
            match known {
                Some(known)
                    if known.written == written
                        && same
                        && !known.is_worth_another_look(&active) =>
                {
                    active.spec = known.active.spec;
                }
                known => {
                    active.spec = self.spec(active.id, &written);
                    match known.map(|known| known.active.spec) {
                        Some(Ok(old)) if active.spec.as_ref().is_ok_and(|new| *new == old) => {
                            active.spec = Ok(old);
                        }
                        before => {
                            changed = true;
                            if before.is_some() {
                                rotated = Some(Instant::now());
                            }
                        }
                    }
                }
            }
            self.known.push(Known {
                active,
                written,
                stale: false,
                rotated,
            });
        }
        changed |= !before.is_empty();
        let key = |known: &Known| budgets::pipeline_key(self.database, known.active.id);
        if !self.looked {
            self.looked = true;
            let present: Vec<NonZeroU64> = self.known.iter().map(key).collect();
            budgets::keep_pipelines(self.database, &present);
        }
        self.gone.extend(before.iter().map(key));
        if changed {
            // Again each time, for those of which requests were still out.
            budgets::forget_pipelines(&self.gone);
        }
        changed
    }

    /// The definitions as the engine takes them.
    pub fn definitions(&self) -> engine::Definitions {
        self.rows().map(|p| (p.id, p.spec.clone())).collect()
    }

    /// Reads the key of a pipeline anew, since it was refused; whether it is another one now.
    pub fn refresh_key(&mut self, id: i32) -> bool {
        let Some(index) = self.known.iter().position(|known| known.active.id == id) else {
            return false;
        };
        let written = self.known[index].written.clone();
        if written.api_key.is_none() {
            return false;
        }
        let fresh = self.spec(id, &written);
        let known = &mut self.known[index];
        // Whatever comes of it, the next attempt reads it once more.
        known.stale = true;
        match (&fresh, &known.active.spec) {
            (Ok(new), Ok(old)) if new != old => {
                known.active.spec = fresh;
                known.stale = false;
                known.rotated = Some(Instant::now());
                true
            }
            // Refused with the key before, and told only now.
            _ => known.rotated.is_some_and(|at| at.elapsed() < ROTATION),
        }
    }

    /// What the engine needs of a pipeline.
    fn spec(&self, id: i32, written: &Written) -> Result<Arc<engine::Pipeline>, EmbedError> {
        let model: ModelName =
            written
                .model
                .parse()
                .map_err(|error: embedder::InvalidModelName| {
                    EmbedError::model_unusable(error.to_string())
                })?;
        let remote = match model.provider {
            Provider::Local => None,
            _ => Some(self.remote(id, &model, written)?),
        };
        Ok(Arc::new(engine::Pipeline {
            id,
            generation: written.generation,
            model,
            dimensions: written.dimensions,
            split: written.split,
            batch_size: written.batch_size,
            remote,
        }))
    }

    fn remote(
        &self,
        id: i32,
        model: &ModelName,
        written: &Written,
    ) -> Result<engine::Remote, EmbedError> {
        let described = RemoteModel::describe(
            model,
            written.base_url.as_deref(),
            written.request.as_deref(),
        )
        .map_err(|error| EmbedError::model_unusable(error.to_string()))?;
        let reference: Option<KeyReference> = written
            .api_key
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|error: InvalidKeyReference| EmbedError::model_unusable(error.to_string()))?;
        let secret = transaction(|| {
            access::check(
                &described.endpoint,
                reference.as_ref(),
                written.owner,
                written.trusted,
            )
            .map_err(|denied| {
                EmbedError::new(ErrorClass::Auth, denied.message).with_hint(denied.hint)
            })?;
            reference
                .as_ref()
                .map(|reference| access::resolve(reference, written.owner))
                .transpose()
        })
        .unwrap_or_else(|error| {
            Err(EmbedError::new(
                ErrorClass::Auth,
                format!("the key cannot be looked up: {error}"),
            ))
        })
        .map_err(access::marked)?;
        let key = budgets::pipeline_key(self.database, id);
        let limit = match &written.limits {
            None => budgets::limit_of_pipeline(key),
            Some(name) => budgets::limit_named(name).ok_or_else(|| {
                EmbedError::model_unusable(format!("limit {name:?} is not defined"))
                    .with_hint("Define it with ingest.set_limit(). All databases together have room for 128 limits.")
            })?,
        };
        let (_, timeout, connect_timeout) = written.settings;
        Ok(engine::Remote {
            endpoint: Arc::new(described.endpoint),
            key: secret.map(Arc::new),
            encoding: described.encoding.to_owned(),
            inputs_per_request: described.inputs_per_request,
            tokens_per_request: described.tokens_per_request,
            max_input_tokens: described.max_input_tokens,
            timeout,
            connect_timeout,
            concurrency: written.concurrency,
            budget: engine::Budget {
                limit,
                in_flight: budgets::in_flight_of_pipeline(key),
                key,
                worker: self.worker,
                tally: written
                    .limits
                    .as_ref()
                    .and_then(|name| self.tallies.get(name).copied()),
            },
        })
    }

    fn rows(&self) -> impl Iterator<Item = &Active> {
        self.known.iter().map(|known| &known.active)
    }

    /// The pipeline with this number; `None` when it was dropped.
    pub fn get(&self, id: i32) -> Option<&Active> {
        self.rows().find(|pipeline| pipeline.id == id)
    }

    /// Those to take documents for now.
    pub fn ready(&self) -> impl Iterator<Item = &Active> {
        self.rows().filter(|p| !p.paused && !p.is_blocked())
    }

    /// When documents are taken again for the first of those that let a rebuild get ahead.
    pub fn next_unyielding(&self) -> Option<Duration> {
        self.rows().filter_map(|p| p.yields_for).min()
    }

    /// Those that are built to take another one's place, unless that is not to be tried now.
    pub fn rebuilds(&self) -> impl Iterator<Item = &Active> {
        self.ready().filter(|p| p.rebuild)
    }

    /// Those that would be ready if they could be used at all, with the reason.
    pub fn unusable(&self) -> Vec<(&Active, EmbedError)> {
        self.ready()
            .filter_map(|p| {
                let gone = |problem: &String| EmbedError::model_unusable(problem.clone());
                let error = p.spec.as_ref().err().cloned();
                Some((p, error.or_else(|| p.target.as_ref().err().map(gone))?))
            })
            .collect()
    }

    /// The paused and blocked ones: nothing of them is to be sent.
    pub fn paused(&self) -> Vec<i32> {
        let paused = self.rows().filter(|p| p.paused || p.is_blocked());
        paused.map(|p| p.id).collect()
    }

    /// When the first blocked pipeline is to be tried again.
    pub fn next_unblocked(&self) -> Option<Duration> {
        self.rows()
            .filter(|p| !p.paused)
            .filter_map(|p| p.blocked_for.filter(|wait| !wait.is_zero()))
            .min()
    }

    /// Notes that an index could not be built, so that it is not tried at every turn.
    pub fn index_failed(&mut self, pipeline: i32) {
        self.index_failed.insert(pipeline);
    }

    /// Pipelines whose index could not be built since their last backlog.
    pub fn with_failed_index(&self) -> Vec<i32> {
        self.index_failed.iter().copied().collect()
    }

    /// Notes that documents of a pipeline were taken: its index is worth another try afterwards.
    pub fn has_backlog(&mut self, pipeline: i32) {
        self.index_failed.remove(&pipeline);
    }
}

/// Reads the definitions. Inside a transaction.
pub fn load(worker: i32) -> Definitions {
    let settings = (
        settings::allowed_hosts(),
        settings::request_timeout(),
        settings::connect_timeout(),
    );
    Spi::connect_mut(|client| {
        let rows = run(
            client,
            "SELECT p.pipeline_id, p.generation, p.successor_of IS NOT NULL AS rebuild, p.name, p.owner::oid AS owner, p.model, p.dimensions, p.chunk_tokens, p.chunk_overlap,
                    p.splitter, p.batch_size, p.concurrency, p.base_url, p.trusted, p.api_key, p.request::text AS request,
                    p.limits, p.layout, p.max_attempts, p.on_success = 'delete' AS deletes, p.paused,
                    p.blocked_error IS NOT NULL AS blocked,
                    extract(epoch FROM p.blocked_until - clock_timestamp())::float8 AS blocked_seconds,
                    (SELECT extract(epoch FROM s.ahead_until - clock_timestamp())::float8 FROM ingest.pipeline s
                     WHERE s.successor_of = p.pipeline_id) AS yields_seconds,
                    n.nspname::text AS schema, c.relname::text AS relation, ingest.vector_schema() AS vectors,
                    EXISTS (SELECT FROM pg_authid a WHERE a.oid = p.owner) AS owned
             FROM ingest.pipeline p
             LEFT JOIN pg_class c ON c.oid = p.target LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
             ORDER BY p.pipeline_id",
            &[],
        )?;
        let mut pipelines = Vec::new();
        for row in rows {
            let text = |name: &str| row[name].value::<String>();
            let number = |name: &str| Ok::<_, pgrx::spi::Error>(row[name].value::<i32>()?.unwrap_or_default());
            let flag = |name: &str| Ok::<_, pgrx::spi::Error>(row[name].value::<bool>()?.unwrap_or_default());
            let dimensions = number("dimensions")?;
            let target = match (text("schema")?, text("relation")?) {
                _ if !flag("owned")? => Err(format!(
                    "the role that owns the pipeline was dropped: SELECT ingest.set_owner({}, '…') gives it to another",
                    pgrx::spi::quote_literal(text("name")?.unwrap_or_default())
                )),
                (Some(schema), Some(relation)) => Ok(quote_qualified_identifier(schema, relation)),
                _ => Err("the target table was dropped".to_owned()),
            };
            let layout = text("layout")?
                .and_then(|name| Layout::named(&name).ok())
                .unwrap_or(Layout::Chunks);
            let blocked_for = flag("blocked")?.then_some(
                row["blocked_seconds"]
                    .value::<f64>()?
                    .map_or(Duration::ZERO, |s| Duration::from_secs_f64(s.clamp(0.0, 1e6))),
            );
            let yields_for = row["yields_seconds"]
                .value::<f64>()?
                .filter(|seconds| *seconds > 0.0)
                .map(|seconds| Duration::from_secs_f64(seconds.min(1e6)));
            let owner = row["owner"].value::<pg_sys::Oid>()?.unwrap_or(pg_sys::InvalidOid);
            let generation = number("generation")?;
            let written = Written {
                generation,
                owner,
                model: text("model")?.unwrap_or_default(),
                dimensions: dimensions as usize,
                split: SplitOptions {
                    splitter: text("splitter")?
                        .and_then(|s| s.parse().ok())
                        .unwrap_or(Splitter::Text),
                    chunk_tokens: number("chunk_tokens")? as usize,
                    chunk_overlap: number("chunk_overlap")? as usize,
                },
                batch_size: row["batch_size"].value::<i32>()?.map(|n| n as usize),
                concurrency: number("concurrency")? as u32,
                base_url: text("base_url")?,
                trusted: flag("trusted")?,
                api_key: text("api_key")?,
                request: text("request")?,
                limits: text("limits")?,
                settings: settings.clone(),
            };
            let active = Active {
                id: number("pipeline_id")?,
                name: text("name")?.unwrap_or_default(),
                rebuild: flag("rebuild")?,
                owner,
                spec: Err(EmbedError::model_unusable("not yet looked at")),
                target,
                layout,
                vector_type: format!(
                    "{}.{}",
                    text("vectors")?.unwrap_or_default(),
                    layout.vector_type(dimensions)
                ),
                dimensions: dimensions as usize,
                max_attempts: number("max_attempts")?,
                deletes_documents: flag("deletes")?,
                paused: flag("paused")?,
                blocked_for,
                yields_for,
            };
            pipelines.push(Loaded { active, written });
        }
        let (limits, written) = load_limits(client, worker)?;
        Ok::<_, pgrx::spi::Error>(Definitions { pipelines, limits, written })
    })
    .or_raise()
}

type LoadedLimits = (Vec<LimitDefinition>, Vec<(String, Tallied)>);

fn load_limits(client: &mut SpiClient, worker: i32) -> Result<LoadedLimits, pgrx::spi::Error> {
    let rows = run(
        client,
        "SELECT l.name, l.rpm, l.tpm, l.rpd, l.tpd, l.utilization, sum(d.requests)::bigint AS requests,
                sum(d.tokens)::bigint AS tokens, sum(d.requests) FILTER (WHERE d.worker = $1)::bigint AS own_requests,
                sum(d.tokens) FILTER (WHERE d.worker = $1)::bigint AS own_tokens,
                (clock_timestamp() AT TIME ZONE 'UTC')::date - date '1970-01-01' AS today
         FROM ingest.limit_definition l
         LEFT JOIN ingest.limit_day d ON d.name = l.name AND d.day = (clock_timestamp() AT TIME ZONE 'UTC')::date
         GROUP BY l.name ORDER BY l.name",
        &[worker.into()],
    )?;
    let mut limits = Vec::new();
    let mut written = Vec::new();
    for row in rows {
        let number = |name: &str| {
            Ok::<_, pgrx::spi::Error>(row[name].value::<i64>()?.map(|n| n.max(0) as u64))
        };
        let name: String = row["name"].value()?.unwrap_or_default();
        let tallied = Tallied {
            day: row["today"].value::<i32>()?.unwrap_or(0).max(0) as u32,
            requests: number("own_requests")?.unwrap_or(0),
            tokens: number("own_tokens")?.unwrap_or(0),
        };
        written.push((name.clone(), tallied));
        limits.push(LimitDefinition {
            name,
            budget: Budget {
                requests_per_minute: number("rpm")?,
                tokens_per_minute: number("tpm")?,
                requests_per_day: number("rpd")?,
                tokens_per_day: number("tpd")?,
                utilization: row["utilization"].value()?.unwrap_or(1.0),
            },
            today: (
                number("requests")?.unwrap_or(0),
                number("tokens")?.unwrap_or(0),
            ),
        });
    }
    Ok((limits, written))
}
