//! Decrypted files that stacks mount (`secret_files`) are made again where they are gone: after a reboot, mostly.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::docker;
use super::shared::Shared;
use crate::command::Limit;
use crate::deploy::pipeline::Host;
use crate::deploy::secret_files;
use crate::model::RepositoryName;
use crate::pulse;
use crate::store::StoreError;

/// For all of them together; a key service that hangs must not hold up the start for longer.
const RESTORE_LIMIT: Duration = Duration::from_secs(20);
/// What could not be made again, for want of a key that is mounted later say, is tried again after this.
const RESTORE_AGAIN: Duration = Duration::from_secs(60);
/// For starting the containers of one stack.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What is still to be done.
#[derive(Default)]
pub struct Restore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the last try left something; none: there is nothing to be made again.
    left_at: Option<Instant>,
    /// What it left, so that the log tells it once.
    told: Vec<String>,
    /// Repositories whose files were gone: Docker may not have been able to start their containers.
    to_start: BTreeSet<RepositoryName>,
}

impl Restore {
    /// Before the first deployment: what no repository has any more is removed, and what is gone made again.
    ///
    /// # Errors
    /// The database's.
    pub fn begin(&self, host: &Host) -> Result<(), StoreError> {
        let known: Vec<RepositoryName> = host.store.repositories(None)?.into_iter().map(|record| record.name).collect();
        for error in secret_files::forget_unknown(&known, &host.settings, &host.hash_key) {
            log::error!("decrypted files of a repository that is not known any more stay behind: {error}");
        }
        self.make(host);
        Ok(())
    }

    /// Goes on with what is left, where it is time; answers whether the worker should look again soon.
    pub fn go_on(&self, shared: &Shared) -> bool {
        let left_at = self.lock().left_at;
        if left_at.is_some_and(|at| at.elapsed() >= RESTORE_AGAIN) {
            self.make(&shared.host);
        }
        if self.lock().to_start.is_empty() {
            return false;
        }
        if docker::ask(shared).is_ok() {
            let to_start = std::mem::take(&mut self.lock().to_start);
            for name in &to_start {
                // There may be many of them.
                pulse::next_within(START_LIMIT);
                start(&shared.host, name);
            }
        }
        !self.lock().to_start.is_empty()
    }

    fn make(&self, host: &Host) {
        let restored = secret_files::restore(&host.settings, &host.hash_key, &Limit::after(RESTORE_LIMIT));
        let mut state = self.lock();
        let problems: Vec<String> = restored.problems.iter().map(ToString::to_string).collect();
        for problem in problems.iter().filter(|problem| !state.told.contains(problem)) {
            log::error!("a decrypted file that containers mount is not there: {problem}");
        }
        state.left_at = (!problems.is_empty()).then(Instant::now);
        state.told = problems;
        state.to_start.extend(restored.repositories);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts what could not be started while the files were gone.
fn start(host: &Host, name: &RepositoryName) {
    let project = match host.store.repository_named(name) {
        Ok(record) => record.and_then(|record| record.compose_project),
        Err(error) => return log::error!("{name}: {error}"),
    };
    let Some(project) = project else { return };
    match host.driver.start_unmounted(&project, &Limit::after(START_LIMIT)) {
        Ok(started) if started.is_empty() => {}
        Ok(started) => log::info!("{name}: started, as what they mount is there again: {}", started.join(", ")),
        Err(error) => log::error!("{name}: containers that could not mount their secrets stay stopped: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::worker::tests::Scene;
    use crate::pulse::MOMENT;

    #[test]
    fn whoever_starts_many_stacks_is_alive_with_each() {
        let Scene { shared, threads, .. } = &Scene::new();
        let record = shared.host.store.repositories(None).unwrap().remove(0);
        shared.restore.lock().to_start.insert(record.name);
        let _watched = threads.watch_this_one("worker");
        pulse::next_within(Duration::ZERO);
        assert!(!shared.restore.go_on(shared));
        assert_eq!(threads.all_alive(Instant::now() + MOMENT + START_LIMIT / 2), Ok(()));
    }
}
