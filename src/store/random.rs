//! Random sequences of all that happens to the queue, kills included, against what was promised: no accepted trigger is
//! lost, nor what it asked for.

use std::collections::HashMap;

use super::testing::{NOTHING, PULL, RECREATE, Scene, at, can_pass, failed, hash, scene};
use super::{Outcome, Queued};
use crate::model::{Asked, DeploymentId, DeploymentRecord, RepositoryId, Status, Trigger};

const SEQUENCES: u64 = 15;
const STEPS: u32 = 200;

/// What was accepted for a repository and is not settled yet.
#[derive(Default)]
struct Owed {
    /// Not started since it was accepted.
    waiting: Option<Asked>,
    /// Accepted before the row that now runs was started.
    running: Option<Asked>,
}

impl Owed {
    fn accept(&mut self, trigger: Trigger, asked: Asked) {
        self.waiting = Some(self.waiting.take().unwrap_or_default().joined_by(trigger, asked));
    }

    fn start(&mut self) {
        self.running = self.waiting.take();
    }

    /// Settled: done, or failed for good.
    fn settle(&mut self) {
        self.running = None;
    }

    /// It is tried again.
    fn put_back(&mut self) {
        if let Some(asked) = self.running.take() {
            self.accept(Trigger::Retry, asked);
        }
    }
}

struct World {
    scene: Scene,
    random: Random,
    now: i64,
    owed: HashMap<RepositoryId, Owed>,
}

#[test]
fn no_accepted_trigger_is_lost_whatever_happens() {
    for seed in 1..=SEQUENCES {
        let scene = scene();
        let owed = [scene.id("media"), scene.id("web")].map(|id| (id, Owed::default())).into();
        let mut world = World { scene, random: Random(seed), now: 0, owed };
        for _ in 0..STEPS {
            let step = world.step();
            world.check(&format!("sequence {seed}, at {} after: {step}", world.now));
        }
        world.settle_all(seed);
    }
}

impl World {
    fn step(&mut self) -> &'static str {
        self.now += i64::from(self.random.below(400));
        let now = at(self.now);
        let id = [self.scene.id("media"), self.scene.id("web")][self.random.below(2) as usize];
        match self.random.below(10) {
            0..=2 => {
                let trigger = Trigger::ALL[self.random.below(5) as usize];
                let asked = [NOTHING, RECREATE, PULL][self.random.below(3) as usize].clone();
                self.scene.store.enqueue(id, trigger, asked.clone(), now).unwrap();
                self.owed.get_mut(&id).unwrap().accept(trigger, asked);
                "a trigger"
            }
            3 => {
                let tip = hash(self.random.below(4));
                let queued: Option<Queued> = self.scene.check_found(id, &tip, now).unwrap();
                if queued.is_some() {
                    self.owed.get_mut(&id).unwrap().accept(Trigger::Poll, Asked::default());
                }
                "a check"
            }
            4 | 5 => self.start(id),
            6 | 7 => self.finish(id),
            8 => {
                self.scene.store.enqueue_due_retries(now).unwrap();
                "due retries"
            }
            _ => {
                self.scene = self.scene.killed();
                self.scene.store.recover(now).unwrap();
                self.owed.values_mut().for_each(Owed::put_back);
                "a kill"
            }
        }
    }

    fn start(&mut self, id: RepositoryId) -> &'static str {
        let pending = self.of(id, Status::Pending);
        if let ([pending], []) = (pending.as_slice(), self.of(id, Status::Running).as_slice()) {
            let owed = self.owed.get_mut(&id).unwrap();
            let wanted = owed.waiting.clone().expect("a pending row stands for a trigger");
            assert_eq!(pending.asked, wanted, "what was asked for is asked of the row, and nothing else");
            self.scene.start(pending.id, self.random.below(4), self.now);
            owed.start();
        }
        "a start"
    }

    fn finish(&mut self, id: RepositoryId) -> &'static str {
        if let [running] = self.of(id, Status::Running).as_slice() {
            let owed = self.owed.get_mut(&id).unwrap();
            let outcome = match self.random.below(3) {
                0 => Outcome::Success,
                1 => failed("unhealthy"),
                _ => can_pass("network"),
            };
            match outcome {
                Outcome::Failed { chance: crate::model::Chance::CanPass, .. } => owed.put_back(),
                _ => owed.settle(),
            }
            self.scene.finish(running.id, &outcome, self.now);
        }
        "an end"
    }

    fn of(&self, id: RepositoryId, status: Status) -> Vec<DeploymentRecord> {
        let filter = super::DeploymentFilter { repository_id: Some(id), status: Some(status), ..Default::default() };
        self.scene.store.deployments(&filter).unwrap()
    }

    fn check(&self, place: &str) {
        for (&id, owed) in &self.owed {
            let (pending, running) = (self.of(id, Status::Pending), self.of(id, Status::Running));
            assert!(pending.len() <= 1 && running.len() <= 1, "{place}");
            let record = self.scene.store.repository(id).unwrap().unwrap();
            let stands = !pending.is_empty() || record.retry_at.is_some();
            assert_eq!(stands, owed.waiting.is_some(), "a row or a retry stands for what is owed: {place}");
            assert!(pending.is_empty() || record.retry_at.is_none(), "never both: {place}");
            assert_eq!(running.is_empty(), owed.running.is_none(), "{place}");
            let newest: Option<DeploymentId> = pending.first().or(running.first()).map(|row| row.id);
            if newest.is_some() {
                assert_eq!(record.last_deployment.map(|row| row.id), newest, "{place}");
            }
        }
    }

    /// From any state, a worker that goes on comes to rest with nothing owed.
    fn settle_all(&mut self, seed: u64) {
        for id in [self.scene.id("media"), self.scene.id("web")] {
            for _ in 0..4 {
                self.now += 15 * 60;
                self.scene.store.enqueue_due_retries(at(self.now)).unwrap();
                if let [running] = self.of(id, Status::Running).as_slice() {
                    self.scene.finish(running.id, &Outcome::Success, self.now);
                    self.owed.get_mut(&id).unwrap().settle();
                }
                self.start(id);
            }
            self.check(&format!("sequence {seed}, at rest"));
            assert!(self.owed[&id].waiting.is_none() && self.owed[&id].running.is_none(), "sequence {seed}");
        }
    }
}

/// The same numbers in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 11) % u64::from(bound)).expect("less than a u32")
    }
}
