//! Promise: through any OpenAI-compatible API every vector belongs to its text; whatever the provider does, nothing wrong
//! is stored, only the document at fault fails, and what needs a person says so; and nobody ever sees a key.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fake_api::{
    Behaviour, FakeApi, Fault, Latency, Limits, NotFinite, Place, Record, Request, RetryAfter,
    RetryHints, Verdict, vector_of,
};
use harness::remote::{KEY, MODEL, OTHER_KEY, behaviour};
use harness::*;
use postgres::NoTls;

/// An API that wants [`KEY`] and remembers the texts.
fn api() -> FakeApi {
    FakeApi::start(Behaviour {
        keep_texts: true,
        ..behaviour()
    })
}

/// The cluster of those tests in which requests are to time out.
fn impatient_cluster() -> &'static Cluster {
    static IMPATIENT: OnceLock<Cluster> = OnceLock::new();
    IMPATIENT.get_or_init(|| {
        Cluster::start(&[
            ("pg_ingest.request_timeout", "1500ms"),
            ("pg_ingest.connect_timeout", "1000ms"),
        ])
    })
}

/// Waits for the documents of a pipeline and sees that each is embedded, and rightly.
#[track_caller]
fn all_embedded(db: &Database, pipeline: &str, documents: usize) {
    let settled = format!(
        "SELECT ingest.wait({}, timeout => '60 s')",
        quoted(pipeline)
    );
    assert!(
        db.one::<bool>(&settled),
        "{:?} {:?}",
        db.progress_of(pipeline),
        db.rows_as_text("SELECT * FROM ingest.failures")
    );
    let all = documents as i64;
    let progress = db.progress_of(pipeline);
    assert_eq!(
        progress.counts(),
        (all, all, 0, 0),
        "{pipeline}: {:?}",
        db.rows_as_text("SELECT * FROM ingest.failures")
    );
    let chunks = db.check_vectors(&format!("ingest.{pipeline}_chunks"));
    assert_eq!(chunks as i64, progress.chunks, "{pipeline}");
}

#[track_caller]
fn same_vector(stored: &[f32], text: &str) {
    let expected = vector_of(text, stored.len());
    let same = stored
        .iter()
        .zip(&expected)
        .all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(same, "the vector is not that of {text:?}");
}

fn embed(db: &Database, text: &str, pipeline: &str) -> Vec<f32> {
    db.one(&format!(
        "SELECT ingest.embed({}, {})::real[]",
        quoted(text),
        quoted(pipeline)
    ))
}

/// The values of a field of every request's body.
fn field(records: &[Record], name: &str) -> Vec<Option<String>> {
    let value = |record: &Record| Some(record.fields.get(name)?.as_str()?.to_owned());
    records.iter().map(value).collect()
}

/// The whole of the server's log.
fn server_log(cluster: &Cluster) -> String {
    let bytes = std::fs::read(cluster.home().join("log")).expect("the server's log");
    String::from_utf8_lossy(&bytes).into_owned()
}

// --- Texts and vectors -------------------------------------------------------------------------------------------------

/// The argument that has a compatible server send base64.
const ASK_FOR_BASE64: &str = r#", request => '{"body": {"encoding_format": "base64"}}'"#;

const AZURE_MODEL: &str = "azure/text-embedding-3-small";

#[test]
fn every_vector_belongs_to_its_text_in_whatever_form_it_comes() {
    let db = Database::new();
    let key = db.cluster().write_key(KEY);
    for (strange, name) in [(false, "plain"), (true, "strange")] {
        let api = FakeApi::start(Behaviour {
            permute: strange,
            gzip: strange,
            ..behaviour()
        });
        for (provider, model, url, more, encoding) in [
            ("openai", MODEL, api.openai_url(), "", None),
            (
                "asked",
                MODEL,
                api.openai_url(),
                ASK_FOR_BASE64,
                Some("base64"),
            ),
            ("azure", AZURE_MODEL, api.url(), "", Some("base64")),
        ] {
            api.reset();
            let pipeline = format!("{name}_{provider}");
            db.run(&format!(
                "SELECT ingest.create_pipeline('{pipeline}', model => '{model}', base_url => '{url}', api_key => '{key}',
                                               batch_size => 7, chunk_tokens => 100{more});
                 SELECT ingest.pause('{pipeline}')"
            ));
            db.insert_prose(&pipeline, "short", 30, 8);
            // Each of several chunks, which go into requests with those of others.
            db.run(&format!(
                "INSERT INTO ingest.documents (pipeline, key, content)
                 SELECT '{pipeline}', 'long' || n, string_agg('word' || n * 1000 + w, ' ') FROM generate_series(1, 5) n,
                        generate_series(1, 200) w GROUP BY n"
            ));
            db.run(&format!("SELECT ingest.resume('{pipeline}')"));
            all_embedded(&db, &pipeline, 35);
            assert_eq!(
                db.one::<i64>(&format!(
                    "SELECT count(*) FROM ingest.{pipeline}_chunks c JOIN ingest.documents d ON d.key = c.document_key
                     WHERE d.pipeline = '{pipeline}' AND position(c.content IN d.content) = 0"
                )),
                0,
                "a chunk is not of its document"
            );
            assert_eq!(
                db.one::<i64>(&format!(
                    "SELECT count(*) FROM (
                         SELECT position(c.content IN d.content) AS at,
                                lag(position(c.content IN d.content)) OVER (PARTITION BY d.key ORDER BY c.chunk_no) AS before
                         FROM ingest.{pipeline}_chunks c JOIN ingest.documents d ON d.key = c.document_key
                         WHERE d.pipeline = '{pipeline}' AND d.key LIKE 'long%') AS c
                     WHERE at <= before"
                )),
                0,
                "chunks are out of order"
            );
            let requests = api.requests();
            assert!(requests.iter().all(|request| request.inputs <= 7));
            assert!(requests.iter().any(|request| request.inputs == 7));
            assert!(
                requests.iter().all(|request| request
                    .header("accept-encoding")
                    .is_some_and(|s| s.contains("gzip"))),
                "gzip is not asked for"
            );
            assert!(
                field(&requests, "encoding_format")
                    .iter()
                    .all(|asked| asked.as_deref() == encoding)
            );
            assert_eq!(api.repeated_inputs(), 0);
        }
    }
}

#[test]
fn a_lone_document_is_sent_at_once_and_alone() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("lone", &api, "");
    let mut latencies: Vec<Duration> = (0..9)
        .map(|number| {
            let start = Instant::now();
            db.run(&format!(
                "INSERT INTO ingest.documents (pipeline, key, content) VALUES ('lone', 'k{number}', 'Text number {number}.')"
            ));
            let there = format!("SELECT EXISTS (SELECT FROM ingest.lone_chunks WHERE document_key = 'k{number}')");
            while !db.one::<bool>(&there) {
                assert!(start.elapsed() < SOON, "nobody sends it");
            }
            start.elapsed()
        })
        .collect();
    latencies.sort();
    println!("commit to visible: median {:?}", latencies[4]);
    assert!(
        latencies[4] < Duration::from_secs(1),
        "the median is {:?}",
        latencies[4]
    );
    assert_eq!(api.arrived(), 9);
    assert!(api.requests().iter().all(|request| request.inputs == 1));
    all_embedded(&db, "lone", 9);
}

#[test]
fn a_backlog_fills_requests() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("full", &api, "");
    db.run("SELECT ingest.pause('full')");
    db.insert_prose("full", "d", 500, 30);
    db.run("SELECT ingest.resume('full')");
    all_embedded(&db, "full", 500);
    let inputs: Vec<usize> = api.requests().iter().map(|record| record.inputs).collect();
    println!("500 short documents in requests of {inputs:?}");
    assert!(inputs.len() <= 5, "{inputs:?}");
    // No request has more than batch_size says, and hardly one has less.
    api.reset();
    db.run("SELECT ingest.pause('full'); SELECT ingest.alter_pipeline('full', batch_size => 20)");
    db.insert_prose("full", "e", 500, 30);
    db.run("SELECT ingest.resume('full')");
    all_embedded(&db, "full", 1000);
    let inputs: Vec<usize> = api.requests().iter().map(|record| record.inputs).collect();
    assert!(inputs.iter().all(|inputs| *inputs <= 20), "{inputs:?}");
    assert!((25..=30).contains(&inputs.len()), "{inputs:?}");
}

#[test]
fn batch_size_and_concurrency_change_while_requests_are_in_flight() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    api.hold_answers();
    db.create_remote_pipeline("p", &api, "concurrency => 2, batch_size => 3");
    db.insert_prose("p", "d", 200, 5);
    wait_until("two are in flight", SOON, || api.in_flight() == 2);
    db.run("SELECT ingest.alter_pipeline('p', concurrency => 6)");
    wait_until("six are in flight", SOON, || api.in_flight() == 6);
    assert!(api.requests().iter().all(|request| request.inputs <= 3));
    // Fewer and larger ones from now on: those of eight inputs are made under the new definition.
    let now = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        api.on_request(move |request| {
            if request.texts.len() > 3 {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(15));
                now.fetch_sub(1, Ordering::SeqCst);
            }
            None
        });
    }
    db.run("SELECT ingest.alter_pipeline('p', concurrency => 1, batch_size => 8)");
    api.release_answers();
    all_embedded(&db, "p", 200);
    let inputs: Vec<usize> = api.requests().iter().map(|record| record.inputs).collect();
    println!("requests of {inputs:?}");
    assert!(
        inputs.iter().filter(|inputs| **inputs == 8).count() >= 15,
        "{inputs:?}"
    );
    assert_eq!(most.load(Ordering::SeqCst), 1, "concurrency is 1");
    assert!(api.max_in_flight() <= 6);
    assert_eq!(api.repeated_inputs(), 0);
}

#[test]
fn concurrency_holds_over_all_worker_processes() {
    let cluster = Cluster::start(&[("pg_ingest.workers", "3")]);
    let db = Database::new_in(&cluster);
    wait_until("three workers run", SOON, || db.worker_pids().len() == 3);
    let api = FakeApi::start(behaviour());
    api.hold_answers();
    db.create_remote_pipeline("p", &api, "concurrency => 5, batch_size => 2");
    let mut documents = 0;
    wait_until(
        "several workers hold documents and five requests are in flight",
        SOON,
        || {
            documents += 1;
            db.insert_prose("p", &format!("d{documents}-"), 1, 5);
            documents >= 30
            && api.in_flight() == 5
            && db.one::<bool>("SELECT count(*) > 1 AND sum(in_flight_requests) = 5 FROM ingest.workers WHERE in_flight_documents > 0")
        },
    );
    println!(
        "{:?}",
        db.rows_as_text("SELECT pid, in_flight_requests, in_flight_documents FROM ingest.workers")
    );
    api.set_latency(Latency::fixed(Duration::from_millis(20)));
    api.release_answers();
    db.insert_prose("p", "more", 100, 5);
    all_embedded(&db, "p", documents + 100);
    assert_eq!(api.max_in_flight(), 5);
    assert_eq!(api.repeated_inputs(), 0);
    // A worker that is gone gives its places back, and its documents are sent again.
    api.reset();
    api.hold_answers();
    db.insert_prose("p", "late", 40, 5);
    wait_until("five requests are in flight", SOON, || api.in_flight() == 5);
    db.run("SELECT pg_terminate_backend(pid) FROM ingest.workers WHERE in_flight_requests > 0");
    wait_until("others have sent them again", SOON, || {
        api.in_flight() == 5 && api.arrived() > 5
    });
    api.release_answers();
    all_embedded(&db, "p", documents + 140);
    assert!(api.repeated_inputs() <= 10, "{}", api.repeated_inputs());
}

// --- Providers ---------------------------------------------------------------------------------------------------------

#[test]
fn azure_gets_its_path_its_version_and_its_header() {
    let db = Database::new();
    let api = api();
    let key = db.cluster().write_key(KEY);
    for (pipeline, query, version) in [
        ("newest", "", "2024-10-21"),
        ("chosen", "?api-version=2023-05-15", "2023-05-15"),
    ] {
        api.reset();
        db.run(&format!(
            "SELECT ingest.create_pipeline('{pipeline}', model => 'azure/my-deployment', dimensions => 1536,
                                           base_url => '{}/{query}', api_key => '{key}')",
            api.url()
        ));
        db.insert_prose(pipeline, "d", 3, 5);
        all_embedded(&db, pipeline, 3);
        same_vector(&embed(&db, "a question", pipeline), "a question");
        for request in api.requests() {
            assert_eq!(
                request.path,
                format!("/openai/deployments/my-deployment/embeddings?api-version={version}")
            );
            assert_eq!(request.header("api-key"), Some(KEY));
            assert_eq!(request.header("authorization"), None);
        }
    }
}

#[test]
fn ollama_needs_no_key_and_gets_the_prefixes_of_its_model() {
    let db = Database::new();
    let api = FakeApi::start(Behaviour {
        keys: Vec::new(),
        dimensions: Some(768),
        keep_texts: true,
        ..behaviour()
    });
    db.run(&format!(
        "SELECT ingest.create_pipeline('o', model => 'ollama/nomic-embed-text', base_url => '{}')",
        api.url()
    ));
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('o', 'a', 'Lanterns.'), ('o', 'b', 'Bread.')");
    db.settle();
    for row in db.rows("SELECT content, embedding::real[] FROM ingest.o_chunks") {
        let (content, vector): (String, Vec<f32>) = (row.get(0), row.get(1));
        assert!(!content.contains("search_document"), "{content}");
        same_vector(&vector, &format!("search_document: {content}"));
    }
    assert_eq!(db.progress_of("o").counts(), (2, 2, 0, 0));
    same_vector(&embed(&db, "light", "o"), "search_query: light");
    for request in api.requests() {
        assert_eq!(request.path, "/api/embed");
        assert_eq!(request.key, None);
    }
    assert_eq!(
        field(&api.requests(), "model"),
        vec![Some("nomic-embed-text".to_owned()); api.arrived()]
    );
}

#[test]
fn a_base_url_is_understood_however_people_write_it() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    let key = db.cluster().write_key(KEY);
    for (number, tail) in ["", "/", "/embeddings", "/?tenant=7"].iter().enumerate() {
        let pipeline = format!("p{number}");
        db.create_pipeline_at(
            &pipeline,
            &format!("{}{tail}", api.openai_url()),
            &key,
            "max_attempts => 1",
        );
        db.insert_prose(&pipeline, "d", 2, 5);
        all_embedded(&db, &pipeline, 2);
        let path = &api.requests()[api.arrived() - 1].path;
        assert_eq!(path.split('?').next(), Some("/v1/embeddings"), "{tail}");
        assert_eq!(path.contains("tenant=7"), tail.contains("tenant"), "{path}");
    }
}

#[test]
fn what_a_user_adds_to_requests_arrives_for_documents_and_for_queries() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline(
        "p",
        &api,
        r#"request => '{"headers": {"X-Team": "search"}, "body": {"user": "u1", "nested": {"a": [1]}},
                        "document_body": {"input_type": "document"}, "query_body": {"input_type": "query"},
                        "document_prefix": "passage: ", "query_prefix": "query: "}'"#,
    );
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'a', 'Lanterns light the harbour.')");
    db.settle();
    let stored: Vec<f32> = db.one("SELECT embedding::real[] FROM ingest.p_chunks");
    same_vector(&stored, "passage: Lanterns light the harbour.");
    assert_eq!(
        db.one::<String>("SELECT content FROM ingest.p_chunks"),
        "Lanterns light the harbour."
    );
    same_vector(&embed(&db, "harbour", "p"), "query: harbour");
    db.run("SELECT * FROM ingest.search('harbour lights', 1, 'p')");
    let requests = api.requests();
    let kinds: Vec<Option<String>> = ["document", "query", "query"]
        .map(|kind| Some(kind.to_owned()))
        .into();
    assert_eq!(field(&requests, "input_type"), kinds);
    assert_eq!(requests[2].texts, ["query: harbour lights"]);
    for request in &requests {
        assert_eq!(request.header("x-team"), Some("search"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.key.as_deref(), Some(KEY));
        assert_eq!(request.fields["user"], "u1");
        assert_eq!(request.fields["nested"]["a"][0], 1);
    }
    // And changed while it runs.
    db.run(r#"SELECT ingest.alter_pipeline('p', request => '{"document_body": {"input_type": "passage"}}')"#);
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('p', 'b', 'Bread and butter.')");
    db.settle();
    let last = api.requests().pop().expect("a request");
    assert_eq!(last.fields["input_type"], "passage");
    assert_eq!(last.texts, ["Bread and butter."]);
    assert_eq!(last.header("x-team"), None);
}

#[test]
fn fewer_dimensions_are_asked_of_the_provider() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("short", &api, "dimensions => 256");
    db.insert_prose("short", "d", 4, 5);
    all_embedded(&db, "short", 4);
    assert_eq!(embed(&db, "a question", "short").len(), 256);
    for request in api.requests() {
        assert_eq!(request.fields["dimensions"], 256);
    }
}

#[test]
fn a_vector_too_long_for_an_index_is_stored_at_half_precision() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    let key = db.cluster().write_key(KEY);
    db.run(&format!(
        "SELECT ingest.create_pipeline('large', model => 'openai/text-embedding-3-large', base_url => '{}', api_key => '{key}',
                                       index => 'immediate')",
        api.openai_url()
    ));
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('large', 'a', 'Lanterns.'), ('large', 'b', 'Bread.')");
    db.settle();
    for row in db.rows("SELECT content, embedding::real[] FROM ingest.large_chunks") {
        let (content, vector): (String, Vec<f32>) = (row.get(0), row.get(1));
        let expected = vector_of(&content, 3072);
        assert!(
            vector
                .iter()
                .zip(&expected)
                .all(|(a, b)| (a - b).abs() < 1e-4)
        );
    }
    assert_eq!(
        db.all::<String>("SELECT key FROM ingest.search('Bread.', 1, 'large')"),
        ["b"]
    );
}

#[test]
fn a_search_finds_by_the_remote_models_vectors() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "");
    db.insert_prose("p", "d", 20, 6);
    all_embedded(&db, "p", 20);
    let wanted: String = db.one("SELECT content FROM ingest.documents WHERE key = 'd13'");
    let rows = db.rows(&format!(
        "SELECT key, similarity::float8 FROM ingest.search({}, 3, 'p')",
        quoted(&wanted)
    ));
    assert_eq!(rows[0].get::<_, String>(0), "d13");
    assert!(rows[0].get::<_, f64>(1) > 0.999 && rows[1].get::<_, f64>(1) < 0.5);
}

#[test]
fn a_query_can_be_given_up_while_the_provider_hangs() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "");
    same_vector(&embed(&db, "before", "p"), "before");
    for place in [Place::BeforeAnswer, Place::InBody] {
        api.clear_faults();
        api.on_request(move |_| Some(Fault::Hang(place)));
        db.run("SET statement_timeout = '300ms'");
        let start = Instant::now();
        let error = db.expect_error("SELECT ingest.embed('a question', 'p')");
        assert_eq!(error.code, "57014", "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(5));
        db.run("RESET statement_timeout");
        wait_until("the request is given up, too", SOON, || {
            api.in_flight() == 0
        });
        let token = db.with_client(|client| client.cancel_token());
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                wait_until("the query is on its way", SOON, || api.in_flight() == 1);
                token.cancel_query(NoTls).expect("a cancel");
            });
            db.expect_error("SELECT * FROM ingest.search('a question', 3, 'p')")
        });
        assert_eq!(error.code, "57014", "{error:?}");
        wait_until("the request is given up, too", SOON, || {
            api.in_flight() == 0
        });
    }
    api.clear_faults();
    same_vector(&embed(&db, "after", "p"), "after");
}

#[test]
fn queries_of_many_sessions_do_not_mix() {
    let db = Database::new();
    let api = FakeApi::start(Behaviour {
        latency: Latency::fixed(Duration::from_millis(30)),
        ..behaviour()
    });
    db.create_remote_pipeline("p", &api, "concurrency => 1");
    db.insert_prose("p", "d", 50, 5);
    let mut sessions: Vec<postgres::Client> = (0..8).map(|_| db.connect()).collect();
    std::thread::scope(|scope| {
        for (number, session) in sessions.iter_mut().enumerate() {
            scope.spawn(move || {
                for round in 0..5 {
                    let text = format!("question {round} of session {number}");
                    let row = session
                        .query_one("SELECT ingest.embed($1, 'p')::real[]", &[&text])
                        .expect("a vector");
                    same_vector(&row.get::<_, Vec<f32>>(0), &text);
                }
            });
        }
    });
    all_embedded(&db, "p", 50);
}

#[test]
fn a_query_goes_ahead_of_the_backlog() {
    let db = Database::new();
    let api = api();
    let limit = format!("tight {}", db.name());
    // A request a second.
    db.run(&format!(
        "SELECT ingest.set_limit('{limit}', rpm => 60, utilization => 1.0)"
    ));
    db.create_remote_pipeline(
        "p",
        &api,
        &format!("limits => '{limit}', batch_size => 1, chunk_tokens => 100"),
    );
    db.insert_prose("p", "d", 100, 5);
    wait_until("the backlog has used up the first moment", SOON, || {
        api.accepted() >= 2
    });
    for round in 0..2 {
        let before = api.arrived();
        let question = format!("question {round}");
        same_vector(&embed(&db, &question, "p"), &question);
        let requests = api.requests();
        let at = requests.iter().position(|r| r.texts == [question.as_str()]);
        // One more may have been let in while the question was on its way to the worker.
        assert!(at.is_some_and(|at| at <= before + 1), "{before} {at:?}");
    }
    assert!(db.progress_of("p").embedded < 50, "there was a backlog");
    assert_eq!(api.refused(), 0);
}

#[test]
fn a_query_waits_while_the_provider_is_busy() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "");
    for (header, value) in [
        ("retry-after-ms", "150"),
        ("x-ratelimit-reset-requests", "150ms"),
    ] {
        api.reset();
        api.clear_faults();
        api.on_request(move |request| {
            (request.number < 2).then(|| Fault::Answer {
                status: 429,
                headers: [(header, value), ("x-ratelimit-remaining-requests", "0")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                body: r#"{"error": {"message": "Slow down."}}"#.into(),
            })
        });
        same_vector(&embed(&db, "a question", "p"), "a question");
        assert_eq!(api.arrived(), 3);
        let requests = api.requests();
        for pair in requests.windows(2) {
            let waited = pair[1].arrived - pair[0].arrived;
            assert!(waited > Duration::from_millis(140), "{waited:?}");
        }
    }
    // What it does not wait for, it says: the provider's words, and no more than that.
    api.clear_faults();
    api.on_request(|_| Some(Fault::status(500)));
    let error = db.expect_error("SELECT ingest.embed('a question', 'p')");
    assert!(
        error.text().contains("The server was told to answer 500"),
        "{error:?}"
    );
    assert!(error.text().contains("127.0.0.1"), "{error:?}");
}

// --- Throttling --------------------------------------------------------------------------------------------------------

/// A provider that lets one request in every two seconds, and says so in one way or another.
fn busy_provider(hints: RetryHints) -> FakeApi {
    FakeApi::start(Behaviour {
        limits: Limits {
            rpm: Some(30),
            ..Limits::none()
        },
        retry_hints: hints,
        // Else the pipeline would keep to the limit that the first answer states.
        budget_headers: false,
        ..behaviour()
    })
}

#[test]
fn a_storm_of_refusals_costs_nobody_an_attempt() {
    let db = Database::new();
    let limit = |pipeline: &str| format!("{pipeline} {}", db.name());
    let milliseconds = RetryHints {
        milliseconds: true,
        ..RetryHints::none()
    };
    let storms: Vec<(&str, FakeApi)> = [
        ("storm_seconds", RetryHints::only(RetryAfter::Seconds)),
        ("storm_date", RetryHints::only(RetryAfter::Date)),
        ("storm_milliseconds", milliseconds),
        ("storm_silent", RetryHints::none()),
    ]
    .map(|(name, hints)| (name, busy_provider(hints)))
    .into();
    for (pipeline, api) in &storms {
        let limit = limit(pipeline);
        db.run(&format!(
            "SELECT ingest.set_limit('{limit}', rpm => 100000)"
        ));
        let more =
            format!("limits => '{limit}', concurrency => 4, batch_size => 5, max_attempts => 1");
        db.create_remote_pipeline(pipeline, api, &more);
        db.run(&format!(
            "INSERT INTO ingest.documents (pipeline, key, content)
             SELECT '{pipeline}', 'd' || n, 'Zymurgy, part ' || n FROM generate_series(1, 40) n"
        ));
    }
    for (pipeline, api) in &storms {
        let limit = limit(pipeline);
        wait_until("the view shows the cool-down", SOON, || {
            db.one::<Option<bool>>(&format!("SELECT cooling_down_until > clock_timestamp() FROM ingest.limits WHERE name = '{limit}'"))
                == Some(true)
        });
        wait_until("the pipeline is cooling down", SOON, || {
            db.progress_of(pipeline).state == "cooling_down"
        });
        wait_until("there is a storm", SOON, || api.refused() >= 4);
        assert_eq!(
            db.one::<i64>("SELECT count(*) FROM ingest.queue WHERE attempts > 0"),
            0
        );
        api.set_limits(Limits::none());
    }
    for (pipeline, api) in &storms {
        all_embedded(&db, pipeline, 40);
        let refused = api.count(Verdict::RateLimited);
        println!("{pipeline}: {refused} refusals");
        assert!(refused <= 40, "{pipeline} was refused {refused} times");
        assert_eq!(
            db.one::<i64>(&format!(
                "SELECT rate_limited FROM ingest.limits WHERE name = '{}'",
                limit(pipeline)
            )),
            refused as i64
        );
        assert!(db.one::<bool>(&format!(
            "SELECT cooling_down_until IS NULL FROM ingest.limits WHERE name = '{}'",
            limit(pipeline)
        )));
        each_refusal_is_in_the_log_once(&db, pipeline, api);
        if *pipeline != "storm_silent" {
            nobody_came_too_early(pipeline, api);
        }
    }
    assert!(
        !server_log(db.cluster()).contains("Zymurgy"),
        "the log holds content"
    );
    the_key_is_nowhere(&db, &[]);
}

fn each_refusal_is_in_the_log_once(db: &Database, pipeline: &str, api: &FakeApi) {
    let log = server_log(db.cluster());
    for record in api.requests() {
        let id = format!(
            "pipeline \"{pipeline}\": request req_{:032x} ",
            record.number
        );
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
        let refused = record.verdict == Verdict::RateLimited;
        assert_eq!(lines.len(), usize::from(refused), "{lines:?}");
        for line in lines {
            assert!(line.contains("LOG:"), "{line}");
            for part in [" inputs)", "HTTP 429", "attempt ", "waits ", " s"] {
                assert!(line.contains(part), "{part:?} is not in {line}");
            }
        }
    }
}

/// Between a refusal and the time it asked for (some two seconds), nothing was sent but what was on its way already.
#[track_caller]
fn nobody_came_too_early(pipeline: &str, api: &FakeApi) {
    let requests = api.requests();
    for refusal in requests
        .iter()
        .filter(|r| r.verdict == Verdict::RateLimited)
    {
        for other in &requests {
            let after = other.arrived.saturating_duration_since(refusal.arrived);
            assert!(
                after < Duration::from_millis(400) || after > Duration::from_millis(900),
                "{pipeline}: {after:?} after request {} was refused came {}",
                refusal.number,
                other.number
            );
        }
    }
}

#[test]
fn what_a_provider_quotes_of_a_document_is_not_logged() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    api.on_request(|request| {
        let status = match request.number {
            0 => 429,
            1 => 500,
            _ => return None,
        };
        Some(Fault::Answer {
            status,
            headers: vec![("retry-after-ms".into(), "100".into())],
            body: format!(
                r#"{{"error": {{"message": "Not now: {}"}}}}"#,
                request.texts[0]
            ),
        })
    });
    db.create_remote_pipeline("quoting", &api, "");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) VALUES ('quoting', 'a', 'Xylography for beginners.')");
    all_embedded(&db, "quoting", 1);
    let log = server_log(db.cluster());
    let told = log
        .lines()
        .filter(|line| line.contains("pipeline \"quoting\": request req_"));
    assert_eq!(told.count(), 2);
    assert!(!log.contains("Xylography"), "the log holds content");
}

/// The value of the header by which rules tell pipelines apart.
fn case_of(request: &Request) -> &str {
    request.header("x-case").unwrap_or_default()
}

/// The argument that sets that header.
fn case(name: &str) -> String {
    format!(r#"request => '{{"headers": {{"x-case": "{name}"}}}}'"#)
}

#[test]
fn one_refusal_makes_everybody_on_the_limit_wait_in_every_database() {
    let [db, other] = [Database::new(), Database::new()];
    let api = FakeApi::start(behaviour());
    let wait = Duration::from_secs(2);
    api.on_request(move |request| (request.number == 0).then(|| Fault::rate_limited(wait)));
    let limit = format!("shared {}", db.name());
    for db in [&db, &other] {
        db.run(&format!(
            "SELECT ingest.set_limit('{limit}', rpm => 10000); SELECT ingest.set_limit('own {}', rpm => 10000)",
            db.name()
        ));
    }
    let create = |db: &Database, name: &str, limit: &str| {
        db.create_remote_pipeline(name, &api, &format!("limits => '{limit}', {}", case(name)));
    };
    create(&db, "refused", &limit);
    create(&db, "neighbour", &limit);
    create(&other, "far", &limit);
    create(&other, "stranger", &format!("own {}", other.name()));
    // The workers know their pipelines before anything is refused.
    for (db, pipeline) in [(&other, "far"), (&db, "neighbour")] {
        let asked = db.try_run(&format!(
            "SELECT ingest.pause('{pipeline}'); SELECT ingest.resume('{pipeline}')"
        ));
        asked.expect("both succeed");
    }
    db.insert_prose("refused", "d", 3, 5);
    for db in [&db, &other] {
        wait_until("the limit is cooling down", SOON, || {
            db.one::<Option<bool>>(&format!("SELECT cooling_down_until > clock_timestamp() FROM ingest.limits WHERE name = '{limit}'"))
                == Some(true)
        });
    }
    db.insert_prose("neighbour", "d", 3, 5);
    other.insert_prose("far", "d", 3, 5);
    other.insert_prose("stranger", "d", 3, 5);
    wait_until("all wait together", SOON, || {
        [(&db, "refused"), (&db, "neighbour"), (&other, "far")]
            .iter()
            .all(|(db, pipeline)| db.progress_of(pipeline).state == "cooling_down")
    });
    for (db, pipeline) in [
        (&db, "refused"),
        (&db, "neighbour"),
        (&other, "far"),
        (&other, "stranger"),
    ] {
        all_embedded(db, pipeline, 3);
    }
    let requests = api.requests();
    let first = |name: &str| {
        let of_name = |r: &&Record| r.header("x-case") == Some(name) && r.status == Some(200);
        requests.iter().find(of_name).expect("a request").arrived
    };
    let refused = requests[0].arrived;
    for name in ["refused", "neighbour", "far"] {
        let waited = first(name).saturating_duration_since(refused);
        assert!(
            waited > wait - Duration::from_millis(20),
            "{name} waited {waited:?}"
        );
        assert!(first("stranger") < first(name));
    }
    assert_eq!(
        other.one::<i64>(&format!(
            "SELECT rate_limited FROM ingest.limits WHERE name = '{limit}'"
        )),
        1
    );
}

// --- What needs a person -----------------------------------------------------------------------------------------------

#[test]
fn a_spent_quota_or_a_refused_key_blocks_and_fails_nothing() {
    let db = Database::new();
    let forbidden = |_: &Request| {
        Some(Fault::Answer {
            status: 403,
            headers: Vec::new(),
            body: r#"{"error": {"message": "Your project may not use this model."}}"#.into(),
        })
    };
    let cases: Vec<(&str, &str, FakeApi)> = [
        ("quota", "exceeded your current quota"),
        ("key", "Incorrect API key provided"),
        ("forbidden", "Your project may not use this model."),
        ("slow", "exceeded your current quota"),
    ]
    .map(|(name, words)| (name, words, FakeApi::start(behaviour())))
    .into();
    for (pipeline, _, api) in &cases {
        match *pipeline {
            "key" => api.accept_key(OTHER_KEY),
            "forbidden" => api.on_request(forbidden),
            _ => api.set_quota_exhausted(true),
        }
        db.create_remote_pipeline(
            pipeline,
            api,
            "concurrency => 2, batch_size => 5, max_attempts => 1",
        );
        db.insert_prose(pipeline, "d", 40, 5);
    }
    for (pipeline, words, api) in &cases {
        wait_until("the pipeline is blocked", SOON, || {
            let progress = db.progress_of(pipeline);
            progress.state == "blocked" && progress.in_flight == 0
        });
        let progress = db.progress_of(pipeline);
        assert_eq!(progress.counts(), (40, 0, 40, 0));
        let error = progress.last_error.expect("it says why");
        assert!(error.contains(words), "{error}");
        assert_eq!(
            db.one::<i64>(
                "SELECT count(*) FROM ingest.queue WHERE attempts > 0 OR retry_at IS NOT NULL"
            ),
            0
        );
        assert!(api.arrived() <= 8, "{pipeline}: {} requests", api.arrived());
        if *pipeline != "slow" {
            let error =
                db.expect_error(&format!("SELECT ingest.embed('a question', '{pipeline}')"));
            assert!(error.text().contains(words), "{error:?}");
        }
        api.accept_key(KEY);
        api.clear_faults();
        api.set_quota_exhausted(false);
        if *pipeline != "slow" {
            let start = Instant::now();
            db.run(&format!("SELECT ingest.resume('{pipeline}')"));
            all_embedded(&db, pipeline, 40);
            // By itself it would have tried again 10 s after the block.
            assert!(
                start.elapsed() < Duration::from_secs(6),
                "{:?}",
                start.elapsed()
            );
            let progress = db.progress_of(pipeline);
            assert_eq!(
                (progress.state.as_str(), progress.last_error),
                ("idle", None)
            );
        }
    }
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
    // Nobody resumed this one.
    all_embedded(&db, "slow", 40);
    the_key_is_nowhere(&db, &[]);
}

/// Never blocked, not even for a moment.
#[track_caller]
fn was_never_blocked(db: &Database, pipeline: &str) {
    let words = format!("pipeline \"{pipeline}\" is blocked");
    let log = server_log(db.cluster());
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&words)).collect();
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn a_rotated_key_is_read_anew_without_a_block() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    let file = format!("key-rotated-{}", db.name());
    let key = db.cluster().write_key_as(&file, KEY);
    api.set_latency(Latency::fixed(Duration::from_millis(20)));
    db.create_pipeline_at(
        "rotated",
        &api.openai_url(),
        &key,
        "concurrency => 4, batch_size => 5, max_attempts => 1",
    );
    db.insert_prose("rotated", "d", 300, 5);
    wait_until("some are embedded", SOON, || {
        db.progress_of("rotated").embedded > 20
    });
    db.cluster().write_key_as(&file, OTHER_KEY);
    api.accept_key(OTHER_KEY);
    all_embedded(&db, "rotated", 300);
    let refused = api.count(Verdict::Rejected);
    println!("{refused} requests with the old key");
    assert!((1..=8).contains(&refused), "{refused}");
    was_never_blocked(&db, "rotated");
    // And back, while nothing but queries is asked.
    db.cluster().write_key_as(&file, KEY);
    api.accept_key(KEY);
    same_vector(&embed(&db, "a question", "rotated"), "a question");
    db.insert_prose("rotated", "e", 5, 5);
    all_embedded(&db, "rotated", 305);
    // A key that lies elsewhere is used from the next request on.
    let elsewhere = db.cluster().write_key_as(&format!("{file}-2"), OTHER_KEY);
    api.accept_key(OTHER_KEY);
    api.reset();
    db.run(&format!(
        "SELECT ingest.alter_pipeline('rotated', api_key => '{elsewhere}')"
    ));
    db.insert_prose("rotated", "f", 5, 5);
    all_embedded(&db, "rotated", 310);
    assert_eq!(api.count(Verdict::Rejected), 0);
    was_never_blocked(&db, "rotated");
    the_key_is_nowhere(&db, &[]);
}

#[test]
fn a_key_that_is_not_there_yet_blocks_until_it_is() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    let file = format!("key-late-{}", db.name());
    let path = db.cluster().home().join(&file);
    db.create_pipeline_at(
        "late",
        &api.openai_url(),
        &format!("file:{}", path.display()),
        "max_attempts => 1",
    );
    db.insert_prose("late", "d", 10, 5);
    wait_until("the pipeline is blocked", SOON, || {
        db.progress_of("late").state == "blocked"
    });
    let progress = db.progress_of("late");
    assert_eq!(progress.counts(), (10, 0, 10, 0));
    let error = progress.last_error.expect("it says why");
    assert!(
        error.contains(&file) && error.contains("No such file"),
        "{error}"
    );
    let doctor: Vec<String> =
        db.all("SELECT detail FROM ingest.doctor() WHERE NOT ok AND detail LIKE '%key-late%'");
    assert!(!doctor.is_empty());
    let query = db.expect_error("SELECT ingest.embed('a question', 'late')");
    assert!(
        query.text().contains(&file),
        "the query does not say why: {query:?}"
    );
    assert_eq!(api.arrived(), 0);
    db.cluster().write_key_as(&file, KEY);
    let start = Instant::now();
    db.run("SELECT ingest.resume('late')");
    all_embedded(&db, "late", 10);
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(db.progress_of("late").last_error, None);
    same_vector(&embed(&db, "a question", "late"), "a question");
}

// --- Attempts ----------------------------------------------------------------------------------------------------------

/// What befalls the requests of a pipeline, and what becomes of its documents if they are not tried again.
struct Trouble {
    name: &'static str,
    class: &'static str,
    status: Option<i32>,
    says: &'static str,
}

/// Everything that may be over a moment later.
const TROUBLES: &str = "
    internal_error   unavailable   500  The server was told to answer 500
    page             unavailable   503  Service Temporarily Unavailable
    gateway          unavailable   504  The server was told to answer 504
    too_slow         timeout       408  The server was told to answer 408
    silence          timeout       -    did not answer in full within 1.5s
    silence_in_body  timeout       -    did not answer in full within 1.5s
    trickle          timeout       -    did not answer in full within 1.5s
    nobody           unavailable   -    no connection to 127.0.0.1
    closed           unavailable   -    connection to 127.0.0.1
    closed_in_body   unavailable   200  connection to 127.0.0.1
    reset            unavailable   -    connection to 127.0.0.1
    reset_in_body    unavailable   200  connection to 127.0.0.1
    truncated        bad_response  200  ends in the middle
    too_few          bad_response  200  vectors for 
    too_many         bad_response  200  vectors for 
    duplicate_index  bad_response  200  more than one vector with index 0
    huge             bad_response  200  longer than
    bomb             bad_response  200  longer than
    empty            bad_response  200  empty
    no_json          bad_response  200  not JSON
    other_json       bad_response  200  not a list of vectors
    page_with_200    bad_response  200  web page
    nan_null         bad_response  200  null
    nan_text         bad_response  200  not a list of vectors
    nan_word         bad_response  200  not JSON
    nan_base64       bad_response  200  not finite
    inf_word         bad_response  200  not JSON
    inf_number       bad_response  200  out of range
    inf_large        bad_response  200  not finite
    inf_base64       bad_response  200  not finite";

/// The fault of that name.
fn fault(name: &str) -> Fault {
    let page = |status| Fault::Answer {
        status,
        headers: vec![("content-type".into(), "text/html".into())],
        body: "<html><title>Service Temporarily Unavailable</title><p>nginx</html>".into(),
    };
    match name {
        "internal_error" => Fault::status(500),
        "page" => page(503),
        "gateway" => Fault::status(504),
        "too_slow" => Fault::status(408),
        "silence" => Fault::Hang(Place::BeforeAnswer),
        "silence_in_body" => Fault::Hang(Place::InBody),
        "trickle" => Fault::Trickle(Duration::from_millis(20)),
        "closed" => Fault::Close(Place::BeforeAnswer),
        "closed_in_body" => Fault::Close(Place::InBody),
        "reset" => Fault::Reset(Place::BeforeAnswer),
        "reset_in_body" => Fault::Reset(Place::InBody),
        "truncated" => Fault::TruncatedJson,
        "too_few" => Fault::TooFew,
        "too_many" => Fault::TooMany,
        "duplicate_index" => Fault::DuplicateIndex,
        "huge" => Fault::HugeBody(8 << 20),
        "bomb" => Fault::GzipBomb(1 << 30),
        "empty" => Fault::body(""),
        "no_json" => Fault::body("It works!"),
        "other_json" => Fault::body(r#"{"data": "later"}"#),
        "page_with_200" => page(200),
        "nan_null" => Fault::NotFinite(NotFinite::NanAsNull),
        "nan_text" => Fault::NotFinite(NotFinite::NanAsText),
        "nan_word" => Fault::NotFinite(NotFinite::NanAsWord),
        "nan_base64" => Fault::NotFinite(NotFinite::NanInBase64),
        "inf_word" => Fault::NotFinite(NotFinite::InfinityAsWord),
        "inf_number" => Fault::NotFinite(NotFinite::InfinityAsNumber),
        "inf_large" => Fault::NotFinite(NotFinite::TooLargeForFloat),
        "inf_base64" => Fault::NotFinite(NotFinite::InfinityInBase64),
        _ => panic!("there is no fault {name}"),
    }
}

fn troubles() -> Vec<Trouble> {
    let columns = |line: &'static str| {
        let (name, rest) = line.split_once(' ')?;
        let (class, rest) = rest.trim_start().split_once(' ')?;
        let (status, says) = rest.trim_start().split_once(' ')?;
        Some(Trouble {
            name,
            class,
            status: status.parse().ok(),
            says: says.trim_start(),
        })
    };
    let lines = TROUBLES.trim().lines();
    lines.filter_map(|line| columns(line.trim())).collect()
}

/// Lets its trouble befall every request of a pipeline that bears a trouble's name, until the switch is turned off.
fn make_trouble(api: &FakeApi) -> Arc<AtomicBool> {
    let on = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&on);
    api.on_request(move |request| {
        let name = case_of(request);
        (name != "nobody" && still.load(Ordering::SeqCst)).then(|| fault(name))
    });
    on
}

#[test]
fn whatever_goes_wrong_with_an_answer_nothing_wrong_is_stored() {
    let db = Database::new_in(impatient_cluster());
    let api = FakeApi::start(behaviour());
    let on = make_trouble(&api);
    let nobody = FakeApi::start(behaviour()).openai_url();
    let key = db.cluster().write_key(KEY);
    let troubles = troubles();
    assert_eq!(troubles.len(), 30);
    for Trouble { name, .. } in &troubles {
        let url = match *name {
            "nobody" => nobody.clone(),
            _ => api.openai_url(),
        };
        let more = format!("max_attempts => 1, chunk_tokens => 20, {}", case(name));
        db.create_pipeline_at(name, &url, &key, &more);
        // Several chunks each, so that an answer holds several vectors.
        db.insert_prose(name, "quokka ", 3, 40);
    }
    db.settle();
    let mut wrong = Vec::new();
    for expected in &troubles {
        let name = expected.name;
        let right: i64 = db.one(&format!(
            "SELECT count(*) FROM ingest.failures
             WHERE pipeline = '{name}' AND error_class = '{}' AND http_status IS NOT DISTINCT FROM {}
               AND position({} IN message) > 0 AND attempts = 1 AND retryable",
            expected.class,
            expected.status.map_or("NULL".into(), |status| status.to_string()),
            quoted(expected.says),
        ));
        if right != 3 {
            let failures = format!("SELECT * FROM ingest.failures WHERE pipeline = '{name}'");
            let got = db.rows_as_text(&failures);
            wrong.push(format!("{name}: {got:?} {:?}", db.progress_of(name)));
        }
        let stored: i64 = db.one(&format!("SELECT count(*) FROM ingest.{name}_chunks"));
        assert_eq!(stored, 0, "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let words: i64 = db.one("SELECT count(*) FROM ingest.failures WHERE message LIKE '%quokka%'");
    assert_eq!(words, 0, "a message holds content");
    // The worker has survived it all, and they come back when somebody asks for it.
    on.store(false, Ordering::SeqCst);
    for Trouble { name, .. } in &troubles {
        // A loaded machine may be slow once more.
        db.run(&format!(
            "SELECT ingest.alter_pipeline('{name}', max_attempts => 10, base_url => '{}')",
            api.openai_url()
        ));
    }
    assert_eq!(db.one::<i64>("SELECT ingest.retry()"), 90);
    for Trouble { name, .. } in &troubles {
        all_embedded(&db, name, 3);
    }
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
    the_key_is_nowhere(&db, &[]);
}

#[test]
fn what_passes_is_tried_again_until_it_has_passed() {
    let db = Database::new_in(impatient_cluster());
    let api = FakeApi::start(behaviour());
    let on = make_trouble(&api);
    let names = [
        "internal_error",
        "page",
        "silence",
        "reset_in_body",
        "truncated",
        "too_few",
        "nan_null",
    ];
    for name in names {
        db.create_remote_pipeline(name, &api, &format!("max_attempts => 20, {}", case(name)));
        db.insert_prose(name, "d", 4, 5);
    }
    wait_until("every document has failed once", SOON, || {
        db.one("SELECT count(*) = 28 AND bool_and(attempts > 0) FROM ingest.queue")
    });
    assert!(db.one::<bool>("SELECT count(retry_at) > 0 AND max(retry_at) < clock_timestamp() + interval '61 s' FROM ingest.queue"));
    assert!(db.one::<bool>("SELECT bool_and(state = 'running') FROM ingest.progress"));
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
    on.store(false, Ordering::SeqCst);
    for name in names {
        all_embedded(&db, name, 4);
        let line = format!("pipeline \"{name}\": request ");
        let told = |l: &str| l.contains(&line) && l.contains("attempt 1 of 20");
        let log = server_log(db.cluster());
        assert!(log.lines().any(told), "the log is silent about {name}");
    }
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
}

#[test]
fn innocent_documents_outlive_random_faults_with_all_their_chunks() {
    let db = Database::new_in(impatient_cluster());
    let api = FakeApi::start(behaviour());
    api.fail_share(1, 0.10, Fault::status(503));
    api.fail_share(2, 0.05, Fault::Reset(Place::InBody));
    api.fail_share(3, 0.05, Fault::DuplicateIndex);
    api.fail_share(4, 0.05, Fault::rate_limited(Duration::from_millis(1)));
    db.create_remote_pipeline(
        "p",
        &api,
        "batch_size => 10, max_attempts => 15, chunk_tokens => 30",
    );
    db.insert_prose("p", "d", 100, 80);
    all_embedded(&db, "p", 100);
    let expected: i64 = db.one(
        "SELECT count(*) FROM ingest.documents d CROSS JOIN LATERAL ingest.split(d.content, 'p') s
         JOIN ingest.p_chunks c ON c.document_key = d.key AND c.chunk_no = s.chunk_no AND c.content = s.content",
    );
    assert!(expected > 250, "{expected} chunks");
    assert_eq!(db.progress_of("p").chunks, expected);
}

#[test]
fn an_answer_of_other_dimensions_blocks_and_says_both_figures() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "max_attempts => 1");
    api.on_request(|_| Some(Fault::Dimensions(1024)));
    db.insert_prose("p", "d", 5, 5);
    wait_until("the pipeline is blocked", SOON, || {
        let progress = db.progress_of("p");
        progress.state == "blocked" && progress.in_flight == 0
    });
    let progress = db.progress_of("p");
    assert_eq!(progress.counts(), (5, 0, 5, 0));
    let error = progress.last_error.expect("it says why");
    assert!(error.contains("1024") && error.contains("1536"), "{error}");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM ingest.p_chunks"), 0);
    let query = db.expect_error("SELECT ingest.embed('a question', 'p')");
    assert!(query.text().contains("1024"), "{query:?}");
    api.clear_faults();
    db.run("SELECT ingest.resume('p')");
    all_embedded(&db, "p", 5);
}

// --- A bad document harms only itself ----------------------------------------------------------------------------------

#[test]
fn a_poison_text_fails_alone_after_few_requests() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    api.refuse_text("poison");
    db.create_remote_pipeline("p", &api, "max_attempts => 1");
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "d", 200, 5);
    db.run("UPDATE ingest.documents SET content = 'A poison text.' WHERE key = 'd77'");
    db.run("SELECT ingest.resume('p')");
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (200, 199, 0, 1));
    assert_eq!(db.check_vectors("ingest.p_chunks"), 199);
    let rows = db.rows(
        "SELECT key, error_class, http_status, attempts, retryable, message FROM ingest.failures",
    );
    let row = &rows[0];
    assert_eq!(row.get::<_, String>(0), "d77");
    assert_eq!(row.get::<_, String>(1), "invalid_request");
    assert_eq!(row.get::<_, Option<i32>>(2), Some(400));
    assert_eq!((row.get::<_, i32>(3), row.get::<_, bool>(4)), (1, false));
    let message: String = row.get(5);
    assert!(message.contains("'$.input' is invalid"), "{message}");
    // Two for each of the eight halvings, and those that 200 documents take anyway.
    println!("{} requests", api.arrived());
    assert!(api.arrived() <= 16 + 4, "{} requests", api.arrived());
    // Mended, it is embedded.
    db.run("UPDATE ingest.documents SET content = 'A wholesome text.' WHERE key = 'd77'");
    all_embedded(&db, "p", 200);
    // One bad chunk is its whole document's failure, of which nothing is stored.
    db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 20)");
    db.settle();
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', 'long' || n, string_agg(CASE WHEN n = 2 AND w = 150 THEN 'poison' ELSE 'word' || w END, ' ')
         FROM generate_series(1, 3) n, generate_series(1, 300) w GROUP BY n",
    );
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (203, 202, 0, 1));
    assert_eq!(
        db.all::<String>("SELECT key FROM ingest.failures"),
        ["long2"]
    );
    assert_eq!(
        db.all::<String>("SELECT DISTINCT document_key FROM ingest.p_chunks WHERE document_key LIKE 'long%' ORDER BY 1"),
        ["long1", "long3"]
    );
}

#[test]
fn a_text_that_is_too_long_for_the_provider_fails_alone() {
    let db = Database::new();
    let api = FakeApi::start(Behaviour {
        max_input_tokens: 60,
        ..behaviour()
    });
    db.create_remote_pipeline("p", &api, "");
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "d", 50, 5);
    db.insert_prose("p", "long", 1, 100);
    db.run("SELECT ingest.resume('p')");
    db.settle();
    assert_eq!(db.progress_of("p").counts(), (51, 50, 0, 1));
    let row = &db
        .rows("SELECT key, error_class, http_status, retryable, message FROM ingest.failures")[0];
    assert_eq!(row.get::<_, String>(0), "long1");
    assert_eq!(row.get::<_, String>(1), "too_large");
    assert_eq!(row.get::<_, Option<i32>>(2), Some(400));
    assert!(!row.get::<_, bool>(3));
    let message: String = row.get(4);
    assert!(
        message.contains("maximum context length is 60"),
        "{message}"
    );
    // Split smaller, it goes through.
    db.run("SELECT ingest.alter_pipeline('p', chunk_tokens => 50)");
    all_embedded(&db, "p", 51);
}

#[test]
fn a_request_that_is_too_large_as_a_whole_is_halved() {
    let db = Database::new();
    for (name, change) in [
        (
            "inputs",
            (|b: &mut Behaviour| b.max_inputs = 16) as fn(&mut Behaviour),
        ),
        ("tokens", |b: &mut Behaviour| b.max_request_tokens = 200),
    ] {
        let api = FakeApi::start(behaviour());
        api.change(change);
        db.create_remote_pipeline(name, &api, "max_attempts => 1");
        db.run(&format!("SELECT ingest.pause('{name}')"));
        db.insert_prose(name, "d", 100, 5);
        db.run(&format!("SELECT ingest.resume('{name}')"));
        all_embedded(&db, name, 100);
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let db = Database::new();
    let (api, elsewhere) = (FakeApi::start(behaviour()), FakeApi::start(behaviour()));
    let target = elsewhere.openai_url() + "/embeddings";
    api.on_request(move |_| Some(Fault::redirect(&target)));
    db.create_remote_pipeline("p", &api, "max_attempts => 1");
    db.insert_prose("p", "d", 3, 5);
    wait_until("the pipeline is blocked", SOON, || {
        db.progress_of("p").state == "blocked"
    });
    let error = db.progress_of("p").last_error.expect("it says why");
    assert!(
        error.contains("redirect") && error.contains("base_url"),
        "{error}"
    );
    let query = db.expect_error("SELECT ingest.embed('a question', 'p')");
    assert!(query.text().contains("redirect"), "{query:?}");
    assert_eq!((elsewhere.arrived(), elsewhere.connections()), (0, 0));
    db.run(&format!(
        "SELECT ingest.alter_pipeline('p', base_url => '{}'); SELECT ingest.resume('p')",
        elsewhere.openai_url()
    ));
    all_embedded(&db, "p", 3);
}

// --- Changes while requests are in flight ------------------------------------------------------------------------------

/// Notes every content that a target is given, whether or not it stays.
fn note_what_is_stored(db: &Database, table: &str) {
    db.run(&format!(
        "CREATE TABLE IF NOT EXISTS public.stored (content text);
         CREATE OR REPLACE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.stored VALUES (NEW.content); RETURN NEW; END';
         CREATE TRIGGER note BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION public.note()"
    ));
}

#[test]
fn an_answer_for_an_old_content_is_thrown_away() {
    let db = Database::new();
    let api = api();
    db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 20");
    note_what_is_stored(&db, "ingest.p_chunks");
    api.hold_answers();
    db.run(
        "INSERT INTO ingest.documents (pipeline, key, content)
         SELECT 'p', k, 'Old text of ' || k FROM unnest(ARRAY['changed', 'deleted', 'moved', 'twice', 'kept']) k",
    );
    wait_until("all are in flight", SOON, || api.in_flight() == 5);
    db.run(
        "UPDATE ingest.documents SET content = 'New text.' WHERE key = 'changed';
         DELETE FROM ingest.documents WHERE key = 'deleted';
         UPDATE ingest.documents SET key = 'elsewhere' WHERE key = 'moved';
         UPDATE ingest.documents SET content = 'Second text.' WHERE key = 'twice'",
    );
    wait_until("the new contents are in flight, too", SOON, || {
        api.in_flight() >= 7
    });
    db.run("UPDATE ingest.documents SET content = 'Third text.' WHERE key = 'twice'");
    api.release_answers();
    all_embedded(&db, "p", 4);
    db.quiesce();
    let contents: Vec<String> =
        db.all("SELECT document_key || ': ' || content FROM ingest.p_chunks ORDER BY 1");
    assert_eq!(
        contents,
        [
            "changed: New text.",
            "elsewhere: Old text of moved",
            "kept: Old text of kept",
            "twice: Third text."
        ]
    );
    let ever: Vec<String> = db.all("SELECT DISTINCT content FROM public.stored ORDER BY 1");
    for old in [
        "Old text of changed",
        "Old text of deleted",
        "Old text of twice",
        "Second text.",
    ] {
        assert!(
            !ever.iter().any(|content| content == old),
            "{old} was stored"
        );
    }
}

#[test]
fn a_pipeline_dropped_with_requests_in_flight_leaves_nothing() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("stays", &api, "");
    db.create_remote_pipeline("p", &api, "batch_size => 2, concurrency => 3");
    let worker = db.worker();
    api.hold_answers();
    db.insert_prose("p", "d", 30, 5);
    wait_until("requests are in flight", SOON, || api.in_flight() == 3);
    let start = Instant::now();
    db.run("SELECT ingest.drop_pipeline('p', drop_target => true)");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "it waited for the network"
    );
    // One of the same name is another one: the answers for the old one's documents are not its own.
    db.create_remote_pipeline("p", &api, "batch_size => 2, concurrency => 3");
    note_what_is_stored(&db, "ingest.p_chunks");
    db.run("INSERT INTO ingest.documents (pipeline, key, content) SELECT 'p', 'd' || n, 'New ' || n FROM generate_series(1, 6) n");
    wait_until("its requests are in flight", SOON, || api.in_flight() == 6);
    api.release_answers();
    all_embedded(&db, "p", 6);
    db.insert_prose("stays", "d", 5, 5);
    all_embedded(&db, "stays", 5);
    db.quiesce();
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM public.stored WHERE content NOT LIKE 'New%'"),
        0
    );
    db.run("SELECT ingest.drop_pipeline('p', drop_target => true)");
    wait_until("the worker holds nothing", SOON, || {
        db.one("SELECT bool_and(in_flight_documents = 0 AND in_flight_requests = 0) FROM ingest.workers WHERE database = current_database()")
    });
    for table in ["queue", "counter", "counter_delta"] {
        let left = format!(
            "SELECT count(*) FROM ingest.{table} t WHERE NOT EXISTS (SELECT FROM ingest.pipeline p WHERE p.pipeline_id = t.pipeline_id)"
        );
        assert_eq!(db.one::<i64>(&left), 0, "{table}");
    }
    for table in ["documents", "failures"] {
        let left = format!("SELECT count(*) FROM ingest.{table} WHERE pipeline = 'p'");
        assert_eq!(db.one::<i64>(&left), 0, "{table}");
    }
    assert!(db.one::<bool>("SELECT to_regclass('ingest.p_chunks') IS NULL"));
    assert_eq!(db.worker(), worker, "the worker was restarted");
}

#[test]
fn a_paused_pipeline_finishes_what_is_in_flight_and_sends_no_more() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 2");
    api.hold_answers();
    db.insert_prose("p", "d", 2, 5);
    wait_until("two are in flight", SOON, || api.in_flight() == 2);
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "e", 5, 5);
    api.release_answers();
    wait_until("they are embedded", SOON, || {
        db.progress_of("p").embedded == 2
    });
    assert_eq!(db.progress_of("p").state, "paused");
    assert_eq!(api.arrived(), 2);
    db.run("SELECT ingest.resume('p')");
    all_embedded(&db, "p", 7);
}

#[test]
fn no_transaction_is_open_while_the_provider_is_waited_for() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    db.create_remote_pipeline("p", &api, "batch_size => 2, concurrency => 3");
    api.hold_answers();
    db.insert_prose("p", "d", 20, 5);
    wait_until("requests are in flight", SOON, || api.in_flight() == 3);
    let worker = db.worker();
    wait_until("the worker has no transaction and no lock", SOON, || {
        db.one(&format!(
            "SELECT xact_start IS NULL AND backend_xid IS NULL AND backend_xmin IS NULL
                    AND NOT EXISTS (SELECT FROM pg_locks WHERE pid = {worker} AND locktype IN ('relation', 'tuple', 'transactionid'))
             FROM pg_stat_activity WHERE pid = {worker}"
        ))
    });
    assert_eq!(api.in_flight(), 3);
    // Whoever changes documents and tables waits for nobody.
    db.run("SET lock_timeout = '5s'");
    db.run("UPDATE ingest.documents SET content = content || '!'; ALTER TABLE ingest.p_chunks ADD COLUMN note text");
    db.run("DELETE FROM ingest.documents WHERE key = 'd1'");
    db.run("VACUUM FULL ingest.documents");
    api.release_answers();
    all_embedded(&db, "p", 19);
}

/// Whether something took no longer than it may that waits for no answer.
#[track_caller]
fn swiftly(what: &str, action: impl FnOnce()) {
    let start = Instant::now();
    action();
    let took = start.elapsed();
    println!("{what}: {took:?}");
    assert!(took < Duration::from_secs(5), "{what} took {took:?}");
}

#[test]
fn nothing_waits_for_a_provider_that_hangs() {
    let cluster = Cluster::start(&[]);
    let api = FakeApi::start(behaviour());
    api.on_request(|_| Some(Fault::Hang(Place::BeforeAnswer)));
    let busy = |documents| {
        let db = Database::new_in(&cluster);
        api.reset();
        let before = api.in_flight();
        db.create_remote_pipeline("p", &api, "batch_size => 1, concurrency => 4");
        db.insert_prose("p", "d", documents, 5);
        wait_until("requests hang", SOON, || api.in_flight() >= before + 4);
        db
    };
    let [first, second, third] = [busy(20), busy(20), busy(20)];
    swiftly("DROP EXTENSION", || {
        first.run("DROP EXTENSION pg_ingest CASCADE")
    });
    second.disconnect();
    swiftly("DROP DATABASE", || {
        let sql = format!("DROP DATABASE {}", second.name());
        let dropped = cluster.client("postgres").batch_execute(&sql);
        dropped.unwrap_or_else(|error| panic!("{}", ServerError::from(error).text()));
    });
    let worker = third.worker();
    swiftly("the end of a worker", || {
        third.run(&format!("SELECT pg_terminate_backend({worker})"));
        wait_until("another worker runs", SOON, || {
            third.worker_pids().iter().any(|pid| *pid != worker)
        });
    });
    first.disconnect();
    third.disconnect();
    swiftly("a fast shutdown", || cluster.stop_server("fast"));
    api.clear_faults();
    cluster.start_server();
    third.reconnect();
    all_embedded(&third, "p", 20);
}

// --- Keys --------------------------------------------------------------------------------------------------------------

/// So many characters of a key in a row are a leak.
const PIECE: usize = 12;

/// Whether a piece of one of the keys is in there.
fn holds_a_key(bytes: &[u8]) -> bool {
    static PIECES: OnceLock<HashSet<&[u8]>> = OnceLock::new();
    let pieces = PIECES.get_or_init(|| {
        let keys = [KEY, OTHER_KEY].map(str::as_bytes);
        keys.iter().flat_map(|key| key.windows(PIECE)).collect()
    });
    let mut begins = [false; 256];
    for piece in pieces {
        begins[usize::from(piece[0])] = true;
    }
    bytes
        .windows(PIECE)
        .any(|window| begins[usize::from(window[0])] && pieces.contains(window))
}

/// Looks into every table and view of the extension, what the server shows of sessions and settings, the server's log, and
/// the words that a client has read.
#[track_caller]
fn the_key_is_nowhere(db: &Database, read_by_the_client: &[String]) {
    let mut places: Vec<String> = db.all(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'ingest' AND c.relkind IN ('r', 'v', 'm', 'p')",
    );
    places.extend(
        [
            "pg_stat_activity",
            "pg_settings",
            "ingest.doctor()",
            "ingest.worker_states()",
        ]
        .map(str::to_owned),
    );
    assert!(places.contains(&"ingest.failures".to_owned()), "{places:?}");
    for place in places {
        for row in db.all::<String>(&format!("SELECT t::text FROM {place} t")) {
            assert!(!holds_a_key(row.as_bytes()), "{place}: {row}");
        }
    }
    for line in server_log(db.cluster()).lines() {
        assert!(!holds_a_key(line.as_bytes()), "server log: {line}");
    }
    for text in read_by_the_client {
        assert!(!holds_a_key(text.as_bytes()), "a client read {text}");
    }
}

/// The files below a directory that hold a piece of a key, those left out that are there to hold one.
fn files_with_a_key(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            found.extend(files_with_a_key(&path));
        } else if kind.is_file()
            && !entry.file_name().to_string_lossy().starts_with("key")
            && std::fs::read(&path).is_ok_and(|bytes| holds_a_key(&bytes))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// What a malicious, or careless, API answers: the key, in all the places where words of its own are passed on.
fn indiscreet(status: u16, request: &Request) -> Fault {
    let key = request.key.clone().unwrap_or_default();
    let (head, tail) = key.split_at(20);
    let words = format!(
        "Bearer {key} is bad; {head}\\n{tail}; {head}\\u200b{tail}; ({tail}) {}",
        key.replace('-', "\\u002d")
    );
    let body = match status {
        // As the value of a field that should be something else.
        200 => format!(r#"{{"data": "{key}", "usage": "{key}"}}"#),
        _ => format!(r#"{{"error": {{"message": "{words}", "code": "{key}", "type": "{key}"}}}}"#),
    };
    Fault::Answer {
        status,
        headers: vec![
            ("x-request-id".into(), key.clone()),
            (
                "location".into(),
                format!("https://{tail}.example.com/?key={key}"),
            ),
            ("retry-after-ms".into(), "200".into()),
        ],
        body,
    }
}

#[test]
fn a_key_that_the_provider_repeats_is_seen_by_nobody() {
    let cluster = impatient_cluster();
    let db = Database::new_in(cluster);
    let api = FakeApi::start(behaviour());
    api.on_request(|request| Some(indiscreet(case_of(request).parse().ok()?, request)));
    let statuses = [200, 302, 400, 401, 402, 403, 404, 413, 422, 429, 500, 503];
    for status in statuses {
        let name = format!("s{status}");
        let more = format!("max_attempts => 2, {}", case(&status.to_string()));
        db.create_remote_pipeline(&name, &api, &more);
        db.insert_prose(&name, "d", 2, 5);
    }
    let mut read = Vec::new();
    for status in statuses.into_iter().filter(|status| *status != 429) {
        let error = db.expect_error(&format!("SELECT ingest.embed('a question', 's{status}')"));
        assert!(
            error.text().contains("***") || status == 302,
            "{status}: {error:?}"
        );
        read.push(error.text());
    }
    let everybody = "SELECT bool_and(state = 'blocked' OR failed = 2 OR pipeline = 's429') FROM ingest.progress";
    wait_until("all have failed or are blocked", SOON, || db.one(everybody));
    wait_until("the log tells of the storm", SOON, || {
        server_log(cluster).contains("pipeline \"s429\": request ***")
    });
    the_key_is_nowhere(&db, &read);
    let files = files_with_a_key(cluster.home());
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn the_search_for_keys_finds_them() {
    for (text, found) in [
        (KEY.to_owned(), true),
        (format!("… {}", &OTHER_KEY[10..22]), true),
        (format!("sk-test-…{}", &KEY[KEY.len() - 11..]), false),
        ("nothing".to_owned(), false),
    ] {
        assert_eq!(holds_a_key(text.as_bytes()), found, "{text}");
    }
}

// --- What cannot be ----------------------------------------------------------------------------------------------------

/// Checks the SQLSTATE of each statement's error, that all of it together holds the words, that more is told than that it
/// failed, and that no secret is repeated.
#[track_caller]
fn refused(db: &Database, statement: &str, code: &str, words: &str, wrong: &mut Vec<String>) {
    let got = match db.try_run(statement) {
        Ok(()) => "it succeeds".to_owned(),
        Err(error) => {
            let says = words.split(" & ").all(|word| error.text().contains(word));
            let told = error.hint.is_some() || error.detail.is_some();
            if error.code == code && says && told && !error.text().contains("secret") {
                return;
            }
            format!("{error:?}")
        }
    };
    wrong.push(format!("{statement}: expected {code} and {words:?}: {got}"));
}

/// Arguments that no pipeline of a remote model can have, and words of their errors.
const IMPOSSIBLE: &str = r#"
    base_url => 'no url'                                      | base_url & https://
    base_url => 'https://'                                    | base_url & https://
    base_url => 'ftp://example.com'                           | ftp & https://
    base_url => 'file:///etc/passwd'                          | file & https://
    base_url => 'http://user:secret@example.com/v1'           | base_url & password & api_key
    base_url => 'https://example.com/v1?api_key=secret'       | base_url & api_key
    base_url => 'https://example.com/v1#secret'               | fragment
    api_key => 'keyring:openai'                               | env:NAME & file:/PATH & vault:NAME
    api_key => 'sk-secret-1234567890abcdef'                   | where the key is kept & env:NAME
    api_key => 'env:sk-secret-1234567890abcdef'               | where it is kept & env:NAME
    api_key => 'file:relative/path'                           | absolute
    api_key => 'env:'                                         | env:NAME
    batch_size => 0                                           | batch_size & 2048
    batch_size => -1                                          | batch_size & 2048
    batch_size => 2049                                        | batch_size & 2048
    concurrency => 0                                          | concurrency must be between 1 and
    concurrency => 100000                                     | concurrency must be between 1 and
    max_attempts => 0                                         | max_attempts
    chunk_tokens => 8193                                      | chunk_tokens & 8192
    limits => 'nowhere'                                       | nowhere & 'known' & set_limit
    request => '[]'                                           | headers & document_body
    request => '{"header": {}}'                               | header & document_body
    request => '{"headers": {"Authorization": "secret"}}'     | Authorization & api_key
    request => '{"headers": {"X-Api-Key": "secret"}}'         | X-Api-Key & api_key
    request => '{"headers": {"Host": "example.com"}}'         | Host
    request => '{"headers": {"a b": "c"}}'                    | a b
    request => '{"body": {"model": "x"}}'                     | model
    request => '{"body": {"encoding_format": "int8"}}'        | encoding_format
    request => '{"query_body": {"dimensions": 3}}'            | dimensions
"#;

/// Models that cannot be used like that.
const UNUSABLE: &str = "
    'mystery/x'                                                      | openai, azure, ollama, local
    'text-embedding-3-small'                                         | provider/model
    'openai/'                                                        | model
    'openai/mine', base_url => 'http://localhost:1/v1'               | dimensions of model openai/mine & dimensions =>
    'openai/mine', base_url => 'http://localhost', dimensions => 0   | dimensions
    'openai/text-embedding-3-small'                                  | needs an api_key & env:OPENAI_API_KEY
    'openai/text-embedding-3-small', api_key => 'env:A', dimensions => 1537  | 1536 & 1537
    'openai/text-embedding-ada-002', api_key => 'env:A', dimensions => 512   | 1536 & 512
    'azure/text-embedding-3-small', api_key => 'env:A'               | base_url & openai.azure.com
    'azure/text-embedding-3-small', base_url => 'https://a.openai.azure.com' | needs an api_key
    'azure/x', base_url => 'https://a.openai.azure.com/openai/deployments/x' | deployment
    'local/all-MiniLM-L6-v2', base_url => 'https://example.com/v1'   | base_url & local
    'local/all-MiniLM-L6-v2', api_key => 'env:A'                     | api_key & local
    'local/all-MiniLM-L6-v2', request => '{}'                        | request & local
    'local/all-MiniLM-L6-v2', limits => 'known'                      | limits & local
    'local/all-MiniLM-L6-v2', concurrency => 3                       | concurrency & local
";

/// Argument, SQLSTATE and words of each line.
fn cases(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let lines = table.lines().filter_map(|line| line.split_once('|'));
    lines.map(|(arguments, words)| {
        let code = match arguments.trim() {
            "limits => 'nowhere'" => "42704",
            _ => "22023",
        };
        (arguments.trim(), code, words.trim())
    })
}

#[test]
fn a_remote_pipeline_that_cannot_be_is_refused_and_told_why() {
    let db = Database::new();
    db.run("SELECT ingest.set_limit('known', rpm => 100)");
    let mut wrong = Vec::new();
    for (argument, code, words) in cases(IMPOSSIBLE) {
        let others = ["base_url => 'https://example.com/v1'", "api_key => 'env:A'"];
        let name = |argument: &'static str| argument.split(' ').next();
        let others = others.into_iter().filter(|o| name(o) != name(argument));
        let arguments = others.chain([argument]).collect::<Vec<_>>().join(", ");
        let statement =
            format!("SELECT ingest.create_pipeline('p', model => '{MODEL}', {arguments})");
        refused(&db, &statement, code, words, &mut wrong);
    }
    for (model, code, words) in cases(UNUSABLE) {
        let statement = format!("SELECT ingest.create_pipeline('p', model => {model})");
        refused(&db, &statement, code, words, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(db.rows("SELECT * FROM ingest.pipelines").len(), 0);
    assert!(
        db.one::<bool>("SELECT to_regclass('ingest.p_chunks') IS NULL"),
        "a table was left"
    );
}

#[test]
fn a_change_that_cannot_be_changes_nothing() {
    let db = Database::new();
    db.run("SELECT ingest.set_limit('known', rpm => 100)");
    db.run(&format!(
        "SELECT ingest.create_pipeline('p', model => '{MODEL}', base_url => 'http://localhost:1/v1', api_key => 'env:A',
                                       concurrency => 7, batch_size => 9, limits => 'known')"
    ));
    let before = db.rows_as_text("SELECT * FROM ingest.pipeline");
    let mut wrong = Vec::new();
    // Of OpenAI itself, a key is needed.
    let keyless = ("base_url => '', api_key => ''", "22023", "needs an api_key");
    for (argument, code, words) in cases(IMPOSSIBLE).chain([keyless]) {
        let statement = format!("SELECT ingest.alter_pipeline('p', {argument})");
        refused(&db, &statement, code, words, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(db.rows_as_text("SELECT * FROM ingest.pipeline"), before);
    // What is not given stays, an empty text takes away.
    db.run("SELECT ingest.alter_pipeline('p', limits => '', max_attempts => 2)");
    assert!(db.one::<bool>(
        "SELECT limits IS NULL AND max_attempts = 2 AND concurrency = 7 AND batch_size = 9 AND api_key = 'env:A'
         FROM ingest.pipelines"
    ));
}
