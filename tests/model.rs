//! Promise: in whatever order documents are inserted, changed, moved and deleted, and pipelines paused and altered, while
//! transactions fail and processes are killed, in the end every document is embedded as it says or in `ingest.failures`, and
//! the counters are right at every moment.

use harness::torture;

/// Sequences of the quick form; `make torture` does more.
const ROUNDS: usize = 6;

#[test]
fn whatever_is_done_in_whatever_order_the_chunks_follow() {
    let seed = torture::seed().unwrap_or(6);
    println!("TORTURE_SEED={seed}");
    println!("{}", torture::model(seed, ROUNDS));
}
