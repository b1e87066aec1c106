//! The bytes of a snapshot stream: those of format 1 are sent, and can be received.

use prost::Message;

use super::*;
use crate::pb::etcdserverpb::{CompactionRequest, LeaseGrantRequest, PutRequest};
use crate::pb::quorate::command::command::Body as Order;
use crate::pb::quorate::command::{Command, LeaseRenew, PublishMember};
use crate::state::{Options, Position};
use crate::storage::memory::Memory;

const OPTIONS: Options = Options { value_cache_bytes: 1 << 20 };

fn commands() -> Vec<Command> {
    let put = |key: &'static str, length, lease| {
        let (key, value) = (Bytes::from_static(key.as_bytes()), vec![b'v'; length].into());
        Order::Put(PutRequest { key, value, lease, ..PutRequest::default() })
    };
    let member = PublishMember {
        member_id: 0xab,
        name: "a".to_owned(),
        client_urls: vec!["http://a:2379".to_owned()],
    };
    let orders = [
        Order::PublishMember(member),
        Order::LeaseGrant(LeaseGrantRequest { id: -7, ttl: 60 }),
        put("short", 3, -7),
        put("long", 2000, 0),
        put("short", 4, -7),
        Order::Compact(CompactionRequest { revision: 3, physical: false }),
        Order::LeaseRenew(LeaseRenew { ids: vec![-7] }),
    ];
    orders.map(|body| Command { body: Some(body) }).into()
}

fn store() -> Store {
    let backend = Arc::new(Box::new(Memory::new()) as Box<dyn Backend>);
    let mut state = State::open(backend, OPTIONS).unwrap();
    let stored = codec::encode_stored_membership(&StoredMembership::default());
    state.apply_membership(Position { index: 0, term: 0, leader: 0 }, stored).unwrap();
    for (command, index) in commands().iter().zip(1..) {
        let at = Position { index, term: 2, leader: 0xab };
        state.apply(at, 1_795_000_000_000 + index, [command]).unwrap();
    }
    state
}

/// Frames with their lengths in front.
fn sent(state: &Store) -> Vec<u8> {
    let live = Live {
        reader: SnapshotReader::new(state),
        backend: Arc::clone(state.backend()),
        log_hold: Arc::default(),
    };
    let mut sender =
        Some(Sender { live: Box::new(live), footer: SnapshotFooter::default(), done: false });
    let mut bytes = Vec::new();
    while let Some(next) = sender {
        let frame;
        (frame, sender) = next.next().unwrap();
        bytes.extend(frame.encode_length_delimited_to_vec());
    }
    bytes
}

fn receive(mut bytes: Bytes, told: &SnapshotMeta) -> Result<Store, StorageError> {
    let backend = Arc::new(Box::new(Memory::new()) as Box<dyn Backend>);
    let adopt = Box::new(|| Ok(()));
    let mut incoming = Incoming { backend, adopt, footer: SnapshotFooter::default() };
    loop {
        match SnapshotFrame::decode_length_delimited(&mut bytes).unwrap().body.unwrap() {
            Body::Records(records) => incoming = incoming.take(records)?,
            Body::Footer(footer) => return Ok(incoming.finish(&footer, told, OPTIONS)?.state),
            Body::Header(_) => unreachable!("the header is made elsewhere"),
        }
    }
}

/// `QUORATE_BLESS=1` writes the fixture if it is not there; an old one never changes.
#[test]
fn frames_of_format_1_are_sent_and_received() {
    let state = store();
    let bytes = sent(&state);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/format-1/snapshot.frames");
    if std::env::var_os("QUORATE_BLESS").is_some() && !std::path::Path::new(path).exists() {
        std::fs::write(path, &bytes).unwrap();
    }
    let fixture = std::fs::read(path).unwrap();
    assert!(bytes == fixture, "the snapshot's format has changed");
    let meta = meta_of(&state).unwrap();
    let received = receive(fixture.into(), &meta).unwrap();
    assert_eq!(received.applied(), state.applied());
    assert!(received.leases().eq(state.leases()));
    assert!(sent(&received) == bytes, "what was received is sent on as it came");
}

/// No checksum covers the header: a snapshot of another position was installed as if it were the
/// one announced, and the member panicked.
#[test]
fn a_snapshot_of_another_position_than_announced_is_refused() {
    let state = store();
    let mut meta = meta_of(&state).unwrap();
    meta.last_log_id.as_mut().unwrap().index += 1;
    assert!(receive(sent(&state).into(), &meta).is_err());
}
