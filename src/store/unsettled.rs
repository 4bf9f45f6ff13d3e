//! What a deployment that was interrupted left on the host, until it is put right.

use rusqlite::params;

use super::history::one;
use super::{Store, StoreError};
use crate::model::{DeploymentId, DeploymentRecord, RepositoryId};

impl Store {
    /// The deployment of a repository whose files have not been put back yet, or whose containers have not been healed:
    /// one that was interrupted, or that [`Store::leave_unsettled`] named. It stays so until [`Store::settled`] or the
    /// next success.
    ///
    /// # Errors
    /// SQLite's.
    pub fn unsettled(&self, id: RepositoryId) -> Result<Option<DeploymentRecord>, StoreError> {
        self.read(|connection| one(connection, "(SELECT unsettled FROM repositories WHERE id = ?1)", id))
    }

    /// What a deployment left could not be put right: the next one of its repository has to do that first. Durable when
    /// it returns.
    ///
    /// # Errors
    /// A deployment that is not there is [`StoreError::Refused`].
    pub fn leave_unsettled(&self, id: DeploymentId) -> Result<(), StoreError> {
        self.promise(|transaction| {
            let written = transaction.execute(
                "UPDATE repositories SET unsettled = ?1 WHERE id = (SELECT repository_id FROM deployments WHERE id = ?1)",
                [id],
            )?;
            match written {
                0 => Err(StoreError::Refused(format!("there is no deployment {id}"))),
                _ => Ok(()),
            }
        })
    }

    /// What an interrupted deployment left is put right. A power cut may take that back: doing it twice does no harm.
    ///
    /// # Errors
    /// SQLite's.
    pub fn settled(&self, id: RepositoryId) -> Result<(), StoreError> {
        self.note(|transaction| {
            transaction.execute(
                "UPDATE repositories SET unsettled = NULL WHERE id = ?1 AND unsettled IS NOT NULL",
                params![id],
            )?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::testing::{NOTHING, Scene, at, brought_up, failed, home, scene, scene_with};
    use super::*;
    use crate::model::Trigger;

    fn unsettled(scene: &Scene) -> Option<DeploymentId> {
        scene.store.unsettled(scene.id("media")).unwrap().map(|row| row.id)
    }

    #[test]
    fn an_interrupted_deployment_is_unsettled_until_it_is_settled() {
        let mut scene = scene();
        let first = scene.enqueue("media", Trigger::Api, NOTHING, 0);
        scene.start(first, 1, 1);
        scene.store.up_begins(first, &brought_up("media", &["web"], &[])).unwrap();
        assert_eq!(unsettled(&scene), None);
        scene = scene.killed();
        scene.store.recover(at(2)).unwrap();
        let row = scene.store.unsettled(scene.id("media")).unwrap().unwrap();
        assert_eq!((row.id, row.up_began), (first, true));
        assert_eq!(scene.store.unsettled(scene.id("web")).unwrap(), None);

        let second = scene.store.pending().unwrap()[0].id;
        scene.start(second, 1, 3);
        scene.store.up_begins(second, &brought_up("media", &["web"], &[])).unwrap();
        assert_eq!(unsettled(&scene), Some(first), "only who settled it says so");
        scene.store.settled(scene.id("media")).unwrap();
        assert_eq!(unsettled(&scene), None);
    }

    #[test]
    fn one_that_was_interrupted_while_it_was_checked_out_is_unsettled_too() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 0);
        // Its commit is recorded once its files are written.
        scene.store.start(id, "configuration 1", at(1)).unwrap();
        scene.store.recover(at(2)).unwrap();
        let row = scene.store.unsettled(scene.id("media")).unwrap().unwrap();
        assert_eq!((row.id, row.commit, row.up_began), (id, None, false));
    }

    #[test]
    fn what_could_not_be_healed_is_well_with_the_next_success() {
        let scene = scene();
        let first = scene.enqueue("media", Trigger::Api, NOTHING, 0);
        scene.start(first, 1, 1);
        scene.store.recover(at(2)).unwrap();
        let second = scene.store.pending().unwrap()[0].id;
        scene.start(second, 1, 3);
        scene.finish(second, &failed("unhealthy"), 4);
        assert_eq!(unsettled(&scene), Some(first));
        scene.deploy("media", 2, &Outcome::Success, 5);
        assert_eq!(unsettled(&scene), None);
    }

    #[test]
    fn what_was_left_in_an_up_is_not_forgotten_for_one_that_was_interrupted_before_it_had_a_commit() {
        let scene = scene();
        let first = scene.enqueue("media", Trigger::Api, NOTHING, 0);
        scene.start(first, 1, 1);
        scene.store.recover(at(2)).unwrap();
        let second = scene.store.pending().unwrap()[0].id;
        scene.store.start(second, "configuration 1", at(3)).unwrap();
        scene.store.recover(at(4)).unwrap();
        assert_eq!(unsettled(&scene), Some(first), "what the one before left is still there");
    }

    #[test]
    fn what_could_not_be_put_back_stays_known_over_a_kill_and_the_limit_of_the_history() {
        let scene = scene_with(&[home(&["media"])], 1);
        let bad = scene.deploy("media", 1, &failed("a folder is in the way"), 1);
        scene.store.leave_unsettled(bad).unwrap();
        assert!(matches!(scene.store.leave_unsettled(99), Err(StoreError::Refused(_))));
        scene.store.told(bad, true, at(2)).unwrap();
        for number in 2..5 {
            let id = scene.deploy("media", number, &failed("unhealthy"), number.into());
            scene.store.told(id, false, at(number.into())).unwrap();
        }
        assert_eq!(unsettled(&scene.killed()), Some(bad));
        scene.store.settled(scene.id("media")).unwrap();
        scene.deploy("media", 5, &failed("unhealthy"), 5);
        assert_eq!(scene.store.deployment(bad).unwrap(), None, "then it goes as others do");
    }
}
