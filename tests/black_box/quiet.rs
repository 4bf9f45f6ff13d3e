//! What the daemon does not do: write to the disk without news, grow, or bring an async runtime along.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use crate::support::*;

fn written_bytes(daemon: &Daemon) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", daemon.pid())).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("the field is there");
    line.parse().expect("a number")
}

fn changes(daemon: &Daemon) -> Vec<(std::path::PathBuf, SystemTime, u64)> {
    let mut files: Vec<_> = files_below(&daemon.data())
        .into_iter()
        .filter_map(|path| {
            let meta = fs::symlink_metadata(&path).ok()?;
            Some((path, meta.modified().ok()?, meta.len()))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_check_that_finds_nothing_writes_nothing() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let server = GitServer::start(repo.root());
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_LOG_LEVEL", "INFO");
    let url = server.url("stack");
    daemon.project("home", &[Entry::new("web", &url, &stack).local_path(&daemon.deployments().join("web"))]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    daemon.wait_for_checks("web", 1);

    let (bytes, files, log) = (written_bytes(&daemon), changes(&daemon), daemon.log());
    daemon.wait_for_checks("web", 5);
    assert_eq!(changes(&daemon), files, "no file of the data folder changes, its write-ahead log neither");
    assert_eq!(written_bytes(&daemon), bytes);
    assert_eq!(daemon.log(), log, "and nothing is logged");

    // The same over a path, where the child process asks.
    daemon.change_project(
        "home",
        &[Entry::new("web", &repo.url(), &stack).local_path(&daemon.deployments().join("web"))],
    );
    daemon.wait_for_checks("web", 3);
    wait_until(MINUTE, "the deployment for the changed url to end", || {
        (daemon.repository("web")["status"] == "success").then_some(())
    });
    daemon.wait_for_checks("web", 1);
    let files = changes(&daemon);
    daemon.wait_for_checks("web", 3);
    assert_eq!(changes(&daemon), files);
}

#[test]
fn the_time_of_the_last_check_is_stored_when_the_daemon_stops() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let server = GitServer::start(repo.root());
    let mut daemon = Daemon::with(&[Entry::new("web", &server.url("stack"), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());
    daemon.wait_for_checks("web", 2);
    let last = daemon.repository("web")["last_checked_at"].as_str().expect("a time").to_owned();
    server.fault(Requests::All, Fault::Hang);
    daemon.stop();
    daemon.start();
    let stored = daemon.repository("web")["last_checked_at"].as_str().expect("a time").to_owned();
    assert!(stored >= last, "{stored} is not before {last}");
}

#[test]
fn a_hundred_repositories_on_one_interval_do_not_all_ask_at_once_and_leave_memory_alone() {
    if missing(&[parts::GIT]) {
        return;
    }
    let repo = Repo::new();
    let server = GitServer::start(repo.root());
    server.fault(Requests::All, Fault::Status(503));
    let entries: Vec<Entry> = (0..100)
        .map(|number| {
            Entry::new(&format!("r{number}"), &server.url("stack"), &Stack::new()).field("check_interval", "2")
        })
        .collect();
    let mut daemon = Daemon::with(&entries);
    let last = entries.len() - 1;
    daemon.wait_for_checks(&format!("r{last}"), 2);
    let text = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let resident = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the field is there");
    let kib: u64 = resident.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number");
    assert!(kib < 80 << 10, "{kib} KiB");
    daemon.assert_well();
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn no_async_runtime_and_no_second_http_client_is_among_the_dependencies() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("start cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(tree.contains("tiny_http"), "it lists the dependencies");
    for refused in ["tokio", "async-std", "smol", "ureq", "reqwest", "hyper", "futures", "futures-executor"] {
        let found = tree.lines().find(|line| line.split(' ').next() == Some(refused));
        assert_eq!(found, None, "{refused}");
    }
}
