//! Promise: nobody ever sees a key, whatever a provider does with it.

use fake_api::{FakeApi, Fault, Request};
use harness::remote::{KEY, OTHER_KEY, behaviour, case, case_of, server_log};
use harness::secrecy::{files_with_a_key, holds_a_key, the_key_is_nowhere};
use harness::*;

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
    let db = Database::new();
    let cluster = db.cluster();
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
