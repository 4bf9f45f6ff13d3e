//! Which commit of the branch is meant.

use git2::{ErrorCode, Oid, Repository};

use super::libgit::Failed;
use super::{GitError, Remote};
use crate::model::CommitPrefix;

/// How many commits an error names.
const MAX_NAMED: usize = 5;
/// Of a hash that libgit2 knows (SHA-1).
const MAX_DIGITS: usize = 40;

/// The commit of the branch that ends in `tip` whose hash begins so.
///
/// # Errors
/// One that is not there, several, one that is not on the branch: all of them last.
pub(super) fn commit_of(
    repository: &Repository,
    tip: Oid,
    prefix: &CommitPrefix,
    remote: &Remote,
) -> Result<Oid, Failed> {
    let (asked, branch, url) = (prefix.as_str(), &remote.branch, &remote.url);
    let unknown = || {
        GitError::lasting(format!(
            "there is no commit {asked} in the history of {branch} in {url}: push it there, or name another one"
        ))
    };
    if asked.len() > MAX_DIGITS {
        return Err(unknown().into());
    }
    match repository.find_commit_by_prefix(asked) {
        Ok(commit) if commit.id() == tip || repository.graph_descendant_of(tip, commit.id())? => Ok(commit.id()),
        Ok(commit) => Err(GitError::lasting(format!(
            "the commit {} (“{}”) is not on {branch} in {url}, which ends in {tip}: push it there, or name another one",
            commit.id(),
            String::from_utf8_lossy(commit.summary_bytes().unwrap_or_default()),
        ))
        .into()),
        // Files and commits of other branches count for libgit2: only those of the branch can be meant.
        Err(error) if error.code() == ErrorCode::Ambiguous => {
            let found = on_branch(repository, tip, asked)?;
            match found[..] {
                [commit] => Ok(commit),
                [] => Err(unknown().into()),
                _ => {
                    let found: Vec<String> = found.iter().map(Oid::to_string).collect();
                    let found = found.join(", ");
                    Err(GitError::lasting(format!(
                        "{asked} begins several commits of {branch}: {found}: name more digits"
                    ))
                    .into())
                }
            }
        }
        Err(error) if error.code() == ErrorCode::NotFound => Err(unknown().into()),
        Err(error) => Err(error.into()),
    }
}

/// The first few commits of the branch whose hash begins so.
fn on_branch(repository: &Repository, tip: Oid, prefix: &str) -> Result<Vec<Oid>, git2::Error> {
    let mut walk = repository.revwalk()?;
    walk.push(tip)?;
    let mut found = Vec::new();
    for commit in walk {
        let commit = commit?;
        if commit.to_string().starts_with(prefix) {
            found.push(commit);
            if found.len() == MAX_NAMED {
                break;
            }
        }
    }
    Ok(found)
}
