//! Whether a repository's folders are the same to Docker as they are to Shiparr, which may run in a container.

use std::path::Path;

use super::{Driver, StepError};
use crate::command::Limit;
use crate::config::{Repository, Settings};

/// Refuses a repository whose working tree, or whose mounted secrets, would not be what Docker mounts into its services.
///
/// # Errors
/// Which folder that is, and how to mount it, in one line; or that it cannot be known now.
pub fn check(
    repository: &Repository,
    settings: &Settings,
    driver: &dyn Driver,
    limit: &Limit,
) -> Result<(), StepError> {
    let deployments = settings.deployments_path();
    let tree = &repository.local_path;
    driver.shares(tree, to_mount(tree, &deployments), limit)?;
    if repository.secret_files.is_empty() {
        return Ok(());
    }
    driver.shares(&settings.runtime_path, &settings.runtime_path, limit)
}

/// What to mount for a working tree: a folder that is good for its neighbours too.
fn to_mount<'a>(tree: &'a Path, deployments: &'a Path) -> &'a Path {
    if tree.starts_with(deployments) {
        return deployments;
    }
    tree.parent().filter(|folder| folder.parent().is_some()).unwrap_or(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_a_folder_to_mount_that_is_good_for_its_neighbours() {
        for (tree, expected) in [
            ("/srv/stacks/web", "/srv/stacks"),
            ("/stacks", "/stacks"),
            ("/data/deployments/homelab/web", "/data/deployments"),
            ("/data/elsewhere", "/data"),
        ] {
            assert_eq!(to_mount(Path::new(tree), Path::new("/data/deployments")), Path::new(expected));
        }
    }
}
