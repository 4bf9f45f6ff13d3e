//! What may end a deployment before its own end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::command::Limit;
use crate::model::DeploymentId;

/// Why somebody ended a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Shiparr stops: the row stays `running`, and the next start goes on from there.
    Stop,
    /// Somebody asked for it.
    Cancel,
    /// A later deployment of the same repository waits, and the host is to have that one.
    Supersede {
        /// The later one.
        by: DeploymentId,
    },
}

/// The time that a deployment has, and a way to end it before. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Control {
    limit: Limit,
    cause: Arc<OnceLock<Cause>>,
    is_left: Arc<AtomicBool>,
}

impl Control {
    /// For a deployment that may take `timeout`.
    pub fn new(timeout: Duration) -> Control {
        Control { limit: Limit::after(timeout), cause: Arc::default(), is_left: Arc::default() }
    }

    /// What every step of it ends with.
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Ends it. Of several causes the first counts.
    pub fn end(&self, cause: Cause) {
        // Set before the steps notice, so that whoever finds the limit cancelled finds the cause.
        let _ = self.cause.set(cause);
        self.limit.cancel();
    }

    /// Shiparr stops: nobody waits any more for what a helper does. What Shiparr does itself goes on.
    pub fn leave_to_helper(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// Whether what a helper does is left to the next start.
    pub fn is_left_to_helper(&self) -> bool {
        self.is_left.load(Ordering::Relaxed) || self.cause() == Some(Cause::Stop)
    }

    /// Why it was ended; none while it was not, also when it ran out of time.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_counts() {
        let control = Control::new(Duration::from_secs(60));
        let other = control.clone();
        assert_eq!(control.cause(), None);
        other.end(Cause::Supersede { by: 7 });
        control.end(Cause::Stop);
        assert_eq!(control.cause(), Some(Cause::Supersede { by: 7 }));
        assert!(control.limit().is_cancelled());
    }

    #[test]
    fn a_stop_leaves_to_a_helper_what_it_does_and_nothing_else() {
        let control = Control::new(Duration::from_secs(60));
        assert!(!control.is_left_to_helper());
        control.leave_to_helper();
        assert!(control.is_left_to_helper() && !control.limit().is_over());
        let interrupted = Control::new(Duration::from_secs(60));
        interrupted.end(Cause::Stop);
        assert!(interrupted.is_left_to_helper());
    }

    #[test]
    fn running_out_of_time_has_no_cause() {
        let control = Control::new(Duration::ZERO);
        assert!(control.limit().is_over());
        assert_eq!(control.cause(), None);
    }
}
