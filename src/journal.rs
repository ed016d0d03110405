//! What a worker process notes for the one after it, in a file that it has mapped: the death of any process, of whatever
//! kind, loses nothing of it; only the end of the whole machine does, and then a second's worth.
//!
//! There is a file for each worker of each database. It says how the last process ended, what it sent today under each
//! limit (the table `ingest.limit_day` follows about once a second), and which documents it held and which of these a thread
//! was working on: after a crash, those are suspected of it.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use engine::{Mark, Working};
use limiter::{Tallied, Tally};
use pgrx::prelude::*;

use crate::api::MAX_NAME;

/// Says that a file is such a one, of this layout. Another layout needs another number.
const MAGIC: u64 = u64::from_ne_bytes(*b"pgingst1");
/// Limits counted by one worker. The server has room for 128.
const MAX_TALLIES: usize = 128;
/// Documents noted as held; those beyond it are never suspected.
const MAX_HELD: usize = 16 * 1024;
/// Crashes count as a series when they are this close, in seconds.
const SERIES: u64 = 600;

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Life {
    /// By itself, or because the server asked; so is a new file.
    Ended = 0,
    /// Not yet, or in a crash of its own.
    Runs = 1,
}

/// The file's layout. All zeros is one of a process that never was.
#[repr(C)]
struct Layout {
    magic: AtomicU64,
    life: AtomicU32,
    /// Crashes in a series in which no document was being worked on.
    unexplained: AtomicU32,
    /// When the last of them was, in seconds since 1970.
    crashed_at: AtomicU64,
    tallies: [NamedTally; MAX_TALLIES],
    held: [Held; MAX_HELD],
}

#[repr(C)]
struct NamedTally {
    name: [AtomicU8; MAX_NAME + 1],
    tally: Tally,
}

/// A document that the process holds; 0 for none.
#[repr(C)]
struct Held {
    document: AtomicI64,
    working: AtomicU32,
    padding: AtomicU32,
}

/// A worker's journal.
pub struct Journal {
    layout: &'static Layout,
    /// Places not taken, the one that was left longest ago first: threads have done with what was there.
    free: VecDeque<u32>,
    /// What of each limit has been written to the table.
    written: HashMap<usize, Tallied>,
}

/// A document noted as held.
#[derive(Debug, Clone, Copy)]
pub struct Note(Option<u32>);

/// While it lives, a document is noted as worked on.
pub struct WorkingOn<'j> {
    journal: &'j mut Journal,
    note: Note,
    working: Option<Working>,
}

impl Drop for WorkingOn<'_> {
    fn drop(&mut self) {
        self.working.take();
        self.journal.release(self.note);
    }
}

/// The journal of the process that is running, for what happens while it dies.
static OWN: AtomicPtr<Layout> = AtomicPtr::new(std::ptr::null_mut());

impl Journal {
    /// Opens the journal of a worker, with what the process before has left in it. A journal that cannot be kept in a file is
    /// kept in memory, and says so in the log.
    pub fn open(database: pg_sys::Oid, number: i32) -> Self {
        let path = path(database, number);
        let layout = map(&path).unwrap_or_else(|error| {
            log!(
                "pg_ingest: {} cannot be used: {error}; after a crash, the totals of the day may lack a second",
                path.display()
            );
            anonymous()
        });
        Self {
            layout,
            free: VecDeque::new(),
            written: HashMap::new(),
        }
    }

    /// The documents that the process before may have died of, if it crashed; watched tables as negative numbers.
    pub fn crash(&self) -> Option<Vec<i64>> {
        let layout = self.layout;
        if layout.life.load(Ordering::SeqCst) != Life::Runs as u32 {
            return None;
        }
        let held = layout
            .held
            .iter()
            .filter(|held| held.document.load(Ordering::Relaxed) != 0);
        let id = |held: &Held| held.document.load(Ordering::Relaxed);
        let (working, waiting): (Vec<&Held>, Vec<&Held>) =
            held.partition(|held| held.working.load(Ordering::Relaxed) > 0);
        let mut suspects: Vec<i64> = working.into_iter().map(id).collect();
        if suspects.is_empty() {
            let now = limiter::Now::read().unix;
            let before = layout.crashed_at.swap(now, Ordering::Relaxed);
            let series = if now.saturating_sub(before) < SERIES {
                layout.unexplained.load(Ordering::Relaxed) + 1
            } else {
                1
            };
            layout.unexplained.store(series, Ordering::Relaxed);
            // Somebody killed it, or it died in a way that nobody has thought of: if that goes on, whatever was held each
            // time is worth a suspicion.
            if series >= 3 {
                suspects = waiting.into_iter().map(id).collect();
            }
        }
        Some(suspects)
    }

    /// Ends with the journal of a worker that does not run. What it held is forgotten.
    pub fn close(self) {
        self.layout.life.store(Life::Ended as u32, Ordering::SeqCst);
        unmap(self.layout);
    }

    /// Begins to note this process's life. What the process before held is forgotten, and what it sent before today.
    pub fn begin(&mut self) {
        let today = limiter::Now::read().day();
        for entry in &self.layout.tallies {
            if entry.tally.read().is_none_or(|tallied| tallied.day < today) {
                entry.tally.clear();
                entry.set_name("");
            }
        }
        for held in &self.layout.held {
            if held.document.load(Ordering::Relaxed) != 0 {
                held.document.store(0, Ordering::Relaxed);
            }
            if held.working.load(Ordering::Relaxed) != 0 {
                held.working.store(0, Ordering::Relaxed);
            }
        }
        self.free = (0..MAX_HELD as u32).collect();
        self.layout.life.store(Life::Runs as u32, Ordering::SeqCst);
        OWN.store(std::ptr::from_ref(self.layout).cast_mut(), Ordering::SeqCst);
    }

    /// Notes a document as held.
    pub fn hold(&mut self, document: i64) -> Note {
        let note = self.free.pop_front();
        if let Some(index) = note {
            let held = &self.layout.held[index as usize];
            held.document.store(document, Ordering::Relaxed);
        }
        Note(note)
    }

    /// Where it is noted while a thread works on it.
    pub fn mark(&self, note: Note) -> Mark {
        note.0.map_or_else(Mark::unseen, |index| {
            Mark::new(&self.layout.held[index as usize].working)
        })
    }

    /// Notes a document as held no more.
    pub fn release(&mut self, note: Note) {
        let Some(index) = note.0 else { return };
        let held = &self.layout.held[index as usize];
        held.document.store(0, Ordering::Relaxed);
        self.free.push_back(index);
    }

    /// Notes that the main thread works on a document that is not held yet, until the guard is dropped.
    pub fn work_on(&mut self, document: i64) -> WorkingOn<'_> {
        let note = self.hold(document);
        let working = Some(self.mark(note).work());
        WorkingOn {
            journal: self,
            note,
            working,
        }
    }

    /// The same of a watched table whose rows are looked for. It stands where documents do, as a negative number.
    pub fn work_on_watch(&mut self, watch: i32) -> WorkingOn<'_> {
        self.work_on(-i64::from(watch))
    }

    /// Where this process counts what it sends under a limit; begins with what of it is `written` in the table. None when
    /// there are too many limits.
    pub fn tally(&self, name: &str, written: Tallied) -> Option<&'static Tally> {
        let layout = self.layout;
        let known = layout
            .tallies
            .iter()
            .find(|entry| entry.is_named(name))
            .inspect(|entry| entry.tally.restore(written));
        let free = || {
            let entry = layout.tallies.iter().find(|entry| entry.is_named(""))?;
            entry.tally.clear();
            entry.set_name(name);
            entry.tally.restore(written);
            Some(entry)
        };
        known.or_else(free).map(|entry| &entry.tally)
    }

    /// What has been counted and not [written](Self::wrote) to the table, by limit.
    pub fn unwritten(&self) -> Vec<(usize, String, Tallied)> {
        self.layout
            .tallies
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| {
                let tallied = entry.tally.read()?;
                let written = self.written.get(&index);
                let news = written != Some(&tallied) && (tallied.requests > 0 || written.is_some());
                news.then(|| (index, entry.name(), tallied))
            })
            .collect()
    }

    /// Notes what stands in the table now.
    pub fn wrote(&mut self, tallies: &[(usize, String, Tallied)]) {
        let written = tallies.iter().map(|(index, _, tallied)| (*index, *tallied));
        self.written.extend(written);
    }
}

impl NamedTally {
    fn name(&self) -> String {
        let bytes: Vec<u8> = self
            .name
            .iter()
            .map(|byte| byte.load(Ordering::Relaxed))
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn is_named(&self, name: &str) -> bool {
        let bytes = name.bytes().chain(std::iter::repeat(0));
        self.name
            .iter()
            .zip(bytes)
            .all(|(known, byte)| known.load(Ordering::Relaxed) == byte)
    }

    fn set_name(&self, name: &str) {
        let bytes = name.bytes().take(MAX_NAME).chain(std::iter::repeat(0));
        for (place, byte) in self.name.iter().zip(bytes) {
            place.store(byte, Ordering::Relaxed);
        }
    }
}

/// What the workers of a database, those of former times too, counted under each limit: `(worker, limit, tally)`.
pub fn tallies_of(database: pg_sys::Oid) -> Vec<(i32, String, Tallied)> {
    let mut found = Vec::new();
    let tomorrow = limiter::Now::read().day().saturating_add(1);
    for (of, number) in files() {
        if of != database.to_u32() {
            continue;
        }
        let Ok(file) = File::open(path(database, number)) else {
            continue;
        };
        if !is_journal(&file) {
            continue;
        }
        if let Ok(layout) = map_file(&file, libc::PROT_READ) {
            let tallies = layout.tallies.iter().filter_map(|entry| {
                let tallied = entry.tally.read()?;
                let sane = tallied.day <= tomorrow && tallied.requests > 0;
                sane.then(|| (number, entry.name(), tallied))
            });
            found.extend(tallies);
            unmap(layout);
        }
    }
    found
}

/// The journals of those workers of a database whose numbers are wanted.
pub fn left_of(database: pg_sys::Oid, wanted: impl Fn(i32) -> bool) -> Vec<Journal> {
    files()
        .into_iter()
        .filter(|(of, number)| *of == database.to_u32() && wanted(*number))
        .filter_map(|(_, number)| {
            let layout = map(&path(database, number)).ok()?;
            Some(Journal {
                layout,
                free: VecDeque::new(),
                written: HashMap::new(),
            })
        })
        .collect()
}

/// The process ends in a way that is no document's fault. Nothing but a store to memory: it is called while a process dies,
/// from a signal handler too.
pub fn end() {
    let own = OWN.load(Ordering::SeqCst);
    if !own.is_null() {
        // SAFETY: mapped by `open` for as long as the process lives.
        unsafe { (*own).life.store(Life::Ended as u32, Ordering::SeqCst) };
    }
}

/// Forgets the journals of a database that has no extension any more.
pub fn forget_database(database: pg_sys::Oid) {
    remove(|of| of == database.to_u32());
}

/// Forgets the journals of databases that are not among these.
pub fn keep_databases(present: &[pg_sys::Oid]) {
    remove(|of| present.iter().all(|oid| oid.to_u32() != of));
}

fn remove(is_gone: impl Fn(u32) -> bool) {
    for (database, number) in files() {
        if is_gone(database) {
            let _ = fs::remove_file(path(database.into(), number));
        }
    }
}

/// Where the statistics collector had its files, which is no part of a base backup: a standby has nothing to learn from it.
const DIRECTORY: &str = "pg_stat_tmp";

fn path(database: pg_sys::Oid, number: i32) -> PathBuf {
    PathBuf::from(format!(
        "{DIRECTORY}/pg_ingest.{}.{number}.journal",
        database.to_u32()
    ))
}

/// The journals there are, by database and worker.
fn files() -> Vec<(u32, i32)> {
    let Ok(directory) = fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    directory
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_prefix("pg_ingest.")?.strip_suffix(".journal")?;
            let (database, number) = name.split_once('.')?;
            Some((database.parse().ok()?, number.parse().ok()?))
        })
        .collect()
}

/// Maps a journal, made if need be. One of another layout begins anew. A file that somebody has mapped never changes its
/// length.
fn map(path: &Path) -> io::Result<&'static Layout> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    if let Ok(file) = options.open(path)
        && is_journal(&file)
    {
        return map_file(&file, libc::PROT_READ | libc::PROT_WRITE);
    }
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let file = options.create_new(true).open(&fresh)?;
    // Its blocks are there before it is mapped: a full disk is an error here, and no signal later (but on file systems that
    // copy what is overwritten).
    let mut zeros = vec![0; size_of::<Layout>()];
    zeros[..8].copy_from_slice(&MAGIC.to_ne_bytes());
    file.write_all_at(&zeros, 0)?;
    fs::rename(&fresh, path)?;
    map_file(&file, libc::PROT_READ | libc::PROT_WRITE)
}

fn is_journal(file: &File) -> bool {
    let mut magic = [0; 8];
    let length = file.metadata().map(|metadata| metadata.len());
    length.is_ok_and(|length| length == size_of::<Layout>() as u64)
        && file.read_exact_at(&mut magic, 0).is_ok()
        && magic == MAGIC.to_ne_bytes()
}

fn map_file(file: &File, protection: libc::c_int) -> io::Result<&'static Layout> {
    // SAFETY: a new mapping of a file that is as long as the layout, which is atomics through and through, valid in every
    // state. Nobody unmaps it but `unmap`.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            size_of::<Layout>(),
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(&*address.cast::<Layout>())
    }
}

fn unmap(layout: &'static Layout) {
    // SAFETY: it was mapped by `map_file`, and its only user is done with it.
    unsafe {
        libc::munmap(
            std::ptr::from_ref(layout).cast_mut().cast(),
            size_of::<Layout>(),
        )
    };
}

fn anonymous() -> &'static Layout {
    let layout = std::alloc::Layout::new::<Layout>();
    // SAFETY: zeros are a valid layout; never freed.
    unsafe {
        let place = std::alloc::alloc_zeroed(layout).cast::<Layout>();
        if place.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        &*place
    }
}
