//! The client against an HTTPS server in this process, with certificates of an authority that every test
//! makes for itself.
//!
//! The client reads its trust roots where `SSL_CERT_FILE` points, a variable of the whole process: every test runs
//! again in a process of its own ([`trusting_its_own`]), in which that variable names the authority's certificate.

use std::any::type_name;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fs};

use embedder::remote::{Answer, Client, Endpoint, Purpose, RequestOptions};
use embedder::{EmbedError, ErrorClass, Secret};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion, version};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const KEY: &str = "sk-proj-A1b2C3d4E5f6G7h8I9j0";

/// Long enough that only what hangs for ever meets it.
const LONG: Duration = Duration::from_secs(30);

/// Where the client looks for trust roots, before the system's.
const ROOTS: &str = "SSL_CERT_FILE";

/// Set in the process that a test runs again in.
const CHILD: &str = "PG_INGEST_TLS_TEST_CHILD";

/// The name of the authority that clients trust.
const TRUSTED: &str = "the authority of the tests";

/// What servers that speak both offer by ALPN.
const BOTH: &[&str] = &["h2", "http/1.1"];

/// Keeps a promise in a process of its own, whose clients trust the authority that the promise is given and no other.
/// For closures only: the test that is run again is the one the closure stands in.
fn trusting_its_own<P: AsyncFnOnce(&Authority)>(promise: P) {
    if env::var_os(CHILD).is_some() {
        let authority = Authority::named(TRUSTED);
        fs::write(env::var_os(ROOTS).unwrap(), &authority.pem).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(promise(&authority));
    }
    // "tls::the_test::{{closure}}"
    let name = type_name::<P>().split("::").nth(1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let roots = directory.path().join("roots.pem");
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .env(ROOTS, &roots)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{name}, run again:\n{}{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(roots.exists(), "no test has run that is named {name}");
}

/// Who vouches for servers.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pem: String,
}

/// What a certificate says, but for its issuer.
struct Claims<'a> {
    name: &'a str,
    /// First and last year.
    years: (i32, i32),
}

/// What a caller of localhost wants to see.
const GOOD: Claims<'static> = Claims {
    name: "localhost",
    years: (2020, 4000),
};

impl Authority {
    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// What a server needs to show that this authority vouches for these claims.
    fn vouch(&self, claims: &Claims) -> Identity {
        let mut params = CertificateParams::new([claims.name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(claims.years.0, 1, 1);
        params.not_after = date_time_ymd(claims.years.1, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate: certificate.into(),
            key: key.into(),
        }
    }
}

/// A certificate and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// How a server speaks.
#[derive(Clone, Copy)]
struct Manner {
    /// What it offers by ALPN; if nothing, it has no ALPN.
    alpn: &'static [&'static str],
    /// The version of TLS.
    tls: &'static SupportedProtocolVersion,
    /// How many requests it takes at once on a connection of HTTP/2.
    streams: u32,
    /// How many requests must have arrived before the first is answered.
    together: usize,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            alpn: BOTH,
            tls: &version::TLS13,
            streams: 200,
            together: 1,
        }
    }
}

/// A request that arrived.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    /// The number of its connection, from 1.
    connection: usize,
    /// The name that TLS asked for; it never asks for an address.
    name: Option<String>,
    version: Version,
    authorization: String,
}

/// An embeddings API over TLS, on a port of its own.
struct Server {
    port: u16,
    /// How many connections came, those among them that were refused or never used.
    connections: Arc<AtomicUsize>,
    /// How many of them are open.
    open: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(identity: Identity, manner: Manner) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[manner.tls])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate], identity.key)
            .unwrap();
        config.alpn_protocols = manner
            .alpn
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            connections: Arc::default(),
            open: Arc::default(),
            seen: Arc::default(),
        };
        let (connections, open) = (Arc::clone(&server.connections), Arc::clone(&server.open));
        let seen = Arc::clone(&server.seen);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let together = Arc::new(Barrier::new(manner.together));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = connections.fetch_add(1, Ordering::SeqCst) + 1;
                open.fetch_add(1, Ordering::SeqCst);
                let (acceptor, open) = (acceptor.clone(), Arc::clone(&open));
                let (seen, together) = (Arc::clone(&seen), Arc::clone(&together));
                tokio::spawn(async move {
                    // A client that refuses the certificate ends the handshake.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, connection, manner.streams, seen, together).await;
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// Serves a connection until its client hangs up.
async fn serve(
    stream: TlsStream<TcpStream>,
    connection: usize,
    streams: u32,
    seen: Arc<Mutex<Vec<Seen>>>,
    together: Arc<Barrier>,
) {
    let name = stream.get_ref().1.server_name().map(str::to_owned);
    let service = service_fn(|request: Request<Incoming>| {
        let authorization = request.headers()["authorization"].to_str().unwrap();
        seen.lock().unwrap().push(Seen {
            connection,
            name: name.clone(),
            version: request.version(),
            authorization: authorization.to_owned(),
        });
        let together = Arc::clone(&together);
        async move {
            let body = request.into_body().collect().await?.to_bytes();
            together.wait().await;
            Ok::<_, hyper::Error>(Response::new(Full::new(honest(&body))))
        }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http2().max_concurrent_streams(streams);
    // It ends in an error if the client hangs up without a word.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

/// Two dimensions: the number of the input and its length.
fn honest(body: &[u8]) -> Bytes {
    let body: Value = serde_json::from_slice(body).unwrap();
    let inputs = body["input"].as_array().unwrap().iter().enumerate();
    let data: Vec<Value> = inputs
        .map(|(index, input)| json!({"index": index, "embedding": [index, input.as_str().unwrap().len()]}))
        .collect();
    Bytes::from(json!({ "data": data }).to_string())
}

#[derive(Clone)]
struct Caller {
    client: Client,
    endpoint: Arc<Endpoint>,
}

impl Caller {
    /// One who knows the server by this name or address.
    fn at(host: &str, server: &Server) -> Self {
        let url = format!("https://{host}:{}/v1", server.port);
        let model = "openai/m".parse().unwrap();
        Self {
            client: Client::new(LONG).unwrap(),
            endpoint: Arc::new(
                Endpoint::new(&model, Some(&url), &RequestOptions::default()).unwrap(),
            ),
        }
    }

    async fn embed(&self, inputs: &[&str]) -> Result<Answer, EmbedError> {
        let key = Secret::new(KEY).unwrap();
        self.client
            .embed(
                &self.endpoint,
                Some(&key),
                Purpose::Document,
                inputs,
                2,
                LONG,
            )
            .await
    }

    /// This many requests at once, each answered well.
    async fn embed_at_once(&self, requests: usize) {
        let mut all = JoinSet::new();
        for length in 0..requests {
            let caller = self.clone();
            all.spawn(async move {
                let answer = caller.embed(&[&"x".repeat(length)]).await.unwrap();
                assert_eq!(answer.vectors, [[0.0, length as f32]]);
            });
        }
        all.join_all().await;
    }
}

/// The message for a server that shows this identity. The server has seen no request, so no key; nor does the error
/// hold it.
async fn refusal(identity: Identity) -> String {
    let server = Server::start(identity, Manner::default()).await;
    let error = Caller::at("localhost", &server)
        .embed(&["a"])
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::Unavailable, "{error}");
    assert_eq!(error.http_status, None);
    assert!(error.retryable() && !error.blocks_pipeline());
    assert!(
        error
            .hint
            .as_deref()
            .is_some_and(|hint| hint.contains("SSL_CERT_FILE"))
    );
    assert_eq!(server.seen(), []);
    assert!(server.connections.load(Ordering::SeqCst) > 0);
    let text = format!("{error:?}");
    for run in KEY.as_bytes().windows(8) {
        assert!(!text.contains(std::str::from_utf8(run).unwrap()), "{text}");
    }
    let host = format!("no connection to localhost:{}: ", server.port);
    assert!(error.message.starts_with(&host), "{error}");
    error.message
}

#[test]
fn an_answer_over_tls_is_read_if_ssl_cert_file_holds_the_servers_authority() {
    trusting_its_own(async |authority| {
        let hosts = [
            ("localhost", Some("localhost".to_owned())),
            ("127.0.0.1", None),
        ];
        for (host, name) in hosts {
            for tls in [&version::TLS13, &version::TLS12] {
                let manner = Manner {
                    tls,
                    ..Manner::default()
                };
                let identity = authority.vouch(&Claims { name: host, ..GOOD });
                let server = Server::start(identity, manner).await;
                let caller = Caller::at(host, &server);
                let answer = caller.embed(&["a", "bcd"]).await.unwrap();
                assert_eq!(answer.vectors, [[0.0, 1.0], [1.0, 3.0]]);
                let seen = Seen {
                    connection: 1,
                    name: name.clone(),
                    version: Version::HTTP_2,
                    authorization: format!("Bearer {KEY}"),
                };
                assert_eq!(server.seen(), [seen]);
            }
        }
    });
}

#[test]
fn http2_is_spoken_where_the_server_offers_it_and_http1_else() {
    trusting_its_own(async |authority| {
        let offers: [(&[&str], Version); 5] = [
            (BOTH, Version::HTTP_2),
            (&["http/1.1", "h2"], Version::HTTP_11),
            (&["h2"], Version::HTTP_2),
            (&["http/1.1"], Version::HTTP_11),
            (&[], Version::HTTP_11),
        ];
        for (alpn, version) in offers {
            let manner = Manner {
                alpn,
                ..Manner::default()
            };
            let server = Server::start(authority.vouch(&GOOD), manner).await;
            let caller = Caller::at("localhost", &server);
            for _ in 0..2 {
                caller.embed(&["a"]).await.unwrap();
            }
            let seen: Vec<_> = server
                .seen()
                .iter()
                .map(|seen| (seen.connection, seen.version))
                .collect();
            assert_eq!(seen, [(1, version), (1, version)], "{alpn:?}");
        }
    });
}

#[test]
fn many_requests_at_once_share_one_http2_connection() {
    trusting_its_own(async |authority| {
        const MANY: usize = 100;
        let manner = Manner {
            together: MANY,
            ..Manner::default()
        };
        let server = Server::start(authority.vouch(&GOOD), manner).await;
        let caller = Caller::at("localhost", &server);
        let all_on_one = || {
            let seen = server.seen();
            let first = (seen[0].connection, Version::HTTP_2);
            seen.iter()
                .all(|seen| (seen.connection, seen.version) == first)
        };
        // Whoever finds no connection begins one; the first that stands serves all, and the others are closed unused.
        caller.embed_at_once(MANY).await;
        assert!(all_on_one());
        while server.open.load(Ordering::SeqCst) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = server.connections.load(Ordering::SeqCst);
        caller.embed_at_once(MANY).await;
        assert!(all_on_one());
        assert_eq!(server.connections.load(Ordering::SeqCst), begun);
    });
}

#[test]
fn more_requests_than_the_server_takes_at_once_wait_for_their_turn() {
    trusting_its_own(async |authority| {
        let manner = Manner {
            streams: 4,
            ..Manner::default()
        };
        let server = Server::start(authority.vouch(&GOOD), manner).await;
        let caller = Caller::at("localhost", &server);
        for _ in 0..2 {
            caller.embed_at_once(100).await;
        }
        let seen = server.seen();
        assert_eq!(seen.len(), 200);
        for request in &seen {
            assert_eq!(request.connection, seen[0].connection);
        }
    });
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    trusting_its_own(async |authority| {
        let name = "elsewhere.test";
        let message = refusal(authority.vouch(&Claims { name, ..GOOD })).await;
        assert!(
            message.contains("not valid for name \"localhost\""),
            "{message}"
        );
        assert!(message.contains(name), "{message}");
    });
}

#[test]
fn a_certificate_that_spells_the_key_does_not_bring_it_into_the_message() {
    trusting_its_own(async |authority| {
        let name = &format!("{KEY}.test");
        let message = refusal(authority.vouch(&Claims { name, ..GOOD })).await;
        assert!(message.contains("only valid for"), "{message}");
    });
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() {
    trusting_its_own(async |_| {
        let stranger = refusal(Authority::named("a stranger").vouch(&GOOD)).await;
        assert!(
            stranger.contains("invalid peer certificate: UnknownIssuer"),
            "{stranger}"
        );
        let namesake = refusal(Authority::named(TRUSTED).vouch(&GOOD)).await;
        assert!(
            namesake.contains("invalid peer certificate: BadSignature"),
            "{namesake}"
        );
    });
}

#[test]
fn a_certificate_is_refused_after_its_time_and_before_it() {
    trusting_its_own(async |authority| {
        for (years, words) in [
            ((2000, 2001), "certificate expired"),
            ((3000, 3001), "certificate not valid yet"),
        ] {
            let message = refusal(authority.vouch(&Claims { years, ..GOOD })).await;
            assert!(message.contains(words), "{message}");
        }
    });
}
