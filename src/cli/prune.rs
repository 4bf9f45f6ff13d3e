//! `shiparr prune`: forgets the records of orphans.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::bail;
use serde::Deserialize;

use super::client::{Client, RepositoryView};

#[derive(Deserialize)]
struct Pruned {
    forgotten: Vec<String>,
}

/// Lists orphans, asks, and forgets their records.
///
/// # Errors
/// The daemon's refusal; nobody there to ask without `--yes`.
pub fn run(client: &Client, yes: bool) -> anyhow::Result<ExitCode> {
    client.require_socket("prune")?;
    let all: Vec<RepositoryView> = client.get("/api/repositories")?;
    let orphans: Vec<RepositoryView> = all.into_iter().filter(|repository| repository.orphaned).collect();
    if orphans.is_empty() {
        println!("No orphans: every recorded repository is named by a project file.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("No project file names these repositories any more:");
    for orphan in &orphans {
        println!("  {}/{}", orphan.project, orphan.name);
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
    let ids: Vec<_> = orphans.iter().map(|orphan| orphan.id).collect();
    let pruned: Pruned = client.post("/control/prune", &serde_json::json!({ "ids": ids }))?;
    for name in pruned.forgotten {
        println!("forgot {name}");
    }
    Ok(ExitCode::SUCCESS)
}
