//! The checkout in place (spec section 4, step 1): everything is planned first, then written.
//!
//! Three kinds of trees are compared with what lies in the working tree: the new commit's, that of the commit whose
//! files lie there, and those of runs that were killed before their end. A file is *ours* when its content is that of
//! one of them; *changed* when the commit tracks it and its content is another; everything else is *foreign*:
//! somebody's data, never written, moved or removed.

mod adopt;
mod apply;
mod cache;
mod journal;
mod plan;
mod put_back;
mod saved;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_adopt;
#[cfg(test)]
mod tests_killed;
#[cfg(test)]
mod tests_put_back;
#[cfg(test)]
mod tests_shared;
mod torn;
mod undo;
mod worktree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use git2::Oid;

use super::libgit::Failed;
use super::submodules::Sources;
use super::{Checkout, GitError};

pub(super) use adopt::Adoption;
use cache::Cache;
pub(super) use journal::Journal;
pub(super) use undo::{Undo, forget};
pub(super) use worktree::WorkTree;

/// Files of a commit by their path, with those of its submodules.
pub(super) type Files = BTreeMap<Vec<u8>, Entry>;

/// A file of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its content.
    pub oid: Oid,
    /// What it is.
    pub kind: Kind,
    /// The store that holds the content.
    pub source: usize,
}

/// What a commit's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// 0644
    File,
    /// 0755
    Executable,
    /// A symbolic link; its content is where it leads.
    Link,
}

/// What a working tree is compared with.
pub(super) struct Trees {
    /// Where contents come from.
    pub sources: Sources,
    /// What it is to become.
    pub new: Files,
    /// What lies there.
    pub base: Files,
    /// What may lie there in parts.
    pub perhaps: Vec<Files>,
    /// What other repositories may have put there.
    pub siblings: Vec<Files>,
    /// Links that lead below this folder are ours.
    pub linked_secrets: Option<PathBuf>,
}

/// A checkout as the working tree sees it.
pub(super) struct Step<'a> {
    /// What it was asked with.
    pub checkout: &'a Checkout,
    /// The commit whose files lie there.
    pub base: Option<Oid>,
    /// The commit whose files are to lie there.
    pub commit: Oid,
    /// What becomes of a clone that lies there.
    pub adoption: &'a Adoption,
}

/// How many paths an error names.
const MAX_NAMED_PATHS: usize = 10;
/// A Git LFS pointer begins with this, and is not longer than that.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";
const MAX_LFS_POINTER_BYTES: u64 = 1024;

/// Makes the working tree what the new commit says; how many files it wrote or removed. What lay there is written down
/// first, so that it can be put back.
///
/// # Errors
/// Before anything is written: files in the way, files that cannot be written, no space. Later: what the system said.
pub(super) fn run(
    tree: &WorkTree,
    trees: &Trees,
    journal: &mut Journal,
    step: &Step<'_>,
    notes: &mut Vec<String>,
) -> Result<u64, Failed> {
    let Step { checkout, base, commit, adoption } = *step;
    journal.remove_leftovers(tree);
    let mut cache = Cache::read(&checkout.store.join("shiparr-cache"));
    let plan = plan::make(tree, trees, &mut cache)?;
    plan.check(tree, trees, adoption)?;
    notes.extend(adoption.hint().filter(|_| checkout.adopt).map(str::to_owned));
    let changed_files = plan.changed_files();
    if plan.is_empty() && base == Some(commit) && !adoption.moves() {
        // Nothing is done that could be taken back; what an earlier run did is done for good.
        let file = checkout.undo_file();
        forget(&file).map_err(|error| GitError::passing(format!("cannot remove {}: {error}", file.display())))?;
    } else {
        note_lfs_pointers(trees, &plan, notes)?;
        change(tree, trees, journal, step, &plan, notes)?;
    }
    let watch_paths = checkout.shares_local_path.then(|| checkout.watch_paths.clone());
    journal.finish(commit, watch_paths)?;
    cache.write();
    Ok(changed_files)
}

fn change(
    tree: &WorkTree,
    trees: &Trees,
    journal: &mut Journal,
    step: &Step<'_>,
    plan: &plan::Plan,
    notes: &mut Vec<String>,
) -> Result<(), Failed> {
    let Step { checkout, base, commit, adoption } = *step;
    let saved = saved::save(tree, trees, &plan.saves, &checkout.saved, adoption.moves(), notes)?;
    let undo = Undo::begin(step, journal, saved.clone());
    undo.record(&checkout.undo_file(), tree, &trees.sources, plan)?;
    if plan.is_empty() && !adoption.moves() {
        return Ok(());
    }
    if let Some(head) = adoption.head {
        journal.adopt(head, base);
    }
    let mut folders = plan.folders_of_new_files();
    folders.extend(adoption.moves().then(Vec::new));
    journal.begin(&[commit], &plan.paths(), folders)?;
    if let Some(folder) = saved.filter(|_| adoption.moves()) {
        adoption.move_away(tree, &folder, trees.sources.main(), &journal.temporary_name())?;
        notes.push(format!(
            "the clone in {} is taken over, its .git is kept in {}",
            tree.path.display(),
            folder.display()
        ));
    }
    apply::apply(tree, trees, plan, journal.temporary_name(), notes)
}

/// Puts back what a checkout changed.
///
/// # Errors
/// Something cannot be written now; what can be is back, and another try does the rest.
pub(super) fn put_back(
    undo: &Undo,
    sources: Sources,
    journal: &mut Journal,
    checkout: &Checkout,
    notes: &mut Vec<String>,
) -> Result<(), GitError> {
    let none = Vec::new;
    let (new, base) = (Files::new(), Files::new());
    let trees = Trees { sources, new, base, perhaps: none(), siblings: none(), linked_secrets: None };
    let path = &undo.local_path;
    let stays = match WorkTree::open_existing(path) {
        Ok(tree) => {
            journal.remove_leftovers(&tree);
            let folders = put_back::folders_of_new_files(undo);
            let paths = undo.steps.iter().map(|step| step.path.0.clone()).collect();
            if journal.begin(&undo.commits(), &paths, folders.clone()).is_err() {
                // The disk may be full, and with what was made on it.
                put_back::remove_made(&tree, undo, &trees);
                journal.begin(&undo.commits(), &paths, folders)?;
            }
            let name = journal.temporary_name();
            put_back::put_back(&tree, undo, &trees, checkout, &name, notes).map_err(|failed| match failed {
                Failed::Git(error) => error,
                Failed::Store(error) => GitError::passing(format!("the object store: {}", error.message())),
            })?
        }
        Err(rustix::io::Errno::NOENT) => {
            notes.push(format!("{} is gone: nothing was put back there", path.display()));
            BTreeSet::new()
        }
        Err(error) => {
            let error = std::io::Error::from(error);
            return Err(GitError::passing(format!("cannot open `local_path` {}: {error}", path.display())));
        }
    };
    journal.take_back(undo, &stays)
}

fn note_lfs_pointers(trees: &Trees, plan: &plan::Plan, notes: &mut Vec<String>) -> Result<(), Failed> {
    let mut pointers = Vec::new();
    for (path, entry) in plan.written() {
        let may_be_pointer = entry.kind != Kind::Link && trees.sources.size(entry)? <= MAX_LFS_POINTER_BYTES;
        if may_be_pointer && trees.sources.read(entry)?.starts_with(LFS_POINTER) {
            pointers.push(show(path));
        }
    }
    if !pointers.is_empty() {
        notes.push(format!("Git LFS is not supported, these files hold its pointers only: {}", some_of(&pointers)));
    }
    Ok(())
}

/// A path for one line of a message.
fn show(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.chars().any(char::is_control) { format!("{text:?}") } else { text.into_owned() }
}

/// The first few of a list, and how many more there are.
fn some_of(items: &[String]) -> String {
    let shown = items[..items.len().min(MAX_NAMED_PATHS)].join(", ");
    match items.len().saturating_sub(MAX_NAMED_PATHS) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The folder of a path, and its name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// The folders above a path, from the nearest one up, without the top.
pub(super) fn folders_above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(split(path).0), |folder| Some(split(folder).0)).take_while(|folder| !folder.is_empty())
}

fn io_failed(what: &str, path: &[u8], error: rustix::io::Errno) -> Failed {
    let full = matches!(error, rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT);
    let why = if full { "no space left on the disk".to_owned() } else { std::io::Error::from(error).to_string() };
    Failed::Git(GitError::passing(format!("cannot {what} {}: {why}", show(path))))
}
