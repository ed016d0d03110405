//! Promise: what a user types first works as it stands in the README, without key, network or setting.

use harness::*;

#[test]
fn the_first_statements_work_as_typed() {
    let db = Database::empty_in(shared_cluster(&[]));
    db.run("CREATE EXTENSION pg_ingest CASCADE");
    db.run("SELECT ingest.create_pipeline()");
    db.run(
        "INSERT INTO ingest.documents (key, content) VALUES
             ('a.md', 'To rotate a key, create the new one, deploy it, and revoke the old one.'),
             ('b.md', 'Blue whales feed on krill in the southern ocean.')",
    );
    assert!(db.one::<bool>("SELECT ingest.wait()"));

    let progress = db.progress();
    assert_eq!(progress.state, "idle");
    assert_eq!(progress.counts(), (2, 2, 0, 0));
    assert_eq!(progress.percent, 100.0);
    assert_eq!(progress.bar, "██████████");
    assert_eq!(progress.chunks, 2);
    assert!(progress.tokens > 20, "{} tokens", progress.tokens);
    assert_eq!(progress.last_error, None);
    assert!(db.one::<bool>("SELECT eta = '0 s' AND cost_usd = 0 FROM ingest.progress"));
    // Rates are not part of the transaction: they follow it.
    wait_until("the rates are known", SOON, || {
        db.one("SELECT documents_per_minute > 0 AND tokens_per_minute > 0 FROM ingest.progress")
    });

    let found = db.rows("SELECT key, chunk_no, content, metadata::text, similarity FROM ingest.search('how do I rotate a key?', 5)");
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].get::<_, String>(0), "a.md");
    assert_eq!(found[0].get::<_, i32>(1), 0);
    assert!(found[0].get::<_, String>(2).starts_with("To rotate a key"));
    assert_eq!(found[0].get::<_, String>(3), "{}");
    let similarity = |row: usize| found[row].get::<_, f64>(4);
    assert!(
        similarity(0) > 0.5 && similarity(0) <= 1.0,
        "similarity {}",
        similarity(0)
    );
    assert!(similarity(1) < similarity(0));

    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
    assert_eq!(db.one::<i64>("SELECT ingest.retry()"), 0);
}

#[test]
fn search_finds_the_passage_that_answers() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    for (question, (key, _)) in texts::QUESTIONS.iter().zip(texts::PASSAGES) {
        let first: String = db.one(&format!(
            "SELECT key FROM ingest.search({}, 1)",
            quoted(question)
        ));
        assert_eq!(first, key, "{question}");
    }
}

#[test]
fn the_doctor_finds_nothing_on_a_healthy_server() {
    // Just made: its worker is starting.
    let db = Database::with_pipeline();
    let checks = db.rows(r#"SELECT "check", ok, detail, hint FROM ingest.doctor()"#);
    let names: Vec<String> = checks.iter().map(|row| row.get(0)).collect();
    for expected in ["preload", "worker", "vector"] {
        assert!(names.iter().any(|name| name == expected), "{names:?}");
    }
    for row in &checks {
        assert!(row.get::<_, bool>(1), "{row:?}");
        assert_eq!(
            row.get::<_, Option<String>>(3),
            None,
            "a hint where nothing is wrong: {row:?}"
        );
    }
}

#[test]
fn workers_show_what_they_do() {
    let db = Database::with_pipeline();
    let pid = db.worker();
    db.run(&texts::insert_passages());
    db.quiesce();
    let rows = db.rows(
        "SELECT w.pid, w.state, w.pipeline, w.in_flight_requests, w.in_flight_documents, w.last_error,
                w.started_at BETWEEN a.backend_start - interval '5 s' AND now() AS plausible, a.backend_type
         FROM ingest.workers w JOIN pg_stat_activity a USING (pid) WHERE w.database = current_database()",
    );
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(row.get::<_, i32>("pid"), pid);
    assert_eq!(row.get::<_, String>("state"), "idle");
    assert_eq!(row.get::<_, String>("pipeline"), "default");
    assert_eq!(row.get::<_, i32>("in_flight_requests"), 0);
    assert_eq!(row.get::<_, i32>("in_flight_documents"), 0);
    assert_eq!(row.get::<_, Option<String>>("last_error"), None);
    assert!(row.get::<_, bool>("plausible"));
    assert_eq!(row.get::<_, String>("backend_type"), "pg_ingest worker");
}
