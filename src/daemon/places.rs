//! How many checks go on at once.

use crossbeam_channel::{Receiver, Sender, bounded};

/// Checks at once. Each takes some six descriptors, and a process has 1024 of them unless somebody says otherwise; a
/// remote that answers does so within a fraction of a second.
const CHECKS_MAX: usize = 32;
/// Those at once whose last check failed: remotes that hang do not hold up the others.
const FAILING_MAX: usize = 16;

/// Places for checks.
pub struct Places {
    all: Seats,
    failing: Seats,
}

/// A channel that holds as many words as somebody sits.
struct Seats {
    sit: Sender<()>,
    stand: Receiver<()>,
}

/// A place; dropped, it is somebody else's.
pub struct Place<'a> {
    _failing: Option<Seat<'a>>,
    _seat: Seat<'a>,
}

struct Seat<'a>(&'a Seats);

impl Places {
    /// All are free.
    pub fn new() -> Places {
        Places { all: Seats::new(CHECKS_MAX), failing: Seats::new(FAILING_MAX) }
    }

    /// Waits for a place. Whoever has one holds it for a check's time limit at most, so it comes.
    pub fn take(&self, is_failing: bool) -> Place<'_> {
        // In this order, always: nobody holds one of all while waiting for one of these.
        let failing = is_failing.then(|| self.failing.take());
        Place { _failing: failing, _seat: self.all.take() }
    }
}

impl Seats {
    fn new(count: usize) -> Seats {
        let (sit, stand) = bounded(count);
        Seats { sit, stand }
    }

    fn take(&self) -> Seat<'_> {
        // Never an error: the other end is beside it.
        let _ = self.sit.send(());
        Seat(self)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let _ = self.0.stand.try_recv();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests start threads")]

    use super::*;

    #[test]
    fn those_that_fail_leave_places_to_the_others() {
        let places = Places::new();
        let failing: Vec<_> = (0..FAILING_MAX).map(|_| places.take(true)).collect();
        assert!(places.failing.sit.is_full() && !places.all.sit.is_full());
        let others: Vec<_> = (FAILING_MAX..CHECKS_MAX).map(|_| places.take(false)).collect();
        assert!(places.all.sit.is_full());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| drop(places.take(true)));
            assert!(!waits.is_finished());
            drop(failing);
            waits.join().unwrap();
        });
        drop(others);
        assert!(places.all.sit.is_empty() && places.failing.sit.is_empty());
    }
}
