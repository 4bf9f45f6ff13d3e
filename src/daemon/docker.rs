//! Asks in the background whether Docker answers, so that no request ever has to.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use super::threads::Threads;
use crate::command::Limit;
use crate::pulse;

/// While it answers.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// While it does not.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A question takes at most this.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);
/// How long a stop waits for a sleeping watch at most.
const NAP: Duration = Duration::from_millis(200);

/// Asks Docker now, and notes the answer for everybody; whoever asks first tells the log of a change.
///
/// # Errors
/// It does not answer: why, in one line.
pub fn ask(shared: &Shared) -> Result<(), String> {
    let answer = shared.host.driver.available(&Limit::after(QUESTION_LIMIT));
    if shared.set_docker(answer.as_ref().err().cloned()) {
        shared.stir();
        match &answer {
            Ok(()) => {
                log::info!("Docker answers again");
                shared.wake_worker();
            }
            Err(problem) => log::error!("deployments wait: {problem}"),
        }
    }
    answer
}

/// Asks whether Docker answers.
pub struct Watch {
    shared: Arc<Shared>,
    threads: Threads,
}

impl Watch {
    /// A watch for the daemon.
    pub fn new(shared: Arc<Shared>, threads: Threads) -> Watch {
        Watch { shared, threads }
    }

    /// Asks until the daemon stops.
    pub fn run(&self) {
        while !self.threads.are_stopping() {
            pulse::next_within(QUESTION_LIMIT + ASK_EVERY);
            let pause = if ask(&self.shared).is_ok() { ASK_EVERY } else { ASK_AGAIN };
            self.sleep(pause);
        }
    }

    fn sleep(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() && !self.threads.are_stopping() {
            let nap = left.min(NAP);
            std::thread::sleep(nap);
            left -= nap;
        }
    }
}
