//! What pg_ingest costs, as ratios within one run on one machine: absolute times prove nothing. Nothing is asserted.
//!
//! `BENCH_SCALE` (default 1.0) scales the numbers of rows. Needs what the tests need; see [`harness`].

use std::time::{Duration, Instant};

use harness::*;
use postgres::Client;

/// Characters of a document in the measurements of INSERT: a page of prose.
const PAGE: &str = "repeat(md5(n::text) || ' ', 45)";

fn main() {
    let scale: f64 = std::env::var("BENCH_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1.0);
    let rows = |full: usize| ((full as f64 * scale) as usize).max(10);
    let cluster = Cluster::start(&[("shared_buffers", "512MB"), ("max_wal_size", "4GB")]);
    println!("BENCH_SCALE = {scale}; times are of this machine, today: read the ratios\n");
    pipeline_against_copy(&cluster, rows(400));
    latency(&cluster, 50);
    bulk_insert(&cluster, rows(100_000));
    single_inserts(&cluster, rows(1_000));
    long_queues(&cluster, [rows(10_000), rows(1_000_000)]);
}

fn line(what: &str, value: impl std::fmt::Display) {
    println!("  {what:<66} {value:>12}");
}

fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

fn ratio(a: Duration, b: Duration) -> String {
    format!("{:.2} ×", a.as_secs_f64() / b.as_secs_f64())
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// The value below which `share` of the times lie.
fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * share).round() as usize]
}

fn median(times: &mut [Duration]) -> Duration {
    quantile(times, 0.5)
}

fn pipeline_against_copy(cluster: &Cluster, documents: usize) {
    println!(
        "{documents} documents through the pipeline (local model), against COPY of the finished rows"
    );
    let db = Database::new_in(cluster);
    db.run("SELECT ingest.create_pipeline(index => 'none'); SELECT ingest.embed('The model is loaded.')");
    db.run("SELECT ingest.pause('default')");
    db.run(&format!(
        "INSERT INTO ingest.documents (key, content)
         SELECT 'k' || n, (SELECT string_agg(format('Sentence %s of document %s speaks of the %s.', s, n,
                               (ARRAY['harbour', 'garden', 'engine', 'letter', 'forest'])[1 + (n + s) % 5]), ' ')
                           FROM generate_series(1, 12) s)
         FROM generate_series(1, {documents}) n"
    ));
    let embedding = timed(|| {
        db.run("SELECT ingest.resume('default')");
        db.run("SELECT ingest.wait()");
    });
    let progress = db.progress();
    let columns = "id, document_key, chunk_no, content, tokens, metadata, embedding";
    db.run("CREATE TABLE public.copied (LIKE ingest.default_chunks INCLUDING ALL)");
    let mut rows = Vec::new();
    db.with_client(|client| {
        use std::io::Read;
        client
            .copy_out(&format!("COPY ingest.default_chunks ({columns}) TO STDOUT"))
            .expect("COPY TO")
            .read_to_end(&mut rows)
            .expect("the rows");
    });
    let mut copies: Vec<Duration> = (0..5)
        .map(|_| {
            db.run("TRUNCATE public.copied");
            timed(|| {
                db.with_client(|client| {
                    use std::io::Write;
                    let mut writer = client
                        .copy_in(&format!("COPY public.copied ({columns}) FROM STDIN"))
                        .expect("COPY FROM");
                    writer.write_all(&rows).expect("the rows");
                    writer.finish().expect("COPY ends");
                });
            })
        })
        .collect();
    let copy = median(&mut copies);
    let per_second =
        |count: i64, time: Duration| format!("{:.0}/s", count as f64 / time.as_secs_f64());
    line(
        "documents embedded",
        per_second(progress.embedded, embedding),
    );
    line("tokens embedded", per_second(progress.tokens, embedding));
    line("documents by COPY", per_second(progress.embedded, copy));
    line(
        "pipeline : COPY, documents per second",
        format!("{:.4}", copy.as_secs_f64() / embedding.as_secs_f64()),
    );
    println!();
}

fn latency(cluster: &Cluster, rounds: usize) {
    println!("from the commit of one short document to its vector visible, {rounds} times");
    let db = Database::new_in(cluster);
    db.run("SELECT ingest.create_pipeline()");
    db.run(&texts::insert_passages());
    db.quiesce();
    let mut watcher = db.connect();
    let look = watcher
        .prepare("SELECT EXISTS (SELECT FROM ingest.default_chunks WHERE document_key = $1)")
        .expect("a query");
    let (mut whole, mut embed, mut net) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let text = texts::numbered(round);
        let asked = timed(|| {
            db.execute("SELECT ingest.embed($1)", &[&text]);
        });
        let key = format!("late {round}");
        db.execute(
            "INSERT INTO ingest.documents (key, content) VALUES ($1, $2)",
            &[&key, &text],
        );
        // The INSERT returns after its commit: what is measured starts here.
        let visible = timed(|| {
            while !watcher
                .query_one(&look, &[&key])
                .expect("a look")
                .get::<_, bool>(0)
            {
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        whole.push(visible);
        embed.push(asked);
        net.push(visible.saturating_sub(asked));
    }
    for (what, times) in [
        ("commit to visible", &mut whole),
        ("embed() of the same text, from a session", &mut embed),
        ("commit to visible, embed() not counted", &mut net),
    ] {
        line(&format!("{what}, p50"), seconds(quantile(times, 0.5)));
        line(&format!("{what}, p95"), seconds(quantile(times, 0.95)));
    }
    println!();
}

/// A paused pipeline and a table like `ingest.documents`, with its indexes and constraints, without its triggers.
fn with_plain_table(cluster: &Cluster) -> Database<'_> {
    let db = Database::new_in(cluster);
    db.run("SELECT ingest.create_pipeline(); SELECT ingest.pause('default')");
    db.run("CREATE TABLE public.plain (LIKE ingest.documents INCLUDING ALL)");
    db
}

fn bulk_insert(cluster: &Cluster, documents: usize) {
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

fn single_inserts(cluster: &Cluster, documents: usize) {
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

fn long_queues(cluster: &Cluster, lengths: [usize; 2]) {
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
}

fn at_length(cluster: &Cluster, documents: usize) -> AtLength {
    const TO_EMBED: i64 = 500;
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
