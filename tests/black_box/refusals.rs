//! Refusals of a stack that was started by hand, as its owner meets them: one line that says what to write, nothing
//! changed, and success once it is written.

use std::fs;

use crate::support::*;

fn cannot_run() -> bool {
    missing(&[parts::DOCKER, parts::GIT])
}

/// A stack that runs, and whose branch has a file more, so that something would be checked out.
fn lived(compose: &Compose) -> Lived {
    let lived = Lived::new(compose);
    lived.repo.commit(&[("README", "new with Git\n")]);
    lived
}

/// Expects that `entry` is refused, and that `mend` makes it succeed, with nothing changed in between.
#[track_caller]
fn refused_until(lived: &mut Lived, entry: &Entry, words: &[&str], mend: impl FnOnce(&Lived, &str)) {
    lived.daemon.project("home", std::slice::from_ref(entry));
    let before = lived.tree();
    lived.daemon.start();
    let error = lived.refusal();
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} in: {error}");
    lived.assert_untouched("refused");
    before.assert_same(&lived.tree(), &[], &error);
    assert!(files_below(&lived.daemon.data().join("saved")).is_empty());
    mend(lived, &error);
    lived.daemon.wait_for("web", "success");
    lived.assert_data("mended");
}

#[test]
fn an_unset_variable() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut lived = lived(&compose);
        // As it was started with a variable of somebody's shell.
        let text = Lived::text("").replace("${GREETING}", "${GREETING}${FROM_A_SHELL}");
        fs::write(lived.folder.join("compose.yaml"), &text).expect("write a file");
        lived.repo.commit(&[("compose.yaml", &text)]);
        let entry = lived.right_entry();
        refused_until(&mut lived, &entry, &["FROM_A_SHELL", "`unset_variables: blank`"], |lived, _| {
            lived.daemon.change_project("home", &[lived.right_entry().field("environment", "{FROM_A_SHELL: \"\"}")]);
        });
        lived.assert_untouched("with an empty value, as before");
    }
}

#[test]
fn an_unset_variable_that_may_be_blank() {
    if cannot_run() {
        return;
    }
    let mut lived = lived(&composes()[0]);
    let text = Lived::text("").replace("${GREETING}", "${GREETING}${FROM_A_SHELL}");
    fs::write(lived.folder.join("compose.yaml"), &text).expect("write a file");
    lived.repo.commit(&[("compose.yaml", &text)]);
    let entry = lived.right_entry();
    refused_until(&mut lived, &entry, &["FROM_A_SHELL"], |lived, _| {
        lived.daemon.change_project("home", &[lived.right_entry().field("unset_variables", "blank")]);
        lived.daemon.deploy("web");
    });
    lived.assert_untouched("blank, as before");
}

#[test]
fn a_value_that_is_still_encrypted() {
    if cannot_run() || missing(&[parts::SOPS]) {
        return;
    }
    let (mut lived, sops) = (lived(&composes()[0]), Sops::new());
    lived.daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
    lived.repo.write("greeting.env", sops.encrypt(Format::Dotenv, &[("OTHER", "hello")]));
    let text = Lived::text("").replace("  web:\n", "  web:\n    env_file: greeting.env\n");
    fs::write(lived.folder.join("compose.yaml"), &text).expect("write a file");
    lived.repo.commit(&[("compose.yaml", &text)]);
    let entry = lived.right_entry();
    refused_until(&mut lived, &entry, &["OTHER", "`env_file`"], |lived, _| {
        // Under a name that says so, it is decrypted beside itself.
        lived.repo.git(&["mv", "greeting.env", "greeting.env.enc"]);
        lived.repo.commit_all("Encrypted, and named so");
        lived.daemon.change_project("home", &[lived.right_entry().field("env_file", "greeting.env.enc")]);
    });
    assert_eq!(lived.stack.variable("web", "OTHER").as_deref(), Some("hello"));
}

#[test]
fn an_env_file_that_hides_the_decrypted_one() {
    if cannot_run() || missing(&[parts::SOPS]) {
        return;
    }
    let (mut lived, sops) = (lived(&composes()[0]), Sops::new());
    lived.daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
    lived.repo.write("app.env.enc", sops.encrypt(Format::Dotenv, &[("OTHER", "of the commit")]));
    let text = Lived::text("").replace("  web:\n", "  web:\n    env_file: app.env\n");
    fs::write(lived.folder.join("compose.yaml"), &text).expect("write a file");
    // What a person decrypted years ago.
    fs::write(lived.folder.join("app.env"), "OTHER=of the host\n").expect("write a file");
    lived.repo.commit(&[("compose.yaml", &text)]);
    lived.up(&[]);
    let entry = lived.right_entry().field("env_file", "app.env.enc");
    let file = lived.folder.join("app.env");
    refused_until(&mut lived, &entry, &["app.env", "remove that file"], |lived, _| {
        fs::remove_file(&file).expect("remove a file");
        lived.daemon.deploy("web");
    });
    assert_eq!(lived.stack.variable("web", "OTHER").as_deref(), Some("of the commit"));
}

#[test]
fn a_volume_of_another_project() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut lived = lived(&compose);
        let volume = format!("{}-shared", lived.stack.name);
        let label = format!("com.docker.compose.project={}-other", lived.stack.name);
        docker(&["volume", "create", "--label", &label, &volume]);
        let text = |how: &str| {
            let text = Lived::text("")
                .replace("volumes:\n  state: {}\n", &format!("volumes:\n  state: {{}}\n  shared: {how}\n"));
            text.replace("\"state:/state\"", "\"state:/state\", \"shared:/shared\"")
        };
        let foreign = text(&format!("{{name: {volume}}}"));
        fs::write(lived.folder.join("compose.yaml"), &foreign).expect("write a file");
        lived.repo.commit(&[("compose.yaml", &foreign)]);
        let entry = lived.right_entry();
        refused_until(&mut lived, &entry, &[&volume, "`external: true`"], |lived, _| {
            let external = text(&format!("{{name: {volume}, external: true}}"));
            fs::write(lived.folder.join("compose.yaml"), &external).expect("write a file");
            lived.repo.commit(&[("compose.yaml", &external)]);
        });
        lived.daemon.stop();
        drop(lived);
        docker(&["volume", "rm", &volume]);
    }
}

#[test]
fn a_mount_of_an_env_files_temporary_name() {
    if cannot_run() || missing(&[parts::SOPS]) {
        return;
    }
    let (mut lived, sops) = (lived(&composes()[0]), Sops::new());
    lived.daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
    lived.repo.write("app.env.enc", sops.encrypt(Format::Dotenv, &[("OTHER", "hello")]));
    let text = Lived::text("").replace("\"./data:/data\"", "\"./data:/data\", \"./app.env:/app.env:ro\"");
    fs::write(lived.folder.join("compose.yaml"), &text).expect("write a file");
    lived.repo.commit(&[("compose.yaml", &text)]);
    let entry = lived.right_entry().field("env_file", "app.env.enc");
    let same = entry.clone();
    refused_until(&mut lived, &entry, &["app.env"], |lived, error| {
        assert_eq!(lines_to_write(error), [("secret_files".to_owned(), "[app.env.enc]".to_owned())], "{error}");
        lived.daemon.change_project("home", &[written(&same, error)]);
    });
    let web = lived.stack.container("web").expect("it runs");
    assert_eq!(web.run(&["cat", "/app.env"]), "OTHER=hello\n");
}

#[test]
fn two_repositories_cannot_become_one_compose_project_by_a_commit() {
    if cannot_run() {
        return;
    }
    let compose = &composes()[0];
    let mut lived = lived(compose);
    let other = Repo::with(&[("compose.yaml", &format!("name: {}\n{}", lived.stack.name, Stack::compose("other")))]);
    let key = format!("{}-second", lived.stack.name);
    let second = Entry::new(&key, &other.url(), &lived.stack).without("compose_project");
    let free = Stack { name: key.clone() };
    lived.daemon.project("home", &[lived.right_entry()]);
    lived.daemon.start();
    lived.daemon.wait_for_commit("web", &lived.repo.tip());
    lived.daemon.change_project("home", &[lived.right_entry(), second.clone()]);
    let failed = lived.daemon.wait_for(&key, "failed");
    let error = failed["error"].as_str().expect("an error");
    assert!(error.contains("home/web") && error.contains("`compose_project: "), "{error}");
    lived.assert_untouched("refused");
    // Nobody may accept that one.
    let output = lived.daemon.cli(&["deploy", &key, "--adopt", "--follow"]);
    assert!(!output.status.success());
    lived.assert_untouched("refused with --adopt");
    lived.daemon.change_project("home", &[lived.right_entry(), written(&second, error)]);
    lived.daemon.wait_for(&key, "success");
    lived.assert_untouched("beside the other");
    assert_eq!(free.version().as_deref(), Some("other"));
}
