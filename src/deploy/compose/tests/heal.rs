//! Compose killed at random moments of a recreation: nothing stays stopped.

use rustix::process::{Pid, Signal};

use super::*;

/// How many moments a version of Compose is killed at, unless `SHIPARR_TEST_MOMENTS` says otherwise.
const MOMENTS: u64 = 8;
/// How many stacks are killed at the same time.
const AT_ONCE: u64 = 4;

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

impl Lab {
    /// Id, name, service, state and `V` of each container, sorted by service.
    fn state(&self) -> Vec<(String, String, String, String, String)> {
        let label = format!("label=com.docker.compose.project={}", self.stack.default_project);
        let ids = self.docker(&["ps", "-aq", "--no-trunc", "--filter", &label]);
        let format = r#"{{.Id}} {{.Name}} {{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{range .Config.Env}}{{.}} {{end}}"#;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        let shown = self.docker(&[&["inspect", "--format", format][..], &ids].concat());
        let mut containers: Vec<_> = shown
            .lines()
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

    /// All three run, each once, under their own names.
    fn assert_whole(&self, when: &str) {
        let state = self.state();
        let project = &self.stack.default_project;
        let web = if self.stack.variables.contains_key("NAME") { format!("{project}-own") } else { String::new() };
        let names: Vec<&str> = state.iter().map(|(_, name, ..)| name.as_str()).collect();
        let (app, db, usual) = (format!("{project}-app-1"), format!("{project}-db-1"), format!("{project}-web-1"));
        assert!(names == [&app, &db, &usual] || names == [&app, &db, &web], "{when}: {state:#?}\n{}", self.log.text());
        assert!(state.iter().all(|(_, _, state, ..)| state == "running"), "{when}: {state:#?}\n{}", self.log.text());
    }
}

/// Kills one recreation after `delay`, heals, and brings it up as usual. Says how the containers were left.
fn kill_once(lab: &mut Lab, value: u64, delay: Duration, softly: bool) -> Option<Containers> {
    let name = format!("{}-own", lab.stack.default_project);
    let value = value.to_string();
    lab.set(&[("V", &value), ("NAME", &name)]);
    let plan = lab.plan().unwrap();
    let before = lab.state();
    let limit = Limit::after(LIMIT);
    lab.log = Lines::default();
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(delay);
            if softly {
                limit.cancel();
            } else {
                kill_compose(&plan.project);
            }
        });
        lab.compose.up(&lab.stack, &plan, &plain(), &limit, &mut lab.log)
    });
    let left = match ended {
        Ok(()) => None,
        Err(error) if error.containers == Containers::Untouched => {
            assert_eq!(lab.state(), before, "changed all the same: {}", lab.log.text());
            Some(Containers::Untouched)
        }
        Err(error) => {
            assert_eq!(error.containers, Containers::Interrupted, "{}", lab.log.text());
            lab.compose
                .heal(&lab.stack, &plan, &mut lab.log)
                .unwrap_or_else(|error| panic!("{error}\n{}\n{:#?}", lab.log.text(), lab.state()));
            Some(error.containers)
        }
    };
    lab.assert_whole("after the healing");
    lab.up().unwrap_or_else(|error| panic!("{error}\n{}", lab.log.text()));
    lab.assert_whole("after the next one");
    assert!(lab.state().iter().all(|(.., of, _)| *of == value), "{:#?}\n{}", lab.state(), lab.log.text());
    left
}

#[test]
fn compose_killed_at_any_moment_leaves_nothing_stopped_once_it_is_healed() {
    let moments = from_environment("SHIPARR_TEST_MOMENTS").unwrap_or(MOMENTS);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = from_environment("SHIPARR_TEST_SEED").unwrap_or(now);
    let grace_seconds = if moments > MOMENTS { 3 } else { 1 };
    println!("SHIPARR_TEST_MOMENTS={moments} SHIPARR_TEST_SEED={seed}");
    let work = |environment: &[(OsString, OsString)], version: usize, stack: u64| {
        let mut random = Random(seed.wrapping_mul(31).wrapping_add(stack * 2 + version as u64));
        let mut lab = Lab::new(environment.to_vec(), &slow_stack(stack, grace_seconds));
        let name = format!("{}-own", lab.stack.default_project);
        lab.set(&[("V", "0"), ("NAME", &name)]);
        lab.up().unwrap();
        let mut left = Vec::new();
        for moment in 0..moments / AT_ONCE + u64::from(stack < moments % AT_ONCE) {
            let delay = Duration::from_millis(random.below(grace_seconds * 3000 + 2500));
            let softly = random.below(2) == 0;
            let how = kill_once(&mut lab, moment + 1, delay, softly);
            println!("version {version}, stack {stack}: after {delay:?}, softly: {softly}: {how:?}");
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
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(left.contains(&Some(Containers::Interrupted)), "no moment was within a recreation: {left:?}");
}

/// Docker goes on stopping a container when the client that asked for it is gone, and says nothing of it.
#[test]
fn what_is_being_stopped_while_it_is_healed_runs_afterwards() {
    let yaml = "services: {a: {image: 'shiparr-test/busybox:1', network_mode: none, stop_grace_period: 3s, \
                command: ['sh', '-c', \"trap '' TERM; while :; do sleep 0.2; done\"]}}";
    Lab::run(yaml, |lab| {
        let (plan, _) = lab.up().unwrap();
        let before = lab.state();
        let name = format!("{}-a-1", lab.stack.default_project);
        let told =
            || lab.docker(&["events", "--since", "60s", "--until", "0s", "--filter", &format!("container={name}")]);
        let gone = Limit::after(LIMIT);
        std::thread::scope(|scope| {
            scope.spawn(|| lab.compose.client.ask("docker stop", ["stop", &name], &gone).unwrap_err());
            while !told().contains("container kill") {
                assert!(!gone.is_over());
            }
            gone.cancel();
        });
        lab.compose.heal(&lab.stack, &plan, &mut lab.log).unwrap();
        let started = |lab: &Lab| lab.docker(&["inspect", "--format", "{{.State.StartedAt}} {{.State.Status}}", &name]);
        assert_eq!(lab.state(), before, "{}", lab.log.text());
        let (after, grace) = (started(lab), Limit::after(Duration::from_millis(3500)));
        while grace.sleep(Duration::from_millis(200)) {
            assert_eq!(started(lab), after, "Docker was not done with stopping it");
        }
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
