//! What the gate answers itself, before tiny_http sees anything: an error of the API's form, and the connection closes.

/// Why a request goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: u16,
    message: &'static str,
}

impl Refusal {
    /// The bodies of all requests together take the memory that there is for them.
    pub const TOO_MANY_BODIES: Refusal = Refusal::unavailable("there are too many request bodies at once");

    /// It is not HTTP/1.1 as RFC 9112 has it.
    pub fn bad_request(message: &'static str) -> Refusal {
        Refusal { status: 400, message }
    }

    /// It did not come in time.
    pub fn timeout(message: &'static str) -> Refusal {
        Refusal { status: 408, message }
    }

    /// The body is too large.
    pub fn body_too_large() -> Refusal {
        Refusal { status: 413, message: "a request body may have 1 MiB" }
    }

    /// The head is too large.
    pub fn head_too_large() -> Refusal {
        Refusal { status: 431, message: "a request head may have 16 KiB and 100 header lines" }
    }

    /// There is no room, or no answer.
    pub const fn unavailable(message: &'static str) -> Refusal {
        Refusal { status: 503, message }
    }

    /// The answer as it goes to the client, body and all.
    pub fn to_bytes(self, without_body: bool) -> Vec<u8> {
        let (reason, error, more) = match self.status {
            400 => ("Bad Request", "bad_request", ""),
            408 => ("Request Timeout", "request_timeout", ""),
            413 => ("Content Too Large", "payload_too_large", ""),
            431 => ("Request Header Fields Too Large", "request_head_too_large", ""),
            _ => ("Service Unavailable", "unavailable", "Retry-After: 1\r\n"),
        };
        let body = format!("{{\"error\":\"{error}\",\"message\":\"{}\"}}", self.message);
        let head = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.status,
            body.len()
        );
        if without_body { head.into_bytes() } else { (head + &body).into_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_complete_answer_in_json() {
        for refusal in [
            Refusal::bad_request("a"),
            Refusal::timeout("b"),
            Refusal::body_too_large(),
            Refusal::head_too_large(),
            Refusal::unavailable("c"),
        ] {
            let text = String::from_utf8(refusal.to_bytes(false)).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {} ", refusal.status)), "{head}");
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["message"], refusal.message);
            assert!(refusal.to_bytes(true).ends_with(b"\r\n\r\n"));
        }
    }
}
