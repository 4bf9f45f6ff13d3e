//! Leaving things as they were: files are put back while no container has changed, and what an ended or interrupted
//! `up` left stopped is started again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::journal::Journal;
use super::pipeline::{Host, Job};
use super::stack::assemble;
use super::{Containers, Driver, Log, Plan, Stack, StepError, UpError, checkout, handover};
use crate::command::Limit;
use crate::config::Repository;
use crate::git;
use crate::model::{Asked, Chance, DeploymentRecord, Ending, LogLevel, RepositoryRecord};
use crate::secrets::Scrubber;
use crate::store::StoreError;

/// Putting files back has a limit of its own: the deployment's may be over.
const PUT_BACK_LIMIT: Duration = Duration::from_secs(60);
/// For the question whether Docker is there still, after an `up` that failed.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Reading and decrypting what an interrupted `up` had before it.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);

/// Puts the files back that lay there before a deployment that changed no container. What cannot be put back now is
/// tried again before the next deployment.
pub fn put_back(host: &Host, job: &Job, checkout: &git::Checkout, journal: &mut Journal) {
    let Err(problem) = restore(host, &job.record, checkout, journal) else { return };
    let message = format!("the files were not put back, the next deployment tries again: {problem}");
    journal.line(LogLevel::Error, &message);
    leave(host, job);
}

/// Something of a deployment is still to be settled: the next one of its repository begins with that.
pub fn leave(host: &Host, job: &Job) {
    if let Err(error) = host.store.leave_unsettled(job.deployment.id) {
        log::error!("{}: deployment {}: {error}", job.repository.name, job.deployment.id);
    }
}

/// Containers have changed: the files that lie there now are theirs, and are not put back any more.
pub fn keep(checkout: &git::Checkout, journal: &mut Journal) {
    if let Err(error) = git::keep(checkout) {
        journal.line(LogLevel::Warning, &format!("what could put the files back could not be removed: {error}"));
    }
}

/// What an `up` that was ended in the middle left stopped is started again. Answers the error with what came of that, and
/// whether something of it stays to be settled.
pub fn after_failed_up(
    driver: &dyn Driver,
    stack: &Stack,
    plan: &Plan,
    error: UpError,
    limit: &Limit,
    log: &mut dyn Log,
) -> (UpError, bool) {
    let mut error = error;
    if !limit.is_cancelled() && driver.available(&Limit::after(ASK_LIMIT)).is_err() {
        // Compose has many words for a Docker that goes away while it works.
        error.error.chance = Chance::CanPass;
    }
    if error.containers != Containers::Interrupted {
        return (error, false);
    }
    let healed = driver.heal(stack, plan, log);
    let is_unsettled = healed.is_err();
    (error.after_healing(healed), is_unsettled)
}

/// What an interrupted or ended deployment of the same repository left is settled before the next one begins, whatever
/// that one is: its files are put back, or, where its `up` had begun, what that left stopped is started again, with that
/// commit's files and its variables decrypted anew. Where these cannot be had, nothing is run. Answers whether containers
/// are still to be started again, by whoever is not replaced by that.
///
/// # Errors
/// The database's.
pub fn settle(host: &Host, job: &Job, limit: &Limit, journal: &mut Journal) -> Result<bool, StoreError> {
    let Some(left) = host.store.unsettled(job.record.id)? else { return Ok(false) };
    let checkout = checkout::of(host, &job.repository, &job.record)?;
    if wants_files_back(&left, &checkout) {
        if let Err(problem) = restore(host, &job.record, &checkout, journal) {
            // The new checkout goes on from whatever lies there.
            let message = format!("the files of deployment {} were not put back: {problem}", left.id);
            journal.line(LogLevel::Warning, &message);
        }
    } else if left.up_began {
        keep(&checkout, journal);
        match heal_interrupted(host, job, &left, limit, journal) {
            Ok(Healing::Done) => {}
            Ok(Healing::ReplacesUs) => return Ok(true),
            Err(why) => {
                let message = format!("what deployment {} left was not healed: {why}", left.id);
                journal.line(LogLevel::Warning, &message);
                if why.chance == Chance::CanPass {
                    return Ok(false);
                }
            }
        }
    }
    host.store.settled(job.record.id)?;
    Ok(false)
}

/// Whether it is its files that an unsettled deployment left. One that was interrupted in its `up` has its files kept:
/// containers may have changed with them.
fn wants_files_back(left: &DeploymentRecord, checkout: &git::Checkout) -> bool {
    let may_have_changed_containers = left.up_began && left.ending == Some(Ending::Interrupted);
    !may_have_changed_containers && checkout.can_be_put_back()
}

/// At the start of the daemon: the files of a deployment that was interrupted before its `up` are put back at once, for
/// a container that restarts is to find the configuration that it knows.
///
/// # Errors
/// The database's.
pub fn put_back_interrupted(host: &Host, repository: &Repository, record: &RepositoryRecord) -> Result<(), StoreError> {
    let Some(left) = host.store.unsettled(record.id)? else { return Ok(()) };
    let checkout = checkout::of(host, repository, record)?;
    if !wants_files_back(&left, &checkout) {
        return Ok(());
    }
    let mut journal = Journal::new(Arc::clone(&host.store), left.id, Scrubber::new());
    match restore(host, record, &checkout, &mut journal) {
        Ok(()) => host.store.settled(record.id),
        Err(problem) => {
            log::error!("{}: the files that lay there before deployment {}: {problem}", record.name, left.id);
            Ok(())
        }
    }
}

/// At the start of the daemon: an interrupted `up` of a repository that no project file names any more cannot be healed,
/// for its variables cannot be had. Whoever took it out should look at it.
///
/// # Errors
/// The database's.
pub fn tell_of_orphan(host: &Host, record: &RepositoryRecord) -> Result<(), StoreError> {
    if let Some(left) = host.store.unsettled(record.id)?.filter(|left| left.up_began) {
        let project = record.compose_project.as_deref().unwrap_or_default();
        log::warn!(
            "{}: deployment {} was interrupted while it changed containers, and no project file names the repository any more: look at what \
             it left with `docker ps -a --filter label=com.docker.compose.project={project}`",
            record.name,
            left.id
        );
    }
    Ok(())
}

/// Puts the files back, and records what lies there now.
fn restore(
    host: &Host,
    record: &RepositoryRecord,
    checkout: &git::Checkout,
    journal: &mut Journal,
) -> Result<(), String> {
    if !checkout.can_be_put_back() {
        return Ok(());
    }
    let done = git::put_back(checkout, &host.git, &Limit::after(PUT_BACK_LIMIT)).map_err(|error| error.message)?;
    done.notes.iter().for_each(|note| journal.line(LogLevel::Warning, note));
    journal.line(LogLevel::Info, "no container has changed: the files that lay there before were put back");
    host.store.put_back(record.id, done.commit.as_ref()).map_err(|error| error.to_string())
}

/// What came of a healing.
enum Healing {
    /// What was stopped runs.
    Done,
    /// It may replace the container that this process runs in: the helper that gets the deployment's `up` does it.
    ReplacesUs,
}

fn heal_interrupted(
    host: &Host,
    job: &Job,
    left: &DeploymentRecord,
    limit: &Limit,
    journal: &mut Journal,
) -> Result<Healing, StepError> {
    let gone = |what: &str| StepError::for_good(format!("{what}, so nothing was run"));
    let lies_there = &job.record.checked_out_commit;
    if lies_there.is_none() || left.commit.as_ref().map(|commit| &commit.hash) != lies_there.as_ref() {
        return Err(gone("its files do not lie there any more"));
    }
    let name = format!("{}-heal", job.deployment.id);
    let limit = limit.at_most(PREPARE_LIMIT);
    let (stack, _plaintext) = assemble(&job.repository, &Asked::default(), &host.settings, &name, &limit, journal)?;
    let plan = host.driver.plan(&stack, &limit, journal)?;
    let is_same = job.record.compose_project.as_ref() == Some(&plan.project)
        && job.record.up_folder.as_deref().map(Path::new) == Some(&*stack.folder);
    if !is_same {
        return Err(gone("it is configured as another compose project, or in another folder"));
    }
    if handover::replaces_us(host, &plan.project, &limit)? {
        return Ok(Healing::ReplacesUs);
    }
    host.driver.heal(&stack, &plan, journal).map(|()| Healing::Done)
}
