//! Where the requests of a pipeline go, and how.

use std::fmt;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};
use url::Url;

use super::Purpose;
use super::options::{InvalidOptions, RequestOptions};
use super::request::{Template, Wire};
use crate::catalogue::{self, ModelInfo};
use crate::{ModelName, Provider, Secret};

/// Where OpenAI is (API reference, 2026-11).
const OPENAI: &str = "https://api.openai.com/v1";

/// Where Ollama listens unless told otherwise (its FAQ, 2026-11).
const OLLAMA: &str = "http://localhost:11434";

/// The newest stable version of Azure OpenAI's data-plane API that is chosen by date (Microsoft's REST reference,
/// 2026-11). A query string of the `base_url` chooses another.
const AZURE_API_VERSION: &str = "2024-10-21";

/// Where and how the requests of a pipeline go: address, headers, the frame of the body. Cheap to use for many requests;
/// holds no key.
#[derive(Clone, PartialEq)]
pub struct Endpoint {
    model: ModelName,
    url: Url,
    wire: Wire,
    default_host: bool,
    headers: HeaderMap,
    document: Template,
    query: Template,
    dimensions: Option<(&'static ModelInfo, &'static str)>,
}

/// A pipeline whose requests cannot go anywhere. No message quotes the URL, which may hold what it should not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// A local model.
    #[error("the model {0} runs in this server and has no endpoint")]
    Local(ModelName),
    /// Azure has no address for everybody.
    #[error("the model {0} needs a base_url: every Azure OpenAI resource has its own")]
    NoBaseUrl(ModelName),
    /// No URL.
    #[error("base_url is not a URL: {0}")]
    Malformed(String),
    /// Something else than HTTP.
    #[error("base_url has the scheme \"{0}\", not https or http")]
    Scheme(String),
    /// A user or a password before the host.
    #[error(
        "base_url holds a user name or a password, which everybody who sees the pipeline would see"
    )]
    Credentials,
    /// A key among the query parameters.
    #[error(
        "base_url holds a key in its query parameter \"{0}\", which everybody who sees the pipeline would see"
    )]
    KeyInQuery(String),
    /// A part after `#`, which no server sees.
    #[error("base_url has a fragment (\"#…\"), which is never sent")]
    Fragment,
    /// The address of a deployment where that of the resource belongs.
    #[error("base_url already names a deployment; the model's name does that")]
    Deployment,
    /// The options are wrong.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
}

impl EndpointError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Local(_) => "Leave base_url, api_key and the request options out.",
            Self::NoBaseUrl(_) | Self::Deployment => {
                "base_url => 'https://RESOURCE.openai.azure.com', model => 'azure/DEPLOYMENT'."
            }
            Self::Malformed(_) | Self::Scheme(_) => {
                "Write it in full, such as 'https://api.example.com/v1' or 'http://localhost:8080/v1'."
            }
            Self::Credentials | Self::KeyInQuery(_) => {
                "Set api_key to a reference (env:NAME, file:/PATH or vault:NAME); it is sent in a header."
            }
            Self::Fragment => "Leave out the \"#\" and what follows.",
            Self::Options(error) => error.hint(),
        }
    }
}

impl Endpoint {
    /// The endpoint of a model. Without a `base_url` that of the provider, or of the service that the catalogue names for
    /// the model. A `base_url` may end in a slash, hold a path, which is kept in front, and a query string, which is kept.
    ///
    /// # Errors
    /// A local model; an `azure/…` model without a `base_url`; a URL that is malformed, not HTTP, or holds credentials or a
    /// fragment; options that [`RequestOptions::validate`] refuses, or that set the dimensions of a model whose dimensions
    /// are known.
    pub fn new(
        model: &ModelName,
        base_url: Option<&str>,
        options: &RequestOptions,
    ) -> Result<Self, EndpointError> {
        options.validate()?;
        let info = catalogue::lookup(model);
        let service = info.and_then(ModelInfo::service);
        let base = match (base_url, model.provider) {
            (_, Provider::Local) => return Err(EndpointError::Local(model.clone())),
            (Some(url), _) => url,
            (None, Provider::Azure) => return Err(EndpointError::NoBaseUrl(model.clone())),
            (None, Provider::OpenAi) => service.map_or(OPENAI, |service| &service.base_url),
            (None, Provider::Ollama) => OLLAMA,
        };
        let base = parse(base)?;
        let own_host = model.provider == Provider::OpenAi
            && base.origin()
                == parse(service.map_or(OPENAI, |service| &service.base_url))?.origin();
        // What a service wants in requests is not what another server wants that has a model of this name.
        let shape = info.filter(|_| service.is_none() || own_host);

        let mut fields = Map::new();
        let azure_by_deployment = model.provider == Provider::Azure && !is_azure_v1(&base);
        if !azure_by_deployment {
            fields.insert("model".to_owned(), model.name.as_str().into());
        }
        let base64 = match model.provider {
            Provider::Azure => true,
            Provider::OpenAi => own_host && service.is_none_or(|service| service.base64),
            Provider::Ollama | Provider::Local => false,
        };
        if base64 {
            fields.insert("encoding_format".to_owned(), "base64".into());
        }
        if model.provider == Provider::Ollama {
            // What is too long is an error, not a vector of its beginning.
            fields.insert("truncate".to_owned(), false.into());
        }
        let dimensions = info
            .filter(|info| !info.dimension_choices.is_empty() || info.shortest_dimensions.is_some())
            .map(|info| {
                let field = shape.and_then(|shape| shape.dimensions_field.as_deref());
                (info, field.unwrap_or("dimensions"))
            });
        let template = |purpose| -> Result<Template, EndpointError> {
            let mut fields = fields.clone();
            let (own_body, own_prefix, given_body, given_prefix) = match purpose {
                Purpose::Document => (
                    shape.map(|shape| &shape.document_body),
                    shape.and_then(|shape| shape.document_prefix.as_deref()),
                    &options.document_body,
                    options.document_prefix.as_deref(),
                ),
                Purpose::Query => (
                    shape.map(|shape| &shape.query_body),
                    shape.and_then(|shape| shape.query_prefix.as_deref()),
                    &options.query_body,
                    options.query_prefix.as_deref(),
                ),
            };
            if let Some(shape) = shape {
                merge(&mut fields, &shape.body);
            }
            if let Some(body) = own_body {
                merge(&mut fields, body);
            }
            for given in [&options.body, given_body] {
                let ours = |field: &str| {
                    dimensions.is_some_and(|(_, name)| field == name)
                        || (field == "truncate" && model.provider == Provider::Ollama)
                };
                if let Some(field) = given.keys().find(|field| ours(field)) {
                    return Err(InvalidOptions::ReservedField(field.clone()).into());
                }
                merge(&mut fields, given);
            }
            Ok(Template::new(
                &fields,
                given_prefix.or(own_prefix).unwrap_or_default(),
            ))
        };
        Ok(Self {
            model: model.clone(),
            url: request_url(base, model)?,
            wire: if model.provider == Provider::Ollama {
                Wire::Ollama
            } else {
                Wire::OpenAi
            },
            default_host: own_host,
            headers: options.header_map()?,
            document: template(Purpose::Document)?,
            query: template(Purpose::Query)?,
            dimensions,
        })
    }

    /// The server as people write it: the name in lower case, with the port unless it is the scheme's own.
    pub fn host(&self) -> String {
        match self.url.port() {
            Some(port) => format!("{}:{port}", self.host_name()),
            None => self.host_name().to_owned(),
        }
    }

    /// The server's name or address alone, in lower case; IPv6 in brackets.
    pub fn host_name(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or_default()
    }

    /// Whether requests go to the provider's own public server: OpenAI's, or for a model of another service that the
    /// catalogue knows, that service's. Encrypted and on its usual port only. False for Azure, where anybody can have a
    /// host, and for Ollama, whose usual host is this machine.
    pub fn is_default_host(&self) -> bool {
        self.default_host
    }

    /// Whether requests are encrypted.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Whether no request can succeed without a key: on public servers. Others may do without.
    pub fn needs_key(&self) -> bool {
        self.default_host || self.model.provider == Provider::Azure
    }

    /// What goes before every input; its tokens count as the input's.
    pub fn prefix(&self, purpose: Purpose) -> &str {
        self.template(purpose).prefix()
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    pub(super) fn wire(&self) -> Wire {
        self.wire
    }

    pub(super) fn model(&self) -> &ModelName {
        &self.model
    }

    /// The headers of a request, the key among them.
    pub(super) fn headers(&self, key: Option<&Secret>) -> HeaderMap {
        let mut headers = self.headers.clone();
        if let Some(key) = key {
            let (name, value) = match self.model.provider {
                Provider::Azure => (HeaderName::from_static("api-key"), key.expose().to_owned()),
                _ => (
                    reqwest::header::AUTHORIZATION,
                    format!("Bearer {}", key.expose()),
                ),
            };
            let mut value =
                HeaderValue::from_str(&value).expect("a Secret holds what a header can carry");
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers
    }

    /// The body of a request. The dimensions are asked for only where the model has a choice and another than its own is
    /// wanted.
    pub(super) fn body(&self, purpose: Purpose, inputs: &[&str], dimensions: usize) -> Vec<u8> {
        let asked = self
            .dimensions
            .filter(|(info, _)| dimensions != info.dimensions && info.allows_dimensions(dimensions))
            .map(|(_, field)| (field, dimensions));
        self.template(purpose).body(inputs, asked)
    }

    fn template(&self, purpose: Purpose) -> &Template {
        match purpose {
            Purpose::Document => &self.document,
            Purpose::Query => &self.query,
        }
    }
}

/// Without the query string and the headers, which may hold what is nobody's business.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}{}",
            self.url.scheme(),
            self.host(),
            self.url.path()
        )
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} at {self})", self.model)
    }
}

/// Query parameters that carry a key at one service or another.
const KEY_PARAMETERS: [&str; 9] = [
    "key",
    "api_key",
    "apikey",
    "api-key",
    "access_token",
    "token",
    "subscription-key",
    "code",
    "sig",
];

/// Whether a `base_url` or a pipeline's `request` cannot be used, so that nobody knows what stands in it: perhaps a key.
pub fn may_hold_key(base_url: Option<&str>, request: Option<&str>) -> bool {
    base_url.is_some_and(|url| parse(url).is_err())
        || request.is_some_and(|json| RequestOptions::parse(json).is_err())
}

fn parse(text: &str) -> Result<Url, EndpointError> {
    let url =
        Url::parse(text.trim()).map_err(|error| EndpointError::Malformed(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(EndpointError::Scheme(
            url.scheme().chars().take(20).collect(),
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(EndpointError::Credentials);
    }
    if url.fragment().is_some() {
        return Err(EndpointError::Fragment);
    }
    for (name, value) in url.query_pairs() {
        if !value.is_empty() && KEY_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(EndpointError::KeyInQuery(name.into_owned()));
        }
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(EndpointError::Malformed("it has no host".to_owned()));
    }
    if url.port() == Some(0) {
        return Err(EndpointError::Malformed(
            "nothing has the port 0".to_owned(),
        ));
    }
    Ok(url)
}

/// Whether the base is that of Azure's newer API, which is OpenAI's with another header for the key.
fn is_azure_v1(base: &Url) -> bool {
    base.path().trim_end_matches('/').ends_with("/openai/v1")
}

/// The address that requests go to.
fn request_url(mut url: Url, model: &ModelName) -> Result<Url, EndpointError> {
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    let add = |url: &mut Url, segments: &[&str]| {
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
    };
    match model.provider {
        Provider::Azure if !is_azure_v1(&url) => {
            if path.contains("/deployments") {
                return Err(EndpointError::Deployment);
            }
            if !path.ends_with("/openai") {
                add(&mut url, &["openai"]);
            }
            add(&mut url, &["deployments", &model.name, "embeddings"]);
            if !url.query_pairs().any(|(name, _)| name == "api-version") {
                url.query_pairs_mut()
                    .append_pair("api-version", AZURE_API_VERSION);
            }
        }
        Provider::Ollama => match path.ends_with("/api") {
            true => add(&mut url, &["embed"]),
            false if path.ends_with("/api/embed") => {}
            false => add(&mut url, &["api", "embed"]),
        },
        // People paste the whole address, too.
        _ if path.ends_with("/embeddings") => {}
        _ => add(&mut url, &["embeddings"]),
    }
    Ok(url)
}

/// Puts the fields of `given` over those of `fields`; null takes one away.
fn merge(fields: &mut Map<String, Value>, given: &Map<String, Value>) {
    for (field, value) in given {
        if value.is_null() {
            fields.remove(field);
        } else {
            fields.insert(field.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn endpoint(model: &str, base_url: Option<&str>) -> Result<Endpoint, EndpointError> {
        Endpoint::new(
            &model.parse().unwrap(),
            base_url,
            &RequestOptions::default(),
        )
    }

    fn with_options(model: &str, options: Value) -> Result<Endpoint, EndpointError> {
        let options = RequestOptions::parse(&options.to_string())?;
        Endpoint::new(&model.parse().unwrap(), None, &options)
    }

    fn url(model: &str, base_url: Option<&str>) -> String {
        endpoint(model, base_url).unwrap().url.to_string()
    }

    fn body(endpoint: &Endpoint, purpose: Purpose, dimensions: usize) -> Value {
        serde_json::from_slice(&endpoint.body(purpose, &["text"], dimensions)).unwrap()
    }

    #[test]
    fn every_provider_has_its_address() {
        for (model, base, expected) in [
            ("openai/m", None, "https://api.openai.com/v1/embeddings"),
            (
                "openai/m",
                Some("http://tei:8080"),
                "http://tei:8080/embeddings",
            ),
            (
                "openai/m",
                Some("http://tei:8080/"),
                "http://tei:8080/embeddings",
            ),
            (
                "openai/m",
                Some("https://h/a/v1/"),
                "https://h/a/v1/embeddings",
            ),
            (
                "openai/m",
                Some("https://h/v1?tenant=a"),
                "https://h/v1/embeddings?tenant=a",
            ),
            (
                "openai/m",
                Some("https://h/v1/embeddings"),
                "https://h/v1/embeddings",
            ),
            (
                "openai/voyage-3.5",
                None,
                "https://api.voyageai.com/v1/embeddings",
            ),
            ("ollama/m", None, "http://localhost:11434/api/embed"),
            ("ollama/m", Some("https://h/o/"), "https://h/o/api/embed"),
            ("ollama/m", Some("https://h/api"), "https://h/api/embed"),
            (
                "azure/my dep/1",
                Some("https://r.openai.azure.com"),
                "https://r.openai.azure.com/openai/deployments/my%20dep%2F1/embeddings?api-version=2024-10-21",
            ),
            (
                "azure/d",
                Some("https://r.openai.azure.com/openai/?api-version=2025-04-01-preview"),
                "https://r.openai.azure.com/openai/deployments/d/embeddings?api-version=2025-04-01-preview",
            ),
            (
                "azure/d",
                Some("https://r.openai.azure.com/openai/v1/"),
                "https://r.openai.azure.com/openai/v1/embeddings",
            ),
        ] {
            assert_eq!(url(model, base), expected);
        }
    }

    #[test]
    fn a_wrong_base_url_is_told_without_repeating_it() {
        let refused = |base: &str| endpoint("openai/m", Some(base)).unwrap_err();
        assert!(matches!(
            refused("api.openai.com/v1"),
            EndpointError::Malformed(_)
        ));
        assert!(matches!(refused(""), EndpointError::Malformed(_)));
        assert!(matches!(refused("https://"), EndpointError::Malformed(_)));
        assert!(matches!(
            refused("http://h:0/v1"),
            EndpointError::Malformed(_)
        ));
        assert!(matches!(
            refused("localhost:8080"),
            EndpointError::Scheme(_)
        ));
        assert!(matches!(
            refused("file:///etc/passwd"),
            EndpointError::Scheme(_)
        ));
        assert_eq!(
            refused("https://u:topsecret@h/"),
            EndpointError::Credentials
        );
        assert_eq!(refused("https://topsecret@h/"), EndpointError::Credentials);
        assert_eq!(refused("https://h/#topsecret"), EndpointError::Fragment);
        assert_eq!(
            refused("https://h/?Key=topsecret"),
            EndpointError::KeyInQuery("Key".to_owned())
        );
        for base in [
            "https://u:topsecret@h",
            "https://h/?key=topsecret",
            "topsecret",
            "https://h:topsecret/",
        ] {
            let error = refused(base);
            assert!(!error.to_string().contains("topsecret"), "{error}");
            assert!(!error.hint().is_empty());
        }
        assert!(matches!(
            endpoint("azure/d", None),
            Err(EndpointError::NoBaseUrl(_))
        ));
        assert!(matches!(
            endpoint("local/m", None),
            Err(EndpointError::Local(_))
        ));
        assert_eq!(
            endpoint("azure/d", Some("https://r/openai/deployments/d")).unwrap_err(),
            EndpointError::Deployment
        );
    }

    #[test]
    fn only_the_providers_own_server_is_the_default_host() {
        for (model, base, host, default) in [
            ("openai/m", None, "api.openai.com", true),
            (
                "openai/m",
                Some("https://API.openai.com/v1"),
                "api.openai.com",
                true,
            ),
            (
                "openai/m",
                Some("http://api.openai.com/v1"),
                "api.openai.com",
                false,
            ),
            (
                "openai/m",
                Some("https://api.openai.com:8443/v1"),
                "api.openai.com:8443",
                false,
            ),
            (
                "openai/m",
                Some("https://api.voyageai.com/v1"),
                "api.voyageai.com",
                false,
            ),
            ("openai/voyage-3.5", None, "api.voyageai.com", true),
            (
                "openai/voyage-3.5",
                Some("https://api.openai.com/v1"),
                "api.openai.com",
                false,
            ),
            (
                "azure/d",
                Some("https://r.openai.azure.com"),
                "r.openai.azure.com",
                false,
            ),
            ("ollama/m", None, "localhost:11434", false),
            ("ollama/m", Some("https://[::1]:1/"), "[::1]:1", false),
        ] {
            let endpoint = endpoint(model, base).unwrap();
            assert_eq!(endpoint.host(), host);
            assert_eq!(endpoint.is_default_host(), default, "{endpoint:?}");
        }
    }

    #[test]
    fn base64_is_asked_for_where_it_is_known() {
        let asks = |model, base| {
            let endpoint = endpoint(model, base).unwrap();
            body(&endpoint, Purpose::Document, 8)
                .get("encoding_format")
                .is_some()
        };
        assert!(asks("openai/m", None));
        assert!(asks("openai/voyage-3.5", None));
        assert!(asks("azure/d", Some("https://r.openai.azure.com")));
        assert!(!asks("openai/m", Some("http://tei:8080")));
        assert!(!asks("openai/mistral-embed", None));
        assert!(!asks("ollama/m", None));
    }

    #[test]
    fn dimensions_are_asked_for_where_the_model_has_a_choice() {
        let asked = |model: &str, dimensions| {
            let base = model
                .starts_with("azure")
                .then_some("https://r.openai.azure.com");
            let body = body(
                &endpoint(model, base).unwrap(),
                Purpose::Document,
                dimensions,
            );
            body.get("dimensions")
                .or(body.get("output_dimension"))
                .cloned()
        };
        assert_eq!(
            asked("openai/text-embedding-3-small", 512),
            Some(512.into())
        );
        assert_eq!(asked("openai/text-embedding-3-small", 1536), None);
        assert_eq!(asked("openai/text-embedding-3-small", 9999), None);
        assert_eq!(asked("openai/text-embedding-ada-002", 512), None);
        assert_eq!(asked("azure/text-embedding-3-small", 512), Some(512.into()));
        assert_eq!(asked("openai/unknown", 512), None);
        assert_eq!(asked("openai/voyage-3.5", 2048), Some(2048.into()));
        assert_eq!(asked("openai/voyage-3.5", 300), None);
        let voyage = endpoint("openai/voyage-3.5", None).unwrap();
        assert!(
            body(&voyage, Purpose::Query, 256)
                .get("output_dimension")
                .is_some()
        );
    }

    #[test]
    fn documents_and_queries_are_told_apart_as_the_model_wants() {
        let voyage = endpoint("openai/voyage-3.5", None).unwrap();
        assert_eq!(
            body(&voyage, Purpose::Document, 1024)["input_type"],
            "document"
        );
        assert_eq!(body(&voyage, Purpose::Query, 1024)["input_type"], "query");
        assert_eq!(body(&voyage, Purpose::Query, 1024)["truncation"], false);
        // Another server with a model of that name need not know these fields.
        let proxy = endpoint("openai/voyage-3.5", Some("http://litellm:4000")).unwrap();
        assert_eq!(body(&proxy, Purpose::Query, 1024).get("input_type"), None);
        let nomic = endpoint("ollama/nomic-embed-text:latest", None).unwrap();
        assert_eq!(
            body(&nomic, Purpose::Document, 768),
            json!({"model": "nomic-embed-text:latest", "truncate": false, "input": ["search_document: text"]})
        );
        assert_eq!(nomic.prefix(Purpose::Query), "search_query: ");
    }

    #[test]
    fn options_go_over_the_catalogue_field_by_field() {
        let endpoint = with_options(
            "openai/voyage-3.5",
            json!({"body": {"user": "me", "truncation": null}, "query_body": {"input_type": "document"}, "document_prefix": "d: "}),
        )
        .unwrap();
        assert_eq!(
            body(&endpoint, Purpose::Query, 1024),
            json!({"model": "voyage-3.5", "encoding_format": "base64", "user": "me", "input_type": "document", "input": ["text"]})
        );
        assert_eq!(
            body(&endpoint, Purpose::Document, 1024)["input"][0],
            "d: text"
        );
        let nomic = with_options("ollama/nomic-embed-text", json!({"query_prefix": ""})).unwrap();
        assert_eq!(nomic.prefix(Purpose::Query), "");
    }

    #[test]
    fn what_the_pipeline_sets_cannot_be_set_beside_it() {
        for (model, body) in [
            ("openai/text-embedding-3-small", json!({"dimensions": 8})),
            ("openai/voyage-3.5", json!({"output_dimension": 256})),
            ("ollama/m", json!({"truncate": true})),
            ("openai/m", json!({"model": "other"})),
        ] {
            assert!(matches!(
                with_options(model, json!({ "body": body })),
                Err(EndpointError::Options(InvalidOptions::ReservedField(_)))
            ));
        }
        // The dimensions of an unknown model can only be asked for this way; the answer is checked all the same.
        assert!(with_options("openai/qwen3", json!({"body": {"dimensions": 8}})).is_ok());
    }

    #[test]
    fn the_key_goes_into_the_providers_header_and_is_not_shown() {
        let key = Secret::new("topsecretkey").unwrap();
        let azure = endpoint("azure/d", Some("https://r.openai.azure.com")).unwrap();
        assert_eq!(azure.headers(Some(&key))["api-key"], "topsecretkey");
        let openai = endpoint("openai/m", None).unwrap();
        let headers = openai.headers(Some(&key));
        assert_eq!(headers["authorization"], "Bearer topsecretkey");
        assert!(!format!("{headers:?} {openai:?} {openai}").contains("topsecret"));
        assert!(openai.headers(None).is_empty());
        assert!(openai.needs_key() && azure.needs_key());
        assert!(!endpoint("ollama/m", None).unwrap().needs_key());
    }

    proptest! {
        #[test]
        fn any_base_url_is_taken_or_refused(base in "(https?://)?\\PC{0,40}|https?://[a-z.:@\\[\\]0-9]{1,20}/[a-z/?#=]{0,20}") {
            for model in ["openai/m", "azure/d", "ollama/m"] {
                if let Ok(endpoint) = endpoint(model, Some(&base)) {
                    prop_assert!(!endpoint.host().is_empty());
                    prop_assert_eq!(endpoint.host(), endpoint.host().to_lowercase());
                    prop_assert!(!endpoint.is_default_host());
                }
            }
        }
    }
}
