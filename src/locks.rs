//! Locks between processes of one database. They are advisory locks of a kind that no SQL function takes: whoever could take
//! them would stop the work of everybody.

use pgrx::prelude::*;

/// What is locked.
#[derive(Clone, Copy)]
pub enum Lock {
    /// A dump is being restored: until its session ends, nobody takes documents.
    Restore,
    /// Who folds the counters.
    Fold,
    /// Who ends a rebuild.
    Switch,
    /// The definition of the pipeline with this number.
    Change(i32),
}

/// Field 4 of the tag; those of SQL have 1 (one key) and 2 (two keys).
const KIND: u16 = 3;

impl Lock {
    fn tag(self) -> pg_sys::LOCKTAG {
        let (what, number) = match self {
            Self::Restore => (1, 0),
            Self::Fold => (2, 0),
            Self::Switch => (3, 0),
            Self::Change(pipeline) => (4, pipeline as u32),
        };
        pg_sys::LOCKTAG {
            // SAFETY: a plain global, set when the process connected.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: what,
            locktag_field3: number,
            locktag_field4: KIND,
            locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        }
    }

    fn acquire(self, mode: u32, session: bool, wait: bool) -> bool {
        // SAFETY: a tag of this database, inside a transaction. Waiting looks for interrupts and deadlocks as for any lock.
        let result =
            unsafe { pg_sys::LockAcquire(&self.tag(), mode as pg_sys::LOCKMODE, session, !wait) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }

    /// Takes it alone until the transaction ends, if nobody has it.
    pub fn try_alone(self) -> bool {
        self.acquire(pg_sys::ExclusiveLock, false, false)
    }

    /// Takes it with others until the transaction ends, if nobody has it alone.
    pub fn try_shared(self) -> bool {
        self.acquire(pg_sys::ShareLock, false, false)
    }

    /// Takes it alone until the transaction ends, when others let go of it.
    pub fn wait_alone(self) {
        self.acquire(pg_sys::ExclusiveLock, false, true);
    }
}

/// Takes it until the session ends: the target's keys and sequences come later in a dump than its rows.
#[pg_extern(sql = false)]
fn hold_for_restore() {
    Lock::Restore.acquire(pg_sys::ExclusiveLock, true, true);
}
