//! A fake server in this process, on a port of its own: says what a test wants, as badly as the test wants it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// The first line and the headers.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

/// What the server does with a request.
pub enum Reply {
    /// Answers and keeps the connection.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Writes this much as it is and cuts the connection.
    Cut(Vec<u8>),
    /// Writes this and then a byte at a time, one in each interval, for ever.
    Drip(Vec<u8>, Duration),
}

/// A JSON answer with status 200.
pub fn json(body: &serde_json::Value) -> Reply {
    Reply::Answer(200, Vec::new(), body.to_string().into_bytes())
}

pub struct Server {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<Request>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Server {
    /// A server that answers every request with what `reply` makes of it.
    pub async fn start(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (requests, connections) = (
            Arc::clone(&server.requests),
            Arc::clone(&server.connections),
        );
        let reply = Arc::new(reply);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&reply), Arc::clone(&requests)));
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The body of the last request.
    pub fn last_body(&self) -> serde_json::Value {
        serde_json::from_slice(&self.requests.lock().unwrap().last().unwrap().body).unwrap()
    }

    /// The head of the last request.
    pub fn last_head(&self) -> String {
        self.requests.lock().unwrap().last().unwrap().head.clone()
    }
}

async fn serve<F: Fn(&Request) -> Reply>(
    mut stream: TcpStream,
    reply: Arc<F>,
    requests: Arc<Mutex<Vec<Request>>>,
) {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer).await {
        requests.lock().unwrap().push(request.clone());
        match reply(&request) {
            Reply::Answer(status, headers, body) => {
                let mut answer =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    answer.push_str(&format!("{name}: {value}\r\n"));
                }
                answer.push_str("\r\n");
                let mut answer = answer.into_bytes();
                answer.extend_from_slice(&body);
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
            Reply::Cut(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Reply::Drip(bytes, interval) => {
                let _ = stream.write_all(&bytes).await;
                while stream.write_all(b" ").await.is_ok() {
                    tokio::time::sleep(interval).await;
                }
                return;
            }
        }
    }
}

/// The next request of a connection; None at its end.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    loop {
        let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
            let length: usize = head
                .lines()
                .find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse().unwrap())
                })
                .unwrap_or(0);
            if buffer.len() >= end + 4 + length {
                let body = buffer[end + 4..end + 4 + length].to_vec();
                buffer.drain(..end + 4 + length);
                return Some(Request { head, body });
            }
        }
        // Whoever says something else than POST, such as hello in TLS, is hung up on.
        if buffer.first().is_some_and(|byte| *byte != b'P') {
            return None;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
