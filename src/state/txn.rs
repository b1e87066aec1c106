//! If all compares hold then one branch, else the other.
//!
//! Compares, also those of nested Txns, look at the store as it was before the Txn. They settle
//! which operations will run; those are all checked; then they run, and none can be refused any
//! more. So a Txn happens whole or not at all.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::answer::{OpResponse, Response, TxnAnswer};
use super::error::RequestError;
use super::key_range::KeyRange;
use super::mvcc::entry::Version;
use super::mvcc::index::Walk;
use super::mvcc::record::Pair;
use super::range::{RangePlan, Room, View};
use super::write::WriteTxn;
use super::{State, check};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, RangeRequest, RequestOp, TxnRequest};
use crate::storage::{Backend, StorageError};

/// Whether a Txn only reads. As in etcd: one with a nested Txn never does.
pub fn is_read_only(request: &TxnRequest) -> bool {
    ranges_only(request, |_| true)
}

/// Whether a Txn may be answered from local, perhaps stale, state. As in etcd: also an empty one.
pub fn is_serializable(request: &TxnRequest) -> bool {
    ranges_only(request, |range| range.serializable)
}

fn ranges_only(request: &TxnRequest, allow: impl Fn(&RangeRequest) -> bool) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match &op.request {
        Some(Request::RequestRange(range)) => allow(range),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_))
        | None => false,
    })
}

/// The operations that will run, with the choices of the nested Txns among them, in order.
struct Path<'r> {
    succeeded: bool,
    ops: &'r [RequestOp],
    nested: Vec<Path<'r>>,
}

/// Something whose keys can be compared.
trait Snapshot {
    fn view(&self) -> View<'_>;

    /// Calls `test` with the newest pair of `key`, which is live.
    fn with_pair<R>(
        &self,
        key: &[u8],
        test: impl FnOnce(&Pair<'_>) -> R,
    ) -> Result<R, StorageError>;
}

impl<B: Backend> Snapshot for WriteTxn<'_, B> {
    fn view(&self) -> View<'_> {
        WriteTxn::view(self)
    }

    fn with_pair<R>(
        &self,
        key: &[u8],
        test: impl FnOnce(&Pair<'_>) -> R,
    ) -> Result<R, StorageError> {
        let kv = self.read(key)?.expect("the key is live");
        Ok(test(&Pair::decode(&kv).expect("we encoded this pair")))
    }
}

impl<B: Backend> Snapshot for State<B> {
    fn view(&self) -> View<'_> {
        State::view(self)
    }

    fn with_pair<R>(
        &self,
        key: &[u8],
        test: impl FnOnce(&Pair<'_>) -> R,
    ) -> Result<R, StorageError> {
        let kv = self.read(key)?.expect("the key is live");
        Ok(test(&Pair::decode(&kv).expect("we encoded this pair")))
    }
}

impl<B: Backend> State<B> {
    /// Answers a Txn that only reads; its header revision is [`State::revision`].
    ///
    /// Pairs above `bytes_max` in all are left out. May block on the storage for values that are not
    /// in memory.
    pub fn read_txn(
        &self,
        request: &TxnRequest,
        bytes_max: usize,
    ) -> Result<Result<TxnAnswer, RequestError>, StorageError> {
        assert!(is_read_only(request), "a Txn that writes goes through the log");
        if let Err(refusal) = check::txn(request, usize::MAX) {
            return Ok(Err(refusal));
        }
        let path = choose(self, request)?;
        let mut answer = TxnAnswer { succeeded: path.succeeded, responses: Vec::new() };
        for range in ranges(path.ops) {
            if let Err(refusal) = check_range(self.view(), range) {
                return Ok(Err(refusal));
            }
        }
        let mut room = bytes_max;
        for range in ranges(path.ops) {
            let plan = RangePlan::new(self.view(), range, Room::Whole(room));
            let mut plan = plan.expect("it was checked above");
            while !plan.is_planned() {
                plan.step(self.view());
            }
            let read = plan.finish(&**self.backend())?;
            room = if read.left_out > 0 { 0 } else { room - read.kvs.len() };
            let response = Response::Range(read);
            answer.responses.push(OpResponse { revision: self.revision(), response });
        }
        Ok(Ok(answer))
    }
}

fn ranges(ops: &[RequestOp]) -> impl Iterator<Item = &RangeRequest> {
    ops.iter().filter_map(|op| match &op.request {
        Some(Request::RequestRange(range)) => Some(range),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_))
        | None => None,
    })
}

/// Runs a Txn that may write.
pub(super) fn execute<B: Backend>(
    txn: &mut WriteTxn<'_, B>,
    request: &TxnRequest,
) -> Result<Result<TxnAnswer, RequestError>, StorageError> {
    if let Err(refusal) = check::txn(request, usize::MAX) {
        return Ok(Err(refusal));
    }
    let path = choose(txn, request)?;
    if let Err(refusal) = check_path(txn, &path) {
        return Ok(Err(refusal));
    }
    run(txn, &path).map(Ok)
}

fn choose<'r>(snapshot: &impl Snapshot, request: &'r TxnRequest) -> Result<Path<'r>, StorageError> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(snapshot, compare)? {
            succeeded = false;
            break;
        }
    }
    let ops: &[RequestOp] = if succeeded { &request.success } else { &request.failure };
    let mut nested = Vec::new();
    for op in ops {
        if let Some(Request::RequestTxn(inner)) = &op.request {
            nested.push(choose(snapshot, inner)?);
        }
    }
    Ok(Path { succeeded, ops, nested })
}

fn check_path<B: Backend>(txn: &WriteTxn<'_, B>, path: &Path<'_>) -> Result<(), RequestError> {
    let mut nested = path.nested.iter();
    for op in path.ops {
        match op.request.as_ref().expect("the shape was checked") {
            Request::RequestRange(range) => check_range(txn.view(), range)?,
            Request::RequestPut(put) => txn.check_put(put)?,
            Request::RequestDeleteRange(_) => {}
            Request::RequestTxn(_) => {
                check_path(txn, nested.next().expect("a choice for each nested Txn"))?;
            }
        }
    }
    Ok(())
}

/// As in etcd: in a Txn a negative revision is one that has been compacted, not the latest.
fn check_range(view: View<'_>, range: &RangeRequest) -> Result<(), RequestError> {
    if range.revision > view.revision {
        return Err(RequestError::FutureRev);
    }
    if range.revision != 0 && range.revision < view.compact_revision {
        return Err(RequestError::Compacted);
    }
    Ok(())
}

fn run<B: Backend>(txn: &mut WriteTxn<'_, B>, path: &Path<'_>) -> Result<TxnAnswer, StorageError> {
    let mut nested = path.nested.iter();
    let mut responses = Vec::with_capacity(path.ops.len());
    for op in path.ops {
        let response = match op.request.as_ref().expect("the shape was checked") {
            Request::RequestRange(range) => Response::Range(txn.range(range)?),
            Request::RequestPut(put) => Response::Put(txn.put(put)?),
            Request::RequestDeleteRange(delete) => Response::DeleteRange(txn.delete_range(delete)?),
            Request::RequestTxn(_) => {
                let path = nested.next().expect("a choice for each nested Txn");
                Response::Txn(run(txn, path)?)
            }
        };
        let is_txn = matches!(response, Response::Txn(_));
        let revision = if is_txn { 0 } else { txn.revision() };
        responses.push(OpResponse { revision, response });
    }
    Ok(TxnAnswer { succeeded: path.succeeded, responses })
}

/// Whether every live key of the compare's range satisfies it.
fn holds(snapshot: &impl Snapshot, compare: &Compare) -> Result<bool, StorageError> {
    let range = KeyRange::new(&compare.key, &compare.range_end);
    let view = snapshot.view();
    if view.index.count(range) == 0 {
        // As in etcd: a missing key has no value, not even a different one; all else is 0.
        let is_value = compare.target == i32::from(CompareTarget::Value);
        return Ok(!is_value && holds_for(compare, &Pair::default()));
    }
    let mut result = Ok(true);
    let walk = Walk { live_only: true, backwards: false };
    view.index.visit(range, walk, |entry| {
        let latest = entry.latest();
        if !latest.is_live() {
            return ControlFlow::Continue(());
        }
        result = if needs_pair(compare) {
            snapshot.with_pair(entry.key(), |pair| holds_for(compare, pair))
        } else {
            Ok(holds_for(compare, &without_value(latest)))
        };
        match result {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) | Err(_) => ControlFlow::Break(()),
        }
    });
    result
}

fn needs_pair(compare: &Compare) -> bool {
    match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value | CompareTarget::Lease) => true,
        Ok(CompareTarget::Version | CompareTarget::Create | CompareTarget::Mod) | Err(_) => false,
    }
}

fn without_value(version: &Version) -> Pair<'static> {
    Pair {
        create_revision: version.create,
        mod_revision: version.main,
        version: version.number,
        ..Pair::default()
    }
}

fn holds_for(compare: &Compare, pair: &Pair<'_>) -> bool {
    let wanted = compare.target_union.as_ref();
    // As in etcd: what is not given, or given for another target, is 0 or empty; an unknown target
    // is always equal.
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => pair.version.cmp(&match wanted {
            Some(&TargetUnion::Version(version)) => version,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => pair.create_revision.cmp(&match wanted {
            Some(&TargetUnion::CreateRevision(revision)) => revision,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => pair.mod_revision.cmp(&match wanted {
            Some(&TargetUnion::ModRevision(revision)) => revision,
            _ => 0,
        }),
        Ok(CompareTarget::Value) => pair.value.cmp(match wanted {
            Some(TargetUnion::Value(value)) => value,
            _ => b"",
        }),
        Ok(CompareTarget::Lease) => pair.lease.cmp(&match wanted {
            Some(&TargetUnion::Lease(lease)) => lease,
            _ => 0,
        }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        // As in etcd.
        Err(_) => true,
    }
}
