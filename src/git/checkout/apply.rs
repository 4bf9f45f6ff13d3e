//! Checks that a plan can be carried out, and carries it out.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    Access, Advice, AtFlags, Mode, OFlags, RenameFlags, StatxAttributes, StatxFlags, accessat, fadvise, fchmod, fstat,
    fstatvfs, fsync, ftruncate, mkdirat, openat, renameat, renameat_with, statat, statx, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::super::GitError;
use super::super::libgit::Failed;
use super::super::objects::MAX_HELD_BYTES;
use super::adopt::Adoption;
use super::plan::{Plan, Seen, Write, describe_collisions};
use super::worktree::{Above, Found, OPEN_FOLDER, Stamp, WorkTree};
use super::{Entry, Kind, MAX_NAMED_PATHS, Trees, folders_above, io_failed, show, split};
use crate::{sandbox, users};

/// Contents up to this size are read once before anything is written: a damaged one shows while the tree is still
/// whole.
const MAX_PROBED_BYTES: u64 = MAX_HELD_BYTES;
/// Longest path that a link can lead to.
const MAX_LINK_BYTES: u64 = 4095;

impl Plan {
    /// Finds out what would stop the plan on its way.
    ///
    /// # Errors
    /// Files in the way, paths that cannot be written, too little space, contents that the store does not have.
    pub(super) fn check(&self, tree: &WorkTree, trees: &Trees, adoption: &Adoption) -> Result<(), Failed> {
        if !self.collisions.is_empty() {
            return Err(GitError::passing(format!(
                "untracked in {} and in the way of the commit's own files: {}; nothing was written. Move them away, or commit them as they are{}",
                tree.path.display(),
                describe_collisions(&self.collisions),
                adoption.hint().map_or_else(String::new, |hint| format!("; {hint}")),
            ))
            .into());
        }
        self.check_permissions(tree)?;
        let mut needed_bytes = 0;
        for write in &self.writes {
            let size = trees.sources.size(&write.entry)?;
            let in_place = write.over.filter(|stamp| !stamp.has_other_names);
            needed_bytes += size.saturating_sub(in_place.map_or(0, |stamp| stamp.size));
            if write.entry.kind == Kind::Link && size > MAX_LINK_BYTES {
                let path = show(&write.path);
                let why =
                    format!("the link {path} leads to a path of {size} bytes; Linux knows {MAX_LINK_BYTES} at most");
                return Err(GitError::lasting(why).into());
            }
            if size <= MAX_PROBED_BYTES {
                trees.sources.read(&write.entry)?;
            }
        }
        let space = fstatvfs(&tree.root).map_err(|error| io_failed("look at", b".", error))?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        if needed_bytes > free_bytes {
            let path = tree.path.display();
            return Err(GitError::passing(format!(
                "no space left on the disk of {path}: the commit needs {needed_bytes} bytes, {free_bytes} are free"
            ))
            .into());
        }
        Ok(())
    }

    fn check_permissions(&self, tree: &WorkTree) -> Result<(), Failed> {
        let mut refused: BTreeMap<Vec<u8>, Errno> = self.unreadable.clone();
        for save in self.saves.iter().filter(|save| matches!(save.seen, Seen::File(_))) {
            if let Err(error) = tree.open_file(&save.path, OFlags::RDONLY) {
                refused.insert(save.path.clone(), error);
            }
        }
        let replaced = self.writes.iter().filter(|write| write.over.is_some_and(|stamp| stamp.has_other_names));
        let replaced = replaced.map(|write| &write.path);
        let gone = self.removes.iter().map(|(path, _)| path).chain(&self.removed_folders).chain(replaced);
        let made = self.writes.iter().filter(|write| write.over.is_none()).map(|write| &write.path);
        for path in gone.clone().chain(made) {
            if let Err((folder, error)) = may_change_folder(tree, path) {
                refused.insert(folder, error);
            }
        }
        for path in gone {
            if let Err(error) = may_be_unlinked(tree, path) {
                refused.insert(path.clone(), error);
            }
        }
        for write in &self.writes {
            match write.over.filter(|stamp| !stamp.has_other_names).map(|_| tree.open_file(&write.path, OFlags::WRONLY))
            {
                // A program that runs: it is replaced.
                None | Some(Ok(_) | Err(Errno::TXTBSY)) => {}
                Some(Err(error)) => {
                    refused.insert(write.path.clone(), error);
                }
            }
        }
        let us = rustix::process::geteuid().as_raw();
        for (path, stamp, _) in &self.modes {
            if stamp.owner != us && !acts_as_any_owner() {
                refused.insert(path.clone(), Errno::PERM);
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(describe_refused(tree, &refused).into()) }
    }
}

/// Whether files can be made and removed where a path lies, or where its nearest folder that is there does; else that
/// folder.
fn may_change_folder(tree: &WorkTree, path: &[u8]) -> Result<(), (Vec<u8>, Errno)> {
    for folder in folders_above(path).chain(std::iter::once(&b""[..])) {
        let refused = |error| (folder.to_vec(), error);
        if let Above::Folder(opened) = tree.folder(folder).map_err(refused)? {
            return accessat(&opened, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(refused);
        }
    }
    Ok(())
}

/// Whether what lies at a path can go: not where something is mounted, nor where it is marked as immutable.
fn may_be_unlinked(tree: &WorkTree, path: &[u8]) -> Result<(), Errno> {
    let Above::Folder(folder) = tree.above(path)? else { return Ok(()) };
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    // Kernels that cannot tell say so when it is tried.
    let seen = statx(&folder, split(path).1, flags, StatxFlags::TYPE);
    if seen.is_ok_and(|seen| seen.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)) {
        return Err(Errno::BUSY);
    }
    match tree.open_file(path, OFlags::WRONLY) {
        Err(Errno::PERM) => Err(Errno::PERM),
        _ => Ok(()),
    }
}

/// One line: which paths, whose they are, and the command to run.
fn describe_refused(tree: &WorkTree, refused: &BTreeMap<Vec<u8>, Errno>) -> GitError {
    let names: Vec<String> = refused.keys().take(MAX_NAMED_PATHS).map(|path| quote(&tree.full(path))).collect();
    let owners: Vec<String> = refused
        .keys()
        .map(|path| {
            let shown = if path.is_empty() { tree.path.display().to_string() } else { show(path) };
            format!("{shown} (owner {})", owner_of(tree, path))
        })
        .collect();
    let paths = names.join(" ");
    let todo = match refused.values().next() {
        Some(&Errno::ROFS) => sandbox::way_out_of_read_only(&tree.path),
        Some(&Errno::BUSY) => format!("something is mounted there: run `sudo umount {paths}`"),
        Some(&Errno::PERM) if acts_as_any_owner() => format!("run `sudo chattr -i -a {paths}`"),
        _ => format!("run `sudo chown {} {paths}`", name_of(rustix::process::geteuid().as_raw())),
    };
    GitError::passing(format!("cannot be written: {}; nothing was written. {todo}", super::some_of(&owners)))
}

/// Whether the owner of a file is of no matter (capabilities(7)): as root, and where the service manager gives this
/// capability to another user.
fn acts_as_any_owner() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::FOWNER))
}

fn owner_of(tree: &WorkTree, path: &[u8]) -> String {
    let stat = match tree.above(path) {
        _ if path.is_empty() => fstat(&tree.root),
        Ok(Above::Folder(folder)) => statat(folder, split(path).1, AtFlags::SYMLINK_NOFOLLOW),
        _ => Err(Errno::NOENT),
    };
    stat.map_or_else(|_| "unknown".to_owned(), |stat| name_of(stat.st_uid))
}

/// A user's name, or the number where it has none.
fn name_of(id: u32) -> String {
    users::user_name(id).unwrap_or_else(|| id.to_string())
}

fn quote(text: &str) -> String {
    if text.contains(char::is_control) {
        // The form of shells for names that break a line.
        let escape = |char: char| match char {
            '\'' | '\\' => format!("\\{char}"),
            char if char.is_control() => format!("\\x{:02x}", u32::from(char)),
            char => char.to_string(),
        };
        return format!("$'{}'", text.chars().map(escape).collect::<String>());
    }
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@:,".contains(&byte));
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Carries the plan out.
///
/// # Errors
/// What the system said, or a file that was changed since the plan was made. The next checkout goes on from there.
pub(super) fn apply(
    tree: &WorkTree,
    trees: &Trees,
    plan: &Plan,
    temporary_name: String,
    notes: &mut Vec<String>,
) -> Result<(), Failed> {
    let mut writer = Writer::new(tree, trees, temporary_name, notes);
    for (path, seen) in &plan.removes {
        writer.remove(path, seen)?;
    }
    for folder in &plan.removed_folders {
        remove_folder(tree, folder).map_err(|error| io_failed("remove the folder", folder, error))?;
    }
    for write in &plan.writes {
        writer.write(write)?;
    }
    writer.note_unlinked();
    for (path, stamp, entry) in &plan.modes {
        writer.set_mode(path, stamp, entry.kind)?;
    }
    for folder in &plan.emptied_folders {
        // Where something is left in it, it stays.
        let _ = remove_folder(tree, &folder.0);
    }
    make_durable(tree, plan)
}

/// Waits until what was written is on the disk: the commit is about to be recorded as lying there.
fn make_durable(tree: &WorkTree, plan: &Plan) -> Result<(), Failed> {
    for write in &plan.writes {
        let failed = |error| io_failed("write", &write.path, error);
        if write.entry.kind != Kind::Link {
            // Writing has begun for all of them by now, so the first wait is mostly that of all.
            fsync(tree.open_file(&write.path, OFlags::RDONLY).map_err(failed)?).map_err(failed)?;
        }
    }
    for folder in plan.folders_of_new_files() {
        let failed = |error| io_failed("write", &folder, error);
        if let Above::Folder(folder) = tree.folder(&folder).map_err(failed)? {
            fsync(folder).map_err(failed)?;
        }
    }
    Ok(())
}

fn remove_folder(tree: &WorkTree, folder: &[u8]) -> Result<(), Errno> {
    match tree.above(folder)? {
        Above::Folder(parent) => unlinkat(parent, split(folder).1, AtFlags::REMOVEDIR),
        Above::Missing | Above::Blocked(_) => Ok(()),
    }
}

/// Changes single files.
pub(super) struct Writer<'a> {
    tree: &'a WorkTree,
    trees: &'a Trees,
    temporary_name: String,
    notes: &'a mut Vec<String>,
    /// Files that had other names, and were replaced.
    unlinked: Vec<String>,
}

impl<'a> Writer<'a> {
    pub fn new(tree: &'a WorkTree, trees: &'a Trees, temporary_name: String, notes: &'a mut Vec<String>) -> Writer<'a> {
        Writer { tree, trees, temporary_name, notes, unlinked: Vec::new() }
    }

    /// Removes a file or link that was seen there.
    pub fn remove(&mut self, path: &[u8], seen: &Seen) -> Result<(), Failed> {
        let found = self.tree.look(path).map_err(|error| io_failed("look at", path, error))?;
        let is_same = match (&found, seen) {
            (Found::File(now), Seen::File(then)) => now == then,
            (Found::Link(now), Seen::Link(then)) => now == then,
            _ => false,
        };
        if !is_same {
            return Err(changed_meanwhile(path));
        }
        let removed = match self.tree.above(path) {
            Ok(Above::Folder(folder)) => unlinkat(folder, split(path).1, AtFlags::empty()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        removed.map_err(|error| io_failed("remove", path, error))
    }

    /// Makes a file, rewrites it in place, or replaces it.
    pub fn write(&mut self, write: &Write) -> Result<(), Failed> {
        let Some(stamp) = &write.over else { return self.create(&write.path, &write.entry, false) };
        if stamp.has_other_names {
            self.unlinked.push(show(&write.path));
            return self.replace(&write.path, stamp, &write.entry);
        }
        match self.tree.open_file(&write.path, OFlags::WRONLY) {
            Ok(file) => self.rewrite(&write.path, file, stamp, &write.entry),
            Err(Errno::TXTBSY) => {
                let path = show(&write.path);
                self.notes.push(format!("{path} is a program that runs: it was replaced by a new file"));
                self.replace(&write.path, stamp, &write.entry)
            }
            Err(error) => Err(io_failed("write", &write.path, error)),
        }
    }

    /// A new file under the old name.
    fn replace(&self, path: &[u8], stamp: &Stamp, entry: &Entry) -> Result<(), Failed> {
        match self.tree.look(path).map_err(|error| io_failed("look at", path, error))? {
            Found::File(now) if now == *stamp => self.create(path, entry, true),
            _ => Err(changed_meanwhile(path)),
        }
    }

    fn note_unlinked(&mut self) {
        if !self.unlinked.is_empty() {
            self.notes.push(format!(
                "replaced by new files, because the old ones have other names on this host (hard links), which keep their content: {}; \
                 a container that mounts such a file by itself sees the new one once it is made anew",
                super::some_of(&self.unlinked)
            ));
        }
    }

    /// In place: whoever has the file mounted or open sees the new content.
    fn rewrite(&self, path: &[u8], file: OwnedFd, stamp: &Stamp, entry: &Entry) -> Result<(), Failed> {
        let failed = |error| io_failed("write", path, error);
        if Stamp::of(&fstat(&file).map_err(failed)?) != *stamp {
            return Err(changed_meanwhile(path));
        }
        // Reserved first where the file grows, so that a full disk shows before the old content is gone.
        let size = self.trees.sources.size(entry)?;
        reserve(&file, stamp.size, size).map_err(failed)?;
        let mut file = File::from(file);
        self.fill(path, &mut file, entry)?;
        ftruncate(&file, size).map_err(failed)?;
        let mode = mode_of(entry.kind);
        if stamp.mode != mode.as_raw_mode() {
            // Somebody else's file keeps its other bits; whether it can be run must be right.
            let is_right = stamp.is_executable() == (entry.kind == Kind::Executable);
            fchmod(&file, mode).or_else(|error| if is_right { Ok(()) } else { Err(failed(error)) })?;
        }
        begin_writing_out(&file);
        Ok(())
    }

    /// Complete under a temporary name, then renamed: a run that is killed leaves no half of a new file.
    fn create(&self, path: &[u8], entry: &Entry, replaces: bool) -> Result<(), Failed> {
        let failed = |error| io_failed("write", path, error);
        let folder = self.make_folders(path)?;
        let name = split(path).1;
        let made = self.make_temporary(path, &folder, entry).and_then(|()| {
            let renamed = if replaces {
                renameat(&folder, &self.temporary_name, &folder, name)
            } else {
                rename_without_replacing(&folder, &self.temporary_name, name)
            };
            renamed.map_err(|error| if error == Errno::EXIST { changed_meanwhile(path) } else { failed(error) })
        });
        if made.is_err() {
            let _ = unlinkat(&folder, &self.temporary_name, AtFlags::empty());
        }
        made
    }

    fn make_temporary(&self, path: &[u8], folder: &OwnedFd, entry: &Entry) -> Result<(), Failed> {
        let failed = |error| io_failed("write", path, error);
        if entry.kind == Kind::Link {
            let target = self.trees.sources.read(entry)?;
            return symlinkat(&target[..], folder, &self.temporary_name).map_err(failed);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(folder, &self.temporary_name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let mut file = File::from(file);
        self.fill(path, &mut file, entry)?;
        fchmod(&file, mode_of(entry.kind)).map_err(failed)?;
        begin_writing_out(&file);
        Ok(())
    }

    /// Writes the content of a commit's file, in pieces.
    fn fill(&self, path: &[u8], file: &mut File, entry: &Entry) -> Result<(), Failed> {
        let mut target = Target { file, failed: None };
        let copied = self.trees.sources.copy(entry, &mut target);
        match (copied, target.failed) {
            (_, Some(error)) => Err(io_failed("write", path, error)),
            (Err(error), None) => Err(Failed::Store(git2::Error::from_str(&error.to_string()))),
            (Ok(()), None) => Ok(()),
        }
    }

    /// The folder that a path lies in, made where it is missing, 0755 whatever the umask.
    pub fn make_folders(&self, path: &[u8]) -> Result<OwnedFd, Failed> {
        let failed = |error| io_failed("make the folder of", path, error);
        let mut folder = openat(&self.tree.root, ".", OPEN_FOLDER, Mode::empty()).map_err(failed)?;
        for name in split(path).0.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            folder = match openat(&folder, name, OPEN_FOLDER, Mode::empty()) {
                Err(Errno::NOENT) => {
                    mkdirat(&folder, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    let made = openat(&folder, name, OPEN_FOLDER, Mode::empty()).map_err(failed)?;
                    fchmod(&made, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    made
                }
                opened => opened.map_err(failed)?,
            };
        }
        Ok(folder)
    }

    fn set_mode(&self, path: &[u8], stamp: &Stamp, kind: Kind) -> Result<(), Failed> {
        let failed = |error| io_failed("change the mode of", path, error);
        let file = self.tree.open_file(path, OFlags::RDONLY).map_err(failed)?;
        if Stamp::of(&fstat(&file).map_err(failed)?) != *stamp {
            return Err(changed_meanwhile(path));
        }
        fchmod(&file, mode_of(kind)).map_err(failed)
    }
}

/// A file that is written, which keeps apart what went wrong with it and what with the store.
struct Target<'a> {
    file: &'a mut File,
    failed: Option<Errno>,
}

impl std::io::Write for Target<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::Write::write(self.file, bytes).inspect_err(|error| {
            if error.kind() != std::io::ErrorKind::Interrupted {
                self.failed = Some(Errno::from_io_error(error).unwrap_or(Errno::IO));
            }
        })
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::Write::flush(self.file)
    }
}

/// Starts writing a file to the disk without waiting: this advice does it as a side effect, and pages that are not
/// written yet stay in memory.
fn begin_writing_out(file: &File) {
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

fn mode_of(kind: Kind) -> Mode {
    Mode::from_raw_mode(if kind == Kind::Executable { 0o755 } else { 0o644 })
}

fn changed_meanwhile(path: &[u8]) -> Failed {
    Failed::Git(GitError::passing(format!("{} was changed while the commit was being checked out", show(path))))
}

/// Space for the part of a file that is to come, where the file system can reserve it.
fn reserve(file: impl AsFd, from: u64, to: u64) -> Result<(), Errno> {
    if to <= from {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, from, to - from) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error),
        // Not every file system does this; then the writing itself shows it.
        _ => Ok(()),
    }
}

pub(super) fn rename_without_replacing(folder: &OwnedFd, from: &str, to: &[u8]) -> Result<(), Errno> {
    match renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
        // Network file systems do not know the flag.
        Err(Errno::INVAL | Errno::NOSYS) => match statat(folder, to, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => renameat(folder, from, folder, to),
            Ok(_) => Err(Errno::EXIST),
            Err(error) => Err(error),
        },
        renamed => renamed,
    }
}
