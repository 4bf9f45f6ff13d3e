//! The queue: a trigger becomes a pending row, and the worker takes it from there.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};

use super::rows::{deployment, one_line, stored};
use super::{Queued, Store, StoreError, rows};
use crate::model::{Asked, Commit, DeploymentId, DeploymentRecord, RepositoryId, Trigger};

/// Bytes kept of an error, of a reason to wait, and of a commit's subject and author.
pub(super) const TEXT_BYTES_KEPT: usize = 2000;

impl Store {
    /// Accepts a trigger: makes the pending row, or joins the one that is there. Durable (fsync) when it returns.
    /// Clears a retry that waits, and takes over what was asked of it.
    ///
    /// # Errors
    /// An orphan, or a repository that is not there, is [`StoreError::Refused`].
    pub fn enqueue(
        &self,
        id: RepositoryId,
        trigger: Trigger,
        asked: Asked,
        now: Timestamp,
    ) -> Result<Queued, StoreError> {
        let queued = self.promise(|transaction| {
            refuse_orphan(transaction, id)?;
            queue(transaction, id, &Try::first(trigger, asked), now)
        })?;
        self.changes.happened();
        Ok(queued)
    }

    /// All pending rows, oldest first; the worker chooses.
    ///
    /// # Errors
    /// SQLite's.
    pub fn pending(&self) -> Result<Vec<DeploymentRecord>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {} FROM deployments d INDEXED BY deployments_by_status \
                 CROSS JOIN repositories r ON r.id = d.repository_id CROSS JOIN projects p ON p.id = d.project_id \
                 WHERE d.status = 'pending' ORDER BY d.id",
                rows::DEPLOYMENT_COLUMNS
            ))?;
            let records = statement.query_map([], |row| deployment(row, 0))?;
            Ok(records.collect::<Result<_, _>>()?)
        })
    }

    /// Notes what a pending row waits for (shown as its `error`); writes only when it differs.
    ///
    /// # Errors
    /// SQLite's.
    pub fn waits_for(&self, id: DeploymentId, reason: Option<&str>) -> Result<(), StoreError> {
        let reason = reason.map(|reason| one_line(reason, TEXT_BYTES_KEPT));
        let differs = self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT 1 FROM deployments WHERE id = ?1 AND status = 'pending' AND error IS NOT ?2")?;
            Ok(statement.exists(params![id, reason])?)
        })?;
        if differs {
            self.note(|transaction| {
                transaction.execute(
                    "UPDATE deployments SET error = ?2 WHERE id = ?1 AND status = 'pending'",
                    params![id, reason],
                )?;
                Ok(())
            })?;
            self.changes.happened();
        }
        Ok(())
    }

    /// Pending becomes running, with the configuration that it runs with. Durable: a deployment that brings the host
    /// down must be known at the next start.
    ///
    /// # Errors
    /// A row that is not pending any more, or whose repository has another one running, is [`StoreError::Refused`].
    pub fn start(&self, id: DeploymentId, config_hash: &str, now: Timestamp) -> Result<(), StoreError> {
        self.promise(|transaction| {
            let started = transaction.execute(
                "UPDATE deployments SET status = 'running', started_at = ?2, config_hash = ?3, error = NULL \
                 WHERE id = ?1 AND status = 'pending' AND NOT EXISTS (SELECT 1 FROM deployments other \
                 WHERE other.repository_id = deployments.repository_id AND other.status = 'running')",
                params![id, stored(now), config_hash],
            )?;
            if started == 0 {
                let problem = "is not pending, or another one of its repository is running";
                return Err(StoreError::Refused(format!("deployment {id} cannot start: it {problem}")));
            }
            Ok(())
        })?;
        self.changes.happened();
        Ok(())
    }

    /// The commit that the deployment is about, fetched and not yet checked out: written to the deployment and the
    /// repository (`observed_commit`).
    ///
    /// # Errors
    /// A row that is not running is [`StoreError::Refused`].
    pub fn fetched(&self, id: DeploymentId, commit: &Commit) -> Result<(), StoreError> {
        self.note(|transaction| {
            let repository = write_commit(transaction, id, commit)?;
            self.checks.fetched(repository);
            Ok(())
        })?;
        self.changes.happened();
        Ok(())
    }

    /// The working tree now is at this commit: written to the deployment and the repository (`checked_out_commit`,
    /// `observed_commit`).
    ///
    /// # Errors
    /// A row that is not running is [`StoreError::Refused`].
    pub fn checked_out(&self, id: DeploymentId, commit: &Commit) -> Result<(), StoreError> {
        self.note(|transaction| {
            write_commit(transaction, id, commit)?;
            transaction.execute(
                "UPDATE repositories SET checked_out_commit = ?2 WHERE id = (SELECT repository_id FROM deployments WHERE id = ?1)",
                params![id, commit.hash.as_str()],
            )?;
            Ok(())
        })?;
        self.changes.happened();
        Ok(())
    }

    /// Compose is about to change containers, as this compose project in this folder. Durable when it returns.
    ///
    /// # Errors
    /// A row that is not running is [`StoreError::Refused`].
    pub fn up_begins(&self, id: DeploymentId, compose_project: &str, folder: &Path) -> Result<(), StoreError> {
        self.promise(|transaction| {
            let written = transaction
                .execute("UPDATE deployments SET up_began = 1 WHERE id = ?1 AND status = 'running'", [id])?;
            running_only(id, written)?;
            transaction.execute(
                "UPDATE repositories SET compose_project = ?2, up_folder = ?3 \
                 WHERE id = (SELECT repository_id FROM deployments WHERE id = ?1)",
                params![id, compose_project, folder.to_string_lossy()],
            )?;
            Ok(())
        })
    }
}

/// A row that is to be made.
pub(super) struct Try {
    pub trigger: Trigger,
    pub asked: Asked,
    pub attempt: u32,
    /// How many of the tries that led to it were interrupted.
    pub interruptions: u32,
}

impl Try {
    /// What somebody or something asks for, rather than another try of what failed.
    pub(super) fn first(trigger: Trigger, asked: Asked) -> Try {
        Try { trigger, asked, attempt: 1, interruptions: 0 }
    }
}

/// Joins the pending row of a repository or makes it; a retry that waits is part of it from then on.
pub(super) fn queue(
    transaction: &Transaction,
    id: RepositoryId,
    new: &Try,
    now: Timestamp,
) -> Result<Queued, StoreError> {
    let waiting = waiting_retry(transaction, id)?;
    if waiting.is_some() {
        transaction
            .prepare_cached("UPDATE repositories SET retry_at = NULL, retry_of = NULL WHERE id = ?1")?
            .execute([id])?;
    }
    let forced = new.trigger.forces() || waiting.is_some();
    let asked = waiting.map(|waiting| waiting.asked).unwrap_or_default().and(new.asked.clone());
    let pending: Option<(DeploymentId, Asked, bool, u32)> = transaction
        .prepare_cached(
            "SELECT id, asked, forced, interruptions FROM deployments WHERE repository_id = ?1 AND status = 'pending'",
        )?
        .query_row([id], |row| Ok((row.get(0)?, rows::asked(row, 1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    if let Some((deployment_id, had, was_forced, interruptions)) = pending {
        let joined = (had.clone().and(asked), was_forced || forced, interruptions.max(new.interruptions));
        if joined != (had, was_forced, interruptions) {
            transaction
                .prepare_cached("UPDATE deployments SET asked = ?2, forced = ?3, interruptions = ?4 WHERE id = ?1")?
                .execute(params![deployment_id, rows::stored_asked(&joined.0)?, joined.1, joined.2])?;
        }
        return Ok(Queued { deployment_id, joined: true });
    }
    transaction
        .prepare_cached(
            "INSERT INTO deployments (repository_id, project_id, status, \"trigger\", forced, attempt, interruptions, \
             asked, created_at) SELECT id, project_id, 'pending', ?2, ?3, ?4, ?5, ?6, ?7 FROM repositories WHERE id = ?1",
        )?
        .execute(params![
            id,
            new.trigger.as_str(),
            forced,
            new.attempt,
            new.interruptions,
            rows::stored_asked(&asked)?,
            stored(now)
        ])?;
    Ok(Queued { deployment_id: transaction.last_insert_rowid(), joined: false })
}

/// The next try of what failed, while it waits for its time.
pub(super) fn waiting_retry(transaction: &Transaction, id: RepositoryId) -> Result<Option<Try>, StoreError> {
    let waiting = transaction
        .prepare_cached(
            "SELECT d.asked, d.attempt, d.interruptions FROM repositories r JOIN deployments d ON d.id = r.retry_of \
             WHERE r.id = ?1",
        )?
        .query_row([id], |row| {
            Ok(Try {
                trigger: Trigger::Retry,
                asked: rows::asked(row, 0)?,
                attempt: row.get::<_, u32>(1)? + 1,
                interruptions: row.get(2)?,
            })
        })
        .optional()?;
    Ok(waiting)
}

fn refuse_orphan(transaction: &Transaction, id: RepositoryId) -> Result<(), StoreError> {
    let orphaned: Option<bool> = transaction
        .prepare_cached("SELECT orphaned_at IS NOT NULL FROM repositories WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    match orphaned {
        Some(false) => Ok(()),
        Some(true) => {
            let way_out = "put it back into a project file, or forget it with `shiparr prune`";
            Err(StoreError::Refused(format!("no project file names this repository any more: {way_out}")))
        }
        None => Err(StoreError::Refused(format!("there is no repository {id}"))),
    }
}

fn running_only(id: DeploymentId, rows_written: usize) -> Result<(), StoreError> {
    match rows_written {
        0 => Err(StoreError::Refused(format!("deployment {id} is not running"))),
        _ => Ok(()),
    }
}

/// Answers whose deployment it is.
fn write_commit(transaction: &Transaction, id: DeploymentId, commit: &Commit) -> Result<RepositoryId, StoreError> {
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
    // A row that is pending meanwhile stands for what a check saw after this one was fetched.
    let repository = transaction.query_row(
        "UPDATE repositories SET observed_commit = CASE WHEN EXISTS \
         (SELECT 1 FROM deployments WHERE repository_id = repositories.id AND status = 'pending') \
         THEN ifnull(observed_commit, ?2) ELSE ?2 END \
         WHERE id = (SELECT repository_id FROM deployments WHERE id = ?1) RETURNING id",
        params![id, commit.hash.as_str()],
        |row| row.get(0),
    )?;
    Ok(repository)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::testing::{NOTHING, PULL, RECREATE, Scene, at, can_pass, commit, failed, home, scene};
    use super::super::{Outcome, StoreError};
    use crate::model::{Asked, Status, Trigger};

    fn counts(scene: &Scene) -> (usize, usize) {
        let all = scene.store.deployments(&Default::default()).unwrap();
        (all.len(), scene.store.pending().unwrap().len())
    }

    #[test]
    fn a_trigger_makes_a_row_and_the_next_one_joins_it() {
        let scene = scene();
        let id = scene.id("media");
        let first = scene.store.enqueue(id, Trigger::Poll, PULL, at(1)).unwrap();
        assert!(!first.joined);
        assert!(!scene.deployment(first.deployment_id).forced);
        let second = scene.store.enqueue(id, Trigger::Api, RECREATE, at(2)).unwrap();
        assert_eq!((second.deployment_id, second.joined), (first.deployment_id, true));
        let row = scene.deployment(first.deployment_id);
        assert_eq!(row.asked, Asked { pull: true, recreate: true, ..NOTHING });
        assert_eq!((row.trigger, row.forced, row.attempt), (Trigger::Poll, true, 1));
        assert_eq!((row.status, row.created_at), (Status::Pending, at(1)));
        assert_eq!(counts(&scene), (1, 1));
        assert!(scene.enqueue("web", Trigger::Webhook, NOTHING, 3) > first.deployment_id);
        assert_eq!(counts(&scene), (2, 2));
    }

    #[test]
    fn a_row_that_runs_is_not_joined() {
        let scene = scene();
        let first = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(first, 1, 2);
        let second = scene.enqueue("media", Trigger::Api, NOTHING, 3);
        assert_ne!(first, second);
        assert_eq!(scene.record("media").status, Some(Status::Running));
        let error = scene.store.start(second, "configuration 1", at(4)).unwrap_err();
        assert!(error.to_string().contains("another one of its repository is running"), "{error}");
        scene.finish(first, &Outcome::Success, 5);
        scene.store.start(second, "configuration 1", at(6)).unwrap();
        let error = scene.store.start(second, "configuration 1", at(7)).unwrap_err();
        assert!(matches!(error, StoreError::Refused(_)));
    }

    #[test]
    fn the_index_holds_that_there_is_one_pending_row() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        let sql = "INSERT INTO deployments (repository_id, project_id, status, \"trigger\", forced, attempt, interruptions, \
                   asked, created_at) SELECT repository_id, project_id, status, \"trigger\", forced, attempt, interruptions, \
                   asked, created_at FROM deployments WHERE id = ?1";
        let error = scene.shell().execute(sql, [id]).unwrap_err();
        assert!(error.to_string().contains("UNIQUE"), "{error}");
    }

    #[test]
    fn an_orphan_and_an_unknown_repository_are_refused() {
        let scene = scene();
        let id = scene.id("media");
        scene.store.sync(&[home(&["web"])], &[], at(1)).unwrap();
        let error = scene.store.enqueue(id, Trigger::Api, NOTHING, at(2)).unwrap_err();
        assert!(matches!(&error, StoreError::Refused(text) if text.contains("shiparr prune")), "{error}");
        assert!(matches!(scene.store.enqueue(99, Trigger::Api, NOTHING, at(2)), Err(StoreError::Refused(_))));
        assert_eq!(counts(&scene), (0, 0));
    }

    #[test]
    fn pending_rows_come_oldest_first() {
        let scene = scene();
        let web = scene.enqueue("web", Trigger::Api, NOTHING, 1);
        let media = scene.enqueue("media", Trigger::Api, NOTHING, 2);
        let order: Vec<_> = scene.store.pending().unwrap().iter().map(|row| row.id).collect();
        assert_eq!(order, [web, media]);
    }

    #[test]
    fn a_reason_to_wait_is_shown_until_the_start_and_written_once() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.store.waits_for(id, Some("waits for home/web\nwhich runs")).unwrap();
        assert_eq!(scene.deployment(id).error.as_deref(), Some("waits for home/web"));
        let seen = scene.store.change_seen();
        scene.store.waits_for(id, Some("waits for home/web")).unwrap();
        assert_eq!(scene.store.change_seen(), seen);
        scene.store.waits_for(id, None).unwrap();
        assert_eq!(scene.deployment(id).error, None);
        scene.store.waits_for(id, Some("waits for Docker")).unwrap();
        scene.start(id, 1, 2);
        scene.store.waits_for(id, Some("too late")).unwrap();
        let row = scene.deployment(id);
        assert_eq!((row.error, row.started_at, row.status), (None, Some(at(2)), Status::Running));
    }

    #[test]
    fn the_steps_of_a_deployment_are_recorded() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Cli, NOTHING, 1);
        assert!(matches!(scene.store.checked_out(id, &commit(1)), Err(StoreError::Refused(_))));
        assert!(matches!(scene.store.up_begins(id, "media", Path::new("/x")), Err(StoreError::Refused(_))));
        scene.start(id, 1, 2);
        let row = scene.deployment(id);
        assert_eq!((row.commit, row.up_began), (Some(commit(1)), false));
        let record = scene.record("media");
        assert_eq!(record.checked_out_commit, Some(commit(1).hash));
        assert_eq!(record.observed_commit, Some(commit(1).hash));
        assert_eq!(record.last_commit_hash, None);
        scene.store.up_begins(id, "media", Path::new("/deployments/home/media")).unwrap();
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
        scene.store.checked_out(id, &commit(1)).unwrap();
        assert_eq!(scene.record("media").observed_commit, Some(commit(2).hash));
        assert_eq!(scene.record("media").checked_out_commit, Some(commit(1).hash));
    }

    #[test]
    fn any_trigger_takes_over_the_retry_that_waits() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Webhook, PULL, 1);
        scene.start(id, 1, 2);
        scene.finish(id, &can_pass("registry away"), 3);
        assert!(scene.record("media").retry_at.is_some());
        let next = scene.enqueue("media", Trigger::Poll, NOTHING, 4);
        assert_eq!(scene.record("media").retry_at, None);
        assert_eq!(scene.store.next_retry_at().unwrap(), None);
        let row = scene.deployment(next);
        assert_eq!((row.trigger, row.attempt, row.asked, row.forced), (Trigger::Poll, 1, PULL, true));
    }

    #[test]
    fn what_was_asked_of_a_final_failure_is_over() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, PULL, 1);
        scene.start(id, 1, 2);
        scene.finish(id, &failed("it does not parse"), 3);
        let next = scene.enqueue("media", Trigger::Poll, NOTHING, 4);
        assert_eq!(scene.deployment(next).asked, NOTHING);
    }
}
