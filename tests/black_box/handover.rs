//! Shiparr in a container deploys the stack that holds its own container.
//!
//! The container is made of the test image and of files of this machine: the built binary, the libraries that it is linked
//! to, the docker client and Compose. Its helpers get them as they get everything else.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::*;

/// What the containers of Shiparr need of this machine.
const OF_THIS_MACHINE: [&str; 6] = [
    env!("CARGO_BIN_EXE_shiparr"),
    "/usr/libexec/docker",
    "/usr/lib/docker",
    "/usr/local/lib/docker",
    "/var/run/docker.sock",
    "/lib64",
];
/// A value that stands in no log.
const PASSWORD: &str = "correct-horse-battery";

/// A stack with Shiparr and another service in it, brought up by hand the first time.
struct Scene {
    daemon: Daemon,
    stack: Stack,
    repo: Repo,
}

/// The other service.
struct Other {
    version: &'static str,
    /// Whether it takes its grace period to stop.
    is_slow: bool,
    /// Whether it ends at once.
    is_bad: bool,
}

const WELL: Other = Other { version: "1", is_slow: false, is_bad: false };

impl Scene {
    fn new(other: &Other) -> Scene {
        let (daemon, stack, repo) = (Daemon::new(), Stack::new(), Repo::new());
        let scene = Scene { daemon, stack, repo };
        scene.repo.commit(&[("compose.yaml", &scene.compose("1", other))]);
        let entry = Entry::new("web", &scene.repo.url(), &scene.stack);
        scene.daemon.project("home", &[entry.field("environment", &format!("{{PASSWORD: {PASSWORD}}}"))]);
        let tree = scene.daemon.tree("home", "web");
        run("git", &["clone", "--quiet", &scene.repo.url(), &tree.to_string_lossy()]);
        std::fs::remove_dir_all(tree.join(".git")).expect("remove the clone's folder");
        let args = ["compose", "--project-name", &scene.stack.name, "--project-directory"];
        let output = Command::new("docker")
            .args(args)
            .arg(&tree)
            .args(["up", "--detach"])
            .env("PASSWORD", PASSWORD)
            .current_dir(&tree)
            .output()
            .expect("start docker");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        scene.wait_for(&scene.repo.tip(), "success");
        scene
    }

    fn compose(&self, version: &str, other: &Other) -> String {
        let folders = [self.daemon.folder(), self.daemon.runtime(), self.repo.root()].map(Path::to_owned);
        let docker = PathBuf::from(run("sh", &["-c", "command -v docker"]).trim());
        let of_this_machine = OF_THIS_MACHINE.iter().map(PathBuf::from).chain([docker]).chain(libraries());
        let mounted = folders.into_iter().chain(of_this_machine.filter(|path| path.exists()));
        let volumes: String = mounted.map(|path| format!("      - {0}:{0}\n", path.display())).collect();
        let settings = [
            ("Shiparr_PORT", self.daemon.port().to_string()),
            ("Shiparr_CONFIG_PATH", self.daemon.config().display().to_string()),
            ("Shiparr_DATA_PATH", self.daemon.data().display().to_string()),
            ("Shiparr_RUNTIME_PATH", self.daemon.runtime().display().to_string()),
            ("Shiparr_LOG_LEVEL", "DEBUG".to_owned()),
            ("PATH", "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("HOME", self.daemon.home().display().to_string()),
            ("VERSION", version.to_owned()),
        ];
        let settings: String = settings.map(|(name, value)| format!("      {name}: \"{value}\"\n")).concat();
        let what = match other {
            Other { is_bad: true, .. } => "exit 3",
            Other { is_slow: true, .. } => "trap '' TERM; sleep 86400 & wait",
            _ => "exec sleep 86400",
        };
        let signal = if other.is_slow { "SIGTERM" } else { "SIGKILL" };
        // Shiparr comes second, so that what replaces it has something to do before.
        let after = if other.is_slow { "    depends_on: [other]\n" } else { "" };
        format!(
            "services:\n  shiparr:\n    image: {IMAGE}\n    network_mode: host\n{after}    \
             command: [\"sh\", \"-c\", \"exec {binary} run >> {log} 2>&1\"]\n    stop_grace_period: 20s\n    volumes:\n{volumes}    \
             environment:\n{settings}  other:\n    image: {IMAGE}\n    network_mode: none\n    stop_signal: {signal}\n    \
             stop_grace_period: 5s\n    command: [\"sh\", \"-c\", \"{what}\"]\n    \
             environment: {{VERSION: \"{}\", PASSWORD: \"${{PASSWORD}}\"}}\n",
            other.version,
            binary = env!("CARGO_BIN_EXE_shiparr"),
            log = self.daemon.folder().join("shiparr.log").display(),
        )
    }

    fn push(&self, version: &str, other: &Other) -> String {
        self.repo.commit(&[("compose.yaml", &self.compose(version, other))])
    }

    /// All deployments, newest first; none while no daemon answers.
    fn rows(&self) -> Vec<Json> {
        let output = self.daemon.cli(&["history", "home/web", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// The rows of a commit, newest first, once the newest has ended, which must be so.
    #[track_caller]
    fn wait_for(&self, commit: &str, status: &str) -> Vec<Json> {
        // Healing may wait for the grace periods of the stack, and for Docker on a busy machine.
        let rows = wait_until(2 * MINUTE, &format!("{commit} to be deployed"), || {
            let all = self.rows();
            let goes_on = |row: &Json| matches!(row["status"].as_str(), Some("pending" | "running"));
            let is_over = !all.iter().any(goes_on);
            let rows: Vec<Json> = all.into_iter().filter(|row| row["commit_hash"] == commit).collect();
            Some(rows).filter(|rows| is_over && !rows.is_empty())
        });
        let log = || self.daemon.log_of(rows[0]["id"].as_i64().expect("an id"));
        assert_eq!(rows[0]["status"], status, "{rows:?}\n{}", log());
        rows
    }

    fn shiparr(&self) -> String {
        self.stack.container("shiparr").expect("a container of shiparr").id().to_owned()
    }

    /// The helper container that works now.
    #[track_caller]
    fn helper(&self) -> String {
        wait_until(MINUTE, "a helper to work", || {
            let folder = std::fs::read_dir(self.daemon.runtime().join("handover")).ok()?.next()?.ok()?.path();
            let log = std::fs::read_to_string(folder.join("log")).ok()?;
            log.contains("Recreate").then_some(())?;
            let filter = format!("label=shiparr.handover={}", folder.display());
            Some(docker(&["ps", "--quiet", "--filter", &filter]).trim().to_owned()).filter(|id| !id.is_empty())
        })
    }

    /// Nothing of a helper is left, and no log tells a secret.
    #[track_caller]
    fn assert_nothing_is_left(&self, row: &Json) -> String {
        let runtime = self.daemon.runtime();
        for folder in ["handover", "secrets"] {
            let left = files_below(&runtime.join(folder));
            assert!(left.is_empty(), "{left:?}");
        }
        let id = row["id"].as_i64().expect("an id");
        let filter = format!("label=shiparr.handover={}", runtime.join("handover").join(id.to_string()).display());
        wait_until(SHORT, "the helper container to go", || {
            docker(&["ps", "--all", "--quiet", "--filter", &filter]).is_empty().then_some(())
        });
        let log = self.daemon.log_of(id);
        assert!(!log.contains(PASSWORD) && !self.daemon.log().contains(PASSWORD), "{log}");
        log
    }

    #[track_caller]
    fn assert_runs(&self, shiparr: &str, other: &str) {
        assert_eq!(self.stack.variable("shiparr", "VERSION").as_deref(), Some(shiparr));
        assert_eq!(self.stack.variable("other", "VERSION").as_deref(), Some(other));
        assert_eq!(self.stack.variable("other", "PASSWORD").as_deref(), Some(PASSWORD));
        let containers = self.stack.containers();
        assert!(containers.len() == 2 && containers.iter().all(Container::is_running));
    }
}

/// The folder of the libraries that the binary is linked to.
fn libraries() -> Vec<PathBuf> {
    let linked = run("ldd", &[env!("CARGO_BIN_EXE_shiparr")]);
    let paths = linked.lines().filter_map(|line| line.split(" => ").nth(1)?.split(' ').next());
    let mut folders: Vec<PathBuf> = paths.filter_map(|path| Some(Path::new(path).parent()?.to_owned())).collect();
    folders.sort();
    folders.dedup();
    folders
}

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("start a program");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn cannot_run() -> bool {
    missing(&[parts::DOCKER, parts::GIT, parts::ROOT])
}

#[test]
fn shiparr_replaces_its_own_container_and_says_how_that_ended() {
    if cannot_run() {
        return;
    }
    let scene = Scene::new(&WELL);
    let first = scene.shiparr();

    let commit = scene.push("2", &Other { version: "2", ..WELL });
    let rows = scene.wait_for(&commit, "success");
    let second = scene.shiparr();
    assert_ne!(first, second, "its container was replaced");
    assert_eq!(rows.len(), 1, "{rows:?}");
    let log = scene.assert_nothing_is_left(&rows[0]);
    for line in ["handed over", "-other-1  Recreate", "-shiparr-1  Started", "well", "success"] {
        assert!(log.contains(line), "{line} is not in:\n{log}");
    }
    scene.assert_runs("2", "2");

    // The daemon stays where only the other service changes.
    let commit = scene.push("2", &Other { version: "3", ..WELL });
    let rows = scene.wait_for(&commit, "success");
    assert_eq!((rows.len(), scene.shiparr()), (1, second));
    scene.assert_nothing_is_left(&rows[0]);
    scene.assert_runs("2", "3");

    let commit = scene.push("3", &Other { version: "4", is_bad: true, ..WELL });
    let rows = scene.wait_for(&commit, "failed");
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert!(rows[0]["error"].as_str().is_some_and(|error| error.contains("other")), "{rows:?}");
    scene.assert_nothing_is_left(&rows[0]);

    let commit = scene.push("4", &Other { version: "5", ..WELL });
    let rows = scene.wait_for(&commit, "success");
    scene.assert_nothing_is_left(&rows[0]);
    scene.assert_runs("4", "5");
}

#[test]
fn a_helper_or_a_daemon_that_is_killed_loses_nothing() {
    if cannot_run() {
        return;
    }
    let slow = |version| Other { version, is_slow: true, is_bad: false };
    let scene = Scene::new(&slow("1"));

    let commit = scene.push("2", &slow("2"));
    docker(&["kill", "--signal", "KILL", &scene.helper()]);
    let rows = scene.wait_for(&commit, "success");
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(rows[1]["error"].as_str().is_some_and(|error| error.starts_with("interrupted: the helper")), "{rows:?}");
    assert_eq!(rows[0]["trigger"], "retry");
    rows.iter().for_each(|row| drop(scene.assert_nothing_is_left(row)));
    scene.assert_runs("2", "2");

    // Only the daemon: the helper goes on, and the next daemon takes its outcome.
    let commit = scene.push("2", &slow("3"));
    scene.helper();
    let daemon = scene.shiparr();
    docker(&["kill", "--signal", "KILL", &daemon]);
    docker(&["start", &daemon]);
    let rows = scene.wait_for(&commit, "success");
    assert_eq!(rows.len(), 1, "{rows:?}");
    let log = scene.assert_nothing_is_left(&rows[0]);
    assert_eq!(log.matches("-other-1  Started").count(), 1, "{log}");
    scene.assert_runs("2", "3");

    // Ended by somebody, the helper starts again what Compose had stopped, and only then the deployment is over.
    let commit = scene.push("3", &slow("4"));
    scene.helper();
    assert!(scene.daemon.cli(&["cancel", "home/web"]).status.success());
    let rows = scene.wait_for(&commit, "failed");
    let error = rows[0]["error"].as_str().unwrap_or_default();
    assert!(rows.len() == 1 && error.starts_with("cancelled: ") && error.contains("started again"), "{rows:?}");
    scene.assert_nothing_is_left(&rows[0]);
    assert_eq!(scene.stack.variable("shiparr", "VERSION").as_deref(), Some("2"));
    assert!(scene.stack.containers().iter().all(Container::is_running));
}
