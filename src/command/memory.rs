//! Files for children that never touch a disk.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags};

/// A file in memory that nobody can change, and that every child of this process inherits, as long as this lives: for
/// what must not stand on a disk, among arguments or in an environment. For a process that starts one child; in another
/// one every child would have it.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
}

impl MemoryFile {
    /// With this content.
    ///
    /// # Errors
    /// The system's: no memory, no descriptor.
    pub fn new(content: &[u8]) -> std::io::Result<MemoryFile> {
        // Without CLOEXEC: that is how the child gets it.
        let mut file = File::from(rustix::fs::memfd_create("variables", MemfdFlags::ALLOW_SEALING)?);
        file.write_all(content)?;
        let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, all)?;
        Ok(MemoryFile { file })
    }

    /// Its path, for this process and for every child of it that inherited it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests find programs by their own PATH")]

    use std::time::Duration;

    use super::*;
    use crate::command::{Command, Limit};

    #[test]
    fn a_child_and_its_own_child_read_it_as_often_as_they_like() {
        let file = MemoryFile::new(b"A=1\n").unwrap();
        let path = file.path().display().to_string();
        let script = format!("cat {path}; sh -c 'cat {path} {path}'; echo x >> {path} || echo sealed");
        let environment = [("PATH".into(), std::env::var_os("PATH").unwrap_or_default())];
        let command = Command::new("sh", &environment).args(["-c", &script]);
        let captured = command.capture(&Limit::after(Duration::from_secs(20)), 1000).unwrap();
        assert_eq!(String::from_utf8_lossy(&captured.stdout), "A=1\nA=1\nA=1\nsealed\n");
        drop(file);
        assert!(std::fs::read(path).is_err());
    }
}
