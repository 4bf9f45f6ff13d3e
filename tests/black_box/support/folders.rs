//! Looking through folders.

use std::fs;
use std::path::{Path, PathBuf};

/// Every file and link below `folder`, in no order; folders that vanish meanwhile are no error.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found
}

/// Files below `folder` whose name or content holds `needle`. Sockets and the like are left out.
pub fn contains_anywhere(folder: &Path, needle: &str) -> Vec<PathBuf> {
    files_below(folder)
        .into_iter()
        .filter(|path| {
            let in_name = path.to_string_lossy().contains(needle);
            let is_file = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
            in_name || (is_file && fs::read(path).is_ok_and(|content| holds(&content, needle.as_bytes())))
        })
        .collect()
}

/// Copies the files below `from` to `to`, each text run through `change`.
pub fn copy_tree(from: &Path, to: &Path, change: impl Fn(String) -> String) {
    for path in files_below(from) {
        let target = to.join(path.strip_prefix(from).expect("it is below"));
        fs::create_dir_all(target.parent().expect("it has a folder")).expect("make a folder");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::write(target, change(text)).expect("write a file");
    }
}

fn holds(content: &[u8], needle: &[u8]) -> bool {
    content.windows(needle.len()).any(|window| window == needle)
}
