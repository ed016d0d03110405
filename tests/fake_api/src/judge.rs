//! From a request to the plan of its answer.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use chunker::Tokenizer;
use hyper::Uri;
use hyper::body::Bytes;
use serde_json::{Map, Value};

use crate::answer::{Head, Plan, answer, refuse};
use crate::behaviour::{Behaviour, RetryAfter, TokenCount};
use crate::budget::{Judgement, Left, Refusal};
use crate::dialect::{ApiError, Dialect, Route, starred};
use crate::record::{Slot, Verdict, header};
use crate::server::Shared;
use crate::vectors::hash_of;

/// A request that is in order, for those who decide about its fault.
#[derive(Debug, Clone)]
pub struct Request {
    /// Counted from 0 among all requests, also those that are refused, at the start and at each
    /// [`reset`](crate::FakeApi::reset).
    pub number: u64,
    /// When all of it was there.
    pub arrived: Instant,
    /// The path, with the query.
    pub path: String,
    /// The key that it showed.
    pub key: Option<String>,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The model; Azure: the deployment.
    pub model: String,
    /// The texts.
    pub texts: Vec<String>,
    /// How many tokens they have.
    pub tokens: u64,
    /// How long the vectors are to be.
    pub dimensions: usize,
    /// The body without its texts.
    pub fields: Map<String, Value>,
}

impl Request {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// A request as it came.
pub(crate) struct Arrival {
    pub number: u64,
    pub slot: Slot,
    pub at: Instant,
    pub method: String,
    pub uri: Uri,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Arrival {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// What was read from a request that has the right shape.
struct Read {
    model: String,
    texts: Vec<String>,
    tokens: u64,
    dimensions: usize,
    base64: bool,
}

/// Judges a request, and plans its answer.
pub(crate) fn plan(shared: &Shared, arrival: Arrival) -> Plan {
    let behaviour = shared.behaviour();
    let Some(route) = Route::of(&arrival.uri, &behaviour.openai_path) else {
        let message = format!("Invalid URL ({} {})", arrival.method, arrival.uri.path());
        let error = ApiError {
            status: 404,
            ..ApiError::invalid(message)
        };
        return rejected(shared, &arrival, Dialect::OpenAi, &error);
    };
    let dialect = route.dialect();
    match take(shared, &behaviour, &route, &arrival) {
        Ok(plan) => plan,
        Err(error) => rejected(shared, &arrival, dialect, &error),
    }
}

fn rejected(shared: &Shared, arrival: &Arrival, dialect: Dialect, error: &ApiError) -> Plan {
    shared.log().update(arrival.slot, |record| {
        record.verdict = Verdict::Rejected;
    });
    refuse(arrival.number, dialect, error, Head::default())
}

fn take(
    shared: &Shared,
    behaviour: &Behaviour,
    route: &Route,
    arrival: &Arrival,
) -> Result<Plan, ApiError> {
    let dialect = route.dialect();
    check_key(behaviour, dialect, arrival)?;
    if arrival.method != "POST" {
        return Err(ApiError {
            status: 405,
            ..ApiError::invalid(format!("Not allowed to {} here", arrival.method))
        });
    }
    if let Route::Azure {
        has_version: false, ..
    } = route
    {
        return Err(ApiError {
            status: 404,
            message: "Resource not found".into(),
            ..ApiError::default()
        });
    }
    let mut fields = json_object(&arrival.body)?;
    let input = fields.remove("input");
    shared.log().update(arrival.slot, |record| {
        record.fields = fields.clone();
    });
    let read = read(shared, behaviour, route, arrival.slot, &fields, input)?;
    let hashes: Vec<u64> = read.texts.iter().map(|text| hash_of(text)).collect();

    if behaviour.quota_exhausted {
        shared.log().update(arrival.slot, |record| {
            record.verdict = Verdict::QuotaExhausted;
        });
        let head = Head::default();
        return Ok(refuse(arrival.number, dialect, &quota_error(), head));
    }
    let judgement = shared
        .budget()
        .judge(&behaviour.limits, arrival.at, read.tokens);
    {
        let mut log = shared.log();
        log.update(arrival.slot, |record| {
            record.arrived = judgement.at;
            record.verdict = match judgement.refusal {
                Some(_) => Verdict::RateLimited,
                None => Verdict::Accepted,
            };
        });
        if judgement.refusal.is_none() {
            log.count_texts(arrival.slot, &hashes);
        }
    }
    let mut head = Head::default();
    budget_headers(&mut head, behaviour, &judgement);
    if let Some(refusal) = &judgement.refusal {
        retry_hints(&mut head, behaviour, refusal);
        let error = limit_error(dialect, &read.model, refusal);
        return Ok(refuse(arrival.number, dialect, &error, head));
    }

    let request = Request {
        number: arrival.number,
        arrived: judgement.at,
        path: arrival.uri.to_string(),
        key: dialect.key(arrival).map(str::to_owned),
        headers: arrival.headers.clone(),
        model: read.model,
        texts: read.texts,
        tokens: read.tokens,
        dimensions: read.dimensions,
        fields,
    };
    let rules = shared.rules();
    let fault = rules.iter().find_map(|rule| rule(&request));
    Ok(answer(
        behaviour,
        dialect,
        &request,
        read.base64,
        fault,
        head,
    ))
}

fn check_key(behaviour: &Behaviour, dialect: Dialect, arrival: &Arrival) -> Result<(), ApiError> {
    let key = dialect.key(arrival);
    let accepted = |key: &str| behaviour.keys.iter().any(|accepted| accepted == key);
    if behaviour.keys.is_empty() || key.is_some_and(accepted) {
        return Ok(());
    }
    let (code, message) = match (dialect, key) {
        (Dialect::Azure, _) => (
            None,
            "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for \
             an active subscription and use a correct regional API endpoint for your resource."
                .to_owned(),
        ),
        (_, None) => (
            None,
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer \
             auth (i.e. Authorization: Bearer YOUR_KEY)."
                .to_owned(),
        ),
        (_, Some(key)) => (
            Some("invalid_api_key"),
            format!(
                "Incorrect API key provided: {}. You can find your API key at \
                 https://platform.openai.com/account/api-keys.",
                starred(key)
            ),
        ),
    };
    Err(ApiError {
        status: 401,
        code,
        ..ApiError::invalid(message)
    })
}

fn json_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_slice(body).map_err(|_| {
        ApiError::invalid(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP \
             library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)",
        )
    })
}

/// Reads what was sent, counts its tokens, and holds both against what the API takes.
fn read(
    shared: &Shared,
    behaviour: &Behaviour,
    route: &Route,
    slot: Slot,
    fields: &Map<String, Value>,
    input: Option<Value>,
) -> Result<Read, ApiError> {
    let model = model(behaviour, route, fields)?;
    let texts = match input {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(values)) => values
            .into_iter()
            .map(|value| match value {
                Value::String(text) => Ok(text),
                _ => Err(ApiError::invalid_input()),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(ApiError::invalid_input()),
    };
    shared.log().update(slot, |record| {
        record.inputs = texts.len();
        if behaviour.keep_texts {
            record.texts.clone_from(&texts);
        }
    });
    if texts.len() > behaviour.max_inputs {
        return Err(ApiError {
            param: Some("input"),
            code: Some("array_above_max_length"),
            ..ApiError::invalid(format!(
                "Invalid 'input': array too long. Expected an array with maximum length {}, but got an array with \
                 length {} instead.",
                behaviour.max_inputs,
                texts.len()
            ))
        });
    }
    let openai = !matches!(route, Route::Ollama);
    if openai && (texts.is_empty() || texts.iter().any(String::is_empty)) {
        return Err(ApiError::invalid_input());
    }
    let dimensions = dimensions(behaviour, &model, fields)?;
    let base64 = openai
        && match fields.get("encoding_format") {
            None => false,
            Some(Value::String(format)) if format == "float" => false,
            Some(Value::String(format)) if format == "base64" => true,
            Some(other) => {
                return Err(ApiError {
                    param: Some("encoding_format"),
                    ..ApiError::invalid(format!(
                        "Invalid value: {other}. Supported values are: 'float' and 'base64'."
                    ))
                });
            }
        };
    let tokens = count_tokens(behaviour, route, fields, &texts)?;
    shared.log().update(slot, |record| record.tokens = tokens);
    if openai && tokens > behaviour.max_request_tokens {
        return Err(ApiError {
            kind: "max_tokens_per_request",
            code: Some("max_tokens_per_request"),
            ..ApiError::invalid(format!(
                "Requested {tokens} tokens, max {} tokens per request",
                behaviour.max_request_tokens
            ))
        });
    }
    Ok(Read {
        model,
        texts,
        tokens,
        dimensions,
        base64,
    })
}

fn model(
    behaviour: &Behaviour,
    route: &Route,
    fields: &Map<String, Value>,
) -> Result<String, ApiError> {
    let model = match (route, fields.get("model")) {
        (Route::Azure { deployment, .. }, _) => deployment,
        (_, Some(Value::String(model))) => model,
        (_, _) => return Err(ApiError::invalid("you must provide a model parameter")),
    };
    if behaviour.models.is_empty() || behaviour.models.contains(model) {
        return Ok(model.clone());
    }
    let (code, message) = match route {
        Route::OpenAi => (
            "model_not_found",
            format!("The model `{model}` does not exist or you do not have access to it."),
        ),
        Route::Azure { .. } => (
            "DeploymentNotFound",
            "The API deployment for this resource does not exist. If you created the deployment within the last 5 \
             minutes, please wait a moment and try again."
                .to_owned(),
        ),
        Route::Ollama => (
            "model_not_found",
            format!("model \"{model}\" not found, try pulling it first"),
        ),
    };
    Err(ApiError {
        status: 404,
        code: Some(code),
        ..ApiError::invalid(message)
    })
}

fn dimensions(
    behaviour: &Behaviour,
    model: &str,
    fields: &Map<String, Value>,
) -> Result<usize, ApiError> {
    let most = behaviour
        .dimensions
        .unwrap_or(if model.contains("large") { 3072 } else { 1536 });
    let refuse = |message: String| ApiError {
        param: Some("dimensions"),
        ..ApiError::invalid(message)
    };
    match fields.get("dimensions") {
        None | Some(Value::Null) => Ok(most),
        Some(_) if model.contains("ada-002") => Err(refuse(
            "This model does not support specifying dimensions.".into(),
        )),
        Some(asked) => match asked.as_u64().and_then(|asked| asked.try_into().ok()) {
            Some(asked) if (1..=most).contains(&asked) => Ok(asked),
            _ => Err(refuse(format!(
                "Invalid value for 'dimensions' = {asked}. Must be a positive integer less than or equal to {most}."
            ))),
        },
    }
}

/// The tokens of all texts. Ollama cuts off what is too long, unless it is told not to.
fn count_tokens(
    behaviour: &Behaviour,
    route: &Route,
    fields: &Map<String, Value>,
    texts: &[String],
) -> Result<u64, ApiError> {
    let most = behaviour.max_input_tokens;
    let ollama = matches!(route, Route::Ollama);
    let cut = ollama && fields.get("truncate") != Some(&Value::Bool(false));
    texts.iter().try_fold(0, |sum, text| {
        let tokens = tokens_of(text, behaviour.token_count);
        if tokens <= most || cut {
            Ok(sum + tokens.min(most))
        } else if ollama {
            Err(ApiError::invalid(
                "the input length exceeds the context length",
            ))
        } else {
            Err(ApiError::invalid(format!(
                "This model's maximum context length is {most} tokens, however you requested {tokens} tokens \
                 ({tokens} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
            )))
        }
    })
}

fn tokens_of(text: &str, count: TokenCount) -> u64 {
    match count {
        TokenCount::Exact => tokenizer().count(text) as u64,
        TokenCount::Bytes(bytes) => (text.len() / bytes.max(1)).max(1) as u64,
    }
}

/// The vocabulary takes some 100 ms to build, so it is asked for before the first request comes.
pub(crate) fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::tiktoken("cl100k_base").expect("the encoding is built in"))
}

fn quota_error() -> ApiError {
    ApiError {
        status: 429,
        message: "You exceeded your current quota, please check your plan and billing details. For more information \
                  on this error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
            .into(),
        kind: "insufficient_quota",
        code: Some("insufficient_quota"),
        ..ApiError::default()
    }
}

fn limit_error(dialect: Dialect, model: &str, refusal: &Refusal) -> ApiError {
    let Refusal {
        kind,
        budget,
        limit,
        used,
        requested,
        wait,
    } = refusal;
    let (code, message) = match (dialect, wait) {
        (Dialect::Azure, _) => (
            None,
            format!(
                "Requests to the Embeddings_Create Operation have exceeded call rate limit of your current pricing \
                 tier. Please retry after {} seconds.",
                in_seconds(wait.unwrap_or(HOPELESS))
            ),
        ),
        (_, Some(wait)) => (
            Some("rate_limit_exceeded"),
            format!(
                "Rate limit reached for {model} in organization org-fake on {budget}: Limit {limit}, Used {used}, \
                 Requested {requested}. Please try again in {}. Visit \
                 https://platform.openai.com/account/rate-limits to learn more.",
                as_go_writes(*wait)
            ),
        ),
        (_, None) => (
            Some("rate_limit_exceeded"),
            format!(
                "Request too large for {model} in organization org-fake on {budget}: Limit {limit}, Requested \
                 {requested}. The input or output tokens must be reduced in order to run successfully."
            ),
        ),
    };
    ApiError {
        status: 429,
        message,
        kind,
        code,
        ..ApiError::default()
    }
}

/// What is hinted to those for whom there is never room.
const HOPELESS: Duration = Duration::from_secs(60);

fn retry_hints(head: &mut Head, behaviour: &Behaviour, refusal: &Refusal) {
    let wait = refusal.wait.unwrap_or(HOPELESS);
    match behaviour.retry_hints.retry_after {
        RetryAfter::No => {}
        RetryAfter::Seconds => head.set("retry-after", in_seconds(wait).to_string()),
        RetryAfter::Date => {
            // A date's own seconds are rounded down when it is written.
            let date = SystemTime::now() + wait + Duration::from_millis(999);
            head.set("retry-after", httpdate::fmt_http_date(date));
        }
    }
    if behaviour.retry_hints.milliseconds {
        let milliseconds = wait.as_nanos().div_ceil(1_000_000);
        head.set("retry-after-ms", milliseconds.to_string());
    }
}

fn budget_headers(head: &mut Head, behaviour: &Behaviour, judgement: &Judgement) {
    let refused = judgement.refusal.as_ref();
    let mut tell = |kind: &str, left: Option<Left>| {
        let Some(left) = left else { return };
        if behaviour.budget_headers {
            head.set(&format!("x-ratelimit-limit-{kind}"), left.limit.to_string());
            let remaining = left.remaining.to_string();
            head.set(&format!("x-ratelimit-remaining-{kind}"), remaining);
        }
        let told = match refused {
            Some(_) => behaviour.retry_hints.reset,
            None => behaviour.budget_headers,
        };
        if told {
            head.set(
                &format!("x-ratelimit-reset-{kind}"),
                as_go_writes(left.reset),
            );
        }
    };
    tell("requests", judgement.requests);
    tell("tokens", judgement.tokens);
}

fn in_seconds(time: Duration) -> u128 {
    time.as_nanos().div_ceil(1_000_000_000)
}

/// A length of time as OpenAI's headers have it, which is as Go prints it: `1h2m3s`, `6m0s`, `1.5s`, `20ms`. Rounded up to
/// milliseconds.
fn as_go_writes(time: Duration) -> String {
    let milliseconds = time.as_nanos().div_ceil(1_000_000);
    if milliseconds == 0 {
        return "0s".into();
    }
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_does() {
        for (nanoseconds, written) in [
            (0, "0s"),
            (1, "1ms"),
            (20_000_000, "20ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (10_000_000_000, "10s"),
            (59_999_000_001, "1m0s"),
            (63_050_000_000, "1m3.05s"),
            (360_000_000_000, "6m0s"),
            (3_723_000_000_000, "1h2m3s"),
        ] {
            assert_eq!(as_go_writes(Duration::from_nanos(nanoseconds)), written);
        }
    }

    #[test]
    fn tokens_are_exact_or_estimated() {
        let text = "To rotate an API key, create the new key first.";
        assert_eq!(tokens_of(text, TokenCount::Exact), 12);
        assert_eq!(tokens_of(text, TokenCount::Bytes(4)), 11);
        assert_eq!(tokens_of("a", TokenCount::Bytes(4)), 1);
    }
}
