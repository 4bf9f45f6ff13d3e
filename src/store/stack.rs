//! What deployments make of the host, as far as the next one must know: the commit that lies there, and what was brought
//! up.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use super::changes::Change;
use super::queue::{TEXT_BYTES_KEPT, running_only};
use super::rows::{json, one_line, stored_json};
use super::{Store, StoreError};
use crate::model::{Asked, Commit, CommitHash, DeploymentId, RepositoryId};

/// What an `up` brings up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroughtUp {
    /// As which compose project.
    pub compose_project: String,
    /// The project's folder.
    pub folder: PathBuf,
    /// The names of its services.
    pub services: BTreeSet<String>,
    /// The names of its volumes, as Docker has them.
    pub volumes: BTreeSet<String>,
}

/// What was brought up so far, as `repositories.brought_up` holds it.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SoFar {
    pub services: BTreeSet<String>,
    pub volumes: BTreeSet<String>,
}

impl Store {
    /// The commit that the deployment is about, fetched and not yet checked out: written to the deployment. Its
    /// repository has observed `tip` (another one than the commit, where an earlier commit was asked for), so nothing
    /// waits any more for somebody to ask.
    ///
    /// # Errors
    /// A row that is not running is [`StoreError::Refused`].
    pub fn fetched(&self, id: DeploymentId, commit: &Commit, tip: &CommitHash) -> Result<(), StoreError> {
        let repository = self.note(|transaction| {
            let repository = write_commit(transaction, id, commit, tip)?;
            self.checks.fetched(repository);
            Ok(repository)
        })?;
        self.changes.publish_deployment(id, repository);
        Ok(())
    }

    /// The working tree now is at this commit: written to the deployment and the repository (`checked_out_commit`),
    /// together with what [`Store::fetched`] writes.
    ///
    /// # Errors
    /// A row that is not running is [`StoreError::Refused`].
    pub fn checked_out(&self, id: DeploymentId, commit: &Commit, tip: &CommitHash) -> Result<(), StoreError> {
        let repository = self.note(|transaction| {
            let repository = write_commit(transaction, id, commit, tip)?;
            set_checked_out(transaction, repository, Some(&commit.hash))?;
            Ok(repository)
        })?;
        self.changes.publish_deployment(id, repository);
        Ok(())
    }

    /// The files that lay in the working tree before the last checkout are back: those of `commit`, or of none.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_back(&self, id: RepositoryId, commit: Option<&CommitHash>) -> Result<(), StoreError> {
        self.note(|transaction| set_checked_out(transaction, id, commit))?;
        self.changes.publish(&[Change::Repository(id)]);
        Ok(())
    }

    /// Compose is about to change containers. The repository keeps compose project and folder, and the services and
    /// volumes of every `up` for as long as these two stay the same. Durable when it returns.
    ///
    /// # Errors
    /// A row that is not running is [`StoreError::Refused`].
    pub fn up_begins(&self, id: DeploymentId, brought_up: &BroughtUp) -> Result<(), StoreError> {
        let folder = brought_up.folder.to_string_lossy();
        let repository = self.promise(|transaction| {
            let written = transaction
                .execute("UPDATE deployments SET up_began = 1 WHERE id = ?1 AND status = 'running'", [id])?;
            running_only(id, written)?;
            let (repository, is_same, had): (RepositoryId, bool, SoFar) = transaction.query_row(
                "SELECT r.id, r.compose_project IS ?2 AND r.up_folder IS ?3, r.brought_up \
                 FROM deployments d JOIN repositories r ON r.id = d.repository_id WHERE d.id = ?1",
                params![id, brought_up.compose_project, folder],
                |row| Ok((row.get(0)?, row.get(1)?, json(row, 2)?)),
            )?;
            let mut so_far = if is_same { had } else { SoFar::default() };
            so_far.services.extend(brought_up.services.iter().cloned());
            so_far.volumes.extend(brought_up.volumes.iter().cloned());
            transaction.execute(
                "UPDATE repositories SET compose_project = ?2, up_folder = ?3, brought_up = ?4 WHERE id = ?1",
                params![repository, brought_up.compose_project, folder, stored_json(&so_far)?],
            )?;
            Ok(repository)
        })?;
        self.changes.publish_deployment(id, repository);
        Ok(())
    }

    /// Remembers what somebody accepted for a repository, beside what was accepted before. It is on the disk at the
    /// latest with [`Store::up_begins`], before which nothing comes of it.
    ///
    /// # Errors
    /// A repository that is not there is [`StoreError::Refused`].
    pub fn accept(&self, id: RepositoryId, keys: &BTreeSet<String>) -> Result<(), StoreError> {
        self.note(|transaction| {
            let had = transaction
                .query_row("SELECT accepted FROM repositories WHERE id = ?1", [id], |row| json::<BTreeSet<_>>(row, 0));
            let had = match had {
                Err(rusqlite::Error::QueryReturnedNoRows) => {
                    return Err(StoreError::Refused(format!("there is no repository {id}")));
                }
                had => had?,
            };
            if !keys.is_subset(&had) {
                transaction.execute(
                    "UPDATE repositories SET accepted = ?2 WHERE id = ?1",
                    params![id, stored_json(&(&had | keys))?],
                )?;
            }
            Ok(())
        })
    }
}

fn set_checked_out(transaction: &Transaction, id: RepositoryId, commit: Option<&CommitHash>) -> Result<(), StoreError> {
    transaction
        .prepare_cached("UPDATE repositories SET checked_out_commit = ?2 WHERE id = ?1")?
        .execute(params![id, commit.map(CommitHash::as_str)])?;
    Ok(())
}

/// Answers whose deployment it is.
fn write_commit(
    transaction: &Transaction,
    id: DeploymentId,
    commit: &Commit,
    tip: &CommitHash,
) -> Result<RepositoryId, StoreError> {
    let written = transaction.execute(
        "UPDATE deployments SET commit_hash = ?2, commit_subject = ?3, commit_author = ?4 WHERE id = ?1 AND status = 'running'",
        params![
            id,
            commit.hash.as_str(),
            one_line(&commit.subject, TEXT_BYTES_KEPT),
            one_line(&commit.author, TEXT_BYTES_KEPT)
        ],
    )?;
    running_only(id, written)?;
    let (repository, tries_again, asked): (RepositoryId, bool, Asked) = transaction.query_row(
        "SELECT repository_id, \"trigger\" = 'retry', asked FROM deployments WHERE id = ?1",
        [id],
        |row| Ok((row.get(0)?, row.get(1)?, json(row, 2)?)),
    )?;
    if tries_again && asked.commit.is_some() {
        // Nobody decided about a tip that came after the commit that is tried again: the next check finds it.
        return Ok(repository);
    }
    // A row that is pending meanwhile stands for what a check saw after this one was fetched.
    transaction.execute(
        "UPDATE repositories SET observed_commit = ?2, waiting = 0 WHERE id = ?1 AND (observed_commit IS NULL OR \
         observed_commit = ?2 OR NOT EXISTS (SELECT 1 FROM deployments WHERE repository_id = ?1 AND status = 'pending'))",
        params![repository, tip.as_str()],
    )?;
    Ok(repository)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, at, brought_up, commit, hash, home, manual, names, scene, scene_with};
    use super::*;
    use crate::model::Trigger;

    #[test]
    fn the_steps_of_a_deployment_are_recorded() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Cli, NOTHING, 1);
        let up = brought_up("media", &["web"], &["media_data"]);
        assert!(matches!(scene.store.checked_out(id, &commit(1), &hash(1)), Err(StoreError::Refused(_))));
        assert!(matches!(scene.store.up_begins(id, &up), Err(StoreError::Refused(_))));
        scene.start(id, 1, 2);
        let row = scene.deployment(id);
        assert_eq!((row.commit, row.up_began), (Some(commit(1)), false));
        let record = scene.record("media");
        assert_eq!(record.checked_out_commit, Some(commit(1).hash));
        assert_eq!(record.observed_commit, Some(commit(1).hash));
        assert_eq!(record.last_commit_hash, None);
        scene.store.up_begins(id, &up).unwrap();
        assert!(scene.deployment(id).up_began);
        let record = scene.record("media");
        assert_eq!(record.compose_project.as_deref(), Some("media"));
        assert_eq!(record.up_folder.as_deref(), Some("/deployments/home/media"));
    }

    #[test]
    fn what_was_seen_while_an_older_commit_was_checked_out_stays_seen() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.store.start(id, "configuration 1", at(2)).unwrap();
        assert!(scene.check_found(scene.id("media"), &commit(2).hash, at(3)).unwrap().is_some());
        scene.store.checked_out(id, &commit(1), &hash(1)).unwrap();
        assert_eq!(scene.record("media").observed_commit, Some(commit(2).hash));
        assert_eq!(scene.record("media").checked_out_commit, Some(commit(1).hash));
    }

    #[test]
    fn the_tip_counts_as_handled_where_an_earlier_commit_is_deployed() {
        let scene = scene_with(&[manual(home(&["media", "web"]), "media")], 200);
        for name in ["media", "web"] {
            let id = scene.id(name);
            scene.check_found(id, &hash(9), at(1)).unwrap();
            let deployment = scene.enqueue(name, Trigger::Api, NOTHING, 2);
            scene.store.start(deployment, "configuration 1", at(3)).unwrap();
            scene.store.fetched(deployment, &commit(4), &hash(9)).unwrap();
            let record = scene.record(name);
            assert_eq!((record.observed_commit, record.checked_out_commit), (Some(hash(9)), None));
            scene.store.checked_out(deployment, &commit(4), &hash(9)).unwrap();
            let record = scene.record(name);
            assert_eq!((record.observed_commit, record.checked_out_commit), (Some(hash(9)), Some(hash(4))));
            assert!(!record.waiting, "{name}");
            assert!(scene.check_found(id, &hash(9), at(4)).unwrap().is_none());
            assert!(!scene.record(name).waiting, "{name}");
            scene.check_found(id, &hash(10), at(5)).unwrap();
            assert_eq!(scene.record(name).waiting, name == "media", "until it moves");
        }
    }

    #[test]
    fn another_try_of_a_commit_leaves_a_newer_tip_waiting() {
        let scene = scene_with(&[manual(home(&["media"]), "media")], 200);
        let id = scene.id("media");
        let first = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(first, 1, 2);
        scene.store.recover(at(3)).unwrap();
        let retry = scene.store.pending().unwrap().remove(0).id;
        scene.store.start(retry, "configuration 1", at(4)).unwrap();
        scene.store.fetched(retry, &commit(1), &hash(2)).unwrap();
        assert!(!scene.record("media").waiting, "the check finds it");
        scene.check_found(id, &hash(2), at(5)).unwrap();
        assert!(scene.record("media").waiting);
        scene.store.checked_out(retry, &commit(1), &hash(2)).unwrap();
        assert!(scene.record("media").waiting);
        assert_eq!(scene.record("media").checked_out_commit, Some(hash(1)));
    }

    #[test]
    fn files_that_were_put_back_are_those_of_the_commit_before() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(id, 2, 2);
        for commit in [Some(hash(1)), None] {
            scene.store.put_back(scene.id("media"), commit.as_ref()).unwrap();
            assert_eq!(scene.record("media").checked_out_commit, commit);
        }
        assert_eq!(scene.record("media").observed_commit, Some(hash(2)));
    }

    #[test]
    fn what_was_brought_up_adds_up_until_project_or_folder_change() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(id, 1, 2);
        let mut up = brought_up("media", &["web", "old"], &["media_data"]);
        let known = |up: &BroughtUp| {
            scene.store.up_begins(id, up).unwrap();
            let record = scene.record("media");
            (record.brought_up_services, record.brought_up_volumes)
        };
        assert_eq!(known(&up), (names(&["web", "old"]), names(&["media_data"])));
        up = brought_up("media", &["web", "new"], &[]);
        assert_eq!(known(&up), (names(&["web", "old", "new"]), names(&["media_data"])));
        up.folder = "/elsewhere".into();
        assert_eq!(known(&up), (names(&["web", "new"]), names(&[])));
        assert_eq!(known(&brought_up("other", &["web"], &["data"])), (names(&["web"]), names(&["data"])));
        assert_eq!(scene.killed().record("media").brought_up_services, names(&["web"]));
    }

    #[test]
    fn what_was_accepted_adds_up() {
        let scene = scene();
        let id = scene.id("media");
        scene.store.accept(id, &names(&["folder:/old"])).unwrap();
        scene.store.accept(id, &names(&["volume:data", "folder:/old"])).unwrap();
        scene.store.accept(id, &names(&[])).unwrap();
        assert_eq!(scene.record("media").accepted, names(&["folder:/old", "volume:data"]));
        assert_eq!(scene.record("web").accepted, names(&[]));
        assert!(matches!(scene.store.accept(99, &names(&["x"])), Err(StoreError::Refused(_))));
    }
}
