//! A stack in a person's hands: what they need to run on it, in their own terminal, what a deployment runs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::journal::Journal;
use super::journal::known_secrets;
use super::pipeline::Host;
use super::stack::assemble;
use super::variables::Plaintext;
use super::{ByHand, Stack, StepError};
use crate::command::Limit;
use crate::config::Repository;
use crate::model::{Asked, RepositoryId};
use crate::secrets::env_file;

/// The call up to the verb, and what it reads. It holds decrypted values: it goes over the control socket alone, is
/// logged nowhere, and does not print.
#[derive(Serialize, Deserialize)]
pub struct Tools {
    /// The program, by path or name.
    pub program: String,
    /// Its arguments up to the verb.
    pub arguments: Vec<String>,
    /// Its whole environment, without `PWD`.
    pub environment: Vec<(String, String)>,
    /// The folder that it runs in, absolute: the stack's.
    pub folder: PathBuf,
    /// The compose files, absolute.
    pub files: Vec<PathBuf>,
    /// The argument in whose place a file with `dotenv` goes; none: there are no variables.
    pub variables_file: Option<String>,
    /// The variables for interpolation, in the order of their names.
    pub variables: Vec<Variable>,
    /// All of them, decrypted, as an env file.
    pub dotenv: String,
}

/// A variable, without its value.
#[derive(Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The file that its value is from, as the configuration names it, or `environment`.
    pub from: String,
}

/// A stack that is ready to be worked on.
pub struct Prepared {
    /// What that takes.
    pub tools: Tools,
    /// What lies in plain text for it, for `env_file:` in the compose files; dropped, it is gone.
    pub plaintext: Plaintext,
}

/// Makes a stack ready to be worked on by hand, as it lies in its tree. Nobody else may be changing it meanwhile, and
/// nobody else prepares the same one until this one is dropped.
///
/// # Errors
/// Whatever keeps its variables from being read and decrypted, or its files from being found, in one line.
pub fn prepare(host: &Host, repository: &Repository, id: RepositoryId, limit: &Limit) -> Result<Prepared, StepError> {
    let about = format!("{} by hand", repository.name);
    let mut journal = Journal::of_daemon(about, known_secrets(repository, &host.settings));
    // Those of deployments are called after their ids.
    let runtime_name = format!("by-hand-{id}");
    let (stack, plaintext) =
        assemble(repository, &Asked::default(), &host.settings, &runtime_name, limit, &mut journal)?;
    let tools = tools(&stack, &plaintext, &host.driver.by_hand(&stack, limit)?)?;
    Ok(Prepared { tools, plaintext })
}

fn tools(stack: &Stack, plaintext: &Plaintext, by_hand: &ByHand) -> Result<Tools, StepError> {
    let ByHand { command, files } = by_hand;
    let pair = |(name, value): &(_, _)| Ok((text(name)?, text(value)?));
    let variable = |name: &String| Variable {
        name: name.clone(),
        from: plaintext.origins().get(name).cloned().unwrap_or_default(),
    };
    Ok(Tools {
        program: text(command.program())?,
        arguments: command.arguments().iter().map(text).collect::<Result<_, _>>()?,
        environment: command.environment().iter().map(pair).collect::<Result<_, StepError>>()?,
        folder: stack.folder.clone(),
        files: files.clone(),
        variables_file: stack.variables_file.as_deref().map(Path::as_os_str).map(text).transpose()?,
        variables: stack.variables.keys().map(variable).collect(),
        dotenv: env_file::render(stack.variables.iter().map(|(name, value)| (name.as_str(), value))),
    })
}

/// It goes over the wire as JSON, which is text.
fn text(value: impl AsRef<OsStr>) -> Result<String, StepError> {
    let value = value.as_ref();
    value.to_str().map(str::to_owned).ok_or_else(|| {
        StepError::for_good(format!("{} is not UTF-8, and cannot be handed over: rename it", value.to_string_lossy()))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::command::Command;
    use crate::config::project::{Build, Pull, UnsetVariables};
    use crate::secrets::Secret;

    fn stack() -> Stack {
        Stack {
            root: "/srv/web".into(),
            folder: "/srv/web/docker".into(),
            files: Vec::new(),
            project: None,
            default_project: "web".to_owned(),
            profiles: Vec::new(),
            variables_file: Some("/run/x/1-variables.env".into()),
            variables: BTreeMap::from([("KEY".to_owned(), Secret::new("pa$word"))]),
            unset_variables: UnsetVariables::Fail,
            build: Build::Auto,
            pull: Pull::Missing,
            asked: Asked::default(),
        }
    }

    #[test]
    fn values_are_in_the_env_file_and_nowhere_else() {
        let environment = [("PATH".into(), "/bin".into())];
        let command = Command::new("docker", &environment).args(["compose", "--env-file", "/run/x/1-variables.env"]);
        let by_hand = ByHand { command, files: vec!["/srv/web/docker/compose.yaml".into()] };
        let tools = tools(&stack(), &Plaintext::default(), &by_hand).unwrap();
        assert_eq!(tools.dotenv, "KEY=\"pa\\$word\"\n");
        assert_eq!(tools.environment, [("PATH".to_owned(), "/bin".to_owned())]);
        assert_eq!(tools.variables_file.as_deref(), tools.arguments.last().map(String::as_str));
        assert_eq!(serde_json::to_string(&tools).unwrap().matches("word").count(), 1);
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let odd = OsString::from_vec(vec![b'a', 0xff]);
        let by_hand = ByHand { command: Command::new("docker", &[]).arg(odd), files: Vec::new() };
        let error = tools(&stack(), &Plaintext::default(), &by_hand).err().unwrap();
        assert!(error.message.contains("not UTF-8"), "{error}");
    }
}
