//! What applying a command yields: answers for the client and events for the watchers.
//!
//! Every pair in here is the encoded `mvccpb.KeyValue` that is also on disk, so that an answer, an
//! event and the hash share the same bytes and nobody encodes a pair twice.

use bytes::Bytes;

use super::error::RequestError;
use super::revision::Revision;

/// The result of one command of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer, or the refusal that every member agrees on.
    pub outcome: Result<Response, RequestError>,
    /// What `header.revision` of the answer says.
    pub revision: i64,
    /// One event for each key that changed, in the order of their revisions.
    pub events: Vec<Event>,
}

/// The answer to a command, or to an operation inside a Txn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The key is written.
    Put(PutAnswer),
    /// The keys are gone.
    DeleteRange(DeleteRangeAnswer),
    /// The keys that were read; only inside a Txn.
    Range(RangeAnswer),
    /// The branch that was taken.
    Txn(TxnAnswer),
    /// The history below the revision is no longer readable.
    Compact,
    /// The member's name and client URLs are known.
    PublishMember,
    /// The lease is granted.
    LeaseGrant(LeaseTerm),
    /// The lease with this id is gone, and its keys with it.
    LeaseRevoke(i64),
    /// The leases that were there live longer.
    LeaseRenew(Vec<LeaseTerm>),
    /// The lease had run out and is gone with its keys, or it lives on.
    LeaseExpire(LeaseExpiry),
}

/// How long a lease lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTerm {
    /// The lease.
    pub id: i64,
    /// What it was granted for, and what each renewal gives, in seconds.
    pub ttl_seconds: i64,
    /// When it ends on the state's clock, in milliseconds, unless it is renewed.
    pub expires_at_ms: u64,
}

/// What became of a lease whose end a leader saw pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseExpiry {
    /// The lease.
    pub id: i64,
    /// Whether it went; not if it was renewed, revoked or granted anew before.
    pub is_expired: bool,
}

/// The answer to a Put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutAnswer {
    /// The encoded pair that was overwritten, if it was asked for and was there.
    pub prev_kv: Option<Bytes>,
    /// As [`RangeAnswer::left_out`].
    pub left_out: usize,
}

/// The answer to a DeleteRange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteRangeAnswer {
    /// How many keys were deleted.
    pub deleted: i64,
    /// The encoded pairs that were deleted, in key order, if they were asked for.
    pub prev_kvs: Vec<Bytes>,
    /// As [`RangeAnswer::left_out`].
    pub left_out: usize,
}

/// The answer to a Range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeAnswer {
    /// The pairs as field 2 of `RangeResponse`: tag, length and encoded pair, one after another,
    /// ready to be copied into the response as they are.
    pub kvs: Bytes,
    /// How many pairs `kvs` holds.
    pub len: usize,
    /// All live keys of the range at the revision, whatever the limit and the filters.
    pub count: i64,
    /// Whether the limit left pairs out.
    pub more: bool,
    /// Bytes of pairs that are not in here, because with them the answer would be larger than any
    /// message; 0 in an answer that is whole. Whoever asked has to be refused.
    pub left_out: usize,
}

/// The answer to a Txn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TxnAnswer {
    /// Whether all compares held.
    pub succeeded: bool,
    /// The answers of the branch that was taken, one for each operation.
    pub responses: Vec<OpResponse>,
}

/// The answer to one operation of a Txn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpResponse {
    /// The only field of the operation's header. As in etcd: 0 for a nested Txn.
    pub revision: i64,
    /// The answer itself.
    pub response: Response,
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted.
    Delete,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key; shares the bytes of `kv`.
    pub key: Bytes,
    /// The encoded `mvccpb.KeyValue`; of a delete it holds only the key and the mod revision.
    pub kv: Bytes,
    /// When it happened, and its place within that revision.
    pub revision: Revision,
    /// The revision that created the key; 0 for a delete.
    pub create_revision: i64,
    /// Counts the writes since the key was created; 0 for a delete.
    pub version: i64,
    /// Where the pair that the key had before this revision is recorded; none if the key was not
    /// there, or if nobody has looked for it yet.
    pub prev: Option<Revision>,
    /// That pair, encoded, if it is in memory.
    pub prev_kv: Option<Bytes>,
}

impl Event {
    /// Whether it made its key, or made it anew.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.version == 1
    }
}
