//! Deaths at every point of a document's way.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, Latency};

use super::Random;
use crate::remote::behaviour;
use crate::{Cluster, Database, SOON, signal, wait_until};

/// How something ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL to the worker.
    Worker,
    /// SIGKILL to a session's backend.
    Backend,
    /// SIGKILL to the postmaster.
    Postmaster,
    /// `pg_ctl stop -m immediate`.
    Immediate,
    /// `pg_ctl stop -m fast`.
    Fast,
    /// `pg_terminate_backend` of the worker.
    Terminate,
    /// `pg_cancel_backend` of the worker, many times.
    Cancel,
    /// The worker aborts by itself.
    Abort,
    /// The step fails, and nobody dies.
    Error,
}

/// All of them.
const DEATHS: [Death; 9] = [
    Death::Worker,
    Death::Backend,
    Death::Postmaster,
    Death::Immediate,
    Death::Fast,
    Death::Terminate,
    Death::Cancel,
    Death::Abort,
    Death::Error,
];

/// The points at which something can be made to happen.
const POINTS: [&str; 8] = [
    "after_claim",
    "after_split",
    "after_admit",
    "after_send",
    "mid_answer",
    "before_commit",
    "after_commit",
    "before_release",
];

/// Documents of a round.
const DOCUMENTS: usize = 120;
/// What a text holds that the API refuses.
const POISON: &str = "strychnine";
/// Every so many documents, one is refused.
const EVERY: usize = 50;

/// What rounds of dying came to.
#[derive(Debug, Default)]
struct Sum {
    rounds: usize,
    sent: u64,
    repeated: u64,
    in_flight: usize,
    slowest: Duration,
    totals_over: i64,
}

/// `rounds` rounds: documents are inserted, something dies at some point, and when all has settled every document is embedded
/// or failed as it should, and only what was in flight was sent twice. The first rounds go through all points; what follows
/// is drawn from the seed.
///
/// # Panics
/// When something is lost, stale, missing, double or miscounted.
pub fn kills(seed: u64, rounds: usize) -> String {
    let mut random = Random::new(seed);
    let cluster = Cluster::start_injecting(&[("pg_ingest.request_timeout", "10s")]);
    let mut sum = Sum::default();
    for round in 0..rounds {
        let point = POINTS[round % POINTS.len()];
        let death = random.choose(&DEATHS);
        let skip = random.below(8);
        let workers = 1 + random.below(2);
        println!(
            "round {round}: {death:?} {point}, after {skip} arrivals, {workers} workers (seed {seed})"
        );
        cluster.reload(&[("pg_ingest.workers", &workers.to_string())]);
        kill_in_round(&cluster, point, death, skip, &mut sum);
    }
    format!(
        "kills: {} rounds of {DOCUMENTS} documents, {} inputs sent, {} sent twice of {} in flight at the deaths, day totals over by {} \
         requests, settled within {:.1} s of the death at worst",
        sum.rounds,
        sum.sent,
        sum.repeated,
        sum.in_flight,
        sum.totals_over,
        sum.slowest.as_secs_f64()
    )
}

/// One round in a cluster of one's own.
///
/// # Panics
/// As [`kills`].
pub fn kill_at(cluster: &Cluster, point: &str, death: Death) {
    kill_in_round(cluster, point, death, 0, &mut Sum::default());
}

fn kill_in_round(cluster: &Cluster, point: &str, death: Death, skip: usize, sum: &mut Sum) {
    let api = FakeApi::start(Behaviour {
        keep_texts: true,
        latency: Latency::fixed(Duration::from_millis(5)),
        ..behaviour()
    });
    api.refuse_text(POISON);
    let db = Database::new_in(cluster);
    db.run(
        "SELECT ingest.set_limit('budget', rpm => 600000, tpm => 600000000, utilization => 1.0)",
    );
    db.create_remote_pipeline(
        "p",
        &api,
        "limits => 'budget', concurrency => 4, batch_size => 8, chunk_tokens => 60, chunk_overlap => 0",
    );
    db.run("SELECT ingest.pause('p')");
    insert(&db);
    let arm = |action: &str| {
        db.run(&format!(
            "SELECT ingest.inject('{point}', '{action}', {skip})"
        ));
    };
    let dies_by_itself = matches!(death, Death::Abort | Death::Error);
    match death {
        Death::Abort => arm("abort"),
        Death::Error => arm("error"),
        _ => arm("wait"),
    }
    if point == "before_release" {
        // Nobody comes there but at a worker's start and end. Nothing has been sent yet.
        if let Some(pid) = db.worker_pids().first() {
            db.run(&format!("SELECT pg_terminate_backend({pid})"));
        }
    }
    wait_until("work begins", SOON, || {
        let resumed = db.try_run("SELECT ingest.resume('p')").is_ok();
        if !resumed {
            db.reconnect();
        }
        resumed
    });
    let settled = |db: &Database| {
        db.try_one::<bool>(
            "SELECT pending + in_flight = 0 FROM ingest.progress WHERE pipeline = 'p'",
        )
        .unwrap_or(false)
    };
    let died = || db.try_run("SELECT 1").is_err();
    let reached = || {
        db.try_one::<i64>(&format!("SELECT ingest.waiting_at('{point}')"))
            .is_ok_and(|waiting| waiting > 0)
    };
    wait_until("the point is reached, or all is done", SOON, || {
        settled(&db) || if dies_by_itself { died() } else { reached() }
    });
    let before = if dies_by_itself {
        Vec::new()
    } else {
        visible(&db)
    };
    let start = Instant::now();
    kill(&db, death, point, || {
        let sent: HashSet<String> = sent_times(&api).into_keys().collect();
        sum.in_flight += before
            .iter()
            .fold(sent.len(), |n, text| n - usize::from(sent.contains(text)));
    });
    let all = wait(&db, &settled);
    sum.slowest = sum.slowest.max(start.elapsed());
    assert!(all, "{:?}", db.progress_of("p"));
    check_documents(&db);
    check_calls(&db, &api, &before, sum);
    sum.rounds += 1;
    api.check();
}

/// Documents of one to some ten chunks; the text says which document and which part it is of, so that none is like
/// another.
fn insert(db: &Database) {
    db.run(&format!(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', 'd' || n, (SELECT string_agg(format('Document %s, paragraph %s: the harbour was measured in spring by people who painted%s.',
                                                          n, w, CASE WHEN n % {EVERY} = 7 THEN ' {POISON}' ELSE '' END), E'\\n\\n')
                                FROM generate_series(1, 1 + n * n % 13) w)
         FROM generate_series(1, {DOCUMENTS}) n"
    ));
}

/// The texts of the chunks that are there.
fn visible(db: &Database) -> Vec<String> {
    db.all("SELECT content FROM ingest.p_chunks")
}

/// Has something die, and calls `look` when it is dead and nothing has come again.
fn kill(db: &Database, death: Death, point: &str, look: impl FnOnce()) {
    let cluster = db.cluster();
    let release = || {
        let _ = db.try_run(&format!("SELECT ingest.inject('{point}', 'pass')"));
    };
    let worker = || db.worker_pids().first().copied();
    let noticed = || {
        wait_until("the server has noticed", SOON, || {
            db.try_run("SELECT 1").is_err()
        });
    };
    match death {
        Death::Worker => {
            if let Some(pid) = worker() {
                signal(pid, "KILL");
                noticed();
            }
            look();
        }
        Death::Backend => {
            let pid: i32 = db.one("SELECT pg_backend_pid()");
            signal(pid, "KILL");
            noticed();
            look();
        }
        Death::Postmaster => {
            cluster.kill_postmaster();
            look();
            cluster.start_server_again();
        }
        Death::Immediate | Death::Fast => {
            let mode = if death == Death::Fast {
                "fast"
            } else {
                "immediate"
            };
            cluster.stop_server(mode);
            look();
            cluster.start_server();
        }
        Death::Terminate => {
            if let Some(pid) = worker() {
                db.run(&format!("SELECT pg_terminate_backend({pid})"));
            }
            look();
            release();
        }
        Death::Cancel => {
            for _ in 0..20 {
                if let Some(pid) = worker() {
                    db.run(&format!("SELECT pg_cancel_backend({pid})"));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            look();
            release();
        }
        Death::Abort | Death::Error => look(),
    }
    db.reconnect();
    // Memory that outlived a clean stop of the worker may still say so.
    release();
}

fn wait(db: &Database, settled: &impl Fn(&Database) -> bool) -> bool {
    let start = Instant::now();
    while !settled(db) {
        if start.elapsed() > 2 * SOON {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
        if db.try_run("SELECT 1").is_err() {
            db.reconnect();
        }
    }
    true
}

/// Every document is embedded or failed; the chunks are those of its text, each once; the counters know it.
fn check_documents(db: &Database) {
    let failed = (1..=DOCUMENTS).filter(|n| n % EVERY == 7).count() as i64;
    let all = DOCUMENTS as i64;
    let progress = db.progress_of("p");
    assert_eq!(
        progress.counts(),
        (all, all - failed, 0, failed),
        "{:?}",
        db.rows_as_text("SELECT * FROM ingest.failures")
    );
    let wrong = db.rows_as_text(&format!(
        "SELECT f.key, f.error_class, f.message FROM ingest.failures f JOIN ingest.documents d ON d.id = f.document_id
         WHERE d.content NOT LIKE '%{POISON}%' OR f.error_class <> 'invalid_request'"
    ));
    assert!(wrong.is_empty(), "{wrong:?}");
    let differing = db.rows_as_text(
        "WITH wanted AS (
             SELECT d.key, s.chunk_no, s.content FROM ingest.documents d CROSS JOIN LATERAL ingest.split(d.content, 'p') s
             WHERE NOT EXISTS (SELECT FROM ingest.failures f WHERE f.document_id = d.id)
         ), there AS (SELECT document_key, chunk_no, content FROM ingest.p_chunks)
         (SELECT 'missing', * FROM (TABLE wanted EXCEPT ALL TABLE there) a)
         UNION ALL (SELECT 'too many', * FROM (TABLE there EXCEPT ALL TABLE wanted) b)",
    );
    assert!(differing.is_empty(), "{differing:?}");
    let chunks = db.check_vectors("ingest.p_chunks");
    assert_eq!(chunks as i64, progress.chunks);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), 0);
}

/// What was visible before the death was not sent again, nothing was sent more than twice, and the day's totals know of every
/// request.
fn check_calls(db: &Database, api: &FakeApi, before: &[String], sum: &mut Sum) {
    let times = sent_times(api);
    for text in before {
        assert_eq!(
            times.get(text),
            Some(&1),
            "{text:?} was visible and was sent again"
        );
    }
    let most = times.values().max().copied().unwrap_or(0);
    let often: Vec<&String> = times
        .iter()
        .filter(|(_, n)| **n > 2)
        .map(|(text, _)| text)
        .collect();
    let told = || -> Vec<String> {
        let requests = api.requests();
        let first = requests.first().map(|request| request.arrived);
        let with = requests
            .iter()
            .filter(|r| often.iter().any(|text| r.texts.contains(text)));
        with.map(|r| {
            let at = first.map(|first| r.arrived - first);
            format!(
                "{} at {at:?}: {} inputs, {:?}",
                r.number, r.inputs, r.status
            )
        })
        .collect()
    };
    assert!(
        most <= 2,
        "a text was sent {most} times: {often:?} {:#?}",
        told()
    );
    let repeated = times.values().filter(|n| **n > 1).count() as u64;
    sum.sent += times.len() as u64;
    sum.repeated += repeated;
    let counted: i64 = db.one("SELECT requests_today FROM ingest.limits");
    let arrived = api.arrived() as i64;
    let over = counted - arrived;
    assert!(
        (0..=4).contains(&over),
        "{arrived} requests arrived, {counted} are counted: {:?}",
        db.rows_as_text("SELECT * FROM ingest.limit_day")
    );
    sum.totals_over += over;
}

/// How often each text was sent. Requests that were refused are halved and come again, which is no repetition.
fn sent_times(api: &FakeApi) -> HashMap<String, u64> {
    let mut times: HashMap<String, u64> = HashMap::new();
    let requests = api.requests().into_iter();
    for record in requests.filter(|record| record.status != Some(400)) {
        for text in record.texts {
            *times.entry(text).or_default() += 1;
        }
    }
    times
}
