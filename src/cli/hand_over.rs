//! `shiparr hand-over FOLDER`: what runs in a helper container.

use std::path::Path;
use std::process::ExitCode;

use crate::deploy::handover::helper;

/// Does the job in the folder; exit 0 where the stack was brought up, 1 where not. What happens is in the deployment's
/// log.
///
/// # Errors
/// There is no job, or nobody can be told what came of it.
pub fn run(folder: &Path) -> anyhow::Result<ExitCode> {
    let is_up = helper::run(folder).map_err(anyhow::Error::msg)?;
    Ok(if is_up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
