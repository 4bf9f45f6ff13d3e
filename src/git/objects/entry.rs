//! The entries of packs and the deltas in them. See git's own documentation, `gitformat-pack`.

use std::io::{self, BufRead, Read, Write};

use git2::{ObjectType, Oid};

use super::content::Content;
use super::damaged;

/// No header of an entry is longer: the size and the base's name.
pub(super) const MAX_HEADER_BYTES: usize = 32;
/// Bytes of an object's name.
pub(super) const NAME_BYTES: usize = 20;

const OFFSET_DELTA: u8 = 6;
const REFERENCE_DELTA: u8 = 7;

/// How an entry holds its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Whole(ObjectType),
    /// A delta of what lies so many bytes before.
    DeltaBefore(u64),
    DeltaOf(Oid),
}

/// What stands before an entry's compressed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub form: Form,
    /// Of the data that is compressed: the object's content, or the delta.
    pub size: u64,
    /// How long the header is itself.
    pub bytes: u64,
}

impl Header {
    /// Reads a header; none while it is not complete.
    pub fn read(bytes: &[u8]) -> io::Result<Option<Header>> {
        let mut left = bytes.iter().copied();
        let Some(first) = left.next() else { return Ok(None) };
        let (mut size, mut shift, mut byte) = (u64::from(first & 0x0f), 4, first);
        while byte & 0x80 != 0 {
            let Some(more) = left.next() else { return Ok(None) };
            if shift > 56 {
                return Err(damaged("an entry of an impossible size"));
            }
            size |= u64::from(more & 0x7f) << shift;
            (shift, byte) = (shift + 7, more);
        }
        let form = match (first >> 4) & 7 {
            1 => Form::Whole(ObjectType::Commit),
            2 => Form::Whole(ObjectType::Tree),
            3 => Form::Whole(ObjectType::Blob),
            4 => Form::Whole(ObjectType::Tag),
            OFFSET_DELTA => {
                let Some(distance) = read_distance(&mut left)? else { return Ok(None) };
                Form::DeltaBefore(distance)
            }
            REFERENCE_DELTA => {
                let name: Vec<u8> = left.by_ref().take(NAME_BYTES).collect();
                if name.len() < NAME_BYTES {
                    return Ok(None);
                }
                Form::DeltaOf(Oid::from_bytes(&name).map_err(|error| damaged(error.message()))?)
            }
            _ => return Err(damaged("an entry of an unknown kind")),
        };
        Ok(Some(Header { form, size, bytes: (bytes.len() - left.len()) as u64 }))
    }

    /// The header of a whole object.
    pub fn of_whole(kind: ObjectType, size: u64) -> Vec<u8> {
        let number = match kind {
            ObjectType::Commit => 1,
            ObjectType::Tree => 2,
            ObjectType::Tag => 4,
            _ => 3,
        };
        Header::write(number, size)
    }

    /// The header of a delta of an object that has this name.
    pub fn of_delta(base: Oid, size: u64) -> Vec<u8> {
        [&Header::write(REFERENCE_DELTA, size)[..], base.as_bytes()].concat()
    }

    fn write(number: u8, size: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES);
        let (mut byte, mut left) = ((number << 4) | low_bits(size, 4), size >> 4);
        while left != 0 {
            bytes.push(byte | 0x80);
            (byte, left) = (low_bits(left, 7), left >> 7);
        }
        bytes.push(byte);
        bytes
    }
}

/// How far before an entry its base lies; none while that is not complete.
fn read_distance(left: &mut impl Iterator<Item = u8>) -> io::Result<Option<u64>> {
    let Some(mut byte) = left.next() else { return Ok(None) };
    let mut distance = u64::from(byte & 0x7f);
    while byte & 0x80 != 0 {
        let Some(more) = left.next() else { return Ok(None) };
        if distance >> 56 != 0 {
            return Err(damaged("a delta of an impossible distance"));
        }
        distance = ((distance + 1) << 7) | u64::from(more & 0x7f);
        byte = more;
    }
    Ok(Some(distance))
}

/// The lowest bits of a number, at most seven of them.
fn low_bits(number: u64, count: u32) -> u8 {
    u8::try_from(number & ((1 << count) - 1)).unwrap_or(0)
}

/// The sizes that a delta begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeltaSizes {
    pub base: u64,
    pub result: u64,
}

impl DeltaSizes {
    pub fn read(delta: &mut impl Read) -> io::Result<DeltaSizes> {
        Ok(DeltaSizes { base: read_number(delta)?, result: read_number(delta)? })
    }
}

fn read_number(delta: &mut impl Read) -> io::Result<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = read_byte(delta)?;
        if shift > 56 {
            return Err(damaged("a delta of an impossible size"));
        }
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
}

fn read_byte(from: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Makes an object out of its base and a delta that stands behind its sizes. Whether the result has its size is for
/// `out` to check.
pub(super) fn apply_delta(base: &Content, delta: &mut impl BufRead, out: &mut impl Write) -> io::Result<()> {
    const DEFAULT_COPY_BYTES: u64 = 0x10000;
    let mut inserted = [0; 0x7f];
    while !delta.fill_buf()?.is_empty() {
        let order = read_byte(delta)?;
        if order & 0x80 != 0 {
            let mut number = |bits: std::ops::Range<u8>| -> io::Result<u64> {
                let mut number = 0;
                for (place, bit) in bits.enumerate() {
                    if order & (1 << bit) != 0 {
                        number |= u64::from(read_byte(delta)?) << (8 * place);
                    }
                }
                Ok(number)
            };
            let (from, count) = (number(0..4)?, number(4..7)?);
            base.copy(from, if count == 0 { DEFAULT_COPY_BYTES } else { count }, out)?;
        } else if order > 0 {
            let inserted = &mut inserted[..usize::from(order)];
            delta.read_exact(inserted)?;
            out.write_all(inserted)?;
        } else {
            return Err(damaged("a delta with an unknown order"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::content::Collector;
    use super::*;

    #[test]
    fn headers_are_read_as_they_are_written() {
        let oid = Oid::from_str("0123456789012345678901234567890123456789").unwrap();
        for size in [0, 1, 15, 16, 2047, 2048, 300 << 20, 1 << 40] {
            for (written, form) in [
                (Header::of_whole(ObjectType::Blob, size), Form::Whole(ObjectType::Blob)),
                (Header::of_whole(ObjectType::Tag, size), Form::Whole(ObjectType::Tag)),
                (Header::of_delta(oid, size), Form::DeltaOf(oid)),
            ] {
                assert!(written.len() <= MAX_HEADER_BYTES);
                let read = Header::read(&[&written[..], b"more"].concat()).unwrap().unwrap();
                assert_eq!(read, Header { form, size, bytes: written.len() as u64 });
                for cut in 0..written.len() {
                    assert_eq!(Header::read(&written[..cut]).unwrap(), None);
                }
            }
        }
        let near = Header::read(&[0xe1, 0x01, 0x81, 0x00]).unwrap().unwrap();
        assert_eq!(near, Header { form: Form::DeltaBefore(256), size: 17, bytes: 4 });
        assert!(Header::read(&[0x50]).is_err() && Header::read(&[0x80; 16]).is_err());
        assert!(Header::read(&[[0xff].as_slice(), &[0xff; 30]].concat()).is_err());
    }

    #[test]
    fn a_delta_copies_and_inserts_and_stays_within_its_base() {
        let base = Content::Held(b"0123456789".to_vec());
        let apply = |orders: &[u8], size: u64| {
            let mut out = Collector::new(size, Path::new("/none")).unwrap();
            apply_delta(&base, &mut &orders[..], &mut out)?;
            match out.finish()? {
                Content::Held(bytes) => Ok(String::from_utf8(bytes).unwrap()),
                Content::Spilled { .. } => Err(damaged("spilled")),
            }
        };
        assert_eq!(apply(&[0x91, 7, 3, 2, b'a', b'b', 0x90, 1], 6).unwrap(), "789ab0");
        for (orders, size) in [
            (&[0x91, 8, 3][..], 3),
            (&[0x90, 3], 2),
            (&[0x90, 3], 4),
            (&[0], 0),
            (&[5, b'a'], 5),
            (&[0x91], 1),
            (&[0x80], 0x10000),
            (&[0x9f, 0xff, 0xff, 0xff, 0xff, 9], 9),
        ] {
            assert!(apply(orders, size).is_err(), "{orders:?}");
        }
        let sizes = DeltaSizes::read(&mut &[0x90, 0x01, 0x05][..]).unwrap();
        assert_eq!(sizes, DeltaSizes { base: 144, result: 5 });
        assert!(DeltaSizes::read(&mut &[0xff; 12][..]).is_err());
    }
}
