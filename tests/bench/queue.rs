//! What INSERT costs, and what a long queue must not cost.

use std::time::Duration;

use harness::*;
use postgres::Client;

use crate::report::{line, median, ratio, seconds, timed};

/// Characters of a document in the measurements of INSERT: a page of prose.
const PAGE: &str = "repeat(md5(n::text) || ' ', 45)";

/// A paused pipeline and a table like `ingest.documents`, with its indexes and constraints, without its triggers.
fn with_plain_table(cluster: &Cluster) -> Database<'_> {
    let db = Database::new_in(cluster);
    db.run("SELECT ingest.create_pipeline(); SELECT ingest.pause('default')");
    db.run("CREATE TABLE public.plain (LIKE ingest.documents INCLUDING ALL)");
    db
}

pub fn bulk_insert(cluster: &Cluster, documents: usize) {
    println!(
        "{documents} documents of 1.5 kB in one INSERT, against the same table without pg_ingest; median of 5 turns"
    );
    let db = with_plain_table(cluster);
    let insert = |table: &str| {
        db.run(&format!("TRUNCATE {table}"));
        db.run("CHECKPOINT");
        timed(|| {
            db.run(&format!(
                "INSERT INTO {table} (key, content) SELECT 'k' || n, {PAGE} FROM generate_series(1, {documents}) n"
            ));
        })
    };
    insert("public.plain");
    let (mut ours, mut plain): (Vec<_>, Vec<_>) = (0..5)
        .map(|_| (insert("ingest.documents"), insert("public.plain")))
        .unzip();
    report_overhead(&mut ours, &mut plain);
}

pub fn single_inserts(cluster: &Cluster, documents: usize) {
    println!(
        "{documents} transactions of one INSERT each, against the same table without pg_ingest; median of 5 turns"
    );
    let db = with_plain_table(cluster);
    let mut client = db.connect();
    let mut insert = |table: &str| {
        db.run(&format!("TRUNCATE {table}"));
        let statement = client
            .prepare(&format!("INSERT INTO {table} (key, content) SELECT 'k' || n, {PAGE} FROM (SELECT $1::bigint AS n) x"))
            .expect("a statement");
        timed(|| {
            for number in 0..documents as i64 {
                client.execute(&statement, &[&number]).expect("INSERT");
            }
        })
    };
    insert("public.plain");
    let (mut ours, mut plain): (Vec<_>, Vec<_>) = (0..5)
        .map(|_| (insert("ingest.documents"), insert("public.plain")))
        .unzip();
    report_overhead(&mut ours, &mut plain);
}

fn report_overhead(ours: &mut [Duration], plain: &mut [Duration]) {
    let (ours, plain) = (median(ours), median(plain));
    line("into ingest.documents", seconds(ours));
    line("into the plain table", seconds(plain));
    line("ratio", ratio(ours, plain));
    println!();
}

/// What the length of the queue must not change.
struct AtLength {
    progress: Duration,
    claim: Duration,
    insert: Duration,
    per_second: f64,
}

pub fn long_queues(cluster: &Cluster, lengths: [usize; 2]) {
    println!(
        "with {} and with {} documents queued",
        lengths[0], lengths[1]
    );
    let [short, long] = lengths.map(|length| at_length(cluster, length));
    for (what, a, b) in [
        (
            "SELECT * FROM ingest.progress",
            short.progress,
            long.progress,
        ),
        (
            "claiming 128 documents (the worker's statements)",
            short.claim,
            long.claim,
        ),
        ("INSERT of one document", short.insert, long.insert),
    ] {
        line(&format!("{what}, short queue"), seconds(a));
        line(&format!("{what}, long queue"), seconds(b));
        line("ratio", ratio(b, a));
    }
    line(
        "documents embedded, short queue",
        format!("{:.1}/s", short.per_second),
    );
    line(
        "documents embedded, long queue",
        format!("{:.1}/s", long.per_second),
    );
    line(
        "throughput, long : short",
        format!("{:.2}", long.per_second / short.per_second),
    );
    println!();
}

fn at_length(cluster: &Cluster, documents: usize) -> AtLength {
    const TO_EMBED: i64 = 3_000;
    let db = Database::new_in(cluster);
    db.run("SELECT ingest.create_pipeline(index => 'none'); SELECT ingest.embed('The model is loaded.'); SELECT ingest.pause('default')");
    db.run(&format!(
        "INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n || ' of many.' FROM generate_series(1, {documents}) n"
    ));
    db.run("CHECKPOINT");
    let mut client = db.connect();
    let mut progress: Vec<Duration> = (0..21)
        .map(|_| {
            timed(|| {
                drop(
                    client
                        .query("SELECT * FROM ingest.progress", &[])
                        .expect("progress"),
                )
            })
        })
        .collect();
    client
        .batch_execute("SET enable_seqscan = off; SET jit = off")
        .expect("SET");
    let mut claims: Vec<Duration> = (0..21).map(|_| claim(&mut client)).collect();
    let mut inserts: Vec<Duration> = (0..21)
        .map(|number| {
            timed(|| {
                client
                    .execute(
                        "INSERT INTO ingest.documents (key, content) VALUES ($1, 'One more.')",
                        &[&format!("more {number}")],
                    )
                    .map(drop)
                    .expect("INSERT");
            })
        })
        .collect();
    let time = timed(|| {
        db.run("SELECT ingest.resume('default')");
        while db.progress().embedded < TO_EMBED.min(documents as i64) {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    db.run("SELECT ingest.pause('default')");
    AtLength {
        progress: median(&mut progress),
        claim: median(&mut claims),
        insert: median(&mut inserts),
        per_second: db.progress().embedded as f64 / time.as_secs_f64(),
    }
}

/// What the worker does to take documents, rolled back.
fn claim(client: &mut Client) -> Duration {
    let mut transaction = client.transaction().expect("BEGIN");
    let time = timed(|| {
        let waiting = transaction
            .query(
                "SELECT document_id FROM ingest.queue WHERE pipeline_id = 1 AND claimed_by IS NULL AND retry_at IS NULL
                 ORDER BY document_id LIMIT 128 FOR UPDATE SKIP LOCKED",
                &[],
            )
            .expect("the head of the queue");
        let ids: Vec<i64> = waiting.iter().map(|row| row.get(0)).collect();
        transaction
            .execute("UPDATE ingest.queue SET claimed_by = 99, claim_token = 1 WHERE document_id = ANY ($1)", &[&ids])
            .expect("a claim");
        transaction
            .query(
                "SELECT id, key, metadata::text, content FROM ingest.documents WHERE id = ANY ($1)",
                &[&ids],
            )
            .expect("the documents");
    });
    transaction.rollback().expect("ROLLBACK");
    time
}
