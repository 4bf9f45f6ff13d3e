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
mod choice;
mod fetch;
mod known_hosts;
mod libgit;
mod objects;
mod pack;
mod people;
mod run;
mod scope;
mod smart_http;
mod store;
mod submodules;
#[cfg(test)]
mod testing;
mod tidy;
mod url;
mod wire;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::command::{Command, CommandError, Limit};
use crate::http::Proxies;
use crate::model::{Chance, Commit, CommitHash, CommitPrefix};
use crate::secrets::Secret;

pub use child::child_main;
pub use smart_http::full_reference;
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
    /// The branch's commit, where it was fetched.
    pub tip: Option<CommitHash>,
    /// The commit that was to be checked out, where it came that far.
    pub commit: Option<Box<Commit>>,
}

impl GitError {
    /// A failure that can pass by itself.
    fn passing(message: impl Into<String>) -> GitError {
        GitError { message: one_line(message.into()), chance: Chance::CanPass, tip: None, commit: None }
    }

    /// A failure that stays until somebody changes something.
    fn lasting(message: impl Into<String>) -> GitError {
        GitError { message: one_line(message.into()), chance: Chance::Final, tip: None, commit: None }
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
    match ask(&Task::Check, Some(remote), child, limit)? {
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
    /// This commit of the branch instead of its tip.
    pub commit: Option<CommitPrefix>,
    /// Files and folders, relative to the top of the tree; empty: everything.
    pub watch_paths: Vec<PathBuf>,
    /// Only files under `watch_paths` are handled: the others are those of repositories with the same `local_path`.
    pub shares_local_path: bool,
    /// The stores of repositories with the same `local_path`: what these have put there is nobody's change.
    pub siblings: Vec<PathBuf>,
    /// Nothing is checked out where nothing under `watch_paths` differs from this commit.
    pub skip_if_unchanged_since: Option<CommitHash>,
    /// Links that lead below this folder are ours: where a commit has a file of such a name, it takes the link's place.
    pub linked_secrets: Option<PathBuf>,
    /// A `.git` of somebody's own in `local_path` is moved to `saved`, and the files of its HEAD count as ours.
    pub adopt: bool,
}

impl Checkout {
    /// What lay in the working tree before the last checkout; gone once that is put back, or kept for good.
    fn undo_file(&self) -> PathBuf {
        self.store.with_extension("undo")
    }

    /// Whether something of the last checkout can be put back.
    pub fn can_be_put_back(&self) -> bool {
        self.undo_file().exists()
    }
}

/// What a fetch did, and a checkout where there was a reason for one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fetched {
    /// The branch's commit.
    pub tip: CommitHash,
    /// The commit that was asked for: the tip, unless an earlier one was.
    pub commit: Commit,
    /// What became of it.
    pub done: Done,
    /// Lines for the deployment's log: files that were saved, and where; a store that was rebuilt.
    pub notes: Vec<String>,
}

/// What became of a fetched commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// It lies in the working tree now.
    CheckedOut {
        /// How many files were written or removed.
        changed_files: u64,
    },
    /// Nothing under `watch_paths` differs from `skip_if_unchanged_since`; the working tree was not looked at.
    Unchanged,
}

/// What a fetch alone found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookedAhead {
    /// The branch's commit.
    pub tip: CommitHash,
    /// Whether nothing under `watch_paths` differs from `skip_if_unchanged_since`; without that commit, `false`.
    pub is_unchanged: bool,
}

/// What putting back did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBack {
    /// The commit whose files lie there now; none where none of ours do.
    pub commit: Option<CommitHash>,
    /// Lines for the deployment's log: files that stay as they are, because they were changed since.
    pub notes: Vec<String>,
}

/// Fetches the branch into the object store, decides whether there is anything to do, and checks the commit out in
/// place (spec section 4, step 1), all in one child process.
///
/// # Errors
/// See [`GitError`]. A refusal (a file in the way, one that cannot be written) leaves the working tree as it was;
/// whatever ends the writing itself leaves a tree that [`put_back`] or the next checkout completes.
pub fn fetch_and_checkout(
    remote: &Remote,
    checkout: &Checkout,
    child: &Child,
    limit: &Limit,
) -> Result<Fetched, GitError> {
    match ask(&Task::FetchAndCheckout(checkout.clone()), Some(remote), child, limit)? {
        Answer::Fetched(done) => Ok(done),
        answer => Err(unexpected(&answer)),
    }
}

/// Only asks: fetches, and says whether the branch's commit differs under `watch_paths` from
/// `skip_if_unchanged_since`. Touches no file of the tree.
///
/// # Errors
/// See [`GitError`].
pub fn look_ahead(remote: &Remote, checkout: &Checkout, child: &Child, limit: &Limit) -> Result<LookedAhead, GitError> {
    match ask(&Task::LookAhead(checkout.clone()), Some(remote), child, limit)? {
        Answer::LookedAhead(found) => Ok(found),
        answer => Err(unexpected(&answer)),
    }
}

/// Puts the files back that lay there before the last checkout; does nothing when there is nothing to put back. Needs
/// no network, and may be done again after it was ended at any moment.
///
/// # Errors
/// A file that cannot be written, no space: the others are back, and another try goes on from there.
pub fn put_back(checkout: &Checkout, child: &Child, limit: &Limit) -> Result<PutBack, GitError> {
    match ask(&Task::PutBack(checkout.clone()), None, child, limit)? {
        Answer::PutBack(done) => Ok(done),
        answer => Err(unexpected(&answer)),
    }
}

/// Whether a checkout left it for later to make the object stores small again.
pub fn wants_tidying(checkout: &Checkout) -> bool {
    tidy::is_marked(&checkout.store) && !checkout.can_be_put_back()
}

/// Makes the object stores small again where a checkout left that for later, because it takes a while: to be called once
/// the outcome is recorded. Where there is nothing to do, no child is started.
///
/// # Errors
/// The stores stay as they are, and the next time tries again: worth a line in the log, and nothing else.
pub fn tidy(checkout: &Checkout, child: &Child, limit: &Limit) -> Result<(), GitError> {
    if !wants_tidying(checkout) {
        return Ok(());
    }
    match ask(&Task::Tidy(checkout.clone()), None, child, limit)? {
        Answer::Tidied => Ok(()),
        answer => Err(unexpected(&answer)),
    }
}

/// Containers are about to be changed: from now on nothing is put back any more. Waits until that is on the disk.
///
/// # Errors
/// A file of ours cannot be removed.
pub fn keep(checkout: &Checkout) -> io::Result<()> {
    checkout::forget(&checkout.undo_file())
}

/// Runs the child with one request and reads its one answer.
fn ask(task: &Task, remote: Option<&Remote>, child: &Child, limit: &Limit) -> Result<Answer, GitError> {
    let request = wire::Request::new(task, remote, limit.left());
    let request = serde_json::to_vec(&request).map_err(|error| GitError::lasting(error.to_string()))?;
    let command = Command::new(&child.program, &child.environment).arg("git").input(request);
    let captured = command.capture(limit, MAX_ANSWER_BYTES).map_err(|error| {
        let chance = if matches!(error, CommandError::NotFound { .. }) { Chance::Final } else { Chance::CanPass };
        let message = match error {
            CommandError::TimedOut { .. } => match remote {
                Some(remote) => format!("{} did not answer within the time limit", remote.url),
                None => "`shiparr git` did not end within the time limit".to_owned(),
            },
            CommandError::Cancelled { .. } => "stopped".to_owned(),
            other => other.to_string(),
        };
        GitError { message, chance, tip: None, commit: None }
    })?;
    match serde_json::from_slice(&captured.stdout) {
        Ok(Answer::Failed { message, can_pass, tip, commit }) => {
            Err(GitError { message, chance: if can_pass { Chance::CanPass } else { Chance::Final }, tip, commit })
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
