//! The database: projects, repositories, the queue, history and logs, in SQLite; and the memory of the last checks.
//!
//! The queue is the table: a trigger is accepted once its row is committed. The channel to the worker is only a bell.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::model::{
    Asked, Chance, Commit, CommitHash, DeploymentId, DeploymentRecord, LogLevel, LogLine, ProjectRecord, RepositoryId,
    RepositoryName, RepositoryRecord, Status, Trigger,
};

/// Why the database did not do as asked; one line.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own error.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A file beside it.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Written by a newer version.
    #[error("{0}")]
    TooNew(String),
    /// A row that is asked for and is not there, or a transition that is not allowed.
    #[error("{0}")]
    Refused(String),
}

/// What the store needs to know of a configured repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositorySpec {
    /// Its name in the project.
    pub name: String,
    /// The remote, without a credential.
    pub git_url: String,
    /// Branch or full reference.
    pub branch: String,
    /// Folder of the stack.
    pub path: String,
    /// Working tree.
    pub local_path: String,
    /// Seconds between two checks.
    pub check_interval_seconds: u64,
    /// Keyed hash of the fields whose change queues a deployment (spec section 4, `config`); made by `daemon`.
    pub config_hash: String,
}

/// What the store needs to know of a configured project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectSpec {
    /// Unique name.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// The file that it came from.
    pub config_file: String,
    /// In the file's order.
    pub repositories: Vec<RepositorySpec>,
}

/// What became of a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The pending row.
    pub deployment_id: DeploymentId,
    /// Whether it was there before.
    pub joined: bool,
}

/// How a deployment ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The host runs the commit, and it is well.
    Success,
    /// It is not so; one line, and whether another try can help.
    Failed {
        /// One line.
        error: String,
        /// Whether it is tried again.
        chance: Chance,
    },
}

/// Which deployments a list holds.
#[derive(Clone, Debug, Default)]
pub struct DeploymentFilter {
    /// Only of this repository.
    pub repository_id: Option<RepositoryId>,
    /// Only of this project.
    pub project: Option<String>,
    /// Only with this status.
    pub status: Option<Status>,
    /// Only older ones than this.
    pub before: Option<DeploymentId>,
    /// How many at most.
    pub limit: u32,
}

/// A finished deployment of which nobody has been told.
#[derive(Clone, Debug)]
pub struct Untold {
    /// It.
    pub deployment: DeploymentRecord,
    /// Whether people were told that this repository fails, and not yet that it is well again.
    pub failure_was_told: bool,
    /// The last lines of its log, for a failure's message.
    pub last_lines: Vec<String>,
}

/// The database. Shared by reference between threads.
pub struct Store {}

impl Store {
    /// Opens or makes `Shiparr.db` in `data_path`, migrates it after a copy (`Shiparr.db.vN`).
    ///
    /// # Errors
    /// A database of a newer version, one that cannot be opened or is damaged.
    pub fn open(_data_path: &Path, _history_limit: u32) -> Result<Store, StoreError> {
        todo!()
    }

    /// Answers whether the database can be read and written (for health); writes nothing.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ping(&self) -> Result<(), StoreError> {
        todo!()
    }

    // ---- Projects and repositories ----

    /// Makes the records agree with the accepted projects, in one transaction: new ones are made, changed ones updated, ones that no file
    /// names any more become orphans (their pending rows end `failed: orphaned`), returning ones stop being orphans. Projects in
    /// `untouched` (their file has a problem and no good version is known) keep their records as they are. Writes nothing when nothing changed.
    ///
    /// # Errors
    /// SQLite's.
    pub fn sync(&self, _projects: &[ProjectSpec], _untouched: &[String], _now: Timestamp) -> Result<(), StoreError> {
        todo!()
    }

    /// Repositories whose configuration differs from the one that their last started deployment had (keyed hash); never-deployed ones are not among them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn changed_configurations(&self) -> Result<Vec<RepositoryId>, StoreError> {
        todo!()
    }

    /// All projects, by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn projects(&self) -> Result<Vec<ProjectRecord>, StoreError> {
        todo!()
    }

    /// All repositories, by project and name, or those of one project.
    ///
    /// # Errors
    /// SQLite's.
    pub fn repositories(&self, _project: Option<&str>) -> Result<Vec<RepositoryRecord>, StoreError> {
        todo!()
    }

    /// One repository by id.
    ///
    /// # Errors
    /// SQLite's.
    pub fn repository(&self, _id: RepositoryId) -> Result<Option<RepositoryRecord>, StoreError> {
        todo!()
    }

    /// One repository by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn repository_named(&self, _name: &RepositoryName) -> Result<Option<RepositoryRecord>, StoreError> {
        todo!()
    }

    /// The most recent outcome that was not skipped of each repository of a project, for the widget: see [`RepositoryRecord`]; this one returns the last
    /// finished, not skipped deployment of a repository.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_outcome(&self, _id: RepositoryId) -> Result<Option<DeploymentRecord>, StoreError> {
        todo!()
    }

    /// Forgets orphans, with their history; answers their names. Records only.
    ///
    /// # Errors
    /// SQLite's.
    pub fn prune(&self, _ids: &[RepositoryId]) -> Result<Vec<RepositoryName>, StoreError> {
        todo!()
    }

    // ---- Checks: in memory, stored with the next write ----

    /// The next check of a repository is due at `at` (memory only).
    pub fn check_scheduled(&self, _id: RepositoryId, _at: Timestamp) {
        todo!()
    }

    /// A check found `tip`. In one transaction, where there is something to write: a new commit is recorded as observed and queued (trigger `poll`), unless
    /// it is running, or is `last_commit_hash` with no later deployment started (spec section 4, Queue). Clears `last_error`. Where nothing is new, only memory changes.
    ///
    /// # Errors
    /// SQLite's.
    pub fn check_found(
        &self,
        _id: RepositoryId,
        _tip: &CommitHash,
        _now: Timestamp,
    ) -> Result<Option<Queued>, StoreError> {
        todo!()
    }

    /// A check failed. Answers whether that is news (no failure before, or another error): only then it is written.
    ///
    /// # Errors
    /// SQLite's.
    pub fn check_failed(&self, _id: RepositoryId, _error: &str, _now: Timestamp) -> Result<bool, StoreError> {
        todo!()
    }

    /// Repositories whose checks have failed since before `since` and whose failure nobody was told of; marks them as told.
    ///
    /// # Errors
    /// SQLite's.
    pub fn take_long_failing_checks(&self, _since: Timestamp) -> Result<Vec<RepositoryRecord>, StoreError> {
        todo!()
    }

    /// Writes what is only in memory; called when the daemon stops.
    ///
    /// # Errors
    /// SQLite's.
    pub fn flush_checks(&self) -> Result<(), StoreError> {
        todo!()
    }

    // ---- The queue ----

    /// Accepts a trigger: makes the pending row, or joins the one that is there. Durable (fsync) when it returns. Clears a retry that waits.
    ///
    /// # Errors
    /// An orphan is [`StoreError::Refused`].
    pub fn enqueue(
        &self,
        _id: RepositoryId,
        _trigger: Trigger,
        _asked: Asked,
        _now: Timestamp,
    ) -> Result<Queued, StoreError> {
        todo!()
    }

    /// All pending rows, oldest first; the worker chooses.
    ///
    /// # Errors
    /// SQLite's.
    pub fn pending(&self) -> Result<Vec<DeploymentRecord>, StoreError> {
        todo!()
    }

    /// Notes what a pending row waits for (shown as its `error`); writes only when it differs.
    ///
    /// # Errors
    /// SQLite's.
    pub fn waits_for(&self, _id: DeploymentId, _reason: Option<&str>) -> Result<(), StoreError> {
        todo!()
    }

    /// Pending becomes running, with the configuration that it runs with.
    ///
    /// # Errors
    /// A row that is not pending any more is [`StoreError::Refused`].
    pub fn start(&self, _id: DeploymentId, _config_hash: &str, _now: Timestamp) -> Result<(), StoreError> {
        todo!()
    }

    /// The working tree now is at this commit: written to the deployment and the repository (`checked_out_commit`, `observed_commit`).
    ///
    /// # Errors
    /// SQLite's.
    pub fn checked_out(&self, _id: DeploymentId, _commit: &Commit) -> Result<(), StoreError> {
        todo!()
    }

    /// Compose is about to change containers, as this compose project in this folder.
    ///
    /// # Errors
    /// SQLite's.
    pub fn up_begins(&self, _id: DeploymentId, _compose_project: &str, _folder: &Path) -> Result<(), StoreError> {
        todo!()
    }

    /// Ends a running deployment: status, error, times, `last_commit_hash` after a success, the next retry after a failure that can pass (1, 5 and
    /// every 15 minutes), and the trimmed history, in one durable transaction.
    ///
    /// # Errors
    /// A transition that is not allowed is [`StoreError::Refused`].
    pub fn finish(&self, _id: DeploymentId, _outcome: &Outcome, _now: Timestamp) -> Result<(), StoreError> {
        todo!()
    }

    /// At start: what was `running` becomes `failed: interrupted` and is queued again with all that was asked of it: at once the first time, then with the
    /// pauses of a retry. Answers the interrupted ones.
    ///
    /// # Errors
    /// SQLite's.
    pub fn recover(&self, _now: Timestamp) -> Result<Vec<DeploymentRecord>, StoreError> {
        todo!()
    }

    /// Queues the retries that are due.
    ///
    /// # Errors
    /// SQLite's.
    pub fn enqueue_due_retries(&self, _now: Timestamp) -> Result<Vec<Queued>, StoreError> {
        todo!()
    }

    /// When the next retry is due.
    ///
    /// # Errors
    /// SQLite's.
    pub fn next_retry_at(&self) -> Result<Option<Timestamp>, StoreError> {
        todo!()
    }

    // ---- History and logs ----

    /// One deployment.
    ///
    /// # Errors
    /// SQLite's.
    pub fn deployment(&self, _id: DeploymentId) -> Result<Option<DeploymentRecord>, StoreError> {
        todo!()
    }

    /// A page of deployments, newest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn deployments(&self, _filter: &DeploymentFilter) -> Result<Vec<DeploymentRecord>, StoreError> {
        todo!()
    }

    /// Adds a line to a deployment's log and wakes those who follow it; past the bound the line is counted and not kept, and the log says where it was cut.
    ///
    /// # Errors
    /// SQLite's.
    pub fn log(&self, _id: DeploymentId, _level: LogLevel, _message: &str, _now: Timestamp) -> Result<(), StoreError> {
        todo!()
    }

    /// Lines of a deployment's log after the line `after` (0 for all), oldest first, at most `limit`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn log_lines(&self, _id: DeploymentId, _after: i64, _limit: u32) -> Result<Vec<LogLine>, StoreError> {
        todo!()
    }

    /// Waits until a deployment got a line or another status, at most `limit`. For those who follow a log.
    pub fn wait_for_change(&self, _limit: Duration) {
        todo!()
    }

    // ---- Messages: a finished row that nobody was told of is the outbox ----

    /// The oldest finished deployment that nobody was told of yet and that a message may be about.
    ///
    /// # Errors
    /// SQLite's.
    pub fn next_untold(&self) -> Result<Option<Untold>, StoreError> {
        todo!()
    }

    /// People were told of it, or there was nobody to tell. `as_failure`: a failure message went out for its repository; a later success is then "well again".
    ///
    /// # Errors
    /// SQLite's.
    pub fn told(&self, _id: DeploymentId, _as_failure: bool, _now: Timestamp) -> Result<(), StoreError> {
        todo!()
    }
}
