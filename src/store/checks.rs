//! What the checks of the remotes find. A check that finds nothing new changes memory only: hosts run on SD cards.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::changes::Change;
use super::manual::{configuration_waits, set_waiting};
use super::open::lock;
use super::projects::select_repositories;
use super::queue::{TEXT_BYTES_KEPT, Try, queue};
use super::rows::{one_line, optional_word, stored};
use super::{Queued, Store, StoreError};
use crate::model::{Asked, CommitHash, RepositoryId, RepositoryRecord, Trigger};

/// While checks go on failing, another text of their error is written no more often than this: some forges put a number
/// of their own into each.
const ERROR_WRITTEN_EVERY: Duration = Duration::from_secs(600);

/// A check that is under way.
#[derive(Clone, Copy, Debug)]
pub struct CheckBegun {
    id: RepositoryId,
    /// What deployments had fetched until then.
    fetches: u64,
}

/// What came of a check that got an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing new, or nothing to do about it.
    Nothing,
    /// A deployment.
    Queued(Queued),
    /// A deployment fetched while the remote was asked, and another commit: which of the two is newer only another
    /// check can tell. Neither was recorded by this one.
    Outdated,
}

impl Store {
    /// A check is about to ask the remote (memory only).
    pub fn check_begins(&self, id: RepositoryId) -> CheckBegun {
        CheckBegun { id, fetches: self.checks.fetches(id) }
    }

    /// The next check of a repository is due at `at` (memory only).
    pub fn check_scheduled(&self, id: RepositoryId, at: Timestamp) {
        self.checks.change(id, |check| check.next_at = Some(at));
        self.changes.publish(&[Change::Repository(id)]);
    }

    /// A check found `tip`. In one transaction, where there is something to write: a new commit is recorded as observed
    /// and queued (trigger `poll`), unless it is running, or is `last_commit_hash` with no later deployment started
    /// (spec section 4, Queue). Under `deploy: manual` it is recorded, and waits, in place of being queued, if it
    /// `changes_stack`; a deployment finds that out for itself. Clears `last_error`. Where nothing is new, only memory
    /// changes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn check_found(
        &self,
        begun: CheckBegun,
        tip: &CommitHash,
        changes_stack: bool,
        now: Timestamp,
    ) -> Result<Found, StoreError> {
        let id = begun.id;
        self.checks.change(id, |check| {
            check.last_at = Some(now);
            check.error = None;
        });
        let is_news = |known: &Option<Known>| {
            known.as_ref().is_some_and(|known| known.last_error.is_some() || known.observed.as_ref() != Some(tip))
        };
        if !self.read(|connection| Ok(is_news(&known(connection, id)?)))? {
            self.changes.publish(&[Change::Repository(id)]);
            return Ok(Found::Nothing);
        }
        let found = self.promise(|transaction| {
            let Some(known) = known(transaction, id)? else { return Ok(Found::Nothing) };
            if known.last_error.is_some() {
                transaction.execute(
                    "UPDATE repositories SET last_error = NULL, failing_since = NULL, failing_told = 0 WHERE id = ?1",
                    [id],
                )?;
            }
            self.checks.store_one(transaction, id)?;
            if known.observed.as_ref() == Some(tip) {
                return Ok(Found::Nothing);
            }
            // No fetch can be recorded between this and the end of the transaction.
            if self.checks.fetches(id) != begun.fetches {
                return Ok(Found::Outdated);
            }
            transaction
                .prepare_cached("UPDATE repositories SET observed_commit = ?2 WHERE id = ?1")?
                .execute(params![id, tip.as_str()])?;
            let is_deployed = is_deployed(transaction, id, tip)?;
            if known.is_manual {
                let waits = changes_stack && !is_deployed || configuration_waits(transaction, id)?;
                set_waiting(transaction, id, waits)?;
            }
            if known.is_manual || is_deployed {
                return Ok(Found::Nothing);
            }
            queue(transaction, id, &Try::first(Trigger::Poll.into(), Asked::default()), now).map(Found::Queued)
        })?;
        match found {
            Found::Queued(queued) => self.changes.publish_deployment(queued.deployment_id, id),
            Found::Nothing | Found::Outdated => self.changes.publish(&[Change::Repository(id)]),
        }
        Ok(found)
    }

    /// A check failed. Written is only that it began to, and another error than before at most once in ten minutes; in
    /// between memory has the newest. Answers whether it was written.
    ///
    /// # Errors
    /// SQLite's.
    pub fn check_failed(&self, id: RepositoryId, error: &str, now: Timestamp) -> Result<bool, StoreError> {
        let error = one_line(error, TEXT_BYTES_KEPT);
        let Some(known) = self.read(|connection| known(connection, id))? else { return Ok(false) };
        let mut was_written_lately = false;
        self.checks.change(id, |check| {
            check.last_at = Some(now);
            check.error = Some(error.to_owned());
            // A clock that is set back must not hold it up for longer.
            was_written_lately =
                check.error_written_at.is_some_and(|at| now.duration_since(at).unsigned_abs() < ERROR_WRITTEN_EVERY);
        });
        let is_written = known.last_error.is_some_and(|written| written == error || was_written_lately);
        if is_written {
            self.changes.publish(&[Change::Repository(id)]);
            return Ok(false);
        }
        self.note(|transaction| {
            transaction.execute(
                "UPDATE repositories SET last_error = ?2, failing_since = ifnull(failing_since, ?3) WHERE id = ?1",
                params![id, error, stored(now)],
            )?;
            self.checks.store_one(transaction, id)
        })?;
        self.checks.change(id, |check| check.error_written_at = Some(now));
        self.changes.publish(&[Change::Repository(id)]);
        Ok(true)
    }

    /// Repositories whose checks have failed for long ([`RepositoryRecord::has_failed_long`]) and whose failure nobody
    /// was told of; marks them as told. Those of the projects in `left` are left for later, as by
    /// [`Store::next_untold`].
    ///
    /// # Errors
    /// SQLite's.
    pub fn take_long_failing_checks(&self, left: &[String]) -> Result<Vec<RepositoryRecord>, StoreError> {
        let mut records = self.read(|connection| {
            select_repositories(connection, "WHERE r.failing_since IS NOT NULL AND r.failing_told = 0", [])
        })?;
        self.checks.complete(&mut records);
        records.retain(|record| record.has_failed_long() && !left.contains(&record.name.project));
        if !records.is_empty() {
            self.note(|transaction| {
                for record in &records {
                    transaction.execute("UPDATE repositories SET failing_told = 1 WHERE id = ?1", [record.id])?;
                }
                Ok(())
            })?;
        }
        Ok(records)
    }

    /// Writes what is only in memory; called when the daemon stops.
    ///
    /// # Errors
    /// SQLite's.
    pub fn flush_checks(&self) -> Result<(), StoreError> {
        let ids: Vec<RepositoryId> = lock(&self.checks.memory).keys().copied().collect();
        self.note(|transaction| {
            for id in ids {
                self.checks.store_one(transaction, id)?;
            }
            Ok(())
        })
    }
}

/// The memory of the last checks, laid over the records that the database gives.
#[derive(Default)]
pub(super) struct Checks {
    memory: Mutex<HashMap<RepositoryId, Check>>,
}

#[derive(Default)]
struct Check {
    last_at: Option<Timestamp>,
    next_at: Option<Timestamp>,
    /// What the last check failed with, newer than what is written; none where it did not fail, or nobody knows.
    error: Option<String>,
    error_written_at: Option<Timestamp>,
    /// How often a deployment has recorded what it fetched.
    fetches: u64,
}

impl Checks {
    /// Completes records with what only memory knows.
    pub(super) fn complete(&self, records: &mut [RepositoryRecord]) {
        let memory = lock(&self.memory);
        for record in records {
            if let Some(check) = memory.get(&record.id) {
                record.last_checked_at = check.last_at.or(record.last_checked_at);
                record.next_check_at = if record.orphaned_at.is_none() { check.next_at } else { None };
                // Where none is written it was cleared since: its remote is another one, or it is an orphan.
                record.last_error = record.last_error.take().map(|written| check.error.clone().unwrap_or(written));
            }
        }
    }

    /// Stores the time of a repository's last check, and what it failed with, with a transaction that writes anyway.
    pub(super) fn store_one(&self, transaction: &Transaction, id: RepositoryId) -> Result<(), StoreError> {
        let last = lock(&self.memory).get(&id).map(|check| (check.last_at, check.error.clone()));
        let (last_at, error) = last.unwrap_or_default();
        if let Some(error) = error {
            transaction
                .prepare_cached(
                    "UPDATE repositories SET last_error = ?2 WHERE id = ?1 AND last_error IS NOT NULL AND last_error <> ?2",
                )?
                .execute(params![id, error])?;
        }
        if let Some(at) = last_at {
            transaction
                .prepare_cached(
                    "UPDATE repositories SET last_checked_at = ?2 WHERE id = ?1 AND last_checked_at IS NOT ?2",
                )?
                .execute([id, stored(at)])?;
        }
        Ok(())
    }

    /// A deployment records what it fetched, in a transaction that is under way: what a check asked before may be
    /// older.
    pub(super) fn fetched(&self, id: RepositoryId) {
        self.change(id, |check| check.fetches += 1);
    }

    fn fetches(&self, id: RepositoryId) -> u64 {
        lock(&self.memory).get(&id).map_or(0, |check| check.fetches)
    }

    /// Forgets repositories that are no more.
    pub(super) fn forget(&self, ids: &[RepositoryId]) {
        lock(&self.memory).retain(|id, _| !ids.contains(id));
    }

    fn change(&self, id: RepositoryId, change: impl FnOnce(&mut Check)) {
        change(lock(&self.memory).entry(id).or_default());
    }
}

/// What the database knows of a repository's checks.
struct Known {
    observed: Option<CommitHash>,
    last_error: Option<String>,
    is_manual: bool,
}

/// None: the repository is an orphan, or gone; its timer is about to end.
fn known(connection: &Connection, id: RepositoryId) -> Result<Option<Known>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT observed_commit, last_error, is_manual FROM repositories WHERE id = ?1 AND orphaned_at IS NULL",
    )?;
    let known = statement
        .query_row([id], |row| {
            Ok(Known { observed: optional_word(row, 0)?, last_error: row.get(1)?, is_manual: row.get(2)? })
        })
        .optional()?;
    Ok(known)
}

/// Whether `tip` is running, or was the last success with nothing started since.
fn is_deployed(transaction: &Transaction, id: RepositoryId, tip: &CommitHash) -> Result<bool, StoreError> {
    let mut statement = transaction.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM deployments WHERE repository_id = ?1 AND status = 'running' AND commit_hash = ?2) \
         OR EXISTS (SELECT 1 FROM repositories WHERE id = ?1 AND last_commit_hash = ?2) AND NOT EXISTS \
         (SELECT 1 FROM deployments WHERE repository_id = ?1 AND started_at IS NOT NULL AND status <> 'skipped' AND id > \
         ifnull((SELECT max(id) FROM deployments WHERE repository_id = ?1 AND status = 'success'), 0))",
    )?;
    Ok(statement.query_row(params![id, tip.as_str()], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Outcome;
    use super::super::testing::{NOTHING, Scene, at, commit, failed, hash, home, scene};
    use super::*;
    use crate::model::Status;

    /// Length and time of change of every file in the data folder.
    fn files(scene: &Scene) -> Vec<(std::ffi::OsString, u64, std::time::SystemTime)> {
        let mut files: Vec<_> = fs::read_dir(scene.folder.path())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                (entry.file_name(), metadata.len(), metadata.modified().unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn a_new_commit_is_queued_once() {
        let scene = scene();
        let id = scene.id("media");
        let queued = scene.check_found(id, &hash(1), at(1)).unwrap().unwrap();
        assert!(!queued.joined);
        let row = scene.deployment(queued.deployment_id);
        assert_eq!((row.trigger, row.forced, row.commit), (Trigger::Poll, false, None));
        assert_eq!(scene.record("media").observed_commit, Some(hash(1)));
        assert!(scene.check_found(id, &hash(1), at(2)).unwrap().is_none());
        let next = scene.check_found(id, &hash(2), at(3)).unwrap().unwrap();
        assert_eq!((next.deployment_id, next.joined), (queued.deployment_id, true));
    }

    #[test]
    fn a_thousand_checks_that_find_nothing_new_write_nothing() {
        let scene = scene();
        let id = scene.id("media");
        scene.check_found(id, &hash(1), at(0)).unwrap();
        let other = scene.id("web");
        scene.store.check_failed(other, "the remote does not answer", at(0)).unwrap();
        let before = files(&scene);
        for second in 1..=1000 {
            assert!(scene.check_found(id, &hash(1), at(second)).unwrap().is_none());
            scene.store.check_scheduled(id, at(second + 300));
            assert!(!scene.store.check_failed(other, "the remote does not answer", at(second)).unwrap());
            assert!(scene.store.take_long_failing_checks(&[]).unwrap().is_empty());
        }
        assert_eq!(files(&scene), before);
        let record = scene.record("media");
        assert_eq!((record.last_checked_at, record.next_check_at), (Some(at(1000)), Some(at(1300))));
        assert_eq!(scene.record("web").last_checked_at, Some(at(1000)));
    }

    #[test]
    fn what_is_only_in_memory_is_stored_with_the_next_write_or_at_the_end() {
        let scene = scene();
        let (media, web) = (scene.id("media"), scene.id("web"));
        for id in [media, web] {
            scene.check_found(id, &hash(1), at(1)).unwrap();
            scene.check_found(id, &hash(1), at(2)).unwrap();
        }
        assert_eq!(scene.killed().record("media").last_checked_at, Some(at(1)));
        let pending = scene.record("media").last_deployment.unwrap().id;
        scene.start(pending, 1, 3);
        scene.finish(pending, &Outcome::Success, 4);
        let later = scene.killed();
        assert_eq!(later.record("media").last_checked_at, Some(at(2)));
        assert_eq!(later.record("web").last_checked_at, Some(at(1)));
        scene.store.flush_checks().unwrap();
        let later = scene.killed();
        assert_eq!(later.record("web").last_checked_at, Some(at(2)));
        assert_eq!(later.record("web").next_check_at, None);
    }

    #[test]
    fn a_poll_of_what_runs_or_was_deployed_makes_no_row() {
        let scene = scene();
        let id = scene.id("media");
        // Somebody asked before the first check.
        let first = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(first, 1, 2);
        let forget = || {
            scene.shell().execute("UPDATE repositories SET observed_commit = NULL", []).unwrap();
        };
        forget();
        assert!(scene.check_found(id, &hash(1), at(3)).unwrap().is_none(), "it is running");
        assert_eq!(scene.record("media").observed_commit, Some(hash(1)));
        scene.finish(first, &Outcome::Success, 4);
        forget();
        assert!(scene.check_found(id, &hash(1), at(5)).unwrap().is_none(), "it was deployed");
        scene.deploy("media", 2, &failed("unhealthy"), 6);
        let back = scene.check_found(id, &hash(1), at(7)).unwrap();
        assert!(back.is_some(), "another commit was started since, so the old one is not what runs");
    }

    #[test]
    fn a_poll_queues_beside_a_row_that_runs_another_commit_or_an_unknown_one() {
        let scene = scene();
        let id = scene.id("media");
        let running = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.store.start(running, "configuration 1", at(2)).unwrap();
        let queued = scene.check_found(id, &hash(1), at(3)).unwrap().unwrap();
        assert_ne!(queued.deployment_id, running);
        assert_eq!(scene.record("media").status, Some(Status::Running));
    }

    #[test]
    fn a_failing_check_is_news_when_it_begins_changes_and_ends() {
        let scene = scene();
        let id = scene.id("media");
        assert!(scene.store.check_failed(id, "the remote does not answer", at(1)).unwrap());
        assert!(!scene.store.check_failed(id, "the remote does not answer", at(2)).unwrap());
        assert!(scene.store.check_failed(id, "401: the token was refused\nby the forge", at(601)).unwrap());
        let record = scene.record("media");
        assert_eq!(record.last_error.as_deref(), Some("401: the token was refused"));
        assert_eq!((record.failing_since, record.last_checked_at), (Some(at(1)), Some(at(601))));
        scene.check_found(id, &hash(1), at(4)).unwrap();
        let record = scene.record("media");
        assert_eq!((record.last_error, record.failing_since), (None, None));
        assert!(scene.store.check_failed(id, "the remote does not answer", at(5)).unwrap());
        assert!(scene.check_found(id, &hash(1), at(6)).unwrap().is_none());
        assert_eq!(scene.record("media").last_error, None, "also when the commit is the same");
    }

    #[test]
    fn an_error_whose_text_varies_is_shown_at_once_and_written_once_in_ten_minutes() {
        let scene = scene();
        let id = scene.id("media");
        let text = |second| format!("the remote did not answer for {second} ms");
        let fails = |second| scene.store.check_failed(id, &text(second), at(second)).unwrap();
        assert!(fails(0));
        let before = files(&scene);
        assert!(!(1..600).any(fails));
        assert_eq!(files(&scene), before);
        assert_eq!(scene.record("media").last_error, Some(text(599)));
        assert_eq!(scene.killed().record("media").last_error, Some(text(0)));
        assert!(fails(600));
        assert!(!fails(601));
        assert!(fails(-1), "a clock that was set back holds nothing up");
        assert!(!fails(0));
        scene.store.flush_checks().unwrap();
        assert_eq!(scene.killed().record("media").last_error, Some(text(0)));
        scene.check_found(id, &hash(1), at(1)).unwrap();
        assert_eq!(scene.record("media").last_error, None);
        assert!(fails(2), "it begins anew");
    }

    #[test]
    fn a_check_that_asked_before_a_deployment_fetched_is_asked_again() {
        let scene = scene();
        let id = scene.id("media");
        scene.check_found(id, &hash(1), at(1)).unwrap();
        let old = scene.store.check_begins(id);
        let pending = scene.record("media").last_deployment.unwrap().id;
        scene.store.start(pending, "configuration 1", at(2)).unwrap();
        scene.store.fetched(pending, &commit(2), &hash(2)).unwrap();
        scene.store.checked_out(pending, &commit(2), &hash(2)).unwrap();
        assert_eq!(scene.store.check_found(old, &hash(1), true, at(3)).unwrap(), Found::Outdated);
        assert_eq!(scene.record("media").observed_commit, Some(hash(2)));
        assert_eq!(scene.store.check_found(old, &hash(2), true, at(3)).unwrap(), Found::Nothing);
        let again = scene.store.check_begins(id);
        assert!(
            matches!(scene.store.check_found(again, &hash(1), true, at(4)).unwrap(), Found::Queued(_)),
            "a force push"
        );
    }

    #[test]
    fn a_long_failure_is_taken_once_until_it_has_ended() {
        const HOUR: i64 = 3600;
        let scene = scene();
        let (media, web) = (scene.id("media"), scene.id("web"));
        let take = || {
            let taken = scene.store.take_long_failing_checks(&[]).unwrap();
            taken.iter().map(|record| record.id).collect::<Vec<_>>()
        };
        let fails = |id, second| assert!(scene.store.check_failed(id, "away", at(second)).is_ok());
        fails(media, 0);
        fails(web, 10);
        fails(media, HOUR - 1);
        assert!(take().is_empty());
        fails(media, HOUR);
        assert!(scene.store.take_long_failing_checks(&["home".to_owned()]).unwrap().is_empty());
        assert_eq!(take(), [media]);
        assert!(take().is_empty());
        fails(web, HOUR + 10);
        assert_eq!(take(), [web]);
        scene.check_found(media, &hash(1), at(2 * HOUR)).unwrap();
        fails(media, 2 * HOUR + 1);
        assert!(take().is_empty(), "one failed check, however long ago, is no long failure");
        fails(media, 3 * HOUR + 1);
        assert_eq!(take(), [media]);
        scene.check_found(web, &hash(1), at(3 * HOUR)).unwrap();
        fails(web, 3 * HOUR + 1);
        fails(web, 5 * HOUR);
        scene.store.sync(&[home(&["media"])], &[], at(5 * HOUR)).unwrap();
        assert!(take().is_empty(), "nobody waits for an orphan");
    }

    #[test]
    fn a_check_that_ends_after_its_repository_became_an_orphan_changes_nothing() {
        let scene = scene();
        let id = scene.id("media");
        scene.store.check_scheduled(id, at(300));
        scene.store.sync(&[home(&["web"])], &[], at(1)).unwrap();
        assert!(scene.check_found(id, &hash(1), at(2)).unwrap().is_none());
        assert!(!scene.store.check_failed(id, "away", at(3)).unwrap());
        let record = scene.record("media");
        assert_eq!((record.observed_commit, record.last_error, record.next_check_at), (None, None, None));
        assert!(scene.check_found(99, &hash(1), at(2)).unwrap().is_none());
    }
}
