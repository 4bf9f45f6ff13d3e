//! Project files as they come: those of tests/fixtures/config, each in a folder of its own, and folders with several.

#![allow(clippy::disallowed_methods, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::project::{Build, Deploy, Pull, UnsetVariables};
use super::*;
use crate::model::RepositoryName;
use crate::secrets::Secret;

const HOSTNAME: &str = "pi";

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(folder)
}

fn environment() -> Environment {
    Environment::from_pairs([
        ("GITHUB_TOKEN", "default-github-token"),
        ("FORGE_TOKEN", "forge-token"),
        ("SECRET_TOKEN", "hunter22"),
        ("FULL_PASSWORD", "pa$word"),
        ("HEALTH_TIMEOUT", "45"),
        ("UNREADABLE_FILE", "/does/not/exist"),
        ("Shiparr_RUNTIME_PATH", "/run/shiparr"),
    ])
}

fn settings_with(environment: &Environment) -> Settings {
    let (mut settings, _) = Settings::from_environment(environment).expect("good settings");
    settings.hostname = HOSTNAME.to_owned();
    settings
}

pub(super) fn load(folder: &Path, previous: &Catalog, accepted: &Accepted) -> Catalog {
    let settings = settings_with(&environment());
    Catalog::load(folder, &Basis { settings: &settings, previous, accepted, unset_names: Severity::Error })
}

/// A folder with these files, loaded.
pub(super) struct Folder(pub(super) tempfile::TempDir);

impl Folder {
    pub(super) fn with(files: &[(&str, &str)]) -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a folder"));
        files.iter().for_each(|(name, text)| folder.write(name, text));
        folder
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("written");
    }

    pub(super) fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.path().join(name)).expect("removed");
    }

    pub(super) fn load(&self, previous: &Catalog) -> Catalog {
        load(self.0.path(), previous, &Accepted::default())
    }

    pub(super) fn first_load(&self) -> Catalog {
        self.load(&Catalog::default())
    }
}

/// A project with one repository for each name.
fn project(name: &str, repositories: &[&str]) -> String {
    let repository = |name: &&str| format!("  {name}: {{url: github.com/user/{name}}}\n");
    format!("project: {name}\nrepositories:\n{}", repositories.iter().map(repository).collect::<String>())
}

pub(super) fn name(project: &str, name: &str) -> RepositoryName {
    RepositoryName { project: project.to_owned(), name: name.to_owned() }
}

pub(super) fn repository<'a>(catalog: &'a Catalog, project: &str, repository: &str) -> &'a Repository {
    catalog.repository(&name(project, repository)).unwrap_or_else(|| panic!("{repository}: {:?}", catalog.problems))
}

pub(super) fn projects(catalog: &Catalog) -> Vec<&str> {
    catalog.projects.keys().map(String::as_str).collect()
}

/// Problems without the folder: `FILE:LINE: FIELD: MESSAGE`, a warning with that word in front.
pub(super) fn listed(catalog: &Catalog, folder: &Path) -> String {
    let line = |problem: &Problem| {
        let severity = if problem.severity == Severity::Warning { "warning: " } else { "" };
        format!("{severity}{problem}\n").replace(&format!("{}/", folder.display()), "")
    };
    catalog.problems.iter().map(line).collect()
}

#[test]
fn every_bad_file_is_told_all_that_is_wrong_with_it() {
    let mut differences = String::new();
    let mut files = 0;
    for entry in std::fs::read_dir(fixtures("bad")).expect("the fixtures") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        files += 1;
        let file_name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let folder = Folder::with(&[(file_name, &std::fs::read_to_string(&path).expect("a fixture"))]);
        let catalog = folder.first_load();
        let found = listed(&catalog, folder.0.path());
        let expected = std::fs::read_to_string(path.with_extension("expected")).unwrap_or_default();
        if found != expected {
            differences.push_str(&format!("==== {file_name}\n{found}---- expected\n{expected}"));
        }
        assert!(catalog.projects.is_empty(), "{file_name} was accepted");
        assert!(!found.contains("hunter22"), "{file_name}: a secret in {found}");
    }
    assert!(differences.is_empty(), "{differences}");
    assert!(files >= 25, "only {files} fixtures");
}

#[test]
fn the_example_of_the_specification_loads() {
    let folder = Folder::with(&[("homelab.yaml", include_str!("../../tests/fixtures/config/good/spec-example.yaml"))]);
    let catalog = folder.first_load();
    assert_eq!(
        listed(&catalog, folder.0.path()),
        "warning: homelab.yaml:6: tokens.git.example.com: FORGEJO_TOKEN is not set: set it, FORGEJO_TOKEN_FILE or the systemd \
         credential `forgejo_token`, or write `${FORGEJO_TOKEN:-default}`\n"
    );
    let project = &catalog.projects["homelab"];
    assert_eq!(project.description.as_deref(), Some("Services homelab"));
    assert_eq!(project.file, folder.0.path().join("homelab.yaml"));
    let names: Vec<&str> = project.repositories.iter().map(|repository| repository.name.name.as_str()).collect();
    assert_eq!(names, ["media-stack", "monitoring"]);
    let media = repository(&catalog, "homelab", "media-stack");
    assert_eq!(media.url.as_str(), "https://github.com/user/media-stack.git");
    assert_eq!((media.branch.as_str(), media.path.as_path()), ("main", Path::new("docker")));
    assert_eq!(media.local_path, Path::new("/deployments/media-stack"));
    assert_eq!(media.check_interval, Duration::from_secs(300));
    assert_eq!(media.env_files, [Path::new(".env.enc")]);
    assert_eq!((media.notifications.success.len(), media.notifications.failure.len()), (1, 2));
    assert_eq!(media.token_source, "`tokens.github` of the project");
    let monitoring = repository(&catalog, "homelab", "monitoring");
    assert_eq!((monitoring.path.as_path(), monitoring.check_interval), (Path::new("."), Duration::from_secs(60)));
    assert_eq!((monitoring.notifications.success.len(), monitoring.notifications.failure.len()), (0, 1));
}

fn everything() -> Catalog {
    let folder = Folder::with(&[("everything.yaml", include_str!("../../tests/fixtures/config/good/everything.yaml"))]);
    let catalog = folder.first_load();
    assert_eq!(listed(&catalog, folder.0.path()), "");
    catalog
}

fn resolved(template: &Template) -> String {
    template.resolve(&environment()).expect("a value").expose().to_owned()
}

#[test]
fn every_field_is_read() {
    let catalog = everything();
    let full = repository(&catalog, "every_thing-1", "full");
    assert_eq!(catalog.projects["every_thing-1"].description.as_deref(), Some("Every field"));
    assert_eq!(full.url.as_str(), "https://git.example.com:3000/user/full");
    assert_eq!((full.branch.as_str(), full.path.as_path()), ("refs/tags/v1.2", Path::new("docker")));
    assert_eq!(full.local_path, Path::new("/srv/stacks/full"));
    assert_eq!((full.check_interval, full.health_timeout), (Duration::from_secs(10), Duration::from_secs(30)));
    assert_eq!(full.env_files, [".env.enc", "../shared.env.enc", "/etc/full.env"].map(Path::new));
    assert_eq!(full.secret_files, ["tls/key.pem.enc", "../shared.sops.key"].map(Path::new));
    assert_eq!(full.watch_paths, ["docker", "common/certs"].map(Path::new));
    assert_eq!(full.deploy, Deploy::Manual);
    let environment: BTreeMap<&str, String> =
        full.environment.iter().map(|(name, value)| (name.as_str(), resolved(value))).collect();
    let expected = [("EMPTY", ""), ("LITERAL", "${NOT_REPLACED} costs $5"), ("NUMBER", "010"), ("PASSWORD", "pa$word")];
    assert_eq!(environment, expected.map(|(name, value)| (name, value.to_owned())).into());
    assert_eq!((full.unset_variables, full.build, full.pull), (UnsetVariables::Blank, Build::Always, Pull::Always));
    assert_eq!(full.compose_files, ["compose.yaml", "../compose.prod.yaml"].map(Path::new));
    assert_eq!(
        (full.compose_project.as_deref(), full.profiles.as_slice()),
        (Some("full-stack"), &["backup".to_owned()][..])
    );
    assert_eq!(
        (full.priority, full.depends_on.as_slice()),
        (-5, &["base".to_owned()][..]),
        "what is elsewhere counts as met"
    );
    assert_eq!((full.settle_time, full.timeout), (Duration::ZERO, Duration::from_secs(1800)));
    let probe = full.probe.as_ref().expect("a probe");
    assert_eq!((probe.timeout, probe.expected_status), (Duration::from_secs(5), 204));
    assert_eq!(resolved(&probe.url), "http://127.0.0.1:8080/health");
    assert!(full.insecure_http);
    assert_eq!(full.ca_file.as_deref(), Some(Path::new("/etc/ssl/forge.pem")));
    let urls = |list: &[Template]| list.iter().map(resolved).collect::<Vec<_>>();
    assert_eq!(urls(&full.notifications.success), ["discord://token@id"], "a URL that is global too is told once");
    assert_eq!(
        urls(&full.notifications.failure),
        ["https://hooks.example.com/all"],
        "a field replaces that of `defaults`"
    );
    let ssh = repository(&catalog, "every_thing-1", "over-ssh");
    assert_eq!(ssh.ssh_key.as_deref(), Some(Path::new("/etc/shiparr/id_ed25519")));
    assert_eq!(ssh.ssh_key_passphrase.as_ref().map(resolved).as_deref(), Some("forge-token"));
}

#[test]
fn what_is_not_given_has_its_default() {
    let catalog = everything();
    let disk = repository(&catalog, "every_thing-1", "from-disk");
    assert_eq!(disk.url.as_str(), "file:///srv/git/from-disk.git");
    assert_eq!((disk.branch.as_str(), disk.path.as_path()), ("production", Path::new(".")));
    assert_eq!(disk.local_path, Path::new("/data/deployments/every_thing-1/from-disk"));
    assert_eq!((disk.check_interval, disk.health_timeout), (Duration::from_secs(300), Duration::from_secs(120)));
    assert_eq!((disk.settle_time, disk.timeout), (Duration::from_secs(3), Duration::from_secs(900)));
    assert_eq!(disk.environment.keys().collect::<Vec<_>>(), ["TZ"]);
    assert_eq!((disk.unset_variables, disk.build, disk.pull), (UnsetVariables::Fail, Build::Auto, Pull::Missing));
    assert_eq!((disk.compose_project.as_deref(), disk.default_compose_project().as_str()), (None, "from-disk"));
    assert_eq!(disk.notifications.failure.len(), 2);
    assert_eq!((disk.deploy, disk.secret_files.len(), disk.shares_local_path), (Deploy::Auto, 0, false));
    assert!(disk.watch_paths.is_empty(), "`path: ./` watches everything");
    assert!(disk.probe.is_none() && disk.token.is_none() && !disk.insecure_http && disk.depends_on.is_empty());
    let base = repository(&catalog, "every_thing-1", "base");
    assert_eq!((base.check_interval, base.health_timeout), (Duration::from_secs(60), Duration::from_secs(45)));
    let ssh = repository(&catalog, "every_thing-1", "over-ssh");
    assert_eq!(ssh.local_path, Path::new("/data/deployments/elsewhere/over-ssh"));
}

#[test]
fn a_credential_goes_to_the_host_that_it_is_for() {
    let catalog = everything();
    let credential = |name| {
        let credential = repository(&catalog, "every_thing-1", name).credential(&environment()).expect("resolved");
        credential.map(|found| (found.user, found.secret.expose().to_owned(), found.source))
    };
    let expected =
        |user: &str, secret: &str, source: &str| Some((user.to_owned(), secret.to_owned(), source.to_owned()));
    assert_eq!(credential("base"), expected("oauth2", "default-github-token", "`tokens.github` of the project"));
    assert_eq!(credential("full"), expected("deploy", "forge-token", "`tokens.git.example.com:3000` of the project"));
    assert_eq!(credential("own-token"), expected("oauth2", "forge-token", "`token` of the repository"));
    assert_eq!(credential("own-github-token"), expected("oauth2", "forge-token", "`tokens_github` of the repository"));
    assert_eq!((credential("over-ssh"), credential("from-disk")), (None, None));
}

#[test]
fn default_tokens_come_from_the_environment_and_are_read_at_each_use() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "first\n").expect("written");
    let environment = Environment::from_pairs([("GITEA_TOKEN_FILE", file.path())]);
    let text = "project: p\nrepositories:\n  a: {url: codeberg.org/u/a}\n  b: {url: github.com/u/b}\n  c: {url: bitbucket.org/u/c, token: t}\n";
    let contents = super::file::read(Path::new("p.yaml"), text, &settings_with(&environment), Severity::Error);
    let project = contents.project.expect("a project");
    let secret = |index: usize| {
        let credential = project.repositories[index].credential(&environment).expect("resolved");
        credential.map(|found| (found.user, found.secret.expose().to_owned()))
    };
    assert_eq!(secret(0), Some(("oauth2".to_owned(), "first".to_owned())));
    std::fs::write(file.path(), "second\n").expect("written");
    assert_eq!(secret(0), Some(("oauth2".to_owned(), "second".to_owned())));
    assert_eq!(secret(1), None);
    assert_eq!(secret(2), Some(("x-token-auth".to_owned(), "t".to_owned())));
    drop(file);
    let error = project.repositories[0].credential(&environment).expect_err("the file is gone");
    assert!(error.starts_with("GITEA_TOKEN: GITEA_TOKEN_FILE: cannot read the file"), "{error}");
}

#[test]
fn a_token_whose_name_is_not_set_is_none() {
    let text = "project: p\ntokens: {github: \"${MISSING}\"}\nrepositories: {a: {url: github.com/u/a}}\n";
    let contents = super::file::read(Path::new("p.yaml"), text, &settings_with(&environment()), Severity::Error);
    let project = contents.project.expect("a warning only");
    assert_eq!(project.repositories[0].token, None, "the environment's default is that of another");
    assert_eq!(project.repositories[0].token_source, "`tokens.github` of the project");
}

#[test]
fn the_scrubber_can_learn_every_secret() {
    let catalog = everything();
    let full = repository(&catalog, "every_thing-1", "full");
    let exposed = |secrets: Vec<Secret>| secrets.iter().map(|secret| secret.expose().to_owned()).collect::<Vec<_>>();
    let secrets = exposed(full.secrets(&environment()));
    for secret in ["pa$word", "deploy:forge-token", "forge-token", "discord://token@id", "http://127.0.0.1:8080/health"]
    {
        assert!(secrets.iter().any(|known| known == secret), "{secret}: {secrets:?}");
    }
    assert_eq!(exposed(full.secret_urls(&environment())).len(), 3);
    assert!(!format!("{full:?}").contains("hooks.example.com"));
}

#[test]
fn what_hosts_leaves_to_others_is_told_and_not_looked_at() {
    let catalog = everything();
    assert_eq!(catalog.elsewhere, [(name("every_thing-1", "on-the-nas"), vec!["nas".to_owned()])]);
    let folder = Folder::with(&[
        ("far.yaml", "project: far\nhosts: nas\nrepositories:\n  a: {url: 5, nonsense: 1}\n  x-b: {}\nnonsense: 2\n"),
        ("near.yaml", "project: near\nhosts: [PI.lan]\nrepositories: {}\n"),
        ("off.yaml", "project: off\nhosts: []\nrepositories: {}\n"),
    ]);
    let catalog = folder.first_load();
    assert_eq!((projects(&catalog), catalog.problems.len()), (vec!["near"], 0));
    assert_eq!(catalog.elsewhere, [(name("far", "a"), vec!["nas".to_owned()])]);
}

#[test]
fn one_bad_file_keeps_its_last_good_version_and_stops_no_other() {
    let folder = Folder::with(&[("a.yaml", &project("a", &["one"])), ("b.yml", &project("b", &["two"]))]);
    folder.write(".hidden.yaml", "nonsense");
    folder.write("notes.txt", "nonsense");
    let first = folder.first_load();
    assert_eq!((projects(&first), first.problems.len()), (vec!["a", "b"], 0));

    folder.write("a.yaml", "project: a\nrepositories: {one: {}}\n");
    folder.write("b.yml", &project("b", &["two", "three"]));
    folder.write("c.yaml", "nonsense");
    let second = folder.load(&first);
    assert_eq!(second.projects["a"], first.projects["a"]);
    assert_eq!(projects(&second), ["a", "b"]);
    assert_eq!(second.problems.len(), 2);
    assert_eq!(
        second.repositories().map(|one| one.name.clone()).collect::<Vec<_>>(),
        [name("a", "one"), name("b", "two"), name("b", "three")]
    );
    assert_eq!(second.repository(&name("b", "two")), first.repository(&name("b", "two")));

    let absent = folder.first_load();
    assert_eq!((projects(&absent), absent.untouched.as_slice()), (vec!["b"], &["a".to_owned()][..]));

    folder.remove("a.yaml");
    let third = folder.load(&second);
    assert_eq!(projects(&third), ["b"]);
    assert!(third.repository(&name("a", "one")).is_none());
}

#[test]
fn a_file_that_is_renamed_and_broken_at_once_keeps_its_last_good_version() {
    let folder = Folder::with(&[("a.yaml", &project("a", &["one"]))]);
    let first = folder.first_load();
    folder.remove("a.yaml");
    folder.write("renamed.yaml", "project: a\nrepositories: {one: {}}\n");
    let second = folder.load(&first);
    assert_eq!((second.projects == first.projects, second.problems.len()), (true, 1));
}

#[test]
fn a_folder_that_cannot_be_read_changes_nothing() {
    let folder = Folder::with(&[("a.yaml", &project("a", &["one"]))]);
    let first = folder.first_load();
    let missing = folder.0.path().join("missing");
    let accepted = Accepted { files: [("z".to_owned(), missing.join("z.yaml"))].into(), ..Accepted::default() };
    let second = load(&missing, &first, &accepted);
    assert_eq!(second.projects, first.projects);
    assert_eq!((second.problems[0].file.as_path(), second.problems.len()), (missing.as_path(), 1));
    assert!(second.problems[0].message.starts_with("cannot read the folder of project files"));
    assert_eq!(second.untouched, ["z"]);
}

#[test]
fn what_is_no_readable_file_is_a_problem_of_its_own() {
    let folder = Folder::with(&[("a.yaml", &project("a", &["one"]))]);
    std::fs::create_dir(folder.0.path().join("folder.yaml")).expect("a folder");
    std::os::unix::fs::symlink("nowhere", folder.0.path().join("link.yaml")).expect("a link");
    std::fs::write(folder.0.path().join("binary.yaml"), [0xff, 0xfe]).expect("written");
    folder.write("huge.yaml", &"#".repeat(1024 * 1024 + 1));
    let catalog = folder.first_load();
    assert_eq!(projects(&catalog), ["a"]);
    let found = listed(&catalog, folder.0.path());
    for expected in [
        "binary.yaml: cannot be read: it is not UTF-8",
        "folder.yaml: cannot be read: it is not a regular file",
        "huge.yaml: cannot be read: it is larger than 1048576 bytes",
        "link.yaml: cannot be read: No such file",
    ] {
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

#[test]
fn of_two_that_collide_the_earlier_file_goes_on_at_a_first_start() {
    let folder = Folder::with(&[("a.yaml", &project("same", &["one"])), ("b.yaml", &project("same", &["two"]))]);
    let catalog = folder.first_load();
    assert_eq!(catalog.projects["same"].file, folder.0.path().join("a.yaml"));
    assert_eq!(
        listed(&catalog, folder.0.path()),
        "b.yaml:1: project: the project `same` is in a.yaml already; choose another name, or merge the two files\n"
    );
    assert!(catalog.untouched.is_empty());
}

fn accepted(folder: &Folder, project: &str, file: &str, repository: &str, id: i64, local_path: &str) -> Accepted {
    let (url, branch) = ("https://github.com/u/r".to_owned(), "main".to_owned());
    let record = AcceptedRepository { id, local_path: local_path.into(), path: ".".into(), url, branch };
    Accepted {
        files: [(project.to_owned(), folder.0.path().join(file))].into(),
        repositories: [(name(project, repository), record)].into(),
    }
}

#[test]
fn of_two_that_collide_the_older_record_goes_on() {
    let folder = Folder::with(&[("a.yaml", &project("same", &["one"])), ("b.yaml", &project("same", &["two"]))]);
    let known = accepted(&folder, "same", "b.yaml", "two", 1, "/x");
    let catalog = load(folder.0.path(), &Catalog::default(), &known);
    assert_eq!(catalog.projects["same"].file, folder.0.path().join("b.yaml"));

    let folder = Folder::with(&[("a.yaml", &project("a", &["web"])), ("b.yaml", &project("b", &["web"]))]);
    assert_eq!(projects(&folder.first_load()), ["a"], "both would be the compose project `web`");
    let alike = Folder::with(&[("a.yaml", &project("a", &["web"])), ("b.yaml", &project("b", &["_Web"]))]);
    assert_eq!(projects(&alike.first_load()), ["a"], "Compose takes no name that begins with `_`");
    let known = accepted(&folder, "b", "b.yaml", "web", 1, "/x");
    assert_eq!(projects(&load(folder.0.path(), &Catalog::default(), &known)), ["b"]);

    let in_folder = |project: &str| {
        format!("project: {project}\nrepositories: {{{project}: {{url: github.com/u/r, local_path: /srv/x}}}}\n")
    };
    let folder = Folder::with(&[("a.yaml", &in_folder("a")), ("b.yaml", &in_folder("b"))]);
    let mut known = accepted(&folder, "b", "b.yaml", "b", 2, "/srv/x");
    known.repositories.extend(accepted(&folder, "a", "a.yaml", "a", 1, "/srv/other").repositories);
    let catalog = load(folder.0.path(), &Catalog::default(), &known);
    assert_eq!(projects(&catalog), ["b"], "who had the folder, not who is older");
    assert_eq!(catalog.untouched, ["a"]);
}

#[test]
fn who_runs_already_is_not_displaced_and_who_collides_falls_back() {
    let at = |project: &str, local_path: &str| {
        format!("project: {project}\nrepositories: {{{project}: {{url: github.com/u/r, local_path: {local_path}}}}}\n")
    };
    let folder = Folder::with(&[("a.yaml", &at("a", "/srv/a")), ("b.yaml", &at("b", "/srv/b"))]);
    let first = folder.first_load();
    folder.write("a.yaml", &at("a", "/srv/b/inside"));
    let second = folder.load(&first);
    assert_eq!(second.projects, first.projects, "a stays in the folder that it had");
    assert_eq!(
        listed(&second, folder.0.path()),
        "a.yaml:2: repositories.a.local_path: `/srv/b/inside` lies in `/srv/b`, the folder of `b/b` (b.yaml); choose one apart \
         from it\n"
    );
    folder.write("b.yaml", &at("b", "/srv/c"));
    let third = folder.load(&second);
    let folder_of = |project: &str| third.repository(&name(project, project)).expect("accepted").local_path.clone();
    assert_eq!(third.problems.len(), 0);
    assert_eq!((folder_of("a"), folder_of("b")), ("/srv/b/inside".into(), "/srv/c".into()));
}

#[test]
fn folders_are_compared_with_their_links_followed() {
    let target = tempfile::tempdir().expect("a folder");
    let link = target.path().join("link");
    std::fs::create_dir(target.path().join("real")).expect("a folder");
    std::os::unix::fs::symlink("real", &link).expect("a link");
    let text = format!(
        "project: p\nrepositories:\n  a: {{url: github.com/u/a, local_path: {0}/real/x}}\n  b: {{url: github.com/u/b, local_path: {0}/link/x}}\n",
        target.path().display()
    );
    let folder = Folder::with(&[("p.yaml", &text)]);
    let catalog = folder.first_load();
    assert_eq!((projects(&catalog).len(), catalog.problems[0].field.as_str()), (0, "repositories.b.local_path"));
}

#[test]
fn names_that_a_check_cannot_know_are_warnings() {
    let text = "project: p\nrepositories:\n  a: {url: \"https://${HOST}/u/a\"}\n  b: {url: github.com/u/b, check_interval: \"${INTERVAL}\"}\n";
    let folder = Folder::with(&[("p.yaml", text)]);
    let settings = settings_with(&environment());
    let previous = Catalog::default();
    let accepted = Accepted::default();
    let basis = Basis { settings: &settings, previous: &previous, accepted: &accepted, unset_names: Severity::Warning };
    let catalog = Catalog::load(folder.0.path(), &basis);
    assert_eq!(catalog.problems.iter().map(|problem| problem.severity).collect::<Vec<_>>(), [Severity::Warning; 2]);
    assert!(catalog.repository(&name("p", "a")).is_none());
    assert_eq!(repository(&catalog, "p", "b").check_interval, Duration::from_secs(300));
}

#[test]
fn a_thousand_repositories_load_and_compare_in_no_time() {
    let names: Vec<String> = (0..1000).map(|number| format!("r{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let folder = Folder::with(&[("p.yaml", &project("p", &names))]);
    let first = folder.first_load();
    assert_eq!((first.repositories().count(), first.problems.len()), (1000, 0));
    assert_eq!(folder.load(&first).projects, first.projects);
}

#[test]
fn the_hash_changes_with_every_field_that_deploys_and_with_no_other() {
    let key = [7; 32];
    let read = |fields: &str| {
        let text = format!("project: p\nrepositories: {{a: {{url: github.com/u/a{fields}}}}}\n");
        let contents = super::file::read(Path::new("p.yaml"), &text, &settings_with(&environment()), Severity::Error);
        contents.project.unwrap_or_else(|| panic!("{:?}", contents.problems)).repositories.remove(0)
    };
    let plain = read("").config_hash(&key, &environment());
    assert_eq!(plain.len(), 64);
    assert_ne!(plain, read("").config_hash(&[8; 32], &environment()));
    let mut seen = vec![plain.clone()];
    for fields in [
        ", branch: other",
        ", path: docker",
        ", local_path: /srv/a",
        ", compose_files: [a, b]",
        ", compose_files: [ab]",
        ", env_file: [a, b]",
        ", secret_files: [a.enc, b.enc]",
        ", environment: {A: b}",
        ", environment: {A: \"\"}",
        ", environment: {A: \"${SECRET_TOKEN}\"}",
        ", profiles: [a]",
        ", build: never",
        ", build: always",
        ", compose_project: b",
    ] {
        let hash = read(fields).config_hash(&key, &environment());
        assert!(!seen.contains(&hash), "{fields}");
        seen.push(hash);
    }
    for fields in [
        ", check_interval: 5",
        ", deploy: manual",
        ", watch_paths: a",
        ", priority: 3",
        ", token: t",
        ", build: auto",
        ", pull: always",
        ", timeout: 5",
    ] {
        assert_eq!(read(fields).config_hash(&key, &environment()), plain, "{fields}");
    }
    let rotated = Environment::from_pairs([("SECRET_TOKEN", "another")]);
    let with_secret = read(", environment: {A: \"${SECRET_TOKEN}\"}");
    assert_ne!(with_secret.config_hash(&key, &environment()), with_secret.config_hash(&key, &rotated));
    assert_ne!(with_secret.config_hash(&key, &rotated), with_secret.config_hash(&key, &Environment::default()));
}

#[test]
fn the_hash_key_is_made_once_and_is_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let data = tempfile::tempdir().expect("a folder");
    let key = hash_key(data.path()).expect("a key");
    assert_eq!(hash_key(data.path()).expect("a key"), key);
    let file = data.path().join("config-hash.key");
    assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    std::fs::write(&file, "damaged").expect("written");
    assert_ne!(hash_key(data.path()).expect("a new key"), key);
    assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    let error = hash_key(&data.path().join("missing")).expect_err("no such folder");
    assert!(error.to_string().contains("config-hash.key"), "{error}");
}

/// A file with every line put to work that is commented out: behind the `#` of one that is text stands a single space.
fn uncommented(text: &str) -> String {
    let is_text = |rest: &str| rest.is_empty() || (rest.starts_with(' ') && !rest.starts_with("  "));
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !is_text(rest) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn the_annotated_project_file_loads_as_it_is_and_with_everything_in_it() {
    let text = include_str!("../../config/project.example.yaml");
    let folder = Folder::with(&[("homelab.yaml", text)]);
    let catalog = folder.first_load();
    assert_eq!((listed(&catalog, folder.0.path()).as_str(), catalog.repositories().count()), ("", 2));

    let all = uncommented(text).replace("[pi4, nas.lan]", "[pi, nas.lan]").replace("[pi4]", "[pi]");
    folder.write("homelab.yaml", &all.replace("${FORGEJO_TOKEN}", "${FORGE_TOKEN}"));
    let catalog = folder.first_load();
    assert_eq!((listed(&catalog, folder.0.path()).as_str(), catalog.repositories().count()), ("", 2));
    for field in super::fields::REPOSITORY_FIELDS.iter().chain(super::file::PROJECT_FIELDS) {
        let given = all.lines().any(|line| line.trim_start().starts_with(&format!("{field}:")));
        assert!(given, "{field}");
    }
}

#[test]
fn the_annotated_environment_file_loads_as_it_is_and_with_everything_in_it() {
    let text = include_str!("../../config/shiparr.example.env");
    let folder = Folder::with(&[("as-it-is.env", text), ("all.env", &uncommented(text))]);
    let read = |name: &str| Environment::from_file(&folder.0.path().join(name)).expect("a good file");
    assert_eq!(read("as-it-is.env").names().count(), 0);
    let all = read("all.env").with(&Environment::from_pairs([("Shiparr_AUTH_ENABLED", "true")]));
    let (_, warnings) = Settings::from_environment(&all).expect("good settings");
    assert_eq!(warnings, Vec::<String>::new());
    let names: Vec<&str> = all.names().collect();
    for name in super::variables::NAMES.iter().filter(|name| !name.ends_with("_FILE")) {
        assert!(names.contains(&format!("Shiparr_{name}").as_str()), "{name}");
    }
    for name in ["DISABLE_CONFIG_AUTO_RELOAD", "SOPS_AGE_KEY_FILE", "GITHUB_TOKEN", "GITLAB_TOKEN", "GITEA_TOKEN"] {
        assert!(names.contains(&name), "{name}");
    }
}

#[test]
fn a_link_into_shiparrs_own_folders_is_no_place_for_a_working_tree() {
    let host = tempfile::tempdir().unwrap();
    let data = host.path().join("data");
    std::fs::create_dir_all(data.join("git")).unwrap();
    std::fs::create_dir(data.join("deployments")).unwrap();
    for (link, target) in
        [("to-git", data.join("git")), ("to-data", data.clone()), ("to-trees", data.join("deployments"))]
    {
        std::os::unix::fs::symlink(target, host.path().join(link)).unwrap();
    }
    let with_data = environment().with(&Environment::from_pairs([("Shiparr_DATA_PATH", &data)]));
    let settings = settings_with(&with_data);
    for (local_path, is_refused) in [
        ("to-git/web", true),
        ("to-git", true),
        ("to-data", true),
        ("to-data/git/web", true),
        ("to-data/secret-files/web", true),
        ("to-trees/web", false),
    ] {
        let local_path = host.path().join(local_path);
        let text =
            format!("project: home\nrepositories:\n  web: {{url: /r, local_path: '{}'}}\n", local_path.display());
        let folder = Folder::with(&[("home.yaml", &text)]);
        let basis = Basis {
            settings: &settings,
            previous: &Catalog::default(),
            accepted: &Accepted::default(),
            unset_names: Severity::Error,
        };
        let problems = Catalog::load(folder.0.path(), &basis).problems;
        let refused = problems.iter().any(|problem| problem.message.contains("which is Shiparr's own"));
        assert_eq!(refused, is_refused, "{}: {problems:?}", local_path.display());
    }
}
