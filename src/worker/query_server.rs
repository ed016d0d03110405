//! Answers backends that want a query embedded: a socket in the data directory, a thread for each question.
//!
//! A frame is a length (32 bits, little-endian) and so many bytes: the question as JSON, the answer as one byte
//! (0: vector, 1: error) and either 32-bit floats or JSON.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use embedder::ModelName;
use engine::Queries;
use serde::{Deserialize, Serialize};

/// Longest question in bytes: a text beyond it is no query.
pub const MAX_QUESTION: usize = 1024 * 1024;
/// Longest answer: 16,000 dimensions, pgvector's most, are 64 kB.
pub const MAX_ANSWER: usize = 256 * 1024;
/// Questions answered at the same time; further ones wait to be accepted.
const MAX_ANSWERING: usize = 32;
/// A backend writes its question at once; one that does not has gone.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What a backend asks.
#[derive(Serialize, Deserialize)]
pub struct Question {
    /// The pipeline's number.
    pub pipeline: i32,
    /// The generation of its definition.
    pub generation: i32,
    /// Its model, as `provider/name`.
    pub model: String,
    /// The text.
    pub input: String,
}

/// What the worker answers.
pub enum Answer {
    /// The vector.
    Vector(Vec<f32>),
    /// Why there is none.
    Error {
        /// What happened.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
struct ErrorText {
    message: String,
    hint: Option<String>,
}

impl Answer {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Vector(vector) => std::iter::once(0)
                .chain(vector.iter().flat_map(|x| x.to_le_bytes()))
                .collect(),
            Self::Error { message, hint } => {
                let text = ErrorText {
                    message: message.clone(),
                    hint: hint.clone(),
                };
                let mut bytes = vec![1];
                bytes.extend(serde_json::to_vec(&text).unwrap_or_default());
                bytes
            }
        }
    }

    /// The answer in a frame's bytes; `None` when they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (0, floats) if floats.len() % 4 == 0 => Some(Self::Vector(
                floats
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect(),
            )),
            (1, json) => {
                let ErrorText { message, hint } = serde_json::from_slice(json).ok()?;
                Some(Self::Error { message, hint })
            }
            _ => None,
        }
    }
}

/// The socket of the worker in a slot, relative to the data directory, in which every process of the server works. Base
/// backups leave this directory's contents out.
pub fn socket_path(slot: usize) -> PathBuf {
    PathBuf::from(format!("pg_stat_tmp/pg_ingest.{slot}.sock"))
}

/// Starts listening.
pub fn start(slot: usize, queries: Queries) -> std::io::Result<()> {
    let path = socket_path(slot);
    // Left by a process that was killed.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let answering = Arc::new(AtomicUsize::new(0));
    engine::spawn_with_signals_blocked("ingest queries", move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            while answering.load(Ordering::Acquire) >= MAX_ANSWERING {
                std::thread::sleep(Duration::from_millis(1));
            }
            let answer = Answering::begin(&answering);
            let queries = queries.clone();
            // Where no thread can be had, the closure is dropped, and the connection with it.
            let _ = engine::spawn_with_signals_blocked("ingest query", move || {
                let _answer = answer;
                // A backend that has gone meanwhile wants no answer.
                let _ = serve(stream, &queries);
            });
        }
    })
}

/// A query that is being answered, until this is dropped, however the answering ends.
struct Answering(Arc<AtomicUsize>);

impl Answering {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(mut stream: UnixStream, queries: &Queries) -> std::io::Result<()> {
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.set_write_timeout(Some(READ_TIMEOUT))?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_QUESTION {
        return send(
            &mut stream,
            &Answer::Error {
                message: format!("the text is longer than {MAX_QUESTION} bytes"),
                hint: None,
            },
        );
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    let question: Question = serde_json::from_slice(&bytes)?;
    let answer = answer(&question, queries, || has_peer(&stream));
    send(&mut stream, &answer)
}

/// Whether the backend still waits: one that was cancelled has closed its end.
fn has_peer(stream: &UnixStream) -> bool {
    let mut byte = [0u8; 1];
    // SAFETY: one byte of this frame; the call neither waits nor takes anything from the stream.
    let seen = unsafe {
        libc::recv(
            stream.as_raw_fd(),
            byte.as_mut_ptr().cast(),
            1,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    seen != 0
}

fn answer(question: &Question, queries: &Queries, wanted: impl Fn() -> bool) -> Answer {
    let embedded = question
        .model
        .parse::<ModelName>()
        .map_err(|e| (e.to_string(), None))
        .and_then(|model| {
            queries
                .embed(
                    (question.pipeline, question.generation),
                    &model,
                    &question.input,
                    wanted,
                )
                .map_err(|e| (e.message, e.hint))
        });
    match embedded {
        Ok(vector) => Answer::Vector(vector),
        Err((message, hint)) => Answer::Error { message, hint },
    }
}

fn send(stream: &mut UnixStream, answer: &Answer) -> std::io::Result<()> {
    let body = answer.encode();
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    stream.write_all(&frame)
}
