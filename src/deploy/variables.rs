//! A stack's variables: its own `.env`, then the `env_file`s, decrypted, then `environment`; later ones win.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::stack::{self, Defaults};
use super::{Log, StepError};
use crate::command::Limit;
use crate::config::project::UnsetVariables;
use crate::config::{Repository, Settings};
use crate::model::LogLevel;
use crate::secrets::env_file::{self, Surroundings};
use crate::secrets::runtime::{Linked, RuntimeFolder};
use crate::secrets::{EnvFile, Secret, SecretsError, Sops, read_env_file};

/// All variables of a stack.
pub struct Variables {
    /// By name.
    pub all: BTreeMap<String, Secret>,
    /// What the stack's own `.env` says about Compose itself.
    pub defaults: Defaults,
}

/// Decrypted text in the runtime folder, and the links that lead to it; dropped, all of it is gone.
#[derive(Default)]
pub struct Plaintext {
    folder: Option<RuntimeFolder>,
    variables_file: Option<PathBuf>,
}

impl Plaintext {
    /// All variables as one dotenv file; none where there are no variables.
    pub fn variables_file(&self) -> Option<PathBuf> {
        self.variables_file.clone()
    }
}

/// Reads, decrypts and writes down the variables of the stack in `folder`. The journal learns every value that was decrypted.
/// `runtime_name` is the name of the private folder, unique among the deployments that run.
///
/// # Errors
/// Whatever is wrong with one of the files: no sops, no key, damaged, outside the repository; in one line that names the file.
pub fn gather(
    repository: &Repository,
    folder: &Path,
    settings: &Settings,
    runtime_name: &str,
    limit: &Limit,
    journal: &mut Journal<'_>,
) -> Result<(Variables, Plaintext), StepError> {
    let mut gathering = Gathering {
        repository,
        settings,
        runtime_name,
        sops: Sops { program: settings.sops_bin.clone(), environment: settings.environment.for_sops() },
        outside: settings.environment.for_children(),
        all: BTreeMap::new(),
        plaintext: Plaintext::default(),
    };
    let own = folder.join(".env");
    if own.is_file() {
        gathering.read(&own, Path::new(".env"), limit, journal)?;
    }
    let defaults = Defaults::of(&gathering.all);
    for file in &repository.env_files {
        let path = stack::joined(folder, file);
        if let Some(text) = gathering.read(&path, file, limit, journal)? {
            gathering.link(&path, file, &text, journal)?;
        }
    }
    for (name, template) in &repository.environment {
        let value = template
            .resolve(&settings.environment)
            .map_err(|error| StepError::for_good(format!("environment.{name}: {error}")))?;
        journal.learn(value.expose());
        gathering.all.insert(name.clone(), value);
    }
    gathering.write()?;
    Ok((Variables { all: gathering.all, defaults }, gathering.plaintext))
}

struct Gathering<'a> {
    repository: &'a Repository,
    settings: &'a Settings,
    runtime_name: &'a str,
    sops: Sops,
    /// What Compose would see around the files.
    outside: Vec<(OsString, OsString)>,
    all: BTreeMap<String, Secret>,
    plaintext: Plaintext,
}

impl Gathering<'_> {
    /// Adds a file's variables; gives its decrypted text where it was encrypted.
    fn read(
        &mut self,
        path: &Path,
        shown: &Path,
        limit: &Limit,
        journal: &mut Journal<'_>,
    ) -> Result<Option<Secret>, StepError> {
        let lookup = |name: &str| {
            let around = || self.outside.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_string_lossy());
            self.all.get(name).map(|value| value.expose().to_owned()).or_else(|| Some(around()?.into_owned()))
        };
        let surroundings =
            Surroundings { lookup: &lookup, blank_unset: self.repository.unset_variables == UnsetVariables::Blank };
        let within = shown.is_relative().then_some(self.repository.local_path.as_path());
        let shown = shown.to_string_lossy();
        let EnvFile { variables, decrypted } = read_env_file(path, &shown, within, &self.sops, surroundings, limit)?;
        for (name, value) in variables {
            if decrypted.is_some() {
                journal.learn(value.expose());
            }
            self.all.insert(name, value);
        }
        Ok(decrypted)
    }

    /// Puts a link to the decrypted text beside the encrypted file, for `env_file:` in the compose file.
    fn link(
        &mut self,
        encrypted: &Path,
        shown: &Path,
        text: &Secret,
        journal: &mut Journal<'_>,
    ) -> Result<(), StepError> {
        let within = shown.is_relative().then_some(self.repository.local_path.as_path());
        let name = encrypted.file_name().unwrap_or_default().to_string_lossy();
        let folder = self.runtime_folder()?;
        let target = folder.write(&name, text.expose())?;
        if let Linked::NameTaken(path) = folder.link_beside(encrypted, &target, within)? {
            let message = format!(
                "{} exists and stays as it is: an `env_file:` that names it does not see the decrypted {}",
                path.display(),
                shown.display()
            );
            journal.line(LogLevel::Warning, &message);
        }
        Ok(())
    }

    /// Writes the one file that Compose reads.
    fn write(&mut self) -> Result<(), StepError> {
        if self.all.is_empty() {
            return Ok(());
        }
        let text = env_file::render(self.all.iter().map(|(name, value)| (name.as_str(), value)));
        self.plaintext.variables_file = Some(self.runtime_folder()?.write("variables.env", &text)?);
        Ok(())
    }

    /// The private folder, made when it is first needed: most stacks have nothing to hide.
    fn runtime_folder(&mut self) -> Result<&mut RuntimeFolder, SecretsError> {
        let folder = match self.plaintext.folder.take() {
            Some(folder) => folder,
            None => RuntimeFolder::create(&self.settings.runtime_path, &self.settings.data_path, self.runtime_name)?,
        };
        Ok(self.plaintext.folder.insert(folder))
    }
}

impl From<SecretsError> for StepError {
    fn from(error: SecretsError) -> StepError {
        StepError { message: error.message, chance: error.chance }
    }
}
