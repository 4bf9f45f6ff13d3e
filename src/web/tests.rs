//! The whole web, from the socket to the store: a real store, a real gate, a daemon that only remembers what was asked
//! of it.
#![allow(clippy::disallowed_methods, reason = "tests are the daemon here: they run the web's threads")]

mod access;
mod api;
mod by_hand;
mod events;
mod hands_on;
mod metrics;
mod openapi;
mod page;
mod webhooks;

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::config::{Environment, Problem, Severity};
use crate::model::{Asked, Commit, CommitHash, CommitPrefix, DeploymentId, Ending, LogLevel, Trigger};
use crate::store::{BroughtUp, Outcome, ProjectSpec, RepositorySpec};

/// Nothing in these tests takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct FakeDaemon {
    catalog: Mutex<Arc<Catalog>>,
    docker_problem: Mutex<Option<String>>,
    wakes: AtomicUsize,
    checked: Mutex<Vec<RepositoryId>>,
    /// What runs, and is asked to end; with what happens at that moment.
    running: Mutex<HashMap<DeploymentId, Box<dyn FnOnce() + Send>>>,
    /// Notifiers of the repository `held` take as long as somebody else has this.
    held: Mutex<()>,
    holding: AtomicUsize,
    started_at: Instant,
    /// Who has the stack of `home/web` in their hands, and what takes it away from them.
    hands: Arc<Mutex<Option<(String, Limit)>>>,
    /// How many want no deployment to begin.
    pauses: Arc<AtomicUsize>,
}

struct Unpause(Arc<AtomicUsize>);

impl Drop for Unpause {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Hands that let go when this is dropped.
struct Hold(Arc<Mutex<Option<(String, Limit)>>>);

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = None;
    }
}

impl Daemon for FakeDaemon {
    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.lock().unwrap())
    }

    fn wake_worker(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }

    fn cancel_running(&self, _: RepositoryId, deployment: DeploymentId) -> bool {
        let Some(at_that_moment) = self.running.lock().unwrap().remove(&deployment) else { return false };
        at_that_moment();
        true
    }

    fn check_now(&self, id: RepositoryId) {
        self.checked.lock().unwrap().push(id);
    }

    fn forgotten(&self, _: &[RepositoryName]) {}

    fn docker_problem(&self) -> Option<String> {
        self.docker_problem.lock().unwrap().clone()
    }

    fn started_at(&self) -> Instant {
        self.started_at
    }

    fn notify_test(&self, repository: Option<&RepositoryName>) -> Result<Vec<NotifyResult>, String> {
        match repository {
            Some(name) if name.name == "nobody" => Err(format!("{name} is not configured")),
            Some(name) if name.name == "held" => {
                self.holding.fetch_add(1, Ordering::SeqCst);
                drop(self.held.lock().unwrap());
                Ok(Vec::new())
            }
            name => Ok(vec![NotifyResult {
                repository: name.map_or("home/media".to_owned(), RepositoryName::to_string),
                target: "discord".to_owned(),
                problem: None,
            }]),
        }
    }

    fn lend(&self, _: RepositoryId, who: &str, limit: &Limit) -> Result<Lent, String> {
        let mut hands = self.hands.lock().unwrap();
        if let Some((other, _)) = &*hands {
            return Err(format!("{other} works on it"));
        }
        *hands = Some((who.to_owned(), limit.clone()));
        let tools = Tools {
            program: "docker".to_owned(),
            arguments: vec!["compose".to_owned()],
            environment: Vec::new(),
            folder: "/srv".into(),
            files: Vec::new(),
            variables_file: None,
            variables: Vec::new(),
            dotenv: "SECRET=\"battery\"\n".to_owned(),
        };
        Ok(Lent { tools, hold: Box::new(Hold(Arc::clone(&self.hands))) })
    }

    fn release(&self, _: RepositoryId) -> Option<String> {
        let hands = self.hands.lock().unwrap();
        let (who, limit) = hands.as_ref()?;
        limit.cancel();
        Some(who.clone())
    }

    fn pause(&self) -> Box<dyn Send> {
        self.pauses.fetch_add(1, Ordering::SeqCst);
        Box::new(Unpause(Arc::clone(&self.pauses)))
    }

    fn running(&self) -> Vec<Busy> {
        let ids = self.running.lock().unwrap().keys().copied().collect::<Vec<_>>();
        let busy = |id| Busy { what: format!("deployment {id}"), ends_within: Duration::from_secs(900) };
        ids.into_iter().map(busy).collect()
    }

    fn spawn(&self, name: &str, job: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        std::thread::Builder::new().name(name.to_owned()).spawn(job).map(drop)
    }
}

struct Scene {
    address: SocketAddr,
    control: PathBuf,
    store: Arc<Store>,
    daemon: Arc<FakeDaemon>,
    stop: StopWeb,
    threads: Vec<JoinHandle<Result<(), String>>>,
    _folder: tempfile::TempDir,
}

fn spec(name: &str, repositories: &[&str]) -> ProjectSpec {
    let repository = |key: &&str| RepositorySpec {
        name: (*key).to_owned(),
        git_url: format!("https://git.example.com/{key}.git"),
        branch: "main".to_owned(),
        path: ".".to_owned(),
        local_path: format!("/srv/{key}"),
        check_interval_seconds: 300,
        is_manual: false,
        config_hash: "1".to_owned(),
    };
    ProjectSpec {
        name: name.to_owned(),
        description: Some("Services".to_owned()),
        config_file: format!("{name}.yaml"),
        repositories: repositories.iter().map(repository).collect(),
    }
}

impl Scene {
    fn new() -> Scene {
        Scene::with(&[])
    }

    /// The projects `home` (with `web` and `media`) and `lab` (empty), and these settings.
    fn with(settings: &[(&str, &str)]) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let (data, runtime) = (folder.path().join("data"), folder.path().join("run"));
        std::fs::create_dir(&data).unwrap();
        std::fs::create_dir(&runtime).unwrap();
        let store = Arc::new(Store::open(&data, 100).unwrap());
        store.sync(&[spec("home", &["web", "media"]), spec("lab", &[])], &[], Timestamp::now()).unwrap();
        let mut pairs = vec![
            ("PATH", std::env::var("PATH").unwrap()),
            ("Shiparr_DATA_PATH", data.display().to_string()),
            ("Shiparr_RUNTIME_PATH", runtime.display().to_string()),
        ];
        pairs.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let (settings, _) = Settings::from_environment(&Environment::from_pairs(pairs)).unwrap();
        let daemon = Arc::new(FakeDaemon {
            catalog: Mutex::default(),
            docker_problem: Mutex::default(),
            wakes: AtomicUsize::new(0),
            checked: Mutex::default(),
            running: Mutex::default(),
            held: Mutex::default(),
            holding: AtomicUsize::new(0),
            started_at: Instant::now(),
            hands: Arc::default(),
            pauses: Arc::default(),
        });
        let control = runtime.join(CONTROL_SOCKET);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let listeners = vec![Listener::Tcp(tcp), Listener::Control(listen_control(&control).unwrap())];
        let its_daemon = Arc::clone(&daemon) as Arc<dyn Daemon>;
        let context = Context::new(Arc::new(settings), Arc::clone(&store), its_daemon, Arc::default());
        let web = start(context, listeners).unwrap();
        let threads = web.threads.into_iter().map(|thread| std::thread::spawn(thread.run)).collect();
        Scene { address, control, store, daemon, stop: web.stop, threads, _folder: folder }
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request over TCP, with header lines such as `Accept: text/plain`.
    fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Reply {
        let host = if headers.iter().any(|line| line.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
        exchange(self.tcp(), method, path, host, headers, body)
    }

    /// How many clients can listen at once.
    fn places(&self) -> usize {
        self.stop.broadcast().places()
    }

    /// Whether anybody listens.
    fn listens(&self) -> bool {
        self.stop.broadcast().has_listeners()
    }

    fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], "")
    }

    fn control(&self, method: &str, path: &str, body: &str) -> Reply {
        exchange(UnixStream::connect(&self.control).unwrap(), method, path, "Host: localhost\r\n", &[], body)
    }

    fn id(&self, name: &str) -> RepositoryId {
        let name = RepositoryName { project: "home".to_owned(), name: name.to_owned() };
        self.store.repository_named(&name).unwrap().unwrap().id
    }

    fn queue(&self, name: &str) -> DeploymentId {
        self.store.enqueue(self.id(name), Trigger::Poll, Asked::default(), Timestamp::now()).unwrap().deployment_id
    }

    fn start_deployment(&self, name: &str) -> DeploymentId {
        let id = self.queue(name);
        self.store.start(id, "1", Timestamp::now()).unwrap();
        let hash: CommitHash = format!("{id:040x}").parse().unwrap();
        let commit = Commit { hash: hash.clone(), subject: "Say hello".into(), author: "Ada".into() };
        self.store.checked_out(id, &commit, &hash).unwrap();
        id
    }

    fn succeed(&self, name: &str) -> DeploymentId {
        let id = self.start_deployment(name);
        self.store.finish(id, &Outcome::Success, Timestamp::now()).unwrap();
        id
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            let outcome = thread.join();
            if !std::thread::panicking() {
                assert_eq!(outcome.unwrap(), Ok(()));
            }
        }
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}{}", self.head, self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    host: &str,
    headers: &[&str],
    body: &str,
) -> Reply {
    let headers: String = headers.iter().flat_map(|line| [line, "\r\n"]).collect();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let request = format!("{method} {path} HTTP/1.1\r\n{host}{headers}{length}Connection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

fn basic(user: &str, password: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Authorization: Basic {encoded}")
}
