//! What Shiparr is doing, in one line for `systemctl status`.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use super::threads::Threads;
use crate::config::Severity;
use crate::model::{self, DeploymentId, RepositoryName};
use crate::pulse;
use crate::store::StoreError;
use crate::systemd::Manager;

/// Changes that come together are one; a change is told this much later.
const SETTLE: Duration = Duration::from_millis(300);
/// It is looked at this often even when nothing is said to have changed.
const LOOK_AGAIN: Duration = Duration::from_secs(300);

/// Tells it whenever it changes.
pub struct Status {
    shared: Arc<Shared>,
    threads: Threads,
    manager: Manager,
}

/// All that the line is made of.
#[derive(Clone, Debug, Default)]
struct View {
    is_stopping: bool,
    /// What changes its stack now, and the commit where it is known.
    deploying: Option<(RepositoryName, Option<String>)>,
    /// Whose `up` has ended.
    settling: Vec<RepositoryName>,
    /// Who works on stacks by hand.
    hands: Vec<String>,
    is_paused: bool,
    pending: usize,
    docker: Option<String>,
    bad_files: usize,
    repositories: usize,
}

impl Status {
    /// For this manager.
    pub fn new(shared: Arc<Shared>, threads: Threads, manager: Manager) -> Status {
        Status { shared, threads, manager }
    }

    /// Until the process ends: a stop is told of too.
    pub fn run(&self) {
        let store = &self.shared.host.store;
        let mut told = String::new();
        loop {
            pulse::next_within(SETTLE);
            let (stirs, seen) = (self.shared.stirs(), Cell::new(0));
            store.wait_for_published(Duration::ZERO, |published| {
                seen.set(published.last_awaited);
                true
            });
            let line = match self.view() {
                Ok(view) => view.line(),
                Err(error) => format!("the database does not answer: {error}"),
            };
            if line != told {
                self.manager.status(&line);
                told = line;
            }
            pulse::rests();
            store.wait_for_published(LOOK_AGAIN, |published| {
                published.last_awaited != seen.get() || self.shared.stirs() != stirs
            });
            std::thread::sleep(SETTLE);
        }
    }

    fn view(&self) -> Result<View, StoreError> {
        let (shared, catalog) = (&self.shared, self.shared.catalog());
        let goes_on = shared.activities.look();
        let deployment = |id: DeploymentId| shared.host.store.deployment(id);
        let mut view = View {
            is_stopping: self.threads.are_stopping(),
            hands: goes_on.hands,
            is_paused: goes_on.is_paused,
            pending: shared.host.store.pending()?.len(),
            docker: shared.docker().problem,
            repositories: catalog.repositories().count(),
            ..View::default()
        };
        for id in goes_on.settling {
            view.settling.extend(deployment(id)?.map(|deployment| deployment.repository));
        }
        for id in goes_on.deploying {
            // One that is only tidied up after has its outcome already.
            if let Some(found) = deployment(id)?.filter(|deployment| deployment.status == model::Status::Running) {
                let commit = found.commit.map(|commit| commit.hash.short().to_owned());
                view.deploying = Some((found.repository, commit));
            }
        }
        let bad = catalog.problems.iter().filter(|problem| problem.severity == Severity::Error);
        view.bad_files = bad.map(|problem| problem.file.as_path()).collect::<BTreeSet<&Path>>().len();
        Ok(view)
    }
}

impl View {
    fn line(&self) -> String {
        if self.is_stopping {
            return self.last_line();
        }
        let mut parts: Vec<String> = Vec::new();
        if let Some((name, commit)) = &self.deploying {
            parts.push(match commit {
                Some(commit) => format!("deploying {name} {commit}"),
                None => format!("deploying {name}"),
            });
        }
        match &self.settling[..] {
            [] => {}
            [one] => parts.push(format!("waiting for {one} to become healthy")),
            several => parts.push(format!("waiting for {} stacks to become healthy", several.len())),
        }
        match (parts.first_mut(), self.pending) {
            (_, 0) => {}
            (Some(first), pending) => first.push_str(&format!(", {pending} waiting")),
            (None, 1) => parts.push("1 deployment waits".to_owned()),
            (None, pending) => parts.push(format!("{pending} deployments wait")),
        }
        parts.extend(self.hands.iter().map(|who| format!("{who} works with `shiparr compose`")));
        if self.is_paused {
            parts.push("`shiparr hold` lets no deployment begin".to_owned());
        }
        if parts.is_empty() {
            parts.push(format!("idle, {}", counted(self.repositories, "repository", "repositories")));
        }
        match self.bad_files {
            0 => {}
            1 => parts.push("1 project file has problems".to_owned()),
            several => parts.push(format!("{several} project files have problems")),
        }
        // What keeps everything from going on comes first: a long line is cut.
        parts.splice(0..0, self.docker.clone());
        parts.join("; ")
    }

    fn last_line(&self) -> String {
        let deploying = self.deploying.iter().map(|(name, _)| name);
        let running: Vec<&RepositoryName> = deploying.chain(&self.settling).collect();
        match (&running[..], self.hands.first()) {
            ([one], _) => format!("stopping: {one} is still being deployed"),
            ([], Some(who)) => format!("stopping: {who} still works with `shiparr compose`"),
            ([], None) => "stopping".to_owned(),
            (several, _) => format!("stopping: {} repositories are still being deployed", several.len()),
        }
    }
}

fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> RepositoryName {
        RepositoryName { project: "homelab".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn the_line_says_what_goes_on_and_what_is_wrong() {
        let idle = View { repositories: 12, ..View::default() };
        let deploying = View { deploying: Some((name("media-stack"), Some("abc1234".to_owned()))), ..idle.clone() };
        let docker = Some("Docker does not answer: refused".to_owned());
        for (view, expected) in [
            (idle.clone(), "idle, 12 repositories"),
            (View { repositories: 1, ..idle.clone() }, "idle, 1 repository"),
            (View { bad_files: 2, ..idle.clone() }, "idle, 12 repositories; 2 project files have problems"),
            (View { pending: 2, ..deploying.clone() }, "deploying homelab/media-stack abc1234, 2 waiting"),
            (View { deploying: Some((name("x"), None)), ..idle.clone() }, "deploying homelab/x"),
            (View { settling: vec![name("x")], ..idle.clone() }, "waiting for homelab/x to become healthy"),
            (
                View { settling: vec![name("x"), name("y")], pending: 1, ..deploying.clone() },
                "deploying homelab/media-stack abc1234, 1 waiting; waiting for 2 stacks to become healthy",
            ),
            (
                View { docker, pending: 2, bad_files: 1, ..idle.clone() },
                "Docker does not answer: refused; 2 deployments wait; 1 project file has problems",
            ),
            (
                View { is_paused: true, pending: 1, ..idle.clone() },
                "1 deployment waits; `shiparr hold` lets no deployment begin",
            ),
            (View { hands: vec!["ada".to_owned()], ..idle.clone() }, "ada works with `shiparr compose`"),
            (View { is_stopping: true, ..idle.clone() }, "stopping"),
            (View { is_stopping: true, ..deploying.clone() }, "stopping: homelab/media-stack is still being deployed"),
            (
                View { is_stopping: true, settling: vec![name("x")], ..deploying },
                "stopping: 2 repositories are still being deployed",
            ),
            (
                View { is_stopping: true, hands: vec!["ada".to_owned()], ..idle },
                "stopping: ada still works with `shiparr compose`",
            ),
        ] {
            assert_eq!(view.line(), expected);
        }
    }
}
