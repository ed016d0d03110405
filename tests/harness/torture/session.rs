//! Doing operations, on the server and on the model.

use std::collections::BTreeSet;
use std::time::Duration;

use fake_api::FakeApi;
use postgres::Client;

use super::check;
use super::operations::{Admin, End, Operation, Step, Transaction};
use super::state::State;
use super::statements::{ARCHIVE, PIPELINES, Statement};
use crate::{Database, SOON, ServerError, SqlResult, try_signal, wait_until};

const UNIQUE_VIOLATION: &str = "23505";
const SERIALIZATION_FAILURE: &str = "40001";
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// What a sequence counted.
#[derive(Debug, Default, Clone, Copy)]
pub struct Figures {
    /// Operations done.
    pub operations: usize,
    /// Times that the server crashed or was stopped.
    pub restarts: usize,
    /// Transactions that the server gave up because of others.
    pub serialization_failures: usize,
    /// Documents compared at the end.
    pub documents: usize,
    /// Chunks compared at the end.
    pub chunks: usize,
}

/// A database and the model of it.
pub struct Session<'a> {
    db: &'a Database<'a>,
    api: &'a FakeApi,
    /// Looks, and does what somebody else does meanwhile.
    other: Option<Client>,
    state: State,
    held: bool,
    paused: BTreeSet<&'static str>,
    /// What it counted.
    pub figures: Figures,
}

/// What became of a statement.
enum Done {
    Well,
    /// It failed as the model said.
    KeyTaken,
    /// The transaction was given up for somebody else's.
    GivenUp,
}

impl<'a> Session<'a> {
    /// A database with the pipelines, and a model without documents.
    pub fn new(db: &'a Database<'a>, api: &'a FakeApi) -> Self {
        for name in PIPELINES {
            db.create_remote_pipeline(
                name,
                api,
                "dimensions => 32, batch_size => 3, chunk_tokens => 40, index => 'none'",
            );
        }
        db.create_remote_pipeline(
            ARCHIVE,
            api,
            "dimensions => 32, on_success => 'delete', index => 'none'",
        );
        let mut session = Self {
            db,
            api,
            other: None,
            state: State::default(),
            held: false,
            paused: BTreeSet::new(),
            figures: Figures::default(),
        };
        session.connect();
        session
    }

    fn connect(&mut self) {
        let mut other = self.db.connect();
        other
            .batch_execute(
                "SET lock_timeout = '30s'; SET jit = off; SET client_min_messages = error",
            )
            .expect("a session that does not wait");
        self.other = Some(other);
        self.db.run("SET client_min_messages = error");
    }

    fn other(&mut self) -> &mut Client {
        self.other.as_mut().expect("connected")
    }

    /// Does one operation and looks whether everything fits together.
    pub fn perform(&mut self, operation: &Operation) -> Result<(), String> {
        self.figures.operations += 1;
        match operation {
            Operation::Say(statement) => {
                // A single statement of READ COMMITTED is never given up.
                self.say(statement, false)?;
            }
            Operation::Transaction(transaction) => self.transact(transaction)?,
            Operation::Crowd(sessions) => self.crowd(sessions)?,
            Operation::Admin(admin) => {
                let done = self.db.try_run(&admin.to_string());
                done.map_err(|error| format!("{admin}: {}", error.text()))?;
                self.note(admin);
            }
            Operation::Hold => {
                self.api.hold_answers();
                self.held = true;
            }
            Operation::Release => self.release(),
            Operation::Nap(milliseconds) => nap(*milliseconds),
            Operation::Settle => {
                if !self.held && self.paused.is_empty() {
                    self.settle()?;
                }
            }
            Operation::Terminate => self.have_workers("pg_terminate_backend")?,
            Operation::Cancel => self.have_workers("pg_cancel_backend")?,
            Operation::Kill => self.kill(),
            Operation::Restart(mode) => self.restart(mode),
        }
        check::all_fits(self.other())
    }

    /// Lets everything come to its end and compares it with the model.
    pub fn finish(&mut self) -> Result<(), String> {
        self.release();
        for name in PIPELINES.iter().chain(&[ARCHIVE]) {
            let resumed = self.db.try_run(&format!("SELECT ingest.resume('{name}')"));
            resumed.map_err(|error| error.text())?;
        }
        self.settle()?;
        check::all_fits(self.other())?;
        let Self {
            other,
            state,
            figures,
            ..
        } = self;
        let other = other.as_mut().expect("connected");
        (figures.documents, figures.chunks) = check::is_as_the_model_says(other, state)?;
        Ok(())
    }

    fn release(&mut self) {
        self.api.release_answers();
        self.held = false;
    }

    fn settle(&mut self) -> Result<(), String> {
        // A rebuild with failures waits for a person, who says this.
        self.db
            .run("SELECT ingest.finish_rebuild(pipeline) FROM ingest.rebuilds");
        let settled: bool = self.db.one("SELECT ingest.wait(timeout => '60 s')");
        if settled {
            return Ok(());
        }
        let told = |sql| self.db.rows_as_text(sql).join("\n");
        Err(format!(
            "documents are still pending\n{}\n{}\n{}",
            told("SELECT * FROM ingest.progress"),
            told("SELECT * FROM ingest.queue ORDER BY document_id LIMIT 10"),
            told("SELECT * FROM ingest.workers WHERE database = current_database()"),
        ))
    }

    fn note(&mut self, admin: &Admin) {
        match admin {
            Admin::Pause(name) => _ = self.paused.insert(name),
            Admin::Resume(name) => _ = self.paused.remove(name),
            Admin::Retry | Admin::Alter(..) => {}
        }
    }

    fn have_workers(&mut self, function: &str) -> Result<(), String> {
        let sql = format!(
            "SELECT {function}(pid) FROM ingest.workers WHERE database = current_database()"
        );
        self.db.try_run(&sql).map_err(|error| error.text())
    }

    fn kill(&mut self) {
        self.figures.restarts += 1;
        let mut killed = None;
        wait_until("the server has noticed", SOON, || {
            let worker = "SELECT min(pid) FROM ingest.workers WHERE database = current_database()";
            let Ok(pid) = self.db.try_one::<Option<i32>>(worker) else {
                return killed.is_some();
            };
            // One that was ending anyway takes nobody along; the next one does.
            if let Some(pid) = pid
                && killed != Some(pid)
            {
                try_signal(pid, "KILL");
                killed = Some(pid);
            }
            false
        });
        self.db.reconnect();
        self.connect();
    }

    fn restart(&mut self, mode: &str) {
        self.figures.restarts += 1;
        self.db.disconnect();
        self.other = None;
        let cluster = self.db.cluster();
        cluster.stop_server(mode);
        cluster.start_server();
        self.db.reconnect();
        self.connect();
    }

    fn say(&mut self, statement: &Statement, may_be_given_up: bool) -> Result<Done, String> {
        let refused = self.state.refuses(statement);
        match (query(self.db, &statement.to_string()), refused) {
            (Ok(returned), false) => {
                let applied = self.state.apply(statement, &returned);
                applied.map_err(|_| format!("{statement}: the key is not new"))?;
                Ok(Done::Well)
            }
            (Ok(_), true) => Err(format!("{statement}: a key is taken, and it succeeds")),
            (Err(error), _) if may_be_given_up && error.code == SERIALIZATION_FAILURE => {
                Ok(Done::GivenUp)
            }
            (Err(error), true) if error.code == UNIQUE_VIOLATION => Ok(Done::KeyTaken),
            (Err(error), _) => Err(format!("{statement}: {} {}", error.code, error.text())),
        }
    }

    /// Several sessions at once. Since each has documents of its own, none has to wait for another for long, or to give up.
    fn crowd(&mut self, sessions: &[Vec<Statement>]) -> Result<(), String> {
        let clients: Vec<Client> = sessions.iter().map(|_| self.db.connect()).collect();
        std::thread::scope(|scope| {
            let running: Vec<_> = clients
                .into_iter()
                .zip(sessions)
                .map(|(mut client, statements)| {
                    scope.spawn(move || {
                        statements.iter().try_for_each(|statement| {
                            let done = client.batch_execute(&statement.to_string());
                            done.map_err(|error| {
                                let error = ServerError::from(error);
                                format!("{statement}: {} {}", error.code, error.text())
                            })
                        })
                    })
                })
                .collect();
            let mut ended = running.into_iter().map(|thread| thread.join());
            ended.try_for_each(|done| done.unwrap_or_else(|_| Err("a session panicked".into())))
        })?;
        for statement in sessions.iter().flatten() {
            let applied = self.state.apply(statement, &[]);
            applied.map_err(|_| format!("{statement}: a key is taken"))?;
        }
        Ok(())
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<(), String> {
        // What there was at the beginning, and at the savepoint.
        let mut before = vec![self.state.clone()];
        let old_snapshot = transaction.level != "READ COMMITTED";
        self.run(&format!("BEGIN ISOLATION LEVEL {}", transaction.level))?;
        if old_snapshot {
            self.run("SELECT")?;
        }
        for step in &transaction.steps {
            match step {
                Step::Say(statement) => match self.say(statement, old_snapshot)? {
                    Done::Well => {}
                    Done::KeyTaken if before.len() > 1 => self.back_to_savepoint(&before)?,
                    Done::KeyTaken => return self.undo(before, "ROLLBACK"),
                    Done::GivenUp => return self.give_up(before),
                },
                Step::Savepoint => {
                    self.run("SAVEPOINT s")?;
                    before.truncate(1);
                    before.push(self.state.clone());
                }
                Step::RollBackTo if before.len() > 1 => self.back_to_savepoint(&before)?,
                Step::RollBackTo => {}
                Step::Nap(milliseconds) => nap(*milliseconds),
                Step::Meanwhile(operation) => self.meanwhile(operation, &mut before)?,
            }
        }
        match transaction.end {
            End::Commit => match self.db.try_run("COMMIT") {
                Ok(()) => Ok(()),
                Err(error) if old_snapshot && error.code == SERIALIZATION_FAILURE => {
                    self.give_up(before)
                }
                Err(error) => Err(format!("COMMIT: {} {}", error.code, error.text())),
            },
            End::RollBack => self.undo(before, "ROLLBACK"),
            End::CommitPrepared(mode) => {
                if !self.prepare(old_snapshot, mode)? {
                    return self.give_up(before);
                }
                self.run("COMMIT PREPARED 't'")
            }
            End::RollBackPrepared(mode) => {
                if !self.prepare(old_snapshot, mode)? {
                    return self.give_up(before);
                }
                self.undo(before, "ROLLBACK PREPARED 't'")
            }
            End::Disconnect => {
                self.db.reconnect();
                self.db.run("SET client_min_messages = error");
                self.state = before.swap_remove(0);
                Ok(())
            }
            End::Kill => {
                self.kill();
                self.state = before.swap_remove(0);
                Ok(())
            }
        }
    }

    fn run(&mut self, sql: &str) -> Result<(), String> {
        let done = self.db.try_run(sql);
        done.map_err(|error| format!("{sql}: {} {}", error.code, error.text()))
    }

    fn back_to_savepoint(&mut self, before: &[State]) -> Result<(), String> {
        self.state = before[1].clone();
        self.run("ROLLBACK TO s")
    }

    fn undo(&mut self, mut before: Vec<State>, statement: &str) -> Result<(), String> {
        self.state = before.swap_remove(0);
        self.run(statement)
    }

    fn give_up(&mut self, before: Vec<State>) -> Result<(), String> {
        self.figures.serialization_failures += 1;
        self.undo(before, "ROLLBACK")
    }

    /// Whether the transaction could be prepared.
    fn prepare(&mut self, may_be_given_up: bool, mode: Option<&str>) -> Result<bool, String> {
        match self.db.try_run("PREPARE TRANSACTION 't'") {
            Ok(()) => {}
            Err(error) if may_be_given_up && error.code == SERIALIZATION_FAILURE => {
                return Ok(false);
            }
            Err(error) => return Err(format!("PREPARE TRANSACTION: {}", error.text())),
        }
        if let Some(mode) = mode {
            self.restart(mode);
        }
        Ok(true)
    }

    /// What another session does, if it need not wait for this one's transaction.
    fn meanwhile(&mut self, operation: &Operation, before: &mut [State]) -> Result<(), String> {
        // Where it only looks, it may wait: for a table that takes another's place.
        let other = self.other();
        let done = other
            .batch_execute("SET lock_timeout = '200ms'")
            .and_then(|()| other.batch_execute(&operation.to_string()));
        other
            .batch_execute("SET lock_timeout = '30s'")
            .map_err(|error| ServerError::from(error).text())?;
        match done.map_err(ServerError::from) {
            Ok(()) => {}
            Err(error) if error.code == LOCK_NOT_AVAILABLE => return Ok(()),
            Err(error) => return Err(format!("{operation}: {} {}", error.code, error.text())),
        }
        match operation {
            Operation::Say(statement) if before[0].has(statement) => {
                for state in before.iter_mut().chain([&mut self.state]) {
                    let applied = state.apply(statement, &[]);
                    applied.map_err(|_| format!("{statement}: a key is taken"))?;
                }
            }
            Operation::Admin(admin) => self.note(admin),
            _ => {}
        }
        Ok(())
    }
}

fn nap(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Runs a statement; returns the texts that it returned.
fn query(db: &Database, sql: &str) -> SqlResult<Vec<String>> {
    let rows = db.with_client(|client| client.query(sql, &[]))?;
    Ok(rows
        .iter()
        .filter(|row| !row.is_empty())
        .map(|row| row.get(0))
        .collect())
}
