//! Watches on this member: its state feeds them, and is their history.

use std::sync::Arc;

use super::compact::Compactor;
use super::{Member, Shard};
use crate::limits;
use crate::raft::Shared;
use crate::state::{Event, History, HistoryStep};
use crate::storage::StorageError;
use crate::watch::{Read, Revisions, Source, Totals, WatchStream};

impl Member {
    /// A stream of watchers on the thread of `shard`.
    pub fn watch(&self, shard: &Shard) -> WatchStream {
        WatchStream::open(shard.hub(), limits::WATCH_QUEUE_BYTES_MAX)
    }

    /// What a new watcher has to know of the state.
    pub fn revisions(&self) -> Revisions {
        let state = self.state();
        Revisions { current: state.revision(), compact: state.compact_revision() }
    }

    /// What is watched, for the metrics.
    pub fn watch_totals(&self) -> Totals {
        self.feed.totals()
    }
}

/// The history of the state as applied here.
pub(super) struct StateHistory {
    pub(super) shared: Arc<Shared>,
    pub(super) compactor: Arc<Compactor>,
    pub(super) on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Source for StateHistory {
    fn read(&self, from: i64, prev_of: &dyn Fn(&[u8]) -> bool) -> Result<Read, StorageError> {
        let read = self.read_pinned(from, prev_of);
        // The pin may have held back what was to be deleted.
        self.compactor.wake();
        read.inspect_err(|error| (self.on_fatal)(&error.to_string()))
    }
}

impl StateHistory {
    fn read_pinned(
        &self,
        from: i64,
        prev_of: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Read, StorageError> {
        let (mut walk, backend) = {
            let state = self.shared.state.read();
            let Ok(walk) = History::new(&state, from) else {
                return Ok(Read::Compacted { revision: state.compact_revision() });
            };
            (walk, Arc::clone(state.backend()))
        };
        let step = HistoryStep {
            events_max: limits::WATCH_CHUNK_EVENTS_MAX,
            bytes_max: limits::WATCH_CHUNK_BYTES_MAX,
        };
        let mut events = walk.next_events(&*backend, step)?.unwrap_or_default();
        let is_wanted = |event: &&mut Event| !event.is_create() && prev_of(&event.key);
        History::find_prev(&self.shared.state.read(), events.iter_mut().filter(is_wanted));
        walk.read_prev(&*backend, &mut events, step.bytes_max)?;
        Ok(Read::Chunk { events, next: walk.next() })
    }
}
