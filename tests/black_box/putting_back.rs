//! A deployment that fails before it changed a container leaves every file as it was.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::support::*;

const GOOD: &str = "      SECRET: \"${SECRET}\"\n";
/// What the bad commit removes or replaces by something of another kind.
const MADE_AGAIN: [&str; 5] = ["gone", "gone/deep", "gone/deep/old", "link", "becomes-a-folder"];

/// A stack that is deployed, and a tree in which people and containers have been at work since.
struct Scene {
    daemon: Daemon,
    stack: Stack,
    repo: Repo,
    fake: Fake,
    sops: Sops,
    round: usize,
}

impl Scene {
    fn new() -> Scene {
        let mut scene = Scene::unstarted();
        scene.daemon.start();
        scene.next_good();
        scene
    }

    fn unstarted() -> Scene {
        let (stack, fake, sops, repo) = (Stack::new(), Fake::new(), Sops::new(), Repo::new());
        let mut daemon = Daemon::new();
        daemon.use_fake(&fake).env("SOPS_AGE_KEY_FILE", sops.key_file()).env("Shiparr_SHUTDOWN_TIMEOUT", "2");
        let entry = Entry::new("web", &repo.url(), &stack).field("env_file", ".env.enc");
        daemon.project("home", &[entry]);
        let scene = Scene { daemon, stack, repo, fake, sops, round: 0 };
        scene.write_good();
        scene.repo.commit_all("The first");
        scene
    }

    fn tree(&self) -> PathBuf {
        self.daemon.tree("home", "web")
    }

    fn write_good(&self) {
        let repo = &self.repo;
        let clone = repo.clone_folder();
        for path in ["link", "becomes-a-folder", "script", "plain.env", "data"] {
            let path = clone.join(path);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        let _ = fs::remove_dir_all(clone.join("new"));
        let version = format!("good {}", self.round);
        repo.write("compose.yaml", Stack::compose_with(&version, GOOD));
        repo.write(".env.enc", self.sops.encrypt(Format::Dotenv, &[("SECRET", "a-secret-value")]));
        for path in
            ["conf/app.conf", "conf/owned.conf", "conf/untouched", "gone/deep/old", "becomes-a-folder", "script"]
        {
            repo.write(path, format!("{path}, as it was committed in round {}\n", self.round));
        }
        symlink("conf", clone.join("link")).expect("make a link");
    }

    /// A good commit, deployed, and then the host's own changes.
    fn next_good(&mut self) {
        self.round += 1;
        self.write_good();
        let commit = self.repo.commit_all("A good one");
        self.daemon.wait_for_commit("web", &commit);
        assert_eq!(self.stack.version(), Some(format!("good {}", self.round)));
        let tree = self.tree();
        let put = |path: &str, text: &str| {
            fs::create_dir_all(tree.join(path).parent().expect("it has a folder")).expect("make a folder");
            fs::write(tree.join(path), text).expect("write a file");
        };
        put("conf/app.conf", "changed on the host\n");
        put("data/database", "precious");
        put("gone/kept-by-somebody", "untracked, in a folder of ours");
        fs::remove_file(tree.join("gone/kept-by-somebody")).expect("remove a file");
        for (path, mode, owner) in
            [("conf/owned.conf", 0o640, 1234), ("conf/untouched", 0o604, 4321), ("script", 0o700, 0)]
        {
            chown(tree.join(path), Some(owner), Some(owner)).expect("change the owner");
            fs::set_permissions(tree.join(path), Permissions::from_mode(mode)).expect("change the mode");
        }
        fs::set_permissions(tree.join("gone/deep"), Permissions::from_mode(0o750)).expect("change the mode");
    }

    /// Writes a commit into the clone that changes, adds, removes and replaces files, and in which `bad` is bad.
    fn write_bad(&self, bad: impl Fn(&Scene)) {
        let repo = &self.repo;
        repo.write("compose.yaml", Stack::compose_with("bad", GOOD));
        for path in ["conf/app.conf", "conf/owned.conf"] {
            repo.write(path, "as the bad commit wants it\n");
        }
        repo.remove("gone");
        for path in ["link", "becomes-a-folder"] {
            fs::remove_file(repo.clone_folder().join(path)).expect("remove a file");
        }
        symlink("data", repo.clone_folder().join("link")).expect("make a link");
        repo.write("becomes-a-folder/file", "new");
        repo.write("new/folder/file", "new");
        fs::set_permissions(repo.clone_folder().join("script"), Permissions::from_mode(0o755))
            .expect("make it executable");
        bad(self);
    }

    /// Commits something bad, and expects that it fails with these words and leaves nothing.
    #[track_caller]
    fn fails_without_a_trace(&mut self, when: &str, words: &[&str], bad: impl Fn(&Scene)) {
        self.fails_and_makes_again(when, words, &[], bad);
    }

    /// The same where more paths are removed by the commit.
    #[track_caller]
    fn fails_and_makes_again(&mut self, when: &str, words: &[&str], more: &[&str], bad: impl Fn(&Scene)) {
        self.write_bad(bad);
        let (before, id, saved) = (Tree::of(&self.tree()), self.container_id(), self.saved());
        let commit = self.repo.commit_all(when);
        let failed = self.daemon.ended_at_or_failed("web", &commit);
        let error = failed["error"].as_str().unwrap_or_else(|| panic!("{when}: {failed}"));
        assert!(words.iter().all(|word| error.contains(word)), "{when}: {words:?} in: {error}");
        before.assert_same(&Tree::of(&self.tree()), &[&MADE_AGAIN, more].concat(), when);
        assert_eq!(self.container_id(), id, "{when}");
        assert_eq!(self.saved(), saved, "{when}: nothing was replaced, so nothing is saved");
        assert_eq!(contains_anywhere(self.daemon.runtime(), "a-secret-value"), Vec::<PathBuf>::new(), "{when}");
        self.fake.no_rules();
        self.next_good();
    }

    fn saved(&self) -> Vec<PathBuf> {
        let mut saved = files_below(&self.daemon.data().join("saved"));
        saved.sort();
        saved
    }

    fn container_id(&self) -> String {
        self.stack.container("web").expect("it runs").id().to_owned()
    }

    /// Commits what would be good, and holds its deployment between the checkout and `up`; answers what was there, and
    /// the deployment.
    fn held_before_up(&mut self) -> (Tree, i64) {
        self.write_bad(|_| {});
        self.fake.hold_again();
        self.fake.rule("docker-compose", "* config *", "hold");
        let before = Tree::of(&self.tree());
        let calls = self.fake.calls_with("docker-compose", "config").len();
        let commit = self.repo.commit_all("Held");
        wait_until(MINUTE, "`config`", || {
            (self.fake.calls_with("docker-compose", "config").len() > calls).then_some(())
        });
        assert_eq!(fs::read_to_string(self.tree().join("new/folder/file")).expect("it is checked out"), "new");
        let rows = self.daemon.deployments_of("web");
        assert_eq!(rows[0]["commit_hash"], commit.as_str(), "{rows:?}");
        (before, rows[0]["id"].as_i64().expect("an id"))
    }

    fn release(&self) {
        self.fake.no_rules();
        self.fake.release();
    }
}

fn cannot_run() -> bool {
    missing(&[parts::DOCKER, parts::GIT, parts::SOPS, parts::ROOT])
}

#[test]
fn each_commit_that_cannot_be_deployed_leaves_the_files_as_they_were() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::new();
    scene.fails_without_a_trace("an unset variable", &["NOBODY_SETS_IT"], |scene| {
        let lines = format!("{GOOD}      OTHER: \"${{NOBODY_SETS_IT}}\"\n");
        scene.repo.write("compose.yaml", Stack::compose_with("bad", &lines));
    });
    scene.fails_without_a_trace("an env_file of another key", &[".env.enc"], |scene| {
        scene.repo.write(".env.enc", Sops::new().encrypt(Format::Dotenv, &[("SECRET", "a-secret-value")]));
    });
    scene.fails_without_a_trace("a value that is still encrypted", &["SECRET"], |scene| {
        scene.repo.write("plain.env", scene.sops.encrypt(Format::Dotenv, &[("SECRET", "a-secret-value")]));
        scene.repo.write("compose.yaml", Stack::compose_with("bad", "    env_file: plain.env\n"));
    });
    scene.fails_without_a_trace("broken YAML", &["compose.yaml"], |scene| {
        scene.repo.write("compose.yaml", "services: [\n");
    });
    let gone = ["compose.yaml"];
    scene.fails_and_makes_again("no compose file", &gone, &gone, |scene| scene.repo.remove("compose.yaml"));
    scene.fails_without_a_trace("an image that cannot be had", &["docker compose up"], |scene| {
        let text = Stack::compose_with("bad", GOOD).replace(IMAGE, "127.0.0.1:1/shiparr-test/nowhere:1");
        scene.repo.write("compose.yaml", text);
    });
    let volume = format!("{}-of-another", scene.stack.name);
    docker(&["volume", "create", "--label", "com.docker.compose.project=somebody-else", &volume]);
    scene.fails_without_a_trace("a volume of another project", &["somebody-else"], |scene| {
        let text = Stack::compose_with("bad", &format!("{GOOD}    volumes: [\"shared:/v\"]\n"));
        scene.repo.write("compose.yaml", format!("{text}volumes: {{shared: {{name: {volume}}}}}\n"));
    });
    docker(&["volume", "rm", &volume]);
    scene.fails_without_a_trace("a collision", &["data/database"], |scene| {
        scene.repo.write("data/database", "not what lies there");
    });
}

#[test]
fn a_build_that_fails_leaves_the_files_as_they_were() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::new();
    scene.fails_without_a_trace("a build that fails", &["docker compose"], |scene| {
        scene.repo.write("Dockerfile", format!("FROM {IMAGE}\nRUN exit 7\n"));
        let text = Stack::compose_with("bad", GOOD).replace(&format!("image: {IMAGE}"), "build: .");
        scene.repo.write("compose.yaml", text);
    });
}

#[test]
fn a_cancelled_deployment_leaves_the_files_as_they_were() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::new();
    let id = scene.container_id();
    let (before, held) = scene.held_before_up();
    let output = scene.daemon.cli(&["cancel", "web"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let failed = scene.daemon.failed(held);
    assert!(failed["error"].as_str().expect("an error").starts_with("cancelled"), "{failed}");
    before.assert_same(&Tree::of(&scene.tree()), &MADE_AGAIN, "cancelled");
    assert_eq!(scene.container_id(), id);
    scene.release();
    scene.next_good();
}

#[test]
fn a_daemon_that_stops_before_up_leaves_the_files_as_they_were() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::new();
    let id = scene.container_id();
    let (before, _) = scene.held_before_up();
    scene.daemon.stop();
    before.assert_same(&Tree::of(&scene.tree()), &MADE_AGAIN, "stopped");
    assert_eq!(scene.container_id(), id);
    scene.release();
    scene.daemon.start();
    scene.daemon.wait_for_commit("web", &scene.repo.tip());
    scene.next_good();
}

#[test]
fn a_daemon_that_stops_while_up_has_changed_nothing_leaves_the_files_as_they_were() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::new();
    let id = scene.container_id();
    scene.write_bad(|_| {});
    scene.fake.rule("docker-compose", "* up *", "hang");
    let before = Tree::of(&scene.tree());
    let calls = scene.fake.calls_with("docker-compose", "up").len();
    scene.repo.commit_all("Held");
    wait_until(MINUTE, "`up`", || (scene.fake.calls_with("docker-compose", "up").len() > calls).then_some(()));
    scene.daemon.stop();
    before.assert_same(&Tree::of(&scene.tree()), &MADE_AGAIN, "stopped");
    assert_eq!(scene.container_id(), id);
    scene.fake.no_rules();
    scene.daemon.start();
    scene.daemon.wait_for_commit("web", &scene.repo.tip());
    assert_eq!(scene.stack.version().as_deref(), Some("bad"), "it was stopped, and is not bad");
    scene.next_good();
}

#[test]
fn a_deployment_past_its_limit_before_up_leaves_the_files_as_they_were() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::unstarted();
    let entry = Entry::new("web", &scene.repo.url(), &scene.stack).field("env_file", ".env.enc").field("timeout", "8");
    scene.daemon.project("home", &[entry]);
    scene.daemon.start();
    scene.next_good();
    for program in ["sops", "docker-compose"] {
        let pattern = if program == "sops" { "*" } else { "* config *" };
        scene.fake.rule(program, pattern, "hang");
        scene.fails_without_a_trace(&format!("{program} hangs"), &["limit"], |_| {});
    }
}

#[test]
fn a_kill_before_up_is_made_good_at_the_start_before_docker_answers() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::new();
    let id = scene.container_id();
    let (before, held) = scene.held_before_up();
    scene.daemon.kill_9();
    scene.daemon.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    scene.daemon.start();
    wait_until(MINUTE, "the files to be put back", || {
        scene.daemon.log_of(held).contains("were put back").then_some(())
    });
    wait_until(MINUTE, "the next try to wait for Docker", || {
        (scene.daemon.repository("web")["status"] == "pending").then_some(())
    });
    before.assert_same(&Tree::of(&scene.tree()), &MADE_AGAIN, "killed");
    let killed = scene.daemon.deployment(held);
    assert!(killed["error"].as_str().expect("an error").starts_with("interrupted"), "{killed}");
    assert_eq!(scene.container_id(), id);
    // Killed once more while it waits: nothing changes.
    scene.daemon.kill_9();
    before.assert_same(&Tree::of(&scene.tree()), &MADE_AGAIN, "killed again");
    scene.release();
    scene.daemon.env("DOCKER_HOST", "unix:///var/run/docker.sock");
    scene.daemon.start();
    scene.daemon.wait_for_commit("web", &scene.repo.tip());
    assert_eq!(scene.stack.version().as_deref(), Some("bad"), "it was held, and is not bad");
    scene.next_good();
}

#[test]
fn a_kill_while_files_are_written_is_made_good_at_the_start_before_docker_answers() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    const FILES: usize = 3000;
    let (stack, repo) = (Stack::new(), Repo::new());
    let commit = |version: &str| {
        repo.write("compose.yaml", Stack::compose("1"));
        (0..FILES).for_each(|number| repo.write(&format!("files/{number}"), format!("{version} {number}\n")));
        repo.commit_all(version)
    };
    let first = commit("first");
    let mut daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &first);
    let tree = daemon.tree("home", "web");
    let before = Tree::of(&tree);
    commit("second");
    wait_until(MINUTE, "files to be written", || {
        fs::read_to_string(tree.join("files/0")).is_ok_and(|text| text.starts_with("second")).then_some(())
    });
    daemon.kill_9();
    let docker = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    daemon.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    daemon.start();
    wait_until(MINUTE, "the files to be put back", || {
        let is_back = |number| {
            fs::read_to_string(tree.join(format!("files/{number}"))).is_ok_and(|text| text.starts_with("first"))
        };
        (0..FILES).all(is_back).then_some(())
    });
    before.assert_same(&Tree::of(&tree), &[], "killed while files were written");
    daemon.stop();
    daemon.env("DOCKER_HOST", &docker);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
}

#[test]
fn a_first_deployment_that_is_killed_before_up_leaves_no_file_and_no_container() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::unstarted();
    scene.fake.rule("docker-compose", "* config *", "hold");
    scene.daemon.start();
    let held = |count: usize| {
        wait_until(MINUTE, "`config`", || {
            (scene.fake.calls_with("docker-compose", "config").len() >= count).then_some(())
        });
    };
    held(1);
    assert!(scene.tree().join("compose.yaml").exists());
    scene.daemon.kill_9();
    scene.daemon.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    scene.daemon.start();
    wait_until(MINUTE, "the files to be put back", || Tree::of(&scene.tree()).paths().is_empty().then_some(()));
    scene.daemon.stop();
    scene.daemon.env("DOCKER_HOST", "unix:///var/run/docker.sock");
    scene.daemon.start();
    // The next try gets as far as the first one: if there was any healing, it made nothing.
    wait_until(MINUTE, "the next try", || (scene.fake.calls_with("docker-compose", "config").len() >= 2).then_some(()));
    assert!(scene.stack.containers().is_empty());
    scene.release();
    scene.daemon.wait_for_commit("web", &scene.repo.tip());
}

#[test]
fn a_file_that_cannot_be_written_fails_before_any_other_is() {
    if cannot_run() {
        return;
    }
    let mut scene = Scene::unstarted();
    fs::set_permissions(scene.sops.key_file().parent().expect("a folder"), Permissions::from_mode(0o755))
        .expect("open it");
    fs::set_permissions(scene.sops.key_file(), Permissions::from_mode(0o644)).expect("open it");
    let fake_folder = scene.fake.docker_config().parent().expect("a folder").to_owned();
    for folder in [fake_folder.clone(), fake_folder.join("calls")] {
        fs::set_permissions(folder, Permissions::from_mode(0o777)).expect("open it");
    }
    scene.daemon.as_nobody().start();
    scene.daemon.wait_for_commit("web", &scene.repo.tip());
    let owned = scene.tree().join("conf/owned.conf");
    chown(&owned, Some(0), Some(0)).expect("change the owner");
    let before = Tree::of(&scene.tree());
    scene.write_bad(|_| {});
    let commit = scene.repo.commit_all("Unwritable");
    let failed = scene.daemon.ended_at_or_failed("web", &commit);
    let error = failed["error"].as_str().expect("an error");
    assert!(error.contains("conf/owned.conf") && error.contains("chown"), "{error}");
    before.assert_same(&Tree::of(&scene.tree()), &[], "unwritable");
    chown(&owned, Some(65534), Some(65534)).expect("change the owner");
    scene.daemon.succeeded(scene.daemon.deploy("web"));
    assert_eq!(scene.stack.version().as_deref(), Some("bad"), "it was unwritable, and is not bad");
}

#[test]
fn in_a_shared_tree_the_files_of_the_other_stack_stay() {
    if cannot_run() {
        return;
    }
    let (one, two, repo, mut daemon) = (Stack::new(), Stack::new(), Repo::new(), Daemon::new());
    let shared = daemon.deployments().join("shared");
    for folder in ["one", "two"] {
        repo.write(&format!("{folder}/compose.yaml"), Stack::compose("1"));
        repo.write(&format!("{folder}/note"), "1");
    }
    repo.commit_all("Two stacks");
    let entry =
        |name: &str, stack: &Stack| Entry::new(name, &repo.url(), stack).field("path", name).local_path(&shared);
    daemon.project("home", &[entry("one", &one), entry("two", &two)]);
    daemon.start();
    daemon.wait_for_commit("one", &repo.tip());
    daemon.wait_for_commit("two", &repo.tip());
    fs::write(shared.join("two/changed-on-the-host"), "x").expect("write a file");
    let before = Tree::of(&shared.join("one"));
    repo.write("two/compose.yaml", Stack::compose("2"));
    repo.write("two/note", "2");
    repo.write("one/note", "2");
    repo.write("one/new", "2");
    let commit = repo.commit(&[("one/compose.yaml", "services: [\n")]);
    assert_eq!(daemon.ended_at("one", &commit)["status"], "failed");
    daemon.wait_for_commit("two", &commit);
    before.assert_same(&Tree::of(&shared.join("one")), &[], "after a bad commit");
    let two_before = Tree::of(&shared.join("two"));
    daemon.failed(daemon.deploy("one"));
    before.assert_same(&Tree::of(&shared.join("one")), &[], "after another try");
    two_before.assert_same(&Tree::of(&shared.join("two")), &[], "after the other's another try");
    assert_eq!(fs::read_to_string(shared.join("two/note")).expect("it is there"), "2");
    let commit = repo.commit(&[("one/compose.yaml", &Stack::compose("3"))]);
    daemon.wait_for_commit("one", &commit);
    assert_eq!(one.version().as_deref(), Some("3"));
    assert_eq!(two.version().as_deref(), Some("2"));
    daemon.signal(Signal::TERM);
    daemon.wait_for_exit(MINUTE);
}
