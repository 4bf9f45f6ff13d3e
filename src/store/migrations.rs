//! The schema, as a list of steps that only ever grows. `user_version` is the number of steps that a database has had.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;
use super::open::unusable;

/// One step of the schema. A step that was released is never edited: what it got wrong, a later one puts right.
pub(super) struct Migration {
    /// What it does, for the log.
    pub name: &'static str,
    /// Its statements, run in one transaction.
    pub sql: &'static str,
}

/// All steps, oldest first.
///
/// Times are milliseconds since the epoch. An index ends with the row's id of itself, so `(status)` also gives the
/// order by id. `deployments.project_id` repeats what its repository says: only so a project's page needs neither a
/// sort nor a scan.
pub(super) const MIGRATIONS: &[Migration] = &[Migration {
    name: "projects, repositories, deployments and their logs",
    sql: "
CREATE TABLE projects (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    description TEXT,
    config_file TEXT NOT NULL,
    orphaned_at INTEGER,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE repositories (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    git_url TEXT NOT NULL,
    branch TEXT NOT NULL,
    path TEXT NOT NULL,
    local_path TEXT NOT NULL,
    check_interval INTEGER NOT NULL,
    config_hash TEXT NOT NULL,
    last_commit_hash TEXT,
    observed_commit TEXT,
    checked_out_commit TEXT,
    compose_project TEXT,
    up_folder TEXT,
    last_checked_at INTEGER,
    last_error TEXT,
    failing_since INTEGER,
    failing_told INTEGER NOT NULL DEFAULT 0,
    orphaned_at INTEGER,
    retry_at INTEGER,
    retry_of INTEGER,
    notified_failure_at INTEGER,
    notified_failure_commit TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (project_id, name)
) STRICT;
CREATE INDEX repositories_retry ON repositories (retry_at) WHERE retry_at IS NOT NULL;

CREATE TABLE deployments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'success', 'failed', 'skipped')),
    \"trigger\" TEXT NOT NULL CHECK (\"trigger\" IN ('poll', 'api', 'cli', 'webhook', 'config', 'retry')),
    forced INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    interruptions INTEGER NOT NULL,
    asked TEXT NOT NULL,
    commit_hash TEXT,
    commit_subject TEXT,
    commit_author TEXT,
    config_hash TEXT,
    up_began INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    told_at INTEGER
) STRICT;
CREATE UNIQUE INDEX deployments_pending ON deployments (repository_id) WHERE status = 'pending';
CREATE UNIQUE INDEX deployments_running ON deployments (repository_id) WHERE status = 'running';
CREATE INDEX deployments_by_repository ON deployments (repository_id);
CREATE INDEX deployments_by_project ON deployments (project_id);
CREATE INDEX deployments_by_status ON deployments (status);
CREATE INDEX deployments_by_repository_and_status ON deployments (repository_id, status);
CREATE INDEX deployments_by_project_and_status ON deployments (project_id, status);
CREATE INDEX deployments_untold ON deployments (finished_at) WHERE told_at IS NULL AND finished_at IS NOT NULL;

CREATE TABLE deployment_logs (
    deployment_id INTEGER NOT NULL REFERENCES deployments (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    level TEXT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (deployment_id, position)
) STRICT, WITHOUT ROWID;
",
}];

/// Brings the database at `path` to the last of `migrations`, after a copy where it holds something.
pub(super) fn migrate(connection: &mut Connection, path: &Path, migrations: &[Migration]) -> Result<(), StoreError> {
    let version = known_version(connection, path, migrations)?;
    if version == migrations.len() {
        return Ok(());
    }
    if version > 0 {
        let copy = copy_path(path, version);
        copy_database(connection, &copy)?;
        log::info!("{}: copied to {} before its migration", path.display(), copy.display());
    }
    for (number, migration) in migrations.iter().enumerate().skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration.sql)?;
        transaction.pragma_update(None, "user_version", number + 1)?;
        transaction.commit()?;
        log::debug!("{}: migration {}: {}", path.display(), number + 1, migration.name);
    }
    Ok(())
}

/// The number of migrations that the database has had; an error where it is newer than this program, or not its own.
pub(super) fn known_version(
    connection: &Connection,
    path: &Path,
    migrations: &[Migration],
) -> Result<usize, StoreError> {
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| unusable(path, &error))?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > migrations.len() {
        return Err(StoreError::TooNew(too_new(path, version, migrations.len())));
    }
    if version == 0 {
        let objects: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(|error| unusable(path, &error))?;
        if objects > 0 {
            let problem = "this is the database of another program: move it away".to_owned();
            return Err(StoreError::Unusable { path: path.to_owned(), problem });
        }
    }
    Ok(version)
}

fn too_new(path: &Path, version: usize, known: usize) -> String {
    let copy = (1..=known).rev().map(|number| copy_path(path, number)).find(|copy| copy.exists());
    let way_out = match copy {
        Some(copy) => format!(
            "install the newer version again, or put back {}, the copy from before the upgrade (what was recorded since is lost)",
            copy.display()
        ),
        None => format!("install the newer version again ({} is not there)", copy_path(path, known).display()),
    };
    format!(
        "{}: a newer version of Shiparr wrote this database (version {version}, this one knows {known}): {way_out}",
        path.display()
    )
}

fn copy_path(path: &Path, version: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".v{version}"));
    PathBuf::from(name)
}

/// Copies what is committed, the write-ahead log included, so that the copy is either whole or not there.
fn copy_database(connection: &Connection, copy: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::File { path: copy.to_owned(), source };
    let partial = copy.with_extension(format!("{}.partial", copy.extension().unwrap_or_default().to_string_lossy()));
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let target = partial.to_str().ok_or_else(|| StoreError::Unusable {
        path: partial.clone(),
        problem: "the path of the data folder is not UTF-8, so no copy can be made before the migration".to_owned(),
    })?;
    // SQLite would make it with the mode that the umask leaves.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).map_err(failed)?;
    if let Err(error) = connection.execute("VACUUM INTO ?1", [target]) {
        // What was written of it is of no use, and may be what fills the disk.
        let _ = fs::remove_file(&partial);
        return Err(unusable(copy, &error));
    }
    File::open(&partial).and_then(|file| file.sync_all()).map_err(failed)?;
    fs::rename(&partial, copy).map_err(failed)?;
    let folder = copy.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|file| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::testing::{NOTHING, at, scene};
    use super::*;
    use crate::model::Trigger;

    const NEXT: Migration = Migration { name: "a colour", sql: "ALTER TABLE projects ADD COLUMN colour TEXT" };
    const BAD: Migration =
        Migration { name: "bad", sql: "CREATE TABLE half (x INTEGER) STRICT; ALTER TABLE nobody ADD COLUMN x TEXT" };

    fn with(next: impl IntoIterator<Item = Migration>) -> Vec<Migration> {
        let known = MIGRATIONS.iter().map(|migration| Migration { ..*migration });
        known.chain(next).collect()
    }

    fn version(connection: &Connection) -> usize {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_database_is_copied_before_its_migration_with_what_is_only_in_the_log() {
        let scene = scene();
        scene.enqueue("media", Trigger::Api, NOTHING, 1);
        let path = scene.folder.path().join("Shiparr.db");
        assert!(!copy_path(&path, 1).exists(), "a new database needs no copy");
        fs::write(scene.folder.path().join("Shiparr.db.v1.partial"), "from a copy that was killed").unwrap();
        let mut connection = scene.shell();
        migrate(&mut connection, &path, &with([NEXT])).unwrap();
        assert_eq!(version(&connection), 2);
        connection.execute("UPDATE projects SET colour = 'green'", []).unwrap();

        let copy = Connection::open(copy_path(&path, 1)).unwrap();
        assert_eq!(version(&copy), 1);
        let rows: i64 = copy.query_row("SELECT count(*) FROM deployments", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
        assert!(!scene.folder.path().join("Shiparr.db.v1.partial").exists());
        let mode = fs::metadata(copy_path(&path, 1)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        migrate(&mut connection, &path, &with([NEXT])).unwrap();
    }

    #[test]
    fn a_migration_that_fails_leaves_the_database_as_it_was() {
        let scene = scene();
        let path = scene.folder.path().join("Shiparr.db");
        let mut connection = scene.shell();
        let error = migrate(&mut connection, &path, &with([NEXT, BAD])).unwrap_err();
        assert!(error.to_string().contains("nobody"), "{error}");
        assert_eq!(version(&connection), 2, "the step before it stays");
        let half: bool = connection
            .query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'half')", [], |row| row.get(0))
            .unwrap();
        assert!(!half);
        scene.store.enqueue(scene.id("web"), Trigger::Api, NOTHING, at(1)).unwrap();
    }

    #[test]
    fn a_newer_database_is_refused_with_its_copy_and_left_as_it_is() {
        let scene = scene();
        let path = scene.folder.path().join("Shiparr.db");
        let mut connection = scene.shell();
        connection.pragma_update(None, "user_version", 7).unwrap();
        let error = migrate(&mut connection, &path, MIGRATIONS).unwrap_err().to_string();
        assert!(error.contains("version 7, this one knows 1"), "{error}");
        assert!(
            error.contains("install the newer version again") && error.contains("Shiparr.db.v1 is not there"),
            "{error}"
        );
        fs::write(copy_path(&path, 1), "").unwrap();
        let error = migrate(&mut connection, &path, MIGRATIONS).unwrap_err();
        assert!(matches!(error, StoreError::TooNew(_)));
        let error = error.to_string();
        assert!(error.contains(&format!("put back {}", copy_path(&path, 1).display())), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
