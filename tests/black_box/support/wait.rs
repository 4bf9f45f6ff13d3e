//! Waiting for something, with a limit.

use std::thread;
use std::time::{Duration, Instant};

/// Enough for what takes milliseconds on an idle machine.
pub const SHORT: Duration = Duration::from_secs(20);
/// Enough for a deployment on a busy machine.
pub const MINUTE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(25);

/// Asks `probe` until it answers something; panics with `what` when `limit` is over.
#[track_caller]
pub fn wait_until<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {limit:?} for {what}");
        thread::sleep(PAUSE);
    }
}
