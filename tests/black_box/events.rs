//! GET `/api/events`: what listeners see of a real deployment, how they come back, and what they cost.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::support::*;

/// Listeners at once, under the usual limit of descriptors.
const PLACES: usize = 128;

/// A client that listens, as a browser does.
struct Listener {
    stream: BufReader<TcpStream>,
    text: String,
    last_id: String,
}

impl Listener {
    /// Asks to listen, and reads the head.
    fn new(daemon: &Daemon, last_id: Option<&str>) -> Listener {
        let mut stream = daemon.connect();
        let resumes = last_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!("GET /api/events HTTP/1.1\r\nHost: localhost\r\n{resumes}\r\n");
        stream.write_all(request.as_bytes()).expect("send a request");
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).expect("read the head") > 0, "closed after {head:?}");
        }
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Listener { stream, text: String::new(), last_id: String::new() }
    }

    /// The next event; none where the stream ended as it should.
    fn next(&mut self) -> Option<(String, Json)> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
                };
                let (event, id, data) = (field("event"), field("id"), field("data"));
                self.text = rest.to_owned();
                self.last_id = id.unwrap_or(std::mem::take(&mut self.last_id));
                if let Some((event, data)) = event.zip(data) {
                    return Some((event, serde_json::from_str(&data).expect("data is one line of JSON")));
                }
            }
            let mut length = String::new();
            self.stream.read_line(&mut length).expect("read a chunk's length");
            let length = usize::from_str_radix(length.trim(), 16).expect("a chunk has a length");
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk).expect("read a chunk");
            if length == 0 {
                return None;
            }
            self.text += std::str::from_utf8(&chunk[..length]).expect("events are text");
        }
    }

    fn event(&mut self) -> (String, Json) {
        self.next().expect("the stream goes on")
    }

    /// The next event of a deployment.
    fn deployment(&mut self, id: i64) -> Json {
        loop {
            let (name, data) = self.event();
            if name == "deployment" && data["id"] == id {
                return data;
            }
        }
    }

    /// Waits until a deployment is told to stand so; answers the statuses before it.
    fn wait_for(&mut self, id: i64, status: &str) -> Vec<Json> {
        let mut before = Vec::new();
        loop {
            let data = self.deployment(id);
            if data["status"] == status {
                return before;
            }
            before.push(data["status"].clone());
        }
    }
}

#[test]
fn a_deployment_is_seen_from_its_trigger_to_its_end_and_over_broken_connections() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (base_stack, app_stack) = (Stack::new(), Stack::new());
    let base = Repo::with(&[("compose.yaml", &Stack::compose_not_well_yet("1"))]);
    let app = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::with(&[
        Entry::new("base", &base.url(), &base_stack).field("health_timeout", "120"),
        Entry::new("app", &app.url(), &app_stack).field("depends_on", "[base]"),
    ]);
    let blocking = daemon.wait_for("base", "running")["id"].as_i64().expect("an id");
    daemon.wait_until_up(blocking);
    let mut listener = Listener::new(&daemon, None);
    let mut whole = Listener::new(&daemon, None);
    // It joins the row that the first check made, if that is there already, and waits for what it depends on.
    let id = daemon.deploy("app");
    assert!(matches!(listener.deployment(id)["status"].as_str(), Some("pending")));
    // The connection breaks; what happens meanwhile is told to whoever comes back with the last id.
    let last_id = listener.last_id.clone();
    drop(listener);
    base_stack.make_well();
    daemon.succeeded(blocking);
    daemon.succeeded(id);
    let mut back = Listener::new(&daemon, Some(&last_id));
    let mut seen = vec![back.deployment(id)];
    assert_eq!(seen.remove(0), daemon.deployment(id));
    // Another one saw all of it: each status, in its order.
    let mut statuses = whole.wait_for(id, "success");
    statuses.dedup();
    assert_eq!(statuses, ["pending", "running"]);
    assert_eq!(daemon.repository("app")["status"], "success");

    // A stop ends the stream; the next run does not know the ids of this one.
    let last_id = back.last_id.clone();
    assert!(daemon.stop().success());
    while back.next().is_some() {}
    daemon.start();
    let mut reset = Listener::new(&daemon, Some(&last_id));
    assert_eq!(reset.event(), ("reset".to_owned(), serde_json::json!({})));
    let (boot, _) = last_id.split_once('-').expect("BOOT-NUMBER");
    reset.stream.get_ref().set_read_timeout(Some(MINUTE)).expect("limit reading");
    daemon.check_now("app");
    reset.event();
    assert!(!reset.last_id.starts_with(boot), "{}", reset.last_id);
}

#[test]
fn a_hundred_and_more_listeners_get_every_event_and_hold_nobody_up() {
    let stack = Stack::new();
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_LOG_LEVEL", "INFO");
    daemon.project("home", &[Entry::new("web", "/nowhere/web.git", &stack).rarely_checked()]);
    daemon.start();
    let before = memory_kib(&daemon);
    let mut listeners: Vec<_> = (0..PLACES - 1).map(|_| Listener::new(&daemon, None)).collect();
    let stalled = Listener::new(&daemon, None);
    println!("{PLACES} listeners take {} KiB", memory_kib(&daemon).saturating_sub(before));
    let refused = daemon.request("GET", "/api/events", &[], b"");
    assert_eq!((refused.status, refused.error().as_str()), (503, "unavailable"));

    let asked = Instant::now();
    let id = daemon.deploy("web");
    let answered = asked.elapsed();
    for listener in &mut listeners {
        listener.deployment(id);
    }
    println!("from the trigger to its answer {answered:?}, to the last of the listeners {:?}", asked.elapsed());
    daemon.ended(id);
    for listener in &mut listeners {
        listener.wait_for(id, "failed");
    }
    // Others are answered, and places are free when their listeners have gone.
    daemon.get("/api/projects");
    drop((listeners, stalled));
    wait_until(SHORT, "the places to be free", || {
        let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs").count();
        (open < PLACES).then_some(())
    });
    Listener::new(&daemon, None);
}

/// Resident memory.
fn memory_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the field is there");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}
