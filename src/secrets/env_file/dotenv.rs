//! The dotenv files of Compose v2: a statement need not be a line, quotes may span lines.

use super::expand::Expansion;
use super::{EnvFileError, Surroundings, Variable, line_of, set};

/// Reads a dotenv file as Compose v2 does: `export`, `NAME=value` or `NAME: value`, comments, single and double quotes,
/// escapes, and `$NAME`, `${NAME:-default}` and the like outside single quotes, which find the file's own variables
/// first.
///
/// # Errors
/// The first problem: among others a variable that is used and that nobody sets, which Compose makes blank with a
/// warning.
pub fn parse_dotenv(text: &str, surroundings: Surroundings<'_>) -> Result<Vec<Variable>, EnvFileError> {
    let mut parser = Parser { text, position: 0, variables: Vec::new(), surroundings };
    if text.starts_with('\u{feff}') {
        parser.position = '\u{feff}'.len_utf8();
    }
    while parser.skip_to_statement() {
        parser.statement()?;
    }
    Ok(parser.variables)
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
    variables: Vec<Variable>,
    surroundings: Surroundings<'a>,
}

impl<'a> Parser<'a> {
    /// Skips white space and comments; `false` at the end of the file.
    fn skip_to_statement(&mut self) -> bool {
        loop {
            self.position = self.text.len() - self.rest().trim_start().len();
            match self.rest().strip_prefix('#') {
                Some(comment) => self.position += 1 + comment.find('\n').unwrap_or(comment.len()),
                None => return !self.rest().is_empty(),
            }
        }
    }

    fn statement(&mut self) -> Result<(), EnvFileError> {
        let start = self.position;
        let (name, has_value) = self.name()?;
        let value = if has_value {
            Some(self.value(start)?)
        } else {
            // A name alone takes the value over from where Compose runs.
            (self.surroundings.lookup)(name)
        };
        match value {
            Some(value) if value.contains('\0') => {
                Err(self.error(start, format!("the value of `{name}` holds a NUL character")))
            }
            Some(value) => {
                set(&mut self.variables, name, value);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Reads the name up to its `=` or `:`, or alone on its line.
    fn name(&mut self) -> Result<(&'a str, bool), EnvFileError> {
        if let Some(after) = self.rest().strip_prefix("export").filter(|after| after.starts_with(is_blank)) {
            self.position = self.text.len() - after.trim_start_matches(is_blank).len();
        }
        let start = self.position;
        let rest = self.rest();
        let end = rest.find(['=', ':', '\n']).unwrap_or(rest.len());
        let name = rest[..end].trim_end();
        let allowed = |character: char| character.is_alphanumeric() || "_.-[]".contains(character);
        if name.is_empty() || !name.chars().all(allowed) {
            let problem = "expected `NAME=value`: a name has letters, digits, `_`, `.`, `-`; a value of several lines needs quotes";
            return Err(self.error(start, problem));
        }
        let separator = rest[end..].chars().next();
        self.position += end + separator.map_or(0, char::len_utf8);
        Ok((name, matches!(separator, Some('=' | ':'))))
    }

    fn value(&mut self, statement: usize) -> Result<String, EnvFileError> {
        self.position = self.text.len() - self.rest().trim_start_matches(is_blank).len();
        let (raw, quote) = match self.rest().chars().next() {
            Some(quote @ ('"' | '\'')) => (self.quoted(quote, statement)?, Some(quote)),
            _ => (self.unquoted().to_owned(), None),
        };
        let raw = match quote {
            Some('\'') => return Ok(raw),
            Some(_) => unescape(&raw),
            None => raw,
        };
        let own = |name: &str| {
            self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.expose().to_owned())
        };
        let lookup = |name: &str| own(name).or_else(|| (self.surroundings.lookup)(name));
        let expansion = Expansion { lookup: &lookup, blank_unset: self.surroundings.blank_unset };
        expansion.expand(&raw).map_err(|problem| self.error(statement, problem))
    }

    /// The rest of the line without a comment.
    fn unquoted(&mut self) -> &'a str {
        let rest = self.rest();
        let line = rest.split('\n').next().unwrap_or(rest);
        self.position += line.len();
        line.split(" #").next().unwrap_or(line).trim_end()
    }

    /// What lies between two quotes. A backslash keeps a quote from ending it, and stays before everything else.
    fn quoted(&mut self, quote: char, statement: usize) -> Result<String, EnvFileError> {
        let mut value = String::new();
        let mut characters = self.rest().char_indices().skip(1);
        while let Some((index, character)) = characters.next() {
            if character == quote {
                self.position += index + 1;
                return Ok(value);
            }
            if character != '\\' {
                value.push(character);
                continue;
            }
            match characters.next() {
                Some((_, escaped)) if escaped == quote => value.push(quote),
                Some((_, other)) => value.extend(['\\', other]),
                None => break,
            }
        }
        Err(self.error(statement, "a quoted value has no end"))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn error(&self, offset: usize, message: impl Into<String>) -> EnvFileError {
        EnvFileError { line: line_of(self.text, offset), message: message.into() }
    }
}

/// The escapes of double quotes; `\$` becomes the `$$` that the expansion takes for a `$`, and unknown ones stay.
fn unescape(raw: &str) -> String {
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('\\') {
        value.push_str(before);
        let (meaning, length) = match after.as_bytes().first() {
            Some(b'a') => ("\u{7}", 1),
            Some(b'b') => ("\u{8}", 1),
            Some(b'f') => ("\u{c}", 1),
            Some(b'n') => ("\n", 1),
            Some(b'r') => ("\r", 1),
            Some(b't') => ("\t", 1),
            Some(b'v') => ("\u{b}", 1),
            Some(b'"') => ("\"", 1),
            Some(b'\\') => ("\\", 1),
            Some(b'$') => ("$$", 1),
            _ => match octal(after) {
                Some(character) => {
                    value.push(character);
                    ("", 4)
                }
                None => ("\\", 0),
            },
        };
        value.push_str(meaning);
        rest = &after[length..];
    }
    value.push_str(rest);
    value
}

/// `0` and three octal digits, up to 377.
fn octal(text: &str) -> Option<char> {
    let digits = text.strip_prefix('0')?.get(..3)?;
    let digits = digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(digits)?;
    u8::from_str_radix(digits, 8).ok().map(char::from)
}

/// White space within a line.
fn is_blank(character: char) -> bool {
    character.is_whitespace() && character != '\n'
}
