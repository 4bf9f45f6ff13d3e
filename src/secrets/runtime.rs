//! Where decrypted text lies while a deployment needs it: the runtime folder, which is memory, and links into it.
//!
//! ```text
//! RUNTIME/secrets/NAME/     0700, one folder a deployment, gone with it
//! RUNTIME/secrets/NAME/0-.env   0600
//! DATA/links/NAME.json      the links that were made beside encrypted files, written before they are
//! ```
//!
//! After a reboot the runtime folder is empty while the links are still there: that is why their list lies with the
//! data. It holds paths, nothing secret, and exists only while there are links.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SecretsError;
use super::beside::{Beside, Lies};
use super::mounted::MOUNTED_FOLDER;

/// Below the runtime folder.
pub(super) const TEMPORARY_FOLDER: &str = "secrets";
pub(crate) const PRIVATE_FOLDER: u32 = 0o700;
pub(crate) const PRIVATE_FILE: u32 = 0o600;

/// A link of ours, and what it points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Link {
    path: PathBuf,
    target: PathBuf,
}

/// What became of a link beside an encrypted file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linked {
    /// It lies there until the folder is dropped.
    Made(PathBuf),
    /// The link of a secret file lies there, which stays.
    Lasting,
    /// Something else lies under its name, and stays.
    NameTaken(PathBuf),
    /// The file's name has no `.enc` or `.sops` in it.
    NotNeeded,
}

/// A deployment's private folder in memory. Dropped, it goes with all that lies in it and with the links that lead to
/// it.
#[derive(Debug)]
pub struct RuntimeFolder {
    folder: PathBuf,
    /// Of all deployments: what points into it is ours.
    secrets: PathBuf,
    /// Where the secret files of stacks lie: what points into it stays.
    lasting: PathBuf,
    record: PathBuf,
    files: usize,
    links: Vec<Link>,
    /// Whether somebody else needs it still, and removes it.
    is_left: bool,
}

impl RuntimeFolder {
    /// Makes the folder `name` (a deployment's id) below `runtime`; the list of links goes to `data`.
    ///
    /// # Errors
    /// Folders that cannot be made, or that are another user's.
    pub fn create(runtime: &Path, data: &Path, name: &str) -> Result<RuntimeFolder, SecretsError> {
        let secrets = private_folder(&runtime.join(TEMPORARY_FOLDER))?;
        let folder = secrets.join(name);
        let made = DirBuilder::new().mode(PRIVATE_FOLDER).create(&folder).or_else(|error| {
            if error.kind() != ErrorKind::AlreadyExists {
                return Err(error);
            }
            std::fs::remove_dir_all(&folder)?;
            DirBuilder::new().mode(PRIVATE_FOLDER).create(&folder)
        });
        made.map_err(|error| failed("make", &folder, &error))?;
        let lasting = secrets.with_file_name(MOUNTED_FOLDER);
        let record = data.join("links").join(format!("{name}.json"));
        Ok(RuntimeFolder { folder, secrets, lasting, record, files: 0, links: Vec::new(), is_left: false })
    }

    /// The folder `name` as another process has left it; none where nothing is left of it.
    pub fn left(runtime: &Path, data: &Path, name: &str) -> Option<RuntimeFolder> {
        let (secrets, record) = (runtime.join(TEMPORARY_FOLDER), data.join("links").join(format!("{name}.json")));
        let folder = secrets.join(name);
        let text = std::fs::read(&record).ok();
        if text.is_none() && std::fs::symlink_metadata(&folder).is_err() {
            return None;
        }
        let links = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let lasting = secrets.with_file_name(MOUNTED_FOLDER);
        Some(RuntimeFolder { folder, secrets, lasting, record, files: 0, links, is_left: false })
    }

    /// All of it stays: another process needs it, and removes it by [`RuntimeFolder::left`].
    pub fn leave(mut self) {
        self.is_left = true;
    }

    /// Writes a file, mode 0600, whose name ends with `name`, and gives its path.
    ///
    /// # Errors
    /// What the system says: no space left, mostly.
    pub fn write(&mut self, name: &str, content: &str) -> Result<PathBuf, SecretsError> {
        let path = self.folder.join(format!("{}-{name}", self.files));
        self.files += 1;
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(PRIVATE_FILE).open(&path);
        file.and_then(|mut file| file.write_all(content.as_bytes())).map_err(|error| failed("write", &path, &error))?;
        Ok(path)
    }

    /// Makes a link to `target`, a file of this folder, beside `encrypted`, under its name without `.enc` or `.sops`.
    /// The folder that it lies in must belong to `within`, also after links are followed.
    ///
    /// # Errors
    /// A folder that leads out of `within`, or that cannot be written; a list of links that cannot be.
    pub fn link_beside(
        &mut self,
        encrypted: &Path,
        target: &Path,
        within: Option<&Path>,
    ) -> Result<Linked, SecretsError> {
        let Some(beside) = Beside::of(encrypted, within)? else { return Ok(Linked::NotNeeded) };
        let link = Link { path: beside.link(), target: target.to_owned() };
        match beside.lies_there()? {
            Lies::Nothing => {}
            Lies::Link(found) if found.starts_with(&self.lasting) => return Ok(Linked::Lasting),
            // One that a crash has left, and no list names.
            Lies::Link(found)
                if found.starts_with(&self.secrets) && !self.links.iter().any(|known| known.path == link.path) =>
            {
                beside.remove_link()?;
            }
            Lies::Link(_) | Lies::Folder | Lies::Other => return Ok(Linked::NameTaken(link.path)),
        }
        self.links.push(link.clone());
        self.write_record().map_err(|error| failed("write", &self.record, &error))?;
        Ok(if beside.make_link(target)? { Linked::Made(link.path) } else { Linked::NameTaken(link.path) })
    }

    /// Removes what deployments of a process that was killed have left: their folders below `runtime` and the links
    /// that `data` lists. Nothing else may be using them, but for those that are called as one of `spared`. Gives what
    /// could not be removed, for the log.
    pub fn clean_leftovers(runtime: &Path, data: &Path, spared: &[String]) -> Vec<String> {
        let mut problems = Vec::new();
        let is_spared = |path: &PathBuf| spared.iter().any(|name| path.file_stem() == Some(name.as_ref()));
        let records = entries(&data.join("links"), &mut problems);
        for record in records.into_iter().filter(|record| !is_spared(record)) {
            let links = std::fs::read(&record).map_err(|error| error.to_string());
            // A list that was cut off by a crash was not yet followed by a link.
            let links: Vec<Link> =
                links.map(|text| serde_json::from_slice(&text).unwrap_or_default()).unwrap_or_else(|error| {
                    problems.push(format!("cannot read {}: {error}", record.display()));
                    Vec::new()
                });
            let left = problems.len();
            problems.extend(links.iter().filter_map(|link| remove_link(link).err()));
            if problems.len() == left {
                problems
                    .extend(std::fs::remove_file(&record).err().map(|error| format!("{}: {error}", record.display())));
            }
        }
        let folders = entries(&runtime.join(TEMPORARY_FOLDER), &mut problems);
        for folder in folders.into_iter().filter(|folder| !is_spared(folder)) {
            let removed = std::fs::remove_dir_all(&folder);
            problems.extend(removed.err().map(|error| format!("cannot remove {}: {error}", folder.display())));
        }
        problems
    }

    /// Stores the list so that it is there after a crash, also one of the machine.
    fn write_record(&self) -> std::io::Result<()> {
        let folder = self.record.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(folder)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE_FILE).open(&self.record)?;
        file.write_all(&serde_json::to_vec(&self.links)?)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()
    }
}

impl Drop for RuntimeFolder {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        let problems: Vec<String> = self.links.iter().filter_map(|link| remove_link(link).err()).collect();
        for problem in &problems {
            log::warn!("{problem}; the next start tries again");
        }
        if problems.is_empty() && !self.links.is_empty() {
            if let Some(error) = unless_gone(std::fs::remove_file(&self.record)) {
                log::warn!("cannot remove {}: {error}", self.record.display());
            }
        }
        if let Some(error) = unless_gone(std::fs::remove_dir_all(&self.folder)) {
            log::warn!("decrypted files stay behind: cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// The error of a removal; that there was nothing to remove is none.
fn unless_gone(removed: std::io::Result<()>) -> Option<std::io::Error> {
    removed.err().filter(|error| error.kind() != ErrorKind::NotFound)
}

/// Removes a link where it is still ours; something else under its name stays.
fn remove_link(link: &Link) -> Result<(), String> {
    match std::fs::read_link(&link.path) {
        Ok(target) if target == link.target => std::fs::remove_file(&link.path)
            .map_err(|error| format!("cannot remove the link {}: {error}", link.path.display())),
        _ => Ok(()),
    }
}

/// A folder of this user; or of root, as whom an earlier Shiparr may have run. Whether we may write there shows.
fn is_ours(found: &std::fs::Metadata) -> bool {
    found.is_dir() && [0, rustix::process::geteuid().as_raw()].contains(&found.uid())
}

/// Makes a folder that only we can enter, or takes the one that is there.
pub(crate) fn private_folder(path: &Path) -> Result<PathBuf, SecretsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_FOLDER)
        .create(path)
        .map_err(|error| failed("make", path, &error))?;
    let found = std::fs::symlink_metadata(path).map_err(|error| failed("open", path, &error))?;
    if !is_ours(&found) {
        let problem =
            format!("{} is not a folder of this user: remove it, or set Shiparr_RUNTIME_PATH", path.display());
        return Err(SecretsError::last(problem));
    }
    if found.mode() & 0o777 != PRIVATE_FOLDER {
        let private = std::fs::Permissions::from_mode(PRIVATE_FOLDER);
        std::fs::set_permissions(path, private).map_err(|error| failed("close", path, &error))?;
    }
    path.canonicalize().map_err(|error| failed("open", path, &error))
}

/// What lies in a folder of ours; a folder that is not there is empty, and so is one that is a link or another user's.
pub(super) fn entries(folder: &Path, problems: &mut Vec<String>) -> Vec<PathBuf> {
    if !std::fs::symlink_metadata(folder).is_ok_and(|found| is_ours(&found)) {
        return Vec::new();
    }
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) => {
            problems.push(format!("cannot read {}: {error}", folder.display()));
            Vec::new()
        }
    }
}

/// A disk that is full, or a folder that is gone, may be there again at the next try; a missing permission stays.
pub(super) fn failed(what: &str, path: &Path, error: &std::io::Error) -> SecretsError {
    let message = format!("cannot {what} {}: {error}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied => SecretsError::last(message),
        _ => SecretsError::passing(message),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A runtime folder, a data folder and a repository with `docker/.env.enc` in it.
    struct Lab {
        root: tempfile::TempDir,
    }

    impl Lab {
        fn new() -> Lab {
            let root = tempfile::tempdir().unwrap();
            for folder in ["runtime", "data", "tree/docker"] {
                std::fs::create_dir_all(root.path().join(folder)).unwrap();
            }
            std::fs::write(root.path().join("tree/docker/.env.enc"), "x").unwrap();
            Lab { root }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.root.path().canonicalize().unwrap().join(path)
        }

        fn folder(&self, name: &str) -> RuntimeFolder {
            RuntimeFolder::create(&self.path("runtime"), &self.path("data"), name).unwrap()
        }

        fn link(&self, folder: &mut RuntimeFolder, encrypted: &str) -> Result<Linked, SecretsError> {
            let target = folder.write(".env", "A=secret").unwrap();
            folder.link_beside(&self.path(encrypted), &target, Some(&self.path("tree")))
        }

        fn clean(&self) -> Vec<String> {
            self.clean_but(&[])
        }

        fn clean_but(&self, spared: &[String]) -> Vec<String> {
            RuntimeFolder::clean_leftovers(&self.path("runtime"), &self.path("data"), spared)
        }
    }

    #[test]
    fn files_are_private_and_go_with_the_folder() {
        let lab = Lab::new();
        let mut folder = lab.folder("7");
        let (one, two) = (folder.write(".env", "A=1").unwrap(), folder.write(".env", "A=2").unwrap());
        assert_eq!(std::fs::read_to_string(&two).unwrap(), "A=2");
        assert_eq!(std::fs::metadata(&one).unwrap().mode() & 0o777, 0o600);
        for folder in [one.parent().unwrap(), &lab.path("runtime/secrets")] {
            assert_eq!(std::fs::metadata(folder).unwrap().mode() & 0o777, 0o700);
        }
        drop(folder);
        assert!(!one.exists() && !lab.path("runtime/secrets/7").exists());
        assert!(!lab.path("data/links").exists(), "without links nothing is written to the disk");
    }

    #[test]
    fn what_is_left_to_another_process_stays_until_that_one_drops_it() {
        let lab = Lab::new();
        let mut folder = lab.folder("7");
        let link = lab.path("tree/docker/.env");
        lab.link(&mut folder, "tree/docker/.env.enc").unwrap();
        folder.leave();
        assert_eq!(lab.clean_but(&["7".to_owned()]), Vec::<String>::new());
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "A=secret");
        let left = |name: &str| RuntimeFolder::left(&lab.path("runtime"), &lab.path("data"), name);
        drop(left("7"));
        assert!(std::fs::symlink_metadata(&link).is_err());
        assert!(!lab.path("runtime/secrets/7").exists() && !lab.path("data/links/7.json").exists());
        assert!(left("7").is_none());
    }

    #[test]
    fn a_link_lies_beside_the_encrypted_file_until_the_end() {
        let lab = Lab::new();
        let mut folder = lab.folder("7");
        let link = lab.path("tree/docker/.env");
        assert_eq!(lab.link(&mut folder, "tree/docker/.env.enc").unwrap(), Linked::Made(link.clone()));
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "A=secret");
        assert!(!std::fs::read_to_string(lab.path("data/links/7.json")).unwrap().contains("secret\""));
        drop(folder);
        assert!(std::fs::symlink_metadata(&link).is_err());
        assert!(!lab.path("data/links/7.json").exists());
        assert!(lab.path("tree/docker/.env.enc").exists());
    }

    #[test]
    fn what_lies_under_the_name_stays() {
        let lab = Lab::new();
        let link = lab.path("tree/docker/.env");
        let places: [fn(&Path); 3] = [
            |path| std::fs::write(path, "mine").unwrap(),
            |path| std::fs::create_dir(path).unwrap(),
            |path| symlink("/somewhere/else", path).unwrap(),
        ];
        for place in places {
            place(&link);
            let before = std::fs::symlink_metadata(&link).unwrap().ino();
            let mut folder = lab.folder("7");
            assert_eq!(lab.link(&mut folder, "tree/docker/.env.enc").unwrap(), Linked::NameTaken(link.clone()));
            drop(folder);
            assert_eq!(std::fs::symlink_metadata(&link).unwrap().ino(), before);
            std::fs::remove_file(&link).or_else(|_| std::fs::remove_dir(&link)).unwrap();
        }
    }

    #[test]
    fn something_that_took_the_links_place_stays() {
        let lab = Lab::new();
        let mut folder = lab.folder("7");
        lab.link(&mut folder, "tree/docker/.env.enc").unwrap();
        std::fs::remove_file(lab.path("tree/docker/.env")).unwrap();
        std::fs::write(lab.path("tree/docker/.env"), "mine").unwrap();
        drop(folder);
        assert_eq!(std::fs::read_to_string(lab.path("tree/docker/.env")).unwrap(), "mine");
    }

    #[test]
    fn a_plain_file_needs_no_link() {
        let lab = Lab::new();
        let mut folder = lab.folder("7");
        assert_eq!(lab.link(&mut folder, "tree/docker/plain.env").unwrap(), Linked::NotNeeded);
    }

    #[test]
    fn a_linked_folder_does_not_lead_out_of_the_repository() {
        let lab = Lab::new();
        std::fs::create_dir(lab.path("elsewhere")).unwrap();
        symlink("../elsewhere", lab.path("tree/out")).unwrap();
        symlink("docker", lab.path("tree/in")).unwrap();
        let mut folder = lab.folder("7");
        let error = lab.link(&mut folder, "tree/out/.env.enc").unwrap_err();
        assert!(error.message.contains("leads out of its repository"), "{error}");
        assert_eq!(lab.link(&mut folder, "tree/in/.env.enc").unwrap(), Linked::Made(lab.path("tree/docker/.env")));
    }

    #[test]
    fn after_a_kill_the_next_start_cleans_up() {
        let lab = Lab::new();
        let mut killed = lab.folder("7");
        lab.link(&mut killed, "tree/docker/.env.enc").unwrap();
        std::mem::forget(killed);
        assert_eq!(lab.clean(), [""; 0]);
        assert!(std::fs::symlink_metadata(lab.path("tree/docker/.env")).is_err());
        assert_eq!(std::fs::read_dir(lab.path("runtime/secrets")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(lab.path("data/links")).unwrap().count(), 0);
    }

    #[test]
    fn after_a_reboot_dangling_links_go_too() {
        let lab = Lab::new();
        let mut killed = lab.folder("7");
        lab.link(&mut killed, "tree/docker/.env.enc").unwrap();
        std::mem::forget(killed);
        std::fs::remove_dir_all(lab.path("runtime/secrets")).unwrap();
        std::fs::write(lab.path("data/links/8.json"), "[{\"pa").unwrap();
        assert_eq!(lab.clean(), [""; 0]);
        assert!(std::fs::symlink_metadata(lab.path("tree/docker/.env")).is_err());
        assert_eq!(std::fs::read_dir(lab.path("data/links")).unwrap().count(), 0);
        assert_eq!(lab.clean(), [""; 0]);
    }

    #[test]
    fn a_link_whose_record_was_lost_is_known_by_where_it_points() {
        let lab = Lab::new();
        symlink(lab.path("runtime/secrets/5/0-.env"), lab.path("tree/docker/.env")).unwrap();
        let mut folder = lab.folder("7");
        assert!(matches!(lab.link(&mut folder, "tree/docker/.env.enc").unwrap(), Linked::Made(_)));
        assert_eq!(std::fs::read_to_string(lab.path("tree/docker/.env")).unwrap(), "A=secret");
    }

    #[test]
    fn a_folder_of_somebody_else_is_not_used() {
        let lab = Lab::new();
        std::fs::create_dir(lab.path("theirs")).unwrap();
        std::fs::write(lab.path("theirs/file"), "x").unwrap();
        symlink(lab.path("theirs"), lab.path("runtime/secrets")).unwrap();
        let error = RuntimeFolder::create(&lab.path("runtime"), &lab.path("data"), "7").unwrap_err();
        assert!(error.message.contains("is not a folder of this user"), "{error}");
        assert_eq!(lab.clean(), [""; 0]);
        assert!(lab.path("theirs/file").exists());
    }
}
