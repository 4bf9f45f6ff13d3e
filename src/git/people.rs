//! For people who look at a working tree with git; nothing of Shiparr reads it.

use std::io::Write as _;
use std::path::Path;

use git2::{Oid, Repository};

/// Makes `git status` and `git log` work in the tree: a gitfile where nothing lies there, and HEAD and an index in the
/// store.
pub(super) fn show_commit(
    repository: &Repository,
    store: &Path,
    local_path: &Path,
    commit: Oid,
) -> Result<(), git2::Error> {
    let io = |error: std::io::Error| git2::Error::from_str(&error.to_string());
    let gitfile = local_path.join(".git");
    let text = format!("gitdir: {}\n", store.display());
    if gitfile.symlink_metadata().is_err() {
        let mut file = std::fs::File::options().write(true).create_new(true).open(&gitfile).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(io)?;
    }
    let mut config = repository.config()?;
    let worktree = local_path.to_string_lossy();
    if config.get_string("core.worktree").ok().as_deref() != Some(worktree.as_ref()) {
        config.set_bool("core.bare", false)?;
        config.set_str("core.worktree", &worktree)?;
    }
    point_to(repository, store, commit)
}

/// Says in the store that `commit` is checked out.
pub(super) fn point_to(repository: &Repository, store: &Path, commit: Oid) -> Result<(), git2::Error> {
    if repository.head().ok().and_then(|head| head.target()) != Some(commit) || !store.join("index").exists() {
        repository.set_head_detached(commit)?;
        let mut index = git2::Index::open(&store.join("index"))?;
        index.read_tree(&repository.find_commit(commit)?.tree()?)?;
        index.write()?;
    }
    Ok(())
}
