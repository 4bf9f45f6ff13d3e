//! Ending deployments by hand, and what is left then.

use std::fs;
use std::process::Output;

use crate::support::*;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn id_of(deployment: &Json) -> i64 {
    deployment["id"].as_i64().expect("an id")
}

fn entry(name: &str, repo: &Repo, stack: &Stack, receiver: &Receiver) -> Entry {
    let notifications =
        format!("{{success: [\"{}\"], failure: [\"{}\"]}}", receiver.url("/well"), receiver.url("/bad"));
    Entry::new(name, &repo.url(), stack)
        .rarely_checked()
        .field("health_timeout", "120")
        .field("notifications", &notifications)
}

fn cancel(daemon: &Daemon, id: i64) -> Answer {
    daemon.post(&format!("/api/deployments/{id}/cancel"))
}

/// A stack that was deployed once, on stand-ins.
struct Deployed {
    stack: Stack,
    repo: Repo,
    fake: Fake,
    receiver: Receiver,
    daemon: Daemon,
}

impl Deployed {
    fn new() -> Deployed {
        let (stack, fake, receiver) = (Stack::new(), Fake::new(), Receiver::start());
        let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
        let mut daemon = Daemon::new();
        daemon.use_fake(&fake).project("home", &[entry("web", &repo, &stack, &receiver)]);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        Deployed { stack, repo, fake, receiver, daemon }
    }

    /// A deployment of a new version that came as far as a call of Compose with `word`.
    fn held_at(&self, word: &str) -> i64 {
        let calls = self.fake.calls_with("docker-compose", word).len();
        self.repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
        let id = self.daemon.deploy("web");
        wait_until(MINUTE, "Compose to be called", || {
            (self.fake.calls_with("docker-compose", word).len() > calls).then_some(())
        });
        id
    }

    fn file(&self) -> String {
        fs::read_to_string(self.daemon.tree("home", "web").join("compose.yaml")).expect("read the compose file")
    }

    /// It ended, nobody was told, nothing is tried again, and the next one is deployed.
    #[track_caller]
    fn assert_cancelled(&self, id: i64) {
        self.daemon.failed_as(id, "cancelled");
        let again = self.daemon.cli(&["cancel", "web"]);
        assert_eq!(again.status.code(), Some(1), "no retry waits: {}", said(&again));
        self.fake.no_rules();
        self.daemon.succeeded(self.daemon.deploy("web"));
        assert_eq!(self.stack.version().as_deref(), Some("2"));
        wait_until(SHORT, "the next message", || (self.receiver.messages("/well").len() == 2).then_some(()));
        assert_eq!(self.receiver.messages("/bad").len(), 0);
        assert!(!self.receiver.messages("/well")[1].to_string().contains("well again"), "nobody knew that it was not");
    }
}

#[test]
fn a_pending_row_is_cancelled_by_api_and_command_line() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stacks, fake, receiver) = ([Stack::new(), Stack::new()], Fake::new(), Receiver::start());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    let entries = [entry("one", &repo, &stacks[0], &receiver), entry("two", &repo, &stacks[1], &receiver)];
    daemon.use_fake(&fake).project("home", &entries);
    fake.rule("docker-compose", "* up *", "hold");
    daemon.start();
    let running = wait_until(MINUTE, "one of them to run", || {
        ["one", "two"].into_iter().find(|name| daemon.repository(name)["status"] == "running")
    });
    let other = if running == "one" { "two" } else { "one" };
    let pending = id_of(&daemon.wait_for(other, "pending"));

    let answer = cancel(&daemon, pending);
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json()["status"], "failed");
    let row = daemon.deployment(pending);
    assert_eq!((&row["status"], &row["error"]), (&Json::from("failed"), &Json::from("cancelled before it began")));
    let again = cancel(&daemon, pending);
    assert_eq!((again.status, again.error().as_str()), (409, "conflict"));
    assert_eq!(cancel(&daemon, 99_999).status, 404);

    let second = daemon.deploy(other);
    let by_cli = daemon.cli(&["cancel", other, "--json"]);
    assert!(by_cli.status.success(), "{}", said(&by_cli));
    let told: Json = serde_json::from_slice(&by_cli.stdout).expect("it is JSON");
    assert_eq!(told["cancelled"][0]["deployment_id"], second);
    assert_eq!(daemon.deployment(second)["status"], "failed");
    let nothing = daemon.cli(&["cancel", other]);
    assert_eq!(nothing.status.code(), Some(1), "{}", said(&nothing));
    assert!(said(&nothing).contains("nothing to cancel"), "{}", said(&nothing));

    fake.release();
    daemon.wait_for_commit(running, &repo.tip());
    assert_eq!(daemon.deployments_of(other).len(), 2, "nothing is tried again");
    assert_eq!(receiver.messages("/bad").len(), 0);
}

#[test]
fn a_deployment_that_waits_for_its_stack_is_cancelled_and_its_containers_stay() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new();
    let Deployed { stack, repo, daemon, .. } = &deployed;
    repo.commit(&[("compose.yaml", &Stack::compose_not_well_yet("2"))]);
    let id = daemon.deploy("web");
    daemon.wait_until_up(id);
    let by_cli = daemon.cli(&["cancel", "home/web"]);
    assert!(by_cli.status.success() && said(&by_cli).contains(&format!("deployment {id} ")), "{}", said(&by_cli));
    daemon.failed(id);
    assert_eq!(stack.version().as_deref(), Some("2"), "nothing runs `down`");
    assert!(deployed.file().contains("/tmp/well"), "what runs and what lies on the disk agree");
    repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    deployed.assert_cancelled(id);
}

#[test]
fn one_that_is_cancelled_before_its_up_leaves_the_files_as_they_were() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new();
    let (file, container) = (deployed.file(), deployed.stack.container("web").expect("it runs").id().to_owned());
    deployed.fake.rule("docker-compose", "* config *", "hang");
    let id = deployed.held_at("config");
    assert_ne!(deployed.file(), file, "the new one is checked out");
    assert_eq!(cancel(&deployed.daemon, id).status, 202);
    deployed.daemon.failed(id);
    assert_eq!(deployed.file(), file);
    assert_eq!(deployed.stack.container("web").expect("it runs").id(), container);
    assert_eq!(
        deployed.daemon.repository("web")["last_commit_hash"],
        deployed.repo.git(&["rev-parse", "HEAD~1"]).trim()
    );
    deployed.assert_cancelled(id);
}

#[test]
fn one_that_is_cancelled_in_its_up_leaves_nothing_stopped() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, receiver) = (Stack::new(), Receiver::start());
    // Process 1 of the container does not hear SIGTERM, so that Compose has to wait for its end.
    let slow = |version| Stack::compose_with(version, "    stop_grace_period: 4s\n").replace("SIGKILL", "SIGTERM");
    let repo = Repo::with(&[("compose.yaml", &slow("1"))]);
    let daemon = Daemon::with(&[entry("web", &repo, &stack, &receiver)]);
    daemon.wait_for_commit("web", &repo.tip());
    repo.commit(&[("compose.yaml", &slow("2"))]);
    let id = daemon.deploy("web");
    wait_until(MINUTE, "Compose to be at it", || daemon.log_of(id).contains("Recreate").then_some(()));
    let by_cli = daemon.cli(&["cancel", "web"]);
    assert!(by_cli.status.success(), "{}", said(&by_cli));
    daemon.failed_as(id, "cancelled");
    let log = daemon.log_of(id);
    assert!(stack.container("web").expect("it is there").is_running(), "{log}");
    assert_eq!(daemon.cli(&["cancel", "web"]).status.code(), Some(1), "no retry waits");
    daemon.succeeded(daemon.deploy("web"));
    assert_eq!(stack.version().as_deref(), Some("2"));
    assert_eq!(receiver.messages("/bad").len(), 0);
}

#[test]
fn a_retry_that_waits_is_cancelled() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new();
    let Deployed { repo, daemon, .. } = &deployed;
    let away = repo.root().join("away");
    fs::rename(repo.bare(), &away).expect("take the remote away");
    let id = daemon.deploy("web");
    daemon.failed(id);
    let by_cli = daemon.cli(&["cancel", "web"]);
    assert!(by_cli.status.success() && said(&by_cli).contains("not tried again"), "{}", said(&by_cli));
    assert_eq!(daemon.cli(&["cancel", "web"]).status.code(), Some(1));

    let id = daemon.deploy("web");
    daemon.failed(id);
    assert_eq!(cancel(daemon, id).status, 202);
    assert_eq!(cancel(daemon, id).status, 409);
    fs::rename(&away, repo.bare()).expect("put the remote back");
    daemon.succeeded(daemon.deploy("web"));
    assert_eq!(cancel(daemon, id).status, 409);
}
