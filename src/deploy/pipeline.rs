//! The numbered steps of a deployment (spec section 4).
//!
//! [`begin`] takes a pending row to the end of its `up`, on the worker's thread: all that changes anything on the host
//! is in there, and so one deployment does it at a time. What is left, waiting until the stack is well, only looks: a
//! [`Waiting`] can be carried to a thread of its own, and the worker goes on. Either way a deployment comes to its
//! [`Ended`], which records the outcome.

mod ended;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

pub use self::ended::Ended;
use super::compose::env_files;
use super::control::{Cause, Control};
use super::handover::{self, End, Given};
use super::journal::{Journal, known_secrets};
use super::secret_files::{self, SecretFiles, Switched};
use super::takeover::{self, Judgement, Situation};
use super::variables::Plaintext;
use super::{
    Containers, Driver, Log, Plan, Resident, Stack, StepError, Timing, Up, UpError, checkout, probe, remote,
    same_paths, settle, stack,
};
use crate::command::Limit;
use crate::config::{Catalog, Repository, Settings};
use crate::git::{self, Done, Fetched};
use crate::model::{Chance, Commit, CommitHash, DeploymentRecord, LogLevel, RepositoryRecord};
use crate::secrets::Scrubber;
use crate::store::{self, HandedOver, Outcome, Store, StoreError};

/// What every deployment of this host works with.
pub struct Host {
    /// Service settings.
    pub settings: Arc<Settings>,
    /// Where it is recorded.
    pub store: Arc<Store>,
    /// What runs the stacks.
    pub driver: Box<dyn Driver>,
    /// What fetches and checks out.
    pub git: git::Child,
    /// Keys the hashes of configurations and of secrets, so that a stored one tells nothing of the values.
    pub hash_key: [u8; 32],
}

/// One deployment that is to be run.
#[derive(Clone)]
pub struct Job {
    /// Its row, pending.
    pub deployment: DeploymentRecord,
    /// Its repository as the database knows it.
    pub record: RepositoryRecord,
    /// Its repository as it is configured now.
    pub repository: Repository,
    /// Everything that is configured now.
    pub catalog: Arc<Catalog>,
    /// The keyed hash of that configuration, as `Store::start` wants it.
    pub config_hash: String,
}

/// A deployment after the part of it that changes the host.
pub enum Begun {
    /// Its `up` has ended; its stack may not be well yet.
    Waits(Box<Waiting>),
    /// It came to an end before.
    Ended(Box<Ended>),
}

/// Runs a pending deployment up to the end of its `up`.
///
/// # Errors
/// The database does not take the start; the row is pending still. A failed deployment is no error.
pub fn begin(host: &Host, job: Job, control: &Control) -> Result<Begun, StoreError> {
    let (id, began) = (job.deployment.id, Instant::now());
    host.store.start(id, &job.config_hash, Timestamp::now())?;
    log::info!("{}: deployment {id} begins ({})", job.repository.name, job.deployment.trigger);
    let journal = Journal::new(Arc::clone(&host.store), id, known_secrets(&job.repository, &host.settings));
    let mut running = Running { job, control: control.clone(), journal, began, heals_first: false };
    let reached = running.bring_up(host);
    Ok(running.begun(reached))
}

/// Goes on with a deployment whose `up` a helper has, since a daemon before this one: waits for the end of that `up`.
///
/// # Errors
/// The database's; the row is the helper's still.
pub fn resume(host: &Host, job: Job, handed_over: &HandedOver, control: &Control) -> Result<Begun, StoreError> {
    let id = job.deployment.id;
    log::info!("{}: deployment {id} goes on: a helper container has it", job.repository.name);
    let journal = Journal::new(Arc::clone(&host.store), id, known_secrets(&job.repository, &host.settings));
    let began = Instant::now().checked_sub(job.deployment.ran_for(Timestamp::now())).unwrap_or_else(Instant::now);
    let mut running = Running { job, control: control.clone(), journal, began, heals_first: false };
    let checkout = running.checkout(host)?;
    let end = handover::resume(host, handed_over, control, &mut running.journal);
    let reached = running.take_up(host, &checkout, end);
    Ok(running.begun(reached))
}

/// Waits for the helper of a deployment whose repository no project file names any more. What it deployed is not waited
/// for: how, nobody knows.
///
/// # Errors
/// The database's; the row is the helper's still, or interrupted at the next start.
pub fn resume_unnamed(host: &Host, handed_over: &HandedOver, control: &Control) -> Result<(), StoreError> {
    let DeploymentRecord { id, repository, .. } = &handed_over.deployment;
    let mut journal = Journal::new(Arc::clone(&host.store), *id, Scrubber::new());
    let nobody = "and no project file names the repository any more";
    let error = match handover::resume(host, handed_over, control, &mut journal) {
        End::Left => return Ok(()),
        End::Lost(why) => why,
        End::Done(done) => match done.result {
            Ok(()) => format!("its `up` has ended, {nobody}: whether it is well is not known"),
            Err(error) => format!("its `up` has failed, {nobody}: {error}"),
        },
    };
    log::warn!("{repository}: deployment {id}: {error}");
    host.store.finish(*id, &Outcome::Interrupted { error: one_line(&error) }, Timestamp::now())
}

/// A deployment whose `up` has ended.
pub struct Waiting {
    running: Running,
    up: BroughtUp,
    commit: CommitHash,
}

impl Waiting {
    /// The commit that it brought up.
    pub fn commit(&self) -> &CommitHash {
        &self.commit
    }

    /// Its repository, for the log.
    pub fn job(&self) -> &Job {
        &self.running.job
    }

    /// Step 5: waits until the stack is well, or it is known that it will not be.
    pub fn watch(mut self, host: &Host) -> Ended {
        let Running { job, control, journal, .. } = &mut self.running;
        let (step, limit, repository) = (Instant::now(), control.limit(), &job.repository);
        let Repository { health_timeout, settle_time, .. } = *repository;
        let timing = Timing { since: self.up.since, health_timeout, settle_time };
        let well = host.driver.wait(&self.up.plan, &timing, limit, journal).and_then(|()| match &repository.probe {
            None => Ok(()),
            Some(probe) => {
                let url = probe.url.resolve(&host.settings.environment).map_err(StepError::for_good)?;
                probe::wait(probe, url.expose(), &host.settings.proxies, limit, journal)
            }
        });
        match well {
            Ok(()) => {
                journal.step("well", step);
                let ended = self.running.ended(Some(Outcome::Success));
                Ended { secret_files: Some(self.up.secret_files), ..ended }
            }
            Err(error) => self.running.failed(error),
        }
    }
}

/// How far a deployment came without an error.
enum Reached {
    /// Compose has done what it was to do.
    Up(Box<BroughtUp>, CommitHash),
    /// The commit changes nothing of the stack.
    NothingToDo(String),
    /// Shiparr stops, and a helper goes on.
    LeftToHelper,
    /// A helper had it and is gone. Why that is thought.
    Lost(String),
}

/// A stack whose `up` has ended.
struct BroughtUp {
    plan: Plan,
    /// When `up` began.
    since: Timestamp,
    secret_files: Switched,
}

/// Everything that `up` needs. What lies in plain text for it goes when this is dropped.
struct Prepared {
    stack: Stack,
    plan: Plan,
    secret_files: SecretFiles,
    judgement: Judgement,
    plaintext: Plaintext,
    /// Whether it holds the container that this process runs in.
    replaces_us: bool,
}

/// A deployment that runs.
struct Running {
    job: Job,
    control: Control,
    journal: Journal,
    began: Instant,
    /// Whether something of an interrupted deployment may be stopped still, when a helper gets the `up`.
    heals_first: bool,
}

impl Running {
    /// Steps 1 to 4.
    fn bring_up(&mut self, host: &Host) -> Result<Reached, StepError> {
        // Before anything is written: where Docker sees another folder, the one here may go with a container.
        same_paths::check(&self.job.repository, &host.settings, host.driver.as_ref(), self.control.limit())?;
        let settled = settle::settle(host, &self.job, self.control.limit(), &mut self.journal);
        self.heals_first = settled.map_err(not_recorded)?;
        // Until the row started, more may have been asked of it.
        let row = host.store.deployment(self.job.deployment.id).map_err(not_recorded)?;
        self.job.deployment = row.unwrap_or_else(|| self.job.deployment.clone());

        // 1. Fetch, and check out the commit in place.
        let checkout = self.checkout(host).map_err(not_recorded)?;
        let reached = match self.check_out(host, &checkout) {
            Ok(Fetched { done: Done::Unchanged, .. }) => return Ok(Reached::NothingToDo(nothing_to_do(&checkout))),
            Ok(fetched) => self.change(host, &checkout, fetched.commit.hash),
            Err(error) => Err(untouched(error)),
        };
        reached.map_err(|error| self.after_failure(host, &checkout, error))
    }

    /// What a helper has done since a daemon before this one, as if it had been done here.
    fn take_up(&mut self, host: &Host, checkout: &git::Checkout, end: End) -> Result<Reached, StepError> {
        let reached = match end {
            End::Left => return Ok(Reached::LeftToHelper),
            End::Lost(why) => {
                settle::keep(checkout, &mut self.journal);
                return Ok(Reached::Lost(why));
            }
            End::Done(done) => {
                let Job { repository, deployment, .. } = &self.job;
                let Some(commit) = deployment.commit.as_ref().map(|commit| commit.hash.clone()) else {
                    return Ok(Reached::Lost("its commit is not recorded".to_owned()));
                };
                let kept = done.secret_files;
                let secret_files = Switched::from_kept(kept, &repository.name, &host.settings, &host.hash_key);
                let up = BroughtUp { plan: done.plan, since: done.since, secret_files };
                let result = self.after_up(host, checkout, &up.secret_files, done.result, done.is_unsettled);
                result.map(|()| Reached::Up(Box::new(up), commit))
            }
        };
        reached.map_err(|error| self.after_failure(host, checkout, error))
    }

    /// One that changed no container has its files put back.
    fn after_failure(&mut self, host: &Host, checkout: &git::Checkout, error: UpError) -> StepError {
        if error.containers != Containers::Untouched {
            return error.error;
        }
        settle::put_back(host, &self.job, checkout, &mut self.journal);
        // What runs has not changed: once more costs nothing.
        let chance = if self.control.limit().is_over() { Chance::CanPass } else { error.error.chance };
        StepError { chance, ..error.error }
    }

    /// What the git child is told.
    fn checkout(&self, host: &Host) -> Result<git::Checkout, StoreError> {
        let Job { deployment, record, repository, .. } = &self.job;
        let base = if deployment.forced { None } else { host.store.skip_base(record.id)? };
        // Settling may have changed what lies there.
        let record = host.store.repository(record.id)?.unwrap_or_else(|| record.clone());
        Ok(git::Checkout {
            commit: deployment.asked.commit.clone(),
            skip_if_unchanged_since: base,
            adopt: deployment.asked.adopt,
            ..checkout::of(host, repository, &record)?
        })
    }

    fn check_out(&mut self, host: &Host, checkout: &git::Checkout) -> Result<Fetched, StepError> {
        let Running { job, control, journal, .. } = self;
        let (id, step) = (job.deployment.id, Instant::now());
        let remote = remote::of(&job.repository, &host.settings).map_err(StepError::for_good)?;
        let fetched = match git::fetch_and_checkout(&remote, checkout, &host.git, control.limit()) {
            Ok(fetched) => fetched,
            Err(error) => {
                // A failure after the fetch is the failure of that commit.
                if let (Some(commit), Some(tip)) = (&error.commit, &error.tip) {
                    host.store.fetched(id, commit, tip).map_err(not_recorded)?;
                }
                return Err(StepError { message: error.message, chance: error.chance });
            }
        };
        let Fetched { tip, commit, done, notes } = &fetched;
        notes.iter().for_each(|note| journal.line(LogLevel::Warning, note));
        let Commit { hash, subject, author } = commit;
        let Done::CheckedOut { changed_files } = done else {
            host.store.fetched(id, commit, tip).map_err(not_recorded)?;
            return Ok(fetched);
        };
        host.store.checked_out(id, commit, tip).map_err(not_recorded)?;
        let files = match changed_files {
            0 => "no file changed".to_owned(),
            1 => "1 file changed".to_owned(),
            several => format!("{several} files changed"),
        };
        journal.step(&format!("checked out {} “{subject}” by {author}, {files}", hash.short()), step);
        Ok(fetched)
    }

    /// Steps 2 to 4, in the tree that was checked out.
    fn change(&mut self, host: &Host, checkout: &git::Checkout, commit: CommitHash) -> Result<Reached, UpError> {
        let prepared = self.prepare(host).map_err(untouched)?;
        let Prepared { stack, plan, secret_files, judgement, plaintext, replaces_us } = prepared;
        let secret_files = secret_files.switch(&plan).map_err(untouched)?;
        let recreate = secret_files.recreate().union(&judgement.recreate).cloned().collect();
        let up = Up { remove_orphans: judgement.remove_orphans, recreate };
        if let Err(error) = self.note_begin(host, &stack, &plan, &judgement) {
            self.switch_back(&secret_files);
            return Err(error);
        }
        let (step, since) = (Instant::now(), Timestamp::now());
        let (result, is_unsettled) = if replaces_us {
            let (deployment, heals_first) = (self.job.deployment.id, self.heals_first);
            let given =
                Given { deployment, stack: &stack, plan: &plan, up, heals_first, secret_files: &secret_files, since };
            match handover::up(host, given, plaintext, &self.control, &mut self.journal) {
                End::Done(done) => (done.result, done.is_unsettled),
                end => return self.take_up(host, checkout, end).map_err(untouched),
            }
        } else {
            self.up(host, &stack, &plan, &up)
        };
        self.after_up(host, checkout, &secret_files, result, is_unsettled)?;
        self.journal.step("up", step);
        Ok(Reached::Up(Box::new(BroughtUp { plan, since, secret_files }), commit))
    }

    /// That the `up` begins is written first.
    fn note_begin(&self, host: &Host, stack: &Stack, plan: &Plan, judgement: &Judgement) -> Result<(), UpError> {
        let accepted = host.store.accept(self.job.record.id, &judgement.accepted);
        accepted.map_err(|error| untouched(not_recorded(error)))?;
        let begins = host.store.up_begins(
            self.job.deployment.id,
            &store::BroughtUp {
                compose_project: plan.project.clone(),
                folder: stack.folder.clone(),
                services: plan.services.keys().cloned().collect(),
                volumes: plan.volumes.clone(),
            },
        );
        begins.map_err(|error| untouched(not_recorded(error)))
    }

    /// Step 4: brings it up. Answers also whether something of it stays to be settled. A stop of the daemon leaves the
    /// healing to the next start, for there is no time for it now.
    fn up(&mut self, host: &Host, stack: &Stack, plan: &Plan, how: &Up) -> (Result<(), UpError>, bool) {
        let limit = self.control.limit();
        match host.driver.up(stack, plan, how, limit, &mut self.journal) {
            Err(error) if self.control.cause() != Some(Cause::Stop) => {
                let journal = &mut self.journal;
                let driver = host.driver.as_ref();
                let (error, is_unsettled) = settle::after_failed_up(driver, stack, plan, error, limit, journal);
                (Err(error), is_unsettled)
            }
            result => (result, false),
        }
    }

    /// The `up` has ended, whoever did it.
    fn after_up(
        &mut self,
        host: &Host,
        checkout: &git::Checkout,
        secret_files: &Switched,
        result: Result<(), UpError>,
        is_unsettled: bool,
    ) -> Result<(), UpError> {
        if is_unsettled {
            settle::leave(host, &self.job);
        }
        match &result {
            Err(UpError { containers: Containers::Untouched, .. }) => self.switch_back(secret_files),
            _ => settle::keep(checkout, &mut self.journal),
        }
        if result.is_ok() {
            secret_files.up_has_ended();
        }
        result
    }

    fn switch_back(&mut self, secret_files: &Switched) {
        if let Err(problem) = secret_files.switch_back() {
            self.journal.line(LogLevel::Error, &format!("secret files are not as before: {problem}"));
        }
    }

    /// Steps 2 and 3, which change nothing.
    fn prepare(&mut self, host: &Host) -> Result<Prepared, StepError> {
        let Running { job, control, journal, .. } = self;
        let limit = control.limit();
        // 2. Decrypt.
        let step = Instant::now();
        let runtime_name = job.deployment.id.to_string();
        let (stack, plaintext) =
            stack::assemble(&job.repository, &job.deployment.asked, &host.settings, &runtime_name, limit, journal)?;
        if !stack.variables.is_empty() {
            let names: Vec<&str> = stack.variables.keys().map(String::as_str).collect();
            journal.step(&format!("variables: {}", names.join(", ")), step);
        }

        let Repository { secret_files: named, .. } = &job.repository;
        let step = Instant::now();
        let secret_files =
            secret_files::prepare(&job.repository, &stack.folder, &host.settings, &host.hash_key, limit, journal)?;
        if !named.is_empty() {
            journal.step(&format!("secret files: {}", listed(named)), step);
        }

        // 3. Ask Compose what it would run, and refuse before anything changes.
        let step = Instant::now();
        let (plan, survey) = plan_and_survey(host, &stack, limit, journal);
        let plan = plan?;
        env_files::refuse_taken(&plan, &stack.folder, plaintext.names_taken())?;
        secret_files.refuse(&plan, &plaintext)?;
        let judgement = judge(host, job, &stack, &plan, &survey?, limit)?;
        judgement.notes.iter().for_each(|note| journal.line(LogLevel::Warning, note));
        journal.step(&planned(&plan), step);
        let replaces_us = handover::is_wanted(host, &plan, limit)?;
        Ok(Prepared { stack, plan, secret_files, judgement, plaintext, replaces_us })
    }

    fn begun(self, reached: Result<Reached, StepError>) -> Begun {
        let outcome = match reached {
            Ok(Reached::Up(up, commit)) => return Begun::Waits(Box::new(Waiting { running: self, up: *up, commit })),
            Err(error) => return self.failed(error).into(),
            Ok(Reached::NothingToDo(reason)) => Some(Outcome::Skipped { reason }),
            Ok(Reached::LeftToHelper) => {
                let Job { repository, deployment, .. } = &self.job;
                log::info!("{}: a helper container goes on with deployment {}", repository.name, deployment.id);
                None
            }
            Ok(Reached::Lost(why)) => Some(Outcome::Interrupted { error: format!("interrupted: {why}") }),
        };
        self.ended(outcome).into()
    }

    /// It did not work, or somebody ended it.
    fn failed(mut self, error: StepError) -> Ended {
        let name = &self.job.repository.name;
        let message = one_line(&self.journal.scrub(&error.message));
        let outcome = match self.control.cause() {
            Some(Cause::Stop) => {
                let id = self.job.deployment.id;
                log::warn!(
                    "{name}: deployment {id} is interrupted: Shiparr stops; it is queued again at the next start"
                );
                self.journal.line(LogLevel::Warning, &format!("interrupted: Shiparr stops ({message})"));
                return self.ended(None);
            }
            Some(Cause::Cancel) => Outcome::Cancelled { error: format!("cancelled: {message}") },
            Some(Cause::Supersede { by }) => {
                Outcome::Superseded { error: format!("superseded by deployment {by}: {message}") }
            }
            None => Outcome::Failed { error: message, chance: error.chance },
        };
        self.ended(Some(outcome))
    }

    fn ended(mut self, outcome: Option<Outcome>) -> Ended {
        let journal = &mut self.journal;
        match &outcome {
            Some(Outcome::Success) => journal.step("success", self.began),
            Some(Outcome::Failed { error, .. }) => journal.line(LogLevel::Error, &format!("failed: {error}")),
            Some(Outcome::Superseded { error } | Outcome::Cancelled { error } | Outcome::Interrupted { error }) => {
                journal.line(LogLevel::Warning, error);
            }
            Some(Outcome::Skipped { .. }) | None => {}
        }
        Ended { running: self, outcome, secret_files: None }
    }
}

/// What Compose would run, and what runs on the host: two programs that are asked at the same time.
fn plan_and_survey(
    host: &Host,
    stack: &Stack,
    limit: &Limit,
    journal: &mut Journal,
) -> (Result<Plan, StepError>, Result<Vec<Resident>, StepError>) {
    std::thread::scope(|scope| {
        let survey = scope.spawn(|| host.driver.survey(limit));
        let plan = host.driver.plan(stack, limit, journal);
        let survey = survey.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (plan, survey)
    })
}

/// Whether the stack may be brought up beside, or over, what is there.
fn judge(
    host: &Host,
    job: &Job,
    stack: &Stack,
    plan: &Plan,
    survey: &[Resident],
    limit: &Limit,
) -> Result<Judgement, StepError> {
    let records = host.store.repositories(None).map_err(not_recorded)?;
    let own = records.iter().find(|record| record.id == job.record.id).unwrap_or(&job.record);
    let home = match stack.variables.get("HOME") {
        Some(home) => Some(Path::new(home.expose())),
        None => host.settings.environment.get("HOME").map(Path::new),
    };
    let situation = Situation { stack, plan, survey, own, records: &records, catalog: &job.catalog, home };
    takeover::check(&situation, host.driver.as_ref(), limit)
}

fn nothing_to_do(checkout: &git::Checkout) -> String {
    let since = checkout.skip_if_unchanged_since.as_ref().map_or("", CommitHash::short);
    match checkout.watch_paths.is_empty() {
        true => format!("nothing changed since {since}"),
        false => format!("nothing under `watch_paths` changed since {since}: {}", listed(&checkout.watch_paths)),
    }
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn untouched(error: StepError) -> UpError {
    UpError { error, containers: Containers::Untouched }
}

fn planned(plan: &Plan) -> String {
    let services: Vec<String> = plan
        .services
        .iter()
        .map(|(name, count)| if *count == 1 { name.clone() } else { format!("{name} ×{count}") })
        .collect();
    format!("compose project {}: {}", plan.project, services.join(", "))
}

fn not_recorded(error: StoreError) -> StepError {
    StepError::for_now(error.to_string())
}

/// An error is one line, whatever a child said.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
