//! Clients that listen: what they are told, what they cost others, and how they end.

use super::*;
use crate::web::gate::broadcast::LISTENER_MAX_BYTES;

const LISTEN: &[u8] = b"GET /listen?5 HTTP/1.1\r\nHost: a\r\n\r\n";
const BEGINNING: &str = "7\r\nbegins\n\r\n";

/// Asks to listen, and reads the head and the beginning.
fn listener(running: &Running, request: &[u8]) -> (BufReader<TcpStream>, String) {
    let mut stream = running.connect();
    stream.write_all(request).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
    }
    (reader, head)
}

fn read(reader: &mut impl Read, expected: &str) {
    let mut got = vec![0; expected.len()];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), expected);
}

/// Waits until so many listen.
fn wait_for_listeners(running: &Running, count: usize) {
    wait_for("so many listeners", || running.broadcast.listening() == count);
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

#[test]
fn a_listener_gets_what_is_told_after_its_number() {
    let running = Running::start(LIMITS);
    let (mut early, head) = listener(&running, LISTEN);
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
    assert!(head.contains("\r\nConnection: close\r\n") && !head.contains("Content-Length"), "{head}");
    assert!(!head.to_lowercase().contains("x-shiparr"), "{head}");
    read(&mut early, BEGINNING);
    running.broadcast.tell(5, b"five");
    running.broadcast.tell(6, b"six");
    read(&mut early, "4\r\nfive\r\n3\r\nsix\r\n");
    // One that was told up to 5 by its route, and was on its way to the gate while the others were told of 6.
    let (mut late, _) = listener(&running, LISTEN);
    read(&mut late, &format!("{BEGINNING}3\r\nsix\r\n"));
    running.broadcast.tell(7, b"seven");
    read(&mut early, "5\r\nseven\r\n");
    read(&mut late, "5\r\nseven\r\n");
}

#[test]
fn an_old_client_gets_no_chunks_and_head_no_stream() {
    let running = Running::start(LIMITS);
    let (mut old, head) = listener(&running, b"GET /listen?5 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(head.contains("Connection: close\r\n") && !head.contains("chunked"), "{head}");
    read(&mut old, "begins\n");
    running.broadcast.tell(6, b"six");
    read(&mut old, "six");
    running.stop.stop();
    let mut rest = String::new();
    old.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");

    let running = Running::start(LIMITS);
    let both = b"HEAD /listen?5 HTTP/1.1\r\nHost: a\r\n\r\nGET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = running.send(both);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.matches("HTTP/1.1 200 ").count() == 2, "{answer}");
    assert!(!answer.contains(HEADER_LISTENS) && !answer.contains("begins"), "{answer}");
    assert_eq!(running.broadcast.listening(), 0);
}

#[test]
fn no_client_can_make_itself_a_listener_and_no_other_answer_makes_one() {
    let running = Running::start(LIMITS);
    let answer = running
        .send(format!("GET /echo HTTP/1.1\r\nHost: a\r\n{HEADER_LISTENS}: 1\r\nConnection: close\r\n\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains(HEADER_LISTENS), "{answer}");
    assert_eq!(running.broadcast.listening(), 0);
}

#[test]
fn what_a_listener_sends_after_its_request_is_not_read() {
    let running = Running::start(LIMITS);
    let (mut stream, _) = listener(&running, &[LISTEN, HEAD.as_bytes()].concat());
    read(&mut stream, BEGINNING);
    let mut more = stream.get_ref();
    more.set_nonblocking(true).unwrap();
    let mut sent = 0;
    // It ends because nobody reads: the kernels' buffers are full.
    while let Ok(count) = more.write(&[b'x'; 1 << 16]) {
        sent += count;
        assert!(sent < 64 << 20, "somebody reads all of it");
    }
    more.set_nonblocking(false).unwrap();
    running.broadcast.tell(6, b"six");
    read(&mut stream, "3\r\nsix\r\n");
    running.is_well();
}

#[test]
fn places_are_bounded_and_free_at_once_when_a_listener_hangs_up() {
    let running = Running::start(LIMITS);
    let mut listeners: Vec<_> = (0..LIMITS.listeners).map(|_| listener(&running, LISTEN)).collect();
    wait_for_listeners(&running, LIMITS.listeners);
    let (_, head) = listener(&running, LISTEN);
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    // One goes, and one only ends its side: it has hung up as well.
    drop(listeners.pop());
    wait_for_listeners(&running, LIMITS.listeners - 1);
    listeners[0].0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    wait_for_listeners(&running, LIMITS.listeners - 2);
    let (mut again, _) = listener(&running, LISTEN);
    read(&mut again, BEGINNING);
    // One that had ended its side before the answer came is none.
    let stream = running.connect();
    (&stream).write_all(LISTEN).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = (&stream).read_to_end(&mut Vec::new());
    wait_for_listeners(&running, LIMITS.listeners - 1);
    running.is_well();
}

#[test]
fn a_listener_that_does_not_read_is_dropped_and_others_notice_nothing() {
    let running = Running::start(LIMITS);
    let (stalled, _) = listener(&running, LISTEN);
    let (mut reading, _) = listener(&running, LISTEN);
    read(&mut reading, BEGINNING);
    wait_for_listeners(&running, 2);
    let large = vec![b'x'; LISTENER_MAX_BYTES / 2];
    let mut number = 6;
    while running.broadcast.listening() == 2 {
        running.broadcast.tell(number, &large);
        let mut chunk = vec![0; large.len() + "10000\r\n\r\n".len()];
        reading.read_exact(&mut chunk).unwrap();
        assert!(number < 1000, "64 MiB are kept for one who does not read");
        number += 1;
    }
    running.broadcast.tell(number, b"more");
    read(&mut reading, "4\r\nmore\r\n");
    drop(stalled);
}

#[test]
fn listeners_do_not_count_among_the_connections_nor_keep_others_from_going() {
    let limits = Limits { connections: 3, ..LIMITS };
    let running = Running::start(limits);
    let mut listeners: Vec<_> = (0..limits.listeners).map(|_| listener(&running, LISTEN)).collect();
    wait_for_listeners(&running, limits.listeners);
    // They are as many as connections may be, and the oldest ones; those who owe a request go before them.
    let silent: Vec<_> = (0..10).map(|_| running.connect()).collect();
    running.is_well();
    for (stream, _) in &mut listeners {
        read(stream, BEGINNING);
    }
    running.broadcast.tell(6, b"six");
    for (stream, _) in &mut listeners {
        read(stream, "3\r\nsix\r\n");
    }
    drop(silent);
}

#[test]
fn a_stop_ends_the_streams_as_every_answer_ends() {
    let running = Running::start(LIMITS);
    let (mut stream, _) = listener(&running, LISTEN);
    read(&mut stream, BEGINNING);
    running.stop.stop();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "0\r\n\r\n");
    wait_for_listeners(&running, 0);
}

#[test]
fn one_who_was_too_long_on_the_way_is_sent_back() {
    let running = Running::start(LIMITS);
    let (mut stream, _) = listener(&running, LISTEN);
    read(&mut stream, BEGINNING);
    let large = vec![b'x'; LISTENER_MAX_BYTES];
    running.broadcast.tell(6, &large);
    running.broadcast.tell(7, b"seven");
    let mut got = vec![0; large.len() + "20000\r\n\r\n5\r\nseven\r\n".len()];
    stream.read_exact(&mut got).unwrap();
    // What was told as 6 is not kept any more.
    assert_eq!(running.send(LISTEN), "");
    let (mut known, _) = listener(&running, b"GET /listen?6 HTTP/1.1\r\nHost: a\r\n\r\n");
    read(&mut known, &format!("{BEGINNING}5\r\nseven\r\n"));
}
