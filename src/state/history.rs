//! The events of past revisions, for watchers that begin in the past or fell behind.

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

    /// The events of the next revisions, at least `events_max` if there are as many, and always
    /// all events of a revision; none at the end.
    pub fn next_events<B: Backend>(
        &mut self,
        state: &State<B>,
        events_max: usize,
    ) -> Result<Option<Vec<Event>>, StorageError> {
        if self.next > self.last {
            return Ok(None);
        }
        let start = schema::record_key(Revision::first(self.next));
        let end = schema::record_key(Revision::first(self.last + 1));
        let mut events: Vec<Event> = Vec::new();
        let mut torn = false;
        self.next = self.last + 1;
        records::scan(&**state.backend(), &start, &end, &mut |revision, value| {
            let Some(event) = read_event(state, revision, value) else {
                torn = true;
                return ControlFlow::Break(());
            };
            let main = event.revision.main;
            let is_next = events.last().is_some_and(|last| last.revision.main < main);
            if events.len() >= events_max && is_next {
                self.next = main;
                return ControlFlow::Break(());
            }
            events.push(event);
            ControlFlow::Continue(())
        })?;
        if torn {
            return Err(damaged("a record is malformed"));
        }
        Ok(Some(events).filter(|events| !events.is_empty()))
    }
}

fn read_event<B: Backend>(state: &State<B>, revision: Revision, value: &[u8]) -> Option<Event> {
    let (kind, kv) = record::split(value)?;
    let pair = Pair::decode(kv)?;
    let kv = Bytes::copy_from_slice(kv);
    // As in etcd: what was compacted is not told as the previous pair.
    let before = revision.main - 1;
    let entry = state.index().get(pair.key).filter(|_| before >= state.compact_revision());
    Some(Event {
        kind,
        key: record::key_of(&kv),
        kv,
        revision,
        create_revision: pair.create_revision,
        version: pair.version,
        prev: entry.and_then(|entry| entry.live_at(before)).map(|version| version.revision()),
    })
}

/// The encoded pair that was put at `revision`; none if it has been compacted.
///
/// May block on the storage; needs no lock.
pub fn pair_at<B: Backend>(backend: &B, revision: Revision) -> Result<Option<Bytes>, StorageError> {
    let record = records::get(backend, revision)?;
    record.map(|record| put_pair(&record, revision)).transpose()
}
