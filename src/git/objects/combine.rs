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

use super::entry::{Form, Header};
use super::index::{Index, Record};
use super::pack::{Pack, PackWriter, install};
use super::{Objects, damaged};

/// How many deltas may follow each other; as git has it.
const MAX_DEPTH: usize = 50;

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
}

/// Makes one pack of those at `packs`, which lie in the folder `objects` of a store, and removes them. An object that
/// several have is taken from the first one. With `wanted`, the objects that it does not name are left out.
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
            self.chosen.push(Chosen { pack: number, record, header, base, depth: None, is_made_whole: false });
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
        if object.is_made_whole {
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

fn check_time(deadline: Instant) -> io::Result<()> {
    if Instant::now() < deadline { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}
