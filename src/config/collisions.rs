//! Projects and repositories that claim the same name, folder or compose project: the one accepted first goes on, and
//! the file of the other falls back to its last good version.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::catalog::Basis;
use super::fields::Place;
use super::file::Contents;
use super::problem::{Problem, Severity};
use super::project::{Project, Repository};
use super::reader::joined;
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

/// Takes candidates out, or back to their last good version, until nothing collides.
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
const HELD_BEFORE_START: u8 = 1;
const NEW: u8 = 2;

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
    for (index, position, repository) in all_repositories(candidates) {
        let held = basis.previous.repository(&repository.name);
        let record = basis.accepted.repositories.get(&repository.name);
        let id = record.map_or(RepositoryId::MAX, |record| record.id);
        let claim = |class| Claim { candidate: index, repository, rank: (class, id, index, position) };

        let holds_folder = held.is_some_and(|held| held.local_path == repository.local_path);
        let held_folder = record.is_some_and(|record| record.local_path == repository.local_path);
        let class = match (holds_folder, held_folder) {
            (true, _) => HELD_NOW,
            (false, true) => HELD_BEFORE_START,
            (false, false) => NEW,
        };
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

/// The same folder twice, or one in another. Sorted by components, what lies in a folder follows it directly.
fn same_folders(candidates: &[Candidate], mut folders: Vec<(PathBuf, Claim<'_>)>) -> Vec<Collision> {
    folders.sort_by(|(left, _), (right, _)| left.cmp(right));
    let mut found = Vec::new();
    // The folders that the current one lies in, the nearest last.
    let mut around: Vec<(PathBuf, Claim<'_>)> = Vec::new();
    for (path, inner) in folders {
        while around.last().is_some_and(|(outer_path, _)| !path.starts_with(outer_path)) {
            around.pop();
        }
        if let Some((outer_path, outer)) = around.last() {
            let (winner, loser) = by_rank(*outer, inner);
            let message = folder_message(candidates, winner, loser, *outer_path == path, loser.rank == inner.rank);
            found.push(collision(candidates, winner, loser, "local_path", message));
        }
        around.push((path, inner));
    }
    found
}

fn folder_message(candidates: &[Candidate], winner: Claim<'_>, loser: Claim<'_>, same: bool, inside: bool) -> String {
    let other = named(candidates, winner);
    let folder = loser.repository.local_path.display();
    let one_checkout =
        winner.repository.url == loser.repository.url && winner.repository.branch == loser.repository.branch;
    if !same {
        let relation = if inside { "lies in" } else { "holds" };
        let others = winner.repository.local_path.display();
        format!("`{folder}` {relation} `{others}`, the folder of {other}; choose one apart from it")
    } else if one_checkout {
        format!(
            "`{folder}` is the folder of {other} too, and sharing one is not supported by this version yet; give each \
             repository a folder of its own"
        )
    } else {
        format!("`{folder}` is the folder of {other} too; give each repository a folder of its own")
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
pub(super) fn real_path(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|ancestor| Some(ancestor.canonicalize().ok()?.join(path.strip_prefix(ancestor).ok()?)))
        .unwrap_or_else(|| path.to_owned())
}
