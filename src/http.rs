//! Outgoing HTTP over libcurl: one request, one total time limit, no surprise.

use std::path::PathBuf;

use crate::command::Limit;
use crate::secrets::Secret;

/// A request that is about to be sent.
#[derive(Debug, Default)]
pub struct Request {
    /// `GET`, `POST`, …; `GET` when empty.
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
    /// Bound on the answer's body; one that is larger is an error.
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
pub fn send(_request: &Request, _limit: &Limit) -> Result<Response, HttpError> {
    todo!()
}

/// Sends a request and hands over the body in pieces as they come (for logs that are followed).
///
/// # Errors
/// As [`send`]; `on_piece` returning `false` ends it without an error.
pub fn stream(
    _request: &Request,
    _limit: &Limit,
    _on_piece: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<Response, HttpError> {
    todo!()
}
