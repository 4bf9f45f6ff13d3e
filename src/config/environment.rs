//! The process environment, read once, and what can be looked up in it: variables, `NAME_FILE`, systemd credentials.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::template::is_name;
use crate::secrets::Secret;

/// A secret's file may be as large as systemd lets a credential be.
const MAX_SECRET_FILE_BYTES: u64 = 1024 * 1024;

/// An environment file of a service.
const MAX_ENVIRONMENT_FILE_BYTES: u64 = 1024 * 1024;

/// Where programs are looked for when nobody says so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What every child may see, where it is set (spec section 4): by name, and by the beginning of the name.
const CHILDREN_NAMES: &[&str] = &[
    "PATH",
    "HOME",
    "TZ",
    "COMPOSE_PARALLEL_LIMIT",
    "SSH_AUTH_SOCK",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    // Where coverage is measured, that of our own child is too.
    #[cfg(coverage)]
    "LLVM_PROFILE_FILE",
];
const CHILDREN_PREFIXES: &[&str] = &["DOCKER_"];

/// What sops may see besides.
const SOPS_NAMES: &[&str] = &["GNUPGHOME"];
const SOPS_PREFIXES: &[&str] = &["SOPS_", "AWS_", "VAULT_"];

/// A snapshot of the process environment. Files that it names are read at each use.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// The environment of this process.
    #[expect(clippy::disallowed_methods, reason = "this is the place where the environment is read")]
    pub fn of_process() -> Environment {
        Environment::from_pairs(std::env::vars_os())
    }

    /// One made by hand.
    pub fn from_pairs<K: Into<OsString>, V: Into<OsString>>(pairs: impl IntoIterator<Item = (K, V)>) -> Environment {
        Environment { variables: pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
    }

    /// An environment file as systemd's `EnvironmentFile=` reads it: `NAME=value`, quotes, `#` and `;` comments, a
    /// backslash at the end of a line that goes on.
    ///
    /// # Errors
    /// A file that cannot be read, or the first line that is no assignment, in one line.
    pub fn from_file(path: &Path) -> Result<Environment, String> {
        let bytes = read_bounded(path, MAX_ENVIRONMENT_FILE_BYTES)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
        let variables = assignments(&text).map_err(|error| format!("{}:{error}", path.display()))?;
        Ok(Environment::from_pairs(variables))
    }

    /// This one with the variables of `other` added; where both have one, that of `other` counts.
    #[must_use]
    pub fn with(mut self, other: &Environment) -> Environment {
        self.variables.extend(other.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        self
    }

    /// A variable; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The names of all variables that are set and can be read as text.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().filter(|(_, value)| !value.is_empty()).filter_map(|(name, _)| name.to_str())
    }

    /// A value that may be secret: the variable, else the file that `NAME_FILE` names, else the systemd credential
    /// (`$CREDENTIALS_DIRECTORY/name`, lower case, without the prefix `Shiparr_`). A name with that prefix is also
    /// looked up with `SHIPARR_`. Line breaks at the end of a file do not belong to the value; an empty file counts as
    /// unset.
    ///
    /// # Errors
    /// A file that is named and cannot be read, in one line that names variable and file.
    pub fn secret(&self, name: &str) -> Result<Option<Secret>, String> {
        let upper = name.strip_prefix("Shiparr_").map(|rest| format!("SHIPARR_{rest}"));
        let names = || std::iter::once(name).chain(upper.as_deref());
        for name in names() {
            if let Some(value) = self.get(name) {
                let text = value.to_str().ok_or_else(|| format!("{name}: the value is not UTF-8"))?;
                return Ok(Some(Secret::new(text)));
            }
        }
        for name in names() {
            let variable = format!("{name}_FILE");
            if let Some(path) = self.get(&variable).map(Path::new) {
                let found = read_secret(path)
                    .map_err(|error| format!("{variable}: cannot read the file {}: {error}", path.display()))?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        let Some(path) = self.credential_path(&Environment::credential_name(name)) else {
            return Ok(None);
        };
        match read_secret(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map_err(|error| format!("{name}: cannot read the credential {}: {error}", path.display())),
        }
    }

    /// All of it, for a program that stands in for this one.
    pub fn all(&self) -> Vec<(OsString, OsString)> {
        self.variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// What git, compose and notifiers may see: PATH, HOME, `LC_ALL=C.UTF-8`, TZ, `DOCKER_*`, `COMPOSE_PARALLEL_LIMIT`,
    /// proxies, SSH_AUTH_SOCK.
    pub fn for_children(&self) -> Vec<(OsString, OsString)> {
        let mut listed = self.listed(CHILDREN_NAMES, CHILDREN_PREFIXES);
        if self.get("PATH").is_none() {
            listed.push(("PATH".into(), DEFAULT_PATH.into()));
        }
        listed.push(("LC_ALL".into(), "C.UTF-8".into()));
        listed
    }

    /// The same, and what sops needs: `SOPS_*`, GNUPGHOME, `AWS_*`, `VAULT_*`. Where no variable names an age key and
    /// there is a systemd credential `age_key`, `SOPS_AGE_KEY_FILE` is its path, so that the key itself stays out of
    /// any environment.
    pub fn for_sops(&self) -> Vec<(OsString, OsString)> {
        let mut listed = self.for_children();
        listed.extend(self.listed(SOPS_NAMES, SOPS_PREFIXES));
        if self.get("SOPS_AGE_KEY").is_none() && self.get("SOPS_AGE_KEY_FILE").is_none() {
            if let Some(path) = self.credential_path("age_key").filter(|path| path.exists()) {
                listed.push(("SOPS_AGE_KEY_FILE".into(), path.into()));
            }
        }
        listed
    }

    /// The systemd credential that belongs to a variable.
    pub(super) fn credential_name(variable: &str) -> String {
        let name = variable.strip_prefix("Shiparr_").or_else(|| variable.strip_prefix("SHIPARR_"));
        name.unwrap_or(variable).to_ascii_lowercase()
    }

    fn credential_path(&self, name: &str) -> Option<PathBuf> {
        Some(Path::new(self.get("CREDENTIALS_DIRECTORY")?).join(name))
    }

    fn listed(&self, names: &[&str], prefixes: &[&str]) -> Vec<(OsString, OsString)> {
        let wanted = |name: &str| names.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix));
        self.variables
            .iter()
            .filter(|(name, value)| !value.is_empty() && name.to_str().is_some_and(wanted))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

/// Reads a regular file of at most `max_bytes`. A named pipe or a device would hold the reader, and is refused.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::other(format!("it is larger than {max_bytes} bytes")));
    }
    Ok(bytes)
}

fn read_secret(path: &Path) -> io::Result<Option<Secret>> {
    let bytes = read_bounded(path, MAX_SECRET_FILE_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
    let text = text.trim_end_matches(['\n', '\r']);
    Ok((!text.is_empty()).then(|| Secret::new(text)))
}

/// The assignments of an environment file. The error begins with the line's number.
fn assignments(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let line = 1 + text[..text.len() - rest.len()].matches('\n').count();
        if rest.is_empty() {
            return Ok(found);
        }
        if rest.starts_with(['#', ';']) {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            continue;
        }
        let (name, value) = rest.split_once('=').unwrap_or((rest, ""));
        let name = name.trim_end();
        if !is_name(name) {
            return Err(format!("{line}: expected NAME=value, a comment or an empty line"));
        }
        let (value, after) = value_and_rest(value).ok_or_else(|| format!("{line}: {name}: a quote is not closed"))?;
        found.push((name.to_owned(), value));
        rest = after;
    }
}

/// The value after `NAME=`, and what follows its line. None where a quote is not closed.
fn value_and_rest(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    // White space at the end belongs to the value only inside quotes.
    let mut kept = 0;
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match (quote, character) {
            (None, '\n') => {
                value.truncate(kept);
                return Some((value, &text[at + 1..]));
            }
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            (None | Some('"'), '\\') => match characters.next() {
                Some((_, '\n')) | None => {}
                Some((_, escaped)) => value.push(escaped),
            },
            (None, ' ' | '\t' | '\r') if value.is_empty() => {}
            _ => value.push(character),
        }
        if quote.is_some() || !character.is_whitespace() {
            kept = value.len();
        }
    }
    value.truncate(kept);
    quote.is_none().then_some((value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exposed(found: Result<Option<Secret>, String>) -> Option<String> {
        found.expect("readable").map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn a_secret_comes_from_the_variable_then_its_file_then_the_credential() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        std::fs::write(&file, "from file\r\n\n").expect("written");
        std::fs::write(folder.path().join("auth_password"), "from credential\n").expect("written");
        std::fs::write(folder.path().join("github_token"), "").expect("written");
        let credentials = ("CREDENTIALS_DIRECTORY", folder.path().to_str().expect("utf-8"));
        let from_file = ("Shiparr_AUTH_PASSWORD_FILE", file.to_str().expect("utf-8"));
        let name = "Shiparr_AUTH_PASSWORD";

        let all = Environment::from_pairs([(name, "from variable"), from_file, credentials]);
        assert_eq!(exposed(all.secret(name)).as_deref(), Some("from variable"));
        let upper = Environment::from_pairs([("SHIPARR_AUTH_PASSWORD", "upper"), from_file]);
        assert_eq!(exposed(upper.secret(name)).as_deref(), Some("upper"));
        let empty = Environment::from_pairs([(name, ""), from_file, credentials]);
        assert_eq!(exposed(empty.secret(name)).as_deref(), Some("from file"));
        let credential = Environment::from_pairs([credentials]);
        assert_eq!(exposed(credential.secret(name)).as_deref(), Some("from credential"));
        assert_eq!(exposed(credential.secret("GITHUB_TOKEN")), None, "an empty one counts as unset");
        assert_eq!(exposed(credential.secret("GITLAB_TOKEN")), None);
        assert_eq!(exposed(Environment::default().secret(name)), None);
    }

    #[test]
    fn a_file_is_read_at_each_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        std::fs::write(&file, "old").expect("written");
        let environment = Environment::from_pairs([("GITHUB_TOKEN_FILE", file.as_os_str())]);
        assert_eq!(exposed(environment.secret("GITHUB_TOKEN")).as_deref(), Some("old"));
        std::fs::write(&file, "new").expect("written");
        assert_eq!(exposed(environment.secret("GITHUB_TOKEN")).as_deref(), Some("new"));
    }

    #[test]
    fn a_named_file_that_cannot_be_read_is_an_error_that_names_variable_and_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = folder.path().join("missing");
        let environment = Environment::from_pairs([("GITHUB_TOKEN_FILE", missing.as_os_str())]);
        let error = environment.secret("GITHUB_TOKEN").expect_err("the file is missing");
        assert!(error.starts_with("GITHUB_TOKEN_FILE: cannot read the file ") && error.contains("missing"), "{error}");
        let environment = Environment::from_pairs([("GITHUB_TOKEN_FILE", folder.path().as_os_str())]);
        let error = environment.secret("GITHUB_TOKEN").expect_err("it is a folder");
        assert!(error.ends_with("it is not a regular file"), "{error}");
        let large = folder.path().join("large");
        std::fs::write(&large, vec![b'x'; 1024 * 1024 + 1]).expect("written");
        let environment = Environment::from_pairs([("GITHUB_TOKEN_FILE", large.as_os_str())]);
        assert!(environment.secret("GITHUB_TOKEN").is_err_and(|error| error.contains("larger than")));
    }

    #[test]
    fn a_named_pipe_holds_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("a pipe");
        assert!(read_bounded(&pipe, 10).is_err());
    }

    fn names(list: &[(OsString, OsString)]) -> Vec<&str> {
        list.iter().map(|(name, _)| name.to_str().expect("utf-8")).collect()
    }

    #[test]
    fn children_see_only_what_is_listed() {
        let environment = Environment::from_pairs([
            ("PATH", "/bin"),
            ("HOME", "/root"),
            ("DOCKER_HOST", "unix:///x"),
            ("HTTPS_PROXY", "http://p"),
            ("no_proxy", "h"),
            ("TZ", ""),
            ("LC_ALL", "de_DE.UTF-8"),
            ("GITHUB_TOKEN", "t"),
            ("SOPS_AGE_KEY_FILE", "/key"),
            ("AWS_PROFILE", "p"),
            ("Shiparr_AUTH_PASSWORD", "p"),
            ("LD_PRELOAD", "/x.so"),
        ]);
        let children = environment.for_children();
        assert_eq!(names(&children), ["DOCKER_HOST", "HOME", "HTTPS_PROXY", "PATH", "no_proxy", "LC_ALL"]);
        assert_eq!(children.last().map(|(_, value)| value.as_os_str()), Some(OsStr::new("C.UTF-8")));
        let sops = environment.for_sops();
        assert_eq!(names(&sops)[6..], ["AWS_PROFILE", "SOPS_AGE_KEY_FILE"]);
        assert_eq!(names(&Environment::default().for_children()), ["PATH", "LC_ALL"]);
    }

    #[test]
    fn the_credential_age_key_is_handed_to_sops_by_its_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = ("CREDENTIALS_DIRECTORY", folder.path().to_str().expect("utf-8"));
        let key = folder.path().join("age_key");
        let handed = |environment: &Environment| {
            environment.for_sops().into_iter().find(|(name, _)| name == "SOPS_AGE_KEY_FILE").map(|(_, value)| value)
        };
        let environment = Environment::from_pairs([directory]);
        assert_eq!(handed(&environment), None);
        std::fs::write(&key, "AGE-SECRET-KEY-1").expect("written");
        assert_eq!(handed(&environment).as_deref(), Some(key.as_os_str()));
        let named = Environment::from_pairs([directory, ("SOPS_AGE_KEY_FILE", "/mine")]);
        assert_eq!(handed(&named).as_deref(), Some(OsStr::new("/mine")));
    }

    #[test]
    fn an_environment_file_is_read_as_systemd_reads_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("shiparr.env");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Environment::from_file(&path)
        };
        let text = "# comment\n; another\n\n A=1 \nB = two words  \nC=\"quoted # \\\"x\\\" \"\nD='a\\b'\nE=one \\\n two\nF=\nG=\"a\nb\"\nH=x";
        let environment = read(text).expect("a good file");
        let value = |name| environment.get(name).map(|value| value.to_str().expect("utf-8"));
        assert_eq!(value("A"), Some("1"));
        assert_eq!(value("B"), Some("two words"));
        assert_eq!(value("C"), Some("quoted # \"x\" "));
        assert_eq!(value("D"), Some("a\\b"));
        assert_eq!(value("E"), Some("one  two"));
        assert_eq!(value("F"), None);
        assert_eq!(value("G"), Some("a\nb"));
        assert_eq!(value("H"), Some("x"));
        let error = read("A=1\nnot an assignment\n").err().expect("a bad line");
        assert!(error.ends_with(":2: expected NAME=value, a comment or an empty line"), "{error}");
        assert!(read("A=\"open\n").is_err_and(|error| error.ends_with(":1: A: a quote is not closed")));
        assert!(
            Environment::from_file(&folder.path().join("none")).is_err_and(|error| error.starts_with("cannot read"))
        );
    }

    #[test]
    fn later_variables_win_over_earlier_ones() {
        let base = Environment::from_pairs([("A", "1"), ("B", "1")]);
        let both = base.with(&Environment::from_pairs([("B", "2")]));
        assert_eq!((both.get("A"), both.get("B")), (Some(OsStr::new("1")), Some(OsStr::new("2"))));
    }
}
