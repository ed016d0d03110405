//! What is answered, down to the bytes.

use std::io::Write as _;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use flate2::write::GzEncoder;
use flate2::{Compress, Compression, Crc, FlushCompress};
use hyper::body::Bytes;

use crate::behaviour::Behaviour;
use crate::body::{End, Step};
use crate::dialect::{ApiError, Dialect};
use crate::fault::{Fault, NotFinite, Place};
use crate::judge::Request;
use crate::vectors::{shuffled, vector_of};

/// What is to be done about a request.
pub(crate) struct Plan {
    /// How long after the arrival.
    pub wait: Duration,
    /// Whether it waits for [`FakeApi::release_answers`](crate::FakeApi::release_answers), as refusals do not.
    pub can_be_held: bool,
    pub action: Action,
}

pub(crate) enum Action {
    Answer {
        head: Head,
        /// None: unknown, so that it goes in pieces.
        length: Option<u64>,
        steps: Vec<Step>,
    },
    Hang,
    End(End),
}

/// Status and headers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Sets a header, whose name is in lower case. One of the same name gives way.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.to_owned(), value.into()));
    }

    fn begin(&mut self, status: u16, number: u64, processing: Duration) {
        self.status = status;
        self.set("content-type", "application/json");
        self.set("x-request-id", format!("req_{number:032x}"));
        self.set("openai-processing-ms", processing.as_millis().to_string());
    }
}

/// The plan to say at once what is wrong.
pub(crate) fn refuse(number: u64, dialect: Dialect, error: &ApiError, mut head: Head) -> Plan {
    head.begin(error.status, number, Duration::ZERO);
    for (name, value) in &error.headers {
        head.set(name, value);
    }
    let body = Bytes::from(error.body(dialect));
    Plan {
        wait: Duration::ZERO,
        can_be_held: false,
        action: Action::whole(head, body),
    }
}

impl Action {
    fn whole(head: Head, body: Bytes) -> Self {
        Self::Answer {
            head,
            length: Some(body.len() as u64),
            steps: if body.is_empty() {
                Vec::new()
            } else {
                vec![Step::Data(body)]
            },
        }
    }

    /// Head and half of the body, and then something else.
    fn half(head: Head, mut body: Bytes, then: Step) -> Self {
        let length = Some(body.len() as u64);
        let half = body.split_to(body.len() / 2);
        Self::Answer {
            head,
            length,
            // A reset takes back what the client has not read yet, so it is given a moment to read.
            steps: vec![Step::Data(half), Step::Wait(A_MOMENT), then],
        }
    }
}

/// In which a client on the same machine reads what it was sent.
const A_MOMENT: Duration = Duration::from_millis(100);

/// The plan to answer a request that is in order, or to let a fault befall it.
pub(crate) fn answer(
    behaviour: &Behaviour,
    dialect: Dialect,
    request: &Request,
    base64: bool,
    fault: Option<Fault>,
    mut head: Head,
) -> Plan {
    let mut wait = behaviour.latency.of(request.tokens);
    if let Some(Fault::Wait(more)) = fault {
        wait += more;
    }
    head.begin(200, request.number, wait);
    let mut answer = Answer::new(dialect, request, base64, wait);
    if behaviour.permute {
        answer.permute();
    }
    let zip = behaviour.gzip && request.header("accept-encoding").is_some_and(takes_gzip);
    let mut right = |answer: Answer| {
        let json = answer.json();
        if zip {
            head.set("content-encoding", "gzip");
            return (head.clone(), zipped(&json));
        }
        (head.clone(), Bytes::from(json))
    };
    let whole = |(head, body)| Action::whole(head, body);
    let action = match fault {
        None | Some(Fault::Wait(_)) => whole(right(answer)),
        Some(Fault::Answer {
            status,
            headers,
            body,
        }) => {
            head.status = status;
            for (name, value) in &headers {
                head.set(&name.to_ascii_lowercase(), value);
            }
            Action::whole(head, body.into())
        }
        Some(Fault::Hang(Place::BeforeAnswer)) => Action::Hang,
        Some(Fault::Close(Place::BeforeAnswer)) => Action::End(End::Close),
        Some(Fault::Reset(Place::BeforeAnswer)) => Action::End(End::Reset),
        Some(
            fault @ (Fault::Hang(Place::InBody)
            | Fault::Close(Place::InBody)
            | Fault::Reset(Place::InBody)),
        ) => {
            let then = match fault {
                Fault::Hang(_) => Step::Hang,
                Fault::Close(_) => Step::Cut(End::Close),
                _ => Step::Cut(End::Reset),
            };
            let (head, body) = right(answer);
            Action::half(head, body, then)
        }
        Some(Fault::Trickle(every)) => {
            let (head, body) = right(answer);
            Action::Answer {
                head,
                length: Some(body.len() as u64),
                steps: vec![Step::Trickle(body, every)],
            }
        }
        Some(Fault::TruncatedJson) => {
            let mut json = answer.json();
            json.truncate(json.len() / 2);
            Action::whole(head, json.into())
        }
        Some(Fault::TooFew) => {
            answer.items.pop();
            whole(right(answer))
        }
        Some(Fault::TooMany) => {
            answer.items.push((0, request.texts.len()));
            whole(right(answer))
        }
        Some(Fault::Permuted) => {
            answer.permute();
            whole(right(answer))
        }
        Some(Fault::DuplicateIndex) => {
            let first = answer.items.first().copied();
            match (answer.items.len(), answer.items.last_mut(), first) {
                (2.., Some(last), Some(first)) => last.1 = first.1,
                (_, _, first) => answer.items.extend(first),
            }
            whole(right(answer))
        }
        Some(Fault::Dimensions(dimensions)) => {
            answer.dimensions = dimensions;
            whole(right(answer))
        }
        Some(Fault::NotFinite(what)) => {
            answer.not_finite = Some(what);
            whole(right(answer))
        }
        Some(Fault::HugeBody(bytes)) => Action::Answer {
            head,
            length: None,
            steps: huge(bytes),
        },
        Some(Fault::GzipBomb(bytes)) => {
            head.set("content-encoding", "gzip");
            Action::Answer {
                head,
                length: None,
                steps: bomb(bytes),
            }
        }
    };
    Plan {
        wait,
        can_be_held: true,
        action,
    }
}

fn takes_gzip(accepted: &str) -> bool {
    accepted.split([',', ';']).any(|word| word.trim() == "gzip")
}

fn zipped(json: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(json.len() / 2), Compression::fast());
    encoder.write_all(json).expect("memory takes it");
    encoder.finish().expect("memory takes it").into()
}

/// How an answer begins.
const BEGINNING: &[u8] = b"{\"object\":\"list\",\"data\":[";

/// What is repeated to make an answer huge.
static BLANKS: [u8; 64 * 1024] = [b' '; 64 * 1024];

fn huge(bytes: u64) -> Vec<Step> {
    let rest = bytes.saturating_sub(BEGINNING.len() as u64);
    let (times, last) = (rest / BLANKS.len() as u64, rest % BLANKS.len() as u64);
    vec![
        Step::Data(Bytes::from_static(BEGINNING)),
        Step::Repeat(Bytes::from_static(&BLANKS), times),
        Step::Data(Bytes::from_static(&BLANKS[..last as usize])),
    ]
}

/// [`huge`], as gzip. A piece is compressed once and sent many times: as each has a compressor of its own, it refers to
/// nothing before it, and the flush lets it end with a whole byte.
fn bomb(bytes: u64) -> Vec<Step> {
    // RFC 1952, 2.3: magic number, deflate, no flags, no time, no hint, unknown system.
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut sum = Crc::new();
    let mut piece_sum = Crc::new();
    piece_sum.update(&BLANKS);
    let mut steps = vec![Step::Data(Bytes::from_static(&HEADER))];
    for step in huge(bytes) {
        steps.push(match step {
            Step::Repeat(bytes, times) => {
                for _ in 0..times {
                    sum.combine(&piece_sum);
                }
                Step::Repeat(deflated(&bytes, FlushCompress::Sync), times)
            }
            Step::Data(bytes) => {
                sum.update(&bytes);
                Step::Data(deflated(&bytes, FlushCompress::Sync))
            }
            other => other,
        });
    }
    let mut trailer = deflated(&[], FlushCompress::Finish).to_vec();
    trailer.extend(sum.sum().to_le_bytes());
    trailer.extend(sum.amount().to_le_bytes());
    steps.push(Step::Data(trailer.into()));
    steps
}

fn deflated(bytes: &[u8], flush: FlushCompress) -> Bytes {
    let mut out = Vec::with_capacity(1024 + bytes.len());
    Compress::new(Compression::best(), false)
        .compress_vec(bytes, &mut out, flush)
        .expect("there is room");
    out.into()
}

/// Vectors, and the JSON around them.
struct Answer<'r> {
    dialect: Dialect,
    request: &'r Request,
    base64: bool,
    took: Duration,
    dimensions: usize,
    /// Which text, and the index that is said of it.
    items: Vec<(usize, usize)>,
    not_finite: Option<NotFinite>,
}

impl<'r> Answer<'r> {
    fn new(dialect: Dialect, request: &'r Request, base64: bool, took: Duration) -> Self {
        Self {
            dialect,
            request,
            base64,
            took,
            dimensions: request.dimensions,
            items: (0..request.texts.len())
                .map(|index| (index, index))
                .collect(),
            not_finite: None,
        }
    }

    fn permute(&mut self) {
        if self.dialect != Dialect::Ollama {
            self.items = shuffled(self.request.texts.len(), self.request.number)
                .into_iter()
                .map(|index| (index, index))
                .collect();
        }
    }

    fn json(mut self) -> Vec<u8> {
        let not_finite = self.not_finite.map(NotFinite::written);
        if let Some(written) = not_finite {
            self.base64 = written.is_err();
        }
        let bytes = self.dimensions * if self.base64 { 6 } else { 13 } + 64;
        let mut out = Vec::with_capacity(self.items.len() * bytes + 256);
        let model = serde_json::Value::from(self.request.model.as_str());
        let tokens = self.request.tokens;
        let ollama = self.dialect == Dialect::Ollama;
        if ollama {
            write!(out, "{{\"model\":{model},\"embeddings\":[")
        } else {
            out.write_all(BEGINNING)
        }
        .expect("memory takes it");
        for (position, (text, index)) in self.items.iter().enumerate() {
            if position > 0 {
                out.push(b',');
            }
            let vector = vector_of(&self.request.texts[*text], self.dimensions);
            let instead = not_finite.filter(|_| position == 0);
            if ollama {
                write_vector(&mut out, vector, false, instead);
            } else {
                write!(
                    out,
                    "{{\"object\":\"embedding\",\"index\":{index},\"embedding\":"
                )
                .expect("memory takes it");
                write_vector(&mut out, vector, self.base64, instead);
                out.push(b'}');
            }
        }
        if ollama {
            let nanoseconds = self.took.as_nanos();
            write!(
                out,
                "],\"total_duration\":{nanoseconds},\"load_duration\":0,\"prompt_eval_count\":{tokens}}}"
            )
        } else {
            write!(
                out,
                "],\"model\":{model},\"usage\":{{\"prompt_tokens\":{tokens},\"total_tokens\":{tokens}}}}}"
            )
        }
        .expect("memory takes it");
        out
    }
}

/// A vector as JSON; its first component may be something else.
fn write_vector(
    out: &mut Vec<u8>,
    mut vector: Vec<f32>,
    base64: bool,
    instead: Option<Result<&str, f32>>,
) {
    if base64 {
        if let (Some(Err(float)), Some(first)) = (instead, vector.first_mut()) {
            *first = float;
        }
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        let start = out.len() + 1;
        let length = bytes.len().div_ceil(3) * 4;
        // Quotes, between which the base64 is then written.
        out.resize(start + length + 1, b'"');
        let space = &mut out[start..start + length];
        BASE64_STANDARD
            .encode_slice(&bytes, space)
            .expect("the space is what base64 needs");
        return;
    }
    let Some(instead) = instead else {
        serde_json::to_writer(out, &vector).expect("memory takes it");
        return;
    };
    // Ollama knows no base64, so there a float that is none is what Go's JSON would not write either: a word.
    let word = instead.unwrap_or("NaN");
    write!(out, "[{word}").expect("memory takes it");
    for component in vector.iter().skip(1) {
        write!(out, ",{component}").expect("memory takes it");
    }
    out.push(b']');
}
