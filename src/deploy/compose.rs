//! The Docker Compose driver.

pub mod client;
pub mod env_files;
mod explain;
mod files;
mod heal;
mod helper_container;
mod looks;
pub mod own_container;
mod plan;
mod survey;
mod up;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use self::client::Client;
use self::explain::Tail;
use self::looks::{Looks, Watched};
use self::own_container::OwnContainer;
use self::watch::{Container, Expected, Failure, Verdict, Watch};
use super::handover::Helpers;
use super::{ByHand, Driver, Log, Plan, Resident, Stack, StepError, Timing, Up, UpError};
use crate::command::{Command, Limit};
use crate::config::Settings;
use crate::config::project::UnsetVariables;
use crate::model::{Chance, LogLevel};
use crate::secrets::Secret;

/// The most that the resolved configuration may say.
const MAX_CONFIG_BYTES: usize = 32 << 20;
/// The first pause between two looks at a stack that is not yet well; each is half as long again as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// For looking at what failed, also when the deployment's own time is over.
const DIAGNOSIS_LIMIT: Duration = Duration::from_secs(10);
/// How many of a failing container's last log lines go into the deployment's log.
const LOG_LINES: &str = "20";
/// Of how many failing containers.
const MAX_LOGGED_CONTAINERS: usize = 5;

/// Runs stacks with `docker compose`.
pub struct Compose {
    client: Client,
    looks: Looks,
    /// The container that this process runs in; none: not known yet.
    own: OnceLock<Option<OwnContainer>>,
}

impl Compose {
    /// With the programs and the environment that the settings name.
    pub fn new(settings: &Settings) -> Compose {
        Compose::with(Client::new(&settings.docker_bin, settings.environment.for_children()))
    }

    /// As a helper has it: with the programs and the environment that the daemon had.
    pub fn of_helper(docker: &Path, environment: Vec<(OsString, OsString)>) -> Compose {
        Compose::with(Client::new(docker, environment))
    }

    fn with(client: Client) -> Compose {
        Compose { client, looks: Looks::default(), own: OnceLock::new() }
    }

    /// The container that this process runs in, if it does: Docker is asked once.
    ///
    /// # Errors
    /// Those of [`own_container::find`].
    pub fn own_container(&self, limit: &Limit) -> Result<Option<&OwnContainer>, StepError> {
        if let Some(known) = self.own.get() {
            return Ok(known.as_ref());
        }
        let found = own_container::find(&self.client, limit)?;
        Ok(self.own.get_or_init(|| found).as_ref())
    }

    /// A call of Compose for this stack, up to the verb.
    fn call(&self, stack: &Stack, files: &[PathBuf], project: Option<&str>, limit: &Limit) -> Command {
        let hidden = |name: &str| stack.variables.contains_key(name) && !keeps(name);
        let home = stack.variables.get("HOME").map(Secret::expose);
        self.client.compose(&hidden, home, limit).args(arguments(stack, files, project)).folder(&stack.folder)
    }

    /// The containers of a compose project as they are now, without those of `docker compose run`.
    fn containers(&self, project: &str, limit: &Limit) -> Result<Vec<Container>, StepError> {
        let project = format!("label=com.docker.compose.project={project}");
        let lasting = "label=com.docker.compose.oneoff=False";
        let args = ["ps", "-aq", "--no-trunc", "--filter", &project, "--filter", lasting];
        let listed = self.client.ask("docker ps", args, limit)?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        self.inspect(&listed.split_whitespace().collect::<Vec<_>>(), limit)
    }

    /// Id and compose project of every container of this host that belongs to one, without those of `docker compose run`.
    fn list(&self, limit: &Limit) -> Result<Vec<(String, String)>, StepError> {
        let lasting = "label=com.docker.compose.oneoff=False";
        let format = r#"{{.ID}} {{.Label "com.docker.compose.project"}}"#;
        let args = ["ps", "-a", "--no-trunc", "--filter", lasting, "--format", format];
        let listed = self.client.ask("docker ps", args, limit)?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        Ok(listed
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(id, of)| (id.to_owned(), of.to_owned()))
            .collect())
    }

    /// Those of the containers that are still there.
    fn inspect(&self, ids: &[&str], limit: &Limit) -> Result<Vec<Container>, StepError> {
        const WHAT: &str = "docker inspect";
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self.client.answer(WHAT, ["inspect", "--type", "container"].iter().chain(ids), limit)?;
        let some_are_gone = answer.stderr.to_lowercase().contains("no such");
        if !answer.status.success() && !some_are_gone {
            return Err(explain::failed(WHAT, &Tail::of(&answer.stderr), answer.status));
        }
        serde_json::from_slice(&answer.stdout)
            .map_err(|error| StepError::for_good(format!("the output of {WHAT} is not as expected: {error}")))
    }

    /// Looks at the stack until it is well or bad, or `health_timeout` is over.
    fn watch(&self, plan: &Plan, timing: &Timing, limit: &Limit, log: &mut dyn Log) -> Result<Verdict, StepError> {
        let expected = Expected {
            services: &plan.services,
            one_shots: &plan.one_shots,
            settle_time: timing.settle_time,
            since: timing.since,
        };
        let (mut watch, mut pause, mut told) = (Watch::default(), FIRST_PAUSE, Vec::new());
        let mut watched = Watched::new(self, &plan.project);
        // However short the time to wait, what there is to wait for is known.
        let first = limit.at_most(timing.health_timeout.max(DIAGNOSIS_LIMIT));
        let (mut at, mut containers) = watched.look(Instant::now(), true, &first).map_err(|error| {
            // How the question was cut off tells nothing.
            if limit.is_cancelled() { StepError::for_now("it was ended before the stack was looked at") } else { error }
        })?;
        let limit = &limit.at_most(timing.health_timeout);
        loop {
            let verdict = watch.judge(&containers, &expected, at);
            let Verdict::NotYet { waits_for, settles_in, is_short, .. } = &verdict else { return Ok(verdict) };
            if told != *waits_for {
                log.line(LogLevel::Info, &format!("waiting: {}", waits_for.join(", ")));
                told.clone_from(waits_for);
            }
            let due = settles_in.filter(|settles_in| *settles_in <= pause);
            let looked = Instant::now();
            if !limit.sleep(due.unwrap_or(pause)) {
                return Ok(verdict);
            }
            // Another stack's look in the meantime will do, unless this very moment matters.
            let since = if due.is_some() { Instant::now() } else { looked };
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            (at, containers) = match watched.look(since, *is_short, limit) {
                // What was seen before tells more than the question that was cut off.
                Err(_) if limit.is_over() => return Ok(verdict),
                seen => seen?,
            };
        }
    }

    /// Puts the last log lines of containers into the deployment's log. Says so where that fails: it must not hide the
    /// failure itself.
    fn log_tails(&self, containers: &[(String, String)], limit: &Limit, log: &mut dyn Log) {
        for (id, name) in containers.iter().take(MAX_LOGGED_CONTAINERS) {
            if limit.is_cancelled() {
                return;
            }
            log.line(LogLevel::Error, &format!("last log lines of {name}:"));
            let ended = self.client.docker().args(["logs", "--tail", LOG_LINES, id]).stream(limit, &mut |_, line| {
                log.line(LogLevel::Error, &format!("{name} | {}", line.trim_end()));
            });
            if let Err(error) = ended {
                log.line(LogLevel::Warning, &format!("cannot read the log of {name}: {error}"));
            }
        }
    }
}

impl Driver for Compose {
    fn available(&self, limit: &Limit) -> Result<(), String> {
        self.client.available(limit)
    }

    fn shares(&self, path: &Path, folder: &Path, limit: &Limit) -> Result<(), StepError> {
        match self.own_container(limit)? {
            // It passes by itself once the container is made with that line.
            Some(own) => own.outside(path, folder).map_err(StepError::for_now),
            None => Ok(()),
        }
    }

    fn plan(&self, stack: &Stack, limit: &Limit, log: &mut dyn Log) -> Result<Plan, StepError> {
        const WHAT: &str = "docker compose config";
        let files = files_of(stack)?;
        let project = chosen_project(stack, &files)?;
        let captured = self
            .call(stack, &files, project.as_deref(), limit)
            .args(["config", "--format", "json"])
            .capture(limit, MAX_CONFIG_BYTES)
            .map_err(|error| explain::not_run(WHAT, &error, Chance::CanPass))?;
        if !captured.status.success() {
            return Err(in_files(explain::failed(WHAT, &Tail::of(&captured.stderr), captured.status), &files));
        }
        let resolved = plan::parse(&captured.stdout).map_err(|why| StepError::for_good(format!("{WHAT}: {why}")))?;
        let (unset, warnings) = plan::warnings(&captured.stderr);
        warnings.iter().for_each(|warning| log.line(LogLevel::Warning, warning));
        refuse_unset_variables(&unset, stack, log)?;
        refuse_ciphertext(&resolved.ciphertexts)?;
        if resolved.services.is_empty() {
            return Err(StepError::for_good(
                "the compose files have no active service: check them, and `profiles` of the repository",
            ));
        }
        Ok(Plan {
            project: project.unwrap_or(resolved.project),
            files,
            builds: resolved.builds,
            one_shots: resolved.one_shots,
            services: resolved.services,
            container_names: resolved.container_names,
            volumes: resolved.volumes,
            mounts: resolved.mounts,
        })
    }

    fn survey(&self, limit: &Limit) -> Result<Vec<Resident>, StepError> {
        survey::containers(&self.client, limit)
    }

    fn owners_of_volumes(
        &self,
        names: &BTreeSet<String>,
        limit: &Limit,
    ) -> Result<BTreeMap<String, Option<String>>, StepError> {
        survey::owners_of_volumes(&self.client, names, limit)
    }

    fn services_of_all_profiles(
        &self,
        stack: &Stack,
        plan: &Plan,
        limit: &Limit,
    ) -> Result<BTreeSet<String>, StepError> {
        const WHAT: &str = "docker compose config --services";
        let captured = self
            .call(stack, &plan.files, Some(&plan.project), limit)
            .args(["--profile", "*", "config", "--services"])
            .capture(limit, MAX_CONFIG_BYTES)
            .map_err(|error| explain::not_run(WHAT, &error, Chance::CanPass))?;
        if !captured.status.success() {
            return Err(in_files(explain::failed(WHAT, &Tail::of(&captured.stderr), captured.status), &plan.files));
        }
        Ok(String::from_utf8_lossy(&captured.stdout).lines().map(|line| line.trim().to_owned()).collect())
    }

    fn up(&self, stack: &Stack, plan: &Plan, how: &Up, limit: &Limit, log: &mut dyn Log) -> Result<(), UpError> {
        self.bring_up(stack, plan, how, limit, log)
    }

    fn heal(&self, stack: &Stack, plan: &Plan, log: &mut dyn Log) -> Result<(), StepError> {
        self.start_what_stopped(stack, plan, log)
    }

    fn start_unmounted(&self, project: &str, limit: &Limit) -> Result<Vec<String>, StepError> {
        let containers = self.containers(project, limit)?;
        let unmounted: Vec<&Container> = containers.iter().filter(|container| container.could_not_mount()).collect();
        if !unmounted.is_empty() {
            let ids = unmounted.iter().map(|container| container.id.as_str());
            self.client.ask("docker start", ["start"].into_iter().chain(ids), limit)?;
        }
        Ok(unmounted.iter().map(|container| container.name().to_owned()).collect())
    }

    fn wait(&self, plan: &Plan, timing: &Timing, limit: &Limit, log: &mut dyn Log) -> Result<(), StepError> {
        let verdict = self.watch(plan, timing, limit, log)?;
        let (message, containers) = match verdict {
            Verdict::Well(warnings) => {
                warnings.iter().for_each(|warning| log.line(LogLevel::Warning, warning));
                return Ok(());
            }
            Verdict::Bad(failures) => (told(&failures), named(failures)),
            Verdict::NotYet { waits_for, containers, .. } => (too_late(&waits_for, timing, limit), containers),
        };
        self.log_tails(&containers, &limit.anew(DIAGNOSIS_LIMIT), log);
        Err(StepError::for_good(message))
    }

    fn by_hand(&self, stack: &Stack, limit: &Limit) -> Result<ByHand, StepError> {
        let files = files_of(stack)?;
        let project = chosen_project(stack, &files)?;
        Ok(ByHand { command: self.call(stack, &files, project.as_deref(), limit), files })
    }

    fn helpers(&self) -> Option<&dyn Helpers> {
        Some(self)
    }

    fn prune_images(&self, limit: &Limit, log: &mut dyn Log) -> Result<(), StepError> {
        let command = self.client.docker().args(["image", "prune", "-f"]);
        Ok(self.change("docker image prune", command, limit, log)?)
    }
}

/// Names the compose files in an error that does not: Compose 2.26 says in which line the YAML is wrong, and not of
/// which file.
fn in_files(error: StepError, files: &[PathBuf]) -> StepError {
    let names = || files.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy());
    if names().any(|name| error.message.contains(&*name)) {
        return error;
    }
    let names: Vec<_> = names().collect();
    StepError { message: format!("{} (in {})", error.message, names.join(", ")), ..error }
}

/// Names whose values steer Compose itself: it keeps Shiparr's, whatever the stack's variables say. `HOME` is what `~`
/// stands for in the compose files too, and therefore the stack's where it has one.
fn keeps(name: &str) -> bool {
    matches!(name, "PATH" | "HOME" | "PWD") || name.starts_with("DOCKER_")
}

/// The arguments that say which stack it is; the same for every verb.
fn arguments(stack: &Stack, files: &[PathBuf], project: Option<&str>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |flag: &str, value: &std::ffi::OsStr| arguments.extend([flag.into(), value.to_owned()]);
    if let Some(project) = project {
        add("-p", project.as_ref());
    }
    add("--project-directory", stack.folder.as_os_str());
    files.iter().for_each(|file| add("-f", file.as_os_str()));
    // Naming a file makes Compose leave the folder's own `.env` alone, which is in the variables already.
    add("--env-file", stack.variables_file.as_deref().unwrap_or(Path::new("/dev/null")).as_os_str());
    stack.profiles.iter().for_each(|profile| add("--profile", profile.as_ref()));
    arguments
}

/// The compose files: those that are named, else those that are found.
fn files_of(stack: &Stack) -> Result<Vec<PathBuf>, StepError> {
    if stack.files.is_empty() { files::find(&stack.root, &stack.folder) } else { Ok(stack.files.clone()) }
}

/// The compose project, unless a file names it.
fn chosen_project(stack: &Stack, files: &[PathBuf]) -> Result<Option<String>, StepError> {
    if let Some(project) = &stack.project {
        return Ok(Some(project.clone()));
    }
    if files::name_a_project(files)? {
        return Ok(None);
    }
    if stack.default_project.is_empty() {
        return Err(StepError::for_good(
            "the repository's name has no letter and no digit, so no compose project can be called after it: set `compose_project`",
        ));
    }
    Ok(Some(stack.default_project.clone()))
}

fn refuse_unset_variables(unset: &BTreeSet<String>, stack: &Stack, log: &mut dyn Log) -> Result<(), StepError> {
    if unset.is_empty() {
        return Ok(());
    }
    let names = unset.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if stack.unset_variables == UnsetVariables::Blank {
        log.line(LogLevel::Warning, &format!("not set, and blank: {names}"));
        return Ok(());
    }
    Err(StepError::for_good(format!(
        "the compose files use variables that nobody sets: {names}; set them in `env_file` or `environment`, give them a default \
         (`${{NAME:-}}`), write a plain `$` as `$$` (in an env file between single quotes), or allow it with `unset_variables: blank`"
    )))
}

fn refuse_ciphertext(places: &[String]) -> Result<(), StepError> {
    if places.is_empty() {
        return Ok(());
    }
    Err(StepError::for_good(format!(
        "still encrypted by sops: {}; name the file with these values in `env_file`, so that it is decrypted",
        places.join(", ")
    )))
}

fn told(failures: &[Failure]) -> String {
    let each: Vec<String> = failures.iter().map(|failure| format!("{} {}", failure.name, failure.what)).collect();
    format!("not well: {}; the last log lines are in the deployment's log", each.join(", "))
}

fn named(failures: Vec<Failure>) -> Vec<(String, String)> {
    failures.into_iter().map(|failure| (failure.id, failure.name)).collect()
}

fn too_late(waits_for: &[String], timing: &Timing, limit: &Limit) -> String {
    let waits_for = waits_for.join(", ");
    if limit.is_cancelled() {
        return format!("it was ended before the stack was well: {waits_for}");
    }
    if limit.is_over() {
        return format!("the deployment's time limit (`timeout`) was over before the stack was well: {waits_for}");
    }
    format!("not well after {} s (`health_timeout`): {waits_for}", timing.health_timeout.as_secs())
}

#[cfg(test)]
mod tests;
