//! Promise: `ingest.search` returns the nearest chunks by cosine similarity, exactly without an index and `k` of them with
//! one, leaves the session as it was, works wherever pgvector lives, and a query can always be cancelled.

use std::time::{Duration, Instant};

use fake_api::FakeApi;
use harness::remote::behaviour;
use harness::*;
use pgvector::Vector;

#[test]
fn similarity_is_the_cosine() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    for question in texts::QUESTIONS {
        let question = quoted(question);
        let found = db.rows(&format!(
            "SELECT s.key, s.chunk_no, s.content, s.similarity,
                    1 - (c.embedding <=> ingest.embed({question})) AS recomputed,
                    row_number() OVER (ORDER BY c.embedding <=> ingest.embed({question})) AS place
             FROM ingest.search({question}, 8) WITH ORDINALITY AS s(key, chunk_no, content, metadata, similarity, rank)
             JOIN ingest.default_chunks c ON c.document_key = s.key AND c.chunk_no = s.chunk_no AND c.content = s.content
             ORDER BY s.rank"
        ));
        assert_eq!(found.len(), 8);
        for (number, row) in found.iter().enumerate() {
            let (said, recomputed): (f64, f64) = (row.get("similarity"), row.get("recomputed"));
            assert!(
                (said - recomputed).abs() < 1e-6,
                "{said} against {recomputed}"
            );
            assert_eq!(row.get::<_, i64>("place"), number as i64 + 1);
        }
    }
}

#[test]
fn a_vector_has_length_one_and_is_always_the_same() {
    let db = Database::with_pipeline();
    db.worker();
    let embed =
        |text: &str| -> Vector { db.one(&format!("SELECT ingest.embed({})", quoted(text))) };
    let first = embed("how do I rotate a key?");
    assert_eq!(first.as_slice().len(), 384);
    let length: f32 = first.as_slice().iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-3, "length {length}");
    assert_eq!(embed("how do I rotate a key?"), first);
    assert_ne!(embed("how do I bake bread?"), first);
    assert!(db.one::<bool>("SELECT ingest.embed(NULL) IS NULL"));
    // What the worker writes for a document is what it answers for a query.
    db.run("INSERT INTO ingest.documents (key, content) VALUES ('k', 'how do I rotate a key?')");
    db.settle();
    assert!(
        db.one::<f64>("SELECT similarity FROM ingest.search('how do I rotate a key?', 1)") > 0.999
    );
}

#[test]
fn k_rows_are_returned_with_and_without_an_index() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(index => 'none')");
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, 'Text number ' || n FROM generate_series(1, 120) n");
    db.settle();
    let count = |k: i32| -> i64 {
        db.one(&format!(
            "SELECT count(*) FROM ingest.search('Text number 7', {k})"
        ))
    };
    for k in [1, 100, 120, 5000] {
        assert_eq!(count(k), i64::from(k).min(120), "without an index");
    }
    let exact = db.all::<String>("SELECT key FROM ingest.search('Text number 7', 5)");
    db.run("SELECT ingest.alter_pipeline('default', index => 'immediate')");
    db.run("SET enable_seqscan = off; SET enable_sort = off");
    assert!(db.explain("SELECT * FROM ingest.default_chunks ORDER BY embedding <=> array_fill(0.1, ARRAY[384])::vector LIMIT 3").contains("embedding_idx"));
    for k in [1, 39, 41, 100] {
        assert_eq!(count(k), i64::from(k), "with an index");
    }
    assert_eq!(
        db.all::<String>("SELECT key FROM ingest.search('Text number 7', 5)"),
        exact
    );
}

/// A table of 8 dimensions, before its pipeline: 300 chunks in English near to a question, and 60 in German far from it.
fn near_and_far(db: &Database, api: &FakeApi) {
    db.run(
        "CREATE TABLE public.big (document_key text, chunk_no int, content text, tokens int, metadata jsonb, embedding vector(8))",
    );
    db.create_remote_pipeline(
        "big",
        api,
        "target => 'public.big', dimensions => 8, index => 'none'",
    );
    db.run(
        "WITH question AS (SELECT ingest.embed('A question', 'big')::real[] AS v)
         INSERT INTO public.big
         SELECT CASE WHEN n > 300 THEN 'de' ELSE 'en' END || n, 0, 'Text ' || n, 2,
                jsonb_build_object('lang', CASE WHEN n > 300 THEN 'de' ELSE 'en' END),
                (SELECT array_agg(CASE WHEN n > 300 THEN -x ELSE x END + 0.0001 * ((n * (7 + i) + i * i * 13) % 367) ORDER BY i)
                 FROM unnest(v) WITH ORDINALITY AS u(x, i))::real[]::vector
         FROM question, generate_series(1, 360) n",
    );
    db.run("SELECT ingest.create_match_function('big')");
}

/// Sees that each way of searching returns as many rows as it is asked for, and the nearest.
fn k_rows_are_found(db: &Database, case: &str) {
    for k in [1, 10, 60] {
        for filter in [r#"{"lang": "de"}"#, r#"{"lang": "en"}"#, "{}"] {
            let exact = db.all::<String>(&format!(
                "SELECT content FROM public.big WHERE metadata @> '{filter}'
                 ORDER BY (embedding <=> ingest.embed('A question', 'big')) + 0 LIMIT {k}"
            ));
            for (search, order) in [
                (
                    format!("ingest.search('A question', {k}, 'big', '{filter}')"),
                    "similarity",
                ),
                (
                    format!(
                        "ingest.hybrid_search('A question', {k}, 'big', '{filter}', full_text_weight => 0)"
                    ),
                    "score",
                ),
                (
                    format!(
                        "public.match_documents(ingest.embed('A question', 'big'), {k}, '{filter}')"
                    ),
                    "similarity",
                ),
            ] {
                let found = db.all::<String>(&format!(
                    "SELECT content FROM {search} ORDER BY {order} DESC"
                ));
                assert_eq!(found.len(), k, "{case}: {search}");
                if filter.contains("de") {
                    assert_eq!(found, exact, "{case}: {search}");
                }
            }
        }
    }
}

#[test]
fn k_rows_are_returned_however_little_of_the_index_is_looked_at() {
    let api = FakeApi::start(behaviour());
    let db = Database::new();
    near_and_far(&db, &api);
    k_rows_are_found(&db, "no index");
    db.run("SELECT ingest.alter_pipeline('big', index => 'immediate'); SET enable_seqscan = off; SET enable_sort = off");
    assert!(db.explain("SELECT * FROM public.big ORDER BY embedding <=> array_fill(0.1, ARRAY[8])::vector LIMIT 3").contains("embedding_idx"));
    // Where the index comes by enough, nothing else is read.
    for search in [
        "ingest.search('A question', 10, 'big')",
        "ingest.hybrid_search('A question', 10, 'big')",
        "public.match_documents(ingest.embed('A question', 'big'), 10)",
    ] {
        let scans = || {
            let scans = db.rows(
                "SELECT idx_scan, seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'big'",
            );
            (scans[0].get::<_, i64>(0), scans[0].get::<_, i64>(1))
        };
        db.run("BEGIN");
        let before = scans();
        assert_eq!(db.one::<i64>(&format!("SELECT count(*) FROM {search}")), 10);
        let after = scans();
        db.run("COMMIT");
        assert!(after.0 > before.0, "{search}: {before:?} {after:?}");
        assert_eq!(after.1, before.1, "{search}");
    }
    // As in a table of more rows than 20,000, its default.
    db.run("SET hnsw.max_scan_tuples = 100");
    k_rows_are_found(&db, "HNSW");
    // The memory of an iterative scan ends it, too.
    db.run("SET hnsw.max_scan_tuples = 20000; SET work_mem = '64kB'");
    k_rows_are_found(&db, "HNSW with little memory");
}

#[test]
fn k_rows_are_returned_with_an_index_of_lists() {
    let api = FakeApi::start(behaviour());
    let db = Database::new();
    near_and_far(&db, &api);
    db.run(
        "CREATE INDEX by_lists ON public.big USING ivfflat (embedding vector_cosine_ops) WITH (lists = 30);
         SET enable_seqscan = off; SET enable_sort = off",
    );
    assert!(db.explain("SELECT * FROM public.big ORDER BY embedding <=> array_fill(0.1, ARRAY[8])::vector LIMIT 3").contains("by_lists"));
    k_rows_are_found(&db, "ivfflat");
}

#[test]
fn a_filter_leaves_what_matches() {
    let db = Database::new();
    db.run("SELECT ingest.create_pipeline(index => 'immediate')");
    db.run(
        "INSERT INTO ingest.documents (key, content, metadata)
         SELECT 'k' || n, 'Text number ' || n, jsonb_build_object('shelf', n % 50, 'tags', jsonb_build_array('t' || n % 2))
         FROM generate_series(1, 150) n",
    );
    db.settle();
    for settings in [
        "RESET enable_seqscan; RESET enable_sort",
        "SET enable_seqscan = off; SET enable_sort = off",
    ] {
        db.run(settings);
        let found = db.all::<String>(r#"SELECT key FROM ingest.search('Text number 7', 10, filter => '{"shelf": 33}') ORDER BY key"#);
        assert_eq!(found, ["k133", "k33", "k83"], "{settings}");
        assert_eq!(
            db.one::<i64>(
                r#"SELECT count(*) FROM ingest.search('Text', 10, filter => '{"tags": ["t1"]}')"#
            ),
            10,
            "{settings}"
        );
        assert_eq!(
            db.one::<i64>(
                r#"SELECT count(*) FROM ingest.search('Text', 10, filter => '{"shelf": "none"}')"#
            ),
            0,
            "{settings}"
        );
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM ingest.search('Text', 10, filter => '{}')"),
            10,
            "{settings}"
        );
    }
}

#[test]
fn what_is_no_search_is_refused() {
    let db = Database::with_pipeline();
    db.worker();
    for (sql, code) in [
        ("SELECT * FROM ingest.search('text', 0)", "22023"),
        ("SELECT * FROM ingest.search('text', -1)", "22023"),
        ("SELECT * FROM ingest.search('text', NULL)", "22023"),
        ("SELECT * FROM ingest.search('', 3)", "22023"),
        ("SELECT * FROM ingest.search(E' \\n', 3)", "22023"),
        ("SELECT * FROM ingest.search('text', 3, 'nowhere')", "42704"),
        ("SELECT ingest.embed('')", "22023"),
        ("SELECT ingest.embed('text', 'nowhere')", "42704"),
    ] {
        let error = db.expect_error(sql);
        assert_eq!(error.code, code, "{sql}: {error:?}");
        assert!(
            error.hint.is_some() || error.detail.is_some(),
            "{sql}: {error:?}"
        );
    }
    let long = db.expect_error("SELECT ingest.embed(repeat('word ', 500000))");
    assert!(long.text().contains("longer"), "{long:?}");
    // An empty target is no error, and a query longer than the model reads is cut.
    assert_eq!(db.rows("SELECT * FROM ingest.search('text', 3)").len(), 0);
    db.run("SELECT ingest.embed(repeat('word ', 2000))");
}

#[test]
fn search_leaves_the_settings_as_they_were() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    let settings = || -> Vec<String> {
        [
            "hnsw.ef_search",
            "hnsw.iterative_scan",
            "search_path",
            "enable_seqscan",
        ]
        .iter()
        .map(|name| db.one::<String>(&format!("SELECT current_setting('{name}')")))
        .collect()
    };
    let search = "SELECT count(*) FROM ingest.search('text', 200, filter => '{}')";
    db.run(search);
    let before = settings();
    db.run("BEGIN");
    db.run(search);
    assert_eq!(settings(), before, "inside the transaction");
    db.run("COMMIT");
    assert_eq!(settings(), before);
    db.run("SET hnsw.ef_search = 77; SET hnsw.iterative_scan = relaxed_order");
    db.run("BEGIN");
    db.run(search);
    assert_eq!(
        &settings()[..2],
        ["77", "relaxed_order"],
        "inside the transaction"
    );
    db.run("COMMIT");
    assert_eq!(&settings()[..2], ["77", "relaxed_order"]);
}

#[test]
fn search_sees_the_transaction_it_runs_in() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    db.run("BEGIN; DELETE FROM ingest.documents WHERE key = 'keys.md'");
    assert_eq!(
        db.one::<i64>(
            "SELECT count(*) FROM ingest.search('how do I rotate a key?', 10) WHERE key = 'keys.md'"
        ),
        0
    );
    db.run("ROLLBACK");
    assert_eq!(
        db.one::<String>("SELECT key FROM ingest.search('how do I rotate a key?', 1)"),
        "keys.md"
    );
    // A read-only transaction can search.
    db.run("BEGIN READ ONLY; SELECT * FROM ingest.search('how do I rotate a key?', 1); SELECT * FROM ingest.progress; COMMIT");
}

#[test]
fn pgvector_may_live_in_any_schema() {
    let db = Database::empty_in(shared_cluster(&[]));
    db.run(r#"CREATE SCHEMA "my extensions"; CREATE EXTENSION vector SCHEMA "my extensions"; CREATE EXTENSION pg_ingest"#);
    db.run("SELECT ingest.create_pipeline(index => 'immediate')");
    db.run(&texts::insert_passages());
    db.settle();
    for search_path in ["public", "", "ingest", r#""my extensions""#] {
        db.run(&format!(
            "SELECT set_config('search_path', '{search_path}', false)"
        ));
        assert_eq!(
            db.one::<String>("SELECT key FROM ingest.search('how do I rotate a key?', 1)"),
            "keys.md",
            "{search_path}"
        );
    }
    db.run("UPDATE ingest.documents SET content = content || ' More.' WHERE key = 'keys.md'; DELETE FROM ingest.documents WHERE key = 'moon.md'");
    db.settle();
    assert_eq!(db.progress().counts(), (7, 7, 0, 0));
    assert!(db.one::<bool>("SELECT bool_and(ok) FROM ingest.doctor()"));
    let dims: i32 = db.one(r#"SELECT "my extensions".vector_dims(ingest.embed('text'))"#);
    assert_eq!(dims, 384);
}

#[test]
fn the_first_query_is_answered_soon_and_the_next_at_once() {
    let db = Database::with_pipeline();
    db.worker();
    let start = Instant::now();
    db.run("SELECT ingest.embed('how do I rotate a key?')");
    let first = start.elapsed();
    let mut rest: Vec<Duration> = (0..21)
        .map(|number| {
            let start = Instant::now();
            db.run(&format!("SELECT ingest.embed('question number {number}')"));
            start.elapsed()
        })
        .collect();
    rest.sort();
    println!("first {first:?}, then {:?} at the median", rest[10]);
    assert!(
        first < Duration::from_secs(5),
        "the first query took {first:?}"
    );
    assert!(
        rest[10] < Duration::from_millis(500),
        "the median query took {:?}",
        rest[10]
    );
}

#[test]
fn a_query_is_answered_while_a_backlog_is_embedded() {
    let db = Database::with_pipeline();
    db.worker();
    db.run("INSERT INTO ingest.documents (key, content) SELECT 'k' || n, repeat('Text number ' || n || '. ', 60) FROM generate_series(1, 300) n");
    wait_until("the backlog is being embedded", SOON, || {
        db.progress().embedded > 0
    });
    let start = Instant::now();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM ingest.search('Text number 7', 1)"),
        1
    );
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(
        db.progress().pending > 0,
        "the backlog was over too soon to tell"
    );
    db.run("TRUNCATE ingest.documents");
}

#[test]
fn many_sessions_ask_at_once() {
    let db = Database::with_pipeline();
    db.run(&texts::insert_passages());
    db.settle();
    let (cluster, name) = (db.cluster(), db.name());
    std::thread::scope(|scope| {
        for session in 0..16 {
            scope.spawn(move || {
                let mut client = cluster.client(name);
                for round in 0..4 {
                    let number = (session + round) % texts::QUESTIONS.len();
                    let row = client
                        .query_one(
                            "SELECT key FROM ingest.search($1, 1)",
                            &[&texts::QUESTIONS[number]],
                        )
                        .unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
                    assert_eq!(row.get::<_, String>(0), texts::PASSAGES[number].0);
                }
            });
        }
    });
}

/// Lets a stopped process go on, whatever becomes of the test.
struct Stopped(i32);

impl Stopped {
    fn new(pid: i32) -> Self {
        signal(pid, "STOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

#[test]
fn a_query_can_be_cancelled_while_nobody_answers() {
    // A cluster of its own: while one of its processes is stopped, a server creates and drops no databases.
    let cluster = Cluster::start(&[]);
    let db = Database::new_in(&cluster);
    db.run("SELECT ingest.create_pipeline(); SELECT ingest.embed('The model is loaded.')");
    let stopped = Stopped::new(db.worker());
    for sql in [
        "SELECT ingest.embed('a question')",
        "SELECT * FROM ingest.search('a question', 3)",
    ] {
        let start = Instant::now();
        let error = db.expect_error(&format!("SET statement_timeout = '200ms'; {sql}"));
        assert_eq!(error.code, "57014", "{error:?}");
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        db.run("RESET statement_timeout");
    }
    let mut other = db.connect();
    let pid: i32 = other
        .query_one("SELECT pg_backend_pid()", &[])
        .expect("a pid")
        .get(0);
    let error = std::thread::scope(|scope| {
        // Here, so that a failure below ends the wait of the thread as well.
        let _stopped = stopped;
        let asking = scope.spawn(move || other.batch_execute("SELECT ingest.embed('a question')"));
        wait_until("it waits", SOON, || {
            db.one(&format!("SELECT coalesce(state = 'active' AND wait_event_type = 'Extension', false) FROM pg_stat_activity WHERE pid = {pid}"))
        });
        db.run(&format!("SELECT pg_cancel_backend({pid})"));
        asking
            .join()
            .expect("the thread ends well")
            .expect_err("it is cancelled")
    });
    assert_eq!(ServerError::from(error).code, "57014");
    db.run("SELECT ingest.embed('a question')");
}
