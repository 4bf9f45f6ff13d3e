//! One process at a time holds the data folder, and one the runtime folder: each start cleans up what it finds in them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// In the data folder.
pub const DATA_LOCK: &str = "Shiparr.lock";
/// In the runtime folder.
pub const RUNTIME_LOCK: &str = "runtime.lock";

/// Held as long as the process lives; the system gives it back however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the lock file `path`, in the folder that `setting` names.
///
/// # Errors
/// Another process holds it: the message says which, and what to use instead.
pub fn take(path: &Path, setting: &str) -> anyhow::Result<Lock> {
    match take_if_free(path)? {
        Ok(lock) => Ok(lock),
        Err(holder) => bail!(
            "another Shiparr ({holder}) works on {}: use `shiparr status` and `shiparr deploy REPO` to talk to it, or give this one another {setting}",
            path.parent().unwrap_or(path).display()
        ),
    }
}

/// Takes the lock file `path`, unless another process holds it; then it answers which, for people.
///
/// # Errors
/// A file that cannot be opened or locked.
pub fn take_if_free(path: &Path) -> anyhow::Result<Result<Lock, String>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            bail!("cannot lock {}: {error}", path.display());
        }
        let mut holder = String::new();
        // The number is for people only: the lock itself says that somebody is there.
        let _ = file.read_to_string(&mut holder);
        let holder = holder.trim();
        return Ok(Err(format!("process {}", if holder.is_empty() { "unknown" } else { holder })));
    }
    // Most starts follow a stop by the same number of digits; nothing depends on this text.
    let _ = file.set_len(0);
    let _ = file.seek(SeekFrom::Start(0));
    let _ = writeln!(file, "{}", std::process::id());
    Ok(Ok(Lock { _file: file }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Shiparr.lock");
        let first = take(&path, "Shiparr_DATA_PATH").unwrap();
        let error = take(&path, "Shiparr_DATA_PATH").unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("shiparr status") && error.contains("Shiparr_DATA_PATH"), "{error}");
        drop(first);
        take(&path, "Shiparr_DATA_PATH").unwrap();
    }
}
