//! The servers that pipelines may talk to without a superuser's word for each: `pg_ingest.allowed_hosts`.

use std::fmt;
use std::str::FromStr;

use url::Host;

use crate::remote::Endpoint;

/// A list of servers, as in `api.voyageai.com, *.openai.azure.com, localhost:11434, 10.0.0.5:8080`.
///
/// A name is compared without regard to case. Without a port it stands for HTTPS on port 443 and nothing else, since a key
/// goes along; with a port it stands for that port, encrypted or not, so plain HTTP needs its port written down:
/// `10.0.0.5:80`. `*.example.com` stands for all sub-domains at any depth, not for `example.com`. `*` alone stands for
/// every server on every port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Any,
    Host { host: String, port: Option<u16> },
    SubDomains { suffix: String, port: Option<u16> },
}

/// An entry that names no server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{entry}\" names no server: {reason}")]
pub struct InvalidHost {
    /// The entry.
    pub entry: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for AllowedHosts {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                parse_entry(entry).map_err(|reason| InvalidHost {
                    entry: entry.to_owned(),
                    reason,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }
}

fn parse_entry(entry: &str) -> Result<Entry, &'static str> {
    if entry == "*" {
        return Ok(Entry::Any);
    }
    if entry.contains("://") {
        return Err("leave out the scheme; write the host, and the port if it is not 443");
    }
    if entry.contains(['/', '@', '?', '#']) {
        return Err("write the host alone, and the port if it is not 443");
    }
    // An IPv6 address has colons of its own and stands in brackets.
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let port: u16 = match port.parse() {
                Ok(port) if digits && port > 0 => port,
                _ => return Err("the port is a number from 1 to 65535"),
            };
            (name, Some(port))
        }
        _ => (entry, None),
    };
    if let Some(domain) = name.strip_prefix("*.") {
        return match Host::parse(domain) {
            Ok(Host::Domain(domain)) if !domain.contains('*') && domain.contains('.') => {
                Ok(Entry::SubDomains {
                    suffix: format!(".{domain}"),
                    port,
                })
            }
            _ => Err("\"*.\" goes before a domain of at least two parts, such as *.example.com"),
        };
    }
    let host = Host::parse(name).map(|host| host.to_string());
    // It may have been written as %2a.
    if name.contains('*') || host.as_ref().is_ok_and(|host| host.contains('*')) {
        return Err("\"*\" stands alone or, with a dot, before a domain: *.example.com");
    }
    match host {
        Ok(host) => Ok(Entry::Host { host, port }),
        Err(_) => Err("this is neither a host name nor an IP address"),
    }
}

impl AllowedHosts {
    /// The entry that stands for the server of `endpoint` and no other.
    pub fn entry_for(endpoint: &Endpoint) -> String {
        match (endpoint.is_https(), endpoint.port()) {
            (true, 443) => endpoint.host_name().to_owned(),
            (_, port) => format!("{}:{port}", endpoint.host_name()),
        }
    }

    /// Whether the server of `endpoint` is on the list.
    pub fn allows(&self, endpoint: &Endpoint) -> bool {
        self.allows_host(endpoint.host_name(), endpoint.port(), endpoint.is_https())
    }

    /// Whether the server `host` (a name or an address, IPv6 in brackets) is on the list for this port and for plain or
    /// encrypted HTTP.
    pub fn allows_host(&self, host: &str, port: u16, https: bool) -> bool {
        let host = host.to_ascii_lowercase();
        let port_fits = |allowed: Option<u16>| match allowed {
            Some(allowed) => allowed == port,
            None => https && port == 443,
        };
        self.entries.iter().any(|entry| match entry {
            Entry::Any => true,
            Entry::Host { host: name, port } => *name == host && port_fits(*port),
            Entry::SubDomains { suffix, port } => {
                host.len() > suffix.len() && host.ends_with(suffix) && port_fits(*port)
            }
        })
    }
}

impl fmt::Display for AllowedHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, entry) in self.entries.iter().enumerate() {
            if number > 0 {
                f.write_str(", ")?;
            }
            let port = match entry {
                Entry::Any => {
                    f.write_str("*")?;
                    &None
                }
                Entry::Host { host, port } => {
                    f.write_str(host)?;
                    port
                }
                Entry::SubDomains { suffix, port } => {
                    write!(f, "*{suffix}")?;
                    port
                }
            };
            if let Some(port) = port {
                write!(f, ":{port}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::RequestOptions;
    use proptest::prelude::*;

    fn list(text: &str) -> AllowedHosts {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_without_a_port_is_https_on_443_only() {
        let hosts = list("API.VoyageAI.com");
        assert!(hosts.allows_host("api.voyageai.com", 443, true));
        assert!(hosts.allows_host("Api.voyageai.com", 443, true));
        assert!(!hosts.allows_host("api.voyageai.com", 80, false));
        assert!(!hosts.allows_host("api.voyageai.com", 443, false));
        assert!(!hosts.allows_host("api.voyageai.com", 8443, true));
        assert!(!hosts.allows_host("api.voyageai.com.evil.example", 443, true));
        assert!(!hosts.allows_host("evil-api.voyageai.com", 443, true));
    }

    #[test]
    fn a_port_is_meant_literally() {
        let hosts = list("localhost:11434, 10.0.0.5:8080, [::1]:80");
        assert!(hosts.allows_host("localhost", 11434, false));
        assert!(hosts.allows_host("10.0.0.5", 8080, true));
        assert!(hosts.allows_host("[::1]", 80, false));
        assert!(!hosts.allows_host("localhost", 80, false));
        assert!(!hosts.allows_host("10.0.0.5", 443, true));
    }

    #[test]
    fn a_wildcard_covers_sub_domains_only() {
        let hosts = list("*.openai.azure.com");
        assert!(hosts.allows_host("mine.openai.azure.com", 443, true));
        assert!(hosts.allows_host("a.b.openai.azure.com", 443, true));
        assert!(!hosts.allows_host("openai.azure.com", 443, true));
        assert!(!hosts.allows_host(".openai.azure.com", 443, true));
        assert!(!hosts.allows_host("evilopenai.azure.com", 443, true));
        assert!(list("*").allows_host("anything", 1, false));
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        for text in ["", " ", ",", " , "] {
            assert!(!list(text).allows_host("api.openai.com", 443, true));
        }
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for text in [
            "https://api.openai.com",
            "api.openai.com/v1",
            "user@host",
            "*.com",
            "*.*",
            "*evil.com",
            "a.*.com",
            "*.10.0.0.1",
            "host:",
            "host:0",
            "host:+80",
            "host:65536",
            "host:http",
            "::1",
            "a b",
            "a.com b.com",
            ":80",
        ] {
            assert!(text.parse::<AllowedHosts>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_entry_for_a_server_stands_for_it() {
        for (url, entry) in [
            ("https://api.voyageai.com/v1", "api.voyageai.com"),
            ("http://127.0.0.1/v1", "127.0.0.1:80"),
            ("https://[::1]:8443", "[::1]:8443"),
            ("http://10.0.0.5:443", "10.0.0.5:443"),
        ] {
            let model = "openai/x".parse().unwrap();
            let endpoint = Endpoint::new(&model, Some(url), &RequestOptions::default()).unwrap();
            assert_eq!(AllowedHosts::entry_for(&endpoint), entry);
            assert!(list(entry).allows(&endpoint), "{entry}");
        }
    }

    #[test]
    fn an_address_is_an_address_however_it_is_written() {
        assert!(list("127.0.0.1:80").allows_host("127.0.0.1", 80, false));
        assert!(list("0x7f.1:80").allows_host("127.0.0.1", 80, false));
        assert!(list("[0:0::1]:80").allows_host("[::1]", 80, false));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[*.a-z0-9:,\\[\\] /-]{0,40}|\\PC{0,20}") {
            if let Ok(hosts) = text.parse::<AllowedHosts>() {
                prop_assert_eq!(hosts.to_string().parse::<AllowedHosts>().unwrap(), hosts);
            }
        }
    }
}
