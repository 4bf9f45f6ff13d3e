//! Makes one pack of several.
//!
//! Objects are copied as they lie there, compressed and as deltas: nothing is searched for again that the server has
//! found, and nothing but what has lost its base is held in memory.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use git2::Oid;

use super::content::MAX_HELD_BYTES;
use super::delta::find_delta;
use super::entry::{Form, Header};
use super::index::{Index, Record};
use super::pack::{Pack, PackWriter, install};
use super::{Objects, damaged};

/// How many deltas may follow each other; as git has it.
const MAX_DEPTH: usize = 50;
/// As much of it as for large objects: each delta costs writing one out when the last is read.
const MAX_LARGE_DEPTH: usize = 8;

/// An object that the new pack will have.
struct Chosen {
    pack: usize,
    record: Record,
    header: Header,
    /// Of what it is a delta; none for a whole object.
    base: Option<Oid>,
    /// How many deltas are between it and a whole object, once that is known.
    depth: Option<usize>,
    /// Whether it is a delta here and must not be one there.
    is_made_whole: bool,
    /// A large object that it may be made a delta of.
    relative: Option<Oid>,
}

/// Makes one pack of those at `packs`, which lie in the folder `objects` of a store, and removes them. An object that
/// several have is taken from the first one. With `wanted`, the objects that it does not name are left out. Of
/// `relatives`, pairs of large objects that may be alike, each first one becomes a delta of the second where it is none.
///
/// Each pack must be complete in itself, so that the bases of deltas that come from one pack are found in it, or in one
/// before it: no circle comes together.
///
/// # Errors
/// A pack that is damaged, a disk that is full, or the deadline: then all is as it was.
pub(in crate::git) fn combine(
    objects: &Path,
    packs: &[PathBuf],
    wanted: Option<&HashSet<Oid>>,
    relatives: &[(Oid, Oid)],
    deadline: Instant,
) -> io::Result<()> {
    let scratch = objects.join("pack");
    let store = Objects::open(objects, &scratch)?;
    let pick = |path: &PathBuf| store.packs.iter().find(|pack| pack.path == *path);
    let picked: Option<Vec<&Pack>> = packs.iter().map(pick).collect();
    let picked = picked.ok_or_else(|| damaged("a pack is gone"))?;
    let mut plan = Plan { chosen: Vec::new(), places: HashMap::new() };
    for (number, pack) in picked.iter().enumerate() {
        plan.choose(number, pack, wanted, deadline)?;
    }
    if wanted.is_some_and(|wanted| wanted.len() != plan.chosen.len()) {
        return Err(damaged("objects are missing"));
    }
    plan.shorten_chains(&picked)?;
    plan.relate(relatives);
    let temporary = scratch.join(format!("combined-{}.new", std::process::id()));
    let written = write(&store, &picked, &plan.chosen, &temporary, deadline);
    let new = written.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    for pack in picked.iter().filter(|pack| pack.path != new) {
        fs::remove_file(pack.path.with_extension("idx"))?;
        fs::remove_file(&pack.path)?;
    }
    Ok(())
}

/// The names of the objects in some packs.
///
/// # Errors
/// An index that cannot be read.
pub(in crate::git) fn names_in(packs: &[PathBuf]) -> io::Result<HashSet<Oid>> {
    let mut names = HashSet::new();
    for pack in packs {
        let index = Index::read(&pack.with_extension("idx"))?;
        for place in 0..index.count() {
            names.insert(index.record(place)?.oid);
        }
    }
    Ok(names)
}

struct Plan {
    chosen: Vec<Chosen>,
    places: HashMap<Oid, usize>,
}

impl Plan {
    /// Chooses the objects of a pack that no older one has.
    fn choose(
        &mut self,
        number: usize,
        pack: &Pack,
        wanted: Option<&HashSet<Oid>>,
        deadline: Instant,
    ) -> io::Result<()> {
        for record in pack.records_in_order()? {
            let record = record?;
            if self.places.contains_key(&record.oid) || wanted.is_some_and(|wanted| !wanted.contains(&record.oid)) {
                continue;
            }
            check_time(deadline)?;
            let header = pack.header(record.offset)?;
            let base = pack.base_of(record.offset, &header)?;
            self.places.insert(record.oid, self.chosen.len());
            self.chosen.push(Chosen {
                pack: number,
                record,
                header,
                base,
                depth: None,
                is_made_whole: false,
                relative: None,
            });
        }
        Ok(())
    }

    /// Makes deltas whole whose base is left out, or that are too many in a row.
    fn shorten_chains(&mut self, picked: &[&Pack]) -> io::Result<()> {
        for start in 0..self.chosen.len() {
            let mut chain = vec![start];
            let mut depth = loop {
                let Chosen { base, depth, .. } = &self.chosen[chain[chain.len() - 1]];
                let next = base.and_then(|base| self.places.get(&base).copied());
                match (depth, next) {
                    (Some(depth), _) => {
                        chain.pop();
                        break Some(*depth);
                    }
                    (None, Some(next)) if chain.len() <= self.chosen.len() => chain.push(next),
                    (None, Some(_)) => return Err(damaged("deltas in a circle")),
                    (None, None) => break None,
                }
            };
            for place in chain.into_iter().rev() {
                let chosen = &mut self.chosen[place];
                depth = match depth.map_or(0, |depth| depth + 1) {
                    _ if chosen.base.is_none() => Some(0),
                    0 => chosen.make_whole(picked)?,
                    too_many if too_many > MAX_DEPTH => chosen.make_whole(picked)?,
                    depth => Some(depth),
                };
                chosen.depth = depth;
            }
        }
        Ok(())
    }
}

impl Plan {
    /// Notes which large objects may become deltas; none of what they are deltas of themselves.
    fn relate(&mut self, relatives: &[(Oid, Oid)]) {
        for (oid, relative) in relatives {
            let (Some(place), Some(of)) = (self.places.get(oid), self.places.get(relative)) else { continue };
            let next = |place: usize| {
                let Chosen { base, relative, .. } = &self.chosen[place];
                base.or(*relative).and_then(|base| self.places.get(&base).copied())
            };
            let chain: Vec<usize> = std::iter::successors(Some(*of), |place| next(*place)).collect();
            // Where the chain has its length, it is what all of it is made of.
            let relative = if chain.len() > MAX_LARGE_DEPTH { chain[chain.len() - 1] } else { *of };
            if !chain.contains(place) && self.chosen[*place].base.is_none() {
                self.chosen[*place].relative = Some(self.chosen[relative].record.oid);
            }
        }
    }
}

impl Chosen {
    /// Takes a whole copy, where one of the packs has one.
    fn make_whole(&mut self, picked: &[&Pack]) -> io::Result<Option<usize>> {
        self.base = None;
        self.is_made_whole = true;
        for (number, pack) in picked.iter().enumerate() {
            let Some(place) = pack.index.find(self.record.oid) else { continue };
            let record = pack.index.record(place)?;
            let header = pack.header(record.offset)?;
            if matches!(header.form, Form::Whole(_)) {
                (self.pack, self.record, self.header, self.is_made_whole) = (number, record, header, false);
                break;
            }
        }
        Ok(Some(0))
    }
}

fn write(
    store: &Objects,
    picked: &[&Pack],
    chosen: &[Chosen],
    temporary: &Path,
    deadline: Instant,
) -> io::Result<PathBuf> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(temporary)?;
    let mut writer = PackWriter::begin(BufWriter::new(file), chosen.len())?;
    for object in chosen {
        check_time(deadline)?;
        let delta = object.relative.map(|relative| delta_of(store, object.record.oid, relative)).transpose()?.flatten();
        if let (Some(relative), Some(delta)) = (object.relative, delta) {
            writer.add_delta(object.record.oid, relative, &delta)?;
        } else if object.is_made_whole {
            let (kind, content) = store.read(object.record.oid)?;
            writer.add(object.record.oid, kind, &content)?;
        } else {
            writer.copy(picked[object.pack], &object.record, &object.header, object.base)?;
        }
    }
    let (mut file, mut records, sum) = writer.finish()?;
    file.flush()?;
    install(temporary, file.get_ref(), &mut records, &sum, true)
}

/// The delta of an object of another one, where it saves most of it.
fn delta_of(store: &Objects, oid: Oid, relative: Oid) -> io::Result<Option<Vec<u8>>> {
    let (target, base) = (store.read(oid)?.1, store.read(relative)?.1);
    let max_bytes = (target.size() / 4).min(MAX_HELD_BYTES);
    find_delta(&base, &target, usize::try_from(max_bytes).unwrap_or(usize::MAX))
}

fn check_time(deadline: Instant) -> io::Result<()> {
    if Instant::now() < deadline { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}
