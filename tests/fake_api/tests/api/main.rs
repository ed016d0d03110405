//! What a client sees of the API.

mod budgets;
mod client;
mod faults;
mod providers;
mod records;
