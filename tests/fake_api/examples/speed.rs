//! How much the fake API costs a benchmark that uses it: `cargo run --release -p fake_api --example speed`.

use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, TokenCount, vector_of};

/// Some 360 tokens.
const SENTENCE: &str =
    "The blue whale is the largest animal that has ever lived; it feeds on krill in the ocean. ";
const SENTENCES: usize = 18;

/// Inputs of a request.
const BATCH: usize = 100;

fn main() {
    let text = SENTENCE.repeat(SENTENCES);
    let vectors = rate(Duration::from_secs(1), || {
        for _ in 0..BATCH {
            black_box(vector_of(black_box(&text), 1536));
        }
    });
    println!("vector_of, 1536 dimensions, one core      {vectors:>9.0} vectors/s");
    for (name, format) in [("base64", "base64"), ("floats", "float")] {
        for count in [TokenCount::Bytes(4), TokenCount::Exact] {
            for inputs in [BATCH, 1] {
                let speed = over_the_wire(count, format, inputs, 1);
                println!(
                    "one connection, {name}, {inputs:>3} inputs, {:<9} {speed:>9.0} vectors/s",
                    format!("{count:?}")
                );
            }
        }
    }
    let speed = over_the_wire(TokenCount::Bytes(4), "base64", BATCH, 4);
    println!("four connections, base64, {BATCH} inputs, Bytes(4) {speed:>7.0} vectors/s");
}

/// Vectors a second, where each call of `work` makes [`BATCH`] of them.
fn rate(time: Duration, mut work: impl FnMut()) -> f64 {
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < time {
        work();
        done += BATCH;
    }
    done as f64 / start.elapsed().as_secs_f64()
}

fn over_the_wire(count: TokenCount, format: &str, inputs: usize, connections: usize) -> f64 {
    let api = FakeApi::start(Behaviour {
        token_count: count,
        ..Behaviour::default()
    });
    let text = SENTENCE.repeat(SENTENCES);
    let input = vec![text; inputs];
    let body = serde_json::json!({
        "model": "text-embedding-3-small", "input": input, "encoding_format": format,
    })
    .to_string();
    let request = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: fake\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let start = Instant::now();
    let time = Duration::from_secs(2);
    let vectors: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let stream = TcpStream::connect(api.address()).expect("it listens");
                    stream.set_nodelay(true).expect("an option");
                    let mut reader = BufReader::with_capacity(1 << 20, stream);
                    let mut vectors = 0;
                    while start.elapsed() < time {
                        ask(&mut reader, &request);
                        vectors += inputs;
                    }
                    vectors
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .sum()
    });
    vectors as f64 / start.elapsed().as_secs_f64()
}

fn ask(reader: &mut BufReader<TcpStream>, request: &str) {
    reader
        .get_mut()
        .write_all(request.as_bytes())
        .expect("the server reads");
    let mut length = 0;
    let mut line = String::new();
    while reader.read_line(&mut line).expect("a line") > 2 {
        assert!(
            !line.starts_with("HTTP") || line.contains(" 200 "),
            "{line}"
        );
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim_end().parse().expect("a number");
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    black_box(body);
}
