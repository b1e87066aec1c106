//! The Lock service: the first in line at a name holds the lock.
//!
//! Lock answers when the caller holds the lock, which may take any time; Unlock deletes the key that
//! Lock answered with. A lock lasts as long as its lease: who keeps the lease alive, keeps the lock.
//!
//! # The fencing token
//! A holder may lose its lease without noticing, for example while it is paused, and then act as if it
//! still held the lock. What it acts on can tell: the **create revision of the lock's key** is greater
//! for every later holder of the name. Read it with a Range on the key that Lock answered with
//! (`kvs[0].create_revision`), send it along with every request to the guarded resource, and have
//! that refuse any token below the greatest it has seen.
//!
//! If what is guarded are keys of this cluster, one Txn does all of it: compare the create revision
//! of the lock's key with the token, and write only if they are equal.
//!
//! The revision in Lock's header rises from holder to holder, too, but it is when the lock was taken,
//! not when the key was made: a Txn cannot compare it with anything.

use bytes::Bytes;

use super::line::{Line, from_inside};
use super::status::Status;
use super::{Api, grpc};
use crate::pb::etcdserverpb::DeleteRangeRequest;
use crate::pb::quorate::command::command::Body as Command;
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::state::check;

/// As in etcd: what a waiter is told whose key was deleted, be it with its lease.
const EXPIRED: &str = "mutex: session is expired";

impl Api {
    pub(super) async fn lock(&self, message: Bytes) -> Result<Bytes, Status> {
        let LockRequest { name, lease } = grpc::decode(message)?;
        let lease = self.lease_or_new(lease).await?;
        let line = Line::new(&name);
        let mut joined = self.join_line(&line, lease, Bytes::new()).await?;
        let revision = self.turn(&line, &mut joined.place, EXPIRED).await?;
        let key = joined.place.key.clone();
        joined.place.keep();
        let header = Some(self.member.header(revision));
        Ok(grpc::encode(&LockResponse { header, key }))
    }

    /// As in etcd: deletes whatever key is named.
    pub(super) async fn unlock(&self, message: Bytes) -> Result<Bytes, Status> {
        let UnlockRequest { key } = grpc::decode(message)?;
        let request = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        check::delete_range(&request).map_err(|refusal| from_inside(refusal.into()))?;
        let applied = self.member.propose(&self.shard, Command::DeleteRange(request)).await;
        let applied = applied.map_err(from_inside)?;
        applied.outcome.map_err(|refusal| from_inside(refusal.into()))?;
        let header = Some(self.member.header(applied.revision));
        Ok(grpc::encode(&UnlockResponse { header }))
    }
}
