//! Promise: on a hot standby nothing runs, everything can be read, and what cannot be done says what to do; a promoted one
//! goes on by itself with what was queued, and with the day's totals.

use fake_api::FakeApi;
use harness::*;

/// A primary with a pipeline of this API under a limit, at rest with three documents, one of them a failure.
fn fill(db: &Database, api: &FakeApi) {
    db.run("SELECT ingest.set_limit('budget', rpm => 60000, tpm => 6000000, rpd => 100000, tpd => 100000000)");
    db.create_remote_pipeline(
        "docs",
        api,
        "limits => 'budget', concurrency => 3, batch_size => 4",
    );
    db.insert_prose("docs", "early", 2, 30);
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('docs', 'bad', '')");
    db.quiesce();
    wait_until("the day's total is written down", SOON, || {
        db.one::<Option<i64>>("SELECT sum(requests)::bigint FROM ingest.limit_day")
            == Some(api.accepted() as i64)
    });
}

/// Waits until the standby shows all that the primary has committed.
fn replayed(primary: &Database, standby: &Database) {
    // What was committed asynchronously is in no file of the log yet.
    primary.run("CHECKPOINT");
    let there: String = primary.one("SELECT pg_current_wal_flush_lsn()::text");
    let replayed = format!(
        "SELECT pg_last_wal_replay_lsn() >= {}::pg_lsn",
        quoted(&there)
    );
    wait_until("the standby has replayed it", SOON, || {
        standby.one(&replayed)
    });
}

/// Processes of pg_ingest on a server.
fn processes(db: &Database) -> Vec<String> {
    db.all("SELECT backend_type FROM pg_stat_activity WHERE backend_type LIKE 'pg_ingest%'")
}

const LIMITS: &str = "SELECT name, rpm, tpm, rpd, tpd, utilization, requests_today, tokens_today, cooling_down_until FROM ingest.limits";

#[test]
fn on_a_standby_nothing_runs_and_everything_can_be_read() {
    let api = remote::api();
    let primary = Cluster::start(&[]);
    let db = Database::new_in(&primary);
    fill(&db, &api);
    let cluster = Cluster::standby_of(&primary, &[]);
    let standby = Database::present_in(&cluster, db.name());
    db.run("SELECT ingest.pause('docs')");
    db.insert_prose("docs", "late", 3, 30);
    replayed(&db, &standby);
    // The first was kept by a pause; now it is the standby's turn to do nothing.
    for sql in [
        "SELECT * FROM ingest.pipelines",
        "SELECT pipeline, state, documents, embedded, pending, in_flight, failed, percent, bar, chunks, tokens, eta, cost_usd, last_error
         FROM ingest.progress",
        "SELECT * FROM ingest.failures",
        "SELECT * FROM ingest.documents ORDER BY id",
        "SELECT * FROM ingest.estimate()",
        "SELECT * FROM ingest.split('A text.', 'docs')",
        "SELECT * FROM ingest.limit_presets()",
        LIMITS,
    ] {
        assert_eq!(standby.rows_as_text(sql), db.rows_as_text(sql), "{sql}");
    }
    assert_eq!(standby.rows("SELECT * FROM ingest.workers").len(), 0);
    let doctor =
        standby.rows_as_text(r#"SELECT "check", detail, hint FROM ingest.doctor() WHERE NOT ok"#);
    assert!(
        doctor.len() == 1 && doctor[0].contains("standby") && doctor[0].contains("promoted"),
        "{doctor:?}"
    );
    assert!(!doctor[0].contains("max_worker_processes"), "{doctor:?}");

    db.run("SELECT ingest.resume('docs')");
    db.quiesce();
    db.insert_prose("docs", "later", 1, 30);
    db.quiesce();
    replayed(&db, &standby);
    assert_eq!(standby.progress_of("docs").counts(), (7, 6, 0, 1));
    assert_eq!(standby.progress_of("docs").state, "idle");
    assert_eq!(standby.check_vectors("ingest.docs_chunks"), 6);
    assert!(standby.one::<bool>("SELECT ingest.wait(timeout => '1 s')"));
    assert_eq!(api.repeated_inputs(), 0, "the standby sent something, too");
    assert_eq!(processes(&standby), [""; 0]);
}

#[test]
fn what_a_standby_cannot_do_says_so() {
    let api = remote::api();
    let primary = Cluster::start(&[]);
    let db = Database::new_in(&primary);
    fill(&db, &api);
    let cluster = Cluster::standby_of(&primary, &[]);
    let standby = Database::present_in(&cluster, db.name());
    replayed(&db, &standby);
    let sent = api.arrived();
    for sql in [
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('docs', 'k', 'A text.')",
        "UPDATE ingest.documents SET content = 'Another.'",
        "DELETE FROM ingest.documents",
        "TRUNCATE ingest.documents",
        "SELECT ingest.create_pipeline()",
        "SELECT ingest.alter_pipeline('docs', concurrency => 2)",
        "SELECT ingest.drop_pipeline('docs')",
        "SELECT ingest.pause('docs')",
        "SELECT ingest.resume('docs')",
        "SELECT ingest.retry()",
        "SELECT ingest.set_limit('budget', rpm => 1)",
        "SELECT ingest.drop_limit('budget')",
        "SELECT ingest.load_files('/nowhere', pipeline => 'docs')",
        "CREATE EXTENSION IF NOT EXISTS pg_ingest",
        "DROP EXTENSION pg_ingest CASCADE",
    ] {
        match standby.try_run(sql) {
            Ok(()) => assert!(sql.contains("IF NOT EXISTS"), "{sql}"),
            Err(error) => assert_eq!(error.code, "25006", "{sql}: {error:?}"),
        }
    }
    for sql in [
        "SELECT ingest.embed('harbour', 'docs')",
        "SELECT * FROM ingest.search('harbour', 3, 'docs')",
    ] {
        let error = standby.expect_error(sql);
        assert_eq!(error.code, "55000", "{error:?}");
        assert!(error.text().contains("standby"), "{error:?}");
        let hint = error.hint.clone().unwrap_or_default();
        assert!(
            hint.contains("primary") && hint.contains("<=>"),
            "{error:?}"
        );
    }
    // What the hint says.
    let vector: String = db.one("SELECT ingest.embed('Document early 2', 'docs')::text");
    let nearest = format!(
        "SELECT document_key FROM ingest.docs_chunks ORDER BY embedding <=> {}::vector LIMIT 1",
        quoted(&vector)
    );
    assert_eq!(standby.one::<String>(&nearest), db.one::<String>(&nearest));
    assert_eq!(api.arrived(), sent + 1, "only the primary's query was sent");
    // Refused is refused: the server runs on, and nothing has changed.
    assert_eq!(standby.progress_of("docs").counts(), (3, 2, 0, 1));
    assert_eq!(processes(&standby), [""; 0]);
}

#[test]
fn a_promoted_standby_goes_on_with_what_was_queued_and_with_the_day() {
    let api = remote::api();
    let primary = Cluster::start(&[]);
    let db = Database::new_in(&primary);
    fill(&db, &api);
    let cluster = Cluster::standby_of(&primary, &[]);
    let standby = Database::present_in(&cluster, db.name());
    // Some are being answered, others are claimed or wait, and one waits for its next attempt.
    api.hold_answers();
    db.insert_prose("docs", "held", 60, 30);
    wait_until("requests are being answered", SOON, || {
        api.in_flight() == 3 && db.progress_of("docs").in_flight >= 9
    });
    db.run(
        "WITH one AS (SELECT max(document_id) AS id FROM ingest.queue WHERE claimed_by IS NULL)
         UPDATE ingest.queue q SET attempts = 1, retry_at = clock_timestamp() + '1 s' FROM one WHERE q.document_id = one.id",
    );
    remote::day_is_written_down(&db, &api);
    replayed(&db, &standby);
    let progress = standby.progress_of("docs");
    assert_eq!(progress.counts(), (63, 2, 60, 1));
    assert!(progress.in_flight >= 9, "{progress:?}");
    assert_eq!(progress.state, "blocked");
    assert!(
        progress
            .last_error
            .is_some_and(|error| error.contains("standby"))
    );
    let (requests, tokens) = remote::day_totals(&standby);
    remote::end_at_once(&db, &primary, &api);
    let embedded = api.distinct_inputs();
    api.reset();
    api.release_answers();
    standby.disconnect();
    cluster.promote();
    standby.reconnect();
    // Nobody commits anything after the promotion: the worker has to find out by itself.
    remote::all_embedded_but(&standby, "docs", 63, 1);
    assert!(embedded >= 2 + 3, "{embedded} were sent before");
    assert_eq!(
        api.distinct_inputs(),
        60,
        "what was embedded is not sent again"
    );
    assert_eq!(api.repeated_inputs(), 0);
    standby.quiesce();
    let row = &standby.rows("SELECT requests_today, tokens_today FROM ingest.limits")[0];
    let today: (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(
        today,
        (
            requests + api.accepted() as i64,
            tokens + api.tokens_accepted() as i64
        )
    );
    // It is a primary like any other.
    standby.insert_prose("docs", "after", 2, 30);
    remote::all_embedded_but(&standby, "docs", 65, 1);
    assert_eq!(
        standby
            .rows("SELECT key FROM ingest.search('Document after 2', 3, 'docs')")
            .len(),
        3
    );
    assert!(standby.one::<bool>("SELECT bool_and(ok) FROM ingest.doctor()"));
    assert!(
        standby.one::<i64>("SELECT min(id) FROM ingest.documents WHERE key LIKE 'after%'")
            > standby.one::<i64>("SELECT max(id) FROM ingest.documents WHERE key LIKE 'held%'")
    );
}

#[test]
fn what_only_reads_takes_no_transaction_id() {
    let api = remote::api();
    let db = Database::new();
    fill(&db, &api);
    for sql in [
        "SELECT * FROM ingest.search('harbour', 3, 'docs')",
        "SELECT ingest.embed('harbour', 'docs')",
        "SELECT * FROM ingest.split('A text.', 'docs')",
        "SELECT * FROM ingest.estimate()",
        "SELECT * FROM ingest.progress",
        "SELECT * FROM ingest.limits",
        "SELECT * FROM ingest.doctor()",
        "SELECT ingest.wait('docs')",
    ] {
        db.run("BEGIN READ ONLY");
        db.rows(sql);
        let taken = db.one::<bool>("SELECT pg_current_xact_id_if_assigned() IS NOT NULL");
        assert!(!taken, "{sql}");
        db.run("COMMIT");
    }
}
