//! From bytes to lines, with a bound on both.

/// A line that is longer than this comes in pieces.
pub const MAX_LINE_BYTES: usize = 8 * 1024;

/// Stands where a line was cut: at the end of a piece that goes on, and at the start of the next.
///
/// The scrubber reads it, for a secret may lie across a cut.
pub const CUT: char = '…';

/// Collects bytes until they are a line. `\n`, `\r\n` and `\r` (a progress bar's) end one; bytes that are not UTF-8
/// become `U+FFFD`.
#[derive(Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
    /// The last byte was `\r`: a `\n` that follows belongs to it.
    after_return: bool,
    /// The pending bytes go on with a line whose beginning was handed over.
    continued: bool,
}

impl Lines {
    /// Takes the next bytes and hands over each line that they complete.
    pub(super) fn push(&mut self, bytes: &[u8], on_line: &mut dyn FnMut(&str)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = MAX_LINE_BYTES - self.pending.len();
            let window = &rest[..rest.len().min(room)];
            match window.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(end) => {
                    self.pending.extend_from_slice(&window[..end]);
                    self.end_line(window[end], on_line);
                    rest = &rest[end + 1..];
                }
                None => {
                    self.pending.extend_from_slice(window);
                    rest = &rest[window.len()..];
                    self.after_return = false;
                    if self.pending.len() == MAX_LINE_BYTES {
                        self.hand_over_piece(on_line);
                    }
                }
            }
        }
    }

    /// Hands over what is left when no line break will come any more.
    pub(super) fn finish(&mut self, on_line: &mut dyn FnMut(&str)) {
        if !self.pending.is_empty() {
            let line = std::mem::take(&mut self.pending);
            self.hand_over(&line, false, on_line);
        }
    }

    fn end_line(&mut self, end: u8, on_line: &mut dyn FnMut(&str)) {
        let nothing_new = self.pending.is_empty() && (self.continued || end == b'\r' || self.after_return);
        let line = std::mem::take(&mut self.pending);
        if !nothing_new {
            self.hand_over(&line, false, on_line);
        }
        self.continued = false;
        self.after_return = end == b'\r';
    }

    /// Cuts the pending bytes before a character that is not complete yet.
    fn hand_over_piece(&mut self, on_line: &mut dyn FnMut(&str)) {
        let cut = match std::str::from_utf8(&self.pending) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.pending.len(),
        };
        // A character has at most four bytes: an incomplete one never fills the buffer alone, except after bytes that
        // are invalid.
        let cut = if self.pending.len() - cut < 4 { cut } else { self.pending.len() };
        let rest = self.pending.split_off(cut);
        let piece = std::mem::replace(&mut self.pending, rest);
        self.hand_over(&piece, true, on_line);
        self.continued = true;
    }

    fn hand_over(&self, line: &[u8], goes_on: bool, on_line: &mut dyn FnMut(&str)) {
        let text = String::from_utf8_lossy(line);
        match (self.continued, goes_on) {
            (false, false) => on_line(&text),
            (false, true) => on_line(&format!("{text}{CUT}")),
            (true, false) => on_line(&format!("{CUT}{text}")),
            (true, true) => on_line(&format!("{CUT}{text}{CUT}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(piece, &mut |line| found.push(line.to_owned()));
        }
        lines.finish(&mut |line| found.push(line.to_owned()));
        found
    }

    #[test]
    fn every_kind_of_line_break_ends_a_line() {
        assert_eq!(lines_of(&[b"one\ntwo\r\nthree\rfour"]), ["one", "two", "three", "four"]);
        assert_eq!(lines_of(&[b"one\r", b"\ntwo\n"]), ["one", "two"]);
        assert_eq!(lines_of(&[b"\r\rone\r\r"]), ["one"], "a progress bar that returns twice says nothing");
        assert_eq!(lines_of(&[b"one\n\ntwo\n"]), ["one", "", "two"], "an empty line is one");
        assert_eq!(lines_of(&[b""]), [""; 0]);
    }

    #[test]
    fn a_line_may_come_byte_by_byte() {
        let text = "schön\r\nund gut\n".as_bytes();
        let pieces: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(lines_of(&pieces), ["schön", "und gut"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(lines_of(&[b"a\xff\xfeb\n"]), ["a\u{fffd}\u{fffd}b"]);
        assert_eq!(lines_of(&[&[0xff; 3 * MAX_LINE_BYTES]]).len(), 3);
    }

    #[test]
    fn a_long_line_comes_in_marked_pieces_without_breaking_characters() {
        let text = format!("x{}\nend\n", "é".repeat(MAX_LINE_BYTES));
        let found = lines_of(&[text.as_bytes()]);
        assert_eq!(found.last().unwrap(), "end");
        let pieces = &found[..found.len() - 1];
        assert!(pieces.len() >= 2 && pieces[0].ends_with(CUT) && pieces[1].starts_with(CUT));
        let joined = pieces.concat().replace(CUT, "");
        assert_eq!(joined, text.trim_end_matches("\nend\n"));
    }

    #[test]
    fn a_line_of_just_the_greatest_length_has_no_empty_rest() {
        let text = format!("{}\nend", "x".repeat(MAX_LINE_BYTES));
        assert_eq!(lines_of(&[text.as_bytes()]).len(), 2);
    }
}
