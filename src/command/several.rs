//! Several children whose lines one thread reads as they come.

use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec};
use rustix::io::Errno;
use rustix::process::Signal;

use super::child::Running;
use super::lines::Lines;
use super::{Command, CommandError, Limit, Output};

/// How long the end of the limit may go unnoticed while nobody says anything. Longer than that of a single command: what
/// is followed is mostly silent.
const TICK: Duration = Duration::from_millis(250);

/// Children that only read: dropped, it kills them with their groups, for there is nothing that they would have to
/// finish.
///
/// While nobody listens nothing is read, so children that flood wait and no memory grows. They get SIGTERM when the
/// thread that started them ends, which is why this cannot move to another.
#[derive(Default)]
pub struct Several {
    children: Vec<One>,
    /// Where listening went on last, so that a child that floods does not keep the others from being heard.
    next: usize,
    stays_in_its_thread: PhantomData<*const ()>,
}

struct One {
    key: usize,
    running: Running,
    out: Lines,
    err: Lines,
    drains_until: Option<Instant>,
}

/// A child that has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// What it was started with.
    pub key: usize,
    /// Whether its exit code was 0.
    pub success: bool,
}

impl Several {
    /// Starts one more, without standard input. `key` is how its lines and its end are told apart from those of others.
    ///
    /// # Errors
    /// That it cannot be started.
    pub fn start(&mut self, key: usize, command: Command) -> Result<(), CommandError> {
        let running = command.start()?;
        self.children.push(One { key, running, out: Lines::default(), err: Lines::default(), drains_until: None });
        Ok(())
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Waits for at most `time`, and no longer than `limit`, until one says something or ends. Hands over the lines as
    /// [`Command::stream`] does, until `on_line` has had enough, and answers which children have ended: their last
    /// lines were handed over before.
    ///
    /// # Errors
    /// The system's, in waiting or reading.
    pub fn listen(
        &mut self,
        limit: &Limit,
        time: Duration,
        on_line: &mut dyn FnMut(usize, Output, &str) -> ControlFlow<()>,
    ) -> std::io::Result<Vec<Ended>> {
        self.wait(time.min(limit.left()).min(TICK))?;
        let mut ended = Vec::new();
        let mut has_enough = ControlFlow::Continue(());
        let count = self.children.len();
        for step in 0..count {
            let one = &mut self.children[(self.next + step) % count];
            let key = one.key;
            if let Some(success) = one.look(&mut |output, line| {
                if has_enough.is_continue() {
                    has_enough = on_line(key, output, line);
                }
                has_enough
            })? {
                ended.push(Ended { key, success });
            }
            if has_enough.is_break() {
                break;
            }
        }
        self.children.retain(|one| !ended.iter().any(|ended| ended.key == one.key));
        self.next = if self.children.is_empty() { 0 } else { (self.next + 1) % self.children.len() };
        Ok(ended)
    }

    fn wait(&self, time: Duration) -> std::io::Result<()> {
        let time = Timespec::try_from(time).map_err(std::io::Error::other)?;
        let mut awaited: Vec<PollFd<'_>> = self.children.iter().flat_map(|one| one.running.awaited()).collect();
        match rustix::event::poll(&mut awaited, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl One {
    fn look(&mut self, on_line: &mut dyn FnMut(Output, &str) -> ControlFlow<()>) -> std::io::Result<Option<bool>> {
        let One { running, out, err, drains_until, .. } = self;
        let status = running.look(drains_until, &mut |output, bytes| {
            let lines = if output == Output::Out { &mut *out } else { &mut *err };
            let mut flow = ControlFlow::Continue(());
            lines.push(bytes, &mut |line| flow = on_line(output, line));
            flow
        })?;
        let Some(status) = status else { return Ok(None) };
        // Who has enough of them has said so, and gets no more.
        out.finish(&mut |line| {
            let _ = on_line(Output::Out, line);
        });
        err.finish(&mut |line| {
            let _ = on_line(Output::Err, line);
        });
        Ok(Some(status.success()))
    }
}

impl Drop for Several {
    fn drop(&mut self) {
        // All of them first: each is waited for when it is dropped.
        self.children.iter().for_each(|one| one.running.signal_group(Signal::KILL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        Command::new("sh", &[("PATH".into(), "/usr/bin:/bin".into())]).args(["-c", script])
    }

    /// Listens until `enough` says so of all that was told; a line is `KEY OUTPUT TEXT`, an end `KEY ended SUCCESS`.
    fn hear(several: &mut Several, enough: impl Fn(&[String]) -> bool) -> Vec<String> {
        let limit = Limit::after(LONG);
        let mut told = Vec::new();
        while !enough(&told) {
            assert!(!limit.is_over(), "{told:?}");
            let ended = several.listen(&limit, LONG, &mut |key, output, line| {
                told.push(format!("{key} {output:?} {line}"));
                ControlFlow::Continue(())
            });
            told.extend(ended.unwrap().iter().map(|ended| format!("{} ended {}", ended.key, ended.success)));
        }
        told
    }

    #[test]
    fn each_child_is_heard_while_the_others_run_and_its_end_comes_last() {
        let mut several = Several::default();
        several.start(7, shell("echo one; printf two >&2; exit 3")).unwrap();
        several.start(8, shell("echo here; exec sleep 60")).unwrap();
        let told = hear(&mut several, |told| told.len() == 4);
        let of = |key: &str| told.iter().filter(|line| line.starts_with(key)).cloned().collect::<Vec<_>>();
        let mut first = of("7");
        assert_eq!(first.pop().as_deref(), Some("7 ended false"));
        first.sort();
        assert_eq!((first, of("8")), (vec!["7 Err two".into(), "7 Out one".into()], vec!["8 Out here".into()]));
        several.start(9, shell("echo later")).unwrap();
        assert_eq!(hear(&mut several, |told| told.len() == 2), ["9 Out later", "9 ended true"]);
    }

    #[test]
    fn one_that_floods_does_not_drown_the_others() {
        let mut several = Several::default();
        several.start(0, shell("exec yes")).unwrap();
        several.start(1, shell("echo here; exec sleep 60")).unwrap();
        hear(&mut several, |told| told.iter().any(|line| line == "1 Out here"));
    }

    #[test]
    fn who_has_enough_gets_no_more_and_none_is_left_behind() {
        let mut several = Several::default();
        several.start(0, shell("trap '' TERM; echo $$; while :; do echo more; done")).unwrap();
        several.start(1, shell("trap '' TERM; echo $$; sleep 60 & echo $!; wait")).unwrap();
        let pids = hear(&mut several, |told| {
            told.iter().any(|line| line == "0 Out more")
                && told.iter().filter(|line| line.starts_with("1 ")).count() == 2
        });
        let mut count = 0;
        let limit = Limit::after(LONG);
        while count == 0 {
            let heard = several.listen(&limit, LONG, &mut |_, _, _| {
                count += 1;
                ControlFlow::Break(())
            });
            heard.unwrap();
        }
        assert_eq!(count, 1);
        drop(several);
        let until = Instant::now() + LONG;
        for pid in pids.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()) {
            // A grandchild is reaped by whoever inherits it.
            let is_there = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => !stat.contains(") Z "),
                Err(_) => false,
            };
            while is_there() {
                assert!(Instant::now() < until, "{pid} is still there");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_cancelled_limit_ends_the_wait() {
        let mut several = Several::default();
        several.start(0, shell("exec sleep 60")).unwrap();
        let limit = Limit::after(LONG);
        limit.cancel();
        let began = Instant::now();
        assert_eq!(several.listen(&limit, LONG, &mut |_, _, _| ControlFlow::Continue(())).unwrap(), []);
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
