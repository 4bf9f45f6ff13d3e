//! Every request of `tests/fixtures/hostile`, against one daemon; the README there says what their names mean.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::support::*;

/// So long nothing is said where nothing is to be said.
const SILENCE: Duration = Duration::from_millis(200);
/// Cases at once: most of them wait for the other side.
const AT_ONCE: usize = 8;

#[derive(Debug, PartialEq, Eq)]
enum End {
    Open,
    Closed,
    Waiting,
}

struct Case {
    path: PathBuf,
    statuses: Vec<u16>,
    end: End,
}

impl Case {
    fn read(path: &Path) -> Case {
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let [statuses, end, _what] = name.splitn(3, '-').collect::<Vec<_>>()[..] else {
            panic!("{name}: no such name")
        };
        let statuses = match statuses {
            "none" => Vec::new(),
            some => some.split('+').map(|status| status.parse().expect(&name)).collect(),
        };
        let end = match end {
            "open" => End::Open,
            "closed" => End::Closed,
            "waiting" => End::Waiting,
            _ => panic!("{name}: `{end}` is no end"),
        };
        Case { path: path.to_owned(), statuses, end }
    }

    /// Sends it, and answers what is not as its name says.
    fn run(&self, daemon: &Daemon) -> Result<(), String> {
        let request = std::fs::read(&self.path).expect("read the case");
        let mut stream = daemon.connect();
        // It may be refused before it is sent.
        let _ = stream.write_all(&request);
        let mut reader = BufReader::new(stream.try_clone().expect("share the connection"));
        for expected in &self.statuses {
            let answer = read_answer(&mut reader, request.starts_with(b"HEAD "));
            let answer = answer.map_err(|error| format!("{error} instead of {expected}"))?;
            if answer.status != *expected {
                return Err(format!("{} instead of {expected}: {}", answer.status, answer.text()));
            }
        }
        match self.end {
            End::Open => ask(&mut stream, &mut reader).map_err(|error| format!("not open: {error}"))?,
            End::Closed => {
                let mut rest = Vec::new();
                match reader.read_to_end(&mut rest) {
                    Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(format!("open: {error}")),
                    _ if !rest.is_empty() => return Err(format!("more: {}", String::from_utf8_lossy(&rest))),
                    _ => {}
                }
            }
            End::Waiting => {
                stream.set_read_timeout(Some(SILENCE)).expect("limit reading");
                match reader.read(&mut [0; 1]) {
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    outcome => return Err(format!("{outcome:?} instead of nothing")),
                }
            }
        }
        let mut another = daemon.connect();
        let mut reader = BufReader::new(another.try_clone().expect("share the connection"));
        ask(&mut another, &mut reader).map_err(|error| format!("another client afterwards: {error}"))
    }
}

/// A request that nobody could have anything against.
fn ask(stream: &mut TcpStream, reader: &mut BufReader<TcpStream>) -> Result<(), String> {
    let sent = stream.write_all(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = sent.and_then(|()| read_answer(reader, false)).map_err(|error| error.to_string())?;
    if answer.status == 200 { Ok(()) } else { Err(format!("{}: {}", answer.status, answer.text())) }
}

#[test]
fn each_is_answered_as_its_name_says_and_hurts_nobody() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile");
    let paths = std::fs::read_dir(folder).expect("the corpus is there").map(|file| file.expect("a file").path());
    let cases: Vec<Case> =
        paths.filter(|path| path.extension() == Some("http".as_ref())).map(|path| Case::read(&path)).collect();
    assert!(cases.len() > 200, "{} cases", cases.len());
    let mut daemon = Daemon::with(&[Entry::new("web", "/nowhere/stack.git", &Stack::new()).rarely_checked()]);
    let before_kib = daemon.resident_kib();

    let (left, wrong) = (Mutex::new(cases.iter()), Mutex::new(Vec::new()));
    let next = || left.lock().expect("nobody panics").next();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = next() {
                    if let Err(problem) = case.run(&daemon) {
                        let name = case.path.file_name().expect("it has a name").to_string_lossy();
                        wrong.lock().expect("nobody panics").push(format!("{name}: {problem}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("nobody panicked");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    daemon.assert_well();
    assert_eq!(daemon.deployments_of("web").len(), 0, "nothing was smuggled in");
    assert!(!daemon.log().contains("panicked"), "no thread panics");
    let kib = daemon.resident_kib();
    assert!(kib < before_kib + (16 << 10), "{before_kib} KiB before, {kib} KiB afterwards");
}
