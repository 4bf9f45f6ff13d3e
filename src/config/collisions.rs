//! Projects and repositories that claim the same name, folder or compose project: the one accepted first goes on, and
//! the file of the other falls back to its last good version.
//!
//! A folder may have several repositories, where they are stacks of one checkout: see [`sharers`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::catalog::{AcceptedRepository, Basis};
use super::fields::Place;
use super::file::Contents;
use super::problem::{Problem, Severity};
use super::project::{Project, Repository};
use super::reader::joined;
use super::watched::unwatched;
use crate::model::RepositoryId;

/// A file, and the version of its project that is about to be accepted.
pub(super) struct Candidate {
    file: PathBuf,
    /// The project's name in the file as it is now, where that much can be read.
    name: Option<String>,
    /// None: nothing of this file runs here.
    pub(super) project: Option<Project>,
    /// What it falls back to.
    last_good: Option<Project>,
    /// Whether the file has an error.
    bad: bool,
    places: BTreeMap<(String, &'static str), Place>,
}

impl Candidate {
    /// A `bad` file falls back to `last_good` at once.
    pub(super) fn new(path: &Path, contents: Contents, bad: bool, last_good: Option<&Project>) -> Candidate {
        let Contents { name, project, places, .. } = contents;
        let mut candidate =
            Candidate { file: path.to_owned(), name, project, last_good: last_good.cloned(), bad, places };
        if bad {
            candidate.demote();
        }
        candidate
    }

    /// The projects whose records must stay as they are although nothing of them was accepted.
    pub(super) fn untouched(&self, basis: &Basis<'_>) -> Vec<String> {
        if !self.bad {
            return Vec::new();
        }
        let known = basis.accepted.files.iter().filter(|(_, file)| **file == self.file).map(|(name, _)| name);
        known.chain(&self.name).cloned().collect()
    }

    /// The new version makes way for the last good one, and that one for nothing.
    fn demote(&mut self) {
        self.bad = true;
        self.project = self.last_good.take();
    }

    /// `repository` is empty for a field of the project. What falls back to its last good version has no line any more.
    fn problem(&self, repository: &str, field: &'static str, message: String) -> Problem {
        let line = self.places.get(&(repository.to_owned(), field)).map(|place| place.line);
        let section = if repository.is_empty() { String::new() } else { format!("repositories.{repository}") };
        Problem { file: self.file.clone(), line, field: joined(&section, field), severity: Severity::Error, message }
    }
}

/// Takes candidates out, or back to their last good version, until nothing collides, and marks the repositories that
/// share a folder then.
pub(super) fn settle(candidates: &mut [Candidate], basis: &Basis<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut real_paths = HashMap::new();
    // Each round demotes a candidate at least, and a candidate can be demoted twice at most.
    loop {
        let mut demoted = BTreeSet::new();
        for collision in collisions(candidates, basis, &mut real_paths) {
            // Who makes way in this round stands in nobody's way.
            if collision.winner == collision.loser || !demoted.contains(&collision.winner) {
                demoted.insert(collision.loser);
                problems.push(collision.problem);
            }
        }
        if demoted.is_empty() {
            mark_sharers(candidates, &real_paths);
            return problems;
        }
        demoted.into_iter().for_each(|index| candidates[index].demote());
    }
}

/// Two candidates, by index; the same one where two repositories of a file collide.
struct Collision {
    winner: usize,
    loser: usize,
    problem: Problem,
}

/// Who goes on: the smaller. Held already, then accepted before this start, then the older record, then the earlier
/// file and place.
type Rank = (u8, RepositoryId, usize, usize);

const HELD_NOW: u8 = 0;
/// It had the folder, but another part of the checkout, or another checkout.
const HELD_NOW_OTHERWISE: u8 = 1;
const HELD_BEFORE_START: u8 = 2;
const HELD_BEFORE_START_OTHERWISE: u8 = 3;
const NEW: u8 = 4;

/// A repository's claim to a folder or a compose project.
#[derive(Clone, Copy)]
struct Claim<'c> {
    candidate: usize,
    repository: &'c Repository,
    rank: Rank,
}

fn collisions(
    candidates: &[Candidate],
    basis: &Basis<'_>,
    real_paths: &mut HashMap<PathBuf, PathBuf>,
) -> Vec<Collision> {
    let mut found = same_projects(candidates, basis);
    let mut folders = Vec::new();
    let mut compose_projects: HashMap<String, Claim<'_>> = HashMap::new();
    let mut records_in: HashMap<&Path, usize> = HashMap::new();
    for record in basis.accepted.repositories.values() {
        *records_in.entry(&record.local_path).or_default() += 1;
    }
    let stacks = all_repositories(candidates);
    let stacks = stacks.map(|(_, _, one)| (one.local_path.as_path(), from_top(one))).collect();
    for (index, position, repository) in all_repositories(candidates) {
        let held = basis.previous.repository(&repository.name);
        let record = basis.accepted.repositories.get(&repository.name);
        let id = record.map_or(RepositoryId::MAX, |record| record.id);
        let claim = |class| Claim { candidate: index, repository, rank: (class, id, index, position) };

        let shared_before = held.is_some_and(|held| held.shares_local_path)
            || record.is_some_and(|record| records_in.get(record.local_path.as_path()).is_some_and(|count| *count > 1));
        let class = folder_class(repository, held, record, shared_before, &stacks);
        let real = real_paths.entry(repository.local_path.clone()).or_insert_with(|| real_path(&repository.local_path));
        folders.push((real.clone(), claim(class)));

        let project = compose_project(repository);
        let class = if held.is_some_and(|held| compose_project(held) == project) { HELD_NOW } else { NEW };
        let this = claim(class);
        let Some(other) = compose_projects.get(&project) else {
            compose_projects.insert(project, this);
            continue;
        };
        let (winner, loser) = by_rank(*other, this);
        let message = format!(
            "compose project `{project}` is that of {} too; set `compose_project` on one of them",
            named(candidates, winner)
        );
        found.push(collision(candidates, winner, loser, "compose_project", message));
        compose_projects.insert(project, winner);
    }
    found.extend(same_folders(candidates, folders));
    found
}

fn same_projects(candidates: &[Candidate], basis: &Basis<'_>) -> Vec<Collision> {
    let mut found = Vec::new();
    let mut names: HashMap<&str, (u8, usize)> = HashMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let Some(project) = &candidate.project else {
            continue;
        };
        let held = basis.previous.projects.get(&project.name).map(|held| &held.file);
        let class = if held == Some(&project.file) {
            HELD_NOW
        } else if basis.accepted.files.get(&project.name) == Some(&project.file) {
            HELD_BEFORE_START
        } else {
            NEW
        };
        let this = (class, index);
        let Some(other) = names.get(project.name.as_str()).copied() else {
            names.insert(&project.name, this);
            continue;
        };
        let (winner, loser) = (other.min(this), other.max(this).1);
        let message = format!(
            "the project `{}` is in {} already; choose another name, or merge the two files",
            project.name,
            candidates[winner.1].file.display()
        );
        found.push(Collision { winner: winner.1, loser, problem: candidates[loser].problem("", "project", message) });
        names.insert(&project.name, winner);
    }
    found
}

/// How firmly a repository holds its folder. One that `shared` it and does not watch all of its stack any more, or
/// watches that of another one, holds it otherwise: the others must not make way for that.
fn folder_class(
    repository: &Repository,
    held: Option<&Repository>,
    record: Option<&AcceptedRepository>,
    shared: bool,
    stacks: &BTreeSet<(&Path, &Path)>,
) -> u8 {
    let Repository { local_path, path, url, branch, .. } = repository;
    let watches_another = || {
        watched_by(repository).into_iter().any(|watched| {
            let from = stacks.range((local_path.as_path(), watched)..);
            let mut held = from.take_while(|(folder, stack)| *folder == local_path && stack.starts_with(watched));
            // What lies in its own stack is in the way of that, whatever it watches.
            held.any(|(_, stack)| !stack.starts_with(from_top(repository)))
        })
    };
    let is_fit = || !shared || (unwatched(repository).is_empty() && !watches_another());
    if let Some(held) = held.filter(|held| held.local_path == *local_path) {
        let is_same = (&held.path, &held.url, &held.branch) == (path, url, branch);
        return if is_same && is_fit() { HELD_NOW } else { HELD_NOW_OTHERWISE };
    }
    if let Some(record) = record.filter(|record| record.local_path == *local_path) {
        let is_same = record.path == *path && record.url == url.as_str() && record.branch == *branch;
        return if is_same && is_fit() { HELD_BEFORE_START } else { HELD_BEFORE_START_OTHERWISE };
    }
    NEW
}

/// Folders that cannot be shared, and folders in one another. Sorted by components, what lies in a folder follows it
/// directly.
fn same_folders(candidates: &[Candidate], mut folders: Vec<(PathBuf, Claim<'_>)>) -> Vec<Collision> {
    folders.sort_by(|(left, one), (right, other)| (left, one.rank).cmp(&(right, other.rank)));
    let mut found = Vec::new();
    // The folders that the current one lies in, the nearest last, each with its claims by rank.
    let mut around: Vec<&[(PathBuf, Claim<'_>)]> = Vec::new();
    for claims in folders.chunk_by(|(left, _), (right, _)| left == right) {
        sharers(candidates, claims, &mut found);
        while around.last().is_some_and(|outer| !claims[0].0.starts_with(&outer[0].0)) {
            around.pop();
        }
        if let Some(outer) = around.last() {
            nested(candidates, outer, claims, &mut found);
        }
        around.push(claims);
    }
    found
}

/// The claims to one folder, by rank. Stacks of one checkout (the same `url` and `branch`) share it where none lies in
/// another, and where each watches all that it is made of and nobody else's stack: what it watches is what it handles
/// there.
fn sharers(candidates: &[Candidate], claims: &[(PathBuf, Claim<'_>)], found: &mut Vec<Collision>) {
    let Some(((_, first), others)) = claims.split_first() else {
        return;
    };
    let mut stacks = BTreeMap::from([(from_top(first.repository), *first)]);
    let mut watched: BTreeMap<&Path, Claim<'_>> =
        watched_by(first.repository).into_iter().map(|path| (path, *first)).collect();
    for (_, claim) in others {
        let folder = claim.repository.local_path.display();
        let (winner, field, message) = if let Some(difference) = other_checkout(first.repository, claim.repository) {
            let other = named(candidates, *first);
            let message = format!(
                "`{folder}` is the folder of {other} too, which has another `{difference}`; give each a folder of its own"
            );
            (first, "local_path", message)
        } else if let Some(other) = overlapping(&stacks, from_top(claim.repository)) {
            let message = format!(
                "`{}` overlaps `{}`, the stack of {} in the same `local_path`; choose folders apart, or give each a `local_path` of its \
                 own",
                claim.repository.path.display(),
                other.repository.path.display(),
                named(candidates, *other)
            );
            (other, "path", message)
        } else if let Some(line) = watch_paths_to_write(claim.repository) {
            let message = format!(
                "it shares `{folder}` with {}, and has to watch all of its own stack there: write `{line}`",
                named(candidates, *first)
            );
            (first, "watch_paths", message)
        } else if let Some(line) = watch_paths_to_write(first.repository) {
            let message = format!(
                "`{folder}` is the folder of {} too, which does not watch all of its own stack: write `{line}` there, or give each a \
                 folder of its own",
                named(candidates, *first)
            );
            (first, "local_path", message)
        } else if let Some(problem) = watches_another(candidates, claim, &stacks, &watched) {
            problem
        } else {
            stacks.insert(from_top(claim.repository), *claim);
            watched.extend(watched_by(claim.repository).into_iter().map(|path| (path, *claim)));
            continue;
        };
        found.push(collision(candidates, *winner, *claim, field, message));
    }
}

/// A folder and one that lies in it: all who claim the one make way for the first of the other.
fn nested(
    candidates: &[Candidate],
    outer: &[(PathBuf, Claim<'_>)],
    inner: &[(PathBuf, Claim<'_>)],
    found: &mut Vec<Collision>,
) {
    let outer_goes_on = outer[0].1.rank < inner[0].1.rank;
    let (winner, losers, relation) =
        if outer_goes_on { (outer[0].1, inner, "lies in") } else { (inner[0].1, outer, "holds") };
    for (_, loser) in losers {
        let message = format!(
            "`{}` {relation} `{}`, the folder of {}; choose one apart from it",
            loser.repository.local_path.display(),
            winner.repository.local_path.display(),
            named(candidates, winner)
        );
        found.push(collision(candidates, winner, *loser, "local_path", message));
    }
}

/// The field in which two repositories that claim a folder are not of one checkout.
fn other_checkout(one: &Repository, other: &Repository) -> Option<&'static str> {
    fn branch(repository: &Repository) -> &str {
        repository.branch.strip_prefix("refs/heads/").unwrap_or(&repository.branch)
    }
    if one.url != other.url { Some("url") } else { (branch(one) != branch(other)).then_some("branch") }
}

/// The folder of a stack, empty for the repository's top: a folder goes before all that lies in it.
fn from_top(repository: &Repository) -> &Path {
    let path = repository.path.as_path();
    if path == Path::new(".") { Path::new("") } else { path }
}

/// One of `stacks`, none of which lies in another, that this folder is, lies in or holds.
fn overlapping<'s, 'c>(stacks: &'s BTreeMap<&Path, Claim<'c>>, folder: &'s Path) -> Option<&'s Claim<'c>> {
    let around = folder.ancestors().find_map(|ancestor| stacks.get(ancestor));
    let next = || stacks.range(folder..).next().filter(|(other, _)| other.starts_with(folder)).map(|(_, claim)| claim);
    around.or_else(next)
}

/// What is wrong where one of two sharers watches, and so would write, all of the other one's stack ahead of that one's
/// deployment; with the other one, and the field.
fn watches_another<'s, 'c>(
    candidates: &[Candidate],
    claim: &'s Claim<'c>,
    stacks: &'s BTreeMap<&Path, Claim<'c>>,
    watched: &'s BTreeMap<&Path, Claim<'c>>,
) -> Option<(&'s Claim<'c>, &'static str, String)> {
    let way_out = "watch folders apart from it, or give each a `local_path` of its own";
    for path in watched_by(claim.repository) {
        if let Some((stack, other)) = stacks.range(path..).next().filter(|(stack, _)| stack.starts_with(path)) {
            let (stack, other_name) = (stack.display(), named(candidates, *other));
            let message = format!("it holds `{stack}`, the stack of {other_name} in the same `local_path`: {way_out}");
            return Some((other, "watch_paths", message));
        }
    }
    let folder = from_top(claim.repository);
    let other = folder.ancestors().find_map(|path| watched.get(path))?;
    let (folder, other_name) = (folder.display(), named(candidates, *other));
    let message = format!("`{folder}` is watched by {other_name} in the same `local_path`: let that one {way_out}");
    Some((other, "path", message))
}

/// The folders and files that a repository watches, empty for the repository's top.
fn watched_by(repository: &Repository) -> Vec<&Path> {
    if repository.watch_paths.is_empty() {
        return vec![Path::new("")];
    }
    repository.watch_paths.iter().map(PathBuf::as_path).collect()
}

/// The `watch_paths` that have all of the stack too; none where those that are given do.
fn watch_paths_to_write(repository: &Repository) -> Option<String> {
    let missing = unwatched(repository);
    let given = repository.watch_paths.iter().filter(|path| !missing.iter().any(|other| path.starts_with(other)));
    let all = given.chain(&missing).map(|path| path.display().to_string());
    (!missing.is_empty()).then(|| format!("watch_paths: [{}]", all.collect::<Vec<_>>().join(", ")))
}

/// Says of each repository whether another one has the same folder.
fn mark_sharers(candidates: &mut [Candidate], real_paths: &HashMap<PathBuf, PathBuf>) {
    let mut claims: HashMap<&Path, usize> = HashMap::new();
    for (_, _, repository) in all_repositories(candidates) {
        *claims.entry(&real_paths[&repository.local_path]).or_default() += 1;
    }
    let projects = candidates.iter_mut().filter_map(|candidate| candidate.project.as_mut());
    for repository in projects.flat_map(|project| &mut project.repositories) {
        repository.shares_local_path = claims[real_paths[&repository.local_path].as_path()] > 1;
    }
}

fn all_repositories(candidates: &[Candidate]) -> impl Iterator<Item = (usize, usize, &Repository)> {
    candidates.iter().enumerate().flat_map(|(index, candidate)| {
        let repositories = candidate.project.iter().flat_map(|project| &project.repositories);
        repositories.enumerate().map(move |(position, repository)| (index, position, repository))
    })
}

fn by_rank<'c>(left: Claim<'c>, right: Claim<'c>) -> (Claim<'c>, Claim<'c>) {
    if left.rank < right.rank { (left, right) } else { (right, left) }
}

fn collision(
    candidates: &[Candidate],
    winner: Claim<'_>,
    loser: Claim<'_>,
    field: &'static str,
    message: String,
) -> Collision {
    let problem = candidates[loser.candidate].problem(&loser.repository.name.name, field, message);
    Collision { winner: winner.candidate, loser: loser.candidate, problem }
}

fn named(candidates: &[Candidate], claim: Claim<'_>) -> String {
    format!("`{}` ({})", claim.repository.name, candidates[claim.candidate].file.display())
}

/// What Compose will call it, as far as the project file tells.
fn compose_project(repository: &Repository) -> String {
    repository.compose_project.clone().unwrap_or_else(|| repository.default_compose_project())
}

/// The path with the links in its existing part followed, so that two names of one folder are seen as one.
pub fn real_path(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|ancestor| {
        let (found, rest) = (ancestor.canonicalize().ok()?, path.strip_prefix(ancestor).ok()?);
        Some(found.components().chain(rest.components()).collect())
    });
    real.unwrap_or_else(|| path.to_owned())
}
