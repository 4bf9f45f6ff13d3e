//! Secrets: the type that does not print, decryption through sops, variables from env files, and the scrubber.

pub mod env_file;
pub mod mounted;
pub mod runtime;
pub mod scrub;
pub mod sops;

mod beside;
mod file;
pub(crate) mod url;

use std::fmt;

use crate::model::Chance;

pub use file::{CIPHERTEXT, EnvFile, MAX_FILE_BYTES, is_encrypted, plain_name, read_env_file};
pub use mounted::MountedFiles;

pub use runtime::RuntimeFolder;
pub use scrub::Scrubber;
pub use sops::Sops;

/// A text that never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for the one who has to hand it over.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// Why there are no variables, or no place for them; one line, without a value.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SecretsError {
    /// What is wrong, where, and the way out.
    pub message: String,
    /// Whether it is worth another try.
    pub chance: Chance,
}

impl SecretsError {
    /// One that only a change helps.
    fn last(message: impl Into<String>) -> SecretsError {
        SecretsError { message: message.into(), chance: Chance::Final }
    }

    /// One that may pass by itself.
    fn passing(message: impl Into<String>) -> SecretsError {
        SecretsError { message: message.into(), chance: Chance::CanPass }
    }
}
