//! Dropping history: at once for readers, in small steps for the disk.
//!
//! Applying a compaction only moves the compact revision; from then on reads below it are refused.
//! [`State::compact_step`] deletes what nobody can read any more, whenever there is time. It is
//! local work: members differ in how far they are, and answer the same all the while. After a
//! restart it begins again at the first key, which costs a walk and deletes nothing twice.
//!
//! The index is walked key by key; the records are deleted in the order of their revisions, in which
//! they lie in the storage. In the order of the keys each deletion would hit another leaf, and every
//! flush would write all of them again. So all are gathered before the first goes ([`doomed`]).

mod doomed;

use doomed::Doomed;

use super::State;
use super::error::RequestError;
use super::records;
use super::schema::{self, COMPACT, damaged};
use super::write::Pending;
use crate::mutants;
use crate::storage::{Backend, Batch, StorageError};

/// The compact revision of a store that was never compacted. As in etcd.
pub(super) const COMPACT_REVISION_NONE: i64 = -1;

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
    /// The key that the walk through the index goes on with; none when it has seen all.
    from: Option<Box<[u8]>>,
    /// Records that left the index and are still stored.
    doomed: Doomed,
}

impl SweepAt {
    fn new(main: i64) -> SweepAt {
        SweepAt { main, from: Some(Box::default()), doomed: Doomed::default() }
    }

    fn is_done(&self) -> bool {
        self.from.is_none() && self.doomed.is_empty()
    }
}

impl Compaction {
    /// What a store at `revision` says about its compactions.
    pub(super) fn read(
        (requested, finished): (i64, i64),
        revision: i64,
    ) -> Result<Self, StorageError> {
        let is_sound =
            COMPACT_REVISION_NONE <= finished && finished <= requested && requested <= revision;
        if !is_sound {
            return Err(damaged("mcompact contradicts the revision, or itself"));
        }
        Ok(Compaction { requested, finished, sweep: None })
    }
}

/// How far a call of [`State::compact_step`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompactStep {
    /// Everything below the compact revision is deleted.
    Done,
    /// There is more to delete.
    More,
    /// There is more to delete, but somebody still reads it: [`State::when_unpinned`] tells.
    Held,
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

    /// Calls `wake` once when a deletion that was held may go on.
    pub fn when_unpinned(&self, wake: Box<dyn FnOnce() + Send>) {
        self.pins().when_raised(wake);
    }

    /// Looks for up to about `keys_max` records that nobody can read, or deletes so many.
    ///
    /// Call it under the write lock, now and then, while there is more.
    pub fn compact_step(&mut self, keys_max: usize) -> Result<CompactStep, StorageError> {
        if !self.compaction_pending() {
            return Ok(self.compact_progress());
        }
        let begun = self.compaction_mut().sweep.take();
        let mut sweep = begun.unwrap_or_else(|| {
            SweepAt::new(self.sweep_target().expect("there is something to do"))
        });
        let mut batch = Batch::default();
        match sweep.from.take() {
            Some(from) if !sweep.doomed.is_full() => {
                let doomed = &mut sweep.doomed;
                sweep.from = self.index_mut().compact(sweep.main, &from, keys_max, |version| {
                    doomed.add(version.revision(), version.len);
                });
            }
            from => {
                sweep.from = from;
                for _ in 0..keys_max.max(1) {
                    let Some((revision, len)) = sweep.doomed.take_first() else { break };
                    records::remove(&mut batch, revision, len);
                }
            }
        }
        let compaction = self.compaction_mut();
        if sweep.is_done() {
            compaction.finished = sweep.main;
            let value = schema::encode_compact(compaction.requested, sweep.main);
            batch.put(COMPACT, value);
        } else {
            compaction.sweep = Some(sweep);
        }
        if !batch.is_empty() {
            self.backend().commit(batch)?;
        }
        Ok(self.compact_progress())
    }

    /// Records that [`State::compact_step`] has found and not deleted yet; 0 while it still looks.
    pub fn compact_left(&self) -> u64 {
        let sweep = self.compaction().sweep.as_ref();
        sweep.filter(|sweep| sweep.from.is_none()).map_or(0, |sweep| sweep.doomed.len())
    }

    fn compact_progress(&self) -> CompactStep {
        if self.compaction_pending() {
            CompactStep::More
        } else if self.compaction().finished < self.compact_revision() {
            CompactStep::Held
        } else {
            CompactStep::Done
        }
    }

    /// Whether somebody needs what a deletion up to `main` would take away.
    fn is_held(&self, main: i64) -> bool {
        let lowest = self.pins().lowest().filter(|_| !mutants::is_on("mutant_compact_below_pin"));
        lowest.is_some_and(|pinned| pinned < main)
    }

    /// The revision up to which history may be deleted now, if that is further than before.
    fn sweep_target(&self) -> Option<i64> {
        let requested = self.compact_revision();
        let lowest = self.pins().lowest().filter(|_| !mutants::is_on("mutant_compact_below_pin"));
        let main = lowest.map_or(requested, |pinned| pinned.min(requested));
        (main > self.compaction().finished).then_some(main)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::pb::etcdserverpb::{CompactionRequest, PutRequest};
    use crate::pb::quorate::command::{Command, command::Body};
    use crate::state::{Options, Position, SnapshotReader};
    use crate::storage::memory::Memory;

    fn state_of_overwrites() -> State<Memory> {
        let memory = Arc::new(Memory::new());
        let mut state = State::open(memory, Options { value_cache_bytes: 0 }).unwrap();
        let put = PutRequest { key: "a".into(), value: "1".into(), ..PutRequest::default() };
        let compact = CompactionRequest { revision: 6, physical: true };
        let mut commands = vec![Command { body: Some(Body::Put(put)) }; 5];
        commands.push(Command { body: Some(Body::Compact(compact)) });
        state.apply(Position { index: 1, term: 1, leader: 1 }, 0, &commands).unwrap();
        state
    }

    fn steps(state: &mut State<Memory>) -> CompactStep {
        loop {
            match state.compact_step(2).unwrap() {
                CompactStep::More => {}
                end => return end,
            }
        }
    }

    /// While a snapshot was sent, a physical compaction was reported as finished, and the deletion
    /// did not go on before the next compaction or start.
    #[test]
    fn deletion_that_is_held_says_so_and_is_woken() {
        let mut state = state_of_overwrites();
        let woken = Arc::new(AtomicUsize::new(0));
        let (first, second) = (SnapshotReader::new(&state), SnapshotReader::new(&state));
        assert_eq!(steps(&mut state), CompactStep::Held);
        let seen = Arc::clone(&woken);
        state.when_unpinned(Box::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        }));
        drop(first);
        assert_eq!(woken.load(Ordering::Relaxed), 0, "the second still reads");
        drop(second);
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert_eq!(steps(&mut state), CompactStep::Done);
    }

    #[test]
    fn wake_without_a_pin_comes_at_once() {
        let state = state_of_overwrites();
        let (sender, woken) = std::sync::mpsc::channel();
        state.when_unpinned(Box::new(move || sender.send(()).unwrap()));
        woken.try_recv().unwrap();
    }
}
