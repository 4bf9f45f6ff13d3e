//! Real encryption: an age key, and sops.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// What an encrypted file holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// `NAME=value` lines.
    Dotenv,
    /// Flat YAML.
    Yaml,
    /// Flat JSON.
    Json,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Format::Dotenv => "dotenv",
            Format::Yaml => "yaml",
            Format::Json => "json",
        }
    }

    /// `variables` as a plain text of this format.
    pub fn write(self, variables: &[(&str, &str)]) -> String {
        match self {
            Format::Dotenv => variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect(),
            Format::Yaml => variables.iter().map(|(name, value)| format!("{name}: \"{value}\"\n")).collect(),
            Format::Json => {
                let map: serde_json::Map<_, _> =
                    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
                serde_json::Value::Object(map).to_string()
            }
        }
    }
}

/// An age key of its own.
pub struct Sops {
    folder: TempDir,
    recipient: String,
}

impl Sops {
    /// Makes a key.
    pub fn new() -> Sops {
        let folder = TempDir::with_prefix("shiparr-test-sops-").expect("make a folder");
        let key = folder.path().join("key.txt");
        let made = Command::new("age-keygen").arg("-o").arg(&key).output().expect("start age-keygen");
        assert!(made.status.success(), "age-keygen: {}", String::from_utf8_lossy(&made.stderr));
        let text = fs::read_to_string(&key).expect("the key was written");
        let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).expect("it names its half");
        Sops { recipient: recipient.to_owned(), folder }
    }

    /// For `SOPS_AGE_KEY_FILE`.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("key.txt")
    }

    /// `variables`, encrypted.
    pub fn encrypt(&self, format: Format, variables: &[(&str, &str)]) -> String {
        self.encrypt_as(format.word(), &format.write(variables))
    }

    /// A text of no format in particular, encrypted.
    pub fn encrypt_text(&self, text: &str) -> String {
        self.encrypt_as("binary", text)
    }

    fn encrypt_as(&self, format: &str, text: &str) -> String {
        let plain = TempDir::new_in(self.folder.path()).expect("make a folder");
        let file = plain.path().join("plain");
        fs::write(&file, text).expect("write the plain text");
        let output_format = if format == "binary" { "json" } else { format };
        let output = Command::new("sops")
            .args(["--encrypt", "--age", &self.recipient, "--input-type", format, "--output-type", output_format])
            .arg(&file)
            .env("HOME", self.folder.path())
            .output()
            .expect("start sops");
        assert!(output.status.success(), "sops: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("sops writes text")
    }
}
