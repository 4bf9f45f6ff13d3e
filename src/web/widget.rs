//! What dashboards read (spec section 7).

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::answer::{Answer, Failure};
use super::api::json::time;
use super::routes::Call;
use crate::model::{DeploymentRecord, RepositoryRecord, Status};

/// Shown for what is not there.
const ABSENT: &str = "-";

/// GET `/widget/dashy?project=NAME`.
pub fn dashy(call: &Call<'_>) -> Result<Answer, Failure> {
    let zone = TimeZone::system();
    let mut widgets = Vec::new();
    for row in rows(call)? {
        widgets.extend(widgets_of(&row, &zone));
    }
    Ok(Answer::json(&json!({ "widgets": widgets })))
}

/// GET `/widget/dashy/list?project=NAME`: what Dashy's own `custom-list` widget reads. It shows the link's and the
/// value's text, their titles as tooltips, and sorts by the date.
pub fn dashy_list(call: &Call<'_>) -> Result<Answer, Failure> {
    let (page, zone) = (page_url(call), TimeZone::system());
    let items: Vec<Value> = rows(call)?.iter().map(|row| item_of(row, &page, &zone)).collect();
    Ok(Answer::json(&items))
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

/// A repository of the project that is asked for.
struct Row {
    record: RepositoryRecord,
    /// The last deployment that was not skipped, once one has ended.
    outcome: Option<DeploymentRecord>,
}

/// Those of the project that is asked for, in its file's order; by name where no file has it at the moment.
fn rows(call: &Call<'_>) -> Result<Vec<Row>, Failure> {
    let project = call.request.query("project").filter(|name| !name.is_empty());
    let project = project.ok_or_else(|| Failure::bad_request("which project? Add ?project=NAME"))?;
    let mut records = call.context.store.repositories(Some(project))?;
    let catalog = call.context.daemon.catalog();
    if let Some(configured) = catalog.projects.get(project) {
        let place = |record: &RepositoryRecord| configured.repositories.iter().position(|one| one.name == record.name);
        records.retain(|record| place(record).is_some());
        records.sort_by_key(place);
    } else if !call.context.store.projects()?.iter().any(|record| record.name == project) {
        return Err(Failure::not_found(format!("there is no project `{project}`")));
    }
    let complete = |record: RepositoryRecord| {
        let outcome = call.context.store.last_outcome(record.id)?;
        Ok(Row { record, outcome })
    };
    records.into_iter().map(complete).collect()
}

fn widgets_of(row: &Row, zone: &TimeZone) -> [Value; 4] {
    [
        json!({ "type": "text", "value": row.record.name.name, "label": "Repository" }),
        json!({ "type": "text", "value": row.version(), "label": "Version" }),
        json!({ "type": "status", "value": row.status(), "label": "Status" }),
        json!({ "type": "text", "value": row.last_deploy(zone), "label": "Last Deploy" }),
    ]
}

/// Widgets may be open to everybody: what commits and errors say is not in them.
fn item_of(row: &Row, page: &str, zone: &TimeZone) -> Value {
    let name = &row.record.name;
    json!({
        "link": {
            "text": name.name,
            "url": format!("{page}/#/repositories/{}/{}", name.project, name.name),
            "title": name.to_string(),
        },
        "value": {
            "text": format!("{} {}", row.status(), row.version()),
            "title": format!("Last deploy: {}", row.last_deploy(zone)),
        },
        "date": time(row.ended_at().unwrap_or(row.record.created_at)),
    })
}

impl Row {
    /// What the last deployment that was not skipped left (spec section 7).
    fn status(&self) -> &'static str {
        match (self.record.status, self.outcome.as_ref().map(|outcome| outcome.status)) {
            (Some(Status::Pending | Status::Running), _) => "deploying",
            _ if self.record.has_failed_long() => "unknown",
            (_, Some(Status::Success)) => "running",
            (_, Some(Status::Failed)) => "stopped",
            _ => "unknown",
        }
    }

    fn version(&self) -> &str {
        self.record.last_commit_hash.as_ref().map_or(ABSENT, |hash| hash.short())
    }

    fn ended_at(&self) -> Option<Timestamp> {
        self.outcome.as_ref()?.finished_at
    }

    fn last_deploy(&self, zone: &TimeZone) -> String {
        let local = |at: Timestamp| at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
        self.ended_at().map_or(ABSENT.to_owned(), local)
    }
}

/// Where people find the status page, without a slash at its end. A dashboard is on another origin, so a path alone
/// would lead astray: without a public URL it is the host that the dashboard asked.
fn page_url(call: &Call<'_>) -> String {
    match &call.context.settings.public_url {
        Some(url) => url.to_string(),
        None => format!("http://{}", call.request.header("Host").unwrap_or("localhost")),
    }
}
