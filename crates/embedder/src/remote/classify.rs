//! What a refusal means, and its words cleaned for people to read.

use std::time::Duration;

use serde_json::Value;

use super::headers::duration;
use crate::secret::scrub;
use crate::{EmbedError, ErrorClass, Secret};

/// The most of an error's body that is read, in bytes. Providers' errors are a few hundred.
pub(super) const MAX_ERROR_BODY: usize = 64 * 1024;

/// The most of a provider's words that is passed on, in characters.
const MAX_WORDS: usize = 500;

/// What an error's body says, whoever sent it. OpenAI, Azure, Mistral and vLLM send `error` or its fields at the top, with
/// `code` as text or number; Gemini an array of one with a `status`; Voyage and FastAPI `detail`; Cohere `message`; Ollama
/// and text-embeddings-inference `error` as text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Refusal {
    /// The provider's own words.
    words: String,
    /// Whatever names the kind of error for programs, in lower case, between spaces.
    codes: String,
    /// A status that a gateway passed on inside an answer.
    status: Option<u16>,
    /// How long Gemini asks to wait; it has no header for it.
    retry_after: Option<Duration>,
}

impl Refusal {
    /// What there is to learn from an error's body.
    pub(super) fn read(body: &[u8]) -> Self {
        let body = &body[..body.len().min(MAX_ERROR_BODY)];
        serde_json::from_slice::<Value>(body)
            .map_or_else(|_| Self::from_text(body), Self::from_json)
    }

    /// The refusal inside an answer with a good status, as some gateways send it; None if it is none.
    pub(super) fn inside_an_answer(body: &[u8]) -> Option<Self> {
        if body.len() > MAX_ERROR_BODY {
            return None;
        }
        let json: Value = serde_json::from_slice(body).ok()?;
        let told = json.get("error").is_some_and(|error| !error.is_null());
        told.then(|| Self::from_json(json))
    }

    /// The status that a gateway passed on.
    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    fn from_text(body: &[u8]) -> Self {
        Self {
            words: without_markup(&String::from_utf8_lossy(body)),
            ..Self::default()
        }
    }

    fn from_json(mut json: Value) -> Self {
        if let Value::Array(items) = json {
            json = items.into_iter().next().unwrap_or_default();
        }
        let mut refusal = Self {
            codes: " ".to_owned(),
            ..Self::default()
        };
        let inner = json.get("error").filter(|error| error.is_object());
        for object in [inner.unwrap_or(&Value::Null), &json] {
            for name in ["code", "type", "status", "error_type"] {
                match &object[name] {
                    Value::String(code) => {
                        refusal.codes.push_str(&code.to_lowercase());
                        refusal.codes.push(' ');
                    }
                    Value::Number(code) => {
                        let code = code.as_u64().and_then(|code| u16::try_from(code).ok());
                        refusal.status = refusal
                            .status
                            .or(code.filter(|code| (400..600).contains(code)));
                    }
                    _ => {}
                }
            }
            let details = object["details"].as_array().into_iter().flatten();
            refusal.retry_after = refusal.retry_after.or_else(|| {
                details
                    .filter_map(|detail| duration(detail["retryDelay"].as_str()?))
                    .max()
            });
            for name in ["message", "error", "detail", "msg"] {
                if refusal.words.is_empty() {
                    refusal.words = without_markup(&words_of(&object[name], 0));
                }
            }
        }
        refusal
    }
}

/// A proxy's page, which a gateway may have packed into words of its own, cut to what can be read: the title, which says
/// what the status says, or more; else what comes before the page.
fn without_markup(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let tags = ["<html", "<!doctype", "<head", "<body", "<?xml"];
    let page = tags.iter().filter_map(|tag| lower.find(tag)).min();
    let start = page.or_else(|| lower.trim_start().starts_with('<').then_some(0));
    let Some(start) = start else {
        return text.to_owned();
    };
    let title = lower.find("<title>").map(|at| at + "<title>".len());
    let end = title.and_then(|from| Some(from + lower[from..].find("</title>")?));
    match title.zip(end) {
        Some((from, to)) => text[from..to].to_owned(),
        None => text[..start].to_owned(),
    }
}

/// The text in a message, which may be a text, a list, or an object around one.
fn words_of(value: &Value, depth: usize) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if depth < 3 => {
            let all: Vec<String> = items
                .iter()
                .take(5)
                .map(|item| words_of(item, depth + 1))
                .collect();
            all.join("; ")
        }
        // FastAPI repeats the request in "input"; only what it says about it is taken.
        Value::Object(object) if depth < 3 => ["message", "msg", "detail"]
            .iter()
            .find_map(|name| object.get(*name))
            .map(|inner| words_of(inner, depth + 1))
            .unwrap_or_default(),
        _ => String::new(),
    }
}

/// Codes and words of an account that has nothing left. Gemini's words for a spent minute speak of "quota" and "billing
/// details" too, as Voyage's do of "billing", and Azure's of a "pricing tier": none of these is here.
const SPENT: [&str; 17] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_balance",
    "insufficient balance",
    "insufficient account balance",
    "insufficient_credits",
    "insufficient credit",
    "insufficient quota",
    "insufficient funds",
    "credit balance",
    "out of credit",
    "no credits",
    "not enough credit",
    "billing hard limit",
    "payment required",
    "api calls / month",
];

/// Codes and words of an input, or a request, that is longer than the model or the server takes.
const TOO_LONG: [&str; 26] = [
    "context_length_exceeded",
    "string_above_max_length",
    "array_above_max_length",
    "max_tokens_per_request",
    "exceed_context_size",
    "context length",
    "context window",
    "context size",
    "max_model_len",
    "too many tokens",
    "too many inputs",
    "max allowed tokens",
    "token limit",
    "maximum input length",
    "input length",
    "is too long",
    "too large to process",
    "string too long",
    "array too long",
    "longer than the maximum",
    "longer than the model",
    "maximum number of tokens",
    "maximum allowed batch size",
    "requests can be in one batch",
    "reduce the length",
    "request too large",
];

/// Codes and words of a model that is not there. Services say so with 400 as well as with 404.
const NO_MODEL: [&str; 7] = [
    "model_not_found",
    "input_model_not_found",
    "invalid_model",
    "deploymentnotfound",
    "unknown_model",
    "model does not exist",
    "is not supported for embed",
];

fn too_long(text: &str) -> bool {
    TOO_LONG.iter().any(|words| text.contains(words))
        // "must have less than 512 tokens", "Requested 400000 tokens, max 300000 tokens per request"
        || (text.contains("tokens") && ["less than", "at most", "tokens, max"].iter().any(|words| text.contains(words)))
}

const HINT_KEY: &str = "Check what api_key refers to, and that the key may use the model.";
const HINT_SPENT: &str =
    "Add credit or raise the spending limit at the provider, then resume the pipeline.";
const HINT_MISSING: &str = "Check the model's name and base_url. Compatible servers usually have a base_url that ends in \
                            /v1; Ollama must have pulled the model; a new Azure deployment takes minutes to appear.";
const HINT_REDIRECT: &str = "Redirects are never followed, since a key goes along. Set base_url to the address where the API is.";

/// The error that a refusal with an HTTP status is. `host` is named in the message.
pub(super) fn error(
    status: u16,
    refusal: &Refusal,
    host: &str,
    key: Option<&Secret>,
) -> EmbedError {
    let text = format!("{} {}", refusal.codes, refusal.words.to_lowercase());
    let says = |list: &[&str]| list.iter().any(|words| text.contains(words));
    let (class, model_unusable, hint) = match status {
        300..400 => (ErrorClass::InvalidRequest, true, Some(HINT_REDIRECT)),
        402 => (ErrorClass::QuotaExhausted, false, Some(HINT_SPENT)),
        401 | 403 | 429 if says(&SPENT) => (ErrorClass::QuotaExhausted, false, Some(HINT_SPENT)),
        401 | 403 => (ErrorClass::Auth, false, Some(HINT_KEY)),
        // OpenAI: more tokens in one request than the limit of a minute. It would never get through.
        429 if text.contains("request too large") => (ErrorClass::TooLarge, false, None),
        429 => (ErrorClass::RateLimited, false, None),
        408 => (ErrorClass::Timeout, false, None),
        413 => (ErrorClass::TooLarge, false, None),
        404 | 405 | 410 => (ErrorClass::InvalidRequest, true, Some(HINT_MISSING)),
        // llama.cpp and some Ollamas say it with 500.
        400 | 422 | 500 if too_long(&text) => (ErrorClass::TooLarge, false, None),
        400 | 422 if says(&NO_MODEL) => (ErrorClass::InvalidRequest, true, Some(HINT_MISSING)),
        // Gemini calls a wrong key a wrong argument.
        400 if text.contains("api key not valid") => (ErrorClass::Auth, false, Some(HINT_KEY)),
        // The moment is wrong, not the request: a lock, a failed backend (text-embeddings-inference), "too early".
        409 | 423..=425 | 500.. => (ErrorClass::Unavailable, false, None),
        _ => (ErrorClass::InvalidRequest, false, None),
    };
    let words = clean(&refusal.words, key);
    let message = match (words.is_empty(), status) {
        (false, _) => format!("HTTP {status} from {host}: {words}"),
        (true, 300..400) => format!("HTTP {status} from {host}: a redirect"),
        (true, _) => {
            let reason = reqwest::StatusCode::from_u16(status)
                .ok()
                .and_then(|status| status.canonical_reason())
                .unwrap_or("no reason given");
            format!("HTTP {status} from {host}: {reason}")
        }
    };
    EmbedError {
        model_unusable,
        hint: hint.map(str::to_owned),
        retry_after: refusal.retry_after,
        ..EmbedError::new(class, message).with_status(status)
    }
}

/// Somebody else's words, fit to be shown: no key, no control characters, 500 characters at most.
pub(super) fn clean(words: &str, key: Option<&Secret>) -> String {
    // What is cut off before a key is looked for must be far from what is shown: eight characters of one show nothing.
    let words: String = words.chars().take(8 * MAX_WORDS).collect();
    let words = scrub(&words, key);
    let mut clean = String::new();
    for word in words.split(|c: char| c.is_control() || c.is_whitespace() || is_invisible(c)) {
        if word.is_empty() {
            continue;
        }
        if !clean.is_empty() {
            clean.push(' ');
        }
        clean.push_str(word);
    }
    // A key that was spread over lines is whole only now.
    let mut clean = scrub(&clean, key);
    if let Some((cut, _)) = clean.char_indices().nth(MAX_WORDS) {
        let cut = clean[..cut]
            .char_indices()
            .next_back()
            .map_or(0, |(at, _)| at);
        clean.truncate(cut);
        clean.push('…');
    }
    clean
}

/// Characters that reorder or hide text in a terminal.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(status: u16, body: &str) -> EmbedError {
        error(status, &Refusal::read(body.as_bytes()), "h", None)
    }

    /// Bodies as the services send them, shortened.
    #[test]
    fn refusals_of_all_services_are_told_apart() {
        use ErrorClass as C;
        let cases = [
            // OpenAI
            (
                429,
                r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
                C::QuotaExhausted,
            ),
            (
                429,
                r#"{"error":{"message":"Billing hard limit has been reached","type":"invalid_request_error","code":"billing_hard_limit_reached"}}"#,
                C::QuotaExhausted,
            ),
            (
                429,
                r#"{"error":{"message":"Rate limit reached for text-embedding-3-small in organization org-x on tokens per min (TPM): Limit 1000000, Used 999999, Requested 5000. Please try again in 299ms. Visit https://platform.openai.com/account/rate-limits to learn more.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
                C::RateLimited,
            ),
            (
                429,
                r#"{"error":{"message":"Request too large for text-embedding-3-small on tokens per min (TPM): Limit 40000, Requested 50000.","type":"tokens","code":"rate_limit_exceeded"}}"#,
                C::TooLarge,
            ),
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided: sk-x","type":"invalid_request_error","code":"invalid_api_key"}}"#,
                C::Auth,
            ),
            (
                403,
                r#"{"error":{"message":"Country, region, or territory not supported","code":"unsupported_country_region_territory"}}"#,
                C::Auth,
            ),
            (
                400,
                r#"{"error":{"message":"This model's maximum context length is 8192 tokens, however you requested 9000 tokens (9000 in your prompt; 0 for the completion). Please reduce your prompt.","type":"invalid_request_error","param":null,"code":null}}"#,
                C::TooLarge,
            ),
            (
                400,
                r#"{"error":{"message":"Requested 400000 tokens, max 300000 tokens per request","type":"max_tokens_per_request","code":"max_tokens_per_request"}}"#,
                C::TooLarge,
            ),
            (
                400,
                r#"{"error":{"message":"'$.input' is invalid. Please check the API reference","type":"invalid_request_error"}}"#,
                C::InvalidRequest,
            ),
            (
                500,
                r#"{"error":{"message":"The server had an error while processing your request."}}"#,
                C::Unavailable,
            ),
            (503, "", C::Unavailable),
            (
                529,
                r#"{"error":{"type":"overloaded_error"}}"#,
                C::Unavailable,
            ),
            // Azure
            (
                429,
                r#"{"error":{"code":"429","message":"Requests to the Embeddings_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 2 seconds. Please go here: https://aka.ms/oai/quotaincrease if you would like to further increase the default rate limit."}}"#,
                C::RateLimited,
            ),
            (
                401,
                r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#,
                C::Auth,
            ),
            // Gemini's compatible endpoint
            (
                429,
                r#"[{"error":{"code":429,"message":"You exceeded your current quota, please check your plan and billing details.","status":"RESOURCE_EXHAUSTED"}}]"#,
                C::RateLimited,
            ),
            (
                400,
                r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]"#,
                C::Auth,
            ),
            (
                400,
                r#"[{"error":{"code":400,"message":"* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch","status":"INVALID_ARGUMENT"}}]"#,
                C::TooLarge,
            ),
            // Voyage
            (
                429,
                r#"{"detail":"You have not yet added your payment method in the billing page and will have reduced rate limits of 3 RPM and 10K TPM."}"#,
                C::RateLimited,
            ),
            (
                400,
                r#"{"detail":"Request to model 'voyage-3.5' failed. The max allowed tokens per submitted batch is 320000. Your batch has 400000 tokens after truncation."}"#,
                C::TooLarge,
            ),
            // Mistral
            (
                400,
                r#"{"object":"error","message":"Too many tokens in batch. Max is 16384 got 17555","type":"invalid_request_error","param":null,"code":null}"#,
                C::TooLarge,
            ),
            (
                400,
                r#"{"object":"error","message":"Too many inputs in request, split into more batches.","type":"invalid_request_error"}"#,
                C::TooLarge,
            ),
            (
                422,
                r#"{"object":"error","message":{"detail":[{"type":"missing","loc":["body","model"],"msg":"Field required"}]},"type":"invalid_request_error"}"#,
                C::InvalidRequest,
            ),
            // Cohere
            (
                429,
                r#"{"message":"You are using a Trial key, which is limited to 1000 API calls / month. You can continue to use the Trial key for free or upgrade to a Production key"}"#,
                C::QuotaExhausted,
            ),
            (
                429,
                r#"{"message":"Please wait and try again later"}"#,
                C::RateLimited,
            ),
            // Jina
            (
                403,
                r#"{"detail":"Insufficient account balance","code":"AUTHZ_INSUFFICIENT_BALANCE"}"#,
                C::QuotaExhausted,
            ),
            // text-embeddings-inference, vLLM, llama.cpp, Ollama
            (
                413,
                r#"{"error":"Input validation error: `inputs` must have less than 512 tokens. Given: 600","error_type":"Validation"}"#,
                C::TooLarge,
            ),
            (
                422,
                r#"{"message":"Input validation error: `inputs` must have less than 512 tokens. Given: 600","code":422,"type":"Validation"}"#,
                C::TooLarge,
            ),
            (
                429,
                r#"{"error":"Model is overloaded","error_type":"Overloaded"}"#,
                C::RateLimited,
            ),
            (
                424,
                r#"{"error":"Inference failed","error_type":"Backend"}"#,
                C::Unavailable,
            ),
            (
                400,
                r#"{"object":"error","message":"The prompt is longer than max_model_len","type":"BadRequestError","param":null,"code":400}"#,
                C::TooLarge,
            ),
            (
                500,
                r#"{"error":{"code":500,"message":"input is too large to process. increase the physical batch size","type":"server_error"}}"#,
                C::TooLarge,
            ),
            (
                400,
                r#"{"error":"the input length exceeds the context length"}"#,
                C::TooLarge,
            ),
            // Proxies
            (
                502,
                "<html><head><title>502 Bad Gateway</title></head></html>",
                C::Unavailable,
            ),
            (
                413,
                "<html><title>Request Entity Too Large</title></html>",
                C::TooLarge,
            ),
            (
                402,
                r#"{"error":{"message":"Insufficient credits","code":402}}"#,
                C::QuotaExhausted,
            ),
            (408, "", C::Timeout),
            (504, "", C::Unavailable),
            (409, "", C::Unavailable),
            (418, "", C::InvalidRequest),
        ];
        for (status, body, class) in cases {
            let error = of(status, body);
            assert_eq!(error.class, class, "{status} {body}");
            assert_eq!(error.http_status, Some(status));
            assert!(!error.model_unusable, "{status} {body}");
            assert!(
                error
                    .message
                    .starts_with(&format!("HTTP {status} from h: "))
            );
        }
    }

    #[test]
    fn a_missing_model_and_a_redirect_are_everybodys_and_say_what_to_do() {
        for (status, body) in [
            (
                404,
                r#"{"error":{"message":"The model `x` does not exist or you do not have access to it.","code":"model_not_found"}}"#,
            ),
            (
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
            ),
            (404, r#"{"error":"model 'x' not found"}"#),
            (404, "404 page not found"),
            (
                400,
                r#"{"detail":"Model 'x' not found","code":"INPUT_MODEL_NOT_FOUND"}"#,
            ),
            (
                400,
                r#"{"object":"error","message":"Invalid model: x","type":"invalid_model","code":"1500"}"#,
            ),
            (307, ""),
            (301, "<html><title>Moved</title></html>"),
        ] {
            let error = of(status, body);
            assert!(
                error.model_unusable && error.blocks_pipeline(),
                "{status} {body}"
            );
            assert!(error.hint.unwrap().contains("base_url"));
        }
    }

    #[test]
    fn the_words_are_the_providers() {
        for (body, words) in [
            (r#"{"error":{"message":"a"}}"#, "a"),
            (r#"{"error":"b"}"#, "b"),
            (r#"{"message":"c"}"#, "c"),
            (
                r#"{"detail":[{"loc":["body"],"msg":"d","input":"the document"},{"msg":"e"}]}"#,
                "d; e",
            ),
            (r#"{"message":{"detail":"f"}}"#, "f"),
            ("plain\r\n\twords\u{1b}[31m", "plain words [31m"),
            ("<html><title>g</title></html>", "g"),
            ("<HTML><TITLE>G</TITLE></HTML>", "G"),
            (
                "upstream: <html><body><h1>h</h1></body></html>",
                "upstream:",
            ),
            (
                r#"{"error":{"message":"<html><head><title>i</title></head>"}}"#,
                "i",
            ),
            (
                "tokens < inputs and inputs > 5",
                "tokens < inputs and inputs > 5",
            ),
            ("", "Bad Request"),
            ("{}", "Bad Request"),
        ] {
            assert_eq!(of(400, body).message, format!("HTTP 400 from h: {words}"));
        }
    }

    #[test]
    fn long_words_are_cut_and_a_key_at_the_cut_does_not_peep_out() {
        let key = Secret::new("A1b2C3d4E5f6G7h8I9j0").unwrap();
        for before in 470..520 {
            let words = format!(
                "{}A1b2C3d4E5f6G7h8I9j0{}",
                "x ".repeat(before / 2),
                "y".repeat(9_000)
            );
            let clean = clean(&words, Some(&key));
            assert!(clean.chars().count() <= MAX_WORDS);
            assert!(!clean.contains("A1b2"), "{clean}");
        }
        assert_eq!(clean("A1b2C3d4\nE5f6G7h8", Some(&key)), "*** ***");
    }

    #[test]
    fn geminis_wait_stands_in_the_body() {
        let body = r#"[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"@type":"x"},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.5s"}]}}]"#;
        assert_eq!(
            of(429, body).retry_after,
            Some(Duration::from_millis(34_500))
        );
    }

    #[test]
    fn a_refusal_inside_an_answer_is_found() {
        let refusal =
            Refusal::inside_an_answer(br#"{"error":{"code":429,"message":"slow down"}}"#).unwrap();
        assert_eq!(refusal.status(), Some(429));
        assert_eq!(Refusal::inside_an_answer(br#"{"data":[]}"#), None);
        assert_eq!(
            Refusal::inside_an_answer(br#"{"data":[],"error":null}"#),
            None
        );
    }

    proptest! {
        #[test]
        fn any_refusal_is_some_error(
            status in 300u16..1000,
            body in "\\PC{0,60}|\\{\"(error|detail|message)\": ?[\\[{]?\"?\\PC{0,20}\"?[\\]}]?\\}",
        ) {
            let error = of(status, &body);
            prop_assert!(error.message.chars().count() <= MAX_WORDS + 40);
            prop_assert!(!error.message.contains(char::is_control));
        }
    }
}
