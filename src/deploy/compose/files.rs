//! Which compose files a stack has, and whether they name its project.

use std::path::{Path, PathBuf};

use crate::config::read_bounded;
use crate::deploy::{StepError, stack};

/// The names that are looked for, in this order: the first that is there counts. Compose itself prefers
/// `docker-compose.yml` to `.yaml` too, but it climbs to parent folders, and that never does here.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// A compose file that is larger is refused: it is no compose file.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// The stack's own files in `folder`: the first of the names, with the override where there is one.
///
/// # Errors
/// There is none: names the folder and what was looked for. One is a link that leads out of the repository at `root`.
pub fn find(root: &Path, folder: &Path) -> Result<Vec<PathBuf>, StepError> {
    let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    let Some((name, main)) = NAMES.iter().find_map(|name| Some((name, there(name)?))) else {
        return Err(StepError::for_good(format!(
            "no compose file in {}: looked for {}; name the folder with `path`, or the files with `compose_files`",
            folder.display(),
            NAMES.join(", ")
        )));
    };
    // Compose takes an override of either name, also beside a file of the other; the file's own comes first here.
    let own_stem = if name.starts_with("docker-") { "docker-compose" } else { "compose" };
    let beside = [own_stem, "compose", "docker-compose"]
        .iter()
        .flat_map(|stem| ["yml", "yaml"].map(|ending| format!("{stem}.override.{ending}")))
        .find_map(|name| there(&name));
    let files: Vec<PathBuf> = std::iter::once(main).chain(beside).collect();
    for file in &files {
        stack::stay_inside(root, file, "the compose file")?;
    }
    Ok(files)
}

/// Whether one of the files has a `name:` at its top level, which then is the compose project's name.
///
/// Compose prints a project's name without saying whether it comes from a file or from the folder, so the text is
/// looked at: a key at the beginning of a line, or, where the whole file is JSON, a field of it.
///
/// # Errors
/// A file that cannot be read, or that is larger than 4 MiB.
pub fn name_a_project(files: &[PathBuf]) -> Result<bool, StepError> {
    for file in files {
        let bytes = read_bounded(file, MAX_FILE_BYTES)
            .map_err(|error| StepError::for_good(format!("cannot read {}: {error}", file.display())))?;
        if has_name(&String::from_utf8_lossy(&bytes)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_name(text: &str) -> bool {
    let is_name_key = |line: &str| {
        ["name", "\"name\"", "'name'"]
            .iter()
            .filter_map(|key| line.strip_prefix(key))
            .any(|rest| rest.trim_start().starts_with(':'))
    };
    text.lines().any(is_name_key)
        || serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| value.get("name").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_name_with_its_override() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let error = find(folder.path(), folder.path()).unwrap_err().message;
        assert!(
            error.contains(&folder.path().display().to_string()) && error.contains("docker-compose.yml"),
            "{error}"
        );
        for (added, expected) in [
            ("docker-compose.yaml", &["docker-compose.yaml"][..]),
            ("compose.override.yaml", &["docker-compose.yaml", "compose.override.yaml"]),
            ("docker-compose.override.yml", &["docker-compose.yaml", "docker-compose.override.yml"]),
            ("docker-compose.yml", &["docker-compose.yml", "docker-compose.override.yml"]),
            ("compose.yml", &["compose.yml", "compose.override.yaml"]),
            ("compose.yaml", &["compose.yaml", "compose.override.yaml"]),
        ] {
            std::fs::write(path(added), "services: {}").unwrap();
            let expected: Vec<PathBuf> = expected.iter().map(|name| path(name)).collect();
            assert_eq!(find(folder.path(), folder.path()).unwrap(), expected, "after {added}");
        }
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("compose.yaml");
        std::fs::write(&path, "services: {}").unwrap();
        assert!(!name_a_project(std::slice::from_ref(&path)).unwrap());
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        let error = name_a_project(&[path]).unwrap_err().message;
        assert!(error.contains("compose.yaml: it is larger than"), "{error}");
    }

    #[test]
    fn sees_a_name_at_the_top_level_only() {
        for text in ["name: x\nservices: {}", "services: {}\n\"name\" : ${X}", "{\"name\": \"x\", \"services\": {}}"] {
            assert!(has_name(text), "{text}");
        }
        for text in
            ["services:\n  a:\n    name: x", "names: x", "# name: x", "{\"services\": {\"name\": {}}}", "x-name: y\n"]
        {
            assert!(!has_name(text), "{text}");
        }
    }
}
