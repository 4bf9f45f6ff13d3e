//! The child process, `shiparr git`: everything that touches libgit2 and the working tree.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use git2::{Oid, Repository};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::checkout::{Journal, Trees, WorkTree};
use super::libgit::{self, Failed, Home, is_disk_full};
use super::submodules::Sources;
use super::wire::{Answer, Request, Task};
use super::{CheckedOut, Checkout, GitError, Remote, checkout, fetch, store};
use crate::command::Limit;
use crate::model::{Commit, CommitHash};

/// Bound on a request.
const MAX_REQUEST_BYTES: u64 = 1024 * 1024;
/// Bound on a commit's subject and author, in characters.
const MAX_SUBJECT_CHARS: usize = 200;
/// The commit that lies in the working tree; keeps its objects in the store.
const CHECKED_OUT: &str = "refs/shiparr/checked-out";

/// The hidden verb `shiparr git`: reads a request from standard input, writes its result to standard output.
pub fn child_main() -> ExitCode {
    // A daemon that is killed leaves no child that goes on writing; the next daemon waits for the lock otherwise.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let home = Home::announce();
    let answer = answer();
    drop(home);
    let written = serde_json::to_vec(&answer).map_err(std::io::Error::other).and_then(|json| {
        let mut out = std::io::stdout().lock();
        out.write_all(&json)?;
        out.flush()
    });
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn answer() -> Answer {
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(MAX_REQUEST_BYTES).read_to_end(&mut text);
    let request: Result<Request, String> =
        read.map_err(|error| error.to_string()).and_then(|_| serde_json::from_slice(&text).map_err(|e| e.to_string()));
    let request = match request {
        Ok(request) => request,
        Err(error) => return GitError::lasting(format!("`shiparr git` cannot read its request: {error}")).into(),
    };
    let limit = Limit::after(Duration::from_millis(request.limit_milliseconds));
    let task = request.task.clone();
    let remote = request.into_remote();
    let done = libgit::configure_process(remote.ca_file.as_deref())
        .map_err(|error| GitError::lasting(format!("libgit2: {}", error.message())))
        .and_then(|()| match task {
            Task::Check => libgit::tip(&remote).map(Answer::Tip),
            Task::FetchAndCheckout(checkout) => fetch_and_checkout(&remote, &checkout, &limit).map(Answer::CheckedOut),
        });
    done.unwrap_or_else(Answer::from)
}

/// Fetches the branch and checks its tip out. A damaged store is made anew, once.
pub(super) fn fetch_and_checkout(remote: &Remote, checkout: &Checkout, limit: &Limit) -> Result<CheckedOut, GitError> {
    let _lock = store::lock(&checkout.store)?;
    let mut run = Run { remote, checkout, limit, is_new: false, notes: Vec::new(), commit: None };
    run.whole().map_err(|error| GitError { commit: run.commit.map(Box::new), ..error })
}

/// One fetch and checkout.
struct Run<'a> {
    remote: &'a Remote,
    checkout: &'a Checkout,
    limit: &'a Limit,
    /// Whether the store was made anew just now.
    is_new: bool,
    notes: Vec<String>,
    /// The branch's commit, once it was fetched: a failure after that is this commit's.
    commit: Option<Commit>,
}

impl Run<'_> {
    /// All of it; a store that is damaged is made anew, once.
    fn whole(&mut self) -> Result<CheckedOut, GitError> {
        let path = &self.checkout.store;
        let store = path.display();
        let opened = store::open(path).map_err(Failed::Store);
        match opened.and_then(|repository| self.attempt(repository)) {
            Ok(done) => Ok(done),
            Err(Failed::Git(error)) => Err(error),
            Err(Failed::Store(error)) if is_disk_full(&error) => {
                Err(GitError::passing(format!("no space left on the disk of {store}")))
            }
            Err(Failed::Store(error)) => {
                let why = error.message().replace('\n', " ");
                self.notes = vec![format!("the object store was damaged ({why}) and has been fetched anew")];
                self.is_new = true;
                self.attempt(store::rebuild(path)?).map_err(|failed| match failed {
                    Failed::Git(error) => error,
                    Failed::Store(error) => GitError::passing(format!("the object store {store}: {}", error.message())),
                })
            }
        }
    }

    fn attempt(&mut self, repository: Repository) -> Result<CheckedOut, Failed> {
        let checkout = self.checkout;
        let tip = fetch::tip(&repository, self.remote, self.limit)?;
        let commit = describe(&repository, tip)?;
        self.commit = Some(commit.clone());
        let mut journal = Journal::read(&checkout.store.with_extension("journal"), &checkout.local_path);
        let trees = self.collect_trees(repository, &journal, tip)?;
        let tree = WorkTree::open(&checkout.local_path)?;
        let changed_files = checkout::run(&tree, &trees, &mut journal, checkout, tip, &mut self.notes)?;
        let repository = trees.sources.main();
        repository.reference(CHECKED_OUT, tip, true, "checked out")?;
        // For people who look at the tree with git; nothing here reads it.
        let _ = for_people(repository, &checkout.store, &checkout.local_path, tip);
        trees.sources.tidy(self.limit);
        Ok(CheckedOut { commit, changed_files, notes: std::mem::take(&mut self.notes) })
    }

    /// Everything that may be compared with the working tree: the new commit, the one whose files lie there, and those
    /// of runs that did not end.
    ///
    /// The store keeps the commit whose files lie there: where it is gone, the store is damaged. From a store that was
    /// made anew it is gone for good when the remote has rewritten its history, and what lies there then counts as
    /// untracked.
    fn collect_trees(&mut self, repository: Repository, journal: &Journal, tip: Oid) -> Result<Trees, Failed> {
        let mut sources = Sources::new(repository);
        let new = sources.fetch_and_flatten(tip, self.remote, self.limit, &mut self.notes)?;
        let base = journal.base(self.checkout.checked_out.as_ref());
        let base = match base.map(|base| (base, sources.flatten(base, self.remote))) {
            Some((base, None)) if !self.is_new => {
                let why = format!("the commit {base} that was checked out is gone");
                return Err(Failed::Store(git2::Error::from_str(&why)));
            }
            base => base.and_then(|(_, files)| files).unwrap_or_default(),
        };
        let unfinished = journal.unfinished().into_iter();
        let perhaps = unfinished.filter_map(|commit| sources.flatten(commit, self.remote)).collect();
        Ok(Trees { sources, new, base, perhaps })
    }
}

/// What histories and messages show of a commit.
fn describe(repository: &Repository, commit: Oid) -> Result<Commit, Failed> {
    let found = repository.find_commit(commit)?;
    let clean = |bytes: &[u8]| -> String {
        let text = String::from_utf8_lossy(bytes);
        let line = text.trim_start().lines().next().unwrap_or_default();
        line.chars().filter(|char| !char.is_control()).take(MAX_SUBJECT_CHARS).collect()
    };
    let hash: CommitHash =
        commit.to_string().parse().map_err(|_| GitError::lasting("the branch's commit has no full hash"))?;
    Ok(Commit { hash, subject: clean(found.message_bytes()), author: clean(found.author().name_bytes()) })
}

/// Makes `git status` and `git log` work in the tree: a gitfile where nothing lies there, and HEAD and an index in the
/// store.
fn for_people(repository: &Repository, store: &Path, local_path: &Path, commit: Oid) -> Result<(), git2::Error> {
    let io = |error: std::io::Error| git2::Error::from_str(&error.to_string());
    let gitfile = local_path.join(".git");
    let text = format!("gitdir: {}\n", store.display());
    if gitfile.symlink_metadata().is_err() {
        let mut file = std::fs::File::options().write(true).create_new(true).open(&gitfile).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(io)?;
    }
    let mut config = repository.config()?;
    let worktree = local_path.to_string_lossy();
    if config.get_string("core.worktree").ok().as_deref() != Some(worktree.as_ref()) {
        config.set_bool("core.bare", false)?;
        config.set_str("core.worktree", &worktree)?;
    }
    if repository.head().ok().and_then(|head| head.target()) != Some(commit) || !store.join("index").exists() {
        repository.set_head_detached(commit)?;
        let mut index = git2::Index::open(&store.join("index"))?;
        index.read_tree(&repository.find_commit(commit)?.tree()?)?;
        index.write()?;
    }
    Ok(())
}
