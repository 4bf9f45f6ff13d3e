//! Random sequences of all that happens to the queue, kills included, against what was promised: no accepted trigger is
//! lost, nor what it asked for; only a success moves the last commit; what must not be skipped is not.

use std::collections::HashMap;

use super::testing::{
    NOTHING, PULL, RECREATE, Scene, at, can_pass, cancelled, commit, earlier, failed, hash, home, manual, scene_with,
    skipped, superseded,
};
use super::{Outcome, Queued};
use crate::model::{Asked, Chance, DeploymentId, DeploymentRecord, RepositoryId, Status, Trigger};

const SEQUENCES: u64 = 15;
const STEPS: u32 = 200;

/// What must be true of a repository.
#[derive(Default)]
struct Owed {
    is_manual: bool,
    /// Accepted and not settled: not started since it was.
    waiting: Option<Asked>,
    /// Accepted before the row that now runs was started, with the number of its commit.
    running: Option<(Asked, u32)>,
    observed: Option<u32>,
    last_success: Option<u32>,
    /// Something that was not skipped has ended since the last success.
    failed_since: bool,
    /// What the next commit may be compared with.
    skip_base: Option<u32>,
    /// A row that is newer than the running one was cancelled: it stays the last one when that has ended.
    cancelled_behind: bool,
    /// A commit was found that nobody asked to deploy.
    is_shown: bool,
    unsettled: Option<DeploymentId>,
}

impl Owed {
    fn accept(&mut self, trigger: Trigger, asked: Asked) {
        let Some(had) = self.waiting.take() else {
            self.waiting = Some(asked);
            return;
        };
        let person = matches!(trigger, Trigger::Api | Trigger::Cli);
        self.waiting = Some(Asked {
            pull: had.pull || asked.pull,
            recreate: had.recreate || asked.recreate,
            adopt: had.adopt || asked.adopt,
            commit: if person { asked.commit } else { had.commit },
        });
    }

    /// The branch moved: an earlier commit that is only tried again gives way.
    fn branch_moved(&mut self, tries_again: bool) {
        if let Some(waiting) = self.waiting.as_mut().filter(|_| tries_again) {
            waiting.commit = None;
        }
    }

    /// `is_retry`: nobody has decided about the tip, where it is another try of a certain commit.
    fn start(&mut self, number: u32, tip: u32, is_retry: bool) {
        self.running = self.waiting.take().map(|asked| (asked, number));
        let is_same_again = is_retry && self.running.as_ref().is_some_and(|(asked, _)| asked.commit.is_some());
        if !is_same_again {
            self.observed = Some(tip);
            self.is_shown = false;
        }
    }

    /// Whether a poll of this commit is about what runs already.
    fn is_deployed(&self, tip: u32) -> bool {
        let is_last = self.last_success == Some(tip) && !self.failed_since && self.running.is_none();
        is_last || self.running.as_ref().is_some_and(|(_, number)| *number == tip)
    }

    /// The row that ran has ended, and so.
    fn end(&mut self, outcome: &Outcome) {
        let (asked, number) = self.running.take().expect("it ran");
        if !matches!(outcome, Outcome::Skipped { .. }) {
            self.failed_since = !matches!(outcome, Outcome::Success);
            self.skip_base = None;
        }
        match outcome {
            Outcome::Success => {
                self.last_success = Some(number);
                self.skip_base = Some(number);
                self.unsettled = None;
            }
            Outcome::Failed { chance: Chance::Final, .. } => self.skip_base = self.last_success.map(|_| number),
            Outcome::Failed { chance: Chance::CanPass, .. } => self.again(asked, number),
            Outcome::Skipped { .. } | Outcome::Superseded { .. } | Outcome::Cancelled { .. } => {}
            Outcome::Interrupted { .. } => unreachable!("interruptions come from `recover` here"),
        }
        if std::mem::take(&mut self.cancelled_behind) {
            self.skip_base = None;
        }
    }

    /// It is tried again.
    fn again(&mut self, asked: Asked, number: u32) {
        let commit = if self.is_manual { earlier(number).commit } else { asked.commit };
        self.accept(Trigger::Retry, Asked { commit, ..asked });
    }
}

struct World {
    scene: Scene,
    random: Random,
    now: i64,
    ids: [RepositoryId; 2],
    owed: HashMap<RepositoryId, Owed>,
}

#[test]
fn no_accepted_trigger_is_lost_whatever_happens() {
    for seed in 1..=SEQUENCES {
        let scene = scene_with(&[manual(home(&["media", "web"]), "web")], 200);
        let ids = [scene.id("media"), scene.id("web")];
        let owed = ids.map(|id| (id, Owed { is_manual: id == ids[1], ..Owed::default() })).into();
        let mut world = World { scene, random: Random(seed), now: 0, ids, owed };
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
        let id = self.ids[self.random.below(2) as usize];
        match self.random.below(14) {
            0..=2 => self.trigger(id),
            3 | 4 => self.check_remote(id),
            5 | 6 => self.start(id),
            7..=9 => self.finish(id),
            10 => {
                self.scene.store.enqueue_due_retries(at(self.now)).unwrap();
                "due retries"
            }
            11 => self.cancel(id),
            12 => {
                self.scene.store.settled(id).unwrap();
                self.owed(id).unsettled = None;
                "settling"
            }
            _ => self.kill(),
        }
    }

    fn owed(&mut self, id: RepositoryId) -> &mut Owed {
        self.owed.get_mut(&id).unwrap()
    }

    fn trigger(&mut self, id: RepositoryId) -> &'static str {
        let now = at(self.now);
        let trigger = Trigger::ALL[self.random.below(5) as usize];
        if trigger == Trigger::Config {
            let queued = self.scene.store.configuration_changed(id, now).unwrap();
            let owed = self.owed(id);
            match queued {
                Some(_) => owed.accept(trigger, NOTHING),
                None => owed.is_shown = true,
            }
            assert_eq!(queued.is_none(), owed.is_manual);
            return "a changed configuration";
        }
        let person = matches!(trigger, Trigger::Api | Trigger::Cli);
        if person || !self.owed(id).is_manual {
            let number = self.random.below(4);
            let asked = [NOTHING, RECREATE, PULL, if person { earlier(number) } else { NOTHING }];
            let asked = asked[self.random.below(4) as usize].clone();
            if trigger == Trigger::Webhook || trigger == Trigger::Poll {
                let tries_again = self.tries_again(id);
                self.owed(id).branch_moved(tries_again);
            }
            self.scene.store.enqueue(id, trigger, asked.clone(), now).unwrap();
            self.owed(id).accept(trigger, asked);
        }
        "a trigger"
    }

    fn check_remote(&mut self, id: RepositoryId) -> &'static str {
        let (tip, tries_again) = (self.random.below(4), self.tries_again(id));
        let queued: Option<Queued> = self.scene.check_found(id, &hash(tip), at(self.now)).unwrap();
        let owed = self.owed(id);
        let is_news = owed.observed.replace(tip) != Some(tip);
        let is_deployed = owed.is_deployed(tip);
        assert_eq!(queued.is_some(), is_news && !is_deployed && !owed.is_manual);
        if owed.is_manual && is_news {
            owed.is_shown = !is_deployed;
        }
        if queued.is_some() {
            owed.branch_moved(tries_again);
            owed.accept(Trigger::Poll, NOTHING);
        }
        "a check"
    }

    /// What waits is another try.
    fn tries_again(&self, id: RepositoryId) -> bool {
        let waits = self.scene.store.repository(id).unwrap().unwrap().retry_at.is_some();
        waits || self.of(id, Status::Pending).iter().any(|pending| pending.trigger == Trigger::Retry)
    }

    fn start(&mut self, id: RepositoryId) -> &'static str {
        let pending = self.of(id, Status::Pending);
        if let ([pending], []) = (pending.as_slice(), self.of(id, Status::Running).as_slice()) {
            let wanted = self.owed(id).waiting.clone().expect("a pending row stands for a trigger");
            assert_eq!(pending.asked, wanted, "what was asked for is asked of the row, and nothing else");
            let tip = self.random.below(4);
            let number = (0..4).find(|number| earlier(*number).commit == wanted.commit).unwrap_or(tip);
            self.scene.store.start(pending.id, "configuration 1", at(self.now)).unwrap();
            self.scene.store.checked_out(pending.id, &commit(number), &hash(tip)).unwrap();
            self.owed(id).start(number, tip, pending.trigger == Trigger::Retry);
        }
        "a start"
    }

    fn finish(&mut self, id: RepositoryId) -> &'static str {
        if let [running] = self.of(id, Status::Running).as_slice() {
            let outcome = match self.random.below(6) {
                0 => failed("unhealthy"),
                1 => can_pass("network"),
                2 => superseded("by a newer commit"),
                3 => cancelled("by ada"),
                4 if !running.forced && self.owed(id).skip_base.is_some() => skipped(),
                _ => Outcome::Success,
            };
            self.scene.finish(running.id, &outcome, self.now);
            self.owed(id).end(&outcome);
        }
        "an end"
    }

    fn cancel(&mut self, id: RepositoryId) -> &'static str {
        if let [pending] = self.of(id, Status::Pending).as_slice() {
            assert!(self.scene.store.cancel_pending(pending.id, at(self.now)).unwrap());
            let owed = self.owed(id);
            (owed.waiting, owed.skip_base) = (None, None);
            owed.cancelled_behind = owed.running.is_some();
            return "a cancelled row";
        }
        if let Some(last) = self.scene.store.last_outcome(id).unwrap() {
            let waited = self.scene.store.cancel_retry(last.id).unwrap();
            assert_eq!(self.owed(id).waiting.take().is_some(), waited, "without a row it is a retry that waits");
        }
        "a cancelled retry"
    }

    fn kill(&mut self) -> &'static str {
        self.scene = self.scene.killed();
        let interrupted = self.scene.store.recover(at(self.now)).unwrap();
        for row in interrupted {
            let owed = self.owed(row.repository_id);
            let (asked, number) = owed.running.take().expect("it ran");
            owed.again(asked, number);
            (owed.failed_since, owed.skip_base, owed.cancelled_behind) = (true, None, false);
            owed.unsettled = Some(row.id);
        }
        "a kill"
    }

    fn of(&self, id: RepositoryId, status: Status) -> Vec<DeploymentRecord> {
        let filter = super::DeploymentFilter { repository_id: Some(id), status: Some(status), ..Default::default() };
        self.scene.store.deployments(&filter).unwrap()
    }

    fn check(&self, place: &str) {
        let store = &self.scene.store;
        for (&id, owed) in &self.owed {
            let (pending, running) = (self.of(id, Status::Pending), self.of(id, Status::Running));
            assert!(pending.len() <= 1 && running.len() <= 1, "{place}");
            let record = store.repository(id).unwrap().unwrap();
            let stands = !pending.is_empty() || record.retry_at.is_some();
            assert_eq!(stands, owed.waiting.is_some(), "a row or a retry stands for what is owed: {place}");
            assert!(pending.is_empty() || record.retry_at.is_none(), "never both: {place}");
            assert_eq!(running.is_empty(), owed.running.is_none(), "{place}");
            if !running.is_empty() {
                assert_eq!(record.status, Some(Status::Running), "{place}");
            } else if let Some(pending) = pending.first() {
                assert_eq!(record.status, Some(Status::Pending), "{place}");
                assert_eq!(record.last_deployment.as_ref(), Some(pending), "{place}");
            }
            assert_eq!(record.last_commit_hash, owed.last_success.map(hash), "{place}");
            assert_eq!(record.observed_commit, owed.observed.map(hash), "{place}");
            assert_eq!(record.waiting, owed.is_shown, "{place}");
            assert_eq!(store.skip_base(id).unwrap(), owed.skip_base.map(hash), "{place}");
            assert_eq!(store.unsettled(id).unwrap().map(|row| row.id), owed.unsettled, "{place}");
        }
    }

    /// From any state, a worker that goes on comes to rest with nothing owed.
    fn settle_all(&mut self, seed: u64) {
        for id in self.ids {
            for _ in 0..4 {
                self.now += 15 * 60;
                self.scene.store.enqueue_due_retries(at(self.now)).unwrap();
                if let [running] = self.of(id, Status::Running).as_slice() {
                    self.scene.finish(running.id, &Outcome::Success, self.now);
                    self.owed(id).end(&Outcome::Success);
                }
                self.start(id);
            }
            self.check(&format!("sequence {seed}, at rest"));
            assert!(self.owed[&id].waiting.is_none() && self.owed[&id].running.is_none(), "sequence {seed}");
            let sql =
                "SELECT count(*) FROM deployments WHERE repository_id = ?1 AND status = 'skipped' AND only_polled";
            let skipped_polls: u32 = self.scene.shell().query_row(sql, [id], |row| row.get(0)).unwrap();
            assert!(skipped_polls <= 1, "sequence {seed}");
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
