//! What the checks of the remotes find. A check that finds nothing new changes memory only: hosts run on SD cards.

use std::collections::HashMap;
use std::sync::Mutex;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::open::lock;
use super::projects::select_repositories;
use super::queue::{TEXT_BYTES_KEPT, Try, queue};
use super::rows::{one_line, optional_word, stored};
use super::{Queued, Store, StoreError};
use crate::model::{Asked, CommitHash, RepositoryId, RepositoryRecord, Trigger};

impl Store {
    /// The next check of a repository is due at `at` (memory only).
    pub fn check_scheduled(&self, id: RepositoryId, at: Timestamp) {
        self.checks.change(id, |check| check.next_at = Some(at));
    }

    /// A check found `tip`. In one transaction, where there is something to write: a new commit is recorded as observed and queued (trigger `poll`), unless
    /// it is running, or is `last_commit_hash` with no later deployment started (spec section 4, Queue). Clears `last_error`. Where nothing is new, only memory changes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn check_found(
        &self,
        id: RepositoryId,
        tip: &CommitHash,
        now: Timestamp,
    ) -> Result<Option<Queued>, StoreError> {
        self.checks.change(id, |check| check.last_at = Some(now));
        let is_news = |known: &Option<Known>| {
            known.as_ref().is_some_and(|known| known.last_error.is_some() || known.observed.as_ref() != Some(tip))
        };
        if !self.read(|connection| Ok(is_news(&known(connection, id)?)))? {
            return Ok(None);
        }
        let queued = self.promise(|transaction| {
            let Some(known) = known(transaction, id)? else { return Ok(None) };
            if known.last_error.is_some() {
                transaction.execute(
                    "UPDATE repositories SET last_error = NULL, failing_since = NULL, failing_told = 0 WHERE id = ?1",
                    [id],
                )?;
            }
            self.checks.store_one(transaction, id)?;
            if known.observed.as_ref() == Some(tip) {
                return Ok(None);
            }
            transaction
                .prepare_cached("UPDATE repositories SET observed_commit = ?2 WHERE id = ?1")?
                .execute(params![id, tip.as_str()])?;
            if is_deployed(transaction, id, tip)? {
                return Ok(None);
            }
            queue(transaction, id, &Try::first(Trigger::Poll, Asked::default()), now).map(Some)
        })?;
        self.changes.happened();
        Ok(queued)
    }

    /// A check failed. Answers whether that is news (no failure before, or another error): only then it is written.
    ///
    /// # Errors
    /// SQLite's.
    pub fn check_failed(&self, id: RepositoryId, error: &str, now: Timestamp) -> Result<bool, StoreError> {
        self.checks.change(id, |check| check.last_at = Some(now));
        let error = one_line(error, TEXT_BYTES_KEPT);
        let known = self.read(|connection| known(connection, id))?;
        if known.is_none_or(|known| known.last_error.as_deref() == Some(error)) {
            return Ok(false);
        }
        self.note(|transaction| {
            transaction.execute(
                "UPDATE repositories SET last_error = ?2, failing_since = ifnull(failing_since, ?3) WHERE id = ?1",
                params![id, error, stored(now)],
            )?;
            self.checks.store_one(transaction, id)
        })?;
        self.changes.happened();
        Ok(true)
    }

    /// Repositories whose checks have failed since before `since` and whose failure nobody was told of; marks them as told. Orphans are not among them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn take_long_failing_checks(&self, since: Timestamp) -> Result<Vec<RepositoryRecord>, StoreError> {
        let condition = "failing_since <= ?1 AND failing_told = 0 AND orphaned_at IS NULL";
        let any = self.read(|connection| {
            let sql = format!("SELECT 1 FROM repositories WHERE {condition} LIMIT 1");
            Ok(connection.prepare_cached(&sql)?.exists([stored(since)])?)
        })?;
        if !any {
            return Ok(Vec::new());
        }
        let mut records = self.note(|transaction| {
            let taken: Vec<RepositoryId> = transaction
                .prepare(&format!("UPDATE repositories SET failing_told = 1 WHERE {condition} RETURNING id"))?
                .query_map([stored(since)], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let mut records = Vec::new();
            for id in taken {
                records.extend(select_repositories(transaction, "WHERE r.id = ?1", [id])?);
            }
            Ok(records)
        })?;
        self.checks.complete(&mut records);
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

#[derive(Clone, Copy, Default)]
struct Check {
    last_at: Option<Timestamp>,
    next_at: Option<Timestamp>,
}

impl Checks {
    /// Completes records with what only memory knows.
    pub(super) fn complete(&self, records: &mut [RepositoryRecord]) {
        let memory = lock(&self.memory);
        for record in records {
            if let Some(check) = memory.get(&record.id) {
                record.last_checked_at = check.last_at.or(record.last_checked_at);
                record.next_check_at = if record.orphaned_at.is_none() { check.next_at } else { None };
            }
        }
    }

    /// Stores the time of a repository's last check with a transaction that writes anyway.
    pub(super) fn store_one(&self, transaction: &Transaction, id: RepositoryId) -> Result<(), StoreError> {
        let last_at = lock(&self.memory).get(&id).and_then(|check| check.last_at);
        if let Some(at) = last_at {
            transaction
                .prepare_cached(
                    "UPDATE repositories SET last_checked_at = ?2 WHERE id = ?1 AND last_checked_at IS NOT ?2",
                )?
                .execute([id, stored(at)])?;
        }
        Ok(())
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
}

/// None: the repository is an orphan, or gone; its timer is about to end.
fn known(connection: &Connection, id: RepositoryId) -> Result<Option<Known>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT observed_commit, last_error FROM repositories WHERE id = ?1 AND orphaned_at IS NULL")?;
    let known = statement
        .query_row([id], |row| Ok(Known { observed: optional_word(row, 0)?, last_error: row.get(1)? }))
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
