//! How figures are printed, and how times are taken.

use std::time::{Duration, Instant};

pub fn line(what: &str, value: impl std::fmt::Display) {
    println!("  {what:<66} {value:>12}");
}

pub fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

pub fn ratio(a: Duration, b: Duration) -> String {
    format!("{:.2} ×", a.as_secs_f64() / b.as_secs_f64())
}

pub fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// The value below which `share` of the times lie.
pub fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * share).round() as usize]
}

pub fn median(times: &mut [Duration]) -> Duration {
    quantile(times, 0.5)
}
