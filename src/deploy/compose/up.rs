//! Bringing a stack up, and starting again what an `up` that was ended left stopped.

use super::explain::{self, Tail};
use super::{Compose, DIAGNOSIS_LIMIT};
use crate::command::{Command, Limit, Output};
use crate::config::project::{Build, Pull};
use crate::deploy::{Containers, Log, Plan, Stack, Up, UpError};
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
        let orphans = how.remove_orphans.then_some("--remove-orphans");
        let up = call().args(["up", "-d"]).args(orphans).args(wishes(stack, plan));
        let result = self.change("docker compose up", up, limit, log);
        if result.is_err() {
            self.log_failed_containers(plan, limit, log);
        }
        result
    }

    /// Runs a verb that changes something; its output goes into the log as it comes.
    pub(super) fn change(&self, what: &str, command: Command, limit: &Limit, log: &mut dyn Log) -> Result<(), UpError> {
        let (mut said, mut complained, mut changed) = (Tail::default(), Tail::default(), false);
        let ended = command.stream(limit, &mut |output, line| {
            let line = line.trim_end();
            if line.trim().is_empty() {
                return;
            }
            let tail = if output == Output::Err { &mut complained } else { &mut said };
            tail.push(line);
            changed |= output == Output::Err && changes_a_container(line);
            log.line(LogLevel::Info, line);
        });
        let left = |containers| if changed { containers } else { Containers::Untouched };
        let chance_of_timeout = if changed { Chance::Final } else { Chance::CanPass };
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let tail = if complained.is_empty() { &said } else { &complained };
                // A shell and the docker client turn a signal into such a code.
                let was_killed = status.code().is_none_or(|code| code > 128);
                let containers = left(if was_killed { Containers::Interrupted } else { Containers::Changed });
                Err(UpError { error: explain::failed(what, tail, status), containers })
            }
            Err(error) => {
                let containers = left(Containers::Interrupted);
                Err(UpError { error: explain::not_run(what, &error, chance_of_timeout), containers })
            }
        }
    }

    /// After a failed `up`: the logs of those containers that did not do what they should.
    fn log_failed_containers(&self, plan: &Plan, limit: &Limit, log: &mut dyn Log) {
        if limit.is_cancelled() {
            return;
        }
        let limit = Limit::after(DIAGNOSIS_LIMIT);
        let failed: Vec<_> = match self.containers(&plan.project, &limit) {
            Ok(containers) => containers
                .iter()
                .filter(|container| container.has_failed())
                .map(|container| (container.id.clone(), container.name().to_owned()))
                .collect(),
            Err(_) => return,
        };
        self.log_tails(&failed, &limit, log);
    }
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

/// Whether a line of Compose's progress says that a container is not as it was any more.
fn changes_a_container(line: &str) -> bool {
    let Some((_, what)) = line.trim().strip_prefix("Container ").and_then(|rest| rest.split_once(' ')) else {
        return false;
    };
    !matches!(what.trim(), "Running" | "Waiting" | "Healthy")
}
