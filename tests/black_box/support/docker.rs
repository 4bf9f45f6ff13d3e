//! Stacks on the real engine: a compose project name of its own for each test, and their removal.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Json;
use super::parts::IMAGE;

/// How often the removal of a stack looks again.
const REMOVAL_ROUNDS: usize = 5;

/// A compose project that only one test uses. Its containers, networks and volumes go when it is dropped.
pub struct Stack {
    /// The compose project's name.
    pub name: String,
}

/// A container as the engine describes it.
pub struct Container(Json);

impl Stack {
    /// A name that nobody else has.
    pub fn new() -> Stack {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Stack { name: format!("shiparr-test-{}-{number}", std::process::id()) }
    }

    /// A compose file with one service, `web`, that only sleeps, with `VERSION` in its environment.
    pub fn compose(version: &str) -> String {
        Stack::compose_with(version, "")
    }

    /// The same with more lines of the service, each indented by four blanks.
    pub fn compose_with(version: &str, lines: &str) -> String {
        format!(
            "services:\n  web:\n    image: {IMAGE}\n    command: [\"sleep\", \"86400\"]\n    stop_signal: SIGKILL\n    \
             network_mode: none\n    environment:\n      VERSION: \"{version}\"\n{lines}"
        )
    }

    /// The same with a health check that says nothing until [`Stack::make_well`].
    pub fn compose_not_well_yet(version: &str) -> String {
        let check = "    healthcheck: {test: [CMD, test, -e, /tmp/well], interval: 1s, start_period: 600s}\n";
        Stack::compose_with(version, check)
    }

    /// What `web` of such a compose file waits for.
    #[track_caller]
    pub fn make_well(&self) {
        let web = self.container("web").expect("a container of web");
        web.run(&["sh", "-c", "mkdir -p /tmp; touch /tmp/well"]);
    }

    /// All containers of the project, stopped ones too.
    pub fn containers(&self) -> Vec<Container> {
        let ids = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &self.label()]);
        let ids: Vec<&str> = ids.lines().collect();
        if ids.is_empty() {
            return Vec::new();
        }
        // One that goes between the two calls makes `inspect` fail and still describe the others.
        let output = Command::new("docker").arg("inspect").args(&ids).output().expect("start docker");
        let described: Vec<Json> = serde_json::from_slice(&output.stdout).expect("docker inspect prints JSON");
        described.into_iter().map(Container).collect()
    }

    /// The container of a service.
    pub fn container(&self, service: &str) -> Option<Container> {
        self.containers().into_iter().find(|container| container.service() == service)
    }

    /// A variable of a service's container, which must be there.
    #[track_caller]
    pub fn variable(&self, service: &str, name: &str) -> Option<String> {
        self.container(service).unwrap_or_else(|| panic!("no container of {service}")).variable(name)
    }

    /// The version that `web` runs; none where it does not run.
    pub fn version(&self) -> Option<String> {
        self.container("web").filter(Container::is_running).and_then(|container| container.variable("VERSION"))
    }

    fn label(&self) -> String {
        format!("label=com.docker.compose.project={}", self.name)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let label = self.label();
        let lists: [(&[&str], &[&str]); 3] = [
            (&["ps", "--all", "--quiet"], &["rm", "--force", "--volumes"]),
            (&["network", "ls", "--quiet"], &["network", "rm"]),
            (&["volume", "ls", "--quiet"], &["volume", "rm", "--force"]),
        ];
        // A request that was under way when its client was killed may still make something after the first look.
        for _ in 0..REMOVAL_ROUNDS {
            let mut is_clean = true;
            for (list, remove) in lists {
                let Ok(output) = Command::new("docker").args(list).args(["--filter", &label]).output() else { return };
                let ids = String::from_utf8_lossy(&output.stdout).into_owned();
                if !ids.trim().is_empty() {
                    is_clean = false;
                    let _ = Command::new("docker").args(remove).args(ids.lines()).output();
                }
            }
            if is_clean {
                return;
            }
        }
    }
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        self.0["Id"].as_str().expect("a container has an id")
    }

    /// The id of its image.
    pub fn image(&self) -> &str {
        self.0["Image"].as_str().expect("a container has an image")
    }

    /// Its name, without the slash.
    pub fn name(&self) -> &str {
        self.0["Name"].as_str().expect("a container has a name").trim_start_matches('/')
    }

    /// The compose service that it is of.
    pub fn service(&self) -> &str {
        self.0["Config"]["Labels"]["com.docker.compose.service"].as_str().unwrap_or_default()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.0["State"]["Status"] == "running"
    }

    /// Its exit code.
    pub fn exit_code(&self) -> i64 {
        self.0["State"]["ExitCode"].as_i64().expect("a container has an exit code")
    }

    /// When it was started last.
    pub fn started_at(&self) -> &str {
        self.0["State"]["StartedAt"].as_str().expect("a container has a time of start")
    }

    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<String> {
        let variables = self.0["Config"]["Env"].as_array().expect("a container has an environment");
        variables
            .iter()
            .filter_map(|pair| pair.as_str()?.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    }

    /// What a command in it prints.
    #[track_caller]
    pub fn run(&self, command: &[&str]) -> String {
        let mut args = vec!["exec", self.id()];
        args.extend_from_slice(command);
        docker(&args)
    }
}

/// Runs the real docker client; answers what it printed.
#[track_caller]
pub fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().expect("start docker");
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
