//! The gate in front of a real tiny_http, with clients of every kind.
#![allow(clippy::disallowed_methods, reason = "tests run the gate and its clients in threads of their own")]

mod enduring;
mod listening;
mod stopping;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;
use crate::web::{HEADER_LISTENS, HEADER_REQUEST};

/// Nothing in these tests takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running gate; tiny_http behind it answers `/echo` with what it was asked, `/large` with a mebibyte, streams
/// `/stream` until its client is gone, and makes who asks for `/listen?NUMBER` a listener of what is told after that.
struct Running {
    address: SocketAddr,
    control: PathBuf,
    /// The TCP socket as whoever handed it over still has it.
    twin: TcpListener,
    stop: Stop,
    gate: Option<JoinHandle<io::Result<()>>>,
    server: Arc<tiny_http::Server>,
    handlers: Vec<JoinHandle<()>>,
    broadcast: Arc<Broadcast>,
    ended_streams: mpsc::Receiver<u64>,
    _folder: tempfile::TempDir,
}

const LIMITS: Limits = Limits {
    connections: 3000,
    short: 4,
    upstreams: 8,
    first_request: PATIENCE,
    listeners: 4,
    queue: PATIENCE,
    stop: Duration::from_millis(500),
    stop_first_request: Duration::ZERO,
    stop_next_request: Duration::ZERO,
};

impl Running {
    fn start(limits: Limits) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http.sock");
        let server = Arc::new(tiny_http::Server::http_unix(&path).unwrap());
        let control = folder.path().join("control.sock");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, twin) = (tcp.local_addr().unwrap(), tcp.try_clone().unwrap());
        let presence = Arc::new(Presence::default());
        let broadcast = Arc::new(Broadcast::default());
        let listeners = vec![Listener::Tcp(tcp), Listener::Control(UnixListener::bind(&control).unwrap())];
        let gate = Gate::new(listeners, path, limits, Arc::clone(&presence), Arc::clone(&broadcast)).unwrap();
        let stop = gate.stop_handle();
        let (ended, ended_streams) = mpsc::channel();
        let handlers = (0..2)
            .map(|_| {
                let (server, presence, ended) = (Arc::clone(&server), Arc::clone(&presence), ended.clone());
                let broadcast = Arc::clone(&broadcast);
                std::thread::spawn(move || {
                    while let Ok(request) = server.recv() {
                        handle(request, &presence, &broadcast, &ended);
                    }
                })
            })
            .collect();
        Running {
            address,
            control,
            twin,
            stop,
            gate: Some(std::thread::spawn(move || gate.run())),
            server,
            handlers,
            broadcast,
            ended_streams,
            _folder: folder,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes on a connection of their own and reads until the gate closes it.
    fn send(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn is_well(&self) {
        let started = Instant::now();
        let answer = self.send(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        let outcome = self.gate.take().map(JoinHandle::join);
        self.handlers.iter().for_each(|_| self.server.unblock());
        self.handlers.drain(..).for_each(|handler| handler.join().unwrap());
        if !std::thread::panicking() {
            outcome.unwrap().unwrap().unwrap();
        }
    }
}

fn handle(mut request: tiny_http::Request, presence: &Arc<Presence>, broadcast: &Broadcast, ended: &mpsc::Sender<u64>) {
    let id = request.headers().iter().find(|header| header.field.equiv(HEADER_REQUEST));
    let id: u64 = id.map_or(0, |id| id.value.as_str().parse().unwrap());
    if let Some(number) = request.url().strip_prefix("/listen?") {
        let header = tiny_http::Header::from_bytes(HEADER_LISTENS, number).unwrap();
        let status = if broadcast.reserve(id) { 200 } else { 503 };
        let answer = tiny_http::Response::from_string("begins\n").with_status_code(status);
        let answer = answer.with_chunked_threshold(usize::MAX);
        let _ = request.respond(if status == 200 { answer.with_header(header) } else { answer });
        return;
    }
    if request.url() == "/stream" {
        let watch = presence.watch(id);
        let ended = ended.clone();
        std::thread::spawn(move || {
            let mut writer = request.into_writer();
            let _ = writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
            let _ = writer.flush();
            let since = Instant::now();
            while !watch.is_gone() && since.elapsed() < PATIENCE {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            drop(writer);
            ended.send(id).unwrap();
        });
        return;
    }
    if request.url() == "/large" {
        let body = tiny_http::Response::from_data(vec![b'x'; 1 << 20]).with_chunked_threshold(usize::MAX);
        let _ = request.respond(body);
        return;
    }
    let mut text = format!("{} {}\n", request.method(), request.url());
    for header in request.headers() {
        text += &format!("{header}\n");
    }
    request.as_reader().read_to_string(&mut text).unwrap();
    let _ = request.respond(tiny_http::Response::from_string(text).with_chunked_threshold(usize::MAX));
}

/// Reads one answer of known length and leaves what follows.
fn read_answer(reader: &mut impl BufRead) -> (String, String) {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "closed after {head:?}");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

const HEAD: &str = "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn requests_pass_with_their_bodies_and_say_where_they_came_from() {
    let running = Running::start(LIMITS);
    let answer = running.send(
        b"POST /echo?x=1 HTTP/1.1\r\nHost: a\r\nX-Shiparr-Listener: control\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    );
    assert!(answer.contains("POST /echo?x=1\nHost: a\nX-Shiparr-Listener: tcp\n"), "{answer}");
    assert!(answer.contains("X-Shiparr-Peer: 127.0.0.1\n") && answer.ends_with("\nhello"), "{answer}");
    let mut control = UnixStream::connect(&running.control).unwrap();
    control.write_all(b"GET /echo HTTP/1.0\r\nX-Shiparr-Peer: 1.1.1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    control.read_to_string(&mut answer).unwrap();
    let peer = format!("X-Shiparr-Peer: uid:{}\n", rustix::process::geteuid().as_raw());
    assert!(answer.contains("X-Shiparr-Listener: control") && answer.contains(&peer), "{answer}");
    assert!(!answer.contains("1.1.1.1"), "{answer}");
    let chunked = running.send(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    );
    assert!(chunked.contains("Content-Length: 5\n") && chunked.ends_with("hello"), "{chunked}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let running = Running::start(LIMITS);
    let stream = running.connect();
    let mut requests = String::from("\r\n");
    for index in 0..50 {
        requests += &format!("POST /echo?{index} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok");
    }
    (&stream).write_all(requests.as_bytes()).unwrap();
    let mut reader = BufReader::new(&stream);
    for index in 0..50 {
        let (head, body) = read_answer(&mut reader);
        assert!(head.starts_with("HTTP/1.1 200 ") && body.starts_with(&format!("POST /echo?{index}\n")), "{body}");
    }
}

#[test]
fn head_has_no_body_and_old_clients_get_what_they_know() {
    let running = Running::start(LIMITS);
    let stream = running.connect();
    (&stream)
        .write_all(b"HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\nGET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        .unwrap();
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let (head, _) = read_answer(&mut reader);
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("Connection: keep-alive\r\n"), "{head}");
    let answer = running.send(b"GET /echo HTTP/1.0\r\n\r\n");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on() {
    let running = Running::start(LIMITS);
    let mut stream = running.connect();
    let head = b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    stream.write_all(head).unwrap();
    let mut told = [0; 25];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").unwrap();
    let (_, body) = read_answer(&mut BufReader::new(&stream));
    assert!(body.ends_with("\nhello"), "{body}");
    let refused = running
        .send(b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 99999999999999\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
}

#[test]
fn what_is_too_large_or_no_http_is_refused_and_the_gate_is_well_afterwards() {
    let running = Running::start(LIMITS);
    let endless_line = format!("GET /echo HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(1 << 20));
    let endless_chunks = format!(
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        format!("{:x}\r\n{}\r\n", 1 << 16, "x".repeat(1 << 16)).repeat(17)
    );
    for (request, status) in [
        ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999\r\n\r\n".to_owned(), 413),
        ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n".to_owned(), 413),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: nonsense\r\n\r\nGET /second HTTP/1.1\r\n\r\n".to_owned(),
            400,
        ),
        ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(), 400),
        (endless_line, 431),
        (endless_chunks, 413),
        (format!("GET /echo HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(2000)), 431),
        ("\u{16}\u{3}\u{1}".to_owned(), 400),
        ("GET /echo HTTP/1.1\nHost : a\n\n".to_owned(), 400),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX"
                .to_owned(),
            400,
        ),
    ] {
        let answer = running.send(request.as_bytes());
        let shown = &request[..request.len().min(80)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer}");
        assert_eq!(answer.matches("Content-Length: ").count(), 1, "one request, one answer: {shown:?}: {answer}");
        running.is_well();
    }
}

#[test]
fn clients_that_reset_early_hurt_nobody() {
    let running = Running::start(LIMITS);
    for _ in 0..200 {
        let stream = running.connect();
        (&stream).write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\nGET /large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        // With unread bytes in its buffer, closing sends a reset.
        drop(stream);
    }
    running.is_well();
}

#[test]
fn clients_that_pipeline_and_never_read_hold_nobody_up() {
    let running = Running::start(LIMITS);
    let greedy: Vec<TcpStream> = (0..50).map(|_| running.connect()).collect();
    let request = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    for stream in &greedy {
        stream.set_nonblocking(true).unwrap();
        // As much as the gate takes.
        let _ = (&mut &*stream).write(request.as_bytes());
    }
    for _ in 0..10 {
        running.is_well();
    }
    let rss = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = rss.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The gate keeps 32 MiB for those who do not read, and the bodies of answers lie in the handlers meanwhile.
    assert!(kib < 300 * 1024, "{line}");
}

#[test]
fn silent_and_slow_clients_leave_the_others_fast() {
    let running = Running::start(LIMITS);
    let silent: Vec<TcpStream> = (0..150)
        .map(|index| {
            let stream = running.connect();
            if index % 2 == 0 {
                (&stream).write_all(b"GET /echo HTTP/1.1\r\nHo").unwrap();
            }
            stream
        })
        .collect();
    let stream = running.connect();
    let mut reader = BufReader::new(&stream);
    let mut worst = Duration::ZERO;
    for _ in 0..100 {
        let started = Instant::now();
        (&stream).write_all(HEAD.as_bytes()).unwrap();
        read_answer(&mut reader);
        worst = worst.max(started.elapsed());
    }
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    drop(silent);
}

#[test]
fn the_one_that_waited_longest_makes_room() {
    let running = Running::start(Limits { connections: 4, ..LIMITS });
    let mut waiting: Vec<TcpStream> = (0..4).map(|_| running.connect()).collect();
    for stream in &mut waiting {
        stream.write_all(HEAD.as_bytes()).unwrap();
        read_answer(&mut BufReader::new(&*stream));
    }
    waiting[0].write_all(HEAD.as_bytes()).unwrap();
    read_answer(&mut BufReader::new(&waiting[0]));
    // Now the second one has waited longest.
    running.is_well();
    assert_eq!(waiting[1].read(&mut [0; 1]).unwrap(), 0);
    waiting[0].write_all(HEAD.as_bytes()).unwrap();
    assert!(read_answer(&mut BufReader::new(&waiting[0])).0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn those_that_had_their_last_answer_and_do_not_close_make_room() {
    let running = Running::start(Limits { connections: 4, ..LIMITS });
    let refused: Vec<TcpStream> = (0..4).map(|_| running.connect()).collect();
    for mut stream in &refused {
        stream.write_all(b"nonsense\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    running.is_well();
}

#[test]
fn the_one_that_has_not_read_for_longest_makes_room_where_nobody_else_can() {
    let running = Running::start(Limits { connections: 4, ..LIMITS });
    let silent: Vec<TcpStream> = (0..4).map(|_| running.connect()).collect();
    for mut stream in &silent {
        stream.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(32).as_slice()).unwrap();
    }
    let started = Instant::now();
    // They would be cut off after half a minute in any case.
    while !running.send(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 200 ") {
        assert!(started.elapsed() < PATIENCE, "nobody made room");
    }
}

#[test]
fn the_writer_of_a_stream_learns_that_its_client_left() {
    let running = Running::start(LIMITS);
    let stream = running.connect();
    (&stream).write_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut reader = BufReader::new(&stream);
    let mut text = String::new();
    while !text.ends_with("first\r\n") {
        reader.read_line(&mut text).unwrap();
    }
    assert!(running.ended_streams.try_recv().is_err());
    drop(stream);
    let started = Instant::now();
    running.ended_streams.recv_timeout(PATIENCE).unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn streams_leave_room_for_short_requests() {
    let running = Running::start(LIMITS);
    let streams: Vec<TcpStream> = (0..4)
        .map(|_| {
            let stream = running.connect();
            (&stream).write_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            stream
        })
        .collect();
    running.is_well();
    drop(streams);
    (0..4).for_each(|_| {
        running.ended_streams.recv_timeout(PATIENCE).unwrap();
    });
}

#[test]
fn a_half_closed_client_gets_its_answers() {
    let running = Running::start(LIMITS);
    let mut stream = running.connect();
    stream.write_all(HEAD.repeat(3).as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 3, "{answers}");
}

/// A tiny_http that is out of threads or descriptors does this.
#[test]
fn an_http_server_that_closes_every_connection_is_not_asked_without_a_pause() {
    const QUEUE_LIMIT: Duration = Duration::from_secs(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http.sock");
    let server = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let limits = Limits { queue: QUEUE_LIMIT, ..LIMITS };
    let gate = Gate::new(vec![Listener::Tcp(tcp)], path.clone(), limits, Arc::default(), Arc::default()).unwrap();
    let stop = gate.stop_handle();
    let gate = std::thread::spawn(move || gate.run());
    let connections = std::thread::spawn(move || {
        let mut connections: u32 = 0;
        // A byte that is no part of a greeting ends it.
        while let Ok((mut stream, _)) = server.accept() {
            let mut first = [0];
            if stream.read(&mut first).unwrap() == 1 && first == [0] {
                break;
            }
            connections += 1;
        }
        connections
    });

    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let started = Instant::now();
    client.write_all(HEAD.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(started.elapsed() >= QUEUE_LIMIT, "{:?}", started.elapsed());
    UnixStream::connect(&path).unwrap().write_all(&[0]).unwrap();
    let connections = connections.join().unwrap();
    assert!((2..=11).contains(&connections), "{connections} connections in one second");
    stop.stop();
    gate.join().unwrap().unwrap();
}

/// Runs in a process of its own: the limit of descriptors is the process's.
#[test]
#[ignore = "run by running_out_of_descriptors_is_survived in a process of its own"]
fn with_few_descriptors() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum: Some(4096) }).unwrap();
    let running = Running::start(Limits { connections: 3000, ..LIMITS });
    running.is_well();
    // The clients are in this process too: together they take every descriptor there is.
    let mut clients = Vec::new();
    while let Ok(stream) = TcpStream::connect(running.address) {
        clients.push(stream);
    }
    assert!(clients.len() > 10, "{}", clients.len());
    clients.truncate(clients.len() - 2);
    drop(clients);
    let started = Instant::now();
    while TcpStream::connect(running.address).is_err() {
        assert!(started.elapsed() < PATIENCE);
    }
    running.is_well();
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "web::gate::tests::with_few_descriptors"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}
