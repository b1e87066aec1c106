//! The whole state as a stream of storage pairs.
//!
//! Nothing is copied to begin one: the reader remembers the facts of the moment and pins the
//! history, then walks the records up to its revision while the state goes on; deletion waits. What the writer
//! puts into a fresh storage opens as an equal state at the same position.

use std::ops::ControlFlow;
use std::vec;

use bytes::Bytes;
use prost::Message;

use super::answer::LeaseTerm;
use super::pins::Pin;
use super::revision::{Position, Revision};
use super::schema::{self, Progress, damaged};
use super::{State, lease};
use crate::storage::{Backend, Batch, StorageError};

/// One storage pair.
pub type StoredPair = (Bytes, Bytes);

/// Reads a state as it was when the reader was made.
#[derive(Debug)]
pub struct SnapshotReader {
    progress: Option<Progress>,
    revision: i64,
    membership: Bytes,
    facts: vec::IntoIter<StoredPair>,
    leases: vec::IntoIter<LeaseTerm>,
    /// The storage key of the next record.
    next: Vec<u8>,
    is_done: bool,
    _pin: Pin,
}

impl SnapshotReader {
    /// Begins a snapshot of `state` as it is now.
    pub fn new<B: Backend>(state: &State<B>) -> Self {
        let progress = state.progress();
        SnapshotReader {
            progress,
            revision: state.revision(),
            membership: state.membership(),
            facts: facts(state, progress).into_iter(),
            leases: state.leases().collect::<Vec<_>>().into_iter(),
            next: schema::record_key(Revision::default()).to_vec(),
            is_done: false,
            // Not the compact revision: the walk sees a put earlier than the tombstone after it. A
            // deletion of both in between would leave the put alone, and so bring back the key.
            _pin: state.pins().pin(state.compaction().finished),
        }
    }

    /// The last log entry that the snapshot holds.
    pub fn position(&self) -> Option<Position> {
        self.progress.map(|progress| progress.position)
    }

    /// The membership that the snapshot holds.
    pub fn membership(&self) -> Bytes {
        self.membership.clone()
    }

    /// The revision that the records describe.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The next pairs, about `bytes_max` of them but at least one; none at the end.
    ///
    /// `backend` is that of the state; no lock is needed.
    pub fn next_chunk<B: Backend>(
        &mut self,
        backend: &B,
        bytes_max: usize,
    ) -> Result<Option<Vec<StoredPair>>, StorageError> {
        let mut chunk: Vec<StoredPair> = Vec::new();
        let mut bytes = 0;
        while bytes < bytes_max || chunk.is_empty() {
            let lease = || self.leases.next().map(|term| lease::stored(&term));
            let Some(pair) = self.facts.next().or_else(lease) else { break };
            bytes += pair.0.len() + pair.1.len();
            chunk.push(pair);
        }
        if self.leases.len() == 0 && self.facts.len() == 0 && !self.is_done {
            self.read_records(backend, bytes_max.saturating_sub(bytes), &mut chunk)?;
        }
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }

    fn read_records<B: Backend>(
        &mut self,
        backend: &B,
        bytes_max: usize,
        chunk: &mut Vec<StoredPair>,
    ) -> Result<(), StorageError> {
        let end = schema::record_key(Revision::first(self.revision + 1));
        let mut bytes = 0;
        let mut stopped = None;
        backend.scan(&self.next, &end, &mut |key, value| {
            if bytes >= bytes_max && !chunk.is_empty() {
                stopped = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            bytes += key.len() + value.len();
            chunk.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })?;
        match stopped {
            Some(key) => self.next = key,
            None => self.is_done = true,
        }
        Ok(())
    }
}

/// The facts of the state besides its records, as they are stored.
fn facts<B: Backend>(state: &State<B>, progress: Option<Progress>) -> Vec<StoredPair> {
    let fact = |key: &'static [u8], value| (Bytes::from_static(key), value);
    let mut facts = vec![fact(schema::FORMAT, Bytes::from(vec![schema::FORMAT_NUMBER]))];
    facts.extend(progress.map(|progress| fact(schema::POSITION, progress.encode())));
    if !state.membership().is_empty() {
        facts.push(fact(schema::MEMBERSHIP, state.membership()));
    }
    let compaction = state.compaction();
    if compaction.requested >= 0 {
        let value = schema::encode_compact(compaction.requested, compaction.finished);
        facts.push(fact(schema::COMPACT, value));
    }
    for (&member_id, member) in state.members() {
        facts.push((schema::member_key(member_id), Bytes::from(member.encode_to_vec())));
    }
    facts
}

/// Puts the chunks of a snapshot into a fresh storage.
#[derive(Debug)]
pub struct SnapshotWriter<'a, B> {
    backend: &'a B,
}

impl<'a, B: Backend> SnapshotWriter<'a, B> {
    /// A writer into `backend`, which must be empty.
    pub fn new(backend: &'a B) -> Self {
        SnapshotWriter { backend }
    }

    /// Stores one chunk. Nothing is durable before [`SnapshotWriter::finish`].
    pub fn write_chunk(&mut self, chunk: Vec<StoredPair>) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        for (key, value) in chunk {
            if !schema::is_known(&key) {
                return Err(damaged(format!("a snapshot has the unknown key {key:02x?}")));
            }
            batch.put(key, value);
        }
        self.backend.commit(batch)
    }

    /// Makes all chunks durable. What they make up is checked by [`State::open`].
    pub fn finish(self) -> Result<(), StorageError> {
        self.backend.checkpoint()
    }
}
