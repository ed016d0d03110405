//! Threads that leave the process's signals to its main thread.

use std::io;

/// Spawns a named thread with every signal blocked, in it and in all threads that it spawns: Postgres's signal handlers
/// may run on the main thread only.
///
/// # Errors
/// What the system says when it refuses a thread.
pub fn spawn_with_signals_blocked(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    with_signals_blocked(|| {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map(drop)
    })
}

/// Runs `f` with every signal blocked on this thread, and restores the mask.
#[allow(unsafe_code)]
fn with_signals_blocked<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: plain calls on two signal sets of this frame; a new thread inherits the mask of its creator, so blocking
    // before the spawn leaves no instant in which it could receive a signal.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}

/// Nice value of threads that run a model: the lowest priority there is.
pub(crate) const INFERENCE_NICE: i32 = 19;
/// Nice value of threads that split: behind queries, and before inference, since splitting feeds remote models.
pub(crate) const SPLIT_NICE: i32 = 5;

/// Gives the calling thread, and those that it spawns, a low priority, so that it takes only the processor time that
/// queries leave.
#[allow(unsafe_code)]
pub(crate) fn lower_priority(nice: i32) {
    // SAFETY: no pointers; on Linux a thread id names one thread here. A refusal leaves the priority as it was.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, libc::gettid() as libc::id_t, nice);
    }
}

/// Runs `f` on a thread of its own with every signal blocked, and waits for it: for code that may start threads (a model
/// being loaded) in a process whose signals its main thread must handle. `None` when the thread could not be started or
/// panicked.
pub fn run_with_signals_blocked<R: Send>(f: impl FnOnce() -> R + Send) -> Option<R> {
    std::thread::scope(|scope| {
        with_signals_blocked(|| std::thread::Builder::new().spawn_scoped(scope, f))
            .ok()?
            .join()
            .ok()
    })
}
