//! A Git remote over http: `git http-backend` behind a small CGI server, with a password and with faults on demand.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::server::{Peer, Received, Server};

/// What the remote does instead of answering.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// It answers.
    None,
    /// It accepts the request and says nothing.
    Hang,
    /// It sends one byte of its answer a second.
    Drip,
    /// It closes the connection after that many bytes of its answer.
    CutAfter(usize),
    /// It sends the client to the same path below this URL.
    RedirectTo(String),
    /// It answers this status with an empty body.
    Status(u16),
}

/// Which requests a fault is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Requests {
    /// All.
    All,
    /// Those that ask for objects.
    Fetches,
}

struct Behaviour {
    login: Option<(String, String)>,
    fault: (Requests, Fault),
}

/// The remote; every bare repository below its folder is served.
pub struct GitServer {
    server: Server,
    behaviour: Arc<Mutex<Behaviour>>,
    host: String,
}

impl GitServer {
    /// Serves the bare repositories below `root` on loopback.
    pub fn start(root: &Path) -> GitServer {
        GitServer::start_on("127.0.0.1", root)
    }

    /// Serves them on this address.
    pub fn start_on(host: &str, root: &Path) -> GitServer {
        let behaviour = Arc::new(Mutex::new(Behaviour { login: None, fault: (Requests::All, Fault::None) }));
        let told = Arc::clone(&behaviour);
        let root = root.to_owned();
        let server = Server::start(host, move |request, peer| answer(&root, &told, request, peer));
        GitServer { server, behaviour, host: host.to_owned() }
    }

    /// `http://HOST:PORT/NAME.git`.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{name}.git", self.base())
    }

    /// `http://HOST:PORT`.
    pub fn base(&self) -> String {
        format!("http://{}:{}", self.host, self.port())
    }

    /// The port, also while it is stopped.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Asks everyone for this user and password from now on.
    pub fn ask_for(&self, user: &str, password: &str) {
        self.behaviour.lock().expect("nobody panics with it").login = Some((user.to_owned(), password.to_owned()));
    }

    /// Misbehaves from now on.
    pub fn fault(&self, requests: Requests, fault: Fault) {
        self.behaviour.lock().expect("nobody panics with it").fault = (requests, fault);
    }

    /// What arrived so far.
    pub fn requests(&self) -> Vec<Received> {
        self.server.requests()
    }

    /// Bytes sent so far.
    pub fn sent_bytes(&self) -> u64 {
        self.server.sent_bytes()
    }

    /// Refuses connections.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Accepts them again.
    pub fn start_again(&mut self) {
        self.server.start_again();
    }
}

fn answer(root: &Path, behaviour: &Mutex<Behaviour>, request: &Received, peer: &mut Peer) {
    let (login, (requests, fault)) = {
        let behaviour = behaviour.lock().expect("nobody panics with it");
        (behaviour.login.clone(), behaviour.fault.clone())
    };
    let is_meant = requests == Requests::All || request.text().contains("want ");
    let fault = if is_meant { fault } else { Fault::None };
    match &fault {
        Fault::Hang => return peer.hang(),
        Fault::RedirectTo(base) => {
            let location = format!("{base}{}", request.target);
            return peer.answer(302, &[("Location", &location)], b"");
        }
        Fault::Status(status) => return peer.answer(*status, &[], b""),
        Fault::None | Fault::Drip | Fault::CutAfter(_) => {}
    }
    if let Some((user, password)) = login {
        let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        if request.header("authorization") != Some(&expected) {
            return peer.answer(401, &[("WWW-Authenticate", "Basic realm=\"git\"")], b"");
        }
    }
    let whole = run_backend(root, request);
    match fault {
        Fault::Drip => {
            for byte in whole {
                if !peer.send(&[byte]) || !peer.pause(Duration::from_secs(1)) {
                    return;
                }
            }
        }
        Fault::CutAfter(length) => {
            peer.send(&whole[..length.min(whole.len())]);
        }
        _ => {
            peer.send(&whole);
        }
    }
}

/// Runs the CGI program and answers head and body as they go over the wire.
fn run_backend(root: &Path, request: &Received) -> Vec<u8> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("CONTENT_TYPE", request.header("content-type").unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    for (header, variable) in [("git-protocol", "GIT_PROTOCOL"), ("content-encoding", "HTTP_CONTENT_ENCODING")] {
        if let Some(value) = request.header(header) {
            command.env(variable, value);
        }
    }
    let mut child = command.spawn().expect("start git http-backend");
    let mut input = child.stdin.take().expect("it was piped");
    let body = request.body.clone();
    let writing = std::thread::spawn(move || {
        let _ = input.write_all(&body);
    });
    let output = child.wait_with_output().expect("git http-backend ends").stdout;
    let _ = writing.join();
    as_http(&output)
}

fn as_http(output: &[u8]) -> Vec<u8> {
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0);
    let (head, body) = (String::from_utf8_lossy(&output[..end]), output.get(end + 4..).unwrap_or_default());
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    let mut whole = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for line in head.lines().filter(|line| !line.starts_with("Status:") && !line.is_empty()) {
        whole.push_str(&format!("{line}\r\n"));
    }
    whole.push_str("\r\n");
    let mut whole = whole.into_bytes();
    whole.extend_from_slice(body);
    whole
}
