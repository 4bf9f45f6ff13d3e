//! Logs of containers and stacks that are followed: through deployments, at a client's pace, and no process is left
//! behind by whoever goes away.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::*;

/// Lines that a container prints at once, some 20 MB: more than any buffer on the way holds.
const FLOOD_LINES: usize = 200_000;

struct Scene {
    stack: Stack,
    repo: Repo,
    daemon: Daemon,
}

/// Within a second, as people are promised, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(5);

/// Says its version, and floods where `/flood` appears.
fn compose(version: &str) -> String {
    let script = format!(
        "echo version $$VERSION; while [ ! -e /flood ]; do sleep 0.1; done; \
         yes {} | head -n {FLOOD_LINES} | cat -n; : > /flooded; sleep 86400",
        "x".repeat(90)
    );
    Stack::compose(version).replace("[\"sleep\", \"86400\"]", &format!("[\"sh\", \"-c\", \"{script}\"]"))
}

impl Scene {
    fn new() -> Scene {
        let stack = Stack::new();
        let repo = Repo::with(&[("compose.yaml", &compose("1"))]);
        let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
        daemon.wait_for_commit("web", &repo.tip());
        Scene { stack, repo, daemon }
    }

    /// The lines of a stream, whose head was read.
    fn follow(&self, path: &str) -> BufReader<TcpStream> {
        let mut stream = self.daemon.connect();
        // Without chunks, which HTTP/1.0 has not.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("send");
        let mut reader = BufReader::new(stream);
        assert_eq!(line(&mut reader), "HTTP/1.1 200 OK\r\n");
        while line(&mut reader) != "\r\n" {}
        reader
    }

    /// The processes of Docker that the daemon has started to follow something.
    fn followers(&self) -> Vec<u32> {
        let parent = self.daemon.pid().to_string();
        let is_ours = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&command).into_owned();
            stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(&parent)
                && (words.contains("--follow") || words.contains("\0events\0"))
        };
        let names = fs::read_dir("/proc").expect("list processes").filter_map(Result::ok);
        names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }

    #[track_caller]
    fn nobody_follows(&self) {
        wait_until(SOON, "the processes to end", || self.followers().is_empty().then_some(()));
    }
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    line
}

fn is_there(pid: &u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_stack_is_followed_through_a_deployment_and_who_goes_leaves_nothing() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let scene = Scene::new();
    let first = scene.stack.container("web").expect("it runs");
    let mut of_stack = scene.follow("/api/projects/home/repositories/web/logs?follow=1");
    let mut of_container = scene.follow(&format!("/containers/{}/logs?follow=1&tail=all", first.name()));
    assert_eq!(line(&mut of_stack), format!("{} | version 1\n", first.name()));
    assert_eq!(line(&mut of_container), "version 1\n");
    assert_eq!(scene.followers().len(), 3, "two logs, and what happens to the stack");

    scene.repo.commit(&[("compose.yaml", &compose("2"))]);
    scene.daemon.succeeded(scene.daemon.deploy("web"));
    let second = scene.stack.container("web").expect("it runs");
    assert_ne!(first.id(), second.id());
    assert_eq!(line(&mut of_stack), format!("{} | version 2\n", second.name()));
    assert_eq!(line(&mut of_container), "", "its container is gone");
    for path in ["/api/projects/home/repositories/web/logs", &format!("/containers/{}/logs", second.id())] {
        let head = scene.daemon.request("HEAD", &format!("{path}?follow=1"), &[], b"");
        assert_eq!((head.status, head.text()), (200, String::new()));
    }

    drop(of_stack);
    scene.nobody_follows();
    // One that only ends its side has hung up as well.
    let half = scene.follow(&format!("/containers/{}/logs?follow=1", second.name()));
    wait_until(SHORT, "it to be followed", || (!scene.followers().is_empty()).then_some(()));
    half.get_ref().shutdown(Shutdown::Write).expect("end one side");
    scene.nobody_follows();
}

#[test]
fn a_slow_client_slows_the_log_and_nobody_else() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let mut scene = Scene::new();
    let web = scene.stack.container("web").expect("it runs");
    let mut slow = scene.follow("/api/projects/home/repositories/web/logs?follow=1&tail=0");
    let gone = scene.follow(&format!("/containers/{}/logs?follow=1", web.name()));
    wait_until(SHORT, "both to be followed", || (scene.followers().len() == 3).then_some(()));
    web.run(&["touch", "/flood"]);
    wait_until(MINUTE, "the flood", || web.run(&["ls", "/"]).contains("flooded").then_some(()));
    let began = Instant::now();
    assert_eq!(scene.daemon.request("GET", "/api/repositories", &[], b"").status, 200);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // Its client goes while it is written to.
    drop(gone);
    wait_until(SOON, "its process to end", || (scene.followers().len() == 2).then_some(()));
    for number in 1..=FLOOD_LINES {
        let line = line(&mut slow);
        let rest = line.strip_prefix(&format!("{} | ", web.name())).unwrap_or_else(|| panic!("{line:?}"));
        assert_eq!(rest.split_whitespace().next(), Some(number.to_string().as_str()));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", scene.daemon.pid())).expect("its status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak").trim().to_owned();
    let peak_kilobytes: u32 = peak.trim_end_matches(" kB").parse().expect("a number");
    assert!(peak_kilobytes < 120_000, "{peak}");
    scene.daemon.assert_well();
}

#[test]
fn no_follower_outlives_the_daemon() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let mut scene = Scene::new();
    for is_killed in [false, true] {
        let mut stream = scene.follow("/api/projects/home/repositories/web/logs?follow=1");
        assert!(line(&mut stream).ends_with("| version 1\n"));
        let followers = scene.followers();
        assert_eq!(followers.len(), 2);
        let began = Instant::now();
        if is_killed {
            scene.daemon.kill_9();
        } else {
            assert_eq!(scene.daemon.stop().code(), Some(0));
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        }
        wait_until(SOON, "them to end", || (!followers.iter().any(is_there)).then_some(()));
        stream.read_to_end(&mut Vec::new()).expect("it ends");
        if !is_killed {
            scene.daemon.start();
        }
    }
}

#[test]
fn the_command_line_follows_by_socket_and_by_url_until_nobody_reads() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let mut scene = Scene::new();
    let url = format!("http://127.0.0.1:{}", scene.daemon.port());
    let start = |scene: &Scene, args: &[&str]| -> (Child, String) {
        let mut command = scene.daemon.command(&[&["logs", "web", "--follow"], args].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start shiparr");
        let mut reader = BufReader::new(child.stdout.take().expect("it was piped"));
        let line = line(&mut reader);
        // As `head` does, `reader` goes: nothing more comes that a write would fail with.
        drop(reader);
        (child, line)
    };
    for args in [&[][..], &["--url", &url, "--tail", "5", "--since", "1h"]] {
        let (mut child, line) = start(&scene, args);
        assert!(line.ends_with("| version 1\n"), "{args:?}: {line}");
        let status = wait_until(SHORT, "it to notice", || child.try_wait().expect("wait"));
        assert!(status.success(), "{args:?}: {status}");
        scene.nobody_follows();
    }
    let mut command = scene.daemon.command(&["logs", "web", "-f", "--deployment", "last"]);
    let output = command.stdin(Stdio::null()).output().expect("start shiparr");
    assert!(output.status.success() && !output.stdout.is_empty(), "a deployment that has ended is not waited for");

    let mut command = scene.daemon.command(&["logs", "web", "--follow"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start shiparr");
    assert!(line(&mut BufReader::new(child.stdout.as_mut().expect("it was piped"))).contains("version 1"));
    kill_process(Pid::from_child(&child), Signal::INT).expect("Ctrl-C");
    wait_until(SHORT, "it to end", || child.try_wait().expect("wait"));
    scene.nobody_follows();
    for args in [&["logs", "web", "--follow", "--json"][..], &["logs", "web", "--tail", "few"]] {
        assert_eq!(scene.daemon.cli(args).status.code(), Some(2), "{args:?}");
    }
    let refused = scene.daemon.cli(&["logs", "web", "-f", "--since", "a&b=c+d"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`since` must be"), "{refused:?}");
    scene.daemon.assert_well();
}
