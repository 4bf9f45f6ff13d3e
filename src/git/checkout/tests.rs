#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::super::testing::{Lab, git};
use crate::git::GitError;
use crate::model::Chance;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn identity(path: &Path) -> (u64, i64, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

/// Everything that lies in the working tree, with its content.
fn snapshot(lab: &Lab) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![lab.tree("")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let content = if path.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if path.is_dir() {
                folders.push(path.clone());
                "/".to_owned()
            } else {
                fs::read_to_string(&path).unwrap()
            };
            found.push((path.display().to_string(), content));
        }
    }
    found.sort();
    found
}

fn collides(lab: &Lab) -> GitError {
    let before = snapshot(lab);
    let error = lab.deploy().unwrap_err();
    assert_eq!(snapshot(lab), before, "something was written");
    assert_eq!(error.chance, Chance::CanPass);
    error
}

#[test]
fn the_first_checkout_makes_the_whole_tree() {
    let lab = Lab::new();
    lab.put("compose.yaml", "services: {}");
    lab.put("conf/a/app.conf", "x");
    lab.put("run.sh", "#!/bin/sh");
    fs::set_permissions(lab.clone().join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("conf/a", lab.clone().join("link")).unwrap();
    let hash = lab.push("Begin\n\nWith a body");
    let done = lab.deploy().unwrap();
    assert_eq!((done.commit.hash.as_str(), done.commit.subject.as_str()), (hash.as_str(), "Begin"));
    assert_eq!((done.commit.author.as_str(), done.changed_files), ("A Person", 4));
    assert_eq!(lab.read("conf/a/app.conf"), "x");
    assert_eq!(fs::read_link(lab.tree("link")).unwrap(), Path::new("conf/a"));
    assert_eq!(
        [mode(&lab.tree("run.sh")), mode(&lab.tree("compose.yaml")), mode(&lab.tree("conf/a"))],
        [0o755, 0o644, 0o755]
    );
    assert_eq!(lab.deploy().unwrap().changed_files, 0);
    assert_eq!(git(&lab.tree(""), &["status", "--porcelain"]), "", "people can look at it with git");
}

#[test]
fn changed_files_keep_their_inode_and_others_are_not_touched() {
    let lab = Lab::new();
    lab.put("same", "same");
    lab.put("grows", "short");
    lab.put("shrinks", "very much longer");
    lab.put("gone/deep/file", "x");
    lab.put("runs", "x");
    lab.push("one");
    lab.deploy().unwrap();
    fs::write(lab.tree("gone/data"), "untracked").unwrap();
    let (same, grows, shrinks) =
        (identity(&lab.tree("same")), identity(&lab.tree("grows")), identity(&lab.tree("shrinks")));
    lab.put("grows", "much longer than before");
    lab.put("shrinks", "less");
    fs::remove_dir_all(lab.clone().join("gone")).unwrap();
    fs::set_permissions(lab.clone().join("runs"), fs::Permissions::from_mode(0o755)).unwrap();
    lab.push("two");
    assert_eq!(lab.deploy().unwrap().changed_files, 4);
    assert_eq!(identity(&lab.tree("same")), same);
    assert_eq!([identity(&lab.tree("grows")).0, identity(&lab.tree("shrinks")).0], [grows.0, shrinks.0]);
    assert_eq!((lab.read("grows").as_str(), lab.read("shrinks").as_str()), ("much longer than before", "less"));
    assert!(!lab.tree("gone/deep").exists());
    assert_eq!(lab.read("gone/data"), "untracked");
    assert_eq!(mode(&lab.tree("runs")), 0o755);
    assert_eq!(lab.saved(), []);
}

#[test]
fn untracked_things_in_the_way_stop_it_before_anything_is_written() {
    let lab = Lab::new();
    lab.put("first", "1");
    lab.put(".gitignore", "*.db\n");
    lab.push("one");
    lab.deploy().unwrap();
    lab.host_puts("data.db", "precious");
    lab.host_puts("settings", "mine");
    lab.host_puts("folder/inside", "mine");
    fs::create_dir(lab.tree("empty")).unwrap();
    lab.host_puts("file", "mine");
    symlink("/etc", lab.tree("link")).unwrap();
    symlink("/etc/hostname", lab.tree("file-link")).unwrap();
    lab.put("first", "2");
    for path in ["data.db", "settings", "folder", "empty", "file/inside", "link/inside", "file-link"] {
        lab.put(path, "theirs");
    }
    lab.push("two");
    let error = collides(&lab);
    for named in
        ["data.db (a file)", "settings (a file)", "folder/inside (a file)", "empty (a folder)", "file (a file)"]
    {
        assert!(error.message.contains(named), "{named}: {error}");
    }
    assert!(error.message.contains("link (a link)") && error.message.contains("file-link (a link)"), "{error}");
    assert_eq!(lab.read("first"), "1");
}

#[test]
fn many_files_in_the_way_are_counted() {
    let lab = Lab::new();
    for number in 0..30 {
        lab.put(&format!("file-{number:02}"), "theirs");
        lab.host_puts(&format!("file-{number:02}"), "mine");
    }
    lab.push("one");
    assert!(collides(&lab).message.contains("file-09 (a file) and 20 more"));
}

#[test]
fn untracked_files_with_the_commits_content_are_accepted() {
    let lab = Lab::new();
    git(&lab.root(), &["init", "-q", "tree"]);
    lab.host_puts("compose.yaml", "services: {}");
    lab.host_puts("data/db", "precious");
    lab.put("compose.yaml", "services: {}");
    lab.put("new", "new");
    lab.push("one");
    let before = identity(&lab.tree("compose.yaml"));
    assert_eq!(lab.deploy().unwrap().changed_files, 1);
    assert_eq!(identity(&lab.tree("compose.yaml")), before);
    assert!(lab.tree(".git/HEAD").exists(), "somebody's own clone stays what it is");
    assert_eq!(lab.read("data/db"), "precious");
}

#[test]
fn files_changed_on_the_host_are_kept_and_become_what_the_commit_says() {
    let lab = Lab::new();
    for path in ["changed", "both", "deleted", "removed", "dir/linked", "replaced-by-folder"] {
        lab.put(path, "one\n");
    }
    lab.push("one");
    lab.deploy().unwrap();
    for path in ["changed", "both", "removed"] {
        lab.host_puts(path, "a secret\n");
    }
    fs::remove_file(lab.tree("deleted")).unwrap();
    fs::remove_file(lab.tree("dir/linked")).unwrap();
    symlink("/nowhere", lab.tree("dir/linked")).unwrap();
    lab.put("both", "two\n");
    fs::remove_file(lab.clone().join("removed")).unwrap();
    lab.push("two");
    let notes = lab.deploy().unwrap().notes.clone();
    assert_eq!(
        (lab.read("changed"), lab.read("both"), lab.read("deleted")),
        ("one\n".into(), "two\n".into(), "one\n".into())
    );
    assert!(!lab.tree("removed").exists());
    assert_eq!(lab.read("dir/linked"), "one\n");
    let saved = lab.saved();
    let names: Vec<&str> = saved.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["both", "both.diff", "changed", "changed.diff", "dir/linked", "removed", "removed.diff"]);
    assert_eq!(saved[0].1, "a secret\n");
    assert!(saved[1].1.contains("-one\n+a secret"), "{}", saved[1].1);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("both, changed, removed, dir/linked") || notes[0].contains("dir/linked"), "{notes:?}");
    assert!(!notes[0].contains("a secret"));
    let top = fs::read_dir(lab.root().join("data/saved/p/r")).unwrap().next().unwrap().unwrap().path();
    assert_eq!([mode(&top), mode(&top.join("changed")), mode(&top.join("changed.diff"))], [0o700, 0o600, 0o600]);
}

#[test]
fn a_folder_replaced_by_a_link_is_never_followed() {
    let lab = Lab::new();
    lab.put("conf/app.conf", "one");
    lab.push("one");
    lab.deploy().unwrap();
    let outside = lab.root().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("app.conf"), "one").unwrap();
    fs::remove_dir_all(lab.tree("conf")).unwrap();
    symlink(&outside, lab.tree("conf")).unwrap();
    lab.put("conf/app.conf", "two");
    lab.push("two");
    assert!(collides(&lab).message.contains("conf (a link)"));
    fs::remove_dir_all(lab.clone().join("conf")).unwrap();
    lab.push("three");
    lab.deploy().unwrap();
    assert_eq!(fs::read_to_string(outside.join("app.conf")).unwrap(), "one");
}

#[test]
fn files_folders_and_links_take_each_others_places() {
    let lab = Lab::new();
    lab.put("to-folder", "1");
    lab.put("to-file/a", "1");
    lab.put("to-file/b/c", "1");
    lab.put("to-link", "1");
    symlink("to-folder", lab.clone().join("from-link")).unwrap();
    symlink("x", lab.clone().join("other-link")).unwrap();
    lab.push("one");
    lab.deploy().unwrap();
    for path in ["to-folder", "to-link", "from-link", "other-link"] {
        fs::remove_file(lab.clone().join(path)).unwrap();
    }
    fs::remove_dir_all(lab.clone().join("to-file")).unwrap();
    lab.put("to-folder/inside", "2");
    lab.put("to-file", "2");
    lab.put("from-link/inside", "2");
    symlink("gone", lab.clone().join("to-link")).unwrap();
    symlink("y", lab.clone().join("other-link")).unwrap();
    lab.push("two");
    lab.host_puts("to-file/b/data", "precious");
    assert!(collides(&lab).message.contains("to-file/b/data (a file)"));
    fs::remove_file(lab.tree("to-file/b/data")).unwrap();
    lab.deploy().unwrap();
    assert_eq!(
        (lab.read("to-folder/inside"), lab.read("to-file"), lab.read("from-link/inside")),
        ("2".into(), "2".into(), "2".into())
    );
    assert_eq!(fs::read_link(lab.tree("to-link")).unwrap(), Path::new("gone"));
    assert_eq!(fs::read_link(lab.tree("other-link")).unwrap(), Path::new("y"));
    assert_eq!(lab.saved(), []);
}

#[test]
fn rewritten_history_another_branch_and_another_url_are_followed() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.push("one");
    lab.deploy().unwrap();
    lab.host_puts("data", "precious");
    git(&lab.clone(), &["checkout", "-q", "--orphan", "other"]);
    lab.put("file", "rewritten");
    let hash = lab.push("a new beginning");
    assert_eq!(lab.deploy().unwrap().commit.hash.as_str(), hash);
    git(&lab.clone(), &["tag", "-a", "v1", "-m", "a tag"]);
    lab.put("file", "later");
    lab.push("later");
    git(&lab.clone(), &["push", "-q", "origin", "v1"]);
    lab.remote.borrow_mut().branch = "refs/tags/v1".to_owned();
    assert_eq!(lab.deploy().unwrap().commit.hash.as_str(), hash, "an annotated tag's commit");
    assert_eq!(lab.read("file"), "rewritten");
    let second = Lab::new();
    second.put("elsewhere", "x");
    second.push("another repository");
    let url = second.root().join("remote.git").display().to_string();
    *lab.remote.borrow_mut() = super::super::testing::remote(&url);
    lab.deploy().unwrap();
    assert!(!lab.tree("file").exists() && lab.tree("elsewhere").exists());
    assert_eq!(lab.read("data"), "precious");
    assert_eq!(lab.saved(), []);
}

#[test]
fn a_branch_that_is_not_there_is_answered_with_those_that_are() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.push("one");
    git(&lab.clone(), &["push", "-q", "origin", "HEAD:refs/heads/dev"]);
    lab.remote.borrow_mut().branch = "mian".to_owned();
    let error = lab.deploy().unwrap_err();
    assert!(error.message.starts_with("there is no `mian` in file:///"), "{error}");
    assert!(error.message.ends_with("there are `dev`, `main`"), "{error}");
    assert_eq!(error.chance, Chance::Final);
}

#[test]
fn a_damaged_store_is_made_anew() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.push("one");
    lab.deploy().unwrap();
    let store = lab.checkout_request().store;
    type Damage = fn(&Path);
    let damages: [Damage; 6] = [
        |store| fs::remove_file(store.join("HEAD")).unwrap(),
        |store| fs::write(store.join("HEAD"), "nonsense").unwrap(),
        |store| fs::remove_dir_all(store.join("objects")).unwrap(),
        |store| {
            for entry in fs::read_dir(store.join("objects/pack")).unwrap() {
                let path = entry.unwrap().path();
                let length = fs::metadata(&path).unwrap().len();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
                let middle = vec![0; usize::try_from(length).unwrap() / 2];
                fs::write(&path, middle).unwrap();
            }
        },
        |store| {
            fs::remove_dir_all(store).unwrap();
            fs::write(store, "a file").unwrap();
        },
        |store| fs::remove_dir_all(store).unwrap(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        lab.host_puts("data", "precious");
        damage(&store);
        lab.put("file", format!("after {number}"));
        lab.push("next");
        let done = lab.deploy().unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(lab.read("file"), format!("after {number}"));
        assert_eq!(lab.read("data"), "precious");
        let is_said = done.notes.iter().any(|note| note.contains("was damaged"));
        // Without `HEAD` it is an empty folder, and a wrong one is simply set right.
        assert_eq!(is_said, (2..=4).contains(&number), "{number}: {:?}", done.notes);
    }
    assert_eq!(lab.saved(), []);
}

#[test]
fn a_new_local_path_holds_nothing_of_ours() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.push("one");
    lab.deploy().unwrap();
    let mut checkout = lab.checkout_request();
    checkout.local_path = lab.root().join("elsewhere/deep");
    fs::create_dir_all(&checkout.local_path).unwrap();
    fs::write(checkout.local_path.join("file"), "precious").unwrap();
    let deploy = || lab.deploy_as(&checkout);
    assert!(deploy().unwrap_err().message.contains("file (a file)"));
    fs::remove_dir_all(lab.root().join("elsewhere")).unwrap();
    deploy().unwrap();
    assert_eq!(fs::read_to_string(checkout.local_path.join("file")).unwrap(), "one");
}

#[test]
fn a_path_that_cannot_be_written_is_named_with_its_owner_before_anything_is() {
    let lab = Lab::new();
    lab.put("a", "one");
    lab.put("locked/b", "one");
    lab.push("one");
    lab.deploy().unwrap();
    let lock = |flag: &str| {
        let status = std::process::Command::new("chattr").arg(flag).arg(lab.tree("locked/b")).output();
        status.is_ok_and(|output| output.status.success())
    };
    if !lock("+i") {
        return;
    }
    lab.put("a", "two");
    lab.put("locked/b", "two");
    lab.push("two");
    let error = lab.deploy().unwrap_err();
    assert!(lock("-i"));
    assert!(error.message.contains("locked/b (owner root)"), "{error}");
    assert!(error.message.contains("run `sudo ch"), "{error}");
    assert_eq!(lab.read("a"), "one");
    lab.deploy().unwrap();
    assert_eq!((lab.read("a"), lab.read("locked/b")), ("two".into(), "two".into()));
}

#[test]
fn a_hostile_tree_is_refused() {
    for name in ["..", ".git", ".GIT", "a/b"] {
        let lab = Lab::new();
        let remote = git2::Repository::open_bare(lab.root().join("remote.git")).unwrap();
        let blob = remote.blob(b"evil").unwrap();
        let raw = [format!("100644 {name}\0").as_bytes(), blob.as_bytes()].concat();
        let tree = remote.odb().unwrap().write(git2::ObjectType::Tree, &raw).unwrap();
        let author = git2::Signature::now("x", "x@example.com").unwrap();
        let tree = remote.find_tree(tree).unwrap();
        remote.commit(Some("refs/heads/main"), &author, &author, "evil", &tree, &[]).unwrap();
        let error = lab.deploy().unwrap_err();
        assert!(error.message.contains("never checked out") && error.chance == Chance::Final, "{name}: {error}");
    }
}

#[test]
fn a_store_does_not_grow_with_the_number_of_pushes() {
    let lab = Lab::new();
    for number in 0..40 {
        lab.put("file", format!("version {number}"));
        lab.push("next");
        lab.deploy().unwrap();
    }
    let packs = fs::read_dir(lab.checkout_request().store.join("objects/pack")).unwrap().count() / 2;
    assert!(packs < crate::git::tidy::MAX_PACKS, "{packs} packs");
    git(&lab.checkout_request().store, &["fsck", "--full", "--strict"]);
}

#[test]
fn lfs_pointers_are_named() {
    let lab = Lab::new();
    lab.put("movie", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
    lab.push("one");
    let notes = lab.deploy().unwrap().notes.clone();
    assert!(notes[0].contains("Git LFS is not supported") && notes[0].ends_with(": movie"), "{notes:?}");
}

#[test]
fn a_program_that_runs_is_replaced() {
    let lab = Lab::new();
    fs::copy("/bin/sleep", lab.clone().join("tool")).unwrap();
    lab.push("one");
    lab.deploy().unwrap();
    let mut running = std::process::Command::new(lab.tree("tool")).arg("60").spawn().unwrap();
    lab.put("tool", "#!/bin/sh\n");
    lab.push("two");
    let done = lab.deploy();
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(done.unwrap().notes[0].contains("tool is a program that runs"));
    assert_eq!((lab.read("tool"), mode(&lab.tree("tool"))), ("#!/bin/sh\n".into(), 0o755));
}

#[test]
fn a_file_with_other_names_is_replaced_so_that_they_keep_their_content() {
    let lab = Lab::new();
    for path in ["config", "twin-a", "twin-b", "tool"] {
        lab.put(path, "one");
    }
    lab.push("one");
    lab.deploy().unwrap();
    let snapshot = lab.root().join("snapshot");
    fs::create_dir(&snapshot).unwrap();
    for path in ["config", "tool"] {
        fs::hard_link(lab.tree(path), snapshot.join(path)).unwrap();
    }
    fs::remove_file(lab.tree("twin-b")).unwrap();
    fs::hard_link(lab.tree("twin-a"), lab.tree("twin-b")).unwrap();
    lab.put("config", "two");
    lab.put("twin-a", "two");
    fs::set_permissions(lab.clone().join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    lab.push("two");
    let done = lab.deploy().unwrap();
    assert_eq!(
        (lab.read("config"), lab.read("twin-a"), lab.read("twin-b")),
        ("two".into(), "two".into(), "one".into())
    );
    assert_eq!(fs::read_to_string(snapshot.join("config")).unwrap(), "one");
    assert_eq!([mode(&lab.tree("tool")), mode(&snapshot.join("tool"))], [0o755, 0o644]);
    assert_eq!(done.notes.len(), 1, "{:?}", done.notes);
    assert!(
        done.notes[0].contains("(hard links)") && done.notes[0].contains("config, tool, twin-a;"),
        "{:?}",
        done.notes
    );
    assert_eq!((done.changed_files, lab.deploy().unwrap().changed_files), (3, 0));
}

#[test]
fn an_empty_folder_that_docker_left_in_place_of_a_tracked_file_makes_room() {
    let lab = Lab::new();
    lab.put("app.conf", "one");
    lab.put("other.conf", "one");
    lab.push("one");
    lab.deploy().unwrap();
    for path in ["app.conf", "other.conf"] {
        fs::remove_file(lab.tree(path)).unwrap();
        fs::create_dir(lab.tree(path)).unwrap();
    }
    fs::create_dir(lab.tree("other.conf/made-by-somebody")).unwrap();
    assert!(collides(&lab).message.contains("other.conf (a folder)"));
    fs::remove_dir(lab.tree("other.conf/made-by-somebody")).unwrap();
    fs::write(lab.tree("other.conf/data"), "precious").unwrap();
    assert!(collides(&lab).message.contains("other.conf/data (a file)"));
    fs::remove_file(lab.tree("other.conf/data")).unwrap();
    lab.put("app.conf", "two");
    lab.push("two");
    assert_eq!(lab.deploy().unwrap().changed_files, 2);
    assert_eq!((lab.read("app.conf"), lab.read("other.conf")), ("two".into(), "one".into()));
}

#[test]
fn copies_of_changed_files_never_take_each_others_names() {
    let lab = Lab::new();
    let long = "x".repeat(255);
    for path in ["a", "a.diff", "a.2.diff", &long] {
        lab.put(path, "one\n");
    }
    lab.push("one");
    lab.deploy().unwrap();
    for path in ["a", "a.diff", "a.2.diff", &long] {
        lab.host_puts(path, format!("mine {path}\n"));
    }
    lab.deploy().unwrap();
    let saved = lab.saved();
    for path in ["a", "a.diff", "a.2.diff", &long] {
        assert!(saved.contains(&(path.to_owned(), format!("mine {path}\n"))), "{path}: {saved:?}");
        assert_eq!(lab.read(path), "one\n");
    }
    assert_eq!(saved.len(), 8, "each with its difference");
}

#[test]
fn a_commit_with_a_path_below_a_file_is_refused_whole() {
    let lab = Lab::new();
    let remote = git2::Repository::open_bare(lab.root().join("remote.git")).unwrap();
    let blob = remote.blob(b"evil").unwrap();
    let odb = remote.odb().unwrap();
    let entry =
        |mode: &str, name: &str, oid: git2::Oid| [format!("{mode} {name}\0").as_bytes(), oid.as_bytes()].concat();
    let inner = odb.write(git2::ObjectType::Tree, &entry("100644", "b", blob)).unwrap();
    let raw = [entry("100644", "a", blob), entry("120000", "link", blob), entry("40000", "a", inner)].concat();
    let tree = odb.write(git2::ObjectType::Tree, &raw).unwrap();
    let author = git2::Signature::now("x", "x@example.com").unwrap();
    remote.commit(Some("refs/heads/main"), &author, &author, "evil", &remote.find_tree(tree).unwrap(), &[]).unwrap();
    let error = lab.deploy().unwrap_err();
    assert!(error.message.contains("never checked out: \"a/b\"") && error.chance == Chance::Final, "{error}");
    assert!(!lab.tree("a").exists());
}

#[test]
fn what_a_message_names_breaks_no_line() {
    let lab = Lab::new();
    lab.put("a\nb\u{1b}[2J", "theirs");
    lab.push("one");
    lab.host_puts("a\nb\u{1b}[2J", "mine");
    let error = collides(&lab);
    assert!(!error.message.contains(char::is_control), "{error:?}");
}
