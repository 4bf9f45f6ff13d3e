//! Tells the writers of streams that their client is gone: a stream that has nothing to say would not notice by itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::command::Limit;

/// Requests whose writers want to know, by their number.
#[derive(Default)]
pub struct Presence {
    watched: Mutex<HashMap<u64, Client>>,
}

#[derive(Clone)]
struct Client {
    is_stream: bool,
    gone: Arc<AtomicBool>,
    limit: Limit,
}

impl Client {
    fn leave(&self) {
        // Whoever finds the limit cancelled finds the reason.
        self.gone.store(true, Ordering::Relaxed);
        self.limit.cancel();
    }
}

/// One request's client. It is not watched any more when this is dropped.
pub struct Watch {
    presence: Arc<Presence>,
    request: u64,
    client: Client,
}

impl Presence {
    /// Watches the client of a request. One that left before is found out by the first write.
    pub fn watch(self: &Arc<Presence>, request: u64) -> Watch {
        self.insert(request, false)
    }

    /// As [`Presence::watch`], for an answer without an end.
    pub fn watch_stream(self: &Arc<Presence>, request: u64) -> Watch {
        self.insert(request, true)
    }

    fn insert(self: &Arc<Presence>, request: u64, is_stream: bool) -> Watch {
        let client = Client { is_stream, gone: Arc::default(), limit: Limit::after(Duration::MAX) };
        self.lock().insert(request, client.clone());
        Watch { presence: Arc::clone(self), request, client }
    }

    /// The client of this request is gone.
    pub fn left(&self, request: u64) {
        if let Some(client) = self.lock().get(&request) {
            client.leave();
        }
    }

    /// The web is about to stop: answers without an end have it now, others may still come to theirs.
    pub fn streams_end(&self) {
        self.lock().values().filter(|client| client.is_stream).for_each(Client::leave);
    }

    /// The web stops: nobody is there any more.
    pub fn all_left(&self) {
        self.lock().values().for_each(Client::leave);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Client>> {
        // The map is whole whatever a thread that held it did.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Whether the client is gone.
    pub fn is_gone(&self) -> bool {
        self.client.gone.load(Ordering::Relaxed)
    }

    /// Cancelled when the client goes. It has no other end, unless whoever else has it gives it one.
    pub fn limit(&self) -> &Limit {
        &self.client.limit
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.presence.lock().remove(&self.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_learns_that_its_client_left() {
        let presence = Arc::new(Presence::default());
        let (first, second) = (presence.watch(1), presence.watch(2));
        presence.left(1);
        presence.left(3);
        assert!(first.is_gone() && !second.is_gone());
        assert!(first.limit().is_cancelled() && !second.limit().is_over());
        let stream = presence.watch_stream(4);
        presence.streams_end();
        assert!(stream.is_gone() && !second.is_gone());
        presence.all_left();
        assert!(second.is_gone());
        drop((first, second, stream));
        assert!(presence.lock().is_empty());
    }
}
