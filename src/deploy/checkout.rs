//! From a configured repository to what the git child is told about its working tree; and a look at what the remote has
//! without touching that tree.

use std::path::{Path, PathBuf};

use super::pipeline::Host;
use super::{StepError, remote};
use crate::command::Limit;
use crate::config::Repository;
use crate::git;
use crate::model::{CommitHash, RepositoryName, RepositoryRecord};
use crate::secrets::mounted;
use crate::store::StoreError;

/// What a checkout of the branch's tip is told. `record` is the repository as the database knows it.
///
/// # Errors
/// The database's.
pub fn of(host: &Host, repository: &Repository, record: &RepositoryRecord) -> Result<git::Checkout, StoreError> {
    Ok(git::Checkout {
        store: store_of(host, &repository.name),
        local_path: repository.local_path.clone(),
        checked_out: record.checked_out_commit.clone(),
        saved: saved_folder(host, &repository.name),
        name: repository.name.to_string(),
        commit: None,
        watch_paths: repository.watch_paths.clone(),
        shares_local_path: repository.shares_local_path,
        siblings: siblings(host, repository)?,
        skip_if_unchanged_since: None,
        linked_secrets: mounted::folder(&host.settings.runtime_path),
        adopt: false,
    })
}

/// Whether the branch's tip changes anything of the stack, compared with `since`; what is not known yet is fetched, and
/// no file of the tree is touched.
///
/// # Errors
/// The remote's, and the database's.
pub fn changes_since(
    host: &Host,
    repository: &Repository,
    record: &RepositoryRecord,
    since: &CommitHash,
    limit: &Limit,
) -> Result<bool, StepError> {
    let remote = remote::of(repository, &host.settings).map_err(StepError::for_good)?;
    let checkout = of(host, repository, record).map_err(|error| StepError::for_now(error.to_string()))?;
    let checkout = git::Checkout { skip_if_unchanged_since: Some(since.clone()), ..checkout };
    let seen = git::look_ahead(&remote, &checkout, &host.git, limit)
        .map_err(|error| StepError { message: error.message, chance: error.chance })?;
    Ok(!seen.is_unchanged)
}

/// Where copies of files go that were changed on this host.
fn saved_folder(host: &Host, name: &RepositoryName) -> PathBuf {
    host.settings.data_path.join("saved").join(&name.project).join(&name.name)
}

/// A repository's object store.
fn store_of(host: &Host, name: &RepositoryName) -> PathBuf {
    host.settings.data_path.join("git").join(&name.project).join(format!("{}.git", name.name))
}

/// The object stores of the other repositories of the same working tree.
fn siblings(host: &Host, repository: &Repository) -> Result<Vec<PathBuf>, StoreError> {
    if !repository.shares_local_path {
        return Ok(Vec::new());
    }
    let records = host.store.repositories(None)?.into_iter();
    let others = records
        .filter(|record| record.name != repository.name && Path::new(&record.local_path) == repository.local_path);
    Ok(others.map(|record| store_of(host, &record.name)).collect())
}
