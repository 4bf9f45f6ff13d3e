//! Tells systemd that Shiparr lives, for as long as it does; and asks it for time while a start or a stop takes some.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::threads::{SMALL_STACK_BYTES, Threads};
use crate::systemd::Manager;

/// While a start or a stop goes on, systemd is asked this often …
const EXTEND_EVERY: Duration = Duration::from_secs(5);
/// … for so much more time. A process that hangs altogether asks no more.
const EXTENSION: Duration = Duration::from_secs(30);
/// A start takes less, also one that copies and migrates a large database on a slow card, or decrypts what many stacks
/// mount.
const START_LIMIT: Duration = Duration::from_secs(3600);
/// Of each time that the watchdog has, so often is it told: one that is lost does no harm.
const TELLS_PER_WATCHDOG: u32 = 3;
/// Whoever wakes up later than this did not run meanwhile, and neither did the others: the process was stopped, or the
/// machine paused.
const LATE: Duration = Duration::from_secs(1);

/// What the thread is told of the daemon's life.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// The start is over.
    Runs,
    /// The stop goes on until then at most.
    StopsUntil(Instant),
}

/// The way to the thread. Without a service manager there is none.
pub struct Keeper {
    manager: Manager,
    news: Option<Sender<News>>,
}

impl Keeper {
    /// The start begins.
    ///
    /// # Errors
    /// The system's, when it has no room for another thread.
    pub fn start(manager: Manager, threads: &Threads) -> std::io::Result<Keeper> {
        if !manager.listens() {
            return Ok(Keeper { manager, news: None });
        }
        let (sender, receiver) = crossbeam_channel::unbounded();
        let thread = Life { manager: manager.clone(), threads: threads.clone() };
        let _: JoinHandle<()> =
            threads.start_for_a_while("systemd", SMALL_STACK_BYTES, move || thread.live(&receiver))?;
        Ok(Keeper { manager, news: Some(sender) })
    }

    /// What systemd is told beside what the thread tells.
    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    /// The start is over: database, configuration and listeners are up.
    pub fn ready(&self) {
        self.manager.ready();
        self.tell(News::Runs);
    }

    /// The stop begins, and takes `limit` at most.
    pub fn stopping(&self, limit: Duration) {
        self.manager.stopping();
        self.tell(News::StopsUntil(Instant::now() + limit));
    }

    fn tell(&self, news: News) {
        if let Some(sender) = &self.news {
            // It fails where the thread is gone: then main is about to know.
            let _ = sender.send(news);
        }
    }
}

/// The thread.
struct Life {
    manager: Manager,
    threads: Threads,
}

impl Life {
    /// Until the process ends, or the daemon's start failed: then nobody has news any more.
    fn live(&self, news: &Receiver<News>) {
        if self.start(news).is_some() {
            if let Some(until) = self.run(news) {
                self.stop(news, until);
            }
        }
    }

    fn start(&self, news: &Receiver<News>) -> Option<News> {
        let until = Instant::now() + START_LIMIT;
        loop {
            match news.recv_timeout(EXTEND_EVERY) {
                // Whoever wants it to stop gets that within systemd's own limit, also where the start waits for a file
                // system that does not answer.
                Err(RecvTimeoutError::Timeout) if self.threads.are_asked_to_stop() => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => self.manager.extend(EXTENSION),
                Err(RecvTimeoutError::Timeout) => {}
                heard => return heard.ok(),
            }
        }
    }

    /// Answers until when the stop goes on.
    fn run(&self, news: &Receiver<News>) -> Option<Instant> {
        let every = self.manager.watchdog().map(|time| time / TELLS_PER_WATCHDOG);
        let mut watch = Watch::default();
        loop {
            let slept_since = Instant::now();
            let heard = match every {
                Some(every) => news.recv_timeout(every),
                None => news.recv().map_err(RecvTimeoutError::from),
            };
            match heard {
                Ok(News::StopsUntil(until)) => return Some(until),
                Ok(News::Runs) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let late = slept_since.elapsed().saturating_sub(every.unwrap_or_default());
                    self.look(&mut watch, late, Instant::now());
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Looks whether all threads live, so much later than planned.
    fn look(&self, watch: &mut Watch, late: Duration, now: Instant) {
        if late > LATE {
            self.threads.postpone(late);
        }
        if watch.look(self.threads.all_alive(now)) {
            self.manager.alive();
        }
    }

    /// What a stop waits for has limits of its own, and threads may end: until those are over Shiparr lives.
    fn stop(&self, news: &Receiver<News>, until: Instant) {
        let watchdog = self.manager.watchdog().map(|time| time / TELLS_PER_WATCHDOG);
        let every = watchdog.into_iter().chain([EXTEND_EVERY]).min().unwrap_or_default();
        while Instant::now() < until {
            self.manager.extend(EXTENSION);
            if watchdog.is_some() {
                self.manager.alive();
            }
            if news.recv_timeout(every) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }
}

/// Whether the watchdog is told, as far as it was seen.
#[derive(Default)]
struct Watch {
    hangs: Option<String>,
}

impl Watch {
    /// Whether it is told that Shiparr lives; the log is told when that changes.
    fn look(&mut self, alive: Result<(), String>) -> bool {
        match (alive, &self.hangs) {
            (Ok(()), Some(thread)) => {
                log::info!("the thread `{thread}` goes on: the watchdog of systemd is told again that Shiparr lives");
                self.hangs = None;
                true
            }
            (Ok(()), None) => true,
            (Err(_), Some(_)) => false,
            (Err(thread), None) => {
                log::error!(
                    "the thread `{thread}` hangs: the watchdog of systemd is not told any more that Shiparr lives, and starts it anew"
                );
                self.hangs = Some(thread);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    use super::*;
    use crate::pulse::{self, MOMENT};

    /// A manager that listens, and what it hears within a minute.
    struct Heard {
        socket: UnixDatagram,
        _folder: tempfile::TempDir,
        manager: Manager,
    }

    impl Heard {
        fn with_watchdog(watchdog: Option<Duration>) -> Heard {
            let folder = tempfile::tempdir().unwrap();
            let path: &Path = &folder.path().join("notify");
            let socket = UnixDatagram::bind(path).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            Heard { socket, manager: Manager::at(path, watchdog), _folder: folder }
        }

        fn next(&self) -> String {
            let mut buffer = [0; 4096];
            let count = self.socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..count]).trim_end().to_owned()
        }
    }

    fn threads() -> Threads {
        Threads::new(crossbeam_channel::unbounded().0)
    }

    #[test]
    fn a_life_from_ready_over_the_watchdog_to_the_stop() {
        let heard = Heard::with_watchdog(Some(Duration::from_millis(30)));
        let threads = threads();
        let keeper = Keeper::start(heard.manager.clone(), &threads).unwrap();
        keeper.ready();
        assert_eq!([heard.next(), heard.next(), heard.next()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
        keeper.stopping(Duration::from_secs(60));
        let until_stop = std::iter::from_fn(|| Some(heard.next()).filter(|said| said == "WATCHDOG=1")).count();
        assert!(until_stop < 1000);
        assert_eq!([heard.next(), heard.next()], ["EXTEND_TIMEOUT_USEC=30000000", "WATCHDOG=1"]);
    }

    #[test]
    fn without_a_manager_no_thread_is_started() {
        let keeper = Keeper::start(Manager::default(), &threads()).unwrap();
        assert!(keeper.news.is_none());
        keeper.ready();
        keeper.stopping(Duration::ZERO);
    }

    #[test]
    fn the_watchdog_is_told_nothing_while_a_thread_hangs() {
        let mut watch = Watch::default();
        let hangs = || Err("worker".to_owned());
        assert_eq!(
            [Ok(()), hangs(), hangs(), Ok(()), Ok(())].map(|alive| watch.look(alive)),
            [true, false, false, true, true]
        );
    }

    #[test]
    fn after_the_process_was_stopped_everybody_has_the_time_that_was_lost() {
        let heard = Heard::with_watchdog(None);
        let (life, mut watch) = (Life { manager: heard.manager.clone(), threads: threads() }, Watch::default());
        let _watched = life.threads.watch_this_one("worker");
        pulse::next_within(Duration::from_secs(900));
        let hour = Duration::from_secs(3600);
        life.look(&mut watch, hour, Instant::now() + hour);
        assert_eq!(heard.next(), "WATCHDOG=1");
        // What it has now is its own time again.
        life.look(&mut watch, Duration::ZERO, Instant::now() + hour + Duration::from_secs(960) + MOMENT);
        assert_eq!(watch.hangs.as_deref(), Some("worker"));
        pulse::rests();
        heard.manager.ready();
        assert_eq!(heard.next(), "READY=1", "nothing was said of the watchdog before");
    }
}
