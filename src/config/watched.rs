//! Which files of its repository a stack is made of, and which ones it watches.

use std::path::{Path, PathBuf};

use super::fields::inside;
use super::project::Repository;

/// What a repository watches: what it says, else its stack. Empty: everything.
pub(super) fn watch_paths<'f>(
    given: Option<Vec<PathBuf>>,
    path: &Path,
    files: impl Iterator<Item = &'f PathBuf>,
) -> Vec<PathBuf> {
    let paths = given.unwrap_or_else(|| stack_paths(path, files));
    if paths.iter().any(|path| path.as_os_str().is_empty()) { Vec::new() } else { paths }
}

/// What a stack is made of and its repository does not watch: `path`, or files that it names outside of it.
pub(super) fn unwatched(repository: &Repository) -> Vec<PathBuf> {
    let watched = &repository.watch_paths;
    let is_watched = |part: &PathBuf| watched.is_empty() || watched.iter().any(|path| part.starts_with(path));
    let mut parts = stack_paths(&repository.path, repository.stack_files());
    parts.retain(|part| !is_watched(part));
    parts
}

/// `path`, and the files of the repository that lie outside of it, relative to the top.
fn stack_paths<'f>(path: &Path, files: impl Iterator<Item = &'f PathBuf>) -> Vec<PathBuf> {
    let mut paths = vec![from_top(path)];
    for file in files.filter_map(|file| inside(path, file)) {
        if !paths.iter().any(|path| file.starts_with(path)) {
            paths.push(file);
        }
    }
    paths
}

/// Without the `.` that stands for the top.
fn from_top(path: &Path) -> PathBuf {
    inside(Path::new(""), path).unwrap_or_default()
}
