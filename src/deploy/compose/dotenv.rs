//! Variables as the dotenv file that Compose reads with `--env-file`.

use std::collections::BTreeMap;

use crate::secrets::Secret;

/// The file's text. Every value stands in double quotes, and Compose reads back exactly the value: `$`, quotes, backslashes and line
/// breaks included (inside double quotes its parser undoes `\\`, `\"`, `\$` and `\r`, and keeps everything else).
///
/// # Errors
/// A name that such a file cannot carry, in one line.
pub fn render(variables: &BTreeMap<String, Secret>) -> Result<String, String> {
    let mut text = String::new();
    for (name, value) in variables {
        if !is_name(name) {
            return Err(format!(
                "`{}` cannot be the name of a variable: use letters, digits, `_`, `.` and `-`",
                name.escape_debug()
            ));
        }
        text.push_str(name);
        text.push_str("=\"");
        for character in value.expose().chars() {
            match character {
                '\\' | '"' | '$' => text.extend(['\\', character]),
                // Compose turns a carriage return before a line feed into nothing.
                '\r' => text.push_str("\\r"),
                _ => text.push(character),
            }
        }
        text.push_str("\"\n");
    }
    Ok(text)
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !name.is_empty() && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> Result<String, String> {
        render(&BTreeMap::from([(name.to_owned(), Secret::new(value))]))
    }

    #[test]
    fn quotes_what_compose_would_read_otherwise() {
        assert_eq!(one("A", "plain").unwrap(), "A=\"plain\"\n");
        assert_eq!(one("A", r#"pa$word "x" \n"#).unwrap(), "A=\"pa\\$word \\\"x\\\" \\\\n\"\n");
        assert_eq!(one("A", "a\r\nb").unwrap(), "A=\"a\\r\nb\"\n");
    }

    #[test]
    fn refuses_names_that_would_become_something_else() {
        for name in ["", "A B", "A=B", "A\nB", "#A"] {
            assert!(one(name, "x").is_err(), "{name:?}");
        }
    }
}
