//! The API answers as OpenAI, Azure and Ollama do.

use fake_api::{Behaviour, FakeApi, TokenCount, vector_of};
use serde_json::{Value, json};

use crate::client::{Client, texts, vector};

fn api(change: impl FnOnce(&mut Behaviour)) -> FakeApi {
    let mut behaviour = Behaviour::default();
    change(&mut behaviour);
    FakeApi::start(behaviour)
}

/// `(status, error.code or null, error.message)`.
#[track_caller]
fn error_of(client: &mut Client, body: &Value) -> (u16, Value, String) {
    let answer = client.ask(body);
    let error = &answer.json()["error"];
    let message = error["message"].as_str().expect("a message").to_owned();
    (answer.status, error["code"].clone(), message)
}

#[test]
fn every_text_gets_its_own_vector() {
    let api = api(|_| {});
    let mut client = Client::of(&api);
    let answer = client.ask(&texts(&["a whale", "bread", "ünïcödé \"quoted\"\n"]));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let expected = [
        (0, vector_of("a whale", 4)),
        (1, vector_of("bread", 4)),
        (2, vector_of("ünïcödé \"quoted\"\n", 4)),
    ];
    assert_eq!(answer.vectors(), expected);
    let json = answer.json();
    assert_eq!(json["object"], "list");
    assert_eq!(json["model"], "text-embedding-3-small");
    assert_eq!(
        json["usage"]["prompt_tokens"],
        json["usage"]["total_tokens"]
    );
}

#[test]
fn base64_and_numbers_are_the_same_to_the_last_bit() {
    let api = api(|_| {});
    let mut client = Client::of(&api);
    let mut body = json!({ "model": "text-embedding-3-large", "input": "a whale" });
    for (format, is_text) in [("float", false), ("base64", true)] {
        body["encoding_format"] = format.into();
        let answer = client.ask(&body);
        assert_eq!(answer.json()["data"][0]["embedding"].is_string(), is_text);
        assert_eq!(answer.vectors(), [(0, vector_of("a whale", 3072))]);
    }
}

#[test]
fn tokens_are_openai_s() {
    let api = api(|_| {});
    let text = "To rotate an API key, create the new key first.";
    let answer = Client::of(&api).ask(&texts(&[text, text]));
    assert_eq!(answer.json()["usage"]["total_tokens"], 24);
    assert_eq!(api.tokens_accepted(), 24);
}

#[test]
fn a_wrong_key_is_refused_with_stars_and_the_new_one_taken_after_a_rotation() {
    let api = api(|behaviour| behaviour.keys = vec!["sk-proj-old-key-0001".into()]);
    let mut client = Client::of(&api);
    let body = texts(&["a"]);
    let mut ask = |key: &str| {
        let answer = client.ask_with(&[("authorization", &format!("Bearer {key}"))], &body);
        (answer.status, answer.json())
    };
    assert_eq!(ask("sk-proj-old-key-0001").0, 200);
    api.accept_key("sk-proj-new-key-0002");
    let (status, refusal) = ask("sk-proj-old-key-0001");
    assert_eq!(status, 401);
    assert_eq!(refusal["error"]["code"], "invalid_api_key");
    let message = refusal["error"]["message"].as_str().expect("a message");
    assert!(
        message.starts_with("Incorrect API key provided: sk-proj-********0001."),
        "{message}"
    );
    assert_eq!(ask("sk-proj-new-key-0002").0, 200);
    assert_eq!(client.ask(&body).status, 401, "without a key");
    assert_eq!((api.arrived(), api.accepted()), (4, 2));
}

#[test]
fn what_is_not_in_order_is_refused() {
    let api = api(|behaviour| {
        behaviour.models = vec!["text-embedding-3-small".into()];
        behaviour.max_input_tokens = 10;
        behaviour.max_request_tokens = 25;
        behaviour.max_inputs = 5;
    });
    let mut client = Client::of(&api);
    let ten = "a b c d e f g h i j";
    let eleven = "a b c d e f g h i j k";
    assert_eq!(client.ask(&texts(&[ten, ten])).status, 200);

    let (status, _, message) = error_of(&mut client, &texts(&["a", eleven]));
    assert_eq!(status, 400);
    assert!(
        message.starts_with(
            "This model's maximum context length is 10 tokens, however you requested 11 tokens"
        ),
        "{message}"
    );
    let (status, code, _) = error_of(&mut client, &texts(&[ten, ten, ten]));
    assert_eq!((status, code), (400, "max_tokens_per_request".into()));
    let (status, code, _) = error_of(&mut client, &texts(&["a"; 6]));
    assert_eq!((status, code), (400, "array_above_max_length".into()));
    for input in [
        json!(""),
        json!([]),
        json!(["a", ""]),
        json!([1, 2]),
        json!(null),
    ] {
        let (status, _, message) = error_of(
            &mut client,
            &json!({ "model": "text-embedding-3-small", "input": input }),
        );
        assert_eq!(status, 400, "{input}");
        assert!(message.starts_with("'$.input' is invalid"), "{message}");
    }
    let (status, code, _) = error_of(&mut client, &json!({ "model": "gpt-9", "input": "a" }));
    assert_eq!((status, code), (404, "model_not_found".into()));
    for (field, value) in [
        ("dimensions", json!(1537)),
        ("dimensions", json!(0)),
        ("encoding_format", json!("hex")),
    ] {
        let mut body = texts(&["a"]);
        body[field] = value;
        assert_eq!(client.ask(&body).status, 400, "{field}");
    }
    client.send("/v1/embeddings", &[], "{\"model\": ");
    assert_eq!(client.read().expect("an answer").status, 400);
    client.send("/embeddings", &[], "{}");
    assert_eq!(client.read().expect("an answer").status, 404);
    assert_eq!(api.accepted(), 1);
}

#[test]
fn azure_looks_for_its_own_header_and_version() {
    let api = api(|behaviour| behaviour.keys = vec!["azure-key".into()]);
    let mut client = Client::of(&api);
    let path = "/openai/deployments/small/embeddings";
    let mut ask = |query: &str, headers: &[(&str, &str)]| {
        client.send(
            &format!("{path}{query}"),
            headers,
            r#"{"input": "a whale"}"#,
        );
        client.read().expect("an answer")
    };
    let answer = ask("?api-version=2024-10-21", &[("api-key", "azure-key")]);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.vectors(), [(0, vector_of("a whale", 1536))]);
    let refused = ask(
        "?api-version=2024-10-21",
        &[("authorization", "Bearer azure-key")],
    );
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (401, &json!("401"))
    );
    assert_eq!(ask("", &[("api-key", "azure-key")]).status, 404);
}

#[test]
fn ollama_answers_in_its_own_shape_and_cuts_long_texts() {
    let api = api(|behaviour| {
        behaviour.models = vec!["nomic-embed-text".into()];
        behaviour.dimensions = Some(768);
        behaviour.max_input_tokens = 2;
    });
    let mut client = Client::of(&api);
    let mut ask = |body: Value| {
        client.send("/api/embed", &[], &body.to_string());
        let answer = client.read().expect("an answer");
        (answer.status, answer.json())
    };
    let input = json!(["one two three four", "a"]);
    let (status, answer) = ask(json!({ "model": "nomic-embed-text", "input": input }));
    assert_eq!((status, &answer["prompt_eval_count"]), (200, &json!(3)));
    assert_eq!(
        vector(&answer["embeddings"][0]),
        vector_of("one two three four", 768)
    );
    assert_eq!(vector(&answer["embeddings"][1]), vector_of("a", 768));
    let (status, answer) =
        ask(json!({ "model": "nomic-embed-text", "input": input, "truncate": false }));
    assert_eq!(status, 400);
    assert_eq!(
        answer["error"],
        "the input length exceeds the context length"
    );
    let (status, answer) = ask(json!({ "model": "other", "input": "a" }));
    assert_eq!(status, 404);
    assert_eq!(
        answer["error"],
        "model \"other\" not found, try pulling it first"
    );
}

#[test]
fn answers_are_compressed_and_permuted_on_demand() {
    use std::io::Read as _;
    let api = api(|behaviour| {
        behaviour.gzip = true;
        behaviour.permute = true;
        behaviour.token_count = TokenCount::Bytes(4);
    });
    let mut client = Client::of(&api);
    let mut answer = client.ask_with(
        &[("accept-encoding", "br, gzip;q=0.5")],
        &texts(&["a", "b", "c", "d", "e"]),
    );
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&answer.body[..])
        .read_to_end(&mut plain)
        .expect("gzip");
    answer.body = plain;
    let vectors = answer.vectors();
    assert!(!vectors.is_sorted_by_key(|(index, _)| *index), "in order");
    for (index, vector) in vectors {
        assert_eq!(
            vector,
            vector_of(["a", "b", "c", "d", "e"][index as usize], 4)
        );
    }
    let plain = client.ask(&texts(&["a"]));
    assert_eq!(
        plain.header("content-encoding"),
        None,
        "it was not asked for"
    );
}

#[test]
fn http_2_is_spoken_to_those_who_begin_with_it() {
    let api = api(|_| {});
    let mut client = Client::of(&api);
    // The preface and empty SETTINGS (RFC 9113, 3.4 and 6.5), to which the server says its own SETTINGS, type 4.
    client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.write(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(client.read_exactly(9).expect("a frame")[3], 4);
}
