//! Tells somebody outside this host that all is well: `Shiparr_HEARTBEAT_URL` is asked once a minute, and whoever is
//! behind it alerts when that stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::docker;
use super::shared::Shared;
use super::threads::Threads;
use crate::command::Limit;
use crate::config::Settings;
use crate::http::{self, Request};
use crate::notify::label;
use crate::pulse;

/// From one heartbeat to the next.
const BEAT_EVERY: Duration = Duration::from_secs(60);
/// While something is not well it is looked at this often, so that the heartbeat goes on soon after.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A heartbeat takes at most this.
const BEAT_LIMIT: Duration = Duration::from_secs(10);
/// An answer that is no success is read up to here.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// Sends heartbeats.
pub struct Heartbeat {
    shared: Arc<Shared>,
    threads: Threads,
}

impl Heartbeat {
    /// None where no URL is set.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn new(shared: &Arc<Shared>, threads: &Threads) -> anyhow::Result<Option<Heartbeat>> {
        let url = shared.host.settings.heartbeat_url().map_err(anyhow::Error::msg)?;
        Ok(url.map(|url| {
            log::info!("a heartbeat goes to {} once a minute while all is well", label(&url));
            Heartbeat { shared: Arc::clone(shared), threads: threads.clone() }
        }))
    }

    /// Sends them until the daemon stops.
    pub fn run(&self) {
        pulse::next_within(BEAT_EVERY);
        // Whether Docker answers is to be known before the first one; who asks first logs it.
        let _ = docker::ask(&self.shared);
        let mut withheld = Trouble::new("the heartbeat is withheld", "the heartbeat goes on");
        let mut lost = Trouble::new("the heartbeat did not arrive", "the heartbeat arrives again");
        while !self.threads.are_stopping() {
            pulse::next_within(BEAT_LIMIT + BEAT_EVERY);
            let problem = problem(&self.shared, &self.threads, Instant::now());
            let is_well = problem.is_none();
            withheld.note(problem);
            if is_well {
                lost.note(beat(&self.shared.host.settings).err());
            }
            std::thread::sleep(if is_well { BEAT_EVERY } else { LOOK_AGAIN });
        }
    }
}

/// Something that is logged when it begins and when it ends.
struct Trouble {
    begins: &'static str,
    ends: &'static str,
    is_on: bool,
}

impl Trouble {
    fn new(begins: &'static str, ends: &'static str) -> Trouble {
        Trouble { begins, ends, is_on: false }
    }

    /// Answers whether it was logged.
    fn note(&mut self, problem: Option<String>) -> bool {
        let changed = self.is_on != problem.is_some();
        self.is_on = problem.is_some();
        match problem {
            Some(problem) if changed => log::warn!("{}: {problem}", self.begins),
            None if changed => log::info!("{}", self.ends),
            _ => {}
        }
        changed
    }
}

/// What is not well on this host, in one line: a thread that hangs, Docker, the database, a check that is overdue.
fn problem(shared: &Shared, threads: &Threads, now: Instant) -> Option<String> {
    if let Err(thread) = threads.all_alive(now) {
        return Some(format!("the thread `{thread}` hangs"));
    }
    if let Some(problem) = shared.docker().problem {
        return Some(problem);
    }
    match shared.host.store.repositories(None) {
        Ok(records) => {
            let late = shared.overdue(now);
            let overdue = records.iter().find(|record| late.contains(&record.id))?;
            Some(format!("{}: the check of its remote is overdue", overdue.name))
        }
        Err(error) => Some(format!("the database does not answer: {error}")),
    }
}

/// Sends one heartbeat. The error never holds more of the URL than its host.
fn beat(settings: &Settings) -> Result<(), String> {
    let url = settings.heartbeat_url()?.ok_or("Shiparr_HEARTBEAT_URL is not set any more")?;
    let request = Request {
        url: url.expose().to_owned(),
        proxies: settings.proxies.clone(),
        max_body_bytes: ANSWER_MAX_BYTES,
        ..Request::default()
    };
    // What a success says is not needed.
    let answer =
        http::stream(&request, &Limit::after(BEAT_LIMIT), &mut |_| false).map_err(|error| error.to_string())?;
    match answer.status {
        200..=299 => Ok(()),
        // The token is for the host that was named.
        status @ 300..=399 => {
            Err(format!("{} answered {status}: redirects are not followed, name where it leads", label(&url)))
        }
        status => Err(format!("{} answered {status}", label(&url))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests serve from threads of their own")]

    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use jiff::Timestamp;

    use super::*;
    use crate::config::Environment;
    use crate::daemon::shared::Appointment;
    use crate::daemon::worker::tests::Scene;
    use crate::pulse::MOMENT;

    #[test]
    fn it_is_withheld_while_a_thread_hangs_or_docker_is_away_or_a_check_is_overdue() {
        let scene = Scene::new();
        let (shared, threads) = (&scene.shared, &scene.threads);
        let now = Instant::now();
        assert_eq!(problem(shared, threads, now), None);

        let watched = threads.watch_this_one("worker");
        pulse::next_within(Duration::from_secs(900));
        let hung = now + Duration::from_secs(960) + MOMENT;
        assert_eq!(problem(shared, threads, now + Duration::from_secs(900)), None);
        assert_eq!(problem(shared, threads, hung).as_deref(), Some("the thread `worker` hangs"));
        drop(watched);
        assert_eq!(problem(shared, threads, hung), None);

        shared.set_docker(Some("Docker does not answer".to_owned()));
        assert_eq!(problem(shared, threads, now).as_deref(), Some("Docker does not answer"));
        shared.set_docker(None);

        let record = shared.host.store.repositories(None).unwrap().remove(0);
        let appointment = Arc::new(Appointment::new());
        shared.add_timer(record.id, Arc::clone(&appointment));
        // The clock of the host was set, by days: that makes nothing overdue.
        shared.host.store.check_scheduled(record.id, Timestamp::now() - Duration::from_secs(3 * 86_400));
        assert_eq!(problem(shared, threads, now), None);
        appointment.is_overdue_from(Some(now));
        assert_eq!(problem(shared, threads, now), None);
        let overdue = problem(shared, threads, now + Duration::from_secs(1));
        assert_eq!(overdue.as_deref(), Some("home/web: the check of its remote is overdue"));
        shared.remove_timer(record.id);
        assert_eq!(problem(shared, threads, now + Duration::from_secs(1)), None);
    }

    #[test]
    fn trouble_is_logged_when_it_begins_and_when_it_ends() {
        let mut trouble = Trouble::new("it begins", "it ends");
        let noted = [None, Some("one"), Some("another"), None, None].map(|text| trouble.note(text.map(str::to_owned)));
        assert_eq!(noted, [false, true, false, true, false]);
    }

    /// What a heartbeat comes to that is answered so, and its request's first line.
    fn answered(answer: &'static str) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut reader = BufReader::new(listener.accept().unwrap().0);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            head.lines().next().unwrap().to_owned()
        });
        let url = format!("http://{address}/ping/hush-hush");
        let pairs =
            [("Shiparr_HEARTBEAT_URL", url.as_str()), ("HTTP_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "127.0.0.1")];
        let settings = Settings::from_environment(&Environment::from_pairs(pairs)).unwrap().0;
        (beat(&settings), server.join().unwrap())
    }

    #[test]
    fn it_arrives_with_a_success_alone_and_no_error_tells_the_token() {
        let (sent, request) = answered("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK");
        assert_eq!((sent, request.as_str()), (Ok(()), "GET /ping/hush-hush HTTP/1.1"));
        for (answer, expected) in [
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
                "redirects are not followed",
            ),
            ("nonsense\r\n\r\n", "http://127.0.0.1"),
        ] {
            let error = answered(answer).0.unwrap_err();
            assert!(error.contains(expected) && !error.contains("hush-hush"), "{error}");
        }
    }
}
