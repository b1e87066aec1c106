//! Proof that members agree: a checksum over history up to a revision.
//!
//! The checksum covers what a compaction at the compact revision leaves, whether or not this member
//! has deleted the rest yet. So members can be compared at any time, and it costs them one scan,
//! in steps.

use std::ops::ControlFlow;

use super::State;
use super::error::RequestError;
use super::mvcc::entry::Version;
use super::mvcc::index::Index;
use super::mvcc::record;
use super::pins::Pin;
use super::records;
use super::revision::Revision;
use super::schema::{self, damaged};
use crate::storage::{Backend, StorageError};

/// The checksum of the history between two revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashAnswer {
    /// CRC32C over the storage keys and values of the records.
    pub hash: u32,
    /// The compact revision the checksum assumes; as in etcd -1 if there was no compaction.
    pub compact_revision: i64,
    /// The last revision it covers.
    pub hash_revision: i64,
}

/// A checksum in the making.
#[derive(Debug)]
pub struct HashJob {
    answer: HashAnswer,
    /// The storage key to go on with.
    next: Vec<u8>,
    pin: Pin,
}

impl HashJob {
    /// Begins a checksum up to `revision`; 0 means the current one. As in etcd, a negative one is
    /// taken as it is: nothing lies below it.
    pub fn new<B: Backend>(state: &State<B>, revision: i64) -> Result<Self, RequestError> {
        if revision > state.revision() {
            return Err(RequestError::FutureRev);
        }
        let hash_revision = if revision == 0 { state.revision() } else { revision };
        let compact_revision = state.compact_revision();
        if (1..compact_revision).contains(&hash_revision) {
            return Err(RequestError::Compacted);
        }
        Ok(HashJob {
            answer: HashAnswer { hash: 0, compact_revision, hash_revision },
            next: schema::record_key(Revision::default()).to_vec(),
            pin: state.pins().pin(compact_revision),
        })
    }

    /// Whether `state` is the one that the checksum is of, and not one that a snapshot put in its place.
    pub fn is_of<B: Backend>(&self, state: &State<B>) -> bool {
        self.pin.is_of(state.pins())
    }

    /// Takes in up to `records_max` more records; the answer when there are none left.
    pub fn step<B: Backend>(
        &mut self,
        state: &State<B>,
        records_max: usize,
    ) -> Result<Option<HashAnswer>, StorageError> {
        let end = schema::record_key(Revision::first(self.answer.hash_revision.max(0) + 1));
        let mut taken = 0;
        let mut stopped = None;
        let mut torn = false;
        let answer = &mut self.answer;
        records::scan(&**state.backend(), &self.next, &end, &mut |revision, value| {
            let key = schema::record_key(revision);
            if taken == records_max {
                stopped = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            taken += 1;
            match stays(state.index(), answer.compact_revision, revision, value) {
                Some(true) => {
                    answer.hash = crc32c::crc32c_append(answer.hash, &key);
                    answer.hash = crc32c::crc32c_append(answer.hash, value);
                }
                Some(false) => {}
                None => {
                    torn = true;
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if torn {
            return Err(damaged("a record is malformed"));
        }
        match stopped {
            Some(key) => {
                self.next = key;
                Ok(None)
            }
            None => Ok(Some(self.answer)),
        }
    }
}

/// Whether a compaction at `compact_revision` leaves the record; none if it is malformed.
fn stays(index: &Index, compact_revision: i64, revision: Revision, value: &[u8]) -> Option<bool> {
    if revision.main > compact_revision {
        return Some(true);
    }
    let (_, kv) = record::split(value)?;
    let pair = record::Pair::decode(kv)?;
    let newest = index.get(pair.key).and_then(|entry| entry.version_at(compact_revision));
    // As in etcd: a tombstone at exactly the compact revision stays.
    let stays = |newest: &Version| newest.is_live() || newest.main == compact_revision;
    Some(newest.is_some_and(|newest| newest.revision() == revision && stays(newest)))
}
