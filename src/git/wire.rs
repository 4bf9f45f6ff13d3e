//! What parent and child say to each other: one request on standard input, one answer on standard output, both JSON.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Checkout, Credential, Fetched, GitError, LookedAhead, PutBack, Remote, RemoteUrl};
use crate::http::Proxies;
use crate::model::{Chance, Commit, CommitHash};
use crate::secrets::Secret;

/// What the child is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Ask for the branch's tip.
    Check,
    /// Fetch the branch and check a commit of it out.
    FetchAndCheckout(Checkout),
    /// Fetch the branch, and say whether it differs.
    LookAhead(Checkout),
    /// Put the files back that lay there before.
    PutBack(Checkout),
    /// Make the stores small again.
    Tidy(Checkout),
}

/// A task with its remote. Secrets are in plain text here: it goes through a pipe, and nowhere else.
#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub task: Task,
    /// The parent's limit; the parent ends the child when it is over.
    pub limit_milliseconds: u64,
    /// For tasks that need one.
    pub remote: Option<PlainRemote>,
}

/// A remote as it goes through the pipe.
#[derive(Serialize, Deserialize)]
pub(super) struct PlainRemote {
    url: RemoteUrl,
    branch: String,
    credential: Option<PlainCredential>,
    insecure_http: bool,
    ca_file: Option<PathBuf>,
    ssh_key: Option<PathBuf>,
    ssh_key_passphrase: Option<String>,
    known_hosts: Vec<PathBuf>,
    https_proxy: Option<String>,
    http_proxy: Option<String>,
    no_proxy: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct PlainCredential {
    user: String,
    secret: String,
    source: String,
}

/// What became of a task.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The branch's tip.
    Tip(CommitHash),
    /// What was fetched, and whether it lies in the working tree.
    Fetched(Fetched),
    /// What was fetched.
    LookedAhead(LookedAhead),
    /// What lies in the working tree again.
    PutBack(PutBack),
    /// The stores are as small as they get.
    Tidied,
    /// It did not work.
    Failed {
        /// One line.
        message: String,
        /// Whether another try can help.
        can_pass: bool,
        /// The branch's commit, where it was fetched.
        tip: Option<CommitHash>,
        /// The commit that was to be checked out, where it came that far.
        commit: Option<Box<Commit>>,
    },
}

impl Request {
    pub fn new(task: &Task, remote: Option<&Remote>, left: Duration) -> Request {
        Request {
            task: task.clone(),
            limit_milliseconds: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            remote: remote.cloned().map(PlainRemote::from),
        }
    }
}

impl From<Remote> for PlainRemote {
    fn from(remote: Remote) -> PlainRemote {
        PlainRemote {
            url: remote.url,
            branch: remote.branch,
            credential: remote.credential.map(|credential| PlainCredential {
                user: credential.user,
                secret: credential.secret.expose().to_owned(),
                source: credential.source,
            }),
            insecure_http: remote.insecure_http,
            ca_file: remote.ca_file,
            ssh_key: remote.ssh_key,
            ssh_key_passphrase: remote.ssh_key_passphrase.map(|passphrase| passphrase.expose().to_owned()),
            known_hosts: remote.known_hosts,
            https_proxy: remote.proxies.https,
            http_proxy: remote.proxies.http,
            no_proxy: remote.proxies.none,
        }
    }
}

impl From<PlainRemote> for Remote {
    /// The remote, its secrets wrapped again.
    fn from(plain: PlainRemote) -> Remote {
        Remote {
            url: plain.url,
            branch: plain.branch,
            credential: plain.credential.map(|plain| Credential {
                user: plain.user,
                secret: Secret::new(plain.secret),
                source: plain.source,
            }),
            insecure_http: plain.insecure_http,
            ca_file: plain.ca_file,
            ssh_key: plain.ssh_key,
            ssh_key_passphrase: plain.ssh_key_passphrase.map(Secret::new),
            known_hosts: plain.known_hosts,
            proxies: Proxies { https: plain.https_proxy, http: plain.http_proxy, none: plain.no_proxy },
        }
    }
}

impl From<GitError> for Answer {
    fn from(error: GitError) -> Answer {
        let GitError { message, chance, tip, commit } = error;
        Answer::Failed { message, can_pass: chance == Chance::CanPass, tip, commit }
    }
}
