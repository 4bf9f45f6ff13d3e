//! The only place that starts a process: its own process group, a time limit, an environment listed in code, bounded
//! output.

mod attended;
mod child;
mod limit;
mod lines;
mod memory;
mod places;
mod several;

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use child::{End, Running};
pub use limit::Limit;
use lines::Lines;
pub use lines::{CUT, MAX_LINE_BYTES};
pub use memory::MemoryFile;
pub use places::{Place, Places};
pub use several::Several;

/// Time between SIGTERM and SIGKILL unless a command says otherwise (spec section 4, step 4).
const GRACE: Duration = Duration::from_secs(15);
/// How much of standard error a captured command keeps.
const MAX_STDERR_BYTES: usize = 64 * 1024;

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
    /// The last 64 KiB of standard error, lossily decoded; where more was said it begins with [`CUT`].
    pub stderr: String,
}

/// A command that is about to be run.
///
/// It gets SIGTERM when this process dies, also by SIGKILL, so that the next daemon does not find it at work.
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    input: Option<Vec<u8>>,
    grace: Duration,
    is_merged: bool,
}

impl Command {
    /// A command that sees exactly `environment`, with `/dev/null` as standard input. The program is looked up on the
    /// `PATH` in `environment`.
    pub fn new(program: impl AsRef<Path>, environment: &[(OsString, OsString)]) -> Command {
        Command {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            environment: environment.to_vec(),
            folder: None,
            input: None,
            grace: GRACE,
            is_merged: false,
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

    /// Makes both of its outputs one, [`Output::Out`], so that what it says stays in the order in which it said it.
    #[must_use]
    pub fn merged(mut self) -> Command {
        self.is_merged = true;
        self
    }

    /// What is run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its arguments so far.
    pub fn arguments(&self) -> &[OsString] {
        &self.args
    }

    /// Its environment, without the `PWD` that comes with a folder.
    pub fn environment(&self) -> &[(OsString, OsString)] {
        &self.environment
    }

    /// Runs it to its end and keeps its output.
    ///
    /// # Errors
    /// See [`CommandError`]; an exit code other than 0 is none.
    pub fn capture(self, limit: &Limit, max_bytes: usize) -> Result<Captured, CommandError> {
        let mut stdout = Vec::new();
        let mut stderr = Tail::default();
        let status = self.run(limit, max_bytes, &mut |output, bytes| {
            match output {
                Output::Out if stdout.len() + bytes.len() > max_bytes => return ControlFlow::Break(()),
                Output::Out => stdout.extend_from_slice(bytes),
                Output::Err => stderr.push(bytes),
            }
            ControlFlow::Continue(())
        })?;
        Ok(Captured { status, stdout, stderr: stderr.into_text() })
    }

    /// Runs it to its end and hands over each line as it comes, without its line break (`\n` or `\r`); a line longer
    /// than [`MAX_LINE_BYTES`] comes in pieces, with [`CUT`] at both sides of each cut. While `on_line` works nothing
    /// is read, so a child that floods is slowed down and no memory grows.
    ///
    /// # Errors
    /// See [`CommandError`]; an exit code other than 0 is none.
    pub fn stream(self, limit: &Limit, on_line: &mut dyn FnMut(Output, &str)) -> Result<ExitStatus, CommandError> {
        let mut out = Lines::default();
        let mut err = Lines::default();
        let result = self.run(limit, 0, &mut |output, bytes| {
            let lines = if output == Output::Out { &mut out } else { &mut err };
            lines.push(bytes, &mut |line| on_line(output, line));
            ControlFlow::Continue(())
        });
        out.finish(&mut |line| on_line(Output::Out, line));
        err.finish(&mut |line| on_line(Output::Err, line));
        result
    }

    /// `limit_bytes` is what the error names where `on_bytes` has had enough.
    fn run(
        self,
        limit: &Limit,
        limit_bytes: usize,
        on_bytes: &mut dyn FnMut(Output, &[u8]) -> ControlFlow<()>,
    ) -> Result<ExitStatus, CommandError> {
        let program = self.program.display().to_string();
        if limit.is_cancelled() {
            return Err(CommandError::Cancelled { program });
        }
        if limit.is_over() {
            return Err(CommandError::TimedOut { program });
        }
        let grace = self.grace;
        let end = self
            .start()?
            .finish(limit, grace, on_bytes)
            .map_err(|source| CommandError::Talk { program: program.clone(), source })?;
        match end {
            End::Exited(status) => Ok(status),
            End::TimedOut => Err(CommandError::TimedOut { program }),
            End::Cancelled => Err(CommandError::Cancelled { program }),
            End::Refused => Err(CommandError::TooMuchOutput { program, limit_bytes }),
        }
    }

    /// Starts it, to be read by somebody who has others too.
    fn start(mut self) -> Result<Running, CommandError> {
        let program = self.program.display().to_string();
        let input = self.input.take();
        let mut command = self.prepare(input.is_some());
        let merged = if self.is_merged { Some(merge(&mut command)) } else { None };
        let merged = merged.transpose().map_err(|source| CommandError::Start { program: program.clone(), source })?;
        let mut child = command.spawn().map_err(|source| self.start_error(source))?;
        // The ends that the child writes to.
        drop(command);
        if let Some(end) = merged {
            child.stdout = Some(end);
        }
        Running::new(child, input.unwrap_or_default()).map_err(|source| CommandError::Talk { program, source })
    }

    /// In a process group of its own, with pipes.
    fn prepare(&self, has_input: bool) -> std::process::Command {
        let mut command = self.prepare_alone();
        command.stdin(if has_input { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    /// What is the same for every child.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn prepare_alone(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder).env("PWD", folder);
        }
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe {
            // The kernel sends the signal when the thread that started the command ends: each waits for its commands,
            // so only a death ends it first.
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                // The parent may have died before the call above.
                if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(ErrorKind::NotConnected.into()) }
            });
        }
        command
    }

    fn start_error(&self, source: std::io::Error) -> CommandError {
        let program = self.program.display().to_string();
        if source.kind() != ErrorKind::NotFound {
            return CommandError::Start { program, source };
        }
        match &self.folder {
            Some(folder) if !folder.is_dir() => {
                let problem = format!("its folder {} does not exist", folder.display());
                CommandError::Start { program, source: std::io::Error::new(ErrorKind::NotFound, problem) }
            }
            // A script whose interpreter is missing.
            _ if self.program.is_file() => CommandError::Start { program, source },
            _ => CommandError::NotFound { program },
        }
    }
}

/// Gives both outputs to one pipe; answers the end to read from.
fn merge(command: &mut std::process::Command) -> std::io::Result<ChildStdout> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    command.stdout(writer.try_clone()?).stderr(writer);
    Ok(reader.into())
}

/// The last bytes of an output.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * MAX_STDERR_BYTES {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        let surplus = self.bytes.len().saturating_sub(MAX_STDERR_BYTES);
        self.cut |= surplus > 0;
        self.bytes.drain(..surplus);
    }

    fn into_text(mut self) -> String {
        self.shorten();
        let text = String::from_utf8_lossy(&self.bytes);
        if self.cut { format!("{CUT}{text}") } else { text.into_owned() }
    }
}

#[cfg(test)]
mod tests;
