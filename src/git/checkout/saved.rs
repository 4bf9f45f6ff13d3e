//! Copies of tracked files that were changed on this host, made before they are replaced or removed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::super::GitError;
use super::super::libgit::Failed;
use super::super::objects::copy_pieces;
use super::plan::{Save, Seen};
use super::worktree::WorkTree;
use super::{Kind, Trees, io_failed, show, some_of};

/// Files beyond this size get no diff beside them.
const MAX_DIFF_BYTES: u64 = 8 * 1024 * 1024;
/// Longest name that a file can have.
const MAX_NAME_BYTES: usize = 255;
/// Folders that were made in the same second.
const MAX_TRIES: usize = 100;

/// Copies the files into a new folder below `saved`, and notes their names; the folder, which is made without files too
/// where something else is to come into it.
pub(super) fn save(
    tree: &WorkTree,
    trees: &Trees,
    saves: &[Save],
    saved: &Path,
    wants_folder: bool,
    notes: &mut Vec<String>,
) -> Result<Option<PathBuf>, Failed> {
    if saves.is_empty() && !wants_folder {
        return Ok(None);
    }
    let failed = |error: std::io::Error| {
        GitError::passing(format!("cannot keep the changed files in {}: {error}", saved.display()))
    };
    let folder = make_folder(saved).map_err(failed)?;
    let copy = || {
        // All copies before the first diff: a file of the repository can have the name that a diff would get.
        for save in saves {
            copy(tree, save, &folder, &failed)?;
        }
        for save in saves.iter().filter(|save| matches!(save.seen, Seen::File(_))) {
            let target = target_of(save, &folder);
            if let Some(diff) = diff(trees, save, &target, &failed)? {
                write_private(&diff_name(&target), &mut &diff[..]).map_err(failed)?;
            }
        }
        Ok(())
    };
    copy().inspect_err(|_: &Failed| {
        // Nothing was replaced yet: copies that are not whole would only add up with each try.
        let _ = std::fs::remove_dir_all(&folder);
    })?;
    if saves.is_empty() {
        return Ok(Some(folder));
    }
    let names: Vec<String> = saves.iter().map(|save| show(&save.path)).collect();
    notes.push(format!(
        "changed on this host, and kept with the difference in {}: {}",
        folder.display(),
        some_of(&names)
    ));
    Ok(Some(folder))
}

fn target_of(save: &Save, folder: &Path) -> PathBuf {
    folder.join(std::ffi::OsStr::from_bytes(&save.path))
}

fn copy(
    tree: &WorkTree,
    save: &Save,
    folder: &Path,
    failed: &dyn Fn(std::io::Error) -> GitError,
) -> Result<(), Failed> {
    let target = target_of(save, folder);
    private_folders().create(target.parent().unwrap_or(folder)).map_err(failed)?;
    match &save.seen {
        Seen::Link(link) => {
            std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(link), &target).map_err(failed)?;
        }
        Seen::File(_) => {
            let file = tree.open_file(&save.path, OFlags::RDONLY);
            let file = file.map_err(|error| io_failed("read", &save.path, error))?;
            write_private(&target, &mut File::from(file)).map_err(failed)?;
        }
    }
    Ok(())
}

/// From what the commit had to what lies there; none for a link, or something large.
fn diff(
    trees: &Trees,
    save: &Save,
    target: &Path,
    failed: &dyn Fn(std::io::Error) -> GitError,
) -> Result<Option<Vec<u8>>, Failed> {
    let copied_bytes = target.metadata().map_err(failed)?.len();
    let is_large = |bytes: u64| bytes > MAX_DIFF_BYTES;
    if save.tracked.kind == Kind::Link || is_large(copied_bytes) || is_large(trees.sources.size(&save.tracked)?) {
        return Ok(None);
    }
    let (tracked, copied) = (trees.sources.read(&save.tracked)?, std::fs::read(target).map_err(failed)?);
    let path = Path::new(std::ffi::OsStr::from_bytes(&save.path));
    let mut patch = git2::Patch::from_buffers(&tracked, Some(path), &copied, Some(path), None)?;
    Ok(Some(patch.to_buf()?.to_vec()))
}

/// `NAME.diff`, or with a number where the repository has a file of that name too.
fn diff_name(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().as_bytes();
    let with = |ending: String| {
        let room = MAX_NAME_BYTES - ending.len();
        target.with_file_name(std::ffi::OsStr::from_bytes(&[&name[..name.len().min(room)], ending.as_bytes()].concat()))
    };
    let names = std::iter::once(with(".diff".to_owned())).chain((2..).map(|number| with(format!(".{number}.diff"))));
    names.take(MAX_TRIES).find(|name| name.symlink_metadata().is_err()).unwrap_or_else(|| with(".diff".to_owned()))
}

/// A folder named by the time, with a number where there is one of this second.
fn make_folder(saved: &Path) -> std::io::Result<PathBuf> {
    private_folders().create(saved)?;
    let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
    for number in 1..=MAX_TRIES {
        let folder = saved.join(if number == 1 { time.clone() } else { format!("{time}-{number}") });
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other("too many folders of one second"))
}

fn private_folders() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
}

fn write_private(path: &Path, content: &mut impl Read) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    copy_pieces(content, &mut file)?;
    file.sync_all()
}
