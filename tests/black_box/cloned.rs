//! A `local_path` in which something lies: a clone of somebody's own, or files without Git.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::*;

fn cannot_run() -> bool {
    missing(&[parts::DOCKER, parts::GIT])
}

/// A stack that was started by hand in a clone, which is at the first of two commits.
fn cloned(compose: &Compose) -> Lived {
    let lived = Lived::started_in(compose, &Lived::text(""), |daemon, stack| daemon.deployments().join(&stack.name));
    let scratch = lived.daemon.deployments().join("clone");
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().expect("start git");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (from, to) = (lived.repo.url(), scratch.to_string_lossy().into_owned());
    git(&["clone", "--quiet", &from, &to]);
    fs::rename(scratch.join(".git"), lived.folder.join(".git")).expect("move the clone's folder");
    fs::remove_dir_all(&scratch).expect("remove the rest");
    lived.repo.commit(&[("web.conf", "port = 81\n")]);
    lived.daemon.project("home", &[lived.right_entry()]);
    lived
}

fn saved(lived: &Lived) -> Vec<PathBuf> {
    files_below(&lived.daemon.data().join("saved"))
}

fn git_in(lived: &Lived, args: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(&lived.folder).args(args).output().expect("start git");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_clone_at_the_tip_is_simply_taken() {
    if cannot_run() {
        return;
    }
    let mut lived = cloned(&composes()[0]);
    git_in(&lived, &["pull", "--quiet"]);
    let head = fs::read(lived.folder.join(".git/HEAD")).expect("it is there");
    lived.daemon.start();
    lived.daemon.wait_for_commit("web", &lived.repo.tip());
    lived.assert_untouched("taken over");
    assert_eq!(fs::read(lived.folder.join(".git/HEAD")).expect("it is there"), head, "the clone is left alone");
    assert!(saved(&lived).is_empty());
    // From now on the files are ours.
    let commit = lived.repo.commit(&[("web.conf", "port = 82\n")]);
    lived.daemon.wait_for_commit("web", &commit);
    lived.assert_untouched("after a push");
    lived.deploys(&["--adopt"]);
    assert!(lived.folder.join(".git").is_file());
    assert!(saved(&lived).iter().any(|path| path.ends_with(".git/HEAD")), "{:?}", saved(&lived));
}

#[test]
fn a_clone_at_an_older_commit_is_refused_and_adopt_takes_it() {
    if cannot_run() {
        return;
    }
    let mut lived = cloned(&composes()[0]);
    let before = lived.tree();
    lived.daemon.start();
    let error = lived.refusal();
    assert!(error.contains("web.conf") && error.contains("shiparr deploy home/web --adopt"), "{error}");
    before.assert_same(&lived.tree(), &[], "refused");
    lived.assert_untouched("refused");
    lived.deploys(&["--adopt"]);
    lived.assert_untouched("adopted");
    let web = lived.stack.container("web").expect("it runs");
    assert_eq!(web.run(&["cat", "/etc/web.conf"]), "port = 81\n", "it kept its inode");
    assert!(saved(&lived).iter().any(|path| path.ends_with(".git/HEAD")));
    assert_eq!(git_in(&lived, &["status", "--porcelain", "--untracked-files=no"]), "");
}

#[test]
fn a_changed_clone_is_saved_when_it_is_adopted_and_as_it_was_when_that_fails() {
    if cannot_run() {
        return;
    }
    let mut lived = cloned(&composes()[0]);
    fs::write(lived.folder.join("web.conf"), "port = 8080 # mine\n").expect("write a file");
    let broken = lived.repo.commit(&[("compose.yaml", "services: [\n")]);
    let before = lived.tree();
    lived.daemon.start();
    lived.refusal();
    let (is_success, printed) = lived.deploy(&["--adopt"]);
    assert!(!is_success, "{printed}");
    assert_eq!(lived.daemon.ended_at("web", &broken)["status"], "failed");
    before.assert_same(&lived.tree(), &[], "after a broken commit was adopted");
    lived.assert_untouched("after a broken commit was adopted");
    lived.repo.commit(&[("compose.yaml", &Lived::text(""))]);
    lived.deploys(&["--adopt"]);
    lived.assert_untouched("adopted");
    let kept = saved(&lived).into_iter().find(|path| path.ends_with("web.conf")).expect("a saved copy");
    assert_eq!(fs::read_to_string(kept).expect("it is there"), "port = 8080 # mine\n");
    assert_eq!(fs::read_to_string(lived.folder.join("web.conf")).expect("it is there"), "port = 81\n");
}

#[test]
fn a_folder_without_git_that_differs_is_refused_and_named() {
    if cannot_run() {
        return;
    }
    let mut lived = Lived::new(&composes()[0]);
    fs::write(lived.folder.join("web.conf"), "port = 80 # mine\n").expect("write a file");
    lived.repo.commit(&[("a-new-file", "x")]);
    lived.daemon.project("home", &[lived.right_entry()]);
    let before = lived.tree();
    lived.daemon.start();
    let error = lived.refusal();
    assert!(error.contains("web.conf") && !error.contains("compose.yaml"), "{error}");
    before.assert_same(&lived.tree(), &[], "refused");
    lived.assert_untouched("refused");
    let commit = lived.repo.commit(&[("web.conf", "port = 80 # mine\n")]);
    lived.daemon.wait_for_commit("web", &commit);
    lived.assert_untouched("taken over");
}
