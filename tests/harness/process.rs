//! The server's processes, from outside.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Sends a signal (`KILL`, `STOP`, `CONT`, `TERM`) to one process.
///
/// # Panics
/// When there is no such process.
#[track_caller]
pub fn signal(pid: i32, name: &str) {
    assert!(try_signal(pid, name), "kill -s {name} {pid}");
}

/// The same to a process that may be gone; whether it was there.
pub fn try_signal(pid: i32, name: &str) -> bool {
    Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .expect("kill runs")
        .success()
}

/// Processor time that all threads of a process have used, in clock ticks (hundredths of a second).
///
/// # Panics
/// When the process has ended.
#[track_caller]
pub fn cpu_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name, in brackets, may hold blanks; after it, utime and stime are fields 14 and 15 of proc(5).
    let (_, rest) = stat.rsplit_once(") ").expect("a process has a name");
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = |field: usize| -> u64 { fields[field - 3].parse().expect("ticks are a number") };
    ticks(14) + ticks(15)
}

/// The processes that work in this directory.
pub(crate) fn processes_in(directory: &Path) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == directory)
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

/// Memory of a process that is its own, without what it shares with others, in kB.
///
/// # Panics
/// When the process has ended.
#[track_caller]
pub fn anonymous_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("proc(5) tells RssAnon")
}

/// How many file descriptors a process has open, leaving out Postgres's own files, of which it keeps up to
/// `max_files_per_process` open.
///
/// # Panics
/// When the process has ended.
#[track_caller]
pub fn open_descriptors(pid: i32) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| !target.components().any(|part| part.as_os_str() == "data"))
        .count()
}

/// The ids of a process's threads; the main thread's is the process's own.
///
/// # Panics
/// When the process has ended.
#[track_caller]
pub fn threads_of(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let id = |name: std::ffi::OsString| name.to_str()?.parse().ok();
    tasks
        .flatten()
        .filter_map(|task| id(task.file_name()))
        .collect()
}
