//! Containers and their logs, which Docker keeps: asked in a thread of their own, for Docker may take its time.

use std::sync::Arc;

use super::deployments::log_answer;
use super::{find_repository, json};
use crate::deploy::containers::{self, StackLabels};
use crate::model::RepositoryRecord;
use crate::web::Context;
use crate::web::answer::{Answer, Failure, Reply};
use crate::web::request::Request;
use crate::web::routes::Call;

/// Lines of each container unless the request says otherwise.
const TAIL_DEFAULT: u32 = 100;
/// Lines of each container at most.
const TAIL_MAX: u32 = 10_000;

/// GET `/api/repositories/{id}/logs`: the logs of its stack as its last `up` made it.
pub fn stack_logs(call: &Call<'_>) -> Result<Reply, Failure> {
    let record = find_repository(call)?;
    let tail = tail(call.request)?;
    if call.request.query_switch("follow")? {
        return Err(Failure::bad_request("`follow` of a stack's logs is not supported by this version of Shiparr"));
    }
    let Some(labels) = labels_of(&record) else { return Ok(Answer::text("").into()) };
    Ok(slow(call.context, move |context| {
        let found = containers::containers_of(&[labels], &context.settings)?;
        Ok(containers::stack_logs(&found, tail, &context.settings).map(Answer::text)?)
    }))
}

/// GET `/api/repositories/{id}/containers`: all of its stack, by name, as its last `up` made it; those that somebody's
/// `docker compose run` left lying about are there too, for they are of the stack as long as they are.
pub fn of_stack(call: &Call<'_>) -> Result<Reply, Failure> {
    let record = find_repository(call)?;
    let Some(labels) = labels_of(&record) else { return Ok(Answer::json(&[(); 0]).into()) };
    Ok(slow(call.context, move |context| {
        let listed = containers::containers_of(&[labels], &context.settings)?;
        let found = containers::conditions(listed, &context.settings)?;
        Ok(Answer::json(&found.iter().map(json::Container::from).collect::<Vec<_>>()))
    }))
}

/// GET `/containers/{id}/logs`: a container of any stack that is deployed from here.
pub fn container_logs(call: &Call<'_>) -> Result<Reply, Failure> {
    let wanted = call.param("id").to_owned();
    let tail = tail(call.request)?;
    let as_json = !call.request.prefers_text();
    let not_found = move |wanted: &str| Failure::not_found(format!("no stack of this host has a container `{wanted}`"));
    if !is_name(&wanted) {
        return Err(not_found(&wanted));
    }
    let stacks: Vec<_> = call.context.store.repositories(None)?.iter().filter_map(labels_of).collect();
    Ok(slow(call.context, move |context| {
        let found = containers::containers_of(&stacks, &context.settings)?;
        let container = containers::find(&found, &wanted).ok_or_else(|| not_found(&wanted))?;
        Ok(log_answer(containers::logs(container, tail, &context.settings)?, as_json))
    }))
}

impl From<containers::DockerError> for Failure {
    fn from(error: containers::DockerError) -> Failure {
        Failure::bad_gateway(error.to_string())
    }
}

fn slow(context: &Arc<Context>, work: impl FnOnce(&Context) -> Result<Answer, Failure> + Send + 'static) -> Reply {
    let context = Arc::clone(context);
    Reply::Slow(Box::new(move || work(&context).unwrap_or_else(Answer::from)))
}

fn tail(request: &Request) -> Result<u32, Failure> {
    let tail = request.query_number("tail", 0, i64::from(TAIL_MAX))?;
    Ok(tail.and_then(|tail| u32::try_from(tail).ok()).unwrap_or(TAIL_DEFAULT))
}

/// None before the first `up`.
fn labels_of(record: &RepositoryRecord) -> Option<StackLabels> {
    Some(StackLabels { project: record.compose_project.clone()?, folder: record.up_folder.clone()? })
}

/// `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}` (spec section 5).
fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.len() <= 128
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().all(is_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_docker_gives_are_asked_for() {
        for name in ["a", "web-1", "0123456789ab", "a_b.c-d", &"x".repeat(128)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-f", "--help", ".a", "_a", "a b", "a/b", "é", "a\n", &"x".repeat(129)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
