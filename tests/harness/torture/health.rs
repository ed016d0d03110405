//! Health of the queue: what a long day leaves behind in tables, indexes and the worker's process.

use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, TokenCount};
use postgres::Client;

use crate::remote::behaviour;
use crate::{Cluster, Database, anonymous_memory, open_descriptors, threads_of, wait_until};

/// Autovacuum comes as soon as it is wanted and takes no rests, as an hour's load is here pressed into minutes.
const SETTINGS: [(&str, &str); 3] = [
    ("autovacuum_naptime", "1s"),
    ("autovacuum_vacuum_cost_delay", "0"),
    ("max_wal_size", "4GB"),
];

/// Parts of the day, three thirds of which the middle one passes under a snapshot that somebody holds.
const WAVES: usize = 15;

/// The longest that a wave or autovacuum may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Dead rows of the queue that autovacuum leaves alone, as its table says.
const LEFT_ALONE: i64 = 50_000;

/// How things are at the end of a wave.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Documents a second in this wave.
    rate: f64,
    queue: i64,
    indexes: i64,
    deltas: i64,
    dead: i64,
    memory: u64,
    descriptors: usize,
    threads: usize,
}

/// Embeds so many documents, inserted in waves while the worker works, the middle third of them while a snapshot holds
/// vacuum back. Later waves must be as fast as earlier ones, autovacuum must take back what died, and the worker must not
/// have grown.
///
/// # Panics
/// When the queue's health suffers for good.
pub fn health(documents: usize) -> String {
    let cluster = Cluster::start(&SETTINGS);
    let db = Database::new_in(&cluster);
    let api = FakeApi::start(Behaviour {
        token_count: TokenCount::Bytes(4),
        budget_headers: false,
        ..behaviour()
    });
    db.create_remote_pipeline("p", &api, "dimensions => 8, index => 'none'");
    let size = documents / WAVES;
    let worker = db.worker();
    let mut snapshot = None;
    let mut samples = Vec::new();
    for wave in 0..WAVES {
        if wave == WAVES / 3 {
            snapshot = Some(take_snapshot(&db));
        }
        if wave == WAVES * 2 / 3 {
            snapshot.take();
        }
        let rate = embed_wave(&db, wave, size);
        samples.push(sample(&db, worker, rate));
    }
    db.quiesce();
    let all = (size * WAVES) as i64;
    assert_eq!(db.progress_of("p").counts(), (all, all, 0, 0));
    assert_eq!(api.repeated_inputs(), 0);
    assert_eq!(db.worker(), worker, "the worker was restarted");
    wait_until("autovacuum has taken back what died", PATIENCE, || {
        dead_rows(&db) <= LEFT_ALONE
    });
    judge(&samples, &sample(&db, worker, 0.0), all)
}

fn judge(samples: &[Sample], end: &Sample, documents: i64) -> String {
    let third = WAVES / 3;
    // The first wave is also the start of everything.
    let before = median_rate(&samples[1..third]);
    let during = median_rate(&samples[third..2 * third]);
    let after = median_rate(&samples[2 * third..]);
    let peak = samples[..=2 * third].iter().map(|s| s.indexes).max();
    let (peak, held) = (peak.unwrap_or_default(), &samples[2 * third - 1]);
    let first = &samples[WAVES / 10];
    let mb = |bytes: i64| bytes as f64 / 1e6;
    let figures = format!(
        "{documents} documents: {before:.0}/s, with a snapshot held {during:.0}/s ({:.2}), after it {after:.0}/s ({:.2})\n\
         queue: {:.1} MB and indexes of {:.1} MB at most, {:.1} and {:.1} at the end; dead rows {} at most, {} at the end; \
         counter_delta {:.1} MB at most\n\
         worker: {} kB anonymous memory then, {} at the end; descriptors {} and {}, threads {} and {}",
        during / before,
        after / before,
        mb(samples.iter().map(|s| s.queue).max().unwrap_or_default()),
        mb(samples.iter().map(|s| s.indexes).max().unwrap_or_default()),
        mb(end.queue),
        mb(end.indexes),
        samples.iter().map(|s| s.dead).max().unwrap_or_default(),
        end.dead,
        mb(samples.iter().map(|s| s.deltas).max().unwrap_or_default()),
        first.memory,
        end.memory,
        first.descriptors,
        end.descriptors,
        first.threads,
        end.threads,
    );
    // Whoever else uses the machine has a say in it, too, and all the more in what takes a moment only.
    let noise = if documents < 100_000 { 5.0 } else { 2.0 };
    assert!(during.min(after) > before / noise, "{figures}");
    assert!(
        end.indexes <= peak.max(held.indexes) * 5 / 4 + (1 << 20),
        "the indexes grow on\n{figures}"
    );
    assert!(
        end.memory <= first.memory + 32 * 1024,
        "the worker grows\n{figures}"
    );
    assert!(
        end.descriptors <= first.descriptors + 8 && end.threads <= first.threads + 2,
        "the worker leaks\n{figures}"
    );
    figures
}

fn median_rate(samples: &[Sample]) -> f64 {
    let mut rates: Vec<f64> = samples.iter().map(|sample| sample.rate).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// A session that sees the database as it is now, as a long report or `pg_dump` does.
fn take_snapshot(db: &Database) -> Client {
    let mut session = db.connect();
    session
        .batch_execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ingest.progress",
        )
        .expect("a snapshot");
    session
}

/// Inserts a wave and waits until a quarter of it is left, so that the worker is never idle; documents a second.
fn embed_wave(db: &Database, wave: usize, size: usize) -> f64 {
    let (start, before) = (Instant::now(), embedded(db));
    db.run(&format!(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', '{wave}/' || n, 'Wave {wave}, note ' || n || ': ' || repeat(md5(n::text) || ' ', 5)
         FROM generate_series(1, {size}) n"
    ));
    let left = size / 4;
    let enough = ((wave + 1) * size - left) as i64;
    let mut now = 0;
    wait_until("most of a wave is embedded", PATIENCE, || {
        now = embedded(db);
        now >= enough
    });
    (now - before) as f64 / start.elapsed().as_secs_f64()
}

/// Documents that are done, without a look at the queue's indexes.
fn embedded(db: &Database) -> i64 {
    db.one("SELECT sum(documents - queued - failed)::bigint FROM ingest.totals")
}

fn dead_rows(db: &Database) -> i64 {
    db.one("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'ingest.queue'::regclass")
}

fn sample(db: &Database, worker: i32, rate: f64) -> Sample {
    let row = &db.rows(
        "SELECT pg_table_size('ingest.queue'), pg_indexes_size('ingest.queue'), pg_table_size('ingest.counter_delta')",
    )[0];
    Sample {
        rate,
        queue: row.get(0),
        indexes: row.get(1),
        deltas: row.get(2),
        dead: dead_rows(db),
        memory: anonymous_memory(worker),
        descriptors: open_descriptors(worker),
        threads: threads_of(worker).len(),
    }
}
