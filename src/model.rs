//! Plain types that every module shares: names, commits, statuses and their transitions. No I/O.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Identifies a row of `repositories`.
pub type RepositoryId = i64;
/// Identifies a row of `deployments`; a later deployment has a larger one.
pub type DeploymentId = i64;

/// A repository as people name it: `project/repository`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName {
    /// The project's name.
    pub project: String,
    /// The repository's key in its project file.
    pub name: String,
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.project, self.name)
    }
}

/// A word that is none of an enumeration's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{word}` is not one of {accepted}")]
pub struct UnknownWord {
    word: String,
    accepted: String,
}

/// Implements the words of an enumeration: the database, the API and the command line use the same ones.
macro_rules! words {
    ($name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word in the database, the API and on the command line.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok($name::$variant),)+
                    _ => Err(UnknownWord {
                        word: word.to_owned(),
                        accepted: [$($word),+].join(", "),
                    }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = String::deserialize(deserializer)?;
                word.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Where a deployment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Accepted and stored; the worker has not begun.
    Pending,
    /// The worker is at it.
    Running,
    /// The host runs what the commit says, and it is well.
    Success,
    /// It ended otherwise; the error says how.
    Failed,
    /// There was nothing to do.
    Skipped,
}

words!(Status { Pending = "pending", Running = "running", Success = "success", Failed = "failed", Skipped = "skipped" });

impl Status {
    /// Whether nothing will change it any more.
    pub fn is_final(self) -> bool {
        !matches!(self, Status::Pending | Status::Running)
    }

    /// Whether a deployment may go from this status to `next`.
    pub fn may_become(self, next: Status) -> bool {
        match self {
            // A pending row of an orphan, or one that is cancelled, fails without having run.
            Status::Pending => matches!(next, Status::Running | Status::Failed),
            Status::Running => next.is_final(),
            Status::Success | Status::Failed | Status::Skipped => false,
        }
    }
}

/// What made a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// A check found a new commit.
    Poll,
    /// A POST to the API.
    Api,
    /// `shiparr deploy`.
    Cli,
    /// A forge's delivery.
    Webhook,
    /// A changed project file.
    Config,
    /// A failure that can pass, or an interruption, is tried again.
    Retry,
}

words!(Trigger { Poll = "poll", Api = "api", Cli = "cli", Webhook = "webhook", Config = "config", Retry = "retry" });

impl Trigger {
    /// Whether a row that it made or joined is deployed even when the commit changes nothing (spec section 4, step 1).
    pub fn forces(self) -> bool {
        matches!(self, Trigger::Api | Trigger::Cli | Trigger::Config | Trigger::Retry)
    }

    /// Whether it says which commit is deployed: a person who names none asks for the tip. Every other trigger leaves
    /// that as it is, unless the branch moved while an earlier commit was only tried again.
    pub fn chooses_commit(self) -> bool {
        matches!(self, Trigger::Api | Trigger::Cli)
    }
}

/// What makes a deployment, and who is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    /// What makes it.
    pub trigger: Trigger,
    /// Who asks for it, where that is known.
    pub actor: Option<String>,
}

impl From<Trigger> for By {
    fn from(trigger: Trigger) -> By {
        By { trigger, actor: None }
    }
}

/// How a failed deployment came to its end, which decides whether it is tried again, told, and compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// It does not parse, decrypt or get healthy.
    ForGood,
    /// The cause can pass by itself, and so it is tried again.
    CanPass,
    /// A newer row of its repository ended the wait for health.
    Superseded,
    /// A person ended it.
    Cancelled,
    /// Shiparr ended while it was running.
    Interrupted,
    /// No project file named its repository any more before it began.
    Orphaned,
}

words!(Ending {
    ForGood = "for_good",
    CanPass = "can_pass",
    Superseded = "superseded",
    Cancelled = "cancelled",
    Interrupted = "interrupted",
    Orphaned = "orphaned",
});

/// How grave a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogLevel {
    /// A step of the deployment, or a child's output.
    Info,
    /// Something that a person should look at; the deployment went on.
    Warning,
    /// Why the deployment failed.
    Error,
}

words!(LogLevel { Info = "info", Warning = "warning", Error = "error" });

/// What somebody asked of a deployment; joined triggers add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asked {
    /// Pull images even where they are there.
    pub pull: bool,
    /// Make containers anew even where nothing changed.
    pub recreate: bool,
    /// Go on although containers, volumes or a clone that are not of this repository's making are there.
    pub adopt: bool,
    /// An earlier commit of the branch, instead of its tip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitPrefix>,
}

impl Asked {
    /// Both wishes together, after a trigger that asks for `more` joined. The commit is this one's, unless the trigger
    /// is one that says which ([`Trigger::chooses_commit`]).
    #[must_use]
    pub fn joined_by(self, trigger: Trigger, more: Asked) -> Asked {
        Asked {
            pull: self.pull || more.pull,
            recreate: self.recreate || more.recreate,
            adopt: self.adopt || more.adopt,
            commit: if trigger.chooses_commit() { more.commit } else { self.commit },
        }
    }
}

/// The beginning of a commit's hash, or all of it: 7 to 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct CommitPrefix(String);

impl CommitPrefix {
    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&CommitHash> for CommitPrefix {
    fn from(hash: &CommitHash) -> CommitPrefix {
        CommitPrefix(hash.0.clone())
    }
}

impl FromStr for CommitPrefix {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let digits = text.to_ascii_lowercase();
        if (7..=64).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(CommitPrefix(digits))
        } else {
            Err(NotAPrefix(text.to_owned()))
        }
    }
}

impl<'de> Deserialize<'de> for CommitPrefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is not the beginning of a commit's hash.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a commit (7 to 64 hexadecimal digits)")]
pub struct NotAPrefix(String);

/// The full hash of a commit: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct CommitHash(String);

impl CommitHash {
    /// The first seven digits, as people read them.
    pub fn short(&self) -> &str {
        &self.0[..7]
    }

    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommitHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A text that is not a full commit hash.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a commit hash (40 or 64 hexadecimal digits)")]
pub struct NotAHash(String);

impl FromStr for CommitHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if matches!(text.len(), 40 | 64) && text.bytes().all(digits) {
            Ok(CommitHash(text.to_owned()))
        } else {
            Err(NotAHash(text.to_owned()))
        }
    }
}

impl<'de> Deserialize<'de> for CommitHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A commit as messages and histories show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its full hash.
    pub hash: CommitHash,
    /// The first line of its message.
    pub subject: String,
    /// The author's name.
    pub author: String,
}

/// Whether a failure can pass by itself, and so is tried again (spec section 4, "Again").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Chance {
    /// Network, registry, Docker gone, disk full, a conflict: tried again after a pause.
    CanPass,
    /// It does not parse, decrypt or get healthy: left until something changes.
    Final,
}

/// A project as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectRecord {
    /// Row id.
    pub id: i64,
    /// Unique name.
    pub name: String,
    /// From the project file.
    pub description: Option<String>,
    /// The file that it was last loaded from.
    pub config_file: String,
    /// When it was first seen.
    pub created_at: Timestamp,
    /// How many repositories it has, orphans included.
    pub repositories: u64,
}

/// A repository as the database and the memory of its last check know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryRecord {
    /// Row id.
    pub id: RepositoryId,
    /// `project/repository`.
    pub name: RepositoryName,
    /// The remote, without any credential.
    pub git_url: String,
    /// The followed branch, or full reference.
    pub branch: String,
    /// Folder of the stack in the repository.
    pub path: String,
    /// Where the working tree lives.
    pub local_path: String,
    /// Seconds between two checks.
    pub check_interval_seconds: u64,
    /// The last commit that was deployed with success, and nothing else.
    pub last_commit_hash: Option<CommitHash>,
    /// The newest commit that a check has seen and that was handled.
    pub observed_commit: Option<CommitHash>,
    /// The commit whose files lie in `local_path`.
    pub checked_out_commit: Option<CommitHash>,
    /// When the remote was last asked.
    pub last_checked_at: Option<Timestamp>,
    /// When it will be asked next.
    pub next_check_at: Option<Timestamp>,
    /// What the last check failed with, in one line.
    pub last_error: Option<String>,
    /// Since when checks have failed without a success between.
    pub failing_since: Option<Timestamp>,
    /// Since when no project file names it any more.
    pub orphaned_at: Option<Timestamp>,
    /// When a failure that can pass is tried again.
    pub retry_at: Option<Timestamp>,
    /// The compose project of the last `up`.
    pub compose_project: Option<String>,
    /// The folder of the last `up`.
    pub up_folder: Option<String>,
    /// The services of every `up` since compose project or folder last changed.
    pub brought_up_services: BTreeSet<String>,
    /// The volumes, as Docker names them, of every `up` since compose project or folder last changed.
    pub brought_up_volumes: BTreeSet<String>,
    /// What people accepted with `--adopt`, and what is not refused again; the keys are those of who refuses.
    pub accepted: BTreeSet<String>,
    /// Whether its commits are deployed only when somebody asks (`deploy: manual`).
    pub is_manual: bool,
    /// Whether, under `deploy: manual`, a commit or a configuration is there that was not deployed.
    pub waiting: bool,
    /// When it was first seen.
    pub created_at: Timestamp,
    /// The newest deployment, skipped ones included.
    pub last_deployment: Option<DeploymentRecord>,
    /// Where it stands (spec section 5): a pending or running deployment's status, else that of the last one that was
    /// not skipped, else none.
    pub status: Option<Status>,
}

/// Checks that failed for this long are told, and make health `degraded` (spec section 4, Check).
const FAILING_LONG: SignedDuration = SignedDuration::from_hours(1);

impl RepositoryRecord {
    /// Whether its checks have failed for so long that somebody should look: from the first that failed to the last. A
    /// single failure is none, whatever the interval, and neither is a clock that was set between a failure and now
    /// (boards without one of their own start in the past).
    pub fn has_failed_long(&self) -> bool {
        let failing = self.failing_since.zip(self.last_checked_at);
        self.orphaned_at.is_none() && failing.is_some_and(|(first, last)| last.duration_since(first) >= FAILING_LONG)
    }
}

/// A deployment, a row of the queue and of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentRecord {
    /// Row id.
    pub id: DeploymentId,
    /// Whose it is.
    pub repository_id: RepositoryId,
    /// `project/repository`.
    pub repository: RepositoryName,
    /// The commit, from the moment that it started.
    pub commit: Option<Commit>,
    /// Where it stands.
    pub status: Status,
    /// What made it; later triggers may have joined.
    pub trigger: Trigger,
    /// Who asked for it, where that is known: a user, `api-key`, a unix user, the pusher of a webhook.
    pub actor: Option<String>,
    /// Whether a trigger made or joined it that must not be skipped (spec section 4, step 1): see [`Trigger::forces`].
    pub forced: bool,
    /// 1 for the first try.
    pub attempt: u32,
    /// What was asked of it.
    pub asked: Asked,
    /// How it failed; none where it did not.
    pub ending: Option<Ending>,
    /// One line: why it failed or was skipped, or, while pending, what it waits for.
    pub error: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the worker began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Whether `up` had begun.
    pub up_began: bool,
}

impl DeploymentRecord {
    /// How long it has run, by the clock; nothing where that was set back meanwhile.
    pub fn ran_for(&self, now: Timestamp) -> Duration {
        let since = self.started_at.map(|at| now.duration_since(at));
        since.and_then(|time| Duration::try_from(time).ok()).unwrap_or_default()
    }
}

/// A line of a deployment's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Position in the log, growing; not dense.
    pub id: i64,
    /// When it was written.
    pub at: Timestamp,
    /// How grave it is.
    pub level: LogLevel,
    /// One line, scrubbed of secrets.
    pub message: String,
}
