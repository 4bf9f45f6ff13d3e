//! Interpolation: `${NAME}` in a configured value.

use super::Environment;
use crate::secrets::Secret;

/// A configured value with its `${NAME}`s still in it, so that a rotated secret is picked up at the next use.
#[derive(Clone, PartialEq, Eq)]
pub struct Template(String);

/// Why a template has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// This name is not set and has no default.
    Unset(String),
    /// A file behind a name cannot be read; one line.
    Unreadable(String),
}

impl Template {
    /// Keeps the text as it stands.
    pub fn new(text: impl Into<String>) -> Template {
        Template(text.into())
    }

    /// The value: `${NAME}`, `${ENV.NAME}` and `${NAME:-default}` replaced, `$${` made `${`; every other `$` stays.
    /// What a name stands for is looked up by [`Environment::secret`]; `${HOSTNAME}` always exists.
    ///
    /// # Errors
    /// The name that is not set and has no default, or a file behind it that cannot be read.
    pub fn resolve(&self, environment: &Environment) -> Result<Secret, String> {
        self.value(environment).map_err(|unresolved| unresolved.to_string())
    }

    pub(super) fn value(&self, environment: &Environment) -> Result<Secret, Unresolved> {
        let mut value = String::with_capacity(self.0.len());
        for piece in pieces(&self.0) {
            match piece {
                Piece::Text(text) => value.push_str(text),
                Piece::Unfit(text) => value.push_str(text),
                Piece::Name { name, default } => match lookup(environment, name).map_err(Unresolved::Unreadable)? {
                    Some(found) => value.push_str(found.expose()),
                    None => value.push_str(default.ok_or_else(|| Unresolved::Unset(name.to_owned()))?),
                },
            }
        }
        Ok(Secret::new(value))
    }

    /// The text as it stands in the file, for messages about fields that are no secrets.
    pub(super) fn source(&self) -> &str {
        &self.0
    }

    /// The first `${…}` that looks like a name to be replaced and is none of the accepted forms, so that it stays as it
    /// is.
    pub(super) fn unfit(&self) -> Option<&str> {
        pieces(&self.0).find_map(|piece| match piece {
            Piece::Unfit(text) => Some(text),
            Piece::Text(_) | Piece::Name { .. } => None,
        })
    }
}

impl std::fmt::Debug for Template {
    /// A template may be a token that was written into the file.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Template(…)")
    }
}

impl std::fmt::Display for Unresolved {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unresolved::Unset(name) => write!(
                formatter,
                "{name} is not set: set it, {name}_FILE or the systemd credential `{}`, or write `${{{name}:-default}}`",
                Environment::credential_name(name)
            ),
            Unresolved::Unreadable(message) => formatter.write_str(message),
        }
    }
}

fn lookup(environment: &Environment, name: &str) -> Result<Option<Secret>, String> {
    let found = environment.secret(name)?;
    Ok(found.or_else(|| (name == "HOSTNAME").then(|| Secret::new(super::settings::hostname()))))
}

enum Piece<'a> {
    /// Stays.
    Text(&'a str),
    /// Stays as well: a `${…}` of another form.
    Unfit(&'a str),
    /// Is replaced.
    Name { name: &'a str, default: Option<&'a str> },
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, length) = first_piece(rest);
        rest = &rest[length..];
        Some(piece)
    })
}

/// The first piece of a text that is not empty, and how many bytes of the text it takes.
fn first_piece(text: &str) -> (Piece<'_>, usize) {
    if text.starts_with("$${") {
        return (Piece::Text("${"), 3);
    }
    if let Some(inside) = text.strip_prefix("${") {
        let Some(end) = inside.find('}') else {
            return (Piece::Text("${"), 2);
        };
        let (whole, inside) = (&text[..end + 3], &inside[..end]);
        let inside = inside.strip_prefix("ENV.").unwrap_or(inside);
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let piece = if is_name(name) { Piece::Name { name, default } } else { Piece::Unfit(whole) };
        return (piece, whole.len());
    }
    // A `$` that begins nothing stays, and so does everything up to the next one.
    let next = text.char_indices().skip(1).find(|(_, character)| *character == '$').map_or(text.len(), |(at, _)| at);
    (Piece::Text(&text[..next]), next)
}

/// Whether a text can be the name of a variable.
pub(super) fn is_name(text: &str) -> bool {
    !text.starts_with(|first: char| first.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<String, String> {
        let environment = Environment::from_pairs([("NAME", "value"), ("DOLLAR", "${NAME}"), ("EMPTY", "")]);
        Template::new(text).resolve(&environment).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn names_are_replaced_and_every_other_dollar_stays() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("${NAME}", "value"),
            ("${ENV.NAME}", "value"),
            ("a${NAME}b${NAME}c", "avaluebvaluec"),
            ("${MISSING:-fallback}", "fallback"),
            ("${MISSING:-}", ""),
            ("${ENV.MISSING:-a:-b}", "a:-b"),
            ("${EMPTY:-fallback}", "fallback"),
            ("${NAME:-fallback}", "value"),
            ("$${NAME}", "${NAME}"),
            ("$$${NAME}", "$${NAME}"),
            ("$NAME $5 $ $$ ü$ü", "$NAME $5 $ $$ ü$ü"),
            ("üb${NAME}", "übvalue"),
            ("${NAME", "${NAME"),
            ("${not a name} ${NAME-x} ${}", "${not a name} ${NAME-x} ${}"),
            // What a name stands for is not read again.
            ("${DOLLAR}", "${NAME}"),
        ] {
            assert_eq!(resolved(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_name_that_is_not_set_is_an_error_that_says_where_it_can_come_from() {
        let error = resolved("x${MISSING}").expect_err("it is not set");
        assert_eq!(
            error,
            "MISSING is not set: set it, MISSING_FILE or the systemd credential `missing`, or write `${MISSING:-default}`"
        );
        assert!(resolved("${EMPTY}").is_err(), "an empty value counts as unset");
    }

    #[test]
    fn the_host_name_always_exists_and_the_environment_wins() {
        let empty = Environment::default();
        let name = Template::new("${HOSTNAME}").resolve(&empty).expect("a host name");
        assert_eq!(name.expose(), super::super::settings::hostname());
        let named = Environment::from_pairs([("HOSTNAME", "pi")]);
        assert_eq!(Template::new("${HOSTNAME}").resolve(&named).expect("a host name").expose(), "pi");
    }

    #[test]
    fn forms_of_other_tools_are_pointed_out() {
        assert_eq!(Template::new("a ${NAME:?must be set} b").unfit(), Some("${NAME:?must be set}"));
        assert_eq!(Template::new("${NAME} $${X-} $5 ${open").unfit(), None);
    }

    #[test]
    fn it_does_not_print_what_it_holds() {
        assert_eq!(format!("{:?}", Template::new("hunter22")), "Template(…)");
    }
}
