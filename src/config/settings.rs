//! Service settings, from the environment (spec section 2).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Environment;
use crate::http::Proxies;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
    /// Syslog priority prefix, for the journal.
    Journal,
}

/// Basic Auth, where it is enabled. The password is looked up at each use: [`Settings::password`].
#[derive(Clone, Debug)]
pub struct Auth {
    /// The user's name.
    pub username: String,
}

/// Everything that `shiparr run` takes from its environment, validated.
#[derive(Clone)]
pub struct Settings {
    /// TCP port.
    pub port: u16,
    /// Address or name to bind.
    pub host: String,
    /// Folder of project files.
    pub config_path: PathBuf,
    /// Database, object stores, default checkouts.
    pub data_path: PathBuf,
    /// Decrypted secrets and the control socket.
    pub runtime_path: PathBuf,
    /// An env_logger filter.
    pub log_filter: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// None while auth is off.
    pub auth: Option<Auth>,
    /// More names that a request's `Host` may carry.
    pub allowed_hosts: Vec<String>,
    /// Time that a deployment may take unless the repository says otherwise.
    pub deploy_timeout: Duration,
    /// Time that a running deployment may go on after SIGTERM.
    pub shutdown_timeout: Duration,
    /// `docker image prune -f` after each success.
    pub enable_image_prune: bool,
    /// Deployments kept per repository.
    pub history_limit: u32,
    /// Known-hosts files of ssh remotes, those that exist or were named.
    pub ssh_known_hosts: Vec<PathBuf>,
    /// The docker client.
    pub docker_bin: PathBuf,
    /// sops.
    pub sops_bin: PathBuf,
    /// shoutrrr.
    pub shoutrrr_bin: PathBuf,
    /// Reload only on SIGHUP.
    pub disable_config_auto_reload: bool,
    /// Used for Git and HTTP, handed to children.
    pub proxies: Proxies,
    /// This machine's name.
    pub hostname: String,
    /// Where everything else is looked up.
    pub environment: Arc<Environment>,
}
