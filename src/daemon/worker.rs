//! The single deploy worker: it takes rows from the queue, one after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::shared::Shared;
use super::threads::Threads;
use crate::command::Limit;
use crate::config::{Catalog, Repository};
use crate::deploy::pipeline::{self, Job};
use crate::model::{DeploymentRecord, RepositoryName, RepositoryRecord, Status};
use crate::store::StoreError;

/// The queue is looked at this often even when nobody rings: a bell that is lost costs at most this.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// While Docker does not answer and something waits for it.
const DOCKER_AGAIN: Duration = Duration::from_secs(2);
/// After the database refused.
const DATABASE_AGAIN: Duration = Duration::from_secs(5);
/// A question whether Docker answers takes at most this.
const DOCKER_LIMIT: Duration = Duration::from_secs(10);

/// Takes rows from the queue.
pub struct Worker {
    shared: Arc<Shared>,
    threads: Threads,
    /// The last deployment's row is still `running`, because the database did not take its outcome.
    unrecorded: AtomicBool,
}

/// What a look at the queue came to.
#[derive(Debug)]
pub enum Look {
    /// A deployment ran to its end.
    Ran,
    /// Rows wait, and none of them can start now.
    Blocked {
        /// Whether it is Docker that they wait for.
        by_docker: bool,
    },
    /// Nothing waits.
    Idle,
}

impl Worker {
    /// A worker on the daemon's queue.
    pub fn new(shared: Arc<Shared>, threads: Threads) -> Worker {
        Worker { shared, threads, unrecorded: AtomicBool::new(false) }
    }

    /// Works until the daemon stops.
    pub fn run(&self) {
        while !self.threads.are_stopping() {
            let pause = match self.look() {
                Ok(Look::Ran) => continue,
                Ok(Look::Blocked { by_docker: true }) => DOCKER_AGAIN,
                Ok(Look::Blocked { by_docker: false } | Look::Idle) => self.until_next_retry(),
                Err(error) => {
                    log::error!("the queue cannot be read: {error}");
                    DATABASE_AGAIN
                }
            };
            self.shared.wait_for_work(pause);
        }
    }

    /// Takes the next row that may start and runs it to its end.
    ///
    /// # Errors
    /// The database's; the row is then still there.
    pub fn look(&self) -> Result<Look, StoreError> {
        let store = &self.shared.host.store;
        if self.unrecorded.load(Ordering::Relaxed) {
            // The outcome could not be stored, on a full disk say: nobody knows it now, so the deployment counts as interrupted.
            store.recover(Timestamp::now())?;
            self.unrecorded.store(false, Ordering::Relaxed);
        }
        store.enqueue_due_retries(Timestamp::now())?;
        let pending = store.pending()?;
        if pending.is_empty() {
            return Ok(Look::Idle);
        }
        let catalog = self.shared.catalog();
        let mut ready = Vec::new();
        for deployment in pending {
            match self.obstacle(&catalog, &deployment)? {
                Ok(repository) => ready.push((deployment, repository)),
                Err(reason) => store.waits_for(deployment.id, Some(&reason))?,
            }
        }
        // The sort is stable and rows come oldest first.
        ready.sort_by_key(|(_, repository)| std::cmp::Reverse(repository.priority));
        if ready.is_empty() {
            return Ok(Look::Blocked { by_docker: false });
        }
        if let Err(problem) = self.shared.host.driver.available(&Limit::after(DOCKER_LIMIT)) {
            self.shared.set_docker(Some(problem.clone()));
            for (deployment, _) in &ready {
                store.waits_for(deployment.id, Some(&format!("waits for Docker: {problem}")))?;
            }
            return Ok(Look::Blocked { by_docker: true });
        }
        self.shared.set_docker(None);
        let (deployment, repository) = ready.swap_remove(0);
        self.deploy(deployment, repository)?;
        Ok(Look::Ran)
    }

    /// Why a row cannot start now; its repository when it can.
    fn obstacle<'a>(
        &self,
        catalog: &'a Catalog,
        deployment: &DeploymentRecord,
    ) -> Result<Result<&'a Repository, String>, StoreError> {
        let name = &deployment.repository;
        let Some(repository) = catalog.repository(name) else {
            return Ok(Err(format!("waits for the project file of {} to load: see `shiparr check`", name.project)));
        };
        // Asked once for each row: a project's repositories are few, and the queue is short.
        let records: HashMap<String, RepositoryRecord> = if repository.depends_on.is_empty() {
            HashMap::new()
        } else {
            let records = self.shared.host.store.repositories(Some(&name.project))?;
            records.into_iter().map(|record| (record.name.name.clone(), record)).collect()
        };
        let on_this_host = |other: &&String| {
            catalog.repository(&RepositoryName { project: name.project.clone(), name: (*other).clone() }).is_some()
        };
        for other in repository.depends_on.iter().filter(on_this_host) {
            if let Some(reason) = records.get(other).and_then(dependency_unmet) {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(repository))
    }

    fn deploy(&self, deployment: DeploymentRecord, repository: &Repository) -> Result<(), StoreError> {
        let host = &self.shared.host;
        let Some(record) = host.store.repository(deployment.repository_id)? else {
            return Err(StoreError::Refused(format!("{} has no record in the database", repository.name)));
        };
        let limit = Limit::after(repository.timeout);
        self.shared.set_running(Some(limit.clone()));
        let config_hash = repository.config_hash(&self.shared.hash_key, &host.settings.environment);
        let job = Job { deployment, record, repository: repository.clone(), config_hash };
        let run = pipeline::run(host, &job, &limit);
        self.shared.set_running(None);
        self.shared.wake_teller();
        self.unrecorded.store(run.is_err(), Ordering::Relaxed);
        run.map(drop)
    }

    fn until_next_retry(&self) -> Duration {
        match self.shared.host.store.next_retry_at() {
            Ok(Some(at)) => Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default().min(LOOK_AGAIN),
            Ok(None) => LOOK_AGAIN,
            Err(_) => DATABASE_AGAIN,
        }
    }
}

/// Why a repository that another one depends on does not let it go yet.
fn dependency_unmet(record: &RepositoryRecord) -> Option<String> {
    match record.status {
        Some(status @ (Status::Pending | Status::Running)) => {
            Some(format!("waits for {}, which is {status}", record.name))
        }
        _ if record.last_commit_hash.is_none() => {
            Some(format!("waits for {}, which has never been deployed with success", record.name))
        }
        _ => None,
    }
}
