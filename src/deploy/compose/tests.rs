//! The driver on real Docker: the default Compose, and a second version where `SHIPARR_TEST_COMPOSE_5` names its
//! executable (`FOLDER/cli-plugins/docker-compose`, so that FOLDER can be a `DOCKER_CONFIG`).
#![allow(clippy::disallowed_methods, reason = "tests read the environment that they run in")]

mod heal;
mod odd;
mod taking_over;
mod together;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;

use super::up::wishes;
use super::*;
use crate::config::project::{Build, Pull};
use crate::deploy::Containers;
use crate::model::Asked;
use crate::secrets::{Secret, env_file};

/// An `up` as it mostly is.
fn plain() -> Up {
    Up { remove_orphans: true, recreate: BTreeSet::new() }
}

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Lines(Vec<(LogLevel, String)>);

impl Log for Lines {
    fn line(&mut self, level: LogLevel, message: &str) {
        self.0.push((level, message.to_owned()));
    }
}

impl Lines {
    fn text(&self) -> String {
        self.0.iter().map(|(_, line)| format!("{line}\n")).collect()
    }
}

/// A stack in a folder of its own; its containers and networks go with it.
struct Lab {
    compose: Compose,
    stack: Stack,
    folder: tempfile::TempDir,
    log: Lines,
}

impl Lab {
    fn run(yaml: &str, check: impl Fn(&mut Lab)) {
        for environment in Lab::environments() {
            check(&mut Lab::new(environment, yaml));
        }
    }

    /// One for each version of Compose that is there.
    fn environments() -> Vec<Vec<(OsString, OsString)>> {
        let mut common =
            ["PATH", "HOME"].map(|name| (name.into(), std::env::var_os(name).unwrap_or_default())).to_vec();
        common.push(("TZ".into(), "UTC".into()));
        let mut environments = vec![common.clone()];
        if let Some(executable) = std::env::var_os("SHIPARR_TEST_COMPOSE_5") {
            let config = Path::new(&executable).ancestors().nth(2).expect("FOLDER/cli-plugins/docker-compose");
            environments.push([&common[..], &[("DOCKER_CONFIG".into(), config.into())]].concat());
        }
        environments
    }

    fn new(environment: Vec<(OsString, OsString)>, yaml: &str) -> Lab {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let project = format!("shiparr-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("compose.yaml"), yaml).unwrap();
        let stack = Stack {
            root: folder.path().to_owned(),
            folder: folder.path().to_owned(),
            files: Vec::new(),
            project: None,
            default_project: project,
            profiles: Vec::new(),
            variables_file: None,
            variables: BTreeMap::new(),
            unset_variables: UnsetVariables::Fail,
            build: Build::Auto,
            pull: Pull::Missing,
            asked: Asked::default(),
        };
        let compose = Compose::with(Client::new(Path::new("docker"), environment));
        Lab { compose, stack, folder, log: Lines::default() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn set(&mut self, variables: &[(&str, &str)]) {
        let pairs = variables.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value)));
        self.stack.variables = pairs.collect();
        let text = env_file::render(self.stack.variables.iter().map(|(name, value)| (name.as_str(), value)));
        self.stack.variables_file = Some(self.write("variables.env", &text));
    }

    fn plan(&mut self) -> Result<Plan, StepError> {
        self.compose.plan(&self.stack, &Limit::after(LIMIT), &mut self.log)
    }

    fn up(&mut self) -> Result<(Plan, Timestamp), StepError> {
        let plan = self.plan()?;
        let since = Timestamp::now();
        self.compose.up(&self.stack, &plan, &plain(), &Limit::after(LIMIT), &mut self.log)?;
        Ok((plan, since))
    }

    fn up_and_wait(&mut self, health_timeout: Duration) -> Result<(), StepError> {
        let (plan, since) = self.up()?;
        let timing = Timing { since, health_timeout, settle_time: Duration::from_millis(1500) };
        self.compose.wait(&plan, &timing, &Limit::after(LIMIT), &mut self.log)
    }

    /// A second compose project, for what somebody else made.
    fn other_project(&self) -> String {
        format!("{}-other", self.stack.default_project)
    }

    fn docker(&self, args: &[&str]) -> String {
        let answer = self.compose.client.ask("docker", args, &Limit::after(LIMIT)).unwrap();
        String::from_utf8(answer.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Lab {
    /// Docker may still be busy with something that a client asked for which is gone: it may take more than one try.
    fn drop(&mut self) {
        const MOST_TRIES: u32 = 5;
        let limit = Limit::after(LIMIT);
        let answer = |args: &[&str]| self.compose.client.answer("docker", args, &limit);
        for project in [self.stack.default_project.clone(), self.other_project()] {
            let label = format!("label=com.docker.compose.project={project}");
            for (list, remove) in [
                (&["ps", "-aq", "--filter", &label][..], &["rm", "-f"][..]),
                (&["network", "ls", "-q", "--filter", &label], &["network", "rm"]),
                (&["image", "ls", "-q", "--filter", &label], &["image", "rm", "-f"]),
                (&["volume", "ls", "-q", "--filter", &label], &["volume", "rm"]),
            ] {
                for _ in 0..MOST_TRIES {
                    // A panic here, during another one, would end all tests.
                    let Ok(listed) = answer(list) else { break };
                    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
                    if listed.trim().is_empty() {
                        break;
                    }
                    match answer(&remove.iter().copied().chain(listed.split_whitespace()).collect::<Vec<_>>()) {
                        Ok(removed) if removed.status.success() => break,
                        failed => eprintln!("{project}: not all of it is removed: {failed:?}"),
                    }
                    limit.sleep(Duration::from_secs(1));
                }
            }
        }
    }
}

const SLEEPER: &str = "{image: 'shiparr-test/busybox:1', command: sleep 1000, init: true}";

#[test]
fn docker_answers_and_its_absence_says_what_to_do() {
    Lab::run("services: {}", |lab| lab.compose.available(&Limit::after(LIMIT)).unwrap());
    let nowhere = vec![("DOCKER_HOST".into(), "unix:///nowhere/docker.sock".into())];
    let error = Client::new(Path::new("docker"), nowhere).available(&Limit::after(LIMIT)).unwrap_err();
    assert!(error.contains("/nowhere/docker.sock") && error.contains("systemctl start docker"), "{error}");
}

#[test]
fn values_reach_compose_exactly() {
    let values = [
        ("DOLLAR", "pa$word $$ ${x"),
        ("QUOTES", r#"a"b'c\d\"#),
        ("LINES", "-----BEGIN\r\nabc\n-----END\n"),
        ("HASH", " # no comment"),
        ("dotted.name-x", "y"),
        ("TZ", "Europe/Paris"),
    ];
    let yaml = "services: {a: {image: x, environment: {DOLLAR: '${DOLLAR}', QUOTES: '${QUOTES}', LINES: '${LINES}', HASH: '${HASH}', \
                TZ: '${TZ}'}}}";
    Lab::run(yaml, |lab| {
        lab.set(&values);
        let limit = Limit::after(LIMIT);
        let files = [lab.folder.path().join("compose.yaml")];
        let printed = lab
            .compose
            .call(&lab.stack, &files, None, &limit)
            .args(["config", "--format", "json"])
            .capture(&limit, 1 << 20);
        let config: serde_json::Value = serde_json::from_slice(&printed.unwrap().stdout).unwrap();
        for (name, value) in values.iter().filter(|(name, _)| *name != "dotted.name-x") {
            // Compose prints a plain `$` as `$$`.
            let expected = value.replace('$', "$$");
            assert_eq!(config["services"]["a"]["environment"][name], expected, "{name}");
        }
    });
}

#[test]
fn a_plain_stack_comes_up_and_is_well_once_it_has_settled() {
    Lab::run(&format!("services: {{a: {SLEEPER}}}"), |lab| {
        let began = std::time::Instant::now();
        lab.up_and_wait(LIMIT).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(1500), "settled after {:?}", began.elapsed());
        assert!(lab.log.text().contains("a-1"), "{}", lab.log.text());
        // Nothing changed, so nothing is made anew, and it has been up for long enough already.
        let ids = |lab: &Lab| {
            let project = format!("label=com.docker.compose.project={}", lab.stack.default_project);
            lab.docker(&["ps", "-q", "--filter", &project])
        };
        let id = ids(lab);
        lab.up_and_wait(Duration::ZERO).unwrap();
        assert_eq!(ids(lab), id);
        lab.stack.asked.recreate = true;
        lab.up().unwrap();
        assert_ne!(ids(lab), id);
    });
}

#[test]
fn the_project_is_named_by_the_repository_a_file_or_the_configuration() {
    Lab::run(&format!("services: {{a: {SLEEPER}}}"), |lab| {
        let default = lab.stack.default_project.clone();
        lab.stack.default_project = "media_stack".to_owned();
        assert_eq!(lab.plan().unwrap().project, "media_stack");
        let named = lab.write("named.yaml", "name: ${STACK:-from-file}\n");
        lab.stack.files = vec![lab.folder.path().join("compose.yaml"), named.clone()];
        assert_eq!(lab.plan().unwrap().project, "from-file");
        lab.set(&[("STACK", "from-variable")]);
        assert_eq!(lab.plan().unwrap().project, "from-variable");
        lab.stack.project = Some("chosen".to_owned());
        let plan = lab.plan().unwrap();
        assert_eq!((plan.project.as_str(), plan.files.len()), ("chosen", 2));
        lab.stack.project = None;
        lab.stack.files.clear();
        lab.stack.default_project = String::new();
        assert!(lab.plan().unwrap_err().message.contains("compose_project"));
        lab.stack.default_project = default;
    });
}

#[test]
fn the_folders_own_env_is_left_to_the_variables() {
    Lab::run("services: {a: {image: x, command: '${A}'}}", |lab| {
        lab.write(".env", "A=from-dotenv\nCOMPOSE_PROFILES=x\nCOMPOSE_PROJECT_NAME=other\n");
        assert!(lab.plan().unwrap_err().message.contains("nobody sets: A;"));
    });
}

#[test]
fn unset_variables_stop_it_unless_they_may_be_blank() {
    Lab::run("services: {a: {image: 'x${A}', command: '${B} ${C:-c} ${A}'}}", |lab| {
        let error = lab.plan().unwrap_err();
        assert!(error.message.contains("nobody sets: A, B;"), "{error}");
        assert_eq!(error.chance, Chance::Final);
        lab.stack.unset_variables = UnsetVariables::Blank;
        lab.plan().unwrap();
        assert!(lab.log.text().contains("not set, and blank: A, B"), "{}", lab.log.text());
        lab.stack.unset_variables = UnsetVariables::Fail;
        lab.set(&[("A", ""), ("B", "b")]);
        lab.plan().unwrap();
    });
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_changes() {
    for (yaml, expected) in [
        ("services: {a: {image: x, environment: {P: 'ENC[AES256_GCM,data:x]'}}}", "services.a.environment.P"),
        ("services: {a: {image: [x", "compose.yaml"),
        ("services: {a: {imag: x}}", "imag"),
        ("services: {a: {image: x, profiles: [p]}}", "no active service"),
        ("services: {a: {image: 'x${A:?must be set}'}}", "set it in `env_file`"),
    ] {
        Lab::run(yaml, |lab| {
            let error = lab.plan().unwrap_err();
            assert!(error.message.contains(expected), "{error}");
            assert!(!error.message.contains('\n'), "{error}");
            assert_eq!(error.chance, Chance::Final);
        });
    }
    Lab::run("", |lab| {
        std::fs::remove_file(lab.folder.path().join("compose.yaml")).unwrap();
        assert!(lab.plan().unwrap_err().message.contains("compose.yml"));
    });
}

#[test]
fn profiles_choose_services_and_orphans_go() {
    let yaml =
        format!("services: {{a: {SLEEPER}, b: {{image: 'shiparr-test/busybox:1', command: 'false', profiles: [p]}}}}");
    Lab::run(&yaml, |lab| {
        lab.stack.profiles = vec!["p".to_owned()];
        assert_eq!(lab.plan().unwrap().services.len(), 2);
        lab.up().unwrap();
        lab.stack.profiles.clear();
        // Neither the failed container of the inactive profile counts nor a failed one-off.
        let limit = Limit::after(LIMIT);
        let files = [lab.folder.path().join("compose.yaml")];
        let run = lab.compose.call(&lab.stack, &files, Some(&lab.stack.default_project), &limit);
        assert!(!run.args(["run", "-T", "a", "false"]).capture(&limit, 1 << 20).unwrap().status.success());
        lab.up_and_wait(LIMIT).unwrap();
        lab.write("compose.yaml", &format!("services: {{c: {SLEEPER}}}"));
        lab.up().unwrap();
        let label = format!("label=com.docker.compose.project={}", lab.stack.default_project);
        let names = lab.docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"]);
        assert!(names.ends_with("-c-1") && !names.contains('\n'), "{names}");
    });
}

#[test]
fn a_health_check_decides() {
    let yaml = |test: &str| {
        format!(
            "services: {{a: {{image: 'shiparr-test/busybox:1', command: 'sh -c \"echo I am up; exec sleep 1000\"', init: true, \
             healthcheck: {{test: '{test}', interval: 300ms, retries: 2}}}}}}"
        )
    };
    Lab::run(&yaml("true"), |lab| lab.up_and_wait(LIMIT).unwrap());
    Lab::run(&yaml("false"), |lab| {
        let error = lab.up_and_wait(LIMIT).unwrap_err();
        assert!(error.message.contains("a-1 is unhealthy"), "{error}");
        assert_eq!(error.chance, Chance::Final);
        assert!(lab.log.text().contains("a-1 | I am up"), "{}", lab.log.text());
    });
    Lab::run(&yaml("sleep 100"), |lab| {
        let error = lab.up_and_wait(Duration::from_millis(700)).unwrap_err();
        assert!(error.message.contains("health_timeout") && error.message.contains("a-1 is starting"), "{error}");
    });
}

#[test]
fn an_exit_or_a_restart_fails_at_once() {
    // What is not said at once is said when the time to wait is over, in other words.
    let yaml = |rest: &str| format!("services: {{a: {{image: 'shiparr-test/busybox:1', {rest}}}}}");
    Lab::run(&yaml("command: 'sh -c \"echo why; sleep 0.3; exit 3\"'"), |lab| {
        let error = lab.up_and_wait(LIMIT).unwrap_err();
        assert!(error.message.contains("a-1 exited with 3"), "{error}");
        assert!(lab.log.text().contains("a-1 | why"), "{}", lab.log.text());
    });
    Lab::run(&yaml("restart: always, command: 'sh -c \"echo again; exit 4\"'"), |lab| {
        let error = lab.up_and_wait(LIMIT).unwrap_err();
        assert!(error.message.contains("a-1 restarts"), "{error}");
        assert!(lab.log.text().contains("a-1 | again"), "{}", lab.log.text());
    });
    Lab::run(&yaml("command: 'true'"), |lab| {
        lab.up_and_wait(LIMIT).unwrap();
        assert!(lab.log.text().contains("has exited with 0"), "{}", lab.log.text());
    });
}

#[test]
fn one_shots_must_end_with_0() {
    let yaml = |command: &str| {
        format!(
            "services: {{m: {{image: 'shiparr-test/busybox:1', command: 'sh -c \"echo migrating; {command}\"'}}, \
             a: {{image: 'shiparr-test/busybox:1', command: sleep 1000, init: true, \
             depends_on: {{m: {{condition: service_completed_successfully}}}}}}}}"
        )
    };
    Lab::run(&yaml("exit 0"), |lab| lab.up_and_wait(LIMIT).unwrap());
    Lab::run(&yaml("exit 5"), |lab| {
        let error = lab.up_and_wait(LIMIT).unwrap_err();
        assert!(error.message.contains("didn't complete successfully: exit 5"), "{error}");
        assert_eq!(error.chance, Chance::Final);
        assert!(lab.log.text().contains("m-1 | migrating"), "{}", lab.log.text());
    });
}

#[test]
fn what_can_pass_is_told_from_what_cannot() {
    for (yaml, expected, chance) in [
        ("services: {a: {image: 'localhost:1/x:1'}}", "connection refused", Chance::CanPass),
        ("services: {a: {image: 'shiparr-test/busybox:1', command: /nope}}", "/nope", Chance::Final),
        (
            "services: {a: {image: 'shiparr-test/busybox:1', networks: [n]}}\nnetworks: {n: {external: true, name: shiparr-test-absent}}",
            "shiparr-test-absent",
            Chance::Final,
        ),
    ] {
        Lab::run(yaml, |lab| {
            let error = lab.up().unwrap_err();
            assert!(error.message.contains(expected), "{error}");
            assert_eq!(error.chance, chance, "{error}");
        });
    }
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let yaml = format!(
        "services: {{a: {{image: 'shiparr-test/busybox:1', command: sleep 1000, init: true, ports: ['{port}:80']}}}}"
    );
    Lab::run(&yaml, |lab| {
        let error = lab.up().unwrap_err();
        assert!(error.message.contains("ss -ltnp"), "{error}");
        assert_eq!(error.chance, Chance::CanPass);
    });
    Lab::run(&format!("services: {{a: {SLEEPER}}}"), |lab| {
        let plan = lab.plan().unwrap();
        let gone = Client::new(Path::new("docker"), vec![("DOCKER_HOST".into(), "unix:///nowhere/docker.sock".into())]);
        let here = std::mem::replace(&mut lab.compose.client, gone);
        let error = lab.compose.up(&lab.stack, &plan, &plain(), &Limit::after(LIMIT), &mut lab.log).unwrap_err();
        lab.compose.client = here;
        assert_eq!(error.containers, Containers::Untouched);
        let error = error.error;
        assert!(error.message.contains("systemctl status docker"), "{error}");
        assert_eq!(error.chance, Chance::CanPass);
    });
}

#[test]
fn the_limit_can_pass_only_before_a_container_changed() {
    // A registry that accepts and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = format!("services: {{a: {{image: 'localhost:{}/x:1'}}}}", silent.local_addr().unwrap().port());
    let never_healthy =
        "services: {a: {image: 'shiparr-test/busybox:1', command: sleep 1000, init: true, healthcheck: {test: 'false', interval: 60s}}, \
         b: {image: 'shiparr-test/busybox:1', command: sleep 1000, init: true, depends_on: {a: {condition: service_healthy}}}}"
    .to_owned();
    for (yaml, changes) in [(yaml, false), (never_healthy, true)] {
        Lab::run(&yaml, |lab| {
            let plan = lab.plan().unwrap();
            let mut time = Duration::from_secs(3);
            loop {
                let error = lab.compose.up(&lab.stack, &plan, &plain(), &Limit::after(time), &mut lab.log).unwrap_err();
                let (UpError { error, containers }, text) = (error, lab.log.text());
                assert!(error.message.contains("time limit") && error.message.contains("`timeout`"), "{error}");
                if containers == Containers::Untouched {
                    assert_eq!(error.chance, Chance::CanPass, "{text}");
                    if !changes {
                        return;
                    }
                    // A busy host does not get to the first change so soon.
                    time *= 2;
                    assert!(time < LIMIT, "{error}\n{text}");
                } else {
                    assert!(changes && containers == Containers::Interrupted, "{containers:?}\n{text}");
                    return assert_eq!(error.chance, Chance::Final, "{text}");
                }
            }
        });
    }
}

#[test]
fn changed_sources_are_built_anew() {
    for build in [Build::Auto, Build::Always] {
        Lab::run("services: {a: {build: ., command: /content}}", |lab| {
            lab.stack.build = build;
            // From scratch: nothing has to be pulled, and the command cannot run.
            lab.write("Dockerfile", "FROM scratch\nCOPY content /content\n");
            let image = |lab: &Lab| {
                lab.docker(&["image", "inspect", "--format", "{{.Id}}", &format!("{}-a", lab.stack.default_project)])
            };
            lab.write("content", "one");
            lab.up().unwrap_err();
            let first = image(lab);
            lab.write("content", "two");
            lab.up().unwrap_err();
            assert_ne!(image(lab), first, "{build:?}: {}", lab.log.text());
        });
    }
    Lab::run("services: {a: {build: .}}", |lab| {
        lab.write("Dockerfile", "FROM shiparr-test/busybox:1\nRUN echo because; exit 3\n");
        let error = lab.up().unwrap_err();
        assert!(error.message.contains("failed to solve") && error.message.contains("3"), "{error}");
        assert!(lab.log.text().contains("because"), "{}", lab.log.text());
        lab.stack.build = Build::Never;
        assert!(lab.up().is_err());
    });
}

#[test]
fn the_asked_and_the_configured_become_arguments() {
    let mut lab = Lab::new(Vec::new(), "services: {}");
    let plan = |builds: bool| Plan { project: "x".to_owned(), builds, ..Plan::default() };
    assert_eq!(wishes(&lab.stack, &plan(false)), [""; 0]);
    assert_eq!(wishes(&lab.stack, &plan(true)), ["--build"]);
    lab.stack.asked = Asked { pull: true, recreate: true, ..Asked::default() };
    lab.stack.pull = Pull::Never;
    lab.stack.build = Build::Never;
    assert_eq!(wishes(&lab.stack, &plan(true)), ["--no-build", "--pull", "always", "--force-recreate"]);
    lab.stack.profiles = vec!["p".to_owned()];
    let folder = lab.stack.folder.to_str().unwrap();
    let expected = ["-p", "x", "--project-directory", folder, "-f", "/f", "--env-file", "/dev/null", "--profile", "p"];
    assert_eq!(arguments(&lab.stack, &["/f".into()], Some("x")), expected);
}

#[test]
fn the_layouts_that_people_have() {
    let yaml = "include: [included/compose.yaml]\n\
                services:\n  web:\n    extends: {file: base.yaml, service: base}\n    env_file: [one.env, two.env]\n    scale: 2\n    \
                networks: [default, outside]\n    depends_on: {migrate: {condition: service_completed_successfully}}\n  \
                migrate:\n    image: shiparr-test/busybox:1\n    command: 'true'\n\
                networks:\n  outside: {external: true, name: '${NETWORK}'}\n";
    Lab::run(yaml, |lab| {
        std::fs::create_dir(lab.folder.path().join("included")).unwrap();
        lab.write("included/compose.yaml", &format!("services: {{cache: {SLEEPER}}}"));
        lab.write("base.yaml", &format!("services: {{base: {SLEEPER}}}"));
        lab.write("one.env", "A=1\nB=1\n");
        lab.write("two.env", "B=2\n");
        let network = format!("{}-outside", lab.stack.default_project);
        let label = format!("com.docker.compose.project={}", lab.stack.default_project);
        lab.docker(&["network", "create", "--label", &label, &network]);
        lab.set(&[("NETWORK", &network)]);
        lab.up_and_wait(LIMIT).unwrap();
        let filter = format!("label={label}");
        let names = lab.docker(&["ps", "--filter", &filter, "--format", "{{.Label \"com.docker.compose.service\"}}"]);
        let mut names: Vec<&str> = names.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["cache", "web", "web"]);
        let first = lab.docker(&["ps", "-q", "--filter", &filter, "--filter", "label=com.docker.compose.service=web"]);
        let environment = lab.docker(&["inspect", "--format", "{{json .Config.Env}}", first.lines().next().unwrap()]);
        assert!(environment.contains("A=1") && environment.contains("B=2"), "{environment}");
    });
}
