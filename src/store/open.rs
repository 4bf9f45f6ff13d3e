//! Opening the database, its connections, and what its errors mean to people.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::StoreError;
use super::logs::Tails;
use super::migrations::{MIGRATIONS, known_version, migrate};

/// The file in the data folder.
pub const DATABASE_FILE: &str = "Shiparr.db";

/// How long a statement waits for another program that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader waits for one of the [`READERS`] connections.
const READER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections for reading, opened as they are needed.
const READERS: usize = 4;
/// Page cache of a connection. The system's own cache stands behind it.
const CACHE_KIB: i64 = 256;
/// The write-ahead log is copied into the database when it has so many pages of 4 KiB …
const WAL_PAGES: i64 = 256;
/// … and is cut back to this length when it was longer for a while.
const WAL_BYTES: i64 = 1 << 20;
/// Prepared statements kept by a connection.
const STATEMENTS: usize = 48;

/// The connections that write. One lock guards both, so that they never wait for each other inside SQLite.
pub(super) struct Writers {
    promised: Connection,
    noted: Connection,
    /// How far the logs of running deployments have come.
    pub tails: Tails,
    /// The last write, where it failed.
    failed: Option<FailedWrite>,
}

/// How much a commit is worth when the power goes.
#[derive(Clone, Copy)]
pub(super) enum Durability {
    /// `synchronous = FULL`: it is on the disk when the commit returns.
    Promised,
    /// `synchronous = NORMAL`: a power cut may take the last commits; a crash of the process takes none.
    Noted,
}

struct FailedWrite {
    at: Instant,
    problem: String,
    /// Another program held the database for all of [`BUSY_TIMEOUT`].
    was_locked: bool,
}

/// After a failed write, health tries one itself, at most this often.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

impl Writers {
    /// Runs `work` in a transaction. An error rolls it back, and the next transaction starts afresh.
    pub(super) fn write<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&Transaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let connection = match durability {
            Durability::Promised => &mut self.promised,
            Durability::Noted => &mut self.noted,
        };
        let result = transact(connection, work);
        match &result {
            Ok(_) => self.failed = None,
            Err(StoreError::Sqlite(error)) => {
                let was_locked = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
                self.failed = Some(FailedWrite { at: Instant::now(), problem: describe(error), was_locked });
            }
            Err(_) => {}
        }
        result
    }

    /// Whoever stood in line since `asked` while the one in front waited in vain for another program does not begin to
    /// wait as long once more: many at once would wait for minutes.
    ///
    /// # Errors
    /// The same.
    pub(super) fn refuse_if_locked(&self, asked: Instant) -> Result<(), StoreError> {
        let in_vain = |failed: &FailedWrite| failed.was_locked && failed.at.duration_since(asked) >= BUSY_TIMEOUT / 2;
        if self.failed.as_ref().is_some_and(in_vain) {
            let locked = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            return Err(rusqlite::Error::SqliteFailure(locked, None).into());
        }
        Ok(())
    }

    /// The error of the last write, until one succeeds. While there is one, a small write is tried from time to time.
    pub(super) fn ping(&mut self) -> Result<(), StoreError> {
        let Some(failed) = &self.failed else { return Ok(()) };
        if failed.at.elapsed() < PROBE_PAUSE {
            return Err(StoreError::Refused(format!("database: {}", failed.problem)));
        }
        self.write(Durability::Promised, |transaction| {
            // The same value again: a page is written all the same.
            let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok(transaction.pragma_update(None, "user_version", version)?)
        })
    }
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    // Immediate: a transaction that read first could not get the write lock later when another one wrote between.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// A bounded number of connections for reading, so that nobody who reads waits for somebody who writes.
pub(super) struct Readers {
    path: PathBuf,
    pool: Mutex<Pool>,
    returned: Condvar,
}

struct Pool {
    idle: Vec<Connection>,
    open: usize,
}

/// Opens or makes the database in `data_path` and brings it to the newest schema.
pub(super) fn open(data_path: &Path) -> Result<(Readers, Writers), StoreError> {
    let path = data_path.join(DATABASE_FILE);
    create(data_path, &path)?;
    let mut promised = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // A database of a newer version is left as it is: this comes before anything that writes.
    known_version(&promised, &path, MIGRATIONS)?;
    prepare_writer(&promised, &path, "FULL")?;
    migrate(&mut promised, &path, MIGRATIONS)?;
    let noted = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    prepare_writer(&noted, &path, "NORMAL")?;
    let readers = Readers { path, pool: Mutex::new(Pool { idle: Vec::new(), open: 0 }), returned: Condvar::new() };
    Ok((readers, Writers { promised, noted, tails: Tails::default(), failed: None }))
}

impl Readers {
    /// The database's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on one of the connections.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let borrowed = Borrowed { readers: self, connection: Some(self.take()?) };
        match &borrowed.connection {
            Some(connection) => work(connection),
            None => unreachable!("the connection leaves only when it is dropped"),
        }
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let until = Instant::now() + READER_TIMEOUT;
        let mut pool = lock(&self.pool);
        loop {
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            if pool.open < READERS {
                let connection = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                pool.open += 1;
                return Ok(connection);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = READER_TIMEOUT.as_secs();
                return Err(StoreError::Refused(format!("database: all readers have been busy for {waited} s")));
            }
            pool = self.returned.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A reader's connection, given back when this is dropped, also by a panic.
struct Borrowed<'a> {
    readers: &'a Readers,
    connection: Option<Connection>,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        lock(&self.readers.pool).idle.extend(self.connection.take());
        self.readers.returned.notify_one();
    }
}

/// Locks, also after a thread panicked in it: what the locks of the store guard is whole again then, because a
/// transaction is rolled back on the way out.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error of SQLite about the database at `path`, as people read it.
pub(super) fn unusable(path: &Path, error: &rusqlite::Error) -> StoreError {
    StoreError::Unusable { path: path.to_owned(), problem: describe(error) }
}

/// What an error of SQLite means and what to do, in one line.
pub(super) fn describe(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full: free some space, nothing that was accepted is lost".to_owned(),
        Some(ErrorCode::ReadOnly) => {
            "it cannot be written: the file system is read-only, or the file belongs to another user".to_owned()
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            "it is damaged: stop Shiparr, then put a copy back or repair it with `sqlite3 Shiparr.db .recover`"
                .to_owned()
        }
        Some(ErrorCode::NotADatabase) => {
            "this is not a database, or one whose beginning is damaged: move it away or put a copy back".to_owned()
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "it cannot be opened: look at the owner and the permissions of the file and its folder".to_owned()
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "another program holds it locked".to_owned(),
        Some(ErrorCode::SystemIoFailure) => format!("the disk does not do as asked ({error})"),
        _ => error.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}

/// Makes an empty file that only its owner can read, where there is none; SQLite gives the same mode to the files
/// beside it.
fn create(data_path: &Path, path: &Path) -> Result<(), StoreError> {
    let refused = |error: io::Error| {
        let problem = match error.kind() {
            io::ErrorKind::NotFound => "the data folder is not there: make it, or set Shiparr_DATA_PATH".to_owned(),
            io::ErrorKind::PermissionDenied => {
                "it cannot be opened: look at the owner and the permissions of the file and its folder".to_owned()
            }
            _ => error.to_string(),
        };
        StoreError::Unusable { path: path.to_owned(), problem }
    };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file.sync_all().and_then(|()| File::open(data_path)?.sync_all()).map_err(refused),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(refused(error)),
    }
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|error| unusable(path, &error))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Negative: KiB rather than pages.
    connection.pragma_update(None, "cache_size", -CACHE_KIB).map_err(|error| unusable(path, &error))?;
    Ok(connection)
}

fn prepare_writer(connection: &Connection, path: &Path, synchronous: &str) -> Result<(), StoreError> {
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(|error| unusable(path, &error))?;
    if mode != "wal" {
        let problem =
            format!("its folder cannot hold a write-ahead log (journal mode {mode}): use a local file system");
        return Err(StoreError::Unusable { path: path.to_owned(), problem });
    }
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES, |_| Ok(()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::testing::{NOTHING, at, failed, home, scene};
    use super::super::{Outcome, Store};
    use super::*;
    use crate::model::{LogLevel, Trigger};

    fn refusal(data_path: &Path) -> String {
        match Store::open(data_path, 200) {
            Ok(_) => panic!("{} was opened", data_path.display()),
            Err(error) => {
                let line = error.to_string();
                assert_eq!(line.lines().count(), 1, "{line}");
                assert!(line.contains("Shiparr.db"), "{line}");
                line
            }
        }
    }

    #[test]
    fn a_new_database_is_for_its_owner_only_and_opens_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 200).unwrap();
        store.sync(&[home(&["media"])], &[], at(0)).unwrap();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        drop(store);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["Shiparr.db"], "what was in the log has been merged");
        assert_eq!(Store::open(folder.path(), 200).unwrap().projects().unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_opened_is_told_in_one_line_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(&folder.path().join("nowhere")).contains("Shiparr_DATA_PATH"));

        let path = folder.path().join(DATABASE_FILE);
        fs::write(&path, "not a database, but long enough to be read as the head of one".repeat(100)).unwrap();
        assert!(refusal(folder.path()).contains("this is not a database"));
        assert!(fs::read(&path).unwrap().starts_with(b"not a database"));

        fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE notes (text TEXT)").unwrap();
        assert!(refusal(folder.path()).contains("the database of another program"));

        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refusal(folder.path()).contains("it cannot be opened"));
    }

    #[test]
    fn a_damaged_database_says_so() {
        let scene = scene();
        let folder = tempfile::tempdir().unwrap();
        super::super::testing::copy_files(scene.folder.path(), folder.path());
        drop(Store::open(folder.path(), 200).unwrap());
        let path = folder.path().join(DATABASE_FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes[100..].fill(0x55);
        fs::write(&path, bytes).unwrap();
        assert!(refusal(folder.path()).contains("it is damaged"));
    }

    #[test]
    fn a_full_disk_is_told_and_passes() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        scene.start(id, 1, 1);
        let set_limit = |pages: i64| {
            let writers = lock(&scene.store.writers);
            for connection in [&writers.promised, &writers.noted] {
                connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
            }
        };
        set_limit(1);
        let long = "x".repeat(8000);
        let full = std::iter::repeat_with(|| scene.store.log(id, LogLevel::Info, &long, at(2)))
            .take(50)
            .find_map(Result::err)
            .expect("the limit is reached");
        assert!(full.to_string().contains("the disk is full"), "{full}");
        let health = scene.store.ping().unwrap_err().to_string();
        assert!(health.contains("the disk is full"), "{health}");
        assert!(scene.store.deployment(id).unwrap().is_some(), "reading goes on");

        set_limit(1 << 30);
        scene.store.log(id, LogLevel::Info, &long, at(3)).unwrap();
        scene.store.ping().unwrap();
        scene.finish(id, &Outcome::Success, 4);
    }

    #[test]
    fn health_recovers_without_another_write() {
        let scene = scene();
        scene.store.ping().unwrap();
        {
            let mut writers = lock(&scene.store.writers);
            let long_ago = Instant::now().checked_sub(PROBE_PAUSE);
            let at = long_ago.unwrap_or_else(Instant::now);
            writers.failed = Some(FailedWrite { at, problem: "the disk is full".to_owned(), was_locked: false });
        }
        scene.store.ping().unwrap();
        assert!(lock(&scene.store.writers).failed.is_none());
    }

    #[test]
    fn those_who_waited_in_line_for_another_program_do_not_wait_again() {
        let scene = scene();
        let mut writers = lock(&scene.store.writers);
        let asked = Instant::now();
        writers.refuse_if_locked(asked).unwrap();
        let fail = |writers: &mut Writers, was_locked| {
            writers.failed = Some(FailedWrite { at: asked + BUSY_TIMEOUT, problem: String::new(), was_locked });
        };
        fail(&mut writers, false);
        writers.refuse_if_locked(asked).unwrap();
        fail(&mut writers, true);
        let refusal = writers.refuse_if_locked(asked).unwrap_err().to_string();
        assert_eq!(refusal, "database: another program holds it locked");
        writers.refuse_if_locked(asked + BUSY_TIMEOUT).unwrap();
    }

    #[test]
    fn a_panic_in_a_transaction_takes_only_itself_back() {
        let scene = scene();
        let panicked = std::thread::scope(|threads| {
            let thread = threads.spawn(|| {
                scene.store.promise(|transaction| -> Result<(), StoreError> {
                    transaction.execute("DELETE FROM repositories", [])?;
                    panic!("for the test");
                })
            });
            thread.join().is_err()
        });
        assert!(panicked);
        assert_eq!(scene.store.repositories(None).unwrap().len(), 2);
        scene.deploy("media", 1, &failed("unhealthy"), 1);
    }

    #[test]
    fn readers_and_writers_share_the_database() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        std::thread::scope(|threads| {
            for _ in 0..2 * READERS {
                threads.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(scene.store.repositories(None).unwrap().len(), 2);
                    }
                });
            }
            for _ in 0..200 {
                scene.store.log(id, LogLevel::Info, "a line", at(2)).unwrap();
            }
        });
        assert_eq!(scene.store.log_lines(id, 0, 999).unwrap().len(), 200);
        let pool = lock(&scene.store.readers.pool);
        assert!(pool.open <= READERS && pool.idle.len() == pool.open);
    }

    #[test]
    fn the_log_of_writes_stays_small() {
        let scene = scene();
        let id = scene.enqueue("media", Trigger::Api, NOTHING, 1);
        for _ in 0..2000 {
            scene.store.log(id, LogLevel::Info, &"x".repeat(4000), at(2)).unwrap();
        }
        let bytes = fs::metadata(scene.folder.path().join("Shiparr.db-wal")).unwrap().len();
        assert!(bytes < 2 * WAL_BYTES as u64, "{bytes}");
    }
}
