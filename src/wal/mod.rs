//! The durable log: the only thing that a write is acknowledged from.
//!
//! It stores numbered entries with opaque payloads, and the few small facts that raft must not
//! forget (vote, committed and purged position). It knows nothing of openraft, protobuf or etcd.
//!
//! ```text
//!  submit() ──► queue ──► writer thread ──► segment 000…7.wal   one write, one flush per batch
//!                 ▲            │  └────────► completions, newest first
//!                 └────────────┘ takes all that is queued; no timer
//!
//!  000…5.wal [header: checkpoint │ record │ record │ …       ]  purged: becomes a spare
//!  000…6.wal [header: checkpoint │ record │ record │ …       ]
//!  000…7.wal [header: checkpoint │ record │ record │ 0 0 0 …]  preallocated, written to
//!  12.spare  [stale or zero bytes                            ]  made ahead by the keeper thread
//! ```
//!
//! What holds:
//! - A completion with `Ok` means that the record and all before it are on disk.
//! - After a crash the log is an exact prefix of what was submitted, and no shorter than what was
//!   completed. Damage to anything completed is an error at open, never a shorter log. (The one
//!   blind spot of every log: damage inside the very last batch looks like a torn write.)
//! - A failed write or flush ends the log for good; the member must exit (`WalObserver::failed`).
//! - A full disk does not fail anything: the keeper warns (`space_low`) while a whole segment is
//!   left to write to. When that is full too, submissions wait until there is space again, as with
//!   a disk that hangs, and go on from there.
//!
//! Files: `record` (bytes of a record), `segment` (header, scanner), `table` (index of entries),
//! `writer` (the thread), `keeper` (spares), `recovery` (open), `sums` (checksums of ranges), `disk` and
//! `sim` (the seam), `bell` (wakes the workers).

mod bell;
mod disk;
mod error;
mod keeper;
mod record;
mod recovery;
mod segment;
pub mod sim;
mod sums;
mod table;
mod writer;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;

use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use self::bell::Bell;
pub use self::disk::{Disk, DiskFile, RealDisk};
pub use self::error::WalError;
use self::keeper::Keeper;
pub use self::record::Kind;
pub use self::segment::Identity;
use self::segment::{Checkpoint, HEADER_BYTES, Header, Scanner};
use self::table::Table;
use self::writer::{Cursor, Writer};
use crate::limits::{LOG_QUEUE_BYTES_MAX, LOG_RECORD_BYTES_MAX, LOG_SEGMENT_BYTES};
use crate::tasks::{self, watch};

/// What to do with a completion: called once, on the writer's thread, and must not block.
pub type Callback = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// How and where to open a log.
#[derive(Clone)]
pub struct Options {
    /// Where the segments are.
    pub disk: Arc<dyn Disk>,
    /// Whose log it is.
    pub identity: Identity,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Who is told about flushes and trouble.
    pub observer: Arc<dyn WalObserver>,
    /// Who does the work.
    pub workers: Workers,
}

/// Who does the log's work.
#[derive(Clone)]
pub enum Workers {
    /// A thread that writes, and one that prepares spare files.
    Threads,
    /// A thread that writes and prepares. Tests on a simulated disk get the same order of disk
    /// operations each time with it.
    OneThread,
    /// Tasks of the current runtime; a flush takes as long as this says. For simulations.
    Tasks(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl Options {
    /// The log of a member in the directory `dir`, which is made if it does not exist.
    pub fn at(dir: &Path, identity: Identity) -> Result<Self, WalError> {
        let disk = RealDisk::open(dir)
            .map_err(|error| WalError::io("open", &dir.display().to_string(), error))?;
        Ok(Self::on(Arc::new(disk), identity))
    }

    /// The log of a member on any disk.
    pub fn on(disk: Arc<dyn Disk>, identity: Identity) -> Self {
        Self {
            disk,
            identity,
            segment_bytes: LOG_SEGMENT_BYTES,
            observer: Arc::new(Unobserved),
            workers: Workers::Threads,
        }
    }
}

/// One flush, for the metrics.
#[derive(Debug, Clone, Copy)]
pub struct Flushed {
    /// How long `fdatasync` took.
    pub took: Duration,
    /// Records that it made durable.
    pub records: usize,
    /// Bytes that were written for it.
    pub bytes: usize,
}

/// Who is told about the log's health. Called on the log's threads; must not block.
pub trait WalObserver: Send + Sync + 'static {
    /// A flush succeeded.
    fn flushed(&self, _flushed: Flushed) {}
    /// The next segment cannot be made (`true`), or can again (`false`).
    fn space_low(&self, _low: bool) {}
    /// The log failed for good: the process must exit.
    fn failed(&self, _error: &WalError) {}
}

struct Unobserved;

impl WalObserver for Unobserved {}

/// A change to the log.
#[derive(Debug, Clone)]
pub struct Op {
    kind: Kind,
    index: u64,
    head: Bytes,
    tail: Bytes,
}

impl Op {
    /// Appends entry `index`, whose payload is `head` followed by `tail`.
    pub fn entry(index: u64, head: Bytes, tail: Bytes) -> Self {
        Self { kind: Kind::Entry, index, head, tail }
    }

    /// Replaces the vote.
    pub fn vote(payload: Bytes) -> Self {
        Self { kind: Kind::Vote, index: 0, head: payload, tail: Bytes::new() }
    }

    /// Drops the entries from `index` on.
    pub fn truncate(index: u64) -> Self {
        Self { kind: Kind::Truncate, index, head: Bytes::new(), tail: Bytes::new() }
    }

    /// Drops the entries up to `index`, inclusive.
    pub fn purge(index: u64, payload: Bytes) -> Self {
        Self { kind: Kind::Purge, index, head: payload, tail: Bytes::new() }
    }

    fn committed(payload: Bytes) -> Self {
        Self { kind: Kind::Committed, index: 0, head: payload, tail: Bytes::new() }
    }
}

/// A record as it is read back at open.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// What it says.
    pub kind: Kind,
    /// The index that the kind speaks of, or 0.
    pub index: u64,
    /// What was submitted with it.
    pub payload: &'a [u8],
}

/// What the writer takes from the queue at once.
#[derive(Default)]
struct Batch {
    ops: Vec<Op>,
    committed: Option<Bytes>,
    callbacks: Vec<Callback>,
}

struct Queue {
    batch: Batch,
    bytes: usize,
    /// The smallest index that a queued truncation drops: nothing from there on counts as durable.
    truncated_from: u64,
    closed: bool,
    failed: Option<WalError>,
}

impl Queue {
    fn has_work(&self) -> bool {
        // The last committed position is only a hint, but a free one when the log is closed.
        let batch = &self.batch;
        let is_last = self.closed && batch.committed.is_some();
        !batch.ops.is_empty() || !batch.callbacks.is_empty() || is_last
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Durable {
    /// The index after the last durable entry.
    next: u64,
    /// There will be no more.
    failed: bool,
}

/// What the handle and the writer share.
struct Shared {
    queue: Mutex<Queue>,
    queued: Bell,
    /// Wakes those who wait for room in the queue.
    room: Notify,
    table: Mutex<Table>,
    durable: watch::Sender<Durable>,
    /// Bytes of log written since the log was opened, plus those found then.
    position: Mutex<u64>,
    observer: Arc<dyn WalObserver>,
}

impl Shared {
    /// Waits for work and moves it into the empty `batch`. False: closed, and nothing left.
    fn take(&self, batch: &mut Batch) -> bool {
        let mut queue = self.queue.lock();
        while !queue.has_work() {
            if queue.closed {
                return false;
            }
            self.queued.wait(&mut queue);
        }
        self.take_all(queue, batch);
        true
    }

    /// As [`Shared::take`], for a task.
    async fn taken(&self, batch: &mut Batch) -> bool {
        loop {
            {
                let queue = self.queue.lock();
                if queue.has_work() {
                    self.take_all(queue, batch);
                    return true;
                }
                if queue.closed {
                    return false;
                }
            }
            self.queued.rung().await;
        }
    }

    fn take_all(&self, mut queue: MutexGuard<'_, Queue>, batch: &mut Batch) {
        mem::swap(&mut queue.batch, batch);
        queue.truncated_from = u64::MAX;
        let was_full = mem::take(&mut queue.bytes) >= LOG_QUEUE_BYTES_MAX;
        drop(queue);
        if was_full {
            self.room.notify_waiters();
        }
    }

    fn complete(&self, batch: &mut Batch, durable_next: u64) {
        {
            // A truncation that is still queued takes back what this flush made durable.
            let queue = self.queue.lock();
            let next = durable_next.min(queue.truncated_from);
            self.durable.send_if_modified(|durable| {
                let advanced = next > durable.next;
                durable.next = next;
                advanced
            });
        }
        for callback in batch.callbacks.drain(..).rev() {
            callback(Ok(()));
        }
    }

    fn fail(&self, batch: &mut Batch, error: &WalError) {
        let mut queue = self.queue.lock();
        queue.failed = Some(error.clone());
        let waiting = mem::take(&mut queue.batch.callbacks);
        queue.batch.ops.clear();
        queue.bytes = 0;
        drop(queue);
        self.durable.send_modify(|durable| durable.failed = true);
        self.room.notify_waiters();
        if !matches!(error, WalError::Closed) {
            tracing::error!(%error, "the log failed, this member must stop");
            self.observer.failed(error);
        }
        for callback in waiting.into_iter().rev().chain(batch.callbacks.drain(..).rev()) {
            callback(Err(error.clone()));
        }
    }

    fn position(&self, position: u64) {
        *self.position.lock() = position;
    }
}

/// An open log. Dropping it writes what is queued and ends the threads.
pub struct Wal {
    shared: Arc<Shared>,
    keeper: Arc<Keeper>,
    threads: Vec<JoinHandle<()>>,
}

impl Wal {
    /// Opens the log, or makes an empty one, and replays it: first the checkpoint, then every
    /// intact record in order. The caller keeps other processes away from the directory.
    pub fn open(
        options: &Options,
        mut visit: impl FnMut(Record<'_>) -> Result<(), WalError>,
    ) -> Result<Self, WalError> {
        let dir = || options.disk.path("");
        let names = options.disk.list().map_err(|error| WalError::io("list", &dir(), error))?;
        let keeper = Keeper::open(options, &names)?;
        let recovered = recovery::recover(options, &names, &mut visit)?;
        let recovery::Recovered { mut table, cursor } = match recovered {
            Some(recovered) => recovered,
            None => first_segment(options, &keeper)?,
        };
        keeper.dispose(table.take_unused());
        let durable = Durable { next: table.next_index, failed: false };
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                batch: Batch::default(),
                bytes: 0,
                truncated_from: u64::MAX,
                closed: false,
                failed: None,
            }),
            queued: Bell::new(matches!(options.workers, Workers::Tasks(_))),
            room: Notify::new(),
            table: Mutex::new(table),
            durable: watch::Sender::new(durable),
            position: Mutex::new(cursor.position_base + cursor.offset),
            observer: Arc::clone(&options.observer),
        });
        let writer = Writer::new(options, Arc::clone(&shared), Arc::clone(&keeper), cursor);
        let mut threads = Vec::new();
        let for_keeper = Arc::clone(&keeper);
        match &options.workers {
            Workers::Threads => {
                threads.push(spawn("log-writer", || writer.run())?);
                threads.push(spawn("log-keeper", move || for_keeper.run())?);
            }
            Workers::OneThread => threads.push(spawn("log-writer", || writer.run())?),
            Workers::Tasks(pace) => {
                drop(tasks::spawn("log-writer", writer.run_as_task(Arc::clone(pace))));
                drop(tasks::spawn("log-keeper", async move { for_keeper.run_as_task().await }));
            }
        }
        Ok(Self { shared, keeper, threads })
    }

    /// Queues changes in order. `done` is called when they, and all before them, are durable, or
    /// with the error that ended the log. Never blocks and does no IO.
    pub fn submit(&self, ops: impl IntoIterator<Item = Op>, done: Option<Callback>) {
        let mut queue = self.shared.queue.lock();
        let refused = if queue.closed { Some(WalError::Closed) } else { queue.failed.clone() };
        if let Some(error) = refused {
            drop(queue);
            if let Some(done) = done {
                done(Err(error));
            }
            return;
        }
        for op in ops {
            if op.kind == Kind::Truncate {
                queue.truncated_from = queue.truncated_from.min(op.index);
                self.shared.durable.send_if_modified(|durable| {
                    durable.next = durable.next.min(op.index);
                    false
                });
            }
            queue.bytes += op.head.len() + op.tail.len();
            queue.batch.ops.push(op);
        }
        queue.batch.callbacks.extend(done);
        drop(queue);
        self.shared.queued.ring();
    }

    /// Queues the committed position. It becomes durable with the next flush that something else
    /// needs, and is lost if there is none.
    pub fn set_committed(&self, payload: Bytes) {
        self.shared.queue.lock().batch.committed = Some(payload);
    }

    /// Waits until all that is queued is durable.
    pub async fn flush(&self, ops: impl IntoIterator<Item = Op>) -> Result<(), WalError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done: Callback = Box::new(move |result| {
            // Nobody waits any more: the result is on record in `failed`.
            sender.send(result).ok();
        });
        self.submit(ops, Some(done));
        receiver.await.unwrap_or(Err(WalError::Closed))
    }

    /// Waits while more than [`LOG_QUEUE_BYTES_MAX`] are queued.
    pub async fn room(&self) {
        loop {
            let room = self.shared.room.notified();
            {
                let queue = self.shared.queue.lock();
                if queue.bytes < LOG_QUEUE_BYTES_MAX || queue.failed.is_some() {
                    return;
                }
            }
            room.await;
        }
    }

    /// An entry with a larger payload cannot be appended.
    pub fn check_size(payload_bytes: usize) -> Result<(), WalError> {
        if payload_bytes > LOG_RECORD_BYTES_MAX {
            return Err(WalError::TooLarge {
                bytes: payload_bytes,
                bytes_max: LOG_RECORD_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// The index after the last entry that is durable here, with all before it; 0 if none is.
    pub fn durable_next(&self) -> u64 {
        self.shared.durable.borrow().next
    }

    /// Waits until entry `index` is durable here.
    pub async fn wait_durable(&self, index: u64) -> Result<(), WalError> {
        let mut durable = self.shared.durable.subscribe();
        let reached = durable.wait_for(|durable| durable.failed || durable.next > index).await;
        match reached {
            Ok(durable) if durable.next > index => Ok(()),
            _ => Err(self.failed().unwrap_or(WalError::Closed)),
        }
    }

    /// The error that ended the log, if one has.
    pub fn failed(&self) -> Option<WalError> {
        self.shared.queue.lock().failed.clone()
    }

    /// From now on nothing waits for space: without it the log ends with [`WalError::Closed`].
    pub fn begin_close(&self) {
        self.keeper.begin_close();
    }

    /// True while the next segment cannot be made for lack of space.
    pub fn space_low(&self) -> bool {
        self.keeper.space_low()
    }

    /// Reads entries from `start` on, in front of `end`, until `bytes_max` is reached; at least one
    /// if `start` is retained. Only for entries that are durable.
    pub fn read(
        &self,
        start: u64,
        end: u64,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, WalError> {
        let mut entries: Vec<(u64, Bytes)> = Vec::new();
        let (mut index, mut bytes) = (start, 0);
        while index < end && bytes < bytes_max {
            let Some((segment, mut offset, run_end)) = self.shared.table.lock().locate(index)
            else {
                break;
            };
            let mut scanner = Scanner::with_chunk(&segment, 64 * 1024);
            let mut crc = scanner.crc_before(offset)?;
            while index < end.min(run_end) && bytes < bytes_max {
                let Some(intact) = scanner.record(offset, crc)? else {
                    return Err(segment.damaged(offset, "a record cannot be read back"));
                };
                if intact.head.kind == Kind::Entry && intact.head.index == index {
                    entries.push((index, Bytes::copy_from_slice(intact.payload)));
                    bytes += intact.payload.len();
                    index += 1;
                }
                offset += intact.head.record_bytes() as u64;
                crc = intact.crc;
            }
        }
        Ok(entries)
    }

    /// Bytes of log from the oldest retained entry on, to within 64 KiB.
    pub fn retained_bytes(&self) -> u64 {
        let first = self.shared.table.lock().first_position();
        let end = *self.shared.position.lock();
        first.map_or(0, |first| end.saturating_sub(first))
    }

    /// The smallest index such that at most about `bytes` of log follow from it on.
    pub fn index_keeping(&self, bytes: u64) -> u64 {
        let end = *self.shared.position.lock();
        let table = self.shared.table.lock();
        table.index_at(end.saturating_sub(bytes)).unwrap_or(table.next_index)
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.queued.ring();
        let threads = mem::take(&mut self.threads);
        if threads.is_empty() {
            // The task closes the keeper itself, when it has done.
            return self.keeper.begin_close();
        }
        let mut threads = threads.into_iter();
        let me = thread::current().id();
        // A last handle dropped inside a completion must not wait for its own thread.
        let writer = threads.next().filter(|writer| writer.thread().id() != me);
        self.keeper.begin_close();
        if let Some(writer) = writer {
            writer.join().ok();
        }
        self.keeper.close();
        for thread in threads {
            thread.join().ok();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, WalError> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map_err(|error| WalError::io("start a thread for", name, error))
}

/// Makes the first segment of an empty log.
fn first_segment(options: &Options, keeper: &Keeper) -> Result<recovery::Recovered, WalError> {
    let header = Header {
        identity: options.identity,
        sequence: 1,
        first_lsn: 1,
        next_index: 0,
        previous_crc: 0,
        checkpoint: Checkpoint::default(),
    };
    keeper.make_first()?;
    let (segment, crc) = writer::create_segment(&*options.disk, keeper, &header, 0)?;
    let mut table = Table::default();
    table.segments.push_back(Arc::clone(&segment));
    let cursor = Cursor {
        segment,
        offset: HEADER_BYTES as u64,
        crc,
        next_lsn: 1,
        position_base: 0,
        checkpoint: Checkpoint::default(),
    };
    Ok(recovery::Recovered { table, cursor })
}
