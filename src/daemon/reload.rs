//! Project files: loaded at start, on a change and on SIGHUP; the database and the timers follow.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use jiff::Timestamp;

use super::Event;
use super::shared::Shared;
use super::threads::Threads;
use crate::config::project::Deploy;
use crate::config::{Accepted, AcceptedRepository, Basis, Catalog, Problem, Settings, Severity};
use crate::pulse;
use crate::store::{ProjectSpec, RepositorySpec, Store};

/// How often the folder is looked at. Looking (not inotify) also sees changes on network and overlay file systems.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// Files count as written once they have been quiet for this long.
const QUIET: Duration = Duration::from_secs(1);

/// Loads the project files; what was accepted before goes on where a file became bad.
///
/// # Errors
/// The database's.
pub fn load(settings: &Settings, store: &Store, previous: &Catalog) -> anyhow::Result<Catalog> {
    let projects = store.projects()?;
    let repositories = store.repositories(None)?;
    let accepted = Accepted {
        files: projects.into_iter().map(|project| (project.name, project.config_file.into())).collect(),
        repositories: repositories
            .into_iter()
            .filter(|record| record.orphaned_at.is_none())
            .map(|record| {
                let accepted = AcceptedRepository {
                    id: record.id,
                    local_path: record.local_path.into(),
                    path: record.path.into(),
                    url: record.git_url,
                    branch: record.branch,
                };
                (record.name, accepted)
            })
            .collect(),
    };
    let basis = Basis { settings, previous, accepted: &accepted, unset_names: Severity::Error };
    Ok(Catalog::load(&settings.config_path, &basis))
}

/// Makes the database agree with the catalog.
///
/// # Errors
/// The database's.
pub fn record(settings: &Settings, store: &Store, hash_key: &[u8; 32], catalog: &Catalog) -> anyhow::Result<()> {
    let specs: Vec<ProjectSpec> = catalog
        .projects
        .values()
        .map(|project| ProjectSpec {
            name: project.name.clone(),
            description: project.description.clone(),
            config_file: project.file.display().to_string(),
            repositories: project
                .repositories
                .iter()
                .map(|repository| RepositorySpec {
                    name: repository.name.name.clone(),
                    git_url: repository.url.to_string(),
                    branch: repository.branch.clone(),
                    path: repository.path.display().to_string(),
                    local_path: repository.local_path.display().to_string(),
                    check_interval_seconds: repository.check_interval.as_secs(),
                    is_manual: repository.deploy == Deploy::Manual,
                    config_hash: repository.config_hash(hash_key, &settings.environment),
                })
                .collect(),
        })
        .collect();
    store.sync(&specs, &catalog.untouched, Timestamp::now())?;
    Ok(())
}

/// Queues what differs from the configuration of its last started deployment; under `deploy: manual` it waits. It comes after the new catalog is in
/// place: a row that the worker starts later has the new configuration, and one that it started before is seen here.
/// One that starts just now is the worker's to compare.
///
/// # Errors
/// The database's.
pub fn queue_changed(store: &Store) -> anyhow::Result<()> {
    for id in store.changed_configurations()? {
        let Some(queued) = store.configuration_changed(id, Timestamp::now())? else { continue };
        if let Some(record) = store.repository(id)?.filter(|_| !queued.joined) {
            log::info!("{}: its configuration changed: queued as deployment {}", record.name, queued.deployment_id);
        }
    }
    Ok(())
}

/// Logs problems that were not there before, and says when all is well again.
pub fn log_problems(before: &[Problem], now: &[Problem]) {
    for problem in now.iter().filter(|problem| !before.contains(problem)) {
        if problem.severity == Severity::Error {
            log::error!("{problem}");
        } else {
            log::warn!("{problem}");
        }
    }
    if !before.is_empty() && now.is_empty() {
        log::info!("all project files are well again");
    }
}

/// Looks at the project folder and tells main when its files differ from `loaded` and are quiet.
pub fn watch(shared: &Arc<Shared>, mut loaded: Signature, threads: &Threads, events: &Sender<Event>) {
    let folder = &shared.host.settings.config_path;
    let mut changed: Option<(Signature, Instant)> = None;
    while !threads.are_stopping() {
        pulse::next_within(LOOK_EVERY);
        std::thread::sleep(LOOK_EVERY);
        let now = signature(folder);
        if now == loaded {
            changed = None;
            continue;
        }
        match &changed {
            Some((seen, since)) if *seen == now => {
                if since.elapsed() >= QUIET.saturating_sub(LOOK_EVERY) {
                    loaded = now;
                    changed = None;
                    if events.send(Event::Reload).is_err() {
                        return;
                    }
                }
            }
            _ => changed = Some((now, Instant::now())),
        }
    }
}

/// What tells one state of the folder from another, without reading a file: inode, size and time of each.
pub type Signature = BTreeMap<PathBuf, (u64, u64, i64, i64)>;

/// The folder's state now; take it before loading, so that no change between the two is missed.
pub fn signature(folder: &Path) -> Signature {
    let Ok(entries) = fs::read_dir(folder) else { return Signature::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"))
        .filter_map(|path| {
            // Follows links: configuration that other tools put in place often is one.
            let metadata = fs::metadata(&path).ok()?;
            let signature = (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec());
            Some((path, signature))
        })
        .collect()
}
