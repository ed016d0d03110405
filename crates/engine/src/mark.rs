//! Which documents are being worked on just now, noted where a crash of the process does not lose it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

/// A document's mark: how many threads work on it at this moment. Those that merely wait, for a thread or for an answer,
/// are not worked on.
#[derive(Debug, Clone, Copy)]
pub struct Mark(&'static AtomicU32);

/// As long as it lives, a thread works on the document.
#[derive(Debug)]
pub struct Working(Mark);

impl Mark {
    /// One that is kept in `counter`, which may lie in a mapped file.
    pub fn new(counter: &'static AtomicU32) -> Self {
        Self(counter)
    }

    /// One that nobody looks at.
    pub fn unseen() -> Self {
        static UNSEEN: AtomicU32 = AtomicU32::new(0);
        Self(&UNSEEN)
    }

    /// Notes that this thread works on the document, until the guard is dropped.
    #[must_use]
    pub fn work(self) -> Working {
        self.0.fetch_add(1, Ordering::Relaxed);
        Working(self)
    }
}

impl PartialEq for Mark {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A future during whose steps documents are worked on, and between whose steps they are not.
pub(crate) struct WhileWorking<F> {
    marks: Vec<Mark>,
    future: Pin<Box<F>>,
}

impl<F> WhileWorking<F> {
    pub(crate) fn new(marks: Vec<Mark>, future: F) -> Self {
        Self {
            marks,
            future: Box::pin(future),
        }
    }
}

impl<F: Future> Future for WhileWorking<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let _working: Vec<Working> = this.marks.iter().map(|mark| mark.work()).collect();
        this.future.as_mut().poll(context)
    }
}
