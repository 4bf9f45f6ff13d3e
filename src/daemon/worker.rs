//! The single deploy worker: it takes rows from the queue, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::docker;
use super::shared::Shared;
use super::threads::Threads;
use crate::command::Limit;
use crate::config::{Catalog, Repository};
use crate::deploy::pipeline::{self, Job};
use crate::model::{Asked, DeploymentRecord, RepositoryName, RepositoryRecord, Status, Trigger};
use crate::store::StoreError;

/// The queue is looked at this often even when nobody rings: a bell that is lost costs at most this.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// While Docker does not answer and something waits for it.
const DOCKER_AGAIN: Duration = Duration::from_secs(2);
/// After the database refused.
const DATABASE_AGAIN: Duration = Duration::from_secs(5);

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
            // The outcome could not be stored, on a full disk say: nobody knows it now, so the deployment counts as
            // interrupted.
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
        if let Err(problem) = docker::ask(&self.shared) {
            for (deployment, _) in &ready {
                store.waits_for(deployment.id, Some(&format!("waits for Docker: {problem}")))?;
            }
            return Ok(Look::Blocked { by_docker: true });
        }
        for (deployment, _) in &ready {
            // What they waited for is there; now they wait for their turn.
            store.waits_for(deployment.id, None)?;
        }
        let (deployment, repository) = ready.swap_remove(0);
        self.deploy(deployment, repository, &catalog)?;
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
        for other in &repository.depends_on {
            let other = RepositoryName { project: name.project.clone(), name: other.clone() };
            if catalog.repository(&other).is_none() {
                // `hosts` leaves it to another machine: it counts as met.
                continue;
            }
            let record = self.shared.host.store.repository_named(&other)?;
            if let Some(reason) = record.as_ref().and_then(dependency_unmet) {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(repository))
    }

    fn deploy(
        &self,
        deployment: DeploymentRecord,
        repository: &Repository,
        catalog: &Arc<Catalog>,
    ) -> Result<(), StoreError> {
        let host = &self.shared.host;
        let Some(record) = host.store.repository(deployment.repository_id)? else {
            return Err(StoreError::Refused(format!("{} has no record in the database", repository.name)));
        };
        let limit = Limit::after(repository.timeout);
        self.shared.set_running(Some(limit.clone()));
        // Whoever stops the daemon says so first and cancels what runs then: one of the two is seen here.
        if self.threads.are_stopping() {
            self.shared.set_running(None);
            return Ok(());
        }
        let config_hash = repository.config_hash(&self.shared.hash_key, &host.settings.environment);
        let job = Job { deployment, record, repository: repository.clone(), catalog: Arc::clone(catalog), config_hash };
        let run = pipeline::run(host, &job, &limit);
        self.shared.set_running(None);
        self.shared.wake_teller();
        self.unrecorded.store(run.is_err(), Ordering::Relaxed);
        run?;
        self.queue_newer_configuration(&job)
    }

    /// A reload between the look at the catalog and the start of the row joined a row that then ran with what was
    /// configured before.
    fn queue_newer_configuration(&self, job: &Job) -> Result<(), StoreError> {
        let (catalog, environment) = (self.shared.catalog(), &self.shared.host.settings.environment);
        let Some(now) = catalog.repository(&job.repository.name) else { return Ok(()) };
        // Both hashes are of this moment: a secret's file that changed is no change of the configuration.
        let hash = |repository: &Repository| repository.config_hash(&self.shared.hash_key, environment);
        if hash(now) == hash(&job.repository) {
            return Ok(());
        }
        match self.shared.host.store.enqueue(job.record.id, Trigger::Config, Asked::default(), Timestamp::now()) {
            // It became an orphan meanwhile.
            Err(StoreError::Refused(_)) => Ok(()),
            queued => queued.map(drop),
        }
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::config::Settings;
    use crate::daemon::threads::STACK_BYTES;
    use crate::daemon::{interrupt, reload};
    use crate::deploy::pipeline::Host;
    use crate::deploy::{Driver, Log, Plan, Stack, StepError, Timing, Up, UpError};
    use crate::git;
    use crate::store::Store;

    /// Does something when it is asked whether Docker answers: that is between the look at the queue and the start of
    /// the row.
    #[derive(Clone, Default)]
    struct Meanwhile(Arc<Mutex<Option<Action>>>);

    type Action = Box<dyn FnOnce() + Send>;

    impl Meanwhile {
        fn set(&self, action: impl FnOnce() + Send + 'static) {
            *self.0.lock().unwrap() = Some(Box::new(action));
        }
    }

    impl Driver for Meanwhile {
        fn available(&self, _: &Limit) -> Result<(), String> {
            if let Some(action) = self.0.lock().unwrap().take() {
                action();
            }
            Ok(())
        }

        fn plan(&self, _: &Stack, _: &Limit, _: &mut dyn Log) -> Result<Plan, StepError> {
            unreachable!("there is no git")
        }

        fn up(&self, _: &Stack, _: &Plan, _: &Up, _: &Limit, _: &mut dyn Log) -> Result<(), UpError> {
            unreachable!("there is no git")
        }

        fn heal(&self, _: &Stack, _: &Plan, _: &mut dyn Log) -> Result<(), StepError> {
            unreachable!("there is no git")
        }

        fn wait(&self, _: &Plan, _: &Timing, _: &Limit, _: &mut dyn Log) -> Result<(), StepError> {
            unreachable!("there is no git")
        }

        fn prune_images(&self, _: &Limit, _: &mut dyn Log) -> Result<(), StepError> {
            unreachable!("there is no git")
        }
    }

    /// A worker on one repository, whose every deployment fails for want of git.
    struct Scene {
        folder: tempfile::TempDir,
        shared: Arc<Shared>,
        threads: Threads,
        meanwhile: Meanwhile,
    }

    impl Scene {
        fn new() -> Scene {
            let folder = tempfile::tempdir().unwrap();
            for name in ["projects", "data", "runtime"] {
                std::fs::create_dir(folder.path().join(name)).unwrap();
            }
            write_project(folder.path(), "main");
            let path = |name: &str| folder.path().join(name).into_os_string();
            let pairs = [
                ("Shiparr_CONFIG_PATH", path("projects")),
                ("Shiparr_DATA_PATH", path("data")),
                ("Shiparr_RUNTIME_PATH", path("runtime")),
            ];
            let settings = Settings::from_environment(&crate::config::Environment::from_pairs(pairs)).unwrap().0;
            let meanwhile = Meanwhile::default();
            let host = Host {
                store: Arc::new(Store::open(&settings.data_path, 10).unwrap()),
                settings: Arc::new(settings),
                driver: Box::new(meanwhile.clone()),
                git: git::Child { program: "/nonexistent/git-child".into(), environment: Vec::new() },
            };
            let shared = Arc::new(Shared::new(host, [7; 32], Catalog::default()));
            let threads = Threads::new(crossbeam_channel::unbounded().0);
            load(&shared);
            Scene { folder, shared, threads, meanwhile }
        }

        fn trigger(&self) {
            let record = self.shared.host.store.repositories(None).unwrap().remove(0);
            self.shared.host.store.enqueue(record.id, Trigger::Api, Asked::default(), Timestamp::now()).unwrap();
        }

        fn worker(&self) -> Worker {
            Worker::new(Arc::clone(&self.shared), self.threads.clone())
        }

        fn pending(&self) -> Vec<DeploymentRecord> {
            self.shared.host.store.pending().unwrap()
        }
    }

    #[test]
    fn a_stop_while_a_row_is_chosen_leaves_it_pending() {
        let scene = Scene::new();
        scene.trigger();
        let (shared, threads) = (Arc::clone(&scene.shared), scene.threads.clone());
        scene.meanwhile.set(move || {
            threads.stopping();
            shared.cancel_running();
        });
        scene.worker().look().unwrap();
        assert_eq!(scene.pending().iter().map(|row| row.trigger).collect::<Vec<_>>(), [Trigger::Api]);
    }

    #[test]
    fn an_interruption_waits_for_the_worker_busy_or_idle() {
        const FAR: Duration = Duration::from_secs(60);
        let scene = Scene::new();
        let worker = scene.worker();
        scene.threads.stopping();
        let idle = scene.threads.start("worker", STACK_BYTES, move || worker.shared.wait_for_work(FAR)).unwrap();
        interrupt(&scene.shared, &idle);
        assert!(idle.is_finished());

        let (limit, ended) = (Limit::after(FAR), Arc::new(AtomicBool::new(false)));
        scene.shared.set_running(Some(limit.clone()));
        let at_the_end = Arc::clone(&ended);
        let deploying = move || at_the_end.store(!limit.sleep(FAR), Ordering::Relaxed);
        let busy = scene.threads.start("worker", STACK_BYTES, deploying).unwrap();
        interrupt(&scene.shared, &busy);
        assert!(busy.is_finished() && ended.load(Ordering::Relaxed));
    }

    fn write_project(folder: &Path, branch: &str) {
        let yaml = format!("project: home\nrepositories:\n  web: {{url: /nonexistent/web.git, branch: {branch}}}\n");
        std::fs::write(folder.join("projects/home.yaml"), yaml).unwrap();
    }

    /// What a reload does, in its order.
    fn load(shared: &Shared) {
        let host = &shared.host;
        let catalog = reload::load(&host.settings, &host.store, &shared.catalog()).unwrap();
        assert!(catalog.problems.is_empty(), "{:?}", catalog.problems);
        reload::record(&host.settings, &host.store, &shared.hash_key, &catalog).unwrap();
        shared.set_catalog(Arc::new(catalog));
        reload::queue_changed(&host.store).unwrap();
    }

    #[test]
    fn a_configuration_that_changes_while_a_row_is_chosen_is_deployed_too() {
        let scene = Scene::new();
        scene.trigger();
        assert!(matches!(scene.worker().look().unwrap(), Look::Ran), "a deployment to compare with");
        scene.trigger();
        let (shared, folder) = (Arc::clone(&scene.shared), scene.folder.path().to_owned());
        scene.meanwhile.set(move || {
            write_project(&folder, "production");
            load(&shared);
        });
        assert!(matches!(scene.worker().look().unwrap(), Look::Ran));
        let pending = scene.pending();
        assert_eq!(pending.iter().map(|row| row.trigger).collect::<Vec<_>>(), [Trigger::Config]);
        assert!(matches!(scene.worker().look().unwrap(), Look::Ran));
        assert_eq!(scene.pending(), [], "it is deployed once");
    }
}
