//! Takes a pack as it comes, checks it, completes it, and gives it an index.
//!
//! While it comes, each entry is inflated and hashed on the fly. Deltas wait until all of it is there: they are then
//! undone from their bases outwards, so that no base is made twice. Bases that the store has and the pack lacks (it is
//! thin) are added to it at the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::{Crc, Decompress, FlushDecompress, Status};
use git2::{ObjectType, Oid};
use sha1::{Digest, Sha1};

use super::content::{At, Content, Hasher, PIECE_BYTES, copy_pieces};
use super::entry::{Form, Header, MAX_HEADER_BYTES, NAME_BYTES};
use super::index::Record;
use super::pack::{MAGIC, PACK_HEADER_BYTES, Summing, inflate, install, write_whole};
use super::{Objects, damaged, undo_delta};

/// What bases that wait for their other deltas may hold of the memory together.
const MAX_WAITING_BYTES: u64 = 32 * 1024 * 1024;
/// The largest commit, tag or list of a folder's files: libgit2 reads those as a whole.
const MAX_TREE_BYTES: u64 = 64 * 1024 * 1024;

/// A pack that is being received. One that is dropped before it is finished leaves nothing.
pub(in crate::git) struct Receiver {
    /// The folder `objects` of the store.
    objects: PathBuf,
    path: PathBuf,
    file: File,
    sum: Sha1,
    state: State,
    /// What has come of the header, or the checksum, that is being read.
    pending: Vec<u8>,
    /// How many bytes were taken, the checksum not counted.
    at: u64,
    expected: usize,
    entries: Vec<Entry>,
    inflate: Decompress,
    inflated: Vec<u8>,
}

/// Where a [`Receiver`] stands.
enum State {
    PackHeader,
    EntryHeader,
    Data(Box<Data>),
    Checksum,
    Done,
}

/// An entry whose data is coming.
struct Data {
    header: Header,
    offset: u64,
    size: u64,
    crc: Crc,
    hasher: Option<Hasher>,
}

/// An entry that has come.
struct Entry {
    header: Header,
    offset: u64,
    crc: u32,
    /// For a delta, once it is undone.
    oid: Option<Oid>,
}

impl Receiver {
    /// Begins in the folder `objects` of a store.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn new(objects: &Path) -> io::Result<Receiver> {
        let path = objects.join("pack").join(format!("incoming-{}.pack", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o444).open(&path)?;
        Ok(Receiver {
            objects: objects.to_owned(),
            path,
            file,
            sum: Sha1::new(),
            state: State::PackHeader,
            pending: Vec::new(),
            at: 0,
            expected: 0,
            entries: Vec::new(),
            inflate: Decompress::new(true),
            inflated: vec![0; PIECE_BYTES],
        })
    }

    /// Undoes the deltas, completes the pack and gives it its name. A pack without objects is none.
    ///
    /// # Errors
    /// It ended early, is damaged or needs objects that the store does not have; or the disk is full.
    pub fn finish(mut self) -> io::Result<()> {
        if !matches!(self.state, State::Done) {
            return Err(damaged("the pack ended early"));
        }
        if self.entries.is_empty() {
            return Ok(());
        }
        let bases = self.undo_deltas()?;
        let mut records = Vec::with_capacity(self.entries.len() + bases.len());
        for Entry { offset, crc, oid, .. } in &self.entries {
            let oid = oid.ok_or_else(|| damaged("the pack has a delta whose base is nowhere"))?;
            records.push(Record { oid, offset: *offset, crc: *crc });
        }
        let sum =
            if bases.is_empty() { self.sum.clone().finalize().into() } else { self.complete(&bases, &mut records)? };
        records.sort_unstable_by_key(|record| record.oid);
        if records.windows(2).any(|pair| pair[0].oid == pair[1].oid) {
            return Err(damaged("the pack has an object twice"));
        }
        install(&self.path, &self.file, &mut records, &sum, false).map(|_| ())
    }

    /// Takes what has come, as far as the state goes; how much that was.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.state {
            State::PackHeader => {
                let header_bytes = MAGIC.len() + 4;
                let taken = bytes.len().min(header_bytes - self.pending.len());
                self.pending.extend_from_slice(&bytes[..taken]);
                if let Some(count) = self.pending.get(MAGIC.len()..header_bytes) {
                    if self.pending[..MAGIC.len()] != MAGIC {
                        return Err(damaged("what was sent is no pack of version 2"));
                    }
                    self.expected = count.iter().fold(0, |number, byte| (number << 8) | usize::from(*byte));
                    self.sum.update(&self.pending);
                    self.at = PACK_HEADER_BYTES;
                    self.next_entry();
                }
                Ok(taken)
            }
            State::EntryHeader => self.take_header(bytes),
            State::Data(_) => self.take_data(bytes),
            State::Checksum => {
                let taken = bytes.len().min(NAME_BYTES - self.pending.len());
                self.pending.extend_from_slice(&bytes[..taken]);
                if self.pending.len() == NAME_BYTES {
                    if self.pending[..] != self.sum.clone().finalize()[..] {
                        return Err(damaged("the pack was damaged on its way"));
                    }
                    self.state = State::Done;
                }
                Ok(taken)
            }
            State::Done => Err(damaged("there is something behind the end of the pack")),
        }
    }

    fn next_entry(&mut self) {
        self.pending.clear();
        self.state = if self.entries.len() == self.expected { State::Checksum } else { State::EntryHeader };
    }

    fn take_header(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.pending.len();
        self.pending.extend_from_slice(&bytes[..bytes.len().min(MAX_HEADER_BYTES - before)]);
        let Some(header) = Header::read(&self.pending)? else { return Ok(self.pending.len() - before) };
        let length = usize::try_from(header.bytes).unwrap_or(MAX_HEADER_BYTES);
        self.pending.truncate(length);
        let hasher = match header.form {
            Form::Whole(kind) => {
                check_size(kind, header.size)?;
                Some(Hasher::new(kind, header.size))
            }
            Form::DeltaBefore(_) | Form::DeltaOf(_) => None,
        };
        let mut crc = Crc::new();
        crc.update(&self.pending);
        self.sum.update(&self.pending);
        self.state = State::Data(Box::new(Data { header, offset: self.at, size: 0, crc, hasher }));
        self.at += header.bytes;
        self.inflate.reset(true);
        Ok(length - before)
    }

    fn take_data(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let State::Data(data) = &mut self.state else { return Ok(0) };
        let mut taken = 0;
        loop {
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(&bytes[taken..], &mut self.inflated, FlushDecompress::None)?;
            let read = length(self.inflate.total_in() - before_in);
            let made = length(self.inflate.total_out() - before_out);
            let piece = &bytes[taken..taken + read];
            data.crc.update(piece);
            self.sum.update(piece);
            taken += read;
            data.size += made as u64;
            if let Some(hasher) = &mut data.hasher {
                hasher.write_all(&self.inflated[..made])?;
            }
            if data.size > data.header.size {
                return Err(damaged("the pack has an object that is too long"));
            }
            if status == Status::StreamEnd {
                break;
            }
            if taken == bytes.len() && made < self.inflated.len() {
                self.at += taken as u64;
                return Ok(taken);
            }
            if read == 0 && made == 0 {
                return Err(damaged("the pack has data that cannot be inflated"));
            }
        }
        if data.size != data.header.size {
            return Err(damaged("the pack has an object that is too short"));
        }
        let oid = data.hasher.take().map(Hasher::finish).transpose()?;
        self.at += taken as u64;
        let entry = Entry { header: data.header, offset: data.offset, crc: data.crc.sum(), oid };
        self.entries.push(entry);
        self.next_entry();
        Ok(taken)
    }

    /// Finds out what the deltas are of; the bases that the pack lacks.
    fn undo_deltas(&mut self) -> io::Result<Vec<(Oid, ObjectType)>> {
        let mut waiting = Waiting::of(&self.entries)?;
        for number in 0..self.entries.len() {
            let Entry { header, offset, oid: Some(oid), .. } = self.entries[number] else { continue };
            let (Form::Whole(kind), deltas) = (header.form, waiting.on(offset, oid)) else { continue };
            if !deltas.is_empty() {
                let mut from = inflate(&self.file, offset + header.bytes).take(header.size + 1);
                let base = Content::collect(&mut from, header.size, &self.scratch())?;
                self.undo_deltas_of(Base { kind, content: base, deltas }, &mut waiting)?;
            }
        }
        let mut bases = Vec::new();
        if !waiting.by_name.is_empty() {
            let store = Objects::open(&self.objects, &self.scratch())?;
            for oid in waiting.by_name.keys().copied().collect::<Vec<Oid>>() {
                // It may have turned out to be among those that were undone meanwhile.
                let Some(deltas) = waiting.by_name.remove(&oid) else { continue };
                match store.read(oid) {
                    Ok((kind, content)) => {
                        self.undo_deltas_of(Base { kind, content, deltas }, &mut waiting)?;
                        bases.push((oid, kind));
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        waiting.by_name.insert(oid, deltas);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        let there: HashSet<Oid> = self.entries.iter().filter_map(|entry| entry.oid).collect();
        bases.retain(|(oid, _)| !there.contains(oid));
        Ok(bases)
    }

    /// Undoes the deltas of one base, those of what they make, and so on.
    fn undo_deltas_of(&mut self, base: Base, waiting: &mut Waiting) -> io::Result<()> {
        let mut held_bytes = base.content.held_bytes();
        let mut bases = vec![base];
        while let Some(base) = bases.last_mut() {
            let Some(number) = base.deltas.pop() else {
                held_bytes -= base.content.held_bytes();
                bases.pop();
                continue;
            };
            let (header, offset) = (self.entries[number].header, self.entries[number].offset);
            let kind = base.kind;
            let mut content = undo_delta(&base.content, inflate(&self.file, offset + header.bytes), &self.scratch())?;
            if base.deltas.is_empty() {
                // The last of them: in a long chain no more than two are held.
                held_bytes -= base.content.held_bytes();
                bases.pop();
            }
            check_size(kind, content.size())?;
            let oid = content.hash(kind)?;
            self.entries[number].oid = Some(oid);
            let deltas = waiting.on(offset, oid);
            if !deltas.is_empty() {
                if held_bytes + content.held_bytes() > MAX_WAITING_BYTES {
                    content = content.spill(&self.scratch())?;
                }
                held_bytes += content.held_bytes();
                bases.push(Base { kind, content, deltas });
            }
        }
        Ok(())
    }

    /// Adds the bases that the pack lacks; its new checksum.
    fn complete(&mut self, bases: &[(Oid, ObjectType)], records: &mut Vec<Record>) -> io::Result<[u8; NAME_BYTES]> {
        let store = Objects::open(&self.objects, &self.scratch())?;
        self.file.seek(SeekFrom::Start(self.at))?;
        for (oid, kind) in bases {
            let offset = self.file.stream_position()?;
            let mut out = Summing { from: io::BufWriter::new(&self.file), crc: Crc::new() };
            if !store.copy_whole_entry(*oid, &mut out)? {
                write_whole(&mut out, *kind, &store.read(*oid)?.1)?;
            }
            out.flush()?;
            records.push(Record { oid: *oid, offset, crc: out.crc.sum() });
        }
        let count = u32::try_from(records.len()).map_err(|_| damaged("more objects than a pack can have"))?;
        self.file.write_all_at(&count.to_be_bytes(), MAGIC.len() as u64)?;
        let end = self.file.stream_position()?;
        let mut sum = Sha1::new();
        copy_pieces(&mut At { file: &self.file, at: 0 }.take(end), &mut sum)?;
        let sum: [u8; NAME_BYTES] = sum.finalize().into();
        self.file.write_all(&sum)?;
        Ok(sum)
    }

    fn scratch(&self) -> PathBuf {
        self.objects.join("pack")
    }
}

impl Write for Receiver {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        let mut taken = 0;
        while taken < bytes.len() {
            taken += self.take(&bytes[taken..])?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Nothing lies under this name any more where it was finished; what a killed process leaves, the next removes.
        let _ = fs::remove_file(&self.path);
    }
}

/// An object with the deltas of it that are still to be undone.
struct Base {
    kind: ObjectType,
    content: Content,
    deltas: Vec<usize>,
}

/// Deltas by their bases, as their entries name them.
struct Waiting {
    by_offset: HashMap<u64, Vec<usize>>,
    by_name: BTreeMap<Oid, Vec<usize>>,
}

impl Waiting {
    fn of(entries: &[Entry]) -> io::Result<Waiting> {
        let mut waiting = Waiting { by_offset: HashMap::new(), by_name: BTreeMap::new() };
        for (number, entry) in entries.iter().enumerate() {
            match entry.header.form {
                Form::Whole(_) => {}
                Form::DeltaOf(base) => waiting.by_name.entry(base).or_default().push(number),
                Form::DeltaBefore(distance) => {
                    let base = entry.offset.checked_sub(distance);
                    let base = base.ok_or_else(|| damaged("the pack has a delta of what lies before it"))?;
                    waiting.by_offset.entry(base).or_default().push(number);
                }
            }
        }
        Ok(waiting)
    }

    /// Those that wait for the entry at `offset`, or for an object of this name.
    fn on(&mut self, offset: u64, oid: Oid) -> Vec<usize> {
        let mut deltas = self.by_offset.remove(&offset).unwrap_or_default();
        deltas.extend(self.by_name.remove(&oid).unwrap_or_default());
        deltas
    }
}

/// What libgit2 reads as a whole has a bound.
fn check_size(kind: ObjectType, bytes: u64) -> io::Result<()> {
    if kind == ObjectType::Blob || bytes <= MAX_TREE_BYTES {
        return Ok(());
    }
    Err(damaged(&format!("a {} of {bytes} bytes is too large", kind.str())))
}

/// A count of bytes within a buffer.
fn length(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
