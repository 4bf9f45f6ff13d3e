//! A keyed hash of the part of a repository's configuration whose change queues a deployment.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::environment::read_bounded;
use super::project::{Build, Repository};
use super::{Environment, Template};

/// The key's file in the data folder.
const KEY_FILE: &str = "config-hash.key";
const KEY_BYTES: usize = 32;

/// The key that configurations are hashed with: read from the data folder, or made there (mode 0600). It exists so that
/// nobody who reads the database can try out values that the hash was made from. A damaged one is made anew, which
/// deploys every repository once more.
///
/// # Errors
/// The system's, with the file's name.
pub fn hash_key(data_path: &Path) -> io::Result<[u8; 32]> {
    let path = data_path.join(KEY_FILE);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match read_bounded(&path, KEY_BYTES as u64) {
        Ok(bytes) => match bytes.try_into() {
            Ok(key) => return Ok(key),
            Err(_) => log::warn!("{} is damaged and is made anew", path.display()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(named(error)),
    }
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    // A crash leaves either no key or a whole one.
    let unfinished = data_path.join(format!("{KEY_FILE}.new"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&unfinished).and_then(|mut file| {
        file.write_all(&key)?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&unfinished, &path)).map_err(named)?;
    Ok(key)
}

impl Repository {
    /// HMAC-SHA256, in hexadecimal digits, of the fields that spec section 4 lists for the trigger `config`, with the
    /// values of `environment` as they are now.
    pub fn config_hash(&self, key: &[u8; 32], environment: &Environment) -> String {
        // Spelt out, because both traits that HMAC implements have a constructor of this name.
        let mut hash = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes a key of any length");
        let mut add = |name: &str, value: &[u8]| {
            for part in [name.as_bytes(), value] {
                hash.update(&(part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        };
        // A field that is not given adds nothing, so that a later version's new field changes no hash.
        add("url", self.url.as_str().as_bytes());
        add("branch", self.branch.as_bytes());
        add("path", self.path.as_os_str().as_encoded_bytes());
        add("local_path", self.local_path.as_os_str().as_encoded_bytes());
        for file in &self.compose_files {
            add("compose_files", file.as_os_str().as_encoded_bytes());
        }
        for file in &self.env_files {
            add("env_file", file.as_os_str().as_encoded_bytes());
        }
        for file in &self.secret_files {
            add("secret_files", file.as_os_str().as_encoded_bytes());
        }
        for (name, template) in &self.environment {
            add("environment", name.as_bytes());
            match value(template, environment) {
                Ok(value) => add("value", value.as_bytes()),
                Err(source) => add("unresolved", source.as_bytes()),
            }
        }
        for profile in &self.profiles {
            add("profiles", profile.as_bytes());
        }
        match self.build {
            Build::Auto => {}
            Build::Always => add("build", b"always"),
            Build::Never => add("build", b"never"),
        }
        if let Some(project) = &self.compose_project {
            add("compose_project", project.as_bytes());
        }
        hash.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The value, or the text that has none now.
fn value(template: &Template, environment: &Environment) -> Result<String, String> {
    match template.resolve(environment) {
        Ok(secret) => Ok(secret.expose().to_owned()),
        Err(_) => Err(template.source().to_owned()),
    }
}
