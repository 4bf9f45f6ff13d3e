//! Answers, and errors in the API's form.

use std::io::Cursor;

use serde::Serialize;
use tiny_http::{Header, Response, StatusCode};

use super::presence::Watch;
use super::stream::Stream;
use crate::command::Limit;
use crate::store::StoreError;

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// What a route gives back.
pub enum Reply {
    /// The answer is here.
    Now(Answer),
    /// Somebody else has to be asked for it: it is made in a thread of its own, which should end with the limit: that
    /// is cancelled when it is known that the client is gone.
    Slow(Box<dyn FnOnce(&Limit) -> Answer + Send>),
    /// One that is written as it comes into being, and opened in the thread that writes it.
    Stream(Opening),
}

/// Opens a stream for a client that is watched; takes its time.
pub type Opening = Box<dyn FnOnce(&Watch) -> Result<Box<dyn Stream>, Failure> + Send>;

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Reply {
        Reply::Now(answer)
    }
}

impl Answer {
    /// An answer without a body.
    pub fn empty(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    /// JSON.
    pub fn json(value: &impl Serialize) -> Answer {
        match serde_json::to_vec(value) {
            Ok(body) => Answer { status: 200, headers: vec![("Content-Type", "application/json".into())], body },
            Err(error) => {
                Failure::new(500, "internal", format!("the answer cannot be written as JSON: {error}")).into()
            }
        }
    }

    /// Plain text.
    pub fn text(body: impl Into<Vec<u8>>) -> Answer {
        Answer::typed("text/plain; charset=utf-8", body)
    }

    /// A body of this `Content-Type`.
    pub fn typed(kind: &str, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status: 200, headers: vec![("Content-Type", kind.to_owned())], body: body.into() }
    }

    /// Content of this media type.
    pub fn with_content(kind: &str, body: Vec<u8>) -> Answer {
        Answer { status: 200, headers: vec![("Content-Type", kind.to_owned())], body }
    }

    /// The same with another status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Answer {
        self.status = status;
        self
    }

    /// The same with one more header line.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }

    /// Its status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// As tiny_http sends it. Answers are about now and for nobody's cache, unless they say otherwise.
    pub fn into_response(self) -> Response<Cursor<Vec<u8>>> {
        let mut response = Response::from_data(self.body)
            .with_status_code(StatusCode(self.status))
            // The gate passes on what has a length at once.
            .with_chunked_threshold(usize::MAX);
        let fixed = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")];
        let own = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let is_own = |name: &str| self.headers.iter().any(|(own, _)| *own == name);
        for (name, value) in fixed.into_iter().filter(|(name, _)| !is_own(name)).chain(own) {
            // A value that no header can carry (it came from a path) is left out.
            if let Ok(header) = Header::from_bytes(name, value) {
                response.add_header(header);
            }
        }
        response
    }

    /// Its body, for tests.
    #[cfg(test)]
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Why a request is not done; the error that the client sees.
#[derive(Debug)]
pub struct Failure {
    status: u16,
    error: &'static str,
    message: String,
    headers: Vec<(&'static str, String)>,
}

impl Failure {
    /// Any.
    pub fn new(status: u16, error: &'static str, message: impl Into<String>) -> Failure {
        Failure { status, error, message: message.into(), headers: Vec::new() }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(400, "bad_request", message)
    }

    /// 403 with its own word.
    pub fn forbidden(error: &'static str, message: impl Into<String>) -> Failure {
        Failure::new(403, error, message)
    }

    /// 404: "there is no …".
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(404, "not_found", message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Failure {
        Failure::new(409, "conflict", message)
    }

    /// 502: somebody else did not answer.
    pub fn bad_gateway(message: impl Into<String>) -> Failure {
        Failure::new(502, "bad_gateway", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Failure {
        Failure::new(503, "unavailable", message).with_header("Retry-After", "1")
    }

    /// The same with one more header line.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Failure {
        self.headers.push((name, value.into()));
        self
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        match error {
            StoreError::Refused(message) => Failure::conflict(message),
            error => {
                log::error!("a request failed: {error}");
                Failure::unavailable(error.to_string())
            }
        }
    }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Answer {
        let body = serde_json::json!({ "error": failure.error, "message": failure.message }).to_string().into_bytes();
        let mut headers = failure.headers;
        headers.push(("Content-Type", "application/json".into()));
        Answer { status: failure.status, headers, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_form_of_the_api() {
        let answer = Answer::from(Failure::not_found("there is no \"x\""));
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.body(), br#"{"error":"not_found","message":"there is no \"x\""}"#);
    }
}
