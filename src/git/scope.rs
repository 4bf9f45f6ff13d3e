//! The part of a repository that something is about, and whether two commits differ in it.

use std::path::{Component, Path, PathBuf};

use git2::{Oid, Repository, Tree};

use super::libgit::Failed;
use super::submodules::declared_submodules;

/// How many links are followed on the way to one path.
const MAX_LINKS: usize = 16;
/// The mode of a link in a tree.
const MODE_LINK: i32 = 0o120_000;
/// Longest link that is followed.
const MAX_LINK_BYTES: usize = 4096;

/// Everything, or what lies at and below some paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    /// None: everything.
    paths: Option<Vec<Vec<u8>>>,
}

impl Scope {
    /// Everything.
    pub const ALL: Scope = Scope { paths: None };

    /// What lies at and below these paths, relative to the top; of no path, or of the top itself: everything.
    pub fn of(paths: &[PathBuf]) -> Scope {
        let paths: Vec<Vec<u8>> = paths.iter().map(|path| plain(path)).collect();
        let is_all = paths.is_empty() || paths.iter().any(Vec::is_empty);
        Scope { paths: (!is_all).then_some(paths) }
    }

    /// Whether a path belongs to it.
    pub fn holds(&self, path: &[u8]) -> bool {
        self.paths.as_ref().is_none_or(|paths| paths.iter().any(|held| is_at_or_below(path, held)))
    }

    /// Whether something at or below a path may belong to it.
    pub fn touches(&self, path: &[u8]) -> bool {
        let touches = |held: &Vec<u8>| is_at_or_below(path, held) || is_at_or_below(held, path);
        self.paths.as_ref().is_none_or(|paths| paths.iter().any(touches))
    }

    /// Whether two commits have the same in it: files, links, and the commits and declarations of submodules.
    ///
    /// # Errors
    /// The store's; a commit that is not there is one. A `.gitmodules` that is too large.
    pub fn is_same(&self, repository: &Repository, old: Oid, new: Oid) -> Result<bool, Failed> {
        let (old_tree, new_tree) = (repository.find_commit(old)?.tree()?, repository.find_commit(new)?.tree()?);
        if old_tree.id() == new_tree.id() {
            return Ok(true);
        }
        let Some(paths) = &self.paths else { return Ok(false) };
        for path in paths {
            if trail(repository, &old_tree, path)? != trail(repository, &new_tree, path)? {
                return Ok(false);
            }
        }
        let declared = |tree| -> Result<Vec<_>, Failed> {
            let declared = declared_submodules(repository, tree)?;
            Ok(declared.into_iter().filter(|(path, _)| self.touches(path)).collect())
        };
        Ok(declared(&old_tree)? == declared(&new_tree)?)
    }
}

/// A path as Git has it: no `.`, no `..`.
fn plain(path: &Path) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(std::os::unix::ffi::OsStrExt::as_bytes(name)),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join(&b'/')
}

fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// What stands at a path of a tree, after every link on the way there, which is part of the answer: a stack whose
/// folder is a link depends on both. It ends early at a submodule, whose commit says all of what is in it, at a file,
/// and where nothing is.
fn trail(repository: &Repository, top: &Tree<'_>, path: &[u8]) -> Result<Vec<(Oid, i32)>, git2::Error> {
    let mut trail = Vec::new();
    let mut above: Vec<Vec<u8>> = Vec::new();
    let mut ahead: Vec<Vec<u8>> = parts_of(path);
    let mut links = 0;
    ahead.reverse();
    while let Some(name) = ahead.pop() {
        if name == b".." {
            above.pop();
            continue;
        }
        above.push(name);
        let Some((oid, mode, is_folder)) = entry_at(repository, top, &above)? else { return Ok(trail) };
        if mode == MODE_LINK && links < MAX_LINKS {
            links += 1;
            trail.push((oid, mode));
            let odb = repository.odb()?;
            if odb.read_header(oid)?.0 > MAX_LINK_BYTES {
                return Ok(trail);
            }
            let target = odb.read(oid)?;
            if target.data().starts_with(b"/") {
                return Ok(trail);
            }
            above.pop();
            ahead.extend(parts_of(target.data()).into_iter().rev());
        } else if ahead.is_empty() || !is_folder {
            trail.push((oid, mode));
            return Ok(trail);
        }
    }
    // A link has led back to a folder above it.
    trail.extend(match above.is_empty() {
        true => Some((top.id(), 0)),
        false => entry_at(repository, top, &above)?.map(|(oid, mode, _)| (oid, mode)),
    });
    Ok(trail)
}

fn parts_of(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(name, [] | [b'.'])).map(<[u8]>::to_vec).collect()
}

/// Object, mode, and whether it is a folder.
fn entry_at(
    repository: &Repository,
    top: &Tree<'_>,
    path: &[Vec<u8>],
) -> Result<Option<(Oid, i32, bool)>, git2::Error> {
    let Some((name, folders)) = path.split_last() else { return Ok(None) };
    let mut folder = top.clone();
    for name in folders {
        let Some(next) = find(&folder, name).filter(|(_, mode)| is_tree(*mode)) else { return Ok(None) };
        folder = repository.find_tree(next.0)?;
    }
    Ok(find(&folder, name).map(|(oid, mode)| (oid, mode, is_tree(mode))))
}

fn find(folder: &Tree<'_>, name: &[u8]) -> Option<(Oid, i32)> {
    folder.iter().find(|entry| entry.name_bytes() == name).map(|entry| (entry.id(), entry.filemode_raw()))
}

fn is_tree(mode: i32) -> bool {
    const MODE_TREE: i32 = 0o040_000;
    mode == MODE_TREE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(paths: &[&str]) -> Scope {
        Scope::of(&paths.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_scope_holds_files_and_folders_by_whole_names() {
        let some = scope(&["a/b/", "./file", "x/../y"]);
        for held in ["a/b", "a/b/c", "file", "y/z"] {
            assert!(some.holds(held.as_bytes()) && some.touches(held.as_bytes()), "{held}");
        }
        for other in ["a", "a/bc", "a/c", "file2", "x", "filer/file"] {
            assert!(!some.holds(other.as_bytes()), "{other}");
        }
        assert!(some.touches(b"a") && !some.touches(b"a/c") && !some.touches(b"x"));
        for all in [scope(&[]), scope(&["./"]), scope(&["a", "b/.."])] {
            assert!(all == Scope::ALL && all.holds(b"anything") && all.touches(b"any/thing"));
        }
    }
}
