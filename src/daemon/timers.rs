//! A thread a repository: it asks the remote for the branch's commit, at its interval or when told to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, Sender, select};
use jiff::Timestamp;

use super::places::Places;
use super::shared::{Appointment, Shared};
use super::threads::{SMALL_STACK_BYTES, Threads};
use crate::command::Limit;
use crate::config::project::Deploy;
use crate::config::{Catalog, Repository};
use crate::deploy::{checkout, remote};
use crate::git;
use crate::model::{CommitHash, RepositoryId, RepositoryName};
use crate::pulse;
use crate::store::{CheckBegun, Found, StoreError};

/// A check that takes longer has failed.
pub const CHECK_LIMIT: Duration = Duration::from_secs(60);
/// A limit that only a cancellation ends.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// First checks are spread over this much time for each repository there is, so that a thousand do not all go at once …
const FIRST_SPREAD_PER_REPOSITORY: Duration = Duration::from_millis(20);
/// … and later ones by up to this part of the interval …
const SPREAD_DIVISOR: u32 = 10;
/// … but never by more than this.
const SPREAD_AT_MOST: Duration = Duration::from_secs(30);

/// A check is overdue when it is late by its interval, and by no less than this: a check under way may take a minute,
/// and others may be before it.
const OVERDUE_AT_LEAST: Duration = Duration::from_secs(300);

/// While checks go on failing, another error than the last one is logged no more often than this: some forges put a
/// number of their own into each.
const FAILURE_LOGGED_EVERY: Duration = Duration::from_secs(600);

/// The timers of all accepted repositories.
pub struct Timers {
    shared: Arc<Shared>,
    threads: Threads,
    places: Arc<Places>,
    running: BTreeMap<RepositoryName, Timer>,
}

/// What a timer can be told.
pub enum Word {
    /// Its repository's configuration changed.
    Changed(Arc<Repository>),
    /// Its repository is gone.
    Stop,
}

/// One of them.
struct Timer {
    id: RepositoryId,
    repository: Arc<Repository>,
    words: Sender<Word>,
    /// Ends a check that is under way when the repository goes.
    stop: Limit,
}

impl Timers {
    /// None yet.
    pub fn new(shared: Arc<Shared>, threads: Threads) -> Timers {
        Timers { shared, threads, places: Arc::new(Places::new()), running: BTreeMap::new() }
    }

    /// Makes the timers agree with the catalog: only what changed is rescheduled.
    ///
    /// # Errors
    /// The database's, and the system's when it has no room for another thread.
    pub fn adjust(&mut self, catalog: &Catalog) -> anyhow::Result<()> {
        let wanted: BTreeMap<&RepositoryName, &Repository> =
            catalog.repositories().map(|repository| (&repository.name, repository)).collect();
        let gone: Vec<RepositoryName> =
            self.running.keys().filter(|name| !wanted.contains_key(name)).cloned().collect();
        for timer in gone.iter().filter_map(|name| self.running.remove(name)) {
            timer.end(&self.shared);
        }
        let spread = FIRST_SPREAD_PER_REPOSITORY * u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        for (name, repository) in wanted {
            match self.running.get_mut(name) {
                Some(timer) if *timer.repository == *repository => {}
                Some(timer) => {
                    timer.repository = Arc::new(repository.clone());
                    // Its thread lives until it is told to stop.
                    let _ = timer.words.send(Word::Changed(Arc::clone(&timer.repository)));
                }
                None => self.start(repository, spread)?,
            }
        }
        Ok(())
    }

    /// Ends all of them; checks that are under way are given up.
    pub fn stop(&mut self) {
        for (_, timer) in std::mem::take(&mut self.running) {
            timer.end(&self.shared);
        }
    }

    fn start(&mut self, repository: &Repository, spread: Duration) -> anyhow::Result<()> {
        let Some(record) = self.shared.host.store.repository_named(&repository.name)? else {
            anyhow::bail!("{} has no record in the database", repository.name);
        };
        let repository = Arc::new(repository.clone());
        let (words, heard) = crossbeam_channel::unbounded();
        let appointment = Arc::new(Appointment::new());
        let stop = Limit::after(FOREVER);
        let timer = Loop {
            shared: Arc::clone(&self.shared),
            places: Arc::clone(&self.places),
            id: record.id,
            repository: Arc::clone(&repository),
            heard,
            appointment: Arc::clone(&appointment),
            stop: stop.clone(),
            failure: None,
        };
        let first = Instant::now() + at_random_below(spread);
        // Threads carry at most 15 bytes of a name; the repository's own part says more than the project's.
        self.threads
            .start_for_a_while(&format!("t:{}", repository.name.name), SMALL_STACK_BYTES, move || timer.run(first))?;
        self.shared.add_timer(record.id, appointment);
        self.running.insert(repository.name.clone(), Timer { id: record.id, repository, words, stop });
        Ok(())
    }
}

impl Timer {
    /// Ends it; a check that is under way is given up.
    fn end(self, shared: &Shared) {
        shared.remove_timer(self.id);
        self.stop.cancel();
        // A thread that is gone already needs no word.
        let _ = self.words.send(Word::Stop);
    }
}

/// What a timer's thread works with.
struct Loop {
    shared: Arc<Shared>,
    places: Arc<Places>,
    id: RepositoryId,
    repository: Arc<Repository>,
    heard: Receiver<Word>,
    appointment: Arc<Appointment>,
    stop: Limit,
    failure: Option<LoggedFailure>,
}

/// The error that was logged of checks that go on failing.
struct LoggedFailure {
    error: String,
    at: Instant,
}

impl LoggedFailure {
    fn stands_for(&self, error: &str, now: Instant) -> bool {
        self.error == error || now < self.at + FAILURE_LOGGED_EVERY
    }
}

impl Loop {
    fn run(mut self, mut due: Instant) {
        self.tell_next(due);
        loop {
            pulse::next_within(due.saturating_duration_since(Instant::now()));
            let word = select! {
                recv(self.heard) -> word => Some(word),
                recv(self.appointment.asked.rung()) -> _ => None,
                recv(crossbeam_channel::at(due)) -> _ => None,
            };
            match word {
                None => {}
                Some(Ok(Word::Changed(repository))) => {
                    let asks_otherwise = asks_otherwise(&repository, &self.repository);
                    self.repository = repository;
                    if !asks_otherwise {
                        due = due.min(Instant::now() + self.repository.check_interval);
                        self.tell_next(due);
                        continue;
                    }
                }
                Some(Ok(Word::Stop) | Err(RecvError)) => return,
            }
            due = match self.check() {
                Found::Outdated => Instant::now(),
                Found::Nothing | Found::Queued(_) => Instant::now() + with_spread(self.repository.check_interval),
            };
            self.tell_next(due);
        }
    }

    fn tell_next(&self, due: Instant) {
        let at = Timestamp::now() + due.saturating_duration_since(Instant::now());
        self.shared.host.store.check_scheduled(self.id, at);
        self.appointment.is_overdue_from(overdue_at(due, self.repository.check_interval));
    }

    fn check(&mut self) -> Found {
        pulse::rests();
        let _place = self.places.take(&self.repository.url.host_with_port().unwrap_or_default());
        pulse::next_within(CHECK_LIMIT);
        let limit = self.stop.at_most(CHECK_LIMIT);
        let begun = self.shared.host.store.check_begins(self.id);
        let outcome = tip(&self.shared, &self.repository, &limit);
        if self.stop.is_cancelled() {
            return Found::Nothing;
        }
        self.shared.metrics.checked(outcome.is_err());
        let name = &self.repository.name;
        let recorded = match outcome {
            Ok(tip) => {
                if self.failure.take().is_some() {
                    log::info!("{name}: its remote answers again");
                }
                record(&self.shared, &self.repository, begun, &tip, &limit).inspect(|found| {
                    if let Found::Queued(queued) = found {
                        log::info!("{name}: commit {} queued as deployment {}", tip.short(), queued.deployment_id);
                        self.shared.wake_worker();
                    }
                })
            }
            Err(error) => {
                let recorded = self.shared.host.store.check_failed(self.id, &error, Timestamp::now());
                if !self.failure.as_ref().is_some_and(|logged| logged.stands_for(&error, Instant::now())) {
                    log::warn!("{name}: check failed: {error}");
                    self.failure = Some(LoggedFailure { error, at: Instant::now() });
                }
                recorded.map(|_| Found::Nothing)
            }
        };
        recorded.unwrap_or_else(|error| {
            // The commit is not lost: it is new at the next check too.
            log::error!("{name}: what the check found could not be stored: {error}");
            Found::Nothing
        })
    }
}

/// Asks a repository's remote for its branch's commit, once.
///
/// # Errors
/// One line without a credential.
pub fn tip(shared: &Shared, repository: &Repository, limit: &Limit) -> Result<CommitHash, String> {
    let remote = remote::of(repository, &shared.host.settings)?;
    git::check(&remote, &shared.host.git, limit).map_err(|error| error.message)
}

/// Records the `tip` that a check found. Under `deploy: manual` no deployment finds out whether it changes anything of
/// the stack, so this does.
///
/// # Errors
/// The database's.
pub fn record(
    shared: &Shared,
    repository: &Repository,
    begun: CheckBegun,
    tip: &CommitHash,
    limit: &Limit,
) -> Result<Found, StoreError> {
    let store = &shared.host.store;
    let changes_stack = repository.deploy != Deploy::Manual || changes_stack(shared, repository, tip, limit)?;
    if limit.is_cancelled() {
        // What could not be looked at to its end is looked at again by the next check.
        return Ok(Found::Nothing);
    }
    store.check_found(begun, tip, changes_stack, Timestamp::now())
}

/// Whether a new tip differs under `watch_paths` from what was deployed last. What nobody knows counts as a difference.
fn changes_stack(
    shared: &Shared,
    repository: &Repository,
    tip: &CommitHash,
    limit: &Limit,
) -> Result<bool, StoreError> {
    let host = &shared.host;
    if repository.watch_paths.is_empty() {
        return Ok(true);
    }
    let Some(record) = host.store.repository_named(&repository.name)? else { return Ok(true) };
    if record.observed_commit.as_ref() == Some(tip) {
        return Ok(true);
    }
    let Some(since) = host.store.skip_base(record.id)? else { return Ok(true) };
    Ok(checkout::changes_since(host, repository, &record, &since, limit).unwrap_or_else(|error| {
        log::warn!("{}: nobody knows what commit {} changes: {error}", repository.name, tip.short());
        true
    }))
}

/// Whether a check would ask somebody else, or with other rights: whoever mends a token wants to see at once that it is
/// well.
fn asks_otherwise(one: &Repository, other: &Repository) -> bool {
    one.url != other.url
        || one.branch != other.branch
        || one.token != other.token
        || one.insecure_http != other.insecure_http
        || one.ca_file != other.ca_file
        || one.ssh_key != other.ssh_key
        || one.ssh_key_passphrase != other.ssh_key_passphrase
}

/// From when on a check that is due then, of one at each `interval`, is overdue; never, beyond what the clock counts.
fn overdue_at(due: Instant, interval: Duration) -> Option<Instant> {
    due.checked_add(interval.max(OVERDUE_AT_LEAST))
}

fn with_spread(interval: Duration) -> Duration {
    interval + at_random_below((interval / SPREAD_DIVISOR).min(SPREAD_AT_MOST))
}

/// A random time below `bound`; spreading load needs no more than that, so a system without randomness goes on without.
fn at_random_below(bound: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or_default();
    bound.mul_f64(f64::from(random) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_whose_text_varies_is_logged_once_in_a_while() {
        let logged = LoggedFailure { error: "timed out after 1001 ms".to_owned(), at: Instant::now() };
        assert!(logged.stands_for("timed out after 1002 ms", logged.at));
        let later = logged.at + FAILURE_LOGGED_EVERY;
        assert!(logged.stands_for("timed out after 1001 ms", later));
        assert!(!logged.stands_for("timed out after 1002 ms", later));
    }

    #[test]
    fn a_check_is_overdue_when_it_is_late_by_its_interval_or_by_five_minutes() {
        let due = Instant::now();
        let late = |seconds| Some(due + Duration::from_secs(seconds));
        assert_eq!(overdue_at(due, Duration::from_secs(10)), late(300));
        assert_eq!(overdue_at(due, Duration::from_secs(3600)), late(3600));
        assert_eq!(overdue_at(due, Duration::MAX), None);
    }

    #[test]
    fn spread_is_bounded() {
        for _ in 0..1000 {
            let short = with_spread(Duration::from_secs(1));
            assert!(short >= Duration::from_secs(1) && short < Duration::from_millis(1100), "{short:?}");
            let long = with_spread(Duration::from_secs(86_400));
            assert!(long < Duration::from_secs(86_430), "{long:?}");
        }
        assert_eq!(at_random_below(Duration::ZERO), Duration::ZERO);
    }
}
