//! A change as all its watchers share it: encoded once for those who want the previous pair, and
//! once for the others.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::state::{Event, EventKind};

/// Field 11 of `WatchResponse`, length-delimited.
const TAG_EVENTS: u8 = 0x5a;
// Tags of mvccpb.Event.
const TAG_TYPE: u8 = 0x08;
const TAG_KV: u8 = 0x12;
const TAG_PREV_KV: u8 = 0x1a;
const TYPE_DELETE: u8 = 1;

/// What one event costs in memory besides its pairs.
const EVENT_BYTES: usize = size_of::<SharedEvent>();

/// An event and its encodings.
#[derive(Debug)]
pub struct SharedEvent {
    event: Event,
    frame: OnceLock<Bytes>,
    frame_with_prev: OnceLock<Bytes>,
}

impl SharedEvent {
    fn new(event: Event) -> Self {
        SharedEvent { event, frame: OnceLock::new(), frame_with_prev: OnceLock::new() }
    }

    /// The change itself.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Whether its previous pair can be told: it is in memory, or there is none to tell.
    pub(super) fn has_prev(&self) -> bool {
        // As in etcd: an event that creates its key has no previous pair.
        self.event.is_create() || self.event.prev.is_none() || self.event.prev_kv.is_some()
    }

    /// The event as a field of `WatchResponse`, tag and length included; with the previous pair if
    /// it happened after revision `prev_after`.
    pub fn frame(&self, prev_after: i64) -> &Bytes {
        let with_prev = self.event.revision.main > prev_after;
        if with_prev && !self.event.is_create() && self.event.prev_kv.is_some() {
            self.frame_with_prev.get_or_init(|| encode(&self.event, self.event.prev_kv.as_ref()))
        } else {
            self.frame.get_or_init(|| encode(&self.event, None))
        }
    }

    /// About the bytes that a watcher is sent.
    pub(super) fn sent_bytes(&self) -> usize {
        self.event.kv.len() + self.event.prev_kv.as_ref().map_or(0, Bytes::len)
    }
}

fn encode(event: &Event, prev_kv: Option<&Bytes>) -> Bytes {
    let field_bytes = |kv: &Bytes| 1 + encoded_len_varint(kv.len() as u64) + kv.len();
    let is_delete = event.kind == EventKind::Delete;
    let length =
        2 * usize::from(is_delete) + field_bytes(&event.kv) + prev_kv.map_or(0, field_bytes);
    let mut out = BytesMut::with_capacity(1 + encoded_len_varint(length as u64) + length);
    out.put_u8(TAG_EVENTS);
    encode_varint(length as u64, &mut out);
    if is_delete {
        out.put_slice(&[TAG_TYPE, TYPE_DELETE]);
    }
    for (tag, kv) in [(TAG_KV, Some(&event.kv)), (TAG_PREV_KV, prev_kv)] {
        if let Some(kv) = kv {
            out.put_u8(tag);
            encode_varint(kv.len() as u64, &mut out);
            out.put_slice(kv);
        }
    }
    out.freeze()
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
        let pairs: usize = events.iter().map(SharedEvent::sent_bytes).sum();
        let bytes = pairs + events.len() * EVENT_BYTES;
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
        self.events.first().map(|event| event.event.revision.main)
    }

    pub(super) fn last(&self) -> Option<i64> {
        self.events.last().map(|event| event.event.revision.main)
    }
}

/// One event of a batch.
#[derive(Debug, Clone)]
pub struct EventRef {
    batch: Arc<Batch>,
    at: u32,
}

impl EventRef {
    pub(super) fn new(batch: &Arc<Batch>, at: usize) -> Self {
        let at = u32::try_from(at).expect("a batch is one log entry or a chunk");
        EventRef { batch: Arc::clone(batch), at }
    }

    /// The event.
    pub fn get(&self) -> &SharedEvent {
        &self.batch.events[self.at as usize]
    }
}

/// The events of one delivery: nearly always one, so that it needs no list.
#[derive(Debug, Clone)]
pub enum Events {
    /// One event.
    One(EventRef),
    /// Several in revision order.
    Many(Vec<EventRef>),
}

impl Events {
    /// The events in revision order; never none.
    pub fn as_slice(&self) -> &[EventRef] {
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
            let response = WatchResponse::decode(shared.frame(prev_after).clone()).unwrap();
            assert_eq!(response.events[0].r#type, 1);
            assert_eq!(response.events[0].kv.as_ref(), Some(&kv));
            assert_eq!(response.events[0].prev_kv.as_ref(), with_prev.then_some(&prev));
        }
        assert_eq!(shared.frame(4).as_ptr(), shared.frame(4).as_ptr());
    }
}
