//! The only place that starts a process: its own process group, a time limit, an environment listed in code, bounded output.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long something may take, and whether somebody ended it before.
///
/// One `Limit` goes through a whole deployment: every child, request and wait of it ends with it. Clones share the cancellation.
#[derive(Clone, Debug)]
pub struct Limit {
    deadline: Instant,
    cancelled: Arc<AtomicBool>,
}

impl Limit {
    /// A limit that ends after `time` from now.
    pub fn after(time: Duration) -> Limit {
        Limit { deadline: Instant::now() + time, cancelled: Arc::new(AtomicBool::new(false)) }
    }

    /// The same cancellation with a deadline that is not later than `time` from now.
    #[must_use]
    pub fn at_most(&self, time: Duration) -> Limit {
        Limit { deadline: self.deadline.min(Instant::now() + time), cancelled: Arc::clone(&self.cancelled) }
    }

    /// Time left; zero when it is over or was cancelled.
    pub fn left(&self) -> Duration {
        todo!()
    }

    /// Ends it for everyone who holds a clone.
    pub fn cancel(&self) {
        todo!()
    }

    /// Whether somebody ended it.
    pub fn is_cancelled(&self) -> bool {
        todo!()
    }

    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// Sleeps for `time`, or less when the limit ends or is cancelled before; `false` when it did.
    pub fn sleep(&self, _time: Duration) -> bool {
        todo!()
    }
}

/// Which of a child's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Why a command gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("{program} is not installed (or not on PATH)")]
    NotFound {
        /// As it was asked for.
        program: String,
    },
    /// The system did not start it.
    #[error("cannot start {program}: {source}")]
    Start {
        /// As it was asked for.
        program: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// It took longer than its limit; its process group was ended.
    #[error("{program} did not end within its time limit and was stopped")]
    TimedOut {
        /// As it was asked for.
        program: String,
    },
    /// Somebody ended it; its process group was ended.
    #[error("{program} was stopped")]
    Cancelled {
        /// As it was asked for.
        program: String,
    },
    /// It said more than the caller was ready to keep.
    #[error("{program} printed more than {limit_bytes} bytes")]
    TooMuchOutput {
        /// As it was asked for.
        program: String,
        /// The bound.
        limit_bytes: usize,
    },
    /// Reading from it or writing to it failed.
    #[error("cannot talk to {program}: {source}")]
    Talk {
        /// As it was asked for.
        program: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// What a captured command left.
#[derive(Debug)]
pub struct Captured {
    /// How it ended.
    pub status: ExitStatus,
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// The last 64 KiB of standard error, lossily decoded.
    pub stderr: String,
}

/// A command that is about to be run.
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    input: Option<Vec<u8>>,
    grace: Duration,
}

impl Command {
    /// A command that sees exactly `environment`, with `/dev/null` as standard input.
    pub fn new(program: impl AsRef<Path>, environment: &[(OsString, OsString)]) -> Command {
        Command {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            environment: environment.to_vec(),
            folder: None,
            input: None,
            grace: Duration::from_secs(15),
        }
    }

    /// Adds an argument. Never a secret: arguments are world-readable.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Command {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Command {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets one more variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Command {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in `folder`, and sets `PWD`.
    #[must_use]
    pub fn folder(mut self, folder: impl AsRef<Path>) -> Command {
        self.folder = Some(folder.as_ref().to_owned());
        self
    }

    /// Gives it `input` on standard input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Command {
        self.input = Some(input.into());
        self
    }

    /// Time between SIGTERM and SIGKILL to the whole process group once the limit is over; 15 s unless said otherwise.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Command {
        self.grace = grace;
        self
    }

    /// Runs it to its end and keeps its output.
    ///
    /// # Errors
    /// See [`CommandError`]; an exit code other than 0 is none.
    pub fn capture(self, _limit: &Limit, _max_bytes: usize) -> Result<Captured, CommandError> {
        todo!()
    }

    /// Runs it to its end and hands over each line as it comes, without its line break; a line longer than 8 KiB comes in pieces.
    ///
    /// # Errors
    /// See [`CommandError`]; an exit code other than 0 is none.
    pub fn stream(self, _limit: &Limit, _on_line: &mut dyn FnMut(Output, &str)) -> Result<ExitStatus, CommandError> {
        todo!()
    }
}
