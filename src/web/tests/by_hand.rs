//! Stacks in people's hands, over the control socket.

use super::*;

/// A client that has asked for a stack, and reads on.
fn take(scene: &Scene, who: &str) -> BufReader<UnixStream> {
    ask(scene, "/control/compose", &json!({ "id": scene.id("web"), "who": who }))
}

pub(super) fn ask(scene: &Scene, path: &str, body: &Value) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(&scene.control).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    BufReader::new(stream)
}

pub(super) fn head_of(reader: &mut BufReader<UnixStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    head
}

/// The next chunk, which must be a line of JSON.
fn line_of(reader: &mut BufReader<UnixStream>) -> Value {
    let mut length = String::new();
    reader.read_line(&mut length).unwrap();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(usize::from_str_radix(length.trim(), 16).unwrap(), line.len());
    reader.read_line(&mut length).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn wait_until_free(scene: &Scene) {
    let until = Instant::now() + PATIENCE;
    while scene.daemon.hands.lock().unwrap().is_some() {
        assert!(Instant::now() < until, "nobody let go");
        std::thread::yield_now();
    }
}

#[test]
fn a_stack_is_in_somebodys_hands_until_they_go() {
    let scene = Scene::new();
    let mut ada = take(&scene, "ada");
    let head = head_of(&mut ada);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("Cache-Control: no-store"), "{head}");
    let tools = line_of(&mut ada);
    assert_eq!((&tools["program"], &tools["folder"]), (&json!("docker"), &json!("/srv")));
    assert_eq!(tools["dotenv"], "SECRET=\"battery\"\n");

    let body = json!({ "id": scene.id("web"), "who": "bob" }).to_string();
    let bob = scene.control("POST", "/control/compose", &body);
    assert_eq!((bob.status, &bob.json()["message"]), (409, &json!("ada works on it")));
    drop(ada);
    wait_until_free(&scene);
}

#[test]
fn whoever_is_told_to_let_go_learns_why_and_has_the_stack_until_they_did() {
    let scene = Scene::new();
    let body = json!({ "id": scene.id("web") }).to_string();
    assert_eq!(scene.control("POST", "/control/release", &body).json(), json!({ "released": null }));
    let mut ada = take(&scene, "ada");
    head_of(&mut ada);
    line_of(&mut ada);
    assert_eq!(scene.control("POST", "/control/release", &body).json(), json!({ "released": "ada" }));
    assert!(line_of(&mut ada)["end"].as_str().unwrap().contains("cancelled"));
    assert!(scene.daemon.hands.lock().unwrap().is_some());
    drop(ada);
    wait_until_free(&scene);
}

#[test]
fn when_the_web_stops_everybody_lets_go() {
    let scene = Scene::new();
    let mut ada = take(&scene, "ada");
    head_of(&mut ada);
    line_of(&mut ada);
    scene.stop.stop();
    assert!(line_of(&mut ada)["end"].as_str().unwrap().contains("stops"));
    wait_until_free(&scene);
}

#[test]
fn who_holds_deployments_up_learns_what_runs_until_nothing_does() {
    let scene = Scene::new();
    let pauses = || scene.daemon.pauses.load(Ordering::SeqCst);
    scene.daemon.running.lock().unwrap().insert(7, Box::new(|| ()));
    let mut client = ask(&scene, "/control/hold", &Value::Null);
    assert!(head_of(&mut client).starts_with("HTTP/1.1 200"));
    assert_eq!(line_of(&mut client), json!({ "running": ["deployment 7"], "ends_within_seconds": 900 }));
    scene.daemon.running.lock().unwrap().clear();
    assert_eq!(line_of(&mut client), json!({ "running": [], "ends_within_seconds": 0 }));
    assert_eq!(pauses(), 1);
    drop(client);
    let until = Instant::now() + PATIENCE;
    while pauses() > 0 {
        assert!(Instant::now() < until, "it still holds");
        std::thread::yield_now();
    }
    assert_eq!(scene.ask("POST", "/control/hold", &[], "").status, 404);
}

#[test]
fn it_is_for_the_control_socket_and_for_people_with_names() {
    let scene = Scene::new();
    for path in ["/control/compose", "/control/release"] {
        let body = json!({ "id": scene.id("web"), "who": "ada" }).to_string();
        assert_eq!(scene.ask("POST", path, &[], &body).status, 404, "{path}");
    }
    for who in [String::new(), "a\nb".to_owned(), "x".repeat(65)] {
        let body = json!({ "id": scene.id("web"), "who": who }).to_string();
        assert_eq!(scene.control("POST", "/control/compose", &body).status, 400, "{who:?}");
    }
    assert!(scene.daemon.hands.lock().unwrap().is_none());
}
