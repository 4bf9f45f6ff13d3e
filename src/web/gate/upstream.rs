//! Connections to tiny_http, and its answers on their way back.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::chunked::Decoder;
use super::connection::{Exchange, Output};
use super::head::end_of_head;
use super::slots::Key;
use crate::web::HEADER_LISTENS;

/// Bytes that the head of an answer may have.
const ANSWER_HEAD_MAX_BYTES: usize = 64 * 1024;
/// Header lines that an answer may have.
const ANSWER_HEADERS_MAX: usize = 64;
/// Header lines of tiny_http that mean its own connection, or nothing.
const NOT_PASSED_BACK: [&str; 6] =
    ["connection", "keep-alive", "transfer-encoding", "content-length", "server", HEADER_LISTENS];

/// An answer that is none: tiny_http broke off, or a route wrote nonsense.
#[derive(Debug, PartialEq, Eq)]
pub struct BadAnswer;

/// How the rest of the current answer is read.
enum Reading {
    Head(Vec<u8>),
    Length(u64),
    Chunked(Decoder),
    Done,
}

/// What a piece of an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The head went to the client.
    pub begun: bool,
    /// The answer is complete.
    pub done: bool,
    /// The client can tell where the answer ends without the connection closing.
    pub is_framed: bool,
}

/// A connection to tiny_http.
pub struct Upstream {
    /// Its socket, non-blocking.
    pub socket: OwnedFd,
    /// What epoll watches for.
    pub interest: EventFlags,
    /// Whose request it carries.
    pub client: Option<Key>,
    /// The rest of the request.
    pub output: Output,
    /// Whether the current answer has no known length: a stream.
    pub is_stream: bool,
    /// The client listens when this answer has passed, to what is told after this number.
    pub listens_after: Option<u64>,
    /// Since when it carries nothing.
    pub idle_since: Instant,
    reading: Reading,
}

impl Upstream {
    /// A new one, idle.
    pub fn new(socket: OwnedFd, now: Instant) -> Upstream {
        Upstream {
            socket,
            interest: EventFlags::empty(),
            client: None,
            output: Output::default(),
            is_stream: false,
            listens_after: None,
            idle_since: now,
            reading: Reading::Done,
        }
    }

    /// Gives it a request to carry: a client's, or the gate's own.
    pub fn begin(&mut self, client: Option<Key>, message: Vec<u8>) {
        self.client = client;
        self.output = Output::new(message);
        self.is_stream = false;
        self.listens_after = None;
        self.reading = Reading::Head(Vec::new());
    }

    /// Reads a piece of the answer and writes what the client gets of it.
    ///
    /// # Errors
    /// What is no answer to one request.
    pub fn feed(
        &mut self,
        input: &[u8],
        exchange: Exchange,
        keep_alive: bool,
        to: &mut Vec<u8>,
    ) -> Result<Progress, BadAnswer> {
        let mut rest = Vec::new();
        let mut input: &[u8] = input;
        let mut is_framed = true;
        if let Reading::Head(buffer) = &mut self.reading {
            buffer.extend_from_slice(input);
            let Some(end) = end_of_head(buffer, &mut 0) else {
                let fits = buffer.len() <= ANSWER_HEAD_MAX_BYTES;
                return if fits { Ok(Progress { begun: false, done: false, is_framed }) } else { Err(BadAnswer) };
            };
            std::mem::swap(&mut rest, buffer);
            let head = read_head(&rest[..end], exchange, keep_alive, to)?;
            (self.reading, self.listens_after) = (head.reading, head.listens_after);
            self.is_stream = matches!(self.reading, Reading::Chunked(_));
            input = &rest[end..];
        }
        let is_endless = self.is_stream || self.listens_after.is_some();
        is_framed &= !(is_endless && exchange.is_http_1_0);
        let used = match &mut self.reading {
            Reading::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                to.extend_from_slice(&input[..take]);
                *left -= take as u64;
                if *left == 0 && self.listens_after.is_some() && !exchange.is_http_1_0 {
                    // The beginning of the stream is its first chunk.
                    to.extend_from_slice(b"\r\n");
                }
                take
            }
            Reading::Chunked(decoder) => {
                let used = decoder.decode(input, |data| pass_chunk(data, exchange.is_http_1_0, to));
                let used = used.map_err(|_| BadAnswer)?;
                if decoder.is_done() && !exchange.is_http_1_0 {
                    to.extend_from_slice(b"0\r\n\r\n");
                }
                used
            }
            Reading::Head(_) | Reading::Done => 0,
        };
        let done = match &self.reading {
            Reading::Length(left) => *left == 0,
            Reading::Chunked(decoder) => decoder.is_done(),
            Reading::Head(_) => false,
            Reading::Done => true,
        };
        // More bytes than the answer has would be taken for the next client's.
        if used < input.len() { Err(BadAnswer) } else { Ok(Progress { begun: true, done, is_framed }) }
    }

    /// Lets it wait for the next request; `false` if it cannot be used again.
    pub fn release(&mut self, now: Instant) -> bool {
        self.client = None;
        self.is_stream = false;
        self.listens_after = None;
        self.idle_since = now;
        self.reading = Reading::Done;
        self.output.is_empty()
    }
}

fn pass_chunk(data: &[u8], is_http_1_0: bool, to: &mut Vec<u8>) {
    if is_http_1_0 {
        to.extend_from_slice(data);
    } else if !data.is_empty() {
        // Writing to a vector cannot fail.
        let _ = write!(to, "{:x}\r\n", data.len());
        to.extend_from_slice(data);
        to.extend_from_slice(b"\r\n");
    }
}

/// What the head of an answer says of the rest.
struct AnswerHead {
    reading: Reading,
    listens_after: Option<u64>,
}

fn read_head(head: &[u8], exchange: Exchange, keep_alive: bool, to: &mut Vec<u8>) -> Result<AnswerHead, BadAnswer> {
    let mut headers = [httparse::EMPTY_HEADER; ANSWER_HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    match answer.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        _ => return Err(BadAnswer),
    }
    let status = answer.code.filter(|status| *status >= 200).ok_or(BadAnswer)?;
    // Writing to a vector cannot fail, here and below.
    let _ = write!(to, "HTTP/1.1 {status} {}\r\n", answer.reason.unwrap_or_default());
    let (mut length, mut is_chunked, mut listens_after) = (None, false, None);
    for header in answer.headers.iter() {
        let number = || std::str::from_utf8(header.value).ok().and_then(|value| value.parse::<u64>().ok());
        if header.name.eq_ignore_ascii_case("content-length") {
            length = number();
        } else if header.name.eq_ignore_ascii_case(HEADER_LISTENS) {
            listens_after = Some(number().ok_or(BadAnswer)?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            is_chunked = header.value.eq_ignore_ascii_case(b"chunked");
        } else if !NOT_PASSED_BACK.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
            let _ = write!(to, "{}: ", header.name);
            to.extend_from_slice(header.value);
            to.extend_from_slice(b"\r\n");
        }
    }
    let has_body = !exchange.is_head && !matches!(status, 204 | 304);
    let reading = match length {
        _ if is_chunked && has_body => Reading::Chunked(Decoder::new()),
        Some(length) if has_body => Reading::Length(length),
        None if has_body => return Err(BadAnswer),
        _ => Reading::Done,
    };
    // Only what has a beginning goes on.
    let listens_after = listens_after.filter(|_| matches!(reading, Reading::Length(1..)));
    let mut closes = !keep_alive || listens_after.is_some();
    match length {
        _ if listens_after.is_some() && exchange.is_http_1_0 => {}
        Some(length) if listens_after.is_some() => {
            let _ = write!(to, "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{length:x}\r\n");
            return Ok(AnswerHead { reading, listens_after });
        }
        _ if is_chunked && exchange.is_http_1_0 => closes |= has_body,
        _ if is_chunked => to.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Some(length) if status != 204 => {
            let _ = write!(to, "Content-Length: {length}\r\n");
        }
        _ => {}
    }
    if closes {
        to.extend_from_slice(b"Connection: close\r\n");
    } else if exchange.is_http_1_0 {
        to.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    to.extend_from_slice(b"\r\n");
    Ok(AnswerHead { reading, listens_after })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Exchange = Exchange { request: 1, is_head: false, is_http_1_0: false };

    fn pass(answer: &[u8], exchange: Exchange, keep_alive: bool) -> Result<(String, Progress), BadAnswer> {
        let mut outcome = None;
        for piece_bytes in 1..=answer.len() {
            let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
            let mut upstream = Upstream::new(socket.into(), Instant::now());
            let key = super::super::slots::Slots::new().insert_with(|_| ());
            upstream.begin(Some(key), Vec::new());
            let mut to = Vec::new();
            let mut progress = None;
            for piece in answer.chunks(piece_bytes) {
                progress = Some(upstream.feed(piece, exchange, keep_alive, &mut to)?);
            }
            outcome = Some((String::from_utf8(to).unwrap(), progress.unwrap()));
            if exchange.is_http_1_0 || !answer.windows(7).any(|window| window == b"chunked") {
                let again = pass_at_once(answer, exchange, keep_alive)?;
                assert_eq!(outcome.as_ref().map(|(text, _)| text), Some(&again));
            }
        }
        outcome.ok_or(BadAnswer)
    }

    fn pass_at_once(answer: &[u8], exchange: Exchange, keep_alive: bool) -> Result<String, BadAnswer> {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut upstream = Upstream::new(socket.into(), Instant::now());
        upstream.begin(None, Vec::new());
        let mut to = Vec::new();
        upstream.feed(answer, exchange, keep_alive, &mut to)?;
        Ok(String::from_utf8(to).unwrap())
    }

    #[test]
    fn an_answer_of_known_length_passes() {
        let answer = b"HTTP/1.1 200 OK\r\nServer: t\r\nDate: now\r\nConnection: x\r\nContent-Length: 5\r\n\r\nhello";
        let (text, progress) = pass(answer, GET, true).unwrap();
        assert_eq!(text, "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(progress, Progress { begun: true, done: true, is_framed: true });
        assert!(pass(answer, GET, false).unwrap().0.contains("\r\nConnection: close\r\n"));
        let old = Exchange { is_http_1_0: true, ..GET };
        assert!(pass(answer, old, true).unwrap().0.contains("\r\nConnection: keep-alive\r\n"));
    }

    #[test]
    fn a_stream_passes_in_chunks_and_to_an_old_client_without() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let text = pass_at_once(answer, GET, true).unwrap();
        assert_eq!(text, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        assert!(pass(answer, GET, true).unwrap().1.done);
        let (text, progress) = pass(answer, Exchange { is_http_1_0: true, ..GET }, true).unwrap();
        assert_eq!(text, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello");
        assert_eq!(progress, Progress { begun: true, done: true, is_framed: false });
    }

    #[test]
    fn the_answer_to_head_has_a_length_and_no_body() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let (text, progress) = pass(answer, Exchange { is_head: true, ..GET }, true).unwrap();
        assert_eq!(text, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        assert!(progress.done);
    }

    #[test]
    fn what_is_no_single_answer_is_refused() {
        for answer in [
            "HTTP/1.1 200 OK\r\n\r\nendless",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert_eq!(pass_at_once(answer.as_bytes(), GET, true), Err(BadAnswer), "{answer:?}");
        }
    }
}
