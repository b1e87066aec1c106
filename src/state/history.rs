//! The events of past revisions, for watchers that begin in the past or fell behind.
//!
//! The storage is read without the lock of the state; what only the index knows, the places of
//! previous pairs, is looked up in a second, short step, and only by those who want it.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::State;
use super::answer::Event;
use super::error::RequestError;
use super::frames::put_pair;
use super::mvcc::record::{self, Pair};
use super::pins::Pin;
use super::records;
use super::revision::Revision;
use super::schema::{self, damaged};
use crate::storage::{Backend, StorageError};

/// A walk through the events of a span of revisions.
#[derive(Debug)]
pub struct History {
    next: i64,
    last: i64,
    _pin: Pin,
}

/// How much of the history one step reads; all events of a revision always stay together.
#[derive(Debug, Clone, Copy)]
pub struct HistoryStep {
    /// Events to stop behind.
    pub events_max: usize,
    /// Bytes of encoded pairs to stop behind.
    pub bytes_max: usize,
}

impl History {
    /// The events from revision `start` on, up to the current one. Pins the history it walks.
    pub fn new<B: Backend>(state: &State<B>, start: i64) -> Result<Self, RequestError> {
        if start < state.compact_revision() {
            return Err(RequestError::Compacted);
        }
        let pin = state.pins().pin(state.compact_revision());
        Ok(History { next: start, last: state.revision(), _pin: pin })
    }

    /// The last revision the walk will come to.
    pub fn last(&self) -> i64 {
        self.last
    }

    /// The revision with which the next step begins.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// The events of the next revisions, perhaps none where history was compacted; nothing at the
    /// end. Where their previous pairs are is not filled in: see [`History::find_prev`].
    ///
    /// `backend` is that of the state; no lock is needed. May block on the storage.
    pub fn next_events<B: Backend>(
        &mut self,
        backend: &B,
        step: HistoryStep,
    ) -> Result<Option<Vec<Event>>, StorageError> {
        if self.next > self.last {
            return Ok(None);
        }
        // A revision has at least one event, so that no more revisions than this are needed.
        let revisions = i64::try_from(step.events_max).unwrap_or(i64::MAX).max(1);
        let behind = self.next.saturating_add(revisions).min(self.last + 1);
        let start = schema::record_key(Revision::first(self.next));
        let end = schema::record_key(Revision::first(behind));
        let mut events: Vec<Event> = Vec::new();
        let (mut torn, mut bytes) = (false, 0);
        self.next = behind;
        records::scan(backend, &start, &end, &mut |revision, value| {
            let Some(event) = read_event(revision, value) else {
                torn = true;
                return ControlFlow::Break(());
            };
            let main = event.revision.main;
            let is_next = events.last().is_some_and(|last| last.revision.main < main);
            if is_next && (events.len() >= step.events_max || bytes >= step.bytes_max) {
                self.next = main;
                return ControlFlow::Break(());
            }
            bytes += event.kv.len();
            events.push(event);
            ControlFlow::Continue(())
        })?;
        if torn {
            return Err(damaged("a record is malformed"));
        }
        Ok(Some(events))
    }

    /// Reads the previous pairs of `events`, the last step's, where [`History::find_prev`] says.
    ///
    /// Pairs of a few bytes may replace large ones: the step ends behind the revision with which
    /// `events` have `bytes_max` and more; what came after is left to the next step.
    ///
    /// May block on the storage; needs no lock.
    pub fn read_prev<B: Backend>(
        &mut self,
        backend: &B,
        events: &mut Vec<Event>,
        bytes_max: usize,
    ) -> Result<(), StorageError> {
        let (mut bytes, mut last) = (0, None);
        for at in 0..events.len() {
            let event = &mut events[at];
            let main = event.revision.main;
            if bytes >= bytes_max && last.is_some_and(|last| last < main) {
                self.next = main;
                events.truncate(at);
                return Ok(());
            }
            last = Some(main);
            if let Some(prev) = event.prev {
                // None if it was compacted meanwhile: as in etcd it is not told then.
                event.prev_kv = pair_at(backend, prev)?;
                event.prev = event.prev.filter(|_| event.prev_kv.is_some());
            }
            bytes += event.kv.len() + event.prev_kv.as_ref().map_or(0, Bytes::len);
        }
        Ok(())
    }

    /// Fills in where the previous pairs of `events` are recorded.
    pub fn find_prev<'e, B: Backend>(
        state: &State<B>,
        events: impl IntoIterator<Item = &'e mut Event>,
    ) {
        for event in events {
            // As in etcd: what was compacted is not told as the previous pair.
            let before = event.revision.main - 1;
            let is_readable = before >= state.compact_revision();
            let entry = state.index().get(&event.key).filter(|_| is_readable);
            let version = entry.and_then(|entry| entry.live_at(before));
            event.prev = version.map(|version| version.revision());
        }
    }
}

fn read_event(revision: Revision, value: &[u8]) -> Option<Event> {
    let (kind, kv) = record::split(value)?;
    let pair = Pair::decode(kv)?;
    let kv = Bytes::copy_from_slice(kv);
    Some(Event {
        kind,
        key: record::key_of(&kv),
        kv,
        revision,
        create_revision: pair.create_revision,
        version: pair.version,
        prev: None,
        prev_kv: None,
    })
}

/// The encoded pair that was put at `revision`; none if it has been compacted.
///
/// May block on the storage; needs no lock.
fn pair_at<B: Backend>(backend: &B, revision: Revision) -> Result<Option<Bytes>, StorageError> {
    let record = records::get(backend, revision)?;
    record.map(|record| put_pair(&record, revision)).transpose()
}
