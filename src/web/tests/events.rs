//! What listeners are told, when they come and when they come back.

use super::*;

/// A client of `/api/events`, as a browser is one.
struct Listener {
    stream: BufReader<Box<dyn Read + Send>>,
    text: String,
    /// What it would ask for when it comes back.
    last_id: String,
}

#[derive(Debug)]
struct Event {
    name: String,
    data: Value,
}

impl Event {
    /// Its name, the id of its record, and where that stands.
    fn summary(&self) -> (&str, i64, &str) {
        (&self.name, self.data["id"].as_i64().unwrap_or_default(), self.data["status"].as_str().unwrap_or_default())
    }
}

fn request(path: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().flat_map(|line| [line, "\r\n"]).collect();
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

impl Listener {
    fn new(scene: &Scene, last_id: Option<&str>) -> Listener {
        let line = last_id.map(|id| format!("Last-Event-ID: {id}"));
        Listener::with(scene.tcp(), &request("/api/events", &line.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// Reads the head and what comes without waiting for a change.
    fn with(mut stream: impl Read + Write + Send + 'static, request: &str) -> Listener {
        stream.write_all(request.as_bytes()).unwrap();
        let mut reader = BufReader::new(Box::new(stream) as Box<dyn Read + Send>);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
        }
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let lower = head.to_lowercase();
        for line in ["content-type: text/event-stream\r\n", "cache-control: no-store\r\n", "x-accel-buffering: no\r\n"]
        {
            assert!(lower.contains(line), "{head}");
        }
        assert!(!lower.contains("x-shiparr"), "{head}");
        let mut listener = Listener { stream: reader, text: String::new(), last_id: String::new() };
        let beginning = listener.block();
        assert!(beginning.starts_with(": ") && beginning.ends_with("\nretry: 2000"), "{beginning}");
        listener
    }

    /// The next block of lines; empty where the stream ended as it should.
    fn block(&mut self) -> String {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return block;
            }
            let mut length = String::new();
            self.stream.read_line(&mut length).unwrap();
            let length = usize::from_str_radix(length.trim(), 16).unwrap();
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk).unwrap();
            if length == 0 {
                assert_eq!((self.text.as_str(), self.stream.read(&mut [0]).unwrap()), ("", 0));
                return String::new();
            }
            self.text += std::str::from_utf8(&chunk[..length]).unwrap();
        }
    }

    /// The next block, its id remembered: an event, or none at the end of the beginning.
    fn event_or_id(&mut self) -> Option<Event> {
        let (mut name, mut data) = (None, None);
        for line in self.block().lines() {
            let (field, value) = line.split_once(": ").unwrap();
            match field {
                "event" => name = Some(value.to_owned()),
                "id" => self.last_id = value.to_owned(),
                "data" => data = Some(serde_json::from_str(value).unwrap()),
                _ => panic!("{line}"),
            }
        }
        Some(Event { name: name?, data: data? })
    }

    fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.event_or_id() {
                return event;
            }
        }
    }

    /// What it missed.
    fn missed(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.event_or_id()).collect()
    }

    /// The statuses of a deployment, up to a success.
    fn statuses_of(&mut self, id: DeploymentId) -> Vec<String> {
        self.statuses_until(id, "success")
    }

    fn statuses_until(&mut self, id: DeploymentId, end: &str) -> Vec<String> {
        let mut statuses: Vec<String> = Vec::new();
        loop {
            let event = self.event();
            let (name, of, status) = event.summary();
            if (name, of) != ("deployment", id) {
                continue;
            }
            if statuses.last().is_none_or(|last| last != status) {
                statuses.push(status.to_owned());
            }
            if status == end {
                return statuses;
            }
        }
    }
}

fn number_of(id: &str) -> u64 {
    id.split_once('-').unwrap().1.parse().unwrap()
}

#[test]
fn a_deployment_is_told_from_its_trigger_to_its_end_as_the_api_shows_it() {
    let scene = Scene::new();
    let mut listener = Listener::new(&scene, None);
    assert!(listener.missed().is_empty());
    let asked = scene.ask("POST", "/api/projects/home/repositories/web/deploy", &[], "");
    let id = asked.json()["deployment_id"].as_i64().unwrap();
    let (web, event) = (scene.id("web"), listener.event());
    assert_eq!(event.summary(), ("deployment", id, "pending"));
    assert_eq!(event.data, scene.get(&format!("/api/deployments/{id}")).json());
    assert_eq!(listener.event().summary(), ("repository", web, "pending"));
    scene.store.start(id, "1", Timestamp::now()).unwrap();
    assert_eq!(listener.event().summary(), ("deployment", id, "running"));
    let event = listener.event();
    assert_eq!(event.summary(), ("repository", web, "running"));
    assert_eq!(event.data, scene.get(&format!("/api/repositories/{web}")).json());
    // Lines of a log are no events.
    scene.store.log(id, LogLevel::Info, "a line", Timestamp::now()).unwrap();
    let failed = Outcome::Failed { error: "no \"net\"\nwork".to_owned(), chance: crate::model::Chance::Final };
    scene.store.finish(id, &failed, Timestamp::now()).unwrap();
    let event = listener.event();
    assert_eq!(event.summary(), ("deployment", id, "failed"));
    assert_eq!(event.data["error"], "no \"net\"");
    assert_eq!(listener.event().summary(), ("repository", web, "failed"));
    scene.store.check_scheduled(web, "2030-01-01T00:00:00Z".parse().unwrap());
    assert_eq!(listener.event().data["next_check_at"], "2030-01-01T00:00:00Z");
    scene.store.projects_loaded();
    let event = listener.event();
    assert_eq!((event.name.as_str(), event.data), ("projects", json!({})));
}

#[test]
fn many_changes_of_a_thing_become_one_event_and_the_last_is_told() {
    let scene = Scene::new();
    let mut listener = Listener::new(&scene, None);
    listener.missed();
    let web = scene.id("web");
    let last: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
    for second in (0..5000).rev() {
        scene.store.check_scheduled(web, last - jiff::SignedDuration::from_secs(second));
    }
    let mut events = 0;
    while listener.event().data["next_check_at"] != "2030-01-01T00:00:00Z" {
        events += 1;
    }
    assert!(events < 500, "{events}");
    let ids: Vec<_> = (0..3).map(|_| scene.succeed("web")).collect();
    for id in ids {
        assert_eq!(listener.statuses_of(id).last().unwrap(), "success");
    }
}

#[test]
fn who_comes_back_gets_what_it_missed_once() {
    let scene = Scene::new();
    let mut listener = Listener::new(&scene, None);
    listener.missed();
    let first_id = listener.last_id.clone();
    let id = scene.queue("web");
    assert_eq!(listener.event().summary(), ("deployment", id, "pending"));
    // Cut off between two events of one change.
    let mut again = Listener::new(&scene, Some(&listener.last_id));
    let missed = again.missed();
    assert_eq!(missed.iter().map(Event::summary).collect::<Vec<_>>(), [("repository", scene.id("web"), "pending")]);
    drop((listener, again));
    // While nobody listens.
    scene.store.start(id, "1", Timestamp::now()).unwrap();
    scene.store.finish(id, &Outcome::Skipped { reason: "nothing".into() }, Timestamp::now()).unwrap();
    scene.store.check_scheduled(scene.id("media"), Timestamp::now());
    let mut back = Listener::new(&scene, Some(&first_id));
    // With the beginning or just after it: where the last listener has only just left, the next round tells it to all.
    let missed: Vec<_> = (0..3).map(|_| back.event()).collect();
    let told: Vec<_> = missed.iter().map(Event::summary).collect();
    assert_eq!(
        told,
        [
            ("deployment", id, "skipped"),
            ("repository", scene.id("web"), "never_deployed"),
            ("repository", scene.id("media"), "never_deployed")
        ]
    );
    assert_eq!(number_of(&back.last_id), scene.store.last_change());
    // By the query as well, and with nothing missed.
    let path = format!("/api/events?last_event_id={}", back.last_id);
    let mut by_query = Listener::with(scene.tcp(), &request(&path, &[]));
    assert!(by_query.missed().is_empty());
    assert_eq!(by_query.last_id, back.last_id);
    let next = scene.queue("media");
    assert_eq!(by_query.event().summary(), ("deployment", next, "pending"));
    assert_eq!(back.event().summary(), ("deployment", next, "pending"));
}

#[test]
fn what_is_not_known_any_more_is_a_reset() {
    let scene = Scene::new();
    let mut listener = Listener::new(&scene, None);
    listener.missed();
    let (boot, _) = listener.last_id.split_once('-').unwrap();
    let never = format!("{boot}-999999");
    for id in ["0123456789abcdef-1", "nonsense", &never, &format!("{boot}-"), &format!("{boot}-x")] {
        let mut back = Listener::new(&scene, Some(id));
        let missed = back.missed();
        assert_eq!(missed.len(), 1, "{id}");
        assert_eq!((missed[0].name.as_str(), &missed[0].data), ("reset", &json!({})), "{id}");
        assert_eq!(back.last_id, listener.last_id, "{id}");
    }
    // More than is worth telling piece by piece.
    for _ in 0..200 {
        let id = scene.queue("web");
        scene.store.cancel_pending(id, Timestamp::now()).unwrap();
    }
    let missed = Listener::new(&scene, Some(&listener.last_id)).missed();
    assert_eq!(missed.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["reset"]);
}

#[test]
fn only_those_who_may_look_listen() {
    let scene = Scene::with(&[("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", "open sesame")]);
    assert_eq!(scene.get("/api/events").status, 401);
    assert_eq!(scene.ask("GET", "/api/events", &[&basic("admin", "wrong")], "").status, 401);
    let mut known = Listener::with(scene.tcp(), &request("/api/events", &[&basic("admin", "open sesame")]));
    let socket = UnixStream::connect(&scene.control).unwrap();
    let mut local = Listener::with(socket, &request("/api/events", &[]));
    assert!(known.missed().is_empty() && local.missed().is_empty());
    let id = scene.succeed("web");
    assert_eq!(known.statuses_of(id).last().unwrap(), "success");
    assert_eq!(local.statuses_of(id).last().unwrap(), "success");
}

#[test]
fn listeners_are_bounded_and_head_is_none() {
    let scene = Scene::new();
    let places = scene.places();
    for _ in 0..=places {
        let head = scene.ask("HEAD", "/api/events", &[], "");
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    }
    let mut listeners: Vec<_> = (0..places).map(|_| Listener::new(&scene, None)).collect();
    let refused = scene.get("/api/events");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert!(refused.body.contains(&format!("{places} clients listen")), "{}", refused.body);
    let id = scene.succeed("web");
    for listener in &mut listeners {
        listener.missed();
        assert_eq!(listener.statuses_of(id).last().unwrap(), "success");
    }
    drop(listeners);
    let since = Instant::now();
    while scene.get("/api/projects").status == 200 && scene.listens() {
        assert!(since.elapsed() < PATIENCE);
    }
    Listener::new(&scene, None);
}

#[test]
fn a_stop_ends_the_stream_at_once() {
    let scene = Scene::new();
    let mut listener = Listener::new(&scene, None);
    listener.missed();
    let since = Instant::now();
    scene.stop.stop();
    assert_eq!(listener.block(), "");
    drop(scene);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}

#[test]
fn who_is_told_too_late_of_too_much_loads_everything_anew() {
    let scene = Scene::new();
    let mut listener = Listener::new(&scene, None);
    listener.missed();
    // More than is remembered, between two rounds.
    for id in 1000..6000 {
        scene.store.check_scheduled(id, Timestamp::now());
    }
    assert_eq!(listener.event().name, "reset");
    let id = scene.queue("web");
    assert_eq!(listener.statuses_until(id, "pending"), ["pending"]);
}

#[test]
fn whoever_comes_and_goes_sees_every_deployment_go_forward_and_end() {
    const DEPLOYMENTS: usize = 40;
    let scene = Scene::new();
    std::thread::scope(|threads| {
        let listeners: Vec<_> = (1..=4)
            .map(|stay| {
                let mut listener = Listener::new(&scene, None);
                assert!(listener.missed().is_empty());
                let scene = &scene;
                // It goes after a few events each time, and comes back.
                threads.spawn(move || {
                    let (mut last_id, mut stands, mut ended) = (listener.last_id.clone(), HashMap::new(), 0);
                    drop(listener);
                    while ended < DEPLOYMENTS {
                        let mut listener = Listener::new(scene, Some(&last_id));
                        for _ in 0..stay {
                            let event = listener.event();
                            let rank = match event.summary() {
                                ("deployment", _, "pending") => 1,
                                ("deployment", _, "running") => 2,
                                ("deployment", _, "success") => 3,
                                (name, ..) => {
                                    assert_eq!(name, "repository");
                                    continue;
                                }
                            };
                            let before = stands.insert(event.data["id"].as_i64().unwrap(), rank);
                            assert!(before.is_none_or(|before| before <= rank), "{before:?}, then {rank}");
                            ended += usize::from(rank == 3 && before != Some(3));
                        }
                        assert!(number_of(&listener.last_id) > number_of(&last_id), "an event was told twice");
                        last_id = listener.last_id;
                    }
                })
            })
            .collect();
        for _ in 0..DEPLOYMENTS {
            scene.succeed("web");
        }
        // Whoever waits for one more event than there are gets it.
        while !listeners.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            scene.store.check_scheduled(scene.id("media"), Timestamp::now());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    });
}
