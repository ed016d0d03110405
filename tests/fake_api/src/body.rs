//! The body of an answer, which may be slow, endless or cut off.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::record::Ticket;

/// A part of a body.
#[derive(Debug)]
pub(crate) enum Step {
    Data(Bytes),
    /// The same bytes so many times.
    Repeat(Bytes, u64),
    /// One byte each time.
    Trickle(Bytes, Duration),
    Wait(Duration),
    /// Nothing more ever comes.
    Hang,
    /// The connection ends here.
    Cut(End),
}

/// How a connection ends before its answer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Close,
    Reset,
}

/// Makes hyper drop the connection; nobody reads it.
#[derive(Debug)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is cut on purpose")
    }
}

impl std::error::Error for Cut {}

/// Whether a connection is to be reset when it is dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResetOnDrop(Arc<AtomicBool>);

impl ResetOnDrop {
    pub(crate) fn end(&self, end: End) -> Cut {
        self.0.store(end == End::Reset, Ordering::Relaxed);
        Cut
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The steps to take, and what they are taken for.
pub(crate) struct Body {
    steps: VecDeque<Step>,
    /// None: sent in pieces, without a `content-length`.
    length: Option<u64>,
    nap: Option<Pin<Box<Sleep>>>,
    connection: ResetOnDrop,
    ticket: Ticket,
}

impl Body {
    pub(crate) fn new(
        steps: Vec<Step>,
        length: Option<u64>,
        connection: ResetOnDrop,
        mut ticket: Ticket,
    ) -> Self {
        ticket.sent_fully = steps.is_empty();
        Self {
            steps: steps.into(),
            length,
            nap: None,
            connection,
            ticket,
        }
    }

    /// The next bytes: None when there are none.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            if let Some(nap) = &mut self.nap {
                ready!(nap.as_mut().poll(context));
                self.nap = None;
            }
            let Some(step) = self.steps.pop_front() else {
                return Poll::Ready(None);
            };
            let bytes = match step {
                Step::Data(bytes) => bytes,
                Step::Repeat(_, 0) => continue,
                Step::Repeat(bytes, times) => {
                    self.steps
                        .push_front(Step::Repeat(bytes.clone(), times - 1));
                    bytes
                }
                Step::Trickle(bytes, _) if bytes.is_empty() => continue,
                Step::Trickle(mut bytes, every) => {
                    let byte = bytes.split_to(1);
                    if !bytes.is_empty() {
                        self.steps.push_front(Step::Trickle(bytes, every));
                        self.nap = Some(Box::pin(sleep(every)));
                    }
                    byte
                }
                Step::Wait(time) => {
                    self.nap = Some(Box::pin(sleep(time)));
                    continue;
                }
                Step::Hang => {
                    self.steps.push_front(Step::Hang);
                    return Poll::Pending;
                }
                Step::Cut(end) => return Poll::Ready(Some(Err(self.connection.end(end)))),
            };
            if bytes.is_empty() {
                continue;
            }
            return Poll::Ready(Some(Ok(bytes)));
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let body = self.get_mut();
        let bytes = ready!(body.poll_bytes(context));
        if !matches!(bytes, Some(Err(_))) && body.steps.is_empty() {
            body.ticket.sent_fully = true;
        }
        Poll::Ready(bytes.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
