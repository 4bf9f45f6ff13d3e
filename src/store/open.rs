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
                self.failed = Some(FailedWrite { at: Instant::now(), problem: describe(error) });
            }
            Err(_) => {}
        }
        result
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

/// Locks, also after a thread panicked in it: what the locks of the store guard is whole again then, because a transaction
/// is rolled back on the way out.
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

/// Makes an empty file that only its owner can read, where there is none; SQLite gives the same mode to the files beside it.
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
