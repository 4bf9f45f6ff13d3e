//! From a pending row to a running stack: the pipeline, and the drivers that run stacks.

pub mod by_hand;
pub mod checkout;
pub mod compose;
pub mod containers;
pub mod control;
pub mod handover;
mod journal;
pub mod pipeline;
mod probe;
pub mod remote;
pub mod same_paths;
pub mod secret_files;
pub mod settle;
pub mod stack;
pub mod takeover;
#[cfg(test)]
mod testing;
mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::command::{Command, Limit};
use crate::config::Settings;
use crate::config::project::{Build, Pull, UnsetVariables};
use crate::model::{Asked, Chance, LogLevel};
use crate::secrets::Secret;

/// Why a step failed, in one line, and whether another try can help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// One line that says what to do.
    pub message: String,
    /// Whether it is worth another try.
    pub chance: Chance,
}

impl StepError {
    /// One that stays until something changes.
    pub fn for_good(message: impl Into<String>) -> StepError {
        StepError { message: message.into(), chance: Chance::Final }
    }

    /// One that can pass by itself.
    pub fn for_now(message: impl Into<String>) -> StepError {
        StepError { message: message.into(), chance: Chance::CanPass }
    }
}

/// Why a stack was not brought up, and how that leaves its containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct UpError {
    /// Why.
    pub error: StepError,
    /// How the containers are left.
    pub containers: Containers,
}

/// How a failed `up` leaves the containers of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Containers {
    /// None was made, stopped or removed: what ran before runs.
    Untouched,
    /// Some may have been; the driver came to its own end.
    Changed,
    /// Some may have been, and it was ended in the middle: until [`Driver::heal`], one may stay stopped because of that.
    Interrupted,
}

impl UpError {
    /// The same with what came of [`Driver::heal`] after it.
    #[must_use]
    pub fn after_healing(self, healed: Result<(), StepError>) -> UpError {
        let how = match healed {
            Ok(()) => "what it had stopped was started again".to_owned(),
            Err(error) => format!("what it had stopped could not all be started again: {error}"),
        };
        let error = StepError { message: format!("{}; {how}", self.error.message), ..self.error };
        UpError { error, ..self }
    }
}

impl From<UpError> for StepError {
    fn from(error: UpError) -> StepError {
        error.error
    }
}

/// Where a step's lines go. They are scrubbed on the way.
pub trait Log {
    /// Adds a line.
    fn line(&mut self, level: LogLevel, message: &str);
}

/// A stack as a driver sees it.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The working tree that it belongs to, absolute.
    pub root: PathBuf,
    /// The folder of the compose file, absolute, inside `root`.
    pub folder: PathBuf,
    /// `compose_files`, absolute; empty: found.
    pub files: Vec<PathBuf>,
    /// `compose_project`; none: from the file, else `default_project`.
    pub project: Option<String>,
    /// The project's name where nothing else gives one, made of the repository's key; may be empty.
    pub default_project: String,
    /// Profiles.
    pub profiles: Vec<String>,
    /// All of `variables` as one dotenv file in the runtime folder; none: there are no variables.
    pub variables_file: Option<PathBuf>,
    /// Variables for interpolation by name: the stack's own `.env`, env files and `environment` together.
    pub variables: BTreeMap<String, Secret>,
    /// Whether unset variables stop it.
    pub unset_variables: UnsetVariables,
    /// Whether images are built.
    pub build: Build,
    /// Whether images are pulled.
    pub pull: Pull,
    /// What was asked of this deployment.
    pub asked: Asked,
}

/// What a stack would run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The compose project.
    pub project: String,
    /// The compose files that are used, absolute.
    pub files: Vec<PathBuf>,
    /// Whether an active service has `build:`.
    pub builds: bool,
    /// Services that must end with 0 (`service_completed_successfully`).
    pub one_shots: BTreeSet<String>,
    /// Active services and how many containers each has.
    pub services: BTreeMap<String, u32>,
    /// `container_name` of the services that have one, by service.
    pub container_names: BTreeMap<String, String>,
    /// Names of the volumes that Compose makes for the stack: not the external ones.
    pub volumes: BTreeSet<String>,
    /// Files and folders of this host that the services mount.
    pub mounts: Vec<Mount>,
}

/// A file or folder of this host that a service mounts: a bind volume, or a secret or config that comes from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The service.
    pub service: String,
    /// The path on this host, absolute, links not followed.
    pub source: PathBuf,
}

/// How a person runs on a stack what the driver runs on it.
pub struct ByHand {
    /// The call as every step of a deployment makes it, up to the verb, in the stack's folder.
    pub command: Command,
    /// The stack's files that it names, absolute.
    pub files: Vec<PathBuf>,
}

/// How a stack is brought up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Up {
    /// Whether containers of services that the stack does not have any more go.
    pub remove_orphans: bool,
    /// Services whose containers are made anew even where nothing of them changed, because what they mount did.
    pub recreate: BTreeSet<String>,
}

/// A container of this host, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Full id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The compose project that it belongs to; none where Compose does not count it as its own.
    pub project: Option<String>,
    /// The folder that it was brought up from.
    pub folder: Option<PathBuf>,
    /// The compose files that it was brought up with.
    pub files: Vec<PathBuf>,
    /// Its service.
    pub service: Option<String>,
    /// Whether it is of `docker compose run`.
    pub is_one_off: bool,
    /// Whether it ran and does not run any more.
    pub has_ended: bool,
    /// What it mounts: files and folders of this host under the names that they were given, and names of volumes.
    pub mounts: BTreeSet<PathBuf>,
}

/// How long to wait for a stack.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When `up` began.
    pub since: Timestamp,
    /// Until everything must be healthy.
    pub health_timeout: Duration,
    /// How long a container without a health check must stay up.
    pub settle_time: Duration,
}

/// Runs stacks of one kind. To add one: implement this in a file of its own, and name it in [`driver`].
pub trait Driver: Send + Sync {
    /// Whether what runs the containers answers. Cheap enough to be asked before each deployment.
    ///
    /// # Errors
    /// It does not, in one line that says what to do.
    fn available(&self, limit: &Limit) -> Result<(), String>;

    /// Whether a path is the same file or folder to what runs the containers as it is to this process: not so in a
    /// container of Shiparr's own, unless it is mounted there under its own name. `folder` is what to mount where it is
    /// not: the path, or a folder above it.
    ///
    /// # Errors
    /// It is not, in one line that says how to make it so; or that cannot be known now.
    fn shares(&self, path: &Path, folder: &Path, limit: &Limit) -> Result<(), StepError>;

    /// What the stack would run, validated, before anything changes.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    fn plan(&self, stack: &Stack, limit: &Limit, log: &mut dyn Log) -> Result<Plan, StepError>;

    /// All containers of this host, whoever made them. It needs no plan, so that it can be asked at the same time.
    ///
    /// # Errors
    /// Why they cannot be known, in one line.
    fn survey(&self, limit: &Limit) -> Result<Vec<Resident>, StepError>;

    /// Those of the volumes that exist, and the compose project that each was made for.
    ///
    /// # Errors
    /// Why that cannot be known, in one line.
    fn owners_of_volumes(
        &self,
        names: &BTreeSet<String>,
        limit: &Limit,
    ) -> Result<BTreeMap<String, Option<String>>, StepError>;

    /// All services of the stack's files, those of inactive profiles too: their containers are nobody's orphans.
    ///
    /// # Errors
    /// What is wrong with the files, in one line.
    fn services_of_all_profiles(
        &self,
        stack: &Stack,
        plan: &Plan,
        limit: &Limit,
    ) -> Result<BTreeSet<String>, StepError>;

    /// Brings it up, and makes the services of `how.recreate` anew unless that just happened; what depends on them runs
    /// on. Past its limit, or cancelled, what works on it is ended; it never heals by itself: where the error says
    /// [`Containers::Interrupted`], the caller calls [`Driver::heal`], or leaves that to the next start.
    ///
    /// # Errors
    /// What failed, in one line, with what it left behind that does not run; the failing containers' last lines are in
    /// the log.
    fn up(&self, stack: &Stack, plan: &Plan, how: &Up, limit: &Limit, log: &mut dyn Log) -> Result<(), UpError>;

    /// Starts what an `up` that was ended in the middle left stopped, as far as it is there: nothing is pulled or built,
    /// a service that has no container gets none, and only what cannot be started as it is, is made anew. It needs the
    /// same files and variables as `up`, and has a time limit of its own, because the deployment's is over by then.
    ///
    /// # Errors
    /// What stays stopped, and why, in one line.
    fn heal(&self, stack: &Stack, plan: &Plan, log: &mut dyn Log) -> Result<(), StepError>;

    /// Starts those containers of a project that could not be started because something that they mount was not there,
    /// and answers their names: after a reboot, Docker was there before the decrypted files.
    ///
    /// # Errors
    /// What stays stopped, and why, in one line.
    fn start_unmounted(&self, project: &str, limit: &Limit) -> Result<Vec<String>, StepError>;

    /// Waits until it is well: healthy, or up for `settle_time`, or ended with 0 where that is meant (spec section 4, step
    /// 5). Many stacks may be waited for at the same time, each on a thread of its own: they are looked at together, so
    /// the load does not grow with their number. Returns at once when the limit is cancelled, also while Docker hangs.
    ///
    /// # Errors
    /// What is not well, in one line; the failing containers' last lines are in the log.
    fn wait(&self, plan: &Plan, timing: &Timing, limit: &Limit, log: &mut dyn Log) -> Result<(), StepError>;

    /// How a person works on the stack with the driver's program. Nothing of the stack is asked or checked for it: one
    /// that is broken can be looked at by hand.
    ///
    /// # Errors
    /// The stack has no files, or they cannot be read.
    fn by_hand(&self, stack: &Stack, limit: &Limit) -> Result<ByHand, StepError>;

    /// What can do such work while this very process is replaced; none where there is no such thing.
    fn helpers(&self) -> Option<&dyn handover::Helpers> {
        None
    }

    /// Removes images that nothing uses any more and that have no name.
    ///
    /// # Errors
    /// Why it did not, in one line.
    fn prune_images(&self, limit: &Limit, log: &mut dyn Log) -> Result<(), StepError>;
}

/// The driver of every stack, as a helper has it: with the programs and the environment that the daemon had.
fn driver_of_helper(docker: &Path, environment: Vec<(OsString, OsString)>) -> Box<dyn Driver> {
    Box::new(compose::Compose::of_helper(docker, environment))
}

/// The driver of every stack: there is one kind so far.
pub fn driver(settings: &Settings) -> Box<dyn Driver> {
    Box::new(compose::Compose::new(settings))
}
