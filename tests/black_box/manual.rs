//! What a person decides: `deploy: manual`, an earlier commit, and a look at the containers.

use std::process::Output;

use crate::support::*;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn id_of(deployment: &Json) -> i64 {
    deployment["id"].as_i64().expect("an id")
}

/// A repository that is deployed on request only, and that was deployed once.
struct Manual {
    stack: Stack,
    repo: Repo,
    daemon: Daemon,
}

impl Manual {
    fn new() -> Manual {
        let stack = Stack::new();
        let repo = Repo::with(&[("web/compose.yaml", &Stack::compose("${V:-1}"))]);
        let mut daemon = Daemon::new();
        let entry = entry(&repo, &stack);
        daemon.project("home", &[entry]);
        daemon.start();
        let manual = Manual { stack, repo, daemon };
        manual.wait_for_status("waiting");
        assert_eq!(manual.daemon.deployments_of("web").len(), 0, "also the first commit waits");
        manual.daemon.succeeded(manual.daemon.deploy("web"));
        manual
    }

    fn push(&self, version: &str) -> String {
        self.repo.commit(&[("web/compose.yaml", &Stack::compose(version))])
    }

    /// Pushes a version, which then waits.
    #[track_caller]
    fn push_waits(&self, version: &str) -> String {
        let commit = self.push(version);
        self.daemon.check_now("web");
        self.wait_for_status("waiting");
        assert_eq!(self.daemon.repository("web")["observed_commit"], commit);
        commit
    }

    #[track_caller]
    fn wait_for_status(&self, status: &str) {
        wait_until(MINUTE, &format!("it to be {status}"), || {
            (self.daemon.repository("web")["status"] == status).then_some(())
        });
    }

    fn version(&self) -> Option<String> {
        self.stack.version()
    }
}

fn entry(repo: &Repo, stack: &Stack) -> Entry {
    Entry::new("web", &repo.url(), stack).rarely_checked().field("path", "web").field("deploy", "manual")
}

#[test]
fn a_new_commit_waits_until_somebody_asks() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let mut manual = Manual::new();
    let commit = manual.push_waits("2");
    assert_eq!(manual.version().as_deref(), Some("1"));
    assert_eq!(manual.daemon.deployments_of("web").len(), 1, "what waits is no row");
    let status = manual.daemon.cli(&["status"]);
    assert!(said(&status).contains("waiting") && said(&status).contains(&commit[..7]), "{}", said(&status));
    assert!(said(&status).contains("shiparr deploy home/web"), "{}", said(&status));

    manual.daemon.restart();
    manual.daemon.check_now("web");
    manual.wait_for_status("waiting");
    assert_eq!(manual.daemon.deployments_of("web").len(), 1);

    let deployed = manual.daemon.cli(&["deploy", "web", "--follow"]);
    assert!(deployed.status.success(), "{}", said(&deployed));
    assert_eq!(manual.version().as_deref(), Some("2"));
    let repository = manual.daemon.repository("web");
    assert_eq!((&repository["status"], &repository["last_commit_hash"]), (&Json::from("success"), &Json::from(commit)));
}

#[test]
fn a_commit_that_changes_nothing_of_the_stack_does_not_wait() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let manual = Manual::new();
    let elsewhere = |number: u32| {
        let commit = manual.repo.commit(&[("docs/today", &number.to_string())]);
        manual.daemon.check_now("web");
        wait_until(SHORT, "the commit to be seen", || {
            Some(manual.daemon.repository("web")).filter(|repository| repository["observed_commit"] == commit)
        })
    };
    assert_eq!(elsewhere(1)["status"], "success");
    manual.push_waits("2");
    assert_eq!(elsewhere(2)["status"], "waiting", "what waits is still in there");
    manual.push("${V:-1}");
    assert_eq!(elsewhere(3)["status"], "success", "it was taken back");
    let entry = entry(&manual.repo, &manual.stack).field("environment", "{V: \"3\"}");
    manual.daemon.change_project("home", &[entry]);
    manual.wait_for_status("waiting");
    assert_eq!(elsewhere(4)["status"], "waiting", "the changed configuration waits still");
    assert_eq!(manual.daemon.deployments_of("web").len(), 1);
}

#[test]
fn a_changed_configuration_waits_too_and_all_of_it_is_deployed_once_nobody_has_to_ask() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let manual = Manual::new();
    let changed = entry(&manual.repo, &manual.stack).field("environment", "{V: \"2\"}");
    manual.daemon.change_project("home", std::slice::from_ref(&changed));
    manual.wait_for_status("waiting");
    assert_eq!(manual.daemon.deployments_of("web").len(), 1);
    manual.daemon.succeeded(manual.daemon.deploy("web"));
    assert_eq!(manual.version().as_deref(), Some("2"));

    let commit = manual.push_waits("3");
    manual.daemon.change_project("home", &[changed.without("deploy")]);
    manual.daemon.wait_for_commit("web", &commit);
    assert_eq!(manual.version().as_deref(), Some("3"));
    assert_eq!(manual.daemon.repository("web")["status"], "success");
}

#[test]
fn an_interrupted_one_goes_on_with_the_commit_that_it_had() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let mut manual = Manual::new();
    let commit = manual.repo.commit(&[("web/compose.yaml", &Stack::compose_not_well_yet("2"))]);
    let id = manual.daemon.deploy("web");
    manual.daemon.wait_until_up(id);
    manual.daemon.kill_9();
    let newer = manual.push("3");
    manual.daemon.start();
    manual.daemon.failed_as(id, "interrupted");
    let again = wait_until(MINUTE, "it to go on", || {
        manual.daemon.deployments_of("web").into_iter().find(|row| id_of(row) > id && row["status"] == "running")
    });
    manual.daemon.wait_until_up(id_of(&again));
    manual.stack.make_well();
    let done = manual.daemon.succeeded(id_of(&again));
    assert_eq!((&done["commit_hash"], &done["trigger"]), (&Json::from(commit), &Json::from("retry")), "{done}");
    assert_eq!(manual.version().as_deref(), Some("2"));
    manual.daemon.check_now("web");
    manual.wait_for_status("waiting");
    assert_eq!(manual.daemon.repository("web")["observed_commit"], newer);
}

#[test]
fn run_once_says_what_waits_and_exits_1() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let mut manual = Manual::new();
    manual.daemon.stop();
    let nothing = manual.daemon.cli(&["run", "--once"]);
    assert_eq!(nothing.status.code(), Some(0), "{}", said(&nothing));
    manual.push("2");
    let waits = manual.daemon.cli(&["run", "--once"]);
    assert_eq!(waits.status.code(), Some(1), "{}", said(&waits));
    assert!(said(&waits).contains("home/web is not deployed") && said(&waits).contains("manual"), "{}", said(&waits));
    assert_eq!(manual.version().as_deref(), Some("1"));
}

#[test]
fn an_earlier_commit_is_deployed_and_the_tip_counts_as_handled_until_it_moves() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("web/compose.yaml", &Stack::compose("1"))]));
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).field("path", "web")]);
    let first = repo.tip();
    daemon.wait_for_commit("web", &first);
    let second = repo.commit(&[("web/compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &second);

    let path = "/api/projects/home/repositories/web/deploy";
    let by_api = daemon.request("POST", path, &[], format!("{{\"commit\": \"{}\"}}", &first[..7]).as_bytes());
    assert_eq!(by_api.status, 202, "{}", by_api.text());
    let done = daemon.succeeded(by_api.json()["deployment_id"].as_i64().expect("an id"));
    assert_eq!(done["commit_hash"], first);
    assert_eq!(stack.version().as_deref(), Some("1"));
    let rows = daemon.deployments_of("web").len();
    daemon.wait_for_checks("web", 3);
    assert_eq!(daemon.deployments_of("web").len(), rows, "the tip counts as handled");
    let repository = daemon.repository("web");
    assert_eq!(
        (&repository["last_commit_hash"], &repository["observed_commit"]),
        (&Json::from(first.as_str()), &Json::from(second.as_str()))
    );

    let by_cli = daemon.cli(&["deploy", "web", "--commit", &second, "--follow"]);
    assert!(by_cli.status.success(), "{}", said(&by_cli));
    assert_eq!(stack.version().as_deref(), Some("2"));
    let back = daemon.cli(&["deploy", "web", "--commit", &first[..8], "--follow"]);
    assert!(back.status.success(), "{}", said(&back));

    // It moves, and what lies there is not what the earlier commit had: all of the branch is deployed.
    let third = repo.commit(&[("docs/today", "rain")]);
    daemon.wait_for_commit("web", &third);
    assert_eq!(stack.version().as_deref(), Some("2"));
    let fourth = repo.commit(&[("docs/today", "sun")]);
    assert_eq!(daemon.ended_at("web", &fourth)["status"], "skipped");
    let fifth = repo.commit(&[("web/compose.yaml", &Stack::compose("5"))]);
    daemon.wait_for_commit("web", &fifth);
}

#[test]
fn a_commit_that_the_branch_does_not_have_changes_nothing() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    let tip = repo.tip();
    daemon.wait_for_commit("web", &tip);
    let container = stack.container("web").expect("it runs").id().to_owned();
    repo.git(&["checkout", "--quiet", "-b", "other"]);
    let foreign = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    for commit in [&foreign[..], &foreign[..9], "0123456789abcdef0123456789abcdef01234567", "0123456"] {
        let output = daemon.cli(&["deploy", "web", "--commit", commit, "--follow"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let row = daemon.deployments_of("web").remove(0);
        let error = row["error"].as_str().expect("an error").to_owned();
        assert!(error.contains(&commit[..7]) && error.contains("main"), "{error}");
        println!("{error}");
    }
    for commit in ["main", "012345", "", &"0".repeat(65), "../../x"] {
        let body = format!("{{\"commit\": \"{commit}\"}}");
        let answer = daemon.request("POST", "/api/projects/home/repositories/web/deploy", &[], body.as_bytes());
        assert_eq!(answer.status, 400, "{commit}: {}", answer.text());
        assert_ne!(daemon.cli(&["deploy", "web", "--commit", commit]).status.code(), Some(0), "{commit}");
    }
    assert_eq!(daemon.deployments_of("web").len(), 5);
    assert_eq!(stack.container("web").expect("it runs").id(), container);
    assert_eq!(daemon.repository("web")["last_commit_hash"], tip);
    let file = std::fs::read_to_string(daemon.tree("home", "web").join("compose.yaml")).expect("read the file");
    assert_eq!(file, Stack::compose("1"));
    daemon.succeeded(daemon.deploy("web"));
}

#[test]
fn the_containers_of_a_stack_are_listed_in_both_forms() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, other) = (Stack::new(), Stack::new());
    let once = "  once:\n    image: shiparr-test/busybox:1\n    command: [\"true\"]\n    network_mode: none\n    \
                labels: {shiparr.oneshot: \"true\"}\n";
    let check = "    healthcheck: {test: [CMD, \"true\"], interval: 1s}\n";
    let repo = Repo::with(&[("compose.yaml", &format!("{}{once}", Stack::compose_with("1", check)))]);
    let daemon = Daemon::with(&[
        Entry::new("web", &repo.url(), &stack).rarely_checked(),
        Entry::new("never", "/nowhere/stack.git", &other).rarely_checked(),
    ]);
    daemon.wait_for_commit("web", &repo.tip());
    let id = daemon.repository("web")["id"].clone();
    let by_id = daemon.get(&format!("/api/repositories/{id}/containers"));
    assert_eq!(by_id, daemon.get("/api/projects/home/repositories/web/containers"));
    let list = by_id.as_array().expect("a list");
    let services: Vec<&str> = list.iter().filter_map(|one| one["service"].as_str()).collect();
    assert_eq!(services, ["once", "web"], "{by_id}");
    let (ended, web) = (&list[0], &list[1]);
    let container = stack.container("web").expect("it runs");
    assert!(web["id"].as_str().is_some_and(|id| container.id().starts_with(id)), "{web}");
    assert_eq!((&web["name"], &web["image"]), (&Json::from(container.name()), &Json::from(IMAGE)));
    assert_eq!((&web["state"], &web["health"], &web["exit_code"]), (&"running".into(), &"healthy".into(), &Json::Null));
    assert!(web["started_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{web}");
    assert_eq!((&ended["state"], &ended["health"], &ended["exit_code"]), (&"exited".into(), &Json::Null, &0.into()));

    let path = "/api/projects/home/repositories/web/containers";
    let head = daemon.request("HEAD", path, &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let wrong = daemon.post(path);
    assert_eq!(
        (wrong.status, wrong.error().as_str(), wrong.header("allow")),
        (405, "method_not_allowed", Some("GET, HEAD"))
    );
    let wrong = daemon.request("GET", "/api/deployments/1/cancel", &[], b"");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
    assert_eq!(daemon.get("/api/projects/home/repositories/never/containers"), serde_json::json!([]));
    assert_eq!(daemon.request("GET", "/api/repositories/999/containers", &[], b"").status, 404);
}

#[test]
fn a_client_without_the_password_can_neither_deploy_nor_cancel() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_AUTH_ENABLED", "true").env("Shiparr_AUTH_PASSWORD", "correct horse");
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("deploy", "manual").rarely_checked()]);
    daemon.start();
    let url = format!("http://127.0.0.1:{}", daemon.port());
    for args in [&["deploy", "web"][..], &["cancel", "web"], &["status"]] {
        let mut args = args.to_vec();
        args.extend(["--url", &url]);
        let refused = daemon.cli(&args);
        assert_eq!(refused.status.code(), Some(1), "{args:?}: {}", said(&refused));
        assert!(said(&refused).contains("SHIPARR_PASSWORD"), "{args:?}: {}", said(&refused));
        let allowed = daemon.command(&args).env("SHIPARR_PASSWORD", "correct horse").output().expect("start shiparr");
        if args[0] == "cancel" {
            // It may be on its way already; what counts is that it was heard.
            assert!(!said(&allowed).contains("SHIPARR_PASSWORD"), "{}", said(&allowed));
        } else {
            assert_eq!(allowed.status.code(), Some(0), "{args:?}: {}", said(&allowed));
        }
    }
    let basic = [("Authorization", "Basic YWRtaW46d3Jvbmc=")];
    for (method, path) in [("GET", "/api/repositories/1/containers"), ("POST", "/api/deployments/1/cancel")] {
        assert_eq!(daemon.request(method, path, &[], b"").status, 401, "{path}");
        assert_eq!(daemon.request(method, path, &basic, b"").status, 401, "{path}");
    }
}
