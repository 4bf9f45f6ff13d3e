//! `deploy: manual`: what is new is only shown (`waiting`), until somebody asks for its deployment.

use jiff::Timestamp;
use rusqlite::{Transaction, params};

use super::changes::Change;
use super::projects::CONFIGURATION_CHANGED;
use super::queue::{Try, queue, refuse_orphan};
use super::{Queued, Store, StoreError};
use crate::model::{Asked, RepositoryId, Trigger};

impl Store {
    /// The configuration of a repository is not the one that its last deployment started with: a deployment is queued
    /// (trigger `config`), or, under `deploy: manual`, it waits until somebody asks. Durable when it returns.
    ///
    /// # Errors
    /// An orphan, or a repository that is not there, is [`StoreError::Refused`].
    pub fn configuration_changed(&self, id: RepositoryId, now: Timestamp) -> Result<Option<Queued>, StoreError> {
        let (queued, waits_now) = self.promise(|transaction| {
            refuse_orphan(transaction, id)?;
            let is_manual: bool =
                transaction.query_row("SELECT is_manual FROM repositories WHERE id = ?1", [id], |row| row.get(0))?;
            if is_manual {
                return Ok((None, set_waiting(transaction, id, true)?));
            }
            Ok((Some(queue_configuration(transaction, id, now)?), false))
        })?;
        match queued {
            Some(queued) => self.changes.publish_deployment(queued.deployment_id, id),
            None if waits_now => self.changes.publish(&[Change::Repository(id)]),
            None => {}
        }
        Ok(queued)
    }
}

/// Queues a repository's configuration as it is now.
pub(super) fn queue_configuration(
    transaction: &Transaction,
    id: RepositoryId,
    now: Timestamp,
) -> Result<Queued, StoreError> {
    queue(transaction, id, &Try::first(Trigger::Config.into(), Asked::default()), now)
}

/// Answers whether it was otherwise: only then it is written.
pub(super) fn set_waiting(transaction: &Transaction, id: RepositoryId, waiting: bool) -> Result<bool, StoreError> {
    let mut statement =
        transaction.prepare_cached("UPDATE repositories SET waiting = ?2 WHERE id = ?1 AND waiting <> ?2")?;
    Ok(statement.execute(params![id, waiting])? > 0)
}

/// Whether the last deployment started with another configuration: then that waits, whatever the branch holds.
pub(super) fn configuration_waits(transaction: &Transaction, id: RepositoryId) -> Result<bool, StoreError> {
    let sql = format!("SELECT 1 FROM repositories r WHERE r.id = ?1 AND {CONFIGURATION_CHANGED}");
    Ok(transaction.prepare_cached(&sql)?.exists([id])?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, Scene, at, cancelled, commit, failed, hash, home, manual, scene_with};
    use super::super::{Outcome, ProjectSpec};
    use super::*;
    use crate::model::Status;

    fn specs(is_manual: bool) -> [ProjectSpec; 1] {
        let home = home(&["media", "web"]);
        [if is_manual { manual(home, "media") } else { home }]
    }

    fn scene() -> Scene {
        scene_with(&specs(true), 200)
    }

    fn waiting(scene: &Scene) -> bool {
        assert!(!scene.record("web").waiting);
        scene.record("media").waiting
    }

    #[test]
    fn a_new_commit_is_only_recorded() {
        let scene = scene();
        let id = scene.id("media");
        assert!(scene.record("media").is_manual && !scene.record("web").is_manual);
        assert!(scene.check_found(id, &hash(1), at(1)).unwrap().is_none());
        assert_eq!(scene.record("media").observed_commit, Some(hash(1)));
        assert!(waiting(&scene) && waiting(&scene.killed()));
        assert!(scene.store.pending().unwrap().is_empty());

        let deployment = scene.enqueue("media", Trigger::Api, NOTHING, 2);
        scene.store.start(deployment, "configuration 1", at(3)).unwrap();
        assert!(waiting(&scene), "until it is known which commit is deployed");
        scene.store.fetched(deployment, &commit(1), &hash(1)).unwrap();
        assert!(!waiting(&scene));
        scene.finish(deployment, &failed("unhealthy"), 4);
        assert!(scene.check_found(id, &hash(1), at(5)).unwrap().is_none());
        assert!(!waiting(&scene), "it was deployed, however that ended");
    }

    #[test]
    fn a_branch_that_goes_back_to_what_is_deployed_waits_no_more() {
        let scene = scene();
        let id = scene.id("media");
        scene.deploy("media", 1, &Outcome::Success, 1);
        scene.check_found(id, &hash(2), at(2)).unwrap();
        assert!(waiting(&scene));
        scene.check_found(id, &hash(1), at(3)).unwrap();
        assert!(!waiting(&scene));
        scene.deploy("media", 2, &cancelled("by ada"), 4);
        scene.check_found(id, &hash(1), at(5)).unwrap();
        assert!(waiting(&scene), "another one was started since");
    }

    #[test]
    fn a_commit_that_changes_nothing_of_the_stack_waits_for_nobody_and_hides_nothing_that_does() {
        let scene = scene();
        let id = scene.id("media");
        let found = |number: u32, changes_stack: bool| {
            scene.store.check_found(scene.store.check_begins(id), &hash(number), changes_stack, at(9)).unwrap();
            (scene.record("media").observed_commit == Some(hash(number)), waiting(&scene))
        };
        scene.deploy("media", 1, &Outcome::Success, 1);
        assert_eq!(found(2, false), (true, false));
        assert_eq!(found(3, true), (true, true));
        assert_eq!(found(4, false), (true, false), "it was taken back");

        let mut changed = specs(true);
        for repository in &mut changed[0].repositories {
            repository.config_hash = "configuration 2".to_owned();
        }
        scene.store.sync(&changed, &[], at(10)).unwrap();
        assert!(scene.store.changed_configurations().unwrap().contains(&id));
        scene.store.configuration_changed(id, at(11)).unwrap();
        assert_eq!(found(5, false), (true, true), "the configuration waits still");
        assert_eq!(found(1, true), (true, true), "also on the branch that went back to what is deployed");
    }

    #[test]
    fn what_is_pending_while_a_check_finds_more_leaves_it_waiting() {
        let scene = scene();
        let running = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.store.start(running, "configuration 1", at(2)).unwrap();
        let pending = scene.enqueue("media", Trigger::Api, NOTHING, 3);
        scene.check_found(scene.id("media"), &hash(2), at(4)).unwrap();
        scene.store.fetched(running, &commit(1), &hash(1)).unwrap();
        assert!(scene.store.cancel_pending(pending, at(5)).unwrap());
        assert!(waiting(&scene));
        assert_eq!(scene.record("media").observed_commit, Some(hash(2)));
    }

    #[test]
    fn a_changed_configuration_waits_or_is_queued() {
        let scene = scene();
        let (media, web) = (scene.id("media"), scene.id("web"));
        assert_eq!(scene.store.configuration_changed(media, at(1)).unwrap(), None);
        assert!(waiting(&scene));
        let seen = scene.store.change_seen();
        assert_eq!(scene.store.configuration_changed(media, at(2)).unwrap(), None);
        assert_eq!(scene.store.change_seen(), seen, "it is written once");
        let queued = scene.store.configuration_changed(web, at(3)).unwrap().unwrap();
        let row = scene.deployment(queued.deployment_id);
        assert_eq!((row.trigger, row.forced, row.repository_id), (Trigger::Config, true, web));
        assert!(scene.store.configuration_changed(web, at(4)).unwrap().unwrap().joined);
        scene.store.sync(&[], &[], at(5)).unwrap();
        for id in [media, web, 99] {
            assert!(matches!(scene.store.configuration_changed(id, at(6)), Err(StoreError::Refused(_))));
        }
    }

    #[test]
    fn what_waits_is_queued_when_nobody_has_to_ask_any_more() {
        let scene = scene();
        scene.store.sync(&specs(false), &[], at(1)).unwrap();
        assert!(scene.store.pending().unwrap().is_empty(), "nothing waited");
        scene.store.sync(&specs(true), &[], at(2)).unwrap();
        scene.check_found(scene.id("media"), &hash(1), at(3)).unwrap();
        scene.store.sync(&specs(true), &[], at(4)).unwrap();
        assert!(waiting(&scene));
        scene.store.sync(&specs(false), &[], at(5)).unwrap();
        let scene = scene.killed();
        let pending = scene.store.pending().unwrap();
        assert_eq!(pending.iter().map(|row| (row.trigger, row.forced)).collect::<Vec<_>>(), [(Trigger::Config, true)]);
        assert!(!waiting(&scene));
        assert_eq!(scene.record("media").status, Some(Status::Pending));
    }

    #[test]
    fn an_orphan_waits_for_nobody_and_is_looked_at_afresh_when_it_returns() {
        let scene = scene();
        let id = scene.id("media");
        scene.check_found(id, &hash(1), at(1)).unwrap();
        scene.store.sync(&[home(&["web"])], &[], at(2)).unwrap();
        assert!(!waiting(&scene));
        scene.store.sync(&specs(false), &[], at(3)).unwrap();
        assert!(scene.store.pending().unwrap().is_empty());
        scene.store.sync(&specs(true), &[], at(4)).unwrap();
        scene.check_found(id, &hash(1), at(5)).unwrap();
        assert!(waiting(&scene));
        let mut changed = specs(true);
        changed[0].repositories[0].branch = "production".to_owned();
        scene.store.sync(&changed, &[], at(6)).unwrap();
        assert!(!waiting(&scene), "what waited is of another branch");
    }
}
