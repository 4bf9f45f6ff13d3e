//! A pause: no deployment begins while somebody holds one (`shiparr hold`).

use std::sync::Arc;

use super::activity::Running;
use super::shared::Shared;
use super::worker::AFTER_LIMIT;
use crate::web::Busy;

/// Dropped, deployments go on.
pub struct Pause {
    shared: Arc<Shared>,
}

impl Pause {
    /// From now on none begins; those that run go on.
    pub fn begin(shared: &Arc<Shared>) -> Pause {
        shared.activities.pause();
        log::info!("no deployment begins for now: somebody holds them up (`shiparr hold`)");
        Pause { shared: Arc::clone(shared) }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.shared.activities.go_on();
        log::info!("deployments go on");
        self.shared.wake_worker();
    }
}

/// The deployments that run now, oldest first.
pub fn running(shared: &Shared) -> Vec<Busy> {
    let describe = |id| match shared.host.store.deployment(id) {
        Ok(Some(deployment)) => format!("{}, deployment {id}", deployment.repository),
        _ => format!("deployment {id}"),
    };
    let busy = |running: Running| Busy {
        what: describe(running.deployment),
        ends_within: running.control.limit().left().saturating_add(AFTER_LIMIT),
    };
    shared.activities.all_running().into_iter().map(busy).collect()
}
