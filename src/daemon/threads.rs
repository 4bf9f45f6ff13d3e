//! Long-lived threads: started here and nowhere else, and watched. One that dies takes the process down.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::Event;
use crate::pulse::{Pulses, Watched};

/// Stack of a thread that checks or waits; the system maps only what is touched.
pub const SMALL_STACK_BYTES: usize = 256 * 1024;
/// Stack of a thread that runs deployments or answers requests.
pub const STACK_BYTES: usize = 1024 * 1024;

/// Starts threads and tells main when one ends that should not have.
#[derive(Clone)]
pub struct Threads {
    events: Sender<Event>,
    stopping: Arc<AtomicBool>,
    asked_to_stop: Arc<AtomicBool>,
    pulses: Pulses,
}

impl Threads {
    /// Deaths are sent to `events`.
    pub fn new(events: Sender<Event>) -> Threads {
        Threads { events, stopping: Arc::default(), asked_to_stop: Arc::default(), pulses: Pulses::default() }
    }

    /// The thread of this name is made to hang; see [`Pulses::with_hang`].
    #[must_use]
    pub fn with_hang(self, thread: Option<&str>) -> Threads {
        Threads { pulses: self.pulses.with_hang(thread), ..self }
    }

    /// Nobody ran for so long; see [`Pulses::postpone`].
    pub fn postpone(&self, by: Duration) {
        self.pulses.postpone(by);
    }

    /// Watches the pulse of the calling thread, which was not started here, until the answer is dropped.
    pub fn watch_this_one(&self, name: &str) -> Watched {
        self.pulses.watch(name)
    }

    /// Whether every thread has, until `now`, given its heartbeat in time.
    ///
    /// # Errors
    /// The name of the one that has been late for longest.
    pub fn all_alive(&self, now: Instant) -> Result<(), String> {
        self.pulses.all_alive(now)
    }

    /// Whether the thread of this name has not given its heartbeat in time until now.
    pub fn hangs(&self, name: &str) -> bool {
        self.pulses.is_late(name, Instant::now())
    }

    /// A signal asks for a stop, which begins once main attends to that.
    pub fn ask_to_stop(&self) {
        self.asked_to_stop.store(true, Ordering::SeqCst);
    }

    /// Whether one does.
    pub fn are_asked_to_stop(&self) -> bool {
        self.asked_to_stop.load(Ordering::SeqCst)
    }

    /// From now on threads may end: the daemon stops.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether the daemon stops.
    pub fn are_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Starts a thread that lives as long as the daemon: where its body returns or panics before the daemon stops, the
    /// daemon ends with an error.
    ///
    /// # Errors
    /// The system's, when it has no room for another thread.
    pub fn start(
        &self,
        name: &str,
        stack_bytes: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        self.spawn(name, stack_bytes, false, body)
    }

    /// Starts a thread that ends when its work does; only a panic of it is an error.
    ///
    /// # Errors
    /// The system's, when it has no room for another thread.
    pub fn start_for_a_while(
        &self,
        name: &str,
        stack_bytes: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        self.spawn(name, stack_bytes, true, body)
    }

    #[expect(clippy::disallowed_methods, reason = "this is where the daemon starts its threads")]
    fn spawn(
        &self,
        name: &str,
        stack_bytes: usize,
        may_end: bool,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let threads = self.clone();
        let who = name.to_owned();
        std::thread::Builder::new().name(name.to_owned()).stack_size(stack_bytes).spawn(move || {
            let _watched = threads.pulses.watch(&who);
            let panicked = catch_unwind(AssertUnwindSafe(body)).is_err();
            if panicked || (!may_end && !threads.are_stopping()) {
                // Main may be gone already: then nobody needs to know.
                let _ = threads.events.send(Event::ThreadDied(who));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pulse;

    #[test]
    fn a_thread_that_ends_or_panics_is_told_of() {
        let (events, received) = crossbeam_channel::unbounded();
        let threads = Threads::new(events);
        threads.start("ends", SMALL_STACK_BYTES, || {}).unwrap().join().unwrap();
        threads.start_for_a_while("panics", SMALL_STACK_BYTES, || panic!("on purpose")).unwrap().join().unwrap();
        threads.start_for_a_while("works", SMALL_STACK_BYTES, || {}).unwrap().join().unwrap();
        threads.stopping();
        threads.start("stops", SMALL_STACK_BYTES, || {}).unwrap().join().unwrap();
        let died: Vec<String> = received
            .try_iter()
            .map(|event| match event {
                Event::ThreadDied(name) => name,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(died, ["ends", "panics"]);
    }

    #[test]
    fn a_thread_that_hangs_is_told_of_until_it_goes_on() {
        let (events, _received) = crossbeam_channel::unbounded();
        let threads = Threads::new(events);
        let (said, hears) = crossbeam_channel::bounded(0);
        let (end, ends) = crossbeam_channel::bounded::<()>(0);
        let body = move || {
            pulse::next_within(Duration::from_secs(60));
            said.send(()).unwrap();
            let _ = ends.recv();
        };
        let hangs = threads.start_for_a_while("hangs", SMALL_STACK_BYTES, body).unwrap();
        hears.recv().unwrap();
        let now = Instant::now();
        assert_eq!(threads.all_alive(now), Ok(()));
        assert_eq!(threads.clone().all_alive(now + Duration::from_secs(600)), Err("hangs".to_owned()));
        assert!(!threads.hangs("hangs"), "its time is not over");
        drop(end);
        hangs.join().unwrap();
        assert_eq!(threads.all_alive(now + Duration::from_secs(600)), Ok(()));
    }
}
