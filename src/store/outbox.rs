//! Who is still to be told of what: a finished deployment that nobody was told of is the outbox.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::history::one;
use super::rows::{optional_word, stored};
use super::{Store, StoreError, Untold};
use crate::model::{CommitHash, DeploymentId, DeploymentRecord, Ending, Status};

/// Lines of the log that a message gets.
const LAST_LINES: u32 = 20;

/// Which message a deployment is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// It succeeded, and nobody had been told of a failure.
    Success,
    /// The first success after people were told of a failure.
    WellAgain,
    /// The commit failed for the first time.
    Failure,
}

impl Store {
    /// The oldest finished deployment that nobody was told of yet and that a message is due for (spec section 4,
    /// Messages). Those before it that no message is due for are marked as told. Those of the projects in `left` are
    /// left for later: whom to tell is not known as long as their files have a problem.
    ///
    /// # Errors
    /// SQLite's.
    pub fn next_untold(&self, left: &[String]) -> Result<Option<Untold>, StoreError> {
        loop {
            let Some(candidate) = self.read(|connection| oldest_untold(connection, left))? else { return Ok(None) };
            let deployment = candidate.deployment;
            let Some(kind) = message_for(&deployment, candidate.interruptions, &candidate.told) else {
                let at = deployment.finished_at.unwrap_or(deployment.created_at);
                self.told(deployment.id, false, at)?;
                continue;
            };
            let mut last_lines = self.last_lines(deployment.id)?;
            if let Some(error) = &deployment.error {
                // The message has it anyway.
                last_lines.retain(|line| !line.strip_prefix("failed: ").is_some_and(|told| told.starts_with(error)));
            }
            return Ok(Some(Untold { deployment, kind, last_lines }));
        }
    }

    /// People were told of it, or there was nobody to tell. `as_failure`: a failure message went out for its
    /// repository; a later success is then "well again".
    ///
    /// # Errors
    /// SQLite's.
    pub fn told(&self, id: DeploymentId, as_failure: bool, now: Timestamp) -> Result<(), StoreError> {
        self.note(|transaction| {
            transaction.execute("UPDATE deployments SET told_at = ?2 WHERE id = ?1", params![id, stored(now)])?;
            transaction.execute(
                "UPDATE repositories SET notified_failure_at = NULL, notified_failure_commit = NULL \
                 WHERE id = (SELECT repository_id FROM deployments WHERE id = ?1 AND status = 'success')",
                [id],
            )?;
            if as_failure {
                transaction.execute(
                    "UPDATE repositories SET notified_failure_at = ?2, notified_failure_commit = d.commit_hash \
                     FROM deployments d WHERE d.id = ?1 AND d.status = 'failed' AND repositories.id = d.repository_id",
                    params![id, stored(now)],
                )?;
            }
            Ok(())
        })
    }

    fn last_lines(&self, id: DeploymentId) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT message FROM deployment_logs WHERE deployment_id = ?1 ORDER BY position DESC LIMIT ?2",
            )?;
            let mut lines: Vec<String> =
                statement.query_map(params![id, LAST_LINES], |row| row.get(0))?.collect::<Result<_, _>>()?;
            lines.reverse();
            Ok(lines)
        })
    }
}

struct Candidate {
    deployment: DeploymentRecord,
    /// How many tries in a row, this one included, were interrupted.
    interruptions: u32,
    told: Told,
}

/// What people know of a repository.
struct Told {
    /// That it fails, and not yet that it is well again.
    failure: bool,
    /// With which commit.
    commit: Option<CommitHash>,
}

fn oldest_untold(connection: &Connection, left: &[String]) -> Result<Option<Candidate>, StoreError> {
    let left = serde_json::to_string(left).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let found = connection
        .prepare_cached(
            "SELECT d.id, d.interruptions, r.notified_failure_at IS NOT NULL, r.notified_failure_commit \
             FROM deployments d INDEXED BY deployments_untold CROSS JOIN repositories r ON r.id = d.repository_id \
             CROSS JOIN projects p ON p.id = r.project_id \
             WHERE d.told_at IS NULL AND d.finished_at IS NOT NULL AND p.name NOT IN (SELECT value FROM json_each(?1)) \
             ORDER BY d.finished_at, d.id LIMIT 1",
        )?
        .query_row([left], |row| {
            let told = Told { failure: row.get(2)?, commit: optional_word(row, 3)? };
            Ok((row.get::<_, DeploymentId>(0)?, row.get(1)?, told))
        })
        .optional()?;
    let Some((id, interruptions, told)) = found else { return Ok(None) };
    // Between the two statements another thread may have removed it: then the next call finds what follows.
    Ok(one(connection, "?1", id)?.map(|deployment| Candidate { deployment, interruptions, told }))
}

fn message_for(deployment: &DeploymentRecord, interruptions: u32, told: &Told) -> Option<MessageKind> {
    match deployment.status {
        Status::Success if told.failure => Some(MessageKind::WellAgain),
        Status::Success => Some(MessageKind::Success),
        Status::Failed => {
            let silent = match deployment.ending {
                Some(Ending::Superseded | Ending::Cancelled | Ending::Orphaned) => true,
                // Its next try says more: that one fails, or is interrupted as well, or is a success.
                Some(Ending::Interrupted) => interruptions < 2,
                Some(Ending::ForGood | Ending::CanPass) | None => false,
            };
            let commit = deployment.commit.as_ref().map(|commit| &commit.hash);
            // A failure before the commit was known is no news while people know that it fails.
            let known = told.failure && (commit.is_none() || commit == told.commit.as_ref());
            (!silent && !known).then_some(MessageKind::Failure)
        }
        Status::Pending | Status::Running | Status::Skipped => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::testing::{
        NOTHING, Scene, at, can_pass, cancelled, failed, home, project, scene, scene_with, skipped, superseded,
    };
    use super::*;
    use crate::model::{LogLevel, RepositoryName, Trigger};

    /// Tells all that is due, as the notifier does, and answers what it was.
    fn tell(scene: &Scene) -> Vec<(DeploymentId, MessageKind)> {
        let mut told = Vec::new();
        while let Some(untold) = scene.store.next_untold(&[]).unwrap() {
            scene.store.told(untold.deployment.id, untold.kind == MessageKind::Failure, at(9999)).unwrap();
            told.push((untold.deployment.id, untold.kind));
        }
        told
    }

    #[test]
    fn each_success_is_told_once() {
        let scene = scene();
        assert!(scene.store.next_untold(&[]).unwrap().is_none());
        let pending = scene.enqueue("web", Trigger::Api, NOTHING, 0);
        let first = scene.deploy("media", 1, &Outcome::Success, 1);
        assert_eq!(tell(&scene), [(first, MessageKind::Success)]);
        assert_eq!(tell(&scene), []);
        let second = scene.deploy("media", 1, &Outcome::Success, 2);
        assert_eq!(tell(&scene), [(second, MessageKind::Success)]);
        assert_eq!(scene.deployment(pending).finished_at, None);
    }

    #[test]
    fn a_commit_that_fails_again_is_no_news_and_the_next_success_is_well_again() {
        let scene = scene();
        let first = scene.deploy("media", 1, &failed("unhealthy"), 1);
        assert_eq!(tell(&scene), [(first, MessageKind::Failure)]);
        scene.deploy("media", 1, &failed("unhealthy"), 2);
        assert_eq!(tell(&scene), []);
        let other = scene.deploy("media", 2, &failed("unhealthy"), 3);
        assert_eq!(tell(&scene), [(other, MessageKind::Failure)]);
        let good = scene.deploy("media", 3, &Outcome::Success, 4);
        let after = scene.deploy("media", 3, &Outcome::Success, 5);
        assert_eq!(tell(&scene), [(good, MessageKind::WellAgain), (after, MessageKind::Success)]);
        let again = scene.deploy("media", 2, &failed("unhealthy"), 6);
        assert_eq!(tell(&scene), [(again, MessageKind::Failure)]);
    }

    #[test]
    fn a_repository_is_not_told_for_another() {
        let scene = scene();
        scene.deploy("media", 1, &failed("unhealthy"), 1);
        let web = scene.deploy("web", 1, &Outcome::Success, 2);
        assert_eq!(tell(&scene)[1], (web, MessageKind::Success));
    }

    #[test]
    fn a_failure_before_the_commit_is_known_is_told_once() {
        let scene = scene();
        let fetch_fails = |seconds| {
            let id = scene.enqueue("media", Trigger::Api, NOTHING, seconds);
            scene.store.start(id, "configuration 1", at(seconds)).unwrap();
            scene.finish(id, &can_pass("the remote does not answer"), seconds);
            id
        };
        let first = fetch_fails(1);
        assert_eq!(tell(&scene), [(first, MessageKind::Failure)]);
        fetch_fails(2);
        assert_eq!(tell(&scene), []);
        let commit = scene.deploy("media", 1, &failed("unhealthy"), 3);
        assert_eq!(tell(&scene), [(commit, MessageKind::Failure)]);
        fetch_fails(4);
        scene.deploy("media", 1, &failed("unhealthy"), 5);
        assert_eq!(tell(&scene), []);
    }

    #[test]
    fn an_interruption_is_told_when_its_next_try_fails_too() {
        let scene = scene();
        let interrupt = |seconds| {
            let id = scene.store.pending().unwrap()[0].id;
            scene.start(id, 1, seconds);
            scene.store.recover(at(seconds)).unwrap();
            id
        };
        scene.enqueue("media", Trigger::Api, NOTHING, 0);
        interrupt(1);
        assert_eq!(tell(&scene), []);
        let second = interrupt(2);
        assert_eq!(tell(&scene), [(second, MessageKind::Failure)]);

        scene.enqueue("web", Trigger::Api, NOTHING, 3);
        interrupt(4);
        let retry = scene.store.pending().unwrap()[0].id;
        scene.start(retry, 1, 5);
        scene.finish(retry, &failed("unhealthy"), 6);
        assert_eq!(tell(&scene), [(retry, MessageKind::Failure)]);
    }

    #[test]
    fn nobody_is_told_of_what_people_or_another_row_ended() {
        let scene = scene();
        let ended = [superseded("by a newer commit"), cancelled("by ada"), skipped()];
        for (number, outcome) in (1..).zip(&ended) {
            scene.deploy("media", number, outcome, number.into());
        }
        let pending = scene.enqueue("media", Trigger::Api, NOTHING, 4);
        scene.store.cancel_pending(pending, at(5)).unwrap();
        let interrupted = scene.enqueue("web", Trigger::Api, NOTHING, 6);
        scene.start(interrupted, 1, 7);
        scene.store.recover(at(8)).unwrap();
        let registry = scene.deploy("media", 9, &failed("cancelled: by the registry"), 9);
        assert_eq!(tell(&scene), [(registry, MessageKind::Failure)]);
    }

    #[test]
    fn where_there_was_nobody_to_tell_the_next_success_is_not_well_again() {
        let scene = scene();
        let id = scene.deploy("media", 1, &failed("unhealthy"), 1);
        scene.store.told(id, false, at(2)).unwrap();
        let good = scene.deploy("media", 2, &Outcome::Success, 3);
        assert_eq!(tell(&scene), [(good, MessageKind::Success)]);
    }

    #[test]
    fn what_a_bad_project_file_hides_is_told_once_it_is_mended() {
        let scene = scene_with(&[home(&["media"]), project("work", &["site"])], 200);
        let hidden = scene.deploy("media", 1, &failed("unhealthy"), 1);
        let site = RepositoryName { project: "work".to_owned(), name: "site".to_owned() };
        let site = scene.store.repository_named(&site).unwrap().unwrap().id;
        let other = scene.store.enqueue(site, Trigger::Api, NOTHING, at(2)).unwrap().deployment_id;
        scene.start(other, 1, 3);
        scene.finish(other, &Outcome::Success, 4);
        let left = ["home".to_owned()];
        assert_eq!(scene.store.next_untold(&left).unwrap().unwrap().deployment.id, other);
        scene.store.told(other, false, at(5)).unwrap();
        assert!(scene.store.next_untold(&left).unwrap().is_none());
        assert_eq!(tell(&scene), [(hidden, MessageKind::Failure)]);
    }

    #[test]
    fn a_message_that_was_not_sent_before_a_kill_is_still_due() {
        let scene = scene();
        let id = scene.deploy("media", 1, &failed("unhealthy"), 1);
        scene.store.log(id, LogLevel::Error, "failed: to bind its port", at(1)).unwrap();
        scene.store.log(id, LogLevel::Error, "failed: unhealthy", at(1)).unwrap();
        assert!(scene.store.next_untold(&[]).unwrap().is_some());
        let untold = scene.killed().store.next_untold(&[]).unwrap().unwrap();
        assert_eq!((untold.deployment.id, untold.kind), (id, MessageKind::Failure));
        assert_eq!(untold.last_lines, ["failed: to bind its port"], "the error is no line of its own");
    }
}
