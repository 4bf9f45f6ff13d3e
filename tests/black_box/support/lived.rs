//! A host on which a stack has run for years before Shiparr came.

use std::fs;
use std::path::PathBuf;

use super::by_hand::{Compose, Tree};
use super::daemon::Daemon;
use super::docker::Stack;
use super::parts::IMAGE;
use super::project::Entry;
use super::repo::Repo;
use super::wait::{MINUTE, wait_until};

/// A stack that was started by hand, with data beside its files and in a volume, and a daemon that is not started yet.
///
/// Its services are `web` and `db`, its folder is called like its compose project, and the same files are in `repo`,
/// without the `.env` and the data.
pub struct Lived {
    pub daemon: Daemon,
    pub stack: Stack,
    pub repo: Repo,
    pub folder: PathBuf,
    pub compose: Compose,
    started: Vec<(String, String)>,
}

impl Lived {
    /// One in the folder `deployments/NAME`.
    pub fn new(compose: &Compose) -> Lived {
        Lived::started_in(compose, &Lived::text(""), |daemon, stack| daemon.deployments().join(&stack.name))
    }

    /// One with this compose file, in the folder that `place` says.
    pub fn started_in(compose: &Compose, text: &str, place: impl Fn(&Daemon, &Stack) -> PathBuf) -> Lived {
        let (stack, mut daemon) = (Stack::new(), Daemon::new());
        let folder = place(&daemon, &stack);
        let repo = Repo::with(&[("compose.yaml", text), ("web.conf", "port = 80\n")]);
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        fs::create_dir_all(folder.join("data")).expect("make a folder");
        for (name, content) in [("compose.yaml", text), ("web.conf", "port = 80\n"), (".env", "GREETING=hello\n")] {
            fs::write(folder.join(name), content).expect("write a file");
        }
        let mut lived = Lived { daemon, stack, repo, folder, compose: compose.clone(), started: Vec::new() };
        lived.up(&[]);
        lived
    }

    /// The compose file, with `lines` at its end: further services, each indented by two blanks.
    pub fn text(lines: &str) -> String {
        format!(
            "x-service: &service\n  image: {IMAGE}\n  command: [\"sleep\", \"86400\"]\n  stop_signal: SIGKILL\n  network_mode: none\n\
             volumes:\n  state: {{}}\n\
             services:\n  web:\n    <<: *service\n    environment: {{GREETING: \"${{GREETING}}\"}}\n    volumes: [\"./data:/data\", \
             \"./web.conf:/etc/web.conf:ro\"]\n  db:\n    <<: *service\n    volumes: [\"state:/state\"]\n{lines}"
        )
    }

    /// Brings it up by hand, as it stands in its folder, and writes what no deployment may lose.
    pub fn up(&mut self, args: &[&str]) {
        self.compose.by_hand(&self.folder, &[&["-p", &self.stack.name, "up", "-d"], args].concat());
        self.started = self.ids();
        for (service, path) in [("web", "/data/letters"), ("db", "/state/years")] {
            let container = self.stack.container(service).expect("it was started");
            container.run(&["sh", "-c", &format!("echo precious > {path}")]);
        }
    }

    /// The repository under this key, deployed into the folder where it runs. No compose project is named.
    pub fn entry(&self, key: &str) -> Entry {
        Entry::new(key, &self.repo.url(), &self.stack).without("compose_project").local_path(&self.folder)
    }

    /// The repository `web`, rightly configured.
    pub fn right_entry(&self) -> Entry {
        self.entry("web").field("compose_project", &self.stack.name)
    }

    /// Each service with the id of its container, in order.
    pub fn ids(&self) -> Vec<(String, String)> {
        let containers = self.stack.containers();
        let mut ids: Vec<_> = containers.iter().map(|one| (one.service().to_owned(), one.id().to_owned())).collect();
        ids.sort();
        ids
    }

    /// Every container is the one that was started by hand, and runs; the data is there.
    #[track_caller]
    pub fn assert_untouched(&self, when: &str) {
        assert_eq!(self.ids(), self.started, "{}, {when}: the containers are others", self.compose.name);
        self.assert_data(when);
    }

    /// What the containers wrote is there, and they run.
    #[track_caller]
    pub fn assert_data(&self, when: &str) {
        let context = format!("{}, {when}", self.compose.name);
        assert_eq!(
            fs::read_to_string(self.folder.join("data/letters")).ok().as_deref(),
            Some("precious\n"),
            "{context}"
        );
        assert_eq!(fs::read_to_string(self.folder.join(".env")).ok().as_deref(), Some("GREETING=hello\n"), "{context}");
        for (service, path) in [("web", "/data/letters"), ("db", "/state/years")] {
            let container = self.stack.container(service).unwrap_or_else(|| panic!("{context}: {service} is gone"));
            assert!(container.is_running(), "{context}: {service} does not run");
            assert_eq!(container.run(&["cat", path]), "precious\n", "{context}: {service}");
        }
    }

    /// The folder as it is.
    pub fn tree(&self) -> Tree {
        Tree::of(&self.folder)
    }

    /// Deploys `web` by the command line; answers whether that succeeded, and what it printed.
    pub fn deploy(&self, args: &[&str]) -> (bool, String) {
        let output = self.daemon.cli(&[&["deploy", "home/web", "--follow"], args].concat());
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
    }

    /// Expects that it succeeds.
    #[track_caller]
    pub fn deploys(&self, args: &[&str]) {
        let (is_success, printed) = self.deploy(args);
        assert!(is_success, "{}: {printed}", self.compose.name);
    }

    /// Waits until the newest deployment has failed; answers its error, which is one line and is not tried again.
    #[track_caller]
    pub fn refusal(&self) -> String {
        let failed = wait_until(MINUTE, "the refusal", || {
            let newest = self.daemon.deployments_of("web").into_iter().next()?;
            Some(newest).filter(|newest| newest["status"] == "failed")
        });
        let error = failed["error"].as_str().expect("an error").to_owned();
        assert!(!error.contains('\n'), "one line: {error}");
        let rows = self.daemon.deployments_of("web").len();
        self.daemon.wait_for_checks("web", 2);
        assert_eq!(self.daemon.deployments_of("web").len(), rows, "it is not tried for ever: {error}");
        error
    }
}

/// The lines that a refusal says to write into the project file: `` write `NAME: VALUE` and `NAME: VALUE` for … ``.
pub fn lines_to_write(error: &str) -> Vec<(String, String)> {
    let Some((_, rest)) = error.split_once("write ") else { return Vec::new() };
    let mut lines = Vec::new();
    let mut rest = rest;
    while let Some((line, after)) = rest.strip_prefix('`').and_then(|rest| rest.split_once('`')) {
        let Some((name, value)) = line.split_once(": ") else { break };
        lines.push((name.to_owned(), value.to_owned()));
        let Some(after) = after.strip_prefix(" and ") else { break };
        rest = after;
    }
    lines
}

/// `entry` with what a refusal says to write, which must be something.
#[track_caller]
pub fn written(entry: &Entry, error: &str) -> Entry {
    let lines = lines_to_write(error);
    assert!(!lines.is_empty(), "no line to write in: {error}");
    lines.iter().fold(entry.clone(), |entry, (name, value)| entry.field(name, value))
}
