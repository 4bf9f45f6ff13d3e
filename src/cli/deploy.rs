//! `shiparr deploy REPO`.

use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;

use super::client::{Client, DeploymentView};
use super::table::{only_prints, printable};
use crate::model::{Asked, CommitPrefix, DeploymentId, Status};

/// What `deploy` takes.
#[derive(Args)]
pub struct DeployArgs {
    /// project/repository, or the repository's name where it is unique
    repository: String,
    /// Stream the log, and exit with the deployment's outcome
    #[arg(long)]
    follow: bool,
    /// Pull images even where they are there
    #[arg(long)]
    pull: bool,
    /// Make containers anew even where nothing changed
    #[arg(long)]
    recreate: bool,
    /// Go on although containers, volumes or a clone are there that this repository did not make
    #[arg(long)]
    adopt: bool,
    /// This commit of the branch instead of its tip: its hash, or 7 digits of it or more
    #[arg(long, value_name = "HASH")]
    commit: Option<CommitPrefix>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Accepted {
    deployment_id: DeploymentId,
}

/// Queues a deployment, and follows it where that was asked for.
///
/// # Errors
/// The daemon's refusal.
pub fn run(client: &Client, args: &DeployArgs) -> anyhow::Result<ExitCode> {
    let repository = client.repository(&args.repository)?;
    let DeployArgs { pull, recreate, adopt, ref commit, .. } = *args;
    let asked = serde_json::to_value(Asked { pull, recreate, adopt, commit: commit.clone() })?;
    let accepted: Accepted = client.post(&format!("/api/repositories/{}/deploy", repository.id), &asked)?;
    let id = accepted.deployment_id;
    let name = format!("{}/{}", repository.project, repository.name);
    if !args.follow {
        only_prints();
        if args.json {
            println!("{}", serde_json::json!({ "deployment_id": id, "status": Status::Pending }));
        } else {
            println!("{name}: deployment {id} is queued; `shiparr logs {name} --deployment {id}` shows its log");
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Where nobody reads any more, following ends; the deployment goes on.
    client.follow(&format!("/api/deployments/{id}/logs?follow=1"))?;
    let deployment: serde_json::Value = client.get(&format!("/api/deployments/{id}"))?;
    if args.json {
        only_prints();
        println!("{deployment}");
    }
    let deployment: DeploymentView = serde_json::from_value(deployment)?;
    match (deployment.status, deployment.error) {
        (Status::Success, _) => Ok(ExitCode::SUCCESS),
        (status, error) => {
            eprintln!("shiparr: {name}: deployment {id} is {status}: {}", printable(&error.unwrap_or_default()));
            Ok(ExitCode::FAILURE)
        }
    }
}
