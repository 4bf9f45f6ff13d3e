//! Service settings, from the environment (spec section 2).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Environment;
use super::access::{Auth, Network, PublicUrl, judged, key_problem, url_problem};
use super::variables::{DEBUG_HANG, MAX_HISTORY, Reading, default_runtime_path, is_set, password_problem};
use crate::http::Proxies;
use crate::secrets::Secret;

/// The control socket's name.
pub const CONTROL_SOCKET: &str = "shiparr.sock";

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

/// Everything that `shiparr run` takes from its environment, validated. Every path is absolute.
#[derive(Clone)]
pub struct Settings {
    /// TCP port; 0 for any that is free.
    pub port: u16,
    /// Address or name to bind; an IPv6 address without brackets.
    pub host: String,
    /// Folder of project files.
    pub config_path: PathBuf,
    /// Database, object stores, default checkouts.
    pub data_path: PathBuf,
    /// Decrypted secrets, and what else only this user may see. Whether it is in memory: [`is_in_memory`].
    pub runtime_path: PathBuf,
    /// An env_logger filter.
    pub log_filter: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// None while auth is off.
    pub auth: Option<Auth>,
    /// Whether the widget routes are open while auth is on.
    pub widget_public: bool,
    /// More names that a request's `Host` may carry, in lower case, without a port.
    pub allowed_hosts: Vec<String>,
    /// The address that people see, where a proxy stands in front.
    pub public_url: Option<PublicUrl>,
    /// Proxies whose word for a client's address counts.
    pub trusted_proxies: Vec<Network>,
    /// Time that a deployment may take unless the repository says otherwise.
    pub deploy_timeout: Duration,
    /// Time that a running deployment may go on after SIGTERM.
    pub shutdown_timeout: Duration,
    /// `docker image prune -f` after each success.
    pub enable_image_prune: bool,
    /// Deployments kept per repository.
    pub history_limit: u32,
    /// Known-hosts files of ssh remotes, in order. Those of the default need not exist: one that is made later counts
    /// at once.
    pub ssh_known_hosts: Vec<PathBuf>,
    /// The docker client, by absolute path or by name.
    pub docker_bin: PathBuf,
    /// sops, likewise.
    pub sops_bin: PathBuf,
    /// shoutrrr, likewise.
    pub shoutrrr_bin: PathBuf,
    /// Reload only on SIGHUP.
    pub disable_config_auto_reload: bool,
    /// The thread that is made to hang, for tests of what watches threads (`Shiparr_DEBUG_HANG`).
    pub debug_hang: Option<String>,
    /// Used for Git and HTTP, handed to children.
    pub proxies: Proxies,
    /// This machine's name.
    pub hostname: String,
    /// Where everything else is looked up.
    pub environment: Arc<Environment>,
}

/// Everything that is wrong with the environment: one line a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// Each names the variable, the problem and what is accepted.
    pub problems: Vec<String>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for SettingsError {}

impl Settings {
    /// Reads every setting; the strings beside the settings are warnings, one line each.
    ///
    /// # Errors
    /// All values that cannot be used, at once.
    pub fn from_environment(environment: &Environment) -> Result<(Settings, Vec<String>), SettingsError> {
        let mut read = Reading::new(environment);
        let config_path = read.path("CONFIG_PATH").unwrap_or_else(|| PathBuf::from("/config/projects"));
        let log_format = read.log_format();
        let settings = Settings {
            port: read.number("PORT", 8080, 0, u64::from(u16::MAX), "").try_into().unwrap_or(u16::MAX),
            host: read.host(),
            data_path: read.path("DATA_PATH").unwrap_or_else(|| PathBuf::from("/data")),
            runtime_path: read.path("RUNTIME_PATH").unwrap_or_else(|| default_runtime_path(environment)),
            log_filter: read.log_filter(),
            log_format,
            auth: read.auth(),
            widget_public: read.boolean("Shiparr_WIDGET_PUBLIC"),
            allowed_hosts: read.allowed_hosts(),
            public_url: read.public_url(),
            trusted_proxies: read.trusted_proxies(),
            deploy_timeout: read.seconds("DEPLOY_TIMEOUT", 900, 1),
            shutdown_timeout: read.seconds("SHUTDOWN_TIMEOUT", 60, 0),
            enable_image_prune: read.boolean("Shiparr_ENABLE_IMAGE_PRUNE"),
            history_limit: read.number("HISTORY_LIMIT", 200, 1, MAX_HISTORY, "").try_into().unwrap_or(u32::MAX),
            ssh_known_hosts: read.ssh_known_hosts(&config_path),
            docker_bin: read.program("DOCKER_BIN", "docker"),
            sops_bin: read.program("SOPS_BIN", "sops"),
            shoutrrr_bin: read.program("SHOUTRRR_BIN", "shoutrrr"),
            disable_config_auto_reload: read.boolean("DISABLE_CONFIG_AUTO_RELOAD"),
            debug_hang: read.text(DEBUG_HANG).map(|(_, thread)| thread.to_owned()),
            proxies: read.proxies(),
            hostname: hostname(),
            config_path,
            environment: Arc::new(environment.clone()),
        };
        read.heartbeat_url();
        read.doubles();
        read.unknown_names();
        if read.problems.is_empty() {
            Ok((settings, read.warnings))
        } else {
            Err(SettingsError { problems: read.problems })
        }
    }

    /// `Shiparr_AUTH_PASSWORD`, as it is now: plain text, or an argon2 or bcrypt hash.
    ///
    /// # Errors
    /// A file behind it that cannot be read, or holds by now what would be refused at a start, in one line.
    pub fn password(&self) -> Result<Option<Secret>, String> {
        self.judged_secret("Shiparr_AUTH_PASSWORD", password_problem)
    }

    /// `Shiparr_VIEWER_PASSWORD`, likewise.
    ///
    /// # Errors
    /// As those of [`Settings::password`].
    pub fn viewer_password(&self) -> Result<Option<Secret>, String> {
        self.judged_secret("Shiparr_VIEWER_PASSWORD", password_problem)
    }

    /// `Shiparr_API_KEY`, as it is now.
    ///
    /// # Errors
    /// As those of [`Settings::password`].
    pub fn api_key(&self) -> Result<Option<Secret>, String> {
        self.judged_secret("Shiparr_API_KEY", key_problem)
    }

    /// `Shiparr_HEARTBEAT_URL`, as it is now: its path or query holds a token.
    ///
    /// # Errors
    /// As those of [`Settings::password`].
    pub fn heartbeat_url(&self) -> Result<Option<Secret>, String> {
        self.judged_secret("Shiparr_HEARTBEAT_URL", url_problem)
    }

    fn judged_secret(&self, name: &str, problem: fn(&str) -> Option<&'static str>) -> Result<Option<Secret>, String> {
        let found = self.environment.secret(name)?;
        match found.as_ref().and_then(|secret| judged(name, secret, problem)) {
            Some(problem) => Err(problem),
            None => Ok(found),
        }
    }

    /// The secret that a provider's webhooks are signed with, as it is now: for `gitea` `GITEA_WEBHOOK_SECRET` where it
    /// is set, else `Shiparr_WEBHOOK_SECRET`.
    ///
    /// # Errors
    /// A file behind it that cannot be read, in one line.
    pub fn webhook_secret(&self, provider: &str) -> Result<Option<Secret>, String> {
        if provider == "gitea" {
            if let Some(secret) = self.environment.secret("GITEA_WEBHOOK_SECRET")? {
                return Ok(Some(secret));
            }
        }
        self.environment.secret("Shiparr_WEBHOOK_SECRET")
    }

    /// Where the control socket is made, and looked for; see [`control_socket`].
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.runtime_path, &self.environment)
    }

    /// Those of `Shiparr_HOST` and `Shiparr_PORT` that somebody set: they are unused where sockets are handed over.
    pub fn bind_settings(&self) -> Vec<&'static str> {
        let set = ["HOST", "PORT"].into_iter().zip(["Shiparr_HOST", "Shiparr_PORT"]);
        set.filter(|(name, _)| is_set(&self.environment, name)).map(|(_, name)| name).collect()
    }

    /// The folder of default checkouts, `DATA/deployments`.
    pub fn deployments_path(&self) -> PathBuf {
        self.data_path.join("deployments")
    }
}

/// What the verbs that ask a daemon take from the environment. A setting of the daemon that cannot be used does not
/// keep them from asking it.
pub struct ClientSettings {
    /// Where the control socket may be; see [`control_socket`].
    pub control_socket: PathBuf,
    /// Used for `--url`.
    pub proxies: Proxies,
}

impl ClientSettings {
    /// Reads these settings alone.
    pub fn from_environment(environment: &Environment) -> ClientSettings {
        let mut read = Reading::new(environment);
        let runtime_path = read.path("RUNTIME_PATH").unwrap_or_else(|| default_runtime_path(environment));
        ClientSettings { control_socket: control_socket(&runtime_path, environment), proxies: read.proxies() }
    }
}

/// `shiparr.sock` in the runtime folder; beside it where that is the folder `secrets` which systemd made
/// (`RUNTIME_DIRECTORY`): that one is for this user alone, and the socket is for a group.
fn control_socket(runtime_path: &Path, environment: &Environment) -> PathBuf {
    let is_made_by_systemd = environment.get("RUNTIME_DIRECTORY").is_some_and(|made| Path::new(made) == runtime_path);
    let folder = match runtime_path.parent() {
        Some(parent) if is_made_by_systemd && runtime_path.ends_with("secrets") => parent,
        _ => runtime_path,
    };
    folder.join(CONTROL_SOCKET)
}

/// How the log lines of a daemon in this environment look, whatever else may be wrong with its settings.
pub fn log_format(environment: &Environment) -> LogFormat {
    Reading::new(environment).log_format()
}

/// Whether a folder (or, before it is made, the one that it will be in) is on a file system in memory.
///
/// # Errors
/// The system's.
pub fn is_in_memory(folder: &Path) -> io::Result<bool> {
    /// See statfs(2).
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    const RAMFS_MAGIC: u32 = 0x8584_58f6;
    let mut folder = folder;
    loop {
        match rustix::fs::statfs(folder) {
            // The field's width differs between architectures; the magic numbers fit in 32 bits.
            Ok(found) => return Ok(matches!(found.f_type as u32, TMPFS_MAGIC | RAMFS_MAGIC)),
            Err(rustix::io::Errno::NOENT) => folder = folder.parent().ok_or(rustix::io::Errno::NOENT)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// This machine's name, as the kernel knows it.
pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn read(pairs: Pairs<'_>) -> Result<(Settings, Vec<String>), SettingsError> {
        Settings::from_environment(&Environment::from_pairs(pairs.iter().copied()))
    }

    fn good(pairs: Pairs<'_>) -> Settings {
        let (settings, warnings) = read(pairs).expect("good settings");
        assert!(warnings.is_empty(), "{warnings:?}");
        settings
    }

    fn warnings(pairs: Pairs<'_>) -> Vec<String> {
        read(pairs).expect("good settings").1
    }

    fn problems(pairs: Pairs<'_>) -> Vec<String> {
        read(pairs).err().expect("bad settings").problems
    }

    #[test]
    fn defaults_are_those_of_the_specification() {
        let settings = good(&[("HOME", "/root"), ("Shiparr_PORT", ""), ("RUNTIME_DIRECTORY", "/run/one:/run/two")]);
        assert_eq!((settings.port, settings.host.as_str()), (8080, "127.0.0.1"));
        assert_eq!(settings.config_path, Path::new("/config/projects"));
        assert_eq!(settings.data_path, Path::new("/data"));
        assert_eq!(settings.deployments_path(), Path::new("/data/deployments"));
        assert_eq!(settings.runtime_path, Path::new("/run/one"));
        assert_eq!(settings.log_filter, "info");
        assert!(settings.auth.is_none() && settings.allowed_hosts.is_empty() && !settings.widget_public);
        assert!(settings.public_url.is_none() && settings.trusted_proxies.is_empty());
        assert_eq!(
            (settings.deploy_timeout, settings.shutdown_timeout),
            (Duration::from_secs(900), Duration::from_secs(60))
        );
        assert!(!settings.enable_image_prune && !settings.disable_config_auto_reload);
        assert_eq!(settings.history_limit, 200);
        let known_hosts = ["/config/known_hosts", "/root/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"];
        assert_eq!(settings.ssh_known_hosts, known_hosts.map(PathBuf::from));
        let programs = [&settings.docker_bin, &settings.sops_bin, &settings.shoutrrr_bin];
        assert_eq!(programs, [Path::new("docker"), Path::new("sops"), Path::new("shoutrrr")]);
        assert!(settings.proxies.https.is_none() && settings.proxies.http.is_none() && settings.proxies.none.is_none());
        assert!(!settings.hostname.is_empty());
        assert_eq!(
            [settings.password(), settings.viewer_password(), settings.api_key(), settings.heartbeat_url()],
            [Ok(None), Ok(None), Ok(None), Ok(None)]
        );
    }

    #[test]
    fn every_setting_is_read_with_either_prefix() {
        for prefix in ["Shiparr_", "SHIPARR_"] {
            let named = |name: &str| format!("{prefix}{name}");
            let pairs = [
                (named("PORT"), "0"),
                (named("HOST"), "[::1]"),
                (named("CONFIG_PATH"), "/etc/shiparr/projects/"),
                (named("DATA_PATH"), "data"),
                (named("RUNTIME_PATH"), "/dev/shm/shiparr"),
                (named("LOG_LEVEL"), "WARNING"),
                (named("LOG_FORMAT"), "JSON"),
                (named("AUTH_ENABLED"), "True"),
                (named("AUTH_USERNAME"), "anna"),
                (named("AUTH_PASSWORD"), "correct horse"),
                (named("VIEWER_USERNAME"), "otto"),
                (named("VIEWER_PASSWORD"), "look around"),
                (named("API_KEY"), "0123456789abcdef"),
                (named("WIDGET_PUBLIC"), "true"),
                (named("ALLOWED_HOSTS"), "Shiparr.example.com, nas"),
                (named("PUBLIC_URL"), "https://host.example.com/shiparr/"),
                (named("TRUSTED_PROXIES"), "127.0.0.1 172.16.0.0/12, ::1"),
                (named("WEBHOOK_SECRET"), "shared"),
                (named("HEARTBEAT_URL"), "https://hc-ping.com/token"),
                (named("DEPLOY_TIMEOUT"), "1"),
                (named("SHUTDOWN_TIMEOUT"), "0"),
                (named("ENABLE_IMAGE_PRUNE"), "1"),
                (named("HISTORY_LIMIT"), "7"),
                (named("SSH_KNOWN_HOSTS"), "/a:/b"),
                (named("DOCKER_BIN"), "podman"),
                (named("SOPS_BIN"), "./bin/sops"),
                (named("SHOUTRRR_BIN"), "/opt/shoutrrr"),
                ("DISABLE_CONFIG_AUTO_RELOAD".to_owned(), "yes"),
                ("https_proxy".to_owned(), "http://lower"),
                ("HTTP_PROXY".to_owned(), "http://upper"),
                ("http_proxy".to_owned(), "http://ignored"),
                ("NO_PROXY".to_owned(), "localhost"),
                ("GITEA_WEBHOOK_SECRET".to_owned(), "for gitea"),
            ];
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            let settings = good(&pairs);
            assert_eq!((settings.port, settings.host.as_str()), (0, "::1"));
            assert_eq!(settings.config_path, Path::new("/etc/shiparr/projects"));
            assert_eq!(settings.data_path, std::path::absolute("data").expect("a path"));
            assert_eq!(settings.runtime_path, Path::new("/dev/shm/shiparr"));
            assert_eq!((settings.log_filter.as_str(), settings.log_format), ("warn", LogFormat::Json));
            assert_eq!(settings.auth, Some(Auth { username: "anna".to_owned(), viewer: "otto".to_owned() }));
            assert_eq!(settings.password(), Ok(Some(Secret::new("correct horse"))));
            assert_eq!(settings.viewer_password(), Ok(Some(Secret::new("look around"))));
            assert_eq!(settings.api_key(), Ok(Some(Secret::new("0123456789abcdef"))));
            assert_eq!(settings.heartbeat_url(), Ok(Some(Secret::new("https://hc-ping.com/token"))));
            assert!(settings.widget_public);
            assert_eq!(settings.public_url.as_ref().map(PublicUrl::path), Some("/shiparr"));
            assert_eq!(settings.trusted_proxies.len(), 3);
            assert_eq!(settings.webhook_secret("github"), Ok(Some(Secret::new("shared"))));
            assert_eq!(settings.webhook_secret("gitea"), Ok(Some(Secret::new("for gitea"))));
            assert_eq!(settings.allowed_hosts, ["shiparr.example.com", "nas"]);
            assert_eq!((settings.deploy_timeout, settings.shutdown_timeout), (Duration::from_secs(1), Duration::ZERO));
            assert!(settings.enable_image_prune && settings.disable_config_auto_reload);
            assert_eq!(settings.history_limit, 7);
            assert_eq!(settings.ssh_known_hosts, ["/a", "/b"].map(PathBuf::from));
            assert_eq!(settings.docker_bin, Path::new("podman"));
            assert_eq!(settings.sops_bin, std::path::absolute("bin/sops").expect("a path"));
            assert_eq!(settings.shoutrrr_bin, Path::new("/opt/shoutrrr"));
            assert_eq!(settings.proxies.https.as_deref(), Some("http://lower"));
            assert_eq!(settings.proxies.http.as_deref(), Some("http://upper"));
            assert_eq!(settings.proxies.none.as_deref(), Some("localhost"));
        }
    }

    #[test]
    fn all_problems_are_told_at_once_and_no_secret_is() {
        let problems = problems(&[
            ("Shiparr_PORT", "65536"),
            ("Shiparr_HOST", "127.0.0.1:80"),
            ("Shiparr_LOG_LEVEL", "LOUD"),
            ("Shiparr_LOG_FORMAT", "xml"),
            ("Shiparr_AUTH_ENABLED", "true"),
            ("Shiparr_AUTH_USERNAME", "a:b"),
            ("Shiparr_AUTH_PASSWORD", "changeme"),
            ("Shiparr_VIEWER_USERNAME", "a:b"),
            ("Shiparr_VIEWER_PASSWORD", "changeme"),
            ("Shiparr_API_KEY", "short"),
            ("Shiparr_HEARTBEAT_URL", "https://me:hush@hc-ping.com/token"),
            ("Shiparr_WIDGET_PUBLIC", "perhaps"),
            ("Shiparr_ALLOWED_HOSTS", "https://x.example.com"),
            ("Shiparr_PUBLIC_URL", "x.example.com"),
            ("Shiparr_TRUSTED_PROXIES", "::1, proxy"),
            ("SHIPARR_DEPLOY_TIMEOUT", "0"),
            ("Shiparr_SHUTDOWN_TIMEOUT", "1m"),
            ("Shiparr_ENABLE_IMAGE_PRUNE", "perhaps"),
            ("Shiparr_HISTORY_LIMIT", "0"),
            ("DISABLE_CONFIG_AUTO_RELOAD", "perhaps"),
        ]);
        let expected = [
            "Shiparr_PORT: `65536` is not valid; expected a whole number from 0 to 65535",
            "Shiparr_HOST: `127.0.0.1:80` is not valid; expected an IP address or a host name, without a port (that is Shiparr_PORT)",
            "Shiparr_LOG_LEVEL: `LOUD` is not valid; expected ERROR, WARNING, INFO, DEBUG, TRACE, or an env_logger filter such as \
             info,shiparr::deploy=debug",
            "Shiparr_AUTH_USERNAME: a colon or a control character cannot be sent in Basic Auth",
            "Shiparr_AUTH_PASSWORD: `changeme` is not accepted; choose a password of your own",
            "Shiparr_VIEWER_USERNAME: a colon or a control character cannot be sent in Basic Auth",
            "Shiparr_VIEWER_USERNAME: `a:b` is the name of Shiparr_AUTH_USERNAME too; choose another one",
            "Shiparr_VIEWER_PASSWORD: `changeme` is not accepted; choose a password of your own",
            "Shiparr_API_KEY: is shorter than 16 characters; `openssl rand -hex 24` makes a good one",
            "Shiparr_HEARTBEAT_URL: holds a user or a password, which nobody sends; only its path and query may be secret",
            "Shiparr_WIDGET_PUBLIC: `perhaps` is not valid; expected true or false",
            "Shiparr_PUBLIC_URL: `x.example.com` is not valid; expected the address that people open, as in \
             `https://host.example.com/shiparr`",
            "Shiparr_TRUSTED_PROXIES: `proxy` is not valid; expected addresses and networks as in `127.0.0.1, 172.16.0.0/12, fd00::/8`",
            "Shiparr_ALLOWED_HOSTS: `https://x.example.com` is not a host name; expected names as in `shiparr.example.com`, without \
             scheme and port, separated by commas",
            "SHIPARR_DEPLOY_TIMEOUT: `0` is not valid; expected a whole number of seconds from 1 to 31536000",
            "Shiparr_SHUTDOWN_TIMEOUT: `1m` is not valid; expected a whole number of seconds from 0 to 31536000",
            "Shiparr_ENABLE_IMAGE_PRUNE: `perhaps` is not valid; expected true or false",
            "Shiparr_HISTORY_LIMIT: `0` is not valid; expected a whole number from 1 to 1000000",
            "DISABLE_CONFIG_AUTO_RELOAD: `perhaps` is not valid; expected true or false",
            "Shiparr_LOG_FORMAT: `xml` is not valid; expected auto, text, json or journal",
        ];
        for line in expected {
            assert!(problems.iter().any(|problem| problem == line), "{line}\n{problems:#?}");
        }
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        let error = SettingsError { problems };
        assert_eq!(error.to_string().lines().count(), expected.len());
    }

    #[test]
    fn auth_needs_a_password_that_can_be_used() {
        let enabled = ("Shiparr_AUTH_ENABLED", "true");
        assert!(problems(&[enabled])[0].starts_with("Shiparr_AUTH_PASSWORD: not set"));
        assert!(
            problems(&[enabled, ("Shiparr_AUTH_PASSWORD_FILE", "/does/not/exist")])[0].contains("cannot read the file")
        );
        for damaged in ["$argon2id$v=19$m=19456", "$2b$12$short", "$2y$"] {
            let found = problems(&[enabled, ("Shiparr_AUTH_PASSWORD", damaged)]);
            assert!(found[0].contains("cannot be read as one") && !found[0].contains(damaged), "{found:?}");
        }
        for hash in [
            "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "$2b$04$EGdrhbKUv8Oc9vGiXX0HQOxSg445d458Muh7DAHskb6QbtCvdxcie",
            "$money",
        ] {
            assert!(
                good(&[enabled, ("Shiparr_AUTH_PASSWORD", hash), ("Shiparr_VIEWER_PASSWORD", hash)]).auth.is_some()
            );
        }
        let named = |viewer| [enabled, ("Shiparr_AUTH_PASSWORD", "p"), ("Shiparr_AUTH_USERNAME", viewer)];
        assert!(good(&named("viewer")).auth.is_some(), "nobody is the viewer without a password");
        let [a, b, c] = named("viewer");
        assert!(
            problems(&[a, b, c, ("Shiparr_VIEWER_PASSWORD", "q")])[0].starts_with("Shiparr_VIEWER_USERNAME: `viewer`")
        );
    }

    #[test]
    fn warnings_name_the_way_out() {
        assert_eq!(
            warnings(&[("Shiparr_PORT", "1"), ("SHIPARR_PORT", "2")]),
            ["SHIPARR_PORT: not used, because Shiparr_PORT is set too; remove one of them"]
        );
        assert_eq!(
            warnings(&[
                ("Shiparr_LOGLEVEL", "x"),
                ("shiparr_port", "1"),
                ("SHIPARR_GITHUB_TOKEN", "t"),
                ("Shiparr_ZZZ", "1")
            ]),
            [
                "SHIPARR_GITHUB_TOKEN: no such setting; did you mean `GITHUB_TOKEN`?",
                "Shiparr_LOGLEVEL: no such setting; did you mean `Shiparr_LOG_LEVEL`?",
                "Shiparr_ZZZ: no such setting",
                "shiparr_port: no such setting; did you mean `Shiparr_PORT`?",
            ]
        );
        let everybody = warnings(&[("Shiparr_TRUSTED_PROXIES", "127.0.0.1, ::/0")]);
        assert!(
            everybody.len() == 1 && everybody[0].starts_with("Shiparr_TRUSTED_PROXIES: with `::/0`"),
            "{everybody:?}"
        );
        let client = [("SHIPARR_URL", "http://x"), ("SHIPARR_USERNAME", "u"), ("SHIPARR_PASSWORD", "p")];
        assert!(warnings(&client).is_empty());
        assert_eq!(
            warnings(&[("Shiparr_AUTH_PASSWORD", "p"), ("Shiparr_VIEWER_PASSWORD", "p"), ("Shiparr_API_KEY", "p"),]),
            ["AUTH_PASSWORD", "VIEWER_PASSWORD", "API_KEY"].map(|name| format!(
                "Shiparr_{name}: is set, but nobody is asked for it while Shiparr_AUTH_ENABLED is false"
            ))
        );
    }

    #[test]
    fn the_control_socket_is_in_the_runtime_folder_or_beside_the_secret_one_of_systemd() {
        for (pairs, expected) in [
            (&[][..], "/run/shiparr/shiparr.sock"),
            (&[("RUNTIME_DIRECTORY", "/run/shiparr")], "/run/shiparr/shiparr.sock"),
            (&[("RUNTIME_DIRECTORY", "/run/shiparr/secrets")], "/run/shiparr/shiparr.sock"),
            (&[("RUNTIME_DIRECTORY", "/run/user/7/shiparr/secrets")], "/run/user/7/shiparr/shiparr.sock"),
            (&[("RUNTIME_DIRECTORY", "/run/a/secrets:/run/b")], "/run/a/secrets/shiparr.sock"),
            (&[("Shiparr_RUNTIME_PATH", "/run/shiparr/secrets")], "/run/shiparr/secrets/shiparr.sock"),
            (
                &[("Shiparr_RUNTIME_PATH", "/run/mine"), ("RUNTIME_DIRECTORY", "/run/shiparr/secrets")],
                "/run/mine/shiparr.sock",
            ),
        ] {
            let environment = Environment::from_pairs(pairs.iter().copied());
            let client = ClientSettings::from_environment(&environment).control_socket;
            assert_eq!(good(pairs).control_socket(), Path::new(expected), "{pairs:?}");
            assert_eq!(client, Path::new(expected), "{pairs:?}");
        }
    }

    #[test]
    fn settings_that_handed_over_sockets_make_useless_are_known() {
        assert_eq!(good(&[]).bind_settings(), [""; 0]);
        assert_eq!(
            good(&[("SHIPARR_PORT", "80"), ("Shiparr_HOST", "::1")]).bind_settings(),
            ["Shiparr_HOST", "Shiparr_PORT"]
        );
        let hook = good(&[("Shiparr_DEBUG_HANG", "worker")]);
        assert_eq!((hook.debug_hang.as_deref(), hook.bind_settings().len()), (Some("worker"), 0));
    }

    #[test]
    fn the_format_is_that_of_the_journal_only_where_the_output_goes_there() {
        let stat = rustix::fs::fstat(io::stderr()).expect("standard error");
        let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert_eq!(good(&[("JOURNAL_STREAM", &stream)]).log_format, LogFormat::Journal);
        assert_eq!(good(&[("JOURNAL_STREAM", &stream), ("Shiparr_LOG_FORMAT", "text")]).log_format, LogFormat::Text);
        assert_eq!(good(&[("JOURNAL_STREAM", "1:1"), ("INVOCATION_ID", "x")]).log_format, LogFormat::Text);
    }

    #[test]
    fn a_file_system_in_memory_is_recognized_before_the_folder_is_made() {
        assert!(is_in_memory(Path::new("/dev/shm/shiparr-not-made/yet")).expect("a file system"));
        assert!(!is_in_memory(Path::new("/proc")).expect("a file system"));
        assert!(is_in_memory(Path::new("/proc/self/status/below-a-file")).is_err());
    }
}
