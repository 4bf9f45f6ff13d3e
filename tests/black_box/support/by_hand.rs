//! Stacks as people have them, started by hand, and what lies in their folders.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::parts::{self, compose_5_config, missing};

/// A Compose to test with.
#[derive(Clone, Debug)]
pub struct Compose {
    /// For messages.
    pub name: &'static str,
    /// The `DOCKER_CONFIG` that selects it; none for the default one.
    pub docker_config: Option<PathBuf>,
}

/// Each Compose that is here.
pub fn composes() -> Vec<Compose> {
    let mut composes = vec![Compose { name: "the default Compose", docker_config: None }];
    if !missing(&[parts::COMPOSE_5]) {
        composes.push(Compose { name: "Compose 5", docker_config: compose_5_config() });
    }
    composes
}

impl Compose {
    /// Runs `docker compose` in a folder, as a person does; answers what it printed.
    #[track_caller]
    pub fn by_hand(&self, folder: &Path, args: &[&str]) -> String {
        let mut command = Command::new("docker");
        command.arg("compose").args(args).current_dir(folder).env("PWD", folder);
        if let Some(config) = &self.docker_config {
            command.env("DOCKER_CONFIG", config);
        }
        let output = command.output().expect("start docker");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: docker compose {args:?}: {errors}", self.name);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Everything that lies below a folder at one moment.
#[derive(Clone)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    /// Kind and mode.
    mode: u32,
    owner: (u32, u32),
    inode: u64,
    /// Of a file its content, of a link where it leads.
    content: Vec<u8>,
}

impl Tree {
    /// Looks at a folder; one that is not there is empty.
    pub fn of(folder: &Path) -> Tree {
        let mut entries = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for found in fs::read_dir(&next).into_iter().flatten() {
                let path = found.expect("list a folder").path();
                let meta = fs::symlink_metadata(&path).expect("look at what is there");
                let content = if meta.is_symlink() {
                    fs::read_link(&path).expect("read a link").as_os_str().as_bytes().to_vec()
                } else if meta.is_file() {
                    fs::read(&path).expect("read a file")
                } else {
                    Vec::new()
                };
                if meta.is_dir() {
                    folders.push(path.clone());
                }
                let entry = Entry { mode: meta.mode(), owner: (meta.uid(), meta.gid()), inode: meta.ino(), content };
                entries.insert(path.strip_prefix(folder).expect("it is below").to_owned(), entry);
            }
        }
        Tree(entries)
    }

    /// The paths that are there.
    pub fn paths(&self) -> Vec<&Path> {
        self.0.keys().map(PathBuf::as_path).collect()
    }

    /// Panics with what differs. Of the paths in `made_again` the inode may be another one.
    #[track_caller]
    pub fn assert_same(&self, now: &Tree, made_again: &[&str], when: &str) {
        let paths = self.0.keys().chain(now.0.keys().filter(|path| !self.0.contains_key(*path)));
        let differences: Vec<String> = paths
            .filter_map(|path| {
                let any_inode = made_again.iter().any(|again| Path::new(again) == path);
                let difference = match (self.0.get(path), now.0.get(path)) {
                    (Some(before), Some(after)) => before.differs(after, any_inode)?,
                    (Some(_), None) => "is gone".to_owned(),
                    _ => "is new".to_owned(),
                };
                Some(format!("{} {difference}", path.display()))
            })
            .collect();
        assert!(differences.is_empty(), "{when}: {}", differences.join("; "));
    }
}

impl Entry {
    fn differs(&self, now: &Entry, any_inode: bool) -> Option<String> {
        if self.content != now.content {
            let [before, after] = [&self.content, &now.content].map(|content| OsString::from(lossy(content)));
            return Some(format!("was {before:?} and is {after:?}"));
        }
        if (self.mode, self.owner) != (now.mode, now.owner) {
            return Some(format!("was {:o} {:?} and is {:o} {:?}", self.mode, self.owner, now.mode, now.owner));
        }
        (self.inode != now.inode && !any_inode).then(|| "has another inode".to_owned())
    }
}

fn lossy(content: &[u8]) -> String {
    String::from_utf8_lossy(content).into_owned()
}
