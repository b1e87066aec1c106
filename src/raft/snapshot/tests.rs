//! The bytes of a snapshot stream: those of format 1 are sent, and can be received.

use prost::Message;

use super::*;
use crate::data_dir::DataDir;
use crate::pb::etcdserverpb::{CompactionRequest, LeaseGrantRequest, PutRequest};
use crate::pb::quorate::command::command::Body as Order;
use crate::pb::quorate::command::{Command, LeaseRenew, PublishMember};
use crate::raft::SledHome;
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
            Body::Footer(footer) => {
                let Staged(staged) = incoming.finish(&footer, told, OPTIONS)?;
                return Ok(staged.into_inner().state);
            }
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

/// A reception that failed left its directory, up to the size of the whole state, until the next
/// snapshot was installed. The leader tries again at once, so the disk became full.
#[test]
fn receptions_that_fail_leave_nothing_behind() {
    let state = store();
    let meta = meta_of(&state).unwrap();
    let mut bytes = Bytes::from(sent(&state));
    let mut frames = Vec::new();
    let footer = loop {
        match SnapshotFrame::decode_length_delimited(&mut bytes).unwrap().body.unwrap() {
            Body::Records(records) => frames.push(records),
            Body::Footer(footer) => break footer,
            Body::Header(_) => unreachable!("the header is made elsewhere"),
        }
    };
    let dir = tempfile::TempDir::new().unwrap();
    let home = SledHome::new(DataDir::open(dir.path(), None).unwrap(), 1 << 20);
    let names = || {
        let entries = std::fs::read_dir(dir.path().join("member/state")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let receive = || {
        let begun = Incoming::begin(&home).unwrap();
        frames.iter().fold(begun, |incoming, records| incoming.take(records.clone()).unwrap())
    };
    let nothing = ["CURRENT", "state-1"];

    for _ in 0..3 {
        // The stream breaks, as seen on a thread that must not wait.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let incoming = Aside::new(receive());
        assert_eq!(names(), ["CURRENT", "state-1", "state-2"]);
        runtime.block_on(async { drop(incoming) });
        drop(runtime);
        assert_eq!(names(), nothing);
    }
    let mut damaged = frames[0].clone();
    damaged.checksum ^= 1;
    assert!(Incoming::begin(&home).unwrap().take(damaged).is_err());
    assert_eq!(names(), nothing);
    assert!(receive().finish(&SnapshotFooter::default(), &meta, OPTIONS).is_err());
    assert_eq!(names(), nothing);
    assert!(receive().finish(&footer, &SnapshotMeta::default(), OPTIONS).is_err());
    assert_eq!(names(), nothing);

    // It stays as long as raft may adopt it.
    let staged = receive().finish(&footer, &meta, OPTIONS).unwrap();
    home.remove_replaced().unwrap();
    assert_eq!(names(), ["CURRENT", "state-1", "state-2"]);
    drop(staged);
    assert_eq!(names(), nothing);
    let Staged(staged) = receive().finish(&footer, &meta, OPTIONS).unwrap();
    let Complete { state, adopt } = staged.into_inner();
    adopt().unwrap();
    drop(state);
    home.remove_replaced().unwrap();
    assert_eq!(names(), ["CURRENT", "state-2"]);
}
