//! The built binary as a process of its own: temporary folders, an environment that is set exactly, and its end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::Json;
use super::fake::Fake;
use super::http::{Answer, exchange};
use super::project::{Entry, project_file};
use super::wait::{MINUTE, SHORT, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_shiparr");
/// Longer than every answer that is not a stream.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A machine's worth of folders, and the daemon on it while it runs. Killed, and its children with it, when dropped.
pub struct Daemon {
    folder: TempDir,
    runtime: TempDir,
    port: u16,
    environment: BTreeMap<String, String>,
    /// A shell line that ends by running its arguments, for limits that only a parent can set.
    wrapper: Option<String>,
    /// Sockets that it finds as its first descriptors after standard error.
    handed_over: Vec<OwnedFd>,
    child: Option<Child>,
}

impl Daemon {
    /// Folders and settings; nothing runs yet.
    pub fn new() -> Daemon {
        let folder = TempDir::with_prefix("shiparr-test-").expect("make a folder");
        for name in ["config", "data", "home", "deployments"] {
            fs::create_dir(folder.path().join(name)).expect("make a folder");
        }
        let shared_memory = Path::new("/dev/shm");
        let runtime = if shared_memory.is_dir() { shared_memory.to_owned() } else { std::env::temp_dir() };
        let runtime = TempDir::with_prefix_in("shiparr-test-", runtime).expect("make a folder in memory");
        let mut daemon = Daemon {
            folder,
            runtime,
            port: free_port(),
            environment: BTreeMap::new(),
            wrapper: None,
            handed_over: Vec::new(),
            child: None,
        };
        let settings = [
            ("Shiparr_PORT", daemon.port.to_string()),
            ("Shiparr_CONFIG_PATH", text(&daemon.config())),
            ("Shiparr_DATA_PATH", text(&daemon.data())),
            ("Shiparr_RUNTIME_PATH", text(daemon.runtime())),
            ("Shiparr_LOG_LEVEL", "DEBUG".to_owned()),
            ("HOME", text(&daemon.home())),
            ("PATH", std::env::var("PATH").expect("PATH is set")),
        ];
        daemon.environment.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        for name in ["LLVM_PROFILE_FILE", "CARGO_LLVM_COV"] {
            // Coverage follows child processes through these.
            if let Ok(value) = std::env::var(name) {
                daemon.environment.insert(name.to_owned(), value);
            }
        }
        daemon
    }

    /// A running one with one project, `home`.
    pub fn with(entries: &[Entry]) -> Daemon {
        let mut daemon = Daemon::new();
        daemon.project("home", entries);
        daemon.start();
        daemon
    }

    // ---- Before the start ----

    /// Sets a variable of its environment.
    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Daemon {
        self.environment.insert(name.to_owned(), value.as_ref().to_string_lossy().into_owned());
        self
    }

    /// Puts the stand-ins before the real programs.
    pub fn use_fake(&mut self, fake: &Fake) -> &mut Daemon {
        let path = format!("{}:{}", fake.bin().display(), self.environment["PATH"]);
        self.env("PATH", path).env("DOCKER_CONFIG", fake.docker_config())
    }

    /// Runs it under a shell line that ends in `exec "$@"`, for example after `ulimit -n 64;`.
    pub fn under(&mut self, line: &str) -> &mut Daemon {
        self.wrapper = Some(format!("{line} exec \"$@\""));
        self
    }

    /// Hands these sockets (two at most) over as systemd does, at each start anew; `pid`: to whom, for a shell.
    pub fn hand_over(&mut self, sockets: Vec<OwnedFd>, pid: &str) -> &mut Daemon {
        let count = sockets.len();
        self.handed_over = sockets;
        // They come in as standard input and output, so that no other test's children inherit them.
        self.under(&format!(
            "exec 3<&0 4<&1 </dev/null >&2; export LISTEN_PID={pid} LISTEN_FDS={count} LISTEN_FDNAMES=first:second;"
        ))
    }

    /// Gives its folders to the user `nobody` and runs it as that one, with the right to talk to Docker.
    pub fn as_nobody(&mut self) -> &mut Daemon {
        use std::os::unix::fs::{MetadataExt, chown};
        const NOBODY: u32 = 65534;
        let names = ["config", "data", "home", "deployments"].map(|name| self.folder.path().join(name));
        for folder in names.iter().map(PathBuf::as_path).chain([self.folder.path(), self.runtime.path()]) {
            chown(folder, Some(NOBODY), Some(NOBODY)).expect("change the owner");
        }
        let docker = fs::metadata("/var/run/docker.sock").expect("the engine's socket is there").gid();
        self.under(&format!("exec setpriv --reuid={NOBODY} --regid={NOBODY} --groups={docker} -- \"$@\";"))
    }

    /// Writes the project file `NAME.yaml` in one step.
    pub fn project(&self, name: &str, entries: &[Entry]) {
        self.project_text(name, &project_file(name, "", entries));
    }

    /// Writes the project file of a running daemon anew, and waits until it is in force.
    #[track_caller]
    pub fn change_project(&self, name: &str, entries: &[Entry]) {
        static REVISION: AtomicU32 = AtomicU32::new(1);
        let mark = format!("revision {}", REVISION.fetch_add(1, Ordering::Relaxed));
        self.project_text(name, &project_file(name, &format!("description: {mark}\n"), entries));
        wait_until(SHORT, "the changed project file to be in force", || {
            let projects = self.get("/api/projects");
            projects.as_array()?.iter().find(|project| project["description"] == mark.as_str()).map(drop)
        });
    }

    /// Writes this text as the project file `NAME.yaml` in one step.
    pub fn project_text(&self, name: &str, text: &str) {
        let new = self.folder.path().join("project.new");
        fs::write(&new, text).expect("write a project file");
        fs::rename(new, self.config().join(format!("{name}.yaml"))).expect("put it in place");
    }

    // ---- Its folders ----

    /// Project files.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// Its data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A home of its own.
    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Where `local_path`s can lie.
    pub fn deployments(&self) -> PathBuf {
        self.folder.path().join("deployments")
    }

    /// The default working tree of a repository.
    pub fn tree(&self, project: &str, repository: &str) -> PathBuf {
        self.data().join("deployments").join(project).join(repository)
    }

    /// Secrets and the control socket.
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// All its folders but the runtime one.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    // ---- Its life ----

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn(&["run"]);
        wait_until(SHORT, "the daemon to answer /api/health", || {
            let ended = self.child.as_mut().expect("it was started").try_wait().expect("ask for its end");
            assert!(ended.is_none(), "the daemon ended at once with {}:\n{}", ended.expect("it ended"), self.log());
            self.try_request("GET", "/api/health", &[], b"").ok().filter(|answer| answer.status == 200)
        });
    }

    /// Starts it without waiting, with these arguments.
    pub fn spawn(&mut self, args: &[&str]) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open the log");
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        let mut sockets = self.handed_over.iter().map(|socket| socket.try_clone().expect("share a socket"));
        sockets.next().map(|socket| command.stdin(socket));
        sockets.next().map(|socket| command.stdout(socket));
        self.child = Some(command.spawn().expect("start the daemon"));
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Its memory, in KiB.
    #[track_caller]
    pub fn resident_kib(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the field is there");
        line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number of KiB")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid fits")).expect("a pid is not 0");
        kill_process(pid, signal).expect("send a signal");
    }

    /// Kills it without a chance to clean up.
    pub fn kill_9(&mut self) {
        self.signal(Signal::KILL);
        let mut child = self.child.take().expect("it runs");
        child.wait().expect("wait for its end");
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_exit(MINUTE)
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let status = wait_until(limit, "the daemon to end", || child.try_wait().expect("ask for its end"));
        assert_ne!(status.signal(), Some(6), "it aborted");
        status
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("ask for its end").is_none())
    }

    /// Ends it and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Runs a verb of the command line in the daemon's environment to its end.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().expect("start shiparr")
    }

    /// A command that runs the binary in the daemon's environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.wrapper {
            Some(line) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", line, "sh", BINARY]);
                command
            }
            None => Command::new(BINARY),
        };
        command.args(args).env_clear().envs(&self.environment).current_dir(self.folder.path());
        command
    }

    // ---- Talking to it ----

    /// A connection to its TCP port.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect to the daemon");
        stream.set_read_timeout(Some(ANSWER_LIMIT)).expect("limit reading");
        stream.set_write_timeout(Some(ANSWER_LIMIT)).expect("limit writing");
        stream
    }

    /// Sends these bytes and reads one answer.
    pub fn raw(&self, request: &[u8]) -> Answer {
        exchange(self.connect(), request).expect("an answer")
    }

    /// Sends a request with these headers beside `Host`.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_request(method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        exchange(stream, &request_bytes(method, path, headers, body))
    }

    /// Sends a request over the control socket.
    pub fn request_by_socket(&self, method: &str, path: &str) -> Answer {
        let stream = UnixStream::connect(self.runtime().join("shiparr.sock")).expect("connect to the control socket");
        stream.set_read_timeout(Some(ANSWER_LIMIT)).expect("limit reading");
        exchange(stream, &request_bytes(method, path, &[], b"")).expect("an answer")
    }

    /// Has a repository's remote asked now, as its timer does; without waiting for what that finds.
    #[track_caller]
    pub fn check_now(&self, name: &str) {
        let body = format!("{{\"id\": {}}}", self.repository(name)["id"]);
        let stream = UnixStream::connect(self.runtime().join("shiparr.sock")).expect("connect to the control socket");
        let request = request_bytes("POST", "/control/check", &[], body.as_bytes());
        let answer = exchange(stream, &request).expect("an answer");
        assert_eq!(answer.status, 204, "check {name}: {}", answer.text());
    }

    /// The JSON of a GET that must be answered 200.
    #[track_caller]
    pub fn get(&self, path: &str) -> Json {
        let answer = self.request("GET", path, &[], b"");
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.text());
        answer.json()
    }

    /// A POST without a body.
    pub fn post(&self, path: &str) -> Answer {
        self.request("POST", path, &[], b"")
    }

    // ---- Repositories, as `home/NAME` unless another project is named ----

    /// A repository's JSON.
    #[track_caller]
    pub fn repository(&self, name: &str) -> Json {
        self.get(&repository_path(name))
    }

    /// Its deployments, newest first.
    #[track_caller]
    pub fn deployments_of(&self, name: &str) -> Vec<Json> {
        let list = self.get(&format!("{}/deployments", repository_path(name)));
        list.as_array().expect("a list").clone()
    }

    /// Asks for a deployment, which must be accepted; answers its id.
    #[track_caller]
    pub fn deploy(&self, name: &str) -> i64 {
        let answer = self.post(&format!("{}/deploy", repository_path(name)));
        assert_eq!(answer.status, 202, "deploy {name}: {}", answer.text());
        answer.json()["deployment_id"].as_i64().expect("an id")
    }

    /// A deployment's JSON.
    #[track_caller]
    pub fn deployment(&self, id: i64) -> Json {
        self.get(&format!("/api/deployments/{id}"))
    }

    /// The deployment once it has ended.
    #[track_caller]
    pub fn ended(&self, id: i64) -> Json {
        wait_until(MINUTE, &format!("deployment {id} to end"), || Some(self.deployment(id)).filter(is_final))
    }

    /// The deployment once it has ended, which must be with success.
    #[track_caller]
    pub fn succeeded(&self, id: i64) -> Json {
        let deployment = self.ended(id);
        assert_eq!(deployment["status"], "success", "{deployment}\n{}", self.log_of(id));
        deployment
    }

    /// The deployment once it has ended, which must be with a failure.
    #[track_caller]
    pub fn failed(&self, id: i64) -> Json {
        let deployment = self.ended(id);
        assert_eq!(deployment["status"], "failed", "{deployment}\n{}", self.log_of(id));
        deployment
    }

    /// The deployment once it has failed, with an error that begins with this word or words.
    #[track_caller]
    pub fn failed_as(&self, id: i64, first_words: &str) -> Json {
        let deployment = self.failed(id);
        let error = deployment["error"].as_str().unwrap_or_default();
        assert!(error.starts_with(first_words), "{error}");
        println!("deployment {id}: {error}");
        deployment
    }

    /// Waits until a deployment has nothing to do any more but to wait for its stack.
    #[track_caller]
    pub fn wait_until_up(&self, id: i64) {
        wait_until(MINUTE, "its `up` to have ended", || self.log_of(id).contains(" up (").then_some(()));
    }

    /// Waits until a deployment of the repository is there and has the status.
    #[track_caller]
    pub fn wait_for(&self, name: &str, status: &str) -> Json {
        wait_until(MINUTE, &format!("a deployment of {name} to be {status}"), || {
            self.deployments_of(name).into_iter().find(|deployment| deployment["status"] == status)
        })
    }

    /// Waits until `commit` was deployed with success.
    #[track_caller]
    pub fn wait_for_commit(&self, name: &str, commit: &str) -> Json {
        wait_until(MINUTE, &format!("{name} to be deployed at {commit}"), || {
            Some(self.repository(name)).filter(|repository| repository["last_commit_hash"] == commit)
        })
    }

    /// Waits until a deployment of `commit` has ended, however it did.
    #[track_caller]
    pub fn ended_at(&self, name: &str, commit: &str) -> Json {
        wait_until(MINUTE, &format!("a deployment of {name} at {commit} to end"), || {
            let of_commit = |deployment: &Json| deployment["commit_hash"] == commit && is_final(deployment);
            self.deployments_of(name).into_iter().find(of_commit)
        })
    }

    /// Waits until a deployment that took `commit`, or that failed before it had it, has ended; the newest one.
    #[track_caller]
    pub fn ended_at_or_failed(&self, name: &str, commit: &str) -> Json {
        wait_until(MINUTE, &format!("a deployment of {name} at {commit} to end"), || {
            let newest = self.deployments_of(name).into_iter().next()?;
            let failed_early = newest["commit_hash"].is_null() && newest["status"] == "failed";
            Some(newest).filter(|newest| is_final(newest) && (failed_early || newest["commit_hash"] == commit))
        })
    }

    /// Waits until the remote was asked `count` times more.
    #[track_caller]
    pub fn wait_for_checks(&self, name: &str, count: usize) {
        let checked_at = || self.repository(name)["last_checked_at"].clone();
        for _ in 0..count {
            let before = checked_at();
            wait_until(SHORT, &format!("another check of {name}"), || Some(()).filter(|()| checked_at() != before));
        }
    }

    /// A deployment's log.
    #[track_caller]
    pub fn log_of(&self, id: i64) -> String {
        self.get(&format!("/api/deployments/{id}/logs"))["logs"].as_str().expect("a log is text").to_owned()
    }

    /// It answers, and so do its database and its threads.
    #[track_caller]
    pub fn assert_well(&mut self) {
        let health = self.get("/api/health");
        assert!(health["status"] == "ok" || health["status"] == "degraded", "{health}");
        assert!(self.is_running(), "the daemon ended");
    }

    /// It answers, although its database may not be writable.
    #[track_caller]
    pub fn assert_well_or_unusable(&mut self) {
        let answer = self.request("GET", "/api/health", &[], b"");
        assert!(answer.status == 200 || answer.status == 503, "{}", answer.text());
        assert!(self.is_running(), "the daemon ended");
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("shiparr.log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        kill_those_at_home(&self.home());
        if std::thread::panicking() {
            eprintln!("---- log of the daemon ----\n{}\n---- end of the log ----", self.log());
        }
    }
}

/// `/api/projects/PROJECT/repositories/NAME` of `PROJECT/NAME`, or of `home/NAME`.
fn repository_path(name: &str) -> String {
    let (project, name) = name.split_once('/').unwrap_or(("home", name));
    format!("/api/projects/{project}/repositories/{name}")
}

fn is_final(deployment: &Json) -> bool {
    !matches!(deployment["status"].as_str(), Some("pending" | "running"))
}

fn request_bytes(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("Host: localhost\r\n");
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Ends what a killed program left behind: processes whose HOME is the one that only it had.
pub fn kill_those_at_home(home: &Path) {
    let mark = format!("HOME={}\0", home.display());
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(&mark) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
