//! Models' names, addresses, and the servers that may be asked.

use embedder::remote::{Endpoint, RequestOptions};
use embedder::{AllowedHosts, ModelName};

use crate::tools::first_line;

/// A line with the model, one with the base URL (empty: none), then a list of hosts.
///
/// What requests go to is an HTTP server that is allowed when it is listed, and by no list that has no part of its name;
/// what is shown of it has neither a query string nor credentials.
pub fn endpoint(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (model, rest) = first_line(text.as_bytes());
    let (url, hosts) = first_line(rest);
    let [model, url, hosts] =
        [model, url, hosts].map(|part| std::str::from_utf8(part).expect("a part of a text"));
    let hosts: Option<AllowedHosts> = hosts.parse().ok();
    if let Some(hosts) = &hosts {
        assert_eq!(hosts.to_string().parse().as_ref(), Ok(hosts));
    }
    let Ok(model) = model.parse::<ModelName>() else {
        return;
    };
    assert_eq!(model.to_string().parse().as_ref(), Ok(&model));
    let url = Some(url).filter(|url| !url.is_empty());
    let Ok(endpoint) = Endpoint::new(&model, url, &RequestOptions::default()) else {
        return;
    };
    let (name, port) = (endpoint.host_name(), endpoint.port());
    assert!(!name.is_empty() && port > 0);
    let shown = endpoint.to_string();
    assert!(shown.starts_with("http") && !shown.contains(['?', '#']));
    assert!(!endpoint.host().contains('@'));
    if endpoint.is_default_host() {
        assert!(endpoint.is_https() && port == 443);
    }
    assert!(list("*").allows(&endpoint));
    assert!(!list("").allows(&endpoint));
    // No list can name a host that has a star or a comma in its name, as no host of the DNS has.
    if !name.contains(['*', ',']) {
        assert!(list(&format!("{name}:{port}")).allows(&endpoint));
        assert_eq!(
            list(name).allows(&endpoint),
            endpoint.is_https() && port == 443
        );
        assert!(
            !list(&format!(
                "x{}:{port}",
                name.trim_matches(['[', ']']).replace(':', "-")
            ))
            .allows(&endpoint)
        );
    }
    if let Some(hosts) = hosts.filter(|hosts| hosts.allows(&endpoint)) {
        let named = |entry: &str| {
            let ends = entry.strip_suffix(&format!(":{port}")).unwrap_or(entry);
            entry == "*"
                || ends == name
                || ends.strip_prefix('*').is_some_and(|e| name.ends_with(e))
        };
        assert!(
            hosts.to_string().split(", ").any(named),
            "{hosts} does not name {name}"
        );
    }
}

fn list(text: &str) -> AllowedHosts {
    text.parse().unwrap_or_default()
}
