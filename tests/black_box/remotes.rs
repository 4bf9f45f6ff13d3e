//! Git remotes over http: tokens, redirects, and networks that fail.

use std::time::{Duration, Instant};

use crate::support::*;

const TOKEN: &str = "glpat-RightTokenOfThisTest";

struct Remote {
    stack: Stack,
    repo: Repo,
    server: GitServer,
}

impl Remote {
    fn new() -> Remote {
        let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
        let server = GitServer::start(repo.root());
        Remote { stack: Stack::new(), repo, server }
    }

    fn private() -> Remote {
        let remote = Remote::new();
        remote.server.ask_for("oauth2", TOKEN);
        remote
    }

    fn entry(&self) -> Entry {
        Entry::new("web", &self.server.url("stack"), &self.stack)
    }
}

fn last_error(daemon: &Daemon) -> String {
    wait_until(MINUTE, "the check to fail", || daemon.repository("web")["last_error"].as_str().map(str::to_owned))
}

#[test]
fn a_public_repository_over_http_is_deployed_and_its_pushes_are_seen() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    let daemon = Daemon::with(&[remote.entry()]);
    daemon.wait_for_commit("web", &remote.repo.tip());
    let commit = remote.repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &commit);
    assert_eq!(remote.stack.version().as_deref(), Some("2"));
    assert!(remote.server.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn a_check_is_one_request_whose_size_does_not_grow_with_the_refs() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    let tip = remote.repo.tip();
    let refs: String = (0..2000).map(|number| format!("create refs/pull/{number}/head {tip}\n")).collect();
    let list = remote.repo.root().join("refs");
    std::fs::write(&list, refs).expect("write the list");
    let made = std::process::Command::new("git")
        .args(["-c", "safe.directory=*", "--git-dir"])
        .arg(remote.repo.bare())
        .args(["update-ref", "--stdin"])
        .stdin(std::fs::File::open(&list).expect("open the list"))
        .status();
    assert!(made.expect("start git").success());
    let daemon = Daemon::with(&[remote.entry()]);
    daemon.wait_for_commit("web", &tip);

    daemon.wait_for_checks("web", 1);
    let (requests, bytes) = (remote.server.requests().len(), remote.server.sent_bytes());
    daemon.wait_for_checks("web", 3);
    let new = &remote.server.requests()[requests..];
    assert!((3..=4).contains(&new.len()), "one request a check, not {}", new.len());
    assert!(new.iter().all(|request| request.method == "POST" && request.header("git-protocol") == Some("version=2")));
    let received = (remote.server.sent_bytes() - bytes) / new.len() as u64;
    assert!(received <= 2048, "{received} bytes a check");
}

#[test]
fn a_branch_that_is_not_there_is_an_error_that_names_those_that_are() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    remote.repo.git(&["push", "--quiet", "origin", "HEAD:refs/heads/main-2", "HEAD:refs/heads/production"]);
    for url in [remote.server.url("stack"), remote.repo.url()] {
        let daemon = Daemon::with(&[remote.entry().field("url", &url).field("branch", "mai")]);
        let error = last_error(&daemon);
        assert!(error.contains("main-2") && error.contains("production"), "{error}");
        assert_eq!(daemon.deployments_of("web").len(), 0);
    }
}

#[test]
fn a_private_repository_with_the_right_token_is_deployed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::private();
    let mut daemon = Daemon::new();
    daemon.env("FORGE_TOKEN", TOKEN);
    let head = format!("tokens:\n  \"127.0.0.1:{}\": ${{FORGE_TOKEN}}\n", remote.server.port());
    daemon.project_text("home", &project_file("home", &head, &[remote.entry()]));
    daemon.start();
    daemon.wait_for_commit("web", &remote.repo.tip());
    let asked = remote.server.requests();
    assert!(asked.iter().all(|request| !request.target.contains(TOKEN)), "a token is never in a URL");
}

#[test]
fn user_and_secret_can_both_be_given_and_the_repositorys_own_token_wins() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    remote.server.ask_for("deployer", TOKEN);
    let mut daemon = Daemon::new();
    daemon.env("FORGE_TOKEN_FILE", daemon.home().join("token"));
    std::fs::write(daemon.home().join("token"), format!("deployer:{TOKEN}\n")).expect("write");
    let head = format!("tokens: {{\"127.0.0.1:{}\": wrong-token-of-the-project}}\n", remote.server.port());
    let entry = remote.entry().field("token", "${FORGE_TOKEN}");
    daemon.project_text("home", &project_file("home", &head, &[entry]));
    daemon.start();
    daemon.wait_for_commit("web", &remote.repo.tip());

    // Rotated on both sides: the file is read at each use.
    remote.server.ask_for("deployer", "glpat-AnotherTokenAltogether");
    std::fs::write(daemon.home().join("token"), "deployer:glpat-AnotherTokenAltogether").expect("write");
    let commit = remote.repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &commit);
}

#[test]
fn a_wrong_token_is_an_error_that_says_which_was_used_and_never_what_it_was() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::private();
    let mut daemon = Daemon::new();
    daemon.project("home", &[remote.entry().field("token", "glpat-WrongTokenOfThisTest")]);
    daemon.start();
    let error = last_error(&daemon);
    assert!(error.contains("token"), "{error}");
    daemon.wait_for_checks("web", 2);
    let health = daemon.get("/api/health");
    assert_eq!(health["status"], "ok", "checks have not failed for an hour: {health}");
    assert!(!daemon.log().contains("WrongTokenOfThisTest"));
    let told = daemon.log().lines().filter(|line| line.contains(&error)).count();
    assert!(told <= 2, "a failure is logged when it starts, not at every check: {told}");
}

#[test]
fn a_token_that_is_mended_in_the_file_is_tried_at_once() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::private();
    let entry = |token| remote.entry().field("check_interval", "3600").field("token", token);
    let daemon = Daemon::with(&[entry("glpat-WrongTokenOfThisTest")]);
    last_error(&daemon);
    daemon.change_project("home", &[entry(TOKEN)]);
    let repository = daemon.wait_for_commit("web", &remote.repo.tip());
    assert_eq!(repository["last_error"], Json::Null);
}

#[test]
fn without_a_token_the_error_says_that_one_is_needed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::private();
    let daemon = Daemon::with(&[remote.entry()]);
    let error = last_error(&daemon);
    assert!(error.contains("token"), "{error}");
}

#[test]
fn a_revoked_token_is_an_error_until_it_is_good_again() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::private();
    let daemon = Daemon::with(&[remote.entry().field("token", TOKEN)]);
    daemon.wait_for_commit("web", &remote.repo.tip());
    remote.server.ask_for("oauth2", "glpat-NobodyKnowsThisOne");
    let commit = remote.repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    last_error(&daemon);
    assert_eq!(remote.stack.version().as_deref(), Some("1"));
    assert_eq!(daemon.deployments_of("web").len(), 1, "a failed check is no deployment");

    remote.server.ask_for("oauth2", TOKEN);
    let repository = daemon.wait_for_commit("web", &commit);
    assert_eq!(repository["last_error"], Json::Null);
}

#[test]
fn a_token_does_not_follow_a_redirect_to_another_port() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::private();
    let other = GitServer::start(remote.repo.root());
    remote.server.fault(Requests::All, Fault::RedirectTo(other.base()));
    let daemon = Daemon::with(&[remote.entry().field("token", TOKEN)]);
    wait_until(MINUTE, "the check to end", || {
        let repository = daemon.repository("web");
        (repository["last_error"].is_string() || repository["last_commit_hash"].is_string()).then_some(())
    });
    for request in other.requests() {
        assert_eq!(request.header("authorization"), None, "the token arrived elsewhere: {request:?}");
        assert!(!format!("{request:?}").contains(TOKEN));
    }

    // A remote that redirects only where the objects are asked for.
    remote.server.fault(Requests::All, Fault::None);
    daemon.wait_for_commit("web", &remote.repo.tip());
    remote.server.fault(Requests::Fetches, Fault::RedirectTo(other.base()));
    let commit = remote.repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.ended_at_or_failed("web", &commit);
    for request in other.requests() {
        assert_eq!(request.header("authorization"), None, "the token arrived elsewhere: {request:?}");
    }
}

#[test]
fn what_the_hosts_own_git_configuration_says_is_not_followed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::private();
    let other = GitServer::start(remote.repo.root());
    let mut daemon = Daemon::new();
    let configuration = format!(
        "[url \"{}/\"]\n\tinsteadOf = {}/\n[core]\n\thooksPath = {}\n",
        other.base(),
        remote.server.base(),
        daemon.home().display()
    );
    std::fs::write(daemon.home().join(".gitconfig"), configuration).expect("write");
    daemon.project("home", &[remote.entry().field("token", TOKEN)]);
    daemon.start();
    daemon.wait_for_commit("web", &remote.repo.tip());
    assert!(other.requests().is_empty(), "nothing went elsewhere");

    // Nor what somebody writes into the checkout's own `.git`.
    let tree = daemon.tree("home", "web");
    let _ = std::fs::remove_file(tree.join(".git"));
    std::fs::create_dir(tree.join(".git")).expect("make a folder");
    std::fs::write(tree.join(".git/config"), "[core]\n\tfsmonitor = touch /tmp/never\n").expect("write");
    let commit = remote.repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &commit);
    assert!(other.requests().is_empty(), "nothing went elsewhere");
}

/// An address of this machine that is not loopback: the one that a connection to the outside would have. Nothing is
/// sent.
fn address_of_this_host() -> Option<String> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then(|| address.to_string())
}

#[test]
fn a_token_goes_over_plain_http_only_to_loopback_or_where_that_is_allowed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let Some(address) = address_of_this_host() else {
        eprintln!("not run, because this machine has no address beside loopback");
        return;
    };
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let server = GitServer::start_on(&address, repo.root());
    server.ask_for("oauth2", TOKEN);
    let entry = Entry::new("web", &server.url("stack"), &stack).field("token", TOKEN);
    let daemon = Daemon::with(std::slice::from_ref(&entry));
    let error = last_error(&daemon);
    assert!(error.contains("insecure_http"), "the error names the way out: {error}");
    assert!(server.requests().iter().all(|request| request.header("authorization").is_none()));

    daemon.change_project("home", &[entry.field("insecure_http", "true")]);
    daemon.wait_for_commit("web", &repo.tip());
}

#[test]
fn the_remote_goes_away_and_comes_back() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let mut remote = Remote::new();
    let daemon = Daemon::with(&[remote.entry()]);
    daemon.wait_for_commit("web", &remote.repo.tip());
    remote.server.stop();
    let error = last_error(&daemon);
    assert!(!error.contains('\n'), "{error}");
    let commit = remote.repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_checks("web", 2);
    assert_eq!(remote.stack.version().as_deref(), Some("1"));

    remote.server.start_again();
    let repository = daemon.wait_for_commit("web", &commit);
    assert_eq!(repository["last_error"], Json::Null);
    assert_eq!(daemon.deployments_of("web").len(), 2);
}

#[test]
fn a_remote_that_drips_holds_a_deployment_no_longer_than_its_limit() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    let (other_stack, other_repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    remote.server.fault(Requests::Fetches, Fault::Drip);
    let daemon = Daemon::with(&[
        remote.entry().field("timeout", "4").field("priority", "9"),
        Entry::new("other", &other_repo.url(), &other_stack),
    ]);
    daemon.wait_for("web", "running");
    let begin = Instant::now();
    let deployment = daemon.wait_for("web", "failed");
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
    assert!(deployment["error"].as_str().expect("an error").contains("limit"), "{deployment}");
    daemon.wait_for_commit("other", &other_repo.tip());
}

#[test]
fn a_remote_that_hangs_in_the_check_holds_nobody_else() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    let (other_stack, other_repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    remote.server.fault(Requests::All, Fault::Hang);
    let mut daemon = Daemon::with(&[remote.entry(), Entry::new("other", &other_repo.url(), &other_stack)]);
    daemon.wait_for_commit("other", &other_repo.tip());
    let commit = other_repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("other", &commit);
    daemon.assert_well();
    let begin = Instant::now();
    assert_eq!(daemon.stop().code(), Some(0), "nor the shutdown");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

#[test]
fn a_transfer_that_is_cut_is_tried_again() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    remote.server.fault(Requests::Fetches, Fault::CutAfter(200));
    let daemon = Daemon::with(&[remote.entry()]);
    let deployment = daemon.wait_for("web", "failed");
    assert_eq!(daemon.repository("web")["last_commit_hash"], Json::Null);
    remote.server.fault(Requests::All, Fault::None);
    daemon.succeeded(daemon.deploy("web"));
    assert_ne!(deployment["error"], Json::Null);
    assert_eq!(remote.stack.version().as_deref(), Some("1"));
}

#[test]
fn a_failure_that_can_pass_is_tried_again_by_itself_after_a_minute() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    remote.server.fault(Requests::Fetches, Fault::CutAfter(200));
    let daemon = Daemon::with(&[remote.entry()]);
    daemon.wait_for("web", "failed");
    remote.server.fault(Requests::All, Fault::None);
    daemon.wait_for_checks("web", 3);
    assert_eq!(daemon.deployments_of("web").len(), 1, "until it is due it is no row");
    let retried = wait_until(Duration::from_secs(100), "the retry", || {
        Some(daemon.deployments_of("web").remove(0)).filter(|deployment| deployment["trigger"] == "retry")
    });
    assert_eq!(retried["attempt"], 2);
    daemon.succeeded(retried["id"].as_i64().expect("an id"));
}

#[test]
fn submodules_are_checked_out_under_their_parents_host() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::private();
    let part = Repo::in_root_of(&remote.repo, "part");
    part.commit(&[("file", "of the submodule")]);
    remote.repo.git(&["submodule", "--quiet", "add", &part.url(), "part"]);
    remote.repo.git(&["config", "--file", ".gitmodules", "submodule.part.url", "../part.git"]);
    remote.repo.write("compose.yaml", Stack::compose_with("1", "    volumes: [\"./part:/part:ro\"]\n"));
    remote.repo.commit_all("With a submodule");
    let daemon = Daemon::with(&[remote.entry().field("token", TOKEN)]);
    daemon.wait_for_commit("web", &remote.repo.tip());
    assert_eq!(remote.stack.container("web").expect("it runs").run(&["cat", "/part/file"]), "of the submodule");
}

#[test]
fn a_submodule_from_a_path_of_the_host_is_refused() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let remote = Remote::new();
    let part = Repo::named("part");
    part.commit(&[("file", "of the host")]);
    remote.repo.git(&["submodule", "--quiet", "add", &part.url(), "part"]);
    remote.repo.commit_all("With a submodule of the host");
    let daemon = Daemon::with(&[remote.entry()]);
    let deployment = daemon.ended_at_or_failed("web", &remote.repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("part"), "{deployment}");
    assert!(contains_anywhere(&daemon.data().join("deployments"), "of the host").is_empty());
}
