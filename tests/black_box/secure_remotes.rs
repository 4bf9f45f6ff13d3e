//! Git remotes over TLS and over ssh: authorities, host keys and private keys.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::*;

const TOKEN: &str = "glpat-TokenForTls";

fn last_error(daemon: &Daemon) -> String {
    wait_until(MINUTE, "the check to fail", || daemon.repository("web")["last_error"].as_str().map(str::to_owned))
}

#[test]
fn a_remote_with_an_authority_of_its_own_needs_its_ca_file() {
    if missing(&[parts::DOCKER, parts::GIT, parts::TLS]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let server = GitServer::start(repo.root());
    server.ask_for("oauth2", TOKEN);
    let tls = Tls::in_front_of(server.port());
    let entry = Entry::new("web", &tls.url("stack"), &stack).field("token", TOKEN);
    let daemon = Daemon::with(std::slice::from_ref(&entry));
    let error = last_error(&daemon);
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    assert!(server.requests().is_empty(), "nothing is said to somebody unknown");

    daemon.change_project("home", &[entry.field("ca_file", &tls.ca_file().to_string_lossy())]);
    daemon.wait_for_commit("web", &repo.tip());
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &commit);
    assert_eq!(stack.version().as_deref(), Some("2"));
}

#[test]
fn a_submodule_over_https_is_checked_out() {
    if missing(&[parts::DOCKER, parts::GIT, parts::TLS]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::new());
    let part = Repo::in_root_of(&repo, "part");
    part.commit(&[("file", "of the submodule")]);
    let server = GitServer::start(repo.root());
    let tls = Tls::in_front_of(server.port());
    repo.write("compose.yaml", Stack::compose_with("1", "    volumes: [\"./part:/part:ro\"]\n"));
    repo.git(&["submodule", "--quiet", "add", &part.url(), "part"]);
    repo.git(&["config", "--file", ".gitmodules", "submodule.part.url", &tls.url("part")]);
    repo.commit_all("With a submodule");
    let ca_file = tls.ca_file().to_string_lossy().into_owned();
    let entry = Entry::new("web", &tls.url("stack"), &stack).field("ca_file", &ca_file);
    let daemon = Daemon::with(&[entry]);
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(stack.container("web").expect("it runs").run(&["cat", "/part/file"]), "of the submodule");

    part.commit(&[("file", "changed")]);
    fs::write(daemon.tree("home", "web").join("part/mine"), "mine").expect("write");
    repo.git(&["-C", "part", "pull", "--quiet", "origin", "main"]);
    let commit = repo.commit_all("A newer submodule");
    daemon.wait_for_commit("web", &commit);
    let read = |path: &str| fs::read_to_string(daemon.tree("home", "web").join(path)).expect("it is there");
    assert_eq!((read("part/file"), read("part/mine")), ("changed".to_owned(), "mine".to_owned()));
}

#[test]
fn an_ssh_remote_is_followed_with_its_key_once_its_host_is_known() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SSHD, parts::ROOT]) {
        return;
    }
    let mut ssh = Ssh::start();
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let mut daemon = Daemon::new();
    let known_hosts = daemon.home().join("known_hosts");
    fs::write(&known_hosts, "").expect("write");
    daemon.env("Shiparr_SSH_KNOWN_HOSTS", &known_hosts);
    let entry = Entry::new("web", &ssh.url(&repo.url()), &stack).field("ssh_key", &ssh.key().to_string_lossy());
    daemon.project("home", &[entry]);
    daemon.start();
    let error = last_error(&daemon);
    assert!(error.contains(&ssh.fingerprint()) && error.contains("ssh-keyscan"), "{error}");

    fs::write(&known_hosts, ssh.known_hosts_line()).expect("write");
    daemon.wait_for_commit("web", &repo.tip());
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    daemon.wait_for_commit("web", &commit);

    ssh.new_host_key();
    let error = wait_until(MINUTE, "the changed key to be refused", || {
        daemon.repository("web")["last_error"].as_str().filter(|error| error.contains("changed")).map(str::to_owned)
    });
    assert!(error.contains(&ssh.fingerprint()), "{error}");
}

#[test]
fn a_private_key_with_a_passphrase_works_and_one_that_others_can_read_is_refused() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SSHD, parts::ROOT]) {
        return;
    }
    let ssh = Ssh::start();
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let mut daemon = Daemon::new();
    let known_hosts = daemon.home().join("known_hosts");
    fs::write(&known_hosts, ssh.known_hosts_line()).expect("write");
    daemon.env("Shiparr_SSH_KNOWN_HOSTS", &known_hosts).env("KEY_PASSPHRASE", "open sesame");
    let entry = Entry::new("web", &ssh.url(&repo.url()), &stack)
        .field("ssh_key", &ssh.locked_key().to_string_lossy())
        .field("ssh_key_passphrase", "${KEY_PASSPHRASE}");
    daemon.project("home", &[entry]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());

    fs::set_permissions(ssh.locked_key(), fs::Permissions::from_mode(0o644)).expect("open the key");
    let error = last_error(&daemon);
    assert!(error.contains(&*ssh.locked_key().to_string_lossy()), "{error}");
}
