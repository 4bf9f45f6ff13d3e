//! One project file: from its text to a project, or to everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::collisions::real_path;
use super::fields::{self, Fields, Place, REPOSITORY_FIELDS, Urls, inside, is_plain_name, place_or};
use super::problem::{Problem, Severity};
use super::project::{Build, Deploy, Notifications, Probe, Project, Pull, Repository, UnsetVariables};
use super::reader::{At, Reader, Section, joined};
use super::settings::Settings;
use super::tokens::{ProjectTokens, default_variable};
use super::watched::watch_paths;
use super::{Template, yaml};
use crate::git::RemoteUrl;
use crate::model::RepositoryName;
use crate::secrets::plain_name;

/// Every field of a project file (spec section 3).
pub(super) const PROJECT_FIELDS: &[&str] =
    &["project", "description", "hosts", "tokens", "defaults", "repositories", "global_notifications"];

const NAME_EXPECTED: &str = "a name: letters, digits, `_` and `-`";

const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(300);
const DEFAULT_HEALTH_TIMEOUT: Duration = Duration::from_secs(120);
const DEFAULT_SETTLE_TIME: Duration = Duration::from_secs(3);
const DEFAULT_PROBE_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_PROBE_STATUS: u16 = 200;

/// What a project file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The project's name, where that much can be read.
    pub(super) name: Option<String>,
    /// None where there is an error, or where the file is for other hosts.
    pub(super) project: Option<Project>,
    /// Where the fields of each repository stand; those of the project under an empty name.
    pub(super) places: BTreeMap<(String, &'static str), Place>,
    /// What is for other hosts.
    pub(super) elsewhere: Vec<(RepositoryName, Vec<String>)>,
    pub(super) problems: Vec<Problem>,
}

/// Reads a project file's text.
pub(super) fn read(path: &Path, text: &str, settings: &Settings, unset_names: Severity) -> Contents {
    let mut reader = Reader::new(path, &settings.environment, unset_names);
    let mut contents = Contents::default();
    match yaml::parse(text) {
        Ok(root) => {
            let at = At { field: String::new(), line: root.line, node: &root };
            contents.project = read_project(&mut reader, path, &at, settings, &mut contents);
        }
        Err(fault) => reader.report(fault.line, String::new(), Severity::Error, fault.message),
    }
    contents.problems = reader.into_problems();
    if contents.problems.iter().any(|problem| problem.severity == Severity::Error) {
        contents.project = None;
    }
    contents
}

/// Whether a list of hosts names this one: by its full name, or by the part before the first dot where a name has no
/// more.
fn names_host(hosts: &[String], hostname: &str) -> bool {
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_lowercase();
    hosts.iter().any(|host| {
        let whole = host.eq_ignore_ascii_case(hostname);
        whole || ((!host.contains('.') || !hostname.contains('.')) && short(host) == short(hostname))
    })
}

/// What all repositories of a file share.
struct Shared<'a> {
    settings: &'a Settings,
    project: String,
    tokens: ProjectTokens,
    global: Urls,
    defaults: Fields,
}

fn read_project(
    reader: &mut Reader<'_>,
    path: &Path,
    at: &At<'_>,
    settings: &Settings,
    contents: &mut Contents,
) -> Option<Project> {
    let project_hosts = fields::hosts(reader, at);
    if let Some(hosts) = project_hosts.filter(|hosts| !names_host(hosts, &settings.hostname)) {
        contents.elsewhere = all_elsewhere(at, &hosts);
        return None;
    }
    let section = reader.section(at, PROJECT_FIELDS)?;
    contents.name = project_name(reader, &section, contents);
    let description = section.get("description").and_then(|at| reader.text(&at));
    let tokens = section.get("tokens").map(|at| ProjectTokens::read(reader, &at)).unwrap_or_default();
    let global = section.get("global_notifications").map(|at| fields::notifications(reader, &at)).unwrap_or_default();
    let defaults_at = section.get("defaults");
    let default_hosts = defaults_at.as_ref().and_then(|at| fields::hosts(reader, at));
    let defaults = defaults_at.and_then(|at| reader.section(&at, REPOSITORY_FIELDS));
    let defaults = defaults.map(|section| Fields::read(reader, &section)).unwrap_or_default();
    let project = contents.name.clone().unwrap_or_default();
    let shared = Shared { settings, project, tokens, global, defaults };

    let Some(list) = section.get("repositories") else {
        let place = joined(&section.field, "repositories");
        let message = "missing; expected a map of repositories, each with a `url`".to_owned();
        reader.report(Some(section.line), place, Severity::Error, message);
        return None;
    };
    let mut repositories = Vec::new();
    let mut known = Vec::new();
    for (key, at) in reader.named(&list) {
        if !is_plain_name(key) {
            reader.error(&at, format!("not a valid name; expected {NAME_EXPECTED}"));
        }
        known.push(key);
        let hosts = fields::hosts(reader, &at).or_else(|| default_hosts.clone());
        if let Some(hosts) = hosts.filter(|hosts| !names_host(hosts, &settings.hostname)) {
            contents.elsewhere.push((RepositoryName { project: shared.project.clone(), name: key.to_owned() }, hosts));
            continue;
        }
        let Some(section) = reader.section(&at, REPOSITORY_FIELDS) else {
            continue;
        };
        let fields = Fields::read(reader, &section).over(&shared.defaults);
        for name in ["path", "local_path", "watch_paths", "compose_project", "depends_on"] {
            contents.places.insert((key.to_owned(), name), place_or(&fields, name, &section));
        }
        repositories.extend(repository(reader, &shared, key, &section, fields));
    }
    order_of_dependencies(reader, contents, &mut repositories, &known);
    contents.name.clone().map(|name| Project { name, description, file: path.to_owned(), repositories })
}

fn project_name(reader: &mut Reader<'_>, section: &Section<'_>, contents: &mut Contents) -> Option<String> {
    let Some(at) = section.get("project") else {
        let message = format!("missing; expected {NAME_EXPECTED}");
        reader.report(Some(section.line), joined(&section.field, "project"), Severity::Error, message);
        return None;
    };
    contents.places.insert((String::new(), "project"), Place { field: at.field.clone(), line: at.line });
    reader.parsed(&at, NAME_EXPECTED, |text| is_plain_name(text.trim()).then(|| text.trim().to_owned()))
}

/// The repositories of a file that is for other hosts, without looking at them.
fn all_elsewhere(at: &At<'_>, hosts: &[String]) -> Vec<(RepositoryName, Vec<String>)> {
    let entry = |name: &str| match &at.node.value {
        yaml::Value::Map(map) => map.get(name).map(|entry| &entry.value.value),
        _ => None,
    };
    let (Some(yaml::Value::Scalar(project)), Some(yaml::Value::Map(repositories))) =
        (entry("project"), entry("repositories"))
    else {
        return Vec::new();
    };
    let names = repositories.entries.iter().map(|entry| &entry.key).filter(|key| !key.starts_with("x-"));
    names.map(|name| (RepositoryName { project: project.clone(), name: name.clone() }, hosts.to_vec())).collect()
}

/// A repository with every default applied; none where it has no usable `url`, which is reported.
fn repository(
    reader: &mut Reader<'_>,
    shared: &Shared<'_>,
    key: &str,
    section: &Section<'_>,
    fields: Fields,
) -> Option<Repository> {
    let place = |name| place_or(&fields, name, section);
    let path = fields.path.clone().unwrap_or_else(|| PathBuf::from("."));
    stack_files_stay_inside(reader, &path, fields.env_file.as_deref(), &place("env_file"));
    stack_files_stay_inside(reader, &path, fields.compose_files.as_deref(), &place("compose_files"));
    secret_files_go_together(reader, &path, fields.secret_files.as_deref(), &place("secret_files"));
    let local_path = local_path(reader, shared, key, fields.local_path.as_deref(), &place("local_path"));
    let Some(url) = fields.url.clone() else {
        if !fields.places.contains_key("url") {
            let Place { field, line } = place("url");
            let message = "missing; expected the URL of a Git repository, such as github.com/user/repo.git".to_owned();
            reader.report(Some(line), field, Severity::Error, message);
        }
        return None;
    };
    let (token, token_source) = token(reader, shared, &url, &fields, section);
    let probe = fields.healthcheck_url.clone().map(|url| Probe {
        url,
        timeout: fields.healthcheck_timeout.unwrap_or(DEFAULT_PROBE_TIMEOUT),
        expected_status: fields.healthcheck_expected_status.unwrap_or(DEFAULT_PROBE_STATUS),
    });
    let own = fields.notifications.unwrap_or_default();
    let files = [&fields.env_file, &fields.secret_files, &fields.compose_files].into_iter().flatten().flatten();
    let watch_paths = watch_paths(fields.watch_paths, &path, files);
    Some(Repository {
        name: RepositoryName { project: shared.project.clone(), name: key.to_owned() },
        url,
        branch: fields.branch.unwrap_or_else(|| "main".to_owned()),
        path,
        local_path,
        check_interval: fields.check_interval.unwrap_or(DEFAULT_CHECK_INTERVAL),
        deploy: fields.deploy.unwrap_or(Deploy::Auto),
        watch_paths,
        // Known once all files are.
        shares_local_path: false,
        env_files: fields.env_file.unwrap_or_default(),
        secret_files: fields.secret_files.unwrap_or_default(),
        environment: fields.environment.unwrap_or_default(),
        unset_variables: fields.unset_variables.unwrap_or(UnsetVariables::Fail),
        compose_files: fields.compose_files.unwrap_or_default(),
        compose_project: fields.compose_project,
        profiles: fields.profiles.unwrap_or_default(),
        build: fields.build.unwrap_or(Build::Auto),
        pull: fields.pull.unwrap_or(Pull::Missing),
        priority: fields.priority.unwrap_or(0),
        depends_on: fields.depends_on.unwrap_or_default(),
        health_timeout: fields.health_timeout.unwrap_or(DEFAULT_HEALTH_TIMEOUT),
        settle_time: fields.settle_time.unwrap_or(DEFAULT_SETTLE_TIME),
        probe,
        timeout: fields.timeout.unwrap_or(shared.settings.deploy_timeout),
        token,
        token_source,
        insecure_http: fields.insecure_http.unwrap_or(false),
        ca_file: fields.ca_file,
        ssh_key: fields.ssh_key,
        ssh_key_passphrase: fields.ssh_key_passphrase,
        notifications: Notifications {
            success: distinct(own.success, &shared.global.success),
            failure: distinct(own.failure, &shared.global.failure),
        },
    })
}

/// Both lists, each URL once.
fn distinct(own: Vec<Template>, global: &[Template]) -> Vec<Template> {
    let mut urls: Vec<Template> = Vec::new();
    for url in own.into_iter().chain(global.iter().cloned()) {
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

fn stack_files_stay_inside(reader: &mut Reader<'_>, path: &Path, files: Option<&[PathBuf]>, place: &Place) {
    for file in files.unwrap_or_default() {
        if !file.is_absolute() && inside(path, file).is_none() {
            let message = format!(
                "`{}` leaves the repository; expected a path inside it, or the absolute path of a file of this host",
                file.display()
            );
            reader.report(Some(place.line), place.field.clone(), Severity::Error, message);
        }
    }
}

/// Secret files are the repository's own, and no two of them may decrypt to the same name.
fn secret_files_go_together(reader: &mut Reader<'_>, path: &Path, files: Option<&[PathBuf]>, place: &Place) {
    let mut links = BTreeMap::new();
    for file in files.unwrap_or_default() {
        let link =
            inside(path, file).and_then(|file| Some(file.with_file_name(plain_name(file.file_name()?.to_str()?)?)));
        let message = match link {
            None => format!("`{}` leaves the repository; expected a path inside it", file.display()),
            Some(link) => match links.insert(link, file) {
                Some(other) => format!(
                    "`{}` and `{}` decrypt to the same name; rename or remove one of them",
                    other.display(),
                    file.display()
                ),
                None => continue,
            },
        };
        reader.report(Some(place.line), place.field.clone(), Severity::Error, message);
    }
}

/// The working tree's folder. It may not hold what is Shiparr's own, nor lie in it, also once links are followed.
fn local_path(reader: &mut Reader<'_>, shared: &Shared<'_>, key: &str, given: Option<&Path>, place: &Place) -> PathBuf {
    let deployments = shared.settings.deployments_path();
    let Some(given) = given else {
        return deployments.join(&shared.project).join(key);
    };
    let local_path = deployments.join(given);
    let data = &shared.settings.data_path;
    let runtime = &shared.settings.runtime_path;
    let own = ["git", "saved", "links", "secret-files"].map(|folder| data.join(folder));
    let real = real_path(&local_path);
    let holds = [data, runtime].into_iter().find(|folder| real_path(folder).starts_with(&real));
    if let Some(folder) =
        holds.or_else(|| own.iter().chain([runtime]).find(|folder| real.starts_with(real_path(folder))))
    {
        let message = format!(
            "`{}` holds or lies in {}, which is Shiparr's own; choose another folder",
            local_path.display(),
            folder.display()
        );
        reader.report(Some(place.line), place.field.clone(), Severity::Error, message);
    }
    local_path
}

/// The repository's own token, else the project's for its host, else the environment's default for its provider.
fn token(
    reader: &mut Reader<'_>,
    shared: &Shared<'_>,
    url: &RemoteUrl,
    fields: &Fields,
    section: &Section<'_>,
) -> (Option<Template>, String) {
    use crate::git::Scheme::{File, Ssh};
    let host = match url.scheme() {
        Ssh | File => return (None, String::new()),
        _ => url.host_with_port().unwrap_or_default(),
    };
    if fields.token.is_some() {
        return (fields.token.clone(), "`token` of the repository".to_owned());
    }
    if host == "github.com" && fields.tokens_github.is_some() {
        return (fields.tokens_github.clone(), "`tokens_github` of the repository".to_owned());
    }
    if let Some(at) = section.get("tokens_github") {
        reader.warning(&at, format!("not used: it is for github.com, and this is {host}; use `token`"));
    }
    if let Some(found) = shared.tokens.for_host(&host) {
        return found;
    }
    let Some(variable) = default_variable(&host) else {
        return (None, String::new());
    };
    // A file that cannot be read now may be there when it is needed.
    let known = !matches!(reader.environment.secret(variable), Ok(None));
    (known.then(|| Template::new(format!("${{{variable}}}"))), variable.to_owned())
}

/// Reports unknown names and cycles in `depends_on`, and leaves out what is for other hosts: that counts as met.
fn order_of_dependencies(
    reader: &mut Reader<'_>,
    contents: &Contents,
    repositories: &mut [Repository],
    known: &[&str],
) {
    for repository in repositories.iter() {
        if let Some(place) = contents.places.get(&(repository.name.name.clone(), "depends_on")) {
            fields::report_unknown(reader, place, &repository.depends_on, known);
        }
    }
    for cycle in cycles(repositories) {
        if let Some(place) = contents.places.get(&(cycle[0].clone(), "depends_on")) {
            let message = format!("a cycle: {}; remove one of these dependencies", cycle.join(" → "));
            reader.report(Some(place.line), place.field.clone(), Severity::Error, message);
        }
    }
    let here: Vec<String> = repositories.iter().map(|repository| repository.name.name.clone()).collect();
    for repository in repositories.iter_mut() {
        repository.depends_on.retain(|name| here.contains(name));
    }
}

/// The names along each cycle of dependencies, the first one again at the end.
fn cycles(repositories: &[Repository]) -> Vec<Vec<String>> {
    let name_of = |repository: &Repository| repository.name.name.clone();
    let edges: BTreeMap<String, &[String]> =
        repositories.iter().map(|repository| (name_of(repository), repository.depends_on.as_slice())).collect();
    let mut found = Vec::new();
    let mut done: BTreeSet<String> = BTreeSet::new();
    for start in repositories.iter().map(name_of) {
        // The way from the start, and how many dependencies of each step were followed.
        let mut way: Vec<(String, usize)> = if done.contains(&start) { Vec::new() } else { vec![(start, 0)] };
        while let Some((name, followed)) = way.last_mut() {
            let next = edges.get(name).and_then(|names| names.get(*followed)).cloned();
            *followed += 1;
            let Some(next) = next else {
                done.extend(way.pop().map(|(name, _)| name));
                continue;
            };
            if let Some(first) = way.iter().position(|(name, _)| *name == next) {
                found.push(way[first..].iter().map(|(name, _)| name.clone()).chain([next]).collect());
            } else if !done.contains(&next) {
                way.push((next, 0));
            }
        }
    }
    found
}
