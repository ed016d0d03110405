//! What pg_ingest costs, as ratios within one run on one machine: absolute times prove nothing. Nothing is asserted.
//!
//! `bench [NAME…]` runs the benchmarks of these names, without names all: see [`BENCHES`].
//!
//! `BENCH_SCALE` (default 1.0) scales the numbers of rows; at 1.0 `budget` takes a quarter of an hour, the rest some
//! minutes. `BENCH_PLOT=FILE` has `budget` draw what it measured as SVG. Needs what the tests need; see [`harness`].

mod budget;
mod latency;
mod local;
mod plot;
mod queue;
mod report;
mod script;
mod throughput;

use harness::Cluster;

/// Scales a number of rows.
pub struct Scale(f64);

impl Scale {
    /// So many rows at this scale, at least ten.
    pub fn rows(&self, full: usize) -> usize {
        ((full as f64 * self.0) as usize).max(10)
    }
}

type Bench = fn(&Cluster, &Scale);

const BENCHES: [(&str, Bench); 7] = [
    ("local", |cluster, scale| {
        local::pipeline_against_copy(cluster, scale.rows(400));
    }),
    ("latency", |cluster, _| {
        latency::of_one_document(cluster, 50)
    }),
    ("inserts", |cluster, scale| {
        queue::bulk_insert(cluster, scale.rows(100_000));
    }),
    ("single-inserts", |cluster, scale| {
        queue::single_inserts(cluster, scale.rows(1_000));
    }),
    ("queue", |cluster, scale| {
        queue::long_queues(cluster, [10_000, 1_000_000].map(|full| scale.rows(full)));
    }),
    ("throughput", |cluster, scale| {
        throughput::against_copy(cluster, scale.rows(20_000));
    }),
    ("budget", budget::use_of_the_budget),
];

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    for name in &names {
        if !BENCHES.iter().any(|(known, _)| known == name) {
            let known: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
            eprintln!(
                "bench: there is no benchmark {name:?}; there are {}",
                known.join(", ")
            );
            std::process::exit(2);
        }
    }
    let scale = std::env::var("BENCH_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1.0);
    let cluster = Cluster::start(&[
        ("shared_buffers", "512MB"),
        ("max_wal_size", "4GB"),
        ("pg_ingest.vector_cache", "16MB"),
    ]);
    println!("BENCH_SCALE = {scale}; times are of this machine, today: read the ratios\n");
    for (name, bench) in BENCHES {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            bench(&cluster, &Scale(scale));
        }
    }
}
