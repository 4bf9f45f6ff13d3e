//! What goes on with each repository: a deployment, or somebody who works on its stack by hand. And whether anything may
//! begin at all.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::command::Limit;
use crate::deploy::control::{Cause, Control};
use crate::model::{CommitHash, DeploymentId, RepositoryId, RepositoryName};

/// All of it, by repository.
#[derive(Default)]
pub struct Activities {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    by_repository: HashMap<RepositoryId, Activity>,
    /// How many want no deployment to begin.
    pauses: usize,
}

/// Why a deployment may not begin now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// This one works on the stack by hand.
    By(String),
    /// None may begin, of whatever repository.
    All,
}

impl Held {
    /// The reason for a row that waits.
    pub fn reason(&self, repository: &RepositoryName) -> String {
        match self {
            Held::By(who) => format!(
                "waits for {who}, who works on it with `shiparr compose`; `shiparr cancel {repository}` ends that"
            ),
            Held::All => "waits for `shiparr hold` to end: a package is upgraded, mostly".to_owned(),
        }
    }
}

/// A deployment that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// Which.
    pub deployment: DeploymentId,
    /// What ends it.
    pub control: Control,
    /// Its commit, once its `up` has ended and only the stack's health is waited for.
    pub waits_with: Option<CommitHash>,
}

/// Somebody's hands on a stack (`shiparr compose`).
#[derive(Clone, Debug)]
pub struct Hands {
    /// Who, for the rows that wait: `root`, say.
    pub who: String,
    /// Cancelled when they must let go.
    pub limit: Limit,
}

/// All that goes on at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoesOn {
    /// Deployments that may change their stack: one, as there is one worker, and those that are tidied up after.
    pub deploying: Vec<DeploymentId>,
    /// Deployments whose `up` has ended, oldest first.
    pub settling: Vec<DeploymentId>,
    /// No deployment may begin.
    pub is_paused: bool,
    /// Who has their hands on stacks.
    pub hands: Vec<String>,
}

#[derive(Default)]
struct Activity {
    running: Option<Running>,
    hands: Option<Hands>,
}

impl Activity {
    fn is_over(&self) -> bool {
        self.running.is_none() && self.hands.is_none()
    }
}

impl Activities {
    /// A deployment is about to start.
    ///
    /// # Errors
    /// Somebody holds it up.
    pub fn begin(&self, repository: RepositoryId, deployment: DeploymentId, control: &Control) -> Result<(), Held> {
        let mut state = self.lock();
        if let Some(held) = state.held(repository) {
            return Err(held);
        }
        let activity = state.by_repository.entry(repository).or_default();
        activity.running = Some(Running { deployment, control: control.clone(), waits_with: None });
        Ok(())
    }

    /// Its `up` has ended; what is left is to wait until the stack is well.
    pub fn waits(&self, repository: RepositoryId, commit: CommitHash) {
        let mut state = self.lock();
        if let Some(running) = state.by_repository.get_mut(&repository).and_then(|activity| activity.running.as_mut()) {
            running.waits_with = Some(commit);
        }
    }

    /// It has ended.
    pub fn end(&self, repository: RepositoryId) {
        self.change(repository, |activity| activity.running = None);
    }

    /// The deployment of a repository that runs now.
    pub fn running(&self, repository: RepositoryId) -> Option<Running> {
        self.lock().by_repository.get(&repository)?.running.clone()
    }

    /// Ends the deployment of a repository that runs now; whether there was one.
    pub fn cancel(&self, repository: RepositoryId, deployment: DeploymentId, cause: Cause) -> bool {
        let running = self.running(repository).filter(|running| running.deployment == deployment);
        if let Some(running) = &running {
            running.control.end(cause);
        }
        running.is_some()
    }

    /// Nobody waits any more for what helpers do: Shiparr stops, and the next start goes on with them.
    pub fn leave_to_helpers(&self) {
        for running in self.all_running() {
            running.control.leave_to_helper();
        }
    }

    /// Ends everything: Shiparr stops.
    pub fn stop(&self) {
        for activity in self.lock().by_repository.values() {
            if let Some(running) = &activity.running {
                running.control.end(Cause::Stop);
            }
            if let Some(hands) = &activity.hands {
                hands.limit.cancel();
            }
        }
    }

    /// What goes on with all of them.
    pub fn look(&self) -> GoesOn {
        let state = self.lock();
        let mut look = GoesOn { is_paused: state.pauses > 0, ..GoesOn::default() };
        for activity in state.by_repository.values() {
            look.hands.extend(activity.hands.as_ref().map(|hands| hands.who.clone()));
            match &activity.running {
                Some(running) if running.waits_with.is_some() => look.settling.push(running.deployment),
                Some(running) => look.deploying.push(running.deployment),
                None => {}
            }
        }
        look.settling.sort_unstable();
        look
    }

    /// Whether a deployment runs.
    pub fn any_runs(&self) -> bool {
        self.lock().by_repository.values().any(|activity| activity.running.is_some())
    }

    /// The deployments that run now, oldest first.
    pub fn all_running(&self) -> Vec<Running> {
        let state = self.lock();
        let mut all: Vec<Running> =
            state.by_repository.values().filter_map(|activity| activity.running.clone()).collect();
        all.sort_by_key(|running| running.deployment);
        all
    }

    /// From now on no deployment begins, until [`Activities::go_on`] was called as often.
    pub fn pause(&self) {
        self.lock().pauses += 1;
    }

    /// One of those who paused is done.
    pub fn go_on(&self) {
        self.lock().pauses -= 1;
    }

    /// Why no deployment of a repository may begin now.
    pub fn held(&self, repository: RepositoryId) -> Option<Held> {
        self.lock().held(repository)
    }

    /// Waits until no deployment runs any more and nobody has their hands on a stack, at most `time`; whether that is so.
    pub fn wait_until_all_ended(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.lock();
        while !state.by_repository.values().all(Activity::is_over) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Somebody puts their hands on a stack. Not while a deployment may still change it, nor while others have theirs
    /// on it: those may let go for `patience`.
    ///
    /// # Errors
    /// What is in the way, in one line.
    pub fn take_hands(&self, repository: RepositoryId, hands: &Hands, patience: Duration) -> Result<(), String> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let activity = state.by_repository.entry(repository).or_default();
            if let Some(running) = activity.running.as_ref().filter(|running| running.waits_with.is_none()) {
                let id = running.deployment;
                return Err(format!(
                    "deployment {id} is changing it just now: try again when it has ended, or cancel it"
                ));
            }
            let Some(other) = &activity.hands else {
                activity.hands = Some(hands.clone());
                return Ok(());
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let who = &other.who;
                return Err(format!("{who} works on it with `shiparr compose`: `shiparr cancel` ends that"));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// They let go.
    pub fn release_hands(&self, repository: RepositoryId) {
        self.change(repository, |activity| activity.hands = None);
    }

    /// Who has their hands on a stack.
    pub fn hands(&self, repository: RepositoryId) -> Option<Hands> {
        self.lock().by_repository.get(&repository)?.hands.clone()
    }

    fn change(&self, repository: RepositoryId, change: impl FnOnce(&mut Activity)) {
        let mut state = self.lock();
        if let Some(activity) = state.by_repository.get_mut(&repository) {
            change(activity);
            if activity.is_over() {
                state.by_repository.remove(&repository);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn held(&self, repository: RepositoryId) -> Option<Held> {
        if self.pauses > 0 {
            return Some(Held::All);
        }
        let hands = self.by_repository.get(&repository)?.hands.as_ref()?;
        Some(Held::By(hands.who.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hands(who: &str) -> Hands {
        Hands { who: who.to_owned(), limit: Limit::after(Duration::from_secs(60)) }
    }

    fn control() -> Control {
        Control::new(Duration::from_secs(60))
    }

    #[test]
    fn hands_and_deployments_keep_off_each_other_until_up_has_ended() {
        let activities = Activities::default();
        activities.begin(1, 7, &control()).unwrap();
        assert!(activities.take_hands(1, &hands("ada"), Duration::ZERO).unwrap_err().contains("deployment 7"));
        activities.waits(1, "a".repeat(40).parse().unwrap());
        activities.take_hands(1, &hands("ada"), Duration::ZERO).unwrap();
        assert!(activities.take_hands(1, &hands("bob"), Duration::ZERO).unwrap_err().contains("ada"));
        activities.end(1);
        assert_eq!(activities.begin(1, 8, &control()), Err(Held::By("ada".to_owned())));
        activities.release_hands(1);
        activities.begin(1, 8, &control()).unwrap();
        assert!(activities.any_runs() && activities.hands(1).is_none());
    }

    #[test]
    fn nothing_begins_until_all_who_paused_are_done() {
        let activities = Activities::default();
        activities.begin(1, 7, &control()).unwrap();
        activities.pause();
        activities.pause();
        assert_eq!(activities.begin(2, 8, &control()), Err(Held::All));
        assert_eq!(activities.all_running().iter().map(|running| running.deployment).collect::<Vec<_>>(), [7]);
        activities.end(1);
        activities.go_on();
        assert_eq!(activities.held(2), Some(Held::All));
        activities.go_on();
        activities.begin(2, 8, &control()).unwrap();
    }

    #[test]
    fn who_is_about_to_let_go_is_waited_for() {
        let activities = Activities::default();
        activities.take_hands(1, &hands("ada"), Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            let bob = scope.spawn(|| activities.take_hands(1, &hands("bob"), Duration::from_secs(60)));
            activities.release_hands(1);
            bob.join().unwrap().unwrap();
        });
        assert_eq!(activities.hands(1).unwrap().who, "bob");
    }

    #[test]
    fn only_the_deployment_that_is_meant_is_cancelled() {
        let (activities, control) = (Activities::default(), control());
        activities.begin(1, 7, &control).unwrap();
        assert!(!activities.cancel(1, 6, Cause::Cancel) && !activities.cancel(2, 7, Cause::Cancel));
        assert_eq!(control.cause(), None);
        assert!(activities.cancel(1, 7, Cause::Cancel));
        assert_eq!(control.cause(), Some(Cause::Cancel));
    }

    #[test]
    fn a_stop_ends_deployments_and_hands_and_waits_for_both() {
        let (activities, control, hands) = (Activities::default(), control(), hands("ada"));
        activities.begin(1, 7, &control).unwrap();
        activities.take_hands(2, &hands, Duration::ZERO).unwrap();
        activities.stop();
        assert!(hands.limit.is_cancelled() && control.cause() == Some(Cause::Stop));
        assert!(!activities.wait_until_all_ended(Duration::from_millis(1)));
        activities.end(1);
        assert!(!activities.wait_until_all_ended(Duration::from_millis(1)));
        activities.release_hands(2);
        assert!(activities.wait_until_all_ended(Duration::ZERO));
    }
}
