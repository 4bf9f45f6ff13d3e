//! Git: the check of a remote (one HTTP request), and the child process that fetches and checks out.

mod url;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::command::Limit;
use crate::http::Proxies;
use crate::model::{Chance, Commit, CommitHash};
use crate::secrets::Secret;

pub use url::{RemoteUrl, Scheme};

/// What goes with a request to a remote that asks who is there.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The user's name.
    pub user: String,
    /// Token or password.
    pub secret: Secret,
    /// Where it came from, for messages.
    pub source: String,
}

/// A remote and everything that reaching it takes.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where.
    pub url: RemoteUrl,
    /// A branch, or a full reference.
    pub branch: String,
    /// For http and https.
    pub credential: Option<Credential>,
    /// Sends the credential over plain http to this host too.
    pub insecure_http: bool,
    /// Certificate authority.
    pub ca_file: Option<PathBuf>,
    /// Private key file for ssh.
    pub ssh_key: Option<PathBuf>,
    /// Its passphrase.
    pub ssh_key_passphrase: Option<Secret>,
    /// Known-hosts files.
    pub known_hosts: Vec<PathBuf>,
    /// Used for http and https.
    pub proxies: Proxies,
}

/// What went wrong, in one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct GitError {
    /// One line.
    pub message: String,
    /// Whether it is worth another try.
    pub chance: Chance,
}

/// What runs the Git child: this program, and the environment that it may see.
#[derive(Clone, Debug)]
pub struct Child {
    /// This program's own executable.
    pub program: PathBuf,
    /// From `Environment::for_children`.
    pub environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
}

/// Asks the remote for the branch's commit, without a fetch.
///
/// # Errors
/// A branch that is not there (the error names those that are), a refused credential, an unknown host key, the network.
pub fn check(_remote: &Remote, _child: &Child, _limit: &Limit) -> Result<CommitHash, GitError> {
    todo!()
}

/// What a checkout needs to know.
#[derive(Clone, Debug)]
pub struct Checkout {
    /// The bare object store, `DATA/git/PROJECT/REPO.git`.
    pub store: PathBuf,
    /// The working tree.
    pub local_path: PathBuf,
    /// The commit whose files lie there, as the database knows it.
    pub checked_out: Option<CommitHash>,
    /// Where tracked files that were changed on the host are kept: `DATA/saved/PROJECT/REPO`; a folder per time is made below it.
    pub saved: PathBuf,
    /// `PROJECT/REPO`, for messages.
    pub name: String,
}

/// What a fetch and checkout did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckedOut {
    /// The commit that lies in the working tree now.
    pub commit: Commit,
    /// How many files were written or removed.
    pub changed_files: u64,
    /// Lines for the deployment's log: files that were saved, and where; a store that was rebuilt.
    pub notes: Vec<String>,
}

/// Fetches the branch into the object store and checks its tip out in place (spec section 4, step 1), in a child process.
///
/// # Errors
/// See [`GitError`]; the working tree is then as it was.
pub fn fetch_and_checkout(
    _remote: &Remote,
    _checkout: &Checkout,
    _child: &Child,
    _limit: &Limit,
) -> Result<CheckedOut, GitError> {
    todo!()
}

/// The hidden verb `shiparr git`: reads a request from standard input, writes its result to standard output.
pub fn child_main() -> std::process::ExitCode {
    todo!()
}
