//! A store as the API describes it, small enough to be believed: pairs in a map, and one revision.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use quorate::pb::etcdserverpb::compare::TargetUnion;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::response_op::Response;
use quorate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use quorate::pb::mvccpb::{Event, KeyValue};

use super::history::{Op, Reply};

/// Pairs by key.
pub(crate) type Pairs = BTreeMap<Bytes, KeyValue>;

/// A store at one revision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    pub(crate) revision: i64,
    pub(crate) pairs: Pairs,
}

/// What an operation answers, without headers, and what it changes.
pub(crate) type Done = (Reply, Vec<Event>);

impl Store {
    /// What `op` does here, or why it is refused; [`Store::apply`] makes it so.
    ///
    /// Only what changes or reads pairs: no leases, no compactions, no past revisions.
    pub(crate) fn run(&self, op: &Op) -> Result<Done, String> {
        let mut step = Step { store: self, changed: BTreeMap::new(), events: Vec::new() };
        let reply = match op {
            Op::Range(range) => Reply::Range(step.range(range)),
            Op::Put(put) => Reply::Put(step.put(put)?),
            Op::Delete(delete) => Reply::Delete(step.delete(delete)),
            Op::Txn(txn) => Reply::Txn(step.txn(txn)?),
            Op::Compact(_)
            | Op::Grant(_)
            | Op::Revoke(_)
            | Op::KeepAlive(_)
            | Op::TimeToLive(_) => panic!("{op:?} is not about pairs"),
        };
        Ok((reply, step.events))
    }

    /// Makes the changes of one revision.
    pub(crate) fn apply(&mut self, revision: i64, events: &[Event]) {
        self.revision = revision;
        for event in events {
            let kv = event.kv.as_ref().expect("an event has a pair");
            match event.r#type {
                0 => self.pairs.insert(kv.key.clone(), kv.clone()),
                _ => self.pairs.remove(&kv.key),
            };
        }
    }

    /// The deletion of all keys of a lease, sorted.
    pub(crate) fn expiry(&self, lease: i64) -> Vec<Event> {
        let keys = self.pairs.values().filter(|kv| kv.lease == lease);
        keys.map(|kv| deletion(&kv.key, self.revision + 1)).collect()
    }
}

fn deletion(key: &Bytes, revision: i64) -> Event {
    let kv = KeyValue { key: key.clone(), mod_revision: revision, ..KeyValue::default() };
    Event { r#type: 1, kv: Some(kv), prev_kv: None }
}

/// Whether `key` is in the range of the API from `start` to `end`.
pub(crate) fn inside(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        b"" => key == start,
        b"\0" => key >= start,
        end => key >= start && key < end,
    }
}

/// An operation under way: what it has changed so far lies over the store.
struct Step<'s> {
    store: &'s Store,
    changed: BTreeMap<Bytes, Option<KeyValue>>,
    events: Vec<Event>,
}

impl Step<'_> {
    fn get(&self, key: &Bytes) -> Option<&KeyValue> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.store.pairs.get(key),
        }
    }

    /// The pairs of a range, by key.
    fn pairs(&self, start: &Bytes, end: &[u8]) -> Vec<KeyValue> {
        if end.is_empty() {
            return self.get(start).cloned().into_iter().collect();
        }
        let from = (Bound::Included(start.clone()), Bound::Unbounded);
        let in_range = |key: &Bytes| inside(key, start, end);
        let stored = self.store.pairs.range(from).take_while(|(key, _)| in_range(key));
        let mut found: Pairs = stored.map(|(key, kv)| (key.clone(), kv.clone())).collect();
        for (key, changed) in self.changed.iter().filter(|(key, _)| in_range(key)) {
            match changed {
                Some(kv) => found.insert(key.clone(), kv.clone()),
                None => found.remove(key),
            };
        }
        found.into_values().collect()
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let (kvs, count, more) = select(self.pairs(&request.key, &request.range_end), request);
        RangeResponse { header: None, kvs, more, count }
    }

    fn put(&mut self, put: &PutRequest) -> Result<PutResponse, String> {
        let next = self.store.revision + 1;
        let before = self.get(&put.key).cloned();
        if (put.ignore_value || put.ignore_lease) && before.is_none() {
            return Err("key not found".to_owned());
        }
        let old = before.clone().unwrap_or_default();
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: if old.version == 0 { next } else { old.create_revision },
            mod_revision: next,
            version: old.version + 1,
            value: if put.ignore_value { old.value } else { put.value.clone() },
            lease: if put.ignore_lease { old.lease } else { put.lease },
        };
        self.changed.insert(put.key.clone(), Some(kv.clone()));
        self.events.push(Event { r#type: 0, kv: Some(kv), prev_kv: None });
        Ok(PutResponse { header: None, prev_kv: before.filter(|_| put.prev_kv) })
    }

    fn delete(&mut self, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
        let gone = self.pairs(&delete.key, &delete.range_end);
        for kv in &gone {
            self.changed.insert(kv.key.clone(), None);
            self.events.push(deletion(&kv.key, self.store.revision + 1));
        }
        let deleted = gone.len() as i64;
        let prev_kvs = if delete.prev_kv { gone } else { Vec::new() };
        DeleteRangeResponse { header: None, deleted, prev_kvs }
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<TxnResponse, String> {
        let ran = path(self.store, txn);
        self.run_path(txn, &ran)
    }

    fn run_path(&mut self, txn: &TxnRequest, path: &Path) -> Result<TxnResponse, String> {
        let ops = if path.succeeded { &txn.success } else { &txn.failure };
        let mut nested = path.nested.iter();
        let mut responses = Vec::new();
        for op in ops {
            let response = match op.request.as_ref().expect("an operation is given") {
                Request::RequestRange(range) => {
                    assert_eq!(range.revision, 0, "no past reads inside of Txns");
                    Response::ResponseRange(self.range(range))
                }
                Request::RequestPut(put) => Response::ResponsePut(self.put(put)?),
                Request::RequestDeleteRange(del) => Response::ResponseDeleteRange(self.delete(del)),
                Request::RequestTxn(txn) => {
                    let path = nested.next().expect("a choice for each nested Txn");
                    Response::ResponseTxn(self.run_path(txn, path)?)
                }
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: None, succeeded: path.succeeded, responses })
    }
}

/// The choices of a Txn and of those nested in it: all look at the store before the Txn.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

fn path(store: &Store, txn: &TxnRequest) -> Path {
    let succeeded = txn.compare.iter().all(|compare| holds(&store.pairs, compare));
    let ops: &[RequestOp] = if succeeded { &txn.success } else { &txn.failure };
    let nested = ops.iter().filter_map(|op| match &op.request {
        Some(Request::RequestTxn(txn)) => Some(path(store, txn)),
        _ => None,
    });
    Path { succeeded, nested: nested.collect() }
}

/// Whether each live key of the compare's range satisfies it.
pub(crate) fn holds(pairs: &Pairs, compare: &Compare) -> bool {
    let from = (Bound::Included(&compare.key[..]), Bound::Unbounded);
    let in_range = |key: &Bytes| inside(key, &compare.key, &compare.range_end);
    let mut found = pairs.range::<[u8], _>(from).take_while(|(key, _)| in_range(key)).peekable();
    let none = found.peek().is_none();
    let test = |kv: &KeyValue| {
        let order = match compare.target_union.as_ref().expect("a target is given") {
            TargetUnion::Version(wanted) => kv.version.cmp(wanted),
            TargetUnion::CreateRevision(wanted) => kv.create_revision.cmp(wanted),
            TargetUnion::ModRevision(wanted) => kv.mod_revision.cmp(wanted),
            // As in etcd: a missing key has no value, not even a different one.
            TargetUnion::Value(_) if none => return false,
            TargetUnion::Value(wanted) => kv.value.cmp(wanted),
            TargetUnion::Lease(wanted) => kv.lease.cmp(wanted),
        };
        [order.is_eq(), order.is_gt(), order.is_lt(), order.is_ne()][compare.result as usize]
    };
    if none { test(&KeyValue::default()) } else { found.all(|(_, kv)| test(kv)) }
}

/// The pairs that a read of `kvs` answers, their count before any cut, and whether there are more.
///
/// The order of work of etcd, word for word: fetch, filter, sort, cut.
pub(crate) fn select(mut kvs: Vec<KeyValue>, range: &RangeRequest) -> (Vec<KeyValue>, i64, bool) {
    let count = kvs.len() as i64;
    if range.count_only {
        return (Vec::new(), count, false);
    }
    let filters = [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ];
    let limit = if range.limit > 0 { range.limit as usize } else { usize::MAX };
    if range.sort_order == 0 && filters == [0; 4] {
        kvs.truncate(limit.saturating_add(1));
    }
    kvs.retain(|kv| {
        (filters[0] == 0 || kv.mod_revision >= filters[0])
            && (filters[1] == 0 || kv.mod_revision <= filters[1])
            && (filters[2] == 0 || kv.create_revision >= filters[2])
            && (filters[3] == 0 || kv.create_revision <= filters[3])
    });
    let by = |kv: &KeyValue| {
        let number = [0, kv.version, kv.create_revision, kv.mod_revision, 0];
        let value = if range.sort_target == 4 { kv.value.clone() } else { Bytes::new() };
        let key = if range.sort_target == 0 { kv.key.clone() } else { Bytes::new() };
        (number[range.sort_target as usize], value, key)
    };
    if range.sort_order == 2 {
        kvs.sort_by_key(|kv| Reverse(by(kv)));
    } else {
        kvs.sort_by_key(by);
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if range.keys_only {
        for kv in &mut kvs {
            kv.value = Bytes::new();
            // As in etcd: only where values were needed for the order the lease stays.
            kv.lease *= i64::from(range.sort_target == 4);
        }
    }
    (kvs, count, more)
}
