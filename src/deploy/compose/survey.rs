//! What is on this host already, whoever made it: containers, and the projects that volumes were made for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::explain::{self, Tail};
use crate::command::Limit;
use crate::deploy::{Resident, StepError};

/// Labels hold anything, so each field is JSON.
const CONTAINER_FORMAT: &str = concat!(
    r#"{"id":{{json .ID}},"names":{{json .Names}},"state":{{json .State}},"#,
    r#""project":{{json (.Label "com.docker.compose.project")}},"#,
    r#""folder":{{json (.Label "com.docker.compose.project.working_dir")}},"#,
    r#""files":{{json (.Label "com.docker.compose.project.config_files")}},"#,
    r#""service":{{json (.Label "com.docker.compose.service")}},"#,
    r#""one_off":{{json (.Label "com.docker.compose.oneoff")}},"#,
    r#""config_hash":{{json (.Label "com.docker.compose.config-hash")}},"mounts":{{json .Mounts}}}"#
);
const VOLUME_FORMAT: &str = r#"{"name":{{json .Name}},"labels":{{json .Labels}}}"#;
/// The label of a volume that names the compose project that it was made for.
const PROJECT_LABEL: &str = "com.docker.compose.project";

/// All containers of this host, running or not, with one question.
///
/// # Errors
/// Docker's, in one line.
pub fn containers(client: &Client, limit: &Limit) -> Result<Vec<Resident>, StepError> {
    const WHAT: &str = "docker ps";
    let listed = client.ask(WHAT, ["ps", "-a", "--no-trunc", "--format", CONTAINER_FORMAT], limit)?;
    let listed: Vec<Listed> = lines_of_json(WHAT, &listed.stdout)?;
    Ok(listed.into_iter().map(Listed::resident).collect())
}

/// Those of the volumes that exist, and the compose project that each was made for, with one question.
///
/// # Errors
/// Docker's, in one line.
pub fn owners_of_volumes(
    client: &Client,
    names: &BTreeSet<String>,
    limit: &Limit,
) -> Result<BTreeMap<String, Option<String>>, StepError> {
    const WHAT: &str = "docker volume inspect";
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let args = ["volume", "inspect", "--format", VOLUME_FORMAT, "--"];
    let answer = client.answer(WHAT, args.into_iter().chain(names.iter().map(String::as_str)), limit)?;
    let some_are_absent = answer.stderr.to_lowercase().contains("no such volume");
    if !answer.status.success() && !some_are_absent {
        return Err(explain::failed(WHAT, &Tail::of(&answer.stderr), answer.status));
    }
    let found: Vec<Volume> = lines_of_json(WHAT, &answer.stdout)?;
    Ok(found.into_iter().map(Volume::with_owner).collect())
}

fn lines_of_json<T: DeserializeOwned>(what: &str, output: &[u8]) -> Result<Vec<T>, StepError> {
    output
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(serde_json::from_slice)
        .collect::<Result<_, _>>()
        .map_err(|error| StepError::for_good(format!("the output of {what} is not as expected: {error}")))
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    names: String,
    state: String,
    project: String,
    folder: String,
    /// With commas between them.
    files: String,
    service: String,
    one_off: String,
    config_hash: String,
    /// With commas between them.
    mounts: String,
}

impl Listed {
    fn resident(self) -> Resident {
        let some = |label: String| Some(label).filter(|label| !label.is_empty());
        // Beside its own name, the names by which others link to it (`web/db`).
        let name = self.names.split(',').find(|name| !name.contains('/')).unwrap_or(&self.names).to_owned();
        // Compose passes over containers without that label, whatever project they are labelled with.
        let is_composes = !self.config_hash.is_empty();
        Resident {
            id: self.id,
            name,
            project: some(self.project).filter(|_| is_composes),
            folder: some(self.folder).map(PathBuf::from),
            files: paths(&self.files),
            service: some(self.service),
            is_one_off: self.one_off == "True",
            has_ended: matches!(self.state.as_str(), "exited" | "dead"),
            mounts: paths(&self.mounts),
        }
    }
}

/// A list with commas in between.
fn paths<C: FromIterator<PathBuf>>(listed: &str) -> C {
    listed.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

#[derive(Deserialize)]
struct Volume {
    name: String,
    labels: Option<BTreeMap<String, String>>,
}

impl Volume {
    fn with_owner(self) -> (String, Option<String>) {
        (self.name, self.labels.and_then(|mut labels| labels.remove(PROJECT_LABEL)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_may_hold_anything_and_a_container_several_names() {
        let text = concat!(
            r#"{"id":"aa","names":"web/db,db,b/db","state":"exited","project":"p","folder":"/a \"b\"\n, c","files":"/a/x.yaml,/a/y.yaml","service":"db","#,
            r#""one_off":"True","config_hash":"x","mounts":"web_data,/srv/web"}"#,
            "\n\n",
            r#"{"id":"bb","names":"own","state":"running","project":"p","folder":"","files":"","service":"","one_off":"","config_hash":"","mounts":""}"#,
            "\n"
        );
        let listed: Vec<Listed> = lines_of_json("docker ps", text.as_bytes()).unwrap();
        let found: Vec<Resident> = listed.into_iter().map(Listed::resident).collect();
        let first = Resident {
            id: "aa".to_owned(),
            name: "db".to_owned(),
            project: Some("p".to_owned()),
            folder: Some("/a \"b\"\n, c".into()),
            files: vec!["/a/x.yaml".into(), "/a/y.yaml".into()],
            service: Some("db".to_owned()),
            is_one_off: true,
            has_ended: true,
            mounts: BTreeSet::from(["web_data".into(), "/srv/web".into()]),
        };
        let second = Resident {
            id: "bb".to_owned(),
            name: "own".to_owned(),
            project: None,
            folder: None,
            files: Vec::new(),
            service: None,
            is_one_off: false,
            has_ended: false,
            mounts: BTreeSet::new(),
        };
        assert_eq!(found, [first, second]);
        let error = lines_of_json::<Listed>("docker ps", b"usage: docker").err().unwrap();
        assert!(error.message.contains("docker ps"), "{error}");
    }
}
