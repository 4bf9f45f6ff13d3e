//! What the gate knows of one client's connection.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::chunked::Decoder;
use super::head::{Framing, RequestHead};
use super::refusal::Refusal;
use super::slots::Key;
use crate::web::{ListenerKind, Peer};

/// Bytes that a request body may have (spec section 5).
pub const BODY_MAX_BYTES: usize = 1024 * 1024;
/// Buffers larger than this are given back when they are empty.
const KEPT_BUFFER_BYTES: usize = 16 * 1024;

/// Bytes on their way to a socket.
#[derive(Default)]
pub struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// One that begins with `bytes`.
    pub fn new(bytes: Vec<u8>) -> Output {
        Output { bytes, sent: 0 }
    }

    /// Where more bytes are added.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Bytes that were not sent yet.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether everything was sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends what the socket takes of what is here and of `bytes`, and keeps the rest.
    ///
    /// # Errors
    /// The socket's, other than that it is full.
    pub fn send(&mut self, socket: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
        let mut sent = 0;
        // With nothing before them, most bytes never need a place of their own.
        while self.is_empty() && sent < bytes.len() {
            match rustix::net::send(socket, &bytes[sent..], SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        self.bytes.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Sends what the socket takes; answers whether it took anything.
    ///
    /// # Errors
    /// The socket's, other than that it is full.
    pub fn flush(&mut self, socket: &OwnedFd) -> Result<bool, Errno> {
        let before = self.sent;
        while self.sent < self.bytes.len() {
            match rustix::net::send(socket, &self.bytes[self.sent..], SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(self.sent > before),
                Err(error) => return Err(error),
            }
        }
        let progress = self.sent > before;
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BUFFER_BYTES {
            self.bytes = Vec::new();
        }
        Ok(progress)
    }
}

/// What is remembered of a request until its answer is complete.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Number of the request in this process.
    pub request: u64,
    /// The answer has no body.
    pub is_head: bool,
    /// The client knows no chunks.
    pub is_http_1_0: bool,
}

/// A request whose body is coming in.
pub struct Incoming {
    /// Its head.
    pub head: RequestHead,
    /// Its number.
    pub request: u64,
    body: Vec<u8>,
    length: BodyLength,
}

enum BodyLength {
    Known(usize),
    Chunked(Decoder),
}

impl Incoming {
    /// One of whose body nothing has come.
    ///
    /// # Errors
    /// A body that is said to be larger than [`BODY_MAX_BYTES`].
    pub fn new(head: RequestHead, request: u64) -> Result<Incoming, Refusal> {
        let length = match head.framing {
            Framing::Chunked => BodyLength::Chunked(Decoder::new()),
            Framing::Length(bytes) => match usize::try_from(bytes) {
                Ok(bytes) if bytes <= BODY_MAX_BYTES => BodyLength::Known(bytes),
                _ => return Err(Refusal::body_too_large()),
            },
        };
        Ok(Incoming { head, request, body: Vec::new(), length })
    }

    /// Bytes of the body that are here.
    pub fn held_bytes(&self) -> usize {
        self.body.len()
    }

    /// Whether the body is here.
    pub fn is_complete(&self) -> bool {
        match &self.length {
            BodyLength::Known(length) => self.body.len() == *length,
            BodyLength::Chunked(decoder) => decoder.is_done(),
        }
    }

    /// Takes of `input` what belongs to the body, and answers how much that was.
    ///
    /// # Errors
    /// Bad chunks, and too many of them.
    pub fn feed(&mut self, input: &[u8]) -> Result<usize, Refusal> {
        let body = &mut self.body;
        match &mut self.length {
            BodyLength::Known(length) => {
                let take = input.len().min(*length - body.len());
                body.extend_from_slice(&input[..take]);
                Ok(take)
            }
            BodyLength::Chunked(decoder) => {
                let mut fits = true;
                let used = decoder.decode(input, |data| {
                    fits = fits && body.len() + data.len() <= BODY_MAX_BYTES;
                    if fits {
                        body.extend_from_slice(data);
                    }
                });
                match used {
                    _ if !fits => Err(Refusal::body_too_large()),
                    Ok(used) => Ok(used),
                    Err(_) => Err(Refusal::bad_request("the request body is not in chunks as RFC 9112 has them")),
                }
            }
        }
    }

    /// The whole request, as tiny_http gets it.
    pub fn into_message(self) -> Vec<u8> {
        let mut message = self.head.rewritten;
        if !self.body.is_empty() {
            message.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(&self.body);
        message
    }
}

/// Where a connection stands.
pub enum Phase {
    /// The client owes a request head.
    Head,
    /// The client owes the rest of a body.
    Body(Box<Incoming>),
    /// A complete request waits for a connection to tiny_http.
    Queued(Exchange, Vec<u8>),
    /// tiny_http is at it.
    Answering {
        /// By which connection.
        upstream: Key,
        /// What was asked.
        exchange: Exchange,
        /// Whether the head of the answer went into the output.
        begun: bool,
    },
    /// The answer goes on for as long as there is something to tell; see `broadcast.rs`.
    Listening {
        /// The client knows no chunks.
        is_http_1_0: bool,
    },
    /// The answer is complete; the rest of it is on its way.
    Finishing,
    /// The last answer of this connection is on its way.
    Closing,
    /// We have closed our side, and read on for a moment so that the client gets the answer rather than a reset.
    Lingering,
}

/// A client's connection.
pub struct Client {
    /// Its socket, non-blocking.
    pub socket: OwnedFd,
    /// Which kind of listener it came in by.
    pub listener: ListenerKind,
    /// Who it is, as far as the system knows.
    pub peer: Option<Peer>,
    /// Read and not yet understood; bounded by what one request head and one read can have.
    pub input: Vec<u8>,
    /// How much of `input` was searched for the end of a head.
    pub scanned: usize,
    /// On its way to the client.
    pub output: Output,
    /// How much of `output` is in the sum of all clients.
    pub counted_bytes: usize,
    /// Since when `output` has not moved.
    pub stalled_since: Option<Instant>,
    /// Where it stands.
    pub phase: Phase,
    /// Whether another request may follow the current one.
    pub keep_alive: bool,
    /// Whether a request has come.
    pub has_asked: bool,
    /// When it has had its time.
    pub deadline: Option<Instant>,
    /// What epoll watches for.
    pub interest: EventFlags,
    /// Counts how often it began to wait for a request, or for its end.
    pub waits: u32,
}

impl Client {
    /// A connection that was just accepted.
    pub fn new(socket: OwnedFd, listener: ListenerKind, peer: Option<Peer>) -> Client {
        Client {
            socket,
            listener,
            peer,
            input: Vec::new(),
            scanned: 0,
            output: Output::default(),
            counted_bytes: 0,
            stalled_since: None,
            phase: Phase::Head,
            keep_alive: true,
            has_asked: false,
            deadline: None,
            interest: EventFlags::empty(),
            waits: 0,
        }
    }

    /// Whether the client still owes a request, or part of one.
    pub fn owes_request(&self) -> bool {
        matches!(self.phase, Phase::Head | Phase::Body(_))
    }

    /// The number of the request that is being answered.
    pub fn request(&self) -> Option<u64> {
        match &self.phase {
            Phase::Answering { exchange, .. } => Some(exchange.request),
            _ => None,
        }
    }

    /// Drops the first bytes of the input.
    pub fn consume(&mut self, count: usize) {
        self.input.drain(..count);
        self.scanned = 0;
        if self.input.is_empty() && self.input.capacity() > KEPT_BUFFER_BYTES {
            self.input = Vec::new();
        }
    }
}
