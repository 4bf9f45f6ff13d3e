//! Whether a stack is well: what Docker says of its containers, and the verdict on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;

/// What to do about a service that ends and is meant to.
const LABEL_IT: &str = "if it is meant to end, label it `shiparr.oneshot: \"true\"`";

/// Docker's own, where a container says nothing.
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

/// A container as `docker inspect` shows it, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// Its full id.
    pub id: String,
    name: String,
    created: String,
    restart_count: u64,
    state: State,
    config: Config,
    host_config: HostConfig,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    exit_code: i64,
    /// Why Docker could not start it.
    #[serde(default)]
    error: String,
    started_at: String,
    health: Option<Health>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    status: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
    stop_timeout: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    restart_policy: Option<RestartPolicy>,
    network_mode: Option<String>,
    ipc_mode: Option<String>,
    pid_mode: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    name: String,
}

impl Container {
    /// Its name, without the slash in front.
    pub fn name(&self) -> &str {
        self.name.trim_start_matches('/')
    }

    /// Whether it ended with an error, is unhealthy or restarts; for finding those whose logs tell why `up` failed.
    pub fn has_failed(&self) -> bool {
        let unhealthy = self.state.health.as_ref().is_some_and(|health| health.status == "unhealthy");
        let ended = matches!(self.state.status.as_str(), "exited" | "dead") && self.state.exit_code != 0;
        unhealthy || ended || self.state.status == "restarting"
    }

    /// Whether it does not run, and does not restart either.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state.status.as_str(), "created" | "exited" | "dead")
    }

    /// Whether it was made and nothing more.
    pub fn was_never_started(&self) -> bool {
        self.state.status == "created"
    }

    /// Whether Docker is removing it.
    pub fn is_being_removed(&self) -> bool {
        self.state.status == "removing"
    }

    /// When it was started last; `None` when Docker's time cannot be read. One that never was has a time long ago.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.state.started_at.parse().ok()
    }

    /// Ids of the containers in whose network or other namespaces it runs.
    pub fn shares_with(&self) -> impl Iterator<Item = &str> {
        let HostConfig { network_mode, ipc_mode, pid_mode, .. } = &self.host_config;
        [network_mode, ipc_mode, pid_mode].into_iter().filter_map(|mode| mode.as_deref()?.strip_prefix("container:"))
    }

    /// How long Docker waits between asking it to stop and killing it.
    pub fn stop_grace(&self) -> Duration {
        self.config
            .stop_timeout
            .map_or(DEFAULT_STOP_GRACE, |seconds| Duration::from_secs(seconds.try_into().unwrap_or(0)))
    }

    /// Its service.
    pub fn service(&self) -> Option<&str> {
        self.config.labels.as_ref()?.get("com.docker.compose.service").map(String::as_str)
    }

    /// Whether Docker could not start it because of what it mounts, and would have started it by itself.
    pub fn could_not_mount(&self) -> bool {
        let is_down = matches!(self.state.status.as_str(), "created" | "exited");
        is_down && self.state.error.contains("mount") && self.restarts_by_itself()
    }

    fn restarts_by_itself(&self) -> bool {
        self.host_config.restart_policy.as_ref().is_some_and(|policy| !matches!(policy.name.as_str(), "" | "no"))
    }

    /// How long it has been up; zero when Docker's time cannot be read. Docker's clock is this host's.
    fn up_for(&self, now: Timestamp) -> Duration {
        let up_for = |started| Duration::try_from(now.duration_since(started)).unwrap_or_default();
        self.started_at().map(up_for).unwrap_or_default()
    }
}

/// What a stack must have to be well.
pub struct Expected<'a> {
    /// Active services and how many containers each has.
    pub services: &'a BTreeMap<String, u32>,
    /// Those that must end with 0.
    pub one_shots: &'a BTreeSet<String>,
    /// How long a container without a health check must stay up.
    pub settle_time: Duration,
    /// When `up` began: every restart of a container that was made since counts.
    pub since: Timestamp,
}

/// How a stack stands.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// All of it is well; what a person should look at all the same.
    Well(Vec<String>),
    /// What is not yet well, and when the next container without a health check has been up for long enough.
    NotYet {
        /// `web is starting`, one a container or service.
        waits_for: Vec<String>,
        /// Containers that are not yet well, by id and name.
        containers: Vec<(String, String)>,
        /// Time until something is due that no event tells.
        settles_in: Option<Duration>,
        /// Whether a service has fewer containers than it should.
        is_short: bool,
    },
    /// Containers that failed, by id and name, and what happened to each.
    Bad(Vec<Failure>),
}

/// A container that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Full id.
    pub id: String,
    /// Name.
    pub name: String,
    /// `exited with 3`.
    pub what: String,
}

/// When containers are looked at: on Docker's clock, which can be set, and on one that cannot.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    wall: Timestamp,
    steady: Instant,
}

impl Now {
    /// This moment.
    pub fn read() -> Now {
        Now { wall: Timestamp::now(), steady: Instant::now() }
    }

    /// Whether it is not before `moment`.
    pub fn is_after(&self, moment: Instant) -> bool {
        self.steady >= moment
    }
}

/// Remembers how often each container had restarted before, and since when it is seen up.
#[derive(Default)]
pub struct Watch {
    restarts_before: HashMap<String, u64>,
    /// By id and start.
    first_seen: HashMap<(String, String), Instant>,
}

/// How one container stands.
enum Standing {
    Well,
    WellBut(String),
    NotYet(&'static str, Option<Duration>),
    Bad(String),
}

impl Watch {
    /// The verdict on the containers as they are at `now`.
    pub fn judge(&mut self, containers: &[Container], expected: &Expected<'_>, now: Now) -> Verdict {
        let (mut warnings, mut bad) = (Vec::new(), Vec::new());
        let (mut waits_for, mut waiting, mut settles_in) = (Vec::new(), Vec::new(), None::<Duration>);
        let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
        for container in containers {
            let is_active = |service: &&str| expected.services.get(*service).is_some_and(|count| *count > 0);
            let Some(service) = container.service().filter(is_active) else { continue };
            *seen.entry(service).or_default() += 1;
            let (id, name) = (container.id.clone(), container.name().to_owned());
            match self.standing(container, service, expected, now) {
                Standing::Well => {}
                Standing::WellBut(what) => warnings.push(format!("{name} {what}")),
                Standing::Bad(what) => bad.push(Failure { id, name, what }),
                Standing::NotYet(what, settles) => {
                    waits_for.push(format!("{name} {what}"));
                    waiting.push((id, name));
                    settles_in = settles_in.into_iter().chain(settles).min();
                }
            }
        }
        let mut is_short = false;
        for (service, count) in expected.services {
            let there = seen.get(service.as_str()).copied().unwrap_or(0);
            if there < *count {
                is_short = true;
                waits_for.push(format!("service {service} has {there} of {count} containers"));
            }
        }
        if !bad.is_empty() {
            Verdict::Bad(bad)
        } else if !waits_for.is_empty() {
            Verdict::NotYet { waits_for, containers: waiting, settles_in, is_short }
        } else {
            Verdict::Well(warnings)
        }
    }

    fn standing(&mut self, container: &Container, service: &str, expected: &Expected<'_>, now: Now) -> Standing {
        let one_shot = expected.one_shots.contains(service);
        let state = &container.state;
        // A one-shot may be restarted until it ends with 0: only its end counts.
        if !one_shot && (state.status == "restarting" || self.has_restarted(container, expected.since)) {
            return Standing::Bad(format!("restarts (it last exited with {})", state.exit_code));
        }
        match state.status.as_str() {
            "exited" | "dead" if one_shot && state.exit_code == 0 => Standing::Well,
            "exited" if state.exit_code == 0 && !one_shot && !container.restarts_by_itself() => Standing::WellBut(
                format!("has exited with 0 and does not run any more (`restart: \"no\"`); {LABEL_IT}"),
            ),
            "exited" if state.exit_code == 0 && !one_shot => Standing::Bad(format!("exited with 0 ({LABEL_IT})")),
            "exited" | "dead" => Standing::Bad(format!("exited with {}", state.exit_code)),
            "running" | "paused" if one_shot => Standing::NotYet("has not ended", None),
            // A person did that, and only a person ends it.
            "paused" => Standing::WellBut("is paused: `docker unpause` lets it go on".to_owned()),
            "running" => match state.health.as_ref().map(|health| health.status.as_str()) {
                Some("healthy") => Standing::Well,
                Some("unhealthy") => Standing::Bad("is unhealthy".to_owned()),
                Some("starting") => Standing::NotYet("is starting (health check)", None),
                _ => self.settled(container, expected.settle_time, now),
            },
            "created" => Standing::NotYet("is created and not started", None),
            _ if one_shot => Standing::NotYet("has not ended", None),
            _ => Standing::NotYet("does not run", None),
        }
    }

    /// A restart since `since`: of a container that is older only those count that come while it is watched.
    fn has_restarted(&mut self, container: &Container, since: Timestamp) -> bool {
        let made_since = container.created.parse::<Timestamp>().is_ok_and(|created| created >= since);
        let before = if made_since { 0 } else { container.restart_count };
        container.restart_count > *self.restarts_before.entry(container.id.clone()).or_insert(before)
    }
    /// Up for long enough: by Docker's clock, or, where that was set back, since it was first seen up.
    fn settled(&mut self, container: &Container, settle_time: Duration, now: Now) -> Standing {
        let start = (container.id.clone(), container.state.started_at.clone());
        let seen_for = now.steady.saturating_duration_since(*self.first_seen.entry(start).or_insert(now.steady));
        match settle_time.saturating_sub(container.up_for(now.wall).max(seen_for)) {
            Duration::ZERO => Standing::Well,
            left => Standing::NotYet("has just started", Some(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-01-01T00:01:00Z";
    const SINCE: &str = "2026-01-01T00:00:50Z";

    fn container(service: &str, changes: Value) -> Container {
        let mut value = json!({
            "Id": format!("id-{service}"), "Name": format!("/x-{service}-1"), "Created": "2026-01-01T00:00:51.5Z", "RestartCount": 0,
            "State": {"Status": "running", "ExitCode": 0, "StartedAt": "2026-01-01T00:00:52.123456789Z"},
            "Config": {"Labels": {"com.docker.compose.service": service}},
            "HostConfig": {"RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}},
        });
        merge(&mut value, changes);
        serde_json::from_value(value).unwrap()
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                from.into_iter().for_each(|(name, value)| merge(into.entry(name).or_insert(Value::Null), value));
            }
            (into, from) => *into = from,
        }
    }

    fn judge_with(watch: &mut Watch, containers: &[Container], services: &[&str], one_shots: &[&str]) -> Verdict {
        judge_at(Instant::now(), watch, containers, services, one_shots)
    }

    fn judge_at(
        steady: Instant,
        watch: &mut Watch,
        containers: &[Container],
        services: &[&str],
        one_shots: &[&str],
    ) -> Verdict {
        let services = services.iter().map(|name| ((*name).to_owned(), 1)).collect();
        let one_shots = one_shots.iter().map(|name| (*name).to_owned()).collect();
        let expected = Expected {
            services: &services,
            one_shots: &one_shots,
            settle_time: Duration::from_secs(3),
            since: SINCE.parse().unwrap(),
        };
        watch.judge(containers, &expected, Now { wall: NOW.parse().unwrap(), steady })
    }

    fn judge(changes: Value, one_shots: &[&str]) -> Verdict {
        judge_with(&mut Watch::default(), &[container("a", changes)], &["a"], one_shots)
    }

    fn bad(verdict: &Verdict) -> &str {
        match verdict {
            Verdict::Bad(failures) => &failures[0].what,
            other => panic!("{other:?}"),
        }
    }

    fn waits(verdict: &Verdict) -> &str {
        match verdict {
            Verdict::NotYet { waits_for, .. } => &waits_for[0],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_health_check_it_must_stay_up() {
        assert_eq!(judge(json!({}), &[]), Verdict::Well(vec![]));
        let young = judge(json!({"State": {"StartedAt": "2026-01-01T00:00:59Z"}}), &[]);
        assert_eq!(waits(&young), "x-a-1 has just started");
        assert!(matches!(young, Verdict::NotYet { settles_in: Some(left), .. } if left == Duration::from_secs(2)));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_put_the_verdict_off() {
        let started = |time: &str| [container("a", json!({"State": {"StartedAt": time}}))];
        let (mut watch, begin) = (Watch::default(), Instant::now());
        let mut after = |seconds: u64, time: &str| {
            judge_at(begin + Duration::from_secs(seconds), &mut watch, &started(time), &["a"], &[])
        };
        let (ahead, later) = ("2026-01-01T00:59:00Z", "2026-01-01T00:59:09Z");
        assert_eq!(waits(&after(0, ahead)), "x-a-1 has just started");
        assert!(
            matches!(after(2, ahead), Verdict::NotYet { settles_in: Some(left), .. } if left == Duration::from_secs(1))
        );
        assert_eq!(waits(&after(3, later)), "x-a-1 has just started", "it was started anew");
        assert_eq!(after(3, ahead), Verdict::Well(vec![]));
    }

    #[test]
    fn with_a_health_check_it_must_be_healthy() {
        for (status, expected) in [("healthy", None), ("starting", Some("x-a-1 is starting (health check)"))] {
            let verdict = judge(json!({"State": {"Health": {"Status": status}}}), &[]);
            match expected {
                None => assert_eq!(verdict, Verdict::Well(vec![])),
                Some(text) => assert_eq!(waits(&verdict), text),
            }
        }
        assert_eq!(bad(&judge(json!({"State": {"Health": {"Status": "unhealthy"}}}), &[])), "is unhealthy");
    }

    #[test]
    fn an_exit_fails_but_the_one_that_was_meant() {
        let exited = |code: i64| json!({"State": {"Status": "exited", "ExitCode": code}});
        assert_eq!(bad(&judge(exited(3), &[])), "exited with 3");
        assert_eq!(bad(&judge(exited(3), &["a"])), "exited with 3");
        assert_eq!(judge(exited(0), &["a"]), Verdict::Well(vec![]));
        assert!(matches!(judge(exited(0), &[]), Verdict::Well(warnings) if warnings.len() == 1));
        let mut always = exited(0);
        merge(&mut always, json!({"HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}}}));
        assert!(bad(&judge(always, &[])).starts_with("exited with 0 (if it is meant to end, label it"));
    }

    #[test]
    fn a_one_shot_is_waited_for() {
        assert_eq!(waits(&judge(json!({}), &["a"])), "x-a-1 has not ended");
        assert_eq!(waits(&judge(json!({"State": {"Status": "created"}}), &["a"])), "x-a-1 is created and not started");
    }

    #[test]
    fn a_restart_fails_unless_it_was_before() {
        assert!(bad(&judge(json!({"RestartCount": 1}), &[])).starts_with("restarts"));
        assert!(bad(&judge(json!({"State": {"Status": "restarting", "ExitCode": 7}}), &[])).contains('7'));
        let old = |count: u64| [container("a", json!({"Created": "2025-01-01T00:00:00Z", "RestartCount": count}))];
        let mut watch = Watch::default();
        assert_eq!(judge_with(&mut watch, &old(4), &["a"], &[]), Verdict::Well(vec![]));
        assert!(bad(&judge_with(&mut watch, &old(5), &["a"], &[])).starts_with("restarts"));
    }

    #[test]
    fn a_paused_one_is_a_persons_doing_and_one_that_was_never_started_is_waited_for() {
        let paused = judge(json!({"State": {"Status": "paused", "Health": {"Status": "starting"}}}), &[]);
        assert!(matches!(paused, Verdict::Well(warnings) if warnings[0].contains("`docker unpause`")));
        let created = judge(json!({"State": {"Status": "created"}}), &[]);
        assert_eq!(waits(&created), "x-a-1 is created and not started");
    }

    #[test]
    fn one_bad_replica_is_named_and_a_service_scaled_to_none_counts_nothing() {
        let replica = |number: u32, changes: Value| {
            let mut value = json!({"Id": format!("id-{number}"), "Name": format!("/x-a-{number}")});
            merge(&mut value, changes);
            container("a", value)
        };
        let containers = [
            replica(1, json!({})),
            replica(2, json!({"State": {"Status": "exited", "ExitCode": 9}})),
            replica(3, json!({"State": {"Status": "created"}})),
        ];
        let judge_count = |count: u32| {
            let (services, one_shots) = ([("a".to_owned(), count)].into(), BTreeSet::new());
            let (settle_time, since) = (Duration::from_secs(3), SINCE.parse().unwrap());
            let expected = Expected { services: &services, one_shots: &one_shots, settle_time, since };
            let now = Now { wall: NOW.parse().unwrap(), steady: Instant::now() };
            Watch::default().judge(&containers, &expected, now)
        };
        let failure = Failure { id: "id-2".into(), name: "x-a-2".into(), what: "exited with 9".into() };
        assert_eq!(judge_count(3), Verdict::Bad(vec![failure]));
        assert_eq!(judge_count(0), Verdict::Well(vec![]));
    }

    #[test]
    fn counts_only_active_services_and_misses_none() {
        let inactive = container("gone", json!({"State": {"Status": "exited", "ExitCode": 9}}));
        let containers = [container("a", json!({})), inactive];
        assert_eq!(judge_with(&mut Watch::default(), &containers, &["a"], &[]), Verdict::Well(vec![]));
        let verdict = judge_with(&mut Watch::default(), &containers, &["a", "b"], &[]);
        assert_eq!(waits(&verdict), "service b has 0 of 1 containers");
    }
}
