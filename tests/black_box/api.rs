//! The HTTP API: shapes, errors, authentication, and who may ask.

use std::io::{BufReader, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::*;

const HASH_OF_NOTHING: &str = "0000000000000000000000000000000000000000";

/// A daemon whose repository `home/web` could be asked for, but whose remote does not exist: no deployment is ever made
/// by itself.
fn idle() -> Daemon {
    Daemon::with(&[Entry::new("web", "/nowhere/stack.git", &Stack::new()).rarely_checked()])
}

fn with_auth(password: &str) -> Daemon {
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_AUTH_ENABLED", "true").env("Shiparr_AUTH_PASSWORD", password);
    daemon.start();
    daemon
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[track_caller]
fn assert_keys(value: &Json, keys: &[&str]) {
    let object = value.as_object().unwrap_or_else(|| panic!("not an object: {value}"));
    let mut here: Vec<&str> = object.keys().map(String::as_str).collect();
    let mut expected = keys.to_vec();
    here.sort_unstable();
    expected.sort_unstable();
    assert_eq!(here, expected, "{value}");
}

#[track_caller]
fn assert_time(value: &Json) {
    let text = value.as_str().unwrap_or_else(|| panic!("not a time: {value}"));
    let shape: String = text.chars().map(|each| if each.is_ascii_digit() { '0' } else { each }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00Z", "{text}");
}

const REPOSITORY_KEYS: [&str; 17] = [
    "id",
    "project",
    "name",
    "git_url",
    "branch",
    "path",
    "local_path",
    "check_interval",
    "status",
    "orphaned",
    "last_commit_hash",
    "observed_commit",
    "last_checked_at",
    "last_error",
    "next_check_at",
    "last_deployment",
    "created_at",
];

const DEPLOYMENT_KEYS: [&str; 16] = [
    "id",
    "repository_id",
    "project",
    "repository",
    "commit_hash",
    "commit_subject",
    "commit_author",
    "status",
    "trigger",
    "actor",
    "attempt",
    "error",
    "created_at",
    "started_at",
    "finished_at",
    "duration_seconds",
];

#[test]
fn every_route_answers_in_the_shape_that_is_promised() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let command = "[\"sh\", \"-c\", \"echo a line of the container; sleep 86400\"]";
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1").replace("[\"sleep\", \"86400\"]", command))]);
    let mut daemon = Daemon::new();
    let entry = Entry::new("web", &repo.url(), &stack);
    daemon.project_text("home", &project_file("home", "description: Services\n", &[entry]));
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());

    let health = daemon.get("/api/health");
    assert_keys(&health, &["status", "version", "host", "uptime_seconds", "checks"]);
    assert_keys(&health["checks"], &["database", "docker", "config", "remotes"]);
    assert_eq!(health["status"], "ok", "{health}");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));

    let projects = daemon.get("/api/projects");
    assert_eq!(projects.as_array().expect("a list").len(), 1);
    assert_keys(&projects[0], &["id", "name", "description", "config_file", "created_at", "repositories"]);
    assert_eq!((&projects[0]["repositories"], &projects[0]["description"]), (&1.into(), &"Services".into()));
    assert_time(&projects[0]["created_at"]);
    let project = daemon.get("/api/projects/home");
    assert_eq!(project["repositories"], daemon.get("/api/projects/home/repositories"));
    assert_eq!(project["repositories"], daemon.get("/api/repositories"));

    let repository = daemon.repository("web");
    assert_keys(&repository, &REPOSITORY_KEYS);
    assert_eq!(repository["project"], "home");
    assert_eq!(repository["branch"], "main");
    assert_eq!(repository["git_url"], format!("file://{}", repo.url()));
    assert_eq!(repository["orphaned"], false);
    for field in ["created_at", "last_checked_at", "next_check_at"] {
        assert_time(&repository[field]);
    }
    let by_id = daemon.get(&format!("/api/repositories/{}", repository["id"]));
    assert_eq!((&by_id["id"], &by_id["name"]), (&repository["id"], &repository["name"]));

    let deployment = &repository["last_deployment"];
    assert_keys(deployment, &DEPLOYMENT_KEYS);
    let id = deployment["id"].as_i64().expect("an id");
    assert_eq!(*deployment, daemon.deployment(id));
    assert_eq!(*deployment, daemon.get(&format!("/api/repositories/{}/deployments", repository["id"]))[0]);
    assert_eq!(*deployment, daemon.get("/api/deployments")[0]);
    assert_eq!((&deployment["project"], &deployment["repository"]), (&"home".into(), &"web".into()));
    for field in ["created_at", "started_at", "finished_at"] {
        assert_time(&deployment[field]);
    }
    assert!(deployment["duration_seconds"].is_number());

    let log = daemon.get(&format!("/api/deployments/{id}/logs"));
    assert_keys(&log, &["logs"]);
    let as_text = daemon.request("GET", &format!("/api/deployments/{id}/logs"), &[("Accept", "text/plain")], b"");
    assert!(as_text.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    assert_eq!(as_text.text(), log["logs"].as_str().expect("text"));

    for path in ["/api/projects/home/repositories/web/logs", &format!("/api/repositories/{}/logs", repository["id"])] {
        let answer = daemon.request("GET", &format!("{path}?tail=5"), &[], b"");
        assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
        assert!(answer.text().contains("a line of the container"), "{}", answer.text());
    }
    let container = stack.container("web").expect("it runs");
    for name in [container.id(), container.name()] {
        let logs = daemon.get(&format!("/containers/{name}/logs?tail=10"));
        assert_keys(&logs, &["logs"]);
        assert!(logs["logs"].as_str().expect("text").contains("a line of the container"));
    }
}

#[test]
fn the_container_of_somebody_else_is_not_found() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let other = Stack::new();
    let label = format!("com.docker.compose.project={}", other.name);
    let name = format!("{}-alone", other.name);
    docker(&["run", "--detach", "--label", &label, "--name", &name, "--network", "none", IMAGE, "echo", "private"]);
    let daemon = idle();
    for path in [format!("/containers/{name}/logs"), "/containers/no-such-thing/logs".to_owned()] {
        let answer = daemon.request("GET", &path, &[], b"");
        assert_eq!((answer.status, answer.error()), (404, "not_found".to_owned()), "{path}");
    }
    for path in ["/containers/-v/logs", "/containers/..%2F..%2Fetc/logs", "/containers/a%20b/logs"] {
        assert_eq!(daemon.request("GET", path, &[], b"").status, 404, "{path}");
    }
}

#[test]
fn the_widget_has_its_four_parts_and_answers_other_origins() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, none) = (Stack::new(), Stack::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.env("TZ", "Asia/Kathmandu");
    let entries =
        [Entry::new("web", &repo.url(), &stack), Entry::new("absent", "/nowhere/x.git", &none).rarely_checked()];
    daemon.project("home", &entries);
    daemon.start();
    let repository = daemon.wait_for_commit("web", &repo.tip());

    let answer = daemon.request("GET", "/widget/dashy?project=home", &[("Origin", "https://dashy.example.com")], b"");
    assert_eq!(answer.status, 200);
    assert!(answer.header("access-control-allow-origin").is_some(), "{:?}", answer.headers);
    let body = answer.json();
    let widgets = body["widgets"].as_array().expect("a list");
    let row = |index: usize| (widgets[index]["type"].as_str(), widgets[index]["label"].as_str());
    assert_eq!(widgets.len(), 8);
    assert_eq!(row(0), (Some("text"), Some("Repository")));
    assert_eq!(row(1), (Some("text"), Some("Version")));
    assert_eq!(row(2), (Some("status"), Some("Status")));
    assert_eq!(row(3), (Some("text"), Some("Last Deploy")));
    let values: Vec<&str> = widgets.iter().map(|widget| widget["value"].as_str().expect("text")).collect();
    assert_eq!(values[..3], ["web", &repo.tip()[..7], "running"], "in the file's order");
    assert_eq!(values[4..], ["absent", "-", "unknown", "-"]);
    let finished: jiff::Timestamp =
        repository["last_deployment"]["finished_at"].as_str().expect("a time").parse().expect("a time");
    let local = finished.in_tz("Asia/Kathmandu").expect("a known zone").strftime("%Y-%m-%d %H:%M:%S").to_string();
    assert_eq!(values[3], local, "in the daemon's time zone");

    let preflight = [
        ("Origin", "https://dashy.example.com"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    let answer = daemon.request("OPTIONS", "/widget/dashy?project=home", &preflight, b"");
    assert!((200..300).contains(&answer.status), "{}", answer.status);
    let allowed = answer.header("access-control-allow-headers").expect("it names headers").to_lowercase();
    assert!(allowed.contains("authorization"));
    assert_eq!(daemon.request("GET", "/widget/dashy", &[], b"").status, 400);
    assert_eq!(daemon.request("GET", "/widget/dashy?project=nobody", &[], b"").status, 404);
}

#[test]
fn deployments_are_paged_and_filtered() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", "services: [")]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.wait_for("web", "failed");
    let mut ids: Vec<i64> = (0..4).map(|_| daemon.deploy("web")).inspect(|id| drop(daemon.failed(*id))).collect();
    ids.reverse();

    let page = daemon.request("GET", "/api/deployments?limit=2", &[], b"");
    let of = |json: &Json| -> Vec<i64> {
        json.as_array().expect("a list").iter().filter_map(|deployment| deployment["id"].as_i64()).collect()
    };
    assert_eq!(of(&page.json()), ids[..2], "newest first");
    let link = page.header("link").expect("a next page").to_owned();
    assert!(link.contains("rel=\"next\""), "{link}");
    let next = link.split(['<', '>']).nth(1).expect("a target in angle brackets").to_owned();
    let target = next.find("/api/").map(|begin| &next[begin..]).expect("a path");
    assert_eq!(of(&daemon.get(target)), ids[2..4]);
    assert_eq!(of(&daemon.get(&format!("/api/deployments?before={}", ids[1])))[..2], ids[2..4]);
    assert_eq!(daemon.get("/api/deployments?status=success"), Json::Array(Vec::new()));
    assert_eq!(daemon.get("/api/deployments?status=failed").as_array().expect("a list").len(), 5);
    assert_eq!(daemon.get("/api/deployments?project=home&limit=1").as_array().expect("a list").len(), 1);
    for query in ["limit=0", "limit=501", "limit=x", "before=x", "status=nonsense"] {
        let answer = daemon.request("GET", &format!("/api/deployments?{query}"), &[], b"");
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
        assert_keys(&answer.json(), &["error", "message"]);
    }
}

#[test]
fn a_deploy_is_accepted_with_its_id_and_its_place() {
    let daemon = idle();
    let id = daemon.repository("web")["id"].clone();
    let answer = daemon.post(&format!("/api/repositories/{id}/deploy"));
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_keys(&answer.json(), &["deployment_id", "status"]);
    assert_eq!(answer.json()["status"], "pending");
    let location = answer.header("location").expect("a place");
    assert!(location.ends_with(&format!("/api/deployments/{}", answer.json()["deployment_id"])), "{location}");

    let path = "/api/projects/home/repositories/web/deploy";
    for (body, word) in [
        ("{\"pull\": \"yes\"}", "pull"),
        ("{\"pul\": true}", "pul"),
        ("[true]", ""),
        ("{", ""),
        ("{\"adopt\": \"yes\"}", "adopt"),
        ("{\"commit\": \"abc123\"}", "7 to 64 hexadecimal digits"),
    ] {
        let answer = daemon.request("POST", path, &[("Content-Type", "application/json")], body.as_bytes());
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert!(answer.text().contains(word), "{body}: {}", answer.text());
    }
}

#[test]
fn what_is_not_there_is_an_error_of_its_kind() {
    let mut daemon = idle();
    for path in [
        "/api",
        "/api/nothing",
        "/api/projects/nobody",
        "/api/projects/nobody/repositories",
        "/api/projects/home/repositories/nobody",
        "/api/repositories/999",
        "/api/repositories/999999999999999999999",
        "/api/repositories/x",
        "/api/deployments/999",
        "/api/deployments/-1",
        "/api/deployments/999/logs",
        "/../../etc/passwd",
        "/api/projects/..%2f..%2fetc",
        "/api/projects/%ff",
    ] {
        let answer = daemon.request("GET", path, &[], b"");
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        assert_keys(&answer.json(), &["error", "message"]);
        assert_eq!(answer.error(), "not_found", "{path}");
        assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json")));
    }
    assert_eq!(daemon.post("/api/deployments/1/cancel").status, 404);

    for (method, path, allowed) in [
        ("POST", "/api/health", "GET"),
        ("DELETE", "/api/projects/home", "GET"),
        ("GET", "/api/projects/home/repositories/web/deploy", "POST"),
        ("PUT", "/api/repositories/1/deploy", "POST"),
    ] {
        let answer = daemon.request(method, path, &[], b"");
        assert_eq!(answer.status, 405, "{method} {path}");
        let allow = answer.header("allow").expect("405 says what is allowed").to_owned();
        assert!(allow.split(',').any(|word| word.trim() == allowed), "{method} {path}: {allow}");
        assert_eq!(answer.error(), "method_not_allowed");
    }
    daemon.assert_well();
}

#[test]
fn every_get_answers_head_without_a_body() {
    let daemon = idle();
    for path in ["/api/health", "/api/projects", "/api/repositories", "/api/deployments", "/widget/dashy?project=home"]
    {
        let (get, head) = (daemon.request("GET", path, &[], b""), daemon.request("HEAD", path, &[], b""));
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        // Two heads on one connection: a body after the first would be read as the second answer.
        let stream = daemon.connect();
        let mut writing = stream.try_clone().expect("share the connection");
        let mut reading = BufReader::new(stream);
        for _ in 0..2 {
            writing.write_all(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).expect("send");
            assert_eq!(read_answer(&mut reading, true).expect("an answer").status, get.status, "{path}");
        }
    }
    assert_eq!(daemon.request("HEAD", "/api/nothing", &[], b"").status, 404);
}

#[test]
fn requests_on_one_connection_are_answered_one_after_the_other() {
    let daemon = idle();
    let stream = daemon.connect();
    let mut writing = stream.try_clone().expect("share the connection");
    let mut reading = BufReader::new(stream);
    let request = "GET /api/projects HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(5);
    writing.write_all(request.as_bytes()).expect("send");
    for _ in 0..5 {
        let answer = read_answer(&mut reading, false).expect("an answer");
        assert_eq!((answer.status, answer.json().as_array().map(Vec::len)), (200, Some(1)));
    }
}

#[test]
fn without_the_password_nothing_but_health_is_answered() {
    let daemon = with_auth("open sesame");
    let answer = daemon.request("GET", "/api/projects", &[], b"");
    assert_eq!(answer.status, 401);
    assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"Shiparr\""));
    assert_eq!(answer.error(), "unauthorized");
    assert_eq!(daemon.post("/api/repositories/1/deploy").status, 401);
    assert_eq!(daemon.request("GET", "/api/nothing", &[], b"").status, 401);
    assert_keys(&daemon.get("/api/health"), &["status"]);

    let right = basic("admin", "open sesame");
    let with = |value: &str| daemon.request("GET", "/api/projects", &[("Authorization", value)], b"").status;
    assert_eq!(with(&right), 200);
    assert_eq!(with(&basic("admin", "open sesam")), 401);
    assert_eq!(with(&basic("root", "open sesame")), 401);
    assert_eq!(with("Basic %%%"), 401);
    let full = daemon.request("GET", "/api/health", &[("Authorization", &right)], b"").json();
    assert!(full["version"].is_string(), "{full}");
    assert_eq!(daemon.request_by_socket("GET", "/api/projects").status, 200, "the socket's permissions are its own");
    let preflight = [("Origin", "https://x.example"), ("Access-Control-Request-Method", "GET")];
    let answer = daemon.request("OPTIONS", "/widget/dashy?project=home", &preflight, b"");
    assert!((200..300).contains(&answer.status), "{}", answer.status);
    assert_eq!(daemon.request("GET", "/widget/dashy?project=home", &[], b"").status, 401);
    assert_eq!(with(&right), 200);
    let status = daemon.cli(&["status", "--json"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
}

#[test]
fn hashed_passwords_are_checked() {
    use argon2::password_hash::PasswordHasher as _;
    let salt = argon2::password_hash::SaltString::encode_b64(b"salt-of-the-test").expect("a salt");
    let argon = argon2::Argon2::default().hash_password(b"open sesame", &salt).expect("a hash").to_string();
    let bcrypt = bcrypt::hash("open sesame", 6).expect("a hash");
    for hash in [argon, bcrypt] {
        let daemon = with_auth(&hash);
        let status = |password: &str| {
            let value = basic("admin", password);
            daemon.request("GET", "/api/projects", &[("Authorization", &value)], b"").status
        };
        assert_eq!(status("open sesame"), 200);
        assert_eq!(status(&hash), 401, "the hash itself is no password");
        assert_eq!(status("wrong"), 401);
        assert_eq!(status("open sesame"), 200);
    }
}

#[test]
fn the_sixth_failure_a_minute_is_turned_away() {
    let daemon = with_auth("open sesame");
    let status = |password: &str| {
        let value = basic("admin", password);
        daemon.request("GET", "/api/projects", &[("Authorization", &value)], b"")
    };
    for _ in 0..5 {
        assert_eq!(status("wrong").status, 401);
    }
    let sixth = status("wrong");
    assert_eq!(sixth.status, 429);
    let seconds: u64 = sixth.header("retry-after").and_then(|value| value.parse().ok()).expect("a time to wait");
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert!(daemon.log().contains("127.0.0.1"), "failures are logged with the address");
    assert!(!daemon.log().contains("wrong"), "and never what was tried");
}

#[test]
fn a_weak_or_absent_password_stops_the_start() {
    for password in [None, Some("changeme")] {
        let mut daemon = Daemon::new();
        daemon.env("Shiparr_AUTH_ENABLED", "true");
        if let Some(password) = password {
            daemon.env("Shiparr_AUTH_PASSWORD", password);
        }
        daemon.spawn(&["run"]);
        assert_ne!(daemon.wait_for_exit(SHORT).code(), Some(0));
        assert!(daemon.log().contains("AUTH_PASSWORD"), "{}", daemon.log());
    }
}

#[test]
fn while_auth_is_off_only_known_hosts_are_answered() {
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_ALLOWED_HOSTS", "ship.example.com, Other.Example.org");
    daemon.start();
    let status = |host: &str| daemon.request("GET", "/api/projects", &[("Host", host)], b"");
    for host in [
        "127.0.0.1",
        "127.0.0.1:8080",
        "192.168.1.5",
        "[::1]:8080",
        "localhost",
        "localhost:8080",
        "LOCALHOST",
        "nas",
        "nas:8080",
        "nas.local",
        "nas.lan",
        "nas.internal",
        "nas.home.arpa",
        "ship.example.com",
        "SHIP.example.com:8080",
        "other.example.org",
    ] {
        assert_eq!(status(host).status, 200, "{host}");
    }
    for host in
        ["example.com", "evil.example.com", "ship.example.com.evil.net", "localhost.evil.net", "1.2.3.4.evil.net"]
    {
        let answer = status(host);
        assert_eq!((answer.status, answer.error()), (403, "host_not_allowed".to_owned()), "{host}");
        assert!(answer.text().contains("Shiparr_ALLOWED_HOSTS"), "{}", answer.text());
    }
    let mut with_password = with_auth("open sesame");
    let value = basic("admin", "open sesame");
    let headers = [("Host", "any.example.com"), ("Authorization", value.as_str())];
    assert_eq!(with_password.request("GET", "/api/projects", &headers, b"").status, 200);
    with_password.assert_well();
}

#[test]
fn writes_from_other_sites_are_refused() {
    let daemon = idle();
    let path = "/api/projects/home/repositories/web/deploy";
    let status = |headers: &[(&str, &str)]| daemon.request("POST", path, headers, b"").status;
    assert_eq!(status(&[("Sec-Fetch-Site", "cross-site")]), 403);
    assert_eq!(status(&[("Sec-Fetch-Site", "same-site")]), 403);
    assert_eq!(status(&[("Origin", "https://evil.example")]), 403);
    assert_eq!(status(&[("Origin", "null")]), 403);
    assert_eq!(status(&[("Sec-Fetch-Site", "cross-site"), ("Origin", "http://localhost")]), 403);
    assert_eq!(daemon.deployments_of("web").len(), 0, "nothing was queued");
    assert_eq!(status(&[("Sec-Fetch-Site", "same-origin"), ("Origin", "http://localhost")]), 202);
    assert_eq!(status(&[("Sec-Fetch-Site", "none")]), 202);
    assert_eq!(status(&[("Origin", "http://localhost")]), 202);
    let read = [("Sec-Fetch-Site", "cross-site"), ("Origin", "https://evil.example")];
    assert_eq!(daemon.request("GET", "/api/projects", &read, b"").status, 200, "reading is no write");
}

#[test]
fn auth_off_on_an_open_address_warns() {
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_HOST", "0.0.0.0");
    daemon.start();
    let warned = daemon.log().lines().any(|line| line.contains("WARN") && line.contains("AUTH"));
    assert!(warned, "{}", daemon.log());
}

#[test]
fn a_repository_that_was_never_deployed_says_so() {
    let daemon = idle();
    let repository = wait_until(SHORT, "the first check", || {
        Some(daemon.repository("web")).filter(|repository| repository["last_error"].is_string())
    });
    assert_eq!(repository["status"], "never_deployed");
    let error = repository["last_error"].as_str().expect("an error");
    assert!(error.contains("no Git repository at /nowhere/stack.git"), "{error}");
    assert_eq!(repository["last_deployment"], Json::Null);
    assert_eq!(repository["last_commit_hash"], Json::Null);
    assert_ne!(repository["observed_commit"], HASH_OF_NOTHING);
}
