//! From a pending row to a running stack: the pipeline, and the drivers that run stacks.

pub mod compose;
pub mod pipeline;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::command::Limit;
use crate::model::{Asked, Chance, LogLevel};
use crate::secrets::Secret;

/// Why a step failed, in one line, and whether another try can help.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// One line that says what to do.
    pub message: String,
    /// Whether it is worth another try.
    pub chance: Chance,
}

/// Where a step's lines go. They are scrubbed on the way.
pub trait Log {
    /// Adds a line.
    fn line(&mut self, level: LogLevel, message: &str);
}

/// A stack as a driver sees it.
#[derive(Clone, Debug)]
pub struct Stack {
    /// `PROJECT/REPO`, for messages.
    pub name: String,
    /// The folder of the compose file, absolute.
    pub folder: PathBuf,
    /// `compose_files`, absolute; empty: found.
    pub files: Vec<PathBuf>,
    /// `compose_project`; none: from the file, else `default_project`.
    pub project: Option<String>,
    /// The repository's key in lower case.
    pub default_project: String,
    /// Profiles.
    pub profiles: Vec<String>,
    /// Env files that Compose reads with `--env-file`, in order; plaintext in the runtime folder.
    pub env_files: Vec<PathBuf>,
    /// Variables for interpolation by name (dotenv files and `environment` together).
    pub variables: BTreeMap<String, Secret>,
    /// Whether unset variables stop it.
    pub fail_on_unset_variables: bool,
    /// Whether images are built.
    pub build: crate::config::project::Build,
    /// Whether images are pulled.
    pub pull: crate::config::project::Pull,
    /// What was asked of this deployment.
    pub asked: Asked,
}

/// Runs stacks of one kind. To add one: implement this in a file of its own, and name it in [`driver`].
pub trait Driver: Send + Sync {
    /// What the stack would run, validated, before anything changes.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    fn plan(&self, stack: &Stack, limit: &Limit, log: &mut dyn Log) -> Result<Plan, StepError>;

    /// Brings it up.
    ///
    /// # Errors
    /// What failed, in one line.
    fn up(&self, stack: &Stack, plan: &Plan, limit: &Limit, log: &mut dyn Log) -> Result<(), StepError>;

    /// Waits until it is well.
    ///
    /// # Errors
    /// What is not well, in one line; the failing containers' last lines are in the log.
    fn wait(
        &self,
        stack: &Stack,
        plan: &Plan,
        timing: &Timing,
        limit: &Limit,
        log: &mut dyn Log,
    ) -> Result<(), StepError>;
}

/// How long to wait for a stack.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Until everything must be healthy.
    pub health_timeout: std::time::Duration,
    /// How long a container without a health check must stay up.
    pub settle_time: std::time::Duration,
}

/// What a stack would run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The compose project.
    pub project: String,
    /// The compose files that were used.
    pub files: Vec<PathBuf>,
    /// Whether an active service has `build:`.
    pub builds: bool,
    /// Services that must end with 0 (`service_completed_successfully`).
    pub one_shots: Vec<String>,
    /// Active services and how many containers each has.
    pub services: BTreeMap<String, u32>,
}
