//! A clone of somebody's own in the working tree: found, read without running or believing anything of it, and moved to
//! where saved files are, when that was asked for.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{Oid, Repository};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fstat, mkdirat, openat, renameat, renameat_with,
    symlinkat, syncfs, unlinkat,
};
use rustix::io::Errno;

use super::super::{Checkout, GitError};
use super::journal::Journal;
use super::split;
use super::worktree::{Above, Found, OPEN_FOLDER, Stamp, WorkTree};

/// Where a clone has its own files, or says where they are.
pub(super) const DOT_GIT: &[u8] = b".git";
/// The head of a clone that was adopted, for those that share the tree.
const ADOPTED: &str = "refs/shiparr/adopted";
/// Bound on HEAD and on other files of one line.
const MAX_LINE_BYTES: u64 = 4096;
/// Bound on `packed-refs`.
const MAX_PACKED_REFS_BYTES: u64 = 32 * 1024 * 1024;
/// How many references may lead to the next one.
const MAX_REFERENCES: usize = 5;

/// What `.git` of a working tree is, and what is to become of it.
#[derive(Debug)]
pub(in crate::git) struct Adoption {
    dot_git: DotGit,
    /// The commit that the clone's user has checked out, where it counts as ours.
    pub head: Option<Oid>,
    /// For people, where a clone is left alone.
    hint: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum DotGit {
    Missing,
    /// A gitfile that leads to one of our stores.
    Ours(PathBuf),
    Theirs,
}

impl Adoption {
    /// Looks at `.git`. The head of a clone counts where adoption was asked for and the store has that commit.
    pub fn look(tree: &WorkTree, checkout: &Checkout, repository: &Repository, journal: &Journal) -> Adoption {
        let is_known = |head: &Oid| repository.find_commit(*head).is_ok();
        let dot_git = look(tree, checkout);
        let (mut head, mut hint) = (None, None);
        match &dot_git {
            DotGit::Theirs if checkout.adopt => {
                let found = head_of(tree);
                head = found.filter(is_known);
                let at = found.map_or("HEAD cannot be read".to_owned(), |head| {
                    format!(
                        "HEAD is at {head}, which was not fetched: push it, or check out a commit of the branch there"
                    )
                });
                let message = format!("the clone in {} is not taken over: its {at}", tree.path.display());
                hint = head.is_none().then_some(message);
            }
            DotGit::Theirs => {
                hint = Some(format!(
                    "a clone lies there, and `shiparr deploy {} --adopt` takes it over: its .git is moved to {}, its unmodified files count as tracked",
                    checkout.name,
                    checkout.saved.display()
                ));
            }
            // Another one has adopted it; what that had checked out counts until this one has something there itself.
            DotGit::Ours(store) if checkout.adopt && journal.base(checkout.checked_out.as_ref()).is_none() => {
                let text = WorkTree::open_existing(store).ok();
                head = text.and_then(|store| line_of(&store, ADOPTED)).and_then(|line| Oid::from_str(&line).ok());
                head = head.filter(is_known);
            }
            DotGit::Ours(_) | DotGit::Missing => {}
        }
        Adoption { dot_git, head, hint }
    }

    /// Whether `.git` is to be moved away.
    pub fn moves(&self) -> bool {
        self.dot_git == DotGit::Theirs && self.head.is_some()
    }

    /// Whether a gitfile of ours is going to lie there that does not now.
    pub fn makes_gitfile(&self) -> bool {
        self.moves() || self.dot_git == DotGit::Missing
    }

    /// What a person can do where files are in the way.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Moves `.git` into a folder.
    ///
    /// # Errors
    /// What the system said; `.git` is still there then.
    pub fn move_away(
        &self,
        tree: &WorkTree,
        folder: &Path,
        repository: &Repository,
        name: &str,
    ) -> Result<(), GitError> {
        let target = folder.join(".git");
        let failed = |error: std::io::Error| {
            let tree = tree.path.display();
            GitError::passing(format!("cannot move .git of {tree} to {}: {error}", target.display()))
        };
        let folder = WorkTree::open_existing(folder).map_err(|error| failed(error.into()))?;
        move_between(tree, &folder, PARTIAL, name).map_err(|error| failed(error.into()))?;
        if let Some(head) = self.head {
            let recorded = repository.reference(ADOPTED, head, true, "adopted");
            recorded.map_err(|error| GitError::passing(format!("the object store: {}", error.message())))?;
        }
        Ok(())
    }
}

/// A copy of `.git` that is not whole yet.
const PARTIAL: &str = ".git-partial";

/// Moves a `.git` that was adopted back to where it lay; whether it lies there.
///
/// # Errors
/// What the system said; it is still where it was then.
pub(super) fn move_back(tree: &WorkTree, folder: &Path, checkout: &Checkout, name: &str) -> Result<bool, Errno> {
    let saved = match WorkTree::open_existing(folder) {
        Ok(saved) => saved,
        Err(Errno::NOENT) => return Ok(true),
        Err(error) => return Err(error),
    };
    if matches!(saved.look(PARTIAL.as_bytes())?, Found::Folder) {
        saved.remove_all(PARTIAL.as_bytes())?;
    }
    if matches!(saved.look(DOT_GIT)?, Found::Missing) {
        return Ok(true);
    }
    remove_gitfile(tree, checkout)?;
    if !matches!(tree.look(DOT_GIT)?, Found::Missing) {
        return Ok(false);
    }
    move_between(&saved, tree, name, ".git-was-put-back")?;
    Ok(true)
}

/// Removes a gitfile that leads to this repository's store, and nothing else.
pub(super) fn remove_gitfile(tree: &WorkTree, checkout: &Checkout) -> Result<(), Errno> {
    match look(tree, checkout) {
        DotGit::Ours(store) if store == checkout.store => unlinkat(&tree.root, ".git", AtFlags::empty()),
        _ => Ok(()),
    }
}

/// Moves `.git` from one folder to another: by renaming, or, across file systems, as a copy that is complete and on the
/// disk before the first goes. Killed at any moment, one of the two is whole.
fn move_between(from: &WorkTree, to: &WorkTree, partial: &str, going: &str) -> Result<(), Errno> {
    match renameat_with(&from.root, ".git", &to.root, ".git", RenameFlags::NOREPLACE) {
        Err(Errno::XDEV) => {}
        // Network file systems do not know the flag.
        Err(Errno::INVAL | Errno::NOSYS) if matches!(to.look(DOT_GIT)?, Found::Missing) => {
            match renameat(&from.root, ".git", &to.root, ".git") {
                Err(Errno::XDEV) => {}
                renamed => return renamed,
            }
        }
        Ok(()) => return sync(to).and_then(|()| sync(from)),
        failed => return failed,
    }
    remove(to, partial)?;
    copy(from, DOT_GIT, to, partial.as_bytes()).inspect_err(|_| {
        let _ = remove(to, partial);
    })?;
    syncfs(&to.root)?;
    renameat(&to.root, partial, &to.root, ".git")?;
    sync(to)?;
    renameat(&from.root, ".git", &from.root, going)?;
    sync(from)?;
    remove(from, going)
}

fn sync(folder: &WorkTree) -> Result<(), Errno> {
    rustix::fs::fsync(&folder.root)
}

fn remove(folder: &WorkTree, name: &str) -> Result<(), Errno> {
    match folder.look(name.as_bytes())? {
        Found::Missing => Ok(()),
        Found::Folder => folder.remove_all(name.as_bytes()),
        _ => unlinkat(&folder.root, name, AtFlags::empty()),
    }
}

/// Copies files, links and folders with their modes, and their owners where that is allowed. Sockets and pipes are of
/// running programs and stay.
fn copy(from: &WorkTree, source: &[u8], to: &WorkTree, target: &[u8]) -> Result<(), Errno> {
    if !matches!(from.look(source)?, Found::Folder) {
        return copy_one(from, source, to, target);
    }
    let (folders, others) = from.walk(source)?;
    let place = |path: &[u8]| [target, &path[source.len()..]].concat();
    for folder in &folders {
        let folder = place(folder);
        mkdirat(parent(to, &folder)?, split(&folder).1, Mode::RWXU)?;
    }
    for other in &others {
        copy_one(from, other, to, &place(other))?;
    }
    for folder in folders.iter().rev() {
        if let (Above::Folder(old), Above::Folder(new)) = (from.folder(folder)?, to.folder(&place(folder))?) {
            copy_rights(&Stamp::of(&fstat(&old)?), &new)?;
        }
    }
    Ok(())
}

fn copy_one(from: &WorkTree, source: &[u8], to: &WorkTree, target: &[u8]) -> Result<(), Errno> {
    let (folder, name) = (parent(to, target)?, split(target).1);
    match from.look(source)? {
        Found::Link(link) => symlinkat(link, folder, name),
        Found::File(stamp) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut new = File::from(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
            let mut old = File::from(from.open_file(source, OFlags::RDONLY)?);
            std::io::copy(&mut old, &mut new).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            copy_rights(&stamp, &OwnedFd::from(new))
        }
        _ => Ok(()),
    }
}

fn copy_rights(stamp: &Stamp, new: &OwnedFd) -> Result<(), Errno> {
    // Only root may give things away.
    let _ = fchown(new, Some(Uid::from_raw(stamp.owner)), Some(Gid::from_raw(stamp.group)));
    fchmod(new, Mode::from_raw_mode(stamp.mode))
}

fn parent(tree: &WorkTree, path: &[u8]) -> Result<OwnedFd, Errno> {
    match tree.above(path)? {
        Above::Folder(folder) => Ok(folder),
        Above::Missing | Above::Blocked(_) => Err(Errno::NOENT),
    }
}

fn look(tree: &WorkTree, checkout: &Checkout) -> DotGit {
    match tree.look(DOT_GIT) {
        Ok(Found::Missing) => DotGit::Missing,
        Ok(Found::File(_)) => {
            let target = gitfile_target(tree);
            // `DATA/git`: a gitfile can be that of a repository that shares the tree.
            let stores = checkout.store.parent().and_then(Path::parent);
            match target.filter(|target| stores.is_some_and(|stores| target.starts_with(stores))) {
                Some(store) => DotGit::Ours(store),
                None => DotGit::Theirs,
            }
        }
        _ => DotGit::Theirs,
    }
}

/// Where a gitfile leads.
fn gitfile_target(tree: &WorkTree) -> Option<PathBuf> {
    let text = tree.read_start(DOT_GIT, MAX_LINE_BYTES)?;
    let target = text.strip_prefix(b"gitdir:")?.trim_ascii();
    Some(tree.path.join(std::ffi::OsStr::from_bytes(target)))
}

/// The commit that a clone has checked out. Read by hand: the clone's configuration may say what it likes.
fn head_of(tree: &WorkTree) -> Option<Oid> {
    let git = match tree.look(DOT_GIT).ok()? {
        Found::Folder => {
            let root = openat(&tree.root, ".git", OPEN_FOLDER, Mode::empty()).ok()?;
            WorkTree { root, path: tree.path.join(".git") }
        }
        // A worktree or a submodule of a clone that lies elsewhere.
        Found::File(_) => WorkTree::open_existing(&gitfile_target(tree)?).ok()?,
        Found::Link(target) => WorkTree::open_existing(&tree.path.join(std::ffi::OsStr::from_bytes(&target))).ok()?,
        _ => return None,
    };
    let common = line_of(&git, "commondir").and_then(|path| WorkTree::open_existing(&git.path.join(path)).ok());
    let common = common.as_ref().unwrap_or(&git);
    let mut line = match git.look(b"HEAD").ok()? {
        // As old versions of git have it.
        Found::Link(target) => format!("ref: {}", String::from_utf8(target).ok()?),
        _ => line_of(&git, "HEAD")?,
    };
    for _ in 0..MAX_REFERENCES {
        let Some(name) = line.strip_prefix("ref:").map(str::trim) else { return Oid::from_str(&line).ok() };
        if !name.starts_with("refs/") || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return None;
        }
        line = line_of(&git, name).or_else(|| line_of(common, name)).or_else(|| packed(common, name))?;
    }
    None
}

/// A file's first line.
fn line_of(folder: &WorkTree, path: &str) -> Option<String> {
    let text = String::from_utf8(folder.read_start(path.as_bytes(), MAX_LINE_BYTES)?).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

fn packed(folder: &WorkTree, name: &str) -> Option<String> {
    let text = folder.read_start(b"packed-refs", MAX_PACKED_REFS_BYTES)?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(_, found)| found.trim() == name).map(|(hash, _)| hash.to_owned())
}
