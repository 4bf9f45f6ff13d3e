//! Puts a working tree back as it was before a checkout, from the record of it.
//!
//! Every step looks at what lies there first: what is back already is left alone, what the checkout wrote, or parts of
//! it, is replaced by what lay there before, and everything else is somebody's change and stays. So it may be ended at
//! any moment, and done again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;

use git2::{ObjectType, Oid};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fstat, fsync, mkdirat, openat, renameat_with,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::super::libgit::Failed;
use super::super::objects::Hasher;
use super::apply::{Writer, rename_without_replacing};
use super::plan::{Seen, Write};
use super::torn::{Likeness, is_between};
use super::undo::{After, Before, Folder, Step, Undo};
use super::worktree::{Above, Found, OPEN_FOLDER, Stamp, WorkTree};
use super::{Checkout, Entry, Kind, Trees, adopt, io_failed, show, some_of, split};

/// The bits of a mode that giving a file to somebody else clears.
const SPECIAL_BITS: u32 = 0o7000;

/// Puts everything back that can be; the paths at which something stays that the checkout wrote.
///
/// # Errors
/// Something cannot be written now: what can be is back, and another try does the rest.
pub(super) fn put_back(
    tree: &WorkTree,
    undo: &Undo,
    trees: &Trees,
    checkout: &Checkout,
    temporary_name: &str,
    notes: &mut Vec<String>,
) -> Result<BTreeSet<Vec<u8>>, Failed> {
    let mut writer_notes = Vec::new();
    let writer = Writer::new(tree, trees, temporary_name.to_owned(), &mut writer_notes);
    let mut back = Back { tree, undo, trees, temporary_name, writer, stays: BTreeMap::new(), failed: None };
    back.everything();
    let moved = undo.adopted.as_deref().map(|folder| adopt::move_back(tree, folder, checkout, temporary_name));
    if undo.makes_gitfile && undo.adopted.is_none() {
        let removed = adopt::remove_gitfile(tree, checkout);
        back.note_failure(removed.map_err(|error| io_failed("remove", adopt::DOT_GIT, error)));
    }
    if let Some(folder) = undo.adopted.as_deref().filter(|_| matches!(moved, Some(Ok(false)))) {
        notes.push(format!("the clone's .git stays in {}, for another .git lies in its place", folder.display()));
    }
    back.note_failure(moved.transpose().map(|_| ()).map_err(|error| io_failed("put back", adopt::DOT_GIT, error)));
    let is_clone_back = !matches!(moved, Some(Ok(false)));
    let durable = back.make_durable();
    back.note_failure(durable);
    let Back { stays, failed, .. } = back;
    if let Some(failed) = failed {
        return Err(failed);
    }
    for (why, paths) in &stays {
        let shown: Vec<String> = paths.iter().map(|path| show(path)).collect();
        notes.push(format!("not put back in {}, {why}: {}", tree.path.display(), some_of(&shown)));
    }
    if let Some(folder) = undo.saved.as_deref().filter(|_| stays.is_empty() && is_clone_back) {
        // All of it lies in its place again, and each further try would leave another copy.
        match std::fs::remove_dir_all(folder) {
            Ok(()) => notes.push(format!("what was kept in {} lies in its place again", folder.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => notes.push(format!("{} is not needed any more: {error}", folder.display())),
        }
    }
    Ok(stays.into_values().flatten().collect())
}

/// Removes what the checkout made, as far as that is possible, for the space that it takes.
pub(super) fn remove_made(tree: &WorkTree, undo: &Undo, trees: &Trees) {
    let mut notes = Vec::new();
    let writer = Writer::new(tree, trees, String::new(), &mut notes);
    Back { tree, undo, trees, temporary_name: "", writer, stays: BTreeMap::new(), failed: None }.remove_made();
}

/// Folders in which files may be made.
pub(super) fn folders_of_new_files(undo: &Undo) -> BTreeSet<Vec<u8>> {
    let files = undo.steps.iter().filter(|step| step.before.is_some()).map(|step| &step.path);
    let folders = undo.removed_folders.iter().map(|folder| &folder.path);
    files.chain(folders).map(|path| split(&path.0).0.to_vec()).chain([Vec::new()]).collect()
}

struct Back<'a> {
    tree: &'a WorkTree,
    undo: &'a Undo,
    trees: &'a Trees,
    temporary_name: &'a str,
    writer: Writer<'a>,
    /// What stays as it is, by the reason.
    stays: BTreeMap<&'static str, Vec<Vec<u8>>>,
    /// The first thing that did not work.
    failed: Option<Failed>,
}

/// Whose the thing at a path is.
enum State {
    /// It is what lay there.
    IsBack,
    /// It is what lay there but for its mode or owner.
    OnlyRights,
    /// It is the checkout's, whole or in parts, or not there.
    Ours,
    /// Somebody has changed it.
    Theirs,
}

const CHANGED: &str = "changed since it was checked out";
const CONTENT_IS_GONE: &str = "its content is not kept any more";

impl Back<'_> {
    /// What was made goes first: it gives the space that the rest may need.
    fn everything(&mut self) {
        self.remove_made();
        let undo = self.undo;
        for folder in &undo.made_folders {
            if let Ok(Above::Folder(above)) = self.tree.above(&folder.0) {
                // It stays where somebody has something in it.
                let _ = unlinkat(above, split(&folder.0).1, AtFlags::REMOVEDIR);
            }
        }
        for folder in &undo.removed_folders {
            let done = self.make_folder(folder).map_err(|error| io_failed("make the folder", &folder.path.0, error));
            self.note_failure(done);
        }
        let mut changed: Vec<&Step> = undo.steps.iter().filter(|step| step.before.is_some()).collect();
        changed.sort_by_key(|step| growth(step));
        for step in changed {
            let done = self.put_back(step);
            self.note_failure(done);
        }
    }

    fn remove_made(&mut self) {
        for step in self.undo.steps.iter().filter(|step| step.before.is_none()) {
            let done = self.put_back(step);
            self.note_failure(done);
        }
    }

    fn note_failure(&mut self, done: Result<(), Failed>) {
        if let Err(failed) = done {
            self.failed.get_or_insert(failed);
        }
    }

    fn stays(&mut self, why: &'static str, path: &[u8]) {
        self.stays.entry(why).or_default().push(path.to_vec());
    }

    fn put_back(&mut self, step: &Step) -> Result<(), Failed> {
        let path = &step.path.0;
        let found = self.tree.look(path).map_err(|error| io_failed("look at", path, error))?;
        match self.state(step, &found)? {
            State::IsBack => Ok(()),
            State::Theirs => {
                self.stays(CHANGED, path);
                Ok(())
            }
            State::OnlyRights => self.restore_rights(step),
            State::Ours => match &step.before {
                None => self.remove(path, &found),
                Some(Before::Link(target)) => {
                    self.remove(path, &found)?;
                    self.make_link(path, &target.0)
                }
                Some(Before::File { .. }) => self.write(step, &found),
            },
        }
    }

    fn write(&mut self, step: &Step, found: &Found) -> Result<(), Failed> {
        let (path, Some(Before::File { oid, store, mode, .. })) = (&step.path.0, &step.before) else { return Ok(()) };
        let kind = if mode & 0o100 == 0 { Kind::File } else { Kind::Executable };
        let entry = Entry { oid: *oid, kind, source: self.undo.source_of(*store) };
        if !self.is_kept(path, &entry)? {
            self.stays(CONTENT_IS_GONE, path);
            return Ok(());
        }
        let over = match found {
            Found::File(stamp) => Some(*stamp),
            _ => None,
        };
        if over.is_none() {
            self.remove(path, found)?;
        }
        self.writer.write(&Write { path: path.clone(), entry, over })?;
        self.restore_rights(step)
    }

    /// Complete under a temporary name, so that it is there with its target or not at all.
    fn make_link(&self, path: &[u8], target: &[u8]) -> Result<(), Failed> {
        // Somebody may have removed the folder since.
        let folder = self.writer.make_folders(path)?;
        let made = symlinkat(target, &folder, self.temporary_name);
        let made = made.and_then(|()| rename_without_replacing(&folder, self.temporary_name, split(path).1));
        made.map_err(|error| {
            let _ = unlinkat(&folder, self.temporary_name, AtFlags::empty());
            io_failed("write", path, error)
        })
    }

    /// Removes what was seen; nothing where nothing was.
    fn remove(&mut self, path: &[u8], found: &Found) -> Result<(), Failed> {
        Seen::of(found).map_or(Ok(()), |seen| self.writer.remove(path, &seen))
    }

    fn state(&self, step: &Step, found: &Found) -> Result<State, Failed> {
        let path = &step.path.0;
        Ok(match (found, &step.before, &step.after) {
            (Found::Missing | Found::Blocked(_), None, _) => State::IsBack,
            (Found::Missing, Some(_), _) => State::Ours,
            // It was a folder, and is one again.
            (Found::Folder, None, _) if self.undo.removed_folders.iter().any(|folder| folder.path.0 == *path) => {
                State::IsBack
            }
            (Found::Link(target), Some(Before::Link(before)), _) if before.0 == *target => State::IsBack,
            (Found::Link(target), _, Some(After::Link(after))) if after.0 == *target => State::Ours,
            (Found::File(stamp), _, _) => self.state_of_file(step, stamp)?,
            _ => State::Theirs,
        })
    }

    fn state_of_file(&self, step: &Step, stamp: &Stamp) -> Result<State, Failed> {
        // Those that a checkout sets, and what lay there had; giving a file away clears some bits of it.
        let mut modes = vec![0o644, 0o755];
        if let Some(Before::File { mode, .. }) = &step.before {
            modes.extend([*mode, mode & !SPECIAL_BITS]);
        }
        let mut is_ours = false;
        if known_sizes(step).contains(&Some(stamp.size)) {
            let (path, size) = (&step.path.0, stamp.size);
            let (oid, _) = self.tree.hash_file(path, size).map_err(|error| io_failed("read", path, error))?;
            if let Some(Before::File { oid: before, mode, owner, group, .. }) = &step.before {
                if oid == *before {
                    let has_rights = (stamp.mode, stamp.owner, stamp.group) == (*mode, *owner, *group);
                    return Ok(match (has_rights, modes.contains(&stamp.mode)) {
                        (true, _) => State::IsBack,
                        (false, true) => State::OnlyRights,
                        (false, false) => State::Theirs,
                    });
                }
            }
            let is_after = matches!(&step.after, Some(After::File { oid: after, .. }) if oid == *after);
            // A power failure can leave a new file without its content; an empty one is no loss.
            is_ours = is_after || size == 0;
        }
        let is_ours = is_ours || self.is_torn(step, stamp)?;
        Ok(if is_ours && modes.contains(&stamp.mode) { State::Ours } else { State::Theirs })
    }

    /// Whether a file is what a checkout, or a putting back, left of rewriting one content with another when it was
    /// ended.
    fn is_torn(&self, step: &Step, stamp: &Stamp) -> Result<bool, Failed> {
        let (Some(Before::File { oid: before, store: old, .. }), Some(After::File { oid: after, store: new, .. })) =
            (&step.before, &step.after)
        else {
            return Ok(false);
        };
        let path = &step.path.0;
        let like = |oid: &Oid, store: Option<usize>, place: u64| {
            let file = self.tree.open_file(path, OFlags::RDONLY).map_err(|error| io_failed("read", path, error))?;
            let mut likeness = Likeness::new(File::from(file), stamp.size).beginning_at(place);
            let entry = Entry { oid: *oid, kind: Kind::File, source: self.undo.source_of(store) };
            let copied = self.trees.sources.copy(&entry, &mut likeness);
            Ok::<_, Failed>(copied.is_ok().then_some(likeness))
        };
        let Some(before) = like(before, *old, 0)? else { return Ok(false) };
        let Some(after) = like(after, Some(*new), before.same_until())? else { return Ok(false) };
        Ok(is_between(&before, &after))
    }

    /// Whether a content can still be had: it is looked at before anything goes that it is to replace.
    fn is_kept(&self, path: &[u8], entry: &Entry) -> Result<bool, Failed> {
        let sources = &self.trees.sources;
        let Ok(size) = sources.size(entry) else { return Ok(false) };
        let mut hasher = Hasher::new(ObjectType::Blob, size);
        match sources.copy(entry, &mut hasher).and_then(|()| hasher.finish()) {
            Ok(oid) => Ok(oid == entry.oid),
            // A large one is undone into a file, for which there is no space now.
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                Err(io_failed("put back", path, Errno::NOSPC))
            }
            Err(_) => Ok(false),
        }
    }

    /// Owner and mode as they were; only root may give a file back to somebody else.
    fn restore_rights(&mut self, step: &Step) -> Result<(), Failed> {
        let Some(Before::File { mode, owner, group, .. }) = &step.before else { return Ok(()) };
        let path = &step.path.0;
        let restore = || {
            let file = self.tree.open_file(path, OFlags::RDONLY)?;
            set_rights(&file, *mode, *owner, *group)
        };
        restore().map_err(|error| io_failed("change the mode of", path, error))
    }

    /// Under a temporary name first: a folder that lies there has the rights that it had.
    fn make_folder(&mut self, folder: &Folder) -> Result<(), Errno> {
        let path = &folder.path.0;
        let Above::Folder(above) = self.tree.above(path)? else { return Ok(()) };
        match self.tree.look(path)? {
            Found::Folder => return Ok(()),
            Found::Missing => {}
            // A file that somebody has changed; it was named when it was not removed.
            _ => return Ok(()),
        }
        mkdirat(&above, self.temporary_name, Mode::RWXU)?;
        let made = openat(&above, self.temporary_name, OPEN_FOLDER, Mode::empty())?;
        set_rights(&made, folder.mode, folder.owner, folder.group)?;
        match renameat_with(&above, self.temporary_name, &above, split(path).1, RenameFlags::NOREPLACE) {
            // Network file systems do not know the flag; a folder never takes the place of a file.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::renameat(&above, self.temporary_name, &above, split(path).1)
            }
            renamed => renamed,
        }
    }

    /// Waits until everything is on the disk: the record of it is about to go.
    fn make_durable(&self) -> Result<(), Failed> {
        let mut folders = BTreeSet::new();
        for step in &self.undo.steps {
            let path = &step.path.0;
            let failed = |error| io_failed("write", path, error);
            folders.insert(split(path).0);
            if matches!(step.before, Some(Before::File { .. })) && matches!(self.tree.look(path), Ok(Found::File(_))) {
                fsync(self.tree.open_file(path, OFlags::RDONLY).map_err(failed)?).map_err(failed)?;
            }
        }
        for path in folders {
            let failed = |error| io_failed("write", path, error);
            if let Above::Folder(folder) = self.tree.folder(path).map_err(failed)? {
                fsync(folder).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Of the contents that a file can have; where it has none, it cannot be an empty one either.
fn known_sizes(step: &Step) -> [Option<u64>; 3] {
    let before = match &step.before {
        Some(Before::File { size, .. }) => Some(*size),
        _ => None,
    };
    let after = match &step.after {
        Some(After::File { size, .. }) => Some(*size),
        _ => None,
    };
    [before, after, before.or(after).map(|_| 0)]
}

/// How many bytes more a file takes once it is back: those that give space go first.
fn growth(step: &Step) -> i64 {
    let [before, after, _] = known_sizes(step).map(|size| i64::try_from(size.unwrap_or(0)).unwrap_or(i64::MAX));
    before - after
}

fn set_rights(file: &impl std::os::fd::AsFd, mode: u32, owner: u32, group: u32) -> Result<(), Errno> {
    let now = Stamp::of(&fstat(file)?);
    if (now.owner, now.group) != (owner, group) {
        let _ = fchown(file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(group)));
    }
    if Stamp::of(&fstat(file)?).mode != mode {
        fchmod(file, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}
