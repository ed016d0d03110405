//! What people run today, for comparison: threads, fixed batches, and a sleep after each refusal.
//!
//! It is as good as such a script can be: the texts are at hand, an answer is read and thrown away, a connection stays
//! open, and no batch is ever given up. What it does not do is to know the budget.

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use harness::remote;

/// The longest sleep after a refusal, before its jitter.
const LONGEST_SLEEP: f64 = 60.0;

/// Has all texts embedded by so many threads, so many texts a request. After a 429 a thread sleeps 1, 2, 4 … seconds and
/// up to one more by chance, and tries the same batch again.
pub fn run(api: SocketAddr, texts: &[String], threads: usize, batch: usize) {
    let batches = Mutex::new(texts.chunks(batch));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut connection = Connection::open(api);
                loop {
                    let next = batches.lock().expect("no thread panics").next();
                    let Some(texts) = next else { return };
                    let body = request(texts);
                    let mut sleep = 1.0;
                    while connection.post(&body) == 429 {
                        thread::sleep(Duration::from_secs_f64(sleep + chance()));
                        sleep = (sleep * 2.0).min(LONGEST_SLEEP);
                    }
                }
            });
        }
    });
}

/// From 0 to 1.
fn chance() -> f64 {
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

/// As OpenAI's own clients ask. The texts are plain words.
fn request(texts: &[String]) -> String {
    let inputs: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!(
        r#"{{"model":"text-embedding-3-small","encoding_format":"base64","input":[{}]}}"#,
        inputs.join(",")
    )
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(api: SocketAddr) -> Self {
        let stream = TcpStream::connect(api).expect("the API listens");
        stream.set_nodelay(true).expect("a socket");
        Self(BufReader::new(stream))
    }

    /// Sends a request, reads the answer to its end, and returns the status.
    fn post(&mut self, body: &str) -> u16 {
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            remote::KEY,
            body.len()
        );
        let stream = self.0.get_mut();
        stream.write_all(head.as_bytes()).expect("the API reads");
        stream.write_all(body.as_bytes()).expect("the API reads");
        let status = self.line();
        let mut length = 0;
        loop {
            let header = self.line().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length is a number");
            }
        }
        std::io::copy(&mut (&mut self.0).take(length), &mut std::io::sink()).expect("an answer");
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.expect("an answer has a status");
        assert!(status == 200 || status == 429, "the API answers {status}");
        status
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the API answers");
        line.trim_end().to_owned()
    }
}
