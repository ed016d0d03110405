//! How fast documents go through when no budget stands in the way, against COPY of the finished rows.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fake_api::{Behaviour, FakeApi, Latency, Limits, TokenCount};
use harness::*;

use crate::report::{line, median, timed};

const COLUMNS: &str = "id, document_key, chunk_no, content, tokens, metadata, embedding";

/// `documents` of some 350 tokens, 1536 dimensions, an API that answers in 50 ms and costs little itself.
pub fn against_copy(cluster: &Cluster, documents: usize) {
    println!(
        "{documents} documents through an API that answers in 50 ms, without a limit, against COPY of the finished rows"
    );
    let mut copied = None;
    for how in [Vectors::Base64, Vectors::Numbers] {
        let (db, took) = pipeline(cluster, documents, how);
        let per_second = |time: Duration| format!("{:.0}/s", documents as f64 / time.as_secs_f64());
        // The rows are the same either way.
        let best = *copied.get_or_insert_with(|| {
            let copies = ["text", "binary"].map(|format| (format, copy(&db, format)));
            for (format, time) in copies {
                line(&format!("COPY, {format} format"), per_second(time));
            }
            let times = copies.into_iter().map(|(_, time)| time);
            times.min().unwrap_or_default()
        });
        line(
            "pipeline : the faster COPY, documents per second",
            format!("{:.4}", best.as_secs_f64() / took.as_secs_f64()),
        );
    }
    println!();
}

/// How the API sends vectors.
#[derive(Clone, Copy)]
enum Vectors {
    /// As OpenAI and Azure are asked to by themselves, and other servers on request.
    Base64,
    /// As other servers do by themselves.
    Numbers,
}

/// Sends all through the pipeline, and tells how long that took.
fn pipeline(cluster: &Cluster, documents: usize, how: Vectors) -> (Database<'_>, Duration) {
    let api = FakeApi::start(Behaviour {
        limits: Limits::none(),
        latency: Latency::fixed(Duration::from_millis(50)),
        token_count: TokenCount::Bytes(5),
        ..remote::behaviour()
    });
    let db = Database::new_in(cluster);
    let (what, more) = match how {
        Vectors::Base64 => (
            "base64",
            r#"index => 'none', request => '{"body": {"encoding_format": "base64"}}'"#,
        ),
        Vectors::Numbers => ("numbers", "index => 'none'"),
    };
    println!("  vectors as {what}");
    db.create_remote_pipeline("default", &api, more);
    db.run("SELECT ingest.pause('default')");
    db.insert_prose("default", "d", documents, crate::budget::WORDS);
    db.run("VACUUM ANALYZE");
    db.run("CHECKPOINT");
    let worker = db.worker();
    let bench = i32::try_from(std::process::id()).expect("a process id");
    let ticks = [worker, bench].map(cpu_ticks);
    let mut took = Duration::ZERO;
    let private = peak_of_private_memory(worker, || {
        took = timed(|| {
            db.run("SELECT ingest.resume('default')");
            db.run("SELECT ingest.wait()");
        });
    });
    let [worker_ticks, bench_ticks] = [0, 1].map(|i| cpu_ticks([worker, bench][i]) - ticks[i]);
    let progress = db.progress();
    assert_eq!(
        progress.embedded, documents as i64,
        "all documents are embedded"
    );
    let per_document = |ticks: u64| format!("{:.0} µs", ticks as f64 * 1e4 / documents as f64);
    let megabytes = |kilobytes: u64| format!("{:.0} MB", kilobytes as f64 / 1024.0);
    line(
        "documents embedded",
        format!("{:.0}/s", documents as f64 / took.as_secs_f64()),
    );
    line(
        "processor time of the worker, per document",
        per_document(worker_ticks),
    );
    line(
        "processor time of the fake API, per document",
        per_document(bench_ticks),
    );
    line(
        "the worker's peak RSS, shared buffers included",
        megabytes(memory(worker, "VmHWM")),
    );
    line("the worker's peak of private memory", megabytes(private));
    (db, took)
}

/// The median of three turns.
fn copy(db: &Database, format: &str) -> Duration {
    let target = "ingest.default_chunks";
    db.run(&format!(
        "DROP TABLE IF EXISTS public.copied; CREATE TABLE public.copied (LIKE {target} INCLUDING ALL)"
    ));
    let mut rows = Vec::new();
    db.with_client(|client| {
        client
            .copy_out(&format!(
                "COPY {target} ({COLUMNS}) TO STDOUT (FORMAT {format})"
            ))
            .expect("COPY TO")
            .read_to_end(&mut rows)
            .expect("the rows");
    });
    let mut times: Vec<Duration> = (0..3)
        .map(|_| {
            db.run("TRUNCATE public.copied");
            db.run("CHECKPOINT");
            timed(|| {
                db.with_client(|client| {
                    let mut writer = client
                        .copy_in(&format!(
                            "COPY public.copied ({COLUMNS}) FROM STDIN (FORMAT {format})"
                        ))
                        .expect("COPY FROM");
                    writer.write_all(&rows).expect("the rows");
                    writer.finish().expect("COPY ends");
                });
            })
        })
        .collect();
    median(&mut times)
}

/// The most private memory that a process had during the work, in kB, looked at twenty times a second.
fn peak_of_private_memory(pid: i32, work: impl FnOnce()) -> u64 {
    let done = AtomicBool::new(false);
    let most = Mutex::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let now = memory(pid, "RssAnon");
                let mut most = most.lock().expect("no panic");
                *most = now.max(*most);
                drop(most);
                thread::sleep(Duration::from_millis(50));
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
    });
    most.into_inner().expect("no panic")
}

/// A figure of proc(5)'s status, in kB.
fn memory(pid: i32, field: &str) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
