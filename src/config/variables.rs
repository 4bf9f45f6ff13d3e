//! The variables of spec section 2, each read as its type; everything that is wrong is collected on the way.

use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::Environment;
use super::settings::LogFormat;
use super::suggest::did_you_mean;
use crate::http::Proxies;

/// No time that somebody configures is longer than a year.
pub(super) const MAX_SECONDS: u64 = 365 * 24 * 60 * 60;
/// Deployments kept per repository, at most.
pub(super) const MAX_HISTORY: u64 = 1_000_000;

/// Every variable of spec section 2 that carries the prefix, without it.
pub(super) const NAMES: &[&str] = &[
    "PORT",
    "HOST",
    "CONFIG_PATH",
    "DATA_PATH",
    "RUNTIME_PATH",
    "LOG_LEVEL",
    "LOG_FORMAT",
    "AUTH_ENABLED",
    "AUTH_USERNAME",
    "AUTH_PASSWORD",
    "AUTH_PASSWORD_FILE",
    "VIEWER_USERNAME",
    "VIEWER_PASSWORD",
    "VIEWER_PASSWORD_FILE",
    "API_KEY",
    "API_KEY_FILE",
    "WIDGET_PUBLIC",
    "ALLOWED_HOSTS",
    "PUBLIC_URL",
    "TRUSTED_PROXIES",
    "WEBHOOK_SECRET",
    "WEBHOOK_SECRET_FILE",
    "HEARTBEAT_URL",
    "HEARTBEAT_URL_FILE",
    "DEPLOY_TIMEOUT",
    "SHUTDOWN_TIMEOUT",
    "ENABLE_IMAGE_PRUNE",
    "HISTORY_LIMIT",
    "SSH_KNOWN_HOSTS",
    "DOCKER_BIN",
    "SOPS_BIN",
    "SHOUTRRR_BIN",
];

/// The hook by which tests make a thread hang; not for people.
pub(super) const DEBUG_HANG: &str = "DEBUG_HANG";

/// Variables of the client (spec section 8); the daemon has no use for them and does not mind them.
const CLIENT_NAMES: &[&str] = &["SHIPARR_URL", "SHIPARR_USERNAME", "SHIPARR_PASSWORD"];

/// Collects problems and warnings while the environment is read.
pub(super) struct Reading<'a> {
    pub(super) environment: &'a Environment,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(environment: &'a Environment) -> Reading<'a> {
        Reading { environment, problems: Vec::new(), warnings: Vec::new() }
    }

    /// The value of a setting, and the name under which it was found. `name` is without the prefix.
    fn setting(&self, name: &str) -> Option<(String, &'a OsStr)> {
        setting(self.environment, name)
    }

    pub(super) fn text(&mut self, name: &str) -> Option<(String, &'a str)> {
        let (name, value) = self.setting(name)?;
        match value.to_str() {
            Some(text) => Some((name, text.trim())),
            None => {
                self.problems.push(format!("{name}: the value is not UTF-8"));
                None
            }
        }
    }

    pub(super) fn number(&mut self, name: &str, default: u64, least: u64, most: u64, unit: &str) -> u64 {
        let Some((name, text)) = self.text(name) else {
            return default;
        };
        match u64::from_str(text) {
            Ok(number) if (least..=most).contains(&number) => number,
            _ => {
                let expected = format!("expected a whole number{unit} from {least} to {most}");
                self.problems.push(format!("{name}: `{text}` is not valid; {expected}"));
                default
            }
        }
    }

    pub(super) fn seconds(&mut self, name: &str, default: u64, least: u64) -> Duration {
        Duration::from_secs(self.number(name, default, least, MAX_SECONDS, " of seconds"))
    }

    /// `name` with the prefix, where it has one.
    pub(super) fn boolean(&mut self, name: &str) -> bool {
        let found = match name.strip_prefix("Shiparr_") {
            Some(rest) => self.text(rest),
            None => self.environment.get(name).map(|value| (name.to_owned(), value.to_str().unwrap_or("�"))),
        };
        let Some((name, text)) = found else {
            return false;
        };
        boolean(text).unwrap_or_else(|| {
            self.problems.push(format!("{name}: `{text}` is not valid; expected true or false"));
            false
        })
    }

    pub(super) fn path(&mut self, name: &str) -> Option<PathBuf> {
        let (name, value) = self.setting(name)?;
        match std::path::absolute(Path::new(value)) {
            Ok(path) => Some(path),
            Err(error) => {
                self.problems.push(format!("{name}: {error}; expected an absolute path"));
                None
            }
        }
    }

    /// A program by name, or by path: a relative one is made absolute, because children run in other folders.
    pub(super) fn program(&mut self, name: &str, default: &str) -> PathBuf {
        match self.setting(name) {
            Some((_, value)) if !value.as_bytes().contains(&b'/') => PathBuf::from(value),
            Some(_) => self.path(name).unwrap_or_default(),
            None => PathBuf::from(default),
        }
    }

    pub(super) fn host(&mut self) -> String {
        let Some((name, text)) = self.text("HOST") else {
            return "127.0.0.1".to_owned();
        };
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if bare.parse::<IpAddr>().is_err() && !is_host_name(bare) {
            let expected = "expected an IP address or a host name, without a port (that is Shiparr_PORT)";
            self.problems.push(format!("{name}: `{text}` is not valid; {expected}"));
        }
        bare.to_owned()
    }

    pub(super) fn log_format(&mut self) -> LogFormat {
        let auto = if logs_to_journal(self.environment) { LogFormat::Journal } else { LogFormat::Text };
        let Some((name, text)) = self.text("LOG_FORMAT") else {
            return auto;
        };
        match text.to_ascii_lowercase().as_str() {
            "auto" => auto,
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            "journal" => LogFormat::Journal,
            _ => {
                self.problems.push(format!("{name}: `{text}` is not valid; expected auto, text, json or journal"));
                auto
            }
        }
    }

    pub(super) fn log_filter(&mut self) -> String {
        let Some((name, text)) = self.text("LOG_LEVEL") else {
            return "info".to_owned();
        };
        log_filter(text).unwrap_or_else(|| {
            let expected = "expected ERROR, WARNING, INFO, DEBUG, TRACE, or an env_logger filter such as \
                            info,shiparr::deploy=debug";
            self.problems.push(format!("{name}: `{text}` is not valid; {expected}"));
            "info".to_owned()
        })
    }

    pub(super) fn allowed_hosts(&mut self) -> Vec<String> {
        let Some((name, text)) = self.text("ALLOWED_HOSTS") else {
            return Vec::new();
        };
        let listed = text.split(|character: char| character == ',' || character.is_whitespace());
        let mut hosts = Vec::new();
        for host in listed.filter(|host| !host.is_empty()) {
            if is_host_name(host) {
                hosts.push(host.to_ascii_lowercase());
            } else {
                let expected =
                    "expected names as in `shiparr.example.com`, without scheme and port, separated by commas";
                self.problems.push(format!("{name}: `{host}` is not a host name; {expected}"));
            }
        }
        hosts
    }

    pub(super) fn ssh_known_hosts(&mut self, config_path: &Path) -> Vec<PathBuf> {
        if let Some((_, listed)) = self.setting("SSH_KNOWN_HOSTS") {
            let files = listed.as_bytes().split(|byte| *byte == b':').filter(|file| !file.is_empty());
            return files.filter_map(|file| std::path::absolute(OsStr::from_bytes(file)).ok()).collect();
        }
        let beside = config_path.parent().map(|folder| folder.join("known_hosts"));
        let home = self.environment.get("HOME").map(|home| Path::new(home).join(".ssh/known_hosts"));
        beside.into_iter().chain(home).chain([PathBuf::from("/etc/ssh/ssh_known_hosts")]).collect()
    }

    pub(super) fn proxies(&mut self) -> Proxies {
        let mut proxy = |upper: &str| {
            let lower = upper.to_ascii_lowercase();
            let name = if self.environment.get(upper).is_some() { upper } else { &lower };
            let text = self.environment.get(name)?.to_str().map(str::to_owned);
            if text.is_none() {
                self.problems.push(format!("{name}: the value is not UTF-8"));
            }
            text
        };
        Proxies { https: proxy("HTTPS_PROXY"), http: proxy("HTTP_PROXY"), none: proxy("NO_PROXY") }
    }

    /// Warns of settings that are set with both prefixes.
    pub(super) fn doubles(&mut self) {
        for name in NAMES {
            let (mixed, upper) = (format!("Shiparr_{name}"), format!("SHIPARR_{name}"));
            if self.environment.get(&mixed).is_some() && self.environment.get(&upper).is_some() {
                self.warnings.push(format!("{upper}: not used, because {mixed} is set too; remove one of them"));
            }
        }
    }

    pub(super) fn unknown_names(&mut self) {
        for name in self.environment.names() {
            let Some((prefix, rest)) = name.split_at_checked("shiparr_".len()) else {
                continue;
            };
            let exact = prefix == "Shiparr_" || prefix == "SHIPARR_";
            if !prefix.eq_ignore_ascii_case("shiparr_")
                || CLIENT_NAMES.contains(&name)
                || (exact && (NAMES.contains(&rest) || rest == DEBUG_HANG))
            {
                continue;
            }
            let known = NAMES.iter().map(|known| format!("Shiparr_{known}")).chain(
                ["DISABLE_CONFIG_AUTO_RELOAD", "GITHUB_TOKEN", "GITLAB_TOKEN", "GITEA_TOKEN", "SOPS_AGE_KEY_FILE"]
                    .map(str::to_owned),
            );
            let known: Vec<String> = known.collect();
            let candidates = known.iter().map(String::as_str);
            // A setting that has no prefix is looked for under its bare name.
            let suggestion = match did_you_mean(name, candidates.clone()) {
                found if found.is_empty() => did_you_mean(rest, candidates),
                found => found,
            };
            self.warnings.push(format!("{name}: no such setting{suggestion}"));
        }
    }
}

fn setting<'a>(environment: &'a Environment, name: &str) -> Option<(String, &'a OsStr)> {
    ["Shiparr_", "SHIPARR_"].into_iter().find_map(|prefix| {
        let name = format!("{prefix}{name}");
        let value = environment.get(&name)?;
        Some((name, value))
    })
}

/// Whether a setting is set. `name` is without the prefix.
pub(super) fn is_set(environment: &Environment, name: &str) -> bool {
    setting(environment, name).is_some()
}

/// `$RUNTIME_DIRECTORY`, else `/run/shiparr`, not root: `$XDG_RUNTIME_DIR/shiparr`.
pub(super) fn default_runtime_path(environment: &Environment) -> PathBuf {
    if let Some(listed) = environment.get("RUNTIME_DIRECTORY") {
        // systemd separates several by colons.
        let first = listed.as_bytes().split(|byte| *byte == b':').next().unwrap_or_default();
        return PathBuf::from(OsStr::from_bytes(first));
    }
    match environment.get("XDG_RUNTIME_DIR") {
        Some(folder) if !rustix::process::geteuid().is_root() => Path::new(folder).join("shiparr"),
        _ => PathBuf::from("/run/shiparr"),
    }
}

/// Whether standard error, where the log goes, is the journal (systemd.exec(5), `JOURNAL_STREAM`). That variable and
/// `INVOCATION_ID` are inherited by shells that systemd started somewhere above: only the device and inode tell.
fn logs_to_journal(environment: &Environment) -> bool {
    let Some(stream) = environment.get("JOURNAL_STREAM").and_then(OsStr::to_str) else {
        return false;
    };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The words for true and false that people write.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Letters, digits, `-`, `_` and dots between labels.
pub(super) fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// What is wrong with a password, where something is.
pub(super) fn password_problem(password: &str) -> Option<&'static str> {
    if password == "changeme" {
        return Some("`changeme` is not accepted; choose a password of your own");
    }
    let damaged = if password.starts_with("$argon2") {
        argon2::PasswordHash::new(password).map_or(true, |hash| hash.hash.is_none())
    } else {
        let bcrypt = ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| password.starts_with(prefix));
        bcrypt && bcrypt::HashParts::from_str(password).is_err()
    };
    damaged.then_some(
        "begins like an argon2 or bcrypt hash and cannot be read as one; was a `$` replaced on the way, or the end cut off?",
    )
}

/// An env_logger filter from a level's name or a filter; `WARNING` is what env_logger calls `warn`. None where it is
/// neither.
fn log_filter(text: &str) -> Option<String> {
    let (directives, pattern) = match text.split_once('/') {
        Some((directives, pattern)) => (directives, Some(pattern)),
        None => (text, None),
    };
    let level = |word: &str| {
        let word = if word.eq_ignore_ascii_case("warning") { "warn" } else { word };
        log::LevelFilter::from_str(word).ok().map(|level| level.as_str().to_ascii_lowercase())
    };
    let is_module = |word: &str| {
        word.split("::")
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
    };
    let mut parts = Vec::new();
    for directive in directives.split(',').map(str::trim) {
        parts.push(match directive.split_once('=') {
            Some((module, word)) if is_module(module) => format!("{module}={}", level(word)?),
            Some(_) => return None,
            None => match level(directive) {
                Some(level) => level,
                // A bare word is a module to env_logger, so that a misspelt level would silence everything.
                None if is_module(directive) && directive.starts_with("shiparr") => directive.to_owned(),
                None => return None,
            },
        });
    }
    let filter = parts.join(",");
    Some(pattern.map_or(filter.clone(), |pattern| format!("{filter}/{pattern}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_levels_become_filters() {
        for (text, expected) in [
            ("INFO", Some("info")),
            ("Warning", Some("warn")),
            ("off", Some("off")),
            ("warn,shiparr::git=TRACE", Some("warn,shiparr::git=trace")),
            ("shiparr=WARNING", Some("shiparr=warn")),
            ("shiparr", Some("shiparr")),
            ("debug/pattern, with a comma", Some("debug/pattern, with a comma")),
            ("INFOO", None),
            ("shiparr=loud", None),
            ("a b=info", None),
            ("info,", None),
        ] {
            assert_eq!(log_filter(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_runtime_folder_of_somebody_is_their_own() {
        let own = default_runtime_path(&Environment::from_pairs([("XDG_RUNTIME_DIR", "/run/user/1000")]));
        let root = rustix::process::geteuid().is_root();
        assert_eq!(own, Path::new(if root { "/run/shiparr" } else { "/run/user/1000/shiparr" }));
        assert_eq!(default_runtime_path(&Environment::default()), Path::new("/run/shiparr"));
    }
}
