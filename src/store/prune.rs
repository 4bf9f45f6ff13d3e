//! Orphans are forgotten when somebody asks for it.

use rusqlite::{OptionalExtension, Transaction};

use super::changes::Change;
use super::{Store, StoreError};
use crate::model::{RepositoryId, RepositoryName};

impl Store {
    /// Forgets orphans, with their history; answers the names of those that it forgot. An id that is not there any more
    /// is passed over. Records only.
    ///
    /// # Errors
    /// One that is no orphan (any more), or whose deployment still runs, is [`StoreError::Refused`]; SQLite's. Nothing
    /// is forgotten then.
    pub fn prune(&self, ids: &[RepositoryId]) -> Result<Vec<RepositoryName>, StoreError> {
        let forgotten = self.promise(|transaction| {
            let mut names = Vec::new();
            let mut refused = Vec::new();
            for id in ids {
                let Some((name, why_not)) = prunable(transaction, *id)? else { continue };
                if let Some(why_not) = why_not {
                    refused.push(format!("{name} {why_not}"));
                    continue;
                }
                transaction.execute("DELETE FROM repositories WHERE id = ?1", [id])?;
                names.push(name);
            }
            if !refused.is_empty() {
                return Err(StoreError::Refused(format!("nothing was forgotten: {}", refused.join(", "))));
            }
            transaction.execute(
                "DELETE FROM projects WHERE orphaned_at IS NOT NULL \
                 AND NOT EXISTS (SELECT 1 FROM repositories WHERE project_id = projects.id)",
                [],
            )?;
            Ok(names)
        })?;
        self.checks.forget(ids);
        self.changes.publish(&[Change::Projects]);
        Ok(forgotten)
    }
}

/// A repository's name, and why it may not be forgotten.
fn prunable(
    transaction: &Transaction,
    id: RepositoryId,
) -> Result<Option<(RepositoryName, Option<&'static str>)>, StoreError> {
    let found = transaction
        .query_row(
            "SELECT p.name, r.name, r.orphaned_at IS NOT NULL, EXISTS \
             (SELECT 1 FROM deployments WHERE repository_id = r.id AND status = 'running') \
             FROM repositories r JOIN projects p ON p.id = r.project_id WHERE r.id = ?1",
            [id],
            |row| {
                let name = RepositoryName { project: row.get(0)?, name: row.get(1)? };
                let why_not = match (row.get(2)?, row.get(3)?) {
                    (false, _) => Some("is no orphan, a project file names it"),
                    (true, true) => Some("is an orphan whose deployment still runs: try again when it has ended"),
                    (true, false) => None,
                };
                Ok((name, why_not))
            },
        )
        .optional()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, at, failed, home, project, scene_with};
    use super::*;
    use crate::model::Trigger;

    #[test]
    fn prune_forgets_orphans_that_do_not_run_and_their_project_with_the_last() {
        let scene = scene_with(&[home(&["media", "web"]), project("work", &["site"])], 200);
        let (media, web) = (scene.id("media"), scene.id("web"));
        let deployment = scene.deploy("media", 1, &failed("unhealthy"), 1);
        scene.store.log(deployment, crate::model::LogLevel::Info, "a line", at(1)).unwrap();
        let running = scene.enqueue("web", Trigger::Api, NOTHING, 1);
        scene.start(running, 1, 2);
        let refused = |ids: &[RepositoryId]| match scene.store.prune(ids) {
            Err(StoreError::Refused(text)) => text,
            other => panic!("{other:?}"),
        };
        let text = refused(&[media, web]);
        assert!(text.contains("home/media is no orphan") && text.contains("home/web is no orphan"), "{text}");
        scene.store.sync(&[project("work", &["site"])], &[], at(3)).unwrap();
        let text = refused(&[media, web]);
        assert!(!text.contains("home/media") && text.contains("home/web is an orphan whose deployment"), "{text}");
        assert_eq!(scene.id("media"), media, "all of them or none");
        let forgotten = scene.store.prune(&[media, 99]).unwrap();
        assert_eq!(forgotten.iter().map(ToString::to_string).collect::<Vec<_>>(), ["home/media"]);
        assert_eq!(scene.store.deployment(deployment).unwrap(), None);
        assert!(scene.store.log_lines(deployment, 0, 9).unwrap().is_empty());
        assert_eq!(scene.store.projects().unwrap().len(), 2);
        scene.finish(running, &failed("unhealthy"), 4);
        scene.store.prune(&[web]).unwrap();
        let left = scene.store.repositories(None).unwrap();
        assert_eq!(left.iter().map(|record| record.name.to_string()).collect::<Vec<_>>(), ["work/site"]);
        assert_eq!(scene.store.projects().unwrap().len(), 1);
        scene.store.sync(&[project("work", &["site"]), home(&["media"])], &[], at(5)).unwrap();
        assert!(scene.id("media") > web, "an id never names another repository");
    }
}
