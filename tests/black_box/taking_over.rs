//! Stacks that people started by hand years ago become Shiparr's, and nothing of them is lost or interrupted.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::*;

fn cannot_run() -> bool {
    missing(&[parts::DOCKER, parts::GIT])
}

#[test]
fn a_stack_that_is_configured_rightly_keeps_every_container() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut lived = Lived::new(&compose);
        lived.daemon.project("home", &[lived.right_entry().field("deploy", "manual")]);
        let before = lived.tree();
        lived.daemon.start();
        lived.daemon.wait_for_checks("web", 1);
        lived.deploys(&[]);
        assert_eq!(lived.daemon.repository("web")["status"], "success");
        lived.assert_untouched("after the first deployment");
        // The gitfile, for people, is all that is new.
        fs::remove_file(lived.folder.join(".git")).expect("a gitfile was written");
        before.assert_same(&lived.tree(), &[], "after the first deployment");
        lived.deploys(&[]);
        lived.assert_untouched("after another one");
        // A commit changes a mounted file in place and no container.
        lived.repo.commit(&[("web.conf", "port = 81\n")]);
        lived.deploys(&[]);
        lived.assert_untouched("after a commit");
        let web = lived.stack.container("web").expect("it runs");
        assert_eq!(web.run(&["cat", "/etc/web.conf"]), "port = 81\n");
    }
}

#[test]
fn a_folder_under_another_compose_project_names_that_project() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut lived = Lived::new(&compose);
        lived.repo.commit(&[("README", "new with Git\n")]);
        let key = format!("{}-key", lived.stack.name);
        let entry = lived.entry("web").field("compose_project", &key);
        lived.daemon.project("home", std::slice::from_ref(&entry));
        let before = lived.tree();
        lived.daemon.start();
        let error = lived.refusal();
        assert_eq!(lines_to_write(&error), [("compose_project".to_owned(), lived.stack.name.clone())], "{error}");
        lived.assert_untouched("refused");
        before.assert_same(&lived.tree(), &[], "refused");
        lived.daemon.change_project("home", &[written(&entry, &error)]);
        lived.daemon.wait_for("web", "success");
        lived.assert_untouched("taken over");
    }
}

#[test]
fn the_same_compose_project_from_another_folder_is_refused_and_a_free_name_given() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut lived = Lived::new(&compose);
        let other = lived.daemon.deployments().join("other");
        // The name that is proposed would be `web`, which another test may have.
        let key = format!("{}-free", lived.stack.name);
        let free = Stack { name: key.clone() };
        let mut entry = Entry::new(&key, &lived.repo.url(), &lived.stack).local_path(&other);
        entry = entry.field("environment", "{GREETING: other}");
        lived.daemon.project("home", std::slice::from_ref(&entry));
        lived.daemon.start();
        let failed = lived.daemon.wait_for(&key, "failed");
        let error = failed["error"].as_str().expect("an error");
        assert!(error.contains(&*lived.folder.to_string_lossy()), "{error}");
        assert_eq!(lines_to_write(error), [("compose_project".to_owned(), key.clone())], "{error}");
        lived.assert_untouched("refused");
        assert!(Tree::of(&other).paths().is_empty(), "{:?}", Tree::of(&other).paths());
        lived.daemon.change_project("home", &[written(&entry, error)]);
        lived.daemon.wait_for(&key, "success");
        lived.assert_untouched("with another stack beside it");
        assert!(free.container("web").is_some_and(|container| container.is_running()));
    }
}

#[test]
fn two_stacks_whose_folders_are_both_called_docker() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        // Both were started by hand in folders of the same name, and so are in one compose project.
        let mut lived = Lived::started_in(&compose, &Lived::text(""), |daemon, stack| {
            daemon.deployments().join("a").join(&stack.name)
        });
        let other = lived.daemon.deployments().join("b").join(&lived.stack.name);
        fs::create_dir_all(&other).expect("make a folder");
        let text = Stack::compose("b").replace("  web:", "  bystander:");
        fs::write(other.join("compose.yaml"), text).expect("write a file");
        compose.by_hand(&other, &["up", "-d"]);
        let bystander = || lived.stack.container("bystander").map(|one| (one.id().to_owned(), one.is_running()));
        let was = bystander();
        assert!(was.is_some());
        let ids = lived.ids();

        lived.daemon.project("home", &[lived.right_entry()]);
        let before = lived.tree();
        lived.daemon.start();
        let error = lived.refusal();
        assert!(error.contains(&*other.to_string_lossy()) && error.contains("--adopt"), "{error}");
        assert_eq!(lived.ids(), ids, "{error}");
        before.assert_same(&lived.tree(), &[], "refused");

        lived.deploys(&["--adopt"]);
        assert_eq!(lived.ids(), ids, "adopted");
        lived.assert_data("adopted");
        // The next pushes are not refused, and do not remove what is not ours.
        for version in ["2", "3"] {
            let commit = lived.repo.commit(&[("web.conf", version), ("compose.yaml", &own_service(version))]);
            lived.daemon.wait_for_commit("web", &commit);
            assert_eq!(bystander(), was, "after push {version}");
        }
        let commit = lived.repo.commit(&[("compose.yaml", &Lived::text(""))]);
        lived.daemon.wait_for_commit("web", &commit);
        assert_eq!(bystander(), was);
        assert!(
            lived.stack.container("extra").is_some(),
            "it stays, because --remove-orphans would remove the other too"
        );
        // When the other one is gone, services that were ours and are removed go again.
        compose.by_hand(&other, &["rm", "--force", "--stop", "bystander"]);
        let commit = lived.repo.commit(&[("web.conf", "4")]);
        lived.daemon.wait_for_commit("web", &commit);
        assert!(lived.stack.container("extra").is_none(), "{}: a removed service of ours", compose.name);
        lived.assert_data("at the end");
    }
}

fn own_service(version: &str) -> String {
    let service = format!("  extra:\n    <<: *service\n    environment: {{VERSION: \"{version}\"}}\n");
    Lived::text(&service)
}

#[test]
fn orphans_that_are_not_ours_stay_after_an_adoption() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        // What runs has a service more than the branch.
        let mut lived = Lived::started_in(&compose, &own_service("by hand"), |daemon, stack| {
            daemon.deployments().join(&stack.name)
        });
        fs::write(lived.folder.join("compose.yaml"), Lived::text("")).expect("write a file");
        lived.repo.commit(&[("compose.yaml", &Lived::text("")), ("README", "new with Git\n")]);
        lived.daemon.project("home", &[lived.right_entry()]);
        let before = lived.tree();
        lived.daemon.start();
        let error = lived.refusal();
        let name = lived.stack.container("extra").expect("it runs").name().to_owned();
        assert!(error.contains(&name) && error.contains("--adopt"), "{error}");
        lived.assert_untouched("refused");
        before.assert_same(&lived.tree(), &[], "refused");
        lived.deploys(&["--adopt"]);
        lived.assert_untouched("adopted");
        for version in ["1", "2"] {
            let commit = lived.repo.commit(&[("web.conf", version)]);
            lived.daemon.wait_for_commit("web", &commit);
            lived.assert_untouched("after a push");
        }
        // A daemon that starts anew knows it still.
        lived.daemon.restart();
        let commit = lived.repo.commit(&[("web.conf", "3")]);
        lived.daemon.wait_for_commit("web", &commit);
        lived.assert_untouched("after a restart");
    }
}

#[test]
fn writing_the_missing_service_into_the_compose_file_takes_it_over() {
    if cannot_run() {
        return;
    }
    let compose = &composes()[0];
    let mut lived =
        Lived::started_in(compose, &own_service("1"), |daemon, stack| daemon.deployments().join(&stack.name));
    fs::write(lived.folder.join("compose.yaml"), Lived::text("")).expect("write a file");
    lived.repo.commit(&[("compose.yaml", &Lived::text(""))]);
    lived.daemon.project("home", &[lived.right_entry()]);
    lived.daemon.start();
    let error = lived.refusal();
    assert!(error.contains("write their services into the compose files"), "{error}");
    fs::write(lived.folder.join("compose.yaml"), own_service("1")).expect("write a file");
    let commit = lived.repo.commit(&[("compose.yaml", &own_service("1"))]);
    lived.daemon.wait_for_commit("web", &commit);
    lived.assert_untouched("taken over");
}

#[test]
fn a_renamed_repository_keeps_its_stack() {
    if cannot_run() {
        return;
    }
    let compose = &composes()[0];
    let mut lived = Lived::new(compose);
    lived.daemon.project("home", &[lived.right_entry()]);
    lived.daemon.start();
    lived.daemon.wait_for_commit("web", &lived.repo.tip());
    // With `local_path` and `compose_project` written out the key does not matter.
    lived.daemon.change_project("home", &[lived.entry("site").field("compose_project", &lived.stack.name)]);
    lived.daemon.wait_for_commit("site", &lived.repo.tip());
    lived.assert_untouched("renamed");
    assert_eq!(lived.daemon.repository("web")["orphaned"], true);
}

#[test]
fn a_renamed_repository_in_the_default_folder_is_told_what_to_write() {
    if cannot_run() {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::with(&[("compose.yaml", &Stack::compose("1"))]));
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());
    let id = stack.container("web").expect("it runs").id().to_owned();
    let before = Tree::of(&daemon.tree("home", "web"));
    let entry = Entry::new("site", &repo.url(), &stack);
    daemon.change_project("home", std::slice::from_ref(&entry));
    let failed = daemon.wait_for("site", "failed");
    let error = failed["error"].as_str().expect("an error");
    assert_eq!(lines_to_write(error)[0].0, "local_path", "{error}");
    assert_eq!(stack.container("web").expect("it runs").id(), id);
    daemon.change_project("home", &[written(&entry, error)]);
    daemon.wait_for("site", "success");
    assert_eq!(stack.container("web").expect("it runs").id(), id);
    let after = Tree::of(&daemon.tree("home", "web"));
    before.assert_same(&after, &[".git"], "the tree is the earlier one");
}

#[test]
fn a_changed_compose_project_would_leave_the_data_behind() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut lived = Lived::new(&compose);
        let entry = lived.right_entry();
        lived.daemon.project("home", std::slice::from_ref(&entry));
        lived.daemon.start();
        lived.daemon.wait_for_commit("web", &lived.repo.tip());
        let other = Stack { name: format!("{}-b", lived.stack.name) };
        let before = lived.tree();
        let entry = entry.field("compose_project", &other.name);
        lived.daemon.change_project("home", std::slice::from_ref(&entry));
        let error = lived.refusal();
        assert_eq!(lines_to_write(&error), [("compose_project".to_owned(), lived.stack.name.clone())], "{error}");
        assert!(error.contains(&format!("{}_state", lived.stack.name)), "names the volume: {error}");
        lived.assert_untouched("refused");
        before.assert_same(&lived.tree(), &[], "refused");
        lived.daemon.change_project("home", &[written(&entry, &error)]);
        wait_until(MINUTE, "the success", || (lived.daemon.repository("web")["status"] == "success").then_some(()));
        lived.assert_untouched("as it was");
        // And whoever wants it all the same.
        lived.daemon.change_project("home", std::slice::from_ref(&entry));
        lived.refusal();
        lived.deploys(&["--adopt"]);
        lived.assert_untouched("left beside");
        assert!(other.container("web").is_some_and(|container| container.is_running()));
        let commit = lived.repo.commit(&[("web.conf", "port = 82\n")]);
        lived.daemon.wait_for_commit("web", &commit);
        lived.assert_untouched("left beside after a push");
    }
}

#[test]
fn a_changed_name_in_a_commit_is_refused() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let (stack, other) = (Stack::new(), Stack::new());
        let repo = Repo::with(&[("compose.yaml", &format!("name: {}\n{}", stack.name, Stack::compose("1")))]);
        let mut daemon = Daemon::new();
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        let entry = Entry::new("web", &repo.url(), &stack).without("compose_project");
        daemon.project("home", std::slice::from_ref(&entry));
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        let id = stack.container("web").expect("it runs").id().to_owned();
        let before = Tree::of(&daemon.tree("home", "web"));
        let commit =
            repo.commit(&[("compose.yaml", &format!("name: {}\n{}", other.name, Stack::compose("1"))), ("new", "x")]);
        let failed = daemon.ended_at("web", &commit);
        let error = failed["error"].as_str().expect("an error");
        assert_eq!(lines_to_write(error), [("compose_project".to_owned(), stack.name.clone())], "{error}");
        assert_eq!(stack.container("web").expect("it runs").id(), id);
        assert!(other.containers().is_empty());
        before.assert_same(&Tree::of(&daemon.tree("home", "web")), &[".git"], "refused");
        daemon.change_project("home", &[written(&entry, error)]);
        daemon.wait_for_commit("web", &commit);
        assert_eq!(stack.container("web").expect("it runs").id(), id);
        assert!(other.containers().is_empty());
    }
}

#[test]
fn a_changed_path_is_refused_and_adopt_makes_the_containers_anew() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let (stack, repo) = (Stack::new(), Repo::new());
        let text = Stack::compose_with("1", "    volumes: [\"./data:/data\"]\n");
        for folder in ["a", "b"] {
            repo.write(&format!("{folder}/compose.yaml"), &text);
        }
        repo.commit_all("The stack in two folders");
        let mut daemon = Daemon::new();
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        let entry = Entry::new("web", &repo.url(), &stack).field("path", "a");
        daemon.project("home", std::slice::from_ref(&entry));
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        let id = || stack.container("web").expect("it runs").id().to_owned();
        let (first, before) = (id(), Tree::of(&daemon.tree("home", "web")));
        daemon.change_project("home", &[entry.clone().field("path", "b")]);
        let failed = daemon.wait_for("web", "failed");
        let error = failed["error"].as_str().expect("an error");
        assert!(error.contains("`path`") && error.contains("--adopt"), "{error}");
        assert_eq!(id(), first);
        before.assert_same(&Tree::of(&daemon.tree("home", "web")), &[], "refused");
        let output = daemon.cli(&["deploy", "web", "--adopt", "--follow"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let second = id();
        assert_ne!(second, first, "{}: its data leads to the new folder", compose.name);
        let source = docker(&["inspect", "--format", "{{range .Mounts}}{{.Source}}{{end}}", &second]);
        assert_eq!(source.trim(), daemon.tree("home", "web").join("b/data").to_string_lossy());
        assert!(daemon.tree("home", "web").join("a/data").is_dir(), "the data stays where it is");
        let commit = repo.commit(&[("b/note", "x")]);
        daemon.wait_for_commit("web", &commit);
        assert_eq!(id(), second);
    }
}

#[test]
fn a_changed_local_path_is_refused() {
    if cannot_run() {
        return;
    }
    let compose = &composes()[0];
    let mut lived = Lived::new(compose);
    let entry = lived.right_entry();
    lived.daemon.project("home", std::slice::from_ref(&entry));
    lived.daemon.start();
    lived.daemon.wait_for_commit("web", &lived.repo.tip());
    let elsewhere = lived.daemon.deployments().join("elsewhere");
    let moved = entry.clone().local_path(&elsewhere).field("environment", "{GREETING: hello}");
    lived.daemon.change_project("home", &[moved]);
    let error = lived.refusal();
    assert!(error.contains("`local_path`") && error.contains(&*lived.folder.to_string_lossy()), "{error}");
    lived.assert_untouched("refused");
    assert!(Tree::of(&elsewhere).paths().is_empty(), "{:?}", Tree::of(&elsewhere).paths());
    lived.daemon.change_project("home", &[entry]);
    wait_until(MINUTE, "the success", || (lived.daemon.repository("web")["status"] == "success").then_some(()));
    lived.assert_untouched("put back");
}

#[test]
fn a_container_name_that_somebody_else_has() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let stack = Stack::new();
        let (name, other) = (format!("{}-mine", stack.name), format!("{}-other", stack.name));
        docker(&["run", "-d", "--network", "none", "--name", &name, IMAGE, "sleep", "86400"]);
        let holder = RemovedAtEnd(vec![name.clone(), other.clone()]);
        let id = || docker(&["inspect", "--format", "{{.Id}} {{.State.Running}}", &name]);
        let was = id();
        let repo = Repo::with(&[("compose.yaml", &Stack::compose_with("1", &format!("    container_name: {name}\n")))]);
        let mut daemon = Daemon::new();
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        daemon.project("home", &[Entry::new("web", &repo.url(), &stack)]);
        daemon.start();
        let failed = daemon.wait_for("web", "failed");
        let error = failed["error"].as_str().expect("an error");
        assert!(error.contains(&format!("`container_name: {name}`")) && error.contains("docker rename"), "{error}");
        assert_eq!(id(), was);
        assert!(stack.containers().is_empty());
        docker(&["rename", &name, &other]);
        daemon.succeeded(daemon.deploy("web"));
        assert!(stack.version().is_some());
        drop(holder);
    }
}

/// Containers that no label tells from others.
struct RemovedAtEnd(Vec<String>);

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("docker").args(["rm", "--force", name]).output();
        }
    }
}

#[test]
fn a_stack_in_a_folder_that_a_link_leads_to_keeps_every_container() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut lived = Lived::started_in(&compose, &Lived::text(""), |daemon, stack| {
            let real = daemon.deployments().join("disk");
            fs::create_dir_all(&real).expect("make a folder");
            symlink(&real, daemon.deployments().join("stacks")).expect("make a link");
            daemon.deployments().join("stacks").join(&stack.name)
        });
        lived.daemon.project("home", &[lived.right_entry()]);
        lived.daemon.start();
        lived.daemon.wait_for_commit("web", &lived.repo.tip());
        lived.assert_untouched("taken over");
    }
}

#[test]
fn a_stack_that_names_its_project_in_its_own_env_file_keeps_every_container() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let mut lived = Lived::new(&compose);
        // The folder is called otherwise, and nothing but `.env` says what the project is.
        let text = format!("GREETING=hello\nCOMPOSE_PROJECT_NAME={}\n", lived.stack.name);
        fs::write(lived.folder.join(".env"), &text).expect("write a file");
        compose.by_hand(&lived.folder, &["up", "-d"]);
        lived.daemon.project("home", &[lived.entry("web")]);
        let ids = lived.ids();
        lived.daemon.start();
        lived.daemon.wait_for_commit("web", &lived.repo.tip());
        assert_eq!(lived.ids(), ids, "{}", compose.name);
        assert_eq!(fs::read_to_string(lived.folder.join(".env")).expect("it is there"), text);
    }
}

#[test]
fn a_stack_of_several_files_in_a_sub_folder_keeps_every_container() {
    if cannot_run() {
        return;
    }
    for compose in composes() {
        let (stack, mut daemon, repo) = (Stack::new(), Daemon::new(), Repo::new());
        if let Some(config) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", config);
        }
        let top = daemon.deployments().join("everything");
        let files = [
            ("docker/docker-compose.yml", Stack::compose_with("1", "    volumes: [\"../data:/data\"]\n")),
            ("docker/docker-compose.prod.yml", "services: {web: {environment: {MODE: prod}}}\n".to_owned()),
        ];
        for (path, text) in &files {
            repo.write(path, text);
            fs::create_dir_all(top.join(path).parent().expect("it has a folder")).expect("make a folder");
            fs::write(top.join(path), text).expect("write a file");
        }
        repo.commit_all("Two files");
        let up = ["-p", &stack.name, "-f", "docker-compose.yml", "-f", "docker-compose.prod.yml", "up", "-d"];
        compose.by_hand(&top.join("docker"), &up);
        let id = stack.container("web").expect("it runs").id().to_owned();
        let entry = Entry::new("web", &repo.url(), &stack).local_path(&top).field("path", "docker/");
        daemon.project("home", &[entry.field("compose_files", "[docker-compose.yml, docker-compose.prod.yml]")]);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        assert_eq!(stack.container("web").expect("it runs").id(), id, "{}", compose.name);
    }
}
