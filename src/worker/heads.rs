//! Where claiming goes on in a pipeline's queue.
//!
//! What was claimed and written stays in the queue's index as dead entries until vacuum takes it back, which a snapshot
//! that somebody holds may put off for hours. A claim that began at the head each time would read all of it each time.
//! So it goes on where the last one ended, and looks at the head again, for what came in below that (an attempt that is
//! due, a changed document, a transaction that committed late), when nothing is left above, and as often as costs a small
//! share of the time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The head is scanned again after so many times the duration of the last scan, so that scans take at most a twentieth of the
/// time: at once, practically, while the head is short.
const REST: u32 = 20;

/// And after so long at the latest.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// The pipelines' places to go on at.
#[derive(Default)]
pub struct Heads(HashMap<i32, Head>);

struct Head {
    /// No document below this is worth a look before `again`.
    next: i64,
    again: Instant,
}

impl Heads {
    /// The first document worth a look; everything is when it is time for the head.
    pub fn next(&self, pipeline: i32) -> Option<i64> {
        let head = self.0.get(&pipeline)?;
        (Instant::now() < head.again).then_some(head.next)
    }

    /// How long until the head of a pipeline is looked at again.
    pub fn wait(&self, pipeline: i32) -> Duration {
        self.0.get(&pipeline).map_or(Duration::ZERO, |head| {
            head.again.saturating_duration_since(Instant::now())
        })
    }

    /// A look from `from` on, or at the head if there is none, took so long, and `last` is the last document claimed.
    pub fn looked(&mut self, pipeline: i32, from: Option<i64>, took: Duration, last: Option<i64>) {
        let next = last.map(|last| last.saturating_add(1));
        let head = self.0.entry(pipeline).or_insert_with(|| Head {
            next: i64::MIN,
            again: Instant::now(),
        });
        if let Some(next) = next {
            head.next = next;
        }
        if from.is_none() {
            head.again = Instant::now() + (took * REST).min(LONGEST_REST);
        }
    }
}
