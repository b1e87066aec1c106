//! Calls and events in few words, for people who read of a violation.

use std::fmt::Write as _;

use bytes::Bytes;
use quorate::pb::etcdserverpb::compare::TargetUnion;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::response_op::Response;
use quorate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use quorate::pb::mvccpb::{Event, KeyValue};

use crate::support::history::{Call, Op, Outcome, Reply};

/// More pairs than this are only counted.
const PAIRS_MAX: usize = 8;

/// A call in one line.
pub(crate) fn call(call: &Call) -> String {
    let Call { client, op: asked, called_at, returned_at, outcome } = call;
    let end = match outcome {
        Outcome::Ok(told) => format!("revision {}: {}", told.revision(), reply(told)),
        Outcome::Refused(text) => format!("refused: {text}"),
        Outcome::Unknown(text) => format!("unknown: {text}"),
    };
    format!("client {client} [{called_at:?} … {returned_at:?}] {} → {end}", op(asked))
}

/// An operation.
pub(crate) fn op(op: &Op) -> String {
    match op {
        Op::Range(range) => show_range(range),
        Op::Put(put) => show_put(put),
        Op::Delete(delete) => show_delete(delete),
        Op::Txn(txn) => show_txn(txn),
        Op::Compact(compact) => format!("compact {}", compact.revision),
        Op::Grant(grant) => format!("grant {} s", grant.ttl),
        Op::Revoke(revoke) => format!("revoke {}", revoke.id),
        Op::KeepAlive(request) => format!("keep alive {}", request.id),
        Op::TimeToLive(request) => format!("time to live of {}", request.id),
    }
}

/// A key or a value, cut if it is long.
fn text(bytes: &Bytes) -> String {
    let short = &bytes[..bytes.len().min(60)];
    let dots = if short.len() < bytes.len() { "…" } else { "" };
    format!("{}{dots}", short.escape_ascii())
}

fn keys(key: &Bytes, end: &Bytes) -> String {
    match &end[..] {
        b"" => text(key),
        b"\0" => format!("{}…", text(key)),
        _ => format!("{}…{}", text(key), text(end)),
    }
}

fn show_range(range: &RangeRequest) -> String {
    let mut line = format!("get {}", keys(&range.key, &range.range_end));
    let notes = [
        (range.serializable, "serializable".to_owned()),
        (range.revision != 0, format!("at {}", range.revision)),
        (range.limit != 0, format!("limit {}", range.limit)),
        (range.count_only, "count".to_owned()),
        (range.keys_only, "keys".to_owned()),
        (range.sort_order != 0, format!("sort {} {}", range.sort_order, range.sort_target)),
    ];
    for (_, note) in notes.iter().filter(|(is_there, _)| *is_there) {
        line += &format!(" {note}");
    }
    line
}

fn show_put(put: &PutRequest) -> String {
    let lease = if put.lease == 0 { String::new() } else { format!(" lease {}", put.lease) };
    format!("put {}={}{lease}", text(&put.key), text(&put.value))
}

fn show_delete(delete: &DeleteRangeRequest) -> String {
    format!("delete {}", keys(&delete.key, &delete.range_end))
}

fn show_txn(txn: &TxnRequest) -> String {
    let ops = |ops: &[RequestOp]| {
        let ops = ops.iter().map(|op| match &op.request {
            Some(Request::RequestRange(range)) => show_range(range),
            Some(Request::RequestPut(put)) => show_put(put),
            Some(Request::RequestDeleteRange(delete)) => show_delete(delete),
            Some(Request::RequestTxn(txn)) => format!("({})", show_txn(txn)),
            None => "nothing".to_owned(),
        });
        ops.collect::<Vec<_>>().join(", ")
    };
    let compares: Vec<String> = txn.compare.iter().map(show_compare).collect();
    let (compares, then) = (compares.join(", "), ops(&txn.success));
    let otherwise = if txn.failure.is_empty() { String::new() } else { ops(&txn.failure) };
    format!("if [{compares}] then [{then}] else [{otherwise}]")
}

fn show_compare(compare: &Compare) -> String {
    let sign = ["=", ">", "<", "≠"].get(compare.result as usize).unwrap_or(&"?");
    let target = match compare.target_union.as_ref() {
        Some(TargetUnion::Version(number)) => format!("version {sign} {number}"),
        Some(TargetUnion::CreateRevision(number)) => format!("create {sign} {number}"),
        Some(TargetUnion::ModRevision(number)) => format!("mod {sign} {number}"),
        Some(TargetUnion::Value(value)) => format!("value {sign} {}", text(value)),
        Some(TargetUnion::Lease(number)) => format!("lease {sign} {number}"),
        None => "nothing".to_owned(),
    };
    format!("{} {target}", keys(&compare.key, &compare.range_end))
}

/// A reply, without its header.
pub(crate) fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Range(range) => told_range(range),
        Reply::Put(put) => told_put(put),
        Reply::Delete(delete) => told_delete(delete),
        Reply::Txn(txn) => told_txn(txn),
        Reply::Compact(_) => "compacted".to_owned(),
        Reply::Grant(grant) => format!("lease {} for {} s", grant.id, grant.ttl),
        Reply::Revoke(_) => "revoked".to_owned(),
        Reply::KeepAlive(reply) => format!("{} s more", reply.ttl),
        Reply::TimeToLive(reply) => format!("{} s left of {}", reply.ttl, reply.granted_ttl),
    }
}

/// A pair.
pub(crate) fn pair(kv: &KeyValue) -> String {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
    let lease = if *lease == 0 { String::new() } else { format!(" lease {lease}") };
    let at = format!("mod {mod_revision}, create {create_revision}, version {version}");
    format!("{}={} ({at}{lease})", text(key), text(value))
}

fn pairs(kvs: &[KeyValue]) -> String {
    let mut line: Vec<String> = kvs.iter().take(PAIRS_MAX).map(pair).collect();
    if kvs.len() > PAIRS_MAX {
        line.push(format!("… {} in all", kvs.len()));
    }
    line.join(", ")
}

fn told_range(reply: &RangeResponse) -> String {
    let more = if reply.more { " and more" } else { "" };
    format!("[{}]{more} of {}", pairs(&reply.kvs), reply.count)
}

fn told_put(reply: &PutResponse) -> String {
    reply.prev_kv.as_ref().map_or("put".to_owned(), |kv| format!("put over {}", pair(kv)))
}

fn told_delete(reply: &DeleteRangeResponse) -> String {
    format!("deleted {}: [{}]", reply.deleted, pairs(&reply.prev_kvs))
}

fn told_txn(reply: &TxnResponse) -> String {
    let ops = reply.responses.iter().map(|op| match &op.response {
        Some(Response::ResponseRange(reply)) => told_range(reply),
        Some(Response::ResponsePut(reply)) => told_put(reply),
        Some(Response::ResponseDeleteRange(reply)) => told_delete(reply),
        Some(Response::ResponseTxn(reply)) => format!("({})", told_txn(reply)),
        None => "nothing".to_owned(),
    });
    let branch = if reply.succeeded { "then" } else { "else" };
    format!("{branch} {}", ops.collect::<Vec<_>>().join("; "))
}

/// Events in a line.
pub(crate) fn events<'e>(events: impl IntoIterator<Item = &'e Event>) -> String {
    let mut line = String::new();
    for event in events {
        let kv = event.kv.as_ref().expect("an event has a pair");
        let what = match event.r#type {
            0 => format!("PUT {}", pair(kv)),
            _ => format!("DELETE {} at {}", text(&kv.key), kv.mod_revision),
        };
        let prev = event.prev_kv.as_ref().map_or(String::new(), |kv| format!(" was {}", pair(kv)));
        write!(line, "[{what}{prev}]").expect("a String takes all");
    }
    if line.is_empty() { "nothing".to_owned() } else { line }
}
