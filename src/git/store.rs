//! Object stores: one a repository, bare, ours alone. Opened, repaired, and kept from growing.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use git2::{ObjectType, Oid, Repository, RepositoryInitOptions};
use rustix::fs::{FlockOperation, flock};

use super::{GitError, objects};

/// Packs from which on they are made one: a fetch adds one each time.
pub(super) const MAX_PACKS: usize = 16;
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

/// Combines packs where there are many, and removes what no reference reaches any more. Where it cannot, or takes too
/// long, the store stays as it is.
pub(super) fn tidy(repository: &Repository, left: Duration) {
    let deadline = Instant::now() + MAX_REPACK_TIME.min(left / 2);
    // Not worth a failed deployment: the next one tries again.
    let _ = try_to_tidy(repository, deadline);
}

fn try_to_tidy(repository: &Repository, deadline: Instant) -> Result<(), git2::Error> {
    let mut packs = packs_of(repository);
    packs.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let Some((_, largest)) = packs.first().cloned() else { return Ok(()) };
    let rest: u64 = packs.iter().skip(1).map(|(_, size)| size).sum();
    let roots = roots_of(repository)?;
    let known = KnownRoots::read(repository);
    let failed = |error: io::Error| git2::Error::from_str(&error.to_string());
    let objects = repository.path().join("objects");
    let all: Vec<PathBuf> = packs.into_iter().map(|(path, _)| path).collect();
    if known.have_left(repository, &roots) || rest > largest / 2 {
        let reachable = reachable_from(repository, &roots, deadline)?;
        objects::combine(&objects, &all, Some(&reachable), deadline).map_err(failed)?;
    } else if all.len() > MAX_PACKS {
        // All but the largest: the cost is that of what came lately, not that of the store.
        objects::combine(&objects, &all[1..], None, deadline).map_err(failed)?;
    }
    known.replace(&roots).map_err(failed)
}

/// The packs and their sizes.
fn packs_of(repository: &Repository) -> Vec<(PathBuf, u64)> {
    let folder = repository.path().join("objects/pack");
    let packs = names_in(&folder).into_iter().filter(|name| name.ends_with(".pack"));
    packs.filter_map(|name| Some((folder.join(&name), fs::metadata(folder.join(&name)).ok()?.len()))).collect()
}

/// What the references point at.
fn roots_of(repository: &Repository) -> Result<BTreeSet<Oid>, git2::Error> {
    let targets = repository.references()?.map(|reference| Ok(reference?.peel(ObjectType::Any)?.id()));
    targets.collect()
}

/// What the references pointed at when the store was tidied last, kept beside it: where the references of now reach all
/// of it, there is nothing to remove.
struct KnownRoots {
    path: PathBuf,
    roots: BTreeSet<Oid>,
}

impl KnownRoots {
    fn read(repository: &Repository) -> KnownRoots {
        let path = repository.path().join("shiparr-roots");
        let text = fs::read_to_string(&path).unwrap_or_default();
        KnownRoots { path, roots: text.lines().filter_map(|line| Oid::from_str(line).ok()).collect() }
    }

    /// Whether history was rewritten, or what kept an old commit has gone.
    fn have_left(&self, repository: &Repository, now: &BTreeSet<Oid>) -> bool {
        let is_reached = |old: &Oid| {
            now.contains(old)
                || repository.find_commit(*old).is_err()
                || now.iter().any(|root| repository.graph_descendant_of(*root, *old).unwrap_or(false))
        };
        !self.roots.iter().all(is_reached)
    }

    fn replace(self, roots: &BTreeSet<Oid>) -> io::Result<()> {
        if self.roots == *roots {
            return Ok(());
        }
        let text: String = roots.iter().map(|root| format!("{root}\n")).collect();
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &self.path)
    }
}

/// The objects that the roots are made of, with their history.
fn reachable_from(
    repository: &Repository,
    roots: &BTreeSet<Oid>,
    deadline: Instant,
) -> Result<HashSet<Oid>, git2::Error> {
    let (mut reachable, mut trees) = (HashSet::new(), Vec::new());
    let mut walk = repository.revwalk()?;
    for root in roots {
        let mut object = repository.find_object(*root, None)?;
        while let Some(tag) = object.as_tag() {
            reachable.insert(tag.id());
            object = tag.target()?;
        }
        walk.push(object.peel_to_commit()?.id())?;
    }
    for commit in walk {
        let commit = repository.find_commit(commit?)?;
        reachable.insert(commit.id());
        trees.push(commit.tree_id());
        while let Some(tree) = trees.pop() {
            if Instant::now() > deadline {
                return Err(git2::Error::from_str("it takes too long"));
            }
            if !reachable.insert(tree) {
                continue;
            }
            for entry in &repository.find_tree(tree)? {
                match entry.kind() {
                    Some(ObjectType::Tree) if !reachable.contains(&entry.id()) => trees.push(entry.id()),
                    Some(ObjectType::Blob) => drop(reachable.insert(entry.id())),
                    _ => {}
                }
            }
        }
    }
    Ok(reachable)
}
