//! Starting again what an `up` that was ended in the middle left stopped.
//!
//! Compose makes the new container under a temporary name (`0123456789ab_web-1`), stops the old one, removes it, renames
//! the new one, and starts all new ones at the end. Ended in between, its next `up` starts what is there: but what Docker
//! goes on stopping it takes for running, what Docker goes on removing for stopped, a container whose network was another
//! one's it cannot start, and the temporary name it keeps.
//!
//! Docker finishes what it was asked when the one who asked is gone, at its own pace: so there is a look afterwards, and
//! what stopped in the meantime is started again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use super::Compose;
use super::watch::Container;
use crate::command::Limit;
use crate::deploy::{Log, Plan, Stack, StepError};
use crate::model::LogLevel;

/// For all of it. A container that is one too many is stopped meanwhile, which takes its grace period, and one that
/// others depend on must become healthy.
const HEAL_LIMIT: Duration = Duration::from_secs(120);
/// How often all is started: more than once only where Docker stopped or removed something in the meantime.
const MOST_ROUNDS: u32 = 3;
/// How far back Docker is asked what it told containers: longer than nearly every grace period.
const TOLD_SECONDS: u32 = 120;
/// Half of the events that Docker itself remembers, for those that come while it is asked are not in the answer. From
/// as many on, what was before the oldest one may be forgotten; a host with many health checks makes them in seconds.
const MANY_EVENTS: usize = 128;
/// How much longer than its grace period a stop may take on a host that is busy. Whoever is stopped before is not waited
/// for any longer.
const STOP_SLACK: Duration = Duration::from_secs(10);
/// For the end of a removal.
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at containers that are being stopped or removed.
const PAUSE: Duration = Duration::from_millis(200);
/// Before the look afterwards: time for Docker to begin with what it was asked last.
const SETTLE_TIME: Duration = Duration::from_secs(1);

impl Compose {
    /// See [`Driver::heal`](crate::deploy::Driver::heal).
    pub(super) fn start_what_stopped(&self, stack: &Stack, plan: &Plan, log: &mut dyn Log) -> Result<(), StepError> {
        let limit = Limit::after(HEAL_LIMIT);
        let mut there = BTreeSet::new();
        let Err(error) = self.start_until_it_stays(stack, plan, &mut there, &limit, log) else { return Ok(()) };
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

    /// Starts all that is there, again where Docker was not yet done with what it was asked before. `there` gets the
    /// services that have or had a container.
    fn start_until_it_stays(
        &self,
        stack: &Stack,
        plan: &Plan,
        there: &mut BTreeSet<String>,
        limit: &Limit,
        log: &mut dyn Log,
    ) -> Result<(), StepError> {
        let began = Timestamp::now();
        there.extend(services(&self.containers(&plan.project, limit)?, plan, |_| true));
        if there.is_empty() {
            return Ok(());
        }
        self.await_stops(plan, began, limit)?;
        let mut round = 1;
        loop {
            log.line(LogLevel::Info, "starting again what was stopped");
            let started = self.start_all(stack, plan, there, limit, log);
            self.give_names_back(plan, limit, log);
            limit.sleep(SETTLE_TIME);
            let was_stopping = self.await_stops(plan, began, limit)?;
            let containers = self.containers(&plan.project, limit)?;
            let is_done = match started {
                Ok(()) => is_in_order(&containers, plan, began),
                Err(_) => !was_stopping,
            };
            // A service loses its last container where Docker was removing it, which a list of containers does not show.
            let has_all = services(&containers, plan, |_| true).is_superset(there);
            if is_done && has_all || round == MOST_ROUNDS {
                return started;
            }
            log.line(LogLevel::Info, "Docker was not yet done with what it was asked before");
            round += 1;
        }
    }

    fn start_all(
        &self,
        stack: &Stack,
        plan: &Plan,
        there: &BTreeSet<String>,
        limit: &Limit,
        log: &mut dyn Log,
    ) -> Result<(), StepError> {
        self.start(stack, plan, there, true, limit, log).or_else(|error| {
            // What cannot be started as it is, because what it shares a network with is gone, is made anew: it does not
            // run anyway.
            let stopped = services(&self.containers(&plan.project, limit)?, plan, Container::is_stopped);
            if stopped.is_empty() || limit.is_over() {
                Err(error)
            } else {
                self.start(stack, plan, &stopped, false, limit, log)
            }
        })
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

    /// Waits for containers that Docker is stopping or removing: it goes on when the one who told it is gone. Answers
    /// whether there were any.
    fn await_stops(&self, plan: &Plan, began: Timestamp, limit: &Limit) -> Result<bool, StepError> {
        // What is told to a container after this question is seen by the look afterwards.
        let told = self.told(limit)?;
        let mut containers = self.containers(&plan.project, limit)?;
        containers.retain(|container| is_active(container, plan));
        let looked = Timestamp::now();
        let time_left = |container: &Container| match container.is_being_removed() {
            true => Some(REMOVAL_LIMIT),
            false => told.may_stop_within(container, began, looked),
        };
        let Some(longest) = containers.iter().filter_map(time_left).max() else { return Ok(false) };
        let patience = limit.at_most(longest);
        containers.retain(|container| time_left(container).is_some());
        while !containers.is_empty() && patience.sleep(PAUSE) {
            let ids: Vec<&str> = containers.iter().map(|container| container.id.as_str()).collect();
            let seen = self.inspect(&ids, limit)?;
            containers = seen.into_iter().filter(|container| time_left(container).is_some()).collect();
        }
        Ok(true)
    }

    /// Asks Docker what it told containers lately.
    fn told(&self, limit: &Limit) -> Result<Told, StepError> {
        let until = Timestamp::now();
        let since = until.checked_sub(Duration::from_secs(TOLD_SECONDS.into())).unwrap_or(until);
        // Not in the client's words for "now": they mean the last whole second, and the latest events would be missing.
        let [since_text, until_text] =
            [since, until].map(|time| format!("{}.{:09}", time.as_second(), time.subsec_nanosecond()));
        // An action's name may have line breaks: that of a health check has the command in it.
        let format = "{{.TimeNano}} {{.Actor.ID}} {{json .Action}}";
        let args = ["events", "--since", &since_text, "--until", &until_text, "--format", format];
        let events = self.client.ask("docker events", args, limit)?;
        Ok(Told::read(&String::from_utf8_lossy(&events.stdout), since))
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

/// What Docker remembers of what it told containers, be it to stop (`docker stop`) or something else (`docker kill -s HUP`).
struct Told {
    /// When a container was told something for the last time, by its id.
    last: HashMap<String, Timestamp>,
    /// What was told before is forgotten.
    remembered_since: Timestamp,
}

impl Told {
    /// Reads lines of a time in nanoseconds, an id and an action; `since` is the time from which on they were asked for.
    fn read(events: &str, since: Timestamp) -> Told {
        let events: Vec<(Timestamp, &str, &str)> = events
            .lines()
            .filter_map(|line| {
                let (time, rest) = line.split_once(' ')?;
                let (id, action) = rest.split_once(' ')?;
                Some((Timestamp::from_nanosecond(time.parse().ok()?).ok()?, id, action))
            })
            .collect();
        let oldest = events.iter().map(|(time, ..)| *time).min().filter(|_| events.len() >= MANY_EVENTS);
        let mut last = HashMap::new();
        for (time, id, _) in events.into_iter().filter(|(.., action)| *action == "\"kill\"") {
            let latest = last.entry(id.to_owned()).or_insert(time);
            *latest = time.max(*latest);
        }
        Told { last, remembered_since: oldest.unwrap_or(since) }
    }

    /// How long from `now` on it takes at most until a container that may be on its way to its end is there; `None` where
    /// none was told to stop since it was started. What is healed was told all it was told before it `began`.
    fn may_stop_within(&self, container: &Container, began: Timestamp, now: Timestamp) -> Option<Duration> {
        if container.is_stopped() {
            return None;
        }
        let started = container.started_at();
        let is_of_this_run = |time: &Timestamp| started.is_none_or(|started| *time >= started);
        let forgotten = || Some(self.remembered_since.min(began)).filter(is_of_this_run);
        let told = self.last.get(&container.id).copied().filter(is_of_this_run).or_else(forgotten)?;
        let most = container.stop_grace().saturating_add(STOP_SLACK);
        // A clock that was set does not make it longer than it can be.
        let passed = Duration::try_from(now.duration_since(told)).unwrap_or_default();
        most.checked_sub(passed).filter(|left| !left.is_zero())
    }
}

/// Whether all active containers were started since it `began` or ran all the time, and none is one too many.
fn is_in_order(containers: &[Container], plan: &Plan, began: Timestamp) -> bool {
    // One that was started and has ended since did so by itself.
    let is_left_stopped = |one: &Container| one.is_stopped() && one.started_at().is_none_or(|started| started < began);
    let is_surplus = |one: &Container| {
        permanent_name(one, plan).is_some_and(|name| containers.iter().any(|other| other.name() == name))
    };
    let mut active = containers.iter().filter(|container| is_active(container, plan));
    !active.any(|container| is_left_stopped(container) || is_surplus(container))
}

fn is_active(container: &Container, plan: &Plan) -> bool {
    container.service().is_some_and(|service| plan.services.contains_key(service))
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
        container_in("running", 0, name)
    }

    /// In this state, started at this second.
    fn container_in(state: &str, started_second: i64, name: &str) -> Container {
        serde_json::from_value(json!({
            "Id": "1", "Name": format!("/{name}"), "Created": "", "RestartCount": 0,
            "State": {"Status": state, "ExitCode": 0, "StartedAt": at(started_second).to_string()},
            "Config": {"Labels": {"com.docker.compose.service": "web"}, "StopTimeout": 20}, "HostConfig": {},
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
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

    #[test]
    fn who_was_told_to_stop_is_waited_for_and_so_is_who_may_have_been_when_docker_has_forgotten() {
        const BEGAN: i64 = 1000;
        let line = |second: i64, action: &str| format!("{second}000000000 1 \"{action}\"\n");
        let few =
            |events: &[(i64, &str)]| -> String { events.iter().map(|(time, action)| line(*time, action)).collect() };
        let many =
            |from: i64| -> String { (0..256).map(|number| line(from + number / 256, "exec_start: x")).collect() };
        let (grace, slack) = (20, STOP_SLACK.as_secs());
        for (events, state, started, now, expected) in [
            (few(&[(995, "kill")]), "running", 10, BEGAN, Some(grace + slack - 5)),
            (few(&[(990, "kill"), (995, "kill"), (999, "die")]), "running", 10, BEGAN, Some(grace + slack - 5)),
            (few(&[(995, "kill")]), "exited", 10, BEGAN, None),
            (few(&[(995, "kill")]), "running", 996, BEGAN, None),
            (few(&[(995, "top"), (996, "")]), "running", 10, BEGAN, None),
            // It was told something else, long ago.
            (few(&[(900, "kill")]), "running", 10, BEGAN, None),
            (String::new(), "running", 10, BEGAN, None),
            (many(998), "running", 10, BEGAN, Some(grace + slack - 2)),
            (many(998), "running", 999, BEGAN, None),
            // What is forgotten later is of no matter: what is healed was told before.
            (many(1012), "running", 10, BEGAN + 13, Some(grace + slack - 13)),
            (many(1012), "running", BEGAN + 1, BEGAN + 13, None),
        ] {
            let told = Told::read(&events, at(BEGAN - i64::from(TOLD_SECONDS)));
            let left = told.may_stop_within(&container_in(state, started, "x-web-1"), at(BEGAN), at(now));
            let events = events.lines().next();
            assert_eq!(left, expected.map(Duration::from_secs), "{events:?}… {state}, started at {started}, now {now}");
        }
    }

    #[test]
    fn in_order_is_what_runs_or_ended_by_itself_and_is_not_one_too_many() {
        let plan = Plan { project: "x".to_owned(), services: [("web".to_owned(), 1)].into(), ..Plan::default() };
        let (usual, temporary) = ("x-web-1", "0123456789ab_x-web-1");
        for (containers, expected) in [
            (&[("running", 10, usual)][..], true),
            (&[("exited", 10, usual)], false),
            (&[("exited", 1001, usual)], true),
            (&[("created", -60_000_000_000, usual)], false),
            (&[("running", 10, usual), ("running", 1001, temporary)], false),
            // Somebody else has the name.
            (&[("running", 1001, temporary)], true),
        ] {
            let made: Vec<_> = containers.iter().map(|(state, time, name)| container_in(state, *time, name)).collect();
            assert_eq!(is_in_order(&made, &plan, at(1000)), expected, "{containers:?}");
        }
    }
}
