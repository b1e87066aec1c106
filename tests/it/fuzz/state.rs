//! Commands out of the log, and what a storage or a snapshot says that the state is.
//!
//! Whatever can be decoded is applied or refused, the same on two states with different caches; what
//! came of it opens again as the same state. A storage with other pairs than ours opens with an
//! error, or as a state that works.

use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use prost::Message;
use quorate::pb::etcdserverpb::compare::TargetUnion;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use quorate::pb::quorate::command::command::Body;
use quorate::pb::quorate::command::{
    Command, Group, LeaseExpire, LeaseRenew, Proposal, PublishMember,
};
use quorate::state::{
    HashJob, History, HistoryStep, Options, Position, SnapshotReader, SnapshotWriter, State,
};

use crate::support::fuzz::fuzz;
use crate::support::memory::Map;

/// Entries, each still encoded: one that is malformed leaves the others alone.
#[derive(Clone, PartialEq, Message)]
struct Log {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    proposals: Vec<Bytes>,
}

/// What a storage holds.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(message, repeated, tag = "1")]
    pairs: Vec<StoredPair>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredPair {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

fn put(key: &str, value: &str, lease: i64) -> PutRequest {
    let (key, value) = (key.as_bytes().to_vec().into(), value.as_bytes().to_vec().into());
    PutRequest { key, value, lease, ..PutRequest::default() }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn txn() -> TxnRequest {
    let range = RangeRequest {
        key: "a".into(),
        range_end: "\0".into(),
        limit: 3,
        sort_order: 2,
        sort_target: 4,
        max_mod_revision: 9,
        ..RangeRequest::default()
    };
    let compare = Compare {
        result: 1,
        target: 3,
        key: "a".into(),
        target_union: Some(TargetUnion::Value("x".into())),
        range_end: "z".into(),
    };
    let number =
        Compare { target: 2, target_union: Some(TargetUnion::ModRevision(5)), ..compare.clone() };
    let keep = PutRequest { ignore_value: true, prev_kv: true, ..put("a", "", 7) };
    let delete = DeleteRangeRequest { key: "b".into(), range_end: "d".into(), prev_kv: true };
    let inner = TxnRequest {
        compare: vec![number.clone()],
        success: vec![op(Request::RequestPut(put("inner", "yes", 0)))],
        failure: vec![op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: "i".into(),
            range_end: "\0".into(),
            prev_kv: false,
        }))],
    };
    TxnRequest {
        compare: vec![compare, number],
        success: vec![op(Request::RequestPut(keep)), op(Request::RequestRange(range.clone()))],
        failure: vec![
            op(Request::RequestDeleteRange(delete)),
            op(Request::RequestTxn(inner)),
            op(Request::RequestRange(range)),
        ],
    }
}

/// One of each command.
fn bodies() -> Vec<Body> {
    let long = "x".repeat(2000);
    vec![
        Body::LeaseGrant(LeaseGrantRequest { id: 7, ttl: 5 }),
        Body::LeaseGrant(LeaseGrantRequest { id: -8, ttl: 60 }),
        Body::Put(put("a", "1", 7)),
        Body::Put(put("b", &long, 0)),
        Body::Put(PutRequest { ignore_lease: true, prev_kv: true, ..put("a", "2", 0) }),
        Body::Txn(txn()),
        Body::LeaseRenew(LeaseRenew { ids: vec![7, -8, 9] }),
        Body::DeleteRange(DeleteRangeRequest { key: "b".into(), ..Default::default() }),
        Body::PublishMember(PublishMember {
            member_id: 3,
            name: "three".into(),
            client_urls: vec!["http://a:1".into(), "http://b:2".into()],
        }),
        Body::Compact(CompactionRequest { revision: 3, physical: true }),
        Body::LeaseExpire(LeaseExpire { id: 7, expires_at_ms: 6000 }),
        Body::LeaseRevoke(LeaseRevokeRequest { id: -8 }),
        Body::Put(put("c", "3", 0)),
    ]
}

fn proposal(bodies: Vec<Body>, time_unix_ms: u64) -> Proposal {
    let commands = bodies.into_iter().map(|body| Command { body: Some(body) }).collect();
    let group = Group { origin: 3, epoch: 4, sequence: 5, commands };
    Proposal { time_unix_ms, groups: vec![group] }
}

fn logs() -> Vec<Vec<u8>> {
    let each =
        bodies().into_iter().zip(1..).map(|(body, number)| proposal(vec![body], number * 500));
    let apart = Log { proposals: each.map(|one| one.encode_to_vec().into()).collect() };
    let together = Log { proposals: vec![proposal(bodies(), 1000).encode_to_vec().into()] };
    vec![apart.encode_to_vec(), together.encode_to_vec()]
}

fn open(backend: Arc<Map>, value_cache_bytes: usize) -> State<Map> {
    State::open(backend, Options { value_cache_bytes }).unwrap()
}

/// Everything that can be asked of a state.
fn told(state: &State<Map>) -> String {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let mut plan = state.range(&all).unwrap();
    while !plan.is_planned() {
        state.plan_more(&mut plan);
    }
    let pairs = plan.finish(&**state.backend()).unwrap();
    let leases: Vec<_> = state
        .leases()
        .map(|term| {
            (term, state.lease(term.id).unwrap().keys().map(<[u8]>::to_vec).collect::<Vec<_>>())
        })
        .collect();
    let mut hash = HashJob::new(state, 0).unwrap();
    let hash = loop {
        if let Some(answer) = hash.step(state, 50).unwrap() {
            break answer;
        }
    };
    let facts = (state.applied(), state.revision(), state.compact_revision(), state.time_unix_ms());
    format!(
        "{pairs:?} {leases:?} {hash:?} {facts:?} {:?} {:?}",
        state.members(),
        state.membership()
    )
}

fn through_snapshot(state: &State<Map>) -> State<Map> {
    let mut reader = SnapshotReader::new(state);
    let fresh = Arc::new(Map::default());
    let mut writer = SnapshotWriter::new(&*fresh);
    while let Some(chunk) = reader.next_chunk(&**state.backend(), 100).unwrap() {
        writer.write_chunk(chunk).unwrap();
    }
    writer.finish().unwrap();
    open(fresh, 100)
}

fn read_history(state: &State<Map>) {
    let Ok(mut history) = History::new(state, state.compact_revision().max(1)) else { return };
    let step = HistoryStep { events_max: 10, bytes_max: 1000 };
    while history.next() <= history.last() {
        if history.next_events(&**state.backend(), step).is_err() {
            return;
        }
    }
}

fn apply_all(state: &mut State<Map>, log: &Log) -> String {
    let mut told = String::new();
    for bytes in &log.proposals {
        let Ok(proposal) = Proposal::decode(bytes.clone()) else { continue };
        let index = state.applied().map_or(1, |at| at.index + 1);
        let at = Position { index, term: 1, leader: 1 };
        let commands = proposal.groups.iter().flat_map(|group| &group.commands);
        let mut applied = state.apply(at, proposal.time_unix_ms, commands).unwrap();
        // Where the pair before was in memory it comes with the event.
        applied
            .iter_mut()
            .for_each(|one| one.events.iter_mut().for_each(|event| event.prev_kv = None));
        told += &format!("{applied:?}\n");
    }
    told
}

#[test]
fn fuzz_commands() {
    let base = Log::decode(&logs()[0][..]).unwrap();
    fuzz("commands", "--test it fuzz_commands", &logs(), |input, random| {
        let Ok(log) = Log::decode(input) else { return };
        let (mut one, mut two) = (open(Arc::default(), 0), open(Arc::default(), 1 << 20));
        assert_eq!(apply_all(&mut one, &base), apply_all(&mut two, &base));
        assert_eq!(apply_all(&mut one, &log), apply_all(&mut two, &log), "two states differ");
        let (left, right) = (told(&one), told(&two));
        assert!(left == right, "two states differ:\n{left}\n{right}");
        if random.bool() {
            one.compact_step(random.usize(1..9)).unwrap();
        }
        assert_eq!(told(&open(Arc::clone(one.backend()), 100)), left, "it opens as another state");
        assert_eq!(told(&through_snapshot(&two)), right, "the snapshot is another state");
    });
}

#[test]
fn fuzz_stored_pairs() {
    let mut state = open(Arc::default(), 0);
    let log = logs().swap_remove(0);
    apply_all(&mut state, &Log::decode(&log[..]).unwrap());
    let at = Position { index: state.applied().unwrap().index + 1, term: 1, leader: 1 };
    state.apply_membership(at, Bytes::from_static(b"opaque")).unwrap();
    let end = state.applied().unwrap().index;
    apply_all(&mut state, &Log::decode(&log[..]).unwrap());
    assert!(state.applied().unwrap().index > end);
    let pairs = state.backend().pairs.lock().clone();
    let pairs = pairs.into_iter().map(|(key, value)| StoredPair { key, value }).collect();
    let samples = [Stored { pairs }.encode_to_vec()];
    fuzz("stored_pairs", "--test it fuzz_stored_pairs", &samples, |input, random| {
        let Ok(stored) = Stored::decode(input) else { return };
        let map = Arc::new(Map::default());
        let pairs = stored.pairs.into_iter().map(|pair| (pair.key, pair.value)).collect();
        // As a snapshot it must be refused, or be what the storage takes.
        let is_snapshot = random.bool();
        if is_snapshot {
            let Ok(()) = SnapshotWriter::new(&*map).write_chunk(pairs) else { return };
        } else {
            map.pairs.lock().extend(pairs);
        }
        let Ok(mut state) = State::open(map, Options { value_cache_bytes: 100 }) else { return };
        use_state(&mut state, random);
    });
}

/// Whatever opened must not panic when it is used.
fn use_state(state: &mut State<Map>, random: &mut Rng) {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    if let Ok(mut plan) = state.range(&all) {
        while !plan.is_planned() {
            state.plan_more(&mut plan);
        }
        // Values that do not fit their keys may be refused here.
        drop(plan.finish(&**state.backend()));
    }
    read_history(state);
    if let Ok(mut hash) = HashJob::new(state, 0) {
        while let Ok(None) = hash.step(state, 50) {}
    }
    for body in bodies() {
        let index = state.applied().map_or(1, |at| at.index.saturating_add(1));
        let at = Position { index, term: 1, leader: 1 };
        let applied = state.apply(at, random.u64(..10_000), &[Command { body: Some(body) }]);
        if applied.is_err() {
            return;
        }
        drop(state.compact_step(random.usize(1..9)));
    }
}

/// What counts the last revision was changed: reading history looked for it until the end of all
/// numbers. And with records lost at the end a state opened as if nothing was.
#[test]
fn a_storage_whose_records_end_elsewhere_than_it_says_is_refused() {
    let mut state = open(Arc::default(), 0);
    apply_all(&mut state, &Log::decode(&logs()[0][..]).unwrap());
    let pairs = state.backend().pairs.lock().clone();
    for (revision, is_right) in [(-1, false), (0, true), (1, false), (1 << 40, false)] {
        let map = Map::default();
        *map.pairs.lock() = pairs.clone();
        let mut position = pairs[&b"mposition"[..]].to_vec();
        let (_, last) = position.split_last_chunk_mut::<8>().unwrap();
        *last = (state.revision() + revision).to_be_bytes();
        map.pairs.lock().insert(Bytes::from_static(b"mposition"), position.into());
        let opened = State::open(Arc::new(map), Options { value_cache_bytes: 0 });
        assert_eq!(opened.is_ok(), is_right, "{revision} more");
    }
}
