//! What the tests of this module share: real repositories made by the `git` program, and a web server in front of `git
//! http-backend`.
#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::{Checkout, Credential, Done, Fetched, GitError, PutBack, Remote, run};
use crate::command::Limit;
use crate::http::Proxies;
use crate::model::CommitHash;
use crate::secrets::Secret;

/// Runs git in `folder` and gives its output.
pub fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"])
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs(["GIT_AUTHOR", "GIT_COMMITTER"].map(|who| (format!("{who}_NAME"), "A Person")))
        .envs(["GIT_AUTHOR", "GIT_COMMITTER"].map(|who| (format!("{who}_EMAIL"), "person@example.com")))
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A limit that no test reaches.
pub fn limit() -> Limit {
    Limit::after(Duration::from_secs(60))
}

pub fn remote(url: &str) -> Remote {
    Remote {
        url: url.parse().unwrap(),
        branch: "main".to_owned(),
        credential: None,
        insecure_http: false,
        ca_file: None,
        ssh_key: None,
        ssh_key_passphrase: None,
        known_hosts: Vec::new(),
        proxies: Proxies::default(),
    }
}

pub fn credential(secret: &str) -> Option<Credential> {
    Some(Credential { user: "oauth2".to_owned(), secret: Secret::new(secret), source: "TEST_TOKEN".to_owned() })
}

/// What a fetch did that has checked out.
#[derive(Debug)]
pub struct Deployed {
    pub changed_files: u64,
    fetched: Fetched,
}

impl std::ops::Deref for Deployed {
    type Target = Fetched;

    fn deref(&self) -> &Fetched {
        &self.fetched
    }
}

/// A remote repository, somebody's clone of it, and a host that follows it.
pub struct Lab {
    pub folder: TempDir,
    pub remote: RefCell<Remote>,
    pub known_commit: RefCell<Option<CommitHash>>,
}

impl Lab {
    pub fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        git(&root, &["init", "-q", "--bare", "remote.git"]);
        git(&root, &["clone", "-q", "remote.git", "clone"]);
        let remote = RefCell::new(remote(&root.join("remote.git").display().to_string()));
        Lab { folder, remote, known_commit: RefCell::default() }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap()
    }

    pub fn clone(&self) -> PathBuf {
        self.root().join("clone")
    }

    /// A path in the working tree.
    pub fn tree(&self, path: &str) -> PathBuf {
        self.root().join("tree").join(path)
    }

    /// Writes a file into the clone.
    pub fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.clone().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Writes a file into the working tree.
    pub fn host_puts(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.tree(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Commits all of the clone and pushes it.
    pub fn push(&self, message: &str) -> String {
        git(&self.clone(), &["add", "-A", "-f"]);
        git(&self.clone(), &["commit", "-q", "--allow-empty", "-m", message]);
        git(&self.clone(), &["push", "-q", "-f", "origin", "HEAD:main"]);
        git(&self.clone(), &["rev-parse", "HEAD"])
    }

    pub fn checkout_request(&self) -> Checkout {
        let root = self.root();
        Checkout {
            store: root.join("data/git/p/r.git"),
            local_path: root.join("tree"),
            checked_out: self.known_commit.borrow().clone(),
            saved: root.join("data/saved/p/r"),
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

    /// Fetches and checks out as the child does.
    pub fn deploy(&self) -> Result<Deployed, GitError> {
        self.deploy_as(&self.checkout_request())
    }

    /// Fetches and checks out as the child does, something else than usual.
    pub fn deploy_as(&self, checkout: &Checkout) -> Result<Deployed, GitError> {
        let fetched = run::fetch_and_checkout(&self.remote.borrow(), checkout, &limit())?;
        let Done::CheckedOut { changed_files } = fetched.done else { panic!("it was skipped: {fetched:?}") };
        self.known_commit.replace(Some(fetched.commit.hash.clone()));
        Ok(Deployed { changed_files, fetched })
    }

    /// Puts back as the child does.
    pub fn put_back(&self) -> PutBack {
        run::put_back(&self.checkout_request()).unwrap()
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.tree(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The files that were kept, by their path in the folder of their time.
    pub fn saved(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut folders: Vec<PathBuf> = list(&self.root().join("data/saved/p/r"));
        let tops = folders.clone();
        while let Some(path) = folders.pop() {
            if path.is_dir() && !path.is_symlink() {
                folders.extend(list(&path));
            } else {
                let top = tops.iter().find(|top| path.starts_with(top)).unwrap();
                let name = path.strip_prefix(top).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap_or_default()));
            }
        }
        found.sort();
        found
    }
}

fn list(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub authorization: Option<String>,
    pub answer_bytes: usize,
}

/// How the server behaves.
#[derive(Clone, Default)]
pub struct Manners {
    /// `user:password` that is asked for.
    pub password: Option<String>,
    /// Everything is answered with this status line and these headers.
    pub answer: Option<String>,
    /// Requests for a path that begins with the first are sent to the second.
    pub redirect: Option<(String, String)>,
    /// Speaks the old protocol only.
    pub old: bool,
    /// One byte of an endless answer every 50 ms.
    pub drips: bool,
}

/// A web server in front of `git http-backend`, gone with the last handle's process.
pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    pub manners: Arc<Mutex<Manners>>,
}

impl Server {
    pub fn start(folder: &Path, manners: Manners) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, manners) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(manners)));
        let server = Server { address, seen: Arc::clone(&seen), manners: Arc::clone(&manners) };
        let folder = folder.to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, seen, manners) = (folder.clone(), Arc::clone(&seen), manners.lock().unwrap().clone());
                std::thread::spawn(move || serve(stream, &folder, &seen, &manners));
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// What was asked since the last call.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// Answers one request and closes; a client that hangs up is none of its concern.
fn serve(stream: TcpStream, folder: &Path, seen: &Mutex<Vec<Seen>>, manners: &Manners) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
    let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let authorization = header("authorization");
    let answer = if manners.drips {
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-result\r\n\r\n".to_vec()
    } else if let Some((from, to)) = manners.redirect.as_ref().filter(|(from, _)| path.starts_with(from)) {
        let location = format!("{to}{}", &path[from.len()..]);
        format!("HTTP/1.1 307 Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .into_bytes()
    } else if let Some(answer) = &manners.answer {
        format!("{answer}\r\nConnection: close\r\n\r\n").into_bytes()
    } else if manners.password.is_some() && authorization != manners.password.as_deref().map(basic) {
        b"HTTP/1.1 401 Who?\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            .to_vec()
    } else {
        let protocol = header("git-protocol").filter(|_| !manners.old).unwrap_or_default();
        http_backend(folder, method, path, query, &header("content-type").unwrap_or_default(), &protocol, &body)
    };
    seen.lock().unwrap().push(Seen { line: line.trim().to_owned(), authorization, answer_bytes: answer.len() });
    let mut stream = stream;
    stream.write_all(&answer).ok()?;
    if !manners.drips {
        return Some(());
    }
    loop {
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(b"0").ok()?;
    }
}

fn basic(user_and_password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user_and_password))
}

fn http_backend(
    folder: &Path,
    method: &str,
    path: &str,
    query: &str,
    kind: &str,
    protocol: &str,
    body: &[u8],
) -> Vec<u8> {
    let mut child = Command::new("git")
        .arg("http-backend")
        .envs([("GIT_HTTP_EXPORT_ALL", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .envs([("REQUEST_METHOD", method), ("PATH_INFO", path), ("QUERY_STRING", query), ("CONTENT_TYPE", kind)])
        .envs([("GIT_PROTOCOL", protocol), ("CONTENT_LENGTH", &body.len().to_string())])
        .env("GIT_PROJECT_ROOT", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(body).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0);
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    let body = &output[(end + 4).min(output.len())..];
    let length = body.len();
    let mut answer =
        format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").into_bytes();
    answer.extend_from_slice(body);
    answer
}
