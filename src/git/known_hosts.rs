//! Host keys of ssh remotes, as OpenSSH's `known_hosts` files list them (`man sshd`, "SSH_KNOWN_HOSTS FILE FORMAT").

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::GitError;

/// The port whose hosts are listed without one.
const SSH_PORT: u16 = 22;
/// Where to add a key when no file was named.
const SYSTEM_FILE: &str = "/etc/ssh/ssh_known_hosts";

/// What the files say about one host.
#[derive(Debug)]
pub(super) struct KnownHost<'a> {
    host: &'a str,
    port: u16,
    files: &'a [PathBuf],
    keys: Vec<KnownKey>,
}

/// A line about this host.
#[derive(Debug)]
struct KnownKey {
    /// `FILE:LINE`
    place: String,
    revoked: bool,
    kind: String,
    key: Vec<u8>,
}

impl<'a> KnownHost<'a> {
    /// Reads the files. One that is not there says nothing.
    ///
    /// # Errors
    /// A file that exists and cannot be read.
    pub fn read(host: &'a str, port: u16, files: &'a [PathBuf]) -> Result<KnownHost<'a>, GitError> {
        let mut keys = Vec::new();
        for file in files {
            match std::fs::read(file) {
                Ok(bytes) => keys.extend(keys_for(&name_in_file(host, port), &String::from_utf8_lossy(&bytes), file)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(GitError::lasting(format!(
                        "cannot read the known hosts in {}: {error}",
                        file.display()
                    )));
                }
            }
        }
        Ok(KnownHost { host, port, files, keys })
    }

    /// The host's own lines, plain: libgit2 reads a file of this form to know which kind of key to ask the host for.
    pub fn as_file(&self) -> String {
        let name = name_in_file(self.host, self.port);
        self.keys.iter().filter(|known| !known.revoked).fold(String::new(), |mut text, known| {
            let _ = writeln!(text, "{name} {} {}", known.kind, STANDARD.encode(&known.key));
            text
        })
    }

    /// Whether the host may have this key (in the ssh wire format).
    ///
    /// # Errors
    /// An unknown key with its fingerprint and what to run, a changed one, a revoked one.
    pub fn check(&self, key: &[u8]) -> Result<(), GitError> {
        let kind = kind_of(key);
        let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(key)));
        let host = name_in_file(self.host, self.port);
        if let Some(known) = self.keys.iter().find(|known| known.revoked && known.key == key) {
            return Err(GitError::lasting(format!("{host} has the key {fingerprint}, which {} revokes", known.place)));
        }
        let mut valid = self.keys.iter().filter(|known| !known.revoked);
        if valid.clone().any(|known| known.key == key) {
            return Ok(());
        }
        let port = if self.port == SSH_PORT { String::new() } else { format!("-p {} ", self.port) };
        let file = self.files.first().map_or(Path::new(SYSTEM_FILE), PathBuf::as_path).display();
        let scan = format!("ssh-keyscan {port}{} >> {file}", self.host);
        if let Some(known) = valid.find(|known| known.kind == kind) {
            return Err(GitError::lasting(format!(
                "the host key of {host} has changed: it is now {fingerprint} ({kind}), and {} has another one. Somebody may be in between; \
                 if the host's owner confirms the new key, remove that line and run `{scan}`",
                known.place
            )));
        }
        Err(GitError::lasting(format!(
            "the host key of {host} is not known: {fingerprint} ({kind}). Compare it with what the host's owner publishes, then run `{scan}`"
        )))
    }
}

/// A host as the files name it.
fn name_in_file(host: &str, port: u16) -> String {
    if port == SSH_PORT { host.to_owned() } else { format!("[{host}]:{port}") }
}

/// The kind that stands in front of a key in the ssh wire format.
fn kind_of(key: &[u8]) -> String {
    let length = key.first_chunk::<4>().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let kind = key.get(4..4_usize.saturating_add(length)).unwrap_or_default();
    String::from_utf8_lossy(kind).into_owned()
}

/// The keys that a file lists for a host. Certificate authorities are left out: libssh2 does not know host
/// certificates.
fn keys_for(host: &str, text: &str, file: &Path) -> Vec<KnownKey> {
    let line_of = |(number, line): (usize, &str)| {
        let line = line.trim();
        let mut words = line.split_ascii_whitespace();
        let mut first = words.next().filter(|word| !word.starts_with('#'))?;
        let revoked = first == "@revoked";
        if revoked {
            first = words.next()?;
        } else if first.starts_with('@') {
            return None;
        }
        let (kind, key) = (words.next()?, STANDARD.decode(words.next()?).ok()?);
        let place = format!("{}:{}", file.display(), number + 1);
        names_match(first, host).then(|| KnownKey { place, revoked, kind: kind.to_owned(), key })
    };
    text.lines().enumerate().filter_map(line_of).collect()
}

/// Whether a line's first field is about the host: a list of patterns, of which one with `!` excludes, or one hashed
/// name.
fn names_match(names: &str, host: &str) -> bool {
    if let Some(hashed) = names.strip_prefix("|1|") {
        return hashed_name_matches(hashed, host);
    }
    let mut matched = false;
    for pattern in names.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if pattern_matches(&pattern.to_lowercase(), host) => return false,
            Some(_) => {}
            None => matched |= pattern_matches(&pattern.to_lowercase(), host),
        }
    }
    matched
}

/// `SALT|HMAC`, both in base64.
fn hashed_name_matches(hashed: &str, host: &str) -> bool {
    let Some((salt, hash)) = hashed.split_once('|') else { return false };
    let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(&salt) else { return false };
    mac.update(host.as_bytes());
    mac.verify_slice(&hash).is_ok()
}

/// `*` stands for any number of characters, `?` for one.
fn pattern_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at_pattern, mut at_text) = (0, 0);
    // Where to go on after a mismatch: behind the last `*`, one character further than the last time.
    let mut again: Option<(usize, usize)> = None;
    while at_text < text.len() {
        match pattern.get(at_pattern) {
            Some('*') => {
                again = Some((at_pattern + 1, at_text));
                at_pattern += 1;
            }
            Some(&char) if char == '?' || char == text[at_text] => {
                at_pattern += 1;
                at_text += 1;
            }
            _ => {
                let Some((behind, from)) = again else { return false };
                again = Some((behind, from + 1));
                (at_pattern, at_text) = (behind, from + 1);
            }
        }
    }
    pattern[at_pattern..].iter().all(|char| *char == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key in the wire format: its kind, then anything.
    fn key(kind: &str, filling: u8) -> Vec<u8> {
        let mut key = u32::try_from(kind.len()).unwrap().to_be_bytes().to_vec();
        key.extend_from_slice(kind.as_bytes());
        key.extend_from_slice(&[filling; 32]);
        key
    }

    fn check(lines: &str, host: &str, port: u16, key: &[u8]) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("known_hosts")];
        std::fs::write(&files[0], lines).unwrap();
        let outcome = KnownHost::read(host, port, &files).unwrap().check(key);
        outcome.map_err(|error| error.message.replace(&folder.path().display().to_string(), ""))
    }

    #[test]
    fn a_listed_key_is_known_under_every_form_of_name() {
        let ed = key("ssh-ed25519", 1);
        let encoded = STANDARD.encode(&ed);
        for names in ["git.example.com", "other,git.example.com", "*.example.com", "GIT.example.com", "git?example.*"] {
            check(&format!("# a comment\n\n{names} ssh-ed25519 {encoded} note\n"), "git.example.com", 22, &ed).unwrap();
        }
        check(&format!("[git.example.com]:2222 ssh-ed25519 {encoded}"), "git.example.com", 2222, &ed).unwrap();
        let mut mac = Hmac::<Sha1>::new_from_slice(b"twenty bytes of salt").unwrap();
        mac.update(b"github.com");
        let hash = STANDARD.encode(mac.finalize().into_bytes());
        let line = format!("|1|{}|{hash} ssh-ed25519 {encoded}", STANDARD.encode(b"twenty bytes of salt"));
        check(&line, "github.com", 22, &ed).unwrap();
        assert!(check(&line, "github.org", 22, &ed).is_err());
    }

    #[test]
    fn an_unknown_host_is_refused_with_fingerprint_and_command() {
        let ed = key("ssh-ed25519", 1);
        let encoded = STANDARD.encode(&ed);
        let lines =
            format!("!git.example.com,*.example.com ssh-ed25519 {encoded}\ngit.example.com ssh-ed25519 {encoded}");
        let error = check("", "git.example.com", 2222, &ed).unwrap_err();
        assert!(error.contains("[git.example.com]:2222 is not known: SHA256:"), "{error}");
        assert!(error.ends_with("`ssh-keyscan -p 2222 git.example.com >> /known_hosts`"), "{error}");
        assert!(check(&lines, "git.example.com", 2222, &ed).is_err(), "another port is another host");
        assert!(check(lines.lines().next().unwrap(), "git.example.com", 22, &ed).is_err(), "excluded by !");
        let authority = format!("@cert-authority * ssh-ed25519 {encoded}");
        assert!(check(&authority, "git.example.com", 22, &ed).is_err());
    }

    #[test]
    fn a_changed_and_a_revoked_key_say_so_with_their_line() {
        let (old, new, other) = (key("ssh-ed25519", 1), key("ssh-ed25519", 2), key("ssh-rsa", 3));
        let line = format!("\nh ssh-ed25519 {}", STANDARD.encode(&old));
        let error = check(&line, "h", 22, &new).unwrap_err();
        assert!(error.contains("has changed") && error.contains("/known_hosts:2"), "{error}");
        assert!(check(&line, "h", 22, &other).unwrap_err().contains("not known"));
        let revoked = format!("{line}\n@revoked * ssh-ed25519 {}", STANDARD.encode(&old));
        assert!(check(&revoked, "h", 22, &old).unwrap_err().contains("revokes"));
    }

    #[test]
    fn the_plain_lines_name_no_revoked_key() {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("a"), folder.path().join("missing")];
        let encoded = STANDARD.encode(key("ssh-ed25519", 1));
        std::fs::write(&files[0], format!("* ssh-ed25519 {encoded}\n@revoked * ssh-rsa {encoded}\n")).unwrap();
        let known = KnownHost::read("h", 2222, &files).unwrap();
        assert_eq!(known.as_file(), format!("[h]:2222 ssh-ed25519 {encoded}\n"));
    }
}
