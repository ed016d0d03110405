//! How fast a local model embeds: `PG_INGEST_MODEL_DIR=… cargo run --release -p embedder --example embed_speed [THREADS]`.

use std::path::PathBuf;
use std::time::Instant;

use embedder::local::{InferenceThreads, LocalModel};

fn main() {
    let models = std::env::var_os("PG_INGEST_MODEL_DIR")
        .expect("PG_INGEST_MODEL_DIR names the directory of models");
    let start = Instant::now();
    let model = LocalModel::load(&PathBuf::from(models).join("all-MiniLM-L6-v2")).expect("a model");
    println!("loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let counts = std::env::args().nth(1).map_or(vec![1, 2], |count| {
        vec![count.parse().expect("a number of threads")]
    });
    for count in counts {
        let threads = InferenceThreads::new(count);
        for words in [4, 16, 64, 128, 250] {
            let text = "vector ".repeat(words);
            let texts = vec![text.as_str(); (20_000 / words).min(500)];
            model.embed(&texts[..2], &threads).expect("vectors");
            let (start, cpu) = (Instant::now(), cpu_seconds());
            model.embed(&texts, &threads).expect("vectors");
            let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
            let (texts, tokens) = (texts.len() as f64, (texts.len() * (words + 2)) as f64);
            println!(
                "{count} threads, {words:3} words: {:6.0} texts/s, {:6.0} tokens/s, {:6.0} tokens/s of CPU, {:5.1} ms a text",
                texts / seconds,
                tokens / seconds,
                tokens / cpu,
                seconds / texts * 1e3
            );
        }
    }
}

/// CPU time of this process, which other work on the machine does not stretch as it does a clock's.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split(' ')
        .filter_map(|field| field.parse().ok())
        .collect();
    // utime and stime are fields 14 and 15 of the line, the 11th and 12th numbers after the state; in ticks of 10 ms.
    fields
        .get(10..12)
        .map_or(0.0, |times| times.iter().sum::<f64>() / 100.0)
}
