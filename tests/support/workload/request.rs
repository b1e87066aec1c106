//! Requests, in few words.

use bytes::Bytes;
use quorate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

/// A read of one key.
pub(crate) fn get(key: impl Into<Bytes>) -> RangeRequest {
    RangeRequest { key: key.into(), ..RangeRequest::default() }
}

/// A read of all keys.
pub(crate) fn all() -> RangeRequest {
    let all = Bytes::from_static(b"\0");
    RangeRequest { key: all.clone(), range_end: all, ..RangeRequest::default() }
}

/// A read of all keys below `prefix`, which ends with a slash.
pub(crate) fn below(prefix: &str) -> RangeRequest {
    RangeRequest {
        key: prefix.to_owned().into(),
        range_end: end(prefix),
        ..RangeRequest::default()
    }
}

/// The end of the range of keys below `prefix`, which ends with a slash.
pub(crate) fn end(prefix: &str) -> Bytes {
    prefix.replace('/', "0").into()
}

/// A put that answers the pair before it.
pub(crate) fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), prev_kv: true, ..PutRequest::default() }
}

/// A delete that answers the pair before it.
pub(crate) fn delete(key: impl Into<Bytes>) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.into(), prev_kv: true, ..DeleteRangeRequest::default() }
}

/// A Txn: if all compares hold the first operations, else the others.
pub(crate) fn txn(
    compare: impl IntoIterator<Item = Compare>,
    success: impl IntoIterator<Item = Request>,
    failure: impl IntoIterator<Item = Request>,
) -> TxnRequest {
    let op = |request| RequestOp { request: Some(request) };
    TxnRequest {
        compare: compare.into_iter().collect(),
        success: success.into_iter().map(op).collect(),
        failure: failure.into_iter().map(op).collect(),
    }
}

/// The key was last changed at `revision`; 0 if it must not exist.
pub(crate) fn if_changed_at(key: impl Into<Bytes>, revision: i64) -> Compare {
    equal(key.into(), CompareTarget::Mod, TargetUnion::ModRevision(revision))
}

/// The key was created at `revision`; 0 if it must not exist.
pub(crate) fn if_created_at(key: impl Into<Bytes>, revision: i64) -> Compare {
    equal(key.into(), CompareTarget::Create, TargetUnion::CreateRevision(revision))
}

/// The key has this value.
pub(crate) fn if_value(key: impl Into<Bytes>, value: Bytes) -> Compare {
    equal(key.into(), CompareTarget::Value, TargetUnion::Value(value))
}

fn equal(key: Bytes, target: CompareTarget, union: TargetUnion) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key,
        target_union: Some(union),
        range_end: Bytes::new(),
    }
}
