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
    /// When the limit ends, the child and what it has started get SIGTERM and, after its grace, SIGKILL; not its group,
    /// which is this process's own, and may be that of a script. The terminal is left as it was found.
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
    while !limit.is_over() {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        pause(pidfd.as_ref())?;
    }
    // What it has started as well: a docker client does not pass the signal on to every plugin.
    let mut below = descendants(pid);
    tell(Some(pid), &below, Signal::TERM);
    let until = Instant::now() + grace;
    while Instant::now() < until {
        if child.try_wait()?.is_some() && below.iter().all(has_ended) {
            return Ok(None);
        }
        std::thread::sleep(TICK / 4);
    }
    if child.try_wait()?.is_none() {
        below.extend(descendants(pid));
        child.kill()?;
    }
    tell(None, &below, Signal::KILL);
    child.wait()?;
    Ok(None)
}

/// Sends a signal to a child that is not reaped yet, so that its id is its own, and to others.
fn tell(child: Option<Pid>, others: &[OwnedFd], signal: Signal) {
    // The only error would be that one has just ended.
    if let Some(pid) = child {
        let _ = rustix::process::kill_process(pid, signal);
    }
    for other in others {
        let _ = rustix::process::pidfd_send_signal(other, signal);
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

/// The processes below a process, as far as the kernel gives a hold on them.
fn descendants(pid: Pid) -> Vec<OwnedFd> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parents: Vec<(i32, i32)> = pids.filter_map(|other| Some((other, parent_of(other)?))).collect();
    let mut found = vec![pid.as_raw_pid()];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(other, _)| *other));
        next += 1;
    }
    let hold = |other: &i32| rustix::process::pidfd_open(Pid::from_raw(*other)?, PidfdFlags::empty()).ok();
    found[1..].iter().filter_map(hold).collect()
}

/// The second field after a process's name, which is in parentheses and may hold any.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(process, PollFlags::IN)];
    rustix::event::poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
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
        // Deaf, with a child that is not.
        let folder = tempfile::tempdir().unwrap();
        let script = "sh -c 'trap \"echo told > told\" TERM; : > ready; while :; do sleep 0.1; done' & trap '' TERM; while :; do sleep 0.1; done";
        let limit = Limit::after(Duration::from_secs(60));
        let error = std::thread::scope(|scope| {
            let ended = scope.spawn(|| shell(script).folder(&folder).grace(Duration::from_secs(2)).attend(&limit));
            while !folder.path().join("ready").exists() {
                assert!(begin.elapsed() < Duration::from_secs(30));
                std::thread::sleep(TICK);
            }
            limit.cancel();
            ended.join().unwrap().unwrap_err()
        });
        assert!(matches!(error, CommandError::Cancelled { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(folder.path().join("told")).unwrap(), "told\n");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
