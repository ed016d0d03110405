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
