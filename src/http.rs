//! Outgoing HTTP over libcurl: one request, one total time limit, no surprise.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::time::Duration;

use curl::easy::{Auth, Easy, List};

use crate::command::Limit;
use crate::secrets::Secret;

/// Time until a connection must stand, within the request's limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time that curl counts itself, in milliseconds of 31 bits.
const LONGEST_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);
/// Bound on the head of an answer.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// A request that is about to be sent.
#[derive(Debug, Default)]
pub struct Request {
    /// `GET`, `POST`, …; when empty `GET`, or `POST` where there is a body.
    pub method: String,
    /// `http` or `https`, without credentials.
    pub url: String,
    /// `Name: value` pairs.
    pub headers: Vec<(String, String)>,
    /// The body, for methods that have one.
    pub body: Option<Vec<u8>>,
    /// Basic Auth.
    pub basic_auth: Option<(String, Secret)>,
    /// Connects to this unix socket instead of the URL's host.
    pub unix_socket: Option<PathBuf>,
    /// A certificate authority file instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Bound on the answer's body; one that is larger is an error. The pieces that [`stream`] hands over do not count.
    pub max_body_bytes: usize,
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
    pub proxies: Proxies,
}

/// Proxies as the environment names them.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// For `https://`.
    pub https: Option<String>,
    /// For `http://`.
    pub http: Option<String>,
    /// Hosts that are asked directly, as curl reads it.
    pub none: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why there is no answer; one line, without a credential.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HttpError(pub String);

/// Sends a request and reads the whole answer. Redirects are not followed.
///
/// # Errors
/// Whatever stops it: name, connection, TLS, the limit, a body over its bound. A status code never is one.
pub fn send(request: &Request, limit: &Limit) -> Result<Response, HttpError> {
    exchange(request, limit, None)
}

/// Sends a request and hands over the body in pieces as they come (for logs that are followed).
///
/// Only the body of a success (a status of 2xx) is handed over; any other is in the answer, as [`send`] has it.
///
/// # Errors
/// As [`send`]; `on_piece` returning `false` ends it without an error. It also gets an empty piece now and then, at least
/// every second or so while nothing comes, to say whether it still wants more.
pub fn stream(request: &Request, limit: &Limit, on_piece: OnPiece<'_>) -> Result<Response, HttpError> {
    exchange(request, limit, Some(on_piece))
}

/// Takes the pieces of a body; `false` when it has enough.
type OnPiece<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// Why a transfer was ended by this side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It was not.
    No,
    /// The caller has enough.
    ByCaller,
    /// The head or the body is over its bound.
    TooLarge,
}

/// One request and its answer. With `on_piece`, the body of a success goes there.
fn exchange(request: &Request, limit: &Limit, on_piece: Option<OnPiece<'_>>) -> Result<Response, HttpError> {
    check_url(&request.url)?;
    if limit.is_over() {
        return Err(over(limit));
    }
    let mut easy = prepare(request, limit).map_err(|error| HttpError(describe(&error, request)))?;
    let head = RefCell::new(Response { status: 0, headers: Vec::new(), body: Vec::new() });
    let head_bytes = Cell::new(0_usize);
    let ended = Cell::new(Ended::No);
    let on_piece = RefCell::new(on_piece);
    let mut body = Vec::new();
    let outcome = {
        let mut transfer = easy.transfer();
        let configured = transfer
            .header_function(|line| {
                head_bytes.set(head_bytes.get() + line.len());
                if head_bytes.get() > MAX_HEAD_BYTES {
                    ended.set(Ended::TooLarge);
                    return false;
                }
                read_head_line(&mut head.borrow_mut(), &String::from_utf8_lossy(line));
                true
            })
            .and_then(|()| {
                transfer.write_function(|piece| {
                    let is_success = head.borrow().status / 100 == 2;
                    if let Some(on_piece) = on_piece.borrow_mut().as_mut().filter(|_| is_success) {
                        if on_piece(piece) {
                            return Ok(piece.len());
                        }
                        ended.set(Ended::ByCaller);
                    } else if body.len() + piece.len() <= request.max_body_bytes {
                        body.extend_from_slice(piece);
                        return Ok(piece.len());
                    } else {
                        ended.set(Ended::TooLarge);
                    }
                    // A length other than the piece's makes curl end the transfer; an empty piece never comes.
                    Ok(0)
                })
            })
            .and_then(|()| {
                transfer.progress_function(|_, _, _, _| {
                    let is_success = head.borrow().status / 100 == 2;
                    let mut on_piece = on_piece.borrow_mut();
                    let wants_more = on_piece.as_mut().filter(|_| is_success).is_none_or(|on_piece| on_piece(&[]));
                    if !wants_more {
                        ended.set(Ended::ByCaller);
                    }
                    wants_more && !limit.is_over()
                })
            });
        configured.and_then(|()| transfer.perform())
    };
    match (outcome, ended.get()) {
        (Ok(()), _) | (Err(_), Ended::ByCaller) => Ok(Response { body, ..head.into_inner() }),
        (Err(_), Ended::TooLarge) => {
            Err(HttpError(format!("the answer of {} is larger than {} bytes", place(request), request.max_body_bytes)))
        }
        (Err(error), Ended::No) if error.is_aborted_by_callback() || error.is_operation_timedout() => {
            if limit.is_over() {
                Err(over(limit))
            } else {
                Err(HttpError(format!("{} did not answer in time", place(request))))
            }
        }
        (Err(error), Ended::No) => Err(HttpError(describe(&error, request))),
    }
}

/// Everything that curl is told before it begins.
fn prepare(request: &Request, limit: &Limit) -> Result<Easy, curl::Error> {
    let mut easy = Easy::new();
    easy.url(&request.url)?;
    // Signals of a resolver that is timed out would hit any thread.
    easy.signal(false)?;
    easy.progress(true)?;
    // curl counts whole milliseconds, and none of them means no limit; the progress callback knows the exact end.
    let left = limit.left() + Duration::from_millis(10);
    easy.timeout(if left < LONGEST_TIMEOUT { left } else { Duration::ZERO })?;
    easy.connect_timeout(CONNECT_TIMEOUT)?;
    easy.useragent(concat!("shiparr/", env!("CARGO_PKG_VERSION")))?;
    if let Some(body) = &request.body {
        easy.post(true)?;
        easy.post_fields_copy(body)?;
    }
    match request.method.as_str() {
        "" | "GET" if request.body.is_none() => easy.get(true)?,
        "HEAD" => easy.nobody(true)?,
        "POST" if request.body.is_none() => {
            easy.post(true)?;
            easy.post_fields_copy(&[])?;
        }
        "" | "POST" => {}
        method => easy.custom_request(method)?,
    }
    let mut headers = List::new();
    headers.append("Expect:")?;
    for (name, value) in &request.headers {
        headers.append(&format!("{name}: {value}"))?;
    }
    easy.http_headers(headers)?;
    if let Some((user, password)) = &request.basic_auth {
        easy.http_auth(Auth::new().basic(true))?;
        easy.username(user)?;
        easy.password(password.expose())?;
    }
    if let Some(ca_file) = &request.ca_file {
        easy.cainfo(ca_file)?;
        // The curl crate has set the system's folder of authorities, which would still count.
        easy.capath("/dev/null")?;
    }
    // Set explicitly, also when empty: curl would read the environment otherwise.
    let proxy = match (&request.unix_socket, is_https(&request.url)) {
        (Some(_), _) => None,
        (None, true) => request.proxies.https.as_deref(),
        (None, false) => request.proxies.http.as_deref(),
    };
    easy.proxy(proxy.unwrap_or(""))?;
    easy.noproxy(request.proxies.none.as_deref().unwrap_or(""))?;
    easy.unix_socket_path(request.unix_socket.as_ref())?;
    Ok(easy)
}

/// Takes over one line of an answer's head; a new status line (after `100 Continue`, or a proxy's answer) begins a new
/// head.
fn read_head_line(head: &mut Response, line: &str) {
    let line = line.trim_end();
    if let Some(rest) = line.strip_prefix("HTTP/") {
        head.headers.clear();
        head.status = rest.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    } else if let Some((name, value)) = line.split_once(':') {
        head.headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// curl speaks many protocols, and takes credentials from URLs; neither is wanted.
fn check_url(url: &str) -> Result<(), HttpError> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err(HttpError("only http:// and https:// URLs can be asked".to_owned()));
    };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    if authority.contains('@') {
        return Err(HttpError("a URL that is asked must not carry a credential".to_owned()));
    }
    Ok(())
}

fn is_https(url: &str) -> bool {
    url.starts_with("https://")
}

/// Whom a request is for, as messages name it: scheme and host, or the socket. Paths and queries may hold a secret.
fn place(request: &Request) -> String {
    if let Some(socket) = &request.unix_socket {
        return socket.display().to_string();
    }
    let start = request.url.find("://").map_or(0, |at| at + 3);
    let end = request.url[start..].find(['/', '?', '#']).map_or(request.url.len(), |at| start + at);
    request.url[..end].to_owned()
}

fn over(limit: &Limit) -> HttpError {
    let why =
        if limit.is_cancelled() { "the request was stopped" } else { "the request took longer than its time limit" };
    HttpError(why.to_owned())
}

/// One line for curl's error. Its details can quote a proxy's URL, so whatever is a credential is taken out.
fn describe(error: &curl::Error, request: &Request) -> String {
    let text = error.extra_description().unwrap_or(error.description()).replace(['\n', '\r'], " ");
    let mut text = without_time(text);
    let password = request.basic_auth.as_ref().map(|(_, password)| password.expose());
    let proxies = [&request.proxies.https, &request.proxies.http].into_iter().flatten();
    let in_proxies = proxies.filter_map(|proxy| {
        let rest = proxy.split_once("://").map_or(proxy.as_str(), |(_, rest)| rest);
        rest.rsplit_once('@').map(|(user_and_password, _)| user_and_password)
    });
    for secret in password.into_iter().chain(in_proxies).filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "***");
    }
    format!("{}: {text}", place(request))
}

/// Without `after 3 ms`: who writes down only what is new must not find every try new.
fn without_time(text: String) -> String {
    let Some((before, rest)) = text.split_once(" after ") else { return text };
    match rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).strip_prefix(" ms") {
        Some(after) => format!("{before}{after}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests serve from threads of their own")]

    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    /// Serves one connection: gives the request's head and answers with `answer`.
    fn converse(stream: impl Read + Write, answer: &str) -> String {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return head;
            }
        }
        let length =
            head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let _ = reader.get_mut().write_all(answer.as_bytes());
        head + &String::from_utf8(body).unwrap()
    }

    fn serve(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/path?key=in-the-query", listener.local_addr().unwrap());
        (url, std::thread::spawn(move || converse(listener.accept().unwrap().0, answer)))
    }

    fn request(url: &str) -> Request {
        Request { url: url.to_owned(), max_body_bytes: 100, ..Request::default() }
    }

    fn limit() -> Limit {
        Limit::after(Duration::from_secs(20))
    }

    #[test]
    fn a_request_goes_out_as_it_was_given_and_its_answer_comes_back() {
        let (url, server) = serve(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\nLocation: /x\r\nX-A: b\r\nContent-Length: 3\r\n\r\nabc",
        );
        let request = Request {
            method: "PUT".to_owned(),
            headers: vec![("X-Test".to_owned(), "yes".to_owned())],
            body: Some(b"hello".to_vec()),
            basic_auth: Some(("user".to_owned(), Secret::new("p:ss"))),
            ..request(&url)
        };
        let response = send(&request, &limit()).unwrap();
        let seen = server.join().unwrap();
        assert!(
            seen.starts_with("PUT /path?key=in-the-query HTTP/1.1\r\n") && seen.ends_with("\r\n\r\nhello"),
            "{seen}"
        );
        assert!(seen.contains("X-Test: yes") && seen.contains("Authorization: Basic dXNlcjpwOnNz"), "{seen}");
        assert!(!seen.contains("Expect"), "{seen}");
        assert_eq!(
            (response.status, response.body.as_slice()),
            (302, &b"abc"[..]),
            "a redirect is the caller's to follow"
        );
        assert!(response.headers.contains(&("x-a".to_owned(), "b".to_owned())));
    }

    #[test]
    fn a_unix_socket_takes_the_place_of_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            converse(listener.accept().unwrap().0, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        });
        let proxies = Proxies { http: Some("http://127.0.0.1:1".to_owned()), ..Proxies::default() };
        let request = Request { unix_socket: Some(socket), proxies, ..request("http://localhost/x") };
        assert_eq!(send(&request, &limit()).unwrap().body, b"ok");
        assert!(server.join().unwrap().starts_with("GET /x HTTP/1.1"));
    }

    #[test]
    fn what_is_over_its_bound_is_an_error() {
        let body = "HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n".to_owned() + &"x".repeat(101);
        let (url, _server) = serve(body.leak());
        assert!(send(&request(&url), &limit()).unwrap_err().0.contains("larger than 100 bytes"));
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(3000));
        let (url, _server) = serve(head.leak());
        assert!(send(&request(&url), &limit()).is_err());
    }

    #[test]
    fn pieces_are_handed_over_until_the_caller_has_enough() {
        let (url, _server) = serve("HTTP/1.1 200 OK\r\n\r\none");
        let mut taken = Vec::new();
        let response = stream(&request(&url), &limit(), &mut |piece| {
            taken.extend_from_slice(piece);
            piece.is_empty()
        });
        assert_eq!((response.unwrap().status, taken.as_slice()), (200, &b"one"[..]));
        let (url, _server) = serve("HTTP/1.1 409 No\r\nContent-Length: 3\r\n\r\nwhy");
        let response = stream(&request(&url), &limit(), &mut |_| panic!("only a success is handed over")).unwrap();
        assert_eq!((response.status, response.body.as_slice()), (409, &b"why"[..]));
    }

    #[test]
    fn the_limit_and_a_cancellation_end_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let begin = Instant::now();
        let error = send(&request(&url), &Limit::after(Duration::from_millis(200))).unwrap_err();
        assert!(error.0.contains("longer than its time limit"), "{error}");
        let limit = limit();
        let canceller = limit.clone();
        let server = std::thread::spawn(move || {
            // The connection of the request before is still there.
            let streams = (listener.accept().unwrap(), listener.accept().unwrap());
            canceller.cancel();
            streams
        });
        assert!(send(&request(&url), &limit).unwrap_err().0.contains("stopped"));
        server.join().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn errors_hold_no_credential() {
        let proxies = Proxies { http: Some("http://user:hush-hush@127.0.0.1:1".to_owned()), ..Proxies::default() };
        let with = Request {
            basic_auth: Some(("user".to_owned(), Secret::new("silent"))),
            proxies,
            ..request("http://example.com/path-token?query-token")
        };
        let error = send(&with, &limit()).unwrap_err().0;
        assert!(error.starts_with("http://example.com: "), "{error}");
        for secret in ["hush-hush", "silent", "path-token", "query-token"] {
            assert!(!error.contains(secret), "{error}");
        }
        let unreadable = Request {
            proxies: Proxies { http: Some("ht!tp://user:hush-hush@[".to_owned()), ..Proxies::default() },
            ..request("http://example.com/")
        };
        assert!(!send(&unreadable, &limit()).unwrap_err().0.contains("hush-hush"));
    }

    #[test]
    fn other_schemes_and_credentials_in_urls_are_refused() {
        for url in ["file:///etc/passwd", "ftp://h/x", "https://user:secret@h/x", "h/x"] {
            let error = send(&request(url), &limit()).unwrap_err().0;
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_proxy_is_used_unless_the_host_is_excluded() {
        let (url, server) = serve("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy");
        let proxy = url.trim_end_matches("/path?key=in-the-query").to_owned();
        let proxies = Proxies { http: Some(proxy), https: None, none: Some("127.0.0.1".to_owned()) };
        let (direct, direct_server) = serve("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ndirect");
        let asked = send(&Request { proxies: proxies.clone(), ..request(&direct) }, &limit()).unwrap();
        assert_eq!(asked.body, b"direct");
        direct_server.join().unwrap();
        let asked = send(&Request { proxies, ..request("http://example.com/x") }, &limit()).unwrap();
        assert_eq!(asked.body, b"proxy");
        assert!(server.join().unwrap().starts_with("GET http://example.com/x HTTP/1.1"));
    }

    /// Runs in a process of its own, which it fills with descriptors.
    #[test]
    #[ignore = "run by descriptors_beyond_those_of_select_are_waited_for in a process of its own"]
    fn with_many_descriptors() {
        use rustix::process::{Resource, getrlimit, setrlimit};
        const TAKEN: u64 = 1100;
        let mut limits = getrlimit(Resource::Nofile);
        limits.current = Some(TAKEN + 100);
        setrlimit(Resource::Nofile, limits).expect("a hard limit of 1200 open files, as `ulimit -Hn` tells it");
        let any = std::fs::File::open("/dev/null").unwrap();
        let _taken: Vec<_> = (0..TAKEN).map(|_| any.try_clone().unwrap()).collect();
        let (url, server) = serve("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        // A name, so that the resolver's thread is waited for too.
        let url = url.replace("127.0.0.1", "localhost");
        assert_eq!(send(&request(&url), &limit()).unwrap().body, b"ok");
        server.join().unwrap();
    }

    #[test]
    fn descriptors_beyond_those_of_select_are_waited_for() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "http::tests::with_many_descriptors"])
            .output()
            .unwrap();
        let why = "libcurl was built without HAVE_POLL: was cargo started outside this repository's folder, whose .cargo/config.toml it needs?";
        assert!(output.status.success(), "{why} {}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }
}
