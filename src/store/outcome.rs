//! How a deployment ends.

use std::borrow::Cow;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Transaction, params};

use super::history::{one, trim};
use super::open::{Durability, lock};
use super::queue::{TEXT_BYTES_KEPT, Try, queue};
use super::retries::{asked_again, pause};
use super::rows::{self, one_line, stored, stored_or_null};
use super::{Outcome, Store, StoreError};
use crate::model::{Asked, Chance, CommitHash, DeploymentId, DeploymentRecord, Ending, RepositoryId, Status, Trigger};

/// The error of a deployment that was running when the daemon ended. Its first word is the one of spec section 4,
/// Statuses.
const INTERRUPTED: &str = "interrupted: Shiparr ended while this deployment was running";

/// Of a repository (1), all skipped rows that only polls made and that are older than one (2); their logs go with
/// them.
pub(super) const REMOVE_SKIPPED_POLLS: &str = "DELETE FROM deployments INDEXED BY deployments_skipped_polls \
     WHERE repository_id = ?1 AND status = 'skipped' AND only_polled = 1 AND id < ?2";

impl Store {
    /// Ends a running deployment: status, error, times, `last_commit_hash` after a success, the next retry after a
    /// failure that can pass (1, 5 and every 15 minutes), and the trimmed history, in one transaction. It is durable
    /// when it returns, but for a skipped one: where a power cut takes that back, the deployment was interrupted, and
    /// goes again.
    ///
    /// # Errors
    /// A transition that is not allowed, or a success without a commit, is [`StoreError::Refused`].
    pub fn finish(&self, id: DeploymentId, outcome: &Outcome, now: Timestamp) -> Result<(), StoreError> {
        let history_limit = self.history_limit;
        let (next, durability) = match outcome {
            Outcome::Success => (Status::Success, Durability::Promised),
            Outcome::Skipped { .. } => (Status::Skipped, Durability::Noted),
            Outcome::Failed { .. }
            | Outcome::Superseded { .. }
            | Outcome::Cancelled { .. }
            | Outcome::Interrupted { .. } => (Status::Failed, Durability::Promised),
        };
        let mut writers = lock(&self.writers);
        let tails = std::mem::take(&mut writers.tails);
        let result = writers.write(durability, |transaction| {
            let running = Running::load(transaction, id)?;
            if running.status == Status::Pending || !running.status.may_become(next) {
                let refused = format!("deployment {id} is {} and cannot become {next}", running.status);
                return Err(StoreError::Refused(refused));
            }
            match outcome {
                Outcome::Success => running.succeed(transaction, now)?,
                Outcome::Skipped { reason } => running.skip(transaction, reason, now)?,
                Outcome::Failed { error, chance } => running.fail(transaction, error, *chance, now)?,
                Outcome::Superseded { error } => running.end(transaction, Ending::Superseded, error, now)?,
                Outcome::Cancelled { error } => running.end(transaction, Ending::Cancelled, error, now)?,
                Outcome::Interrupted { error } => running.interrupt(transaction, error, now)?,
            }
            tails.end(transaction, id)?;
            self.checks.store_one(transaction, running.repository_id)?;
            trim(transaction, running.repository_id, id, history_limit)?;
            Ok((running.repository_id, running.trigger, running.time_until(now)))
        });
        writers.tails = tails;
        let (repository, trigger, time) = result?;
        writers.tails.forget(id);
        drop(writers);
        self.metrics.deployment_ended(trigger, next, time);
        self.changes.publish_deployment(id, repository);
        Ok(())
    }

    /// What is `running`, and no helper has ([`Store::hand_over`]), becomes `failed: interrupted` and is queued again with
    /// all that was asked of it: at once the first time, then with the pauses of a retry. Each is left
    /// [`Store::unsettled`]. Answers the interrupted ones. For the start, and for what did not end in time when the
    /// daemon stops.
    ///
    /// # Errors
    /// SQLite's; nothing is changed then.
    pub fn recover(&self, now: Timestamp) -> Result<Vec<DeploymentRecord>, StoreError> {
        let interrupted = self.promise(|transaction| {
            let running: Vec<DeploymentId> = transaction
                .prepare("SELECT id FROM deployments WHERE status = 'running' AND handed_over IS NULL ORDER BY id")?
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let mut interrupted = Vec::new();
            for id in running {
                Running::load(transaction, id)?.interrupt(transaction, INTERRUPTED, now)?;
                interrupted.extend(one(transaction, "?1", id)?);
            }
            Ok(interrupted)
        })?;
        for deployment in &interrupted {
            // When it was interrupted nobody knows.
            self.metrics.deployment_ended(deployment.trigger, Status::Failed, None);
            self.changes.publish_deployment(deployment.id, deployment.repository_id);
        }
        Ok(interrupted)
    }
}

/// A deployment that is about to end.
struct Running {
    id: DeploymentId,
    repository_id: RepositoryId,
    status: Status,
    trigger: Trigger,
    started_at: Option<Timestamp>,
    actor: Option<String>,
    asked: Asked,
    attempt: u32,
    interruptions: u32,
    only_polled: bool,
    commit: Option<CommitHash>,
    is_manual: bool,
    is_orphan: bool,
    has_pending: bool,
}

/// What is written of a deployment that has ended.
#[derive(Clone, Copy)]
struct Ended<'a> {
    status: Status,
    ending: Option<Ending>,
    text: Option<&'a str>,
    /// Nobody is told, whatever else happens.
    is_silent: bool,
}

impl Running {
    fn load(transaction: &Transaction, id: DeploymentId) -> Result<Running, StoreError> {
        let mut statement = transaction.prepare_cached(
            "SELECT d.repository_id, d.status, d.asked, d.attempt, d.interruptions, d.only_polled, d.commit_hash, \
             r.is_manual, r.orphaned_at IS NOT NULL, \
             EXISTS (SELECT 1 FROM deployments WHERE repository_id = r.id AND status = 'pending'), d.actor, d.\"trigger\", \
             d.started_at FROM deployments d JOIN repositories r ON r.id = d.repository_id WHERE d.id = ?1",
        )?;
        let running = statement.query_row([id], |row| {
            Ok(Running {
                id,
                repository_id: row.get(0)?,
                status: rows::word(row, 1)?,
                asked: rows::json(row, 2)?,
                attempt: row.get(3)?,
                interruptions: row.get(4)?,
                only_polled: row.get(5)?,
                commit: rows::optional_word(row, 6)?,
                is_manual: row.get(7)?,
                is_orphan: row.get(8)?,
                has_pending: row.get(9)?,
                actor: row.get(10)?,
                trigger: rows::word(row, 11)?,
                started_at: rows::optional_time(row, 12)?,
            })
        });
        match running {
            Err(rusqlite::Error::QueryReturnedNoRows) => {
                Err(StoreError::Refused(format!("there is no deployment {id}")))
            }
            other => Ok(other?),
        }
    }

    /// How long it ran; none where the clock was set back meanwhile.
    fn time_until(&self, now: Timestamp) -> Option<Duration> {
        Duration::try_from(now.duration_since(self.started_at?)).ok()
    }

    fn succeed(&self, transaction: &Transaction, now: Timestamp) -> Result<(), StoreError> {
        let Some(commit) = &self.commit else {
            return Err(StoreError::Refused(format!("deployment {} has no commit: it cannot be a success", self.id)));
        };
        let ended = Ended { status: Status::Success, ending: None, text: None, is_silent: false };
        self.set_ended(transaction, ended, now)?;
        transaction.execute(
            "UPDATE repositories SET last_commit_hash = ?2, unsettled = NULL WHERE id = ?1",
            params![self.repository_id, commit.as_str()],
        )?;
        self.retry_at(transaction, None)
    }

    /// Of rows that only polls made, the newest is kept: it says when the branch last moved elsewhere.
    fn skip(&self, transaction: &Transaction, reason: &str, now: Timestamp) -> Result<(), StoreError> {
        let ended = Ended { status: Status::Skipped, ending: None, text: Some(reason), is_silent: true };
        self.set_ended(transaction, ended, now)?;
        if self.only_polled {
            transaction.prepare_cached(REMOVE_SKIPPED_POLLS)?.execute([self.repository_id, self.id])?;
        }
        Ok(())
    }

    fn fail(&self, transaction: &Transaction, error: &str, chance: Chance, now: Timestamp) -> Result<(), StoreError> {
        match chance {
            Chance::Final => self.end(transaction, Ending::ForGood, error, now),
            Chance::CanPass => {
                self.set_failed(transaction, Ending::CanPass, error, now)?;
                self.again(transaction, Some(pause(self.attempt)), now)
            }
        }
    }

    /// A failure that is not tried again. That of a person, or of a newer row, says so with its first word.
    fn end(&self, transaction: &Transaction, ending: Ending, error: &str, now: Timestamp) -> Result<(), StoreError> {
        self.set_failed(transaction, ending, &with_first_word(ending, error), now)?;
        self.retry_at(transaction, None)
    }

    fn interrupt(&self, transaction: &Transaction, error: &str, now: Timestamp) -> Result<(), StoreError> {
        let error = with_first_word(Ending::Interrupted, error);
        self.set_failed(transaction, Ending::Interrupted, &error, now)?;
        transaction.execute("UPDATE deployments SET interruptions = interruptions + 1 WHERE id = ?1", [self.id])?;
        // Without a commit it may have been killed while it wrote files; what an earlier one left says more than that.
        transaction.execute(
            "UPDATE repositories SET unsettled = ?2 WHERE id = ?1 AND (?3 OR unsettled IS NULL)",
            params![self.repository_id, self.id, self.commit.is_some()],
        )?;
        let next = Running {
            interruptions: self.interruptions + 1,
            asked: self.asked.clone(),
            actor: self.actor.clone(),
            commit: self.commit.clone(),
            ..*self
        };
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
                let same = self.commit.as_ref().filter(|_| self.is_manual);
                let next = Try {
                    trigger: Trigger::Retry,
                    actor: self.actor.clone(),
                    asked: asked_again(self.asked.clone(), same),
                    attempt: self.attempt + 1,
                    interruptions: self.interruptions,
                };
                queue(transaction, self.repository_id, &next, now)?;
                Ok(())
            }
        }
    }

    fn set_failed(
        &self,
        transaction: &Transaction,
        ending: Ending,
        error: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let is_silent = matches!(ending, Ending::Superseded | Ending::Cancelled);
        let ended = Ended { status: Status::Failed, ending: Some(ending), text: Some(error), is_silent };
        self.set_ended(transaction, ended, now)
    }

    fn set_ended(&self, transaction: &Transaction, ended: Ended<'_>, now: Timestamp) -> Result<(), StoreError> {
        transaction
            .prepare_cached(
                "UPDATE deployments SET status = ?2, ending = ?3, error = ?4, finished_at = ?5, told_at = ?6 WHERE id = ?1",
            )?
            .execute(params![
                self.id,
                ended.status.as_str(),
                ended.ending.map(Ending::as_str),
                ended.text.map(|text| one_line(text, TEXT_BYTES_KEPT)),
                stored(now),
                ended.is_silent.then(|| stored(now)),
            ])?;
        Ok(())
    }

    fn retry_at(&self, transaction: &Transaction, at: Option<Timestamp>) -> Result<(), StoreError> {
        transaction
            .prepare_cached("UPDATE repositories SET retry_at = ?2, retry_of = ?3 WHERE id = ?1")?
            .execute(params![self.repository_id, stored_or_null(at), at.map(|_| self.id)])?;
        Ok(())
    }
}

/// The error of one that was ended says so with its first word.
fn with_first_word(ending: Ending, error: &str) -> Cow<'_, str> {
    let word = ending.as_str();
    let says_so = matches!(ending, Ending::Superseded | Ending::Cancelled | Ending::Interrupted);
    if says_so && !begins_with_word(error, word) { format!("{word}: {error}").into() } else { error.into() }
}

/// `cancelled`, `cancelled by whom` or `cancelled: why`.
fn begins_with_word(error: &str, word: &str) -> bool {
    error.strip_prefix(word).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        NOTHING, PULL, RECREATE, at, can_pass, cancelled, commit, failed, hash, home, next_try, scene, scene_with,
        skipped, superseded,
    };
    use super::super::{DeploymentFilter, Outcome, StoreError};
    use super::*;
    use crate::model::LogLevel;

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
        scene.store.checked_out(id, &commit(1), &hash(1)).unwrap();
        scene.finish(id, &Outcome::Success, 3);
        assert!(refused(&failed("x")).contains("is success and cannot become failed"));
        assert_eq!(scene.deployment(id).finished_at, Some(at(3)));
        assert!(matches!(scene.store.finish(99, &Outcome::Success, at(9)), Err(StoreError::Refused(_))));
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
        assert_eq!((row.asked, row.forced), (PULL.joined_by(Trigger::Poll, RECREATE), true));
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
        assert_eq!(
            (rows[0].id, rows[0].asked.clone(), rows[0].forced),
            (pending, PULL.joined_by(Trigger::Poll, RECREATE), true)
        );
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

    #[test]
    fn a_skipped_deployment_is_no_outcome_of_its_repository() {
        let scene = scene();
        let good = scene.deploy("media", 1, &Outcome::Success, 1);
        let id = scene.enqueue("media", Trigger::Webhook, NOTHING, 2);
        scene.store.start(id, "configuration 1", at(3)).unwrap();
        scene.store.fetched(id, &commit(2), &hash(2)).unwrap();
        scene.finish(id, &skipped(), 4);
        let row = scene.deployment(id);
        assert_eq!((row.status, row.ending, row.finished_at), (Status::Skipped, None, Some(at(4))));
        assert_eq!(row.error.as_deref(), Some("nothing under watch_paths changed"));
        let record = scene.record("media");
        assert_eq!((record.status, record.last_commit_hash), (Some(Status::Success), Some(hash(1))));
        assert_eq!((record.observed_commit, record.checked_out_commit), (Some(hash(2)), Some(hash(1))));
        assert_eq!(scene.store.last_outcome(record.id).unwrap().unwrap().id, good);
        scene.store.told(good, false, at(5)).unwrap();
        assert!(scene.store.next_untold(&[]).unwrap().is_none());
    }

    #[test]
    fn of_skipped_rows_that_only_polls_made_the_newest_is_kept() {
        let scene = scene();
        let skip = |name: &str, triggers: &[Trigger], seconds: i64| {
            let ids: Vec<_> = triggers.iter().map(|&trigger| scene.enqueue(name, trigger, NOTHING, seconds)).collect();
            scene.start(ids[0], 1, seconds);
            scene.store.log(ids[0], LogLevel::Info, "a line", at(seconds)).unwrap();
            scene.finish(ids[0], &skipped(), seconds);
            ids[0]
        };
        let other = skip("web", &[Trigger::Poll], 1);
        let asked = scene.deploy("media", 1, &Outcome::Success, 2);
        let joined = skip("media", &[Trigger::Poll, Trigger::Webhook], 3);
        let first = skip("media", &[Trigger::Poll], 4);
        let webhook = skip("media", &[Trigger::Webhook, Trigger::Poll], 5);
        assert_eq!(scene.deployment(first).status, Status::Skipped);
        let last = skip("media", &[Trigger::Poll, Trigger::Poll], 6);
        let kept = scene.store.deployments(&DeploymentFilter::default()).unwrap();
        assert_eq!(kept.iter().map(|row| row.id).collect::<Vec<_>>(), [last, webhook, joined, asked, other]);
        assert!(scene.store.log_lines(first, 0, 9).unwrap().is_empty());
        assert_eq!(scene.store.log_lines(last, 0, 9).unwrap().len(), 1);
    }

    #[test]
    fn skipped_rows_do_not_push_out_what_they_are_about() {
        let scene = scene_with(&[home(&["media"])], 3);
        let good = scene.deploy("media", 1, &Outcome::Success, 1);
        let bad = scene.deploy("media", 2, &failed("unhealthy"), 2);
        while let Some(untold) = scene.store.next_untold(&[]).unwrap() {
            scene.store.told(untold.deployment.id, true, at(3)).unwrap();
        }
        for second in 4..20 {
            let id = scene.enqueue("media", Trigger::Webhook, NOTHING, second);
            scene.start(id, 3, second);
            scene.finish(id, &skipped(), second);
        }
        let kept = scene.store.deployments(&DeploymentFilter::default()).unwrap();
        assert_eq!(kept.len(), 5);
        assert_eq!((kept[3].id, kept[4].id), (bad, good));
        assert_eq!(scene.record("media").status, Some(Status::Failed));
        assert_eq!(scene.store.skip_base(scene.id("media")).unwrap(), Some(hash(2)));
    }

    #[test]
    fn a_superseded_or_cancelled_deployment_says_so_and_is_not_tried_again() {
        let scene = scene();
        let ends = [
            (
                superseded("superseded: a newer commit is there"),
                Ending::Superseded,
                "superseded: a newer commit is there",
            ),
            (superseded("by deployment 7"), Ending::Superseded, "superseded: by deployment 7"),
            (cancelled("cancelled by ada"), Ending::Cancelled, "cancelled by ada"),
            (cancelled("cancelledness"), Ending::Cancelled, "cancelled: cancelledness"),
        ];
        for (outcome, ending, error) in ends {
            let id = scene.deploy("media", 1, &outcome, 1);
            let row = scene.deployment(id);
            assert_eq!((row.status, row.ending, row.error.as_deref()), (Status::Failed, Some(ending), Some(error)));
            assert_eq!(scene.record("media").retry_at, None);
        }
        assert_eq!(scene.record("media").last_commit_hash, None);
        assert!(scene.store.pending().unwrap().is_empty());
    }

    #[test]
    fn how_a_deployment_failed_is_recorded() {
        let scene = scene();
        let ending = |id| scene.deployment(id).ending;
        assert_eq!(ending(scene.deploy("media", 1, &failed("interrupted: by a registry"), 1)), Some(Ending::ForGood));
        assert_eq!(ending(scene.deploy("media", 1, &can_pass("network"), 2)), Some(Ending::CanPass));
        assert_eq!(ending(scene.deploy("media", 1, &Outcome::Success, 3)), None);
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 4);
        scene.start(id, 1, 5);
        assert_eq!(scene.store.recover(at(6)).unwrap()[0].ending, Some(Ending::Interrupted));
        scene.store.sync(&[], &[], at(7)).unwrap();
        assert_eq!(scene.record("media").last_deployment.unwrap().ending, Some(Ending::Orphaned));
    }
}
