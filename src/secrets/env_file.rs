//! Variables from env files: dotenv as Compose reads it, or flat YAML or JSON; and the env file that Compose reads them
//! from.

mod dotenv;
mod expand;
mod flat;

use super::Secret;

pub use dotenv::parse_dotenv;
pub use flat::{parse_json_flat, parse_yaml_flat};

/// A variable and its value.
pub type Variable = (String, Secret);

/// What is wrong with an env file, in one place of it; never with a value in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct EnvFileError {
    /// 1 for the first line.
    pub line: usize,
    /// What is wrong, and the way out.
    pub message: String,
}

/// Where `${NAME}` in a dotenv file finds what the file itself does not set.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Variables from elsewhere: of the files before, of the process that would run Compose.
    pub lookup: &'a dyn Fn(&str) -> Option<String>,
    /// `unset_variables: blank`: a variable that nobody sets is blank, as in Compose; else it is an error.
    pub blank_unset: bool,
}

/// How a file's text becomes variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// `NAME=value` lines, with Compose's quotes, escapes and `${NAME}`.
    Dotenv,
    /// A mapping of names to scalars, taken literally.
    Yaml,
    /// An object of names to scalars, taken literally.
    Json,
}

impl Syntax {
    /// From the end of a file's name, without `.enc` and `.sops`.
    pub fn of_name(plain_name: &str) -> Syntax {
        match plain_name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).as_deref() {
            Some("yaml" | "yml") => Syntax::Yaml,
            Some("json") => Syntax::Json,
            _ => Syntax::Dotenv,
        }
    }
}

/// Reads the variables of a file's text, the last value of a name counting.
///
/// # Errors
/// The first problem.
pub fn parse(text: &str, syntax: Syntax, surroundings: Surroundings<'_>) -> Result<Vec<Variable>, EnvFileError> {
    match syntax {
        Syntax::Dotenv => parse_dotenv(text, surroundings),
        Syntax::Yaml => parse_yaml_flat(text),
        Syntax::Json => parse_json_flat(text),
    }
}

/// An env file from which every Compose v2 reads back exactly these values, whatever is in them: one line a variable,
/// double quotes, and an escape for each character that means something there. (Single quotes cannot hold a backslash
/// at the end.)
pub fn render<'a>(variables: impl IntoIterator<Item = (&'a str, &'a Secret)>) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        text.push_str(name);
        text.push_str("=\"");
        for character in value.expose().chars() {
            match character {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '"' | '\\' | '$' => text.extend(['\\', character]),
                other => text.push(other),
            }
        }
        text.push_str("\"\n");
    }
    text
}

/// Sets a variable, in place of an earlier value.
fn set(variables: &mut Vec<Variable>, name: &str, value: String) {
    let value = Secret::new(value);
    match variables.iter_mut().find(|(known, _)| known == name) {
        Some((_, earlier)) => *earlier = value,
        None => variables.push((name.to_owned(), value)),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests;
