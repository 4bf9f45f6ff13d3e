//! What changed lately, in memory: the bell for those who follow a log, and the numbered changes for those who are told
//! of deployments and repositories.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Store;
use super::open::lock;
use crate::model::{DeploymentId, RepositoryId};

/// Things whose last change is remembered. A thing that changes again counts once, so this holds every repository of a
/// large host, and the deployments of some days.
const REMEMBERED: usize = 2048;

/// Something that is not as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// A deployment's record; new ones too.
    Deployment(DeploymentId),
    /// A repository's record, or what is known of its checks.
    Repository(RepositoryId),
    /// Which projects and repositories there are, or what their files say.
    Projects,
}

/// The numbers of the last changes that were published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Of all of them.
    pub last: u64,
    /// Of those that somebody waits for: all but [`Change::Repository`], which every check of a remote makes.
    pub last_awaited: u64,
}

impl Store {
    /// The number of changes so far, for [`Store::wait_for_change`]: take it, read, then wait; a change in between ends
    /// the wait at once.
    pub fn change_seen(&self) -> u64 {
        lock(&self.changes.state).count
    }

    /// Waits until something changed after `seen` (a log line, a status, a record), at most `limit`; answers the new
    /// number of changes.
    pub fn wait_for_change(&self, seen: u64, limit: Duration) -> u64 {
        let until = Instant::now() + limit;
        let mut state = lock(&self.changes.state);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.count != seen || left.is_zero() {
                return state.count;
            }
            state = self.changes.happened.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The number of the last change that was published. What it was about reads as it is since then: a change is
    /// published after its transaction, and before whoever made it is answered.
    pub fn last_change(&self) -> u64 {
        lock(&self.changes.state).published.last
    }

    /// What changed after the change `after`, each thing once, with the number of its last change, in the order of
    /// these; at most `most` things. None where it is not known any more.
    pub fn changes_since(&self, after: u64, most: usize) -> Option<Vec<(u64, Change)>> {
        let state = lock(&self.changes.state);
        if after < state.forgotten || after > state.published.last {
            return None;
        }
        Some(state.by_number.range(after + 1..).take(most).map(|(number, change)| (*number, *change)).collect())
    }

    /// Waits until `is_enough` was published, at most `limit`; it is asked at once, then whenever something is
    /// published, and when somebody calls [`Store::look_again`].
    pub fn wait_for_published(&self, limit: Duration, is_enough: impl Fn(Published) -> bool) {
        let until = Instant::now() + limit;
        let mut state = lock(&self.changes.state);
        while !is_enough(state.published) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changes.published.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has everybody in [`Store::wait_for_published`] ask again: what they wait for changed elsewhere.
    pub fn look_again(&self) {
        // With the lock, nobody is between asking and waiting.
        let _state = lock(&self.changes.state);
        self.changes.published.notify_all();
    }

    /// The project files were loaded again and are in force.
    pub fn projects_loaded(&self) {
        self.changes.publish(&[Change::Projects]);
    }
}

/// What [`Store`] remembers of its changes.
#[derive(Default)]
pub(super) struct Changes {
    state: Mutex<State>,
    /// Something happened, if only a line of a log.
    happened: Condvar,
    /// Something was published, or somebody wants it to be looked at again.
    published: Condvar,
}

struct State {
    /// Of everything that happened, log lines too.
    count: u64,
    published: Published,
    /// The last change of each thing.
    by_number: BTreeMap<u64, Change>,
    numbers: HashMap<Change, u64>,
    /// The newest change that is not remembered though its thing has not changed since.
    forgotten: u64,
}

impl Default for State {
    fn default() -> State {
        State {
            count: 0,
            published: Published { last: 0, last_awaited: 0 },
            by_number: BTreeMap::new(),
            numbers: HashMap::new(),
            forgotten: 0,
        }
    }
}

impl Changes {
    /// A line was added to a log; nothing else changed.
    pub(super) fn line_written(&self) {
        lock(&self.state).count += 1;
        self.happened.notify_all();
    }

    /// These changed, in this order; their transaction is committed.
    pub(super) fn publish(&self, changes: &[Change]) {
        let mut state = lock(&self.state);
        state.count += 1;
        for change in changes {
            state.add(*change);
        }
        drop(state);
        self.happened.notify_all();
        self.published.notify_all();
    }

    /// A deployment changed, and with it what its repository shows of it.
    pub(super) fn publish_deployment(&self, deployment: DeploymentId, repository: RepositoryId) {
        self.publish(&[Change::Deployment(deployment), Change::Repository(repository)]);
    }
}

impl State {
    fn add(&mut self, change: Change) {
        self.published.last += 1;
        let number = self.published.last;
        if !matches!(change, Change::Repository(_)) {
            self.published.last_awaited = number;
        }
        if let Some(before) = self.numbers.insert(change, number) {
            self.by_number.remove(&before);
        }
        self.by_number.insert(number, change);
        if self.by_number.len() > REMEMBERED {
            if let Some((number, change)) = self.by_number.pop_first() {
                self.numbers.remove(&change);
                self.forgotten = number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, at, failed, hash, scene};
    use super::*;
    use crate::model::{LogLevel, Trigger};

    #[test]
    fn followers_miss_nothing_between_reading_and_waiting() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(id, 1, 2);
        let seen = scene.store.change_seen();
        assert_eq!(scene.store.wait_for_change(seen, Duration::from_millis(1)), seen, "nothing happened");
        scene.store.log(id, LogLevel::Info, "in between", at(3)).unwrap();
        let now = scene.store.wait_for_change(seen, Duration::from_secs(600));
        assert_ne!(now, seen);
        std::thread::scope(|threads| {
            let follower = threads.spawn(|| scene.store.wait_for_change(now, Duration::from_secs(600)));
            scene.finish(id, &failed("unhealthy"), 4);
            assert_ne!(follower.join().unwrap(), now);
        });
    }

    #[test]
    fn a_thing_that_changes_again_counts_once_and_last() {
        let changes = Changes::default();
        changes.publish(&[Change::Deployment(1), Change::Repository(7)]);
        changes.publish(&[Change::Repository(8)]);
        changes.publish(&[Change::Repository(7)]);
        let state = lock(&changes.state);
        let kept: Vec<_> = state.by_number.iter().map(|(number, change)| (*number, *change)).collect();
        assert_eq!(kept, [(1, Change::Deployment(1)), (3, Change::Repository(8)), (4, Change::Repository(7))]);
        assert_eq!(state.published, Published { last: 4, last_awaited: 1 });
        assert_eq!(state.forgotten, 0);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_says_where_it_begins() {
        let scene = scene();
        let store = &scene.store;
        let before = store.last_change();
        for id in 0..=REMEMBERED as i64 {
            store.changes.publish(&[Change::Deployment(id)]);
            // One that changes all the time takes one place.
            store.changes.publish(&[Change::Repository(1)]);
        }
        assert_eq!(lock(&store.changes.state).by_number.len(), REMEMBERED);
        assert_eq!(store.changes_since(before, 9), None);
        let last = store.last_change();
        assert_eq!(
            store.changes_since(last - 2, 9).unwrap(),
            [(last - 1, Change::Deployment(REMEMBERED as i64)), (last, Change::Repository(1))]
        );
        assert_eq!(store.changes_since(last - 2, 1).unwrap().len(), 1);
        assert_eq!(store.changes_since(last, 9), Some(Vec::new()));
        assert_eq!(store.changes_since(last + 1, 9), None, "a number that was never given");
    }

    #[test]
    fn each_step_of_a_deployment_and_each_check_say_what_changed() {
        let scene = scene();
        let (store, media) = (&scene.store, scene.id("media"));
        let told = |step: &dyn Fn()| {
            let before = store.last_change();
            step();
            store.changes_since(before, 9).unwrap().into_iter().map(|(_, change)| change).collect::<Vec<_>>()
        };
        let id = std::cell::Cell::new(0);
        let both = |id| vec![Change::Deployment(id), Change::Repository(media)];
        let first = told(&|| id.set(store.enqueue(media, Trigger::Api, NOTHING, at(1)).unwrap().deployment_id));
        let id = id.get();
        assert_eq!(first, both(id));
        assert_eq!(told(&|| store.waits_for(id, Some("Docker is away")).unwrap()), both(id));
        assert_eq!(told(&|| store.waits_for(id, Some("Docker is away")).unwrap()), []);
        assert_eq!(told(&|| scene.start(id, 1, 2)), both(id));
        assert_eq!(told(&|| store.log(id, LogLevel::Info, "a line", at(3)).unwrap()), []);
        assert_eq!(told(&|| scene.finish(id, &failed("unhealthy"), 4)), both(id));
        let again = scene.enqueue("media", Trigger::Api, NOTHING, 5);
        assert_eq!(told(&|| assert!(store.cancel_pending(again, at(6)).unwrap())), both(again));
        assert_eq!(told(&|| assert!(!store.cancel_pending(again, at(6)).unwrap())), []);
        let checked = [Change::Repository(media)];
        scene.check_found(media, &hash(1), at(7)).unwrap();
        assert_eq!(
            told(&|| {
                let _ = scene.check_found(media, &hash(1), at(8)).unwrap();
            }),
            checked,
            "in memory only"
        );
        assert_eq!(told(&|| store.check_scheduled(media, at(9))), checked);
        assert_eq!(
            told(&|| {
                let _ = store.check_failed(media, "away", at(10)).unwrap();
            }),
            checked
        );
        assert_eq!(
            told(&|| {
                let _ = store.check_failed(media, "away", at(11)).unwrap();
            }),
            checked,
            "in memory only"
        );
        let queued = told(&|| {
            let _ = scene.check_found(media, &hash(2), at(12)).unwrap();
        });
        let pending = store.pending().unwrap()[0].id;
        assert_eq!(queued, both(pending));
        assert_eq!(told(&|| store.projects_loaded()), [Change::Projects]);
    }

    #[test]
    fn those_who_wait_are_told_at_once_and_can_be_made_to_look_again() {
        let scene = scene();
        let store = &scene.store;
        let before = store.last_change();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|threads| {
            let awaits = |published: Published| published.last_awaited > before;
            let waiting = threads.spawn(move || store.wait_for_published(Duration::from_secs(600), awaits));
            store.check_scheduled(scene.id("media"), at(1));
            store.wait_for_published(Duration::from_millis(10), awaits);
            assert!(!waiting.is_finished());
            scene.enqueue("media", Trigger::Api, NOTHING, 2);
            waiting.join().unwrap();
            let over = || is_over.load(std::sync::atomic::Ordering::SeqCst);
            let waiting = threads.spawn(move || store.wait_for_published(Duration::from_secs(600), |_| over()));
            is_over.store(true, std::sync::atomic::Ordering::SeqCst);
            store.look_again();
            waiting.join().unwrap();
        });
    }
}
