//! The pure core: what the cluster has agreed on, and the one way in which it changes.
//!
//! [`State::apply`] takes the commands of one log entry in order. Each is carried out whole or
//! refused whole, and a refusal is a result like any other: all members come to the same one. What
//! an entry changes is committed to the storage in one batch together with the entry's position, so
//! that after a crash the log goes on exactly where the data ends.
//!
//! ```text
//!            commands ──▶ apply ──▶ answers, events          the only writer
//!                           │
//!   Range, Txn ──▶ index ◀──┴──▶ batch ──▶ storage           readers see the last entry whole
//! ```
//! Nothing in here knows of tasks, clocks, randomness, networks or logging. Time comes in with the
//! entry. A [`StorageError`] out of `apply` leaves the state torn: the member must stop.
//!
//! - `answer`: responses and events. `error`: refusals. `check`: refusals by shape alone.
//! - `revision`, `key_range`: the words. `schema`: what lies where in the storage.
//! - `mvcc`: the index of keys and the bytes of a change. `write`: the transaction that changes them.
//! - `range`, `frames`: reading keys in bounded steps. `age`: who came first. `txn`: compares and branches.
//! - `records`: how a change lies in the storage.
//! - `lease`: who lives how long, and which keys go with it. `renewals`: how that is stored.
//! - `compact`: dropping history. `pins`: who still reads it. `hash`: proof that members agree.
//! - `snapshot`: the whole state as a stream of pairs. `history`: events of past revisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

mod age;
pub mod answer;
pub mod check;
mod compact;
pub mod error;
mod frames;
pub mod hash;
pub mod history;
pub mod key_range;
mod lease;
mod mvcc;
mod open;
mod pins;
pub mod range;
mod records;
mod renewals;
pub mod revision;
mod schema;
pub mod snapshot;
pub mod txn;
mod write;

pub use age::Aged;
pub use answer::{
    Applied, DeleteRangeAnswer, Event, EventKind, LeaseExpiry, LeaseTerm, OpResponse, PutAnswer,
    RangeAnswer, Response, TxnAnswer,
};
pub use compact::CompactStep;
pub use error::RequestError;
pub use frames::ColdPair;
pub use hash::{HashAnswer, HashJob};
pub use history::{History, HistoryStep};
pub use key_range::KeyRange;
pub use lease::Lease;
pub use range::{RangePlan, Room};
pub use revision::{Position, Revision};
pub use snapshot::{SnapshotReader, SnapshotWriter};

use crate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseRevokeRequest, PutRequest,
};
use crate::pb::quorate::command::command::Body;
use crate::pb::quorate::command::{Command, LeaseRenew, PublishMember};
use crate::storage::{Backend, StorageError};
use compact::Compaction;
use lease::Leases;
use mvcc::index::Index;
use pins::Pins;
use range::View;
use schema::Progress;
use write::{Pending, WriteTxn};

/// What an operator may choose. Nothing here may change what applying a command yields.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Encoded pairs to keep in memory, in bytes.
    pub value_cache_bytes: usize,
}

/// The replicated state of one member.
#[derive(Debug)]
pub struct State<B> {
    backend: Arc<B>,
    index: Index,
    revision: i64,
    applied: Option<Position>,
    time_unix_ms: u64,
    membership: Bytes,
    members: BTreeMap<u64, PublishMember>,
    leases: Leases,
    compaction: Compaction,
    pins: Pins,
}

impl<B: Backend> State<B> {
    /// Where the state lies.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// The last log entry that is in the state.
    pub fn applied(&self) -> Option<Position> {
        self.applied
    }

    /// What [`State::apply_membership`] was last given, empty before.
    pub fn membership(&self) -> Bytes {
        self.membership.clone()
    }

    /// The revision of the last change; 1 in a fresh store.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The lowest revision that can be read; as in etcd -1 until the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.compaction.requested
    }

    /// The state's clock: the largest time stamp of an entry so far.
    pub fn time_unix_ms(&self) -> u64 {
        self.time_unix_ms
    }

    /// What members published about themselves, by member id.
    pub fn members(&self) -> &BTreeMap<u64, PublishMember> {
        &self.members
    }

    /// Bytes of pairs that are kept in memory.
    pub fn cached_bytes(&self) -> usize {
        self.index.cached_bytes()
    }

    /// How many keys there are now.
    pub fn keys(&self) -> i64 {
        self.index.count(KeyRange::Span { start: b"", end: None })
    }

    /// Applies the commands of the entry at `at`, in order, and commits them in one batch.
    ///
    /// Refused commands change nothing, but the entry counts as applied. An error means that this
    /// member cannot go on.
    pub fn apply<'c>(
        &mut self,
        at: Position,
        time_unix_ms: u64,
        commands: impl IntoIterator<Item = &'c Command>,
    ) -> Result<Vec<Applied>, StorageError> {
        self.advance(at);
        self.time_unix_ms = self.time_unix_ms.max(time_unix_ms);
        let mut pending = Pending::default();
        let commands = commands.into_iter();
        let mut applied = Vec::with_capacity(commands.size_hint().0);
        for command in commands {
            applied.push(self.apply_command(command, &mut pending)?);
        }
        self.commit(pending)?;
        Ok(applied)
    }

    /// Applies an entry without commands.
    pub fn apply_blank(&mut self, at: Position) -> Result<(), StorageError> {
        self.advance(at);
        self.commit(Pending::default())
    }

    /// Applies an entry that changes who is in the cluster; `encoded` is raft's business.
    pub fn apply_membership(&mut self, at: Position, encoded: Bytes) -> Result<(), StorageError> {
        self.advance(at);
        self.membership = encoded.clone();
        let mut pending = Pending::default();
        pending.facts.put(schema::MEMBERSHIP, encoded);
        self.commit(pending)
    }

    fn advance(&mut self, at: Position) {
        match self.applied {
            Some(before) => assert_eq!(at.index, before.index + 1, "entries apply in order"),
            // openraft numbers the entry that initializes a cluster 0.
            None => assert!(at.index <= 1, "a fresh state begins with the first entry"),
        }
        self.applied = Some(at);
    }

    fn commit(&mut self, mut pending: Pending) -> Result<(), StorageError> {
        let progress = self.progress().expect("an entry is being applied");
        pending.facts.put(schema::POSITION, progress.encode());
        self.backend.commit(pending.into_batch())?;
        // Not before: until the commit, what this entry wrote can only be read from memory.
        self.index.evict();
        Ok(())
    }

    fn progress(&self) -> Option<Progress> {
        let (time_unix_ms, revision) = (self.time_unix_ms, self.revision);
        self.applied.map(|position| Progress { position, time_unix_ms, revision })
    }

    fn apply_command(
        &mut self,
        command: &Command,
        pending: &mut Pending,
    ) -> Result<Applied, StorageError> {
        let before = self.revision;
        let mut events = Vec::new();
        let outcome = match &command.body {
            Some(Body::Put(request)) => {
                let mut txn = WriteTxn::new(self, pending);
                let outcome = apply_put(&mut txn, request)?;
                events = txn.finish();
                outcome
            }
            Some(Body::DeleteRange(request)) => {
                let mut txn = WriteTxn::new(self, pending);
                let outcome = apply_delete_range(&mut txn, request)?;
                events = txn.finish();
                outcome
            }
            Some(Body::Txn(request)) => {
                let mut txn = WriteTxn::new(self, pending);
                let outcome = txn::execute(&mut txn, request)?.map(Response::Txn);
                events = txn.finish();
                outcome
            }
            Some(Body::Compact(request)) => self.apply_compact(request, pending),
            Some(Body::PublishMember(member)) => Ok(self.publish_member(member, pending)),
            Some(Body::LeaseGrant(request)) => {
                self.grant_lease(request, pending).map(Response::LeaseGrant)
            }
            Some(Body::LeaseRenew(LeaseRenew { ids })) => {
                Ok(Response::LeaseRenew(self.renew_leases(ids, pending)))
            }
            Some(Body::LeaseRevoke(LeaseRevokeRequest { id })) => {
                let mut txn = WriteTxn::new(self, pending);
                let outcome = txn.revoke_lease(*id).map(|()| Response::LeaseRevoke(*id));
                events = txn.finish();
                outcome
            }
            Some(Body::LeaseExpire(request)) => {
                let mut txn = WriteTxn::new(self, pending);
                let expiry = txn.expire_lease(request);
                events = txn.finish();
                Ok(Response::LeaseExpire(expiry))
            }
            None => Err(RequestError::KeyNotFound),
        };
        let changed = i64::from(!events.is_empty());
        assert_eq!(self.revision, before + changed, "a change raises the revision by one");
        assert!(outcome.is_ok() || events.is_empty(), "a refused command changes nothing");
        Ok(Applied { outcome, revision: self.revision, events })
    }

    fn apply_compact(
        &mut self,
        request: &CompactionRequest,
        pending: &mut Pending,
    ) -> Result<Response, RequestError> {
        check::compact(request)?;
        self.compact(request.revision, pending)?;
        Ok(Response::Compact)
    }

    fn publish_member(&mut self, member: &PublishMember, pending: &mut Pending) -> Response {
        let key = schema::member_key(member.member_id);
        pending.facts.put(key, member.encode_to_vec());
        self.members.insert(member.member_id, member.clone());
        Response::PublishMember
    }

    fn set_revision(&mut self, revision: i64) {
        self.revision = revision;
    }

    fn view(&self) -> View<'_> {
        let compact_revision = self.compaction.requested;
        View { index: &self.index, revision: self.revision, compact_revision }
    }

    fn index(&self) -> &Index {
        &self.index
    }

    fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    fn compaction(&self) -> &Compaction {
        &self.compaction
    }

    fn compaction_mut(&mut self) -> &mut Compaction {
        &mut self.compaction
    }

    fn pins(&self) -> &Pins {
        &self.pins
    }
}

fn apply_put<B: Backend>(
    txn: &mut WriteTxn<'_, B>,
    request: &PutRequest,
) -> Result<Result<Response, RequestError>, StorageError> {
    if let Err(refusal) = check::put(request).and_then(|()| txn.check_put(request)) {
        return Ok(Err(refusal));
    }
    Ok(Ok(Response::Put(txn.put(request)?)))
}

fn apply_delete_range<B: Backend>(
    txn: &mut WriteTxn<'_, B>,
    request: &DeleteRangeRequest,
) -> Result<Result<Response, RequestError>, StorageError> {
    if let Err(refusal) = check::delete_range(request) {
        return Ok(Err(refusal));
    }
    Ok(Ok(Response::DeleteRange(txn.delete_range(request)?)))
}
