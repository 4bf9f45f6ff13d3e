//! Who may ask: other sites' pages, and those without the password.

use super::*;

#[test]
fn pages_of_other_sites_read_nothing_and_change_nothing() {
    let scene = Scene::with(&[("Shiparr_ALLOWED_HOSTS", "ship.example.com")]);
    assert_eq!(scene.ask("GET", "/api/projects", &["Host: ship.example.com:8080"], "").status, 200);
    let answer = scene.ask("GET", "/api/health", &["Host: evil.example"], "");
    assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("host_not_allowed")));
    assert!(answer.body.contains("Shiparr_ALLOWED_HOSTS"));
    let mut stream = scene.tcp();
    stream
        .write_all(b"GET http://evil.example/api/projects HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let path = "/api/projects/home/repositories/web/deploy";
    for header in
        ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Origin: https://evil.example", "Origin: null"]
    {
        assert_eq!(scene.ask("POST", path, &[header], "").status, 403, "{header}");
    }
    assert_eq!(scene.store.pending().unwrap(), []);
    for header in ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: none", "Origin: http://localhost:99", "X-Nothing: 1"]
    {
        assert_eq!(scene.ask("POST", path, &[header], "").status, 202, "{header}");
    }
    // The gate's own headers cannot be sent.
    assert_eq!(scene.ask("POST", "/control/prune", &["X-Shiparr-Listener: control"], "{\"ids\":[]}").status, 404);
}

#[test]
fn behind_a_password_only_health_is_open() {
    let scene = Scene::with(&[("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", "open sesame")]);
    let answer = scene.get("/api/projects");
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Basic realm=\"Shiparr\"")));
    assert_eq!(scene.get("/nothing").status, 401);
    assert_eq!(scene.get("/api/health").json(), json!({ "status": "ok" }));
    let right = basic("admin", "open sesame");
    assert_eq!(scene.ask("GET", "/api/projects", &[&right, "Host: any.example.com"], "").status, 200);
    assert!(scene.ask("GET", "/api/health", &[&right], "").json()["version"].is_string());
    assert_eq!(scene.ask("GET", "/api/health", &[&basic("admin", "no")], "").json(), json!({ "status": "ok" }));
    assert_eq!(scene.control("GET", "/api/projects", "").status, 200);
    for header in [&basic("root", "open sesame"), &basic("admin", "open sesamE"), "Authorization: Bearer x"] {
        assert_eq!(scene.ask("GET", "/api/projects", &[header], "").status, 401, "{header}");
    }
    let preflight =
        scene.ask("OPTIONS", "/widget/dashy", &["Origin: https://x", "Access-Control-Request-Method: GET"], "");
    assert_eq!((preflight.status, preflight.header("access-control-allow-headers")), (204, Some("Authorization")));
    let widget = scene.get("/widget/dashy?project=home");
    assert_eq!((widget.status, widget.header("access-control-allow-origin")), (401, Some("*")));
    // Two wrong ones above, and one at health.
    for _ in 0..2 {
        assert_eq!(scene.ask("GET", "/api/projects", &[&basic("admin", "x")], "").status, 401);
    }
    let refused = scene.ask("GET", "/api/projects", &[&basic("admin", "x")], "");
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (429, true));
    assert_eq!(scene.ask("GET", "/api/projects", &[&right], "").status, 200, "what was right before is known");
}

#[test]
fn a_hash_is_asked_once_and_wrong_ones_are_bounded() {
    let hash = bcrypt::hash("open sesame", 8).unwrap();
    let scene = Scene::with(&[("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", &hash)]);
    let right = basic("admin", "open sesame");
    assert_eq!(scene.ask("GET", "/api/projects", &[&basic("admin", &hash)], "").status, 401);
    assert_eq!(scene.ask("GET", "/api/projects", &[&right], "").status, 200);
    let started = Instant::now();
    for _ in 0..50 {
        assert_eq!(scene.ask("GET", "/api/projects", &[&right], "").status, 200);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let scene = &scene;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let wrong = |number| scene.ask("GET", "/api/projects", &[&basic("admin", &format!("{number}"))], "").status;
        let threads: Vec<_> = (0..20).map(|number| scope.spawn(move || wrong(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(statuses.iter().filter(|status| **status == 401).count() <= 4, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 401 | 429)), "{statuses:?}");
}

#[test]
fn a_browser_that_logs_in_with_many_requests_at_once_is_let_in() {
    let hash = bcrypt::hash("open sesame", 8).unwrap();
    let scene = Scene::with(&[("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", &hash)]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let right = || scene.ask("GET", "/api/projects", &[&basic("admin", "open sesame")], "").status;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(right)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses, [200; 8]);
}

#[test]
fn a_password_that_is_changed_to_the_example_lets_nobody_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "open sesame\n").unwrap();
    let path = file.display().to_string();
    let scene = Scene::with(&[("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD_FILE", &path)]);
    assert_eq!(scene.ask("GET", "/api/projects", &[&basic("admin", "open sesame")], "").status, 200);
    for (password, status) in [("changeme", 503), ("", 503), ("open poppy", 200)] {
        std::fs::write(&file, password).unwrap();
        assert_eq!(scene.ask("GET", "/api/projects", &[&basic("admin", password)], "").status, status, "{password}");
    }
}
