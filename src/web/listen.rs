//! The sockets that clients connect to, and the private folder between gate and tiny_http.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::users;

/// Members of this group may use the control socket.
const CONTROL_GROUP: &str = "shiparr";
/// The folder in the runtime folder that only this process looks into.
const PRIVATE_FOLDER: &str = "http";
/// Connections that the kernel keeps until the gate accepts them, where the system allows so many (`somaxconn`). Past
/// it a client's first packet is lost and comes again a second later; the standard library's 128 are soon there.
const BACKLOG: i32 = 4096;

/// Why nothing listens, in one line that names the setting.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ListenError(String);

impl ListenError {
    /// One line.
    pub(super) fn new(message: impl Into<String>) -> ListenError {
        ListenError(message.into())
    }
}

/// Listens on TCP.
///
/// # Errors
/// The address's, with the settings that name it.
pub fn listen_tcp(host: &str, port: u16) -> Result<TcpListener, ListenError> {
    let host_alone = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let bound = TcpListener::bind((host_alone, port)).and_then(|listener| {
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(listener)
    });
    bound.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AddrInUse => "another program listens there: choose another Shiparr_PORT",
            ErrorKind::AddrNotAvailable => "this host has no such address: see Shiparr_HOST",
            ErrorKind::PermissionDenied => "ports below 1024 need a privilege: choose another Shiparr_PORT",
            _ => "see Shiparr_HOST and Shiparr_PORT",
        };
        ListenError(format!("cannot listen on {host} port {port}: {error}; {hint}"))
    })
}

/// Listens on the control socket, which the group `shiparr` may use where it exists. The socket of a daemon that is
/// gone is replaced.
///
/// # Errors
/// A daemon that listens there, or the folder's.
pub fn listen_control(path: &Path) -> Result<UnixListener, ListenError> {
    let problem = |error: &io::Error| {
        ListenError(format!(
            "cannot listen on the control socket {}: {error}; see Shiparr_RUNTIME_PATH",
            path.display()
        ))
    };
    match UnixStream::connect(path) {
        Ok(_) => {
            let path = path.display();
            return Err(ListenError(format!(
                "another daemon listens on the control socket {path}; see Shiparr_RUNTIME_PATH"
            )));
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
        Err(error) => return Err(problem(&error)),
    }
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        return Err(problem(&io::Error::other("there is a folder of that name")));
    }
    // Made under another name: nobody can connect before the permissions are what they should be.
    let draft = path.with_extension(format!("sock.{}", std::process::id()));
    let listener = UnixListener::bind(&draft).map_err(|error| problem(&error))?;
    let finished = set_permissions(&draft, users::group_id(CONTROL_GROUP)).and_then(|()| fs::rename(&draft, path));
    if let Err(error) = finished {
        // The draft is ours; where it cannot be removed, the error below says why.
        let _ = fs::remove_file(&draft);
        return Err(problem(&error));
    }
    Ok(listener)
}

/// Makes the folder for the socket between gate and tiny_http, which only this user can look into, and answers the
/// socket's path in it.
///
/// # Errors
/// The file system's, or a folder of somebody else.
pub fn private_socket(runtime_folder: &Path) -> Result<PathBuf, ListenError> {
    let folder = runtime_folder.join(PRIVATE_FOLDER);
    let socket = folder.join("tiny_http.sock");
    let problem = |error: io::Error| ListenError(format!("{}: {error}; see Shiparr_RUNTIME_PATH", folder.display()));
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(problem(error)),
        _ => {}
    }
    let found = fs::symlink_metadata(&folder).map_err(problem)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(problem(io::Error::other("it is not a folder of this user")));
    }
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(problem)?;
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(problem(error)),
        _ => Ok(socket),
    }
}

/// For the group where it exists and may be given, else for this user alone.
fn set_permissions(socket: &Path, group: Option<u32>) -> io::Result<()> {
    let mode = match group.map(|group| chown(socket, None, Some(group))) {
        Some(Ok(())) => 0o660,
        Some(Err(error)) => {
            log::warn!("the group {CONTROL_GROUP} cannot use the control socket: {error}");
            0o600
        }
        None => 0o600,
    };
    fs::set_permissions(socket, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::CONTROL_SOCKET;

    #[test]
    fn a_stale_control_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONTROL_SOCKET);
        let first = listen_control(&path).unwrap();
        let error = listen_control(&path).unwrap_err().to_string();
        assert!(error.contains("another daemon") && error.contains("Shiparr_RUNTIME_PATH"), "{error}");
        drop(first);
        assert!(path.exists());
        let second = listen_control(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert!(matches!(mode, 0o660 | 0o600), "{mode:o}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        UnixStream::connect(&path).unwrap();
        drop(second);
    }

    #[test]
    fn errors_name_the_settings() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen_tcp("127.0.0.1", port).unwrap_err().to_string();
        assert!(
            error.contains("Shiparr_PORT") && error.contains(&port.to_string()) && !error.contains('\n'),
            "{error}"
        );
        assert!(listen_tcp("192.0.2.1", 0).unwrap_err().to_string().contains("Shiparr_HOST"));
        assert!(listen_tcp("[::1]", 0).is_ok() || listen_tcp("::1", 0).is_err());
        let error = listen_control(Path::new("/nonexistent/shiparr.sock")).unwrap_err().to_string();
        assert!(error.contains("Shiparr_RUNTIME_PATH"), "{error}");
    }

    #[test]
    fn the_private_folder_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let socket = private_socket(folder.path()).unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        fs::set_permissions(socket.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(private_socket(folder.path()).unwrap(), socket);
        assert!(!socket.exists());
        assert_eq!(fs::metadata(socket.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_dir(socket.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/tmp", socket.parent().unwrap()).unwrap();
        assert!(private_socket(folder.path()).is_err());
    }
}
