//! Services that end, services that do not run on purpose, and containers that people left lying about.

use std::fs;

use crate::support::*;

fn cannot_run() -> bool {
    missing(&[parts::DOCKER, parts::GIT])
}

/// A service that runs `script`.
fn service(name: &str, script: &str, lines: &str) -> String {
    format!(
        "  {name}:\n    image: {IMAGE}\n    command: [\"sh\", \"-c\", \"{script}\"]\n    network_mode: none\n    \
         stop_signal: SIGKILL\n{lines}"
    )
}

fn stack_of(services: &[String]) -> String {
    format!("services:\n{}", services.concat())
}

struct Deployed {
    daemon: Daemon,
    stack: Stack,
    repo: Repo,
}

fn deployed(compose: &Compose, text: &str, change: impl Fn(Entry) -> Entry) -> Deployed {
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", text)]));
    let mut daemon = Daemon::new();
    if let Some(config) = &compose.docker_config {
        daemon.env("DOCKER_CONFIG", config);
    }
    daemon.project("home", &[change(Entry::new("web", &repo.url(), &stack))]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    Deployed { daemon, stack, repo }
}

#[test]
fn a_labelled_one_shot_must_end_well_and_is_waited_for() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let label = "    labels: {shiparr.oneshot: \"true\"}\n";
        let text =
            |script: &str| stack_of(&[service("web", "exec sleep 86400", ""), service("migrate", script, label)]);
        let Deployed { daemon, stack, repo } = deployed(&compose, &text("sleep 4; exit 0"), |entry| entry);
        let migrate = stack.container("migrate").expect("it is kept");
        assert!(!migrate.is_running() && migrate.exit_code() == 0, "{}: it was waited for", compose.name);
        let commit = repo.commit(&[("compose.yaml", &text("echo the reason; exit 3"))]);
        let failed = daemon.ended_at("web", &commit);
        let error = failed["error"].as_str().expect("an error");
        assert!(error.contains("migrate") && error.contains('3'), "{}: {error}", compose.name);
        assert!(daemon.log_of(failed["id"].as_i64().expect("an id")).contains("the reason"));
    }
}

#[test]
fn a_failing_migration_names_what_it_leaves_behind() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let text = |version: &str, script: &str| {
            let needs = format!(
                "    environment: {{VERSION: \"{version}\"}}\n    depends_on: {{migrate: {{condition: \
                 service_completed_successfully}}}}\n"
            );
            stack_of(&[service("migrate", script, "    restart: \"no\"\n"), service("web", "exec sleep 86400", &needs)])
        };
        let Deployed { daemon, stack, repo } = deployed(&compose, &text("1", "exit 0"), |entry| entry);
        let commit = repo.commit(&[("compose.yaml", &text("2", "echo the reason; exit 5"))]);
        let failed = daemon.ended_at("web", &commit);
        let error = failed["error"].as_str().expect("an error");
        assert!(error.contains("migrate"), "{}: {error}", compose.name);
        let web = stack.container("web").expect("Compose keeps one");
        let log = daemon.log_of(failed["id"].as_i64().expect("an id"));
        assert!(log.contains("the reason"), "{}: {log}", compose.name);
        if !web.is_running() {
            assert!(error.contains("web"), "{}: it does not run, and the error does not say so: {error}", compose.name);
        }
        let commit = repo.commit(&[("compose.yaml", &text("3", "exit 0"))]);
        daemon.wait_for_commit("web", &commit);
        assert_eq!(stack.version().as_deref(), Some("3"), "{}", compose.name);
    }
}

#[test]
fn services_that_do_not_run_on_purpose_are_not_waited_for() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let text = stack_of(&[
            service("web", "exec sleep 86400", ""),
            service("spare", "exec sleep 86400", "    deploy: {replicas: 0}\n"),
            service("zero", "exec sleep 86400", "    scale: 0\n"),
            service("ends", "exit 0", "    restart: \"no\"\n"),
            service("debug", "exec sleep 86400", "    profiles: [debug]\n"),
        ]);
        let Deployed { daemon, stack, repo: _repo } = deployed(&compose, &text, |entry| entry);
        let mut services: Vec<String> = stack.containers().iter().map(|one| one.service().to_owned()).collect();
        services.sort();
        assert_eq!(services, ["ends", "web"], "{}", compose.name);
        daemon.succeeded(daemon.deploy("web"));
    }
}

#[test]
fn a_container_of_an_inactive_profile_stays() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let text = |version: &str| {
            let environment = format!("    environment: {{VERSION: \"{version}\"}}\n");
            stack_of(&[
                service("web", "exec sleep 86400", &environment),
                service("debug", "exec sleep 86400", "    profiles: [debug]\n"),
            ])
        };
        let Deployed { daemon, stack, repo } = deployed(&compose, &text("1"), |entry| entry);
        // A person starts it, from the tree.
        let tree = daemon.tree("home", "web");
        compose.by_hand(&tree, &["-p", &stack.name, "--profile", "debug", "up", "-d", "debug"]);
        let debug = || stack.container("debug").map(|one| (one.id().to_owned(), one.is_running()));
        let was = debug();
        assert!(was.is_some());
        let commit = repo.commit(&[("compose.yaml", &text("2"))]);
        daemon.wait_for_commit("web", &commit);
        assert_eq!(debug(), was, "{}", compose.name);
    }
}

#[test]
fn what_docker_compose_run_left_neither_stops_deployments_nor_goes() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let text = |version: &str, more: &str| {
            let environment = format!("    environment: {{VERSION: \"{version}\"}}\n");
            format!("{}{more}", stack_of(&[service("web", "exec sleep 86400", &environment)]))
        };
        let extra = service("extra", "exec sleep 86400", "");
        let Deployed { daemon, stack, repo } = deployed(&compose, &text("1", &extra), |entry| entry);
        let tree = daemon.tree("home", "web");
        compose.by_hand(&tree, &["-p", &stack.name, "run", "-d", "web", "sleep", "86400"]);
        compose.by_hand(&tree, &["-p", &stack.name, "run", "-T", "web", "true"]);
        let one_offs = || {
            let label = format!("label=com.docker.compose.project={}", stack.name);
            let list =
                ["ps", "--all", "--quiet", "--filter", "label=com.docker.compose.oneoff=True", "--filter", &label];
            let mut ids: Vec<String> = docker(&list).lines().map(str::to_owned).collect();
            ids.sort();
            ids
        };
        let was = one_offs();
        assert_eq!(was.len(), 2);
        for (version, more) in [("2", &*extra), ("3", ""), ("4", "")] {
            let commit = repo.commit(&[("compose.yaml", &text(version, more))]);
            daemon.wait_for_commit("web", &commit);
            assert_eq!(one_offs(), was, "{}: version {version}", compose.name);
        }
    }
}

#[test]
fn a_service_that_was_stopped_on_purpose_stays_stopped_while_no_commit_touches_its_stack() {
    if cannot_run() {
        return;
    }
    let compose = &composes()[0];
    let text = stack_of(&[service("web", "exec sleep 86400", ""), service("other", "exec sleep 86400", "")]);
    let (stack, repo) = (Stack::new(), Repo::new());
    repo.write("web/compose.yaml", &text);
    repo.commit_all("A stack");
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).field("path", "web")]);
    daemon.wait_for_commit("web", &repo.tip());
    compose.by_hand(&daemon.tree("home", "web").join("web"), &["-p", &stack.name, "stop", "other"]);
    let commit = repo.commit(&[("elsewhere/file", "x")]);
    wait_until(MINUTE, "the commit to be looked at", || {
        (daemon.repository("web")["observed_commit"] == commit.as_str()).then_some(())
    });
    wait_until(MINUTE, "it to be skipped", || (daemon.deployments_of("web")[0]["status"] == "skipped").then_some(()));
    assert!(!stack.container("other").expect("it is there").is_running());
    assert!(fs::symlink_metadata(daemon.tree("home", "web").join("elsewhere")).is_err());
}
