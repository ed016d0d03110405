//! The long tests: deaths at every point, random operations against a model, signals, the health of a long queue.
//!
//! `torture [NAME…]` runs those of these names, without names all: see [`TRIALS`]. `TORTURE_SEED` repeats a run;
//! `TORTURE_SCALE` (default 1.0) scales the numbers of rounds and documents. Needs what the tests need, and the library with
//! injection points; see [`harness`].

use std::time::Instant;

use harness::torture::{any_seed, health, kills, model, seed, signals};

/// A trial of this seed and scale, which panics or says its figures.
type Trial = fn(u64, f64) -> String;

const TRIALS: [(&str, Trial); 4] = [
    ("kills", |seed, scale| kills(seed, scaled(64, scale))),
    ("model", |seed, scale| model(seed, scaled(40, scale))),
    ("signals", |seed, scale| signals(seed, scaled(40, scale))),
    ("health", |_, scale| health(scaled(1_000_000, scale))),
];

fn scaled(full: usize, scale: f64) -> usize {
    ((full as f64 * scale) as usize).max(1)
}

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = names
        .iter()
        .find(|name| TRIALS.iter().all(|(known, _)| known != name))
    {
        let known: Vec<&str> = TRIALS.iter().map(|(name, _)| *name).collect();
        eprintln!(
            "torture: there is no trial {name:?}; there are {}",
            known.join(", ")
        );
        std::process::exit(2);
    }
    let seed = seed().unwrap_or_else(any_seed);
    let scale = std::env::var("TORTURE_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1.0);
    println!("TORTURE_SEED={seed} TORTURE_SCALE={scale}");
    for (name, trial) in TRIALS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            let start = Instant::now();
            let figures = trial(seed, scale);
            println!(
                "== {name}, {:.0} s\n{figures}\n",
                start.elapsed().as_secs_f64()
            );
        }
    }
}
