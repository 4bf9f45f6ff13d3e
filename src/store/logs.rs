//! The log of each deployment: bounded, and written line by line.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};

use super::open::{Durability, Writers, lock};
use super::rows::{prefix, stored, time, word};
use super::{Store, StoreError};
use crate::model::{DeploymentId, LogLevel, LogLine, Status};

/// Lines kept of a deployment's log.
pub const LOG_LINES_KEPT: u64 = 10_000;
/// Bytes kept of a deployment's log, within its lines.
pub const LOG_BYTES_KEPT: u64 = 4 << 20;
/// Warnings and errors that are kept beyond [`LOG_LINES_KEPT`], so that a flood does not hide why the deployment
/// failed.
pub const GRAVE_LINES_KEPT: u64 = 200;
/// Bytes kept of one line.
pub const LINE_BYTES_KEPT: usize = 8 << 10;

/// How far the logs of running deployments have come, so that a line costs one insertion and no counting.
#[derive(Default)]
pub(super) struct Tails(HashMap<DeploymentId, Tail>);

#[derive(Clone, Copy, Default)]
struct Tail {
    /// Of the last line.
    position: i64,
    lines: u64,
    bytes: u64,
    grave_lines: u64,
    cut: Option<Cut>,
}

impl Tail {
    fn is_full(&self) -> bool {
        self.lines >= LOG_LINES_KEPT || self.bytes >= LOG_BYTES_KEPT
    }
}

#[derive(Clone, Copy)]
struct Cut {
    /// Of the line that says so.
    position: i64,
    lines: u64,
}

impl Store {
    /// Adds a line to a deployment's log and wakes those who follow it; past the bound the line is counted and not
    /// kept, and the log says where it was cut. A message of several lines becomes several lines.
    ///
    /// # Errors
    /// SQLite's. The log goes on with the next line that can be written.
    pub fn log(&self, id: DeploymentId, level: LogLevel, message: &str, now: Timestamp) -> Result<(), StoreError> {
        let mut writers = lock(&self.writers);
        writers.add_to_log(id, [(level, message, now)], |_| Ok(()))?;
        drop(writers);
        self.changes.line_written();
        Ok(())
    }

    /// Lines of a deployment's log after the line `after` (0 for all), oldest first, at most `limit`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn log_lines(&self, id: DeploymentId, after: i64, limit: u32) -> Result<Vec<LogLine>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT position, timestamp, level, message FROM deployment_logs \
                 WHERE deployment_id = ?1 AND position > ?2 ORDER BY position LIMIT ?3",
            )?;
            let lines = statement.query_map(params![id, after, limit], |row| {
                Ok(LogLine { id: row.get(0)?, at: time(row, 1)?, level: word(row, 2)?, message: row.get(3)? })
            })?;
            Ok(lines.collect::<Result<_, _>>()?)
        })
    }
}

impl Writers {
    /// Adds messages to a deployment's log, in one transaction with `also`.
    pub(super) fn add_to_log<'m>(
        &mut self,
        id: DeploymentId,
        messages: impl IntoIterator<Item = (LogLevel, &'m str, Timestamp)>,
        also: impl FnOnce(&Transaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let known = self.tails.0.get(&id).copied();
        let mut tail = known.unwrap_or_default();
        let last = self.write(Durability::Noted, |transaction| {
            also(transaction)?;
            let last = if known.is_none() { load(transaction, id, &mut tail)? } else { false };
            if last && tail.is_full() {
                return Ok(last);
            }
            for (level, message, at) in messages {
                let message = if message.is_empty() { "\n" } else { message };
                for line in message.lines() {
                    add(transaction, id, &mut tail, level, line, at)?;
                }
            }
            Ok(last)
        })?;
        // The tail of a deployment that has ended would never be forgotten.
        if !last {
            self.tails.0.insert(id, tail);
        }
        Ok(())
    }
}

impl Tails {
    /// The deployment ends: where its log was cut, the log now tells how much is missing.
    pub(super) fn end(&self, transaction: &Transaction, id: DeploymentId) -> Result<(), StoreError> {
        if let Some(cut) = self.0.get(&id).and_then(|tail| tail.cut) {
            transaction.execute(
                "UPDATE deployment_logs SET message = ?3 WHERE deployment_id = ?1 AND position = ?2",
                params![id, cut.position, format!("… {} more lines were not kept", cut.lines)],
            )?;
        }
        Ok(())
    }

    /// Forgets a deployment that has ended.
    pub(super) fn forget(&mut self, id: DeploymentId) {
        self.0.remove(&id);
    }
}

/// Reads how far a log has come, after a restart; answers whether its deployment has ended.
fn load(transaction: &Transaction, id: DeploymentId, tail: &mut Tail) -> Result<bool, StoreError> {
    let status: Option<Status> =
        transaction.query_row("SELECT status FROM deployments WHERE id = ?1", [id], |row| word(row, 0)).optional()?;
    let Some(status) = status else {
        return Err(StoreError::Refused(format!("there is no deployment {id}")));
    };
    (tail.position, tail.lines, tail.bytes) = transaction.query_row(
        "SELECT ifnull(max(position), 0), count(*), ifnull(sum(octet_length(message)), 0) \
         FROM deployment_logs WHERE deployment_id = ?1",
        [id],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    Ok(status.is_final())
}

fn add(
    transaction: &Transaction,
    id: DeploymentId,
    tail: &mut Tail,
    level: LogLevel,
    line: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let grave = level != LogLevel::Info && tail.grave_lines < GRAVE_LINES_KEPT;
    if tail.is_full() {
        tail.grave_lines += u64::from(grave);
        if !grave {
            return count_as_cut(transaction, id, tail, now);
        }
    }
    let kept = prefix(line, LINE_BYTES_KEPT);
    let message = match line.len() - kept.len() {
        0 => std::borrow::Cow::Borrowed(kept),
        bytes => format!("{kept}… {bytes} more bytes were not kept").into(),
    };
    tail.lines += 1;
    tail.bytes += message.len() as u64;
    insert(transaction, id, tail, level, &message, now)
}

fn count_as_cut(
    transaction: &Transaction,
    id: DeploymentId,
    tail: &mut Tail,
    now: Timestamp,
) -> Result<(), StoreError> {
    match &mut tail.cut {
        Some(cut) => cut.lines += 1,
        None => {
            insert(transaction, id, tail, LogLevel::Warning, "… more lines were not kept", now)?;
            tail.cut = Some(Cut { position: tail.position, lines: 1 });
        }
    }
    Ok(())
}

fn insert(
    transaction: &Transaction,
    id: DeploymentId,
    tail: &mut Tail,
    level: LogLevel,
    message: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tail.position += 1;
    transaction
        .prepare_cached(
            "INSERT INTO deployment_logs (deployment_id, position, timestamp, level, message) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![id, tail.position, stored(now), level.as_str(), message])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOTHING, Scene, at, failed, scene};
    use super::*;
    use crate::model::Trigger;

    fn running(scene: &Scene) -> DeploymentId {
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(id, 1, 2);
        id
    }

    fn texts(scene: &Scene, id: DeploymentId) -> Vec<String> {
        scene.store.log_lines(id, 0, u32::MAX).unwrap().into_iter().map(|line| line.message).collect()
    }

    #[test]
    fn lines_are_read_page_by_page_in_their_order() {
        let scene = scene();
        let (id, other) = (running(&scene), scene.enqueue("web", Trigger::Api, NOTHING, 1));
        scene.store.log(id, LogLevel::Info, "fetched", at(3)).unwrap();
        scene.store.log(other, LogLevel::Info, "of another deployment", at(3)).unwrap();
        scene.store.log(id, LogLevel::Warning, "two\nlines", at(4)).unwrap();
        scene.store.log(id, LogLevel::Error, "", at(5)).unwrap();
        assert_eq!(texts(&scene, id), ["fetched", "two", "lines", ""]);
        let page = scene.store.log_lines(id, 0, 2).unwrap();
        assert_eq!((page[1].at, page[1].level), (at(4), LogLevel::Warning));
        let rest = scene.store.log_lines(id, page[1].id, 9).unwrap();
        assert_eq!(rest.iter().map(|line| line.message.as_str()).collect::<Vec<_>>(), ["lines", ""]);
        assert!(matches!(scene.store.log(99, LogLevel::Info, "x", at(1)), Err(StoreError::Refused(_))));
    }

    #[test]
    fn a_flood_is_cut_and_does_not_hide_the_error() {
        let scene = scene();
        let id = running(&scene);
        let flood = "a line\n".repeat(LOG_LINES_KEPT as usize + 5);
        scene.store.log(id, LogLevel::Info, &flood, at(3)).unwrap();
        assert_eq!(texts(&scene, id).last().unwrap(), "… more lines were not kept");
        scene.store.log(id, LogLevel::Info, "one more", at(3)).unwrap();
        scene.store.log(id, LogLevel::Error, "web is unhealthy", at(4)).unwrap();
        scene.finish(id, &failed("unhealthy"), 5);
        scene.store.log(id, LogLevel::Info, "after the end", at(6)).unwrap();
        let lines = texts(&scene, id);
        assert_eq!(lines.len() as u64, LOG_LINES_KEPT + 2);
        assert_eq!(lines[LOG_LINES_KEPT as usize..], ["… 6 more lines were not kept", "web is unhealthy"]);
    }

    #[test]
    fn errors_cannot_flood_either() {
        let scene = scene();
        let id = running(&scene);
        let flood = "an error\n".repeat((LOG_LINES_KEPT + GRAVE_LINES_KEPT) as usize + 50);
        scene.store.log(id, LogLevel::Error, &flood, at(3)).unwrap();
        assert_eq!(texts(&scene, id).len() as u64, LOG_LINES_KEPT + GRAVE_LINES_KEPT + 1);
    }

    #[test]
    fn long_lines_and_large_logs_are_bounded() {
        let scene = scene();
        let id = running(&scene);
        let long = "ä".repeat(LINE_BYTES_KEPT);
        scene.store.log(id, LogLevel::Info, &format!("x{long}"), at(3)).unwrap();
        let line = texts(&scene, id).remove(0);
        assert!(line.ends_with(&format!("ä… {} more bytes were not kept", LINE_BYTES_KEPT + 2)), "{}", &line[8000..]);
        for _ in 0..=LOG_BYTES_KEPT / LINE_BYTES_KEPT as u64 {
            scene.store.log(id, LogLevel::Info, &long, at(3)).unwrap();
        }
        let lines = texts(&scene, id);
        assert_eq!(lines.last().unwrap(), "… more lines were not kept");
        assert!(lines.iter().map(String::len).sum::<usize>() < LOG_BYTES_KEPT as usize + 2 * LINE_BYTES_KEPT);
    }

    #[test]
    fn a_log_goes_on_after_a_restart_and_after_the_end() {
        let mut scene = scene();
        let id = running(&scene);
        scene.store.log(id, LogLevel::Info, "before", at(3)).unwrap();
        scene = scene.killed();
        scene.store.log(id, LogLevel::Info, "after", at(4)).unwrap();
        scene.finish(id, &failed("unhealthy"), 5);
        scene.store.log(id, LogLevel::Warning, "the notifier failed", at(6)).unwrap();
        assert_eq!(texts(&scene, id), ["before", "after", "the notifier failed"]);
        assert!(lock(&scene.store.writers).tails.0.is_empty());
    }
}
