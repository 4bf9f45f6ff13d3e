//! What has been deployed: single deployments, and pages of them that cost the same whatever the history holds.

use rusqlite::{Connection, OptionalExtension, ToSql, Transaction, params};

use super::rows::{DEPLOYMENT_COLUMNS, deployment, last_outcome_of, last_with, optional_word};
use super::{DeploymentFilter, PAGE_LIMIT, Store, StoreError};
use crate::model::{CommitHash, DeploymentId, DeploymentRecord, RepositoryId, Status};

/// How many old deployments go with each that ends: more than one, so that a lowered limit is reached, but a bounded
/// number.
const TRIMMED_AT_ONCE: u32 = 20;

impl Store {
    /// One deployment.
    ///
    /// # Errors
    /// SQLite's.
    pub fn deployment(&self, id: DeploymentId) -> Result<Option<DeploymentRecord>, StoreError> {
        self.read(|connection| one(connection, "?1", id))
    }

    /// The last deployment of a repository that ended and was not skipped.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_outcome(&self, id: RepositoryId) -> Result<Option<DeploymentRecord>, StoreError> {
        self.read(|connection| one(connection, &last_outcome_of("?1"), id))
    }

    /// What a new commit of a repository is compared with, to see whether it changes anything there: the commit of the
    /// last deployment, skipped ones aside, if that succeeded or failed for good, and if there has been a success at
    /// all. None: the new commit must not be skipped.
    ///
    /// # Errors
    /// SQLite's.
    pub fn skip_base(&self, id: RepositoryId) -> Result<Option<CommitHash>, StoreError> {
        self.read(|connection| {
            let base =
                connection.prepare_cached(&skip_base_sql())?.query_row([id], |row| optional_word(row, 0)).optional()?;
            Ok(base.flatten())
        })
    }

    /// A page of deployments, newest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn deployments(&self, filter: &DeploymentFilter) -> Result<Vec<DeploymentRecord>, StoreError> {
        self.read(|connection| {
            let mut page = Page::default();
            if let Some(name) = &filter.project {
                let mut statement = connection.prepare_cached("SELECT id FROM projects WHERE name = ?1")?;
                let project: Option<i64> = statement.query_row([name], |row| row.get(0)).optional()?;
                let Some(project) = project else { return Ok(Vec::new()) };
                page.project_id = Some(project);
            }
            page.repository_id = filter.repository_id;
            page.status = filter.status.map(|status| status.as_str());
            let before = filter.before.unwrap_or(i64::MAX);
            let limit = filter.limit.min(PAGE_LIMIT);
            let mut values: Vec<&dyn ToSql> = vec![&before, &limit];
            values.extend(page.repository_id.as_ref().map(|id| id as &dyn ToSql));
            values.extend(page.project_id.as_ref().map(|id| id as &dyn ToSql));
            values.extend(page.status.as_ref().map(|word| word as &dyn ToSql));
            let mut statement = connection.prepare_cached(&page.sql())?;
            let records = statement.query_map(values.as_slice(), |row| deployment(row, 0))?;
            Ok(records.collect::<Result<_, _>>()?)
        })
    }
}

fn skip_base_sql() -> String {
    format!(
        "SELECT d.commit_hash FROM deployments d CROSS JOIN repositories r ON r.id = d.repository_id WHERE d.id = {} \
         AND (d.status = 'success' OR d.ending = 'for_good') AND r.last_commit_hash IS NOT NULL",
        last_outcome_of("?1")
    )
}

/// By what a page is selected.
#[derive(Default)]
struct Page {
    repository_id: Option<RepositoryId>,
    project_id: Option<i64>,
    status: Option<&'static str>,
}

impl Page {
    /// A statement for exactly this combination: one for all of them could use no index. Parameter 1 is the id before
    /// which the page begins, 2 its length, and then come the values that there are. The index is named, so that a
    /// schema without it fails in the tests rather than in a large history.
    fn sql(&self) -> String {
        let index = match (self.repository_id, self.project_id, self.status) {
            (Some(_), _, None) => "INDEXED BY deployments_by_repository",
            (Some(_), _, Some(_)) => "INDEXED BY deployments_by_repository_and_status",
            (None, Some(_), None) => "INDEXED BY deployments_by_project",
            (None, Some(_), Some(_)) => "INDEXED BY deployments_by_project_and_status",
            (None, None, Some(_)) => "INDEXED BY deployments_by_status",
            (None, None, None) => "NOT INDEXED",
        };
        let mut conditions = String::new();
        let present = [
            ("repository_id", self.repository_id.is_some()),
            ("project_id", self.project_id.is_some()),
            ("status", self.status.is_some()),
        ];
        for (number, (column, _)) in present.iter().filter(|(_, is_present)| *is_present).enumerate() {
            conditions.push_str(&format!(" AND d.{column} = ?{}", number + 3));
        }
        format!(
            "SELECT {DEPLOYMENT_COLUMNS} FROM deployments d {index} CROSS JOIN repositories r ON r.id = d.repository_id \
             CROSS JOIN projects p ON p.id = d.project_id WHERE d.id < ?1{conditions} ORDER BY d.id DESC LIMIT ?2"
        )
    }
}

/// Removes what a repository has beyond its newest `limit` deployments, with the logs: never one that is pending or
/// running, the last that succeeded or failed (the skipped ones after it are about them), one that has not been settled
/// or that people have still to be told of, or `ended` itself.
pub(super) fn trim(
    transaction: &Transaction,
    repository_id: RepositoryId,
    ended: DeploymentId,
    limit: u32,
) -> Result<(), StoreError> {
    let oldest_kept: Option<DeploymentId> = transaction
        .prepare_cached(
            "SELECT id FROM deployments INDEXED BY deployments_by_repository WHERE repository_id = ?1 \
             ORDER BY id DESC LIMIT 1 OFFSET ?2",
        )?
        .query_row(params![repository_id, limit - 1], |row| row.get(0))
        .optional()?;
    let Some(oldest_kept) = oldest_kept else { return Ok(()) };
    transaction.prepare_cached(&trim_sql())?.execute(params![repository_id, oldest_kept, ended, TRIMMED_AT_ONCE])?;
    Ok(())
}

fn trim_sql() -> String {
    format!(
        "DELETE FROM deployments WHERE id IN (SELECT id FROM deployments INDEXED BY deployments_by_repository \
         WHERE repository_id = ?1 AND id < min(?2, ?3) AND status NOT IN ('pending', 'running') \
         AND told_at IS NOT NULL AND id NOT IN ({}, {}) \
         AND id IS NOT (SELECT unsettled FROM repositories WHERE id = ?1) ORDER BY id LIMIT ?4)",
        last_with("?1", Status::Success),
        last_with("?1", Status::Failed),
    )
}

/// The deployment whose id the SQL expression `id` gives for the value `value`.
pub(super) fn one(connection: &Connection, id: &str, value: i64) -> Result<Option<DeploymentRecord>, StoreError> {
    let sql = format!(
        "SELECT {DEPLOYMENT_COLUMNS} FROM deployments d CROSS JOIN repositories r ON r.id = d.repository_id \
         CROSS JOIN projects p ON p.id = d.project_id WHERE d.id = {id}"
    );
    Ok(connection.prepare_cached(&sql)?.query_row([value], |row| deployment(row, 0)).optional()?)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::outcome::REMOVE_SKIPPED_POLLS;
    use super::super::testing::{
        NOTHING, at, can_pass, cancelled, commit, failed, hash, home, plan, project, scene, scene_with, skipped,
        superseded,
    };
    use super::*;
    use crate::model::Trigger;

    #[test]
    fn pages_hold_what_the_filter_says_newest_first() {
        let scene = scene_with(&[home(&["media", "web"]), project("work", &["site"])], 200);
        let site = scene.store.repositories(Some("work")).unwrap()[0].id;
        let mut made = Vec::new();
        for round in 0..3 {
            made.push((scene.deploy("media", round, &Outcome::Success, 1), "home", scene.id("media"), Status::Success));
            made.push((scene.deploy("web", round, &failed("unhealthy"), 1), "home", scene.id("web"), Status::Failed));
            let id = scene.store.enqueue(site, Trigger::Api, NOTHING, at(1)).unwrap().deployment_id;
            scene.start(id, 1, 1);
            scene.finish(id, &Outcome::Success, 2);
            made.push((id, "work", site, Status::Success));
        }
        made.reverse();
        for repository_id in [None, Some(scene.id("media")), Some(site)] {
            for project in [None, Some("home".to_owned()), Some("work".to_owned()), Some("nobody".to_owned())] {
                for status in [None, Some(Status::Success), Some(Status::Failed), Some(Status::Pending)] {
                    for before in [None, Some(made[4].0)] {
                        let filter =
                            DeploymentFilter { repository_id, project: project.clone(), status, before, limit: 3 };
                        let page = scene.store.deployments(&filter).unwrap();
                        let expected = made.iter().filter(|(id, its_project, its_repository, its_status)| {
                            repository_id.is_none_or(|wanted| wanted == *its_repository)
                                && project.as_deref().is_none_or(|wanted| wanted == *its_project)
                                && status.is_none_or(|wanted| wanted == *its_status)
                                && before.is_none_or(|before| *id < before)
                        });
                        let expected: Vec<_> = expected.map(|made| made.0).take(3).collect();
                        assert_eq!(page.iter().map(|row| row.id).collect::<Vec<_>>(), expected, "{filter:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_deployment_carries_all_that_is_known_of_it() {
        let scene = scene();
        let id = scene.deploy("media", 7, &Outcome::Success, 5);
        let row = scene.deployment(id);
        assert_eq!(row.repository.to_string(), "home/media");
        assert_eq!((row.repository_id, row.commit), (scene.id("media"), Some(commit(7))));
        assert_eq!((row.created_at, row.started_at, row.finished_at), (at(5), Some(at(5)), Some(at(5))));
        assert_eq!(scene.store.deployment(99).unwrap(), None);
    }

    #[test]
    fn a_page_is_never_longer_than_the_limit() {
        let scene = scene();
        scene.deploy("media", 1, &Outcome::Success, 1);
        let none = DeploymentFilter { limit: 0, ..DeploymentFilter::default() };
        assert!(scene.store.deployments(&none).unwrap().is_empty());
        let sql = format!(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 600) \
             INSERT INTO deployments {COPIED} FROM deployments, n"
        );
        scene.shell().execute_batch(&sql).unwrap();
        let all = DeploymentFilter { limit: u32::MAX, ..DeploymentFilter::default() };
        assert_eq!(scene.store.deployments(&all).unwrap().len(), PAGE_LIMIT as usize);
    }

    /// Columns of a row that is copied many times.
    const COPIED: &str = "(repository_id, project_id, status, \"trigger\", forced, attempt, interruptions, asked, created_at, \
                          started_at, finished_at, told_at) SELECT repository_id, project_id, status, \"trigger\", forced, \
                          attempt, interruptions, asked, created_at, started_at, finished_at, finished_at";

    #[test]
    fn every_page_is_read_from_an_index_in_its_order() {
        let scene = scene();
        for repository_id in [None, Some(1)] {
            for project_id in [None, Some(1)] {
                for status in [None, Some("failed")] {
                    let page = Page { repository_id, project_id, status };
                    let plan = plan(&scene.shell(), &page.sql());
                    assert!(!plan.contains("TEMP B-TREE"), "{plan}");
                    assert!(!plan.contains("SCAN"), "{plan}");
                }
            }
        }
        for id in ["?1".to_owned(), last_outcome_of("?1")] {
            let sql = format!("SELECT * FROM deployments d WHERE d.id = {id}");
            let plan = plan(&scene.shell(), &sql);
            assert!(!plan.contains("SCAN deployments") && !plan.contains("SCAN d"), "{plan}");
        }
        for sql in [&skip_base_sql(), &trim_sql(), REMOVE_SKIPPED_POLLS] {
            let plan = plan(&scene.shell(), sql);
            assert!(!plan.contains("SCAN"), "{plan}");
        }
    }

    #[test]
    fn a_commit_is_compared_with_the_last_that_succeeded_or_failed_for_good() {
        let scene = scene();
        let id = scene.id("media");
        let base = || scene.store.skip_base(id).unwrap();
        assert_eq!(base(), None);
        scene.deploy("media", 1, &failed("unhealthy"), 1);
        assert_eq!(base(), None, "there was no success yet");
        scene.deploy("media", 2, &Outcome::Success, 2);
        assert_eq!(base(), Some(hash(2)));
        scene.deploy("media", 3, &skipped(), 3);
        assert_eq!(base(), Some(hash(2)));
        scene.deploy("media", 4, &failed("unhealthy"), 4);
        assert_eq!(base(), Some(hash(4)));
        let own = scene.enqueue("media", Trigger::Poll, NOTHING, 5);
        assert_eq!(base(), Some(hash(4)));
        scene.start(own, 5, 6);
        assert_eq!(base(), Some(hash(4)), "itself aside");
        scene.store.recover(at(7)).unwrap();
        assert_eq!(base(), None, "interrupted");
        let again = scene.store.pending().unwrap()[0].id;
        scene.start(again, 5, 8);
        scene.finish(again, &Outcome::Success, 9);
        assert_eq!(base(), Some(hash(5)));
        for outcome in [can_pass("network"), superseded("by a newer one"), cancelled("by ada")] {
            scene.deploy("media", 6, &outcome, 10);
            assert_eq!(base(), None, "{outcome:?}");
            scene.deploy("media", 7, &skipped(), 11);
            assert_eq!(base(), None, "{outcome:?}");
            scene.deploy("media", 8, &Outcome::Success, 12);
        }
        let pending = scene.enqueue("media", Trigger::Poll, NOTHING, 13);
        scene.store.cancel_pending(pending, at(14)).unwrap();
        assert_eq!(base(), None, "cancelled before it began");
        let fetch_fails = scene.enqueue("media", Trigger::Api, NOTHING, 15);
        scene.store.start(fetch_fails, "configuration 1", at(16)).unwrap();
        scene.finish(fetch_fails, &failed("the token was refused"), 17);
        assert_eq!(base(), None, "no commit");
        assert_eq!(scene.store.skip_base(scene.id("web")).unwrap(), None);
    }
}
