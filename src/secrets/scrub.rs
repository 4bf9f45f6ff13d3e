//! The scrubber stands between every child's output and every log.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::url::{UrlParts, hexadecimal, percent_decoded, percent_escape};
use crate::command::CUT;

/// A shorter value is not looked for: too many words of every log would be taken for it.
pub const MIN_SECRET_CHARACTERS: usize = 8;
/// From this length on a part of a URL counts as a token whatever it is made of.
const TOKEN_CHARACTERS: usize = 16;
/// Every needle has at least this many bytes; the index is over that many.
const KEY_BYTES: usize = 8;
const MASK: &str = "***";

/// Knows secrets and takes them out of lines.
///
/// It finds a secret as it stands, percent-encoded, with the escapes of JSON and of Go's quoted strings, with Compose's
/// `$$`, and inside anything that is base64 (a Basic Auth header). Serialised it holds all it knows, in plain text.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Needle>", into = "Vec<Needle>")]
pub struct Scrubber {
    needles: HashMap<[u8; KEY_BYTES], Vec<Needle>>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Needle {
    bytes: Vec<u8>,
    /// The middle of what base64 makes of a secret; all of the run around it goes.
    base64: bool,
}

impl From<Vec<Needle>> for Scrubber {
    fn from(needles: Vec<Needle>) -> Scrubber {
        let mut scrubber = Scrubber::new();
        needles.into_iter().for_each(|needle| scrubber.add(needle.bytes, needle.base64));
        scrubber
    }
}

impl From<Scrubber> for Vec<Needle> {
    fn from(scrubber: Scrubber) -> Vec<Needle> {
        scrubber.needles.into_values().flatten().collect()
    }
}

impl Scrubber {
    /// Knows nothing yet.
    pub fn new() -> Scrubber {
        Scrubber::default()
    }

    /// Learns a value: each of its lines, from eight characters on, and the password where it is a URL that has one.
    pub fn learn(&mut self, value: &str) {
        for line in value.split(['\n', '\r']) {
            let trimmed = line.trim();
            if trimmed.chars().count() >= MIN_SECRET_CHARACTERS {
                self.add(trimmed.as_bytes().to_vec(), false);
                self.add_base64(trimmed.as_bytes());
            }
        }
        if let Some(password) = UrlParts::of(value).and_then(|parts| parts.password) {
            self.learn_encoded(password);
        }
    }

    /// Learns a URL with its parts: user and password, and what looks like a token in the host (some services carry one
    /// there), the path and the query.
    pub fn learn_url(&mut self, url: &str) {
        self.learn(url);
        let Some(parts) = UrlParts::of(url) else { return };
        self.learn(parts.rest);
        // `TOKEN@…`: without a password the user is the secret.
        if parts.password.is_none() || looks_like_token(parts.user) {
            self.learn_encoded(parts.user);
        }
        let (path, query) = parts.path_and_query.split_once('?').unwrap_or((parts.path_and_query, ""));
        self.learn_encoded(path.trim_matches('/'));
        for part in path.split(['/', '#']).filter(|part| looks_like_token(part)) {
            self.learn_encoded(part);
        }
        for (_, value) in query.split(['&', '#']).filter_map(|pair| pair.split_once('=')) {
            self.learn_encoded(value);
        }
        if looks_like_token(parts.host) && !parts.host.contains(['.', '[']) {
            self.learn_encoded(parts.host);
        }
    }

    /// The line with every known secret replaced by `***`. Where the line was cut (see [`CUT`]), what may be a part of
    /// a secret goes too.
    pub fn scrub<'a>(&self, line: &'a str) -> Cow<'a, str> {
        if self.needles.is_empty() {
            return Cow::Borrowed(line);
        }
        let mut found = Vec::new();
        self.find(line.as_bytes(), &mut |range| found.push(range));
        for (sign, decode) in ESCAPES {
            if let Some(view) = View::of(line.as_bytes(), sign, decode) {
                self.find(&view.bytes, &mut |range| found.push(view.starts[range.start]..view.starts[range.end]));
            }
        }
        if found.is_empty() { Cow::Borrowed(line) } else { Cow::Owned(mask(line, found)) }
    }

    /// Learns a part of a URL, and what it means without its percent-encoding.
    fn learn_encoded(&mut self, part: &str) {
        self.learn(part);
        self.learn(&percent_decoded(part));
    }

    fn add(&mut self, bytes: Vec<u8>, base64: bool) {
        let Some(key) = bytes.first_chunk::<KEY_BYTES>() else { return };
        let needles = self.needles.entry(*key).or_default();
        let needle = Needle { bytes, base64 };
        if !needles.contains(&needle) {
            needles.push(needle);
        }
    }

    /// Adds what base64 makes of the secret, at each of the three places that it can have in a group of three bytes,
    /// without the characters that its neighbours have a part in.
    fn add_base64(&mut self, secret: &[u8]) {
        for before in 0..3 {
            let mut bytes = vec![0; before];
            bytes.extend_from_slice(secret);
            let inner = (before * 8).div_ceil(6)..bytes.len() * 8 / 6;
            self.add(STANDARD_NO_PAD.encode(&bytes).as_bytes()[inner.clone()].to_vec(), true);
            self.add(URL_SAFE_NO_PAD.encode(&bytes).as_bytes()[inner].to_vec(), true);
        }
    }

    fn find(&self, text: &[u8], on_match: &mut dyn FnMut(Range<usize>)) {
        for (start, key) in text.windows(KEY_BYTES).enumerate() {
            let Some(needles) = key.first_chunk().and_then(|key: &[u8; KEY_BYTES]| self.needles.get(key)) else {
                continue;
            };
            for needle in needles.iter().filter(|needle| text[start..].starts_with(&needle.bytes)) {
                let range = start..start + needle.bytes.len();
                on_match(if needle.base64 { base64_run(text, range) } else { range });
            }
        }
        self.find_at_cuts(text, on_match);
    }

    fn find_at_cuts(&self, text: &[u8], on_match: &mut dyn FnMut(Range<usize>)) {
        let mut mark = [0; 4];
        let mark = CUT.encode_utf8(&mut mark).as_bytes();
        let goes_on = text.ends_with(mark);
        let continues = text.starts_with(mark);
        if !goes_on && !continues {
            return;
        }
        let start = if continues { mark.len() } else { 0 };
        let end = text.len() - if goes_on && text.len() > start { mark.len() } else { 0 };
        let inner = &text[start..end];
        for needle in self.needles.values().flatten() {
            let secret = &needle.bytes;
            let longest = inner.len().min(secret.len());
            if let Some(length) = (1..=longest).rev().find(|length| secret.starts_with(&inner[inner.len() - length..]))
            {
                if goes_on {
                    on_match(end - length..end);
                }
            }
            if let Some(length) = (1..=longest).rev().find(|length| secret.ends_with(&inner[..*length])) {
                if continues {
                    on_match(start..start + length);
                }
            }
            if goes_on && continues && !inner.is_empty() && secret.windows(inner.len()).any(|window| window == inner) {
                on_match(start..end);
            }
        }
    }
}

/// Whether a part of a URL is more than a word such as `services`.
fn looks_like_token(part: &str) -> bool {
    part.chars().count() >= TOKEN_CHARACTERS || part.chars().any(|character| character.is_ascii_digit())
}

/// Appends the meaning of the escape that a text begins with, and returns how many bytes it is long: 0 when it is none.
type Decode = fn(&[u8], &mut Vec<u8>) -> usize;

/// The sign that each kind of escape begins with.
const ESCAPES: [(u8, Decode); 3] = [(b'%', percent_escape), (b'\\', backslash_escape), (b'$', doubled_dollar)];

/// A text with its escapes resolved, and where each byte of it came from.
struct View {
    bytes: Vec<u8>,
    /// Where each byte begins in the original, and at the end the original's length.
    starts: Vec<usize>,
}

impl View {
    /// None where there is nothing to resolve.
    fn of(text: &[u8], sign: u8, decode: Decode) -> Option<View> {
        let mut position = text.iter().position(|byte| *byte == sign)?;
        let mut bytes = text[..position].to_vec();
        let mut starts: Vec<usize> = (0..position).collect();
        while position < text.len() {
            let length = match decode(&text[position..], &mut bytes) {
                0 => {
                    bytes.push(text[position]);
                    1
                }
                length => length,
            };
            starts.resize(bytes.len(), position);
            position += length;
        }
        starts.push(text.len());
        (bytes.len() < text.len()).then_some(View { bytes, starts })
    }
}

/// The escapes of JSON and of Go's `%q`.
fn backslash_escape(text: &[u8], meaning: &mut Vec<u8>) -> usize {
    let [b'\\', letter, digits @ ..] = text else { return 0 };
    let (length, character) = match letter {
        b'n' => (2, Some('\n')),
        b'r' => (2, Some('\r')),
        b't' => (2, Some('\t')),
        b'u' => (6, digits.get(..4).and_then(hexadecimal).and_then(char::from_u32)),
        b'U' => (10, digits.get(..8).and_then(hexadecimal).and_then(char::from_u32)),
        b'x' => (4, digits.get(..2).and_then(hexadecimal).and_then(char::from_u32)),
        sign if sign.is_ascii_punctuation() => (2, Some(char::from(*sign))),
        _ => (0, None),
    };
    let Some(character) = character else { return 0 };
    meaning.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    length
}

fn doubled_dollar(text: &[u8], meaning: &mut Vec<u8>) -> usize {
    if !text.starts_with(b"$$") {
        return 0;
    }
    meaning.push(b'$');
    2
}

/// The whole run of base64 that a match lies in.
fn base64_run(text: &[u8], found: Range<usize>) -> Range<usize> {
    let outside = |byte: &u8| !(byte.is_ascii_alphanumeric() || b"+/-_=".contains(byte));
    let start = text[..found.start].iter().rposition(outside).map_or(0, |before| before + 1);
    let end = text[found.end..].iter().position(outside).map_or(text.len(), |after| found.end + after);
    start..end
}

/// Replaces the ranges, those that touch or overlap together, by one mask each.
fn mask(line: &str, mut ranges: Vec<Range<usize>>) -> String {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut masked = String::with_capacity(line.len());
    let mut done = 0;
    let mut open = false;
    for range in ranges {
        // A match in a view ends with an escape; that is a border of characters, and so is each end of the others, but
        // a slip here must not panic.
        let start = (0..=range.start).rev().find(|index| line.is_char_boundary(*index)).unwrap_or(0);
        let end = (range.end..=line.len()).find(|index| line.is_char_boundary(*index)).unwrap_or(line.len());
        if start > done || !open {
            masked.push_str(&line[done..start]);
            masked.push_str(MASK);
            open = true;
        }
        done = done.max(end);
    }
    masked.push_str(&line[done..]);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::MAX_LINE_BYTES;

    fn knowing(values: &[&str]) -> Scrubber {
        let mut scrubber = Scrubber::new();
        values.iter().for_each(|value| scrubber.learn(value));
        scrubber
    }

    #[test]
    fn a_secret_is_masked_wherever_it_stands() {
        let scrubber = knowing(&["correct horse"]);
        assert_eq!(scrubber.scrub("correct horse"), "***");
        assert_eq!(scrubber.scrub("a correct horse, correct horsecorrect horse!"), "a ***, ***!");
        assert!(matches!(scrubber.scrub("nothing to see"), Cow::Borrowed("nothing to see")));
    }

    #[test]
    fn short_values_are_not_looked_for() {
        let scrubber = knowing(&["seven77", "", "schön-ja"]);
        assert_eq!(scrubber.scrub("seven77 and schön-ja"), "seven77 and ***");
    }

    #[test]
    fn each_line_of_a_value_is_a_secret() {
        let scrubber = knowing(&["-----BEGIN KEY-----\nMIIEvQIBADAN\r\n  indented-line\nshort\n-----END KEY-----\n"]);
        assert_eq!(scrubber.scrub("read MIIEvQIBADAN"), "read ***");
        assert_eq!(scrubber.scrub("indented-line short"), "*** short");
    }

    #[test]
    fn of_overlapping_secrets_nothing_is_left() {
        let scrubber = knowing(&["password", "password123", "word123-suffix"]);
        assert_eq!(scrubber.scrub("x password123 y"), "x *** y");
        assert_eq!(scrubber.scrub("password123-suffix"), "***");
        assert_eq!(scrubber.scrub("é password é"), "é *** é");
    }

    #[test]
    fn encodings_of_a_secret_are_found() {
        let secret = "p@ss \"wörd\"/\\<5>&$x";
        let scrubber = knowing(&[secret]);
        let json = serde_json::to_string(secret).unwrap();
        for line in [
            format!("got {json} there"),
            "got \"p@ss \\\"wörd\\\"/\\\\\\u003c5\\u003e\\u0026$x\" there".to_owned(),
            "got \"p@ss%20%22w%C3%B6rd%22%2F%5C%3C5%3E%26%24x\" there".to_owned(),
            "got \"p%40ss%20%22w%c3%b6rd%22/%5C%3C5%3E&$x\" there".to_owned(),
            "got \"p@ss \"wörd\"/\\<5>&$$x\" there".to_owned(),
        ] {
            assert_eq!(scrubber.scrub(&line), "got \"***\" there", "{line}");
        }
    }

    #[test]
    fn base64_that_holds_a_secret_is_masked_whole() {
        let scrubber = knowing(&["ghp_0123456789abcdef"]);
        for user in ["", "x", "ab", "oauth2", "some.user"] {
            let header = STANDARD_NO_PAD.encode(format!("{user}:ghp_0123456789abcdef"));
            assert_eq!(
                scrubber.scrub(&format!("Authorization: Basic {header}==")),
                "Authorization: Basic ***",
                "{user}"
            );
            let header = URL_SAFE_NO_PAD.encode(format!("{user}ghp_0123456789abcdef tail"));
            assert_eq!(scrubber.scrub(&format!("({header})")), "(***)", "{user}");
        }
        let shortest = knowing(&["12345678"]);
        assert_eq!(shortest.scrub(&STANDARD_NO_PAD.encode("x12345678")), "***");
    }

    #[test]
    fn the_parts_of_a_url_are_secrets() {
        let mut scrubber = Scrubber::new();
        scrubber.learn_url("discord://aTokenWithoutDigits@123456789012345678");
        scrubber.learn_url("smtp://mailer:pa%24%24word@smtp.example.com:587/?from=a@example.com");
        scrubber.learn_url("https://ntfy.example.com/family-alarm/");
        scrubber.learn_url("https://hooks.example.com/services/T00000000/abcdefghijklmnopqrst?key=swordfish");
        for secret in [
            "aTokenWithoutDigits",
            "123456789012345678",
            "pa%24%24word",
            "pa$$word",
            "T00000000",
            "family-alarm",
            "abcdefghijklmnopqrst",
            "swordfish",
            "hooks.example.com/services/T00000000/abcdefghijklmnopqrst?key=swordfish",
        ] {
            assert_eq!(scrubber.scrub(&format!("<{secret}>")), "<***>", "{secret}");
        }
        for word in ["smtp.example.com", "services", "hooks.example.com", "discord"] {
            assert_eq!(scrubber.scrub(word), word);
        }
    }

    #[test]
    fn the_password_of_a_url_among_the_values_is_a_secret() {
        let scrubber = knowing(&["postgres://app:s3cret-word@db/app"]);
        assert_eq!(scrubber.scrub("password s3cret-word refused for app"), "password *** refused for app");
    }

    #[test]
    fn a_secret_across_a_cut_is_masked_on_both_sides() {
        let scrubber = knowing(&["abcdefghijkl"]);
        assert_eq!(scrubber.scrub("text abcdef…"), "text ***…");
        assert_eq!(scrubber.scrub("…ghijkl text"), "…*** text");
        assert_eq!(scrubber.scrub("…defg…"), "…***…");
        assert_eq!(scrubber.scrub("text abcdef"), "text abcdef", "a prefix is only a secret's where the line was cut");
        assert_eq!(scrubber.scrub("…"), "…");
    }

    #[test]
    fn pieces_of_an_over_long_line_never_show_a_secret() {
        let secret = "the-quick-brown-fox";
        let scrubber = knowing(&[secret]);
        for shift in 0..secret.len() {
            let line = format!("{}{secret}", " ".repeat(MAX_LINE_BYTES - shift));
            let pieces = [&line[..MAX_LINE_BYTES], &line[MAX_LINE_BYTES..]];
            let first = scrubber.scrub(&format!("{}{CUT}", pieces[0])).trim().to_owned();
            let second = scrubber.scrub(&format!("{CUT}{}", pieces[1])).into_owned();
            assert!(matches!(first.as_str(), "***…" | "…"), "{first}");
            assert_eq!(second, "…***");
        }
    }

    #[test]
    fn many_secrets_and_a_long_line_are_quick() {
        let values: Vec<String> = (0..2000).map(|number| format!("secret-value-{number}")).collect();
        let scrubber = knowing(&values.iter().map(String::as_str).collect::<Vec<_>>());
        let line = "a line of a child that says a lot ".repeat(200);
        let began = std::time::Instant::now();
        for _ in 0..100 {
            assert!(matches!(scrubber.scrub(&line), Cow::Borrowed(_)));
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }
}
