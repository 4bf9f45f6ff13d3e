//! `shiparr cancel REPO`.

use std::process::ExitCode;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, DeploymentView, RepositoryView};
use super::lists::full_name;
use super::table::{only_prints, printable};
use crate::model::{DeploymentId, Status};

/// Deployments may go on while they are looked at; what was found once they stood still counts.
const LOOKS: usize = 3;
/// More than the newest ones are never under way: one waits, one runs, and what was skipped since is few.
const NEWEST: u32 = 50;

/// What `cancel` takes.
#[derive(Args)]
pub struct CancelArgs {
    /// project/repository, or the repository's name where it is unique
    repository: String,
    /// Print JSON: `cancelled`, a list with the id and the status of each, and who was `released`
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Released {
    released: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Cancelled {
    deployment_id: DeploymentId,
    status: Status,
}

/// Ends `shiparr compose` on a repository, and lets the deployments begin that wait for that; where nobody works on it,
/// ends its pending and running deployments, and a retry that waits. Exit 1 when there was nothing.
///
/// # Errors
/// The daemon's refusal.
pub fn run(client: &Client, args: &CancelArgs) -> anyhow::Result<ExitCode> {
    let repository = client.repository(&args.repository)?;
    if let Some(who) = release(client, &repository)? {
        only_prints();
        if args.json {
            println!("{}", serde_json::json!({ "cancelled": [], "released": who }));
        } else {
            let name = full_name(&repository);
            println!(
                "{name}: `shiparr compose` of {} is being ended; what waited for that begins then",
                printable(&who)
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut cancelled = Vec::new();
    for _ in 0..LOOKS {
        cancelled = cancel_all(client, &repository)?;
        if !cancelled.is_empty() {
            break;
        }
    }
    let name = full_name(&repository);
    only_prints();
    if args.json {
        let all: Vec<&Cancelled> = cancelled.iter().map(|(_, cancelled)| cancelled).collect();
        println!("{}", serde_json::json!({ "cancelled": all, "released": null }));
    } else {
        for (before, Cancelled { deployment_id: id, status }) in &cancelled {
            println!("{name}: {}", told(&name, *id, *before, *status));
        }
    }
    if cancelled.is_empty() {
        anyhow::bail!("{name}: nothing to cancel: no deployment is pending or running, and none waits for another try");
    }
    Ok(ExitCode::SUCCESS)
}

/// Who has to take their hands off the stack because of this. That is told over the control socket only.
fn release(client: &Client, repository: &RepositoryView) -> anyhow::Result<Option<String>> {
    if !client.has_socket() {
        return Ok(None);
    }
    let released: Released = client.post("/control/release", &serde_json::json!({ "id": repository.id }))?;
    Ok(released.released)
}

/// What was ended, each with the status that it had before.
fn cancel_all(client: &Client, repository: &RepositoryView) -> anyhow::Result<Vec<(Status, Cancelled)>> {
    let path = format!("/api/repositories/{}/deployments?limit={NEWEST}", repository.id);
    let mut deployments: Vec<DeploymentView> = client.get(&path)?;
    let newest_failed = deployments.iter().find(|one| one.status == Status::Failed).map(|one| one.id);
    deployments.retain(|one| !one.status.is_final() || Some(one.id) == newest_failed);
    let mut cancelled = Vec::new();
    // The newest first: what is pending must not begin because the one that runs has ended.
    for deployment in deployments {
        let path = format!("/api/deployments/{}/cancel", deployment.id);
        if let Some(ended) = client.post_unless_conflict(&path)? {
            cancelled.push((deployment.status, ended));
        }
    }
    Ok(cancelled)
}

fn told(name: &str, id: DeploymentId, before: Status, after: Status) -> String {
    match (before, after) {
        (Status::Failed, _) => format!("deployment {id} is not tried again"),
        (_, Status::Running) => {
            format!("deployment {id} is being ended; `shiparr logs {name} --deployment {id}` shows how")
        }
        _ => format!("deployment {id} is cancelled"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_told_as_what_it_is() {
        for (before, after, expected) in [
            (Status::Failed, Status::Failed, "deployment 7 is not tried again"),
            (Status::Pending, Status::Failed, "deployment 7 is cancelled"),
            (Status::Running, Status::Failed, "deployment 7 is cancelled"),
            (
                Status::Pending,
                Status::Running,
                "deployment 7 is being ended; `shiparr logs a/b --deployment 7` shows how",
            ),
        ] {
            assert_eq!(told("a/b", 7, before, after), expected);
        }
    }
}
