//! Standing in line at a name, which is what a lock and an election have in common.
//!
//! A place in the line is the key `<name>/<lease in hex>`, and who came first is in front: the key
//! with the lowest create revision. The layout is etcd's, so that its clients' own recipes and these
//! services stand in the same line.
//!
//! Whoever joins waits for the deletion of one key, the one that was created just before theirs.
//! When it goes, they look again, since somebody in the middle may have given up: so the end of one
//! place wakes one waiter, however long the line.
//!
//! ```text
//!   name/a  (rev 5, in front) ◀── name/c (rev 6) ◀── name/b (rev 9)      each watches its neighbour
//! ```
//! **Invariant:** a call that ends before its turn, because its client went away, takes its own place
//! back, and never the place that somebody made later under the same key.

use bytes::Bytes;
use prost::Message;

use super::Api;
use super::status::{Code, Status};
use crate::limits;
use crate::member::Error;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse,
    RequestOp, TxnRequest,
};
use crate::pb::mvccpb::KeyValue;
use crate::pb::quorate::command::command::Body as Command;
use crate::state::{KeyRange, Response, TxnAnswer, check};
use crate::tasks;
use crate::watch::{Keys, WatchRequest};

/// What a caller stands in line for.
pub(super) struct Line {
    /// The begin of the keys of the line.
    start: Vec<u8>,
    /// The first key behind them.
    end: Vec<u8>,
}

impl Line {
    /// The line at `name`.
    pub(super) fn new(name: &[u8]) -> Line {
        Line { start: [name, b"/"].concat(), end: [name, b"0"].concat() }
    }

    /// All keys of the line.
    pub(super) fn range(&self) -> KeyRange<'_> {
        KeyRange::Span { start: &self.start, end: Some(&self.end) }
    }

    /// What a watcher of the whole line watches.
    pub(super) fn keys(&self) -> Option<Keys> {
        Keys::new(&self.start, &self.end)
    }

    /// The key of the holder of `lease`.
    fn key(&self, lease: i64) -> Bytes {
        let sign = if lease < 0 { "-" } else { "" };
        let number = format!("{sign}{:x}", lease.unsigned_abs());
        [&self.start, number.as_bytes()].concat().into()
    }
}

/// A place in a line. Dropping it gives it up if this call made or claimed it and did not keep it.
pub(super) struct Place {
    api: Api,
    pub(super) key: Bytes,
    /// Grows with every place in the cluster: the fencing token of its holder.
    pub(super) create_revision: i64,
    gives_up: bool,
}

impl Place {
    /// From now on dropping it gives it up, also if an earlier call made it.
    pub(super) fn claim(&mut self) {
        self.gives_up = true;
    }

    /// Leaves the place to its lease, or to whoever deletes the key.
    pub(super) fn keep(mut self) {
        self.gives_up = false;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Without a runtime the process is about to end; then the lease ends the place.
        if self.gives_up && tokio::runtime::Handle::try_current().is_ok() {
            let (api, key) = (self.api.clone(), std::mem::take(&mut self.key));
            tasks::spawn("leave-line", give_up(api, key, self.create_revision));
        }
    }
}

/// Takes a place back; what cannot be done now is left to the lease.
async fn give_up(api: Api, key: Bytes, create_revision: i64) {
    for _ in 0..limits::LINE_LEAVE_ATTEMPTS_MAX {
        let request = if_created(key.clone(), create_revision, delete(key.clone()));
        match api.member.propose(&api.shard, Command::Txn(request)).await {
            Ok(_) | Err(Error::Stopped | Error::Storage(_) | Error::Request(_)) => return,
            Err(_) => tokio::time::sleep(limits::LINE_LEAVE_PAUSE).await,
        }
    }
}

/// What came of joining a line.
pub(super) struct Joined {
    pub(super) place: Place,
    /// The revision at which the caller was in the line.
    pub(super) revision: i64,
    /// The pair that was there before, from an earlier call with the same lease.
    pub(super) found: Option<KeyValue>,
}

/// What a look at the line shows.
enum Look {
    /// Nobody is before the caller, at this revision.
    First(i64),
    /// `key` came just before, at this revision.
    Behind { key: Vec<u8>, revision: i64 },
    /// The caller's own key is gone.
    Gone,
}

impl Api {
    /// The lease itself, or a new one if it is 0.
    pub(super) async fn lease_or_new(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let request = LeaseGrantRequest { id: 0, ttl: limits::LINE_LEASE_TTL_SECONDS };
        let granted = self.member.grant_lease(&self.shard, &request).await;
        match granted.map_err(from_inside)?.outcome {
            Ok(Response::LeaseGrant(term)) => Ok(term.id),
            Ok(_) => unreachable!("a grant is answered with its term"),
            Err(refusal) => Err(from_inside(refusal.into())),
        }
    }

    /// Joins `line` for the holder of `lease`; who stands there already keeps their place.
    pub(super) async fn join_line(
        &self,
        line: &Line,
        lease: i64,
        value: Bytes,
    ) -> Result<Joined, Status> {
        let api = self.clone();
        let joining = api.join_at(line.key(lease), lease, value);
        // In a task of its own, which ends also if the client goes away meanwhile: then nobody
        // takes its output, and dropping that gives the place up.
        let joined = tasks::spawn("join-line", joining).await;
        joined.map_err(|gone| Status::new(Code::Unavailable, gone.to_string()))?
    }

    async fn join_at(self, key: Bytes, lease: i64, value: Bytes) -> Result<Joined, Status> {
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let request = TxnRequest {
            failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
            ..if_created(key.clone(), 0, Request::RequestPut(put))
        };
        let (answer, revision) = self.write_txn(request).await?;
        let found = answer.responses.first().and_then(|operation| match &operation.response {
            Response::Range(range) => RangeResponse::decode(range.kvs.clone()).ok()?.kvs.pop(),
            _ => None,
        });
        let create_revision = found.as_ref().map_or(revision, |pair| pair.create_revision);
        let place = Place { api: self, key, create_revision, gives_up: answer.succeeded };
        Ok(Joined { place, revision, found })
    }

    /// Waits until nobody stands before `place`; answers with a revision at which that is so.
    ///
    /// Refuses with `gone` if the place is lost meanwhile.
    pub(super) async fn turn(
        &self,
        line: &Line,
        place: &mut Place,
        gone: &'static str,
    ) -> Result<i64, Status> {
        place.claim();
        let mut has_to_ask = false;
        loop {
            match self.look(line, place) {
                Look::First(revision) if !has_to_ask => return Ok(revision),
                Look::First(_) => {
                    // As in etcd: a member that is behind must not tell of a turn long over.
                    self.member.read_barrier(&self.shard).await.map_err(from_inside)?;
                    has_to_ask = false;
                }
                Look::Behind { key, revision } => {
                    self.deleted_after(&key, revision).await;
                    has_to_ask = true;
                }
                Look::Gone => {
                    place.gives_up = false;
                    return Err(Status::new(Code::Unknown, gone));
                }
            }
        }
    }

    fn look(&self, line: &Line, place: &Place) -> Look {
        let state = self.member.state();
        if state.create_revision(&place.key) != Some(place.create_revision) {
            return Look::Gone;
        }
        let revision = state.revision();
        match state.youngest_before(line.range(), place.create_revision) {
            Some(before) => Look::Behind { key: before.key, revision },
            None => Look::First(revision),
        }
    }

    /// Waits until `key` is deleted after `revision`, or until that cannot be told.
    async fn deleted_after(&self, key: &[u8], revision: i64) {
        let stream = self.member.watch(&self.shard);
        let request = WatchRequest::new(Keys::new(key, b""), revision + 1).without(true, false);
        if stream.create(request, self.member.revisions()).is_ok() {
            // A deletion, or the end of a watcher that compaction overtook: the caller looks again.
            stream.next().await;
        }
    }

    /// Has `request`, a Txn that writes, carried out; answers also with the revision after it.
    pub(super) async fn write_txn(&self, request: TxnRequest) -> Result<(TxnAnswer, i64), Status> {
        let check = check::txn(&request, usize::MAX);
        check.map_err(|refusal| from_inside(refusal.into()))?;
        let applied = self.member.propose(&self.shard, Command::Txn(request)).await;
        let applied = applied.map_err(from_inside)?;
        match applied.outcome {
            Ok(Response::Txn(answer)) => Ok((answer, applied.revision)),
            Ok(_) => unreachable!("a Txn is answered with a Txn"),
            Err(refusal) => Err(from_inside(refusal.into())),
        }
    }
}

/// A Txn that carries out `then` if `key` was created at `create_revision`; 0 is not at all.
pub(super) fn if_created(key: Bytes, create_revision: i64, then: Request) -> TxnRequest {
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(create_revision)),
        ..Compare::default()
    };
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(then) }],
        ..TxnRequest::default()
    }
}

/// Deletes `key`.
pub(super) fn delete(key: Bytes) -> Request {
    Request::RequestDeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() })
}

/// As in etcd: these services are clients of their own member, and the code of an error whose text
/// etcd's client knows is lost on the way.
pub(super) fn from_inside(error: Error) -> Status {
    let is_unknown_text =
        matches!(error, Error::TimeoutApplied | Error::TimeoutNoLeader | Error::Storage(_));
    let status = Status::from(error);
    if is_unknown_text { status } else { Status { code: Code::Unknown, ..status } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_etcd() {
        let line = Line::new(b"name");
        assert_eq!(line.key(0x694d_71dd_ac12_7c0a), "name/694d71ddac127c0a");
        assert_eq!(line.key(-1), "name/-1");
        assert!(line.range().contains(b"name/\xff") && !line.range().contains(b"name0"));
    }
}
