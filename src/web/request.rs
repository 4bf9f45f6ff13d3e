//! A request as the routes see it: its path and query decoded, who sent it, and its headers.

use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::answer::Failure;
use super::forwarded::client_address;
use super::{HEADER_LISTENER, HEADER_PEER, HEADER_REQUEST, ListenerKind, Peer, routes};
use crate::config::{PublicUrl, Settings};
use crate::metrics::{Answered, Metrics};

/// More bytes than this never come through the gate.
const BODY_MAX_BYTES: u64 = 1024 * 1024;

/// What a request wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET, and HEAD, whose answer lacks the body.
    Get,
    /// POST.
    Post,
    /// OPTIONS.
    Options,
    /// One that no route has.
    Other,
}

impl Method {
    /// Whether it may change something.
    pub fn writes(self) -> bool {
        !matches!(self, Method::Get | Method::Options)
    }
}

/// A request.
pub struct Request {
    inner: tiny_http::Request,
    /// What it wants to do.
    pub method: Method,
    /// The parts of the path between slashes, decoded.
    pub segments: Vec<String>,
    /// How it came in.
    pub listener: ListenerKind,
    /// The other end of the connection: the client, or a proxy.
    pub peer: Option<Peer>,
    /// The client's address, as far as proxies are believed; none on the control socket.
    pub client: Option<IpAddr>,
    /// Whether the path is that of the public URL without the slash that links on the page need.
    pub lacks_slash: bool,
    /// Its number in this process.
    pub id: u64,
    query: Vec<(String, String)>,
    began: Instant,
    metrics: Arc<Metrics>,
}

impl Request {
    /// Reads what the gate passed on. Some proxies strip the path of the public URL and others do not: both are
    /// understood. Its answer is counted in `metrics`.
    ///
    /// # Errors
    /// The request back, and why it is not understood: a path or query that is not percent-encoded.
    pub fn new(
        inner: tiny_http::Request,
        settings: &Settings,
        metrics: &Arc<Metrics>,
    ) -> Result<Request, Box<(tiny_http::Request, Failure)>> {
        let began = Instant::now();
        let (path, query) = inner.url().split_once('?').unwrap_or((inner.url(), ""));
        let prefix = settings.public_url.as_ref().map_or("", PublicUrl::path);
        let lacks_slash = !prefix.is_empty() && path == prefix;
        let path = without_prefix(path, prefix);
        let decoded = segments(path).and_then(|segments| Ok((segments, pairs(query)?)));
        let (segments, query) = match decoded {
            Ok(decoded) => decoded,
            Err(failure) => return Err(Box::new((inner, failure))),
        };
        let method = match inner.method() {
            tiny_http::Method::Get | tiny_http::Method::Head => Method::Get,
            tiny_http::Method::Post => Method::Post,
            tiny_http::Method::Options => Method::Options,
            _ => Method::Other,
        };
        let value = |name| header(&inner, name);
        // Without the gate's word for it, a request has no privilege.
        let is_control = value(HEADER_LISTENER) == Some(ListenerKind::Control.as_str());
        let peer = value(HEADER_PEER).and_then(|peer| peer.parse().ok());
        let client = match peer {
            Some(Peer::Address(address)) => {
                Some(client_address(address, headers(&inner, "X-Forwarded-For"), &settings.trusted_proxies))
            }
            Some(Peer::User(_)) | None => None,
        };
        Ok(Request {
            method,
            client,
            lacks_slash,
            segments,
            listener: if is_control { ListenerKind::Control } else { ListenerKind::Tcp },
            peer,
            id: value(HEADER_REQUEST).and_then(|id| id.parse().ok()).unwrap_or(0),
            query,
            began,
            metrics: Arc::clone(metrics),
            inner,
        })
    }

    /// Its method's name; `other` for one that no route has.
    fn verb(&self) -> &'static str {
        match self.method {
            Method::Get if self.is_head() => "HEAD",
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Options => "OPTIONS",
            Method::Other => "other",
        }
    }

    /// Whether the answer lacks its body.
    pub fn is_head(&self) -> bool {
        *self.inner.method() == tiny_http::Method::Head
    }

    /// The first header line of this name.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        header(&self.inner, name)
    }

    /// The only header line of this name.
    ///
    /// # Errors
    /// More than one: whoever reads the request before us may mean another one.
    pub fn only_header(&self, name: &'static str) -> Result<Option<&str>, Failure> {
        let mut lines = headers(&self.inner, name);
        match (lines.next(), lines.next()) {
            (first, None) => Ok(first),
            (_, Some(_)) => Err(Failure::bad_request(format!("there is more than one {name} header"))),
        }
    }

    /// A parameter of the query; the last one counts.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A whole number of the query, within bounds.
    ///
    /// # Errors
    /// Anything else, with the bounds.
    pub fn query_number(&self, name: &str, least: i64, most: i64) -> Result<Option<i64>, Failure> {
        let Some(text) = self.query(name) else { return Ok(None) };
        match text.parse::<i64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ if most == i64::MAX => Err(Failure::bad_request(format!("`{name}` must be a whole number from {least}"))),
            _ => Err(Failure::bad_request(format!("`{name}` must be a whole number from {least} to {most}"))),
        }
    }

    /// A switch of the query: `1` or `true`, `0` or `false`.
    ///
    /// # Errors
    /// Anything else.
    pub fn query_switch(&self, name: &str) -> Result<bool, Failure> {
        match self.query(name) {
            Some("1" | "true" | "") => Ok(true),
            None | Some("0" | "false") => Ok(false),
            Some(_) => Err(Failure::bad_request(format!("`{name}` must be 1 or 0"))),
        }
    }

    /// Whether the client would rather have plain text than JSON.
    pub fn prefers_text(&self) -> bool {
        self.header("Accept").is_some_and(prefers_text)
    }

    /// The body.
    ///
    /// # Errors
    /// One that did not arrive.
    pub fn body(&mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        let read = self.inner.as_reader().take(BODY_MAX_BYTES).read_to_end(&mut body);
        read.map(|_| body).map_err(|error| Failure::bad_request(format!("the body did not arrive: {error}")))
    }

    /// Its segments, as routes are compared with them.
    pub fn path(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    /// Whether the gate itself asks, to see that somebody answers: a client's request has a number.
    pub fn is_greeting(&self) -> bool {
        self.id == 0
    }

    /// Where a page is whose path lacks its last slash: links on it lead astray without.
    pub fn with_slash(&self) -> String {
        let (path, query) = self.inner.url().split_once('?').unwrap_or((self.inner.url(), ""));
        if query.is_empty() { format!("{path}/") } else { format!("{path}/?{query}") }
    }

    /// Counts its answer, with the time until now. That is when its head is about to be sent: a stream that goes on
    /// for hours is no slow answer.
    pub fn answered(&self, status: u16) {
        let what = Answered { route: routes::pattern(self), method: self.verb(), status };
        self.metrics.request_answered(what, self.began.elapsed());
    }

    /// Gives tiny_http's request back, to be answered.
    pub fn into_inner(self) -> tiny_http::Request {
        self.inner
    }
}

fn header<'a>(request: &'a tiny_http::Request, name: &'static str) -> Option<&'a str> {
    headers(request, name).next()
}

fn headers<'a>(request: &'a tiny_http::Request, name: &'static str) -> impl DoubleEndedIterator<Item = &'a str> {
    request.headers().iter().filter(move |header| header.field.equiv(name)).map(|header| header.value.as_str())
}

/// A path below the public URL's, where it is.
fn without_prefix<'a>(path: &'a str, prefix: &str) -> &'a str {
    match path.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => path,
    }
}

/// The quality of `text/plain` against that of `application/json`, named ones only: `*/*` means JSON.
fn prefers_text(accept: &str) -> bool {
    let quality = |wanted: &str| {
        accept.split(',').find_map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().filter(|name| name.eq_ignore_ascii_case(wanted))?;
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
            Some((name, quality.unwrap_or(1.0)).1)
        })
    };
    let text = quality("text/plain").or_else(|| quality("text/*")).unwrap_or(0.0);
    text > 0.0 && text >= quality("application/json").unwrap_or(0.0)
}

fn segments(path: &str) -> Result<Vec<String>, Failure> {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split('/').map(|segment| decode(segment, false)).collect()
}

fn pairs(query: &str) -> Result<Vec<(String, String)>, Failure> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(name, true)?, decode(value, true)?))
        })
        .collect()
}

/// A field of a form (`application/x-www-form-urlencoded`); the last one counts. None: there is none, or it is no form.
pub fn form_field(body: &[u8], name: &str) -> Option<Vec<u8>> {
    let fields = pairs(std::str::from_utf8(body).ok()?).ok()?;
    fields.into_iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.into_bytes())
}

fn decode(text: &str, plus_is_space: bool) -> Result<String, Failure> {
    let bad = || Failure::bad_request(format!("`{text}` is not percent-encoded"));
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next()).ok_or_else(bad)?, digit(bytes.next()).ok_or_else(bad)?);
                (high * 16 + low) as u8
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    // What is no UTF-8 is nothing's name.
    Ok(String::from_utf8_lossy(&decoded).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_decoded() {
        assert_eq!(segments("/api/a%20b/%C3%A9+").ok(), Some(vec!["api".into(), "a b".into(), "é+".into()]));
        assert_eq!(
            pairs("a=1&b=x+y%26&&c").ok(),
            Some(vec![("a".into(), "1".into()), ("b".into(), "x y&".into()), ("c".into(), String::new())])
        );
        for path in ["/%", "/%4", "/%zz", "/%+1"] {
            assert!(segments(path).is_err(), "{path}");
        }
        // An encoded slash is a character of its segment.
        assert_eq!(segments("/a%2Fb").ok(), Some(vec!["a/b".into()]));
    }

    #[test]
    fn a_path_is_read_with_and_without_that_of_the_public_url() {
        for (path, expected) in [
            ("/shiparr/api/health", "/api/health"),
            ("/api/health", "/api/health"),
            ("/shiparr", ""),
            ("/shiparr/", "/"),
            ("/shiparr/shiparr/api", "/shiparr/api"),
            ("/shiparrs/api", "/shiparrs/api"),
            ("/Shiparr/api", "/Shiparr/api"),
            ("/%73hiparr/api", "/%73hiparr/api"),
            ("//shiparr/api", "//shiparr/api"),
            ("/shiparr//api", "//api"),
            ("/shiparr/../api", "/../api"),
            ("/shiparr%2fapi", "/shiparr%2fapi"),
            ("*", "*"),
        ] {
            assert_eq!(without_prefix(path, "/shiparr"), expected, "{path}");
            assert_eq!(without_prefix(path, ""), path);
        }
        // None of the odd ones is a route.
        for path in ["//api/health", "/../api/health", "/./api/health", "/api%2fhealth", "/api/health/"] {
            let segments = segments(path).unwrap_or_default();
            assert_ne!(segments, ["api", "health"], "{path}");
        }
    }

    #[test]
    fn text_is_preferred_where_it_is_named() {
        for accept in
            ["text/plain", "text/plain, */*", "TEXT/PLAIN;q=0.5", "text/*", "application/json;q=0.5, text/plain"]
        {
            assert!(prefers_text(accept), "{accept}");
        }
        for accept in ["*/*", "application/json", "text/html", "application/json, text/plain;q=0.9", "text/plain;q=0"] {
            assert!(!prefers_text(accept), "{accept}");
        }
    }
}
