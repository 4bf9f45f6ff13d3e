//! Logs as they are: the last lines, in one answer.

use std::collections::VecDeque;

use super::{ASK_LIMIT, Container, DockerError, docker};
use crate::command::{CUT, Command, CommandError, Limit};
use crate::config::Settings;

/// The newest bytes of logs that one answer holds.
pub(super) const LOGS_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Containers of one stack whose logs are read.
const LOGGED_MAX: usize = 100;
/// Begins lines that are no container's.
pub(super) const OWN_WORDS: &str = "shiparr: ";

/// Which lines of a container's log somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The last so many; of several containers, of each.
    pub tail: u32,
    /// None before this, in Docker's words: a time, or how long ago (`10m`).
    pub since: Option<String>,
}

/// The last lines of one container, both outputs in the order in which they came.
///
/// # Errors
/// Docker's, or that it is not there.
pub fn logs(container: &Container, wanted: &Wanted, settings: &Settings, limit: &Limit) -> Result<String, DockerError> {
    let lines = read(container, &[], wanted, settings, &limit.at_most(ASK_LIMIT))?;
    Ok(lines.into_iter().flat_map(|line| [line, "\n".to_owned()]).collect())
}

/// The last lines of each container, in the order of time, each with its container's name. A container that has none to
/// give (it has just gone, or its logs are kept elsewhere) has a line that says so.
///
/// # Errors
/// Docker's, where it tells of no container at all, or that it is not there.
pub fn stack_logs(
    containers: &[Container],
    wanted: &Wanted,
    settings: &Settings,
    limit: &Limit,
) -> Result<String, DockerError> {
    let limit = limit.at_most(ASK_LIMIT);
    let (read_ones, left_out) = containers.split_at(containers.len().min(LOGGED_MAX));
    let mut lines = Vec::new();
    let mut notes = Vec::new();
    for container in read_ones {
        let mut timed = Timed::default();
        match read(container, &["--timestamps"], wanted, settings, &limit) {
            Ok(read) => lines.extend(read.iter().map(|line| {
                let text = timed.strip(line);
                (timed.time.clone(), format!("{} | {text}\n", container.name))
            })),
            Err(problem @ ReadError::Command(_)) => return Err(problem.into()),
            Err(ReadError::Docker(problem)) if notes.len() + 1 == read_ones.len() => return Err(DockerError(problem)),
            Err(ReadError::Docker(problem)) => notes.push(format!("{OWN_WORDS}{}: {problem}\n", container.name)),
        }
        // Each time, so that no more than two bounds are ever in memory.
        keep_newest(&mut lines);
    }
    if !left_out.is_empty() {
        notes.push(left_out_line(left_out.iter().map(|container| container.name.as_str())));
    }
    Ok(lines.into_iter().map(|(_, line)| line).chain(notes).collect())
}

/// Takes the time from the lines of one container that Docker put it in front of.
#[derive(Default)]
pub(super) struct Timed {
    /// The last one, as Docker writes it: all of one width, in UTC, so that they sort as text; empty before the first.
    pub time: String,
}

impl Timed {
    /// A line without its time. One that came in pieces has it in the first piece, and Docker, which keeps it in pieces
    /// of 16 KiB, before each of its own.
    pub fn strip(&mut self, line: &str) -> String {
        if line.starts_with(CUT) {
            return if self.time.is_empty() { line.to_owned() } else { line.replace(&format!("{} ", self.time), "") };
        }
        if is_dockers(line) {
            return line.to_owned();
        }
        let (time, text) = line.split_once(' ').unwrap_or((line, ""));
        time.clone_into(&mut self.time);
        text.to_owned()
    }
}

/// Says which containers' logs somebody does not get.
pub(super) fn left_out_line<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    format!("{OWN_WORDS}there are too many containers, left out are {}\n", names.join(", "))
}

/// `docker logs` of one container.
pub(super) fn log_command(
    container: &Container,
    options: &[&str],
    tail: &str,
    since: Option<&str>,
    settings: &Settings,
) -> Command {
    let since = since.map(|since| ["--since", since]).into_iter().flatten();
    docker(settings).merged().args(["logs", "--tail", tail]).args(since).args(options).arg(&container.id)
}

/// Whether it is Docker itself that says this, where it puts times in front of what containers say.
pub(super) fn is_dockers(line: &str) -> bool {
    !line.starts_with(CUT) && !is_time(line.split(' ').next().unwrap_or_default())
}

/// `2026-01-15T14:30:00.123456789Z`.
fn is_time(text: &str) -> bool {
    text.len() == 30 && text.ends_with('Z') && text.as_bytes()[10] == b'T' && text.as_bytes()[0].is_ascii_digit()
}

enum ReadError {
    /// It could not be asked, or not in time.
    Command(CommandError),
    /// What it had to say of this container.
    Docker(String),
}

impl From<ReadError> for DockerError {
    fn from(error: ReadError) -> DockerError {
        match error {
            ReadError::Command(error) => error.into(),
            ReadError::Docker(problem) => DockerError(problem),
        }
    }
}

fn read(
    container: &Container,
    options: &[&str],
    wanted: &Wanted,
    settings: &Settings,
    limit: &Limit,
) -> Result<VecDeque<String>, ReadError> {
    let command = log_command(container, options, &wanted.tail.to_string(), wanted.since.as_deref(), settings);
    let mut lines = VecDeque::new();
    let mut bytes = 0;
    let status = command.stream(limit, &mut |_, line| {
        bytes += line.len();
        lines.push_back(line.to_owned());
        while bytes > LOGS_MAX_BYTES {
            bytes -= lines.pop_front().map_or(bytes, |line: String| line.len());
        }
    });
    let status = status.map_err(ReadError::Command)?;
    if status.success() {
        return Ok(lines);
    }
    // What docker itself has to say comes last.
    Err(ReadError::Docker(lines.pop_back().unwrap_or_else(|| format!("docker logs ended with {status}"))))
}

/// Sorts lines by their time and keeps the newest that fit into [`LOGS_MAX_BYTES`].
fn keep_newest(lines: &mut Vec<(String, String)>) {
    // Lines of one moment stay in their containers' order.
    lines.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut bytes = 0;
    let newest = lines.iter().rev().take_while(|(_, line)| {
        bytes += line.len();
        bytes <= LOGS_MAX_BYTES
    });
    let surplus = lines.len() - newest.count();
    lines.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::Lab;
    use super::super::{containers_of, parse_list};
    use super::*;

    fn last(tail: u32) -> Wanted {
        Wanted { tail, since: None }
    }

    #[test]
    fn logs_of_a_stack_are_in_the_order_of_time_and_those_of_others_are_not_shown() {
        let limit = Limit::after(Duration::from_secs(60));
        let lab = Lab::new();
        // Docker reads a container's outputs one beside the other.
        let web = lab.start(
            "web",
            "/srv/a, folder",
            "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three; sleep 0.1; echo four >&2",
        );
        // Longer than what Docker and we take for a line.
        let long = "i=0; while [ $i -lt 20 ]; do printf %01000d 7; i=$((i+1)); done";
        let worker = lab.start("worker", "/srv/a, folder", &format!("{long}; echo; echo five"));
        lab.run(&["run", "--log-driver", "none"], "x-silent", "/srv/a, folder", "true");
        lab.start("foreign", "/srv/other", "echo private");
        let found = containers_of(std::slice::from_ref(&lab.labels), &lab.settings, &limit).unwrap();
        let names: Vec<&str> = found.iter().map(|container| container.name.as_str()).collect();
        assert_eq!(names[..2], [&web, &worker]);
        assert_eq!((names.len(), found[0].service.as_str()), (3, "web"));

        let text = stack_logs(&found, &last(10), &lab.settings, &limit).unwrap();
        let mut lines = text.lines();
        for word in ["one", "two", "three", "four"] {
            assert_eq!(lines.next(), Some(format!("{web} | {word}").as_str()));
        }
        let pieces: Vec<&str> = lines.by_ref().take(3).map(|line| line.split_once(" | ").unwrap().1).collect();
        let joined = pieces.concat().replace(CUT, "");
        assert_eq!(joined, format!("{:01000}", 7).repeat(20), "no time of Docker's stands in it");
        assert_eq!(lines.next(), Some(format!("{worker} | five").as_str()));
        let note = lines.next().unwrap();
        assert!(note.starts_with(&format!("{OWN_WORDS}{}: ", names[2])) && note.contains("driver"), "{note}");
        assert_eq!(lines.next(), None);

        assert_eq!(logs(&found[0], &last(10), &lab.settings, &limit).unwrap(), "one\ntwo\nthree\nfour\n");
        assert_eq!(logs(&found[0], &last(1), &lab.settings, &limit).unwrap(), "four\n");
        assert_eq!(logs(&found[0], &last(0), &lab.settings, &limit).unwrap(), "");
        for (since, expected) in [("2001-01-01T00:00:00Z", 4), ("2h", 4), ("2201-01-01T00:00:00Z", 0)] {
            let wanted = Wanted { since: Some(since.to_owned()), ..last(10) };
            assert_eq!(logs(&found[0], &wanted, &lab.settings, &limit).unwrap().lines().count(), expected, "{since}");
        }
        let gone = r#"{"id":"0123456789abcdef","name":"gone","project":"p","folder":"/f","service":"s"}"#;
        let gone = parse_list(gone).unwrap();
        for error in [
            logs(&gone[0], &last(10), &lab.settings, &limit).unwrap_err(),
            stack_logs(&gone, &last(10), &lab.settings, &limit).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains("0123456789abcdef") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_client_that_goes_ends_the_question() {
        let limit = Limit::after(Duration::from_secs(60));
        limit.cancel();
        let lab = Lab::new();
        assert!(containers_of(std::slice::from_ref(&lab.labels), &lab.settings, &limit).is_err());
    }

    #[test]
    fn the_newest_lines_that_fit_are_kept() {
        let line = |time: u32, bytes: usize| (format!("{time:03}"), "x".repeat(bytes));
        let half = LOGS_MAX_BYTES / 2;
        let mut lines = vec![line(3, half), line(1, 1), line(2, half)];
        keep_newest(&mut lines);
        assert_eq!(lines.iter().map(|(time, _)| time.as_str()).collect::<Vec<_>>(), ["002", "003"]);
    }

    #[test]
    fn only_dockers_own_times_are_taken_away() {
        let mut timed = Timed::default();
        assert_eq!(timed.strip("Error response from daemon: gone"), "Error response from daemon: gone");
        let time = "2026-01-15T14:30:00.123456789Z";
        assert_eq!(
            timed.strip(&format!("{time} 2026-01-15T14:30:00Z said{CUT}")),
            format!("2026-01-15T14:30:00Z said{CUT}")
        );
        assert_eq!(timed.strip(&format!("{CUT}a{time} b")), format!("{CUT}ab"));
        assert_eq!(timed.time, time);
        assert_eq!(timed.strip(&format!("{time} ")), "");
    }
}
