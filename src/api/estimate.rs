//! `estimate`: what the backlog will cost, before it is spent.
//!
//! Documents of the backlog are split and counted as the worker would do it: all of a small one, else some that lie
//! evenly in it, from which the rest is reckoned by the bytes.

use limiter::Targets;
use pgrx::datum::Interval;
use pgrx::prelude::*;

use crate::api::definition::{Definition, owned_pipelines};
use crate::api::text::{cost_of, pipeline_tokenizer};
use crate::budgets;
use crate::errors::OrRaise;
use crate::owner::ActingAs;
use crate::sources::Source;
use crate::{reading, settings, shmem};

/// Documents that are counted.
const SAMPLE_DOCUMENTS: i32 = 200;
/// Bytes that are counted, about half a second's work.
const SAMPLE_BYTES: usize = 4 * 1024 * 1024;
/// Inputs of a request to a local model count for nothing; this keeps the figure readable.
const LOCAL_INPUTS: usize = 64;

type Row = (
    String,
    i64,
    i64,
    i64,
    i64,
    Option<AnyNumeric>,
    Option<Interval>,
);

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn estimate(
    pipeline: Option<&str>,
) -> TableIterator<
    'static,
    (
        name!(pipeline, String),
        name!(documents, i64),
        name!(chunks, i64),
        name!(tokens, i64),
        name!(requests, i64),
        name!(cost_usd, Option<AnyNumeric>),
        name!(duration, Option<Interval>),
    ),
> {
    let definitions: Vec<Definition> = match pipeline {
        Some(name) => {
            let definition = Definition::named(name);
            definition.require_ownership();
            let successor = definition.successor();
            std::iter::once(definition).chain(successor).collect()
        }
        None => owned_pipelines()
            .into_iter()
            .filter_map(Definition::numbered)
            .collect(),
    };
    let rows: Vec<Row> = definitions.iter().map(estimate_one).collect();
    TableIterator::new(rows)
}

/// What a backlog comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Counted {
    documents: u64,
    bytes: u64,
    chunks: u64,
    tokens: u64,
}

impl Counted {
    /// The whole of which this is a part, by its documents and bytes.
    fn scaled_to(self, documents: u64, bytes: u64) -> Self {
        if self.bytes == 0 || self.documents >= documents {
            return self;
        }
        let scale = |n: u64| (n as f64 * bytes as f64 / self.bytes as f64).round() as u64;
        Self {
            documents,
            bytes,
            chunks: scale(self.chunks).max(documents),
            tokens: scale(self.tokens),
        }
    }

    /// Requests, when each holds so many inputs and tokens at most.
    fn requests(self, inputs: u64, tokens: u64) -> u64 {
        let by_inputs = self.chunks.div_ceil(inputs.max(1));
        by_inputs.max(self.tokens.div_ceil(tokens.max(1)))
    }

    /// Minutes that a budget makes it take; `None` without one. What is left of today's budget is used first.
    fn minutes(self, requests: u64, targets: &Targets, today: (u64, u64)) -> Option<f64> {
        let minute = |count: u64, target: Option<u64>| target.map(|t| count as f64 / t as f64);
        let day = |count: u64, used: u64, target: Option<u64>| {
            let target = target?;
            let left = target.saturating_sub(used);
            // Midnights that must pass before the last of it may go.
            let midnights = count.saturating_sub(left).div_ceil(target);
            (midnights > 0).then_some((midnights - 1) as f64 * 1440.0 + minutes_to_midnight())
        };
        [
            minute(requests, targets.requests_per_minute),
            minute(self.tokens, targets.tokens_per_minute),
            day(requests, today.0, targets.requests_per_day),
            day(self.tokens, today.1, targets.tokens_per_day),
        ]
        .into_iter()
        .flatten()
        .reduce(f64::max)
    }
}

fn minutes_to_midnight() -> f64 {
    limiter::wait_until_midnight(limiter::Now::read().unix).as_secs_f64() / 60.0
}

fn estimate_one(definition: &Definition) -> Row {
    let (documents, bytes) = backlog(definition.pipeline_id);
    let counted = count_sample(definition).scaled_to(documents, bytes);
    let remote = definition.remote().or_raise();
    let seen = limit_of(definition);
    let (inputs, tokens) = match &remote {
        None => (LOCAL_INPUTS, u64::MAX),
        Some(remote) => {
            let affordable = seen
                .as_ref()
                .map_or(u64::MAX, |(targets, _)| limiter::request_tokens(targets));
            let inputs = definition
                .batch_size
                .map_or(remote.inputs_per_request, |n| n as usize);
            (inputs, affordable.min(remote.tokens_per_request as u64))
        }
    };
    let requests = counted.requests(inputs as u64, tokens);
    let budgeted = seen.and_then(|(targets, today)| counted.minutes(requests, &targets, today));
    let minutes = if counted.documents == 0 {
        Some(0.0)
    } else {
        budgeted.or_else(|| at_the_last_rate(definition.pipeline_id, counted.bytes))
    };
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    (
        if definition.rebuild {
            format!("{} (rebuild)", definition.name)
        } else {
            definition.name.clone()
        },
        number(documents),
        number(counted.chunks),
        number(counted.tokens),
        number(requests),
        cost_of(&definition.model, number(counted.tokens)),
        minutes
            .and_then(|minutes| Interval::new(0, 0, (minutes * 60e6).min(9e18).ceil() as i64).ok()),
    )
}

/// Documents and bytes that are queued.
fn backlog(pipeline_id: i32) -> (u64, u64) {
    let _acting = ActingAs::extension_owner();
    let (documents, bytes) = reading::two::<i64, i64>(
        "SELECT queued, queued_bytes FROM ingest.totals WHERE pipeline_id = $1",
        &[pipeline_id.into()],
    )
    .or_raise();
    let count = |n: Option<i64>| n.unwrap_or(0).max(0) as u64;
    (count(documents), count(bytes))
}

fn count_sample(definition: &Definition) -> Counted {
    let (tokenizer, extra) = pipeline_tokenizer(definition).or_raise();
    let options = definition.split_options();
    let sample: Vec<i64> = {
        let _acting = ActingAs::extension_owner();
        reading::one(
            "SELECT array_agg(document_id) FROM ingest.sample_backlog($1, $2)",
            &[definition.pipeline_id.into(), SAMPLE_DOCUMENTS.into()],
        )
        .or_raise()
        .unwrap_or_default()
    };
    let mut counted = Counted::default();
    // One at a time: a document may be as large as pg_ingest.max_document_size.
    for document in sample {
        pgrx::check_for_interrupts!();
        let (content, bytes) = content_of(document);
        counted.documents += 1;
        counted.bytes += bytes;
        // What cannot be split fails, and costs nothing.
        if let Ok(chunks) = chunker::split(&content, &options, &tokenizer) {
            counted.chunks += chunks.len() as u64;
            counted.tokens += chunks
                .iter()
                .map(|c| (c.tokens + extra) as u64)
                .sum::<u64>();
        }
        if counted.bytes as usize > SAMPLE_BYTES {
            break;
        }
    }
    counted
}

/// A document's content, empty if it is too large to be embedded, and the bytes that the queue counts for it.
fn content_of(document: i64) -> (String, u64) {
    let largest = i32::try_from(settings::max_document_size()).unwrap_or(i32::MAX);
    let acting = ActingAs::extension_owner();
    let (content, bytes) = reading::two::<String, i32>(
        "SELECT CASE WHEN octet_length(content) <= $2 THEN content END, coalesce(octet_length(content), source_bytes, 0)
         FROM ingest.documents WHERE id = $1",
        &[document.into(), largest.into()],
    )
    .unwrap_or_default();
    let (watch, key) = reading::two::<i32, String>(
        "SELECT watch_id, source_key FROM ingest.documents WHERE id = $1",
        &[document.into()],
    )
    .unwrap_or_default();
    let bytes = bytes.unwrap_or(0).max(0) as u64;
    let source =
        watch.and_then(|watch| Spi::connect_mut(|client| Source::find(client, watch)).or_raise());
    drop(acting);
    let Some(source) = source else {
        return (content.unwrap_or_default(), bytes);
    };
    if source.stranger.is_some() {
        return (String::new(), bytes);
    }
    let statement = source.statements.as_ref().map(|s| s.reading.as_str());
    let _acting = ActingAs::new(source.owner);
    let content = reading::one(
        "SELECT ingest.try_reading($1, $2, $3)",
        &[statement.into(), key.into(), largest.into()],
    )
    .or_raise();
    (content.unwrap_or_default(), bytes)
}

/// What may be sent under the pipeline's limit, and what of today's budget is used; `None` without a limit.
fn limit_of(definition: &Definition) -> Option<(Targets, (u64, u64))> {
    let name = definition.limits.as_deref()?;
    // SAFETY: a plain global, set when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    let live = budgets::seen_from(database)
        .into_iter()
        .find(|seen| seen.name.as_deref() == Some(name));
    match live {
        Some(seen) => Some((
            seen.now.targets,
            (seen.now.requests_today, seen.now.tokens_today),
        )),
        // No worker has taken note of it yet.
        None => crate::api::limits::defined(name).map(|budget| (budget.targets(), (0, 0))),
    }
}

/// Minutes at the rate of the last minute of work, if there was any.
fn at_the_last_rate(pipeline_id: i32, bytes: u64) -> Option<f64> {
    // SAFETY: as above.
    let database = unsafe { pg_sys::MyDatabaseId };
    let rates = shmem::get()?.rates(database, shmem::unix_now());
    let (.., rate) = rates.into_iter().find(|(id, ..)| *id == pipeline_id)?;
    (rate > 0.0).then(|| bytes as f64 / rate)
}
