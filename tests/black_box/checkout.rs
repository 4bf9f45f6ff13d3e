//! The checkout in place: it writes what the commit says and nothing else, and what people put there is theirs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::*;

/// A deployed stack whose working tree the tests look at.
struct Deployed {
    stack: Stack,
    repo: Repo,
    daemon: Daemon,
    tree: PathBuf,
}

impl Deployed {
    fn new(files: &[(&str, &str)]) -> Deployed {
        Deployed::under("", files)
    }

    fn under(wrapper: &str, files: &[(&str, &str)]) -> Deployed {
        let (stack, repo) = (Stack::new(), Repo::new());
        repo.write("compose.yaml", Stack::compose("1"));
        repo.commit(files);
        let mut daemon = Daemon::new();
        let tree = daemon.deployments().join("web");
        daemon.project("home", &[Entry::new("web", &repo.url(), &stack).local_path(&tree)]);
        if !wrapper.is_empty() {
            daemon.under(wrapper);
        }
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        Deployed { stack, repo, daemon, tree }
    }

    /// Commits, and expects a failure whose error names `path`, with the old version running and nothing of the tree
    /// written.
    fn refuses(&self, files: &[(&str, &str)], path: &str) {
        let before = snapshot(&self.tree);
        let commit = self.repo.commit(files);
        let deployment = self.daemon.ended_at("web", &commit);
        assert_eq!(deployment["status"], "failed", "{deployment}");
        let error = deployment["error"].as_str().expect("an error");
        assert!(error.contains(path), "the error names {path}: {error}");
        assert_eq!(snapshot(&self.tree), before, "no file is written");
        assert_eq!(self.stack.version().as_deref(), Some("1"), "the old version goes on");
    }

    fn accepts(&self, files: &[(&str, &str)]) -> Json {
        let commit = self.repo.commit(files);
        self.daemon.wait_for_commit("web", &commit)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.tree.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

/// Path, inode, time of change and content or target of everything below `folder`.
fn snapshot(folder: &Path) -> Vec<(PathBuf, u64, i64, Vec<u8>)> {
    let mut entries: Vec<_> = files_below(folder)
        .into_iter()
        .map(|path| {
            let meta = fs::symlink_metadata(&path).expect("it is there");
            let content = if meta.is_symlink() {
                fs::read_link(&path).expect("it is a link").into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap_or_default()
            };
            (path, meta.ino(), meta.mtime_nsec(), content)
        })
        .collect();
    entries.sort();
    entries
}

fn version_2() -> String {
    Stack::compose("2")
}

#[test]
fn an_untracked_file_in_the_way_fails_before_anything_is_written() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[]);
    fs::write(deployed.tree.join("data.txt"), "somebody's data").expect("write");
    deployed.refuses(&[("data.txt", "the commit's"), ("compose.yaml", &version_2())], "data.txt");
    assert_eq!(deployed.read("data.txt"), "somebody's data");
}

#[test]
fn an_untracked_folder_in_the_way_of_a_file_fails_before_anything_is_written() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[]);
    fs::create_dir(deployed.tree.join("data")).expect("make a folder");
    fs::write(deployed.tree.join("data/inside"), "somebody's data").expect("write");
    deployed.refuses(&[("data", "now a file"), ("compose.yaml", &version_2())], "data");
    assert_eq!(deployed.read("data/inside"), "somebody's data");
}

#[test]
fn an_untracked_file_in_the_way_of_a_folder_fails_before_anything_is_written() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[]);
    fs::write(deployed.tree.join("data"), "somebody's data").expect("write");
    deployed.refuses(&[("data/inside", "the commit's"), ("compose.yaml", &version_2())], "data");
    assert_eq!(deployed.read("data"), "somebody's data");
}

#[test]
fn an_ignored_file_in_the_way_is_as_safe_as_any_other() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[(".gitignore", "*.db\nstate/\n")]);
    fs::write(deployed.tree.join("app.db"), "somebody's data").expect("write");
    fs::create_dir(deployed.tree.join("state")).expect("make a folder");
    fs::write(deployed.tree.join("state/one"), "somebody's state").expect("write");
    deployed.refuses(&[("app.db", "the commit's"), ("compose.yaml", &version_2())], "app.db");
    deployed.repo.remove("app.db");
    deployed.refuses(&[("state/one", "the commit's"), ("compose.yaml", &version_2())], "state/one");
}

#[test]
fn links_in_the_way_are_neither_followed_nor_replaced() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[]);
    let outside = deployed.daemon.folder().join("outside");
    fs::create_dir(&outside).expect("make a folder");
    fs::write(outside.join("target"), "outside").expect("write");
    symlink(outside.join("target"), deployed.tree.join("file")).expect("link");
    symlink(&outside, deployed.tree.join("folder")).expect("link");
    symlink("nowhere", deployed.tree.join("dangling")).expect("link");

    deployed.refuses(&[("file", "the commit's"), ("compose.yaml", &version_2())], "file");
    deployed.repo.remove("file");
    deployed.refuses(&[("folder/target", "the commit's"), ("compose.yaml", &version_2())], "folder");
    deployed.repo.remove("folder");
    deployed.refuses(&[("dangling", "the commit's"), ("compose.yaml", &version_2())], "dangling");
    assert_eq!(fs::read_to_string(outside.join("target")).expect("it is there"), "outside");
    assert_eq!(files_below(&outside).len(), 1, "nothing was written through a link");
}

#[test]
fn a_tracked_folder_that_was_replaced_by_a_link_is_not_written_through() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[("conf/app.ini", "one")]);
    let outside = deployed.daemon.folder().join("outside");
    fs::create_dir(&outside).expect("make a folder");
    fs::write(outside.join("app.ini"), "outside").expect("write");
    fs::remove_dir_all(deployed.tree.join("conf")).expect("remove");
    symlink(&outside, deployed.tree.join("conf")).expect("link");
    let commit = deployed.repo.commit(&[("conf/app.ini", "two")]);
    deployed.daemon.ended_at("web", &commit);
    assert_eq!(fs::read_to_string(outside.join("app.ini")).expect("it is there"), "outside");
}

#[test]
fn an_untracked_file_with_the_commits_content_is_accepted() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[]);
    fs::write(deployed.tree.join("same.txt"), "the same\n").expect("write");
    let inode = fs::metadata(deployed.tree.join("same.txt")).expect("it is there").ino();
    deployed.accepts(&[("same.txt", "the same\n"), ("compose.yaml", &version_2())]);
    assert_eq!(fs::metadata(deployed.tree.join("same.txt")).expect("it is there").ino(), inode);
    assert_eq!(deployed.stack.version().as_deref(), Some("2"));
}

#[test]
fn untracked_files_stay_whatever_the_commits_do_around_them() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[("conf/a", "a"), ("conf/b", "b"), (".gitignore", "data/\n")]);
    fs::write(deployed.tree.join("conf/mine"), "mine").expect("write");
    fs::create_dir(deployed.tree.join("data")).expect("make a folder");
    fs::write(deployed.tree.join("data/mine"), "mine").expect("write");
    fs::create_dir(deployed.tree.join("empty")).expect("make a folder");

    deployed.repo.remove("conf");
    deployed.accepts(&[("compose.yaml", &version_2())]);
    assert!(!deployed.tree.join("conf/a").exists(), "what the commit removes goes");
    assert_eq!(deployed.read("conf/mine"), "mine", "and its folder stays for what is not ours");
    assert_eq!(deployed.read("data/mine"), "mine");
    assert!(deployed.tree.join("empty").is_dir());

    let rewritten = deployed.repo.rewrite(&[("compose.yaml", &Stack::compose("3"))]);
    deployed.daemon.wait_for_commit("web", &rewritten);
    assert_eq!(deployed.stack.version().as_deref(), Some("3"), "a branch that was pushed by force is followed");
    assert_eq!(deployed.read("conf/mine"), "mine");
    assert_eq!(deployed.read("data/mine"), "mine");
}

#[test]
fn a_tracked_file_that_was_changed_on_the_host_is_saved_and_replaced() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[("app.ini", "one\n"), ("gone.ini", "one\n"), ("kept.ini", "one\n")]);
    fs::write(deployed.tree.join("app.ini"), "changed-by-hand\n").expect("write");
    fs::write(deployed.tree.join("gone.ini"), "removed-by-hand\n").expect("write");
    deployed.repo.remove("gone.ini");
    let repository = deployed.accepts(&[("app.ini", "two\n"), ("compose.yaml", &version_2())]);

    assert_eq!(deployed.read("app.ini"), "two\n");
    assert!(!deployed.tree.join("gone.ini").exists());
    let saved = deployed.daemon.data().join("saved/home/web");
    let holding = |text: &str| contains_anywhere(&saved, text);
    assert!(holding("changed-by-hand").iter().any(|path| path.ends_with("app.ini")), "{:?}", files_below(&saved));
    assert!(holding("removed-by-hand").iter().any(|path| path.ends_with("gone.ini")), "{:?}", files_below(&saved));
    assert!(holding("+changed-by-hand").len() == 1, "a diff lies beside it");
    let time = fs::read_dir(&saved).expect("it is there").next().expect("one folder").expect("one folder").path();
    assert_eq!(fs::metadata(&time).expect("it is there").permissions().mode() & 0o777, 0o700);
    let log = deployed.daemon.log_of(repository["last_deployment"]["id"].as_i64().expect("an id"));
    assert!(log.contains("app.ini") && log.contains(&*time.to_string_lossy()), "{log}");
    assert!(!log.contains("changed-by-hand"), "the log never shows the content");
}

#[test]
fn a_tracked_file_that_was_removed_on_the_host_comes_back() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[("app.ini", "one\n")]);
    fs::remove_file(deployed.tree.join("app.ini")).expect("remove");
    deployed.accepts(&[("compose.yaml", &version_2())]);
    assert_eq!(deployed.read("app.ini"), "one\n");
}

#[test]
fn changed_files_keep_their_inode_and_unchanged_ones_are_not_touched() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[("changed.ini", "one"), ("unchanged.ini", "one")]);
    let meta = |path: &str| fs::metadata(deployed.tree.join(path)).expect("it is there");
    let (changed, unchanged) = (meta("changed.ini"), meta("unchanged.ini"));
    deployed.accepts(&[("changed.ini", "two"), ("compose.yaml", &version_2())]);
    assert_eq!(deployed.read("changed.ini"), "two");
    assert_eq!(meta("changed.ini").ino(), changed.ino(), "a bind mount of a single file follows");
    let after = meta("unchanged.ini");
    assert_eq!(
        (after.ino(), after.mtime_nsec(), after.ctime_nsec()),
        (unchanged.ino(), unchanged.mtime_nsec(), unchanged.ctime_nsec())
    );
}

#[test]
fn modes_are_the_commits_whatever_the_umask() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::under("umask 077;", &[("conf/app.ini", "one")]);
    deployed.repo.write("bin/start", "#!/bin/sh\n");
    let script = deployed.repo.clone_folder().join("bin/start");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("make it executable");
    symlink("conf/app.ini", deployed.repo.clone_folder().join("link")).expect("link");
    deployed.accepts(&[("compose.yaml", &version_2())]);
    let mode = |path: &str| fs::metadata(deployed.tree.join(path)).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode("conf/app.ini"), 0o644);
    assert_eq!(mode("compose.yaml"), 0o644);
    assert_eq!(mode("bin/start"), 0o755);
    assert_eq!(mode("conf"), 0o755);
    assert_eq!(mode("bin"), 0o755);
    assert_eq!(fs::read_link(deployed.tree.join("link")).expect("a link"), Path::new("conf/app.ini"));
}

/// A file that not even root can write, for as long as the value lives.
struct Immutable(PathBuf);

impl Immutable {
    fn make(path: &Path) -> Option<Immutable> {
        let made = Command::new("chattr").arg("+i").arg(path).status();
        made.is_ok_and(|status| status.success()).then(|| Immutable(path.to_owned()))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

#[test]
fn a_path_that_cannot_be_written_is_named_before_any_is_written() {
    if missing(&[parts::DOCKER, parts::GIT, parts::ROOT]) {
        return;
    }
    let deployed = Deployed::new(&[("app.ini", "one"), ("zz.ini", "one")]);
    let Some(immutable) = Immutable::make(&deployed.tree.join("zz.ini")) else {
        eprintln!("not run, because this file system has no immutable files");
        return;
    };
    let commit = deployed.repo.commit(&[("app.ini", "two"), ("zz.ini", "two"), ("compose.yaml", &version_2())]);
    let deployment = deployed.daemon.ended_at("web", &commit);
    let first = deployed.read("app.ini");
    drop(immutable);
    assert_eq!(deployment["status"], "failed");
    let error = deployment["error"].as_str().expect("an error");
    assert!(error.contains("zz.ini") && error.contains("root"), "path and owner are named: {error}");
    assert_eq!(first, "one", "before any is written");
    assert_eq!(deployed.stack.version().as_deref(), Some("1"));
}

#[test]
fn without_root_a_file_of_somebody_else_is_named_with_its_owner_and_the_command_to_run() {
    if missing(&[parts::DOCKER, parts::GIT, parts::ROOT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1")), ("conf/app.ini", "one")]));
    let mut daemon = Daemon::new();
    daemon.as_nobody().project("home", &[Entry::new("web", &repo.url(), &stack)]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let conf = daemon.tree("home", "web").join("conf");
    for path in [&conf, &conf.join("app.ini")] {
        std::os::unix::fs::chown(path, Some(0), Some(0)).expect("change the owner");
    }

    let commit = repo.commit(&[
        ("a.ini", "new"),
        ("conf/app.ini", "two"),
        ("conf/new.ini", "new"),
        ("compose.yaml", &version_2()),
    ]);
    let deployment = daemon.ended_at("web", &commit);
    assert_eq!(deployment["status"], "failed");
    let error = deployment["error"].as_str().expect("an error");
    assert!(error.contains("conf/app.ini") && error.contains("root") && error.contains("chown"), "{error}");
    assert!(!daemon.tree("home", "web").join("a.ini").exists(), "before any is written");
    assert_eq!(stack.version().as_deref(), Some("1"));

    for path in [&conf, &conf.join("app.ini")] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("change the owner");
    }
    daemon.succeeded(daemon.deploy("web"));
    assert_eq!(fs::read_to_string(conf.join("app.ini")).expect("it is there"), "two");
}

#[test]
fn the_tree_can_belong_to_another_user() {
    if missing(&[parts::DOCKER, parts::GIT, parts::ROOT]) {
        return;
    }
    let deployed = Deployed::new(&[("app.ini", "one")]);
    for path in files_below(&deployed.tree).iter().chain([&deployed.tree]) {
        std::os::unix::fs::lchown(path, Some(1234), Some(1234)).expect("change the owner");
    }
    deployed.accepts(&[("app.ini", "two"), ("compose.yaml", &version_2())]);
    assert_eq!(deployed.read("app.ini"), "two");
}

#[test]
fn a_bind_mounted_data_folder_survives_everything() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let service = |version: &str| {
        let lines = "    volumes: [\"./data:/data\", \"./app.ini:/app.ini:ro\"]\n";
        Stack::compose_with(version, lines)
            .replace("[\"sleep\", \"86400\"]", "[\"sh\", \"-c\", \"echo $$VERSION >>/data/seen; sleep 86400\"]")
    };
    let mut deployed = Deployed::new(&[("compose.yaml", &service("1")), ("app.ini", "one")]);
    let seen = |deployed: &Deployed| deployed.read("data/seen");
    assert_eq!(seen(&deployed), "1\n");
    deployed.accepts(&[("compose.yaml", &service("2")), ("app.ini", "two")]);
    wait_until(SHORT, "the second line", || (seen(&deployed) == "1\n2\n").then_some(()));
    let content = deployed.stack.container("web").expect("it runs").run(&["cat", "/app.ini"]);
    assert_eq!(content, "two");

    // A broken commit, a kill, a rewritten branch, another branch, a project file without it and its return.
    let bad = deployed.repo.commit(&[("compose.yaml", "services: [")]);
    deployed.daemon.ended_at("web", &bad);
    deployed.daemon.kill_9();
    deployed.daemon.start();
    let rewritten = deployed.repo.rewrite(&[("compose.yaml", &service("3"))]);
    deployed.daemon.wait_for_commit("web", &rewritten);
    deployed.repo.git(&["checkout", "--quiet", "-b", "other"]);
    let other = deployed.repo.commit(&[("compose.yaml", &service("4"))]);
    let entry = Entry::new("web", &deployed.repo.url(), &deployed.stack).local_path(&deployed.tree);
    deployed.daemon.change_project("home", &[entry.clone().field("branch", "other")]);
    deployed.daemon.wait_for_commit("web", &other);
    wait_until(SHORT, "all lines", || (seen(&deployed) == "1\n2\n3\n4\n").then_some(()));
    deployed.daemon.project("home", &[]);
    wait_until(SHORT, "the orphan", || (deployed.daemon.repository("web")["orphaned"] == true).then_some(()));
    assert!(deployed.daemon.cli(&["prune", "--yes"]).status.success());
    assert_eq!(seen(&deployed), "1\n2\n3\n4\n");
    assert_eq!(deployed.stack.version().as_deref(), Some("4"), "its containers stay as they are");
    assert!(deployed.tree.join("compose.yaml").is_file(), "and so do its files");
}

#[test]
fn a_changed_url_points_the_checkout_at_the_new_remote_and_leaves_untracked_files() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[("old.ini", "old")]);
    fs::write(deployed.tree.join("mine"), "mine").expect("write");
    let other = Repo::with(&[("compose.yaml", &version_2()), ("new.ini", "new")]);
    let entry = Entry::new("web", &other.url(), &deployed.stack).local_path(&deployed.tree);
    deployed.daemon.change_project("home", &[entry]);
    deployed.daemon.wait_for_commit("web", &other.tip());
    assert!(!deployed.tree.join("old.ini").exists(), "the old remote's files go");
    assert_eq!(deployed.read("new.ini"), "new");
    assert_eq!(deployed.read("mine"), "mine");
    assert_eq!(deployed.stack.version().as_deref(), Some("2"));
}

#[test]
fn a_damaged_object_store_is_rebuilt() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let deployed = Deployed::new(&[("app.ini", "one")]);
    fs::write(deployed.tree.join("mine"), "mine").expect("write");
    let store = deployed.daemon.data().join("git/home/web.git");
    let objects = files_below(&store.join("objects"));
    assert!(!objects.is_empty());
    for path in objects {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("make it writable");
        fs::write(path, "rubbish").expect("damage it");
    }
    deployed.accepts(&[("app.ini", "two"), ("compose.yaml", &version_2())]);
    assert_eq!((deployed.read("app.ini"), deployed.read("mine")), ("two".to_owned(), "mine".to_owned()));

    fs::remove_dir_all(&store).expect("remove the store");
    deployed.accepts(&[("app.ini", "three"), ("compose.yaml", &Stack::compose("3"))]);
    assert_eq!((deployed.read("app.ini"), deployed.read("mine")), ("three".to_owned(), "mine".to_owned()));
}

#[test]
fn a_tag_can_be_followed() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let tagged = repo.tip();
    repo.git(&["tag", "--annotate", "--message", "First", "v1"]);
    repo.git(&["push", "--quiet", "origin", "v1"]);
    repo.commit(&[("compose.yaml", &version_2())]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).field("branch", "refs/tags/v1")]);
    daemon.wait_for_commit("web", &tagged);
    assert_eq!(stack.version().as_deref(), Some("1"));
}

#[test]
fn a_stack_in_a_folder_of_the_repository_runs_from_there() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::new());
    repo.write("docker/compose.yaml", Stack::compose_with("1", "    volumes: [\"./here:/here:ro\"]\n"));
    repo.write("docker/here/file", "beside the compose file");
    repo.write("compose.yaml", Stack::compose("wrong"));
    repo.commit_all("A folder");
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).field("path", "docker/")]);
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(stack.version().as_deref(), Some("1"));
    assert_eq!(stack.container("web").expect("it runs").run(&["cat", "/here/file"]), "beside the compose file");
}

#[test]
fn a_stack_folder_that_leaves_the_repository_through_a_link_is_refused() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::new());
    let outside = tempfile::TempDir::new().expect("make a folder");
    fs::write(outside.path().join("compose.yaml"), Stack::compose("outside")).expect("write");
    repo.write("README", "a link");
    symlink(outside.path(), repo.clone_folder().join("docker")).expect("link");
    repo.commit_all("A link to outside");
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).field("path", "docker")]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("docker"), "{deployment}");
    assert!(stack.container("web").is_none());
}
