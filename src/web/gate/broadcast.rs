//! What is told to all listeners at once: clients whose answer never ends, kept by the gate alone. A listener costs a
//! descriptor and, where it is slow to read, a bounded buffer; neither a thread nor a connection to tiny_http.
//!
//! A route turns its client into a listener in three steps: it takes a place ([`Broadcast::reserve`]), answers with the
//! beginning of the stream and [`HEADER_LISTENS`](crate::web::HEADER_LISTENS), and the gate makes the client a listener
//! when that answer has passed. Whatever was told between the route's look at the world and that moment is sent after
//! the beginning: the gate keeps what it told lately.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use super::Gate;
use super::connection::{Client, Phase};
use super::slots::Key;

/// Bytes that wait for one listener; one that reads more slowly than that is dropped, and comes again.
pub const LISTENER_MAX_BYTES: usize = 128 * 1024;
/// Bytes of what was told lately that are kept for those who are about to listen.
const RECENT_MAX_BYTES: usize = 64 * 1024;
/// Messages that wait for the gate; whoever tells more has to wait.
const TOLD_MAX: usize = 64;
/// An answer on its way from its route to the gate; a place that is not taken by then is free again.
const RESERVED_LIMIT: Duration = Duration::from_secs(10);

/// The end of an answer in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A piece of the stream, as all listeners get it.
pub struct Message {
    /// Listeners that begin at this number or later have had it.
    number: u64,
    /// One chunk.
    chunk: Vec<u8>,
    /// Where in the chunk its content begins; it ends with a line break that belongs to the chunk.
    content_at: usize,
}

impl Message {
    fn new(number: u64, content: &[u8]) -> Message {
        let mut chunk = Vec::with_capacity(content.len() + 12);
        // Writing to a vector cannot fail.
        let _ = write!(chunk, "{:x}\r\n", content.len());
        let content_at = chunk.len();
        chunk.extend_from_slice(content);
        chunk.extend_from_slice(b"\r\n");
        Message { number, chunk, content_at }
    }

    fn bytes(&self, is_http_1_0: bool) -> &[u8] {
        if is_http_1_0 { &self.chunk[self.content_at..self.chunk.len() - 2] } else { &self.chunk }
    }
}

/// The way from whoever has something to tell to the gate, and the places for those who listen.
#[derive(Default)]
pub struct Broadcast {
    state: Mutex<State>,
    /// Wakes the gate; there is one once a gate watches it.
    bell: OnceLock<Arc<OwnedFd>>,
}

#[derive(Default)]
struct State {
    places: usize,
    listening: usize,
    /// Requests whose answer is on its way to the gate, and since when.
    reserved: HashMap<u64, Instant>,
    told: VecDeque<Message>,
}

impl State {
    fn forget_lost(&mut self) {
        let now = Instant::now();
        self.reserved.retain(|_, since| now.duration_since(*since) < RESERVED_LIMIT);
    }
}

impl Broadcast {
    /// A gate watches it from now on, and has `places` for listeners.
    pub(super) fn open(&self, places: usize, bell: Arc<OwnedFd>) {
        self.lock().places = places;
        // A second gate would be woken by nobody: there is one.
        let _ = self.bell.set(bell);
    }

    /// How many can listen at once.
    pub fn places(&self) -> usize {
        self.lock().places
    }

    /// Takes a place for the client of a request; `false` where none is left.
    pub fn reserve(&self, request: u64) -> bool {
        let mut state = self.lock();
        state.forget_lost();
        let is_free = state.listening + state.reserved.len() < state.places;
        if is_free {
            state.reserved.insert(request, Instant::now());
        }
        is_free
    }

    /// The client of this request will not listen.
    pub fn give_back(&self, request: u64) {
        self.lock().reserved.remove(&request);
    }

    /// Whether anybody listens, or is about to.
    pub fn has_listeners(&self) -> bool {
        let mut state = self.lock();
        state.forget_lost();
        state.listening + state.reserved.len() > 0
    }

    /// Whether the gate has not come to tell what it was given: there is no point in giving it more.
    pub fn is_behind(&self) -> bool {
        self.lock().told.len() >= TOLD_MAX
    }

    /// Sends `content` to all who listen, but to those who began at `number` or later.
    pub fn tell(&self, number: u64, content: &[u8]) {
        // A chunk of no length would end the answer.
        if content.is_empty() {
            return;
        }
        self.lock().told.push_back(Message::new(number, content));
        if let Some(bell) = self.bell.get() {
            // It can only fail because the counter is full: then the gate has been told.
            let _ = rustix::io::write(&**bell, &1_u64.to_ne_bytes());
        }
    }

    /// The client of this request listens from now on; `false` if it has no place.
    fn listens(&self, request: u64) -> bool {
        let mut state = self.lock();
        let is_expected = state.reserved.remove(&request).is_some();
        state.listening += usize::from(is_expected);
        is_expected
    }

    /// How many listen.
    #[cfg(test)]
    pub(super) fn listening(&self) -> usize {
        self.lock().listening
    }

    fn stopped_listening(&self) {
        self.lock().listening -= 1;
    }

    fn take(&self) -> VecDeque<Message> {
        std::mem::take(&mut self.lock().told)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // It is whole whatever a thread that held it did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those who listen, as the gate has them.
#[derive(Default)]
pub(super) struct Audience {
    keys: Vec<Key>,
    recent: VecDeque<Message>,
    recent_bytes: usize,
    /// The number of the last message that is not among the recent ones any more.
    forgotten: u64,
}

impl Audience {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    fn remember(&mut self, message: Message) {
        self.recent_bytes += message.chunk.len();
        self.recent.push_back(message);
        while self.recent_bytes > RECENT_MAX_BYTES {
            let Some(oldest) = self.recent.pop_front() else { return };
            self.recent_bytes -= oldest.chunk.len();
            self.forgotten = self.forgotten.max(oldest.number);
        }
    }
}

impl Gate {
    /// The beginning of a stream went to a client: it is a listener from now on, of all that was told after `number`.
    pub(super) fn begin_to_listen(&mut self, key: Key, request: u64, number: u64) {
        let Some(client) = self.clients.get_mut(key) else { return self.broadcast.give_back(request) };
        let Phase::Listening { is_http_1_0 } = client.phase else { return self.broadcast.give_back(request) };
        let has_place = self.broadcast.listens(request);
        if has_place {
            self.audience.keys.push(key);
        }
        // It was too long on its way to know all that was told meanwhile.
        if !has_place || number < self.audience.forgotten {
            return self.drop_client(key);
        }
        for message in self.audience.recent.iter().filter(|message| message.number > number) {
            client.output.buffer().extend_from_slice(message.bytes(is_http_1_0));
        }
        // What it sends after its request stays with its kernel; that it hangs up is noticed.
        client.input = Vec::new();
        client.deadline = None;
        self.watch_client(key, EventFlags::RDHUP);
        if self.stop_at.is_some() {
            self.end_listener(key);
        } else {
            self.flush_client(key);
        }
    }

    /// Somebody has something to tell.
    pub(super) fn tell_listeners(&mut self) {
        let mut count = [0; 8];
        // Whatever was in the counter: it rang.
        let _ = rustix::io::read(&*self.news, &mut count);
        for message in self.broadcast.take() {
            for key in self.audience.keys.clone() {
                self.tell_listener(key, &message);
            }
            self.audience.remember(message);
        }
    }

    fn tell_listener(&mut self, key: Key, message: &Message) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Phase::Listening { is_http_1_0 } = client.phase else { return };
        let Client { output, socket, .. } = client;
        if output.send(socket, message.bytes(is_http_1_0)).is_err() || output.len() > LISTENER_MAX_BYTES {
            return self.drop_client(key);
        }
        if !output.is_empty() {
            self.flush_client(key);
        }
    }

    /// The streams end as every answer does, so that clients can tell it from a broken connection.
    pub(super) fn end_listeners(&mut self) {
        for key in self.audience.keys.clone() {
            self.end_listener(key);
        }
    }

    fn end_listener(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Phase::Listening { is_http_1_0 } = client.phase else { return };
        if !is_http_1_0 {
            client.output.buffer().extend_from_slice(LAST_CHUNK);
        }
        client.phase = Phase::Closing;
        self.stop_listening(key);
        self.flush_client(key);
    }

    /// A listener is none any more.
    pub(super) fn stop_listening(&mut self, key: Key) {
        let before = self.audience.len();
        self.audience.keys.retain(|listener| *listener != key);
        if self.audience.len() < before {
            self.broadcast.stopped_listening();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let broadcast = Broadcast::default();
        assert!(!broadcast.reserve(1), "no gate, no places");
        broadcast.lock().places = 2;
        assert!(!broadcast.has_listeners());
        assert!(broadcast.reserve(1) && broadcast.reserve(2) && !broadcast.reserve(3));
        assert!(broadcast.listens(1) && !broadcast.listens(1) && !broadcast.listens(3));
        broadcast.give_back(2);
        assert!(broadcast.has_listeners() && broadcast.reserve(3) && !broadcast.reserve(4));
        broadcast.stopped_listening();
        broadcast.give_back(3);
        assert!(!broadcast.has_listeners());
    }

    #[test]
    fn a_place_that_nobody_takes_is_free_again() {
        let broadcast = Broadcast::default();
        broadcast.lock().places = 1;
        assert!(broadcast.reserve(1));
        let long_ago = Instant::now().checked_sub(RESERVED_LIMIT);
        broadcast.lock().reserved.values_mut().for_each(|since| *since = long_ago.unwrap());
        assert!(!broadcast.has_listeners() && broadcast.reserve(2));
        assert!(!broadcast.listens(1));
    }

    #[test]
    fn a_message_is_one_chunk_and_its_content() {
        let message = Message::new(1, b"data: 0123456789\n\n");
        assert_eq!(message.bytes(false), b"12\r\ndata: 0123456789\n\n\r\n");
        assert_eq!(message.bytes(true), b"data: 0123456789\n\n");
    }

    #[test]
    fn what_was_told_lately_is_bounded() {
        let mut audience = Audience::default();
        for number in 1..=10 {
            audience.remember(Message::new(number, &[b'x'; 10_000]));
        }
        assert!(audience.recent_bytes <= RECENT_MAX_BYTES);
        assert_eq!(audience.recent.front().map(|message| message.number), Some(audience.forgotten + 1));
        assert_eq!(audience.forgotten, 4);
        assert_eq!(audience.recent_bytes, audience.recent.iter().map(|message| message.chunk.len()).sum::<usize>());
    }
}
