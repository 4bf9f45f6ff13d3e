//! GET `/metrics`, and what counts as a request.

use super::*;

/// The value of a series, by its name and labels.
#[track_caller]
fn value(scene: &Scene, series: &str) -> Option<f64> {
    let reply = scene.control("GET", "/metrics", "");
    assert_eq!(reply.status, 200);
    let line = reply.body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
    line.map(|value| value.parse().unwrap())
}

fn requests(scene: &Scene, route: &str, method: &str, status: u16) -> f64 {
    let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\"");
    value(scene, &format!("shiparr_api_request_duration_seconds_count{{{labels}}}")).unwrap_or_default()
}

#[test]
fn a_scrape_shows_how_things_stand() {
    let scene = Scene::new();
    let reply = scene.get("/metrics");
    assert_eq!(reply.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let head = scene.ask("HEAD", "/metrics", &[], "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("Content-Type"), reply.header("Content-Type"));
    let build = format!("{{version=\"{}\",architecture=\"{}\"}}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    assert_eq!(value(&scene, &format!("shiparr_build_info{build}")), Some(1.0));

    let web = "{project=\"home\",repository=\"web\"}";
    let last_success = format!("shiparr_repository_last_success_timestamp_seconds{web}");
    assert_eq!(value(&scene, &last_success), None);
    assert_eq!(value(&scene, &format!("shiparr_repository_up_to_date{web}")), Some(0.0));
    let before = Timestamp::now().as_second() as f64;
    scene.succeed("web");
    assert!(value(&scene, &last_success).unwrap() >= before);
    assert_eq!(value(&scene, &format!("shiparr_repository_up_to_date{web}")), Some(1.0));
    assert_eq!(value(&scene, &format!("shiparr_repository_last_deployment_successful{web}")), Some(1.0));
    assert_eq!(value(&scene, &format!("shiparr_repository_check_failing{web}")), Some(0.0));
    assert_eq!(value(&scene, &format!("shiparr_repository_waiting{web}")), None);

    assert_eq!(value(&scene, "shiparr_queue_depth"), Some(0.0));
    assert_eq!(value(&scene, "shiparr_queue_oldest_timestamp_seconds"), None);
    scene.queue("media");
    scene.start_deployment("web");
    assert_eq!(value(&scene, "shiparr_queue_depth"), Some(1.0));
    assert!(value(&scene, "shiparr_queue_oldest_timestamp_seconds").unwrap() >= before);
    assert_eq!(value(&scene, "shiparr_deployments_running"), Some(1.0));

    assert_eq!(value(&scene, "shiparr_database_up"), Some(1.0));
    assert!(value(&scene, "shiparr_database_size_bytes").unwrap() > 4096.0);
    assert_eq!(value(&scene, "shiparr_docker_up"), Some(1.0));
    *scene.daemon.docker_problem.lock().unwrap() = Some("Docker does not answer".to_owned());
    assert_eq!(value(&scene, "shiparr_docker_up"), Some(0.0));
}

#[test]
fn problems_of_the_configuration_are_counted() {
    let scene = Scene::new();
    let problem = |severity| Problem {
        severity,
        file: "home.yaml".into(),
        line: Some(3),
        field: "repositories.web.branc".to_owned(),
        message: "unknown field".to_owned(),
    };
    let problems = vec![problem(Severity::Error), problem(Severity::Warning), problem(Severity::Error)];
    *scene.daemon.catalog.lock().unwrap() = Arc::new(Catalog { problems, ..Catalog::default() });
    assert_eq!(value(&scene, "shiparr_config_problems{severity=\"error\"}"), Some(2.0));
    assert_eq!(value(&scene, "shiparr_config_problems{severity=\"warning\"}"), Some(1.0));
}

#[test]
fn requests_are_counted_by_the_pattern_of_their_route() {
    let scene = Scene::new();
    let id = scene.id("web");
    scene.get(&format!("/api/repositories/{id}"));
    scene.get("/api/repositories/99");
    scene.get("/api/projects/home/repositories/web");
    scene.ask("HEAD", "/api/projects", &[], "");
    scene.ask("DELETE", "/api/projects", &[], "");
    scene.ask("BREW", "/nowhere/at/all", &[], "");
    scene.get("/nowhere/else?x=1");
    scene.ask("GET", "/api/projects", &["Host: evil.example.com"], "");
    assert_eq!(requests(&scene, "/api/repositories/{id}", "GET", 200), 1.0);
    assert_eq!(requests(&scene, "/api/repositories/{id}", "GET", 404), 1.0);
    assert_eq!(requests(&scene, "/api/projects/{project}/repositories/{name}", "GET", 200), 1.0);
    assert_eq!(requests(&scene, "/api/projects", "HEAD", 200), 1.0);
    assert_eq!(requests(&scene, "/api/projects", "other", 405), 1.0);
    assert_eq!(requests(&scene, "/api/projects", "GET", 403), 1.0);
    assert_eq!(requests(&scene, "none", "other", 404), 1.0);
    assert_eq!(requests(&scene, "none", "GET", 404), 1.0);
    let text = scene.get("/metrics").body;
    for sent in ["nowhere", "DELETE", "BREW", "evil", "?"] {
        assert!(!text.contains(sent), "`{sent}` came from a client");
    }
}

#[test]
fn a_stream_is_counted_when_it_begins() {
    let scene = Scene::new();
    let deployment = scene.start_deployment("web");
    let mut stream = scene.tcp();
    write!(stream, "GET /api/deployments/{deployment}/logs?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.contains(" 200 "), "{line}");
    assert_eq!(requests(&scene, "/api/deployments/{id}/logs", "GET", 200), 1.0);
    scene.store.finish(deployment, &Outcome::Success, Timestamp::now()).unwrap();
}
