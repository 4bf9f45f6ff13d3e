//! `shiparr prune`: forgets the records of orphans.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::bail;
use serde::Deserialize;

use super::client::{Client, RepositoryView};
use super::lists::full_name;
use super::table::only_prints;

#[derive(Deserialize)]
struct Pruned {
    forgotten: Vec<String>,
}

/// Lists orphans, asks, and forgets their records. With `json` nobody is asked: without `yes` it only lists.
///
/// # Errors
/// The daemon's refusal; nobody there to ask without `--yes`.
pub fn run(client: &Client, yes: bool, json: bool) -> anyhow::Result<ExitCode> {
    client.require_socket("prune")?;
    let all: Vec<RepositoryView> = client.get("/api/repositories")?;
    let orphans: Vec<RepositoryView> = all.into_iter().filter(|repository| repository.orphaned).collect();
    if json {
        let forgotten = if yes && !orphans.is_empty() { forget(client, &orphans)? } else { Vec::new() };
        let names: Vec<String> = orphans.iter().map(full_name).collect();
        only_prints();
        println!("{}", serde_json::json!({ "orphans": names, "forgotten": forgotten }));
        return Ok(ExitCode::SUCCESS);
    }
    if orphans.is_empty() {
        only_prints();
        println!("No orphans: every recorded repository is named by a project file.");
        return Ok(ExitCode::SUCCESS);
    }
    only_prints();
    println!("No project file names these repositories any more:");
    for orphan in &orphans {
        println!("  {}", full_name(orphan));
    }
    if !yes {
        if !std::io::stdin().is_terminal() {
            bail!("nobody is there to ask: say --yes to forget their records");
        }
        print!("Forget their records and history? Containers, volumes and files stay. [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            println!("Nothing was changed.");
            return Ok(ExitCode::SUCCESS);
        }
    }
    for name in forget(client, &orphans)? {
        println!("forgot {name}");
    }
    Ok(ExitCode::SUCCESS)
}

fn forget(client: &Client, orphans: &[RepositoryView]) -> anyhow::Result<Vec<String>> {
    let ids: Vec<_> = orphans.iter().map(|orphan| orphan.id).collect();
    let pruned: Pruned = client.post("/control/prune", &serde_json::json!({ "ids": ids }))?;
    Ok(pruned.forgotten)
}
