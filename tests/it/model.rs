//! Random commands on states and on a model that keeps a whole copy of the store per revision.
//!
//! Proves: answers, events and refusals are the model's; states that are fed the same log hold the
//! same bytes and the same hash, however they compact, cache or restart in between; a snapshot
//! opens as an equal state.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use prost::Message;
use quorate::pb::etcdserverpb::compare::TargetUnion;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};
use quorate::pb::mvccpb::KeyValue;
use quorate::pb::quorate::command::command::Body;
use quorate::pb::quorate::command::{Command, LeaseExpire, LeaseRenew};
use quorate::state::{
    CompactStep, EventKind, HashAnswer, HashJob, LeaseTerm, Options, Position, RangeAnswer,
    RequestError, Response, SnapshotReader, SnapshotWriter, State,
};

use crate::support::memory::Map;
use crate::support::seed;
use crate::support::store::{Pairs as Store, holds, inside, select};

/// A fact, and the pairs it is about.
type Line = (String, Vec<KeyValue>);

/// What a command did: answers flattened into lines, then the changes, then the revision.
type Told = (Result<Vec<Line>, RequestError>, Vec<Line>, i64);

struct Model {
    stores: BTreeMap<i64, Store>,
    compacted: i64,
    /// TTL and end of each lease.
    leases: BTreeMap<i64, (i64, u64)>,
    clock: u64,
}

impl Model {
    fn revision(&self) -> i64 {
        *self.stores.keys().last().unwrap()
    }

    fn current(&self) -> &Store {
        self.stores.values().last().unwrap()
    }

    fn apply(&mut self, body: &Body) -> Told {
        let mut store = self.current().clone();
        let (mut lines, mut changes) = (Vec::new(), Vec::new());
        let op = |request| RequestOp { request: Some(request) };
        let done = match body {
            Body::Put(put) => {
                let ops = [op(Request::RequestPut(put.clone()))];
                self.check(&ops).map(|()| self.run(&ops, &mut store, &mut lines, &mut changes))
            }
            Body::DeleteRange(delete) => {
                let ops = [op(Request::RequestDeleteRange(delete.clone()))];
                self.check(&ops).map(|()| self.run(&ops, &mut store, &mut lines, &mut changes))
            }
            Body::Txn(txn) => {
                let checked = if clashes(&txn.success) || clashes(&txn.failure) {
                    Err(RequestError::DuplicateKey)
                } else {
                    self.check(self.branch(txn))
                };
                checked.map(|()| self.run_txn(txn, &mut store, &mut lines, &mut changes))
            }
            Body::Compact(compact) if compact.revision <= self.compacted => {
                Err(RequestError::Compacted)
            }
            Body::Compact(compact) if compact.revision > self.revision() => {
                Err(RequestError::FutureRev)
            }
            Body::Compact(compact) => {
                self.compacted = compact.revision;
                self.stores = self.stores.split_off(&compact.revision);
                Ok(())
            }
            Body::LeaseGrant(LeaseGrantRequest { id, .. }) if self.leases.contains_key(id) => {
                Err(RequestError::LeaseExists)
            }
            Body::LeaseGrant(LeaseGrantRequest { id, ttl }) => {
                self.renew(*id, *ttl, &mut lines);
                Ok(())
            }
            Body::LeaseRenew(LeaseRenew { ids }) => {
                let known: Vec<_> =
                    ids.iter().filter_map(|id| Some((*id, self.leases.get(id)?.0))).collect();
                known.iter().for_each(|(id, ttl)| self.renew(*id, *ttl, &mut lines));
                Ok(())
            }
            Body::LeaseRevoke(LeaseRevokeRequest { id }) => match self.leases.remove(id) {
                Some(_) => {
                    self.drop_keys(*id, &mut store, &mut changes);
                    lines.push((format!("revoked {id}"), vec![]));
                    Ok(())
                }
                None => Err(RequestError::LeaseNotFound),
            },
            Body::LeaseExpire(LeaseExpire { id, expires_at_ms }) => {
                let is_same = self.leases.get(id).is_some_and(|lease| lease.1 == *expires_at_ms);
                if is_same {
                    self.leases.remove(id);
                    self.drop_keys(*id, &mut store, &mut changes);
                }
                lines.push((format!("expired {id} {is_same}"), vec![]));
                Ok(())
            }
            Body::PublishMember(_) => unreachable!("not drawn"),
        };
        if !changes.is_empty() {
            self.stores.insert(self.revision() + 1, store);
        }
        (done.map(|()| lines), changes, self.revision())
    }

    fn renew(&mut self, id: i64, ttl: i64, lines: &mut Vec<Line>) {
        let end = self.clock + ttl as u64 * 1000;
        self.leases.insert(id, (ttl, end));
        lines.push((format!("lease {id} {ttl} {end}"), vec![]));
    }

    fn drop_keys(&self, id: i64, store: &mut Store, changes: &mut Vec<Line>) {
        for (key, kv) in store.extract_if(.., |_, kv| kv.lease == id) {
            changes.push((format!("DELETE was {}", kv.mod_revision), vec![tombstone(&key)]));
        }
    }

    fn branch<'t>(&self, txn: &'t TxnRequest) -> &'t [RequestOp] {
        let holds = txn.compare.iter().all(|compare| holds(self.current(), compare));
        if holds { &txn.success } else { &txn.failure }
    }

    fn check(&self, ops: &[RequestOp]) -> Result<(), RequestError> {
        for op in ops {
            match op.request.as_ref().unwrap() {
                Request::RequestRange(range) if range.revision > self.revision() => {
                    return Err(RequestError::FutureRev);
                }
                Request::RequestRange(range)
                    if range.revision > 0 && range.revision < self.compacted =>
                {
                    return Err(RequestError::Compacted);
                }
                Request::RequestPut(put)
                    if put.lease != 0 && !self.leases.contains_key(&put.lease) =>
                {
                    return Err(RequestError::LeaseNotFound);
                }
                Request::RequestPut(put)
                    if (put.ignore_value || put.ignore_lease)
                        && !self.current().contains_key(&put.key) =>
                {
                    return Err(RequestError::KeyNotFound);
                }
                Request::RequestTxn(txn) => self.check(self.branch(txn))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run_txn(
        &self,
        txn: &TxnRequest,
        store: &mut Store,
        lines: &mut Vec<Line>,
        changes: &mut Vec<Line>,
    ) {
        let ops = self.branch(txn);
        lines.push((format!("txn of {}", ops.len()), vec![]));
        self.run(ops, store, lines, changes);
    }

    fn run(
        &self,
        ops: &[RequestOp],
        store: &mut Store,
        lines: &mut Vec<Line>,
        changes: &mut Vec<Line>,
    ) {
        let next = self.revision() + 1;
        // As in etcd: an event tells of the pair before its revision, not of one within it.
        let was = |kv: &KeyValue| {
            let before = self.stores.values().next_back().and_then(|store| store.get(&kv.key));
            before.filter(|_| kv.version > 0).map_or(0, |kv| kv.mod_revision)
        };
        for op in ops {
            match op.request.as_ref().unwrap() {
                Request::RequestRange(range) => {
                    let old = self.stores.get(&range.revision).filter(|_| range.revision < next);
                    lines.push(told(read(old.unwrap_or(store), range)));
                }
                Request::RequestPut(put) => {
                    let before = store.get(&put.key).cloned();
                    let prev = before.iter().filter(|_| put.prev_kv).cloned().collect();
                    lines.push(("put".into(), prev));
                    let old = before.clone().unwrap_or_default();
                    let create = if old.version == 0 { next } else { old.create_revision };
                    let was = was(&old);
                    let value = if put.ignore_value { old.value } else { put.value.clone() };
                    let kv = KeyValue {
                        key: put.key.clone(),
                        create_revision: create,
                        mod_revision: next,
                        version: old.version + 1,
                        value,
                        lease: if put.ignore_lease { old.lease } else { put.lease },
                    };
                    changes.push((format!("PUT was {was}"), vec![kv.clone()]));
                    store.insert(put.key.clone(), kv);
                }
                Request::RequestDeleteRange(delete) => {
                    let in_range = |key: &Bytes| inside(key, &delete.key, &delete.range_end);
                    let gone: Vec<_> = store.extract_if(.., |key, _| in_range(key)).collect();
                    let prev = gone.iter().map(|(_, kv)| kv.clone()).filter(|_| delete.prev_kv);
                    lines.push((format!("delete {}", gone.len()), prev.collect()));
                    for (key, kv) in &gone {
                        changes.push((format!("DELETE was {}", was(kv)), vec![tombstone(key)]));
                    }
                }
                Request::RequestTxn(txn) => self.run_txn(txn, store, lines, changes),
            }
        }
    }
}

/// Whether two operations of a branch might change one key, by trying every key there is.
///
/// As in etcd, deletes to the end of the store do not count but for puts that keep something, and
/// neither does a delete of a nested Txn behind a put of an earlier one.
fn clashes(ops: &[RequestOp]) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum By {
        Put,
        KeepingPut,
        Delete,
        DeleteToTheEnd,
    }
    fn touches(op: &RequestOp, key: &Bytes, by: By) -> bool {
        match op.request.as_ref().unwrap() {
            Request::RequestPut(put) if by == By::KeepingPut => {
                put.key == key && (put.ignore_value || put.ignore_lease)
            }
            Request::RequestPut(put) => by == By::Put && put.key == key,
            Request::RequestDeleteRange(del) => {
                let to_the_end = del.range_end == b"\0"[..];
                by == if to_the_end { By::DeleteToTheEnd } else { By::Delete }
                    && inside(key, &del.key, &del.range_end)
            }
            Request::RequestTxn(txn) => {
                txn.success.iter().chain(&txn.failure).any(|op| touches(op, key, by))
            }
            Request::RequestRange(_) => false,
        }
    }
    let is_nested = |at: usize| matches!(ops[at].request, Some(Request::RequestTxn(_)));
    let nested = ops.iter().any(|op| match op.request.as_ref().unwrap() {
        Request::RequestTxn(txn) => clashes(&txn.success) || clashes(&txn.failure),
        _ => false,
    });
    nested
        || (0..KEYS).map(key).any(|key| {
            let meet = |(at, one): (usize, &RequestOp), (other, two): (usize, &RequestOp)| {
                let both = |a, b| touches(one, &key, a) && touches(two, &key, b);
                let passes = at < other && is_nested(at) && is_nested(other);
                at != other
                    && (both(By::Put, By::Put)
                        || both(By::Put, By::Delete) && !passes
                        || both(By::KeepingPut, By::DeleteToTheEnd))
            };
            let pairs = ops.iter().enumerate();
            pairs.clone().any(|one| pairs.clone().any(|two| meet(one, two)))
        })
}

/// What a read of the whole `store` answers.
fn read(store: &Store, range: &RangeRequest) -> (Vec<KeyValue>, i64, bool) {
    let in_range = |key: &Bytes| inside(key, &range.key, &range.range_end);
    select(store.values().filter(|kv| in_range(&kv.key)).cloned().collect(), range)
}

fn told((kvs, count, more): (Vec<KeyValue>, i64, bool)) -> Line {
    (format!("range {count} {more}"), kvs)
}

fn tombstone(key: &Bytes) -> KeyValue {
    KeyValue { key: key.clone(), ..Default::default() }
}

fn told_answer(answer: &RangeAnswer) -> Line {
    let kvs = RangeResponse::decode(answer.kvs.clone()).unwrap().kvs;
    assert_eq!(kvs.len(), answer.len);
    told((kvs, answer.count, answer.more))
}

fn flatten(response: &Response, lines: &mut Vec<Line>) {
    let decode = |kv: &Bytes| KeyValue::decode(kv.clone()).unwrap();
    match response {
        Response::Put(put) => {
            lines.push(("put".into(), put.prev_kv.iter().map(decode).collect()));
        }
        Response::DeleteRange(delete) => {
            let prev = delete.prev_kvs.iter().map(decode).collect();
            lines.push((format!("delete {}", delete.deleted), prev));
        }
        Response::Range(range) => lines.push(told_answer(range)),
        Response::Txn(txn) => {
            lines.push((format!("txn of {}", txn.responses.len()), vec![]));
            txn.responses.iter().for_each(|op| flatten(&op.response, lines));
        }
        Response::LeaseGrant(term) => lines.push(lease_line(term)),
        Response::LeaseRenew(terms) => lines.extend(terms.iter().map(lease_line)),
        Response::LeaseRevoke(id) => lines.push((format!("revoked {id}"), vec![])),
        Response::LeaseExpire(expiry) => {
            lines.push((format!("expired {} {}", expiry.id, expiry.is_expired), vec![]));
        }
        Response::Compact | Response::PublishMember => {}
    }
}

fn lease_line(term: &LeaseTerm) -> Line {
    (format!("lease {} {} {}", term.id, term.ttl_seconds, term.expires_at_ms), vec![])
}

const KEYS: u32 = 24;

const LEASES: i64 = 6;

fn key(number: u32) -> Bytes {
    Bytes::from(format!("{}{}", ["k", "kk", "m/", ""][number as usize % 4], number / 2 + 1))
}

fn draw_key(random: &mut Rng) -> Bytes {
    key(random.u32(..KEYS))
}

fn draw_end(random: &mut Rng) -> Bytes {
    match random.u32(..8) {
        0 => Bytes::from_static(b"\0"),
        1..4 => draw_key(random),
        _ => Bytes::new(),
    }
}

fn draw_range(random: &mut Rng, revision: i64) -> RangeRequest {
    let some = |random: &mut Rng, span: i64| match random.u32(..4) {
        0 => (revision - random.i64(0..span)).max(0),
        _ => 0,
    };
    RangeRequest {
        key: draw_key(random),
        range_end: if random.bool() { draw_end(random) } else { Bytes::from_static(b"\0") },
        limit: random.i64(-1..6).max(0),
        revision: some(random, 40) + i64::from(random.u32(..200) == 0),
        sort_order: random.i32(0..3),
        sort_target: random.i32(0..5),
        keys_only: random.u32(..4) == 0,
        count_only: random.u32(..6) == 0,
        min_mod_revision: some(random, 20) * random.i64(0..2),
        max_mod_revision: some(random, 20) * random.i64(0..2),
        min_create_revision: some(random, 60) * random.i64(0..2),
        max_create_revision: some(random, 60) * random.i64(0..2),
        ..Default::default()
    }
}

fn draw_put(random: &mut Rng) -> PutRequest {
    let ignore_value = random.u32(..10) == 0;
    // Some are long enough to be stored in pieces.
    let len = match random.u32(..30) {
        _ if ignore_value => 0,
        0 => random.usize(..5_000),
        _ => random.usize(..40),
    };
    let value = std::iter::repeat_with(|| random.alphanumeric() as u8).take(len).collect();
    let (key, prev_kv) = (draw_key(random), random.u32(..4) == 0);
    let ignore_lease = random.u32(..10) == 0;
    let lease = if ignore_lease || random.bool() { 0 } else { random.i64(0..LEASES) };
    PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease }
}

fn draw_delete(random: &mut Rng) -> DeleteRangeRequest {
    let (key, range_end) = (draw_key(random), draw_end(random));
    DeleteRangeRequest { key, range_end, prev_kv: random.bool() }
}

fn draw_compare(random: &mut Rng, revision: i64) -> Compare {
    let number = random.i64(0..3) * random.i64(0..revision + 1);
    let (target, union) = match random.i32(0..5) {
        0 => (0, TargetUnion::Version(random.i64(0..4))),
        1 => (1, TargetUnion::CreateRevision(number)),
        2 => (2, TargetUnion::ModRevision(number)),
        3 => (3, TargetUnion::Value(Bytes::from(random.alphanumeric().to_string()))),
        _ => (4, TargetUnion::Lease(random.i64(0..LEASES))),
    };
    let (key, range_end) = (draw_key(random), draw_end(random));
    Compare { result: random.i32(0..4), target, key, target_union: Some(union), range_end }
}

fn draw_txn(random: &mut Rng, revision: i64, depth: u32) -> TxnRequest {
    let ops = |random: &mut Rng| -> Vec<RequestOp> {
        let draw = |random: &mut Rng| match random.u32(..8) {
            0..3 => Request::RequestPut(draw_put(random)),
            3..6 => Request::RequestRange(draw_range(random, revision)),
            6 if depth < 2 => Request::RequestTxn(draw_txn(random, revision, depth + 1)),
            _ => Request::RequestDeleteRange(draw_delete(random)),
        };
        (0..random.u32(..4)).map(|_| RequestOp { request: Some(draw(random)) }).collect()
    };
    let compare = (0..random.u32(..3)).map(|_| draw_compare(random, revision)).collect();
    TxnRequest { compare, success: ops(random), failure: ops(random) }
}

fn draw_lease(random: &mut Rng, model: &Model) -> Body {
    let id = random.i64(1..LEASES);
    match random.u32(..8) {
        0 => Body::LeaseRevoke(LeaseRevokeRequest { id }),
        1 => {
            let end = model.leases.get(&id).map_or(0, |lease| lease.1);
            let expires_at_ms = end + u64::from(random.u32(..3) == 0);
            Body::LeaseExpire(LeaseExpire { id, expires_at_ms })
        }
        2 | 3 => {
            let ids = (0..random.u32(..4)).map(|_| random.i64(1..LEASES)).collect();
            Body::LeaseRenew(LeaseRenew { ids })
        }
        _ => Body::LeaseGrant(LeaseGrantRequest { id, ttl: random.i64(1..100) }),
    }
}

fn draw_command(random: &mut Rng, model: &Model) -> Command {
    let revision = model.revision();
    let body = match random.u32(..100) {
        0..8 => draw_lease(random, model),
        8..50 => Body::Put(draw_put(random)),
        50..65 => Body::DeleteRange(draw_delete(random)),
        65..99 => Body::Txn(draw_txn(random, revision, 0)),
        _ => Body::Compact(CompactionRequest {
            revision: revision - random.i64(-1..30),
            physical: false,
        }),
    };
    Command { body: Some(body) }
}

/// Applies an entry and tells what each command did.
fn apply(state: &mut State<Map>, index: u64, commands: &[Command]) -> Vec<Told> {
    let position = Position { index, term: 1, leader: 1 };
    let applied = state.apply(position, index, commands).unwrap();
    let tell = |applied: &quorate::state::Applied| {
        let outcome = applied.outcome.as_ref().map(|response| {
            let mut lines = Vec::new();
            flatten(response, &mut lines);
            lines
        });
        let changes = applied.events.iter().map(|event| {
            let kv = KeyValue::decode(event.kv.clone()).unwrap();
            let was = event.prev.map_or(0, |prev| prev.main);
            match event.kind {
                EventKind::Put => (format!("PUT was {was}"), vec![kv]),
                EventKind::Delete => (format!("DELETE was {was}"), vec![tombstone(&event.key)]),
            }
        });
        (outcome.map_err(|refusal| *refusal), changes.collect(), applied.revision)
    };
    applied.iter().map(tell).collect()
}

fn open(backend: Arc<Map>, value_cache_bytes: usize) -> State<Map> {
    State::open(backend, Options { value_cache_bytes }).unwrap()
}

fn hash(state: &State<Map>, revision: i64) -> HashAnswer {
    let mut job = HashJob::new(state, revision).unwrap();
    loop {
        if let Some(answer) = job.step(state, 50).unwrap() {
            return answer;
        }
    }
}

fn through_snapshot(state: &mut State<Map>, random: &mut Rng) -> State<Map> {
    let mut reader = SnapshotReader::new(state);
    let fresh = Arc::new(Map::default());
    let mut writer = SnapshotWriter::new(&*fresh);
    while let Some(chunk) = reader.next_chunk(&**state.backend(), random.usize(..400)).unwrap() {
        writer.write_chunk(chunk).unwrap();
        // Many records are gathered before the first is deleted, so some steps must be large.
        let most = if random.bool() { 5 } else { 500 };
        state.compact_step(random.usize(..most)).unwrap();
    }
    writer.finish().unwrap();
    let copy = open(fresh, 300);
    assert_eq!(copy.applied(), state.applied());
    assert_eq!(copy.revision(), state.revision());
    assert_eq!(copy.time_unix_ms(), state.time_unix_ms());
    assert_eq!(hash(&copy, 0), hash(state, 0));
    copy
}

fn finish_compaction(state: &mut State<Map>) {
    while state.compact_step(7).unwrap() == CompactStep::More {}
    assert!(!state.compaction_pending());
}

fn check_leases(state: &State<Map>, model: &Model) {
    let ends: BTreeMap<_, _> =
        state.leases().map(|term| (term.id, (term.ttl_seconds, term.expires_at_ms))).collect();
    assert_eq!(ends, model.leases);
    for &id in ends.keys() {
        let attached = state.lease(id).unwrap().keys();
        let wanted = model.current().values().filter(|kv| kv.lease == id).map(|kv| &kv.key[..]);
        assert!(attached.eq(wanted), "the keys of lease {id}");
    }
}

fn check_reads(state: &State<Map>, model: &Model, random: &mut Rng) {
    let request = draw_range(random, state.revision());
    let rev = request.revision;
    match state.range(&request) {
        Ok(plan) => {
            let answer = plan.finish(&**state.backend()).unwrap();
            let store = if rev > 0 { &model.stores[&rev] } else { model.current() };
            assert_eq!(told_answer(&answer), told(read(store, &request)), "{request:?}");
        }
        Err(RequestError::Compacted) => assert!(rev > 0 && rev < model.compacted),
        Err(refusal) => {
            assert_eq!(refusal, RequestError::FutureRev);
            assert!(rev > model.revision());
        }
    }
}

#[test]
pub(crate) fn states_agree_with_the_model_and_each_other() {
    let mut random = Rng::with_seed(seed());
    let stores = BTreeMap::from([(1, Store::new())]);
    let mut model = Model { stores, compacted: -1, leases: BTreeMap::new(), clock: 0 };
    let mut one = open(Arc::default(), 150);
    let mut two = open(Arc::default(), 1 << 20);
    let mut applied = 0;
    for index in 1.. {
        model.clock = index;
        let commands: Vec<_> =
            (0..random.u32(..6)).map(|_| draw_command(&mut random, &model)).collect();
        let told = apply(&mut one, index, &commands);
        assert_eq!(apply(&mut two, index, &commands), told, "two states told different things");
        for (command, told) in commands.iter().zip(told) {
            assert_eq!(told, model.apply(command.body.as_ref().unwrap()), "{command:?}");
        }
        applied += commands.len();
        check_leases(&one, &model);
        check_leases(&two, &model);
        check_reads(&one, &model, &mut random);
        check_reads(&two, &model, &mut random);
        match random.u32(..300) {
            0..50 => drop(one.compact_step(random.usize(..8)).unwrap()),
            50..60 => drop(two.compact_step(random.usize(..80)).unwrap()),
            60 => two = open(Arc::new(two.backend().copy()), random.usize(..500)),
            61 => one = through_snapshot(&mut one, &mut random),
            62 => assert_eq!(hash(&one, 0), hash(&two, 0)),
            _ => {}
        }
        if applied >= 100_000 {
            break;
        }
    }
    finish_compaction(&mut one);
    finish_compaction(&mut two);
    // Renewals may lie in other places; a snapshot has them with their leases.
    let [copy_of_one, copy_of_two] =
        [&mut one, &mut two].map(|state| through_snapshot(state, &mut random));
    assert_eq!(*copy_of_one.backend().pairs.lock(), *copy_of_two.backend().pairs.lock());
    assert_eq!(hash(&one, 0), hash(&two, 0));
}
