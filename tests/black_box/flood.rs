//! Many clients at once, and a host that runs out: whoever asks something is answered meanwhile, and afterwards
//! everything is as before.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::support::*;

/// What is asked meanwhile.
const REQUEST: &[u8] = b"GET /api/projects HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn idle() -> Daemon {
    Daemon::with(&[Entry::new("web", "/nowhere/stack.git", &Stack::new()).rarely_checked()])
}

/// Descriptors that the daemon has open.
fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs").count()
}

/// Lets this process, which is all the clients, open enough.
fn allow_descriptors(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(count), ..limit }).expect("open more files");
    }
}

#[test]
fn two_thousand_silent_connections_and_half_heads_slow_nobody() {
    allow_descriptors(4096);
    let mut daemon = idle();
    let before_kib = daemon.resident_kib();
    let flood: Vec<TcpStream> = (0..2000)
        .map(|index| {
            let mut stream = daemon.connect();
            if index % 2 == 0 {
                stream.write_all(b"GET /api/projects HTTP/1.1\r\nHo").expect("send half a head");
            }
            stream
        })
        .collect();
    let mut taken: Vec<Duration> = (0..100)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(daemon.raw(REQUEST).status, 200);
            begin.elapsed()
        })
        .collect();
    taken.sort();
    // The machine may be busy with something else for a moment, but not with the flood.
    assert!(taken[90] < Duration::from_millis(100), "median {:?}, worst {:?}", taken[50], taken[99]);
    let open = descriptors(&daemon);
    assert!(open < 700, "those that have waited longest are gone: {open} descriptors");
    let kib = daemon.resident_kib();
    assert!(kib < before_kib + (8 << 10), "{before_kib} KiB before, {kib} KiB now");
    drop(flood);
    daemon.assert_well();
}

#[test]
fn thousands_of_short_connections_leave_nothing_behind() {
    let mut daemon = idle();
    let round = |count: usize| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..count / 4).for_each(|_| assert_eq!(daemon.raw(REQUEST).status, 200)));
            }
        });
    };
    round(1000);
    let (before_kib, before) = (daemon.resident_kib(), descriptors(&daemon));
    round(4000);
    let kib = daemon.resident_kib();
    assert!(kib < before_kib + (8 << 10), "{before_kib} KiB before, {kib} KiB now");
    // Connections to the server behind the gate may be some more; clients' are gone.
    wait_until(SHORT, "the descriptors to be closed", || (descriptors(&daemon) <= before + 64).then_some(()));
    daemon.assert_well();
}

#[test]
fn a_host_without_descriptors_is_told_once_and_passes() {
    let mut daemon = idle();
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).expect("a process id"));
    // It has inherited what this process has.
    let limit = getrlimit(Resource::Nofile);
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(10), ..limit }).expect("take them");
    // The kernel takes the connections; nobody accepts them.
    let mut waiting: Vec<TcpStream> = (0..20).map(|_| daemon.connect()).collect();
    for stream in &mut waiting {
        stream.write_all(REQUEST).expect("send");
    }
    waiting[0].set_read_timeout(Some(Duration::from_millis(1500))).expect("limit reading");
    assert!(waiting[0].read(&mut [0; 1]).is_err(), "no answer without a descriptor");
    prlimit(pid, Resource::Nofile, limit).expect("give them back");
    for mut stream in waiting {
        stream.set_read_timeout(Some(SHORT)).expect("limit reading");
        assert_eq!(read_answer(&mut BufReader::new(&mut stream), false).expect("an answer").status, 200);
    }
    daemon.assert_well();
    let log = daemon.log();
    assert_eq!(log.matches("cannot accept connections for now").count(), 1, "it is said once");
}
