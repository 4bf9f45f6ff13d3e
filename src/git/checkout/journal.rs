//! What is known of a working tree between two runs: the commit that lies there whole, and those that a killed run may
//! have begun.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use git2::Oid;
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::GitError;
use super::super::scope::Scope;
use super::undo::{Bytes, Undo};
use super::worktree::{Above, WorkTree};
use crate::model::CommitHash;

/// How many runs that did not end are remembered.
const MAX_UNFINISHED: usize = 16;
/// Bytes of chance in a temporary name: nobody has a file of that name.
const TOKEN_BYTES: usize = 8;

/// The journal of one working tree. It lies beside the store, and so outlives one that is damaged.
pub(in crate::git) struct Journal {
    path: PathBuf,
    kept: Kept,
    /// Whether what was kept is about another folder than the one that is checked out to now.
    is_of_other_tree: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    local_path: PathBuf,
    finished: Option<String>,
    /// The paths that the finished run handled, where it was not everything.
    watch_paths: Option<Vec<PathBuf>>,
    /// What the database says is older than this: where no run has finished, nothing of ours lies there.
    is_newer_than_database: bool,
    /// Commits of which anything may lie there.
    unfinished: Vec<String>,
    /// Commits of which no more may lie there than this.
    parts: Vec<Part>,
    token: String,
    /// Folders in which the run made new files.
    folders: BTreeSet<Bytes>,
}

/// What of a commit a run has begun to write, or what of it stays when the rest is taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    commit: String,
    paths: BTreeSet<Bytes>,
}

impl Journal {
    /// A journal that is not there, or makes no sense, knows nothing.
    pub fn read(path: &Path, local_path: &Path) -> Journal {
        let kept: Option<Kept> = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let is_of_other_tree = kept.as_ref().is_some_and(|kept| kept.local_path != local_path);
        let kept = kept.filter(|_| !is_of_other_tree);
        let kept = kept.unwrap_or_else(|| Kept { local_path: local_path.to_owned(), ..Kept::default() });
        Journal { path: path.to_owned(), kept, is_of_other_tree }
    }

    /// The commit whose files lie in the tree: as the last run that ended left it, else as the database knows it. In a
    /// folder that is new to us lies nothing of ours.
    pub fn base(&self, database: Option<&CommitHash>) -> Option<Oid> {
        let is_known = self.is_of_other_tree || self.kept.is_newer_than_database;
        let database = database.map(CommitHash::as_str).filter(|_| !is_known);
        self.kept.finished.as_deref().or(database).and_then(|hash| Oid::from_str(hash).ok())
    }

    /// The part of the tree that the last run that ended has handled: what it did not, it neither wrote nor knows.
    pub fn base_scope(&self) -> Scope {
        self.kept.watch_paths.as_deref().map_or(Scope::ALL, Scope::of)
    }

    /// All that is known, to come back to it.
    pub(super) fn kept(&self) -> Kept {
        self.kept.clone()
    }

    /// Commits of which parts may lie in the tree, with the paths that are known to be all of it.
    pub fn unfinished(&self) -> Vec<(Oid, Option<BTreeSet<Vec<u8>>>)> {
        let whole = self.kept.unfinished.iter().map(|commit| (commit, None));
        let paths = |part: &Part| part.paths.iter().map(|path| path.0.clone()).collect();
        let parts = self.kept.parts.iter().map(|part| (&part.commit, Some(paths(part))));
        whole.chain(parts).filter_map(|(commit, paths)| Some((Oid::from_str(commit).ok()?, paths))).collect()
    }

    /// The name under which new files are made complete.
    pub fn temporary_name(&self) -> String {
        format!(".shiparr-{}", self.kept.token)
    }

    /// Removes the file that a killed run had not completed.
    pub fn remove_leftovers(&self, tree: &WorkTree) {
        for folder in self.kept.folders.iter().filter(|_| !self.kept.token.is_empty()) {
            let Ok(Above::Folder(opened)) = tree.folder(&folder.0) else { continue };
            // Nearly always there is none.
            if unlinkat(opened, self.temporary_name(), AtFlags::empty()) == Err(Errno::ISDIR) {
                let name = self.temporary_name().into_bytes();
                let _ =
                    tree.remove_all(&if folder.0.is_empty() { name } else { [&folder.0[..], b"/", &name].concat() });
            }
        }
    }

    /// Says that the files of an adopted clone lie there, which its user may have changed, beside those that lay there
    /// for us.
    pub fn adopt(&mut self, head: Oid, base: Option<Oid>) {
        self.kept.unfinished.extend(base.as_ref().map(Oid::to_string));
        self.kept.finished = Some(head.to_string());
    }

    /// Says that from now on parts of commits may lie in the tree at these paths, of which new files are made in these
    /// folders.
    ///
    /// # Errors
    /// It cannot be written; then nothing else is.
    pub fn begin(
        &mut self,
        commits: &[Oid],
        paths: &BTreeSet<Vec<u8>>,
        folders: BTreeSet<Vec<u8>>,
    ) -> Result<(), GitError> {
        let mut token = [0; TOKEN_BYTES];
        getrandom::fill(&mut token).map_err(|error| GitError::passing(format!("no random numbers: {error}")))?;
        self.kept.token = token.iter().map(|byte| format!("{byte:02x}")).collect();
        self.kept.folders = folders.into_iter().map(Bytes).collect();
        commits.iter().for_each(|commit| self.kept.add(commit.to_string(), paths));
        self.write()
    }

    /// Says that `commit` lies in the tree, whole, or all of it that is under these paths. Writes nothing where that is
    /// known.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(&mut self, commit: Oid, watch_paths: Option<Vec<PathBuf>>) -> Result<(), GitError> {
        let local_path = self.kept.local_path.clone();
        self.replace(Kept { local_path, finished: Some(commit.to_string()), watch_paths, ..Kept::default() })
    }

    /// Says that a checkout was taken back: what was known before it holds again, with what the database said then.
    /// What of the checkout stays is still known as ours.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn take_back(&mut self, undo: &Undo, stays: &BTreeSet<Vec<u8>>) -> Result<(), GitError> {
        let mut kept = Kept { finished: undo.base.clone(), is_newer_than_database: true, ..undo.journal.clone() };
        if !stays.is_empty() {
            kept.add(undo.new.clone(), stays);
        }
        self.replace(kept)
    }

    fn replace(&mut self, kept: Kept) -> Result<(), GitError> {
        if self.kept == kept {
            return Ok(());
        }
        self.kept = kept;
        self.write()
    }

    fn write(&self) -> Result<(), GitError> {
        let temporary = self.path.with_extension("journal-new");
        // Waited for, so that after a power failure what lies half-written in the tree is known as ours.
        let write = || {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&self.kept)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)
        };
        write().map_err(|error: std::io::Error| {
            GitError::passing(format!("cannot write {}: {error}", self.path.display()))
        })
    }
}

impl Kept {
    /// Adds a part of a commit to those that are known, which is then the newest one.
    fn add(&mut self, commit: String, paths: &BTreeSet<Vec<u8>>) {
        let known = self.parts.iter().position(|part| part.commit == commit);
        let mut part = known.map_or_else(Part::default, |place| self.parts.remove(place));
        part.commit = commit;
        part.paths.extend(paths.iter().cloned().map(Bytes));
        self.parts.push(part);
        let too_many = self.parts.len().saturating_sub(MAX_UNFINISHED);
        self.parts.drain(..too_many);
    }
}
