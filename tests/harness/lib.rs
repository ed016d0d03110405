//! What the tests stand on: private Postgres clusters, fresh databases in them, and ways to wait and to look.
//!
//! The way through: [`Cluster`] starts a server as an unprivileged user and takes it away again (`cluster`);
//! [`Database`] is a new database with the extension (`database`, `dump`); [`wait_until`] waits for a condition, never for a time
//! (`waiting`); `process` looks at and signals the server's processes; [`texts`] holds something to embed, [`remote`] makes pipelines
//! that speak to a fake API, [`rebuild`] gives them another model, [`flight`] keeps their documents in flight, [`repeats`] tells
//! what was paid for texts that come again, [`refused_all`] sees statements fail as they should (`refusals`), [`roles`] holds users
//! that are no superusers, [`supabase`] a cluster as Supabase's images set it up, [`secrecy`] looks for keys where none must be,
//! and [`torture`] holds the long tests.
//!
//! Environment: `PG_CONFIG` names the Postgres to test (else the `pg_config` on the path), with pgvector, pg_ingest and
//! the model installed; `PG_INGEST_TEST_USER` names the user that runs it when the tests run as root.

mod cluster;
mod database;
mod dump;
pub mod flight;
mod process;
pub mod rebuild;
mod refusals;
pub mod remote;
pub mod repeats;
pub mod roles;
pub mod secrecy;
pub mod supabase;
pub mod texts;
pub mod torture;
mod waiting;

pub use cluster::{Cluster, shared_cluster};
pub use database::{Database, Progress, ServerError, SqlResult, quoted};
pub use process::{anonymous_memory, cpu_ticks, open_descriptors, signal, threads_of, try_signal};
pub use refusals::refused_all;
pub use waiting::{SOON, wait_until};
