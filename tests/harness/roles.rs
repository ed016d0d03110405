//! Roles that are no superusers.

use std::fmt;
use std::ops::Deref;

use crate::{Database, ServerError, quoted};

/// A role, which is its name. What it owns in the database goes when this is dropped, and a test whose role cannot go fails: so it
/// is bound to a name, before the connection that is to close first (and not to `_`, which drops at once).
pub struct Role<'d> {
    db: &'d Database<'d>,
    name: String,
}

impl Deref for Role<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Role<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // The test may have been about a role that is no more.
        let there = format!(
            "SELECT pg_catalog.to_regrole({}) IS NOT NULL",
            quoted(&self.name)
        );
        if self.db.one(&there) {
            self.db.run(&format!("DROP OWNED BY {} CASCADE", self.name));
        }
    }
}

/// A role that can use the extension and owns the schema `app`, with a connection as it.
pub fn role<'d>(db: &'d Database<'d>) -> (Role<'d>, postgres::Client) {
    let (role, client) = another(db, "owner");
    db.run(&format!("CREATE SCHEMA app AUTHORIZATION {role}"));
    (role, client)
}

/// The same, with a pipeline `mine` whose target is `app.docs`; `more` are further arguments, such as `max_attempts => 1`.
pub fn pipeline_owner<'d>(db: &'d Database<'d>, more: &str) -> (Role<'d>, postgres::Client) {
    let (role, mut client) = role(db);
    let comma = if more.is_empty() { "" } else { ", " };
    run(
        &mut client,
        &format!("SELECT ingest.create_pipeline('mine', target => 'app.docs'{comma}{more})"),
    );
    (role, client)
}

/// Another role that may use the extension, with a connection as it. `word` tells it from others of this database.
pub fn another<'d>(db: &'d Database<'d>, word: &str) -> (Role<'d>, postgres::Client) {
    let name = format!("{word}_{}", db.name());
    db.run(&format!(
        "CREATE ROLE {name} LOGIN; GRANT USAGE ON SCHEMA ingest TO {name}"
    ));
    let client = db.connect_as(&name);
    (Role { db, name }, client)
}

/// The first column of every row that a query gives a role.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn column<T: postgres::types::FromSqlOwned>(
    client: &mut postgres::Client,
    sql: &str,
) -> Vec<T> {
    match client.query(sql, &[]) {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{sql}: {}", ServerError::from(error).text()),
    }
}

/// Runs statements.
///
/// # Panics
/// When one fails.
#[track_caller]
pub fn run(client: &mut postgres::Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql) {
        panic!("{sql}: {}", ServerError::from(error).text());
    }
}

/// The error that statements end with.
///
/// # Panics
/// When they succeed.
#[track_caller]
pub fn refused(client: &mut postgres::Client, sql: &str) -> ServerError {
    match client.batch_execute(sql) {
        Ok(()) => panic!("{sql} succeeds"),
        Err(error) => error.into(),
    }
}

/// The error that statements end with for want of a right.
///
/// # Panics
/// When they succeed, or fail otherwise.
#[track_caller]
pub fn forbidden(client: &mut postgres::Client, sql: &str) -> ServerError {
    let error = refused(client, sql);
    assert_eq!(error.code, "42501", "{sql}: {}", error.text());
    error
}
