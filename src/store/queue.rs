//! The queue: a trigger becomes a pending row, and the worker takes it from there.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};

use super::retries::{forget_retry, waiting_retry};
use super::rows::{deployment, one_line, stored};
use super::{Queued, Store, StoreError, rows};
use crate::model::{Asked, By, DeploymentId, DeploymentRecord, RepositoryId, Trigger};

/// Bytes kept of an error, of a reason to wait, and of a commit's subject and author.
pub(super) const TEXT_BYTES_KEPT: usize = 2000;
/// Bytes kept of the name of who asked for a deployment.
const ACTOR_BYTES_KEPT: usize = 200;

impl Store {
    /// Accepts a trigger: makes the pending row, or joins the one that is there. Durable (fsync) when it returns.
    /// Clears a retry that waits, and takes over what was asked of it. A row whose actor nobody knows gets this one.
    ///
    /// # Errors
    /// An orphan, or a repository that is not there, is [`StoreError::Refused`].
    pub fn enqueue(
        &self,
        id: RepositoryId,
        by: impl Into<By>,
        asked: Asked,
        now: Timestamp,
    ) -> Result<Queued, StoreError> {
        let by = by.into();
        let queued = self.promise(|transaction| {
            refuse_orphan(transaction, id)?;
            queue(transaction, id, &Try::first(by, asked), now)
        })?;
        self.changes.publish_deployment(queued.deployment_id, id);
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
            let repository: Option<RepositoryId> = self.note(|transaction| {
                let mut statement = transaction.prepare_cached(
                    "UPDATE deployments SET error = ?2 WHERE id = ?1 AND status = 'pending' RETURNING repository_id",
                )?;
                Ok(statement.query_row(params![id, reason], |row| row.get(0)).optional()?)
            })?;
            if let Some(repository) = repository {
                self.changes.publish_deployment(id, repository);
            }
        }
        Ok(())
    }

    /// Pending becomes running, with the configuration that it runs with. Durable: a deployment that brings the host
    /// down must be known at the next start.
    ///
    /// # Errors
    /// A row that is not pending any more, or whose repository has another one running, is [`StoreError::Refused`].
    pub fn start(&self, id: DeploymentId, config_hash: &str, now: Timestamp) -> Result<(), StoreError> {
        let repository: RepositoryId = self.promise(|transaction| {
            let mut statement = transaction.prepare_cached(
                "UPDATE deployments SET status = 'running', started_at = ?2, config_hash = ?3, error = NULL \
                 WHERE id = ?1 AND status = 'pending' AND NOT EXISTS (SELECT 1 FROM deployments other \
                 WHERE other.repository_id = deployments.repository_id AND other.status = 'running') \
                 RETURNING repository_id",
            )?;
            let started = statement.query_row(params![id, stored(now), config_hash], |row| row.get(0)).optional()?;
            started.ok_or_else(|| {
                let problem = "is not pending, or another one of its repository is running";
                StoreError::Refused(format!("deployment {id} cannot start: it {problem}"))
            })
        })?;
        self.changes.publish_deployment(id, repository);
        Ok(())
    }
}

/// A row that is to be made.
pub(super) struct Try {
    pub trigger: Trigger,
    /// Who asks, or asked for what is tried again.
    pub actor: Option<String>,
    pub asked: Asked,
    pub attempt: u32,
    /// How many of the tries that led to it were interrupted.
    pub interruptions: u32,
}

impl Try {
    /// What somebody or something asks for, rather than another try of what failed.
    pub(super) fn first(by: By, asked: Asked) -> Try {
        let actor = by.actor.map(|actor| one_line(&actor, ACTOR_BYTES_KEPT).to_owned());
        Try { trigger: by.trigger, actor, asked, attempt: 1, interruptions: 0 }
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
        forget_retry(transaction, id)?;
    }
    let forced = new.trigger.forces() || waiting.is_some();
    let only_polled = new.trigger == Trigger::Poll && waiting.is_none();
    // The branch has moved since an earlier commit was asked for, and that commit is only tried again: it is not kept.
    let kept = |had: Asked| match new.trigger {
        Trigger::Poll | Trigger::Webhook => Asked { commit: None, ..had },
        _ => had,
    };
    let (asked, actor) = match waiting {
        Some(waiting) => {
            (kept(waiting.asked).joined_by(new.trigger, new.asked.clone()), new.actor.clone().or(waiting.actor))
        }
        None => (new.asked.clone(), new.actor.clone()),
    };
    if let Some(pending) = Pending::of(transaction, id)? {
        let had = if pending.tries_again { kept(pending.asked.clone()) } else { pending.asked.clone() };
        let joined = Pending {
            asked: had.joined_by(new.trigger, asked),
            forced: pending.forced || forced,
            only_polled: pending.only_polled && only_polled,
            interruptions: pending.interruptions.max(new.interruptions),
            actor: pending.actor.clone().or(actor),
            ..pending
        };
        if joined != pending {
            joined.write(transaction)?;
        }
        return Ok(Queued { deployment_id: pending.id, joined: true });
    }
    transaction
        .prepare_cached(
            "INSERT INTO deployments (repository_id, project_id, status, \"trigger\", forced, only_polled, attempt, \
             interruptions, asked, created_at, actor) \
             SELECT id, project_id, 'pending', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM repositories WHERE id = ?1",
        )?
        .execute(params![
            id,
            new.trigger.as_str(),
            forced,
            only_polled,
            new.attempt,
            new.interruptions,
            rows::stored_json(&asked)?,
            stored(now),
            actor
        ])?;
    Ok(Queued { deployment_id: transaction.last_insert_rowid(), joined: false })
}

/// What a trigger that joins a pending row may change of it.
#[derive(PartialEq)]
struct Pending {
    id: DeploymentId,
    /// It is another try of what failed.
    tries_again: bool,
    asked: Asked,
    forced: bool,
    only_polled: bool,
    interruptions: u32,
    actor: Option<String>,
}

impl Pending {
    fn of(transaction: &Transaction, repository_id: RepositoryId) -> Result<Option<Pending>, StoreError> {
        let mut statement = transaction.prepare_cached(
            "SELECT id, asked, forced, only_polled, interruptions, \"trigger\" = 'retry', actor FROM deployments \
             WHERE repository_id = ?1 AND status = 'pending'",
        )?;
        let pending = statement.query_row([repository_id], |row| {
            Ok(Pending {
                id: row.get(0)?,
                asked: rows::json(row, 1)?,
                forced: row.get(2)?,
                only_polled: row.get(3)?,
                interruptions: row.get(4)?,
                tries_again: row.get(5)?,
                actor: row.get(6)?,
            })
        });
        Ok(pending.optional()?)
    }

    fn write(&self, transaction: &Transaction) -> Result<(), StoreError> {
        transaction
            .prepare_cached(
                "UPDATE deployments SET asked = ?2, forced = ?3, only_polled = ?4, interruptions = ?5, actor = ?6 \
                 WHERE id = ?1",
            )?
            .execute(params![
                self.id,
                rows::stored_json(&self.asked)?,
                self.forced,
                self.only_polled,
                self.interruptions,
                self.actor
            ])?;
        Ok(())
    }
}

pub(super) fn refuse_orphan(transaction: &Transaction, id: RepositoryId) -> Result<(), StoreError> {
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

pub(super) fn running_only(id: DeploymentId, rows_written: usize) -> Result<(), StoreError> {
    match rows_written {
        0 => Err(StoreError::Refused(format!("deployment {id} is not running"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, PULL, RECREATE, Scene, at, can_pass, commit, earlier, hash, home, scene};
    use super::super::{Outcome, StoreError};
    use crate::model::{Asked, By, Status, Trigger};

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
    fn the_first_who_is_known_to_have_asked_stays_so_also_when_it_is_tried_again() {
        let scene = scene();
        let id = scene.id("media");
        let by = |actor: &str| By { trigger: Trigger::Api, actor: Some(actor.to_owned()) };
        let row = scene.enqueue("media", Trigger::Poll, NOTHING, 1);
        assert_eq!(scene.deployment(row).actor, None);
        for actor in ["ada\nand more", "bob"] {
            scene.store.enqueue(id, by(actor), NOTHING, at(2)).unwrap();
            assert_eq!(scene.deployment(row).actor.as_deref(), Some("ada"));
        }
        scene.start(row, 1, 3);
        scene.finish(row, &can_pass("network"), 4);
        let again = scene.store.enqueue_due_retries(at(64)).unwrap()[0].deployment_id;
        assert_eq!(scene.deployment(again).actor.as_deref(), Some("ada"));
        scene.start(again, 1, 65);
        scene.store.recover(at(66)).unwrap();
        let interrupted = &scene.store.pending().unwrap()[0];
        assert_eq!(interrupted.actor.as_deref(), Some("ada"));
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
    fn an_earlier_commit_that_is_tried_again_gives_way_to_a_branch_that_moved() {
        for is_due in [false, true] {
            let scene = scene();
            let id = scene.id("media");
            scene.check_found(id, &hash(2), at(0)).unwrap();
            let asked = Asked { commit: earlier(1).commit, ..PULL };
            scene.store.cancel_pending(1, at(0)).unwrap();
            let first = scene.enqueue("media", Trigger::Api, asked.clone(), 1);
            scene.store.start(first, "configuration 1", at(1)).unwrap();
            scene.store.checked_out(first, &commit(1), &hash(2)).unwrap();
            scene.finish(first, &can_pass("registry away"), 2);
            if is_due {
                scene.store.enqueue_due_retries(at(100)).unwrap();
                assert_eq!(scene.store.pending().unwrap()[0].asked, asked);
            }
            let next = scene.check_found(id, &hash(3), at(100)).unwrap().unwrap().deployment_id;
            assert_eq!(scene.deployment(next).asked, PULL);
        }
    }

    #[test]
    fn a_tip_that_came_before_another_try_of_an_earlier_commit_is_found_by_the_next_check() {
        let scene = scene();
        let id = scene.id("media");
        let first = scene.enqueue("media", Trigger::Api, earlier(1), 1);
        scene.store.start(first, "configuration 1", at(1)).unwrap();
        scene.store.checked_out(first, &commit(1), &hash(2)).unwrap();
        scene.finish(first, &can_pass("registry away"), 2);
        let again = scene.store.enqueue_due_retries(at(100)).unwrap()[0].deployment_id;
        scene.store.start(again, "configuration 1", at(100)).unwrap();
        scene.store.checked_out(again, &commit(1), &hash(3)).unwrap();
        scene.finish(again, &Outcome::Success, 101);
        assert!(scene.check_found(id, &hash(2), at(102)).unwrap().is_none(), "it was handled");
        assert!(scene.check_found(id, &hash(3), at(103)).unwrap().is_some());
    }

    #[test]
    fn a_person_says_which_commit_and_others_leave_it() {
        let scene = scene();
        let asked = |id| scene.deployment(id).asked.commit;
        let id = scene.enqueue("media", Trigger::Webhook, NOTHING, 1);
        scene.enqueue("media", Trigger::Api, earlier(1), 2);
        assert_eq!(asked(id), earlier(1).commit);
        for trigger in [Trigger::Poll, Trigger::Webhook, Trigger::Config, Trigger::Retry] {
            scene.enqueue("media", trigger, NOTHING, 3);
            assert_eq!(asked(id), earlier(1).commit, "{trigger}");
        }
        scene.enqueue("media", Trigger::Cli, earlier(2), 4);
        assert_eq!(asked(id), earlier(2).commit);
        scene.enqueue("media", Trigger::Cli, PULL, 5);
        assert_eq!(scene.deployment(id).asked, PULL, "the tip, and what was asked before adds up");
    }
}
