//! Fetches from a repository on this host: what a server would send, copied out of its packs.

use std::collections::HashSet;
use std::io::{self, Write};

use git2::{ObjectType, Oid, Repository, Sort, Tree};

use super::pack::PackWriter;
use super::{Objects, Place};

/// What is to be sent.
pub(in crate::git) struct Gathered {
    oids: Vec<Oid>,
    known: HashSet<Oid>,
}

/// What a commit and its history are made of, without what the commits in `haves` are made of.
///
/// # Errors
/// libgit2's own: the repository is damaged.
pub(in crate::git) fn gather(theirs: &Repository, want: Oid, haves: &[Oid]) -> Result<Gathered, git2::Error> {
    let mut walk = theirs.revwalk()?;
    walk.set_sorting(Sort::TIME)?;
    walk.push(want)?;
    for have in haves.iter().filter(|have| theirs.find_commit(**have).is_ok()) {
        walk.hide(*have)?;
    }
    let commits: Vec<Oid> = walk.collect::<Result<_, _>>()?;
    let new: HashSet<Oid> = commits.iter().copied().collect();
    // What the commits just before the new ones hold is there already.
    let mut skipped = Gathered { oids: Vec::new(), known: HashSet::new() };
    for commit in &commits {
        for parent in theirs.find_commit(*commit)?.parents().filter(|parent| !new.contains(&parent.id())) {
            skipped.add_tree(theirs, parent.tree()?)?;
        }
    }
    let mut gathered = Gathered { oids: commits.clone(), known: skipped.known };
    for commit in commits {
        gathered.add_tree(theirs, theirs.find_commit(commit)?.tree()?)?;
    }
    gathered.known = gathered.oids.iter().copied().collect();
    Ok(gathered)
}

impl Gathered {
    fn add_tree(&mut self, repository: &Repository, tree: Tree<'_>) -> Result<(), git2::Error> {
        let mut trees = vec![tree];
        while let Some(tree) = trees.pop() {
            if !self.add(tree.id()) {
                continue;
            }
            for entry in &tree {
                match entry.kind() {
                    Some(ObjectType::Tree) if !self.known.contains(&entry.id()) => {
                        trees.push(repository.find_tree(entry.id())?);
                    }
                    Some(ObjectType::Blob) => {
                        self.add(entry.id());
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, oid: Oid) -> bool {
        let is_new = self.known.insert(oid);
        if is_new {
            self.oids.push(oid);
        }
        is_new
    }

    /// Writes all of it as a pack, which may leave out the bases of deltas that are in `ours`.
    ///
    /// # Errors
    /// An object that is missing or damaged, and what `out` says.
    pub fn send<W: Write>(&self, theirs: &Objects, ours: &git2::Odb<'_>, out: W) -> io::Result<W> {
        let mut writer = PackWriter::begin(out, self.oids.len())?;
        for oid in &self.oids {
            if let Place::Packed(pack, record) = theirs.find(*oid)? {
                let header = pack.header(record.offset)?;
                let base = pack.base_of(record.offset, &header)?;
                if base.is_none_or(|base| self.known.contains(&base) || ours.exists(base)) {
                    writer.copy(pack, &record, &header, base)?;
                    continue;
                }
            }
            let (kind, content) = theirs.read(*oid)?;
            writer.add(*oid, kind, &content)?;
        }
        Ok(writer.finish()?.0)
    }
}
