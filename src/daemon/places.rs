//! How many checks go on at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Checks at once. Each takes some six descriptors, and a process has 1024 of them unless somebody says otherwise; a
/// remote that answers does so within a fraction of a second.
const CHECKS_MAX: usize = 32;
/// Those at once that ask the same host: a host that hangs does not hold up the repositories of others, and a small
/// forge is not overrun.
const CHECKS_PER_HOST_MAX: usize = 16;

/// Places for checks.
pub struct Places {
    all: Arc<Seats>,
    /// Those of the hosts that are asked now, or waited for.
    hosts: Mutex<HashMap<String, Arc<Seats>>>,
}

/// A place; dropped, it is somebody else's.
pub struct Place {
    _all: Seat,
    _host: Seat,
}

impl Places {
    /// All are free.
    pub fn new() -> Places {
        Places { all: Seats::new(CHECKS_MAX), hosts: Mutex::default() }
    }

    /// Waits for a place to ask `host`. Whoever has one holds it for a check's time limit at most, so it comes.
    pub fn take(&self, host: &str) -> Place {
        // In this order, always: nobody who waits for their host takes a place from the others.
        let host = Seat::take(self.seats_of(host));
        Place { _all: Seat::take(Arc::clone(&self.all)), _host: host }
    }

    fn seats_of(&self, host: &str) -> Arc<Seats> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody sits on or waits for are not needed; they are handed out under the lock alone.
        hosts.retain(|_, seats| Arc::strong_count(seats) > 1);
        Arc::clone(hosts.entry(host.to_owned()).or_insert_with(|| Seats::new(CHECKS_PER_HOST_MAX)))
    }
}

/// A channel that holds as many words as somebody sits.
struct Seats {
    sit: Sender<()>,
    stand: Receiver<()>,
}

impl Seats {
    fn new(count: usize) -> Arc<Seats> {
        let (sit, stand) = bounded(count);
        Arc::new(Seats { sit, stand })
    }
}

struct Seat(Arc<Seats>);

impl Seat {
    fn take(seats: Arc<Seats>) -> Seat {
        // Never an error: the other end is beside it.
        let _ = seats.sit.send(());
        Seat(seats)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = self.0.stand.try_recv();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests start threads")]

    use super::*;

    #[test]
    fn a_host_that_hangs_leaves_places_to_the_others() {
        let places = Places::new();
        let hangs: Vec<_> = (0..CHECKS_PER_HOST_MAX).map(|_| places.take("hangs")).collect();
        assert!(places.seats_of("hangs").sit.is_full() && !places.all.sit.is_full());
        let others: Vec<_> = (CHECKS_PER_HOST_MAX..CHECKS_MAX).map(|n| places.take(&n.to_string())).collect();
        assert!(places.all.sit.is_full());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| drop(places.take("hangs")));
            assert!(!waits.is_finished());
            drop(hangs);
            waits.join().unwrap();
        });
        drop(others);
        assert!(places.all.sit.is_empty());
        drop(places.take("another"));
        assert_eq!(places.hosts.lock().unwrap().len(), 1, "a host that is not asked is not remembered");
    }
}
