#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::fs;

use super::super::testing::{Lab, git};
use super::Journal;

/// Says in the journal that a run has begun to write these files of a commit.
pub(super) fn begin(journal: &mut Journal, commit: &str, paths: &[&str]) {
    let paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    journal.begin(&[git2::Oid::from_str(commit).unwrap()], &paths, [Vec::new()].into()).unwrap();
}

#[test]
fn what_a_killed_run_left_is_completed_and_not_taken_for_somebodys() {
    let lab = Lab::new();
    lab.put("whole", "one");
    lab.put("torn", "a long content that was there first");
    lab.put("goes", "one");
    lab.push("one");
    lab.deploy().unwrap();
    lab.put("whole", "two");
    lab.put("torn", "second content");
    lab.put("new", "two");
    lab.put("mine", "two");
    fs::remove_file(lab.clone().join("goes")).unwrap();
    let two = lab.push("two");
    // The state that a kill in the middle of the second checkout leaves.
    let checkout = lab.checkout_request();
    let mut journal = Journal::read(&checkout.store.with_extension("journal"), &checkout.local_path);
    begin(&mut journal, &two, &["whole", "torn", "new", "goes"]);
    let left_over = lab.tree(&journal.temporary_name());
    fs::write(&left_over, "half a fi").unwrap();
    lab.host_puts("whole", "two");
    lab.host_puts("new", "two");
    lab.host_puts("mine", "precious");
    fs::write(lab.tree("torn"), "second".to_owned() + &"a long content that was there first"[6..]).unwrap();
    fs::remove_file(lab.tree("goes")).unwrap();
    // The third commit has none of what only the second one had.
    lab.put("whole", "three");
    lab.put("torn", "third");
    for path in ["new", "mine"] {
        fs::remove_file(lab.clone().join(path)).unwrap();
    }
    lab.push("three");
    // The store does not have the second commit yet, as after a kill it would.
    git(&lab.clone(), &["push", "-q", "-f", "origin", &format!("{two}:refs/heads/main")]);
    let store = git2::Repository::open_bare(&checkout.store).unwrap();
    crate::git::fetch::tip(&store, &lab.remote.borrow(), &super::super::testing::limit()).unwrap();
    git(&lab.clone(), &["push", "-q", "-f", "origin", "HEAD:main"]);
    lab.deploy().unwrap();
    assert_eq!(
        (lab.read("whole"), lab.read("torn"), lab.read("mine")),
        ("three".into(), "third".into(), "precious".into())
    );
    assert!(!lab.tree("new").exists() && !lab.tree("goes").exists() && !left_over.exists());
    assert_eq!(lab.saved(), []);
}

#[test]
fn an_empty_file_where_a_run_was_cut_off_is_ours() {
    let lab = Lab::new();
    lab.put("old", "one");
    lab.push("one");
    lab.deploy().unwrap();
    lab.put("new", "two");
    let two = lab.push("two");
    let checkout = lab.checkout_request();
    let mut journal = Journal::read(&checkout.store.with_extension("journal"), &checkout.local_path);
    begin(&mut journal, &two, &["new"]);
    // A power failure kept the name and not the content.
    lab.host_puts("new", "");
    let store = git2::Repository::open_bare(&checkout.store).unwrap();
    crate::git::fetch::tip(&store, &lab.remote.borrow(), &super::super::testing::limit()).unwrap();
    lab.put("new", "three");
    lab.push("three");
    lab.deploy().unwrap();
    assert_eq!(lab.read("new"), "three");
    assert_eq!(lab.saved(), []);
}

#[test]
fn folders_that_a_killed_run_emptied_or_made_do_not_stay() {
    let lab = Lab::new();
    lab.put("goes/deep/file", "one");
    lab.put("stays", "one");
    lab.push("one");
    lab.deploy().unwrap();
    fs::remove_dir_all(lab.clone().join("goes")).unwrap();
    lab.put("comes/deep/file", "two");
    let two = lab.push("two");
    let checkout = lab.checkout_request();
    let mut journal = Journal::read(&checkout.store.with_extension("journal"), &checkout.local_path);
    begin(&mut journal, &two, &["goes/deep/file", "comes/deep/file"]);
    let store = git2::Repository::open_bare(&checkout.store).unwrap();
    crate::git::fetch::tip(&store, &lab.remote.borrow(), &super::super::testing::limit()).unwrap();
    fs::remove_file(lab.tree("goes/deep/file")).unwrap();
    fs::create_dir_all(lab.tree("comes/deep")).unwrap();
    fs::remove_dir_all(lab.clone().join("comes")).unwrap();
    lab.push("three");
    lab.deploy().unwrap();
    assert!(!lab.tree("goes").exists() && !lab.tree("comes").exists());
    lab.put("goes", "four");
    lab.push("four");
    lab.deploy().unwrap();
    assert_eq!(lab.read("goes"), "four");
}
