//! With the real sops and age.
#![allow(clippy::disallowed_methods, reason = "the tests run the real sops and age, with this process's PATH")]

use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Duration;

use super::*;
use crate::command::Command;
use crate::secrets::RuntimeFolder;

const KEY: [u8; 32] = [7; 32];

/// A working tree with a key, and the two folders of a daemon.
struct Lab {
    folder: tempfile::TempDir,
    sops: Sops,
    recipient: String,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        for name in ["runtime", "data", "tree/stack/certs"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let key = folder.path().join("key");
        run("age-keygen", &["-o", key.to_str().unwrap()], b"");
        let recipient = String::from_utf8(run("age-keygen", &["-y", key.to_str().unwrap()], b"")).unwrap();
        let environment = vec![path_variable(), ("SOPS_AGE_KEY_FILE".into(), key.into())];
        let sops = Sops { program: "sops".into(), environment };
        Lab { folder, sops, recipient: recipient.trim().to_owned() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(path)
    }

    fn files(&self) -> MountedFiles {
        MountedFiles::new(&self.path("runtime"), &self.path("data"), &KEY)
    }

    /// Encrypts as sops does with a file whose ending it does not know.
    fn encrypt(&self, path: &str, content: &[u8]) {
        let args = ["-e", "--age", &self.recipient, "--input-type", "binary", "--output-type", "binary", "/dev/stdin"];
        std::fs::write(self.path(path), run("sops", &args, content)).unwrap();
    }

    fn decrypt(&self, path: &str) -> Result<Decrypted, SecretsError> {
        self.files().decrypt(&self.path(path), path, &self.path("tree"), &self.sops, &limit())
    }

    fn switch(&self, repository: &str, paths: &[&str]) -> Vec<MountedFile> {
        let files: Vec<Decrypted> = paths.iter().map(|path| self.decrypt(path).unwrap()).collect();
        self.files().switch(&named(repository), &files).unwrap()
    }

    /// A deployment of one file that ends well.
    fn deploy(&self, repository: &str, path: &str) {
        self.switch(repository, &[path]);
        self.files().settle(&named(repository)).unwrap();
    }

    fn restore(&self) -> Restored {
        self.files().restore(&self.sops, &limit())
    }

    /// As a reboot leaves it.
    fn empty_the_runtime_folder(&self) {
        std::fs::remove_dir_all(self.path("runtime")).unwrap();
        std::fs::create_dir(self.path("runtime")).unwrap();
    }

    fn plaintexts(&self) -> Vec<PathBuf> {
        let folder = self.path("runtime/secret-files");
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.sort();
        found
    }
}

fn named(name: &str) -> RepositoryName {
    RepositoryName { project: "home".to_owned(), name: name.to_owned() }
}

fn limit() -> Limit {
    Limit::after(Duration::from_secs(60))
}

fn path_variable() -> (std::ffi::OsString, std::ffi::OsString) {
    ("PATH".into(), std::env::var_os("PATH").unwrap())
}

fn run(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let captured =
        Command::new(program, &[path_variable()]).args(args).input(input).capture(&limit(), 1 << 20).unwrap();
    assert!(captured.status.success(), "{program}: {}", captured.stderr);
    captured.stdout
}

fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

#[test]
fn a_file_lies_in_memory_behind_a_link_that_stays() {
    let lab = Lab::new();
    let binary = [0, 159, 146, 150, b'\n', 0];
    lab.encrypt("tree/stack/tls.key.enc", &binary);
    let file = lab.decrypt("tree/stack/tls.key.enc").unwrap();
    assert_eq!(file.text(), None);
    let link = lab.path("tree/stack/tls.key");
    assert!(!is_there(&link) && lab.plaintexts().is_empty(), "nothing changes before the switch");
    let new = lab.files().switch(&named("web"), &[file]).unwrap();
    assert_eq!(new.iter().map(|file| &file.link).collect::<Vec<_>>(), [&link]);
    assert_eq!(std::fs::read(&link).unwrap(), binary);
    let target = std::fs::read_link(&link).unwrap();
    assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o777, 0o444);
    assert_eq!(std::fs::metadata(target.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    assert!(is_link(&link, &lab.path("runtime")));
    assert_eq!(RuntimeFolder::clean_leftovers(&lab.path("runtime"), &lab.path("data"), &[]), [""; 0]);
    assert_eq!(std::fs::read(&link).unwrap(), binary, "it is nothing that an interrupted deployment left");
}

#[test]
fn a_file_is_new_until_an_up_has_ended_well_with_it() {
    let lab = Lab::new();
    lab.encrypt("tree/stack/a.enc", b"one");
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]).len(), 1);
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]).len(), 1, "no up has ended");
    lab.files().settle(&named("web")).unwrap();
    let inode = || std::fs::metadata(lab.path("tree/stack/a")).unwrap().ino();
    let before = inode();
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]), []);
    assert_eq!(inode(), before, "the same content is not written again");

    let mut running = std::fs::File::open(lab.path("tree/stack/a")).unwrap();
    lab.encrypt("tree/stack/a.enc", b"two");
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]).len(), 1);
    assert_eq!(std::fs::read(lab.path("tree/stack/a")).unwrap(), b"two");
    let mut kept = String::new();
    running.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "one", "who has it open keeps it");
    // Back again before any `up` has ended well: some containers may have been made with the other one.
    lab.encrypt("tree/stack/a.enc", b"one");
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]).len(), 1);
}

#[test]
fn only_the_file_that_changed_is_new() {
    let lab = Lab::new();
    let paths = ["tree/stack/key.enc", "tree/stack/certs/key.enc"];
    for (path, content) in paths.iter().zip([b"1", b"2"]) {
        lab.encrypt(path, content);
    }
    lab.switch("web", &paths);
    lab.files().settle(&named("web")).unwrap();
    assert_eq!(std::fs::read(lab.path("tree/stack/key")).unwrap(), b"1");
    assert_eq!(std::fs::read(lab.path("tree/stack/certs/key")).unwrap(), b"2", "one base name, two files");
    lab.encrypt(paths[1], b"3");
    let new = lab.switch("web", &paths);
    assert_eq!(new.iter().map(|file| &file.link).collect::<Vec<_>>(), [&lab.path("tree/stack/certs/key")]);
}

#[test]
fn what_lies_under_the_links_name_stays_and_is_named() {
    let lab = Lab::new();
    lab.encrypt("tree/stack/tls.key.enc", b"one");
    let link = lab.path("tree/stack/tls.key");
    let places: [fn(&Path); 3] = [
        |path| std::fs::write(path, "mine").unwrap(),
        |path| std::fs::create_dir(path).unwrap(),
        |path| symlink("/somewhere/secret-files/0123-tls.key", path).unwrap(),
    ];
    for place in places {
        place(&link);
        let before = std::fs::symlink_metadata(&link).unwrap();
        let error = lab.decrypt("tree/stack/tls.key.enc").err().unwrap();
        assert!(error.message.starts_with(link.to_str().unwrap()), "{error}");
        assert_eq!(error.message.contains("Docker leaves one"), before.is_dir(), "{error}");
        assert_eq!(std::fs::symlink_metadata(&link).unwrap().ino(), before.ino());
        std::fs::remove_file(&link).or_else(|_| std::fs::remove_dir(&link)).unwrap();
    }
}

#[test]
fn a_switch_that_fails_changes_nothing() {
    let lab = Lab::new();
    let paths = ["tree/stack/a.enc", "tree/stack/b.enc"];
    paths.iter().for_each(|path| lab.encrypt(path, b"old"));
    lab.deploy("web", paths[0]);
    paths.iter().for_each(|path| lab.encrypt(path, b"new"));
    let plaintexts = lab.plaintexts();
    let decrypted = || paths.map(|path| lab.decrypt(path).unwrap());
    let recorded = lab.files().files(&named("web")).unwrap();
    let still_old = || {
        assert_eq!(lab.plaintexts(), plaintexts);
        assert_eq!(lab.files().files(&named("web")).unwrap(), recorded);
        assert_eq!(std::fs::read(lab.path("tree/stack/a")).unwrap(), b"old");
    };

    let files = decrypted();
    std::fs::write(lab.path("tree/stack/b"), "came meanwhile").unwrap();
    let error = lab.files().switch(&named("web"), &files).unwrap_err();
    assert!(error.message.contains("tree/stack/b lies where the link"), "{error}");
    still_old();
    std::fs::remove_file(lab.path("tree/stack/b")).unwrap();

    // Nothing can be written there, as where the memory is full.
    let files = decrypted();
    let name = files[1].target.file_name().unwrap().to_str().unwrap();
    let obstacle = files[1].target.with_file_name(format!(".{name}"));
    std::fs::create_dir(&obstacle).unwrap();
    lab.files().switch(&named("web"), &files).unwrap_err();
    std::fs::remove_dir(obstacle).unwrap();
    still_old();
    assert!(!is_there(&lab.path("tree/stack/b")));

    assert_eq!(lab.files().switch(&named("web"), &decrypted()).unwrap().len(), 2);
    assert_eq!(std::fs::read(lab.path("tree/stack/b")).unwrap(), b"new");
}

#[test]
fn a_switch_is_undone_whole() {
    let lab = Lab::new();
    let paths = ["tree/stack/a.enc", "tree/stack/b.enc"];
    paths.iter().for_each(|path| lab.encrypt(path, b"old"));
    lab.deploy("web", paths[0]);
    let (plaintexts, recorded) = (lab.plaintexts(), lab.files().files(&named("web")).unwrap());
    paths.iter().for_each(|path| lab.encrypt(path, b"new"));
    let decrypted = paths.map(|path| lab.decrypt(path).unwrap());
    let before = lab.files().before(&named("web"), &decrypted).unwrap();
    assert_eq!(lab.files().switch(&named("web"), &decrypted).unwrap().len(), 2);
    lab.files().switch_back(&named("web"), &before).unwrap();
    assert_eq!(std::fs::read(lab.path("tree/stack/a")).unwrap(), b"old");
    assert!(!is_there(&lab.path("tree/stack/b")));
    assert_eq!(lab.plaintexts(), plaintexts);
    assert_eq!(lab.files().files(&named("web")).unwrap(), recorded);
}

#[test]
fn what_is_not_named_any_more_goes_and_what_is_not_ours_stays() {
    let lab = Lab::new();
    let paths = ["tree/stack/a.enc", "tree/stack/b.enc", "tree/stack/c.enc"];
    paths.iter().for_each(|path| lab.encrypt(path, b"x"));
    lab.switch("web", &paths);
    std::fs::remove_file(lab.path("tree/stack/c")).unwrap();
    std::fs::write(lab.path("tree/stack/c"), "mine").unwrap();
    let gone = lab.files().keep_only(&named("web"), &[lab.path("tree/stack/a")]).unwrap();
    assert_eq!(gone, [lab.path("tree/stack/b"), lab.path("tree/stack/c")]);
    assert!(!is_there(&lab.path("tree/stack/b")) && is_there(&lab.path("tree/stack/b.enc")));
    assert_eq!(std::fs::read(lab.path("tree/stack/c")).unwrap(), b"mine");
    assert_eq!(lab.plaintexts(), [std::fs::read_link(lab.path("tree/stack/a")).unwrap()]);
    lab.files().keep_only(&named("web"), &[]).unwrap();
    assert!(!is_there(&lab.path("tree/stack/a")) && lab.plaintexts().is_empty());
    assert_eq!(std::fs::read_dir(lab.path("data/secret-files")).unwrap().count(), 0);
    assert_eq!(lab.files().keep_only(&named("web"), &[]).unwrap(), [""; 0].map(PathBuf::from));
}

#[test]
fn a_file_that_two_repositories_name_goes_with_the_second() {
    let lab = Lab::new();
    lab.encrypt("tree/stack/a.enc", b"one");
    lab.deploy("web", "tree/stack/a.enc");
    lab.deploy("media", "tree/stack/a.enc");
    lab.encrypt("tree/stack/a.enc", b"two");
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]).len(), 1);
    assert_eq!(lab.switch("media", &["tree/stack/a.enc"]).len(), 1, "its containers have the earlier content too");
    assert_eq!(lab.files().keep_only(&named("web"), &[]).unwrap(), [""; 0].map(PathBuf::from));
    assert_eq!(std::fs::read(lab.path("tree/stack/a")).unwrap(), b"two");
    lab.files().keep_only(&named("media"), &[]).unwrap();
    assert!(!is_there(&lab.path("tree/stack/a")) && lab.plaintexts().is_empty());
}

#[test]
fn after_a_reboot_everything_is_made_again() {
    let lab = Lab::new();
    lab.encrypt("tree/stack/a.enc", b"one");
    lab.encrypt("tree/stack/b.enc", b"two");
    lab.deploy("web", "tree/stack/a.enc");
    lab.deploy("media", "tree/stack/b.enc");
    let before = lab.plaintexts();
    lab.empty_the_runtime_folder();
    // Somebody removed one link by hand.
    std::fs::remove_file(lab.path("tree/stack/b")).unwrap();
    let restored = lab.restore();
    assert_eq!(restored.problems, []);
    assert_eq!(restored.repositories, [named("media"), named("web")]);
    assert_eq!(lab.plaintexts(), before);
    assert_eq!(std::fs::read(lab.path("tree/stack/a")).unwrap(), b"one");
    assert_eq!(std::fs::read(lab.path("tree/stack/b")).unwrap(), b"two");
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]), [], "it is the content that the containers have");
}

#[test]
fn what_is_there_is_left_alone_and_what_nobody_names_goes() {
    let lab = Lab::new();
    lab.encrypt("tree/stack/a.enc", b"one");
    lab.deploy("web", "tree/stack/a.enc");
    let target = lab.plaintexts().remove(0);
    let inode = std::fs::metadata(&target).unwrap().ino();
    // A crash has left this one, and a deployment was interrupted before its switch.
    std::fs::write(target.with_file_name(".0123-a"), "half").unwrap();
    lab.encrypt("tree/stack/a.enc", b"two");
    let no_sops = Sops { program: "sops-is-not-here".into(), environment: Vec::new() };
    let restored = lab.files().restore(&no_sops, &limit());
    assert!(restored.problems.is_empty() && restored.repositories.is_empty(), "{restored:?}");
    assert_eq!(std::fs::metadata(&target).unwrap().ino(), inode);
    assert_eq!(lab.plaintexts(), std::slice::from_ref(&target));

    // A whole machine that crashed can leave a cut file where the runtime folder is a disk.
    std::fs::remove_file(&target).unwrap();
    std::fs::write(&target, "o").unwrap();
    assert_eq!(lab.restore().repositories, [named("web")]);
    assert_eq!(std::fs::read(&target).unwrap(), b"two", "there is no other content any more");
    lab.encrypt("tree/stack/a.enc", b"one");
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]).len(), 1, "containers may have started with the other one");
}

#[test]
fn what_cannot_be_made_again_is_named_and_tried_again() {
    let lab = Lab::new();
    for (name, path) in [("web", "tree/stack/a.enc"), ("media", "tree/stack/b.enc"), ("chat", "tree/stack/c.enc")] {
        lab.encrypt(path, b"x");
        lab.deploy(name, path);
    }
    lab.empty_the_runtime_folder();
    std::fs::remove_file(lab.path("tree/stack/b.enc")).unwrap();
    std::fs::remove_file(lab.path("tree/stack/c")).unwrap();
    std::fs::write(lab.path("tree/stack/c"), "mine").unwrap();
    let no_key = Sops { program: "sops".into(), environment: vec![path_variable()] };
    let problems = lab.files().restore(&no_key, &limit()).problems;
    assert_eq!(problems.len(), 3, "{problems:?}");
    let restored = lab.restore();
    assert_eq!(restored.repositories, [named("web")]);
    assert_eq!(std::fs::read(lab.path("tree/stack/a")).unwrap(), b"x");
    let problem = |name: &str| {
        let of = |found: &&NotRestored| found.repository == Some(named(name));
        restored.problems.iter().find(of).unwrap_or_else(|| panic!("{name}: {restored:?}")).problem.clone()
    };
    assert!(problem("media").contains("stack/b.enc does not exist"), "{}", problem("media"));
    assert!(problem("chat").contains("tree/stack/c lies where the link"), "{}", problem("chat"));
    assert_eq!(std::fs::read(lab.path("tree/stack/c")).unwrap(), b"mine");
}

#[test]
fn a_damaged_record_stops_no_start_and_removes_nothing() {
    let lab = Lab::new();
    for (name, path) in [("web", "tree/stack/a.enc"), ("media", "tree/stack/b.enc")] {
        lab.encrypt(path, b"x");
        lab.deploy(name, path);
    }
    let record = lab.path("data/secret-files/home.media.json");
    std::fs::write(&record, "{").unwrap();
    std::fs::remove_file(std::fs::read_link(lab.path("tree/stack/a")).unwrap()).unwrap();
    let restored = lab.restore();
    assert_eq!(restored.repositories, [named("web")]);
    assert_eq!(restored.problems.len(), 1, "{restored:?}");
    assert!(restored.problems[0].problem.contains("home.media.json is damaged"), "{restored:?}");
    assert_eq!(restored.problems[0].repository, Some(named("media")));
    assert_eq!(std::fs::read(lab.path("tree/stack/b")).unwrap(), b"x");
    // What the message says to do.
    std::fs::remove_file(record).unwrap();
    assert_eq!(lab.switch("media", &["tree/stack/b.enc"]).len(), 1);
}

#[test]
fn another_runtime_folder_takes_the_links_along() {
    let lab = Lab::new();
    lab.encrypt("tree/stack/a.enc", b"x");
    lab.deploy("web", "tree/stack/a.enc");
    std::fs::create_dir(lab.path("other")).unwrap();
    let elsewhere = MountedFiles::new(&lab.path("other"), &lab.path("data"), &KEY);
    assert_eq!(elsewhere.restore(&lab.sops, &limit()).problems, []);
    assert!(is_link(&lab.path("tree/stack/a"), &lab.path("other")));
    // And back, by a deployment.
    assert_eq!(lab.switch("web", &["tree/stack/a.enc"]), []);
    assert!(is_link(&lab.path("tree/stack/a"), &lab.path("runtime")));
}

#[test]
fn the_link_that_an_env_file_has_for_a_time_becomes_one_that_stays() {
    let lab = Lab::new();
    lab.encrypt("tree/stack/.env.enc", b"A=x");
    let mut folder = RuntimeFolder::create(&lab.path("runtime"), &lab.path("data"), "7").unwrap();
    let passing = folder.write(".env", "A=x").unwrap();
    folder.link_beside(&lab.path("tree/stack/.env.enc"), &passing, None).unwrap();
    lab.deploy("web", "tree/stack/.env.enc");
    drop(folder);
    assert_eq!(std::fs::read(lab.path("tree/stack/.env")).unwrap(), b"A=x");
    assert!(!is_there(&lab.path("data/links/7.json")));
    let mut folder = RuntimeFolder::create(&lab.path("runtime"), &lab.path("data"), "8").unwrap();
    let passing = folder.write(".env", "A=x").unwrap();
    let linked = folder.link_beside(&lab.path("tree/stack/.env.enc"), &passing, None).unwrap();
    assert_eq!(linked, crate::secrets::runtime::Linked::Lasting);
}

#[test]
fn what_is_no_secret_file_is_refused_with_its_name() {
    let lab = Lab::new();
    std::fs::write(lab.path("tree/stack/plain.enc"), "not encrypted").unwrap();
    std::fs::write(lab.path("tree/stack/cut.sops.yaml"), "a: ENC[AES256_GCM,data:x]").unwrap();
    std::fs::write(lab.path("outside.enc"), "x").unwrap();
    symlink(lab.path("outside.enc"), lab.path("tree/stack/out.enc")).unwrap();
    symlink(lab.path("data"), lab.path("tree/away")).unwrap();
    for (name, part) in [
        ("tree/stack/plain.enc", "is not encrypted: encrypt it with"),
        ("tree/stack/cut.sops.yaml", "damaged"),
        ("tree/stack/out.enc", "outside its repository"),
        ("tree/stack/absent.enc", "does not exist"),
        ("tree/stack/tls.key", "rename it to tree/stack/tls.key.enc"),
        ("tree/away/x.enc", "leads out of its repository"),
    ] {
        let error = lab.decrypt(name).err().unwrap();
        assert!(error.message.contains(part) && !error.message.contains('\n'), "{name}: {error}");
        assert!(error.message.contains(name) || name.starts_with("tree/away"), "{name}: {error}");
    }
}
