//! Project files for the tests.

use std::path::Path;

use super::docker::Stack;

/// A repository of a project file.
#[derive(Clone)]
pub struct Entry {
    name: String,
    fields: Vec<(String, String)>,
}

impl Entry {
    /// A repository that is checked every second and whose containers need to stay up for one.
    pub fn new(name: &str, url: &str, stack: &Stack) -> Entry {
        let entry = Entry { name: name.to_owned(), fields: Vec::new() };
        entry
            .field("url", url)
            .field("compose_project", &stack.name)
            .field("check_interval", "1")
            .field("settle_time", "1")
            .field("health_timeout", "30")
    }

    /// Sets a field, in flow style where it is more than a word.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Entry {
        self.fields.retain(|(key, _)| key != name);
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes a field away.
    #[must_use]
    pub fn without(mut self, name: &str) -> Entry {
        self.fields.retain(|(key, _)| key != name);
        self
    }

    /// Sets where its working tree lies.
    #[must_use]
    pub fn local_path(self, folder: &Path) -> Entry {
        self.field("local_path", &folder.to_string_lossy())
    }

    /// Looks at the remote once an hour: only what is asked for is deployed after the first time.
    #[must_use]
    pub fn rarely_checked(self) -> Entry {
        self.field("check_interval", "3600")
    }
}

/// A project file with `head` (further top-level fields, each a line) before its repositories.
pub fn project_file(project: &str, head: &str, entries: &[Entry]) -> String {
    let mut text = format!("project: {project}\n{head}");
    if entries.is_empty() {
        text.push_str("repositories: {}\n");
        return text;
    }
    text.push_str("repositories:\n");
    for entry in entries {
        text.push_str(&format!("  {}:\n", entry.name));
        for (name, value) in &entry.fields {
            text.push_str(&format!("    {name}: {value}\n"));
        }
    }
    text
}
