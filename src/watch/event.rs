//! A change as all its watchers share it, and as it is written to each of them.
//!
//! **Invariant:** who holds an event holds its own bytes and no others: a slow stream is charged with
//! what its queue keeps in memory.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::state::{Event, EventKind};

/// Field 11 of `WatchResponse`, length-delimited.
const TAG_EVENTS: u8 = 0x5a;
// Tags of mvccpb.Event.
const TAG_TYPE: u8 = 0x08;
const TAG_KV: u8 = 0x12;
const TAG_PREV_KV: u8 = 0x1a;
const TYPE_DELETE: u8 = 1;

/// What one event costs in memory besides its pairs: itself, and who counts its holders.
const EVENT_BYTES: usize = size_of::<Event>() + 2 * size_of::<usize>();

/// Tag and length of an event, its kind, tag and length of its pair.
const HEAD_BYTES_MAX: usize = 1 + 10 + 2 + PAIR_HEAD_BYTES_MAX;

/// Tag and length of a pair.
const PAIR_HEAD_BYTES_MAX: usize = 1 + 10;

/// An event; its copies share it.
#[derive(Debug, Clone)]
pub struct SharedEvent(Arc<Event>);

impl SharedEvent {
    fn new(event: Event) -> Self {
        SharedEvent(Arc::new(event))
    }

    /// The change itself.
    pub fn event(&self) -> &Event {
        &self.0
    }

    /// Whether its previous pair can be told: it is in memory, or there is none to tell.
    pub(super) fn has_prev(&self) -> bool {
        // As in etcd: an event that creates its key has no previous pair.
        self.0.is_create() || self.0.prev.is_none() || self.0.prev_kv.is_some()
    }

    /// The event as a field of `WatchResponse`, tag and length included; with the previous pair if
    /// it happened after revision `prev_after`.
    pub fn frame(&self, prev_after: i64) -> Frame<'_> {
        let with_prev = self.0.revision.main > prev_after && !self.0.is_create();
        Frame::new(&self.0, self.0.prev_kv.as_ref().filter(|_| with_prev))
    }

    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        EVENT_BYTES + self.0.kv.len() + self.0.prev_kv.as_ref().map_or(0, Bytes::len)
    }
}

/// An event as it is sent: its pairs as they are, and what stands before them.
#[derive(Debug)]
pub struct Frame<'a> {
    head: Head<HEAD_BYTES_MAX>,
    kv: &'a Bytes,
    prev: Option<(Head<PAIR_HEAD_BYTES_MAX>, &'a Bytes)>,
}

/// A few bytes.
#[derive(Debug)]
struct Head<const BYTES_MAX: usize> {
    bytes: [u8; BYTES_MAX],
    len: usize,
}

impl<const BYTES_MAX: usize> Head<BYTES_MAX> {
    fn new(write: impl FnOnce(&mut &mut [u8])) -> Self {
        let mut bytes = [0; BYTES_MAX];
        let mut rest = &mut bytes[..];
        write(&mut rest);
        let len = BYTES_MAX - rest.len();
        Head { bytes, len }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<'a> Frame<'a> {
    fn new(event: &'a Event, prev_kv: Option<&'a Bytes>) -> Self {
        let field_bytes = |kv: &Bytes| 1 + encoded_len_varint(kv.len() as u64) + kv.len();
        let is_delete = event.kind == EventKind::Delete;
        let length =
            2 * usize::from(is_delete) + field_bytes(&event.kv) + prev_kv.map_or(0, field_bytes);
        let head = Head::new(|out| {
            out.put_u8(TAG_EVENTS);
            encode_varint(length as u64, out);
            if is_delete {
                out.put_slice(&[TAG_TYPE, TYPE_DELETE]);
            }
            put_pair_head(out, TAG_KV, &event.kv);
        });
        let prev = |kv| (Head::new(|out| put_pair_head(out, TAG_PREV_KV, kv)), kv);
        Frame { head, kv: &event.kv, prev: prev_kv.map(prev) }
    }

    /// How many bytes it has.
    pub fn bytes_len(&self) -> usize {
        let prev = self.prev.as_ref().map_or(0, |(head, kv)| head.len + kv.len());
        self.head.len + self.kv.len() + prev
    }

    /// What it is made of, in order: a few bytes to be copied, and the pair behind them.
    pub fn parts(&self) -> impl Iterator<Item = (&[u8], &Bytes)> + Clone {
        let prev = self.prev.as_ref().map(|(head, kv)| (head.as_slice(), *kv));
        std::iter::once((self.head.as_slice(), self.kv)).chain(prev)
    }
}

fn put_pair_head(out: &mut &mut [u8], tag: u8, kv: &Bytes) {
    out.put_u8(tag);
    encode_varint(kv.len() as u64, out);
}

/// Events that were published or read together, in revision order, revisions whole.
#[derive(Debug)]
pub struct Batch {
    events: Vec<SharedEvent>,
    bytes: usize,
}

impl Batch {
    /// `events` must be in revision order.
    pub(super) fn new(events: Vec<Event>) -> Arc<Batch> {
        let events: Vec<SharedEvent> = events.into_iter().map(SharedEvent::new).collect();
        let bytes = events.iter().map(SharedEvent::bytes).sum();
        Arc::new(Batch { events, bytes })
    }

    /// The events.
    pub fn events(&self) -> &[SharedEvent] {
        &self.events
    }

    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn first(&self) -> Option<i64> {
        self.events.first().map(|event| event.0.revision.main)
    }

    pub(super) fn last(&self) -> Option<i64> {
        self.events.last().map(|event| event.0.revision.main)
    }
}

/// The events of one delivery: nearly always one, so that it needs no list.
#[derive(Debug, Clone)]
pub enum Events {
    /// One event.
    One(SharedEvent),
    /// Several in revision order.
    Many(Vec<SharedEvent>),
}

impl Events {
    /// The events in revision order; never none.
    pub fn as_slice(&self) -> &[SharedEvent] {
        match self {
            Events::One(event) => std::slice::from_ref(event),
            Events::Many(events) => events,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::WatchResponse;
    use crate::pb::mvccpb::KeyValue;
    use crate::state::Revision;

    #[test]
    fn frames_read_as_prost_reads_them() {
        let kv = KeyValue { key: "k".into(), mod_revision: 5, ..KeyValue::default() };
        let prev = KeyValue { value: vec![7; 300].into(), ..kv.clone() };
        let event = Event {
            kind: EventKind::Delete,
            key: "k".into(),
            kv: kv.encode_to_vec().into(),
            revision: Revision::first(5),
            create_revision: 0,
            version: 0,
            prev: Some(Revision::first(4)),
            prev_kv: Some(prev.encode_to_vec().into()),
        };
        let shared = SharedEvent::new(event);
        for (prev_after, with_prev) in [(5, false), (4, true)] {
            let frame = shared.frame(prev_after);
            let bytes =
                frame.parts().flat_map(|(head, kv)| [head, kv]).collect::<Vec<_>>().concat();
            assert_eq!(bytes.len(), frame.bytes_len());
            let response = WatchResponse::decode(&bytes[..]).unwrap();
            assert_eq!(response.events[0].r#type, 1);
            assert_eq!(response.events[0].kv.as_ref(), Some(&kv));
            assert_eq!(response.events[0].prev_kv.as_ref(), with_prev.then_some(&prev));
        }
    }
}
