//! What the installed service cannot read or write under its sandbox, and the drop-in that lets it.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::compose::quoted;
use super::unit::{Access, Unit};
use crate::config::{Repository, Settings, real_path};
use crate::sandbox::{self, UNIT};

/// One problem a kind, each with its way out.
pub fn problems(unit: &Unit, settings: &Settings, repositories: &[&Repository]) -> Vec<String> {
    let mut problems = Vec::new();
    let written = std::iter::once(("Shiparr_DATA_PATH".to_owned(), settings.data_path.clone())).chain(
        repositories
            .iter()
            .map(|repository| (format!("{}: local_path", repository.name), repository.local_path.clone())),
    );
    problems.extend(unwritable(unit, written));
    problems.extend(unreadable(unit, settings, repositories));
    problems.extend(unit.needed.iter().filter(|(_, path)| is_missing(path)).map(|(option, path)| {
        let path = path.display();
        format!("{UNIT} does not start: its {option}= names {path}, which is not there; make it, or take it out of the drop-in (`sudo systemctl edit {UNIT}`)")
    }));
    problems
}

/// Where nobody may look it may be there.
fn is_missing(path: &Path) -> bool {
    path.metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Folders that the service writes to and cannot, with the drop-in.
fn unwritable(unit: &Unit, written: impl Iterator<Item = (String, PathBuf)>) -> Option<String> {
    let (mut named, mut opened) = (Vec::new(), BTreeSet::new());
    for (what, path) in written {
        let path = real_path(&path);
        let (access, option) = unit.sandbox.access(&path);
        if access == Access::Open {
            continue;
        }
        named.push(format!("{what} {} ({option})", path.display()));
        opened.insert(sandbox::folder_to_open(&path));
    }
    if named.is_empty() {
        return None;
    }
    let missing: Vec<String> =
        opened.iter().filter(|folder| !folder.exists()).map(|folder| quoted(&folder.display().to_string())).collect();
    let make = match missing.as_slice() {
        [] => String::new(),
        missing => format!("run `sudo mkdir -p {}` and ", missing.join(" ")),
    };
    let also = match opened.iter().any(|folder| sandbox::is_in_a_home(folder)) {
        true => " (and, where it has `secret_files`, the same for shiparr-secrets.service)",
        false => "",
    };
    let lines = sandbox::drop_in(opened.iter().map(PathBuf::as_path)).join("\n    ");
    Some(format!(
        "{UNIT} cannot write under its sandbox: {}; {make}`sudo systemctl edit {UNIT}`{also}, write there\n\n    {lines}\n\nand run `sudo systemctl restart {UNIT}`",
        named.join(", ")
    ))
}

/// Files of this host that the service is told to read and does not see.
fn unreadable(unit: &Unit, settings: &Settings, repositories: &[&Repository]) -> Vec<String> {
    let mut files: BTreeSet<(String, PathBuf)> = BTreeSet::new();
    let mut add = |what: String, path: &Path| {
        files.insert((what, path.to_owned()));
    };
    for (name, program) in [
        ("Shiparr_DOCKER_BIN", &settings.docker_bin),
        ("Shiparr_SOPS_BIN", &settings.sops_bin),
        ("Shiparr_SHOUTRRR_BIN", &settings.shoutrrr_bin),
    ] {
        add(name.to_owned(), program);
    }
    if let Some(key) = settings.environment.get("SOPS_AGE_KEY_FILE") {
        add("SOPS_AGE_KEY_FILE (or give the file as the credential `age_key`)".to_owned(), Path::new(key));
    }
    for repository in repositories {
        let name = &repository.name;
        let folder = repository.url.folder();
        let paths =
            [("url", folder), ("ssh_key", repository.ssh_key.as_deref()), ("ca_file", repository.ca_file.as_deref())];
        for (field, path) in paths {
            if let Some(path) = path {
                add(format!("{name}: {field}"), path);
            }
        }
        repository.env_files.iter().for_each(|file| add(format!("{name}: env_file"), file));
    }
    let hidden = files.into_iter().filter(|(_, path)| path.is_absolute()).filter_map(|(what, path)| {
        let path = real_path(&path);
        let (access, option) = unit.sandbox.access(&path);
        (access == Access::Hidden).then(|| {
            format!(
                "{UNIT} does not see {} under its sandbox ({option}): {what}; move it, to /etc/shiparr say, or open it with a drop-in (`sudo systemctl edit {UNIT}`)",
                path.display()
            )
        })
    });
    hidden.collect()
}
