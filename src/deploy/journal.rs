//! A deployment's log: each line scrubbed, then stored as it comes.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::Log;
use crate::config::{Repository, Settings};
use crate::model::{DeploymentId, LogLevel};
use crate::secrets::Scrubber;
use crate::store::{HelperLine, Store, StoreError};

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

    /// All that it knows so far, for a helper whose lines go through it before they come here.
    pub fn scrubber(&self) -> Scrubber {
        self.scrubber.clone()
    }

    /// Adds the lines of a helper, which end at its log's byte `taken`: each once, whatever happens meanwhile.
    ///
    /// # Errors
    /// The database's: then none is added.
    pub fn add_of_helper(&mut self, mut lines: Vec<HelperLine>, taken: u64) -> Result<(), StoreError> {
        for line in &mut lines {
            line.message = self.scrubber.scrub(&line.message).into_owned();
        }
        match &self.to {
            Destination::Deployment { store, id, .. } => store.log_of_helper(*id, &lines, taken),
            Destination::Daemon { .. } => Ok(()),
        }
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

/// What must never stand in a log of this repository: as far as it can be had; what cannot is reported by the step that
/// needs it.
pub fn known_secrets(repository: &Repository, settings: &Settings) -> Scrubber {
    let mut scrubber = Scrubber::new();
    let environment = &settings.environment;
    repository.secrets(environment).iter().for_each(|secret| scrubber.learn(secret.expose()));
    repository.secret_urls(environment).iter().for_each(|url| scrubber.learn_url(url.expose()));
    // Children get the proxies as they are, and some quote them in their errors.
    let proxies = [&settings.proxies.https, &settings.proxies.http];
    proxies
        .into_iter()
        .flatten()
        .filter(|proxy| proxy.contains('@'))
        .for_each(|proxy| learn_proxy(&mut scrubber, proxy));
    scrubber
}

/// A proxy may be named without a scheme, which is http then.
fn learn_proxy(scrubber: &mut Scrubber, proxy: &str) {
    match proxy.contains("://") {
        true => scrubber.learn_url(proxy),
        false => scrubber.learn_url(&format!("http://{proxy}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_password_is_known_with_and_without_a_scheme() {
        for proxy in ["http://me:hush-hush@proxy.example:3128", "me:hush-hush@proxy.example:3128"] {
            let mut scrubber = Scrubber::new();
            learn_proxy(&mut scrubber, proxy);
            assert_eq!(scrubber.scrub("refused for hush-hush"), "refused for ***", "{proxy}");
            assert_eq!(scrubber.scrub(&format!("via {proxy}")).matches("hush").count(), 0, "{proxy}");
        }
    }
}
