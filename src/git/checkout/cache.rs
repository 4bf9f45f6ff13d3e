//! Contents of files that were read before, so that a checkout reads only what changed since.
//!
//! A file's stamp holds the time of its last change (ctime), which no one can set back. It is trusted only where it lay
//! well in the past when the file was read: a second change within the same tick of a clock would not show.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use git2::Oid;

use super::worktree::Stamp;

/// How long a file must have been left alone; some file systems count time in steps of two seconds.
const QUIET_NANOSECONDS: i128 = 3_000_000_000;

/// What is known of files' contents.
pub(super) struct Cache {
    path: PathBuf,
    known: BTreeMap<Vec<u8>, (String, Oid)>,
    seen: BTreeMap<Vec<u8>, (String, Oid)>,
}

impl Cache {
    /// A file that is not there, or makes no sense, is an empty cache.
    pub fn read(path: &Path) -> Cache {
        let bytes = std::fs::read(path).unwrap_or_default();
        let known = bytes.split(|byte| *byte == 0).filter_map(read_record).collect();
        Cache { path: path.to_owned(), known, seen: BTreeMap::new() }
    }

    /// The content that a file had when its stamp was this one.
    pub fn get(&mut self, path: &[u8], stamp: &Stamp) -> Option<Oid> {
        let (known, oid) = self.known.get(path)?;
        if *known != stamp_text(stamp) {
            return None;
        }
        let oid = *oid;
        self.seen.insert(path.to_vec(), (known.clone(), oid));
        Some(oid)
    }

    /// Remembers what a file held that was read just now.
    pub fn put(&mut self, path: &[u8], stamp: &Stamp, oid: Oid) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        if stamp.changed_nanoseconds + QUIET_NANOSECONDS < i128::try_from(now).unwrap_or(0) {
            self.seen.insert(path.to_vec(), (stamp_text(stamp), oid));
        }
    }

    /// Keeps what was looked at this time. A cache that cannot be written costs time, nothing else.
    pub fn write(self) {
        if self.seen == self.known {
            return;
        }
        let mut text = Vec::new();
        for (path, (stamp, oid)) in &self.seen {
            text.extend_from_slice(format!("{stamp} {oid} ").as_bytes());
            text.extend_from_slice(path);
            text.push(0);
        }
        let temporary = self.path.with_extension("new");
        let written = std::fs::File::create(&temporary).and_then(|mut file| file.write_all(&text));
        let _ = written.and_then(|()| std::fs::rename(&temporary, &self.path));
    }
}

/// Device, inode, size, modification, change: the mode is looked at on its own.
fn stamp_text(stamp: &Stamp) -> String {
    let Stamp { device, inode, size, modified_nanoseconds, changed_nanoseconds, .. } = stamp;
    format!("{device} {inode} {size} {modified_nanoseconds} {changed_nanoseconds}")
}

fn read_record(record: &[u8]) -> Option<(Vec<u8>, (String, Oid))> {
    const STAMP_WORDS: usize = 5;
    let mut words = record.splitn(STAMP_WORDS + 2, |byte| *byte == b' ');
    let stamp: Vec<&str> = words.by_ref().take(STAMP_WORDS).map_while(|word| std::str::from_utf8(word).ok()).collect();
    let oid = Oid::from_str(std::str::from_utf8(words.next()?).ok()?).ok()?;
    let path = words.next()?;
    (stamp.len() == STAMP_WORDS).then(|| (path.to_vec(), (stamp.join(" "), oid)))
}
