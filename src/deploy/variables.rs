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
use crate::secrets::mounted::is_link;
use crate::secrets::runtime::{Linked, RuntimeFolder};
use crate::secrets::{EnvFile, Secret, SecretsError, Sops, plain_name, read_env_file};

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
    links: Vec<PassingLink>,
    origins: BTreeMap<String, String>,
    names_taken: Vec<PassingLink>,
}

/// A link to decrypted variables that goes when `up` has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassingLink {
    /// Its path; its folder's links are followed.
    pub path: PathBuf,
    /// The encrypted `env_file` beside it.
    pub encrypted: PathBuf,
}

impl Plaintext {
    /// What lies in a folder, for tests.
    #[cfg(test)]
    pub fn of(folder: RuntimeFolder) -> Plaintext {
        Plaintext { folder: Some(folder), ..Plaintext::default() }
    }

    /// All of it stays for another process, which removes it.
    pub fn leave(mut self) {
        if let Some(folder) = self.folder.take() {
            folder.leave();
        }
    }

    /// All variables as one dotenv file; none where there are no variables.
    pub fn variables_file(&self) -> Option<PathBuf> {
        self.variables_file.clone()
    }

    /// The file that each variable's value is from, as the configuration names it, or `environment`.
    pub fn origins(&self) -> &BTreeMap<String, String> {
        &self.origins
    }

    /// The links that lie beside encrypted `env_file`s meanwhile.
    pub fn links(&self) -> &[PassingLink] {
        &self.links
    }

    /// The links that could not be made, because a file lies under their name that is not ours.
    pub fn names_taken(&self) -> &[PassingLink] {
        &self.names_taken
    }
}

/// Reads, decrypts and writes down the variables of the stack in `folder`. The journal learns every value that was
/// decrypted. `runtime_name` is the name of the private folder, unique among the deployments that run.
///
/// # Errors
/// Whatever is wrong with one of the files: no sops, no key, damaged, outside the repository; in one line that names
/// the file.
pub fn gather(
    repository: &Repository,
    folder: &Path,
    settings: &Settings,
    runtime_name: &str,
    limit: &Limit,
    journal: &mut Journal,
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
    gathering.read_own(folder, limit, journal)?;
    let defaults = Defaults::of(&gathering.all);
    if settings.environment.get("HOME").is_some() {
        // As for Compose, which asks its environment before that file.
        gathering.all.remove("HOME");
        gathering.plaintext.origins.remove("HOME");
    }
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
        gathering.plaintext.origins.insert(name.clone(), "environment".to_owned());
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
    /// Adds those of the stack's own `.env`. Where that is the link to a secret file, they are in the encrypted file,
    /// and the link, if it is there yet, leads to those of the deployment before.
    fn read_own(&mut self, folder: &Path, limit: &Limit, journal: &mut Journal) -> Result<(), StepError> {
        let own = folder.join(".env");
        let is_own = |file: &&PathBuf| {
            let path = stack::joined(folder, file);
            let name = path.file_name().and_then(|name| plain_name(&name.to_string_lossy()));
            name.is_some_and(|name| path.with_file_name(name) == own)
        };
        match self.repository.secret_files.iter().find(is_own) {
            // It is read below.
            Some(file) if self.repository.env_files.contains(file) => {}
            Some(file) => drop(self.read(&stack::joined(folder, file), file, limit, journal)?),
            None if own.is_file() && !is_link(&own, &self.settings.runtime_path) => {
                self.read(&own, Path::new(".env"), limit, journal)?;
            }
            None => {}
        }
        Ok(())
    }

    /// Adds a file's variables; gives its decrypted text where it was encrypted.
    fn read(
        &mut self,
        path: &Path,
        shown: &Path,
        limit: &Limit,
        journal: &mut Journal,
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
            self.plaintext.origins.insert(name.clone(), shown.clone().into_owned());
            self.all.insert(name, value);
        }
        Ok(decrypted)
    }

    /// Puts a link to the decrypted text beside the encrypted file, for `env_file:` in the compose file.
    fn link(&mut self, encrypted: &Path, shown: &Path, text: &Secret, journal: &mut Journal) -> Result<(), StepError> {
        let within = shown.is_relative().then_some(self.repository.local_path.as_path());
        let name = encrypted.file_name().unwrap_or_default().to_string_lossy();
        let folder = self.runtime_folder()?;
        let target = folder.write(&name, text.expose())?;
        match folder.link_beside(encrypted, &target, within)? {
            Linked::Made(path) => {
                let encrypted = path.with_file_name(&*name);
                self.plaintext.links.push(PassingLink { path, encrypted });
            }
            Linked::NameTaken(path) => {
                let message = format!(
                    "{} exists and stays as it is: an `env_file:` that names it does not see the decrypted {}",
                    path.display(),
                    shown.display()
                );
                journal.line(LogLevel::Warning, &message);
                let encrypted = path.with_file_name(&*name);
                self.plaintext.names_taken.push(PassingLink { path, encrypted });
            }
            Linked::Lasting | Linked::NotNeeded => {}
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::*;
    use crate::config::Environment;
    use crate::deploy::testing::{LIMIT, Lab};

    fn gather_into(lab: &Lab, journal: &mut Journal) -> Result<(Variables, Plaintext), StepError> {
        gather(&lab.repository, &lab.path(""), &lab.settings, "7", &Limit::after(LIMIT), journal)
    }

    fn gathered(lab: &Lab) -> Result<(Variables, Plaintext), StepError> {
        gather_into(lab, &mut lab.journal())
    }

    fn value<'a>(variables: &'a Variables, name: &str) -> &'a str {
        variables.all[name].expose()
    }

    #[test]
    fn the_home_folder_is_no_matter_for_the_stacks_own_file() {
        let mut lab = Lab::new("");
        lab.write(".env", "A=1\nHOME=/from/dotenv\n");
        lab.settings.environment = Arc::new(Environment::from_pairs([("PATH", "/bin")]));
        assert_eq!(value(&gathered(&lab).unwrap().0, "HOME"), "/from/dotenv");
        lab.settings.environment = Arc::new(Environment::from_pairs([("HOME", "/root")]));
        assert!(!gathered(&lab).unwrap().0.all.contains_key("HOME"));
        lab.write("app.env", "HOME=/home/ada\n");
        lab.repository.env_files = vec!["app.env".into()];
        assert_eq!(value(&gathered(&lab).unwrap().0, "HOME"), "/home/ada");
    }

    #[test]
    fn later_ones_win_and_earlier_ones_can_be_used() {
        let lab = Lab::new("env_file: [a.env, b.yaml], environment: {C: environment, D: '${FROM_OUTSIDE}'}");
        lab.write(".env", "A=own\nB=own\nC=own\nCOMPOSE_PROFILES=x\n");
        lab.write("a.env", "B=a\nC=a\nE=${A}-$B\nCOMPOSE_PROJECT_NAME=not-from-here\n");
        lab.write("b.yaml", "C: b\n");
        let (variables, plaintext) = gathered(&lab).unwrap();
        for (name, expected) in
            [("A", "own"), ("B", "a"), ("C", "environment"), ("D", "interpolated value"), ("E", "own-a")]
        {
            assert_eq!(value(&variables, name), expected, "{name}");
        }
        assert_eq!(variables.defaults.profiles, ["x"]);
        assert_eq!(variables.defaults.project, None);
        let file = plaintext.variables_file().unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("D=\"interpolated value\"\n"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        drop(plaintext);
        assert!(!file.exists());
    }

    #[test]
    fn a_stack_without_variables_needs_no_runtime_folder() {
        let lab = Lab::new("");
        let (variables, plaintext) = gathered(&lab).unwrap();
        assert!(variables.all.is_empty() && plaintext.variables_file().is_none());
        assert_eq!(std::fs::read_dir(&lab.settings.runtime_path).unwrap().count(), 0);
    }

    #[test]
    fn what_is_decrypted_lies_beside_for_a_time_and_stands_in_no_log() {
        let lab = Lab::new("env_file: [.env.enc, app.enc.json]");
        lab.write_encrypted(".env.enc", "dotenv", "PASSWORD=correct horse\n");
        lab.write_encrypted("app.enc.json", "json", "{\"TOKEN\": \"battery staple\"}");
        let mut journal = lab.journal();
        let (variables, plaintext) = gather_into(&lab, &mut journal).unwrap();
        assert_eq!(value(&variables, "PASSWORD"), "correct horse");
        assert_eq!(value(&variables, "TOKEN"), "battery staple");
        assert_eq!(std::fs::read_to_string(lab.path(".env")).unwrap(), "PASSWORD=correct horse\n");
        assert!(std::fs::read_link(lab.path("app.json")).unwrap().starts_with(&lab.settings.runtime_path));
        journal.line(LogLevel::Info, "it said: correct horse, battery staple");
        drop(plaintext);
        assert!(std::fs::symlink_metadata(lab.path(".env")).is_err());
        assert!(std::fs::symlink_metadata(lab.path("app.json")).is_err());
        assert_eq!(lab.log(), "it said: ***, ***\n");
    }

    #[test]
    fn a_file_under_the_links_name_stays() {
        let lab = Lab::new("env_file: app.env.enc");
        lab.write_encrypted("app.env.enc", "dotenv", "PASSWORD=correct horse\n");
        lab.write("app.env", "mine");
        let (_, plaintext) = gathered(&lab).unwrap();
        let taken = PassingLink { path: lab.path("app.env"), encrypted: lab.path("app.env.enc") };
        assert_eq!(plaintext.names_taken(), [taken]);
        drop(plaintext);
        assert_eq!(std::fs::read_to_string(lab.path("app.env")).unwrap(), "mine");
        assert!(lab.log().contains("app.env exists and stays"), "{}", lab.log());
    }

    #[test]
    fn a_file_that_cannot_be_had_is_named_and_nothing_stays() {
        let lab = Lab::new("env_file: [good.env.enc, ../absent.env]");
        lab.write_encrypted("good.env.enc", "dotenv", "PASSWORD=correct horse\n");
        let error = gathered(&lab).err().unwrap();
        assert!(error.message.contains("../absent.env"), "{error}");
        assert!(std::fs::symlink_metadata(lab.path("good.env")).is_err());
        assert_eq!(std::fs::read_dir(lab.settings.runtime_path.join("secrets")).unwrap().count(), 0);
    }
}
