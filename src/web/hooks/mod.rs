//! `POST /webhook/{provider}` (spec section 6): a forge says that somebody pushed.
//!
//! ```text
//! body ─▶ signature ─▶ event ─▶ push ─▶ repositories that follow it ─▶ rows and delivery id, one transaction ─▶ 202
//! ```
//!
//! The signature is the authentication: a signed delivery is subject to no password, and to none of the rules against
//! pages of other sites, for no page can sign and a forge calls by a name of its own. What is not signed is told so,
//! whatever name it calls by, and learns nothing else.

mod bitbucket;
mod gitea;
mod github;
mod gitlab;
mod provider;
mod push;
mod signature;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::provider::Provider;
use self::push::{Matches, Push, shown, shown_within};
use super::answer::{Answer, Failure};
use super::routes::Call;
use crate::config::Repository;
use crate::metrics::{WEBHOOK_PROVIDERS, WebhookResult};
use crate::model::{DeploymentId, RepositoryId};
use crate::store::{Delivered, Delivery, How};

/// Lines of the log within [`REFUSALS_WINDOW`] about deliveries of people without the secret.
const REFUSALS_LOGGED: u32 = 10;
/// What is wrong with a payload is told with at most this many characters: the error may quote it.
const PROBLEM_CHARACTERS_SHOWN: usize = 300;
/// See [`REFUSALS_LOGGED`].
const REFUSALS_WINDOW: Duration = Duration::from_secs(60);

/// What came of a delivery, and its answer.
struct Done {
    result: WebhookResult,
    answer: Result<Answer, Failure>,
    /// What it was about, once it is known who sent it.
    about: String,
}

/// Bounds the lines of the log that people without the secret can cause.
#[derive(Default)]
pub struct Refusals {
    /// When the window began, and what was to be logged in it.
    window: Mutex<Option<(Instant, u32)>>,
}

impl Refusals {
    fn warn(&self, line: &str, now: Instant) {
        match self.count(now) {
            count if count < REFUSALS_LOGGED => log::warn!("{line}"),
            REFUSALS_LOGGED => log::warn!("{line}; more of these within a minute are not logged"),
            _ => {}
        }
    }

    /// How many there were before in the window.
    fn count(&self, now: Instant) -> u32 {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = |began: &Instant| now.saturating_duration_since(*began) < REFUSALS_WINDOW;
        let (began, count) = window.filter(|(began, _)| is_open(began)).unwrap_or((now, 0));
        *window = Some((began, count.saturating_add(1)));
        count
    }
}

/// POST `/webhook/{provider}`.
pub fn webhook(call: &Call<'_>) -> Result<Answer, Failure> {
    let Some(provider) = provider::named(call.param("provider")) else {
        let message = format!("there are webhooks of {}", WEBHOOK_PROVIDERS.join(", "));
        return Err(Failure::not_found(message));
    };
    let done = receive(call, provider);
    // Every delivery to a known provider comes to its end here, once.
    call.context.metrics.webhook_received(provider.name, done.result);
    let level = if done.result == WebhookResult::Queued { log::Level::Info } else { log::Level::Debug };
    log::log!(level, "webhook of {}: {}: {}", provider.name, done.result.as_str(), done.about);
    done.answer
}

fn receive(call: &Call<'_>, provider: &Provider) -> Done {
    let sender = call.request.client.map_or("the control socket".to_owned(), |address| address.to_string());
    let refused = |result, failure| Done { result, answer: Err(failure), about: format!("from {sender}") };
    let warn = |line: String| call.context.refused_webhooks.warn(&line, Instant::now());
    let secret = match call.context.settings.webhook_secret(provider.name) {
        Ok(Some(secret)) => secret,
        Ok(None) => {
            let way_out = "set Shiparr_WEBHOOK_SECRET";
            let message = format!("there is no secret for the webhooks of {}: {way_out}", provider.name);
            return refused(WebhookResult::NotConfigured, Failure::not_found(message));
        }
        Err(problem) => {
            warn(format!("webhooks of {} are not answered: {problem}", provider.name));
            let failure = Failure::unavailable("the secret of the webhooks cannot be read: see the log");
            return refused(WebhookResult::Failed, failure);
        }
    };
    let Some(payload) = signature::signed_payload(provider.signature, &secret, call.request, call.body) else {
        warn(format!("a webhook of {} from {sender} was refused: its signature is missing or wrong", provider.name));
        let message = "the signature is missing or wrong: the secret must be the same here and there";
        return refused(WebhookResult::Unauthorized, Failure::new(401, "unauthorized", message));
    };
    let Some(event) = call.request.header(provider.event_header) else {
        let message = format!("the header {} is missing", provider.event_header);
        return bad_request(message);
    };
    match (provider.read)(event, &payload) {
        Ok(Some(push)) => take(call, provider, &push).unwrap_or_else(|failure| Done {
            result: WebhookResult::Failed,
            answer: Err(failure),
            about: push.describe(),
        }),
        Ok(None) => nothing_to_do(format!("the event `{}` is not a push", shown(event))),
        Err(error) => {
            let problem = shown_within(&error.to_string(), PROBLEM_CHARACTERS_SHOWN);
            bad_request(format!("the payload is no `{}` of {}: {problem}", shown(event), provider.name))
        }
    }
}

/// Queues what follows the pushed branches.
fn take(call: &Call<'_>, provider: &Provider, push: &Push) -> Result<Done, Failure> {
    let daemon = &call.context.daemon;
    let catalog = daemon.catalog();
    let matches = push.matches(catalog.repositories());
    let manual = ids(call, &matches.manual)?;
    let delivered = deliver(call, provider, push, &matches)?;
    if delivered.iter().any(|delivered| delivered.how != How::SeenBefore) {
        daemon.wake_worker();
    }
    // What is pending may have been looked at already, and found to change nothing; a check sees what is new.
    let joined = delivered.iter().filter(|delivered| delivered.how == How::Joined);
    let checked = joined.map(|delivered| delivered.repository_id).chain(manual);
    checked.for_each(|id| daemon.check_now(id));
    Ok(answer(push, &matches, &delivered))
}

fn deliver(
    call: &Call<'_>,
    provider: &Provider,
    push: &Push,
    matches: &Matches<'_>,
) -> Result<Vec<Delivered>, Failure> {
    let repositories = ids(call, &matches.automatic)?;
    if repositories.is_empty() {
        return Ok(Vec::new());
    }
    let pusher = push.pusher.as_deref().map(shown).filter(|pusher| !pusher.is_empty());
    let id = provider.delivery_headers.iter().find_map(|header| call.request.header(header));
    let delivery = Delivery { provider: provider.name, id, actor: pusher.as_deref() };
    Ok(call.context.store.deliver(&delivery, &repositories, Timestamp::now())?)
}

/// Their rows in the database; what has none yet is found by its first check.
fn ids(call: &Call<'_>, repositories: &[&Repository]) -> Result<Vec<RepositoryId>, Failure> {
    let mut ids = Vec::with_capacity(repositories.len());
    for repository in repositories {
        let record = call.context.store.repository_named(&repository.name)?;
        ids.extend(record.filter(|record| record.orphaned_at.is_none()).map(|record| record.id));
    }
    Ok(ids)
}

fn answer(push: &Push, matches: &Matches<'_>, delivered: &[Delivered]) -> Done {
    let names = |repositories: &[&Repository]| {
        repositories.iter().map(|repository| repository.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    let what = push.describe();
    let waits = (!matches.manual.is_empty())
        .then(|| format!("{} only shows it as waiting (`deploy: manual`)", names(&matches.manual)));
    if delivered.is_empty() {
        let why = match waits {
            Some(waits) => waits,
            None if push.updates.iter().all(|update| update.is_deletion) => "nothing is left to deploy".to_owned(),
            None if matches.knows_remote => "that branch is followed by no repository here".to_owned(),
            None => "no repository here has that URL".to_owned(),
        };
        return nothing_to_do(format!("{what}: {why}"));
    }
    let is_new = delivered.iter().any(|delivered| delivered.how != How::SeenBefore);
    let (result, word) = if is_new {
        (WebhookResult::Queued, "queued")
    } else {
        (WebhookResult::Duplicate, "this delivery was here before:")
    };
    let mut message = format!("{what}: {word} {}", names(&matches.automatic));
    message.extend(waits.map(|waits| format!("; {waits}")));
    let ids: Vec<DeploymentId> = delivered.iter().filter_map(|delivered| delivered.deployment_id).collect();
    let answer = Answer::json(&serde_json::json!({ "deployment_ids": ids, "message": message })).with_status(202);
    Done { result, answer: Ok(answer), about: format!("{message} (deployments {ids:?})") }
}

fn nothing_to_do(why: String) -> Done {
    let ids: [DeploymentId; 0] = [];
    let message = format!("nothing to do: {why}");
    let answer = Answer::json(&serde_json::json!({ "deployment_ids": ids, "message": message }));
    Done { result: WebhookResult::Ignored, answer: Ok(answer), about: message }
}

fn bad_request(problem: String) -> Done {
    Done { result: WebhookResult::Malformed, answer: Err(Failure::bad_request(&problem)), about: problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_lines_of_strangers_are_bounded_and_begin_anew() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        for before in 0..2 * REFUSALS_LOGGED {
            assert_eq!(refusals.count(now), before);
        }
        assert_eq!(refusals.count(now + REFUSALS_WINDOW / 2), 2 * REFUSALS_LOGGED);
        assert_eq!(refusals.count(now + REFUSALS_WINDOW), 0);
    }
}
