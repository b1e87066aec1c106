//! What doors ask about leases: grant, keep alive, time to live. Revoke is a command like any other.

use std::sync::Arc;

use futures_util::future::join_all;

use super::lessor::{KeepAlive, LeaseCounts};
use super::{Error, Member, Shard};
use crate::clock;
use crate::limits;
use crate::pb::etcdserverpb::LeaseGrantRequest;
use crate::pb::quorate::command::command::Body;
use crate::pb::quorate::peer::{LeaseTime, LeaseTimeToLiveReply, LeaseTimeToLiveRequest};
use crate::state::{Applied, RequestError};

impl Member {
    /// Grants a lease; id 0 lets the member choose one, and a TTL below the least is raised to it.
    ///
    /// # Errors
    /// As [`Member::propose`].
    pub async fn grant_lease(
        &self,
        shard: &Shard,
        request: &LeaseGrantRequest,
    ) -> Result<Applied, Error> {
        let ttl = request.ttl.max(self.options().lease_ttl_seconds_min);
        loop {
            // As in etcd: chosen ids are positive.
            let id = if request.id == 0 { fastrand::i64(1..=i64::MAX) } else { request.id };
            let command = Body::LeaseGrant(LeaseGrantRequest { id, ttl });
            let applied = self.propose(shard, command).await?;
            let is_taken = matches!(applied.outcome, Err(RequestError::LeaseExists));
            if !is_taken || request.id != 0 {
                return Ok(applied);
            }
        }
    }

    /// Takes keep-alives: the leader answers, wherever they came in.
    pub fn keep_alive(&self, shard: &Shard, lease_ids: &[i64]) -> Vec<KeepAlive> {
        self.lessor.keep_alive(lease_ids, Some(shard.id), &self.node)
    }

    /// How long a lease still lives, as the leader knows it; none if there is no such lease.
    ///
    /// # Errors
    /// As [`Member::read_barrier`].
    pub async fn lease_time_to_live(
        &self,
        shard: &Arc<Shard>,
        request: LeaseTimeToLiveRequest,
    ) -> Result<Option<LeaseTime>, Error> {
        let deadline = clock::now() + self.options().request_timeout;
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                let has_leader = self.node.leader().is_some();
                return Err(if has_leader { Error::Timeout } else { Error::NoLeader });
            }
            let reply = if self.node.is_leader() {
                self.read_barrier(shard).await?;
                self.time_to_live_here(&request)
            } else {
                self.node.forward_time_to_live(request, left).await
            };
            match reply {
                Some(reply) => return Ok(reply.time),
                None => self.node.leader_news(limits::LEASE_ENDING_POLL).await,
            }
        }
    }

    /// What the state and the lessor say; none if this member does not answer for leases.
    fn time_to_live_here(&self, request: &LeaseTimeToLiveRequest) -> Option<LeaseTimeToLiveReply> {
        let state = self.state();
        if !self.lessor.is_primary() {
            return None;
        }
        let Some(lease) = state.lease(request.id) else {
            return Some(LeaseTimeToLiveReply { time: None });
        };
        let remaining_ms = self.lessor.remaining_ms(request.id, self.node.clock_ms())?;
        let granted_seconds = lease.ttl_seconds();
        // The slack after a change of leaders is ours, not the client's.
        let remaining_seconds = i64::try_from(remaining_ms / 1000).unwrap_or(i64::MAX);
        let remaining_seconds = remaining_seconds.min(granted_seconds);
        let copied = |key: &[u8]| key.to_vec().into();
        let keys = if request.keys { lease.keys().map(copied).collect() } else { Vec::new() };
        Some(LeaseTimeToLiveReply {
            time: Some(LeaseTime { remaining_seconds, granted_seconds, keys }),
        })
    }

    /// As [`Member::lease_time_to_live`], for a peer; none if this member does not lead.
    pub(super) async fn time_to_live_for_peer(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Option<LeaseTimeToLiveReply> {
        if !self.node.is_leader() {
            return None;
        }
        let index = self.reads.join_peer().await.ok()?;
        let mut applied = self.node.shared().applied();
        let reached = applied.wait_for(|at| *at >= index);
        drop(tokio::time::timeout(self.options().request_timeout, reached).await.ok()?.ok()?);
        self.time_to_live_here(&request)
    }

    /// Renews leases for a peer; none if this member does not lead.
    pub(super) async fn renew_for_peer(&self, ids: Vec<i64>) -> Option<Vec<i64>> {
        if !self.lessor.is_primary() {
            return None;
        }
        let taken = self.lessor.keep_alive(&ids, None, &self.node);
        let answered = taken.into_iter().map(|keep_alive| async move {
            match keep_alive {
                KeepAlive::Now(ttl_seconds) => Some(ttl_seconds),
                KeepAlive::Later(receiver) => receiver.await.ok()?.ok(),
            }
        });
        join_all(answered).await.into_iter().collect()
    }

    /// What happened to leases so far.
    pub fn lease_counts(&self) -> &LeaseCounts {
        self.lessor.counts()
    }
}
