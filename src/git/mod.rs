//! Git: the check of a remote (one HTTP request), and the child process that fetches and checks out.
//!
//! libgit2 runs only in the child, `shiparr git`: its own time limits are per read, and a thread inside it cannot be
//! stopped; a process can. The child gets its request with the credentials on standard input and writes one JSON object
//! to standard output.
//!
//! http(s) remotes are spoken to in protocol v2 over `http.rs`, for the check and for the fetch: one place holds what
//! is said about redirects, credentials, proxies and time limits, and the cost does not grow with the remote's
//! references. ssh, local paths and servers that do not know v2 go through libgit2.

mod checkout;
mod child;
mod fetch;
mod known_hosts;
mod libgit;
mod objects;
mod pack;
mod smart_http;
mod store;
mod submodules;
#[cfg(test)]
mod testing;
mod url;
mod wire;

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::command::{Command, CommandError, Limit};
use crate::http::Proxies;
use crate::model::{Chance, Commit, CommitHash};
use crate::secrets::Secret;

pub use child::child_main;
pub use url::{RemoteUrl, Scheme};
use wire::{Answer, Task};

/// Bound on what the child answers.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// The signal of an access to a mapped page that cannot be had.
const SIGBUS: i32 = 7;

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
    /// The commit that was fetched, where it came that far.
    pub commit: Option<Box<Commit>>,
}

impl GitError {
    /// A failure that can pass by itself.
    fn passing(message: impl Into<String>) -> GitError {
        GitError { message: one_line(message.into()), chance: Chance::CanPass, commit: None }
    }

    /// A failure that stays until somebody changes something.
    fn lasting(message: impl Into<String>) -> GitError {
        GitError { message: one_line(message.into()), chance: Chance::Final, commit: None }
    }
}

/// Names in a message come from remotes and from trees, and may hold anything: escaped, they neither break a line nor
/// steer a terminal.
fn one_line(message: String) -> String {
    if !message.contains(char::is_control) {
        return message;
    }
    let escape = |char: char| if char.is_control() { char.escape_default().to_string() } else { char.to_string() };
    message.chars().map(escape).collect()
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
pub fn check(remote: &Remote, child: &Child, limit: &Limit) -> Result<CommitHash, GitError> {
    if matches!(remote.url.scheme(), Scheme::Http | Scheme::Https) {
        if let Some(tip) = smart_http::Session::new(remote, limit).tip()? {
            return Ok(tip);
        }
    }
    match ask(&Task::Check, remote, child, limit)? {
        Answer::Tip(hash) => Ok(hash),
        answer => Err(unexpected(&answer)),
    }
}

/// What a checkout needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkout {
    /// The bare object store, `DATA/git/PROJECT/REPO.git`.
    pub store: PathBuf,
    /// The working tree.
    pub local_path: PathBuf,
    /// The commit whose files lie there, as the database knows it.
    pub checked_out: Option<CommitHash>,
    /// Where tracked files that were changed on the host are kept: `DATA/saved/PROJECT/REPO`; a folder per time is made
    /// below it.
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

/// Fetches the branch into the object store and checks its tip out in place (spec section 4, step 1), in a child
/// process.
///
/// # Errors
/// See [`GitError`]. A refusal (a file in the way, one that cannot be written) leaves the working tree as it was;
/// whatever ends the writing itself leaves a tree that the next checkout completes.
pub fn fetch_and_checkout(
    remote: &Remote,
    checkout: &Checkout,
    child: &Child,
    limit: &Limit,
) -> Result<CheckedOut, GitError> {
    match ask(&Task::FetchAndCheckout(checkout.clone()), remote, child, limit)? {
        Answer::CheckedOut(done) => Ok(done),
        answer => Err(unexpected(&answer)),
    }
}

/// Runs the child with one request and reads its one answer.
fn ask(task: &Task, remote: &Remote, child: &Child, limit: &Limit) -> Result<Answer, GitError> {
    let request = wire::Request::new(task, remote, limit.left());
    let request = serde_json::to_vec(&request).map_err(|error| GitError::lasting(error.to_string()))?;
    let command = Command::new(&child.program, &child.environment).arg("git").input(request);
    let captured = command.capture(limit, MAX_ANSWER_BYTES).map_err(|error| {
        let chance = if matches!(error, CommandError::NotFound { .. }) { Chance::Final } else { Chance::CanPass };
        let message = match error {
            CommandError::TimedOut { .. } => format!("{} did not answer within the time limit", remote.url),
            CommandError::Cancelled { .. } => "stopped".to_owned(),
            other => other.to_string(),
        };
        GitError { message, chance, commit: None }
    })?;
    match serde_json::from_slice(&captured.stdout) {
        Ok(Answer::Failed { message, can_pass, commit }) => {
            Err(GitError { message, chance: if can_pass { Chance::CanPass } else { Chance::Final }, commit })
        }
        Ok(answer) => Ok(answer),
        // libgit2 writes packs through memory maps, and a full disk ends such a write with this signal.
        Err(_) if captured.status.signal() == Some(SIGBUS) => {
            Err(GitError::passing("no space left on the disk of the object store"))
        }
        Err(_) => {
            let last = captured.stderr.lines().last().unwrap_or_default();
            Err(GitError::passing(format!("`shiparr git` ended without an answer ({}) {last}", captured.status)))
        }
    }
}

fn unexpected(answer: &Answer) -> GitError {
    GitError::lasting(format!("`shiparr git` answered something else than it was asked: {answer:?}"))
}
