//! Project files (spec section 3): a raw form with positions, then validated.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Template;
use crate::git::RemoteUrl;
use crate::model::RepositoryName;

/// What is wrong with a project file, in one place of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The file, or the folder.
    pub file: PathBuf,
    /// 1 for the first line; none where the whole file is meant.
    pub line: Option<usize>,
    /// `repositories.media-stack.check_interval`; empty where the whole file is meant.
    pub field: String,
    /// What is wrong, what was expected, and a suggestion where there is one.
    pub message: String,
}

/// A project, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Project {
    /// Unique name.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// The file that it came from.
    pub file: PathBuf,
    /// In the file's order.
    pub repositories: Vec<Repository>,
}

/// Whether images are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// `--build` when an active service has `build:`.
    Auto,
    /// Always, with `--pull`.
    Always,
    /// Never.
    Never,
}

/// Whether images are pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// Those that are not there.
    Missing,
    /// All.
    Always,
    /// None.
    Never,
}

/// What happens to a variable that the compose files use and nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsetVariables {
    /// The deployment stops.
    Fail,
    /// Blank, as Compose does.
    Blank,
}

/// `healthcheck_url` and what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Probed after the containers are up.
    pub url: Template,
    /// Until it must have answered as expected.
    pub timeout: Duration,
    /// The status code that counts as well.
    pub expected_status: u16,
}

/// Where messages go; the project's global ones are in here too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notifications {
    /// After a success.
    pub success: Vec<Template>,
    /// After a failure.
    pub failure: Vec<Template>,
}

/// A repository of a project, validated, every default applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Repository {
    /// `project/key`.
    pub name: RepositoryName,
    /// The remote.
    pub url: RemoteUrl,
    /// A branch, or a full reference.
    pub branch: String,
    /// Folder of the stack, relative, inside the repository; `.` for its top.
    pub path: PathBuf,
    /// Where the working tree lives, absolute.
    pub local_path: PathBuf,
    /// Time between two checks.
    pub check_interval: Duration,
    /// Relative to `path`, or absolute.
    pub env_files: Vec<PathBuf>,
    /// Variables for interpolation; they win over env files.
    pub environment: BTreeMap<String, Template>,
    /// What an unset variable does.
    pub unset_variables: UnsetVariables,
    /// Relative to `path`, or absolute; empty: found.
    pub compose_files: Vec<PathBuf>,
    /// `-p`; none: the file's `name:`, else the repository's key in lower case.
    pub compose_project: Option<String>,
    /// Compose profiles.
    pub profiles: Vec<String>,
    /// Whether images are built.
    pub build: Build,
    /// Whether images are pulled.
    pub pull: Pull,
    /// Higher goes first.
    pub priority: i64,
    /// Names of repositories of the same project that go first.
    pub depends_on: Vec<String>,
    /// Time until everything must be healthy.
    pub health_timeout: Duration,
    /// Time that a container without a health check must stay up.
    pub settle_time: Duration,
    /// `healthcheck_url`.
    pub probe: Option<Probe>,
    /// Time for the whole deployment.
    pub timeout: Duration,
    /// The token of this repository: its own, else the project's for its host, else the provider's default.
    pub token: Option<Template>,
    /// Where the token came from, for messages: "`token` of the repository", "`tokens.github` of the project", "GITHUB_TOKEN".
    pub token_source: String,
    /// Sends the token over plain http to this host too.
    pub insecure_http: bool,
    /// Certificate authority of this remote.
    pub ca_file: Option<PathBuf>,
    /// Private key file for ssh remotes.
    pub ssh_key: Option<PathBuf>,
    /// Its passphrase.
    pub ssh_key_passphrase: Option<Template>,
    /// Whom to tell.
    pub notifications: Notifications,
}

/// What all project files together say: what runs, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Accepted projects, by name.
    pub projects: BTreeMap<String, Project>,
    /// What is wrong, file by file.
    pub problems: Vec<Problem>,
    /// What `hosts` leaves to other machines, for `check`: `project/repository` and the hosts it is for.
    pub elsewhere: Vec<(RepositoryName, Vec<String>)>,
}

impl Catalog {
    /// An accepted repository.
    pub fn repository(&self, name: &RepositoryName) -> Option<&Repository> {
        self.projects.get(&name.project)?.repositories.iter().find(|repository| repository.name == *name)
    }
}
