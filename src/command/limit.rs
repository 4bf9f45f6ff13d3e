//! How long something may take.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stands for "no end" where a limit is longer than the clock can count.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long something may take, and whether somebody ended it before.
///
/// One `Limit` goes through a whole deployment: every child, request and wait of it ends with it. Clones share the
/// cancellation.
#[derive(Clone, Debug)]
pub struct Limit {
    deadline: Instant,
    cancellation: Arc<Cancellation>,
}

#[derive(Debug, Default)]
struct Cancellation {
    cancelled: Mutex<bool>,
    changed: Condvar,
}

impl Limit {
    /// A limit that ends after `time` from now.
    pub fn after(time: Duration) -> Limit {
        Limit { deadline: instant_after(time), cancellation: Arc::default() }
    }

    /// The same cancellation with a deadline that is not later than `time` from now.
    #[must_use]
    pub fn at_most(&self, time: Duration) -> Limit {
        Limit { deadline: self.deadline.min(instant_after(time)), cancellation: Arc::clone(&self.cancellation) }
    }

    /// The same cancellation with a deadline of its own, `time` from now.
    #[must_use]
    pub fn anew(&self, time: Duration) -> Limit {
        Limit { deadline: instant_after(time), cancellation: Arc::clone(&self.cancellation) }
    }

    /// Time left; zero when it is over or was cancelled.
    pub fn left(&self) -> Duration {
        if self.is_cancelled() { Duration::ZERO } else { self.deadline.saturating_duration_since(Instant::now()) }
    }

    /// Ends it for everyone who holds a clone, and wakes those who sleep on it.
    pub fn cancel(&self) {
        *self.cancelled() = true;
        self.cancellation.changed.notify_all();
    }

    /// Whether somebody ended it. A limit that only ran out of time was not cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled()
    }

    /// Whether nothing is left: its time is over, or it was cancelled.
    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// Sleeps for `time`, or less when the limit ends or is cancelled before; `false` when it did.
    pub fn sleep(&self, time: Duration) -> bool {
        let until = instant_after(time).min(self.deadline);
        let mut cancelled = self.cancelled();
        while !*cancelled {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.cancellation.changed.wait_timeout(cancelled, left);
            cancelled = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(cancelled);
        !self.is_over()
    }

    fn cancelled(&self) -> MutexGuard<'_, bool> {
        self.cancellation.cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn instant_after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + FAR)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests start threads")]

    use super::*;

    #[test]
    fn a_clone_ends_with_the_one_it_was_made_from() {
        let limit = Limit::after(Duration::from_secs(60));
        let shorter = limit.at_most(Duration::from_secs(5));
        assert!(shorter.left() <= Duration::from_secs(5) && !shorter.is_over());
        limit.cancel();
        assert!(shorter.is_cancelled() && shorter.is_over());
    }

    #[test]
    fn at_most_never_lengthens() {
        let limit = Limit::after(Duration::from_secs(1)).at_most(Duration::MAX);
        assert!(limit.left() <= Duration::from_secs(1));
    }

    #[test]
    fn anew_it_has_time_again_unless_it_was_cancelled() {
        let over = Limit::after(Duration::ZERO);
        assert!(!over.anew(Duration::from_secs(60)).is_over());
        over.cancel();
        assert!(over.anew(Duration::from_secs(60)).is_over());
    }

    #[test]
    fn running_out_of_time_is_not_a_cancellation() {
        let limit = Limit::after(Duration::ZERO);
        assert!(limit.is_over() && !limit.is_cancelled());
    }

    #[test]
    fn a_sleep_says_whether_it_was_whole() {
        assert!(Limit::after(Duration::MAX).sleep(Duration::from_millis(1)));
        assert!(!Limit::after(Duration::from_millis(1)).sleep(Duration::from_secs(60)));
    }

    #[test]
    fn a_cancellation_ends_a_sleep_at_once() {
        let limit = Limit::after(Duration::from_secs(60));
        let sleeper = limit.clone();
        let began = Instant::now();
        let thread = std::thread::spawn(move || sleeper.sleep(Duration::from_secs(60)));
        limit.cancel();
        assert!(!thread.join().unwrap());
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
