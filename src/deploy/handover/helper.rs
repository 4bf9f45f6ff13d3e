//! What runs in the helper container, `shiparr hand-over FOLDER`: the `up` of one deployment, and the healing after it.
//! It knows no database and no settings: all that it needs is in the folder.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use jiff::Timestamp;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::folder::JobFolder;
use super::job::{Answer, Job, Line};
use crate::command::Limit;
use crate::deploy::{Containers, Driver, Log, Stack, StepError, UpError, driver_of_helper, settle};
use crate::model::LogLevel;
use crate::secrets::{RuntimeFolder, Scrubber};

/// Bytes of a helper's log: it lies in memory, and may lie there until a daemon starts again.
const MAX_LOG_BYTES: u64 = 4 << 20;
/// Bytes on top of it for warnings and errors, so that a flood does not hide why the deployment failed.
const MAX_GRAVE_BYTES: u64 = 1 << 20;

/// Does the job that lies in a folder, and leaves there what came of it. SIGTERM ends it as a cancellation ends a
/// deployment. Answers whether the stack was brought up.
///
/// # Errors
/// There is no job, or what came of it cannot be told; in one line.
pub fn run(folder: &Path) -> Result<bool, String> {
    let folder = JobFolder::at(folder);
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|error| format!("cannot listen to signals: {error}"))?;
    let (job, held) = folder.take()?;
    let mut log = HelperLog { file: folder.log()?, scrubber: job.scrubber.clone(), bytes: 0, is_cut: false };
    let driver = driver_of_helper(&job.docker, job.environment.clone());
    let limit = Limit::after(job.limit());
    let (handle, cancelled) = (signals.handle(), limit.clone());
    let answer = std::thread::scope(|scope| {
        scope.spawn(move || {
            if signals.forever().next().is_some() {
                cancelled.cancel();
            }
        });
        let answer = bring_up(job, driver.as_ref(), &limit, &mut log);
        handle.close();
        answer
    });
    let is_up = answer.result.is_ok();
    folder.say(answer)?;
    drop(held);
    Ok(is_up)
}

fn bring_up(job: Job, driver: &dyn Driver, limit: &Limit, log: &mut dyn Log) -> Answer {
    let Job { plaintext, stack, up, heals_first, kept, .. } = job;
    let stack = Stack::from(stack);
    if heals_first {
        if let Err(why) = driver.heal(&stack, &kept.plan, log) {
            log.line(LogLevel::Warning, &format!("what an interrupted deployment left was not healed: {why}"));
        }
    }
    let (result, is_unsettled) = match driver.up(&stack, &kept.plan, &up, limit, log) {
        Ok(()) => (Ok(()), false),
        Err(error) => {
            let (error, is_unsettled) = settle::after_failed_up(driver, &stack, &kept.plan, error, limit, log);
            (Err(error), is_unsettled)
        }
    };
    // Before anybody learns that it is over: nothing in plain text outlives it, even where no daemon starts any more.
    drop(RuntimeFolder::left(&plaintext.runtime, &plaintext.data, &plaintext.name));
    let containers = if result.is_ok() { containers_of(driver, &kept.plan.project, limit) } else { BTreeSet::new() };
    Answer { result, is_unsettled, containers, kept }
}

/// The ids of a compose project's containers; none where they cannot be had.
fn containers_of(driver: &dyn Driver, project: &str, limit: &Limit) -> BTreeSet<String> {
    let residents = driver.survey(limit).unwrap_or_default().into_iter();
    residents.filter(|resident| resident.project.as_deref() == Some(project)).map(|resident| resident.id).collect()
}

/// A helper that did not begin has changed nothing.
pub(super) fn did_not_begin(why: impl Into<String>) -> UpError {
    UpError { error: StepError::for_now(why), containers: Containers::Untouched }
}

/// The log in the folder.
struct HelperLog {
    file: File,
    scrubber: Scrubber,
    bytes: u64,
    is_cut: bool,
}

impl Log for HelperLog {
    fn line(&mut self, level: LogLevel, message: &str) {
        let is_grave = level != LogLevel::Info;
        let room = if is_grave { MAX_LOG_BYTES + MAX_GRAVE_BYTES } else { MAX_LOG_BYTES };
        let message = match (self.bytes < room, self.is_cut) {
            (true, _) => self.scrubber.scrub(message).into_owned(),
            (false, false) => {
                self.is_cut = true;
                "… more lines were not kept".to_owned()
            }
            (false, true) => return,
        };
        // A log that cannot be written stops no deployment.
        let Ok(mut line) = serde_json::to_vec(&Line::new(Timestamp::now(), level, message)) else { return };
        line.push(b'\n');
        self.bytes += line.len() as u64;
        let _ = self.file.write_all(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::job;
    use super::*;

    #[test]
    fn a_helpers_log_is_scrubbed_and_has_a_bound_that_leaves_room_for_what_is_grave() {
        let runtime = tempfile::tempdir().unwrap();
        let folder = JobFolder::of(runtime.path(), 7);
        folder.create(job(runtime.path())).unwrap();
        let (job, _held) = folder.take().unwrap();
        let mut log = HelperLog { file: folder.log().unwrap(), scrubber: job.scrubber, bytes: 0, is_cut: false };
        log.line(LogLevel::Info, "it said correct horse");
        let long = "x".repeat(64 << 10);
        (0..100).for_each(|_| log.line(LogLevel::Info, &long));
        log.line(LogLevel::Error, "why it failed");
        assert!(log.bytes < MAX_LOG_BYTES + MAX_GRAVE_BYTES);
        let (mut lines, mut end) = folder.lines(0);
        assert_eq!(lines[0].message, "it said ***");
        loop {
            let (more, next) = folder.lines(end);
            if next == end {
                break;
            }
            (lines, end) = (more, next);
        }
        let last: Vec<&str> = lines.iter().rev().take(2).map(|line| line.message.as_str()).collect();
        assert_eq!(last, ["why it failed", "… more lines were not kept"]);
    }

    #[test]
    fn without_a_job_nothing_is_done() {
        let runtime = tempfile::tempdir().unwrap();
        let error = run(&runtime.path().join("handover/7")).unwrap_err();
        assert!(error.contains("handover/7"), "{error}");
    }
}
