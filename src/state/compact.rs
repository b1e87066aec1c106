//! Dropping history: at once for readers, in small steps for the disk.
//!
//! Applying a compaction only moves the compact revision; from then on reads below it are refused.
//! [`State::compact_step`] deletes what nobody can read any more, whenever there is time. It is
//! local work: members differ in how far they are, and answer the same all the while. After a
//! restart it begins again at the first key, which costs a walk and deletes nothing twice.

use super::State;
use super::error::RequestError;
use super::records;
use super::schema::{self, COMPACT};
use super::write::Pending;
use crate::storage::{Backend, Batch, StorageError};

/// How far history is dropped.
#[derive(Debug)]
pub(super) struct Compaction {
    /// The compact revision; as in etcd -1 until the first compaction.
    pub(super) requested: i64,
    /// Everything unreadable at this revision is deleted.
    pub(super) finished: i64,
    sweep: Option<SweepAt>,
}

/// A deletion under way.
#[derive(Debug)]
struct SweepAt {
    /// The revision it will have finished.
    main: i64,
    /// The key it goes on with.
    from: Box<[u8]>,
}

impl Compaction {
    pub(super) fn new(requested: i64, finished: i64) -> Self {
        assert!(finished <= requested, "nothing is deleted that may still be read");
        Compaction { requested, finished, sweep: None }
    }
}

impl<B: Backend> State<B> {
    /// Applies a compaction.
    pub(super) fn compact(
        &mut self,
        revision: i64,
        pending: &mut Pending,
    ) -> Result<(), RequestError> {
        if revision <= self.compact_revision() {
            return Err(RequestError::Compacted);
        }
        if revision > self.revision() {
            return Err(RequestError::FutureRev);
        }
        let compaction = self.compaction_mut();
        compaction.requested = revision;
        let value = schema::encode_compact(revision, compaction.finished);
        pending.facts.put(COMPACT, value);
        Ok(())
    }

    /// Whether [`State::compact_step`] has something to do now.
    ///
    /// A pinned revision can make it false for a while although history is left to delete.
    pub fn compaction_pending(&self) -> bool {
        match &self.compaction().sweep {
            Some(sweep) => !self.is_held(sweep.main),
            None => self.sweep_target().is_some(),
        }
    }

    /// Deletes up to about `keys_max` records that nobody can read; true when nothing is left.
    ///
    /// Call it under the write lock, now and then, until it answers true.
    pub fn compact_step(&mut self, keys_max: usize) -> Result<bool, StorageError> {
        if !self.compaction_pending() {
            return Ok(true);
        }
        let begun = self.compaction_mut().sweep.take();
        let sweep = begun.unwrap_or_else(|| {
            let main = self.sweep_target().expect("there is something to do");
            SweepAt { main, from: Box::default() }
        });
        let main = sweep.main;
        let mut batch = Batch::default();
        let stopped = self.index_mut().compact(main, &sweep.from, keys_max, |version| {
            records::remove(&mut batch, version);
        });
        let compaction = self.compaction_mut();
        compaction.sweep = stopped.map(|from| SweepAt { main, from });
        if compaction.sweep.is_none() {
            compaction.finished = main;
            let value = schema::encode_compact(compaction.requested, main);
            batch.put(COMPACT, value);
        }
        if !batch.is_empty() {
            self.backend().commit(batch)?;
        }
        Ok(!self.compaction_pending())
    }

    /// Whether somebody needs what a deletion up to `main` would take away.
    fn is_held(&self, main: i64) -> bool {
        self.pins().lowest().is_some_and(|pinned| pinned < main)
    }

    /// The revision up to which history may be deleted now, if that is further than before.
    fn sweep_target(&self) -> Option<i64> {
        let requested = self.compact_revision();
        let main = self.pins().lowest().map_or(requested, |pinned| pinned.min(requested));
        (main > self.compaction().finished).then_some(main)
    }
}
