//! Deliveries of webhooks: what a push queued is remembered by the delivery's id, so that one that arrives again queues
//! nothing again.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};

use super::queue::{Try, queue, refuse_orphan};
use super::rows::{optional_word, stored};
use super::{Store, StoreError};
use crate::model::{Asked, By, DeploymentId, RepositoryId, Status, Trigger};

/// Forges deliver again within hours, people within days.
const DELIVERY_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// The id of a delivery is not signed: whoever saw one delivery can send it with ever new ids.
const DELIVERIES_KEPT: u32 = 10_000;
/// An id that is longer is none; forges send 36 bytes.
const DELIVERY_ID_BYTES: usize = 128;

/// A push, as far as the queue goes.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Who delivers it: ids of two providers have nothing to do with each other.
    pub provider: &'a str,
    /// What it has in common with the same delivery made again; none: it is always taken.
    pub id: Option<&'a str>,
    /// Who pushed.
    pub actor: Option<&'a str>,
}

/// What a delivery came to for one repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Which.
    pub repository_id: RepositoryId,
    /// The deployment that it queued or joined, now or the first time; none where that is too old to be kept.
    pub deployment_id: Option<DeploymentId>,
    /// How it came to that.
    pub how: How,
}

/// How a delivery came to its deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It made the row.
    Queued,
    /// A row was pending.
    Joined,
    /// The same delivery was here before, and what it queued did not fail.
    SeenBefore,
}

impl Store {
    /// Accepts a push for all repositories that it is about, in one transaction with the delivery's id. Durable (fsync)
    /// when it returns. A repository that is an orphan by now, or gone, is left out of the answer.
    ///
    /// # Errors
    /// SQLite's; nothing is queued then.
    pub fn deliver(
        &self,
        delivery: &Delivery<'_>,
        repositories: &[RepositoryId],
        now: Timestamp,
    ) -> Result<Vec<Delivered>, StoreError> {
        let by = By { trigger: Trigger::Webhook, actor: delivery.actor.map(str::to_owned) };
        let key = delivery.id.filter(|id| (1..=DELIVERY_ID_BYTES).contains(&id.len()));
        let delivered = self.promise(|transaction| {
            let mut all = Vec::with_capacity(repositories.len());
            for &repository_id in repositories {
                let seen = key.map(|id| seen(transaction, delivery.provider, id, repository_id));
                if let Some(seen) = seen.transpose()?.flatten() {
                    all.push(seen);
                    continue;
                }
                match refuse_orphan(transaction, repository_id) {
                    Ok(()) => {}
                    Err(StoreError::Refused(_)) => continue,
                    Err(error) => return Err(error),
                }
                let queued = queue(transaction, repository_id, &Try::first(by.clone(), Asked::default()), now)?;
                if let Some(id) = key {
                    remember(transaction, delivery.provider, id, repository_id, queued.deployment_id, now)?;
                }
                let how = if queued.joined { How::Joined } else { How::Queued };
                all.push(Delivered { repository_id, deployment_id: Some(queued.deployment_id), how });
            }
            forget_old(transaction, now)?;
            Ok(all)
        })?;
        for taken in delivered.iter().filter(|delivered| delivered.how != How::SeenBefore) {
            if let Some(deployment) = taken.deployment_id {
                self.changes.publish_deployment(deployment, taken.repository_id);
            }
        }
        Ok(delivered)
    }
}

/// What the same delivery queued before, unless that failed.
fn seen(
    transaction: &Transaction,
    provider: &str,
    id: &str,
    repository_id: RepositoryId,
) -> Result<Option<Delivered>, StoreError> {
    let mut statement = transaction.prepare_cached(
        "SELECT w.deployment_id, d.status FROM webhook_deliveries w LEFT JOIN deployments d ON d.id = w.deployment_id \
         WHERE w.provider = ?1 AND w.delivery = ?2 AND w.repository_id = ?3",
    )?;
    let found: Option<(Option<DeploymentId>, Option<Status>)> = statement
        .query_row(params![provider, id, repository_id], |row| Ok((row.get(0)?, optional_word(row, 1)?)))
        .optional()?;
    Ok(match found {
        None | Some((_, Some(Status::Failed))) => None,
        Some((deployment_id, _)) => Some(Delivered { repository_id, deployment_id, how: How::SeenBefore }),
    })
}

fn remember(
    transaction: &Transaction,
    provider: &str,
    id: &str,
    repository_id: RepositoryId,
    deployment_id: DeploymentId,
    now: Timestamp,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO webhook_deliveries (provider, delivery, repository_id, deployment_id, at) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![provider, id, repository_id, deployment_id, stored(now)])?;
    Ok(())
}

fn forget_old(transaction: &Transaction, now: Timestamp) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "DELETE FROM webhook_deliveries WHERE at < ?1 \
             OR at < (SELECT at FROM webhook_deliveries ORDER BY at DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![stored(now - DELIVERY_KEPT), DELIVERIES_KEPT])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::testing::{NOTHING, Scene, at, failed, home, scene};
    use super::*;

    const DAY_SECONDS: i64 = 24 * 3600;

    fn deliver(scene: &Scene, id: Option<&str>, names: &[&str], seconds: i64) -> Vec<(Option<DeploymentId>, How)> {
        let repositories: Vec<_> = names.iter().map(|name| scene.id(name)).collect();
        let delivery = Delivery { provider: "gitea", id, actor: Some("ada") };
        let delivered = scene.store.deliver(&delivery, &repositories, at(seconds)).unwrap();
        delivered.into_iter().map(|delivered| (delivered.deployment_id, delivered.how)).collect()
    }

    fn remembered(scene: &Scene) -> i64 {
        scene.shell().query_row("SELECT count(*) FROM webhook_deliveries", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_push_is_queued_for_all_that_it_is_about_and_survives_a_kill() {
        let scene = scene();
        let web = scene.enqueue("web", Trigger::Poll, NOTHING, 1);
        let delivered = deliver(&scene, Some("a"), &["media", "web"], 2);
        let media = delivered[0].0.unwrap();
        assert_eq!(delivered, [(Some(media), How::Queued), (Some(web), How::Joined)]);
        let scene = scene.killed();
        let row = scene.deployment(media);
        assert_eq!((row.trigger, row.forced, row.actor.as_deref()), (Trigger::Webhook, false, Some("ada")));
        assert_eq!(scene.deployment(web).actor.as_deref(), Some("ada"));
        assert_eq!(deliver(&scene, Some("a"), &["media"], 3), [(Some(media), How::SeenBefore)]);
    }

    #[test]
    fn a_delivery_seen_before_queues_nothing_unless_its_deployment_failed() {
        let scene = scene();
        let (first, _) = deliver(&scene, Some("a"), &["media"], 1)[0];
        for (status, finish) in [("pending", None), ("running", None), ("success", Some(Outcome::Success))] {
            match &finish {
                None if status == "running" => scene.start(first.unwrap(), 1, 2),
                None => {}
                Some(outcome) => scene.finish(first.unwrap(), outcome, 3),
            }
            assert_eq!(deliver(&scene, Some("a"), &["media"], 4), [(first, How::SeenBefore)], "{status}");
        }
        let (second, how) = deliver(&scene, Some("b"), &["media"], 5)[0];
        assert_eq!(how, How::Queued);
        scene.start(second.unwrap(), 2, 6);
        scene.finish(second.unwrap(), &failed("unhealthy"), 7);
        let (again, how) = deliver(&scene, Some("b"), &["media"], 8)[0];
        assert!(again > second && how == How::Queued);
        assert_eq!(deliver(&scene, Some("b"), &["media"], 9), [(again, How::SeenBefore)]);
        // It is the same delivery for a repository that it was not about before.
        assert_eq!(deliver(&scene, Some("b"), &["web"], 10)[0].1, How::Queued);
        assert_eq!(remembered(&scene), 3);
    }

    #[test]
    fn ids_are_of_their_provider_and_those_that_are_none_are_always_taken() {
        let scene = scene();
        let (first, _) = deliver(&scene, Some("a"), &["media"], 1)[0];
        let long = "x".repeat(DELIVERY_ID_BYTES + 1);
        for id in [None, Some(""), Some(long.as_str())] {
            assert_eq!(deliver(&scene, id, &["media"], 2), [(first, How::Joined)]);
        }
        let delivery = Delivery { provider: "github", id: Some("a"), actor: None };
        assert_eq!(scene.store.deliver(&delivery, &[scene.id("media")], at(3)).unwrap()[0].how, How::Joined);
        assert_eq!(remembered(&scene), 2);
    }

    #[test]
    fn deliveries_are_forgotten_after_a_week_and_are_bounded() {
        let scene = scene();
        deliver(&scene, Some("a"), &["media"], 0);
        deliver(&scene, Some("b"), &["media"], 7 * DAY_SECONDS);
        assert_eq!(remembered(&scene), 2);
        deliver(&scene, Some("c"), &["media"], 7 * DAY_SECONDS + 1);
        assert_eq!(remembered(&scene), 2);
        let now = 8 * DAY_SECONDS;
        let shell = scene.shell();
        shell
            .execute(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) INSERT INTO \
                 webhook_deliveries SELECT 'gitea', 'n' || i, ?2, NULL, ?3 + i FROM n",
                params![DELIVERIES_KEPT, scene.id("media"), stored(at(now))],
            )
            .unwrap();
        deliver(&scene, Some("d"), &["media"], now + DAY_SECONDS);
        assert!(remembered(&scene) <= i64::from(DELIVERIES_KEPT) + 1);
        assert_eq!(deliver(&scene, Some("n9999"), &["media"], now + DAY_SECONDS), [(None, How::SeenBefore)]);
    }

    #[test]
    fn an_orphan_is_left_out() {
        let scene = scene();
        let (media, web) = (scene.id("media"), scene.id("web"));
        scene.store.sync(&[home(&["web"])], &[], at(1)).unwrap();
        let delivery = Delivery { provider: "gitea", id: Some("a"), actor: None };
        let delivered = scene.store.deliver(&delivery, &[media, web, 99], at(2)).unwrap();
        assert_eq!(delivered.iter().map(|delivered| delivered.repository_id).collect::<Vec<_>>(), [web]);
    }
}
