//! Deployments: lists, one of them, and its log.

use super::{find_repository, json};
use crate::model::{DeploymentId, DeploymentRecord, Status};
use crate::store::DeploymentFilter;
use crate::web::answer::{Answer, Failure, Reply};
use crate::web::routes::Call;
use crate::web::stream::{LogStream, short_log};

/// Deployments of a list unless the request says otherwise.
const LIMIT_DEFAULT: u32 = 50;
/// Deployments of a list at most.
const LIMIT_MAX: u32 = 500;

/// GET `/api/deployments`: a page of those of all repositories, newest first.
pub fn deployments(call: &Call<'_>) -> Result<Answer, Failure> {
    let status = match call.request.query("status") {
        None => None,
        Some(word) => Some(word.parse::<Status>().map_err(|error| Failure::bad_request(format!("`status`: {error}")))?),
    };
    let project = call.request.query("project").map(str::to_owned);
    page(call, DeploymentFilter { status, project, ..DeploymentFilter::default() })
}

/// GET `/api/repositories/{id}/deployments`: a page of those of one repository, newest first.
pub fn of_repository(call: &Call<'_>) -> Result<Answer, Failure> {
    let id = find_repository(call)?.id;
    page(call, DeploymentFilter { repository_id: Some(id), ..DeploymentFilter::default() })
}

/// GET `/api/deployments/{id}`: one, without its log.
pub fn deployment(call: &Call<'_>) -> Result<Answer, Failure> {
    Ok(Answer::json(&json::Deployment::from(&find(call)?)))
}

/// GET `/api/deployments/{id}/logs`: its log in JSON or as text, or as it comes with `follow=1`.
pub fn logs(call: &Call<'_>) -> Result<Reply, Failure> {
    let deployment = find(call)?.id;
    let follow = call.request.query_switch("follow")?;
    let as_json = !follow && !call.request.prefers_text();
    if !follow {
        if let Some(text) = short_log(call.context, deployment)? {
            return Ok(log_answer(text, as_json).into());
        }
    }
    Ok(Reply::Stream(Box::new(move |_| Ok(Box::new(LogStream { deployment, follow, as_json })))))
}

/// A log as text, or as `{"logs": "…"}`.
pub fn log_answer(text: String, as_json: bool) -> Answer {
    if as_json { Answer::json(&serde_json::json!({ "logs": text })) } else { Answer::text(text) }
}

/// The deployment that a path names.
pub fn find(call: &Call<'_>) -> Result<DeploymentRecord, Failure> {
    let id = call.param("id");
    let found = match id.parse::<DeploymentId>() {
        Ok(id) => call.context.store.deployment(id)?,
        Err(_) => None,
    };
    found.ok_or_else(|| Failure::not_found(format!("there is no deployment with the id `{id}`")))
}

fn page(call: &Call<'_>, filter: DeploymentFilter) -> Result<Answer, Failure> {
    let limit = call.request.query_number("limit", 1, i64::from(LIMIT_MAX))?;
    let limit = limit.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(LIMIT_DEFAULT);
    let before = call.request.query_number("before", 1, i64::MAX)?;
    // One more than asked for tells whether there is a next page.
    let mut records =
        call.context.store.deployments(&DeploymentFilter { before, limit: limit + 1, ..filter.clone() })?;
    let has_more = records.len() > limit as usize;
    records.truncate(limit as usize);
    let answer = Answer::json(&records.iter().map(json::Deployment::from).collect::<Vec<_>>());
    let Some(last) = records.last().filter(|_| has_more) else { return Ok(answer) };
    let mut query = format!("limit={limit}&before={}", last.id);
    if let Some(status) = filter.status {
        query += &format!("&status={status}");
    }
    if let Some(project) = &filter.project {
        query += &format!("&project={}", encode(project));
    }
    Ok(answer.with_header("Link", format!("<{}?{query}>; rel=\"next\"", call.link(&path_of(call)))))
}

/// The path of the request, encoded anew: it may hold what would end a header's value.
fn path_of(call: &Call<'_>) -> String {
    call.request.segments.iter().map(|segment| format!("/{}", encode(segment))).collect()
}

/// Percent-encodes what is not unreserved (RFC 3986).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_link_is_encoded() {
        assert_eq!(encode("a b>\"é"), "a%20b%3E%22%C3%A9");
        assert_eq!(encode("home_lab-1.x~"), "home_lab-1.x~");
    }
}
