//! GET `/api/health`: what is well and what is not, looked at no more than once a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Context;
use super::access::Access;
use super::answer::{Answer, Failure};
use super::routes::Call;
use crate::config::Severity;

/// How old an answer may be.
const CHECKS_MAX_AGE: Duration = Duration::from_secs(1);

/// The last look.
#[derive(Default)]
pub struct Health {
    last: Mutex<Option<(Instant, Arc<Checks>)>>,
}

struct Checks {
    is_database_usable: bool,
    is_well: bool,
    details: Value,
}

/// GET `/api/health`. Whoever did not log in, where that is asked for, sees the status alone.
pub fn health(call: &Call<'_>) -> Result<Answer, Failure> {
    let context = call.context;
    let checks = context.health.checks(context);
    let status = if checks.is_well { "ok" } else { "degraded" };
    let body = if call.caller.access >= Access::View {
        json!({
            "status": status,
            "version": env!("CARGO_PKG_VERSION"),
            "host": context.settings.hostname,
            "uptime_seconds": context.daemon.started_at().elapsed().as_secs(),
            "checks": checks.details,
        })
    } else {
        json!({ "status": status })
    };
    Ok(Answer::json(&body).with_status(if checks.is_database_usable { 200 } else { 503 }))
}

impl Health {
    fn checks(&self, context: &Context) -> Arc<Checks> {
        // A look that was cut short left the one before it.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, checks)) = last.as_ref().filter(|(at, _)| at.elapsed() < CHECKS_MAX_AGE) {
            return Arc::clone(checks);
        }
        let checks = Arc::new(look(context));
        *last = Some((Instant::now(), Arc::clone(&checks)));
        checks
    }
}

fn look(context: &Context) -> Checks {
    let records = context.store.ping().and_then(|()| context.store.repositories(None));
    let database = records.as_ref().err().map(|error| json!({ "message": error.to_string() }));
    let docker = context.daemon.docker_problem().map(|message| json!({ "message": message }));
    let catalog = context.daemon.catalog();
    let errors: Vec<_> = catalog.problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    let config = (!errors.is_empty()).then(|| json!({ "problems": errors }));
    let failing: Vec<Value> = records
        .iter()
        .flatten()
        .filter(|record| record.has_failed_long())
        .map(|record| json!({ "repository": record.name.to_string(), "error": record.last_error }))
        .collect();
    let remotes = (!failing.is_empty()).then(|| json!({ "repositories": failing }));
    let is_database_usable = database.is_none();
    let checks = [("database", database), ("docker", docker), ("config", config), ("remotes", remotes)];
    let is_well = checks.iter().all(|(_, problem)| problem.is_none());
    let details = checks.into_iter().map(|(name, problem)| {
        let mut check = problem.unwrap_or_else(|| json!({}));
        check["status"] = json!(if check.as_object().is_some_and(serde_json::Map::is_empty) { "ok" } else { "failed" });
        (name.to_owned(), check)
    });
    Checks { is_database_usable, is_well, details: details.collect() }
}
