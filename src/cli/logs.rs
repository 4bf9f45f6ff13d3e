//! `shiparr logs REPO`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::client::{Client, RepositoryView};
use super::table::only_prints;

/// What `logs` takes.
#[derive(Args)]
pub struct LogsArgs {
    /// project/repository, or the repository's name where it is unique
    repository: String,
    /// How many lines of each container, at most 10000, which `all` means too
    #[arg(long, value_name = "LINES", default_value = "100", value_parser = tail)]
    tail: String,
    /// Only lines since then: a time (2026-01-15T14:30:00Z), or how long ago (30s, 10m, 2h)
    #[arg(long, value_name = "WHEN", conflicts_with = "deployment")]
    since: Option<String>,
    /// Go on with what comes: of the stack until Ctrl-C, through deployments; of a deployment until it ends
    #[arg(long, short)]
    follow: bool,
    /// The log of this deployment instead: its id, or `last`
    #[arg(long, value_name = "ID")]
    deployment: Option<String>,
    /// Print JSON: an object with the text as `logs`
    #[arg(long, conflicts_with = "follow")]
    json: bool,
}

/// Prints logs, and what comes where that was asked for.
///
/// # Errors
/// The daemon's refusal.
pub fn run(client: &Client, args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let path = path(&client.repository(&args.repository)?, args)?;
    if args.follow {
        client.follow(&path)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = client.get_text(&path)?;
    if args.json {
        only_prints();
        println!("{}", serde_json::json!({ "logs": text }));
    } else {
        // Where nobody reads any more (`| head`), they have seen enough.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
    Ok(ExitCode::SUCCESS)
}

fn path(repository: &RepositoryView, args: &LogsArgs) -> anyhow::Result<String> {
    let follow = u8::from(args.follow);
    let id = match args.deployment.as_deref() {
        None => {
            let mut path = format!("/api/repositories/{}/logs?tail={}&follow={follow}", repository.id, args.tail);
            if let Some(since) = &args.since {
                // Whatever it is, it stays one value: the daemon says what is wrong with it.
                path += "&since=";
                path.extend(since.bytes().map(|byte| format!("%{byte:02X}")));
            }
            return Ok(path);
        }
        Some("last") => repository.last_deployment.as_ref().context("it was never deployed")?.id,
        Some(id) => id.parse().with_context(|| format!("`{id}` is neither a deployment's id nor `last`"))?,
    };
    Ok(format!("/api/deployments/{id}/logs?follow={follow}"))
}

fn tail(text: &str) -> Result<String, String> {
    match text.parse::<u32>() {
        Ok(number) => Ok(number.to_string()),
        Err(_) if text == "all" => Ok(text.to_owned()),
        Err(_) => Err("it must be a whole number or `all`".to_owned()),
    }
}
