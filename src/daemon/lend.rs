//! Stacks in people's hands (`shiparr compose`): whoever has one keeps its deployments waiting until they let go.

use std::sync::Arc;
use std::time::Duration;

use super::activity::Hands;
use super::shared::Shared;
use super::threads::Threads;
use crate::deploy::by_hand::{self, Prepared};
use crate::model::{RepositoryId, RepositoryName};
use crate::web::Lent;

/// Whoever had the stack before may be about to go: one command follows the other in a script.
const PATIENCE: Duration = Duration::from_secs(1);
/// Reading and decrypting a stack's variables.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);

/// Puts a stack into somebody's hands.
///
/// # Errors
/// Why not, in one line: it is no repository of this daemon, has no files yet, is being changed, or is in other hands;
/// or its variables cannot be had.
pub fn lend(shared: &Arc<Shared>, threads: &Threads, id: RepositoryId, hands: Hands) -> Result<Lent, String> {
    let record = shared.host.store.repository(id).map_err(|error| error.to_string())?;
    let record = record.ok_or_else(|| format!("there is no repository with the id `{id}`"))?;
    let name = &record.name;
    if record.orphaned_at.is_some() {
        return Err(format!(
            "{name} is orphaned: no project file names it any more; its files are in {}, for `docker compose` itself",
            record.local_path
        ));
    }
    let catalog = shared.catalog();
    let repository = catalog
        .repository(name)
        .ok_or_else(|| format!("the project file of {} is not loaded: see `shiparr check`", name.project))?;
    if record.checked_out_commit.is_none() {
        return Err(format!("{name} was never checked out: `shiparr deploy {name}` does that"));
    }
    let hold = Hold::take(shared, id, name, &hands)?;
    // Whoever stops the daemon says so first and sends everybody away then: one of the two is seen here.
    if threads.are_stopping() {
        return Err("Shiparr stops".to_owned());
    }
    let prepared = by_hand::prepare(&shared.host, repository, id, &hands.limit.at_most(PREPARE_LIMIT));
    let Prepared { tools, plaintext } = prepared.map_err(|error| format!("{name}: {error}"))?;
    log::info!("{name}: {} works on it by hand", hands.who);
    // In this order they go: nothing in plain text lies there any more when the next deployment begins.
    Ok(Lent { tools, hold: Box::new((plaintext, hold)) })
}

/// Asks whoever has a stack in their hands to let go; answers who that is.
pub fn release(shared: &Shared, id: RepositoryId) -> Option<String> {
    let hands = shared.activities.hands(id)?;
    hands.limit.cancel();
    Some(hands.who)
}

/// Hands on a stack; dropped, they are off it, and its deployments go on.
struct Hold {
    shared: Arc<Shared>,
    id: RepositoryId,
    name: RepositoryName,
}

impl Hold {
    fn take(shared: &Arc<Shared>, id: RepositoryId, name: &RepositoryName, hands: &Hands) -> Result<Hold, String> {
        shared.activities.take_hands(id, hands, PATIENCE).map_err(|why| format!("{name}: {why}"))?;
        Ok(Hold { shared: Arc::clone(shared), id, name: name.clone() })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.activities.release_hands(self.id);
        log::debug!("{}: nobody works on it by hand any more", self.name);
        self.shared.wake_worker();
    }
}
