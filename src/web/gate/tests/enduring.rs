//! Clients that would wear the gate out, and what it reads whatever they send.

use super::*;

#[path = "../../../../tests/fuzz/properties.rs"]
mod properties;

#[test]
fn a_connection_that_never_asks_ends_before_one_that_has_had_an_answer() {
    let running = Running::start(Limits { first_request: Duration::from_millis(300), ..LIMITS });
    let mut known = running.connect();
    known.write_all(HEAD.as_bytes()).unwrap();
    read_answer(&mut BufReader::new(&known));
    let mut silent = [running.connect(), running.connect()];
    // Line breaks before a request are no request.
    silent[1].write_all(b"\r\n\r\n").unwrap();
    for stream in &mut silent {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    known.write_all(HEAD.as_bytes()).unwrap();
    assert!(read_answer(&mut BufReader::new(&known)).0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn bodies_that_do_not_end_keep_nobody_from_sending_one() {
    let running = Running::start(LIMITS);
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n";
    let begun = [head.as_bytes(), &vec![b'x'; (1 << 20) - 1]].concat();
    let mut clients: Vec<TcpStream> = (0..20).map(|_| running.connect()).collect();
    for client in &mut clients {
        client.write_all(&begun).unwrap();
    }
    let answer = running.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello"), "{answer}");
    let mut first = String::new();
    // What it had sent may not have been read: then the answer is followed by a reset.
    let _ = clients[0].read_to_string(&mut first);
    assert!(first.starts_with("HTTP/1.1 503 "), "{first}");
    clients[19].write_all(b"x").unwrap();
    assert!(read_answer(&mut BufReader::new(&clients[19])).0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn failures_to_accept_are_told_when_they_begin_and_when_they_have_ended() {
    let socket = Listener::Tcp(TcpListener::bind("127.0.0.1:0").unwrap());
    let mut listening = Listening { socket, paused_until: None, failing: None };
    let begin = Instant::now();
    assert_eq!(listening.look_whether_well(begin), None);
    for tenths in 0..50 {
        listening.note_failure(Errno::MFILE, begin + ACCEPT_PAUSE * tenths);
    }
    let last = begin + ACCEPT_PAUSE * 49;
    assert_eq!(listening.failing, Some((begin, last)), "one trouble, not fifty");
    assert_eq!(listening.look_whether_well(last), Some(last + ACCEPT_CALM));
    assert_eq!(listening.look_whether_well(last + ACCEPT_CALM), None);
    assert_eq!(listening.failing, None);
}

/// What the fuzz target asks of bytes that it makes up.
#[test]
fn whatever_a_client_sends_is_read_alike_in_any_pieces_and_passed_on_as_it_was_meant() {
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for folder in ["fixtures/hostile", "fuzz/corpus/requests"] {
        let mut count = 0;
        for file in std::fs::read_dir(tests.join(folder)).unwrap() {
            let path = file.unwrap().path();
            let sent = std::fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| properties::hold(&sent));
            assert!(outcome.is_ok(), "{}", path.display());
            count += 1;
        }
        assert!(count > 10, "{count} files in {folder}");
    }
}
