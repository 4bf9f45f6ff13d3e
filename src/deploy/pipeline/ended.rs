//! The end of a deployment: its outcome is recorded, and what nothing needs any more goes.

use std::time::Duration;

use jiff::Timestamp;

use super::{Begun, Host, Job, Running, listed};
use crate::command::Limit;
use crate::deploy::journal::Journal;
use crate::deploy::secret_files::Switched;
use crate::deploy::{Log, checkout};
use crate::git;
use crate::model::LogLevel;
use crate::store::{Outcome, StoreError};

/// For combining what many fetches left in an object store.
const TIDY_LIMIT: Duration = Duration::from_secs(120);
/// For removing unused images after a success.
const PRUNE_LIMIT: Duration = Duration::from_secs(300);

/// A deployment that has come to its end, and whose outcome is to be recorded.
pub struct Ended {
    pub(super) running: Running,
    /// None: Shiparr stops, the row stays `running`, and `Store::recover` queues it again at the next start.
    pub(super) outcome: Option<Outcome>,
    /// After a success: those of the stack.
    pub(super) secret_files: Option<Switched>,
}

impl Ended {
    /// What came of it; none where Shiparr stops before that is known.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// What was deployed.
    pub fn job(&self) -> &Job {
        &self.running.job
    }

    /// Step 6: records the outcome. Telling people is for those who read the record.
    ///
    /// # Errors
    /// The database does not take it: then it can be called again.
    pub fn record(&self, host: &Host) -> Result<(), StoreError> {
        let Some(outcome) = &self.outcome else { return Ok(()) };
        let Running { job, began, .. } = &self.running;
        let (id, name, seconds) = (job.deployment.id, &job.repository.name, began.elapsed().as_secs_f64());
        host.store.finish(id, outcome, Timestamp::now())?;
        match outcome {
            Outcome::Success => log::info!("{name}: deployment {id} succeeded in {seconds:.1} s"),
            Outcome::Skipped { reason } => log::info!("{name}: deployment {id} is skipped: {reason}"),
            Outcome::Superseded { error } | Outcome::Cancelled { error } | Outcome::Interrupted { error } => {
                log::warn!("{name}: deployment {id}: {error}");
            }
            Outcome::Failed { error, .. } => log::error!("{name}: deployment {id} failed: {error}"),
        }
        Ok(())
    }

    /// Whether [`Ended::tidy`] has nothing to do that takes long.
    pub fn is_soon_tidy(&self, host: &Host) -> bool {
        let job = self.job();
        let checkout = checkout::of(host, &job.repository, &job.record);
        self.outcome.is_none()
            || self.running.control.cause().is_some()
            || checkout.is_ok_and(|checkout| !git::wants_tidying(&checkout))
    }

    /// Once that is recorded: the object store is kept small, and after a success decrypted files and images go that
    /// nothing uses any more.
    pub fn tidy(&mut self, host: &Host) {
        if self.outcome.is_none() {
            return;
        }
        let control = &self.running.control;
        if control.cause().is_none() {
            tidy_store(host, self.job(), &control.limit().anew(TIDY_LIMIT));
        }
        let Some(secret_files) = &self.secret_files else { return };
        let Running { control, journal, .. } = &mut self.running;
        match secret_files.remove_unnamed() {
            Ok(links) if links.is_empty() => {}
            Ok(links) => journal.line(LogLevel::Info, &format!("not in `secret_files` any more: {}", listed(&links))),
            Err(error) => journal.line(LogLevel::Warning, &error.message),
        }
        if host.settings.enable_image_prune {
            prune_images(host, control.limit(), journal);
        }
    }
}

impl From<Ended> for Begun {
    fn from(ended: Ended) -> Begun {
        Begun::Ended(Box::new(ended))
    }
}

/// A store that cannot be made small now is so after a later deployment.
fn tidy_store(host: &Host, job: &Job, limit: &Limit) {
    let Ok(Some(record)) = host.store.repository(job.record.id) else { return };
    let Ok(checkout) = checkout::of(host, &job.repository, &record) else { return };
    if let Err(error) = git::tidy(&checkout, &host.git, limit) {
        log::debug!("{}: its object store was not made smaller: {error}", job.repository.name);
    }
}

/// Removes images that nothing uses; a failure is only a line, for the stack is well.
fn prune_images(host: &Host, limit: &Limit, journal: &mut Journal) {
    if let Err(error) = host.driver.prune_images(&limit.at_most(PRUNE_LIMIT), journal) {
        journal.line(LogLevel::Warning, &format!("unused images were not removed: {error}"));
    }
}
