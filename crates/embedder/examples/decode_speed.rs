//! How fast answers become vectors, on one core: `cargo run --release -p embedder --example decode_speed`.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use embedder::remote::decode_openai_answer;

const INPUTS: usize = 500;
const DIMENSIONS: usize = 1536;

fn main() {
    let vector: Vec<f32> = (0..DIMENSIONS)
        .map(|i| (i as f32 * 0.37).sin() / 40.0)
        .collect();
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let doubles: Vec<f64> = vector.iter().map(|x| f64::from(*x)).collect();
    for (name, embedding) in [
        ("base64", serde_json::json!(STANDARD.encode(bytes))),
        ("plain floats", serde_json::json!(doubles)),
    ] {
        let data: Vec<_> = (0..INPUTS)
            .map(|index| {
                serde_json::json!({"object": "embedding", "index": index, "embedding": embedding})
            })
            .collect();
        let body = serde_json::json!({ "data": data }).to_string();
        let rounds = 20;
        let start = Instant::now();
        for _ in 0..rounds {
            decode_openai_answer(body.as_bytes(), INPUTS, DIMENSIONS).expect("an answer");
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name}: {:.0} vectors of {DIMENSIONS} numbers a second, {:.0} MB/s",
            (rounds * INPUTS) as f64 / seconds,
            (rounds * body.len()) as f64 / seconds / 1e6
        );
    }
}
