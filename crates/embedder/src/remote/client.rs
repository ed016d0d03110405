//! The client: one request out, one checked answer or one sorted error back.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use injection::{Injected, Point};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Response, redirect};
use tokio::time::timeout;

use super::Purpose;
use super::answer;
use super::classify::{self, MAX_ERROR_BODY, Refusal};
use super::endpoint::Endpoint;
use super::headers::{self, ServerLimits};
use crate::{EmbedError, ErrorClass, Secret};

/// The same for all requests, so that a provider's support can find them.
const USER_AGENT: &str = concat!("pg_ingest/", env!("CARGO_PKG_VERSION"));

/// How long a connection without requests is kept. Load balancers of large services drop theirs after one to ten minutes;
/// one that is dropped at the same moment as it is used again costs a try.
const IDLE: Duration = Duration::from_secs(50);

/// How often a silent connection is probed, so that a peer that is gone is noticed before the deadline of many requests.
const PROBE: Duration = Duration::from_secs(20);

/// A client for all endpoints, which shares connections among them. Cheap to clone; clones share the connections.
///
/// It follows no redirect and uses no proxy, whatever the server's environment says: requests, and the keys with them, go
/// to the host that was allowed and nowhere else. Certificates are checked against the system's trust roots, or those
/// that `SSL_CERT_FILE` and `SSL_CERT_DIR` of the server's environment name; where there are none, against Mozilla's, as of
/// when this was built. It needs a tokio runtime with time and I/O to run in.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    connect_timeout: Duration,
}

/// A provider's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// One vector for each input, in the order of the inputs; finite, of the dimensions that were asked for.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens that the provider counted, over all inputs, if it tells.
    pub tokens: Option<u64>,
    /// The limits it states, if it does.
    pub limits: ServerLimits,
    /// Its name for the request, if it gives one.
    pub request_id: Option<String>,
}

impl Client {
    /// A client that waits `connect_timeout` for a connection.
    ///
    /// # Errors
    /// `internal`, if TLS cannot be set up.
    pub fn new(connect_timeout: Duration) -> Result<Self, EmbedError> {
        let failed = |error: &dyn Error| {
            EmbedError::new(
                ErrorClass::Internal,
                format!("the HTTP client cannot be set up: {}", reasons(error)),
            )
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls().map_err(|error| failed(&error))?)
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(IDLE)
            .tcp_keepalive(PROBE)
            .http2_keep_alive_interval(PROBE)
            .http2_keep_alive_timeout(PROBE)
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Self {
            http,
            connect_timeout,
        })
    }

    /// The vectors of `inputs`, of `dimensions` numbers each, within `timeout`: a deadline for the whole exchange, from the
    /// connection to the last byte of the answer. No input, no request. Dropping the future ends the exchange; nothing is
    /// tried again here. An answer is decoded on the calling thread: at 110,000 vectors of 1,536 numbers a second in base64
    /// and 15,000 as plain floats (one core of a virtual AMD EPYC, `examples/decode_speed.rs`), so 2,048 of them take 20 or
    /// 130 ms.
    ///
    /// # Errors
    /// Every class but `internal`, as [`ErrorClass`] describes them. No message holds the key, the inputs, or the query
    /// string of the address; `http_status`, `retry_after`, `request_id` are set if the provider answered with them.
    pub async fn embed(
        &self,
        endpoint: &Endpoint,
        key: Option<&Secret>,
        purpose: Purpose,
        inputs: &[&str],
        dimensions: usize,
        timeout: Duration,
    ) -> Result<Answer, EmbedError> {
        if inputs.is_empty() {
            return Ok(Answer {
                vectors: Vec::new(),
                tokens: None,
                limits: ServerLimits::default(),
                request_id: None,
            });
        }
        if key.is_none() && endpoint.needs_key() {
            return Err(EmbedError::new(
                ErrorClass::Auth,
                format!("{} needs a key and the pipeline has none", endpoint.host()),
            )
            .with_hint("Set api_key to where it is kept: env:NAME, file:/PATH or vault:NAME."));
        }
        let exchange = self.exchange(endpoint, key, purpose, inputs, dimensions);
        let result = self::timeout(timeout, exchange).await.unwrap_or_else(|_| {
            Err(EmbedError::new(
                ErrorClass::Timeout,
                format!(
                    "{} did not answer in full within {:?}",
                    endpoint.host(),
                    timeout
                ),
            )
            .with_hint("Raise pg_ingest.request_timeout, or lower the pipeline's batch_size."))
        });
        result.map_err(|error| hide_key(error, key))
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        key: Option<&Secret>,
        purpose: Purpose,
        inputs: &[&str],
        dimensions: usize,
    ) -> Result<Answer, EmbedError> {
        let json = HeaderValue::from_static("application/json");
        let mut response = self
            .http
            .post(endpoint.url().clone())
            .headers(endpoint.headers(key))
            .header(CONTENT_TYPE, json.clone())
            .header(ACCEPT, json)
            .body(endpoint.body(purpose, inputs, dimensions))
            .send()
            .await
            .map_err(|error| self.transport_error(&error, endpoint, key))?;
        injected(injection::pass(Point::AfterSend).await)?;
        let status = response.status().as_u16();
        let request_id = headers::request_id(response.headers());
        let wait = headers::retry_after(response.headers(), status, SystemTime::now());
        let told = |error: EmbedError| EmbedError {
            http_status: Some(status),
            retry_after: wait.or(error.retry_after),
            request_id: request_id.clone(),
            ..error
        };
        if !(200..300).contains(&status) {
            return Err(told(refused(&mut response, endpoint, key).await));
        }
        let limits = headers::limits(response.headers());
        let longest = answer::longest(inputs.len(), dimensions);
        let body = match read(&mut response, longest).await {
            Ok(Body::Whole(body)) => body,
            Ok(Body::Cut(_)) => {
                return Err(told(
                    EmbedError::new(
                        ErrorClass::BadResponse,
                        format!(
                            "the answer of {} is longer than {longest} bytes, the most that {} vectors of {dimensions} \
                             numbers take",
                            endpoint.host(),
                            inputs.len()
                        ),
                    )
                    .with_hint("Check the pipeline's dimensions and base_url."),
                ));
            }
            Err(error) => return Err(told(self.transport_error(&error, endpoint, key))),
        };
        let (vectors, tokens) = answer::decode(endpoint.wire(), &body, inputs.len(), dimensions)
            .map_err(|error| {
                told(match Refusal::inside_an_answer(&body) {
                    Some(refusal) => {
                        let status = refusal.status().unwrap_or(502);
                        classify::error(status, &refusal, &endpoint.host(), key)
                    }
                    None => EmbedError {
                        message: classify::clean(
                            &format!("{}: {}", endpoint.host(), error.message),
                            key,
                        ),
                        ..error
                    },
                })
            })?;
        Ok(Answer {
            vectors,
            tokens,
            limits,
            request_id: request_id.map(|id| crate::secret::scrub(&id, key)),
        })
    }

    /// The error of an exchange that the network ended.
    fn transport_error(
        &self,
        error: &reqwest::Error,
        endpoint: &Endpoint,
        key: Option<&Secret>,
    ) -> EmbedError {
        let host = endpoint.host();
        let (class, what) = if error.is_timeout() && error.is_connect() {
            let what = format!("no connection to {host} within {:?}", self.connect_timeout);
            return EmbedError::new(ErrorClass::Timeout, what)
                .with_hint("Check base_url and the network, or raise pg_ingest.connect_timeout.");
        } else if error.is_timeout() {
            (
                ErrorClass::Timeout,
                format!("{host} did not answer in time"),
            )
        } else if error.is_connect() {
            (ErrorClass::Unavailable, format!("no connection to {host}"))
        } else if malformed(error) {
            (
                ErrorClass::BadResponse,
                format!("the answer of {host} cannot be read"),
            )
        } else {
            (
                ErrorClass::Unavailable,
                format!("the connection to {host} broke"),
            )
        };
        // The outermost error names the URL, whose query string is nobody's business; its causes do not.
        let reasons = error.source().map(reasons).unwrap_or_default();
        let told = EmbedError::new(class, classify::clean(&format!("{what}: {reasons}"), key));
        if reasons.contains("certificate") {
            return told.with_hint(CERTIFICATE_HINT);
        }
        told
    }
}

/// What to do about a certificate that is not believed.
const CERTIFICATE_HINT: &str = "Add the server's CA to the trust roots of the system, or to the file that SSL_CERT_FILE in the \
     environment of Postgres names; a self-signed certificate must be made with basicConstraints = CA:FALSE.";

/// The error of a step that a test has told to fail.
fn injected(result: Result<(), Injected>) -> Result<(), EmbedError> {
    result.map_err(|injected| EmbedError::new(ErrorClass::Internal, injected.to_string()))
}

/// What stands in an answer that is no good one.
async fn refused(response: &mut Response, endpoint: &Endpoint, key: Option<&Secret>) -> EmbedError {
    let status = response.status().as_u16();
    let host = endpoint.host();
    // The status says enough if its body cannot be read.
    let body = match read(response, MAX_ERROR_BODY).await {
        Ok(Body::Whole(body) | Body::Cut(body)) => body,
        Err(_) => Vec::new(),
    };
    let mut error = classify::error(status, &Refusal::read(&body), &host, key);
    if status == 404 {
        error.message = classify::clean(
            &format!(
                "{} (asked {} for {})",
                error.message,
                host,
                endpoint.model()
            ),
            key,
        );
    }
    if let Some(target) = response
        .headers()
        .get(LOCATION)
        .filter(|_| (300..400).contains(&status))
    {
        let target = target
            .to_str()
            .ok()
            .and_then(|target| endpoint.url().join(target).ok());
        let target = target
            .as_ref()
            .and_then(|target| Some((target.scheme(), target.host_str()?)));
        if let Some((scheme, target)) = target {
            let words = format!("HTTP {status} from {host}: a redirect to {scheme}://{target}");
            error.message = classify::clean(&words, key);
        }
    }
    error
}

enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// The beginning of one that is longer than it may be.
    Cut(Vec<u8>),
}

/// Reads a body up to `longest` bytes, counted after decompression.
async fn read(response: &mut Response, longest: usize) -> Result<Body, reqwest::Error> {
    // The length is the server's claim: memory is taken for no more than 1 MiB of it before its bytes are there.
    let claimed = response.content_length().unwrap_or(0);
    let claimed = usize::try_from(claimed).unwrap_or(usize::MAX);
    let mut body = Vec::with_capacity(claimed.min(longest).min(1 << 20));
    while let Some(bytes) = response.chunk().await? {
        let room = longest - body.len();
        if bytes.len() > room {
            body.extend_from_slice(&bytes[..room]);
            return Ok(Body::Cut(body));
        }
        body.extend_from_slice(&bytes);
        if injection::pass(Point::MidAnswer).await.is_err() {
            return Ok(Body::Whole(Vec::new()));
        }
    }
    Ok(Body::Whole(body))
}

/// Whether the bytes came but make no sense: a header that is none, a broken compression.
fn malformed(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{InvalidData, InvalidInput};
            if matches!(error.kind(), InvalidData | InvalidInput) {
                return true;
            }
        }
        if error.to_string().contains("invalid HTTP") {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error and its causes, in one line and each once.
fn reasons(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}

/// Whatever an error says, it says without the key: a server may echo it anywhere.
fn hide_key(error: EmbedError, key: Option<&Secret>) -> EmbedError {
    let hide = |text: String| crate::secret::scrub(&text, key);
    EmbedError {
        message: hide(error.message),
        hint: error.hint.map(hide),
        request_id: error.request_id.map(hide),
        ..error
    }
}

/// TLS with ring, and the trust roots of the system or, if it has none, Mozilla's.
fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_made_without_a_runtime() {
        let client = Client::new(Duration::from_secs(1)).unwrap();
        assert!(tls().is_ok());
        drop(client.clone());
    }
}
