//! Projects and repositories that claim the same name, folder or compose project: the one accepted first goes on, and the file of the
//! other falls back to its last good version.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::catalog::Basis;
use super::fields::Place;
use super::file::Contents;
use super::problem::{Problem, Severity};
use super::project::{Project, Repository};
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

    fn problem(&self, repository: &str, field: &'static str, message: String) -> Problem {
        let place = self.places.get(&(repository.to_owned(), field));
        Problem {
            file: self.file.clone(),
            line: place.map(|place| place.line),
            field: place.map_or_else(|| field.to_owned(), |place| place.field.clone()),
            severity: Severity::Error,
            message,
        }
    }
}

/// Takes candidates out, or back to their last good version, until nothing collides.
pub(super) fn settle(candidates: &mut [Candidate], basis: &Basis<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut real_paths = HashMap::new();
    // Each round demotes one candidate, and a candidate can be demoted twice at most.
    while let Some((loser, problem)) = first_collision(candidates, basis, &mut real_paths) {
        candidates[loser].demote();
        problems.push(problem);
    }
    problems
}

/// Who goes on: the smaller. Held already, then accepted before this start, then the older record, then the earlier file and place.
type Rank = (u8, RepositoryId, usize, usize);

const HELD_NOW: u8 = 0;
const HELD_BEFORE_START: u8 = 1;
const NEW: u8 = 2;

/// A repository's claim to a folder or a compose project.
#[derive(Clone, Copy)]
struct Claim<'c> {
    candidate: usize,
    repository: &'c Repository,
    rank: Rank,
}

fn first_collision(
    candidates: &[Candidate],
    basis: &Basis<'_>,
    real_paths: &mut HashMap<PathBuf, PathBuf>,
) -> Option<(usize, Problem)> {
    if let Some(found) = same_project(candidates, basis) {
        return Some(found);
    }
    let mut folders = Vec::new();
    let mut compose_projects: HashMap<String, Claim<'_>> = HashMap::new();
    for (index, position, repository) in all_repositories(candidates) {
        let held = basis.previous.repository(&repository.name);
        let record = basis.accepted.repositories.get(&repository.name);
        let id = record.map_or(RepositoryId::MAX, |record| record.id);
        let claim = |class| Claim { candidate: index, repository, rank: (class, id, index, position) };

        let holds_folder = held.is_some_and(|held| held.local_path == repository.local_path);
        let held_folder = record.is_some_and(|record| record.local_path == repository.local_path);
        let class = if holds_folder {
            HELD_NOW
        } else if held_folder {
            HELD_BEFORE_START
        } else {
            NEW
        };
        let real = real_paths.entry(repository.local_path.clone()).or_insert_with(|| real_path(&repository.local_path));
        folders.push((real.clone(), claim(class)));

        let project = compose_project(repository);
        let class = if held.is_some_and(|held| compose_project(held) == project) { HELD_NOW } else { NEW };
        if let Some(other) = compose_projects.insert(project.clone(), claim(class)) {
            let (winner, loser) = by_rank(other, claim(class));
            let message = format!(
                "compose project `{project}` is that of {} too; set `compose_project` on one of them",
                named(candidates, winner)
            );
            return Some(refused(candidates, loser, "compose_project", message));
        }
    }
    same_folder(candidates, folders)
}

fn same_project(candidates: &[Candidate], basis: &Basis<'_>) -> Option<(usize, Problem)> {
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
        if let Some(other) = names.insert(&project.name, this) {
            let (winner, loser) = (other.min(this).1, other.max(this).1);
            let message = format!(
                "the project `{}` is in {} already; choose another name, or merge the two files",
                project.name,
                candidates[winner].file.display()
            );
            return Some((loser, candidates[loser].problem("", "project", message)));
        }
    }
    None
}

/// The same folder twice, or one in another. Sorted by components, what lies in a folder follows it directly.
fn same_folder(candidates: &[Candidate], mut folders: Vec<(PathBuf, Claim<'_>)>) -> Option<(usize, Problem)> {
    folders.sort_by(|(left, _), (right, _)| left.cmp(right));
    for pair in folders.windows(2) {
        let [(outer_path, outer), (inner_path, inner)] = pair else {
            continue;
        };
        if !inner_path.starts_with(outer_path) {
            continue;
        }
        let (winner, loser) = by_rank(*outer, *inner);
        let other = named(candidates, winner);
        let (outer_url, inner_url) = (&outer.repository.url, &inner.repository.url);
        let message = if outer_path != inner_path {
            let relation = if loser.rank == inner.rank { "lies in" } else { "holds" };
            let folder = winner.repository.local_path.display();
            format!("this folder {relation} `{folder}`, that of {other}; choose one apart from it")
        } else if outer_url == inner_url && outer.repository.branch == inner.repository.branch {
            format!("shared with {other}, which is not supported by this version yet; give each a folder of its own")
        } else {
            format!("the folder of {other} too; give each repository a folder of its own")
        };
        return Some(refused(candidates, loser, "local_path", message));
    }
    None
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

fn refused(candidates: &[Candidate], loser: Claim<'_>, field: &'static str, message: String) -> (usize, Problem) {
    let name = &loser.repository.name;
    let mut problem = candidates[loser.candidate].problem(&name.name, field, message);
    if problem.line.is_none() {
        problem.field = format!("repositories.{}.{field}", name.name);
    }
    (loser.candidate, problem)
}

fn named(candidates: &[Candidate], claim: Claim<'_>) -> String {
    format!("`{}` ({})", claim.repository.name, candidates[claim.candidate].file.display())
}

/// What Compose will call it, as far as the project file tells.
fn compose_project(repository: &Repository) -> String {
    repository.compose_project.clone().unwrap_or_else(|| repository.default_compose_project())
}

/// The path with the links in its existing part followed, so that two names of one folder are seen as one.
fn real_path(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|ancestor| Some(ancestor.canonicalize().ok()?.join(path.strip_prefix(ancestor).ok()?)))
        .unwrap_or_else(|| path.to_owned())
}
