//! Promise: what `pg_dump` writes, `psql` restores: pipelines, documents, chunks, what waits and what failed; nothing is
//! embedded again, and what was waiting goes on.

use fake_api::FakeApi;
use harness::roles::another;
use harness::*;

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
         INSERT INTO ingest.limit_day VALUES ('budget', 0, (now() AT TIME ZONE 'UTC')::date, 12, 345)",
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
    let file = db.dump(&[]);
    // Another server, where nothing of this one is known.
    let other = Cluster::start(&[]);
    let restored = Database::empty_in(&other);
    restored.restore(&file);
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
    let file = db.dump(&[]);
    db.run("SELECT ingest.drop_pipeline('default', true)");
    let restored = Database::empty_in(db.cluster());
    restored.restore(&file);
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
    let schema = db.dump(&["--schema-only"]);
    let restored = Database::empty_in(db.cluster());
    restored.restore(&schema);
    restored.worker();
    restored.restore(&db.dump(&["--data-only"]));
    assert_eq!(content(&restored), before);
    restored.run("SELECT ingest.resume('Other \"docs\"')");
    restored.settle();
    assert_eq!(
        restored.progress_of("Other \"docs\"").counts(),
        (3, 3, 0, 0)
    );
}

#[test]
fn a_watched_table_is_watched_in_the_restored_database() {
    let db = Database::with_pipeline();
    db.run(
        "CREATE TABLE public.articles (dropped int, id int PRIMARY KEY, body text); ALTER TABLE public.articles DROP dropped;
         INSERT INTO public.articles SELECT n, 'The body of article ' || n FROM generate_series(1, 20) n;
         SELECT ingest.watch('public.articles', 'body')",
    );
    db.quiesce();
    let rows = [
        "SELECT * FROM ingest.watch",
        "SELECT * FROM ingest.documents ORDER BY id",
        "SELECT * FROM ingest.default_chunks ORDER BY id",
    ];
    let before = rows.map(|sql| db.rows_as_text(sql));
    for parts in [&[&[][..]][..], &[&["--schema-only"], &["--data-only"]]] {
        let restored = Database::empty_in(db.cluster());
        for options in parts {
            restored.restore(&db.dump(options));
        }
        restored.worker();
        restored.quiesce();
        assert_eq!(rows.map(|sql| restored.rows_as_text(sql)), before);
        restored.run(
            "DELETE FROM public.articles WHERE id = 1; UPDATE public.articles SET body = 'Changed' WHERE id = 2;
             INSERT INTO public.articles VALUES (21, 'New')",
        );
        restored.settle();
        assert_eq!(restored.progress().counts(), (20, 20, 0, 0));
        assert_eq!(
            restored.all::<String>("SELECT content FROM ingest.default_chunks WHERE document_key IN ('1', '2', '21') ORDER BY 1"),
            ["Changed", "New"]
        );
        restored.run("SELECT ingest.drop_pipeline('default', true); DROP EXTENSION pg_ingest");
        assert_eq!(
            restored.one::<i64>(
                "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'public.articles'::regclass"
            ),
            0
        );
    }
}

/// A remote pipeline under a limit, in every state that there is: embedded, failed, failed and queued again, waiting for the
/// next attempt, in flight, waiting.
fn fill_remote(db: &Database, api: &FakeApi) {
    db.run("SELECT ingest.set_limit('budget', rpm => 60000, tpm => 6000000, tpd => 100000000, utilization => 0.5)");
    db.create_remote_pipeline(
        "docs",
        api,
        r#"limits => 'budget', target => 'public.docs', concurrency => 2, batch_size => 4, max_attempts => 3,
           request => '{"headers": {"x-team": "a"}, "body": {"user": "b"}}'"#,
    );
    db.insert_prose("docs", "done", 20, 30);
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content, metadata)
         VALUES ('docs', 'bad', '', '{}'), ('docs', 'again', ' ', '{\"lang\": \"en\"}')",
    );
    db.quiesce();
    db.run("SELECT ingest.pause('docs')");
    api.hold_answers();
    db.insert_prose("docs", "queued", 60, 30);
    db.run(
        "SELECT ingest.retry(key => 'again');
         UPDATE ingest.queue SET attempts = 2, retry_at = clock_timestamp() + '15 s'
         WHERE document_id = (SELECT max(document_id) FROM ingest.queue)",
    );
    db.run("SELECT ingest.resume('docs')");
    wait_until("requests are being answered", SOON, || {
        api.in_flight() == 2 && db.progress_of("docs").in_flight > 8
    });
    remote::day_is_written_down(db, api);
}

#[test]
fn a_remote_backlog_goes_on_in_a_fresh_server_and_nothing_embedded_is_sent_again() {
    let api = remote::api();
    let old = Cluster::start(&[]);
    let db = Database::new_in(&old);
    fill_remote(&db, &api);
    let file = db.dump(&["--serializable-deferrable"]);
    let rows = [
        "SELECT name, owner, model, dimensions, base_url, api_key, target, chunk_tokens, limits, concurrency, batch_size, max_attempts,
                index, on_success, request, paused, created_at FROM ingest.pipelines",
        "SELECT * FROM ingest.documents ORDER BY id",
        "SELECT * FROM ingest.failures ORDER BY document_id",
        "SELECT document_id, pipeline_id, bytes, attempts, retry_at FROM ingest.queue ORDER BY 1",
        "SELECT * FROM ingest.limit_day",
        "SELECT name, rpm, tpm, rpd, tpd, utilization FROM ingest.limits",
        "SELECT documents, embedded, pending + in_flight, failed, chunks, tokens FROM ingest.progress",
        "SELECT * FROM public.docs ORDER BY id",
    ];
    let before = rows.map(|sql| db.rows_as_text(sql));
    let (requests, tokens) = remote::day_totals(&db);
    remote::end_at_once(&db, &old, &api);
    let newest: i64 = 22 + 60;

    let new = Cluster::start(&[("pg_ingest.workers", "0")]);
    let restored = Database::empty_in(&new);
    restored.restore(&file);
    assert_eq!(rows.map(|sql| restored.rows_as_text(sql)), before);
    api.reset();
    api.release_answers();
    new.reload(&[("pg_ingest.workers", "1")]);
    // Nobody commits anything: the worker has to find out by itself.
    remote::all_embedded_but(&restored, "docs", 82, 2);
    assert_eq!(
        api.distinct_inputs(),
        60,
        "what was embedded is not sent again"
    );
    assert_eq!(api.repeated_inputs(), 0);
    assert!(
        api.requests()
            .iter()
            .all(|r| r.header("x-team") == Some("a"))
    );
    let failed = restored.rows_as_text("SELECT key, attempts, first_failed_at < last_failed_at AS again FROM ingest.failures ORDER BY key");
    assert_eq!(
        failed,
        [
            r#"{"key": "again", "again": true, "attempts": 2}"#,
            r#"{"key": "bad", "again": false, "attempts": 1}"#
        ]
    );
    restored.quiesce();
    let row = &restored.rows("SELECT requests_today, tokens_today FROM ingest.limits")[0];
    let today: (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(
        today,
        (
            requests + api.accepted() as i64,
            tokens + api.tokens_accepted() as i64
        ),
        "the day goes on where it was"
    );
    // The sequences go on where they were: nothing new takes the number of something restored.
    restored.insert_prose("docs", "new", 5, 30);
    restored.create_remote_pipeline("second", &api, "");
    restored.insert_prose("second", "new", 5, 30);
    remote::all_embedded_but(&restored, "docs", 87, 2);
    remote::all_embedded(&restored, "second", 5);
    let ids: (i64, i64) = {
        let row = &restored
            .rows("SELECT min(id), count(DISTINCT id) FROM ingest.documents WHERE key LIKE 'new%'")
            [0];
        (row.get(0), row.get(1))
    };
    assert_eq!(ids, (newest + 1, 10));
    assert_eq!(
        restored.all::<i32>("SELECT pipeline_id FROM ingest.pipeline ORDER BY 1"),
        [1, 2]
    );
    assert!(restored.one::<bool>("SELECT bool_and(ok) FROM ingest.doctor()"));
}

#[test]
fn a_dump_of_an_earlier_release_is_restored_into_this_one() {
    let former = Database::of_release("0.1.0");
    former.run(include_str!("upgrade/data-0.1.0.sql"));
    former.run(
        "CREATE TABLE ingest.other_chunks (LIKE ingest.default_chunks INCLUDING ALL);
         INSERT INTO ingest.pipeline (name, owner, model, dimensions, target, layout, chunk_tokens, chunk_overlap, splitter,
                                      concurrency, max_attempts, index, on_success, base_url)
         SELECT 'elsewhere', owner, 'ollama/x', dimensions, 'ingest.other_chunks', layout, chunk_tokens, chunk_overlap, splitter, concurrency,
                max_attempts, index, on_success, 'http://localhost:1/v1' FROM ingest.pipeline;
         INSERT INTO ingest.counter (pipeline_id) SELECT max(pipeline_id) FROM ingest.pipeline",
    );
    let restored = Database::empty_in(former.cluster());
    restored.restore(&former.dump(&[]));
    // Whose vectors are of which place nobody has noted.
    assert_eq!(
        restored.all::<String>("SELECT name FROM ingest.pipeline WHERE reuses"),
        ["default"]
    );
    assert!(restored.one::<bool>("SELECT ingest.wait('default', '60 s')"));
    assert_eq!(restored.progress().counts(), (5, 3, 0, 2));
    restored.run("SELECT ingest.create_pipeline('new', model => 'ollama/x', dimensions => 8, base_url => 'http://localhost:1/v1')");
    assert!(restored.one::<bool>("SELECT reuses FROM ingest.pipeline WHERE name = 'new'"));
}

#[test]
fn who_was_dropped_takes_no_pipeline_along_into_the_dump() {
    let db = Database::with_pipeline();
    let (stays, _client) = another(&db, "stays");
    let gone = format!("gone_{}", db.name());
    db.run(&format!(
        "CREATE ROLE {gone}; SELECT ingest.grant_pipeline('default', '{gone}'), ingest.grant_pipeline('default', '{stays}');
         DROP ROLE {gone}"
    ));
    let granted = "SELECT grantee::text FROM ingest.pipeline_grant";
    assert_eq!(db.all::<String>(granted).len(), 2);
    let restored = Database::empty_in(db.cluster());
    restored.restore(&db.dump(&[]));
    assert_eq!(restored.all::<String>(granted), [stays.to_string()]);
}
