//! Decryption through the `sops` program, from memory to memory.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{MAX_FILE_BYTES, Scrubber, SecretsError};
use crate::command::{Captured, Command, CommandError, Limit};
use crate::model::Chance;

/// More than any key service needs.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Sops has nothing to put in order when it is stopped.
const GRACE: Duration = Duration::from_secs(2);
/// How much of sops's own words goes into an error.
const MAX_QUOTED_CHARACTERS: usize = 300;
/// How many recipients an error names.
const MAX_NAMED_RECIPIENTS: usize = 3;

/// Sops's exit codes that say more than "failed".
mod exit {
    pub(super) const DECRYPTING_MAC: i32 = 24;
    pub(super) const DECRYPTING_TREE: i32 = 25;
    pub(super) const MAC_MISMATCH: i32 = 51;
    pub(super) const MAC_NOT_FOUND: i32 = 52;
    pub(super) const COULD_NOT_RETRIEVE_KEY: i32 = 128;
}

/// The form in which a file was encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `NAME=ENC[…]` lines, and `sops_…` ones.
    Dotenv,
    /// A YAML mapping with the key `sops`.
    Yaml,
    /// A JSON object with the key `sops`.
    Json,
    /// A JSON object that holds a whole file as `data`.
    Binary,
}

impl Format {
    /// What sops calls it.
    fn as_str(self) -> &'static str {
        match self {
            Format::Dotenv => "dotenv",
            Format::Yaml => "yaml",
            Format::Json => "json",
            Format::Binary => "binary",
        }
    }

    /// From the content, as a name says little (sops itself takes `.env.enc` for JSON); none where it is not encrypted.
    /// `plain_name` only tells a JSON file whose one key is `data` from a binary one.
    pub fn detect(text: &str, plain_name: &str) -> Option<Format> {
        if text.trim_start().starts_with('{') {
            let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
            let encrypted = object.contains_key("sops");
            let only_data = object.len() == 2 && object.contains_key("data") && !plain_name.ends_with(".json");
            return encrypted.then_some(if only_data { Format::Binary } else { Format::Json });
        }
        let has_line = |beginning: &str| text.lines().any(|line| line.starts_with(beginning));
        if has_line("sops_mac=") || has_line("sops_version=") {
            Some(Format::Dotenv)
        } else if has_line("sops:") {
            Some(Format::Yaml)
        } else {
            None
        }
    }
}

/// The program, and what it may see.
#[derive(Clone)]
pub struct Sops {
    /// By path or name.
    pub program: PathBuf,
    /// From `Environment::for_sops`.
    pub environment: Vec<(OsString, OsString)>,
}

impl Sops {
    /// Decrypts a file's text; `shown` is the file as messages name it.
    ///
    /// # Errors
    /// Each of its own: no sops, no key, a key that does not fit, a damaged file, the limit.
    pub fn decrypt(&self, shown: &str, text: &str, format: Format, limit: &Limit) -> Result<Vec<u8>, SecretsError> {
        // From standard input, so that what was looked at is what is decrypted; and in `/`, so that no `.sops.yaml` of
        // the repository has a say.
        let result = Command::new(&self.program, &self.environment)
            .args(["-d", "--input-type", format.as_str(), "--output-type", format.as_str(), "/dev/stdin"])
            .folder("/")
            .input(text)
            .grace(GRACE)
            .capture(&limit.at_most(TIME_LIMIT), MAX_FILE_BYTES);
        match result {
            Ok(captured) if captured.status.success() => Ok(captured.stdout),
            Ok(captured) => Err(self.refused(shown, text, &captured)),
            Err(CommandError::NotFound { program }) => Err(SecretsError::last(format!(
                "{shown} is encrypted, and {program} is not installed: install sops (github.com/getsops/sops), or name it in Shiparr_SOPS_BIN"
            ))),
            Err(error @ CommandError::TooMuchOutput { .. }) => Err(SecretsError::last(format!("{shown}: {error}"))),
            Err(error) => Err(SecretsError::passing(format!("cannot decrypt {shown}: {error}"))),
        }
    }

    fn refused(&self, shown: &str, text: &str, captured: &Captured) -> SecretsError {
        match captured.status.code() {
            Some(exit::MAC_MISMATCH | exit::MAC_NOT_FOUND | exit::DECRYPTING_MAC | exit::DECRYPTING_TREE) => {
                SecretsError::last(format!(
                    "{shown} is damaged or was edited by hand: its check sum does not fit its content; encrypt it again with sops"
                ))
            }
            Some(exit::COULD_NOT_RETRIEVE_KEY) => {
                // Key services are asked over the network; a local key does not come by itself.
                let chance = if asks_a_service(text) { Chance::CanPass } else { Chance::Final };
                SecretsError { message: self.key_problem(shown, text, &captured.stderr), chance }
            }
            _ => SecretsError::last(format!("sops cannot decrypt {shown}: {}", self.quote(&captured.stderr))),
        }
    }

    /// Why no key was found, as far as the environment and sops's own words tell.
    fn key_problem(&self, shown: &str, text: &str, said: &str) -> String {
        let recipients = age_recipients(text);
        if recipients.is_empty() {
            return format!("no key for {shown} could be had: {}", self.quote(said));
        }
        let said = unwrapped(said);
        let encrypted = format!("{shown} is encrypted for {}", list(&recipients));
        match self.file_variable("SOPS_AGE_KEY_FILE") {
            Some(file) if !file.exists() => {
                format!("{encrypted}, and the key file {} (SOPS_AGE_KEY_FILE) does not exist", file.display())
            }
            Some(file) if std::fs::File::open(file).is_err() => {
                format!(
                    "{encrypted}, and the key file {} (SOPS_AGE_KEY_FILE) may not be read by this user",
                    file.display()
                )
            }
            Some(file) if said.contains("failed to parse 'SOPS_AGE_KEY_FILE'") => {
                format!(
                    "{encrypted}, and the file {} (SOPS_AGE_KEY_FILE) holds no age key (`AGE-SECRET-KEY-1…`)",
                    file.display()
                )
            }
            Some(file) if said.contains("did not match any of the recipients") => format!(
                "{encrypted}, and the key in {} (SOPS_AGE_KEY_FILE) is another one: add its recipient with `sops updatekeys`, or give the right key",
                file.display()
            ),
            None if said.contains("failed to parse 'SOPS_AGE_KEY'") => {
                format!("{encrypted}, and SOPS_AGE_KEY (the credential age_key) holds no age key (`AGE-SECRET-KEY-1…`)")
            }
            None if said.contains("did not match any of the recipients") => format!(
                "{encrypted}, and the age key that sops found is another one: add its recipient with `sops updatekeys`, or name the right key's file in SOPS_AGE_KEY_FILE"
            ),
            None if said.contains("Did not find keys") => {
                format!(
                    "{encrypted}, and there is no age key here: name its file in SOPS_AGE_KEY_FILE, or give the credential age_key"
                )
            }
            _ => format!("{encrypted}, and no key for it could be had: {}", self.quote(&said)),
        }
    }

    fn file_variable(&self, name: &str) -> Option<&Path> {
        let found = self.environment.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str());
        found.filter(|value| !value.is_empty()).map(Path::new)
    }

    /// The beginning of sops's own words in one line, without what its environment holds.
    fn quote(&self, said: &str) -> String {
        let mut scrubber = Scrubber::new();
        for (name, value) in &self.environment {
            let name = name.to_string_lossy();
            let may_be_secret = ["SOPS_", "AWS_", "VAULT_"].iter().any(|prefix| name.starts_with(prefix));
            if may_be_secret && !name.ends_with("_FILE") {
                scrubber.learn(&value.to_string_lossy());
            }
        }
        let said = scrubber.scrub(&unwrapped(said)).into_owned();
        let mut quote: String = said.chars().take(MAX_QUOTED_CHARACTERS).collect();
        if quote.len() < said.len() {
            quote.push('…');
        }
        if quote.is_empty() { "it says nothing more".to_owned() } else { quote }
    }
}

/// Sops breaks its explanations into lines with a `|` in front.
fn unwrapped(said: &str) -> String {
    said.split_whitespace().filter(|word| !matches!(*word, "|" | "-")).collect::<Vec<_>>().join(" ")
}

fn age_recipients(text: &str) -> Vec<&str> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric());
    let mut recipients: Vec<&str> = words.filter(|word| word.starts_with("age1") && word.len() == 62).collect();
    recipients.dedup();
    recipients
}

fn asks_a_service(text: &str) -> bool {
    ["arn:aws", "vault_address", "vault_url", "vaultUrl", "resource_id"].iter().any(|sign| text.contains(sign))
}

fn list(recipients: &[&str]) -> String {
    let named = recipients.iter().take(MAX_NAMED_RECIPIENTS).copied().collect::<Vec<_>>().join(", ");
    match recipients.len().saturating_sub(MAX_NAMED_RECIPIENTS) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "the tests run the real sops and age, with this process's PATH")]

    use super::*;

    const PLAIN: &str = "USER=somebody\nPASSWORD=correct-horse-battery\n";

    fn limit() -> Limit {
        Limit::after(Duration::from_secs(60))
    }

    /// A folder with two keys, and sops with the first.
    struct Lab {
        folder: tempfile::TempDir,
        recipient: String,
    }

    impl Lab {
        fn new() -> Lab {
            let folder = tempfile::tempdir().unwrap();
            for name in ["key", "other"] {
                let path = folder.path().join(name);
                run("age-keygen", &["-o", path.to_str().unwrap()], "");
            }
            let key = folder.path().join("key");
            let recipient = run("age-keygen", &["-y", key.to_str().unwrap()], "").trim().to_owned();
            Lab { folder, recipient }
        }

        fn sops(&self, key: Option<&str>) -> Sops {
            let mut environment = vec![path(), ("HOME".into(), "/nonexistent".into())];
            environment.extend(key.map(|name| ("SOPS_AGE_KEY_FILE".into(), self.folder.path().join(name).into())));
            Sops { program: "sops".into(), environment }
        }

        fn encrypt(&self, text: &str, format: &str) -> String {
            let types = ["-e", "--age", &self.recipient, "--input-type", format, "--output-type", format, "/dev/stdin"];
            run("sops", &types, text)
        }

        fn error(&self, key: Option<&str>, text: &str) -> SecretsError {
            self.sops(key).decrypt("docker/.env.enc", text, Format::Dotenv, &limit()).unwrap_err()
        }
    }

    fn path() -> (OsString, OsString) {
        ("PATH".into(), std::env::var_os("PATH").unwrap())
    }

    fn run(program: &str, args: &[&str], input: &str) -> String {
        let captured = Command::new(program, &[path()]).args(args).input(input).capture(&limit(), 1 << 20).unwrap();
        assert!(captured.status.success(), "{program}: {}", captured.stderr);
        String::from_utf8(captured.stdout).unwrap()
    }

    #[test]
    fn each_format_is_found_and_decrypted() {
        let lab = Lab::new();
        for (format, name, text) in [
            (Format::Dotenv, ".env", PLAIN),
            (Format::Yaml, "x.yaml", "USER: somebody\nPASSWORD: correct horse\n"),
            (Format::Json, "x.json", "{\n\t\"data\": \"x\"\n}\n"),
            (Format::Json, "x", "{\n\t\"USER\": \"x\",\n\t\"PASSWORD\": \"y\"\n}\n"),
            (Format::Binary, ".env", "# any\nTEXT='at all'\n"),
        ] {
            let encrypted = lab.encrypt(text, format.as_str());
            assert_eq!(Format::detect(&encrypted, name), Some(format));
            assert_eq!(Format::detect(text, name), None);
            let decrypted = lab.sops(Some("key")).decrypt(name, &encrypted, format, &limit()).unwrap();
            assert_eq!(String::from_utf8(decrypted).unwrap().trim_end(), text.trim_end());
        }
    }

    #[test]
    fn a_missing_program_says_what_to_install() {
        let sops = Sops { program: "sops-is-not-here".into(), environment: vec![path()] };
        let error = sops.decrypt("docker/.env.enc", "", Format::Dotenv, &limit()).unwrap_err();
        assert!(error.message.contains("docker/.env.enc") && error.message.contains("install sops"), "{error}");
        assert_eq!(error.chance, Chance::Final);
    }

    #[test]
    fn each_problem_with_the_key_has_its_own_line() {
        let lab = Lab::new();
        let encrypted = lab.encrypt(PLAIN, "dotenv");
        std::fs::write(lab.folder.path().join("garbage"), "no key at all").unwrap();
        for (key, part) in [
            (None, "there is no age key here: name its file in SOPS_AGE_KEY_FILE"),
            (Some("missing"), "missing (SOPS_AGE_KEY_FILE) does not exist"),
            (Some("garbage"), "holds no age key"),
            (Some("other"), "is another one"),
        ] {
            let error = lab.error(key, &encrypted);
            assert!(error.message.contains(part) && error.message.contains(&lab.recipient), "{error}");
            assert!(!error.message.contains('\n'));
            assert_eq!(error.chance, Chance::Final);
        }
        let mut sops = lab.sops(None);
        sops.environment.push(("SOPS_AGE_KEY".into(), "AGE-SECRET-KEY-1BADBADBAD".into()));
        let error = sops.decrypt("x", &encrypted, Format::Dotenv, &limit()).unwrap_err();
        assert!(error.message.contains("age_key") && !error.message.contains("BADBAD"), "{error}");
    }

    #[test]
    fn a_damaged_file_says_so() {
        let lab = Lab::new();
        let encrypted = lab.encrypt(PLAIN, "dotenv");
        let without_a_line: String = encrypted.lines().skip(1).map(|line| format!("{line}\n")).collect();
        let changed = encrypted.replacen("USER=ENC[AES256_GCM,data:", "USER=ENC[AES256_GCM,data:AA", 1);
        for damaged in [without_a_line, changed] {
            let error = lab.error(Some("key"), &damaged);
            assert!(error.message.starts_with("docker/.env.enc is damaged"), "{error}");
            assert_eq!(error.chance, Chance::Final);
        }
        let cut = &encrypted[..encrypted.find("sops_mac").unwrap()];
        let error = lab.error(Some("key"), cut);
        assert!(error.message.starts_with("sops cannot decrypt docker/.env.enc: "), "{error}");
    }

    #[test]
    fn sops_that_hangs_is_ended_with_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("sops");
        run(
            "sh",
            &["-c", &format!("printf '#!/bin/sh\\nexec sleep 60\\n' > {0}; chmod +x {0}", program.display())],
            "",
        );
        let sops = Sops { program, environment: vec![path()] };
        let error = sops.decrypt("x", "", Format::Yaml, &Limit::after(Duration::from_millis(300))).unwrap_err();
        assert_eq!(error.chance, Chance::CanPass);
    }
}
