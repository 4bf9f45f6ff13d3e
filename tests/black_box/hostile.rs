//! Requests that nobody friendly sends, each followed by a daemon that is well.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::support::*;

const DEPLOY: &str = "/api/projects/home/repositories/web/deploy";

fn idle() -> Daemon {
    Daemon::with(&[Entry::new("web", "/nowhere/stack.git", &Stack::new()).rarely_checked()])
}

/// Sends bytes and reads what comes until the other side closes or says nothing for a while.
fn converse(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = daemon.connect();
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("limit reading");
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

/// Closes with a reset instead of a goodbye.
fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO)).expect("set the linger time");
    drop(stream);
}

#[test]
fn a_body_that_claims_to_be_endless_is_refused() {
    let mut daemon = idle();
    for length in ["99999999999999", "18446744073709551615", "1048577"] {
        let request = format!("POST {DEPLOY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(daemon.raw(request.as_bytes()).status, 413, "{length}");
        daemon.assert_well();
    }
    let request = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n";
    assert_eq!(daemon.raw(request).status, 413);
    daemon.assert_well();
    let whole = vec![b' '; 1 << 20];
    let answer = daemon.request("POST", DEPLOY, &[], &whole);
    assert!(answer.status != 413, "exactly 1 MiB is not over it: {}", answer.status);
}

#[test]
fn a_chunked_body_has_the_same_bound() {
    let mut daemon = idle();
    let head = format!("POST {DEPLOY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    let good = format!("{head}e\r\n{{\"pull\": true}}\r\n0\r\n\r\n");
    assert_eq!(daemon.raw(good.as_bytes()).status, 202);
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let said = converse(&daemon, format!("{head}{}0\r\n\r\n", chunk.repeat(17)).as_bytes());
    assert!(said.starts_with("HTTP/1.1 413"), "{said}");
    for bad in ["ffffffffffffffff\r\nx", "-5\r\nx", "zz\r\n", "5 \r\nhello\r\n0\r\n\r\n5;", "\r\n"] {
        let said = converse(&daemon, format!("{head}{bad}").as_bytes());
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{bad:?}: {said}");
    }
    daemon.assert_well();
}

#[test]
fn a_body_of_unreadable_length_is_never_run_as_the_next_request() {
    let mut daemon = idle();
    let hidden = format!("POST {DEPLOY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    let length = hidden.len();
    for headers in [
        "Content-Length: abc".to_owned(),
        "Content-Length: -1".to_owned(),
        "Content-Length: +5".to_owned(),
        "Content-Length: 0x10".to_owned(),
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: {length}, 0"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        "Transfer-Encoding: gzip, chunked".to_owned(),
        "Transfer-Encoding: identity".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        "Transfer-Encoding : chunked".to_owned(),
    ] {
        let bytes = format!("POST /api/health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n{hidden}");
        let said = converse(&daemon, bytes.as_bytes());
        assert!(!said.contains("202"), "{headers}: {said}");
        assert!(
            said.is_empty() || said.starts_with("HTTP/1.1 4") || said.starts_with("HTTP/1.1 501"),
            "{headers}: {said}"
        );
        daemon.assert_well();
    }
    assert_eq!(daemon.deployments_of("web").len(), 0, "nothing was smuggled in");
}

#[test]
fn a_head_over_its_bound_is_refused() {
    let mut daemon = idle();
    let long = "x".repeat(17 << 10);
    for request in [
        format!("GET /api/health HTTP/1.1\r\nHost: localhost\r\nX-Long: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET /api/health HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "A: b\r\n".repeat(4000)),
    ] {
        assert_eq!(daemon.raw(request.as_bytes()).status, 431);
        daemon.assert_well();
    }
    // A header line that never ends.
    let mut stream = daemon.connect();
    let begin = Instant::now();
    let mut sent = stream.write_all(b"GET / HTTP/1.1\r\nX: ");
    while sent.is_ok() && begin.elapsed() < Duration::from_secs(20) {
        sent = stream.write_all(&[b'x'; 65536]);
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "it reads for ever");
    daemon.assert_well();
    assert!(daemon.resident_kib() < 100 << 10, "{} KiB", daemon.resident_kib());
}

#[test]
fn rubbish_is_refused() {
    let mut daemon = idle();
    let requests: [&[u8]; 14] = [
        b"\r\n\r\n\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /api/health\r\n\r\n",
        b"GET /api/health HTTP/9.9\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nBroken\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nX: \xff\xfe\0\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for request in requests {
        let said = converse(&daemon, request);
        assert!(!said.starts_with("HTTP/1.1 5"), "{:?}: {said}", String::from_utf8_lossy(request));
        daemon.assert_well();
    }
}

#[test]
fn clients_that_reset_early_hurt_nobody() {
    let mut daemon = idle();
    for round in 0..200 {
        let mut stream = daemon.connect();
        match round % 4 {
            0 => {}
            1 => drop(stream.write_all(b"GET /api/hea")),
            2 => drop(stream.write_all(b"GET /api/projects HTTP/1.1\r\nHost: localhost\r\n\r\n")),
            _ => {
                let head = format!("POST {DEPLOY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf");
                let _ = stream.write_all(head.as_bytes());
            }
        }
        reset(stream);
    }
    daemon.assert_well();
    assert!(!daemon.log().contains("panicked"), "no thread panics");
}

#[test]
fn one_that_pipelines_and_never_reads_takes_neither_the_memory_nor_the_turn_of_others() {
    let mut daemon = idle();
    let mut greedy = daemon.connect();
    greedy.set_write_timeout(Some(Duration::from_millis(500))).expect("limit writing");
    let many = "GET /api/projects HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) && greedy.write_all(many.as_bytes()).is_ok() {}
    let asked = Instant::now();
    daemon.assert_well();
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert!(daemon.resident_kib() < 100 << 10, "{} KiB", daemon.resident_kib());
}

#[test]
fn running_out_of_file_descriptors_passes() {
    let mut daemon = Daemon::new();
    daemon.under("ulimit -n 64;");
    daemon.start();
    let held: Vec<TcpStream> = (0..200).filter_map(|_| TcpStream::connect(("127.0.0.1", daemon.port())).ok()).collect();
    for stream in &held {
        let mut stream = stream;
        let _ = stream.write_all(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n");
    }
    assert!(daemon.is_running());
    drop(held);
    wait_until(SHORT, "it to accept again", || {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let answer = read_answer(&mut BufReader::new(stream), false).ok()?;
        (answer.status == 200).then_some(())
    });
    daemon.assert_well();
}

#[test]
fn a_slow_head_is_ended_and_holds_nobody() {
    let mut daemon = idle();
    let mut slow = daemon.connect();
    slow.write_all(b"GET /api/health HTTP/1.1\r\n").expect("send");
    let begin = Instant::now();
    slow.set_read_timeout(Some(Duration::from_millis(500))).expect("limit reading");
    let mut said = Vec::new();
    // One more byte every half second keeps nothing alive.
    let ended = loop {
        let mut part = [0; 1024];
        match slow.read(&mut part) {
            Ok(0) => break true,
            Ok(length) => said.extend_from_slice(&part[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if slow.write_all(b"X").is_err() {
                    break true;
                }
            }
            Err(_) => break true,
        }
        if begin.elapsed() > Duration::from_secs(20) {
            break false;
        }
    };
    assert!(ended, "a head has 10 s");
    let said = String::from_utf8_lossy(&said);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    daemon.assert_well();
}

#[test]
fn a_connection_that_asks_to_be_closed_is() {
    let daemon = idle();
    for request in
        ["GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "GET /api/health HTTP/1.0\r\n\r\n"]
    {
        let mut stream = daemon.connect();
        stream.write_all(request.as_bytes()).expect("send");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("limit reading");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("it ends by itself");
        assert!(said.starts_with("HTTP/1.1 200") || said.starts_with("HTTP/1.0 200"), "{said}");
    }
}

#[test]
fn a_client_that_only_stops_writing_still_gets_its_answer() {
    let daemon = idle();
    let mut stream = daemon.connect();
    stream.write_all(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("send");
    stream.shutdown(Shutdown::Write).expect("stop writing");
    assert_eq!(read_answer(&mut BufReader::new(stream), false).expect("an answer").status, 200);
}

#[test]
fn a_request_that_comes_one_byte_at_a_time_is_understood() {
    let daemon = idle();
    let mut stream = daemon.connect();
    stream.set_nodelay(true).expect("send each byte alone");
    let head = format!("POST {DEPLOY} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for byte in format!("{head}e;x=y\r\n{{\"pull\": true}}\r\n0\r\n\r\n").bytes() {
        stream.write_all(&[byte]).expect("send");
    }
    assert_eq!(read_answer(&mut BufReader::new(stream), false).expect("an answer").status, 202);
}

#[test]
fn expect_100_continue_is_answered() {
    let daemon = idle();
    let mut stream = daemon.connect();
    let head =
        format!("POST {DEPLOY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 14\r\nExpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("send");
    let mut reading = BufReader::new(stream.try_clone().expect("share the connection"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reading, &mut line).expect("an interim answer");
    assert!(line.starts_with("HTTP/1.1 100"), "{line}");
    stream.write_all(b"{\"pull\": true}").expect("send");
    line.clear();
    std::io::BufRead::read_line(&mut reading, &mut line).expect("the empty line");
    assert_eq!(read_answer(&mut reading, false).expect("an answer").status, 202);
}

#[test]
fn a_request_for_another_host_in_its_target_is_not_answered_for_it() {
    let daemon = idle();
    let answer =
        daemon.raw(b"GET http://evil.example/api/projects HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!((400..500).contains(&answer.status), "{}", answer.status);
}

#[test]
fn the_control_socket_is_for_its_owner_and_group_only() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = idle();
    let socket = daemon.runtime().join("shiparr.sock");
    let mode = std::fs::metadata(&socket).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    assert_eq!(daemon.request_by_socket("GET", "/api/health").status, 200);
}
