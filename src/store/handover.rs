//! Deployments whose `up` a helper runs: they stay `running` when the daemon ends, and keep the helper's outcome.

use jiff::Timestamp;
use rusqlite::params;

use super::open::lock;
use super::queue::running_only;
use super::rows::{DEPLOYMENT_COLUMNS, deployment};
use super::{Store, StoreError};
use crate::model::{DeploymentId, DeploymentRecord, LogLevel};

/// A deployment that a helper has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// It.
    pub deployment: DeploymentRecord,
    /// How many bytes of the helper's log are in the deployment's.
    pub log_bytes_taken: u64,
}

/// A line that a helper wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperLine {
    /// When.
    pub at: Timestamp,
    /// How grave it is.
    pub level: LogLevel,
    /// Scrubbed.
    pub message: String,
}

impl Store {
    /// A helper gets the deployment: until [`Store::take_back`], [`Store::recover`] leaves it alone. Durable when it
    /// returns.
    ///
    /// # Errors
    /// A row that is not running is [`StoreError::Refused`].
    pub fn hand_over(&self, id: DeploymentId) -> Result<(), StoreError> {
        self.promise(|transaction| {
            let sql = "UPDATE deployments SET handed_over = 0 WHERE id = ?1 AND status = 'running'";
            running_only(id, transaction.execute(sql, [id])?)
        })
    }

    /// The deployment is the daemon's again. Durable when it returns.
    ///
    /// # Errors
    /// A row that is not running is [`StoreError::Refused`].
    pub fn take_back(&self, id: DeploymentId) -> Result<(), StoreError> {
        self.promise(|transaction| {
            let sql = "UPDATE deployments SET handed_over = NULL WHERE id = ?1 AND status = 'running'";
            running_only(id, transaction.execute(sql, [id])?)
        })
    }

    /// The deployments that helpers have, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn handed_over(&self) -> Result<Vec<HandedOver>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT d.handed_over, {DEPLOYMENT_COLUMNS} FROM deployments d INDEXED BY deployments_by_status \
                 CROSS JOIN repositories r ON r.id = d.repository_id CROSS JOIN projects p ON p.id = d.project_id \
                 WHERE d.status = 'running' AND d.handed_over IS NOT NULL ORDER BY d.id",
            ))?;
            let rows = statement.query_map([], |row| {
                let taken: i64 = row.get(0)?;
                let log_bytes_taken = u64::try_from(taken).unwrap_or_default();
                Ok(HandedOver { deployment: deployment(row, 1)?, log_bytes_taken })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Adds lines of a helper's log, which end at its byte `log_bytes_taken`, to the deployment's: all of them and that
    /// number, or, where it fails, neither.
    ///
    /// # Errors
    /// SQLite's.
    pub fn log_of_helper(
        &self,
        id: DeploymentId,
        lines: &[HelperLine],
        log_bytes_taken: u64,
    ) -> Result<(), StoreError> {
        let mut writers = lock(&self.writers);
        writers.add_to_log(id, lines.iter().map(|line| (line.level, &*line.message, line.at)), |transaction| {
            let taken = i64::try_from(log_bytes_taken).unwrap_or(i64::MAX);
            let sql = "UPDATE deployments SET handed_over = ?2 WHERE id = ?1 AND handed_over IS NOT NULL";
            transaction.execute(sql, params![id, taken])?;
            Ok(())
        })?;
        drop(writers);
        self.changes.line_written();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, Scene, at, brought_up, scene};
    use super::super::{Outcome, StoreError};
    use super::*;
    use crate::model::{Status, Trigger};

    fn given(scene: &Scene) -> DeploymentId {
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 0);
        scene.start(id, 1, 1);
        scene.store.up_begins(id, &brought_up("media", &["web"], &[])).unwrap();
        scene.store.hand_over(id).unwrap();
        id
    }

    fn messages(scene: &Scene, id: DeploymentId) -> Vec<String> {
        scene.store.log_lines(id, 0, 100).unwrap().into_iter().map(|line| line.message).collect()
    }

    #[test]
    fn what_a_helper_has_is_not_interrupted_when_the_daemon_ends() {
        let scene = scene();
        let id = given(&scene);
        let other = scene.enqueue("web", Trigger::Api, NOTHING, 0);
        scene.start(other, 1, 1);
        let scene = scene.killed();
        let interrupted = scene.store.recover(at(2)).unwrap();
        assert_eq!(interrupted.iter().map(|row| row.id).collect::<Vec<_>>(), [other]);
        let left = scene.store.handed_over().unwrap();
        assert_eq!(left.iter().map(|row| row.deployment.id).collect::<Vec<_>>(), [id]);
        assert_eq!(scene.store.unsettled(scene.id("media")).unwrap(), None);

        scene.store.take_back(id).unwrap();
        assert_eq!(scene.store.handed_over().unwrap(), []);
        scene.finish(id, &Outcome::Success, 3);
        assert_eq!(scene.deployment(id).status, Status::Success);
        assert!(matches!(scene.store.hand_over(id), Err(StoreError::Refused(_))));
        assert!(matches!(scene.store.take_back(id), Err(StoreError::Refused(_))));
    }

    #[test]
    fn once_it_is_taken_back_it_is_interrupted_like_every_other() {
        let scene = scene();
        let id = given(&scene);
        scene.store.take_back(id).unwrap();
        let scene = scene.killed();
        assert_eq!(scene.store.recover(at(2)).unwrap().iter().map(|row| row.id).collect::<Vec<_>>(), [id]);
    }

    #[test]
    fn one_whose_helper_is_gone_is_interrupted_and_queued_again() {
        let scene = scene();
        let id = given(&scene);
        let error = "the helper ended without an outcome".to_owned();
        scene.finish(id, &Outcome::Interrupted { error }, 2);
        let row = scene.deployment(id);
        assert_eq!(row.error.as_deref(), Some("interrupted: the helper ended without an outcome"));
        assert_eq!(scene.store.unsettled(scene.id("media")).unwrap().map(|left| left.id), Some(id));
        let again = scene.store.pending().unwrap();
        assert_eq!(again.iter().map(|row| (row.trigger, row.attempt)).collect::<Vec<_>>(), [(Trigger::Retry, 2)]);
        assert_eq!(scene.store.handed_over().unwrap(), []);
    }

    #[test]
    fn each_line_of_a_helper_is_taken_once() {
        let scene = scene();
        let id = given(&scene);
        let line = |message: &str| HelperLine { at: at(2), level: LogLevel::Info, message: message.to_owned() };
        scene.store.log(id, LogLevel::Info, "before", at(1)).unwrap();
        scene.store.log_of_helper(id, &[line("one"), line("two\nlines")], 40).unwrap();
        let scene = scene.killed();
        assert_eq!(scene.store.handed_over().unwrap()[0].log_bytes_taken, 40);
        scene.store.log_of_helper(id, &[line("three")], 60).unwrap();
        assert_eq!(scene.store.handed_over().unwrap()[0].log_bytes_taken, 60);
        assert_eq!(messages(&scene, id), ["before", "one", "two", "lines", "three"]);
    }
}
