//! A child that a person works with: it has this process's terminal.

use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::termios::{OptionalActions, Termios};
use signal_hook::consts::{SIGINT, SIGQUIT};

use super::{Command, CommandError, Limit};

/// How long a cancellation may go unnoticed, and a child's end where the kernel has no pidfd for it.
const TICK: Duration = Duration::from_millis(100);

impl Command {
    /// Runs it to its end with this process's own standard input, output and error, and in its process group, so that
    /// what the terminal sends (Ctrl-C, Ctrl-Z, a new size) reaches it. This process does not end by Ctrl-C and Ctrl-\
    /// from then on: what they mean is the child's to say.
    ///
    /// When the limit ends, the child gets SIGTERM and, after its grace, SIGKILL; the child alone, because its group is
    /// this process's own. The terminal is left as it was found.
    ///
    /// # Errors
    /// See [`CommandError`]; an exit code other than 0 is none.
    pub fn attend(self, limit: &Limit) -> Result<ExitStatus, CommandError> {
        let program = self.program.display().to_string();
        let talk = |source| CommandError::Talk { program: program.clone(), source };
        for signal in [SIGINT, SIGQUIT] {
            // A handler, unlike ignoring it, is not inherited.
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).map_err(talk)?;
        }
        let terminal = rustix::termios::tcgetattr(std::io::stdin()).ok();
        let mut child = self.prepare_alone().spawn().map_err(|source| self.start_error(source))?;
        match wait(&mut child, limit, self.grace).map_err(talk)? {
            Some(status) => Ok(status),
            None => {
                restore(terminal.as_ref());
                Err(if limit.is_cancelled() {
                    CommandError::Cancelled { program }
                } else {
                    CommandError::TimedOut { program }
                })
            }
        }
    }
}

/// Waits for a child's end; none where the limit had to end it.
fn wait(child: &mut Child, limit: &Limit, grace: Duration) -> std::io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
    let mut kill_at = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(kill_at.is_none().then_some(status));
        }
        match kill_at {
            None if limit.is_over() => {
                // It is not reaped yet, so the id is its own, and the only error would be that it has just ended.
                let _ = rustix::process::kill_process(pid, Signal::TERM);
                kill_at = Some(Instant::now() + grace);
            }
            Some(at) if Instant::now() >= at => child.kill()?,
            _ => {}
        }
        pause(pidfd.as_ref())?;
    }
}

/// Until the child ends, at most a tick.
fn pause(pidfd: Option<&OwnedFd>) -> std::io::Result<()> {
    let tick = Timespec::try_from(TICK).map_err(std::io::Error::other)?;
    let mut waited_for: Vec<PollFd<'_>> = pidfd.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).into_iter().collect();
    match rustix::event::poll(&mut waited_for, Some(&tick)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A program that was ended in the middle may have left the terminal without echo.
fn restore(terminal: Option<&Termios>) {
    if let Some(terminal) = terminal {
        // A terminal that is gone needs nothing.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, terminal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests find programs by their own PATH")]

    use super::*;

    fn shell(script: &str) -> Command {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Command::new("sh", &[("PATH".into(), path)]).args(["-c", script])
    }

    #[test]
    fn it_has_its_own_exit_code_and_environment_and_our_process_group() {
        let limit = Limit::after(Duration::from_secs(60));
        let group = rustix::process::getpgrp().as_raw_pid();
        let script = format!("[ $(cut -d' ' -f5 /proc/self/stat) = {group} ] && [ $PWD = /usr ] && exit 7");
        assert_eq!(shell(&script).folder("/usr").attend(&limit).unwrap().code(), Some(7));
        let error = Command::new("/nonexistent/program", &[]).attend(&limit).unwrap_err();
        assert!(matches!(error, CommandError::NotFound { .. }), "{error}");
    }

    #[test]
    fn a_cancellation_ends_one_that_listens_and_one_that_does_not() {
        let over = Limit::after(Duration::from_secs(60));
        over.cancel();
        let error = shell("sleep 60").attend(&over).unwrap_err();
        assert!(matches!(error, CommandError::Cancelled { .. }), "{error}");
        let begin = Instant::now();
        let deaf = shell("trap '' TERM; while :; do sleep 0.1; done").grace(Duration::from_millis(300));
        let error = deaf.attend(&Limit::after(Duration::from_millis(200))).unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
