//! Secret files that stacks mount: decrypted below the runtime folder, which is memory, and kept while a stack is
//! deployed; a link beside each encrypted file leads there, and Docker follows it whenever it starts a container.
//!
//! ```text
//! RUNTIME/secret-files/                  0700
//! RUNTIME/secret-files/DIGEST-tls.key    0444, for containers run as anybody
//! DATA/secret-files/PROJECT.REPO.json    which of them a repository has, written before they are made
//! ```
//!
//! `DIGEST` is made of the link's path. So an encrypted file has one plaintext and one link, however many repositories
//! name it (they share a working tree then, and thus its content), and both go when nobody names it any more.
//!
//! After a reboot the runtime folder is empty while links and containers are still there: the records say what has to be
//! made again, also for a repository that no project file names any more. They hold paths and keyed hashes, nothing
//! secret.

mod record;
mod restore;
mod stage;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::SecretsError;
use super::beside::{Beside, Lies};
use super::file::{CIPHERTEXT, damaged, plain_name, read_text};
use super::runtime::{TEMPORARY_FOLDER, failed, private_folder};
use super::sops::{Format, Sops};
use crate::command::Limit;
use crate::model::RepositoryName;
use record::{Entry, Record};
use stage::Stage;

pub use restore::{NotRestored, Restored};

/// Below the runtime folder, and below the data folder.
pub(super) const MOUNTED_FOLDER: &str = "secret-files";
/// How much of the digest of a link's path goes into a file's name.
const DIGEST_BYTES: usize = 8;

/// Two repositories may share a link, and deployments, `prune` and the daemon's own tries go on side by side.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether a path is a link to a secret file's plaintext below this runtime folder.
pub fn is_link(path: &Path, runtime: &Path) -> bool {
    folder(runtime).is_some_and(|folder| std::fs::read_link(path).is_ok_and(|target| target.starts_with(folder)))
}

/// Where the links of secret files lead; none without a runtime folder.
pub fn folder(runtime: &Path) -> Option<PathBuf> {
    runtime.canonicalize().ok().map(|runtime| runtime.join(MOUNTED_FOLDER))
}

/// The secret files of this host.
pub struct MountedFiles {
    runtime: PathBuf,
    data: PathBuf,
    hash_key: [u8; 32],
}

/// A secret file, decrypted in memory.
pub struct Decrypted {
    root: PathBuf,
    encrypted: PathBuf,
    link: PathBuf,
    target: PathBuf,
    content: Vec<u8>,
    hash: String,
}

/// A secret file that a repository has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedFile {
    /// The encrypted file; its folder's links are followed.
    pub encrypted: PathBuf,
    /// The link beside it, which stacks mount.
    pub link: PathBuf,
    /// The plaintext that it leads to.
    pub target: PathBuf,
    /// Whether no `up` has ended well since it got its content: containers may have an earlier one.
    pub is_new: bool,
}

/// What containers that start find before a switch, for [`MountedFiles::switch_back`]. Serialised it holds plaintext.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Before {
    record: Record,
    contents: Vec<(PathBuf, Vec<u8>)>,
}

impl MountedFiles {
    /// Below these two folders. The key is that of `config::hash_key`.
    pub fn new(runtime: &Path, data: &Path, hash_key: &[u8; 32]) -> MountedFiles {
        MountedFiles { runtime: runtime.to_owned(), data: data.to_owned(), hash_key: *hash_key }
    }

    /// Decrypts a file of the working tree `root`, in memory; `shown` is its name in messages. Nothing that containers
    /// or people see changes.
    ///
    /// # Errors
    /// A name without `.enc` or `.sops`; something under the link's name that is not our link; a file that is not there,
    /// not encrypted, too large or outside of `root`; what sops says.
    pub fn decrypt(
        &self,
        encrypted: &Path,
        shown: &str,
        root: &Path,
        sops: &Sops,
        limit: &Limit,
    ) -> Result<Decrypted, SecretsError> {
        let Some(beside) = Beside::of(encrypted, Some(root))? else {
            return Err(SecretsError::last(format!(
                "`secret_files` names {shown}, which has no `.enc` or `.sops` in its name, so there is none for the decrypted file: rename it to {shown}.enc"
            )));
        };
        if !self.is_free(&beside)? {
            return Err(taken(&beside, shown));
        }
        let content = content(encrypted, shown, root, sops, limit)?;
        Ok(Decrypted {
            root: root.to_owned(),
            encrypted: beside.encrypted(encrypted),
            target: self.target(&beside.link())?,
            link: beside.link(),
            hash: self.hash(&content),
            content,
        })
    }

    /// Gives containers that start from now on these files: their links, and their content under its name by a rename,
    /// so that a running container keeps what it has. Files that the repository had and that are not among them stay.
    /// Answers those of `files` that containers may have with another content.
    ///
    /// # Errors
    /// What the system says (a full runtime folder, a folder that cannot be written), or something under a link's name
    /// that was not there before. No content has changed then, and no link stays that was not there.
    pub fn switch(&self, repository: &RepositoryName, files: &[Decrypted]) -> Result<Vec<MountedFile>, SecretsError> {
        let _alone = alone();
        let before = self.record(repository)?;
        let mut record = before.clone();
        files.iter().for_each(|file| record.take(file));
        let mut stage = Stage::default();
        for file in files.iter().filter(|file| !has_content(&file.target, &file.content)) {
            stage.write(&file.target, &file.content)?;
        }
        if record != before {
            record.store(&self.data, repository)?;
        }
        self.link_all(files).inspect_err(|_| self.take_back(repository, &before, &record))?;
        stage.put_in_place()?;
        let given = |entry: &&Entry| files.iter().any(|file| file.link == entry.link);
        Ok(record.files.iter().filter(given).filter(|entry| entry.is_new).map(Entry::file).collect())
    }

    /// What lies there now, and goes when these files are switched.
    ///
    /// # Errors
    /// The record's, or a plaintext that cannot be read.
    pub fn before(&self, repository: &RepositoryName, files: &[Decrypted]) -> Result<Before, SecretsError> {
        let _alone = alone();
        let mut contents = Vec::new();
        for file in files {
            match std::fs::read(&file.target) {
                Ok(content) => contents.push((file.target.clone(), content)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed("read", &file.target, &error)),
            }
        }
        Ok(Before { record: self.record(repository)?, contents })
    }

    /// Undoes a switch: containers that start find what lay there before it, and what it made is gone.
    ///
    /// # Errors
    /// What the system says; what could not be undone is what was switched.
    pub fn switch_back(&self, repository: &RepositoryName, before: &Before) -> Result<(), SecretsError> {
        {
            let _alone = alone();
            let mut stage = Stage::default();
            for (target, content) in before.contents.iter().filter(|(target, content)| !has_content(target, content)) {
                stage.write(target, content)?;
            }
            stage.put_in_place()?;
        }
        let links: Vec<PathBuf> = before.record.files.iter().map(|entry| entry.link.clone()).collect();
        self.keep_only(repository, &links)?;
        let _alone = alone();
        if self.record(repository)? == before.record { Ok(()) } else { before.record.store(&self.data, repository) }
    }

    /// Remembers that the containers of a repository were made with the files as they are: its `up` has ended well.
    ///
    /// # Errors
    /// The record's.
    pub fn settle(&self, repository: &RepositoryName) -> Result<(), SecretsError> {
        let _alone = alone();
        let mut record = self.record(repository)?;
        if record.files.iter().all(|entry| !entry.is_new) {
            return Ok(());
        }
        record.files.iter_mut().for_each(|entry| entry.is_new = false);
        record.store(&self.data, repository)
    }

    /// The repositories that have secret files, by name.
    ///
    /// # Errors
    /// The system's.
    pub fn repositories(&self) -> Result<Vec<RepositoryName>, SecretsError> {
        Record::repositories(&self.data)
    }

    /// The files that a repository has.
    ///
    /// # Errors
    /// The record's.
    pub fn files(&self, repository: &RepositoryName) -> Result<Vec<MountedFile>, SecretsError> {
        Ok(self.record(repository)?.files.iter().map(Entry::file).collect())
    }

    /// Removes the files of a repository whose links are not among `kept`: plaintext and link, unless another
    /// repository has the same. What is no link of ours (any more) stays. Answers the links that are gone.
    ///
    /// # Errors
    /// What could not be removed, or the record's. The rest is removed all the same, and the next call tries again.
    pub fn keep_only(&self, repository: &RepositoryName, kept: &[PathBuf]) -> Result<Vec<PathBuf>, SecretsError> {
        let _alone = alone();
        let mut record = self.record(repository)?;
        if record.files.iter().all(|entry| kept.contains(&entry.link)) {
            return Ok(Vec::new());
        }
        let others = Record::all(&self.data)?;
        let is_shared = |entry: &Entry| {
            others
                .iter()
                .any(|(name, other)| name != repository && other.files.iter().any(|file| file.link == entry.link))
        };
        let (mut left, mut gone, mut problem) = (Vec::new(), Vec::new(), None);
        for entry in std::mem::take(&mut record.files) {
            if kept.contains(&entry.link) {
                left.push(entry);
            } else if !is_shared(&entry) {
                match entry.remove() {
                    Ok(()) => gone.push(entry.link),
                    Err(error) => {
                        left.push(entry);
                        problem = Some(error);
                    }
                }
            }
        }
        record.files = left;
        record.store(&self.data, repository)?;
        problem.map_or(Ok(gone), Err)
    }

    /// Makes all links, or none.
    fn link_all(&self, files: &[Decrypted]) -> Result<(), SecretsError> {
        let mut made: Vec<Beside> = Vec::new();
        for file in files {
            match self.link(&file.encrypted, &file.target, &file.root) {
                Ok(link) => made.extend(link),
                Err(error) => {
                    // One that cannot be removed leads nowhere, and the next switch takes it for ours.
                    made.iter().for_each(|link| drop(link.remove_link()));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Stores again what is the case. Where that fails, files are taken for new that are not.
    fn take_back(&self, repository: &RepositoryName, before: &Record, record: &Record) {
        if record == before {
            return;
        }
        if let Err(error) = before.store(&self.data, repository) {
            log::warn!("{repository}: {error}");
        }
    }

    /// Makes the link beside `encrypted` where it is missing or leads to an earlier place; answers one that was missing.
    fn link(&self, encrypted: &Path, target: &Path, root: &Path) -> Result<Option<Beside>, SecretsError> {
        let Some(beside) = Beside::of(encrypted, Some(root))? else { return Ok(None) };
        let is_missing = match beside.lies_there()? {
            Lies::Link(found) if found == target => return Ok(None),
            Lies::Nothing => true,
            Lies::Link(_) if self.is_free(&beside)? => {
                beside.remove_link()?;
                false
            }
            Lies::Link(_) | Lies::Folder | Lies::Other => return Err(taken(&beside, &encrypted.display().to_string())),
        };
        if !beside.make_link(target)? {
            return Err(taken(&beside, &encrypted.display().to_string()));
        }
        Ok(is_missing.then_some(beside))
    }

    /// Whether a link can be made: nothing lies there, or a link of ours. That is one into the runtime folder, also the
    /// one that an `env_file` has for a time, or into an earlier one under the name that only this link leads to.
    fn is_free(&self, beside: &Beside) -> Result<bool, SecretsError> {
        let found = match beside.lies_there()? {
            Lies::Nothing => return Ok(true),
            Lies::Link(found) => found,
            Lies::Folder | Lies::Other => return Ok(false),
        };
        let target = self.target(&beside.link())?;
        let folder = self.folder()?;
        let of_folder = |path: &Path| path.parent().and_then(Path::file_name).map(ToOwned::to_owned);
        Ok(found.starts_with(&folder)
            || found.starts_with(folder.with_file_name(TEMPORARY_FOLDER))
            || (found.file_name() == target.file_name() && of_folder(&found) == of_folder(&target)))
    }

    fn record(&self, repository: &RepositoryName) -> Result<Record, SecretsError> {
        Record::of(&self.data, repository)
    }

    /// The folder of all plaintext, made where it is missing.
    fn folder(&self) -> Result<PathBuf, SecretsError> {
        private_folder(&self.runtime.join(MOUNTED_FOLDER))
    }

    /// Where the plaintext lies that a link leads to.
    fn target(&self, link: &Path) -> Result<PathBuf, SecretsError> {
        let digest = Sha256::digest(link.as_os_str().as_encoded_bytes());
        let name = link.file_name().unwrap_or_default().to_string_lossy();
        Ok(self.folder()?.join(format!("{}-{name}", hexadecimal(&digest[..DIGEST_BYTES]))))
    }

    /// HMAC-SHA256 in hexadecimal digits: nobody who reads a record can try contents out.
    fn hash(&self, content: &[u8]) -> String {
        // Spelt out, because both traits that HMAC implements have a constructor of this name.
        let mut hash = <Hmac<Sha256> as Mac>::new_from_slice(&self.hash_key).expect("HMAC takes a key of any length");
        hash.update(b"secret file\0");
        hash.update(content);
        hexadecimal(&hash.finalize().into_bytes())
    }
}

impl Decrypted {
    /// The encrypted file; its folder's links are followed.
    pub fn encrypted(&self) -> &Path {
        &self.encrypted
    }

    /// The link that leads to it, or will.
    pub fn link(&self) -> &Path {
        &self.link
    }

    /// Its text; none where it is none.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.content).ok()
    }
}

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads and decrypts.
fn content(path: &Path, shown: &str, root: &Path, sops: &Sops, limit: &Limit) -> Result<Vec<u8>, SecretsError> {
    let text = read_text(path, &format!("the secret file {shown}"), Some(root))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = plain_name(&name).unwrap_or_default();
    match Format::detect(&text, &plain) {
        Some(format) => sops.decrypt(shown, &text, format, limit),
        None if text.contains(CIPHERTEXT) => Err(damaged(shown)),
        None => Err(SecretsError::last(format!(
            "`secret_files` names {shown}, which is not encrypted: encrypt it with `sops encrypt -i`, or take it out of `secret_files` and mount it as it is"
        ))),
    }
}

/// Whether a plaintext lies there, whole and with this content.
fn has_content(target: &Path, content: &[u8]) -> bool {
    let found = std::fs::symlink_metadata(target);
    found.is_ok_and(|found| found.is_file() && found.len() == content.len() as u64)
        && std::fs::read(target).is_ok_and(|found| found == content)
}

fn taken(beside: &Beside, shown: &str) -> SecretsError {
    let link = beside.link();
    // `remove_dir` only ever removes an empty one; this is how Docker leaves it.
    let hint = match std::fs::read_dir(&link).map(|mut entries| entries.next().is_none()) {
        Ok(true) => " (an empty folder: Docker leaves one where a file that it was to mount is missing)",
        _ => "",
    };
    SecretsError::last(format!(
        "{}{hint} lies where the link to the decrypted {shown} belongs, and is not ours: move it away, or take {shown} out of `secret_files`",
        link.display()
    ))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
