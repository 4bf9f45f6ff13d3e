//! Bringing a stack up, and what it leaves where that fails.

use std::collections::BTreeSet;

use super::explain::{self, Tail};
use super::watch::Container;
use super::{Compose, DIAGNOSIS_LIMIT};
use crate::command::{Command, Limit, Output};
use crate::config::project::{Build, Pull};
use crate::deploy::{Containers, Log, Plan, Stack, StepError, Up, UpError};
use crate::model::{Chance, LogLevel};

impl Compose {
    pub(super) fn bring_up(
        &self,
        stack: &Stack,
        plan: &Plan,
        how: &Up,
        limit: &Limit,
        log: &mut dyn Log,
    ) -> Result<(), UpError> {
        let call = || self.call(stack, &plan.files, Some(&plan.project), limit);
        if stack.build == Build::Always && plan.builds {
            // `up` cannot ask for newer base images.
            self.change("docker compose build", call().args(["build", "--pull"]), limit, log)?;
        }
        let before = if how.recreate.is_empty() {
            Vec::new()
        } else {
            self.containers(&plan.project, limit).map_err(untouched)?
        };
        let orphans = how.remove_orphans.then_some("--remove-orphans");
        let up = call().args(["up", "-d"]).args(orphans).args(wishes(stack, plan));
        let mut progress = Progress::default();
        if let Err(error) = self.watch_change("docker compose up", up, limit, &mut progress, log) {
            return Err(self.with_what_is_left(error, plan, &progress, limit, log));
        }
        let before: BTreeSet<&str> = before.iter().map(|container| container.id.as_str()).collect();
        self.recreate(stack, plan, &how.recreate, &before, limit, log).map_err(|error| match error.containers {
            // What ran before does not any more.
            Containers::Untouched => UpError { containers: Containers::Changed, ..error },
            _ => error,
        })
    }

    /// Makes the containers of services anew where they still are those from `before`. What shares a namespace with one
    /// of them cannot go on with the next one, so it is made anew too.
    fn recreate(
        &self,
        stack: &Stack,
        plan: &Plan,
        services: &BTreeSet<String>,
        before: &BTreeSet<&str>,
        limit: &Limit,
        log: &mut dyn Log,
    ) -> Result<(), UpError> {
        if services.is_empty() {
            return Ok(());
        }
        let containers = self.containers(&plan.project, limit).map_err(untouched)?;
        let is_named = |container: &Container| container.service().is_some_and(|service| services.contains(service));
        let mut stale: BTreeSet<&str> = containers
            .iter()
            .filter(|container| before.contains(&*container.id) && is_named(container))
            .map(|container| container.id.as_str())
            .collect();
        loop {
            let sharing = containers.iter().filter(|container| container.shares_with().any(|id| stale.contains(id)));
            let with_sharing: BTreeSet<&str> =
                stale.iter().copied().chain(sharing.map(|container| container.id.as_str())).collect();
            if with_sharing.len() == stale.len() {
                break;
            }
            stale = with_sharing;
        }
        let stale = containers.iter().filter(|container| stale.contains(&*container.id));
        let services: BTreeSet<&str> = stale.filter_map(Container::service).collect();
        if services.is_empty() {
            return Ok(());
        }
        log.line(LogLevel::Info, "made anew, because what they mount has changed:");
        // Images were pulled and built a moment ago.
        let up = self
            .call(stack, &plan.files, Some(&plan.project), limit)
            .args(["up", "-d", "--no-deps", "--force-recreate", "--no-build", "--pull", "never"])
            .args(services);
        let mut progress = Progress::default();
        self.watch_change("docker compose up --force-recreate", up, limit, &mut progress, log)
            .map_err(|error| self.with_what_is_left(error, plan, &progress, limit, log))
    }

    /// Runs a verb that changes something; its output goes into the log as it comes.
    pub(super) fn change(&self, what: &str, command: Command, limit: &Limit, log: &mut dyn Log) -> Result<(), UpError> {
        self.watch_change(what, command, limit, &mut Progress::default(), log)
    }

    fn watch_change(
        &self,
        what: &str,
        command: Command,
        limit: &Limit,
        progress: &mut Progress,
        log: &mut dyn Log,
    ) -> Result<(), UpError> {
        let (mut said, mut complained) = (Tail::default(), Tail::default());
        let ended = command.stream(limit, &mut |output, line| {
            let line = line.trim_end();
            if line.trim().is_empty() {
                return;
            }
            let tail = if output == Output::Err { &mut complained } else { &mut said };
            tail.push(line);
            if output == Output::Err {
                progress.note(line);
            }
            log.line(LogLevel::Info, line);
        });
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let tail = if complained.is_empty() { &said } else { &complained };
                // The docker client turns a signal into such a code.
                let was_killed = status.code().is_none_or(|code| code > 128);
                Err(UpError { error: explain::failed(what, tail, status), containers: progress.left(was_killed) })
            }
            Err(error) => {
                let chance = if progress.changed { Chance::Final } else { Chance::CanPass };
                Err(UpError { error: explain::not_run(what, &error, chance), containers: progress.left(true) })
            }
        }
    }

    /// After a failed `up`: the logs of those containers that did not do what they should, and in the error those that
    /// it left behind without starting them.
    fn with_what_is_left(
        &self,
        error: UpError,
        plan: &Plan,
        progress: &Progress,
        limit: &Limit,
        log: &mut dyn Log,
    ) -> UpError {
        let limit = limit.anew(DIAGNOSIS_LIMIT);
        let Ok(containers) = self.containers(&plan.project, &limit) else { return error };
        let failed: Vec<_> = containers
            .iter()
            .filter(|container| container.has_failed())
            .map(|container| (container.id.clone(), container.name().to_owned()))
            .collect();
        self.log_tails(&failed, &limit, log);
        if error.containers != Containers::Changed {
            return error;
        }
        let is_active =
            |container: &&Container| container.service().is_some_and(|name| plan.services.contains_key(name));
        let left: Vec<String> = containers
            .iter()
            .filter(|container| container.was_never_started())
            .filter(is_active)
            .map(|container| progress.describe_left(container.name()))
            .collect();
        if left.is_empty() {
            return error;
        }
        let message = format!("{}; {}: fix it and push, or `shiparr deploy`", error.error.message, left.join(", "));
        UpError { error: StepError { message, ..error.error }, ..error }
    }
}

/// What Compose said of containers while it worked on them.
#[derive(Debug, Default)]
struct Progress {
    /// Whether a container is not as it was any more, or may not be.
    changed: bool,
    /// Names of containers whose old one is gone.
    replaced: BTreeSet<String>,
    /// Names of containers that it began to replace or to stop, and did not finish.
    unfinished: BTreeSet<String>,
}

impl Progress {
    /// Reads a line of progress: `Container NAME  Recreate`.
    fn note(&mut self, line: &str) {
        let Some((name, what)) = line.trim().strip_prefix("Container ").and_then(|rest| rest.split_once(' ')) else {
            return;
        };
        match what.trim() {
            "Running" | "Waiting" | "Healthy" | "Exited" => return,
            "Recreate" | "Stopping" => {
                self.unfinished.insert(name.to_owned());
            }
            "Stopped" | "Removing" | "Removed" => {
                self.unfinished.remove(name);
            }
            "Recreated" => {
                self.unfinished.remove(name);
                self.replaced.insert(name.to_owned());
            }
            _ => {}
        }
        self.changed = true;
    }

    fn left(&self, was_killed: bool) -> Containers {
        match self.changed {
            false => Containers::Untouched,
            // One that fails takes those down that are replaced beside it.
            true if was_killed || !self.unfinished.is_empty() => Containers::Interrupted,
            true => Containers::Changed,
        }
    }

    fn describe_left(&self, name: &str) -> String {
        match self.replaced.contains(name) {
            true => format!("{name} is created and not started, and the one before it is gone"),
            false => format!("{name} is created and not started"),
        }
    }
}

fn untouched(error: StepError) -> UpError {
    UpError { error, containers: Containers::Untouched }
}

/// What the configuration and the one who asked want of `up`.
pub(super) fn wishes(stack: &Stack, plan: &Plan) -> Vec<&'static str> {
    let mut wishes = Vec::new();
    match stack.build {
        Build::Auto if plan.builds => wishes.push("--build"),
        Build::Never => wishes.push("--no-build"),
        Build::Auto | Build::Always => {}
    }
    match stack.pull {
        _ if stack.asked.pull => wishes.extend(["--pull", "always"]),
        Pull::Always => wishes.extend(["--pull", "always"]),
        Pull::Never => wishes.extend(["--pull", "never"]),
        // Compose's own default, which minds a service's `pull_policy`.
        Pull::Missing => {}
    }
    if stack.asked.recreate {
        wishes.push("--force-recreate");
    }
    wishes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(lines: &[&str]) -> Progress {
        let mut progress = Progress::default();
        lines.iter().for_each(|line| progress.note(line));
        progress
    }

    #[test]
    fn what_compose_says_tells_how_it_leaves_the_containers() {
        use Containers::{Changed, Interrupted, Untouched};
        // The second form of each line is that of Compose 5.
        for (lines, was_killed, expected) in [
            (&[" Network x_default  Created", " Container x-a-1  Running"][..], true, Untouched),
            (&[" Container x-a-1 Waiting ", " Container x-a-1 Healthy "], true, Untouched),
            (&[" Container x-a-1  Recreate"], true, Interrupted),
            (&[" Container x-a-1  Creating"], true, Interrupted),
            (&[" Container x-a-1  Creating"], false, Changed),
            (&[" Container x-a-1 Recreate ", " Container x-a-1 Recreated "], false, Changed),
            (
                &[" Container x-a-1  Recreate", " Container x-b-1  Recreate", " Container x-b-1  Recreated"],
                false,
                Interrupted,
            ),
            (&[" Container x-a-1 Stopping ", " Container x-a-1 Error while Stopping "], false, Interrupted),
            (&[" Container x-a-1  Stopping", " Container x-a-1  Stopped"], false, Changed),
        ] {
            assert_eq!(progress(lines).left(was_killed), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_error_says_what_came_of_the_healing() {
        let error = UpError { error: StepError::for_good("it took too long"), containers: Containers::Interrupted };
        let healed = error.clone().after_healing(Ok(())).error;
        assert_eq!(healed.message, "it took too long; what it had stopped was started again");
        let error = error.after_healing(Err(StepError::for_now("no room"))).error;
        assert_eq!(error.message, "it took too long; what it had stopped could not all be started again: no room");
        assert_eq!(error.chance, Chance::Final);
    }
}
