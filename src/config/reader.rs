//! Reads the values of a project file as the types of their fields, and collects everything that is wrong on the way.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Environment;
use super::problem::{Problem, Severity};
use super::suggest::did_you_mean;
use super::template::{Template, Unresolved};
use super::variables::{MAX_SECONDS, boolean};
use super::yaml::{Entry, Map, Node, Value};

/// How much of a wrong value a message repeats.
const MAX_SHOWN_CHARACTERS: usize = 60;

/// A value, the path of its field and its line.
#[derive(Clone, Debug)]
pub(super) struct At<'n> {
    /// `repositories.media-stack.check_interval`.
    pub(super) field: String,
    pub(super) line: usize,
    pub(super) node: &'n Node,
}

/// A map whose keys are fields, every one of them known.
#[derive(Clone, Debug)]
pub(super) struct Section<'n> {
    pub(super) field: String,
    pub(super) line: usize,
    map: &'n Map,
}

impl<'n> Section<'n> {
    /// A field that is given; one without a value is not.
    pub(super) fn get(&self, name: &str) -> Option<At<'n>> {
        let entry = self.map.get(name).filter(|entry| entry.value.value != Value::Null)?;
        Some(at_entry(&self.field, entry))
    }
}

/// What is read, and what is wrong with it.
pub(super) struct Reader<'a> {
    file: &'a Path,
    pub(super) environment: &'a Environment,
    /// How grave a name is that is not set and has no default.
    unset_names: Severity,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Path, environment: &'a Environment, unset_names: Severity) -> Reader<'a> {
        Reader { file, environment, unset_names, problems: Vec::new() }
    }

    /// Every problem once, by line: what an alias repeats is found several times.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut seen = BTreeSet::new();
        let mut problems = self.problems;
        problems.retain(|problem| seen.insert((problem.line, problem.field.clone(), problem.message.clone())));
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    pub(super) fn error(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.report(Some(at.line), at.field.clone(), Severity::Error, message.into());
    }

    pub(super) fn warning(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.report(Some(at.line), at.field.clone(), Severity::Warning, message.into());
    }

    pub(super) fn report(&mut self, line: Option<usize>, field: String, severity: Severity, message: String) {
        self.problems.push(Problem { file: self.file.to_owned(), line, field, severity, message });
    }

    /// A map whose keys are the fields `known`; keys that begin with `x-` are ignored.
    pub(super) fn section<'n>(&mut self, at: &At<'n>, known: &[&str]) -> Option<Section<'n>> {
        let map = self.map(at)?;
        for entry in map.entries.iter().filter(|entry| !is_ignored(&entry.key)) {
            if !known.contains(&entry.key.as_str()) {
                let suggestion = did_you_mean(&entry.key, known.iter().copied());
                self.error(&at_entry(&at.field, entry), format!("no such field{suggestion}"));
            }
        }
        Some(Section { field: at.field.clone(), line: at.line, map })
    }

    /// A map whose keys are names that somebody chose; keys that begin with `x-` are ignored.
    pub(super) fn named<'n>(&mut self, at: &At<'n>) -> Vec<(&'n str, At<'n>)> {
        let Some(map) = self.map(at) else {
            return Vec::new();
        };
        let entries = map.entries.iter().filter(|entry| !is_ignored(&entry.key));
        entries.map(|entry| (entry.key.as_str(), at_entry(&at.field, entry))).collect()
    }

    /// A single value or a list of them.
    pub(super) fn one_or_more<'n>(&mut self, at: &At<'n>) -> Vec<At<'n>> {
        match &at.node.value {
            Value::List(items) => {
                let item = |(index, node): (usize, &'n Node)| {
                    let field = format!("{}[{index}]", at.field);
                    At { field, line: node.line, node }
                };
                items.iter().enumerate().map(item).collect()
            }
            _ => vec![at.clone()],
        }
    }

    /// A value whose names can be resolved now, and are resolved again at each use.
    pub(super) fn template(&mut self, at: &At<'_>) -> Option<Template> {
        self.resolved(at, self.unset_names).map(|(template, _)| template)
    }

    /// Like [`Reader::template`], for values that the file can do without: a name that is not set is a warning.
    pub(super) fn optional_template(&mut self, at: &At<'_>) -> Option<Template> {
        let template = self.source(at)?;
        match template.value(self.environment) {
            Ok(value) if value.expose().is_empty() => None,
            Ok(_) => Some(template),
            Err(Unresolved::Unreadable(message)) => {
                self.warning(at, message);
                Some(template)
            }
            Err(unset) => {
                self.warning(at, unset.to_string());
                None
            }
        }
    }

    /// A template, and what it is now. Both may be secret.
    pub(super) fn secret(&mut self, at: &At<'_>) -> Option<(Template, String)> {
        self.resolved(at, self.unset_names)
    }

    /// A text without control characters.
    pub(super) fn text(&mut self, at: &At<'_>) -> Option<String> {
        self.parsed(at, "a text in one line", |text| {
            let text = text.trim();
            (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
        })
    }

    /// A value that `parse` accepts.
    pub(super) fn parsed<T>(
        &mut self,
        at: &At<'_>,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (template, value) = self.resolved(at, self.unset_names)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.error(at, format!("`{}` is not valid; expected {expected}", shown(template.source())));
        }
        parsed
    }

    pub(super) fn whole_number(&mut self, at: &At<'_>, range: RangeInclusive<i64>) -> Option<i64> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.parsed(at, &expected, |text| text.trim().parse().ok().filter(|number| range.contains(number)))
    }

    pub(super) fn seconds(&mut self, at: &At<'_>, least: u64) -> Option<Duration> {
        let expected = format!("a whole number of seconds from {least} to {MAX_SECONDS}");
        let range = least..=MAX_SECONDS;
        self.parsed(at, &expected, |text| text.trim().parse().ok().filter(|seconds| range.contains(seconds)))
            .map(Duration::from_secs)
    }

    pub(super) fn boolean(&mut self, at: &At<'_>) -> Option<bool> {
        self.parsed(at, "true or false", |text| boolean(text.trim()))
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, at: &At<'_>, words: &[(&str, T)]) -> Option<T> {
        let (template, value) = self.resolved(at, self.unset_names)?;
        let found = words.iter().find(|(word, _)| *word == value.trim()).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let accepted: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let accepted = match accepted.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                _ => accepted.join(""),
            };
            let suggestion = did_you_mean(template.source(), words.iter().map(|(word, _)| *word));
            self.error(at, format!("`{}` is not valid; expected {accepted}{suggestion}", shown(template.source())));
        }
        found
    }

    /// An absolute path of this host.
    pub(super) fn host_path(&mut self, at: &At<'_>) -> Option<PathBuf> {
        self.parsed(at, "an absolute path of this host", |text| {
            let path = Path::new(text.trim());
            (path.is_absolute() && !text.contains(char::is_control)).then(|| path.to_owned())
        })
    }

    /// Reports a value that is no map, and keys that are there twice.
    fn map<'n>(&mut self, at: &At<'n>) -> Option<&'n Map> {
        let Value::Map(map) = &at.node.value else {
            self.error(at, format!("expected a map (`name: value`), found {}", at.node.value.kind()));
            return None;
        };
        for double in map.duplicates.iter().filter(|double| !is_ignored(&double.key)) {
            let message = format!("given twice, first on line {}; remove one of them", double.first_line);
            self.report(Some(double.line), joined(&at.field, &double.key), Severity::Error, message);
        }
        Some(map)
    }

    fn source(&mut self, at: &At<'_>) -> Option<Template> {
        let Value::Scalar(text) = &at.node.value else {
            self.error(at, format!("expected a single value, found {}", at.node.value.kind()));
            return None;
        };
        let template = Template::new(text.as_str());
        if let Some(unfit) = template.unfit() {
            // A default in another tool's form may hold a secret: only the beginning is repeated.
            let start: String =
                unfit.chars().take_while(|character| !matches!(character, ':' | '-' | '?' | '+')).collect();
            let forms = "only ${NAME}, ${ENV.NAME} and ${NAME:-default} are replaced; write $${ for a literal ${";
            self.warning(at, format!("`{}…` stays as it is: {forms}", shown(start.trim_end_matches('}'))));
        }
        Some(template)
    }

    fn resolved(&mut self, at: &At<'_>, unset_names: Severity) -> Option<(Template, String)> {
        let template = self.source(at)?;
        match template.value(self.environment) {
            Ok(value) => {
                let value = value.expose().to_owned();
                Some((template, value))
            }
            Err(unresolved) => {
                self.report(Some(at.line), at.field.clone(), unset_names, unresolved.to_string());
                None
            }
        }
    }
}

/// `field` inside `section`.
pub(super) fn joined(section: &str, field: &str) -> String {
    if section.is_empty() { field.to_owned() } else { format!("{section}.{field}") }
}

/// A text of the file in a message: cut, without line breaks.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MAX_SHOWN_CHARACTERS)
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect();
    if text.chars().nth(MAX_SHOWN_CHARACTERS).is_some() {
        shown.push('…');
    }
    shown
}

pub(super) fn at_entry<'n>(section: &str, entry: &'n Entry) -> At<'n> {
    At { field: joined(section, &entry.key), line: entry.line, node: &entry.value }
}

fn is_ignored(key: &str) -> bool {
    key.starts_with("x-")
}
