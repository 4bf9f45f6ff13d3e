//! The wire format of Git's protocol v2: pkt-lines, the two commands that are sent, and their answers.
//!
//! See git's own documentation, `protocol-v2` and `protocol-common`.

use std::io;

/// Ends a message.
const FLUSH: &[u8] = b"0000";
/// Stands between a command's capabilities and its arguments.
const DELIMITER: &[u8] = b"0001";
/// Bytes of the length in front of a pkt-line.
const LENGTH_BYTES: usize = 4;

/// A reference of a remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteReference {
    /// Its full name.
    pub name: String,
    /// What it points at; for an annotated tag, what that points at.
    pub hash: String,
}

/// A request for the references that begin with `prefix`, peeled.
pub(super) fn list_request(prefix: &str) -> Vec<u8> {
    let mut request = Vec::new();
    push_line(&mut request, "command=ls-refs");
    push_line(&mut request, "object-format=sha1");
    request.extend_from_slice(DELIMITER);
    push_line(&mut request, "peel");
    push_line(&mut request, &format!("ref-prefix {prefix}"));
    request.extend_from_slice(FLUSH);
    request
}

/// A request for a pack that holds `want` and what it needs beyond `haves`.
pub(super) fn fetch_request(want: &str, haves: &[String]) -> Vec<u8> {
    let mut request = Vec::new();
    push_line(&mut request, "command=fetch");
    push_line(&mut request, "object-format=sha1");
    request.extend_from_slice(DELIMITER);
    for argument in ["thin-pack", "no-progress", "ofs-delta"] {
        push_line(&mut request, argument);
    }
    push_line(&mut request, &format!("want {want}"));
    for have in haves {
        push_line(&mut request, &format!("have {have}"));
    }
    push_line(&mut request, "done");
    request.extend_from_slice(FLUSH);
    request
}

fn push_line(request: &mut Vec<u8>, line: &str) {
    request.extend_from_slice(format!("{:04x}{line}\n", LENGTH_BYTES + line.len() + 1).as_bytes());
}

/// A pkt-line, or one of the marks between them.
#[derive(Debug, PartialEq, Eq)]
enum Packet<'a> {
    Flush,
    Mark,
    Line(&'a [u8]),
}

/// The first packet of `bytes` and how long it is; none while it is not complete.
fn next_packet(bytes: &[u8]) -> Result<Option<(Packet<'_>, usize)>, NotPackets> {
    let Some(length) = bytes.get(..LENGTH_BYTES) else { return Ok(None) };
    let length = std::str::from_utf8(length).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let length = length.and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or(NotPackets)?;
    match length {
        0 => Ok(Some((Packet::Flush, LENGTH_BYTES))),
        1 | 2 => Ok(Some((Packet::Mark, LENGTH_BYTES))),
        3 => Err(NotPackets),
        _ => Ok(bytes.get(LENGTH_BYTES..length).map(|line| (Packet::Line(line), length))),
    }
}

/// An answer that is not in this format: the server does not speak protocol v2, or is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotPackets;

/// Reads the answer to [`list_request`], also one that was cut off (`complete` is then false).
pub(super) fn read_references(mut bytes: &[u8], complete: bool) -> Result<Vec<RemoteReference>, NotPackets> {
    let mut references = Vec::new();
    loop {
        match next_packet(bytes)? {
            Some((Packet::Flush, _)) => return Ok(references),
            Some((Packet::Line(line), length)) => {
                references.extend(read_reference(line)?);
                bytes = &bytes[length..];
            }
            None if !complete => return Ok(references),
            Some((Packet::Mark, _)) | None => return Err(NotPackets),
        }
    }
}

/// `HASH NAME [attribute…]`; none for an unborn HEAD.
fn read_reference(line: &[u8]) -> Result<Option<RemoteReference>, NotPackets> {
    let line = std::str::from_utf8(line).map_err(|_| NotPackets)?.trim_end_matches('\n');
    let mut words = line.split(' ');
    let (Some(hash), Some(name)) = (words.next(), words.next()) else { return Err(NotPackets) };
    if hash == "unborn" {
        return Ok(None);
    }
    if !matches!(hash.len(), 40 | 64) || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(NotPackets);
    }
    let peeled = words.find_map(|word| word.strip_prefix("peeled:"));
    Ok(Some(RemoteReference { name: name.to_owned(), hash: peeled.unwrap_or(hash).to_owned() }))
}

/// Takes the pack out of the answer to [`fetch_request`], piece by piece as it comes.
pub(super) struct Unpacker<W> {
    out: W,
    buffer: Vec<u8>,
    state: Reading,
}

/// Where an [`Unpacker`] stands.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Head,
    Pack,
    Done,
    /// What the server said in place of a pack.
    Refused(String),
    NotPackets,
    Failed(String),
}

/// How a fetch's answer ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unpacked {
    /// The whole pack was handed over.
    Whole,
    /// The server said no, with these words.
    Refused(String),
    /// It is not an answer of protocol v2.
    NotPackets,
    /// It ended early.
    CutOff,
    /// The pack could not be written.
    Failed(String),
}

impl<W: io::Write> Unpacker<W> {
    pub fn new(out: W) -> Unpacker<W> {
        Unpacker { out, buffer: Vec::new(), state: Reading::Head }
    }

    /// Takes a piece; `false` when no more is wanted.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        self.buffer.extend_from_slice(piece);
        let mut at = 0;
        while matches!(self.state, Reading::Head | Reading::Pack) {
            match next_packet(&self.buffer[at..]) {
                Err(NotPackets) => self.state = Reading::NotPackets,
                Ok(None) => break,
                Ok(Some((packet, length))) => {
                    let next = read_packet(&self.state, &packet, &mut self.out);
                    at += length;
                    self.state = next.unwrap_or_else(|error| Reading::Failed(error.to_string()));
                }
            }
        }
        self.buffer.drain(..at);
        matches!(self.state, Reading::Head | Reading::Pack)
    }

    /// How it ended, once no more pieces come.
    pub fn finish(self) -> (W, Unpacked) {
        let ended = match self.state {
            Reading::Done => Unpacked::Whole,
            Reading::Refused(words) => Unpacked::Refused(words),
            Reading::NotPackets => Unpacked::NotPackets,
            Reading::Failed(error) => Unpacked::Failed(error),
            Reading::Head | Reading::Pack => Unpacked::CutOff,
        };
        (self.out, ended)
    }
}

/// Bands of the multiplexed part of an answer.
const BAND_PACK: u8 = 1;
const BAND_ERROR: u8 = 3;

fn read_packet(state: &Reading, packet: &Packet<'_>, out: &mut impl io::Write) -> io::Result<Reading> {
    Ok(match (state, packet) {
        (Reading::Pack, Packet::Line([BAND_PACK, pack @ ..])) => {
            out.write_all(pack)?;
            Reading::Pack
        }
        (Reading::Pack, Packet::Line([BAND_ERROR, words @ ..])) => Reading::Refused(words_of(words)),
        (Reading::Pack, Packet::Line(_)) => Reading::Pack,
        (Reading::Pack, Packet::Flush) => Reading::Done,
        (_, Packet::Line(b"packfile\n")) => Reading::Pack,
        (_, Packet::Line(line)) if line.starts_with(b"ERR ") => Reading::Refused(words_of(&line[4..])),
        (_, Packet::Line(_) | Packet::Mark) => Reading::Head,
        (_, Packet::Flush) => Reading::NotPackets,
    })
}

/// A server's words, fit for one line of a message.
fn words_of(bytes: &[u8]) -> String {
    const MAX_CHARS: usize = 200;
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().map(|char| if char.is_control() { ' ' } else { char }).take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789012345678901234567890123456789";
    const PEELED: &str = "abcdefabcdefabcdefabcdefabcdefabcdefabcd";

    fn lines(lines: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        lines.iter().for_each(|line| push_line(&mut bytes, line));
        bytes
    }

    #[test]
    fn a_request_is_what_the_documentation_says() {
        let text = String::from_utf8(list_request("refs/heads/main")).unwrap();
        assert_eq!(
            text,
            "0014command=ls-refs\n0017object-format=sha1\n00010009peel\n001fref-prefix refs/heads/main\n0000"
        );
    }

    #[test]
    fn references_are_read_with_their_peeled_hash() {
        let mut bytes = lines(&[
            &format!("{HASH} refs/heads/main symref-target:refs/heads/x"),
            &format!("{HASH} refs/tags/v1 peeled:{PEELED}"),
            "unborn HEAD symref-target:refs/heads/main",
        ]);
        assert_eq!(read_references(&bytes, false).unwrap().len(), 2);
        assert_eq!(read_references(&bytes, true), Err(NotPackets));
        bytes.extend_from_slice(FLUSH);
        let references = read_references(&bytes, true).unwrap();
        assert_eq!((references[0].hash.as_str(), references[1].hash.as_str()), (HASH, PEELED));
    }

    #[test]
    fn an_answer_of_another_kind_is_recognised() {
        for bytes in [&b"<!DOCTYPE html>"[..], b"", b"0003", b"0009ERR x", b"001e# service=git-upload-pack\n0000"] {
            assert_eq!(read_references(bytes, true), Err(NotPackets), "{bytes:?}");
        }
    }

    #[test]
    fn a_pack_is_taken_out_in_pieces_of_any_size() {
        let mut bytes = lines(&["packfile"]);
        bytes.extend_from_slice(b"0008\x01abc0007\x02hm0006\x01d0000");
        for size in 1..bytes.len() {
            let mut unpacker = Unpacker::new(Vec::new());
            bytes.chunks(size).for_each(|piece| {
                unpacker.push(piece);
            });
            assert_eq!(unpacker.finish(), (b"abcd".to_vec(), Unpacked::Whole));
        }
    }

    #[test]
    fn a_fetch_that_went_wrong_says_how() {
        let ended = |bytes: &[u8]| {
            let mut unpacker = Unpacker::new(Vec::new());
            unpacker.push(bytes);
            unpacker.finish().1
        };
        assert_eq!(ended(&lines(&["ERR not our ref"])), Unpacked::Refused("not our ref".to_owned()));
        assert_eq!(ended(b"000dpackfile\n0009\x03oops"), Unpacked::Refused("oops".to_owned()));
        assert_eq!(ended(b"000dpackfile\n0009\x01abcd"), Unpacked::CutOff);
        assert_eq!(ended(b"<html>"), Unpacked::NotPackets);
    }
}
