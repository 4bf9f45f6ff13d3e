//! Project files that appear, change, break and go while the daemon runs.

use std::fs;

use rustix::process::Signal;

use crate::support::*;

fn names(daemon: &Daemon) -> Vec<String> {
    let list = daemon.get("/api/repositories");
    list.as_array().expect("a list").iter().map(|entry| entry["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_repository_that_is_added_is_deployed_and_one_that_is_removed_becomes_an_orphan_until_prune() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (one, two) = (Stack::new(), Stack::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let entries = [Entry::new("one", &repo.url(), &one), Entry::new("two", &repo.url(), &two)];
    let daemon = Daemon::with(&entries[..1]);
    daemon.wait_for_commit("one", &repo.tip());

    daemon.project("home", &entries);
    wait_until(SHORT, "the new repository", || names(&daemon).contains(&"two".to_owned()).then_some(()));
    daemon.wait_for_commit("two", &repo.tip());
    assert_eq!(daemon.deployments_of("one").len(), 1, "the other one is not deployed again");

    daemon.project("home", &entries[..1]);
    let orphan = wait_until(SHORT, "the orphan", || {
        Some(daemon.repository("two")).filter(|repository| repository["orphaned"] == true)
    });
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("one", &commit);
    assert_eq!(two.version().as_deref(), Some("1"), "its containers stay as they are");
    assert!(daemon.tree("home", "two").join("compose.yaml").is_file(), "and its files");
    let refused = daemon.post(&format!("/api/repositories/{}/deploy", orphan["id"]));
    assert_eq!(refused.status, 409, "{}", refused.text());

    let asked = daemon.cli(&["prune"]);
    let said = String::from_utf8_lossy(&asked.stdout).into_owned() + &String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("home/two"), "it lists what it would forget: {said}");
    assert!(names(&daemon).contains(&"two".to_owned()), "without an answer nothing is forgotten");
    let listed = daemon.cli(&["prune", "--json"]);
    let listed: Json = serde_json::from_slice(&listed.stdout).expect("it prints JSON");
    assert_eq!(listed["forgotten"], serde_json::json!([]), "nobody said yes: {listed}");
    assert_eq!(listed["orphans"].as_array().map(Vec::len), Some(1), "{listed}");
    let pruned = daemon.cli(&["prune", "--yes"]);
    assert!(pruned.status.success(), "{}", String::from_utf8_lossy(&pruned.stderr));
    assert_eq!(names(&daemon), ["one"]);
    assert_eq!(two.version().as_deref(), Some("1"));
    assert!(daemon.tree("home", "two").join("compose.yaml").is_file());
}

#[test]
fn an_orphan_that_returns_is_followed_again_with_its_history() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let entries = [Entry::new("web", &repo.url(), &stack)];
    let daemon = Daemon::with(&entries);
    let id = daemon.wait_for_commit("web", &repo.tip())["id"].clone();
    daemon.project("home", &[]);
    wait_until(SHORT, "the orphan", || (daemon.repository("web")["orphaned"] == true).then_some(()));
    daemon.project("home", &entries);
    wait_until(SHORT, "its return", || (daemon.repository("web")["orphaned"] == false).then_some(()));
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let repository = daemon.wait_for_commit("web", &commit);
    assert_eq!(repository["id"], id);
    assert_eq!(daemon.deployments_of("web").len(), 2);
}

#[test]
fn a_pending_row_of_an_orphan_fails_as_orphaned() {
    if missing(&[parts::GIT]) {
        return;
    }
    let (base, stack) = (Stack::new(), Stack::new());
    let broken = Repo::with(&[("compose.yaml", "services: [")]);
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let base = Entry::new("base", &broken.url(), &base);
    let daemon = Daemon::with(&[base.clone(), Entry::new("web", &repo.url(), &stack).field("depends_on", "[base]")]);
    let id = daemon.wait_for("web", "pending")["id"].as_i64().expect("an id");
    daemon.project("home", &[base]);
    let deployment = daemon.failed(id);
    assert!(deployment["error"].as_str().expect("an error").starts_with("orphaned"), "{deployment}");
}

#[test]
fn a_changed_interval_is_in_force_without_a_restart_or_a_deployment() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let entry = Entry::new("web", &repo.url(), &stack);
    let daemon = Daemon::with(&[entry.clone().rarely_checked()]);
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(daemon.repository("web")["check_interval"], 3600);
    daemon.project("home", &[entry]);
    wait_until(SHORT, "the new interval", || (daemon.repository("web")["check_interval"] == 1).then_some(()));
    daemon.wait_for_checks("web", 2);
    assert_eq!(daemon.deployments_of("web").len(), 1);
}

#[test]
fn a_broken_file_keeps_the_last_good_version_and_shows_what_is_wrong() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());

    let bad = format!("project: home\nrepositories:\n  web:\n    url: {}\n    chekc_interval: 5\n", repo.url());
    daemon.project_text("home", &bad);
    let health = wait_until(SHORT, "health to say so", || {
        Some(daemon.get("/api/health")).filter(|health| health["status"] == "degraded")
    });
    let problem = health["checks"]["config"].to_string();
    assert!(problem.contains("chekc_interval"), "{health}");
    assert!(daemon.log().contains("check_interval"), "the log suggests the right name");
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &commit);
    let status = daemon.cli(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned() + &String::from_utf8_lossy(&status.stderr);
    assert!(said.contains("chekc_interval"), "`status` shows it: {said}");

    daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
    wait_until(SHORT, "health to be well", || (daemon.get("/api/health")["status"] == "ok").then_some(()));
}

#[test]
fn a_broken_file_at_start_stops_no_other() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
    daemon.project_text("bad", "project: bad\nrepositories:\n  x: {branch: main}\n");
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(daemon.get("/api/health")["status"], "degraded");
    assert_eq!(daemon.request("GET", "/api/projects/bad", &[], b"").status, 404);
}

#[test]
fn a_folder_that_vanishes_changes_nothing() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());
    fs::rename(daemon.config(), daemon.folder().join("elsewhere")).expect("move the folder");
    wait_until(SHORT, "health to say so", || (daemon.get("/api/health")["status"] == "degraded").then_some(()));
    assert_eq!(daemon.repository("web")["orphaned"], false);
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &commit);
    fs::rename(daemon.folder().join("elsewhere"), daemon.config()).expect("move it back");
    wait_until(SHORT, "health to be well", || (daemon.get("/api/health")["status"] == "ok").then_some(()));
}

#[test]
fn without_auto_reload_only_sighup_reads_the_files_again() {
    if missing(&[parts::GIT]) {
        return;
    }
    let (one, two) = (Stack::new(), Stack::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let entries = [Entry::new("one", &repo.url(), &one), Entry::new("two", &repo.url(), &two).rarely_checked()];
    let mut daemon = Daemon::new();
    daemon.env("DISABLE_CONFIG_AUTO_RELOAD", "true").project("home", &entries[..1]);
    daemon.start();
    daemon.project("home", &entries);
    daemon.wait_for_checks("one", 4);
    assert_eq!(names(&daemon), ["one"], "more than the time that auto-reload would take");
    daemon.signal(Signal::HUP);
    wait_until(SHORT, "the new repository", || (names(&daemon) == ["one", "two"]).then_some(()));
    daemon.assert_well();
}

#[test]
fn of_two_files_that_collide_the_one_accepted_first_goes_on() {
    if missing(&[parts::GIT]) {
        return;
    }
    let (one, two) = (Stack::new(), Stack::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.project_text("b", &project_file("home", "description: first\n", &[Entry::new("web", &repo.url(), &one)]));
    daemon.start();
    daemon.project_text("a", &project_file("home", "description: second\n", &[Entry::new("web", &repo.url(), &two)]));
    wait_until(SHORT, "the problem", || (daemon.get("/api/health")["status"] == "degraded").then_some(()));
    let home = daemon.get("/api/projects/home");
    assert_eq!(home["description"], "first");
    assert!(home["config_file"].as_str().expect("a path").ends_with("b.yaml"));
    daemon.restart();
    assert_eq!(daemon.get("/api/projects/home")["description"], "first", "the older record, also after a restart");
}
