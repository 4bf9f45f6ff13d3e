//! From a configured repository and its working tree to the stack that a driver runs: its folder, its files, its
//! variables.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::journal::Journal;
use super::variables::{self, Plaintext, Variables};
use super::{Stack, StepError};
use crate::command::Limit;
use crate::config::{Repository, Settings};
use crate::model::Asked;
use crate::secrets::Secret;

/// The stack as it lies in the tree, with its variables decrypted.
///
/// # Errors
/// Whatever is wrong with the files that the configuration names, in one line.
pub fn assemble(
    repository: &Repository,
    asked: &Asked,
    settings: &Settings,
    runtime_name: &str,
    limit: &Limit,
    journal: &mut Journal,
) -> Result<(Stack, Plaintext), StepError> {
    let within = folder(repository)?;
    let (variables, plaintext) = variables::gather(repository, &within, settings, runtime_name, limit, journal)?;
    let stack = describe(repository, asked.clone(), within, variables, &plaintext)?;
    Ok((stack, plaintext))
}

/// The stack's folder: `path` in the working tree.
///
/// # Errors
/// It is not there, is no folder, or leaves the repository once links are followed.
pub fn folder(repository: &Repository) -> Result<PathBuf, StepError> {
    let folder = joined(&repository.local_path, &repository.path);
    stay_inside(&repository.local_path, &folder, "`path`")?;
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(StepError::for_good(format!("`path` is not a folder: {}", folder.display())))
    }
}

/// A file that the configuration names (`what` is the field): absolute as it stands, else relative to the stack's
/// folder and inside the repository, also after links are followed.
///
/// # Errors
/// It is not there, or outside.
pub fn named_file(root: &Path, folder: &Path, file: &Path, what: &str) -> Result<PathBuf, StepError> {
    let path = joined(folder, file);
    if file.is_relative() {
        stay_inside(root, &path, what)?;
    }
    if path.is_file() {
        Ok(path)
    } else {
        Err(StepError::for_good(format!("{what} names {}, which is not there or is no file", path.display())))
    }
}

/// `path` as seen from `folder`, without `.` and, by its text, without `..`.
pub fn joined(folder: &Path, path: &Path) -> PathBuf {
    let mut joined = PathBuf::new();
    for component in folder.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                joined.pop();
            }
            other => joined.push(other),
        }
    }
    joined
}

/// Refuses a path that leaves the working tree once links are followed.
///
/// # Errors
/// It does, or is not there.
pub fn stay_inside(root: &Path, path: &Path, what: &str) -> Result<(), StepError> {
    let real = |path: &Path| {
        path.canonicalize().map_err(|error| StepError::for_good(format!("{what}: {}: {error}", path.display())))
    };
    let (real_root, real_path) = (real(root)?, real(path)?);
    if real_path.starts_with(&real_root) {
        return Ok(());
    }
    Err(StepError::for_good(format!(
        "{what} leaves the repository: {} leads to {}",
        path.display(),
        real_path.display()
    )))
}

/// What the stack's own `.env` says about Compose itself: the defaults of `compose_files`, `compose_project` and
/// `profiles`.
#[derive(Debug, Default, PartialEq)]
pub struct Defaults {
    /// `COMPOSE_FILE`.
    pub files: Vec<PathBuf>,
    /// `COMPOSE_PROJECT_NAME`.
    pub project: Option<String>,
    /// `COMPOSE_PROFILES`.
    pub profiles: Vec<String>,
}

impl Defaults {
    /// Taken from the variables of that file.
    pub fn of(variables: &BTreeMap<String, Secret>) -> Defaults {
        let get = |name: &str| variables.get(name).map(Secret::expose).filter(|value| !value.is_empty());
        let list = |text: &str, separator: &str| -> Vec<String> {
            text.split(separator).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let separator = get("COMPOSE_PATH_SEPARATOR").unwrap_or(":");
        Defaults {
            files: get("COMPOSE_FILE")
                .map(|text| list(text, separator))
                .unwrap_or_default()
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            project: get("COMPOSE_PROJECT_NAME").map(str::to_owned),
            profiles: get("COMPOSE_PROFILES").map(|text| list(text, ",")).unwrap_or_default(),
        }
    }
}

/// The stack that a driver runs, with what the folder's own `.env` says where the repository says nothing.
fn describe(
    repository: &Repository,
    asked: Asked,
    folder: PathBuf,
    variables: Variables,
    plaintext: &Plaintext,
) -> Result<Stack, StepError> {
    let defaults = variables.defaults;
    let (named, field) = match repository.compose_files.is_empty() {
        true => (&defaults.files, "COMPOSE_FILE in `.env`"),
        false => (&repository.compose_files, "`compose_files`"),
    };
    let files =
        named.iter().map(|file| named_file(&repository.local_path, &folder, file, field)).collect::<Result<_, _>>()?;
    Ok(Stack {
        root: repository.local_path.clone(),
        folder,
        files,
        project: repository.compose_project.clone().or(defaults.project),
        default_project: repository.default_compose_project(),
        profiles: if repository.profiles.is_empty() { defaults.profiles } else { repository.profiles.clone() },
        variables_file: plaintext.variables_file(),
        variables: variables.all,
        unset_variables: repository.unset_variables,
        build: repository.build,
        pull: repository.pull,
        asked,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn refuses_what_leaves_the_repository() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("tree");
        std::fs::create_dir_all(root.join("stack")).unwrap();
        std::fs::write(host.path().join("outside.yaml"), "").unwrap();
        std::fs::write(root.join("common.yaml"), "").unwrap();
        symlink(host.path().join("outside.yaml"), root.join("stack/link.yaml")).unwrap();
        symlink("../common.yaml", root.join("stack/inner.yaml")).unwrap();
        let named = |file: &str| named_file(&root, &root.join("stack"), Path::new(file), "`compose_files`");

        assert_eq!(named("../common.yaml").unwrap(), root.join("common.yaml"));
        assert_eq!(named("./inner.yaml").unwrap(), root.join("stack/inner.yaml"));
        assert!(named("link.yaml").unwrap_err().message.contains("leaves the repository"));
        assert!(named("../../outside.yaml").unwrap_err().message.contains("leaves the repository"));
        assert!(named("absent.yaml").unwrap_err().message.contains("absent.yaml"));
        assert!(named("..").unwrap_err().message.contains("is no file"));
        let absolute = host.path().join("outside.yaml");
        assert_eq!(named(absolute.to_str().unwrap()).unwrap(), absolute);
    }

    #[test]
    fn reads_composes_own_variables() {
        let variables = [
            ("COMPOSE_FILE", "a.yaml: b.yaml"),
            ("COMPOSE_PROJECT_NAME", "x"),
            ("COMPOSE_PROFILES", "one, two,"),
            ("OTHER", "y"),
        ]
        .map(|(name, value)| (name.to_owned(), Secret::new(value)));
        let defaults = Defaults::of(&BTreeMap::from(variables));
        assert_eq!(defaults.files, [PathBuf::from("a.yaml"), PathBuf::from("b.yaml")]);
        assert_eq!(defaults.project.as_deref(), Some("x"));
        assert_eq!(defaults.profiles, ["one", "two"]);
        assert_eq!(Defaults::of(&BTreeMap::new()), Defaults::default());
    }
}
