//! What one can do to the database, and how a random sequence of it comes about.

use std::fmt;

use super::random::Random;
use super::statements::{ARCHIVE, Filter, PIPELINES, Statement};

/// One thing after the other.
#[derive(Debug, Clone)]
pub enum Operation {
    /// A statement in a transaction of its own.
    Say(Statement),
    /// Several in one.
    Transaction(Transaction),
    /// Several sessions at once, each with documents of its own.
    Crowd(Vec<Vec<Statement>>),
    /// What changes no document.
    Admin(Admin),
    /// The provider keeps its answers back.
    Hold,
    /// It gives them.
    Release,
    /// The worker is given so many milliseconds.
    Nap(u64),
    /// Everything that can be embedded now is waited for.
    Settle,
    /// The workers are terminated.
    Terminate,
    /// What the workers do is cancelled.
    Cancel,
    /// A worker is killed, and with it, as Postgres does, every process of the server.
    Kill,
    /// The server is stopped in this way and started.
    Restart(&'static str),
}

/// What changes no document.
#[derive(Debug, Clone)]
pub enum Admin {
    Retry,
    Pause(&'static str),
    Resume(&'static str),
    /// With this argument.
    Alter(&'static str, String),
}

/// A transaction of several statements.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// `READ COMMITTED` and so on.
    pub level: &'static str,
    /// What happens in it.
    pub steps: Vec<Step>,
    /// How it ends.
    pub end: End,
}

/// A step of a transaction.
#[derive(Debug, Clone)]
pub enum Step {
    Say(Statement),
    Savepoint,
    /// Back to the last savepoint, which stays.
    RollBackTo,
    /// The worker is given so many milliseconds.
    Nap(u64),
    /// Another session does this, unless it has to wait for the transaction.
    Meanwhile(Box<Operation>),
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Commit,
    RollBack,
    /// `PREPARE TRANSACTION`, perhaps a restart in this way, `COMMIT PREPARED`.
    CommitPrepared(Option<&'static str>),
    /// The same with `ROLLBACK PREPARED`.
    RollBackPrepared(Option<&'static str>),
    /// The connection is lost.
    Disconnect,
    /// A worker is killed, and every process of the server with it.
    Kill,
}

/// A sequence of so many operations. Operations after which the server has to start again are dear, so there are few.
pub fn sequence(random: &mut Random, length: usize) -> Vec<Operation> {
    let mut operations: Vec<Operation> = (0..length).map(|n| operation(random, n)).collect();
    let mut put = |random: &mut Random, share, operation| {
        if random.percent(share) {
            let at = random.between(length / 4, length);
            operations.insert(at.min(operations.len()), operation);
        }
    };
    put(random, 40, Operation::Kill);
    let mode = random.choose(&["fast", "immediate"]);
    put(random, 30, Operation::Restart(mode));
    operations
}

fn operation(random: &mut Random, number: usize) -> Operation {
    match random.below(100) {
        0..58 => Operation::Say(Statement::random(random, number, true)),
        58..68 => Operation::Transaction(transaction(random, number)),
        68..70 => Operation::Crowd((0..3).map(|n| one_of_a_crowd(random, n)).collect()),
        70..84 => Operation::Admin(admin(random)),
        84..87 => Operation::Hold,
        87..91 => Operation::Release,
        91..95 => Operation::Nap(random.below(30) as u64),
        95..97 => Operation::Settle,
        97..99 => Operation::Terminate,
        _ => Operation::Cancel,
    }
}

fn one_of_a_crowd(random: &mut Random, session: usize) -> Vec<Statement> {
    let count = random.between(3, 8);
    (0..count)
        .map(|_| Statement::random_of(random, session))
        .collect()
}

fn admin(random: &mut Random) -> Admin {
    let every = [PIPELINES[0], PIPELINES[1], ARCHIVE];
    match random.below(10) {
        0..3 => Admin::Retry,
        3 => Admin::Pause(random.choose(&every)),
        4 | 5 => Admin::Resume(random.choose(&every)),
        // Whether an archived document was split in the old way or the new one, nobody knows.
        6 => Admin::Alter(
            ARCHIVE,
            format!("batch_size => {}", random.choose(&[1, 3, 50])),
        ),
        _ => Admin::Alter(
            random.choose(&PIPELINES),
            match random.below(5) {
                0 | 1 => format!("chunk_tokens => {}", random.choose(&[20, 40, 200])),
                2 => format!("batch_size => {}", random.choose(&[1, 3, 50])),
                3 => format!("concurrency => {}", random.choose(&[1, 2, 10])),
                _ => format!(
                    "splitter => '{}'",
                    random.choose(&["text", "markdown", "none"])
                ),
            },
        ),
    }
}

fn transaction(random: &mut Random, number: usize) -> Transaction {
    let level = random.weighted(&[
        (5, "READ COMMITTED"),
        (3, "REPEATABLE READ"),
        (2, "SERIALIZABLE"),
    ]);
    let count = random.between(1, 5);
    let steps = (0..count)
        .map(|step| match random.below(20) {
            0 | 1 => Step::Savepoint,
            2 | 3 => Step::RollBackTo,
            4 | 5 => Step::Nap(random.below(20) as u64),
            6..9 => Step::Meanwhile(Box::new(meanwhile(random))),
            _ => Step::Say(Statement::random(
                random,
                1000 + number * 10 + step,
                level == "READ COMMITTED",
            )),
        })
        .collect();
    let restart = random.weighted(&[(9, None), (1, Some("immediate"))]);
    let end = random.weighted(&[
        (50, End::Commit),
        (25, End::RollBack),
        (10, End::CommitPrepared(restart)),
        (5, End::RollBackPrepared(restart)),
        (8, End::Disconnect),
        (2, End::Kill),
    ]);
    Transaction { level, steps, end }
}

/// What another session may do in the middle of a transaction without a difference who comes first: nothing that a
/// transaction with an older snapshot would see in another way than the model does.
fn meanwhile(random: &mut Random) -> Operation {
    if random.percent(60) {
        return Operation::Admin(admin(random));
    }
    loop {
        let statement = Statement::random(random, 0, false);
        if let Statement::SetContent(Filter::One(..), _)
        | Statement::SetMetadata(Filter::One(..), _)
        | Statement::Delete(Filter::One(..)) = statement
        {
            return Operation::Say(statement);
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Say(statement) => write!(f, "{statement};"),
            Self::Transaction(transaction) => write!(f, "{transaction}"),
            Self::Crowd(sessions) => {
                for (number, statements) in sessions.iter().enumerate() {
                    let gap = if number > 0 { "\n" } else { "" };
                    write!(f, "{gap}-- session {number} of several at once")?;
                    for statement in statements {
                        write!(f, "\n    {statement};")?;
                    }
                }
                Ok(())
            }
            Self::Admin(admin) => write!(f, "{admin};"),
            Self::Hold => write!(f, "-- the provider keeps its answers back"),
            Self::Release => write!(f, "-- the provider answers again"),
            Self::Nap(milliseconds) => write!(f, "SELECT pg_sleep({});", seconds(*milliseconds)),
            Self::Settle => write!(f, "SELECT ingest.wait();"),
            Self::Terminate => write!(f, "SELECT pg_terminate_backend(pid) FROM ingest.workers;"),
            Self::Cancel => write!(f, "SELECT pg_cancel_backend(pid) FROM ingest.workers;"),
            Self::Kill => write!(f, "-- kill -9 of the worker; the server recovers"),
            Self::Restart(mode) => {
                write!(f, "-- pg_ctl stop -m {mode}, pg_ctl start")
            }
        }
    }
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry => write!(f, "SELECT ingest.retry()"),
            Self::Pause(name) => write!(f, "SELECT ingest.pause('{name}')"),
            Self::Resume(name) => write!(f, "SELECT ingest.resume('{name}')"),
            Self::Alter(name, change) => {
                write!(f, "SELECT ingest.alter_pipeline('{name}', {change})")
            }
        }
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BEGIN ISOLATION LEVEL {};", self.level)?;
        if self.level != "READ COMMITTED" {
            write!(f, "\n    SELECT;")?;
        }
        for step in &self.steps {
            match step {
                Step::Say(statement) => write!(f, "\n    {statement};")?,
                Step::Savepoint => write!(f, "\n    SAVEPOINT s;")?,
                Step::RollBackTo => write!(f, "\n    ROLLBACK TO s;")?,
                Step::Nap(milliseconds) => {
                    write!(f, "\n    SELECT pg_sleep({});", seconds(*milliseconds))?
                }
                Step::Meanwhile(operation) => write!(f, "\n    -- another session: {operation}")?,
            }
        }
        let restarted = |mode: &Option<&str>| {
            mode.map_or(String::new(), |mode| {
                format!(" -- pg_ctl stop -m {mode}, pg_ctl start\n")
            })
        };
        match &self.end {
            End::Commit => write!(f, "\nCOMMIT;"),
            End::RollBack => write!(f, "\nROLLBACK;"),
            End::CommitPrepared(mode) => write!(
                f,
                "\nPREPARE TRANSACTION 't';{} COMMIT PREPARED 't';",
                restarted(mode)
            ),
            End::RollBackPrepared(mode) => write!(
                f,
                "\nPREPARE TRANSACTION 't';{} ROLLBACK PREPARED 't';",
                restarted(mode)
            ),
            End::Disconnect => write!(f, "\n-- the connection is lost"),
            End::Kill => write!(f, "\n-- kill -9 of the worker; the server recovers"),
        }
    }
}
