//! Docker that hangs, floods or is away, disks that are full, and kills at every step.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::*;

fn one(repo: &Repo, stack: &Stack, fake: &Fake) -> Daemon {
    let mut daemon = Daemon::new();
    daemon.use_fake(fake).project("home", &[Entry::new("web", &repo.url(), stack).rarely_checked()]);
    daemon
}

#[test]
fn a_hanging_up_ends_with_the_limit_and_the_next_commit_goes_on() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake);
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("timeout", "5")]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());

    fake.rule("docker-compose", "* up *", "hang");
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let deployment = daemon.ended_at("web", &commit);
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("limit"), "{deployment}");
    assert!(deployment["duration_seconds"].as_f64().expect("a number") < 20.0, "{deployment}");
    assert!(stack.container("web").is_some_and(|container| container.is_running()));

    fake.no_rules();
    let next = repo.commit(&[("compose.yaml", &Stack::compose("3"))]);
    daemon.wait_for_commit("web", &next);
}

#[test]
fn a_compose_that_ignores_sigterm_is_killed_with_its_group() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake);
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("timeout", "2")]);
    fake.rule("docker-compose", "* config *", "stubborn");
    daemon.start();
    let begin = Instant::now();
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    assert_eq!(processes_of(&daemon, "86400"), 0, "no process of the group is left");
}

/// How many processes that a daemon started have this text in their command line.
fn processes_of(daemon: &Daemon, text: &str) -> usize {
    let of_the_daemon = format!("HOME={}\0", daemon.home().display());
    let found = std::fs::read_dir("/proc").expect("list the processes").flatten().filter(|process| {
        let read = |name: &str| std::fs::read(process.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&read("environ")).contains(&of_the_daemon)
            && String::from_utf8_lossy(&read("cmdline")).contains(text)
    });
    found.count()
}

#[test]
fn a_kill_ends_compose_too() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* up *", "hang");
    let mut daemon = one(&repo, &stack, &fake);
    daemon.start();
    let wait_for = |daemon: &Daemon, count: usize| {
        wait_until(MINUTE, "the `up`, or its end", || (processes_of(daemon, "86400") == count).then_some(()));
    };
    wait_for(&daemon, 1);
    daemon.kill_9();
    wait_for(&daemon, 0);

    fake.no_rules();
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
}

#[test]
fn a_flooding_compose_neither_fills_the_database_nor_the_memory() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* up *", "flood-then-real");
    let mut daemon = one(&repo, &stack, &fake);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let deployment = daemon.wait_for("web", "success");
    let log = daemon.log_of(deployment["id"].as_i64().expect("an id"));
    let lines = log.lines().filter(|line| line.contains("the same line again")).count();
    assert!((1..=20_000).contains(&lines), "{lines} lines are kept");
    assert!(status_kib(&daemon, "VmHWM") < 200 * 1024, "{} KiB", status_kib(&daemon, "VmHWM"));
    daemon.assert_well();
}

#[test]
fn a_compose_that_floods_its_configuration_fails_the_deployment_only() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* config *", "flood");
    let mut daemon = one(&repo, &stack, &fake);
    daemon.start();
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed", "{deployment}");
    assert!(status_kib(&daemon, "VmHWM") < 300 * 1024, "{} KiB", status_kib(&daemon, "VmHWM"));
    fake.no_rules();
    daemon.succeeded(daemon.deploy("web"));
}

#[test]
fn a_docker_that_hangs_at_everything_holds_neither_the_api_nor_the_shutdown() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    for program in ["docker", "docker-compose"] {
        fake.rule(program, "*", "hang");
    }
    let mut daemon = one(&repo, &stack, &fake);
    daemon.env("Shiparr_SHUTDOWN_TIMEOUT", "2");
    daemon.start();
    wait_until(SHORT, "a row", || daemon.deployments_of("web").pop());
    let begin = Instant::now();
    daemon.assert_well();
    assert!(begin.elapsed() < Duration::from_secs(2), "Docker is never asked by the request: {:?}", begin.elapsed());
    let begin = Instant::now();
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

fn status_kib(daemon: &Daemon, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field is there");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number of KiB")
}

#[test]
fn docker_goes_away_and_comes_back() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, mut proxy) = (Stack::new(), DockerProxy::start());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.env("DOCKER_HOST", proxy.host());
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());

    proxy.close();
    let commit = repo.commit(&[("compose.yaml", &Stack::compose("2"))]);
    let waiting = daemon.wait_for("web", "pending");
    let id = waiting["id"].as_i64().expect("an id");
    let reason =
        wait_until(MINUTE, "the reason to be shown", || daemon.deployment(id)["error"].as_str().map(str::to_owned));
    assert!(reason.to_lowercase().contains("docker"), "{reason}");
    wait_until(MINUTE, "health to say so", || (daemon.get("/api/health")["status"] == "degraded").then_some(()));
    daemon.wait_for_checks("web", 2);
    assert_eq!(daemon.deployment(id)["status"], "pending", "it stays pending while Docker does not answer");

    proxy.open();
    let deployment = daemon.succeeded(id);
    assert_eq!(deployment["commit_hash"], commit);
    assert_eq!(stack.version().as_deref(), Some("2"));
    wait_until(MINUTE, "health to be well again", || (daemon.get("/api/health")["status"] == "ok").then_some(()));
    for word in ["deployments wait", "Docker answers again"] {
        assert_eq!(daemon.log().matches(word).count(), 1, "told once, whoever noticed it: {}", daemon.log());
    }
}

#[test]
fn a_row_that_waits_for_docker_survives_a_kill() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, mut proxy) = (Stack::new(), DockerProxy::start());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    proxy.close();
    daemon.env("DOCKER_HOST", proxy.host());
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.start();
    let id = daemon.wait_for("web", "pending")["id"].as_i64().expect("an id");
    daemon.kill_9();
    proxy.open();
    daemon.start();
    let deployment = daemon.succeeded(id);
    assert_eq!((&deployment["trigger"], &deployment["attempt"]), (&"poll".into(), &1.into()));
    assert_eq!(stack.version().as_deref(), Some("1"));
}

/// A small file system in memory over a folder, for as long as the value lives.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn over(folder: &std::path::Path, size: &str) -> Option<SmallDisk> {
        let options = format!("size={size},mode=0755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(folder.to_owned()))
    }

    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join("ballast")).expect("make the ballast");
        let block = [0_u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("remove the ballast");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_fails_deployments_and_loses_no_accepted_one() {
    if missing(&[parts::DOCKER, parts::GIT, parts::ROOT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    let Some(disk) = SmallDisk::over(&daemon.data(), "12m") else {
        assert!(!all_required(), "a tmpfs can be mounted");
        eprintln!("not run, because nothing can be mounted here");
        return;
    };
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());

    // A commit that does not fit: files that do not compress.
    let noise: String = {
        let mut bytes = vec![0_u8; 6 << 20];
        getrandom::fill(&mut bytes).expect("random bytes");
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
    };
    let big = repo.commit(&[("noise", &noise), ("compose.yaml", &Stack::compose("2"))]);
    let deployment = daemon.ended_at_or_failed("web", &big);
    assert_eq!(deployment["status"], "failed", "{deployment}");
    assert_eq!(stack.version().as_deref(), Some("1"));
    repo.remove("noise");
    let small = repo.rewrite(&[("compose.yaml", &Stack::compose("3"))]);
    daemon.wait_for_commit("web", &small);

    // A disk without a free byte.
    disk.fill();
    let answers: Vec<Answer> = (0..5).map(|_| daemon.post("/api/projects/home/repositories/web/deploy")).collect();
    daemon.assert_well_or_unusable();
    disk.free();
    for answer in answers {
        match answer.status {
            202 => drop(daemon.ended(answer.json()["deployment_id"].as_i64().expect("an id"))),
            status => assert!((500..=599).contains(&status), "{status}: {}", answer.text()),
        }
    }
    let last = repo.commit(&[("compose.yaml", &Stack::compose("4"))]);
    daemon.wait_for_commit("web", &last);
    daemon.succeeded(daemon.deploy("web"));
    daemon.stop();
    drop(disk);
}

/// Where in a deployment the daemon is killed, and how one knows that it is there.
struct Step {
    name: &'static str,
    program: &'static str,
    pattern: &'static str,
    action: &'static str,
}

#[test]
fn a_kill_in_any_step_loses_no_trigger_and_leaves_no_secret() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    const VALUE: &str = "value-that-a-kill-must-not-leave";
    let steps = [
        Step { name: "decrypt", program: "sops", pattern: "*", action: "hold" },
        Step { name: "decrypted", program: "sops", pattern: "*", action: "hold-after" },
        Step { name: "config", program: "docker-compose", pattern: "* config *", action: "hold" },
        Step { name: "before up", program: "docker-compose", pattern: "* up *", action: "hold" },
        Step { name: "after up", program: "docker-compose", pattern: "* up *", action: "hold-after" },
        Step { name: "ps", program: "docker", pattern: "* ps *", action: "hold" },
        Step { name: "prune", program: "docker", pattern: "* image prune *", action: "hold" },
    ];
    let (stack, sops) = (Stack::new(), Sops::new());
    let service = |version: usize| Stack::compose_with(&version.to_string(), "      SECRET: \"${SECRET}\"\n");
    let repo = Repo::new();
    repo.write(".env.enc", sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]));
    repo.commit(&[("compose.yaml", &service(0))]);
    let server = GitServer::start(repo.root());
    let mut daemon = Daemon::new();
    let fake = Fake::new();
    daemon.use_fake(&fake).env("SOPS_AGE_KEY_FILE", sops.key_file()).env("Shiparr_ENABLE_IMAGE_PRUNE", "true");
    let entry = Entry::new("web", &server.url("stack"), &stack).rarely_checked().field("env_file", ".env.enc");
    daemon.project("home", &[entry]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());

    let revive = |daemon: &mut Daemon, id: i64, step: &str, version: usize| {
        daemon.kill_9();
        fake.no_rules();
        fake.release();
        daemon.start();
        let tip = repo.tip();
        let revived = wait_until(MINUTE, &format!("success after a kill at {step}"), || {
            let newest = daemon.deployments_of("web").into_iter().next()?;
            Some(newest).filter(|newest| newest["status"] == "success" && newest["commit_hash"] == tip.as_str())
        });
        let killed = daemon.deployment(id);
        if revived["id"] != killed["id"] {
            assert_eq!(killed["status"], "failed", "{step}: {killed}");
            let error = killed["error"].as_str().expect("an error");
            assert!(error.starts_with("interrupted"), "{step}: {error}");
        }
        assert_eq!(stack.version(), Some(version.to_string()), "{step}");
        assert_eq!(stack.containers().len(), 1, "{step}");
        assert_eq!(contains_anywhere(daemon.runtime(), VALUE), Vec::<std::path::PathBuf>::new(), "{step}");
        assert_eq!(contains_anywhere(daemon.folder(), VALUE), Vec::<std::path::PathBuf>::new(), "{step}");
        assert!(std::fs::symlink_metadata(daemon.tree("home", "web").join(".env")).is_err(), "{step}: a link is left");
        fake.hold_again();
    };

    // In the fetch, where the remote hangs.
    repo.commit(&[("compose.yaml", &service(1))]);
    server.fault(Requests::Fetches, Fault::Hang);
    let asked = server.requests().len();
    let id = daemon.deploy("web");
    wait_until(MINUTE, "the fetch", || {
        server.requests()[asked..].iter().any(|request| request.text().contains("want ")).then_some(())
    });
    server.fault(Requests::All, Fault::None);
    revive(&mut daemon, id, "fetch", 1);

    for (number, step) in steps.iter().enumerate() {
        let version = number + 2;
        repo.commit(&[("compose.yaml", &service(version))]);
        let seen = fake.calls().len();
        fake.rule(step.program, step.pattern, step.action);
        let id = daemon.deploy("web");
        wait_until(MINUTE, step.name, || {
            let words: Vec<&str> = step.pattern.split_whitespace().filter(|word| *word != "*").collect();
            let calls = fake.calls();
            let is_it = |call: &&Call| {
                call.name == step.program
                    && words.iter().all(|word| call.arguments.iter().any(|argument| argument == word))
            };
            calls[seen.min(calls.len())..].iter().find(is_it).map(drop)
        });
        if step.action == "hold-after" && step.name == "after up" {
            wait_until(MINUTE, "the new container", || (stack.version()? == version.to_string()).then_some(()));
        }
        revive(&mut daemon, id, step.name, version);
    }
}

#[test]
fn a_kill_while_the_stack_gets_healthy_is_made_good() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let check = "    healthcheck: {test: [CMD, test, -e, /tmp/well], interval: 1s, start_period: 60s}\n";
    let service = Stack::compose_with("1", check).replace(
        "[\"sleep\", \"86400\"]",
        "[\"sh\", \"-c\", \"mkdir -p /tmp; sleep 4; touch /tmp/well; sleep 86400\"]",
    );
    let repo = Repo::with(&[("compose.yaml", &service)]);
    let mut daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    wait_until(MINUTE, "the container", || stack.version());
    assert_eq!(daemon.repository("web")["status"], "running");
    daemon.kill_9();
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let rows = daemon.deployments_of("web");
    assert_eq!(rows.len(), 2);
    assert!(rows[1]["error"].as_str().expect("an error").starts_with("interrupted"), "{}", rows[1]);
}

#[test]
fn a_deployment_that_kills_the_daemon_twice_is_not_tried_at_once_again() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* up *", "hold");
    let mut daemon = one(&repo, &stack, &fake);
    daemon.start();
    for tries in 1..=2 {
        wait_until(MINUTE, "it to run", || {
            (daemon.deployments_of("web").len() == tries && daemon.deployments_of("web")[0]["status"] == "running")
                .then_some(())
        });
        daemon.kill_9();
        daemon.start();
    }
    let rows = daemon.deployments_of("web");
    assert_eq!(rows.len(), 2, "the third waits for its pause: {rows:?}");
    assert!(rows.iter().all(|row| row["status"] == "failed"), "{rows:?}");
    assert_eq!(daemon.repository("web")["status"], "failed");
    fake.release();
    daemon.succeeded(daemon.deploy("web"));
}

#[test]
fn a_trigger_that_was_accepted_survives_a_kill_right_after_its_answer() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let entry = Entry::new("web", &repo.url(), &stack).rarely_checked().field("settle_time", "0");
    let mut daemon = Daemon::with(&[entry]);
    daemon.wait_for_commit("web", &repo.tip());
    for _ in 0..3 {
        let id = daemon.deploy("web");
        daemon.kill_9();
        daemon.start();
        let deployment = daemon.ended(id);
        if deployment["status"] == "failed" {
            let error = deployment["error"].as_str().expect("an error");
            assert!(error.starts_with("interrupted"), "{deployment}");
        }
        wait_until(MINUTE, "what was asked for to be done", || {
            let newest = daemon.deployments_of("web").remove(0);
            (newest["id"].as_i64() >= Some(id) && newest["status"] == "success").then_some(())
        });
    }
}
