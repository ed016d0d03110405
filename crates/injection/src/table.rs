//! What is to happen at the points, and what happened.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::{Action, Injected, POINTS, Point};

/// Between two looks of a task that waits at a point.
const NAP: Duration = Duration::from_millis(1);

/// An entry for each point.
#[derive(Debug, Default)]
pub struct Table([Entry; POINTS.len()]);

#[derive(Debug, Default)]
struct Entry {
    action: AtomicU32,
    /// Arrivals that pass before it happens.
    skip: AtomicI64,
    arrived: AtomicU64,
    waiting: AtomicU32,
}

static TABLE: OnceLock<&'static Table> = OnceLock::new();

/// Has this process look there. Only the first call counts.
pub fn use_table(table: &'static Table) {
    let _ = TABLE.set(table);
}

impl Table {
    /// Has `action` happen at `point`, after `skip` more arrivals have passed. Whoever waits there goes on, unless it is
    /// to wait again.
    pub fn set(&self, point: Point, action: Action, skip: i64) {
        let entry = self.entry(point);
        entry.action.store(Action::Pass as u32, Ordering::SeqCst);
        entry.skip.store(skip, Ordering::SeqCst);
        entry.arrived.store(0, Ordering::SeqCst);
        entry.action.store(action as u32, Ordering::SeqCst);
    }

    /// `(arrivals since the last [`set`](Self::set), processes' threads and tasks that wait there)`.
    pub fn seen(&self, point: Point) -> (u64, u32) {
        let entry = self.entry(point);
        let arrived = entry.arrived.load(Ordering::SeqCst);
        (arrived, entry.waiting.load(Ordering::SeqCst))
    }

    fn entry(&self, point: Point) -> &Entry {
        &self.0[point as usize]
    }
}

impl Entry {
    fn action(&self) -> Action {
        match self.action.load(Ordering::SeqCst) {
            n if n == Action::Wait as u32 => Action::Wait,
            n if n == Action::Error as u32 => Action::Error,
            n if n == Action::Abort as u32 => Action::Abort,
            _ => Action::Pass,
        }
    }

    /// What happens to one that comes here. Errors and deaths happen once.
    fn arrive(&self) -> Action {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let action = self.action();
        if action == Action::Pass || self.skip.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Action::Pass;
        }
        if action == Action::Wait {
            return action;
        }
        let once = self.action.compare_exchange(
            action as u32,
            Action::Pass as u32,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        once.map_or(Action::Pass, |_| action)
    }

    fn is_held(&self) -> bool {
        self.action() == Action::Wait
    }
}

/// One that waits, counted even if it gives up.
struct Waiting(&'static Entry);

impl Waiting {
    fn begin(entry: &'static Entry) -> Self {
        entry.waiting.fetch_add(1, Ordering::SeqCst);
        Self(entry)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

fn arrive(point: Point) -> Result<Option<&'static Entry>, Injected> {
    let Some(entry) = TABLE.get().map(|table| table.entry(point)) else {
        return Ok(None);
    };
    match entry.arrive() {
        Action::Pass => Ok(None),
        Action::Wait => Ok(Some(entry)),
        Action::Error => Err(Injected(point)),
        Action::Abort => std::process::abort(),
    }
}

/// Comes to a point, on a thread that sleeps in `nap` for as long as it is to wait there.
///
/// # Errors
/// When the step is to fail.
pub fn reach(point: Point, mut nap: impl FnMut()) -> Result<(), Injected> {
    if let Some(entry) = arrive(point)? {
        let _waiting = Waiting::begin(entry);
        while entry.is_held() {
            nap();
        }
    }
    Ok(())
}

/// Comes to a point, in a task.
///
/// # Errors
/// When the step is to fail.
pub async fn pass(point: Point) -> Result<(), Injected> {
    if let Some(entry) = arrive(point)? {
        let _waiting = Waiting::begin(entry);
        while entry.is_held() {
            tokio::time::sleep(NAP).await;
        }
    }
    Ok(())
}
