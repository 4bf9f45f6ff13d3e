#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::super::testing::{Lab, git};
use crate::git::{Checkout, run};

/// A host with somebody's own clone where the tree is to be, at the first of two commits.
fn cloned() -> (Lab, String, String) {
    let lab = Lab::new();
    for path in ["compose.yaml", "edited", "gone"] {
        lab.put(path, "one\n");
    }
    let one = lab.push("one");
    git(&lab.root(), &["clone", "-q", "remote.git", "tree"]);
    lab.put("compose.yaml", "two\n");
    lab.put("edited", "two\n");
    lab.put("new", "two\n");
    fs::remove_file(lab.clone().join("gone")).unwrap();
    let two = lab.push("two");
    (lab, one, two)
}

fn adopting(lab: &Lab) -> Checkout {
    Checkout { adopt: true, ..lab.checkout_request() }
}

/// Where the clone's `.git` was moved to.
fn moved(lab: &Lab) -> Option<PathBuf> {
    let folders = fs::read_dir(lab.root().join("data/saved/p/r")).ok()?;
    folders.map(|folder| folder.unwrap().path().join(".git")).find(|path| path.symlink_metadata().is_ok())
}

#[test]
fn a_clone_is_taken_over_when_that_is_asked_for() {
    let (lab, one, two) = cloned();
    lab.host_puts("edited", "mine\n");
    lab.host_puts("data/db", "precious");
    let error = lab.deploy().unwrap_err();
    assert!(error.message.contains("compose.yaml (a file), edited (a file)"), "{error}");
    assert!(error.message.contains("`shiparr deploy p/r --adopt` takes it over"), "{error}");
    let done = lab.deploy_as(&adopting(&lab)).unwrap();
    assert_eq!(done.commit.hash.as_str(), two);
    assert_eq!([lab.read("compose.yaml"), lab.read("edited"), lab.read("new")], ["two\n", "two\n", "two\n"]);
    assert!(!lab.tree("gone").exists());
    assert_eq!(lab.read("data/db"), "precious");
    let git_folder = moved(&lab).unwrap();
    assert_eq!(git(&git_folder, &["rev-parse", "HEAD"]), one);
    assert_eq!(fs::read_to_string(git_folder.with_file_name("edited")).unwrap(), "mine\n");
    assert!(done.notes.iter().any(|note| note.contains("is taken over")), "{:?}", done.notes);
    assert_eq!(git(&lab.tree(""), &["status", "--porcelain"]), "?? data/");
    // It failed before a container was changed.
    assert_eq!(lab.put_back().commit, None);
    assert!(moved(&lab).is_none());
    assert_eq!([lab.read("compose.yaml"), lab.read("edited"), lab.read("gone")], ["one\n", "mine\n", "one\n"]);
    assert_eq!(git(&lab.tree(""), &["status", "--porcelain"]), "M edited\n?? data/");
    // Another try, and then without being asked any more.
    lab.deploy_as(&adopting(&lab)).unwrap();
    crate::git::keep(&lab.checkout_request()).unwrap();
    lab.put("compose.yaml", "three\n");
    lab.push("three");
    lab.deploy().unwrap();
    assert_eq!(lab.read("compose.yaml"), "three\n");
}

#[test]
fn a_clone_at_the_tip_is_accepted_and_moved_only_when_asked() {
    let (lab, ..) = cloned();
    git(&lab.tree(""), &["pull", "-q"]);
    assert_eq!(lab.deploy().unwrap().changed_files, 0);
    assert!(lab.tree(".git/HEAD").exists() && moved(&lab).is_none());
    let done = lab.deploy_as(&adopting(&lab)).unwrap();
    assert_eq!(done.changed_files, 0);
    assert!(lab.tree(".git").is_file() && moved(&lab).is_some());
    lab.put_back();
    assert!(lab.tree(".git/HEAD").exists() && moved(&lab).is_none());
    assert_eq!(git(&lab.tree(""), &["status", "--porcelain"]), "");
}

#[test]
fn a_clone_with_commits_of_its_own_is_left_alone() {
    let (lab, ..) = cloned();
    lab.host_puts("edited", "mine\n");
    git(&lab.tree(""), &["commit", "-q", "-a", "-m", "on the host"]);
    let own = git(&lab.tree(""), &["rev-parse", "HEAD"]);
    let error = lab.deploy_as(&adopting(&lab)).unwrap_err();
    assert!(error.message.contains(&format!("its HEAD is at {own}, which was not fetched: push it")), "{error}");
    assert_eq!((lab.read("edited"), git(&lab.tree(""), &["rev-parse", "HEAD"])), ("mine\n".into(), own));
    assert!(moved(&lab).is_none());
}

#[test]
fn a_head_is_read_in_every_form_and_believed_in_none() {
    let forms: [fn(&Lab); 5] = [
        |lab| drop(git(&lab.tree(""), &["checkout", "-q", "--detach"])),
        |lab| drop(git(&lab.tree(""), &["pack-refs", "--all"])),
        |lab| {
            let head = lab.tree(".git/HEAD");
            fs::remove_file(&head).unwrap();
            symlink("refs/heads/main", head).unwrap();
        },
        // A worktree, whose files of its own lie in another clone.
        |lab| {
            fs::rename(lab.tree(""), lab.root().join("first")).unwrap();
            let tree = lab.tree("").display().to_string();
            git(&lab.root().join("first"), &["worktree", "add", "-q", "-b", "other/branch", &tree]);
            assert!(lab.tree(".git").is_file());
        },
        |lab| {
            fs::rename(lab.tree(".git"), lab.root().join("elsewhere")).unwrap();
            symlink("../elsewhere", lab.tree(".git")).unwrap();
        },
    ];
    for (number, form) in forms.iter().enumerate() {
        let (lab, ..) = cloned();
        form(&lab);
        lab.deploy_as(&adopting(&lab)).unwrap_or_else(|error| panic!("{number}: {error}"));
        assert!(lab.read("compose.yaml") == "two\n" && moved(&lab).is_some(), "{number}");
        run::put_back(&lab.checkout_request()).unwrap();
        assert_eq!(git(&lab.tree(""), &["status", "--porcelain"]), "", "{number}");
    }
    let lies: [fn(&Lab); 5] = [
        |lab| fs::write(lab.tree(".git/HEAD"), "ref: refs/../../../../etc/passwd\n").unwrap(),
        |lab| fs::write(lab.tree(".git/HEAD"), "ref: refs/heads/main\n".repeat(10_000)).unwrap(),
        |lab| fs::write(lab.tree(".git/refs/heads/main"), "ref: refs/heads/main\n").unwrap(),
        |lab| {
            fs::remove_dir_all(lab.tree(".git/refs/heads")).unwrap();
            symlink("/dev", lab.tree(".git/refs/heads")).unwrap();
            fs::write(lab.tree(".git/HEAD"), "ref: refs/heads/zero\n").unwrap();
        },
        |lab| {
            fs::remove_dir_all(lab.tree(".git")).unwrap();
            fs::write(lab.tree(".git"), "gitdir: /nonexistent\n").unwrap();
        },
    ];
    for (number, lie) in lies.iter().enumerate() {
        let (lab, one, _) = cloned();
        lie(&lab);
        let error = lab.deploy_as(&adopting(&lab)).err().map(|error| error.message);
        // A long HEAD is still one that begins with a right line.
        let is_refused = error.as_ref().is_some_and(|error| error.contains("HEAD cannot be read"));
        assert!(is_refused || number == 1, "{number} {one}: {error:?}");
    }
}

#[test]
fn those_who_share_an_adopted_tree_know_what_its_user_had_checked_out() {
    let (lab, ..) = cloned();
    let sharing = |name: &str, path: &str| Checkout {
        store: lab.root().join(format!("data/git/p/{name}.git")),
        name: format!("p/{name}"),
        watch_paths: vec![path.into()],
        shares_local_path: true,
        checked_out: None,
        ..adopting(&lab)
    };
    lab.deploy_as(&sharing("a", "compose.yaml")).unwrap();
    assert!(lab.tree(".git").is_file() && lab.read("edited") == "one\n");
    let done = lab.deploy_as(&sharing("b", "edited")).unwrap();
    assert_eq!((lab.read("edited"), lab.read("compose.yaml")), ("two\n".into(), "two\n".into()));
    assert!(done.notes.is_empty(), "{:?}", done.notes);
}

#[test]
fn a_git_folder_is_moved_across_file_systems_too() {
    let memory = std::path::Path::new("/dev/shm");
    if !memory.is_dir() {
        return;
    }
    let (lab, ..) = cloned();
    fs::set_permissions(lab.tree(".git/description"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    symlink("nowhere", lab.tree(".git/link")).unwrap();
    let elsewhere = tempfile::tempdir_in(memory).unwrap();
    let checkout = Checkout { saved: elsewhere.path().join("saved"), ..adopting(&lab) };
    lab.deploy_as(&checkout).unwrap();
    assert!(lab.tree(".git").is_file());
    let folder = fs::read_dir(&checkout.saved).unwrap().next().unwrap().unwrap().path();
    assert!(folder.join(".git/HEAD").exists());
    run::put_back(&checkout).unwrap();
    assert_eq!(git(&lab.tree(""), &["status", "--porcelain"]), "");
    assert_eq!(fs::read_link(lab.tree(".git/link")).unwrap(), PathBuf::from("nowhere"));
    let mode = fs::metadata(lab.tree(".git/description")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    assert!(!folder.exists(), "nothing is left");
    let left: Vec<_> = fs::read_dir(lab.tree("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}
