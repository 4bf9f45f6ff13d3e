//! Records as the API shows them (spec section 5).

use jiff::Timestamp;
use serde::Serialize;

use crate::deploy::containers;
use crate::model::{CommitHash, DeploymentRecord, ProjectRecord, RepositoryRecord, Status, Trigger};

/// UTC, to the second: `2026-01-15T14:30:00Z`.
pub fn time(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn some_time(at: Option<Timestamp>) -> Option<String> {
    at.map(time)
}

/// A project; its `repositories` are a number in a list and a list on its own.
#[derive(Serialize)]
pub struct Project<'a, R> {
    id: i64,
    name: &'a str,
    description: Option<&'a str>,
    config_file: &'a str,
    created_at: String,
    repositories: R,
}

impl<'a, R> Project<'a, R> {
    /// With its repositories, however they are shown.
    pub fn new(record: &'a ProjectRecord, repositories: R) -> Project<'a, R> {
        Project {
            id: record.id,
            name: &record.name,
            description: record.description.as_deref(),
            config_file: &record.config_file,
            created_at: time(record.created_at),
            repositories,
        }
    }
}

/// A repository.
#[derive(Serialize)]
pub struct Repository<'a> {
    id: i64,
    project: &'a str,
    name: &'a str,
    git_url: &'a str,
    branch: &'a str,
    path: &'a str,
    local_path: &'a str,
    check_interval: u64,
    status: &'static str,
    orphaned: bool,
    last_commit_hash: Option<&'a CommitHash>,
    observed_commit: Option<&'a CommitHash>,
    last_checked_at: Option<String>,
    last_error: Option<&'a str>,
    next_check_at: Option<String>,
    last_deployment: Option<Deployment<'a>>,
    created_at: String,
}

impl<'a> From<&'a RepositoryRecord> for Repository<'a> {
    fn from(record: &'a RepositoryRecord) -> Repository<'a> {
        Repository {
            id: record.id,
            project: &record.name.project,
            name: &record.name.name,
            git_url: &record.git_url,
            branch: &record.branch,
            path: &record.path,
            local_path: &record.local_path,
            check_interval: record.check_interval_seconds,
            status: status_of(record),
            orphaned: record.orphaned_at.is_some(),
            last_commit_hash: record.last_commit_hash.as_ref(),
            observed_commit: record.observed_commit.as_ref(),
            last_checked_at: some_time(record.last_checked_at),
            last_error: record.last_error.as_deref(),
            next_check_at: some_time(record.next_check_at),
            last_deployment: record.last_deployment.as_ref().map(Deployment::from),
            created_at: time(record.created_at),
        }
    }
}

/// Where a repository stands: what goes on, else that somebody is waited for, else what the last deployment left.
fn status_of(record: &RepositoryRecord) -> &'static str {
    match record.status {
        Some(status @ (Status::Pending | Status::Running)) => status.as_str(),
        _ if record.waiting => "waiting",
        Some(status) => status.as_str(),
        None => "never_deployed",
    }
}

/// A container.
#[derive(Serialize)]
pub struct Container<'a> {
    id: &'a str,
    name: &'a str,
    service: &'a str,
    image: &'a str,
    state: &'a str,
    health: Option<&'a str>,
    exit_code: Option<i64>,
    started_at: Option<String>,
}

impl<'a> From<&'a (containers::Container, containers::Condition)> for Container<'a> {
    fn from((container, condition): &'a (containers::Container, containers::Condition)) -> Container<'a> {
        Container {
            id: &container.id,
            name: &container.name,
            service: &container.service,
            image: &condition.image,
            state: &condition.state,
            health: condition.health.as_deref(),
            exit_code: condition.exit_code,
            started_at: some_time(condition.started_at),
        }
    }
}

/// A deployment.
#[derive(Serialize)]
pub struct Deployment<'a> {
    id: i64,
    repository_id: i64,
    project: &'a str,
    repository: &'a str,
    commit_hash: Option<&'a CommitHash>,
    commit_subject: Option<&'a str>,
    commit_author: Option<&'a str>,
    status: Status,
    trigger: Trigger,
    actor: Option<&'a str>,
    attempt: u32,
    error: Option<&'a str>,
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    duration_seconds: Option<f64>,
}

impl<'a> From<&'a DeploymentRecord> for Deployment<'a> {
    fn from(record: &'a DeploymentRecord) -> Deployment<'a> {
        let commit = record.commit.as_ref();
        let duration = record.started_at.zip(record.finished_at).map(|(started, finished)| {
            // Whole milliseconds; a clock that was set back makes no negative time.
            (finished.as_millisecond() - started.as_millisecond()).max(0) as f64 / 1000.0
        });
        Deployment {
            id: record.id,
            repository_id: record.repository_id,
            project: &record.repository.project,
            repository: &record.repository.name,
            commit_hash: commit.map(|commit| &commit.hash),
            commit_subject: commit.map(|commit| commit.subject.as_str()),
            commit_author: commit.map(|commit| commit.author.as_str()),
            status: record.status,
            trigger: record.trigger,
            actor: record.actor.as_deref(),
            attempt: record.attempt,
            error: record.error.as_deref(),
            created_at: time(record.created_at),
            started_at: some_time(record.started_at),
            finished_at: some_time(record.finished_at),
            duration_seconds: duration,
        }
    }
}
