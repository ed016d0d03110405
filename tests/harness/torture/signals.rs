//! Storms of signals at a worker with requests in flight and a model at work, and at a session in `embed()`.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

use fake_api::{FakeApi, Latency};
use postgres::Client;

use crate::remote::{all_embedded, behaviour};
use crate::texts::numbered;
use crate::{Cluster, Database, SOON, ServerError, threads_of, wait_until};

/// Requests in flight at most, and inputs of each.
const CONCURRENCY: usize = 8;
const BATCH: usize = 4;

/// Between two signals.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two ends of a worker.
const LIFE: Duration = Duration::from_millis(50);

/// Sends so many rounds of SIGHUP, SIGUSR1, SIGINT and cancels at a busy worker, at the ids of its other threads, and at a
/// session that asks for vectors; then ends the worker as many times, every 50 ms. Nothing may crash or be lost.
///
/// # Panics
/// When something is.
pub fn signals(seed: u64, rounds: usize) -> String {
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    let api = FakeApi::start(behaviour());
    api.set_latency(Latency::fixed(Duration::from_millis(20)));
    db.run("SELECT ingest.create_pipeline('local', index => 'none')");
    db.create_remote_pipeline(
        "p",
        &api,
        &format!("concurrency => {CONCURRENCY}, batch_size => {BATCH}, max_attempts => 1"),
    );
    db.run("SELECT ingest.embed('The model is loaded.', 'local')");
    let harmless = harmless_signals(&db, &api, seed, rounds);
    let ends = ends_of_workers(&db, &api, rounds);
    let log = crate::remote::server_log(&cluster);
    for word in [
        "was terminated by signal",
        "PANIC",
        "panicked",
        "all server processes",
    ] {
        assert!(!log.contains(word), "{}", cluster.log_tail(word));
    }
    format!("seed {seed}: {harmless}\n{ends}")
}

fn insert(db: &Database, from: usize, documents: usize, local: usize) {
    db.insert_prose("p", &format!("{from} "), documents, 5);
    for number in 0..local {
        db.run(&format!(
            "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('local', '{from} {number}', '{}')",
            numbered(from + number)
        ));
    }
}

/// Sees that every document of both pipelines has its chunk, once and of its present content.
fn nothing_is_lost(db: &Database, remote: usize, local: usize) {
    all_embedded(db, "p", remote);
    let right = |pipeline: &str| -> i64 {
        db.one(&format!(
            "SELECT count(*) FROM ingest.documents d JOIN ingest.{pipeline}_chunks c
             ON c.document_key = d.key AND c.content = d.content WHERE d.pipeline = '{pipeline}'"
        ))
    };
    db.settle();
    assert_eq!((right("p"), right("local")), (remote as i64, local as i64));
    let chunks: i64 = db.one("SELECT count(*) FROM ingest.local_chunks");
    assert_eq!(chunks, local as i64);
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
}

/// Asks for vectors until told to stop, and bears no other error than a cancel; how many it got and how many cancels.
fn ask(mut session: Client, stop: &AtomicBool) -> (usize, usize) {
    let (mut answers, mut cancels) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        // Never the same again, as what is sent twice is counted.
        let number = answers + cancels;
        let pipeline = ["p", "local"][number % 2];
        let question = format!("SELECT ingest.embed('question {number}', '{pipeline}')");
        match session.batch_execute(&question) {
            Ok(()) => answers += 1,
            Err(error) => {
                let error = ServerError::from(error);
                assert_eq!(error.code, "57014", "{error:?}");
                cancels += 1;
            }
        }
    }
    (answers, cancels)
}

/// Sends a signal to threads, some of which may have ended.
fn send(name: &str, threads: &[i32]) {
    let ids = threads.iter().map(i32::to_string);
    let _ = Command::new("kill")
        .args(["-s", name])
        .args(ids)
        .stderr(Stdio::null())
        .status()
        .expect("kill runs");
}

fn harmless_signals(db: &Database, api: &FakeApi, seed: u64, rounds: usize) -> String {
    let (documents, local) = (rounds * 20, rounds / 2);
    let worker = db.worker();
    let mut session = db.connect();
    let backend: i32 = session
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("a session")
        .get(0);
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let questions = spawn(move || ask(session, &stopped));
    insert(db, 0, documents, local);
    let mut random = seed;
    for _ in 0..rounds {
        // Knuth's generator (MMIX); its upper bits are the good ones.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mut targets = threads_of(worker);
        targets.push(backend);
        match (random >> 60) % 4 {
            0 => send("HUP", &targets),
            1 => send("USR1", &targets),
            2 => send("INT", &targets),
            _ => db.run(&format!(
                "SELECT pg_cancel_backend({worker}), pg_cancel_backend({backend})"
            )),
        }
        // Tokio's, the model's, the splitters' and those that answer queries.
        assert!(deaf_threads(worker) > 4);
        deaf_threads(backend);
        sleep(PAUSE);
    }
    stop.store(true, Ordering::SeqCst);
    let (answers, cancels) = questions.join().expect("no question fails otherwise");
    nothing_is_lost(db, documents, local);
    assert_eq!(db.worker(), worker, "the worker was restarted");
    let threads = threads_of(worker).len();
    let repeated = api.repeated_inputs();
    // Queries repeat no text, and a cancelled statement of the worker sends nothing again.
    assert_eq!(repeated, 0, "inputs were sent again");
    format!(
        "{rounds} rounds of signals at {threads} threads, {answers} vectors for a session, {cancels} cancelled"
    )
}

/// How many threads beside the main one a process has, which alone may run Postgres's signal handlers: the others block
/// every signal.
fn deaf_threads(pid: i32) -> usize {
    let mut deaf = 0;
    for thread in threads_of(pid) {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")) else {
            continue;
        };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let Some(mask) = field("SigBlk:").and_then(|m| u64::from_str_radix(m.trim(), 16).ok())
        else {
            continue;
        };
        // All that can be blocked of the 31 classic signals: not SIGKILL and SIGSTOP.
        let all = 0x7fff_ffff & !(1 << (9 - 1)) & !(1 << (19 - 1));
        assert!(
            thread == pid || mask & all == all,
            "thread {:?} of {pid} hears signals: {mask:x}",
            field("Name:")
        );
        deaf += usize::from(thread != pid);
    }
    deaf
}

fn ends_of_workers(db: &Database, api: &FakeApi, rounds: usize) -> String {
    let (documents, local) = (rounds * 60, rounds / 2);
    let before = (rounds * 20, rounds / 2);
    insert(db, 1_000_000, documents, local);
    let mut ended = BTreeSet::new();
    for round in 0..rounds {
        if round % 5 == 0 {
            // A storm would end the workers before they send anything.
            wait_until("requests are in flight", SOON, || api.in_flight() > 0);
        }
        let pids: Vec<i32> = db.all(
            "WITH workers AS MATERIALIZED (
                 SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_ingest worker' AND datname = current_database()
             )
             SELECT pid FROM workers WHERE pg_terminate_backend(pid)",
        );
        ended.extend(pids);
        // What is changed meanwhile is found in its last version.
        db.run(&format!(
            "UPDATE ingest.documents SET content = 'Version {round} of ' || key
             WHERE pipeline = 'p' AND key LIKE '1000000 {round}%'"
        ));
        sleep(LIFE);
    }
    wait_until("a worker runs", SOON, || !db.worker_pids().is_empty());
    nothing_is_lost(db, before.0 + documents, before.1 + local);
    let repeated = api.repeated_inputs();
    let most = (ended.len() * CONCURRENCY * BATCH) as u64;
    assert!(
        repeated <= most,
        "{repeated} inputs were sent again, {most} were in flight at most"
    );
    format!(
        "{} workers ended, one every {LIFE:?}: {repeated} inputs sent again of {most} in flight at most",
        ended.len()
    )
}
