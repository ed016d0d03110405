//! Promise: whatever a provider answers, nothing wrong is stored; what passes is tried again, only the document at fault
//! fails, and what changes while a request is in flight is never overtaken by its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, Fault, NotFinite, Place};
use harness::remote::{
    KEY, all_embedded, api, behaviour, case, case_of, impatient_cluster, server_log,
};
use harness::secrecy::the_key_is_nowhere;
use harness::*;

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
fn a_refusal_that_comes_after_its_pipeline_was_dropped_leaves_nothing() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    api.on_request(|_| Some(Fault::rate_limited(Duration::from_secs(1))));
    db.create_remote_pipeline("p", &api, "batch_size => 2, concurrency => 3");
    api.hold_answers();
    db.insert_prose("p", "d", 30, 5);
    wait_until("requests are in flight", SOON, || api.in_flight() == 3);
    db.run("SELECT ingest.drop_pipeline('p', drop_target => true)");
    api.release_answers();
    wait_until("the worker holds nothing", SOON, || {
        db.one("SELECT bool_and(in_flight_documents = 0 AND in_flight_requests = 0) FROM ingest.workers WHERE database = current_database()")
    });
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
