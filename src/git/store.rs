//! Object stores: one a repository, bare, ours alone. Opened and repaired.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use git2::{Repository, RepositoryInitOptions};
use rustix::fs::{FlockOperation, flock};

use super::{GitError, objects};

/// Holds the store, its journal and the working tree for this process.
///
/// # Errors
/// A folder that cannot be made or locked.
pub(super) fn lock(store: &Path) -> Result<File, GitError> {
    let path = store.with_extension("lock");
    let lock = || {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let file = File::options().create(true).append(true).open(&path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    };
    lock().map_err(|error: io::Error| GitError::passing(format!("cannot write {}: {error}", path.display())))
}

/// Opens the store, or makes an empty one, after removing what a killed process left.
///
/// # Errors
/// libgit2's own: the store is damaged, or cannot be written.
pub(super) fn open(store: &Path) -> Result<Repository, git2::Error> {
    if store.join("HEAD").exists() {
        remove_leftovers(store);
        let repository = Repository::open_bare(store)?;
        // Opening looks at no object; a store whose objects are gone altogether shows here.
        if !store.join("objects/pack").is_dir() {
            return Err(git2::Error::from_str("the folder of packs is gone"));
        }
        let peeked = objects::peek_at_packs(&store.join("objects"));
        peeked.map_err(|error| git2::Error::from_str(&error.to_string()))?;
        return Ok(repository);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(store)
        .map_err(|error| git2::Error::from_str(&format!("cannot make {}: {error}", store.display())))?;
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false);
    let repository = Repository::init_opts(store, &options)?;
    let packs = store.join("objects/pack");
    fs::create_dir_all(&packs).map_err(|error| git2::Error::from_str(&format!("{}: {error}", packs.display())))?;
    Ok(repository)
}

/// Replaces the store by an empty one. It holds nothing that the remote has not.
///
/// # Errors
/// A folder that cannot be removed or made.
pub(super) fn rebuild(store: &Path) -> Result<Repository, GitError> {
    let failed = |error: &dyn std::fmt::Display| {
        GitError::passing(format!("the object store {} is damaged and cannot be made anew: {error}", store.display()))
    };
    match fs::remove_dir_all(store) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            fs::remove_file(store).map_err(|error| failed(&error))?
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&error)),
        _ => {}
    }
    open(store).map_err(|error| failed(&error.message()))
}

/// Removes lock files and half-written packs. The caller holds the lock, so they are nobody's.
fn remove_leftovers(store: &Path) {
    let packs = store.join("objects/pack");
    for name in names_in(&packs) {
        let stem = name.strip_suffix(".pack").or_else(|| name.strip_suffix(".idx"));
        let is_whole = stem
            .is_some_and(|stem| ["pack", "idx"].iter().all(|ending| packs.join(format!("{stem}.{ending}")).exists()));
        if !is_whole || !name.starts_with("pack-") {
            let _ = fs::remove_file(packs.join(name));
        }
    }
    for folder in ["", "refs", "refs/shiparr", "refs/shiparr/held"].map(|folder| store.join(folder)) {
        for name in names_in(&folder).iter().filter(|name| name.ends_with(".lock")) {
            let _ = fs::remove_file(folder.join(name));
        }
    }
}

/// The names of what lies in a folder; none where it cannot be read.
pub(super) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
