//! Answers that are written while they come into being: a deployment's log, from its first line to its last.

use std::io::{self, Write};
use std::time::Duration;

use super::Context;
use super::answer::Failure;
use super::api::json::time;
use super::presence::Watch;
use crate::model::{DeploymentId, LogLevel, LogLine};

/// Lines that are read from the database at once.
pub const PAGE_LINES: u32 = 500;
/// How soon a writer notices that its client is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// An answer that is written while it comes into being.
pub trait Stream: Send {
    /// The head of the answer, with the status 200: its body comes in chunks.
    fn head(&self) -> String;

    /// Writes it all, head and body, until it ends or the client is gone.
    ///
    /// # Errors
    /// The client's, or those of what it is made of.
    fn write(self: Box<Self>, context: &Context, watch: &Watch, to: &mut dyn Write) -> io::Result<()>;
}

/// A deployment's log as an answer, flushed at each page (where the log is followed: at each line that comes).
pub struct LogStream {
    /// Whose.
    pub deployment: DeploymentId,
    /// Whether it goes on until the deployment ends.
    pub follow: bool,
    /// `{"logs": "…"}` instead of text.
    pub as_json: bool,
}

impl Stream for LogStream {
    fn head(&self) -> String {
        head(if self.as_json { "application/json" } else { "text/plain; charset=utf-8" })
    }

    fn write(self: Box<Self>, context: &Context, watch: &Watch, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(self.head().as_bytes())?;
        to.flush()?;
        if self.as_json {
            chunk(to, b"{\"logs\":\"")?;
        }
        let store = &context.store;
        let mut after = 0;
        while !watch.is_gone() {
            let seen = store.change_seen();
            // Asked before the lines are read: what comes before the end is in the log before the status says so.
            let is_over = !self.follow || self.is_over(context)?;
            let lines = store.log_lines(self.deployment, after, PAGE_LINES).map_err(io::Error::other)?;
            if let Some(last) = lines.last() {
                after = last.id;
                let text = text_of(&lines);
                let bytes = if self.as_json { escaped(&text)? } else { text.into_bytes() };
                chunk(to, &bytes)?;
            } else if is_over {
                break;
            } else {
                store.wait_for_change(seen, LOOK_AGAIN);
            }
        }
        if self.as_json {
            chunk(to, b"\"}")?;
        }
        to.write_all(b"0\r\n\r\n")?;
        to.flush()
    }
}

impl LogStream {
    fn is_over(&self, context: &Context) -> io::Result<bool> {
        let deployment = context.store.deployment(self.deployment).map_err(io::Error::other)?;
        Ok(deployment.is_none_or(|deployment| deployment.status.is_final()))
    }
}

/// The log of a deployment, if it is short enough to be answered at once.
///
/// # Errors
/// The database's.
pub fn short_log(context: &Context, deployment: DeploymentId) -> Result<Option<String>, Failure> {
    let lines = context.store.log_lines(deployment, 0, PAGE_LINES)?;
    Ok((lines.len() < PAGE_LINES as usize).then(|| text_of(&lines)))
}

/// Each line with its time, and with its level where that is not `info`.
fn text_of(lines: &[LogLine]) -> String {
    let mut text = String::new();
    for line in lines {
        text += &time(line.at);
        text.push(' ');
        if line.level != LogLevel::Info {
            text += line.level.as_str();
            text += ": ";
        }
        text += &line.message;
        text.push('\n');
    }
    text
}

/// As it stands between the quotes of a JSON string.
fn escaped(text: &str) -> io::Result<Vec<u8>> {
    let quoted = serde_json::to_string(text)?;
    Ok(quoted.as_bytes()[1..quoted.len() - 1].to_vec())
}

/// The head of an answer of this kind that comes in chunks. `X-Accel-Buffering` makes nginx pass them on as they come.
pub fn head(kind: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
         X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
}

/// Writes one chunk, and sends it off.
///
/// # Errors
/// The client's.
pub fn chunk(to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        // A chunk of no length would end the answer.
        return Ok(());
    }
    write!(to, "{:x}\r\n", bytes.len())?;
    to.write_all(bytes)?;
    to.write_all(b"\r\n")?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_time_and_a_level_where_it_matters() {
        let line = |level, message: &str| LogLine {
            id: 1,
            at: "2026-01-15T14:30:00.9Z".parse().unwrap(),
            level,
            message: message.into(),
        };
        let lines = [line(LogLevel::Info, "fetching"), line(LogLevel::Error, "no \"network\"")];
        let text = text_of(&lines);
        assert_eq!(text, "2026-01-15T14:30:00Z fetching\n2026-01-15T14:30:00Z error: no \"network\"\n");
        let json = [b"{\"logs\":\"".as_slice(), &escaped(&text).unwrap(), b"\"}"].concat();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&json).unwrap()["logs"], text);
    }
}
