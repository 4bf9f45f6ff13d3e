//! Outgoing HTTP over libcurl: one request, one total time limit, no surprise.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::time::Duration;

use curl::easy::{Auth, Easy, List};

use crate::command::Limit;
use crate::secrets::Secret;

/// Time until a connection must stand, within the request's limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
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
/// As [`send`]; `on_piece` returning `false` ends it without an error.
pub fn stream(
    request: &Request,
    limit: &Limit,
    on_piece: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<Response, HttpError> {
    exchange(request, limit, Some(on_piece))
}

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
fn exchange(
    request: &Request,
    limit: &Limit,
    mut on_piece: Option<&mut dyn FnMut(&[u8]) -> bool>,
) -> Result<Response, HttpError> {
    check_url(&request.url)?;
    if limit.is_over() {
        return Err(over(limit));
    }
    let mut easy = prepare(request, limit).map_err(|error| HttpError(describe(&error, request)))?;
    let head = RefCell::new(Response { status: 0, headers: Vec::new(), body: Vec::new() });
    let head_bytes = Cell::new(0_usize);
    let ended = Cell::new(Ended::No);
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
                    if let Some(on_piece) = on_piece.as_mut().filter(|_| head.borrow().status / 100 == 2) {
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
            .and_then(|()| transfer.progress_function(|_, _, _, _| !limit.is_over()));
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
    easy.timeout(limit.left().max(Duration::from_millis(1)))?;
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

/// Takes over one line of an answer's head; a new status line (after `100 Continue`, or a proxy's answer) begins a new head.
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
    let mut text = error.extra_description().unwrap_or(error.description()).replace(['\n', '\r'], " ");
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
