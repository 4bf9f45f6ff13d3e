//! What is wrong with a project file.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// What is wrong with a project file, in one place of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, or the folder.
    pub file: PathBuf,
    /// 1 for the first line; none where the whole file is meant.
    pub line: Option<usize>,
    /// `repositories.media-stack.check_interval`; empty where the whole file is meant.
    pub field: String,
    /// Whether the file can be used all the same.
    pub severity: Severity,
    /// What is wrong, what was expected, and a suggestion where there is one.
    pub message: String,
}

/// How grave a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is used, but somebody should look at it.
    Warning,
    /// The file is not used: its project goes on with its last good version, or is absent.
    Error,
}

impl fmt::Display for Problem {
    /// `FILE:LINE: FIELD: MESSAGE`, in one line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(formatter, "{line}:")?;
        }
        if !self.field.is_empty() {
            write!(formatter, " {}:", self.field)?;
        }
        write!(formatter, " {}", self.message)
    }
}
