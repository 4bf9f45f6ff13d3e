//! What the tests of the store share.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use tempfile::TempDir;

use super::{BroughtUp, Found, Outcome, ProjectSpec, Queued, RepositorySpec, Store, StoreError, open};
use crate::model::{
    Asked, Chance, Commit, CommitHash, DeploymentId, DeploymentRecord, RepositoryId, RepositoryName, RepositoryRecord,
    Trigger,
};

pub(super) const NOTHING: Asked = Asked { pull: false, recreate: false, adopt: false, commit: None };
pub(super) const PULL: Asked = Asked { pull: true, recreate: false, adopt: false, commit: None };
pub(super) const RECREATE: Asked = Asked { pull: false, recreate: true, adopt: false, commit: None };

/// An earlier commit of the branch, instead of its tip.
pub(super) fn earlier(number: u32) -> Asked {
    Asked { commit: Some((&hash(number)).into()), ..NOTHING }
}

/// A store of its own, with the project `home` and its repositories `media` and `web`.
pub(super) struct Scene {
    pub store: Store,
    pub folder: TempDir,
}

pub(super) fn scene() -> Scene {
    scene_with(&[home(&["media", "web"])], 200)
}

pub(super) fn scene_with(projects: &[ProjectSpec], history_limit: u32) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), history_limit).unwrap();
    store.sync(projects, &[], at(0)).unwrap();
    Scene { store, folder }
}

impl Scene {
    pub(super) fn record(&self, name: &str) -> RepositoryRecord {
        let name = RepositoryName { project: "home".to_owned(), name: name.to_owned() };
        self.store.repository_named(&name).unwrap().unwrap()
    }

    pub(super) fn id(&self, name: &str) -> RepositoryId {
        self.record(name).id
    }

    pub(super) fn deployment(&self, id: DeploymentId) -> DeploymentRecord {
        self.store.deployment(id).unwrap().unwrap()
    }

    pub(super) fn enqueue(&self, name: &str, trigger: Trigger, asked: Asked, seconds: i64) -> DeploymentId {
        self.store.enqueue(self.id(name), trigger, asked, at(seconds)).unwrap().deployment_id
    }

    /// A check from its question to its answer; what it queued.
    pub(super) fn check_found(
        &self,
        id: RepositoryId,
        tip: &CommitHash,
        now: Timestamp,
    ) -> Result<Option<Queued>, StoreError> {
        match self.store.check_found(self.store.check_begins(id), tip, true, now)? {
            Found::Queued(queued) => Ok(Some(queued)),
            Found::Nothing => Ok(None),
            Found::Outdated => panic!("nothing was fetched between question and answer"),
        }
    }

    /// Starts a pending row, with the commit `number` checked out.
    pub(super) fn start(&self, id: DeploymentId, number: u32, seconds: i64) {
        self.store.start(id, "configuration 1", at(seconds)).unwrap();
        self.store.checked_out(id, &commit(number), &hash(number)).unwrap();
    }

    pub(super) fn finish(&self, id: DeploymentId, outcome: &Outcome, seconds: i64) {
        self.store.finish(id, outcome, at(seconds)).unwrap();
    }

    /// A deployment from its trigger to its end.
    pub(super) fn deploy(&self, name: &str, number: u32, outcome: &Outcome, seconds: i64) -> DeploymentId {
        let id = self.enqueue(name, Trigger::Api, NOTHING, seconds);
        self.start(id, number, seconds);
        self.finish(id, outcome, seconds);
        id
    }

    /// What a `kill -9` at this moment leaves, opened again.
    pub(super) fn killed(&self) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        copy_files(self.folder.path(), folder.path());
        let store = Store::open(folder.path(), 200).unwrap();
        Scene { store, folder }
    }

    /// Another connection to the database, as an administrator's shell would be.
    pub(super) fn shell(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.folder.path().join(open::DATABASE_FILE)).unwrap()
    }
}

/// Enqueues what is due, starts it, and answers its id and its number of the try.
pub(super) fn next_try(scene: &Scene, seconds: i64) -> DeploymentId {
    let queued = scene.store.enqueue_due_retries(at(seconds)).unwrap();
    assert_eq!(queued.len(), 1, "one retry is due");
    scene.start(queued[0].deployment_id, 1, seconds);
    queued[0].deployment_id
}

pub(super) fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_768_000_000 + seconds).unwrap()
}

pub(super) fn hash(number: u32) -> CommitHash {
    format!("{number:040x}").parse().unwrap()
}

pub(super) fn commit(number: u32) -> Commit {
    Commit { hash: hash(number), subject: format!("Change {number}"), author: "Ada".to_owned() }
}

pub(super) fn home(repositories: &[&str]) -> ProjectSpec {
    project("home", repositories)
}

pub(super) fn project(name: &str, repositories: &[&str]) -> ProjectSpec {
    ProjectSpec {
        name: name.to_owned(),
        description: None,
        config_file: format!("/config/projects/{name}.yaml"),
        repositories: repositories.iter().map(|repository| spec(name, repository)).collect(),
    }
}

fn spec(project: &str, name: &str) -> RepositorySpec {
    RepositorySpec {
        name: name.to_owned(),
        git_url: format!("https://git.example.com/{project}/{name}.git"),
        branch: "main".to_owned(),
        path: "./".to_owned(),
        local_path: format!("/deployments/{project}/{name}"),
        check_interval_seconds: 300,
        is_manual: false,
        config_hash: "configuration 1".to_owned(),
    }
}

/// Makes a repository of a project one whose commits are deployed only when somebody asks.
pub(super) fn manual(mut project: ProjectSpec, name: &str) -> ProjectSpec {
    for repository in project.repositories.iter_mut().filter(|repository| repository.name == name) {
        repository.is_manual = true;
    }
    project
}

pub(super) fn brought_up(compose_project: &str, services: &[&str], volumes: &[&str]) -> BroughtUp {
    BroughtUp {
        compose_project: compose_project.to_owned(),
        folder: format!("/deployments/home/{compose_project}").into(),
        services: names(services),
        volumes: names(volumes),
    }
}

pub(super) fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(super) fn skipped() -> Outcome {
    Outcome::Skipped { reason: "nothing under watch_paths changed".to_owned() }
}

pub(super) fn superseded(error: &str) -> Outcome {
    Outcome::Superseded { error: error.to_owned() }
}

pub(super) fn cancelled(error: &str) -> Outcome {
    Outcome::Cancelled { error: error.to_owned() }
}

pub(super) fn failed(error: &str) -> Outcome {
    Outcome::Failed { error: error.to_owned(), chance: Chance::Final }
}

pub(super) fn can_pass(error: &str) -> Outcome {
    Outcome::Failed { error: error.to_owned(), chance: Chance::CanPass }
}

/// How SQLite would run a statement, one step a line.
pub(super) fn plan(connection: &rusqlite::Connection, sql: &str) -> String {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let values = vec![rusqlite::types::Null; statement.parameter_count()];
    let steps = statement.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
    steps.map(|step| step.unwrap() + "\n").collect()
}
