//! The Election service: the first in line at a name leads, and its key's value says who it is.
//!
//! `LeaderKey.rev`, the create revision of the leader's key, is its fencing token: see `lock`.

use bytes::Bytes;
use prost::Message;

use super::line::{Line, delete, from_inside, if_created};
use super::status::{Code, Status};
use super::{Api, grpc};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use crate::pb::mvccpb::KeyValue;
use crate::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};

/// As in etcd: only the leader may say who leads.
const NOT_LEADER: &str = "election: not leader";
/// As in etcd: nobody stands in line.
const NO_LEADER: &str = "election: no leader";

/// The pair of a leader, as a read found it.
pub(super) struct Found {
    /// The revision of the store when it was read.
    pub(super) revision: i64,
    /// None if nobody leads.
    pub(super) leader: Option<KeyValue>,
}

impl Api {
    pub(super) async fn campaign(&self, message: Bytes) -> Result<Bytes, Status> {
        let CampaignRequest { name, lease, value } = grpc::decode(message)?;
        let lease = self.lease_or_new(lease).await?;
        let line = Line::new(&name);
        let mut joined = self.join_line(&line, lease, value.clone()).await?;
        let (key, rev) = (joined.place.key.clone(), joined.place.create_revision);
        let leader = LeaderKey { name, key, rev, lease };
        if joined.found.as_ref().is_some_and(|found| found.value != value) {
            joined.place.claim();
            self.announce(&leader, value).await?;
        }
        // As in etcd: who cannot be told of their turn stays in line, unless they went away. Other
        // than there, who lost their key while waiting is not told that they lead.
        let turn = self.turn(&line, &mut joined.place, NOT_LEADER).await;
        joined.place.keep();
        turn?;
        let header = Some(self.member.header(joined.revision));
        Ok(grpc::encode(&CampaignResponse { header, leader: Some(leader) }))
    }

    pub(super) async fn proclaim(&self, message: Bytes) -> Result<Bytes, Status> {
        let ProclaimRequest { leader, value } = grpc::decode(message)?;
        let mut leader = leader.ok_or_else(missing_leader)?;
        leader.lease = self.lease_or_new(leader.lease).await?;
        let header = Some(self.member.header(self.announce(&leader, value).await?));
        Ok(grpc::encode(&ProclaimResponse { header }))
    }

    /// Gives the leader's key another value; answers with the revision of that.
    async fn announce(&self, leader: &LeaderKey, value: Bytes) -> Result<i64, Status> {
        let LeaderKey { key, rev, lease, .. } = leader;
        let put = PutRequest { key: key.clone(), value, lease: *lease, ..PutRequest::default() };
        let request = if_created(key.clone(), *rev, Request::RequestPut(put));
        let (answer, revision) = self.write_txn(request).await?;
        if !answer.succeeded {
            return Err(Status::new(Code::Unknown, NOT_LEADER));
        }
        Ok(revision)
    }

    pub(super) async fn resign(&self, message: Bytes) -> Result<Bytes, Status> {
        let ResignRequest { leader } = grpc::decode(message)?;
        let LeaderKey { key, rev, .. } = leader.ok_or_else(missing_leader)?;
        // As in etcd: who does not lead any more has resigned.
        let (_, revision) = self.write_txn(if_created(key.clone(), rev, delete(key))).await?;
        let header = Some(self.member.header(revision));
        Ok(grpc::encode(&ResignResponse { header }))
    }

    pub(super) async fn leader(&self, message: Bytes) -> Result<Bytes, Status> {
        let LeaderRequest { name } = grpc::decode(message)?;
        let Found { revision, leader } = self.find_leader(&Line::new(&name)).await?;
        let kv = Some(leader.ok_or_else(|| Status::new(Code::Unknown, NO_LEADER))?);
        let header = Some(self.member.header(revision));
        Ok(grpc::encode(&LeaderResponse { header, kv }))
    }

    /// Who is in front of `line`.
    pub(super) async fn find_leader(&self, line: &Line) -> Result<Found, Status> {
        self.member.read_barrier(&self.shard).await.map_err(from_inside)?;
        loop {
            let (plan, revision) = {
                let state = self.member.state();
                let revision = state.revision();
                let Some(oldest) = state.oldest(line.range()) else {
                    return Ok(Found { revision, leader: None });
                };
                let request = RangeRequest { key: oldest.key.into(), ..RangeRequest::default() };
                let plan = state.range(&request).map_err(|refusal| from_inside(refusal.into()))?;
                (plan, revision)
            };
            if let Some(answer) = self.finish(plan).await? {
                let read = RangeResponse::decode(answer.kvs);
                let mut read = read.expect("the state encoded these pairs");
                return Ok(Found { revision, leader: read.kvs.pop() });
            }
        }
    }
}

fn missing_leader() -> Status {
    Status::new(Code::Unknown, "\"leader\" field must be provided")
}
