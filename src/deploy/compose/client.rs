//! The docker client and the Compose plugin: which programs they are, what they see, and whether Docker answers.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use serde::Deserialize;

use super::explain::{self, Tail};
use crate::command::{Captured, Command, CommandError, Limit};
use crate::deploy::StepError;
use crate::http;
use crate::model::Chance;

/// For one question to Docker: a list, an inspection, the plugins.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);
/// For the question whether Docker answers at all.
const PING_LIMIT: Duration = Duration::from_secs(5);
/// The most that an answer to a question may say: a thousand inspected containers have 8 MiB.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// Where Docker listens unless somebody says otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// What a stack's `.env` may say of orphans is not for Compose to follow: which of them are removed is decided before,
/// and with the first of the two set, Compose refuses `--remove-orphans`. Its environment wins over every file.
const ORPHANS: [(&str, &str); 2] = [("COMPOSE_IGNORE_ORPHANS", "false"), ("COMPOSE_REMOVE_ORPHANS", "false")];
/// The home folder of a process that is told of none.
const ROOTS_HOME: &str = "/root";
/// What the docker client is called unless somebody says otherwise.
const DEFAULT_CLIENT: &str = "docker";

/// How Docker and Compose are called.
pub struct Client {
    docker: PathBuf,
    environment: Vec<(OsString, OsString)>,
    /// The plugin's own executable: called directly it costs half of what it costs through the client.
    plugin: Mutex<Option<PathBuf>>,
}

impl Client {
    /// `environment` is what the programs see.
    pub fn new(docker: &Path, environment: Vec<(OsString, OsString)>) -> Client {
        Client { docker: docker.to_owned(), environment, plugin: Mutex::new(None) }
    }

    /// A call of Compose, without arguments so far; `hidden` names variables that it must not see. `home` is what `~`
    /// stands for in the compose files, where that is not this process's own home folder; Docker's configuration is.
    pub fn compose(&self, hidden: &dyn Fn(&str) -> bool, home: Option<&str>, limit: &Limit) -> Command {
        let orphans = ORPHANS.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let seen = self.environment.iter().filter(|(name, _)| !hidden(&name.to_string_lossy())).cloned();
        let mut environment: Vec<_> = seen.chain(orphans).collect();
        if let Some(home) = home {
            environment.retain(|(name, _)| !matches!(name.to_str(), Some("HOME" | "DOCKER_CONFIG")));
            environment.push(("HOME".into(), home.into()));
            environment.push(("DOCKER_CONFIG".into(), self.config_folder().into()));
        }
        match self.plugin(limit) {
            Some(plugin) => Command::new(plugin, &environment),
            None => Command::new(&self.docker, &environment).arg("compose"),
        }
    }

    /// A call of the docker client, without arguments so far.
    pub fn docker(&self) -> Command {
        Command::new(&self.docker, &self.environment)
    }

    /// Asks the docker client something.
    ///
    /// # Errors
    /// It failed, in one line.
    pub fn ask<A: AsRef<OsStr>>(
        &self,
        what: &str,
        args: impl IntoIterator<Item = A>,
        limit: &Limit,
    ) -> Result<Captured, StepError> {
        let captured = self.answer(what, args, limit)?;
        if captured.status.success() {
            Ok(captured)
        } else {
            Err(explain::failed(what, &Tail::of(&captured.stderr), captured.status))
        }
    }

    /// Asks the docker client something, and leaves its exit code to the caller.
    ///
    /// # Errors
    /// It gave no answer, in one line.
    pub fn answer<A: AsRef<OsStr>>(
        &self,
        what: &str,
        args: impl IntoIterator<Item = A>,
        limit: &Limit,
    ) -> Result<Captured, StepError> {
        // Nobody waits for one that does not listen: cutting a question off harms nothing.
        self.docker()
            .args(args)
            .grace(Duration::ZERO)
            .capture(&limit.at_most(QUESTION_LIMIT), MAX_ANSWER_BYTES)
            .map_err(|error| match error {
                CommandError::TimedOut { .. } if !limit.is_over() => StepError::for_now(format!(
                    "{what} gave no answer within {} s: look at Docker (`systemctl status docker`)",
                    QUESTION_LIMIT.as_secs()
                )),
                error => explain::not_run(what, &error, Chance::CanPass),
            })
    }

    /// Whether Docker answers: a ping on its socket, or the client's own question where Docker is elsewhere.
    ///
    /// # Errors
    /// It does not, in one line that says what to do.
    pub fn available(&self, limit: &Limit) -> Result<(), String> {
        let ping_limit = limit.at_most(PING_LIMIT);
        match self.socket() {
            Some(socket) => ping(&socket, &ping_limit)?,
            None => self
                .ask("docker version", ["version", "--format", "{{.Server.Version}}"], &ping_limit)
                .map(drop)
                .map_err(|error| error.message)?,
        }
        // Known now, the plugin's executable delays no deployment.
        self.plugin(limit);
        Ok(())
    }

    /// The plugin's executable, asked of the client once. Somebody who chose another client wants it to be called for
    /// everything.
    fn plugin(&self, limit: &Limit) -> Option<PathBuf> {
        if self.docker != Path::new(DEFAULT_CLIENT) {
            return None;
        }
        let mut plugin = self.plugin.lock().unwrap_or_else(PoisonError::into_inner);
        if !plugin.as_deref().is_some_and(Path::is_file) {
            *plugin = self.find_plugin(limit);
        }
        plugin.clone()
    }

    fn find_plugin(&self, limit: &Limit) -> Option<PathBuf> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Plugin {
            name: String,
            path: PathBuf,
        }
        // The client names its plugins even while Docker does not answer.
        let answer = self.ask("docker info", ["info", "--format", "{{json .ClientInfo.Plugins}}"], limit).ok()?;
        let plugins: Vec<Plugin> = serde_json::from_slice(&answer.stdout).ok()?;
        plugins
            .into_iter()
            .find(|plugin| plugin.name == "compose")
            .map(|plugin| plugin.path)
            .filter(|path| path.is_file())
    }

    /// The unix socket that the client would use; none when it would use something else.
    pub fn socket(&self) -> Option<PathBuf> {
        if let Some(host) = self.variable("DOCKER_HOST") {
            return host.to_str()?.strip_prefix("unix://").map(PathBuf::from);
        }
        let context = match self.variable("DOCKER_CONTEXT") {
            Some(context) => Some(context.to_str()?.to_owned()),
            None => self.current_context(),
        };
        context.is_none_or(|context| context == "default").then(|| PathBuf::from(DEFAULT_SOCKET))
    }

    /// Where the client has its configuration and the logins to registries.
    fn config_folder(&self) -> PathBuf {
        match self.variable("DOCKER_CONFIG") {
            Some(folder) => PathBuf::from(folder),
            // systemd gives root's services no HOME, and the client looks the home folder up then.
            None => Path::new(self.variable("HOME").unwrap_or(OsStr::new(ROOTS_HOME))).join(".docker"),
        }
    }

    fn current_context(&self) -> Option<String> {
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.config_folder().join("config.json")).ok()?).ok()?;
        config.get("currentContext")?.as_str().filter(|context| !context.is_empty()).map(str::to_owned)
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str())
    }
}

fn ping(socket: &Path, limit: &Limit) -> Result<(), String> {
    let request = http::Request {
        url: "http://localhost/_ping".to_owned(),
        unix_socket: Some(socket.to_owned()),
        max_body_bytes: 64 << 10,
        ..http::Request::default()
    };
    match http::send(&request, limit) {
        Ok(response) if response.status == 200 => Ok(()),
        Ok(response) => Err(format!("Docker answers HTTP {} to a ping on {}", response.status, socket.display())),
        Err(_) if access(socket, Access::WRITE_OK) == Err(Errno::ACCESS) => {
            Err(format!("this user may not talk to Docker on {}: add it to the group `docker`", socket.display()))
        }
        Err(_) if !socket.exists() => Err(format!(
            "Docker does not answer: there is no {}; start it (`systemctl start docker`), or install it",
            socket.display()
        )),
        Err(error) => Err(format!("Docker does not answer: {error}; start it (`systemctl start docker`)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(pairs: &[(&str, &str)]) -> Client {
        Client::new(Path::new("docker"), pairs.iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    #[test]
    fn knows_the_socket_that_the_client_would_use() {
        let home = tempfile::tempdir().unwrap();
        let home_text = home.path().to_str().unwrap();
        assert_eq!(client(&[]).socket(), Some(DEFAULT_SOCKET.into()));
        assert_eq!(client(&[("DOCKER_HOST", "unix:///run/x.sock")]).socket(), Some("/run/x.sock".into()));
        assert_eq!(client(&[("DOCKER_HOST", "tcp://10.0.0.1:2375")]).socket(), None);
        assert_eq!(client(&[("DOCKER_CONTEXT", "default")]).socket(), Some(DEFAULT_SOCKET.into()));
        assert_eq!(client(&[("DOCKER_CONTEXT", "far")]).socket(), None);
        std::fs::create_dir(home.path().join(".docker")).unwrap();
        std::fs::write(home.path().join(".docker/config.json"), r#"{"currentContext": "far"}"#).unwrap();
        assert_eq!(client(&[("HOME", home_text)]).socket(), None);
        assert_eq!(client(&[("DOCKER_CONFIG", "/nowhere"), ("HOME", home_text)]).socket(), Some(DEFAULT_SOCKET.into()));
    }
}
