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
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { name: "projects, repositories, deployments and their logs", sql: PROJECTS_TO_LOGS },
    Migration { name: "how deployments end, and what they leave", sql: ENDINGS },
    Migration { name: "who asked for a deployment, and the deliveries of webhooks", sql: WEBHOOKS },
    Migration { name: "deployments that a helper has", sql: HANDED_OVER },
];

const PROJECTS_TO_LOGS: &str = "
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
";

/// Until then, the first word of an error told how a deployment had failed, and only a retry that waited told that the
/// cause could pass.
const ENDINGS: &str = "
ALTER TABLE repositories ADD COLUMN is_manual INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repositories ADD COLUMN waiting INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repositories ADD COLUMN brought_up TEXT NOT NULL DEFAULT '{}';
ALTER TABLE repositories ADD COLUMN accepted TEXT NOT NULL DEFAULT '[]';
ALTER TABLE repositories ADD COLUMN unsettled INTEGER;

ALTER TABLE deployments ADD COLUMN only_polled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deployments ADD COLUMN ending TEXT CHECK
    (ending IN ('for_good', 'can_pass', 'superseded', 'cancelled', 'interrupted', 'orphaned'));
UPDATE deployments SET ending = CASE
    WHEN substr(error, 1, instr(error || ':', ':') - 1) IN ('superseded', 'cancelled', 'interrupted', 'orphaned')
        THEN substr(error, 1, instr(error || ':', ':') - 1)
    WHEN id IN (SELECT retry_of FROM repositories WHERE retry_of IS NOT NULL) THEN 'can_pass'
    ELSE 'for_good' END
WHERE status = 'failed';

UPDATE repositories SET unsettled = (SELECT id FROM deployments WHERE ending = 'interrupted' AND commit_hash IS NOT NULL
    AND id = (SELECT max(id) FROM deployments WHERE repository_id = repositories.id AND status IN ('success', 'failed')));

CREATE INDEX deployments_skipped_polls ON deployments (repository_id) WHERE status = 'skipped' AND only_polled = 1;
";

/// A delivery stays known when the deployment that it made is too old to be kept.
const WEBHOOKS: &str = "
ALTER TABLE deployments ADD COLUMN actor TEXT;

CREATE TABLE webhook_deliveries (
    provider TEXT NOT NULL,
    delivery TEXT NOT NULL,
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    deployment_id INTEGER REFERENCES deployments (id) ON DELETE SET NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (provider, delivery, repository_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (at);
CREATE INDEX webhook_deliveries_by_repository ON webhook_deliveries (repository_id);
CREATE INDEX webhook_deliveries_by_deployment ON webhook_deliveries (deployment_id);
";

/// Null where no helper has it, else how many bytes of the helper's log have been taken.
const HANDED_OVER: &str = "
ALTER TABLE deployments ADD COLUMN handed_over INTEGER;
";

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

    use super::super::testing::{NOTHING, PULL, at, brought_up, commit, hash, names, scene};
    use super::super::{Outcome, Store};
    use super::*;
    use crate::model::{Ending, Status, Trigger};

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
        let known = MIGRATIONS.len();
        let partial = scene.folder.path().join(format!("Shiparr.db.v{known}.partial"));
        assert!(!copy_path(&path, known).exists(), "a new database needs no copy");
        fs::write(&partial, "from a copy that was killed").unwrap();
        let mut connection = scene.shell();
        migrate(&mut connection, &path, &with([NEXT])).unwrap();
        assert_eq!(version(&connection), known + 1);
        connection.execute("UPDATE projects SET colour = 'green'", []).unwrap();

        let copy = Connection::open(copy_path(&path, known)).unwrap();
        assert_eq!(version(&copy), known);
        let rows: i64 = copy.query_row("SELECT count(*) FROM deployments", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
        assert!(!partial.exists());
        let mode = fs::metadata(copy_path(&path, known)).unwrap().permissions().mode();
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
        assert_eq!(version(&connection), MIGRATIONS.len() + 1, "the step before it stays");
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
        let known = MIGRATIONS.len();
        assert!(error.contains(&format!("version 7, this one knows {known}")), "{error}");
        let no_copy = format!("Shiparr.db.v{known} is not there");
        assert!(error.contains("install the newer version again") && error.contains(&no_copy), "{error}");
        fs::write(copy_path(&path, 1), "").unwrap();
        let error = migrate(&mut connection, &path, MIGRATIONS).unwrap_err();
        assert!(matches!(error, StoreError::TooNew(_)));
        let error = error.to_string();
        assert!(error.contains(&format!("put back {}", copy_path(&path, 1).display())), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    /// A database of version 1 with a repository for each way in which a deployment can have ended; its own path.
    fn version_1(folder: &Path) -> PathBuf {
        let path = folder.join("Shiparr.db");
        let mut connection = Connection::open(&path).unwrap();
        migrate(&mut connection, &path, &MIGRATIONS[..1]).unwrap();
        connection.execute_batch("INSERT INTO projects VALUES (1, 'home', NULL, 'home.yaml', NULL, 0)").unwrap();
        let ends = [
            ("good", "success", None, false),
            ("for_good", "failed", Some("unhealthy: interrupted: twice"), false),
            ("can_pass", "failed", Some("the registry does not answer"), true),
            ("superseded", "failed", Some("superseded"), false),
            ("cancelled", "failed", Some("cancelled: by ada"), false),
            ("interrupted", "failed", Some("interrupted: Shiparr ended"), true),
            ("orphaned", "failed", Some("orphaned: no project file"), false),
            ("waits", "pending", Some("interrupted: is no ending of a row that waits"), false),
            ("running", "running", None, false),
        ];
        for (id, (name, status, error, retries)) in (1_i64..).zip(ends) {
            connection
                .execute(
                    "INSERT INTO repositories (id, project_id, name, git_url, branch, path, local_path, check_interval, \
                     config_hash, last_commit_hash, compose_project, up_folder, retry_at, retry_of, created_at) VALUES \
                     (?1, 1, ?2, 'u', 'main', '.', '/d', 60, 'c', ?4, 'stack', '/d', iif(?3, 5000, NULL), iif(?3, ?1, NULL), 0)",
                    rusqlite::params![id, name, retries, hash(1).as_str()],
                )
                .unwrap();
            connection
                .execute(
                    "INSERT INTO deployments (id, repository_id, project_id, status, \"trigger\", forced, attempt, \
                     interruptions, asked, commit_hash, error, created_at) \
                     VALUES (?1, ?1, 1, ?2, 'poll', 0, 1, 0, '{\"pull\":true,\"recreate\":false}', ?4, ?3, 0)",
                    rusqlite::params![id, status, error, hash(1).as_str()],
                )
                .unwrap();
        }
        path
    }

    #[test]
    fn a_database_of_version_1_goes_on_with_what_it_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = version_1(folder.path());
        let store = Store::open(folder.path(), 200).unwrap();
        assert_eq!(version(&Connection::open(copy_path(&path, 1)).unwrap()), 1);
        for record in store.repositories(None).unwrap() {
            let row = record.last_deployment.unwrap();
            let ending = row.ending.map_or("", Ending::as_str);
            let name = record.name.name.as_str();
            assert_eq!(ending, if row.status == Status::Failed { name } else { "" }, "{name}");
            assert_eq!(row.asked, PULL);
            assert_eq!((record.is_manual, record.waiting), (false, false));
            assert_eq!((record.brought_up_services, record.brought_up_volumes), (names(&[]), names(&[])));
            assert_eq!(record.accepted, names(&[]));
            let unsettled = store.unsettled(record.id).unwrap().map(|row| row.id);
            assert_eq!(unsettled, (name == "interrupted").then_some(row.id), "{name}");
            let base = matches!(name, "good" | "for_good").then(|| hash(1));
            assert_eq!(store.skip_base(record.id).unwrap(), base, "{name}");
        }
        let interrupted = store.recover(at(1)).unwrap();
        assert_eq!(interrupted.iter().map(|row| row.id).collect::<Vec<_>>(), [9]);
        assert_eq!(store.unsettled(9).unwrap().unwrap().ending, Some(Ending::Interrupted));
        assert_eq!(store.enqueue_due_retries(at(1)).unwrap().len(), 2);
        for row in store.pending().unwrap() {
            store.start(row.id, "c", at(2)).unwrap();
            store.checked_out(row.id, &commit(2), &hash(2)).unwrap();
            store.up_begins(row.id, &brought_up("stack", &["web"], &[])).unwrap();
            store.finish(row.id, &Outcome::Success, at(3)).unwrap();
        }
    }
}
