//! The fields of a repository, each read as its type, none required yet: what a repository says, or what `defaults`
//! says for all.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::problem::Severity;
use super::project::{Build, Deploy, Pull, UnsetVariables};
use super::reader::{At, Reader, Section, at_entry, joined};
use super::suggest::did_you_mean;
use super::template::{Template, is_name};
use super::variables::is_host_name;
use super::yaml::Value;
use crate::git::RemoteUrl;
use crate::secrets::plain_name;

/// Every field of a repository (spec section 3).
pub(super) const REPOSITORY_FIELDS: &[&str] = &[
    "url",
    "branch",
    "path",
    "local_path",
    "check_interval",
    "deploy",
    "watch_paths",
    "env_file",
    "secret_files",
    "environment",
    "unset_variables",
    "compose_files",
    "compose_project",
    "profiles",
    "build",
    "pull",
    "priority",
    "depends_on",
    "hosts",
    "health_timeout",
    "settle_time",
    "healthcheck_url",
    "healthcheck_timeout",
    "healthcheck_expected_status",
    "timeout",
    "token",
    "tokens_github",
    "insecure_http",
    "ca_file",
    "ssh_key",
    "ssh_key_passphrase",
    "notifications",
];

/// The longest name of a project, repository, branch or compose project: it becomes a folder's name.
const MAX_NAME_BYTES: usize = 200;

/// The field's path and line.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) field: String,
    pub(super) line: usize,
}

/// Where messages go, as it is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Urls {
    pub(super) success: Vec<Template>,
    pub(super) failure: Vec<Template>,
}

/// Declares the fields once: the struct, and what a repository takes from `defaults`.
macro_rules! fields {
    ($($name:ident: $type:ty,)+) => {
        /// What a map of repository fields says.
        #[derive(Clone, Debug, Default)]
        pub(super) struct Fields {
            $(pub(super) $name: Option<$type>,)+
            /// Where each field that is given stands, valid or not.
            pub(super) places: BTreeMap<&'static str, Place>,
        }

        impl Fields {
            /// These, and those of `defaults` where nothing is said. A field is taken as a whole, lists and maps too.
            pub(super) fn over(self, defaults: &Fields) -> Fields {
                let mut places = defaults.places.clone();
                places.extend(self.places);
                Fields { $($name: self.$name.or_else(|| defaults.$name.clone()),)+ places }
            }
        }
    };
}

fields! {
    url: RemoteUrl,
    branch: String,
    path: PathBuf,
    local_path: PathBuf,
    check_interval: Duration,
    deploy: Deploy,
    watch_paths: Vec<PathBuf>,
    env_file: Vec<PathBuf>,
    secret_files: Vec<PathBuf>,
    environment: BTreeMap<String, Template>,
    unset_variables: UnsetVariables,
    compose_files: Vec<PathBuf>,
    compose_project: String,
    profiles: Vec<String>,
    build: Build,
    pull: Pull,
    priority: i64,
    depends_on: Vec<String>,
    health_timeout: Duration,
    settle_time: Duration,
    healthcheck_url: Template,
    healthcheck_timeout: Duration,
    healthcheck_expected_status: u16,
    timeout: Duration,
    token: Template,
    tokens_github: Template,
    insecure_http: bool,
    ca_file: PathBuf,
    ssh_key: PathBuf,
    ssh_key_passphrase: Template,
    notifications: Urls,
}

impl Fields {
    /// Reads every field of a section and reports what is wrong with each. `hosts` is read apart, by [`hosts`].
    pub(super) fn read(reader: &mut Reader<'_>, section: &Section<'_>) -> Fields {
        let mut get = Get { reader, section };
        let places = REPOSITORY_FIELDS.iter().filter_map(|name| {
            let at = section.get(name)?;
            Some((*name, Place { field: at.field, line: at.line }))
        });
        Fields {
            places: places.collect(),
            url: get.field("url", remote_url),
            branch: get.field("branch", branch),
            path: get.field("path", stack_path),
            local_path: get.field("local_path", local_path),
            check_interval: get.field("check_interval", |reader, at| reader.seconds(at, 1)),
            deploy: get.word("deploy", &[("auto", Deploy::Auto), ("manual", Deploy::Manual)]),
            watch_paths: get.field("watch_paths", watch_paths),
            env_file: get.list("env_file", stack_file),
            secret_files: get.list("secret_files", secret_file),
            environment: get.field("environment", environment),
            unset_variables: get
                .word("unset_variables", &[("fail", UnsetVariables::Fail), ("blank", UnsetVariables::Blank)]),
            compose_files: get.list("compose_files", stack_file),
            compose_project: get.field("compose_project", compose_project),
            profiles: get.list("profiles", profile),
            build: get.word("build", &[("auto", Build::Auto), ("always", Build::Always), ("never", Build::Never)]),
            pull: get.word("pull", &[("missing", Pull::Missing), ("always", Pull::Always), ("never", Pull::Never)]),
            priority: get.field("priority", |reader, at| reader.whole_number(at, -1_000_000..=1_000_000)),
            depends_on: get.list("depends_on", Reader::text),
            health_timeout: get.field("health_timeout", |reader, at| reader.seconds(at, 1)),
            settle_time: get.field("settle_time", |reader, at| reader.seconds(at, 0)),
            healthcheck_url: get.field("healthcheck_url", probe_url),
            healthcheck_timeout: get.field("healthcheck_timeout", |reader, at| reader.seconds(at, 1)),
            healthcheck_expected_status: get.field("healthcheck_expected_status", status_code),
            timeout: get.field("timeout", |reader, at| reader.seconds(at, 1)),
            token: get.field("token", token),
            tokens_github: get.field("tokens_github", token),
            insecure_http: get.field("insecure_http", Reader::boolean),
            ca_file: get.field("ca_file", Reader::host_path),
            ssh_key: get.field("ssh_key", Reader::host_path),
            ssh_key_passphrase: get.field("ssh_key_passphrase", Reader::template),
            notifications: get.field("notifications", |reader, at| Some(notifications(reader, at))),
        }
    }
}

/// Reads the fields of one section.
struct Get<'r, 'a, 'n> {
    reader: &'r mut Reader<'a>,
    section: &'r Section<'n>,
}

impl<'r, 'a, 'n> Get<'r, 'a, 'n> {
    fn field<T>(&mut self, name: &str, read: impl FnOnce(&mut Reader<'a>, &At<'n>) -> Option<T>) -> Option<T> {
        read(self.reader, &self.section.get(name)?)
    }

    fn list<T>(&mut self, name: &str, read: impl Fn(&mut Reader<'a>, &At<'n>) -> Option<T>) -> Option<Vec<T>> {
        let at = self.section.get(name)?;
        let items = self.reader.one_or_more(&at);
        Some(items.iter().filter_map(|item| read(self.reader, item)).collect())
    }

    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        self.reader.word(&self.section.get(name)?, words)
    }
}

/// The hosts that a project or repository is for; none where it does not say, or where one of them is no host name. It
/// is read before anything else, as what is for other hosts is not looked at.
pub(super) fn hosts(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Vec<String>> {
    let Value::Map(map) = &at.node.value else {
        return None;
    };
    let entry = map.get("hosts").filter(|entry| entry.value.value != Value::Null)?;
    let items = reader.one_or_more(&at_entry(&at.field, entry));
    let host = |item: &At<'_>| {
        reader.parsed(item, "a host name, as `hostname` prints it", |text| {
            is_host_name(text.trim()).then(|| text.trim().to_owned())
        })
    };
    let hosts: Vec<String> = items.iter().filter_map(host).collect();
    (hosts.len() == items.len()).then_some(hosts)
}

/// Success and failure, each one URL or a list.
pub(super) fn notifications(reader: &mut Reader<'_>, at: &At<'_>) -> Urls {
    let Some(section) = reader.section(at, &["success", "failure"]) else {
        return Urls::default();
    };
    let mut list = |name| {
        let items = section.get(name).map(|at| reader.one_or_more(&at)).unwrap_or_default();
        items.iter().filter_map(|item| notification_url(reader, item)).collect()
    };
    Urls { success: list("success"), failure: list("failure") }
}

/// Whether a text can name a project or a repository.
pub(super) fn is_plain_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_NAME_BYTES
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// `relative` as seen from `base`, without `.` and `..`; none where it leaves the folder that `base` is relative to.
pub(super) fn inside(base: &Path, relative: &Path) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for component in base.components().chain(relative.components()) {
        match component {
            Component::Normal(name) => found.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !found.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(found)
}

fn remote_url(reader: &mut Reader<'_>, at: &At<'_>) -> Option<RemoteUrl> {
    let (_, value) = reader.secret(at)?;
    // The error never repeats the URL, which may carry a credential.
    value.parse().map_err(|error: String| reader.error(at, error)).ok()
}

fn branch(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    reader.parsed(at, "a branch, or a full reference such as refs/tags/v1.2", |text| {
        is_reference(text.trim()).then(|| text.trim().to_owned())
    })
}

/// The rules of git-check-ref-format(1), for a branch or a full reference.
fn is_reference(text: &str) -> bool {
    let component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let forbidden = |character: char| character.is_control() || " ~^:?*[\\".contains(character);
    text.len() <= MAX_NAME_BYTES
        && text.split('/').all(component)
        && !text.starts_with('-')
        && !text.ends_with('.')
        && !text.contains("..")
        && !text.contains("@{")
        && text != "@"
        && !text.contains(forbidden)
}

fn stack_path(reader: &mut Reader<'_>, at: &At<'_>) -> Option<PathBuf> {
    reader.parsed(at, "a folder inside the repository, relative to its top", |text| {
        if text.contains(char::is_control) || text.trim().is_empty() {
            return None;
        }
        let path = inside(Path::new(""), Path::new(text.trim()))?;
        Some(if path.as_os_str().is_empty() { PathBuf::from(".") } else { path })
    })
}

/// As it is written; [`super::file`] puts a relative one under `DATA/deployments`.
fn local_path(reader: &mut Reader<'_>, at: &At<'_>) -> Option<PathBuf> {
    reader.parsed(at, "an absolute path, or one under DATA/deployments without `..`", |text| {
        let text = text.trim();
        let path = Path::new(text);
        if text.contains(char::is_control) || text.starts_with('~') {
            return None;
        }
        let relative = inside(Path::new(""), path.strip_prefix("/").unwrap_or(path))?;
        let absolute = path.is_absolute();
        (!relative.as_os_str().is_empty()).then(|| if absolute { Path::new("/").join(relative) } else { relative })
    })
}

/// A file by its path relative to `path`, or absolute. Whether it leaves the repository is known once `path` is.
fn stack_file(reader: &mut Reader<'_>, at: &At<'_>) -> Option<PathBuf> {
    reader.parsed(at, "the path of a file", |text| {
        let text = text.trim();
        let names_a_file = !text.is_empty() && !text.ends_with('/') && !text.contains(char::is_control);
        (names_a_file && !text.starts_with('~')).then(|| PathBuf::from(text))
    })
}

/// Files and folders relative to the repository's top; an empty path is the top itself.
fn watch_paths(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Vec<PathBuf>> {
    let items = reader.one_or_more(at);
    if items.is_empty() {
        reader.error(at, "an empty list; name files and folders, `.` for everything, or remove it for the default");
    }
    let watch_path = |item: &At<'_>| {
        let expected = "a file or folder inside the repository, relative to its top, without patterns: a folder stands for all in it";
        reader.parsed(item, expected, |text| {
            let text = text.trim();
            let unfit = |character: char| character.is_control() || "*?".contains(character);
            if text.is_empty() || text.contains(unfit) {
                return None;
            }
            inside(Path::new(""), Path::new(text))
        })
    };
    Some(items.iter().filter_map(watch_path).collect())
}

/// A SOPS file of the repository whose name says so: what it decrypts to lies beside it under the rest of the name.
fn secret_file(reader: &mut Reader<'_>, at: &At<'_>) -> Option<PathBuf> {
    let file = stack_file(reader, at)?;
    let name = file.file_name().map(|name| name.to_string_lossy());
    let problem = if file.is_absolute() {
        "is a file of this host; expected one of the repository, relative to `path`: a link to its plain text lies beside it"
    } else if name.and_then(|name| plain_name(&name)).is_none() {
        "has no `.enc` or `.sops` in its name, and its plain text lies beside it under the name without that; rename it, as in `key.pem.enc`"
    } else {
        return Some(file);
    };
    reader.error(at, format!("`{}` {problem}", file.display()));
    None
}

fn environment(reader: &mut Reader<'_>, at: &At<'_>) -> Option<BTreeMap<String, Template>> {
    let mut variables = BTreeMap::new();
    for (name, at) in reader.named(at) {
        if !is_name(name) {
            reader.error(&at, "not the name of a variable; expected letters, digits and `_`, no digit first");
        } else if at.node.value == Value::Null {
            reader.error(&at, "no value; write \"\" for an empty one");
        } else if let Some(template) = reader.template(&at) {
            variables.insert(name.to_owned(), template);
        }
    }
    Some(variables)
}

fn compose_project(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    let expected = "a compose project: lower-case letters, digits, `-` and `_`, a letter or digit first";
    reader.parsed(at, expected, |text| {
        let text = text.trim();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        let valid = is_plain_name(text) && !text.starts_with(['-', '_']) && text.bytes().all(plain);
        valid.then(|| text.to_owned())
    })
}

fn profile(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    reader.parsed(at, "a profile: letters, digits, `_`, `.` and `-`, a letter or digit first, or `*`", |text| {
        let text = text.trim();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let named = text.starts_with(|first: char| first.is_ascii_alphanumeric()) && text.bytes().all(plain);
        (named || text == "*").then(|| text.to_owned())
    })
}

fn status_code(reader: &mut Reader<'_>, at: &At<'_>) -> Option<u16> {
    reader.whole_number(at, 100..=599)?.try_into().ok()
}

fn probe_url(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Template> {
    let (template, value) = reader.secret(at)?;
    let address = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
    if address
        .is_none_or(|address| address.is_empty() || address.contains(|c: char| c.is_whitespace() || c.is_control()))
    {
        reader.error(at, "not a URL that can be probed; expected http://… or https://…");
    }
    Some(template)
}

fn token(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Template> {
    let (template, value) = reader.secret(at)?;
    if value.is_empty() || value.contains(char::is_control) {
        reader.error(at, "empty, or with a control character or line break in it; expected a token, or user:secret");
    }
    Some(template)
}

fn notification_url(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Template> {
    let (template, value) = reader.secret(at)?;
    let scheme = value.split_once(':').map(|(scheme, _)| scheme);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let valid = scheme.is_some_and(|scheme| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(plain)
    });
    if !valid || !value.contains("://") || value.contains(char::is_control) {
        reader
            .error(at, "not a notification URL; expected one of shoutrrr's, such as discord://TOKEN@ID, or https://…");
    }
    Some(template)
}

/// Reports names in a list that are none of `known`, with a suggestion.
pub(super) fn report_unknown(reader: &mut Reader<'_>, place: &Place, names: &[String], known: &[&str]) {
    for name in names.iter().filter(|name| !known.contains(&name.as_str())) {
        let suggestion = did_you_mean(name, known.iter().copied());
        let message = format!("`{name}` is no repository of this project{suggestion}");
        reader.report(Some(place.line), place.field.clone(), Severity::Error, message);
    }
}

/// Where a field stands, given or not: one that is not is shown at the line of its repository.
pub(super) fn place_or(fields: &Fields, name: &str, section: &Section<'_>) -> Place {
    let given = fields.places.get(name).cloned();
    given.unwrap_or_else(|| Place { field: joined(&section.field, name), line: section.line })
}
