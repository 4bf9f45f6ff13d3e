#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::fs;
use std::path::PathBuf;

use super::super::testing::{Lab, git, limit};
use crate::git::{Checkout, Done, GitError, LookedAhead, run};
use crate::model::{Chance, CommitHash};

/// A repository `name` that shares the tree and handles some paths of it.
fn sharing(lab: &Lab, name: &str, watch_paths: &[&str]) -> Checkout {
    Checkout {
        store: lab.root().join(format!("data/git/p/{name}.git")),
        saved: lab.root().join(format!("data/saved/p/{name}")),
        name: format!("p/{name}"),
        checked_out: None,
        watch_paths: watch_paths.iter().map(PathBuf::from).collect(),
        shares_local_path: true,
        ..lab.checkout_request()
    }
}

fn hash(text: &str) -> CommitHash {
    text.parse().unwrap()
}

fn stacks(lab: &Lab, content: &str) -> String {
    for path in ["a/compose.yaml", "b/compose.yaml", "c/compose.yaml", "common.env", "README"] {
        lab.put(path, content);
    }
    lab.push(content)
}

#[test]
fn each_handles_its_own_files_and_no_others() {
    let lab = Lab::new();
    stacks(&lab, "one");
    let (a, b) = (sharing(&lab, "a", &["a", "common.env"]), sharing(&lab, "b", &["b/"]));
    assert_eq!(lab.deploy_as(&a).unwrap().changed_files, 2);
    assert!(lab.tree("a/compose.yaml").exists() && !lab.tree("b").exists() && !lab.tree("README").exists());
    assert_eq!(lab.deploy_as(&b).unwrap().changed_files, 1);
    lab.host_puts("b/compose.yaml", "changed here");
    lab.host_puts("README", "somebody's");
    stacks(&lab, "two");
    fs::remove_dir_all(lab.clone().join("b")).unwrap();
    lab.push("two");
    let notes = lab.deploy_as(&a).unwrap().notes.clone();
    assert_eq!([lab.read("a/compose.yaml"), lab.read("b/compose.yaml")], ["two", "changed here"]);
    assert!(notes.is_empty(), "{notes:?}");
    // Put back, a's files are the old ones, and b's what they were.
    let done = run::put_back(&a).unwrap();
    assert_eq!([lab.read("a/compose.yaml"), lab.read("common.env")], ["one", "one"]);
    assert_eq!([lab.read("b/compose.yaml"), lab.read("README")], ["changed here", "somebody's"]);
    assert!(done.commit.is_some());
    assert!(lab.deploy_as(&b).unwrap().notes[0].contains("data/saved/p/b"));
    assert!(!lab.tree("b").exists() && lab.tree("a").exists());
}

#[test]
fn watch_paths_that_grow_and_shrink_take_and_leave_files_by_the_rules() {
    let lab = Lab::new();
    stacks(&lab, "one");
    lab.deploy_as(&sharing(&lab, "a", &["a"])).unwrap();
    lab.host_puts("b/compose.yaml", "mine");
    let grown = sharing(&lab, "a", &["a", "b", "c"]);
    // Never written by it: neither deleted on the host, nor changed.
    let error = lab.deploy_as(&grown).unwrap_err();
    assert!(error.message.contains("b/compose.yaml (a file)") && error.chance == Chance::CanPass, "{error}");
    lab.host_puts("b/compose.yaml", "one");
    lab.host_puts("c/data", "precious");
    let done = lab.deploy_as(&grown).unwrap();
    assert_eq!((done.changed_files, done.notes.len()), (1, 0));
    // Outside now: another commit that changes and removes them leaves them.
    stacks(&lab, "two");
    fs::remove_dir_all(lab.clone().join("c")).unwrap();
    lab.push("two");
    lab.deploy_as(&sharing(&lab, "a", &["a"])).unwrap();
    assert_eq!(
        [lab.read("a/compose.yaml"), lab.read("b/compose.yaml"), lab.read("c/compose.yaml")],
        ["two", "one", "one"]
    );
    assert_eq!(lab.saved(), []);
}

#[test]
fn what_a_sibling_has_checked_out_is_nobodys_change() {
    let lab = Lab::new();
    let one = stacks(&lab, "one");
    let whole = lab.checkout_request().store;
    // One repository had the whole tree, and two share it now.
    lab.deploy().unwrap();
    lab.put("b/compose.yaml", "two");
    fs::remove_file(lab.clone().join("c/compose.yaml")).unwrap();
    lab.put("c/other.yaml", "two");
    lab.push("two");
    let mut second = sharing(&lab, "b", &["b", "c"]);
    let error = lab.deploy_as(&second).unwrap_err();
    assert!(error.message.contains("b/compose.yaml (a file)"), "{error}");
    second.siblings = vec![lab.root().join("data/git/p/never-deployed.git"), whole.clone()];
    let done = lab.deploy_as(&second).unwrap();
    assert_eq!((lab.read("b/compose.yaml").as_str(), done.notes.len()), ("two", 0));
    assert!(!lab.tree("c/compose.yaml").exists() && lab.tree("c/other.yaml").exists());
    assert_eq!([lab.read("a/compose.yaml"), lab.read("README")], ["one", "one"]);
    let first = Checkout { checked_out: Some(hash(&one)), ..sharing(&lab, "a", &["a"]) };
    let first = Checkout { store: whole, ..first };
    lab.deploy_as(&first).unwrap();
    assert_eq!([lab.read("b/compose.yaml"), lab.read("README")], ["two", "one"]);
}

#[test]
fn what_is_only_alike_in_a_siblings_commit_is_somebodys_own() {
    let lab = Lab::new();
    stacks(&lab, "one");
    let (mut a, b) = (sharing(&lab, "a", &["a"]), sharing(&lab, "b", &["b"]));
    a.siblings = vec![b.store.clone()];
    lab.deploy_as(&a).unwrap();
    // Taken into a commit by mistake, which only the sibling deploys, and taken out again.
    lab.host_puts("a/.env", "precious");
    lab.put("a/.env", "precious");
    lab.push("two");
    lab.deploy_as(&b).unwrap();
    fs::remove_file(lab.clone().join("a/.env")).unwrap();
    lab.push("three");
    lab.deploy_as(&a).unwrap();
    assert_eq!(lab.read("a/.env"), "precious");
}

fn fetch(lab: &Lab, checkout: &Checkout) -> Result<(CommitHash, Done), GitError> {
    run::fetch_and_checkout(&lab.remote.borrow(), checkout, &limit()).map(|done| (done.commit.hash, done.done))
}

#[test]
fn a_commit_that_changes_nothing_watched_is_skipped_and_the_next_is_right() {
    let lab = Lab::new();
    let one = stacks(&lab, "one");
    let mut a = sharing(&lab, "a", &["a", "./common.env"]);
    a.shares_local_path = false;
    lab.deploy_as(&a).unwrap();
    a.checked_out = Some(hash(&one));
    a.skip_if_unchanged_since = Some(hash(&one));
    lab.put("b/compose.yaml", "two");
    let two = lab.push("two");
    assert_eq!(fetch(&lab, &a).unwrap(), (hash(&two), Done::Unchanged));
    assert_eq!(lab.read("b/compose.yaml"), "one");
    let ahead = || run::look_ahead(&lab.remote.borrow(), &a, &limit()).unwrap();
    assert_eq!(ahead(), LookedAhead { tip: hash(&two), is_unchanged: true });
    lab.put("common.env", "three");
    let three = lab.push("three");
    assert_eq!(ahead(), LookedAhead { tip: hash(&three), is_unchanged: false });
    assert_eq!(fetch(&lab, &a).unwrap().1, Done::CheckedOut { changed_files: 2 });
    assert_eq!([lab.read("b/compose.yaml"), lab.read("common.env")], ["two", "three"]);
    // Everything is watched, or the commit is not known: no skipping, but for the same files.
    let mut all = Checkout { watch_paths: Vec::new(), skip_if_unchanged_since: Some(hash(&three)), ..a.clone() };
    lab.push("empty");
    assert_eq!(fetch(&lab, &all).unwrap().1, Done::Unchanged);
    all.skip_if_unchanged_since = Some(hash(&"2".repeat(40)));
    assert_eq!(fetch(&lab, &all).unwrap().1, Done::CheckedOut { changed_files: 0 });
}

#[test]
fn links_on_the_way_and_submodules_count_as_watched() {
    let lab = Lab::new();
    lab.put("versions/1/compose.yaml", "one");
    lab.put("versions/2/compose.yaml", "one");
    fs::create_dir_all(lab.clone().join("stacks")).unwrap();
    std::os::unix::fs::symlink("../versions/1", lab.clone().join("stacks/web")).unwrap();
    lab.put(".gitmodules", "[submodule \"m\"]\n\tpath = libs/m\n\turl = https://h/m.git\n[submodule \"n\"]\n\tpath = other\n\turl = https://h/n.git\n");
    git(&lab.clone(), &["add", "-A"]);
    let module = |commit: &str| {
        git(&lab.clone(), &["update-index", "--add", "--cacheinfo", &format!("160000,{},libs/m", commit.repeat(40))]);
        git(&lab.clone(), &["commit", "-q", "--allow-empty", "-m", "next"]);
        git(&lab.clone(), &["push", "-q", "-f", "origin", "HEAD:main"]);
        git(&lab.clone(), &["rev-parse", "HEAD"])
    };
    let mut since = module("1");
    let mut is_unchanged = |watched: &str, commit: String| {
        let checkout = Checkout {
            watch_paths: vec![PathBuf::from(watched)],
            skip_if_unchanged_since: Some(hash(&std::mem::replace(&mut since, commit))),
            ..lab.checkout_request()
        };
        run::look_ahead(&lab.remote.borrow(), &checkout, &limit()).unwrap().is_unchanged
    };
    let put = |path: &str, content: &str| {
        lab.put(path, content);
        git(&lab.clone(), &["add", path]);
    };
    put("versions/2/compose.yaml", "two");
    assert!(is_unchanged("stacks/web", module("1")));
    put("versions/1/compose.yaml", "two");
    assert!(!is_unchanged("stacks/web", module("1")));
    assert!(!is_unchanged("libs", module("2")));
    assert!(!is_unchanged("libs/m/inside", module("3")));
    assert!(is_unchanged("stacks/web", module("4")));
    let gitmodules = lab.clone().join(".gitmodules");
    let text = fs::read_to_string(&gitmodules).unwrap();
    put(".gitmodules", &text.replace("h/n", "h/elsewhere"));
    assert!(is_unchanged("libs", module("4")));
    put(".gitmodules", &text.replace("h/m", "h/elsewhere"));
    assert!(!is_unchanged("libs/m", module("4")));
}

#[test]
fn an_earlier_commit_of_the_branch_is_checked_out_by_its_hash_or_the_beginning_of_it() {
    let lab = Lab::new();
    let one = stacks(&lab, "one");
    let two = stacks(&lab, "two");
    git(&lab.clone(), &["checkout", "-q", "-b", "side", &one]);
    lab.put("side", "x");
    git(&lab.clone(), &["add", "-A"]);
    git(&lab.clone(), &["commit", "-q", "-m", "aside"]);
    let side = git(&lab.clone(), &["rev-parse", "HEAD"]);
    git(&lab.clone(), &["push", "-q", "origin", "side"]);
    let ask = |commit: &str| {
        let checkout = Checkout { commit: Some(commit.parse().unwrap()), ..lab.checkout_request() };
        run::fetch_and_checkout(&lab.remote.borrow(), &checkout, &limit())
    };
    for asked in [&one[..7], &one, &one[..20].to_uppercase()] {
        let done = ask(asked).unwrap();
        assert_eq!(
            (done.commit.hash.as_str(), done.tip.as_str(), lab.read("README").as_str()),
            (one.as_str(), two.as_str(), "one")
        );
    }
    assert_eq!(ask(&two[..12]).unwrap().commit.hash.as_str(), two);
    let tree = git(&lab.clone(), &["rev-parse", &format!("{two}^{{tree}}")]);
    for unknown in ["0000000", &tree, &"1".repeat(64)] {
        let error = ask(unknown).unwrap_err();
        assert!(error.message.contains("there is no commit") && error.chance == Chance::Final, "{error}");
        assert!(error.commit.is_none(), "it is not the branch's commit that failed");
    }
    // It is in the store, if only because another branch was followed once.
    lab.remote.borrow_mut().branch = "side".to_owned();
    lab.deploy().unwrap();
    lab.remote.borrow_mut().branch = "main".to_owned();
    let error = ask(&side).unwrap_err();
    assert!(error.message.contains("(“aside”) is not on main") && error.chance == Chance::Final, "{error}");
}

#[test]
fn an_earlier_commit_that_fails_is_told_with_the_branchs_tip() {
    let lab = Lab::new();
    stacks(&lab, "one");
    lab.deploy().unwrap();
    lab.put("mine", "two");
    let (two, three) = (lab.push("two"), lab.push("three"));
    lab.host_puts("mine", "precious");
    let checkout = Checkout { commit: Some(two[..12].parse().unwrap()), ..lab.checkout_request() };
    let error = lab.deploy_as(&checkout).unwrap_err();
    let (failed, tip) = (error.commit.unwrap().hash, error.tip.unwrap());
    assert_eq!((failed.as_str(), tip.as_str()), (&*two, &*three), "{}", error.message);
}
