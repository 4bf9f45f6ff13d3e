//! Objects as Git stores them, read and written in pieces.
//!
//! libgit2 has every object that it reads, packs or makes out of a delta in memory, with the delta's base beside it:
//! a file of 300 MB costs a gigabyte. Here a content beyond [`MAX_HELD_BYTES`] never is: it goes from pack to file in
//! pieces, and the base of a large delta waits in a file without a name. What comes over http(s) or from a local path
//! is received, checked and indexed here; large files are read here; packs are combined here. libgit2 does the rest:
//! references, commits, trees, small files, and all of ssh.

mod combine;
mod content;
mod delta;
mod entry;
mod index;
mod local;
mod pack;
mod receive;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::ZlibDecoder;
use git2::{ObjectType, Oid};

pub(super) use combine::{combine, names_in};
use content::{At, Collector};
pub(super) use content::{Content, Hasher, MAX_HELD_BYTES, PIECE_BYTES, copy_pieces};
use entry::{DeltaSizes, Form, apply_delta};
use index::Record;
pub(super) use local::gather;
use pack::Pack;
pub(super) use receive::Receiver;

/// How many deltas may stand between an object and its base: more is a circle.
const MAX_CHAIN: usize = 10_000;
/// How deep stores may borrow from others.
const MAX_ALTERNATES: usize = 5;

/// The objects of one store, and of those that it borrows from.
pub(super) struct Objects {
    folders: Vec<PathBuf>,
    packs: Vec<Pack>,
    scratch: PathBuf,
}

/// Where an object is.
enum Place<'a> {
    Packed(&'a Pack, Record),
    Loose(File),
}

impl Objects {
    /// Opens the folder `objects` of a store. What is too large for memory goes into files in the folder `scratch`.
    ///
    /// # Errors
    /// A pack that cannot be read.
    pub fn open(folder: &Path, scratch: &Path) -> io::Result<Objects> {
        let mut objects = Objects { folders: Vec::new(), packs: Vec::new(), scratch: scratch.to_owned() };
        let mut waiting = vec![(folder.to_owned(), 0)];
        while let Some((folder, depth)) = waiting.pop() {
            let alternates = fs::read_to_string(folder.join("info/alternates")).unwrap_or_default();
            let lines = alternates.lines().filter(|line| !line.is_empty() && depth < MAX_ALTERNATES);
            waiting.extend(lines.map(|line| (folder.join(line), depth + 1)));
            objects.folders.push(folder);
        }
        for folder in &objects.folders {
            for path in packs_in(&folder.join("pack"))? {
                objects.packs.push(Pack::open(path)?);
            }
        }
        Ok(objects)
    }

    /// An object's kind and content.
    ///
    /// # Errors
    /// It is missing or damaged, or there is no space for a large one's base.
    pub fn read(&self, oid: Oid) -> io::Result<(ObjectType, Content)> {
        match self.find(oid)? {
            Place::Loose(file) => {
                let (kind, size, mut reader) = open_loose(&file)?;
                Ok((kind, Content::collect(&mut reader, size, &self.scratch)?))
            }
            Place::Packed(pack, record) => self.unpack(pack, record.offset),
        }
    }

    /// Hands an object's content over in pieces; it is checked by its name, at the end.
    ///
    /// # Errors
    /// As [`Objects::read`], and what `out` says.
    pub fn stream(&self, oid: Oid, out: &mut impl Write) -> io::Result<()> {
        let copy = |kind, size, from: &mut dyn Read, out: &mut dyn Write| {
            let mut out = Both(Hasher::new(kind, size), out);
            if copy_pieces(&mut from.take(size + 1), &mut out)? != size || out.0.finish()? != oid {
                return Err(damaged(&format!("the object {oid} is damaged")));
            }
            Ok(())
        };
        match self.find(oid)? {
            Place::Loose(file) => {
                let (kind, size, mut reader) = open_loose(&file)?;
                copy(kind, size, &mut reader, out)
            }
            Place::Packed(pack, record) => {
                let header = pack.header(record.offset)?;
                if let Form::Whole(kind) = header.form {
                    return copy(kind, header.size, &mut pack.inflate(record.offset + header.bytes), out);
                }
                // All of it is made and checked before the first piece is handed over.
                let (kind, content) = self.unpack(pack, record.offset)?;
                if content.hash(kind)? != oid {
                    return Err(damaged(&format!("the object {oid} is damaged")));
                }
                content.copy(0, content.size(), out)
            }
        }
    }

    /// Writes an entry that holds the whole object, copied from one that lies here; `false` where there is none.
    fn copy_whole_entry(&self, oid: Oid, out: &mut impl Write) -> io::Result<bool> {
        for pack in &self.packs {
            let Some(place) = pack.index.find(oid) else { continue };
            let record = pack.index.record(place)?;
            let header = pack.header(record.offset)?;
            if matches!(header.form, Form::Whole(_)) {
                pack.copy_entry(&record, &header, None, out)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn find(&self, oid: Oid) -> io::Result<Place<'_>> {
        for pack in &self.packs {
            if let Some(place) = pack.index.find(oid) {
                return Ok(Place::Packed(pack, pack.index.record(place)?));
            }
        }
        let name = oid.to_string();
        for folder in &self.folders {
            match File::open(folder.join(&name[..2]).join(&name[2..])) {
                Ok(file) => return Ok(Place::Loose(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("the object {oid} is missing")))
    }

    /// The object of an entry, its chain of deltas undone.
    fn unpack(&self, pack: &Pack, offset: u64) -> io::Result<(ObjectType, Content)> {
        let mut chain = Vec::new();
        let (mut at, mut header) = (offset, pack.header(offset)?);
        let (kind, mut content) = loop {
            chain.push(at + header.bytes);
            if chain.len() > MAX_CHAIN {
                return Err(damaged(&format!("{} has deltas in a circle", pack.path.display())));
            }
            match header.form {
                Form::Whole(kind) => {
                    let from = chain.pop().unwrap_or_default();
                    break (
                        kind,
                        Content::collect(&mut pack.inflate(from).take(header.size + 1), header.size, &self.scratch)?,
                    );
                }
                Form::DeltaBefore(distance) => {
                    at = at.checked_sub(distance).ok_or_else(|| damaged("a delta of what lies before its pack"))?;
                }
                Form::DeltaOf(base) => {
                    let place = pack.index.find(base).ok_or_else(|| damaged("a delta whose base is in no pack"))?;
                    at = pack.index.record(place)?.offset;
                }
            }
            header = pack.header(at)?;
        };
        for from in chain.into_iter().rev() {
            content = undo_delta(&content, pack.inflate(from), &self.scratch)?;
        }
        Ok((kind, content))
    }
}

/// The object that a delta makes of its base.
fn undo_delta(base: &Content, delta: impl Read, scratch: &Path) -> io::Result<Content> {
    let mut delta = BufReader::new(delta);
    let sizes = DeltaSizes::read(&mut delta)?;
    if sizes.base != base.size() {
        return Err(damaged("a delta of another base"));
    }
    let mut result = Collector::new(sizes.result, scratch)?;
    apply_delta(base, &mut delta, &mut result)?;
    result.finish()
}

/// Looks at the beginnings of a store's packs.
///
/// # Errors
/// One is damaged.
pub(super) fn peek_at_packs(objects: &Path) -> io::Result<()> {
    packs_in(&objects.join("pack"))?.iter().try_for_each(|path| Pack::peek(path))
}

/// The packs in a folder that have an index.
fn packs_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut packs = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(packs),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "pack") && path.with_extension("idx").exists() {
            packs.push(path);
        }
    }
    Ok(packs)
}

/// A loose object's kind and size, and its content.
fn open_loose(file: &File) -> io::Result<(ObjectType, u64, impl Read + '_)> {
    const MAX_HEAD_BYTES: u64 = 32;
    let mut reader = BufReader::new(ZlibDecoder::new(BufReader::new(At { file, at: 0 })));
    let mut head = Vec::new();
    reader.by_ref().take(MAX_HEAD_BYTES).read_until(0, &mut head)?;
    let head = head.strip_suffix(&[0]).and_then(|head| std::str::from_utf8(head).ok());
    let (kind, size) =
        head.and_then(|head| head.split_once(' ')).ok_or_else(|| damaged("a loose object without a head"))?;
    let kind = ObjectType::from_str(kind).ok_or_else(|| damaged("a loose object of an unknown kind"))?;
    let size = size.parse().map_err(|_| damaged("a loose object without a size"))?;
    Ok((kind, size, reader))
}

/// Writes to two places at once.
struct Both<A, B>(A, B);

impl<A: Write, B: Write> Write for Both<A, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.1.flush()
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
