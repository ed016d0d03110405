//! Roles that are no superusers.

use crate::{Database, ServerError};

/// A role that can use the extension and owns the schema `app`, with a connection as it.
pub fn role(db: &Database) -> (String, postgres::Client) {
    let name = format!("owner_{}", db.name());
    db.run(&format!(
        "CREATE ROLE {name} LOGIN; CREATE SCHEMA app AUTHORIZATION {name}; GRANT USAGE ON SCHEMA ingest TO {name}"
    ));
    let client = db.connect_as(&name);
    (name, client)
}

/// Another role that may use the extension, with a connection as it. `word` tells it from others of this database.
pub fn another(db: &Database, word: &str) -> (String, postgres::Client) {
    let name = format!("{word}_{}", db.name());
    db.run(&format!(
        "CREATE ROLE {name} LOGIN; GRANT USAGE ON SCHEMA ingest TO {name}"
    ));
    let client = db.connect_as(&name);
    (name, client)
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

/// Drops what a role owns in this database.
pub fn gone(db: &Database, role: &str) {
    db.run(&format!("DROP OWNED BY {role} CASCADE"));
}
