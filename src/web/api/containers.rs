//! Containers and their logs, which Docker keeps: asked in a thread of their own, for Docker may take its time.

use std::sync::Arc;

use jiff::Timestamp;

use super::deployments::log_answer;
use super::{find_repository, json};
use crate::command::Limit;
use crate::deploy::containers::{self, Followed, StackLabels, Wanted};
use crate::model::RepositoryRecord;
use crate::web::Context;
use crate::web::answer::{Answer, Failure, Reply};
use crate::web::following::Following;
use crate::web::request::Request;
use crate::web::routes::Call;

/// Lines of each container unless the request says otherwise.
const TAIL_DEFAULT: u32 = 100;
/// Lines of each container at most, which is what `all` means.
const TAIL_MAX: u32 = 10_000;

/// GET `/api/repositories/{id}/logs`: the logs of its stack as its last `up` made it.
pub fn stack_logs(call: &Call<'_>) -> Result<Reply, Failure> {
    let record = find_repository(call)?;
    let wanted = wanted(call.request)?;
    let follow = call.request.query_switch("follow")?;
    let Some(labels) = labels_of(&record) else { return Ok(Answer::text("").into()) };
    if follow {
        return Ok(Following::open(call.context, wanted, move |context, limit| {
            let began = Timestamp::now();
            let containers = containers::containers_of(std::slice::from_ref(&labels), &context.settings, limit)?;
            Ok(Followed::Stack { labels, containers, began })
        }));
    }
    Ok(slow(call.context, move |context, limit| {
        let found = containers::containers_of(&[labels], &context.settings, limit)?;
        Ok(containers::stack_logs(&found, &wanted, &context.settings, limit).map(Answer::text)?)
    }))
}

/// GET `/api/repositories/{id}/containers`: all of its stack, by name, as its last `up` made it; those that somebody's
/// `docker compose run` left lying about are there too, for they are of the stack as long as they are.
pub fn of_stack(call: &Call<'_>) -> Result<Reply, Failure> {
    let record = find_repository(call)?;
    let Some(labels) = labels_of(&record) else { return Ok(Answer::json(&[(); 0]).into()) };
    Ok(slow(call.context, move |context, limit| {
        let listed = containers::containers_of(&[labels], &context.settings, limit)?;
        let found = containers::conditions(listed, &context.settings, limit)?;
        Ok(Answer::json(&found.iter().map(json::Container::from).collect::<Vec<_>>()))
    }))
}

/// GET `/containers/{id}/logs`: a container of any stack that is deployed from here.
pub fn container_logs(call: &Call<'_>) -> Result<Reply, Failure> {
    let name = call.param("id").to_owned();
    let wanted = wanted(call.request)?;
    let follow = call.request.query_switch("follow")?;
    let as_json = !call.request.prefers_text();
    if !is_name(&name) {
        return Err(no_container(&name));
    }
    let stacks: Vec<_> = call.context.store.repositories(None)?.iter().filter_map(labels_of).collect();
    let find = move |context: &Context, limit: &Limit| {
        let mut found = containers::containers_of(&stacks, &context.settings, limit)?;
        let index = containers::find(&found, &name).ok_or_else(|| no_container(&name))?;
        Ok(found.swap_remove(index))
    };
    if follow {
        return Ok(Following::open(call.context, wanted, move |context, limit| {
            find(context, limit).map(Followed::Container)
        }));
    }
    Ok(slow(call.context, move |context, limit| {
        let text = containers::logs(&find(context, limit)?, &wanted, &context.settings, limit)?;
        Ok(log_answer(text, as_json))
    }))
}

impl From<containers::DockerError> for Failure {
    fn from(error: containers::DockerError) -> Failure {
        Failure::bad_gateway(error.to_string())
    }
}

fn slow(
    context: &Arc<Context>,
    work: impl FnOnce(&Context, &Limit) -> Result<Answer, Failure> + Send + 'static,
) -> Reply {
    let context = Arc::clone(context);
    Reply::Slow(Box::new(move |limit| work(&context, limit).unwrap_or_else(Answer::from)))
}

fn no_container(name: &str) -> Failure {
    Failure::not_found(format!("no stack of this host has a container `{name}`"))
}

fn wanted(request: &Request) -> Result<Wanted, Failure> {
    let tail = match request.query("tail") {
        Some("all") => Some(i64::from(TAIL_MAX)),
        _ => request.query_number("tail", 0, i64::from(TAIL_MAX))?,
    };
    let tail = tail.and_then(|tail| u32::try_from(tail).ok()).unwrap_or(TAIL_DEFAULT);
    let since = request.query("since").filter(|since| !since.is_empty());
    if since.is_some_and(|since| !is_moment(since)) {
        return Err(Failure::bad_request(
            "`since` must be a time (2026-01-15T14:30:00Z) or how long ago (30s, 10m, 2h)",
        ));
    }
    Ok(Wanted { tail, since: since.map(str::to_owned) })
}

/// What Docker and we understand in the same way.
fn is_moment(text: &str) -> bool {
    let is_ago = text
        .strip_suffix(['s', 'm', 'h'])
        .is_some_and(|number| (1..=6).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit()));
    is_ago || text.parse::<Timestamp>().is_ok()
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
    fn moments_are_times_and_spans() {
        for text in ["30s", "10m", "2h", "2026-01-15T14:30:00Z", "2026-01-15T14:30:00.5+01:00"] {
            assert!(is_moment(text), "{text}");
        }
        for text in ["", "s", "10", "-1h", "1d", "1h30m", "--help", "yesterday", "2026-01-15", "9999999s"] {
            assert!(!is_moment(text), "{text}");
        }
    }

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
