//! The child `shiparr git`, started as the daemon starts it: over ssh, past its limit, ended at any moment.
#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
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
            linked_secrets: None,
            adopt: false,
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

/// What lies in a tree: by path, content or target, mode and owner, and the inode of what is no folder.
fn look(tree: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, u32, u64)> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![tree.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else if metadata.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let inode = if metadata.is_dir() { 0 } else { metadata.ino() };
            found.insert(path, (content, metadata.mode(), metadata.uid(), inode));
        }
    }
    found
}

/// Fills a clone with a version in which every kind of thing differs from the other one.
fn fill(clone: &Path, is_second: bool) {
    for entry in fs::read_dir(clone).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.ends_with(".git") {
            true => {}
            false if entry.is_dir() => fs::remove_dir_all(entry).unwrap(),
            false => fs::remove_file(entry).unwrap(),
        }
    }
    let put = |path: String, content: String| {
        fs::create_dir_all(clone.join(&path).parent().unwrap()).unwrap();
        fs::write(clone.join(path), content).unwrap();
    };
    let word = if is_second { "second" } else { "first" };
    for number in 0..120_usize {
        let length = if is_second { 1500 - 10 * number } else { 12 * number };
        put(format!("rewritten/{number}"), format!("{word} {number} ").repeat(length));
        put(format!("{word}-only/{}/{number}", number % 7), format!("{word} {number}"));
        let (file, folder) = (format!("kind-{number}"), format!("kind-{number}/inside"));
        put(if (number % 2 == 0) == is_second { file } else { folder }, word.to_owned());
    }
    put("program".to_owned(), "#!/bin/sh\n".to_owned());
    let mode = if is_second { 0o755 } else { 0o644 };
    fs::set_permissions(clone.join("program"), fs::Permissions::from_mode(mode)).unwrap();
    std::os::unix::fs::symlink(word, clone.join("link")).unwrap();
}

#[test]
fn a_checkout_and_its_putting_back_may_both_be_ended_at_any_moment() {
    const ROUNDS: u64 = 20;
    let lab = Lab::new();
    let remote = lab.remote(&lab.path("remote.git").display().to_string());
    let clone = lab.path("clone");
    fill(&clone, false);
    let first = lab.push("version", "1");
    let whole = || Limit::after(Duration::from_secs(60));
    git::fetch_and_checkout(&remote, &lab.checkout(None), &lab.child, &whole()).unwrap();
    let checkout = lab.checkout(Some(first.parse().unwrap()));
    git::keep(&checkout).unwrap();
    let tree = lab.path("tree");
    for number in 0..20 {
        fs::write(tree.join(format!("rewritten/{number}")), "edited on the host").unwrap();
        fs::set_permissions(tree.join(format!("rewritten/{number}")), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::remove_file(tree.join("rewritten/50")).unwrap();
    fs::write(tree.join("first-only/3/data"), "precious").unwrap();
    fs::set_permissions(tree.join("first-only/4"), fs::Permissions::from_mode(0o700)).unwrap();
    let before = look(&tree);
    fill(&clone, true);
    lab.push("version", "2");

    // The second time is what the others will take: nothing is fetched any more.
    let mut time = Duration::ZERO;
    for _ in 0..2 {
        git::put_back(&checkout, &lab.child, &whole()).unwrap();
        let begin = Instant::now();
        git::fetch_and_checkout(&remote, &checkout, &lab.child, &whole()).unwrap();
        time = begin.elapsed();
    }
    let mut chance = u64::from(std::process::id()) | 1;
    let (mut ended_checkouts, mut ended_backs) = (0, 0);
    for round in 0..ROUNDS {
        let mut moment = || {
            // Knuth's constants.
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Limit::after(time.mul_f64((chance >> 33) as f64 / f64::from(1_u32 << 31)))
        };
        if round > 0 {
            let ended = git::fetch_and_checkout(&remote, &checkout, &lab.child, &moment());
            ended_checkouts += u32::from(ended.is_err());
        }
        for _ in 0..3 {
            ended_backs += u32::from(git::put_back(&checkout, &lab.child, &moment()).is_err());
        }
        let done = git::put_back(&checkout, &lab.child, &whole()).unwrap();
        assert_eq!(done.commit.unwrap().as_str(), first.as_str(), "round {round}");
        // Nothing stays behind but, at times, word of the copy that is not needed any more.
        assert!(
            done.notes.iter().all(|note| note.ends_with("lies in its place again")),
            "round {round}: {:?}",
            done.notes
        );
        let after = look(&tree);
        for (path, (content, mode, owner, inode)) in &before {
            let now = after.get(path).unwrap_or_else(|| panic!("round {round}: {} is gone", path.display()));
            assert_eq!((&now.0, now.1, now.2), (content, *mode, *owner), "round {round}: {}", path.display());
            let in_place = path.starts_with(tree.join("rewritten")) || path.ends_with("data");
            assert!(!in_place || now.3 == *inode, "round {round}: {} is another file", path.display());
        }
        let more: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
        assert!(more.is_empty(), "round {round}: {more:?}");
    }
    assert!(ended_checkouts > 1 && ended_backs > 1, "{ended_checkouts} and {ended_backs} were ended early");
    // Nothing of all that is in the way of the next one.
    let done = git::fetch_and_checkout(&remote, &checkout, &lab.child, &whole()).unwrap();
    assert!(matches!(done.done, git::Done::CheckedOut { changed_files } if changed_files > 400));
}

/// The child with a bound on the memory that is its own: whatever it wants beyond that, it does not get.
fn with_little_memory(lab: &Lab) -> Child {
    const MAX_KIB: u32 = 48 * 1024;
    let script = lab.path("with-little-memory");
    let program = lab.child.program.display();
    fs::write(&script, format!("#!/bin/sh\nulimit -d {MAX_KIB}\nexec {program} \"$@\"\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    Child { program: script, environment: lab.child.environment.clone() }
}

#[test]
fn a_file_larger_than_the_memory_is_deployed_changed_saved_and_put_back() {
    const LARGE_BYTES: u64 = 64 * 1024 * 1024;
    let lab = Lab::new();
    let child = with_little_memory(&lab);
    let limit = || Limit::after(Duration::from_secs(300));
    let server = SshServer::start(&lab);
    fs::write(lab.path("known_hosts"), server.line(&lab, "ed25519")).unwrap();
    let (large, tree) = (lab.path("clone/large"), lab.path("tree/large"));
    // Mostly holes: quick to make, and as large as any other file to who reads it.
    fs::File::create(&large).unwrap().set_len(LARGE_BYTES).unwrap();
    let write_at = |path: &Path, place: u64, text: &str| {
        fs::File::options().write(true).open(path).unwrap().write_all_at(text.as_bytes(), place).unwrap();
    };
    let is_same = || {
        let tree = tree.display().to_string();
        run(lab.folder.path(), "cmp", &[&large.display().to_string(), &tree]);
    };
    let mut checked_out = None;
    let by_path = lab.remote(&lab.path("remote.git").display().to_string());
    for (round, remote) in [&by_path, &by_path, &server.remote(&lab), &by_path].into_iter().enumerate() {
        write_at(&large, 1000 * (round as u64 + 1), "another version");
        lab.push("compose.yaml", &format!("# {round}"));
        if round == 1 {
            // One version is a delta of the other from now on.
            run(&lab.path("remote.git"), "git", &["repack", "-adfq"]);
        }
        if round == 3 {
            write_at(&tree, LARGE_BYTES / 2, "changed on the host");
        }
        let done = git::fetch_and_checkout(remote, &lab.checkout(checked_out.clone()), &child, &limit()).unwrap();
        is_same();
        checked_out = Some(done.commit.hash);
        if round < 3 {
            git::keep(&lab.checkout(None)).unwrap();
        }
    }
    assert_eq!(fs::read_dir(lab.path("data/saved/p/r")).unwrap().count(), 1);
    git::put_back(&lab.checkout(checked_out), &child, &limit()).unwrap();
    let back = fs::File::open(&tree).unwrap();
    let mut text = [0; 19];
    back.read_exact_at(&mut text, LARGE_BYTES / 2).unwrap();
    assert_eq!(&text, b"changed on the host");
    git::tidy(&lab.checkout(None), &child, &limit()).unwrap();
}
