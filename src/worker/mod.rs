//! The processes: one launcher for the server ([`launcher`]), workers for each database that has the extension.
//!
//! A worker's main thread ([`main_loop`]) is the only one that calls Postgres. It knows the definitions ([`pipelines`]),
//! takes documents ([`claim`], [`queue`], [`heads`], [`former`]), hands them to the engine, settles what comes back ([`settle`], [`write`]), does the
//! [`housekeeping`], ends rebuilds ([`switch`]), looks after watched tables ([`backfill`]), and sleeps in one wait on its latch and an eventfd that the engine's threads ring ([`process`]).
//! [`query_server`] answers `embed()`, and [`recovery`] takes up what a process that died has left. [`transaction`] is how it runs SQL.

mod backfill;
mod claim;
mod former;
mod heads;
mod housekeeping;
mod launcher;
mod main_loop;
mod pipelines;
mod process;
pub mod query_server;
mod queue;
mod recovery;
mod settle;
mod switch;
mod transaction;
mod unreadable;
mod write;

pub use launcher::register_launcher;
