//! Few numbers and a yes or no, for dashboards and for those who watch: `/api/summary`, and a repository's `/health`.

use serde::Serialize;
use serde_json::json;

use super::find_repository;
use crate::model::{RepositoryRecord, Status};
use crate::web::answer::{Answer, Failure};
use crate::web::routes::Call;

/// How the repositories of this host are. One that is configured is at most one of `ok`, `failed`, `deploying` and
/// `waiting`: none of them before its first deployment.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Summary<'a> {
    host: &'a str,
    version: &'static str,
    /// Those that a project file names.
    repositories: usize,
    ok: usize,
    failed: usize,
    deploying: usize,
    waiting: usize,
    /// Those that none names any more; they count nowhere else.
    orphaned: usize,
    /// Those whose checks have failed for an hour, whatever else they are.
    unreachable: usize,
}

/// GET `/api/summary`.
pub fn summary(call: &Call<'_>) -> Result<Answer, Failure> {
    let records = call.context.store.repositories(None)?;
    Ok(Answer::json(&count(&call.context.settings.hostname, &records)))
}

fn count<'a>(host: &'a str, records: &[RepositoryRecord]) -> Summary<'a> {
    let mut summary = Summary { host, version: env!("CARGO_PKG_VERSION"), ..Summary::default() };
    for record in records {
        if record.orphaned_at.is_some() {
            summary.orphaned += 1;
            continue;
        }
        summary.repositories += 1;
        summary.unreachable += usize::from(record.has_failed_long());
        match record.status {
            Some(Status::Pending | Status::Running) => summary.deploying += 1,
            _ if record.waiting => summary.waiting += 1,
            Some(Status::Success) => summary.ok += 1,
            Some(Status::Failed) => summary.failed += 1,
            Some(Status::Skipped) | None => {}
        }
    }
    summary
}

/// GET `/api/repositories/{id}/health`: 200 while what was last deployed is well and the remote can be asked, else 503
/// with the reason. A deployment that is under way changes nothing of that: whoever watches is not told of each one.
pub fn health(call: &Call<'_>) -> Result<Answer, Failure> {
    let record = find_repository(call)?;
    let outcome = call.context.store.last_outcome(record.id)?;
    let reason = if record.orphaned_at.is_some() {
        Some("it is orphaned: no project file names it any more".to_owned())
    } else if record.has_failed_long() {
        let error = record.last_error.as_deref().unwrap_or("nobody knows why");
        Some(format!("its checks have failed for an hour: {error}"))
    } else {
        match &outcome {
            None => Some("it was never deployed".to_owned()),
            Some(last) if last.status == Status::Success => None,
            Some(last) => {
                let error = last.error.as_deref().unwrap_or("its log says why");
                Some(format!("deployment {} failed: {error}", last.id))
            }
        }
    };
    match reason {
        Some(reason) => Err(Failure::new(503, "unhealthy", format!("{}: {reason}", record.name))),
        None => Ok(Answer::json(&json!({ "status": "ok", "commit_hash": record.last_commit_hash }))),
    }
}
