//! The server's processes, from outside.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Sends a signal (`KILL`, `STOP`, `CONT`, `TERM`) to one process.
///
/// # Panics
/// When there is no such process.
#[track_caller]
pub fn signal(pid: i32, name: &str) {
    let done = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status()
        .expect("kill runs");
    assert!(done.success(), "kill -s {name} {pid}");
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
