//! The end of a deployment: its stack is waited for, and its outcome recorded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::shared::Shared;
use super::threads::{STACK_BYTES, Threads};
use crate::config::Repository;
use crate::deploy::pipeline::{Ended, Job, Waiting};
use crate::pulse;
use crate::store::StoreError;

/// An outcome that the database does not take, on a full disk say, is offered to it again after this.
const RECORD_AGAIN: Duration = Duration::from_secs(5);
/// How soon that is given up when the daemon stops.
const NAP: Duration = Duration::from_millis(200);

/// Waits for a stack on a thread of its own, and ends its deployment there. There are never more of these threads than
/// repositories.
pub fn wait(shared: &Arc<Shared>, threads: &Threads, waiting: Box<Waiting>) {
    let repository = waiting.job().record.id;
    shared.activities.waits(repository, waiting.commit().clone());
    shared.stir();
    let (its_shared, its_threads) = (Arc::clone(shared), threads.clone());
    beside(threads, &format!("wait-{repository}"), move || {
        let ended = waiting.watch(&its_shared.host);
        record(&its_shared, &its_threads, &ended);
        release(&its_shared, ended);
    });
}

/// Ends a deployment that did not come to waiting. What takes long after that is done beside the worker.
pub fn end(shared: &Arc<Shared>, threads: &Threads, ended: Ended) {
    record(shared, threads, &ended);
    if ended.is_soon_tidy(&shared.host) {
        return release(shared, ended);
    }
    let its_shared = Arc::clone(shared);
    beside(threads, &format!("tidy-{}", ended.job().record.id), move || release(&its_shared, ended));
}

/// Runs something on a thread of its own, or here where there is no room for one.
fn beside(threads: &Threads, name: &str, work: impl FnOnce() + Send + 'static) {
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let its_work = Arc::clone(&work);
    let body = move || {
        if let Some(work) = take(&its_work) {
            work();
        }
    };
    if let Err(error) = threads.start_for_a_while(name, STACK_BYTES, body) {
        log::warn!("no room for the thread `{name}`, so the queue waits for it: {error}");
        if let Some(work) = take(&work) {
            work();
        }
    }
}

/// Records how a deployment ended, however long the database takes.
fn record(shared: &Shared, threads: &Threads, ended: &Ended) {
    let mut was_logged = false;
    while let Err(error) = ended.record(&shared.host) {
        if !was_logged {
            let (name, id) = (&ended.job().repository.name, ended.job().deployment.id);
            log::error!("{name}: the outcome of deployment {id} is not recorded yet: {error}");
            was_logged = true;
        }
        pulse::next_within(RECORD_AGAIN);
        // What is not allowed now never will be; what a stop leaves counts as interrupted at the next start.
        if matches!(error, StoreError::Refused(_)) || !sleep(threads) {
            break;
        }
    }
    shared.wake_teller();
}

/// Tidies up after a deployment, lets its repository go, and wakes whom that concerns.
fn release(shared: &Shared, mut ended: Ended) {
    ended.tidy(&shared.host);
    shared.activities.end(ended.job().record.id);
    shared.stir();
    if let Err(error) = queue_newer_configuration(shared, ended.job()) {
        log::error!("{}: {error}", ended.job().repository.name);
    }
    // What waited for this one can go on.
    shared.wake_worker();
}

/// Sleeps until the next try; `false` when the daemon stops before.
fn sleep(threads: &Threads) -> bool {
    let mut left = RECORD_AGAIN;
    while !left.is_zero() && !threads.are_stopping() {
        std::thread::sleep(NAP.min(left));
        left = left.saturating_sub(NAP);
    }
    !threads.are_stopping()
}

/// A reload between the look at the catalog and the start of the row joined a row that then ran with what was
/// configured before.
fn queue_newer_configuration(shared: &Shared, job: &Job) -> Result<(), StoreError> {
    let (catalog, host) = (shared.catalog(), &shared.host);
    let Some(now) = catalog.repository(&job.repository.name) else { return Ok(()) };
    // Both hashes are of this moment: a secret's file that changed is no change of the configuration.
    let hash = |repository: &Repository| repository.config_hash(&host.hash_key, &host.settings.environment);
    if hash(now) == hash(&job.repository) {
        return Ok(());
    }
    match host.store.configuration_changed(job.record.id, Timestamp::now()) {
        // It became an orphan meanwhile.
        Err(StoreError::Refused(_)) => Ok(()),
        queued => queued.map(drop),
    }
}
