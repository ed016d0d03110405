//! A background process among those of Postgres: its signals, its settings, its sleep.

use std::os::fd::RawFd;
use std::time::Duration;

use injection::{Injected, Point};
use pgrx::prelude::*;

use crate::journal;
use crate::worker::transaction::SqlError;

// Postgres's own handlers as they are: pgrx's wrappers of them are Rust functions.
unsafe extern "C-unwind" {
    fn die(signal: libc::c_int);
    #[allow(non_snake_case)]
    fn SignalHandlerForConfigReload(signal: libc::c_int);
}

/// SIGTERM ends the process at the next safe point, also inside a statement; SIGHUP rereads the settings; SIGQUIT, by which
/// the server ends all processes when one has crashed, ends it at once.
pub fn install_signal_handlers() {
    // SAFETY: before signals are unblocked, on the main thread, with Postgres's own handlers.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        use pg_sys::pqsignal;
        #[cfg(feature = "pg18")]
        use pg_sys::pqsignal_be as pqsignal;
        pqsignal(libc::SIGTERM, Some(die));
        pqsignal(libc::SIGHUP, Some(SignalHandlerForConfigReload));
        pqsignal(libc::SIGQUIT, Some(quit));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// As Postgres's own handler, which does nothing but exit; the journal learns that this process was not the one to crash.
unsafe extern "C-unwind" fn quit(_signal: libc::c_int) {
    journal::end();
    // SAFETY: meant for signal handlers.
    unsafe { libc::_exit(2) };
}

/// Comes to a point of a document's way at which tests have things happen, on the main thread.
pub fn reach(point: Point) -> Result<(), SqlError> {
    injection::reach(point, || wait(-1, Some(Duration::ZERO))).map_err(SqlError::from)
}

impl From<Injected> for SqlError {
    fn from(injected: Injected) -> Self {
        Self {
            code: PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            message: injected.to_string(),
        }
    }
}

/// Rereads the settings if SIGHUP asked for it; whether it did.
pub fn reload_settings() -> bool {
    // SAFETY: a flag that the signal handler sets; outside a transaction.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
            return true;
        }
    }
    false
}

/// Sleeps until the latch is set, `fd` (none when negative) can be read, or the timeout passes. Ends the process when the
/// server asks for it.
pub fn wait(fd: RawFd, timeout: Option<Duration>) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if fd >= 0 {
        events |= pg_sys::WL_SOCKET_READABLE;
    }
    let milliseconds = match timeout {
        Some(timeout) => {
            events |= pg_sys::WL_TIMEOUT;
            i64::try_from(timeout.as_millis())
                .unwrap_or(i64::MAX)
                .min(i64::from(i32::MAX))
                + 1
        }
        None => -1,
    };
    // SAFETY: this process's latch, and a descriptor that stays open.
    unsafe {
        pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            fd,
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check_interrupts();
}

/// Ends the process when the server asks for it. A cancel (`pg_cancel_backend`) that comes while no statement runs has
/// nothing to cancel.
pub fn check_interrupts() {
    PgTryBuilder::new(|| {
        pgrx::check_for_interrupts!();
    })
    .catch_others(|_| ())
    .execute();
}

/// A counter in the kernel that the engine's threads ring and the main thread waits on.
pub struct EventFd(RawFd);

impl EventFd {
    /// A silent one.
    ///
    /// # Errors
    /// What the system says when it refuses.
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: no pointers.
        match unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) } {
            -1 => Err(std::io::Error::last_os_error()),
            fd => Ok(Self(fd)),
        }
    }

    /// The descriptor to wait on.
    pub fn fd(&self) -> RawFd {
        self.0
    }

    /// Wakes who waits; from any thread.
    pub fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of this frame. A full counter has been rung already.
        unsafe { libc::write(self.0, one.as_ptr().cast(), one.len()) };
    }

    /// Takes back all rings.
    pub fn silence(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes of this frame; the descriptor does not block.
        unsafe { libc::read(self.0, count.as_mut_ptr().cast(), count.len()) };
    }
}
