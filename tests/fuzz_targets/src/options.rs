//! The extra headers and fields of requests.

use embedder::remote::fuzzing::{request_body, request_headers};
use embedder::remote::{Endpoint, Purpose, RequestOptions};
use embedder::{ModelName, Secret};
use serde_json::Value;

const KEY: &str = "sk-proj-A1b2C3d4E5f6G7h8I9j0";
const INPUTS: [&str; 2] = ["plain", "\"a\"\n\u{1}\\ü"];

/// One letter (whose request), then the options.
///
/// Options that are taken are written as they are read, and whatever they are, a request is JSON with the inputs behind
/// their prefix and asks for the model, and the key goes along once.
pub fn options(bytes: &[u8]) {
    let Some((letter, json)) = bytes.split_first() else {
        return;
    };
    let Ok(options) = std::str::from_utf8(json)
        .map_err(drop)
        .and_then(|json| RequestOptions::parse(json).map_err(drop))
    else {
        return;
    };
    let written = serde_json::to_string(&options).expect("options can be written");
    let again = RequestOptions::parse(&written);
    // A number with more digits than a double has may be another by its last digit.
    if written_exactly(&written) {
        assert_eq!(again.as_ref(), Ok(&options));
    }
    assert!(again.is_ok());
    let (model, url) = match letter {
        b'a' => ("azure/deployment", Some("https://r.openai.azure.com")),
        b'l' => ("ollama/nomic-embed-text", None),
        b'v' => ("openai/voyage-3.5", None),
        b's' => ("openai/text-embedding-3-small", None),
        _ => ("openai/some-model", Some("http://localhost:8080/v1")),
    };
    let model: ModelName = model.parse().expect("a model's name");
    let Ok(endpoint) = Endpoint::new(&model, url, &options) else {
        return;
    };
    let secret = Secret::new(KEY).expect("a key");
    let with_key = request_headers(&endpoint, Some(&secret));
    let mut carriers = with_key
        .iter()
        .filter(|(name, _)| ["authorization", "api-key"].contains(&name.as_str()));
    let carrier = carriers.next().expect("a header with the key");
    assert!(carrier.1.ends_with(KEY.as_bytes()) && carriers.next().is_none());
    assert_eq!(with_key.len(), request_headers(&endpoint, None).len() + 1);
    for purpose in [Purpose::Document, Purpose::Query] {
        let body = request_body(&endpoint, purpose, &INPUTS, 512);
        let body: Value = serde_json::from_slice(&body).expect("a request's body is JSON");
        let prefix = endpoint.prefix(purpose);
        let inputs: Vec<String> = INPUTS
            .iter()
            .map(|input| format!("{prefix}{input}"))
            .collect();
        assert_eq!(body["input"], Value::from(inputs));
        if *letter != b'a' {
            assert_eq!(body["model"], model.name);
        }
    }
}

fn written_exactly(json: &str) -> bool {
    let whole = |number: &Value| number.is_u64() || number.is_i64();
    let mut open: Vec<Value> = serde_json::from_str(json).into_iter().collect();
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => open.extend(fields.into_iter().map(|(_, value)| value)),
            number @ Value::Number(_) if !whole(&number) => return false,
            _ => {}
        }
    }
    true
}
