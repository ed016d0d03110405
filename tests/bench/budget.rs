//! How well a budget is used: by one worker and by many, by two databases, and by the script that people run today.

use std::thread;
use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, Latency, Limits, Share};
use harness::*;

use crate::plot::{Plot, Series};
use crate::report::line;
use crate::{Scale, script};

/// Words of a document of some 350 tokens.
pub const WORDS: usize = 340;

/// What the provider allows in a minute, and what we aim at.
const RPM: u64 = 4_000;
const TPM: u64 = 4_000_000;

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// What is looked at begins so long after the first request and ends so long before the last one.
const RAMP: Duration = Duration::from_secs(10);
const TAIL: Duration = SECOND;

/// How often the ETA is read.
const GLANCE: Duration = Duration::from_secs(2);
/// An ETA counts from here on: after a minute of a long run, after ten seconds of one that is shorter than two minutes.
const SETTLED: [Duration; 2] = [Duration::from_secs(10), MINUTE];
/// An ETA counts as long as so much is left: it is given in whole seconds.
const TOO_NEAR: Duration = Duration::from_secs(10);

/// A run of pg_ingest.
struct Case {
    what: &'static str,
    workers: usize,
    databases: usize,
    rpm: u64,
    documents: usize,
    words: usize,
    /// Further arguments of `create_pipeline`.
    more: &'static str,
}

/// What came of it.
struct Run {
    api: FakeApi,
    took: Duration,
    etas: Vec<Eta>,
    /// What `estimate()` said before.
    estimated: Option<Duration>,
}

/// An ETA, and what was then really left.
struct Eta {
    at: Duration,
    said: Duration,
    left: Duration,
}

/// `BENCH_PLOT=FILE` draws the first run and the script's.
pub fn use_of_the_budget(cluster: &Cluster, scale: &Scale) {
    let documents = scale.rows(20_000);
    println!(
        "{documents} documents under {RPM} requests and {TPM} tokens a minute, which the API enforces over minutes and seconds"
    );
    let usual = Case {
        what: "1 worker",
        workers: 1,
        databases: 1,
        rpm: RPM,
        documents,
        words: WORDS,
        more: "index => 'none'",
    };
    let first = run(cluster, &usual);
    report(&usual, &first);
    for case in [
        Case {
            what: "2 workers",
            workers: 2,
            ..usual
        },
        Case {
            what: "4 workers",
            workers: 4,
            ..usual
        },
        Case {
            what: "2 databases, 1 worker each",
            databases: 2,
            ..usual
        },
        Case {
            what: "1 worker, short documents, 300 requests a minute, batch_size 100",
            rpm: 300,
            documents: documents * 2,
            words: 25,
            more: "index => 'none', batch_size => 100",
            ..usual
        },
    ] {
        let run = run(cluster, &case);
        report(&case, &run);
    }
    let script = script_run(documents);
    println!(
        "  a script: ten threads, 38 texts a request, a sleep of 1, 2, 4 … s after each refusal"
    );
    report_api(&script, RPM);
    if let Some(file) = std::env::var_os("BENCH_PLOT") {
        let plot = Plot {
            budget: TPM as f64 / 60.0,
            series: [("pg_ingest", &first.api), ("a script", &script)]
                .map(|(name, api)| Series::new(name, api)),
        };
        std::fs::write(&file, plot.svg()).expect("the plot's file can be written");
        println!("  drawn to {}", file.display());
    }
    println!();
}

fn api(rpm: u64) -> FakeApi {
    FakeApi::start(Behaviour {
        limits: Limits::per_minute(rpm, TPM),
        latency: Latency::fixed(Duration::from_millis(200)),
        ..remote::behaviour()
    })
}

fn run(cluster: &Cluster, case: &Case) -> Run {
    let api = api(case.rpm);
    cluster.reload(&[("pg_ingest.workers", &case.workers.to_string())]);
    // A limit of its own, so that no run inherits another's debt.
    let limit = quoted(&format!("api at {}", api.address()));
    let databases: Vec<Database> = (0..case.databases)
        .map(|_| Database::new_in(cluster))
        .collect();
    for (number, db) in databases.iter().enumerate() {
        db.run(&format!(
            "SELECT ingest.set_limit({limit}, rpm => {}, tpm => {TPM}, utilization => 1.0)",
            case.rpm
        ));
        db.create_remote_pipeline(
            "default",
            &api,
            &format!("limits => {limit}, {}", case.more),
        );
        db.run("SELECT ingest.pause('default')");
        let share = case.documents / case.databases;
        db.insert_prose("default", &format!("{number} "), share, case.words);
        db.run("VACUUM ANALYZE");
        wait_until("all workers run", SOON, || {
            db.worker_pids().len() == case.workers
        });
    }
    let estimates = "SELECT extract(epoch FROM duration)::float8 FROM ingest.estimate('default')";
    let estimated: Option<f64> = databases
        .iter()
        .map(|db| db.one::<Option<f64>>(estimates))
        .sum();
    let start = Instant::now();
    for db in &databases {
        db.run("SELECT ingest.resume('default')");
    }
    let glances: Vec<(Vec<(Instant, f64)>, Instant)> = thread::scope(|scope| {
        let watchers: Vec<_> = databases
            .iter()
            .map(|db| {
                let client = db.connect();
                scope.spawn(|| watch(client))
            })
            .collect();
        watchers
            .into_iter()
            .map(|watcher| watcher.join().expect("no panic"))
            .collect()
    });
    let etas = glances.iter().flat_map(|(glances, end)| {
        glances.iter().map(|(at, said)| Eta {
            at: at.duration_since(start),
            said: Duration::from_secs_f64(*said),
            left: end.duration_since(*at),
        })
    });
    Run {
        took: start.elapsed(),
        etas: etas.collect(),
        estimated: estimated.map(Duration::from_secs_f64),
        api,
    }
}

/// Reads the ETA until nothing is pending, and tells when that was.
fn watch(mut client: postgres::Client) -> (Vec<(Instant, f64)>, Instant) {
    let mut glances = Vec::new();
    let mut next = Instant::now() + GLANCE;
    loop {
        let look = Instant::now() >= next;
        let sql = if look {
            "SELECT pending + in_flight, extract(epoch FROM eta)::float8 FROM ingest.progress"
        } else {
            "SELECT (SELECT pending + in_flight FROM ingest.progress WHERE pipeline = 'default'), NULL::float8"
        };
        let row = client.query_one(sql, &[]).expect("progress");
        let now = Instant::now();
        if row.get::<_, i64>(0) == 0 {
            return (glances, now);
        }
        if let Some(eta) = row.get(1) {
            glances.push((now, eta));
        }
        if look {
            next += GLANCE;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The same documents as those of [`Database::insert_prose`], but for a word here and there.
fn script_run(documents: usize) -> FakeApi {
    const VOCABULARY: [&str; 16] = [
        "the", "harbour", "garden", "of", "engine", "letter", "and", "forest", "river", "was",
        "painted", "measured", "in", "spring", "by", "people",
    ];
    let texts: Vec<String> = (1..=documents)
        .map(|n| {
            let words: Vec<&str> = (1..=WORDS)
                .map(|w| VOCABULARY[(n * 7 + w * w) % 16])
                .collect();
            format!("Document {n}: {}", words.join(" "))
        })
        .collect();
    let api = api(RPM);
    script::run(api.address(), &texts, 10, 38);
    api
}

fn report(case: &Case, run: &Run) {
    println!("  {}", case.what);
    report_api(&run.api, case.rpm);
    let off = |said: Duration, real: Duration| {
        100.0 * (said.as_secs_f64() - real.as_secs_f64()) / real.as_secs_f64()
    };
    let settled = SETTLED[usize::from(run.took >= 2 * MINUTE || run.took >= MINUTE + 3 * TOO_NEAR)];
    let worst = run
        .etas
        .iter()
        .filter(|eta| eta.at >= settled && eta.left >= TOO_NEAR)
        .map(|eta| off(eta.said, eta.left))
        .max_by(|a, b| a.abs().total_cmp(&b.abs()));
    line(
        &format!("  worst eta after the first {} s", settled.as_secs()),
        worst.map_or("none".into(), |worst| format!("{worst:+.1} %")),
    );
    if let Some(estimated) = run.estimated {
        line(
            "  estimate() before the start",
            format!("{:+.1} %", off(estimated, run.took)),
        );
    }
    line("  time", format!("{:.1} s", run.took.as_secs_f64()));
}

fn report_api(api: &FakeApi, rpm: u64) {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let Share { requests, tokens } = api.share_used(RAMP, TAIL, rpm, TPM);
    line("  share of the token budget used", percent(tokens));
    line("  share of the request budget used", percent(requests));
    line(
        "  requests refused (429)",
        format!("{} of {}", api.refused(), api.arrived()),
    );
    line("  inputs sent twice", api.repeated_inputs());
    for window in [MINUTE, SECOND] {
        let busiest = api.busiest(window);
        let part = window.as_secs_f64() / 60.0;
        line(
            &format!(
                "  busiest {} s, tokens and requests against the limit",
                window.as_secs()
            ),
            format!(
                "{} {}",
                percent(busiest.tokens as f64 / (TPM as f64 * part)),
                percent(busiest.requests as f64 / (rpm as f64 * part))
            ),
        );
    }
}
