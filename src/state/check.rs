//! Refuses requests by their shape alone, before anything is looked up.
//!
//! The api runs these checks before it proposes, to spare the log; apply runs them again, because
//! what comes out of the log decides. They depend on nothing but the request, so that all members
//! agree; the bound of operations in a Txn is a flag of one member and only its api's concern.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::error::RequestError;
use super::key_range::KeyRange;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

/// Checks the shape of a Put.
pub fn put(request: &PutRequest) -> Result<(), RequestError> {
    if request.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(RequestError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(RequestError::LeaseProvided);
    }
    Ok(())
}

/// Checks the shape of a Range.
pub fn range(request: &RangeRequest) -> Result<(), RequestError> {
    if request.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    let order = SortOrder::try_from(request.sort_order);
    let target = SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() {
        return Err(RequestError::InvalidSortOption);
    }
    Ok(())
}

/// Checks the shape of a DeleteRange.
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), RequestError> {
    if request.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    Ok(())
}

/// Checks the shape of a compaction: there is nothing to refuse before its revision is compared.
pub fn compact(_request: &CompactionRequest) -> Result<(), RequestError> {
    Ok(())
}

/// Checks the shape of a Txn and of everything inside; `ops_max` bounds compares and operations.
pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), RequestError> {
    txn_ops(request, ops_max)?;
    changes(&request.success)?;
    changes(&request.failure)?;
    Ok(())
}

/// How many Txns lie inside each other, this one included.
///
/// Only the api bounds it, with [`crate::limits::TXN_DEPTH_MAX`]: an entry that all members can read
/// is not refused any more.
pub fn txn_depth(request: &TxnRequest) -> usize {
    let inner = request.success.iter().chain(&request.failure).filter_map(|op| match &op.request {
        Some(Request::RequestTxn(inner)) => Some(txn_depth(inner)),
        _ => None,
    });
    1 + inner.max().unwrap_or(0)
}

fn txn_ops(request: &TxnRequest, ops_max: usize) -> Result<(), RequestError> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    // As in etcd: a nested Txn has to do with what its parent leaves.
    let left = ops_max.checked_sub(ops).ok_or(RequestError::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(RequestError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => txn_ops(request, left)?,
            // As in etcd, whose choice of words this is.
            None => return Err(RequestError::KeyNotFound),
        }
    }
    Ok(())
}

/// What the operations of a branch might change.
#[derive(Default)]
struct Changes<'a> {
    /// Each key that is put, with the operation that puts it.
    puts: BTreeMap<&'a [u8], usize>,
    /// Those of them that keep something of what was there.
    keeps: BTreeMap<&'a [u8], usize>,
    /// For each operation that deletes everything from a key on, the first such key.
    deletes_from: BTreeMap<usize, &'a [u8]>,
    /// Each other range that is deleted, with the operation that deletes it.
    deletes: Vec<(KeyRange<'a>, usize)>,
}

/// Gathers what a branch changes; refuses two operations that might change one key.
///
/// Two deletes may meet: the second finds nothing. The branches of one nested Txn may meet: only
/// one of them runs. As in etcd two cases pass, in which one key may change twice in a revision: a
/// delete from a key on (`range_end` is a zero byte) meets no put, and a put inside a nested Txn
/// meets no delete inside a later one. Unlike in etcd, whose members then stop, such a delete does
/// meet a put that keeps the value or the lease of its key: nothing may be left to keep.
fn changes(ops: &[RequestOp]) -> Result<Changes<'_>, RequestError> {
    let mut all = Changes::default();
    for (at, op) in ops.iter().enumerate() {
        match &op.request {
            Some(Request::RequestPut(put)) => {
                add_put(&mut all.puts, &put.key, at)?;
                if put.ignore_value || put.ignore_lease {
                    all.keeps.insert(&put.key, at);
                }
            }
            Some(Request::RequestDeleteRange(delete)) if delete.range_end == b"\0"[..] => {
                add_delete_from(&mut all.deletes_from, &delete.key, at);
            }
            Some(Request::RequestDeleteRange(delete)) => {
                all.deletes.push((KeyRange::new(&delete.key, &delete.range_end), at));
            }
            Some(Request::RequestTxn(txn)) => {
                let branches = [changes(&txn.success)?, changes(&txn.failure)?];
                for branch in branches {
                    for key in branch.puts.into_keys() {
                        add_put(&mut all.puts, key, at)?;
                    }
                    all.keeps.extend(branch.keeps.into_keys().map(|key| (key, at)));
                    for start in branch.deletes_from.into_values() {
                        add_delete_from(&mut all.deletes_from, start, at);
                    }
                    all.deletes.extend(branch.deletes.into_iter().map(|(range, _)| (range, at)));
                }
            }
            Some(Request::RequestRange(_)) | None => {}
        }
    }
    all.deletes = merged(all.deletes);
    let is_nested = |at: usize| matches!(ops[at].request, Some(Request::RequestTxn(_)));
    for &(range, deleter) in &all.deletes {
        let meets = |putter: usize| {
            let passes = putter < deleter && is_nested(putter) && is_nested(deleter);
            putter != deleter && !passes
        };
        if puts_in(&all.puts, range).any(meets) {
            return Err(RequestError::DuplicateKey);
        }
    }
    for (deleter, start) in &all.deletes_from {
        let last = all.keeps.iter().rev().find(|(_, putter)| *putter != deleter);
        if last.is_some_and(|(key, _)| key >= start) {
            return Err(RequestError::DuplicateKey);
        }
    }
    Ok(all)
}

fn add_delete_from<'a>(all: &mut BTreeMap<usize, &'a [u8]>, start: &'a [u8], deleter: usize) {
    let first = all.entry(deleter).or_insert(start);
    *first = start.min(first);
}

fn add_put<'a>(
    puts: &mut BTreeMap<&'a [u8], usize>,
    key: &'a [u8],
    putter: usize,
) -> Result<(), RequestError> {
    match puts.insert(key, putter) {
        Some(before) if before != putter => Err(RequestError::DuplicateKey),
        Some(_) | None => Ok(()),
    }
}

/// Who puts keys of `range`.
fn puts_in<'a>(
    puts: &'a BTreeMap<&[u8], usize>,
    range: KeyRange<'_>,
) -> Box<dyn Iterator<Item = usize> + 'a> {
    let (start, end) = match range {
        KeyRange::Key(key) => return Box::new(puts.get(key).copied().into_iter()),
        KeyRange::Span { start, end } => (start, end),
    };
    if end.is_some_and(|end| end <= start) {
        return Box::new(std::iter::empty());
    }
    let end = end.map_or(Bound::Unbounded, Bound::Excluded);
    let bounds = (Bound::Included(start), end);
    Box::new(puts.range::<[u8], _>(bounds).map(|(_, &putter)| putter))
}

/// Joins the spans of one deleter that meet, so that looking at all of them passes each key once.
fn merged(mut deletes: Vec<(KeyRange<'_>, usize)>) -> Vec<(KeyRange<'_>, usize)> {
    let order = |range: &KeyRange<'_>| match *range {
        KeyRange::Key(key) => (0, key.to_vec()),
        KeyRange::Span { start, .. } => (1, start.to_vec()),
    };
    deletes.sort_by_cached_key(|(range, deleter)| (*deleter, order(range)));
    let mut merged: Vec<(KeyRange<'_>, usize)> = Vec::with_capacity(deletes.len());
    for (range, deleter) in deletes {
        if let Some((last, last_deleter)) = merged.last_mut()
            && *last_deleter == deleter
            && let KeyRange::Span { start, end } = range
            && let KeyRange::Span { end: last_end, .. } = last
            && last_end.is_none_or(|last_end| start <= last_end)
        {
            // No end is the largest end.
            *last_end = last_end.and_then(|last_end| end.map(|end| end.max(last_end)));
        } else {
            merged.push((range, deleter));
        }
    }
    merged
}
