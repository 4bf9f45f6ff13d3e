//! A bad stack holds nobody up: not its own repair, and not the other repositories.

use std::time::{Duration, Instant};

use crate::support::*;

/// A stack that is not well, for as long as two minutes.
fn patient(name: &str, repo: &Repo, stack: &Stack) -> Entry {
    Entry::new(name, &repo.url(), stack).field("health_timeout", "120").rarely_checked()
}

fn id_of(deployment: &Json) -> i64 {
    deployment["id"].as_i64().expect("an id")
}

#[test]
fn a_fixing_push_ends_the_wait_for_the_bad_version() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, receiver) = (Stack::new(), Receiver::start());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose_not_well_yet("1"))]);
    let notifications =
        format!("{{success: [\"{}\"], failure: [\"{}\"]}}", receiver.url("/well"), receiver.url("/bad"));
    let entry = patient("web", &repo, &stack).field("check_interval", "1").field("notifications", &notifications);
    let daemon = Daemon::with(&[entry]);
    let bad = id_of(&daemon.wait_for("web", "running"));
    daemon.wait_until_up(bad);

    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let pushed = Instant::now();
    daemon.wait_for_commit("web", &commit);
    let fixed = daemon.ended_at("web", &commit);
    let own = fixed["duration_seconds"].as_f64().expect("a number");
    let beside = pushed.elapsed().as_secs_f64() - own;
    println!("from the push to the fixed version: {beside:.2} s beside its own deployment of {own:.2} s");
    assert!(beside < 15.0, "{beside}");
    assert_eq!(stack.version().as_deref(), Some("2"));

    daemon.failed_as(bad, &format!("superseded by deployment {}", id_of(&fixed)));
    wait_until(SHORT, "the message of the success", || receiver.messages("/well").pop());
    assert_eq!(receiver.messages("/bad").len(), 0, "nobody is told of what was superseded");
    daemon.wait_for_checks("web", 2);
    assert_eq!(daemon.deployments_of("web").len(), 2, "nor is it tried again");
}

#[test]
fn who_asks_ends_the_wait_too() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose_not_well_yet("1"))]));
    let daemon = Daemon::with(&[patient("web", &repo, &stack)]);
    let bad = id_of(&daemon.wait_for("web", "running"));
    daemon.wait_until_up(bad);
    repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let asked = Instant::now();
    let fix = daemon.deploy("web");
    wait_until(MINUTE, "the fix to begin", || (daemon.deployment(fix)["status"] != "pending").then_some(()));
    println!("from the trigger to the start of the fix: {:.2} s", asked.elapsed().as_secs_f64());
    assert!(asked.elapsed() < Duration::from_secs(10));
    daemon.succeeded(fix);
    daemon.failed_as(bad, &format!("superseded by deployment {fix}"));
}

#[test]
fn a_commit_that_will_be_skipped_ends_no_wait() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("web/compose.yaml", &Stack::compose_not_well_yet("1"))]));
    let daemon = Daemon::with(&[patient("web", &repo, &stack).field("path", "web")]);
    let first = id_of(&daemon.wait_for("web", "running"));
    daemon.wait_until_up(first);
    let commit = repo.commit(&[("docs/today", "rain")]);
    daemon.check_now("web");
    let pending = daemon.wait_for("web", "pending");
    wait_until(SHORT, "the reason to be shown", || {
        let shown = daemon.deployment(id_of(&pending));
        shown["error"].as_str().filter(|reason| reason.contains(&format!("deployment {first}"))).map(drop)
    });
    assert_eq!(daemon.deployment(first)["status"], "running");
    stack.make_well();
    daemon.succeeded(first);
    let skipped = daemon.ended(id_of(&pending));
    assert_eq!((&skipped["status"], &skipped["commit_hash"]), (&Json::from("skipped"), &Json::from(commit)));
}

#[test]
fn other_repositories_are_deployed_meanwhile() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (bad_stack, good_stack) = (Stack::new(), Stack::new());
    let bad = Repo::with(&[("compose.yaml", &Stack::compose_not_well_yet("1"))]);
    let good = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon =
        Daemon::with(&[patient("bad", &bad, &bad_stack).field("priority", "1"), patient("good", &good, &good_stack)]);
    let waiting = id_of(&daemon.wait_for("bad", "running"));
    daemon.wait_until_up(waiting);
    daemon.wait_for_commit("good", &good.tip());
    daemon.succeeded(daemon.deploy("good"));
    assert_eq!(daemon.deployment(waiting)["status"], "running");
    bad_stack.make_well();
    daemon.succeeded(waiting);
}

#[test]
fn a_dependent_waits_for_the_health_of_what_it_needs() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (base_stack, app_stack, other_stack) = (Stack::new(), Stack::new(), Stack::new());
    let base = Repo::with(&[("compose.yaml", &Stack::compose_not_well_yet("1"))]);
    let app = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[
        patient("base", &base, &base_stack),
        patient("app", &app, &app_stack).field("depends_on", "[base]").field("priority", "9"),
        patient("other", &app, &other_stack),
    ]);
    let waiting = id_of(&daemon.wait_for("base", "running"));
    let dependent = id_of(&daemon.wait_for("app", "pending"));
    daemon.wait_for_commit("other", &app.tip());
    wait_until(MINUTE, "the reason to be shown", || {
        let shown = daemon.deployment(dependent);
        shown["error"].as_str().filter(|reason| reason.contains("home/base") && reason.contains("running")).map(drop)
    });
    assert_eq!(daemon.deployment(waiting)["status"], "running");
    base_stack.make_well();
    let of_base = daemon.succeeded(waiting)["finished_at"].as_str().expect("it ended").to_owned();
    let of_app = daemon.succeeded(dependent)["started_at"].as_str().expect("it began").to_owned();
    assert!(of_base <= of_app, "{of_base}, then {of_app}");
}

#[test]
fn what_is_unhealthy_is_not_waited_for() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let check = "    healthcheck: {test: [CMD, \"false\"], interval: 1s, retries: 1, start_period: 0s}\n";
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose_with("1", check))]));
    let daemon = Daemon::with(&[patient("web", &repo, &stack)]);
    let failed = daemon.ended_at("web", &repo.tip());
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("unhealthy")), "{failed}");
    assert!(failed["duration_seconds"].as_f64().expect("a number") < 30.0, "{failed}");
}
