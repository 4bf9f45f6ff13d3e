//! What people are told.

use std::fmt::Write;
use std::time::Duration;

use serde_json::json;

use crate::model::{Commit, RepositoryName};

/// The last lines of a log that a message takes.
const MAX_LOG_LINES: usize = 20;
/// A longer line, error or subject is cut: services refuse messages that are too long.
const MAX_LINE_CHARACTERS: usize = 300;
/// All of a message's log lines together.
const MAX_LOG_CHARACTERS: usize = 2500;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A commit was deployed.
    Success,
    /// A commit was deployed, after people were told of a failure.
    WellAgain,
    /// A deployment failed.
    Failure,
    /// Checks of the remote have failed for an hour.
    ChecksFail,
    /// Docker has not answered for ten minutes.
    DockerAway,
    /// Somebody wants to know whether messages arrive.
    Test,
}

impl Event {
    /// The word in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Event::Success => "success",
            Event::WellAgain => "well_again",
            Event::Failure => "failure",
            Event::ChecksFail => "checks_fail",
            Event::DockerAway => "docker_away",
            Event::Test => "test",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Event::Success => "deployed",
            Event::WellAgain => "well again",
            Event::Failure => "deployment failed",
            Event::ChecksFail => "the remote cannot be checked",
            Event::DockerAway => "Docker does not answer, deployments wait",
            Event::Test => "this is a test message",
        }
    }
}

/// A message; its texts have been through the scrubber.
#[derive(Clone, Debug)]
pub struct Message {
    /// This machine.
    pub host: String,
    /// Whom it is about; none: the whole machine.
    pub repository: Option<RepositoryName>,
    /// What happened.
    pub event: Event,
    /// Where one is known.
    pub commit: Option<Commit>,
    /// Who asked for the deployment, where that is known.
    pub actor: Option<String>,
    /// How long the deployment took.
    pub duration: Option<Duration>,
    /// Why it failed, in one line.
    pub error: Option<String>,
    /// The last lines of the log, on a failure.
    pub last_lines: Vec<String>,
}

impl Message {
    /// `media/stack: deployed abc1234 (pi4)`.
    pub fn title(&self) -> String {
        let commit = self.commit.as_ref().map(|commit| format!(" {}", commit.hash.short())).unwrap_or_default();
        match &self.repository {
            Some(name) => format!("{name}: {}{commit} ({})", self.event.in_words(), self.host),
            None => format!("{}: {}", self.host, self.event.in_words()),
        }
    }

    /// The whole message, for people; the title is not repeated by all services, so its facts are in here too.
    pub fn text(&self) -> String {
        let mut text = match &self.repository {
            Some(name) => format!("{name} on {}: {}", self.host, self.event.in_words()),
            None => format!("{}: {}", self.host, self.event.in_words()),
        };
        // Writing to a String does not fail.
        if let Some(commit) = &self.commit {
            let _ =
                write!(text, "\nCommit: {} {} ({})", commit.hash.short(), line(&commit.subject), line(&commit.author));
        }
        if let Some(actor) = &self.actor {
            let _ = write!(text, "\nAsked by: {}", line(actor));
        }
        if let Some(duration) = self.duration {
            let _ = write!(text, "\nDuration: {}", in_words(duration));
        }
        if let Some(error) = &self.error {
            let _ = write!(text, "\nError: {}", line(error));
        }
        let log = self.log();
        if !log.is_empty() {
            let _ = write!(text, "\n\nLast lines of the log:\n{}", log.join("\n"));
        }
        text
    }

    /// What an `https://` or `http://` URL gets. Every field is always there, null where it means nothing:
    ///
    /// | field | |
    /// |---|---|
    /// | `event` | [`Event::as_str`] |
    /// | `title`, `text` | the message for people; `text` is what Slack and Mattermost show |
    /// | `host` | this machine |
    /// | `project`, `repository` | whom it is about |
    /// | `commit` | `{hash, subject, author}` |
    /// | `actor` | who asked for the deployment |
    /// | `duration_seconds` | of the deployment |
    /// | `error` | one line |
    /// | `log` | the last lines, on a failure |
    pub fn json(&self) -> String {
        json!({
            "event": self.event.as_str(),
            "title": self.title(),
            "text": self.text(),
            "host": self.host,
            "project": self.repository.as_ref().map(|name| &name.project),
            "repository": self.repository.as_ref().map(|name| &name.name),
            "commit": self.commit,
            "actor": self.actor,
            "duration_seconds": self.duration.map(|duration| duration.as_secs()),
            "error": self.error,
            "log": self.log(),
        })
        .to_string()
    }

    /// The newest lines that fit.
    fn log(&self) -> Vec<String> {
        let mut room = MAX_LOG_CHARACTERS;
        let mut lines: Vec<String> = Vec::new();
        for text in self.last_lines.iter().rev().take(MAX_LOG_LINES).map(|text| line(text)) {
            let Some(left) = room.checked_sub(text.chars().count()) else { break };
            room = left;
            lines.push(text);
        }
        lines.reverse();
        lines
    }
}

/// One line of bounded length.
fn line(text: &str) -> String {
    let mut line: String =
        text.chars().take(MAX_LINE_CHARACTERS).map(|sign| if sign.is_control() { ' ' } else { sign }).collect();
    if line.len() < text.len() && text.chars().count() > MAX_LINE_CHARACTERS {
        line.push('…');
    }
    line
}

fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::notify) fn failure() -> Message {
        Message {
            host: "pi4".to_owned(),
            repository: Some(RepositoryName { project: "home".to_owned(), name: "media".to_owned() }),
            event: Event::Failure,
            commit: Some(Commit {
                hash: "abc1234def0123456789abc1234def0123456789".parse().unwrap(),
                subject: "Raise the limits".to_owned(),
                author: "Ada".to_owned(),
            }),
            actor: Some("admin".to_owned()),
            duration: Some(Duration::from_secs(72)),
            error: Some("web is unhealthy".to_owned()),
            last_lines: vec!["starting".to_owned(), "boom".to_owned()],
        }
    }

    #[test]
    fn a_failure_tells_everything() {
        let message = failure();
        assert_eq!(message.title(), "home/media: deployment failed abc1234 (pi4)");
        let expected = "home/media on pi4: deployment failed\nCommit: abc1234 Raise the limits (Ada)\n\
                        Asked by: admin\nDuration: 1 min 12 s\nError: web is unhealthy\n\nLast lines of the log:\nstarting\nboom";
        assert_eq!(message.text(), expected);
        let json: serde_json::Value = serde_json::from_str(&message.json()).unwrap();
        assert_eq!(json["event"], "failure");
        assert_eq!(json["text"], expected);
        assert_eq!((&json["project"], &json["repository"]), (&json!("home"), &json!("media")));
        assert_eq!(json["commit"]["author"], "Ada");
        assert_eq!((&json["actor"], &json["duration_seconds"]), (&json!("admin"), &json!(72)));
        assert_eq!(json["log"], json!(["starting", "boom"]));
    }

    #[test]
    fn what_is_about_the_machine_names_no_repository() {
        let message = Message {
            repository: None,
            event: Event::DockerAway,
            commit: None,
            actor: None,
            duration: None,
            error: None,
            last_lines: Vec::new(),
            ..failure()
        };
        assert_eq!(message.title(), "pi4: Docker does not answer, deployments wait");
        assert_eq!(message.text(), message.title());
    }

    #[test]
    fn a_message_has_a_bound_and_keeps_the_newest_lines() {
        let last_lines = (0..50).map(|number| format!("{number} {}", "x".repeat(1000))).collect();
        let message = Message { last_lines, error: Some("line\nbreak".to_owned()), ..failure() };
        let text = message.text();
        assert!(text.chars().count() < MAX_LOG_CHARACTERS + 1000);
        assert!(text.contains("\n49 xxx") && !text.contains("\n1 xxx") && text.contains("Error: line break\n"));
        assert!(text.ends_with("x…"));
    }

    #[test]
    fn durations_read_well() {
        let words = [5, 60, 3599, 3600, 7384].map(|seconds| in_words(Duration::from_secs(seconds)));
        assert_eq!(words, ["5 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "2 h 3 min"]);
    }
}
