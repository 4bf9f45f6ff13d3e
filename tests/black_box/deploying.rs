//! From a commit to a running stack, and the queue between.

use crate::support::*;

#[test]
fn the_first_commit_is_deployed_without_being_asked_for() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::new();
    repo.write("compose.yaml", Stack::compose("1"));
    let commit = repo.commit_all("Run version 1\n\nWith a body.");
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);

    let repository = daemon.wait_for_commit("web", &commit);
    assert_eq!(stack.version().as_deref(), Some("1"));
    assert_eq!(repository["status"], "success");
    assert_eq!(repository["observed_commit"], commit);
    let deployment = &repository["last_deployment"];
    assert_eq!(deployment["trigger"], "poll");
    assert_eq!(deployment["attempt"], 1);
    assert_eq!(deployment["commit_hash"], commit);
    assert_eq!(deployment["commit_subject"], "Run version 1");
    assert_eq!(deployment["commit_author"], "Ada Author");
    assert_eq!(deployment["error"], Json::Null);
    let log = daemon.log_of(deployment["id"].as_i64().expect("an id"));
    assert!(log.lines().count() >= 4, "each step is logged: {log}");
    assert!(log.contains(&commit[..7]), "the log names the commit: {log}");
}

#[test]
fn the_compose_project_is_called_after_the_repository_where_nothing_names_it() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let key = stack.name.replace("shiparr-test", "Shiparr-Test");
    let daemon = Daemon::new();
    let text = format!("project: home\nrepositories:\n  {key}:\n    url: {}\n    settle_time: 1\n", repo.url());
    daemon.project_text("home", &text);
    let mut daemon = daemon;
    daemon.start();
    daemon.wait_for_commit(&key, &repo.tip());
    assert_eq!(stack.version().as_deref(), Some("1"));
    assert!(daemon.tree("home", &key).join("compose.yaml").is_file(), "the working tree lies in its default place");
}

#[test]
fn without_a_new_commit_there_is_no_new_row() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());
    daemon.wait_for_checks("web", 3);
    assert_eq!(daemon.deployments_of("web").len(), 1);

    daemon.restart();
    daemon.wait_for_checks("web", 2);
    assert_eq!(daemon.deployments_of("web").len(), 1, "nor after a restart");
}

#[test]
fn a_push_becomes_the_running_version() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());

    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &commit);
    assert_eq!(stack.version().as_deref(), Some("2"));
    assert_eq!(stack.containers().len(), 1);
    assert_eq!(daemon.deployments_of("web").len(), 2);
}

#[test]
fn a_service_that_a_commit_takes_out_is_removed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let second = Stack::compose("1").replace("services:\n  web:", "  side:");
    let both = format!("{}{second}", Stack::compose("1"));
    let repo = Repo::with(&[("compose.yaml", &both)]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());
    assert!(stack.container("side").is_some());

    let commit = repo.commit(&[("compose.yaml", &Stack::compose("1"))]);
    daemon.wait_for_commit("web", &commit);
    assert!(stack.container("side").is_none());
    assert!(stack.container("web").is_some());
}

#[test]
fn a_push_while_one_is_brought_up_is_deployed_after_it() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake, receiver) = (Stack::new(), Fake::new(), Receiver::start());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    let notifications =
        format!("{{success: [\"{}\"], failure: [\"{}\"]}}", receiver.url("/well"), receiver.url("/bad"));
    let entry =
        Entry::new("web", &repo.url(), &stack).field("settle_time", "60").field("notifications", &notifications);
    daemon.use_fake(&fake).project("home", std::slice::from_ref(&entry));
    fake.rule("docker-compose", "* up *", "hold");
    daemon.start();
    let first = daemon.wait_for("web", "running")["id"].as_i64().expect("an id");
    daemon.change_project("home", &[entry.field("settle_time", "1")]);

    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let second = daemon.wait_for("web", "pending");
    assert_eq!(second["commit_hash"], Json::Null, "a pending row has no commit yet");
    assert_eq!(daemon.repository("web")["status"], "running");
    fake.release();
    let repository = daemon.wait_for_commit("web", &commit);
    assert_eq!(repository["last_deployment"]["id"], second["id"]);
    daemon.failed_as(first, &format!("superseded by deployment {}", second["id"]));
    assert_eq!(stack.version().as_deref(), Some("2"));
    wait_until(SHORT, "the message of the success", || receiver.messages("/well").pop());
    assert_eq!(
        (receiver.messages("/well").len(), receiver.messages("/bad").len()),
        (1, 0),
        "the first is nobody's news"
    );
}

#[test]
fn triggers_join_the_one_pending_row_and_their_wishes_add_up() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    fake.rule("docker-compose", "* up *", "hold");
    daemon.start();
    daemon.wait_for("web", "running");

    let path = "/api/projects/home/repositories/web/deploy";
    let first = daemon.deploy("web");
    let second = daemon.request("POST", path, &[("Content-Type", "application/json")], br#"{"recreate": true}"#);
    assert_eq!((second.status, second.json()["deployment_id"].as_i64()), (202, Some(first)));
    assert_eq!(daemon.deploy("web"), first);
    fake.release();
    daemon.succeeded(first);
    assert_eq!(daemon.deployments_of("web").len(), 2);
    let last = fake.calls_with("docker-compose", "up").pop().expect("it was called");
    assert!(last.arguments.iter().any(|argument| argument == "--force-recreate"), "{:?}", last.arguments);
}

#[test]
fn a_deployment_that_is_asked_for_runs_although_its_commit_is_deployed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.wait_for_commit("web", &repo.tip());
    let before = stack.container("web").expect("it runs").started_at().to_owned();

    let deployment = daemon.succeeded(daemon.deploy("web"));
    assert_eq!(deployment["trigger"], "api");
    assert_eq!(deployment["commit_hash"], repo.tip());
    assert_eq!(stack.container("web").expect("it runs").started_at(), before, "an unchanged container is left alone");

    let path = "/api/projects/home/repositories/web/deploy";
    let answer = daemon.request("POST", path, &[], br#"{"recreate": true}"#);
    daemon.succeeded(answer.json()["deployment_id"].as_i64().expect("an id"));
    assert_ne!(stack.container("web").expect("it runs").started_at(), before, "`recreate` makes it anew");
}

#[test]
fn a_dependent_waits_for_the_success_of_what_it_needs() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (base_stack, app_stack) = (Stack::new(), Stack::new());
    let base = Repo::with(&[("compose.yaml", "services: {this does not parse")]);
    let app = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[
        Entry::new("app", &app.url(), &app_stack).field("depends_on", "[base]").field("priority", "100"),
        Entry::new("base", &base.url(), &base_stack),
    ]);
    daemon.wait_for("base", "failed");
    let waiting = daemon.wait_for("app", "pending");
    let shown = wait_until(SHORT, "the reason to be shown", || {
        daemon.deployment(waiting["id"].as_i64()?)["error"].as_str().map(str::to_owned)
    });
    assert!(shown.contains("base"), "{shown}");
    assert!(app_stack.container("web").is_none());

    let good = base.commit(&[("compose.yaml", &Stack::compose("1"))]);
    daemon.wait_for_commit("base", &good);
    daemon.wait_for_commit("app", &app.tip());
    let done = |name| daemon.wait_for(name, "success")["finished_at"].as_str().expect("it ended").to_owned();
    assert!(done("base") <= done("app"));
    assert_eq!(daemon.deployment(waiting["id"].as_i64().expect("an id"))["error"], Json::Null);
}

#[test]
fn the_higher_priority_goes_first() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stacks = [Stack::new(), Stack::new(), Stack::new()];
    let fake = Fake::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let entry = |name: &str, stack: &Stack, priority: &str| {
        Entry::new(name, &repo.url(), stack).rarely_checked().field("priority", priority)
    };
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake);
    daemon.project(
        "home",
        &[entry("first", &stacks[0], "0"), entry("low", &stacks[1], "-1"), entry("high", &stacks[2], "7")],
    );
    daemon.start();
    for name in ["first", "low", "high"] {
        daemon.wait_for(name, "success");
    }
    fake.rule("docker-compose", "* up *", "hold");
    let first = daemon.deploy("first");
    daemon.wait_for("first", "running");
    let (low, high) = (daemon.deploy("low"), daemon.deploy("high"));
    fake.release();
    daemon.succeeded(first);
    let high = daemon.succeeded(high)["started_at"].as_str().expect("it began").to_owned();
    let low = daemon.succeeded(low)["started_at"].as_str().expect("it began").to_owned();
    assert!(high <= low, "{high} before {low}");
    let ups = fake.calls_with("docker-compose", "up");
    let of = |stack: &Stack| {
        ups.iter().rposition(|call| call.arguments.contains(&stack.name)).expect("it was called with its project")
    };
    assert!(of(&stacks[2]) < of(&stacks[1]), "the higher one was started first");
}

#[test]
fn a_compose_file_that_does_not_parse_leaves_the_old_version_and_says_why() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    let good = repo.tip();
    daemon.wait_for_commit("web", &good);
    let before = stack.container("web").expect("it runs").id().to_owned();

    let bad = repo.commit(&[("compose.yaml", "services:\n  web:\n    image: [not, a, name]\n")]);
    let deployment = daemon.ended_at("web", &bad);
    assert_eq!(deployment["status"], "failed");
    let error = deployment["error"].as_str().expect("an error");
    assert!(!error.contains('\n') && error.contains("image"), "one line that names the place: {error}");
    assert_eq!(stack.container("web").expect("it runs").id(), before);
    let repository = daemon.repository("web");
    assert_eq!(repository["last_commit_hash"], good, "it moves only after a success");
    assert_eq!(repository["observed_commit"], bad);
    assert_eq!(repository["status"], "failed");
    daemon.wait_for_checks("web", 3);
    assert_eq!(daemon.deployments_of("web").len(), 2, "what cannot pass is not tried again");
}

#[test]
fn an_image_that_cannot_be_had_fails_and_leaves_the_old_version() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());
    let before = stack.container("web").expect("it runs").id().to_owned();

    let compose = Stack::compose("2").replace(IMAGE, "localhost:9/nobody/has-this:1");
    let commit = repo.commit(&[("compose.yaml", &compose)]);
    let deployment = daemon.ended_at("web", &commit);
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("localhost:9"), "{deployment}");
    assert_eq!(stack.container("web").expect("it runs").id(), before, "the old version goes on");
    daemon.wait_for_checks("web", 2);
    assert_eq!(daemon.deployments_of("web").len(), 2, "the next try has its pause");
}

#[test]
fn a_service_that_never_becomes_healthy_fails_with_its_last_lines() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let check = "    healthcheck: {test: [CMD, \"false\"], interval: 1s, retries: 2, start_period: 0s}\n";
    let service = Stack::compose_with("1", check)
        .replace("[\"sleep\", \"86400\"]", "[\"sh\", \"-c\", \"echo the reason is in here; sleep 86400\"]");
    let repo = Repo::with(&[("compose.yaml", &service)]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    let error = deployment["error"].as_str().expect("an error");
    assert!(error.contains("web") && error.contains("unhealthy"), "{error}");
    assert!(daemon.log_of(deployment["id"].as_i64().expect("an id")).contains("the reason is in here"));
    assert!(stack.container("web").is_some_and(|container| container.is_running()), "nothing runs `down`");
}

#[test]
fn a_service_that_does_not_become_healthy_in_time_fails_when_the_time_is_over() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let check = "    healthcheck: {test: [CMD, \"false\"], interval: 1s, start_period: 600s}\n";
    let repo = Repo::with(&[("compose.yaml", &Stack::compose_with("1", check))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).field("health_timeout", "3")]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("web"), "{deployment}");
    assert!(deployment["duration_seconds"].as_f64().expect("a number") < 15.0, "{deployment}");
}

#[test]
fn a_healthy_service_is_waited_for() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let check = "    healthcheck: {test: [CMD, test, -e, /tmp/well], interval: 1s, start_period: 60s}\n";
    let service = Stack::compose_with("1", check).replace(
        "[\"sleep\", \"86400\"]",
        "[\"sh\", \"-c\", \"mkdir -p /tmp; sleep 3; touch /tmp/well; sleep 86400\"]",
    );
    let repo = Repo::with(&[("compose.yaml", &service)]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "success", "{deployment}");
    assert!(deployment["duration_seconds"].as_f64().expect("a number") >= 3.0, "{deployment}");
}

#[test]
fn a_service_that_restarts_for_ever_fails_at_once() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let service = Stack::compose_with("1", "    restart: always\n")
        .replace("[\"sleep\", \"86400\"]", "[\"sh\", \"-c\", \"echo I cannot go on; exit 3\"]");
    let repo = Repo::with(&[("compose.yaml", &service)]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("web"), "{deployment}");
    assert!(deployment["duration_seconds"].as_f64().expect("a number") < 15.0, "{deployment}");
    assert!(daemon.log_of(deployment["id"].as_i64().expect("an id")).contains("I cannot go on"));
}

#[test]
fn a_service_that_exits_fails_with_its_code() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let service =
        Stack::compose("1").replace("[\"sleep\", \"86400\"]", "[\"sh\", \"-c\", \"echo out of cheese; exit 42\"]");
    let repo = Repo::with(&[("compose.yaml", &service)]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("42"), "{deployment}");
    assert!(daemon.log_of(deployment["id"].as_i64().expect("an id")).contains("out of cheese"));
}

#[test]
fn a_health_check_url_decides_over_success() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, receiver) = (Stack::new(), Receiver::start());
    receiver.answer(503);
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let entry = Entry::new("web", &repo.url(), &stack)
        .rarely_checked()
        .field("healthcheck_url", &receiver.url("/well"))
        .field("healthcheck_timeout", "2")
        .field("healthcheck_expected_status", "204");
    let daemon = Daemon::with(&[entry]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("503"), "{deployment}");

    receiver.answer(204);
    daemon.succeeded(daemon.deploy("web"));
    assert!(receiver.requests().iter().all(|request| request.target == "/well"));
}

#[test]
fn an_unset_variable_stops_the_deployment_unless_blank_is_asked_for() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("v${NOBODY_SETS_THIS}${OTHERWISE:-x}"))]);
    let entry = Entry::new("web", &repo.url(), &stack);
    let daemon = Daemon::with(std::slice::from_ref(&entry));
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    let error = deployment["error"].as_str().expect("an error");
    assert!(error.contains("NOBODY_SETS_THIS") && !error.contains("OTHERWISE"), "{error}");
    assert!(stack.container("web").is_none(), "nothing was changed");

    daemon.change_project("home", &[entry.field("unset_variables", "blank")]);
    daemon.succeeded(daemon.deploy("web"));
    assert_eq!(stack.version().as_deref(), Some("vx"));
}

#[test]
fn variables_come_from_the_stacks_own_env_then_env_files_then_environment() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let lines =
        "      FROM_DOT_ENV: \"${FROM_DOT_ENV}\"\n      FROM_FILE: \"${FROM_FILE}\"\n      DOLLAR: \"${DOLLAR}\"\n";
    let repo = Repo::with(&[
        ("compose.yaml", &Stack::compose_with("${VERSION}", lines)),
        (".env", "VERSION=dot\nFROM_DOT_ENV=dot\nFROM_FILE=dot\n"),
        ("plain.env", "VERSION=file\nFROM_FILE=file\nDOLLAR='pa$word'\n"),
    ]);
    let entry = Entry::new("web", &repo.url(), &stack)
        .field("env_file", "plain.env")
        .field("environment", "{VERSION: \"from-${HOSTNAME:-host}-$${x}\"}");
    let daemon = Daemon::with(&[entry]);
    daemon.wait_for_commit("web", &repo.tip());
    let version = stack.version().expect("it runs");
    assert!(version.starts_with("from-") && version.ends_with("-${x}"), "{version}");
    assert_eq!(stack.variable("web", "FROM_DOT_ENV").as_deref(), Some("dot"));
    assert_eq!(stack.variable("web", "FROM_FILE").as_deref(), Some("file"));
    assert_eq!(stack.variable("web", "DOLLAR").as_deref(), Some("pa$word"));
}

#[test]
fn the_environment_of_the_daemon_does_not_leak_into_the_stack() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("${SECRET_OF_THE_HOST:-clean}"))]);
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).project("home", &[Entry::new("web", &repo.url(), &stack)]);
    daemon.env("SECRET_OF_THE_HOST", "leaked").env("GITHUB_TOKEN", "leaked-token").env("TZ", "Europe/Berlin");
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(stack.version().as_deref(), Some("clean"));
    for call in fake.calls() {
        for line in &call.environment {
            assert!(!line.contains("leaked"), "{} saw {line}", call.name);
        }
        assert_eq!(call.variable("LC_ALL"), Some("C.UTF-8"), "{}", call.name);
        assert_eq!(call.variable("TZ"), Some("Europe/Berlin"), "{}", call.name);
    }
}

#[test]
fn a_changed_field_of_the_stack_queues_one_deployment_also_while_the_daemon_is_down() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("${V}"))]);
    let entry = Entry::new("web", &repo.url(), &stack);
    let of = |value: &str| entry.clone().field("environment", &format!("{{V: \"{value}\"}}"));
    let mut daemon = Daemon::with(&[of("one")]);
    daemon.wait_for_commit("web", &repo.tip());

    daemon.project("home", &[of("two")]);
    wait_until(MINUTE, "the changed variable to be deployed", || (stack.version()? == "two").then_some(()));
    wait_until(MINUTE, "its success", || (daemon.deployments_of("web")[0]["status"] == "success").then_some(()));
    assert_eq!(daemon.deployments_of("web")[0]["trigger"], "config");

    daemon.stop();
    daemon.project("home", &[of("three")]);
    daemon.start();
    wait_until(MINUTE, "the changed variable to be deployed", || (stack.version()? == "three").then_some(()));
    wait_until(MINUTE, "its success", || (daemon.deployments_of("web")[0]["status"] == "success").then_some(()));
    assert_eq!(daemon.deployments_of("web")[0]["trigger"], "config");
    daemon.wait_for_checks("web", 2);
    assert_eq!(daemon.deployments_of("web").len(), 3);
}

#[test]
fn images_are_pruned_after_a_success_where_that_is_enabled() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    fake.rule("docker", "* image prune *", "exit 0");
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).env("Shiparr_ENABLE_IMAGE_PRUNE", "true");
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let prunes =
        wait_until(SHORT, "the prune", || Some(fake.calls_with("docker", "prune")).filter(|calls| !calls.is_empty()));
    assert_eq!(prunes[0].arguments, ["image", "prune", "-f"]);
}

#[test]
fn the_history_is_trimmed_to_its_limit() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_HISTORY_LIMIT", "2");
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked().field("settle_time", "0")]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let ids: Vec<i64> = (0..3).map(|_| daemon.deploy("web")).inspect(|id| drop(daemon.succeeded(*id))).collect();
    let kept: Vec<i64> =
        daemon.deployments_of("web").iter().filter_map(|deployment| deployment["id"].as_i64()).collect();
    assert_eq!(kept, [ids[2], ids[1]]);
    assert_eq!(daemon.request("GET", &format!("/api/deployments/{}/logs", ids[0]), &[], b"").status, 404);
}

#[test]
fn a_commit_that_names_another_ones_compose_project_is_refused_before_anything_changes() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, own) = (Stack::new(), Stack::new());
    let media = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[Entry::new("media", &media.url(), &stack)]);
    daemon.wait_for_commit("media", &media.tip());

    // Only the commit tells: by `name:` the first time, by `.env` the second.
    let side = Stack::compose("9").replace("  web:", "  side:");
    let web = Repo::with(&[("compose.yaml", &format!("name: {}\n{side}", stack.name))]);
    let entry = Entry::new("web", &web.url(), &own).without("compose_project");
    daemon.change_project("home", &[Entry::new("media", &media.url(), &stack), entry.clone()]);
    let assert_refused = |deployment: &Json| {
        let error = deployment["error"].as_str().unwrap_or_default();
        assert!(error.contains("home/media") && error.contains("`compose_project: web`"), "{deployment}");
    };
    assert_refused(&daemon.ended_at("web", &web.tip()));
    let commit = web.commit(&[("compose.yaml", &side), (".env", &format!("COMPOSE_PROJECT_NAME={}\n", stack.name))]);
    assert_refused(&daemon.ended_at("web", &commit));
    assert_eq!(stack.version().as_deref(), Some("1"), "the containers of the first are as they were");
    assert!(stack.container("side").is_none());

    // An orphan's containers run on, so its compose project is still its own.
    daemon.change_project("home", std::slice::from_ref(&entry));
    assert_refused(&daemon.failed(daemon.deploy("web")));
    assert_eq!(stack.version().as_deref(), Some("1"));

    // The way out that the message names.
    daemon.change_project("home", &[entry.field("compose_project", &own.name)]);
    daemon.wait_for_commit("web", &web.tip());
    assert!(own.container("side").is_some());
    assert_eq!(stack.version().as_deref(), Some("1"));
}
