//! The record of what lay in a working tree before a checkout, written before anything is changed: from it, what lay
//! there can be put back until containers are changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use git2::Oid;
use rustix::fs::fstat;
use serde::{Deserialize, Serialize};

use super::super::libgit::Failed;
use super::super::submodules::Sources;
use super::journal::{Journal, Kept};
use super::plan::{self, Plan};
use super::worktree::{Above, Stamp, WorkTree};
use super::{Entry, Kind, folders_above, io_failed};
use crate::git::GitError;

/// Names and paths, which may be no UTF-8, as text: a character for each byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub(super) struct Bytes(pub Vec<u8>);

/// The record.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::git) struct Undo {
    /// The working tree.
    pub(super) local_path: PathBuf,
    /// The commit whose files lay there.
    pub(super) base: Option<String>,
    /// The commit that was to lie there.
    pub(super) new: String,
    /// What was known of the tree.
    pub(super) journal: Kept,
    /// Whether no `.git` lay there, or one that was moved away: one that lies there now is ours.
    pub(super) makes_gitfile: bool,
    /// Where the `.git` of an adopted clone was moved to.
    pub(super) adopted: Option<PathBuf>,
    /// The folder with the copies of files that were changed on the host.
    pub(super) saved: Option<PathBuf>,
    /// The stores that contents are in, relative to the repository's own.
    pub(super) stores: Vec<PathBuf>,
    pub(super) steps: Vec<Step>,
    /// Folders that files were made in, deepest first.
    pub(super) made_folders: Vec<Bytes>,
    /// Folders that went, or were to go when nothing was left in them; parents first.
    pub(super) removed_folders: Vec<Folder>,
}

/// What a checkout did at one path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Step {
    pub path: Bytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<After>,
}

/// What lay there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Before {
    File {
        #[serde(with = "hex")]
        oid: Oid,
        size: u64,
        /// The store that has the content; none: its copy is in the folder of saved files, or it is empty.
        store: Option<usize>,
        mode: u32,
        owner: u32,
        group: u32,
    },
    Link(Bytes),
}

/// What was put there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum After {
    File {
        #[serde(with = "hex")]
        oid: Oid,
        size: u64,
        store: usize,
    },
    Link(Bytes),
}

/// A folder that lay there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Folder {
    pub path: Bytes,
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
}

impl Undo {
    /// What is known before the plan is looked at.
    pub(super) fn begin(step: &super::Step<'_>, journal: &Journal, saved: Option<PathBuf>) -> Undo {
        let adoption = step.adoption;
        Undo {
            local_path: step.checkout.local_path.clone(),
            base: step.base.as_ref().map(Oid::to_string),
            new: step.commit.to_string(),
            journal: journal.kept(),
            makes_gitfile: adoption.makes_gitfile(),
            adopted: saved.clone().filter(|_| adoption.moves()),
            saved,
            stores: Vec::new(),
            steps: Vec::new(),
            made_folders: Vec::new(),
            removed_folders: Vec::new(),
        }
    }

    /// The commit whose files lay there.
    pub(in crate::git) fn base(&self) -> Option<Oid> {
        self.base.as_deref().and_then(|hash| Oid::from_str(hash).ok())
    }

    /// The commits of which parts lie there while it is put back.
    pub(super) fn commits(&self) -> Vec<Oid> {
        self.base().into_iter().chain(Oid::from_str(&self.new)).collect()
    }

    /// The stores that contents are in, as [`Sources::open`] wants them.
    pub(in crate::git) fn stores(&self) -> &[PathBuf] {
        &self.stores
    }

    /// The copies of files that were changed on the host, by their content.
    pub(in crate::git) fn copies(&self) -> BTreeMap<Oid, PathBuf> {
        let copy = |step: &Step| match &step.before {
            Some(Before::File { oid, store: None, size: 0, .. }) => Some((*oid, PathBuf::from("/dev/null"))),
            Some(Before::File { oid, store: None, .. }) => {
                Some((*oid, saved_file(self.saved.as_deref()?, &step.path.0)))
            }
            _ => None,
        };
        self.steps.iter().filter_map(copy).collect()
    }

    /// Which of the sources that [`Sources::open`] opens has a content.
    pub(super) fn source_of(&self, store: Option<usize>) -> usize {
        store.unwrap_or(self.stores.len())
    }

    /// The working tree.
    pub(in crate::git) fn local_path(&self) -> &Path {
        &self.local_path
    }

    /// Writes down what a plan is going to change, and waits until it is on the disk. The plan's `saves` have been
    /// copied to `saved`.
    ///
    /// # Errors
    /// It cannot be written; then nothing may be changed.
    pub(super) fn record(self, file: &Path, tree: &WorkTree, sources: &Sources, plan: &Plan) -> Result<(), Failed> {
        let undo = Undo {
            stores: sources.relative_paths(),
            steps: steps_of(plan, sources, self.saved.as_deref())?,
            made_folders: made_folders(plan, tree),
            removed_folders: removed_folders(plan, tree)?,
            ..self
        };
        sources.hold_listed()?;
        let temporary = file.with_extension("undo-new");
        let write = || {
            let mut out = BufWriter::new(File::create(&temporary)?);
            serde_json::to_writer(&mut out, &undo)?;
            out.flush()?;
            out.get_ref().sync_all()?;
            std::fs::rename(&temporary, file)?;
            sync_folder_of(file)
        };
        let failed = |error: std::io::Error| GitError::passing(format!("cannot write {}: {error}", file.display()));
        Ok(write().map_err(failed)?)
    }

    /// The record, where there is one.
    ///
    /// # Errors
    /// One that cannot be read.
    pub(in crate::git) fn read(file: &Path) -> std::io::Result<Option<Undo>> {
        match File::open(file) {
            Ok(file) => Ok(Some(serde_json::from_reader(BufReader::new(file))?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Removes the record, for good.
///
/// # Errors
/// What the system said.
pub(in crate::git) fn forget(file: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Ok(()) => sync_folder_of(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_folder_of(file: &Path) -> std::io::Result<()> {
    File::open(file.parent().unwrap_or(file))?.sync_all()
}

fn steps_of(plan: &Plan, sources: &Sources, saved: Option<&Path>) -> Result<Vec<Step>, Failed> {
    let mut after: BTreeMap<&Vec<u8>, Option<&Entry>> = plan.removes.iter().map(|(path, _)| (path, None)).collect();
    after.extend(plan.writes.iter().map(|write| (&write.path, Some(&write.entry))));
    after.extend(plan.modes.iter().map(|(path, _, entry)| (path, Some(entry))));
    let step = |(path, entry): (&Vec<u8>, Option<&Entry>)| {
        let before = match plan.before.get(path) {
            None => None,
            Some(plan::Before::Link(target)) => Some(Before::Link(Bytes(target.clone()))),
            Some(plan::Before::File(stamp, Some(entry))) => {
                Some(file_before(stamp, entry.oid, sources.size(entry)?, Some(entry.source)))
            }
            Some(plan::Before::File(stamp, None)) if stamp.size == 0 => {
                Some(file_before(stamp, no_content()?, 0, None))
            }
            Some(plan::Before::File(stamp, None)) => {
                let (oid, size) = saved_content(saved, path)?;
                Some(file_before(stamp, oid, size, None))
            }
        };
        let after = match entry {
            None => None,
            Some(entry) if entry.kind == Kind::Link => Some(After::Link(Bytes(sources.read(entry)?))),
            Some(entry) => Some(After::File { oid: entry.oid, size: sources.size(entry)?, store: entry.source }),
        };
        Ok(Step { path: Bytes(path.clone()), before, after })
    };
    after.into_iter().map(step).collect()
}

fn file_before(stamp: &Stamp, oid: Oid, size: u64, store: Option<usize>) -> Before {
    Before::File { oid, size, store, mode: stamp.mode, owner: stamp.owner, group: stamp.group }
}

/// The name of an empty content.
fn no_content() -> Result<Oid, git2::Error> {
    Oid::hash_object(git2::ObjectType::Blob, b"")
}

/// The content of a copy that was just made.
fn saved_content(saved: Option<&Path>, path: &[u8]) -> Result<(Oid, u64), Failed> {
    let file = saved_file(saved.unwrap_or(Path::new("")), path);
    let failed = |error: std::io::Error| GitError::passing(format!("cannot read {}: {error}", file.display()));
    let size = std::fs::metadata(&file).map_err(failed)?.len();
    Ok((Oid::hash_file(git2::ObjectType::Blob, &file)?, size))
}

/// Where the copy of a file is in a folder of saved ones.
fn saved_file(folder: &Path, path: &[u8]) -> PathBuf {
    folder.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path))
}

/// Deepest first.
fn made_folders(plan: &Plan, tree: &WorkTree) -> Vec<Bytes> {
    let mut made = BTreeSet::new();
    for write in &plan.writes {
        for folder in folders_above(&write.path) {
            if made.contains(folder) || matches!(tree.folder(folder), Ok(Above::Folder(_))) {
                break;
            }
            made.insert(folder.to_vec());
        }
    }
    made.into_iter().rev().map(Bytes).collect()
}

/// Parents first.
fn removed_folders(plan: &Plan, tree: &WorkTree) -> Result<Vec<Folder>, Failed> {
    let emptied = plan.emptied_folders.iter().map(|folder| &folder.0);
    let paths: BTreeSet<&Vec<u8>> = plan.removed_folders.iter().chain(emptied).collect();
    let mut removed = Vec::new();
    for path in paths {
        let failed = |error| io_failed("look at", path, error);
        if let Above::Folder(folder) = tree.folder(path).map_err(failed)? {
            let Stamp { mode, owner, group, .. } = Stamp::of(&fstat(&folder).map_err(failed)?);
            removed.push(Folder { path: Bytes(path.clone()), mode, owner, group });
        }
    }
    Ok(removed)
}

impl From<String> for Bytes {
    fn from(text: String) -> Bytes {
        Bytes(text.chars().filter_map(|char| u8::try_from(char).ok()).collect())
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        bytes.0.iter().map(|byte| char::from(*byte)).collect()
    }
}

/// Hashes as people write them.
mod hex {
    use git2::Oid;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(oid: &Oid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(oid)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Oid, D::Error> {
        Oid::from_str(&String::deserialize(deserializer)?).map_err(|error| D::Error::custom(error.message()))
    }
}
