//! GET `/metrics`: what Prometheus scrapes.

use super::Context;
use super::answer::{Answer, Failure};
use super::routes::Call;
use crate::config::Severity;
use crate::metrics::process;
use crate::metrics::text::{CONTENT_TYPE, Kind, Labels, Text};
use crate::store::{Gauges, RepositoryGauges};

/// GET `/metrics`. A database that cannot be read is told, and hides nothing else.
pub fn metrics(call: &Call<'_>) -> Result<Answer, Failure> {
    let context = call.context;
    let mut text = Text::default();
    write_build(&mut text);
    context.metrics.write(&mut text);
    write_health(context, &mut text);
    match context.store.gauges() {
        Ok(gauges) => write_gauges(&gauges, &mut text),
        Err(error) => log::debug!("the metrics lack what is in the database: {error}"),
    }
    process::write(&mut text);
    Ok(Answer::typed(CONTENT_TYPE, text.into_string()))
}

fn write_build(text: &mut Text) {
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("architecture", std::env::consts::ARCH)];
    let help = "Always 1; what runs is in the labels.";
    text.metric("shiparr_build_info", Kind::Gauge, help).labelled(&Labels::of(labels), 1);
}

/// What GET `/api/health` calls its checks.
fn write_health(context: &Context, text: &mut Text) {
    let is_database_up = context.store.ping().is_ok();
    let help = "Whether the database can be read and written.";
    text.metric("shiparr_database_up", Kind::Gauge, help).value(u8::from(is_database_up));
    let help = "Size of the database on the disk, with its write-ahead log.";
    text.metric("shiparr_database_size_bytes", Kind::Gauge, help).value(context.store.size_bytes());
    let help = "Whether Docker answered when it was last asked.";
    text.metric("shiparr_docker_up", Kind::Gauge, help).value(u8::from(context.daemon.docker_problem().is_none()));
    let problems = &context.daemon.catalog().problems;
    let help = "Problems of the project files.";
    let mut metric = text.metric("shiparr_config_problems", Kind::Gauge, help);
    for (word, severity) in [("error", Severity::Error), ("warning", Severity::Warning)] {
        let count = problems.iter().filter(|problem| problem.severity == severity).count();
        metric.labelled(&Labels::of([("severity", word)]), count);
    }
}

fn write_gauges(gauges: &Gauges, text: &mut Text) {
    text.metric("shiparr_queue_depth", Kind::Gauge, "Deployments that are pending.").value(gauges.pending);
    let help = "When the oldest pending deployment was asked for; absent while there is none.";
    let mut metric = text.metric("shiparr_queue_oldest_timestamp_seconds", Kind::Gauge, help);
    if let Some(since) = gauges.pending_since {
        metric.value(seconds(since));
    }
    text.metric("shiparr_deployments_running", Kind::Gauge, "Deployments that are running.").value(gauges.running);
    let mut each = |name, help, value: &dyn Fn(&RepositoryGauges) -> Option<f64>| {
        let mut metric = text.metric(name, Kind::Gauge, help);
        for repository in &gauges.repositories {
            if let Some(value) = value(repository) {
                let labels = [("project", &*repository.name.project), ("repository", &*repository.name.name)];
                metric.labelled(&Labels::of(labels), value);
            }
        }
    };
    each(
        "shiparr_repository_last_success_timestamp_seconds",
        "When the last successful deployment ended; absent before the first.",
        &|one| one.last_success_at.map(seconds),
    );
    each(
        "shiparr_repository_last_deployment_successful",
        "Whether the last deployment succeeded, skipped ones aside; absent before the first.",
        &|one| one.last_succeeded.map(truth),
    );
    each(
        "shiparr_repository_up_to_date",
        "Whether the last observed commit is deployed, or changes nothing of the stack.",
        &|one| Some(truth(one.is_up_to_date)),
    );
    each("shiparr_repository_check_failing", "Whether the last check of the remote failed.", &|one| {
        Some(truth(one.is_check_failing))
    });
    each(
        "shiparr_repository_waiting",
        "Whether something waits for a person to deploy it; only of repositories with `deploy: manual`.",
        &|one| one.waits.map(truth),
    );
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn seconds(at: jiff::Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}
