//! The daemon's side of the web: its listeners, its threads, and what it may ask of the daemon.

use std::fs;
use std::io;
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
use crate::config::Catalog;
use crate::deploy::control::Cause;
use crate::deploy::secret_files;
use crate::model::{DeploymentId, RepositoryId, RepositoryName};
use crate::web::{self, Busy, CONTROL_SOCKET, Context, Lent, Listener, NotifyResult, StopWeb};

/// Requests in flight end within three seconds of a stop; this is a little more.
const STOP_LIMIT: Duration = Duration::from_secs(4);

/// The running web.
pub struct Web {
    stop: StopWeb,
    threads: Vec<JoinHandle<()>>,
    address: String,
    control: PathBuf,
}

impl Web {
    /// Binds the listeners and starts the web's threads.
    ///
    /// # Errors
    /// An address or a socket that cannot be had, in one line that names the setting.
    pub fn start(shared: &Arc<Shared>, threads: &Threads) -> anyhow::Result<Web> {
        let settings = &shared.host.settings;
        let tcp = web::listen_tcp(&settings.host, settings.port)?;
        let address = tcp.local_addr()?;
        if settings.auth.is_none() && !address.ip().is_loopback() {
            log::warn!(
                "everybody who reaches {address} may deploy: set Shiparr_AUTH_ENABLED=true and Shiparr_AUTH_PASSWORD, or Shiparr_HOST=127.0.0.1"
            );
        }
        let control_path = settings.runtime_path.join(CONTROL_SOCKET);
        let control = web::listen_control(&control_path)?;
        let side = Side { shared: Arc::clone(shared), threads: threads.clone() };
        let (settings, store, metrics) =
            (Arc::clone(settings), Arc::clone(&shared.host.store), Arc::clone(&shared.metrics));
        let context = Context::new(settings, store, Arc::new(side), metrics);
        let started = web::start(context, vec![Listener::Tcp(tcp), Listener::Control(control)])?;
        let mut running = Vec::new();
        for thread in started.threads {
            let run = thread.run;
            running.push(threads.start(&thread.name, STACK_BYTES, move || {
                if let Err(error) = run() {
                    log::error!("{error}");
                }
            })?);
        }
        Ok(Web { stop: started.stop, threads: running, address: format!("http://{address}"), control: control_path })
    }

    /// Where people find it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// No new connections; requests in flight may end.
    pub fn stop(&self) {
        self.stop.stop();
        let until = Instant::now() + STOP_LIMIT;
        for thread in &self.threads {
            ended_within(thread, until.saturating_duration_since(Instant::now()));
        }
        // Nobody answers there any more. The runtime folder's lock is still held, so it is not the next daemon's.
        if let Err(error) = fs::remove_file(&self.control) {
            log::warn!("the control socket {} was not removed: {error}", self.control.display());
        }
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
