//! Waiting for a helper: its lines go into the deployment's log as they come, until it answers or is gone.

use std::time::{Duration, Instant};

use super::folder::JobFolder;
use super::job::Answer;
use crate::command::Limit;
use crate::deploy::control::Control;
use crate::deploy::journal::Journal;
use crate::deploy::pipeline::Host;
use crate::model::DeploymentId;

/// A helper that was started has its job by then.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at what the helper says.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For what a helper does after its time is over: Compose ends, containers that it had stopped are started again.
const AFTER_LIMIT: Duration = Duration::from_secs(300);
/// Docker is told this often to end a helper that does not end.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// A helper that was killed is gone by then; else Docker does not do as it is told.
const KILLED_WITHIN: Duration = Duration::from_secs(60);

/// A deployment whose helper is waited for.
pub(super) struct Following<'a> {
    pub host: &'a Host,
    pub id: DeploymentId,
    pub folder: &'a JobFolder,
    pub control: &'a Control,
    /// Bytes of the helper's log that are in the deployment's.
    pub taken: u64,
    /// How long a helper may leave its job where it lies.
    pub taken_within: Duration,
}

/// What became of a helper.
pub(super) enum Followed {
    /// It has done its work.
    Answered(Box<Answer>),
    /// It has, and what it says is not understood.
    Unreadable(String),
    /// It did not take its job, and never will.
    Untaken,
    /// It ended without an answer.
    Gone,
    /// It does not end.
    Stuck,
    /// Shiparr stops.
    Left,
}

impl Following<'_> {
    pub fn follow(mut self, journal: &mut Journal) -> Followed {
        let began = Instant::now();
        let mut until = began + self.control.limit().left() + AFTER_LIMIT;
        let mut told_at: Option<Instant> = None;
        loop {
            // Looked at in this order: an answer comes before the end.
            let is_late = began.elapsed() >= self.taken_within;
            let is_untaken = self.folder.is_untaken();
            let is_gone = !is_untaken && !self.folder.is_held();
            let answer = self.folder.answer();
            self.take_lines(journal);
            if self.control.is_left_to_helper() {
                return Followed::Left;
            }
            match answer {
                Some(Ok(answer)) => return Followed::Answered(Box::new(answer)),
                Some(Err(why)) => return Followed::Unreadable(why),
                None if is_gone => return Followed::Gone,
                None if is_untaken && is_late && self.folder.withdraw() => return Followed::Untaken,
                None => {}
            }
            let is_cancelled = self.control.limit().is_cancelled();
            let is_due = told_at.is_none_or(|at| at.elapsed() >= TELL_AGAIN);
            if is_cancelled && told_at.is_none() {
                until = until.min(Instant::now() + AFTER_LIMIT);
            }
            let is_over = Instant::now() >= until;
            if (is_cancelled || is_over) && is_due {
                told_at = Some(Instant::now());
                self.tell(if is_over { "KILL" } else { "TERM" });
            }
            if Instant::now() >= until + KILLED_WITHIN {
                return Followed::Stuck;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Takes all the lines that are there. What the database does not take now, it takes at the next look.
    fn take_lines(&mut self, journal: &mut Journal) {
        loop {
            let (lines, end) = self.folder.lines(self.taken);
            if end == self.taken || journal.add_of_helper(lines, end).is_err() {
                return;
            }
            self.taken = end;
        }
    }

    fn tell(&self, signal: &str) {
        let Some(helpers) = self.host.driver.helpers() else { return };
        if let Err(error) = helpers.signal(self.folder.path(), signal, &Limit::after(TELL_AGAIN)) {
            log::warn!("deployment {}: its helper container was not told to end: {error}", self.id);
        }
    }
}
