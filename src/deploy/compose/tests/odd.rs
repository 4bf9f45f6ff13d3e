//! One-shots and services that are unlike the others, where Docker's and Compose's own states matter.

use super::*;

/// A service of the image that all tests have.
fn service(command: &str, rest: &str) -> String {
    format!(
        "{{image: 'shiparr-test/busybox:1', init: true, network_mode: none, command: ['sh', '-c', '{command}'], {rest}}}"
    )
}

impl Lab {
    fn id_of(&self, service: &str) -> String {
        let project = format!("label=com.docker.compose.project={}", self.stack.default_project);
        let service = format!("label=com.docker.compose.service={service}");
        self.docker(&["ps", "-aq", "--no-trunc", "--filter", &project, "--filter", &service])
    }

    /// The verdict on what is there, without an `up`.
    fn wait(&mut self, health_timeout: Duration) -> Result<(), StepError> {
        let plan = self.plan().unwrap();
        let timing = Timing { since: Timestamp::now(), health_timeout, settle_time: Duration::from_millis(500) };
        self.compose.wait(&plan, &timing, &Limit::after(LIMIT), &mut self.log)
    }
}

/// A log that makes a file when it is told of something.
struct Signs {
    sign: PathBuf,
    of: &'static str,
}

impl Log for Signs {
    fn line(&mut self, _: LogLevel, message: &str) {
        if message.contains(self.of) {
            std::fs::write(&self.sign, "").unwrap();
        }
    }
}

#[test]
fn a_failed_migration_is_named_with_what_it_left_behind() {
    let yaml = format!(
        "services: {{migrate: {}, web: {}}}",
        service("echo migrating; exit ${X}", "environment: {X: '${X}'}"),
        service(
            "sleep 1000",
            "environment: {X: '${X}'}, depends_on: {migrate: {condition: service_completed_successfully}}"
        ),
    );
    Lab::run(&yaml, |lab| {
        for (first, expected) in [
            (true, "-web-1 is created and not started: fix it and push"),
            (false, "-web-1 is created and not started, and the one before it is gone: fix it and push"),
        ] {
            if !first {
                lab.set(&[("X", "0")]);
                lab.up_and_wait(LIMIT).unwrap();
            }
            lab.set(&[("X", "5")]);
            lab.log = Lines::default();
            let plan = lab.plan().unwrap();
            let error = lab.compose.up(&lab.stack, &plan, &plain(), &Limit::after(LIMIT), &mut lab.log).unwrap_err();
            assert_eq!(error.containers, Containers::Changed, "{}", lab.log.text());
            let message = &error.error.message;
            assert!(message.contains("\"migrate\" didn't complete successfully: exit 5"), "{message}");
            assert!(message.contains(expected), "{message}");
            assert!(lab.log.text().contains("migrate-1 | migrating"), "{}", lab.log.text());
        }
    });
}

#[test]
fn a_dependency_that_is_unhealthy_is_named_with_its_log() {
    let yaml = format!(
        "services: {{db: {}, web: {}}}",
        service("echo no disk; sleep 1000", "healthcheck: {test: 'false', interval: 300ms, retries: 2}"),
        service("sleep 1000", "depends_on: {db: {condition: service_healthy}}"),
    );
    Lab::run(&yaml, |lab| {
        let error = lab.up().unwrap_err();
        assert!(error.message.contains("db-1 is unhealthy"), "{error}");
        assert!(error.message.contains("web-1 is created and not started"), "{error}");
        assert!(lab.log.text().contains("db-1 | no disk"), "{}", lab.log.text());
    });
}

#[test]
fn a_labelled_service_must_end_with_0_and_is_waited_for() {
    let yaml = |command: &str| {
        let rest = "labels: {shiparr.oneshot: \"true\"}, restart: 'on-failure:5', volumes: ['./signs:/signs:ro']";
        format!("services: {{job: {}}}", service(command, rest))
    };
    Lab::run(&yaml("until test -e /signs/seen; do sleep 0.1; done"), |lab| {
        let signs = lab.folder.path().join("signs");
        std::fs::create_dir(&signs).unwrap();
        let (plan, since) = lab.up().unwrap();
        let timing = Timing { since, health_timeout: LIMIT, settle_time: Duration::from_millis(500) };
        let mut log = Signs { sign: signs.join("seen"), of: "job-1 has not ended" };
        lab.compose.wait(&plan, &timing, &Limit::after(LIMIT), &mut log).unwrap();
    });
    // It may try again: only its end counts.
    Lab::run(&yaml("sleep 0.5; test -e /tried || { touch /tried; exit 1; }"), |lab| lab.up_and_wait(LIMIT).unwrap());
    let fails = format!("services: {{job: {}}}", service("sleep 0.5; exit 3", "labels: [shiparr.oneshot=true]"));
    Lab::run(&fails, |lab| {
        assert!(lab.up_and_wait(LIMIT).unwrap_err().message.contains("job-1 exited with 3"));
    });
}

#[test]
fn a_crash_loop_fails_at_once_and_so_does_one_bad_replica() {
    // What is not said at once is said when the time to wait is over, in other words.
    Lab::run(&format!("services: {{a: {}}}", service("sleep 0.2; exit 1", "restart: on-failure")), |lab| {
        let error = lab.up_and_wait(LIMIT).unwrap_err();
        assert!(error.message.contains("a-1 restarts (it last exited with "), "{error}");
    });
    let yaml = format!(
        "services: {{a: {}, none: {}, zero: {}}}",
        service("sleep 1000", "scale: 3"),
        service("exit 1", "deploy: {replicas: 0}"),
        service("exit 1", "scale: 0")
    );
    Lab::run(&yaml, |lab| {
        lab.up_and_wait(LIMIT).unwrap();
        let second = format!("{}-a-2", lab.stack.default_project);
        lab.docker(&["kill", &second]);
        let error = lab.wait(LIMIT).unwrap_err();
        assert!(error.message.contains("a-2 exited with 137"), "{error}");
        assert!(!error.message.contains("a-1") && !error.message.contains("a-3"), "{error}");
    });
}

#[test]
fn what_people_do_meanwhile_is_seen() {
    let sleeper = service("sleep 1000", "");
    Lab::run(&format!("services: {{a: {sleeper}, b: {sleeper}}}"), |lab| {
        lab.up().unwrap();
        lab.docker(&["pause", &lab.id_of("a")]);
        lab.wait(LIMIT).unwrap();
        assert!(lab.log.text().contains("a-1 is paused"), "{}", lab.log.text());
        let error = lab.up().unwrap_err();
        assert!(error.message.contains("`docker unpause`") && error.chance == Chance::CanPass, "{error}");
        lab.docker(&["unpause", &lab.id_of("a")]);
        lab.docker(&["rm", "-f", &lab.id_of("b")]);
        // One that somebody ran by hand does not stand for it.
        let (limit, files) = (Limit::after(LIMIT), [lab.folder.path().join("compose.yaml")]);
        let run = lab.compose.call(&lab.stack, &files, Some(&lab.stack.default_project), &limit);
        assert!(run.args(["run", "-d", "b"]).capture(&limit, 1 << 20).unwrap().status.success());
        let error = lab.wait(Duration::from_secs(1)).unwrap_err();
        assert!(error.message.contains("service b has 0 of 1 containers"), "{error}");
        // One that comes back is seen, also under another id.
        let plan = lab.plan().unwrap();
        let timing = Timing { since: Timestamp::now(), health_timeout: LIMIT, settle_time: Duration::from_millis(500) };
        let (lab, mut log) = (&*lab, Lines::default());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| lab.compose.wait(&plan, &timing, &Limit::after(LIMIT), &mut log));
            lab.compose.up(&lab.stack, &plan, &plain(), &Limit::after(LIMIT), &mut Lines::default()).unwrap();
            waits.join().unwrap().unwrap();
        });
    });
    Lab::run(&format!("services: {{a: {sleeper}}}"), |lab| {
        let (limit, files) = (Limit::after(LIMIT), [lab.folder.path().join("compose.yaml")]);
        let create = lab.compose.call(&lab.stack, &files, Some(&lab.stack.default_project), &limit);
        assert!(create.arg("create").capture(&limit, 1 << 20).unwrap().status.success());
        let error = lab.wait(Duration::from_secs(1)).unwrap_err();
        assert!(error.message.contains("a-1 is created and not started"), "{error}");
    });
}

#[test]
fn services_whose_mounts_changed_are_made_anew_with_what_shares_their_network() {
    let yaml = format!(
        "services: {{a: {}, side: {}, web: {}, fresh: {}}}",
        service("sleep 1000", ""),
        service("sleep 1000", "").replace("network_mode: none", "network_mode: 'service:a'"),
        service("sleep 1000", "depends_on: [a]"),
        service("sleep 1000", "environment: {V: '${V}'}"),
    );
    Lab::run(&yaml, |lab| {
        lab.set(&[("V", "1")]);
        lab.up().unwrap();
        lab.set(&[("V", "2")]);
        let before = ["a", "side", "web", "fresh"].map(|service| lab.id_of(service));
        let plan = lab.plan().unwrap();
        let how = Up { remove_orphans: true, recreate: ["a".to_owned(), "fresh".to_owned()].into() };
        lab.log = Lines::default();
        lab.compose.up(&lab.stack, &plan, &how, &Limit::after(LIMIT), &mut lab.log).unwrap();
        let after = ["a", "side", "web", "fresh"].map(|service| lab.id_of(service));
        let same: Vec<bool> = before.iter().zip(&after).map(|(before, after)| before == after).collect();
        assert_eq!(same, [false, false, true, false], "{}", lab.log.text());
        let text = lab.log.text();
        assert_eq!(
            text.matches("-fresh-1  Recreated").count() + text.matches("-fresh-1 Recreated").count(),
            1,
            "{text}"
        );
        let network = lab.docker(&["inspect", "--format", "{{.HostConfig.NetworkMode}}", &after[1]]);
        assert_eq!(network, format!("container:{}", after[0]));
        lab.wait(LIMIT).unwrap();
        lab.compose.up(&lab.stack, &plan, &plain(), &Limit::after(LIMIT), &mut lab.log).unwrap();
        assert_eq!(["a", "side", "web", "fresh"].map(|service| lab.id_of(service)), after, "it is as Compose wants it");
    });
}
