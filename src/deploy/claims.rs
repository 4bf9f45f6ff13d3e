//! No two repositories end in one compose project: the `up --remove-orphans` of the second would remove the containers
//! of the first.

use std::path::Path;

use super::StepError;
use crate::config::Catalog;
use crate::config::project::compose_project_name;
use crate::model::{RepositoryName, RepositoryRecord};

/// Refuses a compose project that another repository has: the one that its last `up` ran under, or else the one that
/// its `compose_project` names, unless `own` holds it already. An orphan has its project too, for its containers may
/// still run; only one whose `up` ran in the same folder is this very stack under an earlier name.
///
/// # Errors
/// It is taken: by whom, and the line to write.
pub fn refuse_taken(
    project: &str,
    folder: &Path,
    own: &RepositoryName,
    records: &[RepositoryRecord],
    catalog: &Catalog,
) -> Result<(), StepError> {
    let holds = |record: &&RepositoryRecord| record.compose_project.as_deref() == Some(project);
    let is_earlier_name = |record: &RepositoryRecord| {
        record.orphaned_at.is_some()
            && record.up_folder.as_deref().is_some_and(|up_folder| Path::new(up_folder) == folder)
    };
    if let Some(other) = records.iter().filter(holds).find(|record| record.name != *own && !is_earlier_name(record)) {
        let way_out = match other.orphaned_at {
            Some(_) => ", or let `shiparr prune` forget that one: no project file names it any more",
            None => "",
        };
        return Err(taken(project, own, &other.name, way_out));
    }
    if records.iter().filter(holds).any(|record| record.name == *own) {
        return Ok(());
    }
    let claims = |name: &RepositoryName, claimed: &Option<String>| name != own && claimed.as_deref() == Some(project);
    match catalog.repositories().find(|other| claims(&other.name, &other.compose_project)) {
        Some(other) => Err(taken(project, own, &other.name, "")),
        None => Ok(()),
    }
}

fn taken(project: &str, own: &RepositoryName, other: &RepositoryName, way_out: &str) -> StepError {
    let key = compose_project_name(&own.name);
    let free = if key.is_empty() || key == project {
        compose_project_name(&format!("{}-{}", own.project, own.name))
    } else {
        key
    };
    StepError::for_good(format!(
        "compose project `{project}` is that of {other} too, whose containers would be removed; write `compose_project: {free}` for \
         {own}{way_out}"
    ))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::config::{Accepted, Basis, Environment, Settings, Severity};

    const FOLDER: &str = "/deployments/web";

    fn named(name: &str) -> RepositoryName {
        RepositoryName { project: "home".to_owned(), name: name.to_owned() }
    }

    fn record(name: &str, compose_project: Option<&str>, orphaned: bool, up_folder: &str) -> RepositoryRecord {
        RepositoryRecord {
            id: 1,
            name: named(name),
            git_url: String::new(),
            branch: String::new(),
            path: String::new(),
            local_path: String::new(),
            check_interval_seconds: 300,
            last_commit_hash: None,
            observed_commit: None,
            checked_out_commit: None,
            last_checked_at: None,
            next_check_at: None,
            last_error: None,
            failing_since: None,
            orphaned_at: orphaned.then_some(Timestamp::UNIX_EPOCH),
            retry_at: None,
            compose_project: compose_project.map(str::to_owned),
            up_folder: compose_project.map(|_| up_folder.to_owned()),
            brought_up_services: Default::default(),
            brought_up_volumes: Default::default(),
            accepted: Default::default(),
            secret_files_hash: None,
            is_manual: false,
            waiting: false,
            created_at: Timestamp::UNIX_EPOCH,
            last_deployment: None,
            status: None,
        }
    }

    /// What `home/web` is told when it would run as `shared`.
    fn asked(records: &[RepositoryRecord], catalog: &Catalog) -> Result<(), String> {
        refuse_taken("shared", Path::new(FOLDER), &named("web"), records, catalog).map_err(|error| error.message)
    }

    fn catalog(text: &str) -> Catalog {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("home.yaml"), text).unwrap();
        let settings =
            Settings::from_environment(&Environment::from_pairs([("Shiparr_DATA_PATH", "/data")])).unwrap().0;
        let basis = Basis {
            settings: &settings,
            previous: &Catalog::default(),
            accepted: &Accepted::default(),
            unset_names: Severity::Error,
        };
        let catalog = Catalog::load(folder.path(), &basis);
        assert!(catalog.problems.is_empty(), "{:?}", catalog.problems);
        catalog
    }

    #[test]
    fn what_another_one_runs_under_is_taken() {
        let records = [record("media", Some("shared"), false, "/deployments/media"), record("web", None, false, "")];
        let error = asked(&records, &Catalog::default()).unwrap_err();
        assert!(error.contains("home/media") && error.contains("write `compose_project: web` for home/web"), "{error}");
        assert!(!error.contains("prune"), "{error}");
        // Two that run under one already: neither goes on.
        let both = [record("media", Some("shared"), false, FOLDER), record("web", Some("shared"), false, FOLDER)];
        assert!(asked(&both, &Catalog::default()).unwrap_err().contains("home/media"));
        let apart = [record("media", Some("media"), false, FOLDER), record("web", Some("shared"), false, FOLDER)];
        assert_eq!(asked(&apart, &Catalog::default()), Ok(()));
    }

    #[test]
    fn an_orphan_keeps_its_project_unless_it_is_the_same_stack_renamed() {
        let error = asked(&[record("old", Some("shared"), true, "/deployments/old")], &Catalog::default()).unwrap_err();
        assert!(error.contains("home/old") && error.contains("`shiparr prune`"), "{error}");
        assert_eq!(asked(&[record("old", Some("shared"), true, FOLDER)], &Catalog::default()), Ok(()));
    }

    #[test]
    fn what_another_ones_project_file_names_is_taken_unless_it_is_held_already() {
        let text = "project: home\nrepositories:\n  media: {url: /r/a, compose_project: shared}\n  web: {url: /r/b}\n";
        let catalog = catalog(text);
        let error = asked(&[], &catalog).unwrap_err();
        assert!(error.contains("is that of home/media"), "{error}");
        assert_eq!(asked(&[record("web", Some("shared"), false, FOLDER)], &catalog), Ok(()));
    }

    #[test]
    fn the_line_to_write_names_another_project() {
        let error = taken("web", &named("Web"), &named("media"), "").message;
        assert!(error.contains("`compose_project: home-web`"), "{error}");
    }
}
