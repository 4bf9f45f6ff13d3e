//! Starting again what an `up` that was ended in the middle left stopped.
//!
//! Compose makes the new container under a temporary name (`0123456789ab_web-1`), stops the old one, removes it, renames
//! the new one, and starts all new ones at the end. Ended in between, its next `up` starts what is there: but what Docker
//! goes on stopping it takes for running, a container whose network was another one's it cannot start, and the temporary
//! name it keeps.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Compose;
use super::watch::Container;
use crate::command::Limit;
use crate::deploy::{Log, Plan, Stack, StepError};
use crate::model::LogLevel;

/// For all of it. A container that is one too many is stopped meanwhile, which takes its grace period, and one that
/// others depend on must become healthy.
const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// How far back Docker is asked what it was told to stop: longer than nearly every grace period. Docker itself remembers
/// 256 events.
const STOPS_SECONDS: u32 = 120;
/// Between two looks at a container that is being stopped.
const PAUSE: Duration = Duration::from_millis(200);

impl Compose {
    /// See [`Driver::heal`](crate::deploy::Driver::heal).
    pub(super) fn start_what_stopped(&self, stack: &Stack, plan: &Plan, log: &mut dyn Log) -> Result<(), StepError> {
        let limit = Limit::after(HEAL_LIMIT);
        self.await_stops(plan, &limit)?;
        let containers = self.containers(&plan.project, &limit)?;
        let there = services(&containers, plan, |_| true);
        if there.is_empty() {
            return Ok(());
        }
        log.line(LogLevel::Info, "starting again what was stopped");
        let started = self.start(stack, plan, &there, true, &limit, log).or_else(|error| {
            // What cannot be started as it is, because what it shares a network with is gone, is made anew: it does not
            // run anyway.
            let stopped = services(&self.containers(&plan.project, &limit)?, plan, Container::is_stopped);
            if stopped.is_empty() || limit.is_over() {
                Err(error)
            } else {
                self.start(stack, plan, &stopped, false, &limit, log)
            }
        });
        self.give_names_back(plan, &limit, log);
        let Err(error) = started else { return Ok(()) };
        if limit.is_over() {
            let seconds = HEAL_LIMIT.as_secs();
            return Err(StepError::for_good(format!(
                "it took longer than {seconds} s: look at the stack with `shiparr compose`"
            )));
        }
        let stopped = match self.containers(&plan.project, &limit) {
            Ok(containers) => services(&containers, plan, Container::is_stopped),
            Err(_) => there,
        };
        let stopped = stopped.into_iter().collect::<Vec<_>>().join(", ");
        Err(StepError { message: format!("{} (not running: {stopped})", error.message), ..error })
    }

    fn start(
        &self,
        stack: &Stack,
        plan: &Plan,
        services: &BTreeSet<String>,
        as_they_are: bool,
        limit: &Limit,
        log: &mut dyn Log,
    ) -> Result<(), StepError> {
        let up = self
            .call(stack, &plan.files, Some(&plan.project), limit)
            .args(["up", "-d", "--no-build", "--pull", "never", "--no-deps"])
            .args(as_they_are.then_some("--no-recreate"))
            .args(services);
        Ok(self.change("docker compose up", up, limit, log)?)
    }

    /// Waits for containers that Docker was told to stop and that still run: it goes on when the one who told it is gone.
    fn await_stops(&self, plan: &Plan, limit: &Limit) -> Result<(), StepError> {
        let (since, of) = (format!("{STOPS_SECONDS}s"), format!("label=com.docker.compose.project={}", plan.project));
        let kill = ["events", "--since", &since, "--until", "0s", "--filter", "event=kill"];
        let args = [&kill[..], &["--filter", "type=container", "--filter", &of, "--format", "{{.ID}}"]].concat();
        let told = self.client.ask("docker events", args, limit)?;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let told: BTreeSet<&str> = told.split_whitespace().collect();
        let is_active =
            |container: &Container| container.service().is_some_and(|name| plan.services.contains_key(name));
        let is_told = |container: &Container| told.contains(&*container.id) && !container.is_stopped();
        let containers = self.containers(&plan.project, limit)?.into_iter();
        let mut stopping: Vec<Container> = containers.filter(|one| is_active(one) && is_told(one)).collect();
        // One that was only told something (`docker kill -s HUP`) runs on.
        let grace = stopping.iter().map(Container::stop_grace).max().unwrap_or_default();
        let limit_of_stops = limit.at_most(grace + PAUSE);
        while !stopping.is_empty() && limit_of_stops.sleep(PAUSE) {
            let ids: Vec<&str> = stopping.iter().map(|container| container.id.as_str()).collect();
            stopping = self.inspect(&ids, limit)?.into_iter().filter(is_told).collect();
        }
        Ok(())
    }

    /// Renames containers that still have their temporary name, where the one that they are for is free.
    fn give_names_back(&self, plan: &Plan, limit: &Limit, log: &mut dyn Log) {
        let renamed = self.containers(&plan.project, limit).and_then(|containers| {
            for container in &containers {
                let Some(name) = permanent_name(container, plan) else { continue };
                if containers.iter().all(|other| other.name() != name) {
                    self.client.ask("docker rename", ["rename", &container.id, name], limit)?;
                }
            }
            Ok(())
        });
        if let Err(error) = renamed {
            log.line(LogLevel::Warning, &format!("a container keeps its temporary name: {error}"));
        }
    }
}

/// The plan's services that have a container of which `holds` is true.
fn services(containers: &[Container], plan: &Plan, holds: impl Fn(&Container) -> bool) -> BTreeSet<String> {
    let held = containers.iter().filter(|container| holds(container)).filter_map(Container::service);
    held.filter(|service| plan.services.contains_key(*service)).map(str::to_owned).collect()
}

/// The name that a container is to have, where it has the temporary one of a recreation: the id of the one before it,
/// `_`, and the name.
fn permanent_name<'a>(container: &'a Container, plan: &Plan) -> Option<&'a str> {
    const ID_LENGTH: usize = 12;
    let (id, name) = container.name().split_once('_')?;
    let is_id = id.len() == ID_LENGTH && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    // A project or a container may be called like that on purpose.
    let own = container.service().and_then(|service| plan.container_names.get(service));
    let is_of_stack = match own {
        Some(own) => name == own,
        None => name.strip_prefix(&plan.project).is_some_and(|rest| rest.starts_with(['-', '_'])),
    };
    (is_id && is_of_stack).then_some(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(name: &str) -> Container {
        serde_json::from_value(json!({
            "Id": "1", "Name": format!("/{name}"), "Created": "", "RestartCount": 0,
            "State": {"Status": "running", "ExitCode": 0, "StartedAt": ""},
            "Config": {"Labels": {"com.docker.compose.service": "web"}}, "HostConfig": {},
        }))
        .unwrap()
    }

    #[test]
    fn a_temporary_name_is_told_from_one_that_was_meant() {
        let own = |name: &str| Plan { container_names: [("web".into(), name.into())].into(), ..plan("x") };
        fn plan(project: &str) -> Plan {
            Plan { project: project.to_owned(), ..Plan::default() }
        }
        for (name, plan, expected) in [
            ("0123456789ab_x-web-1", plan("x"), Some("x-web-1")),
            ("0123456789ab_x_web_1", plan("x"), Some("x_web_1")),
            ("0123456789ab_mine", own("mine"), Some("mine")),
            ("x-web-1", plan("x"), None),
            ("0123456789ab_x-web-1", plan("0123456789ab_x"), None),
            ("0123456789ab_x", own("0123456789ab_x"), None),
            ("0123456789AB_x-web-1", plan("x"), None),
            ("0123456789a_x-web-1", plan("x"), None),
        ] {
            assert_eq!(permanent_name(&container(name), &plan), expected, "{name}");
        }
    }
}
