//! GET `/api/health`: what is well and what is not, looked at no more than once a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Context;
use super::access::Access;
use super::answer::{Answer, Failure};
use super::routes::Call;
use crate::config::{Catalog, Severity};

/// How old an answer may be.
const CHECKS_MAX_AGE: Duration = Duration::from_secs(1);

/// The last look.
#[derive(Default)]
pub struct Health {
    last: Mutex<Option<Look>>,
}

struct Look {
    at: Instant,
    /// The configuration as it was then.
    catalog: Arc<Catalog>,
    checks: Arc<Checks>,
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
        // Another configuration is seen at once: whoever hears that it was loaded asks for its problems.
        let catalog = context.daemon.catalog();
        let is_new = |look: &&Look| look.at.elapsed() < CHECKS_MAX_AGE && Arc::ptr_eq(&look.catalog, &catalog);
        if let Some(look) = last.as_ref().filter(is_new) {
            return Arc::clone(&look.checks);
        }
        let checks = Arc::new(look(context, &catalog));
        *last = Some(Look { at: Instant::now(), catalog, checks: Arc::clone(&checks) });
        checks
    }
}

fn look(context: &Context, catalog: &Catalog) -> Checks {
    let records = context.store.ping().and_then(|()| context.store.repositories(None));
    let database = records.as_ref().err().map(|error| json!({ "message": error.to_string() }));
    let docker = context.daemon.docker_problem().map(|message| json!({ "message": message }));
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
