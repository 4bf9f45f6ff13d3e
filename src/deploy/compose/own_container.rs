//! The container that Shiparr itself runs in, where it does: which one it is, and which of its folders are the same
//! outside.
//!
//! What Compose tells Docker of files and folders are paths of the host. So a working tree must lie under one path inside
//! and outside of the container: elsewhere, services would be given folders that Docker makes up, and the tree would go
//! with the container.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::client::Client;
use super::explain::{self, Tail};
use crate::command::Limit;
use crate::config::real_path;
use crate::deploy::StepError;

/// What this process has mounted (proc_pid_mountinfo(5)).
const MOUNTINFO: &str = "/proc/self/mountinfo";
/// Files that Docker makes for each container in a folder of the container's id, and mounts into it.
const MADE_BY_DOCKER: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// The folder of those folders, in Docker's data. Podman's differs.
const CONTAINERS: &str = "containers";
/// Digits of a container's full id.
const ID_DIGITS: usize = 64;

/// The container that this process runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnContainer {
    /// Its full id.
    pub id: String,
    /// Id of its image, `sha256:…`.
    pub image: String,
    /// Its labels: those of Compose tell its project and service.
    pub labels: BTreeMap<String, String>,
    /// What is mounted into it.
    pub mounts: Vec<OwnMount>,
}

/// A mount of the container that this process runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnMount {
    /// Docker's word for it: `bind`, `volume`, `tmpfs`, …
    pub kind: String,
    /// The path on the host, as it was given; of a volume, where Docker keeps it; of a tmpfs, empty.
    pub source: PathBuf,
    /// The path in the container.
    pub destination: PathBuf,
}

/// The container that this process runs in; none outside of containers, and where the Docker that `client` talks to is
/// not the one that runs it (another host's, or Podman). Asks Docker only where the kernel says that this is a container
/// of Docker's. What it finds does not change while the process runs.
///
/// # Errors
/// Docker does not answer, in one line: it is not known whether there is one.
pub fn find(client: &Client, limit: &Limit) -> Result<Option<OwnContainer>, StepError> {
    let Ok(mountinfo) = std::fs::read_to_string(MOUNTINFO) else { return Ok(None) };
    let Some(id) = id_in(&mountinfo) else { return Ok(None) };
    let mounted: BTreeSet<PathBuf> = mount_points(&mountinfo).map(|(_, point)| point).collect();
    Ok(running(client, limit)?
        .into_iter()
        .filter(|container| container.id == id || container.host_config.network_mode == format!("container:{id}"))
        .map(OwnContainer::from)
        .filter(|container| container.mounts.iter().all(|mount| mounted.contains(&real_path(&mount.destination))))
        .max_by_key(|container| container.mounts.len()))
}

impl OwnContainer {
    /// Whether `path` is the same file or folder outside: whether it lies in a bind mount whose two paths agree, also
    /// after links are followed. It need not exist. `folder` is what to mount where it is not: `path`, or a folder above.
    ///
    /// # Errors
    /// It is not, in one line that says where it lies instead and which line of `volumes:` to add.
    pub fn outside(&self, path: &Path, folder: &Path) -> Result<(), String> {
        let elsewhere = |path: &Path| match self.mount_of(path) {
            None => Some("it goes with the container".to_owned()),
            Some((mount, _)) if mount.kind == "bind" && mount.source == mount.destination => None,
            Some((mount, inside)) if mount.kind == "bind" => {
                let source: PathBuf = mount.source.join(inside).components().collect();
                Some(format!("outside it is {}", source.display()))
            }
            Some((mount, _)) => Some(format!("it is in the {} at {}", mount.kind, mount.destination.display())),
        };
        let Some(elsewhere) = elsewhere(path).or_else(|| elsewhere(&real_path(path))) else { return Ok(()) };
        Err(format!(
            "{} is not the same folder inside and outside of the container that Shiparr runs in ({elsewhere}): add this \
             line to `volumes:` of Shiparr's service, and bring it up again: - {folder}:{folder}",
            path.display(),
            folder = folder.display()
        ))
    }

    /// Whether this file, once links are followed, lies in a mount that another container can have too.
    pub fn has_mounted(&self, path: &Path) -> bool {
        let is_shared =
            |path: &Path| self.mount_of(path).is_some_and(|(mount, _)| matches!(&*mount.kind, "bind" | "volume"));
        is_shared(path) || is_shared(&real_path(path))
    }

    /// What is mounted where this path lies, and the path from there; none: the container's own files. A mount may be named
    /// through a link of the image, as `/var/run` is one.
    fn mount_of<'a>(&self, path: &'a Path) -> Option<(&OwnMount, &'a Path)> {
        let inside = |mount: &OwnMount| {
            let strip = |point: &Path| path.strip_prefix(point).ok();
            strip(&mount.destination).or_else(|| strip(&real_path(&mount.destination)))
        };
        let around = self.mounts.iter().filter_map(|mount| Some((mount, inside(mount)?)));
        around.min_by_key(|(_, inside)| inside.components().count())
    }
}

/// The id in the names of the files that Docker mounts. Where two containers share a network, it is that of the one whose
/// network it is.
fn id_in(mountinfo: &str) -> Option<String> {
    mount_points(mountinfo).filter(|(_, point)| MADE_BY_DOCKER.iter().any(|made| point == Path::new(made))).find_map(
        |(root, _)| {
            let folder = root.parent()?;
            let id = folder.file_name()?.to_str()?;
            let is_id = id.len() == ID_DIGITS && id.bytes().all(|digit| digit.is_ascii_hexdigit());
            (is_id && folder.parent()?.file_name()? == CONTAINERS).then(|| id.to_owned())
        },
    )
}

/// Of each mount, the path inside of its file system, and the path that it is mounted at.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = (PathBuf, PathBuf)> + '_ {
    mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((unescaped(fields.next()?).into(), unescaped(fields.next()?).into()))
    })
}

/// Blanks and backslashes in mountinfo are three octal digits after a backslash.
fn unescaped(field: &str) -> String {
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")]
        .iter()
        .fold(field.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// A container as `docker inspect` tells of it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    image: String,
    config: Config,
    host_config: HostConfig,
    #[serde(default)]
    mounts: Vec<Mounted>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default)]
    network_mode: String,
    /// Those of `--tmpfs` and of Compose's `tmpfs:`, which are no mounts to Docker.
    tmpfs: Option<BTreeMap<PathBuf, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mounted {
    r#type: String,
    #[serde(default)]
    source: PathBuf,
    destination: PathBuf,
}

impl From<Inspected> for OwnContainer {
    fn from(inspected: Inspected) -> OwnContainer {
        let Inspected { id, image, config, host_config, mounts } = inspected;
        let mounts = mounts.into_iter().map(|Mounted { r#type, source, destination }| OwnMount {
            kind: r#type,
            source: source.components().collect(),
            destination,
        });
        let tmpfs = host_config.tmpfs.into_iter().flatten().map(|(destination, _)| OwnMount {
            kind: "tmpfs".to_owned(),
            source: PathBuf::new(),
            destination,
        });
        OwnContainer { id, image, labels: config.labels.unwrap_or_default(), mounts: mounts.chain(tmpfs).collect() }
    }
}

/// All containers that run.
fn running(client: &Client, limit: &Limit) -> Result<Vec<Inspected>, StepError> {
    const WHAT: &str = "docker inspect";
    let listed = client.ask("docker ps", ["ps", "-q", "--no-trunc"], limit)?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let ids: Vec<&str> = listed.split_whitespace().collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let answer = client.answer(WHAT, ["inspect", "--type", "container"].iter().chain(&ids), limit)?;
    // Some may have gone since they were listed.
    if !answer.status.success() && !answer.stderr.to_lowercase().contains("no such") {
        return Err(explain::failed(WHAT, &Tail::of(&answer.stderr), answer.status));
    }
    serde_json::from_slice(&answer.stdout)
        .map_err(|error| StepError::for_good(format!("the output of {WHAT} is not as expected: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "b6e157cdc2067084a8f8616b3d265565c1f55bfe8ebdd48b5747b684438254b1";

    fn own(mounts: &[(&str, &str, &str)]) -> OwnContainer {
        let mounts = mounts.iter().map(|(kind, source, destination)| OwnMount {
            kind: (*kind).to_owned(),
            source: source.into(),
            destination: destination.into(),
        });
        OwnContainer {
            id: ID.to_owned(),
            image: "sha256:0".to_owned(),
            labels: BTreeMap::new(),
            mounts: mounts.collect(),
        }
    }

    #[test]
    fn reads_its_id_from_what_docker_mounts() {
        let line =
            |root: &str, point: &str| format!("226 208 254:0 {root} {point} rw,relatime - ext4 /dev/vda rw,discard\n");
        let docker = |point| id_in(&line(&format!("/var/lib/docker/containers/{ID}/hostname"), point));
        assert_eq!(docker("/etc/hostname").as_deref(), Some(ID));
        // A log collector mounts the files of others elsewhere.
        assert_eq!(docker("/mnt/hostname"), None);
        // Docker's data may be a file system of its own, and lie in a home folder.
        let rootless = format!("/containers/{ID}/resolv.conf");
        assert_eq!(id_in(&line(&rootless, "/etc/resolv.conf")).as_deref(), Some(ID));
        let podman = format!("/containers/storage/overlay-containers/{ID}/userdata/hostname");
        assert_eq!(id_in(&line(&podman, "/etc/hostname")), None);
        let own_file = line("/srv/containers/web/hosts", "/etc/hosts");
        assert_eq!(id_in(&own_file), None);
        assert_eq!(id_in(&(own_file + &line(&rootless, "/etc/resolv.conf"))).as_deref(), Some(ID));
        assert_eq!(id_in(&line("/", "/")), None);
        assert_eq!(id_in("torn"), None);
    }

    #[test]
    fn reads_blanks_in_paths() {
        let line = r"1 2 254:0 /a\040b /c\134d rw - ext4 /dev/vda rw";
        assert_eq!(mount_points(line).collect::<Vec<_>>(), [(PathBuf::from("/a b"), PathBuf::from(r"/c\d"))]);
    }

    #[test]
    fn takes_a_bind_mount_whose_paths_agree_for_the_same() {
        let own = own(&[
            ("bind", "/nowhere/stacks", "/nowhere/stacks"),
            ("bind", "/mnt/disk/data", "/nowhere/data"),
            ("volume", "/var/lib/docker/volumes/v/_data", "/nowhere/stacks/volume"),
            ("volume", "/var/lib/docker/volumes/v/_data", "/var/lib/docker/volumes/v/_data"),
            ("tmpfs", "", "/nowhere/memory"),
        ]);
        let verdict = |path: &str| own.outside(Path::new(path), Path::new("/nowhere/x")).err();
        for same in ["/nowhere/stacks", "/nowhere/stacks/web/deep"] {
            assert_eq!(verdict(same), None, "{same}");
        }
        for (path, why) in [
            ("/nowhere/stacks2", "it goes with the container"),
            ("/nowhere/data/web", "outside it is /mnt/disk/data/web"),
            ("/nowhere/data", "outside it is /mnt/disk/data)"),
            ("/nowhere/stacks/volume/web", "it is in the volume at /nowhere/stacks/volume"),
            ("/var/lib/docker/volumes/v/_data/web", "it is in the volume at"),
            ("/nowhere/memory/web", "it is in the tmpfs at /nowhere/memory"),
        ] {
            let error = verdict(path).unwrap();
            assert!(
                error.contains(why) && error.starts_with(path) && error.ends_with("- /nowhere/x:/nowhere/x"),
                "{error}"
            );
        }
    }

    #[test]
    fn follows_links_out_of_a_mount() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (bound, own_layer) = (folder.join("bound"), folder.join("own"));
        for made in [&bound, &own_layer] {
            std::fs::create_dir(made).unwrap();
        }
        std::os::unix::fs::symlink(&own_layer, bound.join("link")).unwrap();
        let bound_text = bound.to_str().unwrap();
        let own = own(&[("bind", bound_text, bound_text)]);
        assert_eq!(own.outside(&bound.join("web/not/yet"), &bound), Ok(()));
        let error = own.outside(&bound.join("link/web"), &bound).unwrap_err();
        assert!(error.contains("goes with the container"), "{error}");
    }

    #[test]
    fn a_mount_may_be_named_through_a_link_of_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(folder.join("run/shiparr")).unwrap();
        std::os::unix::fs::symlink(folder.join("run"), folder.join("link")).unwrap();
        let named = folder.join("link/shiparr");
        let text = named.to_str().unwrap();
        assert_eq!(own(&[("bind", text, text)]).outside(&named.join("secrets"), &named), Ok(()));
    }

    #[test]
    fn reads_what_docker_tells_of_a_container() {
        let text = r#"[{"Id": "a1", "Image": "sha256:b2", "Config": {"Labels": null, "Image": "shiparr"},
            "HostConfig": {"NetworkMode": "bridge", "Tmpfs": {"/tmp": ""}},
            "Mounts": [{"Type": "bind", "Source": "/srv/", "Destination": "/srv", "Mode": "", "RW": true}]}]"#;
        let [inspected]: [Inspected; 1] = serde_json::from_str(text).unwrap();
        let own = OwnContainer::from(inspected);
        assert_eq!((own.id.as_str(), own.image.as_str()), ("a1", "sha256:b2"));
        assert_eq!(own.outside(Path::new("/srv/x"), Path::new("/srv")), Ok(()));
        assert_eq!(own.mounts[1].kind, "tmpfs");
    }
}
