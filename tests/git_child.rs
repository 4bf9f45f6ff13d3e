//! The child `shiparr git`, started as the daemon starts it: over ssh, past its limit, ended at any moment.
#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::ffi::OsString;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

use shiparr::command::Limit;
use shiparr::git::{self, Checkout, Child, GitError, Remote};
use shiparr::http::Proxies;
use shiparr::model::{Chance, CommitHash};
use shiparr::secrets::Secret;
use tempfile::TempDir;

fn run(folder: &Path, program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .envs(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].map(|name| (name, "A Person")))
        .envs(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"].map(|name| (name, "person@example.com")))
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A remote repository with a clone, and what the child needs to follow it.
struct Lab {
    folder: TempDir,
    child: Child,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), "git", &["init", "-q", "--bare", "-b", "main", "remote.git"]);
        run(folder.path(), "git", &["clone", "-q", "remote.git", "clone"]);
        let environment =
            ["PATH", "HOME"].map(|name| (OsString::from(name), std::env::var_os(name).unwrap_or_default()));
        let child = Child { program: PathBuf::from(env!("CARGO_BIN_EXE_shiparr")), environment: environment.to_vec() };
        Lab { folder, child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into the clone and pushes all of it.
    fn push(&self, file: &str, content: &str) -> String {
        let clone = self.path("clone");
        fs::write(clone.join(file), content).unwrap();
        run(&clone, "git", &["add", "-A"]);
        run(&clone, "git", &["commit", "-q", "-m", "next"]);
        run(&clone, "git", &["push", "-q", "origin", "HEAD:main"]);
        run(&clone, "git", &["rev-parse", "HEAD"])
    }

    fn remote(&self, url: &str) -> Remote {
        Remote {
            url: url.parse().unwrap(),
            branch: "main".to_owned(),
            credential: None,
            insecure_http: false,
            ca_file: None,
            ssh_key: None,
            ssh_key_passphrase: None,
            known_hosts: vec![self.path("known_hosts")],
            proxies: Proxies::default(),
        }
    }

    fn checkout(&self, checked_out: Option<CommitHash>) -> Checkout {
        Checkout {
            store: self.path("data/git/p/r.git"),
            local_path: self.path("tree"),
            checked_out,
            saved: self.path("data/saved/p/r"),
            name: "p/r".to_owned(),
            commit: None,
            watch_paths: Vec::new(),
            shares_local_path: false,
            siblings: Vec::new(),
            skip_if_unchanged_since: None,
            adopt: false,
            put_back_first: false,
        }
    }

    fn check(&self, remote: &Remote) -> Result<CommitHash, GitError> {
        git::check(remote, &self.child, &Limit::after(Duration::from_secs(30)))
    }
}

/// A real sshd of this user's own on a free port.
struct SshServer {
    process: Process,
    port: u16,
}

impl SshServer {
    fn start(lab: &Lab) -> SshServer {
        let make_key = |name: &str, kind: &str, passphrase: &str| {
            let file = lab.path(name).display().to_string();
            run(lab.folder.path(), "ssh-keygen", &["-q", "-t", kind, "-N", passphrase, "-f", &file]);
        };
        make_key("host_ed25519", "ed25519", "");
        make_key("host_ecdsa", "ecdsa", "");
        make_key("key", "ed25519", "");
        make_key("locked_key", "ed25519", "open sesame");
        make_key("other_key", "ed25519", "");
        let keys = ["key.pub", "locked_key.pub"].map(|name| fs::read_to_string(lab.path(name)).unwrap());
        fs::write(lab.path("authorized_keys"), keys.concat()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = lab.folder.path().display();
        let settings = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {root}/host_ecdsa\nHostKey {root}/host_ed25519\nPidFile none\n\
             AuthorizedKeysFile {root}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        );
        fs::write(lab.path("sshd_config"), settings).unwrap();
        // Where sshd runs as root it wants this folder.
        let _ = fs::create_dir_all("/run/sshd");
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(lab.path("sshd_config")).stderr(Stdio::null());
        let server = SshServer { process: command.spawn().unwrap(), port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "sshd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// The repository of `lab` as this server serves it.
    fn remote(&self, lab: &Lab) -> Remote {
        let user = run(lab.folder.path(), "id", &["-un"]);
        let path = lab.path("remote.git").display().to_string();
        let remote = lab.remote(&format!("ssh://{user}@127.0.0.1:{}{path}", self.port));
        Remote { ssh_key: Some(lab.path("key")), ..remote }
    }

    /// The server's line of a known_hosts file.
    fn line(&self, lab: &Lab, kind: &str) -> String {
        let key = fs::read_to_string(lab.path(&format!("host_{kind}.pub"))).unwrap();
        format!("[127.0.0.1]:{} {key}", self.port)
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn an_ssh_remote_is_checked_and_fetched_with_a_key() {
    let lab = Lab::new();
    let hash = lab.push("file", "one");
    let server = SshServer::start(&lab);
    let remote = server.remote(&lab);
    // Whichever kind of key is the known one, it is the one that is asked for.
    for kind in ["ed25519", "ecdsa"] {
        fs::write(lab.path("known_hosts"), server.line(&lab, kind)).unwrap();
        assert_eq!(lab.check(&remote).unwrap().as_str(), hash, "{kind}");
    }
    run(lab.folder.path(), "ssh-keygen", &["-q", "-H", "-f", &lab.path("known_hosts").display().to_string()]);
    assert!(fs::read_to_string(lab.path("known_hosts")).unwrap().starts_with("|1|"));
    let limit = Limit::after(Duration::from_secs(30));
    let done = git::fetch_and_checkout(&remote, &lab.checkout(None), &lab.child, &limit).unwrap();
    assert_eq!(done.commit.hash.as_str(), hash);
    assert_eq!(fs::read_to_string(lab.path("tree/file")).unwrap(), "one");
    let error = lab.check(&Remote { branch: "mian".to_owned(), ..remote }).unwrap_err();
    assert!(error.message.ends_with("there are `main`"), "{error}");
}

#[test]
fn a_path_without_a_slash_begins_in_the_home_folder_of_the_ssh_user() {
    let lab = Lab::new();
    let hash = lab.push("file", "one");
    let server = SshServer::start(&lab);
    fs::write(lab.path("known_hosts"), server.line(&lab, "ed25519")).unwrap();
    // The user's home folder, as sshd knows it, leads to the repository by a relative path only.
    let user = run(lab.folder.path(), "id", &["-un"]);
    let home = run(lab.folder.path(), "sh", &["-c", &format!("eval echo ~{user}")]);
    let up = "../".repeat(Path::new(&home).components().count());
    let below = lab.path("remote.git").display().to_string();
    for (path, is_found) in [(format!("{up}{}", &below[1..]), true), (below[1..].to_owned(), false)] {
        let remote = lab.remote(&format!("{user}@[127.0.0.1:{}]:{path}", server.port));
        let answer = lab.check(&Remote { ssh_key: Some(lab.path("key")), ..remote });
        assert_eq!(answer.as_ref().is_ok_and(|found| found.as_str() == hash), is_found, "{path}: {answer:?}");
    }
}

#[test]
fn an_ssh_key_that_does_not_open_says_why() {
    let lab = Lab::new();
    let hash = lab.push("file", "one");
    let server = SshServer::start(&lab);
    fs::write(lab.path("known_hosts"), server.line(&lab, "ed25519")).unwrap();
    let mut remote = server.remote(&lab);
    remote.ssh_key = Some(lab.path("locked_key"));
    remote.ssh_key_passphrase = Some(Secret::new("open sesame"));
    assert_eq!(lab.check(&remote).unwrap().as_str(), hash);
    remote.ssh_key_passphrase = Some(Secret::new("wrong"));
    let error = lab.check(&remote).unwrap_err();
    assert!(error.message.contains("`ssh_key_passphrase`") && error.chance == Chance::Final, "{error}");
    remote.ssh_key = Some(lab.path("other_key"));
    remote.ssh_key_passphrase = None;
    let error = lab.check(&remote).unwrap_err();
    assert!(error.message.contains("does not accept the key") && error.message.contains("deploy key"), "{error}");
    remote.ssh_key = None;
    assert!(lab.check(&remote).unwrap_err().message.contains("set `ssh_key`"));
    fs::set_permissions(lab.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    remote.ssh_key = Some(lab.path("key"));
    assert!(lab.check(&remote).unwrap_err().message.contains("run `chmod 600"));
}

#[test]
fn an_unknown_host_key_is_refused_and_a_changed_one_says_so() {
    let lab = Lab::new();
    lab.push("file", "one");
    let server = SshServer::start(&lab);
    let remote = server.remote(&lab);
    let error = lab.check(&remote).unwrap_err();
    assert!(error.message.contains("is not known: SHA256:") && error.chance == Chance::Final, "{error}");
    let scan = format!("ssh-keyscan -p {} 127.0.0.1 >> {}", server.port, lab.path("known_hosts").display());
    assert!(error.message.ends_with(&format!("`{scan}`")), "{error}");
    // The command that it names helps.
    run(lab.folder.path(), "sh", &["-c", &scan]);
    lab.check(&remote).unwrap();
    let other = fs::read_to_string(lab.path("key.pub")).unwrap();
    fs::write(lab.path("known_hosts"), format!("[127.0.0.1]:{} {other}", server.port)).unwrap();
    let error = lab.check(&remote).unwrap_err();
    assert!(error.message.contains("has changed") && error.message.contains("known_hosts:1"), "{error}");
}

#[test]
fn a_remote_that_says_nothing_holds_nobody_longer_than_the_limit() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = lab.remote(&format!("ssh://git@{}/x.git", listener.local_addr().unwrap()));
    let begin = Instant::now();
    let error = git::check(&remote, &lab.child, &Limit::after(Duration::from_millis(500))).unwrap_err();
    assert!(error.message.contains("did not answer within the time limit"), "{error}");
    assert_eq!(error.chance, Chance::CanPass);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn runs_that_are_ended_at_any_moment_are_completed_by_the_next() {
    const FILES: usize = 200;
    let lab = Lab::new();
    let remote = lab.remote(&lab.path("remote.git").display().to_string());
    let (mut checked_out, mut ended) = (None, 0);
    for round in 0..4 {
        for number in 0..FILES {
            // A third of the files go and come with each round, the others are rewritten.
            let suffix: usize = if number % 3 == 0 { round } else { 9 };
            let _ = fs::remove_file(lab.path(&format!("clone/file-{number}-{}", suffix.saturating_sub(1))));
            let content = format!("{round} {number}").repeat(400 + 50 * round);
            fs::write(lab.path(&format!("clone/file-{number}-{suffix}")), content).unwrap();
        }
        let hash = lab.push("round", &format!("{round}"));
        for milliseconds in (2..80).step_by(5).chain([30_000]) {
            let limit = Limit::after(Duration::from_millis(milliseconds));
            match git::fetch_and_checkout(&remote, &lab.checkout(checked_out.clone()), &lab.child, &limit) {
                Ok(done) => {
                    assert_eq!(done.commit.hash.as_str(), hash);
                    checked_out = Some(done.commit.hash);
                    break;
                }
                Err(error) => {
                    assert!(error.message.contains("time limit"), "{error}");
                    ended += 1;
                }
            }
        }
        let (clone, tree) = (lab.path("clone").display().to_string(), lab.path("tree").display().to_string());
        run(lab.folder.path(), "diff", &["-r", "--exclude=.git", &clone, &tree]);
        assert!(!lab.path("data/saved").exists(), "our own half-written files were taken for somebody's");
    }
    assert!(ended > 4, "no run was ended early");
}
