//! Promise: pipelines are made, changed, paused and dropped by one call each, and a call that cannot be served says why
//! and what to do: SQLSTATE, and DETAIL or HINT.

use harness::*;

#[test]
fn a_definition_that_cannot_be_is_refused() {
    let db = Database::with_pipeline();
    refused_all(
        &db,
        &[
            ("SELECT ingest.create_pipeline()", "42710", "alter_pipeline"),
            ("SELECT ingest.create_pipeline('')", "22023", "name"),
            ("SELECT ingest.create_pipeline('  ')", "22023", "name"),
            ("SELECT ingest.create_pipeline(NULL)", "22023", "name"),
            (
                "SELECT ingest.create_pipeline(repeat('x', 64))",
                "42622",
                "63",
            ),
            (
                "SELECT ingest.create_pipeline(repeat('ü', 32))",
                "42622",
                "63",
            ),
            (
                "SELECT ingest.create_pipeline(repeat('x', 60))",
                "42622",
                "target =>",
            ),
            (
                "SELECT ingest.create_pipeline('p', model => 'MiniLM')",
                "22023",
                "provider/model",
            ),
            (
                "SELECT ingest.create_pipeline('p', model => 'nobody/x')",
                "22023",
                "openai, azure, ollama, local",
            ),
            (
                "SELECT ingest.create_pipeline('p', model => 'local/../etc')",
                "22023",
                "directory",
            ),
            (
                "SELECT ingest.create_pipeline('p', model => 'local/')",
                "22023",
                "model",
            ),
            (
                "SELECT ingest.create_pipeline('p', model => 'local/none')",
                "58P01",
                "none",
            ),
            (
                "SELECT ingest.create_pipeline('p', dimensions => 768)",
                "22023",
                "384",
            ),
            (
                "SELECT ingest.create_pipeline('p', chunk_tokens => 0)",
                "22023",
                "between 1 and",
            ),
            (
                "SELECT ingest.create_pipeline('p', chunk_tokens => 100000)",
                "22023",
                "between 1 and",
            ),
            (
                "SELECT ingest.create_pipeline('p', chunk_tokens => 20, chunk_overlap => 20)",
                "22023",
                "chunk_overlap",
            ),
            (
                "SELECT ingest.create_pipeline('p', chunk_overlap => -1)",
                "22023",
                "chunk_overlap",
            ),
            (
                "SELECT ingest.create_pipeline('p', splitter => 'words')",
                "22023",
                "markdown",
            ),
            (
                "SELECT ingest.create_pipeline('p', index => 'ivfflat')",
                "22023",
                "deferred",
            ),
            (
                "SELECT ingest.create_pipeline('p', on_success => 'forget')",
                "22023",
                "keep",
            ),
            (
                "SELECT ingest.create_pipeline('p', layout => 'rows')",
                "22023",
                "chunks",
            ),
            (
                "SELECT ingest.create_pipeline('p', max_attempts => 0)",
                "22023",
                "max_attempts",
            ),
            (
                "SELECT ingest.create_pipeline('p', batch_size => 0)",
                "22023",
                "batch_size",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'docs')",
                "42602",
                "public.docs",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => 'a.b.c')",
                "42602",
                "public.docs",
            ),
            (
                "SELECT ingest.create_pipeline('p', target => '\"')",
                "22023",
                "\"",
            ),
        ],
    );
    assert_eq!(
        db.all::<String>("SELECT name FROM ingest.pipelines"),
        ["default"]
    );
}

#[test]
fn what_is_not_served_yet_is_refused_and_not_ignored() {
    let db = Database::with_pipeline();
    let cases = [
        "SELECT ingest.alter_pipeline('default', layout => 'vecs')",
        "SELECT ingest.alter_pipeline('default', target => 'public.other')",
    ];
    let cases: Vec<(&str, &str, &str)> = cases
        .iter()
        .map(|sql| (*sql, "0A000", "not supported yet"))
        .collect();
    refused_all(&db, &cases);
}

#[test]
fn what_means_nothing_to_a_local_model_is_refused_and_not_ignored() {
    let db = Database::with_pipeline();
    let cases: Vec<String> = [
        "base_url => 'http://localhost:8080'",
        "api_key => 'vault:openai'",
        "limits => 'openai'",
        "request => '{}'",
        "concurrency => 3",
    ]
    .iter()
    .flat_map(|argument| {
        [
            format!("SELECT ingest.create_pipeline('p', {argument})"),
            format!("SELECT ingest.alter_pipeline('default', {argument})"),
        ]
    })
    .collect();
    let cases: Vec<(&str, &str, &str)> = cases
        .iter()
        .map(|sql| (sql.as_str(), "22023", "has no meaning for model local/"))
        .collect();
    refused_all(&db, &cases);
}

#[test]
fn an_unknown_pipeline_is_named_in_the_error() {
    let db = Database::with_pipeline();
    refused_all(
        &db,
        &[
            (
                "SELECT ingest.alter_pipeline('nowhere', chunk_tokens => 20)",
                "42704",
                "'default'",
            ),
            (
                "SELECT ingest.alter_pipeline(NULL, chunk_tokens => 20)",
                "42704",
                "'default'",
            ),
            (
                "SELECT ingest.drop_pipeline('nowhere')",
                "42704",
                "'default'",
            ),
            ("SELECT ingest.pause('nowhere')", "42704", "'default'"),
            ("SELECT ingest.resume('nowhere')", "42704", "'default'"),
            ("SELECT ingest.wait('nowhere')", "42704", "'default'"),
            ("SELECT ingest.embed('x', 'nowhere')", "42704", "'default'"),
            (
                "SELECT * FROM ingest.search('x', 3, 'nowhere')",
                "42704",
                "'default'",
            ),
            (
                "SELECT * FROM ingest.split('x', 'nowhere')",
                "42704",
                "'default'",
            ),
            (
                "SELECT ingest.load_files('/tmp', '*', 'nowhere')",
                "42704",
                "'default'",
            ),
        ],
    );
}

#[test]
fn names_may_be_anything() {
    let db = Database::new();
    for name in [
        "Müller's \"docs\"",
        "select",
        "a.b",
        "UPPER",
        "with  blanks",
        "-- x",
        "$1",
        "%s",
    ] {
        let quoted_name = quoted(name);
        db.run(&format!(
            "SELECT ingest.create_pipeline({quoted_name}, index => 'immediate')"
        ));
        db.run(&format!("INSERT INTO ingest.documents (pipeline, key, content) VALUES ({quoted_name}, {quoted_name}, 'A text.'), ({quoted_name}, 'bad', '')"));
        db.settle();
        assert_eq!(db.progress_of(name).counts(), (2, 1, 0, 1), "{name}");
        assert_eq!(
            db.one::<String>(&format!(
                "SELECT key FROM ingest.search('text', 1, {quoted_name})"
            )),
            name
        );
        assert!(db.one::<bool>(&format!("SELECT target = format('ingest.%I', {quoted_name} || '_chunks')::regclass FROM ingest.pipelines WHERE name = {quoted_name}")));
        db.run(&format!("UPDATE ingest.documents SET metadata = '{{\"a\": 1}}', key = key || '!' WHERE pipeline = {quoted_name}"));
        db.run(&format!(
            "SELECT ingest.alter_pipeline({quoted_name}, chunk_tokens => 20)"
        ));
        db.run(&format!(
            "SELECT ingest.pause({quoted_name}); SELECT ingest.resume({quoted_name})"
        ));
        db.settle();
        assert_eq!(db.progress_of(name).counts(), (2, 1, 0, 1), "{name}");
        let doctor = db.rows("SELECT * FROM ingest.doctor() WHERE NOT ok");
        assert!(doctor.is_empty(), "{name}: {doctor:?}");
        db.run(&format!("SELECT ingest.drop_pipeline({quoted_name}, true)"));
    }
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM pg_class WHERE relname LIKE '%chunks'"),
        0
    );
}

#[test]
fn other_chunks_are_cut_at_once_when_asked_for() {
    let db = Database::with_pipeline();
    db.execute("INSERT INTO ingest.documents (key, content) VALUES ('long', $1), ('short', 'A short text.')", &[&texts::long("lantern", 10)]);
    db.settle();
    let counts = |db: &Database| -> (i64, i64) {
        let row = &db.rows("SELECT count(*), max(tokens)::bigint FROM ingest.default_chunks")[0];
        (row.get(0), row.get(1))
    };
    let (before, _) = counts(&db);
    db.run("SELECT ingest.alter_pipeline('default', chunk_tokens => 24)");
    db.settle();
    let (after, longest) = counts(&db);
    assert!(
        after > before && longest <= 24,
        "{before} chunks before, {after} after, longest {longest}"
    );
    assert_eq!(db.progress().counts(), (2, 2, 0, 0));
    assert_eq!(db.progress().chunks, after);
    assert!(
        db.one::<bool>("SELECT chunk_tokens = 24 AND chunk_overlap < 24 FROM ingest.pipelines")
    );
    // What changes nothing about chunks queues nothing.
    let ids = db.all::<i64>("SELECT id FROM ingest.default_chunks ORDER BY id");
    db.run("SELECT ingest.alter_pipeline('default', chunk_tokens => 24, max_attempts => 7, batch_size => 4, on_success => 'keep')");
    db.settle();
    assert_eq!(
        db.all::<i64>("SELECT id FROM ingest.default_chunks ORDER BY id"),
        ids
    );
    assert!(db.one::<bool>("SELECT max_attempts = 7 AND batch_size = 4 FROM ingest.pipelines"));
    // Failures come back into the queue with the rest, and are counted once.
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('blank', '')");
    db.settle();
    db.run("SELECT ingest.alter_pipeline('default', splitter => 'markdown')");
    db.settle();
    assert_eq!(db.progress().counts(), (3, 2, 0, 1));
    refused_all(
        &db,
        &[
            (
                "SELECT ingest.alter_pipeline('default', chunk_tokens => 0)",
                "22023",
                "between 1 and",
            ),
            (
                "SELECT ingest.alter_pipeline('default', chunk_overlap => 24)",
                "22023",
                "chunk_overlap",
            ),
            (
                "SELECT ingest.alter_pipeline('default', splitter => 'words')",
                "22023",
                "markdown",
            ),
            (
                "SELECT ingest.alter_pipeline('default', index => 'x')",
                "22023",
                "deferred",
            ),
            (
                "SELECT ingest.alter_pipeline('default', max_attempts => 0)",
                "22023",
                "max_attempts",
            ),
        ],
    );
}

#[test]
fn a_paused_pipeline_waits_and_another_does_not() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.create_pipeline('other'); SELECT ingest.pause('default')");
    db.run(&texts::insert_passages());
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('other', 'x', 'A text.')",
    );
    assert!(db.one::<bool>("SELECT ingest.wait('other', '60 s')"));
    assert_eq!(db.progress().counts(), (8, 0, 8, 0));
    assert_eq!(db.progress().state, "paused");
    assert!(db.one::<bool>("SELECT eta IS NULL FROM ingest.progress WHERE pipeline = 'default'"));
    assert!(!db.one::<bool>("SELECT ingest.wait('default', '0.3 s')"));
    assert!(!db.one::<bool>("SELECT ingest.wait(timeout => '0')"));
    assert!(db.one::<bool>("SELECT paused FROM ingest.pipelines WHERE name = 'default'"));
    db.run("SELECT ingest.resume('default')");
    db.settle();
    assert_eq!(db.progress().counts(), (8, 8, 0, 0));
    assert_eq!(db.progress().state, "idle");
}

#[test]
fn waiting_for_a_paused_pipeline_warns() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.pause('default'); INSERT INTO ingest.documents (key, content) VALUES ('k', 'A text.')");
    let (done, notices) = db.one_with_notices::<bool>("", "SELECT ingest.wait(timeout => '2 s')");
    assert!(!done);
    assert!(
        notices
            .iter()
            .any(|notice| notice.starts_with("WARNING") && notice.contains("default is paused")),
        "{notices:?}"
    );
}

#[test]
fn a_transaction_does_not_wait_for_what_it_has_queued_itself() {
    let db = Database::with_pipeline();
    let insert = "INSERT INTO ingest.documents (key, content) VALUES ('k', 'A text.')";
    let wait = "SELECT ingest.wait()";
    let (done, notices) = db.one_with_notices::<bool>(&format!("BEGIN; {insert}"), wait);
    assert!(!done);
    assert!(
        notices.len() == 1 && notices[0].contains("embedded after it commits"),
        "{notices:?}"
    );
    assert_eq!(
        db.one_with_notices::<bool>(&format!("BEGIN; {insert}; COMMIT; BEGIN"), wait),
        (true, vec![])
    );
}

#[test]
fn wait_can_be_cancelled_and_needs_to_see_commits() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.pause('default'); INSERT INTO ingest.documents (key, content) VALUES ('k', 'A text.')");
    assert_eq!(
        db.expect_error("SET statement_timeout = '200ms'; SELECT ingest.wait()")
            .code,
        "57014"
    );
    db.run("RESET statement_timeout");
    let old = db.expect_error("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT ingest.wait()");
    assert_eq!(old.code, "25000");
    db.run("ROLLBACK");
}

#[test]
fn dropping_a_pipeline_leaves_the_chunks_unless_told() {
    let db = Database::with_pipeline();
    db.run("SELECT ingest.create_pipeline('other')");
    db.run(&texts::insert_passages());
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('other', 'x', 'A text.'), ('other', 'bad', '')");
    db.settle();
    db.run("SELECT ingest.drop_pipeline('default')");
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks"),
        8
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.documents"), 2);
    db.run("SELECT ingest.drop_pipeline('other', drop_target => true)");
    for table in [
        "documents",
        "queue",
        "failures",
        "counter",
        "counter_delta",
        "progress",
    ] {
        assert_eq!(
            db.one::<i64>(&format!("SELECT count(*) FROM ingest.{table}")),
            0,
            "{table}"
        );
    }
    assert!(db.one::<bool>("SELECT to_regclass('ingest.other_chunks') IS NULL"));
}

#[test]
fn a_pipeline_can_be_dropped_and_made_again_while_it_works() {
    let db = Database::with_pipeline();
    db.worker();
    for round in 0..5 {
        db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n FROM generate_series(1, 60) n");
        if round % 2 == 0 {
            wait_until("some are in flight", SOON, || {
                let progress = db.progress();
                progress.in_flight > 0 || progress.embedded > 0
            });
        }
        db.run("SELECT ingest.drop_pipeline('default', true)");
        db.run("SELECT ingest.create_pipeline()");
    }
    db.run(&texts::insert_passages());
    db.quiesce();
    assert_eq!(db.progress().counts(), (8, 8, 0, 0));
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.default_chunks"),
        8
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.counter"), 1);
}

#[test]
fn a_pipeline_that_archives_can_be_dropped_while_it_works() {
    let db = Database::new();
    for _ in 0..6 {
        db.run("SELECT ingest.create_pipeline(on_success => 'delete')");
        db.run(
            "INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n FROM generate_series(1, 200) n",
        );
        wait_until("some are embedded", SOON, || db.progress().embedded > 0);
        db.run("SELECT ingest.drop_pipeline('default', true)");
    }
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.documents"), 0);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.queue"), 0);
}
