//! The numbered steps of a deployment (spec section 4).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::journal::Journal;
use super::variables::{self, Plaintext, Variables};
use super::{Driver, Log, Plan, Stack, StepError, Timing, Up, claims, probe, remote, stack};
use crate::command::Limit;
use crate::config::{Catalog, Repository, Settings};
use crate::git;
use crate::model::{Asked, Chance, Commit, DeploymentRecord, LogLevel, RepositoryRecord};
use crate::secrets::Scrubber;
use crate::store::{BroughtUp, Outcome, Store, StoreError};

/// For removing unused images after a success.
const PRUNE_LIMIT: Duration = Duration::from_secs(300);

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
}

/// One deployment that is to be run.
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

/// What came of a deployment that was begun.
#[derive(Clone, Debug)]
pub enum Run {
    /// It ended, and that is recorded.
    Finished(Outcome),
    /// Its limit was cancelled because Shiparr stops: the row stays `running`, and `Store::recover` queues it again at
    /// the next start.
    LeftRunning,
}

/// Runs a pending deployment from its start to its recorded outcome. `limit` is the time for the whole deployment
/// (`timeout` of the repository); cancelling it means that Shiparr stops.
///
/// # Errors
/// The database does not take the start or the outcome. A failed deployment is none: it is recorded.
pub fn run(host: &Host, job: &Job, limit: &Limit) -> Result<Run, StoreError> {
    let (id, name, began) = (job.deployment.id, &job.repository.name, Instant::now());
    host.store.start(id, &job.config_hash, Timestamp::now())?;
    log::info!("{name}: deployment {id} begins ({})", job.deployment.trigger);
    let mut journal = Journal::new(&host.store, id, known_secrets(host, job));

    let outcome = match deploy(host, job, limit, &mut journal) {
        Ok(()) => Outcome::Success,
        Err(error) if limit.is_cancelled() => {
            log::warn!("{name}: deployment {id} is interrupted: Shiparr stops; it is queued again at the next start");
            journal.line(LogLevel::Warning, &format!("interrupted: Shiparr stops ({error})"));
            return Ok(Run::LeftRunning);
        }
        Err(error) => Outcome::Failed { error: one_line(&journal.scrub(&error.message)), chance: error.chance },
    };

    // 6. Record it; telling people is for those who read the record.
    match &outcome {
        Outcome::Success => journal.step("success", began),
        Outcome::Skipped { reason } => journal.line(LogLevel::Info, &format!("skipped: {reason}")),
        Outcome::Failed { error, .. } | Outcome::Superseded { error } | Outcome::Cancelled { error } => {
            journal.line(LogLevel::Error, &format!("failed: {error}"));
        }
    }
    host.store.finish(id, &outcome, Timestamp::now())?;
    match &outcome {
        Outcome::Success => log::info!("{name}: deployment {id} succeeded in {:.1} s", began.elapsed().as_secs_f64()),
        Outcome::Skipped { reason } => log::info!("{name}: deployment {id} was skipped: {reason}"),
        Outcome::Failed { error, .. } | Outcome::Superseded { error } | Outcome::Cancelled { error } => {
            log::error!("{name}: deployment {id} failed: {error}");
        }
    }
    if matches!(outcome, Outcome::Success) && host.settings.enable_image_prune {
        prune_images(host, limit, &mut journal);
    }
    Ok(Run::Finished(outcome))
}

/// From the commit to the stack that is well: steps 1 to 5.
fn deploy(host: &Host, job: &Job, limit: &Limit, journal: &mut Journal<'_>) -> Result<(), StepError> {
    let (stack, plan, plaintext) = prepare(host, job, limit, journal).map_err(|error| match limit.is_over() {
        // Nothing that runs has changed.
        true => StepError { chance: Chance::CanPass, ..error },
        false => error,
    })?;

    // 4. Bring it up; that it begins is written first.
    let brought_up = BroughtUp {
        compose_project: plan.project.clone(),
        folder: stack.folder.clone(),
        services: plan.services.keys().cloned().collect(),
        volumes: plan.volumes.clone(),
    };
    host.store.up_begins(job.deployment.id, &brought_up).map_err(not_recorded)?;
    let (step, since) = (Instant::now(), Timestamp::now());
    let how = Up { remove_orphans: true, recreate: BTreeSet::new() };
    host.driver.up(&stack, &plan, &how, limit, journal)?;
    drop(plaintext);
    journal.step("up", step);

    // 5. Wait until it is well.
    let step = Instant::now();
    let Repository { health_timeout, settle_time, .. } = job.repository;
    host.driver.wait(&plan, &Timing { since, health_timeout, settle_time }, limit, journal)?;
    if let Some(probe) = &job.repository.probe {
        let url = probe.url.resolve(&host.settings.environment).map_err(StepError::for_good)?;
        probe::wait(probe, url.expose(), &host.settings.proxies, limit, journal)?;
    }
    journal.step("well", step);
    Ok(())
}

/// Steps 1 to 3, which change no container. What lies in plain text goes with the `Plaintext`, however the deployment
/// ends.
fn prepare(
    host: &Host,
    job: &Job,
    limit: &Limit,
    journal: &mut Journal<'_>,
) -> Result<(Stack, Plan, Plaintext), StepError> {
    // 1. Fetch, and check out the commit in place.
    check_out(host, job, limit, journal)?;

    // 2. Decrypt.
    let step = Instant::now();
    let folder = stack::folder(&job.repository)?;
    let runtime_name = job.deployment.id.to_string();
    let (variables, plaintext) =
        variables::gather(&job.repository, &folder, &host.settings, &runtime_name, limit, journal)?;
    // Until the row started, more may have been asked of it.
    let row = host.store.deployment(job.deployment.id).map_err(not_recorded)?;
    let asked = row.map_or_else(|| job.deployment.asked.clone(), |row| row.asked);
    let stack = describe(&job.repository, asked, folder, variables, &plaintext)?;
    if !stack.variables.is_empty() {
        let names: Vec<&str> = stack.variables.keys().map(String::as_str).collect();
        journal.step(&format!("variables: {}", names.join(", ")), step);
    }

    // 3. Ask Compose what it would run, and refuse before anything changes.
    let step = Instant::now();
    let plan = host.driver.plan(&stack, limit, journal)?;
    let records = host.store.repositories(None).map_err(not_recorded)?;
    claims::refuse_taken(&plan.project, &stack.folder, &job.repository.name, &records, &job.catalog)?;
    journal.step(&planned(&plan), step);
    Ok((stack, plan, plaintext))
}

fn check_out(host: &Host, job: &Job, limit: &Limit, journal: &mut Journal<'_>) -> Result<(), StepError> {
    let (repository, step) = (&job.repository, Instant::now());
    let remote = remote::of(repository, &host.settings).map_err(StepError::for_good)?;
    let below_data = |folder: &str| host.settings.data_path.join(folder).join(&repository.name.project);
    let checkout = git::Checkout {
        store: below_data("git").join(format!("{}.git", repository.name.name)),
        local_path: repository.local_path.clone(),
        checked_out: job.record.checked_out_commit.clone(),
        saved: below_data("saved").join(&repository.name.name),
        name: repository.name.to_string(),
    };
    let done = match git::fetch_and_checkout(&remote, &checkout, &host.git, limit) {
        Ok(done) => done,
        Err(error) => {
            // A failure after the fetch is the failure of that commit.
            if let Some(commit) = &error.commit {
                host.store.fetched(job.deployment.id, commit, &commit.hash).map_err(not_recorded)?;
            }
            return Err(StepError { message: error.message, chance: error.chance });
        }
    };
    host.store.checked_out(job.deployment.id, &done.commit, &done.commit.hash).map_err(not_recorded)?;
    done.notes.iter().for_each(|note| journal.line(LogLevel::Warning, note));
    let Commit { hash, subject, author } = &done.commit;
    let files = match done.changed_files {
        0 => "no file changed".to_owned(),
        1 => "1 file changed".to_owned(),
        several => format!("{several} files changed"),
    };
    journal.step(&format!("checked out {} “{subject}” by {author}, {files}", hash.short()), step);
    Ok(())
}

/// The stack that a driver runs, with what the folder's own `.env` says where the repository says nothing.
fn describe(
    repository: &Repository,
    asked: Asked,
    folder: PathBuf,
    variables: Variables,
    plaintext: &Plaintext,
) -> Result<Stack, StepError> {
    let defaults = variables.defaults;
    let (named, field) = match repository.compose_files.is_empty() {
        true => (&defaults.files, "COMPOSE_FILE in `.env`"),
        false => (&repository.compose_files, "`compose_files`"),
    };
    let files = named
        .iter()
        .map(|file| stack::named_file(&repository.local_path, &folder, file, field))
        .collect::<Result<_, _>>()?;
    Ok(Stack {
        root: repository.local_path.clone(),
        folder,
        files,
        project: repository.compose_project.clone().or(defaults.project),
        default_project: repository.default_compose_project(),
        profiles: if repository.profiles.is_empty() { defaults.profiles } else { repository.profiles.clone() },
        variables_file: plaintext.variables_file(),
        variables: variables.all,
        unset_variables: repository.unset_variables,
        build: repository.build,
        pull: repository.pull,
        asked,
    })
}

fn planned(plan: &Plan) -> String {
    let services: Vec<String> = plan
        .services
        .iter()
        .map(|(name, count)| if *count == 1 { name.clone() } else { format!("{name} ×{count}") })
        .collect();
    format!("compose project {}: {}", plan.project, services.join(", "))
}

/// Removes images that nothing uses; a failure is only a line, for the stack is well.
fn prune_images(host: &Host, limit: &Limit, journal: &mut Journal<'_>) {
    if let Err(error) = host.driver.prune_images(&limit.at_most(PRUNE_LIMIT), journal) {
        journal.line(LogLevel::Warning, &format!("unused images were not removed: {error}"));
    }
}

/// What must never stand in a log of this deployment: as far as it can be had; what cannot is reported by the step that
/// needs it.
fn known_secrets(host: &Host, job: &Job) -> Scrubber {
    let mut scrubber = Scrubber::new();
    let environment = &host.settings.environment;
    job.repository.secrets(environment).iter().for_each(|secret| scrubber.learn(secret.expose()));
    job.repository.secret_urls(environment).iter().for_each(|url| scrubber.learn_url(url.expose()));
    // Children get the proxies as they are, and some quote them in their errors.
    let proxies = [&host.settings.proxies.https, &host.settings.proxies.http];
    proxies
        .into_iter()
        .flatten()
        .filter(|proxy| proxy.contains('@'))
        .for_each(|proxy| learn_proxy(&mut scrubber, proxy));
    scrubber
}

/// A proxy may be named without a scheme, which is http then.
fn learn_proxy(scrubber: &mut Scrubber, proxy: &str) {
    match proxy.contains("://") {
        true => scrubber.learn_url(proxy),
        false => scrubber.learn_url(&format!("http://{proxy}")),
    }
}

fn not_recorded(error: StoreError) -> StepError {
    StepError::for_now(error.to_string())
}

/// An error is one line, whatever a child said.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_password_is_known_with_and_without_a_scheme() {
        for proxy in ["http://me:hush-hush@proxy.example:3128", "me:hush-hush@proxy.example:3128"] {
            let mut scrubber = Scrubber::new();
            learn_proxy(&mut scrubber, proxy);
            assert_eq!(scrubber.scrub("refused for hush-hush"), "refused for ***", "{proxy}");
            assert_eq!(scrubber.scrub(&format!("via {proxy}")).matches("hush").count(), 0, "{proxy}");
        }
    }
}
