//! Whether Docker can be used: its program, its Compose plugin, its socket.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::unit::Unit;
use super::{MAX_VERSION_BYTES, VERSION_LIMIT};
use crate::command::{Command, CommandError, Limit};
use crate::config::Settings;
use crate::deploy::compose::client::Client;
use crate::users::{self, User};

/// What the docker program says where it has no Compose plugin: up to 27, and from 28 on.
const NO_PLUGIN: [&str; 2] = ["is not a docker command", "unknown command: docker compose"];

/// What is wrong with program and plugin, with the way out.
pub fn program_problem(settings: &Settings) -> Option<String> {
    let docker = &settings.docker_bin;
    let command = Command::new(docker, &settings.environment.for_children()).args(["compose", "version"]);
    let problem = match command.capture(&Limit::after(VERSION_LIMIT), MAX_VERSION_BYTES) {
        Ok(captured) if captured.status.success() => return None,
        Err(CommandError::NotFound { .. }) => {
            let docker = docker.display();
            format!("{docker} is not installed (or not on PATH): install Docker Engine and its Compose plugin, or set Shiparr_DOCKER_BIN")
        }
        Err(error) => error.to_string(),
        Ok(captured) if NO_PLUGIN.iter().any(|words| captured.stderr.contains(words)) => {
            "the Compose plugin is missing: install docker-compose-plugin (Docker's own packages), docker-compose-v2 (Ubuntu) or docker-compose (Debian 13 and later)".to_owned()
        }
        Ok(captured) => captured.stderr.lines().last().unwrap_or("it failed").to_owned(),
    };
    Some(format!("Docker Compose v2 does not answer, nothing can be deployed on this host: {problem}"))
}

/// What keeps the service's user, or where no service is installed this one, from Docker's socket, with the way out.
pub fn socket_problem(settings: &Settings, unit: Option<&Unit>) -> Option<String> {
    let socket = Client::new(&settings.docker_bin, settings.environment.for_children()).socket()?;
    let shown = socket.display();
    let found = match std::fs::metadata(&socket) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Some(format!(
                "Docker's socket {shown} is not there: start Docker (`sudo systemctl enable --now docker`), or install it"
            ));
        }
        Err(error) => return Some(format!("Docker's socket {shown} cannot be looked at: {error}")),
    };
    let is_refused = match unit {
        Some(unit) => !unit.overrides_permissions && !may_write(&User::named(&unit.user)?, &found),
        None => match UnixStream::connect(&socket) {
            Ok(_) => return None,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => true,
            Err(error) => return Some(format!("Docker does not answer on {shown}: {error}")),
        },
    };
    let user = unit.map_or("$USER", |unit| unit.user.as_str());
    let again = if unit.is_some() { "restart the service" } else { "log in again" };
    is_refused.then(|| {
        let group = users::group_name(found.gid()).unwrap_or_else(|| found.gid().to_string());
        format!("{user} may not use Docker's socket {shown}: run `sudo usermod -aG {group} {user}` and {again}")
    })
}

fn may_write(user: &User, file: &std::fs::Metadata) -> bool {
    let bit = match () {
        () if user.id == 0 => return true,
        () if user.id == file.uid() => 0o200,
        () if user.groups.contains(&file.gid()) => 0o020,
        () => 0o002,
    };
    file.mode() & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_is_for_its_owner_its_group_or_everybody() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let with_mode = |mode| {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            file.as_file().metadata().unwrap()
        };
        let found = with_mode(0o660);
        let user = |id, groups| User { id, groups, home: "/".into() };
        let nobody = user(60_000, vec![60_000]);
        let member = user(60_000, vec![60_000, found.gid()]);
        let owner = user(found.uid(), vec![]);
        assert_eq!([&nobody, &member, &owner].map(|user| may_write(user, &found)), [false, true, true]);
        assert!(may_write(&nobody, &with_mode(0o666)));
        assert!(!may_write(&member, &with_mode(0o600)));
    }

    #[test]
    fn only_a_socket_of_this_host_is_looked_at() {
        let home = tempfile::tempdir().unwrap();
        let problem = |name: &str, value: &str| {
            let pairs = [("HOME", home.path().to_str().unwrap()), (name, value)];
            socket_problem(&Settings::from_environment(&Environment::from_pairs(pairs)).unwrap().0, None)
        };
        let told = problem("DOCKER_HOST", "unix:///nonexistent/docker.sock").unwrap();
        assert!(told.contains("/nonexistent/docker.sock is not there"), "{told}");
        assert_eq!(problem("DOCKER_HOST", "ssh://ann@host"), None);
        assert_eq!(problem("DOCKER_CONTEXT", "far"), None);
        std::fs::create_dir(home.path().join(".docker")).unwrap();
        std::fs::write(home.path().join(".docker/config.json"), r#"{"currentContext": "rootless"}"#).unwrap();
        assert_eq!(problem("TZ", "UTC"), None, "a context has a socket of its own");
    }
}
