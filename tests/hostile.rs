//! Promise: whatever a provider answers, or does not answer, nothing wrong is stored, every failure says what it was, and
//! nobody else is held up.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fake_api::{FakeApi, Fault, NotFinite, Place, Request};
use harness::remote::{KEY, all_embedded, behaviour, case, case_of, impatient_cluster, server_log};
use harness::secrecy::the_key_is_nowhere;
use harness::*;

/// What befalls the requests of a pipeline, and what becomes of its documents.
struct Trouble {
    name: &'static str,
    class: &'static str,
    status: Option<i32>,
    /// Whether it may be over a moment later, so that all attempts are used.
    passes: bool,
    says: &'static str,
}

/// Documents of each pipeline, of several chunks each, so that an answer holds several vectors.
const DOCUMENTS: usize = 3;

const TROUBLES: &str = "
    internal_error   unavailable      500  passes  The server was told to answer 500
    internal_page    unavailable      500  passes  Internal Server Error
    bad_gateway      unavailable      502  passes  The backend is away
    page             unavailable      503  passes  Service Temporarily Unavailable
    page_in_json     unavailable      503  passes  Service Temporarily Unavailable
    page_with_words  unavailable      503  passes  upstream error:
    endless_page     unavailable      500  passes  Internal Server Error
    endless_words    unavailable      500  passes  no end to it
    gateway          unavailable      504  passes  The server was told to answer 504
    too_slow         timeout          408  passes  The server was told to answer 408
    silence          timeout          -    passes  did not answer in full within 4s
    silence_in_body  timeout          -    passes  did not answer in full within 4s
    trickle          timeout          -    passes  did not answer in full within 4s
    byte_a_second    timeout          -    passes  did not answer in full within 4s
    half_open        timeout          -    passes  did not answer in full within 4s
    black_hole       timeout          -    passes  no connection to 127.0.0.1
    nobody           unavailable      -    passes  no connection to 127.0.0.1
    no_such_name     unavailable      -    passes  no connection to nnnn
    no_tls           unavailable      -    passes  no connection to 127.0.0.1
    closed           unavailable      -    passes  connection to 127.0.0.1
    closed_in_body   unavailable      200  passes  connection to 127.0.0.1
    reset            unavailable      -    passes  connection to 127.0.0.1
    reset_in_body    unavailable      200  passes  connection to 127.0.0.1
    truncated        bad_response     200  passes  ends in the middle
    too_few          bad_response     200  passes  vectors for 
    too_many         bad_response     200  passes  vectors for 
    duplicate_index  bad_response     200  passes  more than one vector with index 0
    negative_index   bad_response     200  passes  not a list of vectors
    index_too_large  bad_response     200  passes  a vector with index
    one_is_shorter   bad_response     200  passes  dimensions instead of 1536
    one_is_empty     bad_response     200  passes  has 0 dimensions
    huge             bad_response     200  passes  longer than
    bomb             bad_response     200  passes  longer than
    no_gzip          bad_response     200  passes  cannot be read
    empty            bad_response     200  passes  empty
    no_json          bad_response     200  passes  not JSON
    other_json       bad_response     200  passes  not a list of vectors
    list             bad_response     200  passes  not a list of vectors
    null             bad_response     200  passes  not a list of vectors
    deep             bad_response     200  passes  not
    no_embedding     bad_response     200  passes  not a list of vectors
    page_with_200    bad_response     200  passes  web page
    nan_null         bad_response     200  passes  null
    nan_text         bad_response     200  passes  not a list of vectors
    nan_word         bad_response     200  passes  not JSON
    nan_base64       bad_response     200  passes  not finite
    inf_word         bad_response     200  passes  not JSON
    inf_number       bad_response     200  passes  out of range
    inf_large        bad_response     200  passes  not finite
    inf_base64       bad_response     200  passes  not finite
    bad_request      invalid_request  400  stays   The server was told to answer 400
    bad_page         invalid_request  400  stays   Service Temporarily Unavailable
    too_large        too_large        413  stays   The server was told to answer 413
    unprocessable    invalid_request  422  stays   The server was told to answer 422
    teapot           invalid_request  418  stays   The server was told to answer 418";

/// A proxy's page.
const PAGE: &str = "<html>\r\n<head><title>Service Temporarily Unavailable</title></head>\r\n\
                    <body bgcolor=\"white\"><h1>nginx</h1></body>\r\n</html>";

/// Success with a list in which vector 0 is this, the others are as they should be.
fn list_with(request: &Request, index: &str, embedding: &str) -> Fault {
    let right = format!("[{}0.5]", "0.25,".repeat(1535));
    let items: Vec<String> = (0..request.texts.len())
        .map(|number| match number {
            0 => format!(r#"{{"index": {index}, "embedding": {embedding}}}"#),
            _ => format!(r#"{{"index": {number}, "embedding": {right}}}"#),
        })
        .collect();
    Fault::body(format!(r#"{{"data": [{}]}}"#, items.join(", ")))
}

/// The fault of that name; none for troubles on the way to the API.
fn fault(name: &str, request: &Request) -> Option<Fault> {
    let answer = |status, kind: &str, body: String| Fault::Answer {
        status,
        headers: vec![("content-type".into(), kind.into())],
        body,
    };
    let page = |status, body: &str| answer(status, "text/html", body.into());
    let right = format!("[{}0.5]", "0.25,".repeat(1535));
    Some(match name {
        "internal_error" => Fault::status(500),
        "internal_page" => page(500, "<!DOCTYPE html><p>It hurts."),
        "bad_gateway" => page(502, "<HTML><HEAD><TITLE>The backend is away</TITLE></HEAD>"),
        "page" => page(503, PAGE),
        "page_in_json" => Fault::Answer {
            status: 503,
            headers: Vec::new(),
            body: format!(
                r#"{{"error": {{"message": "{}"}}}}"#,
                PAGE.replace('"', "\\\"").replace("\r\n", "\\r\\n")
            ),
        },
        "page_with_words" => page(
            503,
            &format!("upstream error: {}", &PAGE.replace("title", "i")),
        ),
        "endless_page" => page(
            500,
            &format!("<html>{}", "<p>\u{1b}[31mred\u{7}".repeat(200_000)),
        ),
        "endless_words" => answer(
            500,
            "text/plain",
            "There is\0 no end\u{8} to\r it.\u{202e} ".repeat(100_000),
        ),
        "gateway" => Fault::status(504),
        "too_slow" => Fault::status(408),
        "silence" => Fault::Hang(Place::BeforeAnswer),
        "silence_in_body" => Fault::Hang(Place::InBody),
        "trickle" => Fault::Trickle(Duration::from_millis(20)),
        "byte_a_second" => Fault::Trickle(Duration::from_secs(1)),
        "closed" => Fault::Close(Place::BeforeAnswer),
        "closed_in_body" => Fault::Close(Place::InBody),
        "reset" => Fault::Reset(Place::BeforeAnswer),
        "reset_in_body" => Fault::Reset(Place::InBody),
        "truncated" => Fault::TruncatedJson,
        "too_few" => Fault::TooFew,
        "too_many" => Fault::TooMany,
        "duplicate_index" => Fault::DuplicateIndex,
        "negative_index" => list_with(request, "-1", &right),
        "index_too_large" => list_with(request, "18446744073709551615", &right),
        "one_is_shorter" => list_with(request, "0", "[0.5]"),
        "one_is_empty" => list_with(request, "0", "[]"),
        "huge" => Fault::HugeBody(100 << 20),
        "bomb" => Fault::GzipBomb(1 << 30),
        "no_gzip" => Fault::Answer {
            status: 200,
            headers: vec![("content-encoding".into(), "gzip".into())],
            body: r#"{"data": []}"#.into(),
        },
        "empty" => Fault::body(""),
        "no_json" => Fault::body("It works!"),
        "other_json" => Fault::body(r#"{"data": "later"}"#),
        "list" => Fault::body("[[0.25, 0.5]]"),
        "null" => Fault::body("null"),
        "deep" => Fault::body(format!(r#"{{"data": {}"#, "[".repeat(100_000))),
        "no_embedding" => Fault::body(r#"{"data": [{"index": 0}]}"#),
        "page_with_200" => page(200, PAGE),
        "nan_null" => Fault::NotFinite(NotFinite::NanAsNull),
        "nan_text" => Fault::NotFinite(NotFinite::NanAsText),
        "nan_word" => Fault::NotFinite(NotFinite::NanAsWord),
        "nan_base64" => Fault::NotFinite(NotFinite::NanInBase64),
        "inf_word" => Fault::NotFinite(NotFinite::InfinityAsWord),
        "inf_number" => Fault::NotFinite(NotFinite::InfinityAsNumber),
        "inf_large" => Fault::NotFinite(NotFinite::TooLargeForFloat),
        "inf_base64" => Fault::NotFinite(NotFinite::InfinityInBase64),
        "bad_request" => Fault::status(400),
        "bad_page" => page(400, PAGE),
        "too_large" => Fault::status(413),
        "unprocessable" => Fault::status(422),
        "teapot" => Fault::status(418),
        _ => return None,
    })
}

fn troubles() -> Vec<Trouble> {
    let columns = |line: &'static str| {
        let (name, rest) = line.split_once(' ')?;
        let (class, rest) = rest.trim_start().split_once(' ')?;
        let (status, rest) = rest.trim_start().split_once(' ')?;
        let (passes, says) = rest.trim_start().split_once(' ')?;
        Some(Trouble {
            name,
            class,
            status: status.parse().ok(),
            passes: passes == "passes",
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
        let on = still.load(Ordering::SeqCst);
        on.then(|| fault(case_of(request), request)).flatten()
    });
    on
}

/// A peer that takes a connection and is never heard of again.
struct HalfOpen {
    listener: TcpListener,
    waiting: Vec<TcpStream>,
}

impl HalfOpen {
    /// Connections are made, by the kernel, and nobody reads them.
    fn silent() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").expect("a port is free"),
            waiting: Vec::new(),
        }
    }

    /// Not even a connection is made, as where packets are dropped: the queue of those to be accepted is full.
    fn full() -> Self {
        let mut this = Self::silent();
        let address = this.listener.local_addr().expect("it listens");
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            this.waiting.push(stream);
        }
        this
    }

    fn url(&self) -> String {
        format!(
            "http://{}/v1",
            self.listener.local_addr().expect("it listens")
        )
    }
}

#[test]
fn whatever_goes_wrong_with_an_answer_nothing_wrong_is_stored() {
    let db = Database::new_in(impatient_cluster());
    let api = FakeApi::start(behaviour());
    let on = make_trouble(&api);
    let nobody = FakeApi::start(behaviour()).openai_url();
    let (silent, full) = (HalfOpen::silent(), HalfOpen::full());
    let key = db.cluster().write_key(KEY);
    let troubles = troubles();
    assert_eq!(troubles.len(), TROUBLES.trim().lines().count());
    for Trouble { name, .. } in &troubles {
        let url = match *name {
            "nobody" => nobody.clone(),
            "half_open" => silent.url(),
            "black_hole" => full.url(),
            // A label has 63 characters at most, so no resolver needs to be asked.
            "no_such_name" => format!("http://{}.invalid/v1", "n".repeat(64)),
            "no_tls" => api.openai_url().replace("http:", "https:"),
            _ => api.openai_url(),
        };
        let more = format!("max_attempts => 2, chunk_tokens => 20, {}", case(name));
        db.create_pipeline_at(name, &url, &key, &more);
        db.insert_prose(name, "quokka ", DOCUMENTS, 40);
    }
    db.settle();
    let mut wrong = Vec::new();
    for expected in &troubles {
        let name = expected.name;
        let right: i64 = db.one(&format!(
            "SELECT count(*) FROM ingest.failures
             WHERE pipeline = '{name}' AND error_class = '{}' AND http_status IS NOT DISTINCT FROM {}
               AND position({} IN message) > 0 AND attempts = {} AND retryable = {}",
            expected.class,
            expected.status.map_or("NULL".into(), |status| status.to_string()),
            quoted(expected.says),
            if expected.passes { 2 } else { 1 },
            expected.passes,
        ));
        if right != DOCUMENTS as i64 {
            let failures = format!("SELECT * FROM ingest.failures WHERE pipeline = '{name}'");
            let got = db.rows_as_text(&failures);
            wrong.push(format!("{name}: {got:?} {:?}", db.progress_of(name)));
        }
        let stored: i64 = db.one(&format!("SELECT count(*) FROM ingest.{name}_chunks"));
        assert_eq!(stored, 0, "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unfit: Vec<String> = db.all(
        "SELECT pipeline || ': ' || message FROM ingest.failures
         WHERE message LIKE '%quokka%' OR length(message) > 1000 OR message ~ '[[:cntrl:]\u{202e}]' OR message ~ '<[a-zA-Z/!]'",
    );
    assert!(
        unfit.is_empty(),
        "content, endless or unreadable: {unfit:?}"
    );
    // The worker has survived it all, and they come back when somebody asks for it.
    on.store(false, Ordering::SeqCst);
    for Trouble { name, .. } in &troubles {
        // A loaded machine may be slow once more.
        db.run(&format!(
            "SELECT ingest.alter_pipeline('{name}', max_attempts => 10, base_url => '{}')",
            api.openai_url()
        ));
    }
    let all = (troubles.len() * DOCUMENTS) as i64;
    assert_eq!(db.one::<i64>("SELECT ingest.retry()"), all);
    for Trouble { name, .. } in &troubles {
        all_embedded(&db, name, DOCUMENTS);
    }
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
    the_key_is_nowhere(&db, &[]);
}

#[test]
fn who_does_not_answer_holds_only_its_own_pipelines() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    make_trouble(&api);
    let (silent, full) = (HalfOpen::silent(), HalfOpen::full());
    let key = db.cluster().write_key(KEY);
    let names = [
        "silence",
        "silence_in_body",
        "trickle",
        "byte_a_second",
        "half_open",
        "black_hole",
    ];
    for name in names {
        let url = match name {
            "half_open" => silent.url(),
            "black_hole" => full.url(),
            _ => api.openai_url(),
        };
        let more = format!("concurrency => 2, batch_size => 1, {}", case(name));
        db.create_pipeline_at(name, &url, &key, &more);
        db.insert_prose(name, "d", 20, 5);
    }
    let held = "SELECT sum(in_flight_requests)::bigint FROM ingest.workers WHERE database = current_database()";
    wait_until("all hang", SOON, || db.one::<i64>(held) == 12);
    db.create_remote_pipeline("calm", &api, "batch_size => 5");
    for turn in 0..10 {
        db.insert_prose("calm", &format!("turn {turn} "), 20, 5);
        all_embedded(&db, "calm", 20 * (turn + 1));
    }
    assert_eq!(db.one::<i64>(held), 12);
    assert_eq!(db.rows("SELECT * FROM ingest.failures").len(), 0);
}

#[test]
fn answers_without_end_take_little_memory_however_many_come_at_once() {
    const AT_ONCE: usize = 20;
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    make_trouble(&api);
    let names = ["huge", "bomb", "endless_page"];
    db.create_remote_pipeline("before", &api, "batch_size => 1");
    db.insert_prose("before", "d", 100, 5);
    all_embedded(&db, "before", 100);
    let worker = db.worker();
    let before = anonymous_memory(worker);
    api.hold_answers();
    for name in names {
        let more = format!(
            "concurrency => {AT_ONCE}, batch_size => 1, max_attempts => 1, {}",
            case(name)
        );
        db.create_remote_pipeline(name, &api, &more);
        db.insert_prose(name, "d", 60, 5);
    }
    wait_until("all wait", SOON, || {
        api.in_flight() == names.len() * AT_ONCE
    });
    api.release_answers();
    let mut most = before;
    wait_until("all have failed", SOON, || {
        most = most.max(anonymous_memory(worker));
        db.one("SELECT count(*) = 180 FROM ingest.failures")
    });
    let after = anonymous_memory(worker);
    println!("{before} kB before, {most} kB at most, {after} kB after");
    // An answer for one vector is read up to 1.1 MB.
    let room = (names.len() * AT_ONCE * 2 * 1200) as u64;
    assert!(most < before + room, "{before} kB grew to {most} kB");
    assert_eq!(db.worker(), worker);
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

/// One request in twenty meets something that passes: all that there is, one after the other.
fn one_in_twenty(api: &FakeApi) {
    let names: Vec<&str> = troubles()
        .iter()
        .filter(|trouble| trouble.passes)
        .map(|trouble| trouble.name)
        .collect();
    api.on_request(move |request| {
        // Multiplied by the golden ratio, the numbers are spread evenly.
        let spread = (request.number as u32).wrapping_mul(0x9e37_79b9);
        let unlucky = spread < u32::MAX / 20;
        let kind = request.number as usize % (names.len() + 1);
        unlucky
            .then(|| match names.get(kind) {
                Some(name) => fault(name, request),
                None => Some(Fault::rate_limited(Duration::from_millis(1))),
            })
            .flatten()
    });
}

#[test]
fn innocent_documents_outlive_faults_of_all_kinds_and_poison_among_them() {
    const DOCUMENTS: usize = 2_000;
    let db = Database::new_in(impatient_cluster());
    let api = FakeApi::start(behaviour());
    one_in_twenty(&api);
    api.refuse_text("poison");
    db.create_remote_pipeline("p", &api, "batch_size => 3, max_attempts => 15");
    db.run("SELECT ingest.pause('p')");
    db.insert_prose("p", "d", DOCUMENTS, 5);
    db.run(
        "UPDATE ingest.documents SET content = content || ' poison' WHERE key IN ('d3', 'd700', 'd1999');
         SELECT ingest.resume('p')",
    );
    db.settle();
    let failed: Vec<String> = db.all(
        "SELECT key || ' ' || error_class || ' ' || attempts FROM ingest.failures ORDER BY document_id",
    );
    assert_eq!(
        failed
            .iter()
            .map(|f| f.split(' ').next())
            .collect::<Vec<_>>(),
        [Some("d3"), Some("d700"), Some("d1999")],
        "{failed:?}"
    );
    assert!(
        failed.iter().all(|f| f.contains(" invalid_request ")),
        "{failed:?}"
    );
    let innocents = (DOCUMENTS - 3) as i64;
    assert_eq!(
        db.progress_of("p").counts(),
        (DOCUMENTS as i64, innocents, 0, 3)
    );
    let whole: i64 = db.one(
        "SELECT count(*) FROM ingest.documents d JOIN ingest.p_chunks c ON c.document_key = d.key AND c.content = d.content",
    );
    assert_eq!(whole, innocents);
    assert_eq!(db.check_vectors("ingest.p_chunks") as i64, innocents);
    println!("{} requests", api.arrived());
}
