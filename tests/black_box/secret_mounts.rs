//! `secret_files`: decrypted files that containers mount, for as long as the stack is there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::*;

const KEY: &str = "-----BEGIN KEY----- of-the-first-year -----END KEY-----";
const TOKEN: &str = "token-of-the-stack";

fn cannot_run() -> bool {
    missing(&[parts::DOCKER, parts::GIT, parts::SOPS])
}

/// `web` mounts a key, `api` has a Compose secret, and `other` neither.
struct Scene {
    daemon: Daemon,
    stack: Stack,
    repo: Repo,
    sops: Sops,
    entry: Entry,
    compose: Compose,
}

const WITH_KEY: &str = "    volumes: [\"./tls.key:/etc/tls.key:ro\"]\n";
const WITH_TOKEN: &str = "    secrets: [token]\n";

fn text(web: &str, api: &str) -> String {
    let service = |name: &str, lines: &str| {
        format!(
            "  {name}:\n    image: {IMAGE}\n    command: [\"sleep\", \"86400\"]\n    stop_signal: SIGKILL\n    network_mode: none\n    \
             restart: always\n{lines}"
        )
    };
    let secrets = if api.is_empty() { "" } else { "secrets: {token: {file: ./token.txt}}\n" };
    format!("{secrets}services:\n{}{}{}", service("web", web), service("api", api), service("other", ""))
}

impl Scene {
    fn new(compose: &Compose) -> Scene {
        let (stack, repo, sops, mut daemon) = (Stack::new(), Repo::new(), Sops::new(), Daemon::new());
        repo.write("tls.key.enc", sops.encrypt_text(KEY));
        repo.write("token.enc.txt", sops.encrypt_text(TOKEN));
        repo.commit(&[("compose.yaml", &text(WITH_KEY, WITH_TOKEN))]);
        daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        let entry = Entry::new("web", &repo.url(), &stack).field("secret_files", "[tls.key.enc, token.enc.txt]");
        daemon.project("home", std::slice::from_ref(&entry));
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        Scene { daemon, stack, repo, sops, entry, compose: compose.clone() }
    }

    fn id(&self, service: &str) -> String {
        self.stack.container(service).expect("it runs").id().to_owned()
    }

    fn mounted(&self, service: &str, path: &str) -> String {
        self.stack.container(service).expect("it is there").run(&["cat", path])
    }

    #[track_caller]
    fn assert_mounted(&self, key: &str, when: &str) {
        assert_eq!(self.mounted("web", "/etc/tls.key"), key, "{}: {when}", self.compose.name);
        assert_eq!(self.mounted("api", "/run/secrets/token"), TOKEN, "{}: {when}", self.compose.name);
        self.assert_no_plain_text(when);
    }

    /// Nothing on a disk of ours; in memory only where it is kept.
    #[track_caller]
    fn assert_no_plain_text(&self, when: &str) {
        for value in [KEY, TOKEN, "of-the-second-year"] {
            assert_eq!(contains_anywhere(self.daemon.folder(), value), Vec::<PathBuf>::new(), "{when}");
        }
    }

    fn in_memory(&self) -> Vec<PathBuf> {
        let mut found = contains_anywhere(self.daemon.runtime(), KEY);
        found.extend(contains_anywhere(self.daemon.runtime(), TOKEN));
        found
    }

    fn link(&self, name: &str) -> PathBuf {
        self.daemon.tree("home", "web").join(name)
    }

    fn restart_containers(&self) {
        docker(&["restart", &self.id("web"), &self.id("api")]);
    }

    /// What a reboot leaves: no daemon, an empty runtime folder, and containers that Docker could not start.
    fn reboot(&mut self) {
        self.daemon.kill_9();
        for entry in fs::read_dir(self.daemon.runtime()).expect("list the runtime folder") {
            let path = entry.expect("list the runtime folder").path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        // Docker starts them again by itself, as it does at its own start, and finds nothing to mount.
        for service in ["web", "api"] {
            let pid = docker(&["inspect", "--format", "{{.State.Pid}}", &self.id(service)]);
            let pid = pid.trim().parse().ok().and_then(Pid::from_raw).expect("it has a process");
            kill_process(pid, Signal::KILL).expect("kill the container's process");
        }
        let is_down = |service: &str| {
            let state = docker(&["inspect", "--format", "{{.State.Status}} {{.State.Error}}", &self.id(service)]);
            state.starts_with("exited") && state.contains("mount")
        };
        wait_until(MINUTE, "Docker to give up", || (is_down("web") && is_down("api")).then_some(()));
    }
}

#[test]
fn mounted_secrets_outlive_restarts_kills_and_recreations() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut scene = Scene::new(&compose);
        scene.assert_mounted(KEY, "deployed");
        for path in scene.in_memory() {
            assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o444);
            let folder = path.parent().expect("it has a folder");
            assert_eq!(fs::metadata(folder).expect("it is there").permissions().mode() & 0o777, 0o700);
        }
        scene.restart_containers();
        scene.assert_mounted(KEY, "docker restart");
        scene.daemon.stop();
        scene.restart_containers();
        scene.assert_mounted(KEY, "docker restart without a daemon");
        scene.daemon.start();
        scene.assert_mounted(KEY, "a restart of the daemon");
        scene.daemon.kill_9();
        scene.restart_containers();
        scene.daemon.start();
        scene.restart_containers();
        scene.assert_mounted(KEY, "a kill of the daemon");
        let id = scene.id("web");
        let output = scene.daemon.cli(&["deploy", "web", "--recreate", "--follow"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_ne!(scene.id("web"), id);
        scene.assert_mounted(KEY, "made anew");
    }
}

#[test]
fn a_rotated_secret_makes_only_those_anew_that_mount_it() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let scene = Scene::new(&compose);
        let ids = ["web", "api", "other"].map(|service| scene.id(service));
        let rotated = KEY.replace("first", "second");
        let commit = scene.repo.commit(&[("tls.key.enc", &scene.sops.encrypt_text(&rotated))]);
        scene.daemon.wait_for_commit("web", &commit);
        scene.assert_mounted(&rotated, "rotated");
        assert_ne!(scene.id("web"), ids[0], "{}", compose.name);
        assert_eq!([scene.id("api"), scene.id("other")], ids[1..], "{}", compose.name);
        // The same content, encrypted anew, is no rotation.
        let id = scene.id("web");
        let commit = scene.repo.commit(&[("tls.key.enc", &scene.sops.encrypt_text(&rotated))]);
        scene.daemon.wait_for_commit("web", &commit);
        assert_eq!(scene.id("web"), id, "{}", compose.name);
        scene.restart_containers();
        scene.assert_mounted(&rotated, "at the end");
    }
}

#[test]
fn a_failed_deployment_leaves_the_mounted_plain_text() {
    if cannot_run() {
        return;
    }
    let scene = Scene::new(&composes()[0]);
    let id = scene.id("web");
    scene.repo.write("tls.key.enc", scene.sops.encrypt_text(&KEY.replace("first", "second")));
    let before = Tree::of(&scene.daemon.tree("home", "web"));
    let commit = scene.repo.commit(&[("compose.yaml", "services: [\n")]);
    assert_eq!(scene.daemon.ended_at("web", &commit)["status"], "failed");
    before.assert_same(&Tree::of(&scene.daemon.tree("home", "web")), &[], "after broken YAML");
    scene.restart_containers();
    scene.assert_mounted(KEY, "after broken YAML");
    assert_eq!(scene.id("web"), id);
    // One of an image that cannot be had gets as far as `up`.
    let text = text(WITH_KEY, WITH_TOKEN).replace(IMAGE, "127.0.0.1:1/shiparr-test/nowhere:1");
    let commit = scene.repo.commit(&[("compose.yaml", &text)]);
    assert_eq!(scene.daemon.ended_at("web", &commit)["status"], "failed");
    before.assert_same(&Tree::of(&scene.daemon.tree("home", "web")), &[], "after an image that cannot be had");
    scene.restart_containers();
    scene.assert_mounted(KEY, "after an image that cannot be had");
    // The rotation is not forgotten.
    let commit = scene.repo.commit(&[("compose.yaml", &self::text(WITH_KEY, WITH_TOKEN))]);
    scene.daemon.wait_for_commit("web", &commit);
    scene.assert_mounted(&KEY.replace("first", "second"), "after the next good one");
}

#[test]
fn after_a_reboot_they_are_made_again_and_what_could_not_start_is_started() {
    if cannot_run() || missing(&[parts::ROOT]) {
        return;
    }
    for compose in composes() {
        let mut scene = Scene::new(&compose);
        let other = scene.id("other");
        scene.reboot();
        assert!(fs::symlink_metadata(scene.link("tls.key")).expect("it is there").is_symlink());
        scene.daemon.start();
        wait_until(MINUTE, "the containers to be started", || {
            let is_running = |service: &str| scene.stack.container(service).is_some_and(|one| one.is_running());
            (is_running("web") && is_running("api")).then_some(())
        });
        scene.assert_mounted(KEY, "after a reboot");
        assert_eq!(scene.id("other"), other);
        assert_eq!(scene.daemon.deployments_of("web").len(), 1, "no deployment was needed");
        scene.daemon.succeeded(scene.daemon.deploy("web"));
    }
}

#[test]
fn run_once_starts_what_could_not_start_after_a_reboot() {
    if cannot_run() || missing(&[parts::ROOT]) {
        return;
    }
    let mut scene = Scene::new(&composes()[0]);
    scene.reboot();
    let output = scene.daemon.cli(&["run", "--once"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    scene.assert_mounted(KEY, "after a reboot");
}

#[test]
fn before_docker_starts_they_are_made_without_a_daemon_and_left_to_one_that_runs() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::new(&composes()[0]);
    let restore = |scene: &Scene, expected: i32| {
        let output = scene.daemon.cli(&["restore-secrets"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    let said = restore(&scene, 0);
    assert!(said.contains("Shiparr runs") && said.contains("nothing to do"), "{said}");
    scene.daemon.stop();
    assert!(restore(&scene, 0).contains("are there: nothing to do"));
    let kept = scene.daemon.runtime().join("secret-files");
    let gone = |_: &Scene| fs::remove_dir_all(&kept).expect("empty the runtime folder");
    gone(&scene);
    let said = restore(&scene, 0);
    assert!(said.contains("made the secret files of home/web"), "{said}");
    scene.restart_containers();
    scene.assert_mounted(KEY, "made without a daemon");
    scene.daemon.start();
    assert_eq!(scene.daemon.deployments_of("web").len(), 1, "no deployment was needed");
    scene.daemon.stop();

    gone(&scene);
    scene.daemon.env("SOPS_AGE_KEY_FILE", "/nonexistent/age.key");
    let said = restore(&scene, 1);
    assert!(said.contains("home/web: ") && said.contains("tls.key.enc") && said.contains("tries again"), "{said}");
}

#[test]
fn where_nothing_was_ever_deployed_no_secret_file_is_missed() {
    let daemon = Daemon::new();
    let data = daemon.data();
    fs::remove_dir(&data).expect("it is empty");
    let output = daemon.cli(&["restore-secrets"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("nothing to do"), "{said}");
    assert!(!data.exists(), "nothing is made");
}

#[test]
fn a_reboot_that_empties_the_folder_with_no_project_file_left() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::new(&composes()[0]);
    scene.daemon.change_project("home", &[]);
    wait_until(MINUTE, "it to be an orphan", || (scene.daemon.repository("web")["orphaned"] == true).then_some(()));
    scene.daemon.stop();
    let kept = scene.daemon.runtime().join("secret-files");
    fs::remove_dir_all(&kept).expect("empty the runtime folder");
    scene.daemon.start();
    wait_until(MINUTE, "them to be made again", || (scene.in_memory().len() == 2).then_some(()));
    scene.restart_containers();
    scene.assert_mounted(KEY, "an orphan's");
    let output = scene.daemon.cli(&["prune", "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(scene.in_memory().is_empty(), "{:?}", scene.in_memory());
    for name in ["tls.key", "token.txt"] {
        assert!(fs::symlink_metadata(scene.link(name)).is_err(), "{name} is still there");
    }
    assert_eq!(scene.stack.containers().iter().filter(|container| container.is_running()).count(), 3);
}

#[test]
fn what_is_not_named_any_more_goes_with_the_next_success() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let scene = Scene::new(&compose);
        assert_eq!(scene.in_memory().len(), 2);
        // Only the configuration: the mount would lead nowhere.
        let without = scene.entry.clone().field("secret_files", "[token.enc.txt]");
        scene.daemon.change_project("home", std::slice::from_ref(&without));
        let failed = scene.daemon.wait_for("web", "failed");
        let error = failed["error"].as_str().expect("an error");
        assert!(error.contains("tls.key") && error.contains("`secret_files: [tls.key.enc]`"), "{error}");
        scene.restart_containers();
        scene.assert_mounted(KEY, "refused");
        // And from the compose file.
        let commit = scene.repo.commit(&[("compose.yaml", &text("", WITH_TOKEN))]);
        scene.daemon.wait_for_commit("web", &commit);
        wait_until(SHORT, "the plain text to go", || (scene.in_memory().len() == 1).then_some(()));
        assert!(fs::symlink_metadata(scene.link("tls.key")).is_err());
        assert_eq!(scene.mounted("api", "/run/secrets/token"), TOKEN);
        scene.daemon.change_project("home", &[scene.entry.clone().without("secret_files")]);
        let commit = scene.repo.commit(&[("compose.yaml", &text("", ""))]);
        scene.daemon.wait_for_commit("web", &commit);
        wait_until(SHORT, "the plain text to go", || scene.in_memory().is_empty().then_some(()));
        assert!(fs::symlink_metadata(scene.link("token.txt")).is_err());
    }
}

#[test]
fn a_mount_of_what_is_not_there_later_is_refused_with_the_line_to_write() {
    if cannot_run() {
        return;
    }
    let (stack, repo, sops, mut daemon) = (Stack::new(), Repo::new(), Sops::new(), Daemon::new());
    daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
    repo.write("app.env.enc", sops.encrypt(Format::Dotenv, &[("SECRET", TOKEN)]));
    repo.write("tls.key.enc", sops.encrypt_text(KEY));
    let mounts = |path: &str| Stack::compose_with("1", &format!("    volumes: [\"./{path}:/mounted:ro\"]\n"));
    repo.commit(&[("compose.yaml", &mounts("app.env"))]);
    let entry = Entry::new("web", &repo.url(), &stack).field("env_file", "app.env.enc");
    daemon.project("home", std::slice::from_ref(&entry));
    daemon.start();
    let failed = daemon.wait_for("web", "failed");
    let error = failed["error"].as_str().expect("an error");
    assert!(stack.containers().is_empty());
    assert!(Tree::of(&daemon.tree("home", "web")).paths().is_empty());
    daemon.change_project("home", &[written(&entry, error)]);
    daemon.wait_for("web", "success");
    let read = || stack.container("web").expect("it runs").run(&["cat", "/mounted"]);
    assert_eq!(read(), format!("SECRET={TOKEN}\n"));
    docker(&["restart", stack.container("web").expect("it runs").id()]);
    assert_eq!(read(), format!("SECRET={TOKEN}\n"));

    // A file that is still encrypted.
    let commit = repo.commit(&[("compose.yaml", &mounts("tls.key.enc"))]);
    let failed = daemon.ended_at("web", &commit);
    let error = failed["error"].as_str().expect("an error");
    assert!(error.contains("`secret_files: [tls.key.enc]`") && error.contains("mount ./tls.key instead"), "{error}");
    daemon.change_project("home", &[entry.field("secret_files", "[tls.key.enc]")]);
    let commit = repo.commit(&[("compose.yaml", &mounts("tls.key"))]);
    daemon.wait_for_commit("web", &commit);
    assert_eq!(read(), KEY);
    assert_eq!(contains_anywhere(daemon.folder(), TOKEN), Vec::<PathBuf>::new());
}

#[test]
fn a_file_of_somebody_elses_under_the_links_name_is_refused_and_stays() {
    if cannot_run() {
        return;
    }
    let (stack, repo, sops, mut daemon) = (Stack::new(), Repo::new(), Sops::new(), Daemon::new());
    daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
    repo.write("tls.key.enc", sops.encrypt_text(KEY));
    repo.commit(&[("compose.yaml", &Stack::compose_with("1", WITH_KEY))]);
    let folder = daemon.tree("home", "web");
    fs::create_dir_all(&folder).expect("make a folder");
    fs::write(folder.join("tls.key"), "decrypted by hand, years ago").expect("write a file");
    let before = Tree::of(&folder);
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("secret_files", "tls.key.enc")]);
    daemon.start();
    let failed = daemon.wait_for("web", "failed");
    let error = failed["error"].as_str().expect("an error");
    assert!(error.contains("tls.key"), "{error}");
    before.assert_same(&Tree::of(&folder), &[], "refused");
    fs::remove_file(folder.join("tls.key")).expect("remove a file");
    daemon.succeeded(daemon.deploy("web"));
    assert_eq!(stack.container("web").expect("it runs").run(&["cat", "/etc/tls.key"]), KEY);
}
