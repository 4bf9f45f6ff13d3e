//! GET `/api/health`: what is well and what is not, looked at no more than once a second.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
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
    /// Held while somebody looks: a database that another program holds makes that take seconds.
    looking: Mutex<()>,
}

#[derive(Clone)]
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
        // Another configuration is seen at once: whoever hears that it was loaded asks for its problems.
        let catalog = context.daemon.catalog();
        let known = || self.last().filter(|look| Arc::ptr_eq(&look.catalog, &catalog));
        let is_fresh = |look: &Look| look.at.elapsed() < CHECKS_MAX_AGE;
        let _one_looks = match (known(), self.looking.try_lock()) {
            (Some(look), _) if is_fresh(&look) => return look.checks,
            // The threads that answer are few: they do not all wait for the one who looks.
            (Some(look), Err(TryLockError::WouldBlock)) => return look.checks,
            (None, Err(TryLockError::WouldBlock)) => self.looking.lock().unwrap_or_else(PoisonError::into_inner),
            (_, Ok(looking)) => looking,
            (_, Err(TryLockError::Poisoned(cut_short))) => cut_short.into_inner(),
        };
        if let Some(look) = known().filter(is_fresh) {
            return look.checks;
        }
        let checks = Arc::new(look(context, &catalog));
        let look = Look { at: Instant::now(), catalog, checks: Arc::clone(&checks) };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
        checks
    }

    fn last(&self) -> Option<Look> {
        // It is whole whatever a thread that held it did.
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
