//! Several stacks in one Git repository: what a commit does not touch is left alone.

use std::fs;

use crate::support::*;

const STACKS: usize = 20;

fn name(number: usize) -> String {
    format!("s{number}")
}

/// One stack in the folder `web` of a repository that also has other folders.
struct Web {
    stack: Stack,
    repo: Repo,
    daemon: Daemon,
}

impl Web {
    fn new(compose: &str, more: impl Fn(Entry) -> Entry) -> Web {
        let (stack, repo) = (Stack::new(), Repo::with(&[("web/compose.yaml", compose)]));
        let entry = more(Entry::new("web", &repo.url(), &stack).field("path", "web").rarely_checked());
        Web { daemon: Daemon::with(&[entry]), stack, repo }
    }

    /// A commit that touches nothing of the stack.
    fn commit_elsewhere(&self) -> String {
        self.repo.commit(&[("docs/today", &self.repo.tip())])
    }

    /// The deployment of such a commit, which only a check found.
    fn after_commit_elsewhere(&self) -> Json {
        let commit = self.commit_elsewhere();
        self.daemon.check_now("web");
        self.daemon.ended_at("web", &commit)
    }
}

#[test]
fn a_commit_in_one_of_twenty_stacks_deploys_that_one_and_nothing_else() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stacks, repo, receiver) =
        ((0..STACKS).map(|_| Stack::new()).collect::<Vec<_>>(), Repo::new(), Receiver::start());
    for number in 0..STACKS {
        repo.write(&format!("{}/compose.yaml", name(number)), Stack::compose("1"));
        repo.write(&format!("{}/note", name(number)), "as committed\n");
    }
    let first = repo.commit_all("Twenty stacks");
    let mut daemon = Daemon::new();
    let tree = daemon.deployments().join("stacks");
    let notifications =
        format!("{{success: [\"{}\"], failure: [\"{}\"]}}", receiver.url("/well"), receiver.url("/bad"));
    let entries: Vec<Entry> = (0..STACKS)
        .map(|number| {
            let entry = Entry::new(&name(number), &repo.url(), &stacks[number]).rarely_checked().local_path(&tree);
            entry.field("path", &name(number)).field("settle_time", "0").field("notifications", &notifications)
        })
        .collect();
    daemon.project("home", &entries);
    daemon.start();
    for number in 0..STACKS {
        daemon.wait_for_commit(&name(number), &first);
    }
    let ids = || stacks.iter().map(|stack| stack.container("web").expect("it is there").id().to_owned());
    let before: Vec<String> = ids().collect();
    docker(&["compose", "-p", &stacks[7].name, "stop"]);
    fs::write(tree.join("s8/note"), "changed on the host\n").expect("write a file");
    wait_until(MINUTE, "the messages of the first time", || (receiver.messages("/well").len() == STACKS).then_some(()));

    let find = |commit: &str| {
        (0..STACKS).for_each(|number| daemon.check_now(&name(number)));
        (0..STACKS).map(|number| daemon.ended_at(&name(number), commit)).collect::<Vec<_>>()
    };
    let second = repo.commit(&[("s3/compose.yaml", &Stack::compose("2"))]);
    let rows = find(&second);
    let skipped: Vec<&Json> = rows.iter().filter(|row| row["status"] == "skipped").collect();
    assert_eq!((skipped.len(), &rows[3]["status"]), (STACKS - 1, &Json::from("success")), "{rows:?}");
    let seconds: f64 = skipped.iter().map(|row| row["duration_seconds"].as_f64().expect("a number")).sum();
    println!("{} skipped deployments took {seconds:.3} s together", skipped.len());
    assert!(seconds < 10.0, "{seconds}");
    let repository = daemon.repository("s4");
    let shown = |field: &str| repository[field].as_str().expect("it is text").to_owned();
    assert_eq!((shown("status"), shown("last_commit_hash")), ("success".to_owned(), first));
    assert_eq!(shown("observed_commit"), second);

    for (number, (before, now)) in before.iter().zip(ids()).enumerate() {
        assert_eq!(*before == now, number != 3, "the container of {}", name(number));
    }
    assert_eq!(stacks[3].version().as_deref(), Some("2"));
    assert!(!stacks[7].container("web").expect("it is there").is_running(), "it was stopped on purpose");
    assert_eq!(fs::read_to_string(tree.join("s8/note")).expect("read a file"), "changed on the host\n");
    assert_eq!(files_below(&daemon.data().join("saved")).len(), 0, "what was changed in s8 is nobody else's business");

    let third = repo.commit(&[("s3/compose.yaml", &Stack::compose("3"))]);
    find(&third);
    for number in (0..STACKS).filter(|number| *number != 3) {
        let rows = daemon.deployments_of(&name(number));
        let kept: Vec<&Json> = rows.iter().map(|row| &row["status"]).collect();
        assert_eq!(kept, ["skipped", "success"], "only the newest of {}", name(number));
    }
    wait_until(SHORT, "the messages of s3", || (receiver.messages("/well").len() == STACKS + 2).then_some(()));
    assert_eq!(receiver.messages("/bad").len(), 0);
}

#[test]
fn what_does_not_touch_the_stack_is_skipped_also_after_a_failure_for_good() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let web = Web::new(&Stack::compose("1"), |entry| entry);
    web.daemon.wait_for_commit("web", &web.repo.tip());
    let row = web.after_commit_elsewhere();
    assert_eq!((&row["status"], &row["trigger"]), (&Json::from("skipped"), &Json::from("poll")), "{row}");
    assert!(
        row["error"].as_str().is_some_and(|reason| reason.contains("`watch_paths`") && reason.contains("web")),
        "{row}"
    );

    let bad = web.repo.commit(&[("web/compose.yaml", "services: [")]);
    web.daemon.check_now("web");
    assert_eq!(web.daemon.ended_at("web", &bad)["status"], "failed");
    assert_eq!(web.after_commit_elsewhere()["status"], "skipped");
    assert_eq!(web.daemon.repository("web")["status"], "failed", "that of the last one that was not skipped");
    // Taken back to what runs: that differs from what failed.
    let good = web.repo.commit(&[("web/compose.yaml", &Stack::compose("1"))]);
    web.daemon.check_now("web");
    assert_eq!(web.daemon.ended_at("web", &good)["status"], "success");
}

#[test]
fn nothing_is_skipped_before_a_first_success() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let web = Web::new("services: [", |entry| entry);
    web.daemon.wait_for("web", "failed");
    assert_eq!(web.after_commit_elsewhere()["status"], "failed");
}

#[test]
fn nothing_is_skipped_where_somebody_asks_or_the_configuration_changed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let web = Web::new(&Stack::compose("${V:-1}"), |entry| entry);
    web.daemon.wait_for_commit("web", &web.repo.tip());
    web.commit_elsewhere();
    assert_eq!(web.daemon.ended(web.daemon.deploy("web"))["status"], "success");
    web.commit_elsewhere();
    let by_cli = web.daemon.cli(&["deploy", "web", "--follow"]);
    assert!(by_cli.status.success(), "{}", String::from_utf8_lossy(&by_cli.stderr));
    assert_eq!(web.daemon.repository("web")["last_commit_hash"], web.repo.tip());

    let commit = web.commit_elsewhere();
    let entry = Entry::new("web", &web.repo.url(), &web.stack).field("path", "web").rarely_checked();
    web.daemon.change_project("home", &[entry.field("environment", "{V: \"2\"}")]);
    let row = web.daemon.ended_at("web", &commit);
    assert_eq!((&row["status"], &row["trigger"]), (&Json::from("success"), &Json::from("config")), "{row}");
    assert_eq!(web.stack.version().as_deref(), Some("2"));
}

#[test]
fn nothing_is_skipped_after_what_can_pass() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let web = Web::new(&Stack::compose("1"), |entry| entry);
    web.daemon.wait_for_commit("web", &web.repo.tip());
    let image = Stack::compose("2").replace(IMAGE, "localhost:9/nobody/has-this:1");
    let commit = web.repo.commit(&[("web/compose.yaml", &image)]);
    web.daemon.check_now("web");
    assert_eq!(web.daemon.ended_at("web", &commit)["status"], "failed");
    assert_eq!(web.after_commit_elsewhere()["status"], "failed", "it was tried again");
}

#[test]
fn nothing_is_skipped_after_a_cancelled_or_a_superseded_one() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let web = Web::new(&Stack::compose("1"), |entry| entry);
    web.daemon.wait_for_commit("web", &web.repo.tip());
    let running = || web.daemon.wait_for("web", "running")["id"].as_i64().expect("an id");
    web.repo.commit(&[("web/compose.yaml", &Stack::compose_not_well_yet("2"))]);
    web.daemon.check_now("web");
    let id = running();
    assert_eq!(web.daemon.post(&format!("/api/deployments/{id}/cancel")).status, 202);
    web.daemon.failed_as(id, "cancelled");

    let elsewhere = web.commit_elsewhere();
    web.daemon.check_now("web");
    let id = running();
    // Somebody asks for the same once more: that supersedes, and is cancelled before it is well.
    let next = web.daemon.deploy("web");
    web.daemon.failed_as(id, &format!("superseded by deployment {next}"));
    assert_eq!(web.daemon.deployment(id)["commit_hash"], elsewhere);
    assert_eq!(running(), next);
    assert_eq!(web.daemon.post(&format!("/api/deployments/{next}/cancel")).status, 202);
    web.daemon.failed(next);

    web.commit_elsewhere();
    web.daemon.check_now("web");
    let last = running();
    web.stack.make_well();
    web.daemon.succeeded(last);
}
