//! What may end a deployment before its own end.

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
}

impl Control {
    /// For a deployment that may take `timeout`.
    pub fn new(timeout: Duration) -> Control {
        Control { limit: Limit::after(timeout), cause: Arc::default() }
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
    fn running_out_of_time_has_no_cause() {
        let control = Control::new(Duration::ZERO);
        assert!(control.limit().is_over());
        assert_eq!(control.cause(), None);
    }
}
