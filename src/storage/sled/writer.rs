//! The one thread that writes to sled: merges queued commits, applies them, flushes, reopens.
//!
//! One thread, because sled's batches can deadlock with each other, and because nothing else may
//! flush: a flush ends an epoch, and sled recovers whole epochs only. So a group of commits is
//! atomic on disk however many sled calls it takes. Readers do not see a group half applied
//! either: the overlay answers for its keys until all of it is in sled.
//!
//! While it flushes or reopens, commits pile up in the queue and in the overlay; nobody waits but
//! who asked for a checkpoint.

use std::{
    collections::BTreeMap,
    fs, io, mem,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    SEQ_KEY, SledOptions,
    handles::{Database, Handles, close_database, open_database},
    manifest::Manifest,
    pack::Packer,
    plain,
    queue::{Commit, Queue, Work},
};
use crate::storage::StorageError;

/// What an entry of a leaf costs in memory beyond its key and value, roughly.
const LEAF_ENTRY_OVERHEAD_BYTES: usize = 64;

/// Between two reopens there is this many times the time of one: they are rarer on a slow disk.
const REOPEN_DUTY: u32 = 50;

/// After so many writes, or about 0.1 ms, who waits for the processor may have it. Without that it is
/// ours for some milliseconds, which clients see.
const WRITES_A_TURN: usize = 64;

/// What the writer shares with everybody else.
pub(super) struct Shared {
    /// Commits on their way to sled.
    pub(super) queue: Queue,
    /// The readers' way to sled.
    pub(super) handles: Handles,
    /// Bytes on disk after the last flush.
    pub(super) size_bytes: AtomicU64,
}

/// The state of the writer thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// `None` only while reopening.
    database: Option<Database>,
    dir: PathBuf,
    database_dir: PathBuf,
    options: SledOptions,
    applied_seq: u64,
    packer: Packer,
    unflushed: Written,
    since_open_bytes: usize,
    opened: Instant,
    reopen_time: Duration,
}

/// How much was applied to sled since some moment.
#[derive(Default)]
struct Written {
    first: Option<Instant>,
    writes: usize,
    bytes: usize,
}

impl Writer {
    /// A writer for `database`, which holds every commit up to `seq`.
    pub(super) fn new(
        shared: Arc<Shared>,
        database: Database,
        (dir, database_dir): (&Path, &Path),
        options: SledOptions,
        seq: u64,
    ) -> Self {
        Writer {
            shared,
            database: Some(database),
            dir: dir.to_owned(),
            database_dir: database_dir.to_owned(),
            options,
            applied_seq: seq,
            packer: Packer::new(),
            unflushed: Written::default(),
            since_open_bytes: 0,
            opened: now(),
            reopen_time: Duration::ZERO,
        }
    }

    /// Works until it is told to stop or something fails; a failure is told to everybody.
    pub(super) fn run(mut self) {
        let worked = panic::catch_unwind(AssertUnwindSafe(|| self.work()));
        // Where a panic does not abort the process, nobody may wait for a dead writer.
        let panicked = |_| Err(self.failed("write to", io::Error::other("the writer panicked")));
        if let Err(error) = worked.unwrap_or_else(panicked) {
            self.shared.queue.fail(&error);
            self.shared.handles.leak();
            mem::forget(self.database.take());
        }
    }

    fn work(&mut self) -> Result<(), StorageError> {
        loop {
            let flush_at = self.unflushed.first.map(|first| first + self.options.flush_interval);
            match self.shared.queue.next(flush_at) {
                Work::Apply(commits) => {
                    let applied = self.apply(commits).and_then(|()| self.pack());
                    applied.map_err(|error| self.failed("write to", error))?;
                    if self.flush_due() {
                        self.flush_and_reopen()?;
                    }
                }
                Work::Flush => self.flush_and_reopen()?,
                Work::Stop => {
                    self.flush()?;
                    return self.close();
                }
            }
        }
    }

    fn apply(&mut self, commits: Vec<Commit>) -> io::Result<()> {
        let backlog_bytes = commits.iter().map(|commit| commit.bytes).sum();
        let writes = commits.iter().map(|commit| commit.batch.writes.len()).sum();
        let mut merged: BTreeMap<Bytes, (u64, Option<Bytes>)> = BTreeMap::new();
        for commit in commits {
            self.applied_seq = commit.seq;
            for (key, value) in commit.batch.writes {
                merged.insert(key, (commit.seq, value));
            }
        }
        let database = self.database.as_ref().expect("only taken while reopening");
        let mut puts = ::sled::Batch::default();
        puts.insert(SEQ_KEY, self.applied_seq.to_be_bytes());
        let mut put_bytes = 0;
        fail::fail_point!("state_before_puts");
        let stored = merged.iter().filter_map(|(key, (_, value))| Some((key, value.as_ref()?)));
        for (nth, (key, value)) in stored.enumerate() {
            put_bytes += key.len() + value.len() + LEAF_ENTRY_OVERHEAD_BYTES;
            puts.insert(key.as_ref(), value.as_ref());
            if is_end_of_turn(nth) {
                database.apply_batch(mem::take(&mut puts))?;
                thread::yield_now();
            }
        }
        database.apply_batch(puts)?;
        fail::fail_point!("state_after_puts");
        // One by one: in a batch sled would keep a leaf that becomes empty, for ever.
        let removed = merged.iter().filter(|(_, (_, value))| value.is_none());
        for (nth, (key, _)) in removed.enumerate() {
            database.remove(key)?;
            fail::fail_point!("state_after_removal");
            self.packer.removed(1);
            if is_end_of_turn(nth) {
                thread::yield_now();
            }
        }
        self.unflushed.add(writes, backlog_bytes);
        self.since_open_bytes += put_bytes;
        let applied: Vec<(Bytes, u64)> =
            merged.into_iter().map(|(key, (seq, _))| (key, seq)).collect();
        self.shared.queue.settled(&applied, backlog_bytes);
        Ok(())
    }

    fn pack(&mut self) -> io::Result<()> {
        let database = self.database.as_ref().expect("only taken while reopening");
        let (records, bytes) = self.packer.step(database, &self.shared.handles)?;
        self.unflushed.add(records, bytes);
        self.since_open_bytes += bytes;
        Ok(())
    }

    fn flush_due(&self) -> bool {
        self.unflushed.writes >= self.options.flush_writes_max
            || self.unflushed.bytes >= self.options.flush_bytes_max
            || self.unflushed.first.is_some_and(|at| now() >= at + self.options.flush_interval)
    }

    fn flush_and_reopen(&mut self) -> Result<(), StorageError> {
        self.flush()?;
        if self.reopen_due() {
            self.reopen()?;
        }
        Ok(())
    }

    /// Whether sled holds too much, which it may do for longer if it was reopened just now.
    fn reopen_due(&self) -> bool {
        let bytes = self.since_open_bytes;
        let quiet = now() - self.opened >= self.reopen_time * REOPEN_DUTY;
        let full = bytes >= self.options.reopen_bytes;
        fail::fail_point!("reopen_is_due", |_| true);
        full && (quiet || bytes >= 3 * self.options.reopen_bytes)
    }

    /// Makes everything applied so far durable and notes it in the manifest.
    fn flush(&mut self) -> Result<(), StorageError> {
        let database = self.database.as_ref().expect("only taken while reopening");
        fail::fail_point!("state_before_flush");
        let flushed = database.flush().and_then(|_| {
            fail::fail_point!("state_before_note");
            Manifest::observe(&self.database_dir, self.applied_seq)?.store(&self.dir)?;
            disk_bytes(&self.dir)
        });
        let size_bytes = flushed.map_err(|error| self.failed("flush", error))?;
        fail::fail_point!("state_after_note");
        self.shared.size_bytes.store(size_bytes, Ordering::Relaxed);
        self.unflushed = Written::default();
        self.shared.queue.durable(self.applied_seq);
        Ok(())
    }

    /// Closes and opens sled: the only way to make this version give memory back.
    ///
    /// It never evicts a leaf that was written since it was opened, whatever its cache size.
    fn reopen(&mut self) -> Result<(), StorageError> {
        let begun = now();
        let (database, dir, options) = (&mut self.database, &self.database_dir, &self.options);
        let opened = self.shared.handles.reopen(|| {
            let database = database.take().expect("only taken while reopening");
            fail::fail_point!("reopen_before_close");
            close_database(database).map_err(|error| failed("close", dir, error))?;
            fail::fail_point!("reopen_while_closed");
            open_database(dir, options)
        })?;
        fail::fail_point!("reopen_after_open");
        self.database = Some(opened);
        self.since_open_bytes = 0;
        self.opened = now();
        self.reopen_time = self.opened - begun;
        Ok(())
    }

    fn close(&mut self) -> Result<(), StorageError> {
        let database = self.database.take().expect("only taken while reopening");
        database.check_error().map_err(|error| self.failed("close", error))?;
        self.shared.handles.close();
        close_database(database).map_err(|error| self.failed("close", error))
    }

    fn failed(&self, verb: &str, error: io::Error) -> StorageError {
        failed(verb, &self.dir, error)
    }
}

impl Written {
    fn add(&mut self, writes: usize, bytes: usize) {
        self.first.get_or_insert_with(now);
        self.writes += writes;
        self.bytes += bytes;
    }
}

/// Bytes that the files below `dir` occupy.
pub(super) fn disk_bytes(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;

    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        sum += match entry.metadata() {
            // sled removes files in the background.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path())?,
            metadata => metadata?.blocks() * 512,
        };
    }
    Ok(sum)
}

/// Whether others may go first after the `nth` write of many.
fn is_end_of_turn(nth: usize) -> bool {
    nth % WRITES_A_TURN == WRITES_A_TURN - 1
}

fn failed(verb: &str, dir: &Path, error: io::Error) -> StorageError {
    plain(format!("{verb} the state in {}", dir.display()), error)
}

#[expect(clippy::disallowed_methods, reason = "paces flushes; no effect on what is stored")]
fn now() -> Instant {
    Instant::now()
}
