//! Puts a working tree back as it was before a checkout, from the record of it.
//!
//! Every step looks at what lies there first: what is back already is left alone, what the checkout wrote, or parts of
//! it, is replaced by what lay there before, and everything else is somebody's change and stays. So it may be ended at
//! any moment, and done again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;

use git2::{ObjectType, Oid};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fstat, fsync, mkdirat, openat, renameat_with,
    unlinkat,
};
use rustix::io::Errno;

use super::super::libgit::Failed;
use super::apply::Writer;
use super::plan::{MAX_TORN_BYTES, Seen, Write};
use super::undo::{After, Before, Folder, Step, Undo, saved_file};
use super::worktree::{Above, Found, OPEN_FOLDER, Stamp, WorkTree};
use super::{Checkout, Entry, Kind, Trees, adopt, io_failed, show, some_of, split};

/// The bits of a mode that giving a file to somebody else clears.
const SPECIAL_BITS: u32 = 0o7000;

/// Puts everything back that can be; whether something stays that the checkout wrote.
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
) -> Result<bool, Failed> {
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
    let durable = back.make_durable();
    back.note_failure(durable);
    let Back { stays, failed, .. } = back;
    if let Some(failed) = failed {
        return Err(failed);
    }
    for (why, paths) in &stays {
        notes.push(format!("not put back in {}, {why}: {}", tree.path.display(), some_of(paths)));
    }
    Ok(!stays.is_empty())
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
    stays: BTreeMap<&'static str, Vec<String>>,
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
        let undo = self.undo;
        let (made, changed): (Vec<&Step>, Vec<&Step>) = undo.steps.iter().partition(|step| step.before.is_none());
        for step in made {
            let done = self.put_back(step);
            self.note_failure(done);
        }
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
        let mut changed = changed;
        changed.sort_by_key(|step| growth(step));
        for step in changed {
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
        self.stays.entry(why).or_default().push(show(path));
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
                    let entry = Entry { oid: Oid::zero(), kind: Kind::Link, source: 0 };
                    self.writer.create(path, &entry, &target.0, false)
                }
                Some(Before::File { oid, store, mode, .. }) => {
                    let Some(content) = self.content(path, *oid, *store) else {
                        self.stays(CONTENT_IS_GONE, path);
                        return Ok(());
                    };
                    let kind = if mode & 0o100 == 0 { Kind::File } else { Kind::Executable };
                    let entry = Entry { oid: *oid, kind, source: store.unwrap_or(0) };
                    let over = match &found {
                        Found::File(stamp) => Some(*stamp),
                        _ => None,
                    };
                    if over.is_none() {
                        self.remove(path, &found)?;
                    }
                    self.writer.write_content(&Write { path: path.clone(), entry, over }, &content)?;
                    self.restore_rights(step)
                }
            },
        }
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
        let path = &step.path.0;
        if !known_sizes(step).contains(&Some(stamp.size)) && !may_be_torn(step, stamp) {
            return Ok(State::Theirs);
        }
        let bytes = self.read(path)?;
        let oid = Oid::hash_object(ObjectType::Blob, &bytes)?;
        let mut modes = vec![0o644, 0o755];
        if let Some(Before::File { oid: before, mode, owner, group, .. }) = &step.before {
            modes.extend([*mode, mode & !SPECIAL_BITS]);
            let has_rights = (stamp.mode, stamp.owner, stamp.group) == (*mode, *owner, *group);
            match (oid == *before, has_rights) {
                (true, true) => return Ok(State::IsBack),
                (true, false) if modes.contains(&stamp.mode) => return Ok(State::OnlyRights),
                (true, false) => return Ok(State::Theirs),
                (false, _) => {}
            }
        }
        let is_after = matches!(&step.after, Some(After::File { oid: after, .. }) if oid == *after);
        // A power failure can leave a new file without its content; an empty one is no loss.
        let has_file =
            matches!(step.before, Some(Before::File { .. })) || matches!(step.after, Some(After::File { .. }));
        let is_cut = has_file && bytes.is_empty();
        let is_ours = is_after || is_cut || self.is_torn(step, &bytes);
        Ok(if is_ours && modes.contains(&stamp.mode) { State::Ours } else { State::Theirs })
    }

    /// Whether a file is what a checkout, or a putting back, left of rewriting one content with another when it was
    /// ended.
    fn is_torn(&self, step: &Step, bytes: &[u8]) -> bool {
        let (
            Some(Before::File { oid: before, store, size: before_size, .. }),
            Some(After::File { oid: after, store: after_store, size }),
        ) = (&step.before, &step.after)
        else {
            return false;
        };
        if *before_size.max(size) > MAX_TORN_BYTES {
            return false;
        }
        let before = self.content(&step.path.0, *before, *store);
        let after = self.content(&step.path.0, *after, Some(*after_store));
        before.zip(after).is_some_and(|(before, after)| is_between(bytes, &before, &after))
    }

    /// A content from its store, or from the copy that was made of a changed file.
    fn content(&self, path: &[u8], oid: Oid, store: Option<usize>) -> Option<Vec<u8>> {
        match store {
            Some(source) => self.trees.sources.read(&Entry { oid, kind: Kind::File, source }).ok(),
            None => {
                let bytes = std::fs::read(saved_file(self.undo.saved.as_deref()?, path)).ok()?;
                (Oid::hash_object(ObjectType::Blob, &bytes).ok()? == oid).then_some(bytes)
            }
        }
    }

    fn read(&self, path: &[u8]) -> Result<Vec<u8>, Failed> {
        let failed = |error| io_failed("read", path, error);
        let mut file = File::from(self.tree.open_file(path, OFlags::RDONLY).map_err(failed)?);
        let mut bytes = Vec::new();
        let read = file.read_to_end(&mut bytes);
        read.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        Ok(bytes)
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

/// Of the contents that a file can have.
fn known_sizes(step: &Step) -> [Option<u64>; 3] {
    let before = match &step.before {
        Some(Before::File { size, .. }) => Some(*size),
        _ => None,
    };
    let after = match &step.after {
        Some(After::File { size, .. }) => Some(*size),
        _ => None,
    };
    [before, after, Some(0)]
}

/// Whether a file is one that was rewritten in place, and not too large to be compared in parts.
fn may_be_torn(step: &Step, stamp: &Stamp) -> bool {
    let are_files = matches!((&step.before, &step.after), (Some(Before::File { .. }), Some(After::File { .. })));
    are_files && stamp.size <= MAX_TORN_BYTES
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

/// Whether `bytes` can lie there when `after` was being written over `before`, and then `before` over that, and each
/// was ended somewhere: it begins as the one, goes on as the other, and ends as the first.
fn is_between(bytes: &[u8], before: &[u8], after: &[u8]) -> bool {
    let same = |a: &[u8], b: &[u8]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let back = same(bytes, before);
    let forth = back + same(&bytes[back..], &after[back.min(after.len())..]);
    let rest = &bytes[forth..];
    if rest.is_empty() {
        // All of the one's length, or it was still growing.
        return bytes.len() == after.len() || bytes.len() >= before.len();
    }
    *rest == before[forth.min(before.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ended_twice_is_recognised_and_nothing_else() {
        for (before, after) in [(&b"aaaaaaaa"[..], &b"bbbb"[..]), (b"aaaa", b"bbbbbbbb"), (b"aaaa", b"bbbb")] {
            for forth in 0..=after.len() {
                let mut torn = before.to_vec();
                torn.resize(before.len().max(forth), 0);
                torn[..forth].copy_from_slice(&after[..forth]);
                for back in 0..=before.len() {
                    let mut twice = torn.clone();
                    twice.resize(torn.len().max(back), 0);
                    twice[..back].copy_from_slice(&before[..back]);
                    assert!(is_between(&twice, before, after), "{forth} {back} {}", String::from_utf8_lossy(&twice));
                }
            }
            assert!(is_between(before, before, after) && is_between(after, before, after));
        }
        for other in [&b"aabbabaa"[..], b"aaabb", b"bbbba", b"x", b"aaaaaaaab", b"a"] {
            assert!(!is_between(other, b"aaaaaaaa", b"bbbb"), "{}", String::from_utf8_lossy(other));
        }
    }
}
