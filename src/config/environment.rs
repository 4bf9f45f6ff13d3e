//! The process environment, read once, and what can be looked up in it: variables, `NAME_FILE`, systemd credentials.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::secrets::Secret;

/// A snapshot of the process environment. Files that it names are read at each use.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Environment {
        todo!()
    }

    /// One made by hand.
    pub fn from_pairs<K: Into<OsString>, V: Into<OsString>>(pairs: impl IntoIterator<Item = (K, V)>) -> Environment {
        Environment { variables: pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
    }

    /// A variable; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// A value that may be secret: the variable, else the file that `NAME_FILE` names, else the systemd credential
    /// (`$CREDENTIALS_DIRECTORY/name`, lower case, without the prefix `Shiparr_`).
    ///
    /// # Errors
    /// A file that is named and cannot be read, in one line that names variable and file.
    pub fn secret(&self, _name: &str) -> Result<Option<Secret>, String> {
        todo!()
    }

    /// What git, compose and notifiers may see: PATH, HOME, LC_ALL=C.UTF-8, TZ, DOCKER_*, COMPOSE_PARALLEL_LIMIT, proxies, SSH_AUTH_SOCK.
    pub fn for_children(&self) -> Vec<(OsString, OsString)> {
        todo!()
    }

    /// The same, and what sops needs: SOPS_*, GNUPGHOME, AWS_*, VAULT_*; `SOPS_AGE_KEY` from the credential `age_key` where there is one.
    pub fn for_sops(&self) -> Vec<(OsString, OsString)> {
        todo!()
    }
}

/// A configured value with its `${NAME}`s still in it, so that a rotated secret is picked up at the next use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// Keeps the text as it stands.
    pub fn new(text: impl Into<String>) -> Template {
        Template(text.into())
    }

    /// The value: `${NAME}`, `${ENV.NAME}` and `${NAME:-default}` replaced, `$${` made `${`.
    ///
    /// # Errors
    /// The name that is not set and has no default, or a file behind it that cannot be read.
    pub fn resolve(&self, _environment: &Environment) -> Result<Secret, String> {
        let _ = &self.0;
        todo!()
    }
}
