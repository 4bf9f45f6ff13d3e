//! Packs: read entry by entry, and written.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::bufread::ZlibDecoder;
use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use git2::{ObjectType, Oid};
use sha1::{Digest, Sha1};

use super::content::{At, Content, copy_pieces};
use super::damaged;
use super::entry::{Form, Header, MAX_HEADER_BYTES, NAME_BYTES};
use super::index::{self, Index, Record};

/// What a pack begins with, before the count of its entries.
pub(super) const MAGIC: [u8; 8] = *b"PACK\0\0\0\x02";
/// The magic and the count.
pub(super) const PACK_HEADER_BYTES: u64 = 12;
/// How much of a pack is read at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// A pack with its index.
pub(super) struct Pack {
    pub path: PathBuf,
    pub file: File,
    pub size: u64,
    pub index: Index,
    /// Where the entries begin, in their order in the pack, and their places in the index.
    by_offset: OnceCell<Vec<(u64, usize)>>,
}

/// The compressed data of an entry.
pub(super) type Inflated<'a> = ZlibDecoder<BufReader<At<'a>>>;

impl Pack {
    pub fn open(path: PathBuf) -> io::Result<Pack> {
        let index = Index::read(&path.with_extension("idx"))?;
        let file = File::open(&path)?;
        let size = file.metadata()?.len();
        Ok(Pack { path, file, size, index, by_offset: OnceCell::new() })
    }

    /// Whether a pack and its index look like that, and belong together; only a few bytes of them are read.
    pub fn peek(path: &Path) -> io::Result<()> {
        let mut head = [0; MAGIC.len() + 4];
        File::open(path)?.read_exact_at(&mut head, 0)?;
        let count = Index::peek(&path.with_extension("idx"))?;
        let is_one = head[..MAGIC.len()] == MAGIC && head[MAGIC.len()..] == count.to_be_bytes();
        if is_one { Ok(()) } else { Err(damaged(&format!("{} is damaged", path.display()))) }
    }

    /// What the index knows, in the order of the entries in the pack.
    pub fn records_in_order(&self) -> io::Result<impl Iterator<Item = io::Result<Record>> + '_> {
        Ok(self.by_offset()?.iter().map(|(_, place)| self.index.record(*place)))
    }

    /// The header of the entry that begins at `offset`.
    pub fn header(&self, offset: u64) -> io::Result<Header> {
        let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES);
        At { file: &self.file, at: offset }.take(MAX_HEADER_BYTES as u64).read_to_end(&mut bytes)?;
        Header::read(&bytes)?.ok_or_else(|| damaged(&format!("{} ends within an entry", self.path.display())))
    }

    /// What the compressed data at a place of the pack inflates to.
    pub fn inflate(&self, at: u64) -> Inflated<'_> {
        inflate(&self.file, at)
    }

    /// The name of the object whose entry begins at `offset`.
    pub fn name_at(&self, offset: u64) -> io::Result<Oid> {
        let entries = self.by_offset()?;
        let found = entries.binary_search_by_key(&offset, |(offset, _)| *offset);
        let found = found.map_err(|_| damaged(&format!("{} has a delta of nothing", self.path.display())))?;
        Ok(self.index.record(entries[found].1)?.oid)
    }

    /// The name of a delta's base.
    pub fn base_of(&self, offset: u64, header: &Header) -> io::Result<Option<Oid>> {
        match header.form {
            Form::Whole(_) => Ok(None),
            Form::DeltaOf(oid) => Ok(Some(oid)),
            Form::DeltaBefore(distance) => {
                let base =
                    offset.checked_sub(distance).ok_or_else(|| damaged("a delta of what lies before its pack"))?;
                self.name_at(base).map(Some)
            }
        }
    }

    /// Hands an entry over as it lies here; a delta names its base.
    pub fn copy_entry(
        &self,
        record: &Record,
        header: &Header,
        base: Option<Oid>,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let new_header = match (header.form, base) {
            (Form::Whole(kind), _) => Header::of_whole(kind, header.size),
            (_, Some(base)) => Header::of_delta(base, header.size),
            (_, None) => return Err(damaged("a delta without a base")),
        };
        let bytes = self.end_of(record.offset)?.saturating_sub(record.offset);
        let mut entry = Summing { from: At { file: &self.file, at: record.offset }.take(bytes), crc: Crc::new() };
        io::copy(&mut entry.by_ref().take(header.bytes), &mut io::sink())?;
        out.write_all(&new_header)?;
        copy_pieces(&mut entry, out)?;
        // What is damaged shows here, and is not used.
        if entry.crc.sum() == record.crc {
            Ok(())
        } else {
            Err(damaged(&format!("{} is damaged", self.path.display())))
        }
    }

    /// Where the entry ends that begins at `offset`.
    fn end_of(&self, offset: u64) -> io::Result<u64> {
        let entries = self.by_offset()?;
        let after = entries.partition_point(|(begin, _)| *begin <= offset);
        Ok(entries.get(after).map_or(self.size.saturating_sub(NAME_BYTES as u64), |(begin, _)| *begin))
    }

    fn by_offset(&self) -> io::Result<&[(u64, usize)]> {
        if let Some(entries) = self.by_offset.get() {
            return Ok(entries);
        }
        let places = 0..self.index.count();
        let entries: io::Result<Vec<(u64, usize)>> =
            places.map(|place| Ok((self.index.record(place)?.offset, place))).collect();
        let mut entries = entries?;
        entries.sort_unstable();
        Ok(self.by_offset.get_or_init(|| entries))
    }
}

/// What the compressed data at a place of a file inflates to.
pub(super) fn inflate(file: &File, at: u64) -> Inflated<'_> {
    ZlibDecoder::new(BufReader::with_capacity(BUFFER_BYTES, At { file, at }))
}

/// Writes a pack, and sums it up.
pub(super) struct PackWriter<W> {
    out: W,
    sum: Sha1,
    at: u64,
    records: Vec<Record>,
}

impl<W: Write> PackWriter<W> {
    /// Begins a pack of `count` entries.
    pub fn begin(out: W, count: usize) -> io::Result<PackWriter<W>> {
        let count = u32::try_from(count).map_err(|_| damaged("more objects than a pack can have"))?;
        let mut writer = PackWriter { out, sum: Sha1::new(), at: 0, records: Vec::new() };
        writer.write_all(&MAGIC)?;
        writer.write_all(&count.to_be_bytes())?;
        Ok(writer)
    }

    /// An object as it lies in another pack, compressed as it is; a delta names its base.
    pub fn copy(&mut self, pack: &Pack, record: &Record, header: &Header, base: Option<Oid>) -> io::Result<()> {
        let begin = self.at;
        let mut out = Summing { from: &mut *self, crc: Crc::new() };
        pack.copy_entry(record, header, base, &mut out)?;
        let crc = out.crc.sum();
        self.records.push(Record { oid: record.oid, offset: begin, crc });
        Ok(())
    }

    /// A whole object.
    pub fn add(&mut self, oid: Oid, kind: ObjectType, content: &Content) -> io::Result<()> {
        let begin = self.at;
        let mut out = Summing { from: &mut *self, crc: Crc::new() };
        write_whole(&mut out, kind, content)?;
        let crc = out.crc.sum();
        self.records.push(Record { oid, offset: begin, crc });
        Ok(())
    }

    /// An object as a delta of another one.
    pub fn add_delta(&mut self, oid: Oid, base: Oid, delta: &[u8]) -> io::Result<()> {
        let begin = self.at;
        let mut out = Summing { from: &mut *self, crc: Crc::new() };
        out.write_all(&Header::of_delta(base, delta.len() as u64))?;
        let mut deflated = ZlibEncoder::new(&mut out, Compression::default());
        deflated.write_all(delta)?;
        deflated.finish()?;
        let crc = out.crc.sum();
        self.records.push(Record { oid, offset: begin, crc });
        Ok(())
    }

    /// Ends the pack; its entries and its checksum.
    pub fn finish(mut self) -> io::Result<(W, Vec<Record>, [u8; NAME_BYTES])> {
        let sum: [u8; NAME_BYTES] = self.sum.finalize().into();
        self.out.write_all(&sum)?;
        self.out.flush()?;
        Ok((self.out, self.records, sum))
    }
}

impl<W: Write> Write for PackWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.sum.update(bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes an entry that holds a whole object.
pub(super) fn write_whole(out: &mut impl Write, kind: ObjectType, content: &Content) -> io::Result<()> {
    out.write_all(&Header::of_whole(kind, content.size()))?;
    let mut deflated = ZlibEncoder::new(out, Compression::default());
    content.copy(0, content.size(), &mut deflated)?;
    deflated.finish()?;
    Ok(())
}

/// Sums up what goes through.
pub(super) struct Summing<T> {
    pub from: T,
    pub crc: Crc,
}

impl<R: Read> Read for Summing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.crc.update(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.from.write_all(bytes)?;
        self.crc.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.from.flush()
    }
}

/// Gives a pack its name and its index; the pack last, so that nobody meets one without the other.
///
/// With `durable` both are on the disk before they have their names.
pub(super) fn install(
    temporary: &Path,
    file: &File,
    records: &mut [Record],
    sum: &[u8],
    durable: bool,
) -> io::Result<PathBuf> {
    let folder = temporary.parent().unwrap_or(Path::new(""));
    let name: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    let pack = folder.join(format!("pack-{name}.pack"));
    let new_index = temporary.with_extension("new-idx");
    let index = index::write(&new_index, records, sum);
    let index = index.inspect_err(|_| drop(fs::remove_file(&new_index)))?;
    if durable {
        file.sync_all()?;
        index.sync_all()?;
    }
    fs::rename(&new_index, pack.with_extension("idx"))?;
    fs::rename(temporary, &pack)?;
    if durable {
        File::open(folder)?.sync_all()?;
    }
    Ok(pack)
}
