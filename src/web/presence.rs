//! Tells the writers of streams that their client is gone: a stream that has nothing to say would not notice by itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests whose writers want to know, by their number.
#[derive(Default)]
pub struct Presence {
    watched: Mutex<HashMap<u64, Arc<AtomicBool>>>,
}

/// One request's client. It is not watched any more when this is dropped.
pub struct Watch {
    presence: Arc<Presence>,
    request: u64,
    gone: Arc<AtomicBool>,
}

impl Presence {
    /// Watches the client of a request. One that left before is found out by the first write.
    pub fn watch(self: &Arc<Presence>, request: u64) -> Watch {
        let gone = Arc::new(AtomicBool::new(false));
        self.lock().insert(request, Arc::clone(&gone));
        Watch { presence: Arc::clone(self), request, gone }
    }

    /// The client of this request is gone.
    pub fn left(&self, request: u64) {
        if let Some(gone) = self.lock().get(&request) {
            gone.store(true, Ordering::Relaxed);
        }
    }

    /// The web stops: nobody is there any more.
    pub fn all_left(&self) {
        for gone in self.lock().values() {
            gone.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<AtomicBool>>> {
        // The map is whole whatever a thread that held it did.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Whether the client is gone.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
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
        presence.all_left();
        assert!(second.is_gone());
        drop((first, second));
        assert!(presence.lock().is_empty());
    }
}
