//! The chunked transfer coding (RFC 9112, section 7.1), read strictly: CRLF only, sizes without sign, bounded overhead.

/// Extensions and trailers of one body together; they are read and thrown away.
const OVERHEAD_MAX_BYTES: usize = 16 * 1024;
/// Hexadecimal digits of a chunk's size; leading zeros count.
const SIZE_MAX_DIGITS: u8 = 8;

/// What is not a chunked body.
#[derive(Debug, PartialEq, Eq)]
pub struct BadChunk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { digits: u8, value: u64 },
    Blank { value: u64 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerLine,
    TrailerLf,
    EndLf,
    Done,
}

/// Takes a chunked body apart, in pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    overhead_bytes: usize,
}

impl Decoder {
    /// At the start of a body.
    pub fn new() -> Decoder {
        Decoder { state: State::Size { digits: 0, value: 0 }, overhead_bytes: 0 }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads `input` up to the end of the body at most, hands the data over, and answers how many bytes it used.
    ///
    /// # Errors
    /// What is not a chunked body, or has more extensions and trailers than the bound.
    pub fn decode(&mut self, input: &[u8], mut on_data: impl FnMut(&[u8])) -> Result<usize, BadChunk> {
        let mut used = 0;
        while used < input.len() && !self.is_done() {
            if let State::Data { left } = self.state {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - used);
                on_data(&input[used..used + take]);
                used += take;
                let left = left - take as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
            } else {
                self.state = self.step(input[used])?;
                used += 1;
            }
        }
        Ok(used)
    }

    /// One byte outside of the data.
    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        Ok(match (self.state, byte) {
            (State::Size { digits: 1.., value }, b'\r') => State::SizeLf { value },
            (State::Size { digits: 1.., value } | State::Blank { value }, b';') => State::Extension { value },
            (State::Size { digits: 1.., value } | State::Blank { value }, b' ' | b'\t') => {
                self.overhead(byte)?;
                State::Blank { value }
            }
            (State::Size { digits, value }, byte) if digits < SIZE_MAX_DIGITS => {
                let digit = (byte as char).to_digit(16).ok_or(BadChunk)?;
                State::Size { digits: digits + 1, value: value * 16 + u64::from(digit) }
            }
            (State::Blank { value } | State::Extension { value }, b'\r') => State::SizeLf { value },
            (State::Extension { value }, byte) => {
                self.overhead(byte)?;
                State::Extension { value }
            }
            (State::SizeLf { value: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { value }, b'\n') => State::Data { left: value },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0, value: 0 },
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerLine, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::TrailerLine, byte) => {
                self.overhead(byte)?;
                State::TrailerLine
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(BadChunk),
        })
    }

    fn overhead(&mut self, byte: u8) -> Result<(), BadChunk> {
        self.overhead_bytes += 1;
        if matches!(byte, b'\n' | 0) || self.overhead_bytes > OVERHEAD_MAX_BYTES { Err(BadChunk) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &[u8], piece_bytes: usize) -> Result<(Vec<u8>, usize, bool), BadChunk> {
        let mut decoder = Decoder::new();
        let (mut data, mut used) = (Vec::new(), 0);
        for piece in input.chunks(piece_bytes) {
            used += decoder.decode(piece, |bytes| data.extend_from_slice(bytes))?;
        }
        Ok((data, used, decoder.is_done()))
    }

    #[test]
    fn a_body_comes_apart_in_pieces_of_any_size() {
        let body = b"5\r\nhello\r\n00006 \t;name=value\r\n world\r\n0\r\nTrailer: x\r\n\r\n";
        for piece_bytes in 1..body.len() + 1 {
            assert_eq!(decode(body, piece_bytes), Ok((b"hello world".to_vec(), body.len(), true)), "{piece_bytes}");
        }
    }

    #[test]
    fn what_follows_the_body_is_left_alone() {
        assert_eq!(decode(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n", 100), Ok((b"x".to_vec(), 11, true)));
    }

    #[test]
    fn a_cut_body_is_not_done() {
        assert_eq!(decode(b"5\r\nhel", 100), Ok((b"hel".to_vec(), 6, false)));
        assert_eq!(decode(b"0\r\n", 100), Ok((Vec::new(), 3, false)));
    }

    #[test]
    fn odd_shapes_are_refused() {
        for body in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+5\r\nhello",
            "0x5\r\nhello",
            "5\nhello",
            "5\r\nhello0\r\n\r\n",
            "5\r\rhello",
            "123456789\r\n",
            "1\r\nxy\r\n",
            "5;a\nb\r\nhello",
            "5 a\r\nhello",
            "0\r\nTrailer\n\r\n",
            " 5\r\nhello",
            "1\r\nx\n0\r\n\r\n",
        ] {
            assert_eq!(decode(body.as_bytes(), 100), Err(BadChunk), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_have_a_bound() {
        let endless = [b"5;".as_slice(), &vec![b'a'; OVERHEAD_MAX_BYTES + 1]].concat();
        assert_eq!(decode(&endless, 4096), Err(BadChunk));
        let trailers = [b"0\r\n".as_slice(), &b"A: b\r\n".repeat(OVERHEAD_MAX_BYTES)].concat();
        assert_eq!(decode(&trailers, 4096), Err(BadChunk));
    }
}
