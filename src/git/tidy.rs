//! Keeps object stores within twice a fresh clone: packs are combined, deltas are found for what came whole, and what no
//! reference reaches any more goes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use git2::{ObjectType, Oid, Repository, Sort};

use super::objects;
use super::store::{names_in, open};

/// Packs from which on they are made one: a fetch adds one each time.
pub(super) const MAX_PACKS: usize = 16;
/// What may have come since a store was packed anew, however small it is.
const MIN_GROWTH_BYTES: u64 = 64 * 1024;
/// Up to this size libgit2 looks for deltas; it has eleven objects at a time in memory.
const MAX_DELTA_BYTES: usize = 2 * 1024 * 1024;
/// What it may use for that, by its names in the store's configuration; the second is also taken for the size beyond
/// which it looks for no deltas.
const PACKING_MEMORY: [(&str, i64); 2] =
    [("pack.windowMemory", 16 * 1024 * 1024), ("pack.deltaCacheSize", 16 * 1024 * 1024)];
/// Time that tidying a small store may take; a deployment waits for it.
const MAX_PACKING_TIME: Duration = Duration::from_secs(10);
/// Stores up to this size are tidied while a deployment waits.
const MAX_BYTES_AT_ONCE: u64 = 16 * 1024 * 1024;
/// A file in a store that is to be tidied when nobody waits.
const MARK: &str = "shiparr-untidy";
/// References to commits whose contents may have to be put back.
pub(super) const HELD: &str = "refs/shiparr/held/";

/// Combines packs where there are many, and removes what no reference reaches any more: at once where the store is
/// small, else it is marked for [`tidy_marked`]. Where it cannot, or takes too long, the store stays as it is.
pub(super) fn tidy(repository: &Repository, left: Duration) {
    let is_tidy = || -> Result<bool, git2::Error> {
        let due = Due::look(repository)?;
        if due.is_something() && due.packs.bytes() > MAX_BYTES_AT_ONCE {
            return Ok(false);
        }
        due.carry_out(repository, Instant::now() + MAX_PACKING_TIME.min(left / 2))?;
        holds_garbage(repository).map(|holds| !holds)
    };
    // Not worth a failed deployment: there is another time.
    if !is_tidy().unwrap_or(false) {
        let _ = File::create(repository.path().join(MARK));
    }
}

/// Whether commits of a history that was rewritten are kept for putting back.
fn holds_garbage(repository: &Repository) -> Result<bool, git2::Error> {
    let (mut held, mut others) = (BTreeSet::new(), BTreeSet::new());
    for reference in repository.references()? {
        let reference = reference?;
        let roots = if reference.name().is_some_and(|name| name.starts_with(HELD)) { &mut held } else { &mut others };
        roots.insert(reference.peel(ObjectType::Any)?.id());
    }
    Ok(has_left(repository, &held, &others))
}

/// Whether [`tidy_marked`] has anything to do.
pub(super) fn is_marked(store: &Path) -> bool {
    stores_in(store).iter().any(|store| store.join(MARK).exists())
}

/// Tidies a store and those of its submodules, as far as they are marked. What was held for putting back is so no
/// longer, but for the commits in `keep`.
///
/// # Errors
/// libgit2's own, a full disk, or the time.
pub(super) fn tidy_marked(store: &Path, keep: &[Oid], left: Duration) -> Result<(), git2::Error> {
    let deadline = Instant::now() + left / 2;
    let keep: BTreeSet<String> = keep.iter().map(|commit| format!("{HELD}{commit}")).collect();
    for store in stores_in(store).iter().filter(|store| store.join(MARK).exists()) {
        let repository = open(store)?;
        for held in repository.references_glob(&format!("{HELD}*"))? {
            let mut held = held?;
            if !held.name().is_some_and(|name| keep.contains(name)) {
                held.delete()?;
            }
        }
        Due::look(&repository)?.carry_out(&repository, deadline)?;
        fs::remove_file(store.join(MARK)).map_err(failed)?;
    }
    Ok(())
}

/// A store, and those of its submodules.
fn stores_in(store: &Path) -> Vec<PathBuf> {
    let mut stores = vec![store.to_owned()];
    let mut next = 0;
    while let Some(modules) = stores.get(next).map(|store| store.join("modules")) {
        stores.extend(names_in(&modules).into_iter().map(|name| modules.join(name)).filter(|path| path.is_dir()));
        next += 1;
    }
    stores
}

/// What is to be done for a store.
struct Due {
    packs: Packs,
    roots: BTreeSet<Oid>,
    known: KnownRoots,
    /// All that is reached is to be packed anew, with new deltas.
    has_grown: bool,
    /// All that is reached is to be in one pack.
    has_garbage: bool,
    /// Everything but the largest pack is to be in one pack.
    has_many_packs: bool,
}

impl Due {
    fn look(repository: &Repository) -> Result<Due, git2::Error> {
        let (packs, roots, known) = (Packs::of(repository), roots_of(repository)?, KnownRoots::read(repository));
        let has_grown = packs.others_bytes > (packs.largest_bytes / 2).max(MIN_GROWTH_BYTES);
        let has_garbage = has_left(repository, &known.roots, &roots);
        let has_many_packs = packs.sorted.len() > MAX_PACKS;
        Ok(Due { packs, roots, known, has_grown, has_garbage, has_many_packs })
    }

    fn is_something(&self) -> bool {
        self.has_grown || self.has_garbage || self.has_many_packs
    }

    fn carry_out(self, repository: &Repository, deadline: Instant) -> Result<(), git2::Error> {
        if self.is_something() {
            check_space(repository, 2 * self.packs.bytes())?;
        }
        if self.has_grown || self.has_garbage {
            // Where nothing but garbage has come together, the deltas are good as they are.
            let history = History::read(repository, &self.roots, &|_| self.has_grown, deadline)?;
            pack_anew(repository, &history, self.packs.oldest_first(true), Some(&history.reachable), deadline)?;
        } else if self.has_many_packs {
            // All but the largest: the cost is that of what came lately, not that of the store.
            let recent = self.packs.oldest_first(false);
            let names = objects::names_in(&recent).map_err(failed)?;
            let history = History::read(repository, &self.roots, &|oid| names.contains(oid), deadline)?;
            pack_anew(repository, &history, recent, None, deadline)?;
        }
        self.known.replace(&self.roots).map_err(failed)
    }
}

/// New packs lie beside the old ones for a while; and libgit2 does not survive a disk that is full while it packs.
fn check_space(repository: &Repository, needed_bytes: u64) -> Result<(), git2::Error> {
    let space = rustix::fs::statvfs(repository.path()).map_err(|error| failed(error.into()))?;
    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    let why = format!("no space left on the disk: it takes {needed_bytes} bytes for a while, {free_bytes} are free");
    Err(git2::Error::from_str(&why))
}

/// Makes one pack of several, with new deltas of the objects that the history names for it.
///
/// What a server sends for a push is often whole, though it differs by a line from what is here. libgit2 finds the
/// deltas, of what is small enough for it to have in memory; of the rest, versions of one file are compared here.
fn pack_anew(
    repository: &Repository,
    history: &History,
    mut packs: Vec<PathBuf>,
    wanted: Option<&HashSet<Oid>>,
    deadline: Instant,
) -> Result<(), git2::Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Without new deltas it is still one pack; on a slow machine they may never be found in time.
    let new = find_deltas(repository, &history.named, Instant::now() + left / 2).unwrap_or_default();
    packs.retain(|pack| Some(pack) != new.as_ref());
    packs.splice(0..0, new.clone());
    let relatives = history.large_relatives(repository)?;
    objects::combine(&repository.path().join("objects"), &packs, wanted, &relatives, deadline).map_err(|error| {
        if let Some(new) = new {
            let _ = fs::remove_file(new.with_extension("idx"));
            let _ = fs::remove_file(new);
        }
        failed(error)
    })
}

/// A pack of its own with deltas of small objects.
fn find_deltas(
    repository: &Repository,
    named: &[(Oid, String)],
    deadline: Instant,
) -> Result<Option<PathBuf>, git2::Error> {
    let mut config = repository.config()?;
    for (name, bytes) in PACKING_MEMORY {
        if config.get_i64(name).ok() != Some(bytes) {
            config.set_i64(name, bytes)?;
        }
    }
    let mut builder = repository.packbuilder()?;
    builder.set_threads(1);
    builder.set_progress_callback(move |_, _, _| Instant::now() < deadline)?;
    let odb = repository.odb()?;
    for (oid, name) in named {
        if odb.read_header(*oid)?.0 <= MAX_DELTA_BYTES {
            builder.insert_object(*oid, Some(name))?;
        }
    }
    if builder.object_count() == 0 {
        return Ok(None);
    }
    let folder = repository.path().join("objects/pack");
    builder.write(&folder, 0o444)?;
    Ok(builder.name().map(|name| folder.join(format!("pack-{name}.pack"))))
}

fn failed(error: io::Error) -> git2::Error {
    git2::Error::from_str(&error.to_string())
}

/// The packs of a store.
struct Packs {
    /// The largest first.
    sorted: Vec<(PathBuf, SystemTime)>,
    largest_bytes: u64,
    others_bytes: u64,
}

impl Packs {
    fn of(repository: &Repository) -> Packs {
        let folder = repository.path().join("objects/pack");
        let paths = names_in(&folder).into_iter().filter(|name| name.ends_with(".pack")).map(|name| folder.join(name));
        let mut packs: Vec<_> = paths
            .filter_map(|path| {
                let metadata = fs::metadata(&path).ok()?;
                Some((metadata.len(), path, metadata.modified().ok()?))
            })
            .collect();
        packs.sort_by(|one, other| other.cmp(one));
        let largest_bytes = packs.first().map_or(0, |(size, ..)| *size);
        let others_bytes = packs.iter().skip(1).map(|(size, ..)| size).sum();
        Packs { sorted: packs.into_iter().map(|(_, path, time)| (path, time)).collect(), largest_bytes, others_bytes }
    }

    fn bytes(&self) -> u64 {
        self.largest_bytes + self.others_bytes
    }

    /// A copy that came later was made to complete a pack, so the oldest one is the best.
    fn oldest_first(&self, with_largest: bool) -> Vec<PathBuf> {
        let mut packs = self.sorted[usize::from(!with_largest)..].to_vec();
        packs.sort_by_key(|(_, time)| *time);
        packs.into_iter().map(|(path, _)| path).collect()
    }
}

/// What the references point at.
fn roots_of(repository: &Repository) -> Result<BTreeSet<Oid>, git2::Error> {
    let targets = repository.references()?.map(|reference| Ok(reference?.peel(ObjectType::Any)?.id()));
    targets.collect()
}

/// What the references pointed at when the store was tidied last, kept beside it: where the references of now reach all
/// of it, there is nothing to remove.
struct KnownRoots {
    path: PathBuf,
    roots: BTreeSet<Oid>,
}

impl KnownRoots {
    fn read(repository: &Repository) -> KnownRoots {
        let path = repository.path().join("shiparr-roots");
        let text = fs::read_to_string(&path).unwrap_or_default();
        KnownRoots { path, roots: text.lines().filter_map(|line| Oid::from_str(line).ok()).collect() }
    }

    fn replace(self, roots: &BTreeSet<Oid>) -> io::Result<()> {
        if self.roots == *roots {
            return Ok(());
        }
        let text: String = roots.iter().map(|root| format!("{root}\n")).collect();
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &self.path)
    }
}

/// Whether something of `before` is not reached any more: history was rewritten, or what kept an old commit has gone.
fn has_left(repository: &Repository, before: &BTreeSet<Oid>, now: &BTreeSet<Oid>) -> bool {
    let is_reached = |old: &Oid| {
        now.contains(old)
            || repository.find_commit(*old).is_err()
            || now.iter().any(|root| repository.graph_descendant_of(*root, *old).unwrap_or(false))
    };
    !before.iter().all(is_reached)
}

/// What the references reach.
struct History {
    reachable: HashSet<Oid>,
    /// Those that were asked for with a name that is alike for what is alike, the newest first.
    named: Vec<(Oid, String)>,
}

impl History {
    fn read(
        repository: &Repository,
        roots: &BTreeSet<Oid>,
        is_named: &dyn Fn(&Oid) -> bool,
        deadline: Instant,
    ) -> Result<History, git2::Error> {
        let mut history = History { reachable: HashSet::new(), named: Vec::new() };
        let mut walk = repository.revwalk()?;
        walk.set_sorting(Sort::TIME)?;
        for root in roots {
            let mut object = repository.find_object(*root, None)?;
            while let Some(tag) = object.as_tag() {
                history.add(tag.id(), "", is_named);
                object = tag.target()?;
            }
            walk.push(object.peel_to_commit()?.id())?;
        }
        for commit in walk {
            if Instant::now() > deadline {
                return Err(git2::Error::from_str("it takes too long"));
            }
            let commit = repository.find_commit(commit?)?;
            history.add(commit.id(), "", is_named);
            history.add_trees(repository, commit.tree_id(), is_named)?;
        }
        Ok(history)
    }

    fn add_trees(
        &mut self,
        repository: &Repository,
        root: Oid,
        is_named: &dyn Fn(&Oid) -> bool,
    ) -> Result<(), git2::Error> {
        let mut trees = vec![(root, String::new())];
        while let Some((tree, name)) = trees.pop() {
            if !self.add(tree, &name, is_named) {
                continue;
            }
            for entry in &repository.find_tree(tree)? {
                let path = || format!("{name}/{}", String::from_utf8_lossy(entry.name_bytes()).replace('\0', ""));
                match entry.kind() {
                    Some(ObjectType::Tree) if !self.reachable.contains(&entry.id()) => trees.push((entry.id(), path())),
                    Some(ObjectType::Blob) if !self.reachable.contains(&entry.id()) => {
                        self.add(entry.id(), &path(), is_named);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Pairs of large files that had the same name, of which the second is the newer one.
    fn large_relatives(&self, repository: &Repository) -> Result<Vec<(Oid, Oid)>, git2::Error> {
        let odb = repository.odb()?;
        let (mut newer, mut pairs) = (HashMap::new(), Vec::new());
        for (oid, name) in &self.named {
            let (size, kind) = odb.read_header(*oid)?;
            if kind == ObjectType::Blob && size > MAX_DELTA_BYTES {
                pairs.extend(newer.insert(name, *oid).map(|newer| (*oid, newer)));
            }
        }
        Ok(pairs)
    }

    /// `false` when it was known.
    fn add(&mut self, oid: Oid, name: &str, is_named: &dyn Fn(&Oid) -> bool) -> bool {
        let is_new = self.reachable.insert(oid);
        if is_new && is_named(&oid) {
            self.named.push((oid, name.to_owned()));
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

    use std::fmt::Write as _;
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::git::testing::{Lab, git};

    /// What a folder takes of the disk.
    fn disk_bytes(folder: &Path) -> u64 {
        let inside = fs::read_dir(folder).into_iter().flatten().map(|entry| disk_bytes(&entry.unwrap().path()));
        inside.sum::<u64>() + fs::symlink_metadata(folder).unwrap().blocks() * 512
    }

    fn store_and_clone_bytes(lab: &Lab) -> (u64, u64) {
        let fresh = lab.root().join("fresh.git");
        let url = format!("file://{}", lab.root().join("remote.git").display());
        git(&lab.root(), &["clone", "-q", "--bare", "--single-branch", &url, "fresh.git"]);
        let clone_bytes = disk_bytes(&fresh);
        fs::remove_dir_all(fresh).unwrap();
        (disk_bytes(&lab.root().join("data/git/p")), clone_bytes)
    }

    /// A history of so many commits, as `git fast-import` makes it; the hashes of the commits.
    fn import(lab: &Lab, commits: usize) -> Vec<String> {
        let (mut stream, mut texts) = (String::new(), vec![String::new(); 40]);
        for (number, text) in texts.iter_mut().enumerate() {
            (0..200).for_each(|line| writeln!(text, "option_{}: {}", line * number, line * 7919 % 1000).unwrap());
        }
        for commit in 0..commits {
            let changed = commit * 7 % texts.len();
            writeln!(texts[changed], "added: {commit}").unwrap();
            stream.push_str("commit refs/heads/import\ncommitter A <a@b> 1700000000 +0000\ndata 0\n");
            for (number, text) in texts.iter().enumerate().filter(|(number, _)| commit == 0 || *number == changed) {
                write!(stream, "M 644 inline stacks/{}/{number}.yaml\ndata {}\n{text}\n", number % 6, text.len())
                    .unwrap();
            }
        }
        let remote = lab.root().join("remote.git");
        let mut child = Command::new("git");
        child.args(["fast-import", "--quiet", "--force"]).current_dir(&remote).stdin(Stdio::piped());
        let mut child = child.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stream.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        git(&remote, &["rev-list", "--reverse", "import"]).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_store_stays_within_twice_a_fresh_clone_however_often_is_pushed() {
        let lab = Lab::new();
        let commits = import(&lab, 200);
        let mut most_packs = 0;
        for (number, commit) in commits.iter().enumerate() {
            fs::write(lab.root().join("remote.git/refs/heads/main"), format!("{commit}\n")).unwrap();
            lab.deploy().unwrap();
            let packs = names_in(&lab.checkout_request().store.join("objects/pack")).len() / 2;
            most_packs = most_packs.max(packs);
            if number % 25 == 24 {
                let (store_bytes, clone_bytes) = store_and_clone_bytes(&lab);
                assert!(store_bytes < 2 * clone_bytes, "push {number}: {store_bytes} bytes, a clone {clone_bytes}");
            }
        }
        assert!((MAX_PACKS..=MAX_PACKS + 1).contains(&most_packs), "{most_packs}");
        git(&lab.checkout_request().store, &["fsck", "--strict", "--no-dangling"]);
    }

    #[test]
    fn nothing_is_kept_of_a_history_that_was_rewritten() {
        let lab = Lab::new();
        for round in 0..12_u64 {
            git(&lab.clone(), &["checkout", "-q", "--orphan", &format!("next-{round}")]);
            let noise = (0..40_000).map(|number| (number ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            lab.put("blob", noise.flatten().collect::<Vec<u8>>());
            lab.push("rewritten");
            lab.deploy().unwrap();
            tidy_marked(&lab.checkout_request().store, &[], Duration::from_secs(60)).unwrap();
            let (store_bytes, clone_bytes) = store_and_clone_bytes(&lab);
            assert!(store_bytes < clone_bytes * 5 / 4, "round {round}: {store_bytes} bytes, a clone {clone_bytes}");
        }
        assert!(!is_marked(&lab.checkout_request().store));
    }
}
