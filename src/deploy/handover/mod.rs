//! Shiparr in a container brings up the stack that it belongs to itself: what replaces its container cannot run in it. So
//! the `up` is handed to a helper, a container of the same image that nobody's stack holds and that ends with its work.
//!
//! The worker waits for the helper as it would wait for its own `up`, so no other one meets it. Where the daemon is
//! replaced meanwhile, the row stays `running`, and the next daemon waits instead, before its worker takes anything else.
//! Either way the outcome is that of the helper, and the deployment goes on with step 5.
//!
//! What a kill leaves, at whichever moment:
//!
//! | moment | found at the start | what follows |
//! |---|---|---|
//! | before the row is marked | a folder, no mark | the row was interrupted; the folder goes |
//! | before the helper has its job | a mark, the job in the folder | the job is withdrawn, the row interrupted |
//! | while the helper works | a mark, its lock | it is waited for |
//! | after its end | a mark, its answer | the answer is taken, unless a person has replaced the containers since |
//! | it was killed too, or the machine restarted | a mark, neither lock nor answer | the row is interrupted |

mod folder;
mod follow;
pub mod helper;
mod job;

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::folder::JobFolder;
use self::follow::{Followed, Following, TAKEN_WITHIN};
use self::helper::did_not_begin;
use self::job::{Answer, Brought, Job, PlainStack, PlaintextPlace};
use super::control::Control;
use super::journal::Journal;
use super::pipeline::Host;
use super::secret_files::Switched;
use super::variables::Plaintext;
use super::{Containers, Log, Plan, Stack, StepError, Up, UpError};
use crate::command::Limit;
use crate::model::{DeploymentId, LogLevel};
use crate::secrets::RuntimeFolder;
use crate::store::HandedOver;

/// For starting the container.
const DOCKER_LIMIT: Duration = Duration::from_secs(60);

/// What a driver can have done by a program of ours that goes on when this process is replaced.
pub trait Helpers: Send + Sync {
    /// The compose project whose `up` may replace the container that this process runs in; none where there is none.
    ///
    /// # Errors
    /// It cannot be known now, in one line.
    fn own_project(&self, limit: &Limit) -> Result<Option<String>, StepError>;

    /// The full id of the container that this process runs in; none where there is none.
    ///
    /// # Errors
    /// It cannot be known now, in one line.
    fn own_id(&self, limit: &Limit) -> Result<Option<String>, StepError>;

    /// Whether a helper could talk to what runs the containers.
    ///
    /// # Errors
    /// It could not, in one line that says what to do.
    fn can_help(&self, limit: &Limit) -> Result<(), StepError>;

    /// Starts one with the job in `folder`: it sees the files that this process sees.
    ///
    /// # Errors
    /// It does not start, in one line.
    fn start(&self, folder: &Path, plan: &Plan, limit: &Limit) -> Result<(), StepError>;

    /// Sends a signal to the one with the job in `folder`, if it runs.
    ///
    /// # Errors
    /// In one line.
    fn signal(&self, folder: &Path, signal: &str, limit: &Limit) -> Result<(), StepError>;
}

/// What is handed over.
pub(super) struct Given<'a> {
    pub deployment: DeploymentId,
    pub stack: &'a Stack,
    pub plan: &'a Plan,
    pub up: Up,
    /// Whether something of an interrupted deployment may be stopped still.
    pub heals_first: bool,
    pub secret_files: &'a Switched,
    /// When `up` began.
    pub since: Timestamp,
}

/// How it came to its end, as far as this process is concerned.
pub(super) enum End {
    /// The helper is done.
    Done(Box<Done>),
    /// Shiparr stops: the next start goes on.
    Left,
    /// The helper is gone, and nobody knows how far it came. Why that is thought.
    Lost(String),
}

/// What a helper has done.
pub(super) struct Done {
    pub result: Result<(), UpError>,
    /// Whether something stays to be healed.
    pub is_unsettled: bool,
    pub plan: Plan,
    pub since: Timestamp,
    pub secret_files: super::secret_files::Kept,
}

/// Whether the `up` of this compose project may replace the container that this process runs in.
///
/// # Errors
/// It cannot be known now.
pub(super) fn replaces_us(host: &Host, project: &str, limit: &Limit) -> Result<bool, StepError> {
    let Some(helpers) = host.driver.helpers() else { return Ok(false) };
    Ok(helpers.own_project(limit)?.as_deref() == Some(project))
}

/// Whether the `up` of this plan is handed over.
///
/// # Errors
/// It has to be, and no helper could do it; in one line that says what to mount.
pub(super) fn is_wanted(host: &Host, plan: &Plan, limit: &Limit) -> Result<bool, StepError> {
    if !replaces_us(host, &plan.project, limit)? {
        return Ok(false);
    }
    let runtime = &host.settings.runtime_path;
    host.driver.shares(runtime, runtime, limit)?;
    host.driver.helpers().map_or(Ok(()), |helpers| helpers.can_help(limit))?;
    Ok(true)
}

/// Hands the `up` over, and waits for what comes of it.
pub(super) fn up(host: &Host, given: Given<'_>, plaintext: Plaintext, control: &Control, journal: &mut Journal) -> End {
    let (id, began) = (given.deployment, Instant::now());
    let (plan, since, kept) = (given.plan, given.since, given.secret_files.kept());
    let folder = JobFolder::of(&host.settings.runtime_path, id);
    let not_begun = |error: UpError| {
        let (plan, secret_files) = (plan.clone(), kept.clone());
        End::Done(Box::new(Done { result: Err(error), is_unsettled: false, plan, since, secret_files }))
    };
    if let Err(error) = folder.create(job_of(host, &given, control, journal)) {
        clear(id, &folder);
        return not_begun(did_not_begin(error));
    }
    if let Err(error) = host.store.hand_over(id) {
        clear(id, &folder);
        return not_begun(did_not_begin(error.to_string()));
    }
    plaintext.leave();
    let limit = control.limit().at_most(DOCKER_LIMIT);
    let started = match host.driver.helpers() {
        Some(helpers) => helpers.start(folder.path(), plan, &limit),
        None => Err(StepError::for_good("nothing here can be handed over")),
    };
    match started {
        Ok(()) => journal.step("handed over to a helper container, as this stack holds Shiparr itself", began),
        // It may be on its way all the same: without its job it does nothing.
        Err(error) if folder.withdraw() => {
            take_back(host, id, &folder);
            return not_begun(UpError { error, ..did_not_begin("") });
        }
        Err(error) => journal.line(LogLevel::Warning, &error.message),
    }
    let following = Following { host, id, folder: &folder, control, taken: 0, taken_within: TAKEN_WITHIN };
    match following.follow(journal) {
        Followed::Untaken => {
            take_back(host, id, &folder);
            not_begun(did_not_begin(
                "the helper container did not begin: look at `docker events` and the log of Docker",
            ))
        }
        followed => end(host, id, &folder, followed),
    }
}

/// Waits for what comes of an `up` that a daemon before this one has handed over.
pub(super) fn resume(host: &Host, handed_over: &HandedOver, control: &Control, journal: &mut Journal) -> End {
    let id = handed_over.deployment.id;
    let folder = JobFolder::of(&host.settings.runtime_path, id);
    let taken = handed_over.log_bytes_taken;
    // Whoever was to start the helper is gone.
    let following = Following { host, id, folder: &folder, control, taken, taken_within: Duration::ZERO };
    let mut followed = following.follow(journal);
    if let Followed::Answered(answer) = &mut followed {
        refuse_another_container(host, answer, control);
    }
    end(host, id, &folder, followed)
}

/// A stack that was brought up by hand after the helper did, because the new version did not start, is not the one that
/// was deployed: this process would call its own health a success of the other one.
fn refuse_another_container(host: &Host, answer: &mut Answer, control: &Control) {
    if answer.result.is_err() || answer.containers.is_empty() {
        return;
    }
    let own_id = host.driver.helpers().map(|helpers| helpers.own_id(&control.limit().at_most(DOCKER_LIMIT)));
    let Some(Ok(Some(own_id))) = own_id else { return };
    if !answer.containers.contains(&own_id) {
        let why = "the container of Shiparr that it brought up is gone, and another one, which somebody has brought up \
                   since, runs in its place";
        answer.result = Err(UpError { error: StepError::for_good(why), containers: Containers::Changed });
    }
}

/// The names of the decrypted files of deployments that a helper may be at: only [`clean`] says which these are.
pub fn may_be_in_use(runtime: &Path) -> Vec<String> {
    JobFolder::names(runtime)
}

/// Removes what is left of deployments that no helper has. Gives what could not be removed, for the log.
pub fn clean(runtime: &Path, data: &Path, handed_over: &[HandedOver]) -> Vec<String> {
    let is_in_use = |name: &String| handed_over.iter().any(|left| left.deployment.id.to_string() == *name);
    let mut problems = Vec::new();
    for name in JobFolder::names(runtime).iter().filter(|name| !is_in_use(name)) {
        drop(RuntimeFolder::left(runtime, data, name));
        problems.extend(name.parse().ok().and_then(|id| JobFolder::of(runtime, id).remove().err()));
    }
    problems
}

fn job_of(host: &Host, given: &Given<'_>, control: &Control, journal: &Journal) -> Job {
    let settings = &host.settings;
    let name = given.deployment.to_string();
    Job {
        limit_milliseconds: control.limit().left().as_millis().try_into().unwrap_or(u64::MAX),
        docker: settings.docker_bin.clone(),
        environment: settings.environment.for_children(),
        plaintext: PlaintextPlace { runtime: settings.runtime_path.clone(), data: settings.data_path.clone(), name },
        stack: PlainStack::from(given.stack),
        up: given.up.clone(),
        heals_first: given.heals_first,
        scrubber: journal.scrubber(),
        kept: Brought { plan: given.plan.clone(), since: given.since, secret_files: given.secret_files.kept() },
    }
}

fn end(host: &Host, id: DeploymentId, folder: &JobFolder, followed: Followed) -> End {
    if !matches!(followed, Followed::Left) {
        take_back(host, id, folder);
    }
    match followed {
        Followed::Left => End::Left,
        Followed::Answered(answer) => {
            let Answer { result, is_unsettled, kept: Brought { plan, since, secret_files }, .. } = *answer;
            End::Done(Box::new(Done { result, is_unsettled, plan, since, secret_files }))
        }
        Followed::Unreadable(why) => End::Lost(format!("the helper's answer was not taken: {why}")),
        Followed::Untaken => End::Lost("Shiparr ended before a helper had begun".to_owned()),
        Followed::Gone => End::Lost("the helper container ended without an answer".to_owned()),
        Followed::Stuck => End::Lost("the helper container does not end, and Docker did not end it".to_owned()),
    }
}

/// The deployment is ours again, and nothing of it lies in plain text any more. A crash in between leaves an interrupted
/// one, and folders that the next start removes.
fn take_back(host: &Host, id: DeploymentId, folder: &JobFolder) {
    if let Err(error) = host.store.take_back(id) {
        log::error!("deployment {id}: {error}");
    }
    let (runtime, data) = (&host.settings.runtime_path, &host.settings.data_path);
    drop(RuntimeFolder::left(runtime, data, &id.to_string()));
    clear(id, folder);
}

fn clear(id: DeploymentId, folder: &JobFolder) {
    if let Err(error) = folder.remove() {
        log::error!("deployment {id}: what a helper was told stays behind: {error}");
    }
}

#[cfg(test)]
mod tests;
