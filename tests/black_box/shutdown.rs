//! How the daemon ends.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::*;

/// A daemon in the middle of an `up` that is held.
fn in_mid_up(shutdown_timeout_seconds: &str) -> (Stack, Repo, Fake, Daemon, i64) {
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* up *", "hold");
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).env("Shiparr_SHUTDOWN_TIMEOUT", shutdown_timeout_seconds);
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.start();
    wait_until(MINUTE, "`up` to begin", || (!fake.calls_with("docker-compose", "up").is_empty()).then_some(()));
    let id = daemon.wait_for("web", "running")["id"].as_i64().expect("an id");
    (stack, repo, fake, daemon, id)
}

#[test]
fn an_idle_daemon_ends_at_once_with_0_for_both_signals() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::with(&[Entry::new("web", "/nowhere/stack.git", &Stack::new())]);
        let begin = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.wait_for_exit(SHORT).code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert!(!daemon.runtime().join("shiparr.sock").exists(), "the control socket goes");
    }
}

#[test]
fn sigterm_lets_a_running_deployment_finish_and_accepts_triggers_meanwhile() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo, fake, mut daemon, id) = in_mid_up("60");
    daemon.signal(Signal::TERM);
    wait_until(SHORT, "it to stop", || daemon.log().contains("stopping: ").then_some(()));
    let accepted = daemon.deploy("web");
    assert!(daemon.is_running(), "it waits for the deployment");
    fake.release();
    assert_eq!(daemon.wait_for_exit(MINUTE).code(), Some(0));
    assert_eq!(stack.version().as_deref(), Some("1"));

    daemon.start();
    assert_eq!(daemon.deployment(id)["status"], "success");
    assert_eq!(daemon.repository("web")["last_commit_hash"], repo.tip());
    daemon.succeeded(accepted);
    assert_eq!(daemon.deployments_of("web").len(), 2);
}

#[test]
fn a_deployment_that_takes_longer_is_recorded_and_made_good_at_the_next_start() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo, fake, mut daemon, id) = in_mid_up("1");
    let begin = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_for_exit(MINUTE).code(), Some(0));
    assert!(begin.elapsed() >= Duration::from_secs(1) && begin.elapsed() < Duration::from_secs(30));

    fake.release();
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let killed = daemon.deployment(id);
    assert_eq!(killed["status"], "failed");
    assert!(killed["error"].as_str().expect("an error").starts_with("interrupted"), "{killed}");
    assert_eq!(stack.version().as_deref(), Some("1"));
}

#[test]
fn a_second_signal_ends_at_once() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (_stack, repo, fake, mut daemon, _id) = in_mid_up("600");
    daemon.signal(Signal::TERM);
    wait_until(SHORT, "it to stop", || daemon.log().contains("stopping: ").then_some(()));
    let begin = Instant::now();
    daemon.signal(Signal::TERM);
    daemon.wait_for_exit(SHORT);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    fake.release();
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
}

#[test]
fn a_pending_row_is_there_after_the_next_start() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (_stack, _repo, fake, mut daemon, id) = in_mid_up("60");
    let pending = daemon.deploy("web");
    assert_ne!(pending, id);
    daemon.signal(Signal::TERM);
    fake.release();
    assert_eq!(daemon.wait_for_exit(MINUTE).code(), Some(0));
    daemon.start();
    assert_eq!(daemon.succeeded(pending)["trigger"], "api");
}

#[test]
fn one_who_follows_a_log_does_not_hold_the_end() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    use std::io::{Read, Write};
    let (_stack, _repo, _fake, mut daemon, id) = in_mid_up("1");
    let mut stream = daemon.connect();
    let request = format!("GET /api/deployments/{id}/logs?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("send");
    stream.read_exact(&mut [0; 12]).expect("it begins");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_for_exit(MINUTE).code(), Some(0));
}

#[test]
fn a_port_that_is_taken_stops_the_start_with_a_line_that_names_it() {
    let mut daemon = Daemon::new();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", daemon.port())).expect("take the port");
    daemon.spawn(&["run"]);
    assert_ne!(daemon.wait_for_exit(SHORT).code(), Some(0));
    assert!(daemon.log().contains(&daemon.port().to_string()), "{}", daemon.log());
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let mut daemon = Daemon::new();
    daemon.start();
    daemon.stop();
    let file = daemon.data().join("Shiparr.db");
    {
        let database = rusqlite::Connection::open(&file).expect("open the database");
        database.pragma_update(None, "user_version", 999).expect("make it newer");
    }
    daemon.spawn(&["run"]);
    assert_eq!(daemon.wait_for_exit(SHORT).code(), Some(1));
    assert!(daemon.log().contains("Shiparr.db.v"), "the copy is named: {}", daemon.log());
}
