//! Flat YAML and JSON: names and scalars, nothing else, every scalar as it is written.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::value::RawValue;

use super::{EnvFileError, Variable, line_of, set};

/// Reads a YAML mapping of names to scalars. Numbers and booleans keep their spelling (`1.10` stays that), null is
/// blank.
///
/// # Errors
/// YAML that does not parse, a name that is none, and the first name whose value is not a scalar.
pub fn parse_yaml_flat(text: &str) -> Result<Vec<Variable>, EnvFileError> {
    let mut variables = Vec::new();
    let mut anchors: BTreeMap<usize, String> = BTreeMap::new();
    let mut name: Option<String> = None;
    let mut inside = false;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| EnvFileError {
            line: error.marker().line(),
            message: "this is no valid YAML; a value with `:`, `#` or quotes in it needs quotes around it".to_owned(),
        })?;
        let fail = |message: String| EnvFileError { line: span.start.line(), message };
        let (value, anchor) = match event {
            Event::MappingStart(..) if !inside => {
                inside = true;
                continue;
            }
            Event::MappingStart(..) | Event::SequenceStart(..) => return Err(fail(not_a_scalar(name.as_deref()))),
            Event::Scalar(value, style, anchor, _) if inside => {
                let is_null = style == ScalarStyle::Plain && matches!(&*value, "" | "~" | "null" | "Null" | "NULL");
                (if is_null { String::new() } else { value.into_owned() }, anchor)
            }
            Event::Alias(anchor) if inside => match anchors.get(&anchor) {
                Some(value) => (value.clone(), 0),
                None => return Err(fail(not_a_scalar(name.as_deref()))),
            },
            // An empty document.
            Event::Scalar(value, ScalarStyle::Plain, ..) if value.is_empty() => continue,
            Event::Scalar(..) | Event::Alias(_) => return Err(fail("expected `NAME: value` lines".to_owned())),
            Event::DocumentStart(_) if !variables.is_empty() => {
                return Err(fail("expected one YAML document".to_owned()));
            }
            Event::MappingEnd => {
                inside = false;
                continue;
            }
            _ => continue,
        };
        if anchor > 0 {
            anchors.insert(anchor, value.clone());
        }
        match name.take() {
            None => name = Some(value),
            Some(name) => {
                check(&name, &value).map_err(fail)?;
                set(&mut variables, &name, value);
            }
        }
    }
    Ok(variables)
}

/// Reads a JSON object of names to scalars. Numbers and booleans keep their spelling, null is blank.
///
/// # Errors
/// JSON that does not parse, a name that is none, and the first name whose value is not a scalar.
pub fn parse_json_flat(text: &str) -> Result<Vec<Variable>, EnvFileError> {
    let text = text.trim_start_matches('\u{feff}');
    // The parser's own words may quote the text.
    let object: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|error| EnvFileError {
        line: error.line(),
        message: "expected a JSON object of names and values".to_owned(),
    })?;
    let mut variables = Vec::with_capacity(object.len());
    for (name, raw) in object {
        let raw = raw.get();
        let line = line_of(text, raw.as_ptr() as usize - text.as_ptr() as usize);
        let fail = |message: String| EnvFileError { line, message };
        let value = match raw.as_bytes().first() {
            Some(b'{' | b'[') => return Err(fail(not_a_scalar(Some(&name)))),
            Some(b'"') => {
                serde_json::from_str(raw).map_err(|_| fail(format!("the value of `{name}` is no valid text")))?
            }
            _ if raw == "null" => String::new(),
            _ => raw.to_owned(),
        };
        check(&name, &value).map_err(fail)?;
        set(&mut variables, &name, value);
    }
    Ok(variables)
}

fn not_a_scalar(name: Option<&str>) -> String {
    match name {
        Some(name) => format!("the value of `{name}` is not a single value; an env file is flat"),
        None => "expected `NAME: value`; an env file is flat".to_owned(),
    }
}

fn check(name: &str, value: &str) -> Result<(), String> {
    let allowed = |character: char| character.is_alphanumeric() || "_.-".contains(character);
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(format!("`{name}` is not a variable's name: letters, digits, `_`, `.`, `-`"));
    }
    if value.contains('\0') { Err(format!("the value of `{name}` holds a NUL character")) } else { Ok(()) }
}
