//! What the child does with a store and a working tree: fetch, decide, check out; look ahead; put back.

use std::io::ErrorKind;
use std::path::Path;

use git2::{Oid, Repository};

use super::checkout::{Adoption, Files, Journal, Step, Trees, Undo, WorkTree};
use super::libgit::{Failed, is_disk_full};
use super::scope::Scope;
use super::submodules::Sources;
use super::{Checkout, Done, Fetched, GitError, LookedAhead, PutBack, Remote};
use super::{checkout, choice, fetch, people, store, tidy};
use crate::command::Limit;
use crate::model::{Commit, CommitHash};

/// Bound on a commit's subject and author, in characters.
const MAX_SUBJECT_CHARS: usize = 200;
/// The commit that lies in the working tree; keeps its objects in the store.
const CHECKED_OUT: &str = "refs/shiparr/checked-out";

/// Fetches the branch, and checks a commit of it out where there is a reason to. A damaged store is made anew, once.
pub(super) fn fetch_and_checkout(remote: &Remote, checkout: &Checkout, limit: &Limit) -> Result<Fetched, GitError> {
    let _lock = store::lock(&checkout.store)?;
    let mut run = Run { remote, checkout, limit, is_new: false, notes: Vec::new(), tip: None, commit: None };
    let done = run.on_store(Run::fetch_and_checkout);
    done.map_err(|error| GitError { tip: run.tip, commit: run.commit.map(Box::new), ..error })
}

/// Fetches the branch, and says whether it differs.
pub(super) fn look_ahead(remote: &Remote, checkout: &Checkout, limit: &Limit) -> Result<LookedAhead, GitError> {
    let _lock = store::lock(&checkout.store)?;
    let mut run = Run { remote, checkout, limit, is_new: false, notes: Vec::new(), tip: None, commit: None };
    run.on_store(|run, repository| {
        let tip = fetch::tip(&repository, remote, limit)?;
        let found = LookedAhead { tip: hash_of(tip)?, is_unchanged: run.is_unchanged(&repository, tip)? };
        tidy::tidy(&repository, limit.left());
        Ok(found)
    })
}

/// Puts the files back that lay there before the last checkout.
pub(super) fn put_back(checkout: &Checkout) -> Result<PutBack, GitError> {
    let _lock = store::lock(&checkout.store)?;
    let (store, undo_file) = (&checkout.store, checkout.undo_file());
    let mut notes = Vec::new();
    let mut journal = journal_of(store, &checkout.local_path);
    let forget = || {
        let failed = |error| GitError::passing(format!("cannot remove {}: {error}", undo_file.display()));
        checkout::forget(&undo_file).map_err(failed)
    };
    match Undo::read(&undo_file) {
        Ok(None) => {}
        Ok(Some(undo)) => {
            journal = journal_of(store, undo.local_path());
            let failed = |error: git2::Error| GitError::passing(format!("libgit2: {}", error.message()));
            let sources = Sources::open(store, undo.stores(), undo.copies()).map_err(failed)?;
            checkout::put_back(&undo, sources, &mut journal, checkout, &mut notes)?;
            // What the store says of it is for people, and keeps objects that the next checkout can do without.
            let _ = Repository::open_bare(store).and_then(|repository| say_in_store(&repository, store, undo.base()));
            forget()?;
        }
        Err(why) if matches!(why.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            notes.push(format!("nothing can be put back, {} makes no sense: {why}", undo_file.display()));
            forget()?;
        }
        Err(error) => return Err(GitError::passing(format!("cannot read {}: {error}", undo_file.display()))),
    }
    let commit = journal.base(checkout.checked_out.as_ref()).map(hash_of).transpose()?;
    Ok(PutBack { commit, notes })
}

/// Does for the stores what a checkout left for later.
pub(super) fn tidy_stores(checkout: &Checkout, limit: &Limit) -> Result<(), GitError> {
    let _lock = store::lock(&checkout.store)?;
    if checkout.can_be_put_back() {
        return Ok(());
    }
    let siblings = checkout.siblings.iter().filter_map(|store| journal_of(store, &checkout.local_path).base(None));
    let lies_there = checkout.checked_out.as_ref().and_then(|hash| Oid::from_str(hash.as_str()).ok());
    let keep: Vec<Oid> = siblings.chain(lies_there).collect();
    tidy::tidy_marked(&checkout.store, &keep, limit.left()).map_err(|error| {
        GitError::passing(format!("cannot tidy the object store {}: {}", checkout.store.display(), error.message()))
    })
}

/// What is known of a working tree, beside the store of a repository that has files there.
fn journal_of(store: &Path, local_path: &Path) -> Journal {
    Journal::read(&store.with_extension("journal"), local_path)
}

/// Says in the store which commit lies in the tree.
fn say_in_store(repository: &Repository, store: &Path, commit: Option<Oid>) -> Result<(), git2::Error> {
    match commit {
        Some(commit) => {
            repository.reference(CHECKED_OUT, commit, true, "put back")?;
            people::point_to(repository, store, commit)
        }
        None => repository.find_reference(CHECKED_OUT)?.delete(),
    }
}

/// One fetch, with what follows from it.
struct Run<'a> {
    remote: &'a Remote,
    checkout: &'a Checkout,
    limit: &'a Limit,
    /// Whether the store was made anew just now.
    is_new: bool,
    notes: Vec<String>,
    /// The branch's commit, once it was fetched.
    tip: Option<CommitHash>,
    /// The commit that is to be checked out, once it was fetched: a failure after that is this commit's.
    commit: Option<Commit>,
}

impl Run<'_> {
    /// Does something with the store; one that is damaged is made anew, once.
    fn on_store<R>(&mut self, act: impl Fn(&mut Self, Repository) -> Result<R, Failed>) -> Result<R, GitError> {
        let path = &self.checkout.store;
        let store = path.display();
        let opened = store::open(path).map_err(Failed::Store);
        match opened.and_then(|repository| act(self, repository)) {
            Ok(done) => Ok(done),
            Err(Failed::Git(error)) => Err(error),
            Err(Failed::Store(error)) if is_disk_full(&error) => {
                Err(GitError::passing(format!("no space left on the disk of {store}")))
            }
            Err(Failed::Store(error)) => {
                let why = error.message().replace('\n', " ");
                self.notes = vec![format!("the object store was damaged ({why}) and has been fetched anew")];
                self.is_new = true;
                act(self, store::rebuild(path)?).map_err(|failed| match failed {
                    Failed::Git(error) => error,
                    Failed::Store(error) => GitError::passing(format!("the object store {store}: {}", error.message())),
                })
            }
        }
    }

    fn fetch_and_checkout(&mut self, repository: Repository) -> Result<Fetched, Failed> {
        let checkout = self.checkout;
        let tip = fetch::tip(&repository, self.remote, self.limit)?;
        self.tip = Some(hash_of(tip)?);
        let chosen = match &checkout.commit {
            Some(prefix) => choice::commit_of(&repository, tip, prefix, self.remote)?,
            None => tip,
        };
        let commit = describe(&repository, chosen)?;
        self.commit = Some(commit.clone());
        let done = if self.is_unchanged(&repository, chosen)? {
            tidy::tidy(&repository, self.limit.left());
            Done::Unchanged
        } else {
            Done::CheckedOut { changed_files: self.check_out(repository, chosen)? }
        };
        Ok(Fetched { tip: hash_of(tip)?, commit, done, notes: std::mem::take(&mut self.notes) })
    }

    /// Whether a commit has the same under the watched paths as the one that it is to be compared with. One that the
    /// store does not have any more cannot be compared with.
    fn is_unchanged(&self, repository: &Repository, commit: Oid) -> Result<bool, Failed> {
        let Some(since) = &self.checkout.skip_if_unchanged_since else { return Ok(false) };
        match Oid::from_str(since.as_str()) {
            Ok(since) if repository.find_commit(since).is_ok() => {
                Scope::of(&self.checkout.watch_paths).is_same(repository, since, commit)
            }
            _ => Ok(false),
        }
    }

    fn check_out(&mut self, repository: Repository, commit: Oid) -> Result<u64, Failed> {
        let checkout = self.checkout;
        let mut journal = journal_of(&checkout.store, &checkout.local_path);
        let mut sources = Sources::new(repository);
        let new = sources.fetch_and_flatten(commit, &self.scope(), self.remote, self.limit, &mut self.notes)?;
        let tree = WorkTree::open(&checkout.local_path)?;
        let adoption = Adoption::look(&tree, checkout, sources.main(), &journal);
        let trees = self.collect_trees(sources, new, &journal, &adoption)?;
        let base = journal.base(checkout.checked_out.as_ref());
        let step = Step { checkout, base, commit, adoption: &adoption };
        let changed_files = checkout::run(&tree, &trees, &mut journal, &step, &mut self.notes)?;
        let repository = trees.sources.main();
        repository.reference(CHECKED_OUT, commit, true, "checked out")?;
        // For people; nothing depends on it.
        let _ = people::show_commit(repository, &checkout.store, &checkout.local_path, commit);
        trees.sources.tidy(self.limit);
        Ok(changed_files)
    }

    /// The part of the tree that is this repository's.
    fn scope(&self) -> Scope {
        match self.checkout.shares_local_path {
            true => Scope::of(&self.checkout.watch_paths),
            false => Scope::ALL,
        }
    }

    /// Everything that may be compared with the working tree: the new commit, the one whose files lie there, and those
    /// of runs that did not end and of others that share the tree.
    ///
    /// The store keeps the commit whose files lie there: where it is gone, the store is damaged. From a store that was
    /// made anew it is gone for good when the remote has rewritten its history, and what lies there then counts as
    /// untracked. Of that commit only what its run handled lies there for us; what has come into our part since is
    /// somebody else's.
    fn collect_trees(
        &mut self,
        mut sources: Sources,
        new: Files,
        journal: &Journal,
        adoption: &Adoption,
    ) -> Result<Trees, Failed> {
        let (scope, remote) = (&self.scope(), self.remote);
        let base = journal.base(self.checkout.checked_out.as_ref());
        let mut files = match base.map(|base| (base, sources.flatten(base, scope, remote))) {
            Some((base, None)) if !self.is_new => {
                let why = format!("the commit {base} that was checked out is gone");
                return Err(Failed::Store(git2::Error::from_str(&why)));
            }
            found => found.and_then(|(_, files)| files).unwrap_or_default(),
        };
        let handled = journal.base_scope();
        files.retain(|path, _| handled.holds(path));
        let mut perhaps = Vec::new();
        for (commit, paths) in journal.unfinished() {
            let Some(mut files) = sources.flatten(commit, scope, remote) else { continue };
            files.retain(|path, _| paths.as_ref().is_none_or(|paths| paths.contains(path)));
            perhaps.push(files);
        }
        if let Some(head) = adoption.head.and_then(|head| sources.flatten(head, scope, remote)) {
            perhaps.push(files.clone());
            files.extend(head);
        }
        let siblings = self.checkout.siblings.iter();
        let siblings = siblings.filter_map(|store| self.files_of_sibling(&mut sources, store)).collect();
        let linked_secrets = self.checkout.linked_secrets.clone();
        Ok(Trees { sources, new, base: files, perhaps, siblings, linked_secrets })
    }

    /// The files of our part of the tree that a repository put there which shares it. Of its commit that is only what
    /// it handled: anything else that is alike may be somebody's own.
    fn files_of_sibling(&self, sources: &mut Sources, store: &Path) -> Option<Files> {
        let journal = journal_of(store, &self.checkout.local_path);
        let mut files = sources.flatten(journal.base(None)?, &self.scope(), self.remote)?;
        let handled = journal.base_scope();
        files.retain(|path, _| handled.holds(path));
        Some(files)
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
    Ok(Commit {
        hash: hash_of(commit)?,
        subject: clean(found.message_bytes()),
        author: clean(found.author().name_bytes()),
    })
}

fn hash_of(commit: Oid) -> Result<CommitHash, GitError> {
    commit.to_string().parse().map_err(|_| GitError::lasting("a commit without a full hash"))
}
