//! Promise: in whatever order documents are inserted, changed, moved and deleted, and pipelines paused and altered, while
//! transactions fail and processes are killed, in the end every document is embedded as it says or in `ingest.failures`, and
//! the counters are right at every moment.

use std::time::{SystemTime, UNIX_EPOCH};

use harness::torture;

/// Sequences of the quick form; `make torture` does more.
const ROUNDS: usize = 6;

#[test]
fn whatever_is_done_in_whatever_order_the_chunks_follow() {
    let from_clock = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_millis() as u64)
    };
    let given = std::env::var("TORTURE_SEED").ok();
    let seed = given.map_or_else(from_clock, |text| {
        text.parse().expect("TORTURE_SEED is a number")
    });
    println!("TORTURE_SEED={seed}");
    println!("{}", torture::model(seed, ROUNDS));
}
