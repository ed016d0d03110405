//! The worker process: its life from connecting to leaving, and the loop in between.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::{Engine, Event, Outcome};
use injection::Point;
use pgrx::prelude::*;

use crate::budgets;
use crate::impatience;
use crate::installed::{self, Installed, installed};
use crate::journal::{self, Journal};
use crate::settings;
use crate::shmem::{self, Shared, WorkerState};
use crate::worker::backfill;
use crate::worker::claim::{self, Claims};
use crate::worker::former;
use crate::worker::housekeeping;
use crate::worker::launcher::worker_identity;
use crate::worker::pipelines::{self, Pipelines};
use crate::worker::process::{
    EventFd, check_interrupts, install_signal_handlers, reach, reload_settings, wait,
};
use crate::worker::query_server;
use crate::worker::queue;
use crate::worker::recovery;
use crate::worker::settle::Settler;
use crate::worker::switch::Switcher;
use crate::worker::transaction::{SqlError, transaction};

/// A busy worker folds the counters so often, that progress stays cheap while rows are inserted one by one.
const FOLD_INTERVAL: Duration = Duration::from_secs(1);
/// Wait after an unexpected error before going on.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// Time after which the log tells the same error again, so that a broken state fills no log.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Frees the slot whichever way the process ends.
#[pg_guard]
unsafe extern "C-unwind" fn release_slot(code: i32, slot: pg_sys::Datum) {
    // With any other code, the server takes the end of the process for a crash; and a row that cannot be interrupted is a
    // cause like one.
    if (code == 0 || code == 1) && !impatience::is_stuck() {
        journal::end();
    }
    if let Some(shared) = shmem::get() {
        let _ = std::fs::remove_file(query_server::socket_path(slot.value()));
        engine::stop_sending();
        budgets::release_worker(slot.value());
        shared.release_worker(slot.value());
        shared.wake_launcher();
    }
}

#[allow(missing_docs)]
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_ingest_worker_main(argument: pg_sys::Datum) {
    let (database, number) = worker_identity(argument);
    install_signal_handlers();
    let Some(shared) = shmem::get() else { return };
    let Some(slot) = shared.register_worker(database, number) else {
        return;
    };
    budgets::open_worker(slot);
    #[cfg(feature = "injection")]
    crate::api::injection::attach();
    // SAFETY: registered once, with a plain number.
    unsafe { pg_sys::before_shmem_exit(Some(release_slot), pg_sys::Datum::from(slot)) };
    if shared.must_stay_away(database) {
        return;
    }
    // SAFETY: the main thread of a background worker, once.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
    }
    configure_session();
    match await_sql_of_this_release(shared, slot, number) {
        Ok(Installed::Matching) => {}
        // Somebody wants the database.
        Ok(Installed::Other(_)) => return,
        Ok(Installed::No) => {
            shared.report_absent(database);
            // A transaction that created it meanwhile took this worker for one that stays.
            if matches!(transaction(installed), Ok(Installed::No) | Err(_)) {
                budgets::forget_database(database);
                journal::forget_database(database);
                return;
            }
            shared.request_worker(database);
        }
        Err(error) => {
            log!("pg_ingest: {error}");
            return;
        }
    }
    match Worker::start(shared, slot, database, number) {
        Ok(mut worker) => worker.run(),
        Err(error) => log!("pg_ingest: the worker cannot start: {error}"),
    }
}

/// Looks for the extension, and waits for as long as its SQL is another release's: until it is updated or dropped, or this
/// process is to leave.
fn await_sql_of_this_release(
    shared: &Shared,
    slot: usize,
    number: i32,
) -> Result<Installed, SqlError> {
    let place = &shared.workers[slot];
    let mut known = String::new();
    loop {
        let wakes = place.wakes();
        let found = transaction(installed)?;
        let Installed::Other(problem) = found else {
            shmem::set_last_error(slot, "");
            return Ok(found);
        };
        if problem != known {
            if number == 0 {
                log!("pg_ingest: {problem}");
            }
            shmem::set_last_error(slot, &problem);
            report_activity(c"waiting for ALTER EXTENSION pg_ingest UPDATE");
            place
                .state
                .store(WorkerState::NeedsUpdate as u8, Ordering::SeqCst);
            // Other databases are waiting to be looked at.
            shared.wake_launcher();
            known = problem;
        }
        let woken = place.wakes() != wakes;
        wait(-1, woken.then_some(Duration::ZERO));
        if place.leave.load(Ordering::SeqCst) {
            return Ok(Installed::Other(known));
        }
        reload_settings();
    }
}

struct Worker {
    shared: &'static Shared,
    slot: usize,
    database: pg_sys::Oid,
    number: i32,
    bell: Arc<EventFd>,
    engine: Engine,
    claims: Claims,
    settler: Settler,
    pipelines: Pipelines,
    switcher: Switcher,
    /// When the counters were last folded.
    folded: Instant,
    /// Whether claims of processes that have ended are still to be freed: somebody had them locked.
    unreleased: bool,
    /// When watched tables are looked after again, of which something was locked.
    stage_again: Option<Instant>,
}

/// What a turn of the loop left to do.
enum Turn {
    /// More right now.
    Again,
    /// Nothing until woken, or until the time given.
    Wait(Option<Duration>),
    /// Nothing ever: the extension is gone or somebody wants the database.
    Leave,
}

impl Worker {
    fn start(
        shared: &'static Shared,
        slot: usize,
        database: pg_sys::Oid,
        number: i32,
    ) -> Result<Self, String> {
        let bell = Arc::new(EventFd::new().map_err(|e| e.to_string())?);
        let ringer = Arc::clone(&bell);
        let engine = Engine::start(engine::Config {
            model_dir: settings::model_dir(),
            inference_threads: settings::model_threads(),
            split_threads: settings::split_threads(),
            vector_cache: settings::vector_cache(),
            requests_in_flight: &shared.workers[slot].requests,
            notify: Arc::new(move || ringer.ring()),
        })
        .map_err(|e| e.to_string())?;
        query_server::start(slot, engine.queries()).map_err(|e| e.to_string())?;
        let mut journal = Journal::open(database, number);
        let others = running(shared, database)
            .filter(|other| *other != number)
            .collect();
        recovery::recover(database, number, &journal, others).map_err(|e| e.to_string())?;
        journal.begin();
        // What an earlier process of this number held is free again; no other process can have this number now.
        let unreleased = release(shared, database, number, true).map_err(|e| e.to_string())?;
        shared.workers[slot]
            .state
            .store(WorkerState::Idle as u8, Ordering::Relaxed);
        // The launcher starts the other workers now that it is known that the extension is there.
        shared.wake_launcher();
        Ok(Self {
            shared,
            slot,
            database,
            number,
            bell,
            claims: Claims::new(number, journal),
            settler: Settler::new(shared, database, engine.written()),
            engine,
            folded: Instant::now(),
            pipelines: Pipelines::new(database, slot),
            switcher: Switcher::new(),
            unreleased,
            stage_again: None,
        })
    }

    fn run(&mut self) {
        let slot = &self.shared.workers[self.slot];
        let mut told: Option<(String, Instant)> = None;
        loop {
            let wakes = slot.wakes();
            if reload_settings() && self.number == 0 {
                // Workers that are configured no more may have left something.
                self.unreleased = true;
            }
            let turn = self.turn().unwrap_or_else(|error| {
                if error.is_transient() {
                    return Turn::Wait(Some(AFTER_ERROR / 10));
                }
                let known = told
                    .take()
                    .filter(|(message, at)| *message == error.message && at.elapsed() < TELL_AGAIN);
                told = known.or_else(|| {
                    log!("pg_ingest: {error}");
                    Some((error.message.clone(), Instant::now()))
                });
                shmem::set_last_error(self.slot, &error.message);
                // A claim may be committed that is not known here.
                slot.review.store(true, Ordering::SeqCst);
                Turn::Wait(Some(AFTER_ERROR))
            });
            self.show_state();
            match turn {
                Turn::Again => check_interrupts(),
                Turn::Wait(timeout) => {
                    // SAFETY: outside a transaction: autovacuum learns of the last writes before the worker sleeps.
                    unsafe { pg_sys::pgstat_report_stat(true) };
                    report_activity(if self.is_busy() {
                        c"embedding"
                    } else {
                        c"idle"
                    });
                    // Woken in the middle of the turn, after it had looked.
                    let woken = slot.wakes() != wakes;
                    wait(
                        self.bell.fd(),
                        if woken { Some(Duration::ZERO) } else { timeout },
                    );
                    self.bell.silence();
                }
                Turn::Leave => break,
            }
        }
        // A clean end leaves nothing claimed; without this, the next worker of this number frees it.
        if let Ok(Installed::Matching) = transaction(installed) {
            let _ = self.write_down();
            let _ = release(self.shared, self.database, self.number, true);
        }
    }

    /// Writes what has come back, takes what fits, and does the housekeeping when there is nothing else to do.
    fn turn(&mut self) -> Result<Turn, SqlError> {
        if self.shared.workers[self.slot].leave.load(Ordering::SeqCst) {
            return Ok(Turn::Leave);
        }
        let number = self.number;
        if self.shared.workers[self.slot].review.load(Ordering::SeqCst) {
            installed::forget();
        }
        let loaded = transaction(|| match installed() {
            Installed::Matching => Ok((pipelines::load(number), backfill::unfinished())),
            other => Err(other),
        })?;
        let (loaded, unfinished) = match loaded {
            Ok(loaded) => loaded,
            Err(Installed::Other(_)) => {
                // The next process waits for the SQL that it needs.
                self.shared.request_worker(self.database);
                return Ok(Turn::Leave);
            }
            Err(_) => {
                budgets::forget_database(self.database);
                journal::forget_database(self.database);
                self.shared.report_absent(self.database);
                return Ok(Turn::Leave);
            }
        };
        if self.pipelines.update(loaded, self.claims.journal()) {
            self.engine.configure(self.pipelines.definitions());
        }
        self.attend();
        let review = &self.shared.workers[self.slot].review;
        if review.swap(false, Ordering::SeqCst) {
            // Looked at again when it could not be done.
            self.claims
                .review(&self.pipelines, &self.engine)
                .inspect_err(|_| review.store(true, Ordering::SeqCst))?;
        }
        let finished = self.engine.poll(claim::MAX_BATCH);
        let wrote = !finished.is_empty();
        let rotated = self.refresh_keys(self.refused_keys(&finished));
        let settled = self
            .settler
            .settle(finished, &mut self.claims, &self.pipelines, &rotated);
        // Afterwards, so that what has just been written is found; and whatever is wrong with a target.
        let looked = former::look_up(&self.engine, &self.pipelines);
        settled?;
        self.settler.block_unusable(&self.pipelines)?;
        let slot = &self.shared.workers[self.slot];
        let building = || {
            slot.state
                .store(WorkerState::BuildingIndex as u8, Ordering::Relaxed);
            report_activity(c"building the index of new vectors");
        };
        if self.switcher.advance(&self.pipelines, building)? {
            return Ok(Turn::Again);
        }
        let took = self.claims.take(
            &self.pipelines,
            &self.engine,
            &self.settler.stuck_pipelines(),
        );
        if let Ok(Some(pipeline)) = took {
            self.pipelines.has_backlog(pipeline);
            self.shared.workers[self.slot]
                .pipeline
                .store(pipeline, Ordering::Relaxed);
        }
        let busy = wrote || looked || matches!(took, Ok(Some(_)));
        if !busy || self.folded.elapsed() > FOLD_INTERVAL {
            housekeeping::fold_counters()?;
            self.write_down()?;
            if self.unreleased {
                let own = self.claims.is_empty();
                self.unreleased = release(self.shared, self.database, self.number, own)? || !own;
            }
            self.folded = Instant::now();
        }
        // One of the workers looks after the watched tables.
        let staged = self.stage(&unfinished)?;
        took?;
        if busy || staged {
            return Ok(Turn::Again);
        }
        if self.number == 0 && !self.is_busy() && self.build_index()? {
            return Ok(Turn::Again);
        }
        let due = [
            self.claims.next_retry(&self.pipelines, &self.engine)?,
            self.pipelines.next_unblocked(),
            self.pipelines.next_unyielding(),
            self.settler.next_attempt(),
            self.switcher.next_attempt(),
            self.unreleased.then_some(AFTER_ERROR),
            self.claims.held_back().then_some(AFTER_ERROR),
            self.claims.look_again(),
            self.stage_again
                .map(|at| at.saturating_duration_since(Instant::now())),
        ];
        Ok(Turn::Wait(due.into_iter().flatten().min()))
    }

    /// Takes a step with watched tables; whether something was done. What somebody has locked is tried again later.
    fn stage(&mut self, unfinished: &[backfill::Unfinished]) -> Result<bool, SqlError> {
        if self.number != 0 || self.stage_again.is_some_and(|at| at > Instant::now()) {
            return Ok(false);
        }
        self.stage_again = None;
        match backfill::step(unfinished, &self.pipelines, self.claims.journal()) {
            Err(error) if error.is_transient() => {
                self.stage_again = Some(Instant::now() + AFTER_ERROR);
                Ok(false)
            }
            stepped => stepped,
        }
    }

    /// Does what the engine's news ask for.
    fn attend(&mut self) {
        let mut refused = Vec::new();
        for event in self.engine.take_events() {
            match event {
                Event::Throttled {
                    pipeline,
                    inputs,
                    attempt,
                    error,
                    wait,
                } => {
                    // Without the provider's words, which may quote a document.
                    let name = self.pipelines.get(pipeline).map_or("", |p| p.name.as_str());
                    log!(
                        "pg_ingest: pipeline {name:?}: request {} ({inputs} inputs) was refused for the moment (HTTP {}), \
                         attempt {attempt}; everybody on its limit waits {:.1} s",
                        error.request_id.as_deref().unwrap_or("without an id"),
                        error.http_status.unwrap_or_default(),
                        wait.as_secs_f64(),
                    );
                }
                Event::KeyRefused { pipeline } => refused.push(pipeline),
            }
        }
        self.refresh_keys(refused);
    }

    /// Reads the keys anew of pipelines whose key was refused; returns those that have another one now.
    fn refresh_keys(&mut self, mut refused: Vec<i32>) -> Vec<i32> {
        refused.sort_unstable();
        refused.dedup();
        refused.retain(|id| self.pipelines.refresh_key(*id));
        if !refused.is_empty() {
            self.engine.configure(self.pipelines.definitions());
        }
        refused
    }

    /// The pipelines whose key was refused to documents.
    fn refused_keys(&self, finished: &[Outcome]) -> Vec<i32> {
        finished
            .iter()
            .filter(|outcome| outcome.key_was_refused())
            .filter_map(|outcome| {
                self.claims
                    .get(outcome.ticket())
                    .map(|claim| claim.pipeline)
            })
            .collect()
    }

    /// Writes down what was sent under each limit today.
    fn write_down(&mut self) -> Result<(), SqlError> {
        let journal = self.claims.journal();
        let unwritten = journal.unwritten();
        housekeeping::write_down(self.number, &unwritten)?;
        journal.wrote(&unwritten);
        Ok(())
    }

    /// Builds one deferred index whose time has come.
    fn build_index(&mut self) -> Result<bool, SqlError> {
        let failed = self.pipelines.with_failed_index();
        let least = settings::deferred_index_min_chunks();
        let Some(pipeline) = transaction(|| housekeeping::wanting_index(least, &failed, None))?
        else {
            return Ok(false);
        };
        self.shared.workers[self.slot]
            .state
            .store(WorkerState::BuildingIndex as u8, Ordering::Relaxed);
        report_activity(c"building a deferred index");
        let started = Instant::now();
        match transaction(|| housekeeping::build_index(least, pipeline.id)) {
            Ok(false) => {}
            Ok(true) => log!(
                "pg_ingest: built the HNSW index of pipeline {:?} in {:.1} s",
                pipeline.name,
                started.elapsed().as_secs_f64()
            ),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                // Search works without; the next backlog asks for it again.
                log!(
                    "pg_ingest: the HNSW index of pipeline {:?} cannot be built: {error}",
                    pipeline.name
                );
                shmem::set_last_error(self.slot, &error.message);
                self.pipelines.index_failed(pipeline.id);
            }
        }
        Ok(true)
    }

    /// Whether it holds documents other than those whose target takes nothing now.
    fn is_busy(&self) -> bool {
        self.claims.len() > self.settler.kept()
    }

    fn show_state(&self) {
        let slot = &self.shared.workers[self.slot];
        let state = if self.is_busy() {
            WorkerState::Running
        } else {
            WorkerState::Idle
        };
        slot.state.store(state as u8, Ordering::Relaxed);
        slot.documents
            .store(self.claims.len() as i32, Ordering::Relaxed);
    }
}

/// The settings under which the worker's statements run, whatever the database or role says. Outside a transaction: the
/// first one is to run under them already.
fn configure_session() {
    for (name, value) in [
        (c"role", c"none"),
        (c"session_replication_role", c"origin"),
        (c"search_path", c"pg_catalog, pg_temp"),
        // Keys of watched tables' rows are the same texts whoever writes them: ingest.source_changed() sets the same.
        (c"timezone", c"UTC"),
        (c"datestyle", c"ISO, YMD"),
        (c"intervalstyle", c"postgres"),
        (c"extra_float_digits", c"1"),
        (c"bytea_output", c"hex"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_deferrable", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        (c"statement_timeout", c"0"),
        (c"idle_in_transaction_session_timeout", c"0"),
        (c"idle_session_timeout", c"0"),
        // A lock that somebody keeps is waited for outside a transaction, in between other work.
        (c"lock_timeout", c"200ms"),
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        (c"transaction_timeout", c"0"),
        (c"row_security", c"on"),
        (c"jit", c"off"),
        // The queue grows and shrinks by orders of magnitude between two ANALYZEs: its indexes are always right.
        (c"enable_seqscan", c"off"),
        (c"plan_cache_mode", c"force_generic_plan"),
    ] {
        // SAFETY: static C strings, on the main thread.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_SESSION,
            );
        }
    }
}

/// The numbers of this database's workers that run.
fn running(shared: &Shared, database: pg_sys::Oid) -> impl Iterator<Item = i32> {
    shared
        .workers_of(database)
        .map(|(_, slot)| slot.number.load(Ordering::Relaxed))
}

/// Frees the claims of processes that have ended: those of no running worker, and, as long as this process holds nothing, of
/// its own number. Returns whether some were locked and must be tried again.
fn release(
    shared: &Shared,
    database: pg_sys::Oid,
    number: i32,
    own: bool,
) -> Result<bool, SqlError> {
    let running = || -> Vec<i32> {
        running(shared, database)
            .filter(|other| !own || *other != number)
            .collect()
    };
    reach(Point::BeforeRelease)?;
    transaction(|| queue::release_all(running))
}

fn report_activity(what: &std::ffi::CStr) {
    // SAFETY: a static C string, copied.
    unsafe {
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, what.as_ptr());
    }
}
