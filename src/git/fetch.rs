//! Fetching: the branch's tip into the store, by protocol v2 where the server speaks it, else by libgit2.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use git2::{Oid, Repository, Sort};

use super::libgit::{self, Failed};
use super::objects::{self, Objects, Receiver};
use super::smart_http::{Fetched, Session};
use super::{GitError, Remote, Scheme};
use crate::command::Limit;

/// The tip that was fetched last.
const TIP: &str = "refs/shiparr/tip";
/// Commits that the server is told of, so that it sends only what is new. More of them would cost each fetch, fewer
/// would cost a rewritten history.
const MAX_HAVES: usize = 256;

/// Fetches the followed reference and nothing else; its commit.
pub(super) fn tip(repository: &Repository, remote: &Remote, limit: &Limit) -> Result<Oid, Failed> {
    let commit = match (remote.url.folder(), tip_over_http(repository, remote, limit)?) {
        (Some(folder), _) => tip_of_folder(repository, remote, folder)?,
        (None, Some(commit)) => commit,
        (None, None) => libgit::fetch(repository, remote)?,
    };
    repository.reference(TIP, commit, true, "fetched")?;
    Ok(commit)
}

/// Fetches one commit, for a submodule.
pub(super) fn commit(repository: &Repository, remote: &Remote, commit: Oid, limit: &Limit) -> Result<(), Failed> {
    if repository.find_commit(commit).is_err() {
        let is_http = remote.url.scheme() != Scheme::Ssh;
        let is_there = is_http && fetch_over_http(repository, &mut Session::new(remote, limit), commit)?;
        if !is_there {
            libgit::fetch_all(repository, remote)?;
        }
        if repository.find_commit(commit).is_err() {
            let url = &remote.url;
            return Err(GitError::lasting(format!("{url} does not have the commit {commit}: push it there")).into());
        }
    }
    repository.reference(TIP, commit, true, "fetched")?;
    Ok(())
}

/// None when the server does not speak protocol v2.
fn tip_over_http(repository: &Repository, remote: &Remote, limit: &Limit) -> Result<Option<Oid>, Failed> {
    if !matches!(remote.url.scheme(), Scheme::Http | Scheme::Https) {
        return Ok(None);
    }
    let mut session = Session::new(remote, limit);
    let Some(hash) = session.tip()? else { return Ok(None) };
    let commit = Oid::from_str(hash.as_str())?;
    let is_there = repository.find_commit(commit).is_ok() || fetch_over_http(repository, &mut session, commit)?;
    if is_there && repository.find_commit(commit).is_err() {
        return Err(GitError::lasting(format!("{} is not a branch of commits in {}", remote.branch, remote.url)).into());
    }
    Ok(is_there.then_some(commit))
}

/// Fetches a commit by its hash; `false` when the server does not do that.
fn fetch_over_http(repository: &Repository, session: &mut Session<'_>, commit: Oid) -> Result<bool, Failed> {
    let receiver = Receiver::new(&objects_of(repository)).map_err(store_failed)?;
    let names: Vec<String> = haves(repository).iter().map(Oid::to_string).collect();
    let (receiver, fetched) = session.fetch(&commit.to_string(), &names, receiver)?;
    if fetched == Fetched::NotThisWay {
        return Ok(false);
    }
    receiver.finish().map_err(store_failed)?;
    repository.odb()?.refresh()?;
    Ok(true)
}

/// The branch's tip of a repository on this host, copied into the store.
fn tip_of_folder(repository: &Repository, remote: &Remote, folder: &Path) -> Result<Oid, Failed> {
    let (theirs, commit) = libgit::open_folder(remote, folder)?;
    if repository.find_commit(commit).is_ok() {
        return Ok(commit);
    }
    let failed = |why: &dyn Display| Failed::Git(GitError::passing(format!("cannot copy from {}: {why}", remote.url)));
    let ours = objects_of(repository);
    let receiver = Receiver::new(&ours).map_err(store_failed)?;
    let gathered = objects::gather(&theirs, commit, &haves(repository)).map_err(|error| failed(&error.message()))?;
    let packs = Objects::open(&objects_of(&theirs), &ours.join("pack")).map_err(|error| failed(&error))?;
    let receiver = gathered.send(&packs, &repository.odb()?, receiver).map_err(|error| failed(&error))?;
    receiver.finish().map_err(store_failed)?;
    repository.odb()?.refresh()?;
    Ok(commit)
}

/// The folder of a repository's objects; that of a linked working tree is its repository's.
fn objects_of(repository: &Repository) -> PathBuf {
    repository.commondir().join("objects")
}

fn store_failed(error: io::Error) -> Failed {
    if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
        return Failed::Git(GitError::passing("no space left on the disk of the object store"));
    }
    Failed::Store(git2::Error::from_str(&error.to_string()))
}

/// The newest commits that the store has. A damaged store has fewer.
fn haves(repository: &Repository) -> Vec<Oid> {
    let Ok(mut walk) = repository.revwalk() else { return Vec::new() };
    // By time: with several tips, none of them is told with all its history before the others.
    let walkable = walk.set_sorting(Sort::TIME).and_then(|()| walk.push_glob("refs/shiparr/*"));
    if walkable.is_err() {
        return Vec::new();
    }
    walk.flatten().take(MAX_HAVES).collect()
}
