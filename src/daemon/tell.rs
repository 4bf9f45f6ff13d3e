//! The teller's thread: finished deployments that nobody was told of are its outbox; checks that fail for long and a
//! Docker that is away are told too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::shared::Shared;
use super::threads::Threads;
use crate::command::Limit;
use crate::config::{Repository, Template};
use crate::model::{DeploymentRecord, RepositoryName, RepositoryRecord};
use crate::notify::{Event, Message, Notifier, distinct, label};
use crate::pulse;
use crate::secrets::Secret;
use crate::store::{MessageKind, StoreError, Untold};
use crate::web::NotifyResult;

/// How often the teller looks without being woken.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// All notifiers of one message together, with their tries.
const MESSAGE_LIMIT: Duration = Duration::from_secs(300);
/// One URL of a test message: somebody waits for it.
const TEST_LIMIT: Duration = Duration::from_secs(40);
/// All URLs of a test together; less than the command line waits for the answer.
const TESTS_LIMIT: Duration = Duration::from_secs(50);
/// Docker being away for this long is told.
const DOCKER_AWAY_FOR: Duration = Duration::from_secs(600);

/// Tells people.
pub struct Teller {
    shared: Arc<Shared>,
    threads: Threads,
    notifier: Notifier,
    docker_was_told: AtomicBool,
}

impl Teller {
    /// A teller for the daemon.
    pub fn new(shared: Arc<Shared>, threads: Threads) -> Teller {
        let notifier = notifier(&shared);
        Teller { shared, threads, notifier, docker_was_told: AtomicBool::new(false) }
    }

    /// Tells until the daemon stops.
    pub fn run(&self) {
        while !self.threads.are_stopping() {
            pulse::next_within(LOOK_EVERY);
            self.tell_all();
            pulse::next_within(LOOK_EVERY);
            self.shared.wait_for_news(LOOK_EVERY);
        }
    }

    /// Tells everything that is due now.
    pub fn tell_all(&self) {
        let told = self.tell_outcomes().and_then(|()| self.tell_long_failing_checks());
        if let Err(error) = told {
            log::error!("messages wait, the database does not answer: {error}");
        }
        self.tell_docker();
    }

    fn tell_outcomes(&self) -> Result<(), StoreError> {
        let store = &self.shared.host.store;
        loop {
            let catalog = self.shared.catalog();
            let Some(untold) = store.next_untold(&catalog.untouched)? else { return Ok(()) };
            let urls = match catalog.repository(&untold.deployment.repository) {
                Some(repository) => self.urls(&untold.deployment.repository, &targets(repository, untold.kind)),
                None => Vec::new(),
            };
            let as_failure = untold.kind == MessageKind::Failure && !urls.is_empty();
            let id = untold.deployment.id;
            self.send_all(&urls, &self.outcome_message(untold));
            store.told(id, as_failure, Timestamp::now())?;
        }
    }

    fn tell_long_failing_checks(&self) -> Result<(), StoreError> {
        let catalog = self.shared.catalog();
        for record in self.shared.host.store.take_long_failing_checks(&catalog.untouched)? {
            let Some(repository) = catalog.repository(&record.name) else { continue };
            let urls = self.urls(&record.name, &targets(repository, MessageKind::Failure));
            self.send_all(&urls, &self.checks_message(record));
        }
        Ok(())
    }

    fn tell_docker(&self) {
        let docker = self.shared.docker();
        let Some(problem) = docker.problem else {
            self.docker_was_told.store(false, Ordering::Relaxed);
            return;
        };
        let long = docker.since.is_some_and(|since| since.elapsed() >= DOCKER_AWAY_FOR);
        let waits = self.shared.host.store.pending().is_ok_and(|pending| !pending.is_empty());
        if !long || !waits || self.docker_was_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let catalog = self.shared.catalog();
        let urls = catalog
            .repositories()
            .flat_map(|repository| self.urls(&repository.name, &targets(repository, MessageKind::Failure)));
        self.send_all(&distinct(urls), &Message { error: Some(problem), ..self.message(None, Event::DockerAway) });
    }

    /// The URLs behind templates, each one once; one that cannot be had is logged.
    fn urls(&self, name: &RepositoryName, templates: &[&Template]) -> Vec<Secret> {
        let environment = &self.shared.host.settings.environment;
        let resolved = templates.iter().filter_map(|template| {
            let unusable = |error: &String| log::error!("{name}: a notification URL cannot be used: {error}");
            template.resolve(environment).inspect_err(unusable).ok()
        });
        distinct(resolved)
    }

    fn send_all(&self, urls: &[Secret], message: &Message) {
        let limit = Limit::after(MESSAGE_LIMIT);
        pulse::next_within(MESSAGE_LIMIT);
        for url in urls {
            let sent = self.notifier.send(url, message, &limit);
            self.shared.metrics.told(sent.is_err());
            if let Err(error) = sent {
                let about = message.repository.as_ref().map_or(message.host.clone(), ToString::to_string);
                log::error!("{about}: a message was not sent: {error}");
            }
        }
    }

    fn outcome_message(&self, untold: Untold) -> Message {
        let event = match untold.kind {
            MessageKind::Success => Event::Success,
            MessageKind::WellAgain => Event::WellAgain,
            MessageKind::Failure => Event::Failure,
        };
        let DeploymentRecord { repository, commit, actor, started_at, finished_at, error, .. } = untold.deployment;
        let duration =
            started_at.zip(finished_at).and_then(|(start, end)| Duration::try_from(end.duration_since(start)).ok());
        let last_lines = if event == Event::Failure { untold.last_lines } else { Vec::new() };
        Message { commit, actor, duration, error, last_lines, ..self.message(Some(repository), event) }
    }

    fn checks_message(&self, record: RepositoryRecord) -> Message {
        Message { error: record.last_error, ..self.message(Some(record.name), Event::ChecksFail) }
    }

    fn message(&self, repository: Option<RepositoryName>, event: Event) -> Message {
        empty_message(&self.shared, repository, event)
    }
}

/// Sends a test message to every notification URL of a repository, or of all of them.
///
/// # Errors
/// A repository that is not configured, in one line.
pub fn test(shared: &Shared, repository: Option<&RepositoryName>) -> Result<Vec<NotifyResult>, String> {
    let catalog = shared.catalog();
    if let Some(name) = repository.filter(|name| catalog.repository(name).is_none()) {
        return Err(format!("{name} is not configured"));
    }
    let notifier = notifier(shared).pauses(&[]);
    let limit = Limit::after(TESTS_LIMIT);
    let mut tried: Vec<Secret> = Vec::new();
    let mut results = Vec::new();
    for repository in catalog.repositories().filter(|one| repository.is_none_or(|name| one.name == *name)) {
        let message = empty_message(shared, Some(repository.name.clone()), Event::Test);
        for template in repository.notifications.success.iter().chain(&repository.notifications.failure) {
            let (target, problem) = match template.resolve(&shared.host.settings.environment) {
                Ok(url) if tried.contains(&url) => continue,
                Ok(url) => {
                    let sent = notifier.send(&url, &message, &limit.at_most(TEST_LIMIT));
                    tried.push(url.clone());
                    (label(&url), sent.err().map(|error| error.to_string()))
                }
                Err(error) => ("notification".to_owned(), Some(error)),
            };
            results.push(NotifyResult { repository: repository.name.to_string(), target, problem });
        }
    }
    Ok(results)
}

fn notifier(shared: &Shared) -> Notifier {
    let settings = &shared.host.settings;
    Notifier::new(settings.shoutrrr_bin.clone(), settings.environment.for_children(), settings.proxies.clone())
}

fn empty_message(shared: &Shared, repository: Option<RepositoryName>, event: Event) -> Message {
    Message {
        host: shared.host.settings.hostname.clone(),
        repository,
        event,
        commit: None,
        actor: None,
        duration: None,
        error: None,
        last_lines: Vec::new(),
    }
}

/// Whom a message goes to: "well again" also to those who heard of the failure.
fn targets(repository: &Repository, kind: MessageKind) -> Vec<&Template> {
    let notifications = &repository.notifications;
    match kind {
        MessageKind::Success => notifications.success.iter().collect(),
        MessageKind::WellAgain => notifications.failure.iter().chain(&notifications.success).collect(),
        MessageKind::Failure => notifications.failure.iter().collect(),
    }
}
