//! `healthcheck_url`: asked once a second until it answers as expected.

use std::time::Duration;

use super::{Log, StepError};
use crate::command::Limit;
use crate::config::project::Probe;
use crate::http::{self, Proxies};
use crate::model::LogLevel;

/// For one request; a service that hangs is asked again.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Between two requests.
const PAUSE: Duration = Duration::from_secs(1);
/// More than that of a health page is not read.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Waits until `url` answers with the expected status, at most the probe's own timeout.
///
/// # Errors
/// It did not: what it answered last, in one line. Without the URL, which may carry a secret.
pub fn wait(probe: &Probe, url: &str, proxies: &Proxies, limit: &Limit, log: &mut dyn Log) -> Result<(), StepError> {
    let own_limit = limit.at_most(probe.timeout);
    let mut told = String::new();
    loop {
        let request = http::Request {
            url: url.to_owned(),
            max_body_bytes: MAX_BODY_BYTES,
            proxies: proxies.clone(),
            ..http::Request::default()
        };
        let answer = match http::send(&request, &own_limit.at_most(REQUEST_LIMIT)) {
            Ok(response) if response.status == probe.expected_status => return Ok(()),
            Ok(response) => format!("it answers {} in place of {}", response.status, probe.expected_status),
            Err(error) => error.to_string(),
        };
        if answer != told && !own_limit.is_over() {
            log.line(LogLevel::Info, &format!("healthcheck_url: {answer}"));
            told.clone_from(&answer);
        }
        if !own_limit.sleep(PAUSE) {
            let last = if told.is_empty() { answer } else { told };
            return Err(StepError::for_good(format!(
                "healthcheck_url was not well within {} s: {last}",
                probe.timeout.as_secs()
            )));
        }
    }
}
