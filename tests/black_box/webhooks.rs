//! A push that its forge tells of: it is deployed at once, once, and never lost.

use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::support::*;

const SECRET: &str = "a secret of the forge and of this host";

/// A daemon on a machine whose forge has the secret.
fn daemon_with(entries: &[Entry]) -> Daemon {
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_WEBHOOK_SECRET", SECRET);
    daemon.project("home", entries);
    daemon.start();
    daemon
}

/// What Gitea sends of a push to a remote.
fn payload(repo: &Repo, commit: &str) -> String {
    format!(
        "{{\"ref\": \"refs/heads/main\", \"after\": \"{commit}\", \"repository\": {{\"clone_url\": \"{}\"}}, \
         \"pusher\": {{\"login\": \"ada\"}}}}",
        repo.url()
    )
}

fn signed(text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn deliver(daemon: &Daemon, id: &str, payload: &str, signature: &str) -> Answer {
    let headers = [
        ("Content-Type", "application/json"),
        ("X-Gitea-Event", "push"),
        ("X-Gitea-Delivery", id),
        ("X-Gitea-Signature", signature),
    ];
    daemon.request("POST", "/webhook/gitea", &headers, payload.as_bytes())
}

/// A delivery that must be accepted, for one repository; its deployment.
#[track_caller]
fn accepted(daemon: &Daemon, id: &str, payload: &str) -> i64 {
    let answer = deliver(daemon, id, payload, &signed(payload));
    assert_eq!(answer.status, 202, "{}", answer.text());
    match answer.json()["deployment_ids"].as_array().map(Vec::as_slice) {
        Some([id]) => id.as_i64().expect("an id"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_push_is_deployed_at_once_and_only_once() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let daemon = daemon_with(&[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.wait_for_commit("web", &repo.tip());

    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let payload = payload(&repo, &commit);
    let sent = Instant::now();
    let id = accepted(&daemon, "first", &payload);
    let answered = sent.elapsed();
    wait_until(MINUTE, "it to begin", || (daemon.deployment(id)["status"] != "pending").then_some(()));
    println!("a delivery to its 202: {answered:?}; to the start of its deployment: {:?}", sent.elapsed());
    assert!(sent.elapsed() < Duration::from_secs(5));
    let deployed = daemon.succeeded(id);
    let shown = (&deployed["commit_hash"], &deployed["trigger"], &deployed["actor"]);
    assert_eq!(shown, (&Json::from(commit), &Json::from("webhook"), &Json::from("ada")));
    assert_eq!(stack.version().as_deref(), Some("2"));

    assert_eq!(deliver(&daemon, "second", &payload, &signed("another")).status, 401);
    assert_eq!(accepted(&daemon, "first", &payload), id);
    assert_eq!(daemon.deployments_of("web").len(), 2);
    let skipped = daemon.ended(accepted(&daemon, "second", &payload));
    assert_eq!(skipped["status"], "skipped", "it is what runs: {skipped}");
    let log = daemon.log();
    assert!(log.contains("queued home/web") && log.contains("from 127.0.0.1 was refused"), "{log}");
    assert!(!log.contains(SECRET));
}

#[test]
fn what_was_answered_202_survives_a_kill() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let mut daemon = daemon_with(&[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.wait_for_commit("web", &repo.tip());
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let payload = payload(&repo, &commit);
    let id = accepted(&daemon, "first", &payload);
    daemon.kill_9();
    daemon.start();
    assert_eq!(daemon.deployment(id)["trigger"], "webhook");
    daemon.wait_for_commit("web", &commit);
    let again = accepted(&daemon, "first", &payload);
    assert!(again == id || daemon.deployment(id)["status"] == "failed", "it was interrupted");
}

#[test]
fn a_fixing_push_ends_the_wait_although_a_row_that_changes_nothing_is_pending() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("web/compose.yaml", &Stack::compose_not_well_yet("1"))]));
    let entry = Entry::new("web", &repo.url(), &stack).field("path", "web").field("health_timeout", "120");
    let daemon = daemon_with(&[entry.rarely_checked()]);
    let bad = daemon.wait_for("web", "running")["id"].as_i64().expect("an id");
    daemon.wait_until_up(bad);
    let nothing = repo.commit(&[("docs/today", "rain")]);
    let pending = accepted(&daemon, "rain", &payload(&repo, &nothing));
    wait_until(SHORT, "the reason to be shown", || {
        let shown = daemon.deployment(pending);
        shown["error"].as_str().filter(|reason| reason.contains(&format!("deployment {bad}"))).map(drop)
    });
    let fix = repo.commit(&[("web/compose.yaml", &Stack::compose("2"))]);
    let sent = Instant::now();
    assert_eq!(accepted(&daemon, "fix", &payload(&repo, &fix)), pending);
    daemon.failed_as(bad, &format!("superseded by deployment {pending}"));
    println!("from the fix to the end of the wait: {:?}", sent.elapsed());
    assert_eq!(daemon.succeeded(pending)["commit_hash"], fix);
}

#[test]
fn a_manual_repository_shows_the_push_as_waiting() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let daemon = daemon_with(&[Entry::new("web", &repo.url(), &stack).rarely_checked().field("deploy", "manual")]);
    daemon.succeeded(daemon.deploy("web"));
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let payload = payload(&repo, &commit);
    let answer = deliver(&daemon, "first", &payload, &signed(&payload));
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_until(SHORT, "it to wait", || {
        let web = daemon.repository("web");
        (web["status"] == "waiting" && web["observed_commit"] == commit.as_str()).then_some(())
    });
    assert_eq!(daemon.deployments_of("web").len(), 1);
}
