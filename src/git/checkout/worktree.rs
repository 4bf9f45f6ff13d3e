//! The working tree, looked at without ever following a link in it: a container can have put one where a folder was.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use git2::{ObjectType, Oid};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat, unlinkat};
use rustix::io::Errno;

use super::super::GitError;
use super::super::objects::{Hasher, copy_pieces};
use super::split;
use crate::sandbox;

/// The top of a working tree.
pub(in crate::git) struct WorkTree {
    pub(super) root: OwnedFd,
    pub(super) path: PathBuf,
}

/// What identifies a file's content without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub modified_nanoseconds: i128,
    pub changed_nanoseconds: i128,
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    /// Whether the file has other names (hard links): what they show is somebody's, so it is replaced and never
    /// rewritten in place.
    pub has_other_names: bool,
}

/// What lies at a path.
#[derive(Debug)]
pub(super) enum Found {
    Missing,
    File(Stamp),
    Link(Vec<u8>),
    Folder,
    /// A socket, a pipe, a device.
    Other,
    /// Something that is no folder lies at this path above it.
    Blocked(Vec<u8>),
}

/// Paths below the top.
type Paths = Vec<Vec<u8>>;

/// What lies above a path.
pub(super) enum Above {
    Folder(OwnedFd),
    Missing,
    Blocked(Vec<u8>),
}

pub(super) const OPEN_FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl WorkTree {
    /// Opens the folder, and makes it with its parents where it is missing.
    ///
    /// # Errors
    /// Something that is no folder, or no permission.
    pub fn open(path: &Path) -> Result<WorkTree, GitError> {
        let opened = make_with_parents(path).and_then(|()| Ok(WorkTree::open_existing(path)?));
        opened.map_err(|error| {
            let way_out = match error.kind() {
                ErrorKind::ReadOnlyFilesystem => format!("; {}", sandbox::way_out_of_read_only(path)),
                _ => String::new(),
            };
            GitError::passing(format!("cannot open `local_path` {}: {error}{way_out}", path.display()))
        })
    }

    /// Opens the folder where there is one.
    pub fn open_existing(path: &Path) -> Result<WorkTree, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(WorkTree { root: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Opens the folder that a path lies in.
    pub(super) fn above(&self, path: &[u8]) -> Result<Above, Errno> {
        self.folder(split(path).0)
    }

    /// Opens a folder; the empty path is the top.
    pub(super) fn folder(&self, path: &[u8]) -> Result<Above, Errno> {
        let mut folder = openat(&self.root, ".", OPEN_FOLDER, Mode::empty())?;
        let mut end = 0;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            end += name.len() + usize::from(end > 0);
            match openat(&folder, name, OPEN_FOLDER, Mode::empty()) {
                Ok(opened) => folder = opened,
                Err(Errno::NOENT) => return Ok(Above::Missing),
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Above::Blocked(path[..end].to_vec())),
                Err(error) => return Err(error),
            }
        }
        Ok(Above::Folder(folder))
    }

    /// What lies at a path.
    pub(super) fn look(&self, path: &[u8]) -> Result<Found, Errno> {
        let folder = match self.above(path)? {
            Above::Folder(folder) => folder,
            Above::Missing => return Ok(Found::Missing),
            Above::Blocked(at) => return Ok(Found::Blocked(at)),
        };
        let name = split(path).1;
        let stat = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Found::Missing),
            Err(error) => return Err(error),
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Found::File(Stamp::of(&stat)),
            FileType::Directory => Found::Folder,
            FileType::Symlink => Found::Link(readlinkat(&folder, name, Vec::new())?.into_bytes()),
            _ => Found::Other,
        })
    }

    /// Opens a file for reading.
    pub(super) fn open_file(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let Above::Folder(folder) = self.above(path)? else { return Err(Errno::NOENT) };
        // A pipe that took the file's place must not hang the open.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat(&folder, split(path).1, flags, Mode::empty())
    }

    /// The beginning of a file; none where there is no regular file.
    pub(super) fn read_start(&self, path: &[u8], max_bytes: u64) -> Option<Vec<u8>> {
        if !matches!(self.look(path), Ok(Found::File(_))) {
            return None;
        }
        let mut bytes = Vec::new();
        let file = File::from(self.open_file(path, OFlags::RDONLY).ok()?);
        file.take(max_bytes).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The name that a file's content has in a store, and its stamp after it was read. `size` is that which it had.
    pub(super) fn hash_file(&self, path: &[u8], size: u64) -> Result<(Oid, Stamp), Errno> {
        let mut file = File::from(self.open_file(path, OFlags::RDONLY)?);
        let mut hasher = Hasher::new(ObjectType::Blob, size);
        let hashed = copy_pieces(&mut file, &mut hasher).and_then(|_| hasher.finish());
        let oid = hashed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok((oid, Stamp::of(&fstat(&file)?)))
    }

    /// Removes a folder of ours with everything in it.
    pub(super) fn remove_all(&self, path: &[u8]) -> Result<(), Errno> {
        let (folders, others) = self.walk(path)?;
        let others = others.iter().map(|path| (path, AtFlags::empty()));
        for (path, flags) in others.chain(folders.iter().rev().map(|path| (path, AtFlags::REMOVEDIR))) {
            if let Above::Folder(folder) = self.above(path)? {
                unlinkat(folder, split(path).1, flags)?;
            }
        }
        Ok(())
    }

    /// What lies in a folder, at any depth: its folders (itself included), and everything else.
    pub(super) fn walk(&self, path: &[u8]) -> Result<(Paths, Paths), Errno> {
        let (mut folders, mut others) = (vec![path.to_vec()], Vec::new());
        let mut next = 0;
        while next < folders.len() {
            let path = folders[next].clone();
            next += 1;
            let Above::Folder(folder) = self.folder(&path)? else { continue };
            for entry in Dir::new(folder)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let inside = [&path[..], b"/", name].concat();
                match self.look(&inside)? {
                    Found::Folder => folders.push(inside),
                    Found::Missing => {}
                    _ => others.push(inside),
                }
            }
        }
        Ok((folders, others))
    }

    /// A path of this tree as people would write it on a command line.
    pub(super) fn full(&self, path: &[u8]) -> String {
        let full = self.path.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
        full.display().to_string().trim_end_matches('/').to_owned()
    }
}

impl Stamp {
    pub fn of(stat: &Stat) -> Stamp {
        const NANOSECONDS: i128 = 1_000_000_000;
        Stamp {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_nanoseconds: i128::from(stat.st_mtime) * NANOSECONDS + i128::from(stat.st_mtime_nsec),
            changed_nanoseconds: i128::from(stat.st_ctime) * NANOSECONDS + i128::from(stat.st_ctime_nsec),
            mode: stat.st_mode & 0o7777,
            owner: stat.st_uid,
            group: stat.st_gid,
            has_other_names: stat.st_nlink > 1,
        }
    }

    pub fn is_executable(&self) -> bool {
        self.mode & 0o100 != 0
    }
}

/// Makes a folder and its missing parents, 0755 whatever the umask.
fn make_with_parents(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_with_parents(parent)?;
    }
    std::fs::DirBuilder::new().mode(0o755).create(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
}
