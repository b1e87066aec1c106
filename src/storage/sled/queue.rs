//! The queue from the committers to the writer thread, and what each side waits for.
//!
//! `push` never waits for the disk. The writer lingers a little after the first commit, so that it
//! is woken once for many commits and gives sled large groups. The bound on the queue is kept by
//! the callers: they watch `backlog_bytes` and pause (`limits::STORAGE_BACKLOG_BYTES_MAX`).

use std::{
    collections::VecDeque,
    io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};

use super::overlay::Overlay;
use crate::storage::{Batch, StorageError};

/// The writer is woken early when this many writes wait.
const GROUP_WRITES_WAKE: usize = 512;

/// The writer takes whole batches until it has this many writes.
const GROUP_WRITES_MAX: usize = 1024;

/// How long the writer waits for company after the first commit.
const LINGER: Duration = Duration::from_millis(20);

/// How many overlay entries are dropped under one hold of its lock: keeps readers' waits short.
const SETTLE_CHUNK: usize = 128;

/// What a queued write costs in memory beyond its key and value, roughly.
const WRITE_OVERHEAD_BYTES: usize = 64;

/// A commit on its way to sled.
pub(super) struct Commit {
    /// Its place in the order of all commits ever made to this store, from 1.
    pub(super) seq: u64,
    /// What it writes.
    pub(super) batch: Batch,
    /// What it counts in the backlog.
    pub(super) bytes: usize,
}

/// What the writer is to do next.
pub(super) enum Work {
    /// Put these commits into sled.
    Apply(Vec<Commit>),
    /// Flush: somebody waits for a checkpoint, or it is time.
    Flush,
    /// Flush and end.
    Stop,
}

/// A callback for a falling backlog, see `Backend::on_drain`.
struct Drain {
    below_bytes: usize,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    commits: VecDeque<Commit>,
    writes: usize,
    last_seq: u64,
    durable_seq: u64,
    checkpoint_seq: u64,
    stop: bool,
    failure: Option<(String, io::ErrorKind, String)>,
}

/// Commits that wait for the writer, and the overlay that shows them to readers.
pub(super) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
    overlay: RwLock<Overlay>,
    backlog_bytes: AtomicUsize,
    failed: AtomicBool,
    drains: Mutex<Vec<Drain>>,
}

impl Queue {
    /// An empty queue after commit `seq`, which is durable.
    pub(super) fn new(seq: u64) -> Self {
        Queue {
            state: Mutex::new(State {
                last_seq: seq,
                durable_seq: seq,
                checkpoint_seq: seq,
                ..State::default()
            }),
            work: Condvar::new(),
            done: Condvar::new(),
            overlay: RwLock::default(),
            backlog_bytes: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            drains: Mutex::default(),
        }
    }

    /// The commits that readers must see before sled has them.
    pub(super) fn overlay(&self) -> &RwLock<Overlay> {
        &self.overlay
    }

    /// Bytes pushed and not settled; 0 once the writer has failed. Nothing is settled then, and who
    /// waited for room must go on to a commit, which fails.
    pub(super) fn backlog_bytes(&self) -> usize {
        if self.failed.load(Ordering::Acquire) {
            return 0;
        }
        self.backlog_bytes.load(Ordering::Relaxed)
    }

    /// Registers a callback for a falling backlog.
    pub(super) fn on_drain(&self, below_bytes: usize, wake: Box<dyn Fn() + Send + Sync>) {
        self.drains.lock().push(Drain { below_bytes, wake });
    }

    /// Queues `batch` behind all commits before it and shows it to readers.
    pub(super) fn push(&self, batch: Batch) -> Result<(), StorageError> {
        let bytes = batch_bytes(&batch);
        let mut state = self.state.lock();
        check(&state)?;
        state.last_seq += 1;
        let seq = state.last_seq;
        // Under the queue's lock, so that overlay and queue agree on the order.
        self.overlay.write().commit(seq, &batch);
        self.backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
        let writes_before = state.writes;
        state.writes += batch.writes.len();
        let wake = state.commits.is_empty()
            || (writes_before < GROUP_WRITES_WAKE && state.writes >= GROUP_WRITES_WAKE);
        state.commits.push_back(Commit { seq, batch, bytes });
        drop(state);
        if wake {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Fails if the writer has failed.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        if self.failed.load(Ordering::Acquire) { check(&self.state.lock()) } else { Ok(()) }
    }

    /// Blocks until everything pushed before is durable.
    pub(super) fn checkpoint(&self) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        let wanted = state.last_seq;
        state.checkpoint_seq = state.checkpoint_seq.max(wanted);
        self.work.notify_one();
        while state.durable_seq < wanted {
            check(&state)?;
            self.done.wait(&mut state);
        }
        check(&state)
    }

    /// Asks the writer to flush what is queued and to end.
    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.work.notify_one();
    }

    /// The writer's side: blocks until there is something to do.
    ///
    /// `flush_at` is when it wants to flush at the latest, `None` if nothing is unflushed.
    pub(super) fn next(&self, flush_at: Option<Instant>) -> Work {
        let mut state = self.state.lock();
        loop {
            if !state.commits.is_empty() {
                if state.writes < GROUP_WRITES_WAKE && !state.hurry() {
                    self.work.wait_for(&mut state, LINGER);
                }
                return Work::Apply(state.take_group());
            }
            if state.stop {
                return Work::Stop;
            }
            if state.hurry() {
                return Work::Flush;
            }
            match flush_at {
                None => self.work.wait(&mut state),
                Some(at) => {
                    if self.work.wait_until(&mut state, at).timed_out() {
                        return Work::Flush;
                    }
                }
            }
        }
    }

    /// The writer's side: these writes, each given with its commit, are in sled now, so readers
    /// find them there; `bytes` is what they counted in the backlog.
    pub(super) fn settled(&self, applied: &[(Bytes, u64)], bytes: usize) {
        for chunk in applied.chunks(SETTLE_CHUNK) {
            self.overlay.write().settle(chunk);
        }
        let before = self.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
        for drain in self.drains.lock().iter() {
            if before >= drain.below_bytes && before - bytes < drain.below_bytes {
                (drain.wake)();
            }
        }
    }

    /// The writer's side: commits up to `seq` are durable.
    pub(super) fn durable(&self, seq: u64) {
        self.state.lock().durable_seq = seq;
        self.done.notify_all();
    }

    /// The writer's side: from now on every call fails with this error.
    pub(super) fn fail(&self, error: &StorageError) {
        let failure = (error.action.clone(), error.source.kind(), error.source.to_string());
        self.state.lock().failure.get_or_insert(failure);
        self.failed.store(true, Ordering::Release);
        self.done.notify_all();
        for drain in self.drains.lock().iter() {
            (drain.wake)(); // Who waits for room must learn that there will be none.
        }
    }
}

impl State {
    /// Whether somebody waits for the writer.
    fn hurry(&self) -> bool {
        self.stop || self.checkpoint_seq > self.durable_seq
    }

    fn take_group(&mut self) -> Vec<Commit> {
        let mut group = Vec::new();
        let mut writes = 0;
        while let Some(commit) = self.commits.front() {
            if !group.is_empty() && writes + commit.batch.writes.len() > GROUP_WRITES_MAX {
                break;
            }
            writes += commit.batch.writes.len();
            group.extend(self.commits.pop_front());
        }
        self.writes -= writes;
        group
    }
}

fn check(state: &State) -> Result<(), StorageError> {
    match &state.failure {
        None => Ok(()),
        Some((action, kind, message)) => {
            Err(StorageError::new(action.clone(), io::Error::new(*kind, message.clone())))
        }
    }
}

fn batch_bytes(batch: &Batch) -> usize {
    let write_bytes = |(key, value): &(Bytes, Option<Bytes>)| {
        key.len() + value.as_ref().map_or(0, |value| value.len()) + WRITE_OVERHEAD_BYTES
    };
    batch.writes.iter().map(write_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The apply loop waited for room for ever behind a writer that had failed with a long queue: a
    /// leader led on and answered no write.
    #[test]
    fn nobody_waits_for_room_behind_a_writer_that_failed() {
        let queue = Queue::new(0);
        let mut batch = Batch::default();
        batch.put("key", vec![0; 20_000]);
        queue.push(batch).unwrap();
        assert!(queue.backlog_bytes() > 10_000);
        queue.fail(&StorageError::new("flush the state", io::Error::other("no space left")));
        assert_eq!(queue.backlog_bytes(), 0);
        queue.push(Batch::default()).unwrap_err();
    }
}
