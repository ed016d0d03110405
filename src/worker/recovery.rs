//! What a worker does about the one before it: takes over what that one sent today, and suspects the documents that it may
//! have died of.
//!
//! A process that dies takes the whole server through crash recovery, so a document that kills it each time must not be
//! tried for ever. A suspect is tried again after a growing while, written alone, and from its second time on sent alone;
//! the one that was there at the most deaths is set aside when its attempts are used up. Those that merely happened to be
//! worked on at the same moment are embedded in between, and so cleared.

use limiter::Tallied;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::errors::OrRaise;
use crate::journal::{self, Journal};
use crate::sources::SUBJECT;
use crate::worker::housekeeping::write_down;
use crate::worker::transaction::{SqlError, run, transaction};
use crate::worker::write::{Ended, set_aside};

/// Longest wait before a suspect is tried again, in seconds.
const LONGEST_WAIT: f64 = 60.0;
/// Seconds between two suspects of several deaths, and for all of them, so that it shows which of them it is.
const STAGGER: (f64, f64) = (2.0, 10.0);

/// Takes up what the workers of this database left. Before anything is defined or claimed by this process.
/// `own` is the journal of this process's `number`, and `others_running` are the numbers of the other workers of this database
/// that run: what they hold is theirs.
pub fn recover(
    database: pg_sys::Oid,
    number: i32,
    own: &Journal,
    others_running: Vec<i32>,
) -> Result<(), SqlError> {
    let mut tallies = journal::tallies_of(database);
    tallies.sort_by_key(|(worker, ..)| *worker);
    for of_worker in tallies.chunk_by(|a, b| a.0 == b.0) {
        let numbered: Vec<(usize, String, Tallied)> = of_worker
            .iter()
            .map(|(_, name, tallied)| (0, name.clone(), *tallied))
            .collect();
        if let Err(error) = write_down(of_worker[0].0, &numbered) {
            log!("pg_ingest: what was sent today cannot be written down: {error}");
        }
    }
    let mut suspects = own.crash().unwrap_or_default();
    let left = journal::left_of(database, |other| {
        other != number && !others_running.contains(&other)
    });
    suspects.extend(left.iter().filter_map(Journal::crash).flatten());
    suspects.sort_unstable();
    suspects.dedup();
    let watches: Vec<i32> = suspects
        .extract_if(.., |suspect| *suspect < 0)
        .filter_map(|suspect| i32::try_from(-suspect).ok())
        .collect();
    if !watches.is_empty() {
        transaction(|| block_watching(watches))?;
    }
    if !suspects.is_empty() {
        log!(
            "pg_ingest: a worker died; documents that it was working on: {}",
            suspects.len()
        );
        transaction(|| suspect(suspects, others_running))?;
    }
    // Not to be laid to them once more.
    for journal in left {
        journal.close();
    }
    Ok(())
}

/// A policy of a watched table may have ended the process: its pipeline is blocked for a while. Inside a transaction.
fn block_watching(watches: Vec<i32>) {
    Spi::connect_mut(|client| {
        run(
            client,
            "UPDATE ingest.pipeline p
             SET blocked_error = format('%s %s cannot be read: the worker process died while it looked for its rows; the server''s log may say why', $2, w.source),
                 blocked_times = p.blocked_times + 1,
                 blocked_until = clock_timestamp() + make_interval(secs => $3 * 2.0 ^ least(p.blocked_times, 6))
             FROM ingest.watch w WHERE w.watch_id = ANY ($1) AND p.pipeline_id = w.pipeline_id",
            &[watches.into(), SUBJECT.into(), LONGEST_WAIT.into()],
        )
        .map(drop)
    })
    .or_raise();
}

struct Suspect {
    document: i64,
    pipeline: i32,
    pipeline_name: String,
    rebuild: bool,
    key: String,
    bytes: i32,
    attempts: i32,
    max_attempts: i32,
    /// Deaths, this one included.
    crashes: i32,
}

/// Notes a death with the documents that were worked on when it came. Inside a transaction.
fn suspect(documents: Vec<i64>, others_running: Vec<i32>) {
    Spi::connect_mut(|client| {
        let suspects = find(client, documents, others_running)?;
        let most = suspects.iter().map(|s| s.crashes).max().unwrap_or(0);
        let those = || suspects.iter().filter(|s| s.crashes == most);
        // Of a pipeline that is being rebuilt, it may have been on its way for both.
        let one_stands_out =
            those().all(|s| those().next().map(|s| s.document) == Some(s.document));
        let first = those().next().map(|s| s.document);
        for (place, suspect) in suspects.iter().enumerate() {
            // Once may be chance.
            let used_up = suspect.crashes > 1
                && suspect.attempts.saturating_add(suspect.crashes) >= suspect.max_attempts;
            // Several that always die together are taken one after the other, in the end.
            let endless = suspect.crashes / 2 >= suspect.max_attempts.max(2);
            let stands_out = suspect.crashes == most && one_stands_out;
            if used_up && (stands_out || (endless && Some(suspect.document) == first)) {
                give_up(client, suspect)?;
                continue;
            }
            let wait = 2f64
                .powi(suspect.crashes.clamp(1, 16) - 1)
                .min(LONGEST_WAIT);
            let stagger = match suspect.crashes {
                ..=1 => 0.0,
                2 => place as f64 * STAGGER.0.min(STAGGER.1 / suspects.len() as f64),
                _ => place as f64 * wait,
            };
            run(
                client,
                "UPDATE ingest.queue SET claimed_by = NULL, claim_token = NULL, crashes = $2,
                        retry_at = clock_timestamp() + make_interval(secs => $3)
                 WHERE document_id = $1 AND pipeline_id = $4",
                &[
                    suspect.document.into(),
                    suspect.crashes.into(),
                    (wait + stagger).into(),
                    suspect.pipeline.into(),
                ],
            )?;
        }
        Ok::<_, pgrx::spi::Error>(())
    })
    .or_raise();
}

/// Those that are still to be embedded, and that no worker has taken again.
fn find(
    client: &mut SpiClient,
    documents: Vec<i64>,
    others_running: Vec<i32>,
) -> Result<Vec<Suspect>, pgrx::spi::Error> {
    let rows = run(
        client,
        "SELECT q.document_id, q.pipeline_id, p.name, p.successor_of IS NOT NULL AS rebuild, d.key, q.bytes, q.attempts, p.max_attempts, q.crashes + 1 AS crashes
         FROM ingest.queue q JOIN ingest.pipeline p USING (pipeline_id) JOIN ingest.documents d ON d.id = q.document_id
         WHERE q.document_id = ANY ($1) AND (q.claimed_by IS NULL OR q.claimed_by <> ALL ($2))
           AND (q.claimed_by IS NOT NULL
                OR NOT EXISTS (SELECT FROM ingest.queue c WHERE c.document_id = q.document_id AND c.claimed_by IS NOT NULL))
         ORDER BY q.document_id, q.pipeline_id FOR UPDATE OF q SKIP LOCKED",
        &[documents.into(), others_running.into()],
    )?;
    let mut suspects = Vec::new();
    for row in rows {
        suspects.push(Suspect {
            document: row["document_id"].value()?.unwrap_or_default(),
            pipeline: row["pipeline_id"].value()?.unwrap_or_default(),
            pipeline_name: row["name"].value()?.unwrap_or_default(),
            rebuild: row["rebuild"].value()?.unwrap_or_default(),
            key: row["key"].value()?.unwrap_or_default(),
            bytes: row["bytes"].value()?.unwrap_or_default(),
            attempts: row["attempts"].value()?.unwrap_or_default(),
            max_attempts: row["max_attempts"].value()?.unwrap_or_default(),
            crashes: row["crashes"].value()?.unwrap_or_default(),
        });
    }
    Ok(suspects)
}

fn give_up(client: &mut SpiClient, suspect: &Suspect) -> Result<(), pgrx::spi::Error> {
    let message = format!(
        "the worker process died {} while it worked on this document; the server's log may say why",
        if suspect.crashes == 1 {
            "once".to_owned()
        } else {
            format!("{} times", suspect.crashes)
        }
    );
    set_aside(
        client,
        (suspect.pipeline, &suspect.pipeline_name, suspect.rebuild),
        suspect.document,
        &suspect.key,
        &Ended {
            error_class: "internal",
            http_status: None,
            message: &message,
            attempts: suspect.attempts.saturating_add(suspect.crashes),
            retryable: false,
        },
    )?;
    run(
        client,
        "INSERT INTO ingest.counter_delta (pipeline_id, queued, queued_bytes, failed) VALUES ($1, -1, -$2::bigint, 1)",
        &[suspect.pipeline.into(), suspect.bytes.into()],
    )?;
    warning!(
        "pg_ingest: document {} of pipeline {:?} is set aside: {message}",
        suspect.document,
        suspect.pipeline_name
    );
    Ok(())
}
