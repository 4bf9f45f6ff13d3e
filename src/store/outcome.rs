//! How a deployment ends, and when it is tried again.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Transaction, params};

use super::history::{one, trim};
use super::open::{Durability, lock};
use super::queue::{TEXT_BYTES_KEPT, Try, queue, waiting_retry};
use super::rows::{self, one_line, optional_time, stored, stored_or_null};
use super::{Outcome, Queued, Store, StoreError};
use crate::model::{Asked, Chance, DeploymentId, DeploymentRecord, RepositoryId, Status, Trigger};

/// Seconds until the second, the third and every later try of what can pass (spec section 4, Again).
pub const RETRY_PAUSES_SECONDS: [i64; 3] = [60, 5 * 60, 15 * 60];

/// The error of a deployment that was running when the daemon ended. Its first word is the one of spec section 4,
/// Statuses.
const INTERRUPTED: &str = "interrupted: Shiparr ended while this deployment was running";

impl Store {
    /// Ends a running deployment: status, error, times, `last_commit_hash` after a success, the next retry after a
    /// failure that can pass (1, 5 and every 15 minutes), and the trimmed history, in one durable transaction.
    ///
    /// # Errors
    /// A transition that is not allowed, or a success without a commit, is [`StoreError::Refused`].
    pub fn finish(&self, id: DeploymentId, outcome: &Outcome, now: Timestamp) -> Result<(), StoreError> {
        let history_limit = self.history_limit;
        let mut writers = lock(&self.writers);
        let tails = std::mem::take(&mut writers.tails);
        let result = writers.write(Durability::Promised, |transaction| {
            let ending = Ending::load(transaction, id)?;
            let next = match outcome {
                Outcome::Success => Status::Success,
                Outcome::Failed { .. } => Status::Failed,
            };
            if ending.status == Status::Pending || !ending.status.may_become(next) {
                let refused = format!("deployment {id} is {} and cannot become {next}", ending.status);
                return Err(StoreError::Refused(refused));
            }
            match outcome {
                Outcome::Success => ending.succeed(transaction, now)?,
                Outcome::Failed { error, chance } => ending.fail(transaction, error, *chance, now)?,
            }
            tails.end(transaction, id)?;
            self.checks.store_one(transaction, ending.repository_id)?;
            trim(transaction, ending.repository_id, id, history_limit)
        });
        writers.tails = tails;
        result?;
        writers.tails.forget(id);
        drop(writers);
        self.changes.happened();
        Ok(())
    }

    /// What is `running` becomes `failed: interrupted` and is queued again with all that was asked of it: at once the
    /// first time, then with the pauses of a retry. Answers the interrupted ones. For the start, and for what did not
    /// end in time when the daemon stops.
    ///
    /// # Errors
    /// SQLite's; nothing is changed then.
    pub fn recover(&self, now: Timestamp) -> Result<Vec<DeploymentRecord>, StoreError> {
        let interrupted = self.promise(|transaction| {
            let running: Vec<DeploymentId> = transaction
                .prepare("SELECT id FROM deployments WHERE status = 'running' ORDER BY id")?
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let mut interrupted = Vec::new();
            for id in running {
                Ending::load(transaction, id)?.interrupt(transaction, now)?;
                interrupted.extend(one(transaction, "?1", id)?);
            }
            Ok(interrupted)
        })?;
        self.changes.happened();
        Ok(interrupted)
    }

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
                    queued.push(queue(transaction, id, &next, now)?);
                }
            }
            Ok(queued)
        })?;
        self.changes.happened();
        Ok(queued)
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

/// A deployment that is about to end.
struct Ending {
    id: DeploymentId,
    repository_id: RepositoryId,
    status: Status,
    asked: Asked,
    attempt: u32,
    interruptions: u32,
    has_commit: bool,
    is_orphan: bool,
    has_pending: bool,
}

impl Ending {
    fn load(transaction: &Transaction, id: DeploymentId) -> Result<Ending, StoreError> {
        let mut statement = transaction.prepare_cached(
            "SELECT d.repository_id, d.status, d.asked, d.attempt, d.interruptions, d.commit_hash IS NOT NULL, \
             r.orphaned_at IS NOT NULL, EXISTS (SELECT 1 FROM deployments WHERE repository_id = r.id AND status = 'pending') \
             FROM deployments d JOIN repositories r ON r.id = d.repository_id WHERE d.id = ?1",
        )?;
        let ending = statement.query_row([id], |row| {
            Ok(Ending {
                id,
                repository_id: row.get(0)?,
                status: rows::word(row, 1)?,
                asked: rows::asked(row, 2)?,
                attempt: row.get(3)?,
                interruptions: row.get(4)?,
                has_commit: row.get(5)?,
                is_orphan: row.get(6)?,
                has_pending: row.get(7)?,
            })
        });
        match ending {
            Err(rusqlite::Error::QueryReturnedNoRows) => {
                Err(StoreError::Refused(format!("there is no deployment {id}")))
            }
            other => Ok(other?),
        }
    }

    fn succeed(&self, transaction: &Transaction, now: Timestamp) -> Result<(), StoreError> {
        if !self.has_commit {
            return Err(StoreError::Refused(format!("deployment {} has no commit: it cannot be a success", self.id)));
        }
        self.set_ended(transaction, Status::Success, None, now)?;
        transaction.execute(
            "UPDATE repositories SET last_commit_hash = (SELECT commit_hash FROM deployments WHERE id = ?2) WHERE id = ?1",
            [self.repository_id, self.id],
        )?;
        self.retry_at(transaction, None)
    }

    fn fail(&self, transaction: &Transaction, error: &str, chance: Chance, now: Timestamp) -> Result<(), StoreError> {
        self.set_ended(transaction, Status::Failed, Some(one_line(error, TEXT_BYTES_KEPT)), now)?;
        match chance {
            Chance::Final => self.retry_at(transaction, None),
            Chance::CanPass => self.again(transaction, Some(pause(self.attempt)), now),
        }
    }

    fn interrupt(&self, transaction: &Transaction, now: Timestamp) -> Result<(), StoreError> {
        self.set_ended(transaction, Status::Failed, Some(INTERRUPTED), now)?;
        transaction.execute("UPDATE deployments SET interruptions = interruptions + 1 WHERE id = ?1", [self.id])?;
        let next = Ending { interruptions: self.interruptions + 1, asked: self.asked.clone(), ..*self };
        // One that brings the host down must not do so again and again without a pause.
        let wait = (self.interruptions > 0).then(|| pause(self.interruptions));
        next.again(transaction, wait, now)
    }

    /// Queues another try: at once, or after a pause. A row that is pending already is that try.
    fn again(&self, transaction: &Transaction, wait: Option<SignedDuration>, now: Timestamp) -> Result<(), StoreError> {
        if self.is_orphan {
            return Ok(());
        }
        match wait {
            Some(wait) if !self.has_pending => self.retry_at(transaction, Some(now + wait)),
            _ => {
                let next = Try {
                    trigger: Trigger::Retry,
                    asked: self.asked.clone(),
                    attempt: self.attempt + 1,
                    interruptions: self.interruptions,
                };
                queue(transaction, self.repository_id, &next, now)?;
                Ok(())
            }
        }
    }

    fn set_ended(
        &self,
        transaction: &Transaction,
        status: Status,
        error: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        transaction
            .prepare_cached("UPDATE deployments SET status = ?2, error = ?3, finished_at = ?4 WHERE id = ?1")?
            .execute(params![self.id, status.as_str(), error, stored(now)])?;
        Ok(())
    }

    fn retry_at(&self, transaction: &Transaction, at: Option<Timestamp>) -> Result<(), StoreError> {
        transaction
            .prepare_cached("UPDATE repositories SET retry_at = ?2, retry_of = ?3 WHERE id = ?1")?
            .execute(params![self.repository_id, stored_or_null(at), at.map(|_| self.id)])?;
        Ok(())
    }
}

/// How long the next try waits after `tries` of them.
fn pause(tries: u32) -> SignedDuration {
    let index = (tries.max(1) as usize - 1).min(RETRY_PAUSES_SECONDS.len() - 1);
    SignedDuration::from_secs(RETRY_PAUSES_SECONDS[index])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        NOTHING, PULL, RECREATE, Scene, at, can_pass, commit, failed, hash, home, scene, scene_with,
    };
    use super::super::{DeploymentFilter, Outcome, StoreError};
    use super::*;
    use crate::model::LogLevel;

    /// Enqueues what is due, starts it, and answers its id and its number of the try.
    fn next_try(scene: &Scene, seconds: i64) -> DeploymentId {
        let queued = scene.store.enqueue_due_retries(at(seconds)).unwrap();
        assert_eq!(queued.len(), 1, "one retry is due");
        scene.start(queued[0].deployment_id, 1, seconds);
        queued[0].deployment_id
    }

    #[test]
    fn only_a_success_moves_the_last_commit() {
        let scene = scene();
        let first = scene.deploy("media", 1, &Outcome::Success, 10);
        assert_eq!(scene.record("media").last_commit_hash, Some(hash(1)));
        scene.deploy("media", 2, &failed("it does not parse\nline 2"), 20);
        let record = scene.record("media");
        assert_eq!(record.last_commit_hash, Some(hash(1)));
        assert_eq!(record.checked_out_commit, Some(hash(2)));
        assert_eq!(record.status, Some(Status::Failed));
        let last = record.last_deployment.unwrap();
        assert_eq!((last.error.as_deref(), last.finished_at), (Some("it does not parse"), Some(at(20))));
        assert_eq!(scene.deployment(first).error, None);
    }

    #[test]
    fn a_transition_that_is_not_allowed_is_refused_and_changes_nothing() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        let refused = |outcome: &Outcome| match scene.store.finish(id, outcome, at(9)) {
            Err(StoreError::Refused(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(refused(&Outcome::Success).contains("is pending and cannot become success"));
        assert!(refused(&failed("x")).contains("is pending"));
        scene.store.start(id, "configuration 1", at(2)).unwrap();
        assert!(refused(&Outcome::Success).contains("has no commit"));
        assert_eq!(scene.deployment(id).status, Status::Running);
        scene.store.checked_out(id, &commit(1)).unwrap();
        scene.finish(id, &Outcome::Success, 3);
        assert!(refused(&failed("x")).contains("is success and cannot become failed"));
        assert_eq!(scene.deployment(id).finished_at, Some(at(3)));
        assert!(matches!(scene.store.finish(99, &Outcome::Success, at(9)), Err(StoreError::Refused(_))));
    }

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
    fn a_pending_row_takes_the_place_of_a_retry_with_all_that_was_asked() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, PULL, 0);
        scene.start(id, 1, 0);
        let pending = scene.enqueue("media", Trigger::Poll, RECREATE, 1);
        assert!(!scene.deployment(pending).forced);
        scene.finish(id, &can_pass("network"), 2);
        assert_eq!(scene.record("media").retry_at, None);
        let row = scene.deployment(pending);
        assert_eq!((row.asked, row.forced), (PULL.and(RECREATE), true));
    }

    #[test]
    fn an_interrupted_deployment_goes_again_at_once_and_then_with_pauses() {
        let mut scene = scene();
        let first = scene.enqueue("media", Trigger::Webhook, PULL, 0);
        scene.start(first, 1, 0);
        scene = scene.killed();
        let interrupted = scene.store.recover(at(10)).unwrap();
        assert_eq!(interrupted.len(), 1);
        assert_eq!((interrupted[0].id, interrupted[0].status), (first, Status::Failed));
        assert!(interrupted[0].error.as_deref().unwrap().starts_with("interrupted: "));
        let mut row = scene.store.pending().unwrap().remove(0);
        assert_eq!((row.trigger, row.attempt, row.asked, row.forced), (Trigger::Retry, 2, PULL, true));
        let mut now = 20;
        for (attempt, minutes) in [(2, 1), (3, 5), (4, 15), (5, 15)] {
            assert_eq!(row.attempt, attempt);
            scene.start(row.id, 1, now);
            scene = scene.killed();
            scene.store.recover(at(now)).unwrap();
            assert!(scene.store.pending().unwrap().is_empty());
            now += minutes * 60;
            assert_eq!(scene.record("media").retry_at, Some(at(now)));
            row = scene.deployment(scene.store.enqueue_due_retries(at(now)).unwrap()[0].deployment_id);
            assert_eq!(row.asked, PULL);
        }
        assert!(scene.store.recover(at(now)).unwrap().is_empty());
    }

    #[test]
    fn an_interruption_is_remembered_over_a_failure_that_can_pass() {
        let scene = scene();
        let first = scene.enqueue("media", Trigger::Api, NOTHING, 0);
        scene.start(first, 1, 0);
        scene.store.recover(at(1)).unwrap();
        let second = scene.store.pending().unwrap()[0].id;
        scene.start(second, 1, 2);
        scene.finish(second, &can_pass("Docker is not there yet"), 3);
        let third = next_try(&scene, 1000);
        scene.store.recover(at(1001)).unwrap();
        assert_eq!(scene.deployment(third).status, Status::Failed);
        assert!(scene.store.pending().unwrap().is_empty(), "it waits before it may bring the host down again");
        assert_eq!(scene.record("media").retry_at, Some(at(1061)));
    }

    #[test]
    fn an_interrupted_deployment_joins_the_row_that_is_pending() {
        let scene = scene();
        let first = scene.enqueue("media", Trigger::Api, PULL, 0);
        scene.start(first, 1, 0);
        let pending = scene.enqueue("media", Trigger::Poll, RECREATE, 1);
        scene.store.recover(at(2)).unwrap();
        let rows = scene.store.pending().unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].id, rows[0].asked.clone(), rows[0].forced), (pending, PULL.and(RECREATE), true));
        scene.start(pending, 1, 3);
        scene.store.recover(at(4)).unwrap();
        assert_eq!(scene.record("media").retry_at, Some(at(64)), "the second interruption in a row waits");
    }

    #[test]
    fn an_orphan_is_not_tried_again() {
        let scene = scene();
        for name in ["media", "web"] {
            let id = scene.enqueue(name, Trigger::Api, NOTHING, 0);
            scene.start(id, 1, 0);
        }
        let media = scene.record("media").last_deployment.unwrap().id;
        scene.store.sync(&[], &[], at(1)).unwrap();
        scene.finish(media, &can_pass("network"), 2);
        scene.store.recover(at(3)).unwrap();
        assert_eq!(scene.store.next_retry_at().unwrap(), None);
        assert!(scene.store.pending().unwrap().is_empty());
        assert_eq!(scene.record("web").status, Some(Status::Failed));
    }

    #[test]
    fn history_is_trimmed_but_never_the_last_success() {
        let scene = scene_with(&[home(&["media", "web"])], 3);
        let other = scene.deploy("web", 1, &Outcome::Success, 0);
        let good = scene.deploy("media", 1, &Outcome::Success, 1);
        let mut ids = vec![good];
        for number in 2..12 {
            let id = scene.deploy("media", number, &failed("unhealthy"), number.into());
            scene.store.log(id, LogLevel::Error, "unhealthy", at(0)).unwrap();
            while let Some(untold) = scene.store.next_untold(&[]).unwrap() {
                scene.store.told(untold.deployment.id, true, at(0)).unwrap();
            }
            ids.push(id);
        }
        // The last three, the success, and the one that was over the limit when nobody had been told of its successor
        // yet.
        let kept: Vec<_> = scene.store.deployments(&DeploymentFilter::default()).unwrap();
        let kept: Vec<_> = kept.iter().map(|row| row.id).collect();
        assert_eq!(kept, [ids[10], ids[9], ids[8], good, other]);
        assert!(scene.store.log_lines(ids[3], 0, 10).unwrap().is_empty());
        let lines: i64 = scene.shell().query_row("SELECT count(*) FROM deployment_logs", [], |row| row.get(0)).unwrap();
        assert_eq!(lines, 3);
    }

    #[test]
    fn nobody_misses_a_message_because_of_the_limit() {
        let scene = scene_with(&[home(&["media"])], 1);
        let first = scene.deploy("media", 1, &failed("unhealthy"), 1);
        let second = scene.deploy("media", 2, &failed("unhealthy"), 2);
        assert_eq!(scene.store.next_untold(&[]).unwrap().unwrap().deployment.id, first);
        scene.store.told(first, true, at(3)).unwrap();
        assert_eq!(scene.store.next_untold(&[]).unwrap().unwrap().deployment.id, second);
        scene.store.told(second, true, at(3)).unwrap();
        let third = scene.deploy("media", 3, &failed("unhealthy"), 4);
        let kept = scene.store.deployments(&DeploymentFilter::default()).unwrap();
        assert_eq!(kept.iter().map(|row| row.id).collect::<Vec<_>>(), [third]);
    }

    #[test]
    fn a_row_that_waits_or_runs_is_not_trimmed() {
        let scene = scene_with(&[home(&["media"])], 1);
        let running = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(running, 1, 1);
        let pending = scene.enqueue("media", Trigger::Api, NOTHING, 2);
        scene.finish(running, &failed("unhealthy"), 3);
        assert_eq!(scene.deployment(running).status, Status::Failed);
        assert_eq!(scene.deployment(pending).status, Status::Pending);
    }
}
