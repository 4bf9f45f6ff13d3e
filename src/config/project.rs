//! Projects and repositories as the rest of the program sees them: validated, every default applied.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tokens::user_of_bare_token;
use super::{Environment, Template};
use crate::git::{Credential, RemoteUrl, Scheme};
use crate::model::RepositoryName;
use crate::secrets::Secret;

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

/// What a new commit leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deploy {
    /// A deployment.
    Auto,
    /// It is only shown, until somebody asks for the deployment.
    Manual,
}

/// Whether images are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Build {
    /// `--build` when an active service has `build:`.
    Auto,
    /// Always, with `--pull`.
    Always,
    /// Never.
    Never,
}

/// Whether images are pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pull {
    /// Those that are not there.
    Missing,
    /// All.
    Always,
    /// None.
    Never,
}

/// What happens to a variable that the compose files use and nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Folder of the stack, relative, inside the repository, without `..`; `.` for its top. Links are followed at
    /// deployment.
    pub path: PathBuf,
    /// Where the working tree lives, absolute.
    pub local_path: PathBuf,
    /// Time between two checks.
    pub check_interval: Duration,
    /// Whether a new commit is deployed by itself.
    pub deploy: Deploy,
    /// Files and folders, relative to the repository's top: a commit that changes none of them deploys nothing. Empty:
    /// every file counts.
    pub watch_paths: Vec<PathBuf>,
    /// Whether another repository's stack lies in the same working tree: then only what is below `watch_paths` is
    /// handled.
    pub shares_local_path: bool,
    /// Relative to `path`, or absolute.
    pub env_files: Vec<PathBuf>,
    /// SOPS files that the stack mounts, relative to `path`.
    pub secret_files: Vec<PathBuf>,
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
    /// Names of repositories of the same project that go first; those that `hosts` excludes here are left out, as they
    /// count as met.
    pub depends_on: Vec<String>,
    /// Time until everything must be healthy.
    pub health_timeout: Duration,
    /// Time that a container without a health check must stay up.
    pub settle_time: Duration,
    /// `healthcheck_url`.
    pub probe: Option<Probe>,
    /// Time for the whole deployment.
    pub timeout: Duration,
    /// The token of this repository: its own, else the project's for its host, else the provider's default. None for
    /// ssh and files.
    pub token: Option<Template>,
    /// Where the token comes from, for messages: "`token` of the repository", "`tokens.github` of the project",
    /// "GITHUB_TOKEN"; where there is none, the place that should have had one, or nothing.
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

/// A text as Compose makes a project's name of a folder's: lower case, only letters, digits, `_` and `-`, a letter or
/// digit first.
pub fn compose_project_name(text: &str) -> String {
    let kept: String = text
        .to_lowercase()
        .chars()
        .filter(|character| character.is_ascii_lowercase() || character.is_ascii_digit() || "_-".contains(*character))
        .collect();
    kept.trim_start_matches(['_', '-']).to_owned()
}

impl Repository {
    /// The compose project where neither `compose_project` nor the compose file names one: made of the repository's
    /// key. Empty where that has no letter and no digit.
    pub fn default_compose_project(&self) -> String {
        compose_project_name(&self.name.name)
    }

    /// `env_file`, `secret_files` and `compose_files`, as they are written.
    pub(super) fn stack_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.env_files.iter().chain(&self.secret_files).chain(&self.compose_files)
    }

    /// What is sent to the remote when it asks who is there, as it is now: `user:secret` gives both, a bare token goes
    /// as the password of `oauth2` (`x-token-auth` for bitbucket.org).
    ///
    /// # Errors
    /// A token that cannot be had now, in one line that says where it should come from.
    pub fn credential(&self, environment: &Environment) -> Result<Option<Credential>, String> {
        let (Some(template), Scheme::Https | Scheme::Http) = (&self.token, self.url.scheme()) else {
            return Ok(None);
        };
        let token = template.resolve(environment).map_err(|error| format!("{}: {error}", self.token_source))?;
        let token = token.expose();
        if token.contains(char::is_control) {
            return Err(format!("{}: a control character or line break in the token", self.token_source));
        }
        let (user, secret) = match token.split_once(':') {
            Some((user, secret)) => (user.to_owned(), secret),
            None => (user_of_bare_token(&self.url.host().unwrap_or_default()).to_owned(), token),
        };
        if secret.is_empty() {
            return Err(format!("{}: the token is empty", self.token_source));
        }
        Ok(Some(Credential { user, secret: Secret::new(secret), source: self.token_source.clone() }))
    }

    /// Every value that no log may hold, as it is now: `environment`, the token and its parts, the passphrase, and the
    /// URLs of [`Repository::secret_urls`]. What cannot be had now is left out.
    pub fn secrets(&self, environment: &Environment) -> Vec<Secret> {
        let single = self.environment.values().chain(&self.token).chain(&self.ssh_key_passphrase);
        let mut secrets: Vec<Secret> = single.filter_map(|template| template.resolve(environment).ok()).collect();
        secrets.extend(self.credential(environment).ok().flatten().map(|credential| credential.secret));
        secrets.extend(self.secret_urls(environment));
        secrets
    }

    /// The URLs that no log may hold, nor any of their parts, as they are now: notifications and the probe.
    pub fn secret_urls(&self, environment: &Environment) -> Vec<Secret> {
        let urls = self.notifications.success.iter().chain(&self.notifications.failure);
        let urls = urls.chain(self.probe.as_ref().map(|probe| &probe.url));
        urls.filter_map(|template| template.resolve(environment).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_names_as_compose_does() {
        for (name, expected) in [("Media-Stack", "media-stack"), ("_x", "x"), ("-_A.b c", "abc"), ("__", "")] {
            assert_eq!(compose_project_name(name), expected);
        }
    }
}
