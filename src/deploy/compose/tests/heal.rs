//! Compose killed at many moments of a recreation: nothing stays stopped.

use std::panic::resume_unwind;
use std::sync::mpsc::{Sender, channel};

use rustix::process::{Pid, Signal};

use super::*;

/// How many moments a version of Compose is killed at, unless `SHIPARR_TEST_MOMENTS` says otherwise.
const MOMENTS: u64 = 8;
/// How many stacks are killed at the same time.
const AT_ONCE: u64 = 4;
/// Chooses the moments, unless `SHIPARR_TEST_SEED` says otherwise.
const SEED: u64 = 1;

/// Numbers that look random; the same seed gives the same ones.
struct Random(u64);

impl Random {
    /// SplitMix64.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Now, for `docker events`, which has no words for it that are exact to less than a second.
fn now() -> String {
    let now = Timestamp::now();
    format!("{}.{:09}", now.as_second(), now.subsec_nanosecond())
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Three services that stop slowly; in every second stack some depend on one with all that Compose has for it.
fn slow_stack(stack: u64, grace_seconds: u64) -> String {
    let service = |rest: &str| {
        format!(
            "{{image: 'shiparr-test/busybox:1', stop_grace_period: {grace_seconds}s, environment: {{V: '${{V}}'}}, \
             command: ['sh', '-c', \"trap '' TERM; while :; do sleep 0.5; done\"], {rest}}}"
        )
    };
    let (app, web) = match stack % 2 {
        0 => ("network_mode: none, depends_on: [db]", "network_mode: none, depends_on: [app]"),
        _ => (
            "network_mode: none, depends_on: {db: {condition: service_started, restart: true}}",
            "network_mode: 'service:db', container_name: '${NAME}'",
        ),
    };
    format!("services:\n  db: {}\n  app: {}\n  web: {}\n", service("network_mode: none"), service(app), service(web))
}

/// Sends SIGKILL to the process group of the Compose that works on this project.
fn kill_compose(project: &str) -> bool {
    let own = std::process::id().to_string();
    let is_it = |folder: &Path| {
        let arguments = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
        let stat = std::fs::read_to_string(folder.join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        arguments.contains(&project.as_bytes()) && arguments.contains(&b"up".as_slice()) && parent == Some(&own)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let found = processes.filter(|path| is_it(path)).find_map(|path| path.file_name()?.to_str()?.parse().ok());
    found.and_then(Pid::from_raw).is_some_and(|pid| rustix::process::kill_process_group(pid, Signal::KILL).is_ok())
}

/// When Compose is ended.
#[derive(Debug)]
struct Moment {
    /// Counted from the first change that Compose tells of, whenever a busy host gets to it; else from the start.
    from_change: bool,
    delay: Duration,
    /// With SIGTERM, as at a time limit; else with SIGKILL.
    softly: bool,
}

impl Moment {
    /// The very first one is at the first change, so that at least that one is within the recreation.
    fn choose(random: &mut Random, is_first: bool, grace_seconds: u64) -> Moment {
        let (from_change, softly) = (is_first || random.below(2) == 0, random.below(2) == 0);
        let longest = grace_seconds * 3000 + if from_change { 1000 } else { 2500 };
        let delay = random.below(longest);
        Moment { from_change, delay: Duration::from_millis(if is_first { 0 } else { delay }), softly }
    }
}

/// A log that tells of the first change.
struct Watched<'a> {
    lines: &'a mut Lines,
    changes: Sender<()>,
}

impl Log for Watched<'_> {
    fn line(&mut self, level: LogLevel, message: &str) {
        if message.ends_with("Recreate") || message.ends_with("Stopping") {
            // Whoever counts from the start does not listen.
            let _ = self.changes.send(());
        }
        self.lines.line(level, message);
    }
}

impl Lab {
    fn of_project(&self) -> String {
        format!("label=com.docker.compose.project={}", self.stack.default_project)
    }

    /// Shows each container that is there in this format.
    fn inspect(&self, format: &str) -> String {
        let ids = self.docker(&["ps", "-aq", "--no-trunc", "--filter", &self.of_project()]);
        let args = ["inspect", "--type", "container", "--format", format].into_iter().chain(ids.split_whitespace());
        // One that goes away in between is an error of the client's, and the others are shown.
        let shown = self.compose.client.answer("docker inspect", args, &Limit::after(LIMIT)).unwrap();
        String::from_utf8(shown.stdout).unwrap()
    }

    /// Service, name, state, `V` and id of each container, sorted by service.
    fn state(&self) -> Vec<(String, String, String, String, String)> {
        let format = r#"{{.Id}} {{.Name}} {{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{range .Config.Env}}{{.}} {{end}}"#;
        let shown = self.inspect(format);
        let mut containers: Vec<_> = shown
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                let [id, name, service, state] = [(); 4].map(|()| words.next().unwrap());
                let value = words.find_map(|word| word.strip_prefix("V=").map(str::to_owned)).unwrap_or_default();
                (service, name.trim_start_matches('/').to_owned(), state, value, id)
            })
            .collect();
        containers.sort();
        containers
    }

    /// All that tells how the containers came to what they are: for the message of a test that failed.
    fn story(&self) -> String {
        let format = "{{.Name}} {{.Id}}: {{json .State}} {{.Config.Env}}";
        let shown = self.inspect(format);
        let (filter, format) = (
            self.of_project(),
            "{{.TimeNano}} {{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}} {{.Actor.Attributes.signal}}",
        );
        let events = ["events", "--since", "300s", "--until", &now(), "--filter", &filter, "--format", format];
        let events = self.docker(&events);
        let all = self.docker(&["events", "--since", "300s", "--until", &now(), "--format", "{{.TimeNano}}"]);
        let oldest = all.lines().next().unwrap_or_default();
        format!(
            "now: {}\ncontainers:\n{shown}log:\n{}Docker's events ({} of all stacks, from {oldest} on):\n{events}\n",
            Timestamp::now(),
            self.log.text(),
            all.lines().count()
        )
    }

    /// Notes the time of something in the log, beside what Compose says.
    fn note(&mut self, what: &str) {
        self.log.line(LogLevel::Info, &format!("{}: {what}", Timestamp::now()));
    }

    /// All three run, each once, under their own names.
    fn assert_whole(&self, when: &str) {
        let state = self.state();
        let project = &self.stack.default_project;
        let web = if self.stack.variables.contains_key("NAME") { format!("{project}-own") } else { String::new() };
        let names: Vec<&str> = state.iter().map(|(_, name, ..)| name.as_str()).collect();
        let (app, db, usual) = (format!("{project}-app-1"), format!("{project}-db-1"), format!("{project}-web-1"));
        let has_names = names == [&app, &db, &usual] || names == [&app, &db, &web];
        let all_run = state.iter().all(|(_, _, state, ..)| state == "running");
        assert!(has_names && all_run, "{when}: {state:#?}\n{}", self.story());
    }

    /// Heals and demands that all run, each once.
    fn heal_whole(&mut self, plan: &Plan) {
        self.note("the healing begins");
        if let Err(error) = self.compose.heal(&self.stack, plan, &mut self.log) {
            panic!("it was not healed: {error}\n{}", self.story());
        }
        self.note("the healing is done");
    }

    /// Whether Docker made a container, which it was asked for before, only after the healing. That is one too many,
    /// beside one that runs, and does not run itself.
    fn has_late_creation(&self) -> bool {
        let state = self.state();
        let is_temporary = |name: &str| name.split_once('_').is_some_and(|(_, name)| name.starts_with("shiparr-test-"));
        let runs_beside = |service: &str| state.iter().any(|one| one.0 == service && one.2 == "running");
        state.iter().any(|(service, name, state, ..)| state == "created" && is_temporary(name) && runs_beside(service))
    }
}

/// Ends one recreation, heals, and brings it up as usual. Says how the containers were left.
fn end_once(lab: &mut Lab, value: u64, moment: &Moment) -> Option<Containers> {
    let name = format!("{}-own", lab.stack.default_project);
    let value = value.to_string();
    lab.set(&[("V", &value), ("NAME", &name)]);
    let plan = lab.plan().unwrap();
    let before = lab.state();
    let limit = Limit::after(LIMIT);
    lab.log = Lines::default();
    lab.note(&format!("{moment:?}, V={value}"));
    let (changes, changed) = channel();
    let mut log = Watched { lines: &mut lab.log, changes };
    let ended = std::thread::scope(|scope| {
        let (limit, project) = (&limit, &plan.project);
        scope.spawn(move || {
            // An `up` that ends before it changes anything hangs up.
            if moment.from_change && changed.recv().is_err() {
                return;
            }
            std::thread::sleep(moment.delay);
            if moment.softly {
                limit.cancel();
            } else {
                kill_compose(project);
            }
        });
        let ended = lab.compose.up(&lab.stack, &plan, &plain(), limit, &mut log);
        drop(log);
        ended
    });
    lab.note(&format!("up has ended: {ended:?}"));
    let left = match ended {
        Ok(()) => None,
        Err(error) if error.containers == Containers::Untouched => {
            assert_eq!(lab.state(), before, "changed all the same: {}", lab.story());
            Some(Containers::Untouched)
        }
        Err(error) => {
            assert_eq!(error.containers, Containers::Interrupted, "{}", lab.story());
            lab.heal_whole(&plan);
            if lab.has_late_creation() {
                lab.heal_whole(&plan);
            }
            Some(error.containers)
        }
    };
    lab.assert_whole("after the healing");
    if let Err(error) = lab.up() {
        panic!("the next one failed: {error}\n{}", lab.story());
    }
    lab.assert_whole("after the next one");
    assert!(lab.state().iter().all(|(.., of, _)| *of == value), "V is not {value}: {}", lab.story());
    left
}

#[test]
fn compose_killed_at_any_moment_leaves_nothing_stopped_once_it_is_healed() {
    let moments = from_environment("SHIPARR_TEST_MOMENTS").unwrap_or(MOMENTS);
    let seed = from_environment("SHIPARR_TEST_SEED").unwrap_or(SEED);
    let grace_seconds = if moments > MOMENTS { 3 } else { 1 };
    println!("SHIPARR_TEST_MOMENTS={moments} SHIPARR_TEST_SEED={seed}");
    let work = |environment: &[(OsString, OsString)], version: usize, stack: u64| {
        let mut random = Random(seed.wrapping_mul(31).wrapping_add(stack * 2 + version as u64));
        let mut lab = Lab::new(environment.to_vec(), &slow_stack(stack, grace_seconds));
        let name = format!("{}-own", lab.stack.default_project);
        lab.set(&[("V", "0"), ("NAME", &name)]);
        lab.up().unwrap();
        let mut left = Vec::new();
        for number in 0..moments / AT_ONCE + u64::from(stack < moments % AT_ONCE) {
            let moment = Moment::choose(&mut random, stack == 0 && number == 0, grace_seconds);
            println!("version {version}, stack {stack} ({}): {moment:?}", lab.stack.default_project);
            let how = end_once(&mut lab, number + 1, &moment);
            println!("version {version}, stack {stack}: {how:?}");
            left.push(how);
        }
        left
    };
    let environments = Lab::environments();
    let left: Vec<_> = std::thread::scope(|scope| {
        let work = &work;
        let each = environments.iter().enumerate();
        let threads: Vec<_> = each
            .flat_map(|(version, environment)| {
                (0..AT_ONCE).map(move |stack| scope.spawn(move || work(environment, version, stack)))
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.flatten().collect()
    });
    assert!(left.contains(&Some(Containers::Interrupted)), "no moment was within a recreation: {left:?}");
}

/// A stack whose container says when it is told to stop, and does not.
fn stubborn(grace_seconds: u64) -> String {
    format!(
        "services: {{a: {{image: 'shiparr-test/busybox:1', network_mode: none, stop_grace_period: {grace_seconds}s, \
         command: ['sh', '-c', \"trap 'echo told' TERM; while :; do sleep 0.2; done\"]}}}}"
    )
}

/// Tells the container to stop, goes away, does `meanwhile`, heals, and demands that it runs and goes on running.
fn heal_while_it_stops(lab: &mut Lab, grace: Duration, meanwhile: impl Fn(&Lab)) {
    let (plan, _) = lab.up().unwrap();
    let before = lab.state();
    let name = format!("{}-a-1", lab.stack.default_project);
    let gone = Limit::after(LIMIT);
    std::thread::scope(|scope| {
        scope.spawn(|| lab.compose.client.ask("docker stop", ["stop", &name], &gone).unwrap_err());
        while !lab.docker(&["logs", &name]).contains("told") {
            assert!(!gone.is_over(), "{}", lab.story());
        }
        gone.cancel();
    });
    meanwhile(lab);
    lab.heal_whole(&plan);
    let started = |lab: &Lab| lab.docker(&["inspect", "--format", "{{.State.StartedAt}} {{.State.Status}}", &name]);
    assert_eq!(lab.state(), before, "{}", lab.story());
    let (after, grace) = (started(lab), Limit::after(grace));
    while grace.sleep(Duration::from_millis(200)) {
        assert_eq!(started(lab), after, "Docker was not done with stopping it: {}", lab.story());
    }
}

/// Docker goes on stopping a container when the client that asked for it is gone, and says nothing of it.
#[test]
fn what_is_being_stopped_while_it_is_healed_runs_afterwards() {
    const GRACE_SECONDS: u64 = 3;
    Lab::run(&stubborn(GRACE_SECONDS), |lab| heal_while_it_stops(lab, Duration::from_secs(GRACE_SECONDS), |_| {}));
}

/// Docker remembers few events, and a host with many containers makes as many within the shortest grace period.
#[test]
fn what_is_being_stopped_runs_afterwards_also_when_docker_has_forgotten_that_it_was_told() {
    const GRACE_SECONDS: u64 = 6;
    /// More than it remembers.
    const EVENTS: usize = 300;
    let mut lab = Lab::new(Lab::environments().remove(0), &stubborn(GRACE_SECONDS));
    heal_while_it_stops(&mut lab, Duration::from_secs(GRACE_SECONDS), |lab| {
        let label = format!("com.docker.compose.project={}", lab.other_project());
        let id = lab.docker(&["create", "--network", "none", "--label", &label, "shiparr-test/busybox:1"]);
        for number in 0..EVENTS {
            let name = format!("{}-{}", lab.other_project(), number % 2);
            let rename = crate::http::Request {
                method: "POST".to_owned(),
                url: format!("http://localhost/containers/{id}/rename?name={name}"),
                unix_socket: Some("/var/run/docker.sock".into()),
                max_body_bytes: 64 << 10,
                ..crate::http::Request::default()
            };
            let response = crate::http::send(&rename, &Limit::after(LIMIT)).unwrap();
            assert_eq!(response.status, 204, "{}", String::from_utf8_lossy(&response.body));
        }
        let filter = lab.of_project();
        let told = ["events", "--since", "60s", "--until", &now(), "--filter", "event=kill", "--filter", &filter];
        let signals = lab.docker(&[&told[..], &["--format", "{{.Actor.Attributes.signal}}"]].concat());
        assert!(!signals.contains("15"), "Docker still knows that it was told: {}", lab.story());
    });
}

/// What shared a network with a container that is gone cannot be started as it is.
#[test]
fn what_cannot_be_started_as_it_is_is_made_anew_and_what_has_no_container_gets_none() {
    let yaml = format!(
        "services: {{a: {SLEEPER}, side: {{image: 'shiparr-test/busybox:1', command: sleep 1000, init: true, network_mode: 'service:a'}}}}"
    );
    Lab::run(&yaml, |lab| {
        let plan = lab.plan().unwrap();
        lab.compose.heal(&lab.stack, &plan, &mut lab.log).unwrap();
        assert!(lab.docker(&["ps", "-aq", "--filter", &format!("name={}", plan.project)]).is_empty());
        lab.up().unwrap();
        let (a, side) = (format!("{}-a-1", plan.project), format!("{}-side-1", plan.project));
        lab.docker(&["stop", "-t", "1", &side]);
        lab.docker(&["rm", "-f", &a]);
        let files = [lab.folder.path().join("compose.yaml")];
        let limit = Limit::after(LIMIT);
        let create = lab.compose.call(&lab.stack, &files, Some(&plan.project), &limit);
        assert!(create.args(["up", "-d", "--no-deps", "a"]).capture(&limit, 1 << 20).unwrap().status.success());
        lab.compose.heal(&lab.stack, &plan, &mut lab.log).unwrap_or_else(|error| panic!("{error}\n{}", lab.log.text()));
        assert!(
            lab.state().iter().all(|(_, _, state, ..)| state == "running"),
            "{:?}\n{}",
            lab.state(),
            lab.log.text()
        );
        lab.docker(&["stop", "-t", "1", &side]);
        lab.write("compose.yaml", "services: {side: {image: 'shiparr-test/nothing:1'}, a: {image: x}}");
        let error = lab.compose.heal(&lab.stack, &plan, &mut lab.log).err();
        assert!(
            error.is_none(),
            "it starts what is there, whatever its image is called now: {error:?}\n{}",
            lab.log.text()
        );
    });
}
