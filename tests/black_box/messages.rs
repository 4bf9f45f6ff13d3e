//! Telling people: who is told what, how often, and what a notifier's failure changes.

use crate::support::*;

fn entry(repo: &Repo, stack: &Stack, success: &str, failure: &str) -> Entry {
    let notifications = format!("{{success: [\"{success}\"], failure: [\"{failure}\"]}}");
    Entry::new("web", &repo.url(), stack).rarely_checked().field("notifications", &notifications)
}

fn check_now(daemon: &Daemon) -> i64 {
    daemon.deploy("web")
}

#[test]
fn a_success_is_one_message_with_all_that_it_is_about() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, receiver, repo) = (Stack::new(), Receiver::start(), Repo::new());
    repo.write("compose.yaml", Stack::compose("1"));
    repo.commit_all("Run the first version");
    let daemon = Daemon::with(&[entry(&repo, &stack, &receiver.url("/well"), &receiver.url("/bad"))]);
    daemon.wait_for_commit("web", &repo.tip());
    let message = wait_until(SHORT, "the message", || receiver.messages("/well").pop()).to_string();
    for expected in ["home/web", &repo.tip()[..7], "Run the first version", "Ada Author"] {
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let request = receiver.requests().remove(0);
    assert!(request.header("content-type").is_some_and(|kind| kind.starts_with("application/json")));
    daemon.succeeded(daemon.deploy("web"));
    wait_until(SHORT, "one a success", || (receiver.messages("/well").len() == 2).then_some(()));
    assert_eq!(receiver.messages("/bad").len(), 0);
}

#[test]
fn a_failure_is_told_once_a_commit_and_then_that_it_is_well_again() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, receiver) = (Stack::new(), Receiver::start());
    let repo = Repo::with(&[("compose.yaml", "services: [")]);
    let daemon = Daemon::with(&[entry(&repo, &stack, &receiver.url("/well"), &receiver.url("/bad"))]);
    let first = daemon.wait_for("web", "failed");
    let message = wait_until(SHORT, "the message", || receiver.messages("/bad").pop()).to_string();
    for expected in ["home/web", &repo.tip()[..7], "yaml: line 1"] {
        assert!(message.contains(expected), "{expected}: {message}");
    }
    daemon.failed(check_now(&daemon));
    daemon.failed(check_now(&daemon));
    let next = repo.commit(&[("compose.yaml", "services: {")]);
    daemon.failed(check_now(&daemon));
    wait_until(SHORT, "the next commit's message", || {
        receiver.messages("/bad").get(1).filter(|message| message.to_string().contains(&next[..7])).map(drop)
    });
    assert_eq!(receiver.messages("/bad").len(), 2, "none for the same commit again: {first}");
    assert_eq!(receiver.messages("/well").len(), 0);

    repo.commit(&[("compose.yaml", &Stack::compose("1"))]);
    daemon.succeeded(check_now(&daemon));
    for path in ["/well", "/bad"] {
        let last = wait_until(SHORT, "the good news", || {
            receiver.messages(path).pop().filter(|message| message.to_string().contains("well again"))
        });
        assert!(last.to_string().contains("home/web"));
    }
    daemon.succeeded(check_now(&daemon));
    wait_until(SHORT, "an ordinary success", || (receiver.messages("/well").len() == 2).then_some(()));
    assert!(!receiver.messages("/well")[1].to_string().contains("well again"));
    assert_eq!(receiver.messages("/bad").len(), 3);
}

#[test]
fn a_failure_stays_told_over_a_restart() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, receiver) = (Stack::new(), Receiver::start());
    let repo = Repo::with(&[("compose.yaml", "services: [")]);
    let mut daemon = Daemon::with(&[entry(&repo, &stack, &receiver.url("/well"), &receiver.url("/bad"))]);
    wait_until(MINUTE, "the message", || receiver.messages("/bad").pop());
    daemon.restart();
    daemon.failed(check_now(&daemon));
    repo.commit(&[("compose.yaml", &Stack::compose("1"))]);
    daemon.succeeded(check_now(&daemon));
    wait_until(SHORT, "the good news", || {
        receiver.messages("/bad").pop().filter(|message| message.to_string().contains("well again"))
    });
    assert_eq!(receiver.messages("/bad").len(), 2);
}

#[test]
fn global_notifications_are_told_beside_the_repositorys_own() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, receiver) = (Stack::new(), Receiver::start());
    let repo = Repo::with(&[("compose.yaml", "services: [")]);
    let mut daemon = Daemon::new();
    let head = format!("global_notifications:\n  failure:\n    - \"{}\"\n", receiver.url("/global"));
    let own = entry(&repo, &stack, &receiver.url("/well"), &receiver.url("/own"));
    daemon.project_text("home", &project_file("home", &head, &[own]));
    daemon.start();
    for path in ["/global", "/own"] {
        wait_until(MINUTE, path, || receiver.messages(path).pop());
    }
}

#[test]
fn a_notifier_that_hangs_changes_nothing() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, receiver, fake) = (Stack::new(), Receiver::start(), Fake::new());
    receiver.hang();
    fake.rule("shoutrrr", "*", "stubborn");
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    let notifications = format!("{{success: [\"{}\", \"ntfy://ntfy.example.com/topic\"]}}", receiver.url("/well"));
    let entry = Entry::new("web", &repo.url(), &stack).field("notifications", &notifications);
    daemon.use_fake(&fake).project("home", &[entry]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let deployment = daemon.wait_for_commit("web", &commit)["last_deployment"].clone();
    assert_eq!(deployment["status"], "success");
    assert!(deployment["duration_seconds"].as_f64().expect("a number") < 10.0, "{deployment}");
    daemon.assert_well();
}

#[test]
fn shoutrrr_gets_its_url_and_the_message_where_nobody_sees_them() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    fake.rule("shoutrrr", "* send *", "exit 0");
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    let entry = entry(&repo, &stack, "discord://WEBHOOKID/the-secret-token", "ntfy://ntfy.example.com/topic");
    daemon.use_fake(&fake).project("home", &[entry]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let call = wait_until(SHORT, "shoutrrr to be called", || fake.calls_with("shoutrrr", "send").pop());
    assert_eq!(call.arguments[0], "send");
    assert!(!call.arguments.iter().any(|argument| argument.contains("the-secret-token")), "{:?}", call.arguments);
    assert_eq!(call.variable("SHOUTRRR_URL"), Some("discord://the-secret-token@WEBHOOKID"), "translated");
    assert!(call.input.contains("home/web") && call.input.contains(&repo.tip()[..7]), "{}", call.input);
}

#[test]
fn what_could_not_be_sent_is_tried_three_times_and_a_wrong_url_once() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for (code, tries) in [("69", 3), ("78", 1)] {
        let (stack, fake) = (Stack::new(), Fake::new());
        fake.rule("shoutrrr", "* send *", &format!("exit {code} the reason of the notifier"));
        let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
        let mut daemon = Daemon::new();
        let entry = entry(&repo, &stack, "ntfy://ntfy.example.com/topic", "ntfy://ntfy.example.com/other");
        daemon.use_fake(&fake).project("home", &[entry]);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        let calls = || fake.calls_with("shoutrrr", "send").len();
        wait_until(MINUTE, "the tries", || (calls() >= tries).then_some(()));
        wait_until(MINUTE, "the failure in the log", || {
            daemon.log().contains("the reason of the notifier").then_some(())
        });
        assert_eq!(daemon.stop().code(), Some(0));
        assert_eq!(calls(), tries, "exit {code}");
        assert!(!daemon.log().contains("ntfy.example.com/topic"), "the URL is a secret");
    }
}

#[test]
fn the_real_shoutrrr_delivers() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SHOUTRRR]) {
        return;
    }
    let (stack, receiver) = (Stack::new(), Receiver::start());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let url = format!("generic://{}/hook?disabletls=yes", receiver.address());
    let daemon = Daemon::with(&[entry(&repo, &stack, &url, "logger://")]);
    daemon.wait_for_commit("web", &repo.tip());
    let request = wait_until(SHORT, "the message", || receiver.requests().pop());
    assert!(request.target.starts_with("/hook"), "{}", request.target);
    assert!(request.text().contains("home/web"), "{}", request.text());
}
