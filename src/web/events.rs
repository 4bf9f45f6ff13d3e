//! GET `/api/events`: what changes, told to those who listen, as server-sent events.
//!
//! One thread turns what the store publishes into events and has the gate send them to all listeners. A listener is
//! answered by its route with the beginning of the stream (where it was cut off before, with what it missed), and the
//! gate keeps it then.
//!
//! An event's id is `BOOT-NUMBER`: which run of the daemon, and the number of the change. Every event tells a thing as
//! it is when the event is made, under the number of its last change; so whoever has seen the events up to a number,
//! and gets those of all things that changed since, misses nothing, and needs no event twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Context;
use super::answer::{Answer, Failure};
use super::api::json;
use super::gate::Broadcast;
use super::routes::Call;
use crate::pulse;
use crate::store::{Change, Store, StoreError};

/// How long a browser waits until it connects again.
const RETRY: Duration = Duration::from_secs(2);
/// A stream on which nothing is told says so after this, so that proxies keep it.
const QUIET_LIMIT: Duration = Duration::from_secs(15);
/// From one round of events to the next: what changes more often is told once.
const ROUND_PAUSE: Duration = Duration::from_millis(20);
/// What nobody waits for, as the checks of remotes are, is collected for this long.
const COLLECTED_FOR: Duration = Duration::from_millis(100);
/// Events of one round.
const ROUND_MAX: usize = 64;
/// A round ends after the event that makes it longer than this: errors are long where many stacks fail at once, and
/// what one round tells has to fit the gate's memory of it, and what may wait for a listener.
const ROUND_MAX_BYTES: usize = 32 * 1024;
/// Pause after the database refused to say what changed.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Events that somebody who comes back gets; who missed more loads everything anew.
const MISSED_MAX: usize = 128;
/// Bytes of the events that somebody who comes back gets.
const MISSED_MAX_BYTES: usize = 64 * 1024;

/// Says that whatever came before is not known any more.
const RESET: &str = "reset";

/// What the route and the thread share.
pub struct Events {
    /// To the gate, and to all who listen.
    pub broadcast: Arc<Broadcast>,
    boot: String,
    state: Mutex<State>,
    /// Somebody listens, or the web stops.
    woken: Condvar,
    is_stopping: AtomicBool,
}

/// Held while events are made: each thing is told in the order in which it changed, whoever tells it.
#[derive(Default)]
struct State {
    /// Whether changes are turned into events.
    is_live: bool,
    /// The number of the last change that was told to listeners.
    told: u64,
}

impl Events {
    /// None yet.
    pub fn new() -> Events {
        // An id that happens to be that of an earlier run costs a page that is not loaded anew; time alone would do.
        let boot = getrandom::u64().unwrap_or_else(|_| jiff::Timestamp::now().as_microsecond().unsigned_abs());
        Events {
            broadcast: Arc::default(),
            boot: format!("{boot:016x}"),
            state: Mutex::default(),
            woken: Condvar::new(),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// Tells listeners what changes, until it is stopped.
    pub fn run(&self, store: &Store) {
        let mut quiet_since = Instant::now();
        while let Some(told) = self.wait_for_listeners() {
            pulse::next_within(QUIET_LIMIT);
            let is_over = || self.is_stopping.load(Ordering::SeqCst);
            let left = QUIET_LIMIT.saturating_sub(quiet_since.elapsed());
            store.wait_for_published(left, |published| published.last > told || is_over());
            if store.last_change() == told {
                if quiet_since.elapsed() >= QUIET_LIMIT {
                    self.broadcast.tell(told, b":\n\n");
                    quiet_since = Instant::now();
                }
                continue;
            }
            store.wait_for_published(COLLECTED_FOR, |published| published.last_awaited > told || is_over());
            let pause = match self.round(store) {
                Ok(()) => ROUND_PAUSE,
                Err(error) => {
                    log::warn!("listeners are not told what changed: {error}");
                    STORE_PAUSE
                }
            };
            quiet_since = Instant::now();
            store.wait_for_published(pause, |_| is_over());
        }
    }

    /// Ends [`Events::run`].
    pub fn stop(&self, store: &Store) {
        self.is_stopping.store(true, Ordering::SeqCst);
        // With the lock, the thread is not between asking and waiting.
        drop(self.lock());
        self.woken.notify_all();
        store.look_again();
    }

    /// Waits until somebody listens; answers up to which change they were told, or none at the end.
    fn wait_for_listeners(&self) -> Option<u64> {
        let mut state = self.lock();
        loop {
            if self.is_stopping.load(Ordering::SeqCst) {
                return None;
            }
            state.is_live &= self.broadcast.has_listeners();
            if state.is_live {
                return Some(state.told);
            }
            pulse::rests();
            state = self.woken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tells all who listen what changed since the last round.
    fn round(&self, store: &Store) -> Result<(), StoreError> {
        let mut state = self.lock();
        if self.broadcast.is_behind() || !self.broadcast.has_listeners() {
            return Ok(());
        }
        let Some(changes) = store.changes_since(state.told, ROUND_MAX) else {
            state.told = store.last_change();
            self.broadcast.tell(state.told, self.event(RESET, state.told, "{}").as_bytes());
            return Ok(());
        };
        let (mut events, mut told) = (String::new(), state.told);
        for change in changes {
            events += &self.event_of(store, change)?;
            told = change.0;
            if events.len() > ROUND_MAX_BYTES {
                break;
            }
        }
        state.told = told;
        self.broadcast.tell(state.told, events.as_bytes());
        Ok(())
    }

    /// The beginning of the stream for somebody who has seen `last_id`, and the change up to which it tells.
    fn beginning(&self, store: &Store, last_id: Option<&str>) -> Result<(u64, String), StoreError> {
        let mut state = self.lock();
        if !state.is_live {
            // Nobody listened, so nobody was told for a while.
            *state = State { is_live: true, told: store.last_change() };
            self.woken.notify_all();
        }
        let told = state.told;
        let mut text = format!(": Shiparr tells what changes\nretry: {}\n\n", RETRY.as_millis());
        match last_id {
            None => {}
            Some(id) => match self.missed(store, id, told)? {
                Some(missed) => text += &missed,
                None => text += &self.event(RESET, told, "{}"),
            },
        }
        // Without data it is no event, and a browser remembers its id all the same: cut off before the first event, it
        // asks for what came after this.
        text += &format!("id: {}-{told}\n\n", self.boot);
        Ok((told, text))
    }

    /// What changed after `id` and up to the change `told`; none where that is not known, or too much.
    fn missed(&self, store: &Store, id: &str, told: u64) -> Result<Option<String>, StoreError> {
        let seen = id.strip_prefix(self.boot.as_str()).and_then(|rest| rest.strip_prefix('-'));
        let Some(seen) = seen.and_then(|number| number.parse::<u64>().ok()).filter(|seen| *seen <= told) else {
            return Ok(None);
        };
        let Some(changes) = store.changes_since(seen, MISSED_MAX + 1) else { return Ok(None) };
        if changes.len() > MISSED_MAX {
            return Ok(None);
        }
        let mut missed = String::new();
        // What changed after `told` is told to all in the next round.
        for change in changes.into_iter().filter(|(number, _)| *number <= told) {
            missed += &self.event_of(store, change)?;
            if missed.len() > MISSED_MAX_BYTES {
                return Ok(None);
            }
        }
        Ok(Some(missed))
    }

    /// A change as an event; empty where its record is gone.
    fn event_of(&self, store: &Store, (number, change): (u64, Change)) -> Result<String, StoreError> {
        let (name, data) = match change {
            Change::Projects => ("projects", Some("{}".to_owned())),
            Change::Deployment(id) => {
                ("deployment", store.deployment(id)?.map(|record| to_line(&json::Deployment::from(&record))))
            }
            Change::Repository(id) => {
                ("repository", store.repository(id)?.map(|record| to_line(&json::Repository::from(&record))))
            }
        };
        Ok(data.map(|data| self.event(name, number, &data)).unwrap_or_default())
    }

    fn event(&self, name: &str, number: u64, data: &str) -> String {
        format!("event: {name}\nid: {}-{number}\ndata: {data}\n\n", self.boot)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic between telling and noting it costs an event that is told twice.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// GET `/api/events`: the beginning of a stream that the gate goes on with.
pub fn events(call: &Call<'_>) -> Result<Answer, Failure> {
    let Context { store, events, .. } = &**call.context;
    if call.request.is_head() {
        return Ok(stream(String::new()));
    }
    let last_id = call.request.header("Last-Event-ID").or_else(|| call.request.query("last_event_id"));
    if !events.broadcast.reserve(call.request.id) {
        let message = format!("{} clients listen already, and there is no place for more", events.broadcast.places());
        return Err(Failure::unavailable(message));
    }
    match events.beginning(store, last_id.filter(|id| !id.is_empty())) {
        Ok((told, beginning)) => Ok(stream(beginning).with_header(super::HEADER_LISTENS, told.to_string())),
        Err(error) => {
            events.broadcast.give_back(call.request.id);
            Err(error.into())
        }
    }
}

fn stream(beginning: String) -> Answer {
    // nginx would collect events until its buffer is full.
    Answer::typed("text/event-stream", beginning).with_header("X-Accel-Buffering", "no")
}

/// One line: JSON escapes line breaks.
fn to_line(value: &impl serde::Serialize) -> String {
    // Records have no keys that are no text, and that is all that could fail.
    serde_json::to_string(value).unwrap_or_default()
}
