//! What is known of a working tree between two runs: the commit that lies there whole, and those that a killed run may
//! have begun.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use git2::Oid;
use rustix::fs::{AtFlags, unlinkat};
use serde::{Deserialize, Serialize};

use super::super::GitError;
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
struct Kept {
    local_path: PathBuf,
    finished: Option<String>,
    unfinished: Vec<String>,
    token: String,
    /// Folders in which the run made new files, a character for each byte of their names, which may be no UTF-8.
    folders: BTreeSet<String>,
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
        let database = database.map(CommitHash::as_str).filter(|_| !self.is_of_other_tree);
        self.kept.finished.as_deref().or(database).and_then(|hash| Oid::from_str(hash).ok())
    }

    /// Commits of which parts may lie in the tree.
    pub fn unfinished(&self) -> Vec<Oid> {
        self.kept.unfinished.iter().filter_map(|hash| Oid::from_str(hash).ok()).collect()
    }

    /// The name under which new files are made complete.
    pub fn temporary_name(&self) -> String {
        format!(".shiparr-{}", self.kept.token)
    }

    /// Removes the file that a killed run had not completed.
    pub fn remove_leftovers(&self, tree: &WorkTree) {
        for folder in self.kept.folders.iter().filter(|_| !self.kept.token.is_empty()) {
            let folder: Vec<u8> = folder.chars().filter_map(|char| u8::try_from(char).ok()).collect();
            if let Ok(Above::Folder(folder)) = tree.folder(&folder) {
                // Nearly always there is none.
                let _ = unlinkat(folder, self.temporary_name(), AtFlags::empty());
            }
        }
    }

    /// Says that from now on parts of `commit` lie in the tree.
    ///
    /// # Errors
    /// It cannot be written; then nothing else is.
    pub fn begin(&mut self, commit: Oid, folders: BTreeSet<Vec<u8>>) -> Result<(), GitError> {
        let mut token = [0; TOKEN_BYTES];
        getrandom::fill(&mut token).map_err(|error| GitError::passing(format!("no random numbers: {error}")))?;
        self.kept.token = token.iter().map(|byte| format!("{byte:02x}")).collect();
        self.kept.folders =
            folders.iter().map(|folder| folder.iter().map(|byte| char::from(*byte)).collect()).collect();
        let commit = commit.to_string();
        self.kept.unfinished.retain(|known| *known != commit);
        self.kept.unfinished.push(commit);
        let too_many = self.kept.unfinished.len().saturating_sub(MAX_UNFINISHED);
        self.kept.unfinished.drain(..too_many);
        self.write()
    }

    /// Says that `commit` lies in the tree, whole. Writes nothing where that is known.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(&mut self, commit: Oid) -> Result<(), GitError> {
        let local_path = self.kept.local_path.clone();
        let kept = Kept { local_path, finished: Some(commit.to_string()), ..Kept::default() };
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
