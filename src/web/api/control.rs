//! Routes of the control socket alone: what the command line needs and nobody over TCP gets.

use std::sync::Arc;

use serde::Deserialize;

use crate::model::{RepositoryId, RepositoryName};
use crate::web::answer::{Answer, Failure, Reply};
use crate::web::lending::Lending;
use crate::web::pausing::Pausing;
use crate::web::routes::Call;
use crate::web::stream::Stream;

/// Longer names of people are nobody's.
const WHO_MAX_CHARS: usize = 64;

/// POST `/control/prune`.
pub fn prune(call: &Call<'_>) -> Result<Answer, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        ids: Vec<RepositoryId>,
    }
    let body: Body = parse(call.body)?;
    let forgotten = call.context.store.prune(&body.ids)?;
    call.context.daemon.forgotten(&forgotten);
    let names: Vec<String> = forgotten.iter().map(RepositoryName::to_string).collect();
    Ok(Answer::json(&serde_json::json!({ "forgotten": names })))
}

/// POST `/control/check`.
pub fn check(call: &Call<'_>) -> Result<Answer, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        id: RepositoryId,
    }
    let body: Body = parse(call.body)?;
    let found = call.context.store.repository(body.id)?;
    let record =
        found.ok_or_else(|| Failure::not_found(format!("there is no repository with the id `{}`", body.id)))?;
    if record.orphaned_at.is_some() {
        return Err(Failure::conflict(format!("{} is orphaned: no project file names it any more", record.name)));
    }
    call.context.daemon.check_now(record.id);
    Ok(Answer::empty(204))
}

/// POST `/control/notify-test`.
pub fn notify_test(call: &Call<'_>) -> Result<Reply, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default)]
        repository: Option<String>,
    }
    let body: Body = parse(call.body)?;
    let name = body.repository.map(|text| parse_name(&text)).transpose()?;
    let daemon = Arc::clone(&call.context.daemon);
    Ok(Reply::Slow(Box::new(move |_| match daemon.notify_test(name.as_ref()) {
        Ok(results) => Answer::json(&serde_json::json!({ "results": results })),
        Err(problem) => Failure::not_found(problem).into(),
    })))
}

/// POST `/control/compose`.
pub fn compose(call: &Call<'_>) -> Result<Reply, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        id: RepositoryId,
        who: String,
    }
    let Body { id, who } = parse(call.body)?;
    // It stands in messages to people.
    if who.is_empty() || who.chars().count() > WHO_MAX_CHARS || who.chars().any(char::is_control) {
        return Err(Failure::bad_request("`who` must be somebody's name"));
    }
    let daemon = Arc::clone(&call.context.daemon);
    Ok(Reply::Stream(Box::new(move |watch| {
        let lent = daemon.lend(id, &who, watch.limit()).map_err(Failure::conflict)?;
        Ok(Box::new(Lending(lent)) as Box<dyn Stream>)
    })))
}

/// POST `/control/hold`.
pub fn hold(_: &Call<'_>) -> Result<Reply, Failure> {
    Ok(Reply::Stream(Box::new(|_| Ok(Box::new(Pausing) as Box<dyn Stream>))))
}

/// POST `/control/release`.
pub fn release(call: &Call<'_>) -> Result<Answer, Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        id: RepositoryId,
    }
    let body: Body = parse(call.body)?;
    Ok(Answer::json(&serde_json::json!({ "released": call.context.daemon.release(body.id) })))
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::bad_request(format!("the body is not as expected: {error}")))
}

fn parse_name(text: &str) -> Result<RepositoryName, Failure> {
    let (project, name) = text
        .split_once('/')
        .ok_or_else(|| Failure::bad_request(format!("`{text}` is not of the form project/repository")))?;
    Ok(RepositoryName { project: project.to_owned(), name: name.to_owned() })
}
