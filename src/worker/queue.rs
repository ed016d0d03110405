//! What is done to the queue's rows for claims: documents are marked as held and read, and the claims of dead workers end.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::errors::{OrRaise, UserError};
use crate::impatience::Impatience;
use crate::journal::Journal;
use crate::locks::Lock;
use crate::settings;
use crate::sources::{self, PATIENCE, Source};
use crate::worker::transaction::run;

/// Rows of watched tables are read for so long by one transaction; the next one goes on.
const LONG_READING: Duration = Duration::from_secs(1);

/// A document that can be claimed, as the queue knows it.
pub struct Candidate {
    /// Its id.
    pub id: i64,
    /// Bytes of its content.
    pub bytes: i32,
    /// Attempts so far.
    pub attempts: i32,
    /// Deaths of processes that worked on it.
    pub crashes: i32,
    /// Whether chunks of an earlier content may be in the target.
    pub revised: bool,
}

/// What a transaction may claim.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Documents.
    pub documents: usize,
    /// Bytes of their contents; one document may have more.
    pub bytes: usize,
    /// Chunks that the claimed revised documents have in the target, estimated from their size; one document may have more.
    pub former_chunks: usize,
    /// Bytes of text in a chunk, roughly.
    pub chunk_bytes: usize,
    /// Whether the documents are read, too.
    pub read: bool,
    /// A document whose watched row could not be read: it is claimed without being read.
    pub unreadable: Option<i64>,
}

/// What a transaction claimed.
pub struct Claimed {
    /// What the queue says of the documents.
    pub candidates: Vec<Candidate>,
    /// What the staging table says of them.
    pub taken: Vec<Taken>,
    /// How long it looked for them.
    pub looking: Duration,
    /// Whether one was passed over because somebody has it locked.
    pub locked: bool,
    /// Whether documents of whatever pipeline were found due again.
    pub due: bool,
}

/// A document as it was staged.
pub struct Taken {
    /// Its id.
    pub id: i64,
    /// Its key.
    pub key: String,
    /// Its metadata, as JSON text.
    pub metadata: String,
    /// Its content, if it was read.
    pub content: Option<String>,
    /// The row of a watched table that it stands for.
    pub row: Option<SourceRow>,
}

/// A row of a watched table.
pub struct SourceRow {
    watch: i32,
    key: String,
    /// Whether it is gone, or hidden from the pipeline's owner.
    pub is_gone: bool,
    /// Bytes of its content.
    pub bytes: i32,
}

/// Marks waiting documents of a pipeline as held, the oldest first of those from `from` on, as many as the limits
/// allow but at least one, and reads them, as long as its definition is still of this generation. None while a dump is
/// being restored into this database. Inside a transaction, which may be
/// lost in a crash: the documents are then still waiting. The journal notes which of them is being read.
pub fn claim(
    (pipeline, generation): (i32, i32),
    worker: i32,
    token: i64,
    from: Option<i64>,
    limits: Limits,
    journal: &mut Journal,
) -> Option<Claimed> {
    Spi::connect_mut(|client| {
        if !Lock::Restore.try_shared() {
            return Ok(None);
        }
        // Those whose next attempt is due join the waiting ones.
        let due = run(
            client,
            "SELECT document_id, pipeline_id FROM ingest.queue WHERE retry_at <= clock_timestamp() AND claimed_by IS NULL
             ORDER BY retry_at LIMIT 1000 FOR UPDATE SKIP LOCKED",
            &[],
        )?;
        let (mut documents, mut pipelines) = (Vec::new(), Vec::new());
        for row in due {
            documents.extend(row["document_id"].value::<i64>()?);
            pipelines.extend(row["pipeline_id"].value::<i32>()?);
        }
        let some_due = !documents.is_empty();
        if some_due {
            run(
                client,
                "UPDATE ingest.queue q SET retry_at = NULL
                 FROM unnest($1::bigint[], $2::int[]) AS u(document_id, pipeline_id)
                 WHERE q.document_id = u.document_id AND q.pipeline_id = u.pipeline_id",
                &[documents.into(), pipelines.into()],
            )?;
        }

        // A document may have come with the pause that should hold it, after the definitions were read. Only queue_ready has
        // this order: with an equality, which makes the first column of it idle, some statistics make the primary key
        // look cheaper, in which the backlogs of all other pipelines would be read, too.
        let start = Instant::now();
        let waiting = run(
            client,
            "SELECT document_id, bytes, attempts, crashes, revised FROM ingest.queue
             WHERE pipeline_id BETWEEN $1 AND $1 AND document_id >= $3 AND claimed_by IS NULL AND retry_at IS NULL
               AND NOT (SELECT p.paused FROM ingest.pipeline p WHERE p.pipeline_id = $1)
             ORDER BY pipeline_id, document_id LIMIT $2 FOR UPDATE SKIP LOCKED",
            &[
                pipeline.into(),
                (limits.documents as i64).into(),
                from.unwrap_or(i64::MIN).into(),
            ],
        )?;
        let mut looking = start.elapsed();
        let largest = settings::max_document_size();
        let mut candidates = Vec::new();
        let (mut bytes, mut former_chunks) = (0, 0);
        for row in waiting {
            let candidate = Candidate {
                id: row["document_id"].value()?.unwrap_or_default(),
                bytes: row["bytes"].value()?.unwrap_or_default(),
                attempts: row["attempts"].value()?.unwrap_or_default(),
                crashes: row["crashes"].value()?.unwrap_or_default(),
                revised: row["revised"].value()?.unwrap_or_default(),
            };
            // A document that will be refused for its size is not read.
            let size = candidate.bytes as usize;
            let cost = if size > largest { 0 } else { size };
            if bytes > 0 && bytes + cost > limits.bytes {
                break;
            }
            if candidate.revised {
                let more = cost / limits.chunk_bytes + 1;
                if former_chunks > 0 && former_chunks + more > limits.former_chunks {
                    break;
                }
                former_chunks += more;
            }
            bytes += cost;
            candidates.push(candidate);
        }
        // alter_pipeline() may have queued them again since the definitions were read, or a rebuild has ended. If that happens
        // from here on, it waits for this transaction and takes the claim back.
        let is_defined_so = run(
            client,
            "SELECT EXISTS (SELECT FROM ingest.pipeline p WHERE p.pipeline_id = $1 AND p.generation = $2)",
            &[pipeline.into(), generation.into()],
        )?
        .first()
        .get_one::<bool>()?;
        if candidates.is_empty() || is_defined_so != Some(true) {
            let start = Instant::now();
            let passed_over = run(
                client,
                "SELECT FROM ingest.queue
                 WHERE pipeline_id BETWEEN $1 AND $1 AND document_id >= $2 AND claimed_by IS NULL AND retry_at IS NULL
                   AND NOT (SELECT p.paused FROM ingest.pipeline p WHERE p.pipeline_id = $1)
                 ORDER BY pipeline_id, document_id LIMIT 1",
                &[pipeline.into(), from.unwrap_or(i64::MIN).into()],
            )?;
            looking += start.elapsed();
            return Ok(Some(Claimed {
                candidates: Vec::new(),
                taken: Vec::new(),
                looking,
                locked: !passed_over.is_empty(),
                due: some_due,
            }));
        }
        run(client, "SET LOCAL synchronous_commit = off", &[])?;
        let ids: Vec<i64> = candidates.iter().map(|c| c.id).collect();
        let rows = run(
            client,
            "SELECT id, key, watch_id, source_key, CASE WHEN $3 THEN metadata::text ELSE '{}' END AS metadata,
                    CASE WHEN $3 AND octet_length(content) <= $2 THEN content END AS content
             FROM ingest.documents WHERE id = ANY ($1)",
            &[
                ids.into(),
                i32::try_from(largest).unwrap_or(i32::MAX).into(),
                limits.read.into(),
            ],
        )?;
        let mut taken = Vec::new();
        for row in rows {
            taken.push(Taken {
                id: row["id"].value()?.unwrap_or_default(),
                key: row["key"].value()?.unwrap_or_default(),
                metadata: row["metadata"].value()?.unwrap_or_default(),
                content: row["content"].value()?,
                row: row["watch_id"].value()?.zip(row["source_key"].value()?).map(|(watch, key)| SourceRow {
                    watch,
                    key,
                    is_gone: false,
                    bytes: 0,
                }),
            });
        }
        if limits.read && taken.iter().any(|document| document.row.is_some()) {
            read_rows(
                client,
                pipeline,
                (&mut candidates, &mut taken),
                limits,
                journal,
            )?;
        }
        let ids: Vec<i64> = candidates.iter().map(|c| c.id).collect();
        run(
            client,
            "UPDATE ingest.queue SET claimed_by = $2, claim_token = $3 WHERE document_id = ANY ($1) AND pipeline_id = $4",
            &[ids.into(), worker.into(), token.into(), pipeline.into()],
        )?;
        drop_orphans(client, &candidates, &taken)?;
        Ok::<_, pgrx::spi::Error>(Some(Claimed {
            candidates,
            taken,
            looking,
            locked: false,
            due: some_due,
        }))
    })
    .or_raise()
}

/// Reads the rows of watched tables among the candidates, in their order, as the owner of the pipeline; candidates beyond what
/// the limits or a moment's time allow are left out.
fn read_rows(
    client: &mut pgrx::spi::SpiClient,
    pipeline: i32,
    (candidates, taken): (&mut Vec<Candidate>, &mut [Taken]),
    limits: Limits,
    journal: &mut Journal,
) -> Result<(), pgrx::spi::Error> {
    let largest = settings::max_document_size();
    // A rebuild reads what its pipeline watches.
    let watching = run(
        client,
        "SELECT coalesce(successor_of, pipeline_id) FROM ingest.pipeline WHERE pipeline_id = $1",
        &[pipeline.into()],
    )?
    .first()
    .get_one::<i32>()?;
    let mut places: HashMap<i64, &mut Taken> = taken.iter_mut().map(|t| (t.id, t)).collect();
    let mut known: HashMap<i32, Option<Source>> = HashMap::new();
    let (start, mut bytes, mut done) = (Instant::now(), 0, 0);
    let _impatience = Impatience::new(PATIENCE);
    for candidate in candidates.iter() {
        if done > 0 && (bytes >= limits.bytes || start.elapsed() > LONG_READING) {
            break;
        }
        let before = done;
        done += 1;
        let Some(document) = places.get_mut(&candidate.id) else {
            continue;
        };
        let Some(row) = &mut document.row else {
            bytes += candidate.bytes as usize;
            continue;
        };
        let source = match known.entry(row.watch) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(Source::find(client, row.watch)?),
        };
        // Nobody reads through another pipeline's watch.
        let source = source
            .as_ref()
            .filter(|source| Some(source.pipeline) == watching);
        let Some(source) = source.filter(|source| source.table.is_some()) else {
            row.is_gone = true;
            continue;
        };
        if limits.unreadable == Some(candidate.id) {
            continue;
        }
        // Whatever its expressions do to this process is known to be their doing.
        let _working = journal.work_on(candidate.id);
        let read = sources::reading(source, candidate.id, before, start, || {
            let statement = &source.statements().reading;
            let arguments = sources::reading_arguments(Some(&row.key), largest);
            sources::row_of(source.run(|| run(client, statement, &arguments))?)
        })?;
        match read {
            None => row.is_gone = true,
            Some(read) => {
                row.bytes = read.bytes.unwrap_or(0);
                bytes += read.content.as_ref().map_or(0, String::len);
                document.content = read.content;
                document.metadata = read.metadata;
            }
        }
    }
    let read = known.values().flatten();
    for source in read.filter(|source| source.table.is_some()) {
        if !source.is_as_found(client)? {
            UserError::new(
                PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                "a watched table has just been changed",
            )
            .raise();
        }
    }
    candidates.truncate(done);
    let kept: HashSet<i64> = candidates.iter().map(|c| c.id).collect();
    for document in taken
        .iter_mut()
        .filter(|document| !kept.contains(&document.id))
    {
        document.content = None;
    }
    Ok(())
}

/// Takes documents out of the queue that are not in the staging table (deleted with triggers disabled).
fn drop_orphans(
    client: &mut pgrx::spi::SpiClient,
    candidates: &[Candidate],
    taken: &[Taken],
) -> Result<(), pgrx::spi::Error> {
    let orphans: Vec<i64> = candidates
        .iter()
        .map(|c| c.id)
        .filter(|id| !taken.iter().any(|t| t.id == *id))
        .collect();
    if !orphans.is_empty() {
        run(
            client,
            "WITH gone AS (DELETE FROM ingest.queue WHERE document_id = ANY ($1) RETURNING pipeline_id, bytes)
             INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes)
             SELECT pipeline_id, -count(*), -sum(bytes) FROM gone GROUP BY pipeline_id",
            &[orphans.into()],
        )?;
    }
    Ok(())
}

/// Removes documents whose rows in a watched table are gone, with their chunks, as long as this claim on them stands: whoever
/// puts such a row back voids it. Inside a transaction.
pub fn forget_documents(documents: &[i64], token: i64) {
    Spi::connect_mut(|client| {
        // First whoever is doing so is waited for.
        run(
            client,
            "SELECT FROM ingest.documents WHERE id = ANY ($1) ORDER BY id FOR UPDATE",
            &[documents.to_vec().into()],
        )?;
        run(
            client,
            "DELETE FROM ingest.documents d WHERE d.id = ANY ($1)
                AND EXISTS (SELECT FROM ingest.queue q WHERE q.document_id = d.id AND q.claim_token = $2)",
            &[documents.to_vec().into(), token.into()],
        )
        .map(drop)
    })
    .or_raise();
}

/// Frees the claims of workers that do not run; whether some were locked and still stand. Inside a transaction. `running` is
/// asked for the numbers of those that run after the claims have been read: whoever has claimed something was there before.
pub fn release_all(running: impl Fn() -> Vec<i32>) -> bool {
    Spi::connect_mut(|client| {
        let claimers = run(
            client,
            "SELECT DISTINCT claimed_by FROM ingest.queue WHERE claimed_by IS NOT NULL",
            &[],
        )?;
        let mut ended = Vec::new();
        for row in claimers {
            ended.extend(row["claimed_by"].value::<i32>()?);
        }
        let running = running();
        ended.retain(|number| !running.contains(number));
        if ended.is_empty() {
            return Ok(false);
        }
        run(
            client,
            "UPDATE ingest.queue SET claimed_by = NULL, claim_token = NULL
             WHERE claimed_by = ANY ($1) AND (document_id, pipeline_id) IN (
                 SELECT document_id, pipeline_id FROM ingest.queue WHERE claimed_by = ANY ($1) FOR UPDATE SKIP LOCKED)",
            &[ended.clone().into()],
        )?;
        let left = run(
            client,
            "SELECT FROM ingest.queue WHERE claimed_by = ANY ($1) LIMIT 1",
            &[ended.into()],
        )?;
        Ok::<_, pgrx::spi::Error>(!left.is_empty())
    })
    .or_raise()
}
