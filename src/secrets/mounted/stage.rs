//! New plaintext, written whole before any of it gets its name.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::secrets::SecretsError;
use crate::secrets::runtime::failed;

/// Until the umask cannot take anything away any more.
const UNFINISHED_FILE: u32 = 0o400;
/// For containers whose process is anybody; the folder is nobody else's.
const PLAIN_FILE: u32 = 0o444;

/// Files that wait for their names; dropped, they go.
#[derive(Default)]
pub struct Stage {
    waiting: Vec<(PathBuf, PathBuf)>,
}

impl Stage {
    /// Writes a file that will be `target`.
    pub fn write(&mut self, target: &Path, content: &[u8]) -> Result<(), SecretsError> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // The names of plaintext begin with a digit of their digest.
        let unfinished = target.with_file_name(format!(".{name}"));
        // One that a crash has left.
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &unfinished, &error)),
            _ => {}
        }
        self.waiting.push((unfinished.clone(), target.to_owned()));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(UNFINISHED_FILE).open(&unfinished);
        let written = file.and_then(|mut file| {
            file.write_all(content)?;
            file.set_permissions(std::fs::Permissions::from_mode(PLAIN_FILE))?;
            // Where the runtime folder is no memory, a crash of the machine leaves a whole file too.
            file.sync_all()
        });
        written.map_err(|error| failed("write", target, &error))
    }

    /// Gives all of them their names.
    pub fn put_in_place(mut self) -> Result<(), SecretsError> {
        for (unfinished, target) in &self.waiting {
            std::fs::rename(unfinished, target).map_err(|error| failed("write", target, &error))?;
        }
        self.waiting.clear();
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for (unfinished, _) in &self.waiting {
            if let Err(error) = std::fs::remove_file(unfinished) {
                if error.kind() != ErrorKind::NotFound {
                    log::warn!("a decrypted file stays behind: cannot remove {}: {error}", unfinished.display());
                }
            }
        }
    }
}
