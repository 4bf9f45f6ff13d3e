#![allow(clippy::disallowed_methods, reason = "tests make their fixtures with real programs")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::testing::{Lab, Manners, Server, credential, git, limit, remote};
use crate::git::run;

/// What lies at a path: kind, content, mode, owner.
type Thing = (String, u32, u32);

/// Everything in the working tree, with its inodes.
fn look(lab: &Lab) -> (BTreeMap<String, Thing>, BTreeMap<String, u64>) {
    let (mut things, mut inodes, mut folders) = (BTreeMap::new(), BTreeMap::new(), vec![lab.tree("")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if metadata.is_dir() {
                folders.push(path.clone());
                "/".to_owned()
            } else {
                fs::read_to_string(&path).unwrap()
            };
            let name = path.strip_prefix(lab.tree("")).unwrap().display().to_string();
            inodes.insert(name.clone(), metadata.ino());
            things.insert(name, (content, metadata.mode(), metadata.uid()));
        }
    }
    (things, inodes)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A tree of every kind of thing, changed on the host in every way, and a commit that changes all of it.
fn everything(lab: &Lab) -> (String, String) {
    for path in [
        "same",
        "rewritten",
        "grows",
        "runs",
        "edited",
        "edited-and-gone",
        "deleted",
        "to-folder",
        "to-link",
        "linked",
        "to-file/a",
        "to-file/b/c",
        "gone/deep/file",
        "with-data/file",
        "closed/file",
        "docker-made",
        "special",
    ] {
        lab.put(path, format!("one {path}\n"));
    }
    symlink("same", lab.clone().join("link")).unwrap();
    symlink("same", lab.clone().join("link-to-file")).unwrap();
    symlink("same", lab.clone().join("link-to-folder")).unwrap();
    let one = lab.push("one");
    lab.deploy().unwrap();
    super::super::keep(&lab.checkout_request()).unwrap();

    lab.host_puts("edited", "edited here");
    set_mode(&lab.tree("edited"), 0o600);
    lab.host_puts("edited-and-gone", "edited here, too");
    fs::remove_file(lab.tree("deleted")).unwrap();
    lab.host_puts("with-data/data", "precious");
    set_mode(&lab.tree("closed"), 0o710);
    set_mode(&lab.tree("closed/file"), 0o640);
    set_mode(&lab.tree("special"), 0o4755);
    set_mode(&lab.tree("to-file/b"), 0o750);
    fs::remove_file(lab.tree("docker-made")).unwrap();
    fs::create_dir(lab.tree("docker-made")).unwrap();
    fs::hard_link(lab.tree("linked"), lab.root().join("other-name")).unwrap();

    for path in ["edited-and-gone", "to-folder", "to-link", "link-to-file", "link-to-folder"] {
        fs::remove_file(lab.clone().join(path)).unwrap();
    }
    for path in ["to-file", "gone", "with-data", "closed"] {
        fs::remove_dir_all(lab.clone().join(path)).unwrap();
    }
    for path in ["rewritten", "edited", "linked", "special", "to-folder/x/y", "to-file", "link-to-file"] {
        lab.put(path, "two");
    }
    lab.put("grows", "two, and much longer than before\n".repeat(100));
    lab.put("link-to-folder/inside", "two");
    lab.put("new/deep/file", "two");
    lab.put("docker-made", "two");
    set_mode(&lab.clone().join("runs"), 0o755);
    symlink("same", lab.clone().join("to-link")).unwrap();
    fs::remove_file(lab.clone().join("link")).unwrap();
    symlink("elsewhere", lab.clone().join("link")).unwrap();
    (one, lab.push("two"))
}

#[test]
fn everything_lies_there_again_as_before() {
    let lab = Lab::new();
    let (one, two) = everything(&lab);
    let (before, inodes) = look(&lab);
    for _ in 0..2 {
        assert_eq!(lab.deploy().unwrap().commit.hash.as_str(), two);
        assert_eq!((lab.read("to-file"), lab.read("edited")), ("two".into(), "two".into()));
        assert_ne!(look(&lab).0, before);
        let done = lab.put_back();
        assert_eq!(done.commit.unwrap().as_str(), one);
        assert!(matches!(&done.notes[..], [note] if note.ends_with("lies in its place again")), "{:?}", done.notes);
        assert_eq!(fs::read_dir(lab.root().join("data/saved/p/r")).unwrap().count(), 0, "tries do not add up");
        let (after, now) = look(&lab);
        assert_eq!(after, before);
        let made_anew =
            ["gone", "to-", "link", "closed", "edited-and-gone", "docker-made", "deleted", "with-data/file"];
        for (path, inode) in &inodes {
            let may_change = made_anew.iter().any(|prefix| path.starts_with(prefix));
            assert!(may_change || now[path] == *inode, "{path} is another file now");
        }
        assert_eq!(
            git(&lab.checkout_request().store, &["rev-parse", "refs/shiparr/checked-out", "HEAD"]),
            format!("{one}\n{one}")
        );
    }
    assert_eq!(lab.put_back().commit.unwrap().as_str(), one, "nothing is left to be put back");
    lab.deploy().unwrap();
    super::super::keep(&lab.checkout_request()).unwrap();
    let kept = look(&lab).0;
    assert_eq!(lab.put_back().commit.unwrap().as_str(), two);
    assert_eq!(look(&lab).0, kept, "what was kept is not put back");
}

#[test]
fn what_somebody_changed_meanwhile_stays_and_is_named() {
    let lab = Lab::new();
    for path in ["a", "b", "c", "d", "kind"] {
        lab.put(path, "one");
    }
    lab.push("one");
    lab.deploy().unwrap();
    for path in ["a", "b", "c", "made/x", "made/y"] {
        lab.put(path, "two");
    }
    fs::remove_file(lab.clone().join("d")).unwrap();
    fs::remove_file(lab.clone().join("kind")).unwrap();
    lab.put("kind/inside", "two");
    let two = lab.push("two");
    lab.deploy().unwrap();
    lab.host_puts("a", "mine");
    fs::remove_file(lab.tree("b")).unwrap();
    set_mode(&lab.tree("c"), 0o600);
    lab.host_puts("d", "mine");
    lab.host_puts("made/x", "mine");
    lab.host_puts("made/data", "precious");
    lab.host_puts("kind/data", "precious");
    let done = lab.put_back();
    assert_eq!([lab.read("a"), lab.read("b"), lab.read("c"), lab.read("d")], ["mine", "one", "two", "mine"]);
    assert_eq!([lab.read("made/x"), lab.read("made/data"), lab.read("kind/data")], ["mine", "precious", "precious"]);
    assert!(!lab.tree("made/y").exists() && !lab.tree("kind/inside").exists());
    assert_eq!(done.notes.len(), 1, "{:?}", done.notes);
    assert!(done.notes[0].contains("changed since it was checked out: made/x, a, c, d, kind"), "{:?}", done.notes);
    // What the checkout wrote and stayed is still known as its own.
    lab.known_commit.replace(done.commit);
    for path in ["made/x", "made/data", "kind/data", "d"] {
        fs::remove_file(lab.tree(path)).unwrap();
    }
    fs::remove_dir(lab.tree("kind")).unwrap();
    assert_eq!(lab.deploy().unwrap().commit.hash.as_str(), two);
    assert_eq!([lab.read("a"), lab.read("c"), lab.read("kind/inside")], ["two", "two", "two"]);
    let saved: Vec<String> = lab.saved().into_iter().map(|(name, _)| name).collect();
    assert_eq!(saved, ["a", "a.diff"]);
}

#[test]
fn links_in_a_folder_that_somebody_removed_come_back_with_it() {
    let lab = Lab::new();
    lab.put("folder/file", "one");
    symlink("file", lab.clone().join("folder/link")).unwrap();
    lab.push("one");
    lab.deploy().unwrap();
    fs::remove_file(lab.clone().join("folder/link")).unwrap();
    lab.put("folder/link", "a file now");
    lab.push("two");
    lab.deploy().unwrap();
    fs::remove_dir_all(lab.tree("folder")).unwrap();
    assert_eq!(lab.put_back().notes, Vec::<String>::new());
    assert_eq!(fs::read_link(lab.tree("folder/link")).unwrap(), Path::new("file"));
}

#[test]
fn an_empty_file_that_was_taken_for_a_cut_off_one_comes_back() {
    let lab = Lab::new();
    lab.put("old", "one");
    lab.push("one");
    lab.deploy().unwrap();
    lab.put("acme.json", "two");
    lab.put("gone.json", "two");
    let two = lab.push("two");
    // A run of the second commit that was ended before it came to these files, as far as anybody can tell.
    let checkout = lab.checkout_request();
    let store = git2::Repository::open_bare(&checkout.store).unwrap();
    crate::git::fetch::tip(&store, &lab.remote.borrow(), &limit()).unwrap();
    let mut journal = super::Journal::read(&checkout.store.with_extension("journal"), &checkout.local_path);
    super::tests_killed::begin(&mut journal, &two, &["acme.json", "gone.json"]);
    lab.host_puts("acme.json", "");
    lab.host_puts("gone.json", "");
    set_mode(&lab.tree("acme.json"), 0o600);
    fs::remove_file(lab.clone().join("gone.json")).unwrap();
    lab.push("three");
    let before = look(&lab).0;
    lab.deploy().unwrap();
    assert_eq!([lab.read("acme.json"), lab.read("gone.json")], ["two", ""]);
    lab.put_back();
    assert_eq!(look(&lab).0, before);
}

#[test]
fn a_file_takes_the_place_of_a_link_to_a_secret_one_and_gives_it_back() {
    let lab = Lab::new();
    lab.put("tls.key.enc", "one");
    lab.push("one");
    lab.deploy().unwrap();
    let secrets = lab.root().join("run/secret-files");
    symlink(secrets.join("x"), lab.tree("tls.key")).unwrap();
    symlink(lab.root().join("run/other"), lab.tree("mine")).unwrap();
    fs::remove_file(lab.clone().join("tls.key.enc")).unwrap();
    for path in ["tls.key", "mine"] {
        lab.put(path, "two");
    }
    lab.push("two");
    let checkout = crate::git::Checkout { linked_secrets: Some(secrets), ..lab.checkout_request() };
    let before = look(&lab).0;
    let error = lab.deploy_as(&checkout).unwrap_err();
    assert!(error.message.contains("own files: mine (a link); nothing"), "{error}");
    assert_eq!(look(&lab).0, before);
    fs::remove_file(lab.tree("mine")).unwrap();
    let before = look(&lab).0;
    lab.deploy_as(&checkout).unwrap();
    assert_eq!(lab.read("tls.key"), "two");
    lab.put_back();
    assert_eq!(look(&lab).0, before);
}

#[test]
fn only_what_stays_of_a_commit_that_was_taken_back_is_still_ours() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.push("one");
    lab.deploy().unwrap();
    // Committed by mistake as it lies on the host.
    lab.host_puts(".env", "precious");
    lab.put(".env", "precious");
    lab.put("file", "two");
    lab.put("made", "two");
    lab.push("two");
    lab.deploy().unwrap();
    set_mode(&lab.tree("made"), 0o600);
    let done = lab.put_back();
    assert!(done.notes[0].ends_with("changed since it was checked out: made"), "{:?}", done.notes);
    lab.known_commit.replace(done.commit);
    for path in [".env", "made"] {
        fs::remove_file(lab.clone().join(path)).unwrap();
    }
    lab.push("three");
    lab.deploy().unwrap();
    assert_eq!((lab.read(".env"), lab.tree("made").exists()), ("precious".into(), false));
}

#[test]
fn a_first_checkout_that_is_put_back_leaves_nothing_of_ours() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.put("there", "one");
    lab.put("folder/file", "one");
    let one = lab.push("one");
    lab.host_puts("there", "one");
    lab.host_puts("data", "precious");
    let before = look(&lab);
    lab.deploy().unwrap();
    assert!(lab.tree(".git").exists());
    let done = lab.put_back();
    assert_eq!((done.commit, done.notes), (None, Vec::new()));
    assert_eq!(look(&lab), before);
    // The database may still say what was checked out: a file that comes now is somebody's all the same.
    assert_eq!(lab.known_commit.borrow().as_ref().unwrap().as_str(), one);
    lab.host_puts("file", "mine");
    assert!(lab.deploy().unwrap_err().message.contains("file (a file)"));
    assert_eq!(lab.read("file"), "mine");
}

#[test]
fn without_the_store_what_was_made_goes_and_what_was_saved_comes_back() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.put("edited", "one");
    lab.push("one");
    lab.deploy().unwrap();
    lab.host_puts("edited", "mine");
    for path in ["file", "edited", "new/file"] {
        lab.put(path, "two");
    }
    lab.push("two");
    lab.deploy().unwrap();
    let store = lab.checkout_request().store;
    fs::remove_dir_all(&store).unwrap();
    let done = lab.put_back();
    assert_eq!((lab.read("file"), lab.read("edited")), ("two".into(), "mine".into()));
    assert!(!lab.tree("new").exists());
    assert!(done.notes[0].contains("its content is not kept any more: file"), "{:?}", done.notes);
    lab.known_commit.replace(done.commit);
    lab.deploy().unwrap();
    assert_eq!((lab.read("file"), lab.read("edited")), ("two".into(), "two".into()));
}

#[test]
fn a_file_that_cannot_be_written_stops_only_itself_and_is_put_back_later() {
    let lab = Lab::new();
    let (one, _) = everything(&lab);
    let before = look(&lab).0;
    lab.deploy().unwrap();
    let lock = |flag: &str| {
        let status = std::process::Command::new("chattr").arg(flag).arg(lab.tree("rewritten")).output();
        status.is_ok_and(|output| output.status.success())
    };
    if !lock("+i") {
        return;
    }
    let error = run::put_back(&lab.checkout_request()).unwrap_err();
    let half = look(&lab).0;
    assert!(lock("-i"));
    assert!(error.message.contains("rewritten"), "{error}");
    assert!(!half.contains_key("new") && half["edited"] == before["edited"]);
    assert_eq!(lab.put_back().commit.unwrap().as_str(), one);
    assert_eq!(look(&lab).0, before);
}

#[test]
fn a_record_that_makes_no_sense_is_said_and_dropped() {
    let lab = Lab::new();
    lab.put("file", "one");
    let one = lab.push("one");
    lab.deploy().unwrap();
    fs::write(lab.checkout_request().undo_file(), "{\"local_path\":").unwrap();
    let done = lab.put_back();
    assert!(done.notes[0].contains("makes no sense") && done.commit.unwrap().as_str() == one, "{:?}", done.notes);
    assert_eq!((lab.put_back().notes, lab.read("file")), (Vec::new(), "one".into()));
    lab.put("file", "two");
    lab.push("two");
    lab.deploy().unwrap();
    fs::remove_dir_all(lab.tree("")).unwrap();
    assert!(lab.put_back().notes[0].contains("is gone"), "nothing is made where somebody has removed all");
    assert!(!lab.tree("").exists());
}

#[test]
fn contents_stay_in_the_store_until_they_are_not_needed_to_be_put_back() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.push("one");
    lab.deploy().unwrap();
    for round in 0..40 {
        git(&lab.clone(), &["checkout", "-q", "--orphan", &format!("other-{round}")]);
        lab.put("file", format!("rewritten {round}"));
        lab.push("a new beginning");
        lab.deploy().unwrap();
        let before = if round == 0 { "one".to_owned() } else { format!("rewritten {}", round - 1) };
        lab.put_back();
        assert_eq!(lab.read("file"), before);
        lab.deploy().unwrap();
    }
    let held = git(&lab.checkout_request().store, &["for-each-ref", "refs/shiparr/held"]);
    assert_eq!(held.lines().count(), 2, "{held}");
}

#[test]
fn half_of_a_commit_is_known_again_after_history_was_rewritten_beneath_it() {
    let lab = Lab::new();
    lab.put("file", "a".repeat(100));
    let one = lab.push("one");
    lab.deploy().unwrap();
    lab.put("file", "b".repeat(50));
    lab.push("two");
    lab.deploy().unwrap();
    // As a kill leaves it; and what is fetched before it is put back has nothing of the second commit.
    lab.host_puts("file", "b".repeat(30) + &"a".repeat(70));
    git(&lab.checkout_request().store, &["update-ref", "refs/shiparr/checked-out", &one]);
    for round in 0..20 {
        git(&lab.clone(), &["checkout", "-q", "--orphan", &format!("other-{round}")]);
        lab.put("file", "c");
        lab.push("a new beginning");
        run::look_ahead(&lab.remote.borrow(), &lab.checkout_request(), &limit()).unwrap();
    }
    assert_eq!(lab.put_back().notes, Vec::<String>::new());
    assert_eq!(lab.read("file"), "a".repeat(100));
}

#[test]
fn files_of_submodules_are_put_back() {
    let lab = Lab::new();
    lab.put("file", "one");
    lab.push("one");
    let _server = {
        let server = Server::start(&lab.root(), Manners::default());
        *lab.remote.borrow_mut() = remote(&server.url("remote.git"));
        lab.remote.borrow_mut().credential = credential("any");
        server
    };
    let module = Lab::new();
    let mut commits = Vec::new();
    for content in ["first", "second"] {
        module.put("inside", content);
        git(&module.clone(), &["checkout", "-q", "--orphan", content]);
        commits.push(module.push(content));
        git(&module.clone(), &["push", "-q", "origin", &format!("HEAD:refs/heads/{content}")]);
    }
    std::fs::rename(module.root().join("remote.git"), lab.root().join("module.git")).unwrap();
    lab.put(".gitmodules", "[submodule \"m\"]\n\tpath = libs/m\n\turl = ../module.git\n");
    git(&lab.clone(), &["add", ".gitmodules"]);
    for commit in &commits {
        git(&lab.clone(), &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},libs/m")]);
        git(&lab.clone(), &["commit", "-q", "-m", "with a submodule"]);
        git(&lab.clone(), &["push", "-q", "-f", "origin", "HEAD:main"]);
        lab.deploy().unwrap();
    }
    assert_eq!(lab.read("libs/m/inside"), "second");
    lab.put_back();
    assert_eq!(lab.read("libs/m/inside"), "first");
}

#[test]
fn a_full_disk_is_freed_of_what_was_made_first() {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    fn bytes_below(path: &Path) -> u64 {
        let inside = fs::read_dir(path).into_iter().flatten().map(|entry| bytes_below(&entry.unwrap().path()));
        inside.sum::<u64>() + path.symlink_metadata().unwrap().blocks() * 512
    }
    const BYTES: usize = 300_000;
    const DISK_BYTES: u64 = 3 * 1024 * 1024;
    let lab = Lab::new();
    let disk = lab.root().join("disk");
    fs::create_dir(&disk).unwrap();
    let mount = ["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "none"];
    if !std::process::Command::new("mount").args(mount).arg(&disk).status().is_ok_and(|status| status.success()) {
        return;
    }
    let _mounted = Mounted(disk.clone());
    let noise = |seed: u32| -> Vec<u8> {
        std::iter::successors(Some(seed), |value| Some(value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
            .map(|value| value.to_be_bytes()[0])
            .take(BYTES)
            .collect()
    };
    for folder in ["data", "tree"] {
        fs::create_dir(disk.join(folder)).unwrap();
        symlink(disk.join(folder), lab.root().join(folder)).unwrap();
    }
    lab.put("shrinks", noise(1));
    lab.put("goes", noise(2));
    lab.push("one");
    lab.deploy().unwrap();
    lab.put("shrinks", "small");
    lab.put("comes", noise(3));
    fs::remove_file(lab.clone().join("goes")).unwrap();
    lab.push("two");
    lab.deploy().unwrap();
    let mut filler = fs::File::create(disk.join("filler")).unwrap();
    // Children of other tests, until they run their programs, hold what was deleted, and give its space only then.
    let end = Instant::now() + Duration::from_secs(20);
    while bytes_below(&disk) < DISK_BYTES - 64 * 1024 && Instant::now() < end {
        while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
        std::thread::yield_now();
    }
    // Not all of it fits: what does not is told, and nothing is lost.
    let error = run::put_back(&lab.checkout_request()).unwrap_err();
    assert!(error.message.contains("no space left"), "{error}");
    assert!(!lab.tree("comes").exists());
    drop(filler);
    fs::remove_file(disk.join("filler")).unwrap();
    assert_eq!(lab.put_back().notes, Vec::<String>::new());
    assert!(fs::read(lab.tree("shrinks")).unwrap() == noise(1) && fs::read(lab.tree("goes")).unwrap() == noise(2));
}
