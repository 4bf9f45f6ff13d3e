//! What failed and can pass is tried again. Until it is due, another try is no row.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{OptionalExtension, Transaction};

use super::queue::{Try, queue};
use super::rows::{self, optional_time, stored};
use super::{Queued, Store, StoreError};
use crate::model::{Asked, CommitHash, CommitPrefix, RepositoryId, Trigger};

/// Seconds until the second, the third and every later try of what can pass (spec section 4, Again).
pub const RETRY_PAUSES_SECONDS: [i64; 3] = [60, 5 * 60, 15 * 60];

impl Store {
    /// Queues the retries that are due.
    ///
    /// # Errors
    /// SQLite's.
    pub fn enqueue_due_retries(&self, now: Timestamp) -> Result<Vec<Queued>, StoreError> {
        // One that is due later than the longest pause was written before the clock was set back: it has waited long
        // enough.
        let longest = RETRY_PAUSES_SECONDS.into_iter().max().unwrap_or_default();
        let too_far = stored(now) + longest * 1000;
        let due: Vec<RepositoryId> = self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id FROM repositories WHERE retry_at IS NOT NULL AND (retry_at <= ?1 OR retry_at > ?2) \
                 ORDER BY retry_at, id",
            )?;
            let ids = statement.query_map([stored(now), too_far], |row| row.get(0))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let queued = self.promise(|transaction| {
            let mut queued = Vec::new();
            for id in due {
                // Another trigger may have taken it over since it was read.
                if let Some(next) = waiting_retry(transaction, id)? {
                    queued.push((id, queue(transaction, id, &next, now)?));
                }
            }
            Ok(queued)
        })?;
        for (id, queued) in &queued {
            self.changes.publish_deployment(queued.deployment_id, *id);
        }
        Ok(queued.into_iter().map(|(_, queued)| queued).collect())
    }

    /// When the next retry is due.
    ///
    /// # Errors
    /// SQLite's.
    pub fn next_retry_at(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT min(retry_at) FROM repositories WHERE retry_at IS NOT NULL")?;
            Ok(statement.query_row([], |row| optional_time(row, 0))?)
        })
    }
}

/// Forgets the next try of what failed; answers whether one waited.
pub(super) fn forget_retry(transaction: &Transaction, id: RepositoryId) -> Result<bool, StoreError> {
    let mut statement = transaction.prepare_cached(
        "UPDATE repositories SET retry_at = NULL, retry_of = NULL WHERE id = ?1 AND retry_of IS NOT NULL",
    )?;
    Ok(statement.execute([id])? > 0)
}

/// The next try of what failed, while it waits for its time. Under `deploy: manual` it is a try of the same commit.
pub(super) fn waiting_retry(transaction: &Transaction, id: RepositoryId) -> Result<Option<Try>, StoreError> {
    let waiting = transaction
        .prepare_cached(
            "SELECT d.asked, d.attempt, d.interruptions, iif(r.is_manual, d.commit_hash, NULL), d.actor \
             FROM repositories r JOIN deployments d ON d.id = r.retry_of WHERE r.id = ?1",
        )?
        .query_row([id], |row| {
            let commit: Option<CommitHash> = rows::optional_word(row, 3)?;
            Ok(Try {
                trigger: Trigger::Retry,
                actor: row.get(4)?,
                asked: asked_again(rows::json(row, 0)?, commit.as_ref()),
                attempt: row.get::<_, u32>(1)? + 1,
                interruptions: row.get(2)?,
            })
        })
        .optional()?;
    Ok(waiting)
}

/// What another try is asked for, of the commit `same` where it must be the same.
pub(super) fn asked_again(asked: Asked, same: Option<&CommitHash>) -> Asked {
    Asked { commit: same.map(CommitPrefix::from).or(asked.commit), ..asked }
}

/// How long the next try waits after `tries` of them.
pub(super) fn pause(tries: u32) -> SignedDuration {
    let index = (tries.max(1) as usize - 1).min(RETRY_PAUSES_SECONDS.len() - 1);
    SignedDuration::from_secs(RETRY_PAUSES_SECONDS[index])
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::testing::{
        NOTHING, PULL, at, can_pass, earlier, failed, hash, home, manual, next_try, scene, scene_with,
    };
    use super::*;

    #[test]
    fn what_can_pass_is_tried_after_one_five_and_every_fifteen_minutes() {
        let scene = scene();
        let mut id = scene.enqueue("media", Trigger::Api, PULL, 0);
        scene.start(id, 1, 0);
        let mut now = 0;
        for (attempt, minutes) in [(1, 1), (2, 5), (3, 15), (4, 15)] {
            assert_eq!(scene.deployment(id).attempt, attempt);
            scene.finish(id, &can_pass("registry away"), now);
            let due = now + minutes * 60;
            assert_eq!(scene.record("media").retry_at, Some(at(due)));
            assert_eq!(scene.store.next_retry_at().unwrap(), Some(at(due)));
            assert!(scene.store.enqueue_due_retries(at(due - 1)).unwrap().is_empty());
            assert!(scene.store.pending().unwrap().is_empty(), "until it is due it is no row");
            id = next_try(&scene, due);
            let row = scene.deployment(id);
            assert_eq!((row.trigger, row.asked, row.forced), (Trigger::Retry, PULL, true));
            now = due;
        }
        scene.finish(id, &Outcome::Success, now);
        assert_eq!(scene.store.next_retry_at().unwrap(), None);
        scene.deploy("media", 2, &can_pass("again"), now);
        assert_eq!(scene.record("media").retry_at, Some(at(now + 60)), "a success starts the pauses anew");
    }

    #[test]
    fn a_final_failure_ends_the_tries() {
        let scene = scene();
        scene.deploy("media", 1, &can_pass("network"), 0);
        let id = next_try(&scene, 60);
        scene.finish(id, &failed("unhealthy"), 61);
        assert_eq!(scene.record("media").retry_at, None);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_put_a_retry_off() {
        let scene = scene();
        scene.deploy("media", 1, &can_pass("network"), 1_000_000);
        assert_eq!(scene.store.enqueue_due_retries(at(0)).unwrap().len(), 1);
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
    fn a_person_does_not_take_over_the_commit_of_a_retry() {
        for (trigger, commit) in [(Trigger::Config, earlier(1).commit), (Trigger::Cli, None)] {
            let scene = scene();
            let id = scene.enqueue("media", Trigger::Api, earlier(1), 1);
            scene.start(id, 1, 2);
            scene.finish(id, &can_pass("registry away"), 3);
            let next = scene.enqueue("media", trigger, NOTHING, 4);
            assert_eq!(scene.deployment(next).asked.commit, commit, "{trigger}");
        }
    }

    #[test]
    fn a_retry_under_manual_is_one_of_the_same_commit() {
        let scene = scene_with(&[manual(home(&["media", "web"]), "media")], 200);
        for (name, commit) in [("media", earlier(1).commit), ("web", None)] {
            let id = scene.enqueue(name, Trigger::Api, NOTHING, 1);
            scene.start(id, 1, 2);
            scene.finish(id, &can_pass("registry away"), 3);
            let retry = scene.store.enqueue_due_retries(at(63)).unwrap()[0].deployment_id;
            assert_eq!(scene.deployment(retry).asked.commit, commit, "{name}: after a failure");
            scene.start(retry, 1, 64);
        }
        scene.store.recover(at(65)).unwrap();
        let queued = scene.store.pending().unwrap();
        let commits: Vec<_> = queued.into_iter().map(|row| row.asked.commit).collect();
        assert_eq!(commits, [earlier(1).commit, None], "after an interruption");
        assert_eq!(scene.record("media").observed_commit, Some(hash(1)));
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
