//! Object stores: one a repository, bare, ours alone. Opened, repaired, and kept from growing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use git2::{ObjectType, Repository, RepositoryInitOptions};
use rustix::fs::{FlockOperation, flock};

use super::GitError;

/// Packs from which on they are made one: a fetch adds one each time.
pub(super) const MAX_PACKS: usize = 16;
/// What the smaller packs together may weigh before they are taken for mostly garbage of rewritten history.
const MAX_GARBAGE_BYTES: u64 = 64 * 1024 * 1024;
/// Time that making one pack of all may take; a deployment waits for it.
const MAX_REPACK_TIME: Duration = Duration::from_secs(60);

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
    for folder in [store.to_owned(), store.join("refs/shiparr"), store.join("refs")] {
        for name in names_in(&folder).iter().filter(|name| name.ends_with(".lock")) {
            let _ = fs::remove_file(folder.join(name));
        }
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Makes one pack of many, without the objects that no reference reaches any more. Where it cannot, or takes too long,
/// the store stays as it is.
pub(super) fn tidy(repository: &Repository, left: Duration) {
    let packs = packs_of(repository);
    let largest = packs.iter().map(|(_, size)| *size).max().unwrap_or(0);
    let rest = packs.iter().map(|(_, size)| *size).sum::<u64>() - largest;
    let is_due = packs.len() >= MAX_PACKS && packs.len() % MAX_PACKS == 0;
    if is_due || rest > largest.max(MAX_GARBAGE_BYTES) {
        let deadline = Instant::now() + MAX_REPACK_TIME.min(left / 2);
        // Not worth a failed deployment: the next one tries again.
        let _ = repack(repository, &packs, deadline);
    }
}

/// The packs and their sizes.
fn packs_of(repository: &Repository) -> Vec<(PathBuf, u64)> {
    let folder = repository.path().join("objects/pack");
    let packs = names_in(&folder).into_iter().filter(|name| name.ends_with(".pack"));
    packs.filter_map(|name| Some((folder.join(&name), fs::metadata(folder.join(&name)).ok()?.len()))).collect()
}

fn repack(repository: &Repository, old: &[(PathBuf, u64)], deadline: Instant) -> Result<(), git2::Error> {
    let mut walk = repository.revwalk()?;
    let mut builder = repository.packbuilder()?;
    builder.set_progress_callback(move |_, _, _| Instant::now() < deadline)?;
    for reference in repository.references()? {
        let target = reference?.peel(ObjectType::Any)?;
        if target.kind() == Some(ObjectType::Tag) {
            builder.insert_object(target.id(), None)?;
        }
        walk.push(target.peel_to_commit()?.id())?;
    }
    builder.insert_walk(&mut walk)?;
    if builder.object_count() == 0 {
        return Ok(());
    }
    builder.write(&repository.path().join("objects/pack"), 0o444)?;
    let new = builder.name().map(|name| format!("pack-{name}.pack"));
    for (pack, _) in old {
        if pack.file_name().and_then(|name| name.to_str()) != new.as_deref() {
            // The index goes last: a pack without one is removed as half-written, an index without a pack likewise.
            let _ = fs::remove_file(pack);
            let _ = fs::remove_file(pack.with_extension("idx"));
        }
    }
    Ok(())
}
