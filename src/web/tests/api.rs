//! What the routes answer.

use super::*;
use crate::model::Chance;

#[test]
fn projects_and_repositories_have_their_shape() {
    let scene = Scene::new();
    let projects = scene.get("/api/projects").json();
    assert_eq!(projects[0]["name"], "home");
    assert_eq!((&projects[0]["repositories"], &projects[1]["repositories"]), (&json!(2), &json!(0)));
    assert_eq!(scene.get("/api/projects/lab").json()["repositories"], json!([]));
    let list = scene.get("/api/projects/home/repositories");
    assert_eq!((list.status, list.header("content-type")), (200, Some("application/json")));
    assert_eq!((&list.json()[0]["name"], &list.json()[1]["name"]), (&json!("media"), &json!("web")));
    assert_eq!(scene.get("/api/repositories").json(), list.json());
    let repository = scene.get("/api/projects/home/repositories/web").json();
    assert_eq!(scene.get(&format!("/api/repositories/{}", repository["id"])).json(), repository);
    assert_eq!(repository["status"], "never_deployed");
    assert_eq!(repository["check_interval"], 300);
    assert_eq!(repository["last_deployment"], Value::Null);
    let id = scene.succeed("web");
    let repository = scene.get("/api/projects/home/repositories/web").json();
    assert_eq!(repository["status"], "success");
    assert_eq!(repository["last_deployment"], scene.get(&format!("/api/deployments/{id}")).json());
    assert_eq!(repository["last_deployment"]["commit_subject"], "Say hello");
    assert!(repository["last_deployment"]["duration_seconds"].is_f64());
}

#[test]
fn a_deployment_is_accepted_stored_and_the_worker_woken() {
    let scene = Scene::new();
    let path = "/api/projects/home/repositories/web/deploy";
    let answer = scene.ask("POST", path, &[], r#"{"pull": true}"#);
    assert_eq!(answer.status, 202, "{}", answer.body);
    let id = answer.json()["deployment_id"].as_i64().unwrap();
    assert_eq!(answer.json(), json!({ "deployment_id": id, "status": "pending" }));
    assert_eq!(answer.header("location"), Some(format!("/api/deployments/{id}").as_str()));
    assert_eq!(scene.daemon.wakes.load(Ordering::SeqCst), 1);
    let stored = scene.store.deployment(id).unwrap().unwrap();
    assert_eq!((stored.trigger, stored.asked.pull, stored.asked.recreate), (Trigger::Api, true, false));
    assert_eq!(scene.control("POST", path, r#"{"recreate": true}"#).json()["deployment_id"], id);
    assert!(scene.store.deployment(id).unwrap().unwrap().asked.recreate);
    let other = scene.control("POST", "/api/projects/home/repositories/media/deploy", "").json();
    let other = scene.store.deployment(other["deployment_id"].as_i64().unwrap()).unwrap().unwrap();
    assert_eq!(other.trigger, Trigger::Cli);
    let body = r#"{"adopt": true, "commit": "ABC1234"}"#;
    assert_eq!(scene.ask("POST", path, &[], body).json()["deployment_id"], id);
    let asked = scene.store.deployment(id).unwrap().unwrap().asked;
    let commit = asked.commit.as_ref().map(CommitPrefix::as_str);
    assert_eq!((asked.adopt, asked.pull, asked.recreate, commit), (true, true, true, Some("abc1234")));
    for (body, word) in [
        ("[", "JSON object"),
        ("{\"pul\": true}", "`pull`, `recreate`, `adopt` and `commit`"),
        ("{\"adopt\": 1}", "`adopt`"),
        ("{\"commit\": \"abc\"}", "7 to 64 hexadecimal digits"),
        ("{\"pull\": \"yes\"}", "`pull`"),
    ] {
        let answer = scene.ask("POST", path, &[], body);
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("bad_request")), "{body}");
        assert!(answer.json()["message"].as_str().unwrap().contains(word), "{}", answer.body);
    }
}

#[test]
fn an_orphan_is_not_deployed_and_is_forgotten_over_the_control_socket_only() {
    let scene = Scene::new();
    let (web, media) = (scene.id("web"), scene.id("media"));
    scene.store.sync(&[spec("home", &["web"])], &[], Timestamp::now()).unwrap();
    assert_eq!(scene.ask("POST", &format!("/api/repositories/{media}/deploy"), &[], "").status, 409);
    let body = json!({ "ids": [media] }).to_string();
    assert_eq!(scene.ask("POST", "/control/prune", &[], &body).status, 404);
    assert_eq!(scene.control("POST", "/control/prune", "{\"ids\": \"x\"}").status, 400);
    assert_eq!(scene.control("GET", "/control/prune", "").status, 405);
    let answer = scene.control("POST", "/control/prune", &json!({ "ids": [media, web] }).to_string());
    assert_eq!((answer.status, &answer.json()["error"]), (409, &json!("conflict")));
    assert!(answer.json()["message"].as_str().unwrap().contains("home/web is no orphan"), "{}", answer.body);
    let answer = scene.control("POST", "/control/prune", &body);
    assert_eq!(answer.json(), json!({ "forgotten": ["home/media"] }));
    assert_eq!(scene.get(&format!("/api/repositories/{media}")).status, 404);
    let check = json!({ "id": web }).to_string();
    assert_eq!(scene.control("POST", "/control/check", &check).status, 204);
    assert_eq!(*scene.daemon.checked.lock().unwrap(), [web]);
    assert_eq!(scene.control("POST", "/control/check", &json!({ "id": media }).to_string()).status, 404);
}

#[test]
fn notifications_are_tried_over_the_control_socket() {
    let scene = Scene::new();
    let answer = scene.control("POST", "/control/notify-test", r#"{"repository": "home/web"}"#);
    assert_eq!(
        answer.json(),
        json!({ "results": [{ "repository": "home/web", "target": "discord", "problem": null }] })
    );
    assert_eq!(scene.control("POST", "/control/notify-test", "{}").json()["results"][0]["repository"], "home/media");
    assert_eq!(scene.control("POST", "/control/notify-test", r#"{"repository": "home/nobody"}"#).status, 404);
    assert_eq!(scene.control("POST", "/control/notify-test", r#"{"repository": "web"}"#).status, 400);
    assert_eq!(scene.ask("POST", "/control/notify-test", &[], "{}").status, 404);
}

#[test]
fn deployments_are_listed_newest_first_page_by_page() {
    let scene = Scene::new();
    let mut ids: Vec<DeploymentId> = (0..5).map(|_| scene.succeed("web")).collect();
    ids.reverse();
    let of = |reply: &Reply| -> Vec<i64> {
        reply.json().as_array().unwrap().iter().map(|one| one["id"].as_i64().unwrap()).collect()
    };
    let page = scene.get("/api/deployments?limit=2&project=home&status=success");
    assert_eq!(of(&page), ids[..2]);
    let next = format!("</api/deployments?limit=2&before={}&status=success&project=home>; rel=\"next\"", ids[1]);
    assert_eq!(page.header("link"), Some(next.as_str()));
    let target = next.split(['<', '>']).nth(1).unwrap();
    assert_eq!(of(&scene.get(target)), ids[2..4]);
    let last = scene.get(&format!("/api/repositories/{}/deployments?limit=5", scene.id("web")));
    assert_eq!((of(&last), last.header("link")), (ids.clone(), None));
    assert_eq!(scene.get("/api/deployments?status=failed").json(), json!([]));
    for query in ["limit=0", "limit=501", "limit=x", "limit=", "before=0", "before=-1", "status=lost", "limit=%zz"] {
        assert_eq!(scene.get(&format!("/api/deployments?{query}")).status, 400, "{query}");
    }
}

#[test]
fn a_log_is_json_or_text_and_long_ones_are_whole() {
    let scene = Scene::new();
    let id = scene.start_deployment("web");
    let say =
        |number: usize| scene.store.log(id, LogLevel::Info, &format!("line \"{number}\""), Timestamp::now()).unwrap();
    say(0);
    let path = format!("/api/deployments/{id}/logs");
    let short = scene.get(&path);
    assert!(short.json()["logs"].as_str().unwrap().ends_with("line \"0\"\n"), "{}", short.body);
    assert!(short.header("content-length").is_some());
    let text = scene.ask("GET", &path, &["Accept: text/plain"], "");
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(text.body, short.json()["logs"].as_str().unwrap());
    (1..1200).for_each(say);
    let long = scene.get(&path);
    assert_eq!(long.header("transfer-encoding"), Some("chunked"));
    let json: Value = serde_json::from_str(&unchunked(&long.body)).unwrap();
    assert_eq!(json["logs"].as_str().unwrap().lines().count(), 1200);
    let long = scene.ask("GET", &path, &["Accept: text/plain"], "");
    assert_eq!(unchunked(&long.body), json["logs"].as_str().unwrap());
    assert_eq!(scene.ask("HEAD", &path, &[], "").status, 200);
    assert_eq!(scene.get("/api/deployments/999/logs").status, 404);
}

/// What is in chunks.
fn unchunked(body: &str) -> String {
    let (mut rest, mut text) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text += &after[..size];
        rest = &after[(size + 2).min(after.len())..];
    }
    text
}

#[test]
fn a_log_that_is_followed_comes_line_by_line_and_ends_with_the_deployment() {
    let scene = Scene::new();
    let id = scene.start_deployment("web");
    let mut stream = scene.tcp();
    write!(stream, "GET /api/deployments/{id}/logs?follow=1 HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    for number in 0..3 {
        scene.store.log(id, LogLevel::Warning, &format!("step {number}"), Timestamp::now()).unwrap();
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert!(line.ends_with(&format!("Z warning: step {number}\n")), "{line}");
    }
    scene.store.log(id, LogLevel::Info, "done", Timestamp::now()).unwrap();
    scene.store.finish(id, &Outcome::Success, Timestamp::now()).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("Z done\n"), "{rest}");
}

#[test]
fn streams_are_bounded_and_those_who_leave_make_room() {
    let scene = Scene::new();
    let id = scene.start_deployment("web");
    let follow = || {
        let mut stream = scene.tcp();
        write!(stream, "GET /api/deployments/{id}/logs?follow=1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (stream, line)
    };
    let streams: Vec<_> = (0..STREAMS_MAX).map(|_| follow()).collect();
    assert!(streams.iter().all(|(_, line)| line.starts_with("HTTP/1.1 200 ")));
    assert!(follow().1.starts_with("HTTP/1.1 503 "));
    assert_eq!(scene.get("/api/projects").status, 200);
    let hold = by_hand::ask(&scene, "/control/hold", &serde_json::Value::Null);
    assert!(by_hand::head_of(&mut { hold }).starts_with("HTTP/1.1 200"), "an upgrade waits all the same");
    drop(streams);
    let started = Instant::now();
    while !follow().1.starts_with("HTTP/1.1 200 ") {
        assert!(started.elapsed() < PATIENCE);
    }
}

#[test]
fn followers_do_not_hold_up_the_end_of_the_web() {
    let mut scene = Scene::new();
    let id = scene.start_deployment("web");
    let mut stream = scene.tcp();
    write!(stream, "GET /api/deployments/{id}/logs?follow=1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut String::new()).unwrap();
    let started = Instant::now();
    scene.stop.stop();
    scene.threads.drain(..).for_each(|thread| thread.join().unwrap().unwrap());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "it ends properly: {rest}");
}

#[test]
fn health_says_what_is_not_well() {
    let scene = Scene::new();
    let health = scene.get("/api/health");
    let json = health.json();
    assert_eq!(
        (health.status, &json["status"], &json["version"]),
        (200, &json!("ok"), &json!(env!("CARGO_PKG_VERSION")))
    );
    let ok = json!({ "status": "ok" });
    assert_eq!(json["checks"], json!({ "database": ok, "docker": ok, "config": ok, "remotes": ok }));
    *scene.daemon.docker_problem.lock().unwrap() = Some("Docker does not answer".to_owned());
    let problem = Problem {
        file: "a.yaml".into(),
        line: Some(3),
        field: "repositories".into(),
        severity: Severity::Error,
        message: "is missing".into(),
    };
    *scene.daemon.catalog.lock().unwrap() = Arc::new(Catalog { problems: vec![problem], ..Catalog::default() });
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_hours(2);
    for at in [long_ago, Timestamp::now()] {
        scene.store.check_failed(scene.id("web"), "no route to host", at).unwrap();
    }
    // At once, however young the last look is: the configuration is another one.
    let health = scene.get("/api/health").json();
    assert_eq!(health["status"], "degraded");
    let checks = &health["checks"];
    assert_eq!(checks["docker"], json!({ "status": "failed", "message": "Docker does not answer" }));
    assert_eq!(checks["config"]["problems"][0]["line"], 3);
    assert_eq!(checks["remotes"]["repositories"], json!([{ "repository": "home/web", "error": "no route to host" }]));
    assert_eq!(checks["database"], ok);
}

#[test]
fn unknown_routes_and_wrong_methods_are_told() {
    let scene = Scene::new();
    for path in [
        "/nothing",
        "/api",
        "/api/",
        "/api/projects/",
        "/api/projects/nobody",
        "/api/projects/%ff",
        "/api/repositories/x",
        "/api/repositories/-1",
        "/api/deployments/99999999999999999999",
        "/api/repositories/999/containers",
        "/../etc/passwd",
        "/control/prune",
    ] {
        let answer = scene.get(path);
        assert_eq!((answer.status, &answer.json()["error"]), (404, &json!("not_found")), "{path}");
    }
    assert_eq!(scene.get("/api/%zz").status, 400);
    assert_eq!(scene.ask("POST", "/api/deployments/1/cancel", &[], "").status, 404);
    for (method, path, allow) in [
        ("DELETE", "/api/projects", "GET, HEAD"),
        ("GET", "/api/repositories/1/deploy", "POST"),
        ("PUT", "/widget/dashy", "GET, HEAD, OPTIONS"),
        ("GET", "/webhook/github", "POST"),
    ] {
        let answer = scene.ask(method, path, &[], "");
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {path}");
    }
    let head = scene.ask("HEAD", "/api/projects", &[], "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), scene.get("/api/projects").header("content-length"));
}

#[test]
fn the_widget_shows_four_values_a_repository() {
    let scene = Scene::new();
    let id = scene.succeed("web");
    scene.queue("media");
    let answer = scene.get("/widget/dashy?project=home");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
    let widgets = answer.json()["widgets"].clone();
    let value = |index: usize| widgets[index]["value"].as_str().unwrap().to_owned();
    assert_eq!([value(0), value(1), value(2), value(3)], ["media", "-", "deploying", "-"]);
    assert_eq!([value(4), value(5), value(6)], ["web", &format!("{id:040x}")[..7], "running"]);
    assert_eq!(widgets[6], json!({ "type": "status", "value": "running", "label": "Status" }));
    assert_eq!(value(7).len(), "2024-01-15 14:30:00".len());
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_hours(2);
    scene.store.check_failed(scene.id("web"), "gone", long_ago).unwrap();
    assert_eq!(scene.get("/widget/dashy?project=home").json()["widgets"][6]["value"], "running", "failed once only");
    scene.store.check_failed(scene.id("web"), "gone", Timestamp::now()).unwrap();
    assert_eq!(scene.get("/widget/dashy?project=home").json()["widgets"][6]["value"], "unknown");
    let missing = scene.get("/widget/dashy");
    assert_eq!((missing.status, missing.header("access-control-allow-origin")), (400, Some("*")));
    assert_eq!(scene.get("/widget/dashy?project=nobody").status, 404);
    assert_eq!(scene.get("/widget/dashy?project=lab").json(), json!({ "widgets": [] }));
}

#[test]
fn the_list_has_the_shape_that_dashy_reads() {
    let scene = Scene::new();
    let id = scene.succeed("web");
    let answer = scene.get("/widget/dashy/list?project=home");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
    let items = answer.json();
    let ended = scene.store.deployment(id).unwrap().unwrap().finished_at.unwrap();
    assert_eq!(items[0]["value"]["text"], "unknown -");
    assert_eq!(items[1]["date"], crate::web::api::json::time(ended));
    assert_eq!(items[1]["value"]["text"], format!("running {}", &format!("{id:040x}")[..7]));
    assert_eq!(
        items[1]["link"],
        json!({ "text": "web", "url": "http://localhost/#/repositories/home/web", "title": "home/web" })
    );
    assert_eq!(scene.get("/widget/dashy/list").status, 400);
    assert_eq!(scene.get("/widget/dashy/list?project=nobody").status, 404);
    assert_eq!(scene.get("/widget/dashy/list?project=lab").json(), json!([]));

    let scene = Scene::with(&[("Shiparr_PUBLIC_URL", "https://nas.example.com/shiparr")]);
    let items = scene.get("/widget/dashy/list?project=home").json();
    assert_eq!(items[1]["link"]["url"], "https://nas.example.com/shiparr/#/repositories/home/web");
}

#[test]
fn a_summary_counts_each_repository_once() {
    let scene = Scene::new();
    let counts = |scene: &Scene| {
        let told = scene.get("/api/summary").json();
        assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
        assert!(told["host"].as_str().is_some_and(|host| !host.is_empty()));
        ["repositories", "ok", "failed", "deploying", "waiting", "orphaned", "unreachable"]
            .map(|name| told[name].as_u64().unwrap())
    };
    assert_eq!(counts(&scene), [2, 0, 0, 0, 0, 0, 0]);
    scene.succeed("web");
    let media = scene.start_deployment("media");
    assert_eq!(counts(&scene), [2, 1, 0, 1, 0, 0, 0]);
    let failed = Outcome::Failed { error: "unhealthy".into(), chance: Chance::Final };
    scene.store.finish(media, &failed, Timestamp::now()).unwrap();
    for hours in [2, 0] {
        let at = Timestamp::now() - jiff::SignedDuration::from_hours(hours);
        scene.store.check_failed(scene.id("web"), "gone", at).unwrap();
    }
    assert_eq!(counts(&scene), [2, 1, 1, 0, 0, 0, 1]);
    scene.store.sync(&[spec("home", &["web"])], &[], Timestamp::now()).unwrap();
    assert_eq!(counts(&scene), [1, 1, 0, 0, 0, 1, 1]);
}

#[test]
fn the_health_of_a_repository_is_that_of_what_was_last_deployed() {
    let scene = Scene::new();
    let path = "/api/projects/home/repositories/web/health";
    let reason = |words: &str| {
        let answer = scene.get(path);
        let told = answer.json();
        assert_eq!((answer.status, &told["error"]), (503, &json!("unhealthy")));
        assert!(told["message"].as_str().unwrap().contains(words), "{told}");
    };
    reason("home/web: it was never deployed");
    let id = scene.succeed("web");
    let well = json!({ "status": "ok", "commit_hash": format!("{id:040x}") });
    assert_eq!(scene.get(path).json(), well);
    assert_eq!(scene.get(&format!("/api/repositories/{}/health", scene.id("web"))).json(), well);
    let second = scene.start_deployment("web");
    assert_eq!(scene.get(path).json(), well, "while the next one is under way");
    let failed = Outcome::Failed { error: "web-1 is unhealthy".into(), chance: Chance::Final };
    scene.store.finish(second, &failed, Timestamp::now()).unwrap();
    reason(&format!("deployment {second} failed: web-1 is unhealthy"));
    scene.succeed("web");
    for hours in [2, 0] {
        assert_eq!(scene.get(path).status, 200);
        let at = Timestamp::now() - jiff::SignedDuration::from_hours(hours);
        scene.store.check_failed(scene.id("web"), "no route to host", at).unwrap();
    }
    reason("its checks have failed for an hour: no route to host");
    scene.store.sync(&[spec("home", &["media"])], &[], Timestamp::now()).unwrap();
    reason("orphaned");
    assert_eq!(scene.get("/api/projects/home/repositories/nobody/health").status, 404);
}

#[test]
fn without_docker_its_logs_are_a_bad_gateway() {
    let scene = Scene::with(&[("Shiparr_DOCKER_BIN", "/nonexistent/docker")]);
    assert_eq!(scene.get("/api/projects/home/repositories/web/logs").body, "", "nothing was ever brought up");
    assert_eq!(scene.get("/containers/web-1/logs").status, 404, "nothing was ever brought up");
    let id = scene.start_deployment("web");
    let brought_up = BroughtUp {
        compose_project: "web".into(),
        folder: "/srv/web".into(),
        services: Default::default(),
        volumes: Default::default(),
    };
    scene.store.up_begins(id, &brought_up).unwrap();
    let base = "/api/projects/home/repositories/web";
    for path in [
        &format!("{base}/logs"),
        &format!("{base}/logs?follow=1"),
        &format!("{base}/containers"),
        "/containers/web-1/logs",
        "/containers/web-1/logs?follow=1",
    ] {
        let answer = scene.get(path);
        assert_eq!((answer.status, &answer.json()["error"]), (502, &json!("bad_gateway")), "{path}");
    }
    for query in ["tail=x", "tail=10001", "since=yesterday", "follow=maybe"] {
        assert_eq!(scene.get(&format!("{base}/logs?{query}")).status, 400, "{query}");
    }
    assert_eq!(scene.get("/containers/-v/logs").status, 404);
}
