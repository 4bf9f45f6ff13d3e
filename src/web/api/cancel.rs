//! Ends a deployment before its own end.

use jiff::Timestamp;

use super::deployments::find;
use crate::model::{DeploymentRecord, Status};
use crate::web::Context;
use crate::web::answer::{Answer, Failure};
use crate::web::routes::Call;

/// A deployment may go on while somebody looks at it: from pending to running, and from there to its end.
const LOOKS: usize = 4;

/// POST `/api/deployments/{id}/cancel`: a pending one ends at once, a running one as past its limit, and one that failed
/// is not tried again. The status is that of after: a running one takes its time to end.
pub fn cancel(call: &Call<'_>) -> Result<Answer, Failure> {
    for _ in 0..LOOKS {
        let deployment = find(call)?;
        if has_taken_effect(call.context, &deployment)? {
            // Whoever waited for it may go on.
            call.context.daemon.wake_worker();
            let status = find(call)?.status;
            log::info!("{}: cancel asked by {} (deployment {})", deployment.repository, call.asked_by(), deployment.id);
            let answer = Answer::json(&serde_json::json!({ "deployment_id": deployment.id, "status": status }));
            return Ok(answer.with_status(202));
        }
        if deployment.status.is_final() {
            return Err(Failure::conflict(format!("deployment {} has ended", deployment.id)));
        }
        // It went on in between.
    }
    Err(Failure::unavailable("the deployment is just coming to its end: ask again"))
}

/// Whether it was still as it was looked at, and could be ended.
fn has_taken_effect(context: &Context, deployment: &DeploymentRecord) -> Result<bool, Failure> {
    Ok(match deployment.status {
        Status::Pending => context.store.cancel_pending(deployment.id, Timestamp::now())?,
        Status::Running => context.daemon.cancel_running(deployment.repository_id, deployment.id),
        Status::Failed => context.store.cancel_retry(deployment.id)?,
        Status::Success | Status::Skipped => false,
    })
}
