//! Finds what a large file has in common with another version of it.
//!
//! As rsync does it: the base is known by the sums of its blocks, and the sum of a block of the target is moved over it
//! byte by byte. What is found is followed in both directions as far as it goes.

use std::collections::HashMap;
use std::io;

use super::content::Content;

/// Blocks are so large that there are no more of them than this, and no smaller than that.
const MAX_BLOCKS: u64 = 1 << 16;
const MIN_BLOCK_BYTES: u64 = 64;
/// What one order of a delta can copy, and insert.
const MAX_COPY_BYTES: u64 = 0x00ff_ffff;
const MAX_INSERT_BYTES: usize = 0x7f;
/// What of a content is looked at at once.
const WINDOW_BYTES: u64 = 256 * 1024;

/// The delta that makes `target` of `base`; none where it would be larger than `max_bytes`.
///
/// # Errors
/// A content that cannot be read.
pub(super) fn find_delta(base: &Content, target: &Content, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    if base.size() > u64::from(u32::MAX) {
        return Ok(None);
    }
    let (base_bytes, target_bytes) = (base.size(), target.size());
    let block_bytes = (base_bytes / MAX_BLOCKS).next_power_of_two().max(MIN_BLOCK_BYTES);
    let (mut base, mut target) = (Window::new(base), Window::new(target));
    let blocks = sums_of_blocks(&mut base, base_bytes, block_bytes)?;
    let mut delta = Vec::new();
    push_number(&mut delta, base_bytes);
    push_number(&mut delta, target_bytes);
    let (mut at, mut inserted_from) = (0, 0);
    let mut sum = None;
    while at + block_bytes <= target_bytes && delta.len() + too_many(at - inserted_from) <= max_bytes {
        let now = match sum {
            Some(sum) => sum,
            None => Sum::of(&mut target, at, block_bytes)?,
        };
        let found = blocks.get(&now.value()).copied();
        let found = found.map(|place| follow(&mut base, place, &mut target, at, inserted_from)).transpose()?;
        match found.filter(|common| common.bytes >= block_bytes) {
            Some(common) => {
                insert(&mut delta, &mut target, inserted_from, common.in_target)?;
                copy(&mut delta, common.in_base, common.bytes);
                at = common.in_target + common.bytes;
                (inserted_from, sum) = (at, None);
            }
            None => {
                if at + block_bytes < target_bytes {
                    sum = Some(now.roll(target.byte(at)?, target.byte(at + block_bytes)?, block_bytes));
                }
                at += 1;
            }
        }
    }
    if delta.len() + too_many(target_bytes - inserted_from) > max_bytes {
        return Ok(None);
    }
    insert(&mut delta, &mut target, inserted_from, target_bytes)?;
    Ok(Some(delta))
}

/// A stretch that base and target have in common.
struct Common {
    in_base: u64,
    in_target: u64,
    bytes: u64,
}

/// Follows what is the same from two places on, backwards as far as `least`.
fn follow(
    base: &mut Window<'_>,
    mut in_base: u64,
    target: &mut Window<'_>,
    mut in_target: u64,
    least: u64,
) -> io::Result<Common> {
    let mut bytes = 0;
    while in_base + bytes < base.content.size()
        && in_target + bytes < target.content.size()
        && base.byte(in_base + bytes)? == target.byte(in_target + bytes)?
    {
        bytes += 1;
    }
    while bytes > 0 && in_base > 0 && in_target > least && base.byte(in_base - 1)? == target.byte(in_target - 1)? {
        (in_base, in_target, bytes) = (in_base - 1, in_target - 1, bytes + 1);
    }
    Ok(Common { in_base, in_target, bytes })
}

fn sums_of_blocks(base: &mut Window<'_>, base_bytes: u64, block_bytes: u64) -> io::Result<HashMap<u64, u64>> {
    let mut blocks = HashMap::new();
    for block in 0..base_bytes / block_bytes {
        let sum = Sum::of(base, block * block_bytes, block_bytes)?;
        blocks.entry(sum.value()).or_insert(block * block_bytes);
    }
    Ok(blocks)
}

/// A sum of a block that can be moved on by a byte.
#[derive(Clone, Copy)]
struct Sum {
    plain: u32,
    weighed: u32,
}

impl Sum {
    fn of(window: &mut Window<'_>, from: u64, bytes: u64) -> io::Result<Sum> {
        let mut sum = Sum { plain: 0, weighed: 0 };
        for at in from..from + bytes {
            sum.plain = sum.plain.wrapping_add(mixed(window.byte(at)?));
            sum.weighed = sum.weighed.wrapping_add(sum.plain);
        }
        Ok(sum)
    }

    fn roll(self, gone: u8, came: u8, block_bytes: u64) -> Sum {
        let plain = self.plain.wrapping_sub(mixed(gone)).wrapping_add(mixed(came));
        let weight = u32::try_from(block_bytes).unwrap_or(u32::MAX);
        let weighed = self.weighed.wrapping_sub(weight.wrapping_mul(mixed(gone))).wrapping_add(plain);
        Sum { plain, weighed }
    }

    fn value(self) -> u64 {
        (u64::from(self.plain) << 32) | u64::from(self.weighed)
    }
}

/// Bytes that are near each other are far apart in the sum.
fn mixed(byte: u8) -> u32 {
    (u32::from(byte) + 1).wrapping_mul(0x9e37_79b1)
}

/// A content, of which a part is at hand.
struct Window<'a> {
    content: &'a Content,
    from: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(content: &'a Content) -> Window<'a> {
        Window { content, from: 0, bytes: Vec::new() }
    }

    /// The byte at a place within the content.
    fn byte(&mut self, at: u64) -> io::Result<u8> {
        let known = |window: &Window<'_>| {
            let place = usize::try_from(at.checked_sub(window.from)?).ok()?;
            window.bytes.get(place).copied()
        };
        if let Some(byte) = known(self) {
            return Ok(byte);
        }
        // From somewhat before it: what is followed goes backwards as well.
        self.from = at.saturating_sub(WINDOW_BYTES / 4);
        self.bytes.clear();
        let count = WINDOW_BYTES.min(self.content.size().saturating_sub(self.from));
        self.content.copy(self.from, count, &mut self.bytes)?;
        known(self).ok_or_else(|| super::damaged("a content that has shrunk"))
    }
}

fn push_number(delta: &mut Vec<u8>, mut number: u64) {
    loop {
        let byte = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        delta.push(if number > 0 { byte | 0x80 } else { byte });
        if number == 0 {
            return;
        }
    }
}

/// A count of bytes that a delta would have to hold, as a length.
fn too_many(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX / 2)
}

fn insert(delta: &mut Vec<u8>, target: &mut Window<'_>, from: u64, to: u64) -> io::Result<()> {
    let mut bytes = Vec::new();
    target.content.copy(from, to - from, &mut bytes)?;
    for part in bytes.chunks(MAX_INSERT_BYTES) {
        delta.push(u8::try_from(part.len()).unwrap_or(0));
        delta.extend_from_slice(part);
    }
    Ok(())
}

fn copy(delta: &mut Vec<u8>, mut from: u64, mut bytes: u64) {
    while bytes > 0 {
        let part = bytes.min(MAX_COPY_BYTES);
        let order = delta.len();
        delta.push(0x80);
        for (number, places, bit) in [(from, 4, 0), (part, 3, 4)] {
            for (place, byte) in number.to_le_bytes().into_iter().take(places).enumerate() {
                if byte != 0 {
                    delta[order] |= 1 << (bit + place);
                    delta.push(byte);
                }
            }
        }
        (from, bytes) = (from + part, bytes - part);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::undo_delta;
    use super::*;

    fn noise(count: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    /// How large the delta is, which makes the target of the base again.
    fn delta_bytes(base: &[u8], target: &[u8]) -> Option<usize> {
        let (base, content) = (Content::Held(base.to_vec()), Content::Held(target.to_vec()));
        let delta = find_delta(&base, &content, target.len() / 2 + 20).unwrap()?;
        match undo_delta(&base, &delta[..], Path::new("/none")).unwrap() {
            Content::Held(made) => assert!(made == target),
            Content::Spilled { .. } => panic!("spilled"),
        }
        Some(delta.len())
    }

    #[test]
    fn versions_of_a_file_are_found_alike() {
        let base = noise(200_000);
        let change = |act: &dyn Fn(&mut Vec<u8>)| {
            let mut target = base.clone();
            act(&mut target);
            delta_bytes(&base, &target).unwrap()
        };
        assert!(change(&|_| ()) < 20);
        assert!(change(&|target| target[100_000] ^= 1) < 40);
        assert!(change(&|target| target[0] ^= 1) < 40 && change(&|target| target[199_999] ^= 1) < 40);
        assert!(change(&|target| drop(target.drain(70_000..70_033))) < 40);
        assert!(change(&|target| target.truncate(150_000)) < 40);
        assert!(change(&|target| target.extend(noise(500))) < 700);
        assert!(change(&|target| drop(target.splice(30_001..30_001, *b"something new"))) < 60);
        assert!(change(&|target| target.rotate_left(90_001)) < 200);
        let zeros = vec![0; 100_000];
        assert!(delta_bytes(&zeros, &[&zeros[..], b"x", &zeros].concat()).unwrap() < 60);
        assert!(delta_bytes(&zeros, &zeros[..99_999]).unwrap() < 200);
    }

    #[test]
    fn what_has_nothing_in_common_has_no_delta() {
        let noise = noise(200_000);
        assert_eq!(delta_bytes(&noise[..100_000], &noise[100_000..]), None);
        assert_eq!(delta_bytes(&[], &noise), None);
        assert!(delta_bytes(&noise, &[]).unwrap() < 10);
        assert!(delta_bytes(&noise, b"x").is_some_and(|bytes| bytes < 10));
    }
}
