//! Every fault is seen by a client.

use std::io::{ErrorKind, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fake_api::{Behaviour, FakeApi, Fault, NotFinite, Place, Record, vector_of};
use serde_json::{Value, json};

use crate::client::{Answer, Client, texts};

fn api(fault: Fault) -> FakeApi {
    let api = FakeApi::start(Behaviour::default());
    api.on_request(move |_| Some(fault.clone()));
    api
}

fn ask(fault: Fault) -> Answer {
    Client::of(&api(fault)).ask(&texts(&["a", "b", "c"]))
}

/// Waits until the only request has ended.
fn ended(api: &FakeApi) -> Record {
    let start = Instant::now();
    loop {
        let mut records = api.requests();
        assert_eq!(records.len(), 1);
        if records[0].ended.is_some() {
            return records.remove(0);
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{records:?}");
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn another_status_with_its_headers_and_body() {
    let unavailable = ask(Fault::status(503));
    assert_eq!(unavailable.status, 503);
    assert_eq!(unavailable.json()["error"]["type"], "server_error");
    let limited = ask(Fault::rate_limited(Duration::from_millis(1500)));
    assert_eq!(
        (limited.status, limited.header("retry-after")),
        (429, Some("2"))
    );
    let redirect = ask(Fault::redirect("http://192.0.2.1/v1/embeddings"));
    assert_eq!(redirect.status, 307);
    assert_eq!(
        redirect.header("location"),
        Some("http://192.0.2.1/v1/embeddings")
    );
    let html = ask(Fault::Answer {
        status: 502,
        headers: vec![("Content-Type".into(), "text/html".into())],
        body: "<h1>Bad Gateway</h1>".into(),
    });
    assert_eq!(
        (html.status, html.header("content-type")),
        (502, Some("text/html"))
    );
    assert_eq!(html.body, b"<h1>Bad Gateway</h1>");
    assert_eq!(ask(Fault::body("[]")).json(), json!([]));
}

#[test]
fn the_right_answer_later() {
    let start = Instant::now();
    assert_eq!(ask(Fault::Wait(Duration::from_millis(100))).status, 200);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[test]
fn silence_before_the_answer_until_the_client_gives_up() {
    let api = api(Fault::Hang(Place::BeforeAnswer));
    let mut client = Client::of(&api);
    client.be_patient_for(Duration::from_millis(100));
    client.send("/v1/embeddings", &[], &texts(&["a"]).to_string());
    let error = client.read().expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(api.in_flight(), 1);
    drop(client);
    let record = ended(&api);
    assert_eq!((record.status, record.sent_fully), (None, false));
    assert_eq!(api.in_flight(), 0);
}

/// Reads the head, and then half of the body.
fn read_half(client: &mut Client) {
    client.send("/v1/embeddings", &[], &texts(&["a"]).to_string());
    let head = client.read_head().expect("a head");
    assert_eq!(head.status, 200);
    let length: usize = head
        .header("content-length")
        .expect("a length")
        .parse()
        .expect("a number");
    assert!(
        client
            .read_exactly(length / 2)
            .expect("half")
            .starts_with(b"{\"object\"")
    );
}

#[test]
fn silence_in_the_middle_of_the_body() {
    let api = api(Fault::Hang(Place::InBody));
    let mut client = Client::of(&api);
    read_half(&mut client);
    client.be_patient_for(Duration::from_millis(100));
    let (rest, end) = client.read_to_end();
    assert_eq!(end.expect_err("silence").kind(), ErrorKind::WouldBlock);
    assert!(rest.is_empty());
    drop(client);
    let record = ended(&api);
    assert_eq!((record.status, record.sent_fully), (Some(200), false));
}

#[test]
fn a_connection_that_closes_or_is_reset_before_or_in_the_body() {
    for (fault, end) in [
        (Fault::Close as fn(Place) -> Fault, None),
        (Fault::Reset, Some(ErrorKind::ConnectionReset)),
    ] {
        for place in [Place::BeforeAnswer, Place::InBody] {
            let api = api(fault(place));
            let mut client = Client::of(&api);
            match place {
                Place::BeforeAnswer => {
                    client.send("/v1/embeddings", &[], &texts(&["a"]).to_string());
                }
                Place::InBody => read_half(&mut client),
            }
            let (rest, seen) = client.read_to_end();
            assert!(rest.is_empty());
            assert_eq!(seen.err().map(|error| error.kind()), end, "{place:?}");
            assert!(!ended(&api).sent_fully);
        }
    }
}

#[test]
fn a_byte_at_a_time() {
    let every = Duration::from_millis(1);
    let api = api(Fault::Trickle(every));
    let start = Instant::now();
    let answer = Client::of(&api).ask(&texts(&["a"]));
    assert_eq!(answer.vectors(), [(0, vector_of("a", 4))]);
    assert!(start.elapsed() >= every * (answer.body.len() as u32 - 1));
    assert!(ended(&api).sent_fully);
}

#[test]
fn json_that_ends_in_the_middle() {
    let answer = ask(Fault::TruncatedJson);
    assert_eq!(answer.status, 200);
    let error = serde_json::from_slice::<Value>(&answer.body).expect_err("half of it");
    assert!(error.is_eof());
}

#[test]
fn vectors_that_are_too_few_too_many_or_in_disorder() {
    let indexes = |fault: Fault| -> Vec<u64> {
        let vectors = ask(fault).vectors();
        for (index, vector) in &vectors {
            if let Some(text) = ["a", "b"].get(*index as usize) {
                let is_right = *vector == vector_of(text, 4);
                // Of two vectors with the same index, one is of another text.
                assert!(is_right || vector == &vector_of("c", 4), "{index}");
            }
        }
        vectors.iter().map(|(index, _)| *index).collect()
    };
    assert_eq!(indexes(Fault::TooFew), [0, 1]);
    assert_eq!(indexes(Fault::TooMany), [0, 1, 2, 3]);
    assert_eq!(indexes(Fault::DuplicateIndex), [0, 1, 0]);
    let mut permuted = indexes(Fault::Permuted);
    assert_ne!(permuted, [0, 1, 2]);
    permuted.sort_unstable();
    assert_eq!(permuted, [0, 1, 2]);
    let alone = Client::of(&api(Fault::DuplicateIndex)).ask(&texts(&["a"]));
    assert_eq!(
        alone.vectors(),
        [(0, vector_of("a", 4)), (0, vector_of("a", 4))]
    );
}

#[test]
fn vectors_of_another_length() {
    for (_, vector) in ask(Fault::Dimensions(3)).vectors() {
        assert_eq!(vector.len(), 3);
    }
}

#[test]
fn components_that_are_no_finite_number() {
    for what in NotFinite::ALL {
        let answer = ask(Fault::NotFinite(what));
        let text = String::from_utf8(answer.body.clone()).expect("text");
        let starts = |beginning: &str| {
            let found = text.contains(&format!("\"index\":0,\"embedding\":{beginning}"));
            assert!(found, "{what:?}: {text}");
        };
        match what {
            NotFinite::NanAsNull => starts("[null,"),
            NotFinite::NanAsText => starts("[\"NaN\","),
            NotFinite::NanAsWord => starts("[NaN,"),
            NotFinite::InfinityAsWord => starts("[Infinity,"),
            NotFinite::InfinityAsNumber => starts("[1e999,"),
            NotFinite::TooLargeForFloat => starts("[1e39,"),
            NotFinite::NanInBase64 => assert!(answer.vectors()[0].1[0].is_nan()),
            NotFinite::InfinityInBase64 => assert!(answer.vectors()[0].1[0].is_infinite()),
        }
        // Nothing else is wrong with it.
        let right = serde_json::from_slice::<Value>(&answer.body);
        assert!(
            right.is_ok_and(|json| json["data"].as_array().is_some_and(|data| data.len() == 3))
                || text.contains("NaN")
                || text.contains("Infinity")
                || text.contains("1e999")
        );
    }
}

#[test]
fn a_body_without_measure() {
    let answer = ask(Fault::HugeBody(3_000_000));
    assert_eq!(answer.body.len(), 3_000_000);
    assert!(answer.body.starts_with(b"{\"object\":\"list\",\"data\":[ "));
    let api = api(Fault::HugeBody(1 << 50));
    let mut client = Client::of(&api);
    client.send("/v1/embeddings", &[], &texts(&["a"]).to_string());
    client.read_exactly(1_000_000).expect("it begins");
    drop(client);
    assert!(!ended(&api).sent_fully);
}

#[test]
fn a_gzip_bomb_is_right_gzip_and_small_on_the_wire() {
    let answer = ask(Fault::GzipBomb(50_000_000));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert!(answer.body.len() < 200_000, "{}", answer.body.len());
    let mut plain = Vec::new();
    // One stream, because many decoders read no second one; its checksum is looked at.
    flate2::bufread::GzDecoder::new(&answer.body[..])
        .read_to_end(&mut plain)
        .expect("gzip");
    assert_eq!(plain.len(), 50_000_000);
    assert!(plain.starts_with(b"{\"object\":\"list\",\"data\":[ "));
}

#[test]
fn a_poison_row_refuses_its_request_and_no_other() {
    let api = FakeApi::start(Behaviour::default());
    api.refuse_text("poison");
    let mut client = Client::of(&api);
    let refusal = client.ask(&texts(&["a", "a poisonous mushroom"]));
    assert_eq!(refusal.status, 400);
    assert!(!refusal.json().to_string().contains("poison"));
    assert_eq!(client.ask(&texts(&["a"])).status, 200);
    api.clear_faults();
    assert_eq!(client.ask(&texts(&["poison"])).status, 200);
}

#[test]
fn a_share_of_the_requests_fails_in_the_same_way_every_time() {
    let statuses = |seed: u64| -> Vec<u16> {
        let api = FakeApi::start(Behaviour::default());
        api.fail_share(seed, 0.25, Fault::status(500));
        let mut client = Client::of(&api);
        (0..100)
            .map(|_| client.ask(&texts(&["a"])).status)
            .collect()
    };
    let first = statuses(1);
    let failed = first.iter().filter(|status| **status == 500).count();
    assert!((10..40).contains(&failed), "{failed} of 100 at 25 %");
    assert_eq!(first, statuses(1));
    assert_ne!(first, statuses(2));
}

#[test]
fn the_first_rule_that_names_a_fault_has_its_way() {
    let api = FakeApi::start(Behaviour::default());
    api.on_request(|request| (request.number == 0).then(|| Fault::status(500)));
    api.on_request(|request| {
        assert_eq!(request.header("x-trace"), Some("1"));
        assert_eq!(
            (request.texts.as_slice(), request.tokens),
            (["a".to_owned()].as_slice(), 1)
        );
        (request.number < 2).then(|| Fault::status(502))
    });
    let mut client = Client::of(&api);
    let mut status = || client.ask_with(&[("X-Trace", "1")], &texts(&["a"])).status;
    assert_eq!([status(), status(), status()], [500, 502, 200]);
}

#[test]
fn answers_can_be_held_back() {
    let api = FakeApi::start(Behaviour::default());
    api.hold_answers();
    let mut client = Client::of(&api);
    client.send("/v1/embeddings", &[], &texts(&["a"]).to_string());
    client.be_patient_for(Duration::from_millis(100));
    assert!(client.read_head().is_err(), "answered while held");
    client.be_patient_for(Duration::from_secs(20));
    api.release_answers();
    assert_eq!(client.read().expect("an answer").status, 200);
}

#[test]
fn a_panic_in_the_server_reaches_the_test() {
    for by_drop in [false, true] {
        let api = FakeApi::start(Behaviour::default());
        api.on_request(|request| panic!("request {} is not welcome", request.number));
        let mut client = Client::of(&api);
        client.send("/v1/embeddings", &[], &texts(&["a"]).to_string());
        assert!(client.read().is_err(), "an answer in spite of the panic");
        let raised = if by_drop {
            catch_unwind(AssertUnwindSafe(|| drop(api)))
        } else {
            catch_unwind(AssertUnwindSafe(|| api.check()))
        };
        let panic = raised.expect_err("the panic is raised again");
        let message = panic.downcast_ref::<String>().map(String::as_str);
        assert_eq!(message, Some("request 0 is not welcome"));
    }
}
