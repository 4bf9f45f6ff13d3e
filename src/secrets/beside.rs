//! The place beside an encrypted file where a link to its plain text lies: under its name without `.enc` or `.sops`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::SecretsError;
use super::file::{plain_name, real_path};
use super::runtime::failed;

/// The place for a link. Its folder is held open, so that what is checked and what is written to are the same folder,
/// whatever happens to the path meanwhile.
pub struct Beside {
    folder: OwnedFd,
    real: PathBuf,
    name: String,
}

/// What lies under a link's name.
#[derive(Debug, PartialEq, Eq)]
pub enum Lies {
    /// Nothing.
    Nothing,
    /// A link, and where it leads.
    Link(PathBuf),
    /// A folder.
    Folder,
    /// A file, mostly.
    Other,
}

impl Beside {
    /// The place beside `encrypted`; none where its name has no `.enc` or `.sops`. The folder must belong to `within`,
    /// also after links are followed.
    ///
    /// # Errors
    /// A folder that leads out of `within`, or that is not there.
    pub fn of(encrypted: &Path, within: Option<&Path>) -> Result<Option<Beside>, SecretsError> {
        let name = encrypted.file_name().and_then(|name| plain_name(&name.to_string_lossy()));
        let (Some(parent), Some(name)) = (encrypted.parent(), name) else { return Ok(None) };
        let opened = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let folder = opened.map_err(|error| failed("open", parent, &error.into()))?;
        let real = real_path(&folder).map_err(|error| failed("open", parent, &error))?;
        if let Some(within) = within {
            let within = within.canonicalize().map_err(|error| failed("open", within, &error))?;
            if !real.starts_with(within) {
                let problem = format!("the folder {} leads out of its repository", parent.display());
                return Err(SecretsError::last(problem));
            }
        }
        Ok(Some(Beside { folder, real, name }))
    }

    /// The link's path, its folder's links followed.
    pub fn link(&self) -> PathBuf {
        self.real.join(&self.name)
    }

    /// The encrypted file's path, its folder's links followed.
    pub fn encrypted(&self, encrypted: &Path) -> PathBuf {
        encrypted.file_name().map_or_else(|| self.real.clone(), |name| self.real.join(name))
    }

    /// Looks.
    ///
    /// # Errors
    /// The system's.
    pub fn lies_there(&self) -> Result<Lies, SecretsError> {
        match rustix::fs::readlinkat(&self.folder, self.name.as_str(), Vec::new()) {
            Ok(target) => return Ok(Lies::Link(PathBuf::from(OsString::from_vec(target.into_bytes())))),
            Err(Errno::NOENT) => return Ok(Lies::Nothing),
            // Not a link.
            Err(Errno::INVAL) => {}
            Err(error) => return Err(failed("look at", &self.link(), &error.into())),
        }
        Ok(if self.link().is_dir() { Lies::Folder } else { Lies::Other })
    }

    /// Makes the link; false where something lies there meanwhile.
    ///
    /// # Errors
    /// The system's.
    pub fn make_link(&self, target: &Path) -> Result<bool, SecretsError> {
        match rustix::fs::symlinkat(target, &self.folder, self.name.as_str()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(failed("make", &self.link(), &error.into())),
        }
    }

    /// Removes the link that was looked at.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_link(&self) -> Result<(), SecretsError> {
        let removed = rustix::fs::unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
        removed.map_err(|error| failed("remove", &self.link(), &error.into()))
    }
}
