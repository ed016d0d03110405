//! A fresh database, and short ways to ask it.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::types::{FromSqlOwned, ToSql};
use postgres::{Client, Config, NoTls, Row};

use crate::cluster::{Cluster, shared_cluster};
use crate::waiting::{SOON, wait_until};

/// The database that every cluster has, and from which others are made and dropped.
const MAINTENANCE: &str = "postgres";

/// A database of a cluster, dropped with its content at the end of the test.
pub struct Database<'c> {
    cluster: &'c Cluster,
    name: String,
    client: RefCell<Option<Client>>,
}

/// One row of `ingest.progress`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Progress {
    pub state: String,
    pub documents: i64,
    pub embedded: i64,
    pub pending: i64,
    pub in_flight: i64,
    pub failed: i64,
    pub percent: f64,
    pub bar: String,
    pub chunks: i64,
    pub tokens: i64,
    pub last_error: Option<String>,
}

/// What the server answered instead of a result.
#[derive(Debug, Clone)]
pub struct ServerError {
    /// The SQLSTATE.
    pub code: String,
    /// What happened.
    pub message: String,
    /// The particulars.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// A result, or the server's error.
pub type SqlResult<T> = Result<T, ServerError>;

impl From<postgres::Error> for ServerError {
    fn from(error: postgres::Error) -> Self {
        match error.as_db_error() {
            Some(error) => Self::of(error),
            // The connection was lost, or this client is at fault.
            None => Self {
                code: String::new(),
                message: error.to_string(),
                detail: None,
                hint: None,
            },
        }
    }
}

impl ServerError {
    fn of(error: &postgres::error::DbError) -> Self {
        Self {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }

    /// Everything that the user reads, in one string.
    pub fn text(&self) -> String {
        let parts = [
            Some(&self.message),
            self.detail.as_ref(),
            self.hint.as_ref(),
        ];
        parts
            .into_iter()
            .flatten()
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// A connection's options, with a list that gathers the server's notices and warnings.
fn connect_options(cluster: &Cluster, database: &str) -> (Config, Arc<Mutex<Vec<String>>>) {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let gathered = Arc::clone(&notices);
    let mut config = cluster.config(database);
    config.notice_callback(move |notice| {
        let severity = notice.severity().to_owned();
        let text = ServerError::of(&notice).text();
        gathered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(format!("{severity}: {text}"));
    });
    (config, notices)
}

/// A name or text as an SQL literal.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Database<'static> {
    /// A new database of the file's shared cluster, with the extension.
    pub fn new() -> Self {
        Self::new_in(shared_cluster(&[]))
    }

    /// As [`new`](Self::new), with the pipeline `default`.
    pub fn with_pipeline() -> Self {
        let database = Self::new();
        database.run("SELECT ingest.create_pipeline()");
        database
    }

    /// A new database of the file's shared cluster, with the SQL of an earlier release.
    pub fn of_release(release: &str) -> Self {
        let database = Self::empty_in(shared_cluster(&[]));
        database.run(&format!(
            "CREATE EXTENSION pg_ingest VERSION '{release}' CASCADE"
        ));
        database
    }
}

impl Default for Database<'static> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'c> Database<'c> {
    /// A new database of this cluster, with the extension.
    pub fn new_in(cluster: &'c Cluster) -> Self {
        let database = Self::empty_in(cluster);
        database.run(&cluster.create_extension());
        database
    }

    /// A new database of this cluster, with nothing in it.
    pub fn empty_in(cluster: &'c Cluster) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{number}");
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let mut maintenance = cluster.client(MAINTENANCE);
        for sql in [
            format!("CREATE DATABASE {name}"),
            format!("COMMENT ON DATABASE {name} IS {}", quoted(&test)),
        ] {
            maintenance
                .batch_execute(&sql)
                .unwrap_or_else(|error| panic!("{sql}: {}", ServerError::from(error).text()));
        }
        Self {
            cluster,
            client: RefCell::new(Some(cluster.client(&name))),
            name,
        }
    }

    /// One that is there already, such as another one's copy on a standby.
    pub fn present_in(cluster: &'c Cluster, name: &str) -> Self {
        Self {
            cluster,
            client: RefCell::new(Some(cluster.client(name))),
            name: name.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cluster.
    pub fn cluster(&self) -> &'c Cluster {
        self.cluster
    }

    /// Another connection.
    pub fn connect(&self) -> Client {
        self.cluster.client(&self.name)
    }

    /// Another connection, as this role.
    pub fn connect_as(&self, role: &str) -> Client {
        let mut config = self.cluster.config(&self.name);
        config
            .user(role)
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("no connection as {role}: {error}"))
    }

    /// Replaces this test's own connection, after a crash or a restart.
    pub fn reconnect(&self) {
        self.client.replace(None);
        wait_until("the server takes connections", SOON, || {
            let client = self.cluster.config(&self.name).connect(NoTls).ok();
            let connected = client.is_some();
            self.client.replace(client);
            connected
        });
    }

    /// Closes this test's own connection; the next statement needs [`reconnect`](Self::reconnect).
    pub fn disconnect(&self) {
        self.client.replace(None);
    }

    /// For statements on this database's own name, after a RENAME.
    pub fn rename(&mut self, name: &str) {
        self.name = name.to_owned();
        self.reconnect();
    }

    /// Does something with this test's own connection.
    pub fn with_client<T>(&self, work: impl FnOnce(&mut Client) -> T) -> T {
        let mut client = self.client.borrow_mut();
        work(client.as_mut().expect("connected"))
    }

    /// Runs statements, parted by semicolons.
    #[track_caller]
    pub fn run(&self, sql: &str) {
        if let Err(error) = self.try_run(sql) {
            panic!("{}: {}", shortened(sql), error.text());
        }
    }

    /// The only value of a query's first row in a session of its own that has run `before`, and the notices and warnings that came
    /// with it.
    #[track_caller]
    pub fn one_with_notices<T: FromSqlOwned>(&self, before: &str, query: &str) -> (T, Vec<String>) {
        let (config, notices) = connect_options(self.cluster, &self.name);
        let mut client = config.connect(NoTls).expect("a connection");
        client.batch_execute(before).expect(before);
        let row = match client.query_one(query, &[]) {
            Ok(row) => row,
            Err(error) => panic!("{query}: {}", ServerError::from(error).text()),
        };
        let notices = notices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        (row.get(0), notices)
    }

    /// Runs statements that may fail.
    pub fn try_run(&self, sql: &str) -> SqlResult<()> {
        Ok(self.with_client(|client| client.batch_execute(sql))?)
    }

    /// Runs a statement with parameters; returns how many rows it touched.
    #[track_caller]
    pub fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> u64 {
        self.with_client(|client| client.execute(sql, parameters))
            .unwrap_or_else(|error| {
                panic!("{}: {}", shortened(sql), ServerError::from(error).text())
            })
    }

    /// The rows of a query.
    #[track_caller]
    pub fn rows(&self, sql: &str) -> Vec<Row> {
        self.with_client(|client| client.query(sql, &[]))
            .unwrap_or_else(|error| {
                panic!("{}: {}", shortened(sql), ServerError::from(error).text())
            })
    }

    /// The first column of every row.
    #[track_caller]
    pub fn all<T: FromSqlOwned>(&self, sql: &str) -> Vec<T> {
        self.rows(sql).iter().map(|row| row.get(0)).collect()
    }

    /// The first column of the only row.
    #[track_caller]
    pub fn one<T: FromSqlOwned>(&self, sql: &str) -> T {
        let rows = self.rows(sql);
        assert_eq!(rows.len(), 1, "rows of {}", shortened(sql));
        rows[0].get(0)
    }

    /// The first column of the only row of a query that may fail.
    pub fn try_one<T: FromSqlOwned>(&self, sql: &str) -> SqlResult<T> {
        Ok(self
            .with_client(|client| client.query_one(sql, &[]))?
            .get(0))
    }

    /// What EXPLAIN prints for a query.
    #[track_caller]
    pub fn explain(&self, query: &str) -> String {
        self.all::<String>(&format!("EXPLAIN {query}")).join("\n")
    }

    /// The error that statements end with.
    ///
    /// # Panics
    /// When they succeed.
    #[track_caller]
    pub fn expect_error(&self, sql: &str) -> ServerError {
        match self.try_run(sql) {
            Ok(()) => panic!("{} succeeds", shortened(sql)),
            Err(error) => error,
        }
    }

    /// The row of a pipeline in `ingest.progress`.
    #[track_caller]
    pub fn progress_of(&self, pipeline: &str) -> Progress {
        self.with_client(|client| Progress::read(client, pipeline))
    }

    /// The row of the pipeline `default` in `ingest.progress`.
    #[track_caller]
    pub fn progress(&self) -> Progress {
        self.progress_of("default")
    }

    /// Waits until nothing is pending.
    #[track_caller]
    pub fn settle(&self) {
        let settled: bool = self.one("SELECT ingest.wait(timeout => '90 s')");
        assert!(
            settled,
            "documents are still pending: {:?}",
            self.rows_as_text("SELECT * FROM ingest.progress")
        );
    }

    /// Waits until a pipeline is blocked; returns its row then.
    #[track_caller]
    pub fn until_blocked(&self, pipeline: &str) -> Progress {
        wait_until(&format!("pipeline {pipeline} is blocked"), SOON, || {
            self.progress_of(pipeline).state == "blocked"
        });
        self.progress_of(pipeline)
    }

    /// Waits until this database's worker waits for a lock.
    #[track_caller]
    pub fn until_worker_waits(&self) {
        wait_until("the worker waits for a lock", SOON, || {
            self.one::<bool>(
                "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted
                    AND a.datname = current_database() AND a.backend_type LIKE 'pg_ingest%')",
            )
        });
    }

    /// The rows of a query as JSON, for messages.
    #[track_caller]
    pub fn rows_as_text(&self, sql: &str) -> Vec<String> {
        self.all(&format!("SELECT to_jsonb(r)::text FROM ({sql}) AS r"))
    }

    /// The process ids of this database's workers, oldest first.
    pub fn worker_pids(&self) -> Vec<i32> {
        self.all(
            "SELECT pid FROM ingest.workers WHERE database = current_database() AND state <> 'starting' ORDER BY started_at",
        )
    }

    /// The process id of this database's worker, when it is there and ready.
    pub fn worker(&self) -> i32 {
        let mut seen = None;
        wait_until("the worker runs", SOON, || {
            seen = self.worker_pids().first().copied();
            seen.is_some()
        });
        seen.expect("a worker")
    }

    /// Waits until the worker is idle and has folded the counters: nothing is left for it to do.
    pub fn quiesce(&self) {
        self.settle();
        let folded = || self.one::<bool>("SELECT NOT EXISTS (SELECT FROM ingest.counter_delta)");
        wait_until("the worker has folded the counters", SOON, folded);
        wait_until("the worker is idle", SOON, || {
            self.one::<Option<bool>>("SELECT bool_and(state = 'idle') FROM ingest.workers WHERE database = current_database()")
                == Some(true)
        });
    }
}

impl Progress {
    /// Reads it.
    #[track_caller]
    pub fn read(client: &mut Client, pipeline: &str) -> Self {
        let row = client
            .query_one(
                "SELECT state, documents, embedded, pending, in_flight, failed, percent::float8, bar, chunks, tokens, last_error
                 FROM ingest.progress WHERE pipeline = $1",
                &[&pipeline],
            )
            .unwrap_or_else(|error| panic!("progress of {pipeline}: {}", ServerError::from(error).text()));
        Self {
            state: row.get(0),
            documents: row.get(1),
            embedded: row.get(2),
            pending: row.get(3),
            in_flight: row.get(4),
            failed: row.get(5),
            percent: row.get(6),
            bar: row.get(7),
            chunks: row.get(8),
            tokens: row.get(9),
            last_error: row.get(10),
        }
    }

    /// Whether all documents have been tried: none is pending, or the pipeline is blocked.
    pub fn tried(&self) -> bool {
        self.pending + self.in_flight == 0 || self.state == "blocked"
    }

    /// `(documents, embedded, pending + in_flight, failed)`.
    pub fn counts(&self) -> (i64, i64, i64, i64) {
        (
            self.documents,
            self.embedded,
            self.pending + self.in_flight,
            self.failed,
        )
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        self.disconnect();
        if std::thread::panicking() {
            eprintln!("{}", self.cluster.log_tail(&format!(" {}: ", self.name)));
        }
        if self.name == MAINTENANCE {
            return;
        }
        let Ok(mut maintenance) = self
            .cluster
            .config(MAINTENANCE)
            .connect_timeout(Duration::from_secs(5))
            .connect(NoTls)
        else {
            return;
        };
        let _ = maintenance.batch_execute(&format!(
            "DROP DATABASE IF EXISTS {} WITH (FORCE)",
            self.name
        ));
    }
}

fn shortened(sql: &str) -> String {
    let mut short: String = sql.chars().take(300).collect();
    if short.len() < sql.len() {
        short.push('…');
    }
    short
}
