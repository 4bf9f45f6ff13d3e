//! What holds for whatever a client sends. The fuzz target asks it of all that the fuzzer makes up, and the gate's unit
//! tests of the corpus and of the hostile requests in `tests/fixtures/hostile`.
//!
//! - Nothing panics, and nothing is kept beyond the limits.
//! - However the bytes are cut into pieces, the same requests come out and the same refusal.
//! - A request that is accepted is passed on as exactly one, which a strict reader, written here anew, understands as
//!   the one that was sent: nothing can be smuggled in a body, in a header line or behind the end.

use crate::web::ListenerKind;
use crate::web::gate::connection::{BODY_MAX_BYTES, Incoming};
use crate::web::gate::head::{self, HEAD_MAX_BYTES, Origin};
use crate::web::gate::refusal::Refusal;

/// Requests of one connection that are looked at.
const REQUESTS_MAX: usize = 32;
/// Up to here bytes are also sent one at a time: what two cuts do to each other happens in short requests too.
const SINGLE_BYTES_MAX: usize = 8 * 1024;

/// Header lines that the gate keeps to itself.
const KEPT_BACK: [&str; 9] = [
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

/// Panics where something does not hold for these bytes.
pub fn hold(sent: &[u8]) {
    let whole = Reader::read([sent]);
    let seed = sent
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    assert_eq!(whole, Reader::read(Pieces { rest: sent, state: seed | 1 }), "cut into random pieces");
    if sent.len() <= SINGLE_BYTES_MAX {
        assert_eq!(whole, Reader::read(sent.chunks(1)), "one byte at a time");
    }
    for passed in &whole.passed {
        passed.is_what_was_sent(sent);
    }
}

/// Pieces of random length, the same ones for the same bytes.
struct Pieces<'a> {
    rest: &'a [u8],
    state: u64,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        // xorshift64; as many bits of length as the first ones say, so that short pieces are as likely as long ones.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let length = 1 + (self.state >> 8) as usize % (1 << (self.state % 13));
        let (piece, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        Some(piece)
    }
}

/// A request that went through.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    /// Where its head begins in what was sent.
    begin: usize,
    /// Where its body begins.
    body: usize,
    /// Where what follows begins.
    end: usize,
    /// What tiny_http gets.
    message: Vec<u8>,
    number: u64,
}

/// Reads as the gate does, one request after the other, as if each were answered at once.
#[derive(Default)]
struct Reader {
    input: Vec<u8>,
    scanned: usize,
    offset: usize,
    begun: Option<(usize, usize, bool, Incoming)>,
    has_ended: bool,
    outcome: Outcome,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: Vec<Passed>,
    refusal: Option<Refusal>,
    /// How far a request had come that was not complete.
    is_in_body: bool,
}

impl Reader {
    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
        let mut reader = Reader::default();
        for piece in pieces {
            reader.input.extend_from_slice(piece);
            while !reader.has_ended && reader.step() {}
            if reader.has_ended {
                break;
            }
            assert!(reader.input.len() <= HEAD_MAX_BYTES, "{} bytes of a head are kept", reader.input.len());
        }
        reader.outcome.is_in_body = reader.begun.is_some();
        reader.outcome
    }

    /// Whether it got anywhere.
    fn step(&mut self) -> bool {
        let step = if self.begun.is_some() { self.body() } else { self.head() };
        step.unwrap_or_else(|refusal| {
            self.outcome.refusal = Some(refusal);
            self.begun = None;
            self.has_ended = true;
            false
        })
    }

    fn consume(&mut self, count: usize) {
        self.input.drain(..count);
        self.offset += count;
        self.scanned = 0;
    }

    fn head(&mut self) -> Result<bool, Refusal> {
        let empty = head::empty_lines(&self.input);
        if empty > 0 {
            self.consume(empty);
        }
        let Some(length) = head::find(&self.input, &mut self.scanned)? else { return Ok(false) };
        let request = self.outcome.passed.len() as u64 + 1;
        let origin = Origin { listener: ListenerKind::Tcp, peer: None, request };
        let head = head::parse(&self.input[..length], origin)?;
        let (begin, keep_alive) = (self.offset, head.keep_alive);
        self.consume(length);
        self.begun = Some((begin, self.offset, keep_alive, Incoming::new(head, request)?));
        Ok(true)
    }

    fn body(&mut self) -> Result<bool, Refusal> {
        let Some((begin, body, keep_alive, mut incoming)) = self.begun.take() else { return Ok(false) };
        let used = incoming.feed(&self.input);
        assert!(incoming.held_bytes() <= BODY_MAX_BYTES, "{} bytes of a body are kept", incoming.held_bytes());
        self.consume(used?);
        if !incoming.is_complete() {
            assert!(self.input.is_empty(), "a body that is not complete takes all that there is");
            self.begun = Some((begin, body, keep_alive, incoming));
            return Ok(false);
        }
        let number = incoming.request;
        self.outcome.passed.push(Passed { begin, body, end: self.offset, message: incoming.into_message(), number });
        self.has_ended = !keep_alive || self.outcome.passed.len() == REQUESTS_MAX;
        Ok(true)
    }
}

/// A request head, as a strict reader has it.
struct Lines<'a> {
    method: &'a str,
    target: &'a str,
    version: &'a str,
    headers: Vec<(&'a str, &'a [u8])>,
}

impl Lines<'_> {
    /// The values of all header lines of this name.
    fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| *value).collect()
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn trim_blanks(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Reads a head, its empty line included, by RFC 9112 sections 3 and 5, without any leniency but for bare line feeds
/// where `may_be_bare`.
fn lines(head: &[u8], may_be_bare: bool) -> Lines<'_> {
    let mut lines: Vec<&[u8]> = Vec::new();
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").expect("a head ends with a line break");
        let line = match line.strip_suffix(b"\r") {
            Some(line) => line,
            None if may_be_bare => line,
            None => panic!("a bare line feed"),
        };
        assert!(!line.iter().any(|byte| matches!(byte, b'\r' | 0)), "a character that ends lines or strings");
        lines.push(line);
    }
    assert!(lines.pop().is_some_and(<[u8]>::is_empty), "the last line of a head is empty");
    let mut lines = lines.into_iter();
    let first = std::str::from_utf8(lines.next().expect("there is a request line")).expect("the request line is ASCII");
    let parts: Vec<&str> = first.split(' ').collect();
    let [method, target, version] = parts[..] else { panic!("{} parts in a request line", parts.len()) };
    assert!(is_token(method) && target.bytes().all(|byte| byte.is_ascii_graphic()) && !target.is_empty());
    let headers = lines.map(|line| {
        let colon = line.iter().position(|byte| *byte == b':').expect("a header line has a colon");
        let name = std::str::from_utf8(&line[..colon]).expect("a name is ASCII");
        assert!(is_token(name), "{name:?} is the name of a header");
        let value = trim_blanks(&line[colon + 1..]);
        assert!(!value.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)), "a control character");
        (name, value)
    });
    let headers = headers.collect();
    Lines { method, target, version, headers }
}

/// The data of a chunked body that is known to be complete, and its length as it was sent (RFC 9112, section 7.1).
fn chunks(sent: &[u8]) -> (Vec<u8>, usize) {
    let (mut data, mut at) = (Vec::new(), 0);
    let line = |at: usize| {
        let length = sent[at..].windows(2).position(|two| two == b"\r\n").expect("a line ends");
        let line = &sent[at..at + length];
        assert!(!line.contains(&b'\n') && !line.contains(&b'\r'), "a line within a line");
        (line, at + length + 2)
    };
    loop {
        let (size, after) = line(at);
        let digits = size.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let extension = trim_blanks(&size[digits..]);
        assert!(extension.is_empty() || extension.starts_with(b";"), "something beside the size");
        let size = std::str::from_utf8(&size[..digits]).expect("digits");
        let size = usize::from_str_radix(size, 16).expect("a size that can be");
        at = after;
        if size == 0 {
            break;
        }
        data.extend_from_slice(&sent[at..at + size]);
        at += size;
        assert_eq!(&sent[at..at + 2], b"\r\n", "a chunk ends where it said");
        at += 2;
    }
    loop {
        let (trailer, after) = line(at);
        at = after;
        if trailer.is_empty() {
            return (data, at);
        }
    }
}

impl Passed {
    fn is_what_was_sent(&self, sent: &[u8]) {
        assert!(self.body - self.begin <= HEAD_MAX_BYTES);
        let original = lines(&sent[self.begin..self.body], true);
        let body = self.body_as_sent(sent, &original);
        let split = self.message.windows(4).position(|four| four == b"\r\n\r\n").expect("the message has a head") + 4;
        let message = lines(&self.message[..split], false);
        assert_eq!(&self.message[split..], body, "the body is the one that was sent");

        assert_eq!(message.version, "HTTP/1.1");
        assert_eq!(message.method, original.method);
        let (authority, target) = as_origin_form(original.target);
        assert_eq!(message.target, target);

        let number = self.number.to_string();
        let length = body.len().to_string();
        let mut expected: Vec<(&str, Vec<u8>)> = authority.map(|host| ("Host", host.into())).into_iter().collect();
        let is_passed_on = |name: &str| {
            let name = name.to_ascii_lowercase();
            let is_replaced = authority.is_some() && name == "host";
            !is_replaced && !name.starts_with("x-shiparr-") && !KEPT_BACK.contains(&name.as_str())
        };
        let in_ascii = |value: &[u8]| value.iter().map(|byte| if byte.is_ascii() { *byte } else { b'?' }).collect();
        let headers = original.headers.iter().filter(|(name, _)| is_passed_on(name));
        expected.extend(headers.map(|(name, value)| (*name, in_ascii(value))));
        expected.push(("X-Shiparr-Listener", b"tcp".into()));
        expected.push(("X-Shiparr-Request", number.into_bytes()));
        if !body.is_empty() {
            expected.push(("Content-Length", length.into_bytes()));
        }
        let passed: Vec<(&str, Vec<u8>)> =
            message.headers.iter().map(|(name, value)| (*name, value.to_vec())).collect();
        assert_eq!(passed, expected);
        let hosts = message.all("Host").len();
        assert!(hosts == 1 || (hosts == 0 && original.version == "HTTP/1.0"), "one request names one host");
        for name in ["Origin", "Sec-Fetch-Site", "Authorization", "X-Api-Key"] {
            assert!(message.all(name).len() <= 1, "{name} is there once");
        }
    }

    /// The body by the rules of RFC 9112, section 6.3, which have to be unambiguous for it.
    fn body_as_sent(&self, sent: &[u8], original: &Lines<'_>) -> Vec<u8> {
        let rest = &sent[self.body..];
        let (codings, lengths) = (original.all("Transfer-Encoding"), original.all("Content-Length"));
        let (body, used) = match (&codings[..], &lengths[..]) {
            ([], []) => (Vec::new(), 0),
            ([], [length]) => {
                assert!(length.iter().all(u8::is_ascii_digit), "a length of digits");
                let length =
                    std::str::from_utf8(length).expect("digits").parse::<usize>().expect("a length that can be");
                (rest[..length].to_vec(), length)
            }
            ([coding], []) => {
                assert!(coding.eq_ignore_ascii_case(b"chunked") && original.version == "HTTP/1.1");
                chunks(rest)
            }
            _ => panic!("a body with two lengths was accepted"),
        };
        assert!(body.len() <= BODY_MAX_BYTES);
        assert_eq!(self.body + used, self.end, "the next request begins where this one ends");
        body
    }
}

/// The host of a target in absolute form, and what remains.
fn as_origin_form(target: &str) -> (Option<&str>, &str) {
    if target.starts_with('/') || target == "*" {
        return (None, target);
    }
    assert!(target[..7].eq_ignore_ascii_case("http://"), "{target:?} is a target");
    let rest = &target[7..];
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    assert!(!authority.is_empty() && !authority.contains(['@', '?', '#']), "{authority:?} is a host");
    (Some(authority), path)
}
