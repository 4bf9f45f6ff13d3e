//! What the daemon's threads share, and what the web may ask of the daemon.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::activity::Activities;
use super::restore::Restore;
use crate::config::Catalog;
use crate::deploy::pipeline::Host;
use crate::metrics::Metrics;
use crate::model::RepositoryId;

/// What the daemon's threads share.
pub struct Shared {
    /// Settings, database, driver, Git child.
    pub host: Host,
    /// What the process counts.
    pub metrics: Arc<Metrics>,
    /// When the daemon started.
    pub started_at: Instant,
    /// What goes on with each repository.
    pub activities: Activities,
    /// Decrypted files that stacks mount and that are gone.
    pub restore: Restore,
    catalog: RwLock<Arc<Catalog>>,
    worker: Bell,
    teller: Bell,
    docker: Mutex<Docker>,
    timers: Mutex<HashMap<RepositoryId, Arc<Appointment>>>,
    stirs: AtomicU64,
}

/// Wakes one thread. What there is to do is in the database, or with the remote; the bell only says: look.
pub struct Bell {
    ring: Sender<()>,
    rung: Receiver<()>,
}

impl Bell {
    /// A silent one.
    pub fn new() -> Bell {
        // One place is enough: a bell that rings already need not ring twice.
        let (ring, rung) = crossbeam_channel::bounded(1);
        Bell { ring, rung }
    }

    /// Rings, and goes on ringing until somebody heard it.
    pub fn ring(&self) {
        // Full means that it rings already.
        let _ = self.ring.try_send(());
    }

    /// What hears it, for a thread that waits for more than the bell.
    pub fn rung(&self) -> &Receiver<()> {
        &self.rung
    }

    fn wait(&self, time: Duration) {
        // Whether it rang or time is over, the thread looks.
        let _ = self.rung.recv_timeout(time);
    }
}

/// What a repository's timer has in common with the rest of the daemon.
pub struct Appointment {
    /// Rings when it is to check now.
    pub asked: Bell,
    /// When its next check would be overdue. By the clock that never steps: a host without a battery learns the time
    /// when it is up for long, and one that slept has not missed anything.
    overdue_at: Mutex<Option<Instant>>,
}

impl Appointment {
    /// None yet.
    pub fn new() -> Appointment {
        Appointment { asked: Bell::new(), overdue_at: Mutex::default() }
    }

    /// Its next check is overdue from this time on.
    pub fn is_overdue_from(&self, at: Option<Instant>) {
        *self.overdue_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.overdue_at.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at < now)
    }
}

/// Whether Docker answers, as the background thread last saw it.
#[derive(Clone, Debug, Default)]
pub struct Docker {
    /// One line; none while it answers.
    pub problem: Option<String>,
    /// Since when it does not.
    pub since: Option<Instant>,
}

impl Shared {
    /// Puts together what the threads share.
    pub fn new(host: Host, catalog: Catalog, metrics: Arc<Metrics>) -> Shared {
        Shared {
            host,
            metrics,
            started_at: Instant::now(),
            activities: Activities::default(),
            restore: Restore::default(),
            catalog: RwLock::new(Arc::new(catalog)),
            worker: Bell::new(),
            teller: Bell::new(),
            docker: Mutex::default(),
            timers: Mutex::default(),
            stirs: AtomicU64::new(0),
        }
    }

    /// Something changed that the store does not know of: what goes on, or whether Docker answers. Whoever waits for
    /// what is published looks again.
    pub fn stir(&self) {
        self.stirs.fetch_add(1, Ordering::Relaxed);
        self.host.store.look_again();
    }

    /// How often something changed that the store does not know of.
    pub fn stirs(&self) -> u64 {
        self.stirs.load(Ordering::Relaxed)
    }

    /// The accepted projects and what is wrong with the others.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a newer catalog in place.
    pub fn set_catalog(&self, catalog: Arc<Catalog>) {
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
    }

    /// Tells the worker to look at the queue.
    pub fn wake_worker(&self) {
        self.worker.ring();
    }

    /// The worker waits until somebody wakes it, at most `time`.
    pub fn wait_for_work(&self, time: Duration) {
        self.worker.wait(time);
    }

    /// Tells the teller to look at the outbox.
    pub fn wake_teller(&self) {
        self.teller.ring();
    }

    /// The teller waits until somebody wakes it, at most `time`.
    pub fn wait_for_news(&self, time: Duration) {
        self.teller.wait(time);
    }

    /// Whether Docker answers.
    pub fn docker(&self) -> Docker {
        self.docker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what a question to Docker came to; answers whether that changed anything.
    pub fn set_docker(&self, problem: Option<String>) -> bool {
        let mut docker = self.docker.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = docker.problem.is_some() != problem.is_some();
        docker.since = problem.as_ref().map(|_| docker.since.unwrap_or_else(Instant::now));
        docker.problem = problem;
        changed
    }

    /// There is a timer for a repository.
    pub fn add_timer(&self, id: RepositoryId, appointment: Arc<Appointment>) {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner).insert(id, appointment);
    }

    /// There is none any more.
    pub fn remove_timer(&self, id: RepositoryId) {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// A repository is checked now, rather than when its interval ends.
    pub fn check_now(&self, id: RepositoryId) {
        if let Some(timer) = self.timers.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            timer.asked.ring();
        }
    }

    /// The repositories whose check is overdue.
    pub fn overdue(&self, now: Instant) -> Vec<RepositoryId> {
        let timers = self.timers.lock().unwrap_or_else(PoisonError::into_inner);
        timers.iter().filter(|(_, timer)| timer.is_overdue(now)).map(|(id, _)| *id).collect()
    }
}
