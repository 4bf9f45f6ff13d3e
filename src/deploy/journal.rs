//! A deployment's log: each line scrubbed, then stored as it comes.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::Log;
use crate::model::{DeploymentId, LogLevel};
use crate::secrets::Scrubber;
use crate::store::Store;

/// Writes a deployment's log. A log that cannot be written stops no deployment.
pub struct Journal {
    to: Destination,
    scrubber: Scrubber,
}

/// Where the lines go.
enum Destination {
    /// Into a deployment's log.
    Deployment {
        store: Arc<Store>,
        id: DeploymentId,
        /// The daemon's own log hears once that this one cannot be written, not once a line.
        broken: bool,
    },
    /// Into the daemon's own log, where nobody deploys.
    Daemon { about: String },
}

impl Journal {
    /// With the secrets that are known so far.
    pub fn new(store: Arc<Store>, id: DeploymentId, scrubber: Scrubber) -> Journal {
        Journal { to: Destination::Deployment { store, id, broken: false }, scrubber }
    }

    /// One without a deployment: its lines are for those who debug the daemon, and begin with what they are about.
    pub fn of_daemon(about: impl Into<String>, scrubber: Scrubber) -> Journal {
        Journal { to: Destination::Daemon { about: about.into() }, scrubber }
    }

    /// Learns a value that was decrypted or interpolated.
    pub fn learn(&mut self, value: &str) {
        self.scrubber.learn(value);
    }

    /// A text without any known secret.
    pub fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.scrubber.scrub(text)
    }

    /// Adds a step's line, with the time that it took.
    pub fn step(&mut self, what: &str, since: Instant) {
        self.line(LogLevel::Info, &format!("{what} ({:.2} s)", since.elapsed().as_secs_f64()));
    }
}

impl Log for Journal {
    fn line(&mut self, level: LogLevel, message: &str) {
        let scrubbed = self.scrubber.scrub(message);
        match &mut self.to {
            Destination::Deployment { store, id, broken } => {
                if let Err(error) = store.log(*id, level, &scrubbed, Timestamp::now()) {
                    if !*broken {
                        log::error!("the log of deployment {id} cannot be written: {error}");
                    }
                    *broken = true;
                }
            }
            Destination::Daemon { about } => log::debug!("{about}: {scrubbed}"),
        }
    }
}
