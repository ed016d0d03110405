//! Promise: whatever signals a worker or a session is sent, nothing crashes and nothing is lost.

use harness::torture::signals;

#[test]
fn storms_of_signals_crash_and_lose_nothing() {
    println!("{}", signals(1, 15));
}
