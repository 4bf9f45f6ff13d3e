//! Compose files in the shapes that people have, on each Compose that is here.

use std::path::Path;

use crate::support::*;

/// A stack of `tests/fixtures/stacks`, deployed, with every `shiparr-test-layout` in it replaced by a name of its own.
struct Layout {
    stack: Stack,
    repo: Repo,
    daemon: Daemon,
    compose: &'static str,
}

impl Layout {
    fn deployed(name: &str, compose: &Compose, change: impl Fn(Entry) -> Entry) -> Layout {
        Layout::deployed_after(name, compose, change, |_| {})
    }

    fn deployed_after(
        name: &str,
        compose: &Compose,
        change: impl Fn(Entry) -> Entry,
        before: impl Fn(&Stack),
    ) -> Layout {
        let (stack, repo) = (Stack::new(), Repo::new());
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stacks").join(name);
        copy_tree(&fixtures, &repo.clone_folder(), |text| text.replace("shiparr-test-layout", &stack.name));
        repo.commit_all(name);
        before(&stack);
        let mut daemon = Daemon::new();
        if let Some(folder) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", folder);
        }
        daemon.project("home", &[change(Entry::new("web", &repo.url(), &stack))]);
        daemon.start();
        let layout = Layout { stack, repo, daemon, compose: compose.name };
        layout.expect_success(&layout.repo.tip());
        layout
    }

    fn expect_success(&self, commit: &str) {
        let deployment = self.daemon.ended_at_or_failed("web", commit);
        let log = self.daemon.log_of(deployment["id"].as_i64().expect("an id"));
        assert_eq!(deployment["status"], "success", "{}: {deployment}\n{log}", self.compose);
    }

    /// The services that have a running container, each as often as it has one.
    fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .stack
            .containers()
            .iter()
            .filter(|container| container.is_running())
            .map(|container| container.service().to_owned())
            .collect();
        names.sort();
        names
    }

    fn variable(&self, service: &str, name: &str) -> Option<String> {
        self.stack.variable(service, name)
    }
}

#[test]
fn several_files_are_merged_in_their_order() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed("several-files", &compose, |entry| {
            entry.field("compose_files", "[compose.yaml, host.yaml]")
        });
        assert_eq!(layout.running(), ["extra", "web"]);
        assert_eq!(layout.variable("web", "FROM").as_deref(), Some("host"));
        assert_eq!(layout.variable("web", "BASE").as_deref(), Some("yes"));
    }
}

#[test]
fn an_override_beside_the_found_file_is_used() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::new());
    repo.write("compose.yaml", Stack::compose("1"));
    repo.write("docker-compose.yml", Stack::compose("the older name loses"));
    repo.write("compose.override.yaml", "services: {web: {environment: {VERSION: overridden}}}\n");
    repo.commit_all("An override");
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(stack.version().as_deref(), Some("overridden"));
}

#[test]
fn a_compose_file_in_a_parent_folder_is_not_taken() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::new());
    repo.write("compose.yaml", Stack::compose("of the parent"));
    repo.write("stacks/web/README", "no compose file here");
    repo.commit_all("A folder without one");
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).field("path", "stacks/web")]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("compose.yaml"), "{deployment}");
    assert!(stack.container("web").is_none());
}

#[test]
fn extends_works() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed("extends", &compose, |entry| entry);
        assert_eq!(layout.running(), ["web"]);
        assert_eq!(layout.variable("web", "SHARED").as_deref(), Some("yes"));
        assert_eq!(layout.variable("web", "OWN").as_deref(), Some("yes"));
    }
}

#[test]
fn include_works() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed("include", &compose, |entry| entry);
        assert_eq!(layout.running(), ["cache", "database", "web"]);
        assert_eq!(layout.variable("cache", "CACHE_SIZE").as_deref(), Some("64"));
    }
}

#[test]
fn only_the_chosen_profiles_run_and_count() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed("profiles", &compose, |entry| entry);
        assert_eq!(layout.running(), ["web"]);
        let layout = Layout::deployed("profiles", &compose, |entry| entry.field("profiles", "[debug]"));
        assert_eq!(layout.running(), ["debug", "web"]);
    }
}

#[test]
fn a_list_of_env_files_works() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed("env-file-list", &compose, |entry| entry);
        assert_eq!(layout.variable("web", "A").as_deref(), Some("common"));
        assert_eq!(layout.variable("web", "B").as_deref(), Some("web"));
        assert_eq!(layout.variable("web", "QUOTED").as_deref(), Some("two words"));
    }
}

#[test]
fn the_name_in_the_file_is_the_compose_project() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let (stack, repo) = (Stack::new(), Repo::new());
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stacks/named");
        copy_tree(&fixtures, &repo.clone_folder(), |text| text.replace("shiparr-test-layout", &stack.name));
        repo.commit_all("A name");
        let mut daemon = Daemon::new();
        if let Some(folder) = &compose.docker_config {
            daemon.env("DOCKER_CONFIG", folder);
        }
        let text = format!("project: home\nrepositories:\n  web:\n    url: {}\n    settle_time: 1\n", repo.url());
        daemon.project_text("home", &text);
        daemon.start();
        daemon.wait_for_commit("web", &repo.tip());
        let container = stack.container("web").expect("it runs under the file's name");
        assert_eq!(container.name(), format!("{}-by-name", stack.name));
    }
}

#[test]
fn a_build_context_is_built_and_built_again_when_its_sources_change() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed("build", &compose, |entry| entry);
        let container = || layout.stack.container("web").expect("it runs");
        let greeting = || container().run(&["cat", "/greeting"]);
        let first_image = container().image().to_owned();
        assert_eq!(greeting(), "first\n");
        assert_eq!(layout.variable("web", "GREETING").as_deref(), Some("hello"));
        let commit = layout.repo.commit(&[("app/greeting", "second\n")]);
        layout.expect_success(&commit);
        assert_eq!(greeting(), "second\n");
        let second_image = container().image().to_owned();
        drop(layout);
        docker(&["image", "rm", "--force", &first_image, &second_image]);
    }
}

#[test]
fn a_one_shot_migration_is_waited_for_and_its_failure_told() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed("one-shot", &compose, |entry| entry);
        assert_eq!(layout.running(), ["web"]);
        assert_eq!(layout.stack.container("migrate").expect("it is kept").exit_code(), 0);
        assert_eq!(layout.stack.container("web").expect("it runs").run(&["cat", "/data/state"]), "migrated\n");
        layout.daemon.succeeded(layout.daemon.deploy("web"));

        let text = std::fs::read_to_string(layout.repo.clone_folder().join("compose.yaml")).expect("it is there");
        let failing = text.replace("echo migrated > /data/state", "echo the migration is broken; exit 5");
        let commit = layout.repo.commit(&[("compose.yaml", &failing)]);
        let deployment = layout.daemon.ended_at("web", &commit);
        assert_eq!(deployment["status"], "failed", "{}", layout.compose);
        assert!(deployment["error"].as_str().expect("an error").contains("migrate"), "{deployment}");
        let log = layout.daemon.log_of(deployment["id"].as_i64().expect("an id"));
        assert!(log.contains("the migration is broken"), "{log}");
    }
}

#[test]
fn an_external_network_is_used_and_its_absence_is_a_failure_that_names_it() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed_after(
            "external-network",
            &compose,
            |entry| entry,
            |stack| {
                let label = format!("com.docker.compose.project={}", stack.name);
                docker(&["network", "create", "--label", &label, &format!("{}-proxy", stack.name)]);
            },
        );
        assert_eq!(layout.running(), ["web"]);
        let absent = format!("{}-absent", layout.stack.name);
        let text = std::fs::read_to_string(layout.repo.clone_folder().join("compose.yaml")).expect("it is there");
        let commit =
            layout.repo.commit(&[("compose.yaml", &text.replace(&format!("{}-proxy", layout.stack.name), &absent))]);
        let deployment = layout.daemon.ended_at("web", &commit);
        assert_eq!(deployment["status"], "failed", "{}", layout.compose);
        assert!(deployment["error"].as_str().expect("an error").contains(&absent), "{deployment}");
    }
}

#[test]
fn scaled_services_are_all_waited_for() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    for compose in composes() {
        let layout = Layout::deployed("scale", &compose, |entry| entry);
        assert_eq!(layout.running(), ["web", "web", "web", "worker", "worker"]);
    }
}
