//! Under a service manager: what it is told, what it hands over, and restarts that lose nothing. The tests are the
//! manager; `tests/systemd` has the real one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::*;

/// What `NOTIFY_SOCKET` names.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// One that this daemon reports to from its next start on, with a watchdog.
    fn of(daemon: &mut Daemon) -> Manager {
        let path = daemon.folder().join("notify");
        let socket = UnixDatagram::bind(&path).expect("make the socket");
        daemon.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000");
        Manager { socket }
    }

    /// The next message, within this time.
    fn next(&self, limit: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(limit)).expect("limit reading");
        let mut buffer = [0; 4096];
        let count = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..count]).trim_end().to_owned())
    }

    /// The next message that begins so; answers it, and what came before.
    #[track_caller]
    fn hears(&self, beginning: &str) -> (String, Vec<String>) {
        let (end, mut before) = (Instant::now() + MINUTE, Vec::new());
        while Instant::now() < end {
            match self.next(SHORT) {
                Some(message) if message.starts_with(beginning) => return (message, before),
                message => before.extend(message),
            }
        }
        panic!("systemd was not told {beginning}, but {before:?}");
    }
}

#[test]
fn systemd_is_told_of_the_whole_life() {
    let mut daemon = Daemon::new();
    let manager = Manager::of(&mut daemon);
    daemon.spawn(&["run"]);
    let (_, before) = manager.hears("READY=1");
    assert!(before.iter().all(|message| message.starts_with("STATUS=")), "{before:?}");
    // It is ready indeed: the first question is answered.
    assert_eq!(daemon.request("GET", "/api/health", &[], b"").status, 200);
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");

    daemon.signal(Signal::HUP);
    let (reloading, _) = manager.hears("RELOADING=1");
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("the time of the reload");
    assert!(time.parse::<u64>().is_ok_and(|time| time > 0), "{time}");
    manager.hears("READY=1");

    daemon.project_text("bad", "project: bad\nrepositories: 7\n");
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    let (status, _) = manager.hears("STATUS=idle");
    assert_eq!(status, "STATUS=idle, 0 repositories; 1 project file has problems");

    daemon.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    assert_eq!(daemon.wait_for_exit(SHORT).code(), Some(0));
}

#[test]
fn the_watchdog_hears_nothing_more_once_a_thread_hangs() {
    for thread in ["worker", "docker", "main"] {
        let mut daemon = Daemon::new();
        let manager = Manager::of(&mut daemon);
        daemon.env("Shiparr_DEBUG_HANG", thread);
        daemon.spawn(&["run"]);
        manager.hears("READY=1");
        let line = format!("the thread `{thread}` hangs");
        wait_until(SHORT, "the log to name the thread", || daemon.log().contains(&line).then_some(()));
        assert!(!daemon.log().contains("no such setting"), "{}", daemon.log());
        while manager.next(Duration::from_millis(1)).is_some() {}
        let more = manager.next(Duration::from_secs(1));
        assert!(more.as_ref().is_none_or(|more| more.starts_with("STATUS=")), "{thread}: {more:?}");
        assert_eq!(daemon.log().matches(&line).count(), 1, "it is said once");
    }
}

#[test]
fn a_deployment_is_told_of_and_given_time_at_a_stop() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* up *", "hold");
    let mut daemon = Daemon::new();
    let manager = Manager::of(&mut daemon);
    daemon.use_fake(&fake);
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.start();
    manager.hears(&format!("STATUS=deploying home/web {}", &repo.tip()[..7]));
    wait_until(MINUTE, "`up` to begin", || (!fake.calls_with("docker-compose", "up").is_empty()).then_some(()));
    for call in fake.calls() {
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"] {
            assert_eq!(call.variable(name), None, "{call:?}");
        }
    }

    daemon.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    manager.hears("EXTEND_TIMEOUT_USEC=");
    manager.hears("STATUS=stopping: home/web is still being deployed");
    manager.hears("EXTEND_TIMEOUT_USEC=");
    manager.hears("WATCHDOG=1");
    fake.release();
    assert_eq!(daemon.wait_for_exit(MINUTE).code(), Some(0));
    assert_eq!(stack.version().as_deref(), Some("1"));
}

/// Both listening sockets of a daemon, as the socket unit makes them.
fn sockets_of(daemon: &Daemon) -> (TcpListener, UnixListener) {
    let tcp = TcpListener::bind(("127.0.0.1", daemon.port())).expect("listen on TCP");
    let unix = UnixListener::bind(daemon.runtime().join("shiparr.sock")).expect("listen on the control socket");
    (tcp, unix)
}

#[test]
fn sockets_that_are_handed_over_are_used_and_stay() {
    let mut daemon = Daemon::new();
    let (tcp, unix) = sockets_of(&daemon);
    daemon.hand_over(vec![tcp.into(), unix.into()], "$$").env("Shiparr_HOST", "192.0.2.1");
    daemon.start();
    assert_eq!(daemon.request_by_socket("GET", "/api/projects").status, 200);
    for descriptor in [3, 4] {
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{descriptor}", daemon.pid())).expect("it is open");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("it has flags");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("in octal");
        assert_ne!(flags & rustix::fs::OFlags::CLOEXEC.bits(), 0, "no child inherits descriptor {descriptor}");
    }
    let log = daemon.log();
    assert_eq!(log.matches("systemctl edit shiparr.socket").count(), 1, "{log}");
    assert!(log.contains("Shiparr_HOST and Shiparr_PORT are not used"), "{log}");
    assert!(daemon.stop().success());
    assert!(daemon.runtime().join("shiparr.sock").exists(), "it is not the daemon's to remove");
    // They still take connections, for the next process.
    drop(daemon.connect());
    drop(UnixStream::connect(daemon.runtime().join("shiparr.sock")).expect("the socket listens"));
}

#[test]
fn without_some_of_the_sockets_it_makes_what_is_needed() {
    // TCP alone: the command line needs the control socket.
    let mut daemon = Daemon::new();
    let (tcp, unix) = sockets_of(&daemon);
    drop(unix);
    daemon.hand_over(vec![tcp.into()], "$$");
    daemon.start();
    assert_eq!(daemon.request_by_socket("GET", "/api/projects").status, 200);
    assert!(daemon.stop().success());

    // The control socket alone: nobody is wanted on the network.
    let mut daemon = Daemon::new();
    let (tcp, unix) = sockets_of(&daemon);
    drop(tcp);
    daemon.hand_over(vec![unix.into()], "$$");
    daemon.spawn(&["run"]);
    assert_eq!(daemon.request_by_socket("GET", "/api/projects").status, 200);
    assert!(TcpStream::connect(("127.0.0.1", daemon.port())).is_err());
    assert!(daemon.log().contains("the control socket alone"), "{}", daemon.log());
    assert!(daemon.stop().success());

    // Those of another process are not ours.
    let mut daemon = Daemon::new();
    daemon.hand_over(vec![TcpListener::bind("127.0.0.1:0").expect("listen").into()], "1");
    daemon.start();
    assert!(daemon.stop().success());

    // What is no such socket is named; `auto` or not, the reason is an error in the journal.
    let mut daemon = Daemon::new();
    daemon.hand_over(vec![UdpSocket::bind("127.0.0.1:0").expect("bind").into()], "$$");
    daemon.env("Shiparr_LOG_FORMAT", "journal").spawn(&["run"]);
    assert_eq!(daemon.wait_for_exit(SHORT).code(), Some(1));
    let log = daemon.log();
    let error = log.lines().find(|line| line.starts_with("<3>")).expect("an error with its priority");
    assert!(error.contains("`first` (descriptor 3)"), "{error}");
}

#[test]
fn without_the_socket_unit_the_control_socket_is_beside_the_secrets_that_systemd_made_room_for() {
    let mut daemon = Daemon::new();
    let secrets = daemon.runtime().join("secrets");
    std::fs::create_dir(&secrets).expect("make a folder");
    daemon.env("Shiparr_RUNTIME_PATH", "").env("RUNTIME_DIRECTORY", &secrets);
    daemon.start();
    assert!(daemon.runtime().join("shiparr.sock").exists() && !secrets.join("shiparr.sock").exists());
    assert!(daemon.cli(&["status"]).status.success());
    assert!(daemon.stop().success());
    assert!(!daemon.runtime().join("shiparr.sock").exists());
}

/// How a client of the load asks.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A new connection each time, and it says that it is the last request.
    Closing,
    /// A new connection each time, which it closes itself.
    Plain,
    /// As `Plain`, but it takes its time between connecting and asking.
    Slow,
    /// One connection until the daemon ends it.
    KeepAlive,
}

const WAYS: [Way; 4] = [Way::Closing, Way::Plain, Way::Slow, Way::KeepAlive];

/// Asks once or, with [`Way::KeepAlive`], until the daemon says that the connection ends or it is over; answers how often
/// it was answered.
fn ask(stream: impl Read + Write, way: Way, is_over: &AtomicBool) -> Result<usize, String> {
    if matches!(way, Way::Slow) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut reader = BufReader::new(stream);
    // Between two requests a connection may end: then a client asks on another one, as for every server.
    let may_end = |answered: usize| matches!(way, Way::KeepAlive) && answered > 1;
    for answered in 1.. {
        let closes = matches!(way, Way::Closing) || is_over.load(Ordering::Relaxed);
        let close = if closes { "Connection: close\r\n" } else { "" };
        let request = format!("GET /api/health HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
        let begun = reader.get_mut().write_all(request.as_bytes()).and_then(|()| reader.fill_buf().map(<[u8]>::len));
        match begun {
            Ok(0) | Err(_) if may_end(answered) => return Ok(answered - 1),
            Ok(_) => {}
            Err(error) => return Err(format!("asking: {error}")),
        }
        let answer = read_answer(&mut reader, false).map_err(|error| format!("reading: {error}"))?;
        if answer.status != 200 {
            return Err(format!("{}: {}", answer.status, answer.text()));
        }
        let is_last = answer.header("connection").is_some_and(|value| value == "close");
        if is_last {
            // The whole answer is here, and after it comes the end rather than a reset.
            let rest = reader.read(&mut [0; 1]).map_err(|error| format!("at the end: {error}"))?;
            return if rest == 0 { Ok(answered) } else { Err("more than an answer came".to_owned()) };
        }
        if !matches!(way, Way::KeepAlive) {
            return Ok(answered);
        }
    }
    Ok(0)
}

#[test]
fn ten_restarts_with_the_socket_unit_lose_no_request() {
    let mut daemon = Daemon::new();
    let (tcp, unix) = sockets_of(&daemon);
    daemon.hand_over(vec![tcp.into(), unix.into()], "$$");
    let manager = Manager::of(&mut daemon);
    let (port, path) = (daemon.port(), daemon.runtime().join("shiparr.sock"));
    let (is_over, failures) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let answered: Vec<AtomicUsize> = (0..2 * WAYS.len()).map(|_| AtomicUsize::new(0)).collect();
    let ask_on = |is_tcp: bool, way: Way| {
        let count = if is_tcp {
            let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| format!("connecting: {error}"))?;
            stream.set_read_timeout(Some(MINUTE)).expect("limit reading");
            ask(stream, way, &is_over)
        } else {
            let stream = UnixStream::connect(&path).map_err(|error| format!("connecting: {error}"))?;
            stream.set_read_timeout(Some(MINUTE)).expect("limit reading");
            ask(stream, way, &is_over)
        };
        count.map_err(|error| format!("{way:?}, {}: {error}", if is_tcp { "TCP" } else { "unix" }))
    };
    std::thread::scope(|scope| {
        for (index, counter) in answered.iter().enumerate() {
            let (ask_on, is_over, failures) = (&ask_on, &is_over, &failures);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    match ask_on(index % 2 == 0, WAYS[index / 2]) {
                        Ok(count) => drop(counter.fetch_add(count, Ordering::Relaxed)),
                        Err(error) => failures.lock().expect("the failures").push(error),
                    }
                }
            });
        }
        for _ in 0..10 {
            let before: Vec<usize> = answered.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
            daemon.spawn(&["run"]);
            manager.hears("READY=1");
            // Whoever keeps a connection counts when it ends.
            wait_until(MINUTE, "everybody to be answered", || {
                let mut now = answered.iter().zip(&before).zip(0..).filter(|(_, index)| *index < 6);
                now.all(|((counter, before), _)| counter.load(Ordering::Relaxed) > before + 1).then_some(())
            });
            assert_eq!(daemon.stop().code(), Some(0));
        }
        is_over.store(true, Ordering::Relaxed);
        // The last ones are in the queue: somebody has to answer them.
        daemon.spawn(&["run"]);
    });
    assert!(daemon.stop().success());
    let failures = failures.into_inner().expect("the failures");
    let counts: Vec<usize> = answered.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
    assert!(failures.is_empty(), "{} of {counts:?} failed: {:?}", failures.len(), &failures[..failures.len().min(10)]);
    assert!(counts.iter().all(|count| *count >= 10), "{counts:?}");
}
