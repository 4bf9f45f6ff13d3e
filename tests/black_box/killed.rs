//! The daemon is killed, or runs out of time, while Compose changes containers.

use std::thread;
use std::time::Duration;

use crate::support::*;

/// How many slow services the stack has.
const SERVICES: usize = 3;

/// Services that need two seconds to stop, and one that needs another one of them.
fn slow(version: &str, grace_seconds: u32) -> String {
    let service = |number: usize| {
        let after = if number == 2 { "    depends_on: [slow-1]\n" } else { "" };
        format!(
            "  slow-{number}:\n    image: {IMAGE}\n    command: [\"sh\", \"-c\", \"trap '' TERM; sleep 86400 & wait\"]\n    \
             stop_grace_period: {grace_seconds}s\n    network_mode: none\n    environment: {{VERSION: \"{version}\"}}\n{after}"
        )
    };
    format!("services:\n{}", (1..=SERVICES).map(service).collect::<String>())
}

/// Every service has one container, which runs this version under its own name.
#[track_caller]
fn assert_runs(stack: &Stack, version: &str, when: &str) {
    let containers = stack.containers();
    let mut names: Vec<&str> = containers.iter().map(Container::name).collect();
    names.sort_unstable();
    let expected: Vec<String> = (1..=SERVICES).map(|number| format!("{}-slow-{number}-1", stack.name)).collect();
    assert_eq!(names, expected, "{when}");
    for container in &containers {
        assert!(container.is_running(), "{when}: {} does not run", container.name());
        assert_eq!(container.variable("VERSION").as_deref(), Some(version), "{when}: {}", container.name());
    }
}

/// Waits until the newest deployment's log says that Compose has begun with a container.
#[track_caller]
fn wait_for_recreate(daemon: &Daemon, commit: &str) -> i64 {
    wait_until(MINUTE, "Compose to begin", || {
        let newest = daemon.deployments_of("web").into_iter().next()?;
        let id = newest["id"].as_i64()?;
        (newest["commit_hash"] == commit && daemon.log_of(id).contains("Recreate")).then_some(id)
    })
}

#[test]
fn after_a_kill_in_the_middle_of_up_everything_runs() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &slow("0", 2))]));
        let mut daemon = Daemon::new();
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        for (round, moment_milliseconds) in [0, 1000, 2100, 2600].into_iter().enumerate() {
            let version = (round + 1).to_string();
            let when = format!("{}, killed after {moment_milliseconds} ms", compose.name);
            let commit = repo.commit(&[("compose.yaml", &slow(&version, 2))]);
            let id = wait_for_recreate(&daemon, &commit);
            thread::sleep(Duration::from_millis(moment_milliseconds));
            daemon.kill_9();
            daemon.start();
            daemon.wait_for_commit("web", &commit);
            assert_runs(&stack, &version, &when);
            let rows = daemon.deployments_of("web");
            let killed = daemon.deployment(id);
            if killed["status"] != "success" {
                let error = killed["error"].as_str().expect("an error");
                assert!(error.starts_with("interrupted"), "{when}: {error}");
                assert_eq!((&rows[0]["status"], &rows[0]["trigger"]), (&"success".into(), &"retry".into()), "{when}");
            }
        }
    }
}

#[test]
fn a_stack_that_is_killed_in_up_is_healed_although_its_next_deployment_cannot_be() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &slow("1", 2))]));
        let mut daemon = Daemon::new();
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        let commit = repo.commit(&[("compose.yaml", &slow("2", 2))]);
        wait_for_recreate(&daemon, &commit);
        thread::sleep(Duration::from_millis(1500));
        daemon.kill_9();
        // What the next one would fetch cannot be parsed.
        let broken = repo.commit(&[("compose.yaml", "services: [\n")]);
        daemon.start();
        assert_eq!(daemon.ended_at("web", &broken)["status"], "failed");
        let running = stack.containers().iter().filter(|container| container.is_running()).count();
        assert_eq!(running, SERVICES, "{}", compose.name);
        assert!(
            stack.containers().iter().all(|container| container.name().starts_with(&stack.name)),
            "{}",
            compose.name
        );
        let text = std::fs::read_to_string(daemon.tree("home", "web").join("compose.yaml")).expect("it is there");
        assert_eq!(text, slow("2", 2), "the files of the containers that were changed lie there");
        let good = repo.commit(&[("compose.yaml", &slow("3", 2))]);
        daemon.wait_for_commit("web", &good);
        assert_runs(&stack, "3", compose.name);
    }
}

#[test]
fn a_deployment_past_its_limit_in_the_middle_of_up_is_healed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &slow("1", 1))]));
        let mut daemon = Daemon::new();
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        // The containers that run keep the grace period that they were made with.
        let commit = repo.commit(&[("compose.yaml", &slow("2", 12))]);
        daemon.wait_for_commit("web", &commit);
        daemon.change_project("home", &[Entry::new("web", &repo.url(), &stack).field("timeout", "7")]);
        let commit = repo.commit(&[("compose.yaml", &slow("3", 1))]);
        let failed = daemon.ended_at("web", &commit);
        assert_eq!(failed["status"], "failed", "{failed}");
        let log = daemon.log_of(failed["id"].as_i64().expect("an id"));
        let error = failed["error"].as_str().expect("an error");
        assert!(error.contains("limit") && error.contains("started again"), "{}: {error}\n{log}", compose.name);
        let containers = stack.containers();
        assert_eq!(containers.len(), SERVICES, "{}: {log}", compose.name);
        for container in &containers {
            assert!(container.is_running(), "{}: {} does not run\n{log}", compose.name, container.name());
            assert!(container.name().starts_with(&stack.name), "{}: {}", compose.name, container.name());
        }
    }
}

#[test]
fn a_cancelled_up_is_healed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &slow("1", 4))]));
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());
    let commit = repo.commit(&[("compose.yaml", &slow("2", 1))]);
    let id = wait_for_recreate(&daemon, &commit);
    let output = daemon.cli(&["cancel", "web"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cancelled = daemon.failed(id);
    assert!(cancelled["error"].as_str().expect("an error").starts_with("cancelled"), "{cancelled}");
    let running = stack.containers().iter().filter(|container| container.is_running()).count();
    assert_eq!(running, SERVICES, "{}", daemon.log_of(id));
    let rows = daemon.deployments_of("web").len();
    daemon.wait_for_checks("web", 2);
    assert_eq!(daemon.deployments_of("web").len(), rows, "it is not tried again by itself");
    daemon.succeeded(daemon.deploy("web"));
    assert_runs(&stack, "2", "asked for again");
}

#[test]
fn a_daemon_that_stops_in_the_middle_of_up_heals_at_its_next_start() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &slow("1", 5))]));
        let mut daemon = Daemon::new();
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        daemon.env("Shiparr_SHUTDOWN_TIMEOUT", "1");
        daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        let commit = repo.commit(&[("compose.yaml", &slow("2", 1))]);
        let id = wait_for_recreate(&daemon, &commit);
        daemon.stop();
        daemon.start();
        daemon.wait_for_commit("web", &commit);
        assert_runs(&stack, "2", compose.name);
        let stopped = daemon.deployment(id);
        assert!(stopped["error"].as_str().expect("an error").starts_with("interrupted"), "{stopped}");
    }
}
