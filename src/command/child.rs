//! A running child: one loop that waits for its output, its input, its end and its limit.

use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::{Limit, Output};

/// How long a cancellation may go unnoticed, and a child's end where the kernel has no pidfd for it.
const TICK: Duration = Duration::from_millis(100);
/// How long output is read on after the child's end, or after SIGKILL, while somebody else holds the pipes open.
const DRAIN: Duration = Duration::from_secs(2);
/// One read. Small, so that the limit is looked at often while a child floods.
const READ_BYTES: usize = 16 * 1024;

/// Children that SIGKILL did not end in time (they hang in the kernel); they are reaped when a later command starts.
static UNREAPED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// How a child came to its end.
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// The limit ran out.
    TimedOut,
    /// The limit was cancelled.
    Cancelled,
    /// The reader of its output had enough.
    Refused,
}

/// A child in a process group of its own. Dropped, it takes its group with it.
pub(super) struct Running {
    child: Option<Child>,
    /// The child's id and its group's. Nobody else gets it before the child is reaped, which is why that comes last.
    pid: Pid,
    pidfd: Option<OwnedFd>,
    stdin: Option<ChildStdin>,
    input: Vec<u8>,
    written: usize,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    exited: bool,
}

/// What was done to end it, and until when that may take.
#[derive(Clone, Copy)]
enum Stage {
    /// Within its limit.
    Runs,
    /// The child has ended; somebody may still hold its pipes.
    Drains { until: Instant },
    /// It got SIGTERM.
    Terminated { until: Instant, cancelled: bool, group_told: bool },
    /// Its group got SIGKILL.
    Killed { until: Instant, cancelled: bool },
}

impl Running {
    /// Takes over a child that was just started as the leader of its own group.
    pub(super) fn new(mut child: Child, input: Vec<u8>) -> std::io::Result<Running> {
        reap_leftovers();
        let pid = Pid::from_child(&child);
        let running = Running {
            pid,
            pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok(),
            stdin: child.stdin.take(),
            input,
            written: 0,
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child: Some(child),
            exited: false,
        };
        let pipes = [
            running.stdin.as_ref().map(AsFd::as_fd),
            running.stdout.as_ref().map(AsFd::as_fd),
            running.stderr.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(running)
    }

    /// Runs the child to its end, or ends it: SIGTERM to the child when the limit is over, and after `grace` SIGKILL to
    /// its group.
    pub(super) fn finish(
        mut self,
        limit: &Limit,
        grace: Duration,
        on_bytes: &mut dyn FnMut(Output, &[u8]) -> ControlFlow<()>,
    ) -> std::io::Result<End> {
        let mut stage = Stage::Runs;
        loop {
            self.wait(limit, stage)?;
            self.write_input()?;
            if self.read_outputs(on_bytes)?.is_break() {
                return Ok(End::Refused);
            }
            self.notice_exit()?;
            stage = self.next_stage(stage, limit, grace);
            let now = Instant::now();
            match stage {
                Stage::Drains { .. } if self.pipes_closed() => return Ok(End::Exited(self.reap()?)),
                Stage::Drains { until } if now >= until => {
                    self.signal_group(Signal::KILL);
                    return Ok(End::Exited(self.reap()?));
                }
                Stage::Terminated { cancelled, .. } if self.exited && self.pipes_closed() => {
                    return Ok(ended_by_limit(cancelled));
                }
                Stage::Killed { until, cancelled } if now >= until || self.exited && self.pipes_closed() => {
                    return Ok(ended_by_limit(cancelled));
                }
                _ => {}
            }
        }
    }

    fn next_stage(&self, stage: Stage, limit: &Limit, grace: Duration) -> Stage {
        let now = Instant::now();
        match stage {
            Stage::Runs if self.exited => Stage::Drains { until: now + DRAIN },
            Stage::Runs if limit.is_over() => {
                self.signal_child(Signal::TERM);
                Stage::Terminated { until: now + grace, cancelled: limit.is_cancelled(), group_told: false }
            }
            Stage::Terminated { until, cancelled, .. } if now >= until => {
                self.signal_group(Signal::KILL);
                Stage::Killed { until: now + DRAIN, cancelled }
            }
            // A child that did not pass the signal on (an old docker client does not tell its plugin) leaves that to
            // us.
            Stage::Terminated { until, cancelled, group_told: false } if self.exited => {
                self.signal_group(Signal::TERM);
                Stage::Terminated { until, cancelled, group_told: true }
            }
            unchanged => unchanged,
        }
    }

    /// One look at a child that runs among others, without waiting: hands over what it has said since, at most one
    /// piece of each output, and answers how it ended once it has. Somebody who holds its pipes after its end has until
    /// `drains_until`, which begins with that end.
    pub(super) fn look(
        &mut self,
        drains_until: &mut Option<Instant>,
        on_bytes: &mut dyn FnMut(Output, &[u8]) -> ControlFlow<()>,
    ) -> std::io::Result<Option<ExitStatus>> {
        if self.read_outputs(on_bytes)?.is_break() {
            return Ok(None);
        }
        self.notice_exit()?;
        if !self.exited {
            return Ok(None);
        }
        let now = Instant::now();
        let until = *drains_until.get_or_insert(now + DRAIN);
        if !self.pipes_closed() {
            if now < until {
                return Ok(None);
            }
            self.signal_group(Signal::KILL);
        }
        self.reap().map(Some)
    }

    /// What says that there is something to read, or that the child has ended.
    pub(super) fn awaited(&self) -> impl Iterator<Item = PollFd<'_>> {
        let stdout = self.stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        let stderr = self.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        let end = self.pidfd.as_ref().filter(|_| !self.exited).map(|pidfd| PollFd::new(pidfd, PollFlags::IN));
        stdout.into_iter().chain(stderr).chain(end)
    }

    /// Sleeps until there is something to read, to write or to decide.
    fn wait(&self, limit: &Limit, stage: Stage) -> std::io::Result<()> {
        let time = match stage {
            Stage::Runs => limit.left(),
            Stage::Drains { until } | Stage::Terminated { until, .. } | Stage::Killed { until, .. } => {
                until.saturating_duration_since(Instant::now())
            }
        };
        let time = Timespec::try_from(time.min(TICK)).map_err(std::io::Error::other)?;
        let mut waited_for = Vec::with_capacity(4);
        waited_for.extend(self.stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        waited_for.extend(self.awaited());
        match rustix::event::poll(&mut waited_for, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes what the pipe takes, and closes it after the last byte, or when the child does not want it.
    fn write_input(&mut self) -> std::io::Result<()> {
        let Some(pipe) = &mut self.stdin else { return Ok(()) };
        while self.written < self.input.len() {
            match pipe.write(&self.input[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                Err(error) => return Err(error),
            }
        }
        self.stdin = None;
        Ok(())
    }

    fn read_outputs(
        &mut self,
        on_bytes: &mut dyn FnMut(Output, &[u8]) -> ControlFlow<()>,
    ) -> std::io::Result<ControlFlow<()>> {
        if read_once(&mut self.stdout, Output::Out, on_bytes)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        read_once(&mut self.stderr, Output::Err, on_bytes)
    }

    fn pipes_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Asks whether the child has ended, without reaping it.
    fn notice_exit(&mut self) -> std::io::Result<()> {
        if !self.exited {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            self.exited = rustix::process::waitid(WaitId::Pid(self.pid), options)?.is_some();
            if self.exited {
                self.stdin = None;
            }
        }
        Ok(())
    }

    fn signal_child(&self, signal: Signal) {
        // The only error would be that it is gone, and it is not reaped yet.
        let _ = rustix::process::kill_process(self.pid, signal);
    }

    pub(super) fn signal_group(&self, signal: Signal) {
        // An error means that nobody is left in the group, or that they are another user's.
        let _ = rustix::process::kill_process_group(self.pid, signal);
    }

    /// Collects the status of a child that has ended.
    fn reap(&mut self) -> std::io::Result<ExitStatus> {
        match self.child.take() {
            Some(mut child) => child.wait(),
            None => Err(std::io::Error::other("the child was reaped before")),
        }
    }
}

impl Drop for Running {
    /// Nothing of a child that was ended, or whose reader failed, stays: its group is killed, and it is reaped.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        self.signal_group(Signal::KILL);
        let deadline = Instant::now() + DRAIN;
        while !self.exited && Instant::now() < deadline && self.notice_exit().is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !matches!(child.try_wait(), Ok(Some(_))) {
            UNREAPED.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        }
    }
}

fn ended_by_limit(cancelled: bool) -> End {
    if cancelled { End::Cancelled } else { End::TimedOut }
}

/// Reads one piece of an output; the pipe is gone after its end.
fn read_once(
    pipe: &mut Option<impl Read>,
    output: Output,
    on_bytes: &mut dyn FnMut(Output, &[u8]) -> ControlFlow<()>,
) -> std::io::Result<ControlFlow<()>> {
    let Some(reader) = pipe else { return Ok(ControlFlow::Continue(())) };
    let mut buffer = [0; READ_BYTES];
    match reader.read(&mut buffer) {
        Ok(0) => *pipe = None,
        Ok(count) => return Ok(on_bytes(output, &buffer[..count])),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(error) => return Err(error),
    }
    Ok(ControlFlow::Continue(()))
}

fn reap_leftovers() {
    UNREAPED.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}
