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

/// A share of the [`Usage`] of a document's pipeline and of the whole engine; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation<const N: usize = 2> {
    usages: [Arc<Usage>; N],
    documents: usize,
    bytes: usize,
}

impl<const N: usize> Reservation<N> {
    /// For so many documents and bytes.
    pub(crate) fn new(usages: [Arc<Usage>; N], documents: usize, bytes: usize) -> Self {
        for usage in &usages {
            usage.documents.fetch_add(documents, Ordering::Relaxed);
            usage.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Self {
            usages,
            documents,
            bytes,
        }
    }
}

impl<const N: usize> Drop for Reservation<N> {
    fn drop(&mut self) {
        for usage in &self.usages {
            usage.documents.fetch_sub(self.documents, Ordering::Relaxed);
            usage.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}
