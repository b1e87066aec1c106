//! openraft's log storage on top of [`crate::wal`].
//!
//! The core calls us inline, so nothing here waits for the disk but what raft demands: a vote, and a
//! truncation (or a crash could bring back entries below a snapshot installed in the meantime).
//! `append` pushes to memory and to the log's queue; the log's thread calls `IOFlushed`. Reads come
//! from memory, and for entries that are too old for it from the segments, on a blocking thread.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use prost::Message;

use super::codec;
use super::ring::{Ring, weight};
use super::types::{Entry, LogId, StoredMembership, TypeConfig, Vote};
use crate::limits::{LOG_READ_BYTES_MAX, LOG_RING_BYTES_MAX, LOG_RING_START_BYTES_MAX};
use crate::mutants;
use crate::pb::quorate::peer as pb;
use crate::tasks;
use crate::wal::{self, Callback, Kind, Op, Record, Wal, WalError};

/// Told about each membership that enters the log, and about the one in force after a truncation,
/// before raft can act on it. After a truncation the log may know of none: then it is the default.
pub type MembershipHook = Box<dyn Fn(&StoredMembership) + Send + Sync>;

/// The log of this member. Clones are handles to the same log; the last one closes it.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

/// A handle that only reads.
pub type LogReader = LogStore;

struct Inner {
    wal: Wal,
    ring: Mutex<Ring>,
    hook: OnceLock<MembershipHook>,
}

impl LogStore {
    /// Opens the log and replays it.
    pub fn open(options: wal::Options) -> Result<Self, WalError> {
        Self::open_with_ring(options, LOG_RING_BYTES_MAX)
    }

    /// Opens the log and keeps up to `ring_bytes_max` bytes of entries in memory.
    pub fn open_with_ring(options: wal::Options, ring_bytes_max: usize) -> Result<Self, WalError> {
        let mut ring = Ring::new(ring_bytes_max.min(LOG_RING_START_BYTES_MAX));
        let wal = Wal::open(&options, |record| replay(&mut ring, record))?;
        ring.set_bytes_max(ring_bytes_max);
        let inner = Inner { wal, ring: Mutex::new(ring), hook: OnceLock::new() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sets who is told about memberships; to be called once, before raft starts.
    pub fn set_membership_hook(&self, hook: MembershipHook) {
        let refused = self.inner.hook.set(hook).is_err();
        assert!(!refused, "the membership hook is set once");
    }

    /// The highest index up to which all entries are durable here; apply must not run ahead of it.
    pub fn durable_index(&self) -> Option<u64> {
        self.inner.wal.durable_next().checked_sub(1)
    }

    /// Waits until all entries up to `index` are durable here.
    pub async fn wait_durable(&self, index: u64) -> Result<(), WalError> {
        self.inner.wal.wait_durable(index).await
    }

    /// Waits until everything submitted so far is durable here.
    pub async fn flush(&self) -> Result<(), WalError> {
        self.inner.wal.flush([]).await
    }

    /// The error that ended the log, if one has.
    pub fn failed(&self) -> Option<WalError> {
        self.inner.wal.failed()
    }

    /// From now on nothing waits for space on the disk.
    pub fn begin_close(&self) {
        self.inner.wal.begin_close();
    }

    /// True while there is no space for the next segment.
    pub fn space_low(&self) -> bool {
        self.inner.wal.space_low()
    }

    /// True if the log was just made: it holds no vote and never held an entry.
    pub fn is_fresh(&self) -> bool {
        let ring = self.inner.ring.lock();
        ring.vote.is_none() && ring.last.is_none() && ring.purged.is_none()
    }

    /// The vote that this member promised last: it is here before any answer speaks of it.
    pub fn promised_vote(&self) -> Option<Vote> {
        self.inner.ring.lock().vote
    }

    /// The last index that was dropped from the front of the log, if any was.
    pub fn purged_index(&self) -> Option<u64> {
        self.inner.ring.lock().purged.map(|purged| purged.index)
    }

    /// Index of the first retained entry, if there is one.
    pub fn first_index(&self) -> Option<u64> {
        let ring = self.inner.ring.lock();
        (!ring.is_empty()).then_some(ring.first_index)
    }

    /// Index of the last entry, or of the last purged one if none is retained.
    pub fn last_index(&self) -> Option<u64> {
        self.inner.ring.lock().last.map(|last| last.index)
    }

    /// Bytes that the retained log takes on disk, to within 64 KiB.
    pub fn retained_bytes(&self) -> u64 {
        self.inner.wal.retained_bytes()
    }

    /// The index up to which to purge so that at most `entries` entries and about `bytes` bytes of
    /// log stay; `None` if they are not exceeded.
    pub fn purge_index_keeping(&self, entries: u64, bytes: u64) -> Option<u64> {
        let from = self.inner.wal.index_keeping(bytes);
        let ring = self.inner.ring.lock();
        let from = from.max(ring.next_index().saturating_sub(entries)).min(ring.next_index());
        (from > ring.first_index).then(|| from - 1)
    }

    /// The entries of `range` that the log contains, until `bytes_max` is reached; at least one.
    async fn entries(
        &self,
        mut range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, io::Error> {
        loop {
            let old = {
                let ring = self.inner.ring.lock();
                range = range.start.max(ring.first_index)..range.end.min(ring.next_index());
                if range.is_empty() {
                    return Ok(Vec::new());
                }
                let memory_first = ring.memory_first();
                if range.start >= memory_first {
                    return Ok(ring.copy(range, bytes_max));
                }
                range.start..range.end.min(memory_first)
            };
            let entries = self.old_entries(old, bytes_max).await?;
            if entries.first().is_some_and(|first| first.log_id.index == range.start) {
                return Ok(entries);
            }
            // A purge or a truncation may have overtaken the read: then look again.
            let ring = self.inner.ring.lock();
            if ring.first_index <= range.start && range.start < ring.next_index() {
                return Err(io::Error::other(format!("log: entry {} is lost", range.start)));
            }
        }
    }

    /// Reads back entries that are no longer in memory.
    async fn old_entries(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let inner = Arc::clone(&self.inner);
        let read = move || {
            let raw = inner.wal.read(range.start, range.end, bytes_max)?;
            let decode = |(index, bytes)| decode(index, bytes);
            raw.into_iter().map(decode).collect::<Result<Vec<Entry>, WalError>>()
        };
        Ok(tasks::blocking(read).await.map_err(io::Error::other)??)
    }

    /// All entries of `range` that the log contains.
    async fn all_entries(&self, mut range: Range<u64>) -> io::Result<Vec<Entry>> {
        let mut all = self.entries(range.clone(), usize::MAX).await?;
        while let Some(last) = all.last() {
            range.start = last.log_id.index + 1;
            let more = self.entries(range.clone(), usize::MAX).await?;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        Ok(all)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.all_entries(bounds(range)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.inner.ring.lock().vote)
    }

    /// The apply path: pieces of bounded size, read when they are needed.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let store = self.clone();
        let range = bounds(range);
        let pieces = stream::unfold((store, range), |(store, mut range)| async move {
            let piece = store.entries(range.clone(), LOG_READ_BYTES_MAX).await;
            let items: Vec<Result<Entry, io::Error>> = match piece {
                Ok(entries) => {
                    range.start = entries.last()?.log_id.index + 1;
                    entries.into_iter().map(Ok).collect()
                }
                Err(error) => {
                    range.start = range.end;
                    vec![Err(error)]
                }
            };
            Some((stream::iter(items), (store, range)))
        });
        futures_util::StreamExt::flatten(pieces)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.entries(start..end, LOG_READ_BYTES_MAX).await?;
        if entries.first().is_some_and(|first| first.log_id.index != start) {
            // `start` was purged or never there. Openraft would send the rest as if it followed
            // `start - 1`; nothing at all it takes as "not now", and asks again.
            entries.clear();
        }
        Ok(entries)
    }

    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        Ok(self.inner.ring.lock().leaders(*range.start(), *range.end()))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let ring = self.inner.ring.lock();
        Ok(LogState { last_purged_log_id: ring.purged, last_log_id: ring.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        fail::fail_point!("vote_before_flush");
        if !mutants::is_on("mutant_forget_vote") {
            self.inner.wal.flush([Op::vote(encode_vote(vote))]).await?;
        }
        fail::fail_point!("vote_after_flush");
        self.inner.ring.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = &committed {
            self.inner.wal.set_committed(encode_log_id(committed));
        }
        self.inner.ring.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.inner.ring.lock().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries.into_iter();
        let mut ops = Vec::with_capacity(entries.size_hint().0);
        let mut heads = BytesMut::with_capacity(64 * entries.size_hint().0);
        let mut memberships = Vec::new();
        {
            let mut ring = self.inner.ring.lock();
            for entry in entries {
                let index = entry.log_id.index;
                Wal::check_size(weight(&entry))?;
                let (head, tail) = codec::encode_entry_parts(&entry, &mut heads);
                let membership = ring.push(entry);
                let out_of_order = |expected| WalError::OutOfOrder { index, expected };
                memberships.extend(membership.map_err(out_of_order)?);
                ops.push(Op::entry(index, head, tail));
            }
            ring.evict(self.inner.wal.durable_next());
        }
        self.tell(&memberships);
        let done: Callback =
            Box::new(move |result| callback.io_completed(result.map_err(io::Error::from)));
        if mutants::is_on("mutant_ack_before_flush") {
            done(Ok(()));
            self.inner.wal.submit(ops, None);
            return Ok(());
        }
        self.inner.wal.submit(ops, Some(done));
        self.inner.wal.room().await;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let index = last.map_or(0, |last| last.index + 1);
        let index = index + u64::from(mutants::is_on("mutant_truncate_too_little"));
        let membership = self.inner.ring.lock().truncate(index);
        self.tell(&[membership]);
        fail::fail_point!("truncate_before_flush");
        self.inner.wal.flush([Op::truncate(index)]).await?;
        fail::fail_point!("truncate_after_flush");
        Ok(())
    }

    async fn purge(&mut self, purged: LogId) -> Result<(), io::Error> {
        fail::fail_point!("purge_before_submit");
        self.inner.ring.lock().purge(purged);
        self.inner.wal.submit([Op::purge(purged.index, encode_log_id(&purged))], None);
        fail::fail_point!("purge_after_submit");
        Ok(())
    }
}

impl LogStore {
    fn tell(&self, memberships: &[StoredMembership]) {
        if let Some(hook) = self.inner.hook.get() {
            memberships.iter().for_each(hook);
        }
    }
}

/// Rebuilds the memory from a record that was read back.
fn replay(ring: &mut Ring, record: Record<'_>) -> Result<(), WalError> {
    let malformed = |what| {
        let index = record.index;
        move |error: prost::DecodeError| WalError::Undecodable {
            what,
            index,
            reason: error.to_string(),
        }
    };
    match record.kind {
        Kind::Entry => {
            let entry = decode(record.index, Bytes::copy_from_slice(record.payload))?;
            let out_of_order = |expected| WalError::OutOfOrder { index: record.index, expected };
            ring.push(entry).map_err(out_of_order)?;
            ring.evict(u64::MAX);
        }
        Kind::Vote => {
            let vote = pb::Vote::decode_length_delimited(record.payload);
            ring.vote = Some(codec::vote_from_pb(vote.map_err(malformed("vote"))?));
        }
        Kind::Truncate => {
            ring.truncate(record.index);
        }
        Kind::Purge => {
            let purged = pb::LogId::decode_length_delimited(record.payload);
            ring.purge(codec::log_id_from_pb(purged.map_err(malformed("purged log id"))?));
        }
        Kind::Committed => {
            let committed = pb::LogId::decode_length_delimited(record.payload);
            let committed = committed.map_err(malformed("committed log id"))?;
            ring.committed = Some(codec::log_id_from_pb(committed));
        }
    }
    Ok(())
}

fn bounds(range: impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

fn decode(index: u64, bytes: Bytes) -> Result<Entry, WalError> {
    let undecodable = |reason: String| WalError::Undecodable { what: "entry", index, reason };
    let entry = codec::decode_entry(bytes).map_err(|error| undecodable(error.to_string()))?;
    if entry.log_id.index != index {
        return Err(undecodable(format!("it says that its index is {}", entry.log_id.index)));
    }
    Ok(entry)
}

/// With its length in front: the encoding of a message of defaults is empty otherwise.
fn encode_vote(vote: &Vote) -> Bytes {
    codec::vote_to_pb(vote).encode_length_delimited_to_vec().into()
}

fn encode_log_id(log_id: &LogId) -> Bytes {
    codec::log_id_to_pb(log_id).encode_length_delimited_to_vec().into()
}

#[cfg(test)]
mod tests;
