//! The pipeline on real parts: a Git repository, sops with an age key, Docker with Compose; and with a driver of its
//! own for the order of the steps.
#![allow(clippy::disallowed_methods, reason = "tests start programs and threads")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use shiparr::command::Limit;
use shiparr::config::catalog::{Accepted, Basis, Catalog};
use shiparr::config::{Environment, Settings, Severity};
use shiparr::deploy::control::{Cause, Control};
use shiparr::deploy::pipeline::{self, Begun, Host, Job};
use shiparr::deploy::{self, ByHand, Containers, Driver, Log, Plan, Resident, Stack, StepError, Timing, Up, UpError};
use shiparr::git;
use shiparr::model::{Asked, Chance, DeploymentId, DeploymentRecord, LogLevel, Status, Trigger};
use shiparr::store::{Outcome, ProjectSpec, RepositorySpec, Store};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(120);
const SLEEPER: &str = "image: shiparr-test/busybox:1\n    command: sleep 1000\n    init: true\n";

/// A remote, a host and one repository; its containers and networks go with it.
struct Lab {
    folder: tempfile::TempDir,
    host: Host,
    job: Job,
    compose_project: String,
}

impl Lab {
    /// `fields` are those of the repository, as YAML on one line; `settings` go over the usual ones.
    fn new(compose: &str, fields: &str, settings: &[(&str, &str)], driver: Option<Box<dyn Driver>>) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let compose_project = format!("shiparr-test-pipeline-{}", folder.path().file_name().unwrap().to_str().unwrap())
            .to_lowercase()
            .replace('.', "");
        for name in ["remote", "projects", "data", "runtime"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("remote/compose.yaml"), compose).unwrap();
        run("age-keygen", &["-o", path("key").to_str().unwrap()], "");
        let yaml = format!(
            "project: home\nrepositories:\n  web: {{url: '{}', local_path: '{}', compose_project: {compose_project}, settle_time: 0, {fields}}}\n",
            path("remote").display(),
            path("tree").display()
        );
        std::fs::write(path("projects/home.yaml"), yaml).unwrap();
        let settings = settings_of(folder.path(), settings);
        let store = Arc::new(Store::open(&settings.data_path, 200).unwrap());
        let host = Host {
            driver: driver.unwrap_or_else(|| deploy::driver(&settings)),
            git: git::Child {
                program: env!("CARGO_BIN_EXE_shiparr").into(),
                environment: settings.environment.for_children(),
            },
            settings: Arc::new(settings),
            store,
            hash_key: [7; 32],
        };
        let job = job(&host);
        Lab { folder, host, job, compose_project }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join("remote").join(name), text).unwrap();
    }

    fn write_encrypted(&self, name: &str, text: &str) {
        let key = self.folder.path().join("key");
        let recipient = run("age-keygen", &["-y", key.to_str().unwrap()], "");
        let kinds = ["--input-type", "dotenv", "--output-type", "dotenv", "/dev/stdin"];
        let encrypted = run("sops", &[&["-e", "--age", recipient.trim()][..], &kinds].concat(), text);
        self.write(name, &encrypted);
    }

    fn commit(&self) {
        let remote = self.folder.path().join("remote");
        let git = |args: &[&str]| run("git", &[&["-C", remote.to_str().unwrap()][..], args].concat(), "");
        git(&["init", "-q", "-b", "main"]);
        git(&["add", "-A"]);
        git(&["-c", "user.name=Ada", "-c", "user.email=a@example.com", "commit", "-q", "-m", "Say hello"]);
    }

    fn run(&self) -> Option<Outcome> {
        self.commit();
        self.deploy(&Control::new(LIMIT))
    }

    /// What the worker and the thread that waits do, one after the other.
    fn deploy(&self, control: &Control) -> Option<Outcome> {
        let mut ended = match pipeline::begin(&self.host, self.job.clone(), control).unwrap() {
            Begun::Waits(waiting) => waiting.watch(&self.host),
            Begun::Ended(ended) => *ended,
        };
        ended.record(&self.host).unwrap();
        ended.tidy(&self.host);
        ended.outcome().cloned()
    }

    fn run_to_error(&self) -> (String, Chance) {
        match self.run() {
            Some(Outcome::Failed { error, chance }) => (error, chance),
            other => panic!("{other:?}\n{}", self.log()),
        }
    }

    fn id(&self) -> DeploymentId {
        self.job.deployment.id
    }

    fn deployment(&self) -> DeploymentRecord {
        self.host.store.deployment(self.id()).unwrap().unwrap()
    }

    fn log(&self) -> String {
        let lines = self.host.store.log_lines(self.id(), 0, 10_000).unwrap();
        lines.into_iter().map(|line| line.message + "\n").collect()
    }

    /// Nothing decrypted is left, neither in the runtime folder nor as a link in the tree.
    fn assert_clean(&self) {
        let left = |folder: PathBuf| std::fs::read_dir(folder).map(|entries| entries.count()).unwrap_or(0);
        assert_eq!(left(self.host.settings.runtime_path.join("secrets")), 0);
        assert!(std::fs::symlink_metadata(self.folder.path().join("tree/.env")).is_err());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let label = format!("label=com.docker.compose.project={}", self.compose_project);
        for (list, remove) in [
            (&["ps", "-aq", "--filter", &label][..], &["rm", "-f"][..]),
            (&["network", "ls", "-q", "--filter", &label], &["network", "rm"]),
        ] {
            let listed = run("docker", list, "");
            if !listed.trim().is_empty() {
                run("docker", &remove.iter().copied().chain(listed.split_whitespace()).collect::<Vec<_>>(), "");
            }
        }
    }
}

fn run(program: &str, args: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut command = Command::new(program);
    command.args(args).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn settings_of(folder: &Path, more: &[(&str, &str)]) -> Settings {
    let path = |name: &str| folder.join(name).display().to_string();
    let usual = [
        ("Shiparr_CONFIG_PATH", path("projects")),
        ("Shiparr_DATA_PATH", path("data")),
        ("Shiparr_RUNTIME_PATH", path("runtime")),
        ("SOPS_AGE_KEY_FILE", path("key")),
    ];
    let environment = Environment::of_process()
        .with(&Environment::from_pairs(usual))
        .with(&Environment::from_pairs(more.iter().map(|(name, value)| (*name, *value))));
    Settings::from_environment(&environment).unwrap_or_else(|error| panic!("{error}")).0
}

/// The one configured repository, queued.
fn job(host: &Host) -> Job {
    let basis = Basis {
        settings: &host.settings,
        previous: &Catalog::default(),
        accepted: &Accepted::default(),
        unset_names: Severity::Error,
    };
    let catalog = Catalog::load(&host.settings.config_path, &basis);
    let repository = catalog.repositories().next().unwrap_or_else(|| panic!("{:?}", catalog.problems)).clone();
    let spec = RepositorySpec {
        name: repository.name.name.clone(),
        git_url: repository.url.to_string(),
        branch: repository.branch.clone(),
        path: repository.path.display().to_string(),
        local_path: repository.local_path.display().to_string(),
        check_interval_seconds: repository.check_interval.as_secs(),
        is_manual: false,
        config_hash: "hash".to_owned(),
    };
    let project = ProjectSpec {
        name: "home".to_owned(),
        description: None,
        config_file: "home.yaml".to_owned(),
        repositories: vec![spec],
    };
    host.store.sync(&[project], &[], Timestamp::now()).unwrap();
    let record = host.store.repository_named(&repository.name).unwrap().unwrap();
    let queued = host.store.enqueue(record.id, Trigger::Api, Asked::default(), Timestamp::now()).unwrap();
    let deployment = host.store.deployment(queued.deployment_id).unwrap().unwrap();
    Job { deployment, record, repository, catalog: Arc::new(catalog), config_hash: "hash".to_owned() }
}

#[test]
fn a_commit_becomes_a_running_stack_with_its_secrets() {
    let compose =
        format!("services:\n  web:\n    {SLEEPER}    environment: {{A: '${{PASSWORD}}'}}\n    env_file: .env\n");
    let lab = Lab::new(&compose, "env_file: .env.enc", &[], None);
    lab.write_encrypted(".env.enc", "PASSWORD=correct horse $battery\n");
    // A dollar sign would be a variable for Compose; single quotes keep it.
    lab.write_encrypted(".env.enc", "PASSWORD='correct horse $battery'\n");
    let run_result = lab.run();
    assert!(matches!(run_result, Some(Outcome::Success)), "{run_result:?}\n{}", lab.log());

    let deployment = lab.deployment();
    assert_eq!(deployment.status, Status::Success);
    let commit = deployment.commit.unwrap();
    assert_eq!((commit.subject.as_str(), commit.author.as_str()), ("Say hello", "Ada"));
    let record = lab.host.store.repository_named(&lab.job.repository.name).unwrap().unwrap();
    assert_eq!(record.last_commit_hash, Some(commit.hash.clone()));
    let log = lab.log();
    assert!(log.contains(&format!("checked out {} “Say hello” by Ada", commit.hash.short())), "{log}");
    assert!(!log.contains("correct horse"), "{log}");
    let filter = format!("label=com.docker.compose.project={}", lab.compose_project);
    let id = run("docker", &["ps", "-q", "--filter", &filter], "");
    let environment = run("docker", &["inspect", "--format", "{{json .Config.Env}}", id.trim()], "");
    assert!(environment.contains("A=correct horse $battery"), "{environment}");
    assert!(environment.contains("PASSWORD=correct horse $battery"), "{environment}");
    lab.assert_clean();
}

#[test]
fn what_is_refused_changes_no_container() {
    let lab = Lab::new(&format!("services:\n  web:\n    {SLEEPER}    hostname: '${{NAME}}'\n"), "", &[], None);
    let (error, chance) = lab.run_to_error();
    assert!(error.contains("nobody sets: NAME"), "{error}");
    assert_eq!(chance, Chance::Final);
    let deployment = lab.deployment();
    assert_eq!((deployment.status, deployment.up_began), (Status::Failed, false));
    assert_eq!(deployment.error, Some(error));
    let record = lab.host.store.repository_named(&lab.job.repository.name).unwrap().unwrap();
    assert_eq!((record.last_commit_hash, record.checked_out_commit), (None, None));
    let left: Vec<_> = std::fs::read_dir(lab.folder.path().join("tree")).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| entry.file_name() == ".git"), "the files were not put back: {left:?}");
}

#[test]
fn a_bad_secret_leaves_the_stack_alone() {
    let lab = Lab::new(
        &format!("services:\n  web:\n    {SLEEPER}"),
        "env_file: .env.enc",
        &[("SOPS_AGE_KEY_FILE", "/nowhere/key")],
        None,
    );
    lab.write_encrypted(".env.enc", "PASSWORD=correct horse\n");
    let (error, _) = lab.run_to_error();
    assert!(error.contains(".env.enc"), "{error}");
    assert!(!lab.deployment().up_began);
    lab.assert_clean();
}

#[test]
fn a_probe_that_stays_bad_fails_the_deployment() {
    let fields = "healthcheck_url: 'http://127.0.0.1:1/health', healthcheck_timeout: 1";
    let lab = Lab::new(&format!("services:\n  web:\n    {SLEEPER}"), fields, &[], None);
    let (error, chance) = lab.run_to_error();
    assert!(error.contains("healthcheck_url"), "{error}");
    assert_eq!(chance, Chance::Final);
    assert!(lab.deployment().up_began);
}

#[test]
fn the_time_limit_ends_the_wait_and_is_recorded() {
    let compose = format!("services:\n  web:\n    {SLEEPER}    healthcheck: {{test: 'true', interval: 100s}}\n");
    let lab = Lab::new(&compose, "", &[], None);
    lab.commit();
    let began = Instant::now();
    let result = lab.deploy(&Control::new(Duration::from_secs(6)));
    assert!(matches!(&result, Some(Outcome::Failed { .. })), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(60));
    let error = lab.deployment().error.unwrap();
    assert!(error.contains("`timeout`") && error.contains("web-1 is starting"), "{error}");
}

#[test]
fn a_shutdown_leaves_the_row_for_the_next_start() {
    let compose = format!("services:\n  web:\n    {SLEEPER}    healthcheck: {{test: 'true', interval: 100s}}\n");
    let lab = Lab::new(&compose, "env_file: .env.enc", &[], None);
    lab.write_encrypted(".env.enc", "PASSWORD=correct horse\n");
    lab.commit();
    let control = Control::new(LIMIT);
    let result = std::thread::scope(|scope| {
        let running = scope.spawn(|| lab.deploy(&control));
        let mut seen = lab.host.store.change_seen();
        let until = Instant::now() + LIMIT;
        while !lab.log().contains("waiting: ") && Instant::now() < until {
            seen = lab.host.store.wait_for_change(seen, Duration::from_secs(1));
        }
        control.end(Cause::Stop);
        running.join().unwrap()
    });
    assert!(result.is_none(), "{result:?}");
    assert_eq!(lab.deployment().status, Status::Running);
    assert!(lab.log().contains("interrupted"), "{}", lab.log());
    lab.assert_clean();
    let interrupted = lab.host.store.recover(Timestamp::now()).unwrap();
    assert_eq!(interrupted[0].id, lab.id());
}

/// A driver that writes down what it is asked, and looks at the store while it is.
struct Recorder {
    calls: Arc<Mutex<Vec<String>>>,
    store: PathBuf,
    up: Result<(), StepError>,
}

impl Recorder {
    fn note(&self, what: &str) {
        // A connection of its own: what another process would find after a kill at this moment.
        let database = rusqlite::Connection::open(self.store.join("Shiparr.db")).unwrap();
        let row = database.query_row("SELECT status, up_began FROM deployments", [], |row| {
            Ok(format!("{what}: {}, {}", row.get::<_, String>(0)?, row.get::<_, bool>(1)?))
        });
        self.calls.lock().unwrap().push(row.unwrap());
    }
}

impl Driver for Recorder {
    fn available(&self, _: &Limit) -> Result<(), String> {
        Ok(())
    }

    fn shares(&self, _: &Path, _: &Path, _: &Limit) -> Result<(), StepError> {
        Ok(())
    }

    fn plan(&self, stack: &Stack, _: &Limit, _: &mut dyn Log) -> Result<Plan, StepError> {
        self.note("plan");
        let services = [("web".to_owned(), 1)].into();
        Ok(Plan {
            project: stack.project.clone().unwrap(),
            files: Vec::new(),
            builds: false,
            one_shots: [].into(),
            services,
            ..Plan::default()
        })
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

    fn up(&self, stack: &Stack, _: &Plan, _: &Up, _: &Limit, log: &mut dyn Log) -> Result<(), UpError> {
        self.note(if stack.asked.recreate { "up anew" } else { "up" });
        log.line(LogLevel::Info, "the password is correct horse");
        self.up.clone().map_err(|error| UpError { error, containers: Containers::Untouched })
    }

    fn heal(&self, _: &Stack, _: &Plan, _: &mut dyn Log) -> Result<(), StepError> {
        self.note("heal");
        Ok(())
    }

    fn wait(&self, _: &Plan, _: &Timing, _: &Limit, _: &mut dyn Log) -> Result<(), StepError> {
        self.note("wait");
        Ok(())
    }

    fn by_hand(&self, _: &Stack, _: &Limit) -> Result<ByHand, StepError> {
        unreachable!("nobody works by hand")
    }

    fn start_unmounted(&self, _: &str, _: &Limit) -> Result<Vec<String>, StepError> {
        unreachable!("nothing is restored")
    }

    fn prune_images(&self, _: &Limit, _: &mut dyn Log) -> Result<(), StepError> {
        self.note("prune");
        Err(StepError::for_good("no such thing"))
    }
}

fn recorded(up: Result<(), StepError>) -> (Lab, Vec<String>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let mut lab = Lab::new(
        "services: {}",
        "environment: {PASSWORD: correct horse}",
        &[("Shiparr_ENABLE_IMAGE_PRUNE", "true")],
        None,
    );
    let store = lab.host.settings.data_path.clone();
    lab.host.driver = Box::new(Recorder { calls: Arc::clone(&calls), store, up });
    // Joins the row that the job was made of.
    let asked = Asked { recreate: true, ..Asked::default() };
    lab.host.store.enqueue(lab.job.record.id, Trigger::Cli, asked, Timestamp::now()).unwrap();
    lab.run();
    let calls = calls.lock().unwrap().clone();
    (lab, calls)
}

#[test]
fn each_step_is_recorded_before_the_next_begins() {
    let (lab, calls) = recorded(Ok(()));
    assert_eq!(
        calls,
        ["plan: running, false", "up anew: running, true", "wait: running, true", "prune: success, true"]
    );
    assert_eq!(lab.deployment().status, Status::Success);
    let log = lab.log();
    assert!(log.contains("unused images were not removed: no such thing"), "{log}");
    assert!(log.contains("the password is ***"), "{log}");
}

#[test]
fn an_error_is_one_line_without_secrets() {
    let (lab, calls) = recorded(Err(StepError::for_now("it said:\n correct horse\n and ended")));
    assert_eq!(calls.len(), 2, "{calls:?}");
    let deployment = lab.deployment();
    assert_eq!(deployment.status, Status::Failed);
    assert_eq!(deployment.error.as_deref(), Some("it said: *** and ended"));
    let record = lab.host.store.repository_named(&lab.job.repository.name).unwrap().unwrap();
    assert!(record.retry_at.is_some());
}
