//! The daemon's side of the web: its listeners, its threads, and what it may ask of the daemon.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::activity::Hands;
use super::ended_within;
use super::lend;
use super::pause::{self, Pause};
use super::shared::Shared;
use super::tell;
use super::threads::{STACK_BYTES, Threads};
use crate::command::Limit;
use crate::config::{Catalog, Settings};
use crate::deploy::control::Cause;
use crate::deploy::secret_files;
use crate::model::{DeploymentId, RepositoryId, RepositoryName};
use crate::systemd::Sockets;
use crate::web::{self, Busy, Context, Lent, Listener, NotifyResult, StopWeb};

/// Requests in flight end within three seconds of a stop; this is a little more.
pub const STOP_LIMIT: Duration = Duration::from_secs(4);

/// The running web.
pub struct Web {
    stop: StopWeb,
    threads: Vec<JoinHandle<()>>,
    address: String,
    control: Option<PathBuf>,
}

/// Where clients come in.
struct Listeners {
    all: Vec<Listener>,
    /// Of the TCP listeners.
    addresses: Vec<SocketAddr>,
    /// The control socket that was made here.
    made: Option<PathBuf>,
}

impl Web {
    /// Binds the listeners, or takes those that were handed over, and starts the web's threads.
    ///
    /// # Errors
    /// An address or a socket that cannot be had, in one line that names the setting.
    pub fn start(shared: &Arc<Shared>, threads: &Threads, handed_over: Option<Sockets>) -> anyhow::Result<Web> {
        let settings = &shared.host.settings;
        let listeners = match handed_over {
            Some(sockets) => Listeners::handed_over(sockets, settings)?,
            None => Listeners::bound(settings)?,
        };
        let side = Side { shared: Arc::clone(shared), threads: threads.clone() };
        let (settings, store, metrics) =
            (Arc::clone(settings), Arc::clone(&shared.host.store), Arc::clone(&shared.metrics));
        let context = Context::new(settings, store, Arc::new(side), metrics);
        let (address, control) = (listeners.address(), listeners.made);
        let started = web::start(context, listeners.all)?;
        let mut running = Vec::new();
        for thread in started.threads {
            let run = thread.run;
            running.push(threads.start(&thread.name, STACK_BYTES, move || {
                if let Err(error) = run() {
                    log::error!("{error}");
                }
            })?);
        }
        Ok(Web { stop: started.stop, threads: running, address, control })
    }

    /// Where people find it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Answers without an end have it now: a log that is followed, a stack in somebody's hands.
    pub fn end_streams(&self) {
        self.stop.end_streams();
    }

    /// No new connections; requests in flight may end.
    pub fn stop(&self) {
        self.stop.stop();
        let until = Instant::now() + STOP_LIMIT;
        for thread in &self.threads {
            ended_within(thread, until.saturating_duration_since(Instant::now()));
        }
        // Nobody answers there any more. The runtime folder's lock is still held, so it is not the next daemon's. One
        // that was handed over stays: who connects meanwhile is answered by the next process.
        if let Some(Err(error)) = self.control.as_ref().map(fs::remove_file) {
            log::warn!("the control socket was not removed: {error}");
        }
    }
}

impl Listeners {
    /// The address and the control socket of the settings.
    fn bound(settings: &Settings) -> anyhow::Result<Listeners> {
        let tcp = web::listen_tcp(&settings.host, settings.port)?;
        let address = tcp.local_addr()?;
        warn_if_open(settings, address, "Shiparr_HOST=127.0.0.1");
        let mut listeners = Listeners { all: vec![Listener::Tcp(tcp)], addresses: vec![address], made: None };
        listeners.make_control(settings)?;
        Ok(listeners)
    }

    /// Those sockets, and the control socket where none is among them: the verbs of the command line need it. TCP is a
    /// choice, though: whoever hands over control sockets alone wants nobody on the network.
    fn handed_over(sockets: Sockets, settings: &Settings) -> anyhow::Result<Listeners> {
        const WAY: &str = "`systemctl edit shiparr.socket`";
        let unused = settings.bind_settings();
        if !unused.is_empty() {
            let (names, is) = (unused.join(" and "), if unused.len() == 1 { "is" } else { "are" });
            log::warn!("{names} {is} not used, because systemd hands over the sockets: set ListenStream= by {WAY}");
        }
        let mut listeners = Listeners { all: Vec::new(), addresses: Vec::new(), made: None };
        for tcp in sockets.tcp {
            let address = tcp.local_addr()?;
            warn_if_open(settings, address, &format!("ListenStream=127.0.0.1:{} by {WAY}", address.port()));
            listeners.addresses.push(address);
            listeners.all.push(Listener::Tcp(tcp));
        }
        if sockets.control.is_empty() {
            listeners.make_control(settings)?;
        }
        listeners.all.extend(sockets.control.into_iter().map(Listener::Control));
        Ok(listeners)
    }

    fn make_control(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let path = settings.control_socket();
        self.all.push(Listener::Control(web::listen_control(&path)?));
        self.made = Some(path);
        Ok(())
    }

    fn address(&self) -> String {
        if self.addresses.is_empty() {
            return "the control socket alone".to_owned();
        }
        let addresses: Vec<String> = self.addresses.iter().map(|address| format!("http://{address}")).collect();
        addresses.join(", ")
    }
}

fn warn_if_open(settings: &Settings, address: SocketAddr, way: &str) {
    if settings.auth.is_none() && !address.ip().to_canonical().is_loopback() {
        log::warn!(
            "everybody who reaches {address} may deploy: set Shiparr_AUTH_ENABLED=true and Shiparr_AUTH_PASSWORD, or {way}"
        );
    }
}

/// What the web may ask of the daemon.
struct Side {
    shared: Arc<Shared>,
    threads: Threads,
}

impl web::Daemon for Side {
    fn catalog(&self) -> Arc<Catalog> {
        self.shared.catalog()
    }

    fn wake_worker(&self) {
        self.shared.wake_worker();
    }

    fn cancel_running(&self, repository: RepositoryId, deployment: DeploymentId) -> bool {
        self.shared.activities.cancel(repository, deployment, Cause::Cancel)
    }

    fn check_now(&self, id: RepositoryId) {
        self.shared.check_now(id);
    }

    fn forgotten(&self, repositories: &[RepositoryName]) {
        let host = &self.shared.host;
        for name in repositories {
            if let Err(error) = secret_files::forget(name, &host.settings, &host.hash_key) {
                log::error!("{name}: its decrypted files stay until the next start: {error}");
            }
        }
    }

    fn docker_problem(&self) -> Option<String> {
        self.shared.docker().problem
    }

    fn started_at(&self) -> Instant {
        self.shared.started_at
    }

    fn notify_test(&self, repository: Option<&RepositoryName>) -> Result<Vec<NotifyResult>, String> {
        tell::test(&self.shared, repository)
    }

    fn lend(&self, repository: RepositoryId, who: &str, limit: &Limit) -> Result<Lent, String> {
        lend::lend(&self.shared, &self.threads, repository, Hands { who: who.to_owned(), limit: limit.clone() })
    }

    fn release(&self, repository: RepositoryId) -> Option<String> {
        lend::release(&self.shared, repository)
    }

    fn pause(&self) -> Box<dyn Send> {
        Box::new(Pause::begin(&self.shared))
    }

    fn running(&self) -> Vec<Busy> {
        pause::running(&self.shared)
    }

    fn spawn(&self, name: &str, job: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.threads.start_for_a_while(name, STACK_BYTES, job).map(drop)
    }
}
