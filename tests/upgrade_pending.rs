//! Promise: between the new library and `ALTER EXTENSION pg_ingest UPDATE`, roles without a superuser's rights work on as before.

use harness::roles::{another, column, run};
use harness::*;

const DATA_0_1_0: &str = include_str!("upgrade/data-0.1.0.sql");

/// A database of 0.1.0 in use, and a role that may use all of it, as it was said then.
fn in_use() -> Database<'static> {
    let db = Database::of_release("0.1.0");
    db.run(DATA_0_1_0);
    db
}

fn give_everything(db: &Database, role: &str) {
    db.run(&format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ingest.documents TO {role};
         GRANT SELECT ON ingest.progress, ingest.failures, ingest.pipelines, ingest.limits, ingest.workers TO {role}"
    ));
}

#[test]
fn documents_are_changed_and_removed_with_their_chunks() {
    let db = in_use();
    let (app, mut client) = another(&db, "app");
    give_everything(&db, &app);
    run(
        &mut client,
        r#"UPDATE ingest.documents SET metadata = '{"lang": "de"}' WHERE key = 'done'"#,
    );
    let chunks =
        "SELECT metadata ->> 'lang' FROM ingest.default_chunks WHERE document_key = 'done'";
    assert_eq!(db.all::<String>(chunks), ["de"]);
    run(
        &mut client,
        "DELETE FROM ingest.documents WHERE key IN ('done', 'waits')",
    );
    assert_eq!(db.all::<String>(chunks), Vec::<String>::new());
    assert_eq!(db.progress().counts(), (3, 0, 2, 1));
    db.run("TRUNCATE ingest.documents");
    assert_eq!(db.progress().documents, 0);
}

#[test]
fn progress_doctor_and_retry_answer() {
    let db = in_use();
    let (app, mut client) = another(&db, "app");
    give_everything(&db, &app);
    db.run(&format!("UPDATE ingest.pipeline SET owner = '{app}'"));
    wait_until("the worker says what it waits for", SOON, || {
        Progress::read(&mut client, "default").state == "blocked"
    });
    let said = column::<String>(
        &mut client,
        "SELECT detail FROM ingest.doctor() WHERE NOT ok",
    );
    assert!(
        said.iter()
            .any(|detail| detail.contains("ALTER EXTENSION pg_ingest UPDATE")),
        "{said:?}"
    );
    // One failed; the other one that did is queued already.
    assert_eq!(column::<i64>(&mut client, "SELECT ingest.retry()"), [1]);
    let (other, mut stranger) = another(&db, "other");
    give_everything(&db, &other);
    assert_eq!(column::<i64>(&mut stranger, "SELECT ingest.retry()"), [0]);
    assert_eq!(db.one::<i64>("SELECT ingest.retry()"), 0);
    assert_eq!(Progress::read(&mut stranger, "default").documents, 5);
    run(
        &mut stranger,
        "SELECT * FROM ingest.doctor(), ingest.limits",
    );
}
