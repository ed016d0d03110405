//! Promise: what `pg_dump` writes, `psql` restores: pipelines, documents, chunks, what waits and what failed; nothing is
//! embedded again, and what was waiting goes on.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use harness::*;

fn dump(db: &Database, options: &[&str]) -> PathBuf {
    let file = db.cluster().home().join(format!("{}.sql", db.name()));
    db.cluster().run(
        db.cluster()
            .program("pg_dump")
            .args(options)
            .arg("--file")
            .arg(&file)
            .arg(db.name()),
    );
    file
}

fn restore(file: &Path, into: &Database) {
    let text = std::fs::File::open(file).expect("the dump");
    let done = into
        .cluster()
        .program("psql")
        .args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-o",
            "/dev/null",
            "-d",
            into.name(),
        ])
        .stdin(Stdio::from(text))
        .output()
        .expect("psql runs");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Everything that must be the same afterwards.
fn content(db: &Database) -> Vec<Vec<String>> {
    [
        "SELECT * FROM ingest.pipeline ORDER BY 1",
        "SELECT * FROM ingest.documents ORDER BY 1",
        "SELECT * FROM ingest.failures ORDER BY 1, 2",
        "SELECT document_id, pipeline_id, bytes, attempts FROM ingest.queue ORDER BY 1",
        "SELECT * FROM ingest.totals ORDER BY 1",
        "SELECT * FROM ingest.limit_definition ORDER BY 1",
        "SELECT * FROM ingest.limit_day ORDER BY 1",
        "SELECT pipeline, state, documents, embedded, pending + in_flight, failed, percent, bar, chunks, tokens, cost_usd FROM ingest.progress",
        "SELECT * FROM ingest.default_chunks ORDER BY 1",
        "SELECT * FROM public.docs ORDER BY 1",
    ]
    .iter()
    .map(|sql| db.rows_as_text(sql))
    .collect()
}

/// Two pipelines: one at rest with a failure, one paused with documents that wait.
fn fill(db: &Database) {
    db.run("SELECT ingest.create_pipeline(); SELECT ingest.create_pipeline('Other \"docs\"', target => 'public.docs', chunk_tokens => 32)");
    db.run(&texts::insert_passages());
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('bad', '')");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('Other \"docs\"', 'x', 'A text.'), ('Other \"docs\"', 'y', 'Another text.')");
    db.run(
        "SELECT ingest.set_limit('budget', rpm => 100, tpd => 5000);
         INSERT INTO ingest.limit_day VALUES ('budget', (now() AT TIME ZONE 'UTC')::date, 12, 345)",
    );
    db.quiesce();
    db.run("SELECT ingest.pause('Other \"docs\"')");
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('Other \"docs\"', 'waits', 'A waiting text.');
         UPDATE ingest.documents SET content = content || ' Changed.' WHERE key = 'x'",
    );
}

#[test]
fn a_restored_database_is_the_same_and_goes_on() {
    let db = Database::new();
    fill(&db);
    let before = content(&db);
    let file = dump(&db, &[]);
    // Another server, where nothing of this one is known.
    let other = Cluster::start(&[]);
    let restored = Database::empty_in(&other);
    restore(&file, &restored);
    restored.worker();
    assert_eq!(content(&restored), before);
    // The sequences go on where they were.
    restored.run("INSERT INTO ingest.documents (key, content) VALUES ('new', 'A new text.')");
    restored.run("SELECT ingest.create_pipeline('third')");
    assert!(restored.one::<bool>("SELECT ingest.wait('default', '60 s')"));
    let ids = restored.all::<i64>("SELECT id FROM ingest.default_chunks ORDER BY id");
    assert_eq!(ids.len(), 9);
    assert_eq!(restored.progress().counts(), (10, 9, 0, 1));
    // And what waited is done when it may.
    restored.run("SELECT ingest.resume('Other \"docs\"')");
    restored.settle();
    assert_eq!(
        restored.progress_of("Other \"docs\"").counts(),
        (3, 3, 0, 0)
    );
    assert_eq!(
        restored.one::<String>("SELECT content FROM public.docs WHERE document_key = 'x'"),
        "A text. Changed."
    );
    assert_eq!(
        restored.one::<String>("SELECT key FROM ingest.search('how do I rotate a key?', 1)"),
        "keys.md"
    );
    assert!(restored.one::<bool>("SELECT bool_and(ok) FROM ingest.doctor()"));
}

#[test]
fn a_backlog_goes_on_after_a_restore_by_itself() {
    let db = Database::with_pipeline();
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, repeat('Sentence number ' || n || ' of a text. ', 20) FROM generate_series(1, 150) n");
    wait_until("some documents are in flight", SOON, || {
        let progress = db.progress();
        progress.in_flight > 0 && progress.embedded > 0
    });
    let file = dump(&db, &[]);
    db.run("SELECT ingest.drop_pipeline('default', true)");
    let restored = Database::empty_in(db.cluster());
    restore(&file, &restored);
    // Nobody commits anything after the restore: the worker has to find out by itself.
    restored.settle();
    assert_eq!(restored.progress().counts(), (150, 150, 0, 0));
    assert_eq!(
        restored.one::<i64>("SELECT count(DISTINCT document_key) FROM ingest.default_chunks"),
        150
    );
}

#[test]
fn schema_and_data_can_be_restored_apart() {
    let db = Database::new();
    fill(&db);
    let before = content(&db);
    let schema = dump(&db, &["--schema-only"]);
    let restored = Database::empty_in(db.cluster());
    restore(&schema, &restored);
    restored.worker();
    restore(&dump(&db, &["--data-only"]), &restored);
    assert_eq!(content(&restored), before);
    restored.run("SELECT ingest.resume('Other \"docs\"')");
    restored.settle();
    assert_eq!(
        restored.progress_of("Other \"docs\"").counts(),
        (3, 3, 0, 0)
    );
}
