//! A small HTTP server for the other side of the daemon's own requests: it records what arrives, and can be stopped and
//! started again.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Json;
use super::wait::wait_until;

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// `GET`, `POST`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Received {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What answers a request; it writes the whole answer, or goes on for as long as [`Server`] runs.
type Handler = dyn Fn(&Received, &mut Peer) + Send + Sync;

/// The client's connection, as a handler sees it.
pub struct Peer {
    stream: TcpStream,
    shared: Arc<Shared>,
}

impl Peer {
    /// Sends bytes; `false` when the client is gone.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = self.stream.write_all(bytes).and_then(|()| self.stream.flush()).is_ok();
        if sent {
            self.shared.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        sent
    }

    /// Sends a whole answer.
    pub fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
        self.send(body);
    }

    /// Pauses; `false` when the server was stopped meanwhile.
    pub fn pause(&self, time: Duration) -> bool {
        let step = Duration::from_millis(20).min(time);
        let mut left = time;
        while !left.is_zero() && !self.shared.stopping.load(Ordering::SeqCst) {
            thread::sleep(step);
            left = left.saturating_sub(step);
        }
        !self.shared.stopping.load(Ordering::SeqCst)
    }

    /// Says nothing until the server is stopped.
    pub fn hang(&self) {
        while self.pause(Duration::from_secs(1)) {}
    }
}

struct Shared {
    handler: Box<Handler>,
    requests: Mutex<Vec<Received>>,
    sent: AtomicU64,
    stopping: AtomicBool,
}

/// The server; it ends when dropped.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a free port of `host`.
    pub fn start(host: &str, handler: impl Fn(&Received, &mut Peer) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind((host, 0)).expect("bind a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            sent: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        let accepting = Some(accept(listener, Arc::clone(&shared)));
        Server { shared, address, accepting }
    }

    /// The port, also while it is stopped.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What arrived so far.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.requests.lock().expect("nobody panics with it").clone()
    }

    /// Bytes sent so far, heads included.
    pub fn sent_bytes(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Refuses connections from now on, and ends the ones that are open.
    pub fn stop(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        // The accepting thread sees the flag with the next connection, which is this one.
        let _ = TcpStream::connect(self.address);
        accepting.join().expect("the accepting thread does not panic");
    }

    /// Listens on the same port again.
    pub fn start_again(&mut self) {
        assert!(self.accepting.is_none(), "it was not stopped");
        self.shared.stopping.store(false, Ordering::SeqCst);
        let listener =
            wait_until(Duration::from_secs(10), "the port to be free again", || TcpListener::bind(self.address).ok());
        self.accepting = Some(accept(listener, Arc::clone(&self.shared)));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut open: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
        for stream in listener.incoming().flatten() {
            if shared.stopping.load(Ordering::SeqCst) {
                break;
            }
            let Ok(kept) = stream.try_clone() else { continue };
            let shared = Arc::clone(&shared);
            open.push((kept, thread::spawn(move || serve(stream, shared))));
            open.retain(|(_, thread)| !thread.is_finished());
        }
        for (stream, thread) in open {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    })
}

fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    let Ok(writing) = stream.try_clone() else { return };
    let mut peer = Peer { stream: writing, shared: Arc::clone(&shared) };
    let Some(request) = read_request(&mut BufReader::new(stream), &mut peer) else { return };
    shared.requests.lock().expect("nobody panics with it").push(request.clone());
    (shared.handler)(&request, &mut peer);
    let _ = peer.stream.shutdown(Shutdown::Both);
}

fn read_request(reader: &mut impl BufRead, peer: &mut Peer) -> Option<Received> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Received { method, target, headers, body: Vec::new() };
    if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    if request.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let begin = request.body.len();
            request.body.resize(begin + length, 0);
            reader.read_exact(&mut request.body[begin..]).ok()?;
            reader.read_line(&mut String::new()).ok()?;
            if length == 0 {
                break;
            }
        }
    } else if let Some(length) = request.header("content-length").and_then(|value| value.parse().ok()) {
        request.body.resize(length, 0);
        reader.read_exact(&mut request.body).ok()?;
    }
    Some(request)
}

/// Receives messages and health probes: answers each request with a status that can be changed, or never.
pub struct Receiver {
    server: Server,
    status: Arc<AtomicU16>,
}

impl Receiver {
    /// Answers 200 until told otherwise.
    pub fn start() -> Receiver {
        let status = Arc::new(AtomicU16::new(200));
        let told = Arc::clone(&status);
        let server = Server::start("127.0.0.1", move |_, peer| match told.load(Ordering::SeqCst) {
            0 => peer.hang(),
            status => peer.answer(status, &[("Content-Type", "text/plain")], b"received\n"),
        });
        Receiver { server, status }
    }

    /// Answers this from now on.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Answers nothing from now on.
    pub fn hang(&self) {
        self.status.store(0, Ordering::SeqCst);
    }

    /// `http://127.0.0.1:PORT/path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.server.port())
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.server.port())
    }

    /// What arrived so far.
    pub fn requests(&self) -> Vec<Received> {
        self.server.requests()
    }

    /// The JSON bodies of what arrived at `path`.
    pub fn messages(&self, path: &str) -> Vec<Json> {
        let at_path = |request: &Received| request.method == "POST" && request.target == path;
        self.requests()
            .iter()
            .filter(|request| at_path(request))
            .map(|request| serde_json::from_slice(&request.body).expect("a message is JSON"))
            .collect()
    }
}
