//! Telling the worker that a commit added work, and getting it out of the way of DROP DATABASE.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::copying::Diverted;
use crate::shmem;

/// A worker that has not left by then is inside a long statement, such as building an index: it is cancelled.
const CANCEL_AFTER: Duration = Duration::from_millis(200);
/// How long a statement on a database waits for its workers to leave; Postgres itself then waits 5 s for all others.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

thread_local! {
    static WAKE_AT_COMMIT: Cell<bool> = const { Cell::new(false) };
    static NUDGE_AT_COMMIT: Cell<bool> = const { Cell::new(false) };
    static REVIEW_AT_COMMIT: Cell<bool> = const { Cell::new(false) };
    static DATABASES_CHANGED: Cell<bool> = const { Cell::new(false) };
    static EXIT_REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// This database, while a transaction drops the extension in it.
    static DROPPING: RefCell<Option<Vacated>> = const { RefCell::new(None) };
}

static mut PREVIOUS_UTILITY_HOOK: pg_sys::ProcessUtility_hook_type = None;

/// Registers the callbacks; from `_PG_init`.
pub fn install() {
    // SAFETY: called once, on the main thread, before any transaction of this library's functions ends.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        PREVIOUS_UTILITY_HOOK = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

/// Wakes the workers of this database when the transaction commits; one wake for any number of rows.
pub fn at_commit() {
    WAKE_AT_COMMIT.set(true);
}

/// Has the workers of this database look through what they hold when the transaction commits: documents that they wait
/// to send may have been changed, deleted or paused.
pub fn review_at_commit() {
    REVIEW_AT_COMMIT.set(true);
    at_commit();
}

/// Whether this transaction has added work, which begins when it commits.
#[pg_extern(sql = false)]
fn wakes_at_commit() -> bool {
    WAKE_AT_COMMIT.get()
}

/// Runs after the commit is visible. Must not raise: nothing in it can.
#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut c_void,
) {
    if matches!(
        event,
        pg_sys::XactEvent::XACT_EVENT_COMMIT
            | pg_sys::XactEvent::XACT_EVENT_ABORT
            | pg_sys::XactEvent::XACT_EVENT_PREPARE
    ) {
        DROPPING.take();
    }
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT => {
            let review = REVIEW_AT_COMMIT.replace(false);
            let nudge = NUDGE_AT_COMMIT.replace(false);
            let wake = WAKE_AT_COMMIT.replace(false);
            if wake || nudge {
                now(review, wake);
            }
            if DATABASES_CHANGED.replace(false)
                && let Some(shared) = shmem::get()
            {
                shared.request_all();
            }
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT | pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            WAKE_AT_COMMIT.set(false);
            NUDGE_AT_COMMIT.set(false);
            REVIEW_AT_COMMIT.set(false);
            DATABASES_CHANGED.set(false);
        }
        _ => {}
    }
}

/// Wakes the workers of this database, or, with `start`, has the launcher start them.
fn now(review: bool, start: bool) {
    // SAFETY: a plain global, set when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    let Some(shared) = shmem::get() else { return };
    if review {
        shared.review(database);
    }
    if !shared.wake_workers(database) && start {
        shared.request_worker(database);
    }
}

/// A database that a statement can only work on while nobody is connected to it.
struct Vacated(pg_sys::Oid);

impl Vacated {
    /// Sends the workers away and waits until they are gone.
    fn new(database: pg_sys::Oid) -> Option<Self> {
        let shared = shmem::get()?;
        // A session that is terminated exits without unwinding.
        if !EXIT_REGISTERED.replace(true) {
            // SAFETY: registered once in this process.
            unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
        }
        shared.send_workers_away(database);
        let vacated = Self(database);
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        let mut impatient = Instant::now() + CANCEL_AFTER;
        while shared.workers_of(database).next().is_some() && Instant::now() < deadline {
            pgrx::check_for_interrupts!();
            std::thread::sleep(Duration::from_millis(2));
            if Instant::now() > impatient {
                cancel_workers(shared, database);
                impatient = deadline;
            }
        }
        Some(vacated)
    }
}

/// Cancels what the workers of a database are doing; they leave afterwards.
fn cancel_workers(shared: &shmem::Shared, database: pg_sys::Oid) {
    for (_, slot) in shared.workers_of(database) {
        let pid = slot.pid.load(Ordering::SeqCst);
        if pid > 0 {
            // SAFETY: no pointers; the process is one of this server's, and treats the signal as a cancel.
            unsafe { libc::kill(pid, libc::SIGINT) };
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    if let Some(shared) = shmem::get() {
        shared.allow_all_workers();
    }
}

impl Drop for Vacated {
    fn drop(&mut self) {
        if let Some(shared) = shmem::get() {
            shared.allow_workers(self.0);
            // It may still be there: under a new name, or because the statement failed.
            shared.request_worker(self.0);
        }
    }
}

#[pg_guard]
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: Postgres passes a planned utility statement; its node tag says what it is.
    if unsafe { drops_extension((*statement).utilityStmt) } {
        // Until the transaction ends: a worker that came back earlier would wait for the locks of the drop, or it for
        // the worker's.
        // SAFETY: a plain global.
        let database = unsafe { pg_sys::MyDatabaseId };
        if DROPPING.with_borrow(|dropping| dropping.is_none()) {
            DROPPING.replace(Vacated::new(database));
        }
    }
    // SAFETY: as above.
    let (vacated, tells, changes_databases, updates_extension) = unsafe {
        let node = (*statement).utilityStmt;
        (
            database_to_vacate(node).and_then(Vacated::new),
            tells(node),
            matches!(
                (*node).type_,
                pg_sys::NodeTag::T_CreatedbStmt | pg_sys::NodeTag::T_AlterDatabaseStmt
            ),
            (*node).type_ == pg_sys::NodeTag::T_AlterExtensionStmt,
        )
    };
    // SAFETY: as above.
    let diverted = unsafe { Diverted::new(statement) };
    let statement = diverted.as_ref().map_or(statement, Diverted::statement);
    // An error unwinds through this frame, and `vacated` is dropped on its way.
    // SAFETY: the arguments are handed on as they came.
    unsafe {
        match PREVIOUS_UTILITY_HOOK {
            Some(previous) => pg_sys::ffi::pg_guard_ffi_boundary(|| {
                previous(
                    statement,
                    query,
                    read_only_tree,
                    context,
                    params,
                    environment,
                    dest,
                    completion,
                )
            }),
            None => pg_sys::standard_ProcessUtility(
                statement,
                query,
                read_only_tree,
                context,
                params,
                environment,
                dest,
                completion,
            ),
        }
    }
    drop(vacated);
    if let Some(diverted) = diverted {
        diverted.finish();
    }
    match tells {
        Tell::Nobody => {}
        Tell::Present => NUDGE_AT_COMMIT.set(true),
        Tell::Started => at_commit(),
        Tell::Reviewing => review_at_commit(),
    }
    if updates_extension {
        // Workers look which release's SQL there is now.
        review_at_commit();
    }
    if changes_databases {
        // Its template may have had the extension, or it takes connections now.
        DATABASES_CHANGED.set(true);
    }
}

/// Who is to be told of a statement.
#[derive(Clone, Copy, PartialEq)]
enum Tell {
    Nobody,
    /// The workers that are there. A database without the extension has none, and a table is dropped there like anywhere.
    Present,
    /// Workers, which are started if there are none.
    Started,
    /// The same, and they look through what they hold.
    Reviewing,
}

/// Statements after which a worker has to start, end, or look for work that another session prepared.
unsafe fn tells(node: *mut pg_sys::Node) -> Tell {
    use pg_sys::NodeTag as T;
    // SAFETY: the tag tells the type of the node.
    unsafe {
        match (*node).type_ {
            T::T_CreateExtensionStmt => Tell::Started,
            T::T_DropStmt
                if matches!(
                    (*node.cast::<pg_sys::DropStmt>()).removeType,
                    pg_sys::ObjectType::OBJECT_EXTENSION
                        | pg_sys::ObjectType::OBJECT_SCHEMA
                        // A watched table takes its documents along.
                        | pg_sys::ObjectType::OBJECT_TABLE
                ) =>
            {
                Tell::Present
            }
            T::T_DropOwnedStmt => Tell::Present,
            T::T_TransactionStmt
                if (*node.cast::<pg_sys::TransactionStmt>()).kind
                    == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED =>
            {
                Tell::Reviewing
            }
            _ => Tell::Nobody,
        }
    }
}

/// Whether a statement drops pg_ingest: itself, with its schema, or with pgvector.
unsafe fn drops_extension(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the type of the node; DROP EXTENSION and DROP SCHEMA carry a list of names.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_DropStmt {
            return false;
        }
        let drop = node.cast::<pg_sys::DropStmt>();
        let names: &[&CStr] = match (*drop).removeType {
            pg_sys::ObjectType::OBJECT_EXTENSION => &[c"pg_ingest", c"vector"],
            pg_sys::ObjectType::OBJECT_SCHEMA => &[c"ingest"],
            _ => return false,
        };
        let objects = (*drop).objects;
        let named = !objects.is_null()
            && (0..(*objects).length).any(|index| {
                let object = (*(*objects).elements.add(index as usize)).ptr_value;
                names.contains(&name_of(object.cast()))
            });
        named && may_vacate(pg_sys::MyDatabaseId)
    }
}

/// The text of a name in a parse tree.
pub unsafe fn name_of<'a>(node: *mut pg_sys::Node) -> &'a CStr {
    // SAFETY: the node is a string, as the grammar makes names.
    unsafe {
        #[cfg(feature = "pg14")]
        return CStr::from_ptr((*node.cast::<pg_sys::Value>()).val.str_);
        #[cfg(not(feature = "pg14"))]
        return CStr::from_ptr((*node.cast::<pg_sys::String>()).sval);
    }
}

/// The database that a statement needs to have to itself, when the user may do that to it.
unsafe fn database_to_vacate(node: *mut pg_sys::Node) -> Option<pg_sys::Oid> {
    use pg_sys::NodeTag as T;
    // SAFETY: the tag tells the type of the node; names in a parse tree are C strings or null.
    let name = unsafe {
        match (*node).type_ {
            T::T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname,
            T::T_RenameStmt => {
                let rename = node.cast::<pg_sys::RenameStmt>();
                if (*rename).renameType != pg_sys::ObjectType::OBJECT_DATABASE {
                    return None;
                }
                (*rename).subname
            }
            T::T_AlterDatabaseStmt => {
                let alter = node.cast::<pg_sys::AlterDatabaseStmt>();
                option_value((*alter).options, c"tablespace")?;
                (*alter).dbname
            }
            T::T_CreatedbStmt => {
                option_value((*node.cast::<pg_sys::CreatedbStmt>()).options, c"template")?
            }
            _ => return None,
        }
    };
    if name.is_null() {
        return None;
    }
    // SAFETY: a C string; both calls read catalogs inside the statement's transaction.
    unsafe {
        let database = pg_sys::get_database_oid(name, true);
        (database != pg_sys::InvalidOid && may_vacate(database)).then_some(database)
    }
}

/// Only those who may drop it can send a database's workers away.
unsafe fn may_vacate(database: pg_sys::Oid) -> bool {
    // SAFETY: called inside a transaction.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::pg_database_ownercheck(database, pg_sys::GetUserId());
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::object_ownercheck(
            pg_sys::DatabaseRelationId,
            database,
            pg_sys::GetUserId(),
        );
    }
}

/// The text of an option of a utility statement.
unsafe fn option_value(options: *mut pg_sys::List, name: &CStr) -> Option<*mut c_char> {
    if options.is_null() {
        return None;
    }
    // SAFETY: `options` is a list of DefElem, as the grammar makes it.
    unsafe {
        for index in 0..(*options).length {
            let option =
                (*(*options).elements.add(index as usize)).ptr_value as *mut pg_sys::DefElem;
            if CStr::from_ptr((*option).defname) == name && !(*option).arg.is_null() {
                return Some(pg_sys::defGetString(option));
            }
        }
    }
    None
}
