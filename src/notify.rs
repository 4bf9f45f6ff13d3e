//! Telling people: messages, and the programs and URLs that carry them.

mod message;
mod target;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::command::{Captured, Command, CommandError, Limit};
use crate::http::{self, Proxies, Request};
use crate::secrets::{Scrubber, Secret};

pub use message::{Event, Message};
use target::{Address, Target};
pub use target::{label, needs_shoutrrr};

/// One try may take this long.
const TRY_TIME_LIMIT: Duration = Duration::from_secs(30);
/// Before the second and the third try.
const PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(25)];
/// A notifier has nothing to put in order when it is stopped.
const GRACE: Duration = Duration::from_secs(2);
/// Bound on what a notifier says or an address answers; only an error's first words are used.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How much of a notifier's own words goes into an error.
const MAX_QUOTED_CHARACTERS: usize = 300;

/// Shoutrrr's exit code for "could not be sent".
const NOT_SENT: i32 = 69;

/// A message that did not arrive, in one line without the URL.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{label} {problem}")]
pub struct NotifyError {
    /// See [`label`].
    pub label: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Problem {
    /// The URL needs shoutrrr.
    #[error(
        "needs shoutrrr, and {0} is not installed: install it (github.com/nicholas-fedor/shoutrrr), or name it in Shiparr_SHOUTRRR_BIN"
    )]
    NotInstalled(String),
    /// Another try cannot help: the URL is wrong, or what it leads to does not take the message.
    #[error("does not work: {0}")]
    Refused(String),
    /// It could not be sent, however often it was tried.
    #[error("could not be reached: {0}")]
    NotSent(String),
}

/// What carries messages.
#[derive(Clone)]
pub struct Notifier {
    shoutrrr: PathBuf,
    environment: Vec<(OsString, OsString)>,
    proxies: Proxies,
    pauses: Vec<Duration>,
}

impl Notifier {
    /// `shoutrrr` by path or name; `environment` is what it may see, from `Environment::for_children`.
    pub fn new(shoutrrr: PathBuf, environment: Vec<(OsString, OsString)>, proxies: Proxies) -> Notifier {
        Notifier { shoutrrr, environment, proxies, pauses: PAUSES.to_vec() }
    }

    /// Pauses between tries, one try more than there are of them.
    #[must_use]
    pub fn pauses(mut self, pauses: &[Duration]) -> Notifier {
        pauses.clone_into(&mut self.pauses);
        self
    }

    /// Sends a message to a URL: `https://` and `http://` get a POST of [`Message::json`], all others go through
    /// shoutrrr. What could not be sent is tried again, three times in all.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn send(&self, url: &Secret, message: &Message, limit: &Limit) -> Result<(), NotifyError> {
        let fail = |problem| NotifyError { label: label(url), problem };
        let target = Target::of(url).map_err(fail)?;
        let mut pauses = self.pauses.iter();
        loop {
            let limit_of_try = limit.at_most(TRY_TIME_LIMIT);
            let result = match &target {
                Target::Post(address) => post(self.request(address), message, &limit_of_try),
                Target::Shoutrrr(url) => self.send_by_shoutrrr(url, message, &limit_of_try),
            };
            match (result, pauses.next()) {
                (Err(Problem::NotSent(_)), Some(pause)) if limit.sleep(*pause) => {}
                (result, _) => return result.map_err(|problem| fail(scrubbed(url, problem))),
            }
        }
    }

    /// Asks whether a URL can be used, without sending anything.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn verify(&self, url: &Secret, limit: &Limit) -> Result<(), NotifyError> {
        let fail = |problem| NotifyError { label: label(url), problem };
        let Target::Shoutrrr(translated) = Target::of(url).map_err(fail)? else { return Ok(()) };
        let result = self.shoutrrr("verify", &translated).capture(&limit.at_most(TRY_TIME_LIMIT), MAX_ANSWER_BYTES);
        match result.map_err(not_run) {
            Ok(captured) if captured.status.success() => Ok(()),
            Ok(captured) => Err(fail(scrubbed(url, Problem::Refused(refusal(&captured))))),
            Err(problem) => Err(fail(problem)),
        }
    }

    fn send_by_shoutrrr(&self, url: &Secret, message: &Message, limit: &Limit) -> Result<(), Problem> {
        let command = self.shoutrrr("send", url).arg("--title").arg(message.title()).input(message.text());
        let captured = command.capture(limit, MAX_ANSWER_BYTES).map_err(not_run)?;
        match captured.status.code() {
            Some(0) => Ok(()),
            Some(NOT_SENT) => Err(Problem::NotSent(last_words(&captured.stderr))),
            _ => Err(Problem::Refused(last_words(&captured.stderr))),
        }
    }

    /// The URL goes into the environment: arguments are world-readable.
    fn shoutrrr(&self, verb: &str, url: &Secret) -> Command {
        Command::new(&self.shoutrrr, &self.environment).arg(verb).env("SHOUTRRR_URL", url.expose()).grace(GRACE)
    }

    fn request(&self, address: &Address) -> Request {
        Request {
            url: address.url.clone(),
            basic_auth: address.basic_auth.clone(),
            proxies: self.proxies.clone(),
            ..Request::default()
        }
    }
}

/// Each URL once, in their order: repositories that tell the same people of one thing tell them once.
pub fn distinct(urls: impl IntoIterator<Item = Secret>) -> Vec<Secret> {
    let mut distinct: Vec<Secret> = Vec::new();
    for url in urls {
        if !distinct.contains(&url) {
            distinct.push(url);
        }
    }
    distinct
}

fn post(request: Request, message: &Message, limit: &Limit) -> Result<(), Problem> {
    let request = Request {
        method: "POST".to_owned(),
        headers: vec![("Content-Type".to_owned(), "application/json".to_owned())],
        body: Some(message.json().into_bytes()),
        max_body_bytes: MAX_ANSWER_BYTES,
        ..request
    };
    let answer = http::send(&request, limit).map_err(|error| Problem::NotSent(error.0))?;
    match answer.status {
        200..=299 => Ok(()),
        301 | 302 | 303 | 307 | 308 => {
            Err(Problem::Refused(format!("it answers {}: give the address that it redirects to", answer.status)))
        }
        // Too many requests, or its own trouble.
        408 | 429 | 500.. => Err(Problem::NotSent(format!("it answers {}", answer.status))),
        status => Err(Problem::Refused(format!("it answers {status}"))),
    }
}

/// A child that gave no result. One that hung may have sent the message, so it is not tried again.
fn not_run(error: CommandError) -> Problem {
    match error {
        CommandError::NotFound { program } => Problem::NotInstalled(program),
        error => Problem::Refused(error.to_string()),
    }
}

/// Why `verify` refused. Its error is on standard output, where a good URL is printed taken apart: no other line may be
/// quoted.
fn refusal(captured: &Captured) -> String {
    let printed = String::from_utf8_lossy(&captured.stdout);
    let error = printed.lines().rev().find_map(|line| line.trim().strip_prefix("error verifying URL: "));
    error.map_or_else(|| last_words(&captured.stderr), str::to_owned)
}

/// The last line of what a notifier said: its error, after the progress that it tells of.
fn last_words(said: &str) -> String {
    let line = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it does not say why");
    line.to_owned()
}

/// Without the parts of the URL, also in the form that it was translated to, and no longer than a line should be.
fn scrubbed(url: &Secret, problem: Problem) -> Problem {
    let mut scrubber = Scrubber::new();
    scrubber.learn_url(url.expose());
    if let Ok(Target::Shoutrrr(translated)) = Target::of(url) {
        scrubber.learn_url(translated.expose());
    }
    let clean = |text: String| {
        let one_line = scrubber.scrub(&text).replace(['\n', '\r'], " ");
        one_line.chars().take(MAX_QUOTED_CHARACTERS).collect()
    };
    match problem {
        Problem::NotInstalled(program) => Problem::NotInstalled(program),
        Problem::Refused(text) => Problem::Refused(clean(text)),
        Problem::NotSent(text) => Problem::NotSent(clean(text)),
    }
}

#[cfg(test)]
mod tests;
