//! No two repositories end in one compose project: the `up --remove-orphans` of the second would remove the containers
//! of the first.

use std::path::Path;

use super::Situation;
use super::folders::Folder;
use crate::config::project::compose_project_name;
use crate::deploy::StepError;
use crate::model::{RepositoryName, RepositoryRecord};

/// Refuses a compose project that another repository has: the one that its last `up` ran under, or else the one that
/// its `compose_project` names, unless this repository holds it already. An orphan has its project too, for its
/// containers may still run; only one whose `up` ran in the same folder is this very stack under an earlier name.
///
/// # Errors
/// It is taken: by whom, and the line to write.
pub fn refuse_taken(situation: &Situation<'_>, here: &Folder) -> Result<(), StepError> {
    let (project, own) = (&situation.plan.project, &situation.own.name);
    let holds = |record: &&RepositoryRecord| record.compose_project.as_ref() == Some(project);
    let is_earlier_name = |record: &RepositoryRecord| {
        record.orphaned_at.is_some() && record.up_folder.as_deref().is_some_and(|folder| here.is(Path::new(folder)))
    };
    let holders = || situation.records.iter().filter(holds);
    if let Some(other) = holders().find(|record| record.name != *own && !is_earlier_name(record)) {
        let way_out = match other.orphaned_at {
            Some(_) => ", or let `shiparr prune` forget that one: no project file names it any more",
            None => "",
        };
        return Err(taken(situation, &other.name, way_out));
    }
    if holders().any(|record| record.name == *own) {
        return Ok(());
    }
    match situation
        .catalog
        .repositories()
        .find(|other| other.name != *own && other.compose_project.as_ref() == Some(project))
    {
        Some(other) => Err(taken(situation, &other.name, "")),
        None => Ok(()),
    }
}

/// A compose project that nobody has, to be written for this repository: named after its key, as it would be anyway.
pub fn free_project(situation: &Situation<'_>) -> String {
    let RepositoryName { project, name } = &situation.own.name;
    let both = format!("{project}-{name}");
    let is_taken = |wanted: &str| {
        let wanted = Some(wanted);
        wanted == Some(situation.plan.project.as_str())
            || situation.survey.iter().any(|resident| resident.project.as_deref() == wanted)
            || situation.records.iter().any(|record| record.compose_project.as_deref() == wanted)
            || situation.catalog.repositories().any(|repository| repository.compose_project.as_deref() == wanted)
    };
    let numbered = (2..).map(|number| format!("{both}-{number}"));
    [name.clone(), both.clone()]
        .into_iter()
        .chain(numbered)
        .map(|name| compose_project_name(&name))
        .find(|name| !name.is_empty() && !is_taken(name))
        .unwrap_or_default()
}

fn taken(situation: &Situation<'_>, other: &RepositoryName, way_out: &str) -> StepError {
    let (project, own) = (&situation.plan.project, &situation.own.name);
    StepError::for_good(format!(
        "compose project `{project}` is that of {other} too, whose containers would be removed; write `compose_project: {}` for \
         {own}{way_out}",
        free_project(situation)
    ))
}
