//! From columns to the types of the model.

use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::Row;
use rusqlite::types::{Type, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use crate::model::{Commit, DeploymentRecord, RepositoryName, Status};

/// What [`deployment`] reads, of `deployments d`, `repositories r` and `projects p`.
pub(super) const DEPLOYMENT_COLUMNS: &str = "d.id, d.repository_id, p.name, r.name, d.commit_hash, d.commit_subject, \
     d.commit_author, d.status, d.\"trigger\", d.forced, d.attempt, d.asked, d.error, d.created_at, d.started_at, \
     d.finished_at, d.up_began, d.ending, d.actor";

/// A deployment, from [`DEPLOYMENT_COLUMNS`] that begin at the column `first`.
pub(super) fn deployment(row: &Row, first: usize) -> rusqlite::Result<DeploymentRecord> {
    let commit = match optional_word(row, first + 4)? {
        Some(hash) => Some(Commit { hash, subject: text(row, first + 5)?, author: text(row, first + 6)? }),
        None => None,
    };
    Ok(DeploymentRecord {
        id: row.get(first)?,
        repository_id: row.get(first + 1)?,
        repository: RepositoryName { project: row.get(first + 2)?, name: row.get(first + 3)? },
        commit,
        status: word(row, first + 7)?,
        trigger: word(row, first + 8)?,
        forced: row.get(first + 9)?,
        attempt: row.get(first + 10)?,
        asked: json(row, first + 11)?,
        error: row.get(first + 12)?,
        created_at: time(row, first + 13)?,
        started_at: optional_time(row, first + 14)?,
        finished_at: optional_time(row, first + 15)?,
        up_began: row.get(first + 16)?,
        ending: optional_word(row, first + 17)?,
        actor: row.get(first + 18)?,
    })
}

/// The id, in SQL, of the last deployment that ended and was not skipped, of the repository that `repository_id` (SQL
/// too) is; 0 where there is none.
pub(super) fn last_outcome_of(repository_id: &str) -> String {
    format!("max({}, {})", last_with(repository_id, Status::Success), last_with(repository_id, Status::Failed))
}

/// The id, in SQL, of a repository's last deployment with this status; 0 where there is none.
pub(super) fn last_with(repository_id: &str, status: Status) -> String {
    format!(
        "ifnull((SELECT max(id) FROM deployments INDEXED BY deployments_by_repository_and_status \
         WHERE repository_id = {repository_id} AND status = '{status}'), 0)"
    )
}

/// A text, empty where the column is null.
fn text(row: &Row, column: usize) -> rusqlite::Result<String> {
    Ok(row.get::<_, Option<String>>(column)?.unwrap_or_default())
}

/// A value that is stored as its word.
pub(super) fn word<T>(row: &Row, column: usize) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|error| damaged(column, error))
}

/// A value that is stored as its word, or null.
pub(super) fn optional_word<T>(row: &Row, column: usize) -> rusqlite::Result<Option<T>>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(column)?.as_str_or_null()? {
        Some(text) => text.parse().map(Some).map_err(|error| damaged(column, error)),
        None => Ok(None),
    }
}

/// A value that is stored as JSON.
pub(super) fn json<T: DeserializeOwned>(row: &Row, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| damaged(column, error))
}

/// A value as JSON, as it is stored.
pub(super) fn stored_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Refused(format!("it cannot be stored: {error}")))
}

/// A time, stored as milliseconds since the epoch.
pub(super) fn time(row: &Row, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(row.get(column)?).map_err(|error| damaged(column, error))
}

/// A time or null.
pub(super) fn optional_time(row: &Row, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    match row.get::<_, Option<i64>>(column)? {
        Some(milliseconds) => {
            Timestamp::from_millisecond(milliseconds).map(Some).map_err(|error| damaged(column, error))
        }
        None => Ok(None),
    }
}

/// A time as it is stored.
pub(super) fn stored(at: Timestamp) -> i64 {
    at.as_millisecond()
}

/// A time or null as it is stored.
pub(super) fn stored_or_null(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |at| Value::Integer(stored(at)))
}

/// The first line of a text, at most `bytes` long.
pub(super) fn one_line(text: &str, bytes: usize) -> &str {
    prefix(text.lines().next().unwrap_or_default(), bytes)
}

/// The beginning of a text, at most `bytes` long, whole characters only.
pub(super) fn prefix(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or_default();
    &text[..end]
}

fn damaged(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
