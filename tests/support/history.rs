//! What clients asked, when, and what they were told: what the judges judge.
//!
//! Operations and replies are the messages of the API themselves, so a history holds all that a client
//! could know: header revisions, previous pairs, which branch a Txn took. All times are since the
//! begin of the run, on one clock.

#![allow(dead_code, reason = "the judges come next")]

use std::time::Duration;

use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse, WatchCreateRequest, WatchResponse,
};
use quorate::pb::mvccpb::KeyValue;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    /// One keep-alive and its answer, on whatever stream.
    KeepAlive(LeaseKeepAliveRequest),
    TimeToLive(LeaseTimeToLiveRequest),
}

impl Op {
    /// Whether it can change the store or a lease.
    pub(crate) fn writes(&self) -> bool {
        match self {
            Op::Range(_) | Op::TimeToLive(_) => false,
            Op::Txn(txn) => txn_writes(txn),
            Op::Put(_) | Op::Delete(_) | Op::Compact(_) => true,
            Op::Grant(_) | Op::Revoke(_) | Op::KeepAlive(_) => true,
        }
    }

    /// Whether it may be answered from stale state.
    pub(crate) fn is_serializable(&self) -> bool {
        match self {
            Op::Range(range) => range.serializable,
            Op::Txn(txn) => txn.success.iter().chain(&txn.failure).all(|op| {
                matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable)
            }),
            _ => false,
        }
    }
}

fn txn_writes(txn: &TxnRequest) -> bool {
    let writes = |op: &RequestOp| match &op.request {
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => true,
        Some(Request::RequestTxn(txn)) => txn_writes(txn),
        Some(Request::RequestRange(_)) | None => false,
    };
    txn.success.iter().chain(&txn.failure).any(writes)
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    Grant(LeaseGrantResponse),
    Revoke(LeaseRevokeResponse),
    KeepAlive(LeaseKeepAliveResponse),
    TimeToLive(LeaseTimeToLiveResponse),
}

impl Reply {
    /// Its header.
    pub(crate) fn header(&self) -> Option<&ResponseHeader> {
        match self {
            Reply::Range(reply) => reply.header.as_ref(),
            Reply::Put(reply) => reply.header.as_ref(),
            Reply::Delete(reply) => reply.header.as_ref(),
            Reply::Txn(reply) => reply.header.as_ref(),
            Reply::Compact(reply) => reply.header.as_ref(),
            Reply::Grant(reply) => reply.header.as_ref(),
            Reply::Revoke(reply) => reply.header.as_ref(),
            Reply::KeepAlive(reply) => reply.header.as_ref(),
            Reply::TimeToLive(reply) => reply.header.as_ref(),
        }
    }

    /// The revision of its header; 0 without one.
    pub(crate) fn revision(&self) -> i64 {
        self.header().map_or(0, |header| header.revision)
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Ok(Reply),
    /// Certainly not applied, neither now nor later; with the text.
    Refused(String),
    /// May have been applied, may be applied at any later time, or never; with the text.
    Unknown(String),
}

impl Outcome {
    /// The outcome of a call that failed with a status of `code` and `text`.
    ///
    /// Only codes of deterministic refusals are certain; a door that knows better (a connection that
    /// was refused, a request that never left) says [`Outcome::Refused`] itself.
    pub(crate) fn failed(code: tonic::Code, text: &str) -> Outcome {
        use tonic::Code;
        let is_certain = match code {
            Code::InvalidArgument | Code::OutOfRange | Code::NotFound => true,
            Code::FailedPrecondition | Code::ResourceExhausted => true,
            _ => text == "etcdserver: too many requests",
        };
        let text = format!("{code:?}: {text}");
        if is_certain { Outcome::Refused(text) } else { Outcome::Unknown(text) }
    }

    /// The reply, if there is one.
    pub(crate) fn reply(&self) -> Option<&Reply> {
        match self {
            Outcome::Ok(reply) => Some(reply),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        }
    }
}

/// One call of one client; a client has at most one call under way.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) client: usize,
    pub(crate) op: Op,
    pub(crate) called_at: Duration,
    /// When the client knew the outcome. After `Unknown` it means nothing for the effect.
    pub(crate) returned_at: Duration,
    pub(crate) outcome: Outcome,
}

impl Call {
    /// The header revision of its reply; `None` without a reply.
    pub(crate) fn revision(&self) -> Option<i64> {
        self.outcome.reply().map(Reply::revision)
    }
}

/// What one watcher was sent, over all streams on which it was resumed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watched {
    /// A number that no other watcher of the history has.
    pub(crate) watcher: usize,
    pub(crate) streams: Vec<WatchedStream>,
}

/// What came on one stream with one watcher.
#[derive(Debug, Clone, Default)]
pub(crate) struct WatchedStream {
    pub(crate) request: WatchCreateRequest,
    /// When it was asked for.
    pub(crate) opened_at: Duration,
    /// All responses with the times at which they came, `created` and `canceled` included.
    pub(crate) responses: Vec<(Duration, WatchResponse)>,
}

/// The store at the begin of the run.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) revision: i64,
    pub(crate) kvs: Vec<KeyValue>,
}

impl Default for Base {
    /// An empty store, as a new cluster has it.
    fn default() -> Base {
        Base { revision: 1, kvs: Vec::new() }
    }
}

/// Everything that clients saw of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) base: Base,
    /// In the order of their ends.
    pub(crate) calls: Vec<Call>,
    pub(crate) watches: Vec<Watched>,
}

impl History {
    /// How many events watchers were sent.
    pub(crate) fn events(&self) -> u64 {
        let streams = self.watches.iter().flat_map(|watched| &watched.streams);
        let responses = streams.flat_map(|stream| &stream.responses);
        responses.map(|(_, response)| response.events.len() as u64).sum()
    }
}
