#![allow(
    clippy::disallowed_methods,
    reason = "tests run the real shoutrrr with this process's PATH, and a small server"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::message::tests::failure;
use super::*;

const LONG: Duration = Duration::from_secs(60);

fn environment() -> Vec<(OsString, OsString)> {
    vec![("PATH".into(), std::env::var_os("PATH").unwrap())]
}

fn notifier(program: impl Into<PathBuf>) -> Notifier {
    Notifier::new(program.into(), environment(), Proxies::default()).pauses(&[Duration::from_millis(1); 2])
}

fn send(notifier: &Notifier, url: &str) -> Result<(), NotifyError> {
    notifier.send(&Secret::new(url), &failure(), &Limit::after(LONG))
}

/// A stand-in for shoutrrr that notes how it was called and ends with the given exit code.
struct Fake {
    folder: tempfile::TempDir,
}

impl Fake {
    fn new(end: &str) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("shoutrrr");
        let notes = folder.path().join("notes");
        let script = format!(
            "#!/bin/sh\n{{ echo \"args: $*\"; echo \"url: $SHOUTRRR_URL\"; cat; echo; }} >>{}\necho \"Reading from STDIN...\n{end}",
            notes.display()
        )
        .replace("STDIN...\n", "STDIN...\" >&2\n");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Fake { folder }
    }

    fn notifier(&self) -> Notifier {
        notifier(self.folder.path().join("shoutrrr"))
    }

    fn notes(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("notes")).unwrap()
    }
}

/// Answers one request after the other with these statuses, and gives what it was sent.
fn server(statuses: &'static [&'static str]) -> (u16, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for status in statuses {
            let (mut connection, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(connection.try_clone().unwrap());
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") {
                reader.read_line(&mut request).unwrap();
            }
            let length = request.to_lowercase().split_once("content-length: ").unwrap().1.to_owned();
            let mut body = vec![0; length.lines().next().unwrap().parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            requests.push(request + &String::from_utf8(body).unwrap());
            write!(connection, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        }
        requests
    });
    (port, thread)
}

#[test]
fn shoutrrr_gets_the_url_in_its_environment_and_the_message_on_standard_input() {
    let fake = Fake::new("exit 0");
    send(&fake.notifier(), "discord://123456/secret-token").unwrap();
    let expected =
        format!("args: send --title {}\nurl: discord://secret-token@123456\n{}\n", failure().title(), failure().text());
    assert_eq!(fake.notes(), expected);
}

#[test]
fn what_could_not_be_sent_is_tried_three_times() {
    let fake = Fake::new("echo 'Post https://x/secret-token9: no route' >&2; exit 69");
    let error = send(&fake.notifier(), "discord://secret-token9@id").unwrap_err();
    assert_eq!(error.to_string(), "discord could not be reached: Post https://x/***: no route");
    assert_eq!(fake.notes().matches("args: send").count(), 3);
}

#[test]
fn a_wrong_url_is_tried_once() {
    let fake = Fake::new("exit 78");
    let error = send(&fake.notifier(), "discord://secret-token9@id").unwrap_err();
    assert!(matches!(error.problem, Problem::Refused(_)), "{error}");
    assert_eq!(fake.notes().matches("args: send").count(), 1);
}

#[test]
fn a_hanging_notifier_is_ended_with_the_limit() {
    let fake = Fake::new("exec sleep 60");
    let began = Instant::now();
    let url = Secret::new("discord://secret-token9@id");
    let error = fake.notifier().send(&url, &failure(), &Limit::after(Duration::from_millis(300))).unwrap_err();
    assert!(error.to_string().contains("time limit"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_missing_shoutrrr_says_what_to_install() {
    let error = send(&notifier("shoutrrr-is-not-here"), "discord://secret-token9@id").unwrap_err();
    assert_eq!(error.problem, Problem::NotInstalled("shoutrrr-is-not-here".to_owned()));
    assert!(error.to_string().contains("Shiparr_SHOUTRRR_BIN"), "{error}");
}

#[test]
fn the_real_shoutrrr_sends_tells_its_errors_and_verifies() {
    let notifier = notifier("shoutrrr");
    send(&notifier, "logger://").unwrap();
    let error = send(&notifier, "generic+http://127.0.0.1:1/secret-path").unwrap_err();
    assert!(matches!(error.problem, Problem::NotSent(_)) && !error.to_string().contains("secret"), "{error}");
    let error = send(&notifier, "nosuch://secret-token9@x").unwrap_err();
    assert!(matches!(error.problem, Problem::Refused(_)) && !error.to_string().contains("secret"), "{error}");
    let verify = |url: &str| notifier.verify(&Secret::new(url), &Limit::after(LONG));
    assert_eq!(verify("discord://123456/secret-token"), Ok(()));
    assert_eq!(verify("pushover://user:token@"), Ok(()));
    assert_eq!(verify("https://hooks.example.com/x"), Ok(()));
    let error = verify("telegram://secret-token9@telegram").unwrap_err();
    assert!(error.to_string().contains("unable to process URL"), "{error}");
    assert!(matches!(error.problem, Problem::Refused(_)) && !error.to_string().contains("secret"), "{error}");
    assert!(verify("no url").is_err());
}

#[test]
fn an_address_of_the_web_gets_json() {
    let (port, server) = server(&["204 No Content"]);
    send(&notifier("none"), &format!("http://me:p%40ss@127.0.0.1:{port}/hook?x=1")).unwrap();
    let request = server.join().unwrap().remove(0);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /hook?x=1 HTTP/1.1"), "{head}");
    assert!(head.contains("Content-Type: application/json"), "{head}");
    assert!(head.contains("Authorization: Basic bWU6cEBzcw=="), "{head}");
    assert_eq!(body, failure().json());
}

#[test]
fn an_address_in_trouble_is_tried_again_and_one_that_refuses_is_not() {
    let (port, answers) = server(&["503 Busy", "429 Slow", "200 OK"]);
    send(&notifier("none"), &format!("http://127.0.0.1:{port}/hook")).unwrap();
    assert_eq!(answers.join().unwrap().len(), 3);
    for (statuses, part) in [(&["404 Gone"], "it answers 404"), (&["302 Found"], "redirects")] {
        let (port, answers) = server(statuses);
        let error = send(&notifier("none"), &format!("http://127.0.0.1:{port}/secret-path-9")).unwrap_err();
        assert!(error.to_string().contains(part) && !error.to_string().contains("secret"), "{error}");
        assert!(error.to_string().starts_with("http://127.0.0.1 does not work"));
        answers.join().unwrap();
    }
    let error = send(&notifier("none"), "http://127.0.0.1:1/secret-path-9").unwrap_err();
    assert!(matches!(error.problem, Problem::NotSent(_)) && !error.to_string().contains("secret"), "{error}");
}

#[test]
fn each_url_counts_once() {
    let urls = ["a://1", "b://2", "a://1"].map(Secret::new);
    assert_eq!(distinct(urls), ["a://1", "b://2"].map(Secret::new));
}
