//! What the engine holds: counted when a document is submitted, given back when its outcome has been polled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Documents and bytes of text held.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    documents: AtomicUsize,
    bytes: AtomicUsize,
}

impl Usage {
    pub(crate) fn documents(&self) -> usize {
        self.documents.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A document's share of the [`Usage`] of its pipeline and of the whole engine; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    usages: [Arc<Usage>; 2],
    bytes: usize,
}

impl Reservation {
    pub(crate) fn new(usages: [Arc<Usage>; 2], bytes: usize) -> Self {
        for usage in &usages {
            usage.documents.fetch_add(1, Ordering::Relaxed);
            usage.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Self { usages, bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for usage in &self.usages {
            usage.documents.fetch_sub(1, Ordering::Relaxed);
            usage.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}
