//! What a scrape of the metrics asks of the database: two statements, whatever the number of repositories.

use std::fs;

use jiff::Timestamp;
use rusqlite::Connection;

use super::rows::{last_outcome_of, last_with, optional_time};
use super::{Store, StoreError};
use crate::model::{RepositoryName, Status};

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauges {
    /// Pending deployments.
    pub pending: u64,
    /// When the oldest of them was asked for.
    pub pending_since: Option<Timestamp>,
    /// Running deployments.
    pub running: u64,
    /// All repositories that a project file names, by project and name.
    pub repositories: Vec<RepositoryGauges>,
}

/// How a repository stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryGauges {
    /// Which.
    pub name: RepositoryName,
    /// When its last success ended.
    pub last_success_at: Option<Timestamp>,
    /// Whether its last deployment, skipped ones aside, was a success; none before the first.
    pub last_succeeded: Option<bool>,
    /// Whether its stack is what the branch's last known commit says: that one is deployed, or changes nothing of it.
    pub is_up_to_date: bool,
    /// Whether its last check failed.
    pub is_check_failing: bool,
    /// Whether something waits for a person to ask for it; none unless its commits are only deployed so.
    pub waits: Option<bool>,
}

impl Store {
    /// How things stand, orphans left out.
    ///
    /// # Errors
    /// SQLite's.
    pub fn gauges(&self) -> Result<Gauges, StoreError> {
        self.read(|connection| {
            let repositories = repositories(connection)?;
            let mut statement = connection.prepare_cached(
                "SELECT count(*) FILTER (WHERE status = 'pending'), min(created_at) FILTER (WHERE status = 'pending'), \
                 count(*) FILTER (WHERE status = 'running') \
                 FROM deployments INDEXED BY deployments_by_status WHERE status IN ('pending', 'running')",
            )?;
            let gauges = statement.query_row([], |row| {
                Ok(Gauges {
                    pending: row.get(0)?,
                    pending_since: optional_time(row, 1)?,
                    running: row.get(2)?,
                    repositories,
                })
            })?;
            Ok(gauges)
        })
    }

    /// Bytes of the database on the disk, with its write-ahead log.
    pub fn size_bytes(&self) -> u64 {
        let database = self.readers.path();
        let log = database.with_extension("db-wal");
        // The log is not there while nobody writes.
        [database, &log].into_iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum()
    }
}

fn repositories(connection: &Connection) -> Result<Vec<RepositoryGauges>, StoreError> {
    let mut statement = connection.prepare_cached(&sql())?;
    let repositories = statement.query_map([], |row| {
        let status: Option<String> = row.get(3)?;
        let is_manual: bool = row.get(6)?;
        let waits: bool = row.get(7)?;
        Ok(RepositoryGauges {
            name: RepositoryName { project: row.get(0)?, name: row.get(1)? },
            last_success_at: optional_time(row, 2)?,
            last_succeeded: status.map(|status| status == Status::Success.as_str()),
            is_up_to_date: row.get(4)?,
            is_check_failing: row.get(5)?,
            waits: is_manual.then_some(waits),
        })
    })?;
    Ok(repositories.collect::<Result<_, _>>()?)
}

/// A commit that changes nothing of a stack is not deployed: it is the commit of the last skipped row, or, under
/// `deploy: manual`, it was observed and nothing waits.
fn sql() -> String {
    format!(
        "SELECT p.name, r.name, success.finished_at, outcome.status, \
         r.observed_commit IS NOT NULL AND (r.observed_commit IS r.last_commit_hash \
         OR ifnull(outcome.status = 'success' AND skipped.id > outcome.id \
         AND skipped.commit_hash = r.observed_commit, 0) \
         OR ifnull(r.is_manual AND NOT r.waiting AND outcome.status = 'success' \
         AND json_extract(outcome.asked, '$.commit') IS NULL AND NOT EXISTS \
         (SELECT 1 FROM deployments WHERE repository_id = r.id AND status = 'running'), 0)), \
         r.failing_since IS NOT NULL, r.is_manual, r.waiting \
         FROM repositories r JOIN projects p ON p.id = r.project_id \
         LEFT JOIN deployments success ON success.id = {success} \
         LEFT JOIN deployments outcome ON outcome.id = {outcome} \
         LEFT JOIN deployments skipped ON skipped.id = {skipped} \
         WHERE r.orphaned_at IS NULL ORDER BY p.name, r.name",
        success = last_with("r.id", Status::Success),
        outcome = last_outcome_of("r.id"),
        skipped = last_with("r.id", Status::Skipped),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{
        NOTHING, Scene, at, can_pass, earlier, failed, hash, home, manual, plan, project, scene, scene_with, skipped,
    };
    use super::super::{Outcome, Store};
    use super::*;
    use crate::metrics::Metrics;
    use crate::metrics::text::Text;
    use crate::model::Trigger;

    fn of(scene: &Scene, name: &str) -> RepositoryGauges {
        let gauges = scene.store.gauges().unwrap();
        gauges.repositories.into_iter().find(|one| one.name.name == name).unwrap()
    }

    fn is_up_to_date(scene: &Scene, name: &str) -> bool {
        of(scene, name).is_up_to_date
    }

    #[test]
    fn the_queue_and_every_repository_but_orphans_are_told() {
        let scene = scene_with(&[project("work", &["site"]), home(&["web", "media"])], 200);
        scene.enqueue("web", Trigger::Api, NOTHING, 5);
        scene.enqueue("media", Trigger::Api, NOTHING, 6);
        let gauges = scene.store.gauges().unwrap();
        assert_eq!((gauges.pending, gauges.pending_since, gauges.running), (2, Some(at(5)), 0));
        let names: Vec<_> = gauges.repositories.iter().map(|one| one.name.to_string()).collect();
        assert_eq!(names, ["home/media", "home/web", "work/site"]);
        let new = RepositoryGauges {
            name: RepositoryName { project: "home".to_owned(), name: "media".to_owned() },
            last_success_at: None,
            last_succeeded: None,
            is_up_to_date: false,
            is_check_failing: false,
            waits: None,
        };
        assert_eq!(gauges.repositories[0], new);

        scene.start(scene.store.pending().unwrap()[0].id, 1, 7);
        scene.store.sync(&[home(&["web"])], &[], at(8)).unwrap();
        let gauges = scene.store.gauges().unwrap();
        assert_eq!((gauges.pending, gauges.pending_since, gauges.running), (0, None, 1));
        assert_eq!(gauges.repositories.len(), 1, "the others are orphans");
    }

    #[test]
    fn the_last_outcome_is_told_with_the_last_success() {
        let scene = scene();
        scene.deploy("media", 1, &Outcome::Success, 10);
        scene.deploy("media", 2, &failed("unhealthy"), 20);
        let media = of(&scene, "media");
        assert_eq!((media.last_success_at, media.last_succeeded), (Some(at(10)), Some(false)));
        scene.deploy("media", 2, &Outcome::Success, 30);
        scene.enqueue("media", Trigger::Api, NOTHING, 40);
        let media = of(&scene, "media");
        assert_eq!((media.last_success_at, media.last_succeeded), (Some(at(30)), Some(true)));
        let id = scene.id("media");
        scene.store.check_failed(id, "no route to host", at(41)).unwrap();
        assert!(of(&scene, "media").is_check_failing);
        scene.check_found(id, &hash(2), at(42)).unwrap();
        assert!(!of(&scene, "media").is_check_failing);
    }

    #[test]
    fn a_stack_is_up_to_date_until_a_commit_that_concerns_it() {
        let scene = scene();
        let id = scene.id("media");
        scene.deploy("media", 1, &Outcome::Success, 10);
        assert!(is_up_to_date(&scene, "media"));
        let queued = scene.check_found(id, &hash(2), at(20)).unwrap().unwrap().deployment_id;
        assert!(!is_up_to_date(&scene, "media"));
        scene.start(queued, 2, 21);
        scene.finish(queued, &skipped(), 22);
        assert!(is_up_to_date(&scene, "media"), "it changes nothing of the stack");
        let queued = scene.check_found(id, &hash(3), at(30)).unwrap().unwrap().deployment_id;
        assert!(!is_up_to_date(&scene, "media"));
        scene.start(queued, 3, 31);
        scene.finish(queued, &failed("unhealthy"), 32);
        assert!(!is_up_to_date(&scene, "media"));
        let queued = scene.check_found(id, &hash(4), at(40)).unwrap().unwrap().deployment_id;
        scene.start(queued, 4, 41);
        scene.finish(queued, &skipped(), 42);
        assert!(!is_up_to_date(&scene, "media"), "what failed is still what runs");
    }

    #[test]
    fn what_is_deployed_by_hand_waits_for_somebody() {
        let scene = scene_with(&[manual(home(&["media"]), "media")], 200);
        let id = scene.id("media");
        scene.deploy("media", 1, &Outcome::Success, 10);
        assert_eq!(of(&scene, "media").waits, Some(false));
        let find = |number, changes_stack, seconds| {
            scene.store.check_found(scene.store.check_begins(id), &hash(number), changes_stack, at(seconds)).unwrap();
        };
        find(2, false, 20);
        let media = of(&scene, "media");
        assert_eq!((media.is_up_to_date, media.waits), (true, Some(false)));
        find(3, true, 30);
        let media = of(&scene, "media");
        assert_eq!((media.is_up_to_date, media.waits), (false, Some(true)));

        let queued = scene.enqueue("media", Trigger::Api, earlier(2), 40);
        scene.store.start(queued, "configuration 1", at(41)).unwrap();
        scene.store.checked_out(queued, &super::super::testing::commit(2), &hash(3)).unwrap();
        assert!(!is_up_to_date(&scene, "media"), "it is being deployed");
        scene.finish(queued, &Outcome::Success, 42);
        let media = of(&scene, "media");
        assert_eq!((media.is_up_to_date, media.waits), (false, Some(false)), "somebody asked for an earlier commit");
    }

    #[test]
    fn every_deployment_that_ends_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::default());
        let store = Store::open(folder.path(), 200).unwrap().counted_in(Arc::clone(&metrics));
        store.sync(&[home(&["media", "web"])], &[], at(0)).unwrap();
        let scene = Scene { store, folder };
        scene.deploy("media", 1, &Outcome::Success, 10);
        let failing = scene.enqueue("media", Trigger::Webhook, NOTHING, 20);
        scene.start(failing, 2, 20);
        scene.finish(failing, &can_pass("registry away"), 23);
        let again = scene.store.enqueue_due_retries(at(1000)).unwrap()[0].deployment_id;
        scene.start(again, 2, 1000);
        scene.finish(again, &skipped(), 1001);
        let cancelled = scene.enqueue("web", Trigger::Cli, NOTHING, 1002);
        assert!(scene.store.cancel_pending(cancelled, at(1003)).unwrap());
        assert!(!scene.store.cancel_pending(cancelled, at(1003)).unwrap());
        let interrupted = scene.enqueue("web", Trigger::Poll, NOTHING, 1004);
        scene.start(interrupted, 1, 1004);
        scene.store.recover(at(1010)).unwrap();
        scene.store.sync(&[home(&["media"])], &[], at(1011)).unwrap();
        let mut text = Text::default();
        metrics.write(&mut text);
        let text = text.into_string();
        let counted =
            text.lines().filter(|line| line.starts_with("shiparr_deployments_total{") && !line.ends_with(" 0"));
        let expected = [
            "shiparr_deployments_total{type=\"api\",status=\"success\"} 1",
            "shiparr_deployments_total{type=\"cli\",status=\"failed\"} 1",
            "shiparr_deployments_total{type=\"poll\",status=\"failed\"} 1",
            "shiparr_deployments_total{type=\"retry\",status=\"failed\"} 1",
            "shiparr_deployments_total{type=\"retry\",status=\"skipped\"} 1",
            "shiparr_deployments_total{type=\"webhook\",status=\"failed\"} 1",
        ];
        assert_eq!(counted.collect::<Vec<_>>(), expected);
        for line in ["_sum{status=\"failed\"} 3", "_count{status=\"failed\"} 1", "_count{status=\"success\"} 1"] {
            assert!(text.contains(&format!("shiparr_deployment_duration_seconds{line}\n")), "no {line} in {text}");
        }
    }

    #[test]
    fn the_size_is_that_of_the_files() {
        let scene = scene();
        let bytes = |name: &str| fs::metadata(scene.folder.path().join(name)).unwrap().len();
        assert_eq!(scene.store.size_bytes(), bytes("Shiparr.db") + bytes("Shiparr.db-wal"));
    }

    #[test]
    fn no_statement_reads_a_whole_history() {
        let plan = plan(&scene().shell(), &sql());
        for step in plan.lines().filter(|step| step.contains("SCAN")) {
            assert!(!step.contains("success") && !step.contains("deployments"), "{plan}");
        }
    }
}
