//! The indexes of packs, version 2. See git's own documentation, `gitformat-pack`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use git2::Oid;
use sha1::{Digest, Sha1};

use super::damaged;
use super::entry::NAME_BYTES;

/// What version 2 begins with.
const MAGIC: [u8; 8] = [0xff, b't', b'O', b'c', 0, 0, 0, 2];
/// Counts of the objects up to each first byte of a name.
const FANOUT_BYTES: usize = 256 * 4;
/// Marks a place that lies in the table of long ones.
const IS_LONG: u32 = 1 << 31;

/// An entry of a pack, as its index names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub oid: Oid,
    /// Where the entry begins.
    pub offset: u64,
    /// CRC-32 of the whole entry, as it lies in the pack.
    pub crc: u32,
}

/// The index of a pack.
pub(super) struct Index {
    bytes: Vec<u8>,
    count: usize,
}

impl Index {
    /// # Errors
    /// It cannot be read, or is no index of version 2.
    pub fn read(path: &Path) -> io::Result<Index> {
        let bytes = fs::read(path)?;
        let head = MAGIC.len() + FANOUT_BYTES;
        if bytes.len() < head + 2 * NAME_BYTES || bytes[..MAGIC.len()] != MAGIC {
            return Err(damaged(&format!("{} is no index of version 2 (`git repack -ad` makes one)", path.display())));
        }
        let mut index = Index { bytes, count: 0 };
        let counts: Vec<usize> = (0..256).map(|place| index.number(MAGIC.len() + 4 * place) as usize).collect();
        index.count = counts[255];
        let is_whole =
            counts.is_sorted() && index.bytes.len() >= head + index.count * (NAME_BYTES + 8) + 2 * NAME_BYTES;
        if is_whole { Ok(index) } else { Err(damaged(&format!("{} is damaged", path.display()))) }
    }

    /// How many objects an index names, where it looks like one; only a few bytes of it are read.
    pub fn peek(path: &Path) -> io::Result<u32> {
        let file = File::open(path)?;
        let mut head = [0; MAGIC.len() + FANOUT_BYTES];
        file.read_exact_at(&mut head, 0)?;
        let count = head[head.len() - 4..].try_into().map_or(0, u32::from_be_bytes);
        let least_bytes = head.len() as u64 + u64::from(count) * (NAME_BYTES as u64 + 8) + 2 * NAME_BYTES as u64;
        let is_one = head[..MAGIC.len()] == MAGIC && file.metadata()?.len() >= least_bytes;
        if is_one { Ok(count) } else { Err(damaged(&format!("{} is damaged", path.display()))) }
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The place of an object among the others, which are sorted by their names.
    pub fn find(&self, oid: Oid) -> Option<usize> {
        let first = usize::from(oid.as_bytes()[0]);
        let before = |first: usize| self.number(MAGIC.len() + 4 * first) as usize;
        let (mut low, mut high) = (if first == 0 { 0 } else { before(first - 1) }, before(first));
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle).cmp(oid.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// What is known of the object at a place.
    pub fn record(&self, place: usize) -> io::Result<Record> {
        let oid = Oid::from_bytes(self.name(place)).map_err(|error| damaged(error.message()))?;
        let crcs = MAGIC.len() + FANOUT_BYTES + self.count * NAME_BYTES;
        let offsets = crcs + 4 * self.count;
        let offset = self.number(offsets + 4 * place);
        let offset = if offset & IS_LONG == 0 {
            u64::from(offset)
        } else {
            let at = offsets + 4 * self.count + 8 * (offset & !IS_LONG) as usize;
            let long = self.bytes.get(at..at + 8).and_then(|long| long.try_into().ok());
            u64::from_be_bytes(long.ok_or_else(|| damaged("an index of a pack is too short"))?)
        };
        Ok(Record { oid, offset, crc: self.number(crcs + 4 * place) })
    }

    fn name(&self, place: usize) -> &[u8] {
        let at = MAGIC.len() + FANOUT_BYTES + NAME_BYTES * place;
        &self.bytes[at..at + NAME_BYTES]
    }

    fn number(&self, at: usize) -> u32 {
        self.bytes[at..at + 4].try_into().map_or(0, u32::from_be_bytes)
    }
}

/// Writes the index of a pack that ends in `checksum`.
pub(super) fn write(path: &Path, records: &mut [Record], checksum: &[u8]) -> io::Result<File> {
    records.sort_unstable_by_key(|record| record.oid);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    let mut out = Summed { out: BufWriter::new(file), hash: Sha1::new() };
    out.write_all(&MAGIC)?;
    let mut counted = 0;
    for first in 0..=u8::MAX {
        counted += records[counted..].iter().take_while(|record| record.oid.as_bytes()[0] == first).count();
        out.write_all(&number(counted)?.to_be_bytes())?;
    }
    for record in &*records {
        out.write_all(record.oid.as_bytes())?;
    }
    for record in &*records {
        out.write_all(&record.crc.to_be_bytes())?;
    }
    let mut long = Vec::new();
    for record in &*records {
        let short = u32::try_from(record.offset).ok().filter(|offset| offset & IS_LONG == 0);
        let short = match short {
            Some(offset) => offset,
            None => {
                long.push(record.offset);
                IS_LONG | number(long.len() - 1)?
            }
        };
        out.write_all(&short.to_be_bytes())?;
    }
    for offset in long {
        out.write_all(&offset.to_be_bytes())?;
    }
    out.write_all(checksum)?;
    let sum = out.hash.finalize();
    out.out.write_all(&sum)?;
    out.out.into_inner().map_err(io::IntoInnerError::into_error)
}

fn number(count: usize) -> io::Result<u32> {
    u32::try_from(count).map_err(|_| damaged("more objects than a pack can have"))
}

/// Writes, and sums up what it wrote.
struct Summed {
    out: BufWriter<File>,
    hash: Sha1,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_read_as_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pack-x.idx");
        let oid =
            |number: u64| Oid::from_str(&format!("{:016x}{number:024x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let mut records: Vec<Record> = (0..1000_u32)
            .map(|number| {
                let offset = u64::from(number) * if number % 7 == 0 { 5_000_000_000 } else { 1000 };
                Record { oid: oid(u64::from(number)).unwrap(), offset, crc: number * 17 }
            })
            .collect();
        let expected = records.clone();
        write(&path, &mut records, &[7; NAME_BYTES]).unwrap();
        let index = Index::read(&path).unwrap();
        assert_eq!(index.count(), 1000);
        for record in expected {
            assert_eq!(index.record(index.find(record.oid).unwrap()).unwrap(), record);
        }
        assert_eq!(index.find(oid(1000).unwrap()), None);
        let bytes = fs::read(&path).unwrap();
        for (size, what) in [(100, "no index"), (bytes.len() / 2, "damaged")] {
            let cut = folder.path().join(format!("{size}.idx"));
            fs::write(&cut, &bytes[..size]).unwrap();
            assert!(Index::read(&cut).err().unwrap().to_string().contains(what), "{size}");
        }
    }
}
