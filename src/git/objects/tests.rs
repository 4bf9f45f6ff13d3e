#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use git2::{Oid, Repository};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use super::super::testing::git;
use super::content::MAX_HELD_BYTES;
use super::entry::Header;
use super::*;

/// More than is held.
const LARGE_BYTES: usize = 600 * 1024;

/// Bytes that look like chance, and are the same each time.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(count).collect()
}

/// A repository with a history: text that changes a little, noise that changes a little, one file larger than what is
/// held, in versions that git stores as deltas, and a folder that moves.
struct History {
    folder: TempDir,
    tips: Vec<Oid>,
}

impl History {
    fn new(large: bool) -> History {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "-q", "--bare", "bare"]);
        git(folder.path(), &["clone", "-q", "bare", "clone"]);
        let mut history = History { folder, tips: Vec::new() };
        let (mut text, mut blob) = (String::new(), noise(1, 100_000));
        let mut big = noise(2, if large { LARGE_BYTES } else { 1000 });
        for number in 0..12_usize {
            text.push_str(&format!("line {number} {}\n", number * 7919).repeat(40));
            blob[number * 5000] ^= 0x55;
            big[number * 77] ^= 0x55;
            history.put("text/file", text.as_bytes());
            history.put("blob", &blob);
            history.put("big", &big);
            history.put(&format!("new/{number}"), &noise(number as u64 + 10, 300));
            history.commit();
        }
        history
    }

    fn clone(&self) -> PathBuf {
        self.folder.path().join("clone")
    }

    fn bare(&self) -> PathBuf {
        self.folder.path().join("bare")
    }

    fn put(&self, path: &str, content: &[u8]) {
        let path = self.clone().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn commit(&mut self) {
        git(&self.clone(), &["add", "-A"]);
        git(&self.clone(), &["commit", "-q", "-m", "next"]);
        git(&self.clone(), &["push", "-q", "origin", "HEAD:main"]);
        self.tips.push(Oid::from_str(&git(&self.clone(), &["rev-parse", "HEAD"])).unwrap());
    }

    /// The pack that a server makes of `want` for one who has `have`.
    fn pack(&self, arguments: &[&str], want: Oid, have: Option<Oid>) -> Vec<u8> {
        let mut child = Command::new("git")
            .args(["pack-objects", "--revs", "--stdout", "-q"])
            .args(arguments)
            .current_dir(self.bare())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let not = have.map_or_else(String::new, |have| format!("^{have}\n"));
        child.stdin.take().unwrap().write_all(format!("{want}\n{not}").as_bytes()).unwrap();
        child.wait_with_output().unwrap().stdout
    }
}

/// An empty store, and what a store is asked for.
struct Store(TempDir);

impl Store {
    fn new() -> Store {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "-q", "--bare", "."]);
        Store(folder)
    }

    fn objects(&self) -> PathBuf {
        self.0.path().join("objects")
    }

    fn receive(&self, pack: &[u8], piece: usize) -> io::Result<()> {
        let mut receiver = Receiver::new(&self.objects())?;
        pack.chunks(piece).try_for_each(|piece| receiver.write_all(piece))?;
        receiver.finish()
    }

    fn open(&self) -> Objects {
        Objects::open(&self.objects(), &self.objects().join("pack")).unwrap()
    }

    fn packs(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.objects().join("pack")).unwrap().map(|entry| entry.unwrap().path());
        let mut packs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "pack")).collect();
        packs.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
        packs
    }

    fn combine(&self, wanted: Option<&HashSet<Oid>>) -> io::Result<()> {
        combine(&self.objects(), &self.packs(), wanted, &[], Instant::now() + Duration::from_secs(60))
    }

    /// Git finds everything that the commit is made of, and every content is read here as git reads it.
    fn must_hold(&self, history: &History, tip: Oid) {
        let folder = self.0.path();
        git(folder, &["update-ref", "refs/heads/main", &tip.to_string()]);
        git(folder, &["fsck", "--strict", "--full", "--no-dangling"]);
        for pack in self.packs() {
            git(folder, &["verify-pack", &pack.with_extension("idx").display().to_string()]);
        }
        let objects = self.open();
        let listed = git(folder, &["rev-list", "--objects", &tip.to_string()]);
        for line in listed.lines() {
            let oid = Oid::from_str(line.split(' ').next().unwrap()).unwrap();
            let (kind, content) = objects.read(oid).unwrap();
            assert_eq!(content.hash(kind).unwrap(), oid);
            assert_eq!(content.held_bytes() == 0, content.size() > MAX_HELD_BYTES);
            let mut streamed = Vec::new();
            objects.stream(oid, &mut streamed).unwrap();
            assert_eq!(Oid::hash_object(kind, &streamed).unwrap(), oid);
        }
        assert_eq!(listed, git(&history.bare(), &["rev-list", "--objects", &tip.to_string()]));
        let left = fs::read_dir(self.objects().join("pack")).unwrap().count();
        assert_eq!(left, 2 * self.packs().len(), "something is left over");
    }
}

fn last(history: &History) -> Oid {
    *history.tips.last().unwrap()
}

#[test]
fn packs_of_every_form_are_received() {
    let history = History::new(false);
    for arguments in [&["--delta-base-offset"][..], &[], &["--window=0"], &["--depth=3", "--window=20"]] {
        let pack = history.pack(arguments, last(&history), None);
        for piece in [1, 7, 4096, pack.len()] {
            let store = Store::new();
            store.receive(&pack, piece).unwrap();
            store.must_hold(&history, last(&history));
        }
    }
}

#[test]
fn a_thin_pack_is_completed() {
    let history = History::new(false);
    let store = Store::new();
    let mut have = None;
    for tip in &history.tips {
        let pack = history.pack(&["--thin", "--delta-base-offset"], *tip, have);
        store.receive(&pack, 1000).unwrap();
        store.must_hold(&history, *tip);
        have = Some(*tip);
    }
    assert_eq!(store.packs().len(), history.tips.len());
    let thin = history.pack(&["--thin"], last(&history), Some(history.tips[10]));
    let empty = Store::new();
    assert!(empty.receive(&thin, 1000).unwrap_err().to_string().contains("base is nowhere"));
    assert_eq!(fs::read_dir(empty.objects().join("pack")).unwrap().count(), 0, "something is left over");
    let nothing = history.pack(&[], last(&history), Some(last(&history)));
    empty.receive(&nothing, 1000).unwrap();
    assert_eq!(empty.packs().len(), 0);
}

#[test]
fn a_file_larger_than_what_is_held_is_received_as_a_delta_and_read() {
    let history = History::new(true);
    let store = Store::new();
    let first = history.pack(&["--thin"], history.tips[5], None);
    assert!(first.len() < 2 * LARGE_BYTES, "{}", first.len());
    store.receive(&first, 8192).unwrap();
    store.must_hold(&history, history.tips[5]);
    let second = history.pack(&["--thin"], last(&history), Some(history.tips[5]));
    assert!(second.len() < LARGE_BYTES / 4, "{}", second.len());
    store.receive(&second, 8192).unwrap();
    store.must_hold(&history, last(&history));
    store.combine(None).unwrap();
    store.must_hold(&history, last(&history));
    let packed_bytes = fs::metadata(&store.packs()[0]).unwrap().len();
    assert!(packed_bytes < 2 * LARGE_BYTES as u64, "{packed_bytes}");
}

#[test]
fn a_pack_that_is_damaged_anywhere_is_refused() {
    let history = History::new(false);
    let pack = history.pack(&["--delta-base-offset"], history.tips[1], None);
    let store = Store::new();
    for at in (0..pack.len()).step_by(pack.len() / 150) {
        let mut damaged = pack.clone();
        damaged[at] ^= 0x41;
        store.receive(&damaged, 4096).unwrap_err();
        store.receive(&pack[..at], 4096).unwrap_err();
    }
    store.receive(&[&pack[..], b"x"].concat(), 4096).unwrap_err();
    assert_eq!(fs::read_dir(store.objects().join("pack")).unwrap().count(), 0, "something is left over");
}

#[test]
fn a_small_delta_makes_no_tree_that_is_too_large_for_memory() {
    const COPIES: usize = 1100;
    let deflated = |bytes: &[u8]| {
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let base = vec![b'x'; 0x10000];
    let number = |mut number: usize| {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
            number >>= 7;
        }
        bytes.push(u8::try_from(number).unwrap());
        bytes
    };
    // Each order copies all of the base.
    let delta = [number(base.len()), number(COPIES * base.len()), vec![0x80; COPIES]].concat();
    let oid = Oid::hash_object(ObjectType::Tree, &base).unwrap();
    let mut pack = [&b"PACK\0\0\0\x02\0\0\0\x02"[..], &Header::of_whole(ObjectType::Tree, 0x10000)].concat();
    pack.extend(deflated(&base));
    pack.extend(Header::of_delta(oid, delta.len() as u64));
    pack.extend(deflated(&delta));
    pack.extend(Sha1::digest(&pack));
    let error = Store::new().receive(&pack, 4096).unwrap_err();
    assert!(error.to_string().contains("tree of 72089600 bytes is too large"), "{error}");
}

#[test]
fn an_object_that_is_damaged_in_its_store_is_not_handed_over_as_whole() {
    let history = History::new(true);
    let store = Store::new();
    store.receive(&history.pack(&["--window=0"], history.tips[0], None), 65536).unwrap();
    let big = Oid::from_str(&git(&history.clone(), &["rev-parse", &format!("{}:big", history.tips[0])])).unwrap();
    let pack = store.packs().remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();
    assert!(store.open().stream(big, &mut io::sink()).is_err());
    assert!(store.combine(None).unwrap_err().to_string().contains("damaged"));
    assert_eq!(store.packs(), [pack]);
}

#[test]
fn packs_are_combined_without_what_nobody_wants() {
    let history = History::new(false);
    let store = Store::new();
    let mut have = None;
    for tip in &history.tips {
        store.receive(&history.pack(&["--thin", "--delta-base-offset"], *tip, have), 1000).unwrap();
        have = Some(*tip);
    }
    let size = || store.packs().iter().map(|pack| fs::metadata(pack).unwrap().len()).sum::<u64>();
    let before = size();
    assert!(combine(&store.objects(), &store.packs(), None, &[], Instant::now()).is_err());
    assert_eq!((store.packs().len(), size()), (12, before));
    store.combine(None).unwrap();
    store.must_hold(&history, last(&history));
    assert_eq!(store.packs().len(), 1);
    let fresh = history.pack(&["--delta-base-offset"], last(&history), None).len() as u64;
    assert!(size() < before && size() < 2 * fresh, "{before} {} {fresh}", size());
    // A middle part of the history: bases that are not wanted are needed no more.
    let listed = git(store.0.path(), &["rev-list", "--objects", &history.tips[8].to_string()]);
    let wanted: HashSet<Oid> = listed.lines().map(|line| Oid::from_str(&line[..40]).unwrap()).collect();
    store.combine(Some(&wanted)).unwrap();
    store.must_hold(&history, history.tips[8]);
    let record = store.open();
    assert!(record.read(last(&history)).err().unwrap().to_string().contains("missing"));
    let missing = wanted.into_iter().chain([last(&history)]).collect();
    assert!(store.combine(Some(&missing)).unwrap_err().to_string().contains("missing"));
}

#[test]
fn long_chains_of_deltas_are_cut() {
    let mut history = History::new(false);
    let store = Store::new();
    store.receive(&history.pack(&[], last(&history), None), 1000).unwrap();
    for number in 0..70 {
        let have = last(&history);
        let text = fs::read_to_string(history.clone().join("text/file")).unwrap();
        history.put("text/file", format!("{text}more {number}\n").as_bytes());
        history.commit();
        store.receive(&history.pack(&["--thin"], last(&history), Some(have)), 1000).unwrap();
    }
    store.combine(None).unwrap();
    store.must_hold(&history, last(&history));
    let pack = store.packs()[0].with_extension("idx").display().to_string();
    let listed = git(store.0.path(), &["verify-pack", "-v", &pack]);
    let depths =
        listed.lines().filter_map(|line| line.strip_prefix("chain length = ")?.split(':').next()?.parse().ok());
    let deepest: usize = depths.max().unwrap();
    assert!((20..=50).contains(&deepest), "{deepest}");
}

#[test]
fn a_repository_of_this_host_is_copied_with_its_deltas() {
    let mut history = History::new(true);
    let store = Store::new();
    let ours = Repository::open(store.0.path()).unwrap();
    let fetch = |history: &History, tip: Oid, haves: &[Oid]| {
        let theirs = Repository::open(history.bare()).unwrap();
        let packs = Objects::open(&history.bare().join("objects"), &store.objects().join("pack")).unwrap();
        let receiver = Receiver::new(&store.objects()).unwrap();
        let gathered = gather(&theirs, tip, haves).unwrap();
        gathered.send(&packs, &ours.odb().unwrap(), receiver).unwrap().finish().unwrap();
        ours.odb().unwrap().refresh().unwrap();
    };
    // Loose, then packed with deltas of what we have, then borrowed from another store.
    fetch(&history, history.tips[3], &[]);
    store.must_hold(&history, history.tips[3]);
    git(&history.bare(), &["repack", "-adfq"]);
    fetch(&history, history.tips[8], &[history.tips[3], Oid::from_str(&"1".repeat(40)).unwrap()]);
    store.must_hold(&history, history.tips[8]);
    let mut sizes: Vec<u64> = store.packs().iter().map(|pack| fs::metadata(pack).unwrap().len()).collect();
    sizes.sort_unstable();
    assert!(sizes[0] < 2 * LARGE_BYTES as u64, "{sizes:?}");
    let moved = history.folder.path().join("elsewhere");
    fs::rename(history.bare().join("objects"), &moved).unwrap();
    for folder in ["info", "pack"] {
        fs::create_dir_all(history.bare().join("objects").join(folder)).unwrap();
    }
    fs::write(history.bare().join("objects/info/alternates"), format!("{}\n", moved.display())).unwrap();
    history.put("text/file", b"other");
    history.commit();
    fetch(&history, last(&history), &[history.tips[8]]);
    store.must_hold(&history, last(&history));
}

#[test]
fn what_cannot_be_opened_is_named() {
    let store = Store::new();
    let pack = store.objects().join("pack/pack-x.pack");
    fs::write(&pack, "PACK").unwrap();
    fs::write(pack.with_extension("idx"), "old").unwrap();
    let error = Objects::open(&store.objects(), Path::new("/none")).err().unwrap();
    assert!(error.to_string().contains("pack-x.idx is no index of version 2"), "{error}");
}

#[test]
fn large_files_that_came_whole_become_deltas_of_newer_versions() {
    let history = History::new(true);
    let store = Store::new();
    store.receive(&history.pack(&["--window=0"], last(&history), None), 65536).unwrap();
    let version = |tip: &Oid| Oid::from_str(&git(&history.clone(), &["rev-parse", &format!("{tip}:big")])).unwrap();
    let newest_first: Vec<Oid> = history.tips.iter().rev().map(version).collect();
    let relatives: Vec<(Oid, Oid)> = newest_first.windows(2).map(|pair| (pair[1], pair[0])).collect();
    let size = || fs::metadata(&store.packs()[0]).unwrap().len();
    assert!(size() > 12 * LARGE_BYTES as u64);
    let deadline = Instant::now() + Duration::from_secs(60);
    combine(&store.objects(), &store.packs(), None, &relatives, deadline).unwrap();
    store.must_hold(&history, last(&history));
    // One version is whole, and what else there is comes to less than another.
    assert!(size() < 3 * LARGE_BYTES as u64, "{}", size());
    // A circle of wishes is none of deltas.
    let circle: Vec<(Oid, Oid)> = relatives.iter().map(|(one, other)| (*other, *one)).collect();
    combine(&store.objects(), &store.packs(), None, &circle, deadline).unwrap();
    store.must_hold(&history, last(&history));
}
