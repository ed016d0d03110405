//! Telling the worker that a commit added work, and getting it out of the way of DROP DATABASE.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::pgrx_extern_c_guard as guarded;
use pgrx::prelude::*;

use crate::copying::Diverted;
use crate::errors::UserError;
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
    /// The database that the present statement has to itself.
    static VACATED: RefCell<Option<Vacated>> = const { RefCell::new(None) };
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
        VACATED.take();
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
                cancel_workers(shared, database, |_| true);
                impatient = deadline;
            }
        }
        Some(vacated)
    }
}

/// Cancels what the workers of this database are doing that build an index.
pub fn cancel_index_builds() {
    // SAFETY: a plain global, set when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    if let Some(shared) = shmem::get() {
        cancel_workers(shared, database, |slot| {
            slot.state.load(Ordering::SeqCst) == shmem::WorkerState::BuildingIndex as u8
        });
    }
}

/// Cancels what workers of a database are doing.
fn cancel_workers(
    shared: &shmem::Shared,
    database: pg_sys::Oid,
    which: impl Fn(&shmem::WorkerSlot) -> bool,
) {
    for (_, slot) in shared.workers_of(database).filter(|(_, slot)| which(slot)) {
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

/// The server's own function without pgrx's wrapper around it, which would catch an error and raise another one that lacks some
/// of what the first told: the constraint, the line of a COPY, the position, SQLSTATEs of users' own.
mod raw {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        #[allow(clippy::too_many_arguments)]
        pub fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const std::ffi::c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            dest: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

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
    // SAFETY: Postgres passes a planned utility statement.
    let running = unsafe { guarded(|| Running::begin(statement)) };
    let run = match unsafe { PREVIOUS_UTILITY_HOOK } {
        Some(previous) => previous,
        None => raw::standard_ProcessUtility,
    };
    // SAFETY: the arguments are handed on as they came. An error of the statement leaves by longjmp, past this frame, in which
    // nothing is to be dropped: what has begun for the statement ends with its transaction.
    unsafe {
        run(
            running.statement,
            query,
            read_only_tree,
            context,
            params,
            environment,
            dest,
            completion,
        );
        guarded(|| running.end());
    }
}

/// A utility statement, and what is done besides. Plain data: it is forgotten when the statement fails.
#[derive(Clone, Copy)]
struct Running {
    /// The statement to run.
    statement: *mut pg_sys::PlannedStmt,
    diverted: Option<Diverted>,
    locks: Option<LockedDocuments>,
    tells: Tell,
    changes_databases: bool,
    updates_extension: bool,
}

impl Running {
    /// # Safety
    /// A planned utility statement.
    unsafe fn begin(statement: *mut pg_sys::PlannedStmt) -> Self {
        // SAFETY: the node's tag says what it is.
        unsafe {
            let node = (*statement).utilityStmt;
            if drops_extension(node) && DROPPING.with_borrow(Option::is_none) {
                // Until the transaction ends: a worker that came back earlier would wait for the locks of the drop, or it for
                // the worker's.
                DROPPING.replace(Vacated::new(pg_sys::MyDatabaseId));
            }
            if let Some(database) = database_to_vacate(node) {
                VACATED.replace(Vacated::new(database));
            }
            let locks = LockedDocuments::new(node);
            let diverted = Diverted::new(statement);
            Self {
                statement: diverted.map_or(statement, |diverted| diverted.statement()),
                diverted,
                locks,
                tells: tells(node),
                changes_databases: matches!(
                    (*node).type_,
                    pg_sys::NodeTag::T_CreatedbStmt | pg_sys::NodeTag::T_AlterDatabaseStmt
                ),
                updates_extension: (*node).type_ == pg_sys::NodeTag::T_AlterExtensionStmt,
            }
        }
    }

    fn end(self) {
        VACATED.take();
        if let Some(locks) = self.locks {
            locks.refuse_new();
        }
        if let Some(diverted) = self.diverted {
            diverted.finish();
        }
        match self.tells {
            Tell::Nobody => {}
            Tell::Present => NUDGE_AT_COMMIT.set(true),
            Tell::Started => at_commit(),
            Tell::Reviewing => review_at_commit(),
        }
        if self.updates_extension {
            // Workers look which release's SQL there is now.
            review_at_commit();
        }
        if self.changes_databases {
            // Its template may have had the extension, or it takes connections now.
            DATABASES_CHANGED.set(true);
        }
    }
}

/// LOCK TABLE by a role that sees some documents only: who may delete a row of a table may lock all of it.
#[derive(Clone, Copy)]
struct LockedDocuments {
    documents: pg_sys::Oid,
    before: bool,
}

impl LockedDocuments {
    /// Raises `42501` where `ingest.documents` is named, and would be kept from others.
    unsafe fn new(node: *mut pg_sys::Node) -> Option<Self> {
        // SAFETY: the tag tells the type of the node; its relations are a list of RangeVar, as the grammar makes it. The rest reads
        // catalogs inside the statement's transaction.
        unsafe {
            if (*node).type_ != pg_sys::NodeTag::T_LockStmt {
                return None;
            }
            let lock = node.cast::<pg_sys::LockStmt>();
            if (*lock).mode <= pg_sys::RowExclusiveLock as i32 {
                return None;
            }
            let schema = pg_sys::get_namespace_oid(c"ingest".as_ptr(), true);
            let documents = pg_sys::get_relname_relid(c"documents".as_ptr(), schema);
            let filtered = pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32;
            if documents == pg_sys::InvalidOid
                || pg_sys::get_extension_oid(c"pg_ingest".as_ptr(), true) == pg_sys::InvalidOid
                || pg_sys::check_enable_rls(documents, pg_sys::InvalidOid, true) != filtered
            {
                return None;
            }
            let relations = (*lock).relations;
            for index in 0..(*relations).length {
                let relation = (*(*relations).elements.add(index as usize)).ptr_value;
                let named = pg_sys::RangeVarGetRelidExtended(
                    relation.cast(),
                    pg_sys::NoLock as pg_sys::LOCKMODE,
                    pg_sys::RVROption::RVR_MISSING_OK,
                    None,
                    std::ptr::null_mut(),
                );
                if named == documents {
                    refuse_lock();
                }
            }
            Some(Self {
                documents,
                before: is_locked(documents),
            })
        }
    }

    /// The same where it was locked with a view.
    fn refuse_new(self) {
        // SAFETY: inside the statement's transaction.
        if !self.before && unsafe { is_locked(self.documents) } {
            refuse_lock();
        }
    }
}

/// Whether this transaction keeps others from writing to a table.
unsafe fn is_locked(table: pg_sys::Oid) -> bool {
    // SAFETY: a table that is there; it is opened and closed without a lock of its own.
    unsafe {
        let relation = pg_sys::RelationIdGetRelation(table);
        if relation.is_null() {
            return false;
        }
        let locked = pg_sys::CheckRelationLockedByMe(
            relation,
            pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE,
            true,
        );
        pg_sys::RelationClose(relation);
        locked
    }
}

fn refuse_lock() -> ! {
    UserError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        "permission denied to lock table ingest.documents",
    )
    .detail("It holds the documents of others, too, who would have to wait.")
    .hint("LOCK TABLE ingest.documents IN ROW EXCLUSIVE MODE; is allowed, and SELECT … FOR UPDATE.")
    .raise()
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
