//! `shiparr compose`: people work on a stack that the daemon deploys, with all that a deployment has, and deployments
//! wait for them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::*;

const VALUE: &str = "correct-horse-battery";

/// A deployed stack in a folder of its repository: an override, two profiles of which one is active, and an encrypted
/// env file, for interpolation and for `env_file:`.
struct Scene {
    stack: Stack,
    repo: Repo,
    daemon: Daemon,
    _sops: Sops,
}

fn compose(version: &str) -> String {
    let sleeper = format!("    image: {IMAGE}\n    command: [\"sleep\", \"86400\"]\n    stop_signal: SIGKILL\n");
    Stack::compose_with(version, "      SECRET: \"${SECRET}\"\n    env_file: app.env\n")
        + &format!("  active:\n{sleeper}    profiles: [on]\n  inactive:\n{sleeper}    profiles: [off]\n")
}

impl Scene {
    fn new() -> Scene {
        Scene::with(&[])
    }

    /// With these settings of the daemon.
    fn with(settings: &[(&str, String)]) -> Scene {
        let (stack, repo, sops) = (Stack::new(), Repo::new(), Sops::new());
        repo.write("docker/compose.yaml", compose("1"));
        repo.write("docker/compose.override.yaml", "services:\n  web:\n    environment:\n      EXTRA: overridden\n");
        repo.write("docker/app.env.enc", sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]));
        repo.commit_all("A stack");
        let mut daemon = Daemon::new();
        daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
        for (name, value) in settings {
            daemon.env(name, value);
        }
        let entry = Entry::new("web", &repo.url(), &stack);
        let entry = entry.field("path", "docker").field("env_file", "app.env.enc").field("profiles", "[on]");
        daemon.project("home", &[entry.field("environment", "{COLUMNS: \"7\"}")]);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        Scene { stack, repo, daemon, _sops: sops }
    }

    fn folder(&self) -> PathBuf {
        self.daemon.tree("home", "web").join("docker")
    }

    fn link(&self) -> PathBuf {
        self.folder().join("app.env")
    }

    fn compose(&self, args: &[&str]) -> Output {
        self.daemon.cli(&[&["compose", "web"], args].concat())
    }

    /// Somebody who works on it until something ends that: `docker compose events` waits for ever.
    fn somebody(&self) -> Somebody {
        let mut command = self.daemon.command(&["compose", "web", "events"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let somebody = Somebody { child: Some(child.expect("start the client")) };
        wait_until(SHORT, "Compose to run", || Some(()).filter(|()| !somebody.children().is_empty()));
        somebody
    }

    /// Somebody else gets the stack.
    #[track_caller]
    fn wait_until_free(&self) {
        wait_until(SHORT, "the stack to be free", || Some(()).filter(|()| self.compose(&["ps"]).status.success()));
    }

    /// Neither links nor plain text stay when nobody works on it.
    #[track_caller]
    fn assert_nothing_left(&self) {
        wait_until(SHORT, "the link to be gone", || fs::symlink_metadata(self.link()).is_err().then_some(()));
        for folder in [self.daemon.runtime(), self.daemon.folder()] {
            wait_until(SHORT, "the plain text to be gone", || {
                contains_anywhere(folder, VALUE).is_empty().then_some(())
            });
        }
    }
}

struct Somebody {
    child: Option<Child>,
}

impl Somebody {
    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What the client runs: Compose.
    fn children(&self) -> Vec<u32> {
        descendants(self.pid())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("a pid fits")).expect("a pid is not 0");
        kill_process(pid, signal).expect("send a signal");
    }

    /// Its exit code, and what it said.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let mut child = self.child.take().expect("it runs");
        let status = wait_until(MINUTE, "the client to end", || child.try_wait().expect("ask for its end"));
        let mut said = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("read what it said");
        (status.code(), said)
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn descendants(pid: u32) -> Vec<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let all = fs::read_dir("/proc").expect("list processes");
    let all: Vec<u32> = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let direct = all.into_iter().filter(|other| parent_of(*other) == Some(pid));
    direct.flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

fn is_alive(pid: &u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[track_caller]
fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn lacks_parts() -> bool {
    missing(&[parts::DOCKER, parts::GIT, parts::SOPS])
}

#[test]
fn compose_sees_what_a_deployment_sees() {
    if lacks_parts() {
        return;
    }
    for compose in composes() {
        println!("{}", compose.name);
        let config = compose.docker_config.map(|config| ("DOCKER_CONFIG", config.display().to_string()));
        sees_what_a_deployment_sees(&Scene::with(config.as_slice()));
    }
}

#[test]
fn a_docker_client_that_was_chosen_is_called_and_ended() {
    if lacks_parts() {
        return;
    }
    let found = Command::new("sh").args(["-c", "command -v docker"]).output().expect("start sh");
    let docker = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    let scene = Scene::with(&[("Shiparr_DOCKER_BIN", docker.clone())]);
    let printed = said(&scene.compose(&["--print"]));
    assert!(printed.contains(&format!("{docker} compose -p")), "{printed}");
    // The client runs Compose as a process of its own.
    let somebody = scene.somebody();
    let children = wait_until(SHORT, "both to run", || Some(somebody.children()).filter(|all| all.len() > 1));
    assert!(scene.daemon.cli(&["cancel", "web"]).status.success());
    assert_eq!(somebody.end().0, Some(1));
    wait_until(SHORT, "both to end", || (!children.iter().any(is_alive)).then_some(()));
    sees_what_a_deployment_sees(&scene);
}

fn sees_what_a_deployment_sees(scene: &Scene) {
    let ids = || {
        let mut ids: Vec<String> = scene.stack.containers().iter().map(|one| one.id().to_owned()).collect();
        ids.sort();
        ids
    };
    let before = ids();
    assert_eq!(before.len(), 2, "`web`, and `active` by its profile");
    let up = scene.compose(&["up", "-d"]);
    assert!(up.status.success(), "{}", said(&up));
    assert_eq!(ids(), before, "nothing differs from what was deployed");

    let config = scene.compose(&["--", "config"]);
    let text = said(&config);
    assert!(text.contains(VALUE) && text.contains("overridden") && !text.contains("inactive"), "{text}");
    assert_eq!(scene.compose(&["exec", "-T", "web", "sh", "-c", "exit 7"]).status.code(), Some(7));
    let wider = scene.compose(&["--", "--profile", "off", "config", "--services"]);
    assert!(said(&wider).contains("inactive"), "{}", said(&wider));
    scene.assert_nothing_left();

    // What people do by hand is theirs.
    let down = scene.compose(&["down", "-v"]);
    assert!(down.status.success(), "{}", said(&down));
    assert_eq!(ids().len(), 0);
}

#[test]
fn files_that_are_named_are_used_and_a_broken_one_can_be_looked_at() {
    if lacks_parts() {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::new());
    repo.write("base.yaml", Stack::compose("1"));
    repo.write("more/extra.yaml", "services:\n  web:\n    environment:\n      EXTRA: \"yes\"\n");
    repo.commit_all("Two files");
    let entry = Entry::new("web", &repo.url(), &stack).field("compose_files", "[base.yaml, more/extra.yaml]");
    let daemon = Daemon::with(&[entry]);
    daemon.wait_for_commit("web", &repo.tip());
    let config = daemon.cli(&["compose", "home/web", "config"]);
    assert!(said(&config).contains("EXTRA"), "{}", said(&config));
    let tree = daemon.tree("home", "web");
    let printed = said(&daemon.cli(&["compose", "web", "--print", "ps"]));
    assert!(printed.contains(&format!("-f {}", tree.join("more/extra.yaml").display())), "{printed}");
    assert!(printed.contains("variables: none") && printed.lines().next().unwrap().ends_with(" ps"), "{printed}");

    fs::write(tree.join("base.yaml"), "services:\n  web: [").expect("break a file");
    let config = daemon.cli(&["compose", "web", "config"]);
    assert!(!config.status.success() && said(&config).contains("yaml"), "{}", said(&config));
    assert!(!said(&config).contains("shiparr:"), "Compose says it itself: {}", said(&config));
}

#[test]
fn values_are_shown_nowhere() {
    if lacks_parts() {
        return;
    }
    let scene = Scene::new();
    let printed = said(&scene.compose(&["--print"]));
    for expected in
        ["--env-file VARIABLES", "compose.override.yaml", "SECRET (from app.env.enc)", "COLUMNS (from environment)"]
    {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    let json = scene.compose(&["--print", "--json", "up"]);
    let parsed: Json = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(parsed["folder"], scene.folder().to_str().expect("text"));
    assert_eq!(parsed["variables"][1], serde_json::json!({ "name": "SECRET", "from": "app.env.enc" }));
    assert!(!printed.contains(VALUE) && !said(&json).contains(VALUE));

    let somebody = scene.somebody();
    for pid in std::iter::once(somebody.pid()).chain(somebody.children()) {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&bytes).contains(VALUE), "{pid}/{file}");
        }
    }
    let plain = fs::metadata(scene.link()).expect("`env_file:` finds it while somebody works on the stack");
    assert_eq!(plain.permissions().mode() & 0o777, 0o600);
    drop(somebody);
    scene.assert_nothing_left();
    assert!(!scene.daemon.log().contains(VALUE));
}

#[test]
fn deployments_wait_for_whoever_works_on_the_stack() {
    if lacks_parts() {
        return;
    }
    let scene = Scene::new();
    assert!(scene.compose(&["stop"]).status.success());
    let somebody = scene.somebody();
    let other = scene.compose(&["ps"]);
    assert!(!other.status.success() && said(&other).contains("works on it"), "{}", said(&other));
    let commit = scene.repo.commit(&[("docker/compose.yaml", &compose("2"))]);
    let waits = || {
        let newest = scene.daemon.deployments_of("web").into_iter().next()?;
        let reason = newest["error"].as_str()?.to_owned();
        (newest["status"] == "pending" && reason.contains("shiparr compose")).then_some(reason)
    };
    let reason = wait_until(SHORT, "the deployment to wait", waits);
    assert!(reason.contains("`shiparr cancel home/web` ends that"), "{reason}");
    assert_eq!(scene.stack.version(), None, "it stays stopped");

    let cancelled = scene.daemon.cli(&["cancel", "web"]);
    assert!(cancelled.status.success() && said(&cancelled).contains("being ended"), "{}", said(&cancelled));
    let (code, said) = somebody.end();
    assert_eq!(code, Some(1));
    assert!(said.contains("Compose was stopped") && said.contains("shiparr cancel"), "{said}");
    scene.daemon.wait_for_commit("web", &commit);
    assert_eq!(scene.stack.version().as_deref(), Some("2"));
    scene.assert_nothing_left();
}

#[test]
fn a_client_that_is_killed_lets_go() {
    if lacks_parts() {
        return;
    }
    let scene = Scene::new();
    let somebody = scene.somebody();
    let children = somebody.children();
    somebody.signal(Signal::KILL);
    scene.wait_until_free();
    drop(somebody);
    wait_until(SHORT, "Compose to end", || (!children.iter().any(is_alive)).then_some(()));
    scene.assert_nothing_left();
}

#[test]
fn a_daemon_that_stops_or_is_killed_ends_it() {
    if lacks_parts() {
        return;
    }
    let mut scene = Scene::new();
    let somebody = scene.somebody();
    assert!(scene.daemon.stop().success());
    let (code, said) = somebody.end();
    assert!(code == Some(1) && said.contains("Shiparr stops"), "{said}");
    scene.assert_nothing_left();

    scene.daemon.start();
    let somebody = scene.somebody();
    scene.daemon.kill_9();
    let (code, said) = somebody.end();
    assert!(code == Some(1) && said.contains("Compose was stopped"), "{said}");
    scene.daemon.start();
    scene.assert_nothing_left();
}

/// Runs `shiparr compose web ARGS` on a terminal of its own, and types `typed` once it has said `ready`.
fn on_a_terminal(scene: &Scene, args: &str, ready: &str, typed: &[u8]) -> (Option<i32>, String) {
    let client = scene.daemon.command(&[]);
    let line = format!("{} compose web {args}", Path::new(client.get_program()).display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    script.env_clear().envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.env("TERM", "xterm").env("SHELL", "/bin/sh");
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start script");
    let (mut input, mut output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let (mut screen, mut buffer) = (String::new(), [0; 4096]);
    let mut is_typed = typed.is_empty();
    loop {
        let count = output.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            break;
        }
        screen += &String::from_utf8_lossy(&buffer[..count]);
        if !is_typed && screen.contains(ready) {
            input.write_all(typed).expect("type");
            is_typed = true;
        }
    }
    assert!(is_typed, "it did not say `{ready}`: {screen}");
    let status = wait_until(MINUTE, "script to end", || child.try_wait().expect("ask for its end"));
    (status.code(), screen)
}

#[test]
fn it_has_the_persons_terminal() {
    if lacks_parts() || !Path::new("/usr/bin/script").exists() {
        return;
    }
    let scene = Scene::new();
    let asks = "exec web sh -c 'test -t 0 && test -t 1 && echo a terminal; read line; echo got $line; exit 5'";
    let (code, screen) = on_a_terminal(&scene, asks, "a terminal", b"hello\n");
    assert!(code == Some(5) && screen.contains("got hello"), "{code:?}: {screen}");

    // Ctrl-C means what it means to the program: the container's own here, Compose there.
    let traps = "exec web sh -c 'trap \"exit 6\" INT; echo re\"\"ady; while :; do sleep 0.1; done'";
    let (code, screen) = on_a_terminal(&scene, traps, "ready", b"\x03");
    assert_eq!(code, Some(6), "{screen}");
    let follows = "logs -f";
    scene.compose(&["exec", "-T", "web", "sh", "-c", "echo from the log > /proc/1/fd/1"]);
    let (code, screen) = on_a_terminal(&scene, follows, "from the log", b"\x03");
    assert_eq!(code, Some(130), "{screen}");
    scene.wait_until_free();
    scene.assert_nothing_left();
}

#[test]
fn what_cannot_be_lent_is_refused_with_a_line() {
    if lacks_parts() {
        return;
    }
    let stack = Stack::new();
    let daemon = Daemon::with(&[Entry::new("web", "/nonexistent/remote.git", &stack)]);
    let refused = |args: &[&str], expected: &str| {
        let output = daemon.cli(&[&["compose"], args].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.lines().count() == 1 && said.contains(expected), "{said}");
    };
    refused(&["web", "ps"], "never checked out");
    refused(&["nothing", "ps"], "there is no repository `nothing`");
    refused(&["web"], "`shiparr compose web ps`");
    refused(&["--url", "http://127.0.0.1:1", "web", "ps"], "control socket only");
}
