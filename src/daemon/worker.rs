//! The single deploy worker: it takes rows from the queue, one after the other, each up to the end of its `up`.
//!
//! Everything that changes files or containers happens on this one thread. Waiting until a stack is well only looks:
//! that is done by a thread of its own for each stack that has come so far ([`finish`](super::finish)), and the worker
//! goes on with the next repository.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::activity::Running;
use super::shared::Shared;
use super::threads::Threads;
use super::{docker, finish};
use crate::command::Limit;
use crate::config::{Catalog, Repository};
use crate::deploy::control::{Cause, Control};
use crate::deploy::pipeline::{self, Begun, Job};
use crate::deploy::{checkout, settle};
use crate::model::{CommitHash, DeploymentId, DeploymentRecord, RepositoryName, RepositoryRecord, Status};
use crate::pulse;
use crate::store::{HandedOver, StoreError};

/// The queue is looked at this often even when nobody rings: a bell that is lost costs at most this.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// While Docker does not answer and something waits for it.
const DOCKER_AGAIN: Duration = Duration::from_secs(2);
/// After the database refused.
const DATABASE_AGAIN: Duration = Duration::from_secs(5);
/// For everything that the worker does beside deployments in one round; each part of it has a limit of its own, which
/// together are less.
const ROUND_LIMIT: Duration = Duration::from_secs(600);
/// For what a deployment does after its time is over: containers that an `up` had stopped are started again, files are
/// put back.
pub const AFTER_LIMIT: Duration = Duration::from_secs(600);
/// For asking what a row that waits for another one of its repository would change. A remote that hangs holds up the
/// queue for as long.
const LOOK_AHEAD_LIMIT: Duration = Duration::from_secs(20);

/// Takes rows from the queue.
pub struct Worker {
    shared: Arc<Shared>,
    threads: Threads,
    /// Rows that change nothing of the stack that is waited for, by what was observed of the remote when they were
    /// looked at.
    changes_nothing: Mutex<HashMap<DeploymentId, Option<CommitHash>>>,
}

/// What a look at the queue came to.
#[derive(Debug)]
pub enum Look {
    /// A deployment was begun; it has ended, or its stack is waited for.
    Ran,
    /// Rows wait, and none of them can start now.
    Blocked {
        /// Whether it is Docker that they wait for.
        by_docker: bool,
    },
    /// Nothing waits.
    Idle,
}

/// A row that could start, as far as the project files go.
struct Candidate<'a> {
    deployment: DeploymentRecord,
    repository: &'a Repository,
    /// The deployment of the same repository whose stack is waited for.
    behind: Option<Running>,
}

impl Worker {
    /// A worker on the daemon's queue.
    pub fn new(shared: Arc<Shared>, threads: Threads) -> Worker {
        Worker { shared, threads, changes_nothing: Mutex::default() }
    }

    /// Works until the daemon stops.
    pub fn run(&self) {
        self.resume_handed_over();
        self.put_back_interrupted();
        while !self.threads.are_stopping() {
            pulse::next_within(ROUND_LIMIT);
            let pause = match self.look() {
                Ok(Look::Ran) => continue,
                Ok(Look::Blocked { by_docker: true }) => DOCKER_AGAIN,
                Ok(Look::Blocked { by_docker: false } | Look::Idle) => self.until_next_retry(),
                Err(error) => {
                    log::error!("the queue cannot be read: {error}");
                    DATABASE_AGAIN
                }
            };
            let pause = if self.shared.restore.go_on(&self.shared) { DOCKER_AGAIN.min(pause) } else { pause };
            pulse::next_within(pause);
            self.shared.wait_for_work(pause);
        }
    }

    /// Waits for the helpers that the daemon before has left, before anything else changes the host, and goes on with
    /// their deployments.
    pub fn resume_handed_over(&self) {
        let store = &self.shared.host.store;
        while !self.threads.are_stopping() {
            pulse::next_within(ROUND_LIMIT);
            let done = store.handed_over().and_then(|left| left.iter().try_for_each(|left| self.resume(left)));
            let Err(error) = done else { return };
            log::error!("what a helper container has cannot be gone on with yet: {error}");
            self.shared.wait_for_work(DATABASE_AGAIN);
        }
    }

    fn resume(&self, left: &HandedOver) -> Result<(), StoreError> {
        let (host, activities, catalog) = (&self.shared.host, &self.shared.activities, self.shared.catalog());
        let DeploymentRecord { id, repository_id, repository: name, .. } = &left.deployment;
        // Another one is not begun while the row is running.
        let Some(running) = activities.running(*repository_id).filter(|running| running.deployment == *id) else {
            return Err(StoreError::Refused(format!("deployment {id} of {name} is not known to run")));
        };
        pulse::next_within(running.control.limit().left().saturating_add(AFTER_LIMIT));
        let Some(repository) = catalog.repository(name) else {
            pipeline::resume_unnamed(host, left, &running.control)?;
            activities.end(*repository_id);
            self.shared.wake_teller();
            return Ok(());
        };
        let Some(record) = host.store.repository(*repository_id)? else {
            return Err(StoreError::Refused(format!("{name} has no record in the database")));
        };
        let config_hash = repository.config_hash(&host.hash_key, &host.settings.environment);
        let (deployment, repository) = (left.deployment.clone(), repository.clone());
        let job = Job { deployment, record, repository, catalog, config_hash };
        match pipeline::resume(host, job, left, &running.control)? {
            Begun::Waits(waiting) => finish::wait(&self.shared, &self.threads, waiting),
            Begun::Ended(ended) => finish::end(&self.shared, &self.threads, *ended),
        }
        Ok(())
    }

    /// Puts the files back of deployments that were interrupted before they changed a container. Says of which
    /// repositories nobody can settle anything, because no project file names them any more.
    pub fn put_back_interrupted(&self) {
        let host = &self.shared.host;
        let catalog = self.shared.catalog();
        let records = host.store.repositories(None).unwrap_or_else(|error| {
            log::error!("what interrupted deployments left is not known: {error}");
            Vec::new()
        });
        for record in records {
            pulse::next_within(ROUND_LIMIT);
            let done = match catalog.repository(&record.name) {
                Some(repository) => settle::put_back_interrupted(host, repository, &record),
                None if record.orphaned_at.is_some() => settle::tell_of_orphan(host, &record),
                None => Ok(()),
            };
            if let Err(error) = done {
                log::error!("{}: {error}", record.name);
            }
        }
    }

    /// Takes the next row that may start and brings its stack up.
    ///
    /// # Errors
    /// The database's; the row is then still there.
    pub fn look(&self) -> Result<Look, StoreError> {
        let store = &self.shared.host.store;
        store.enqueue_due_retries(Timestamp::now())?;
        let pending = store.pending()?;
        if pending.is_empty() {
            return Ok(Look::Idle);
        }
        let catalog = self.shared.catalog();
        let mut candidates = Vec::new();
        for deployment in pending {
            match self.obstacle(&catalog, &deployment)? {
                Ok(repository) => {
                    let behind = self.shared.activities.running(deployment.repository_id);
                    candidates.push(Candidate { deployment, repository, behind });
                }
                Err(reason) => store.waits_for(deployment.id, Some(&reason))?,
            }
        }
        if candidates.is_empty() {
            return Ok(Look::Blocked { by_docker: false });
        }
        if let Err(problem) = docker::ask(&self.shared) {
            for candidate in &candidates {
                store.waits_for(candidate.deployment.id, Some(&format!("waits for Docker: {problem}")))?;
            }
            return Ok(Look::Blocked { by_docker: true });
        }
        self.supersede(&mut candidates)?;
        for candidate in &candidates {
            // What they waited for is there; now they wait for their turn.
            store.waits_for(candidate.deployment.id, None)?;
        }
        // The rows come oldest first, and of equals the first is taken.
        let next = candidates.into_iter().min_by_key(|candidate| std::cmp::Reverse(candidate.repository.priority));
        match next {
            Some(Candidate { deployment, repository, .. }) => self.deploy(deployment, repository, &catalog),
            None => Ok(Look::Blocked { by_docker: false }),
        }
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
        if let Some(held) = self.shared.activities.held(deployment.repository_id) {
            return Ok(Err(held.reason(name)));
        }
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

    /// Takes out the rows whose repository has a deployment that is waited for, and ends those waits that the row will
    /// bring to something else: what is bad is not waited for once its repair is there.
    fn supersede(&self, candidates: &mut Vec<Candidate<'_>>) -> Result<(), StoreError> {
        let (behind, ready): (Vec<_>, Vec<_>) =
            std::mem::take(candidates).into_iter().partition(|candidate| candidate.behind.is_some());
        *candidates = ready;
        self.forget_looks(&behind);
        for Candidate { deployment, repository, behind } in behind {
            pulse::next_within(ROUND_LIMIT);
            let Some(running) = behind else { continue };
            let reason = format!("waits for deployment {} of the same repository to end", running.deployment);
            self.shared.host.store.waits_for(deployment.id, Some(&reason))?;
            if self.will_deploy(&deployment, repository, &running)? {
                running.control.end(Cause::Supersede { by: deployment.id });
            }
        }
        Ok(())
    }

    /// Whether a row will not be skipped once the deployment that is waited for has ended.
    fn will_deploy(
        &self,
        deployment: &DeploymentRecord,
        repository: &Repository,
        running: &Running,
    ) -> Result<bool, StoreError> {
        let Some(since) = &running.waits_with else { return Ok(false) };
        if deployment.forced {
            return Ok(true);
        }
        let host = &self.shared.host;
        let Some(record) = host.store.repository(deployment.repository_id)? else { return Ok(false) };
        if self.looks().get(&deployment.id) == Some(&record.observed_commit) {
            return Ok(false);
        }
        let limit = Limit::after(LOOK_AHEAD_LIMIT);
        match checkout::changes_since(host, repository, &record, since, &limit) {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.looks().insert(deployment.id, record.observed_commit);
                Ok(false)
            }
            Err(error) => {
                // The row itself will say so when its turn comes; the stack that is waited for may be well by then.
                log::debug!("{}: nobody knows yet what deployment {} brings: {error}", repository.name, deployment.id);
                Ok(false)
            }
        }
    }

    fn looks(&self) -> MutexGuard<'_, HashMap<DeploymentId, Option<CommitHash>>> {
        self.changes_nothing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_looks(&self, still_waiting: &[Candidate<'_>]) {
        self.looks().retain(|id, _| still_waiting.iter().any(|candidate| candidate.deployment.id == *id));
    }

    fn deploy(
        &self,
        deployment: DeploymentRecord,
        repository: &Repository,
        catalog: &Arc<Catalog>,
    ) -> Result<Look, StoreError> {
        let (host, activities) = (&self.shared.host, &self.shared.activities);
        let (id, deployment_id) = (deployment.repository_id, deployment.id);
        let Some(record) = host.store.repository(id)? else {
            return Err(StoreError::Refused(format!("{} has no record in the database", repository.name)));
        };
        pulse::next_within(repository.timeout.saturating_add(AFTER_LIMIT));
        let control = Control::new(repository.timeout);
        if let Err(held) = activities.begin(id, deployment_id, &control) {
            host.store.waits_for(deployment_id, Some(&held.reason(&repository.name)))?;
            return Ok(Look::Blocked { by_docker: false });
        }
        // Whoever stops the daemon says so first and ends what runs then: one of the two is seen here.
        if self.threads.are_stopping() {
            activities.end(id);
            return Ok(Look::Ran);
        }
        let config_hash = repository.config_hash(&host.hash_key, &host.settings.environment);
        let job = Job { deployment, record, repository: repository.clone(), catalog: Arc::clone(catalog), config_hash };
        match pipeline::begin(host, job, &control) {
            Ok(Begun::Waits(waiting)) => finish::wait(&self.shared, &self.threads, waiting),
            Ok(Begun::Ended(ended)) => finish::end(&self.shared, &self.threads, *ended),
            Err(error) => {
                activities.end(id);
                match error {
                    // Somebody cancelled it in between: then it is not pending any more.
                    StoreError::Refused(why) => log::debug!("{}: {why}", repository.name),
                    other => return Err(other),
                }
            }
        }
        Ok(Look::Ran)
    }

    fn until_next_retry(&self) -> Duration {
        match self.shared.host.store.next_retry_at() {
            Ok(Some(at)) => Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default().min(LOOK_AGAIN),
            Ok(None) => LOOK_AGAIN,
            Err(_) => DATABASE_AGAIN,
        }
    }
}

/// Deployments that helpers have run, as everybody else must know from the start: they can be cancelled, and nobody gets
/// their hands on these stacks.
pub fn expect_handed_over(shared: &Shared, handed_over: &[HandedOver]) {
    let catalog = shared.catalog();
    for HandedOver { deployment, .. } in handed_over {
        let timeout = catalog.repository(&deployment.repository).map(|repository| repository.timeout);
        let timeout = timeout.unwrap_or(shared.host.settings.deploy_timeout);
        let control = Control::new(timeout.saturating_sub(deployment.ran_for(Timestamp::now())));
        // Nobody has had the time to get their hands on it.
        let _ = shared.activities.begin(deployment.repository_id, deployment.id, &control);
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
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::config::Settings;
    use crate::daemon::threads::STACK_BYTES;
    use crate::daemon::{all_ended_within, interrupt, reload};
    use crate::deploy::pipeline::Host;
    use crate::deploy::{ByHand, Driver, Log, Plan, Resident, Stack, StepError, Timing, Up, UpError};
    use crate::git;
    use crate::model::{Asked, Trigger};
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

        fn shares(&self, _: &Path, _: &Path, _: &Limit) -> Result<(), StepError> {
            Ok(())
        }

        fn plan(&self, _: &Stack, _: &Limit, _: &mut dyn Log) -> Result<Plan, StepError> {
            unreachable!("there is no git")
        }

        fn survey(&self, _: &Limit) -> Result<Vec<Resident>, StepError> {
            Ok(Vec::new())
        }

        fn owners_of_volumes(
            &self,
            _: &BTreeSet<String>,
            _: &Limit,
        ) -> Result<BTreeMap<String, Option<String>>, StepError> {
            Ok(BTreeMap::new())
        }

        fn services_of_all_profiles(&self, _: &Stack, _: &Plan, _: &Limit) -> Result<BTreeSet<String>, StepError> {
            Ok(BTreeSet::new())
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

        fn by_hand(&self, _: &Stack, _: &Limit) -> Result<ByHand, StepError> {
            unreachable!("nobody works by hand")
        }

        fn start_unmounted(&self, _: &str, _: &Limit) -> Result<Vec<String>, StepError> {
            unreachable!("nothing is restored")
        }

        fn prune_images(&self, _: &Limit, _: &mut dyn Log) -> Result<(), StepError> {
            unreachable!("there is no git")
        }
    }

    /// A worker on one repository, whose every deployment fails for want of git.
    pub(in crate::daemon) struct Scene {
        folder: tempfile::TempDir,
        pub(in crate::daemon) shared: Arc<Shared>,
        pub(in crate::daemon) threads: Threads,
        meanwhile: Meanwhile,
    }

    impl Scene {
        pub(in crate::daemon) fn new() -> Scene {
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
                hash_key: [7; 32],
            };
            let shared = Arc::new(Shared::new(host, Catalog::default(), Arc::default()));
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
            shared.activities.stop();
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
        interrupt(&scene.shared, &scene.threads, &idle);
        assert!(idle.is_finished());

        let control = Control::new(FAR);
        scene.shared.activities.begin(1, 1, &control).unwrap();
        let (shared, ended) = (Arc::clone(&scene.shared), Arc::new(AtomicBool::new(false)));
        let at_the_end = Arc::clone(&ended);
        let deploying = move || {
            at_the_end.store(!control.limit().sleep(FAR), Ordering::Relaxed);
            shared.activities.end(1);
        };
        let busy = scene.threads.start("worker", STACK_BYTES, deploying).unwrap();
        interrupt(&scene.shared, &scene.threads, &busy);
        assert!(busy.is_finished() && ended.load(Ordering::Relaxed));
    }

    #[test]
    fn nobody_waits_for_a_worker_that_hangs() {
        const FAR: Duration = Duration::from_secs(60);
        let scene = Scene::new();
        let threads = Threads::new(crossbeam_channel::unbounded().0).with_hang(Some("worker"));
        // It never ends: the process of the tests ends it.
        let hung = threads.start("worker", STACK_BYTES, pulse::rests).unwrap();
        let began = Instant::now();
        assert!(!all_ended_within(&scene.shared, &threads, &hung, FAR));
        assert!(began.elapsed() < FAR && !hung.is_finished());
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
        reload::record(&host.settings, &host.store, &host.hash_key, &catalog).unwrap();
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
