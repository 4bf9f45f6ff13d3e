//! What a checkout will do, found out without writing anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use git2::Oid;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::libgit::Failed;
use super::cache::Cache;
use super::torn::{Likeness, is_mix};
use super::worktree::{Above, Found, Stamp, WorkTree};
use super::{Entry, Files, Kind, Trees, folders_above, io_failed, show, split};

/// What will be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Foreign files in the way, with what they are. Nothing is done while there are any.
    pub collisions: BTreeMap<Vec<u8>, &'static str>,
    /// Files that cannot be read, though what becomes of them depends on their content.
    pub unreadable: BTreeMap<Vec<u8>, Errno>,
    /// Changed files that are copied first.
    pub saves: Vec<Save>,
    /// Files and links that go.
    pub removes: Vec<(Vec<u8>, Seen)>,
    /// Folders that must go, deepest first: files come in their place.
    pub removed_folders: Vec<Vec<u8>>,
    /// Folders that go when nothing is left in them, deepest first.
    pub emptied_folders: BTreeSet<std::cmp::Reverse<Vec<u8>>>,
    /// Files that are made or rewritten.
    pub writes: Vec<Write>,
    /// Files of which only the executable bits change.
    pub modes: Vec<(Vec<u8>, Stamp, Entry)>,
    /// What lies now where something is going to be changed; where nothing does, there is no record.
    pub before: BTreeMap<Vec<u8>, Before>,
}

/// What lay at a path before it was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// A file; its content is a commit's, or was kept because it was changed on this host, or it has none.
    File(Stamp, Option<Entry>),
    /// A link, and where it led.
    Link(Vec<u8>),
}

/// What lay at a path when the plan was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    File(Stamp),
    Link(Vec<u8>),
}

/// A file that was changed on this host.
#[derive(Debug)]
pub(super) struct Save {
    pub path: Vec<u8>,
    pub seen: Seen,
    /// What the commit had there.
    pub tracked: Entry,
}

/// A file that is written.
#[derive(Debug)]
pub(super) struct Write {
    pub path: Vec<u8>,
    pub entry: Entry,
    /// Rewritten in place, or replaced where it has other names; none: it is made.
    pub over: Option<Stamp>,
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Its content is a commit's.
    Ours(Entry),
    /// Parts of two commits' contents, from a run that was killed.
    Torn,
    /// The commit tracks it with another content.
    Changed(Entry),
    /// Somebody's data.
    Foreign,
}

/// Compares the trees with what lies there.
pub(super) fn make(tree: &WorkTree, trees: &Trees, cache: &mut Cache) -> Result<Plan, Failed> {
    let mut planner = Planner { tree, trees, cache, plan: Plan::default(), last_read: None };
    for (path, entry) in &trees.new {
        planner.plan_new(path, entry)?;
    }
    for path in trees.base.keys().filter(|path| !trees.new.contains_key(*path)) {
        planner.plan_gone(path, false)?;
    }
    let only_perhaps: BTreeSet<&Vec<u8>> = trees.perhaps.iter().chain(&trees.siblings).flat_map(Files::keys).collect();
    for path in only_perhaps {
        if !trees.new.contains_key(path) && !trees.base.contains_key(path) {
            planner.plan_gone(path, true)?;
        }
    }
    Ok(planner.finish())
}

impl Plan {
    /// How many files are written or removed.
    pub fn changed_files(&self) -> u64 {
        self.paths().len() as u64
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.changed_files() == 0 && self.emptied_folders.is_empty()
    }

    /// Where files are written, removed, or changed in their mode.
    pub fn paths(&self) -> BTreeSet<Vec<u8>> {
        let removed = self.removes.iter().map(|(path, _)| path);
        let written = self.writes.iter().map(|write| &write.path);
        removed.chain(written).chain(self.modes.iter().map(|(path, ..)| path)).cloned().collect()
    }

    /// Files that will hold a commit's content.
    pub fn written(&self) -> impl Iterator<Item = (&Vec<u8>, &Entry)> {
        self.writes.iter().map(|write| (&write.path, &write.entry))
    }

    /// Folders in which files are made under a temporary name.
    pub fn folders_of_new_files(&self) -> BTreeSet<Vec<u8>> {
        // A program that runs is replaced by a new file, too; that shows only when it is written.
        self.writes.iter().map(|write| split(&write.path).0.to_vec()).collect()
    }
}

struct Planner<'a> {
    tree: &'a WorkTree,
    trees: &'a Trees,
    cache: &'a mut Cache,
    plan: Plan,
    /// The content that was read last: one file is compared with several.
    last_read: Option<(Vec<u8>, Oid)>,
}

impl Planner<'_> {
    /// A path that the new commit has.
    fn plan_new(&mut self, path: &[u8], entry: &Entry) -> Result<(), Failed> {
        let Some(found) = self.look(path)? else { return Ok(()) };
        match &found {
            Found::Missing => self.write(path, entry, None),
            Found::Blocked(at) => {
                let at = at.clone();
                let Some(blocking) = self.look(&at)? else { return Ok(()) };
                // What a commit had there goes with the other paths that are gone.
                match self.standing(&at, &blocking)? {
                    Some(Standing::Ours(_) | Standing::Torn | Standing::Changed(_)) => self.write(path, entry, None),
                    Some(Standing::Foreign) => self.collide(&at, &blocking),
                    None => {}
                }
            }
            Found::Folder => self.plan_file_for_folder(path, entry)?,
            Found::Other => self.collide(path, &found),
            Found::Link(target) if entry.kind == Kind::Link => {
                if !self.leads_to(entry, target)? {
                    self.replace(path, entry, &found)?;
                }
            }
            Found::File(stamp) if entry.kind != Kind::Link => match self.has_content(path, stamp, entry)? {
                Some(true) if stamp.is_executable() != (entry.kind == Kind::Executable) => {
                    self.plan.before.insert(path.to_vec(), Before::File(*stamp, Some(*entry)));
                    if stamp.has_other_names {
                        self.write(path, entry, Some(*stamp));
                    } else {
                        self.plan.modes.push((path.to_vec(), *stamp, *entry));
                    }
                }
                Some(true) | None => {}
                Some(false) => self.replace(path, entry, &found)?,
            },
            Found::Link(_) | Found::File(_) => self.replace(path, entry, &found)?,
        }
        Ok(())
    }

    /// A file or link that is to be another one.
    fn replace(&mut self, path: &[u8], entry: &Entry, found: &Found) -> Result<(), Failed> {
        let Some(standing) = self.standing(path, found)? else { return Ok(()) };
        match standing {
            Standing::Foreign if !self.is_linked_secret(found) => {
                self.collide(path, found);
                return Ok(());
            }
            Standing::Changed(tracked) => self.save(path, found, tracked),
            Standing::Ours(_) | Standing::Torn | Standing::Foreign => {}
        }
        self.remember(path, found, standing);
        match found {
            Found::File(stamp) if entry.kind != Kind::Link => self.write(path, entry, Some(*stamp)),
            _ => {
                self.remove(path, found);
                self.write(path, entry, None);
            }
        }
        Ok(())
    }

    /// Whether it is a link that a deployment has made to a file of `secret_files`.
    fn is_linked_secret(&self, found: &Found) -> bool {
        let (Found::Link(target), Some(folder)) = (found, &self.trees.linked_secrets) else { return false };
        Path::new(std::ffi::OsStr::from_bytes(target)).starts_with(folder)
    }

    /// A file that comes where a folder lies: only where all of the folder goes.
    fn plan_file_for_folder(&mut self, path: &[u8], entry: &Entry) -> Result<(), Failed> {
        let (folders, others) = self.tree.walk(path).map_err(|error| io_failed("look into", path, error))?;
        let known = std::iter::once(&self.trees.base).chain(&self.trees.perhaps).chain(&self.trees.siblings);
        let known: Vec<&Files> = known.collect();
        if folders.len() == 1 && others.is_empty() && known.iter().any(|files| files.contains_key(path)) {
            // Docker leaves an empty folder where a file that it was to mount was gone; nobody has anything in it.
            self.plan.removed_folders.push(path.to_vec());
            self.write(path, entry, None);
            return Ok(());
        }
        let mut stays = false;
        for other in &others {
            let Some(found) = self.look(other)? else { continue };
            if self.standing(other, &found)? == Some(Standing::Foreign) {
                self.collide(other, &found);
                stays = true;
            }
        }
        for folder in &folders {
            let inside = [&folder[..], b"/"].concat();
            let is_tracked = known
                .iter()
                .any(|files| files.range(inside.clone()..).next().is_some_and(|(path, _)| path.starts_with(&inside)));
            if !is_tracked {
                self.plan.collisions.insert(folder.clone(), "a folder");
                stays = true;
            }
        }
        if !stays {
            self.plan.removed_folders.extend(folders.into_iter().rev());
            self.write(path, entry, None);
        }
        Ok(())
    }

    /// A path that the new commit does not have. Where only a run that did not end may have made it, it goes with
    /// exactly that run's content.
    fn plan_gone(&mut self, path: &[u8], only_perhaps: bool) -> Result<(), Failed> {
        let Some(found) = self.look(path)? else { return Ok(()) };
        if !matches!(found, Found::File(_) | Found::Link(_)) {
            return Ok(());
        }
        let Some(standing) = self.standing(path, &found)? else { return Ok(()) };
        match standing {
            // Nothing says that an empty file is what that run left, and nothing comes in its place.
            Standing::Torn if only_perhaps && matches!(found, Found::File(Stamp { size: 0, .. })) => return Ok(()),
            Standing::Ours(_) | Standing::Torn => {}
            Standing::Changed(tracked) if !only_perhaps => self.save(path, &found, tracked),
            Standing::Changed(_) | Standing::Foreign => return Ok(()),
        }
        self.remember(path, &found, standing);
        self.remove(path, &found);
        Ok(())
    }

    /// Adds the folders that the new commit does not have any more. A run that was killed may have emptied one, or made
    /// it, and not come to remove it: so it does not matter whether a file is removed from it now.
    fn finish(mut self) -> Plan {
        let trees = self.trees;
        let known = std::iter::once(&trees.base).chain(&trees.perhaps).flat_map(Files::keys);
        let mut looked_at = BTreeSet::new();
        for path in known.filter(|path| !trees.new.contains_key(*path)) {
            for folder in folders_above(path) {
                let inside = [folder, b"/"].concat();
                let next = trees.new.range(inside.clone()..).next();
                if next.is_some_and(|(path, _)| path.starts_with(&inside)) || !looked_at.insert(folder) {
                    break;
                }
                if matches!(self.tree.folder(folder), Ok(Above::Folder(_))) {
                    self.plan.emptied_folders.insert(std::cmp::Reverse(folder.to_vec()));
                }
            }
        }
        self.plan
    }

    /// What lies at a path; none where a folder above it is closed to us, which the plan then names.
    fn look(&mut self, path: &[u8]) -> Result<Option<Found>, Failed> {
        match self.tree.look(path) {
            Ok(found) => Ok(Some(found)),
            Err(error @ (Errno::ACCESS | Errno::PERM)) => {
                let mut above: Vec<&[u8]> = folders_above(path).collect();
                above.reverse();
                // One that can be opened may still not be entered: then it is the nearest one.
                let closed = above.iter().find(|folder| self.tree.folder(folder).is_err()).or(above.last());
                self.plan.unreadable.insert(closed.map_or_else(Vec::new, |folder| folder.to_vec()), error);
                Ok(None)
            }
            Err(error) => Err(io_failed("look at", path, error)),
        }
    }

    /// Notes what lies at a path that is going to be changed. What a killed run left of two contents was never meant to
    /// lie there: what did before that run is as near as can be had. An empty file where nothing did may be somebody's.
    fn remember(&mut self, path: &[u8], found: &Found, standing: Standing) {
        let base = self.trees.base.get(path).filter(|entry| entry.kind != Kind::Link);
        let before = match (found, standing) {
            (Found::Link(target), _) => Before::Link(target.clone()),
            (Found::File(stamp), Standing::Ours(entry)) => Before::File(*stamp, Some(entry)),
            (Found::File(stamp), Standing::Changed(_)) => Before::File(*stamp, None),
            (Found::File(stamp), Standing::Torn) if base.is_some() || stamp.size == 0 => {
                Before::File(*stamp, base.copied())
            }
            _ => return,
        };
        self.plan.before.insert(path.to_vec(), before);
    }

    fn write(&mut self, path: &[u8], entry: &Entry, over: Option<Stamp>) {
        self.plan.writes.push(Write { path: path.to_vec(), entry: *entry, over });
    }

    fn remove(&mut self, path: &[u8], found: &Found) {
        self.plan.removes.extend(Seen::of(found).map(|seen| (path.to_vec(), seen)));
    }

    fn save(&mut self, path: &[u8], found: &Found, tracked: Entry) {
        self.plan.saves.extend(Seen::of(found).map(|seen| Save { path: path.to_vec(), seen, tracked }));
    }

    fn collide(&mut self, path: &[u8], found: &Found) {
        let what = match found {
            Found::File(_) | Found::Missing => "a file",
            Found::Link(_) => "a link",
            Found::Folder => "a folder",
            Found::Other | Found::Blocked(_) => "a socket, pipe or device",
        };
        self.plan.collisions.insert(path.to_vec(), what);
    }

    /// Whose the thing at a path is; none when that cannot be read.
    fn standing(&mut self, path: &[u8], found: &Found) -> Result<Option<Standing>, Failed> {
        let known = std::iter::once(&self.trees.base).chain(&self.trees.perhaps).chain(&self.trees.siblings);
        let known: Vec<Entry> = known.filter_map(|files| files.get(path).copied()).collect();
        let tracked = self.trees.base.get(path).copied();
        let other = tracked.map_or(Standing::Foreign, Standing::Changed);
        match found {
            Found::Link(target) => {
                for entry in known.iter().filter(|entry| entry.kind == Kind::Link) {
                    if self.leads_to(entry, target)? {
                        return Ok(Some(Standing::Ours(*entry)));
                    }
                }
                Ok(Some(other))
            }
            Found::File(stamp) => {
                let known: Vec<Entry> = known.into_iter().filter(|entry| entry.kind != Kind::Link).collect();
                for entry in &known {
                    match self.has_content(path, stamp, entry)? {
                        Some(true) => return Ok(Some(Standing::Ours(*entry))),
                        Some(false) => {}
                        None => return Ok(None),
                    }
                }
                Ok(Some(if self.is_torn(path, stamp, &known)? { Standing::Torn } else { other }))
            }
            _ => Ok(Some(Standing::Foreign)),
        }
    }

    /// Whether a file holds what a commit has there; none when it cannot be read.
    fn has_content(&mut self, path: &[u8], stamp: &Stamp, entry: &Entry) -> Result<Option<bool>, Failed> {
        if self.trees.sources.size(entry)? != stamp.size {
            return Ok(Some(false));
        }
        if let Some(oid) = self.cache.get(path, stamp) {
            return Ok(Some(oid == entry.oid));
        }
        if let Some((_, oid)) = self.last_read.as_ref().filter(|(read, _)| read == path) {
            return Ok(Some(*oid == entry.oid));
        }
        let (oid, after) = match self.tree.hash_file(path, stamp.size) {
            Ok(hashed) => hashed,
            Err(error) => {
                self.plan.unreadable.insert(path.to_vec(), error);
                return Ok(None);
            }
        };
        if after == *stamp {
            self.cache.put(path, stamp, oid);
        }
        self.last_read = Some((path.to_vec(), oid));
        Ok(Some(oid == entry.oid))
    }

    /// Whether a link of a commit leads there.
    fn leads_to(&self, entry: &Entry, target: &[u8]) -> Result<bool, Failed> {
        let sources = &self.trees.sources;
        Ok(sources.size(entry)? == target.len() as u64 && sources.read(entry)? == *target)
    }

    /// Whether a file is what a killed run left of rewriting one commit's content with another's: it begins as the one
    /// and ends as the other.
    fn is_torn(&self, path: &[u8], stamp: &Stamp, known: &[Entry]) -> Result<bool, Failed> {
        if stamp.size == 0 && self.trees.perhaps.iter().any(|files| files.contains_key(path)) {
            // A power failure can leave a new file without its content; an empty one is no loss.
            return Ok(true);
        }
        if self.trees.perhaps.is_empty() || known.len() < 2 {
            return Ok(false);
        }
        let mut likenesses = Vec::new();
        for entry in known {
            let Ok(file) = self.tree.open_file(path, OFlags::RDONLY) else { return Ok(false) };
            let mut likeness = Likeness::new(File::from(file), stamp.size);
            let copied = self.trees.sources.copy(entry, &mut likeness);
            if likeness.is_unreadable() {
                return Ok(false);
            }
            copied.map_err(|error| git2::Error::from_str(&error.to_string()))?;
            likenesses.push(likeness);
        }
        Ok(likenesses.iter().any(|begun| likenesses.iter().any(|old| is_mix(begun, old))))
    }
}

impl Seen {
    pub fn of(found: &Found) -> Option<Seen> {
        match found {
            Found::File(stamp) => Some(Seen::File(*stamp)),
            Found::Link(target) => Some(Seen::Link(target.clone())),
            _ => None,
        }
    }
}

/// One line that names what is in the way.
pub(super) fn describe_collisions(collisions: &BTreeMap<Vec<u8>, &'static str>) -> String {
    let named: Vec<String> = collisions.iter().map(|(path, what)| format!("{} ({what})", show(path))).collect();
    super::some_of(&named)
}
