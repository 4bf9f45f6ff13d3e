//! What dashboards read (spec section 7).

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::answer::{Answer, Failure};
use super::routes::Call;
use crate::model::{DeploymentRecord, RepositoryRecord, Status};

/// Shown for what is not there.
const ABSENT: &str = "-";

/// GET `/widget/dashy?project=NAME`.
pub fn dashy(call: &Call<'_>) -> Result<Answer, Failure> {
    let project = call.request.query("project").filter(|name| !name.is_empty());
    let project = project.ok_or_else(|| Failure::bad_request("which project? Add ?project=NAME"))?;
    let zone = TimeZone::system();
    let mut widgets = Vec::new();
    for record in repositories(call, project)? {
        let outcome = call.context.store.last_outcome(record.id)?;
        widgets.extend(widgets_of(&record, outcome.as_ref(), &zone));
    }
    Ok(Answer::json(&json!({ "widgets": widgets })))
}

/// OPTIONS `/widget/…`: a browser asks before it sends `Authorization` from another origin.
pub fn preflight(_call: &Call<'_>) -> Result<Answer, Failure> {
    Ok(Answer::empty(204).with_header("Access-Control-Max-Age", "86400"))
}

/// Lets pages of every origin read the answer; credentials have to be given to them by hand.
pub fn allow_origins(answer: Answer) -> Answer {
    answer
        .with_header("Access-Control-Allow-Origin", "*")
        .with_header("Access-Control-Allow-Methods", "GET, OPTIONS")
        .with_header("Access-Control-Allow-Headers", "Authorization")
}

/// Those of a project, in its file's order; by name where no file has it at the moment.
fn repositories(call: &Call<'_>, project: &str) -> Result<Vec<RepositoryRecord>, Failure> {
    let mut records = call.context.store.repositories(Some(project))?;
    let catalog = call.context.daemon.catalog();
    if let Some(configured) = catalog.projects.get(project) {
        let place = |record: &RepositoryRecord| configured.repositories.iter().position(|one| one.name == record.name);
        records.retain(|record| place(record).is_some());
        records.sort_by_key(place);
    } else if !call.context.store.projects()?.iter().any(|record| record.name == project) {
        return Err(Failure::not_found(format!("there is no project `{project}`")));
    }
    Ok(records)
}

fn widgets_of(record: &RepositoryRecord, outcome: Option<&DeploymentRecord>, zone: &TimeZone) -> [Value; 4] {
    let status = match (record.status, outcome.map(|outcome| outcome.status)) {
        (Some(Status::Pending | Status::Running), _) => "deploying",
        _ if record.has_failed_long() => "unknown",
        (_, Some(Status::Success)) => "running",
        (_, Some(Status::Failed)) => "stopped",
        _ => "unknown",
    };
    let version = record.last_commit_hash.as_ref().map_or(ABSENT, |hash| hash.short());
    let ended = outcome.and_then(|outcome| outcome.finished_at);
    let ended = ended.map(|at| at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string());
    [
        json!({ "type": "text", "value": record.name.name, "label": "Repository" }),
        json!({ "type": "text", "value": version, "label": "Version" }),
        json!({ "type": "status", "value": status, "label": "Status" }),
        json!({ "type": "text", "value": ended.as_deref().unwrap_or(ABSENT), "label": "Last Deploy" }),
    ]
}
