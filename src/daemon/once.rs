//! `shiparr run --once`: check and deploy everything one time.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use jiff::Timestamp;

use super::Event;
use super::shared::Shared;
use super::threads::{SMALL_STACK_BYTES, Threads};
use super::timers;
use super::worker::{Look, Worker};
use crate::command::Limit;
use crate::config::Severity;
use crate::model::{RepositoryName, Status};

/// Rows that wait, none of which could start for this long, end it.
const BLOCKED_LIMIT: Duration = Duration::from_secs(60);
/// How often waiting rows are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Checks every repository, deploys what is new, and says whether all of it is deployed.
///
/// # Errors
/// The database's.
pub fn run(shared: &Arc<Shared>, threads: &Threads, events: Receiver<Event>) -> anyhow::Result<ExitCode> {
    stop_on_signal(shared, threads, events)?;
    let mut wrong: BTreeMap<RepositoryName, String> = BTreeMap::new();
    let catalog = shared.catalog();
    for repository in catalog.repositories() {
        if threads.are_stopping() {
            break;
        }
        let Some(record) = shared.host.store.repository_named(&repository.name)? else { continue };
        let begun = shared.host.store.check_begins(record.id);
        let limit = Limit::after(timers::CHECK_LIMIT);
        match timers::tip(shared, repository, &limit) {
            Ok(tip) => drop(timers::record(shared, repository, begun, &tip, &limit)?),
            Err(error) => {
                log::error!("{}: check failed: {error}", repository.name);
                shared.host.store.check_failed(record.id, &error, Timestamp::now())?;
                wrong.insert(repository.name.clone(), error);
            }
        }
    }
    let worker = Worker::new(Arc::clone(shared), threads.clone());
    worker.resume_handed_over();
    worker.put_back_interrupted();
    let mut blocked_since: Option<Instant> = None;
    while !threads.are_stopping() {
        shared.restore.go_on(shared);
        match worker.look()? {
            Look::Ran => blocked_since = None,
            // What waits for its stack may bring rows that waited for it.
            Look::Idle | Look::Blocked { .. } if shared.activities.any_runs() => {
                blocked_since = None;
                shared.wait_for_work(LOOK_EVERY);
            }
            Look::Idle => break,
            Look::Blocked { .. } => {
                if blocked_since.get_or_insert_with(Instant::now).elapsed() >= BLOCKED_LIMIT {
                    break;
                }
                shared.wait_for_work(LOOK_EVERY);
            }
        }
    }
    shared.activities.wait_until_all_ended(super::INTERRUPTED_LIMIT);
    for record in shared.host.store.repositories(None)?.into_iter().filter(|record| record.orphaned_at.is_none()) {
        if record.waiting {
            wrong.insert(record.name, "a new commit waits for somebody to ask for it (`deploy: manual`)".to_owned());
        } else if record.status != Some(Status::Success) {
            let last = record.last_deployment.and_then(|deployment| deployment.error);
            wrong.entry(record.name).or_insert_with(|| last.unwrap_or_else(|| "it was never deployed".to_owned()));
        }
    }
    super::tell::Teller::new(Arc::clone(shared), threads.clone()).tell_all();
    shared.host.store.recover(Timestamp::now())?;
    shared.host.store.flush_checks()?;
    for (name, error) in &wrong {
        log::error!("{name} is not deployed: {error}");
    }
    let problems = catalog.problems.iter().any(|problem| problem.severity == Severity::Error);
    Ok(if wrong.is_empty() && !problems { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A signal ends the running deployment, and with it the run; what was not done is queued again.
fn stop_on_signal(shared: &Arc<Shared>, threads: &Threads, events: Receiver<Event>) -> std::io::Result<()> {
    let (shared, also) = (Arc::clone(shared), threads.clone());
    threads.start_for_a_while("signals-once", SMALL_STACK_BYTES, move || {
        while let Ok(event) = events.recv() {
            if matches!(event, Event::Stop) {
                also.stopping();
                shared.activities.stop();
                shared.wake_worker();
            }
        }
    })?;
    Ok(())
}
