//! The daemon: start and stop order, signals, supervision.
//!
//! Started in this order: sockets that were handed over, lock, database, configuration, listeners, threads; then systemd
//! is told that Shiparr is ready. Stopped in this order: timers, the worker (a running deployment may end), the gate
//! (until then triggers are accepted, for the next start), the database.

mod activity;
mod at_boot;
mod docker;
mod finish;
mod heartbeat;
mod keeper;
mod lend;
mod lock;
mod logging;
mod once;
mod pause;
mod places;
mod reload;
mod restore;
mod shared;
mod status;
mod tell;
mod threads;
mod timers;
mod web_side;
mod worker;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jiff::Timestamp;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::config::settings::is_in_memory;
use crate::config::{Catalog, Settings, hash_key};
use crate::deploy::handover;
use crate::deploy::pipeline::Host;
use crate::git;
use crate::metrics::Metrics;
use crate::pulse;
use crate::secrets::runtime::RuntimeFolder;
use crate::store::Store;
use crate::systemd::{self, Manager, Sockets};
use keeper::Keeper;
pub use logging::say_why;
use shared::Shared;
use status::Status;
use threads::{STACK_BYTES, Threads};
use timers::Timers;
use worker::Worker;

pub use at_boot::restore_secrets;

/// What wakes the main thread.
#[derive(Debug)]
pub enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP, or files that changed.
    Reload,
    /// A long-lived thread ended that should not have.
    ThreadDied(String),
}

/// The thread that runs deployments.
const WORKER: &str = "worker";
/// After a running deployment was interrupted, its children get SIGTERM and 15 s later SIGKILL, and what it had checked
/// out is put back; then it must have ended.
const INTERRUPTED_LIMIT: Duration = Duration::from_secs(30);
/// Project files that could not be loaded (the database refused, or there was no room for a thread) are loaded again
/// after this.
const RELOAD_AGAIN: Duration = Duration::from_secs(10);
/// Reading the project files takes less, also of a folder on a slow network.
const RELOAD_LIMIT: Duration = Duration::from_secs(300);
/// What a stop does beside waiting, the database's last writes for one.
const STOP_SLACK: Duration = Duration::from_secs(30);
/// Messages that are under way at a stop may still go out for this long; the rest is told at the next start.
const TELL_LIMIT: Duration = Duration::from_secs(2);

/// Runs the daemon until a signal ends it; `once`: checks and deploys everything one time.
///
/// # Errors
/// Whatever keeps it from starting, in one line; and a long-lived thread that died.
pub fn run(settings: Settings, warnings: &[String], once: bool) -> anyhow::Result<ExitCode> {
    logging::start(&settings.log_filter, settings.log_format);
    // First of all: no child inherits them.
    let handed_over = systemd::take_sockets().map_err(anyhow::Error::msg)?;
    for warning in warnings {
        log::warn!("{warning}");
    }
    let (events_out, events) = crossbeam_channel::unbounded();
    let threads = Threads::new(events_out.clone()).with_hang(settings.debug_hang.as_deref());
    listen_to_signals(events_out.clone(), &threads)?;
    if once {
        let start = Start::prepare(Arc::new(settings))?;
        return once::run(&start.shared, &threads, events);
    }
    let keeper = Keeper::start(Manager::of_process(), &threads)?;
    let start = Start::prepare(Arc::new(settings))?;
    let daemon = Daemon::start(start, threads, keeper, events_out, handed_over)?;
    daemon.live(&events)
}

/// What both ways to run have in common: folders, lock, database, configuration.
struct Start {
    shared: Arc<Shared>,
    loaded: reload::Signature,
    _locks: [lock::Lock; 2],
}

impl Start {
    fn prepare(settings: Arc<Settings>) -> anyhow::Result<Start> {
        make_folder(&settings.data_path, "Shiparr_DATA_PATH")?;
        let data_lock = lock::take(&settings.data_path.join(lock::DATA_LOCK), "Shiparr_DATA_PATH")?;
        make_folder(&settings.runtime_path, "Shiparr_RUNTIME_PATH")?;
        let runtime_lock = lock::take(&settings.runtime_path.join(lock::RUNTIME_LOCK), "Shiparr_RUNTIME_PATH")?;
        warn_of_a_disk(&settings.runtime_path)?;
        let (runtime, data) = (&settings.runtime_path, &settings.data_path);
        let spared = handover::may_be_in_use(runtime);
        log_leftovers(&RuntimeFolder::clean_leftovers(runtime, data, &spared));
        let metrics = Arc::new(Metrics::default());
        let store = Store::open(&settings.data_path, settings.history_limit)?.counted_in(Arc::clone(&metrics));
        let store = Arc::new(store);
        for deployment in store.recover(Timestamp::now())? {
            log::warn!("{}: deployment {} was interrupted and is queued again", deployment.repository, deployment.id);
        }
        let handed_over = store.handed_over()?;
        log_leftovers(&handover::clean(runtime, data, &handed_over));
        let hash_key = hash_key(&settings.data_path)
            .with_context(|| format!("cannot read or make the key file in {}", settings.data_path.display()))?;
        let loaded = reload::signature(&settings.config_path);
        let catalog = reload::load(&settings, &store, &Catalog::default())?;
        reload::log_problems(&[], &catalog.problems);
        reload::record(&settings, &store, &hash_key, &catalog)?;
        reload::queue_changed(&store)?;
        let git = git::Child {
            // The running program itself, also after an upgrade replaced the file.
            program: "/proc/self/exe".into(),
            environment: settings.environment.for_children(),
        };
        let driver = crate::deploy::driver(&settings);
        let host = Host { settings, store, driver, git, hash_key };
        let shared = Arc::new(Shared::new(host, catalog, metrics));
        worker::expect_handed_over(&shared, &handed_over);
        shared.restore.begin(&shared.host)?;
        Ok(Start { shared, loaded, _locks: [data_lock, runtime_lock] })
    }
}

/// The running daemon, as its main thread sees it.
struct Daemon {
    start: Start,
    threads: Threads,
    keeper: Keeper,
    timers: Timers,
    web: web_side::Web,
    worker: JoinHandle<()>,
    teller: JoinHandle<()>,
}

impl Daemon {
    fn start(
        start: Start,
        threads: Threads,
        keeper: Keeper,
        events: Sender<Event>,
        handed_over: Option<Sockets>,
    ) -> anyhow::Result<Daemon> {
        let shared = &start.shared;
        let web = web_side::Web::start(shared, &threads, handed_over)?;

        let worker = Worker::new(Arc::clone(shared), threads.clone());
        let worker = threads.start(WORKER, STACK_BYTES, move || worker.run())?;
        let teller = tell::Teller::new(Arc::clone(shared), threads.clone());
        let teller = threads.start("teller", STACK_BYTES, move || teller.run())?;
        let watch = docker::Watch::new(Arc::clone(shared), threads.clone());
        threads.start("docker", threads::SMALL_STACK_BYTES, move || watch.run())?;
        if !shared.host.settings.disable_config_auto_reload {
            let (shared, loaded, also) = (Arc::clone(shared), start.loaded.clone(), threads.clone());
            threads
                .start("reload", threads::SMALL_STACK_BYTES, move || reload::watch(&shared, loaded, &also, &events))?;
        }
        if let Some(heartbeat) = heartbeat::Heartbeat::new(shared, &threads)? {
            threads.start("heartbeat", threads::SMALL_STACK_BYTES, move || heartbeat.run())?;
        }
        if keeper.manager().listens() {
            let status = Status::new(Arc::clone(shared), threads.clone(), keeper.manager().clone());
            threads.start("status", threads::SMALL_STACK_BYTES, move || status.run())?;
        }
        let mut timers = Timers::new(Arc::clone(shared), threads.clone());
        timers.adjust(&shared.catalog())?;

        let repositories = shared.catalog().repositories().count();
        log::info!("Shiparr {} watches {repositories} repositories, {}", env!("CARGO_PKG_VERSION"), web.address());
        keeper.ready();
        Ok(Daemon { start, threads, keeper, timers, web, worker, teller })
    }

    fn live(mut self, events: &Receiver<Event>) -> anyhow::Result<ExitCode> {
        let mut is_loaded = true;
        let threads = self.threads.clone();
        let watched = threads.watch_this_one("main");
        loop {
            pulse::rests();
            let event = next_event(events, is_loaded)?;
            pulse::next_within(RELOAD_LIMIT);
            match event {
                Event::Reload => is_loaded = self.reload(),
                Event::Stop => break,
                Event::ThreadDied(name) => {
                    // Nothing is lost: the queue is in the database, and whoever supervises us starts us again. Compose
                    // and what lies in plain text must not be left to that start, though.
                    self.threads.stopping();
                    self.keeper.stopping(INTERRUPTED_LIMIT + STOP_SLACK);
                    interrupt(&self.start.shared, &self.threads, &self.worker);
                    bail!("the thread `{name}` ended unexpectedly; the process ends so that it is started again whole");
                }
            }
        }
        // What ends now has limits of its own.
        drop(watched);
        self.stop();
        Ok(ExitCode::SUCCESS)
    }

    /// Loads the project files again; where that fails, everything goes on as before. Answers whether it worked.
    fn reload(&mut self) -> bool {
        let shared = &self.start.shared;
        self.keeper.manager().reloading();
        let before = shared.catalog();
        let reloaded = reload::load(&shared.host.settings, &shared.host.store, &before).and_then(|catalog| {
            reload::log_problems(&before.problems, &catalog.problems);
            reload::record(&shared.host.settings, &shared.host.store, &shared.host.hash_key, &catalog)?;
            let catalog = Arc::new(catalog);
            shared.set_catalog(Arc::clone(&catalog));
            shared.host.store.projects_loaded();
            reload::queue_changed(&shared.host.store)?;
            self.timers.adjust(&catalog)
        });
        match &reloaded {
            Ok(()) => log::info!("project files loaded again"),
            Err(error) => log::error!("project files were not loaded again, the next try is soon: {error:#}"),
        }
        shared.wake_worker();
        self.keeper.manager().ready();
        reloaded.is_ok()
    }

    fn stop(mut self) {
        let shared = &self.start.shared;
        let patience = shared.host.settings.shutdown_timeout;
        log::info!("stopping: running deployments may go on for {} s", patience.as_secs());
        self.threads.stopping();
        self.keeper.stopping(web_side::STOP_LIMIT + patience + INTERRUPTED_LIMIT + TELL_LIMIT + STOP_SLACK);
        shared.stir();
        // The container that this process runs in may be about to be replaced.
        shared.activities.leave_to_helpers();
        self.timers.stop();
        self.web.end_streams();
        shared.wake_worker();
        if !all_ended_within(shared, &self.threads, &self.worker, patience) {
            log::warn!("not every running deployment ended in time: what is left is interrupted and queued again");
            interrupt(shared, &self.threads, &self.worker);
        }
        // Until now it answered: what was asked meanwhile is in the database, for the next start.
        self.web.stop();
        shared.wake_teller();
        ended_within(&self.teller, TELL_LIMIT);
        if let Err(error) = shared.host.store.recover(Timestamp::now()).and_then(|_| shared.host.store.flush_checks()) {
            log::error!("not everything could be stored at the stop: {error}");
        }
        log::info!("stopped");
    }
}

fn log_leftovers(problems: &[String]) {
    for problem in problems {
        log::error!("plain text that an interrupted deployment left could not be removed: {problem}");
    }
}

/// The next event. Reloads that were asked for meanwhile are one, and one that did not work is tried again.
fn next_event(events: &Receiver<Event>, is_loaded: bool) -> anyhow::Result<Event> {
    let limit = if is_loaded { Duration::MAX } else { RELOAD_AGAIN };
    let event = match events.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => Event::Reload,
        received => received.context("nobody is left to wake the main thread")?,
    };
    let is_other = |event: &Event| !matches!(event, Event::Reload);
    if is_other(&event) { Ok(event) } else { Ok(events.try_iter().find(is_other).unwrap_or(event)) }
}

/// Ends the running deployments and waits until what belongs to them is put away. The worker takes no other row once the
/// threads are stopping; one that died itself is not waited for.
fn interrupt(shared: &Shared, threads: &Threads, worker: &JoinHandle<()>) {
    shared.activities.stop();
    shared.wake_worker();
    if !all_ended_within(shared, threads, worker, INTERRUPTED_LIMIT) {
        let why = if threads.hangs(WORKER) { "the worker hangs" } else { "a deployment did not end in time" };
        log::error!("{why}: the next start puts away what is left of it");
    }
}

/// Waits for the worker, for the deployments that it has handed on, and for those who work on a stack by hand, at most
/// `time`; whether all of it ended. A worker that hangs is not waited for, only what runs beside it.
fn all_ended_within(shared: &Shared, threads: &Threads, worker: &JoinHandle<()>, time: Duration) -> bool {
    let until = Instant::now() + time;
    let worker_ended = ended_unless(worker, until, || threads.hangs(WORKER));
    shared.activities.wait_until_all_ended(until.saturating_duration_since(Instant::now())) && worker_ended
}

/// Waits for a thread, at most `time`; whether it ended.
fn ended_within(thread: &JoinHandle<()>, time: Duration) -> bool {
    ended_unless(thread, Instant::now() + time, || false)
}

/// Waits for a thread until then, or until there is no use in that; whether it ended.
fn ended_unless(thread: &JoinHandle<()>, until: Instant, is_useless: impl Fn() -> bool) -> bool {
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    while !thread.is_finished() {
        if Instant::now() >= until || is_useless() {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    true
}

/// Turns signals into events; a second SIGTERM or SIGINT ends the process at once.
fn listen_to_signals(events: Sender<Event>, threads: &Threads) -> anyhow::Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot listen to signals")?;
    let asked = threads.clone();
    threads.start_for_a_while("signals", threads::SMALL_STACK_BYTES, move || {
        let mut stopping = false;
        for signal in signals.forever() {
            let event = match signal {
                SIGHUP => Event::Reload,
                _ if stopping => std::process::exit(128 + signal),
                _ => {
                    stopping = true;
                    asked.ask_to_stop();
                    Event::Stop
                }
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Decrypted secrets would touch the disk.
fn warn_of_a_disk(runtime_path: &Path) -> anyhow::Result<()> {
    if !is_in_memory(runtime_path)? {
        log::warn!(
            "{} is not a tmpfs: decrypted secrets would touch the disk there; set Shiparr_RUNTIME_PATH to a folder on one",
            runtime_path.display()
        );
    }
    Ok(())
}

/// Makes a folder of ours where it is missing.
fn make_folder(path: &Path, setting: &str) -> anyhow::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).with_context(|| {
        format!("cannot make {}: make it, or set {setting} to a folder that this user may write", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_reloads_is_one_and_hides_no_stop() {
        let (sender, events) = crossbeam_channel::unbounded();
        let storm = || (0..1000).for_each(|_| sender.send(Event::Reload).unwrap());
        storm();
        assert!(matches!(next_event(&events, true).unwrap(), Event::Reload));
        assert!(events.is_empty());
        storm();
        sender.send(Event::Stop).unwrap();
        storm();
        assert!(matches!(next_event(&events, true).unwrap(), Event::Stop));
    }
}
