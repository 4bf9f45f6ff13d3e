//! Folders that may be named in several ways.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder, to be compared with others: by where they really are, and one that is gone by its text.
#[derive(Debug)]
pub struct Folder {
    named: PathBuf,
    real: Option<PathBuf>,
    /// What was compared before: a stack has many containers and one folder.
    seen: RefCell<BTreeMap<PathBuf, bool>>,
}

impl Folder {
    /// The folder of this name.
    pub fn new(named: &Path) -> Folder {
        Folder { named: named.to_owned(), real: named.canonicalize().ok(), seen: RefCell::default() }
    }

    /// Whether the other name is this folder's, too.
    pub fn is(&self, other: &Path) -> bool {
        if other == self.named || self.real.as_deref() == Some(other) {
            return true;
        }
        *self.seen.borrow_mut().entry(other.to_owned()).or_insert_with(|| {
            // A relative label is nobody's absolute folder, wherever this process happens to stand.
            self.real.is_some() && other.is_absolute() && other.canonicalize().ok() == self.real
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_has_several_names_and_one_that_is_gone_has_its_text() {
        let host = tempfile::tempdir().unwrap();
        let path = |name: &str| host.path().join(name);
        std::fs::create_dir_all(path("stacks/web")).unwrap();
        std::fs::create_dir_all(path("other/web")).unwrap();
        symlink(path("stacks"), path("link")).unwrap();
        let folder = Folder::new(&path("link/web"));
        for same in ["stacks/web", "link/web", "stacks/../stacks/web"] {
            assert!(folder.is(&path(same)), "{same}");
        }
        for other in ["stacks", "other/web", "gone"] {
            assert!(!folder.is(&path(other)), "{other}");
        }
        let gone = Folder::new(&path("gone"));
        assert!(gone.is(&path("gone")) && !gone.is(&path("gone-too")) && !gone.is(&path("stacks")));
    }
}
