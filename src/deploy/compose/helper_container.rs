//! A container of Shiparr's own image, beside its own container, for what replaces that one.
//!
//! It may do what the container may that it stands in for, as the same user and with the same files, and not more; it
//! belongs to no compose project, so that no `up` takes it for a service of its own.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use rustix::process::{getegid, geteuid, getgroups};
use serde::Deserialize;

use super::explain::{self, Tail};
use super::{Compose, OwnContainer};
use crate::command::Limit;
use crate::deploy::handover::Helpers;
use crate::deploy::{Plan, StepError};

/// Names the folder of the job.
const LABEL: &str = "shiparr.handover";
const PROJECT_LABEL: &str = "com.docker.compose.project";
const ONE_OFF_LABEL: &str = "com.docker.compose.oneoff";
/// Between SIGTERM and SIGKILL where a person, or the end of the host, stops it: containers that Compose had stopped are
/// started again in that time.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Digits of a container's id that stand for it in names.
const SHORT_ID: usize = 12;

impl Helpers for Compose {
    fn own_project(&self, limit: &Limit) -> Result<Option<String>, StepError> {
        let Some(own) = self.own_container(limit)? else { return Ok(None) };
        let is_one_off = own.labels.get(ONE_OFF_LABEL).is_some_and(|value| value == "True");
        Ok(own.labels.get(PROJECT_LABEL).filter(|_| !is_one_off).cloned())
    }

    fn own_id(&self, limit: &Limit) -> Result<Option<String>, StepError> {
        Ok(self.own_container(limit)?.map(|own| own.id.clone()))
    }

    fn can_help(&self, limit: &Limit) -> Result<(), StepError> {
        let (Some(own), Some(socket)) = (self.own_container(limit)?, self.client.socket()) else { return Ok(()) };
        if own.has_mounted(&socket) {
            return Ok(());
        }
        Err(StepError::for_good(format!(
            "this stack holds Shiparr itself, and a helper container that brings it up would not reach Docker: add this line \
             to `volumes:` of Shiparr's service, and bring it up again: - {socket}:{socket}",
            socket = socket.display()
        )))
    }

    fn start(&self, folder: &Path, plan: &Plan, limit: &Limit) -> Result<(), StepError> {
        const WHAT: &str = "docker run";
        let Some(own) = self.own_container(limit)? else {
            return Err(StepError::for_now("the container that Shiparr runs in is not known any more"));
        };
        let own_config = self.inspect_own(own, limit)?;
        let program = std::fs::read_link("/proc/self/exe")
            .map_err(|error| StepError::for_good(format!("cannot read /proc/self/exe: {error}")))?;
        let network = self.network(&own_config, plan);
        let mut args: Vec<OsString> = ["run", "-d", "--rm"].map(OsString::from).into();
        args.extend(own_config.rights().into_iter().map(OsString::from));
        args.extend(own_config.tmpfs().map(OsString::from));
        let name = format!(
            "--name=shiparr-handover-{}-{}",
            folder.file_name().unwrap_or_default().to_string_lossy(),
            own.id.get(..SHORT_ID).unwrap_or(&own.id)
        );
        args.extend([name.into(), format!("--label={LABEL}={}", folder.display()).into()]);
        // An image that Compose has built is labelled with its project.
        args.extend([format!("--label={PROJECT_LABEL}=").into(), format!("--volumes-from={}", own.id).into()]);
        args.extend([format!("--network={network}").into(), "--no-healthcheck".into()]);
        args.push(format!("--stop-timeout={}", STOP_TIMEOUT.as_secs()).into());
        args.extend(["--entrypoint".into(), program.into_os_string(), own.image.clone().into()]);
        args.extend(["hand-over".into(), folder.into()]);
        self.client.ask(WHAT, args, limit).map(drop).map_err(|error| StepError {
            message: format!("no helper container for the stack that holds Shiparr itself: {}", error.message),
            ..error
        })
    }

    fn signal(&self, folder: &Path, signal: &str, limit: &Limit) -> Result<(), StepError> {
        const WHAT: &str = "docker kill";
        let filter = format!("label={LABEL}={}", folder.display());
        let listed = self.client.ask("docker ps", ["ps", "-q", "--no-trunc", "--filter", &filter], limit)?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let ids: Vec<&str> = listed.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let signal = format!("--signal={signal}");
        let answer = self.client.answer(WHAT, ["kill", &signal].into_iter().chain(ids), limit)?;
        let has_ended = answer.stderr.contains("not running") || answer.stderr.to_lowercase().contains("no such");
        if answer.status.success() || has_ended {
            return Ok(());
        }
        Err(explain::failed(WHAT, &Tail::of(&answer.stderr), answer.status))
    }
}

impl Compose {
    /// Compose may have to replace the networks of the stack, which it cannot while a helper uses one. Builds may need one
    /// to reach a registry; nothing else does where Docker is reached by its socket.
    fn network(&self, own: &OwnConfig, plan: &Plan) -> String {
        match self.client.socket() {
            Some(_) if !plan.builds => "none".to_owned(),
            Some(_) if own.host_config.network_mode != "host" => "bridge".to_owned(),
            _ => own.host_config.network_mode.clone(),
        }
    }

    fn inspect_own(&self, own: &OwnContainer, limit: &Limit) -> Result<OwnConfig, StepError> {
        const WHAT: &str = "docker inspect";
        let answer = self.client.ask(WHAT, ["inspect", "--type", "container", &own.id], limit)?;
        let unexpected = |why: String| StepError::for_good(format!("the output of {WHAT} is not as expected: {why}"));
        let found: Vec<OwnConfig> =
            serde_json::from_slice(&answer.stdout).map_err(|error| unexpected(error.to_string()))?;
        found.into_iter().next().ok_or_else(|| unexpected("it is empty".to_owned()))
    }
}

/// What the container may do that this process runs in, as `docker inspect` tells of it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OwnConfig {
    host_config: HostConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
    #[serde(default)]
    privileged: bool,
    #[serde(default)]
    readonly_rootfs: bool,
    cap_add: Option<Vec<String>>,
    cap_drop: Option<Vec<String>>,
    security_opt: Option<Vec<String>>,
    #[serde(default)]
    userns_mode: String,
    tmpfs: Option<std::collections::BTreeMap<String, String>>,
}

impl OwnConfig {
    /// What gives a container the user and the rights of this process.
    fn rights(&self) -> Vec<String> {
        const NO_NEW_PRIVILEGES: &str = "no-new-privileges";
        let own = &self.host_config;
        let mut args = vec![format!("--user={}:{}", geteuid().as_raw(), getegid().as_raw())];
        args.extend(getgroups().unwrap_or_default().iter().map(|group| format!("--group-add={}", group.as_raw())));
        args.extend(own.privileged.then(|| "--privileged".to_owned()));
        args.extend(own.readonly_rootfs.then(|| "--read-only".to_owned()));
        args.extend(own.cap_drop.iter().flatten().map(|name| format!("--cap-drop={name}")));
        args.extend(own.cap_add.iter().flatten().map(|name| format!("--cap-add={name}")));
        // Docker tells the content of a seccomp profile and not its file: without it the default one holds.
        let options = own.security_opt.iter().flatten();
        let is_profile = |option: &&String| option.contains('{');
        let has_own_word = |option: &&String| option.starts_with(NO_NEW_PRIVILEGES);
        let others = options.filter(|option| !is_profile(option) && !has_own_word(option));
        args.extend(others.map(|option| format!("--security-opt={option}")));
        args.push(format!("--security-opt={NO_NEW_PRIVILEGES}"));
        args.extend((!own.userns_mode.is_empty()).then(|| format!("--userns={}", own.userns_mode)));
        args
    }

    /// `--volumes-from` does not bring these along.
    fn tmpfs(&self) -> impl Iterator<Item = String> + '_ {
        self.host_config.tmpfs.iter().flatten().map(|(path, options)| match options.is_empty() {
            true => format!("--tmpfs={path}"),
            false => format!("--tmpfs={path}:{options}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_may_do_what_its_container_may_and_gains_nothing() {
        let own: OwnConfig = serde_json::from_str(
            r#"{"Id": "a1", "HostConfig": {"NetworkMode": "stack_default", "Privileged": false, "ReadonlyRootfs": true,
                "CapAdd": null, "CapDrop": ["ALL"], "UsernsMode": "",
                "SecurityOpt": ["no-new-privileges:true", "label=disable", "seccomp={\"defaultAction\": \"x\"}"],
                "Tmpfs": {"/tmp": "size=1m", "/app": ""}}}"#,
        )
        .unwrap();
        let rights = own.rights();
        for expected in
            ["--read-only", "--cap-drop=ALL", "--security-opt=label=disable", "--security-opt=no-new-privileges"]
        {
            assert!(rights.iter().any(|arg| arg == expected), "{expected} is not in {rights:?}");
        }
        assert_eq!(rights.iter().filter(|arg| arg.starts_with("--security-opt")).count(), 2, "{rights:?}");
        assert!(rights[0].starts_with("--user=") && !rights.iter().any(|arg| arg.starts_with("--privileged")));
        assert_eq!(own.tmpfs().collect::<Vec<_>>(), ["--tmpfs=/app", "--tmpfs=/tmp:size=1m"]);
    }

    #[test]
    fn a_helper_is_in_no_network_of_the_stack_where_it_needs_none() {
        let network = |host: &str, mode: &str, builds: bool| {
            let environment = vec![("DOCKER_HOST".into(), host.into())];
            let own: OwnConfig =
                serde_json::from_str(&format!(r#"{{"HostConfig": {{"NetworkMode": "{mode}"}}}}"#)).unwrap();
            let plan = Plan { builds, ..Plan::default() };
            Compose::of_helper(Path::new("docker"), environment).network(&own, &plan)
        };
        assert_eq!(network("unix:///run/docker.sock", "stack_default", false), "none");
        assert_eq!(network("unix:///run/docker.sock", "stack_default", true), "bridge");
        assert_eq!(network("unix:///run/docker.sock", "host", true), "host");
        assert_eq!(network("tcp://proxy:2375", "stack_default", false), "stack_default");
    }
}
