//! The daemon's side, with a helper that only these tests play.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::job::tests::brought;
use super::*;
use crate::config::Environment;
use crate::config::Settings;
use crate::deploy::secret_files::Kept;
use crate::deploy::{ByHand, Driver, Resident, Timing};
use crate::git;
use crate::model::{Asked, Status, Trigger};
use crate::secrets::Scrubber;
use crate::store::{ProjectSpec, RepositorySpec, Store};

const LONG: Duration = Duration::from_secs(60);
const OWN_ID: &str = "b6e157cdc206";

/// Does what a test says when a helper is to be started, and remembers signals.
#[derive(Clone, Default)]
struct Docker {
    start: Arc<Mutex<Option<Start>>>,
    signals: Arc<Mutex<Vec<String>>>,
}

type Start = Box<dyn FnOnce(JobFolder) -> Result<(), StepError> + Send>;

impl Helpers for Docker {
    fn own_project(&self, _: &Limit) -> Result<Option<String>, StepError> {
        Ok(Some("web".to_owned()))
    }

    fn own_id(&self, _: &Limit) -> Result<Option<String>, StepError> {
        Ok(Some(OWN_ID.to_owned()))
    }

    fn can_help(&self, _: &Limit) -> Result<(), StepError> {
        Ok(())
    }

    fn start(&self, folder: &Path, _: &Plan, _: &Limit) -> Result<(), StepError> {
        let start = self.start.lock().unwrap().take().expect("one helper is started");
        start(JobFolder::at(folder))
    }

    fn signal(&self, _: &Path, signal: &str, _: &Limit) -> Result<(), StepError> {
        self.signals.lock().unwrap().push(signal.to_owned());
        Ok(())
    }
}

impl Driver for Docker {
    fn available(&self, _: &Limit) -> Result<(), String> {
        Ok(())
    }

    fn shares(&self, path: &Path, _: &Path, _: &Limit) -> Result<(), StepError> {
        match path.ends_with("elsewhere") {
            true => Err(StepError::for_now("add this line to `volumes:`")),
            false => Ok(()),
        }
    }

    fn plan(&self, _: &Stack, _: &Limit, _: &mut dyn Log) -> Result<Plan, StepError> {
        unreachable!("it is planned")
    }

    fn survey(&self, _: &Limit) -> Result<Vec<Resident>, StepError> {
        unreachable!("it is planned")
    }

    fn owners_of_volumes(
        &self,
        _: &BTreeSet<String>,
        _: &Limit,
    ) -> Result<BTreeMap<String, Option<String>>, StepError> {
        unreachable!("it is planned")
    }

    fn services_of_all_profiles(&self, _: &Stack, _: &Plan, _: &Limit) -> Result<BTreeSet<String>, StepError> {
        unreachable!("it is planned")
    }

    fn up(&self, _: &Stack, _: &Plan, _: &Up, _: &Limit, _: &mut dyn Log) -> Result<(), UpError> {
        unreachable!("a helper does it")
    }

    fn heal(&self, _: &Stack, _: &Plan, _: &mut dyn Log) -> Result<(), StepError> {
        unreachable!("a helper does it")
    }

    fn wait(&self, _: &Plan, _: &Timing, _: &Limit, _: &mut dyn Log) -> Result<(), StepError> {
        unreachable!("nobody waits for health")
    }

    fn by_hand(&self, _: &Stack, _: &Limit) -> Result<ByHand, StepError> {
        unreachable!("nobody works by hand")
    }

    fn start_unmounted(&self, _: &str, _: &Limit) -> Result<Vec<String>, StepError> {
        unreachable!("nothing is restored")
    }

    fn helpers(&self) -> Option<&dyn Helpers> {
        Some(self)
    }

    fn prune_images(&self, _: &Limit, _: &mut dyn Log) -> Result<(), StepError> {
        unreachable!("nothing is pruned")
    }
}

/// A deployment that is about to be handed over.
struct Scene {
    folder: tempfile::TempDir,
    host: Host,
    docker: Docker,
    id: DeploymentId,
    control: Control,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        for name in ["projects", "data", "runtime"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let path = |name: &str| folder.path().join(name).into_os_string();
        let pairs = [
            ("Shiparr_CONFIG_PATH", path("projects")),
            ("Shiparr_DATA_PATH", path("data")),
            ("Shiparr_RUNTIME_PATH", path("runtime")),
        ];
        let settings = Settings::from_environment(&Environment::from_pairs(pairs)).unwrap().0;
        let store = Arc::new(Store::open(&settings.data_path, 10).unwrap());
        let docker = Docker::default();
        let id = started(&store);
        let host = Host {
            store,
            settings: Arc::new(settings),
            driver: Box::new(docker.clone()),
            git: git::Child { program: "/nonexistent/git-child".into(), environment: Vec::new() },
            hash_key: [7; 32],
        };
        Scene { folder, host, docker, id, control: Control::new(LONG) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn job(&self) -> JobFolder {
        JobFolder::of(&self.host.settings.runtime_path, self.id)
    }

    fn journal(&self) -> Journal {
        Journal::new(Arc::clone(&self.host.store), self.id, Scrubber::new())
    }

    /// Hands it over to a helper that does this, with plaintext in the runtime folder.
    fn up(&self, helper: impl FnOnce(JobFolder) -> Result<(), StepError> + Send + 'static) -> End {
        *self.docker.start.lock().unwrap() = Some(Box::new(helper));
        let runtime = &self.host.settings.runtime_path;
        let mut folder = RuntimeFolder::create(runtime, &self.host.settings.data_path, &self.id.to_string()).unwrap();
        folder.write("variables.env", "PASSWORD=correct horse").unwrap();
        let plan = brought().plan;
        let stack = Stack::from(job::tests::job(runtime).stack);
        let secret_files =
            Switched::from_kept(Kept::default(), &self.row().repository, &self.host.settings, &self.host.hash_key);
        let given = Given {
            deployment: self.id,
            stack: &stack,
            plan: &plan,
            up: Up { remove_orphans: true, recreate: BTreeSet::new() },
            heals_first: false,
            secret_files: &secret_files,
            since: brought().since,
        };
        up(&self.host, given, Plaintext::of(folder), &self.control, &mut self.journal())
    }

    /// What the next daemon does.
    fn resume(&self) -> End {
        let left = self.host.store.handed_over().unwrap();
        resume(&self.host, &left[0], &self.control, &mut self.journal())
    }

    fn row(&self) -> crate::model::DeploymentRecord {
        self.host.store.deployment(self.id).unwrap().unwrap()
    }

    fn log(&self) -> String {
        self.host.store.log_lines(self.id, 0, 100).unwrap().into_iter().map(|line| line.message + "\n").collect()
    }

    fn secrets(&self) -> PathBuf {
        self.path("runtime/secrets").join(self.id.to_string())
    }

    #[track_caller]
    fn assert_taken_back(&self) {
        assert_eq!(self.host.store.handed_over().unwrap(), []);
        assert!(!self.job().path().exists() && !self.secrets().exists(), "something stays in the runtime folder");
        assert_eq!(self.row().status, Status::Running);
    }
}

fn started(store: &Store) -> DeploymentId {
    let repository = RepositorySpec {
        name: "web".to_owned(),
        git_url: "/nowhere".to_owned(),
        branch: "main".to_owned(),
        path: "./".to_owned(),
        local_path: "/nowhere".to_owned(),
        check_interval_seconds: 60,
        is_manual: false,
        config_hash: String::new(),
    };
    let (name, config_file) = ("home".to_owned(), "home.yaml".to_owned());
    let project = ProjectSpec { name, description: None, config_file, repositories: vec![repository] };
    let now = Timestamp::now();
    store.sync(&[project], &[], now).unwrap();
    let id = store.repositories(None).unwrap()[0].id;
    let id = store.enqueue(id, Trigger::Api, Asked::default(), now).unwrap().deployment_id;
    store.start(id, "configuration", now).unwrap();
    id
}

/// What a helper says, and then its answer.
fn work(folder: &JobFolder, result: Result<(), UpError>) -> Result<(), StepError> {
    use std::io::Write;
    let (job, _held) = folder.take().map_err(StepError::for_good)?;
    let line = job::Line::new(Timestamp::now(), LogLevel::Info, "Container web-1  Started".to_owned());
    let mut text = serde_json::to_vec(&line).unwrap();
    text.push(b'\n');
    folder.log().unwrap().write_all(&text).unwrap();
    let containers = [OWN_ID.to_owned()].into();
    folder.say(Answer { result, is_unsettled: false, containers, kept: job.kept }).map_err(StepError::for_good)
}

fn lost(end: End) -> String {
    match end {
        End::Lost(why) => why,
        End::Left => panic!("it was left"),
        End::Done(_) => panic!("it was done"),
    }
}

fn done(end: End) -> Result<(), UpError> {
    match end {
        End::Done(done) => done.result,
        End::Left => panic!("it was left"),
        End::Lost(why) => panic!("it was lost: {why}"),
    }
}

#[test]
fn the_outcome_is_that_of_the_helper_and_nothing_of_it_stays() {
    let scene = Scene::new();
    assert_eq!(done(scene.up(|folder| work(&folder, Ok(())))), Ok(()));
    scene.assert_taken_back();
    assert!(scene.log().contains("handed over") && scene.log().contains("web-1  Started"), "{}", scene.log());

    let scene = Scene::new();
    let error = UpError { error: StepError::for_now("no room"), containers: Containers::Changed };
    let told = error.clone();
    assert_eq!(done(scene.up(move |folder| work(&folder, Err(told)))), Err(error));
    scene.assert_taken_back();
}

#[test]
fn a_helper_that_does_not_start_has_changed_nothing() {
    let scene = Scene::new();
    let error = done(scene.up(|_| Err(StepError::for_now("no such image")))).unwrap_err();
    assert_eq!((error.containers, error.error.message.as_str()), (Containers::Untouched, "no such image"));
    scene.assert_taken_back();
}

#[test]
fn one_that_starts_although_docker_gave_no_answer_is_waited_for() {
    let scene = Scene::new();
    let end = scene.up(|folder| work(&folder, Ok(())).and(Err(StepError::for_now("docker run gave no answer"))));
    assert_eq!(done(end), Ok(()));
    assert!(scene.log().contains("gave no answer"), "{}", scene.log());
    scene.assert_taken_back();
}

#[test]
fn a_helper_that_is_killed_leaves_an_interrupted_deployment() {
    let scene = Scene::new();
    let why = lost(scene.up(|folder| folder.take().map(drop).map_err(StepError::for_good)));
    assert!(why.contains("without an answer"), "{why}");
    scene.assert_taken_back();
}

#[test]
fn a_daemon_that_stops_leaves_everything_to_the_next_one() {
    let scene = Scene::new();
    scene.control.leave_to_helper();
    let held = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&held);
    let end = scene.up(move |folder| {
        *kept.lock().unwrap() = Some(folder.take().map_err(StepError::for_good)?);
        Ok(())
    });
    assert!(matches!(end, End::Left));
    assert!(scene.secrets().exists() && scene.job().is_held());
    let left = scene.host.store.handed_over().unwrap();
    assert_eq!(left.len(), 1);
    // What the next start does first.
    let (runtime, data) = (&scene.host.settings.runtime_path, &scene.host.settings.data_path);
    assert!(RuntimeFolder::clean_leftovers(runtime, data, &may_be_in_use(runtime)).is_empty());
    assert!(clean(runtime, data, &left).is_empty());
    assert!(scene.secrets().exists() && scene.job().is_held());

    let scene = Scene { control: Control::new(LONG), ..scene };
    let (job, held) = held.lock().unwrap().take().unwrap();
    let folder = scene.job();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| done(scene.resume()));
        let containers = BTreeSet::new();
        folder.say(Answer { result: Ok(()), is_unsettled: false, containers, kept: job.kept }).unwrap();
        drop(held);
        assert_eq!(next.join().unwrap(), Ok(()));
    });
    scene.assert_taken_back();
}

#[test]
fn after_a_kill_at_any_moment_nothing_stays_and_nothing_counts_as_done_that_was_not() {
    type Moment = fn(&JobFolder);
    let moments: [(&str, Moment); 4] = [
        ("a helper had begun", |_| {}),
        ("without an answer", |folder| drop(folder.take().unwrap())),
        ("without an answer", |folder| folder.remove().unwrap()),
        ("format 9", |folder| {
            drop(folder.take().unwrap());
            std::fs::write(folder.path().join("answer"), r#"{"format": 9}"#).unwrap();
        }),
    ];
    for (expected, moment) in moments {
        let scene = Scene::new();
        scene.control.leave_to_helper();
        assert!(matches!(
            scene.up(move |folder| {
                moment(&folder);
                Ok(())
            }),
            End::Left
        ));
        let scene = Scene { control: Control::new(LONG), ..scene };
        let why = lost(scene.resume());
        assert!(why.contains(expected), "{why}");
        scene.assert_taken_back();
    }
    let scene = Scene::new();
    scene.control.leave_to_helper();
    assert!(matches!(scene.up(|folder| work(&folder, Ok(()))), End::Left));
    let scene = Scene { control: Control::new(LONG), ..scene };
    assert_eq!(done(scene.resume()), Ok(()), "it was killed after the answer");
    assert_eq!(scene.log().matches("web-1  Started").count(), 1, "{}", scene.log());
    scene.assert_taken_back();
}

#[test]
fn a_version_that_somebody_has_replaced_by_hand_was_no_success() {
    let scene = Scene::new();
    scene.control.leave_to_helper();
    let end = scene.up(|folder| {
        let (job, _held) = folder.take().map_err(StepError::for_good)?;
        let containers = ["of the version that did not start".to_owned()].into();
        folder
            .say(Answer { result: Ok(()), is_unsettled: false, containers, kept: job.kept })
            .map_err(StepError::for_good)
    });
    assert!(matches!(end, End::Left));
    let scene = Scene { control: Control::new(LONG), ..scene };
    let error = done(scene.resume()).unwrap_err();
    assert!(error.error.message.contains("another one"), "{error:?}");
    assert_eq!((error.containers, error.error.chance), (Containers::Changed, crate::model::Chance::Final));
    scene.assert_taken_back();
}

#[test]
fn what_no_helper_has_is_removed_at_the_start() {
    let scene = Scene::new();
    scene.control.leave_to_helper();
    assert!(matches!(scene.up(|_| Ok(())), End::Left));
    scene.host.store.take_back(scene.id).unwrap();
    let (runtime, data) = (&scene.host.settings.runtime_path, &scene.host.settings.data_path);
    assert!(clean(runtime, data, &scene.host.store.handed_over().unwrap()).is_empty());
    scene.assert_taken_back();
}

#[test]
fn a_cancelled_deployment_tells_its_helper_to_end() {
    let scene = Scene::new();
    let (control, docker) = (scene.control.clone(), scene.docker.clone());
    let ended = std::thread::scope(|scope| {
        let end = scope.spawn(|| {
            scene.up(move |folder| {
                let taken = folder.take().map_err(StepError::for_good)?;
                *HELPER.lock().unwrap() = Some((folder, taken));
                Ok(())
            })
        });
        while HELPER.lock().unwrap().is_none() {
            std::thread::yield_now();
        }
        control.end(crate::deploy::control::Cause::Cancel);
        while docker.signals.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        let (folder, (job, held)) = HELPER.lock().unwrap().take().unwrap();
        let error = UpError { error: StepError::for_good("it was stopped"), containers: Containers::Interrupted };
        let containers = BTreeSet::new();
        folder.say(Answer { result: Err(error), is_unsettled: true, containers, kept: job.kept }).unwrap();
        drop(held);
        end.join().unwrap()
    });
    assert!(matches!(ended, End::Done(done) if done.is_unsettled));
    assert_eq!(*docker.signals.lock().unwrap(), ["TERM"]);
    scene.assert_taken_back();
}

/// The helper of the test above.
static HELPER: Mutex<Option<(JobFolder, (Job, folder::Held))>> = Mutex::new(None);

#[test]
fn a_runtime_folder_that_a_helper_would_not_see_is_refused() {
    let mut scene = Scene::new();
    let limit = Limit::after(LONG);
    assert!(is_wanted(&scene.host, &brought().plan, &limit).unwrap());
    assert!(!is_wanted(&scene.host, &Plan { project: "other".to_owned(), ..brought().plan }, &limit).unwrap());
    let settings = Settings { runtime_path: scene.path("elsewhere"), ..Settings::clone(&scene.host.settings) };
    scene.host.settings = Arc::new(settings);
    assert!(is_wanted(&scene.host, &brought().plan, &limit).unwrap_err().message.contains("`volumes:`"));
}
