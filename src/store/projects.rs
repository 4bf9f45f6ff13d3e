//! The records of projects and repositories, kept in step with the project files.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, Row, Transaction, params};

use super::changes::Change;
use super::manual::{queue_configuration, set_waiting};
use super::rows::{
    DEPLOYMENT_COLUMNS, deployment, json, last_outcome_of, optional_time, optional_word, stored, time, word,
};
use super::stack::SoFar;
use super::{ProjectSpec, RepositorySpec, Store, StoreError};
use crate::model::{ProjectRecord, RepositoryId, RepositoryName, RepositoryRecord, Status, Trigger};

/// Of a repository `r`: its configuration is not the one that its last started deployment had. Not so where there was
/// none.
pub(super) const CONFIGURATION_CHANGED: &str = "r.config_hash <> (SELECT d.config_hash FROM deployments d INDEXED BY deployments_by_repository \
     WHERE d.repository_id = r.id AND d.started_at IS NOT NULL ORDER BY d.id DESC LIMIT 1)";

impl Store {
    /// Makes the records agree with the accepted projects, in one transaction: new ones are made, changed ones updated,
    /// ones that no file names any more become orphans (their pending rows end `failed: orphaned`), returning ones stop
    /// being orphans. Projects in `untouched` (their file has a problem and no good version is known) keep their
    /// records as they are. Writes nothing when nothing changed.
    ///
    /// # Errors
    /// SQLite's; nothing is changed then.
    pub fn sync(&self, projects: &[ProjectSpec], untouched: &[String], now: Timestamp) -> Result<(), StoreError> {
        let (changed, orphaned) = self.promise(|transaction| {
            let mut known = known_projects(transaction)?;
            let mut changed = false;
            for spec in projects {
                changed |= sync_project(transaction, spec, known.remove(&spec.name), now)?;
            }
            for (name, project) in known {
                if !untouched.contains(&name) {
                    changed |= orphan_project(transaction, &project, now)?;
                }
            }
            let orphaned = if changed { end_pending_of_orphans(transaction, now)? } else { Vec::new() };
            Ok((changed, orphaned))
        })?;
        for trigger in orphaned {
            self.metrics.deployment_ended(trigger, Status::Failed, None);
        }
        if changed {
            self.changes.publish(&[Change::Projects]);
        }
        Ok(())
    }

    /// Repositories whose configuration differs from the one that their last started deployment had (keyed hash);
    /// never-deployed ones are not among them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn changed_configurations(&self) -> Result<Vec<RepositoryId>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT r.id FROM repositories r WHERE r.orphaned_at IS NULL AND {CONFIGURATION_CHANGED} ORDER BY r.id"
            ))?;
            let ids = statement.query_map([], |row| row.get(0))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })
    }

    /// All projects, by name; also those whose repositories are all orphans.
    ///
    /// # Errors
    /// SQLite's.
    pub fn projects(&self) -> Result<Vec<ProjectRecord>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT p.id, p.name, p.description, p.config_file, p.created_at, \
                 (SELECT count(*) FROM repositories r WHERE r.project_id = p.id) FROM projects p ORDER BY p.name",
            )?;
            let projects = statement.query_map([], |row| {
                Ok(ProjectRecord {
                    id: row.get(0)?,
                    name: row.get(1)?,
                    description: row.get(2)?,
                    config_file: row.get(3)?,
                    created_at: time(row, 4)?,
                    repositories: row.get(5)?,
                })
            })?;
            Ok(projects.collect::<Result<_, _>>()?)
        })
    }

    /// All repositories, by project and name, or those of one project.
    ///
    /// # Errors
    /// SQLite's.
    pub fn repositories(&self, project: Option<&str>) -> Result<Vec<RepositoryRecord>, StoreError> {
        let mut records = self.read(|connection| match project {
            Some(project) => select_repositories(connection, "WHERE p.name = ?1 ORDER BY r.name", [project]),
            None => select_repositories(connection, "ORDER BY p.name, r.name", []),
        })?;
        self.checks.complete(&mut records);
        Ok(records)
    }

    /// One repository by id.
    ///
    /// # Errors
    /// SQLite's.
    pub fn repository(&self, id: RepositoryId) -> Result<Option<RepositoryRecord>, StoreError> {
        let mut records = self.read(|connection| select_repositories(connection, "WHERE r.id = ?1", [id]))?;
        self.checks.complete(&mut records);
        Ok(records.pop())
    }

    /// One repository by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn repository_named(&self, name: &RepositoryName) -> Result<Option<RepositoryRecord>, StoreError> {
        let mut records = self.read(|connection| {
            select_repositories(connection, "WHERE p.name = ?1 AND r.name = ?2", [&name.project, &name.name])
        })?;
        self.checks.complete(&mut records);
        Ok(records.pop())
    }
}

/// The repositories that `rest` selects, with their newest deployment. A pending row is always the newest of its
/// repository, because no other can be made while it is there: so only a running one needs a look of its own.
pub(super) fn select_repositories(
    connection: &Connection,
    rest: &str,
    values: impl rusqlite::Params,
) -> Result<Vec<RepositoryRecord>, StoreError> {
    let mut statement = connection.prepare_cached(&repositories_sql(rest))?;
    let records = statement.query_map(values, repository)?;
    Ok(records.collect::<Result<_, _>>()?)
}

fn repositories_sql(rest: &str) -> String {
    format!(
        "SELECT r.id, p.name, r.name, r.git_url, r.branch, r.path, r.local_path, r.check_interval, r.last_commit_hash, \
         r.observed_commit, r.checked_out_commit, r.compose_project, r.up_folder, r.last_checked_at, r.last_error, \
         r.failing_since, r.orphaned_at, r.retry_at, r.created_at, r.brought_up, r.accepted, \
         r.is_manual, r.waiting, \
         CASE WHEN EXISTS (SELECT 1 FROM deployments WHERE repository_id = r.id AND status = 'running') THEN 'running' \
         WHEN d.status = 'skipped' THEN (SELECT status FROM deployments WHERE id = {last_outcome}) ELSE d.status END, \
         {DEPLOYMENT_COLUMNS} \
         FROM repositories r JOIN projects p ON p.id = r.project_id LEFT JOIN deployments d \
         ON d.id = (SELECT max(id) FROM deployments WHERE repository_id = r.id) {rest}",
        last_outcome = last_outcome_of("r.id"),
    )
}

fn repository(row: &Row) -> rusqlite::Result<RepositoryRecord> {
    let last_deployment = match row.get::<_, Option<i64>>(24)? {
        Some(_) => Some(deployment(row, 24)?),
        None => None,
    };
    let brought_up: SoFar = json(row, 19)?;
    Ok(RepositoryRecord {
        id: row.get(0)?,
        name: RepositoryName { project: row.get(1)?, name: row.get(2)? },
        git_url: row.get(3)?,
        branch: row.get(4)?,
        path: row.get(5)?,
        local_path: row.get(6)?,
        check_interval_seconds: row.get(7)?,
        last_commit_hash: optional_word(row, 8)?,
        observed_commit: optional_word(row, 9)?,
        checked_out_commit: optional_word(row, 10)?,
        compose_project: row.get(11)?,
        up_folder: row.get(12)?,
        last_checked_at: optional_time(row, 13)?,
        next_check_at: None,
        last_error: row.get(14)?,
        failing_since: optional_time(row, 15)?,
        orphaned_at: optional_time(row, 16)?,
        retry_at: optional_time(row, 17)?,
        created_at: time(row, 18)?,
        brought_up_services: brought_up.services,
        brought_up_volumes: brought_up.volumes,
        accepted: json(row, 20)?,
        is_manual: row.get(21)?,
        waiting: row.get(22)?,
        status: optional_word(row, 23)?,
        last_deployment,
    })
}

struct KnownProject {
    id: i64,
    description: Option<String>,
    config_file: String,
    is_orphan: bool,
    repositories: HashMap<String, KnownRepository>,
}

struct KnownRepository {
    id: RepositoryId,
    spec: RepositorySpec,
    is_orphan: bool,
    waiting: bool,
}

fn known_projects(transaction: &Transaction) -> Result<HashMap<String, KnownProject>, StoreError> {
    let mut repositories: HashMap<i64, HashMap<String, KnownRepository>> = HashMap::new();
    let mut statement = transaction.prepare_cached(
        "SELECT project_id, id, name, git_url, branch, path, local_path, check_interval, config_hash, \
         is_manual, waiting, orphaned_at IS NOT NULL FROM repositories",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let spec = RepositorySpec {
            name: row.get(2)?,
            git_url: row.get(3)?,
            branch: row.get(4)?,
            path: row.get(5)?,
            local_path: row.get(6)?,
            check_interval_seconds: row.get(7)?,
            config_hash: row.get(8)?,
            is_manual: row.get(9)?,
        };
        let known = KnownRepository { id: row.get(1)?, waiting: row.get(10)?, is_orphan: row.get(11)?, spec };
        repositories.entry(row.get(0)?).or_default().insert(known.spec.name.clone(), known);
    }
    let mut statement = transaction
        .prepare_cached("SELECT id, name, description, config_file, orphaned_at IS NOT NULL FROM projects")?;
    let projects = statement.query_map([], |row| {
        let id = row.get(0)?;
        let project = KnownProject {
            id,
            description: row.get(2)?,
            config_file: row.get(3)?,
            is_orphan: row.get(4)?,
            repositories: repositories.remove(&id).unwrap_or_default(),
        };
        Ok((row.get(1)?, project))
    })?;
    Ok(projects.collect::<Result<_, _>>()?)
}

/// Answers whether anything was written.
fn sync_project(
    transaction: &Transaction,
    spec: &ProjectSpec,
    known: Option<KnownProject>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let mut changed = known.is_none();
    let (project_id, mut repositories) = match known {
        None => {
            transaction.execute(
                "INSERT INTO projects (name, description, config_file, created_at) VALUES (?1, ?2, ?3, ?4)",
                params![spec.name, spec.description, spec.config_file, stored(now)],
            )?;
            (transaction.last_insert_rowid(), HashMap::new())
        }
        Some(known) => {
            if known.is_orphan || known.description != spec.description || known.config_file != spec.config_file {
                transaction.execute(
                    "UPDATE projects SET description = ?2, config_file = ?3, orphaned_at = NULL WHERE id = ?1",
                    params![known.id, spec.description, spec.config_file],
                )?;
                changed = true;
            }
            (known.id, known.repositories)
        }
    };
    for repository in &spec.repositories {
        match repositories.remove(&repository.name) {
            None => insert_repository(transaction, project_id, repository, now)?,
            Some(known) if known.is_orphan || known.spec != *repository => {
                update_repository(transaction, &known, repository, now)?;
            }
            Some(_) => continue,
        }
        changed = true;
    }
    for known in repositories.values().filter(|known| !known.is_orphan) {
        orphan_repository(transaction, known.id, now)?;
        changed = true;
    }
    Ok(changed)
}

fn insert_repository(
    transaction: &Transaction,
    project_id: i64,
    spec: &RepositorySpec,
    now: Timestamp,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO repositories (project_id, name, git_url, branch, path, local_path, check_interval, config_hash, \
             is_manual, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            project_id,
            spec.name,
            spec.git_url,
            spec.branch,
            spec.path,
            spec.local_path,
            spec.check_interval_seconds,
            spec.config_hash,
            spec.is_manual,
            stored(now)
        ])?;
    Ok(())
}

fn update_repository(
    transaction: &Transaction,
    known: &KnownRepository,
    spec: &RepositorySpec,
    now: Timestamp,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "UPDATE repositories SET git_url = ?2, branch = ?3, path = ?4, local_path = ?5, check_interval = ?6, \
             config_hash = ?7, is_manual = ?8, orphaned_at = NULL WHERE id = ?1",
        )?
        .execute(params![
            known.id,
            spec.git_url,
            spec.branch,
            spec.path,
            spec.local_path,
            spec.check_interval_seconds,
            spec.config_hash,
            spec.is_manual
        ])?;
    // What nobody has asked for yet needs no asking any more.
    if known.waiting && !spec.is_manual {
        set_waiting(transaction, known.id, false)?;
        queue_configuration(transaction, known.id, now)?;
    }
    // What the checks found is about another branch, or about a row that was dropped when the repository became an
    // orphan: the next check looks afresh.
    if known.is_orphan || known.spec.git_url != spec.git_url || known.spec.branch != spec.branch {
        transaction.execute(
            "UPDATE repositories SET observed_commit = NULL, waiting = 0, last_error = NULL, failing_since = NULL, \
             failing_told = 0 WHERE id = ?1",
            [known.id],
        )?;
    }
    Ok(())
}

/// Answers whether anything was written.
fn orphan_project(transaction: &Transaction, known: &KnownProject, now: Timestamp) -> Result<bool, StoreError> {
    if known.repositories.is_empty() {
        transaction.execute("DELETE FROM projects WHERE id = ?1", [known.id])?;
        return Ok(true);
    }
    if !known.is_orphan {
        transaction.execute("UPDATE projects SET orphaned_at = ?2 WHERE id = ?1", params![known.id, stored(now)])?;
    }
    let mut changed = !known.is_orphan;
    for repository in known.repositories.values().filter(|repository| !repository.is_orphan) {
        orphan_repository(transaction, repository.id, now)?;
        changed = true;
    }
    Ok(changed)
}

fn orphan_repository(transaction: &Transaction, id: RepositoryId, now: Timestamp) -> Result<(), StoreError> {
    transaction.execute(
        "UPDATE repositories SET orphaned_at = ?2, retry_at = NULL, retry_of = NULL, waiting = 0 WHERE id = ?1",
        params![id, stored(now)],
    )?;
    Ok(())
}

/// What became an orphan is not deployed any more. Answers what had triggered each.
fn end_pending_of_orphans(transaction: &Transaction, now: Timestamp) -> Result<Vec<Trigger>, StoreError> {
    let mut statement = transaction.prepare_cached(
        "UPDATE deployments SET status = 'failed', ending = 'orphaned', finished_at = ?1, told_at = ?1, \
         error = 'orphaned: no project file names this repository any more' \
         WHERE status = 'pending' AND repository_id IN (SELECT id FROM repositories WHERE orphaned_at IS NOT NULL) \
         RETURNING \"trigger\"",
    )?;
    let triggers = statement.query_map([stored(now)], |row| word(row, 0))?;
    Ok(triggers.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, Scene, at, can_pass, failed, hash, home, plan, project, scene, scene_with};
    use super::super::{DeploymentFilter, Outcome};
    use super::*;

    fn names(scene: &Scene, project: Option<&str>) -> Vec<String> {
        scene.store.repositories(project).unwrap().iter().map(|record| record.name.to_string()).collect()
    }

    /// What a connection sees of the commits of others: the same number as long as nobody wrote.
    fn data_version(shell: &rusqlite::Connection) -> i64 {
        shell.pragma_query_value(None, "data_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn records_follow_the_files() {
        let scene = scene_with(&[project("work", &["site"]), home(&["web", "media"])], 200);
        let projects = scene.store.projects().unwrap();
        assert_eq!(projects.iter().map(|project| project.name.as_str()).collect::<Vec<_>>(), ["home", "work"]);
        assert_eq!((projects[0].repositories, projects[0].created_at), (2, at(0)));
        assert_eq!(names(&scene, None), ["home/media", "home/web", "work/site"]);
        assert_eq!(names(&scene, Some("home")), ["home/media", "home/web"]);
        assert!(names(&scene, Some("nobody")).is_empty());
        let record = scene.record("media");
        assert_eq!(record.git_url, "https://git.example.com/home/media.git");
        assert_eq!((record.check_interval_seconds, record.created_at), (300, at(0)));
        assert_eq!((record.status, record.last_deployment.is_some()), (None, false));
        assert_eq!(scene.store.repository(record.id).unwrap().unwrap().name, record.name);
        assert_eq!(scene.store.repository(99).unwrap(), None);

        let mut changed = home(&["web", "media", "new"]);
        changed.description = Some("Services".to_owned());
        changed.config_file = "/config/projects/other.yaml".to_owned();
        changed.repositories[1].check_interval_seconds = 60;
        scene.store.sync(&[changed, project("work", &["site"])], &[], at(5)).unwrap();
        let projects = scene.store.projects().unwrap();
        assert_eq!(projects[0].description.as_deref(), Some("Services"));
        assert_eq!(projects[0].config_file, "/config/projects/other.yaml");
        assert_eq!((projects[0].repositories, projects[0].created_at), (3, at(0)));
        assert_eq!(scene.record("media").check_interval_seconds, 60);
        assert_eq!(scene.record("media").id, record.id);
        assert_eq!(scene.record("new").created_at, at(5));
    }

    #[test]
    fn a_sync_that_changes_nothing_writes_nothing() {
        let scene = scene();
        let shell = scene.shell();
        let (version, seen) = (data_version(&shell), scene.store.change_seen());
        scene.store.sync(&[home(&["media", "web"])], &[], at(9)).unwrap();
        assert_eq!((data_version(&shell), scene.store.change_seen()), (version, seen));
        scene.store.sync(&[home(&["media"])], &[], at(9)).unwrap();
        assert_ne!(data_version(&shell), version);
        let version = data_version(&shell);
        scene.store.sync(&[home(&["media"])], &[], at(10)).unwrap();
        assert_eq!(data_version(&shell), version, "an orphan stays one");
        assert_eq!(scene.record("web").orphaned_at, Some(at(9)));
    }

    #[test]
    fn an_orphan_loses_its_pending_row_and_its_retry_and_keeps_its_history() {
        let scene = scene();
        let pending = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.deploy("web", 1, &can_pass("network"), 2);
        scene.store.sync(&[], &["work".to_owned()], at(3)).unwrap();
        let row = scene.deployment(pending);
        assert_eq!((row.status, row.finished_at), (Status::Failed, Some(at(3))));
        assert!(row.error.unwrap().starts_with("orphaned: "));
        let web = scene.record("web");
        assert_eq!((web.orphaned_at, web.retry_at, web.status), (Some(at(3)), None, Some(Status::Failed)));
        assert_eq!(scene.store.projects().unwrap().len(), 1);
        assert!(scene.store.pending().unwrap().is_empty());
    }

    #[test]
    fn a_project_whose_file_has_a_problem_stays_as_it_is() {
        let scene = scene_with(&[home(&["media"]), project("work", &["site"])], 200);
        let pending = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.store.sync(&[project("work", &["site"])], &["home".to_owned()], at(2)).unwrap();
        assert_eq!(scene.record("media").orphaned_at, None);
        assert_eq!(scene.deployment(pending).status, Status::Pending);
    }

    #[test]
    fn a_returning_orphan_is_checked_afresh() {
        let scene = scene();
        let id = scene.id("media");
        scene.check_found(id, &hash(1), at(1)).unwrap().unwrap();
        scene.store.sync(&[home(&["web"])], &[], at(2)).unwrap();
        scene.store.sync(&[home(&["web", "media"])], &[], at(3)).unwrap();
        let record = scene.record("media");
        assert_eq!((record.id, record.orphaned_at, record.observed_commit), (id, None, None));
        assert!(scene.check_found(id, &hash(1), at(4)).unwrap().is_some(), "its commit was never deployed");
        scene.store.sync(&[], &[], at(5)).unwrap();
        scene.store.sync(&[home(&["web", "media"])], &[], at(6)).unwrap();
        assert!(matches!(scene.store.prune(&[id]), Err(StoreError::Refused(_))));
        assert_eq!(scene.store.projects().unwrap()[0].repositories, 2);
    }

    #[test]
    fn another_branch_forgets_what_the_checks_of_the_old_one_found() {
        let scene = scene();
        let id = scene.id("media");
        scene.deploy("media", 1, &Outcome::Success, 1);
        scene.store.check_failed(id, "no such branch", at(2)).unwrap();
        let mut changed = home(&["media", "web"]);
        changed.repositories[0].path = "docker/".to_owned();
        scene.store.sync(std::slice::from_ref(&changed), &[], at(3)).unwrap();
        assert!(scene.record("media").last_error.is_some());
        changed.repositories[0].branch = "production".to_owned();
        scene.store.sync(&[changed], &[], at(4)).unwrap();
        let record = scene.record("media");
        assert_eq!((record.last_error, record.failing_since, record.observed_commit), (None, None, None));
        assert_eq!(record.last_commit_hash, Some(hash(1)));
    }

    #[test]
    fn a_changed_configuration_is_seen_until_a_deployment_started_with_it() {
        let scene = scene();
        let id = scene.id("media");
        let mut changed = home(&["media", "web"]);
        for repository in &mut changed.repositories {
            repository.config_hash = "configuration 2".to_owned();
        }
        assert!(scene.store.changed_configurations().unwrap().is_empty());
        scene.deploy("media", 1, &failed("unhealthy"), 1);
        assert!(scene.store.changed_configurations().unwrap().is_empty());
        scene.store.sync(&[changed], &[], at(2)).unwrap();
        assert_eq!(scene.store.changed_configurations().unwrap(), [id], "web was never deployed");
        let pending = scene.enqueue("media", Trigger::Config, NOTHING, 3);
        assert_eq!(scene.store.changed_configurations().unwrap(), [id]);
        scene.store.start(pending, "configuration 2", at(4)).unwrap();
        assert!(scene.store.changed_configurations().unwrap().is_empty());
        scene.store.sync(&[home(&["web"])], &[], at(5)).unwrap();
        assert!(scene.store.changed_configurations().unwrap().is_empty());
    }

    #[test]
    fn a_project_without_repositories_goes_with_its_file() {
        let scene = scene_with(&[project("empty", &[]), home(&["media"])], 200);
        assert_eq!(scene.store.projects().unwrap().len(), 2);
        scene.store.prune(&[]).unwrap();
        assert_eq!(scene.store.projects().unwrap().len(), 2);
        scene.store.sync(&[home(&["media"])], &[], at(1)).unwrap();
        assert_eq!(scene.store.projects().unwrap().len(), 1);
    }

    #[test]
    fn the_status_is_that_of_what_goes_on_or_of_the_last_that_was_not_skipped() {
        let scene = scene();
        let status = || scene.record("media").status;
        assert_eq!(status(), None);
        let good = scene.deploy("media", 1, &Outcome::Success, 1);
        assert_eq!(status(), Some(Status::Success));
        let bad = scene.deploy("media", 2, &failed("unhealthy"), 2);
        assert_eq!(status(), Some(Status::Failed));
        scene.shell().execute("UPDATE deployments SET status = 'skipped' WHERE id = ?1", [bad]).unwrap();
        assert_eq!(status(), Some(Status::Success));
        let record = scene.record("media");
        assert_eq!(record.last_deployment.unwrap().status, Status::Skipped);
        assert_eq!(scene.store.last_outcome(record.id).unwrap().unwrap().id, good);
        scene.shell().execute("UPDATE deployments SET status = 'skipped' WHERE id = ?1", [good]).unwrap();
        assert_eq!(status(), None);
        assert_eq!(scene.store.last_outcome(record.id).unwrap(), None);
        let next = scene.enqueue("media", Trigger::Api, NOTHING, 3);
        assert_eq!(status(), Some(Status::Pending));
        scene.start(next, 3, 4);
        assert_eq!(status(), Some(Status::Running));
        scene.enqueue("media", Trigger::Api, NOTHING, 5);
        assert_eq!(status(), Some(Status::Running));
        assert_eq!(scene.store.deployments(&DeploymentFilter::default()).unwrap().len(), 4);
    }

    #[test]
    fn the_lists_of_a_thousand_repositories_need_no_scan_of_the_history_and_no_sort() {
        let scene = scene();
        for rest in ["WHERE p.name = ?1 ORDER BY r.name", "ORDER BY p.name, r.name", "WHERE r.id = ?1"] {
            let plan = plan(&scene.shell(), &repositories_sql(rest));
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
            for table in ["SCAN d ", "SCAN d\n", "SCAN deployments"] {
                assert!(!plan.contains(table), "{plan}");
            }
        }
    }
}
