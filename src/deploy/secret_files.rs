//! `secret_files`: what a deployment does with the SOPS files that its stack mounts. They are decrypted in step 2,
//! looked for among the mounts in step 3, given their names right before `up` begins, and after a success those go that
//! the configuration does not name any more.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::journal::Journal;
use super::variables::Plaintext;
use super::{Mount, Plan, StepError, stack};
use crate::command::Limit;
use crate::config::{Repository, Settings};
use crate::model::RepositoryName;
use crate::secrets::mounted::{Before, Decrypted, MountedFile, Restored};
use crate::secrets::{MountedFiles, SecretsError, Sops, is_encrypted, plain_name};

/// The secret files of a deployment, decrypted in memory.
pub struct SecretFiles {
    repository: RepositoryName,
    root: PathBuf,
    folder: PathBuf,
    mounted: MountedFiles,
    files: Vec<Decrypted>,
    /// The links of those that the configuration names.
    named: Vec<PathBuf>,
    /// What earlier deployments left.
    before: Vec<MountedFile>,
}

/// Secret files that have their names, as `up` needs them.
pub struct Switched {
    repository: RepositoryName,
    mounted: MountedFiles,
    named: Vec<PathBuf>,
    recreate: BTreeSet<String>,
    before: Before,
}

/// What is left of [`Switched`] for another process. Serialised it holds plaintext.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Kept {
    named: Vec<PathBuf>,
    before: Before,
}

/// Decrypts the `secret_files` of the stack in `folder`. The journal learns what stands in them. Nothing changes that
/// containers or people see.
///
/// # Errors
/// A file that cannot be decrypted, or something that is not ours under a link's name; in one line that names it.
pub fn prepare(
    repository: &Repository,
    folder: &Path,
    settings: &Settings,
    hash_key: &[u8; 32],
    limit: &Limit,
    journal: &mut Journal,
) -> Result<SecretFiles, StepError> {
    let mounted = mounted_files(settings, hash_key);
    let before = mounted.files(&repository.name)?;
    let (name, root) = (repository.name.clone(), repository.local_path.clone());
    let named = Vec::new();
    let mut files =
        SecretFiles { repository: name, root, folder: folder.to_owned(), mounted, files: Vec::new(), named, before };
    let sops = sops(settings);
    for file in &repository.secret_files {
        files.decrypt(file, &sops, limit, journal)?;
    }
    files.named = files.files.iter().map(|file| file.link().to_owned()).collect();
    // An `env_file` that was in `secret_files` until now finds its lasting link there this one time still, and should
    // find this commit's content in it.
    for file in &repository.env_files {
        let path = real(&stack::joined(folder, file));
        if files.before.iter().any(|known| known.encrypted == path && !files.named.contains(&known.link)) {
            files.decrypt(file, &sops, limit, journal)?;
        }
    }
    Ok(files)
}

/// Makes plaintext again that is gone, after a reboot mostly: that of every repository that has some, also of those that
/// no project file names any more. Needs no network but for key services. What is there stays untouched, so that it may
/// be called again until there are no problems left.
pub fn restore(settings: &Settings, hash_key: &[u8; 32], limit: &Limit) -> Restored {
    mounted_files(settings, hash_key).restore(&sops(settings), limit)
}

/// Whether any repository has secret files. Looks at records in the data folder alone, and changes nothing.
///
/// # Errors
/// The system's.
pub fn are_there(settings: &Settings) -> Result<bool, SecretsError> {
    // No content is compared, so no key is needed.
    Ok(!mounted_files(settings, &[0; 32]).repositories()?.is_empty())
}

/// Removes all plaintext and links of a repository whose records are forgotten.
///
/// # Errors
/// What could not be removed, in one line.
pub fn forget(repository: &RepositoryName, settings: &Settings, hash_key: &[u8; 32]) -> Result<(), SecretsError> {
    mounted_files(settings, hash_key).keep_only(repository, &[]).map(drop)
}

/// Does that for all but the repositories that are `known`: a crash came between the records and these files. Only
/// before the first deployment, as `known` must not be older than a record. Answers what could not be removed.
pub fn forget_unknown(known: &[RepositoryName], settings: &Settings, hash_key: &[u8; 32]) -> Vec<SecretsError> {
    let unknown = mounted_files(settings, hash_key).repositories().map(|mut repositories| {
        repositories.retain(|repository| !known.contains(repository));
        repositories
    });
    match unknown {
        Ok(unknown) => unknown.iter().filter_map(|name| forget(name, settings, hash_key).err()).collect(),
        Err(error) => vec![error],
    }
}

impl SecretFiles {
    /// Refuses mounts of what will not be there, or not in plain text, when a container starts again.
    ///
    /// # Errors
    /// A mount of an `env_file`'s link, which goes when `up` has ended; of a file that is no secret file any more; of a
    /// file that is still encrypted. Each with the line to write.
    pub fn refuse(&self, plan: &Plan, plaintext: &Plaintext) -> Result<(), StepError> {
        for mount in &plan.mounts {
            let source = real(&mount.source);
            let passing = plaintext.links().iter().find(|link| link.path == source && !self.named.contains(&link.path));
            if let Some(link) = passing {
                return Err(refused(
                    mount,
                    &format!("is there only until `up` has ended: {}", self.line(&link.encrypted)),
                ));
            }
            let before = self.before.iter().find(|file| file.link == source && !self.named.contains(&file.link));
            if let Some(file) = before {
                return Err(refused(
                    mount,
                    &format!(
                        "goes with this deployment, as `secret_files` does not name it any more: {}",
                        self.line(&file.encrypted)
                    ),
                ));
            }
            if is_encrypted(&source, &self.root) {
                return Err(refused(mount, &format!("is encrypted: {}", self.way_to_mount(&source))));
            }
        }
        Ok(())
    }

    /// Gives the files their names and makes their links: after the plan was accepted, right before `up` begins.
    ///
    /// # Errors
    /// What the system says; nothing has changed then. Nor does anything change where there are no secret files.
    pub fn switch(self, plan: &Plan) -> Result<Switched, StepError> {
        let before = self.mounted.before(&self.repository, &self.files)?;
        let new = match self.files.is_empty() {
            true => Vec::new(),
            false => self.mounted.switch(&self.repository, &self.files)?,
        };
        let recreate = mounters(plan, &new);
        Ok(Switched { repository: self.repository, mounted: self.mounted, named: self.named, recreate, before })
    }

    fn decrypt(&mut self, file: &Path, sops: &Sops, limit: &Limit, journal: &mut Journal) -> Result<(), StepError> {
        let path = stack::joined(&self.folder, file);
        let decrypted = self.mounted.decrypt(&path, &file.display().to_string(), &self.root, sops, limit)?;
        match self.files.iter().find(|other| other.link() == decrypted.link()) {
            None => {}
            Some(same) if same.encrypted() == decrypted.encrypted() => return Ok(()),
            Some(other) => {
                return Err(StepError::for_good(format!(
                    "`secret_files`: {} and {} would both be {} when they are decrypted: rename one of them",
                    other.encrypted().display(),
                    decrypted.encrypted().display(),
                    decrypted.link().display()
                )));
            }
        }
        if let Some(text) = decrypted.text() {
            secret_values(text).for_each(|value| journal.learn(value));
        }
        self.files.push(decrypted);
        Ok(())
    }

    /// The line that makes a file of `encrypted` that stays.
    fn line(&self, encrypted: &Path) -> String {
        format!("write `secret_files: [{}]`", relative(&self.folder, encrypted).display())
    }

    fn way_to_mount(&self, encrypted: &Path) -> String {
        let name = encrypted.file_name().unwrap_or_default().to_string_lossy();
        let shown = |name: &str| relative(&self.folder, &encrypted.with_file_name(name)).display().to_string();
        match plain_name(&name) {
            Some(plain) if self.files.iter().any(|file| file.encrypted() == encrypted) => {
                format!("mount ./{}, its decrypted form, instead", shown(&plain))
            }
            Some(plain) => format!("{}, and mount ./{} instead", self.line(encrypted), shown(&plain)),
            None => format!(
                "rename it to {name}.enc, write `secret_files: [{}.enc]`, and mount ./{}",
                shown(&name),
                shown(&name)
            ),
        }
    }
}

impl Switched {
    /// For another process.
    pub fn kept(&self) -> Kept {
        Kept { named: self.named.clone(), before: self.before.clone() }
    }

    /// As another process has left them, whose `up` has got the services that were to be made anew.
    pub fn from_kept(kept: Kept, repository: &RepositoryName, settings: &Settings, hash_key: &[u8; 32]) -> Switched {
        let mounted = mounted_files(settings, hash_key);
        let Kept { named, before } = kept;
        Switched { repository: repository.clone(), mounted, named, recreate: BTreeSet::new(), before }
    }

    /// Services that mount a file whose content is new since their containers were made, as far as is known: a file that
    /// has just become a secret file counts too, so a service of these may have no container yet.
    pub fn recreate(&self) -> &BTreeSet<String> {
        &self.recreate
    }

    /// No container has changed, and the encrypted files are put back: those that start find what they had.
    ///
    /// # Errors
    /// In one line; they may find what was switched.
    pub fn switch_back(&self) -> Result<(), SecretsError> {
        self.mounted.switch_back(&self.repository, &self.before)
    }

    /// The `up` that got these services has ended well: their containers have the content.
    pub fn up_has_ended(&self) {
        if let Err(error) = self.mounted.settle(&self.repository) {
            log::warn!("{}: {error}; its containers that mount secret files are made anew once more", self.repository);
        }
    }

    /// After the success: removes plaintext and links that the configuration does not name any more, and answers these
    /// links.
    ///
    /// # Errors
    /// What could not be removed, in one line; the next success tries again.
    pub fn remove_unnamed(&self) -> Result<Vec<PathBuf>, SecretsError> {
        self.mounted.keep_only(&self.repository, &self.named)
    }
}

fn mounted_files(settings: &Settings, hash_key: &[u8; 32]) -> MountedFiles {
    MountedFiles::new(&settings.runtime_path, &settings.data_path, hash_key)
}

fn sops(settings: &Settings) -> Sops {
    Sops { program: settings.sops_bin.clone(), environment: settings.environment.for_sops() }
}

/// Services that mount one of the files: the link, the plaintext itself, or something that leads there.
fn mounters(plan: &Plan, files: &[MountedFile]) -> BTreeSet<String> {
    let is_of = |mount: &Mount, file: &MountedFile| {
        [&file.link, &file.target].contains(&&mount.source)
            || real(&mount.source) == file.link
            || mount.source.canonicalize().is_ok_and(|path| path == file.target)
    };
    let mounts = plan.mounts.iter().filter(|mount| files.iter().any(|file| is_of(mount, file)));
    mounts.map(|mount| mount.service.clone()).collect()
}

/// What no log may show: each line, and of a line `name: value` or `NAME=value` the value too.
fn secret_values(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| [Some(line), value_of(line)]).flatten()
}

fn value_of(line: &str) -> Option<&str> {
    let (_, value) = line.split_once(": ").or_else(|| line.split_once('='))?;
    Some(value.trim().trim_matches([',', '"', '\'']))
}

fn refused(mount: &Mount, what: &str) -> StepError {
    StepError::for_good(format!("service `{}` mounts {}, which {what}", mount.service, mount.source.display()))
}

/// A path whose folder's links are followed, and not those of its last part, as secret files have theirs.
fn real(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// `path` as it is written in a file of `folder`.
fn relative(folder: &Path, path: &Path) -> PathBuf {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let shared = folder.components().zip(path.components()).take_while(|(one, other)| one == other).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(path.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests;
