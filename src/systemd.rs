//! The service manager: the sockets that it hands over (sd_listen_fds(3)), and what it is told (sd_notify(3)). Without
//! one, nothing is handed over and telling does nothing.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};
use sd_notify::NotifyState;

/// Telling waits no longer than this for a manager that does not read.
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// A status is cut here: it is one line in `systemctl status`.
const STATUS_MAX_CHARS: usize = 200;

/// Listening sockets that were handed over.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For clients, IPv4 and IPv6.
    pub tcp: Vec<TcpListener>,
    /// Control sockets.
    pub control: Vec<UnixListener>,
}

/// Takes the sockets that were handed over to this process; none where none were, or to another one (`LISTEN_PID`).
/// They are told apart by their address family, whatever they are called, and no child inherits them. To be called
/// once, before anything else opens descriptors: later calls answer none.
///
/// # Errors
/// A descriptor that is no such socket, by its name; variables that cannot be read.
pub fn take_sockets() -> Result<Option<Sockets>, String> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(None);
    }
    let descriptors = sd_notify::listen_fds().map_err(|error| format!("LISTEN_FDS: {error}"))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.to_string_lossy().into_owned();
    let mut names = names.split(':');
    let handed_over: Vec<(String, OwnedFd)> = descriptors
        .map(|descriptor| {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
            // SAFETY: sd_listen_fds(3) gives these descriptors to this process, listen_fds found them open, and they
            // are taken once.
            let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
            (format!("`{name}` (descriptor {descriptor})"), socket)
        })
        .collect();
    if handed_over.is_empty() { Ok(None) } else { sort(handed_over).map(Some) }
}

fn sort(handed_over: Vec<(String, OwnedFd)>) -> Result<Sockets, String> {
    let mut sockets = Sockets::default();
    for (name, socket) in handed_over {
        let unusable = |problem: &str| {
            format!(
                "the service manager handed over {name}, which {problem}; expected listening TCP sockets and unix stream sockets: see `systemctl cat shiparr.socket`"
            )
        };
        let kind = sockopt::socket_type(&socket).map_err(|_| unusable("is no socket"))?;
        if kind != SocketType::STREAM {
            return Err(unusable("is no stream socket"));
        }
        if !sockopt::socket_acceptconn(&socket).unwrap_or(false) {
            return Err(unusable("does not listen (Accept=yes is not supported)"));
        }
        match sockopt::socket_domain(&socket).map_err(|error| unusable(&error.to_string()))? {
            AddressFamily::INET | AddressFamily::INET6 => sockets.tcp.push(socket.into()),
            AddressFamily::UNIX => sockets.control.push(socket.into()),
            _ => return Err(unusable("is of another address family")),
        }
    }
    Ok(sockets)
}

/// The service manager, as far as it wants to hear from this process. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Manager {
    address: Option<SocketAddr>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that started this process: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn of_process() -> Manager {
        let address = variable("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let address = address.and_then(|path| {
            let unusable = |error: &io::Error| log::warn!("NOTIFY_SOCKET: {error}; systemd hears nothing of Shiparr");
            address_of(&path).inspect_err(unusable).ok()
        });
        let watchdog = sd_notify::watchdog_enabled().filter(|time| address.is_some() && !time.is_zero());
        Manager { address, watchdog }
    }

    /// Whether there is one.
    pub fn listens(&self) -> bool {
        self.address.is_some()
    }

    /// It ends this process where it does not say for so long that it lives.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The start, or a reload, is over.
    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// A reload begins; [`Manager::ready`] ends it.
    pub fn reloading(&self) {
        // Without the time systemd 253 and newer would not know which reload is meant.
        let now = NotifyState::monotonic_usec_now();
        let states: Vec<NotifyState<'_>> = [NotifyState::Reloading].into_iter().chain(now.ok()).collect();
        self.tell(&states);
    }

    /// The end begins.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// What goes on, in one line.
    pub fn status(&self, text: &str) {
        self.tell(&[NotifyState::Status(&one_line(text))]);
    }

    /// This process lives.
    pub fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// The start or the stop, whichever goes on, takes up to `time` more.
    pub fn extend(&self, time: Duration) {
        self.tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
    }

    /// What is lost is told again or was said for people: it is no reason to stop.
    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(address) = &self.address else { return };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = send(address, message.as_bytes()) {
            log::debug!("systemd was not told {}: {error}", message.trim_end().replace('\n', " "));
        }
    }

    /// One that listens on `path`.
    #[cfg(test)]
    pub fn at(path: &std::path::Path, watchdog: Option<Duration>) -> Manager {
        Manager { address: Some(address_of(path.as_os_str()).unwrap()), watchdog }
    }
}

fn send(address: &SocketAddr, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(TELL_LIMIT))?;
    socket.send_to_addr(message, address).map(drop)
}

/// A path, or `@` and a name that is in no file system.
fn address_of(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(socket),
    }
}

fn one_line(text: &str) -> String {
    let line: String = text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    match line.char_indices().nth(STATUS_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[expect(clippy::disallowed_methods, reason = "what the service manager says is in the environment")]
fn variable(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn named(socket: impl Into<OwnedFd>) -> (String, OwnedFd) {
        ("`shiparr` (descriptor 3)".to_owned(), socket.into())
    }

    #[test]
    fn sockets_are_told_apart_by_their_family() {
        let folder = tempfile::tempdir().unwrap();
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = v4.local_addr().unwrap();
        let unix =
            || named(UnixListener::bind(folder.path().join(format!("{:?}", std::time::Instant::now()))).unwrap());
        let mut handed_over = vec![unix(), named(v4), unix()];
        // A machine without IPv6 has none to hand over.
        let v6 = TcpListener::bind("[::1]:0").ok();
        let tcp = 1 + usize::from(v6.is_some());
        handed_over.extend(v6.map(named));
        let sockets = sort(handed_over).unwrap();
        assert_eq!((sockets.tcp.len(), sockets.control.len()), (tcp, 2));
        assert_eq!(sockets.tcp[0].local_addr().unwrap(), address);
    }

    #[test]
    fn whatever_else_is_handed_over_is_refused_by_its_name() {
        let (stream, _other) = UnixStream::pair().unwrap();
        for (socket, problem) in [
            (named(UdpSocket::bind("127.0.0.1:0").unwrap()), "no stream socket"),
            (named(stream), "does not listen"),
            (named(std::fs::File::open("/dev/null").unwrap()), "is no socket"),
        ] {
            let error = sort(vec![socket]).unwrap_err();
            assert!(error.contains("`shiparr` (descriptor 3)") && error.contains(problem), "{error}");
            assert!(error.contains("systemctl cat shiparr.socket") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn without_a_manager_nothing_is_told_and_nothing_is_handed_over() {
        let manager = Manager::default();
        manager.ready();
        assert!(!manager.listens() && manager.watchdog().is_none());
        assert!(take_sockets().unwrap().is_none() && take_sockets().unwrap().is_none());
    }

    #[test]
    fn each_message_is_a_datagram_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let heard = || {
            let mut buffer = [0; 4096];
            let count = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..count].to_vec()).unwrap()
        };
        let manager = Manager::at(&path, None);
        manager.ready();
        assert_eq!(heard(), "READY=1\n");
        manager.reloading();
        let reloading = heard();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        assert!(time.parse::<u64>().unwrap() > 0);
        manager.extend(Duration::from_secs(30));
        assert_eq!(heard(), "EXTEND_TIMEOUT_USEC=30000000\n");
        manager.extend(Duration::MAX);
        assert_eq!(heard(), format!("EXTEND_TIMEOUT_USEC={}\n", u32::MAX));
        manager.status("one\nREADY=1\ttwo");
        assert_eq!(heard(), "STATUS=one READY=1 two\n");
        manager.status(&"ä".repeat(1000));
        assert_eq!(heard(), format!("STATUS={}…\n", "ä".repeat(STATUS_MAX_CHARS)));
        // A manager that does not read, and one that is gone, hold nobody up for long.
        drop(socket);
        manager.alive();
    }

    #[test]
    fn an_abstract_address_is_one_too() {
        let name = format!("shiparr-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Manager::at(std::path::Path::new(&format!("@{name}")), None).stopping();
        let mut buffer = [0; 64];
        let count = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"STOPPING=1\n");
    }
}
