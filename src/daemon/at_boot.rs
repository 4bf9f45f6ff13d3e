//! Secret files are made before Docker starts the containers that mount them: what `shiparr-secrets.service` does.
//!
//! It needs no database: the records of secret files lie beside it, so that nothing has to be migrated while Docker
//! waits.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::{lock, logging, make_folder, warn_of_a_disk};
use crate::command::Limit;
use crate::config::{Settings, hash_key};
use crate::deploy::secret_files;

/// For all of them together. Docker waits meanwhile, so `TimeoutStartSec=` of the unit is a little longer.
const RESTORE_LIMIT: Duration = Duration::from_secs(60);

/// Makes the secret files of deployed stacks again, where they are gone; while a daemon runs, which does that itself, it
/// does nothing. What it does is logged, and why it could not; the exit code tells whether all is there.
pub fn restore_secrets(settings: &Settings, warnings: &[String]) -> ExitCode {
    logging::start(&settings.log_filter, settings.log_format);
    for warning in warnings {
        log::debug!("{warning}");
    }
    match restore(settings) {
        Ok(done) => {
            log::info!("{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error!(
                "secret files of stacks could not be made: {error:#}; Docker starts without them, and Shiparr tries again once it runs"
            );
            ExitCode::FAILURE
        }
    }
}

/// Answers what was done.
fn restore(settings: &Settings) -> anyhow::Result<String> {
    if !secret_files::are_there(settings).map_err(|error| anyhow::anyhow!(error.message))? {
        return Ok("no stack has secret files: nothing to do".to_owned());
    }
    let theirs =
        |holder: String| format!("Shiparr runs ({holder}) and takes care of secret files itself: nothing to do");
    let _data_lock = match lock::take_if_free(&settings.data_path.join(lock::DATA_LOCK))? {
        Ok(lock) => lock,
        Err(holder) => return Ok(theirs(holder)),
    };
    make_folder(&settings.runtime_path, "Shiparr_RUNTIME_PATH")?;
    let _runtime_lock = match lock::take_if_free(&settings.runtime_path.join(lock::RUNTIME_LOCK))? {
        Ok(lock) => lock,
        Err(holder) => return Ok(theirs(holder)),
    };
    warn_of_a_disk(&settings.runtime_path)?;
    let hash_key = hash_key(&settings.data_path)
        .with_context(|| format!("cannot read or make the key file in {}", settings.data_path.display()))?;
    let restored = secret_files::restore(settings, &hash_key, &Limit::after(RESTORE_LIMIT));
    let made: Vec<String> = restored.repositories.iter().map(ToString::to_string).collect();
    let made = match made.as_slice() {
        [] => "the secret files of all stacks are there: nothing to do".to_owned(),
        made => format!("made the secret files of {}", made.join(", ")),
    };
    if restored.problems.is_empty() {
        return Ok(made);
    }
    if !restored.repositories.is_empty() {
        log::info!("{made}");
    }
    let problems = restored.problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    Err(anyhow::Error::msg(problems.join("; ")))
}
