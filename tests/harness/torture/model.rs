//! Random sequences against the model, and what is left of one that fails.

use std::time::{Duration, Instant};

use fake_api::{FakeApi, Fault, Latency};

use super::operations::{Operation, sequence};
use super::random::Random;
use super::session::{Figures, Session};
use super::statements::POISON;
use crate::remote::behaviour;
use crate::{Cluster, Database};

/// Operations of a sequence, at least and at most.
const LENGTH: (usize, usize) = (15, 60);
/// How long a sequence that failed is cut down.
const SHRINKING: Duration = Duration::from_secs(90);

/// Does `rounds` random sequences of whatever users and operators do, each in a database of its own, and compares what is there
/// in the end, and after every operation, with what must be. Returns the figures in one line.
///
/// # Panics
/// With the seed and the sequence as SQL, cut down to what is needed, when they differ.
pub fn model(seed: u64, rounds: usize) -> String {
    let start = Instant::now();
    let mut random = Random::new(seed);
    let workers = random.choose(&["1", "2"]);
    // With little, vectors are read back from the targets.
    let vectors = random.choose(&["16MB", "32kB"]);
    // Only processes are killed, never the machine: what was written stays without fsync.
    let cluster = Cluster::start(&[
        ("pg_ingest.workers", workers),
        ("pg_ingest.vector_cache", vectors),
        ("fsync", "off"),
    ]);
    let mut sum = Figures::default();
    for round in 0..rounds {
        let mut random = Random::new(seed.wrapping_add(round as u64));
        let weather = Weather::random(&mut random);
        let length = random.between(LENGTH.0, LENGTH.1);
        let operations = sequence(&mut random, length);
        match play(&cluster, weather, &operations) {
            Ok(figures) => sum.add(figures),
            Err(wrong) => {
                let (operations, wrong) = shrink(&cluster, weather, operations, wrong);
                let lines: Vec<String> = operations.iter().map(ToString::to_string).collect();
                panic!(
                    "seed {seed}, round {round}, {workers} worker(s), {vectors}, {weather:?}\n{}\n{wrong}",
                    lines.join("\n")
                );
            }
        }
    }
    format!(
        "model: seed {seed}: {rounds} sequences of {} operations in all on {workers} worker(s) with {vectors}, {} crashes and restarts, {} transactions given \
         up for others; {} documents and {} chunks were as they must be; {:.0} s",
        sum.operations,
        sum.restarts,
        sum.serialization_failures,
        sum.documents,
        sum.chunks,
        start.elapsed().as_secs_f64(),
    )
}

/// How the provider is.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Milliseconds that an answer takes.
    latency: u64,
    /// The share of requests that fail for the moment, in percent.
    faults: usize,
    /// Which ones.
    seed: u64,
}

impl Weather {
    fn random(random: &mut Random) -> Self {
        Self {
            latency: random.choose(&[0, 3, 20]),
            faults: random.weighted(&[(3, 0), (1, 3)]),
            seed: random.number(),
        }
    }
}

/// Does a sequence in a new database.
fn play(cluster: &Cluster, weather: Weather, operations: &[Operation]) -> Result<Figures, String> {
    let api = FakeApi::start(behaviour());
    api.set_latency(Latency::fixed(Duration::from_millis(weather.latency)));
    api.refuse_text(POISON);
    if weather.faults > 0 {
        let share = weather.faults as f64 / 100.0;
        api.fail_share(weather.seed, share, Fault::status(503));
    }
    let db = Database::new_in(cluster);
    let mut session = Session::new(&db, &api);
    for (number, operation) in operations.iter().enumerate() {
        let done = session.perform(operation);
        done.map_err(|wrong| format!("after operation {}: {wrong}", number + 1))?;
    }
    let finished = session.finish();
    finished.map_err(|wrong| format!("at the end: {wrong}"))?;
    Ok(session.figures)
}

/// Leaves out of a sequence what it fails without. What depends on who comes first may need several tries.
fn shrink(
    cluster: &Cluster,
    weather: Weather,
    mut operations: Vec<Operation>,
    mut wrong: String,
) -> (Vec<Operation>, String) {
    eprintln!(
        "a sequence of {} operations fails: {wrong}",
        operations.len()
    );
    let start = Instant::now();
    let mut size = operations.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < operations.len() && start.elapsed() < SHRINKING {
            let mut fewer = operations.clone();
            fewer.drain(at..(at + size).min(operations.len()));
            match (0..2).find_map(|_| play(cluster, weather, &fewer).err()) {
                Some(other) => (operations, wrong) = (fewer, other),
                None => at += size,
            }
        }
        size /= 2;
    }
    (operations, wrong)
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.restarts += other.restarts;
        self.serialization_failures += other.serialization_failures;
        self.documents += other.documents;
        self.chunks += other.chunks;
    }
}
