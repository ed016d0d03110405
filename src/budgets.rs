//! Budgets in shared memory: which limit lies where, and who defines it how.
//!
//! A limit is known by its name to all databases of the server; each database that defines it adds its definition, and
//! the stricter of each figure holds. A pipeline without `limits` has a limit of its own without figures, for its
//! cool-down. What is counted lies in atomics ([`limiter::Limit`]), which the engine's threads use; names and
//! definitions lie behind a lock that only main threads take.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use limiter::{Budget, InFlight, Limit, Now};
use pgrx::prelude::*;
use pgrx::shmem::PGRXSharedMemory;
use pgrx::{PgAtomic, PgLwLock, pg_shmem_init};

/// Limits of the whole server: named ones, and one for each remote pipeline that names none.
const MAX_LIMITS: usize = 128;
/// Remote pipelines of the whole server.
const MAX_PIPELINES: usize = 256;
/// Databases that may define one limit. The last place keeps the strictest of those beyond.
const MAX_DEFINITIONS: usize = 16;
/// The share of what a provider says of its limits that a pipeline without a limit of ours uses.
const UNNAMED_UTILIZATION: f64 = 0.8;
/// Bytes of a limit's name: a Postgres identifier.
const NAME_BYTES: usize = 63;

struct Counters {
    limits: [Limit; MAX_LIMITS],
    pipelines: [PipelineSlot; MAX_PIPELINES],
}

/// The requests in flight of one pipeline; `key` is 0 while the slot is free.
struct PipelineSlot {
    key: AtomicU64,
    in_flight: InFlight,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            limits: std::array::from_fn(|_| Limit::default()),
            pipelines: std::array::from_fn(|_| PipelineSlot {
                key: AtomicU64::new(0),
                in_flight: InFlight::default(),
            }),
        }
    }
}

// SAFETY: atomics and arrays of them.
unsafe impl PGRXSharedMemory for Counters {}

/// Whose a limit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Owner {
    #[default]
    Nobody,
    /// All that use this name.
    Name([u8; NAME_BYTES], u8),
    /// One pipeline, by its key.
    Pipeline(u64),
}

#[derive(Clone, Copy)]
struct Definition {
    /// 0 while the place is free.
    database: u32,
    /// Whether the database defines it now; its share of the day stays counted either way.
    stands: bool,
    budget: Budget,
}

impl Default for Definition {
    fn default() -> Self {
        Self {
            database: 0,
            stands: false,
            budget: Budget {
                requests_per_minute: None,
                tokens_per_minute: None,
                requests_per_day: None,
                tokens_per_day: None,
                utilization: 1.0,
            },
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Entry {
    owner: Owner,
    definitions: [Definition; MAX_DEFINITIONS],
}

#[derive(Clone, Copy)]
struct Directory([Entry; MAX_LIMITS]);

impl Default for Directory {
    fn default() -> Self {
        Self([Entry::default(); MAX_LIMITS])
    }
}

// SAFETY: plain data.
unsafe impl PGRXSharedMemory for Directory {}

// SAFETY: the names are used for nothing else in the server.
static COUNTERS: PgAtomic<Counters> = unsafe { PgAtomic::new(c"pg_ingest_budgets") };
// SAFETY: as above.
static DIRECTORY: PgLwLock<Directory> = unsafe { PgLwLock::new(c"pg_ingest_limits") };
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Asks for the memory; only while the server loads its preload libraries.
pub fn request() {
    pg_shmem_init!(COUNTERS);
    pg_shmem_init!(DIRECTORY);
    REQUESTED.store(true, Ordering::Relaxed);
}

fn counters() -> Option<&'static Counters> {
    REQUESTED.load(Ordering::Relaxed).then(|| COUNTERS.get())
}

/// What a pipeline is called among those of the whole server.
pub fn pipeline_key(database: pg_sys::Oid, pipeline: i32) -> NonZeroU64 {
    let key = u64::from(database.to_u32()) << 32 | u64::from(pipeline as u32);
    NonZeroU64::new(key).unwrap_or(NonZeroU64::MIN)
}

/// A limit as a database defines it.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitDefinition {
    /// Its name.
    pub name: String,
    /// Its figures.
    pub budget: Budget,
    /// Requests and tokens that this database has written down for today (UTC).
    pub today: (u64, u64),
}

/// Publishes this database's definitions, and withdraws those that this process published `before` and that are gone (at its
/// start: all others). Definitions that it never saw may be another worker's, and stay.
pub fn define(
    database: pg_sys::Oid,
    before: Option<&[LimitDefinition]>,
    definitions: &[LimitDefinition],
) {
    let Some(counters) = counters() else { return };
    let now = Now::read();
    let mut directory = DIRECTORY.exclusive();
    for definition in definitions {
        let owner = named(&definition.name);
        let Some(index) = find_or_take(&mut directory, owner) else {
            continue;
        };
        let entry = &mut directory.0[index];
        let known = entry.place(database.to_u32());
        if entry.definitions[known].database == 0 {
            let (requests, tokens) = definition.today;
            let day = (now.unix / 86_400) as u32;
            counters.limits[index].restore_day(now, day, requests, tokens);
        }
        let shared = known == MAX_DEFINITIONS - 1 && entry.definitions[known].stands;
        let place = &mut entry.definitions[known];
        place.budget = if shared && place.database != database.to_u32() {
            place.budget.stricter(definition.budget)
        } else {
            definition.budget
        };
        place.database = database.to_u32();
        place.stands = true;
        entry.apply(&counters.limits[index], now);
    }
    for (index, entry) in directory.0.iter_mut().enumerate() {
        let Owner::Name(..) = entry.owner else {
            continue;
        };
        let is_in = |list: &[LimitDefinition]| list.iter().any(|d| named(&d.name) == entry.owner);
        if !is_in(definitions) && before.is_none_or(is_in) {
            entry.withdraw(database.to_u32(), &counters.limits[index], now);
        }
    }
}

/// Forgets a database that has no extension any more.
pub fn forget_database(database: pg_sys::Oid) {
    define(database, None, &[]);
    keep_pipelines(database, &[]);
}

/// Forgets the pipelines of a database that are not among these. For the start of a worker: later, another worker may know
/// of one that this one does not know of yet.
pub fn keep_pipelines(database: pg_sys::Oid, present: &[NonZeroU64]) {
    forget(|key| of_database(key) == database.to_u32() && !is_among(present, key));
}

/// Forgets these pipelines, which were dropped.
pub fn forget_pipelines(gone: &[NonZeroU64]) {
    forget(|key| is_among(gone, key));
}

fn is_among(keys: &[NonZeroU64], key: u64) -> bool {
    keys.iter().any(|known| known.get() == key)
}

fn of_database(key: u64) -> u32 {
    (key >> 32) as u32
}

/// Forgets the pipelines whose keys are gone: their own limits, and their requests in flight unless some are still out.
fn forget(is_gone: impl Fn(u64) -> bool) {
    let Some(counters) = counters() else { return };
    let mut directory = DIRECTORY.exclusive();
    for (entry, limit) in directory.0.iter_mut().zip(&counters.limits) {
        if matches!(entry.owner, Owner::Pipeline(key) if is_gone(key)) {
            limit.clear();
            *entry = Entry::default();
        }
    }
    drop(directory);
    for slot in &counters.pipelines {
        let key = slot.key.load(Ordering::Acquire);
        if key != 0 && is_gone(key) && slot.in_flight.count() == 0 {
            slot.key.store(0, Ordering::Release);
        }
    }
}

/// Forgets what databases defined that are not among these.
pub fn keep_databases(present: &[pg_sys::Oid]) {
    let Some(counters) = counters() else { return };
    let now = Now::read();
    let is_present = |database: u32| present.iter().any(|oid| oid.to_u32() == database);
    forget(|key| !is_present(of_database(key)));
    let mut directory = DIRECTORY.exclusive();
    for (entry, limit) in directory.0.iter_mut().zip(&counters.limits) {
        for place in 0..MAX_DEFINITIONS {
            let database = entry.definitions[place].database;
            if database != 0 && !is_present(database) {
                entry.withdraw(database, limit, now);
            }
        }
    }
}

/// The limit that goes by this name, if somebody defines it.
pub fn limit_named(name: &str) -> Option<&'static Limit> {
    let counters = counters()?;
    let owner = named(name);
    let directory = DIRECTORY.share();
    let index = directory.0.iter().position(|entry| entry.owner == owner)?;
    Some(&counters.limits[index])
}

/// The limit of a pipeline that names none: no figures but those that the provider's answers tell, of which it uses
/// [`UNNAMED_UTILIZATION`], and a cool-down. One of this process alone when all places are taken.
pub fn limit_of_pipeline(key: NonZeroU64) -> &'static Limit {
    let owner = Owner::Pipeline(key.get());
    let shared = counters().and_then(|counters| {
        let index = find_or_take(&mut DIRECTORY.exclusive(), owner)?;
        Some(&counters.limits[index])
    });
    let limit = shared.unwrap_or_else(|| own(&OWN_LIMITS, key));
    limit.configure(
        Now::read(),
        &Budget {
            utilization: UNNAMED_UTILIZATION,
            ..Definition::default().budget
        },
    );
    limit
}

/// Ends the cool-down of a pipeline's limit, whoever shares it.
pub fn end_cool_down(database: pg_sys::Oid, pipeline: i32, name: Option<&str>) {
    let owner = match name {
        Some(name) => named(name),
        None => Owner::Pipeline(pipeline_key(database, pipeline).get()),
    };
    let Some(counters) = counters() else { return };
    let directory = DIRECTORY.share();
    if let Some(index) = directory.0.iter().position(|entry| entry.owner == owner) {
        counters.limits[index].end_cool_down(Now::read());
    }
}

/// The requests in flight of a pipeline. Counted in this process alone when all places are taken.
pub fn in_flight_of_pipeline(key: NonZeroU64) -> &'static InFlight {
    let taken = |slot: &&PipelineSlot| {
        let free = slot
            .key
            .compare_exchange(0, key.get(), Ordering::AcqRel, Ordering::Acquire);
        free.map_or_else(|present| present == key.get(), |_| true)
    };
    let shared = counters().and_then(|counters| {
        let known = counters
            .pipelines
            .iter()
            .find(|slot| slot.key.load(Ordering::Acquire) == key.get());
        known.or_else(|| counters.pipelines.iter().find(taken))
    });
    match shared {
        Some(slot) => &slot.in_flight,
        None => own(&OWN_IN_FLIGHT, key),
    }
}

/// What this process counts for pipelines that have found no place in shared memory.
type Own<T> = Mutex<BTreeMap<NonZeroU64, &'static T>>;
static OWN_LIMITS: Own<Limit> = Mutex::new(BTreeMap::new());
static OWN_IN_FLIGHT: Own<InFlight> = Mutex::new(BTreeMap::new());

fn own<T: Default>(all: &Own<T>, key: NonZeroU64) -> &'static T {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.entry(key).or_insert_with(|| Box::leak(Box::default()))
}

/// Begins anew for a worker: another process has its number.
pub fn open_worker(worker: usize) {
    for slot in counters().iter().flat_map(|counters| &counters.pipelines) {
        slot.in_flight.open_worker(worker);
    }
}

/// Gives back the requests in flight of a worker that ends. Plain atomics: it is called while a process exits.
pub fn release_worker(worker: usize) {
    for slot in counters().iter().flat_map(|counters| &counters.pipelines) {
        slot.in_flight.release_worker(worker);
    }
}

/// What there is to see of a limit.
pub struct Seen {
    /// Its name; `None` for one that belongs to a pipeline.
    pub name: Option<String>,
    /// The pipeline of this database that it belongs to.
    pub pipeline: Option<i32>,
    /// Whether another database defines it, more strictly in some figure.
    pub stricter_elsewhere: bool,
    /// Its counters.
    pub now: limiter::Snapshot,
}

/// The limits that concern a database: those that it defines and those of its pipelines.
pub fn seen_from(database: pg_sys::Oid) -> Vec<Seen> {
    let Some(counters) = counters() else {
        return Vec::new();
    };
    let now = Now::read();
    let directory = *DIRECTORY.share();
    directory
        .0
        .iter()
        .zip(&counters.limits)
        .filter_map(|(entry, limit)| {
            let ours = entry
                .definitions
                .iter()
                .find(|d| d.stands && d.database == database.to_u32());
            let (name, pipeline) = match entry.owner {
                Owner::Name(bytes, length) if ours.is_some() => {
                    let name = String::from_utf8_lossy(&bytes[..usize::from(length)]).into_owned();
                    (Some(name), None)
                }
                Owner::Pipeline(key) if (key >> 32) as u32 == database.to_u32() => {
                    (None, Some(key as u32 as i32))
                }
                _ => return None,
            };
            let stricter_elsewhere = ours.is_some_and(|ours| {
                entry
                    .effective()
                    .is_some_and(|all| all.targets() != ours.budget.targets())
            });
            Some(Seen {
                name,
                pipeline,
                stricter_elsewhere,
                now: limit.snapshot(now),
            })
        })
        .collect()
}

impl Entry {
    /// The place of a database's definition: its own, else a free one, else the last, which they share.
    fn place(&self, database: u32) -> usize {
        let of = |wanted: u32| self.definitions.iter().position(|d| d.database == wanted);
        of(database)
            .or_else(|| of(0))
            .unwrap_or(MAX_DEFINITIONS - 1)
    }

    fn effective(&self) -> Option<Budget> {
        let standing = self.definitions.iter().filter(|d| d.stands);
        standing.map(|d| d.budget).reduce(Budget::stricter)
    }

    fn apply(&self, limit: &Limit, now: Now) {
        if let Some(budget) = self.effective() {
            limit.configure(now, &budget);
        }
    }

    /// Ends what a database defines. When nobody defines it any more, the limit is forgotten.
    fn withdraw(&mut self, database: u32, limit: &Limit, now: Now) {
        let Some(place) = self
            .definitions
            .iter_mut()
            .find(|d| d.database == database && d.stands)
        else {
            return;
        };
        place.stands = false;
        if self.effective().is_none() {
            limit.clear();
            *self = Self::default();
        } else {
            self.apply(limit, now);
        }
    }
}

fn named(name: &str) -> Owner {
    let mut bytes = [0; NAME_BYTES];
    let length = name.len().min(NAME_BYTES);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    Owner::Name(bytes, length as u8)
}

fn find_or_take(directory: &mut Directory, owner: Owner) -> Option<usize> {
    let of = |wanted: Owner| directory.0.iter().position(|entry| entry.owner == wanted);
    let index = of(owner).or_else(|| of(Owner::Nobody))?;
    directory.0[index].owner = owner;
    Some(index)
}
