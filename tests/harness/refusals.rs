//! Statements that are refused.

use crate::Database;

/// Checks of each `(statement, SQLSTATE, word)` that it fails so, that its error as a whole holds the word, and that more is told
/// than that it failed.
///
/// # Panics
/// With all that is otherwise.
#[track_caller]
pub fn refused_all(db: &Database, cases: &[(&str, &str, &str)]) {
    let mut wrong = Vec::new();
    for (sql, code, word) in cases {
        match db.try_run(sql) {
            Ok(()) => wrong.push(format!("{sql}: succeeds")),
            Err(error) => {
                if error.code != *code
                    || !error.text().contains(word)
                    || (error.hint.is_none() && error.detail.is_none())
                {
                    wrong.push(format!(
                        "{sql}: expected {code} and {word:?}, got {error:?}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
