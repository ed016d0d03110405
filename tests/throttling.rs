//! Promise: a provider that is busy is waited for, by everybody on its limit, and it costs nobody an attempt; what needs a
//! person says so, and fails nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fake_api::{
    Behaviour, FakeApi, Fault, Latency, Limits, Record, Request, RetryAfter, RetryHints, Verdict,
};
use harness::remote::{
    KEY, OTHER_KEY, all_embedded, behaviour, case, case_of, embed, same_vector, server_log,
};
use harness::secrecy::the_key_is_nowhere;
use harness::*;

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

/// Between a refusal and the time it asked for (some two seconds), nothing was sent but what was on its way already: of the
/// four requests that may be, the other three.
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
        let early = requests.iter().filter(|other| {
            let after = other.arrived.saturating_duration_since(refusal.arrived);
            other.number > refusal.number && after < Duration::from_millis(900)
        });
        assert!(
            early.count() <= 3,
            "{pipeline}: after request {} was refused: {:?}",
            refusal.number,
            requests
                .iter()
                .map(|r| (r.number, r.arrived, r.verdict))
                .collect::<Vec<_>>()
        );
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

#[test]
fn one_refusal_makes_everybody_on_the_limit_wait_in_every_database() {
    let [db, other] = [Database::new(), Database::new()];
    let api = FakeApi::start(behaviour());
    let wait = Duration::from_secs(8);
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
    db.worker();
    other.worker();
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
            // By itself it would not try again.
            not_by_itself(&db, pipeline);
            db.run(&format!("SELECT ingest.resume('{pipeline}')"));
            all_embedded(&db, pipeline, 40);
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

/// Puts off the next attempt of a blocked pipeline for an hour.
fn not_by_itself(db: &Database, pipeline: &str) {
    db.run(&format!(
        "UPDATE ingest.pipeline SET blocked_until = now() + interval '1 hour' WHERE name = '{pipeline}' AND blocked_until IS NOT NULL"
    ));
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
    // There is more to come, however slow this test is.
    api.hold_answers();
    wait_until("four are being answered", SOON, || api.in_flight() == 4);
    db.cluster().write_key_as(&file, OTHER_KEY);
    api.accept_key(OTHER_KEY);
    api.release_answers();
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
    let progress = db.until_blocked("late");
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
    not_by_itself(&db, "late");
    db.run("SELECT ingest.resume('late')");
    all_embedded(&db, "late", 10);
    assert_eq!(db.progress_of("late").last_error, None);
    same_vector(&embed(&db, "a question", "late"), "a question");
}

#[test]
fn a_retry_after_that_makes_no_sense_is_not_needed() {
    let db = Database::new();
    let api = FakeApi::start(behaviour());
    let nonsense = [
        "",
        "soon",
        "NaN",
        "-5",
        "1e-3",
        "0x10",
        "Fri, 32 Foo 2099 25:61:61 GMT",
        "0",
    ];
    for (number, value) in nonsense.into_iter().enumerate() {
        // Each is said once to a pipeline of its own.
        let name = format!("p{number}");
        let (of, told) = (name.clone(), AtomicBool::new(false));
        api.on_request(move |request| {
            let first = case_of(request) == of && !told.swap(true, Ordering::SeqCst);
            first.then(|| Fault::Answer {
                status: 429,
                headers: vec![("retry-after".into(), value.into())],
                body: "<html><title>Slow down</title></html>".into(),
            })
        });
        db.create_remote_pipeline(&name, &api, &format!("max_attempts => 1, {}", case(&name)));
        db.insert_prose(&name, "d", 3, 5);
    }
    for number in 0..nonsense.len() {
        all_embedded(&db, &format!("p{number}"), 3);
    }
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
fn a_redirect_is_not_followed() {
    let db = Database::new();
    let (api, elsewhere) = (FakeApi::start(behaviour()), FakeApi::start(behaviour()));
    let target = elsewhere.openai_url() + "/embeddings";
    api.on_request(move |_| Some(Fault::redirect(&target)));
    db.create_remote_pipeline("p", &api, "max_attempts => 1");
    db.insert_prose("p", "d", 3, 5);
    let error = db.until_blocked("p").last_error.expect("it says why");
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
