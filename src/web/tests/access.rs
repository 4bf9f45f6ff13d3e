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
fn slow_answers_keep_nobody_from_logging_in() {
    let hash = bcrypt::hash("open sesame", 4).unwrap();
    let scene = Scene::with(&[("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", &hash)]);
    let held = scene.daemon.held.lock().unwrap();
    std::thread::scope(|scope| {
        let slow = || scene.control("POST", "/control/notify-test", r#"{"repository": "home/held"}"#).status;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(slow)).collect();
        let started = Instant::now();
        while scene.daemon.holding.load(Ordering::SeqCst) < 8 && started.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let ninth = slow();
        let login = scene.ask("GET", "/api/projects", &[&basic("admin", "open sesame")], "").status;
        drop(held);
        assert_eq!((ninth, login), (503, 200));
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 200));
    });
}

#[test]
fn a_browser_that_logs_in_with_many_requests_at_once_is_let_in() {
    let hash = bcrypt::hash("open sesame", 8).unwrap();
    let scene = Scene::with(&[("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", &hash)]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let right = || scene.ask("GET", "/api/projects", &[&basic("admin", "open sesame")], "").status;
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(right)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses, [200; 6]);
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

const ENABLED: (&str, &str) = ("Shiparr_AUTH_ENABLED", "true");
const PASSWORD: (&str, &str) = ("Shiparr_AUTH_PASSWORD", "open sesame");
const VIEWER: (&str, &str) = ("Shiparr_VIEWER_PASSWORD", "look around");
const KEY: (&str, &str) = ("Shiparr_API_KEY", "0123456789abcdef");
const DEPLOY: &str = "/api/projects/home/repositories/web/deploy";

#[test]
fn a_viewer_looks_and_changes_nothing() {
    let scene = Scene::with(&[ENABLED, PASSWORD, VIEWER]);
    let deployment = scene.start_deployment("web");
    let viewer = basic("viewer", "look around");
    for path in ["/api/projects", "/api/repositories", "/widget/dashy?project=home", "/api/deployments"] {
        assert_eq!(scene.ask("GET", path, &[&viewer], "").status, 200, "{path}");
        assert_eq!(scene.ask("HEAD", path, &[&viewer], "").status, 200, "{path}");
    }
    let log = scene.ask("GET", &format!("/api/deployments/{deployment}/logs"), &[&viewer], "");
    assert_eq!(log.status, 200, "what a deployment says is for viewers");
    assert!(scene.ask("GET", "/api/health", &[&viewer], "").json()["version"].is_string());
    for path in ["/containers/web-1/logs", "/api/repositories/1/logs", "/api/projects/home/repositories/web/logs"] {
        for method in ["GET", "HEAD"] {
            let answer = scene.ask(method, path, &[&viewer], "");
            assert_eq!(answer.status, 403, "{method} {path}");
        }
        let answer = scene.ask("GET", &format!("{path}?follow=1"), &[&viewer], "").json();
        assert_eq!(answer["error"], "forbidden");
        assert!(answer["message"].as_str().unwrap().contains("logs of containers"), "{answer}");
    }
    let cancel = format!("/api/deployments/{deployment}/cancel");
    for (method, path) in [
        ("POST", DEPLOY),
        ("POST", &cancel),
        ("POST", "/control/prune"),
        ("PUT", DEPLOY),
        ("PATCH", DEPLOY),
        ("DELETE", "/api/projects/home"),
        ("post", DEPLOY),
        ("PROPFIND", DEPLOY),
        ("POST", "/nothing"),
    ] {
        let answer = scene.ask(method, path, &[&viewer], "");
        assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("forbidden")), "{method} {path}");
        assert!(answer.body.contains("change anything"), "{}", answer.body);
    }
    for (method, header, status) in [
        ("GET", "X-HTTP-Method-Override: POST", 405),
        ("OPTIONS", "X-Nothing: 1", 405),
        ("HEAD", "X-Method: POST", 405),
    ] {
        assert_eq!(scene.ask(method, DEPLOY, &[&viewer, header], "").status, status, "{method} {header}");
    }
    assert_eq!(scene.store.pending().unwrap(), []);
    assert_eq!(scene.ask("POST", DEPLOY, &[&basic("admin", "open sesame")], "").status, 202);
    assert_eq!(scene.store.pending().unwrap()[0].actor.as_deref(), Some("admin"));
    // Names and passwords do not mix, and none is no password.
    for (user, password) in [("admin", "look around"), ("viewer", "open sesame"), ("viewer", ""), ("", "look around")] {
        assert_eq!(scene.ask("GET", "/api/projects", &[&basic(user, password)], "").status, 401, "{user} {password}");
    }
}

#[test]
fn without_a_password_for_the_viewer_there_is_none() {
    let scene = Scene::with(&[ENABLED, PASSWORD]);
    for password in ["", "viewer", "open sesame"] {
        assert_eq!(scene.ask("GET", "/api/projects", &[&basic("viewer", password)], "").status, 401, "{password}");
    }
}

#[test]
fn a_key_is_as_good_as_the_password() {
    let scene = Scene::with(&[ENABLED, PASSWORD, KEY]);
    let other_sites_page = "Origin: http://localhost";
    for header in ["X-Api-Key: 0123456789abcdef", "x-api-key: 0123456789abcdef", "X-API-KEY:0123456789abcdef"] {
        assert_eq!(scene.ask("GET", "/api/projects", &[header], "").status, 200, "{header}");
        assert_eq!(scene.ask("POST", DEPLOY, &[header, other_sites_page], "").status, 202, "{header}");
    }
    assert_eq!(scene.store.pending().unwrap()[0].actor.as_deref(), Some("api-key"));
    let right = "X-Api-Key: 0123456789abcdef";
    let (admin, wrong) = (basic("admin", "open sesame"), basic("admin", "x"));
    // A proxy's own password comes along; the key decides.
    assert_eq!(scene.ask("GET", "/api/projects", &[right, &wrong], "").status, 200);
    for twice in [[right, right], [&admin, &admin], [&admin, &wrong]] {
        assert_eq!(scene.ask("GET", "/api/projects", &twice, "").status, 400, "{twice:?}");
    }
    assert_eq!(scene.get("/api/projects?apikey=0123456789abcdef").status, 401, "no secret belongs into a URL");
    assert_eq!(scene.ask("GET", "/api/projects", &["Authorization: Bearer 0123456789abcdef"], "").status, 401);
    for (wrong, status) in [
        ("X-Api-Key: 0123456789abcdeF", 401),
        ("X-Api-Key: 0123456789abcde", 401),
        ("X-Api-Key: 0123456789abcdef0", 401),
        ("X-Api-Key:", 401),
        ("X-Api-Key: changeme", 401),
        ("X-Api-Key: sixth", 429),
    ] {
        assert_eq!(scene.ask("GET", "/api/projects", &[wrong, &admin], "").status, status, "{wrong}");
    }
    assert_eq!(scene.ask("GET", "/api/projects", &[right], "").status, 200, "what was right before is known");
    let without = Scene::with(&[ENABLED, PASSWORD]);
    for header in ["X-Api-Key:", "X-Api-Key: anything"] {
        assert_eq!(without.ask("GET", "/api/projects", &[header], "").status, 401, "{header}");
        assert_eq!(without.ask("GET", "/api/projects", &[header, &admin], "").status, 200, "{header}");
    }
}

#[test]
fn public_widgets_are_all_that_is_public() {
    let scene = Scene::with(&[ENABLED, PASSWORD, ("Shiparr_WIDGET_PUBLIC", "true")]);
    let wrong = basic("admin", "x");
    for _ in 0..7 {
        // A dashboard that sends what it should not is served, and guesses nothing.
        assert_eq!(scene.ask("GET", "/widget/dashy?project=home", &[&wrong], "").status, 200);
        assert_eq!(scene.ask("POST", "/webhook/github", &[&wrong], "{}").status, 404);
    }
    assert_eq!(scene.ask("GET", "/api/projects", &[&wrong], "").status, 401);
    for path in ["/", "/?embed=0", "/api/projects?embed=1", "/widget/../api/projects", "/widget", "//?embed=1"] {
        assert_eq!(scene.get(path).status, 401, "{path}");
    }
    assert_ne!(scene.get("/?project=home&embed=1").status, 401);
    assert_eq!(scene.ask("POST", "/widget/dashy?project=home", &[], "").status, 401);
}

#[test]
fn routes_are_served_below_the_path_of_the_public_url() {
    let scene = Scene::with(&[("Shiparr_PUBLIC_URL", "https://ship.example.com/shiparr")]);
    for path in ["/shiparr/api/projects", "/api/projects"] {
        assert_eq!(scene.ask("GET", path, &["Host: ship.example.com"], "").status, 200, "{path}");
    }
    for path in ["/shiparr/shiparr/api/projects", "/shiparr/../api/projects", "/shiparr//api/projects", "/shiparrapi"] {
        assert_eq!(scene.get(path).status, 404, "{path}");
    }
    let answer = scene.get("/shiparr?project=home");
    assert_eq!((answer.status, answer.header("location")), (308, Some("/shiparr/?project=home")));
    // The proxy may rewrite `Host`; the browser's `Origin` is the public name.
    for path in [DEPLOY.to_owned(), format!("/shiparr{DEPLOY}")] {
        let answer = scene.ask("POST", &path, &["Host: 10.0.0.5:8080", "Origin: https://ship.example.com"], "");
        assert_eq!(answer.status, 202, "{}", answer.body);
        assert_eq!(answer.header("location"), Some("/shiparr/api/deployments/1"));
        assert_eq!(scene.get(answer.header("location").unwrap()).status, 200);
        let page = ["Host: ship.example.com", "Origin: https://evil.example"];
        assert_eq!(scene.ask("POST", &path, &page, "").status, 403);
    }
    scene.store.start(1, "1", Timestamp::now()).unwrap();
    scene.queue("web");
    for path in ["/api/deployments?limit=1", "/shiparr/api/deployments?limit=1"] {
        let link = scene.get(path);
        let link = link.header("link").unwrap();
        assert!(link.starts_with("</shiparr/api/deployments?limit=1&before="), "{link}");
    }
    assert_eq!(
        scene.ask("GET", "/api/projects", &["Host: evil.example", "X-Forwarded-Host: ship.example.com"], "").status,
        403
    );
}

#[test]
fn who_guesses_is_told_by_the_proxy_that_is_trusted_and_by_no_other() {
    let guess = |scene: &Scene, forwarded: &[&str], password: &str| {
        let login = basic("admin", password);
        let lines: Vec<&str> = forwarded.iter().copied().chain([login.as_str()]).collect();
        scene.ask("GET", "/api/projects", &lines, "").status
    };
    let scene = Scene::with(&[ENABLED, PASSWORD, ("Shiparr_TRUSTED_PROXIES", "127.0.0.0/8")]);
    for number in 0..5 {
        // What stands further left is the client's own invention.
        let lines = [&format!("X-Forwarded-For: 192.0.2.{number}"), "x-forwarded-for: 203.0.113.9:1234"];
        assert_eq!(guess(&scene, &lines, "x"), 401);
    }
    let forwarded = "Forwarded: for=192.0.2.77";
    assert_eq!(guess(&scene, &["X-Forwarded-For: 203.0.113.9", forwarded], "open sesame"), 429);
    assert_eq!(guess(&scene, &["X-Forwarded-For: 203.0.113.9, 127.0.0.3"], "open sesame"), 429);
    assert_eq!(guess(&scene, &["X-Forwarded-For: ::ffff:203.0.113.9"], "open sesame"), 429);
    assert_eq!(guess(&scene, &["X-Forwarded-For: 203.0.113.10"], "open sesame"), 200);
    // Whatever a client wrote, what the proxy added to its line counts.
    let statuses = [1; 6].map(|number| guess(&scene, &[&format!("X-Forwarded-For: \u{fc}, 192.0.2.{number}")], "x"));
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429]);
    assert_eq!(guess(&scene, &["X-Forwarded-For: \u{fc}, 192.0.2.2"], "x"), 401);

    let scene = Scene::with(&[ENABLED, PASSWORD, ("Shiparr_TRUSTED_PROXIES", "10.0.0.1")]);
    let statuses: Vec<u16> =
        (0..6).map(|number| guess(&scene, &[&format!("X-Forwarded-For: 192.0.2.{number}")], "x")).collect();
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429], "nobody changes an address by saying so");
}

#[test]
fn a_deployment_knows_who_asked_for_it() {
    let scene = Scene::new();
    assert_eq!(scene.ask("POST", DEPLOY, &["X-Shiparr-Peer: uid:0"], "").status, 202);
    assert_eq!(scene.get("/api/deployments/1").json()["actor"], json!(null), "nobody logs in while auth is off");
    scene.store.start(1, "1", Timestamp::now()).unwrap();
    assert_eq!(scene.control("POST", DEPLOY, "").status, 202);
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let own = format!(":{}:", rustix::process::geteuid().as_raw());
    let name = users.lines().find(|line| line.contains(&own)).and_then(|line| line.split(':').next());
    let deployment = scene.get("/api/deployments/2").json();
    assert_eq!((&deployment["actor"], &deployment["trigger"]), (&json!(name.unwrap()), &json!("cli")));
}

/// Somebody else guesses, twenty times a second and more, until this is dropped.
fn while_others_guess<T>(scene: &Scene, header: impl Fn(usize) -> String + Sync, meanwhile: impl FnOnce() -> T) -> T {
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let begun = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !is_over.load(Ordering::SeqCst) {
                let login = basic("admin", &format!("guess {number}"));
                // Answers are not waited for, as whoever guesses would not.
                let mut stream = scene.tcp();
                let lines = format!("Host: localhost\r\n{login}\r\n{}\r\n", header(number));
                let _ = stream.write_all(format!("GET /api/projects HTTP/1.1\r\n{lines}\r\n").as_bytes());
                begun.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(40));
                number += 1;
            }
        });
        let started = Instant::now();
        while begun.load(Ordering::SeqCst) < 10 && started.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        is_over.store(true, Ordering::SeqCst);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn wrong_passwords_do_not_slow_right_ones() {
    let salt = argon2::password_hash::SaltString::from_b64("c29tZXNhbHQ").unwrap();
    let params = argon2::Params::new(1024, 1, 1, None).unwrap();
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let hash = argon2::PasswordHasher::hash_password(&argon2, b"open sesame", &salt).unwrap().to_string();
    let scene =
        Scene::with(&[ENABLED, ("Shiparr_AUTH_PASSWORD", &hash), VIEWER, ("Shiparr_TRUSTED_PROXIES", "127.0.0.1")]);
    let ask = |address: &str, user: &str, password: &str| {
        let started = Instant::now();
        let from = format!("X-Forwarded-For: {address}");
        (scene.ask("GET", "/api/projects", &[&from, &basic(user, password)], "").status, started.elapsed())
    };
    // Others guess from other addresses, fewer than there are places for those who try for the first time; nobody is
    // known yet.
    let elsewhere = |number: usize| format!("X-Forwarded-For: 192.0.2.{}", number % 5);
    let (status, took) = while_others_guess(&scene, elsewhere, || ask("198.51.100.1", "admin", "open sesame"));
    assert_eq!(status, 200, "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(ask("198.51.100.1", "viewer", "look around").0, 200);
    // Somebody guesses from the address of those who are known.
    let here = |_| "X-Forwarded-For: 198.51.100.1".to_owned();
    while_others_guess(&scene, here, || {
        for _ in 0..20 {
            let (status, took) = ask("198.51.100.1", "admin", "open sesame");
            assert!(status == 200 && took < Duration::from_secs(1), "{status} {took:?}");
            assert_eq!(ask("198.51.100.1", "viewer", "look around").0, 200);
        }
        assert_eq!(ask("198.51.100.1", "admin", "open poppy").0, 429);
    });
}
