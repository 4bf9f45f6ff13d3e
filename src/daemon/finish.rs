//! The end of a deployment: its stack is waited for, and its outcome recorded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::shared::Shared;
use super::threads::{STACK_BYTES, Threads};
use crate::config::Repository;
use crate::deploy::pipeline::{Ended, Job, Waiting};
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
    // Where there is no room for a thread, this one waits.
    let waiting = Arc::new(Mutex::new(Some(waiting)));
    let body = {
        let (shared, threads, waiting) = (Arc::clone(shared), threads.clone(), Arc::clone(&waiting));
        move || wait_here(&shared, &threads, &waiting)
    };
    if let Err(error) = threads.start_for_a_while(&format!("wait-{repository}"), STACK_BYTES, body) {
        log::warn!("no room for a thread that waits for a stack, so the queue waits with it: {error}");
        wait_here(shared, threads, &waiting);
    }
}

fn wait_here(shared: &Arc<Shared>, threads: &Threads, waiting: &Mutex<Option<Box<Waiting>>>) {
    let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(waiting) = waiting {
        let ended = waiting.watch(&shared.host);
        end(shared, threads, ended);
    }
}

/// Records how a deployment ended, however long the database takes, and wakes whom that concerns.
pub fn end(shared: &Arc<Shared>, threads: &Threads, mut ended: Ended) {
    let mut was_logged = false;
    while let Err(error) = ended.record(&shared.host) {
        if !was_logged {
            let (name, id) = (&ended.job().repository.name, ended.job().deployment.id);
            log::error!("{name}: the outcome of deployment {id} is not recorded yet: {error}");
            was_logged = true;
        }
        // What is not allowed now never will be; what a stop leaves counts as interrupted at the next start.
        if matches!(error, StoreError::Refused(_)) || !sleep(threads) {
            break;
        }
    }
    let repository = ended.job().record.id;
    shared.wake_teller();
    ended.tidy(&shared.host);
    shared.activities.end(repository);
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
