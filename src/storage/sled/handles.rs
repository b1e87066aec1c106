//! Opening sled, and sharing it among reader threads.
//!
//! A sled handle may move between threads but not be shared, so readers borrow one from a pool.
//! The gate lets the writer close and reopen sled under the readers' feet: they hold it for one
//! read or one chunk of a scan only, never while a caller's code runs.
//!
//! Handles are opened with a flush interval of years. With *no* interval (`None`) sled flushes
//! whenever any handle or iterator is dropped, on the dropping thread; and since only the writer
//! flushes, everything it does between two flushes reaches the disk as one atomic step.

use std::{io, mem, panic, path::Path, thread, time::Duration};

use ::sled::{Config, Db};
use parking_lot::{Mutex, RwLock};

use super::{SledOptions, manifest, plain};
use crate::storage::StorageError;

/// Entries in a sled leaf, the unit that is read, compressed and written. Part of the disk format.
///
/// 128 measured best: 64 reads a cold key in 32 instead of 47 us, but costs 25 % more CPU a write,
/// 40 % more a scan, and memory for twice as many leaves.
pub(super) const LEAF_FANOUT: usize = 128;

/// The one type of sled database used here.
pub(super) type Database = Db<LEAF_FANOUT>;

/// zstd level of leaves: higher ones cost more than the disk they save.
const COMPRESSION_LEVEL: i32 = 1;

/// The writer flushes; sled's own flusher must not.
const NEVER_MS: usize = 10 * 365 * 24 * 3600 * 1000;

/// Flushes before a close, at most. Each moves a tenth of what is left or less.
const SETTLE_FLUSHES_MAX: usize = 4;

/// How often an open looks whether the lock is free, and how many times at most.
const LOCK_POLL: Duration = Duration::from_millis(5);
const LOCK_POLLS_MAX: usize = 1000;

/// Opens or creates the database in `dir`.
pub(super) fn open_database(dir: &Path, options: &SledOptions) -> Result<Database, StorageError> {
    let config = Config::new()
        .path(dir)
        .cache_capacity_bytes(options.cache_bytes)
        .zstd_compression_level(COMPRESSION_LEVEL)
        .flush_every_ms(Some(NEVER_MS));
    let action = || format!("open the state in {}", dir.display());
    manifest::prepare(dir).map_err(|source| StorageError::new(action(), source))?;
    // sled asserts on metadata that contradicts itself. Where panics abort the process this adds
    // nothing, which is why `manifest` looks for known damage before sled does.
    match panic::catch_unwind(|| open_when_free(&config)) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(plain(action(), error)),
        Err(_) => {
            let reason = "its metadata contradicts itself; restore this member from a peer";
            Err(StorageError::new(action(), io::Error::new(io::ErrorKind::InvalidData, reason)))
        }
    }
}

/// Opens the database once nobody holds its lock any more.
///
/// Another member is kept out by the lock of the data directory, so whoever holds this one is about
/// to go: every open of sled starts a process, and until that process has become its program it
/// holds all locks of this one, also that of another store which is being reopened just then.
fn open_when_free(config: &Config) -> io::Result<Database> {
    let mut polls = 0;
    loop {
        match config.open::<LEAF_FANOUT>() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && polls < LOCK_POLLS_MAX => {
                polls += 1;
                thread::sleep(LOCK_POLL);
            }
            opened => return opened,
        }
    }
}

/// Closes `database`, the last handle of it; it must have been flushed.
///
/// sled flushes once more when its last handle goes, moves leaves together in that, and aborts the
/// process if this fails, which it does once any read has failed. So there is nothing left for it to
/// do, or it is abandoned.
pub(super) fn close_database(database: Database) -> io::Result<()> {
    let settled = settle(&database);
    if settled.is_err() {
        mem::forget(database);
    }
    settled
}

/// Flushes until there is nothing more to move together: a flush frees what the one before moved.
fn settle(database: &Database) -> io::Result<()> {
    for _ in 0..SETTLE_FLUSHES_MAX {
        let flushed = database.flush()?;
        database.check_error()?;
        if flushed.objects_flushed == 0 {
            break;
        }
    }
    Ok(())
}

/// An open database, shared by readers.
struct Open {
    master: Mutex<Database>,
    idle: Mutex<Vec<Database>>,
}

/// The readers' way to sled; closed while the writer reopens it.
pub(super) struct Handles {
    gate: RwLock<Option<Open>>,
}

impl Handles {
    /// Shares `database`.
    pub(super) fn new(database: &Database) -> Self {
        Handles { gate: RwLock::new(Some(Open::new(database))) }
    }

    /// Runs `read` with a handle of this thread's own. It must be short: it can delay a reopen.
    pub(super) fn with<R>(&self, read: impl FnOnce(&Database) -> io::Result<R>) -> io::Result<R> {
        let gate = self.gate.read();
        let Some(open) = gate.as_ref() else {
            return Err(io::Error::other("the store is closed"));
        };
        let idle = open.idle.lock().pop();
        let handle = idle.unwrap_or_else(|| open.master.lock().clone());
        let result = read(&handle);
        open.idle.lock().push(handle);
        result
    }

    /// Runs `work` while no reader is inside sled; they wait meanwhile.
    pub(super) fn exclusive<R>(&self, work: impl FnOnce() -> R) -> R {
        let _gate = self.gate.write();
        work()
    }

    /// Closes the readers' handles, lets `reopen` make a new database, and shares that.
    ///
    /// Readers wait meanwhile. If `reopen` fails they stay closed.
    pub(super) fn reopen(
        &self,
        reopen: impl FnOnce() -> Result<Database, StorageError>,
    ) -> Result<Database, StorageError> {
        let mut gate = self.gate.write();
        drop(gate.take());
        let database = reopen()?;
        *gate = Some(Open::new(&database));
        Ok(database)
    }

    /// Lets the readers' handles go: the writer's is the last one then.
    pub(super) fn close(&self) {
        drop(self.gate.write().take());
    }

    /// Abandons the database without closing it.
    ///
    /// After a failed flush sled would wait forever for that flush when it is dropped.
    pub(super) fn leak(&self) {
        mem::forget(self.gate.write().take());
    }
}

impl Open {
    fn new(database: &Database) -> Self {
        Open { master: Mutex::new(database.clone()), idle: Mutex::default() }
    }
}
