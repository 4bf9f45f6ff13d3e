//! Whether threads still go round: each says within which time it will say something again.
//!
//! A thread that begins something whose time limit it knows says [`next_within`] that limit; one that begins to wait
//! for somebody, for as long as that takes, says [`rests`]. So a thread in a pull of twenty minutes is alive for as long
//! as its deployment may take, one that waits for its bell is alive, and one that hangs is not once its own limit is
//! over. It costs an atomic store; what a thread says belongs to it as its name does, so functions that several threads
//! run need not be told whose pulse they have, and a thread that nobody watches may say it too.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What has no time limit of its own, because it takes a moment, takes no longer than this: a query of the database on a
/// slow card, say, while the host has other things to do.
pub const MOMENT: Duration = Duration::from_secs(120);
/// A thread that rests says nothing for as long as it likes.
const NEVER: u64 = u64::MAX;

/// The pulses of the threads that are watched. Clones are the same ones.
#[derive(Clone)]
pub struct Pulses {
    /// What the milliseconds of every pulse count from.
    began: Instant,
    all: Arc<Mutex<Vec<Arc<Pulse>>>>,
    /// The thread that is made to hang.
    hangs: Option<Arc<str>>,
}

struct Pulse {
    thread: String,
    /// When it will have said something again, in milliseconds; [`NEVER`] while it rests.
    next_at: AtomicU64,
    /// Made to hang at the next thing that it says.
    hangs: bool,
}

thread_local! {
    /// The pulse of this thread, and what its time counts from.
    static OWN: RefCell<Option<(Instant, Arc<Pulse>)>> = const { RefCell::new(None) };
}

impl Default for Pulses {
    fn default() -> Pulses {
        Pulses { began: Instant::now(), all: Arc::default(), hangs: None }
    }
}

impl Pulses {
    /// Those of which the thread of this name hangs as soon as it would go round, overdue at once: a fault for tests of
    /// whoever watches.
    #[must_use]
    pub fn with_hang(self, thread: Option<&str>) -> Pulses {
        Pulses { hangs: thread.map(Arc::from), ..self }
    }

    /// Watches the calling thread, under this name, until the answer is dropped; it rests at first.
    pub fn watch(&self, thread: &str) -> Watched {
        let hangs = self.hangs.as_deref() == Some(thread);
        let pulse = Arc::new(Pulse { thread: thread.to_owned(), next_at: AtomicU64::new(NEVER), hangs });
        self.lock().push(Arc::clone(&pulse));
        OWN.set(Some((self.began, Arc::clone(&pulse))));
        Watched { pulses: self.clone(), pulse }
    }

    /// Whether every thread that is watched has, until `now`, said something in time.
    ///
    /// # Errors
    /// The name of the one that has been late for longest.
    pub fn all_alive(&self, now: Instant) -> Result<(), String> {
        let now = milliseconds_between(self.began, now);
        let all = self.lock();
        let next_at = |pulse: &Pulse| pulse.next_at.load(Ordering::Relaxed);
        let latest = all.iter().filter(|pulse| next_at(pulse) < now).min_by_key(|pulse| next_at(pulse));
        latest.map_or(Ok(()), |pulse| Err(pulse.thread.clone()))
    }

    /// Whether a thread of this name has not said something in time until `now`.
    pub fn is_late(&self, thread: &str, now: Instant) -> bool {
        let now = milliseconds_between(self.began, now);
        self.lock().iter().any(|pulse| pulse.thread == thread && pulse.next_at.load(Ordering::Relaxed) < now)
    }

    /// Gives every thread that does not rest so much more time: for so long nobody ran, because the process or the whole
    /// machine was stopped.
    pub fn postpone(&self, by: Duration) {
        let later = |next_at: u64| (next_at != NEVER).then(|| next_at.saturating_add(milliseconds(by)));
        for pulse in self.lock().iter() {
            // One that rests stays as it is.
            let _ = pulse.next_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Pulse>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that is watched; dropped, it is not any more.
pub struct Watched {
    pulses: Pulses,
    pulse: Arc<Pulse>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.pulses.lock().retain(|other| !Arc::ptr_eq(other, &self.pulse));
    }
}

/// The calling thread is alive, and says something again within `time`; what takes a [`MOMENT`] is added.
pub fn next_within(time: Duration) {
    say(|began, now| milliseconds_between(began, now).saturating_add(milliseconds(time.saturating_add(MOMENT))));
}

/// The calling thread waits for somebody, without a limit of its own.
pub fn rests() {
    say(|_, _| NEVER);
}

fn say(next_at: impl FnOnce(Instant, Instant) -> u64) {
    OWN.with_borrow(|own| {
        let Some((began, pulse)) = own else { return };
        if pulse.hangs {
            pulse.next_at.store(0, Ordering::Relaxed);
            loop {
                std::thread::park();
            }
        }
        pulse.next_at.store(next_at(*began, Instant::now()), Ordering::Relaxed);
    });
}

fn milliseconds_between(begin: Instant, end: Instant) -> u64 {
    milliseconds(end.saturating_duration_since(begin))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests start threads")]

    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_is_alive_until_the_time_that_it_gave_itself_and_a_moment() {
        let pulses = Pulses::default();
        let _watched = pulses.watch("worker");
        let now = Instant::now();
        let year = Duration::from_secs(365 * 86_400);
        assert_eq!(pulses.all_alive(now + year), Ok(()), "a thread that rests is alive");
        let pull = Duration::from_secs(1200);
        next_within(pull);
        assert_eq!(pulses.all_alive(now + pull), Ok(()));
        assert_eq!(pulses.all_alive(now + pull + 2 * MOMENT), Err("worker".to_owned()));
        next_within(Duration::MAX);
        assert_eq!(pulses.all_alive(now + year), Ok(()));
        next_within(Duration::ZERO);
        rests();
        assert_eq!(pulses.all_alive(now + year), Ok(()));
    }

    #[test]
    fn time_in_which_nobody_ran_counts_for_nobody() {
        let pulses = Pulses::default();
        let _watched = pulses.watch("worker");
        next_within(Duration::from_secs(60));
        let hour = Duration::from_secs(3600);
        let after = Instant::now() + hour;
        assert_eq!(pulses.all_alive(after), Err("worker".to_owned()));
        pulses.postpone(hour);
        assert_eq!(pulses.all_alive(after), Ok(()));
        assert_eq!(pulses.all_alive(after + 2 * MOMENT), Err("worker".to_owned()));
        rests();
        pulses.postpone(hour);
        assert_eq!(pulses.all_alive(after + 365 * 24 * hour), Ok(()));
    }

    #[test]
    fn a_thread_that_is_made_to_hang_is_late_at_once() {
        let pulses = Pulses::default().with_hang(Some("worker"));
        let its_pulses = pulses.clone();
        // It never ends: the process of the tests ends it.
        std::thread::spawn(move || {
            let _watched = its_pulses.watch("worker");
            rests();
        });
        let limit = Instant::now() + Duration::from_secs(60);
        while pulses.all_alive(Instant::now()).is_ok() {
            assert!(Instant::now() < limit);
            std::thread::yield_now();
        }
        assert_eq!(pulses.all_alive(Instant::now()), Err("worker".to_owned()));
        assert_eq!(["worker", "teller"].map(|thread| pulses.is_late(thread, Instant::now())), [true, false]);
    }

    #[test]
    fn each_thread_has_a_pulse_of_its_own_and_takes_it_along() {
        let pulses = Pulses::default();
        let (say, said) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let its_pulses = pulses.clone();
        let thread = std::thread::spawn(move || {
            let _watched = its_pulses.watch("teller");
            next_within(Duration::ZERO);
            say.send(()).unwrap();
            let _ = ended.recv();
        });
        said.recv().unwrap();
        // Nobody watches this one.
        next_within(Duration::ZERO);
        let _watched = pulses.watch("docker");
        next_within(Duration::from_secs(60));
        let later = Instant::now() + 2 * MOMENT + Duration::from_secs(60);
        assert_eq!(pulses.all_alive(later), Err("teller".to_owned()), "it has been late for longest");
        drop(end);
        thread.join().unwrap();
        assert_eq!(pulses.all_alive(later), Err("docker".to_owned()));
    }
}
