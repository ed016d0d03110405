//! What arrived can be asked for.

use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, Limits, Verdict};
use serde_json::json;

use crate::client::{Client, texts};

#[test]
fn a_request_is_remembered_as_it_came() {
    let api = FakeApi::start(Behaviour {
        keep_texts: true,
        ..Behaviour::default()
    });
    let before = Instant::now();
    let mut body = texts(&["a b", "c"]);
    body["user"] = json!("alice");
    let headers = [("authorization", "Bearer sk-1"), ("X-Trace", "7")];
    Client::of(&api).ask_with(&headers, &body);
    let records = api.requests();
    let [record] = records.as_slice() else {
        panic!("one request: {records:?}")
    };
    assert!((before..Instant::now()).contains(&record.arrived));
    assert_eq!((record.number, record.method.as_str()), (0, "POST"));
    assert_eq!(record.path, "/v1/embeddings");
    assert_eq!(record.key.as_deref(), Some("sk-1"));
    assert_eq!(record.header("x-trace"), Some("7"));
    assert_eq!((record.inputs, record.tokens), (2, 3));
    assert_eq!(record.texts, ["a b", "c"]);
    let fields = json!({ "model": "text-embedding-3-small", "dimensions": 4, "user": "alice" });
    assert_eq!(json!(record.fields), fields);
    assert_eq!(
        (record.verdict, record.status),
        (Verdict::Accepted, Some(200))
    );
    assert!(record.sent_fully);
}

#[test]
fn texts_are_forgotten_unless_they_are_asked_for() {
    let api = FakeApi::start(Behaviour::default());
    Client::of(&api).ask(&texts(&["a"]));
    assert!(api.requests()[0].texts.is_empty());
}

#[test]
fn inputs_sent_twice_are_found() {
    let api = FakeApi::start(Behaviour::default());
    let mut client = Client::of(&api);
    client.ask(&texts(&["a", "b"]));
    assert_eq!(api.repeated_inputs(), 0);
    client.ask(&texts(&["b", "c", "c"]));
    assert_eq!(api.repeated_inputs(), 2);
    assert_eq!(api.distinct_inputs(), 3);
    let times = ["a", "b", "c", "d"].map(|text| api.times_sent(text));
    assert_eq!(times, [1, 2, 2, 0]);
    // What was refused was not embedded, so it may come again.
    api.set_quota_exhausted(true);
    client.ask(&texts(&["a"]));
    assert_eq!(api.times_sent("a"), 1);
}

#[test]
fn connections_that_are_kept_are_counted_once() {
    let api = FakeApi::start(Behaviour::default());
    let mut client = Client::of(&api);
    for _ in 0..5 {
        client.ask(&texts(&["a"]));
    }
    assert_eq!((api.connections(), api.arrived()), (1, 5));
    Client::of(&api).ask(&texts(&["a"]));
    assert_eq!((api.connections(), api.arrived()), (2, 6));
}

#[test]
fn the_most_in_flight_at_once_is_known() {
    let api = FakeApi::start(Behaviour::default());
    api.hold_answers();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::of(&api)).collect();
    for client in &mut clients {
        client.send("/v1/embeddings", &[], &texts(&["a"]).to_string());
    }
    let start = Instant::now();
    while api.in_flight() < 3 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(2));
    }
    api.release_answers();
    for client in &mut clients {
        assert_eq!(client.read().expect("an answer").status, 200);
    }
    clients[0].ask(&texts(&["a"]));
    assert_eq!(api.max_in_flight(), 3);
}

#[test]
fn seconds_and_windows_tell_the_same() {
    let api = FakeApi::start(Behaviour {
        limits: Limits {
            per_second: false,
            ..Limits::per_minute(3, 1_000)
        },
        ..Behaviour::default()
    });
    let mut client = Client::of(&api);
    for _ in 0..5 {
        client.ask(&texts(&["a b"]));
    }
    let seconds = api.per_second();
    let sum = |of: fn(&fake_api::Second) -> u64| seconds.iter().map(of).sum::<u64>();
    assert_eq!(sum(|second| second.requests), 3);
    assert_eq!(sum(|second| second.tokens), 6);
    assert_eq!(sum(|second| second.refused), 2);
    let busiest = api.busiest(Duration::from_secs(60));
    assert_eq!((busiest.requests, busiest.tokens), (3, 6));
    assert_eq!(api.busiest_arrivals(Duration::from_secs(60)).tokens, 10);
}

#[test]
fn a_reset_forgets_the_requests_and_not_the_budgets() {
    let api = FakeApi::start(Behaviour {
        limits: Limits::per_minute(1, 1_000),
        ..Behaviour::default()
    });
    let mut client = Client::of(&api);
    client.ask(&texts(&["a"]));
    api.reset();
    assert_eq!(
        (api.arrived(), api.connections(), api.distinct_inputs()),
        (0, 0, 0)
    );
    assert_eq!(client.ask(&texts(&["a"])).status, 429);
    assert_eq!(api.requests()[0].number, 0);
}

#[test]
fn what_was_in_flight_at_a_reset_is_taken_for_no_other() {
    let api = FakeApi::start(Behaviour::default());
    api.hold_answers();
    let mut old = Client::of(&api);
    old.send("/v1/embeddings", &[], &texts(&["a"]).to_string());
    let start = Instant::now();
    while api.in_flight() < 1 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(2));
    }
    api.reset();
    let mut new = Client::of(&api);
    new.send("/v1/embeddings", &[], "{");
    assert_eq!(new.read().expect("an answer").status, 400);
    api.release_answers();
    assert_eq!(old.read().expect("an answer").status, 200);
    let statuses: Vec<_> = api.requests().iter().map(|record| record.status).collect();
    assert_eq!(statuses, [Some(400)]);
}
