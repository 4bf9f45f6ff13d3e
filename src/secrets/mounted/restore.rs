//! Plaintext that is gone is made again: after a reboot, mostly.

use std::fmt;
use std::path::Path;

use super::{Entry, MOUNTED_FOLDER, MountedFiles, Record, Stage, alone, content, failed};
use crate::command::Limit;
use crate::model::RepositoryName;
use crate::secrets::sops::Sops;
use crate::secrets::{MAX_FILE_BYTES, SecretsError};

/// What came of making plaintext again.
#[derive(Debug, Default)]
pub struct Restored {
    /// Repositories of which a file was missing and is there now: Docker may not have been able to start containers that
    /// mount it.
    pub repositories: Vec<RepositoryName>,
    /// What could not be made again.
    pub problems: Vec<NotRestored>,
}

/// A file that could not be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRestored {
    /// Whose it is; none: nobody knows.
    pub repository: Option<RepositoryName>,
    /// The file and the reason, in one line.
    pub problem: String,
}

impl fmt::Display for NotRestored {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.repository {
            Some(name) => write!(formatter, "{name}: {}", self.problem),
            None => formatter.write_str(&self.problem),
        }
    }
}

impl MountedFiles {
    /// Makes every plaintext and link again that a record names and that is not there, from the encrypted file in the
    /// working tree; what is there stays untouched. Asks sops only for what is missing, so that it may be called again
    /// and again. Plaintext that no record names goes, where there was no problem.
    pub fn restore(&self, sops: &Sops, limit: &Limit) -> Restored {
        let mut restored = Restored::default();
        if let Err(error) = self.restore_all(sops, limit, &mut restored) {
            restored.problems.push(NotRestored { repository: None, problem: error.message });
        }
        restored
    }

    fn restore_all(&self, sops: &Sops, limit: &Limit, restored: &mut Restored) -> Result<(), SecretsError> {
        let repositories = Record::repositories(&self.data)?;
        if repositories.is_empty() && !self.runtime.join(MOUNTED_FOLDER).exists() {
            return Ok(());
        }
        for repository in repositories {
            let mut was_missing = false;
            let files = self.record(&repository).map_or_else(
                |error| vec![Err(error)],
                |record| record.files.iter().map(|entry| self.restore_file(&repository, entry, sops, limit)).collect(),
            );
            for file in files {
                match file {
                    Ok(made) => was_missing |= made,
                    Err(error) => restored
                        .problems
                        .push(NotRestored { repository: Some(repository.clone()), problem: error.message }),
                }
            }
            if was_missing {
                restored.repositories.push(repository);
            }
        }
        if restored.problems.is_empty() { self.sweep() } else { Ok(()) }
    }

    /// Answers whether the plaintext was missing.
    fn restore_file(
        &self,
        repository: &RepositoryName,
        entry: &Entry,
        sops: &Sops,
        limit: &Limit,
    ) -> Result<bool, SecretsError> {
        let (target, root) = (self.target(&entry.link)?, &entry.root);
        let is_there = self.is_whole(&target, entry);
        let shown = entry.encrypted.strip_prefix(root).unwrap_or(&entry.encrypted).display().to_string();
        // A key service may take its time, and no deployment should wait for it.
        let decrypted = match is_there {
            true => None,
            false => Some(content(&entry.encrypted, &shown, root, sops, limit)?),
        };
        let _alone = alone();
        let mut record = self.record(repository)?;
        let Some(now) = record.files.iter_mut().find(|now| *now == entry) else {
            // A deployment has taken care of it meanwhile.
            return Ok(false);
        };
        let mut stage = Stage::default();
        if let Some(content) = &decrypted {
            stage.write(&target, content)?;
            let hash = self.hash(content);
            // What lies in the tree is not what was deployed last: an interrupted deployment has left it there.
            now.is_new |= hash != now.hash;
            now.hash = hash;
        }
        now.target.clone_from(&target);
        if *now != *entry {
            record.store(&self.data, repository)?;
        }
        stage.put_in_place()?;
        self.link(&entry.encrypted, &target, root)?;
        Ok(decrypted.is_some())
    }

    /// Whether the plaintext is what was deployed last.
    fn is_whole(&self, target: &Path, entry: &Entry) -> bool {
        let found = std::fs::symlink_metadata(target);
        found.is_ok_and(|found| found.is_file() && found.len() <= MAX_FILE_BYTES as u64)
            && std::fs::read(target).is_ok_and(|content| self.hash(&content) == entry.hash)
    }

    /// Removes plaintext that no record names.
    fn sweep(&self) -> Result<(), SecretsError> {
        let _alone = alone();
        let records = Record::all(&self.data)?;
        let is_named =
            |path: &Path| records.iter().any(|(_, record)| record.files.iter().any(|entry| entry.target == path));
        let folder = self.folder()?;
        let entries = std::fs::read_dir(&folder).map_err(|error| failed("read", &folder, &error))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| !is_named(path)) {
            std::fs::remove_file(&path).map_err(|error| failed("remove", &path, &error))?;
        }
        Ok(())
    }
}
