//! Budgets of an embedding API: requests and tokens, a minute and a day, held by all processes that share the memory.
//! Nothing but atomics and arrays of them, no pointers and no locks; all-zero bytes are a limit without budgets. The
//! clock is handed in.
//!
//! The way through: [`Limit::admit`] (`limit`) asks the day's totals (`count`), the cool-down (`cool_down`), the two
//! minute budgets (`rate`) and whose turn it is (`shares`), and takes from all of them or from none. What a limit is
//! set to is a [`Budget`], what it holds after that a [`Targets`] (`budget`). [`InFlight`] (`in_flight`) stands beside
//! it: requests that one pipeline has open.
//!
//! # What a minute budget promises
//! A request of any size is admitted when the debt of those before it is paid, and then owes its own size. A target is
//! spread over a little more than a minute: [`LATENESS`], by which a caller may wake too late without a loss to the
//! budget, the unevenness of the way to the server, and for tokens the size of a packed request ([`request_tokens`]). So
//! requests that are packed by it stay within the target in every 60 s, at the server too, and 99.5 % of it can be used.
//! A larger request (one chunk that is larger than a packed request should be) may exceed it by its size. Nothing is
//! saved up: after idleness or a crash the first request goes at once and the next at the budget's pace.
//!
//! Corrections ([`Limit::settle`]) come after the fact: a window may hold, beyond that, what the requests in flight at
//! its start were over-estimated by.

mod budget;
mod clock;
mod cool_down;
mod count;
mod in_flight;
mod limit;
mod rate;
mod shares;
mod tally;

pub use budget::{Budget, Targets, request_tokens};
pub use clock::{Now, wait_until_midnight};
pub use cool_down::{LEAST_COOL_DOWN, MOST_COOL_DOWN, MOST_RETRY_AFTER};
pub use in_flight::{InFlight, MAX_WORKERS};
pub use limit::{Claimant, Limit, Snapshot, Wait};
pub use rate::LATENESS;
pub use shares::{GRACE, LONGEST_WAIT, MAX_CLAIMANTS};
pub use tally::{Tallied, Tally};

use std::sync::atomic::Ordering;

/// Each atomic stands for itself; none publishes other memory, so no order among them is needed.
const ORDER: Ordering = Ordering::Relaxed;
