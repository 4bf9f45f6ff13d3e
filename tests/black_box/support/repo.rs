//! A real Git remote: a bare repository, and a clone that commits and pushes to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

/// A bare repository `NAME.git` in a folder of its own, and a clone beside it.
pub struct Repo {
    folder: Arc<TempDir>,
    name: String,
}

impl Repo {
    /// An empty remote called `stack`.
    pub fn new() -> Repo {
        Repo::named("stack")
    }

    /// An empty remote.
    pub fn named(name: &str) -> Repo {
        let folder = TempDir::with_prefix("shiparr-test-remote-").expect("make a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open the folder to all");
        Repo::made(Arc::new(folder), name)
    }

    /// Another empty remote that is served by whatever serves the first one's folder.
    pub fn in_root_of(other: &Repo, name: &str) -> Repo {
        Repo::made(Arc::clone(&other.folder), name)
    }

    fn made(folder: Arc<TempDir>, name: &str) -> Repo {
        let repo = Repo { folder, name: name.to_owned() };
        let clone = repo.clone_folder();
        repo.git_in(repo.root(), &["init", "--quiet", "--bare", "--initial-branch=main", &format!("{name}.git")]);
        repo.git_in(repo.root(), &["init", "--quiet", "--initial-branch=main", &clone.to_string_lossy()]);
        // No housekeeping in the background: it would write into folders that are being removed.
        for setting in ["gc.auto=0", "receive.autogc=false", "maintenance.auto=false"] {
            let (name, value) = setting.split_once('=').expect("a name and a value");
            repo.git_in(&repo.bare(), &["config", name, value]);
            repo.git(&["config", name, value]);
        }
        repo.git(&["remote", "add", "origin", &repo.bare().to_string_lossy()]);
        repo
    }

    /// A remote with one commit of `files`.
    pub fn with(files: &[(&str, &str)]) -> Repo {
        let repo = Repo::new();
        repo.commit(files);
        repo
    }

    /// The folder that holds the bare repository.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// The bare repository.
    pub fn bare(&self) -> PathBuf {
        self.root().join(format!("{}.git", self.name))
    }

    /// The clone that people work in.
    pub fn clone_folder(&self) -> PathBuf {
        self.root().join(format!("{}-clone", self.name))
    }

    /// The remote as a URL: its absolute path.
    pub fn url(&self) -> String {
        self.bare().to_string_lossy().into_owned()
    }

    /// Writes a file into the clone.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let target = self.clone_folder().join(path);
        fs::create_dir_all(target.parent().expect("it has a folder")).expect("make its folder");
        fs::write(target, content).expect("write a file");
    }

    /// Removes a file or folder from the clone.
    pub fn remove(&self, path: &str) {
        self.git(&["rm", "--quiet", "-r", "--force", path]);
    }

    /// Writes files, commits and pushes; answers the commit's hash.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        for (path, content) in files {
            self.write(path, content);
        }
        self.commit_all("A change")
    }

    /// Commits and pushes everything in the clone with this message; answers the commit's hash.
    pub fn commit_all(&self, message: &str) -> String {
        self.git(&["add", "--all", "--force", "."]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]);
        self.git(&["push", "--quiet", "--force", "origin", "HEAD"]);
        self.tip()
    }

    /// Replaces the history by one commit of `files` that has no parent, and pushes it by force.
    pub fn rewrite(&self, files: &[(&str, &str)]) -> String {
        self.git(&["checkout", "--quiet", "--orphan", "rewritten"]);
        self.git(&["rm", "--quiet", "-r", "--force", "--ignore-unmatch", "."]);
        for (path, content) in files {
            self.write(path, content);
        }
        self.git(&["add", "--all", "--force", "."]);
        self.git(&["commit", "--quiet", "--message", "Written anew"]);
        self.git(&["branch", "--quiet", "--move", "--force", "rewritten", "main"]);
        self.git(&["push", "--quiet", "--force", "origin", "main"]);
        self.tip()
    }

    /// The clone's commit.
    pub fn tip(&self) -> String {
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Runs git in the clone; answers what it printed.
    #[track_caller]
    pub fn git(&self, args: &[&str]) -> String {
        self.git_in(&self.clone_folder(), args)
    }

    #[track_caller]
    fn git_in(&self, folder: &Path, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "protocol.file.allow=always", "-c", "commit.gpgsign=false", "-c", "core.autocrlf=false"])
            .args(args)
            .current_dir(folder)
            .env("HOME", self.root())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs([("GIT_AUTHOR_NAME", "Ada Author"), ("GIT_AUTHOR_EMAIL", "ada@example.com")])
            .envs([("GIT_COMMITTER_NAME", "Ada Author"), ("GIT_COMMITTER_EMAIL", "ada@example.com")])
            .output()
            .expect("start git");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
