//! The client against a server that behaves as servers do, and worse.

mod support;

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use embedder::remote::{Answer, Client, Endpoint, Purpose, RequestOptions, ServerLimits};
use embedder::{EmbedError, ErrorClass, Secret};
use serde_json::{Value, json};
use support::{Reply, Request, Server, json as answer};

const KEY: &str = "sk-proj-A1b2C3d4E5f6G7h8I9j0";

/// Long enough that only what hangs for ever meets it.
const LONG: Duration = Duration::from_secs(30);

struct Caller {
    client: Client,
    endpoint: Endpoint,
}

impl Caller {
    fn of(model: &str, server: &Server) -> Self {
        Self::at(model, &server.url())
    }

    fn at(model: &str, url: &str) -> Self {
        Self {
            client: Client::new(Duration::from_secs(5)).unwrap(),
            endpoint: Endpoint::new(
                &model.parse().unwrap(),
                Some(url),
                &RequestOptions::default(),
            )
            .unwrap(),
        }
    }

    async fn embed_within(&self, inputs: &[&str], timeout: Duration) -> Result<Answer, EmbedError> {
        let key = Secret::new(KEY).unwrap();
        self.client
            .embed(
                &self.endpoint,
                Some(&key),
                Purpose::Document,
                inputs,
                2,
                timeout,
            )
            .await
    }

    async fn embed(&self, inputs: &[&str]) -> Result<Answer, EmbedError> {
        self.embed_within(inputs, LONG).await
    }
}

/// The error for one input when the server replies like this. In none is the key, whatever the server says.
async fn error(reply: impl Fn() -> Reply + Send + Sync + 'static) -> EmbedError {
    let server = Server::start(move |_| reply()).await;
    let error = Caller::of("openai/m", &server)
        .embed(&["a"])
        .await
        .unwrap_err();
    let text = format!("{error:?}");
    for run in KEY.as_bytes().windows(8) {
        assert!(!text.contains(std::str::from_utf8(run).unwrap()), "{text}");
    }
    error
}

fn item(index: usize, embedding: Value) -> Value {
    json!({"object": "embedding", "index": index, "embedding": embedding})
}

/// Two dimensions: the number of the input and its length.
fn honest(request: &Request) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let data: Vec<Value> = body["input"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(index, input)| item(index, json!([index, input.as_str().unwrap().len()])))
        .collect();
    answer(
        &json!({"object": "list", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}),
    )
}

#[tokio::test]
async fn requests_share_a_connection_and_carry_the_key() {
    let server = Server::start(honest).await;
    let caller = Caller::of("openai/m", &server);
    for _ in 0..5 {
        let answer = caller.embed(&["a", "bcd"]).await.unwrap();
        assert_eq!(answer.vectors, [[0.0, 1.0], [1.0, 3.0]]);
        assert_eq!(answer.tokens, Some(3));
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    let head = server.last_head().to_lowercase();
    assert!(head.starts_with("post /v1/embeddings http/1.1"), "{head}");
    assert!(head.contains(&format!("authorization: bearer {}", KEY.to_lowercase())));
    assert!(head.contains("user-agent: pg_ingest/"), "{head}");
    assert!(head.contains("accept-encoding: gzip"), "{head}");
    assert_eq!(
        server.last_body(),
        json!({"model": "m", "input": ["a", "bcd"]})
    );
}

#[tokio::test]
async fn base64_and_floats_are_understood_alike_and_put_in_order() {
    let bytes: Vec<u8> = [0.25_f32, -1.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let packed = STANDARD.encode(bytes);
    let server = Server::start(move |_| {
        answer(&json!({"data": [item(1, json!(packed)), item(0, json!([1.5, 2]))]}))
    })
    .await;
    let answer = Caller::of("openai/m", &server)
        .embed(&["a", "b"])
        .await
        .unwrap();
    assert_eq!(answer.vectors, [[1.5, 2.0], [0.25, -1.0]]);
}

#[tokio::test]
async fn azure_and_ollama_are_spoken_to_in_their_way() {
    let server = Server::start(honest).await;
    Caller::at("azure/dep", &format!("http://{}", server.address))
        .embed(&["a"])
        .await
        .unwrap();
    let head = server.last_head();
    assert!(
        head.starts_with("POST /openai/deployments/dep/embeddings?api-version=2024-10-21 HTTP/1.1"),
        "{head}"
    );
    assert!(
        head.to_lowercase().contains("\r\napi-key: sk-proj-"),
        "{head}"
    );
    assert!(!head.to_lowercase().contains("authorization"));
    assert_eq!(
        server.last_body(),
        json!({"encoding_format": "base64", "input": ["a"]})
    );

    let server = Server::start(|_| {
        answer(&json!({"model": "m", "embeddings": [[1, 2], [3, 4]], "prompt_eval_count": 9}))
    })
    .await;
    let answer = Caller::at("ollama/m", &format!("http://{}", server.address))
        .embed(&["a", "b"])
        .await
        .unwrap();
    assert_eq!(answer.vectors, [[1.0, 2.0], [3.0, 4.0]]);
    assert_eq!(answer.tokens, Some(9));
    assert!(server.last_head().starts_with("POST /api/embed HTTP/1.1"));
    assert_eq!(server.last_body()["truncate"], false);
}

#[tokio::test]
async fn a_wrong_list_of_vectors_is_a_bad_response() {
    for data in [
        json!([]),
        json!([item(0, json!([1, 2])), item(0, json!([1, 2]))]),
        json!([item(1, json!([1, 2]))]),
        json!([item(0, json!([1, null]))]),
        json!([item(0, json!("AAA"))]),
        json!([{"index": 0}]),
    ] {
        let error = error(move || answer(&json!({ "data": data }))).await;
        assert_eq!(error.class, ErrorClass::BadResponse, "{error}");
        assert!(!error.blocks_pipeline() && error.http_status == Some(200));
    }
    let error = error(|| answer(&json!({"data": [item(0, json!([1, 2, 3]))]}))).await;
    assert!(error.blocks_pipeline() && error.hint.unwrap().contains("dimensions => 3"));
}

#[tokio::test]
async fn what_is_not_json_is_told_as_what_it_is() {
    for (body, words) in [
        ("<!doctype html><p>Please log in", "web page"),
        ("{\"data\":[{\"index\":0,\"embed", "ends in the middle"),
        ("", "empty"),
    ] {
        let error = error(move || Reply::Answer(200, Vec::new(), body.into())).await;
        assert_eq!(error.class, ErrorClass::BadResponse);
        assert!(error.message.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_is_refused_and_the_key_goes_nowhere_else() {
    let elsewhere = Server::start(honest).await;
    let target = format!("{}/?key={KEY}", elsewhere.url());
    for status in [301, 302, 303, 307, 308] {
        let target = target.clone();
        let error =
            error(move || Reply::Answer(status, vec![("location", target.clone())], Vec::new()))
                .await;
        assert!(
            error.message.contains("redirect to http://127.0.0.1"),
            "{error}"
        );
        assert_eq!(error.http_status, Some(status));
        assert!(error.blocks_pipeline());
    }
    assert_eq!(elsewhere.connections.load(Ordering::SeqCst), 0);
}

fn gzip(bytes: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bytes.for_each(|chunk| encoder.write_all(&chunk).unwrap());
    encoder.finish().unwrap()
}

fn zipped(status: u16, body: Vec<u8>) -> Reply {
    Reply::Answer(status, vec![("content-encoding", "gzip".to_owned())], body)
}

#[tokio::test]
async fn a_compressed_answer_is_read_and_a_bomb_is_cut() {
    let good = gzip(
        [json!({"data": [item(0, json!([1, 2]))]})
            .to_string()
            .into_bytes()]
        .into_iter(),
    );
    let server = Server::start(move |_| zipped(200, good.clone())).await;
    let answer = Caller::of("openai/m", &server).embed(&["a"]).await.unwrap();
    assert_eq!(answer.vectors, [[1.0, 2.0]]);

    // 256 MiB of blanks in 256 KiB.
    let bomb = gzip((0..256).map(|_| vec![b' '; 1 << 20]));
    assert!(bomb.len() < 1 << 19);
    let copy = bomb.clone();
    let cut = error(move || zipped(200, copy.clone())).await;
    assert_eq!(cut.class, ErrorClass::BadResponse);
    assert!(cut.message.contains("longer than"), "{cut}");
    let refused = error(move || zipped(400, bomb.clone())).await;
    assert_eq!(refused.class, ErrorClass::InvalidRequest);

    let broken = error(|| zipped(200, b"not gzip at all".to_vec())).await;
    assert_eq!(broken.class, ErrorClass::BadResponse, "{broken}");
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    let error = error(|| {
        let mut bytes = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        bytes.resize(8 << 20, b' ');
        Reply::Cut(bytes)
    })
    .await;
    assert_eq!(error.class, ErrorClass::BadResponse);
    assert!(error.message.contains("longer than"), "{error}");
}

#[tokio::test]
async fn a_byte_now_and_then_does_not_hold_the_deadline() {
    for start in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"[..],
        b"HTTP/1.1 500 Oops\r\ncontent-length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-slow:",
    ] {
        let server =
            Server::start(move |_| Reply::Drip(start.to_vec(), Duration::from_millis(10))).await;
        let begin = Instant::now();
        let error = Caller::of("openai/m", &server)
            .embed_within(&["a"], Duration::from_millis(200))
            .await
            .unwrap_err();
        assert_eq!(error.class, ErrorClass::Timeout, "{error}");
        assert!(begin.elapsed() >= Duration::from_millis(200) && begin.elapsed() < LONG);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_unavailable_and_the_next_request_is_served() {
    for bytes in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"data\":["[..],
        b"HTTP/1.1 200 O",
        b"",
    ] {
        let error = error(|| Reply::Cut(bytes.to_vec())).await;
        assert_eq!(error.class, ErrorClass::Unavailable, "{error}");
        assert!(error.message.contains("127.0.0.1"), "{error}");
    }
    let server = Server::start(|request| {
        if request.body.windows(3).any(|bytes| bytes == b"cut") {
            Reply::Cut(Vec::new())
        } else {
            honest(request)
        }
    })
    .await;
    let caller = Caller::of("openai/m", &server);
    assert!(caller.embed(&["cut"]).await.is_err());
    assert!(caller.embed(&["a"]).await.is_ok());
}

#[tokio::test]
async fn nobody_there_is_unavailable_and_says_why() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let gone = Caller::at("openai/m", &format!("http://{address}/v1?tenant=topsecret"))
        .embed(&["a"])
        .await
        .unwrap_err();
    assert_eq!(gone.class, ErrorClass::Unavailable);
    assert!(
        gone.message.contains(&address.to_string()) && gone.message.contains("refused"),
        "{gone}"
    );
    assert!(!gone.message.contains("topsecret"), "{gone}");

    // A server that knows no TLS.
    let server = Server::start(honest).await;
    let url = format!("https://{}", server.address);
    let no_tls = Caller::at("openai/m", &url)
        .embed(&["a"])
        .await
        .unwrap_err();
    assert_eq!(no_tls.class, ErrorClass::Unavailable, "{no_tls}");

    // A name that the resolver must refuse (RFC 6761).
    let unknown = Caller::at("openai/m", "http://no-such-host.invalid/")
        .embed(&["a"])
        .await
        .unwrap_err();
    assert_eq!(unknown.class, ErrorClass::Unavailable, "{unknown}");
}

#[tokio::test]
async fn a_429_says_how_long_to_wait_in_every_form() {
    const REFUSAL: &str =
        r#"{"error":{"message":"Rate limit reached","code":"rate_limit_exceeded"}}"#;
    let in_two_minutes =
        || httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(120));
    for (headers, least, most) in [
        (vec![("retry-after-ms", "250".to_owned())], 250, 250),
        (vec![("retry-after", "2".to_owned())], 2_000, 2_000),
        (vec![("retry-after", "0.5".to_owned())], 500, 500),
        (vec![("retry-after", in_two_minutes())], 90_000, 120_000),
        (
            vec![
                ("x-ratelimit-remaining-tokens", "0".to_owned()),
                ("x-ratelimit-reset-tokens", "6m0s".to_owned()),
            ],
            360_000,
            360_000,
        ),
    ] {
        let error = error(move || Reply::Answer(429, headers.clone(), REFUSAL.into())).await;
        assert_eq!(error.class, ErrorClass::RateLimited);
        let wait = error.retry_after.unwrap().as_millis();
        assert!((least..=most).contains(&wait), "{wait}");
    }
    let silent = error(|| Reply::Answer(429, Vec::new(), REFUSAL.into())).await;
    assert_eq!(silent.retry_after, None);
    let spent = error(|| {
        Reply::Answer(
            429,
            Vec::new(),
            br#"{"error":{"message":"x","code":"insufficient_quota"}}"#.to_vec(),
        )
    })
    .await;
    assert_eq!(spent.class, ErrorClass::QuotaExhausted);
}

#[tokio::test]
async fn limits_and_the_name_of_the_request_are_passed_on() {
    let server = Server::start(|_| {
        Reply::Answer(
            200,
            vec![
                ("x-request-id", "req_1".to_owned()),
                ("x-ratelimit-limit-requests", "5000".to_owned()),
                ("x-ratelimit-limit-tokens", "5000000".to_owned()),
            ],
            json!({"data": [item(0, json!([1, 2]))]}).to_string().into(),
        )
    })
    .await;
    let answer = Caller::of("openai/m", &server).embed(&["a"]).await.unwrap();
    assert_eq!(answer.request_id.as_deref(), Some("req_1"));
    let limits = ServerLimits {
        requests_per_minute: Some(5_000),
        tokens_per_minute: Some(5_000_000),
    };
    assert_eq!(answer.limits, limits);
    let error =
        error(|| Reply::Answer(500, vec![("apim-request-id", "b".to_owned())], Vec::new())).await;
    assert_eq!(error.request_id.as_deref(), Some("b"));
}

#[tokio::test]
async fn a_server_that_echoes_the_key_everywhere_does_not_get_it_into_an_error() {
    // The helper looks at every part of the error.
    for status in [200, 307, 400, 401, 404, 429, 500] {
        for body in [
            json!({"error": {"message": format!("bad key {KEY}, Bearer {KEY}"), "code": KEY}})
                .to_string(),
            json!({"data": KEY}).to_string(),
            json!({"data": [{"index": KEY}]}).to_string(),
            format!("<title>{KEY}</title>"),
            format!("{KEY}\r\n{}", &KEY[9..]),
        ] {
            let error = error(move || {
                Reply::Answer(
                    status,
                    vec![
                        ("x-request-id", KEY.to_owned()),
                        ("location", format!("http://{}.example/", &KEY[8..])),
                    ],
                    body.clone().into(),
                )
            })
            .await;
            assert!(!error.message.is_empty());
        }
    }
}

#[tokio::test]
async fn an_error_inside_a_good_answer_is_an_error() {
    let error = error(|| answer(&json!({"error": {"message": "slow down", "code": 429}}))).await;
    assert_eq!(error.class, ErrorClass::RateLimited);
    assert!(error.message.contains("slow down"));
}

#[tokio::test]
async fn without_a_key_a_public_server_is_not_even_asked() {
    let client = Client::new(LONG).unwrap();
    let options = RequestOptions::default();
    let endpoint = Endpoint::new(&"openai/m".parse().unwrap(), None, &options).unwrap();
    let ask = |inputs| client.embed(&endpoint, None, Purpose::Query, inputs, 2, LONG);
    let error = ask(&["a"]).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Auth);
    assert!(error.hint.unwrap().contains("api_key"));
    assert!(ask(&[]).await.unwrap().vectors.is_empty());
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_any_more_is_hung_up() {
    let server = Server::start(|request| {
        if request.body.windows(4).any(|bytes| bytes == b"slow") {
            Reply::Drip(
                b"HTTP/1.1 200 OK\r\nx-slow:".to_vec(),
                Duration::from_millis(5),
            )
        } else {
            honest(request)
        }
    })
    .await;
    let caller = Caller::of("openai/m", &server);
    {
        let slow = caller.embed(&["slow"]);
        let asked = async {
            while server.requests.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = slow => panic!("an answer that never ends has ended"),
            () = asked => {}
        }
    }
    assert!(caller.embed(&["a"]).await.is_ok());
}
