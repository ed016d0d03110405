//! Promise: a budget is used to the last percent, by all workers of all databases that share it, and never exceeded: the
//! provider refuses nothing.

use std::time::Duration;

use fake_api::{Behaviour, FakeApi, Limits};
use harness::*;

#[test]
fn experiment() {
    let (rpm, tpm) = (4000, 4_000_000);
    let workers = std::env::var("W").unwrap_or("1".into());
    let docs: usize = std::env::var("N").unwrap_or("5000".into()).parse().unwrap();
    let api = FakeApi::start(Behaviour {
        limits: Limits::per_minute(rpm, tpm),
        latency: fake_api::Latency { fixed: Duration::from_millis(200), ..Default::default() },
        ..remote::behaviour()
    });
    let cluster = Cluster::start(&[("pg_ingest.workers", &workers), ("shared_buffers", "512MB"), ("max_wal_size", "4GB")]);
    let db = Database::new_in(&cluster);
    db.run(&format!("SELECT ingest.set_limit('api', rpm => {rpm}, tpm => {tpm}, utilization => 1.0)"));
    db.create_remote_pipeline("default", &api, "limits => 'api', index => 'none'");
    db.insert_prose("default", "d", docs, 340);
    let ok: bool = db.one("SELECT ingest.wait(timeout => '300 s')");
    println!("{ok} {:?}", db.rows_as_text("SELECT * FROM ingest.progress"));
    println!("{:?}", db.rows_as_text("SELECT * FROM ingest.limits"));
    println!("refused {} accepted {} tokens {} share {:?} busiest min {:?} sec {:?} repeated {}", api.refused(), api.accepted(), api.tokens_accepted(),
        api.share_used(Duration::from_secs(10), Duration::from_secs(1), rpm, tpm), api.busiest(Duration::from_secs(60)), api.busiest(Duration::from_secs(1)), api.repeated_inputs());
    for (n, s) in api.per_second().iter().enumerate() { println!("{n} {} {} {}", s.requests, s.tokens, s.refused); }
    println!("{}", db.check_vectors("ingest.default_chunks"));
}

#[test]
fn speed() {
    let docs: usize = std::env::var("N").unwrap_or("20000".into()).parse().unwrap();
    let api = FakeApi::start(Behaviour {
        latency: fake_api::Latency { fixed: Duration::from_millis(50), ..Default::default() },
        token_count: fake_api::TokenCount::Bytes(5),
        ..remote::behaviour()
    });
    let cluster = Cluster::start(&[("pg_ingest.workers", &std::env::var("W").unwrap_or("1".into())), ("shared_buffers", "512MB"), ("max_wal_size", "4GB")]);
    let db = Database::new_in(&cluster);
    let more = std::env::var("MORE").unwrap_or_default();
    db.create_remote_pipeline("default", &api, &format!("index => 'none'{more}"));
    db.run("SELECT ingest.pause('default')");
    db.insert_prose("default", "d", docs, 340);
    let t = std::time::Instant::now();
    db.run("SELECT ingest.resume('default')");
    let pid = db.worker();
    let ticks = cpu_ticks(pid);
    let _: bool = db.one("SELECT ingest.wait(timeout => '300 s')");
    let e = t.elapsed();
    println!("{:?} {:.0} docs/s; worker cpu {} ticks; in flight max {} requests {}", e, docs as f64 / e.as_secs_f64(), cpu_ticks(pid)-ticks, api.max_in_flight(), api.accepted());
    for l in std::process::Command::new("sh").arg("-c").arg(format!("for t in /proc/{pid}/task/*; do echo $(cat $t/comm) $(cut -d' ' -f14,15 $t/stat); done; cat /proc/{pid}/status | grep -E 'VmRSS|VmHWM'")).output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap().lines() { println!("{l}"); }
    println!("self {}", cpu_ticks(std::process::id() as i32));
    db.run("CREATE TABLE public.copied (LIKE ingest.default_chunks INCLUDING ALL)");
    let t = std::time::Instant::now();
    db.run("INSERT INTO public.copied SELECT * FROM ingest.default_chunks");
    println!("insert select {:?}", t.elapsed());
    let mut rows = Vec::new();
    db.with_client(|c| { use std::io::Read; c.copy_out("COPY ingest.default_chunks TO STDOUT").unwrap().read_to_end(&mut rows).unwrap(); });
    for _ in 0..3 {
    db.run("TRUNCATE public.copied");
    let t = std::time::Instant::now();
    db.with_client(|c| { use std::io::Write; let mut w = c.copy_in("COPY public.copied FROM STDIN").unwrap(); w.write_all(&rows).unwrap(); w.finish().unwrap(); });
    println!("copy {:?} {:.0}/s", t.elapsed(), docs as f64 / t.elapsed().as_secs_f64());
    }
}
