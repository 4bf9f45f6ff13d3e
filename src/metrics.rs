//! What this process has counted since it started, and Prometheus' text format.
//!
//! Labels hold what is known in advance only: words of the program's own, never what a client sent. So the number of
//! series is bounded by the code; what is counted per repository is read from the store at a scrape.

pub mod process;
pub mod text;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{Status, Trigger};
use text::{Kind, Labels, Text};

/// The forges whose deliveries are counted.
pub const WEBHOOK_PROVIDERS: [&str; 6] = ["gitea", "forgejo", "gogs", "github", "gitlab", "bitbucket"];

/// Up to where deployments are told apart, in seconds: from a stack that changes nothing to the default time limit and
/// beyond.
const DEPLOYMENT_BOUNDS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0];
/// Up to where requests are told apart, in seconds: from the database's cache to a container engine that hangs.
const REQUEST_BOUNDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// How a deployment can end.
const ENDS: [Status; 3] = [Status::Success, Status::Failed, Status::Skipped];

/// What came of a forge's delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WebhookResult {
    /// It queued a deployment, or joined one.
    Queued,
    /// There was nothing to do: another event, branch or repository, or only `manual` ones.
    Ignored,
    /// It was seen before.
    Duplicate,
    /// Its signature was missing or wrong.
    Unauthorized,
    /// It was not understood.
    Malformed,
    /// There is no secret to check it with.
    NotConfigured,
    /// It could not be accepted: the secret cannot be read, or the database did not do as asked.
    Failed,
}

impl WebhookResult {
    /// Every value.
    pub const ALL: [WebhookResult; 7] = [
        WebhookResult::Queued,
        WebhookResult::Ignored,
        WebhookResult::Duplicate,
        WebhookResult::Unauthorized,
        WebhookResult::Malformed,
        WebhookResult::NotConfigured,
        WebhookResult::Failed,
    ];

    /// The value of the label `result`.
    pub fn as_str(self) -> &'static str {
        match self {
            WebhookResult::Queued => "queued",
            WebhookResult::Ignored => "ignored",
            WebhookResult::Duplicate => "duplicate",
            WebhookResult::Unauthorized => "unauthorized",
            WebhookResult::Malformed => "malformed",
            WebhookResult::NotConfigured => "not_configured",
            WebhookResult::Failed => "failed",
        }
    }
}

/// What is told of a request that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answered {
    /// The route's pattern, in two pieces that follow each other.
    pub route: (&'static str, &'static str),
    /// GET, HEAD and the like; `other` for what no route has.
    pub method: &'static str,
    /// The answer's status code.
    pub status: u16,
}

/// What the process counts. Shared by reference between threads.
#[derive(Debug, Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Clone, Debug)]
struct Counts {
    webhooks: BTreeMap<(&'static str, WebhookResult), u64>,
    /// By trigger and status.
    deployments: BTreeMap<(&'static str, &'static str), u64>,
    /// By status.
    durations: BTreeMap<&'static str, Histogram>,
    requests: BTreeMap<Answered, Histogram>,
    checks: u64,
    check_errors: u64,
    messages_sent: u64,
    messages_failed: u64,
}

impl Default for Counts {
    /// What can be counted is there from the start, at 0: only then is the first one seen to be an increase. Requests
    /// are not, there would be hundreds of histograms that stay empty.
    fn default() -> Counts {
        let results = |provider| WebhookResult::ALL.map(|result| ((provider, result), 0));
        let ends = |trigger: &Trigger| ENDS.map(|status| ((trigger.as_str(), status.as_str()), 0));
        Counts {
            webhooks: WEBHOOK_PROVIDERS.into_iter().flat_map(results).collect(),
            deployments: Trigger::ALL.iter().flat_map(ends).collect(),
            durations: ENDS.map(|status| (status.as_str(), Histogram::new(DEPLOYMENT_BOUNDS))).into(),
            requests: BTreeMap::new(),
            checks: 0,
            check_errors: 0,
            messages_sent: 0,
            messages_failed: 0,
        }
    }
}

impl Metrics {
    /// A forge delivered something. A provider that is none of [`WEBHOOK_PROVIDERS`] is not counted.
    pub fn webhook_received(&self, provider: &str, result: WebhookResult) {
        let mut counts = self.counts();
        if let Some(provider) = WEBHOOK_PROVIDERS.into_iter().find(|known| *known == provider) {
            *counts.webhooks.entry((provider, result)).or_default() += 1;
        }
    }

    /// A deployment ended, after it had been running for `time`; none: it never ran, or nobody knows how long.
    pub fn deployment_ended(&self, trigger: Trigger, status: Status, time: Option<Duration>) {
        let mut counts = self.counts();
        *counts.deployments.entry((trigger.as_str(), status.as_str())).or_default() += 1;
        if let Some((time, histogram)) = time.zip(counts.durations.get_mut(status.as_str())) {
            histogram.observe(time.as_secs_f64());
        }
    }

    /// A request was answered `time` after it had arrived; a stream counts as answered when it begins.
    pub fn request_answered(&self, what: Answered, time: Duration) {
        let mut counts = self.counts();
        let histogram = counts.requests.entry(what).or_insert_with(|| Histogram::new(REQUEST_BOUNDS));
        histogram.observe(time.as_secs_f64());
    }

    /// A remote was asked for its commit.
    pub fn checked(&self, failed: bool) {
        let mut counts = self.counts();
        counts.checks += 1;
        counts.check_errors += u64::from(failed);
    }

    /// A message went to one notification URL, or could not.
    pub fn told(&self, failed: bool) {
        let mut counts = self.counts();
        *(if failed { &mut counts.messages_failed } else { &mut counts.messages_sent }) += 1;
    }

    /// Writes all of it.
    pub fn write(&self, text: &mut Text) {
        // A copy, so that nobody who counts waits until it is written.
        self.counts().clone().write(text);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // A count that a panic cut short is off by one, no more.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn write(&self, text: &mut Text) {
        let help = "Deployments that ended, by what triggered them.";
        let mut metric = text.metric("shiparr_deployments_total", Kind::Counter, help);
        for ((trigger, status), count) in &self.deployments {
            metric.labelled(&Labels::of([("type", *trigger), ("status", *status)]), count);
        }
        let help = "From the start of a deployment to its end, waiting for the stack's health included.";
        let mut metric = text.metric("shiparr_deployment_duration_seconds", Kind::Histogram, help);
        for (status, histogram) in &self.durations {
            metric.histogram(&Labels::of([("status", *status)]), histogram);
        }
        let help = "Webhook deliveries, by forge and what came of them.";
        let mut metric = text.metric("shiparr_webhook_received_total", Kind::Counter, help);
        for ((provider, result), count) in &self.webhooks {
            metric.labelled(&Labels::of([("provider", *provider), ("result", result.as_str())]), count);
        }
        text.metric("shiparr_checks_total", Kind::Counter, "Checks of remotes for a new commit.").value(self.checks);
        text.metric("shiparr_check_errors_total", Kind::Counter, "Checks of remotes that failed.")
            .value(self.check_errors);
        let help = "Messages to notification URLs, by whether they could be sent.";
        let mut metric = text.metric("shiparr_notifications_total", Kind::Counter, help);
        for (result, count) in [("sent", self.messages_sent), ("failed", self.messages_failed)] {
            metric.labelled(&Labels::of([("result", result)]), count);
        }
        let help = "From a request to the head of its answer.";
        let mut metric = text.metric("shiparr_api_request_duration_seconds", Kind::Histogram, help);
        for (answered, histogram) in &self.requests {
            let route = [answered.route.0, answered.route.1].concat();
            let status = answered.status.to_string();
            let labels = [("route", route.as_str()), ("method", answered.method), ("status", &status)];
            metric.histogram(&Labels::of(labels), histogram);
        }
    }
}

/// How many observations were within each of some bounds.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond the last.
    within: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty one; `bounds` grow.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, within: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Adds an observation.
    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.within[bucket] += 1;
        self.sum += value;
    }

    /// Each bound, and how many were within it but beyond the one before; the last has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        bounds.zip(self.within.iter().copied())
    }

    /// The sum of all observations.
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(metrics: &Metrics) -> String {
        let mut text = Text::default();
        metrics.write(&mut text);
        text.into_string()
    }

    #[track_caller]
    fn assert_has(text: &str, line: &str) {
        assert!(text.lines().any(|one| one == line), "no `{line}` in\n{text}");
    }

    #[test]
    fn what_can_be_counted_is_there_from_the_start() {
        let text = written(&Metrics::default());
        for trigger in Trigger::ALL {
            for status in ENDS {
                assert_has(&text, &format!("shiparr_deployments_total{{type=\"{trigger}\",status=\"{status}\"}} 0"));
            }
        }
        for provider in WEBHOOK_PROVIDERS {
            for result in WebhookResult::ALL.map(WebhookResult::as_str) {
                let labels = format!("provider=\"{provider}\",result=\"{result}\"");
                assert_has(&text, &format!("shiparr_webhook_received_total{{{labels}}} 0"));
            }
        }
        for line in [
            "shiparr_checks_total 0",
            "shiparr_check_errors_total 0",
            "shiparr_notifications_total{result=\"sent\"} 0",
            "shiparr_notifications_total{result=\"failed\"} 0",
            "shiparr_deployment_duration_seconds_count{status=\"success\"} 0",
            "# TYPE shiparr_api_request_duration_seconds histogram",
        ] {
            assert_has(&text, line);
        }
    }

    #[test]
    fn what_happens_is_counted() {
        let metrics = Metrics::default();
        metrics.webhook_received("gitea", WebhookResult::Queued);
        metrics.webhook_received("sourceforge", WebhookResult::Queued);
        metrics.deployment_ended(Trigger::Webhook, Status::Success, Some(Duration::from_millis(1500)));
        metrics.deployment_ended(Trigger::Cli, Status::Failed, None);
        metrics.checked(false);
        metrics.checked(true);
        metrics.told(true);
        let answered = Answered { route: ("/api/repositories/{id}", "/deploy"), method: "POST", status: 202 };
        metrics.request_answered(answered, Duration::from_millis(20));
        metrics.request_answered(answered, Duration::from_secs(20));
        let text = written(&metrics);
        let labels = "route=\"/api/repositories/{id}/deploy\",method=\"POST\",status=\"202\"";
        for line in [
            "shiparr_webhook_received_total{provider=\"gitea\",result=\"queued\"} 1",
            "shiparr_deployments_total{type=\"webhook\",status=\"success\"} 1",
            "shiparr_deployments_total{type=\"cli\",status=\"failed\"} 1",
            "shiparr_deployment_duration_seconds_bucket{status=\"success\",le=\"1\"} 0",
            "shiparr_deployment_duration_seconds_bucket{status=\"success\",le=\"2\"} 1",
            "shiparr_deployment_duration_seconds_sum{status=\"success\"} 1.5",
            "shiparr_deployment_duration_seconds_count{status=\"failed\"} 0",
            "shiparr_checks_total 2",
            "shiparr_check_errors_total 1",
            "shiparr_notifications_total{result=\"failed\"} 1",
            &format!("shiparr_api_request_duration_seconds_bucket{{{labels},le=\"0.025\"}} 1"),
            &format!("shiparr_api_request_duration_seconds_bucket{{{labels},le=\"10\"}} 1"),
            &format!("shiparr_api_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            &format!("shiparr_api_request_duration_seconds_count{{{labels}}} 2"),
        ] {
            assert_has(&text, line);
        }
        assert!(!text.contains("sourceforge"));
    }
}
