//! The containers of stacks that Shiparr deployed, how they are, and their logs, for whoever looks at them.

mod follow;
mod logs;
#[cfg(test)]
mod testing;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use crate::command::{Command, CommandError, Limit};
use crate::config::Settings;

pub use follow::{Followed, follow};
pub use logs::{Wanted, logs, stack_logs};

/// Docker has to answer within this.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Between SIGTERM and SIGKILL: what only asks has nothing to finish, and is gone within a second of whom it asked for.
const GRACE: Duration = Duration::from_millis(500);
/// What a list of containers may have.
const LIST_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Labels hold anything, so each field is JSON.
const LIST_FORMAT: &str = concat!(
    r#"{"id":{{json .ID}},"name":{{json .Names}},"#,
    r#""project":{{json (.Label "com.docker.compose.project")}},"#,
    r#""folder":{{json (.Label "com.docker.compose.project.working_dir")}},"#,
    r#""service":{{json (.Label "com.docker.compose.service")}}}"#
);

/// Just what is shown: whole, it has the environment and the output of health checks. `.ID` is the field's name in the
/// client, with which a missing `Health` is empty; with `.Id` the client falls back on a map, in which it is an error.
const CONDITION_FORMAT: &str = concat!(
    r#"{"id":{{json .ID}},"image":{{json .Config.Image}},"state":{{json .State.Status}},"#,
    r#""health":{{if .State.Health}}{{json .State.Health.Status}}{{else}}null{{end}},"#,
    r#""exit_code":{{json .State.ExitCode}},"started_at":{{json .State.StartedAt}}}"#
);

/// A stack, as Compose labels its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackLabels {
    /// The compose project.
    pub project: String,
    /// The folder that it was brought up from.
    pub folder: String,
}

/// A container of a compose project.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Container {
    /// The full id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The service that it belongs to.
    pub service: String,
    project: String,
    folder: String,
}

/// How a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The image, as the compose file names it.
    pub image: String,
    /// Docker's word: `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub state: String,
    /// Docker's word: `starting`, `healthy` or `unhealthy`; none without a health check.
    pub health: Option<String>,
    /// What it last ended with; none while it runs and before it ever did.
    pub exit_code: Option<i64>,
    /// When it was last started, if ever.
    pub started_at: Option<Timestamp>,
}

/// Why nothing can be said of the containers; one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DockerError(String);

impl From<CommandError> for DockerError {
    fn from(error: CommandError) -> DockerError {
        DockerError(error.to_string())
    }
}

/// All containers, running or not, of these stacks, by name.
///
/// # Errors
/// Docker's, or that it is not there.
pub fn containers_of(
    stacks: &[StackLabels],
    settings: &Settings,
    limit: &Limit,
) -> Result<Vec<Container>, DockerError> {
    let label = match stacks {
        [] => return Ok(Vec::new()),
        [one] => format!("label=com.docker.compose.project={}", one.project),
        _ => "label=com.docker.compose.project".to_owned(),
    };
    let args = ["ps", "--all", "--no-trunc", "--filter", label.as_str(), "--format", LIST_FORMAT];
    let listed = docker(settings).args(args).capture(&limit.at_most(ASK_LIMIT), LIST_MAX_BYTES)?;
    if !listed.status.success() {
        return Err(DockerError(first_line(&listed.stderr)));
    }
    let mut containers = parse_list(&String::from_utf8_lossy(&listed.stdout))?;
    containers.retain(|container| stacks.iter().any(|stack| container.belongs_to(stack)));
    containers.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(containers)
}

/// How these containers are, in their order; without those that went since they were listed.
///
/// # Errors
/// Docker's, or that it is not there.
pub fn conditions(
    containers: Vec<Container>,
    settings: &Settings,
    limit: &Limit,
) -> Result<Vec<(Container, Condition)>, DockerError> {
    if containers.is_empty() {
        return Ok(Vec::new());
    }
    let ids = containers.iter().map(|container| container.id.as_str());
    let args = ["inspect", "--type", "container", "--format", CONDITION_FORMAT].into_iter().chain(ids);
    let told = docker(settings).args(args).capture(&limit.at_most(ASK_LIMIT), LIST_MAX_BYTES)?;
    // Those that are there are told of all the same.
    let is_gone = |line: &str| line.to_ascii_lowercase().contains("no such container");
    let mut complaints = told.stderr.lines().filter(|line| !line.trim().is_empty());
    if !told.status.success() && !complaints.all(is_gone) {
        return Err(DockerError(first_line(&told.stderr)));
    }
    let mut conditions = parse_conditions(&String::from_utf8_lossy(&told.stdout))?;
    let condition_of = |container: Container| conditions.remove(&container.id).map(|condition| (container, condition));
    Ok(containers.into_iter().filter_map(condition_of).collect())
}

/// The container that somebody means by an id, the beginning of one (12 digits or more), or a name: its place in the list.
pub fn find(containers: &[Container], wanted: &str) -> Option<usize> {
    let is_id = |container: &Container| wanted.len() >= 12 && container.id.starts_with(wanted);
    containers.iter().position(|container| container.name == wanted).or_else(|| containers.iter().position(is_id))
}

impl Container {
    /// Folders are compared as they are once links are followed: a stack that was taken over may have been started
    /// through one.
    fn belongs_to(&self, stack: &StackLabels) -> bool {
        let real = |folder: &str| Path::new(folder).canonicalize().ok();
        let is_same =
            self.folder == stack.folder || real(&self.folder).is_some_and(|folder| Some(folder) == real(&stack.folder));
        self.project == stack.project && is_same
    }
}

fn docker(settings: &Settings) -> Command {
    Command::new(&settings.docker_bin, &settings.environment.for_children()).grace(GRACE)
}

fn parse_list(text: &str) -> Result<Vec<Container>, DockerError> {
    let containers = text.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str);
    let unexpected = |error| DockerError(format!("the output of docker ps is not as expected: {error}"));
    containers.collect::<Result<_, _>>().map_err(unexpected)
}

/// By the containers' ids.
fn parse_conditions(text: &str) -> Result<HashMap<String, Condition>, DockerError> {
    #[derive(Deserialize)]
    struct Told {
        id: String,
        image: String,
        state: String,
        health: Option<String>,
        exit_code: i64,
        started_at: String,
    }
    let mut conditions = HashMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let told: Told = serde_json::from_str(line)
            .map_err(|error| DockerError(format!("the output of docker inspect is not as expected: {error}")))?;
        let has_ended = matches!(told.state.as_str(), "exited" | "dead" | "restarting");
        let condition = Condition {
            image: told.image,
            health: told.health.filter(|health| !health.is_empty() && health != "none"),
            exit_code: has_ended.then_some(told.exit_code),
            // Docker's zero time is that of the year 1.
            started_at: told.started_at.parse().ok().filter(|at: &Timestamp| *at > Timestamp::UNIX_EPOCH),
            state: told.state,
        };
        conditions.insert(told.id, condition);
    }
    Ok(conditions)
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("docker failed and said nothing").to_owned()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests read the environment that they run in")]
mod tests {
    use super::testing::Lab;
    use super::*;

    #[test]
    fn how_containers_are_is_told_as_docker_has_it() {
        let limit = Limit::after(Duration::from_secs(60));
        let lab = Lab::new();
        let health = ["run", "--detach", "--health-cmd", "true", "--health-interval", "100s"];
        lab.run(&health, "a-checked", "/srv/a, folder", "sleep 600");
        lab.run(&["create"], "b-created", "/srv/a, folder", "true");
        lab.run(&["run", "--detach"], "c-ended", "/srv/a, folder", "exit 3");
        lab.docker(&["wait", &format!("{}-c-ended", lab.labels.project)]);
        lab.run(&["run", "--detach"], "d-plain", "/srv/a, folder", "sleep 600");
        lab.run(&["create"], "e-gone", "/srv/a, folder", "true");
        let listed = containers_of(std::slice::from_ref(&lab.labels), &lab.settings, &limit).unwrap();
        assert_eq!(listed.len(), 5);
        lab.docker(&["container", "rm", &format!("{}-e-gone", lab.labels.project)]);

        let found = conditions(listed.clone(), &lab.settings, &limit).unwrap();
        assert_eq!(found.iter().map(|(container, _)| container.clone()).collect::<Vec<_>>(), listed[..4]);
        let told: Vec<_> = found
            .iter()
            .map(|(_, one)| (one.state.as_str(), one.health.is_some(), one.exit_code, one.started_at.is_some()))
            .collect();
        let expected = [
            ("running", true, None, true),
            ("created", false, None, false),
            ("exited", false, Some(3), true),
            ("running", false, None, true),
        ];
        assert_eq!(told, expected);
        assert!(matches!(found[0].1.health.as_deref(), Some("starting" | "healthy")), "{:?}", found[0].1);
        assert!(found.iter().all(|(_, condition)| condition.image == "shiparr-test/busybox:1"));

        let only_gone = conditions(vec![listed[4].clone()], &lab.settings, &limit).unwrap();
        assert!(only_gone.is_empty() && conditions(Vec::new(), &lab.settings, &limit).unwrap().is_empty());
        let mut settings = lab.settings.clone();
        settings.docker_bin = "/nonexistent/docker".into();
        assert!(conditions(listed, &settings, &limit).is_err());
    }

    fn container(id: &str, name: &str) -> Container {
        let text = format!(r#"{{"id":"{id}","name":"{name}","project":"p","folder":"/f","service":"s"}}"#);
        parse_list(&text).unwrap().remove(0)
    }

    #[test]
    fn a_container_is_found_by_name_or_id() {
        let id = "0123456789abcdef0123456789abcdef";
        let all = [container(id, "web-1"), container("fedcba9876543210", "0123456789ab")];
        assert_eq!(find(&all, "web-1"), Some(0));
        assert_eq!(find(&all, id), Some(0));
        // A name goes before the beginning of an id.
        assert_eq!(find(&all, "0123456789ab"), Some(1));
        assert_eq!(find(&all, "0123456789abc"), Some(0));
        assert_eq!(find(&all, "0123"), None);
        assert_eq!(find(&all, "web"), None);
    }

    #[test]
    fn a_container_belongs_to_a_stack_by_project_and_folder() {
        let labels = |project: &str, folder: &str| StackLabels { project: project.into(), folder: folder.into() };
        let container = container("0123456789ab", "web-1");
        assert!(container.belongs_to(&labels("p", "/f")));
        assert!(!container.belongs_to(&labels("p", "/other")) && !container.belongs_to(&labels("other", "/f")));
    }
}
