//! The routes of the API: each reads the store, or writes a pending row and wakes the worker.

pub mod cancel;
pub mod containers;
pub mod control;
pub mod deployments;
pub mod json;
pub mod repositories;
pub mod summary;

use super::Context;
use super::answer::{Answer, Failure};
use super::routes::Call;
use crate::model::{ProjectRecord, RepositoryName, RepositoryRecord};

/// GET `/api/projects`: all of them by name, each with the number of its repositories.
pub fn projects(call: &Call<'_>) -> Result<Answer, Failure> {
    let records = call.context.store.projects()?;
    let projects: Vec<_> = records.iter().map(|record| json::Project::new(record, record.repositories)).collect();
    Ok(Answer::json(&projects))
}

/// GET `/api/projects/{project}`: one, with its repositories.
pub fn project(call: &Call<'_>) -> Result<Answer, Failure> {
    let record = find_project(call.context, call.param("project"))?;
    let repositories = call.context.store.repositories(Some(&record.name))?;
    let repositories: Vec<_> = repositories.iter().map(json::Repository::from).collect();
    Ok(Answer::json(&json::Project::new(&record, repositories)))
}

/// GET `/api/projects/{project}/repositories`: those of one project, by name.
pub fn repositories_of_project(call: &Call<'_>) -> Result<Answer, Failure> {
    let record = find_project(call.context, call.param("project"))?;
    list(&call.context.store.repositories(Some(&record.name))?)
}

/// GET `/api/repositories`: those of all projects, by name.
pub fn all_repositories(call: &Call<'_>) -> Result<Answer, Failure> {
    list(&call.context.store.repositories(None)?)
}

fn list(records: &[RepositoryRecord]) -> Result<Answer, Failure> {
    Ok(Answer::json(&records.iter().map(json::Repository::from).collect::<Vec<_>>()))
}

fn find_project(context: &Context, name: &str) -> Result<ProjectRecord, Failure> {
    let found = context.store.projects()?.into_iter().find(|record| record.name == name);
    found.ok_or_else(|| Failure::not_found(format!("there is no project `{name}`")))
}

/// The repository that a path names, by its id or by project and name.
fn find_repository(call: &Call<'_>) -> Result<RepositoryRecord, Failure> {
    let id = call.param("id");
    if !id.is_empty() {
        let found = id.parse().ok().map(|id| call.context.store.repository(id)).transpose()?.flatten();
        return found.ok_or_else(|| Failure::not_found(format!("there is no repository with the id `{id}`")));
    }
    let name = RepositoryName { project: call.param("project").to_owned(), name: call.param("name").to_owned() };
    let found = call.context.store.repository_named(&name)?;
    found.ok_or_else(|| Failure::not_found(format!("there is no repository `{name}`")))
}
