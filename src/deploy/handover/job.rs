//! What lies in the folder of a handed-over deployment: what a helper is told, and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::project::{Build, Pull, UnsetVariables};
use crate::deploy::secret_files::Kept;
use crate::deploy::{Plan, Stack, Up, UpError};
use crate::model::{Asked, LogLevel};
use crate::secrets::{Scrubber, Secret};
use crate::store::HelperLine;

/// Of all that is said here. The daemon that takes an outcome may be a newer one, or an older one, than the one that gave
/// the job; the helper is of the one that gave it.
pub(super) const FORMAT: u32 = 1;

/// Something with the number of its format, which is read before the rest of it.
#[derive(Serialize, Deserialize)]
pub(super) struct Formatted<T> {
    format: u32,
    pub said: T,
}

impl<T> Formatted<T> {
    pub fn new(said: T) -> Formatted<T> {
        Formatted { format: FORMAT, said }
    }
}

/// What a helper is told. Secrets are in plain text here: it lies in memory, for this user, until the helper is done.
#[derive(Serialize, Deserialize)]
pub(super) struct Job {
    /// What is left of the deployment's time.
    pub limit_milliseconds: u64,
    /// The docker client, by path or name.
    pub docker: PathBuf,
    /// What the docker client and Compose see.
    pub environment: Vec<(OsString, OsString)>,
    /// The folder, below `runtime`, of what was decrypted for it.
    pub plaintext: PlaintextPlace,
    pub stack: PlainStack,
    pub up: Up,
    /// Whether something of an interrupted deployment may be stopped still.
    pub heals_first: bool,
    pub scrubber: Scrubber,
    pub kept: Brought,
}

/// Where the decrypted files of a deployment lie, and the list of links to them.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct PlaintextPlace {
    pub runtime: PathBuf,
    pub data: PathBuf,
    pub name: String,
}

/// What whoever takes the outcome needs for going on.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Brought {
    pub plan: Plan,
    /// When `up` began.
    pub since: Timestamp,
    pub secret_files: Kept,
}

/// What a helper answers.
#[derive(Serialize, Deserialize)]
pub(super) struct Answer {
    /// What came of `up`, and of the healing after it.
    pub result: Result<(), UpError>,
    /// Whether something stays to be healed.
    pub is_unsettled: bool,
    /// The full ids of the stack's containers after a success; empty where they are not known.
    pub containers: BTreeSet<String>,
    pub kept: Brought,
}

/// A stack with its variables in plain text.
#[derive(Serialize, Deserialize)]
pub(super) struct PlainStack {
    root: PathBuf,
    folder: PathBuf,
    files: Vec<PathBuf>,
    project: Option<String>,
    default_project: String,
    profiles: Vec<String>,
    variables_file: Option<PathBuf>,
    variables: BTreeMap<String, String>,
    unset_variables: UnsetVariables,
    build: Build,
    pull: Pull,
    asked: Asked,
}

impl From<&Stack> for PlainStack {
    fn from(stack: &Stack) -> PlainStack {
        let Stack { root, folder, files, project, default_project, profiles, .. } = stack.clone();
        let variables = stack.variables.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
        PlainStack {
            root,
            folder,
            files,
            project,
            default_project,
            profiles,
            variables_file: stack.variables_file.clone(),
            variables: variables.collect(),
            unset_variables: stack.unset_variables,
            build: stack.build,
            pull: stack.pull,
            asked: stack.asked.clone(),
        }
    }
}

impl From<PlainStack> for Stack {
    fn from(plain: PlainStack) -> Stack {
        let variables = plain.variables.into_iter().map(|(name, value)| (name, Secret::new(value)));
        Stack {
            root: plain.root,
            folder: plain.folder,
            files: plain.files,
            project: plain.project,
            default_project: plain.default_project,
            profiles: plain.profiles,
            variables_file: plain.variables_file,
            variables: variables.collect(),
            unset_variables: plain.unset_variables,
            build: plain.build,
            pull: plain.pull,
            asked: plain.asked,
        }
    }
}

impl Job {
    /// What is left of the deployment's time.
    pub fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_milliseconds)
    }
}

/// A line of a helper's log, as JSON on one line.
#[derive(Serialize, Deserialize)]
pub(super) struct Line {
    at: Timestamp,
    level: String,
    message: String,
}

impl Line {
    pub fn new(at: Timestamp, level: LogLevel, message: String) -> Line {
        Line { at, level: level.as_str().to_owned(), message }
    }
}

impl From<Line> for HelperLine {
    fn from(line: Line) -> HelperLine {
        // A level that is not known here is one of a newer version: a person should look at it.
        let level = line.level.parse().unwrap_or(LogLevel::Warning);
        HelperLine { at: line.at, level, message: line.message }
    }
}

/// Reads what was said, where its format is known.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(text).map_err(|error| format!("it cannot be read: {error}"))?;
    if format != FORMAT {
        return Err(format!("it is of format {format}, and this version knows {FORMAT}"));
    }
    // Never what stands there: it may be a secret.
    let said: Formatted<T> = serde_json::from_slice(text)
        .map_err(|error| format!("it cannot be read (line {}, column {})", error.line(), error.column()))?;
    Ok(said.said)
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::deploy::{Containers, Mount, StepError};

    pub(in crate::deploy::handover) fn brought() -> Brought {
        let plan = Plan {
            project: "web".to_owned(),
            files: vec!["/srv/web/compose.yaml".into()],
            builds: true,
            one_shots: ["migrate".to_owned()].into(),
            services: [("web".to_owned(), 2)].into(),
            container_names: [("web".to_owned(), "front".to_owned())].into(),
            volumes: ["web_data".to_owned()].into(),
            mounts: vec![Mount { service: "web".to_owned(), source: "/srv/web/html".into() }],
        };
        Brought { plan, since: "2026-01-15T14:30:00.25Z".parse().unwrap(), secret_files: Kept::default() }
    }

    pub(in crate::deploy::handover) fn job(runtime: &std::path::Path) -> Job {
        let mut scrubber = Scrubber::new();
        scrubber.learn("correct horse");
        let stack = Stack {
            root: "/srv/web".into(),
            folder: "/srv/web".into(),
            files: Vec::new(),
            project: None,
            default_project: "web".to_owned(),
            profiles: vec!["debug".to_owned()],
            variables_file: Some("/run/secrets/7/0-variables.env".into()),
            variables: [("PASSWORD".to_owned(), Secret::new("correct horse"))].into(),
            unset_variables: UnsetVariables::Blank,
            build: Build::Always,
            pull: Pull::Never,
            asked: Asked { pull: true, recreate: true, adopt: false, commit: None },
        };
        Job {
            limit_milliseconds: 1500,
            docker: "docker".into(),
            environment: vec![("PATH".into(), OsString::from_vec(b"/bin:/\xff".to_vec()))],
            plaintext: PlaintextPlace { runtime: runtime.into(), data: runtime.join("data"), name: "7".to_owned() },
            stack: PlainStack::from(&stack),
            up: Up { remove_orphans: true, recreate: ["web".to_owned()].into() },
            heals_first: true,
            scrubber,
            kept: brought(),
        }
    }

    #[test]
    fn a_job_arrives_as_it_was_given() {
        let text = serde_json::to_vec(&Formatted::new(job("/run".as_ref()))).unwrap();
        let job: Job = parse(&text).unwrap();
        assert_eq!(job.limit(), Duration::from_millis(1500));
        assert_eq!(job.environment[0].1, OsString::from_vec(b"/bin:/\xff".to_vec()));
        assert_eq!(job.kept.plan, brought().plan);
        assert_eq!(job.kept.since, brought().since);
        assert_eq!(job.scrubber.scrub("a correct horse"), "a ***");
        let stack = Stack::from(job.stack);
        assert_eq!(stack.variables["PASSWORD"].expose(), "correct horse");
        assert_eq!(
            (stack.build, stack.pull, stack.unset_variables),
            (Build::Always, Pull::Never, UnsetVariables::Blank)
        );
        assert!(stack.asked.pull && stack.asked.recreate && job.up.remove_orphans && job.heals_first);
    }

    #[test]
    fn an_answer_arrives_as_it_was_given() {
        let error = UpError { error: StepError::for_now("no room"), containers: Containers::Interrupted };
        let answer =
            Answer { result: Err(error.clone()), is_unsettled: true, containers: BTreeSet::new(), kept: brought() };
        let answer: Answer = parse(&serde_json::to_vec(&Formatted::new(answer)).unwrap()).unwrap();
        assert_eq!((answer.result, answer.is_unsettled), (Err(error), true));
    }

    #[test]
    fn what_another_version_said_is_not_guessed_at() {
        let refused = |text: &str| parse::<Answer>(text.as_bytes()).err().unwrap();
        assert!(refused(r#"{"format": 2, "said": {"result": "well"}}"#).contains("format 2"));
        assert!(refused("").contains("cannot be read"));
        let torn = refused(r#"{"format": 1, "said": {"password": "correct horse"}}"#);
        assert!(torn.contains("cannot be read") && !torn.contains("horse"), "{torn}");
    }

    #[test]
    fn a_level_that_is_not_known_is_one_to_look_at() {
        let line: Line =
            serde_json::from_str(r#"{"at": "2026-01-15T14:30:00Z", "level": "odd", "message": "x"}"#).unwrap();
        assert_eq!(HelperLine::from(line).level, LogLevel::Warning);
    }
}
