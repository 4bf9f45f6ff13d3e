//! The database: projects, repositories, the queue, history and logs, in SQLite; and the memory of the last checks.
//!
//! The queue is the table: a trigger is accepted once its row is committed. The channel to the worker is only a bell.

mod cancel;
mod changes;
mod checks;
mod deliveries;
mod gauges;
mod handover;
mod history;
mod logs;
mod manual;
mod migrations;
mod open;
mod outbox;
mod outcome;
mod projects;
mod prune;
mod queue;
#[cfg(test)]
mod random;
mod retries;
mod rows;
mod stack;
#[cfg(test)]
mod testing;
mod unsettled;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rusqlite::{Connection, Transaction};

use crate::metrics::Metrics;
use crate::model::{Chance, DeploymentId, DeploymentRecord, RepositoryId, Status};

use self::changes::Changes;
use self::checks::Checks;
use self::open::{Durability, Readers, Writers, lock};

pub use self::changes::{Change, Published};
pub use self::checks::{CheckBegun, Found};
pub use self::deliveries::{Delivered, Delivery, How};
pub use self::gauges::{Gauges, RepositoryGauges};
pub use self::handover::{HandedOver, HelperLine};
pub use self::logs::{GRAVE_LINES_KEPT, LINE_BYTES_KEPT, LOG_BYTES_KEPT, LOG_LINES_KEPT};
pub use self::open::DATABASE_FILE;
pub use self::outbox::MessageKind;
pub use self::retries::RETRY_PAUSES_SECONDS;
pub use self::stack::BroughtUp;

/// Why the database did not do as asked; one line.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own error.
    #[error("database: {}", open::describe(.0))]
    Sqlite(#[from] rusqlite::Error),
    /// The database cannot be opened.
    #[error("{path}: {problem}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// A file beside it.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
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
    /// Whether its commits are deployed only when somebody asks (`deploy: manual`).
    pub is_manual: bool,
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
    /// There was nothing to do; nobody is told.
    Skipped {
        /// One line.
        reason: String,
    },
    /// It is not so; one line, and whether another try can help.
    Failed {
        /// One line.
        error: String,
        /// Whether it is tried again.
        chance: Chance,
    },
    /// A newer row of its repository ended the wait for health: it is not tried again, and nobody is told.
    Superseded {
        /// One line; `superseded` is put in front where it does not begin with the word.
        error: String,
    },
    /// A person ended it: it is not tried again, and nobody is told.
    Cancelled {
        /// One line; `cancelled` is put in front where it does not begin with the word.
        error: String,
    },
    /// Who worked on it is gone, and how far that came is not known: it is queued again, as after a crash of the daemon.
    Interrupted {
        /// One line; `interrupted` is put in front where it does not begin with the word.
        error: String,
    },
}

/// Which deployments a list holds; as [`Default`], the first page of all.
#[derive(Clone, Debug)]
pub struct DeploymentFilter {
    /// Only of this repository.
    pub repository_id: Option<RepositoryId>,
    /// Only of this project.
    pub project: Option<String>,
    /// Only with this status.
    pub status: Option<Status>,
    /// Only older ones than this.
    pub before: Option<DeploymentId>,
    /// How many at most; more than [`PAGE_LIMIT`] are never answered.
    pub limit: u32,
}

impl Default for DeploymentFilter {
    fn default() -> DeploymentFilter {
        DeploymentFilter { repository_id: None, project: None, status: None, before: None, limit: 50 }
    }
}

/// The longest page of deployments: the 500 of spec section 5, and one more that tells whether there is a next page.
pub const PAGE_LIMIT: u32 = 501;

/// A finished deployment of which nobody has been told.
#[derive(Clone, Debug)]
pub struct Untold {
    /// It.
    pub deployment: DeploymentRecord,
    /// What to say of it.
    pub kind: MessageKind,
    /// The last lines of its log, for a failure's message.
    pub last_lines: Vec<String>,
}

/// The database. Shared by reference between threads.
pub struct Store {
    // Readers are closed first: only a writer can merge the write-ahead log when it is the last one.
    readers: Readers,
    writers: Mutex<Writers>,
    checks: Checks,
    changes: Changes,
    metrics: Arc<Metrics>,
    history_limit: u32,
}

impl Store {
    /// Opens or makes `Shiparr.db` in `data_path`, migrates it after a copy (`Shiparr.db.vN`). Of each repository
    /// `history_limit` deployments are kept.
    ///
    /// # Errors
    /// A database of a newer version, one that cannot be opened or is damaged.
    pub fn open(data_path: &Path, history_limit: u32) -> Result<Store, StoreError> {
        let (readers, writers) = open::open(data_path)?;
        Ok(Store {
            readers,
            writers: Mutex::new(writers),
            checks: Checks::default(),
            changes: Changes::default(),
            metrics: Arc::default(),
            history_limit: history_limit.max(1),
        })
    }

    /// The same, whose deployments are counted in `metrics` when they end.
    #[must_use]
    pub fn counted_in(self, metrics: Arc<Metrics>) -> Store {
        Store { metrics, ..self }
    }

    /// Answers whether the database can be read and written (for health). Writes nothing, unless the last write failed:
    /// then it tries, at most once a second, whether the cause has gone.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ping(&self) -> Result<(), StoreError> {
        self.read(|connection| {
            connection.prepare_cached("SELECT 1 FROM projects LIMIT 1")?.exists([])?;
            Ok(())
        })?;
        // Whoever holds the lock is writing: the next one who asks learns how that went.
        self.writers.try_lock().map_or(Ok(()), |mut writers| writers.ping())
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.readers.with(work)
    }

    /// A transaction that is on the disk when this returns: for what was promised.
    fn promise<T>(&self, work: impl FnOnce(&Transaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.write(Durability::Promised, work)
    }

    /// A transaction that a power cut may take back, but no crash of the process.
    fn note<T>(&self, work: impl FnOnce(&Transaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.write(Durability::Noted, work)
    }

    fn write<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Transaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let asked = Instant::now();
        let mut writers = lock(&self.writers);
        writers.refuse_if_locked(asked)?;
        writers.write(durability, work)
    }
}
