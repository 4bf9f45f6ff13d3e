//! The web: a gate that owns every client's socket, tiny_http behind it, routes, auth, the API and the widget.

pub mod gate;
pub mod presence;

/// Streams that are written at once; one more is answered 503.
pub const STREAMS_MAX: usize = 32;

/// The kind of listener that a request came in by; set by the gate, never by a client.
const HEADER_LISTENER: &str = "X-Shiparr-Listener";
/// The client's address; set by the gate, never by a client.
const HEADER_PEER: &str = "X-Shiparr-Peer";
/// The request's number in this process; set by the gate, never by a client.
const HEADER_REQUEST: &str = "X-Shiparr-Request";

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// Over TCP: rules and authentication apply.
    Tcp,
    /// Over the control socket: its file permissions are the authentication.
    Control,
}

impl ListenerKind {
    fn as_str(self) -> &'static str {
        match self {
            ListenerKind::Tcp => "tcp",
            ListenerKind::Control => "control",
        }
    }
}
