//! One env file from disk to variables: plain or encrypted, in any of the syntaxes.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::env_file::{self, Surroundings, Syntax, Variable};
use super::sops::{Format, Sops};
use super::{Secret, SecretsError};
use crate::command::Limit;

/// A larger env file is none.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// What every value that sops encrypted begins with.
pub const CIPHERTEXT: &str = "ENC[AES256_GCM,";

/// An env file that was read.
pub struct EnvFile {
    /// In the file's order.
    pub variables: Vec<Variable>,
    /// The decrypted text as it was before the encryption; none for a file that is plain.
    pub decrypted: Option<Secret>,
}

/// The name without its `.enc` or `.sops`: `.env.enc` is `.env`, `secrets.enc.yaml` is `secrets.yaml`; none where it
/// has neither.
pub fn plain_name(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = name.split('.').collect();
    let index = parts.iter().rposition(|part| matches!(*part, "enc" | "sops")).filter(|index| *index > 0)?;
    parts.remove(index);
    let plain = parts.join(".");
    (!plain.is_empty() && plain != ".").then_some(plain)
}

/// Reads an env file, decrypts it where it is encrypted, and parses it. It has to lie in `within`, also after links are
/// followed; `shown` is its name in messages.
///
/// # Errors
/// A file that is not there, not readable, too large or outside; one that is named as encrypted and is not; what sops
/// and the parser say.
pub fn read_env_file(
    path: &Path,
    shown: &str,
    within: Option<&Path>,
    sops: &Sops,
    surroundings: Surroundings<'_>,
    limit: &Limit,
) -> Result<EnvFile, SecretsError> {
    let text = read_text(path, &format!("the env file {shown}"), within)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let without_ending = plain_name(&name);
    let plain = without_ending.as_deref().unwrap_or(&name);
    let (text, syntax, decrypted) = match Format::detect(&text, plain) {
        Some(format) => {
            let syntax = match format {
                Format::Dotenv => Syntax::Dotenv,
                Format::Yaml => Syntax::Yaml,
                Format::Json => Syntax::Json,
                Format::Binary => Syntax::of_name(plain),
            };
            (as_text(sops.decrypt(shown, &text, format, limit)?, &format!("the env file {shown}"))?, syntax, true)
        }
        None if text.contains(CIPHERTEXT) => {
            return Err(damaged(shown));
        }
        None if without_ending.is_some() => {
            return Err(SecretsError::last(format!(
                "{shown} is named like an encrypted file and is not one: encrypt it with `sops encrypt`, or name it {plain}"
            )));
        }
        None => (text, Syntax::of_name(plain), false),
    };
    let variables = env_file::parse(&text, syntax, surroundings)
        .map_err(|error| SecretsError::last(format!("{shown}, {error}")))?;
    Ok(EnvFile { variables, decrypted: decrypted.then(|| Secret::new(text)) })
}

/// Whether sops encrypted a file of the working tree `within`; false where it cannot be read.
pub fn is_encrypted(path: &Path, within: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = plain_name(&name).unwrap_or_default();
    read_text(path, "", Some(within)).is_ok_and(|text| Format::detect(&text, &plain).is_some())
}

/// Encrypted values without what sops needs to decrypt them.
pub(super) fn damaged(shown: &str) -> SecretsError {
    SecretsError::last(format!(
        "{shown} holds encrypted values, but what sops wrote about them (its `sops` part) is missing: the file is damaged"
    ))
}

/// Reads a text file of at most [`MAX_FILE_BYTES`]; `what` is the file as messages name it.
///
/// # Errors
/// It is not there, not readable, too large, no file, no text, or outside of `within` once links are followed.
pub(super) fn read_text(path: &Path, what: &str, within: Option<&Path>) -> Result<String, SecretsError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => SecretsError::last(format!("{what} does not exist")),
        ErrorKind::PermissionDenied => SecretsError::last(format!("{what} may not be read by this user")),
        _ => SecretsError::passing(format!("cannot read {what}: {error}")),
    };
    // What is looked at is what is read, whatever becomes of the path meanwhile; and nothing but a file is opened.
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let found = File::from(found.map_err(|error| failed(error.into()))?);
    if let Some(folder) = within {
        let folder = folder.canonicalize().map_err(failed)?;
        if !real_path(&found).map_err(failed)?.starts_with(&folder) {
            return Err(SecretsError::last(format!("{what} lies outside its repository")));
        }
    }
    if !found.metadata().map_err(failed)?.is_file() {
        return Err(SecretsError::last(format!("{what} is not a file")));
    }
    let file = File::open(proc_path(&found)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(SecretsError::last(format!("{what} is larger than {MAX_FILE_BYTES} bytes")));
    }
    as_text(bytes, what)
}

/// Where an open file or folder lies, links followed.
pub(super) fn real_path(file: &impl AsFd) -> std::io::Result<PathBuf> {
    std::fs::read_link(proc_path(file))
}

fn proc_path(file: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

fn as_text(bytes: Vec<u8>, what: &str) -> Result<String, SecretsError> {
    String::from_utf8(bytes).map_err(|_| SecretsError::last(format!("{what} is not UTF-8 text")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOTHING: Surroundings<'static> = Surroundings { lookup: &|_| None, blank_unset: false };

    fn read(folder: &Path, name: &str) -> Result<EnvFile, SecretsError> {
        let sops = Sops { program: "sops-is-not-here".into(), environment: Vec::new() };
        read_env_file(&folder.join(name), name, Some(folder), &sops, NOTHING, &Limit::after(Duration::from_secs(9)))
    }

    #[test]
    fn names_lose_the_part_that_says_encrypted() {
        for (name, plain) in [
            (".env.enc", Some(".env")),
            ("secrets.enc.yaml", Some("secrets.yaml")),
            ("x.sops.json", Some("x.json")),
            ("prod.env.sops", Some("prod.env")),
            (".enc.env", Some(".env")),
            (".env", None),
            (".enc", None),
            ("enc.yaml", None),
            ("sops", None),
            ("x.encrypted", None),
        ] {
            assert_eq!(plain_name(name).as_deref(), plain, "{name}");
        }
    }

    #[test]
    fn plain_files_are_read_by_their_ending() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [(".env", "A=1 # x"), ("a.yaml", "A: 1 # x"), ("a.json", "{\"A\": 1}")] {
            std::fs::write(folder.path().join(name), text).unwrap();
            let file = read(folder.path(), name).unwrap();
            assert_eq!(file.variables, [("A".to_owned(), Secret::new("1"))], "{name}");
            assert!(file.decrypted.is_none());
        }
    }

    #[test]
    fn what_is_no_env_file_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        std::fs::write(folder.path().join("large"), vec![b'#'; MAX_FILE_BYTES + 1]).unwrap();
        std::fs::write(folder.path().join("bytes"), b"A=\xff").unwrap();
        std::fs::write(folder.path().join(".env.enc"), "A=1").unwrap();
        std::fs::write(folder.path().join("cut"), "A=ENC[AES256_GCM,data:x]").unwrap();
        std::fs::write(folder.path().join("bad"), "A=1\nno variable").unwrap();
        for (name, part) in [
            ("missing", "does not exist"),
            ("link", "outside its repository"),
            ("folder", "is not a file"),
            ("pipe", "is not a file"),
            ("large", "larger than"),
            ("bytes", "UTF-8"),
            (".env.enc", "or name it .env"),
            ("cut", "damaged"),
            ("bad", "line 2"),
        ] {
            let error = read(folder.path(), name).err().unwrap();
            assert!(error.message.contains(part) && error.message.contains(name), "{name}: {error}");
        }
    }
}
