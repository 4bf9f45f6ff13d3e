//! An object's content: in memory while it is small, else in a file without a name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use git2::{ObjectType, Oid};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use sha1_checked::Sha1;

use super::damaged;

/// The largest content that is ever held in memory; everything larger goes through it in pieces. In unit tests it is
/// small, so that they see both without large files.
pub(in crate::git) const MAX_HELD_BYTES: u64 = if cfg!(test) { 256 * 1024 } else { 16 * 1024 * 1024 };
/// The pieces in which contents go from one place to another.
pub(in crate::git) const PIECE_BYTES: usize = 64 * 1024;

/// The content of an object.
pub(in crate::git) enum Content {
    Held(Vec<u8>),
    /// In a file that has no name any more: it goes with the process.
    Spilled {
        file: File,
        size: u64,
    },
}

impl Content {
    /// Reads a content whose size is known. Too large a one for memory goes into a file in the folder `scratch`.
    pub fn collect(from: &mut impl Read, size: u64, scratch: &Path) -> io::Result<Content> {
        let mut collector = Collector::new(size, scratch)?;
        copy_pieces(from, &mut collector)?;
        collector.finish()
    }

    pub fn size(&self) -> u64 {
        match self {
            Content::Held(bytes) => bytes.len() as u64,
            Content::Spilled { size, .. } => *size,
        }
    }

    /// How much of the memory it takes.
    pub fn held_bytes(&self) -> u64 {
        match self {
            Content::Held(bytes) => bytes.len() as u64,
            Content::Spilled { .. } => 0,
        }
    }

    /// Hands a part of it over.
    pub fn copy(&self, from: u64, count: u64, out: &mut impl Write) -> io::Result<()> {
        let end = from.checked_add(count).filter(|end| *end <= self.size());
        let end = end.ok_or_else(|| damaged("a delta that reaches beyond its base"))?;
        match self {
            Content::Held(bytes) => out.write_all(&bytes[index(from)..index(end)]),
            Content::Spilled { file, .. } => {
                let copied = copy_pieces(&mut At { file, at: from }.take(count), out)?;
                if copied == count { Ok(()) } else { Err(damaged("a file of ours that has shrunk")) }
            }
        }
    }

    /// Puts it into a file, where it still is in memory.
    pub fn spill(self, scratch: &Path) -> io::Result<Content> {
        match self {
            Content::Held(bytes) => {
                let mut file = nameless_file(bytes.len() as u64, scratch)?;
                file.write_all(&bytes)?;
                Ok(Content::Spilled { file, size: bytes.len() as u64 })
            }
            spilled @ Content::Spilled { .. } => Ok(spilled),
        }
    }

    /// Its name as an object of this kind.
    pub fn hash(&self, kind: ObjectType) -> io::Result<Oid> {
        if let Content::Held(bytes) = self {
            return Oid::hash_object(kind, bytes).map_err(|error| damaged(error.message()));
        }
        let mut hasher = Hasher::new(kind, self.size());
        self.copy(0, self.size(), &mut hasher)?;
        hasher.finish()
    }
}

/// Takes a content whose size is known beforehand.
pub(super) struct Collector {
    content: Content,
    written: u64,
    size: u64,
}

impl Collector {
    pub fn new(size: u64, scratch: &Path) -> io::Result<Collector> {
        let content = if size <= MAX_HELD_BYTES {
            Content::Held(Vec::with_capacity(index(size)))
        } else {
            Content::Spilled { file: nameless_file(size, scratch)?, size }
        };
        Ok(Collector { content, written: 0, size })
    }

    pub fn finish(self) -> io::Result<Content> {
        if self.written == self.size { Ok(self.content) } else { Err(damaged("an object that is too short")) }
    }
}

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written += bytes.len() as u64;
        if self.written > self.size {
            return Err(damaged("an object that is too long"));
        }
        match &mut self.content {
            Content::Held(held) => held.extend_from_slice(bytes),
            Content::Spilled { file, .. } => file.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the name of an object out of its content, piece by piece.
pub(in crate::git) struct Hasher(Sha1);

impl Hasher {
    pub fn new(kind: ObjectType, size: u64) -> Hasher {
        let mut hash = Sha1::builder().safe_hash(false).build();
        sha1_checked::Digest::update(&mut hash, format!("{} {size}\0", kind.str()));
        Hasher(hash)
    }

    /// # Errors
    /// Content that was made to have the name of another (git refuses it, too).
    pub fn finish(self) -> io::Result<Oid> {
        let result = self.0.try_finalize();
        if result.has_collision() {
            return Err(damaged("an object that was made to look like another one"));
        }
        Oid::from_bytes(result.hash()).map_err(|error| damaged(error.message()))
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a file from a place on, without moving its position.
pub(super) struct At<'a> {
    pub file: &'a File,
    pub at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Copies all of it; how much that was.
pub(in crate::git) fn copy_pieces(from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut copied = 0;
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(copied),
            Ok(count) => {
                to.write_all(&piece[..count])?;
                copied += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A file in the folder `scratch` that nobody else can open, with the space that it will need.
fn nameless_file(size: u64, scratch: &Path) -> io::Result<File> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = scratch.join(format!("scratch-{}-{number}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, size) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
        // Not every file system does this; then the writing itself shows it.
        _ => Ok(file),
    }
}

/// A place in something that is held in memory.
fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
