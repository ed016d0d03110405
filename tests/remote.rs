//! Promise: through any OpenAI-compatible API every vector belongs to its text, requests are filled and held to their
//! number, and what cannot be is refused with what to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, Fault, Latency, Place, vector_of};
use harness::remote::{KEY, MODEL, all_embedded, api, behaviour, embed, field, same_vector};
use harness::*;
use postgres::NoTls;

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
    // No request has more than batch_size says, and hardly one has less: only what is there at the beginning goes early, at
    // most once in each of two places, however long the rest takes to be split.
    api.reset();
    db.run("SELECT ingest.pause('full'); SELECT ingest.alter_pipeline('full', batch_size => 20, concurrency => 2)");
    db.insert_prose("full", "e", 500, 30);
    api.hold_answers();
    db.run("SELECT ingest.resume('full')");
    wait_until("all are with the worker", SOON, || {
        db.progress_of("full").in_flight == 500 && api.in_flight() == 2
    });
    api.release_answers();
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
    // Fewer and larger ones from now on: those of eight inputs are made under the new definition. How soon the
    // worker reads it is not asked here, so the small ones take their time.
    let now = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        api.on_request(move |request| {
            if request.texts.len() > 3 {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(15));
                now.fetch_sub(1, Ordering::SeqCst);
                return None;
            }
            Some(Fault::Wait(Duration::from_millis(200)))
        });
    }
    db.run("SELECT ingest.alter_pipeline('p', concurrency => 1, batch_size => 8)");
    api.release_answers();
    all_embedded(&db, "p", 200);
    let inputs: Vec<usize> = api.requests().iter().map(|record| record.inputs).collect();
    println!("requests of {inputs:?}");
    let first = inputs.iter().position(|inputs| *inputs == 8);
    let first = first.expect("requests under the new definition");
    assert!(
        inputs[..first].iter().all(|inputs| *inputs <= 3),
        "{inputs:?}"
    );
    // The last one carries what is left.
    assert!(
        inputs[first..inputs.len() - 1]
            .iter()
            .all(|inputs| *inputs == 8),
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
    // And changed while it runs: what is there is made anew, and then what comes is made so.
    db.run(r#"SELECT ingest.alter_pipeline('p', request => '{"document_body": {"input_type": "passage"}}')"#);
    db.settle();
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
