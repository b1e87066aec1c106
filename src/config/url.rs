//! The URLs that flags carry: where a member listens and what it advertises.
//!
//! A URL keeps its text exactly as given, because member ids are hashes of that text. Accepted forms
//! and refusals are etcd's.

use std::fmt;
use std::net::IpAddr;

use thiserror::Error;

/// How to talk to a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// TCP without TLS.
    Http,
    /// TCP with TLS.
    Https,
    /// A Unix socket.
    Unix,
    /// A Unix socket with TLS.
    Unixs,
}

/// One URL of the form `scheme://host:port`, or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    text: String,
    scheme: Scheme,
    host: String,
    port: u16,
}

/// Why a text is no URL that a flag accepts.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UrlError {
    /// No scheme although there is a colon, e.g. `127.0.0.1:2379`.
    #[error("parse {0:?}: first path segment in URL cannot contain colon")]
    ColonWithoutScheme(String),
    /// Any other scheme, or none.
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    /// The port is missing.
    #[error("URL address does not have the form \"host:port\": {0}")]
    HostPort(String),
    /// The port is no number that TCP knows.
    #[error("parse {url:?}: invalid port {port:?} after host")]
    Port {
        /// The whole URL.
        url: String,
        /// The colon and what follows.
        port: String,
    },
    /// Something follows the port.
    #[error("URL must not contain a path: {0}")]
    Path(String),
    /// A character that no host name has.
    #[error("parse {0:?}: invalid character in host name")]
    Host(String),
}

impl Url {
    /// Parses one URL; surrounding blanks are dropped.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let (scheme, rest) = split_scheme(text)?;
        let scheme = match scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" | "unixs" => {
                let scheme = if scheme == "unix" { Scheme::Unix } else { Scheme::Unixs };
                let (text, host) = (text.to_owned(), rest.trim_start_matches("//").to_owned());
                return Ok(Self { text, scheme, host, port: 0 });
            }
            _ => return Err(UrlError::Scheme(text.to_owned())),
        };
        let rest = rest.strip_prefix("//").ok_or_else(|| UrlError::HostPort(text.to_owned()))?;
        let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        let (host, port) = split_host_port(text, authority)?;
        if !path.is_empty() {
            return Err(UrlError::Path(text.to_owned()));
        }
        // Go prints the scheme in lower case and leaves the host alone; ids are hashes of that.
        let prefix = if scheme == Scheme::Http { "http" } else { "https" };
        Ok(Self { text: format!("{prefix}://{authority}"), scheme, host, port })
    }

    /// Parses a comma-separated list: sorted, without duplicates.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, UrlError> {
        let mut urls = text.split(',').map(Self::parse).collect::<Result<Vec<_>, _>>()?;
        urls.sort_by(|a, b| a.text.cmp(&b.text));
        urls.dedup();
        Ok(urls)
    }

    /// The URL as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How to talk to it.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host name or address without brackets; the path of a Unix socket.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port; 0 for a Unix socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address to bind or to connect to, as `host:port`, an IPv6 host in brackets.
    pub fn host_port(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }

    /// Whether a member may listen there: an address or `localhost`, because any other name could
    /// resolve to somebody else's address.
    pub fn is_bindable(&self) -> bool {
        match self.scheme {
            Scheme::Http | Scheme::Https => {
                self.host == "localhost" || self.host.parse::<IpAddr>().is_ok()
            }
            Scheme::Unix | Scheme::Unixs => true,
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl AsRef<str> for Url {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

fn split_scheme(text: &str) -> Result<(String, &str), UrlError> {
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(UrlError::Scheme(text.to_owned()));
    };
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(letters) {
        return Err(UrlError::ColonWithoutScheme(text.to_owned()));
    }
    Ok((scheme.to_ascii_lowercase(), rest))
}

fn split_host_port(url: &str, authority: &str) -> Result<(String, u16), UrlError> {
    let no_port = || UrlError::HostPort(url.to_owned());
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(no_port)?;
            (host, port.strip_prefix(':').ok_or_else(no_port)?)
        }
        None => {
            let (host, port) = authority.split_once(':').ok_or_else(no_port)?;
            if port.contains(':') {
                return Err(no_port());
            }
            (host, port)
        }
    };
    if port.is_empty() {
        return Err(no_port());
    }
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    let number = port
        .parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| UrlError::Port { url: url.to_owned(), port: format!(":{port}") })?;
    let letters = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_' | '*' | ':' | '%');
    if !host.chars().all(letters) {
        return Err(UrlError::Host(url.to_owned()));
    }
    Ok((host.to_owned(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_forms_keep_their_text() {
        let url = Url::parse(" HTTP://LocalHost:02380 ").unwrap();
        assert_eq!(url.as_str(), "http://LocalHost:02380");
        assert_eq!((url.host(), url.port()), ("LocalHost", 2380));
        let v6 = Url::parse("http://[::1]:2379").unwrap();
        assert_eq!(v6.host_port(), "[::1]:2379");
        assert!(v6.is_bindable());
        assert_eq!(Url::parse("unix://a.sock").unwrap().scheme(), Scheme::Unix);
    }

    #[test]
    fn refusals_are_those_of_etcd() {
        let cases = [
            (
                "127.0.0.1:1",
                "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon",
            ),
            ("localhost:1", "URL scheme must be http, https, unix, or unixs: localhost:1"),
            ("ftp://h:1", "URL scheme must be http, https, unix, or unixs: ftp://h:1"),
            ("", "URL scheme must be http, https, unix, or unixs: "),
            ("http://h", "URL address does not have the form \"host:port\": http://h"),
            ("http://::1:1", "URL address does not have the form \"host:port\": http://::1:1"),
            ("http://h:x", "parse \"http://h:x\": invalid port \":x\" after host"),
            ("http://h:99999", "parse \"http://h:99999\": invalid port \":99999\" after host"),
            ("http://h:1/foo", "URL must not contain a path: http://h:1/foo"),
            ("http://u@h:1", "parse \"http://u@h:1\": invalid character in host name"),
        ];
        for (text, message) in cases {
            assert_eq!(Url::parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn list_is_sorted_without_duplicates() {
        let urls = Url::parse_list("http://b:1, http://a:2,http://b:1").unwrap();
        let texts: Vec<&str> = urls.iter().map(Url::as_str).collect();
        assert_eq!(texts, ["http://a:2", "http://b:1"]);
    }

    #[test]
    fn only_addresses_and_localhost_are_bindable() {
        for (url, expected) in [
            ("http://localhost:1", true),
            ("http://0.0.0.0:1", true),
            ("http://example.com:1", false),
            ("http://:1", false),
            ("http://*:1", false),
        ] {
            assert_eq!(Url::parse(url).unwrap().is_bindable(), expected, "{url}");
        }
    }
}
