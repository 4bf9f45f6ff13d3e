//! From what Docker and Compose say when they fail to one line that says what to do, and whether another try can help.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::process::ExitStatus;

use crate::command::CommandError;
use crate::deploy::StepError;
use crate::model::Chance;

/// The longest error that is made of a child's line, in bytes; a deployment's error is one line that people read in a
/// table.
const MAX_ERROR_BYTES: usize = 600;

/// What a telling line holds (compared in lower case), whether it can pass, and the way out.
///
/// The first that fits counts, so the particular ones come first.
const KNOWN: &[(&str, Chance, &str)] = &[
    ("no space left on device", Chance::CanPass, "free some disk space (`docker system df` shows what Docker uses)"),
    ("cannot connect to the docker daemon", Chance::CanPass, "start Docker (`systemctl status docker`)"),
    ("failed to connect to the docker api", Chance::CanPass, "start Docker (`systemctl status docker`)"),
    ("error during connect", Chance::CanPass, "start Docker (`systemctl status docker`)"),
    (
        "permission denied while trying to connect to the docker",
        Chance::CanPass,
        "let Shiparr's user use Docker (group `docker`)",
    ),
    ("port is already allocated", Chance::CanPass, "another container publishes this port: `docker ps` shows which"),
    ("address already in use", Chance::CanPass, "another program listens on this port: `ss -ltnp` shows which"),
    (
        "is already in use by container",
        Chance::CanPass,
        "remove or rename that container, or take `container_name` out of the compose file",
    ),
    (
        "cannot start a paused container",
        Chance::CanPass,
        "`docker ps --filter status=paused` shows which, and `docker unpause` lets it go on",
    ),
    (
        "pull access denied",
        Chance::CanPass,
        "check the image's name, and `docker login` as the user that runs Shiparr where the registry is private",
    ),
    ("no basic auth credentials", Chance::CanPass, "`docker login` to that registry as the user that runs Shiparr"),
    ("error from registry: denied", Chance::CanPass, "`docker login` to that registry as the user that runs Shiparr"),
    ("\": denied", Chance::CanPass, "`docker login` to that registry as the user that runs Shiparr"),
    ("unauthorized", Chance::CanPass, "`docker login` to that registry as the user that runs Shiparr"),
    ("requested access to the resource is denied", Chance::CanPass, "`docker login` to that registry"),
    ("toomanyrequests", Chance::CanPass, "the registry limits how much may be pulled: `docker login` raises the limit"),
    ("manifest unknown", Chance::CanPass, "the registry has no such tag: check the image's name and tag"),
    ("manifest for", Chance::CanPass, "the registry has no such tag: check the image's name and tag"),
    ("failed to resolve reference", Chance::CanPass, "check the image's name and tag, and the network"),
    ("no matching manifest", Chance::Final, "the image is not made for this machine's architecture"),
    ("no such host", Chance::CanPass, "the name does not resolve: check the image's name, the network and the DNS"),
    ("temporary failure in name resolution", Chance::CanPass, "check the network and the DNS"),
    ("connection refused", Chance::CanPass, "nothing answers there: check the address and that it runs"),
    ("network is unreachable", Chance::CanPass, "check the network"),
    ("no route to host", Chance::CanPass, "check the network"),
    ("i/o timeout", Chance::CanPass, "check the network"),
    ("tls handshake timeout", Chance::CanPass, "check the network"),
    ("client.timeout exceeded", Chance::CanPass, "check the network"),
    ("request canceled while waiting for connection", Chance::CanPass, "check the network"),
    (
        "has active endpoints",
        Chance::Final,
        "Compose changes a network by making it anew, and containers of others are in it (`docker network inspect`): take its change back and \
         push, and make it again once they are out of it",
    ),
    ("context deadline exceeded", Chance::CanPass, ""),
    ("connection reset by peer", Chance::CanPass, ""),
    ("unexpected eof", Chance::CanPass, ""),
    ("bad gateway", Chance::CanPass, ""),
    ("service unavailable", Chance::CanPass, ""),
    ("no such image", Chance::Final, "pull or build it on this host, or set `pull: missing`"),
    ("env file", Chance::Final, "commit that file, or name its encrypted form in the repository's `env_file`"),
    ("invalid project name", Chance::Final, "set `compose_project`"),
    ("required variable", Chance::Final, "set it in `env_file` or `environment`"),
    (
        "is not a docker command",
        Chance::CanPass,
        "install Docker's Compose plugin (docker-compose-plugin, or docker-compose of version 2 or later)",
    ),
    (
        "unknown command: docker compose",
        Chance::CanPass,
        "install Docker's Compose plugin (docker-compose-plugin, or docker-compose of version 2 or later)",
    ),
    ("unknown shorthand flag: 'p' in -p", Chance::CanPass, "install Docker's Compose plugin (version 2 or later)"),
    ("declared as external, but could not be found", Chance::Final, "make it first, with the same name"),
    ("is unhealthy", Chance::Final, "its last log lines are in the deployment's log"),
    ("didn't complete successfully", Chance::Final, "its last log lines are in the deployment's log"),
    ("dependency failed to start", Chance::Final, "its last log lines are in the deployment's log"),
];

/// How many of a command's last lines are kept to find the telling one.
const TAIL_LINES: usize = 40;

/// The last lines that a command said.
#[derive(Debug, Default)]
pub struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    /// Keeps a line, and forgets the oldest once there are too many.
    pub fn push(&mut self, line: &str) {
        let line = line.trim_end();
        if line.trim().is_empty() {
            return;
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_owned());
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// All lines of a text.
    pub fn of(text: &str) -> Tail {
        let mut tail = Tail::default();
        text.lines().for_each(|line| tail.push(line));
        tail
    }

    /// The line that says why it failed: the last one that is neither progress nor a warning. Compose and Docker say it
    /// last.
    fn telling_line(&self) -> Option<String> {
        let telling = self.lines.iter().rev().find(|line| !is_noise(line)).or(self.lines.back())?;
        Some(message_of(telling).1.trim().to_owned())
    }
}

/// The error for a failed command from all that it said: `what` names the command for people (`docker compose up`).
pub fn failed(what: &str, output: &Tail, status: ExitStatus) -> StepError {
    let Some(line) = output.telling_line() else {
        return StepError { message: format!("{what} failed without a word ({status})"), chance: Chance::Final };
    };
    let (chance, hint) = classify(&line);
    let line = shortened(&line);
    let message = if hint.is_empty() { format!("{what}: {line}") } else { format!("{what}: {line}: {hint}") };
    StepError { message, chance }
}

/// The error for a command that gave no result. `chance_of_timeout`: whether running into the limit can pass.
pub fn not_run(what: &str, error: &CommandError, chance_of_timeout: Chance) -> StepError {
    match error {
        CommandError::NotFound { program } => StepError {
            message: format!(
                "{program} is not installed (or not on PATH): install Docker Engine with its Compose plugin, or set Shiparr_DOCKER_BIN"
            ),
            chance: Chance::CanPass,
        },
        CommandError::TimedOut { .. } => StepError {
            message: format!(
                "{what} did not end within the time limit and was stopped: look at the deployment's log for what it waited for, or raise `timeout`"
            ),
            chance: chance_of_timeout,
        },
        CommandError::Start { .. } | CommandError::Talk { .. } => {
            StepError { message: format!("{what}: {error}"), chance: Chance::CanPass }
        }
        CommandError::Cancelled { .. } | CommandError::TooMuchOutput { .. } => {
            StepError { message: format!("{what}: {error}"), chance: Chance::Final }
        }
    }
}

/// Level and message of a line that Compose's logger wrote (`time="…" level=warning msg="…"`); every other line is its
/// own message.
pub fn message_of(line: &str) -> (Option<&str>, Cow<'_, str>) {
    let parsed = line.starts_with("time=").then(|| {
        let (_, rest) = line.split_once("level=")?;
        let (level, rest) = rest.split_once(" msg=")?;
        let message = rest.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(rest);
        Some((level, message.replace("\\\"", "\"")))
    });
    match parsed.flatten() {
        Some((level, message)) => (Some(level), message.into()),
        None => (None, line.into()),
    }
}

fn classify(line: &str) -> (Chance, &'static str) {
    let line = line.to_lowercase();
    KNOWN
        .iter()
        .find(|(needle, ..)| line.contains(needle))
        .map_or((Chance::Final, ""), |(_, chance, hint)| (*chance, hint))
}

fn shortened(line: &str) -> String {
    if line.len() <= MAX_ERROR_BYTES {
        return line.to_owned();
    }
    // The beginning names the place and the end the reason.
    let half = MAX_ERROR_BYTES / 2;
    let (head_end, tail_start) = (boundary(line, half), boundary(line, line.len() - half));
    format!("{} … {}", &line[..head_end], &line[tail_start..])
}

/// The last place at or before `index` where a character begins.
fn boundary(text: &str, index: usize) -> usize {
    (0..=index).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0)
}

/// Progress, warnings, and what the docker client says about its own help.
fn is_noise(line: &str) -> bool {
    const BEGINNINGS: [&str; 8] =
        ["Container ", "Network ", "Volume ", "Image ", "---", "Usage:", "Run 'docker", "See 'docker"];
    let (level, message) = message_of(line);
    matches!(level, Some("warning" | "info"))
        || line.starts_with(' ')
        || BEGINNINGS.iter().any(|beginning| message.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn up_failed(text: &str) -> StepError {
        failed("docker compose up", &Tail::of(text), ExitStatus::from_raw(256))
    }

    #[test]
    fn finds_the_line_that_tells_and_adds_the_way_out() {
        let error = up_failed(
            " Container x-a-1  Starting\nError response from daemon: driver failed programming external connectivity: \
             Bind for 0.0.0.0:80 failed: port is already allocated\n Container x-b-1  Started\n",
        );
        assert!(error.message.starts_with("docker compose up: Error response from daemon: driver"), "{error}");
        assert!(error.message.ends_with("`docker ps` shows which"), "{error}");
        assert_eq!(error.chance, Chance::CanPass);
    }

    #[test]
    fn takes_loggers_lines_apart_and_passes_over_warnings() {
        let line = r#"time="2026-01-01T00:00:00Z" level=warning msg="The \"FOO\" variable is not set.""#;
        assert_eq!(message_of(line), (Some("warning"), r#"The "FOO" variable is not set."#.into()));
        let error = up_failed(&format!("yaml: line 1: did not find expected ',' or ']'\n{line}\n"));
        assert_eq!(error.message, "docker compose up: yaml: line 1: did not find expected ',' or ']'");
        assert_eq!(error.chance, Chance::Final);
    }

    #[test]
    fn knows_what_can_pass() {
        for (line, chance) in [
            ("write /var/lib/docker/x: no space left on device", Chance::CanPass),
            ("pull access denied for x, repository does not exist or may require 'docker login'", Chance::CanPass),
            ("unknown shorthand flag: 'p' in -p\n\nUsage:  docker [OPTIONS]\n\nRun 'docker --help'", Chance::CanPass),
            ("Head \"http://localhost:5000/v2/x/manifests/1\": no basic auth credentials", Chance::CanPass),
            ("dial tcp: lookup registry.example on 1.1.1.1:53: no such host", Chance::CanPass),
            ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", Chance::CanPass),
            ("manifest for x:2 not found: manifest unknown: manifest unknown", Chance::CanPass),
            ("service \"m\" didn't complete successfully: exit 3", Chance::Final),
            ("failed to solve: executor failed running [/bin/sh -c exit 3]: exit code: 3", Chance::Final),
        ] {
            assert_eq!(up_failed(line).chance, chance, "{line}");
        }
    }

    #[test]
    fn says_so_when_nothing_was_said_and_shortens_what_is_too_long() {
        assert!(up_failed("\n \n").message.contains("without a word"));
        let error = up_failed(&"é".repeat(5000));
        assert!(error.message.len() < MAX_ERROR_BYTES + 40, "{}", error.message.len());
    }
}
