//! `shiparr hold`: a command runs while no deployment does.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use crate::support::*;

/// Says when it runs, and ends with 7 when it is told to.
fn hold(daemon: &Daemon, folder: &Path) -> Child {
    let script = "touch runs; until [ -e end ]; do sleep 0.05; done; exit 7";
    let mut command = daemon.command(&["hold", "--", "sh", "-c", script]);
    command.current_dir(folder).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start the client")
}

#[test]
fn it_waits_for_what_runs_and_nothing_begins_until_it_has_ended() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, other, fake) = (Stack::new(), Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* up *", "hold");
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake);
    let entries = [("web", &stack), ("other", &other)].map(|(name, stack)| Entry::new(name, &repo.url(), stack));
    daemon.project("home", &entries.map(|entry| entry.rarely_checked().field("deploy", "manual")));
    daemon.start();
    daemon.deploy("web");
    wait_until(MINUTE, "`up` to begin", || (!fake.calls_with("docker-compose", "up").is_empty()).then_some(()));

    let folder = tempfile::tempdir().expect("a folder");
    let runs = || folder.path().join("runs").exists();
    let mut client = hold(&daemon, folder.path());
    wait_until(SHORT, "the pause", || daemon.log().contains("no deployment begins for now").then_some(()));
    let waiting = daemon.deploy("other");
    assert!(!runs(), "a deployment is under way");
    fake.release();
    wait_until(MINUTE, "the command to run", || runs().then_some(()));
    assert_eq!(daemon.repository("web")["status"], "success");
    let row = wait_until(SHORT, "the reason", || {
        Some(daemon.deployment(waiting)).filter(|row| row["error"].as_str().is_some() || row["status"] != "pending")
    });
    assert_eq!(row["status"], "pending", "{row}");
    assert!(row["error"].as_str().is_some_and(|reason| reason.contains("shiparr hold")), "{row}");

    fs::write(folder.path().join("end"), "").expect("a file");
    let status = wait_until(SHORT, "the client to end", || client.try_wait().expect("ask for its end"));
    assert_eq!(status.code(), Some(7), "the command's own code");
    let said = std::io::read_to_string(client.stderr.take().expect("a pipe")).expect("read what it said");
    assert!(said.contains("waits for home/web, deployment"), "{said}");
    daemon.succeeded(waiting);
}

#[test]
fn who_was_killed_holds_nothing_up() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked().field("deploy", "manual")]);
    daemon.start();
    let folder = tempfile::tempdir().expect("a folder");
    let mut client = hold(&daemon, folder.path());
    wait_until(SHORT, "the command to run", || folder.path().join("runs").exists().then_some(()));
    let id = daemon.deploy("web");
    client.kill().expect("kill the client");
    client.wait().expect("wait for it");
    fs::write(folder.path().join("end"), "").expect("a file");
    daemon.succeeded(id);
}

#[test]
fn without_a_daemon_the_command_runs_at_once() {
    let (daemon, folder) = (Daemon::new(), tempfile::tempdir().expect("a folder"));
    fs::write(folder.path().join("end"), "").expect("a file");
    let client = hold(&daemon, folder.path());
    let ended = client.wait_with_output().expect("wait for it");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(7), "{said}");
    assert!(said.contains("nothing is waited for"), "{said}");
}
