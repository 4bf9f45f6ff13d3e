//! Files that a killed run left half-written: they begin as one content and end as another. They may be of any size, so
//! they are compared in pieces.

use std::io::{self, Read};

use super::super::objects::PIECE_BYTES;

/// How far a file is like a content that is written into this, in pieces.
pub(super) struct Likeness<R> {
    file: R,
    file_bytes: u64,
    content_bytes: u64,
    /// Up to where both are the same from their beginnings on.
    same_until: u64,
    /// From where both are the same up to the end of the shorter one.
    same_from: u64,
    is_unreadable: bool,
    piece: Vec<u8>,
}

impl<R: Read> Likeness<R> {
    /// Of a file that is at its beginning.
    pub fn new(file: R, file_bytes: u64) -> Likeness<R> {
        let piece = Vec::with_capacity(PIECE_BYTES);
        Likeness { file, file_bytes, content_bytes: 0, same_until: 0, same_from: 0, is_unreadable: false, piece }
    }

    /// Looks at what both have in common from a place on, and not from their beginnings.
    pub fn beginning_at(self, place: u64) -> Likeness<R> {
        Likeness { same_until: place, ..self }
    }

    /// Up to where both are the same.
    pub fn same_until(&self) -> u64 {
        self.same_until
    }

    /// Whether the file could not be read.
    pub fn is_unreadable(&self) -> bool {
        self.is_unreadable
    }
}

impl<R: Read> io::Write for Likeness<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(PIECE_BYTES)];
        self.piece.clear();
        let read = self.file.by_ref().take(bytes.len() as u64).read_to_end(&mut self.piece);
        self.is_unreadable |= read.is_err();
        read?;
        for (at, (one, other)) in (self.content_bytes..).zip(bytes.iter().zip(&self.piece)) {
            if one != other {
                self.same_from = at + 1;
            } else if self.same_until == at {
                self.same_until += 1;
            }
        }
        self.content_bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a file is `old` with its beginning overwritten by that of `begun`.
pub(super) fn is_mix<R>(begun: &Likeness<R>, old: &Likeness<R>) -> bool {
    if old.content_bytes <= begun.same_until {
        // It has grown beyond the old content, and all of it is of the new one.
        begun.same_until == begun.file_bytes
    } else {
        old.content_bytes == old.file_bytes && old.same_from <= begun.same_until
    }
}

/// Whether a file is what is left when `after` was being written over `before`, and then `before` over that, and each
/// was ended somewhere: it begins as the one, goes on as the other, and ends as the first. `after` is compared from
/// where `before` ends to be the same.
pub(super) fn is_between<R>(before: &Likeness<R>, after: &Likeness<R>) -> bool {
    if after.same_until >= after.file_bytes {
        // It has all of the one's length, or was still growing: from the first to the second, or back.
        let grows_back = before.same_until == before.file_bytes && before.file_bytes > after.content_bytes;
        return after.file_bytes == after.content_bytes || after.file_bytes >= before.content_bytes || grows_back;
    }
    before.content_bytes == before.file_bytes && before.same_from <= after.same_until
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_half_written_file_is_recognised_exactly() {
        let likeness = |file: &'static [u8], content: &[u8]| {
            let mut likeness = Likeness::new(file, file.len() as u64);
            content.chunks(3).for_each(|piece| likeness.write_all(piece).unwrap());
            likeness
        };
        let is_mix = |file: &[u8], begun: &[u8], old: &[u8]| {
            let file: &'static [u8] = Vec::leak(file.to_vec());
            is_mix(&likeness(file, begun), &likeness(file, old))
        };
        let (old, new) = (b"aaaaaaaa", b"bbbb");
        for written in 0..=new.len() {
            let mut torn = old.to_vec();
            torn[..written].copy_from_slice(&new[..written]);
            assert!(is_mix(&torn, new, old), "{written}");
        }
        assert!(is_mix(b"bbbbbbbbb", b"bbbbbbbbb", b"aa"), "the whole new content");
        assert!(is_mix(b"bbb", b"bbbbbb", b"aa"), "a longer one that was begun");
        for other in [&b"bbcaaaaa"[..], b"bbbbaaa", b"aaaaaaab", b"x", b""] {
            assert!(!is_mix(other, new, old), "{other:?}");
        }
    }

    #[test]
    fn what_was_ended_twice_is_recognised_and_nothing_else() {
        let is_between = |file: &[u8], before: &[u8], after: &[u8]| {
            let file: &'static [u8] = Vec::leak(file.to_vec());
            let mut first = Likeness::new(file, file.len() as u64);
            first.write_all(before).unwrap();
            let mut second = Likeness::new(file, file.len() as u64).beginning_at(first.same_until());
            after.chunks(3).for_each(|piece| second.write_all(piece).unwrap());
            is_between(&first, &second)
        };
        for (before, after) in [(&b"aaaaaaaa"[..], &b"bbbb"[..]), (b"aaaa", b"bbbbbbbb"), (b"aaaa", b"bbbb")] {
            for forth in 0..=after.len() {
                let mut torn = before.to_vec();
                torn.resize(before.len().max(forth), 0);
                torn[..forth].copy_from_slice(&after[..forth]);
                // The first one may have come to cut the file at its new length.
                let cut = (forth == after.len()).then(|| torn[..forth].to_vec());
                for torn in [Some(torn), cut].into_iter().flatten() {
                    for back in 0..=before.len() {
                        let mut twice = torn.clone();
                        twice.resize(torn.len().max(back), 0);
                        twice[..back].copy_from_slice(&before[..back]);
                        let shown = String::from_utf8_lossy(&twice);
                        assert!(is_between(&twice, before, after), "{forth} {back} {shown}");
                    }
                }
            }
            assert!(is_between(before, before, after) && is_between(after, before, after));
        }
        for other in [&b"aabbabaa"[..], b"aaabb", b"bbbba", b"x", b"aaaaaaaab", b"a"] {
            assert!(!is_between(other, b"aaaaaaaa", b"bbbb"), "{}", String::from_utf8_lossy(other));
        }
    }
}
