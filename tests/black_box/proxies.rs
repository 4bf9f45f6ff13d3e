//! Behind a real nginx: with a path that it strips or does not, who is believed, logs that come as they are written.

use std::io::{Read, Write};
use std::net::TcpStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::support::{
    Answer, Daemon, Entry, Fake, Nginx, Repo, Stack, exchange, free_port, missing, parts, read_until,
};

const README: &str = include_str!("../../README.md");
/// Where the example leads, and below which path.
const EXAMPLE_UPSTREAM: &str = "127.0.0.1:8080";
const PUBLIC_URL: &str = "https://host.example.com/shiparr";

/// nginx as the README has it.
struct Proxy {
    _nginx: Nginx,
    port: u16,
}

impl Proxy {
    /// In front of a daemon, with the README's lines after `change` had them.
    fn in_front_of(daemon: &Daemon, change: Change) -> Proxy {
        let (_, example) = README.split_once("\n```nginx\n").expect("the README shows nginx");
        let (example, _) = example.split_once("\n```\n").expect("a block is closed");
        assert!(example.contains(EXAMPLE_UPSTREAM));
        let lines = change(example.replace(EXAMPLE_UPSTREAM, &format!("127.0.0.1:{}", daemon.port())));
        let port = free_port();
        let folder = TempDir::with_prefix("shiparr-test-nginx-").expect("make a folder");
        Proxy { _nginx: Nginx::start(folder, port, &format!("listen 127.0.0.1:{port};\n{lines}")), port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect to nginx");
        stream.set_read_timeout(Some(crate::support::MINUTE)).expect("limit reading");
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &[&str]) -> Answer {
        let lines: String = headers.iter().flat_map(|line| [line, "\r\n"]).collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: host.example.com\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        exchange(self.connect(), request.as_bytes()).expect("an answer")
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// What is done to the README's lines.
type Change = fn(String) -> String;

/// A proxy that strips the path is told from one that does not by a slash.
fn stripped(lines: String) -> String {
    let changed = lines.replacen(";", "/;", 1);
    assert!(changed.contains("/;"), "{changed}");
    changed
}

#[test]
fn everything_works_below_a_path_that_is_stripped_or_not() {
    if missing(&[parts::TLS]) {
        return;
    }
    let entry = Entry::new("web", "/nowhere/web.git", &Stack::new()).rarely_checked();
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_PUBLIC_URL", PUBLIC_URL).project("home", &[entry]);
    daemon.start();
    let rewrites_host = |lines: String| stripped(lines).replace("proxy_set_header Host $host;", "");
    let changes: [(&str, Change); 3] =
        [("not stripped", |lines| lines), ("stripped", stripped), ("another Host", rewrites_host)];
    for (what, change) in changes {
        let proxy = Proxy::in_front_of(&daemon, change);
        let answer = proxy.ask("GET", "/shiparr/api/projects", &[]);
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        assert_eq!(answer.json()[0]["name"], "home");
        let deploy = "/shiparr/api/projects/home/repositories/web/deploy";
        let answer = proxy.ask("POST", deploy, &["Origin: https://host.example.com"]);
        assert_eq!(answer.status, 202, "{what}: {}", answer.text());
        let location = answer.header("location").expect("where it is");
        assert_eq!(proxy.ask("GET", location, &[]).status, 200, "{what}: {location}");
        for headers in [["Origin: https://evil.example"], ["Sec-Fetch-Site: cross-site"]] {
            assert_eq!(proxy.ask("POST", deploy, &headers).status, 403, "{what}: {headers:?}");
        }
        // Paths that climb out of the proxy's location are not passed on, or lead nowhere.
        for path in ["/shiparr/../api/projects", "/shiparr/%2e%2e/api/projects", "/api/projects"] {
            assert_eq!(proxy.ask("GET", path, &[]).status, 404, "{what}: {path}");
        }
        let url = format!("http://127.0.0.1:{}/shiparr", proxy.port);
        let output = daemon.cli(&["history", "web", "--url", &url]);
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let deployed = daemon.cli(&["deploy", "web", "--json"]);
    assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    let newest = daemon.get("/api/deployments?limit=1");
    let actor = newest[0]["actor"].as_str().expect("the socket knows who asks").to_owned();
    let shown = String::from_utf8(daemon.cli(&["history", "web"]).stdout).expect("a table is text");
    assert!(shown.contains("  BY  ") && shown.contains(&format!("  {actor}  ")), "{shown}");
}

#[test]
fn the_address_of_a_client_is_what_a_trusted_proxy_says() {
    if missing(&[parts::TLS]) {
        return;
    }
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_AUTH_ENABLED", "true").env("Shiparr_AUTH_PASSWORD", "open sesame");
    daemon.env("Shiparr_VIEWER_PASSWORD", "look around").env("Shiparr_API_KEY", "0123456789abcdef");
    daemon.env("Shiparr_PUBLIC_URL", PUBLIC_URL).env("Shiparr_TRUSTED_PROXIES", "127.0.0.1");
    daemon.start();
    let path = "/shiparr/api/projects";
    let guess = |proxy: &Proxy, forwarded: &str, password: &str| {
        proxy.ask("GET", path, &[forwarded, &basic("admin", password)]).status
    };
    {
        // The example adds its client, 127.0.0.1, which is trusted too: what stands before it counts.
        let proxy = Proxy::in_front_of(&daemon, |lines| lines);
        let statuses: Vec<u16> = (0..6).map(|_| guess(&proxy, "X-Forwarded-For: 192.0.2.1", "x")).collect();
        assert_eq!(statuses, [401, 401, 401, 401, 401, 429]);
        assert_eq!(guess(&proxy, "X-Forwarded-For: 192.0.2.2", "open sesame"), 200);
        assert!(daemon.log().contains("5 logins from 192.0.2.1 failed"), "{}", daemon.log());
        // Webhooks are not asked for a password, and without a secret there are none.
        assert_eq!(proxy.ask("POST", "/shiparr/webhook/github", &[]).status, 404);
        assert_eq!(proxy.ask("GET", path, &["X-Api-Key: 0123456789abcdef"]).status, 200);
        let url = format!("http://127.0.0.1:{}/shiparr/", proxy.port);
        let mut status = daemon.command(&["status", "--url", &url]);
        let output = status.env("SHIPARR_API_KEY", "0123456789abcdef").output().expect("start shiparr");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let viewer = basic("viewer", "look around");
        assert_eq!(proxy.ask("GET", path, &[&viewer]).status, 200);
        assert_eq!(proxy.ask("DELETE", path, &[&viewer]).error(), "forbidden");
    }
    daemon.env("Shiparr_TRUSTED_PROXIES", "");
    daemon.restart();
    let proxy = Proxy::in_front_of(&daemon, |lines| lines);
    assert_eq!(guess(&proxy, "X-Forwarded-For: 192.0.2.2", "open sesame"), 200);
    let statuses: Vec<u16> =
        (0..6).map(|number| guess(&proxy, &format!("X-Forwarded-For: 192.0.2.{number}"), "x")).collect();
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429]);
    assert_eq!(guess(&proxy, "X-Forwarded-For: 192.0.2.9", "open sesame"), 200, "who is logged in stays so");
    let url = format!("http://127.0.0.1:{}/shiparr/", proxy.port);
    let mut status = daemon.command(&["status", "--url", &url]);
    let output = status.env("SHIPARR_API_KEY", "0123456789abcdef").output().expect("start shiparr");
    assert_eq!(output.status.code(), Some(1), "a key that was never right waits with the others");
}

#[test]
fn a_log_is_followed_through_nginx_as_it_is_written() {
    if missing(&[parts::DOCKER, parts::GIT, parts::TLS]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* up *", "hold");
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_PUBLIC_URL", PUBLIC_URL);
    daemon.use_fake(&fake).project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.start();
    let id = daemon.wait_for("web", "running")["id"].as_i64().expect("an id");
    let proxy = Proxy::in_front_of(&daemon, |lines| lines);
    let mut stream = proxy.connect();
    let request = format!(
        "GET /shiparr/api/deployments/{id}/logs?follow=1 HTTP/1.1\r\nHost: host.example.com\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("send");
    let short = repo.tip()[..7].to_owned();
    let mut so_far = read_until(&mut stream, &short);
    assert_eq!(daemon.deployment(id)["status"], "running");
    fake.release();
    stream.read_to_end(&mut so_far).expect("it ends with the deployment");
    daemon.succeeded(id);
}
