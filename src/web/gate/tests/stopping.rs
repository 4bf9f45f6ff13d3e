//! How a gate ends: whoever was accepted is answered, whoever was not is left to the next process.

use super::*;

const PATIENT: Limits = Limits { stop: PATIENCE, stop_first_request: PATIENCE, stop_next_request: PATIENCE, ..LIMITS };

/// Waits for the end of the gate.
fn join(running: &mut Running) {
    running.gate.take().unwrap().join().unwrap().unwrap();
    running.gate = Some(std::thread::spawn(|| Ok(())));
}

/// Asks on an open connection; answers the answer and what comes after it.
fn ask(mut stream: &TcpStream) -> (String, String) {
    stream.write_all(HEAD.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let (head, _) = read_answer(&mut reader);
    let mut rest = String::new();
    if head.contains("Connection: close") {
        reader.read_to_string(&mut rest).unwrap();
    }
    (head, rest)
}

/// Waits until the gate has accepted everything.
fn settle(running: &Running) {
    running.is_well();
}

#[test]
fn whoever_was_accepted_is_answered_and_told_that_the_connection_ends() {
    let mut running = Running::start(PATIENT);
    let (fresh, kept) = (running.connect(), running.connect());
    assert!(ask(&kept).0.starts_with("HTTP/1.1 200 "));
    let sending = running.connect();
    (&sending)
        .write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    let mut reader = BufReader::new(&sending);
    reader.read_line(&mut String::new()).unwrap();
    reader.read_line(&mut String::new()).unwrap();
    settle(&running);

    running.stop.stop();
    for stream in [fresh, kept] {
        let (head, rest) = ask(&stream);
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("Connection: close\r\n"), "{head}");
        assert_eq!(rest, "");
    }
    (&sending).write_all(b"hello").unwrap();
    let (head, body) = read_answer(&mut reader);
    assert!(head.contains("Connection: close\r\n") && body.ends_with("hello"), "{head}{body}");
    drop(reader);
    drop(sending);
    join(&mut running);
}

#[test]
fn whoever_does_not_ask_is_closed_without_a_reset() {
    let mut running = Running::start(Limits { stop: PATIENCE, ..LIMITS });
    let (fresh, kept) = (running.connect(), running.connect());
    assert!(ask(&kept).0.starts_with("HTTP/1.1 200 "));
    settle(&running);
    running.stop.stop();
    for mut stream in [fresh, kept] {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    let begun = Instant::now();
    join(&mut running);
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

#[test]
fn a_socket_that_was_handed_over_goes_on_listening() {
    let mut running = Running::start(LIMITS);
    // It holds up the end, so that the gate runs without its listeners for a while.
    let fresh = running.connect();
    settle(&running);
    running.stop.stop();
    drop(fresh);
    join(&mut running);
    let (mut client, mut control) = (running.connect(), running.twin.accept().unwrap().0);
    control.write_all(b"next").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn whose_request_is_not_complete_when_the_time_is_over_is_told_so() {
    let mut running = Running::start(LIMITS);
    let mut stream = running.connect();
    stream.write_all(b"GET /echo HTTP/1.1\r\nHo").unwrap();
    settle(&running);
    running.stop.stop();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("is stopping"), "{answer}");
    join(&mut running);
}
