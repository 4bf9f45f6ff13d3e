//! Programs that fail on demand: one script under the names of docker, docker-compose, sops and shoutrrr.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const SCRIPT: &str = include_str!("fake.sh");

/// A folder of stand-ins. Without a rule each is the real program; every call is recorded.
pub struct Fake {
    folder: TempDir,
}

/// A call of a stand-in.
#[derive(Clone, Debug)]
pub struct Call {
    /// The program.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// `NAME=value` lines.
    pub environment: Vec<String>,
    /// What it read; empty where the real program did.
    pub input: String,
}

impl Call {
    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().filter_map(|line| line.split_once('=')).find(|(key, _)| *key == name).map(|(_, v)| v)
    }
}

impl Fake {
    /// Stand-ins for `docker`, `docker-compose`, `sops` and `shoutrrr`, whichever of them is installed or not.
    pub fn new() -> Fake {
        let folder = TempDir::with_prefix("shiparr-test-fake-").expect("make a folder");
        let fake = Fake { folder };
        for name in ["calls", "real", "docker-config/cli-plugins"] {
            fs::create_dir_all(fake.folder.path().join(name)).expect("make a folder");
        }
        fs::write(fake.folder.path().join("rules"), "").expect("write the rules");
        for name in ["docker", "docker-compose", "sops", "shoutrrr"] {
            let program = fake.bin().join(name);
            fs::write(&program, SCRIPT).expect("write a stand-in");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("make it executable");
            if let Some(real) = real_program(name) {
                symlink(real, fake.folder.path().join("real").join(name)).expect("link the real program");
            }
        }
        fake
    }

    /// The folder to put first on PATH.
    pub fn bin(&self) -> PathBuf {
        self.docker_config().join("cli-plugins")
    }

    /// For `DOCKER_CONFIG`: its Compose is a stand-in.
    pub fn docker_config(&self) -> PathBuf {
        self.folder.path().join("docker-config")
    }

    /// From now on `program` does `action` where its arguments, each with a blank around it, match the shell pattern;
    /// earlier rules go first. Actions: `real`, `hold` and `hold-after` (until [`Fake::release`], before or after the
    /// real work), `hang`, `stubborn` (hangs and ignores SIGTERM), `flood`, `flood-then-real`, `exit CODE MESSAGE`.
    pub fn rule(&self, program: &str, pattern: &str, action: &str) {
        let path = self.folder.path().join("rules");
        let rules = fs::read_to_string(&path).expect("read the rules");
        self.replace_rules(&format!("{rules}{program}\t{pattern}\t{action}\n"));
    }

    /// Every program is the real one again.
    pub fn no_rules(&self) {
        self.replace_rules("");
    }

    /// Lets those go on that are held, and those that would be.
    pub fn release(&self) {
        fs::write(self.folder.path().join("release"), "").expect("write the release");
    }

    /// Holds again after a release.
    pub fn hold_again(&self) {
        let _ = fs::remove_file(self.folder.path().join("release"));
    }

    /// The calls so far, in their order.
    pub fn calls(&self) -> Vec<Call> {
        let entries = fs::read_dir(self.folder.path().join("calls")).expect("list the calls");
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("list the calls").path()).collect();
        folders.retain(|folder| folder.extension().is_none());
        folders.sort();
        folders.iter().map(|folder| read_call(folder)).collect()
    }

    /// The calls of `program` whose arguments hold `word`.
    pub fn calls_with(&self, program: &str, word: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.name == program && call.arguments.iter().any(|argument| argument == word));
        calls
    }

    fn replace_rules(&self, text: &str) {
        let path = self.folder.path().join("rules");
        let new = self.folder.path().join("rules.new");
        fs::write(&new, text).expect("write the rules");
        fs::rename(new, path).expect("replace the rules");
    }
}

fn read_call(folder: &Path) -> Call {
    let read = |name: &str| String::from_utf8_lossy(&fs::read(folder.join(name)).unwrap_or_default()).into_owned();
    Call {
        name: read("name").trim().to_owned(),
        arguments: read("arguments").lines().map(str::to_owned).collect(),
        environment: read("environment").lines().map(str::to_owned).collect(),
        input: read("input"),
    }
}

fn real_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let plugins =
        ["/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins", "/usr/local/lib/docker/cli-plugins"];
    let plugins = plugins.iter().map(PathBuf::from).filter(|_| name.starts_with("docker-"));
    plugins.chain(std::env::split_paths(&path)).map(|folder| folder.join(name)).find(|program| program.is_file())
}
