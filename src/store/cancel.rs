//! What a person ends before it began.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::retries::forget_retry;
use super::rows::{stored, word};
use super::{Store, StoreError};
use crate::model::{DeploymentId, Ending, RepositoryId, Status, Trigger};

/// The error of a pending row that was cancelled.
const CANCELLED_PENDING: &str = "cancelled before it began";

impl Store {
    /// A pending row becomes `failed`, and nobody is told. Answers whether it was pending. Durable when it returns.
    ///
    /// # Errors
    /// SQLite's.
    pub fn cancel_pending(&self, id: DeploymentId, now: Timestamp) -> Result<bool, StoreError> {
        let cancelled: Option<(RepositoryId, Trigger)> = self.promise(|transaction| {
            let mut statement = transaction.prepare_cached(
                "UPDATE deployments SET status = 'failed', ending = ?3, error = ?4, finished_at = ?2, told_at = ?2 \
                 WHERE id = ?1 AND status = 'pending' RETURNING repository_id, \"trigger\"",
            )?;
            let values = params![id, stored(now), Ending::Cancelled.as_str(), CANCELLED_PENDING];
            Ok(statement.query_row(values, |row| Ok((row.get(0)?, word(row, 1)?))).optional()?)
        })?;
        if let Some((repository, trigger)) = cancelled {
            self.metrics.deployment_ended(trigger, Status::Failed, None);
            self.changes.publish_deployment(id, repository);
        }
        Ok(cancelled.is_some())
    }

    /// A deployment that failed is not tried again. Answers whether another try of it was waiting. Durable when it
    /// returns.
    ///
    /// # Errors
    /// SQLite's.
    pub fn cancel_retry(&self, id: DeploymentId) -> Result<bool, StoreError> {
        let had_one = self.promise(|transaction| {
            let repository: Option<RepositoryId> = transaction
                .query_row(
                    "SELECT r.id FROM deployments d JOIN repositories r ON r.id = d.repository_id \
                     WHERE d.id = ?1 AND r.retry_of = d.id",
                    [id],
                    |row| row.get(0),
                )
                .optional()?;
            let Some(repository) = repository else { return Ok(None) };
            Ok(forget_retry(transaction, repository)?.then_some(repository))
        })?;
        if let Some(repository) = had_one {
            self.changes.publish_deployment(id, repository);
        }
        Ok(had_one.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, PULL, at, can_pass, failed, hash, scene};
    use super::*;
    use crate::model::{Status, Trigger};

    #[test]
    fn a_pending_row_is_cancelled_once_and_nobody_is_told() {
        let scene = scene();
        let id = scene.check_found(scene.id("media"), &hash(1), at(1)).unwrap().unwrap().deployment_id;
        let seen = scene.store.change_seen();
        assert!(scene.store.cancel_pending(id, at(2)).unwrap());
        assert_ne!(scene.store.change_seen(), seen);
        let row = scene.killed().deployment(id);
        assert_eq!((row.status, row.ending), (Status::Failed, Some(Ending::Cancelled)));
        assert_eq!((row.error.as_deref(), row.finished_at), (Some("cancelled before it began"), Some(at(2))));
        assert!(scene.store.next_untold(&[]).unwrap().is_none());
        let seen = scene.store.change_seen();
        assert!(!scene.store.cancel_pending(id, at(3)).unwrap());
        assert!(!scene.store.cancel_pending(99, at(3)).unwrap());
        assert_eq!(scene.store.change_seen(), seen);
        assert!(scene.store.start(id, "configuration 1", at(4)).is_err());
        assert!(scene.check_found(scene.id("media"), &hash(1), at(5)).unwrap().is_none(), "its commit was handled");
    }

    #[test]
    fn a_row_that_runs_or_ended_is_not_cancelled_here() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(id, 1, 2);
        assert!(!scene.store.cancel_pending(id, at(3)).unwrap());
        scene.finish(id, &failed("unhealthy"), 4);
        assert!(!scene.store.cancel_pending(id, at(5)).unwrap());
        assert_eq!(scene.deployment(id).error.as_deref(), Some("unhealthy"));
    }

    #[test]
    fn a_retry_that_waits_is_forgotten_with_what_was_asked_of_it() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, PULL, 1);
        scene.start(id, 1, 2);
        assert!(!scene.store.cancel_retry(id).unwrap(), "it runs");
        scene.finish(id, &can_pass("registry away"), 3);
        let other = scene.deploy("web", 1, &can_pass("registry away"), 4);
        let seen = scene.store.change_seen();
        assert!(scene.store.cancel_retry(id).unwrap());
        assert_ne!(scene.store.change_seen(), seen);
        assert!(!scene.store.cancel_retry(id).unwrap());
        let killed = scene.killed();
        assert_eq!(killed.record("media").retry_at, None);
        assert!(killed.record("web").retry_at.is_some(), "{other} goes on");
        let next = scene.enqueue("media", Trigger::Poll, NOTHING, 5);
        assert_eq!(scene.deployment(next).asked, NOTHING);
    }
}
