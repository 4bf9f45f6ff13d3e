//! Which files the services name under `env_file:`. Compose reads them, and prints the configuration without their names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::files::MAX_FILE_BYTES;
use crate::config::read_bounded;
use crate::config::yaml::{self, Map, Node, Value};
use crate::deploy::variables::PassingLink;
use crate::deploy::{Plan, StepError, stack};

/// Compose files that others include or extend. What lies beyond is not looked at.
const MAX_FILES: usize = 200;

/// Refuses a service's `env_file:` that names a file which lies where the link to decrypted variables should be: the
/// service would get what stands in that file instead. `folder` is the stack's.
///
/// A name that is made of variables, and a file that only Compose can read, is passed over.
///
/// # Errors
/// There is one: the service, both files, and what to do.
pub fn refuse_taken(plan: &Plan, folder: &Path, taken: &[PassingLink]) -> Result<(), StepError> {
    if taken.is_empty() {
        return Ok(());
    }
    let is_active = |service: &str| plan.services.contains_key(service);
    for Named { service, path } in named(&plan.files, folder, &is_active) {
        if let Some(link) = taken.iter().find(|link| is_same(&link.path, &path)) {
            return Err(StepError::for_good(format!(
                "the `env_file:` of service {service} names {}, a file that lies where the decrypted {} would be linked: remove that file, \
                 or let `env_file:` name another",
                link.path.display(),
                link.encrypted.file_name().unwrap_or_default().to_string_lossy()
            )));
        }
    }
    Ok(())
}

/// A name may lead through links.
fn is_same(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|real| other.canonicalize().is_ok_and(|other| real == other))
}

/// A file that a service names under `env_file:`.
#[derive(Debug, PartialEq)]
struct Named {
    service: String,
    path: PathBuf,
}

/// A compose file that is to be read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    file: PathBuf,
    /// What its paths are relative to.
    base: PathBuf,
    /// The service that another one extends; none: all that are active.
    only: Option<String>,
}

fn named(files: &[PathBuf], folder: &Path, is_active: &dyn Fn(&str) -> bool) -> Vec<Named> {
    let source = |file: &PathBuf| Source { file: file.clone(), base: folder.to_owned(), only: None };
    let mut to_read: Vec<Source> = files.iter().map(source).collect();
    let (mut read, mut found) = (BTreeSet::new(), Vec::new());
    while let Some(source) = to_read.pop() {
        if read.len() == MAX_FILES || !read.insert(source.clone()) {
            continue;
        }
        let Some(root) = parse(&source.file) else { continue };
        if source.only.is_none() {
            to_read.extend(items(root.get("include")).flat_map(|include| included(include, &source.base)));
        }
        let Some(Value::Map(services)) = root.get("services").map(|entry| &entry.value.value) else { continue };
        let is_wanted = |name: &str| source.only.as_deref().map_or_else(|| is_active(name), |only| only == name);
        for entry in services.entries.iter().filter(|entry| is_wanted(&entry.key)) {
            let Value::Map(service) = &entry.value.value else { continue };
            let paths = items(service.get("env_file")).filter_map(|item| text_or_field(item, "path"));
            found.extend(
                paths.filter_map(|path| Some(Named { service: entry.key.clone(), path: joined(&source.base, path)? })),
            );
            to_read.extend(service.get("extends").and_then(|extends| extended(&extends.value, &source)));
        }
    }
    found
}

fn parse(file: &Path) -> Option<Map> {
    let bytes = read_bounded(file, MAX_FILE_BYTES).ok()?;
    match yaml::parse_with_any_tags(std::str::from_utf8(&bytes).ok()?).ok()?.value {
        Value::Map(map) => Some(map),
        _ => None,
    }
}

/// The files of an entry of `include:`, which belong to the folder of the first, or to the one that it names.
fn included(include: &Node, base: &Path) -> Vec<Source> {
    let (paths, folder): (Vec<&str>, _) = match &include.value {
        Value::Map(map) => (
            items(map.get("path")).filter_map(text).collect(),
            map.get("project_directory").and_then(|entry| text(&entry.value)),
        ),
        _ => (text(include).into_iter().collect(), None),
    };
    let files: Vec<PathBuf> = paths.into_iter().filter_map(|path| joined(base, path)).collect();
    let own = files.first().and_then(|file| file.parent()).unwrap_or(base).to_owned();
    let base = folder.and_then(|folder| joined(base, folder)).unwrap_or(own);
    files.into_iter().map(|file| Source { file, base: base.clone(), only: None }).collect()
}

/// The service that one extends, in this file or another.
fn extended(extends: &Node, source: &Source) -> Option<Source> {
    let only = Some(text_or_field(extends, "service")?.to_owned());
    let file = match &extends.value {
        Value::Map(map) => map.get("file").and_then(|entry| text(&entry.value)),
        _ => None,
    };
    let Some(file) = file else { return Some(Source { only, ..source.clone() }) };
    let file = joined(&source.base, file)?;
    let base = file.parent()?.to_owned();
    Some(Source { file, base, only })
}

/// None where variables stand in it.
fn joined(base: &Path, path: &str) -> Option<PathBuf> {
    (!path.contains('$')).then(|| stack::joined(base, Path::new(path)))
}

/// One value, or a list of them.
fn items(entry: Option<&yaml::Entry>) -> impl Iterator<Item = &Node> {
    entry.into_iter().flat_map(|entry| match &entry.value.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(&entry.value),
    })
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(text) => Some(text),
        _ => None,
    }
}

/// A short form that is a text, or that field of a long one.
fn text_or_field<'a>(node: &'a Node, field: &str) -> Option<&'a str> {
    match &node.value {
        Value::Map(map) => text(&map.get(field)?.value),
        _ => text(node),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new(files: &[(&str, &str)]) -> Lab {
            let lab = Lab(tempfile::tempdir().unwrap());
            for (name, text) in files {
                let path = lab.path(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            lab
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// What is said of `app.env`, with `compose.yaml` in the stack's folder.
        fn refused(&self) -> Option<String> {
            let plan = Plan {
                files: vec![self.path("stack/compose.yaml")],
                services: BTreeMap::from([("web".to_owned(), 1)]),
                ..Plan::default()
            };
            let link = PassingLink { path: self.path("stack/app.env"), encrypted: self.path("stack/app.env.enc") };
            refuse_taken(&plan, &self.path("stack"), &[link]).err().map(|error| error.message)
        }
    }

    #[test]
    fn a_service_that_names_a_taken_name_is_refused() {
        for yaml in [
            "services: {web: {env_file: app.env}}",
            "services: {web: {env_file: [other.env, ./app.env]}}",
            "services: {web: {env_file: [{path: ../stack/app.env, required: false}]}}",
            "x-common: &common\n  env_file: app.env\nservices:\n  web:\n    <<: *common\n    ports: !reset []\n",
            "services: {web: {extends: base}, base: {env_file: app.env}}",
            "services: {web: {extends: {service: base, file: ../base/base.yaml}}}",
            "include: [../included/compose.yaml]",
            "include: [{path: [../included/plain.yaml], project_directory: .}]",
            "{\"services\": {\"web\": {\"env_file\": \"app.env\"}}}",
        ] {
            let lab = Lab::new(&[
                ("stack/compose.yaml", yaml),
                ("stack/app.env", "A=1"),
                ("base/base.yaml", "services: {base: {env_file: ../stack/app.env}}"),
                ("included/compose.yaml", "services: {web: {env_file: ../stack/app.env}}"),
                ("included/plain.yaml", "services: {web: {env_file: app.env}}"),
            ]);
            let message = lab.refused().unwrap_or_else(|| panic!("not refused: {yaml}"));
            assert!(message.contains("service") && message.contains("stack/app.env"), "{message}");
            assert!(message.contains("the decrypted app.env.enc"), "{message}");
        }
    }

    #[test]
    fn what_no_active_service_names_is_none_of_its_business() {
        for yaml in [
            "services: {web: {env_file: other.env}}",
            "services: {web: {image: x}, idle: {env_file: app.env}}",
            "services: {web: {env_file: '${NAME}.env'}}",
            "services: {web: {extends: {service: base, file: ../base/base.yaml}}}",
            "services: {web: {extends: web}}",
            "include: [compose.yaml, ../absent.yaml]",
            "services: [web",
            "services:\nx-note: app.env\n",
        ] {
            let base = "services: {base: {image: x}, other: {env_file: ../stack/app.env}}";
            let lab = Lab::new(&[("stack/compose.yaml", yaml), ("stack/app.env", "A=1"), ("base/base.yaml", base)]);
            assert_eq!(lab.refused(), None, "{yaml}");
        }
    }

    #[test]
    fn a_name_may_lead_through_a_link() {
        let lab = Lab::new(&[
            ("stack/compose.yaml", "services: {web: {env_file: ../link/app.env}}"),
            ("stack/app.env", "A=1"),
        ]);
        std::os::unix::fs::symlink("stack", lab.path("link")).unwrap();
        assert!(lab.refused().is_some());
    }
}
