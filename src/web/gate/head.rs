//! Request heads: parsed with `httparse`, judged, and rewritten for tiny_http.

use std::borrow::Cow;

use super::refusal::Refusal;
use crate::web::{HEADER_LISTENER, HEADER_PEER, HEADER_REQUEST, ListenerKind, Peer};

/// Bytes that a request head may have (spec section 5).
pub const HEAD_MAX_BYTES: usize = 16 * 1024;
/// Header lines that a request head may have.
const HEADERS_MAX: usize = 100;

/// Header lines that mean one connection only, or that the gate writes itself.
const NOT_PASSED_ON: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
    "content-length",
];
/// Header lines by which is decided who may do what: of two that differ, one reader believes the first and another one
/// the last.
const SINGLE: [(&str, &str); 5] = [
    ("host", "there is more than one Host header"),
    ("origin", "there is more than one Origin header"),
    ("sec-fetch-site", "there is more than one Sec-Fetch-Site header"),
    ("authorization", "there is more than one Authorization header"),
    ("x-api-key", "there is more than one X-Api-Key header"),
];
/// Headers that no client can set.
const OURS_PREFIX: &[u8] = b"x-shiparr-";

/// Who sent a request, as the routes are told.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Which kind of listener it came in by.
    pub listener: ListenerKind,
    /// The other end of the connection; none where the system does not say.
    pub peer: Option<Peer>,
    /// Number of the request in this process.
    pub request: u64,
}

/// How long a request's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// It says so itself.
    Chunked,
}

/// A request head that was found good.
#[derive(Debug)]
pub struct RequestHead {
    /// Request line and header lines for tiny_http, without `Content-Length` and the empty line.
    pub rewritten: Vec<u8>,
    /// How long the body is.
    pub framing: Framing,
    /// Whether the client wants to send more requests on this connection.
    pub keep_alive: bool,
    /// Whether the client speaks HTTP/1.0: it knows no chunks.
    pub is_http_1_0: bool,
    /// Whether it is a HEAD request: its answer has no body.
    pub is_head: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// How many bytes of empty lines lie before a request: they are no part of it (RFC 9112, section 2.2).
pub fn empty_lines(input: &[u8]) -> usize {
    input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

/// The length of the request head that `input` begins with, if it is complete; `scanned` remembers what was looked at
/// before.
///
/// # Errors
/// What cannot become a head any more: no HTTP by its first byte, or longer than [`HEAD_MAX_BYTES`].
pub fn find(input: &[u8], scanned: &mut usize) -> Result<Option<usize>, Refusal> {
    match input.first() {
        None => return Ok(None),
        Some(first) if first.is_ascii_alphabetic() => {}
        // The first byte of a TLS handshake.
        Some(0x16) => return Err(Refusal::bad_request("this port speaks http, not https")),
        Some(_) => return Err(Refusal::bad_request("this is not HTTP")),
    }
    let end = end_of_head(input, scanned);
    if end.unwrap_or(input.len()) > HEAD_MAX_BYTES { Err(Refusal::head_too_large()) } else { Ok(end) }
}

/// The length of the head in `buffer` with its empty line, if it is complete; `scanned` remembers what was looked at
/// before.
pub fn end_of_head(buffer: &[u8], scanned: &mut usize) -> Option<usize> {
    // A line break at the end of what was looked at may be the first of two.
    let mut position = scanned.saturating_sub(2);
    while let Some(found) = buffer[position..].iter().position(|byte| *byte == b'\n') {
        position += found + 1;
        match &buffer[position..] {
            [b'\n', ..] => return Some(position + 1),
            [b'\r', b'\n', ..] => return Some(position + 2),
            _ => {}
        }
    }
    *scanned = buffer.len();
    None
}

/// Parses a complete head.
///
/// # Errors
/// Everything that is not plain HTTP/1.x, and every shape that two readers could understand differently.
pub fn parse(head: &[u8], origin: Origin) -> Result<RequestHead, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Refusal::bad_request("the request head is not complete")),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::head_too_large()),
        Err(_) => return Err(Refusal::bad_request("the request head is not HTTP/1.1")),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refusal::bad_request("the request line is not complete"));
    };
    let is_http_1_0 = version == 0;
    let facts = Facts::of(request.headers, is_http_1_0)?;
    let (authority, path) = split_target(method, target)?;
    let mut rewritten = Vec::with_capacity(head.len() + 128);
    for part in [method, " ", path, " HTTP/1.1\r\n"] {
        rewritten.extend_from_slice(part.as_bytes());
    }
    if let Some(authority) = authority {
        line(&mut rewritten, "Host", authority.as_bytes());
    }
    for header in request.headers.iter() {
        if !is_passed_on(header) || (authority.is_some() && header.name.eq_ignore_ascii_case("host")) {
            continue;
        }
        line(&mut rewritten, header.name, &in_ascii(header.value));
    }
    add_origin(&mut rewritten, origin);
    Ok(RequestHead {
        rewritten,
        framing: facts.framing()?,
        keep_alive: facts.keep_alive(is_http_1_0),
        is_http_1_0,
        is_head: method == "HEAD",
        expects_continue: facts.expects_continue,
    })
}

fn line(to: &mut Vec<u8>, name: &str, value: &[u8]) {
    to.extend_from_slice(name.as_bytes());
    to.extend_from_slice(b": ");
    to.extend_from_slice(value);
    to.extend_from_slice(b"\r\n");
}

fn add_origin(to: &mut Vec<u8>, origin: Origin) {
    use std::io::Write;
    line(to, HEADER_LISTENER, origin.listener.as_str().as_bytes());
    // Writing to a vector cannot fail.
    let _ = write!(to, "{HEADER_REQUEST}: {}\r\n", origin.request);
    if let Some(peer) = origin.peer {
        let _ = write!(to, "{HEADER_PEER}: {peer}\r\n");
    }
}

/// tiny_http reads ASCII only: other bytes (in somebody's cookie) become question marks. The line itself stays, for what
/// is left out cannot be refused, and a proxy may have added the client's address to what that client sent.
fn in_ascii(value: &[u8]) -> Cow<'_, [u8]> {
    if value.is_ascii() {
        return Cow::Borrowed(value);
    }
    value.iter().map(|byte| if byte.is_ascii() { *byte } else { b'?' }).collect()
}

fn is_passed_on(header: &httparse::Header<'_>) -> bool {
    let name = header.name.as_bytes();
    let is_ours = name.len() >= OURS_PREFIX.len() && name[..OURS_PREFIX.len()].eq_ignore_ascii_case(OURS_PREFIX);
    !is_ours && !NOT_PASSED_ON.iter().any(|dropped| header.name.eq_ignore_ascii_case(dropped))
}

/// The authority (in absolute form only) and the path of a request target.
fn split_target<'a>(method: &str, target: &'a str) -> Result<(Option<&'a str>, &'a str), Refusal> {
    if method == "CONNECT" {
        return Err(Refusal::bad_request("this is no proxy"));
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) || target.contains('#') {
        return Err(Refusal::bad_request("the request target holds characters that must be percent-encoded"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((None, target));
    }
    let scheme = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let Some(rest) = scheme.and_then(|scheme| target.get(scheme.len()..)) else {
        return Err(Refusal::bad_request("the request target must begin with /"));
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || authority.contains('@') {
        return Err(Refusal::bad_request("the request target names no host"));
    }
    match path {
        "" => Ok((Some(authority), "/")),
        path if path.starts_with('/') => Ok((Some(authority), path)),
        _ => Err(Refusal::bad_request("the request target has no path")),
    }
}

/// What the header lines say of connection and body.
#[derive(Default)]
struct Facts {
    content_length: Option<u64>,
    is_chunked: bool,
    wants_close: bool,
    wants_keep_alive: bool,
    expects_continue: bool,
}

impl Facts {
    fn of(headers: &[httparse::Header<'_>], is_http_1_0: bool) -> Result<Facts, Refusal> {
        let mut facts = Facts::default();
        check_single(headers)?;
        let mut has_host = false;
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("host") {
                has_host = true;
                if !header.value.is_ascii() {
                    return Err(Refusal::bad_request("the Host header is not ASCII"));
                }
            } else if is("content-length") {
                if facts.content_length.is_some() {
                    return Err(Refusal::bad_request("there is more than one Content-Length"));
                }
                facts.content_length = Some(content_length(header.value)?);
            } else if is("transfer-encoding") {
                if facts.is_chunked || is_http_1_0 || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::bad_request("the only Transfer-Encoding that is understood is chunked"));
                }
                facts.is_chunked = true;
            } else if is("connection") {
                for token in header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    facts.wants_close |= token.eq_ignore_ascii_case(b"close");
                    facts.wants_keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("expect") {
                if !header.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::bad_request("the only Expect that is understood is 100-continue"));
                }
                facts.expects_continue = !is_http_1_0;
            }
        }
        if has_host || is_http_1_0 { Ok(facts) } else { Err(Refusal::bad_request("there is no Host header")) }
    }

    fn framing(&self) -> Result<Framing, Refusal> {
        match (self.content_length, self.is_chunked) {
            (Some(_), true) => Err(Refusal::bad_request("Content-Length and Transfer-Encoding exclude each other")),
            (None, true) => Ok(Framing::Chunked),
            (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }

    fn keep_alive(&self, is_http_1_0: bool) -> bool {
        !self.wants_close && (!is_http_1_0 || self.wants_keep_alive)
    }
}

fn check_single(headers: &[httparse::Header<'_>]) -> Result<(), Refusal> {
    let count = |name: &str| headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count();
    match SINGLE.iter().find(|(name, _)| count(name) > 1) {
        Some((_, message)) => Err(Refusal::bad_request(message)),
        None => Ok(()),
    }
}

/// Digits alone; a number that no machine holds is too large rather than unreadable.
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::bad_request("Content-Length is not a number"));
    }
    let digits = std::str::from_utf8(value).map_err(|_| Refusal::bad_request("Content-Length is not a number"))?;
    digits.parse().map_err(|_| Refusal::body_too_large())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin {
        listener: ListenerKind::Tcp,
        peer: Some(Peer::Address(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)))),
        request: 9,
    };

    fn rewritten(head: &str) -> String {
        String::from_utf8(parse(head.as_bytes(), ORIGIN).unwrap().rewritten).unwrap()
    }

    #[test]
    fn the_end_is_found_however_the_bytes_come() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut scanned = 0;
        for length in 1..head.len() {
            assert_eq!(end_of_head(&head[..length], &mut scanned), None, "{length}");
        }
        assert_eq!(end_of_head(head, &mut scanned), Some(head.len()));
        assert_eq!(end_of_head(b"GET / HTTP/1.1\n\nrest", &mut 0), Some(16));
    }

    #[test]
    fn a_head_is_rewritten_and_told_where_it_came_from() {
        assert_eq!(
            rewritten(
                "POST /a?b=c HTTP/1.1\r\nHost: h:1\r\nConnection: close, X-Other\r\nX-Shiparr-Peer: 1.1.1.1\r\nX-SHIPARR-listener: \
                 control\r\nAccept:  text/plain \r\nContent-Length: 3\r\nTE: trailers\r\nCookie: \u{fc}\r\n\
                 X-Forwarded-For: \u{fc}, 1.2.3.4\r\nX-Other: kept\r\n\r\n"
            ),
            "POST /a?b=c HTTP/1.1\r\nHost: h:1\r\nAccept: text/plain\r\nCookie: ??\r\nX-Forwarded-For: ??, 1.2.3.4\r\n\
             X-Other: kept\r\nX-Shiparr-Listener: tcp\r\nX-Shiparr-Request: 9\r\nX-Shiparr-Peer: 192.0.2.7\r\n"
        );
        assert!(
            rewritten("GET http://b.example?x HTTP/1.1\r\nHost: a\r\n\r\n".replace("?x", "/x").as_str())
                .starts_with("GET /x HTTP/1.1\r\nHost: b.example\r\nX-Shiparr-Listener")
        );
    }

    #[test]
    fn connections_stay_or_close_as_the_version_says() {
        let keep_alive = |text: &str| parse(text.as_bytes(), ORIGIN).unwrap().keep_alive;
        assert!(keep_alive("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(!keep_alive("GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n"));
        assert!(!keep_alive("GET / HTTP/1.0\r\n\r\n"));
        assert!(keep_alive("GET / HTTP/1.0\r\nConnection: foo, Keep-Alive\r\n\r\n"));
    }

    #[test]
    fn a_body_has_one_length() {
        let framing = |lines: &str| {
            parse(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes(), ORIGIN).map(|head| head.framing)
        };
        assert_eq!(framing(""), Ok(Framing::Length(0)));
        assert_eq!(framing("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
        assert_eq!(framing("Content-Length: 99999999999999999999999\r\n"), Err(Refusal::body_too_large()));
        for lines in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: \r\n",
            "Content-Length: five\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding:\u{b}chunked\r\n",
        ] {
            assert!(framing(lines).is_err(), "{lines:?}");
        }
        assert!(parse(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", ORIGIN).is_err());
    }

    #[test]
    fn shapes_that_two_readers_could_read_differently_are_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\norigin: http://b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \u{e4}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX(y): b\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n",
            "\u{16}\u{3}\u{1}\r\n\r\n",
        ] {
            let refusal = parse(head.as_bytes(), ORIGIN).expect_err(head);
            assert!(refusal.to_bytes(false).starts_with(b"HTTP/1.1 400 "), "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX));
        assert_eq!(parse(many.as_bytes(), ORIGIN).unwrap_err(), Refusal::head_too_large());
    }
}
