//! Which secret files a repository has, on the disk of the data folder.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Decrypted, MOUNTED_FOLDER, MountedFile};
use crate::model::RepositoryName;
use crate::secrets::SecretsError;
use crate::secrets::runtime::{PRIVATE_FILE, failed, private_folder};

/// The secret files of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// By their links.
    pub files: Vec<Entry>,
}

/// One of them; see [`MountedFile`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The working tree that it belongs to.
    pub root: PathBuf,
    pub encrypted: PathBuf,
    pub link: PathBuf,
    pub target: PathBuf,
    /// Keyed, of the content.
    pub hash: String,
    pub is_new: bool,
}

impl Record {
    /// A repository's; an empty one where it has none.
    pub fn of(data: &Path, repository: &RepositoryName) -> Result<Record, SecretsError> {
        let path = path_of(data, repository);
        match std::fs::read(&path) {
            Ok(text) => parse(&path, &text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Every repository's.
    pub fn all(data: &Path) -> Result<Vec<(RepositoryName, Record)>, SecretsError> {
        let of = |name: RepositoryName| Record::of(data, &name).map(|record| (name, record));
        Record::repositories(data)?.into_iter().map(of).collect()
    }

    /// Those that have one, by name.
    pub fn repositories(data: &Path) -> Result<Vec<RepositoryName>, SecretsError> {
        let folder = data.join(MOUNTED_FOLDER);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &folder, &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| failed("read", &folder, &error))?.file_name();
            names.extend(name.to_str().and_then(repository_of));
        }
        names.sort_by_key(ToString::to_string);
        Ok(names)
    }

    /// Stores it so that a crash, also one of the machine, leaves this one or the one before; an empty one is removed.
    pub fn store(&self, data: &Path, repository: &RepositoryName) -> Result<(), SecretsError> {
        let path = path_of(data, repository);
        let written = private_folder(&data.join(MOUNTED_FOLDER)).map(|folder| self.write(&folder, &path))?;
        written.map_err(|error| failed("write", &path, &error))
    }

    fn write(&self, folder: &Path, path: &Path) -> std::io::Result<()> {
        if self.files.is_empty() {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => return File::open(folder)?.sync_all(),
            }
        }
        let unfinished = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(PRIVATE_FILE).open(&unfinished)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        File::open(folder)?.sync_all()
    }

    /// Puts a file in. It is new where its content is, and stays new until it is settled.
    pub fn take(&mut self, file: &Decrypted) {
        let before = self.files.iter().position(|entry| entry.link == file.link).map(|index| self.files.remove(index));
        self.files.push(Entry {
            root: file.root.clone(),
            encrypted: file.encrypted.clone(),
            link: file.link.clone(),
            target: file.target.clone(),
            is_new: before.is_none_or(|before| before.is_new || before.hash != file.hash),
            hash: file.hash.clone(),
        });
        self.files.sort_by(|one, other| one.link.cmp(&other.link));
    }
}

impl Entry {
    pub fn file(&self) -> MountedFile {
        MountedFile {
            encrypted: self.encrypted.clone(),
            link: self.link.clone(),
            target: self.target.clone(),
            is_new: self.is_new,
        }
    }

    /// Removes link and plaintext; what is no link of ours any more stays.
    pub fn remove(&self) -> Result<(), SecretsError> {
        if std::fs::read_link(&self.link).is_ok_and(|found| found == self.target) {
            std::fs::remove_file(&self.link).map_err(|error| failed("remove", &self.link, &error))?;
        }
        match std::fs::remove_file(&self.target) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &self.target, &error)),
            _ => Ok(()),
        }
    }
}

/// Neither name has a dot in it.
fn path_of(data: &Path, repository: &RepositoryName) -> PathBuf {
    data.join(MOUNTED_FOLDER).join(format!("{}.{}.json", repository.project, repository.name))
}

fn repository_of(file_name: &str) -> Option<RepositoryName> {
    let (project, name) = file_name.strip_suffix(".json")?.split_once('.')?;
    Some(RepositoryName { project: project.to_owned(), name: name.to_owned() })
}

fn parse(path: &Path, text: &[u8]) -> Result<Record, SecretsError> {
    serde_json::from_slice(text).map_err(|error| {
        let way_out = "remove it, and deploy its repository again";
        SecretsError::last(format!("{} is damaged ({error}): {way_out}", path.display()))
    })
}
