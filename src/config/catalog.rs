//! All project files together: what runs, and what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::collisions::{self, Candidate};
use super::environment::read_bounded;
use super::file::{self, Contents};
use super::problem::{Problem, Severity};
use super::project::{Project, Repository};
use super::settings::Settings;
use crate::model::{RepositoryId, RepositoryName};

/// A project file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Project files in the folder.
const MAX_FILES: usize = 10_000;

/// What all project files together say: what runs, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Accepted projects, by name.
    pub projects: BTreeMap<String, Project>,
    /// What is wrong, file by file.
    pub problems: Vec<Problem>,
    /// What `hosts` leaves to other machines, for `check`: `project/repository` and the hosts it is for.
    pub elsewhere: Vec<(RepositoryName, Vec<String>)>,
    /// Projects that are not among the accepted ones because their file has a problem: their records stay as they are.
    pub untouched: Vec<String>,
}

/// What the database knows of projects and repositories that were accepted before this start. Orphans do not belong in
/// here.
#[derive(Clone, Debug, Default)]
pub struct Accepted {
    /// The file that each project was last loaded from, by the project's name.
    pub files: BTreeMap<String, PathBuf>,
    /// Each repository.
    pub repositories: BTreeMap<RepositoryName, AcceptedRepository>,
}

/// What the database knows of a repository.
#[derive(Clone, Debug)]
pub struct AcceptedRepository {
    /// Its row: an older one has a smaller number.
    pub id: RepositoryId,
    /// The folder that it was accepted with.
    pub local_path: PathBuf,
    /// Its stack's folder in the repository.
    pub path: PathBuf,
    /// Its remote, as [`RemoteUrl`](crate::git::RemoteUrl) shows it.
    pub url: String,
    /// Its branch.
    pub branch: String,
}

/// What a load of the project files goes by.
pub struct Basis<'a> {
    /// The service's settings.
    pub settings: &'a Settings,
    /// What was loaded last; at the first load an empty one.
    pub previous: &'a Catalog,
    /// What was accepted before this start.
    pub accepted: &'a Accepted,
    /// How grave a name is that is not set and has no default: an error for the daemon, a warning for a `check` that
    /// cannot see the service's environment. What cannot be known is then left out of the catalog.
    pub unset_names: Severity,
}

impl Catalog {
    /// Reads every `*.yaml` and `*.yml` of a folder, in the order of their names. It never fails: what is wrong is
    /// among the problems. A file with an error keeps the version that `previous` has of it, or has no project; a
    /// folder that cannot be read changes nothing.
    pub fn load(folder: &Path, basis: &Basis<'_>) -> Catalog {
        let files = match project_files(folder) {
            Ok(files) => files,
            Err(error) => return unchanged(folder, basis, &error),
        };
        let mut catalog = Catalog::default();
        let mut candidates = Vec::new();
        let last_good = LastGood::of(basis.previous, &files);
        for path in &files {
            let mut contents = read_file(path, basis);
            catalog.elsewhere.append(&mut contents.elsewhere);
            let problems = std::mem::take(&mut contents.problems);
            let bad = problems.iter().any(|problem| problem.severity == Severity::Error);
            let fallback = last_good.version_of(path, contents.name.as_deref());
            candidates.push(Candidate::new(path, contents, bad, fallback));
            catalog.problems.extend(problems);
        }
        catalog.problems.extend(collisions::settle(&mut candidates, basis));
        catalog.problems.sort_by(|one, other| (&one.file, one.line).cmp(&(&other.file, other.line)));
        let untouched: BTreeSet<String> = candidates.iter().flat_map(|candidate| candidate.untouched(basis)).collect();
        for project in candidates.into_iter().filter_map(|candidate| candidate.project) {
            catalog.projects.insert(project.name.clone(), project);
        }
        catalog.untouched = untouched.into_iter().filter(|name| !catalog.projects.contains_key(name)).collect();
        catalog
    }

    /// An accepted repository.
    pub fn repository(&self, name: &RepositoryName) -> Option<&Repository> {
        self.projects.get(&name.project)?.repositories.iter().find(|repository| repository.name == *name)
    }

    /// All accepted repositories, by project and in the order of their files.
    pub fn repositories(&self) -> impl Iterator<Item = &Repository> {
        self.projects.values().flat_map(|project| &project.repositories)
    }
}

/// The project files of a folder, by name. Files that editors hide are none.
fn project_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        let path = folder.join(&name);
        if !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} project files")));
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, basis: &Basis<'_>) -> Contents {
    let text = read_bounded(path, MAX_FILE_BYTES)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8")));
    match text {
        Ok(text) => file::read(path, &text, basis.settings, basis.unset_names),
        Err(error) => {
            Contents { problems: vec![whole_file(path, format!("cannot be read: {error}"))], ..Contents::default() }
        }
    }
}

/// The versions that go on where a file has an error.
struct LastGood<'a> {
    by_file: BTreeMap<&'a Path, &'a Project>,
    /// Those whose file is gone: it may have been renamed.
    without_file: Vec<&'a Project>,
}

impl<'a> LastGood<'a> {
    /// `files` is sorted.
    fn of(previous: &'a Catalog, files: &[PathBuf]) -> LastGood<'a> {
        let (with_file, without_file) =
            previous.projects.values().partition::<Vec<_>, _>(|project| files.binary_search(&project.file).is_ok());
        let by_file = with_file.into_iter().map(|project| (project.file.as_path(), project)).collect();
        LastGood { by_file, without_file }
    }

    fn version_of(&self, path: &Path, name: Option<&str>) -> Option<&'a Project> {
        let renamed = || self.without_file.iter().find(|project| Some(project.name.as_str()) == name);
        self.by_file.get(path).or_else(renamed).copied()
    }
}

fn unchanged(folder: &Path, basis: &Basis<'_>, error: &io::Error) -> Catalog {
    let previous = basis.previous;
    let message = format!("cannot read the folder of project files: {error}; nothing changes until it can be read");
    let known = basis.accepted.files.keys().chain(&previous.untouched).collect::<BTreeSet<_>>();
    Catalog {
        projects: previous.projects.clone(),
        problems: vec![whole_file(folder, message)],
        elsewhere: previous.elsewhere.clone(),
        untouched: known.into_iter().filter(|name| !previous.projects.contains_key(*name)).cloned().collect(),
    }
}

fn whole_file(path: &Path, message: String) -> Problem {
    Problem { file: path.to_owned(), line: None, field: String::new(), severity: Severity::Error, message }
}
