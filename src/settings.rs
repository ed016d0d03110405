//! The settings (GUCs), each with its unit and the context in which it can be changed.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::Duration;

use embedder::AllowedHosts;
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

static DATABASES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"*"));
static WORKERS: GucSetting<i32> = GucSetting::<i32>::new(1);
static MODEL_DIR: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static MODEL_THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);
static ALLOWED_HOSTS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static REQUEST_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);
static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static MAX_DOCUMENT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(32 * 1024);
static VECTOR_CACHE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);
static DEFERRED_INDEX_MIN_CHUNKS: GucSetting<i32> = GucSetting::<i32>::new(10_000);

/// Defines them all and reserves the prefix.
pub fn define() {
    GucRegistry::define_string_guc(
        c"pg_ingest.databases",
        c"Databases that get a worker: a comma-separated list, or * for every database that has the extension.",
        c"",
        &DATABASES,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pg_ingest.workers",
        c"Worker processes for each database that has the extension.",
        c"One is right for most: a worker has many requests in flight. 0 stops all work.",
        &WORKERS,
        0,
        16,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pg_ingest.model_dir",
        c"Directory that holds a directory for each local model.",
        c"Empty for pg_ingest/models in the server's share directory. A change is used by newly started workers.",
        &MODEL_DIR,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_int_guc(
        c"pg_ingest.model_threads",
        c"Threads on which a worker runs local models, at the lowest priority.",
        c"0 for the number of processors divided by pg_ingest.workers. A change is used by newly started workers.",
        &MODEL_THREADS,
        0,
        256,
        GucContext::Sighup,
        GucFlags::default(),
    );
    // SAFETY: the hook is guarded; static strings.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"pg_ingest.allowed_hosts",
            c"Hosts that pipelines of everybody may send documents and keys to: a comma-separated list such as api.voyageai.com, *.openai.azure.com, localhost:11434; or *.",
            c"A provider's own public host is always allowed, with a key that the pipeline's owner can read. A pipeline of a superuser may go anywhere.",
            &ALLOWED_HOSTS,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_allowed_hosts),
            None,
            None,
        );
    }
    GucRegistry::define_int_guc(
        c"pg_ingest.request_timeout",
        c"Maximum time for a request to an embedding API, with its whole answer.",
        c"",
        &REQUEST_TIMEOUT,
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pg_ingest.connect_timeout",
        c"Maximum time to establish a connection to an embedding API.",
        c"",
        &CONNECT_TIMEOUT,
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pg_ingest.max_document_size",
        c"Largest content of a document that is embedded; a larger one fails as too_large.",
        c"A worker holds a document's text, chunks and vectors in memory, some ten times this size.",
        &MAX_DOCUMENT_SIZE,
        1,
        1024 * 1024 - 1,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"pg_ingest.deferred_index_min_chunks",
        c"Chunks that a target must hold before a deferred HNSW index is built on it.",
        c"A smaller table is searched exactly in milliseconds, and loading it further is 50 times as fast without the index.",
        &DEFERRED_INDEX_MIN_CHUNKS,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pg_ingest.vector_cache",
        c"Memory in which a worker remembers the last vectors and where others were written, so that a text that comes again is not embedded again.",
        c"A quarter is for vectors (6 kB each with 1536 dimensions), the rest for places (27 bytes a chunk and a document's key once). 0 for none. A change is used by newly started workers.",
        &VECTOR_CACHE,
        0,
        64 * 1024 * 1024,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    reserve_prefix();
}

/// Refuses a list of hosts that cannot be read, and says why.
#[pg_guard]
unsafe extern "C-unwind" fn check_allowed_hosts(
    value: *mut *mut std::ffi::c_char,
    _extra: *mut *mut std::ffi::c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: Postgres hands in a pointer to the new value, which is null or a C string.
    let list = unsafe {
        if value.is_null() || (*value).is_null() {
            return true;
        }
        CStr::from_ptr(*value).to_string_lossy()
    };
    let Err(error) = list.parse::<AllowedHosts>() else {
        return true;
    };
    let detail = CString::new(error.to_string()).unwrap_or_default();
    // SAFETY: where Postgres looks for the detail of a refused value; the copy lives as long as the report.
    unsafe {
        pg_sys::GUC_check_errdetail_string =
            pg_sys::MemoryContextStrdup(pg_sys::ErrorContext, detail.as_ptr());
    }
    false
}

fn reserve_prefix() {
    // SAFETY: a static C string; called from _PG_init only.
    #[cfg(not(feature = "pg14"))]
    unsafe {
        pg_sys::MarkGUCPrefixReserved(c"pg_ingest".as_ptr())
    };
    #[cfg(feature = "pg14")]
    unsafe {
        pg_sys::EmitWarningsOnPlaceholders(c"pg_ingest".as_ptr())
    };
}

/// Whether a database of this name gets workers.
pub fn serves_database(name: &str) -> bool {
    let list = DATABASES.get();
    let list = list.as_deref().map_or("*".into(), CStr::to_string_lossy);
    list.split(',')
        .map(str::trim)
        .any(|entry| entry == "*" || entry.trim_matches('"') == name)
}

/// Worker processes for each database.
pub fn workers() -> usize {
    WORKERS.get().max(0) as usize
}

/// The directory of local models.
pub fn model_dir() -> PathBuf {
    match MODEL_DIR.get() {
        Some(directory) if !directory.is_empty() => {
            PathBuf::from(directory.to_string_lossy().into_owned())
        }
        _ => share_directory().join("pg_ingest/models"),
    }
}

fn share_directory() -> PathBuf {
    let mut buffer = [0 as std::ffi::c_char; pg_sys::MAXPGPATH as usize];
    // SAFETY: my_exec_path is set at server start; get_share_path writes at most MAXPGPATH bytes with a final NUL.
    let path = unsafe {
        pg_sys::get_share_path(
            (&raw const pg_sys::my_exec_path).cast(),
            buffer.as_mut_ptr(),
        );
        CStr::from_ptr(buffer.as_ptr())
    };
    PathBuf::from(path.to_string_lossy().into_owned())
}

/// Threads for local inference in one worker process; at least 1.
pub fn model_threads() -> usize {
    match MODEL_THREADS.get() {
        0 => {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            (processors / workers().max(1)).max(1)
        }
        threads => threads as usize,
    }
}

/// Hosts that everybody's pipelines may use, as they are written.
pub fn allowed_hosts() -> String {
    ALLOWED_HOSTS
        .get()
        .map_or_else(String::new, |list| list.to_string_lossy().into_owned())
}

/// How long a request may take.
pub fn request_timeout() -> Duration {
    Duration::from_millis(REQUEST_TIMEOUT.get() as u64)
}

/// How long connecting may take.
pub fn connect_timeout() -> Duration {
    Duration::from_millis(CONNECT_TIMEOUT.get() as u64)
}

/// Threads that split documents in one worker process: tokens are counted at some 15 MB/s on each, so two keep up with
/// any provider.
pub fn split_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| usize::from(n).min(2))
}

/// Largest content of a document, in bytes.
pub fn max_document_size() -> usize {
    MAX_DOCUMENT_SIZE.get() as usize * 1024
}

/// Memory for vectors that may be asked for again, and for where they were written, in bytes.
pub fn vector_cache() -> usize {
    VECTOR_CACHE.get() as usize * 1024
}

/// Chunks from which a deferred index is built.
pub fn deferred_index_min_chunks() -> i64 {
    i64::from(DEFERRED_INDEX_MIN_CHUNKS.get())
}
